// SPDX-License-Identifier: Apache-2.0

package zvhd

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strings"
)

// Options says what [Preflight] accepts.
type Options struct {
	MaxVirtualSize int64 // bytes, 0 = no limit but the format's
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
	Variant      string   // ""
	Compression  string   // "zlib"
	Creator      string   // name and version of the program that wrote the file
	Features     []string // none so far
	Warnings     []string // what the user should know

	r        io.ReaderAt
	fileSize int64
	records  []record // in ascending block order
}

// record is the place of a stored block. A record is at least a page long and at most maxRecord
// bytes.
type record struct {
	block uint32
	page  uint32 // its offset in the file, in pages
}

const (
	maxRecords  = 8 << 20 // 64 MiB of table, for 16 TiB of data
	maxFileSize = math.MaxUint32 * pageSize
	ctxInterval = 1 << 10 // records between looks at the context
)

// Preflight checks the image in the size bytes of r: its head page, the frame of every record, and
// that the tail page is there. A bad or unsupported image gives an [*Error]; errors of reading are
// returned as they are.
//
// It reads 52 bytes for every record, so it takes time by what the file really holds, and it keeps
// eight bytes for each.
func Preflight(ctx context.Context, r io.ReaderAt, size int64, o Options) (*Metadata, error) {
	m := &Metadata{r: r, fileSize: size, BlockSize: BlockSize, SectorSize: sectorSize, Compression: "zlib"}
	if err := m.readHead(o); err != nil {
		return nil, err
	}
	if err := m.readRecords(ctx); err != nil {
		return nil, err
	}
	if n := len(m.records); n > 0 {
		last := int64(m.records[n-1].block)
		if last*BlockSize >= m.VirtualSize {
			return nil, &Error{
				Reason: fmt.Sprintf("the record of block %d at %d is behind the original size of %d bytes",
					last, m.records[n-1].offset(), m.VirtualSize),
				Remedy: fmt.Sprintf("read the image with its current size of %d bytes", m.CurrentSize),
			}
		}
		m.MappedBytes = int64(n)*BlockSize - max(0, (last+1)*BlockSize-m.VirtualSize)
	}
	if m.VirtualSize != m.OriginalSize {
		m.Warnings = append(m.Warnings, fmt.Sprintf("the disk of %d bytes was rounded up to %d, whole GiB, with zeros",
			m.OriginalSize, m.CurrentSize))
	}
	return m, nil
}

// readHead checks the head page.
func (m *Metadata) readHead(o Options) error {
	h := make([]byte, headerSize)
	if n := max(0, min(int64(len(h)), m.fileSize)); n < headerSize {
		h = h[:n]
	}
	if err := readFull(m.r, h, 0); err != nil {
		return err
	}
	if len(h) < len(magic) || string(h[:len(magic)]) != magic {
		return bad("the magic at offset 0 is missing")
	}
	if m.fileSize < 2*pageSize {
		return damaged("the file of %d bytes is too short for a head page and a tail page", m.fileSize)
	}
	if m.fileSize > maxFileSize {
		return bad("the file of %d bytes is above the %d that are supported", m.fileSize, int64(maxFileSize))
	}
	le := binary.LittleEndian
	version := le.Uint32(h[offCreatorVersion:])
	if got, want := le.Uint32(h[offChecksum:]), checksum(h); got != want {
		// Old versions of the program that the header descends from changed the hidden byte and not
		// the checksum.
		const v01, v11 = 0x00000001, 0x00010001
		old := string(h[offCreator:offCreator+3]) == "tap" && (version == v01 || version == v11)
		if !old || got != want+uint32(h[offHidden]) {
			return damaged("checksum %#08x at offset %d is wrong: the header's bytes give %#08x", got, offChecksum, want)
		}
	}
	original, current := le.Uint64(h[offOriginalSize:]), le.Uint64(h[offCurrentSize:])
	switch {
	case original > math.MaxInt64 || original%sectorSize != 0:
		return bad("original size %d at offset %d is not a multiple of %d below 2^63",
			original, offOriginalSize, sectorSize)
	case current > math.MaxInt64 || current%sectorSize != 0:
		return bad("current size %d at offset %d is not a multiple of %d below 2^63", current, offCurrentSize, sectorSize)
	case current < original:
		return bad("current size %d at offset %d is below the original size %d", current, offCurrentSize, original)
	}
	m.OriginalSize, m.CurrentSize = int64(original), int64(current)
	m.VirtualSize = m.CurrentSize
	field, what := offCurrentSize, "current size"
	if o.OriginalSize {
		m.VirtualSize = m.OriginalSize
		field, what = offOriginalSize, "original size"
	}
	if m.VirtualSize == 0 {
		return bad("%s 0 at offset %d leaves no disk", what, field)
	}
	if o.MaxVirtualSize > 0 && m.VirtualSize > o.MaxVirtualSize {
		return bad("%s %d at offset %d is above the limit of %d bytes", what, m.VirtualSize, field, o.MaxVirtualSize)
	}
	name, _, _ := strings.Cut(string(h[offCreator:offCreator+4]), "\x00")
	m.Creator = fmt.Sprintf("%s %d.%d", printable(name), version>>16, version&0xFFFF)
	return nil
}

