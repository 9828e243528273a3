// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const (
	progressPath = "/v1/cloudimages/job/" + testJob
	statusPath   = "/v1/p1/jobs/" + testJob
)

func job(status, entities string) reply {
	return ok(fmt.Sprintf(`{"job_id":%q,"job_type":"imsImportImageJob","begin_time":"2022-05-17T14:42:20.859Z","end_time":"",
		"status":%q,"error_code":null,"fail_reason":null,"entities":%s}`, testJob, status, entities))
}

func failedJob(code, reason string) reply {
	return ok(fmt.Sprintf(`{"job_id":%q,"status":"FAIL","error_code":%q,"fail_reason":%q,"entities":{"image_id":%q}}`,
		testJob, code, reason, testImage))
}

func TestJobDecoding(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       Job
	}{
		{"success", `{"job_id":"j","job_type":"imsImportImageJob","begin_time":"2024-11-06T06:21:08.769Z",
			"end_time":"2024-11-06T06:27:03.742Z","status":"SUCCESS","error_code":null,"fail_reason":null,
			"entities":{"image_name":"test","image_id":"i"}}`,
			Job{ID: "j", Type: "imsImportImageJob", Status: JobSuccess, BeginTime: "2024-11-06T06:21:08.769Z",
				EndTime: "2024-11-06T06:27:03.742Z", ImageID: "i", ImageName: "test", Progress: 1, ImageIDs: []string{"i"}}},
		{"running", `{"job_id":" j ","status":"RUNNING","end_time":"","entities":{"image_name":"x","process_percent":0.4,
			"current_task":"CopyImageInRegionTask:","subJobId":"s","image_id":"i"}}`,
			Job{ID: "j", Status: JobRunning, ImageID: "i", ImageName: "x", Progress: 0.4, CurrentTask: "CopyImageInRegionTask:",
				SubJobID: "s", ImageIDs: []string{"i"}}},
		{"no entities", `{"job_id":"j","status":"INIT"}`, Job{ID: "j", Status: JobInit, Progress: -1}},
		{"empty entities", `{"job_id":"j","status":"init","entities":{}}`, Job{ID: "j", Status: JobInit, Progress: -1}},
		{"null entities", `{"job_id":"j","status":"running","entities":null}`, Job{ID: "j", Status: JobRunning, Progress: -1}},
		{"entities of a wrong type", `{"job_id":"j","status":"running","entities":[{"image_id":"i"}]}`, Job{ID: "j", Status: JobRunning, Progress: -1}},
		{"unknown status", `{"job_id":"j","status":"Paused"}`, Job{ID: "j", Status: "PAUSED", Progress: -1}},
		{"percent as text", `{"job_id":"j","status":"RUNNING","entities":{"process_percent":"0.25"}}`, Job{ID: "j", Status: JobRunning, Progress: 0.25}},
		{"percent as percent", `{"job_id":"j","status":"RUNNING","entities":{"process_percent":"40"}}`, Job{ID: "j", Status: JobRunning, Progress: 0.4}},
		{"percent too large", `{"job_id":"j","status":"RUNNING","entities":{"process_percent":1e9}}`, Job{ID: "j", Status: JobRunning, Progress: 1}},
		{"percent negative", `{"job_id":"j","status":"RUNNING","entities":{"process_percent":-0.5}}`, Job{ID: "j", Status: JobRunning, Progress: -1}},
		{"percent a bool", `{"job_id":"j","status":"RUNNING","entities":{"process_percent":true}}`, Job{ID: "j", Status: JobRunning, Progress: -1}},
		{"failed", `{"job_id":"j","status":"failed","error_code":"IMG.0057","fail_reason":"bad\u001b[31m\nfile"}`,
			Job{ID: "j", Status: JobFail, ErrorCode: "IMG.0057", FailReason: "bad [31m file", Progress: -1}},
		{"failed, said elsewhere", `{"job_id":"j","status":"FAIL","entities":{"addition_error_code":"IMG.0055","addition_error_msg":"too small"}}`,
			Job{ID: "j", Status: JobFail, ErrorCode: "IMG.0055", FailReason: "too small", Progress: -1}},
		{"members", `{"job_id":"j","status":"FAIL","entities":{"sub_jobs_result":[
			{"status":"success","job_id":"a","entities":{"image_id":"ia","image_name":"na"}},7,
			{"status":"FAIL","job_id":"b","error_code":"IMG.0123","fail_reason":"twice","entities":{"image_id":"ib"}}],
			"sub_jobs_list":["a","b"],"results":[{"image_id":"ia","project_id":"p","status":"success"},{"image_id":"ic"}]}}`,
			Job{ID: "j", Status: JobFail, ErrorCode: "IMG.0123", FailReason: "twice", ImageID: "ia", Progress: -1,
				ImageIDs: []string{"ia", "ib", "ic"}, SubJobs: []Job{
					{ID: "a", Status: JobSuccess, ImageID: "ia", ImageName: "na", Progress: 1, ImageIDs: []string{"ia"}},
					{ID: "b", Status: JobFail, ErrorCode: "IMG.0123", FailReason: "twice", ImageID: "ib", Progress: -1, ImageIDs: []string{"ib"}},
				}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := decodeObject([]byte(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if got := jobFromObject(m, 0); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestJobFallback(t *testing.T) {
	missing := status(404, `{"error_code":"APIGW.0101","error_msg":"The API does not exist"}`)
	running := job("RUNNING", "{}")
	for _, c := range []struct {
		name             string
		progress, status []reply
		kind             Kind
		want             []string // requests of two queries
	}{
		{"current", []reply{running}, nil, 0, []string{"GET " + progressPath, "GET " + progressPath}},
		{"gateway says no", []reply{missing}, []reply{running}, 0, []string{"GET " + progressPath, "GET " + statusPath, "GET " + statusPath}},
		{"404", []reply{status(404, "")}, []reply{running}, 0, []string{"GET " + progressPath, "GET " + statusPath, "GET " + statusPath}},
		{"405", []reply{status(405, "")}, []reply{running}, 0, []string{"GET " + progressPath, "GET " + statusPath, "GET " + statusPath}},
		{"unknown job", []reply{status(404, "")}, []reply{status(404, "")}, KindNotFound,
			[]string{"GET " + progressPath, "GET " + statusPath, "GET " + progressPath, "GET " + statusPath}},
		{"no such job by IMS", []reply{status(404, `{"error":{"code":"IMG.0027","message":"x"}}`)}, nil, KindNotFound,
			[]string{"GET " + progressPath, "GET " + progressPath}},
		{"neither call", []reply{missing}, []reply{missing}, KindUnsupported,
			[]string{"GET " + progressPath, "GET " + statusPath, "GET " + progressPath, "GET " + statusPath}},
		{"denied", []reply{status(403, "")}, nil, KindPermission, []string{"GET " + progressPath, "GET " + progressPath}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, map[string][]reply{"GET " + progressPath: c.progress, "GET " + statusPath: c.status})
			cl := newTestClient(t, f, nil)
			for range 2 {
				j, err := cl.Job(background(), " "+testJob+" ")
				if c.kind != 0 {
					wantError(t, err, c.kind)
				} else if err != nil || j.ID != testJob || j.Status != JobRunning {
					t.Errorf("got %+v, %v", j, err)
				}
			}
			wantLines(t, f.lines(true), c.want...)
		})
	}
}

func TestJobFallbackNeedsProject(t *testing.T) {
	f := newFake(t, map[string][]reply{"GET " + progressPath: {status(404, "")}, "GET /v3/projects": {ok(`{"projects":[]}`)}})
	c := newTestClient(t, f, func(o *Options) { o.ProjectID = ""; o.Auth = StaticToken("ready-token") })
	_, err := c.Job(background(), testJob)
	wantError(t, err, KindNotFound, "query job", "give the project's id")
}

func TestJobRefusesOddIDs(t *testing.T) {
	c := newTestClient(t, newFake(t, nil), nil)
	for _, id := range []string{"", "a/b", "../x", "a?b", "a b", "a%2fb", strings.Repeat("x", 129)} {
		if _, err := c.Job(background(), id); KindOf(err) != KindInvalid {
			t.Errorf("%q: %v", id, err)
		}
		if _, err := c.Image(background(), id); KindOf(err) != KindInvalid {
			t.Errorf("%q: %v", id, err)
		}
		if err := c.DeleteImage(background(), id); KindOf(err) != KindInvalid {
			t.Errorf("%q: %v", id, err)
		}
		if _, err := c.WaitJob(background(), id, WaitOptions{First: -1}); KindOf(err) != KindInvalid {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestJobAnswersWithoutSense(t *testing.T) {
	for _, body := range []string{"", "null", "[]", `"x"`, "{}", `{"status":null}`, "<html>", `{"status":"RUNNING"`, `{} {}`} {
		f := newFake(t, map[string][]reply{"GET " + progressPath: {{status: 200, body: body, header: map[string]string{"X-Request-Id": "rid-7"}}}})
		_, err := newTestClient(t, f, nil).Job(background(), testJob)
		wantError(t, err, KindResponse, "rid-7")
	}
}

// In virtual time: when the queries are made, to the second.
func TestWaitJobPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		replies := slices.Repeat([]reply{job("INIT", "{}"), job("RUNNING", `{"process_percent":0.5}`)}, 5)
		replies = append(replies, job("SUCCESS", `{"image_id":"`+testImage+`"}`))
		f := newFake(t, map[string][]reply{"GET " + progressPath: replies})
		start := time.Now()
		var at []int
		updates := 0
		j, err := newTestClient(t, f, nil).WaitJob(background(), testJob, WaitOptions{OnUpdate: func(*Job) {
			at = append(at, int(time.Since(start).Seconds()))
			updates++
		}})
		if err != nil || j.ImageID != testImage || j.Status != JobSuccess {
			t.Fatalf("got %+v, %v", j, err)
		}
		// 5 s, then 10 s growing by a fifth up to 30 s.
		if want := []int{5, 15, 27, 41, 58, 79, 104, 134, 164, 194, 224}; !slices.Equal(at, want) {
			t.Errorf("queries at %v, want %v", at, want)
		}
	})
}

func TestWaitJobFails(t *testing.T) {
	f := newFake(t, map[string][]reply{"GET " + progressPath: {job("RUNNING", "{}"), failedJob("IMG.0057", "cannot read the file")}})
	j, err := newTestClient(t, f, nil).WaitJob(background(), testJob, quick)
	var failed *JobFailedError
	if !errors.As(err, &failed) {
		t.Fatalf("got %v", err)
	}
	if failed.JobID != testJob || failed.ImageID != testImage || failed.Code != "IMG.0057" || failed.Job != j {
		t.Errorf("got %+v", failed)
	}
	for _, s := range []string{testJob, "IMG.0057", "cannot read the file"} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not hold %q", err, s)
		}
	}
	if h := hintOf(err); !strings.Contains(h, "object") || !strings.Contains(h, testImage) {
		t.Errorf("hint %q", h)
	}
	if KindOf(err) != KindInvalid {
		t.Errorf("kind %v", KindOf(err))
	}
	for _, c := range []struct {
		e    JobFailedError
		want string
	}{
		{JobFailedError{JobID: "j"}, "ims: job j failed without a reason given"},
		{JobFailedError{JobID: "j", Reason: "r"}, "ims: job j failed: r"},
		{JobFailedError{JobID: "j", Code: "IMG.9999"}, "ims: job j failed: IMG.9999"},
		{JobFailedError{JobID: "j", Code: "IMG.0059"}, "ims: job j failed: IMG.0059: The size of the image file exceeds the maximum allowed"},
		{JobFailedError{ImageID: "i", Reason: "r"}, "ims: image i failed: r"},
	} {
		if c.e.Error() != c.want {
			t.Errorf("got %q, want %q", c.e.Error(), c.want)
		}
	}
}

// quick waits without pauses worth mentioning.
var quick = WaitOptions{First: -1, Interval: time.Microsecond, MaxInterval: time.Microsecond}

func TestWaitJobToleratesTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, map[string][]reply{"GET " + progressPath: {
			status(503, ""), broken(errReset), status(429, ""), status(404, `{"error":{"code":"IMG.0027"}}`), ok("<html>"), imgError("IMG.0023"), imgError("IMG.0061"),
			job("RUNNING", "{}"), broken(errRefused), broken(&timeoutError{}), job("SUCCESS", `{"image_id":"i"}`),
		}})
		trouble := 0
		j, err := newTestClient(t, f, nil).WaitJob(background(), testJob, WaitOptions{OnError: func(error) { trouble++ }})
		if err != nil || j.ImageID != "i" || trouble != 9 {
			t.Errorf("got %+v, %v after %d errors", j, err, trouble)
		}
		if n := len(f.seen); n != 11 {
			t.Errorf("%d requests: the queries must not repeat on their own", n)
		}
	})
}

