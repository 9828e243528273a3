// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/zvhd2"
)

// ZVHD2Header is what a ZVHD2 image says of itself at its beginning and at its end. It can be kept as
// JSON.
type ZVHD2Header = zvhd2.Header

// ZVHD2Stream encodes a disk as [EncodeZVHD2] does, such that another process can go on with it: that
// one needs the header and the notes.
type ZVHD2Stream struct {
	img    image.Image
	o      ZVHD2Options
	s      *Scanner
	header ZVHD2Header
	from   *zvhd2.Checkpoint // nil = from the beginning

	mu    sync.Mutex
	w     *zvhd2.Writer
	noted int64 // records
	next  int64 // block behind those
}

// NewZVHD2Stream prepares a stream of img.
func NewZVHD2Stream(img image.Image, o ZVHD2Options) *ZVHD2Stream {
	z := &ZVHD2Stream{img: img, o: o, s: NewScanner(img, o.Marker)}
	if o.Digest != nil {
		z.s.WithDigest()
	}
	if z.o.Progress == nil {
		z.o.Progress = func(int64) {}
	}
	z.header = ZVHD2Header{Size: (img.Size() + 511) &^ 511, Method: o.Writer.Method, Time: o.Writer.Time, UUID: o.Writer.UUID}
	if z.header.Method == "" {
		z.header.Method = zvhd2.Zstd
	}
	if z.header.Time.IsZero() {
		z.header.Time = time.Now()
	}
	z.header.Time = z.header.Time.UTC().Truncate(time.Second)
	if z.header.UUID == (zvhd2.UUID{}) {
		z.header.UUID = zvhd2.NewUUID()
	}
	return z
}

// Scanner returns the one that reads the disk: what it found is complete when the stream is.
func (z *ZVHD2Stream) Scanner() *Scanner { return z.s }

// Header returns what the image says of itself. A stream that goes on with another one needs the same
// time and UUID in its options.
func (z *ZVHD2Stream) Header() ZVHD2Header { return z.header }

// Note returns what another process needs to go on behind the last record that was written, as far as
// notes before don't tell it. It may be called while w.Write is: then it doesn't cover the record that
// is being written. It takes about 35 bytes for a stored block with a digest, 3 without.
func (z *ZVHD2Stream) Note() []byte {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.w == nil {
		return nil
	}
	records := z.w.AppendRecords(nil, z.noted)
	count, next, err := readRecords(records, z.next, func(int64, int64) error { return nil })
	if err != nil {
		return nil // not ours: cannot happen
	}
	b := append(binary.AppendUvarint(nil, uint64(len(records))), records...)
	if next > z.next {
		off, n := z.span(z.next, next)
		found, err := z.s.Note(off, n)
		if err != nil {
			// Without it another process encodes from the beginning again.
			return nil
		}
		b = append(b, found...)
	}
	z.noted, z.next = z.noted+count, next
	return b
}

// span is where blocks lie on the disk, whose end need not be one of a block.
func (z *ZVHD2Stream) span(from, to int64) (off, n int64) {
	off = from * zvhd2.BlockSize
	return off, min(to*zvhd2.BlockSize, z.s.size) - off
}

// readRecords goes through records as [zvhd2.Assembler.AppendRecords] packs them, of which the first
// comes after block next. It returns their number and the block behind the last.
func readRecords(b []byte, next int64, fn func(block, length int64) error) (count, end int64, err error) {
	for len(b) > 0 {
		skip, n := binary.Uvarint(b)
		if n <= 0 {
			return 0, 0, errRecords
		}
		pages, k := binary.Uvarint(b[n:])
		if k <= 0 || skip > zvhd2.MaxSize/zvhd2.BlockSize || pages > 2*zvhd2.BlockSize/zvhd2Page {
			return 0, 0, errRecords
		}
		if err := fn(next+int64(skip), int64(pages)*zvhd2Page); err != nil {
			return 0, 0, err
		}
		b = b[n+k:]
		next += int64(skip) + 1
		count++
	}
	return count, next, nil
}

const zvhd2Page = 4096 // bytes; records are whole pages

var errRecords = fmt.Errorf("note on a ZVHD2 image: its list of records is damaged")

// Resume takes up the notes of another process with the same disk and header, in order. It returns the
// offset in the image, in bytes and at most limit, from which on Encode writes, and how many bytes of the
// disk come before. After an error the stream writes from the beginning, the same bytes as before.
func (z *ZVHD2Stream) Resume(notes [][]byte, limit int64) (offset, done int64, err error) {
	asm, err := zvhd2.NewAssembler(z.header)
	if err != nil {
		return 0, 0, err
	}
	for _, note := range notes {
		size, n := binary.Uvarint(note)
		if n <= 0 || size > uint64(len(note)-n) {
			return 0, 0, errRecords
		}
		records, found := note[n:n+int(size)], note[n+int(size):]
		before := asm.Next()
		_, next, err := readRecords(records, before, asm.Add)
		if err != nil {
			return 0, 0, err
		}
		if next > before {
			off, n := z.span(before, next)
			if err := z.s.Learn(off, n, found); err != nil {
				return 0, 0, err
			}
		}
	}
	if asm.Offset() > limit {
		return 0, 0, fmt.Errorf("the notes tell of %d bytes, but %d are there", asm.Offset(), limit)
	}
	c := asm.Checkpoint()
	z.from = &c
	z.noted, z.next = asm.Stored(), asm.Next()
	return c.Offset, min(c.Next*zvhd2.BlockSize, z.s.size), nil
}

// Encode writes the image to w, once. What w got is an image only if the error is nil.
func (z *ZVHD2Stream) Encode(ctx context.Context, w io.Writer) (ScanStats, error) {
	o := z.o.Writer
	o.Method, o.Time, o.UUID, o.Resume = z.header.Method, z.header.Time, z.header.UUID, z.from
	zw, err := zvhd2.NewWriter(w, z.header.Size, o)
	if err != nil {
		return ScanStats{}, err
	}
	z.mu.Lock()
	z.w = zw
	z.mu.Unlock()
	start := int64(0)
	if z.from != nil {
		start = min(z.from.Next*zvhd2.BlockSize, z.s.size)
		z.o.Progress(start)
	}
	source := &blockSource{z.s, z.o.Progress}
	if err := zw.WriteFrom(ctx, source, z.s.dataExtents(ctx, start, zvhd2.BlockSize, z.o.Progress)); err != nil {
		zw.Abort()
		_ = zw.Close() // its error is the one that WriteFrom gave
		return z.s.Stats(), err
	}
	if err := zw.Close(); err != nil {
		return z.s.Stats(), err
	}
	return z.s.Stats(), z.s.digestTo(ctx, z.o.Digest)
}
