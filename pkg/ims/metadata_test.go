// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const keyAnswer = `{"credential":{"access":"AKMETA","secret":"the-secret","securitytoken":"the-token","expires_at":"%s"}}`

func TestMetadataCredentials(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	good := ok(fmt.Sprintf(keyAnswer, "2026-01-03T03:04:05.000000Z"))
	want := Credentials{AccessKey: "AKMETA", SecretKey: "the-secret", SecurityToken: "the-token"}
	for _, tc := range []struct {
		name       string
		token, key reply
		sends      string // as X-Metadata-Token
		kind       Kind
	}{
		{name: "hardened", token: ok("session\n"), key: good, sends: "session"},
		{name: "no tokens", token: status(404, ""), key: good},
		{name: "no such method", token: status(405, ""), key: good},
		{name: "tokens unavailable", token: status(503, ""), key: good},
		{name: "tokens forbidden", token: status(403, ""), kind: KindPermission},
		{name: "no agency", token: ok("session"), key: status(404, ""), kind: KindNotFound, sends: "session"},
		{name: "a page", token: ok("session"), key: ok("<html>"), kind: KindResponse, sends: "session"},
		{name: "half a set", token: ok("s"), key: ok(`{"credential":{"access":"a"}}`), kind: KindResponse, sends: "s"},
		{name: "expired", token: ok("s"), key: ok(fmt.Sprintf(keyAnswer, "2026-01-02T03:04:05Z")), kind: KindResponse, sends: "s"},
		{name: "no server of the cloud", token: broken(errRefused), kind: KindTransient},
		{name: "redirect", token: reply{status: 302, header: map[string]string{"Location": "http://elsewhere.example.com/"}}, kind: KindResponse},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t, map[string][]reply{"PUT " + metadataTokenPath: {tc.token}})
			if tc.key.status != 0 {
				f.replies["GET "+metadataKeyPath] = []reply{tc.key}
			}
			keys := MetadataCredentials(MetadataOptions{Transport: f, Now: func() time.Time { return now }})
			got, err := keys(background())
			if tc.kind != KindUnknown {
				e := wantError(t, err, tc.kind)
				if strings.Contains(e.Error(), "the-secret") {
					t.Errorf("%v", e)
				}
			} else if err != nil || got != want {
				t.Fatalf("got %v %v", got, err)
			}
			if f.seen[0].header.Get("X-Metadata-Token-Ttl-Seconds") != "21600" {
				t.Errorf("%v", f.seen[0].header)
			}
			if len(f.seen) > 1 && f.seen[1].header.Get("X-Metadata-Token") != tc.sends {
				t.Errorf("sent the token %q", f.seen[1].header.Get("X-Metadata-Token"))
			}
		})
	}
}

func TestMetadataCredentialsAreKept(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	f := newFake(t, map[string][]reply{
		"PUT " + metadataTokenPath: {status(404, "")},
		"GET " + metadataKeyPath: {
			ok(fmt.Sprintf(keyAnswer, "2026-01-02T05:00:00Z")), broken(errReset), ok(fmt.Sprintf(keyAnswer, "2026-01-02T07:00:00Z")),
			broken(errReset),
		},
	})
	keys := MetadataCredentials(MetadataOptions{Transport: f, Now: func() time.Time { return now }})
	for _, step := range []struct {
		at    string
		asked int
		fails bool
	}{
		{"03:00", 1, false}, {"04:29", 1, false}, // kept
		{"04:31", 2, false}, // nearly over, and no answer: still good
		{"04:32", 3, false}, {"06:00", 3, false}, {"06:45", 4, false}, {"07:01", 5, true},
	} {
		at, err := time.Parse("2006-01-02 15:04", "2026-01-02 "+step.at)
		if err != nil {
			t.Fatal(err)
		}
		now = at
		_, err = keys(background())
		if n := f.count("GET", metadataKeyPath); n != step.asked || (err != nil) != step.fails {
			t.Errorf("at %s: asked %d times, want %d; %v", step.at, n, step.asked, err)
		}
	}
}

func TestMetadataCredentialsGiveUp(t *testing.T) {
	done := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-done }))
	defer silent.Close()
	defer close(done)
	_, err := MetadataCredentials(MetadataOptions{Endpoint: silent.URL, Limit: 20 * time.Millisecond})(background())
	e := wantError(t, err, KindTransient, "no answer within 20ms")
	if !errors.Is(e, context.DeadlineExceeded) {
		t.Errorf("%v", e)
	}
	ctx, cancel := context.WithCancel(background())
	cancel()
	if _, err := MetadataCredentials(MetadataOptions{Endpoint: silent.URL})(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
