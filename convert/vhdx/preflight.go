// SPDX-License-Identifier: Apache-2.0

package vhdx

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
)

// Options says what [Preflight] accepts. The zero value accepts nothing out of the ordinary.
type Options struct {
	AllowParent    bool  // accept a differencing disk, whose parent the caller then has to give
	MaxVirtualSize int64 // bytes, 0 = no limit but the format's
}

// Metadata is what an image says of itself, checked.
type Metadata struct {
	Variant     string   // [VariantFixed], [VariantDynamic] or [VariantDifferencing]
	VirtualSize int64    // bytes, a multiple of SectorSize
	MappedBytes int64    // bytes of the disk in blocks that the file has data for, in whole blocks
	BlockSize   int64    // bytes
	SectorSize  int      // bytes of a logical sector, 512 or 4096
	Compression string   // always ""
	Creator     string   // as stored, printable, "" if not stated
	Features    []string // in the terms of the format
	Warnings    []string // what the user should know

	// ID identifies what the disk holds: the data write GUID, which a child states as its parent's.
	ID string

	// Of differencing disks. The names come from the file: they are made of printable characters
	// and have no folders, but whoever wrote the image chose them.
	ParentNames []string // what the parent's file may be called, the most likely one first
	ParentID    string   // the parent's ID
	ParentID2   string   // another ID that the parent may have instead, "" if none

	file      io.ReaderAt // with the log applied
	fileSize  int64       // likewise
	regions   []extent    // what else than blocks is in the file, sorted
	batOffset int64
	batBytes  int64 // length of the region
	metadata  extent
}

// extent is a named range of the file.
type extent struct {
	what           string
	offset, length int64
}

// header is what counts of the current header ("Headers").
type header struct {
	sequence   uint64
	dataWrite  guid
	logGUID    guid
	logVersion uint16
	logLength  int64
	logOffset  int64
}

// Preflight checks the image in the size bytes of r: the headers, the log, the region table, the
// metadata and every entry of the block allocation table. A bad or unsupported image gives an
// [*Error]; errors of reading are returned as they are.
//
// It reads each of them once, so it takes time by what the file really holds. While it runs it
// keeps one bit per MB of the file, and for an image with a used log some hundred bytes per update.
func Preflight(ctx context.Context, r io.ReaderAt, size int64, o Options) (*Metadata, error) {
	m := &Metadata{file: r, fileSize: size}
	if size < headerSection {
		return nil, bad("the file of %d bytes is too short for the header section of %d", size, headerSection)
	}
	if size > maxFileSize {
		return nil, bad("the file of %d bytes is above the limit of %d", size, int64(maxFileSize))
	}
	if err := m.readIdentifier(); err != nil {
		return nil, err
	}
	h, err := m.readHeaders()
	if err != nil {
		return nil, err
	}
	if err := m.readLog(ctx, h); err != nil {
		return nil, err
	}
	if err := m.readRegions(); err != nil {
		return nil, err
	}
	if err := m.readMetadata(o); err != nil {
		return nil, err
	}
	if err := m.checkBAT(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// readIdentifier checks the "File Type Identifier".
func (m *Metadata) readIdentifier() error {
	p := make([]byte, 8+512)
	if err := readFull(m.file, p, 0); err != nil {
		return fmt.Errorf("read the file identifier: %w", err)
	}
	if string(p[:8]) != fileSignature {
		return bad("the signature %q at offset 0 is missing", fileSignature)
	}
	m.Creator = strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, decodeUTF16(p[8:])))
	return nil
}

