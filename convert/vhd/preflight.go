// SPDX-License-Identifier: Apache-2.0

package vhd

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"time"
)

// SizeRule says which of the two sizes in the footer is the disk's.
type SizeRule int

const (
	// SizeByCreator takes what the creator's own tool shows: the geometry for Virtual PC and QEMU,
	// "Current Size" for all others. Data that would be cut off makes the image refused.
	SizeByCreator SizeRule = iota
	// SizeCurrent takes "Current Size".
	SizeCurrent
	// SizeGeometry takes cylinders x heads x sectors, and cuts off what is behind.
	SizeGeometry
)

// Options says what [Preflight] accepts. The zero value accepts nothing out of the ordinary.
type Options struct {
	AllowParent    bool     // accept a differencing disk, whose parent the caller then has to give
	Size           SizeRule // which size counts
	MaxVirtualSize int64    // bytes, 0 = no limit but the format's
}

// Metadata is what an image says of itself, checked.
type Metadata struct {
	Variant     string   // [VariantFixed], [VariantDynamic] or [VariantDifferencing]
	VirtualSize int64    // bytes, a multiple of 512
	MappedBytes int64    // bytes of the disk in blocks that the file has, in whole blocks
	BlockSize   int64    // bytes, 0 for a fixed disk
	SectorSize  int      // bytes, always 512
	Compression string   // always ""
	Creator     string   // application and version, printable
	Features    []string // in the terms of the format
	Warnings    []string // what the user should know

	ID        string    // this disk's unique id, which a child states as its parent's
	Timestamp time.Time // when it was last changed, as far as its writer keeps that; zero if not stated

	// Of differencing disks. The names come from the file: they are made of printable characters
	// and have no folders, but whoever wrote the image chose them.
	ParentNames     []string  // what the parent's file may be called, the most likely one first
	ParentID        string    // the parent's ID
	ParentTimestamp time.Time // the parent's time stamp; only advisory

	r           io.ReaderAt
	fileSize    int64
	dataEnd     int64 // where the footer at the end begins, else the file's size
	currentSize int64 // bytes, as in the footer
	stored      int64 // bytes of the disk that the file maps, at most currentSize; zeros follow
	cutsTail    bool  // the geometry's size counts and is below currentSize
	footerCopy  bool  // there is one at offset 0

	// Of dynamic and differencing disks.
	headerOffset int64
	tableOffset  int64
	entries      int64 // of the block allocation table, as in the header
	bitmapBytes  int64 // of a block's sector bitmap, in whole sectors
}

