// SPDX-License-Identifier: Apache-2.0

package obs

import (
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

// order is what the options of all sorts of uploads have in common.
type order struct {
	bucket, key    string
	contentType    string
	user           map[string]string // metadata
	runID          string
	beforeComplete func(ctx context.Context) error
	progress       func(UploadEvent)
	cleanupTimeout time.Duration
}

// multipart is one run of an upload: what planned uploads and streams have in common. It begins the
// multipart upload, sends parts, completes it and cleans up; which parts there are is its user's
// business.
type multipart struct {
	order
	c   *Client
	id  string   // of the upload
	lim *limiter // nil: one part at a time

	stats stats
	wire  atomic.Int64

	mu         sync.Mutex
	open       map[string]string // unfinished uploads: key -> upload id
	helpers    []string          // keys of objects that must not stay
	completing bool              // the object may exist
	done       []partDone        // by part number - 1
	event      UploadEvent
	reported   int64 // wire bytes at the last report
}

func (c *Client) newMultipart(o order) (*multipart, error) {
	if err := c.checkTarget(o.bucket, o.key, o.user); err != nil {
		return nil, err
	}
	bad := func(format string, a ...any) error {
		return &Error{Op: "upload", Bucket: o.bucket, Key: o.key, Kind: KindInvalid, Message: fmt.Sprintf(format, a...)}
	}
	if o.runID == "" {
		o.runID = newRunID()
	}
	if !validRunID(o.runID) {
		return nil, bad("run id %q: a-z, 0-9 and hyphens are allowed, up to 64", o.runID)
	}
	if _, taken := o.user[RunIDMetadata]; taken {
		return nil, bad("metadata %q is set by the upload itself", RunIDMetadata)
	}
	setDefault(&o.cleanupTimeout, DefaultCleanupTimeout)
	return &multipart{order: o, c: c, open: map[string]string{}}, nil
}

func newRunID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func validRunID(s string) bool { return metaName.MatchString(s) && len(s) <= 64 }

// do begins the upload, lets parts bring the parts to the server, makes the object of them, and
// cleans up.
func (m *multipart) do(ctx context.Context, parts func(ctx context.Context) error) (*UploadResult, error) {
	res, err := m.run(ctx, parts)
	left := m.cleanUp(ctx, err != nil)
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = m.c.explain(m.target("upload", m.key), err, nil)
		}
		e.Left = left
		return nil, e
	}
	res.Requests, res.Retries = int(m.stats.requests.Load()), int(m.stats.retries.Load())
	res.Left = left
	return res, nil
}

// run is do without cleaning up.
func (m *multipart) run(ctx context.Context, parts func(ctx context.Context) error) (*UploadResult, error) {
	meta := m.metadata()
	maps.Copy(meta, m.user)
	var err error
	if m.id, err = m.initiate(ctx, m.key, m.contentType, meta); err != nil {
		return nil, err
	}
	if err := parts(ctx); err != nil {
		return nil, err
	}
	return m.finish(ctx)
}

// finish makes the object of the parts and looks at the result.
func (m *multipart) finish(ctx context.Context) (*UploadResult, error) {
	if err := m.agree(ctx); err != nil {
		return nil, err
	}
	if m.beforeComplete != nil {
		if err := m.beforeComplete(ctx); err != nil {
			return nil, &Error{Op: "check source before completing", Bucket: m.bucket, Key: m.key, Kind: KindSource, Err: err}
		}
	}
	m.mu.Lock()
	m.completing = true
	m.mu.Unlock()
	res := &UploadResult{RunID: m.runID, BytesSent: m.wire.Load()}
	for _, d := range m.done {
		res.Size += d.size
		if d.copied {
			res.PartsCopied++
			res.BytesCopied += d.size
		} else {
			res.PartsSent++
		}
	}
	var err error
	if res.ETag, err = m.complete(ctx, m.key, m.id, m.done, res.Size); err != nil {
		return nil, err
	}
	info, err := m.c.stat(ctx, m.target("", m.key))
	if err != nil {
		return nil, err
	}
	if got, told := info.Metadata[RunIDMetadata]; told && got != m.runID {
		return nil, &Error{Op: "check object", Bucket: m.bucket, Key: m.key, Kind: KindConflict,
			Message: "another writer replaced it"}
	}
	if info.Size != res.Size {
		return nil, &Error{Op: "check object", Bucket: m.bucket, Key: m.key, Kind: KindIntegrity,
			Message: fmt.Sprintf("it has %d bytes in the bucket instead of %d", info.Size, res.Size)}
	}
	setDefault(&res.ETag, info.ETag)
	return res, nil
}

