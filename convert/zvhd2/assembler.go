// SPDX-License-Identifier: Apache-2.0

package zvhd2

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// UUID identifies an image; its bytes are in the order of the printed form.
type UUID [16]byte

// NewUUID returns a random UUID (version 4).
func NewUUID() UUID {
	var u UUID
	rand.Read(u[:]) // never fails
	u[6] = u[6]&0x0F | 0x40
	u[8] = u[8]&0x3F | 0x80
	return u
}

// String returns the printed form, 8-4-4-4-12 hexadecimal digits.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// MarshalText returns the printed form.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText reads the printed form.
func (u *UUID) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(strings.ReplaceAll(string(text), "-", ""))
	if err != nil || len(b) != len(u) || string(text) != UUID(b).String() {
		return fmt.Errorf("%q is not a UUID", text)
	}
	*u = UUID(b)
	return nil
}

// Header is what an image says of itself on its first page.
type Header struct {
	Size   int64     `json:"size"`   // bytes of the disk, rounded up to 512 as the original size
	Method Method    `json:"method"` // "" = Zstd
	Time   time.Time `json:"time"`   // of creation, in seconds; zero = now
	UUID   UUID      `json:"uuid"`   // zero = a random one
}

// epoch is where the header's time stamp begins.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// complete fills in what the caller leaves open, and checks the rest.
func (h *Header) complete() error {
	if h.Size <= 0 || h.Size > MaxSize {
		return fmt.Errorf("the disk has %d bytes; ZVHD2 images of 1 to %d bytes can be written", h.Size, int64(MaxSize))
	}
	switch h.Method {
	case "":
		h.Method = Zstd
	case Zstd, Zlib:
	default:
		return fmt.Errorf("compression method %q is not %q or %q", h.Method, Zstd, Zlib)
	}
	if h.Time.IsZero() {
		h.Time = time.Now()
	}
	h.Time = h.Time.UTC().Truncate(time.Second)
	if s := h.Time.Unix() - epoch.Unix(); s < 0 || s > math.MaxUint32 {
		return fmt.Errorf("the time %v does not fit the header, which counts seconds since %v in 32 bits", h.Time, epoch)
	}
	if h.UUID == (UUID{}) {
		h.UUID = NewUUID()
	}
	return nil
}

// Assembler keeps the order of an image that is being written: it makes what comes before and after
// the records, and holds eight bytes for each stored block, 4 MiB for 1 TiB. It is not safe for
// concurrent use.
type Assembler struct {
	header Header
	blocks int64
	stored []stored
	offset int64 // where the next record goes
}

// stored is a record that was written. All are contiguous from the end of the head page.
type stored struct {
	block uint32
	pages uint32
}

// NewAssembler begins an image.
func NewAssembler(h Header) (*Assembler, error) {
	if err := h.complete(); err != nil {
		return nil, err
	}
	return &Assembler{header: h, blocks: blockCount(roundUp(h.Size, sectorSize)), offset: pageSize}, nil
}

// Header returns the header with nothing left open.
func (a *Assembler) Header() Header { return a.header }

// Blocks returns the number of blocks of the disk.
func (a *Assembler) Blocks() int64 { return a.blocks }

// Offset returns the length of the file so far: where the next record belongs, or the middle page.
func (a *Assembler) Offset() int64 { return a.offset }

// Next returns the first block that may come next: the one behind the last that was added.
func (a *Assembler) Next() int64 {
	if len(a.stored) == 0 {
		return 0
	}
	return int64(a.stored[len(a.stored)-1].block) + 1
}

// Stored returns the number of blocks that were added.
func (a *Assembler) Stored() int64 { return int64(len(a.stored)) }

