// SPDX-License-Identifier: Apache-2.0

// Package vhd reads VHD disks, as specified in Microsoft's "Virtual Hard Disk Image Format
// Specification" of 2006: fixed, dynamic, and differencing ones whose parent the caller gives.
//
// [Preflight] checks everything that an image says about itself, from the footers to the last entry
// of the block allocation table, and [Metadata.Open] builds a reader of an image that passed. All
// numbers of the format are big-endian and a sector has 512 bytes.
package vhd

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/lima-vm/go-qcow2reader/image"
)

// Type is the format's name.
const Type = image.Type("vhd")

// Variants of the format (see [Metadata].Variant).
const (
	VariantFixed        = "fixed"
	VariantDynamic      = "dynamic"
	VariantDifferencing = "differencing"
)

const (
	sectorSize   = 512
	footerBytes  = 512
	oldFooter    = 511 // what was written before Virtual PC 2004: the same without the last byte
	headerBytes  = 1024
	footerCookie = "conectix"
	headerCookie = "cxsparse"
	version1     = 0x00010000

	noOffset    = 1<<64 - 1 // "Data Offset" of a fixed disk
	unallocated = 1<<32 - 1 // entry of the block allocation table
)

// Values of "Disk Type" in the footer.
const (
	diskFixed        = 2
	diskDynamic      = 3
	diskDifferencing = 4
)

const (
	// maxDynamicSize is the largest disk with a block allocation table, in bytes (2040 GiB): its
	// entries are 32-bit numbers of sectors.
	maxDynamicSize = 2040 << 30
	// Block sizes in bytes. The specification says 2 MiB and 512 KiB exist; the bounds keep a block
	// above its own sector bitmap and far below the limits of what is computed with it.
	minBlockSize = 4 << 10
	maxBlockSize = 256 << 20
	// maxGeometry is the number of sectors of the largest geometry that the footer can state. Disks
	// beyond it state it too, so it says nothing about the size.
	maxGeometry = 65535 * 16 * 255
)

// Error says what is wrong with an image or what it needs that is not supported.
type Error struct {
	Reason string // the field or table, its offset and its value; strings are quoted
	Remedy string // what to do next, "" if nothing helps
	Sizes  bool   // [Options].Size would settle it
}

// Error returns the reason.
func (e *Error) Error() string { return e.Reason }

// Refusal returns the reason and what to do next, which is "" if nothing helps.
func (e *Error) Refusal() (reason, remedy string) { return e.Reason, e.Remedy }

// NeedsSize tells whether the image is refused only because its two sizes leave data in doubt.
func (e *Error) NeedsSize() bool { return e.Sizes }

func bad(format string, args ...any) error { return &Error{Reason: fmt.Sprintf(format, args...)} }

// footer is the "Hard Disk Footer Format", checked by itself.
type footer struct {
	temporary      bool
	dataOffset     uint64 // bytes
	timestamp      uint32
	creator        string // four bytes
	creatorVersion uint32
	currentSize    uint64 // bytes
	cylinders      uint16
	heads, sectors uint8
	diskType       uint32
	id             [16]byte
	savedState     bool
}

// parseFooter returns the footer in p, which begins with the cookie, or what is wrong with it.
func parseFooter(p []byte, at int64) (*footer, error) {
	be := binary.BigEndian
	if want, got := checksum(p, 64), be.Uint32(p[64:]); want != got {
		return nil, bad("the checksum %#08x of the footer at %d should be %#08x", got, at, want)
	}
	if v := be.Uint32(p[12:]); v>>16 != version1>>16 {
		return nil, bad("version %#08x of the footer at %d is not 1", v, at)
	}
	return &footer{
		temporary:      be.Uint32(p[8:])&1 != 0,
		dataOffset:     be.Uint64(p[16:]),
		timestamp:      be.Uint32(p[24:]),
		creator:        string(p[28:32]),
		creatorVersion: be.Uint32(p[32:]),
		currentSize:    be.Uint64(p[48:]),
		cylinders:      be.Uint16(p[56:]),
		heads:          p[58],
		sectors:        p[59],
		diskType:       be.Uint32(p[60:]),
		id:             [16]byte(p[68:84]),
		savedState:     p[84] != 0,
	}, nil
}

// chsSize returns the size in bytes by "Disk Geometry".
func (f *footer) chsSize() int64 {
	return int64(f.cylinders) * int64(f.heads) * int64(f.sectors) * sectorSize
}

// geometryCounts tells whether the creator's own tool shows a disk of the geometry's size: Virtual
// PC does, and so does QEMU for its own images. All others show "Current Size".
func (f *footer) geometryCounts() bool {
	return (f.creator == "vpc " || f.creator == "qemu") && f.chsSize() != maxGeometry*sectorSize
}

// creatorName returns the creating application and its version in printable characters.
func (f *footer) creatorName() string {
	name := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.TrimRight(f.creator, " \x00"))
	return fmt.Sprintf("%s %d.%d", name, f.creatorVersion>>16, f.creatorVersion&0xFFFF)
}

// checksum returns the ones' complement of the sum of all bytes of p but the four of the checksum
// itself at the position field.
func checksum(p []byte, field int) uint32 {
	sum := uint32(0)
	for i, b := range p {
		if i < field || i >= field+4 {
			sum += uint32(b)
		}
	}
	return ^sum
}

// timeOf returns the time of a "Time Stamp": seconds since 2000 began, in UTC. 0 is no time.
func timeOf(stamp uint32) time.Time {
	if stamp == 0 {
		return time.Time{}
	}
	return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(stamp) * time.Second)
}

// formatID returns a unique id in the usual notation, its bytes in the order of the file.
func formatID(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16])
}

// readFull reads len(p) bytes at off or fails.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%d bytes at offset %d: %w", len(p), off, err)
}

// roundUp rounds n up to a multiple of unit, a power of two.
func roundUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
