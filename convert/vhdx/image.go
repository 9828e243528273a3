// SPDX-License-Identifier: Apache-2.0

package vhdx

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/lru"
)

// Image is an open VHDX disk. It implements image.Image; ReadAt and Extent are safe for concurrent
// use. Its memory is a cache of table pages of fixed size and, for a disk whose log is in use,
// where the updates are.
type Image struct {
	m      *Metadata
	parent image.Image // what a differencing disk does not have, else nil

	bat     *lru.Cache[int64, []byte] // pages of the block allocation table by index
	bitmaps *lru.Cache[int64, []byte] // pages of sector bitmaps by offset in the file
}

var _ image.Image = (*Image)(nil)

// Table pages kept in memory: 1 MiB of the block allocation table, which maps 128 GiB with blocks
// of 1 MB, and as much of sector bitmaps, which maps 4 GiB.
const (
	batPages    = 16
	bitmapPage  = 4 * kib
	bitmapPages = 256
)

// TableBytes returns how many bytes of mapping tables a reader keeps in memory at most, without
// those for the log.
func (m *Metadata) TableBytes() int64 {
	n := min((m.batEntries()*8+tablePage-1)/tablePage, batPages) * tablePage
	if m.Variant == VariantDifferencing {
		n += bitmapPages * bitmapPage
	}
	return n
}

// Open returns a reader of the checked image. The parent gives what a differencing disk does not
// have; it must be given for those and for no others, and it must have the same virtual size. That
// it is the right one is for the caller to check, by its ID and logical sector size. Open takes
// over neither the file nor the parent.
func (m *Metadata) Open(parent image.Image) (image.Image, error) {
	if (parent != nil) != (m.Variant == VariantDifferencing) {
		return nil, fmt.Errorf("the disk is %s, but parent given: %t", m.Variant, parent != nil)
	}
	if parent != nil && parent.Size() != m.VirtualSize {
		return nil, bad("its parent has %d bytes, but it has %d itself", parent.Size(), m.VirtualSize)
	}
	return &Image{
		m:       m,
		parent:  parent,
		bat:     lru.New[int64, []byte](batPages),
		bitmaps: lru.New[int64, []byte](bitmapPages),
	}, nil
}

// Size returns the virtual size in bytes.
func (img *Image) Size() int64 { return img.m.VirtualSize }

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
	kindZero               // zeros, whatever the parent has
	kindData               // in the file
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

	bat, bitmap         []byte
	batIndex, bitmapPos int64
}

// at returns the segment at off, which must lie within the disk. It ends within the disk.
func (c *cursor) at(off int64) (segment, error) {
	m := c.img.m
	block, within := off/m.BlockSize, off&(m.BlockSize-1)
	s := segment{length: min(m.BlockSize-within, m.VirtualSize-off)}
	e, err := c.entry(block + block/m.chunkRatio())
	if err != nil {
		return segment{}, err
	}
	switch state := e & stateMask; {
	case state == stateNotPresent:
		s.kind = kindAbsent
		if c.img.parent == nil {
			s.length = min((block+c.emptyBlocks(block))*m.BlockSize, m.VirtualSize) - off
		}
	case state == stateUndefined || state == stateZero || state == stateUnmapped:
		s.kind = kindZero
	case state == stateFullyPresent:
		s.kind = kindData
	case state == statePartiallyPresent && m.Variant == VariantDifferencing:
		present, run, err := c.sectors(off)
		if err != nil {
			return segment{}, err
		}
		if present {
			s.kind = kindData
		}
		sector := int64(m.SectorSize)
		s.length = min(s.length, run*sector-off%sector)
	default:
		return segment{}, bad("the block of the disk at %d has the unknown state %d", off-within, state)
	}
	s.host = int64(e&offsetMask) + within
	return s, nil
}

