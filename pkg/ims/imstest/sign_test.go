// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// vector is a request of the documentation's test vectors with its signature.
type vector struct {
	name, method, target, body string
	header                     map[string]string
	signed, signature          string
}

var vectors = []vector{
	{"A", "GET", "/v1/cloudimages/job/ff80808280c204e30180d2784c3c0d86", "",
		map[string]string{"X-Project-Id": "0b1e494e2660441a957313163095fe5c"},
		"host;x-project-id;x-sdk-date", "c77885da8ee0d54054729951324043be1ed3ac7e04d285f5485bda2b50767c1f"},
	{"B", "POST", "/v2/cloudimages/quickimport/action",
		`{"name":"demo","image_url":"bkt:img/demo.zvhd2","os_version":"Ubuntu 22.04 server 64bit","min_disk":40}`,
		map[string]string{"X-Project-Id": "0b1e494e2660441a957313163095fe5c", "Content-Type": "application/json"},
		"host;x-project-id;x-sdk-date", "3081e9d50b5c5fc2ba122fd9d98993a4a4b339ef1b7bcf1eee08aea3591f8d88"},
	{"C", "GET", "/v2/cloudimages?tag=a%3Db&name=my+image%2B1~2&__imagetype=private", "", nil,
		"host;x-sdk-date", "4f41e078ca6d6efa031efbec60ac9a08b3241663031a9d45d0c32c894cbe0fa1"},
	{"D", "GET", "/v2/cloudimages", "", nil,
		"x-sdk-date", "d5f56706871c8075fe242194148ff550d0ebc34c80a763498aaaca53552e1c40"},
	{"E", "GET", "/v1/cloudimages/quota", "", map[string]string{"X-Security-Token": "TOKENEXAMPLE"},
		"host;x-sdk-date;x-security-token", "2de7e03e124eea4a7ab42accf757587790e34031180637a6ecc112b928636de3"},
	{"F", "PUT", "/v2/images/84ac7f2b-bf19-4efb-86a0-b5be8771b476/file", "anything at all",
		map[string]string{"Content-Type": "application/octet-stream", "X-Sdk-Content-Sha256": "UNSIGNED-PAYLOAD"},
		"host;x-sdk-content-sha256;x-sdk-date", "a19996d122bc3ba3a26feeab685123a5a41d45d680cec167940c6906fd7cd14d"},
}

func (v vector) request() *http.Request {
	r := httptest.NewRequest(v.method, v.target, strings.NewReader(v.body))
	r.Host = "ims.eu-west-101.myhuaweicloud.eu"
	r.Header.Set("X-Sdk-Date", "20260102T030405Z")
	for k, x := range v.header {
		r.Header.Set(k, x)
	}
	r.Header.Set("Authorization", "SDK-HMAC-SHA256 Access="+testAccount.AccessKey+", SignedHeaders="+v.signed+", Signature="+v.signature)
	return r
}

// verify checks a vector's request at the time it was signed, d later.
func (v vector) verify(r *http.Request, d time.Duration) error {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(d)
	_, err := verifySignature(r, now, func(ak string) (Account, bool) {
		a := testAccount
		a.SecurityToken = v.header["X-Security-Token"]
		return a, ak == a.AccessKey
	})
	return err
}

func TestVectors(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			r := v.request()
			if err := v.verify(r, 0); err != nil {
				t.Fatal(err)
			}
			var body bytes.Buffer
			if _, err := body.ReadFrom(r.Body); err != nil || body.String() != v.body {
				t.Errorf("the body is gone: %q, %v", body.String(), err)
			}
		})
	}
}

// TestTampering changes one thing after another in requests that are good.
func TestTampering(t *testing.T) {
	for _, tc := range []struct {
		name   string
		vector int
		late   time.Duration
		change func(r *http.Request)
	}{
		{"method", 0, 0, func(r *http.Request) { r.Method = "DELETE" }},
		{"path", 0, 0, func(r *http.Request) { r.URL.Path += "x" }},
		{"host", 0, 0, func(r *http.Request) { r.Host = "ims.example.com" }},
		{"signed header", 0, 0, func(r *http.Request) { r.Header.Set("X-Project-Id", "x") }},
		{"signed header missing", 0, 0, func(r *http.Request) { r.Header.Del("X-Project-Id") }},
		{"query value", 2, 0, func(r *http.Request) { r.URL.RawQuery += "&limit=1" }},
		{"query malformed", 2, 0, func(r *http.Request) { r.URL.RawQuery += "&x=%zz" }},
		{"body", 1, 0, func(r *http.Request) { r.Body = http.NoBody }},
		{"date", 3, 0, func(r *http.Request) { r.Header.Set("X-Sdk-Date", "20260102T030406Z") }},
		{"no date", 3, 0, func(r *http.Request) { r.Header.Del("X-Sdk-Date") }},
		{"security token", 4, 0, func(r *http.Request) { r.Header.Set("X-Security-Token", "x") }},
		{"payload hash", 5, 0, func(r *http.Request) { r.Header.Set("X-Sdk-Content-Sha256", "x") }},
		{"payload hash not signed", 3, 0, func(r *http.Request) { r.Header.Set("X-Sdk-Content-Sha256", "UNSIGNED-PAYLOAD") }},
		{"too late", 3, clockWindow + time.Second, func(*http.Request) {}},
		{"too early", 3, -clockWindow - time.Second, func(*http.Request) {}},
		{"unknown key", 3, 0, func(r *http.Request) { replaceAuth(r, "AKEXAMPLE", "AKOTHER") }},
		{"signature", 3, 0, func(r *http.Request) { replaceAuth(r, "Signature=d", "Signature=e") }},
		{"order of signed headers", 0, 0, func(r *http.Request) {
			replaceAuth(r, "host;x-project-id;x-sdk-date", "x-sdk-date;host;x-project-id")
		}},
		{"date not signed", 0, 0, func(r *http.Request) { replaceAuth(r, ";x-sdk-date", "") }},
		{"algorithm", 0, 0, func(r *http.Request) { replaceAuth(r, "SDK-HMAC-SHA256", "SDK-HMAC-SM3") }},
		{"no signature", 0, 0, func(r *http.Request) { replaceAuth(r, ", Signature=", ", Sig=") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := vectors[tc.vector]
			r := v.request()
			tc.change(r)
			if err := v.verify(r, tc.late); err == nil {
				t.Error("it verifies")
			}
		})
	}
	for _, d := range []time.Duration{clockWindow, -clockWindow} {
		if err := vectors[3].verify(vectors[3].request(), d); err != nil {
			t.Errorf("%v off: %v", d, err)
		}
	}
}

func replaceAuth(r *http.Request, old, replacement string) {
	r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, replacement, 1))
}

func FuzzAuthorization(f *testing.F) {
	for _, v := range vectors {
		r := v.request()
		f.Add(r.Header.Get("Authorization"), v.target)
	}
	f.Add("SDK-HMAC-SHA256 Access=AKEXAMPLE0000000001, SignedHeaders=x-sdk-date, Signature=", "/v2/cloudimages?a=%2B&a=+&b")
	f.Fuzz(func(t *testing.T, header, target string) {
		r := vectors[3].request()
		path, query, _ := strings.Cut(target, "?")
		r.URL.Path, r.URL.RawQuery = path, query
		r.Header.Set("Authorization", header)
		// Only the one right signature of this very request may pass.
		if err := vectors[3].verify(r, 0); err == nil && !strings.Contains(header, "Signature=") {
			t.Errorf("%q verifies", header)
		}
	})
}
