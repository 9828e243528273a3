// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/convert/zvhd2"
)

// TestZVHD2Identity: RAW to ZVHD2 and back, by the source's own length, is the identity for sizes that
// are multiples of 512; other sizes gain zeros up to the sector.
func TestZVHD2Identity(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 9<<20).Draw(t, "size")
		if rapid.Bool().Draw(t, "whole sectors") {
			n = (n + 511) &^ 511
		}
		disk := make([]byte, n)
		noise := rand.NewChaCha8([32]byte{byte(rapid.IntRange(0, 255).Draw(t, "seed"))})
		for _, at := range rapid.SliceOfN(rapid.IntRange(0, n-1), 0, 5).Draw(t, "data") {
			noise.Read(disk[at:min(at+5000, n)])
		}
		src, dst := filepath.Join(dir, "a.raw"), filepath.Join(dir, "a.zvhd2")
		if err := os.WriteFile(src, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		in, err := convert.Open(t.Context(), src, convert.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		var done atomic.Int64
		stats, err := convert.WriteZVHD2(t.Context(), in, dst, convert.ZVHD2Options{
			Writer: zvhd2.WriterOptions{
				Level:   rapid.IntRange(0, 9).Draw(t, "level"),
				Workers: rapid.IntRange(0, 3).Draw(t, "workers"),
				Time:    time.Unix(1e9, 0),
			},
			Overwrite: true,
			Progress:  func(n int64) { done.Add(n) },
		})
		if err != nil {
			t.Fatal(err)
		}
		if done.Load() != int64(n) || stats.DataBytes+stats.ZeroBytes != int64(n) {
			t.Fatalf("%d bytes done, %+v, of %d", done.Load(), stats, n)
		}
		f, err := os.ReadFile(dst)
		if err != nil {
			t.Fatal(err)
		}
		meta, err := zvhd2.Preflight(t.Context(), bytes.NewReader(f), int64(len(f)), zvhd2.Options{OriginalSize: true})
		if err != nil {
			t.Fatal(err)
		}
		img, err := meta.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		want := append(disk, make([]byte, -n&511)...)
		got := make([]byte, img.Size())
		if _, err := img.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes came back otherwise than %d went in", len(got), n)
		}
	})
}
