// SPDX-License-Identifier: Apache-2.0

package zvhd2

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// Encoder makes records of blocks. It is safe for concurrent use, and what it makes depends on the
// block, the method and the level alone.
type Encoder struct {
	method Method
	level  int
	codecs sync.Pool // of *codec
}

// Default levels are those of the vendor's writer.
const (
	DefaultZstdLevel = 3
	DefaultZlibLevel = 1
)

// NewEncoder returns an encoder. The empty method is [Zstd], and level 0 is the method's default.
// Levels are 1 to 22 for zstd, where several levels give the same result (1-2, 3-5, 6-9, 10-22),
// and 1 to 9 for zlib.
func NewEncoder(method Method, level int) (*Encoder, error) {
	most, standard := 22, DefaultZstdLevel
	switch method {
	case "":
		method = Zstd
	case Zstd:
	case Zlib:
		most, standard = 9, DefaultZlibLevel
	default:
		return nil, fmt.Errorf("compression method %q is not %q or %q", method, Zstd, Zlib)
	}
	if level == 0 {
		level = standard
	}
	if level < 1 || level > most {
		return nil, fmt.Errorf("compression level %d is not between 1 and %d for %s", level, most, method)
	}
	return &Encoder{method: method, level: level}, nil
}

// Append appends the record of a block to dst, a multiple of 4096 bytes. A block of zeros has no
// record: then dst is returned as it is. p has the block's bytes; what it lacks to [BlockSize] is
// zero, as at the end of a disk.
func (e *Encoder) Append(dst []byte, block int64, p []byte) ([]byte, error) {
	if block < 0 || block > math.MaxUint32 || len(p) > BlockSize {
		return dst, fmt.Errorf("block %d of %d bytes cannot be stored", block, len(p))
	}
	if isZero(p) {
		return dst, nil
	}
	c, err := e.codec()
	if err != nil {
		return dst, err
	}
	defer e.codecs.Put(c)
	if len(p) < BlockSize {
		if c.padded == nil {
			c.padded = make([]byte, BlockSize)
		}
		clear(c.padded[copy(c.padded, p):])
		p = c.padded
	}

	start := len(dst)
	var header [recordHeader]byte
	copy(header[:], recordMagic)
	binary.LittleEndian.PutUint32(header[offNumber:], uint32(block))
	dst = append(dst, header[:]...)
	if dst, err = c.compress(dst, p); err != nil {
		return dst[:start], fmt.Errorf("compress block %d: %w", block, err)
	}
	payload := int64(len(dst) - start - recordHeader)
	length := recordLength(payload)
	if length > maxRecord {
		return dst[:start], fmt.Errorf("block %d has %d bytes when compressed, too many for readers", block, payload)
	}
	binary.LittleEndian.PutUint32(dst[start+offPayload:], uint32(payload))
	padding := int(length) - (len(dst) - start) - len(recordEnd)
	dst = append(dst, zeros[:padding]...)
	return append(dst, recordEnd...), nil
}

// codec compresses one block at a time.
type codec struct {
	zstd   *zstd.Encoder
	zlib   *zlib.Writer
	out    sink
	padded []byte // a block
}

// codec returns one from the pool or a new one.
func (e *Encoder) codec() (*codec, error) {
	if c, _ := e.codecs.Get().(*codec); c != nil {
		return c, nil
	}
	c := new(codec)
	var err error
	if e.method == Zlib {
		c.zlib, err = zlib.NewWriterLevel(&c.out, e.level)
		return c, err
	}
	// The frame is that of the vendor's writer: a single segment with its content size, without
	// checksum. A window of one block is all of it. One at a time: no goroutines of its own.
	c.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(BlockSize), zstd.WithSingleSegment(true), zstd.WithLowerEncoderMem(true),
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(e.level)))
	return c, err
}

// compress appends the payload for a whole block.
func (c *codec) compress(dst, p []byte) ([]byte, error) {
	if c.zstd != nil {
		return c.zstd.EncodeAll(p, dst), nil
	}
	c.out = dst
	c.zlib.Reset(&c.out)
	_, err := c.zlib.Write(p)
	if err == nil {
		// Not closed: the vendor's reader takes the end of the stream for a failure.
		err = c.zlib.Flush()
	}
	dst, c.out = c.out, nil
	return dst, err
}

// sink is a slice to append to.
type sink []byte

func (s *sink) Write(p []byte) (int, error) {
	*s = append(*s, p...)
	return len(p), nil
}
