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
	"strings"
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
	resume         *State
	resumable      bool
	checkpoint     func(Delta)
	ownKey         bool // nobody else uploads to key
}

// multipart is one run of an upload: what planned uploads and streams have in common. It begins the
// multipart upload, sends parts, completes it and cleans up; which parts there are is its user's
// business.
type multipart struct {
	order
	c   *Client
	id  string // of the upload
	lim *limiter
	// fits tells whether a remembered upload is cut as this one.
	fits func(*State) bool
	// there are the parts that the server had when the upload was taken up again.
	there map[int]remote
	// encrypted is set when the server said that it encrypts, so that ETags are no MD5s.
	encrypted bool
	// startedAnew says why what was remembered was of no use.
	startedAnew string
	// begins are those of m's own upload that may have left another one.
	begins lostBegins

	stats stats
	wire  atomic.Int64
	told  atomic.Bool // of an outage

	remembering sync.Mutex // held while the caller's journal is told

	mu         sync.Mutex
	open       map[string]string // unfinished uploads: key -> upload id
	helpers    []string          // keys of objects that must not stay
	sweep      []string          // unfinished uploads of keys that begin so must not stay either
	sweepUp    string            // nor objects of keys that begin so; "" for none
	left       []string          // what could not be removed
	kept       bool              // the caller's journal knows the upload id
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
	failed := err != nil && !(m.resumable && m.kept && resumable(err))
	left := m.cleanUp(ctx, failed)
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = m.c.explain(m.target("upload", m.key), err, nil)
		}
		e.Left = left
		if !failed {
			e.Kept = m.id
		}
		return nil, e
	}
	res.StartedAnew = m.startedAnew
	res.Concurrency = m.lim.result()
	res.Requests, res.Retries = int(m.stats.requests.Load()), int(m.stats.retries.Load())
	res.Left = left
	return res, nil
}

// run is do without cleaning up.
func (m *multipart) run(ctx context.Context, parts func(ctx context.Context) error) (*UploadResult, error) {
	taken := false
	if m.resume != nil {
		var res *UploadResult
		var err error
		if taken, res, err = m.takeUp(ctx); res != nil || err != nil {
			return res, err
		}
	}
	if !taken {
		meta := m.metadata()
		maps.Copy(meta, m.user)
		var err error
		if m.id, err = m.initiate(ctx, m.key, m.contentType, meta); err != nil {
			return nil, err
		}
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
		res.BytesReused += d.reused
		switch {
		case d.resumed:
			res.PartsResumed++
			res.BytesResumed += d.size
		case d.composed:
			res.PartsComposed++
			res.BytesCopied += d.size - d.sent
		case d.copied:
			res.PartsCopied++
			res.BytesCopied += d.size
		default:
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
	sent   int64 // bytes of it that were sent
	copied bool  // the rest was copied
	reused int64 // of what was copied, bytes from an earlier object
	// composed means that it was made of pieces.
	composed bool
	// resumed means that the server had it from an earlier run.
	resumed bool
	note    []byte // the caller's own
}

// sum is an MD5.
type sum [md5.Size]byte

func (s sum) base64() string { return base64.StdEncoding.EncodeToString(s[:]) }
func (s sum) hex() string    { return hex.EncodeToString(s[:]) }

// send puts a part, unless the server has it already. body starts it anew for each attempt.
func (m *multipart) send(ctx context.Context, part Part, s sum, body func() io.ReadSeeker) (partDone, error) {
	if d, ok := m.isThere(part, func() sum { return s }); ok {
		return d, nil
	}
	etag, err := m.put(ctx, part, partAddress{m.key, m.id, part.Number}, s, body)
	return partDone{etag: etag, sent: part.Length}, err
}

// put puts a part or a piece of one where it belongs, and returns its ETag.
func (m *multipart) put(ctx context.Context, part Part, to partAddress, s sum, body func() io.ReadSeeker) (string, error) {
	t := m.target("upload part", to.key)
	t.part, t.offset = to.number, part.Offset
	t.before = m.slot
	var etag string
	err := m.c.call(ctx, t, func(ctx context.Context) (err error) {
		sent := int64(0)
		p := &payload{r: body(), moved: func(n int) {
			sent += int64(n)
			m.moved(n)
		}}
		defer func() {
			if p.release(); err != nil {
				m.lim.moved(-sent)
			}
		}()
		got, err := m.c.core.PutObjectPart(ctx, t.bucket, t.key, to.id, to.number, p, part.Length,
			minio.PutObjectPartOptions{Md5Base64: s.base64(), DisableContentSha256: true})
		if err != nil {
			return err
		}
		etag = got.ETag
		if etag == "" {
			return &Error{Kind: KindTransient, Code: "PartWithoutETag", Message: "the answer has no ETag"}
		}
		return m.checkETag(ctx, etag, s)
	})
	return etag, err
}

// checkETag holds the ETag of a part against the MD5 of what should be in it.
func (m *multipart) checkETag(ctx context.Context, etag string, want sum) error {
	if etag == want.hex() || m.encrypted || opaqueETag(ctx, etag) {
		return nil
	}
	return &Error{Kind: KindTransient, Code: "BadDigest",
		Message: fmt.Sprintf("the server stored something else: ETag %s instead of %s", etag, want.hex())}
}

// opaqueETag tells whether a part's ETag need not be the MD5 of its data: it doesn't look like one,
// or the server encrypts.
func opaqueETag(ctx context.Context, etag string) bool {
	if _, err := hex.DecodeString(etag); err != nil || len(etag) != 2*md5.Size {
		return true
	}
	return encrypts(ctx)
}

// encrypts tells whether the answer to this attempt said that the server encrypts.
func encrypts(ctx context.Context) bool {
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

// settleGrace is how long the answer to a request that leaves something in the bucket is waited for
// after ctx has ended.
const settleGrace = 500 * time.Millisecond

// settling is a context for such a request: it outlives ctx by settleGrace. What is given up while the
// server still works on it appears after it was removed, or under an id that nobody knows.
func settling(ctx context.Context) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(settleGrace, cancel) })
	return late, func() {
		stop()
		cancel()
	}
}

