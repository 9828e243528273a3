// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"cmp"
	"container/heap"
	"fmt"
	"iter"
	"math/bits"
	"slices"
)

// Limits of a multipart upload, the strictest of those documented for OBS and S3.
const (
	MaxParts      = 10_000
	MinPartSize   = 5 << 20                       // of every part but the last
	MaxPartSize   = 5 << 30                       // of every part
	MaxObjectSize = MaxParts * int64(MaxPartSize) // 48.8 TiB
)

// Defaults of PlanOptions.
const (
	DefaultBlockSize    = 2 << 20
	DefaultPartSize     = 16 << 20
	DefaultMemoryBudget = 256 << 20
	DefaultWorkers      = 4
)

// MaxZeroPart is the longest part copied from the zero object unless 10,000 parts ask for longer
// ones. Longer parts would save requests only on disks that are all but empty, and would make the
// server do more between two signs of life.
const MaxZeroPart = 1 << 30

const (
	maxBlockSize = 64 << 20
	maxWorkers   = 64
	// maxZeroRuns is how many runs of zeros can possibly be of use: there are data parts between
	// them, and no more than MaxParts parts in all.
	maxZeroRuns = MaxParts / 2
	// partStep keeps the sizes of parts round when blocks are small.
	partStep = 1 << 20
)

// Extent is a range of the disk, in bytes. Zero means that it is known to read as zeros.
type Extent struct {
	Start, Length int64
	Zero          bool
}

// ZeroCopyMode says whether runs of zeros may be copied on the server instead of being sent.
type ZeroCopyMode string

// Modes of copying zeros. The object is the same in each of them.
const (
	ZeroCopyAuto ZeroCopyMode = "auto" // copy when it saves bytes and the server can, else send
	ZeroCopyOn   ZeroCopyMode = "on"   // copy, and fail if the server can't
	ZeroCopyOff  ZeroCopyMode = "off"  // send
)

// Validate refuses modes that do not exist. The empty mode is ZeroCopyAuto.
func (m ZeroCopyMode) Validate() error {
	switch m {
	case "", ZeroCopyAuto, ZeroCopyOn, ZeroCopyOff:
		return nil
	}
	return &Error{Op: "check zero-copy mode", Kind: KindInvalid,
		Message: fmt.Sprintf("%q is none of auto, on, off", string(m))}
}

// PlanOptions are what a plan may choose within. The zero value is a good choice.
type PlanOptions struct {
	// BlockSize, in bytes, divides every part's offset; a power of two from 512 to 64 MiB.
	// 0 is DefaultBlockSize.
	BlockSize int64
	// PartSize, in bytes, is the length of a part that is sent. 0 is DefaultPartSize. It grows when
	// the object would otherwise need more than MaxParts parts.
	PartSize int64
	// MemoryBudget, in bytes, bounds workers × part size as long as a single part fits into it.
	// 0 is DefaultMemoryBudget.
	MemoryBudget int64
	// Workers is how many parts are sent at the same time at most. 0 is DefaultWorkers.
	Workers int
	// ZeroCopy defaults to ZeroCopyAuto.
	ZeroCopy ZeroCopyMode
}

// Part is one part of the multipart upload.
type Part struct {
	Number         int   // from 1
	Offset, Length int64 // bytes of the object
	Zero           bool  // known to be all zeros: never read from the source
}

// Plan divides an object into parts. They tile it in order; all boundaries but the end are
// multiples of BlockSize.
type Plan struct {
	Size      int64 // bytes of the object
	BlockSize int64 // bytes
	PartSize  int64 // bytes a sent part is meant to have
	// Buffer is the length in bytes of the longest part that is read from the source, and so of
	// each worker's buffer.
	Buffer   int64
	Workers  int
	ZeroCopy ZeroCopyMode // as asked for, never empty
	// CopyZeros tells whether the zero parts are to be copied. It is false when ZeroCopy is off,
	// and also when it is auto and copying would not save bytes.
	CopyZeros bool
	// ZeroObjectSize is the length in bytes of the object of zeros to copy from, 0 when none is
	// planned.
	ZeroObjectSize int64
	Parts          []Part

	budget  int64
	workers int // as asked for
}

// PlanSummary counts what a plan will cost when nothing fails and no data part turns out to be
// zeros.
type PlanSummary struct {
	Parts       int   `json:"parts"`
	SendParts   int   `json:"send_parts"`
	CopyParts   int   `json:"copy_parts"`
	BytesToSend int64 `json:"bytes_to_send"` // bodies, including the seed of the zero object
	BytesToCopy int64 `json:"bytes_to_copy"` // bytes of the object that the server copies
	Requests    int   `json:"requests"`
	Memory      int64 `json:"memory"` // bytes of part buffers
}

