// SPDX-License-Identifier: Apache-2.0

package vmdk

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/lru"
)

// Image is an open VMDK disk. It implements image.Image; ReadAt and Extent are safe for
// concurrent use. Its memory is a cache of pages of tables of fixed size, the index of a stream
// without a grain directory, and, for each goroutine that reads compressed grains, a decoder.
type Image struct {
	m      *Metadata
	parent image.Image // what is not allocated here, nil = zeros
	pages  *lru.Cache[pageKey, []byte]
}

var _ image.Image = (*Image)(nil)

// pageKey is a page of a part's file.
type pageKey struct {
	part  int
	index int64
}

// Table pages kept in memory: 2 MiB, which map 32 GiB of grains of 64 KiB. Pages are small, since
// the tables of a stream lie far from each other.
const (
	tablePage  = 4 << 10
	tablePages = 512
)

// TableBytes returns how many bytes of mapping tables a reader keeps in memory at most.
func (m *Metadata) TableBytes() int64 {
	var index, tables int64
	for _, p := range m.parts {
		if s := p.sparse; s != nil {
			index += int64(len(s.index)) * 8
			if !s.indexed {
				tables += s.directoryEntries() * s.entryBytes
				tables += min(s.directoryEntries()*s.tableBytes(), s.size)
			}
		}
	}
	return index + min(roundUp(tables, tablePage), tablePage*tablePages)
}

// Open returns a reader of the checked disk. The parent gives what is not allocated in it; it
// must be given if and only if ParentID is set, and be the disk with that ID, which is for the
// caller to check. It may be shorter than the disk, and then reads as zeros behind its end, or
// longer. Open takes over neither the files nor the parent.
func (m *Metadata) Open(parent image.Image) (image.Image, error) {
	switch {
	case parent == nil && m.ParentID != "":
		return nil, fmt.Errorf("the disk needs its parent with the content identifier %s", m.ParentID)
	case parent != nil && m.ParentID == "":
		return nil, errors.New("the disk has no parent, but one is given")
	}
	return &Image{m: m, parent: parent, pages: lru.New[pageKey, []byte](tablePages)}, nil
}

// Size returns the virtual size in bytes, a multiple of 512.
func (img *Image) Size() int64 { return img.m.VirtualSize }

// Type returns the format's name.
func (img *Image) Type() image.Type { return Type }

// Readable returns nil.
func (img *Image) Readable() error { return nil }

// Close does nothing: the files and the parent are the caller's.
func (img *Image) Close() error { return nil }

// segment is a range of the disk from an offset on.
type segment struct {
	kind   kind
	length int64 // bytes, never 0
	host   int64 // kindPlain: where the byte is in the file; kindCompressed: where the grain begins
	grain  int64 // kindCompressed: number in its extent
	skip   int64 // kindCompressed: position in the grain
	part   *part
}

// cursor translates offsets of the disk. It remembers the part and the pages that it used last,
// so that going on costs no look-up. It is used by one goroutine.
type cursor struct {
	img    *Image
	kinds  bool // segments are of interest for their kind only, and may be in several pieces
	part   int  // -1 at first
	recent [2]struct {
		key  pageKey
		data []byte
	}
}

func (img *Image) cursor(kinds bool) *cursor { return &cursor{img: img, kinds: kinds, part: -1} }

// at returns the segment at off, which must lie within the disk. It ends with what is stored
// differently, with the part, or about where the page of the table ends, and need not be longer than
// want bytes.
func (c *cursor) at(off, want int64) (segment, error) {
	parts := c.img.m.parts
	if c.part < 0 || off < parts[c.part].start || off-parts[c.part].start >= parts[c.part].length {
		i, found := slices.BinarySearchFunc(parts, off, func(p part, off int64) int {
			return int(max(-1, min(1, p.start-off)))
		})
		if !found {
			i--
		}
		c.part = i
	}
	p := &parts[c.part]
	within := off - p.start
	var seg segment
	var err error
	switch {
	case p.flat != nil:
		seg = segment{kind: kindPlain, length: p.length - within, host: p.offset + within}
	case p.sparse == nil:
		seg = segment{kind: kindZero, length: p.length - within}
	case p.sparse.indexed:
		seg = p.sparse.lookUp(within)
	default:
		seg, err = c.translate(p.sparse, within, want)
	}
	seg.part = p
	seg.length = min(seg.length, p.length-within)
	return seg, err
}

