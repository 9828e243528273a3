// SPDX-License-Identifier: Apache-2.0

package vhdx

// PlainName is what the package makes of a stored path.
func PlainName(path string) string { return plainName(path) }

// BitRun is how the package reads a sector bitmap.
func BitRun(p []byte, i int64) (bool, int64) { return bitRun(p, i) }

// RingCRC returns the CRC-32C of count sectors of a ring, from the given one on, as the package
// puts it together.
func RingCRC(ring []byte, first, count int64) uint32 {
	s := &sectorSums{prefix: []uint32{0}}
	for ; len(ring) > 0; ring = ring[logSector:] {
		s.add(ring[:logSector])
	}
	return finishCRC(s.concat(0, first, count), count*logSector)
}
