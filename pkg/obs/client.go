// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/signer"
)

// Defaults of Options.
const (
	DefaultIdleTimeout = 60 * time.Second
	DefaultMaxAttempts = 8
	DefaultBackoffBase = 500 * time.Millisecond
	DefaultBackoffCap  = 30 * time.Second
)

// serverWork multiplies the idle limit of requests during which the server is silent because it
// works: copying a part and completing an upload.
const serverWork = 5

// Addressing is where requests name the bucket.
type Addressing string

const (
	AddressingAuto    Addressing = "auto"    // in the path if the endpoint is an IP address or localhost, else in the host's name
	AddressingVirtual Addressing = "virtual" // in the host's name, as OBS and AWS want it
	AddressingPath    Addressing = "path"    // in the path, as a store without names of its own needs it
)

// Addressings lists them.
func Addressings() []Addressing {
	return []Addressing{AddressingAuto, AddressingVirtual, AddressingPath}
}

// inPath tells whether requests to a host name the bucket in the path.
func (a Addressing) inPath(host string) bool {
	if a == AddressingAuto || a == "" {
		return pathStyle(host)
	}
	return a == AddressingPath
}

// Options say where the store is and how to treat it.
type Options struct {
	// Endpoint is the store's host[:port], or a URL of scheme and host only. Without a scheme it is
	// https.
	Endpoint string
	// Addressing is where requests name the bucket; "" is AddressingAuto.
	Addressing Addressing
	// Region is the region's id as signatures need it, for example cn-north-4.
	Region string
	// Credentials are asked for at every request.
	Credentials CredentialsFunc
	// Refused, if not nil, is told of keys that the store did not accept although they may have been good
	// once: expired, or replaced. The next call of Credentials should bring others if there are any; the
	// request is repeated once then.
	Refused func(Credentials)
	// Transport carries the requests; nil is a transport of the client's own, tuned for parallel
	// parts, with TLS 1.2 or newer.
	Transport http.RoundTripper
	// Proxy chooses the proxy of a request when Transport is nil; nil is none.
	// http.ProxyFromEnvironment fits.
	Proxy func(*http.Request) (*url.URL, error)
	// Logger, if not nil, is told of every attempt of a request (debug) and of every wait before another one (warn).
	Logger *slog.Logger
	// OnRetry, if not nil, is told before every wait for a repetition; it may be called concurrently.
	OnRetry func(RetryEvent)
	// UserAgent is added to the User-Agent header, as name/version.
	UserAgent string
	// IdleTimeout is how long an attempt may go without moving a byte. 0 is DefaultIdleTimeout.
	// Copying a part and completing an upload get five times as long.
	IdleTimeout time.Duration
	// LimitRate is how many bytes a second bodies have at most, those of all requests and answers together,
	// repeated ones too. 0 is any number, MinLimitRate the least. Waiting for one's turn is not idleness.
	LimitRate int64
	// MaxAttempts is how often a request is tried in all. 0 is DefaultMaxAttempts.
	MaxAttempts int
	// Outage is how long parts and all else of an upload that has begun, and the rest of an object that is being
	// read, are asked for when no answer comes at all, beyond MaxAttempts: a line that is down comes back. 0 is
	// not at all.
	Outage time.Duration
	// BackoffBase and BackoffCap shape the wait before attempt n+1: evenly distributed from 0 to
	// min(BackoffCap, BackoffBase × 2^(n-1)). 0 is the default of each.
	BackoffBase, BackoffCap time.Duration
}

// RetryEvent describes a repetition that is about to be waited for.
type RetryEvent struct {
	Attempt int // the attempt that failed, from 1
	Delay   time.Duration
	Err     *Error
}

// Client talks to one store. It is safe for concurrent use.
type Client struct {
	core     *minio.Core
	http     *http.Client
	meter    *meter
	endpoint *url.URL
	path     bool // path style
	o        Options

	// given are the keys of the latest requests: to know which were refused, and to keep them out of error
	// texts.
	given keyring

	newBuffer func(n int64) []byte
	now       func() time.Time
	log       *slog.Logger
}

