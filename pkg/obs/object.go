// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// ObjectReader reads an object as it was when it was looked at: when it is replaced meanwhile, reading
// fails with KindConflict instead of mixing two objects. It is safe for concurrent use.
type ObjectReader struct {
	c           *Client
	bucket, key string
	info        ObjectInfo
	lim         *limiter // nil for none
}

// Object looks at an object in order to read it.
func (c *Client) Object(ctx context.Context, bucket, key string) (*ObjectReader, error) {
	info, err := c.Stat(ctx, bucket, key)
	if err != nil {
		return nil, err
	}
	if info.ETag == "" {
		return nil, &Error{Op: "look at object", Bucket: bucket, Key: key, Kind: KindUnsupported,
			Message: "the server tells no ETag, so that a replaced object could not be told from this one"}
	}
	return &ObjectReader{c: c, bucket: bucket, key: key, info: info}, nil
}

// Adapt has up to high reads under way at the same time, and at least low, by what the line carries; more wait.
// 0 are 1 and DefaultWorkers. It is called before the first read.
func (r *ObjectReader) Adapt(low, high int) error {
	if err := checkWorkers(&low, &high); err != nil {
		return &Error{Op: "read object", Bucket: r.bucket, Key: r.key, Kind: KindInvalid, Message: err.Error()}
	}
	high = min(high, MaxStreams(r.c.o.LimitRate))
	r.lim = newLimiter(r.c.now, low, high, high)
	return nil
}

// Concurrency tells how many reads were under way at the same time, if Adapt was called.
func (r *ObjectReader) Concurrency() ConcurrencyResult { return r.lim.result() }

// Info returns what the server told of the object.
func (r *ObjectReader) Info() ObjectInfo { return r.info }

// Size returns the object's length in bytes.
func (r *ObjectReader) Size() int64 { return r.info.Size }

