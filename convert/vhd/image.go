// SPDX-License-Identifier: Apache-2.0

package vhd

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/lru"
)

// Image is an open VHD disk. It implements image.Image; ReadAt and Extent are safe for concurrent
// use. Its memory is a cache of table pages of fixed size.
type Image struct {
	m      *Metadata
	parent image.Image // what a differencing disk does not have, else nil
	size   int64
	stored int64 // bytes of the disk that the file maps; zeros follow

	table   *lru.Cache[int64, []byte] // pages of the block allocation table by index
	bitmaps *lru.Cache[int64, []byte] // pages of sector bitmaps by offset in the file
}

var _ image.Image = (*Image)(nil)

// Table pages kept in memory: 1 MiB of the block allocation table, which maps 512 GiB with blocks
// of 2 MiB, and as much of sector bitmaps, which maps 4 GiB.
const (
	tablePages  = 16
	bitmapPage  = 4 << 10
	bitmapPages = 256
)

// TableBytes returns how many bytes of mapping tables a reader keeps in memory at most.
func (m *Metadata) TableBytes() int64 {
	switch m.Variant {
	case VariantFixed:
		return 0
	case VariantDynamic:
		return min(roundUp(m.tableBytes(), tablePage), tablePages*tablePage)
	}
	return min(roundUp(m.tableBytes(), tablePage), tablePages*tablePage) + bitmapPages*bitmapPage
}

// Open returns a reader of the checked image. The parent gives what a differencing disk does not
// have; it must be given for those and for no others. That it is the right one is for the caller to
// check, by its ID. It may be shorter than the disk, and then reads as zeros behind its end. Open
// takes over neither the file nor the parent.
func (m *Metadata) Open(parent image.Image) (image.Image, error) {
	if (parent != nil) != (m.Variant == VariantDifferencing) {
		return nil, fmt.Errorf("the disk is %s, but parent given: %t", m.Variant, parent != nil)
	}
	if parent != nil {
		if size := max(m.currentSize, m.VirtualSize); parent.Size() > size {
			return nil, bad("its parent has %d bytes, more than its own %d", parent.Size(), size)
		}
		if m.cutsTail {
			if err := m.checkTail(context.Background(), parent); err != nil {
				return nil, err
			}
		}
	}
	return m.open(parent, m.VirtualSize), nil
}

func (m *Metadata) open(parent image.Image, size int64) *Image {
	return &Image{
		m:       m,
		parent:  parent,
		size:    size,
		stored:  min(size, m.currentSize),
		table:   lru.New[int64, []byte](tablePages),
		bitmaps: lru.New[int64, []byte](bitmapPages),
	}
}

// checkTail checks that the part of the disk that the geometry cuts off is all zeros. It reads only
// what is allocated.
func (m *Metadata) checkTail(ctx context.Context, parent image.Image) error {
	img := m.open(parent, m.currentSize)
	buf := make([]byte, min(256<<10, m.currentSize-m.VirtualSize))
	for off := m.VirtualSize; off < m.currentSize; {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := img.Extent(off, m.currentSize-off)
		if err != nil {
			return err
		}
		if e.Zero {
			off += e.Length
			continue
		}
		p := buf[:min(int64(len(buf)), e.Length)]
		if err := readFull(img, p, off); err != nil {
			return err
		}
		for i, b := range p {
			if b != 0 {
				return &Error{
					Reason: fmt.Sprintf("its size is %d bytes by geometry and %d by Current Size, and there is data behind "+
						"the former at %d", m.VirtualSize, m.currentSize, off+int64(i)),
					Remedy: "say which of the two sizes counts; Current Size loses nothing",
					Sizes:  true,
				}
			}
		}
		off += int64(len(p))
	}
	return nil
}

// Size returns the virtual size in bytes, a multiple of 512.
func (img *Image) Size() int64 { return img.size }

// Type returns the format's name.
func (img *Image) Type() image.Type { return Type }