// partDone is a part as the server acknowledged it.
type partDone struct {
	offset int64 // in the object
	size   int64
	etag   string
	copied bool
}

// sum is an MD5.
type sum [md5.Size]byte

func (s sum) base64() string { return base64.StdEncoding.EncodeToString(s[:]) }
func (s sum) hex() string    { return hex.EncodeToString(s[:]) }

// send puts a part. body starts it anew for each attempt.
func (m *multipart) send(ctx context.Context, part Part, s sum, body func() io.ReadSeeker) error {
	t := m.target("upload part", m.key)
	t.part, t.offset = part.Number, part.Offset
	t.before = m.slot
	var etag string
	err := m.c.call(ctx, t, func(ctx context.Context) error {
		p := &payload{r: body(), moved: m.moved}
		defer p.release()
		got, err := m.c.core.PutObjectPart(ctx, t.bucket, t.key, m.id, part.Number, p, part.Length,
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
	m.finished(part, partDone{etag: etag})
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
func (m *multipart) slot(ctx context.Context) (func(*Error), error) {
	if m.lim == nil { // the probe goes alone
		return func(*Error) {}, nil
	}
	ticket, err := m.lim.acquire(ctx)
	if err != nil {
		return nil, err
	}
	return func(e *Error) {
		switch {
		case e == nil:
			m.lim.release(ticket, outcomeGood)
		case e.throttled():
			m.lim.release(ticket, outcomeThrottled)
		default:
			m.lim.release(ticket, outcomeOther)
		}
	}, nil
}

// initiateGrace is how long the answer to a begun upload is waited for after ctx has ended.
const initiateGrace = time.Second

// initiate begins a multipart upload and notes it for cleaning up. When ctx ends while the request is
// out, the answer is still waited for a moment: an upload whose id nobody knows stays in the bucket.
func (m *multipart) initiate(ctx context.Context, key, contentType string, meta map[string]string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", m.c.explain(m.target("begin upload", key), err, nil)
	}
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(initiateGrace, cancel) })()
	var id string
	err := m.c.call(late, m.target("begin upload", key), func(ctx context.Context) error {
		var err error
		id, err = m.c.core.NewMultipartUpload(ctx, m.bucket, key, objectOptions(contentType, meta))
		if err == nil && id == "" {
			err = &Error{Kind: KindTransient, Code: "NoUploadId", Message: "the answer has no upload id"}
		}
		return err
	})
	if err != nil {
		return "", err
	}
	m.mu.Lock()
	m.open[key] = id
	m.mu.Unlock()
	return id, ctx.Err()
}

// agree compares the server's list of parts with ours. A list may lag behind, so a difference must
// last to count.
func (m *multipart) agree(ctx context.Context) error {
	for n := 1; ; n++ {
		e, err := m.compareParts(ctx)
		if err != nil {
			return err
		}
		if e == nil {
			return nil
		}
		e.Attempts = n
		if n >= m.c.o.MaxAttempts {
			return e
		}
		m.stats.retries.Add(1)
		if err := m.c.backoff(ctx, n, e); err != nil {
			return m.c.explain(m.target("list parts", m.key), err, nil)
		}
	}
}

// compareParts returns the first difference, or an error when the list could not be had.
func (m *multipart) compareParts(ctx context.Context) (*Error, error) {
	differ := func(number int, format string, a ...any) *Error {
		e := &Error{Op: "compare part list", Bucket: m.bucket, Key: m.key, Part: number, Kind: KindIntegrity,
			Message: fmt.Sprintf(format, a...)}
		if number >= 1 && number <= len(m.done) {
			e.Offset = m.done[number-1].offset
		}
		return e
	}
	seen, marker := 0, 0
	for {
		var page minio.ListObjectPartsResult
		err := m.c.call(ctx, m.target("list parts", m.key), func(ctx context.Context) error {
			var err error
			page, err = m.c.core.ListObjectParts(ctx, m.bucket, m.key, m.id, marker, listPage)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, p := range page.ObjectParts {
			if p.PartNumber != seen+1 {
				return differ(seen+1, "the server lists part %d in its place", p.PartNumber), nil
			}
			if p.PartNumber > len(m.done) {
				return differ(p.PartNumber, "the server lists a part that was never sent"), nil
			}
			want := m.done[seen]
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
	if seen != len(m.done) {
		return differ(seen+1, "the server lists %d of %d parts", seen, len(m.done)), nil
	}
	return nil, nil
}

// complete turns the parts into the object. When it is not clear whether that worked, because the
// answer is lost or the upload is gone, the object itself is asked.
func (m *multipart) complete(ctx context.Context, key, id string, parts []partDone, size int64) (string, error) {
	list := make([]minio.CompletePart, len(parts))
	for i, p := range parts {
		list[i] = minio.CompletePart{PartNumber: i + 1, ETag: p.etag}
	}
	t := m.target("complete upload", key)
	t.idleFactor = serverWork
	t.attempts = 1
	refreshed := false
	for n := 1; ; n++ {
		var etag string
		err := m.c.call(ctx, t, func(ctx context.Context) error {
			info, err := m.c.core.CompleteMultipartUpload(ctx, t.bucket, key, id, list, minio.PutObjectOptions{})
			etag = info.ETag
			return err
		})
		if err == nil {
			m.closed(key)
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
			info, serr := m.c.stat(ctx, m.target("", key))
			if serr == nil && info.Size == size && info.Metadata[RunIDMetadata] == m.runID {
				m.closed(key)
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
		if n >= m.c.o.MaxAttempts {
			return "", e
		}
		m.stats.retries.Add(1)
		if err := m.c.backoff(ctx, n, e); err != nil {
			return "", m.c.explain(t, err, nil)
		}
	}
}

func (m *multipart) closed(key string) {
	m.mu.Lock()
	delete(m.open, key)
	m.mu.Unlock()
}

// cleanUp removes the zero objects and, after a failure, the unfinished uploads and an object of
// ours that must not be taken for a whole one. It returns what it could not remove.
func (m *multipart) cleanUp(ctx context.Context, failed bool) []string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cleanupTimeout)
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
		t := m.target("", key)
		t.attempts = min(m.c.o.MaxAttempts, 5)
		return t
	}
	// The workers are gone: nobody changes these any more.
	for key, id := range m.open {
		remove("upload "+id+" of "+key, func() error { return m.abort(ctx, short(key), id) })
	}
	wg.Wait() // an upload being completed may bring a zero object back
	for _, key := range m.helpers {
		remove(key, func() error { return m.c.remove(ctx, short(key)) })
	}
	if failed && m.completing {
		remove(m.key, func() error {
			info, err := m.c.stat(ctx, short(m.key))
			if KindOf(err) == KindNotFound {
				return nil
			}
			if err != nil || info.Metadata[RunIDMetadata] != m.runID {
				return err
			}
			return m.c.remove(ctx, short(m.key))
		})
	}
	wg.Wait()
	slices.Sort(left)
	return left
}

func (m *multipart) abort(ctx context.Context, t target, id string) error {
	t.op = "abort upload"
	err := m.c.call(ctx, t, func(ctx context.Context) error {
		return m.c.core.AbortMultipartUpload(ctx, t.bucket, t.key, id)
	})
	if KindOf(err) == KindNotFound {
		return nil
	}
	return err
}

func (m *multipart) target(op, key string) target {
	return target{op: op, bucket: m.bucket, key: key, stats: &m.stats}
}

func (m *multipart) metadata() map[string]string {
	return map[string]string{RunIDMetadata: m.runID}
}

// moved counts bytes of bodies as they leave.
func (m *multipart) moved(n int) {
	total := m.wire.Add(int64(n))
	if m.progress == nil {
		return
	}
	m.mu.Lock()
	due := total-m.reported >= progressBytes
	if due {
		m.reported = total
	}
	m.mu.Unlock()
	if due {
		m.report(nil)
	}
}

func (m *multipart) finished(part Part, d partDone) {
	d.offset, d.size = part.Offset, part.Length
	m.mu.Lock()
	for len(m.done) < part.Number {
		m.done = append(m.done, partDone{})
	}
	m.done[part.Number-1] = d
	m.mu.Unlock()
	m.report(func(ev *UploadEvent) {
		ev.Done += d.size
		ev.Parts++
		if d.copied {
			ev.Copied += d.size
		} else {
			ev.Sent += d.size
		}
	})
}

func (m *multipart) report(change func(*UploadEvent)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if change != nil {
		change(&m.event)
	}
	m.event.Wire = m.wire.Load()
	m.event.Retries = int(m.stats.retries.Load())
	if m.progress != nil {
		m.progress(m.event)
	}
	m.event.Note = ""
}
