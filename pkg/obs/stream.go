// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// DefaultMaxStream is how long a stream may become when StreamOptions do not say, in bytes: 1.25 TiB,
// more than a compressed image of the largest disk that IMS takes.
const DefaultMaxStream = 5 << 38

const (
	firstStreamPart = 8 << 20 // bytes
	streamRamp      = 1000    // parts from the first size to the last
	slabSize        = 1 << 20 // bytes
)

// StreamOptions say where a stream goes and how it is cut.
type StreamOptions struct {
	Bucket, Key string
	OwnKey      bool // as in UploadOptions
	// MaxSize is how many bytes the object may have at most. 0 is DefaultMaxStream. Parts grow such
	// that MaxParts of them always suffice; a longer stream fails.
	MaxSize int64
	// PartSize returns the length in bytes of a part, counted from 1, from MinPartSize to MaxPartSize.
	// The last part has what is left. nil is GrowingParts(MaxSize).
	PartSize func(part int) int64
	// Workers and MinWorkers are how many parts are sent at the same time, as in PlanOptions.
	Workers, MinWorkers int
	// MemoryBudget, in bytes, bounds what is held of the stream: parts on their way, some that wait, and the
	// one that is being filled. It is exceeded only by a part that is longer than all of it. 0 is
	// DefaultMemoryBudget.
	MemoryBudget int64

	// As in UploadOptions. UploadEvent.Total is 0 while the stream has not ended.

	Metadata       map[string]string
	ContentType    string
	RunID          string
	BeforeComplete func(ctx context.Context) error
	Progress       func(UploadEvent)
	CleanupTimeout time.Duration
	Checkpoint     func(Delta)
	Resumable      bool

	// Note is called when a part has been cut, before the Write that brought its last byte returns.
	Note func(Part) []byte
	// Resume is an upload to go on with, see UploadOptions.Resume. The bytes must be the same as
	// before; a part that is produced again is compared by its MD5 and sent only if it differs.
	Resume *State
	// Reposition, if not nil, is called before the producer when parts need not be produced again,
	// with those and the offset in bytes at which they end. It returns where the producer will begin
	// to write, from 0 to that offset. nil is 0: all of the object is produced again.
	Reposition func(done []PartState, offset int64) (int64, error)
}

