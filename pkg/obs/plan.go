// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"fmt"
	"iter"
	"math/bits"
	"sort"
)

// Limits of a multipart upload, the strictest of those documented for OBS and S3.
const (
	MaxParts      = 10_000
	MinPartSize   = 5 << 20                       // of every part but the last
	MaxPartSize   = 5 << 30                       // of every part
	MaxObjectSize = MaxParts * int64(MaxPartSize) // 48.8 TiB
)

// Grain is what divides the offsets of parts unless PlanOptions say otherwise, in bytes: fine enough
// that parts follow the data, and what disks are stored and hashed in.
const Grain = 64 << 10

// Defaults of PlanOptions.
const (
	DefaultBlockSize    = Grain
	DefaultPartSize     = 8 << 20
	DefaultMemoryBudget = 256 << 20
	DefaultWorkers      = 16
)

// MaxWorkers is how many parts can be sent at the same time at most.
const MaxWorkers = 64

const (
	maxBlockSize = 64 << 20
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
	// MemoryBudget, in bytes, bounds the parts that are held × their size as long as a single part fits
	// into it.
	// 0 is DefaultMemoryBudget.
	MemoryBudget int64
	// Workers is how many parts are sent at the same time at most. 0 is DefaultWorkers.
	Workers int
	// MinWorkers is how many they are at least, unless memory is short or the server asks to slow down. In
	// between, as many are sent as the line turns out to carry. 0 is 1.
	MinWorkers int
	// ZeroCopy defaults to ZeroCopyAuto.
	ZeroCopy ZeroCopyMode
}

// Part is one part of the multipart upload.
type Part struct {
	Number         int   // from 1
	Offset, Length int64 // bytes of the object
	Zero           bool  // known to be all zeros: never read from the source
	// Pieces, if not nil, make a composed part: they tile it, are sent, copied or composed as parts of an
	// object of their own, which is then copied into this part and deleted. The last of them may be
	// shorter than MinPartSize. Offsets are those of the object that is uploaded.
	Pieces []Part
}

// Plan divides an object into parts. They tile it in order; all boundaries but the end are
// multiples of BlockSize.
type Plan struct {
	Size      int64 // bytes of the object
	BlockSize int64 // bytes
	PartSize  int64 // bytes a sent part is meant to have
	// Buffer is the length in bytes of the longest part that is read from the source, and so of
	// each worker's buffer.
	Buffer int64
	// Workers and MinWorkers are how many parts are sent at the same time at most and at least.
	Workers, MinWorkers int
	// Buffers is how many parts are held in memory at most: being sent, or read while others are sent.
	Buffers  int
	ZeroCopy ZeroCopyMode // as asked for, never empty
	// CopyZeros tells whether the zero parts are to be copied. It is false when ZeroCopy is off,
	// and also when it is auto and copying would not save bytes.
	CopyZeros bool
	// ZeroObjectSize is the length in bytes of the object of zeros to copy from, 0 when none is
	// planned.
	ZeroObjectSize int64
	Parts          []Part
	// DataBytes is how many bytes are not known to be zero.
	DataBytes int64
	// Floor is the least number of bytes in any set of sent parts that holds all data, if parts can only
	// be sent or copied and there may be as many as one likes: boundaries at multiples of BlockSize, no
	// part but the last below MinPartSize. Composed parts can stay below it.
	Floor int64

	budget     int64
	workers    int // as asked for
	minWorkers int
}

// PlanSummary counts what a plan will cost when nothing fails, no data part turns out to be zeros, and
// no zero object is shared.
type PlanSummary struct {
	Parts         int   `json:"parts"`
	SendParts     int   `json:"send_parts"`
	CopyParts     int   `json:"copy_parts"`
	ComposedParts int   `json:"composed_parts"`
	DataBytes     int64 `json:"data_bytes"`     // not known to be zero
	FloorBytes    int64 `json:"floor_bytes"`    // Plan.Floor
	PartBytes     int64 `json:"part_bytes"`     // sent in parts and pieces
	BytesToSend   int64 `json:"bytes_to_send"`  // bodies: PartBytes and the seed of the zero object
	BytesToCopy   int64 `json:"bytes_to_copy"`  // zeros that the server copies
	ComposedBytes int64 `json:"composed_bytes"` // bytes that the server copies once more, in composed parts
	Requests      int   `json:"requests"`
	Memory        int64 `json:"memory"` // bytes of part buffers
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
	if err := checkWorkers(&o.MinWorkers, &o.Workers); err != nil {
		return nil, invalid("%v", err)
	}
	if err := o.ZeroCopy.Validate(); err != nil {
		return nil, err
	}
	if o.ZeroCopy == "" {
		o.ZeroCopy = ZeroCopyAuto
	}

	return newPlan(size, extents, o, storeRules())
}

