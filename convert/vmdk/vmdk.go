// SPDX-License-Identifier: Apache-2.0

// Package vmdk reads VMDK disks as described in VMware's "Virtual Disk Format 5.0", and the sparse
// formats of ESXi (COWD and seSparse), which that text leaves out, as QEMU reads them.
//
// A VMDK is a descriptor, a text, that lists extents: stretches of the disk, most of which are
// files of their own. [Preflight] takes the file that the user named, which is the descriptor or
// a sparse extent that has it inside, and checks everything that it and its extents say about
// themselves. [Metadata.Open] builds a reader of what passed. The package opens no file: extents
// come from [Options].OpenExtent, by names that were checked to be plain ones.
package vmdk

import (
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/lima-vm/go-qcow2reader/image"
)

// Type is the format's name.
const Type = image.Type("vmdk")

// sectorSize is the unit of every offset and length in the format, in bytes.
const sectorSize = 512

// Magics of the kinds of sparse extents, as the first bytes of their files.
const (
	magicHosted   = "KDMV"
	magicCOWD     = "COWD"
	magicSESparse = "\xBE\xBA\xFE\xCA\x00\x00\x00\x00"
)

// Limits. Those of the descriptor are generous for the thousand extents of a disk of 2 TiB.
const (
	maxDescriptorBytes  = 1 << 20
	maxLineBytes        = 64 << 10
	maxExtents          = 4096
	maxNameBytes        = 255
	maxGrainBytes       = 1 << 30 // QEMU's limit
	maxPackedGrainBytes = 1 << 20 // compressed grains are decoded in memory
	maxTableEntries     = 512     // of a hosted sparse extent
	maxDirectoryBytes   = 32 << 20
	maxIndexBytes       = 64 << 20
)

// Values of createType that are read.
const (
	monolithicSparse    = "monolithicSparse"
	streamOptimized     = "streamOptimized"
	monolithicFlat      = "monolithicFlat"
	twoGbMaxExtentFlat  = "twoGbMaxExtentFlat"
	twoGbMaxExtentSpars = "twoGbMaxExtentSparse"
	vmfsSparse          = "vmfsSparse"
	seSparse            = "seSparse"
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

// file is one of the disk's files.
type file struct {
	r    io.ReaderAt
	size int64 // bytes
}

// readFull reads len(p) bytes at off or fails.
func (f *file) readFull(p []byte, off int64) error { return readFull(f.r, p, off) }

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

func isPowerOfTwo(n uint64) bool { return n != 0 && n&(n-1) == 0 }

// printable returns a text of the image with everything replaced that a terminal could act on.
func printable(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most]
	}
	return strings.Map(func(c rune) rune {
		if c == unicode.ReplacementChar || !unicode.IsPrint(c) {
			return '?'
		}
		return c
	}, s)
}
