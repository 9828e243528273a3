// SPDX-License-Identifier: Apache-2.0

package zvhd2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/lru"
)

// Image is an open ZVHD2 disk. It implements image.Image; ReadAt and Extent are safe for concurrent
// use, and blocks are decoded in parallel. Its memory is the bitmap, two small caches, and a
// decoder and the bytes of a record for each goroutine that reads.
type Image struct {
	m        *Metadata
	index    *lru.Cache[int64, []byte] // pages of the index by number
	blocks   *lru.Cache[int64, []byte] // blocks that were read in part by number
	locks    [cachedBlocks]sync.Mutex  // by number of the block: only one goroutine decodes it
	decoders sync.Pool                 // of *decoder
}

var _ image.Image = (*Image)(nil)

const (
	indexPages   = 16 // 1 MiB, the index of 128 GiB of data
	cachedBlocks = 8  // 16 MiB
)

// Open returns a reader of the checked image, which stays the caller's to close. The format has no
// parents, so parent must be nil.
func (m *Metadata) Open(parent image.Image) (image.Image, error) {
	if parent != nil {
		return nil, errors.New("a ZVHD2 image has no parent")
	}
	img := &Image{
		m:      m,
		index:  lru.New[int64, []byte](indexPages),
		blocks: lru.New[int64, []byte](cachedBlocks),
	}
	img.decoders.New = func() any { return new(decoder) }
	return img, nil
}

// Size returns the virtual size in bytes.
func (img *Image) Size() int64 { return img.m.VirtualSize }

// Type returns the format's name.
func (img *Image) Type() image.Type { return Type }

// Readable returns nil.
func (img *Image) Readable() error { return nil }

// Close does nothing: the file is the caller's.
func (img *Image) Close() error { return nil }