// Head returns the first page of the file.
func (a *Assembler) Head() []byte {
	page := make([]byte, pageSize)
	le := binary.LittleEndian
	original := roundUp(a.header.Size, sectorSize)
	copy(page[offMagic:], magic)
	le.PutUint32(page[offFeatures:], 2)
	le.PutUint32(page[offFileVersion:], 1<<16)
	le.PutUint64(page[offNext:], math.MaxUint64)
	le.PutUint32(page[offTime:], uint32(a.header.Time.Unix()-epoch.Unix()))
	copy(page[offCreator:], "tap\x00")
	le.PutUint32(page[offCreatorVersion:], 1<<16|4)
	le.PutUint64(page[offOriginalSize:], uint64(original))
	le.PutUint64(page[offCurrentSize:], uint64(roundUp(original, gib)))
	le.PutUint32(page[offGeometry:], geometry(original))
	le.PutUint32(page[offDiskType:], 4)
	copy(page[offUUID:], a.header.UUID[:])
	page[offLayout] = 1
	le.PutUint32(page[offBlockSize:], BlockSize)
	le.PutUint32(page[offBlockCount:], uint32(a.blocks))
	if a.header.Method == Zstd {
		page[offMethod] = methodZstd
	}
	le.PutUint32(page[offChecksum:], checksum(page))
	return page
}

// geometry returns cylinders << 16 | heads << 8 | sectors per track for a disk of size bytes, as
// the vendor's writer computes them, who cuts the number of sectors to 32 bits. Nothing reads the
// field.
func geometry(size int64) uint32 {
	s := min(uint32(max(size/sectorSize, 1)), 65535*16*255)
	sectors, heads := uint32(255), uint32(16)
	t := s / sectors
	if s < 65535*16*63 {
		sectors = 17
		t = s / sectors
		heads = max(4, (t+1023)/1024)
		if t >= heads*1024 || heads > 16 {
			sectors, heads = 31, 16
			t = s / sectors
		}
		if t >= heads*1024 {
			sectors, heads = 63, 16
			t = s / sectors
		}
	}
	return t/heads<<16 | heads<<8 | sectors
}

// Add notes that the record of a block, of length bytes, was written at [Assembler.Offset].
func (a *Assembler) Add(block, length int64) error {
	switch {
	case block < a.Next() || block >= a.blocks:
		return fmt.Errorf("block %d is not between %d and %d: blocks must come in ascending order and be on the disk",
			block, a.Next(), a.blocks-1)
	case length < pageSize || length > maxRecord || length%pageSize != 0:
		return fmt.Errorf("the record of block %d has %d bytes, not a multiple of %d from %d to %d",
			block, length, pageSize, pageSize, maxRecord)
	}
	a.stored = append(a.stored, stored{block: uint32(block), pages: uint32(length / pageSize)})
	a.offset += length
	return nil
}

// TailLength returns the number of bytes that follow the records.
func (a *Assembler) TailLength() int64 {
	return 2*pageSize + segments(a.Stored())*indexSegment + segments(a.blocks)*bitmapSegment
}

// WriteTail writes what follows the records: the middle page, the index, the bitmap and the footer.
// It depends on nothing but the header and the records, so that it can be made again.
func (a *Assembler) WriteTail(w io.Writer) error {
	// The middle page is the head again. The vendor's writer adds the number of stored blocks
	// without correcting the checksum; no reader looks at it.
	head := a.Head()
	if err := writeFull(w, head); err != nil {
		return err
	}
	indexOffset := a.offset + pageSize
	indexSegments, bitmapSegments := segments(a.Stored()), segments(a.blocks)
	bitmapOffset := indexOffset + indexSegments*indexSegment

	le := binary.LittleEndian
	segment := make([]byte, indexSegment)
	offset := int64(pageSize)
	for rest := a.stored; len(rest) > 0; {
		n := min(segmentBlocks, len(rest))
		for i, s := range rest[:n] {
			p := segment[i*indexEntry:]
			le.PutUint64(p, uint64(offset))
			le.PutUint32(p[8:], s.block)
			le.PutUint32(p[12:], s.pages*pageSize)
			offset += int64(s.pages) * pageSize
		}
		clear(segment[n*indexEntry:])
		if err := writeFull(w, segment); err != nil {
			return err
		}
		rest = rest[n:]
	}

	bitmap := segment[:bitmapSegment]
	rest := a.stored
	for first := int64(0); first < a.blocks; first += segmentBlocks {
		clear(bitmap)
		for len(rest) > 0 && int64(rest[0].block) < first+segmentBlocks {
			b := int64(rest[0].block) - first
			bitmap[b/8] |= 1 << (b % 8)
			rest = rest[1:]
		}
		if err := writeFull(w, bitmap); err != nil {
			return err
		}
	}

	footer := head
	le.PutUint64(footer[offIndexOffset:], uint64(indexOffset))
	le.PutUint64(footer[offBitmapOffset:], uint64(bitmapOffset))
	le.PutUint32(footer[offIndexBytes:], uint32(indexSegments*indexSegment))
	le.PutUint32(footer[offBitmapBytes:], uint32(bitmapSegments*bitmapSegment))
	le.PutUint32(footer[offIndexSegmentBytes:], indexSegment)
	le.PutUint32(footer[offBitmapSegmentBytes:], bitmapSegment)
	le.PutUint32(footer[offIndexSegmentCount:], uint32(indexSegments))
	le.PutUint32(footer[offBitmapSegmentsCount:], uint32(bitmapSegments))
	le.PutUint32(footer[offStored:], uint32(a.Stored()))
	le.PutUint32(footer[offChecksum:], checksum(footer))
	return writeFull(w, footer)
}

