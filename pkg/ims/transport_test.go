// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serve starts a real server, and a client of it with its own transport.
func serve(t *testing.T, h http.HandlerFunc, change func(*Options)) (*Client, *httptest.Server) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return newTestClient(t, nil, func(o *Options) {
		o.Endpoint, o.IAMEndpoint = s.URL, s.URL
		o.HTTPClient = nil
		if change != nil {
			change(o)
		}
	}), s
}

func hijack(t *testing.T, w http.ResponseWriter, text string) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	_, _ = io.WriteString(conn, text)
	_ = conn.Close()
}

func TestRequestOnTheWire(t *testing.T) {
	c, s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.EscapedPath() != "/base/v2/cloudimages" || !strings.Contains(r.URL.RawQuery, "name=my%20image%2B1") ||
			r.Header.Get("Content-Type") != "" || r.ContentLength != 0 {
			t.Errorf("request %s %s, headers %v", r.Method, r.URL, r.Header)
		}
		// The server's own calculation of the signature, over what arrived.
		canonical, names := canonicalRequest(r.Method, r.URL.Path, r.URL.RawQuery, []signedHeader{
			{"host", r.Host}, {"x-sdk-date", r.Header.Get("X-Sdk-Date")}, {"x-project-id", "p1"},
		}, emptySHA256)
		at, err := time.Parse(signTimeFormat, r.Header.Get("X-Sdk-Date"))
		if err != nil || r.Header.Get("Authorization") != authorization(testKeys, at, canonical, names) {
			t.Errorf("signature does not fit what arrived: %v %v", err, r.Header)
		}
		_, _ = io.WriteString(w, `{"images":[]}`)
	}, nil)
	cl := newTestClient(t, nil, func(o *Options) { o.Endpoint = s.URL + "/base/"; o.HTTPClient = nil })
	if _, err := cl.ListImages(background(), ImageFilter{Name: "my image+1"}); err != nil {
		t.Error(err)
	}
	_ = c
}

func TestQueryRetries(t *testing.T) {
	for _, c := range []struct {
		name     string
		first    []reply
		requests int
		kind     Kind
	}{
		{"408", []reply{status(408, ""), ok(quotaBody)}, 2, 0},
		{"429", []reply{status(429, ""), ok(quotaBody)}, 2, 0},
		{"500 502 503 504", []reply{status(500, ""), status(502, ""), status(503, ""), status(504, ""), ok(quotaBody)}, 5, 0},
		{"network", []reply{broken(errReset), broken(errRefused), ok(quotaBody)}, 3, 0},
		{"codes", []reply{imgError("IMG.0023"), imgError("IMG.0061"), imgError("IMG.0060"), ok(quotaBody)}, 4, 0},
		{"for ever", []reply{status(503, "")}, 5, KindTransient},
		{"501", []reply{status(501, "")}, 1, KindUnsupported},
		{"400", []reply{imgError("IMG.0024")}, 1, KindInvalid},
		{"404", []reply{status(404, "")}, 1, KindNotFound},
		{"409", []reply{status(409, "")}, 1, KindConflict},
		{"not JSON", []reply{ok("<html><title>Sign in</title>")}, 1, KindResponse},
		{"no such quota", []reply{ok(`{"quotas":{"resources":[{"type":"disk","used":1,"quota":2}]}}`)}, 1, KindResponse},
		{"quoted numbers", []reply{ok(`{"quotas":{"resources":[7,{"type":"image","used":"3","quota":"20"}]}}`)}, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, map[string][]reply{"GET " + quotaPath: c.first})
			events := 0
			cl := newTestClient(t, f, func(o *Options) {
				o.OnRetry = func(e RetryEvent) {
					events++
					if e.Attempt != events || e.Err == nil || e.Op == "" {
						t.Errorf("event %+v", e)
					}
				}
			})
			used, quota, err := cl.Quota(background())
			if c.kind != 0 {
				wantError(t, err, c.kind, "read the image quota")
			} else if err != nil || used != 3 || quota != 20 {
				t.Errorf("got %d/%d, %v", used, quota, err)
			}
			if len(f.seen) != c.requests || events != c.requests-1 {
				t.Errorf("%d requests, %d events; want %d", len(f.seen), events, c.requests)
			}
		})
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	var followed atomic.Bool
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			followed.Store(true)
		}
		http.Redirect(w, r, "/elsewhere?secret=1", http.StatusFound)
	}, func(o *Options) {
		// Not even if the caller's client would.
		o.HTTPClient = &http.Client{Transport: NewTransport()}
	})
	_, _, err := c.Quota(background())
	e := wantError(t, err, KindResponse, "302", "/elsewhere")
	if followed.Load() || strings.Contains(err.Error(), "secret") || !strings.Contains(e.Hint(), "not followed") {
		t.Errorf("got %v, hint %s", err, e.Hint())
	}
}

