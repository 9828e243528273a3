// SPDX-License-Identifier: Apache-2.0

// Package inflate decodes DEFLATE (RFC 1951) and zlib (RFC 1950) data that is in memory as a whole, into
// memory: the compressed clusters and grains of disks. The decoders of a stream, which can be given their
// input a byte at a time and keep a window of what they gave, take twice as long for these.
//
// All input is taken for hostile: any of it is decoded or refused, nothing outside of dst is written, and
// nothing is allocated.
package inflate

import (
	"encoding/binary"
	"errors"
	"hash/adler32"
	"math/bits"
)

// Errors of decoding.
var (
	ErrTruncated = errors.New("the compressed data ends too early")
	ErrFull      = errors.New("the data is longer than its place")
	ErrDamaged   = errors.New("the compressed data is damaged")
	ErrChecksum  = errors.New("the checksum of the data is wrong")
)

// An entry of a decoding table says what the next bits of the input stand for:
//
//	bits 0-7    how many bits that is, those that follow a code included
//	bits 8-11   how many bits the code has; of a pointer, how many bits choose in the second table
//	bit 12      there is no such code
//	bit 13      end of block
//	bit 14      pointer: the code is longer than the first table's index, and goes on in a second one
//	bit 15      one of the three above
//	bits 16-30  the literal, the base of a length or distance, or where the second table begins
//	bit 31      literal
const (
	entryInvalid = 1 << 12
	entryEnd     = 1 << 13
	entryPointer = 1 << 14
	entrySpecial = 1 << 15
	entryLiteral = 1 << 31
)

// Lengths in bits of a first table's index, and the longest codes (RFC 1951, 3.2.7).
const (
	literalBits  = 11
	distanceBits = 8
	maxCodeBits  = 15
	lengthBits   = 7 // of the code for code lengths, which has no longer ones
)

// Numbers of codes that can occur, those of the fixed code included.
const (
	literalCodes  = 288
	distanceCodes = 32
	lengthCodes   = 19
)

// Decoder decodes, one at a time. It holds its tables, 50 KiB, and nothing of what it decoded; the zero
// value is ready.
type Decoder struct {
	// At most half of the codes are in second tables, in pairs at least, and each has 1 << 4 and 1 << 7
	// entries at most. The sizes are powers of two, so that an index can be cut to fit.
	literal  [8192]uint32
	distance [4096]uint32
	length   [1 << lengthBits]uint32
	lengths  [literalCodes + distanceCodes]uint8 // of the codes, in bits
	fixed    bool                                // the tables are those of the fixed code
}

// bitReader is a position in the input. The low n bits of buf are the next bits of it, and src[pos:]
// follows; what is above them in buf is the same as in src[pos:], or zeros.
type bitReader struct {
	src []byte
	pos int
	buf uint64
	n   uint
}

// fill makes n at least 56, or as much as there is.
func (r *bitReader) fill() {
	if len(r.src)-r.pos >= 8 {
		r.buf, r.pos, r.n = refill(r.buf, r.src, r.pos, r.n)
		return
	}
	for r.n < 56 && r.pos < len(r.src) {
		r.buf |= uint64(r.src[r.pos]) << (r.n & 63)
		r.pos++
		r.n += 8
	}
}

// refill makes n at least 56, of a bitReader's fields in variables, if src has 8 bytes at pos.
func refill(buf uint64, src []byte, pos int, n uint) (uint64, int, uint) {
	return buf | binary.LittleEndian.Uint64(src[pos:])<<(n&63), pos + int((63-n)>>3), n | 56
}

// take returns the next k bits, at most 16, or ok false if there aren't as many.
func (r *bitReader) take(k uint) (v int, ok bool) {
	if r.n < k {
		if r.fill(); r.n < k {
			return 0, false
		}
	}
	v = int(r.buf & (1<<k - 1))
	r.buf >>= k
	r.n -= k
	return v, true
}