// readHeaders returns the current one of the two headers.
func (m *Metadata) readHeaders() (*header, error) {
	var raw [2][]byte
	var valid [2]*header
	le := binary.LittleEndian
	for i, offset := range headerOffsets {
		p := make([]byte, headerBytes)
		if err := readFull(m.file, p, offset); err != nil {
			return nil, fmt.Errorf("read header %d: %w", i+1, err)
		}
		raw[i] = p
		if string(p[:4]) == "head" && checksum(p) == le.Uint32(p[4:]) && le.Uint16(p[66:]) == 1 {
			valid[i] = &header{
				sequence:   le.Uint64(p[8:]),
				dataWrite:  guid(p[32:48]),
				logGUID:    guid(p[48:64]),
				logVersion: le.Uint16(p[64:]),
				logLength:  int64(le.Uint32(p[68:])),
				logOffset:  int64(le.Uint64(p[72:])),
			}
		}
	}
	a, b := valid[0], valid[1]
	switch {
	case a == nil && b == nil:
		return nil, bad("neither the header at %d nor that at %d is good: signature, CRC-32C or version is wrong",
			headerOffsets[0], headerOffsets[1])
	case b == nil:
		return a, nil
	case a == nil:
		return b, nil
	case a.sequence == b.sequence && !bytes.Equal(raw[0][8:80], raw[1][8:80]):
		// Equal ones say the same, and disk2vhd writes such.
		return nil, bad("the headers at %d and %d differ but have the same sequence number %d",
			headerOffsets[0], headerOffsets[1], a.sequence)
	case a.sequence >= b.sequence:
		return a, nil
	default:
		return b, nil
	}
}

// readLog checks the log and, if it is in use, applies it.
func (m *Metadata) readLog(ctx context.Context, h *header) error {
	m.ID = h.dataWrite.String()
	used := h.logGUID != guid{}
	if h.logLength == 0 && !used {
		return nil
	}
	switch {
	case h.logLength == 0 || h.logLength%mib != 0 || used && h.logLength > maxLogBytes:
		return bad("log length %d is not a multiple of 1 MB between 1 MB and %d MB", h.logLength, maxLogBytes/mib)
	case h.logOffset%mib != 0 || h.logOffset < headerSection || h.logOffset > m.fileSize ||
		h.logLength > m.fileSize-h.logOffset:
		return bad("the log of %d bytes at %d is not of whole MB behind the headers in a file of %d bytes",
			h.logLength, uint64(h.logOffset), m.fileSize)
	}
	m.regions = append(m.regions, extent{"log", h.logOffset, h.logLength})
	if !used {
		return nil
	}
	if h.logVersion != 0 {
		return bad("log version %d is not 0", h.logVersion)
	}
	v, entries, err := replay(ctx, m.file, m.fileSize, h)
	if err != nil {
		return err
	}
	if v.size > maxFileSize {
		return bad("its log makes the file grow to %d bytes, above the limit of %d", v.size, int64(maxFileSize))
	}
	m.file, m.fileSize = v, v.size
	m.Features = append(m.Features, "log")
	m.warn("it was not closed cleanly; its log (entries: %d) is applied while reading", entries)
	return nil
}

// readRegions checks the "Region Table" and finds the two regions that there must be.
func (m *Metadata) readRegions() error {
	le := binary.LittleEndian
	p := make([]byte, regionBytes)
	good := false
	for i, offset := range regionOffsets {
		if err := readFull(m.file, p, offset); err != nil {
			return fmt.Errorf("read region table %d: %w", i+1, err)
		}
		if good = string(p[:4]) == "regi" && checksum(p) == le.Uint32(p[4:]); good {
			if i > 0 {
				m.warn("the region table at %d is not good; its copy at %d is", regionOffsets[0], offset)
			}
			break
		}
	}
	if !good {
		return bad("neither the region table at %d nor that at %d is good: signature or CRC-32C is wrong",
			regionOffsets[0], regionOffsets[1])
	}
	count := le.Uint32(p[8:])
	if count > maxEntries {
		return bad("the region table has %d entries, more than %d", count, maxEntries)
	}
	seen := make(map[guid]bool, count)
	for i := range int(count) {
		e := p[16+32*i:][:32]
		id, offset, length := guid(e[:16]), le.Uint64(e[16:]), int64(le.Uint32(e[24:]))
		if seen[id] {
			return bad("the region table has the region %s twice", id)
		}
		seen[id] = true
		if offset%mib != 0 || offset < headerSection || length == 0 || length%mib != 0 ||
			offset > uint64(m.fileSize) || length > m.fileSize-int64(offset) {
			return bad("region %s of %d bytes at %d is not of whole MB behind the headers in a file of %d bytes",
				id, length, offset, m.fileSize)
		}
		region := extent{"region " + id.String(), int64(offset), length}
		switch id.String() {
		case guidBAT:
			region.what = "block allocation table"
			m.batOffset, m.batBytes = region.offset, region.length
		case guidMetadata:
			region.what = "metadata region"
			m.metadata = region
		default:
			if le.Uint32(e[28:])&1 != 0 {
				return bad("it needs the unknown region %s", id)
			}
		}
		m.regions = append(m.regions, region)
	}
	if m.batBytes == 0 || m.metadata.length == 0 {
		return bad("the region table lacks the block allocation table or the metadata region")
	}
	slices.SortFunc(m.regions, func(a, b extent) int {
		if a.offset < b.offset {
			return -1
		}
		return 1
	})
	for i := 1; i < len(m.regions); i++ {
		a, b := m.regions[i-1], m.regions[i]
		if b.offset < a.offset+a.length {
			return bad("the %s at %d overlaps the %s at %d", b.what, b.offset, a.what, a.offset)
		}
	}
	return nil
}

