// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"slices"
)

// The blocks that Infer tries: powers of two from MinBlockSize on.
const maxInferBlock = 1 << 30

// Defaults of [InferOptions].
const (
	DefaultMaxLiteral = 4096
	DefaultMaxLayouts = 32
	DefaultMaxFile    = 64 << 20
	DefaultMaxWork    = 8 << 30
)

// maxFound bounds the layouts that are held before the simplest are chosen.
const maxFound = 4096

// maxTrailers is how many bytes of fill a trailer is thought to begin with,
// beyond what the lengths ask for. Any number could be, but nobody would write
// such a trailer, and each would be one more layout to tell from the others.
const maxTrailers = 8

// Pair is a disk and the bitmap file that somebody else's tool made for it.
type Pair struct {
	Name        string
	VirtualSize int64 // bytes; 0 is a disk without blocks
	// Data is what of the disk is not zero, in ascending order and without
	// overlaps. Ranges are exact enough when no sector of 512 bytes is in them
	// that is all zero.
	Data []Extent
	File []byte
}

// InferOptions bounds a search. The zero value has the defaults.
type InferOptions struct {
	MaxLiteral int   // longest header and longest trailer in bytes
	MaxLayouts int   // most layouts returned
	MaxFile    int64 // longest bitmap file in bytes
	MaxWork    int64 // bytes of bitmap that are built and compared
}

func (o InferOptions) withDefaults() InferOptions {
	o.MaxLiteral = min(cmp.Or(max(o.MaxLiteral, 0), DefaultMaxLiteral), maxLiteral)
	o.MaxLayouts = cmp.Or(max(o.MaxLayouts, 0), DefaultMaxLayouts)
	o.MaxFile = cmp.Or(max(o.MaxFile, 0), DefaultMaxFile)
	o.MaxWork = cmp.Or(max(o.MaxWork, 0), DefaultMaxWork)
	return o
}

// Inference is what pairs say about the layout of their files.
type Inference struct {
	// Layouts reproduce every pair byte for byte, the simplest first. Any two of
	// them encode at least one of the [Probes] differently.
	Layouts []Layout
	// Equivalent counts further layouts, each of which encodes all pairs and all
	// probes as one of Layouts does.
	Equivalent int
	// Incomplete tells that a bound of the search was met: there may be more.
	Incomplete bool
	// Separating are the probes that tell Layouts apart, the best first. Empty
	// when there are fewer than two.
	Separating []Separation
	// Evidence is what is known of each pair when no layout was found.
	Evidence []Evidence
	// Best is the way to read bits that fits the data best when no layout was
	// found; nil when nothing fits at all.
	Best *Correlation
}

// Separation is a probe, and how many different files the layouts in question
// make of it.
type Separation struct {
	Probe Probe
	Files int
}

// Evidence describes a bitmap file that no layout explains.
type Evidence struct {
	Name        string
	VirtualSize int64  // bytes
	Data        int64  // bytes of data in the disk's sectors
	Length      int64  // of the file, in bytes
	First       []byte // at most 32 bytes
	Ones        int64  // bits that are set
}

// Correlation is how well the bits of a file, read in one way, go with the
// blocks that hold data.
type Correlation struct {
	Pair        string
	BlockSize   int64 // bytes
	BitOrder    BitOrder
	Offset      int64   // of the first bit's byte in the file
	Coefficient float64 // from -1 (a set bit is a block without data) to 1
	Agree       int64   // blocks whose bit fits
	Blocks      int64
}

// PairError says what is wrong with a pair that was given to [Infer].
type PairError struct {
	Name   string
	Reason string
}

func (e *PairError) Error() string { return fmt.Sprintf("bitmap of %s: %s", e.Name, e.Reason) }