// GrowingParts returns lengths of parts for objects of up to maxSize bytes: 8 MiB first, so that a
// short object is not held back, and growing over the first thousand parts, in whole MiB, to the
// length with which MaxParts parts hold maxSize bytes. Objects of up to 78 GiB have parts of 8 MiB
// only; those of up to 1 TiB grow to 111 MiB.
func GrowingParts(maxSize int64) func(part int) int64 {
	lo, hi := int64(firstStreamPart>>20), int64(MaxPartSize>>20) // the last length, in MiB
	for lo < hi {
		mid := (lo + hi) / 2
		if capacity(growTo(mid<<20), maxSize) >= maxSize {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return growTo(lo << 20)
}

func growTo(last int64) func(part int) int64 {
	return func(part int) int64 {
		n := firstStreamPart + (last-firstStreamPart)*int64(min(part-1, streamRamp))/streamRamp
		return n &^ (1<<20 - 1)
	}
}

// capacity is how many bytes MaxParts parts hold; it stops counting at enough.
func capacity(size func(part int) int64, enough int64) int64 {
	var total int64
	for n := 1; n <= MaxParts && total < enough; n++ {
		total += size(n)
	}
	return total
}

// UploadStream uploads what write produces, of a length that nobody knows beforehand. write is
// called once, writes the object from its first byte to its last, and returns nil when that was all.
// The bytes are cut into parts as they arrive, and parts are sent while the next one fills. w waits
// when MemoryBudget bytes are held and fails when the upload has failed; then write should return,
// and what it returns is of no account. ctx ends at that moment too.
//
// All else is as with Upload: MD5s, retries from memory, the server's list of parts before
// completing, the object's size after it, and cleaning up. An error of write's own is reported as
// KindSource; a stream without a byte, and one longer than MaxSize, as KindInvalid.
func (c *Client) UploadStream(ctx context.Context, o StreamOptions, write func(ctx context.Context, w io.Writer) error) (*UploadResult, error) {
	s, err := c.newStream(o)
	if err != nil {
		return nil, err
	}
	return s.do(ctx, func(ctx context.Context) error { return s.send(ctx, write) })
}

// stream is one run of UploadStream.
type stream struct {
	*multipart
	o     StreamOptions
	slabs slabs
}

func (c *Client) newStream(o StreamOptions) (*stream, error) {
	m, err := c.newMultipart(order{bucket: o.Bucket, key: o.Key, contentType: o.ContentType, user: o.Metadata,
		runID: o.RunID, beforeComplete: o.BeforeComplete, progress: o.Progress, cleanupTimeout: o.CleanupTimeout,
		resume: o.Resume, resumable: o.Resumable, checkpoint: o.Checkpoint, ownKey: o.OwnKey})
	if err != nil {
		return nil, err
	}
	bad := func(format string, a ...any) error {
		return &Error{Op: "upload stream", Bucket: o.Bucket, Key: o.Key, Kind: KindInvalid, Message: fmt.Sprintf(format, a...)}
	}
	setDefault(&o.MaxSize, DefaultMaxStream)
	setDefault(&o.MemoryBudget, DefaultMemoryBudget)
	if o.MaxSize < 0 || o.MaxSize > MaxObjectSize {
		return nil, bad("an object of %d bytes: from 1 to %d can be uploaded", o.MaxSize, int64(MaxObjectSize))
	}
	if err := checkWorkers(&o.MinWorkers, &o.Workers); err != nil {
		return nil, bad("%v", err)
	}
	if o.MemoryBudget < 0 {
		return nil, bad("memory budget %d is negative", o.MemoryBudget)
	}
	if o.PartSize == nil {
		o.PartSize = GrowingParts(o.MaxSize)
	}
	var total int64
	for n := 1; n <= MaxParts && total < o.MaxSize; n++ {
		size := o.PartSize(n)
		if size < MinPartSize || size > MaxPartSize {
			return nil, bad("part size %d of part %d is not from %d to %d", size, n, MinPartSize, int64(MaxPartSize))
		}
		total += size
	}
	if total < o.MaxSize {
		return nil, bad("%d parts hold %d bytes, not %d", MaxParts, total, o.MaxSize)
	}
	s := &stream{multipart: m, o: o}
	s.slabs.make = c.newBuffer
	s.slabs.changed = make(chan struct{})
	m.lim = newLimiter(c.now, o.MinWorkers, min(o.Workers, MaxStreams(c.o.LimitRate)), buffers(o.Workers))
	m.fits = func(st *State) bool { return st.Boundaries == "" }
	return s, nil
}

// start settles where the producer begins, and tells the caller's journal.
func (s *stream) start(w *streamWriter) error {
	kept := s.unbroken()
	if len(kept) > 0 {
		end := kept[len(kept)-1].Offset + kept[len(kept)-1].Size
		var from int64
		if s.o.Reposition != nil {
			var err error
			if from, err = s.o.Reposition(slices.Clone(kept), end); err != nil {
				return &Error{Op: "reposition stream", Bucket: s.bucket, Key: s.key, Kind: KindSource, Err: err}
			}
		}
		if from < 0 || from > end {
			return s.invalid(fmt.Sprintf("the producer cannot begin at %d, %d bytes are there", from, end))
		}
		// Parts from there on are produced again and compared; what comes of a part before the next one
		// begins is dropped.
		kept = slices.DeleteFunc(kept, func(p PartState) bool { return p.Offset >= from })
		if n := len(kept); n > 0 {
			w.offset = kept[n-1].Offset + kept[n-1].Size
			w.part.Number = kept[n-1].Number
			w.drop = w.offset - from
		}
	}
	s.begun(State{Parts: kept})
	s.keep(kept)
	return nil
}

// unbroken returns the accepted parts up to the first that is missing.
func (s *stream) unbroken() []PartState {
	if s.there == nil {
		return nil
	}
	parts := s.accepted()
	var end int64
	for i, p := range parts {
		last := p.Size < MinPartSize
		if p.Number != i+1 || p.Offset != end || p.Size <= 0 || p.Size > s.o.MaxSize-end ||
			(last && end+p.Size != s.resume.Size) {
			return parts[:i]
		}
		end += p.Size
	}
	return parts
}

// send runs the producer and sends the parts as they are cut.
func (s *stream) send(ctx context.Context, write func(ctx context.Context, w io.Writer) error) error {
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, gctx := errgroup.WithContext(sctx)
	w := &streamWriter{s: s, ctx: gctx, g: g}
	if err := s.start(w); err != nil {
		return err
	}
	err := write(gctx, w)
	if err == nil {
		err = w.finish()
	}
	w.close()
	// Before it is told to stop: who was first?
	broken := gctx.Err() != nil
	if err != nil {
		cancel()
	}
	sent := g.Wait()
	switch {
	case ctx.Err() != nil:
		// Whatever broke first, the user's wish explains it best.
		return s.c.explain(s.target("upload", s.key), ctx.Err(), nil)
	case sent != nil && (err == nil || broken):
		return sent
	case w.bad != nil:
		return w.bad
	case err != nil:
		return &Error{Op: "produce stream", Bucket: s.bucket, Key: s.key, Kind: KindSource, Err: err}
	}
	s.report(func(ev *UploadEvent) { ev.Total = w.offset })
	s.remember(Delta{Size: w.offset})
	return nil
}

var errStreamEnded = errors.New("write to a stream after its producer has returned")

// streamWriter cuts what the producer writes into parts.
type streamWriter struct {
	s   *stream
	ctx context.Context // of the senders
	g   *errgroup.Group

	mu     sync.Mutex // against a producer that goes on writing after it has returned
	closed bool
	bad    error // why nothing more is taken, if that is the producer's fault
	offset int64 // in the object, of the next byte that is not dropped
	drop   int64 // bytes to come that are there already
	part   Part  // being filled: Length is what it may become; Number 0 is none
	body   pieces
}

// Write implements io.Writer.
func (w *streamWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	if !w.closed && w.drop > 0 {
		n = int(min(w.drop, int64(len(p))))
		w.drop -= int64(n)
		p = p[n:]
	}
	for len(p) > 0 {
		if err := w.ready(); err != nil {
			return n, err
		}
		room, err := w.room()
		if err != nil {
			return n, err
		}
		k := copy(room, p)
		w.body.n += int64(k)
		w.offset += int64(k)
		p, n = p[k:], n+k
		if w.body.n == w.part.Length {
			if err := w.cut(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// ready tells whether one more byte may come.
func (w *streamWriter) ready() error {
	switch {
	case w.closed:
		return errStreamEnded
	case w.bad != nil:
		return w.bad
	case w.ctx.Err() != nil:
		return w.ctx.Err()
	case w.offset >= w.s.o.MaxSize:
		w.bad = w.s.invalid(fmt.Sprintf("the stream is longer than the %d bytes that were foreseen", w.s.o.MaxSize))
		return w.bad
	}
	return nil
}

func (s *stream) invalid(message string) error {
	return &Error{Op: "upload stream", Bucket: s.bucket, Key: s.key, Kind: KindInvalid, Message: message}
}

// room returns memory for the next bytes of the part, and begins a part if there is none.
func (w *streamWriter) room() ([]byte, error) {
	if w.part.Length == 0 {
		n := w.part.Number + 1
		if n > MaxParts {
			// Only when the parts of an earlier run are shorter than ours.
			w.bad = w.s.invalid(fmt.Sprintf("%d parts are used up at %d bytes", MaxParts, w.offset))
			return nil, w.bad
		}
		w.part = Part{Number: n, Offset: w.offset, Length: min(w.s.o.PartSize(n), w.s.o.MaxSize-w.offset)}
		w.body = pieces{}
		w.s.slabs.allow(max(w.s.o.MemoryBudget/slabSize, ceilDiv(w.part.Length, slabSize)))
	}
	if w.body.n == int64(len(w.body.slabs))*slabSize {
		slab, err := w.s.slabs.get(w.ctx)
		if err != nil {
			return nil, err
		}
		w.body.slabs = append(w.body.slabs, slab)
	}
	at := w.body.n % slabSize
	return w.body.slabs[len(w.body.slabs)-1][at:min(slabSize, at+w.part.Length-w.body.n)], nil
}

// cut hands the part to a sender; it waits while as many parts are held as may be.
func (w *streamWriter) cut() error {
	if err := w.s.lim.hold(w.ctx); err != nil {
		return err
	}
	part, body := w.part, w.body
	part.Length = body.n
	w.part.Length, w.body = 0, pieces{}
	var note []byte
	if w.s.o.Note != nil {
		note = w.s.o.Note(part)
	}
	w.g.Go(func() error {
		defer w.s.lim.drop()
		defer w.s.slabs.put(body.slabs)
		d, err := w.s.multipart.send(w.ctx, part, body.sum(), func() io.ReadSeeker { return body.reader() })
		if err == nil {
			d.note = note
			w.s.finished(part, d)
		}
		return err
	})
	return nil
}

// finish cuts the last part.
func (w *streamWriter) finish() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.bad != nil:
		return w.bad
	case w.drop > 0:
		w.bad = w.s.invalid(fmt.Sprintf("the stream ended %d bytes before the end of what is there", w.drop))
		return w.bad
	case w.offset == 0:
		w.bad = w.s.invalid("the stream has no bytes")
		return w.bad
	case w.body.n > 0:
		return w.cut()
	}
	return nil
}

func (w *streamWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.s.slabs.put(w.body.slabs)
	w.body = pieces{}
}

// slabs is memory in pieces of one size, so that it can be used again for parts of any length.
type slabs struct {
	make func(n int64) []byte

	mu      sync.Mutex
	free    [][]byte
	used    int64         // slabs
	limit   int64         // slabs
	changed chan struct{} // closed and replaced when slabs came back
}

// allow sets how many slabs may be in use.
func (s *slabs) allow(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = n
}

// get waits for a slab, or for the end of ctx.
func (s *slabs) get(ctx context.Context) ([]byte, error) {
	for {
		s.mu.Lock()
		if s.used < s.limit {
			s.used++
			var slab []byte
			if n := len(s.free); n > 0 {
				slab, s.free = s.free[n-1], s.free[:n-1]
			} else {
				slab = s.make(slabSize)
			}
			s.mu.Unlock()
			return slab, nil
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *slabs) put(list [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, list...)
	s.used -= int64(len(list))
	close(s.changed)
	s.changed = make(chan struct{})
}

// pieces is the content of a part, in slabs of which all but the last are full.
type pieces struct {
	slabs [][]byte
	n     int64 // bytes
}

func (p pieces) sum() sum {
	h := md5.New()
	left := p.n
	for _, s := range p.slabs {
		s = s[:min(left, slabSize)]
		h.Write(s)
		left -= int64(len(s))
	}
	return sum(h.Sum(nil))
}

func (p pieces) reader() io.ReadSeeker { return io.NewSectionReader(p, 0, p.n) }

// ReadAt implements io.ReaderAt.
func (p pieces) ReadAt(b []byte, off int64) (int, error) {
	done := 0
	for done < len(b) && off < p.n {
		n := copy(b[done:], p.slabs[off/slabSize][off%slabSize:min(slabSize, off%slabSize+p.n-off)])
		done += n
		off += int64(n)
	}
	if done < len(b) {
		return done, io.EOF
	}
	return done, nil
}
