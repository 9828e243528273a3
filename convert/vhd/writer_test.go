// SPDX-License-Identifier: Apache-2.0

package vhd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"unicode/utf16"

	"github.com/lima-vm/go-qcow2reader/image"
)

var be = binary.BigEndian

// blockData is what a block of a written disk holds.
type blockData struct {
	data    []byte // shorter than a block: zeros follow
	sectors []bool // which sectors are in the file; nil = all
}

// disk is a VHD to be written. It is independent of the reader: the sums are those of the
// specification's text.
type disk struct {
	diskType  uint32
	size      int64 // Current Size
	chs       [3]int
	creator   string
	id        byte // fills the unique id
	parentID  byte
	blockSize int64
	blocks    map[int64]blockData
	order     []int64 // in which blocks are stored, default ascending
	gap       int64   // bytes between blocks
	raw       []byte  // of a fixed disk
	spare     int64   // table entries more than needed

	parentName string
	locators   map[string][]byte // platform code: data

	noCopy, noTail, old bool
}

// file is a written VHD with the places of its parts.
type file struct {
	b      []byte
	header int64
	table  int64
	starts map[int64]int64
}

func sum(p []byte) uint32 {
	s := uint32(0)
	for _, b := range p {
		s += uint32(b)
	}
	return ^s
}

func (d *disk) footer(dataOffset uint64) []byte {
	f := make([]byte, 512)
	copy(f, "conectix")
	be.PutUint32(f[8:], 2)
	be.PutUint32(f[12:], 0x10000)
	be.PutUint64(f[16:], dataOffset)
	be.PutUint32(f[24:], 86400)
	copy(f[28:32], d.creator)
	be.PutUint32(f[32:], 0x000A0000)
	copy(f[36:], "Wi2k")
	be.PutUint64(f[40:], uint64(d.size))
	be.PutUint64(f[48:], uint64(d.size))
	be.PutUint16(f[56:], uint16(d.chs[0]))
	f[58], f[59] = byte(d.chs[1]), byte(d.chs[2])
	be.PutUint32(f[60:], d.diskType)
	copy(f[68:84], bytes.Repeat([]byte{d.id}, 16))
	be.PutUint32(f[64:], sum(f))
	return f
}

func (d *disk) write() *file {
	if d.creator == "" {
		d.creator = "win "
	}
	if d.diskType == 2 {
		f := d.footer(1<<64 - 1)
		if d.old {
			f = f[:511]
		}
		return &file{b: append(bytes.Clone(d.raw), f...)}
	}
	out := &file{header: 512, starts: map[int64]int64{}}
	foot := d.footer(512)
	out.b = bytes.Clone(foot)
	if d.noCopy {
		clear(out.b)
	}
	h := make([]byte, 1024)
	copy(h, "cxsparse")
	be.PutUint64(h[8:], 1<<64-1)
	be.PutUint32(h[24:], 0x10000)
	entries := (d.size-1)/d.blockSize + 1 + d.spare
	be.PutUint32(h[28:], uint32(entries))
	be.PutUint32(h[32:], uint32(d.blockSize))
	var after []byte // locators follow the header
	if d.diskType == 4 {
		copy(h[40:56], bytes.Repeat([]byte{d.parentID}, 16))
		be.PutUint32(h[56:], 86400)
		for i, u := range utf16.Encode([]rune(d.parentName)) {
			be.PutUint16(h[64+2*i:], u)
		}
		i := 0
		for code, data := range d.locators {
			l := h[576+24*i:]
			copy(l, code)
			be.PutUint32(l[4:], 512)
			be.PutUint32(l[8:], uint32(len(data)))
			be.PutUint64(l[16:], uint64(1536+len(after)))
			after = append(after, data...)
			after = append(after, make([]byte, (512-len(after)%512)%512)...)
			i++
		}
	}
	out.table = 1536 + int64(len(after))
	be.PutUint64(h[16:], uint64(out.table))
	be.PutUint32(h[36:], sum(h))
	out.b = append(append(out.b, h...), after...)
	table := bytes.Repeat([]byte{0xFF}, int(entries*4+511)/512*512)
	out.b = append(out.b, table...)
	order := d.order
	if order == nil {
		for b := int64(0); b < entries; b++ {
			order = append(order, b)
		}
	}
	bitmapBytes := (d.blockSize/512/8 + 511) / 512 * 512
	for _, b := range order {
		blk, ok := d.blocks[b]
		if !ok {
			continue
		}
		out.b = append(out.b, make([]byte, d.gap)...)
		start := int64(len(out.b))
		out.starts[b] = start
		be.PutUint32(out.b[out.table+4*b:], uint32(start/512))
		block := make([]byte, bitmapBytes+d.blockSize)
		for i := int64(0); i < d.blockSize/512; i++ {
			if blk.sectors == nil || blk.sectors[i] {
				block[i/8] |= 1 << (7 - i%8)
			}
		}
		copy(block[bitmapBytes:], blk.data)
		out.b = append(out.b, block...)
	}
	if !d.noTail {
		if d.old {
			foot = foot[:511]
		}
		out.b = append(out.b, foot...)
	}
	return out
}

// content is what the disk holds, up to Current Size.
func (d *disk) content(parent []byte) []byte {
	want := make([]byte, d.size)
	if d.diskType == 2 {
		copy(want, d.raw)
		return want
	}
	if d.diskType == 4 {
		copy(want, parent)
	}
	for b, blk := range d.blocks {
		data := make([]byte, d.blockSize)
		copy(data, blk.data)
		for i := int64(0); i < d.blockSize/512; i++ {
			at := b*d.blockSize + i*512
			if at < d.size && (d.diskType == 3 || blk.sectors == nil || blk.sectors[i]) {
				copy(want[at:at+512], data[i*512:])
			}
		}
	}
	return want
}

// resum makes the checksums of what a test changed right again.
func (f *file) resum() {
	places := [][2]int64{{0, 512}, {int64(len(f.b)) - 512, 512}}
	for _, p := range places {
		foot := f.b[p[0]:][:p[1]]
		if string(foot[:8]) == "conectix" {
			be.PutUint32(foot[64:], 0)
			be.PutUint32(foot[64:], sum(foot))
		}
	}
	if f.header != 0 {
		h := f.b[f.header:][:1024]
		be.PutUint32(h[36:], 0)
		be.PutUint32(h[36:], sum(h))
	}
}

// both writes to the same place of both footers.
func (f *file) both(put func(foot []byte)) {
	for _, at := range []int{0, len(f.b) - 512} {
		if string(f.b[at:at+8]) == "conectix" {
			put(f.b[at : at+512])
		}
	}
}

func (f *file) clone() *file {
	c := *f
	c.b = bytes.Clone(f.b)
	return &c
}

// memory is a disk in memory, to be a parent.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }
func (m memory) Close() error                            { return nil }
func (m memory) Size() int64                             { return int64(len(m)) }
func (m memory) Type() image.Type                        { return "raw" }
func (m memory) Readable() error                         { return nil }

// Extent reports zero blocks of 1024 bytes as such, to have many short extents.
func (m memory) Extent(start, length int64) (image.Extent, error) {
	if start < 0 || length <= 0 || start+length > m.Size() {
		return image.Extent{}, errors.New("out of bounds")
	}
	n := min(length, 1024-start%1024)
	zero := len(bytes.Trim(m[start:start+n], "\x00")) == 0
	return image.Extent{Start: start, Length: n, Allocated: !zero, Zero: zero}, nil
}