// ReadAt fills p from off on, as io.ReaderAt does: it returns io.EOF when the object ends before p is
// full. It sends one request, and more if answers break off. Other errors are *Error.
func (r *ObjectReader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &Error{Op: "read object", Bucket: r.bucket, Key: r.key, Kind: KindInvalid,
			Message: fmt.Sprintf("offset %d", off)}
	}
	if off >= r.info.Size {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > r.info.Size-off {
		p, end = p[:r.info.Size-off], io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	rr := r.c.rangeOf(ctx, r.bucket, r.key, off, int64(len(p)))
	rr.etag = r.info.ETag
	rr.t.outage, rr.patience.outage = r.c.o.Outage, r.c.o.Outage
	defer rr.Close()
	n, err := r.read(ctx, rr, p)
	if err != nil {
		return n, err
	}
	return n, end
}

// read fills p when it is its turn.
func (r *ObjectReader) read(ctx context.Context, rr *rangeReader, p []byte) (int, error) {
	if r.lim == nil {
		return io.ReadFull(rr, p)
	}
	ticket, err := r.lim.enter(ctx)
	if err != nil {
		return 0, r.c.explain(rr.t, err, nil)
	}
	rr.t.before = func(context.Context) (func(*Error), error) {
		return func(e *Error) {
			if e != nil && e.throttled() {
				r.lim.slow(ticket)
			}
		}, nil
	}
	n, err := io.ReadFull(countedReader{rr, r.lim}, p)
	r.lim.leave(ticket, err == nil)
	return n, err
}

// countedReader tells a limiter of the bytes that it reads.
type countedReader struct {
	io.Reader
	lim *limiter
}

func (c countedReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.lim.moved(int64(n))
	return n, err
}

// ReaderAt returns an io.ReaderAt that reads under ctx.
func (r *ObjectReader) ReaderAt(ctx context.Context) io.ReaderAt { return objectReaderAt{r, ctx} }

type objectReaderAt struct {
	r   *ObjectReader
	ctx context.Context
}

func (a objectReaderAt) ReadAt(p []byte, off int64) (int, error) { return a.r.ReadAt(a.ctx, p, off) }

// GetRange opens n bytes of an object from off on. The caller closes the reader. When the answer
// breaks off or stalls, the rest is asked for again, of the same object: when it was replaced
// meanwhile, reading fails with KindConflict. A range that ends beyond the object's end fails.
func (c *Client) GetRange(ctx context.Context, bucket, key string, off, n int64) (io.ReadCloser, error) {
	r := c.rangeOf(ctx, bucket, key, off, n)
	if off < 0 || n <= 0 {
		_ = r.Close()
		return nil, &Error{Op: r.t.op, Bucket: bucket, Key: key, Kind: KindInvalid,
			Message: fmt.Sprintf("range of %d bytes at %d", n, off)}
	}
	if err := r.open(); err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
}

// MaxCopySize is the length in bytes of the longest object that is copied in one request: 5 GB in OBS's
// documentation, of which the smaller reading is safe.
const MaxCopySize = 5_000_000_000

// AddMetadata adds user metadata to the object with that ETag, and returns the ETag that it has afterwards.
// Metadata can't be changed, so the server copies the object onto itself; its other metadata, its type
// and the class STANDARD stay. KindUnsupported: it is longer than MaxCopySize. KindConflict: it is another
// object by now.
func (c *Client) AddMetadata(ctx context.Context, bucket, key, etag string, add map[string]string) (string, error) {
	if err := c.checkTarget(bucket, key, add); err != nil {
		return "", err
	}
	t := target{op: "add metadata to object", bucket: bucket, key: key, idleFactor: serverWork}
	fail := func(kind Kind, format string, a ...any) error {
		return &Error{Op: t.op, Bucket: bucket, Key: key, Kind: kind, Message: fmt.Sprintf(format, a...)}
	}
	before, err := c.Stat(ctx, bucket, key)
	if err != nil {
		return "", err
	}
	switch {
	case etag == "" || before.ETag != etag:
		return "", fail(KindConflict, "the object was replaced")
	case before.Size > MaxCopySize:
		return "", fail(KindUnsupported, "it has %d bytes; up to %d can be copied at once", before.Size, int64(MaxCopySize))
	}
	headers := map[string]string{
		"x-amz-metadata-directive":   "REPLACE",
		"x-amz-copy-source-if-match": etag,
		"x-amz-storage-class":        "STANDARD",
	}
	for _, meta := range []map[string]string{before.Metadata, add} {
		for k, v := range meta {
			headers["x-amz-meta-"+k] = v
		}
	}
	err = c.call(ctx, t, func(ctx context.Context) error {
		h, err := c.head(ctx, bucket, key)
		if err != nil {
			return err
		}
		if ct := h.Get("Content-Type"); ct != "" {
			headers["Content-Type"] = ct
		}
		info, err := c.core.CopyObject(ctx, bucket, key, bucket, key, headers, minio.CopySrcOptions{}, minio.PutObjectOptions{})
		if err == nil && info.ETag == "" {
			// As with parts: 200 is only the beginning.
			return &Error{Kind: KindTransient, Code: "CopyWithoutETag", Message: "the server began to copy and failed"}
		}
		return err
	})
	// Whatever the answer was, the object itself tells: an answer may have been lost, and the second try
	// then finds another ETag.
	after, serr := c.Stat(ctx, bucket, key)
	if serr != nil {
		if err == nil {
			err = serr
		}
		return "", err
	}
	for k, v := range add {
		if after.Metadata[k] != v {
			if err == nil {
				err = fail(KindUnsupported, "the server copied the object, but not with the new metadata")
			}
			return "", err
		}
	}
	for k, v := range before.Metadata {
		if _, replaced := add[k]; !replaced && after.Metadata[k] != v {
			return "", fail(KindIntegrity, "the object has lost its metadata %q", k)
		}
	}
	if after.Size != before.Size {
		return "", fail(KindIntegrity, "the object has %d bytes after copying, and %d before", after.Size, before.Size)
	}
	return after.ETag, nil
}

// rangeReader reads a range of an object, over as many answers as it takes.
type rangeReader struct {
	c         *Client
	t         target
	ctx       context.Context
	cancel    context.CancelFunc
	etag      string // of the object, "" until known
	off, left int64
	body      io.ReadCloser      // nil when none is open
	drop      context.CancelFunc // ends the request of body
	failed    int                // answers in a row that brought nothing
	patience  patience
	err       error
}

func (c *Client) rangeOf(ctx context.Context, bucket, key string, off, n int64) *rangeReader {
	ctx, cancel := context.WithCancel(ctx)
	return &rangeReader{c: c, t: target{op: "read object", bucket: bucket, key: key}, ctx: ctx, cancel: cancel, off: off, left: n,
		patience: patience{attempts: c.o.MaxAttempts}}
}

// open asks for what is left.
func (r *rangeReader) open() error {
	return r.c.call(r.ctx, r.t, func(actx context.Context) error {
		var o minio.GetObjectOptions
		if err := o.SetRange(r.off, r.off+r.left-1); err != nil {
			return err
		}
		if r.etag != "" {
			if err := o.SetMatchETag(r.etag); err != nil {
				return err
			}
		}
		// The body outlives the attempt that opened it, so it must not hang on the attempt's context.
		ctx, drop := context.WithCancel(context.WithValue(r.ctx, exchangeKey{}, actx.Value(exchangeKey{})))
		rc, _, h, err := r.c.core.GetObject(ctx, r.t.bucket, r.t.key, o)
		if err != nil {
			drop()
			return err
		}
		if err := r.check(h); err != nil {
			drop()
			_ = rc.Close()
			return err
		}
		r.body, r.drop, r.etag = rc, drop, trimETag(h.Get("ETag"))
		return nil
	})
}

func (r *rangeReader) check(h http.Header) error {
	if got := h.Get("Content-Range"); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", r.off)) {
		return fmt.Errorf("the server did not answer with the range asked for, but with %q", got)
	}
	if got := trimETag(h.Get("ETag")); r.etag != "" && got != r.etag {
		return &Error{Kind: KindConflict, Message: "the object was replaced while it was read"}
	}
	return nil
}

// Read implements io.Reader.
func (r *rangeReader) Read(p []byte) (int, error) {
	for r.err == nil && len(p) > 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		if r.body == nil {
			if r.err = r.open(); r.err != nil {
				break
			}
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.left)])
		r.off += int64(n)
		r.left -= int64(n)
		if err != nil {
			r.closeBody()
		}
		if n > 0 {
			r.failed = 0
			return n, nil
		}
		if err != nil {
			r.err = r.again(err)
		}
	}
	return 0, r.err
}

// again waits before the rest is asked for once more, and returns an error when that is no use.
func (r *rangeReader) again(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if cerr := r.ctx.Err(); cerr != nil {
		err = cerr
	}
	r.failed++
	e := r.c.explain(r.t, err, nil)
	e.Attempts = r.failed
	if e.Kind != KindTransient || r.patience.ended(r.failed, e, time.Now()) {
		return e
	}
	if err := r.c.backoff(r.ctx, r.failed, e); err != nil {
		return r.c.explain(r.t, err, nil)
	}
	return nil
}

func (r *rangeReader) closeBody() {
	if r.body != nil {
		// Canceled first: closing would otherwise read the rest of the range.
		r.drop()
		_ = r.body.Close()
		r.body = nil
	}
}

// Close implements io.Closer.
func (r *rangeReader) Close() error {
	r.closeBody()
	r.cancel()
	return nil
}
