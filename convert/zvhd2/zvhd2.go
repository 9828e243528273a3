// SPDX-License-Identifier: Apache-2.0

// Package zvhd2 reads and writes ZVHD2 disks, the format of Huawei Cloud's image service, as its
// published QEMU block driver (huaweicloud/ims-qemu-img) reads and writes them.
//
// A file holds one disk in blocks of 2 MiB. A block of zeros is left out; every other block is
// compressed on its own into a record of whole pages of 4096 bytes. All integers are little-endian.
//
//	head page | records in ascending block order | middle page | index | bitmap | footer page
//
// The three single pages hold the same header. Only the footer, which is the last page of the file,
// knows where the index (a 16-byte entry for each stored block) and the bitmap (a bit for each
// block) are. Nothing refers forward, so that a file can be written to a stream that cannot seek.
//
// [Preflight] checks everything that a file says about itself, and [Metadata.Open] builds a reader
// of a file that passed. [NewWriter] writes a file with several encoders at once; an [Encoder] and
// an [Assembler] are the two halves of it.
package zvhd2

import (
	"bytes"
	"fmt"

	"github.com/lima-vm/go-qcow2reader/image"
)

// Type is the format's name.
const Type = image.Type("zvhd2")

// BlockSize is the number of bytes of the disk in a block. The header names it, but no other value
// works with the vendor's driver.
const BlockSize = 2 << 20

// MaxSize is the largest size of a disk in bytes, 256 TiB. The format itself ends at 512 TiB of
// stored data, where the header's 32-bit field for the length of the index is full.
const MaxSize = 256 << 40

// Method says how blocks are compressed. It is the same for all blocks of a file.
type Method string

// Methods of compression.
const (
	Zstd Method = "zstd"
	Zlib Method = "zlib"
)

// magic begins each of the header's three copies. The field has eight bytes; readers compare six.
const magic = "z2strm\x00\x00"

// Lengths in bytes, unless said otherwise.
const (
	pageSize      = 4096
	headerSize    = 512       // the rest of a header page is filler
	indexSegment  = 512 << 10 // the index has whole segments
	indexEntry    = 16
	bitmapSegment = 4096  // the bitmap has whole segments
	segmentBlocks = 32768 // entries of an index segment, and bits of a bitmap segment
	sectorSize    = 512
	gib           = 1 << 30 // current size is a multiple of this
)

// Offsets of the header's fields.
const (
	offMagic               = 0   // 8 bytes
	offFeatures            = 8   // u32
	offFileVersion         = 12  // u32
	offNext                = 16  // u64
	offTime                = 24  // u32, seconds since 2000-01-01 00:00:00 UTC
	offCreator             = 28  // 4 bytes
	offCreatorVersion      = 32  // u32
	offOriginalSize        = 40  // u64, bytes
	offCurrentSize         = 48  // u64, bytes
	offGeometry            = 56  // u32
	offDiskType            = 60  // u32
	offChecksum            = 64  // u32
	offUUID                = 68  // 16 bytes
	offHidden              = 85  // u8
	offLayout              = 87  // u8, 0 = without an index
	offBlockSize           = 88  // u32, bytes
	offBlockCount          = 92  // u32
	offIndexOffset         = 96  // u64, bytes
	offBitmapOffset        = 104 // u64, bytes
	offIndexBytes          = 112 // u32
	offBitmapBytes         = 116 // u32
	offIndexSegmentBytes   = 120 // u32
	offBitmapSegmentBytes  = 124 // u32
	offIndexSegmentCount   = 128 // u32
	offBitmapSegmentsCount = 132 // u32
	offStored              = 136 // u32, number of stored blocks
	offDense               = 140 // u8, not 0 = the index has an entry for every block
	offMethod              = 141 // u8
)

// Values of the header's method field.
const (
	methodZlib = 0
	methodZstd = 1
)

// A record is a header, the compressed block, padding, and the end mark as its last four bytes.
const (
	recordMagic  = "hwstream bg\x00"
	recordEnd    = "end\x00"
	recordHeader = 48
	recordFrame  = recordHeader + len(recordEnd)
	maxRecord    = 4202496 // the buffer of the vendor's reader
)

// Offsets of a record's fields.
const (
	offPayload = 12 // u32, bytes of compressed data
	offNumber  = 16 // u32, number of the block
)

// Error says what is wrong with an image or what it needs that is not supported.
type Error struct {
	Reason string // the field or table, its offset in the file and its value; strings are quoted
	Remedy string // what to do next, "" if nothing helps
}

// Error returns the reason.
func (e *Error) Error() string { return e.Reason }

// Refusal returns the reason and the remedy.
func (e *Error) Refusal() (reason, remedy string) { return e.Reason, e.Remedy }

func bad(format string, args ...any) error { return &Error{Reason: fmt.Sprintf(format, args...)} }

// damaged is for what a complete download of an intact file does not have.
func damaged(format string, args ...any) error {
	return &Error{
		Reason: fmt.Sprintf(format, args...),
		Remedy: "the file is truncated or damaged: get it again and compare its checksum",
	}
}

// checksum is the complement of the sum of all bytes of a header but the checksum's own.
func checksum(h []byte) uint32 {
	sum := uint32(0)
	for i, b := range h[:headerSize] {
		if i < offChecksum || i >= offChecksum+4 {
			sum += uint32(b)
		}
	}
	return ^sum
}

// blockCount returns the number of blocks of a disk of size bytes.
func blockCount(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// segments returns the number of index or bitmap segments for n entries or bits.
func segments(n int64) int64 { return (n + segmentBlocks - 1) / segmentBlocks }

// recordLength returns the length of the record with a payload of n bytes.
func recordLength(n int64) int64 { return roundUp(n+int64(recordFrame), pageSize) }

// roundUp rounds n up to a multiple of unit, a power of two.
func roundUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }

var zeros [64 << 10]byte

// isZero tells whether all bytes of p are zero.
func isZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}
