// SPDX-License-Identifier: Apache-2.0

package sdktest

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestPage: the page about the API names the SDK's operations that are run here, all of them and no
// others, and how many they are.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../../docs/ims-api.md")
	if err != nil {
		t.Fatal(err)
	}
	run := map[string]bool{}
	for _, o := range table {
		run[o.name] = true
	}
	if want := fmt.Sprintf("All %d operations", len(run)); !strings.Contains(string(page), want) {
		t.Errorf("the page doesn't say %q", want)
	}
	name := regexp.MustCompile("`([A-Z]\\w+)`")
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| `") || len(cells) != 5 {
			continue
		}
		for _, n := range name.FindAllStringSubmatch(cells[4], -1) {
			if !run[n[1]] {
				t.Errorf("%s isn't run, or is named twice", n[1])
			}
			delete(run, n[1])
		}
	}
	for n := range run {
		t.Errorf("the page doesn't name %s", n)
	}
}
