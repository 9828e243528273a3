// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"encoding/json"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func FuzzErrorBody(f *testing.F) {
	for _, s := range []string{
		"", `{"error":{"message":"m","code":"IMG.0024"}}`, `{"error_msg":"m","error_code":"APIGW.0301","request_id":"r"}`,
		`{"error":{"code":401,"message":"m","title":"t"}}`, `{"error_code":"x","details":[{"error_code":"a","error_msg":"b"},1]}`,
		`<?xml version="1.0"?><e><code>1</code><message>a<b>c</b></message></e>`, "<html><title>t</title></html>", "<", "<title>", "\x1b[31mred",
		`{"a":{"b":{"message":"m"}}}`, `[[[[`, "<!DOCTYPE x [<!ENTITY a \"b\">]><e>&a;</e>",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		e := answerError(400, http.Header{"X-Request-Id": {body}, "Retry-After": {body}}, []byte(body), time.Now())
		for _, s := range []string{e.Error(), e.Hint()} {
			if !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\x1b\r\n\u009b\u202e") {
				t.Errorf("not fit to print: %q", s)
			}
		}
		if len(e.Error()) > 2000 || e.RetryAfter < 0 {
			t.Errorf("%d bytes, %v", len(e.Error()), e.RetryAfter)
		}
	})
}

func FuzzJob(f *testing.F) {
	for _, s := range []string{
		`{"job_id":"j","status":"RUNNING","entities":{"process_percent":0.4,"image_id":"i","subJobId":"s"}}`,
		`{"job_id":"j","status":"FAIL","error_code":"IMG.0057","fail_reason":"r"}`,
		`{"status":"success","entities":{"sub_jobs_result":[{"status":"fail","entities":{"sub_jobs_result":[{}]}}],"results":[{"image_id":"i"}]}}`,
		`{"status":1,"entities":{"process_percent":"1e400"}}`, `{}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		m, err := decodeObject([]byte(body))
		if err != nil {
			return
		}
		j := jobFromObject(m, 0)
		if j.Progress > 1 || j.Progress < 0 && j.Progress != -1 || j.Progress != j.Progress {
			t.Errorf("progress %v", j.Progress)
		}
		if (j.Status == JobFail) != (j.Err() != nil) {
			t.Errorf("status %s, error %v", j.Status, j.Err())
		}
		// What is shown or kept as JSON comes back as it was.
		b, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		var again Job
		if err := json.Unmarshal(b, &again); err != nil {
			t.Fatal(err)
		}
		if b2, _ := json.Marshal(again); string(b2) != string(b) {
			t.Errorf("%s became %s", b, b2)
		}
		_ = jobIDOf([]byte(body))
	})
}

func FuzzImage(f *testing.F) {
	for _, s := range []string{
		sampleImage, `{}`, `{"tags":[{"key":"a","value":"b"}]}`, `{"min_disk":"x","protected":"yes","__image_size":1e3}`, `{"id":7,"name":{}}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		var i Image
		if json.Unmarshal([]byte(body), &i) != nil {
			return
		}
		b, err := json.Marshal(i)
		if err != nil {
			t.Fatal(err)
		}
		var again Image
		if err := json.Unmarshal(b, &again); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(i, again) {
			t.Errorf("%+v\nbecame %+v\nby %s", i, again, b)
		}
	})
}

// The canonical forms are their own canonical forms, whatever they are made of.
func FuzzCanonicalRequest(f *testing.F) {
	f.Add("/v2/cloudimages", "name=my%20image%2B1~2&__imagetype=private&tag=a%3Db")
	f.Add("", "a&a=&=b&%zz=%&+=+;")
	f.Add("//a/../%2f é\xff", "\x00=\xff&a=%ff")
	f.Fuzz(func(t *testing.T, path, query string) {
		p := canonicalPath(path)
		if !strings.HasSuffix(p, "/") {
			t.Errorf("path %q does not end with a slash", p)
		}
		decoded, err := url.PathUnescape(p)
		if err != nil || canonicalPath(decoded) != p || strings.TrimSuffix(decoded, "/") != strings.TrimSuffix(path, "/") {
			t.Errorf("path %q: %q decodes to %q, %v", path, p, decoded, err)
		}
		q := canonicalQuery(query)
		if canonicalQuery(q) != q {
			t.Errorf("query %q: %q becomes %q", query, q, canonicalQuery(q))
		}
		if strings.ContainsFunc(p+q, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("unencoded characters in %q, %q", p, q)
		}
		canonical, names := canonicalRequest("get", path, query, []signedHeader{{"x-b", " v "}, {"host", "h"}}, "hash")
		if names != "host;x-b" || canonical != "GET\n"+p+"\n"+q+"\nhost:h\nx-b:v\n\nhost;x-b\nhash" {
			t.Errorf("canonical request %q", canonical)
		}
	})
}

func FuzzNearestOSVersions(f *testing.F) {
	f.Add("ubuntu 22.04", "Ubuntu 22.04 server 64bit")
	f.Add("é.1.", "\xff(64_bit)")
	f.Fuzz(func(t *testing.T, want, key string) {
		list := append(StaticOSVersions()[:20], OSVersion{Key: key})
		got := NearestOSVersions(want, list, 5)
		if len(got) > 5 {
			t.Errorf("%d names", len(got))
		}
	})
}
