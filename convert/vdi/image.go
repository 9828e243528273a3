// SPDX-License-Identifier: Apache-2.0

package vdi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/lru"
)

// Image is an open VDI disk. It implements image.Image; ReadAt and Extent are safe for concurrent
// use. Its memory is a cache of pages of the block map of fixed size.
type Image struct {
	m     *Metadata
	table *lru.Cache[int64, []byte] // pages of the block map by index
}

var _ image.Image = (*Image)(nil)

// tablePages is how many pages of the block map are kept in memory: 1 MiB, which maps 256 GiB with
// blocks of 1 MiB.
const tablePages = 16

// TableBytes returns how many bytes of mapping tables a reader keeps in memory at most.
func (m *Metadata) TableBytes() int64 { return min(m.blocks*4, tablePages*tablePage) }

// Open returns a reader of the checked image. VDI disks that are read have no parent, so it must be
// nil. Open does not take over the file.
func (m *Metadata) Open(parent image.Image) (image.Image, error) {
	if parent != nil {
		return nil, errors.New("a VDI disk has no parent, but one is given")
	}
	return &Image{m: m, table: lru.New[int64, []byte](tablePages)}, nil
}

// Size returns the virtual size in bytes, a multiple of 512.
func (img *Image) Size() int64 { return img.m.VirtualSize }

// Type returns the format's name.
func (img *Image) Type() image.Type { return Type }

// Readable returns nil.
func (img *Image) Readable() error { return nil }

// Close does nothing: the file is the caller's.
func (img *Image) Close() error { return nil }

// kind is how a range of the disk is stored.
type kind uint8

const (
	kindFree      kind = iota // zeros
	kindDiscarded             // zeros
	kindData                  // in the file
)

// segment is a range of the disk from an offset on.
type segment struct {
	kind   kind
	length int64 // bytes
	host   int64 // kindData: where it is in the file
}

// cursor translates offsets of the disk. It remembers the page that it used last, so that going on
// costs no look-up. It is used by one goroutine.
type cursor struct {
	img   *Image
	page  []byte
	index int64 // of page
}

// at returns the rest of the block at off, which must lie within the disk.
func (c *cursor) at(off int64) (segment, error) {
	m := c.img.m
	block, within := off/m.BlockSize, off%m.BlockSize
	s := segment{length: min(m.BlockSize-within, m.VirtualSize-off)}
	e, err := c.entry(block)
	if err != nil {
		return segment{}, err
	}
	switch e {
	case entryFree:
	case entryDiscarded:
		s.kind = kindDiscarded
	default:
		s.kind, s.host = kindData, m.dataOffset+int64(e)*m.BlockSize+within
	}
	return s, nil
}

// run returns what is at off and stored alike, at most n bytes of it. Data is alike as long as it
// is in one piece in the file.
func (c *cursor) run(off, n int64) (segment, error) {
	s, err := c.at(off)
	if err != nil {
		return segment{}, err
	}
	for s.length < n {
		next, err := c.at(off + s.length)
		if err != nil {
			return segment{}, err
		}
		if next.kind != s.kind || s.kind == kindData && next.host != s.host+s.length {
			break
		}
		s.length += next.length
	}
	s.length = min(s.length, n)
	return s, nil
}

// entry returns the entry of a block in the block map.
func (c *cursor) entry(block int64) (uint32, error) {
	const entries = tablePage / 4
	if index := block / entries; c.page == nil || index != c.index {
		p, ok := c.img.table.Get(index)
		if !ok {
			m := c.img.m
			p = make([]byte, min(tablePage, (m.blocks-index*entries)*4))
			if err := readFull(m.r, p, m.mapOffset+index*tablePage); err != nil {
				return 0, fmt.Errorf("read the block map: %w", err)
			}
			c.img.table.Add(index, p)
		}
		c.page, c.index = p, index
	}
	return binary.LittleEndian.Uint32(c.page[block%entries*4:]), nil
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
		s, err := c.run(at, int64(len(want)-done))
		if err != nil {
			return done, fmt.Errorf("read at %d: %w", at, err)
		}
		part := want[done : done+int(s.length)]
		if s.kind == kindData {
			if err := img.readData(part, s.host); err != nil {
				return done, fmt.Errorf("read at %d: %w", at, err)
			}
		} else {
			clear(part)
		}
		done += len(part)
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

// readData reads p at the offset host of the file. The block that the end of the file cuts has
// zeros behind it.
func (img *Image) readData(p []byte, host int64) error {
	inFile := min(int64(len(p)), max(0, img.m.fileSize-host))
	if inFile == 0 && host >= roundUp(img.m.fileSize-img.m.dataOffset, img.m.BlockSize)+img.m.dataOffset {
		return bad("the data at %d is outside of the file of %d bytes", host, img.m.fileSize)
	}
	if err := readFull(img.m.r, p[:inFile], host); err != nil {
		return err
	}
	clear(p[inFile:])
	return nil
}

// Extent returns the first run of start..start+length, which must lie within the disk, that is
// stored alike. What was discarded is reported as allocated zeros, what was never written as not
// allocated.
func (img *Image) Extent(start, length int64) (image.Extent, error) {
	if start < 0 || length < 0 || start > img.Size() || length > img.Size()-start {
		return image.Extent{}, fmt.Errorf("extent of %d bytes at %d is outside of the disk of %d bytes",
			length, start, img.Size())
	}
	run := image.Extent{Start: start}
	if length == 0 {
		return run, nil
	}
	c := cursor{img: img}
	s, err := c.at(start)
	if err != nil {
		return image.Extent{}, err
	}
	run.Allocated, run.Zero = s.kind != kindFree, s.kind != kindData
	for run.Length = s.length; run.Length < length; run.Length += s.length {
		next, err := c.at(start + run.Length)
		if err != nil {
			return image.Extent{}, err
		}
		if next.kind != s.kind {
			break
		}
		s.length = next.length
	}
	run.Length = min(run.Length, length)
	return run, nil
}
