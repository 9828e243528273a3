// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"
)

// RunIDMetadata is the name of the user metadata (x-amz-meta-...) that holds the run's id. It
// proves that an object is the one this upload made when the answer to completing it got lost.
const RunIDMetadata = "imsprep-run"

// DefaultCleanupTimeout is how long removing what a run leaves in the bucket may take.
const DefaultCleanupTimeout = 10 * time.Second

const (
	listPage      = 1000    // parts in a page of ListParts
	progressBytes = 1 << 20 // between two reports of a moving part
)

// Source reads the disk. ReadRange fills p from off on and tells whether all of p is zero. It is
// called from several goroutines, for ranges that do not overlap, and never twice for one byte.
// Ranges that the plan knows to be zero are not asked for.
type Source interface {
	ReadRange(ctx context.Context, p []byte, off int64) (allZero bool, err error)
}

// UploadOptions say what goes where.
type UploadOptions struct {
	Bucket, Key string
	Plan        *Plan
	Source      Source
	// ZeroCopy overrides the plan's mode; "" is the plan's. Zero parts of a plan that has none to
	// copy are sent in any mode.
	ZeroCopy ZeroCopyMode
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
	// CleanupTimeout bounds removing zero objects and, after a failure or cancellation, the
	// unfinished upload. 0 is DefaultCleanupTimeout. It runs on after ctx has ended.
	CleanupTimeout time.Duration
}

// UploadEvent is the state of an upload; all numbers only grow.
type UploadEvent struct {
	Done    int64 // bytes of the object whose parts the server has
	Total   int64 // bytes of the object
	Sent    int64 // of Done, bytes that were sent
	Copied  int64 // of Done, bytes that the server copied
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
	BytesSent   int64  `json:"bytes_sent"`   // bodies on the wire: parts, repeated parts, zero seed
	BytesCopied int64  `json:"bytes_copied"` // bytes of the object that the server copied
	Requests    int    `json:"requests"`
	Retries     int    `json:"retries"`
	// ZeroCopyRefused says why zero parts were sent although copying was wanted, "" if they
	// weren't.
	ZeroCopyRefused string `json:"zero_copy_refused,omitempty"`
	// Left names what could not be removed from the bucket, as in Error.
	Left []string `json:"left,omitempty"`
}

// Upload carries out a plan. Every body travels with its MD5, which the server checks; the object
// is completed only after the server's list of parts agrees with what was sent; its size is checked
// at the end. Memory is the plan's Workers × Buffer.
//
// On failure or when ctx ends, the unfinished upload and the zero objects are removed before Upload
// returns, and nothing appears under Key (an object that was there before stays). Errors are
// *Error.
func (c *Client) Upload(ctx context.Context, o UploadOptions) (*UploadResult, error) {
	u, err := c.newUpload(o)
	if err != nil {
		return nil, err
	}
	res, err := u.run(ctx)
	left := u.cleanUp(ctx, err != nil)
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = c.explain(u.target("upload", o.Key), err, nil)
		}
		e.Left = left
		return nil, e
	}
	res.Requests, res.Retries = int(u.stats.requests.Load()), int(u.stats.retries.Load())
	res.Left = left
	return res, nil
}

// upload is one run of Upload.
type upload struct {
	c     *Client
	o     UploadOptions
	plan  *Plan
	mode  ZeroCopyMode
	runID string
	lim   *limiter
	zero  *zeroObject
	sums  zeroSums

	stats stats
	wire  atomic.Int64
	// noCondition is set when the server does not know x-amz-copy-source-if-match.
	noCondition atomic.Bool

	mu         sync.Mutex
	open       map[string]string // unfinished uploads: key -> upload id
	completing bool              // the object may exist
	done       []partDone        // by part number - 1
	event      UploadEvent
	reported   int64 // wire bytes at the last report
}

// partDone is a part as the server acknowledged it.
type partDone struct {
	size   int64
	etag   string
	copied bool
}

