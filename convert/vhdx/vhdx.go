// SPDX-License-Identifier: Apache-2.0

// Package vhdx reads VHDX disks, as specified in Microsoft's [MS-VHDX]: fixed, dynamic, and
// differencing ones whose parent the caller gives.
//
// [Preflight] checks everything that an image says about itself, from the headers to the last entry
// of the block allocation table, and [Metadata.Open] builds a reader of an image that passed. An
// image that was not closed cleanly has metadata updates in its log; they are applied in memory,
// and the file is never written to. All numbers of the format are little-endian.
package vhdx

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/lima-vm/go-qcow2reader/image"
)

// Type is the format's name.
const Type = image.Type("vhdx")

// Variants of the format (see [Metadata].Variant).
const (
	VariantFixed        = "fixed"
	VariantDynamic      = "dynamic"
	VariantDifferencing = "differencing"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	tib = 1 << 40
)

// Places and lengths of the structures in the first MB ("Header Section").
const (
	fileSignature = "vhdxfile"
	headerBytes   = 4 * kib
	regionBytes   = 64 * kib
	headerSection = 1 * mib
)

var (
	headerOffsets = [2]int64{64 * kib, 128 * kib}
	regionOffsets = [2]int64{192 * kib, 256 * kib}
)

const (
	maxVirtualSize = 64 * tib
	minBlockSize   = 1 * mib
	maxBlockSize   = 256 * mib
	// maxFileSize bounds the file, also as the log would make it grow. It is twice what the largest
	// disk needs, and it bounds the memory that the check for overlaps takes to 16 MiB.
	maxFileSize = 2 * maxVirtualSize
	// maxLogBytes bounds the log. What writes the format makes logs of 1 MB.
	maxLogBytes = 128 * mib
	maxEntries  = 2047    // of the region table and of the metadata table
	maxItem     = 1 * mib // bytes of a metadata item
)

// States of a payload block ("Payload BAT Entry States") and of a sector bitmap block.
const (
	stateNotPresent       = 0
	stateUndefined        = 1
	stateZero             = 2
	stateUnmapped         = 3
	stateFullyPresent     = 6
	statePartiallyPresent = 7

	stateMask  = 7
	offsetMask = ^uint64(mib - 1) // a file offset in whole MB, in bytes
)

// guid is a GUID as stored: the first three groups are little-endian.
type guid [16]byte

// String returns the usual notation, in small letters.
func (g guid) String() string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g[0:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:16])
}

// The GUIDs of the format, in the usual notation.
const (
	guidBAT      = "2dc27766-f623-4200-9d64-115e9bfd4a08"
	guidMetadata = "8b7ca206-4790-4b9a-b8fe-575f050f886e"

	guidFileParameters = "caa16737-fa36-4d43-b3b6-33f0aa44e76b"
	guidVirtualSize    = "2fa54224-cd1b-4876-b211-5dbed83bf4b8"
	guidDiskID         = "beca12ab-b2e6-4523-93ef-c309e000c746"
	guidLogicalSector  = "8141bf1d-a96f-4709-ba47-f233a8faab5f"
	guidPhysicalSector = "cda348c7-445d-4471-9cc9-e9885251c556"
	guidParentLocator  = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c"

	guidLocatorVHDX = "b04aefb7-d19e-4a81-b789-25b8e9445913"
)

// Error says what is wrong with an image or what it needs that is not supported.
type Error struct {
	Reason string // the field or table, its offset and its value; strings are quoted
	Remedy string // what to do next, "" if nothing helps
}

// Error returns the reason.
func (e *Error) Error() string { return e.Reason }

// Refusal returns the reason and what to do next, which is "" if nothing helps.
func (e *Error) Refusal() (reason, remedy string) { return e.Reason, e.Remedy }

func bad(format string, args ...any) error { return &Error{Reason: fmt.Sprintf(format, args...)} }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns the CRC-32C of p with the four bytes of the checksum itself, at offset 4, as
// zeros.
func checksum(p []byte) uint32 {
	sum := crc32.Update(0, castagnoli, p[:4])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	return crc32.Update(sum, castagnoli, p[8:])
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
