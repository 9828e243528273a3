// SPDX-License-Identifier: Apache-2.0

package obstest

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// Proxy stands between a client and a store and does to requests and answers what faults say. It keeps the
// Host header, so that signatures stay right: the client takes the proxy for the store.
//
// Where a fault breaks a connection, the one to the store breaks, too. The zero Fault that fails does so
// without asking the store.
type Proxy struct {
	Faults

	store  *url.URL
	addr   string
	next   *http.Transport
	closed chan struct{}
	stop   sync.Once

	mu     sync.Mutex
	server *http.Server // nil while nobody listens
	down   []net.Conn   // taken over from the server
}

const pieces = 16 // of a body that trickles

// NewProxy starts a proxy for the store at a URL. Close stops it.
func NewProxy(store string) (*Proxy, error) {
	u, err := url.Parse(store)
	if err != nil {
		return nil, err
	}
	p := &Proxy{store: u, closed: make(chan struct{}), next: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}}
	// Below the ports that systems give out, so that nobody takes it while nobody listens.
	for range 100 {
		p.addr = fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		if err = p.Up(); err == nil {
			return p, nil
		}
	}
	return nil, err
}

// URL is the endpoint for path style.
func (p *Proxy) URL() string { return "http://" + p.addr }

// Up listens again after Down.
func (p *Proxy) Up() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		return nil
	}
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	p.server = s
	go func() { _ = s.Serve(l) }()
	return nil
}

// Down breaks all connections, and refuses others until Up.
func (p *Proxy) Down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		_ = p.server.Close()
		p.server = nil
	}
	for _, c := range p.down {
		_ = c.Close()
	}
	p.down = nil
}

// Close stops the proxy.
func (p *Proxy) Close() {
	p.stop.Do(func() { close(p.closed) })
	p.Down()
	p.next.CloseIdleConnections()
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := parse(r, "")
	f := p.acting(q)
	if f == nil {
		f = &Fault{Do: Observe}
	}
	switch f.Do {
	case FailLate, Fail:
		if f.Do == FailLate {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		for k, v := range f.Header {
			w.Header().Set(k, v)
		}
		p.fail(w, r, f.Status, f.Code, f.Message)
		return
	case ErrorBody:
		_, _ = io.Copy(io.Discard, r.Body)
		p.fail(w, r, http.StatusOK, f.Code, "failed after it had begun")
		return
	case Stall:
		p.hold(w)
		return
	case StallBody:
		_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
		p.hold(w)
		return
	}
	answer, err := p.ask(r, f)
	if err != nil {
		// Half a body reached the store.
		p.reset(w)
		return
	}
	defer answer.Body.Close()
	if f.Do == Lose {
		_, _ = io.Copy(io.Discard, answer.Body)
		p.reset(w)
		return
	}
	body := io.Reader(answer.Body)
	n := answer.ContentLength
	if f.Do == HideParts || f.Do == Corrupt {
		b, _ := io.ReadAll(answer.Body)
		b = change(b, f)
		body, n = bytes.NewReader(b), int64(len(b))
	}
	if f.Do == SkewClock {
		if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
			answer.Header.Set("Date", date.Add(f.Skew).UTC().Format(http.TimeFormat))
		}
	}
	maps.Copy(w.Header(), answer.Header)
	if n >= 0 && r.Method != http.MethodHead {
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	}
	w.WriteHeader(answer.StatusCode)
	switch f.Do {
	case CutAnswer, StallAnswer:
		_, _ = io.CopyN(w, body, max(n/2, 0))
		_ = http.NewResponseController(w).Flush()
		if f.Do == StallAnswer {
			p.hold(w)
			return
		}
		panic(http.ErrAbortHandler)
	case Trickle:
		for range pieces {
			p.pause(r.Context(), f.Pause)
			_, _ = io.CopyN(w, body, max(n/pieces, 1))
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = io.Copy(w, body)
	default:
		_, _ = io.Copy(w, body)
	}
}

// ask passes a request on, with what the fault does to it.
func (p *Proxy) ask(r *http.Request, f *Fault) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = p.store.Scheme, p.store.Host
	out.Host, out.RequestURI = r.Host, "" // Host as it was signed
	out.Header.Del("Connection")
	half := r.ContentLength / 2
	switch f.Do {
	case Reset:
		// The store waits for the rest until the connection breaks.
		out.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, half), breaks{}))
		if r.ContentLength <= 0 {
			return nil, io.ErrUnexpectedEOF
		}
	case Shorten:
		out.Body, out.ContentLength = io.NopCloser(io.LimitReader(r.Body, half)), half
		// The client hears the answer only if the rest is read.
		defer func() { _, _ = io.Copy(io.Discard, r.Body) }()
	case Flip:
		out.Body = io.NopCloser(&flipper{r: r.Body, at: half})
	case Trickle:
		out.Body = io.NopCloser(&slowly{r: r.Body, n: max(r.ContentLength/pieces, 1), wait: func() { p.pause(r.Context(), f.Pause) }})
	case SkewClock:
		if date, err := time.Parse(amzDate, r.Header.Get("X-Amz-Date")); err == nil {
			out.Header.Set("X-Amz-Date", date.Add(-f.Skew).Format(amzDate))
		}
	}
	if out.ContentLength == 0 {
		out.Body = http.NoBody
	}
	return p.next.RoundTrip(out)
}

const amzDate = "20060102T150405Z"

// breaks is a body that can't be read on.
type breaks struct{}

func (breaks) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// flipper changes a bit of the byte at.
type flipper struct {
	r       io.Reader
	pos, at int64
}

func (f *flipper) Read(b []byte) (int, error) {
	n, err := f.r.Read(b)
	if i := f.at - f.pos; i >= 0 && i < int64(n) {
		b[i] ^= 0x10
	}
	f.pos += int64(n)
	return n, err
}

// slowly waits before each n bytes.
type slowly struct {
	r       io.Reader
	n, left int64
	wait    func()
}

func (s *slowly) Read(b []byte) (int, error) {
	if s.left == 0 {
		s.wait()
		s.left = s.n
	}
	n, err := s.r.Read(b[:min(int64(len(b)), s.left)])
	s.left -= int64(n)
	return n, err
}

var (
	partElement = regexp.MustCompile(`(?s)<Part>.*?</Part>`)
	etagElement = regexp.MustCompile(`(<ETag>[^<0-9a-f]*)([0-9a-f])`)
)

// change does to the text of an answer what a fault says.
func change(b []byte, f *Fault) []byte {
	if f.Do == HideParts {
		all := partElement.FindAllIndex(b, -1)
		for i := len(all) - 1; i >= max(0, len(all)-f.Hide); i-- {
			b = append(b[:all[i][0]:all[i][0]], b[all[i][1]:]...)
		}
		return b
	}
	return etagElement.ReplaceAllFunc(b, func(m []byte) []byte {
		last := len(m) - 1
		m[last] = "0123456789abcdef"[(bytes.IndexByte([]byte("0123456789abcdef"), m[last])+1)%16]
		return m
	})
}

func (p *Proxy) fail(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_ = xml.NewEncoder(w).Encode(xmlError{Code: code, Message: message})
	}
}

// hold keeps a connection open and does nothing with it any more.
func (p *Proxy) hold(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = append(p.down, conn)
}

// reset breaks a connection as hard as can be.
func (p *Proxy) reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

func (p *Proxy) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-p.closed:
	}
}
