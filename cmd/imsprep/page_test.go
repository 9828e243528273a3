// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestAPIPageCommands: every command and flag that the page about the API names exists, and is used in a
// session with the local cloud.
func TestAPIPageCommands(t *testing.T) {
	page, err := os.ReadFile("../../docs/ims-api.md")
	if err != nil {
		t.Fatal(err)
	}
	root := (&app{}).rootCommand()
	sessions := scriptLines(t)
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
			use := " " + strings.TrimPrefix(cmd.CommandPath(), "imsprep ") + " "
			if !slices.ContainsFunc(sessions, func(line string) bool {
				return strings.Contains(line, " imsprep"+use) && strings.Contains(line, " "+strings.TrimSpace(strings.Join(flagsOf(rest), " ")))
			}) {
				t.Errorf("`%s` is in no session", m[1])
			}
		}
	}
	if named < 50 {
		t.Errorf("%d commands are named", named)
	}
}

// flagsOf leaves the flags with their values.
func flagsOf(words []string) []string {
	for n, w := range words {
		if strings.HasPrefix(w, "--") {
			return words[n:]
		}
	}
	return nil
}

// scriptLines are the lines of all sessions.
func scriptLines(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", "script", "*.txtar"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	var lines []string
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			lines = append(lines, strings.TrimSpace(line)+" ")
		}
	}
	return lines
}