// readRecords goes from record to record up to the tail page. What follows that is of no meaning.
func (m *Metadata) readRecords(ctx context.Context) error {
	// The end mark of a record and the header of the next are read in one go.
	var buf [len(recordEnd) + recordHeader]byte
	header := buf[len(recordEnd):]
	next := int64(0) // first block that may come
	for at := int64(pageSize); ; {
		if len(m.records)%ctxInterval == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if at > m.fileSize-pageSize {
			return damaged("the file of %d bytes ends without a tail page, which should be at %d or behind", m.fileSize, at)
		}
		p := buf[:]
		if at == pageSize {
			p = header
		}
		if err := readFull(m.r, p, at+recordHeader-int64(len(p))); err != nil {
			return err
		}
		if at > pageSize && string(buf[:len(recordEnd)]) != recordEnd {
			return damaged("the record of block %d at %d does not end with the end mark at %d",
				next-1, m.records[len(m.records)-1].offset(), at-int64(len(recordEnd)))
		}
		if string(header[:len(magic)]) == magic {
			return nil
		}
		length, err := m.checkRecord(header, at, next)
		if err != nil {
			return err
		}
		if len(m.records) == maxRecords {
			return bad("the image has more than %d stored blocks, which is not supported", maxRecords)
		}
		block := binary.LittleEndian.Uint32(header[offNumber:])
		m.records = append(m.records, record{block: block, page: uint32(at / pageSize)})
		next = int64(block) + 1
		at += length
	}
}

// checkRecord checks the header of the record at the given offset and returns the record's length.
// The record may be of any block from next on.
func (m *Metadata) checkRecord(header []byte, at, next int64) (length int64, err error) {
	if string(header[:len(recordMagic)]) != recordMagic {
		return 0, damaged("there is neither a record nor the tail page at %d", at)
	}
	payload := int64(binary.LittleEndian.Uint32(header[offPayload:]))
	block := int64(binary.LittleEndian.Uint32(header[offNumber:]))
	length = recordLength(payload)
	switch {
	case payload == 0 || length > maxRecord:
		return 0, damaged("the record at %d has %d bytes of compressed data, not between 1 and %d",
			at, payload, maxRecord-recordFrame)
	case length > m.fileSize-at:
		return 0, damaged("the record of %d bytes at %d is not wholly inside the file of %d bytes", length, at, m.fileSize)
	case block < next:
		return 0, damaged("the record at %d is of block %d, which does not come after block %d", at, block, next-1)
	case block*BlockSize >= m.CurrentSize:
		return 0, damaged("the record at %d is of block %d, behind the current size of %d bytes", at, block, m.CurrentSize)
	}
	return length, nil
}

// offset returns where the record is in the file.
func (r record) offset() int64 { return int64(r.page) * pageSize }

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

// TableBytes returns how many bytes of mapping tables and of ends of blocks a reader keeps in
// memory at most.
func (m *Metadata) TableBytes() int64 {
	return int64(cap(m.records))*8 + windowSize*int64(min(len(m.records), maxWindows)+recentWindows)
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
