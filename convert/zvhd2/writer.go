// SPDX-License-Identifier: Apache-2.0

package zvhd2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"sync"
	"time"

	"github.com/lima-vm/go-qcow2reader/image"
)

// WriterOptions says how an image is written. The zero value is right for most uses; for the same
// bytes every time, set Time and UUID.
type WriterOptions struct {
	Method  Method    // "" = Zstd
	Level   int       // see NewEncoder, 0 = the method's default
	Time    time.Time // of creation, zero = now
	UUID    UUID      // zero = a random one
	Workers int       // encoders at work, 0 = as many as processors, at most 16

	// Resume goes on from a checkpoint: Method, Time and UUID are taken from it, and w gets the
	// bytes from its Offset on.
	Resume *Checkpoint
}

// Source is what a [Writer] reads blocks from. ReadRange fills p from off, a multiple of
// [BlockSize]; it returns true if all of p is zero. It is called by several goroutines, once for
// each block.
type Source interface {
	ReadRange(ctx context.Context, p []byte, off int64) (allZero bool, err error)
}

// Writer writes an image to a stream. What it writes depends on the disk and on Method, Level, Time
// and UUID alone, not on the number of workers.
//
// It uses twice as many pairs of buffers as there are workers, 4.1 MiB each, an encoder of a few
// MiB for each worker, and eight bytes for each stored block.
//
// Its methods are not safe for concurrent use, but for Checkpoint and Stats. Once one of them has
// failed, all that follow fail with the same error, so that an image is complete if Close returns
// nil and only then.
type Writer struct {
	w    io.Writer
	enc  *Encoder
	size int64

	ctx    context.Context // done when something failed, which is its cause
	fail   context.CancelCauseFunc
	next   int64      // first block that may be given
	free   chan *slot // those not in use
	jobs   chan *slot // to the encoders
	order  chan *slot // to the one that writes
	closed bool
	done   sync.WaitGroup

	mu  sync.Mutex // held for asm
	asm *Assembler
}

// slot is the place of one block on its way.
type slot struct {
	block  int64
	source func(p []byte) (zero bool, err error) // nil = it is in the buffer already
	in     []byte
	out    []byte
	err    error
	ready  chan struct{} // gets one value when the block was encoded
}

const maxDefaultWorkers = 16

// NewWriter begins an image of a disk of size bytes, of which 512 are the smallest unit. Every call
// of w.Write gets the head page, a whole record, or a piece of what follows the records. w is
// written to by one goroutine at a time; a Write that waits must give up when nobody reads any
// more. The caller must call [Writer.Close].
func NewWriter(w io.Writer, size int64, o WriterOptions) (*Writer, error) {
	asm, err := newAssembler(size, o)
	if err != nil {
		return nil, err
	}
	enc, err := NewEncoder(asm.Header().Method, o.Level)
	if err != nil {
		return nil, err
	}
	if o.Workers < 0 {
		return nil, fmt.Errorf("%d workers cannot write an image", o.Workers)
	}
	if o.Workers == 0 {
		o.Workers = min(runtime.GOMAXPROCS(0), maxDefaultWorkers)
	}
	slots := 2 * o.Workers
	wr := &Writer{
		w:     w,
		enc:   enc,
		size:  size,
		asm:   asm,
		next:  asm.Next(),
		free:  make(chan *slot, slots),
		jobs:  make(chan *slot, slots),
		order: make(chan *slot, slots),
	}
	wr.ctx, wr.fail = context.WithCancelCause(context.Background())
	for range slots {
		wr.free <- &slot{ready: make(chan struct{}, 1)}
	}
	for range o.Workers {
		wr.done.Go(wr.encode)
	}
	wr.done.Go(func() { wr.write(o.Resume == nil) })
	return wr, nil
}

func newAssembler(size int64, o WriterOptions) (*Assembler, error) {
	if o.Resume == nil {
		return NewAssembler(Header{Size: size, Method: o.Method, Time: o.Time, UUID: o.UUID})
	}
	if o.Resume.Size != size {
		return nil, fmt.Errorf("the checkpoint is of a disk of %d bytes, not of %d", o.Resume.Size, size)
	}
	return Resume(*o.Resume)
}

// encode is a worker.
func (w *Writer) encode() {
	for s := range w.jobs {
		if w.ctx.Err() == nil {
			s.err = w.encodeSlot(s)
		}
		s.ready <- struct{}{}
	}
}

func (w *Writer) encodeSlot(s *slot) error {
	if s.source != nil {
		zero, err := s.source(s.in)
		if err != nil || zero {
			return err
		}
	}
	if s.out == nil {
		s.out = make([]byte, 0, BlockSize+64<<10) // what does not compress grows by a few pages at most
	}
	var err error
	s.out, err = w.enc.Append(s.out, s.block, s.in)
	return err
}

// write writes records in the order in which blocks came.
func (w *Writer) write(head bool) {
	if head {
		if err := writeFull(w.w, w.asm.Head()); err != nil {
			w.fail(fmt.Errorf("write the head page: %w", err))
		}
	}
	for s := range w.order {
		<-s.ready
		if w.ctx.Err() == nil {
			if err := w.writeSlot(s); err != nil {
				w.fail(err)
			}
		}
		s.source, s.out, s.err = nil, s.out[:0], nil
		w.free <- s
	}
}

