// SPDX-License-Identifier: Apache-2.0

// Package qcow1 reads disks of version 1 of the QCOW format, the predecessor of QCOW2 that QEMU's
// block/qcow.c defines.
//
// [Preflight] checks everything that an image says about itself, from the header to the last entry
// of the L2 tables, and [Metadata.Open] builds a reader of an image that passed. All numbers of the
// format are big-endian.
package qcow1

import (
	"fmt"
	"io"

	"github.com/lima-vm/go-qcow2reader/image"
)

// Type is the format's name, which is QEMU's.
const Type = image.Type("qcow")

const (
	magic       = "QFI\xfb" // of every version
	headerBytes = 48
	sectorSize  = 512
)

// Limits of the header's fields. Those of the bits and of the backing file name are QEMU's.
const (
	minClusterBits = 9
	maxClusterBits = 16
	minL2Bits      = 6 // of entries
	maxL2Bits      = 13
	maxBackingName = 1023
	maxL1Bytes     = 32 << 20
	// maxCells bounds each of the two sets that keep track of the file's clusters to 32 MiB. With
	// the usual clusters of 4 KiB that is a file of 1 TiB.
	maxCells = 1 << 28
)

// entryCompressed is the bit of an L2 entry that says that the cluster is compressed.
const entryCompressed = 1 << 63

// Values of the crypt method.
const (
	cryptNone = 0
	cryptAES  = 1
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
