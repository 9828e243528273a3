// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Source reads the disk. ReadRange fills p from off on and tells whether all of p is zero. It is
// called from several goroutines, for ranges that do not overlap, and never twice for one byte, but for
// composed parts (Part.Pieces): they are read again when the server stops copying halfway, or turns out
// to have something else than an earlier run sent. Ranges that the plan knows to be zero are not asked
// for.
type Source interface {
	ReadRange(ctx context.Context, p []byte, off int64) (allZero bool, err error)
}

// UploadOptions say what goes where.
type UploadOptions struct {
	Bucket, Key string
	// OwnKey says that nobody else uploads to Key, because it was made up for this run: then what an answer
	// lost at the beginning has left can be removed for sure, see [Client.Upload].
	OwnKey bool
	Plan   *Plan
	Source Source
	// ZeroCopy overrides the plan's mode; "" is the plan's. Zero parts of a plan that has none to
	// copy are sent in any mode.
	ZeroCopy ZeroCopyMode
	// KeepZeros leaves the zero object in the bucket under SharedZeroKey, for other uploads: each uses the
	// one that it finds there, if its content is right.
	KeepZeros bool
	// Metadata becomes user metadata, names without x-amz-meta-: a-z, 0-9 and hyphens.
	Metadata map[string]string
	// ContentType defaults to application/octet-stream.
	ContentType string
	// RunID names this run in metadata and in the keys of zero objects: a-z, 0-9 and hyphens, up to
	// 64. "" draws one. No two runs may share one.
	RunID string
	// BeforeComplete, if not nil, is asked when all parts are at the server and before they become an
	// object: an error fails the upload. It is the place to see whether the source has changed.
	BeforeComplete func(ctx context.Context) error
	// Progress hears how the upload goes: never from two goroutines at the same time, at least once
	// a part, and about once a MiB sent. It must return quickly, as sending waits for it.
	Progress func(UploadEvent)
	// CleanupTimeout bounds removing zero objects and the unfinished upload after ctx has ended. 0 is
	// DefaultCleanupTimeout, which is also the least when ctx hasn't.
	CleanupTimeout time.Duration

	// Checkpoint, if not nil, hears all that is needed to go on with the upload after an
	// interruption: its beginning, and each part once the server has acknowledged it. It is never
	// called from two goroutines at the same time; a part does not count before it returns.
	Checkpoint func(Delta)
	// Note returns what the caller wants to find beside a part in Checkpoint, nil for nothing: say,
	// which of its blocks hold data. It is called after the part was read and acknowledged, from
	// several goroutines. nil is none.
	Note func(Part) []byte
	// Resume is an upload to go on with, as put together from Checkpoint. Parts of it that the server
	// has with the same size and ETag are neither read nor sent again; what the server has beyond
	// that is not sent if its MD5 is that of what was read. When it was completed already, there is
	// nothing to do; when the server does not know it any more, or the plan is another one, the upload
	// starts anew and a note says so. Whether the source is the same is for the caller to know.
	Resume *State
	// Reuse, if not nil, tells for a part that was read where the same bytes probably are already, to be
	// copied from there instead of being sent; false if nowhere. It is called from several goroutines. The
	// copy is checked by its MD5; when it isn't right or can't be made, a note says so, and all else is sent.
	Reuse func(Part) (CopySource, bool)
	// Resumable keeps the unfinished upload after a failure that may pass (KindTransient,
	// KindCanceled, KindAuth, KindClock and KindQuota) instead of removing it; Error.Kept is its id.
	// Zero objects are removed all the same.
	Resumable bool
}

// UploadEvent is the state of an upload; all numbers only grow.
type UploadEvent struct {
	Done    int64 // bytes of the object whose parts the server has
	Total   int64 // bytes of the object
	Sent    int64 // of Done, bytes that were sent
	Copied  int64 // of Done, bytes that the server copied
	Resumed int64 // of Done, bytes that the server had from an earlier run
	Wire    int64 // bytes of bodies on the wire so far: unfinished and repeated parts too
	Parts   int   // finished parts
	Retries int
	// Note tells, once, of something the user should know; else "".
	Note string
}