// NewPlan divides an object of size bytes. extents describe the disk in ascending order without
// overlaps; what they leave out counts as data, and nil means that all of it is data. They are
// iterated once and never held: memory is bounded whatever their number.
//
// It fails with an *Error of KindInvalid for options and sizes that cannot be, and for extents out
// of order; an error that extents yields is returned as it is.
func NewPlan(size int64, extents iter.Seq2[Extent, error], o PlanOptions) (*Plan, error) {
	invalid := func(format string, a ...any) error {
		return &Error{Op: "plan upload", Kind: KindInvalid, Message: fmt.Sprintf(format, a...)}
	}
	if size <= 0 || size > MaxObjectSize {
		return nil, invalid("an object of %d bytes: from 1 to %d can be uploaded", size, int64(MaxObjectSize))
	}
	if o.BlockSize == 0 {
		o.BlockSize = DefaultBlockSize
	}
	if o.BlockSize < 512 || o.BlockSize > maxBlockSize || bits.OnesCount64(uint64(o.BlockSize)) != 1 {
		return nil, invalid("block size %d is not a power of two from 512 to %d", o.BlockSize, maxBlockSize)
	}
	if o.PartSize < 0 || o.PartSize > MaxPartSize || (o.PartSize > 0 && o.PartSize < MinPartSize) {
		return nil, invalid("part size %d is not from %d to %d", o.PartSize, MinPartSize, int64(MaxPartSize))
	}
	if o.MemoryBudget < 0 {
		return nil, invalid("memory budget %d is negative", o.MemoryBudget)
	}
	if o.MemoryBudget == 0 {
		o.MemoryBudget = DefaultMemoryBudget
	}
	if o.Workers < 0 || o.Workers > maxWorkers {
		return nil, invalid("%d workers: from 1 to %d are possible", o.Workers, maxWorkers)
	}
	if o.Workers == 0 {
		o.Workers = DefaultWorkers
	}
	if err := o.ZeroCopy.Validate(); err != nil {
		return nil, err
	}
	if o.ZeroCopy == "" {
		o.ZeroCopy = ZeroCopyAuto
	}

	g := geometry{size: size, block: o.BlockSize, minPart: roundUp(MinPartSize, o.BlockSize)}
	runs, err := g.collectZeroRuns(extents)
	if err != nil {
		return nil, err
	}
	start := o.PartSize
	if start == 0 {
		start = min(DefaultPartSize, max(o.MemoryBudget, MinPartSize))
	}
	start = max(roundUp(start, o.BlockSize), g.minPart)

	p := &Plan{Size: size, BlockSize: o.BlockSize, ZeroCopy: o.ZeroCopy, budget: o.MemoryBudget, workers: o.Workers}
	if o.ZeroCopy != ZeroCopyOff {
		p.fit(g, runs, start, true)
		if o.ZeroCopy == ZeroCopyOn || p.zeroBytes() > seedSize {
			p.CopyZeros = p.zeroBytes() > 0
		}
	}
	if !p.CopyZeros {
		p.fit(g, runs, start, false)
	}
	p.finish()
	return p, nil
}

// withoutCopying is the same plan for a server that can't copy. Its zero parts are cut to the size
// of sent ones, so that a failed attempt does not cost a GiB.
func (p *Plan) withoutCopying() *Plan {
	g := geometry{size: p.Size, block: p.BlockSize, minPart: roundUp(MinPartSize, p.BlockSize)}
	var runs []zeroRun
	for _, part := range p.Parts {
		if !part.Zero {
			continue
		}
		if n := len(runs); n > 0 && runs[n-1].end == part.Offset {
			runs[n-1].end += part.Length
		} else {
			runs = append(runs, zeroRun{part.Offset, part.Offset + part.Length})
		}
	}
	q := &Plan{Size: p.Size, BlockSize: p.BlockSize, ZeroCopy: p.ZeroCopy, budget: p.budget, workers: p.workers}
	q.fit(g, runs, p.PartSize, false)
	q.finish()
	return q
}

// Summary counts the plan's cost.
func (p *Plan) Summary() PlanSummary {
	s := PlanSummary{Parts: len(p.Parts), Memory: int64(p.Workers) * p.Buffer}
	for _, part := range p.Parts {
		if part.Zero && p.CopyZeros {
			s.CopyParts++
			s.BytesToCopy += part.Length
		} else {
			s.SendParts++
			s.BytesToSend += part.Length
		}
	}
	// Initiate, the parts, the pages of the part list, complete, the last look at the object.
	s.Requests = 1 + s.Parts + (s.Parts+listPage-1)/listPage + 1 + 1
	if p.CopyZeros {
		levels := zeroLevels(p.ZeroObjectSize)
		s.BytesToSend += levels[0]
		s.Requests += 1 + len(levels) // the seed, and the deletion of each level
		for i := 1; i < len(levels); i++ {
			// Initiate, copies, complete, a look at the result.
			s.Requests += 3 + int(ceilDiv(levels[i], levels[i-1]))
		}
	}
	return s
}

