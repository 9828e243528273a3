// SPDX-License-Identifier: Apache-2.0

package vmdk_test

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

var le = binary.LittleEndian

// Kinds of extents that extent.write writes.
const (
	hosted   = "hosted"
	stream   = "stream"
	cowd     = "cowd"
	sesparse = "sesparse"
	flat     = "flat"
	zero     = "zero"
)

// extent describes an extent to be written.
type extent struct {
	kind    string
	sectors int64
	grain   int64            // sectors
	gtes    int64            // entries of a grain table
	data    map[int64][]byte // grains that are stored
	zeroed  map[int64]bool   // grains that are marked as zeros
	order   []int64          // of the stored grains in the file
	descr   string           // embedded descriptor
	version uint32

	redundant bool  // hosted: with a redundant directory
	lateTable bool  // hosted: the tables follow the grains
	shift     int64 // hosted: sectors between tables and grains
	cut       int64 // hosted: bytes that the file's end lacks
	offset    int64 // flat: sectors
	rounded   bool  // the header has the capacity in whole grains

	footer      bool // stream: the directory is named in a footer
	noDirectory bool // stream: neither directory nor tables
	noMarkers   bool // stream: the grains have no markers
	tail        int  // stream: bytes of zeros behind its end
	level       int
}

func (e *extent) grains() int64 { return (e.sectors + e.grain - 1) / e.grain }

// content returns the extent's bytes on top of the parent's.
func (e *extent) content(parent []byte) []byte {
	out := make([]byte, e.sectors*512)
	if e.kind == flat {
		copy(out, e.data[0])
		return out
	}
	if e.kind == zero {
		return out
	}
	copy(out, parent)
	size := e.grain * 512
	for i := range e.grains() {
		at := out[i*size : min((i+1)*size, int64(len(out)))]
		if d, ok := e.data[i]; ok {
			copy(at, d)
		} else if e.zeroed[i] {
			clear(at)
		}
	}
	return out
}

func (e *extent) write() []byte {
	switch e.kind {
	case hosted:
		return e.writeHosted()
	case stream:
		return e.writeStream()
	case cowd:
		return e.writeCOWD()
	case sesparse:
		return e.writeSESparse()
	case flat:
		f := make([]byte, (e.offset+e.sectors)*512)
		copy(f[e.offset*512:], e.data[0])
		return f
	}
	return nil
}

// image is a growing file.
type image []byte

func (f *image) align(n int) {
	for len(*f)%n != 0 {
		*f = append(*f, 0)
	}
}

// sector returns the number of the next sector.
func (f *image) sector() uint64 { f.align(512); return uint64(len(*f) / 512) }

func (f *image) grow(n int64) uint64 {
	at := f.sector()
	*f = append(*f, make([]byte, n)...)
	return at
}

func (e *extent) header(flags uint32, gd, rgd, overhead, compression uint64) []byte {
	h := make([]byte, 512)
	copy(h, "KDMV")
	le.PutUint32(h[4:], e.version)
	le.PutUint32(h[8:], flags)
	capacity := e.sectors
	if e.rounded {
		capacity = e.grains() * e.grain
	}
	le.PutUint64(h[12:], uint64(capacity))
	le.PutUint64(h[20:], uint64(e.grain))
	if e.descr != "" {
		le.PutUint64(h[28:], 1)
		le.PutUint64(h[36:], e.descrSectors())
	}
	le.PutUint32(h[44:], uint32(e.gtes))
	le.PutUint64(h[48:], rgd)
	le.PutUint64(h[56:], gd)
	le.PutUint64(h[64:], overhead)
	copy(h[73:], "\n \r\n")
	le.PutUint16(h[77:], uint16(compression))
	return h
}

func (e *extent) descrSectors() uint64 { return uint64(len(e.descr)/512 + 1) }

// begin returns a file with room for the header, and the descriptor.
func (e *extent) begin() image {
	f := make(image, 512)
	if e.descr != "" {
		f = append(f, e.descr...)
		f = append(f, 0)
		f.align(512)
	}
	return f
}

// tablesUsed returns the numbers of the grain tables that have entries.
func (e *extent) tablesUsed() map[int64]bool {
	used := make(map[int64]bool)
	for i := range e.data {
		used[i/e.gtes] = true
	}
	for i := range e.zeroed {
		used[i/e.gtes] = true
	}
	return used
}