// item is an entry of the "Metadata Table".
type item struct {
	id             guid
	offset, length int64 // from the region's start; 0, 0 = empty
	user           bool
}

// readItems checks the metadata table and returns the items of the system by GUID.
func (m *Metadata) readItems() (map[string]item, error) {
	le := binary.LittleEndian
	p := make([]byte, 64*kib)
	if err := readFull(m.file, p, m.metadata.offset); err != nil {
		return nil, fmt.Errorf("read the metadata table: %w", err)
	}
	if string(p[:8]) != "metadata" {
		return nil, bad("the signature \"metadata\" at %d is missing", m.metadata.offset)
	}
	count := le.Uint16(p[10:])
	if count > maxEntries {
		return nil, bad("the metadata table has %d entries, more than %d", count, maxEntries)
	}
	known := map[string]item{}
	var all []item
	for i := range int(count) {
		e := p[32+32*i:][:32]
		flags := le.Uint32(e[24:])
		it := item{guid(e[:16]), int64(le.Uint32(e[16:])), int64(le.Uint32(e[20:])), flags&1 != 0}
		if it.length == 0 && it.offset != 0 || it.length > maxItem ||
			it.length != 0 && (it.offset < 64*kib || it.offset+it.length > m.metadata.length) {
			return nil, bad("metadata item %s of %d bytes at %d does not lie behind the table in the region of %d bytes",
				it.id, it.length, it.offset, m.metadata.length)
		}
		switch id := it.id.String(); {
		case !it.user && slices.Contains([]string{guidFileParameters, guidVirtualSize, guidDiskID,
			guidLogicalSector, guidPhysicalSector, guidParentLocator}, id):
			known[id] = it
		case flags&4 != 0:
			return nil, bad("it needs the unknown metadata item %s", id)
		}
		all = append(all, it)
	}
	slices.SortFunc(all, func(a, b item) int {
		if c := bytes.Compare(a.id[:], b.id[:]); c != 0 || a.user == b.user {
			return c
		}
		if b.user {
			return -1
		}
		return 1
	})
	for i := 1; i < len(all); i++ {
		if all[i].id == all[i-1].id && all[i].user == all[i-1].user {
			return nil, bad("the metadata table has the item %s twice", all[i].id)
		}
	}
	slices.SortFunc(all, func(a, b item) int { return int(a.offset - b.offset) })
	end := int64(0)
	for _, it := range all {
		if it.length > 0 && it.offset < end {
			return nil, bad("metadata item %s at %d overlaps the one before it", it.id, it.offset)
		}
		end = max(end, it.offset+it.length)
	}
	return known, nil
}