// Deflate decodes a DEFLATE stream at the beginning of src into dst. It returns how many bytes of dst it
// filled, which are right even if it fails, and how many of src it used. If there is more data than dst
// takes, the error is [ErrFull].
func (d *Decoder) Deflate(dst, src []byte) (written, read int, err error) {
	r := bitReader{src: src}
	for final := false; !final; {
		head, ok := r.take(3)
		if !ok {
			return written, len(src), ErrTruncated
		}
		final = head&1 == 1
		switch head >> 1 {
		case 0:
			written, err = d.stored(dst, written, &r)
		case 1:
			d.useFixed()
			written, err = d.block(dst, written, &r)
		case 2:
			if err = d.readCodes(&r); err == nil {
				written, err = d.block(dst, written, &r)
			}
		default:
			err = ErrDamaged
		}
		if err != nil {
			return written, r.pos, err
		}
	}
	return written, r.pos - int(r.n/8), nil
}

// Zlib decodes a zlib stream at the beginning of src, as Deflate does, and checks its checksum.
func (d *Decoder) Zlib(dst, src []byte) (written, read int, err error) {
	if len(src) < 2 {
		return 0, len(src), ErrTruncated
	}
	// Method 8 with a window of up to 32 KiB, no dictionary, and a header that is a multiple of 31.
	if head := binary.BigEndian.Uint16(src); src[0]&15 != 8 || src[0]>>4 > 7 || src[1]&0x20 != 0 || head%31 != 0 {
		return 0, 0, ErrDamaged
	}
	written, read, err = d.Deflate(dst, src[2:])
	read += 2
	switch {
	case err != nil:
		return written, read, err
	case len(src)-read < 4:
		return written, len(src), ErrTruncated
	case binary.BigEndian.Uint32(src[read:]) != adler32.Checksum(dst[:written]):
		return written, read, ErrChecksum
	}
	return written, read + 4, nil
}

// stored copies a block that isn't compressed (3.2.4).
func (d *Decoder) stored(dst []byte, out int, r *bitReader) (int, error) {
	// What is left of the byte is padding; whole bytes in the buffer are given back.
	r.pos -= int(r.n / 8)
	r.buf, r.n = 0, 0
	if len(r.src)-r.pos < 4 {
		return out, ErrTruncated
	}
	n, check := binary.LittleEndian.Uint16(r.src[r.pos:]), binary.LittleEndian.Uint16(r.src[r.pos+2:])
	if n != ^check {
		return out, ErrDamaged
	}
	r.pos += 4
	have := copy(dst[out:], r.src[r.pos:min(len(r.src), r.pos+int(n))])
	r.pos += have
	out += have
	switch {
	case have == int(n):
		return out, nil
	case r.pos == len(r.src):
		return out, ErrTruncated
	}
	return out, ErrFull
}

// fastIn and fastOut are how much input and room an iteration of block's loop needs: two fillings of the
// buffer, and three literals, a longest match and what a copy of whole words writes more.
const (
	fastIn  = 2 * 8
	fastOut = 3 + maxMatch + 3*8
)

const maxMatch = 258

