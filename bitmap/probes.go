// SPDX-License-Identifier: Apache-2.0

package bitmap

// Extent is a range of a disk, in bytes.
type Extent struct{ Start, Length int64 }

// Probe is a small, mostly sparse disk. The bitmap files that a tool writes for
// the probes tell its layout.
type Probe struct {
	Name        string
	Purpose     string // what its bitmap file tells
	VirtualSize int64  // bytes
	// Each range of Data has a byte of 0xFF every Period bytes, from its start on;
	// 0 is every byte.
	Data   []Extent
	Period int64
	// Zeros are ranges that are to be written as zeros, where the rest is holes.
	Zeros []Extent
}

// Extents returns the probe's data with 512 bytes as the smallest unit, as
// [Pair] wants it.
func (p Probe) Extents() []Extent {
	var out []Extent
	for _, e := range p.Data {
		if p.Period == 0 {
			out = append(out, e)
			continue
		}
		for at := e.Start; at < e.Start+e.Length; at += p.Period {
			out = append(out, Extent{at, 1})
		}
	}
	return out
}

// Probes returns the disks whose bitmap files separate the layouts that [Infer]
// knows, from those that tell most about lengths to those that show behaviour
// which no layout has. Their data takes some megabytes on a file system that
// keeps holes.
func Probes() []Probe {
	const (
		kib = int64(1) << 10
		mib = int64(1) << 20
		gib = int64(1) << 30
	)
	var out []Probe
	length := func(name string, size int64) {
		out = append(out, Probe{
			Name: "zeros-" + name, VirtualSize: size,
			Purpose: "lengths: block size, header and padding",
		})
	}
	length("0", 0)
	length("512", 512)
	length("64k", 64*kib)
	for _, n := range []struct {
		name string
		size int64
	}{{"1m", mib}, {"2m", 2 * mib}, {"4m", 4 * mib}} {
		length(n.name+"-minus-1", n.size-1)
		length(n.name, n.size)
		length(n.name+"-plus-1", n.size+1)
	}
	length("1g", gib)
	length("64g", 64*gib)
	length("64g-plus-1", 64*gib+1)

	out = append(out,
		Probe{
			Name: "ones-4m", VirtualSize: 4 * mib, Data: []Extent{{0, 4 * mib}},
			Purpose: "polarity: compare with zeros-4m",
		},
		Probe{
			Name: "ones-1g", VirtualSize: gib, Data: []Extent{{0, gib}}, Period: mib,
			Purpose: "polarity: compare with zeros-1g (a byte in every MiB); bytes that stay equal are header",
		})
	at := func(name string, off int64) {
		out = append(out, Probe{
			Name: "byte-at-" + name, VirtualSize: gib, Data: []Extent{{off, 1}},
			Purpose: "bit order and word order",
		})
	}
	at("0", 0)
	at("64k", 64*kib)
	for m, name := range map1to256 {
		at(name, int64(1)<<m*mib)
	}
	out = append(out,
		Probe{
			Name: "byte-at-end", VirtualSize: gib, Data: []Extent{{gib - 1, 1}},
			Purpose: "truncation: compare with byte-at-0",
		},
		Probe{
			Name: "odd-words", VirtualSize: 333*mib + 777, Data: []Extent{{0, 1}, {5 * mib, mib}, {100 * mib, 1}, {332 * mib, 1}},
			Purpose: "bits after the last block, and words that are not full",
		},
		Probe{
			Name: "odd-sectors", VirtualSize: 1001 * 512, Data: []Extent{{0, 1}, {7 * 512, 1}, {500 * 512, 3 * 512}},
			Purpose: "the same for small blocks",
		})
	for _, name := range []string{"same-1", "same-2"} {
		out = append(out, Probe{
			Name: name, VirtualSize: 64 * mib, Data: []Extent{{0, 1}, {32 * mib, 1}},
			Purpose: "a time or a name in the file: its bitmap must be the same as that of the other one",
		})
	}
	return append(out,
		Probe{
			Name: "hole", VirtualSize: 64 * mib, Data: []Extent{{0, 1}},
			Purpose: "compare with written-zeros: the same if the content decides, not the holes",
		},
		Probe{
			Name: "written-zeros", VirtualSize: 64 * mib, Data: []Extent{{0, 1}}, Zeros: []Extent{{16 * mib, 4 * mib}},
			Purpose: "compare with hole",
		})
}

// map1to256 names the powers of two that a probe's byte stands at, in MiB.
var map1to256 = [...]string{"1m", "2m", "4m", "8m", "16m", "32m", "64m", "128m", "256m"}
