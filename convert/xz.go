// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/ulikunitz/xz"
)

// The XZ file format, version 1.2.1. The library that decodes it takes the size of its window, up
// to 4 GiB, from the header of each block. So the blocks are found by the index here, each is
// checked, and then decoded as a small file of its own whose frame is made here.

// Magics and lengths ("Stream Header", "Stream Footer").
const (
	xzHeaderMagic = "\xFD7zXZ\x00"
	xzFooterMagic = "YZ"
	xzFrameBytes  = 12 // of the header and of the footer
)

const (
	maxXZIndexBytes = 64 << 20 // an index has some bytes for every block
	maxXZBlocks     = 1 << 20
	maxXZStreams    = 1 << 16
	xzFilterLZMA2   = 0x21
)

// xzBlock is a block of a file, as an index says.
type xzBlock struct {
	offset   int64   // in the file
	unpadded int64   // bytes in the file without the padding at the end
	size     int64   // bytes unpacked
	flags    [2]byte // of its stream
}

// errXZEnd says that the end of a file is not that of XZ data.
var errXZEnd = errors.New("its end is not that of an xz file")

// readXZBlocks finds the blocks of all streams in the size bytes of r, from the last stream to the
// first.
func readXZBlocks(r io.ReaderAt, size int64) ([]xzBlock, error) {
	var streams [][]xzBlock
	total := 0
	for end := size; end > 0; {
		// "Stream Padding": zeros, in units of four bytes.
		for n := 0; end >= 4; n++ {
			var p [4]byte
			if err := readFull(r, p[:], end-4); err != nil {
				return nil, err
			}
			if p != [4]byte{} {
				break
			}
			if end == size && n == 0 && size%4 != 0 || n > 1<<20 {
				return nil, errXZEnd
			}
			end -= 4
		}
		if len(streams) == maxXZStreams {
			return nil, fmt.Errorf("it has more than %d streams", maxXZStreams)
		}
		blocks, start, err := readXZStream(r, end)
		if err != nil {
			return nil, err
		}
		if total += len(blocks); total > maxXZBlocks {
			return nil, fmt.Errorf("it has more than %d blocks", maxXZBlocks)
		}
		streams, end = append(streams, blocks), start
	}
	out := make([]xzBlock, 0, total)
	for i := len(streams) - 1; i >= 0; i-- {
		out = append(out, streams[i]...)
	}
	return out, nil
}

// readXZStream returns the blocks of the stream that ends at an offset, and where it begins.
func readXZStream(r io.ReaderAt, end int64) (blocks []xzBlock, start int64, err error) {
	var f [xzFrameBytes]byte
	if end < 2*xzFrameBytes+8 {
		return nil, 0, errXZEnd
	}
	if err := readFull(r, f[:], end-xzFrameBytes); err != nil {
		return nil, 0, err
	}
	le := binary.LittleEndian
	if string(f[10:]) != xzFooterMagic || le.Uint32(f[:]) != crc32.ChecksumIEEE(f[4:10]) {
		return nil, 0, errXZEnd
	}
	flags := [2]byte(f[8:10])
	n := (int64(le.Uint32(f[4:])) + 1) * 4
	if n > min(maxXZIndexBytes, end-2*xzFrameBytes) {
		return nil, 0, fmt.Errorf("its index of %d bytes is too large", n)
	}
	index := make([]byte, n)
	start = end - xzFrameBytes - n // of the index, so far
	if err := readFull(r, index, start); err != nil {
		return nil, 0, err
	}
	if blocks, err = parseXZIndex(index); err != nil {
		return nil, 0, err
	}
	for i := len(blocks) - 1; i >= 0; i-- {
		b := &blocks[i]
		if b.unpadded > start-xzFrameBytes {
			return nil, 0, errors.New("its index has more bytes than the file")
		}
		start -= (b.unpadded + 3) &^ 3
		b.offset, b.flags = start, flags
	}
	start -= xzFrameBytes
	if start < 0 {
		return nil, 0, errors.New("its index has more bytes than the file")
	}
	if err := readFull(r, f[:], start); err != nil {
		return nil, 0, err
	}
	if string(f[:6]) != xzHeaderMagic || [2]byte(f[6:8]) != flags || le.Uint32(f[8:]) != crc32.ChecksumIEEE(f[6:8]) {
		return nil, 0, fmt.Errorf("the stream at %d has no valid header", start)
	}
	return blocks, start, nil
}

// parseXZIndex reads an "Index".
func parseXZIndex(p []byte) ([]xzBlock, error) {
	damaged := errors.New("its index is damaged")
	body, sum := p[:len(p)-4], binary.LittleEndian.Uint32(p[len(p)-4:])
	if p[0] != 0 || sum != crc32.ChecksumIEEE(body) {
		return nil, damaged
	}
	rest := body[1:]
	next := func() (v int64, ok bool) {
		u, n := binary.Uvarint(rest)
		if n <= 0 || n > 9 || u > 1<<62 {
			return 0, false
		}
		rest = rest[n:]
		return int64(u), true
	}
	count, ok := next()
	if !ok || count > int64(len(rest)/2) || count > maxXZBlocks {
		return nil, damaged
	}
	blocks := make([]xzBlock, count)
	for i := range blocks {
		b := &blocks[i]
		var ok1, ok2 bool
		b.unpadded, ok1 = next()
		b.size, ok2 = next()
		if !ok1 || !ok2 || b.unpadded < 5 {
			return nil, damaged
		}
	}
	if len(rest) > 3 || len(bytes.Trim(rest, "\x00")) > 0 {
		return nil, damaged
	}
	return blocks, nil
}

