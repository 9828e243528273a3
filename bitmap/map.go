// SPDX-License-Identifier: Apache-2.0

// Package bitmap keeps which blocks of a disk hold data, and writes and reads
// that as the bitmap file (.mf) which IMS wants beside a RAW image.
//
// The byte layout of that file is not published. A [Layout] is therefore a
// value, and [Layout.Encode] and [Layout.Decode] are the only code that turns
// it into bytes and back: another layout is another value, not another branch.
package bitmap

import (
	"fmt"
	"iter"
	"math/bits"
	"sync/atomic"
)

// MinBlockSize is the smallest block in bytes: a disk sector.
const MinBlockSize = 512

// MaxBlocks bounds the blocks of one map, and with that its memory: a map of
// 2^30 blocks takes 128 MiB. It allows for 2 PiB in blocks of 2 MiB and 64 TiB
// in blocks of 64 KiB, and stops a claimed size from allocating more.
const MaxBlocks = 1 << 30

// SizeError says that a virtual size and block size cannot make a map.
type SizeError struct {
	VirtualSize int64 // bytes
	BlockSize   int64 // bytes
	Reason      string
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("bitmap of %d bytes in blocks of %d bytes: %s", e.VirtualSize, e.BlockSize, e.Reason)
}

// Map is the set of data blocks of a disk, one bit a block. Blocks that nobody
// marked hold no data, which is to say that they read as zeros. All methods
// are safe for concurrent use; one that reads many blocks sees each word of 64
// as it was at some moment of the call.
type Map struct {
	virtualSize int64
	blockSize   int64
	shift       uint // log2(blockSize)
	blocks      int64
	words       []atomic.Uint64 // block b is bit b%64 of word b/64
}

// NewMap returns a map without data blocks for a disk of virtualSize bytes.
// The last block may reach past the end of the disk. blockSize is in bytes, a
// power of two, at least [MinBlockSize]. The error is a [*SizeError].
func NewMap(virtualSize, blockSize int64) (*Map, error) {
	if err := checkSize(virtualSize, blockSize); err != nil {
		return nil, err
	}
	n := blockCount(virtualSize, blockSize)
	return &Map{
		virtualSize: virtualSize,
		blockSize:   blockSize,
		shift:       uint(bits.TrailingZeros64(uint64(blockSize))),
		blocks:      n,
		words:       make([]atomic.Uint64, (n+63)/64),
	}, nil
}

func checkSize(virtualSize, blockSize int64) error {
	reason := ""
	switch {
	case virtualSize <= 0:
		reason = "the virtual size must be positive"
	case blockSize < MinBlockSize || blockSize&(blockSize-1) != 0:
		reason = fmt.Sprintf("the block size must be a power of two, at least %d", MinBlockSize)
	case blockCount(virtualSize, blockSize) > MaxBlocks:
		reason = fmt.Sprintf("more than %d blocks; choose a larger block", MaxBlocks)
	default:
		return nil
	}
	return &SizeError{VirtualSize: virtualSize, BlockSize: blockSize, Reason: reason}
}

// blockCount returns how many blocks cover virtualSize bytes. It cannot
// overflow, which the usual (size+block-1)/block can.
func blockCount(virtualSize, blockSize int64) int64 {
	if virtualSize <= 0 {
		return 0
	}
	return (virtualSize-1)/blockSize + 1
}

// VirtualSize returns the disk's size in bytes.
func (m *Map) VirtualSize() int64 { return m.virtualSize }

// BlockSize returns how many bytes of the disk a block stands for.
func (m *Map) BlockSize() int64 { return m.blockSize }

// Blocks returns how many blocks cover the disk.
func (m *Map) Blocks() int64 { return m.blocks }

// Count returns how many blocks hold data.
func (m *Map) Count() int64 {
	var n int
	for i := range m.words {
		n += bits.OnesCount64(m.words[i].Load())
	}
	return int64(n)
}

// Data tells whether a block holds data. Blocks outside the disk don't.
func (m *Map) Data(block int64) bool {
	if block < 0 || block >= m.blocks {
		return false
	}
	return m.words[block/64].Load()>>(block%64)&1 == 1
}

// MarkRange marks every block that the n bytes at offset off touch. What lies
// outside the disk is left out.
func (m *Map) MarkRange(off, n int64) {
	if off < 0 {
		n += off // a negative and a positive number: no overflow
		off = 0
	}
	if n <= 0 || off >= m.virtualSize {
		return
	}
	n = min(n, m.virtualSize-off)
	first, last := off>>m.shift, (off+n-1)>>m.shift
	for w := first / 64; w <= last/64; w++ {
		mask := ^uint64(0)
		if w == first/64 {
			mask &= ^uint64(0) << (first % 64)
		}
		if w == last/64 {
			mask &= ^uint64(0) >> (63 - last%64)
		}
		m.words[w].Or(mask)
	}
}

// Run is a maximal sequence of blocks of the same kind.
type Run struct {
	Start  int64 // first block
	Length int64 // in blocks, at least 1
	Data   bool
}

// Runs yields the whole disk in order as alternating runs of data and of no
// data. Its cost is in the runs and words of the map, not in the blocks.
func (m *Map) Runs() iter.Seq[Run] {
	return func(yield func(Run) bool) {
		for start := int64(0); start < m.blocks; {
			data := m.Data(start)
			end := m.next(start+1, !data)
			if !yield(Run{Start: start, Length: end - start, Data: data}) {
				return
			}
			start = end
		}
	}
}

// next returns the first block at or after from that holds data, or that
// doesn't; Blocks() when there is none. (The bits after the last block are
// never set, so that a search for "doesn't" ends there too.)
func (m *Map) next(from int64, data bool) int64 {
	for b := from; b < m.blocks; {
		w := m.words[b/64].Load()
		if !data {
			w = ^w
		}
		if w >>= b % 64; w != 0 {
			return b + int64(bits.TrailingZeros64(w))
		}
		b += 64 - b%64
	}
	return m.blocks
}

// Difference is how two maps of the same disk differ.
type Difference struct {
	First int64 // first block that differs, -1 if none
	OnlyA int64 // blocks that hold data in a alone
	OnlyB int64 // blocks that hold data in b alone
	Both  int64 // blocks that hold data in both
}

// Equal tells whether the maps hold the same blocks.
func (d Difference) Equal() bool { return d.First < 0 }

// Diff compares two maps block by block. Maps of different virtual or block
// sizes cannot be compared, which is an error.
func Diff(a, b *Map) (Difference, error) {
	if a.virtualSize != b.virtualSize || a.blockSize != b.blockSize {
		return Difference{}, fmt.Errorf("bitmaps of different disks: %d bytes in blocks of %d, and %d bytes in blocks of %d",
			a.virtualSize, a.blockSize, b.virtualSize, b.blockSize)
	}
	d := Difference{First: -1}
	for i := range a.words {
		x, y := a.words[i].Load(), b.words[i].Load()
		d.OnlyA += int64(bits.OnesCount64(x &^ y))
		d.OnlyB += int64(bits.OnesCount64(y &^ x))
		d.Both += int64(bits.OnesCount64(x & y))
		if x != y && d.First < 0 {
			d.First = int64(i)*64 + int64(bits.TrailingZeros64(x^y))
		}
	}
	return d, nil
}
