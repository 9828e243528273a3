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

// TestTemporaryKeys follows keys through their life by a clock of its own.
func TestTemporaryKeys(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	asked, life, down := 0, time.Hour, error(nil)
	k := newTemporaryKeys(func(context.Context) (Credentials, time.Duration, error) {
		asked++
		return Credentials{AccessKey: fmt.Sprintf("KEY%d", asked), SecretKey: "s", SecurityToken: "t"}, life, down
	}, func() time.Time { return now })
	want := func(when, key string, times int) Credentials {
		t.Helper()
		c, err := k.Credentials(t.Context())
		if key == "" {
			if err == nil {
				t.Errorf("%s: %v instead of an error", when, c)
			}
		} else if err != nil || c.AccessKey != key {
			t.Errorf("%s: key %q, %v, want %q", when, c.AccessKey, err, key)
		}
		if asked != times {
			t.Errorf("%s: asked %d times, want %d", when, asked, times)
		}
		return c
	}
	if !k.Expires().IsZero() {
		t.Error("keys that nobody has asked for expire")
	}
	old := want("at first", "KEY1", 1)
	now = now.Add(29 * time.Minute)
	want("while fresh", "KEY1", 1)
	now = now.Add(time.Minute)
	want("when half an hour is left", "KEY2", 2)
	if got := k.Expires(); !got.Equal(now.Add(time.Hour)) {
		t.Errorf("they expire at %v", got)
	}
	k.Refused(old)
	current := want("after others were refused", "KEY2", 2)
	k.Refused(current)
	current = want("after they were refused", "KEY3", 3)
	down = errors.New("nobody there")
	k.Refused(current)
	want("with nobody to ask", "KEY3", 4)
	now = now.Add(time.Hour)
	want("after their end with nobody to ask", "", 5)
	down, life = nil, 20*time.Minute
	want("with somebody to ask again", "KEY6", 6)
	now = now.Add(9 * time.Minute)
	want("before half of a short life", "KEY6", 6)
	now = now.Add(time.Minute)
	want("at half of a short life", "KEY7", 7)
}

// TestRefusedKeysAreAskedForAnew: a request with keys that the service doesn't take is repeated once with
// others, and not with the same.
func TestRefusedKeysAreAskedForAnew(t *testing.T) {
	for _, tc := range []struct {
		name     string
		good     string
		requests int
	}{
		{"the second ones are good", "KEY2", 2},
		{"the third ones would be", "KEY3", 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			requests, asked := 0, 0
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests++
				if !strings.Contains(r.Header.Get("Authorization"), "Access="+tc.good) {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				fmt.Fprint(w, `{"quotas":{"resources":[{"type":"image","used":1,"quota":2}]}}`)
			}))
			defer s.Close()
			keys := newTemporaryKeys(func(context.Context) (Credentials, time.Duration, error) {
				asked++
				return Credentials{AccessKey: fmt.Sprintf("KEY%d", asked), SecretKey: "s", SecurityToken: "t"}, 24 * time.Hour, nil
			}, time.Now)
			c, err := New(Options{Endpoint: s.URL, ProjectID: "p", Auth: AKSKFrom(keys)})
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseIdleConnections()
			_, _, err = c.Quota(t.Context())
			if (err == nil) != (tc.good == "KEY2") || requests != tc.requests {
				t.Errorf("%v after %d requests", err, requests)
			}
			if err != nil && KindOf(err) != KindAuth {
				t.Errorf("%v", err)
			}
		})
	}
}