// block decodes the codes of a block up to its end, or until dst is full.
func (d *Decoder) block(dst []byte, out int, r *bitReader) (int, error) {
	src, pos, buf, n := r.src, r.pos, r.buf, r.n
	var failed error
	// What comes next is looked up early: before a match is copied, and before the loop.
	if len(src)-pos < fastIn || len(dst)-out < fastOut {
		return d.carefully(dst, out, r)
	}
	buf, pos, n = refill(buf, src, pos, n)
	e := d.literal[buf&(1<<literalBits-1)]
loop:
	for len(src)-pos >= fastIn && len(dst)-out >= fastOut {
		// At least 56 bits, of which e is the first code: three literals of the first table, or two, a length of up to 20
		// bits and the index of its distance.
		if e&entryLiteral != 0 {
			buf >>= e & 63
			n -= uint(e & 63)
			dst[out] = byte(e >> 16)
			out++
			e = d.literal[buf&(1<<literalBits-1)]
			if e&entryLiteral != 0 {
				buf >>= e & 63
				n -= uint(e & 63)
				dst[out] = byte(e >> 16)
				out++
				e = d.literal[buf&(1<<literalBits-1)]
				if e&entryLiteral != 0 {
					buf >>= e & 63
					n -= uint(e & 63)
					buf, pos, n = refill(buf, src, pos, n)
					dst[out] = byte(e >> 16)
					e = d.literal[buf&(1<<literalBits-1)]
					out++
					continue
				}
			}
		}
		if e&entrySpecial != 0 {
			if e&entryPointer != 0 {
				buf >>= literalBits
				n -= literalBits
				e = d.literal[(e>>16+uint32(buf)&(1<<(e>>8&15)-1))&(uint32(len(d.literal))-1)]
				if e&entryLiteral != 0 {
					buf >>= e & 63
					n -= uint(e & 63)
					buf, pos, n = refill(buf, src, pos, n)
					dst[out] = byte(e >> 16)
					e = d.literal[buf&(1<<literalBits-1)]
					out++
					continue
				}
			}
			if e&entryEnd != 0 {
				buf >>= e & 63
				n -= uint(e & 63)
				r.pos, r.buf, r.n = pos, buf, n
				return out, nil
			}
			if e&entryInvalid != 0 {
				failed = ErrDamaged
				break loop
			}
		}
		length := int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&15))
		buf >>= e & 63
		n -= uint(e & 63)
		e = d.distance[buf&(1<<distanceBits-1)]
		buf, pos, n = refill(buf, src, pos, n)
		if e&entrySpecial != 0 {
			if e&entryPointer != 0 {
				buf >>= distanceBits
				n -= distanceBits
				e = d.distance[(e>>16+uint32(buf)&(1<<(e>>8&15)-1))&(uint32(len(d.distance))-1)]
			}
			if e&entryInvalid != 0 {
				failed = ErrDamaged
				break loop
			}
		}
		distance := int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&15))
		buf >>= e & 63
		n -= uint(e & 63)
		from := out - distance
		if from < 0 {
			failed = ErrDamaged
			break loop
		}
		buf, pos, n = refill(buf, src, pos, n)
		e = d.literal[buf&(1<<literalBits-1)]
		end := out + length
		switch {
		case distance >= 8:
			// Words that are read have been written; the last ones may go behind the match, where what comes
			// next overwrites it.
			to, of := dst[out:out+24], dst[from:from+24]
			binary.LittleEndian.PutUint64(to, binary.LittleEndian.Uint64(of))
			binary.LittleEndian.PutUint64(to[8:], binary.LittleEndian.Uint64(of[8:]))
			binary.LittleEndian.PutUint64(to[16:], binary.LittleEndian.Uint64(of[16:]))
			for out, from = out+24, from+24; out < end; out, from = out+8, from+8 {
				binary.LittleEndian.PutUint64(dst[out:], binary.LittleEndian.Uint64(dst[from:]))
			}
		case distance == 1:
			word := uint64(dst[from]) * 0x0101010101010101
			for ; out < end; out += 8 {
				binary.LittleEndian.PutUint64(dst[out:], word)
			}
		default:
			for ; out < end; out++ {
				dst[out] = dst[from]
				from++
			}
		}
		out = end
	}
	r.pos, r.buf, r.n = pos, buf, n
	if failed != nil {
		return out, failed
	}
	return d.carefully(dst, out, r)
}

