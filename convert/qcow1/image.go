// SPDX-License-Identifier: Apache-2.0

package qcow1

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/lru"
)

// Image is an open QCOW disk of version 1. It implements image.Image; ReadAt and Extent are safe
// for concurrent use. Its memory is a cache of tables of fixed size and, for each goroutine that
// reads compressed clusters, a decoder.
type Image struct {
	m      *Metadata
	parent image.Image               // what is not allocated here, nil = zeros
	l1     *lru.Cache[int64, []byte] // pages of the L1 table by index
	l2     *lru.Cache[int64, []byte] // L2 tables by offset in the file
}

var _ image.Image = (*Image)(nil)

// Tables kept in memory: at most 256 KiB of the L1 table, and 1 MiB of L2 tables, which maps 512
// MiB with clusters of 4 KiB.
const (
	l1Pages      = 4
	l2CacheBytes = 1 << 20
)

// TableBytes returns how many bytes of mapping tables a reader keeps in memory at most.
func (m *Metadata) TableBytes() int64 { return min(m.l1Entries*8, l1Pages*l1Page) + l2CacheBytes }

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
		l2:     lru.New[int64, []byte](int(l2CacheBytes / m.tableBytes())),
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
	kindPlain                   // in the file
	kindCompressed              // in the file, compressed
	kindBehind                  // behind the size in the header, which is rounded up: zeros
)

// segment is a range of the disk from an offset on.
type segment struct {
	kind   kind
	length int64 // bytes of the disk
	host   int64 // plain: where the byte is; compressed: where the cluster's data begins
	skip   int64 // compressed: bytes of the cluster before the offset
	stored int64 // compressed: bytes of data
}

// cursor translates offsets of the disk. It remembers the tables that it used last, so that going
// on costs no look-up. It is used by one goroutine.
type cursor struct {
	img              *Image
	l1, l2           []byte
	l1Index, l2Place int64
}

// at returns the rest of the cluster at off, or of the range without L2 table, which must lie
// within the disk.
func (c *cursor) at(off int64) (segment, error) {
	m := c.img.m
	if off >= m.size {
		return segment{kind: kindBehind, length: m.VirtualSize - off}, nil
	}
	cluster, within := off>>m.clusterBits, off&(m.BlockSize-1)
	table, err := c.l1Entry(cluster >> m.l2Bits)
	if err != nil {
		return segment{}, err
	}
	if table == 0 {
		span := int64(1) << (m.clusterBits + m.l2Bits)
		return segment{length: min(span-off&(span-1), m.size-off)}, nil
	}
	if c.l2 == nil || c.l2Place != table {
		if c.l2, err = c.img.table(table); err != nil {
			return segment{}, fmt.Errorf("read an L2 table: %w", err)
		}
		c.l2Place = table
	}
	e := binary.BigEndian.Uint64(c.l2[cluster&(1<<m.l2Bits-1)*8:])
	s := segment{length: min(m.BlockSize-within, m.size-off)}
	switch {
	case e == 0:
	case e&entryCompressed != 0:
		s.kind, s.skip = kindCompressed, within
		s.host, s.stored = m.compressedRange(e)
	case e >= uint64(m.fileSize):
		return segment{}, bad("the L2 table at %d: the data at %d is outside of the file", table, e)
	default:
		s.kind, s.host = kindPlain, int64(e)+within
	}
	return s, nil
}

// l1Entry returns the offset of the L2 table of an L1 entry, 0 if there is none.
func (c *cursor) l1Entry(index int64) (int64, error) {
	const entries = l1Page / 8
	if page := index / entries; c.l1 == nil || page != c.l1Index {
		p, ok := c.img.l1.Get(page)
		if !ok {
			m := c.img.m
			p = make([]byte, min(l1Page, (m.l1Entries-page*entries)*8))
			if err := readFull(m.r, p, m.l1Offset+page*l1Page); err != nil {
				return 0, fmt.Errorf("read the L1 table: %w", err)
			}
			c.img.l1.Add(page, p)
		}
		c.l1, c.l1Index = p, page
	}
	e := binary.BigEndian.Uint64(c.l1[index%entries*8:])
	if e > uint64(c.img.m.fileSize) {
		return 0, bad("L1 entry %d: the L2 table at %d is outside of the file", index, e)
	}
	return int64(e), nil
}