func newPlan(size int64, extents iter.Seq2[Extent, error], o PlanOptions, r rules) (*Plan, error) {
	g := newGeometry(size, o.BlockSize, r)
	runs, data, err := g.collectZeroRuns(extents)
	if err != nil {
		return nil, err
	}
	start := o.PartSize
	if start == 0 {
		start = min(DefaultPartSize, max(o.MemoryBudget, g.minPart))
	}
	start = min(max(roundUp(start, o.BlockSize), g.minPart), g.maxPart)

	p := &Plan{Size: size, BlockSize: o.BlockSize, ZeroCopy: o.ZeroCopy, DataBytes: data,
		budget: o.MemoryBudget, workers: o.Workers, minWorkers: o.MinWorkers}
	_, p.Floor = g.choose(runs, terms{partSize: g.maxPart, zeroPart: g.maxPart})
	if o.ZeroCopy != ZeroCopyOff {
		p.fit(g, runs, start, true)
		p.CopyZeros = p.zeroBytes() > seedSize || o.ZeroCopy == ZeroCopyOn && p.zeroBytes() > 0
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
	g := newGeometry(p.Size, p.BlockSize, storeRules())
	var runs []zeroRun
	for part := range leaves(p.Parts) {
		if !part.Zero {
			continue
		}
		if n := len(runs); n > 0 && runs[n-1].end == part.Offset {
			runs[n-1].end += part.Length
		} else {
			runs = append(runs, zeroRun{part.Offset, part.Offset + part.Length})
		}
	}
	q := &Plan{Size: p.Size, BlockSize: p.BlockSize, ZeroCopy: p.ZeroCopy, DataBytes: p.DataBytes, Floor: p.Floor,
		budget: p.budget, workers: p.workers, minWorkers: p.minWorkers}
	q.fit(g, runs, p.PartSize, false)
	q.finish()
	return q
}

// leaves goes through the parts that are sent or copied, those within composed parts too, in order.
func leaves(parts []Part) iter.Seq[Part] {
	return func(yield func(Part) bool) {
		var walk func(parts []Part) bool
		walk = func(parts []Part) bool {
			for _, p := range parts {
				if p.Pieces == nil && !yield(p) || !walk(p.Pieces) {
					return false
				}
			}
			return true
		}
		walk(parts)
	}
}

// composeRequests are those of a composed part beside its pieces': initiate, complete, copy, delete.
const composeRequests = 4

// zeroLevelRequests are those of a zero object beside its copies: initiate, complete, a look at the
// result, delete.
const zeroLevelRequests = 4

// Summary counts the plan's cost.
func (p *Plan) Summary() PlanSummary {
	s := PlanSummary{Parts: len(p.Parts), Memory: int64(p.Buffers) * p.Buffer, DataBytes: p.DataBytes, FloorBytes: p.Floor}
	var pieces func(parts []Part)
	pieces = func(parts []Part) {
		for _, part := range parts {
			s.Requests++
			switch {
			case part.Pieces != nil:
				s.Requests += composeRequests - 1
				s.ComposedBytes += part.Length
				pieces(part.Pieces)
			case part.Zero && p.CopyZeros:
				s.BytesToCopy += part.Length
			default:
				s.PartBytes += part.Length
			}
		}
	}
	pieces(p.Parts)
	for _, part := range p.Parts {
		switch {
		case part.Pieces != nil:
			s.ComposedParts++
		case part.Zero && p.CopyZeros:
			s.CopyParts++
		default:
			s.SendParts++
		}
	}
	// Initiate, the parts, the pages of the part list, complete, the last look at the object.
	s.Requests += 1 + (s.Parts+listPage-1)/listPage + 1 + 1
	s.BytesToSend = s.PartBytes
	if p.CopyZeros {
		levels := zeroLevels(p.ZeroObjectSize)
		s.BytesToSend += levels[0]
		s.Requests += 3 // the look for a shared one, the seed, and its deletion
		for i := 1; i < len(levels); i++ {
			s.Requests += zeroLevelRequests + int(ceilDiv(levels[i], levels[i-1]))
		}
	}
	return s
}

// cost is what the plan is compared by, in bytes to send.
func (p *Plan) cost(r rules) int64 {
	s := p.Summary()
	return s.BytesToSend + r.request*int64(s.Requests) + s.ComposedBytes/max(r.compose, 1)
}

func (p *Plan) zeroBytes() int64 {
	var n int64
	for part := range leaves(p.Parts) {
		if part.Zero {
			n += part.Length
		}
	}
	return n
}

// finish derives the rest from the parts.
func (p *Plan) finish() {
	p.Buffer, p.ZeroObjectSize = 0, 0
	var longest int64
	for i := range p.Parts {
		p.Parts[i].Number = i + 1
	}
	for part := range leaves(p.Parts) {
		if part.Zero {
			longest = max(longest, part.Length)
		} else {
			p.Buffer = max(p.Buffer, part.Length)
		}
	}
	if p.CopyZeros {
		// Data parts may turn out to be zeros, so the zero object must be as long as those too.
		p.ZeroObjectSize = max(longest, p.Buffer)
	}
	p.Buffers = buffers(p.workers)
	if p.Buffer > 0 {
		p.Buffers = int(min(int64(p.Buffers), max(1, p.budget/p.Buffer)))
	}
	p.Buffers = max(1, min(p.Buffers, len(p.Parts)))
	p.Workers = min(p.workers, p.Buffers)
	p.MinWorkers = max(1, min(p.minWorkers, p.Workers))
}

// checkWorkers fills in how many parts are sent at the same time, or refuses what can't be.
func checkWorkers(low, high *int) error {
	if *high < 0 || *high > MaxWorkers {
		return fmt.Errorf("%d workers: from 1 to %d are possible", *high, MaxWorkers)
	}
	setDefault(high, DefaultWorkers)
	if *low < 0 || *low > *high {
		return fmt.Errorf("%d workers at least and %d at most", *low, *high)
	}
	setDefault(low, 1)
	return nil
}

// buffers is how many parts are held for as many workers: one worker alone sends what it has read before it
// reads on.
func buffers(workers int) int {
	if workers == 1 {
		return 1
	}
	return workers + ahead(workers)
}

// fit fills Parts and PartSize with a division that has at most maxParts parts. Parts grow first, as
// long as two workers have room within the memory budget; that costs nothing. When the runs of zeros
// alone are too many, either parts are composed, or the runs that save the least are sent: what is
// cheaper. copies tells whether zeros are to be copied at all.
func (p *Plan) fit(g geometry, runs []zeroRun, start int64, copies bool) {
	step := max(g.block, partStep)
	// With parts of this size even a disk without any run of zeros fits.
	ceiling := max(start, roundUp(ceilDiv(g.size, int64(g.maxParts)), step), roundUp(p.budget/2, step))
	ceiling = min(ceiling, g.maxPart)
	t := terms{part: g.request, partSize: start, zeroPart: g.maxPart, tails: copies && g.compose > 0}
	var kept []copied
	var zeroPart int64
	choose := func(runs []zeroRun) {
		kept, _ = g.choose(runs, t)
		if zeroPart = g.zeroPart(kept); !copies {
			zeroPart = 0
		}
	}
	divide := func(size int64, limit int) []Part {
		z := zeroPart
		if z == 0 {
			z = size
		}
		return g.divide(kept, size, z, limit)
	}
	fits := func(size int64) bool { return len(divide(size, g.maxParts)) <= g.maxParts }
	if choose(runs); fits(ceiling) {
		p.grow(divide, fits, start, ceiling, step)
		return
	}
	composed := p.composed(g, divide, start, ceiling, copies)
	t.tails, t.partSize = false, ceiling
	within := func(price int64, runs []zeroRun) bool {
		t.part = price
		choose(runs)
		return fits(ceiling)
	}
	// The dearer a part, the fewer are chosen. Counts are almost, not strictly, monotone, hence the last
	// look at each end.
	lo, hi := g.request, max(g.request, 1)
	for hi <= g.size && !within(hi, runs) {
		lo, hi = hi, 2*hi
	}
	for range 16 {
		if mid := (lo + hi) / 2; within(mid, runs) {
			hi = mid
		} else {
			lo = mid
		}
	}
	few, fewZeroPart := kept[:0:0], zeroPart // so close to the store's limits, it may be that none fits
	if hi <= g.size && within(hi, runs) {
		few, fewZeroPart = kept, zeroPart
	}
	// Of runs that are worth the same, all or none are chosen at one price. Those that the lower price
	// adds are taken from the left, as many as there is room for.
	if !within(lo, runs) {
		many := kept
		take := func(n int) []zeroRun { return union(runs, few, many[:n]) }
		n := sort.Search(len(many), func(n int) bool { return !within(lo, take(n+1)) })
		if !within(lo, take(n)) {
			kept, zeroPart = few, fewZeroPart
		}
	}
	p.grow(divide, fits, start, ceiling, step)
	p.CopyZeros = copies
	p.finish()
	if composed != nil && composed.cost(g.rules) < p.cost(g.rules) {
		p.PartSize, p.Parts = composed.PartSize, composed.Parts
	}
}

// grow divides with the smallest part size that will do.
func (p *Plan) grow(divide func(size int64, limit int) []Part, fits func(size int64) bool, start, ceiling, step int64) {
	p.PartSize = ceiling
	if fits(start) {
		p.PartSize = start
	} else {
		lo, hi := int64(0), ceilDiv(ceiling-start, step) // start+lo*step does not fit, hi does
		for hi-lo > 1 {
			mid := (lo + hi) / 2
			if fits(start + mid*step) {
				hi = mid
			} else {
				lo = mid
			}
		}
		p.PartSize = min(start+hi*step, ceiling)
	}
	p.Parts = divide(p.PartSize, maxRuns*4)
}

// composed is the plan with composed parts, nil when there is none.
func (p *Plan) composed(g geometry, divide func(size int64, limit int) []Part, start, ceiling int64, copies bool) *Plan {
	if !copies || g.compose == 0 {
		return nil
	}
	// Long stretches of data need not be cut finer than into a quarter of the parts.
	q := *p
	q.PartSize = min(max(start, roundUp(ceilDiv(4*p.DataBytes, int64(g.maxParts)), max(g.block, partStep))), ceiling)
	if q.Parts = g.group(divide(q.PartSize, 4*maxRuns)); q.Parts == nil {
		return nil
	}
	q.CopyZeros = true
	q.finish()
	return &q
}

// check refuses plans that NewPlan did not make, or that were changed into nonsense.
func (p *Plan) check() error {
	if p.Workers < 1 || p.Buffers < p.Workers {
		return fmt.Errorf("the plan has %d workers and %d buffers", p.Workers, p.Buffers)
	}
	end, err := p.checkParts(p.Parts, 0, 0)
	if err == nil && end != p.Size {
		err = fmt.Errorf("the plan's parts end at %d of %d bytes", end, p.Size)
	}
	return err
}

// maxDepth is how deep composed parts may be nested.
const maxDepth = 2

// checkParts returns where the parts end that begin at pos.
func (p *Plan) checkParts(parts []Part, pos int64, depth int) (int64, error) {
	if len(parts) == 0 || len(parts) > MaxParts || depth > maxDepth {
		return 0, fmt.Errorf("the plan has %d parts in one", len(parts))
	}
	for i, part := range parts {
		last := i == len(parts)-1
		data := !part.Zero && part.Pieces == nil
		if part.Number != i+1 || part.Offset != pos || part.Length <= 0 || part.Length > MaxPartSize ||
			(!last && part.Length < MinPartSize) || (data && part.Length > p.Buffer) || (part.Zero && part.Pieces != nil) ||
			(part.Pieces != nil && !p.CopyZeros) {
			return 0, fmt.Errorf("part %d of the plan cannot be: %d bytes at %d", i+1, part.Length, part.Offset)
		}
		pos += part.Length
		if part.Pieces == nil {
			continue
		}
		end, err := p.checkParts(part.Pieces, part.Offset, depth+1)
		if err == nil && end != pos {
			err = fmt.Errorf("its pieces end at %d instead of %d", end, pos)
		}
		if err != nil {
			return 0, fmt.Errorf("part %d of the plan cannot be: %w", i+1, err)
		}
	}
	return pos, nil
}
