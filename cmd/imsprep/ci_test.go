// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	"go.yaml.in/yaml/v3"
)

// cmdSteps writes the shell steps of a CI system's file to NAME-1.sh, NAME-2.sh, ...: steps FILE NAME. What the system does
// before it hands a step to a shell is done here, too.
func cmdSteps(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: steps FILE NAME")
	}
	text := ts.ReadFile(args[0])
	var scripts []string
	switch filepath.Base(args[0]) {
	case "github-actions.yml":
		var doc struct {
			Jobs map[string]struct {
				Steps []struct {
					Uses, Run string
				}
			}
		}
		ts.Check(yaml.Unmarshal([]byte(text), &doc))
		for _, job := range doc.Jobs {
			for _, step := range job.Steps {
				if (step.Uses == "") == (step.Run == "") {
					ts.Fatalf("a step without, or with both of, uses and run: %+v", step)
				}
				if step.Run != "" {
					scripts = append(scripts, step.Run)
				}
			}
		}
	case "gitlab-ci.yml":
		var doc map[string]struct{ Script []string }
		ts.Check(yaml.Unmarshal([]byte(text), &doc))
		for _, job := range doc {
			scripts = append(scripts, strings.Join(job.Script, "\n"))
		}
	case "Jenkinsfile":
		// Groovy's ''' takes backslashes as escapes, and joins lines that end in one.
		unescape := strings.NewReplacer(`\\`, `\`, "\\\n", "")
		for _, m := range regexp.MustCompile(`(?s)'''(.*?)'''`).FindAllStringSubmatch(text, -1) {
			scripts = append(scripts, unescape.Replace(m[1]))
		}
	}
	if len(scripts) == 0 {
		ts.Fatalf("%s has no shell steps", args[0])
	}
	for i, script := range scripts {
		if strings.Contains(script, "${{") {
			ts.Fatalf("an expression in a script, where a value could end its quotes: %s", script)
		}
		ts.Check(os.WriteFile(ts.MkAbs(fmt.Sprintf("%s-%d.sh", args[1], i+1)), []byte(script), 0o600))
	}
}
