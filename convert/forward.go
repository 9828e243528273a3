// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/lima-vm/go-qcow2reader/image"
)

const (
	// forwardChunk is the unit in bytes in which compressed data is unpacked, kept, and known to be
	// zero: small enough that zeros are found, large enough that handing it on costs nothing.
	forwardChunk = 256 << 10
	// forwardWindow is how many bytes of unpacked data are kept: what four readers of parts of 16 MiB
	// can be apart, and more than the 32 MiB that a grain of a VMDK stream is before its table.
	forwardWindow = 64 << 20
	// forwardCursors is how many places are unpacked at a time: one for those who read the disk in
	// its order, one for who reads it again meanwhile.
	forwardCursors = 2
	// forwardPasses is how often all of the data may be unpacked before a scratch folder is the
	// better way. Writing a disk in its order takes two to four passes.
	forwardPasses = 16
)

// forward reads what is in a compressed file without a copy of it. It unpacks all of it once, to
// learn its length, where it is zero, and that it is whole; and then again from one of a few places
// on, whenever something is asked for. It implements [io.ReaderAt] and [extenter], for concurrent use.
//
// Who reads in the order of the file, a window of slack included, gets the whole for one more pass.
// Who goes back makes it unpack from the start again, which is counted: a reader that needs too many
// passes is refused.
type forward struct {
	ctx      context.Context // ends waiting and unpacking
	in       *input          // the compressed file
	codec    codec
	size     int64     // bytes, unpacked
	restarts []restart // where unpacking can begin, in order; the first is the start
	zero     []uint64  // bits of the chunks that are zero

	mu      sync.Mutex
	wake    sync.Cond // a cursor was left
	cursors [forwardCursors]cursor
	chunks  map[int64]*chunk
	most    int // chunks kept
	free    [][]byte
	clock   int64
	left    int64 // bytes that may be unpacked still
	closed  bool
}

// restart is a place where unpacking can begin.
type restart struct {
	at  int64 // what codec.open takes
	out int64 // bytes unpacked before it
}

// cursor is a place up to which data is unpacked.
type cursor struct {
	r    io.ReadCloser // nil = not in use
	from int64         // what to open r at, when it is nil and busy
	pos  int64         // bytes
	busy bool
	used int64
}

// chunk is a piece of unpacked data.
type chunk struct {
	data   []byte
	read   bool // somebody had it
	pinned bool // the first and the last one, which have what formats begin and end with
	used   int64
}

// extenter is a file that knows where it is zero, in the manner of an image.Image.
type extenter interface {
	Extent(start, length int64) (image.Extent, error)
}

// newForward unpacks all of a file once. More than limit bytes give a [*limitError]; the window is in
// bytes.
func newForward(ctx context.Context, in *input, c codec, limit, window int64) (*forward, error) {
	f := &forward{ctx: ctx, in: in, codec: c, restarts: []restart{{}}, chunks: make(map[int64]*chunk)}
	f.wake.L = &f.mu
	f.most = int(max(4, window/forwardChunk))
	r, err := c.open(in, 0)
	if err != nil {
		return nil, err
	}
	if err := f.first(r, limit); err != nil {
		_ = r.Close()
		return nil, err
	}
	if m, ok := r.(interface{ places() []restart }); ok {
		f.restarts = append(f.restarts, m.places()...)
	}
	if err := r.Close(); err != nil {
		return nil, err
	}
	f.left = max(f.size, forwardChunk) * forwardPasses
	return f, nil
}

