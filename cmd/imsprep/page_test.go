// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestAPIPageCommands: every command and flag that the page about the API names exists.
func TestAPIPageCommands(t *testing.T) {
	page, err := os.ReadFile("../../docs/ims-api.md")
	if err != nil {
		t.Fatal(err)
	}
	root := (&app{}).rootCommand()
	quoted := regexp.MustCompile("`([^`]+)`")
	named := 0
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| `") || len(cells) != 5 {
			continue
		}
		if strings.TrimSpace(cells[2]) == "" {
			t.Errorf("no command: %s", line)
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[2], -1) {
			words := strings.Fields(strings.NewReplacer("…", "image", "[", "", "]", "").Replace(m[1]))
			if strings.HasPrefix(words[0], "--") {
				continue
			}
			named++
			cmd, rest, err := root.Find(words)
			if err != nil || len(cmd.Commands()) > 0 {
				t.Errorf("`%s` isn't a command: %v", m[1], err)
				continue
			}
			for _, w := range rest {
				if name, ok := strings.CutPrefix(w, "--"); ok && cmd.Flags().Lookup(name) == nil && cmd.InheritedFlags().Lookup(name) == nil {
					t.Errorf("`%s`: there is no %s", m[1], w)
				}
			}
		}
	}
	if named < 50 {
		t.Errorf("%d commands are named", named)
	}
}