// table returns the L2 table at the offset of the file.
func (img *Image) table(offset int64) ([]byte, error) {
	p, ok := img.l2.Get(offset)
	if !ok {
		p = make([]byte, img.m.tableBytes())
		if err := readFull(img.m.r, p, offset); err != nil {
			return nil, err
		}
		img.l2.Add(offset, p)
	}
	return p, nil
}

// run returns what is at off and stored alike, at most n bytes of it. Data is alike as long as it
// is in one piece in the file; compressed clusters stand alone.
func (c *cursor) run(off, n int64) (segment, error) {
	s, err := c.at(off)
	if err != nil {
		return segment{}, err
	}
	for s.length < n && s.kind != kindCompressed {
		next, err := c.at(off + s.length)
		if err != nil {
			return segment{}, err
		}
		if next.kind != s.kind || s.kind == kindPlain && next.host != s.host+s.length {
			break
		}
		s.length += next.length
	}
	s.length = min(s.length, n)
	return s, nil
}

// packedRun returns how many bytes from the compressed cluster s at off on hold the compressed
// clusters of the next n bytes of the disk that follow each other in the file, as far as a window
// goes. QEMU begins each of them at a multiple of 512.
func (c *cursor) packedRun(s segment, off, n int64) (int64, error) {
	end := s.host + s.stored
	for pos := s.length; pos < n; {
		next, err := c.at(off + pos)
		if err != nil {
			return 0, err
		}
		stop := next.host + next.stored
		if next.kind != kindCompressed || next.host < end || next.host-end >= sectorSize || stop-s.host > windowBytes {
			break
		}
		end = stop
		pos += next.length
	}
	return end - s.host, nil
}

// ReadAt implements [io.ReaderAt]: min(len(p), size-off) bytes or an error. A damaged cluster gives
// an [*Error].
func (img *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at the negative offset %d", off)
	}
	if off >= img.Size() {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), img.Size()-off)]
	r := reading{c: cursor{img: img}}
	defer r.close()
	for done := 0; done < len(want); {
		n, err := r.next(want[done:], off+int64(done))
		if err != nil {
			return done, fmt.Errorf("read at %d: %w", off+int64(done), err)
		}
		done += n
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

// reading is the state of one call of ReadAt.
type reading struct {
	c cursor
	d *decoder // nil until it is needed
}

func (r *reading) close() {
	if r.d != nil {
		r.d.release()
	}
}

// next reads a part of p from its start and returns its length.
func (r *reading) next(p []byte, off int64) (int, error) {
	s, err := r.c.run(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	part := p[:s.length]
	switch s.kind {
	case kindUnallocated:
		err = r.c.img.readParent(part, off)
	case kindPlain:
		err = r.c.img.readPlain(part, s.host)
	case kindCompressed:
		err = r.compressed(part, s, off, int64(len(p)))
	default:
		clear(part)
	}
	return len(part), err
}

// compressed reads p, the part of a compressed cluster at off; n bytes from off on are wanted in
// all.
func (r *reading) compressed(p []byte, s segment, off, n int64) error {
	if r.d == nil {
		r.d = newDecoder()
	}
	if !r.d.has(s.host, s.stored) {
		length, err := r.c.packedRun(s, off, n)
		if err != nil {
			return err
		}
		if err := r.d.load(r.c.img.m.r, s.host, length); err != nil {
			return err
		}
	}
	return r.d.decode(p, s.skip, s.host, s.stored)
}

// readPlain reads p at the offset host of the file. The cluster that the end of the file cuts has
// zeros behind it.
func (img *Image) readPlain(p []byte, host int64) error {
	inFile := max(0, min(int64(len(p)), img.m.fileSize-host))
	if err := readFull(img.m.r, p[:inFile], host); err != nil {
		return err
	}
	clear(p[inFile:])
	return nil
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
	case s.kind == kindPlain:
		e.Allocated = true
	case s.kind == kindCompressed:
		e.Allocated, e.Compressed = true, true
	case s.kind == kindBehind || img.parent == nil || off >= img.parent.Size():
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
