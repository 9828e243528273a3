// SPDX-License-Identifier: Apache-2.0

package vdi_test

import (
	"bytes"
	"io"
	"testing"
)

// FuzzOpen checks that no file makes the reader panic, hang or contradict itself.
func FuzzOpen(f *testing.F) {
	for _, d := range []*disk{
		small(),
		{size: 8<<10 + 700, blockSize: 4 << 10, blocks: map[int64][]byte{1: {1}}, order: []int64{1},
			discarded: map[int64]bool{0: true}, spare: 2, spareData: true},
		{size: 8 << 10, blockSize: 4 << 10, static: true, blocks: map[int64][]byte{0: {1}, 1: {2}},
			order: []int64{1, 0}, mapOffset: 1024, gap: 512, missing: 100},
	} {
		f.Add(d.write())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		img, m, err := open(b)
		if err != nil {
			return
		}
		if m.MappedBytes > int64(len(b))+m.BlockSize || m.TableBytes() > int64(len(b)) {
			t.Fatalf("%d bytes mapped and %d of tables in a file of %d", m.MappedBytes, m.TableBytes(), len(b))
		}
		buf := make([]byte, 64<<10)
		for off, left := int64(0), 64; off < img.Size() && left > 0; left-- {
			e, err := img.Extent(off, img.Size()-off)
			if err != nil || e.Start != off || e.Length <= 0 || e.Length > img.Size()-off {
				t.Fatalf("extent at %d: %+v, %v", off, e, err)
			}
			p := buf[:min(int64(len(buf)), e.Length)]
			if n, err := img.ReadAt(p, off); n != len(p) || err != nil && err != io.EOF {
				t.Fatalf("read at %d: %d, %v", off, n, err)
			}
			if e.Zero && len(bytes.Trim(p, "\x00")) > 0 {
				t.Fatalf("%+v is not zero", e)
			}
			off += e.Length
		}
	})
}
