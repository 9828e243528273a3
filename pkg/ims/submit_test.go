// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const (
	oldImport = "/v2/cloudimages/quickimport/action"
	newImport = "/v2.1/cloudimages/quickimport/action"
	listPath  = "/v2/cloudimages"
)

var accepted = ok(`{"job_id":"` + testJob + `"}`)

func images(items ...string) reply { return ok(`{"images":[` + strings.Join(items, ",") + `]}`) }

// anImage is an image in a list, with the tags given.
func anImage(id, name, created string, tags ...string) string {
	return fmt.Sprintf(`{"id":%q,"name":%q,"created_at":%q,"status":"queued","tags":%s}`,
		id, name, created, strings.ReplaceAll(fmt.Sprintf("%q", tags), `" "`, `","`))
}

func imgError(code string) reply {
	return status(400, `{"error":{"code":"`+code+`","message":"text of `+code+`"}}`)
}

// What the service answers decides whether the request is sent again. posts is how often it was
// sent, the thing that must not be wrong.
func TestSubmit(t *testing.T) {
	apiMissing := status(404, `{"error_code":"APIGW.0101","error_msg":"The API does not exist"}`)
	mine := anImage(testImage, "web-01", "2026-01-02T03:04:05Z", "run=a1b2")
	for _, c := range []struct {
		name         string
		gen          Generation
		older, newer []reply
		list         []reply
		want         Submitted // without the time
		posts        int
		lookups      int // at least; 0 means none at all
		kind         Kind
		text         string
	}{
		{name: "accepted", older: []reply{accepted}, want: Submitted{JobID: testJob, Generation: GenOld}, posts: 1},
		{name: "accepted with blanks", older: []reply{ok(`{"job_id":" ` + testJob + ` "}`)}, want: Submitted{JobID: testJob, Generation: GenOld}, posts: 1},
		{name: "accepted with 202", older: []reply{status(202, accepted.body)}, want: Submitted{JobID: testJob, Generation: GenOld}, posts: 1},

		{name: "auto falls forward", older: []reply{apiMissing}, newer: []reply{accepted}, want: Submitted{JobID: testJob, Generation: GenNew}, posts: 2},
		{name: "new", gen: GenNew, newer: []reply{accepted}, want: Submitted{JobID: testJob, Generation: GenNew}, posts: 1},
		{name: "new falls back on 404", gen: GenNew, newer: []reply{status(404, "")}, older: []reply{accepted}, want: Submitted{JobID: testJob, Generation: GenOld}, posts: 2},
		{name: "new falls back on 405", gen: GenNew, newer: []reply{status(405, "")}, older: []reply{accepted}, want: Submitted{JobID: testJob, Generation: GenOld}, posts: 2},
		{name: "old does not fall", gen: GenOld, older: []reply{apiMissing}, posts: 1, kind: KindUnsupported},
		{name: "both missing", older: []reply{apiMissing}, newer: []reply{apiMissing}, posts: 2, kind: KindUnsupported},
		{name: "404 of IMS is no missing call", older: []reply{status(404, `{"error":{"code":"IMG.0027"}}`)}, posts: 1, kind: KindNotFound},

		{name: "invalid", older: []reply{imgError("IMG.0158")}, posts: 1, kind: KindInvalid, text: "IMG.0158"},
		{name: "quota", older: []reply{imgError("IMG.0015")}, posts: 1, kind: KindQuota},
		{name: "denied", older: []reply{status(403, `{"error_code":"APIGW.0302","error_msg":"x"}`)}, posts: 1, kind: KindPermission},
		{name: "too large", older: []reply{status(413, "")}, posts: 1, kind: KindInvalid},
		{name: "redirect", older: []reply{{status: 307, header: map[string]string{"Location": "https://x/y?z=1"}}}, posts: 1, kind: KindResponse, text: "redirects to https://x/y)"},
		{name: "unauthorized", older: []reply{status(401, "")}, posts: 1, kind: KindAuth},

		{name: "no connection", older: []reply{broken(errRefused), broken(errRefused), accepted}, want: Submitted{JobID: testJob, Generation: GenOld}, posts: 3},
		{name: "never a connection", older: []reply{broken(errRefused)}, posts: 5, kind: KindTransient, text: "refused"},
		{name: "throttled", older: []reply{status(429, `{"error_code":"APIGW.0308"}`), accepted}, want: Submitted{JobID: testJob, Generation: GenOld}, posts: 2},
		{name: "throttled for ever", older: []reply{status(429, "")}, posts: 5, kind: KindThrottled},
		{name: "too many tasks", older: []reply{imgError("IMG.0060"), imgError("IMG.0187"), imgError("IMG.0064"), imgError("IMG.0065"), accepted},
			want: Submitted{JobID: testJob, Generation: GenOld}, posts: 5},
		{name: "EPS down for ever", older: []reply{imgError("IMG.0154")}, posts: 5, kind: KindTransient, text: "IMG.0154"},
		{name: "failed before the work, looked for first", older: []reply{imgError("IMG.0018"), imgError("IMG.0014"), accepted}, list: []reply{images()},
			want: Submitted{JobID: testJob, Generation: GenOld}, posts: 3, lookups: 4},
		{name: "failed, but there it is", older: []reply{imgError("IMG.0014")}, list: []reply{images(mine)},
			want: Submitted{ImageID: testImage, Recovered: true, RecoveredBy: "tag", Generation: GenOld}, posts: 1, lookups: 1},

		{name: "502", older: []reply{status(502, "<html>")}, list: []reply{images(), images(), images(mine)},
			want: Submitted{ImageID: testImage, Recovered: true, RecoveredBy: "tag", Generation: GenOld}, posts: 1, lookups: 3},
		{name: "gateway time limit", older: []reply{status(504, `{"error_code":"APIGW.0201"}`)}, list: []reply{images(mine)},
			want: Submitted{ImageID: testImage, Recovered: true, RecoveredBy: "tag", Generation: GenOld}, posts: 1, lookups: 1},
		{name: "408", older: []reply{status(408, "")}, list: []reply{images(mine)},
			want: Submitted{ImageID: testImage, Recovered: true, RecoveredBy: "tag", Generation: GenOld}, posts: 1, lookups: 1},
		{name: "reset", older: []reply{broken(errReset)}, list: []reply{status(500, ""), broken(errReset), images(mine)},
			want: Submitted{ImageID: testImage, Recovered: true, RecoveredBy: "tag", Generation: GenOld}, posts: 1, lookups: 3},
		{name: "accepted without a job", older: []reply{ok(`{}`)}, list: []reply{images(mine)},
			want: Submitted{ImageID: testImage, Recovered: true, RecoveredBy: "tag", Generation: GenOld}, posts: 1, lookups: 1},
		{name: "accepted by a page", older: []reply{ok(`<html>`)}, list: []reply{images(mine)},
			want: Submitted{ImageID: testImage, Recovered: true, RecoveredBy: "tag", Generation: GenOld}, posts: 1, lookups: 1},
		{name: "204", older: []reply{status(204, "")}, list: []reply{images(mine)},
			want: Submitted{ImageID: testImage, Recovered: true, RecoveredBy: "tag", Generation: GenOld}, posts: 1, lookups: 1},
		{name: "unknown system error", older: []reply{imgError("IMG.0061")}, list: []reply{images(mine)},
			want: Submitted{ImageID: testImage, Recovered: true, RecoveredBy: "tag", Generation: GenOld}, posts: 1, lookups: 1},
		{name: "lost by the newer call after falling back", gen: GenAuto, older: []reply{apiMissing}, newer: []reply{status(500, "")}, list: []reply{images(mine)},
			want: Submitted{ImageID: testImage, Recovered: true, RecoveredBy: "tag", Generation: GenNew}, posts: 2, lookups: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, map[string][]reply{"POST " + oldImport: c.older, "POST " + newImport: c.newer, "GET " + listPath: c.list})
			got, err := newTestClient(t, f, nil).QuickImport(background(), systemDisk(), c.gen)
			if n := f.count("POST", oldImport) + f.count("POST", newImport); n != c.posts {
				t.Errorf("sent %d times, want %d", n, c.posts)
			}
			if n := f.count("GET", listPath); n < c.lookups || c.lookups == 0 && n > 0 {
				t.Errorf("looked %d times, want %d", n, c.lookups)
			}
			if c.kind != 0 {
				if e := wantError(t, err, c.kind, c.text); !strings.Contains(e.Op, "web-01") {
					t.Errorf("operation %q", e.Op)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.SubmittedAt.IsZero() {
				t.Error("no time")
			}
			got.SubmittedAt = time.Time{}
			if *got != c.want {
				t.Errorf("got %+v, want %+v", *got, c.want)
			}
			for _, r := range f.seen {
				if r.method == "POST" && r.body != `{"name":"web-01","image_url":"my-bucket:images/web-01.zvhd2","min_disk":40,`+
					`"os_version":"Ubuntu 22.04 server 64bit","image_tags":[{"key":"run","value":"a1b2"}]}` {
					t.Errorf("body %s", r.body)
				}
			}
		})
	}
}

