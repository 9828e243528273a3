// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"errors"
	"iter"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func seq(es ...Extent) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for _, e := range es {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// alternate yields data and zeros in turn.
func alternate(size, data, zero int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for pos, z := int64(0), false; pos < size; z = !z {
			n := data
			if z {
				n = zero
			}
			n = min(n, size-pos)
			if !yield(Extent{pos, n, z}, nil) {
				return
			}
			pos += n
		}
	}
}

type failer interface {
	Helper()
	Fatalf(format string, a ...any)
}

// checkPlan holds a plan against everything a plan promises.
func checkPlan(t failer, p *Plan, size int64, extents iter.Seq2[Extent, error], o PlanOptions) {
	t.Helper()
	block := o.BlockSize
	if block == 0 {
		block = Grain
	}
	if len(p.Parts) == 0 || len(p.Parts) > MaxParts {
		t.Fatalf("%d parts", len(p.Parts))
	}
	var pos, longestRead, longestZero int64
	for i, part := range p.Parts {
		last := i == len(p.Parts)-1
		if part.Number != i+1 || part.Offset != pos {
			t.Fatalf("part %d is number %d at %d, want at %d", i+1, part.Number, part.Offset, pos)
		}
		if part.Offset%block != 0 {
			t.Fatalf("part %d at %d is not at a block of %d", i+1, part.Offset, block)
		}
		if part.Length <= 0 || part.Length > MaxPartSize || (!last && part.Length < MinPartSize) {
			t.Fatalf("part %d of %d has %d bytes", i+1, len(p.Parts), part.Length)
		}
		pos += part.Length
	}
	leaf := slices.Collect(leaves(p.Parts))
	at := int64(0)
	for _, part := range leaf {
		if part.Offset != at || part.Offset%block != 0 || part.Length <= 0 {
			t.Fatalf("piece %+v, want one at %d", part, at)
		}
		if at += part.Length; part.Zero {
			longestZero = max(longestZero, part.Length)
		} else {
			longestRead = max(longestRead, part.Length)
		}
	}
	if pos != size || p.Size != size {
		t.Fatalf("the parts end at %d of %d", pos, size)
	}
	if p.Buffer != longestRead {
		t.Fatalf("buffer %d for parts up to %d", p.Buffer, longestRead)
	}
	if p.CopyZeros && p.ZeroObjectSize < max(longestZero, longestRead) {
		t.Fatalf("zero object of %d bytes for parts up to %d", p.ZeroObjectSize, max(longestZero, longestRead))
	}
	if !p.CopyZeros && p.ZeroObjectSize != 0 {
		t.Fatalf("zero object of %d bytes for nothing", p.ZeroObjectSize)
	}
	budget := o.MemoryBudget
	if budget == 0 {
		budget = DefaultMemoryBudget
	}
	if p.Workers < 1 || p.Workers > p.Buffers || (p.Buffers > 1 && int64(p.Buffers)*p.Buffer > budget) {
		t.Fatalf("%d workers, %d buffers with %d bytes each, budget %d", p.Workers, p.Buffers, p.Buffer, budget)
	}
	if err := p.check(); err != nil {
		t.Fatalf("its own check refuses the plan: %v", err)
	}
	// No zero part over data: walk both in step.
	i := 0
	prev := int64(0)
	data := func(from, to int64) {
		for i < len(leaf) && leaf[i].Offset+leaf[i].Length <= from {
			i++
		}
		for j := i; j < len(leaf) && leaf[j].Offset < to; j++ {
			if leaf[j].Zero && from < to {
				t.Fatalf("zero part %+v over data [%d, %d)", leaf[j], from, to)
			}
		}
	}
	if extents == nil {
		data(0, size)
		return
	}
	for e := range extents {
		data(prev, e.Start)
		prev = e.Start + e.Length
		if !e.Zero {
			data(e.Start, prev)
		}
	}
	data(prev, size)
}