// sum is an MD5.
type sum [md5.Size]byte

func (s sum) base64() string { return base64.StdEncoding.EncodeToString(s[:]) }
func (s sum) hex() string    { return hex.EncodeToString(s[:]) }

func (c *Client) newUpload(o UploadOptions) (*upload, error) {
	if err := c.checkTarget(o.Bucket, o.Key, o.Metadata); err != nil {
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
	if o.RunID == "" {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		o.RunID = hex.EncodeToString(b[:])
	}
	if !metaName.MatchString(o.RunID) || len(o.RunID) > 64 {
		return nil, bad("run id %q: a-z, 0-9 and hyphens are allowed, up to 64", o.RunID)
	}
	if _, taken := o.Metadata[RunIDMetadata]; taken {
		return nil, bad("metadata %q is set by the upload itself", RunIDMetadata)
	}
	setDefault(&o.CleanupTimeout, DefaultCleanupTimeout)
	u := &upload{c: c, o: o, plan: o.Plan, mode: o.ZeroCopy, runID: o.RunID, open: map[string]string{}}
	setDefault(&u.mode, o.Plan.ZeroCopy)
	u.zero = &zeroObject{u: u}
	return u, nil
}

// run does everything but cleaning up.
func (u *upload) run(ctx context.Context) (*UploadResult, error) {
	meta := u.metadata()
	maps.Copy(meta, u.o.Metadata)
	id, err := u.initiate(ctx, u.o.Key, u.o.ContentType, meta)
	if err != nil {
		return nil, err
	}
	u.useplan(u.plan)
	if u.plan.CopyZeros {
		if err := u.probe(ctx, id); err != nil {
			return nil, err
		}
	}
	u.lim = newLimiter(u.plan.Workers)
	if err := u.sendParts(ctx, id); err != nil {
		return nil, err
	}
	if err := u.agree(ctx, id); err != nil {
		return nil, err
	}
	if u.o.BeforeComplete != nil {
		if err := u.o.BeforeComplete(ctx); err != nil {
			return nil, &Error{Op: "check source before completing", Bucket: u.o.Bucket, Key: u.o.Key, Kind: KindSource, Err: err}
		}
	}
	u.mu.Lock()
	u.completing = true
	u.mu.Unlock()
	etag, err := u.complete(ctx, u.o.Key, id, u.done, u.plan.Size)
	if err != nil {
		return nil, err
	}
	info, err := u.c.stat(ctx, u.target("", u.o.Key))
	if err != nil {
		return nil, err
	}
	if got, told := info.Metadata[RunIDMetadata]; told && got != u.runID {
		return nil, &Error{Op: "check object", Bucket: u.o.Bucket, Key: u.o.Key, Kind: KindConflict,
			Message: "another writer replaced it"}
	}
	if info.Size != u.plan.Size {
		return nil, &Error{Op: "check object", Bucket: u.o.Bucket, Key: u.o.Key, Kind: KindIntegrity,
			Message: fmt.Sprintf("it has %d bytes in the bucket instead of %d", info.Size, u.plan.Size)}
	}
	if etag == "" {
		etag = info.ETag
	}
	res := &UploadResult{ETag: etag, Size: u.plan.Size, RunID: u.runID, BytesSent: u.wire.Load()}
	for _, d := range u.done {
		if d.copied {
			res.PartsCopied++
			res.BytesCopied += d.size
		} else {
			res.PartsSent++
		}
	}
	if u.zero.refused != nil {
		res.ZeroCopyRefused = u.zero.refused.Error()
	}
	return res, nil
}

func (u *upload) useplan(p *Plan) {
	if u.mode == ZeroCopyOff && p.CopyZeros {
		p = p.withoutCopying()
	}
	u.plan = p
	u.done = make([]partDone, len(p.Parts))
	u.event.Total = p.Size
}

// probe makes the zero object and copies the first zero part, before any byte of data moves: if the
// server refuses, zero parts can still be cut to sizes fit for sending.
func (u *upload) probe(ctx context.Context, id string) error {
	i := slices.IndexFunc(u.plan.Parts, func(p Part) bool { return p.Zero })
	err := u.copyPart(ctx, id, u.plan.Parts[i])
	if err == nil {
		return nil
	}
	if u.mode == ZeroCopyOn || !mayFallBack(err) {
		return err
	}
	u.refuse(err)
	u.useplan(u.plan.withoutCopying())
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

// sendParts brings every part to the server. Each worker has one buffer, reused.
func (u *upload) sendParts(ctx context.Context, id string) error {
	var next atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	for range u.plan.Workers {
		g.Go(func() error {
			var buf []byte
			for {
				i := int(next.Add(1)) - 1
				if i >= len(u.plan.Parts) {
					return nil
				}
				if u.done[i].etag != "" {
					continue // the probe's
				}
				if err := gctx.Err(); err != nil {
					return err
				}
				part := u.plan.Parts[i]
				if part.Zero {
					if err := u.zeroPart(gctx, id, part); err != nil {
						return err
					}
					continue
				}
				if buf == nil {
					buf = u.c.newBuffer(u.plan.Buffer)
				}
				if err := u.dataPart(gctx, id, part, buf[:part.Length]); err != nil {
					return err
				}
			}
		})
	}
	err := g.Wait()
	if ctx.Err() != nil {
		// Whatever broke first, the user's wish explains it best.
		return u.c.explain(u.target("upload", u.o.Key), ctx.Err(), nil)
	}
	return err
}

// zeroPart copies a part known to be zeros, or sends it without reading the source.
func (u *upload) zeroPart(ctx context.Context, id string, part Part) error {
	if u.plan.CopyZeros {
		done, err := u.tryCopy(ctx, id, part)
		if done || err != nil {
			return err
		}
	}
	return u.send(ctx, id, part, u.sums.of(part.Length), func() io.ReadSeeker { return newZeros(part.Length) })
}

// dataPart reads a part and sends it, or copies it when it turns out to be zeros.
func (u *upload) dataPart(ctx context.Context, id string, part Part, p []byte) error {
	allZero, err := u.o.Source.ReadRange(ctx, p, part.Offset)
	if err != nil {
		t := u.target("read source", u.o.Key)
		t.part, t.offset = part.Number, part.Offset
		if ctx.Err() != nil {
			return u.c.explain(t, ctx.Err(), nil)
		}
		return &Error{Op: t.op, Bucket: t.bucket, Key: t.key, Part: t.part, Offset: t.offset, Kind: KindSource, Err: err}
	}
	if allZero && u.mode != ZeroCopyOff && u.zero.worthwhile(part.Length) {
		done, err := u.tryCopy(ctx, id, part)
		if done || err != nil {
			return err
		}
	}
	return u.send(ctx, id, part, sum(md5.Sum(p)), func() io.ReadSeeker { return bytes.NewReader(p) })
}

// tryCopy copies a zero part. false without an error means that it must be sent.
func (u *upload) tryCopy(ctx context.Context, id string, part Part) (bool, error) {
	err := u.copyPart(ctx, id, part)
	if err == nil {
		return true, nil
	}
	if u.mode == ZeroCopyOn || !mayFallBack(err) {
		return false, err
	}
	u.refuse(err)
	return false, nil
}

func (u *upload) copyPart(ctx context.Context, id string, part Part) error {
	key, etag, err := u.zero.ready(ctx, max(part.Length, u.plan.ZeroObjectSize, u.plan.Buffer))
	if err != nil {
		return err
	}
	t := u.target("copy zeros to part", u.o.Key)
	t.part, t.offset = part.Number, part.Offset
	got, err := u.copyRange(ctx, t, id, key, etag, part.Length)
	if err != nil {
		return err
	}
	u.finished(part, partDone{size: part.Length, etag: got, copied: true})
	return nil
}

// copyRange makes the server copy the first n bytes of an object to a part, and returns its ETag.
func (u *upload) copyRange(ctx context.Context, t target, id, from, fromETag string, n int64) (string, error) {
	t.idleFactor = serverWork
	t.before = u.slot
	var etag string
	try := func(condition bool) error {
		return u.c.call(ctx, t, func(ctx context.Context) error {
			var headers map[string]string
			if condition {
				headers = map[string]string{"x-amz-copy-source-if-match": fromETag}
			}
			p, err := u.c.core.CopyObjectPart(ctx, t.bucket, from, t.bucket, t.key, id, t.part, 0, n, headers)
			if err != nil {
				return err
			}
			if etag = trimETag(p.ETag); etag == "" {
				// The server answers 200 before it copies; what failed later is in the body.
				return &Error{Kind: KindTransient, Code: "CopyWithoutETag", Message: "the server began to copy and failed"}
			}
			return nil
		})
	}
	condition := fromETag != "" && !u.noCondition.Load()
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

// send puts a part. body starts it anew for each attempt.
func (u *upload) send(ctx context.Context, id string, part Part, s sum, body func() io.ReadSeeker) error {
	t := u.target("upload part", u.o.Key)
	t.part, t.offset = part.Number, part.Offset
	t.before = u.slot
	var etag string
	err := u.c.call(ctx, t, func(ctx context.Context) error {
		p := &payload{r: body(), moved: u.moved}
		defer p.release()
		got, err := u.c.core.PutObjectPart(ctx, t.bucket, t.key, id, part.Number, p, part.Length,
			minio.PutObjectPartOptions{Md5Base64: s.base64(), DisableContentSha256: true})
		if err != nil {
			return err
		}
		etag = got.ETag
		if etag == "" {
			return &Error{Kind: KindTransient, Code: "PartWithoutETag", Message: "the answer has no ETag"}
		}
		if etag != s.hex() && !opaqueETag(ctx, etag) {
			return &Error{Kind: KindTransient, Code: "BadDigest",
				Message: fmt.Sprintf("the server stored something else: ETag %s instead of %s", etag, s.hex())}
		}
		return nil
	})
	if err != nil {
		return err
	}
	u.finished(part, partDone{size: part.Length, etag: etag})
	return nil
}

// opaqueETag tells whether a part's ETag need not be the MD5 of its data: it doesn't look like one,
// or the server encrypts.
func opaqueETag(ctx context.Context, etag string) bool {
	if _, err := hex.DecodeString(etag); err != nil || len(etag) != 2*md5.Size {
		return true
	}
	ex, _ := ctx.Value(exchangeKey{}).(*exchange)
	if ex == nil {
		return true
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return firstHeader(ex.header, "x-amz-server-side-encryption", "x-obs-server-side-encryption",
		"x-amz-server-side-encryption-customer-algorithm") != ""
}

// slot is the limiter's bracket around an attempt.
func (u *upload) slot(ctx context.Context) (func(*Error), error) {
	if u.lim == nil { // the probe goes alone
		return func(*Error) {}, nil
	}
	ticket, err := u.lim.acquire(ctx)
	if err != nil {
		return nil, err
	}
	return func(e *Error) {
		switch {
		case e == nil:
			u.lim.release(ticket, outcomeGood)
		case e.throttled():
			u.lim.release(ticket, outcomeThrottled)
		default:
			u.lim.release(ticket, outcomeOther)
		}
	}, nil
}

// initiateGrace is how long the answer to a begun upload is waited for after ctx has ended.
const initiateGrace = time.Second

// initiate begins a multipart upload and notes it for cleaning up. When ctx ends while the request is
// out, the answer is still waited for a moment: an upload whose id nobody knows stays in the bucket.
func (u *upload) initiate(ctx context.Context, key, contentType string, meta map[string]string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", u.c.explain(u.target("begin upload", key), err, nil)
	}
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(initiateGrace, cancel) })()
	var id string
	err := u.c.call(late, u.target("begin upload", key), func(ctx context.Context) error {
		var err error
		id, err = u.c.core.NewMultipartUpload(ctx, u.o.Bucket, key, objectOptions(contentType, meta))
		if err == nil && id == "" {
			err = &Error{Kind: KindTransient, Code: "NoUploadId", Message: "the answer has no upload id"}
		}
		return err
	})
	if err != nil {
		return "", err
	}
	u.mu.Lock()
	u.open[key] = id
	u.mu.Unlock()
	return id, ctx.Err()
}

// agree compares the server's list of parts with ours. A list may lag behind, so a difference must
// last to count.
func (u *upload) agree(ctx context.Context, id string) error {
	for n := 1; ; n++ {
		e, err := u.compareParts(ctx, id)
		if err != nil {
			return err
		}
		if e == nil {
			return nil
		}
		e.Attempts = n
		if n >= u.c.o.MaxAttempts {
			return e
		}
		u.stats.retries.Add(1)
		if err := u.c.backoff(ctx, n, e); err != nil {
			return u.c.explain(u.target("list parts", u.o.Key), err, nil)
		}
	}
}

// compareParts returns the first difference, or an error when the list could not be had.
func (u *upload) compareParts(ctx context.Context, id string) (*Error, error) {
	differ := func(number int, format string, a ...any) *Error {
		e := &Error{Op: "compare part list", Bucket: u.o.Bucket, Key: u.o.Key, Part: number, Kind: KindIntegrity,
			Message: fmt.Sprintf(format, a...)}
		if number >= 1 && number <= len(u.plan.Parts) {
			e.Offset = u.plan.Parts[number-1].Offset
		}
		return e
	}
	seen, marker := 0, 0
	for {
		var page minio.ListObjectPartsResult
		err := u.c.call(ctx, u.target("list parts", u.o.Key), func(ctx context.Context) error {
			var err error
			page, err = u.c.core.ListObjectParts(ctx, u.o.Bucket, u.o.Key, id, marker, listPage)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, p := range page.ObjectParts {
			if p.PartNumber != seen+1 {
				return differ(seen+1, "the server lists part %d in its place", p.PartNumber), nil
			}
			if p.PartNumber > len(u.done) {
				return differ(p.PartNumber, "the server lists a part that was never sent"), nil
			}
			want := u.done[seen]
			if p.Size != want.size {
				return differ(p.PartNumber, "the server has %d bytes instead of %d", p.Size, want.size), nil
			}
			if got := trimETag(p.ETag); got != want.etag {
				return differ(p.PartNumber, "the server has ETag %s instead of %s", got, want.etag), nil
			}
			seen++
		}
		if !page.IsTruncated {
			break
		}
		if len(page.ObjectParts) == 0 || seen <= marker {
			return differ(seen+1, "the server's list does not go on after part %d", seen), nil
		}
		marker = seen
	}
	if seen != len(u.done) {
		return differ(seen+1, "the server lists %d of %d parts", seen, len(u.done)), nil
	}
	return nil, nil
}

// complete turns the parts into the object. When it is not clear whether that worked, because the
// answer is lost or the upload is gone, the object itself is asked.
func (u *upload) complete(ctx context.Context, key, id string, parts []partDone, size int64) (string, error) {
	list := make([]minio.CompletePart, len(parts))
	for i, p := range parts {
		list[i] = minio.CompletePart{PartNumber: i + 1, ETag: p.etag}
	}
	t := u.target("complete upload", key)
	t.idleFactor = serverWork
	t.attempts = 1
	refreshed := false
	for n := 1; ; n++ {
		var etag string
		err := u.c.call(ctx, t, func(ctx context.Context) error {
			info, err := u.c.core.CompleteMultipartUpload(ctx, t.bucket, key, id, list, minio.PutObjectOptions{})
			etag = info.ETag
			return err
		})
		if err == nil {
			u.closed(key)
			return etag, nil
		}
		var e *Error
		if !errors.As(err, &e) || ctx.Err() != nil {
			return "", err
		}
		e.Attempts = n
		gone := e.Code == "NoSuchUpload"
		switch {
		case e.Kind == KindTransient || gone:
			info, serr := u.c.stat(ctx, u.target("", key))
			if serr == nil && info.Size == size && info.Metadata[RunIDMetadata] == u.runID {
				u.closed(key)
				return info.ETag, nil
			}
			if gone {
				return "", e
			}
		case expiredCode(e.Code) && !refreshed:
			refreshed = true
		default:
			return "", e
		}
		if n >= u.c.o.MaxAttempts {
			return "", e
		}
		u.stats.retries.Add(1)
		if err := u.c.backoff(ctx, n, e); err != nil {
			return "", u.c.explain(t, err, nil)
		}
	}
}

func (u *upload) closed(key string) {
	u.mu.Lock()
	delete(u.open, key)
	u.mu.Unlock()
}

// cleanUp removes the zero objects and, after a failure, the unfinished uploads and an object of
// ours that must not be taken for a whole one. It returns what it could not remove.
func (u *upload) cleanUp(ctx context.Context, failed bool) []string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), u.o.CleanupTimeout)
	defer cancel()
	var mu sync.Mutex
	var left []string
	var wg sync.WaitGroup
	remove := func(name string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				mu.Lock()
				left = append(left, name)
				mu.Unlock()
			}
		})
	}
	short := func(key string) target {
		t := u.target("", key)
		t.attempts = min(u.c.o.MaxAttempts, 5)
		return t
	}
	// The workers are gone: nobody changes these any more.
	for key, id := range u.open {
		remove("upload "+id+" of "+key, func() error { return u.abort(ctx, short(key), id) })
	}
	wg.Wait() // an upload being completed may bring a zero object back
	for _, key := range u.zero.keys {
		remove(key, func() error { return u.c.remove(ctx, short(key)) })
	}
	if failed && u.completing {
		remove(u.o.Key, func() error {
			info, err := u.c.stat(ctx, short(u.o.Key))
			if KindOf(err) == KindNotFound {
				return nil
			}
			if err != nil || info.Metadata[RunIDMetadata] != u.runID {
				return err
			}
			return u.c.remove(ctx, short(u.o.Key))
		})
	}
	wg.Wait()
	slices.Sort(left)
	return left
}