type timeoutError struct{}

func (*timeoutError) Error() string   { return "i/o timeout" }
func (*timeoutError) Timeout() bool   { return true }
func (*timeoutError) Temporary() bool { return true }

func TestWaitJobGivesUp(t *testing.T) {
	for _, c := range []struct {
		name    string
		reply   reply
		kind    Kind
		queries int
	}{
		{"denied", status(403, ""), KindPermission, 1},
		{"unauthorized", status(401, ""), KindAuth, 1},
		{"unknown", status(404, `{"error":{"code":"IMG.0027"}}`), KindNotFound, 3},
		// 5 minutes from the first failure at 5 s: 5, 15, 27, 41, … the one at 314 s is the last.
		{"down too long", status(503, ""), KindTransient, 14},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t, map[string][]reply{"GET " + progressPath: {c.reply}})
				_, err := newTestClient(t, f, nil).WaitJob(background(), testJob, WaitOptions{})
				wantError(t, err, c.kind, testJob)
				if n := f.count("GET", progressPath); n != c.queries {
					t.Errorf("%d queries, want %d", n, c.queries)
				}
			})
		})
	}
}

func TestWaitJobLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, map[string][]reply{"GET " + progressPath: {job("RUNNING", `{"process_percent":0.4,"image_id":"`+testImage+`"}`)}})
		start := time.Now()
		j, err := newTestClient(t, f, nil).WaitJob(background(), testJob, WaitOptions{Limit: time.Minute})
		var timeout *WaitTimeoutError
		if !errors.As(err, &timeout) || timeout.JobID != testJob || timeout.ImageID != testImage || timeout.Job != j || j == nil {
			t.Fatalf("got %v", err)
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("waited %v", d)
		}
		for _, s := range []string{testJob, "1m0s", "RUNNING, 40 %"} {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%q does not hold %q", err, s)
			}
		}
		if !strings.Contains(hintOf(err), "do not import again") {
			t.Errorf("hint %q", hintOf(err))
		}
		// With the service down all the time.
		f.replies["GET "+progressPath] = []reply{status(503, "")}
		_, err = newTestClient(t, f, nil).WaitJob(background(), testJob, WaitOptions{Limit: time.Minute})
		if !errors.As(err, &timeout) || timeout.Job != nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("got %v", err)
		}
	})
}

func TestWaitJobCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(background())
	f := newFake(t, map[string][]reply{"GET " + progressPath: {job("RUNNING", "{}")}})
	_, err := newTestClient(t, f, nil).WaitJob(ctx, testJob, WaitOptions{First: -1, Interval: time.Hour, OnUpdate: func(*Job) { cancel() }})
	if timeout := new(WaitTimeoutError); !errors.Is(err, context.Canceled) || errors.As(err, &timeout) {
		t.Errorf("got %v", err)
	}
}

func TestWaitJobFindsImage(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)
	for _, c := range []struct {
		name string
		list []reply
		o    WaitOptions
		want string
	}{
		{"by tag", []reply{images(anImage("i-1", "other", "", "run=a1b2"))}, WaitOptions{MarkerTag: Tag{"run", "a1b2"}}, "i-1"},
		{"by name", []reply{images(), images(anImage("i-1", "web-01", "2026-01-02T03:04:05Z"))},
			WaitOptions{MarkerTag: Tag{"run", "a1b2"}, Name: "web-01", Since: since}, "i-1"},
		{"not at all", []reply{images()}, WaitOptions{MarkerTag: Tag{"run", "a1b2"}, Name: "web-01", Since: since}, ""},
		{"denied", []reply{status(403, "")}, WaitOptions{MarkerTag: Tag{"run", "a1b2"}}, ""},
		{"not asked for", nil, WaitOptions{Name: "web-01"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, map[string][]reply{"GET " + progressPath: {job("SUCCESS", "{}")}, "GET " + listPath: c.list})
			c.o.First = -1
			j, err := newTestClient(t, f, nil).WaitJob(background(), testJob, c.o)
			if err != nil || j.ImageID != c.want {
				t.Errorf("got %+v, %v", j, err)
			}
		})
	}
}

