// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// A note is, in this order:
//
//	version    1 byte: 1
//	flags      1 byte: 1 if digests are there, else 0
//	size       uvarint: bytes of the disk
//	unit       uvarint: bytes that a bit of the runs stands for
//	offset, n  uvarint each: the range in bytes
//	runs       uvarint each: how many units are zero, hold data, are zero, ... up to the range's end
//	digests    32 bytes each: for every block of the digest that has data in the range, in order, its own
//	           if the range has all of it, else the leaf of each of its grains that hold data
//	checksum   4 bytes, big-endian: CRC-32C of all before
const (
	noteVersion = 1
	noteDigests = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// asker is a [Marker] that can be asked, as it must be for notes about blocks smaller than a [Grain].
type asker interface{ Data(block int64) bool }

// NoteError says why a note can't be used: it is damaged, or about another disk or range.
type NoteError struct{ Reason string }

func (e *NoteError) Error() string { return "note on what was read: " + e.Reason }

// Note returns what was found in a range that was read, in a compact form for [Scanner.Learn]: which of
// it holds data, and digests. It takes about 32 bytes for 2 MiB of data, and up to 2 KiB more if the
// range begins or ends within a block of that size. What of the range was not read must be known to be
// zeros; the range must be one that [Scanner.ReadRange] would take.
func (s *Scanner) Note(off, n int64) ([]byte, error) {
	if err := s.checkRange(off, n); err != nil {
		return nil, err
	}
	if err := s.missing(context.Background(), off, n); err != nil {
		return nil, err
	}
	flags := byte(0)
	if s.found.hash {
		flags = noteDigests
	}
	b := []byte{noteVersion, flags}
	for _, v := range []int64{s.size, s.unit, off, n} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	ask, fine := s.mark.(asker)
	if s.unit < Grain && !fine {
		return nil, errors.New("what was found in blocks smaller than a grain can't be asked for")
	}
	var sums []byte
	run, data := uint64(0), false
	put := func(units int64, holds bool) {
		if holds != data {
			b = binary.AppendUvarint(b, run)
			run, data = 0, holds
		}
		run += uint64(units)
	}
	for at, end := off, off+n; at < end; {
		block := at / DigestBlock
		to := min((block+1)*DigestBlock, end)
		_, has, l, sum := s.found.look(block)
		has &= grainMask(at, to)
		switch {
		case has == 0:
			put((to-at+s.unit-1)/s.unit, false)
		case s.unit < Grain:
			for u := at; u < to; u += s.unit {
				put(1, ask.Data(u/s.unit))
			}
		default:
			for u := at; u < to; u += Grain {
				put(1, has>>(u/Grain%blockGrains)&1 == 1)
			}
		}
		switch {
		case !s.found.hash || has == 0:
		case s.wholeBlock(block, off, n):
			sums = append(sums, sum[:]...)
		case l == nil:
			return nil, fmt.Errorf("%d bytes at %d were not read as such", n, off)
		default:
			for g := range l {
				if has>>g&1 == 1 {
					sums = append(sums, l[g][:]...)
				}
			}
		}
		at = to
	}
	b = append(binary.AppendUvarint(b, run), sums...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), nil
}

// wholeBlock tells whether a range has all of a block of the digest.
func (s *Scanner) wholeBlock(block, off, n int64) bool {
	return block*DigestBlock >= off && min((block+1)*DigestBlock, s.size) <= off+n
}

// grainMask returns the bits of the grains of [from, to), which lies within one block of the digest.
func grainMask(from, to int64) uint32 {
	first, count := from/Grain%blockGrains, (to-from+Grain-1)/Grain
	return uint32((uint64(1)<<count - 1) << first)
}

// Learn takes up what [Scanner.Note] told of a range of the same disk, as if the range had been read:
// that it is the same disk is for the caller to know. A note that is damaged, about another range or
// size, made for blocks of another size, or without the digests that this scanner needs, is a [*NoteError]
// and changes nothing.
func (s *Scanner) Learn(off, n int64, note []byte) error {
	if err := s.checkRange(off, n); err != nil {
		return err
	}
	bad := func(format string, a ...any) error { return &NoteError{fmt.Sprintf(format, a...)} }
	if len(note) < 6 {
		return bad("it has %d bytes", len(note))
	}
	b, sum := note[:len(note)-4], note[len(note)-4:]
	if crc32.Checksum(b, castagnoli) != binary.BigEndian.Uint32(sum) {
		return bad("its checksum is wrong")
	}
	if b[0] != noteVersion || b[1]&^noteDigests != 0 {
		return bad("version %d, flags %d", b[0], b[1])
	}
	digests := b[1]&noteDigests != 0
	if s.found.hash && !digests {
		return bad("it has no digests")
	}
	b = b[2:]
	next := func() (int64, bool) {
		v, k := binary.Uvarint(b)
		if k <= 0 || k != uvarintLen(v) || v > 1<<62 {
			return 0, false
		}
		b = b[k:]
		return int64(v), true
	}
	for _, want := range []int64{s.size, s.unit, off, n} {
		if got, ok := next(); !ok || got != want {
			return bad("it is about something else: %d instead of %d", got, want)
		}
	}
	type run struct{ off, n int64 }
	var runs []run
	var pieces []piece
	grains := func(at, to int64) { // of a run of data
		for at < to {
			block := at / DigestBlock
			end := min((block+1)*DigestBlock, to)
			if k := len(pieces); k == 0 || pieces[k-1].block != block {
				pieces = append(pieces, piece{block: block})
			}
			pieces[len(pieces)-1].data |= grainMask(at/Grain*Grain, end)
			at = end
		}
	}
	end := off + n
	for at, first, data := off, true, false; at < end; first, data = false, !data {
		units, ok := next()
		if !ok || units > (end-at+s.unit-1)/s.unit || units == 0 && !first {
			return bad("its runs are damaged")
		}
		to := min(at+units*s.unit, end)
		if data {
			runs = append(runs, run{at, to - at})
			grains(at, to)
		}
		at = to
	}
	var known []piece
	for at := off; at < end; {
		block := at / DigestBlock
		to := min((block+1)*DigestBlock, end)
		p := piece{block: block, known: grainMask(at, to)}
		if len(pieces) > 0 && pieces[0].block == block {
			p.data, pieces = pieces[0].data, pieces[1:]
		}
		if digests && p.data != 0 {
			whole := s.wholeBlock(block, off, n)
			want := bits.OnesCount32(p.data)
			if whole {
				want = 1
			}
			if len(b) < want*len(p.sum) {
				return bad("its digests are cut off")
			}
			if whole {
				copy(p.sum[:], b)
			} else {
				p.leaves = new(leaves)
				rest := b
				for g := range p.leaves {
					if p.data>>g&1 == 1 {
						rest = rest[copy(p.leaves[g][:], rest):]
					}
				}
			}
			b = b[want*len(p.sum):]
		}
		known = append(known, p)
		at = to
	}
	if len(b) > 0 {
		return bad("%d bytes too many", len(b))
	}
	s.found.add(known...)
	for _, r := range runs {
		if s.mark != nil {
			s.mark.MarkRange(r.off, r.n)
		}
		if s.block < Grain {
			s.countUnit(r.n, false)
			n -= r.n
		}
	}
	if s.block < Grain {
		s.countUnit(n, true)
	}
	return nil
}

// uvarintLen is the length of the only encoding of v that a note may have.
func uvarintLen(v uint64) int { return max(1, (bits.Len64(v)+6)/7) }
