// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// pairOf returns a disk with the file that l makes for it.
func pairOf(t rapid.TB, l Layout, name string, size int64, data []Extent) Pair {
	t.Helper()
	file, err := l.Encode(mapOfExtents(size, l.BlockSize, data))
	if err != nil {
		t.Fatal(err)
	}
	return Pair{Name: name, VirtualSize: size, Data: data, File: file}
}

func probePairs(t rapid.TB, l Layout) []Pair {
	t.Helper()
	var pairs []Pair
	for _, p := range Probes() {
		pairs = append(pairs, pairOf(t, l, p.Name, p.VirtualSize, p.Extents()))
	}
	return pairs
}

// checkReproduces fails if a layout that was found doesn't make a pair's file.
func checkReproduces(t rapid.TB, r Inference, pairs []Pair) {
	t.Helper()
	for _, l := range r.Layouts {
		for _, p := range pairs {
			if q := pairOf(t, l, p.Name, p.VirtualSize, p.Data); !bytes.Equal(q.File, p.File) {
				t.Fatalf("%+v makes another file for %s", l, p.Name)
			}
		}
	}
}

// TestInferFromProbes plants layouts far from the built-in ones. The files of
// all probes leave exactly one, which makes the same files as the planted one.
func TestInferFromProbes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := genLayout().Draw(t, "planted")
		l.BlockSize = 64 << 10 << rapid.IntRange(0, 14).Draw(t, "block of 64 KiB and up")
		pairs := probePairs(t, l)
		r, err := Infer(pairs, InferOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Layouts) != 1 || len(r.Separating) != 0 || r.Evidence != nil || r.Incomplete {
			t.Fatalf("found %d: %+v", len(r.Layouts), r.Layouts)
		}
		checkReproduces(t, r, pairs)
	})
}

// TestInferSmallBlocks does the same for blocks that the large probes would be
// slow with, on random disks.
func TestInferSmallBlocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := genLayout().Draw(t, "planted")
		l.BlockSize = 512 << rapid.IntRange(0, 6).Draw(t, "block")
		var pairs []Pair
		for range rapid.IntRange(1, 4).Draw(t, "pairs") {
			size := rapid.Int64Range(1, 400<<10).Draw(t, "size")
			var data []Extent
			for at := int64(0); ; {
				at += rapid.Int64Range(0, 100<<10).Draw(t, "gap")
				n := rapid.Int64Range(1, 60<<10).Draw(t, "length")
				if at+n > size {
					break
				}
				data = append(data, Extent{at, n})
				at += n
			}
			pairs = append(pairs, pairOf(t, l, "random", size, data))
		}
		s := newSearch(pairs, InferOptions{}.withDefaults())
		s.run()
		if !s.incomplete && !slices.ContainsFunc(s.found, func(f Layout) bool { return sameFiles(t, f, l) }) {
			t.Fatalf("%d layouts found, none of which is the planted one", len(s.found))
		}
		if len(s.found) == 0 {
			t.Fatal("nothing found")
		}
		var r Inference
		r.Layouts = s.found[:min(len(s.found), 50)]
		checkReproduces(t, r, pairs)
	})
}

// sameFiles tells whether two layouts make the same files for some disks of
// many lengths.
func sameFiles(t rapid.TB, a, b Layout) bool {
	if a.BlockSize != b.BlockSize {
		return false
	}
	for blocks := int64(1); blocks < 300; blocks += 7 {
		size := blocks * a.BlockSize
		data := []Extent{{size / 3, 1}}
		if !bytes.Equal(pairOf(t, a, "", size, data).File, pairOf(t, b, "", size, data).File) {
			return false
		}
	}
	return true
}

func TestInferBuiltIn(t *testing.T) {
	for _, l := range Layouts() {
		r, err := Infer(probePairs(t, l), InferOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Layouts) != 1 || r.Layouts[0].Name != l.Name {
			t.Errorf("%s: found %+v", l.Name, r.Layouts)
		}
	}
}