// Readable returns nil.
func (img *Image) Readable() error { return nil }

// Close does nothing: the file and the parent are the caller's.
func (img *Image) Close() error { return nil }

// kind is how a range of the disk is stored.
type kind uint8

const (
	kindAbsent kind = iota // in the parent, or zeros
	kindData               // in the file
	kindBehind             // behind what the file maps: zeros
)

// segment is a range of the disk from an offset on.
type segment struct {
	kind   kind
	length int64 // bytes
	host   int64 // kindData: where it is in the file
}

// cursor translates offsets of the disk. It remembers the pages that it used last, so that going on
// costs no look-up. It is used by one goroutine.
type cursor struct {
	img *Image

	table, bitmap         []byte
	tableIndex, bitmapPos int64
}

// at returns the segment at off, which must lie within the disk ("Block Allocation Table and Data
// Blocks"). It ends within the disk.
func (c *cursor) at(off int64) (segment, error) {
	img, m := c.img, c.img.m
	if off >= img.stored {
		return segment{kind: kindBehind, length: img.size - off}, nil
	}
	if m.Variant == VariantFixed {
		return segment{kind: kindData, length: img.stored - off, host: off}, nil
	}
	block, within := off/m.BlockSize, off&(m.BlockSize-1)
	s := segment{length: min(m.BlockSize-within, img.stored-off)}
	e, err := c.entry(block)
	if err != nil {
		return segment{}, err
	}
	if e == unallocated {
		if img.parent == nil {
			s.length = min((block+c.emptyBlocks(block))*m.BlockSize, img.stored) - off
		}
		return s, nil
	}
	start := int64(e) * sectorSize
	s.kind, s.host = kindData, start+m.bitmapBytes+within
	if m.Variant == VariantDifferencing {
		// The bitmap of a dynamic disk says what was ever written, but it is the data that counts.
		present, run, err := c.sectors(start, within/sectorSize)
		if err != nil {
			return segment{}, err
		}
		if !present {
			s.kind = kindAbsent
		}
		s.length = min(s.length, run*sectorSize-within%sectorSize)
	}
	return s, nil
}

// entry returns the entry of a block in the block allocation table.
func (c *cursor) entry(block int64) (uint32, error) {
	const entries = tablePage / 4
	if index := block / entries; c.table == nil || index != c.tableIndex {
		p, ok := c.img.table.Get(index)
		if !ok {
			m := c.img.m
			p = make([]byte, min(tablePage, (m.blocks()-index*entries)*4))
			if err := readFull(m.r, p, m.tableOffset+index*tablePage); err != nil {
				return 0, fmt.Errorf("read the block allocation table: %w", err)
			}
			c.img.table.Add(index, p)
		}
		c.table, c.tableIndex = p, index
	}
	return binary.BigEndian.Uint32(c.table[block%entries*4:]), nil
}

// emptyBlocks returns how many blocks from the given one on are not allocated, as far as the page
// of the table goes in which the cursor is. There is at least the one.
func (c *cursor) emptyBlocks(block int64) int64 {
	const entries = tablePage / 4
	first := block % entries
	end := first + 1
	for end*4 < int64(len(c.table)) && binary.BigEndian.Uint32(c.table[end*4:]) == unallocated {
		end++
	}
	return end - first
}

// sectors tells whether a sector of the block whose bitmap is at start is in the file, and how many
// from it on are alike, as far as the bitmap's page goes.
func (c *cursor) sectors(start, sector int64) (present bool, run int64, err error) {
	m := c.img.m
	first := sector / 8 &^ (bitmapPage - 1) // first byte of the page
	if pos := start + first; c.bitmap == nil || pos != c.bitmapPos {
		p, ok := c.img.bitmaps.Get(pos)
		if !ok {
			p = make([]byte, min(bitmapPage, m.bitmapBytes-first))
			if err := readFull(m.r, p, pos); err != nil {
				return false, 0, fmt.Errorf("read a sector bitmap: %w", err)
			}
			c.img.bitmaps.Add(pos, p)
		}
		c.bitmap, c.bitmapPos = p, pos
	}
	present, run = bitRun(c.bitmap, sector-first*8)
	return present, run, nil
}

