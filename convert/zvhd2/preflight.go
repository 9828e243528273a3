// SPDX-License-Identifier: Apache-2.0

package zvhd2

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"strings"
)

// Options says what [Preflight] accepts.
type Options struct {
	MaxVirtualSize int64 // bytes, 0 = no limit but MaxSize
	// OriginalSize takes the size of the disk that the file was made from. Without it the disk has
	// the header's current size, which is what the cloud shows: the original size rounded up to
	// whole GiB.
	OriginalSize bool
}

// Metadata is what an image says of itself, checked.
type Metadata struct {
	VirtualSize  int64    // bytes: OriginalSize or CurrentSize, as Options says
	OriginalSize int64    // bytes, as in the header
	CurrentSize  int64    // bytes, as in the header
	MappedBytes  int64    // bytes of the disk in stored blocks
	BlockSize    int64    // bytes
	SectorSize   int      // bytes
	Variant      string   // "compact index" or "dense index"
	Compression  string   // "zstd" or "zlib"
	Creator      string   // name and version of the program that wrote the file
	Features     []string // none so far
	Warnings     []string // what the user should know

	r            io.ReaderAt
	fileSize     int64
	blocks       int64 // number of blocks of the original size
	stored       int64 // number of blocks that the bitmap has
	method       Method
	dense        bool
	indexOffset  int64
	bitmapOffset int64
	tables       int64 // where the first of index and bitmap begins, behind all records

	bitmap []uint64 // bit b%64 of word b/64: block b is stored
	ranks  []uint32 // number of stored blocks before each word
}

// tablePage is the number of bytes of a table that are read and kept at once.
const tablePage = 64 << 10

// maxUnordered is how many records may be out of order. Their places are sorted in memory, 16 bytes
// each, to find those that overlap. The vendor's writer writes all in order, which needs no memory.
const maxUnordered = 2 << 20

// Preflight checks the image in the size bytes of r: head, footer, bitmap and every entry of the
// index. A bad or unsupported image gives an [*Error]; errors of reading are returned as they are.
//
// It reads the index and the bitmap once, so it takes time by what the file really holds. It keeps
// the bitmap and half as many bytes of counts, less than 0.2 MiB for each TiB of disk. The records
// are checked when they are read.
func Preflight(ctx context.Context, r io.ReaderAt, size int64, o Options) (*Metadata, error) {
	m := &Metadata{r: r, fileSize: size, BlockSize: BlockSize, SectorSize: sectorSize}
	if err := m.readHead(); err != nil {
		return nil, err
	}
	f, err := m.readFooter()
	if err != nil {
		return nil, err
	}
	if err := m.checkSizes(f, o); err != nil {
		return nil, err
	}
	if err := m.checkTables(f); err != nil {
		return nil, err
	}
	if err := m.readBitmap(ctx, f); err != nil {
		return nil, err
	}
	if err := m.checkStored(f); err != nil {
		return nil, err
	}
	if err := m.checkIndex(ctx); err != nil {
		return nil, err
	}
	m.describe(f)
	return m, nil
}

// readHead checks the first page, which only tells what kind of file it is.
func (m *Metadata) readHead() error {
	var h [headerSize]byte
	n := max(0, min(int64(len(h)), m.fileSize))
	if err := readFull(m.r, h[:n], 0); err != nil {
		return err
	}
	if string(h[:6]) != magic[:6] {
		return bad("the magic at offset 0 is missing")
	}
	if m.fileSize < 2*pageSize || m.fileSize%pageSize != 0 {
		return damaged("the file has %d bytes, which is not a multiple of %d from %d on: the footer is missing",
			m.fileSize, pageSize, 2*pageSize)
	}
	if h[offLayout] == 0 {
		return bad("layout version 0 at offset %d: an image without an index is not supported", offLayout)
	}
	return nil
}

// footer is the last page's header. Everything but the kind of the file is read from it alone.
type footer struct {
	h  []byte
	at int64 // its offset
}

func (f footer) u32(off int) uint32 { return binary.LittleEndian.Uint32(f.h[off:]) }
func (f footer) u64(off int) uint64 { return binary.LittleEndian.Uint64(f.h[off:]) }

// bad returns an error about the field at off.
func (f footer) bad(off int, what string, value any, format string, args ...any) error {
	return bad("%s %v at offset %d in the footer %s", what, value, f.at+int64(off), fmt.Sprintf(format, args...))
}

