// SPDX-License-Identifier: Apache-2.0

// Package qed reads QEMU enhanced disks (QED), as specified in QEMU's docs/interop/qed_spec.txt.
//
// [Preflight] checks everything that an image says about itself, from the header to the last entry
// of the L2 tables, and [Metadata.Open] builds a reader of an image that passed. All numbers of the
// format are little-endian. A table is one or several clusters in one piece.
package qed

import (
	"fmt"
	"io"

	"github.com/lima-vm/go-qcow2reader/image"
)

// Type is the format's name.
const Type = image.Type("qed")

const (
	magic       = "QED\x00"
	headerBytes = 64
	sectorSize  = 512
)

// Limits of the header's fields ("Header"). That of the backing file name is QEMU's.
const (
	minClusterSize = 1 << 12
	maxClusterSize = 1 << 26
	maxTableSize   = 16
	maxBackingName = 1023
	// maxClusters bounds what keeps track of the file's clusters to 64 MiB. With the usual clusters
	// of 64 KiB that is a file of 32 TiB.
	maxClusters = 1 << 29
)

// Bits of "features".
const (
	featureBacking   = 1 << 0
	featureNeedCheck = 1 << 1
	featureNoProbe   = 1 << 2 // the backing file is a RAW disk, whatever it looks like
	featuresKnown    = 1<<3 - 1
)

// Entries that name no cluster ("Tables").
const (
	entryUnallocated = 0
	entryZero        = 1 // L2 only
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

// clusterSet is a set of cluster numbers, a bit each. It has memory only for the neighbourhoods of
// the clusters that it was given.
type clusterSet struct {
	pages map[int64]*clusterPage
	last  *clusterPage
	index int64 // of last
}

const clusterPageBits = 4096 * 8

type clusterPage [clusterPageBits / 64]uint64

// add puts cluster i in and tells whether it was not there before.
func (s *clusterSet) add(i int64) bool {
	if index := i / clusterPageBits; s.last == nil || index != s.index {
		if s.pages == nil {
			s.pages = make(map[int64]*clusterPage)
		}
		s.index, s.last = index, s.pages[index]
		if s.last == nil {
			s.last = new(clusterPage)
			s.pages[index] = s.last
		}
	}
	word, bit := &s.last[i%clusterPageBits/64], uint64(1)<<(i%64)
	fresh := *word&bit == 0
	*word |= bit
	return fresh
}
