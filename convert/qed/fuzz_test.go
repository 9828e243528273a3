// SPDX-License-Identifier: Apache-2.0

package qed_test

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/qed"
)

// FuzzOpen checks that no file makes the reader panic, hang or contradict itself.
func FuzzOpen(f *testing.F) {
	for _, d := range []*disk{
		small(),
		{size: 8 << 10, clusterSize: 4 << 10, tableSize: 2, headerSize: 2, order: []int64{1, 0}, tablesLast: true,
			data: map[int64][]byte{0: {1}}, zeros: map[int64]bool{1: true}, features: 2},
		{size: 8 << 10, clusterSize: 4 << 10, tableSize: 1, headerSize: 1, order: []int64{1},
			data: map[int64][]byte{1: {1}}, backing: "parent", features: 4},
	} {
		f.Add(d.write(), uint16(0), uint64(0), uint16(0), uint64(0))
	}
	f.Add(small().write(), uint16(smallL1/8+1), uint64(smallL2), uint16(smallL2/8), uint64(smallData+4096))
	parent := memory(bytes.Repeat([]byte{1, 0}, 3<<10))
	clear(parent[1024:2048])
	f.Fuzz(func(t *testing.T, b []byte, at uint16, with uint64, at2 uint16, with2 uint64) {
		// Besides any bytes, two numbers are changed: entries of tables that make sense are rare
		// otherwise.
		b = bytes.Clone(b)
		for pos, v := range map[int]uint64{int(at) * 8: with, int(at2) * 8: with2} {
			if pos > 0 && pos+8 <= len(b) {
				le.PutUint64(b[pos:], v)
			}
		}
		m, err := qed.Preflight(context.Background(), bytes.NewReader(b), int64(len(b)), qed.Options{AllowParent: true})
		if err != nil {
			return
		}
		if m.MappedBytes > int64(len(b)) || m.TableBytes() > 2<<20 {
			t.Fatalf("%d bytes mapped and %d of tables in a file of %d", m.MappedBytes, m.TableBytes(), len(b))
		}
		var p image.Image
		if m.BackingFile != "" {
			p = parent
		}
		img, err := m.Open(p)
		if err != nil {
			t.Fatal(err)
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
