// SPDX-License-Identifier: Apache-2.0

// Package zvhd reads ZVHD disks, the older format of Huawei Cloud's image service, as its published
// QEMU block driver (huaweicloud/ims-qemu-img) writes and reads them.
//
// A file holds one disk in blocks of 2 MiB. A block of zeros is left out; every other block is in a
// record of whole pages of 4096 bytes. All records together carry one zlib stream. All integers are
// little-endian.
//
//	head page | records in ascending block order | tail page, a copy of the head page
//
// There is no index: [Preflight] goes from record to record. The stream ends on a byte at the end
// of each record, and it never refers back more than 32 KiB; so a block can be decoded with the end
// of the stored block before it, and [Image] keeps some of these ends.
package zvhd

import (
	"fmt"

	"github.com/lima-vm/go-qcow2reader/image"
)

// Type is the format's name.
const Type = image.Type("zvhd")

// BlockSize is the number of bytes of the disk in a block, fixed by the format.
const BlockSize = 2 << 20

// magic begins the head page and the tail page. The field has eight bytes; readers compare six.
const magic = "stream"

// Lengths in bytes.
const (
	pageSize   = 4096
	headerSize = 512 // the rest of the head page is filler
	sectorSize = 512
	windowSize = 32 << 10 // how far the stream refers back
)

// Offsets of the header's fields.
const (
	offCreator        = 28 // 4 bytes
	offCreatorVersion = 32 // u32
	offOriginalSize   = 40 // u64, bytes
	offCurrentSize    = 48 // u64, bytes
	offChecksum       = 64 // u32
	offHidden         = 85 // u8
)

// A record is a header, a piece of the stream, padding, and the end mark as its last four bytes.
const (
	recordMagic  = "hwstream bg\x00"
	recordEnd    = "end\x00"
	recordHeader = 48
	recordFrame  = recordHeader + len(recordEnd)
	maxRecord    = 4198400 // the buffer of the vendor's reader
	offPayload   = 12      // u32, bytes of the stream
	offNumber    = 16      // u32, number of the block
)

// Error says what is wrong with an image or what it needs that is not supported.
type Error struct {
	Reason string // the field or record, its offset in the file and its value; strings are quoted
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

// recordLength returns the length of the record with a payload of n bytes.
func recordLength(n int64) int64 { return roundUp(n+int64(recordFrame), pageSize) }

// roundUp rounds n up to a multiple of unit, a power of two.
func roundUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