// readMetadata checks the metadata items ("Known Metadata Items").
func (m *Metadata) readMetadata(o Options) error {
	items, err := m.readItems()
	if err != nil {
		return err
	}
	// read gives an item of a fixed length, of which there must be one.
	read := func(id, name string, length int64) ([]byte, error) {
		it, ok := items[id]
		if !ok || it.length < length {
			return nil, bad("the metadata item %q of %d bytes is missing or too short", name, length)
		}
		p := make([]byte, length)
		if err := readFull(m.file, p, m.metadata.offset+it.offset); err != nil {
			return nil, fmt.Errorf("read the metadata item %q: %w", name, err)
		}
		return p, nil
	}
	le := binary.LittleEndian
	p, err := read(guidFileParameters, "file parameters", 8)
	if err != nil {
		return err
	}
	block, flags := le.Uint32(p), le.Uint32(p[4:])
	if block < minBlockSize || block > maxBlockSize || bits.OnesCount32(block) != 1 {
		return bad("block size %d is not a power of two between 1 MB and 256 MB", block)
	}
	m.BlockSize = int64(block)
	if flags&^3 != 0 {
		return bad("file parameters %#x have unknown bits", flags)
	}
	for _, s := range []struct {
		id, name string
		value    *int
	}{{guidLogicalSector, "logical sector size", &m.SectorSize}, {guidPhysicalSector, "physical sector size", nil}} {
		if p, err = read(s.id, s.name, 4); err != nil {
			return err
		}
		v := le.Uint32(p)
		if v != 512 && v != 4096 {
			return bad("%s %d is neither 512 nor 4096", s.name, v)
		}
		if s.value != nil {
			*s.value = int(v)
		}
	}
	if m.SectorSize == 4096 {
		m.Features = append(m.Features, "4096-byte logical sectors")
		m.warn("it has logical sectors of 4096 bytes, in which the partition tables inside count")
	}
	if p, err = read(guidVirtualSize, "virtual disk size", 8); err != nil {
		return err
	}
	size := le.Uint64(p)
	switch {
	case size == 0 || size > maxVirtualSize || size%uint64(m.SectorSize) != 0:
		return bad("virtual disk size %d is not a multiple of the logical sector size %d between 1 and %d",
			size, m.SectorSize, int64(maxVirtualSize))
	case o.MaxVirtualSize > 0 && size > uint64(o.MaxVirtualSize):
		return bad("virtual disk size %d is above the limit of %d bytes", size, o.MaxVirtualSize)
	}
	m.VirtualSize = int64(size)
	if _, err = read(guidDiskID, "virtual disk id", 16); err != nil {
		return err
	}

	locator, hasLocator := items[guidParentLocator]
	switch hasParent := flags&2 != 0; {
	case hasParent || hasLocator:
		m.Variant = VariantDifferencing
		if !o.AllowParent {
			return &Error{
				Reason: "it is a differencing disk, and parents are not read unless allowed",
				Remedy: "allow parents if you trust the image, or merge it into its parent where it was made",
			}
		}
		if hasParent != hasLocator {
			return bad("the file parameters (has a parent: %t) contradict the metadata (names one: %t)",
				hasParent, hasLocator)
		}
		return m.readLocator(locator)
	case flags&1 != 0:
		m.Variant = VariantFixed
	default:
		m.Variant = VariantDynamic
	}
	return nil
}