func TestSubmitInvalidSendsNothing(t *testing.T) {
	r := systemDisk()
	r.Name = ""
	f := newFake(t, nil)
	_, err := newTestClient(t, f, nil).QuickImport(background(), r, GenAuto)
	if v := new(ValidationError); !errors.As(err, &v) || len(f.seen) != 0 {
		t.Errorf("got %v, sent %v", err, f.lines(false))
	}
}

func TestSubmitRenewsToken(t *testing.T) {
	f := newFake(t, map[string][]reply{
		"POST " + tokenPath: {tokenReply("T1", time.Hour), tokenReply("T2", time.Hour)},
		"POST " + oldImport: {status(401, `{"error_code":"APIGW.0307"}`), accepted},
	})
	got, err := newTestClient(t, f, withPassword).QuickImport(background(), systemDisk(), GenAuto)
	if err != nil || got.JobID != testJob {
		t.Fatalf("got %+v, %v", got, err)
	}
	wantLines(t, f.lines(true), "POST "+tokenPath, "POST "+oldImport, "POST "+tokenPath, "POST "+oldImport)
}

// A token that cannot be had sends no import, and says why.
func TestSubmitWithoutToken(t *testing.T) {
	f := newFake(t, map[string][]reply{"POST " + tokenPath: {status(503, "")}})
	_, err := newTestClient(t, f, withPassword).QuickImport(background(), systemDisk(), GenAuto)
	wantError(t, err, KindTransient, "ask for a token")
	if n := f.count("POST", tokenPath); n != 5 {
		t.Errorf("%d attempts", n)
	}
}

