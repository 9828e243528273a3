// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/lru"
)

// Image is an open QCOW2 disk. It implements image.Image; ReadAt and Extent are safe for concurrent
// use. Its memory is a cache of tables of fixed size and, for each goroutine that reads compressed
// clusters, a decoder.
type Image struct {
	m      *Metadata
	view   *view
	data   io.ReaderAt // what plain clusters are in: view, or the external data file
	parent image.Image // what is not allocated here, nil = zeros

	holes extenter // of the external data file, nil = none are known

	l1 *lru.Cache[int64, []byte] // pages of the L1 table by index
	l2 *lru.Cache[int64, []byte] // pages of L2 tables by host offset
}

var _ image.Image = (*Image)(nil)

// extenter is a file that knows its holes, in the manner of an image.Image.
type extenter interface {
	Extent(start, length int64) (image.Extent, error)
}

// Table pages kept in memory: 256 KiB of the L1 table, and 1 MiB of L2 tables, which map 8 GiB with
// clusters of 64 KiB.
const (
	l1Pages      = 4
	l2CacheBytes = 1 << 20
)

// Open returns a reader of the checked image. The parent gives what is not allocated in it; it must
// be given if and only if the image has a backing file. It may be shorter than the image, and then
// reads as zeros behind its end, or longer. Open takes over neither the file nor the parent.
func (m *Metadata) Open(parent image.Image) (*Image, error) {
	if (parent != nil) != (m.BackingFile != "") {
		return nil, fmt.Errorf("backing file %q, but parent given: %t", m.BackingFile, parent != nil)
	}
	img := &Image{
		m:      m,
		parent: parent,
		view:   &view{r: m.r, header: m.maskedHeader(), clusterBits: m.clusterBits, size: m.fileSize},
		l1:     lru.New[int64, []byte](l1Pages),
		l2:     lru.New[int64, []byte](int(l2CacheBytes / m.pageBytes())),
	}
	if img.data = img.view; m.data != nil {
		img.data = m.data
		img.holes, _ = m.data.(extenter)
	}
	return img, nil
}

// maskedHeader returns a header with only what a reader of the active disk needs.
func (m *Metadata) maskedHeader() []byte {
	be := binary.BigEndian
	h := make([]byte, 112)
	copy(h, magic)
	be.PutUint32(h[4:], uint32(m.Version))
	be.PutUint32(h[20:], uint32(m.clusterBits))
	be.PutUint64(h[24:], uint64(m.size))
	be.PutUint32(h[36:], uint32(m.l1Used))
	be.PutUint64(h[40:], uint64(m.l1Offset))
	if m.Version < 3 {
		return h[:72]
	}
	be.PutUint64(h[72:], m.incompatible&(incompatCompression|incompatExtendedL2))
	be.PutUint32(h[96:], 4)
	be.PutUint32(h[100:], uint32(len(h)))
	h[104] = m.compression
	return h
}

// Size returns the virtual size in bytes, a multiple of 512.
func (img *Image) Size() int64 { return img.m.VirtualSize }

// Type returns the format's name.
func (img *Image) Type() image.Type { return Type }

// Readable returns nil.
func (img *Image) Readable() error { return nil }

// Close does nothing: the file and the parent are the caller's.
func (img *Image) Close() error { return nil }

// ReadAt implements [io.ReaderAt]: min(len(p), size-off) bytes or an error. A damaged cluster
// gives an [*Error].
func (img *Image) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read at the negative offset %d", off)
	}
	if off >= img.Size() {
		return 0, io.EOF
	}
	// The tables can be changed by others after they were checked. Nothing here relies on them for its
	// safety; should a decoder do, that is a damaged image and not the end of the process.
	defer func() {
		if r := recover(); r != nil {
			n, err = 0, bad("reading at %d failed: %v", off, r)
		}
	}()
	want := p[:min(int64(len(p)), img.Size()-off)]
	// Rounding up the size added zeros, whatever the last cluster holds there.
	stored := want[:max(0, min(int64(len(want)), img.m.size-off))]
	if len(stored) > 0 {
		n, err = img.read(stored, off)
		if n < len(stored) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	clear(want[len(stored):])
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

// read reads p, which lies within the disk. What lies in one piece in the file is read in one piece.
func (img *Image) read(p []byte, off int64) (int, error) {
	c := cursor{img: img}
	for done := 0; done < len(p); {
		at := off + int64(done)
		s, err := c.run(at, int64(len(p)-done))
		if err != nil {
			return done, err
		}
		part := p[done : done+int(min(s.length, int64(len(p)-done)))]
		switch s.kind {
		case kindUnallocated:
			err = img.readParent(part, at)
		case kindZero:
			clear(part)
		case kindPlain:
			err = readFull(img.data, part, s.host)
		case kindCompressed:
			err = img.readCompressed(part, at&(img.m.ClusterSize-1), s)
		}
		if err != nil {
			return done, fmt.Errorf("read at %d: %w", at, err)
		}
		done += len(part)
	}
	return len(p), nil
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
	zero := false // the data file has a hole here
	if off >= img.m.size {
		// The disk's size was rounded up.
		return image.Extent{Start: off, Length: end - off, Zero: true}, nil
	}
	if img.holes != nil && off < img.m.dataSize {
		hole, err := img.holes.Extent(off, min(end, img.m.dataSize)-off)
		if err != nil {
			return image.Extent{}, fmt.Errorf("external data file: %w", err)
		}
		if hole.Start != off || hole.Length <= 0 {
			return image.Extent{}, fmt.Errorf("external data file: asked for the extent at %d, got %d bytes at %d",
				off, hole.Length, hole.Start)
		}
		end = min(end, off+hole.Length)
		zero = hole.Zero
	}
	s, err := c.run(off, end-off)
	if err != nil {
		return image.Extent{}, err
	}
	e := image.Extent{Start: off, Length: min(s.length, end-off, img.m.size-off)}
	switch s.kind {
	case kindZero:
		e.Allocated, e.Zero = true, true
	case kindPlain:
		e.Allocated, e.Zero = true, zero
	case kindCompressed:
		e.Allocated, e.Compressed = true, true
	case kindUnallocated:
		if img.parent == nil || off >= img.parent.Size() {
			e.Zero = true
			break
		}
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
