// SPDX-License-Identifier: Apache-2.0

package vhdx

import (
	"hash/crc32"
	"math/bits"
)

// An entry of the log may claim any length at any sector of the ring, and its checksum covers all
// of it. Computing each checksum anew would take time by the square of the ring's length, so they
// are put together from the sectors' own. That works because a CRC without its initial and final
// inversion is linear: of two messages in a row, crc(A B) = crc(A) * x^(8 * length of B) + crc(B),
// with polynomials over GF(2) modulo the CRC's.

// rawCRC returns the CRC of p without the inversions.
func rawCRC(p []byte) uint32 { return ^crc32.Update(^uint32(0), castagnoli, p) }

// finishCRC turns the raw CRC of a message of length bytes into the usual one.
func finishCRC(raw uint32, length int64) uint32 {
	return ^(raw ^ shiftCRC(^uint32(0), length))
}

// multiply multiplies two polynomials modulo the CRC's. Bits are reflected: the highest is x^0.
func multiply(a, b uint32) uint32 {
	product := uint32(0)
	for ; b != 0; b <<= 1 {
		if b&(1<<31) != 0 {
			product ^= a
		}
		// a * x
		carry := a & 1
		a >>= 1
		if carry != 0 {
			a ^= crc32.Castagnoli
		}
	}
	return product
}

// powers[i] is x^(8 * 2^i).
var powers = func() (p [63]uint32) {
	p[0] = 1 << (31 - 8)
	for i := 1; i < len(p); i++ {
		p[i] = multiply(p[i-1], p[i-1])
	}
	return p
}()

// shiftCRC returns the raw CRC of a message with the raw CRC sum and length zero bytes behind it.
func shiftCRC(sum uint32, length int64) uint32 {
	for n := uint64(length); n != 0; n &= n - 1 {
		sum = multiply(sum, powers[bits.TrailingZeros64(n)])
	}
	return sum
}

// sectorSums gives the raw CRC of any run of sectors of a ring.
type sectorSums struct {
	prefix []uint32 // of the first i sectors
}

// add takes the next sector.
func (s *sectorSums) add(sector []byte) {
	s.prefix = append(s.prefix, shiftCRC(s.prefix[len(s.prefix)-1], logSector)^rawCRC(sector))
}

// concat returns the raw CRC of what has the raw CRC sum, followed by count sectors of the ring
// from the given one on; count is at most the number of sectors.
func (s *sectorSums) concat(sum uint32, first, count int64) uint32 {
	sectors := int64(len(s.prefix) - 1)
	for count > 0 {
		first %= sectors
		n := min(count, sectors-first)
		run := s.prefix[first+n] ^ shiftCRC(s.prefix[first], n*logSector)
		sum = shiftCRC(sum, n*logSector) ^ run
		first, count = first+n, count-n
	}
	return sum
}
