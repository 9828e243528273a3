// SPDX-License-Identifier: Apache-2.0

package qcow1_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/qcow1"
)

// FuzzOpen checks that no file makes the reader panic, hang or contradict itself. Only compressed
// clusters may turn out to be damaged once an image is open.
func FuzzOpen(f *testing.F) {
	for _, d := range []*disk{
		small(),
		{size: 9000, clusterBits: 12, l2Bits: 6, order: []int64{2, 0, 1}, tablesLast: true, shift: 512,
			data: map[int64][]byte{0: {1}, 1: {2}, 2: {3}}, packed: map[int64]bool{1: true}, unfinished: true},
		{size: 2048, clusterBits: 9, l2Bits: 6, order: []int64{2, 1}, data: map[int64][]byte{1: {1}, 2: {2}},
			backing: "parent", missing: 100},
	} {
		f.Add(d.write(), uint16(0), uint64(0), uint16(0), uint64(0))
	}
	f.Add(small().write(), uint16(smallL1/8+1), uint64(smallL2), uint16(smallL2/8), packedEntry(smallPacked, 4))
	parent := memory(bytes.Repeat([]byte{1, 0}, 3<<10))
	clear(parent[1024:2048])
	f.Fuzz(func(t *testing.T, b []byte, at uint16, with uint64, at2 uint16, with2 uint64) {
		// Besides any bytes, two numbers are changed: entries of tables that make sense are rare
		// otherwise.
		b = bytes.Clone(b)
		for pos, v := range map[int]uint64{int(at) * 8: with, int(at2) * 8: with2} {
			if pos > 0 && pos+8 <= len(b) {
				be.PutUint64(b[pos:], v)
			}
		}
		m, err := qcow1.Preflight(context.Background(), bytes.NewReader(b), int64(len(b)), qcow1.Options{AllowParent: true})
		if err != nil {
			return
		}
		// DEFLATE makes at most 1032 bytes of one.
		if m.MappedBytes > 1032*(int64(len(b))+m.BlockSize)+m.CompressedClusters*m.BlockSize || m.TableBytes() > 2<<20 {
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
			n, err := img.ReadAt(p, off)
			var bad *qcow1.Error
			if damaged := e.Compressed && errors.As(err, &bad) && n < len(p); !damaged &&
				(n != len(p) || err != nil && err != io.EOF) {
				t.Fatalf("read at %d: %d, %v", off, n, err)
			}
			if e.Zero && len(bytes.Trim(p, "\x00")) > 0 {
				t.Fatalf("%+v is not zero", e)
			}
			off += e.Length
		}
	})
}