// readFooter reads the footer and checks that it is one.
func (m *Metadata) readFooter() (footer, error) {
	f := footer{h: make([]byte, headerSize), at: m.fileSize - pageSize}
	if err := readFull(m.r, f.h, f.at); err != nil {
		return f, err
	}
	if string(f.h[:6]) != magic[:6] {
		return f, damaged("the footer at offset %d does not begin with the magic", f.at)
	}
	if got, want := f.u32(offChecksum), checksum(f.h); got != want && !m.checksumException(f, got, want) {
		return f, damaged("checksum %#08x at offset %d in the footer is wrong: its bytes give %#08x",
			got, f.at+offChecksum, want)
	}
	if f.h[offLayout] == 0 {
		return f, f.bad(offLayout, "layout version", 0, "contradicts that at offset %d, %s", offLayout, "which is not 0")
	}
	return f, nil
}

// checksumException tells whether a wrong checksum is right without the hidden byte. Old versions
// of the program that the header descends from changed that byte and not the checksum.
func (m *Metadata) checksumException(f footer, got, want uint32) bool {
	const v01, v11 = 0x00000001, 0x00010001
	version := f.u32(offCreatorVersion)
	return string(f.h[offCreator:offCreator+3]) == "tap" && (version == v01 || version == v11) &&
		got == want+uint32(f.h[offHidden])
}

// checkSizes checks everything that is measured in bytes or blocks of the disk.
func (m *Metadata) checkSizes(f footer, o Options) error {
	if v := f.u32(offBlockSize); v != BlockSize {
		return f.bad(offBlockSize, "block size", v, "is not %d, the only one in use", BlockSize)
	}
	switch f.h[offMethod] {
	case methodZlib:
		m.method = Zlib
	case methodZstd:
		m.method = Zstd
	default:
		return f.bad(offMethod, "compression method", f.h[offMethod], "is unknown")
	}
	m.dense = f.h[offDense] != 0

	original, current := f.u64(offOriginalSize), f.u64(offCurrentSize)
	switch {
	case original > math.MaxInt64 || original%sectorSize != 0:
		return f.bad(offOriginalSize, "original size", original, "is not a multiple of %d below 2^63", sectorSize)
	case current > math.MaxInt64 || current%BlockSize != 0:
		return f.bad(offCurrentSize, "current size", current, "is not a multiple of %d below 2^63", BlockSize)
	case current < original:
		return f.bad(offCurrentSize, "current size", current, "is below the original size %d", original)
	case current > MaxSize:
		return f.bad(offCurrentSize, "current size", current, "is above %d, the largest that is supported", MaxSize)
	}
	m.OriginalSize, m.CurrentSize = int64(original), int64(current)
	m.VirtualSize = m.CurrentSize
	field, what := offCurrentSize, "current size"
	if o.OriginalSize {
		m.VirtualSize = m.OriginalSize
		field, what = offOriginalSize, "original size"
	}
	if m.VirtualSize == 0 {
		return f.bad(field, what, 0, "leaves no disk")
	}
	if o.MaxVirtualSize > 0 && m.VirtualSize > o.MaxVirtualSize {
		return f.bad(field, what, m.VirtualSize, "is above the limit of %d bytes", o.MaxVirtualSize)
	}
	m.blocks = blockCount(m.OriginalSize)
	if v := f.u32(offBlockCount); int64(v) != m.blocks {
		return f.bad(offBlockCount, "block count", v, "does not fit the original size %d, which has %d blocks",
			original, m.blocks)
	}
	return nil
}

// checkTables checks where the index and the bitmap are.
func (m *Metadata) checkTables(f footer) error {
	if v := f.u32(offIndexSegmentBytes); v != indexSegment {
		return f.bad(offIndexSegmentBytes, "index segment size", v, "is not %d", indexSegment)
	}
	if v := f.u32(offBitmapSegmentBytes); v != bitmapSegment {
		return f.bad(offBitmapSegmentBytes, "bitmap segment size", v, "is not %d", bitmapSegment)
	}
	stored := f.u32(offStored)
	if int64(stored) > m.blocks {
		return f.bad(offStored, "number of stored blocks", stored, "is above the number of blocks, %d", m.blocks)
	}
	m.stored = int64(stored)
	entries := m.stored
	if m.dense {
		entries = m.blocks
	}
	index, err := m.checkTable(f, "index", offIndexOffset, offIndexBytes, offIndexSegmentCount, indexSegment, entries)
	if err != nil {
		return err
	}
	bitmap, err := m.checkTable(f, "bitmap", offBitmapOffset, offBitmapBytes, offBitmapSegmentsCount, bitmapSegment,
		m.blocks)
	if err != nil {
		return err
	}
	m.indexOffset, m.bitmapOffset = index.offset, bitmap.offset
	if index.offset < bitmap.end() && bitmap.offset < index.end() {
		return bad("the index of %d bytes at %d and the bitmap of %d bytes at %d overlap",
			index.length, index.offset, bitmap.length, bitmap.offset)
	}
	m.tables = min(index.offset, bitmap.offset)
	return nil
}