func TestWaitImage(t *testing.T) {
	in := func(status string) reply { return images(fmt.Sprintf(`{"id":%q,"status":%q}`, testImage, status)) }
	for _, c := range []struct {
		name  string
		list  []reply
		check func(*Image, error) bool
	}{
		{"active", []reply{images(), in("queued"), status(502, ""), in("saving"), in("active")},
			func(i *Image, err error) bool { return err == nil && i.Status == ImageActive }},
		{"killed", []reply{in("queued"), in("killed")}, func(_ *Image, err error) bool {
			var e *JobFailedError
			return errors.As(err, &e) && e.ImageID == testImage && strings.Contains(err.Error(), "killed")
		}},
		{"gone", []reply{in("queued"), images()}, func(_ *Image, err error) bool { return KindOf(err) == KindNotFound }},
		{"denied", []reply{status(403, "")}, func(_ *Image, err error) bool { return KindOf(err) == KindPermission }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, map[string][]reply{"GET " + listPath: c.list})
			if i, err := newTestClient(t, f, nil).WaitImage(background(), testImage, quick); !c.check(i, err) {
				t.Errorf("got %+v, %v", i, err)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, map[string][]reply{"GET " + listPath: {in("saving")}})
		_, err := newTestClient(t, f, nil).WaitImage(background(), testImage, WaitOptions{Limit: time.Hour})
		var e *WaitTimeoutError
		if !errors.As(err, &e) || e.ImageID != testImage || !strings.Contains(err.Error(), testImage) {
			t.Errorf("got %v", err)
		}
	})
}
