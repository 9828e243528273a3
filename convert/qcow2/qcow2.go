// SPDX-License-Identifier: Apache-2.0

// Package qcow2 reads QCOW2 disks of versions 2 and 3, as specified in QEMU's
// docs/interop/qcow2.txt.
//
// [Preflight] checks everything that an image says about itself, from the header to the last L2
// entry, and [Metadata.Open] builds a reader of an image that passed. What lies in one piece in the file is
// read in one piece, and compressed clusters are decoded right to where they are wanted. go-qcow2reader,
// which reads one cluster after the other and sets a decoder up for each, is what tests compare with. The
// data of an image with an external data file is read from that, if the caller opens it.
package qcow2

import (
	"fmt"
	"io"

	lib "github.com/lima-vm/go-qcow2reader/image/qcow2"
)

// Type is the format's name.
const Type = lib.Type

// magic is the first four bytes of every version of the format.
const magic = "QFI\xfb"

// Limits of the header's fields. Those of cluster_bits, the L1 table, the refcount table and the
// snapshot table are QEMU's; the format itself leaves most of them open.
const (
	minClusterBits         = 9
	maxClusterBits         = 21
	minClusterBitsExtended = 14
	maxL1Bytes             = 32 << 20
	maxRefcountTableBytes  = 8 << 20
	maxSnapshots           = 65536
	maxBackingName         = 1023
	maxExtensions          = 256
)

// Bits of incompatible_features ("Header", bytes 72 - 79).
const (
	incompatDirty       = 1 << 0
	incompatCorrupt     = 1 << 1
	incompatDataFile    = 1 << 2
	incompatCompression = 1 << 3
	incompatExtendedL2  = 1 << 4
	incompatKnown       = 1<<5 - 1
)

// autoclearRawData, a bit of autoclear_features ("Header", bytes 88 - 95), says that the external data
// file is the disk also without the tables.
const autoclearRawData = 1 << 1

// Types of header extensions ("Header extensions").
const (
	extEnd           = 0x00000000
	extBackingFormat = 0xE2792ACA
	extFeatureNames  = 0x6803F857
	extBitmaps       = 0x23852875
	extEncryption    = 0x0537BE77
	extDataFile      = 0x44415441
)

// Compression types (header byte 104).
const (
	compressionZlib = 0 // DEFLATE without a zlib header, whatever the name says
	compressionZstd = 1
)

// Bits of L1 and L2 entries ("Cluster mapping").
const (
	entryOffset     = 0x00FFFFFFFFFFFE00 // host offset of a table or a standard cluster
	entryCopied     = 1 << 63            // refcount is exactly one; no meaning to a reader
	entryCompressed = 1 << 62
	entryZero       = 1 << 0
	l1Reserved      = ^uint64(entryOffset | entryCopied)
	l2Reserved      = ^uint64(entryOffset | entryCopied | entryCompressed | entryZero)
)

// Error says what is wrong with an image or what it needs that is not supported.
type Error struct {
	Reason   string // the field or table, its offset and its value; strings are quoted
	Remedy   string // what to do next, "" if nothing helps
	Forcible bool   // [Options].Force would accept it
}

// Error returns the reason.
func (e *Error) Error() string { return e.Reason }

// Refusal returns the reason and what to do next, which is "" if nothing helps.
func (e *Error) Refusal() (reason, remedy string) { return e.Reason, e.Remedy }

// NeedsForce tells whether the image is refused only because it says of itself that it is damaged.
func (e *Error) NeedsForce() bool { return e.Forcible }

func bad(format string, args ...any) error { return &Error{Reason: fmt.Sprintf(format, args...)} }

// view is what is read after the checks: the image file with the first cluster replaced by a header
// that only says what a reader may act on, and with the last host cluster filled up with zeros.
type view struct {
	r           io.ReaderAt
	header      []byte // start of the first cluster, whose rest is zeros
	clusterBits uint
	size        int64 // of the file
}

// ReadAt implements [io.ReaderAt]. Reads inside the file are complete or fail.
func (v *view) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, bad("read at the negative offset %d", off)
	}
	done := 0
	if cluster := int64(1) << v.clusterBits; off < cluster {
		done = int(min(int64(len(p)), cluster-off))
		clear(p[:done])
		if off < int64(len(v.header)) {
			copy(p[:done], v.header[off:])
		}
	}
	if done == len(p) {
		return done, nil
	}
	off += int64(done)
	end := roundUp(v.size, 1<<v.clusterBits)
	if off >= end {
		return done, io.EOF
	}
	eof := false
	if int64(len(p)-done) > end-off {
		p, eof = p[:int64(done)+end-off], true
	}
	inFile := max(0, min(int64(len(p)-done), v.size-off))
	if inFile > 0 {
		n, err := v.r.ReadAt(p[done:int64(done)+inFile], off)
		done += n
		if int64(n) < inFile {
			if err == nil || err == io.EOF {
				err = fmt.Errorf("the file ends at byte %d, expected %d: %w", off+int64(n), v.size,
					io.ErrUnexpectedEOF)
			}
			return done, err
		}
	}
	clear(p[done:])
	if eof {
		return len(p), io.EOF
	}
	return len(p), nil
}

// roundUp rounds n up to a multiple of unit, a power of two.
func roundUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