// UploadResult tells what an upload made and cost.
type UploadResult struct {
	ETag        string `json:"etag"` // of the object, opaque
	Size        int64  `json:"size"` // bytes
	RunID       string `json:"run_id"`
	PartsSent   int    `json:"parts_sent"`
	PartsCopied int    `json:"parts_copied"`
	// PartsComposed are those made of pieces, some sent and some copied.
	PartsComposed int   `json:"parts_composed,omitempty"`
	BytesSent     int64 `json:"bytes_sent"`   // bodies on the wire: parts, repeated parts, zero seed
	BytesCopied   int64 `json:"bytes_copied"` // bytes of the object that the server copied
	// BytesReused are those of them that were copied from where Reuse told.
	BytesReused int64 `json:"bytes_reused,omitempty"`
	// What the server had from an earlier run.
	PartsResumed int   `json:"parts_resumed,omitempty"`
	BytesResumed int64 `json:"bytes_resumed,omitempty"`
	// AlreadyComplete means that an earlier run had completed the object.
	AlreadyComplete bool `json:"already_complete,omitempty"`
	// StartedAnew says why the upload to be resumed was of no use, "" if it was or there was none.
	StartedAnew string `json:"started_anew,omitempty"`
	Requests    int    `json:"requests"`
	Retries     int    `json:"retries"`

	Concurrency ConcurrencyResult `json:"concurrency"`
	// ZeroCopyRefused says why zero parts were sent although copying was wanted, "" if they
	// weren't.
	ZeroCopyRefused string `json:"zero_copy_refused,omitempty"`
	// Left names what could not be removed from the bucket, as in Error.
	Left []string `json:"left,omitempty"`
}

// Upload carries out a plan. Every body travels with its MD5, which the server checks; the object
// is completed only after the server's list of parts agrees with what was sent; its size is checked
// at the end. Memory is the plan's Buffers × Buffer.
//
// On failure or when ctx ends, the unfinished upload (but see Resumable) and the zero objects are
// removed before Upload returns, and nothing appears under Key (an object that was there before
// stays). Errors are *Error.
//
// When the answer to beginning the upload is lost, there may be two. The other one is removed, too, if it is
// surely this run's: with OwnKey always; else if it began at that moment, is still empty when the run ends, and
// there are no more such uploads of Key than lost answers. Else it is named in Left.
func (c *Client) Upload(ctx context.Context, o UploadOptions) (*UploadResult, error) {
	u, err := c.newUpload(o)
	if err != nil {
		return nil, err
	}
	res, err := u.do(ctx, u.parts)
	if err != nil {
		return nil, err
	}
	if u.zero.refused != nil {
		res.ZeroCopyRefused = u.zero.refused.Error()
	}
	return res, nil
}

// upload is one run of Upload.
type upload struct {
	*multipart
	source Source
	note   func(Part) []byte
	reuse  func(Part) (CopySource, bool)
	plan   *Plan
	mode   ZeroCopyMode
	zero   *zeroObject
	// keepZeros: as asked for
	keepZeros bool
	sums      zeroSums
	lanes     lanes
	buffers   [][]byte // that nobody uses, under multipart.mu
	// noCondition is set when the server does not know x-amz-copy-source-if-match.
	noCondition atomic.Bool
	// reuseRefused is set when copying from an earlier object has failed.
	reuseRefused atomic.Bool
}

func (c *Client) newUpload(o UploadOptions) (*upload, error) {
	m, err := c.newMultipart(order{bucket: o.Bucket, key: o.Key, contentType: o.ContentType, user: o.Metadata,
		runID: o.RunID, beforeComplete: o.BeforeComplete, progress: o.Progress, cleanupTimeout: o.CleanupTimeout,
		resume: o.Resume, resumable: o.Resumable, checkpoint: o.Checkpoint, ownKey: o.OwnKey})
	if err != nil {
		return nil, err
	}
	bad := func(format string, a ...any) error {
		return &Error{Op: "upload", Bucket: o.Bucket, Key: o.Key, Kind: KindInvalid, Message: fmt.Sprintf(format, a...)}
	}
	if o.Plan == nil || o.Source == nil {
		return nil, bad("it needs a plan and a source")
	}
	if err := o.Plan.check(); err != nil {
		return nil, bad("%v", err)
	}
	if err := o.ZeroCopy.Validate(); err != nil {
		return nil, err
	}
	u := &upload{multipart: m, source: o.Source, note: o.Note, reuse: o.Reuse, plan: o.Plan, mode: o.ZeroCopy,
		keepZeros: o.KeepZeros, lanes: lanes{on: haveLanes}}
	setDefault(&u.mode, o.Plan.ZeroCopy)
	if u.mode == ZeroCopyOff && u.plan.CopyZeros {
		u.plan = u.plan.withoutCopying()
	}
	m.fits = u.fitsPlan
	u.zero = &zeroObject{u: u}
	u.lim = newLimiter(c.now, u.plan.MinWorkers, min(u.plan.Workers, MaxStreams(c.o.LimitRate)), u.plan.Buffers)
	return u, nil
}

// fitsPlan tells whether a remembered upload is cut as this one, and cuts this one as that one if it
// had to send its zeros.
func (u *upload) fitsPlan(s *State) bool {
	p := u.plan
	sent := s.CopyRefused && u.mode == ZeroCopyAuto
	if sent && p.CopyZeros {
		p = p.withoutCopying()
	}
	if s.Size != p.Size || s.BlockSize != p.BlockSize || s.Boundaries != fingerprint(p.Parts) {
		return false
	}
	u.plan = p
	if sent {
		u.zero.refused = errRefusedBefore
	}
	return true
}