// lookUp returns the segment at off of an extent that has an index.
func (s *sparse) lookUp(off int64) segment {
	number := off / s.grain
	i := s.find(number)
	switch {
	case i == len(s.index):
		return segment{length: math.MaxInt64}
	case int64(s.index[i]>>32) > number:
		return segment{length: int64(s.index[i]>>32)*s.grain - off}
	}
	return segment{kind: kindCompressed, length: s.grain - off%s.grain, host: int64(uint32(s.index[i])) * sectorSize,
		grain: number, skip: off % s.grain}
}

// translate returns the segment at off of an extent by its tables.
func (c *cursor) translate(s *sparse, off, want int64) (segment, error) {
	cover := s.cover()
	index := off / cover
	p, err := c.page(0, s, s.directory+index*s.entryBytes)
	if err != nil {
		return segment{}, fmt.Errorf("read the grain directory: %w", err)
	}
	table, err := s.table(s.entry(p, 0), index)
	if err != nil {
		return segment{}, err
	}
	if table == 0 {
		// There may be millions of these in a row.
		n := int64(1)
		for most := min(int64(len(p))/s.entryBytes, s.directoryEntries()-index); n < most && s.entry(p, n) == 0; {
			n++
		}
		return segment{length: n*cover - off%cover}, nil
	}
	number := off / s.grain
	pos := table + number%s.tableSize*s.entryBytes
	if p, err = c.page(1, s, pos); err != nil {
		return segment{}, fmt.Errorf("read a grain table: %w", err)
	}
	kind, host, err := s.grainAt(s.entry(p, 0), pos)
	if err != nil {
		return segment{}, err
	}
	seg := segment{kind: kind, length: s.grain - off%s.grain}
	switch kind {
	case kindPlain:
		seg.host = host + off%s.grain
	case kindCompressed:
		seg.host, seg.grain, seg.skip = host, number, off%s.grain
	}
	most := min(int64(len(p))/s.entryBytes, s.tableSize-number%s.tableSize)
	for n := int64(1); n < most && seg.length < want; n++ {
		next, nextHost, err := s.grainAt(s.entry(p, n), pos+n*s.entryBytes)
		if err != nil || next != kind {
			break // the error is met again when its grain is asked for
		}
		if !c.kinds && (kind == kindCompressed || kind == kindPlain && nextHost != host+n*s.grain) {
			break
		}
		seg.length += s.grain
	}
	return seg, nil
}

// page returns the file's bytes from pos to the end of the page, which is the same for entries
// close by. pos is a multiple of an entry's length, so no entry is in two pages.
func (c *cursor) page(level int, s *sparse, pos int64) ([]byte, error) {
	key := pageKey{c.part, pos / tablePage}
	r := &c.recent[level]
	if r.data == nil || r.key != key {
		data, ok := c.img.pages.Get(key)
		if !ok {
			data = make([]byte, min(tablePage, s.size-key.index*tablePage))
			if err := s.readFull(data, key.index*tablePage); err != nil {
				return nil, err
			}
			c.img.pages.Add(key, data)
		}
		r.key, r.data = key, data
	}
	return r.data[pos%tablePage:], nil
}

// run returns what is at off and can be read at once, at most n bytes of it.
func (c *cursor) run(off, n int64) (segment, error) {
	s, err := c.at(off, n)
	if err != nil {
		return segment{}, err
	}
	for s.length < n && s.kind != kindCompressed {
		next, err := c.at(off+s.length, n-s.length)
		if err != nil {
			return segment{}, err
		}
		if next.kind != s.kind || s.kind == kindPlain && (next.part != s.part || next.host != s.host+s.length) {
			break
		}
		s.length += next.length
	}
	s.length = min(s.length, n)
	return s, nil
}

