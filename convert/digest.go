// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"maps"
	"math/bits"
	"slices"
	"sync"

	"github.com/lima-vm/go-qcow2reader/image"
)

// Grain is the unit in bytes in which a [Scanner] looks at a disk: ranges begin and end at multiples of
// it, and it is what a leaf of the digest covers.
const Grain = 64 << 10

// DigestBlock is the size in bytes of the digest's blocks, whatever a bitmap's are.
const DigestBlock = 2 << 20

const (
	blockGrains = DigestBlock / Grain
	// pageBlocks is how many blocks are kept together; a disk costs nothing where nothing was seen.
	pageBlocks = 512
)

// DigestName begins every digest in text, so that another way to compute one can't be confused with
// this one.
const DigestName = "imsprep-tree-1"

// Digest names the content of a disk: two disks have the same one only if they have the same size and
// the same bytes. It doesn't depend on formats, on how the disk was cut and in which order it was read.
// docs/verification.md has its definition.
type Digest [sha256.Size]byte

// String returns the digest as it is shown and stored, "imsprep-tree-1:" and 64 hexadecimal digits.
func (d Digest) String() string { return DigestName + ":" + hex.EncodeToString(d[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. It takes what String returns and nothing else.
func (d *Digest) UnmarshalText(text []byte) error {
	var got Digest
	name, digits, ok := cutDigest(string(text))
	if !ok || name != DigestName || len(digits) != hex.EncodedLen(len(got)) {
		return fmt.Errorf("%q is not a digest of the kind %s", text, DigestName)
	}
	if _, err := hex.Decode(got[:], []byte(digits)); err != nil || got.String() != string(text) {
		return fmt.Errorf("%q is not a digest of the kind %s", text, DigestName)
	}
	*d = got
	return nil
}

func cutDigest(s string) (name, digits string, ok bool) {
	for i := range len(s) {
		if s[i] == ':' {
			return s[:i], s[i+1:], true
		}
	}
	return "", "", false
}

// BlockDigest is the digest of one block: SHA-256 over the SHA-256 of each of its leaves.
type BlockDigest [sha256.Size]byte

// tree is the root of a digest being built: blocks with data are added in order.
type tree struct{ h hash.Hash }

func newTree(size int64) tree {
	t := tree{sha256.New()}
	t.h.Write(binary.BigEndian.AppendUint64([]byte(DigestName), uint64(size)))
	return t
}

func (t tree) add(block int64, sum BlockDigest) {
	t.h.Write(append(binary.BigEndian.AppendUint64(nil, uint64(block)), sum[:]...))
}

func (t tree) sum() (d Digest) {
	t.h.Sum(d[:0])
	return d
}

// zeroLeaf returns the digest of n zeros, at most a grain of them.
func zeroLeaf(n int64) [sha256.Size]byte {
	if n == Grain {
		return zeroGrain()
	}
	return sha256.Sum256(make([]byte, n))
}

var zeroGrain = sync.OnceValue(func() [sha256.Size]byte { return sha256.Sum256(make([]byte, Grain)) })

// findings are what a scanner knows of a disk, by blocks of DigestBlock.
type findings struct {
	mu    sync.Mutex
	size  int64 // bytes of the disk
	block int64 // bytes of what is counted, 0 = something smaller than a grain, counted by others
	hash  bool  // digests are wanted
	pages map[int64]*page
	// leaves are the digests of those blocks of which a part was read at a time, by block. They stay,
	// as what is known of a part may be asked for when its neighbour has completed the block.
	leaves map[int64]*leaves
	// large counts blocks that are larger than DigestBlock, by number.
	large     map[int64]*largeBlock
	dataBytes int64 // in blocks that are not all zero
	zeroBytes int64 // seen, in blocks that are all zero as far as they were seen
}

// page is what is known of pageBlocks blocks: a bit a grain.
type page struct {
	known, data [pageBlocks]uint32
	sums        *[pageBlocks]BlockDigest
}

// leaves are the digests of a block's grains.
type leaves [blockGrains][sha256.Size]byte

type largeBlock struct {
	known int64 // bytes
	data  bool
}

// piece is what was learned of one block at a time.
type piece struct {
	block       int64
	known, data uint32
	sum         BlockDigest // of a whole block with data
	leaves      *leaves     // of the data grains, if it isn't a whole block
}

func newFindings(size, block int64) *findings {
	if block < Grain {
		block = 0
	}
	return &findings{size: size, block: block, pages: map[int64]*page{},
		leaves: map[int64]*leaves{}, large: map[int64]*largeBlock{}}
}

// grains returns the bits of the grains of a block that the disk has.
func (f *findings) grains(block int64) uint32 {
	n := (min(f.size-block*DigestBlock, DigestBlock) + Grain - 1) / Grain
	return uint32(1<<n - 1)
}

// bytes returns how many bytes of the disk the grains in mask have.
func (f *findings) bytes(block int64, mask uint32) int64 {
	n := int64(bits.OnesCount32(mask)) * Grain
	if last := (f.size - 1) / Grain; last/blockGrains == block && mask>>(last%blockGrains)&1 == 1 {
		n -= (last+1)*Grain - f.size
	}
	return n
}

func (f *findings) page(block int64) *page {
	p := f.pages[block/pageBlocks]
	if p == nil {
		p = new(page)
		f.pages[block/pageBlocks] = p
	}
	return p
}

// add takes up what was learned. What is new of a whole block replaces what was known of it; of a part,
// only what wasn't known counts.
func (f *findings) add(pieces ...piece) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range pieces {
		f.addPiece(n)
	}
}

func (f *findings) addPiece(n piece) {
	p, i := f.page(n.block), n.block%pageBlocks
	known, data := p.known[i], p.data[i]
	whole := n.known == f.grains(n.block)
	fresh := n.known
	if !whole {
		fresh &^= known
	}
	p.known[i] |= fresh
	p.data[i] = data&^fresh | n.data&fresh
	f.count(n.block, known, data, p.known[i], p.data[i])
	switch {
	case !f.hash:
	case whole:
		delete(f.leaves, n.block)
		if n.data != 0 {
			if p.sums == nil {
				p.sums = new([pageBlocks]BlockDigest)
			}
			p.sums[i] = n.sum
		}
	case n.data&fresh != 0:
		l := f.leaves[n.block]
		if l == nil {
			l = new(leaves)
			f.leaves[n.block] = l
		}
		for g := range blockGrains {
			if fresh>>g&1 == 1 {
				l[g] = n.leaves[g]
			}
		}
	}
}

// count brings the counters from what was known of a block to what is known now.
func (f *findings) count(block int64, known, data, nowKnown, nowData uint32) {
	switch {
	case f.block == 0:
	case f.block > DigestBlock:
		n := block * DigestBlock / f.block
		b := f.large[n]
		if b == nil {
			b = new(largeBlock)
			f.large[n] = b
		}
		more := f.bytes(block, nowKnown) - f.bytes(block, known)
		b.known += more
		switch {
		case b.data:
		case nowData != 0:
			b.data = true
			f.zeroBytes -= b.known - more
			f.dataBytes += min(f.block, f.size-n*f.block)
		default:
			f.zeroBytes += more
		}
	default:
		step := f.block / Grain
		for first := int64(0); first < blockGrains; first += step {
			mask := uint32((1<<step-1)<<first) & f.grains(block)
			if was := known & mask; data&mask != 0 {
				f.dataBytes -= f.bytes(block, mask)
			} else {
				f.zeroBytes -= f.bytes(block, was)
			}
			if is := nowKnown & mask; nowData&mask != 0 {
				f.dataBytes += f.bytes(block, mask)
			} else {
				f.zeroBytes += f.bytes(block, is)
			}
		}
	}
}

// look returns what is known of a block. The digest is that of the whole block, in which what isn't
// known counts as zeros; l is nil if its leaves aren't known one by one.
func (f *findings) look(block int64) (known, data uint32, l *leaves, sum BlockDigest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, i := f.pages[block/pageBlocks], block%pageBlocks
	if p == nil {
		return 0, 0, nil, sum
	}
	known, data = p.known[i], p.data[i]
	if !f.hash || data == 0 {
		return known, data, nil, sum
	}
	if found := f.leaves[block]; found != nil {
		l = new(leaves)
		*l = *found
		return known, data, l, f.blockSum(block, data, l)
	}
	return known, data, nil, p.sums[i]
}

// blockSum is the digest of a block whose data grains have these leaves.
func (f *findings) blockSum(block int64, data uint32, l *leaves) (sum BlockDigest) {
	h := sha256.New()
	size := min(f.size-block*DigestBlock, DigestBlock)
	for g := int64(0); g*Grain < size; g++ {
		leaf := l[g]
		if data>>g&1 == 0 {
			leaf = zeroLeaf(min(size-g*Grain, Grain))
		}
		h.Write(leaf[:])
	}
	h.Sum(sum[:0])
	return sum
}

// eachBlock calls fn with every block of which something is known, in order.
func (f *findings) eachBlock(fn func(block int64) error) error {
	f.mu.Lock()
	pages := slices.Sorted(maps.Keys(f.pages))
	f.mu.Unlock()
	for _, p := range pages {
		for i := range int64(pageBlocks) {
			if err := fn(p*pageBlocks + i); err != nil {
				return err
			}
		}
	}
	return nil
}

// ErrNoDigest is the error of [Scanner.Digest] when the scanner computes none.
var ErrNoDigest = errors.New("the scanner computes no digest")

// WithDigest makes the scanner compute the disk's digest from what it reads, and returns it. It must be
// called before anything is read.
func (s *Scanner) WithDigest() *Scanner {
	s.found.hash = true
	return s
}

// Digest returns the digest of the disk. All of it must have been read or learned, but for what the
// image says to be zeros: anything else that is missing is an error.
func (s *Scanner) Digest(ctx context.Context) (Digest, error) {
	t := newTree(s.size)
	err := s.BlockDigests(ctx, func(block int64, sum BlockDigest) error {
		t.add(block, sum)
		return nil
	})
	if err != nil {
		return Digest{}, err
	}
	return t.sum(), nil
}

// digestTo stores the digest in d, unless d is nil.
func (s *Scanner) digestTo(ctx context.Context, d *Digest) (err error) {
	if d != nil {
		*d, err = s.Digest(ctx)
	}
	return err
}

// BlockDigests calls fn with every block of [DigestBlock] bytes that isn't all zeros, in order; the same
// must have been read as for [Scanner.Digest].
func (s *Scanner) BlockDigests(ctx context.Context, fn func(block int64, sum BlockDigest) error) error {
	if !s.found.hash {
		return ErrNoDigest
	}
	if err := s.missing(ctx, 0, s.size); err != nil {
		return err
	}
	return s.found.eachBlock(func(block int64) error {
		if _, data, _, sum := s.found.look(block); data != 0 {
			return fn(block, sum)
		}
		return nil
	})
}

// Block returns the digest of a block of [DigestBlock] bytes, and whether it holds data at all; known is false
// unless all of it was read or learned, or is known to be zeros.
func (s *Scanner) Block(block int64) (sum BlockDigest, data, known bool) {
	off := block * DigestBlock
	if !s.found.hash || block < 0 || off >= s.size || s.missing(context.Background(), off, min(DigestBlock, s.size-off)) != nil {
		return sum, false, false
	}
	_, d, _, sum := s.found.look(block)
	return sum, d != 0, true
}

// missing returns an error if the n bytes at off hold something that was neither read nor learned, and
// that the image doesn't say to be zeros either.
func (s *Scanner) missing(ctx context.Context, off, n int64) error {
	return s.unknown(ctx, off, n, func(at, end int64) error {
		for at < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			e, err := s.extent(at, min(end-at, extentWindow))
			if err != nil {
				return err
			}
			if !e.Zero {
				return fmt.Errorf("%d bytes at offset %d were not read", e.Length, at)
			}
			at += e.Length
		}
		return nil
	})
}

// ReadRest reads what was neither read nor learned so far and isn't known to be zeros, so that the digest
// and the counters are those of the whole disk.
func (s *Scanner) ReadRest(ctx context.Context) error {
	var buf []byte
	return s.unknown(ctx, 0, s.size, func(at, end int64) error {
		for at < end {
			e, err := s.extent(at, min(end-at, extentWindow))
			if err != nil {
				return err
			}
			if e.Zero {
				next := at + e.Length
				if next < end {
					next = next / Grain * Grain
				}
				if next > at {
					at = next
					continue
				}
			}
			if buf == nil {
				buf = make([]byte, defaultChunk)
			}
			p := buf[:min(int64(len(buf)), end-at)]
			if _, err := s.ReadRange(ctx, p, at); err != nil {
				return err
			}
			at += int64(len(p))
		}
		return nil
	})
}

// unknown calls fn with every range of the n bytes at off that was neither read nor learned.
func (s *Scanner) unknown(ctx context.Context, off, n int64, fn func(start, end int64) error) error {
	start, end := int64(-1), off+n
	for at := off; at < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		known, next := s.found.known(at)
		switch {
		case !known && start < 0:
			start = at
		case known && start >= 0:
			if err := fn(start, at); err != nil {
				return err
			}
			start = -1
		}
		at = min(next, end)
	}
	if start < 0 {
		return nil
	}
	return fn(start, end)
}