// ReadAt implements [io.ReaderAt]: min(len(p), size-off) bytes or an error. A damaged record gives
// an [*Error]. Whole blocks are decoded into p; a part of one costs as much as the whole block.
func (img *Image) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read at the negative offset %d", off)
	}
	if off >= img.Size() {
		return 0, io.EOF
	}
	// Nothing here relies on the compressed data for its safety; should a decoder do, that is a
	// damaged image and not the end of the process.
	defer func() {
		if r := recover(); r != nil {
			n, err = 0, bad("reading at %d failed: %v", off, r)
		}
	}()
	want := p[:min(int64(len(p)), img.Size()-off)]
	for n < len(want) {
		block, skip := (off+int64(n))/BlockSize, (off+int64(n))%BlockSize
		part := want[n : n+int(min(BlockSize-skip, int64(len(want)-n)))]
		switch {
		case !img.m.has(block):
			clear(part)
		case len(part) == BlockSize:
			err = img.decode(part, block)
		default:
			err = img.readPart(part, block, skip)
		}
		if err != nil {
			return n, err
		}
		n += len(part)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readPart reads p at the position skip in a stored block.
func (img *Image) readPart(p []byte, block, skip int64) error {
	data, ok := img.blocks.Get(block)
	if !ok {
		lock := &img.locks[block%cachedBlocks]
		lock.Lock()
		defer lock.Unlock()
		if data, ok = img.blocks.Get(block); !ok {
			data = make([]byte, BlockSize)
			if err := img.decode(data, block); err != nil {
				return err
			}
			img.blocks.Add(block, data)
		}
	}
	copy(p, data[skip:])
	return nil
}

// Extent returns the first run of start..start+length, which must lie within the disk, that is
// stored alike: blocks that are in the file, or blocks of zeros that are not.
func (img *Image) Extent(start, length int64) (image.Extent, error) {
	if start < 0 || length < 0 || start > img.Size() || length > img.Size()-start {
		return image.Extent{}, fmt.Errorf("extent of %d bytes at %d is outside of the disk of %d bytes",
			length, start, img.Size())
	}
	e := image.Extent{Start: start}
	if length == 0 {
		return e, nil
	}
	block := start / BlockSize
	n := img.m.run(block, (start+length-1)/BlockSize-block+1)
	e.Length = min(length, (block+n)*BlockSize-start)
	e.Allocated = img.m.has(block)
	e.Compressed, e.Zero = e.Allocated, !e.Allocated
	return e, nil
}

// entry returns the index entry of a stored block. It was checked before, but the file may have
// been changed since.
func (img *Image) entry(block int64) (entry, error) {
	i := img.m.entryOf(block)
	const perPage = tablePage / indexEntry
	page, ok := img.index.Get(i / perPage)
	if !ok {
		off := img.m.indexOffset + i/perPage*tablePage
		page = make([]byte, tablePage) // the index has whole segments
		if err := readFull(img.m.r, page, off); err != nil {
			return entry{}, err
		}
		img.index.Add(i/perPage, page)
	}
	e := parseEntry(page[i%perPage*indexEntry:])
	return e, img.m.checkEntry(i, block, e)
}

// decode reads a stored block into p, which has its length.
func (img *Image) decode(p []byte, block int64) error {
	e, err := img.entry(block)
	if err != nil {
		return err
	}
	d := img.decoders.Get().(*decoder)
	defer img.decoders.Put(d)
	if int64(cap(d.record)) < int64(e.length) {
		d.record = make([]byte, roundUp(int64(e.length), 64<<10))
	}
	d.record = d.record[:e.length]
	if err := readFull(img.m.r, d.record, int64(e.offset)); err != nil {
		return err
	}
	payload, err := parseRecord(d.record, int64(e.offset), block)
	if err != nil {
		return err
	}
	if img.m.method == Zlib {
		err = d.inflate(p, payload)
	} else {
		err = d.unzstd(p, payload)
	}
	if err != nil {
		return damaged("block %d, in the record at %d: %v", block, e.offset, err)
	}
	return nil
}

// parseRecord checks the record that was at off and returns its payload.
func parseRecord(record []byte, off, block int64) ([]byte, error) {
	length := int64(len(record))
	if string(record[:len(recordMagic)]) != recordMagic {
		return nil, damaged("the record of block %d at %d does not begin with the magic", block, off)
	}
	if n := binary.LittleEndian.Uint32(record[offNumber:]); int64(n) != block {
		return nil, damaged("the record at %d is of block %d, but block %d is expected", off, n, block)
	}
	n := int64(binary.LittleEndian.Uint32(record[offPayload:]))
	if n == 0 || recordLength(n) != length {
		return nil, damaged("the record of block %d at %d: %d bytes of compressed data do not fit its length of %d bytes",
			block, off, n, length)
	}
	if string(record[length-int64(len(recordEnd)):]) != recordEnd {
		return nil, damaged("the record of block %d at %d does not end with the end mark", block, off)
	}
	return record[recordHeader : recordHeader+n], nil
}

// decoder decodes one block at a time.
type decoder struct {
	record []byte
	zstd   *zstd.Decoder
	zlib   io.ReadCloser
	in     bytes.Reader
}

var (
	errTooShort = errors.New("it decodes to less than a block")
	errTooLong  = errors.New("it decodes to more than a block")
	errTrailing = errors.New("bytes follow its compressed data")
)

// unzstd decodes zstd frames that must hold len(p) bytes in all.
func (d *decoder) unzstd(p, payload []byte) error {
	if d.zstd == nil {
		var err error
		// One at a time: no goroutines of its own, so that it may simply be dropped. The output is
		// the window, so that a frame's claim of a larger one costs nothing.
		d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(1<<41))
		if err != nil {
			return err
		}
	}
	out, err := d.zstd.DecodeAll(payload, p[:0:len(p)])
	switch {
	case errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return errTooLong
	case err != nil:
		return fmt.Errorf("zstd: %w", err)
	case len(out) < len(p):
		return errTooShort
	case len(out) > len(p):
		return errTooLong
	case &out[0] != &p[0]:
		copy(p, out)
	}
	return nil
}

// syncFlush ends a deflate stream that is not finished: an empty stored block, which ends on a
// byte.
var syncFlush = []byte{0x00, 0x00, 0xFF, 0xFF}

// inflate decodes a zlib stream that must hold len(p) bytes. The vendor's driver ends it with a
// sync flush; a finished one with its Adler-32 is taken as well.
func (d *decoder) inflate(p, payload []byte) error {
	if len(payload) >= 2 && payload[1]&0x20 != 0 {
		return errors.New("zlib: a preset dictionary is asked for")
	}
	d.in.Reset(payload)
	var err error
	if d.zlib == nil {
		d.zlib, err = zlib.NewReader(&d.in)
	} else {
		err = d.zlib.(zlib.Resetter).Reset(&d.in, nil)
	}
	if err != nil {
		return fmt.Errorf("zlib: %w", err)
	}
	switch _, err := io.ReadFull(d.zlib, p); {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errTooShort
	case err != nil:
		return fmt.Errorf("zlib: %w", err)
	}
	var more [1]byte
	switch n, err := io.ReadFull(d.zlib, more[:]); {
	case n > 0:
		return errTooLong
	case d.in.Len() > 0 && (err == io.EOF || err == io.ErrUnexpectedEOF):
		return errTrailing
	case err == io.EOF:
		return nil
	case err != io.ErrUnexpectedEOF:
		return fmt.Errorf("zlib: %w", err)
	case !bytes.HasSuffix(payload, syncFlush):
		return errors.New("zlib: it ends within a block of the stream")
	}
	return nil
}