func (w *Writer) writeSlot(s *slot) error {
	if s.err != nil || len(s.out) == 0 {
		return s.err
	}
	if err := writeFull(w.w, s.out); err != nil {
		return fmt.Errorf("write block %d: %w", s.block, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asm.Add(s.block, int64(len(s.out)))
}

// WriteBlock adds a block. Blocks must come in ascending order; those that are left out are zero. p
// has min(BlockSize, size-block*BlockSize) bytes and is the caller's again when WriteBlock returns.
// It waits while all buffers are in use.
func (w *Writer) WriteBlock(ctx context.Context, block int64, p []byte) error {
	s, err := w.slot(ctx, block)
	if err != nil {
		return err
	}
	if len(p) != len(s.in) {
		w.free <- s
		return w.failed(fmt.Errorf("block %d has %d bytes, expected %d", block, len(p), len(s.in)))
	}
	copy(s.in, p)
	w.submit(s)
	return nil
}

// WriteFrom adds the blocks that the extents touch, those of zeros excepted, and reads them from
// src in parallel. The extents must be in ascending order. It returns when nothing reads from src
// any more.
func (w *Writer) WriteFrom(ctx context.Context, src Source, extents iter.Seq2[image.Extent, error]) error {
	rctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(w.ctx, func() { cancel(context.Cause(w.ctx)) })()

	err := w.readAll(rctx, src, extents)
	if err != nil {
		w.failed(err) // so that workers do not begin what is waiting
	}
	w.drain()
	if cause := context.Cause(w.ctx); cause != nil {
		return cause // the first error
	}
	return err
}

func (w *Writer) readAll(ctx context.Context, src Source, extents iter.Seq2[image.Extent, error]) error {
	for e, err := range extents {
		if err != nil {
			return err
		}
		if e.Start < 0 || e.Length < 0 || e.Start > w.size || e.Length > w.size-e.Start {
			return fmt.Errorf("the extent of %d bytes at %d is outside of the disk of %d bytes", e.Length, e.Start, w.size)
		}
		if e.Zero || e.Length == 0 {
			continue
		}
		// Extents can share blocks, and a checkpoint is ahead of the first of them.
		for block := max(e.Start/BlockSize, w.next); block*BlockSize < e.Start+e.Length; block++ {
			s, err := w.slot(ctx, block)
			if err != nil {
				return err
			}
			s.source = func(p []byte) (bool, error) { return src.ReadRange(ctx, p, block*BlockSize) }
			w.submit(s)
		}
	}
	return nil
}

// slot waits for a free slot and prepares it for a block.
func (w *Writer) slot(ctx context.Context, block int64) (*slot, error) {
	if w.closed {
		return nil, errors.New("the image is closed")
	}
	if blocks := blockCount(w.size); block < w.next || block >= blocks {
		return nil, w.failed(fmt.Errorf("block %d is not between %d and %d: blocks must come in ascending order "+
			"and be on the disk", block, w.next, blocks-1))
	}
	select {
	case <-ctx.Done():
		return nil, w.failed(context.Cause(ctx))
	case <-w.ctx.Done():
		return nil, context.Cause(w.ctx)
	default:
	}
	select {
	case <-ctx.Done():
		return nil, w.failed(context.Cause(ctx))
	case <-w.ctx.Done():
		return nil, context.Cause(w.ctx)
	case s := <-w.free:
		if s.in == nil {
			s.in = make([]byte, BlockSize)
		}
		s.block, s.in = block, s.in[:min(BlockSize, w.size-block*BlockSize)]
		return s, nil
	}
}

// submit hands over a slot. There is room for all of them, so it does not wait.
func (w *Writer) submit(s *slot) {
	w.next = s.block + 1
	w.order <- s
	w.jobs <- s
}

// failed notes an error, and returns the first one.
func (w *Writer) failed(err error) error {
	w.fail(err)
	return context.Cause(w.ctx)
}

// drain waits until all slots are free.
func (w *Writer) drain() {
	slots := make([]*slot, cap(w.free))
	for i := range slots {
		slots[i] = <-w.free
	}
	for _, s := range slots {
		w.free <- s
	}
}

// ErrAborted is what [Writer.Close] returns after [Writer.Abort].
var ErrAborted = errors.New("the image was given up")

// Abort gives the image up: Close will not complete it. It may be called by any goroutine.
func (w *Writer) Abort() { w.fail(ErrAborted) }

// Close waits until all blocks are written, and completes the image unless something failed, which
// it then returns. The Writer has no goroutines any more when it returns.
func (w *Writer) Close() error {
	if w.closed {
		return context.Cause(w.ctx)
	}
	w.closed = true
	close(w.jobs)
	close(w.order)
	w.done.Wait()
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	if err := w.asm.WriteTail(w.w); err != nil {
		return w.failed(fmt.Errorf("write the index: %w", err))
	}
	return nil
}

// Checkpoint returns the state up to the last record that w.Write took. An image that goes on from
// it is the same as one written in one go. It may be called by any goroutine, that of w.Write
// included, where it describes the file before the record that is being written. The head page
// counts as written from the beginning; what follows the records is not part of it, as it can be
// made again.
func (w *Writer) Checkpoint() Checkpoint {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asm.Checkpoint()
}

// AppendRecords appends the records from number from on to dst, see [Assembler.AppendRecords]. It
// may be called like Checkpoint.
func (w *Writer) AppendRecords(dst []byte, from int64) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asm.AppendRecords(dst, from)
}

// Stats is how far an image is.
type Stats struct {
	Bytes  int64 // length of the file without what follows the records
	Stored int64 // blocks
}

// Stats returns how far the image is. It may be called by any goroutine.
func (w *Writer) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Stats{Bytes: w.asm.Offset(), Stored: w.asm.Stored()}
}