func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := PlanOptions{
			BlockSize:    1 << rapid.IntRange(9, 26).Draw(t, "block"),
			ZeroCopy:     rapid.SampledFrom([]ZeroCopyMode{"", ZeroCopyAuto, ZeroCopyOn, ZeroCopyOff}).Draw(t, "mode"),
			Workers:      rapid.IntRange(0, 16).Draw(t, "workers"),
			MemoryBudget: rapid.SampledFrom([]int64{0, 1 << 20, 8 << 20, 64 << 20, 1 << 30}).Draw(t, "budget"),
			PartSize:     rapid.SampledFrom([]int64{0, MinPartSize, 7<<20 + 13, 16 << 20, 100 << 20, 5 << 30}).Draw(t, "part"),
		}
		size := rapid.Int64Range(1, 1<<rapid.SampledFrom([]int{10, 24, 30, 36, 40, 45}).Draw(t, "magnitude")).Draw(t, "size")
		if rapid.IntRange(0, 20).Draw(t, "largest") == 0 {
			size = MaxObjectSize
		}
		var extents iter.Seq2[Extent, error]
		switch rapid.IntRange(0, 3).Draw(t, "pattern") {
		case 0: // random runs, with gaps and neighbours of the same kind
			var es []Extent
			unit := max(1, size/rapid.Int64Range(1, 300).Draw(t, "unit"))
			for pos := int64(0); pos < size && len(es) < 1000; {
				n := min(rapid.Int64Range(0, 2*unit).Draw(t, "run"), size-pos)
				switch rapid.IntRange(0, 2).Draw(t, "kind") {
				case 0:
					es = append(es, Extent{pos, n, true})
				case 1:
					es = append(es, Extent{pos, n, false})
				}
				pos += n
			}
			extents = seq(es...)
		case 1: // many equal ones
			step := max(size/rapid.Int64Range(1, 12_000).Draw(t, "pairs"), 2)
			data := rapid.Int64Range(1, step-1).Draw(t, "data")
			extents = alternate(size, data, step-data)
		case 2:
			extents = seq(Extent{0, size, true})
		case 3: // nothing known
		}
		p, err := NewPlan(size, extents, o)
		if err != nil {
			t.Fatal(err)
		}
		checkPlan(t, p, size, extents, o)
		if p.CopyZeros {
			q := p.withoutCopying()
			checkPlan(t, q, size, extents, PlanOptions{BlockSize: p.BlockSize, MemoryBudget: o.MemoryBudget})
			for _, part := range q.Parts {
				if part.Length > max(q.PartSize, MinPartSize)+max(MinPartSize, p.BlockSize) {
					t.Fatalf("part to send of %d bytes, part size %d", part.Length, q.PartSize)
				}
			}
		}
	})
}

func TestPlanSparseTiB(t *testing.T) {
	const size = 1 << 40
	// 5 GiB of data in 40 islands.
	var es []Extent
	for i := range int64(40) {
		start := i * size / 40
		es = append(es, Extent{start, 128 << 20, false}, Extent{start + 128<<20, size/40 - 128<<20, true})
	}
	es[len(es)-1].Length = size - es[len(es)-1].Start
	p, err := NewPlan(size, seq(es...), PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkPlan(t, p, size, seq(es...), PlanOptions{})
	s := p.Summary()
	t.Logf("%+v, part size %d, workers %d, zero object %d", s, p.PartSize, p.Workers, p.ZeroObjectSize)
	if p.PartSize != 8<<20 || p.Workers != 16 || s.Memory > 200<<20 {
		t.Fatalf("part size %d, %d workers, memory %d", p.PartSize, p.Workers, s.Memory)
	}
	if s.SendParts > 40*17 || s.CopyParts > 40*27 || s.BytesToSend > 41*(128<<20) {
		t.Fatalf("%+v", s)
	}
}

func TestPlanDenseTiB(t *testing.T) {
	p, err := NewPlan(1<<40, nil, PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkPlan(t, p, 1<<40, nil, PlanOptions{})
	s := p.Summary()
	t.Logf("%+v, part size %d, workers %d", s, p.PartSize, p.Workers)
	if s.Memory > 256<<20 || p.Workers < 2 || s.BytesToSend != 1<<40 {
		t.Fatalf("%+v with %d workers", s, p.Workers)
	}
}

func TestPlanScatteredTiB(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name       string
		data, zero int64
		block      int64
		saves      int64 // zero bytes that must not be sent
	}{
		{"5 MiB and 5 MiB", 5 << 20, 5 << 20, 1 << 20, 1 << 30},
		{"64 KiB and 64 KiB", 64 << 10, 64 << 10, 64 << 10, 0},
		{"64 KiB in 200 MiB", 64 << 10, 200<<20 - 64<<10, 1 << 20, 750 << 30},
		{"100 MiB and 120 MiB", 100 << 20, 120 << 20, 2 << 20, 500 << 30},
		{"64 KiB in 16 MiB", 64 << 10, 16<<20 - 64<<10, Grain, 1019 << 30},
	} {
		t.Run(tc.name, func(t *testing.T) {
			size := int64(1 << 40)
			if raceDetector && tc.saves == 0 {
				size >>= 4 // millions of extents, seen by one goroutine
			}
			o := PlanOptions{BlockSize: tc.block}
			p, err := NewPlan(size, alternate(size, tc.data, tc.zero), o)
			if err != nil {
				t.Fatal(err)
			}
			checkPlan(t, p, size, alternate(size, tc.data, tc.zero), o)
			s := p.Summary()
			t.Logf("%+v, part size %d MiB, workers %d", s, p.PartSize>>20, p.Workers)
			if s.BytesToCopy < tc.saves {
				t.Fatalf("only %d bytes copied", s.BytesToCopy)
			}
		})
	}
}

func TestPlanZeroModes(t *testing.T) {
	const size = 64 << 20
	small := seq(Extent{0, 40 << 20, false}, Extent{40 << 20, 6 << 20, true}, Extent{46 << 20, 18 << 20, false})
	exact := seq(Extent{0, 10 << 20, false}, Extent{10 << 20, 5 << 20, true}, Extent{15 << 20, size - 15<<20, false})
	for _, tc := range []struct {
		name   string
		es     iter.Seq2[Extent, error]
		mode   ZeroCopyMode
		copies bool
	}{
		{"auto saves one MiB", small, ZeroCopyAuto, true},
		{"auto saves nothing", exact, ZeroCopyAuto, false},
		{"on", exact, ZeroCopyOn, true},
		{"off", small, ZeroCopyOff, false},
		{"all data", nil, ZeroCopyOn, false},
		{"all zeros", seq(Extent{0, size, true}), ZeroCopyAuto, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := NewPlan(size, tc.es, PlanOptions{BlockSize: 1 << 20, ZeroCopy: tc.mode})
			if err != nil {
				t.Fatal(err)
			}
			if p.CopyZeros != tc.copies {
				t.Fatalf("copies zeros: %v", p.CopyZeros)
			}
			if n := p.Summary().CopyParts; (n > 0) != tc.copies {
				t.Fatalf("%d parts to copy", n)
			}
		})
	}
}

