// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRatiosAreFormedWithinRounds has a machine that is ten times slower in one round, which changes no
// ratio, and a tool that failed, which is left out.
func TestRatiosAreFormedWithinRounds(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "imsprep")
	if err := os.WriteFile(program, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := config{dir: dir, imsprep: program, gib: 4, scale: 3, runs: 3}
	r, err := openResults(c)
	if err != nil {
		t.Fatal(err)
	}
	bc := &benchCase{section: sectionConvert, name: "raw", tools: []tool{{name: toolImsprep}, {name: toolQemu}, {name: toolNBD}, {name: toolLibrary}}}
	for round, slow := range []float64{1, 10, 1} {
		for name, wall := range map[string]float64{toolImsprep: 3, toolQemu: 4, toolNBD: 6} {
			if r.have(bc, round) {
				t.Errorf("round %d is complete before all of its tools were measured", round)
			}
			if err := r.add(result{Section: bc.section, Case: bc.name, Tool: name, Round: round, Wall: wall * slow, CPU: wall, RSS: 50 << 20}); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.close()
	if r, err = openResults(c); err != nil {
		t.Fatal(err)
	}
	defer r.close()
	b := &bench{config: c, results: r}
	if wall, cpu := b.ratios(bc, toolImsprep, toolQemu); wall != 0.75 || cpu != 0.75 {
		t.Errorf("ratios %v and %v, want 0.75", wall, cpu)
	}
	if best := b.best(bc); best != toolQemu {
		t.Errorf("the fastest peer is %q", best)
	}
	doc := b.report([]*benchCase{bc})
	if want := "| raw | **0.75** (qemu-img) | 0.75 | 50 MiB |\n"; !strings.Contains(doc.short, want) {
		t.Errorf("no %q in\n%s", want, doc.short)
	}
	if !strings.Contains(doc.full, "| raw | nbdcopy | 6.00 | 6.00 | 50 | 0 | 0.50 | 0.50 |\n") || strings.Contains(doc.full, "| raw | go-qcow2reader |") {
		t.Errorf("other rows than were measured:\n%s", doc.full)
	}
	// Another program's results are others.
	if err := os.WriteFile(program, []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := openResults(c)
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	if len(other.all) != 0 {
		t.Errorf("%d results of another program", len(other.all))
	}
}

func TestReplaceBlock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte("before\n"+blockBegin+"old\n"+blockEnd+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceBlock(path, "new\n"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if want := "before\n" + blockBegin + "new\n" + blockEnd + "after\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if err := os.WriteFile(path, []byte("no marks\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceBlock(path, "new\n"); err == nil {
		t.Error("a document without marks was taken")
	}
}

// TestDocumentsHaveBlocks fails when the marks have gone that a run of half an hour would miss at its end.
func TestDocumentsHaveBlocks(t *testing.T) {
	for _, doc := range []string{"README.md", filepath.Join("docs", "performance.md")} {
		text, err := os.ReadFile(filepath.Join("..", "..", doc))
		if err != nil {
			t.Fatal(err)
		}
		if _, rest, ok := strings.Cut(string(text), blockBegin); !ok || !strings.Contains(rest, blockEnd) {
			t.Errorf("%s has no lines %q and %q", doc, blockBegin, blockEnd)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		v    []float64
		want float64
	}{{nil, 0}, {[]float64{2}, 2}, {[]float64{4, 1}, 2.5}, {[]float64{9, 1, 3}, 3}} {
		if got := median(tc.v); got != tc.want {
			t.Errorf("%v: got %v, want %v", tc.v, got, tc.want)
		}
	}
}