var errRefusedBefore = errors.New("the server would not copy when the upload began")

// parts brings the plan's parts to the server.
func (u *upload) parts(ctx context.Context) error {
	u.event.Total = u.plan.Size
	u.done = make([]partDone, len(u.plan.Parts))
	var kept []PartState
	if u.there != nil {
		kept = slices.DeleteFunc(u.accepted(), func(p PartState) bool {
			i := p.Number - 1
			return i < 0 || i >= len(u.plan.Parts) || p.Offset != u.plan.Parts[i].Offset || p.Size != u.plan.Parts[i].Length
		})
	}
	u.begin(kept)
	u.keep(kept)
	if u.plan.CopyZeros {
		if err := u.probe(ctx); err != nil {
			return err
		}
	}
	u.lim.bound(u.plan.Workers, u.plan.Buffers) // the plan may be another one by now
	return u.sendParts(ctx)
}

// begin tells the caller's journal how the object is cut.
func (u *upload) begin(kept []PartState) {
	u.begun(State{Size: u.plan.Size, BlockSize: u.plan.BlockSize, ZeroCopy: u.mode, Boundaries: fingerprint(u.plan.Parts),
		CopyRefused: u.zero.refused != nil, Composed: composedPlan(u.plan.Parts), Parts: kept})
}

// probe makes the zero object and copies the first zero part, before any byte of data moves: if the
// server refuses, zero parts can still be cut to sizes fit for sending. When parts are there from an
// earlier run, the cut is decided, and what is left is copied or sent as it is.
func (u *upload) probe(ctx context.Context) error {
	missing := func(p Part) bool { return u.done[p.Number-1].etag == "" }
	var err error
	if i := slices.IndexFunc(u.plan.Parts, func(p Part) bool { return p.Zero && missing(p) }); i >= 0 {
		err = u.copyPart(ctx, u.plan.Parts[i])
	} else if slices.ContainsFunc(u.plan.Parts, func(p Part) bool { return p.Pieces != nil && missing(p) }) {
		// The zero object is made by copying, too, unless it is short.
		_, err = u.zero.ready(ctx, u.plan.ZeroObjectSize)
	}
	if err == nil {
		return nil
	}
	if u.mode == ZeroCopyOn || !mayFallBack(err) {
		return err
	}
	u.refuse(err)
	if len(u.there) > 0 {
		return nil
	}
	u.plan = u.plan.withoutCopying()
	u.done = make([]partDone, len(u.plan.Parts))
	u.begin(nil)
	return nil
}

// refuse notes that the server can't copy and tells the user once.
func (u *upload) refuse(why error) {
	if u.zero.refuse(why) {
		u.report(func(ev *UploadEvent) {
			ev.Note = "zeros are sent instead of copied on the server: " + why.Error()
		})
	}
}

// mayFallBack tells whether sending may succeed where copying failed.
func mayFallBack(err error) bool {
	switch KindOf(err) {
	case KindCanceled, KindClock, KindQuota, KindRegion:
		return false
	}
	return !isCode(err, "NoSuchUpload") && !isCode(err, "NoSuchBucket")
}

// sendParts brings every part to the server. As many are held as the limiter permits; buffers are reused.
func (u *upload) sendParts(ctx context.Context) error {
	defer u.lanes.close()
	var next atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	for range u.plan.Buffers {
		g.Go(func() error {
			for {
				if err := u.lim.hold(gctx); err != nil {
					return err
				}
				more, err := u.nextPart(gctx, &next)
				u.lim.drop()
				if !more || err != nil {
					return err
				}
			}
		})
	}
	err := g.Wait()
	if ctx.Err() != nil {
		// Whatever broke first, the user's wish explains it best.
		return u.c.explain(u.target("upload", u.key), ctx.Err(), nil)
	}
	return err
}

// nextPart brings the next part to the server. false means that there is none.
func (u *upload) nextPart(ctx context.Context, next *atomic.Int64) (more bool, err error) {
	i := int(next.Add(1)) - 1
	if i >= len(u.plan.Parts) {
		return false, nil
	}
	if u.done[i].etag != "" {
		return true, nil // the probe's
	}
	w := &scratch{u: u}
	defer w.free()
	switch part := u.plan.Parts[i]; {
	case part.Zero:
		return true, u.zeroPart(ctx, part)
	case part.Pieces != nil:
		return true, u.composedPart(ctx, part, w)
	default:
		return true, u.dataPart(ctx, part, w.get(part.Length))
	}
}