// ReadAt implements [io.ReaderAt]: min(len(p), size-off) bytes or an error. A damaged grain gives
// an [*Error].
func (img *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at the negative offset %d", off)
	}
	if off >= img.Size() {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), img.Size()-off)]
	c := img.cursor(false)
	for done := 0; done < len(want); {
		at := off + int64(done)
		s, err := c.run(at, int64(len(want)-done))
		if err == nil {
			err = img.read(want[done:done+int(s.length)], at, s)
		}
		if err != nil {
			return done, fmt.Errorf("read at %d: %w", at, img.m.blame(c.part, err))
		}
		done += int(s.length)
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

// blame says which of several files an error is about.
func (m *Metadata) blame(part int, err error) error {
	if part < 0 || m.Extents[part].Name == "" {
		return err
	}
	return fmt.Errorf("extent %d, %q: %w", part+1, m.Extents[part].Name, err)
}

func (img *Image) read(p []byte, off int64, s segment) error {
	switch s.kind {
	case kindUnallocated:
		return img.readParent(p, off)
	case kindZero:
		clear(p)
		return nil
	case kindCompressed:
		return s.part.sparse.readGrain(p, s.host, s.grain, s.skip)
	}
	f := s.part.flat
	if f == nil {
		f = &s.part.sparse.file
	}
	// The file may end inside of its last grain.
	inFile := max(0, min(int64(len(p)), f.size-s.host))
	if err := f.readFull(p[:inFile], s.host); err != nil {
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
				return fmt.Errorf("parent: %w", err)
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
	run := image.Extent{Start: start}
	c := img.cursor(true)
	for off, end := start, start+length; off < end; off = run.Start + run.Length {
		e, err := img.next(c, off, end)
		if err != nil {
			return image.Extent{}, fmt.Errorf("extent at %d: %w", off, img.m.blame(c.part, err))
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
	s, err := c.at(off, end-off)
	if err != nil {
		return image.Extent{}, err
	}
	e := image.Extent{Start: off, Length: min(s.length, end-off)}
	switch s.kind {
	case kindZero:
		e.Zero, e.Allocated = true, s.part.sparse != nil
	case kindPlain:
		e.Allocated = true
		if s.part.flat != nil {
			return flatExtent(s, e)
		}
	case kindCompressed:
		e.Allocated, e.Compressed = true, true
	case kindUnallocated:
		if img.parent == nil || off >= img.parent.Size() {
			e.Zero = true
			break
		}
		p, err := img.parent.Extent(off, min(e.Length, img.parent.Size()-off))
		if err != nil {
			return image.Extent{}, fmt.Errorf("parent: %w", err)
		}
		if err := checkExtent(p, off, e.Length); err != nil {
			return image.Extent{}, fmt.Errorf("parent: %w", err)
		}
		e = p
	}
	return e, nil
}

// flatExtent returns the hole or the data at e, if the file tells its holes.
func flatExtent(s segment, e image.Extent) (image.Extent, error) {
	f, ok := s.part.flat.r.(interface {
		Extent(start, length int64) (image.Extent, error)
	})
	if !ok {
		return e, nil
	}
	h, err := f.Extent(s.host, e.Length)
	if err != nil {
		return image.Extent{}, err
	}
	if err := checkExtent(h, s.host, e.Length); err != nil {
		return image.Extent{}, err
	}
	h.Start = e.Start
	return h, nil
}

// checkExtent checks the answer to the question for the extent at start.
func checkExtent(e image.Extent, start, length int64) error {
	if e.Start != start || e.Length <= 0 || e.Length > length {
		return fmt.Errorf("asked for the extent at %d, got %d bytes at %d", start, e.Length, e.Start)
	}
	return nil
}