// TestInferSeparates has one pair, which many layouts explain: the built-in one
// is among them, and adding the best probe leaves fewer.
func TestInferSeparates(t *testing.T) {
	l, err := Lookup("compact")
	if err != nil {
		t.Fatal(err)
	}
	pairs := []Pair{pairOf(t, l, "first", 100<<20, []Extent{{0, 1}, {50 << 20, 512}})}
	r, err := Infer(pairs, InferOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Layouts) < 2 || len(r.Separating) == 0 || r.Layouts[0].Name != "compact" {
		t.Fatalf("found %+v", r)
	}
	checkReproduces(t, r, pairs)
	best := r.Separating[0].Probe
	pairs = append(pairs, pairOf(t, l, best.Name, best.VirtualSize, best.Extents()))
	again, err := Infer(pairs, InferOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(again.Layouts) == 0 || len(again.Layouts) >= len(r.Layouts) {
		t.Errorf("%d layouts before %s, %d after it", len(r.Layouts), best.Name, len(again.Layouts))
	}
}

// TestInferNothing has files with a checksum in front, which no layout has.
func TestInferNothing(t *testing.T) {
	l, err := Lookup(DefaultLayout)
	if err != nil {
		t.Fatal(err)
	}
	var data []Extent
	for i := range int64(500) {
		if i*i%7 < 3 {
			data = append(data, Extent{i << 21, 512})
		}
	}
	a := pairOf(t, l, "a", 1<<30, data)
	b := pairOf(t, l, "b", 1<<30, data[:100])
	a.File = append([]byte{1, 2, 3, 4}, a.File...)
	b.File = append([]byte{5, 6, 7, 8}, b.File...)
	r, err := Infer([]Pair{a, b}, InferOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Layouts) != 0 || len(r.Evidence) != 2 {
		t.Fatalf("found %+v", r)
	}
	e := r.Evidence[0]
	if e.Name != "a" || e.Length != 4100 || e.Data != int64(len(data))*512 || !bytes.HasPrefix(e.First, []byte{1, 2, 3, 4}) {
		t.Errorf("evidence %+v", e)
	}
	if c := r.Best; c == nil || c.Pair != "a" || c.BlockSize != 2<<20 || c.Offset != 4 || c.Coefficient < 0.999 ||
		c.BitOrder != LSBFirst || c.Agree != 512 || c.Blocks != 512 {
		t.Errorf("best %+v", c)
	}
}

// TestInferHostile has files that many candidates fit or nearly fit: the bounds
// must end the search.
func TestInferHostile(t *testing.T) {
	const mib = 1 << 20
	noise := make([]byte, 8*mib)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	for _, p := range []Pair{
		{Name: "zeros, small disk", VirtualSize: 512, File: make([]byte, 16*mib)},
		{Name: "zeros, fitting disk", VirtualSize: 4 << 30, File: make([]byte, mib)},
		{Name: "zeros, huge disk", VirtualSize: 1 << 62, File: make([]byte, 8*mib)},
		{Name: "ones", VirtualSize: 4 << 30, Data: []Extent{{0, 4 << 30}}, File: bytes.Repeat([]byte{0xFF}, mib)},
		{Name: "noise", VirtualSize: 64 << 30, Data: []Extent{{1 << 30, 1 << 30}}, File: noise},
		{Name: "empty file", VirtualSize: 64 << 30},
		{Name: "both empty"},
		{Name: "empty disk", File: make([]byte, 4096)},
	} {
		t.Run(p.Name, func(t *testing.T) {
			r, err := Infer([]Pair{p}, InferOptions{MaxWork: 1 << 28, MaxLayouts: 8})
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Layouts) > 8 {
				t.Errorf("%d layouts", len(r.Layouts))
			}
			checkReproduces(t, Inference{Layouts: r.Layouts[:min(1, len(r.Layouts))]}, []Pair{p})
			if (len(r.Layouts) == 0) != (r.Evidence != nil) {
				t.Errorf("%d layouts and evidence %v", len(r.Layouts), r.Evidence)
			}
		})
	}
}

func TestInferRefuses(t *testing.T) {
	for name, pairs := range map[string][]Pair{
		"nothing":       nil,
		"negative size": {{VirtualSize: -1}},
		"order":         {{VirtualSize: 4096, Data: []Extent{{1024, 512}, {0, 512}}}},
		"overlap":       {{VirtualSize: 4096, Data: []Extent{{0, 1024}, {512, 512}}}},
		"outside":       {{VirtualSize: 4096, Data: []Extent{{4096, 1}}}},
		"past the end":  {{VirtualSize: 4096, Data: []Extent{{512, 1 << 62}}}},
		"no length":     {{VirtualSize: 4096, Data: []Extent{{0, 0}}}},
		"long file":     {{VirtualSize: 4096, File: make([]byte, 11)}},
	} {
		t.Run(name, func(t *testing.T) {
			var bad *PairError
			if _, err := Infer(pairs, InferOptions{MaxFile: 10}); !errors.As(err, &bad) {
				t.Errorf("got %v, want a PairError", err)
			}
		})
	}
}
