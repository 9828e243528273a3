// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestFaultsHaveTests looks for the tests that the page about faults names, and for the fault tests in it.
func TestFaultsHaveTests(t *testing.T) {
	page, err := os.ReadFile("../../docs/faults.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	for _, dir := range []string{".", "../../pkg/obs", "../../pkg/pipeline"} {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			source, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`).FindAllStringSubmatch(string(source), -1) {
				tests[m[1]] = true
			}
		}
	}
	named := map[string]bool{}
	rows := 0
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 6 || strings.HasPrefix(line, "|---") || cells[1] == " fault " {
			continue
		}
		rows++
		names := regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(cells[4], -1)
		if len(names) == 0 {
			t.Errorf("no test for: %s", cells[1])
		}
		for _, m := range names {
			named[m[1]] = true
			if !tests[m[1]] {
				t.Errorf("there is no test %s, for: %s", m[1], cells[1])
			}
		}
	}
	if rows < 18 {
		t.Errorf("only %d rows were found", rows)
	}
	for name := range tests {
		if strings.HasPrefix(name, "TestFault") && name != t.Name() && !named[name] {
			t.Errorf("%s isn't on the page", name)
		}
	}
}
