// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"cmp"
	"container/heap"
	"fmt"
	"iter"
	"slices"
)

// rules are what a division of an object into parts must keep to, and the prices by which plans are
// compared. Tests make them small.
type rules struct {
	minPart  int64 // bytes of every part but the last
	maxPart  int64 // bytes of every part
	maxParts int   // of one multipart upload
	maxRuns  int   // runs of zeros that are held; of more, the longest
	piece    int64 // bytes of a composed part
	// request is what a request costs, in bytes that could be sent instead.
	request int64
	// compose is how many bytes the server may copy once more for what sending one byte costs; 0
	// forbids composing.
	compose int64
}

// requestBytes is the price of a request: what a line of 80 Mbit/s carries in the time that a request
// takes when there are four of 50 ms each at a time. It also is the highest that keeps a plan within
// 5 % of the floor: a run of zeros is given up to save two requests at most, its own and that of one
// more part to send, and between two runs there are at least MinPartSize bytes that are sent.
const requestBytes = 128 << 10

// composeBytes: hashing a GiB takes the client about 1.5 s, as long as 16 MiB take on a line of
// 100 Mbit/s.
const composeBytes = 64

// maxRuns is how many runs of zeros a plan holds, 16 bytes each: all that a disk of 1.25 TiB can
// have that are long enough for a part.
const maxRuns = 1 << 18

// maxPiece is the longest composed part unless 10,000 parts ask for longer ones.
const maxPiece = 1 << 30

func storeRules() rules {
	return rules{minPart: MinPartSize, maxPart: MaxPartSize, maxParts: MaxParts, maxRuns: maxRuns,
		piece: maxPiece, request: requestBytes, compose: composeBytes}
}

// zeroRun is a range of zeros, [start, end).
type zeroRun struct{ start, end int64 }

func (r zeroRun) length() int64 { return r.end - r.start }

// copied is a run of zeros that a division copies. tail says that the data after it, up to the next
// such run, is too short for a part and becomes the last piece of a composed one.
type copied struct {
	zeroRun
	tail bool
}

// geometry is what every division of one object has in common.
type geometry struct {
	rules
	size  int64
	block int64
}

func newGeometry(size, block int64, r rules) geometry {
	r.minPart = roundUp(r.minPart, block)
	r.maxPart -= r.maxPart % block
	return geometry{rules: r, size: size, block: block}
}