// writeFull writes p in one call.
func writeFull(w io.Writer, p []byte) error {
	n, err := w.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// Checkpoint is the state of an image that is being written, all that is needed to go on with it.
// It can be stored as JSON; Records has about three bytes for each stored block, 1.5 MiB for 1 TiB.
type Checkpoint struct {
	Header
	Offset  int64  `json:"offset"`  // bytes of the file up to here
	Next    int64  `json:"next"`    // block to go on with
	Records []byte `json:"records"` // what was written, as AppendRecords packs it
}

// Checkpoint returns the state.
func (a *Assembler) Checkpoint() Checkpoint {
	return Checkpoint{Header: a.header, Offset: a.offset, Next: a.Next(), Records: a.AppendRecords(nil, 0)}
}

// AppendRecords appends the records from number from on, in packed form, to dst. A journal that
// stores each record once, as it comes, puts the pieces together for the Records of a [Checkpoint].
//
// A record is packed into two unsigned varints: the number of blocks that were left out before it,
// and its length in pages of 4096 bytes.
func (a *Assembler) AppendRecords(dst []byte, from int64) []byte {
	next := int64(0)
	if from > 0 {
		next = int64(a.stored[from-1].block) + 1
	}
	for _, s := range a.stored[from:] {
		dst = binary.AppendUvarint(dst, uint64(int64(s.block)-next))
		dst = binary.AppendUvarint(dst, uint64(s.pages))
		next = int64(s.block) + 1
	}
	return dst
}

// Resume goes on with an image. A checkpoint that contradicts itself is refused.
func Resume(c Checkpoint) (*Assembler, error) {
	if c.Time.IsZero() || c.UUID == (UUID{}) || c.Method == "" {
		return nil, errors.New("the checkpoint lacks the time, the UUID or the method")
	}
	a, err := NewAssembler(c.Header)
	if err != nil {
		return nil, err
	}
	if !a.header.Time.Equal(c.Time) {
		return nil, fmt.Errorf("the checkpoint's time %v is not in whole seconds", c.Time)
	}
	for p := c.Records; len(p) > 0; {
		skip, n := binary.Uvarint(p)
		pages, k := binary.Uvarint(p[max(n, 0):])
		if n <= 0 || k <= 0 || skip > uint64(a.blocks) || pages > maxRecord/pageSize {
			return nil, fmt.Errorf("the checkpoint's list of records is damaged after record %d", a.Stored())
		}
		if err := a.Add(a.Next()+int64(skip), int64(pages)*pageSize); err != nil {
			return nil, fmt.Errorf("the checkpoint's list of records is damaged: %w", err)
		}
		p = p[n+k:]
	}
	if a.Offset() != c.Offset || a.Next() != c.Next {
		return nil, fmt.Errorf("the checkpoint is damaged: offset %d and block %d do not fit its records, "+
			"which end at offset %d and block %d", c.Offset, c.Next, a.Offset(), a.Next())
	}
	return a, nil
}
