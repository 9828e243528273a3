// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"sync/atomic"

	"github.com/lima-vm/go-qcow2reader/image"
	"golang.org/x/sync/errgroup"
)

// DefaultBlock is the size in bytes of the blocks that a [Scanner] without a [Marker] counts.
const DefaultBlock = 2 << 20

// defaultChunk is how many bytes [Scan] reads at a time: enough that requests are few, small enough that
// what was read is still in the processor's cache when it is looked at and written. 4 MiB take twice the
// processor time for a disk that isn't compressed; less than 2 MiB, a bitmap's block, gain nothing more.
const defaultChunk = 2 << 20

// extentWindow bounds how much of the disk one question for an extent covers, so that a
// cancellation is noticed while a huge mapping is walked.
const extentWindow = 256 << 30

// Extents iterates over the whole disk as maximal runs of bytes that are stored alike, in order and
// without reading data. It stops after the first error, which is ctx's if that ended first.
func Extents(ctx context.Context, img image.Image) iter.Seq2[image.Extent, error] {
	return func(yield func(image.Extent, error) bool) {
		var run image.Extent
		size := img.Size()
		for off := int64(0); off < size; {
			if err := ctx.Err(); err != nil {
				yield(image.Extent{}, err)
				return
			}
			ask := min(size-off, extentWindow)
			e, err := img.Extent(off, ask)
			if err == nil && (e.Start != off || e.Length <= 0 || e.Length > ask) {
				err = fmt.Errorf("asked for the extent at %d, got %d bytes at %d", off, e.Length, e.Start)
			}
			if err != nil {
				yield(image.Extent{}, err)
				return
			}
			off += e.Length
			switch {
			case run.Length == 0:
				run = e
			case run.Allocated == e.Allocated && run.Zero == e.Zero && run.Compressed == e.Compressed:
				run.Length += e.Length
			default:
				if !yield(run, nil) {
					return
				}
				run = e
			}
		}
		if run.Length > 0 {
			yield(run, nil)
		}
	}
}

// Marker learns which ranges hold data. It must be safe for concurrent use.
type Marker interface {
	BlockSize() int64       // bytes, a power of two
	MarkRange(off, n int64) // marks every block that the n bytes at off touch
}

// ScanStats counts what a [Scanner] saw, in bytes of the disk.
type ScanStats struct {
	BytesRead int64 `json:"bytes_read"` // read from the image
	DataBytes int64 `json:"data_bytes"` // in blocks that are not all zero
	ZeroBytes int64 `json:"zero_bytes"` // in blocks that are all zero
}

// Scanner reads ranges of a disk and finds out which blocks hold data, and on request what the disk's
// digest is. It is safe for concurrent use; each range should be asked for once, since everything that
// is read is counted. It remembers a few bits for every [Grain] it saw, 32 bytes more for every block with
// data if it computes a digest, and 1 KiB for each block that was read in parts.
type Scanner struct {
	img   image.Image
	mark  Marker
	block int64
	size  int64
	unit  int64 // what is looked at for zeros: Grain, or the marker's block if that is smaller

	read, data, zero atomic.Int64 // data and zero: what found doesn't count
	found            *findings
}

// NewScanner returns a scanner of img that tells m, which may be nil, where data is. m's block size must
// be a power of two.
func NewScanner(img image.Image, m Marker) *Scanner {
	s := &Scanner{img: img, mark: m, block: DefaultBlock, size: img.Size()}
	if m != nil {
		s.block = m.BlockSize()
	}
	s.unit = min(s.block, Grain)
	s.found = newFindings(s.size, s.block)
	return s
}

// Stats returns the counters as they are now. Of a block that was seen in part, all bytes count as data
// if data was found in it.
func (s *Scanner) Stats() ScanStats {
	s.found.mu.Lock()
	defer s.found.mu.Unlock()
	return ScanStats{BytesRead: s.read.Load(), DataBytes: s.data.Load() + s.found.dataBytes,
		ZeroBytes: s.zero.Load() + s.found.zeroBytes}
}

// checkRange refuses a range that doesn't begin at a grain, or ends neither at one nor with the disk.
func (s *Scanner) checkRange(off, n int64) error {
	if off < 0 || n <= 0 || off > s.size || n > s.size-off || off%Grain != 0 || ((off+n)%Grain != 0 && off+n != s.size) {
		return fmt.Errorf("range of %d bytes at %d does not fit the disk of %d bytes in grains of %d", n, off, s.size, Grain)
	}
	return nil
}

// ReadRange fills p with the bytes at off and tells whether all of them are zero. The range must
// begin at a multiple of [Grain], and end at one or at the end of the disk. Parts that are
// known to be zero are not read.
func (s *Scanner) ReadRange(ctx context.Context, p []byte, off int64) (allZero bool, err error) {
	if err := s.checkRange(off, int64(len(p))); err != nil {
		return false, err
	}
	if err := s.fill(ctx, p, off); err != nil {
		return false, err
	}
	allZero = true
	for end := off + int64(len(p)); off < end; {
		n := min((off/DigestBlock+1)*DigestBlock, end) - off
		piece := s.examine(p[:n], off)
		s.found.add(piece)
		allZero = allZero && piece.data == 0
		off, p = off+n, p[n:]
	}
	return allZero, nil
}