// decodeUTF16 returns the text in p up to its first NUL.
func decodeUTF16(p []byte) string {
	var units []uint16
	for ; len(p) >= 2; p = p[2:] {
		u := binary.LittleEndian.Uint16(p)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

// chunkRatio is how many payload blocks share a sector bitmap block, which has a bit for each of
// 2^23 sectors ("BAT").
func (m *Metadata) chunkRatio() int64 { return m.chunkBytes() / m.BlockSize }

// chunkBytes is how much of the disk a sector bitmap block covers.
func (m *Metadata) chunkBytes() int64 { return int64(m.SectorSize) << 23 }

// blocks is the number of payload blocks.
func (m *Metadata) blocks() int64 { return (m.VirtualSize-1)/m.BlockSize + 1 }

// batEntries is the number of entries of the block allocation table.
func (m *Metadata) batEntries() int64 {
	if m.Variant == VariantDifferencing {
		return ((m.VirtualSize-1)/m.chunkBytes() + 1) * (m.chunkRatio() + 1)
	}
	return m.blocks() + (m.blocks()-1)/m.chunkRatio()
}

// tablePage is how many bytes of a table are read at a time.
const tablePage = 64 * kib

// checkBAT checks every entry of the block allocation table.
func (m *Metadata) checkBAT(ctx context.Context) error {
	entries := m.batEntries()
	if entries > m.batBytes/8 {
		return bad("the block allocation table at %d has %d bytes, too few for %d entries",
			m.batOffset, m.batBytes, entries)
	}
	taken := newMap(m.fileSize)
	taken.mark(0, headerSection)
	for _, r := range m.regions {
		taken.mark(r.offset, r.length)
	}
	page := make([]byte, min(tablePage, entries*8))
	ratio := m.chunkRatio()
	block, inChunk, partial := int64(0), int64(0), false
	for i := int64(0); i < entries; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := page[:min(int64(len(page)), (entries-i)*8)]
		if err := readFull(m.file, p, m.batOffset+i*8); err != nil {
			return fmt.Errorf("read the block allocation table: %w", err)
		}
		for ; len(p) > 0; p, i = p[8:], i+1 {
			e := binary.LittleEndian.Uint64(p)
			if inChunk == ratio {
				if err := m.checkBitmapEntry(taken, i, e, partial); err != nil {
					return err
				}
				inChunk, partial = 0, false
				continue
			}
			inChunk++
			// The table of a differencing disk goes on to the end of the last chunk.
			if e&stateMask != stateNotPresent && block < m.blocks() {
				if err := m.checkPayloadEntry(taken, i, block, e); err != nil {
					return err
				}
				partial = partial || e&stateMask == statePartiallyPresent
			}
			block++
		}
	}
	return nil
}

// checkPayloadEntry checks entry i, which is that of a payload block.
func (m *Metadata) checkPayloadEntry(taken megabytes, i, block int64, e uint64) error {
	switch state := e & stateMask; state {
	case stateUndefined, stateZero, stateUnmapped:
		return nil // the offset may be stale
	case stateFullyPresent:
	case statePartiallyPresent:
		if m.Variant != VariantDifferencing {
			return bad("entry %d of the block allocation table, %#x: the block is partially present, which only "+
				"a differencing disk has", i, e)
		}
	default:
		return bad("entry %d of the block allocation table, %#x, has the unknown state %d", i, e, state)
	}
	// Blocks are stored in full, but old versions of QEMU cut the last one.
	inside := min(m.BlockSize, m.VirtualSize-block*m.BlockSize)
	if err := m.checkPlace(taken, i, e&offsetMask, inside, m.BlockSize); err != nil {
		return err
	}
	m.MappedBytes += inside
	return nil
}

// checkBitmapEntry checks entry i, which is that of a sector bitmap block; needed tells whether
// there must be one.
func (m *Metadata) checkBitmapEntry(taken megabytes, i int64, e uint64, needed bool) error {
	switch state := e & stateMask; {
	case state == stateFullyPresent:
		return m.checkPlace(taken, i, e&offsetMask, mib, mib)
	case state != stateNotPresent:
		return bad("entry %d of the block allocation table, %#x: a sector bitmap has no state %d", i, e, state)
	case needed:
		return bad("entry %d of the block allocation table, %#x: the sector bitmap of partially present blocks "+
			"is missing", i, e)
	}
	return nil
}

// checkPlace checks where entry i puts a block of length bytes, of which inside must be in the
// file.
func (m *Metadata) checkPlace(taken megabytes, i int64, offset uint64, inside, length int64) error {
	if offset > uint64(m.fileSize) || inside > m.fileSize-int64(offset) {
		return bad("entry %d of the block allocation table: the block of %d bytes at %d ends behind the file of "+
			"%d bytes; the image is truncated or damaged", i, length, offset, m.fileSize)
	}
	conflict := taken.mark(int64(offset), min(length, m.fileSize-int64(offset)))
	if conflict < 0 {
		return nil
	}
	what := "another block"
	if conflict < headerSection {
		what = "the header section"
	}
	for _, r := range m.regions {
		if conflict >= r.offset && conflict < r.offset+r.length {
			what = "the " + r.what
		}
	}
	return bad("entry %d of the block allocation table: the block at %d overlaps %s at %d", i, offset, what, conflict)
}

// megabytes tells which MBs of a file are taken.
type megabytes []uint64

func newMap(size int64) megabytes { return make(megabytes, size/mib/64+1) }

// mark takes a range that begins at a whole MB and lies in the file. It returns where the first MB
// of it that was taken already begins, or -1.
func (m megabytes) mark(offset, length int64) int64 {
	for mb := offset / mib; mb*mib < offset+length; mb++ {
		if m[mb/64]&(1<<(mb%64)) != 0 {
			return mb * mib
		}
		m[mb/64] |= 1 << (mb % 64)
	}
	return -1
}

func (m *Metadata) warn(format string, args ...any) {
	m.Warnings = append(m.Warnings, fmt.Sprintf(format, args...))
}