// New makes a client. It sends nothing.
func New(o Options) (*Client, error) {
	bad := func(format string, a ...any) error {
		return &Error{Op: "set up object store client", Kind: KindInvalid, Message: fmt.Sprintf(format, a...)}
	}
	u, err := parseEndpoint(o.Endpoint)
	if err != nil {
		return nil, bad("%v", err)
	}
	if o.Region == "" || strings.ContainsAny(o.Region, " /\r\n\t") {
		return nil, bad("region %q: a region's id is needed", o.Region)
	}
	if o.Credentials == nil {
		return nil, bad("no credentials")
	}
	if o.Addressing != "" && !slices.Contains(Addressings(), o.Addressing) {
		return nil, bad("addressing %q: it is auto, virtual or path", o.Addressing)
	}
	if o.IdleTimeout < 0 || o.MaxAttempts < 0 || o.Outage < 0 || o.BackoffBase < 0 || o.BackoffCap < 0 {
		return nil, bad("a limit is negative")
	}
	setDefault(&o.IdleTimeout, DefaultIdleTimeout)
	setDefault(&o.MaxAttempts, DefaultMaxAttempts)
	setDefault(&o.BackoffBase, DefaultBackoffBase)
	setDefault(&o.BackoffCap, DefaultBackoffCap)
	limit, err := newThrottle(o.LimitRate)
	if err != nil {
		return nil, bad("%v", err)
	}
	next := o.Transport
	if next == nil {
		next = newTransport(o.Proxy)
	}
	c := &Client{
		endpoint:  u,
		path:      o.Addressing.inPath(u.Hostname()),
		o:         o,
		meter:     &meter{next: next, idle: o.IdleTimeout, limit: limit},
		log:       cmp.Or(o.Logger, slog.New(slog.DiscardHandler)).With(slog.String("service", "obs")),
		newBuffer: func(n int64) []byte { return make([]byte, n) },
		now:       time.Now,
	}
	c.meter.keysOf = c.given.ofRequest
	c.http = &http.Client{
		Transport:     c.meter,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	lookup := minio.BucketLookupDNS
	if c.path {
		lookup = minio.BucketLookupPath
	}
	c.core, err = minio.NewCore(u.Host, &minio.Options{
		Creds:        credentials.New(provider{c}),
		Secure:       u.Scheme == "https",
		Transport:    c.meter,
		Region:       o.Region,
		BucketLookup: lookup,
		// One retry layer, ours: it knows what may be repeated and what slows down.
		MaxRetries: 1,
	})
	if err != nil {
		return nil, bad("%v", err)
	}
	if name, version, ok := strings.Cut(o.UserAgent, "/"); ok {
		c.core.SetAppInfo(name, version)
	} else if o.UserAgent != "" {
		c.core.SetAppInfo(o.UserAgent, "0")
	}
	return c, nil
}

// Close releases idle connections. The client stays usable.
func (c *Client) Close() { c.meter.CloseIdleConnections() }

// Secure tells whether the store is spoken to over TLS.
func (c *Client) Secure() bool { return c.endpoint.Scheme == "https" }

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func parseEndpoint(s string) (*url.URL, error) {
	if s == "" {
		return nil, fmt.Errorf("no endpoint")
	}
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("the endpoint is not a host name or URL")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("endpoint with scheme %q: http or https is needed", u.Scheme)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/") {
		return nil, fmt.Errorf("the endpoint must have a host and a port only")
	}
	if u.Hostname() == "" {
		return nil, fmt.Errorf("the endpoint has no host")
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

func pathStyle(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// provider hands the caller's keys to minio-go. It counts as always expired, so that minio-go asks
// before each request; keeping keys is the CredentialsFunc's business.
type provider struct{ c *Client }

func (p provider) Retrieve() (credentials.Value, error) { return p.RetrieveWithCredContext(nil) }

func (p provider) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	ctx := context.Background()
	if cc != nil && cc.Context != nil {
		ctx = cc.Context
	}
	cr, err := p.c.keys(ctx)
	if err != nil {
		return credentials.Value{}, err
	}
	return credentials.Value{AccessKeyID: cr.AccessKey, SecretAccessKey: cr.SecretKey,
		SessionToken: cr.SecurityToken, SignerType: credentials.SignatureV4}, nil
}

func (provider) IsExpired() bool { return true }

// keysError marks failures to get keys.
type keysError struct{ err error }

func (e *keysError) Error() string { return e.err.Error() }
func (e *keysError) Unwrap() error { return e.err }

func (c *Client) keys(ctx context.Context) (Credentials, error) {
	cr, err := c.o.Credentials(ctx)
	if err != nil {
		return Credentials{}, &keysError{err}
	}
	if cr.AccessKey == "" || cr.SecretKey == "" {
		// minio-go would send the request unsigned.
		return Credentials{}, &keysError{fmt.Errorf("the access key or its secret is missing")}
	}
	c.given.add(cr)
	return cr, nil
}

// target says what a call is about, for its errors.
type target struct {
	op          string
	bucket, key string
	part        int
	offset      int64
	idleFactor  int           // 0 = 1
	attempts    int           // 0 = the client's MaxAttempts
	outage      time.Duration // see Options.Outage
	silence     func(*Error)  // hears of failures during one; may be nil
	stats       *stats
	// before and after bracket every attempt, for the limiter.
	before func(ctx context.Context) (after func(*Error), err error)
}

// stats counts what an upload costs.
type stats struct{ requests, retries atomic.Int64 }

// call runs fn until it succeeds, fails for good or has been tried often enough.
func (c *Client) call(ctx context.Context, t target, fn func(ctx context.Context) error) error {
	attempts := t.attempts
	if attempts == 0 {
		attempts = c.o.MaxAttempts
	}
	var keys refresh
	p := patience{attempts: attempts, outage: t.outage}
	for n := 1; ; n++ {
		e, again := c.attempt(ctx, t, fn)
		if e == nil {
			return nil
		}
		e.Attempts = n
		switch {
		case ctx.Err() != nil || p.ended(n, e, time.Now()):
			return e
		case again:
		case keys.again(e):
		default:
			return e
		}
		if t.stats != nil {
			t.stats.retries.Add(1)
		}
		if n >= attempts && t.silence != nil {
			t.silence(e)
		}
		if err := c.backoff(ctx, n, e); err != nil {
			e = c.explain(t, err, nil)
			e.Attempts = n
			return e
		}
	}
}

// attempt runs fn once. again tells whether the failure is one that may pass.
func (c *Client) attempt(ctx context.Context, t target, fn func(ctx context.Context) error) (e *Error, again bool) {
	var after func(*Error)
	if t.before != nil {
		var err error
		if after, err = t.before(ctx); err != nil {
			return c.explain(t, err, nil), false
		}
	}
	ex := &exchange{}
	if t.idleFactor > 1 {
		ex.idle = time.Duration(t.idleFactor) * c.o.IdleTimeout
	}
	actx, cancel := context.WithCancel(context.WithValue(ctx, exchangeKey{}, ex))
	start := time.Now()
	err := fn(actx)
	cancel()
	took := time.Since(start)
	if t.stats != nil {
		t.stats.requests.Add(int64(ex.sentRequests()))
	}
	if err != nil {
		if cerr := ctx.Err(); cerr != nil {
			err = cerr
		}
		e = c.explain(t, err, ex)
		c.renew(ctx, e, ex)
	}
	if c.log.Enabled(ctx, slog.LevelDebug) {
		about := e
		if about == nil {
			about = &Error{Op: t.op, Bucket: t.bucket, Key: t.key, Part: t.part, Status: ex.answerStatus()}
		}
		c.log.LogAttrs(ctx, slog.LevelDebug, "request", append(about.attrs(), slog.Int("status", about.Status),
			slog.Float64("seconds", took.Seconds()))...)
	}
	if after != nil {
		after(e)
	}
	return e, e != nil && e.Kind == KindTransient
}

// backoff waits with full jitter before attempt n+1, longer if the server said so.
func (c *Client) backoff(ctx context.Context, n int, e *Error) error {
	ceiling := c.o.BackoffCap
	if d := c.o.BackoffBase << min(n-1, 20); d > 0 && d < ceiling {
		ceiling = d
	}
	d := time.Duration(rand.Int64N(int64(ceiling) + 1))
	if e.retryAfter > d {
		d = min(e.retryAfter, c.o.BackoffCap)
	}
	if c.o.OnRetry != nil {
		c.o.OnRetry(RetryEvent{Attempt: n, Delay: d, Err: e})
	}
	c.log.LogAttrs(ctx, slog.LevelWarn, "request is repeated", append(e.attrs(), slog.Int("attempt", n),
		slog.Float64("delay_seconds", d.Seconds()), slog.Any("error", e))...)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// BucketInfo is what the store tells about a bucket; fields it keeps to itself are empty.
type BucketInfo struct {
	Region             string    // region id
	StorageClass       string    // default class of new objects, as told: STANDARD, STANDARD_IA, WARM, ...
	ParallelFileSystem bool      // not an object bucket: unfit for images
	Date               time.Time // the store's clock when it answered; zero when it doesn't tell
}

// CheckBucket asks for a bucket's existence, our access to it, its region and its class.
// KindNotFound: there is none of that name. KindAuth: no right. KindRegion: it lives elsewhere.
func (c *Client) CheckBucket(ctx context.Context, bucket string) (BucketInfo, error) {
	// Fewer attempts than usual: this is the first call of a run, and what fails it is as often a
	// mistyped endpoint as a passing trouble.
	t := target{op: "check bucket", bucket: bucket, attempts: min(c.o.MaxAttempts, 4)}
	if err := ValidateBucket(bucket, c.Secure() && !c.path); err != nil {
		return BucketInfo{}, err
	}
	var info BucketInfo
	err := c.call(ctx, t, func(ctx context.Context) error {
		h, err := c.head(ctx, bucket, "")
		if err != nil {
			return err
		}
		info = BucketInfo{
			Region:             firstHeader(h, "x-amz-bucket-region", "x-obs-bucket-location"),
			StorageClass:       firstHeader(h, "x-default-storage-class", "x-obs-storage-class", "x-amz-storage-class"),
			ParallelFileSystem: strings.EqualFold(h.Get("x-obs-fs-file-interface"), "enabled"),
		}
		info.Date, _ = http.ParseTime(h.Get("Date")) // zero when it can't be read
		return nil
	})
	if e := (*Error)(nil); errors.As(err, &e) && e.Code == "" && (e.Status == http.StatusForbidden || e.Status == http.StatusBadRequest) {
		return info, c.askWhy(ctx, t, e)
	}
	return info, err
}

// askWhy finds out why a HEAD was refused, whose answer has no body to say so: a question that lists
// nothing is refused for the same reason, in words. It needs the right to list unfinished uploads;
// where only that is missing, the first answer stands.
func (c *Client) askWhy(ctx context.Context, t target, first *Error) error {
	t.attempts = 1
	err := c.call(ctx, t, func(ctx context.Context) error {
		_, err := c.core.ListMultipartUploads(ctx, t.bucket, "", "", "", "", 1)
		return err
	})
	if e := (*Error)(nil); errors.As(err, &e) && e.Status == first.Status && e.Code != "" {
		return e
	}
	return first
}

// ObjectInfo describes a stored object.
type ObjectInfo struct {
	Size         int64             // bytes
	ETag         string            // without quotes; opaque for objects of several parts
	StorageClass string            // STANDARD when the store does not tell, as it may
	Metadata     map[string]string // user metadata, lower-case names without x-amz-meta-
}

// Stat asks for an object's size and properties.
func (c *Client) Stat(ctx context.Context, bucket, key string) (ObjectInfo, error) {
	return c.stat(ctx, target{bucket: bucket, key: key})
}

func (c *Client) stat(ctx context.Context, t target) (ObjectInfo, error) {
	t.op = "look at object"
	var info ObjectInfo
	err := c.call(ctx, t, func(ctx context.Context) error {
		h, err := c.head(ctx, t.bucket, t.key)
		if err != nil {
			return err
		}
		info = ObjectInfo{ETag: trimETag(h.Get("ETag")), Metadata: map[string]string{},
			StorageClass: firstHeader(h, "x-amz-storage-class", "x-obs-storage-class")}
		setDefault(&info.StorageClass, "STANDARD")
		if info.Size, err = strconv.ParseInt(h.Get("Content-Length"), 10, 64); err != nil || info.Size < 0 {
			return fmt.Errorf("the answer has no usable Content-Length")
		}
		for k, v := range h {
			if name, ok := strings.CutPrefix(strings.ToLower(k), "x-amz-meta-"); ok {
				info.Metadata[name] = strings.Join(v, ",")
			}
		}
		return nil
	})
	return info, err
}

// head sends a signed HEAD of a bucket (empty key) or an object.
func (c *Client) head(ctx context.Context, bucket, key string) (http.Header, error) {
	resp, err := c.signed(ctx, http.MethodHead, bucket, key, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		// explain takes the rest from the exchange: answers to HEAD have no body.
		return nil, &statusError{resp.StatusCode}
	}
	return resp.Header, nil
}

// signed sends a signed request without a body, about a bucket (empty key) or an object.
func (c *Client) signed(ctx context.Context, method, bucket, key string, query url.Values) (*http.Response, error) {
	u := *c.endpoint
	// Signatures cover the Host header, from which default ports are missing.
	if port := u.Port(); (u.Scheme == "http" && port == "80") || (u.Scheme == "https" && port == "443") {
		u.Host = strings.TrimSuffix(u.Host, ":"+port)
	}
	if c.path {
		u.Path = "/" + bucket + "/" + key
	} else {
		u.Host = bucket + "." + u.Host
		u.Path = "/" + key
	}
	// A plus for a blank is right in forms only.
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	cr, err := c.keys(ctx)
	if err != nil {
		return nil, err
	}
	if c.o.UserAgent != "" {
		req.Header.Set("User-Agent", c.o.UserAgent)
	}
	req.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	req = signer.SignV4(*req, cr.AccessKey, cr.SecretKey, cr.SecurityToken, c.o.Region)
	return c.http.Do(req)
}

// statusError is an answer without a body.
type statusError struct{ status int }

func (e *statusError) Error() string { return http.StatusText(e.status) }

// PutSmall stores data as an object of its own in one request, with Content-MD5 and of class
// STANDARD. It is meant for what fits into memory easily.
func (c *Client) PutSmall(ctx context.Context, bucket, key string, data []byte, metadata map[string]string) error {
	if err := c.checkTarget(bucket, key, metadata); err != nil {
		return err
	}
	_, err := c.put(ctx, target{op: "put object", bucket: bucket, key: key}, int64(len(data)), md5Base64(data),
		func() io.ReadSeeker { return bytes.NewReader(data) }, metadata, nil)
	return err
}

func (c *Client) checkTarget(bucket, key string, metadata map[string]string) error {
	if err := ValidateBucket(bucket, c.Secure() && !c.path); err != nil {
		return err
	}
	if err := ValidateKey(key); err != nil {
		return err
	}
	return checkMetadata(metadata)
}

// put sends one object of n bytes and returns its ETag. moved learns of every byte that goes out.
func (c *Client) put(ctx context.Context, t target, n int64, sum string, body func() io.ReadSeeker,
	metadata map[string]string, moved func(int)) (string, error) {
	return c.putWith(ctx, t, n, sum, body, objectOptions("", metadata), moved)
}

func (c *Client) putWith(ctx context.Context, t target, n int64, sum string, body func() io.ReadSeeker,
	o minio.PutObjectOptions, moved func(int)) (string, error) {
	var etag string
	err := c.call(ctx, t, func(ctx context.Context) error {
		p := &payload{r: body(), moved: moved}
		defer p.release()
		info, err := c.core.PutObject(ctx, t.bucket, t.key, p, n, sum, "", o)
		etag = info.ETag
		return err
	})
	return etag, err
}

func objectOptions(contentType string, metadata map[string]string) minio.PutObjectOptions {
	user := make(map[string]string, len(metadata))
	for k, v := range metadata {
		// With the prefix minio-go cannot take a name for a standard header.
		user["x-amz-meta-"+k] = v
	}
	return minio.PutObjectOptions{
		ContentType:  contentType,
		UserMetadata: user,
		// IMS reads no other class, whatever the bucket's default is.
		StorageClass: "STANDARD",
		// No chunk signatures in the body over plain HTTP; Content-MD5 guards it.
		DisableContentSha256: true,
	}
}

// Delete removes an object. One that does not exist counts as removed.
func (c *Client) Delete(ctx context.Context, bucket, key string) error {
	return c.remove(ctx, target{bucket: bucket, key: key})
}

func (c *Client) remove(ctx context.Context, t target) error {
	t.op = "delete object"
	err := c.call(ctx, t, func(ctx context.Context) error {
		return c.core.RemoveObject(ctx, t.bucket, t.key, minio.RemoveObjectOptions{})
	})
	if KindOf(err) == KindNotFound && !isCode(err, "NoSuchBucket") {
		return nil
	}
	return err
}

// UploadInfo is an unfinished multipart upload.
type UploadInfo struct {
	Key       string    `json:"key"`
	ID        string    `json:"upload_id"`
	Initiated time.Time `json:"initiated"`
}

// ListUploads returns the unfinished uploads of keys that begin with prefix, in the server's order.
// Their parts cost money until they are completed or aborted.
func (c *Client) ListUploads(ctx context.Context, bucket, prefix string) ([]UploadInfo, error) {
	return c.listUploads(ctx, target{bucket: bucket, key: prefix})
}

func (c *Client) listUploads(ctx context.Context, t target) ([]UploadInfo, error) {
	prefix := t.key
	t.op = "list unfinished uploads"
	var list []UploadInfo
	key, id := "", ""
	for {
		var page minio.ListMultipartUploadsResult
		err := c.call(ctx, t, func(ctx context.Context) error {
			var err error
			page, err = c.core.ListMultipartUploads(ctx, t.bucket, prefix, key, id, "", listPage)
			return err
		})
		if err != nil {
			return list, err
		}
		for _, u := range page.Uploads {
			// A server that ignores the prefix must not make us abort what is another's.
			if strings.HasPrefix(u.Key, prefix) {
				list = append(list, UploadInfo{Key: u.Key, ID: u.UploadID, Initiated: u.Initiated})
			}
		}
		if !page.IsTruncated {
			return list, nil
		}
		nextKey, nextID := page.NextKeyMarker, page.NextUploadIDMarker
		if nextKey == "" || (nextKey == key && nextID == id) {
			return list, &Error{Op: t.op, Bucket: t.bucket, Key: t.key, Kind: KindIntegrity,
				Message: "the server's list does not go on after " + key}
		}
		key, id = nextKey, nextID
	}
}

// AbortUpload removes an unfinished upload with its parts. One that does not exist counts as removed.
func (c *Client) AbortUpload(ctx context.Context, bucket, key, id string) error {
	if id == "" {
		return &Error{Op: "abort upload", Bucket: bucket, Key: key, Kind: KindInvalid, Message: "no upload id"}
	}
	return c.abort(ctx, target{bucket: bucket, key: key}, id)
}

// abortLook bounds looking whether an aborted upload is gone.
const abortLook = 2 * time.Second

// abort removes an upload and makes sure of it: a part that was on its way may survive the first time.
func (c *Client) abort(ctx context.Context, t target, id string) error {
	gone := func(err error) bool { return KindOf(err) == KindNotFound && !isCode(err, "NoSuchBucket") }
	for n := 1; ; n++ {
		t.op = "abort upload"
		err := c.call(ctx, t, func(ctx context.Context) error {
			return c.core.AbortMultipartUpload(ctx, t.bucket, t.key, id)
		})
		if gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		look := t
		look.op, look.attempts = "look for aborted upload", 2
		lctx, cancel := context.WithTimeout(ctx, abortLook)
		err = c.call(lctx, look, func(ctx context.Context) error {
			_, err := c.core.ListObjectParts(ctx, t.bucket, t.key, id, 0, 1)
			return err
		})
		cancel()
		if err != nil {
			// It is gone; or nothing more can be found out, and the server said that it is.
			return nil
		}
		e := &Error{Op: t.op, Bucket: t.bucket, Key: t.key, Kind: KindTransient, Message: "it is still there", Attempts: n}
		if n >= c.o.MaxAttempts {
			return e
		}
		if err := c.backoff(ctx, n, e); err != nil {
			return c.explain(t, err, nil)
		}
	}
}

func md5Base64(p []byte) string {
	sum := md5.Sum(p)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func firstHeader(h http.Header, names ...string) string {
	for _, n := range names {
		if v := h.Get(n); v != "" {
			return v
		}
	}
	return ""
}

func trimETag(s string) string { return strings.Trim(s, `"`) }
