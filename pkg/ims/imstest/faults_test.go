// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"net/http"
	"testing"
	"time"
)

func TestFaults(t *testing.T) {
	const quota = "/v1/cloudimages/quota"
	for _, tc := range []struct {
		name   string
		faults Faults
		check  func(t *testing.T, f *fixture)
	}{
		{"throttle", Faults{Throttle: 2}, func(t *testing.T, f *fixture) {
			for range 2 {
				if a := f.do("GET", quota, nil); a.status != http.StatusTooManyRequests || a.code() != "APIGW.0308" {
					t.Errorf("%d %s", a.status, a.raw)
				}
			}
			if a := f.do("GET", quota, nil); a.status != http.StatusOK {
				t.Errorf("afterwards: %d %s", a.status, a.raw)
			}
		}},
		{"server errors", Faults{ServerErrors: 1}, func(t *testing.T, f *fixture) {
			if a := f.do("GET", quota, nil); a.status != http.StatusServiceUnavailable || len(a.raw) != 0 {
				t.Errorf("%d %s", a.status, a.raw)
			}
			if a := f.do("GET", quota, nil); a.status != http.StatusOK {
				t.Errorf("afterwards: %d %s", a.status, a.raw)
			}
		}},
		{"flow control", Faults{FlowControl: 1}, func(t *testing.T, f *fixture) {
			if a := f.do("POST", quickPath, body()); a.code() != "IMG.0060" {
				t.Errorf("%d %s", a.status, a.raw)
			}
			if n := len(f.list("name", "demo")); n != 0 {
				t.Errorf("%d images", n)
			}
			f.wait(f.submit(body()))
		}},
		{"lost answer", Faults{LoseImportAnswers: 1}, func(t *testing.T, f *fixture) {
			if a := f.do("POST", quickPath, body("name", nil)); a.code() != "IMG.0013" {
				t.Errorf("a refused import counts: %d %s", a.status, a.raw)
			}
			start := time.Now().UTC().Add(-time.Minute).Format("2006-01-02T15:04:05Z")
			if a, err := f.try("POST", quickPath, body("image_tags", []Tag{{"run", "r1"}})); err == nil {
				t.Fatalf("an answer came: %d %s", a.status, a.raw)
			}
			if n := len(f.list("name", "demo", "__imagetype", "private", "tag", "run=r1", "created_at", "gt:"+start)); n != 1 {
				t.Errorf("%d images, want the one whose answer was lost", n)
			}
			if left := f.server.Faults().LoseImportAnswers; left != 0 {
				t.Errorf("%d answers are still to be lost", left)
			}
		}},
		{"answer of the load balancer", Faults{FailImportAnswers: 1}, func(t *testing.T, f *fixture) {
			if a := f.do("POST", quickPath, body()); a.status != http.StatusGatewayTimeout || len(a.raw) != 0 {
				t.Errorf("%d %s", a.status, a.raw)
			}
			if n := len(f.list("name", "demo", "__imagetype", "private")); n != 1 {
				t.Errorf("%d images", n)
			}
		}},
		{"no progress call", Faults{NoProgressCall: true}, func(t *testing.T, f *fixture) {
			id := f.submit(body())
			if a := f.do("GET", "/v1/cloudimages/job/"+id, nil); a.status != http.StatusNotFound || a.code() != "APIGW.0101" {
				t.Errorf("%d %s", a.status, a.raw)
			}
			if a := f.do("GET", "/v1/"+f.server.ProjectID()+"/jobs/"+id, nil); a.status != http.StatusOK {
				t.Errorf("status call: %d %s", a.status, a.raw)
			}
		}},
		{"no status call", Faults{NoStatusCall: true}, func(t *testing.T, f *fixture) {
			id := f.submit(body())
			if a := f.do("GET", "/v1/"+f.server.ProjectID()+"/jobs/"+id, nil); a.status != http.StatusNotFound {
				t.Errorf("%d %s", a.status, a.raw)
			}
			f.wait(id)
		}},
		{"no new generation", Faults{NoNewGeneration: true}, func(t *testing.T, f *fixture) {
			if a := f.do("POST", "/v2.1/cloudimages/quickimport/action", body()); a.code() != "APIGW.0101" {
				t.Errorf("%d %s", a.status, a.raw)
			}
			f.wait(f.submit(body()))
		}},
		{"no old generation", Faults{NoOldGeneration: true}, func(t *testing.T, f *fixture) {
			if a := f.do("POST", quickPath, body()); a.code() != "APIGW.0101" {
				t.Errorf("%d %s", a.status, a.raw)
			}
			if a := f.do("POST", "/v2.1/cloudimages/quickimport/action", body()); a.status != http.StatusOK {
				t.Errorf("new: %d %s", a.status, a.raw)
			}
		}},
		{"no OS versions", Faults{NoOSVersions: true}, func(t *testing.T, f *fixture) {
			if a := f.do("GET", "/v1/cloudimages/os_version", nil); a.code() != "APIGW.0101" {
				t.Errorf("%d %s", a.status, a.raw)
			}
		}},
		{"hidden image id", Faults{HideImageID: true}, func(t *testing.T, f *fixture) {
			job := f.wait(f.submit(body()))
			if e := job["entities"].(map[string]any); job["status"] != jobSuccess || e["image_id"] != nil {
				t.Errorf("job %v", job)
			}
		}},
		{"clock", Faults{ClockSkew: time.Hour}, func(t *testing.T, f *fixture) {
			a := f.do("GET", quota, nil)
			date, err := http.ParseTime(a.header.Get("Date"))
			if d := time.Until(date); a.status != http.StatusUnauthorized || a.code() != "APIGW.0301" || err != nil || d < 50*time.Minute {
				t.Errorf("%d %s, date %v %v", a.status, a.raw, date, err)
			}
			if d := a.header.Values("Date"); len(d) != 1 {
				t.Errorf("dates %q", d)
			}
		}},
		{"hook", Faults{Hook: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != quota {
				return false
			}
			w.WriteHeader(http.StatusTeapot)
			return true
		}}, func(t *testing.T, f *fixture) {
			if a := f.do("GET", quota, nil); a.status != http.StatusTeapot {
				t.Errorf("%d %s", a.status, a.raw)
			}
			if a := f.do("GET", "/v2/cloudimages", nil); a.status != http.StatusOK {
				t.Errorf("another call: %d %s", a.status, a.raw)
			}
		}},
		{"expired token", Faults{ExpireTokens: 1}, func(t *testing.T, f *fixture) {
			tok := f.token(object{"name": DefaultRegion})
			if a := f.do("GET", quota, nil, withToken(tok)); a.status != http.StatusUnauthorized || a.code() != "APIGW.0307" {
				t.Errorf("%d %s", a.status, a.raw)
			}
			if a := f.do("GET", quota, nil, withToken(tok)); a.status != http.StatusUnauthorized {
				t.Errorf("the same token again: %d %s", a.status, a.raw)
			}
			if a := f.do("GET", quota, nil, withToken(f.token(object{"name": DefaultRegion}))); a.status != http.StatusOK {
				t.Errorf("a new token: %d %s", a.status, a.raw)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t, Options{Faults: tc.faults})
			f.putDisk("img/demo", testDisk())
			tc.check(t, f)
		})
	}
}

// TestLargeBody: signed requests have a limit that the gateway enforces.
func TestLargeBody(t *testing.T) {
	f := newFixture(t, Options{})
	large := make([]byte, maxSignedBody+1)
	if a := f.do("POST", quickPath, string(large)); a.status != http.StatusRequestEntityTooLarge {
		t.Errorf("%d %s", a.status, a.raw)
	}
}