// collectZeroRuns keeps the runs of zeros that could become parts: rounded inward to blocks, and at
// least minPart long unless the object ends with them. When there are more than maxRuns, the longest
// are kept. Ascending. data is how many bytes are not known to be zero.
func (g geometry) collectZeroRuns(extents iter.Seq2[Extent, error]) (runs []zeroRun, data int64, err error) {
	data = g.size
	if extents == nil {
		return nil, data, nil
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
		switch {
		case r.length() <= 0 || r.length() < g.minPart && r.end < g.size:
		case len(kept) < g.maxRuns:
			kept = append(kept, r)
			if len(kept) == g.maxRuns {
				heap.Init(&kept)
			}
		case r.length() > kept[0].length():
			kept[0] = r
			heap.Fix(&kept, 0)
		}
	}
	var pos int64
	for e, err := range extents {
		if err != nil {
			return nil, 0, err
		}
		if e.Length < 0 || e.Start < pos || e.Start > g.size || e.Length > g.size-e.Start {
			return nil, 0, &Error{Op: "plan upload", Kind: KindInvalid, Message: fmt.Sprintf(
				"extent of %d bytes at %d is out of order or leaves the disk of %d bytes", e.Length, e.Start, g.size)}
		}
		pos = e.Start + e.Length
		if e.Length == 0 {
			continue
		}
		if e.Zero {
			data -= e.Length
			if e.Start == cur.end {
				cur.end = pos
				continue
			}
		}
		flush()
		if e.Zero {
			cur = zeroRun{e.Start, pos}
		}
	}
	flush()
	slices.SortFunc(kept, func(a, b zeroRun) int { return cmp.Compare(a.start, b.start) })
	return kept, data, nil
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

// How the data before a copied run is brought to the server.
const (
	asIs   = iota // long enough for a part by itself, or with runs that are sent too
	padded        // with zeros from the runs around it
	asTail        // behind zeros of the run before it, as the last piece of a composed part
)

// choice says that a run is copied, and how what lies before it is sent.
type choice struct {
	run  int32 // index; -1 is the beginning of the object
	prev int32 // index of the choice before, in the list of choices
	lent int32 // blocks of the run's beginning that are sent as data
	kind int8
}

// open is the best way to copy a run, having lent some of it to what lies before.
type open struct {
	cost int64
	node int32 // of choice
	lent int64 // blocks
}

// maxOpen bounds how many ways to copy a run are followed. Ways differ in how much of the run is lent
// to what lies before it; more than a handful never come near each other.
const maxOpen = 16

// terms are what a choice of runs is to weigh.
type terms struct {
	part     int64 // price of a part, in bytes that are sent
	partSize int64 // bytes of a sent part
	zeroPart int64 // bytes of a copied part
	tails    bool  // short data may become the last piece of a composed part
}

// choose picks the runs to copy such that the bytes sent, with the prices of terms, are the fewest.
//
// It goes through the runs from left to right. Each is copied or sent as data; data between two
// copied runs that is too short for a part borrows zeros, of the run on its left as far as that has
// any to spare (nobody else needs them any more), and else of the one on its right. So all that the
// choices so far mean to those that follow is what they cost, and how much of the last copied run is
// gone: of two ways with the same run, the one that costs more and has lent more is dropped.
func (g geometry) choose(runs []zeroRun, t terms) (kept []copied, cost int64) {
	nodes := []choice{{run: -1, prev: -1}}
	ways := []open{{}}
	sentNode, sentCost := int32(-1), int64(0) // the best way with the last run sent; node is the last choice
	end := int64(0)                           // of the last run
	bytes := func(n int64) int64 {            // price of sending
		if t.part == 0 {
			return n
		}
		return n + n/t.partSize*t.part
	}
	spare := func(run int32, lent int64) int64 { // bytes that may still be lent
		if run < 0 {
			return 0
		}
		r := runs[run]
		n := r.length() - lent*g.block - g.minPart
		if r.end == g.size {
			n = r.length() - lent*g.block - 1 // the last part may be short
		}
		return n
	}
	var next []open
	for i := range runs {
		r := runs[i]
		data := r.start - end
		zero := t.part * ceilDiv(r.length(), t.zeroPart)
		next = next[:0]
		add := func(cost, lent int64, prev int32, kind int8) {
			if lent > 0 && spare(int32(i), lent) < 0 {
				return
			}
			next = append(next, open{cost, int32(len(nodes)), lent})
			nodes = append(nodes, choice{run: int32(i), prev: prev, lent: int32(lent), kind: kind})
		}
		mark := len(nodes)
		bestSent, bestNode := int64(-1), int32(-1)
		for _, w := range ways {
			run := nodes[w.node].run
			switch {
			case data == 0: // the beginning
				add(w.cost+zero, 0, w.node, asIs)
			case data >= g.minPart:
				add(w.cost+bytes(data)+t.part+zero, 0, w.node, asIs)
			default:
				need := g.minPart - data
				lent := ceilDiv(max(0, need-spare(run, w.lent)), g.block)
				add(w.cost+g.minPart+t.part+zero, lent, w.node, padded)
				if t.tails && run >= 0 {
					add(w.cost+data+g.tailPrice(data)+zero, 0, w.node, asTail)
				}
			}
			if c := w.cost + bytes(data+r.length()); bestSent < 0 || c < bestSent {
				bestSent, bestNode = c, w.node
			}
		}
		if sentNode >= 0 {
			add(sentCost+bytes(data)+t.part+zero, 0, sentNode, asIs)
			if c := sentCost + bytes(data+r.length()); bestSent < 0 || c < bestSent {
				bestSent, bestNode = c, sentNode
			}
		}
		sentCost, sentNode = bestSent, bestNode
		end = r.end
		next = pareto(next)
		ways = append(ways[:0], next...)
		// Forget the choices that lost: they are all behind mark.
		slices.SortFunc(ways, func(a, b open) int { return cmp.Compare(a.node, b.node) })
		for k := range ways {
			nodes[mark+k] = nodes[ways[k].node]
			ways[k].node = int32(mark + k)
		}
		nodes = nodes[:mark+len(ways)]
	}
	rest := g.size - end
	best, last := int64(-1), int32(-1)
	for _, w := range ways {
		c := w.cost
		if rest > 0 {
			c += bytes(rest) + t.part
		}
		if best < 0 || c < best {
			best, last = c, w.node
		}
	}
	if sentNode >= 0 {
		if c := sentCost + bytes(rest) + t.part; best < 0 || c < best {
			best, last = c, sentNode
		}
	}
	var chain []choice
	for n := last; nodes[n].run >= 0; n = nodes[n].prev {
		chain = append(chain, nodes[n])
	}
	for _, c := range slices.Backward(chain) {
		r := runs[c.run]
		if n := len(kept); n > 0 {
			// How the data in between is sent shows what the run before it gives away.
			before := &kept[n-1]
			switch c.kind {
			case padded:
				lent := int64(c.lent) * g.block
				before.end -= max(0, g.minPart-(r.start-before.end)-lent)
			case asTail:
				before.tail = true
			}
		}
		r.start += int64(c.lent) * g.block
		kept = append(kept, copied{zeroRun: r})
	}
	return kept, best
}

// union returns those of runs that a or b, in the same order, have kept some of.
func union(runs []zeroRun, a, b []copied) []zeroRun {
	var out []zeroRun
	in := func(list *[]copied, r zeroRun) bool {
		for len(*list) > 0 && (*list)[0].end <= r.start {
			*list = (*list)[1:]
		}
		return len(*list) > 0 && (*list)[0].start < r.end
	}
	for _, r := range runs {
		x, y := in(&a, r), in(&b, r)
		if x || y {
			out = append(out, r)
		}
	}
	return out
}

// tailPrice is what it costs to have data too short for a part as the last piece of a composed one:
// to begin the composed part, copy its zeros, complete it, copy it and delete it, beside sending the data.
func (g geometry) tailPrice(data int64) int64 {
	return 6*g.request + (g.minPart+data)/max(g.compose, 1)
}

// pareto drops the ways that cost no less and have lent no less than another.
func pareto(ways []open) []open {
	slices.SortFunc(ways, func(a, b open) int {
		return cmp.Or(cmp.Compare(a.lent, b.lent), cmp.Compare(a.cost, b.cost), cmp.Compare(a.node, b.node))
	})
	out := ways[:0]
	for _, w := range ways {
		if len(out) == 0 || w.cost < out[len(out)-1].cost {
			out = append(out, w)
		}
	}
	if len(out) > maxOpen {
		out = append(out[:maxOpen-1], out[len(out)-1])
	}
	return out
}

// zeroPart is how long copied parts are best: long enough that they are few, but the zero object that
// they are copied from takes requests too, the more the longer it is.
func (g geometry) zeroPart(kept []copied) int64 {
	var longest int64
	for _, k := range kept {
		longest = max(longest, k.length())
	}
	best, least := g.minPart, int64(-1)
	for n := g.minPart; ; n = min(4*n, g.maxPart) {
		var requests int64
		for _, k := range kept {
			requests += ceilDiv(k.length(), n)
		}
		for i, levels := 1, zeroLevels(min(n, longest)); i < len(levels); i++ {
			requests += zeroLevelRequests + ceilDiv(levels[i], levels[i-1])
		}
		if least < 0 || requests < least {
			best, least = n, requests
		}
		if n == g.maxPart || n >= longest {
			return best
		}
	}
}

// divide cuts the object into parts: the kept runs into parts to copy, the rest into parts to send. It
// stops when there are more than limit.
func (g geometry) divide(kept []copied, partSize, zeroPart int64, limit int) []Part {
	var parts []Part
	var pos int64
	tail := false
	for _, k := range kept {
		if tail {
			composed := g.withTail(&parts, k.start)
			parts = append(parts, composed)
		} else {
			parts = g.cut(parts, pos, k.start, partSize, false, limit)
		}
		parts = g.cut(parts, k.start, k.end, zeroPart, true, limit)
		pos, tail = k.end, k.tail
		if len(parts) > limit {
			return parts
		}
	}
	return g.cut(parts, pos, g.size, partSize, false, limit)
}

// cut appends parts of size bytes for [from, to). The last one may be anything at the end of the
// object; elsewhere a remainder below the minimum is evened out with the part before it.
func (g geometry) cut(parts []Part, from, to, size int64, zero bool, limit int) []Part {
	// One part too many is enough to see that this division will not do.
	for from < to && len(parts) <= limit {
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

// withTail takes zeros off the end of parts for a composed part that ends with the data up to to.
func (g geometry) withTail(parts *[]Part, to int64) Part {
	last := len(*parts) - 1
	z := (*parts)[last]
	lead := g.minPart
	if z.Length-lead < g.minPart {
		lead = z.Length
		*parts = (*parts)[:last]
	} else {
		(*parts)[last].Length -= lead
	}
	from, end := z.Offset+z.Length-lead, z.Offset+z.Length
	return Part{Offset: from, Length: to - from, Pieces: []Part{
		{Number: 1, Offset: from, Length: lead, Zero: true}, {Number: 2, Offset: end, Length: to - end}}}
}

// group joins parts that follow each other to composed ones until at most maxParts are left: first
// those that save the most parts for what the server has to copy once more. It returns nil when that
// is not enough.
func (g geometry) group(parts []Part) []Part {
	excess := len(parts) - g.maxParts
	longest := min(max(g.piece, roundUp(ceilDiv(4*g.size, int64(g.maxParts)), g.block)), g.maxPart)
	type bunch struct {
		from, to int
		length   int64
	}
	var bunches []bunch
	for i := 0; i < len(parts); {
		b := bunch{from: i}
		for i < len(parts) && b.length+parts[i].Length <= longest && i-b.from < g.maxParts {
			b.length += parts[i].Length
			i++
		}
		if b.to = i; b.to-b.from > 1 {
			bunches = append(bunches, b)
		}
		i = max(i, b.from+1)
	}
	fixed := 4 * g.request * max(g.compose, 1) // in bytes that are copied
	slices.SortFunc(bunches, func(a, b bunch) int {
		// The greater (parts - 1) / (fixed + length) comes first.
		x, y := int64(a.to-a.from-1)*(fixed+b.length), int64(b.to-b.from-1)*(fixed+a.length)
		return cmp.Or(cmp.Compare(y, x), cmp.Compare(a.from, b.from))
	})
	n := 0
	for ; n < len(bunches) && excess > 0; n++ {
		excess -= bunches[n].to - bunches[n].from - 1
	}
	if excess > 0 {
		return nil
	}
	bunches = bunches[:n]
	slices.SortFunc(bunches, func(a, b bunch) int { return cmp.Compare(a.from, b.from) })
	var out []Part
	at := 0
	for _, b := range bunches {
		out = append(out, parts[at:b.from]...)
		pieces := slices.Clone(parts[b.from:b.to])
		for i := range pieces {
			pieces[i].Number = i + 1
		}
		out = append(out, Part{Offset: pieces[0].Offset, Length: b.length, Pieces: pieces})
		at = b.to
	}
	return append(out, parts[at:]...)
}

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }

func roundUp(a, b int64) int64 { return ceilDiv(a, b) * b }
