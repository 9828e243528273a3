// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocumentsAreDocumented holds the keys of the documents that info and map print against the
// manual.
func TestDocumentsAreDocumented(t *testing.T) {
	manual, err := os.ReadFile(filepath.Join("..", "..", "docs", "output.md"))
	if err != nil {
		t.Fatal(err)
	}
	for heading, document := range map[string]any{"## `info`": infoDocument{}, "## `map`": mapExtent{}} {
		_, section, ok := strings.Cut(string(manual), "\n"+heading+"\n")
		if !ok {
			t.Fatalf("the manual has no section %q", heading)
		}
		section, _, _ = strings.Cut(section, "\n## ")
		var want []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(document)) {
			if key, _, _ := strings.Cut(f.Tag.Get("json"), ","); key != "" {
				want = append(want, key)
			}
		}
		var got []string
		for _, line := range strings.Split(section, "\n") {
			if heading == "## `info`" {
				// The first column of the table; the others explain.
				cells := strings.Split(line, "|")
				if len(cells) < 3 {
					continue
				}
				line = cells[1]
			}
			for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(line, -1) {
				if !slices.Contains(got, m[1]) {
					got = append(got, m[1])
				}
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: the manual has\n%q, the document\n%q", heading, got, want)
		}
	}
}