func TestAnswerIsBounded(t *testing.T) {
	var requests atomic.Int32
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if r.URL.Query().Get("id") != "" {
			w.WriteHeader(400)
		}
		chunk := strings.Repeat("x", 1<<16)
		for range 100 {
			if _, err := io.WriteString(w, chunk); err != nil {
				return
			}
		}
	}, nil)
	_, _, err := c.Quota(background())
	wantError(t, err, KindResponse, "longer than 4 MiB")
	_, err = c.Image(background(), "x")
	wantError(t, err, KindInvalid, "HTTP 400: xxx")
	if n := requests.Load(); n != 2 {
		t.Errorf("%d requests", n)
	}
}

// Broken answers, on real connections. A query is repeated, an import is not.
func TestBrokenAnswers(t *testing.T) {
	for name, answer := range map[string]string{
		"closed":         "",
		"no HTTP":        "hello\r\n\r\n",
		"cut body":       "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"job_id\":\"x\"",
		"cut chunks":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"job\r\n",
		"huge header":    "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"not gzip":       "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nxx",
		"error and  cut": "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 100\r\n\r\n<html>",
	} {
		t.Run(name, func(t *testing.T) {
			var posts, gets atomic.Int32
			c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				switch {
				case r.Method == http.MethodPost:
					posts.Add(1)
					hijack(t, w, answer)
				case r.URL.Path == listPath:
					_, _ = io.WriteString(w, `{"images":[`+anImage(testImage, "web-01", "", "run=a1b2")+`]}`)
				case gets.Add(1) < 3:
					hijack(t, w, answer)
				default:
					_, _ = io.WriteString(w, quotaBody)
				}
			}, nil)
			if _, _, err := c.Quota(background()); err != nil || gets.Load() != 3 {
				t.Errorf("query: %v after %d requests", err, gets.Load())
			}
			got, err := c.QuickImport(background(), systemDisk(), GenAuto)
			if err != nil || !got.Recovered || got.ImageID != testImage || posts.Load() != 1 {
				t.Errorf("import: %+v, %v, sent %d times", got, err, posts.Load())
			}
		})
	}
}

// The service takes the import but does not answer in time.
func TestSubmitTimeLimit(t *testing.T) {
	var posts atomic.Int32
	release := make(chan struct{})
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			posts.Add(1)
			_, _ = io.Copy(io.Discard, r.Body)
			<-release
			return
		}
		_, _ = io.WriteString(w, `{"images":[`+anImage(testImage, "web-01", "", "run=a1b2")+`]}`)
	}, func(o *Options) {
		o.RequestTimeout = 200 * time.Millisecond
		o.Retry.MaxAttempts = 1000 // the look-ups may be slow under load, too
	})
	t.Cleanup(func() { close(release) })
	var cause error
	c.onRetry = func(e RetryEvent) { cause = e.Err }
	got, err := c.QuickImport(background(), systemDisk(), GenAuto)
	// Under load the limit may come before the server has seen the request.
	if err != nil || !got.Recovered || posts.Load() > 1 {
		t.Errorf("got %+v, %v (%v), sent %d times", got, err, cause, posts.Load())
	}
}

