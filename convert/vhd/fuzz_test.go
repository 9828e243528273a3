// SPDX-License-Identifier: Apache-2.0

package vhd_test

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/vhd"
)

// FuzzOpen checks that no file makes the reader panic, hang or contradict itself. The checksums of the
// input are made right, so that what they cover can be changed, unless keep is set.
func FuzzOpen(f *testing.F) {
	small := map[int64]blockData{0: {data: []byte{1}}, 2: {data: []byte{2}, sectors: []bool{
		false, true, true, false, false, false, true, true}}}
	for _, d := range []*disk{
		{diskType: 2, size: 1024, raw: bytes.Repeat([]byte{1}, 1024)},
		{diskType: 2, size: 1024, raw: make([]byte, 1024), old: true},
		{diskType: 3, size: 12 << 10, blockSize: 4 << 10, blocks: small},
		{diskType: 3, size: 10 << 10, blockSize: 4 << 10, blocks: small, creator: "vpc ", chs: [3]int{2, 2, 4}},
		{diskType: 3, size: 10 << 10, blockSize: 4 << 10, blocks: small, noCopy: true, gap: 512},
		{diskType: 4, size: 12 << 10, blockSize: 4 << 10, blocks: small, parentName: `C:\a.vhd`,
			locators: map[string][]byte{"W2ru": []byte("a\x00\x00\x00"), "MacX": []byte("file:///a%41")}},
	} {
		w := d.write()
		f.Add(w.b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, keep bool) {
		if !keep {
			b = bytes.Clone(b)
			w := &file{b: b}
			if len(b) >= 512 {
				if string(b[:8]) == "conectix" {
					if at := be.Uint64(b[16:]); at >= 512 && at < uint64(len(b)) && len(b)-int(at) >= 1024 {
						w.header = int64(at)
					}
				}
				w.resum()
			}
		}
		m, err := vhd.Preflight(context.Background(), bytes.NewReader(b), int64(len(b)), vhd.Options{AllowParent: true})
		if err != nil {
			return
		}
		var parent image.Image
		if m.Variant == vhd.VariantDifferencing {
			parent = memory(bytes.Repeat([]byte{1, 0}, int(min(m.VirtualSize, 8<<10)/2)))
		}
		img, err := m.Open(parent)
		if err != nil {
			return
		}
		if m.MappedBytes > int64(len(b)) {
			t.Fatalf("%d bytes mapped in a file of %d", m.MappedBytes, len(b))
		}
		buf := make([]byte, 64<<10)
		left := 64
		for off := int64(0); off < img.Size() && left > 0; left-- {
			e, err := img.Extent(off, img.Size()-off)
			if err != nil {
				t.Fatalf("extent at %d: %v", off, err)
			}
			if e.Start != off || e.Length <= 0 || e.Length > img.Size()-off {
				t.Fatalf("extent at %d: %+v", off, e)
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