// Infer searches for the layouts that make exactly the files of all pairs:
// blocks of 512 bytes to 1 GiB in powers of two, every bit order, polarity,
// word, padding and trimming, and literal headers and trailers. Lengths rule
// out most candidates before a bit is looked at. The error is a [*PairError];
// that nothing was found is not one.
func Infer(pairs []Pair, o InferOptions) (Inference, error) {
	o = o.withDefaults()
	if len(pairs) == 0 {
		return Inference{}, &PairError{Name: "nothing", Reason: "no pair was given"}
	}
	for _, p := range pairs {
		if reason := p.check(o.MaxFile); reason != "" {
			return Inference{}, &PairError{Name: p.Name, Reason: reason}
		}
	}
	s := newSearch(pairs, o)
	s.run()

	var r Inference
	r.Incomplete = s.incomplete
	r.choose(s.found, o)
	if len(r.Layouts) == 0 {
		for _, p := range pairs {
			r.Evidence = append(r.Evidence, p.evidence())
		}
		r.Best = s.correlate()
	}
	return r, nil
}

func (p Pair) check(maxFile int64) string {
	if p.VirtualSize < 0 {
		return "negative virtual size"
	}
	if int64(len(p.File)) > maxFile {
		return fmt.Sprintf("the file has more than %d bytes", maxFile)
	}
	end := int64(0)
	for _, e := range p.Data {
		if e.Start < end || e.Length <= 0 || e.Start >= p.VirtualSize || e.Length > p.VirtualSize-e.Start {
			return "data is out of order, overlaps, or lies outside the disk"
		}
		end = e.Start + e.Length
	}
	return ""
}

func (p Pair) evidence() Evidence {
	e := Evidence{Name: p.Name, VirtualSize: p.VirtualSize, Length: int64(len(p.File))}
	e.First = bytes.Clone(p.File[:min(len(p.File), 32)])
	for _, d := range p.Data {
		e.Data += d.Length
	}
	for _, b := range p.File {
		e.Ones += int64(bits.OnesCount8(b))
	}
	return e
}

// search is the state of one inference.
type search struct {
	pairs      []Pair
	o          InferOptions
	prefix     int     // bytes that all files begin with
	suffix     int     // bytes that all files end with
	paddings   []int64 // every possible PadTo above 1
	maxLiteral int     // in the present pass
	work       int64
	found      []Layout
	seen       map[string]bool
	incomplete bool
}

func newSearch(pairs []Pair, o InferOptions) *search {
	s := &search{o: o, seen: map[string]bool{}}
	// The shortest file first: it is the cheapest to rule a candidate out with.
	s.pairs = slices.Clone(pairs)
	slices.SortStableFunc(s.pairs, func(a, b Pair) int { return cmp.Compare(len(a.File), len(b.File)) })
	first := s.pairs[0].File
	s.prefix, s.suffix = len(first), len(first)
	var gcd int64
	for _, p := range s.pairs {
		n := len(first)
		tail := p.File[len(p.File)-n:]
		for s.prefix > 0 && !bytes.Equal(first[:s.prefix], p.File[:s.prefix]) {
			s.prefix = commonPrefix(first[:s.prefix], p.File)
		}
		s.suffix = min(s.suffix, commonSuffix(first, tail))
		for a, b := gcd, int64(len(p.File)); ; a, b = b, a%b {
			if b == 0 {
				gcd = a
				break
			}
		}
	}
	for d := int64(1); d*d <= gcd; d++ {
		if gcd%d != 0 {
			continue
		}
		for _, p := range []int64{d, gcd / d} {
			if p > 1 && p <= maxPadTo && !slices.Contains(s.paddings, p) {
				s.paddings = append(s.paddings, p)
			}
		}
	}
	slices.Sort(s.paddings)
	return s
}