// bitRun returns bit i of p and how many bits from it on are alike. The most significant bit of a
// byte is the first.
func bitRun(p []byte, i int64) (set bool, run int64) {
	set = p[i/8]&(0x80>>(i%8)) != 0
	end := int64(len(p)) * 8
	for run = i; run < end; {
		b := p[run/8]
		if set {
			b = ^b
		}
		// The first bit that differs, from this one on.
		n := int64(bits.LeadingZeros8(b << (run % 8)))
		if n < 8-run%8 {
			return set, run + n - i
		}
		run += 8 - run%8
	}
	return set, end - i
}

// ReadAt implements [io.ReaderAt]: min(len(p), size-off) bytes or an error.
func (img *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at the negative offset %d", off)
	}
	if off >= img.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), img.size-off)]
	c := cursor{img: img}
	for done := 0; done < len(want); {
		at := off + int64(done)
		s, err := c.at(at)
		if err != nil {
			return done, fmt.Errorf("read at %d: %w", at, err)
		}
		part := want[done : done+int(min(s.length, int64(len(want)-done)))]
		switch s.kind {
		case kindData:
			err = readFull(img.m.r, part, s.host)
		case kindAbsent:
			err = img.readParent(part, at)
		default:
			clear(part)
		}
		if err != nil {
			return done, fmt.Errorf("read at %d: %w", at, err)
		}
		done += len(part)
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

func (img *Image) readParent(p []byte, off int64) error {
	n := 0
	if img.parent != nil {
		if n = int(max(0, min(int64(len(p)), img.parent.Size()-off))); n > 0 {
			if err := readFull(img.parent, p[:n], off); err != nil {
				return fmt.Errorf("parent: %w", err)
			}
		}
	}
	clear(p[n:])
	return nil
}

// Extent returns the first run of start..start+length, which must lie within the disk, that is
// stored alike. What neither the file nor a parent has is reported as zero and not allocated.
func (img *Image) Extent(start, length int64) (image.Extent, error) {
	if start < 0 || length < 0 || start > img.size || length > img.size-start {
		return image.Extent{}, fmt.Errorf("extent of %d bytes at %d is outside of the disk of %d bytes",
			length, start, img.size)
	}
	c := cursor{img: img}
	run := image.Extent{Start: start}
	for off, end := start, start+length; off < end; off = run.Start + run.Length {
		e, err := img.next(&c, off, end)
		if err != nil {
			return image.Extent{}, err
		}
		if run.Length == 0 {
			run = e
			continue
		}
		if run.Allocated != e.Allocated || run.Zero != e.Zero || run.Compressed != e.Compressed {
			break
		}
		run.Length += e.Length
	}
	return run, nil
}

// next returns the extent at off, not joined with what follows.
func (img *Image) next(c *cursor, off, end int64) (image.Extent, error) {
	s, err := c.at(off)
	if err != nil {
		return image.Extent{}, err
	}
	e := image.Extent{Start: off, Length: min(s.length, end-off)}
	switch {
	case s.kind == kindData:
		e.Allocated = true
	case s.kind == kindBehind || img.parent == nil || off >= img.parent.Size():
		e.Zero = true
	default:
		p, err := img.parent.Extent(off, min(e.Length, img.parent.Size()-off))
		if err != nil {
			return image.Extent{}, fmt.Errorf("parent: %w", err)
		}
		if p.Start != off || p.Length <= 0 || p.Length > e.Length {
			return image.Extent{}, fmt.Errorf("parent: asked for the extent at %d, got %d bytes at %d",
				off, p.Length, p.Start)
		}
		e = p
	}
	return e, nil
}