// examine looks at what was read of one block of the digest, and tells the marker.
func (s *Scanner) examine(p []byte, off int64) piece {
	n := piece{block: off / DigestBlock}
	first := off / Grain % blockGrains
	from := int64(-1) // where a run of data begins
	mark := func(to int64) {
		if from >= 0 && s.mark != nil {
			s.mark.MarkRange(off+from, to-from)
		}
		from = -1
	}
	size := int64(len(p))
	for i := int64(0); i < size; i += s.unit {
		g := first + i/Grain
		n.known |= 1 << g
		u := p[i:min(i+s.unit, size)]
		zero := IsZero(u)
		if s.block < Grain {
			s.countUnit(int64(len(u)), zero)
		}
		if zero {
			mark(i)
			continue
		}
		n.data |= 1 << g
		if from < 0 {
			from = i
		}
	}
	mark(size)
	if s.found.hash && n.data != 0 {
		n.leaves = new(leaves)
		for g := first; n.known>>g&1 == 1; g++ {
			if n.data>>g&1 == 1 {
				i := (g - first) * Grain
				n.leaves[g] = sha256.Sum256(p[i:min(i+Grain, size)])
			}
			if g == blockGrains-1 {
				break
			}
		}
		if n.known == s.found.grains(n.block) {
			n.sum = s.found.blockSum(n.block, n.data, n.leaves)
		}
	}
	return n
}

// countUnit counts a block that is smaller than a grain.
func (s *Scanner) countUnit(n int64, zero bool) {
	if zero {
		s.zero.Add(n)
	} else {
		s.data.Add(n)
	}
}

// extent asks the image for an extent and checks the answer.
func (s *Scanner) extent(off, n int64) (image.Extent, error) {
	e, err := s.img.Extent(off, n)
	if err != nil {
		return e, fmt.Errorf("map %d bytes at offset %d: %w", n, off, err)
	}
	if e.Start != off || e.Length <= 0 || e.Length > n {
		return e, fmt.Errorf("asked for the extent at %d, got %d bytes at %d", off, e.Length, e.Start)
	}
	return e, nil
}

// fill reads p at off, clearing what is known to be zero and joining what must be read.
func (s *Scanner) fill(ctx context.Context, p []byte, off int64) error {
	pending := 0 // bytes of p before done that are still to be read
	flush := func(done int) error {
		if pending == 0 {
			return nil
		}
		part := p[done-pending : done]
		n, err := s.img.ReadAt(part, off+int64(done-pending))
		s.read.Add(int64(n))
		pending = 0
		if n == len(part) {
			return nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes at offset %d: %w", len(part), off+int64(done-len(part)), err)
	}
	for done := 0; done < len(p); {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, rest := off+int64(done), int64(len(p)-done)
		e, err := s.extent(start, rest)
		if err != nil {
			return err
		}
		if e.Zero {
			if err := flush(done); err != nil {
				return err
			}
			clear(p[done : done+int(e.Length)])
		} else {
			pending += int(e.Length)
		}
		done += int(e.Length)
	}
	return flush(len(p))
}

var zeros [4096]byte

// IsZero tells whether every byte of p is zero.
func IsZero(p []byte) bool {
	// Comparing with a small array of zeros uses the machine's widest instructions and stops early.
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

// ScanOptions are the choices of [Scan]; the zero value is good.
type ScanOptions struct {
	Workers   int           // chunks read at the same time, 0 = by the number of processors
	ChunkSize int           // bytes, rounded up to whole blocks and grains, 0 = 2 MiB
	Progress  func(n int64) // called with every number of bytes done, from several goroutines
}

func (o ScanOptions) withDefaults(block int64) (ScanOptions, error) {
	if o.Workers < 0 || o.ChunkSize < 0 {
		return o, errors.New("negative number of workers or chunk size")
	}
	if o.Workers == 0 {
		o.Workers = min(max(runtime.GOMAXPROCS(0), 2), 8)
	}
	if o.ChunkSize == 0 {
		o.ChunkSize = defaultChunk
	}
	step := max(block, Grain) // powers of two
	o.ChunkSize = int((int64(o.ChunkSize) + step - 1) / step * step)
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
	return o, nil
}

// Scan reads the whole disk through s, each byte once, and calls fn with every chunk that is not
// all zero, from several goroutines and in no particular order; p is fn's only until it returns. A
// nil fn only scans. Long ranges that are known to be zero cost nothing. It ends with the first
// error and uses Workers x ChunkSize bytes of memory.
func Scan(ctx context.Context, s *Scanner, o ScanOptions, fn func(off int64, p []byte) error) error {
	o, err := o.withDefaults(s.block)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	offsets := make(chan int64)
	chunk := int64(o.ChunkSize)
	g.Go(func() error {
		defer close(offsets)
		return s.chunks(ctx, chunk, o.Progress, func(off int64) error {
			select {
			case offsets <- off:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for range o.Workers {
		g.Go(func() error {
			var buf []byte // allocated when there is something to read
			for off := range offsets {
				if buf == nil {
					buf = make([]byte, min(chunk, s.size))
				}
				p := buf[:min(chunk, s.size-off)]
				allZero, err := s.ReadRange(ctx, p, off)
				if err != nil {
					return err
				}
				if !allZero && fn != nil {
					if err := fn(off, p); err != nil {
						return err
					}
				}
				o.Progress(int64(len(p)))
			}
			return nil
		})
	}
	return g.Wait()
}

// chunks calls send with the offset of every chunk that is not known to be zero, and counts the
// rest.
func (s *Scanner) chunks(ctx context.Context, chunk int64, progress func(int64), send func(int64) error) error {
	next := int64(0) // first byte that was neither sent nor skipped, a multiple of chunk or the end
	skip := func(to int64) {
		if to > next {
			s.zero.Add(to - next)
			progress(to - next)
			next = to
		}
	}
	for e, err := range Extents(ctx, s.img) {
		if err != nil {
			return fmt.Errorf("map the disk: %w", err)
		}
		end := e.Start + e.Length
		if e.Zero {
			continue
		}
		skip(e.Start / chunk * chunk)
		for next < end {
			if err := send(next); err != nil {
				return err
			}
			next = min(next+chunk, s.size)
		}
	}
	skip(s.size)
	return nil
}