func commonPrefix(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

func commonSuffix(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[len(a)-1-n] == b[len(b)-1-n] {
		n++
	}
	return n
}

// run tries everything without literal bytes before anything with them, so that
// the bounds cut off the least likely.
func (s *search) run() {
	for _, s.maxLiteral = range []int{0, s.o.MaxLiteral} {
		for block := int64(MinBlockSize); block <= maxInferBlock; block *= 2 {
			s.tryBlock(block)
		}
	}
}

// words are the units that bits may be gathered in.
func words() []Word {
	out := []Word{{Bytes: 1}}
	for _, n := range []int{2, 4, 8} {
		out = append(out, Word{Bytes: n}, Word{Bytes: n, BigEndian: true})
	}
	return out
}

func (s *search) tryBlock(block int64) {
	ends := make([]ends, len(s.pairs))
	for i, p := range s.pairs {
		ends[i] = p.ends(block)
	}
	plain := make([][]byte, len(s.pairs)) // the bits of each pair, built when first wanted
	for _, word := range words() {
		for flags := range uint8(8) {
			l := Layout{BlockSize: block, BitOrder: BitOrder(flags & 1), DataBit: 1 - flags>>1&1, PadBit: flags >> 2, Word: word}
			for _, l.TrimTail = range []bool{false, true} {
				s.tryBits(l, ends, plain)
			}
		}
	}
}

// ends is what lengths follow from: the number of blocks and the last block
// with and the last without data, -1 for none.
type ends struct{ blocks, lastData, lastEmpty int64 }

func (p Pair) ends(block int64) ends {
	e := ends{blocks: blockCount(p.VirtualSize, block), lastData: -1}
	if n := len(p.Data); n > 0 {
		e.lastData = (p.Data[n-1].Start + p.Data[n-1].Length - 1) / block
	}
	e.lastEmpty = e.blocks - 1
	for i := len(p.Data) - 1; i >= 0; i-- {
		d := p.Data[i]
		if (d.Start+d.Length-1)/block < e.lastEmpty {
			break
		}
		e.lastEmpty = min(e.lastEmpty, d.Start/block-1)
	}
	return e
}

// bitsLength returns how many bytes of words l has for a disk, trimmed if l is.
func (e ends) bitsLength(l Layout) int64 {
	whole := l.bitsSize(e.blocks)
	if !l.TrimTail || l.PadBit == 1 && whole*8 > e.blocks {
		return whole
	}
	last := e.lastData
	if l.DataBit == 0 {
		last = e.lastEmpty
	}
	return l.bitsSize(last + 1)
}

// tryBits finds the headers, trailers and paddings that l's bits fit with.
func (s *search) tryBits(l Layout, ends []ends, plain [][]byte) {
	lengths := make([]int64, len(s.pairs))
	// rest is what a file has beside the bits: all literal where it is the same
	// for all pairs, and literal and fill where there is padding.
	least, most := int64(math.MaxInt64), int64(0)
	for i, p := range s.pairs {
		lengths[i] = ends[i].bitsLength(l)
		rest := int64(len(p.File)) - lengths[i]
		if rest < 0 {
			return
		}
		least, most = min(least, rest), max(most, rest)
	}
	exact := least == most && least <= int64(2*s.maxLiteral)
	var paddings []int64
	if !l.TrimTail {
		for _, p := range s.paddings {
			if most-p < least && most-p < int64(2*s.maxLiteral)+1 {
				paddings = append(paddings, p)
			}
		}
	}
	if !exact && len(paddings) == 0 {
		return
	}
	stored := make([][]byte, len(s.pairs))
	maxHeader := min(least, int64(s.prefix), int64(s.maxLiteral))
	for header := 0; header <= int(maxHeader); header++ {
		for i, p := range s.pairs {
			if s.work > s.o.MaxWork || len(s.found) == maxFound {
				s.incomplete = true
				return
			}
			if stored[i] == nil {
				stored[i] = s.store(l, i, ends[i].blocks, lengths[i], plain)
			}
			at := p.File[header:]
			s.work += 16
			if n := commonPrefix(at[:min(16, len(stored[i]))], stored[i]); n < min(16, len(stored[i])) {
				goto next
			}
			s.work += lengths[i]
			if !bytes.Equal(at[:len(stored[i])], stored[i]) {
				goto next
			}
		}
		if trailer := int(least) - header; exact && trailer <= s.suffix && trailer <= s.maxLiteral {
			s.add(l, header, trailer)
		}
		if len(paddings) > 0 {
			s.tryPaddings(l, header, lengths, paddings, least, most)
		}
	next:
	}
}

// tryPaddings finds the trailers for each padding, after a header and bits that
// fit.
func (s *search) tryPaddings(l Layout, header int, lengths, paddings []int64, least, most int64) {
	// The trailer begins where the last file's fill ends, or before.
	shortest := int64(0)
	for i, p := range s.pairs {
		fill := p.File[int64(header)+lengths[i]:]
		s.work += int64(len(fill))
		n := 0
		for n < len(fill) && fill[n] == byte(l.padWord()) {
			n++
		}
		shortest = max(shortest, int64(len(fill)-n))
	}
	longest := min(least-int64(header), int64(s.suffix), int64(s.maxLiteral))
	for _, l.PadTo = range paddings {
		from := max(shortest, most-l.PadTo+1-int64(header))
		for t := from; t <= min(longest, from+maxTrailers); t++ {
			s.add(l, header, int(t))
		}
	}
}

// store returns the first length bytes of pair i's bits as l has them.
func (s *search) store(l Layout, i int, blocks, length int64, plain [][]byte) []byte {
	// In whole words of 8 bytes, which all layouts can be cut from.
	if need := (length + 7) / 8 * 8; int64(len(plain[i])) < need {
		plain[i] = s.pairs[i].bits(l.BlockSize, need)
		s.work += need
	}
	out := bytes.Clone(plain[i][:length])
	if out == nil {
		out = []byte{}
	}
	if l.DataBit == 0 {
		for j := range out {
			out[j] = ^out[j]
		}
	}
	for b := blocks; b < length*8; b++ {
		if out[b/8] &^= 1 << (b % 8); l.PadBit == 1 {
			out[b/8] |= 1 << (b % 8)
		}
	}
	l.permute(out)
	s.work += length
	return out
}

// bits returns n bytes of bits, the least significant first, 1 for data.
func (p Pair) bits(block, n int64) []byte {
	out := make([]byte, n)
	for _, e := range p.Data {
		first, last := e.Start/block, min((e.Start+e.Length-1)/block, n*8-1)
		for b := first; b <= last; {
			if b%8 == 0 && b+7 <= last {
				out[b/8] = 0xFF
				b += 8
				continue
			}
			out[b/8] |= 1 << (b % 8)
			b++
		}
	}
	return out
}

func (s *search) add(l Layout, header, trailer int) {
	if len(s.found) == maxFound {
		s.incomplete = true
		return
	}
	// All candidates have their literal bytes from the same file.
	key := fmt.Sprint(l, header, trailer)
	if s.seen[key] {
		return
	}
	f := s.pairs[0].File
	l.Header, l.Trailer = f[:header:header], f[len(f)-trailer:]
	s.seen[key] = true
	s.found = append(s.found, l)
}

// key tells layouts apart by everything but their name.
func (l Layout) key() string {
	l.Name = ""
	if len(l.Header) == 0 {
		l.Header = nil
	}
	if len(l.Trailer) == 0 {
		l.Trailer = nil
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%#v", l))
	return hex.EncodeToString(sum[:])
}

// complexity orders layouts by how much they assume.
func (l Layout) complexity() int {
	n := len(l.Header) + len(l.Trailer)
	for _, odd := range []bool{
		len(l.Header) > 0, len(l.Trailer) > 0, l.BitOrder != LSBFirst, l.DataBit != 1, l.DataBit == l.PadBit,
		l.Word.BigEndian, l.TrimTail, l.PadTo > 0, l.PadTo&(l.PadTo-1) != 0,
	} {
		if odd {
			n += 4
		}
	}
	return n + bits.Len(uint(l.Word.Bytes)) + bits.Len64(uint64(l.PadTo))/4
}

// choose takes the simplest layouts, one of each kind that the probes can tell
// apart, names them, and finds those probes.
func (r *Inference) choose(found []Layout, o InferOptions) {
	slices.SortStableFunc(found, func(a, b Layout) int { return cmp.Compare(a.complexity(), b.complexity()) })
	var (
		probes = Probes()
		maps   = map[string]*Map{}
		hasher maphash.Hash
		files  [][]uint64 // of each layout that was chosen, a hash a probe
	)
	work := int64(0)
	for n, l := range found {
		// Every layout costs the encoding of all probes, which is much where blocks
		// are small or padding is large.
		for _, p := range probes {
			work += l.EncodedSize(p.VirtualSize)
		}
		if n > 0 && work > o.MaxWork/4 {
			r.Incomplete = true
			break
		}
		hashes := make([]uint64, len(probes))
		for i, p := range probes {
			key := fmt.Sprint(l.BlockSize, p.Name)
			m := maps[key]
			if m == nil {
				m = mapOfExtents(p.VirtualSize, l.BlockSize, p.Extents())
				maps[key] = m
			}
			file, err := l.Encode(m)
			if err != nil {
				return // found layouts are valid
			}
			hasher.Reset()
			_, _ = hasher.Write(file)
			hashes[i] = hasher.Sum64()
		}
		switch {
		case slices.ContainsFunc(files, func(h []uint64) bool { return slices.Equal(h, hashes) }):
			r.Equivalent++
		case len(r.Layouts) == o.MaxLayouts:
			r.Incomplete = true
		default:
			l.Name = nameOf(l)
			l.Header, l.Trailer = slices.Clip(bytes.Clone(l.Header)), slices.Clip(bytes.Clone(l.Trailer))
			r.Layouts = append(r.Layouts, l)
			files = append(files, hashes)
		}
	}
	for i, p := range probes {
		kinds := map[uint64]bool{}
		for _, h := range files {
			kinds[h[i]] = true
		}
		if len(kinds) > 1 {
			r.Separating = append(r.Separating, Separation{Probe: p, Files: len(kinds)})
		}
	}
	slices.SortStableFunc(r.Separating, func(a, b Separation) int { return cmp.Compare(b.Files, a.Files) })
}

// mapOfExtents also makes the map of a disk without blocks, which NewMap
// refuses: a tool may have been given an empty file.
func mapOfExtents(size, block int64, data []Extent) *Map {
	m, err := NewMap(size, block)
	if err != nil {
		return &Map{blockSize: block}
	}
	for _, e := range data {
		m.MarkRange(e.Start, e.Length)
	}
	return m
}

// nameOf returns the built-in layout's name, or one that follows from the value.
func nameOf(l Layout) string {
	for _, b := range Layouts() {
		if b.key() == l.key() {
			return b.Name
		}
	}
	return "inferred-" + l.key()[:8]
}

// correlate finds the block size, bit order and offset at which a file's bits
// go best with the blocks.
func (s *search) correlate() *Correlation {
	var best *Correlation
	work := int64(0)
	for _, p := range s.pairs {
		for block := int64(MinBlockSize); block <= maxInferBlock; block *= 2 {
			blocks := blockCount(p.VirtualSize, block)
			length := (blocks + 7) / 8
			if blocks < 2 || length > int64(len(p.File)) {
				continue
			}
			plain := p.bits(block, length)
			for offset := int64(0); offset <= min(64, int64(len(p.File))-length); offset++ {
				for _, order := range []BitOrder{LSBFirst, MSBFirst} {
					if work += length; work > s.o.MaxWork/8 {
						return best
					}
					c := correlation(plain, p.File[offset:offset+length], blocks, order)
					c.Pair, c.BlockSize, c.Offset = p.Name, block, offset
					if !math.IsNaN(c.Coefficient) && c.Coefficient != 0 && (best == nil || c.beats(*best)) {
						best = &c
					}
				}
			}
		}
	}
	return best
}

// beats prefers the closer fit, weighed by how much it rests on: a few bits are
// easily right by chance.
func (c Correlation) beats(d Correlation) bool {
	weight := func(c Correlation) float64 { return c.Coefficient * c.Coefficient * float64(c.Blocks) }
	return weight(c) > weight(d)
}

func correlation(plain, file []byte, blocks int64, order BitOrder) Correlation {
	var both, data, set int64
	for i := range plain {
		a, b := plain[i], file[i]
		if order == MSBFirst {
			b = bits.Reverse8(b)
		}
		if spare := int64(i+1)*8 - blocks; spare > 0 {
			b &= 0xFF >> spare
			a &= 0xFF >> spare
		}
		both += int64(bits.OnesCount8(a & b))
		data += int64(bits.OnesCount8(a))
		set += int64(bits.OnesCount8(b))
	}
	n, d, s := float64(blocks), float64(data), float64(set)
	return Correlation{
		BitOrder:    order,
		Coefficient: (n*float64(both) - d*s) / math.Sqrt(d*(n-d)*s*(n-s)),
		Agree:       blocks - data - set + 2*both,
		Blocks:      blocks,
	}
}
