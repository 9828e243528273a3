// SPDX-License-Identifier: Apache-2.0

package vhdx_test

import (
	"bytes"
	"context"
	"io"
	"slices"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/vhdx"
)

// fuzzBases are small images of every variant, for the fuzz target to spoil.
func fuzzBases() []*store {
	d := &disk{size: 4 * mib, block: mib, sector: 512, states: map[int64]uint64{0: 6, 2: 6, 3: 2},
		order: []int64{2, 0, 3}, hot: map[int64]bool{1: true}}
	dynamic := d.write()
	child := *d
	child.child, child.sector, child.present = true, 4096, func(s int64) bool { return s%3 == 0 }
	child.states = map[int64]uint64{0: 7, 2: 6, 3: 3}
	child.locator = [][2]string{{"parent_linkage", "{" + idParent + "}"}, {"relative_path", "a"}}
	dirty := dynamic.clone()
	at := dirty.putLog(mib-8192, logEntry(idLog, 6, mib-8192, dirty.size, dirty.size, []update{
		{at: batAt, data: dirty.get(batAt, 4096)}, {at: 5 * mib, zeros: mib}}))
	dirty.putLog(at, logEntry(idLog, 7, mib-8192, dirty.size, dirty.size+mib, []update{
		{at: 192 * kib, data: dirty.get(192*kib, 4096)}, {at: dirty.size, data: make([]byte, 4096)}}))
	dirty.useLog()
	return []*store{dynamic, child.write(), dirty}
}

// spoil applies edits of twelve bytes: what to do, where, and a value. Places are in the parts of
// the file that are not empty. It makes the checksums right again unless asked not to.
func spoil(s *store, edits []byte) {
	var pages []int64
	for i := range s.pages {
		pages = append(pages, i)
	}
	slices.Sort(pages)
	reseal := true
	for ; len(edits) >= 12; edits = edits[12:] {
		where := int64(edits[1]) % int64(len(pages))
		at := pages[where]*4096 + int64(le.Uint16(edits[2:]))%4096
		v := le.Uint64(edits[4:])
		switch edits[0] % 8 {
		case 0:
			s.put(at, byte(v))
		case 1:
			s.put16(at, uint16(v))
		case 2:
			s.put32(at, uint32(v))
		case 3:
			s.put64(at, v)
		case 4:
			s.put64(at&^7, v%64<<20|v>>56) // an entry of the block allocation table
		case 5:
			s.put64(at&^7, uint64(pages[v%uint64(len(pages))])*4096)
		case 6:
			s.truncate(min(at, s.size))
		case 7:
			reseal = v%8 != 0
		}
	}
	if !reseal || s.size < 4*mib {
		return
	}
	s.sealAll()
	for p := int64(0); p < logBytes; p += 4096 {
		e := s.get(logAt+p, 4096)
		n := int64(le.Uint32(e[8:]))
		if string(e[:4]) != "loge" || n < 4096 || n > logBytes || n%4096 != 0 {
			continue
		}
		ring := s.get(logAt, logBytes)
		entry := slices.Concat(ring[p:], ring[:p])[:n]
		sealEntry(entry)
		s.put(logAt+p+4, entry[4:8]...)
	}
}

// FuzzOpen checks that no spoilt image makes the reader panic, hang or contradict itself.
func FuzzOpen(f *testing.F) {
	bases := fuzzBases()
	for i := range bases {
		f.Add(byte(i), []byte{})
		f.Add(byte(i), append([]byte{4, 3, 8, 0}, make([]byte, 8)...))
		f.Add(byte(i), append([]byte{6, 5, 8, 0}, make([]byte, 8)...))
	}
	f.Fuzz(func(t *testing.T, base byte, edits []byte) {
		s := bases[int(base)%len(bases)].clone()
		spoil(s, edits[:min(len(edits), 12*64)])
		m, err := vhdx.Preflight(context.Background(), s, s.size, vhdx.Options{AllowParent: true})
		if err != nil {
			return
		}
		var parent image.Image
		if m.Variant == vhdx.VariantDifferencing {
			parent = parentDisk{m.VirtualSize, map[int64]bool{0: true, 1000: true}}
		}
		img, err := m.Open(parent)
		if err != nil {
			return
		}
		buf := make([]byte, 64<<10)
		left := 64
		for off := int64(0); off < img.Size() && left > 0; left-- {
			e, err := img.Extent(off, min(img.Size()-off, 64*mib))
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
