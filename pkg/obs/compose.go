// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"hash"
	"io"
	"slices"
	"strconv"
)

// Keys of helper objects are the key of the object they are made for, one of these marks, the id of the
// run, a hyphen and more. Where no such run is going on any more, they are leftovers.
const (
	ZeroMark  = ".imsprep-zero-"
	PieceMark = ".imsprep-piece-"
)

// pieceKeys is what the keys of a run's composed parts begin with; the part's number follows.
func (m *multipart) pieceKeys(runID string) string { return m.key + PieceMark + runID + "-" }

// composing is a failure to make a part out of pieces that may succeed when it is sent in one.
type composing struct{ error }

func (e composing) Unwrap() error { return e.error }

// scratch is the buffer of one part, taken on first need.
type scratch struct {
	u *upload
	b []byte
}

func (s *scratch) get(n int64) []byte {
	if s.b == nil {
		s.b = s.u.takeBuffer()
	}
	return s.b[:n]
}

// free gives the buffer back.
func (s *scratch) free() {
	if s.b == nil {
		return
	}
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	s.u.buffers = append(s.u.buffers, s.b)
	s.b = nil
}

// takeBuffer returns one that was used before, or makes one.
func (u *upload) takeBuffer() []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n := len(u.buffers); n > 0 {
		b := u.buffers[n-1]
		u.buffers = u.buffers[:n-1]
		return b
	}
	return u.c.newBuffer(u.plan.Buffer)
}

// composedPart makes a part out of pieces, or sends it in one when the server can't copy any more.
func (u *upload) composedPart(ctx context.Context, part Part, w *scratch) error {
	if r, ok := u.there[part.Number]; ok && r.size == part.Length && !u.encrypted {
		// The server may have had it acknowledged and us have forgotten: reading it is cheaper.
		s, err := u.sumOf(ctx, part, w)
		if err != nil {
			return err
		}
		if d, ok := u.isThere(part, func() sum { return s }); ok {
			d.copied = true
			u.acknowledged(part, d)
			return nil
		}
	}
	if u.mayReuse() {
		// One copy instead of many, if nothing has changed: worth reading it twice if something has.
		s, err := u.sumOf(ctx, part, w)
		if err != nil {
			return err
		}
		if done, err := u.reusePart(ctx, part, s); done || err != nil {
			return err
		}
	}
	if u.zero.usable() {
		d, err := u.composeInto(ctx, part, partAddress{u.key, u.id, part.Number}, strconv.Itoa(part.Number), w, nil)
		if err == nil {
			d.copied, d.composed = true, true
			u.acknowledged(part, d)
			return nil
		}
		var c composing
		if u.mode == ZeroCopyOn || ctx.Err() != nil || !errors.As(err, &c) || !mayFallBack(err) {
			return err
		}
		u.refuse(c.error)
	}
	return u.sendLong(ctx, part, w)
}

// partAddress is where a part goes: the upload of a key, and the number in it.
type partAddress struct {
	key, id string
	number  int
}

// composeInto builds a part as an object of its own, copies it to where it belongs, and deletes it.
// outer hears all of its bytes. What is copied is known by its MD5 as much as what is sent.
func (u *upload) composeInto(ctx context.Context, part Part, to partAddress, name string, w *scratch, outer io.Writer) (partDone, error) {
	key := u.pieceKeys(u.runID) + name
	if len(key) > maxKeyLength {
		return partDone{}, composing{&Error{Op: "compose part", Bucket: u.bucket, Key: u.key, Part: part.Number, Kind: KindInvalid,
			Message: "the key is too long for a helper object beside it"}}
	}
	// Noted before it exists, so that it is removed even if the answer is lost.
	u.help(key)
	id, err := u.initiate(ctx, key, "", u.metadata())
	if err != nil {
		return partDone{}, composing{err}
	}
	h, skip := afterFirstZeros(part)
	var out io.Writer = h
	if outer != nil {
		out = io.MultiWriter(h, outer)
	}
	d := partDone{size: part.Length}
	pieces := make([]partDone, len(part.Pieces))
	for i, p := range part.Pieces {
		if err := ctx.Err(); err != nil {
			return partDone{}, u.c.explain(u.target("compose part", u.key), err, nil)
		}
		at := partAddress{key, id, p.Number}
		switch {
		case p.Pieces != nil:
			pieces[i], err = u.composeInto(ctx, p, at, name+"-"+strconv.Itoa(p.Number), w, out)
		case p.Zero:
			to := out
			if i == 0 && skip > 0 {
				to = outer // h has begun with them
			}
			if to != nil {
				_, _ = io.Copy(to, newZeros(p.Length)) // hashes take all
			}
			pieces[i], err = u.copyZeros(ctx, p, at)
		default:
			pieces[i], err = u.dataPiece(ctx, p, at, w, out)
		}
		if err != nil {
			return partDone{}, err
		}
		d.sent += pieces[i].sent
		d.reused += pieces[i].reused
	}
	if err := ctx.Err(); err != nil {
		return partDone{}, u.c.explain(u.target("compose part", u.key), err, nil)
	}
	late, cancel := settling(ctx)
	etag, err := u.complete(late, key, id, pieces, part.Length)
	cancel()
	if err != nil {
		return partDone{}, composing{err}
	}
	t := u.target("copy composed part", to.key)
	t.part, t.offset = to.number, part.Offset
	whole := sum(h.Sum(nil))
	if d.etag, err = u.copyRange(ctx, t, to.id, zeroSource{key: key, etag: trimETag(etag)}, part.Length, func() sum { return whole }); err != nil {
		return partDone{}, composing{err}
	}
	// If that fails, cleaning up tries again.
	if u.c.remove(ctx, u.target("", key)) == nil {
		u.unhelp(key)
	}
	return d, nil
}