func (e *extent) writeHosted() []byte {
	f := e.begin()
	used := e.tablesUsed()
	entries := (e.grains() + e.gtes - 1) / e.gtes
	type mapping struct {
		gd     uint64
		tables map[int64]uint64
	}
	alloc := func() mapping {
		m := mapping{gd: f.grow(entries * 4), tables: map[int64]uint64{}}
		for t := range entries {
			if used[t] {
				m.tables[t] = f.grow(e.gtes * 4)
				le.PutUint32(f[int64(m.gd)*512+t*4:], uint32(m.tables[t]))
			}
		}
		return m
	}
	var maps []mapping
	if e.redundant {
		maps = append(maps, alloc())
	}
	if !e.lateTable {
		maps = append(maps, alloc())
	}
	f.grow(e.shift * 512)
	if f.sector() == 1 {
		f.grow(512) // no grain can be there, since a table could not tell it from zeros
	}
	overhead := f.sector()
	places := make(map[int64]uint64)
	for _, i := range e.order {
		places[i] = f.grow(e.grain * 512)
		copy(f[places[i]*512:], e.data[i])
	}
	f = f[:int64(len(f))-e.cut]
	if e.lateTable {
		maps = append(maps, alloc())
	}
	flags := uint32(1)
	for _, m := range maps {
		for i, at := range places {
			le.PutUint32(f[m.tables[i/e.gtes]*512+uint64(i%e.gtes*4):], uint32(at))
		}
		for i := range e.zeroed {
			le.PutUint32(f[m.tables[i/e.gtes]*512+uint64(i%e.gtes*4):], 1)
			flags |= 4
		}
	}
	rgd := uint64(0)
	if e.redundant {
		rgd, flags = maps[0].gd, flags|2
	}
	copy(f, e.header(flags, maps[len(maps)-1].gd, rgd, overhead, 0))
	return f
}

func deflate(p []byte, level int) []byte {
	var b bytes.Buffer
	w, err := zlib.NewWriterLevel(&b, level)
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(p)
	_ = w.Close()
	return b.Bytes()
}

func (f *image) marker(value uint64, kind uint32) {
	at := f.grow(512) * 512
	le.PutUint64((*f)[at:], value)
	le.PutUint32((*f)[at+12:], kind)
}

func (e *extent) writeStream() []byte {
	f := e.begin()
	if e.descr == "" {
		f.grow(512) // as above
	}
	overhead := f.sector()
	places := make(map[int64]uint64)
	for _, i := range e.order {
		places[i] = f.sector()
		d := deflate(e.data[i], e.level)
		if !e.noMarkers {
			m := make([]byte, 12)
			le.PutUint64(m, uint64(i*e.grain))
			le.PutUint32(m[8:], uint32(len(d)))
			f = append(f, m...)
		}
		f = append(f, d...)
		f.align(512)
	}
	flags, gdAt := uint32(0x10001), uint64(1<<64-1)
	if !e.noMarkers {
		flags |= 0x20000
	}
	if len(e.zeroed) > 0 {
		flags |= 4
	}
	mark := func(value uint64, kind uint32) {
		if !e.noMarkers {
			f.marker(value, kind)
		}
	}
	if !e.noDirectory {
		entries := (e.grains() + e.gtes - 1) / e.gtes
		used := e.tablesUsed()
		gd := make([]byte, (entries*4+511)/512*512)
		for t := range entries {
			if !used[t] {
				continue
			}
			gt := make([]byte, (e.gtes*4+511)/512*512)
			for i := t * e.gtes; i < (t+1)*e.gtes; i++ {
				if at, ok := places[i]; ok {
					le.PutUint32(gt[i%e.gtes*4:], uint32(at))
				} else if e.zeroed[i] {
					le.PutUint32(gt[i%e.gtes*4:], 1)
				}
			}
			mark(uint64(len(gt)/512), 1)
			le.PutUint32(gd[t*4:], uint32(f.sector()))
			f = append(f, gt...)
		}
		mark(uint64(len(gd)/512), 2)
		gdAt = f.sector()
		f = append(f, gd...)
		if e.footer {
			f.marker(1, 3)
			f = append(f, e.header(flags, gdAt, 0, overhead, 1)...)
			gdAt = 1<<64 - 1
		}
	}
	if !e.noMarkers || e.footer {
		f.marker(0, 0)
	}
	f = append(f, make([]byte, e.tail)...)
	copy(f, e.header(flags, gdAt, 0, overhead, 1))
	return f
}

