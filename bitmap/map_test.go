// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"errors"
	"math"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestNewMapBounds(t *testing.T) {
	for _, tc := range []struct {
		name        string
		virtualSize int64
		blockSize   int64
		blocks      int64 // 0: refused
	}{
		{"one byte", 1, 512, 1},
		{"one block", 2 << 20, 2 << 20, 1},
		{"one byte more", 2<<20 + 1, 2 << 20, 2},
		{"most blocks", MaxBlocks * 512, 512, MaxBlocks},
		{"huge disk and block", math.MaxInt64, 1 << 62, 2},
		{"empty", 0, 512, 0},
		{"negative", -1, 512, 0},
		{"block not a power of two", 4096, 3 << 20, 0},
		{"block too small", 4096, 256, 0},
		{"block zero", 4096, 0, 0},
		{"block negative", 4096, math.MinInt64, 0},
		{"too many blocks", MaxBlocks*512 + 1, 512, 0},
		{"largest disk", math.MaxInt64, 512, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := NewMap(tc.virtualSize, tc.blockSize)
			if tc.blocks == 0 {
				var size *SizeError
				if !errors.As(err, &size) {
					t.Fatalf("got %v, %v, want a SizeError", m, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if m.Blocks() != tc.blocks || m.VirtualSize() != tc.virtualSize || m.BlockSize() != tc.blockSize {
				t.Errorf("got %d blocks of %d for %d bytes", m.Blocks(), m.BlockSize(), m.VirtualSize())
			}
			if n := m.Count(); n != 0 {
				t.Errorf("a new map has %d data blocks", n)
			}
		})
	}
}

func TestMarkRange(t *testing.T) {
	const block = 512
	for _, tc := range []struct {
		name   string
		off, n int64
		want   []int64
	}{
		{"nothing", 0, 0, nil},
		{"negative length", 600, -1, nil},
		{"first byte", 0, 1, []int64{0}},
		{"last byte of a block", 511, 1, []int64{0}},
		{"two bytes across", 511, 2, []int64{0, 1}},
		{"whole block", 512, 512, []int64{1}},
		{"whole block and a byte", 512, 513, []int64{1, 2}},
		{"word boundary", 63*block + 1, block, []int64{63, 64}},
		{"last, partial block", 130*block + 9, 1, []int64{130}},
		{"past the end", 130*block + 10, 1, nil},
		{"across the end", 129 * block, math.MaxInt64, []int64{129, 130}},
		{"far away", math.MaxInt64, math.MaxInt64, nil},
		{"before the start", -100, 100, nil},
		{"across the start", -100, 101, []int64{0}},
		{"far before the start", math.MinInt64, math.MaxInt64, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := NewMap(130*block+10, block)
			if err != nil {
				t.Fatal(err)
			}
			m.MarkRange(tc.off, tc.n)
			var got []int64
			for b := int64(-2); b < m.Blocks()+200; b++ {
				if m.Data(b) {
					got = append(got, b)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got blocks %v, want %v", got, tc.want)
			}
			if m.Count() != int64(len(tc.want)) {
				t.Errorf("count %d, want %d", m.Count(), len(tc.want))
			}
		})
	}
}

// TestMapAgainstModel holds the map against a plain set of blocks, which knows
// nothing of words and masks.
func TestMapAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := genMap(512).Draw(t, "map")
		model := make([]bool, m.Blocks())
		for b := range model {
			model[b] = m.Data(int64(b))
		}
		off := rapid.Int64Range(-2000, m.VirtualSize()+2000).Draw(t, "off")
		n := rapid.Int64Range(-10, m.VirtualSize()+2000).Draw(t, "n")
		m.MarkRange(off, n)
		for b := range model {
			start, end := int64(b)*512, min(int64(b+1)*512, m.VirtualSize())
			if n > 0 && off < end && off+n > start {
				model[b] = true
			}
		}

		var count, next int64
		var last *Run
		for r := range m.Runs() {
			if r.Start != next || r.Length < 1 || (last != nil && last.Data == r.Data) {
				t.Fatalf("run %+v after %+v", r, last)
			}
			for b := r.Start; b < r.Start+r.Length; b++ {
				if model[b] != r.Data || m.Data(b) != r.Data {
					t.Fatalf("block %d: model %v, run %v, map %v", b, model[b], r.Data, m.Data(b))
				}
			}
			if r.Data {
				count += r.Length
			}
			next, last = r.Start+r.Length, &r
		}
		if next != m.Blocks() {
			t.Fatalf("runs end at %d of %d", next, m.Blocks())
		}
		if m.Count() != count {
			t.Fatalf("Count is %d, the runs hold %d", m.Count(), count)
		}
	})
}

func TestRunsStopsWhenAsked(t *testing.T) {
	m, err := NewMap(1<<20, 512)
	if err != nil {
		t.Fatal(err)
	}
	m.MarkRange(512, 512)
	n := 0
	for range m.Runs() {
		n++
		break
	}
	if n != 1 {
		t.Errorf("%d runs after break", n)
	}
}

// TestMarkRangeConcurrently has neighbouring blocks, which share a word, marked
// from several goroutines at once: a lost update would lose a block.
func TestMarkRangeConcurrently(t *testing.T) {
	const workers, blocks, rounds = 8, 64 * 8, 400
	for range rounds {
		m, err := NewMap(blocks*512, 512)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		start := make(chan struct{})
		for w := range workers {
			wg.Go(func() {
				<-start
				for b := w; b < blocks; b += workers {
					m.MarkRange(int64(b)*512, 1)
				}
			})
		}
		close(start)
		wg.Wait()
		if m.Count() != blocks {
			t.Fatalf("%d of %d blocks are marked", m.Count(), blocks)
		}
	}
}

func TestDiff(t *testing.T) {
	a, b := mapOf(t, 300, 1, 2, 70, 200), mapOf(t, 300, 1, 70, 71, 299)
	got, err := Diff(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Difference{First: 2, OnlyA: 2, OnlyB: 2, Both: 2}); got != want || got.Equal() {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, err := Diff(a, a); err != nil || !got.Equal() || got.Both != 4 {
		t.Errorf("a map against itself: %+v, %v", got, err)
	}
	for _, other := range [][2]int64{{300*512 - 1, 512}, {300 * 512, 1024}} {
		c, err := NewMap(other[0], other[1])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Diff(a, c); err == nil {
			t.Errorf("maps of %d and %d bytes were compared", a.VirtualSize(), c.VirtualSize())
		}
	}
}

// mapOf returns a map of n blocks of 512 bytes with the given ones marked.
func mapOf(t testing.TB, n int64, blocks ...int64) *Map {
	t.Helper()
	m, err := NewMap(n*512, 512)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		m.MarkRange(b*512, 512)
	}
	return m
}

// genMap draws maps of up to some hundred blocks with random runs of data.
func genMap(blockSize int64) *rapid.Generator[*Map] {
	return rapid.Custom(func(t *rapid.T) *Map {
		blocks := rapid.Int64Range(1, 700).Draw(t, "blocks")
		size := (blocks-1)*blockSize + rapid.Int64Range(1, blockSize).Draw(t, "last")
		m, err := NewMap(size, blockSize)
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(0, 8).Draw(t, "runs") {
			off := rapid.Int64Range(0, size-1).Draw(t, "off")
			m.MarkRange(off, rapid.Int64Range(1, size/4+1).Draw(t, "n"))
		}
		return m
	})
}