// copyZeros copies a piece of zeros.
func (u *upload) copyZeros(ctx context.Context, p Part, to partAddress) (partDone, error) {
	t := u.target("copy zeros to composed part", to.key)
	t.part, t.offset = to.number, p.Offset
	etag, err := u.copyFromZeros(ctx, t, to.id, p.Length)
	if err != nil {
		return partDone{}, composing{err}
	}
	return partDone{size: p.Length, etag: etag}, nil
}

// dataPiece reads a piece and sends it, or copies it when it turns out to be zeros.
func (u *upload) dataPiece(ctx context.Context, p Part, to partAddress, w *scratch, out io.Writer) (partDone, error) {
	b := w.get(p.Length)
	allZero, err := u.read(ctx, p, b)
	if err != nil {
		return partDone{}, err
	}
	_, _ = out.Write(b) // hashes take all
	if allZero {
		return u.copyZeros(ctx, p, to)
	}
	s := sum(md5.Sum(b))
	if etag, err := u.reuseInto(ctx, p, to, s); etag != "" || err != nil {
		return partDone{size: p.Length, etag: etag, reused: p.Length}, err
	}
	etag, err := u.put(ctx, p, to, s, func() io.ReadSeeker { return bytes.NewReader(b) })
	return partDone{size: p.Length, etag: etag, sent: p.Length}, err
}

// sumOf reads a composed part for its MD5.
func (u *upload) sumOf(ctx context.Context, part Part, w *scratch) (sum, error) {
	h, skip := afterFirstZeros(part)
	for p := range leaves(part.Pieces) {
		switch {
		case p.Zero && p.Offset < part.Offset+skip:
		case p.Zero:
			_, _ = io.Copy(h, newZeros(p.Length)) // hashes take all
		default:
			b := w.get(p.Length)
			if _, err := u.read(ctx, p, b); err != nil {
				return sum{}, err
			}
			h.Write(b)
		}
	}
	return sum(h.Sum(nil)), nil
}

// sendLong sends a composed part in one, zeros and all. As it may be longer than memory, its data is
// read once for the MD5 and once more each time it is sent.
func (u *upload) sendLong(ctx context.Context, part Part, w *scratch) error {
	s, err := u.sumOf(ctx, part, w)
	if err != nil {
		return err
	}
	r := &longPart{ctx: ctx, u: u, pieces: slices.Collect(leaves(part.Pieces)), w: w}
	err = u.sendPart(ctx, part, s, func() io.ReadSeeker {
		r.pos = 0
		return r
	})
	if r.err != nil {
		return r.err // the request failed for this
	}
	return err
}

// longPart reads a composed part from the source, a piece at a time.
type longPart struct {
	ctx    context.Context
	u      *upload
	pieces []Part
	w      *scratch
	at     int // index of the piece that w holds, plus 1
	pos    int64
	err    error
}

func (r *longPart) Read(b []byte) (int, error) {
	first := r.pieces[0].Offset
	i, found := slices.BinarySearchFunc(r.pieces, first+r.pos, func(p Part, off int64) int {
		switch {
		case p.Offset+p.Length <= off:
			return -1
		case p.Offset > off:
			return 1
		}
		return 0
	})
	if !found {
		return 0, io.EOF
	}
	p := r.pieces[i]
	in := first + r.pos - p.Offset
	n := int(min(int64(len(b)), p.Length-in))
	if p.Zero {
		clear(b[:n])
	} else {
		held := r.w.get(p.Length)
		if r.at != i+1 {
			r.at = 0
			if _, err := r.u.read(r.ctx, p, held); err != nil {
				r.err = err
				return 0, err
			}
			r.at = i + 1
		}
		copy(b[:n], held[in:])
	}
	r.pos += int64(n)
	return n, nil
}

func (r *longPart) Seek(off int64, whence int) (int64, error) {
	last := r.pieces[len(r.pieces)-1]
	switch whence {
	case io.SeekCurrent:
		off += r.pos
	case io.SeekEnd:
		off += last.Offset + last.Length - r.pieces[0].Offset
	}
	if off < 0 {
		return 0, errSeek
	}
	r.pos = off
	return off, nil
}

// afterFirstZeros returns an MD5 that has had the zeros with which a part begins, and how many those are.
func afterFirstZeros(part Part) (hash.Hash, int64) {
	if len(part.Pieces) == 0 || !part.Pieces[0].Zero {
		return md5.New(), 0
	}
	n := part.Pieces[0].Length
	return afterZeros(n), n
}

// help notes a helper object for cleaning up.
func (m *multipart) help(key string) {
	m.mu.Lock()
	m.helpers = append(m.helpers, key)
	m.mu.Unlock()
}

func (m *multipart) unhelp(key string) {
	m.mu.Lock()
	m.helpers = slices.DeleteFunc(m.helpers, func(k string) bool { return k == key })
	m.mu.Unlock()
}

// composedPlan tells whether there are composed parts.
func composedPlan(parts []Part) bool {
	return slices.ContainsFunc(parts, func(p Part) bool { return p.Pieces != nil })
}

// read reads a part of the source.
func (u *upload) read(ctx context.Context, part Part, b []byte) (allZero bool, err error) {
	allZero, err = u.source.ReadRange(ctx, b, part.Offset)
	if err == nil {
		return allZero, nil
	}
	t := u.target("read source", u.key)
	t.part, t.offset = part.Number, part.Offset
	if ctx.Err() != nil {
		return false, u.c.explain(t, ctx.Err(), nil)
	}
	return false, &Error{Op: t.op, Bucket: t.bucket, Key: t.key, Part: t.part, Offset: t.offset, Kind: KindSource, Err: err}
}
