// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestRecoverImport: an earlier process may have asked for an image. Time is virtual here.
func TestRecoverImport(t *testing.T) {
	marker := Tag{Key: "run", Value: "a1b2"}
	at := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	for _, c := range []struct {
		name   string
		marker Tag
		ago    time.Duration // when it asked
		list   func() []reply
		want   string // the image
		by     string
		ends   time.Duration // how long it is looked for
		kind   Kind          // of an error
	}{
		{name: "by its tag", marker: marker, list: func() []reply { return []reply{images(anImage("i-1", "web-01", at(0), "run=a1b2"))} }, want: "i-1", by: "tag"},
		{name: "long ago", marker: marker, ago: time.Hour, list: func() []reply { return []reply{images(anImage("i-1", "web-01", at(-time.Hour), "run=a1b2"))} }, want: "i-1", by: "tag"},
		{name: "never, long ago", marker: marker, ago: time.Hour, list: func() []reply { return []reply{images()} }},
		{name: "never", marker: marker, list: func() []reply { return []reply{images()} }, ends: 5 * time.Minute},
		{name: "never, four minutes ago", marker: marker, ago: 4 * time.Minute, list: func() []reply { return []reply{images()} }, ends: time.Minute},
		{name: "asked in the future", marker: marker, ago: -time.Hour, list: func() []reply { return []reply{images()} }, ends: 5 * time.Minute},
		{name: "its tag comes late", marker: marker, list: func() []reply { return []reply{images(anImage("i-1", "web-01", at(0)))} }, want: "i-1", by: "name", ends: 150 * time.Second},
		{name: "without a tag", list: func() []reply { return []reply{images(anImage("i-1", "web-01", at(0)))} }, want: "i-1", by: "name"},
		{name: "somebody else's", marker: marker, ago: time.Hour, list: func() []reply { return []reply{images(anImage("i-1", "web-01", at(0), "run=other"))} }},
		{name: "older", ago: time.Hour, list: func() []reply { return []reply{images(anImage("i-1", "web-01", at(-2*time.Hour)))} }},
		{name: "two", marker: marker, list: func() []reply {
			return []reply{images(anImage("i-1", "web-01", at(0), "run=a1b2"), anImage("i-2", "web-01", at(0), "run=a1b2"))}
		}, kind: -1},
		{name: "refused", marker: marker, list: func() []reply { return []reply{status(403, "")} }, kind: KindPermission},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				f := newFake(t, map[string][]reply{"GET " + listPath: c.list()})
				got, err := newTestClient(t, f, likeDefaults).RecoverImport(background(), "web-01", c.marker, start.Add(-c.ago))
				if took := time.Since(start); took < c.ends || took > c.ends+11*time.Second {
					t.Errorf("it looked for %v, want %v", took, c.ends)
				}
				var unclear *AmbiguousSubmitError
				switch {
				case c.kind == -1:
					if !errors.As(err, &unclear) || len(unclear.Candidates) != 2 {
						t.Errorf("error %v", err)
					}
				case c.kind != 0:
					wantError(t, err, c.kind, "")
				case err != nil:
					t.Error(err)
				case (got == nil) != (c.want == ""):
					t.Errorf("got %+v", got)
				case got != nil && (got.ImageID != c.want || got.RecoveredBy != c.by || !got.Recovered):
					t.Errorf("got %+v", got)
				}
			})
		})
	}
	t.Run("ended", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(background(), time.Second)
			defer cancel()
			f := newFake(t, map[string][]reply{"GET " + listPath: {images()}})
			if _, err := newTestClient(t, f, likeDefaults).RecoverImport(ctx, "web-01", marker, time.Now()); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
		})
	})
}

func likeDefaults(o *Options) { o.LookupInterval, o.LookupLimit = 10*time.Second, 5*time.Minute }
