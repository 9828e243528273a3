// SPDX-License-Identifier: Apache-2.0

package zvhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/lru"
)

// Image is an open ZVHD disk. It implements image.Image; ReadAt and Extent are safe for concurrent
// use.
//
// The format is made to be read in sequence. To decode a block takes the last 32 KiB, the window,
// of the stored block before it, so every block is decoded for the first time after all that are
// before it. In passing, windows are kept: those of all blocks if there are at most 1024, else of
// 1024 that are spread evenly. From then on a block costs no more than what is between it and the
// nearest window.
type Image struct {
	m        *Metadata
	decoders sync.Pool // of *decoder

	blocks *lru.Cache[int, []byte] // decoded blocks by number of the record
	recent *lru.Cache[int, []byte] // windows by number of the record, those used last

	advance sync.Mutex // held while blocks are decoded whose own window is not known
	mu      sync.Mutex // held for kept
	kept    map[int][]byte
	stride  int // every so many windows are kept
}

var _ image.Image = (*Image)(nil)

const (
	cachedBlocks  = 8    // 16 MiB
	recentWindows = 32   // 1 MiB
	maxWindows    = 1024 // 32 MiB
)

// Open returns a reader of the checked image, which stays the caller's to close. The format has no
// parents, so parent must be nil.
func (m *Metadata) Open(parent image.Image) (image.Image, error) {
	if parent != nil {
		return nil, errors.New("a ZVHD image has no parent")
	}
	img := &Image{
		m:      m,
		blocks: lru.New[int, []byte](cachedBlocks),
		recent: lru.New[int, []byte](recentWindows),
		kept:   make(map[int][]byte),
		stride: (len(m.records) + maxWindows - 1) / maxWindows,
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

// find returns the number of the first record of a block or one behind it, and whether it is the
// block's.
func (m *Metadata) find(block int64) (k int, ok bool) {
	k = sort.Search(len(m.records), func(i int) bool { return int64(m.records[i].block) >= block })
	return k, k < len(m.records) && int64(m.records[k].block) == block
}

// ReadAt implements [io.ReaderAt]: min(len(p), size-off) bytes or an error. A damaged record gives
// an [*Error].
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
		at := off + int64(n)
		skip := at % BlockSize
		part := want[n : n+int(min(BlockSize-skip, int64(len(want)-n)))]
		if k, ok := img.m.find(at / BlockSize); ok {
			data, err := img.block(k)
			if err != nil {
				return n, err
			}
			copy(part, data[skip:])
		} else {
			clear(part)
		}
		n += len(part)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Extent returns the first run of start..start+length, which must lie within the disk, that is
// stored alike: blocks that are in the file, or blocks of zeros that are not.
func (img *Image) Extent(start, length int64) (image.Extent, error) {
	if start < 0 || length < 0 || start > img.Size() || length > img.Size()-start {
		return image.Extent{}, fmt.Errorf("extent of %d bytes at %d is outside of the disk of %d bytes",
			length, start, img.Size())
	}
	e := image.Extent{Start: start, Length: length}
	if length == 0 {
		return e, nil
	}
	block, records := start/BlockSize, img.m.records
	k, stored := img.m.find(block)
	e.Allocated, e.Compressed, e.Zero = stored, stored, !stored
	end := start + length
	switch {
	case stored:
		last := k
		for last+1 < len(records) && records[last+1].block == records[last].block+1 &&
			int64(records[last].block+1)*BlockSize < end {
			last++
		}
		end = min(end, (int64(records[last].block)+1)*BlockSize)
	case k < len(records):
		end = min(end, int64(records[k].block)*BlockSize)
	}
	e.Length = end - start
	return e, nil
}

// block returns the content of the block of record k, which the caller must not change.
func (img *Image) block(k int) ([]byte, error) {
	if data, ok := img.blocks.Get(k); ok {
		return data, nil
	}
	// If the block's own window is known, nobody waits for it: it can be decoded beside others.
	if _, ok := img.window(k); ok {
		if data, ok := img.blocks.Get(k); ok {
			return data, nil // it was decoded just now
		}
		if window, ok := img.window(k - 1); ok {
			return img.decodeAndKeep(k, window)
		}
	}
	img.advance.Lock()
	defer img.advance.Unlock()
	if data, ok := img.blocks.Get(k); ok {
		return data, nil // by who held the lock before
	}
	i, window := k, []byte(nil)
	for ok := false; !ok; {
		if window, ok = img.window(i - 1); !ok {
			i--
		}
	}
	var scratch []byte
	for ; i < k; i++ {
		// Who reads in parallel asks for the last of these soon.
		if k-i < cachedBlocks {
			data, err := img.decodeAndKeep(i, window)
			if err != nil {
				return nil, err
			}
			window = data[BlockSize-windowSize:]
			continue
		}
		if scratch == nil {
			scratch = make([]byte, BlockSize)
		}
		if err := img.decode(scratch, i, window); err != nil {
			return nil, err
		}
		window = img.keep(i, scratch)
	}
	return img.decodeAndKeep(k, window)
}

func (img *Image) decodeAndKeep(k int, window []byte) ([]byte, error) {
	data := make([]byte, BlockSize)
	if err := img.decode(data, k, window); err != nil {
		return nil, err
	}
	img.blocks.Add(k, data)
	img.keep(k, data)
	return data, nil
}

// window returns the end of the block of record k, if it is known. Before the first there is
// nothing.
func (img *Image) window(k int) ([]byte, bool) {
	if k < 0 {
		return nil, true
	}
	if window, ok := img.recent.Get(k); ok {
		return window, true
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	window, ok := img.kept[k]
	return window, ok
}

// keep notes the end of a block that was decoded, and returns it.
func (img *Image) keep(k int, data []byte) []byte {
	if window, ok := img.window(k); ok {
		return window
	}
	window := bytes.Clone(data[BlockSize-windowSize:])
	img.recent.Add(k, window)
	if (k+1)%img.stride == 0 {
		img.mu.Lock()
		defer img.mu.Unlock()
		img.kept[k] = window
	}
	return window
}

// decoder decodes one block at a time.
type decoder struct {
	record []byte
	flate  io.ReadCloser
	in     bytes.Reader
}

// decode decodes the block of record k into p, which has its length, with the window of the stored
// block before it.
func (img *Image) decode(p []byte, k int, window []byte) error {
	d := img.decoders.Get().(*decoder)
	defer img.decoders.Put(d)
	at := img.m.records[k].offset()
	var header [recordHeader]byte
	if err := readFull(img.m.r, header[:], at); err != nil {
		return err
	}
	// It was checked before, but the file may have been changed since.
	block := int64(img.m.records[k].block)
	length, err := img.m.checkRecord(header[:], at, block)
	if err != nil {
		return err
	}
	if n := binary.LittleEndian.Uint32(header[offNumber:]); int64(n) != block {
		return damaged("the record at %d is of block %d, but block %d is expected", at, n, block)
	}
	payload := int64(binary.LittleEndian.Uint32(header[offPayload:]))
	if int64(cap(d.record)) < length {
		d.record = make([]byte, roundUp(length, 64<<10))
	}
	d.record = d.record[:payload]
	if err := readFull(img.m.r, d.record, at+recordHeader); err != nil {
		return err
	}
	if err := d.inflate(p, d.record, window, k == 0); err != nil {
		return damaged("block %d, in the record at %d: %v", block, at, err)
	}
	return nil
}

// syncFlush ends each piece of the stream: an empty stored block, which ends on a byte.
var syncFlush = []byte{0x00, 0x00, 0xFF, 0xFF}

// inflate decodes a piece of the stream that must hold len(p) bytes. The first piece begins with
// the zlib header, and the stream does not end.
func (d *decoder) inflate(p, payload, window []byte, first bool) error {
	if first {
		// RFC 1950, 2.2: deflate, a window of at most 32 KiB, check bits, no preset dictionary.
		if len(payload) < 2 || payload[0]&0x0F != 8 || payload[0]>>4 > 7 || payload[1]&0x20 != 0 ||
			binary.BigEndian.Uint16(payload)%31 != 0 {
			return errors.New("it does not begin with a zlib header")
		}
		payload = payload[2:]
	}
	d.in.Reset(payload)
	if d.flate == nil {
		d.flate = flate.NewReaderDict(&d.in, window)
	} else if err := d.flate.(flate.Resetter).Reset(&d.in, window); err != nil {
		return err
	}
	switch _, err := io.ReadFull(d.flate, p); {
	case errors.Is(err, io.EOF):
		return errors.New("the stream ends in it")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it decodes to less than a block")
	case err != nil:
		return fmt.Errorf("deflate: %w", err)
	}
	var more [1]byte
	switch n, err := io.ReadFull(d.flate, more[:]); {
	case n > 0:
		return errors.New("it decodes to more than a block")
	case err == io.EOF:
		return errors.New("the stream ends in it")
	case err != io.ErrUnexpectedEOF:
		return fmt.Errorf("deflate: %w", err)
	case !bytes.HasSuffix(payload, syncFlush):
		return errors.New("it ends within a block of the stream")
	}
	return nil
}
