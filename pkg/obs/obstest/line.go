// SPDX-License-Identifier: Apache-2.0

package obstest

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// lineChunk is how many bytes move at a time.
const lineChunk = 16 << 10

// Line is an http.RoundTripper that is as slow as a line of its kind. By the clock of a synctest bubble it
// takes no time: then Next must not use the network, as Handler doesn't.
type Line struct {
	Next http.RoundTripper
	// Each and Total are how many bytes a second the bodies of one request, and of all together, have at
	// most. 0 is any number.
	Each, Total int64
	// Latency passes before a request is answered.
	Latency time.Duration
	// Bears is how many requests may be under way; of more, those with a body are answered 503 SlowDown.
	// 0 is any number.
	Bears int

	once  sync.Once
	total *rate.Limiter

	mu     sync.Mutex
	under  int // requests under way
	most   int // of them with a body, at any time
	bodies int
}

// Most is how many bodies were on their way at the same time at most.
func (l *Line) Most() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.most
}

// RoundTrip implements http.RoundTripper.
func (l *Line) RoundTrip(r *http.Request) (*http.Response, error) {
	l.once.Do(func() { l.total = newLimiter(l.Total) })
	body := 0
	if r.ContentLength > 0 {
		body = 1
	}
	l.mu.Lock()
	l.under++
	l.bodies += body
	l.most = max(l.most, l.bodies)
	slow := l.Bears > 0 && l.under > l.Bears && body > 0
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.under--
		l.bodies -= body
		l.mu.Unlock()
	}()
	select {
	case <-time.After(l.Latency):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if slow {
		_ = r.Body.Close()
		w := httptest.NewRecorder()
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")
		return w.Result(), nil
	}
	if body > 0 {
		r = r.Clone(r.Context())
		r.Body = l.pace(r.Context(), r.Body)
	}
	resp, err := l.Next.RoundTrip(r)
	if err == nil {
		resp.Body = l.pace(r.Context(), resp.Body)
	}
	return resp, err
}

func newLimiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), lineChunk)
}

func (l *Line) pace(ctx context.Context, body io.ReadCloser) io.ReadCloser {
	return &pacedBody{ReadCloser: body, ctx: ctx, each: newLimiter(l.Each), total: l.total}
}

type pacedBody struct {
	io.ReadCloser
	ctx         context.Context
	each, total *rate.Limiter
}

func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), lineChunk)])
	for _, l := range []*rate.Limiter{b.each, b.total} {
		if werr := l.WaitN(b.ctx, n); werr != nil {
			return 0, werr
		}
	}
	return n, err
}

// Handler returns a RoundTripper that has requests answered without a network.
func (s *Server) Handler() http.RoundTripper { return handler{s} }

type handler struct{ s *Server }

func (h handler) RoundTrip(r *http.Request) (*http.Response, error) {
	q := r.Clone(r.Context())
	if q.Body == nil {
		q.Body = http.NoBody
	}
	if q.Host == "" {
		q.Host = q.URL.Host
	}
	q.RequestURI = q.URL.RequestURI()
	w := httptest.NewRecorder()
	h.s.ServeHTTP(w, q)
	_ = q.Body.Close()
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}
