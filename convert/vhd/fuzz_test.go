// SPDX-License-Identifier: Apache-2.0

package vhd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/vhd"
)

// fuzzBases are small images of every variant, for the fuzz target to spoil.
func fuzzBases() []*file {
	small := map[int64]blockData{0: {data: []byte{1}}, 2: {data: []byte{2}, sectors: []bool{
		false, true, true, false, false, false, true, true}}}
	var files []*file
	for _, d := range []*disk{
		{diskType: 2, size: 1024, raw: bytes.Repeat([]byte{1}, 1024)},
		{diskType: 2, size: 1024, raw: make([]byte, 1024), old: true},
		{diskType: 3, size: 12 << 10, blockSize: 4 << 10, blocks: small},
		{diskType: 3, size: 10 << 10, blockSize: 4 << 10, blocks: small, creator: "vpc ", chs: [3]int{2, 2, 4}},
		{diskType: 3, size: 10 << 10, blockSize: 4 << 10, blocks: small, noCopy: true, gap: 512},
		{diskType: 4, size: 12 << 10, blockSize: 4 << 10, blocks: small, parentName: `C:\a.vhd`,
			locators: map[string][]byte{"W2ru": []byte("a\x00\x00\x00")}},
	} {
		files = append(files, d.write())
	}
	return files
}

// spoil applies edits of twelve bytes: what to do, where, and a value. It makes the checksums right
// again unless asked not to.
func (f *file) spoil(edits []byte) {
	resum := true
	for ; len(edits) >= 12 && len(f.b) >= 1024; edits = edits[12:] {
		at := int(binary.LittleEndian.Uint16(edits[2:]))
		v := be.Uint64(edits[4:])
		switch edits[1] % 4 { // places that matter
		case 0:
			at %= len(f.b) - 8
		case 1:
			at = len(f.b) - 512 + at%88
		case 2:
			at = int(f.header) + at%88
		case 3:
			at = int(f.table) + at%16
		}
		at = min(at, len(f.b)-8)
		switch edits[0] % 8 {
		case 0:
			f.b[at] = byte(v)
		case 1:
			be.PutUint16(f.b[at:], uint16(v))
		case 2:
			be.PutUint32(f.b[at:], uint32(v))
		case 3:
			be.PutUint64(f.b[at:], v)
		case 4:
			be.PutUint32(f.b[at&^3:], uint32(v%64)) // an entry of the block allocation table
		case 5: // the same in both footers
			f.both(func(foot []byte) { be.PutUint32(foot[at%22*4:], uint32(v)) })
		case 6:
			f.b = f.b[:at]
		case 7:
			resum = v%8 != 0
		}
	}
	if resum && len(f.b) >= 1024 && len(f.b)-int(f.header) >= 1024 {
		f.resum()
	}
}

// FuzzOpen checks that no file makes the reader panic, hang or contradict itself. The input is
// either a file or a list of edits of one.
func FuzzOpen(f *testing.F) {
	bases := fuzzBases()
	for i, b := range bases {
		f.Add(byte(i), []byte{})
		f.Add(byte(i), append([]byte{4, 3, 8, 0}, make([]byte, 8)...))
		f.Add(byte(i), append([]byte{6, 0, 8, 0}, make([]byte, 8)...))
		f.Add(byte(255), b.b)
	}
	f.Fuzz(func(t *testing.T, base byte, input []byte) {
		b := input
		if base != 255 {
			spoilt := bases[int(base)%len(bases)].clone()
			spoilt.spoil(input[:min(len(input), 12*64)])
			b = spoilt.b
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