func (p *Plan) zeroBytes() int64 {
	var n int64
	for _, part := range p.Parts {
		if part.Zero {
			n += part.Length
		}
	}
	return n
}

// finish derives the rest from the parts.
func (p *Plan) finish() {
	p.Buffer = 0
	var longest int64
	data := 0
	for i := range p.Parts {
		part := &p.Parts[i]
		part.Number = i + 1
		if part.Zero {
			longest = max(longest, part.Length)
		} else {
			p.Buffer = max(p.Buffer, part.Length)
			data++
		}
	}
	if p.CopyZeros {
		// Data parts may turn out to be zeros, so the zero object must be as long as those too.
		p.ZeroObjectSize = max(longest, p.Buffer)
	}
	p.Workers = p.workers
	if p.Buffer > 0 {
		p.Workers = int(min(int64(p.workers), max(1, p.budget/p.Buffer)))
	}
	p.Workers = max(1, min(p.Workers, len(p.Parts)))
}

// fit fills Parts and PartSize with the division that has at most MaxParts parts and, in this
// order: sends the least zeros without part sizes that would leave less than two workers within the
// memory budget, and has the smallest parts. copies tells whether zero parts may be longer than
// sent ones.
func (p *Plan) fit(g geometry, runs []zeroRun, start int64, copies bool) {
	step := max(g.block, partStep)
	// With parts of this size even a disk without any run of zeros fits.
	ceiling := max(start, roundUp(ceilDiv(g.size, MaxParts), step), roundUp(p.budget/2, step))
	ceiling = min(ceiling, MaxPartSize)

	zeroPart := func(size int64) int64 {
		if !copies {
			return size
		}
		z := roundUp(ceilDiv(g.size, maxZeroRuns), g.block)
		return min(max(z, MaxZeroPart), MaxPartSize)
	}
	divide := func(keep int, size int64) []Part {
		return g.divide(longest(runs, keep), size, zeroPart(size))
	}
	keep := len(runs)
	if len(divide(keep, ceiling)) > MaxParts {
		// The short runs go first: each costs two parts and saves the least. Counts are almost, not
		// strictly, monotone in the number of runs, hence the walk down after the search.
		lo, hi := 0, keep // lo fits
		for hi-lo > 1 {
			if mid := (lo + hi) / 2; len(divide(mid, ceiling)) <= MaxParts {
				lo = mid
			} else {
				hi = mid
			}
		}
		keep = lo
	}
	size := ceiling
	if len(divide(keep, start)) <= MaxParts {
		size = start
	} else {
		lo, hi := int64(0), ceilDiv(ceiling-start, step) // start+lo*step does not fit, hi does
		for hi-lo > 1 {
			mid := (lo + hi) / 2
			if len(divide(keep, start+mid*step)) <= MaxParts {
				hi = mid
			} else {
				lo = mid
			}
		}
		size = min(start+hi*step, ceiling)
	}
	p.PartSize = size
	p.Parts = divide(keep, size)
}

type zeroRun struct{ start, end int64 }

func (r zeroRun) length() int64 { return r.end - r.start }

// longest returns the n longest runs in ascending order of position.
func longest(runs []zeroRun, n int) []zeroRun {
	if n >= len(runs) {
		return runs
	}
	out := slices.Clone(runs)
	slices.SortFunc(out, func(a, b zeroRun) int {
		return cmp.Or(cmp.Compare(b.length(), a.length()), cmp.Compare(a.start, b.start))
	})
	out = out[:n]
	slices.SortFunc(out, func(a, b zeroRun) int { return cmp.Compare(a.start, b.start) })
	return out
}

// geometry is what every division of one object has in common.
type geometry struct {
	size    int64
	block   int64
	minPart int64 // MinPartSize rounded up to blocks
}

