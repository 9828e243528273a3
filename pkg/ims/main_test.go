// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testKeys = Credentials{AccessKey: "AKTEST0000000001", SecretKey: "secret-key-of-the-tests"}

const (
	testJob   = "ff80808280c204e30180d2784c3c0d86"
	testImage = "498cc67e-7795-482c-8c47-32bcece2d7ec"
)

// request is what a fake service saw.
type request struct {
	method, path, query, body string
	header                    http.Header
}

func (r request) line() string {
	s := r.method + " " + r.path
	if r.query != "" {
		s += "?" + r.query
	}
	return s
}

// reply is what it answers, or the error that the connection ends with.
type reply struct {
	status int
	header map[string]string
	body   string
	err    error
}

func ok(body string) reply               { return reply{status: 200, body: body} }
func status(code int, body string) reply { return reply{status: code, body: body} }
func broken(err error) reply             { return reply{err: err} }

var (
	errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	errReset   = &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
)

// fake is a service in memory: replies by "METHOD path", each used once, the last one for ever. A
// request that was not expected fails the test.
type fake struct {
	t       *testing.T
	mu      sync.Mutex
	replies map[string][]reply
	seen    []request
	hook    func(request) // called for every request, without the lock
}

func newFake(t *testing.T, replies map[string][]reply) *fake {
	return &fake{t: t, replies: replies}
}

func (f *fake) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	body := ""
	if r.Body != nil {
		p, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		_ = r.Body.Close()
		body = string(p)
	}
	seen := request{r.Method, r.URL.Path, r.URL.RawQuery, body, r.Header.Clone()}
	f.mu.Lock()
	f.seen = append(f.seen, seen)
	key := r.Method + " " + r.URL.Path
	list := f.replies[key]
	var now reply
	if len(list) > 0 {
		now = list[0]
		if len(list) > 1 {
			f.replies[key] = list[1:]
		}
	}
	hook := f.hook
	f.mu.Unlock()
	if len(list) == 0 {
		f.t.Errorf("unexpected request %s", seen.line())
		return nil, errors.New("unexpected request")
	}
	if hook != nil {
		hook(seen)
		if err := r.Context().Err(); err != nil {
			return nil, err
		}
	}
	if now.err != nil {
		return nil, now.err
	}
	w := httptest.NewRecorder()
	for k, v := range now.header {
		w.Header().Set(k, v)
	}
	w.WriteHeader(now.status)
	_, _ = w.WriteString(now.body)
	return w.Result(), nil
}

// lines lists the requests seen, without their queries if short.
func (f *fake) lines(short bool) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for _, r := range f.seen {
		if short {
			r.query = ""
		}
		list = append(list, r.line())
	}
	return list
}

func (f *fake) count(method, path string) int {
	n := 0
	for _, l := range f.lines(true) {
		if l == method+" "+path {
			n++
		}
	}
	return n
}

var fastBackoff = Backoff{MaxAttempts: 5, BaseDelay: time.Microsecond, MaxDelay: time.Microsecond}

// newTestClient speaks to the fake with an access key and a known project.
func newTestClient(t *testing.T, f http.RoundTripper, change func(*Options)) *Client {
	t.Helper()
	o := Options{
		Endpoint: "https://ims.test-1.example.com", IAMEndpoint: "https://iam.test-1.example.com",
		Region: "test-1", ProjectID: "p1",
		Auth:       AKSK(StaticCredentials(testKeys)),
		HTTPClient: &http.Client{Transport: f},
		Retry:      fastBackoff, SubmitRetry: fastBackoff,
		LookupInterval: time.Microsecond, LookupLimit: time.Minute,
	}
	if change != nil {
		change(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// wantError checks an error's type, kind and text.
func wantError(t *testing.T, err error, kind Kind, parts ...string) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v (%T), want an *Error", err, err)
	}
	if e.Kind != kind {
		t.Errorf("kind of %v is %v, want %v", err, e.Kind, kind)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not hold %q", err, p)
		}
	}
	return e
}

func wantLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("requests\n got %q\nwant %q", got, want)
	}
}

func background() context.Context { return context.Background() }

// hintOf is what an error advises to do next.
func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}
