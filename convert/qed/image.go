// SPDX-License-Identifier: Apache-2.0

package qed

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/lru"
)

// Image is an open QED disk. It implements image.Image; ReadAt and Extent are safe for concurrent
// use. Its memory is a cache of table pages of fixed size.
type Image struct {
	m      *Metadata
	parent image.Image               // what is not allocated here, nil = zeros
	l1     *lru.Cache[int64, []byte] // pages of the L1 table by offset in the file
	l2     *lru.Cache[int64, []byte] // pages of L2 tables by offset in the file
}

var _ image.Image = (*Image)(nil)

// Table pages kept in memory: at most 256 KiB of the L1 table, and 1 MiB of L2 tables, which maps 8
// GiB with clusters of 64 KiB.
const (
	l1Pages = 4
	l2Pages = 16
)

// TableBytes returns how many bytes of mapping tables a reader keeps in memory at most.
func (m *Metadata) TableBytes() int64 { return (l1Pages + l2Pages) * m.pageBytes() }

// Open returns a reader of the checked image. The parent gives what is not allocated in it; it must
// be given if and only if the image has a backing file. It may be shorter than the image, and then
// reads as zeros behind its end, or longer. Open takes over neither the file nor the parent.
func (m *Metadata) Open(parent image.Image) (image.Image, error) {
	if (parent != nil) != (m.BackingFile != "") {
		return nil, fmt.Errorf("backing file %q, but parent given: %t", m.BackingFile, parent != nil)
	}
	return &Image{
		m:      m,
		parent: parent,
		l1:     lru.New[int64, []byte](l1Pages),
		l2:     lru.New[int64, []byte](l2Pages),
	}, nil
}

// Size returns the virtual size in bytes, a multiple of 512.
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
	kindUnallocated kind = iota // in the backing file, or zeros
	kindZero                    // zeros, whatever the backing file has
	kindData                    // in the file
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
	img    *Image
	l1, l2 page
}

// page is a part of a table.
type page struct {
	bytes  []byte
	offset int64 // in the file
}

// at returns the rest of the cluster at off, or of the range without L2 table, which must lie
// within the disk ("Tables").
func (c *cursor) at(off int64) (segment, error) {
	m := c.img.m
	cluster, within := off>>m.clusterBits, off&(m.BlockSize-1)
	index, rest := cluster/m.entries(), cluster%m.entries()
	table, err := c.l1.entry(c.img.l1, m, m.l1Offset, index)
	if err != nil {
		return segment{}, fmt.Errorf("read the L1 table: %w", err)
	}
	if table == entryUnallocated {
		return segment{length: min((m.entries()-rest)<<m.clusterBits-within, m.VirtualSize-off)}, nil
	}
	if table > uint64(m.fileSize) {
		return segment{}, bad("L1 entry %d: the table at %d is outside of the file", index, table)
	}
	e, err := c.l2.entry(c.img.l2, m, int64(table), rest)
	if err != nil {
		return segment{}, fmt.Errorf("read an L2 table: %w", err)
	}
	s := segment{length: min(m.BlockSize-within, m.VirtualSize-off)}
	switch {
	case e == entryUnallocated:
	case e == entryZero:
		s.kind = kindZero
	case e > uint64(m.fileSize):
		return segment{}, bad("L2 entry %d at %d: the data at %d is outside of the file", rest, table, e)
	default:
		s.kind, s.host = kindData, int64(e)+within
	}
	return s, nil
}

// entry returns an entry of the table at the offset of the file.
func (p *page) entry(cache *lru.Cache[int64, []byte], m *Metadata, table, index int64) (uint64, error) {
	size := m.pageBytes()
	within := index * 8 & (size - 1)
	if offset := table + index*8 - within; p.bytes == nil || p.offset != offset {
		b, ok := cache.Get(offset)
		if !ok {
			b = make([]byte, size)
			if err := readFull(m.r, b, offset); err != nil {
				return 0, err
			}
			cache.Add(offset, b)
		}
		p.bytes, p.offset = b, offset
	}
	return binary.LittleEndian.Uint64(p.bytes[within:]), nil
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
		switch s.kind {
		case kindData:
			err = readFull(img.m.r, part, s.host)
		case kindUnallocated:
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
				return fmt.Errorf("backing file: %w", err)
			}
		}
	}
	clear(p[n:])
	return nil
}

// Extent returns the first run of start..start+length, which must lie within the disk, that is
// stored alike. What is zero without being allocated here or in a parent is reported as not
// allocated.
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
	case img.parent == nil || off >= img.parent.Size():
		e.Zero = true
	default:
		p, err := img.parent.Extent(off, min(e.Length, img.parent.Size()-off))
		if err != nil {
			return image.Extent{}, fmt.Errorf("backing file: %w", err)
		}
		if p.Start != off || p.Length <= 0 || p.Length > e.Length {
			return image.Extent{}, fmt.Errorf("backing file: asked for the extent at %d, got %d bytes at %d",
				off, p.Length, p.Start)
		}
		e = p
	}
	return e, nil
}