// first is the first pass.
func (f *forward) first(r io.Reader, limit int64) error {
	for index := int64(0); ; index++ {
		if err := f.ctx.Err(); err != nil {
			return err
		}
		buf := f.buffer()
		n, err := readUp(r, buf)
		if int64(n) > limit-f.size {
			return &limitError{limit}
		}
		f.size += int64(n)
		if n > 0 {
			if index%64 == 0 {
				f.zero = append(f.zero, 0)
			}
			if IsZero(buf[:n]) {
				f.zero[index/64] |= 1 << (index % 64)
				f.free = append(f.free, buf)
			} else {
				f.keep(index, buf[:n])
			}
		}
		if err == io.EOF {
			for _, i := range []int64{0, (f.size - 1) / forwardChunk} {
				if c := f.chunks[i]; c != nil {
					c.pinned = true
				}
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// buffer returns one for a chunk.
func (f *forward) buffer() []byte {
	if n := len(f.free); n > 0 {
		b := f.free[n-1]
		f.free = f.free[:n-1]
		return b
	}
	return make([]byte, forwardChunk)
}

// keep takes a chunk into the window, for one that was read or, if there is none, the oldest.
func (f *forward) keep(index int64, data []byte) {
	if len(f.chunks) >= f.most {
		victim, oldest := int64(-1), (*chunk)(nil)
		for i, c := range f.chunks {
			if c.pinned || i == 0 {
				continue
			}
			if oldest == nil || c.read && !oldest.read || c.read == oldest.read && c.used < oldest.used {
				victim, oldest = i, c
			}
		}
		delete(f.chunks, victim)
		f.free = append(f.free, oldest.data[:forwardChunk])
	}
	f.clock++
	f.chunks[index] = &chunk{data: data, used: f.clock}
}

func (f *forward) isZero(index int64) bool { return f.zero[index/64]>>(index%64)&1 != 0 }

// ReadAt implements [io.ReaderAt].
func (f *forward) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at the negative offset %d", off)
	}
	done := 0
	for done < len(p) && off < f.size {
		index, within := off/forwardChunk, off%forwardChunk
		n := int(min(int64(len(p)-done), forwardChunk-within, f.size-off))
		if err := f.copy(p[done:done+n], index, within); err != nil {
			return done, err
		}
		done += n
		off += int64(n)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// copy fills p from a chunk.
func (f *forward) copy(p []byte, index, within int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		if f.closed {
			return os.ErrClosed
		}
		if err := f.ctx.Err(); err != nil {
			return err
		}
		if f.isZero(index) {
			clear(p)
			return nil
		}
		if c := f.chunks[index]; c != nil {
			copy(p, c.data[within:])
			f.clock++
			c.used = f.clock
			c.read = c.read || int(within)+len(p) == len(c.data)
			return nil
		}
		cur := f.pick(index * forwardChunk)
		if cur == nil {
			f.wake.Wait()
			continue
		}
		if err := f.step(cur, index); err != nil {
			return err
		}
	}
}

// pick returns the cursor by which an offset is reached soonest, nil if another reader has it.
func (f *forward) pick(off int64) *cursor {
	var best, idle *cursor
	for i := range f.cursors {
		c := &f.cursors[i]
		if (c.busy || c.r != nil) && c.pos <= off && (best == nil || c.pos > best.pos) {
			best = c
		}
		if !c.busy && (idle == nil || c.used < idle.used) {
			idle = c
		}
	}
	i, found := slices.BinarySearchFunc(f.restarts, off, func(r restart, off int64) int {
		return int(min(max(r.out-off, -1), 1))
	})
	if !found {
		i--
	}
	from := f.restarts[i]
	if best != nil && best.pos >= from.out {
		if best.busy {
			return nil
		}
		return best
	}
	if idle == nil {
		return nil
	}
	if idle.r != nil {
		_ = idle.r.Close() // nothing more is wanted of it
	}
	idle.r, idle.from, idle.pos = nil, from.at, from.out
	return idle
}

// step unpacks what a cursor has next, up to the end of a chunk. It gives up the lock meanwhile.
func (f *forward) step(c *cursor, wanted int64) error {
	index := c.pos / forwardChunk
	end := min((index+1)*forwardChunk, f.size)
	n := end - c.pos
	if n > f.left {
		refused := f.in.bad("", "the image in the %s data is not in an order in which it can be read without unpacking "+
			"all of it more than %d times", f.codec.name, forwardPasses)
		refused.Need, refused.Remedy = NeedScratch, f.codec.remedy(f.size)
		return refused
	}
	f.left -= n
	f.clock++
	c.busy, c.used = true, f.clock
	buf := f.buffer()
	f.mu.Unlock()
	err := c.read(f, buf[:n])
	f.mu.Lock()
	c.busy = false
	f.wake.Broadcast()
	if err != nil {
		if c.r != nil {
			err = errors.Join(err, c.r.Close())
			c.r = nil
		}
		f.free = append(f.free, buf)
		return err
	}
	whole := c.pos%forwardChunk == 0
	c.pos = end
	// What is passed over on the way to something far is not kept: nobody is near.
	if _, have := f.chunks[index]; !whole || have || f.isZero(index) || wanted-index >= int64(f.most) {
		f.free = append(f.free, buf)
		return nil
	}
	f.keep(index, buf[:n])
	return nil
}

// read fills p with what follows. The cursor is the caller's.
func (c *cursor) read(f *forward, p []byte) (err error) {
	if c.r == nil {
		r, err := f.codec.open(f.in, c.from)
		if err != nil {
			return f.changed(err) // r is not one, then
		}
		c.r = r
	}
	n, err := readUp(c.r, p)
	if n < len(p) {
		return f.changed(err)
	}
	return nil
}

// changed explains why data that was good before is no longer.
func (f *forward) changed(err error) error {
	if isPlainError(err) {
		return err
	}
	return &ChangedError{f.in.label, fmt.Errorf("its %s data is damaged now: %w", f.codec.name, err)}
}

// Extent tells what is zero, by chunks.
func (f *forward) Extent(start, length int64) (image.Extent, error) {
	if start < 0 || length < 0 || start > f.size || length > f.size-start {
		return image.Extent{}, fmt.Errorf("extent of %d bytes at %d is outside of the %d bytes", length, start, f.size)
	}
	e := image.Extent{Start: start}
	for off, end := start, start+length; off < end; off = start + e.Length {
		zero := f.isZero(off / forwardChunk)
		if e.Length > 0 && zero != e.Zero {
			break
		}
		e.Zero, e.Allocated = zero, !zero
		e.Length = min((off/forwardChunk+1)*forwardChunk, end) - start
	}
	return e, nil
}

// Close ends all reading.
func (f *forward) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.wake.Broadcast()
	for i := range f.cursors {
		for f.cursors[i].busy {
			f.wake.Wait()
		}
	}
	var errs []error
	for i := range f.cursors {
		if r := f.cursors[i].r; r != nil {
			errs = append(errs, r.Close())
			f.cursors[i].r = nil
		}
	}
	f.chunks, f.free = nil, nil
	return errors.Join(errs...)
}