// known tells whether what is at an offset is known, and up to where the answer holds at least.
func (f *findings) known(off int64) (known bool, next int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	block := off / DigestBlock
	p, i := f.pages[block/pageBlocks], block%pageBlocks
	if p == nil {
		return false, (block/pageBlocks + 1) * pageBlocks * DigestBlock
	}
	switch p.known[i] {
	case 0:
		return false, (block + 1) * DigestBlock
	case f.grains(block):
		return true, (block + 1) * DigestBlock
	}
	g := off / Grain
	return p.known[i]>>(g%blockGrains)&1 == 1, (g + 1) * Grain
}

// SHA256 returns the plain SHA-256 of the disk's content, as sha256sum of its RAW file gives. Unlike the
// digest it can't be computed in parallel: it reads the disk front to back, but for what is known to be
// zeros, which it still hashes. progress, if not nil, is called with every number of bytes done.
func SHA256(ctx context.Context, img image.Image, progress func(n int64)) (sum [sha256.Size]byte, err error) {
	s := NewScanner(img, nil)
	h := sha256.New()
	buf := make([]byte, min(defaultChunk, s.size))
	for off := int64(0); off < s.size; {
		p := buf[:min(int64(len(buf)), s.size-off)]
		if err := s.fill(ctx, p, off); err != nil {
			return sum, err
		}
		h.Write(p)
		off += int64(len(p))
		if progress != nil {
			progress(int64(len(p)))
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}