// collectZeroRuns keeps the runs of zeros that could become parts: rounded inward to blocks, at
// least minPart long, the longest maxZeroRuns of them. Ascending.
func (g geometry) collectZeroRuns(extents iter.Seq2[Extent, error]) ([]zeroRun, error) {
	if extents == nil {
		return nil, nil
	}
	var kept runHeap
	cur := zeroRun{-1, -1}
	flush := func() {
		if cur.start < 0 {
			return
		}
		r := zeroRun{roundUp(cur.start, g.block), cur.end}
		cur = zeroRun{-1, -1}
		if r.end < g.size {
			r.end -= r.end % g.block
		}
		whole := r.start == 0 && r.end == g.size
		if r.length() < g.minPart && !whole {
			return
		}
		if len(kept) < maxZeroRuns {
			heap.Push(&kept, r)
		} else if r.length() > kept[0].length() {
			kept[0] = r
			heap.Fix(&kept, 0)
		}
	}
	var pos int64
	for e, err := range extents {
		if err != nil {
			return nil, err
		}
		if e.Length < 0 || e.Start < pos || e.Start > g.size || e.Length > g.size-e.Start {
			return nil, &Error{Op: "plan upload", Kind: KindInvalid, Message: fmt.Sprintf(
				"extent of %d bytes at %d is out of order or leaves the disk of %d bytes", e.Length, e.Start, g.size)}
		}
		pos = e.Start + e.Length
		if e.Length == 0 {
			continue
		}
		if e.Zero && e.Start == cur.end {
			cur.end = pos
			continue
		}
		flush()
		if e.Zero {
			cur = zeroRun{e.Start, pos}
		}
	}
	flush()
	slices.SortFunc(kept, func(a, b zeroRun) int { return cmp.Compare(a.start, b.start) })
	return kept, nil
}

// divide cuts the object into parts: the runs into zero parts, the rest into data parts.
func (g geometry) divide(runs []zeroRun, partSize, zeroPart int64) []Part {
	runs = g.lendToData(runs)
	var parts []Part
	var pos int64
	for _, r := range runs {
		parts = g.cut(parts, pos, r.start, partSize, false)
		parts = g.cut(parts, r.start, r.end, zeroPart, true)
		pos = r.end
	}
	return g.cut(parts, pos, g.size, partSize, false)
}

// lendToData shortens runs beside a stretch of data that is too short for a part, and drops runs
// that would become too short themselves. What it takes away is sent as data.
func (g geometry) lendToData(runs []zeroRun) []zeroRun {
	var out []zeroRun
	for _, r := range runs {
		var before int64 // where the data before r begins
		if len(out) > 0 {
			before = out[len(out)-1].end
		}
		need := g.minPart - (r.start - before)
		if r.start == before {
			// No data in between happens only for r.start == 0, and after r's predecessor lent all.
			need = 0
		}
		if need <= 0 {
			out = append(out, r)
			continue
		}
		var prev *zeroRun
		if len(out) > 0 {
			prev = &out[len(out)-1]
		}
		fromPrev := prev != nil && prev.length()-need >= g.minPart
		fromNext := r.length()-need >= g.minPart
		switch {
		case fromNext && (!fromPrev || r.length() >= prev.length()):
			r.start += need
			out = append(out, r)
		case fromPrev:
			prev.end -= need
			out = append(out, r)
		case prev != nil && prev.length() < r.length():
			out = out[:len(out)-1] // the data is long enough with it
			out = append(out, r)
		default:
			// r becomes data; what follows it continues that data.
		}
	}
	return out
}

// cut appends parts of size bytes for [from, to). The last one may be anything at the end of the
// object; elsewhere a remainder below the minimum is evened out with the part before it.
func (g geometry) cut(parts []Part, from, to, size int64, zero bool) []Part {
	// One part too many is enough to see that this division will not do.
	for from < to && len(parts) <= MaxParts {
		n := min(size, to-from)
		rest := to - from - n
		if rest > 0 && rest < g.minPart && to < g.size {
			if n+rest >= 2*g.minPart {
				n = n + rest - g.minPart
			} else {
				n += rest
			}
		}
		parts = append(parts, Part{Offset: from, Length: n, Zero: zero})
		from += n
	}
	return parts
}

// runHeap has the shortest run on top.
type runHeap []zeroRun

func (h runHeap) Len() int           { return len(h) }
func (h runHeap) Less(i, j int) bool { return h[i].length() < h[j].length() }
func (h runHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *runHeap) Push(x any)        { *h = append(*h, x.(zeroRun)) }
func (h *runHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }

func roundUp(a, b int64) int64 { return ceilDiv(a, b) * b }

// check refuses plans that NewPlan did not make, or that were changed into nonsense.
func (p *Plan) check() error {
	var pos int64
	if len(p.Parts) == 0 || len(p.Parts) > MaxParts || p.Workers < 1 {
		return fmt.Errorf("the plan has %d parts and %d workers", len(p.Parts), p.Workers)
	}
	for i, part := range p.Parts {
		last := i == len(p.Parts)-1
		if part.Number != i+1 || part.Offset != pos || part.Length <= 0 || part.Length > MaxPartSize ||
			(!last && part.Length < MinPartSize) || (!part.Zero && part.Length > p.Buffer) {
			return fmt.Errorf("part %d of the plan cannot be: %d bytes at %d", i+1, part.Length, part.Offset)
		}
		pos += part.Length
	}
	if pos != p.Size {
		return fmt.Errorf("the plan's parts end at %d of %d bytes", pos, p.Size)
	}
	return nil
}