// xzReader reads the blocks of a file one after the other. Each can be unpacked without those before
// it.
type xzReader struct {
	r      io.ReaderAt
	starts []restart
	blocks []xzBlock
	cur    io.Reader // of the first of blocks, nil = not begun
	left   int64     // bytes that cur still has to give
}

// newXZReader reads from the block of that number on.
func newXZReader(r io.ReaderAt, size, first int64) (*xzReader, error) {
	blocks, err := readXZBlocks(r, size)
	if err != nil {
		return nil, err
	}
	if first > int64(len(blocks)) {
		return nil, errXZEnd // it has fewer blocks than before
	}
	x := &xzReader{r: r, blocks: blocks[first:]}
	last, out := int64(0), int64(0)
	for i, b := range blocks {
		if out-last >= minRestart {
			x.starts = append(x.starts, restart{int64(i), out})
			last = out
		}
		out += b.size
	}
	return x, nil
}

// places returns where blocks begin.
func (x *xzReader) places() []restart { return x.starts }

// Close implements [io.Closer].
func (x *xzReader) Close() error { return nil }

// Read implements [io.Reader].
func (x *xzReader) Read(p []byte) (int, error) {
	for {
		if x.cur == nil {
			if len(x.blocks) == 0 {
				return 0, io.EOF
			}
			var err error
			if x.cur, err = x.openBlock(x.blocks[0]); err != nil {
				return 0, fmt.Errorf("block at %d: %w", x.blocks[0].offset, err)
			}
			x.left = x.blocks[0].size
		}
		// One byte more than there should be, so that the block is read to its end.
		n, err := x.cur.Read(p[:min(int64(len(p)), x.left+1)])
		if x.left -= int64(n); x.left < 0 {
			return 0, fmt.Errorf("block at %d: it is longer than the index says", x.blocks[0].offset)
		}
		if err == io.EOF {
			if x.left > 0 {
				return n, io.ErrUnexpectedEOF
			}
			x.cur, x.blocks, err = nil, x.blocks[1:], nil
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// openBlock frames a block as a file of its own. Its window is made as small as what it holds.
func (x *xzReader) openBlock(b xzBlock) (io.Reader, error) {
	header, err := x.readBlockHeader(b)
	if err != nil {
		return nil, err
	}
	stream := append([]byte(xzHeaderMagic), b.flags[:]...)
	stream = binary.LittleEndian.AppendUint32(stream, crc32.ChecksumIEEE(b.flags[:]))
	stream = append(stream, header...)

	index := binary.AppendUvarint([]byte{0, 1}, uint64(b.unpadded))
	index = binary.AppendUvarint(index, uint64(b.size))
	index = append(index, make([]byte, -len(index)&3)...)
	index = binary.LittleEndian.AppendUint32(index, crc32.ChecksumIEEE(index))
	footer := binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1))
	footer = append(footer, b.flags[:]...)
	footer = append(binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(footer)), footer...)
	footer = append(footer, xzFooterMagic...)

	rest := (b.unpadded+3)&^3 - int64(len(header))
	return xz.ReaderConfig{DictCap: 1 << 16, SingleStream: true}.NewReader(bufio.NewReaderSize(io.MultiReader(
		bytes.NewReader(stream),
		io.NewSectionReader(x.r, b.offset+int64(len(header)), rest),
		bytes.NewReader(index), bytes.NewReader(footer)), 64<<10))
}

// readBlockHeader reads a "Block Header", and lowers the size of its window to what the block
// needs.
func (x *xzReader) readBlockHeader(b xzBlock) ([]byte, error) {
	var size [1]byte
	if err := readFull(x.r, size[:], b.offset); err != nil {
		return nil, err
	}
	n := (int64(size[0]) + 1) * 4
	if size[0] == 0 || n > b.unpadded {
		return nil, errors.New("its header is damaged")
	}
	h := make([]byte, n)
	if err := readFull(x.r, h, b.offset); err != nil {
		return nil, err
	}
	sum := h[n-4:]
	if binary.LittleEndian.Uint32(sum) != crc32.ChecksumIEEE(h[:n-4]) {
		return nil, errors.New("its header is damaged")
	}
	// Flags: the number of filters less one, and which sizes follow.
	pos := 2
	for _, bit := range []byte{0x40, 0x80} {
		if h[1]&bit == 0 {
			continue
		}
		_, k := binary.Uvarint(h[pos : n-4])
		if k <= 0 {
			return nil, errors.New("its header is damaged")
		}
		pos += k
	}
	if h[1]&0x3F != 0 || int64(pos)+3 > n-4 || h[pos] != xzFilterLZMA2 || h[pos+1] != 1 || h[pos+2] > 40 {
		return nil, errors.New("it uses a filter other than LZMA2, which is not read")
	}
	need := min(xzWindow(h[pos+2]), max(b.size, 4096))
	if need > maxWindow {
		return nil, fmt.Errorf("its window of %d bytes is larger than %d", need, maxWindow)
	}
	for h[pos+2] > 0 && xzWindow(h[pos+2]-1) >= need {
		h[pos+2]--
	}
	binary.LittleEndian.PutUint32(sum, crc32.ChecksumIEEE(h[:n-4]))
	return h, nil
}

// xzWindow returns the window in bytes that the LZMA2 properties say.
func xzWindow(bits byte) int64 {
	if bits >= 40 {
		return 1<<32 - 1
	}
	return (2 | int64(bits&1)) << (bits/2 + 11)
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