// initiate begins a multipart upload and notes it for cleaning up.
func (m *multipart) initiate(ctx context.Context, key, contentType string, meta map[string]string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", m.c.explain(m.target("begin upload", key), err, nil)
	}
	late, cancel := settling(ctx)
	defer cancel()
	var id string
	from := time.Now()
	t := m.target("begin upload", key)
	t.before = func(context.Context) (func(*Error), error) {
		return func(e *Error) {
			switch {
			case e == nil || !e.lost():
			case key == m.key:
				m.begins = lostBegins{m.begins.n + 1, from, time.Now()}
			default:
				m.mu.Lock()
				m.sweep = append(m.sweep, key)
				m.mu.Unlock()
			}
		}, nil
	}
	err := m.c.call(late, t, func(ctx context.Context) error {
		var err error
		id, err = m.c.core.NewMultipartUpload(ctx, m.bucket, key, objectOptions(contentType, meta))
		if err == nil && id == "" {
			err = &Error{Kind: KindTransient, Code: "NoUploadId", Message: "the answer has no upload id"}
		}
		if err == nil && key == m.key {
			m.encrypted = encrypts(ctx)
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
	seen := 0
	for p, err := range m.listParts(ctx, m.id) {
		var e *Error
		switch {
		case errors.As(err, &e) && e.Kind == KindIntegrity:
			return e, nil
		case err != nil:
			return nil, err
		}
		if _, old := m.there[p.PartNumber]; old && p.PartNumber > len(m.done) {
			continue // what is not listed when completing is thrown away
		}
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
	t.attempts, t.outage = 1, 0 // they are counted here
	p := patience{attempts: m.c.o.MaxAttempts, outage: m.c.o.Outage}
	var keys refresh
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
		if bodyDamaged(e.Code) {
			e.Kind = KindTransient
		}
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
		case keys.again(e):
		default:
			return "", e
		}
		if p.ended(n, e, time.Now()) {
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

// cleanUp removes the zero objects and, after a failure for good, the unfinished upload and an object
// of ours that must not be taken for a whole one. It returns what it could not remove.
func (m *multipart) cleanUp(ctx context.Context, failed bool) []string {
	limit := m.cleanupTimeout
	if ctx.Err() == nil {
		// Nobody waits for the program to end: a slow line gets its time.
		limit = max(limit, DefaultCleanupTimeout)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	// The workers are gone: nobody changes these any more.
	var drop []UploadInfo
	for key, id := range m.open {
		if failed || key != m.key {
			drop = append(drop, UploadInfo{Key: key, ID: id})
		}
	}
	left := append(m.left, m.clear(ctx, drop, m.helpers, m.sweep, m.sweepUp)...)
	if m.begins.n > 0 {
		left = append(left, m.orphans(ctx)...)
	}
	if failed && m.completing {
		info, err := m.c.stat(ctx, m.brief(m.key))
		if err == nil && info.Metadata[RunIDMetadata] == m.runID {
			err = m.c.remove(ctx, m.brief(m.key))
		}
		if err != nil && KindOf(err) != KindNotFound {
			left = append(left, m.key)
		}
	}
	slices.Sort(left)
	return left
}

// clear removes unfinished uploads and objects, all unfinished uploads of keys that begin with one of
// sweep, and if sweepUp is not empty, all objects of keys that begin with it. It returns what it could
// not remove.
func (m *multipart) clear(ctx context.Context, drop []UploadInfo, keys, sweep []string, sweepUp string) []string {
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
	// What an earlier run left that had no time to clean up. Listing takes a right of its own; without it
	// these wait for being found by someone who has it.
	unlisted := func(err error, what string) {
		if k := KindOf(err); err != nil && (k == KindTransient || k == KindCanceled) {
			left = append(left, what)
		}
	}
	for _, prefix := range sweep {
		found, err := m.c.listUploads(ctx, m.brief(prefix))
		unlisted(err, "uploads of "+prefix+"*")
		drop = append(drop, found...)
	}
	slices.SortFunc(drop, func(a, b UploadInfo) int { return strings.Compare(a.Key+" "+a.ID, b.Key+" "+b.ID) })
	for _, d := range slices.CompactFunc(drop, func(a, b UploadInfo) bool { return a.Key == b.Key && a.ID == b.ID }) {
		remove("upload "+d.ID+" of "+d.Key, func() error { return m.c.abort(ctx, m.brief(d.Key), d.ID) })
	}
	wg.Wait() // an upload being completed may bring a zero object back
	if sweepUp != "" {
		for o, err := range m.c.ListObjects(ctx, m.bucket, sweepUp) {
			if err != nil {
				unlisted(err, "objects of "+sweepUp+"*")
				break
			}
			keys = append(keys, o.Key)
		}
	}
	slices.Sort(keys)
	for _, key := range slices.Compact(keys) {
		remove(key, func() error { return m.c.remove(ctx, m.brief(key)) })
	}
	wg.Wait()
	return left
}

// brief is the target of cleaning up, which is tried less often.
func (m *multipart) brief(key string) target {
	t := m.target("", key)
	t.attempts, t.outage = min(m.c.o.MaxAttempts, 5), 0
	return t
}

func (m *multipart) target(op, key string) target {
	return target{op: op, bucket: m.bucket, key: key, stats: &m.stats, outage: m.c.o.Outage, silence: m.silence}
}

func (m *multipart) metadata() map[string]string {
	return map[string]string{RunIDMetadata: m.runID}
}

// moved counts bytes of bodies as they leave.
func (m *multipart) moved(n int) {
	total := m.wire.Add(int64(n))
	m.lim.moved(int64(n))
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

// finished notes a part that the server acknowledged, and tells the caller's journal.
func (m *multipart) finished(part Part, d partDone) {
	d.offset, d.size = part.Offset, part.Length
	m.record(part.Number, d)
	m.remember(Delta{Part: &PartState{Number: part.Number, Offset: d.offset, Size: d.size, ETag: d.etag,
		Copied: d.copied, Note: d.note}})
}

func (m *multipart) record(number int, d partDone) {
	m.mu.Lock()
	for len(m.done) < number {
		m.done = append(m.done, partDone{})
	}
	m.done[number-1] = d
	m.mu.Unlock()
	m.told.Store(false)
	m.report(func(ev *UploadEvent) {
		ev.Done += d.size
		ev.Parts++
		switch {
		case d.resumed:
			ev.Resumed += d.size
		case d.copied:
			ev.Sent += d.sent
			ev.Copied += d.size - d.sent
		default:
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