// span is a range of the file.
type span struct{ offset, length int64 }

func (s span) end() int64 { return s.offset + s.length }

// checkTable checks the fields about a table with the number of entries that it must have.
func (m *Metadata) checkTable(f footer, what string, offset, length, count int, segment, entries int64) (span, error) {
	n, b, at := int64(f.u32(count)), int64(f.u32(length)), f.u64(offset)
	switch {
	case n < segments(entries):
		return span{}, f.bad(count, what+" segment count", n, "is too small for %d entries", entries)
	case b != n*segment:
		return span{}, f.bad(length, what+" length", b, "is not that of its %d segments, %d bytes", n, n*segment)
	case at < pageSize:
		return span{}, f.bad(offset, what+" offset", at, "lies in the head page")
	case at > uint64(f.at) || b > f.at-int64(at):
		return span{}, f.bad(offset, what+" offset", at, "is wrong: its %d bytes end behind the footer at %d", b, f.at)
	}
	return span{int64(at), b}, nil
}

// readBitmap reads the bitmap and counts.
func (m *Metadata) readBitmap(ctx context.Context, f footer) error {
	words := (m.blocks + 63) / 64
	m.bitmap = make([]uint64, 0, words)
	length := int64(f.u32(offBitmapBytes))
	buf := make([]byte, min(length, tablePage))
	for at := int64(0); at < length; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), length-at)]
		if err := readFull(m.r, p, m.bitmapOffset+at); err != nil {
			return err
		}
		for ; len(p) > 0; p, at = p[8:], at+8 {
			w := binary.LittleEndian.Uint64(p)
			inside := max(0, min(m.blocks-at*8, 64)) // bits of the word that stand for a block
			if beyond := w >> inside << inside; beyond != 0 {
				b := at*8 + int64(bits.TrailingZeros64(beyond))
				return bad("the bitmap has block %d, at offset %d, but the disk has only %d blocks",
					b, m.bitmapOffset+b/8, m.blocks)
			}
			if int64(len(m.bitmap)) < words {
				m.bitmap = append(m.bitmap, w)
			}
		}
	}
	m.ranks = make([]uint32, words+1)
	for i, w := range m.bitmap {
		m.ranks[i+1] = m.ranks[i] + uint32(bits.OnesCount64(w))
	}
	return nil
}

// checkStored checks the number of stored blocks, which a dense index does not need.
func (m *Metadata) checkStored(f footer) error {
	n := int64(m.ranks[len(m.ranks)-1])
	if !m.dense && n != m.stored {
		return f.bad(offStored, "number of stored blocks", m.stored, "is not that of the bitmap, %d", n)
	}
	m.stored = n
	return nil
}

// has tells whether block b is stored.
func (m *Metadata) has(b int64) bool { return b < m.blocks && m.bitmap[b/64]>>(b%64)&1 != 0 }

// entryOf returns the number of the index entry of the stored block b.
func (m *Metadata) entryOf(b int64) int64 {
	if m.dense {
		return b
	}
	return int64(m.ranks[b/64]) + int64(bits.OnesCount64(m.bitmap[b/64]&(1<<(b%64)-1)))
}

// run returns how many blocks from b on, at most n, are stored or not stored like b.
func (m *Metadata) run(b, n int64) int64 {
	if b >= m.blocks {
		return n
	}
	flip := uint64(0)
	if m.has(b) {
		flip = ^uint64(0)
	}
	for at := b; at < min(b+n, m.blocks); at = at&^63 + 64 {
		if other := (m.bitmap[at/64] ^ flip) >> (at % 64); other != 0 {
			return min(n, at+int64(bits.TrailingZeros64(other))-b)
		}
	}
	if flip == 0 {
		return n // also behind the last block
	}
	return min(n, m.blocks-b)
}

// entry is an entry of the index.
type entry struct {
	offset uint64 // of the record
	block  uint32
	length uint32 // of the record
}

func parseEntry(p []byte) entry {
	return entry{
		offset: binary.LittleEndian.Uint64(p),
		block:  binary.LittleEndian.Uint32(p[8:]),
		length: binary.LittleEndian.Uint32(p[12:]),
	}
}

