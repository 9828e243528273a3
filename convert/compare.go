// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Difference is where two disks first differ.
type Difference struct {
	Offset int64 `json:"offset"` // bytes
	Block  int64 `json:"block"`  // number of the block of [DigestBlock] bytes
	A      byte  `json:"a"`
	B      byte  `json:"b"`
}

// Comparison is what [Compare] found.
type Comparison struct {
	First  *Difference // nil if no byte differs
	Blocks int64       // blocks of [DigestBlock] bytes that differ
	// Compared is how many bytes were compared: read, or known to be zeros on both sides.
	Compared int64
	// Left is how many bytes weren't, as CompareOptions.DataOnly allowed.
	Left int64
}

// CompareOptions are the choices of [Compare]; the zero value is good.
type CompareOptions struct {
	Workers int // chunks compared at the same time, 0 = by the number of processors
	// DataOnly leaves out what a knows to be zeros, so that b isn't read there. What b holds there is
	// then unknown.
	DataOnly bool
	Progress func(n int64) // called with every number of bytes done, from several goroutines
}

// compareChunk is how many bytes of each disk are compared at a time.
const compareChunk = 2 * DigestBlock

// Compare compares two disks of the same size byte by byte, in parallel. Nothing is read of what both know
// to be zeros, and neither is read where it knows to have zeros. The error is a failure to read; that the
// disks differ is not one. Memory is twice Workers x 4 MiB.
func Compare(ctx context.Context, a, b *Scanner, o CompareOptions) (Comparison, error) {
	if a.size != b.size {
		return Comparison{}, errors.New("disks of different sizes can't be compared")
	}
	so, err := ScanOptions{Workers: o.Workers, ChunkSize: compareChunk, Progress: o.Progress}.withDefaults(DigestBlock)
	if err != nil {
		return Comparison{}, err
	}
	var (
		mu sync.Mutex
		c  Comparison
	)
	g, ctx := errgroup.WithContext(ctx)
	offsets := make(chan int64)
	g.Go(func() error {
		defer close(offsets)
		for off := int64(0); off < a.size; {
			skip, left, err := skippable(a, b, off, o.DataOnly)
			if err != nil {
				return err
			}
			if skip > 0 {
				mu.Lock()
				if left {
					c.Left += skip
				} else {
					c.Compared += skip
				}
				mu.Unlock()
				so.Progress(skip)
				off += skip
				if err := ctx.Err(); err != nil {
					return err
				}
				continue
			}
			select {
			case offsets <- off:
			case <-ctx.Done():
				return ctx.Err()
			}
			off += min(compareChunk, a.size-off)
		}
		return nil
	})
	for range so.Workers {
		g.Go(func() error {
			var pa, pb []byte // allocated when there is something to read
			for off := range offsets {
				n := min(compareChunk, a.size-off)
				if pa == nil {
					pa, pb = make([]byte, min(compareChunk, a.size)), make([]byte, min(compareChunk, a.size))
				}
				if _, err := a.ReadRange(ctx, pa[:n], off); err != nil {
					return &CompareError{Err: err}
				}
				if _, err := b.ReadRange(ctx, pb[:n], off); err != nil {
					return &CompareError{B: true, Err: err}
				}
				first, blocks := difference(pa[:n], pb[:n], off)
				mu.Lock()
				c.Compared += n
				c.Blocks += blocks
				if first != nil && (c.First == nil || first.Offset < c.First.Offset) {
					c.First = first
				}
				mu.Unlock()
				so.Progress(n)
			}
			return nil
		})
	}
	err = g.Wait()
	return c, err
}

// CompareError says which of two disks could not be read.
type CompareError struct {
	B   bool // the second
	Err error
}

func (e *CompareError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *CompareError) Unwrap() error { return e.Err }

// skippable returns how many bytes at off, in whole chunks, needn't be read because both disks know
// them to be zeros; or, with dataOnly, because a does, and left is set.
func skippable(a, b *Scanner, off int64, dataOnly bool) (n int64, left bool, err error) {
	whole := func(s *Scanner, n int64) (int64, error) {
		e, err := s.extent(off, n)
		if err != nil || !e.Zero {
			return 0, err
		}
		if off+e.Length < s.size {
			e.Length = e.Length / compareChunk * compareChunk
		}
		return e.Length, nil
	}
	n, err = whole(a, min(a.size-off, extentWindow))
	if err != nil || n == 0 {
		return 0, false, wrapCompare(err, false)
	}
	both, err := whole(b, n)
	if err != nil {
		return 0, false, wrapCompare(err, true)
	}
	if both == 0 && dataOnly {
		return n, true, nil
	}
	return both, false, nil
}

func wrapCompare(err error, b bool) error {
	if err == nil {
		return nil
	}
	return &CompareError{B: b, Err: err}
}

// difference compares what is at off of two disks.
func difference(a, b []byte, off int64) (first *Difference, blocks int64) {
	for i := 0; i < len(a); i += DigestBlock {
		end := min(i+DigestBlock, len(a))
		x, y := a[i:end], b[i:end]
		if bytes.Equal(x, y) {
			continue
		}
		blocks++
		for j := range x {
			if first == nil && x[j] != y[j] {
				at := off + int64(i+j)
				first = &Difference{Offset: at, Block: at / DigestBlock, A: x[j], B: y[j]}
			}
		}
	}
	return first, blocks
}