func (e *extent) writeCOWD() []byte {
	f := make(image, 2048)
	const gtes = 4096
	entries := (e.grains() + gtes - 1) / gtes
	gd := f.grow(entries * 4)
	copy(f, "COWD")
	for i, v := range []uint32{1, 3, uint32(e.sectors), uint32(e.grain), uint32(gd), uint32(entries)} {
		le.PutUint32(f[4+i*4:], v)
	}
	for _, i := range e.order {
		slot := gd*512 + uint64(i/gtes*4)
		if le.Uint32(f[slot:]) == 0 {
			at := f.grow(gtes * 4)
			le.PutUint32(f[slot:], uint32(at))
		}
		at := f.grow(e.grain * 512)
		copy(f[at*512:], e.data[i])
		le.PutUint32(f[uint64(le.Uint32(f[slot:]))*512+uint64(i%gtes*4):], uint32(at))
	}
	return f
}

func (e *extent) writeSESparse() []byte {
	f := make(image, 512)
	volatile := f.grow(512)
	le.PutUint64(f[volatile*512:], 0xCAFECAFE)
	const gtes = 4096
	entries := (e.grains() + gtes - 1) / gtes
	gd := f.grow((entries*8 + 511) / 512 * 512)
	used := map[int64]int{}
	e.gtes = gtes
	tables := f.sector()
	for t := range entries { // in reverse, and the first one is never used
		if t = entries - 1 - t; e.tablesUsed()[t] {
			used[t] = len(used) + 1
			le.PutUint64(f[gd*512+uint64(t)*8:], 0x10000000<<32|uint64(used[t]))
		}
	}
	f.grow(int64(len(used)+1) * gtes * 8)
	grains := f.sector()
	slot := func(i int64) []byte {
		return f[int64(tables)*512+int64(used[i/gtes])*gtes*8+i%gtes*8:]
	}
	for k, i := range e.order {
		n := uint64(k + 1) // the first one is never used
		le.PutUint64(slot(i), 3<<60|n>>12|n&0xFFF<<48)
	}
	for i := range e.zeroed {
		le.PutUint64(slot(i), uint64(1+i%2)<<60)
	}
	f.grow(int64(len(e.order)+1) * e.grain * 512)
	for k, i := range e.order {
		copy(f[int64(grains)*512+int64(k+1)*e.grain*512:], e.data[i])
	}
	for i, v := range map[int]uint64{0: 0xCAFEBABE, 1: 0x200000001, 2: uint64(e.sectors), 3: 8, 4: 64, 10: volatile, 11: 1,
		16: gd, 17: uint64((entries*8 + 511) / 512), 18: tables, 19: grains - tables, 24: grains,
		25: uint64(len(f))/512 - grains} {
		le.PutUint64(f[i*8:], v)
	}
	return f
}

// folder is files by name, to be given as extents.
type folder map[string][]byte

func (d folder) open(name string) (io.ReaderAt, int64, error) {
	b, ok := d[name]
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return bytes.NewReader(b), int64(len(b)), nil
}

const descriptorHead = "# Disk DescriptorFile\nversion=1\nCID=0123abcd\nparentCID=ffffffff\ncreateType=\"%s\"\n"

// writeFiles writes a disk of several extents: its descriptor and their files.
func writeFiles(createType string, extents []*extent) (string, folder) {
	var b strings.Builder
	fmt.Fprintf(&b, descriptorHead, createType)
	d := folder{}
	for i, e := range extents {
		name := fmt.Sprintf("a disk-%03d.vmdk", i+1)
		kind := map[string]string{hosted: "SPARSE", stream: "SPARSE", cowd: "VMFSSPARSE", sesparse: "SESPARSE",
			flat: "FLAT", zero: "ZERO"}[e.kind]
		access := []string{"RW", "RDONLY"}[i%2]
		switch e.kind {
		case zero:
			fmt.Fprintf(&b, "%s %d ZERO\n", access, e.sectors)
			continue
		case flat:
			fmt.Fprintf(&b, "%s %d FLAT %q %d\n", access, e.sectors, name, e.offset)
		default:
			fmt.Fprintf(&b, "%s %d %s %q\n", access, e.sectors, kind, name)
		}
		d[name] = e.write()
	}
	return b.String(), d
}
