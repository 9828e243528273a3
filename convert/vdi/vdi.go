// SPDX-License-Identifier: Apache-2.0

// Package vdi reads VirtualBox disk images (VDI) of version 1.1, as the headers of VirtualBox's own
// storage code define them: dynamic and static ones.
//
// [Preflight] checks everything that an image says about itself, from the header to the last entry
// of the block map, and [Metadata.Open] builds a reader of an image that passed. All numbers of the
// format are little-endian.
package vdi

import (
	"fmt"
	"io"
	"strings"

	"github.com/lima-vm/go-qcow2reader/image"
)

// Type is the format's name.
const Type = image.Type("vdi")

// Variants of the format (see [Metadata].Variant).
const (
	VariantDynamic = "dynamic"
	VariantStatic  = "static"
)

const (
	signature   = 0xBEDA107F
	version11   = 0x00010001
	sectorSize  = 512
	headerBytes = 512 // pre-header and header, with the padding behind them
)

// Values of the image type.
const (
	imageDynamic      = 1
	imageStatic       = 2
	imageUndo         = 3
	imageDifferencing = 4
)

// Entries of the block map that name no block.
const (
	entryFree      = 0xFFFFFFFF // never written
	entryDiscarded = 0xFFFFFFFE // reads as zeros
)

// Limits of the header's fields.
const (
	// VirtualBox makes blocks of 1 MiB and reads any power of two. The bounds keep the number of
	// blocks and what is computed with their size far from the limits of their types.
	minBlockSize = 4 << 10
	maxBlockSize = 64 << 20
	// maxBlocks is the longest block map that QEMU reads: 2 GiB.
	maxBlocks = 0x1FFFFF80
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

// printable returns the text in p up to its first NUL, without the brackets and the line feed that
// writers put around their names, in printable ASCII.
func printable(p []byte) string {
	text, _, _ := strings.Cut(string(p), "\x00")
	text = strings.Trim(text, "<> \r\n")
	b := make([]byte, len(text))
	for i := range len(text) {
		if b[i] = text[i]; b[i] < ' ' || b[i] > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

// formatID returns a UUID in the usual notation. Its first three fields are stored as little-endian
// numbers.
func formatID(id []byte) string {
	return fmt.Sprintf("%02x%02x%02x%02x-%02x%02x-%02x%02x-%x-%x",
		id[3], id[2], id[1], id[0], id[5], id[4], id[7], id[6], id[8:10], id[10:16])
}

// blockSet is a set of block numbers, a bit each. It has memory only for the neighbourhoods of the
// blocks that it was given.
type blockSet struct {
	pages map[int64]*blockPage
	last  *blockPage
	index int64 // of last
}

const blockPageBits = 4096 * 8

type blockPage [blockPageBits / 64]uint64

// add puts block i in and tells whether it was not there before.
func (s *blockSet) add(i int64) bool {
	if index := i / blockPageBits; s.last == nil || index != s.index {
		if s.pages == nil {
			s.pages = make(map[int64]*blockPage)
		}
		s.index, s.last = index, s.pages[index]
		if s.last == nil {
			s.last = new(blockPage)
			s.pages[index] = s.last
		}
	}
	word, bit := &s.last[i%blockPageBits/64], uint64(1)<<(i%64)
	fresh := *word&bit == 0
	*word |= bit
	return fresh
}