// A little data amid zeros: a part of the minimum, or the last piece of a composed part.
func TestPlanShortData(t *testing.T) {
	const size = 1 << 30
	es := seq(Extent{0, size / 2, true}, Extent{size / 2, 4096, false}, Extent{size/2 + 4096, size/2 - 4096, true})
	r := storeRules()
	for _, tc := range []struct {
		compose int64
		sent    int64
	}{{0, MinPartSize}, {composeBytes, Grain}} {
		r.compose = tc.compose
		p, err := newPlan(size, es, PlanOptions{BlockSize: Grain, MemoryBudget: DefaultMemoryBudget, Workers: 4}, r)
		if err != nil {
			t.Fatal(err)
		}
		var sent []int64
		for part := range leaves(p.Parts) {
			if !part.Zero {
				sent = append(sent, part.Length)
			}
		}
		if s := p.Summary(); !slices.Equal(sent, []int64{tc.sent}) || s.FloorBytes != MinPartSize || s.DataBytes != 4096 || s.PartBytes != tc.sent {
			t.Fatalf("sends %v, %+v", sent, s)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	broken := errors.New("broken image")
	for _, tc := range []struct {
		name string
		size int64
		es   iter.Seq2[Extent, error]
		o    PlanOptions
	}{
		{"size 0", 0, nil, PlanOptions{}},
		{"size -1", -1, nil, PlanOptions{}},
		{"too large", MaxObjectSize + 1, nil, PlanOptions{}},
		{"block not a power of two", 1, nil, PlanOptions{BlockSize: 3 << 20}},
		{"block too small", 1, nil, PlanOptions{BlockSize: 256}},
		{"block too large", 1, nil, PlanOptions{BlockSize: 1 << 30}},
		{"part too small", 1, nil, PlanOptions{PartSize: 1 << 20}},
		{"part too large", 1, nil, PlanOptions{PartSize: MaxPartSize + 1}},
		{"mode", 1, nil, PlanOptions{ZeroCopy: "maybe"}},
		{"workers", 1, nil, PlanOptions{Workers: -1}},
		{"budget", 1, nil, PlanOptions{MemoryBudget: -1}},
		{"overlap", 10, seq(Extent{0, 5, true}, Extent{4, 2, false}), PlanOptions{}},
		{"past the end", 10, seq(Extent{0, 11, true}), PlanOptions{}},
		{"negative", 10, seq(Extent{0, -1, true}), PlanOptions{}},
		{"overflow", 10, seq(Extent{5, 1<<63 - 1, true}), PlanOptions{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := NewPlan(tc.size, tc.es, tc.o)
			if p != nil || KindOf(err) != KindInvalid {
				t.Fatalf("plan %v, error %v", p, err)
			}
		})
	}
	_, err := NewPlan(10, func(yield func(Extent, error) bool) { yield(Extent{}, broken) }, PlanOptions{})
	if !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
}

// FuzzNewPlan builds extents from bytes: whatever comes in, a plan keeps its promises.
func FuzzNewPlan(f *testing.F) {
	f.Add(int64(1<<40), uint8(21), []byte{1, 200, 0, 3, 255, 7})
	f.Add(int64(10), uint8(9), []byte{})
	f.Add(MaxObjectSize, uint8(26), []byte{255, 255, 255})
	f.Fuzz(func(t *testing.T, size int64, shift uint8, pattern []byte) {
		o := PlanOptions{BlockSize: 1 << (shift % 32)}
		var es []Extent
		pos := int64(0)
		for i, b := range pattern {
			n := int64(b) * int64(b) * max(1, size/20_000)
			if pos+n > size || pos+n < pos {
				break
			}
			es = append(es, Extent{pos, n, i%2 == 0})
			pos += n
		}
		p, err := NewPlan(size, seq(es...), o)
		if err != nil {
			if KindOf(err) != KindInvalid {
				t.Fatal(err)
			}
			return
		}
		checkPlan(t, p, size, seq(es...), o)
	})
}

// fewest is the least number of bytes sent in any division into at most maxParts parts, found by
// trying all of them: for each position and number of parts, every part that may end there.
func fewest(zero []bool, minPart, maxPart, maxParts int) int64 {
	n := len(zero)
	const never = 1 << 40
	run := make([]int, n+1) // zeros that end here
	for i := range n {
		if zero[i] {
			run[i+1] = run[i] + 1
		}
	}
	before := make([]int64, n+1)
	for i := range before {
		before[i] = never
	}
	before[0] = 0
	best := int64(never)
	for range min(maxParts, n) {
		after := make([]int64, n+1)
		after[0] = never
		for end := 1; end <= n; end++ {
			after[end] = never
			for l := 1; l <= min(maxPart, end); l++ {
				if l < minPart && end < n {
					continue
				}
				cost := before[end-l]
				if run[end] < l {
					cost += int64(l)
				}
				after[end] = min(after[end], cost)
			}
		}
		best = min(best, after[n])
		before = after
	}
	return best
}

// patterned draws a disk of n units: runs of data and zeros in turn.
func patterned(t *rapid.T, n, data, gap int) ([]bool, iter.Seq2[Extent, error]) {
	zero := make([]bool, n)
	var es []Extent
	for pos, z := 0, rapid.Bool().Draw(t, "zero first"); pos < n; z = !z {
		longest := data
		if z {
			longest = gap
		}
		l := min(rapid.IntRange(1, longest).Draw(t, "run"), n-pos)
		for i := pos; i < pos+l; i++ {
			zero[i] = z
		}
		es = append(es, Extent{int64(pos), int64(l), z})
		pos += l
	}
	return zero, seq(es...)
}

// checkDivision holds a plan against rules that are not the store's.
func checkDivision(t *rapid.T, p *Plan, zero []bool, r rules) (sent int64) {
	t.Helper()
	var check func(parts []Part, from, depth int) int
	check = func(parts []Part, from, depth int) int {
		if len(parts) > r.maxParts || depth > maxDepth {
			t.Fatalf("%d parts at depth %d", len(parts), depth)
		}
		for i, part := range parts {
			if int(part.Offset) != from || part.Length < 1 || part.Length > r.maxPart || (part.Length < r.minPart && i < len(parts)-1) {
				t.Fatalf("part %+v at %d in %+v", part, from, parts)
			}
			end := from + int(part.Length)
			switch {
			case part.Pieces != nil:
				if r.compose == 0 || check(part.Pieces, from, depth+1) != end {
					t.Fatalf("composed part %+v", part)
				}
			case part.Zero:
				if slices.Contains(zero[from:end], false) {
					t.Fatalf("data in zero part %+v", part)
				}
			default:
				sent += part.Length
			}
			from = end
		}
		return from
	}
	if check(p.Parts, 0, 0) != len(zero) {
		t.Fatalf("the parts end early: %+v", p.Parts)
	}
	return sent
}

// scaled is a disk with longer units, and parts are its parts in units again: prices need room between
// two lengths.
func scaled(es iter.Seq2[Extent, error], unit int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for e, err := range es {
			if !yield(Extent{e.Start * unit, e.Length * unit, e.Zero}, err) {
				return
			}
		}
	}
}

func unscaled(parts []Part, unit int64) []Part {
	parts = slices.Clone(parts)
	for i := range parts {
		p := &parts[i]
		p.Offset, p.Length = p.Offset/unit, p.Length/unit
		if p.Pieces != nil {
			p.Pieces = unscaled(p.Pieces, unit)
		}
	}
	return parts
}

// The plan against all divisions that there are. Units are short, so that disks are.
func TestPlanNearFloor(t *testing.T) {
	plan := func(t *rapid.T, n int, es iter.Seq2[Extent, error], partSize int, r rules) *Plan {
		const unit = 1 << 10
		r.minPart, r.maxPart, r.piece, r.request = r.minPart*unit, r.maxPart*unit, r.piece*unit, r.request*unit
		p, err := newPlan(int64(n)*unit, scaled(es, unit), PlanOptions{BlockSize: unit, PartSize: int64(partSize) * unit,
			MemoryBudget: 1 << 40, Workers: 1, ZeroCopy: ZeroCopyOn}, r)
		if err != nil {
			t.Fatal(err)
		}
		p.Parts, p.Floor = unscaled(p.Parts, unit), p.Floor/unit
		return p
	}
	// Few parts, and nothing to pay for composing: the floor is kept to whatever the limit.
	t.Run("composed", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			n := rapid.IntRange(1, 32).Draw(t, "size")
			minPart := rapid.IntRange(2, 5).Draw(t, "least")
			maxParts := rapid.IntRange(5, 8).Draw(t, "parts")
			zero, es := patterned(t, n, 6, 12)
			r := rules{minPart: int64(minPart), maxPart: 32, maxParts: maxParts, maxRuns: 100, piece: 32, compose: 1 << 40}
			p := plan(t, n, es, rapid.IntRange(minPart, 32).Draw(t, "part size"), r)
			sent, floor := checkDivision(t, p, zero, r), fewest(zero, minPart, 32, n)
			if p.Floor != floor || sent > floor || floor > fewest(zero, minPart, 32, maxParts) {
				t.Fatalf("sends %d, floor %d, said to be %d", sent, floor, p.Floor)
			}
		})
	})
	// The limit binds and nothing can be composed: the runs that save the least are given up.
	t.Run("limited", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			const n = 300
			minPart := rapid.IntRange(2, 5).Draw(t, "least")
			maxParts := rapid.IntRange(30, 50).Draw(t, "parts")
			zero, es := patterned(t, n, 6, rapid.IntRange(6, 20).Draw(t, "gap"))
			r := rules{minPart: int64(minPart), maxPart: n, maxParts: maxParts, maxRuns: 1000}
			p := plan(t, n, es, rapid.IntRange(minPart, n).Draw(t, "part size"), r)
			sent, floor := checkDivision(t, p, zero, r), fewest(zero, minPart, n, maxParts)
			if p.Floor > floor || 100*sent > 105*floor {
				t.Fatalf("sends %d, floor %d within the limit, %d without", sent, floor, p.Floor)
			}
		})
	})
	// The prices of a plan, in units of 64 KiB: what is paid for fewer requests.
	t.Run("priced", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			const minPart = MinPartSize / Grain
			n := rapid.IntRange(1, 1200).Draw(t, "size")
			zero, es := patterned(t, n, rapid.IntRange(1, 200).Draw(t, "data"), rapid.IntRange(1, 300).Draw(t, "gap"))
			r := storeRules()
			r.minPart, r.maxPart, r.piece, r.request, r.compose = minPart, MaxPartSize/Grain, maxPiece/Grain, requestBytes/Grain, 0
			sent := checkDivision(t, plan(t, n, es, DefaultPartSize/Grain, r), zero, r)
			floor := fewest(zero, minPart, n, (n+minPart-1)/minPart)
			if 100*sent > 105*floor {
				t.Fatalf("sends %d, floor %d", sent, floor)
			}
			r.compose = composeBytes
			if s := checkDivision(t, plan(t, n, es, DefaultPartSize/Grain, r), zero, r); s > sent {
				t.Fatalf("composing sends %d instead of %d", s, sent)
			}
		})
	})
}