// The image is looked for once at least: a slow machine or a short limit must not lose it.
func TestRecoverLooksOnce(t *testing.T) {
	f := newFake(t, map[string][]reply{
		"POST " + oldImport: {status(504, "")},
		"GET " + listPath:   {images(anImage("i-1", "web-01", "", "run=a1b2"))},
	})
	got, err := newTestClient(t, f, func(o *Options) { o.LookupLimit = time.Nanosecond }).QuickImport(background(), systemDisk(), GenAuto)
	if err != nil || got.ImageID != "i-1" || got.RecoveredBy != "tag" {
		t.Errorf("got %+v, %v", got, err)
	}
}

// Time is virtual here: the tag alone is believed in the first half of the time, then the name too.
func TestRecoverByName(t *testing.T) {
	at := func(start time.Time, d time.Duration) string { return start.Add(d).UTC().Format(time.RFC3339) }
	for _, c := range []struct {
		name  string
		image func(start time.Time) []string
		want  string
		text  []string
	}{
		{"ours without its tag yet", func(s time.Time) []string { return []string{anImage("i-1", "web-01", at(s, time.Second))} }, "i-1", nil},
		{"older", func(s time.Time) []string { return []string{anImage("i-1", "web-01", at(s, -time.Hour))} }, "",
			[]string{"no image of it appeared within 5m0s"}},
		{"another import's", func(s time.Time) []string { return []string{anImage("i-1", "web-01", at(s, time.Second), "run=other")} }, "",
			[]string{"no image of it appeared"}},
		{"another name", func(s time.Time) []string { return []string{anImage("i-1", "web-011", at(s, time.Second))} }, "",
			[]string{"no image of it appeared"}},
		{"deleted", func(s time.Time) []string {
			return []string{strings.Replace(anImage("i-1", "web-01", at(s, time.Second)), "queued", "deleted", 1)}
		}, "", []string{"no image of it appeared"}},
		{"two", func(s time.Time) []string {
			return []string{anImage("i-1", "web-01", at(s, time.Second)), anImage("i-2", "web-01", at(s, time.Second))}
		}, "", []string{"several images", "i-1, i-2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				f := newFake(t, map[string][]reply{
					"POST " + oldImport: {status(504, "")},
					// The service ignores the filters: the client must look itself.
					"GET " + listPath: {images(c.image(start)...)},
				})
				cl := newTestClient(t, f, func(o *Options) { o.LookupInterval, o.LookupLimit = 10*time.Second, 5*time.Minute })
				got, err := cl.QuickImport(background(), systemDisk(), GenAuto)
				if n := f.count("POST", oldImport); n != 1 {
					t.Errorf("sent %d times", n)
				}
				if c.want != "" {
					if err != nil || got.ImageID != c.want || got.RecoveredBy != "name" || !got.Recovered {
						t.Errorf("got %+v, %v", got, err)
					}
					if d := time.Since(start); d != 150*time.Second {
						t.Errorf("the name was believed after %v", d)
					}
					q, _ := url.ParseQuery(f.seen[len(f.seen)-1].query)
					if q.Get("name") != "web-01" || q.Get("__imagetype") != "private" ||
						q.Get("created_at") != "gt:"+at(start, -2*time.Second) {
						t.Errorf("query %v", q)
					}
					if q, _ := url.ParseQuery(f.seen[1].query); q.Get("tag") != "run=a1b2" || q.Get("__imagetype") != "private" {
						t.Errorf("query %v", q)
					}
					return
				}
				var a *AmbiguousSubmitError
				if !errors.As(err, &a) {
					t.Fatalf("got %v", err)
				}
				for _, s := range append(c.text, "504") {
					if !strings.Contains(err.Error(), s) {
						t.Errorf("error %q does not hold %q", err, s)
					}
				}
				for _, s := range []string{"run=a1b2", `"web-01"`, at(start, -2*time.Second), "tag=run%3Da1b2", "only if there is none"} {
					if !strings.Contains(a.Hint(), s) {
						t.Errorf("hint %q does not hold %q", a.Hint(), s)
					}
				}
				var e *Error
				if !errors.As(err, &e) || e.Status != 504 {
					t.Errorf("the cause is lost: %v", err)
				}
			})
		})
	}
}

