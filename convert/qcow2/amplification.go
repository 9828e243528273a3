// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"hash/maphash"
	"math"
	"math/bits"
)

// An image is a multiplier: eight bytes of an L2 table stand for a cluster of up to 2 MiB. In an
// honest image every cluster that holds data has bytes of its own in the file, so there are two
// bounds, both with so much slack that only sharing on purpose reaches them:
//
//   - all clusters together cannot need more than the file has, even at the best ratio that the
//     compression can reach at all (maxShare times that is accepted);
//   - compressed clusters lie at places of their own (up to maxSharePlace clusters a place are
//     accepted, and any number in a small image).
//
// The first is exact. The second is a statistical count of places, with a seed that an author of
// images cannot know; its error is below 5 % in all but one of a million images.
const (
	maxShare         = 4
	maxSharePlace    = 16
	minSharedCluster = 1024
)

// checkAmplification is called when all of the tables have been walked.
func (w *walker) checkAmplification(tables int64) error {
	m := w.m
	// Clusters and tables are bounded by the file's length divided by 8, so nothing overflows.
	own := (w.plain+tables)*m.ClusterSize + w.compressed*m.minCompressed()
	if m.data != nil {
		own = tables * m.ClusterSize // every cluster has its own place in the data file
	}
	if own/maxShare > roundUp(m.fileSize, m.ClusterSize) {
		return bad("its tables map %d plain and %d compressed clusters of %d bytes, which cannot be in a file of "+
			"%d bytes unless they are shared over and over", w.plain, w.compressed, m.ClusterSize, m.fileSize)
	}
	if places := w.places.count(); w.compressed >= minSharedCluster &&
		float64(w.compressed) > maxSharePlace*places {
		return bad("its tables map %d compressed clusters to about %.0f places in the file", w.compressed, places)
	}
	return nil
}

// minCompressed is the least number of bytes that a cluster can be compressed to.
func (m *Metadata) minCompressed() int64 {
	if m.compression == compressionZstd {
		// A frame header, and for every 128 KiB a run-length block of four bytes (RFC 8878, 3.1.1).
		return 6 + 4*((m.ClusterSize+128<<10-1)/(128<<10))
	}
	// DEFLATE needs a bit for a distance and a bit for a length of at most 258 bytes (RFC 1951,
	// 3.2.5).
	return (m.ClusterSize + 1031) / 1032
}

// distinct estimates how many different numbers it was given, in 16 KiB (HyperLogLog).
type distinct struct {
	seed      maphash.Seed
	registers []uint8
}

const distinctBits = 14

func (d *distinct) add(v uint64) {
	if d.registers == nil {
		d.seed, d.registers = maphash.MakeSeed(), make([]uint8, 1<<distinctBits)
	}
	h := maphash.Comparable(d.seed, v)
	r := &d.registers[h>>(64-distinctBits)]
	*r = max(*r, uint8(bits.LeadingZeros64(h<<distinctBits|1<<(distinctBits-1))+1))
}

// count returns the estimate. The standard error is 1.04 / sqrt(2^14), 0.8 %.
func (d *distinct) count() float64 {
	const n = 1 << distinctBits
	if d.registers == nil {
		return 0
	}
	sum, empty := 0.0, 0
	for _, r := range d.registers {
		sum += math.Ldexp(1, -int(r))
		if r == 0 {
			empty++
		}
	}
	estimate := 0.7213 / (1 + 1.079/n) * n * n / sum
	if estimate <= 2.5*n && empty > 0 {
		return n * math.Log(float64(n)/float64(empty))
	}
	return estimate
}