func (u *upload) abort(ctx context.Context, t target, id string) error {
	t.op = "abort upload"
	err := u.c.call(ctx, t, func(ctx context.Context) error {
		return u.c.core.AbortMultipartUpload(ctx, t.bucket, t.key, id)
	})
	if KindOf(err) == KindNotFound {
		return nil
	}
	return err
}

func (u *upload) target(op, key string) target {
	return target{op: op, bucket: u.o.Bucket, key: key, stats: &u.stats}
}

func (u *upload) metadata() map[string]string {
	return map[string]string{RunIDMetadata: u.runID}
}

func (u *upload) zeroSum(n int64) sum { return u.sums.of(n) }

// moved counts bytes of bodies as they leave.
func (u *upload) moved(n int) {
	total := u.wire.Add(int64(n))
	if u.o.Progress == nil {
		return
	}
	u.mu.Lock()
	due := total-u.reported >= progressBytes
	if due {
		u.reported = total
	}
	u.mu.Unlock()
	if due {
		u.report(nil)
	}
}

func (u *upload) finished(part Part, d partDone) {
	u.done[part.Number-1] = d // one writer a part
	u.report(func(ev *UploadEvent) {
		ev.Done += d.size
		ev.Parts++
		if d.copied {
			ev.Copied += d.size
		} else {
			ev.Sent += d.size
		}
	})
}

func (u *upload) report(change func(*UploadEvent)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if change != nil {
		change(&u.event)
	}
	u.event.Wire = u.wire.Load()
	u.event.Retries = int(u.stats.retries.Load())
	if u.o.Progress != nil {
		u.o.Progress(u.event)
	}
	u.event.Note = ""
}