// Nobody listens: certainly nothing was sent, so the import is tried again.
func TestSubmitRefusedConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	retries := 0
	c := newTestClient(t, nil, func(o *Options) {
		o.Endpoint, o.HTTPClient = "http://"+addr, nil
		o.OnRetry = func(RetryEvent) { retries++ }
	})
	_, err = c.QuickImport(background(), systemDisk(), GenAuto)
	wantError(t, err, KindTransient, addr)
	var a *AmbiguousSubmitError
	if errors.As(err, &a) || retries != 4 {
		t.Errorf("got %v after %d repetitions", err, retries)
	}
}

// A transport that does not report connections must not make a lost answer look unsent.
func TestUnknownTransportErrorsAreAmbiguous(t *testing.T) {
	for _, err := range []error{errors.New("strange"), io.ErrUnexpectedEOF, errReset, context.DeadlineExceeded} {
		f := newFake(t, map[string][]reply{
			"POST " + oldImport: {broken(err)}, "GET " + listPath: {images(anImage(testImage, "web-01", "", "run=a1b2"))},
		})
		got, e := newTestClient(t, f, nil).QuickImport(background(), systemDisk(), GenAuto)
		if e != nil || !got.Recovered || f.count("POST", oldImport) != 1 {
			t.Errorf("%v: got %+v, %v", err, got, e)
		}
	}
	// And a connection that was made, but whose loss is reported like a failed dial.
	if failedBeforeSending(fmt.Errorf("x: %w", errReset)) || !failedBeforeSending(fmt.Errorf("x: %w", errRefused)) {
		t.Error("errors before and after sending are mixed up")
	}
}

func TestUntrustedCertificate(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	retries := 0
	c := newTestClient(t, nil, func(o *Options) {
		o.Endpoint, o.HTTPClient = s.URL, nil
		o.OnRetry = func(RetryEvent) { retries++ }
	})
	_, _, err := c.Quota(background())
	e := wantError(t, err, KindInvalid, "certificate")
	if retries != 0 || !strings.Contains(e.Hint(), "not trusted") {
		t.Errorf("%d repetitions, hint %q", retries, e.Hint())
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	s.StartTLS()
	defer s.Close()
	transport := NewTransport()
	transport.TLSClientConfig.InsecureSkipVerify = true // #nosec G402: only the version is tested
	c := newTestClient(t, nil, func(o *Options) {
		o.Endpoint, o.HTTPClient = s.URL, &http.Client{Transport: transport}
		o.Retry.MaxAttempts = 1
	})
	_, _, err := c.Quota(background())
	if err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("got %v", err)
	}
	transport.TLSClientConfig.MinVersion = tls.VersionTLS10
	if _, err := New(Options{Region: "r", Auth: StaticToken("x"), HTTPClient: &http.Client{Transport: transport}}); err == nil {
		t.Error("a client for TLS 1.0 is accepted")
	}
}

func TestUnknownHost(t *testing.T) {
	f := newFake(t, map[string][]reply{"GET " + quotaPath: {broken(&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "ims.x", IsNotFound: true}})}})
	_, _, err := newTestClient(t, f, nil).Quota(background())
	if e := wantError(t, err, KindTransient, "no such host"); !strings.Contains(e.Hint(), "region") {
		t.Errorf("hint %q", e.Hint())
	}
}

func TestCancelledQuery(t *testing.T) {
	ctx, cancel := context.WithCancel(background())
	f := newFake(t, map[string][]reply{"GET " + quotaPath: {status(503, "")}})
	c := newTestClient(t, f, func(o *Options) {
		o.Retry = Backoff{MaxAttempts: 5, BaseDelay: time.Hour, MaxDelay: time.Hour}
		o.OnRetry = func(RetryEvent) { cancel() }
	})
	_, _, err := c.Quota(ctx)
	if !errors.Is(err, context.Canceled) || len(f.seen) != 1 {
		t.Errorf("got %v after %d requests", err, len(f.seen))
	}
	if _, _, err = c.Quota(ctx); !errors.Is(err, context.Canceled) || len(f.seen) != 1 {
		t.Errorf("got %v after %d requests", err, len(f.seen))
	}
}