// carefully is block near the ends of input and room.
func (d *Decoder) carefully(dst []byte, out int, r *bitReader) (int, error) {
	for {
		r.fill()
		e := d.literal[r.buf&(1<<literalBits-1)]
		if e&entryPointer != 0 && e&entryLiteral == 0 {
			if !r.skip(literalBits) {
				return out, ErrTruncated
			}
			e = d.literal[(e>>16+uint32(r.buf)&(1<<(e>>8&15)-1))&(uint32(len(d.literal))-1)]
		}
		extra := r.buf & (1<<(e&63) - 1) >> (e >> 8 & 15)
		if !r.skip(uint(e & 63)) {
			return out, ErrTruncated
		}
		switch {
		case e&entryLiteral != 0:
			if out == len(dst) {
				return out, ErrFull
			}
			dst[out] = byte(e >> 16)
			out++
			continue
		case e&entryEnd != 0:
			return out, nil
		case e&entryInvalid != 0:
			return out, ErrDamaged
		}
		length := int(e>>16) + int(extra)
		r.fill()
		e = d.distance[r.buf&(1<<distanceBits-1)]
		if e&entryPointer != 0 {
			if !r.skip(distanceBits) {
				return out, ErrTruncated
			}
			e = d.distance[(e>>16+uint32(r.buf)&(1<<(e>>8&15)-1))&(uint32(len(d.distance))-1)]
		}
		extra = r.buf & (1<<(e&63) - 1) >> (e >> 8 & 15)
		if !r.skip(uint(e & 63)) {
			return out, ErrTruncated
		}
		if e&entryInvalid != 0 {
			return out, ErrDamaged
		}
		from := out - int(e>>16) - int(extra)
		if from < 0 {
			return out, ErrDamaged
		}
		for ; length > 0; length-- {
			if out == len(dst) {
				return out, ErrFull
			}
			dst[out] = dst[from]
			out++
			from++
		}
	}
}

// skip goes over k bits, if there are as many.
func (r *bitReader) skip(k uint) bool {
	if r.n < k {
		return false
	}
	r.buf >>= k
	r.n -= k
	return true
}

// lengthOrder is the order in which the lengths of the codes for code lengths come (3.2.7).
var lengthOrder = [lengthCodes]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// readCodes reads the codes of a block that has its own (3.2.7).
func (d *Decoder) readCodes(r *bitReader) error {
	d.fixed = false
	head, ok := r.take(14)
	if !ok {
		return ErrTruncated
	}
	literals, distances, lengths := head&31+257, head>>5&31+1, head>>10+4
	if literals > 286 || distances > 30 {
		return ErrDamaged
	}
	var own [lengthCodes]uint8
	for i := range lengths {
		v, ok := r.take(3)
		if !ok {
			return ErrTruncated
		}
		own[lengthOrder[i]] = uint8(v)
	}
	if !build(d.length[:], lengthBits, own[:], lengthEntries[:]) {
		return ErrDamaged
	}
	all := d.lengths[:literals+distances]
	for i := 0; i < len(all); {
		if r.n < lengthBits+7 {
			r.fill()
		}
		e := d.length[r.buf&(1<<lengthBits-1)]
		if e&entryInvalid != 0 {
			return ErrDamaged
		}
		repeat := int(r.buf & (1<<(e&63) - 1) >> (e >> 8 & 15))
		if !r.skip(uint(e & 63)) {
			return ErrTruncated
		}
		value := uint8(e >> 16)
		if value < 16 {
			all[i] = value
			i++
			continue
		}
		switch value {
		case 16:
			if i == 0 {
				return ErrDamaged
			}
			value, repeat = all[i-1], repeat+3
		case 17:
			value, repeat = 0, repeat+3
		default:
			value, repeat = 0, repeat+11
		}
		if repeat > len(all)-i {
			return ErrDamaged
		}
		for range repeat {
			all[i] = value
			i++
		}
	}
	if !build(d.literal[:], literalBits, all[:literals], literalEntries[:]) ||
		!build(d.distance[:], distanceBits, all[literals:], distanceEntries[:]) {
		return ErrDamaged
	}
	return nil
}