// entry returns an entry of the block allocation table.
func (c *cursor) entry(i int64) (uint64, error) {
	const entries = tablePage / 8
	if index := i / entries; c.bat == nil || index != c.batIndex {
		p, ok := c.img.bat.Get(index)
		if !ok {
			m := c.img.m
			p = make([]byte, min(tablePage, (m.batEntries()-index*entries)*8))
			if err := readFull(m.file, p, m.batOffset+index*tablePage); err != nil {
				return 0, fmt.Errorf("read the block allocation table: %w", err)
			}
			c.img.bat.Add(index, p)
		}
		c.bat, c.batIndex = p, index
	}
	return binary.LittleEndian.Uint64(c.bat[i%entries*8:]), nil
}

// emptyBlocks returns how many blocks from the given one on have an entry of zeros, as far as the
// page of the table goes in which the cursor is. There is at least the one.
func (c *cursor) emptyBlocks(block int64) int64 {
	const entries = tablePage / 8
	ratio := c.img.m.chunkRatio()
	i := block + block/ratio
	end := i%entries + 1
	for end*8 < int64(len(c.bat)) && binary.LittleEndian.Uint64(c.bat[end*8:]) == 0 {
		end++
	}
	// The entries of sector bitmaps in between are none of blocks.
	end += i - i%entries
	return end - end/(ratio+1) - block
}

// sectors tells whether the sector at off is in the file, and how many from it on are alike, as far
// as the page of the sector bitmap goes ("Sector Bitmap Blocks").
func (c *cursor) sectors(off int64) (present bool, run int64, err error) {
	m := c.img.m
	chunk := off / m.chunkBytes()
	e, err := c.entry(chunk*(m.chunkRatio()+1) + m.chunkRatio())
	if err != nil {
		return false, 0, err
	}
	if e&stateMask != stateFullyPresent {
		return false, 0, bad("the sector bitmap of the disk at %d is missing", chunk*m.chunkBytes())
	}
	sector := off % m.chunkBytes() / int64(m.SectorSize)
	first := sector / 8 &^ (bitmapPage - 1) // first byte of the page
	if pos := int64(e&offsetMask) + first; c.bitmap == nil || pos != c.bitmapPos {
		p, ok := c.img.bitmaps.Get(pos)
		if !ok {
			p = make([]byte, bitmapPage)
			if err := readFull(m.file, p, pos); err != nil {
				return false, 0, fmt.Errorf("read a sector bitmap: %w", err)
			}
			c.img.bitmaps.Add(pos, p)
		}
		c.bitmap, c.bitmapPos = p, pos
	}
	present, run = bitRun(c.bitmap, sector-first*8)
	return present, run, nil
}

// bitRun returns bit i of p and how many bits from it on are alike. The least significant bit of a
// byte is the first.
func bitRun(p []byte, i int64) (set bool, run int64) {
	set = p[i/8]&(1<<(i%8)) != 0
	end := int64(len(p)) * 8
	for run = i; run < end; {
		b := p[run/8]
		if set {
			b = ^b
		}
		// The first bit that differs, from this one on.
		n := int64(bits.TrailingZeros8(b >> (run % 8)))
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
	if off >= img.Size() {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), img.Size()-off)]
	c := cursor{img: img}
	for done := 0; done < len(want); {
		at := off + int64(done)
		s, err := c.at(at)
		if err != nil {
			return done, fmt.Errorf("read at %d: %w", at, err)
		}
		part := want[done : done+int(min(s.length, int64(len(want)-done)))]
		switch {
		case s.kind == kindData:
			err = readFull(img.m.file, part, s.host)
		case s.kind == kindAbsent && img.parent != nil:
			if err = readFull(img.parent, part, at); err != nil {
				err = fmt.Errorf("parent: %w", err)
			}
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

// Extent returns the first run of start..start+length, which must lie within the disk, that is
// stored alike. What neither the file nor a parent has is reported as zero and not allocated.
func (img *Image) Extent(start, length int64) (image.Extent, error) {
	if start < 0 || length < 0 || start > img.Size() || length > img.Size()-start {
		return image.Extent{}, fmt.Errorf("extent of %d bytes at %d is outside of the disk of %d bytes",
			length, start, img.Size())
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
	case s.kind == kindZero:
		e.Allocated, e.Zero = true, true
	case img.parent == nil:
		e.Zero = true
	default:
		p, err := img.parent.Extent(off, e.Length)
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