// Preflight checks the image in the size bytes of r: both footers, the dynamic disk header and
// every entry of the block allocation table that the disk uses. A bad or unsupported image gives an
// [*Error]; errors of reading are returned as they are.
//
// It reads the table once (more often only if more than some million blocks are allocated) and
// keeps four bytes per allocated block while it runs, at most 32 MiB.
func Preflight(ctx context.Context, r io.ReaderAt, size int64, o Options) (*Metadata, error) {
	m := &Metadata{r: r, fileSize: size, SectorSize: sectorSize}
	f, err := m.readFooters()
	if err != nil {
		return nil, err
	}
	if err := m.takeFooter(f, o); err != nil {
		return nil, err
	}
	if m.Variant == VariantFixed {
		m.MappedBytes = m.stored
	} else {
		if err := m.readHeader(f.dataOffset); err != nil {
			return nil, err
		}
		if err := m.checkTable(ctx); err != nil {
			return nil, err
		}
	}
	if m.cutsTail && m.Variant != VariantDifferencing {
		if err := m.checkTail(ctx, nil); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// readFooters returns the footer to go by: the copy at the start of dynamic and differencing disks,
// or the one at the end.
func (m *Metadata) readFooters() (*footer, error) {
	if m.fileSize < footerBytes {
		return nil, bad("the file of %d bytes is too short for a footer of %d", m.fileSize, footerBytes)
	}
	head, tail := make([]byte, footerBytes), make([]byte, footerBytes)
	if err := readFull(m.r, head, 0); err != nil {
		return nil, fmt.Errorf("read the footer copy: %w", err)
	}
	m.footerCopy = string(head[:8]) == footerCookie
	m.dataEnd = m.fileSize
	hasTail := false
	for _, n := range []int64{footerBytes, oldFooter} {
		clear(tail)
		if err := readFull(m.r, tail[:n], m.fileSize-n); err != nil {
			return nil, fmt.Errorf("read the footer: %w", err)
		}
		if hasTail = string(tail[:8]) == footerCookie; hasTail {
			m.dataEnd = m.fileSize - n
			break
		}
	}
	if !m.footerCopy && !hasTail {
		return nil, bad("the cookie %q is neither at offset 0 nor at the end of the file", footerCookie)
	}
	var first, last *footer
	firstErr, lastErr := bad("it is missing"), bad("it is missing")
	if m.footerCopy {
		first, firstErr = parseFooter(head, 0)
	}
	if hasTail {
		last, lastErr = parseFooter(tail, m.dataEnd)
	}
	switch {
	case first != nil && first.diskType == diskFixed:
		return nil, bad("the footer at 0 says that the disk is a fixed one, which has none there")
	case last != nil && last.diskType == diskFixed && m.footerCopy:
		return nil, bad("there is a footer at 0, but the one at %d says that the disk is a fixed one", m.dataEnd)
	case first != nil && last != nil:
		if first.diskType != last.diskType || first.currentSize != last.currentSize || first.id != last.id {
			return nil, bad("the footers at 0 and at %d contradict each other: types %d and %d, sizes %d and %d, "+
				"ids %s and %s", m.dataEnd, first.diskType, last.diskType, first.currentSize, last.currentSize,
				formatID(first.id), formatID(last.id))
		}
		return first, nil
	case first != nil:
		m.warn("the footer at the end of the file is not good (%v); the copy at the start is", lastErr)
		return first, nil
	case last != nil:
		if last.diskType != diskFixed {
			m.warn("the footer copy at the start of the file is not good (%v); the one at the end is", firstErr)
		}
		return last, nil
	case !hasTail:
		return nil, firstErr
	default:
		return nil, lastErr
	}
}

// takeFooter checks the footer's fields and chooses the disk's size.
func (m *Metadata) takeFooter(f *footer, o Options) error {
	switch f.diskType {
	case diskFixed:
		m.Variant = VariantFixed
	case diskDynamic:
		m.Variant = VariantDynamic
	case diskDifferencing:
		m.Variant = VariantDifferencing
		if !o.AllowParent {
			return &Error{
				Reason: "it is a differencing disk, and parents are not read unless allowed",
				Remedy: "allow parents if you trust the image, or merge it into its parent where it was made",
			}
		}
	default:
		return bad("disk type %d at offset 60 of the footer is not 2 (fixed), 3 (dynamic) or 4 (differencing)",
			f.diskType)
	}
	if err := m.chooseSize(f, o); err != nil {
		return err
	}
	if m.Variant == VariantFixed {
		if m.currentSize > m.dataEnd {
			return bad("Current Size %d at offset 48 of the footer is more than the %d bytes before it; "+
				"the image is truncated", m.currentSize, m.dataEnd)
		}
		if f.dataOffset != noOffset {
			m.warn("Data Offset %#x of a fixed disk is ignored", f.dataOffset)
		}
	}
	m.Creator = f.creatorName()
	m.ID, m.Timestamp = formatID(f.id), timeOf(f.timestamp)
	if f.temporary {
		m.Features = append(m.Features, "temporary")
	}
	if f.savedState {
		m.Features = append(m.Features, "saved state")
		m.warn("a virtual machine was suspended on it; what that had in memory is not on the disk")
	}
	return nil
}

func (m *Metadata) chooseSize(f *footer, o Options) error {
	if f.currentSize == 0 || f.currentSize%sectorSize != 0 || f.currentSize > 1<<62 {
		return bad("Current Size %d at offset 48 of the footer is not a positive multiple of %d",
			f.currentSize, sectorSize)
	}
	m.currentSize = int64(f.currentSize)
	m.VirtualSize = m.currentSize
	chs := f.chsSize()
	byGeometry := o.Size == SizeGeometry || o.Size == SizeByCreator && f.geometryCounts()
	if byGeometry {
		if m.VirtualSize = chs; chs == 0 {
			return bad("the geometry at offset 56 of the footer (%d cylinders, %d heads, %d sectors) has no sectors",
				f.cylinders, f.heads, f.sectors)
		}
	}
	if m.Variant != VariantFixed && max(m.VirtualSize, m.currentSize) > maxDynamicSize {
		return bad("virtual size %d in the footer is above the format's limit of %d bytes",
			max(m.VirtualSize, m.currentSize), int64(maxDynamicSize))
	}
	if o.MaxVirtualSize > 0 && m.VirtualSize > o.MaxVirtualSize {
		return bad("virtual size %d in the footer is above the limit of %d bytes", m.VirtualSize, o.MaxVirtualSize)
	}
	m.stored = min(m.currentSize, m.VirtualSize)
	m.cutsTail = o.Size == SizeByCreator && m.VirtualSize < m.currentSize
	// A geometry seldom hits a size, so less than a cylinder is not worth telling.
	cylinder := int64(f.heads) * int64(f.sectors) * sectorSize
	switch {
	case byGeometry && chs != m.currentSize:
		m.warn("its size is %d bytes by geometry, which counts, and %d by Current Size", chs, m.currentSize)
	case !byGeometry && chs != 0 && chs != maxGeometry*sectorSize &&
		(chs > m.currentSize || m.currentSize-chs >= cylinder):
		m.warn("its size is %d bytes by Current Size, which counts, and %d by geometry", m.currentSize, chs)
	}
	return nil
}

// readHeader checks the "Dynamic Disk Header" and where the tables are.
func (m *Metadata) readHeader(offset uint64) error {
	if m.fileSize < 3*sectorSize+footerBytes {
		return bad("the file of %d bytes is too short for a dynamic disk", m.fileSize)
	}
	if offset < footerBytes || offset%sectorSize != 0 || offset > uint64(m.dataEnd) ||
		m.dataEnd-int64(offset) < headerBytes {
		return bad("Data Offset %d at offset 16 of the footer is not the place of a header between the footers "+
			"in a file of %d bytes", offset, m.fileSize)
	}
	m.headerOffset = int64(offset)
	h := make([]byte, headerBytes)
	if err := readFull(m.r, h, m.headerOffset); err != nil {
		return fmt.Errorf("read the dynamic disk header: %w", err)
	}
	be := binary.BigEndian
	if string(h[:8]) != headerCookie {
		return bad("the cookie %q of the dynamic disk header at %d is missing", headerCookie, m.headerOffset)
	}
	if want, got := checksum(h, 36), be.Uint32(h[36:]); want != got {
		return bad("the checksum %#08x of the dynamic disk header at %d should be %#08x", got, m.headerOffset, want)
	}
	if v := be.Uint32(h[24:]); v>>16 != version1>>16 {
		return bad("version %#08x of the dynamic disk header at %d is not 1", v, m.headerOffset)
	}
	block := int64(be.Uint32(h[32:]))
	if block < minBlockSize || block > maxBlockSize || block&(block-1) != 0 {
		return bad("Block Size %d at offset 32 of the dynamic disk header is not a power of two between %d and %d",
			block, minBlockSize, maxBlockSize)
	}
	m.BlockSize = block
	m.bitmapBytes = roundUp(block/sectorSize/8, sectorSize)

	m.entries = int64(be.Uint32(h[28:]))
	table := be.Uint64(h[16:])
	switch {
	case table%sectorSize != 0 || table < footerBytes || table > uint64(m.dataEnd):
		return bad("Table Offset %d at offset 16 of the dynamic disk header is not the place of a table between "+
			"the footers in a file of %d bytes", table, m.fileSize)
	case m.entries*4 > m.dataEnd-int64(table):
		return bad("Max Table Entries %d at offset 28 of the dynamic disk header do not fit between the table's "+
			"start %d and %d; the image is truncated or damaged", m.entries, table, m.dataEnd)
	case m.entries > maxDynamicSize/block:
		return bad("Max Table Entries %d at offset 28 of the dynamic disk header are more than a disk of %d bytes has",
			m.entries, int64(maxDynamicSize))
	case m.entries < m.blocks():
		return bad("Max Table Entries %d at offset 28 of the dynamic disk header are too few: the disk has %d blocks",
			m.entries, m.blocks())
	}
	m.tableOffset = int64(table)
	if overlap(m.tableOffset, m.tableBytes(), m.headerOffset, headerBytes) {
		return bad("the block allocation table of %d bytes at %d overlaps the dynamic disk header at %d",
			m.tableBytes(), m.tableOffset, m.headerOffset)
	}
	if m.Variant == VariantDifferencing {
		m.ParentID, m.ParentTimestamp = formatID([16]byte(h[40:56])), timeOf(be.Uint32(h[56:]))
		return m.readParentNames(h)
	}
	return nil
}

// blocks is the number of blocks that a disk of currentSize has. All of them are checked, also
// those that the geometry cuts off.
func (m *Metadata) blocks() int64 { return (m.currentSize-1)/m.BlockSize + 1 }

// tableBytes is the length of the block allocation table in the file.
func (m *Metadata) tableBytes() int64 { return m.entries * 4 }

// blockBytes is what a block takes in the file: its sector bitmap and its data.
func (m *Metadata) blockBytes() int64 { return m.bitmapBytes + m.BlockSize }

func overlap(a, aLength, b, bLength int64) bool { return a < b+bLength && b < a+aLength }

// tablePage is how many bytes of a table are read at a time.
const tablePage = 64 << 10

// maxSorted is how many entries of the block allocation table are sorted at a time.
const maxSorted = 8 << 20

// checkTable checks that every block that the disk uses lies within the file, over no other
// structure and over no other block.
func (m *Metadata) checkTable(ctx context.Context) error {
	var sorted []uint32
	n := int64(0)
	room := m.fileSize / m.blockBytes()
	err := m.walkTable(ctx, func(b int64, e uint32) error {
		start := int64(e) * sectorSize
		if start > m.dataEnd || m.blockBytes() > m.dataEnd-start {
			return bad("entry %d of the block allocation table: the block of %d bytes at %d ends behind %d; the image "+
				"is truncated or damaged", b, m.blockBytes(), start, m.dataEnd)
		}
		for _, s := range []struct {
			what           string
			offset, length int64
		}{
			{"footer copy", 0, footerBytes},
			{"dynamic disk header", m.headerOffset, headerBytes},
			{"block allocation table", m.tableOffset, m.tableBytes()},
		} {
			if overlap(start, m.blockBytes(), s.offset, s.length) {
				return bad("entry %d of the block allocation table: the block at %d overlaps the %s at %d",
					b, start, s.what, s.offset)
			}
		}
		if n++; n > room {
			return bad("the block allocation table has more than %d blocks of %d bytes in a file of %d bytes, so some "+
				"share their data", room, m.blockBytes(), m.fileSize)
		}
		m.MappedBytes += max(0, min(m.BlockSize, m.stored-b*m.BlockSize))
		if n <= maxSorted {
			sorted = append(sorted, e)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if n <= maxSorted {
		return m.checkDistinct(sorted, -1)
	}
	return m.checkManyDistinct(ctx, sorted)
}

// checkDistinct checks that the blocks that begin at the given sectors do not overlap each other or
// the one at the sector before, if that is not negative.
func (m *Metadata) checkDistinct(sectors []uint32, before int64) error {
	slices.Sort(sectors)
	for _, s := range sectors {
		if before >= 0 && (int64(s)-before)*sectorSize < m.blockBytes() {
			return bad("two entries of the block allocation table name blocks that overlap, at %d and %d",
				before*sectorSize, int64(s)*sectorSize)
		}
		before = int64(s)
	}
	return nil
}

// checkManyDistinct is checkDistinct for more entries than are sorted at a time: it takes those of
// one range of the file after the other.
func (m *Metadata) checkManyDistinct(ctx context.Context, buf []uint32) error {
	before := int64(-1)
	step := int64(cap(buf)-1) * (m.blockBytes() / sectorSize)
	for first := int64(0); first*sectorSize < m.fileSize; first += step {
		part := buf[:0]
		err := m.walkTable(ctx, func(_ int64, e uint32) error {
			if int64(e) < first || int64(e) >= first+step {
				return nil
			}
			if len(part) == cap(part) {
				return bad("the block allocation table has overlapping blocks between %d and %d",
					first*sectorSize, (first+step)*sectorSize)
			}
			part = append(part, e)
			return nil
		})
		if err == nil {
			err = m.checkDistinct(part, before)
		}
		if err != nil {
			return err
		}
		if len(part) > 0 {
			before = int64(part[len(part)-1])
		}
	}
	return nil
}

// walkTable calls fn for every block of the disk that is allocated.
func (m *Metadata) walkTable(ctx context.Context, fn func(block int64, entry uint32) error) error {
	used := m.blocks() * 4
	page := make([]byte, min(tablePage, used))
	for pos := int64(0); pos < used; pos += int64(len(page)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		page = page[:min(int64(len(page)), used-pos)]
		if err := readFull(m.r, page, m.tableOffset+pos); err != nil {
			return fmt.Errorf("read the block allocation table: %w", err)
		}
		for i := 0; i < len(page); i += 4 {
			e := binary.BigEndian.Uint32(page[i:])
			if e == unallocated {
				continue
			}
			if err := fn((pos+int64(i))/4, e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *Metadata) warn(format string, args ...any) {
	m.Warnings = append(m.Warnings, fmt.Sprintf(format, args...))
}
