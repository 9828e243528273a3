// SPDX-License-Identifier: Apache-2.0

//go:build man

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// buildCommands are the commands that only the making of packages needs. The tag keeps what they are made of
// out of the program.
func (a *app) buildCommands() []*cobra.Command {
	return []*cobra.Command{{
		Use:    "man DIR",
		Short:  "Write the manual pages to a folder",
		Hidden: true,
		Args:   a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.InitDefaultCompletionCmd()
			forMan(root)
			// The date is that of SOURCE_DATE_EPOCH, if it is set.
			if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "imsprep " + version, Manual: "imsprep"}, args[0]); err != nil {
				return err
			}
			return finishPages(args[0])
		},
	}}
}

// forMan turns the texts of a command, and of those below it, into the Markdown that the pages are made of.
func forMan(cmd *cobra.Command) {
	cmd.DisableAutoGenTag = true
	cmd.Long = markdown(cmd.Long)
	for _, below := range cmd.Commands() {
		forMan(below)
	}
}

var escapeMarkdown = strings.NewReplacer(`\`, `\\`, "*", `\*`, "_", `\_`, "<", `\<`, "`", "\\`", "[", `\[`)

// markdown keeps indented lines as they are, and escapes the others.
func markdown(text string) string {
	var b strings.Builder
	block := false
	for line := range strings.Lines(text) {
		indented := strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t")
		if indented != block {
			b.WriteString("\n")
			block = indented
		}
		if indented {
			b.WriteString("    " + strings.TrimPrefix(line, "  "))
		} else {
			b.WriteString(escapeMarkdown.Replace(line))
		}
	}
	return b.String()
}

// What the pages are to have instead of what the library makes: options as tagged paragraphs, of which those
// that take a value say so.
var (
	optionLine  = regexp.MustCompile(`(?m)^(?:\.PP\n)?(\\fB-.*)\n\t(.*)$`)
	switchValue = regexp.MustCompile(`\[=(?:true|false)\]$`)
	emptyValue  = regexp.MustCompile(`=(?:""|\[\]|0)?$`)
)

// aboutAll is at the end of the first page.
const aboutAll = `
.SH EXIT STATUS
0 done; 1 an error not named here; 2 usage; 3 the disk is refused; 4 authentication or permission; 5 transient, the same
command again goes on; 6 the import job failed; 7 still running when the time limit came; 8 some images of a batch failed;
130 interrupted, the same command again goes on.
.SH ENVIRONMENT
HW_ACCESS_KEY, HW_SECRET_KEY and HW_SECURITY_TOKEN are the keys, HW_REGION_NAME is the region, IMSPREP_BUCKET the bucket. There are
many more, and files: see docs/environment.md of the program.
`

func finishPages(dir string) error {
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil {
		return err
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		out := optionLine.ReplaceAllStringFunc(string(text), func(s string) string {
			m := optionLine.FindStringSubmatch(s)
			name := m[1]
			if switchValue.MatchString(name) {
				name = switchValue.ReplaceAllString(name, "")
			} else {
				name = emptyValue.ReplaceAllString(name, `=\fIVALUE\fP`)
			}
			return ".TP\n" + name + "\n" + m[2]
		})
		if filepath.Base(page) == "imsprep.1" {
			out = strings.Replace(out, "\n.SH EXAMPLE\n", aboutAll+".SH EXAMPLE\n", 1)
		}
		if err := os.WriteFile(page, []byte(out), 0o644); err != nil {
			return err
		}
	}
	return nil
}