// zeroPart copies a part known to be zeros, or sends it without reading the source.
func (u *upload) zeroPart(ctx context.Context, part Part) error {
	if u.plan.CopyZeros {
		done, err := u.tryCopy(ctx, part)
		if done || err != nil {
			return err
		}
	}
	return u.sendPart(ctx, part, u.sums.of(part.Length), func() io.ReadSeeker { return newZeros(part.Length) })
}

func (u *upload) sendPart(ctx context.Context, part Part, s sum, body func() io.ReadSeeker) error {
	d, err := u.send(ctx, part, s, body)
	if err == nil {
		u.acknowledged(part, d)
	}
	return err
}

func (u *upload) acknowledged(part Part, d partDone) {
	if u.note != nil {
		d.note = u.note(part)
	}
	u.finished(part, d)
}

// dataPart reads a part and sends it, or copies it when it turns out to be zeros.
func (u *upload) dataPart(ctx context.Context, part Part, p []byte) error {
	u.lanes.expect()
	allZero, err := u.read(ctx, part, p)
	if err != nil {
		u.lanes.forget()
		return err
	}
	if allZero && u.mode != ZeroCopyOff && u.zero.worthwhile(part.Length) {
		u.lanes.forget()
		done, err := u.tryCopy(ctx, part)
		if done || err != nil {
			return err
		}
		u.lanes.expect()
	}
	s := u.lanes.sum(p)
	if done, err := u.reusePart(ctx, part, s); done || err != nil {
		return err
	}
	return u.sendPart(ctx, part, s, func() io.ReadSeeker { return bytes.NewReader(p) })
}

// tryCopy copies a zero part. false without an error means that it must be sent.
func (u *upload) tryCopy(ctx context.Context, part Part) (bool, error) {
	err := u.copyPart(ctx, part)
	if err == nil {
		return true, nil
	}
	if u.mode == ZeroCopyOn || !mayFallBack(err) {
		return false, err
	}
	u.refuse(err)
	return false, nil
}

func (u *upload) copyPart(ctx context.Context, part Part) error {
	if d, ok := u.isThere(part, func() sum { return u.sums.of(part.Length) }); ok {
		d.copied = true
		u.acknowledged(part, d)
		return nil
	}
	t := u.target("copy zeros to part", u.key)
	t.part, t.offset = part.Number, part.Offset
	etag, err := u.copyFromZeros(ctx, t, u.id, part.Length)
	if err != nil {
		return err
	}
	u.acknowledged(part, partDone{etag: etag, copied: true})
	return nil
}

// copyFromZeros makes the server copy n zeros to the part of t, making the zero object if there is none.
func (u *upload) copyFromZeros(ctx context.Context, t target, id string, n int64) (string, error) {
	for {
		from, err := u.zero.ready(ctx, max(n, u.plan.ZeroObjectSize, u.plan.Buffer))
		if err != nil {
			return "", err
		}
		etag, err := u.copyRange(ctx, t, id, from, n, func() sum { return u.sums.of(n) })
		if err == nil || ctx.Err() != nil || !mayFallBack(err) || !u.zero.disown(from) {
			return etag, err
		}
	}
}

// copyRange makes the server copy the first n bytes of an object to a part, and returns the part's
// ETag, which is known beforehand.
func (u *upload) copyRange(ctx context.Context, t target, id string, from zeroSource, n int64, want func() sum) (string, error) {
	t.idleFactor = serverWork
	t.before = u.slot
	var etag string
	try := func(condition bool) error {
		return u.c.call(ctx, t, func(ctx context.Context) error {
			var headers map[string]string
			if condition {
				headers = map[string]string{"x-amz-copy-source-if-match": from.etag}
			}
			p, err := u.c.core.CopyObjectPart(ctx, t.bucket, from.key, t.bucket, t.key, id, t.part, 0, n, headers)
			if err != nil {
				return err
			}
			if etag = trimETag(p.ETag); etag == "" {
				// The server answers 200 before it copies; what failed later is in the body.
				return &Error{Kind: KindTransient, Code: "CopyWithoutETag", Message: "the server began to copy and failed"}
			}
			if from.shared && etag != want().hex() {
				return &Error{Kind: KindIntegrity, Message: "the shared zero object is not all zeros"}
			}
			return u.checkETag(ctx, etag, want())
		})
	}
	condition := from.etag != "" && !u.noCondition.Load()
	err := try(condition)
	if condition && (KindOf(err) == KindUnsupported || KindOf(err) == KindInvalid) {
		// It may be the condition that the server does not know.
		if err2 := try(false); err2 == nil {
			u.noCondition.Store(true)
			return etag, nil
		}
	}
	return etag, err
}

func (u *upload) zeroSum(n int64) sum { return u.sums.of(n) }
