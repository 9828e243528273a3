// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// newTransport is http.Transport for few hosts and long bodies. There is no limit on a request's
// whole time: meter watches that bytes move.
func newTransport(proxy func(*http.Request) (*url.URL, error)) *http.Transport {
	return &http.Transport{
		DialContext: (&net.Dialer{
			Timeout:   30 * time.Second,
			KeepAlive: 30 * time.Second,
		}).DialContext,
		Proxy:               proxy,
		MaxIdleConnsPerHost: MaxWorkers + 4,
		IdleConnTimeout:     60 * time.Second,
		TLSHandshakeTimeout: 15 * time.Second,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		// Ranges of objects are read as they are stored.
		DisableCompression: true,
		WriteBufferSize:    64 << 10,
		ReadBufferSize:     64 << 10,
		// HTTP/2 would put all parts on one connection, and OBS offers HTTP/1.1 only.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

// errIdle is the cause of a request that was given up because no byte moved.
var errIdle = errors.New("no bytes moved within the idle limit")

// IdleError tells that a request was given up because no byte moved for Limit.
type IdleError struct{ Limit time.Duration }

func (e *IdleError) Error() string { return "no bytes moved for " + e.Limit.String() }

// Timeout makes it a net.Error-like time-out.
func (e *IdleError) Timeout() bool { return true }

// exchange is what is remembered of one attempt's request and answer; minio-go keeps neither the
// answer's headers nor the number of bytes.
type exchange struct {
	idle time.Duration // limit for this request, 0 = the client's

	mu      sync.Mutex
	keys    Credentials // that the request was signed with
	sent    int         // requests
	status  int
	header  http.Header
	arrived time.Time
}

type exchangeKey struct{}

// answerStatus is the HTTP status of the answer, 0 if there was none.
func (ex *exchange) answerStatus() int {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.status
}

func (ex *exchange) sentRequests() int {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.sent
}

// meter is the RoundTripper under minio-go: it remembers what an answer said and enforces the idle
// limit over writing the request, waiting and reading the answer.
type meter struct {
	next   http.RoundTripper
	idle   time.Duration
	limit  *throttle                     // nil for none
	keysOf func(http.Header) Credentials // nil: nobody asks
}

func (m *meter) RoundTrip(req *http.Request) (*http.Response, error) {
	ex, _ := req.Context().Value(exchangeKey{}).(*exchange)
	limit := m.idle
	if ex != nil && ex.idle > 0 {
		limit = ex.idle
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	w := &watchdog{limit: limit}
	w.timer = time.AfterFunc(limit, func() { cancel(errIdle) })
	done := func() {
		w.stop()
		cancel(context.Canceled)
	}

	req = req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &watchedBody{ReadCloser: req.Body, ctx: ctx, w: w, rate: m.limit}
	}
	if ex != nil {
		ex.mu.Lock()
		ex.sent++
		if m.keysOf != nil {
			ex.keys = m.keysOf(req.Header)
		}
		ex.mu.Unlock()
	}
	resp, err := m.next.RoundTrip(req)
	if err != nil {
		// The transport may report the cause itself or a broken connection.
		if errors.Is(context.Cause(ctx), errIdle) {
			err = &IdleError{Limit: limit}
		}
		done()
		return nil, err
	}
	w.touch()
	if ex != nil {
		ex.mu.Lock()
		ex.status, ex.header, ex.arrived = resp.StatusCode, resp.Header.Clone(), time.Now()
		ex.mu.Unlock()
	}
	resp.Body = &answerBody{ReadCloser: resp.Body, ctx: ctx, w: w, rate: m.limit, limit: limit, done: done}
	return resp, nil
}

// CloseIdleConnections lets http.Client reach the transport beneath.
func (m *meter) CloseIdleConnections() {
	if t, ok := m.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// watchdog fires when touch was not called for limit.
type watchdog struct {
	mu      sync.Mutex
	limit   time.Duration
	timer   *time.Timer
	stopped bool
}

func (w *watchdog) touch() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped {
		w.timer.Reset(w.limit)
	}
}

// pause keeps it from firing until touch is called.
func (w *watchdog) pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
}

func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
}

// watchedBody is a request's.
type watchedBody struct {
	io.ReadCloser
	ctx  context.Context
	w    *watchdog
	rate *throttle
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.w.touch()
	n, err := b.ReadCloser.Read(b.rate.cut(p))
	if werr := b.rate.wait(b.ctx, b.w, n); werr != nil {
		return 0, werr
	}
	return n, err
}

// answerBody ends the watch when the answer was read to its end or closed.
type answerBody struct {
	io.ReadCloser
	ctx   context.Context
	w     *watchdog
	rate  *throttle
	limit time.Duration
	once  sync.Once
	done  func()
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(b.rate.cut(p))
	if n > 0 {
		b.w.touch()
	}
	if werr := b.rate.wait(b.ctx, b.w, n); werr != nil {
		n, err = 0, werr
	}
	if err != nil && err != io.EOF && errors.Is(context.Cause(b.ctx), errIdle) {
		err = &IdleError{Limit: b.limit}
	}
	return n, err
}

func (b *answerBody) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(b.done)
	return err
}

// payload is the body of one attempt. The transport may go on reading a body after the request has
// failed; release cuts it off, so that the buffer behind it can be used for the next part.
type payload struct {
	mu    sync.Mutex
	r     io.ReadSeeker
	gone  bool
	moved func(n int)
}

var errReleased = errors.New("body used after its request ended")

func (p *payload) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return 0, errReleased
	}
	n, err := p.r.Read(b)
	if n > 0 && p.moved != nil {
		p.moved(n) // under the lock: nothing is reported after release
	}
	return n, err
}

func (p *payload) Seek(off int64, whence int) (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return 0, errReleased
	}
	return p.r.Seek(off, whence)
}

func (p *payload) release() {
	p.mu.Lock()
	p.gone = true
	p.mu.Unlock()
}