// checkEntry checks entry number i, which should be that of block b.
func (m *Metadata) checkEntry(i, b int64, e entry) error {
	at := m.indexOffset + i*indexEntry
	switch {
	case int64(e.block) != b:
		return bad("index entry at %d is of block %d, but block %d is expected", at, e.block, b)
	case e.length%pageSize != 0 || e.length < pageSize || e.length > maxRecord:
		return bad("index entry at %d: the length %d of the record is not a multiple of %d from %d to %d",
			at, e.length, pageSize, pageSize, maxRecord)
	case e.offset < pageSize:
		return bad("index entry at %d: the record at %d lies in the head page", at, e.offset)
	case e.offset > uint64(m.tables) || int64(e.length) > m.tables-int64(e.offset):
		return bad("index entry at %d: the record of %d bytes at %d does not end before the index and the bitmap at %d",
			at, e.length, e.offset, m.tables)
	}
	return nil
}

// checkIndex checks all index entries, and that no two records overlap.
func (m *Metadata) checkIndex(ctx context.Context) error {
	ordered, end := true, uint64(0)
	err := m.entries(ctx, func(i, b int64, e entry) error {
		if !m.has(b) {
			if e.offset != 0 && e.length != 0 {
				return bad("index entry at %d names a record at %d, but the bitmap does not have block %d",
					m.indexOffset+i*indexEntry, e.offset, b)
			}
			return nil
		}
		if err := m.checkEntry(i, b, e); err != nil {
			return err
		}
		ordered = ordered && e.offset >= end
		end = e.offset + uint64(e.length)
		return nil
	})
	if err != nil || ordered {
		return err
	}
	if m.stored > maxUnordered {
		return bad("the records of more than %d blocks are not in ascending order", maxUnordered)
	}
	records := make([]span, 0, m.stored)
	err = m.entries(ctx, func(i, b int64, e entry) error {
		if m.has(b) && int64(len(records)) < m.stored {
			records = append(records, span{int64(e.offset), int64(e.length)})
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(records, func(a, b span) int { return cmp.Compare(a.offset, b.offset) })
	for i := 1; i < len(records); i++ {
		if a, b := records[i-1], records[i]; b.offset < a.end() {
			return bad("the records of %d bytes at %d and of %d bytes at %d overlap",
				a.length, a.offset, b.length, b.offset)
		}
	}
	return nil
}

// entries calls fn for the entries of the index with their numbers and the blocks they are of.
func (m *Metadata) entries(ctx context.Context, fn func(i, b int64, e entry) error) error {
	count := m.stored
	if m.dense {
		count = m.blocks
	}
	buf := make([]byte, min(count*indexEntry, tablePage))
	b := int64(-1)
	for i := int64(0); i < count; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), (count-i)*indexEntry)]
		if err := readFull(m.r, p, m.indexOffset+i*indexEntry); err != nil {
			return err
		}
		for ; len(p) > 0; p, i = p[indexEntry:], i+1 {
			if b++; !m.dense && !m.has(b) {
				b += m.run(b, m.blocks-b)
			}
			if err := fn(i, b, parseEntry(p)); err != nil {
				return err
			}
		}
	}
	return nil
}

// describe fills in what is only shown.
func (m *Metadata) describe(f footer) {
	m.Variant = "compact index"
	if m.dense {
		m.Variant = "dense index"
	}
	m.Compression = string(m.method)
	name, _, _ := strings.Cut(string(f.h[offCreator:offCreator+4]), "\x00")
	version := f.u32(offCreatorVersion)
	m.Creator = fmt.Sprintf("%s %d.%d", printable(name), version>>16, version&0xFFFF)
	m.MappedBytes = m.stored * BlockSize
	if last := m.blocks - 1; last >= 0 && m.has(last) {
		m.MappedBytes -= max(0, m.blocks*BlockSize-m.VirtualSize)
	}
	if m.VirtualSize != m.OriginalSize {
		m.Warnings = append(m.Warnings, fmt.Sprintf("the disk of %d bytes was rounded up to %d, whole GiB, with zeros",
			m.OriginalSize, m.CurrentSize))
	}
}

// printable replaces what is not a printable ASCII character.
func printable(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

// TableBytes returns how many bytes of mapping tables a reader keeps in memory at most.
func (m *Metadata) TableBytes() int64 {
	return int64(len(m.bitmap))*8 + int64(len(m.ranks))*4 + indexPages*tablePage
}

// readFull reads len(p) bytes at off, which the caller knows to be in the file.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}