// useFixed makes the tables those of the fixed code (3.2.6).
func (d *Decoder) useFixed() {
	if d.fixed {
		return
	}
	for i := range d.lengths {
		switch {
		case i < 144:
			d.lengths[i] = 8
		case i < 256:
			d.lengths[i] = 9
		case i < 280:
			d.lengths[i] = 7
		case i < literalCodes:
			d.lengths[i] = 8
		default:
			d.lengths[i] = 5
		}
	}
	build(d.literal[:], literalBits, d.lengths[:literalCodes], literalEntries[:])
	build(d.distance[:], distanceBits, d.lengths[literalCodes:], distanceEntries[:])
	d.fixed = true
}

// build makes the table of the code whose lengths are given (3.2.2). entries are what the codes stand
// for, with the number of bits that follow the code in place of all. It returns false if there is no such
// code: too many, or too few other than none, or one of one bit.
func build(table []uint32, indexBits uint, lengths []uint8, entries []uint32) bool {
	var count, next [maxCodeBits + 1]int
	for _, l := range lengths {
		count[l&15]++
	}
	count[0] = 0
	code, longest, codes := 0, uint(0), 0
	for l := uint(1); l <= maxCodeBits; l++ {
		code <<= 1
		next[l] = code
		code += count[l]
		if count[l] > 0 {
			longest = l
			codes += count[l]
		}
		if code > 1<<l {
			return false
		}
	}
	if code != 1<<maxCodeBits {
		if codes > 1 || longest > 1 {
			return false
		}
		for i := range table[:1<<indexBits] {
			table[i] = entrySpecial | entryInvalid | 1
		}
	}
	free := uint32(1) << indexBits // where the next second table begins
	var second uint
	if longest > indexBits {
		second = longest - indexBits
		// Pointers are found by not being there yet.
		clear(table[:1<<indexBits])
	}
	for symbol, length := range lengths {
		if length == 0 {
			continue
		}
		l := uint(length)
		reversed := uint32(bits.Reverse16(uint16(next[l])) >> (16 - l))
		next[l]++
		if l <= indexBits {
			e := entries[symbol] + uint32(l)<<8 + uint32(l)
			for i := reversed; i < 1<<indexBits; i += 1 << l {
				table[i] = e
			}
			continue
		}
		first := reversed & (1<<indexBits - 1)
		if table[first] == 0 {
			table[first] = free<<16 | entrySpecial | entryPointer | uint32(second)<<8 | uint32(indexBits)
			free += 1 << second
		}
		l -= indexBits
		e := entries[symbol] + uint32(l)<<8 + uint32(l)
		start := table[first] >> 16
		for i := reversed >> indexBits; i < 1<<second; i += 1 << l {
			table[start+i] = e
		}
	}
	return true
}

// What codes stand for (3.2.5), see build.
var (
	literalEntries  = makeLiteralEntries()
	distanceEntries = makeDistanceEntries()
	lengthEntries   = makeLengthEntries()
)

func makeLiteralEntries() (t [literalCodes]uint32) {
	for i := range uint32(256) {
		t[i] = entryLiteral | i<<16
	}
	t[256] = entrySpecial | entryEnd
	base := uint32(3)
	for i := 257; i < 285; i++ {
		extra := uint32(max(0, (i-261)/4))
		t[i] = base<<16 | extra
		base += 1 << extra
	}
	t[285] = maxMatch << 16
	t[286], t[287] = entrySpecial|entryInvalid, entrySpecial|entryInvalid
	return t
}

func makeDistanceEntries() (t [distanceCodes]uint32) {
	base := uint32(1)
	for i := range 30 {
		extra := uint32(max(0, (i-2)/2))
		t[i] = base<<16 | extra
		base += 1 << extra
	}
	t[30], t[31] = entrySpecial|entryInvalid, entrySpecial|entryInvalid
	return t
}

func makeLengthEntries() (t [lengthCodes]uint32) {
	for i := range uint32(16) {
		t[i] = i << 16
	}
	t[16], t[17], t[18] = 16<<16|2, 17<<16|3, 18<<16|7
	return t
}
