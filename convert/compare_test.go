// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"
	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert"
)

// TestCompare changes random disks in random places: the first difference is the first, every block with one
// is counted, and with DataOnly exactly what the first disk knows to be zeros is left out.
func TestCompare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk, zeros := drawDisk(t)
		other := slices.Clone(disk)
		for range rapid.IntRange(0, 3).Draw(t, "changes") {
			other[rapid.IntRange(0, len(disk)-1).Draw(t, "change at")] ^= 0xFF
		}
		// The other disk knows of no zeros, or of what is left of them.
		var known []image.Extent
		if rapid.Bool().Draw(t, "both know zeros") {
			for _, z := range zeros {
				if convert.IsZero(other[z.Start : z.Start+z.Length]) {
					known = append(known, z)
				}
			}
		}
		var progress atomic.Int64
		dataOnly := rapid.Bool().Draw(t, "data only")
		m := newMarks(convert.DigestBlock)
		b := convert.NewScanner(memory(t, other, known), nil).WithDigest()
		got, err := convert.Compare(context.Background(), convert.NewScanner(memory(t, disk, zeros), m), b, convert.CompareOptions{
			DataOnly: dataOnly, Workers: rapid.IntRange(0, 3).Draw(t, "workers"), Progress: func(n int64) { progress.Add(n) }})
		if err != nil {
			t.Fatal(err)
		}
		if progress.Load() != int64(len(disk)) || got.Compared+got.Left != int64(len(disk)) || (got.Left > 0 && !dataOnly) {
			t.Fatalf("%+v, progress %d, of %d", got, progress.Load(), len(disk))
		}
		first, blocks := -1, map[int]bool{}
		for i := range disk {
			if disk[i] != other[i] {
				if first < 0 {
					first = i
				}
				blocks[i/convert.DigestBlock] = true
			}
		}
		if got.Left > 0 {
			return // it may have missed some, which is what was asked for
		}
		if int(got.Blocks) != len(blocks) || (got.First == nil) != (first < 0) {
			t.Fatalf("%+v, want %d blocks, the first at %d", got, len(blocks), first)
		}
		if got.First != nil && (*got.First != convert.Difference{Offset: int64(first), Block: int64(first / convert.DigestBlock), A: disk[first], B: other[first]}) {
			t.Fatalf("%+v, want the first at %d", got.First, first)
		}
		if d, err := b.Digest(context.Background()); err != nil || d.String() != referenceDigest(other) {
			t.Fatalf("%v, %v", d, err)
		}
	})
}

// TestCompareTellsWhoFails says which side can't be read.
func TestCompareTellsWhoFails(t *testing.T) {
	for _, second := range []bool{false, true} {
		a, b := ones(9<<20), ones(9<<20)
		if second {
			b.failAt = 5 << 20
		} else {
			a.failAt = 5 << 20
		}
		_, err := convert.Compare(t.Context(), convert.NewScanner(a, nil), convert.NewScanner(b, nil), convert.CompareOptions{})
		var side *convert.CompareError
		if !errors.As(err, &side) || side.B != second || !errors.Is(err, errRead) {
			t.Errorf("second %t: %v", second, err)
		}
	}
	if _, err := convert.Compare(t.Context(), convert.NewScanner(ones(1), nil), convert.NewScanner(ones(2), nil), convert.CompareOptions{}); err == nil {
		t.Error("disks of different sizes were compared")
	}
}

// TestSHA256 hashes random disks.
func TestSHA256(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk, zeros := drawDisk(t)
		var progress int64
		got, err := convert.SHA256(context.Background(), memory(t, disk, zeros), func(n int64) { progress += n })
		if err != nil || got != sha256.Sum256(disk) || progress != int64(len(disk)) {
			t.Fatalf("%x, %v, progress %d", got, err, progress)
		}
	})
}