// Without a marker there is only the name.
func TestRecoverWithoutMarker(t *testing.T) {
	f := newFake(t, map[string][]reply{
		"POST " + oldImport: {broken(errReset)},
		"GET " + listPath:   {images(), images(anImage("i-1", "web-01", "2999-01-01T00:00:00Z", "run=other"))},
	})
	r := systemDisk()
	r.MarkerTag = Tag{}
	got, err := newTestClient(t, f, nil).QuickImport(background(), r, GenAuto)
	if err != nil || got.ImageID != "i-1" || got.RecoveredBy != "name" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestRecoverTwoWithTheTag(t *testing.T) {
	f := newFake(t, map[string][]reply{
		"POST " + oldImport: {broken(errReset)},
		"GET " + listPath:   {images(anImage("i-1", "a", "", "run=a1b2"), anImage("i-2", "b", "", "run.a1b2"))},
	})
	_, err := newTestClient(t, f, nil).QuickImport(background(), systemDisk(), GenAuto)
	var a *AmbiguousSubmitError
	if !errors.As(err, &a) || !slices.Equal(a.Candidates, []string{"i-1", "i-2"}) {
		t.Errorf("got %v", err)
	}
}

// Looking for the image can fail in ways that trying again does not mend.
func TestRecoverLookupRefused(t *testing.T) {
	f := newFake(t, map[string][]reply{
		"POST " + oldImport: {broken(errReset)}, "GET " + listPath: {status(403, `{"error_code":"APIGW.0302","error_msg":"no listing"}`)},
	})
	_, err := newTestClient(t, f, nil).QuickImport(background(), systemDisk(), GenAuto)
	var a *AmbiguousSubmitError
	if !errors.As(err, &a) || !strings.Contains(err.Error(), "no listing") || !errors.Is(err, errReset) {
		t.Errorf("got %v", err)
	}
	if n := f.count("GET", listPath); n != 1 {
		t.Errorf("looked %d times", n)
	}
}

// Stopping while the request is under way leaves it open what became of it; before, nothing was
// sent.
func TestSubmitCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(background())
	f := newFake(t, map[string][]reply{"POST " + oldImport: {accepted}})
	f.hook = func(request) { cancel() }
	_, err := newTestClient(t, f, nil).QuickImport(ctx, systemDisk(), GenAuto)
	var a *AmbiguousSubmitError
	if !errors.As(err, &a) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "was not looked up") {
		t.Errorf("got %v", err)
	}

	// While it is looked for.
	ctx, cancel = context.WithCancel(background())
	f = newFake(t, map[string][]reply{"POST " + oldImport: {status(502, "")}, "GET " + listPath: {images()}})
	f.hook = func(r request) {
		if r.method == "GET" {
			cancel()
		}
	}
	_, err = newTestClient(t, f, nil).QuickImport(ctx, systemDisk(), GenAuto)
	if !errors.As(err, &a) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}

	// While waiting for a free task: certainly nothing was created.
	ctx, cancel = context.WithCancel(background())
	f = newFake(t, map[string][]reply{"POST " + oldImport: {imgError("IMG.0060")}})
	c := newTestClient(t, f, func(o *Options) {
		o.OnRetry = func(RetryEvent) { cancel() }
		o.SubmitRetry = Backoff{MaxAttempts: 3, BaseDelay: time.Hour, MaxDelay: time.Hour}
	})
	_, err = c.QuickImport(ctx, systemDisk(), GenAuto)
	if !errors.Is(err, context.Canceled) || errors.As(err, &a) && a.Name != "" && strings.Contains(err.Error(), "lost") {
		t.Errorf("got %v", err)
	}

	// Before.
	f = newFake(t, nil)
	_, err = newTestClient(t, f, nil).QuickImport(ctx, systemDisk(), GenAuto)
	if !errors.Is(err, context.Canceled) || len(f.seen) > 0 {
		t.Errorf("got %v", err)
	}
}

func TestBackoff(t *testing.T) {
	b := Backoff{MaxAttempts: 9, BaseDelay: time.Second, MaxDelay: 10 * time.Second}
	for i, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		if got := b.ceiling(i + 1); got > want*time.Second || got < min(want*time.Second, 8*time.Second) {
			t.Errorf("ceiling(%d) = %v, want %v s", i+1, got, int(want))
		}
	}
	if got := b.ceiling(1000); got != 10*time.Second {
		t.Errorf("ceiling overflows: %v", got)
	}
	smallest, largest := time.Hour, time.Duration(0)
	for range 2000 {
		d := b.delay(4, 0)
		smallest, largest = min(smallest, d), max(largest, d)
	}
	if largest > 8*time.Second || largest < 6*time.Second || smallest > 2*time.Second {
		t.Errorf("jitter from %v to %v, want the whole of 0 to 8 s", smallest, largest)
	}
	if d := b.delay(1, 20*time.Second); d < 20*time.Second || d > 21*time.Second {
		t.Errorf("Retry-After is not honoured: %v", d)
	}
	if d := b.delay(1, time.Hour); d > 41*time.Second {
		t.Errorf("Retry-After of an hour: %v", d)
	}
}
