// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	vectorKeys = Credentials{AccessKey: "AKEXAMPLE0000000001", SecretKey: "SKexample0000000000000000000000000000001"}
	vectorTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

const (
	vectorHost  = "ims.eu-west-101.myhuaweicloud.eu"
	emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

// The vectors agree bit for bit with the vendor's own signer.
func TestSignRequestVectors(t *testing.T) {
	bodyB := `{"name":"demo","image_url":"bkt:img/demo.zvhd2","os_version":"Ubuntu 22.04 server 64bit","min_disk":40}`
	if len(bodyB) != 103 {
		t.Fatalf("body of B has %d bytes", len(bodyB))
	}
	for _, v := range []struct {
		name, method, path string
		query              url.Values
		header             map[string]string
		token, body        string
		canonicalHash      string
		signedHeaders      string
		signature          string
	}{
		{
			name: "A", method: "GET", path: "/v1/cloudimages/job/ff80808280c204e30180d2784c3c0d86",
			header:        map[string]string{"X-Project-Id": "0b1e494e2660441a957313163095fe5c"},
			canonicalHash: "7b9a57293d86ba7254fcf9e272c898bc5b8fdd6a6c9b0a9a88d9b39e54c700ae",
			signedHeaders: "host;x-project-id;x-sdk-date",
			signature:     "c77885da8ee0d54054729951324043be1ed3ac7e04d285f5485bda2b50767c1f",
		},
		{
			name: "B", method: "POST", path: "/v2/cloudimages/quickimport/action", body: bodyB,
			header: map[string]string{
				"X-Project-Id": "0b1e494e2660441a957313163095fe5c", "Content-Type": "application/json",
			},
			canonicalHash: "08cd47df1ac16ec0369721e80820fd0d839bd1d7fc8df695a7a4905a641d96a1",
			signedHeaders: "host;x-project-id;x-sdk-date",
			signature:     "3081e9d50b5c5fc2ba122fd9d98993a4a4b339ef1b7bcf1eee08aea3591f8d88",
		},
		{
			name: "C", method: "GET", path: "/v2/cloudimages",
			query:         url.Values{"name": {"my image+1~2"}, "__imagetype": {"private"}, "tag": {"a=b"}},
			canonicalHash: "a016bd20c780f11b11f269251f45a3a609d575468a0668b8bed09db6aa109d9d",
			signedHeaders: "host;x-sdk-date",
			signature:     "4f41e078ca6d6efa031efbec60ac9a08b3241663031a9d45d0c32c894cbe0fa1",
		},
		{
			name: "E", method: "GET", path: "/v1/cloudimages/quota", token: "TOKENEXAMPLE",
			canonicalHash: "d76fbb2e018d13909284b4b1aac9b7dde154c5e03378eb5436c97e0066ff8909",
			signedHeaders: "host;x-sdk-date;x-security-token",
			signature:     "2de7e03e124eea4a7ab42accf757587790e34031180637a6ecc112b928636de3",
		},
		{
			name: "F", method: "PUT", path: "/v2/images/84ac7f2b-bf19-4efb-86a0-b5be8771b476/file",
			header: map[string]string{
				"Content-Type": "application/octet-stream", "X-Sdk-Content-Sha256": "UNSIGNED-PAYLOAD",
			},
			body:          "anything",
			canonicalHash: "969457a7f22fb2d42cde809805e735b17188b7006ae1d874f7f601328de6835c",
			signedHeaders: "host;x-sdk-content-sha256;x-sdk-date",
			signature:     "a19996d122bc3ba3a26feeab685123a5a41d45d680cec167940c6906fd7cd14d",
		},
	} {
		t.Run(v.name, func(t *testing.T) {
			req, err := http.NewRequest(v.method, "https://"+vectorHost+v.path+"?"+v.query.Encode(), strings.NewReader(v.body))
			if err != nil {
				t.Fatal(err)
			}
			for k, s := range v.header {
				req.Header.Set(k, s)
			}
			// Neither is signed, whoever adds it.
			req.Header.Set("User-Agent", "anything")
			req.Header.Set("X-With_underscore", "anything")
			cred := vectorKeys
			cred.SecurityToken = v.token
			if err := SignRequest(req, hexSHA256([]byte(v.body)), cred, vectorTime); err != nil {
				t.Fatal(err)
			}
			want := "SDK-HMAC-SHA256 Access=AKEXAMPLE0000000001, SignedHeaders=" + v.signedHeaders + ", Signature=" + v.signature
			if got := req.Header.Get("Authorization"); got != want {
				t.Errorf("Authorization\n got %s\nwant %s", got, want)
			}
			if got := req.Header.Get("X-Sdk-Date"); got != "20260102T030405Z" {
				t.Errorf("X-Sdk-Date %s", got)
			}
			// The intermediate value, too, so that a failure shows where it comes from.
			var headers []signedHeader
			for _, name := range strings.Split(v.signedHeaders, ";") {
				value := req.Header.Get(name)
				if name == "host" {
					value = vectorHost
				}
				headers = append(headers, signedHeader{name, value})
			}
			payload := hexSHA256([]byte(v.body))
			if v.name == "F" {
				payload = "UNSIGNED-PAYLOAD"
			}
			canonical, _ := canonicalRequest(v.method, v.path, v.query.Encode(), headers, payload)
			if got := hexSHA256([]byte(canonical)); got != v.canonicalHash {
				t.Errorf("canonical request %q has hash %s, want %s", canonical, got, v.canonicalHash)
			}
		})
	}
}

func TestCanonicalRequestVectors(t *testing.T) {
	const pathA = "/v1/cloudimages/job/ff80808280c204e30180d2784c3c0d86"
	canonical, names := canonicalRequest("GET", pathA, "", []signedHeader{
		{"x-sdk-date", "20260102T030405Z"}, {"host", vectorHost}, {"x-project-id", " 0b1e494e2660441a957313163095fe5c "},
	}, emptySHA256)
	want := "GET\n" + pathA + "/\n\nhost:" + vectorHost + "\nx-project-id:0b1e494e2660441a957313163095fe5c\n" +
		"x-sdk-date:20260102T030405Z\n\nhost;x-project-id;x-sdk-date\n" + emptySHA256
	if canonical != want || names != "host;x-project-id;x-sdk-date" {
		t.Errorf("A: got %q, %q", canonical, names)
	}

	// D signs no host, which SignRequest never does.
	canonical, names = canonicalRequest("GET", "/v2/cloudimages", "", []signedHeader{
		{"x-sdk-date", "20260102T030405Z"},
	}, emptySHA256)
	got := authorization(vectorKeys, vectorTime, canonical, names)
	if !strings.HasSuffix(got, "SignedHeaders=x-sdk-date, Signature=d5f56706871c8075fe242194148ff550d0ebc34c80a763498aaaca53552e1c40") {
		t.Errorf("D: got %s", got)
	}

	if got := canonicalQuery("tag=a%3Db&name=my%20image%2B1~2&__imagetype=private"); got !=
		"__imagetype=private&name=my%20image%2B1~2&tag=a%3Db" {
		t.Errorf("C: query %s", got)
	}
}

func TestCanonicalPath(t *testing.T) {
	for in, want := range map[string]string{
		"":           "/",
		"/":          "/",
		"/a":         "/a/",
		"/a/":        "/a/",
		"/a//b":      "/a//b/",
		"/a b+c~é/ä": "/a%20b%2Bc~%C3%A9/%C3%A4/",
		"/=&?%":      "/%3D%26%3F%25/",
	} {
		if got := canonicalPath(in); got != want {
			t.Errorf("canonicalPath(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCanonicalQuery(t *testing.T) {
	for in, want := range map[string]string{
		"":              "",
		"&&":            "",
		"a":             "a=",
		"a=":            "a=",
		"b=2&a=1":       "a=1&b=2",
		"a=2&a=1&a":     "a=&a=1&a=2",
		"a=x+y":         "a=x%20y",
		"a=%zz":         "a=%25zz",
		"a=b=c":         "a=b%3Dc",
		"B=1&a=1&_=1":   "B=1&_=1&a=1",
		"tag=x86&tag=b": "tag=b&tag=x86",
	} {
		if got := canonicalQuery(in); got != want {
			t.Errorf("canonicalQuery(%q) = %q, want %q", in, got, want)
		}
	}
}

// An implementation with nothing in common with the one under test: net/url parses and a plain loop
// encodes.
func TestCanonicalQueryAgainstSimple(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pairs := rapid.SliceOfN(rapid.SliceOfN(rapid.StringN(0, 6, 12), 2, 2), 0, 8).Draw(t, "pairs")
		values := url.Values{}
		for _, p := range pairs {
			values.Add(p[0], p[1])
		}
		escape := func(s string) string {
			var out string
			for _, b := range []byte(s) {
				if strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~", rune(b)) {
					out += string(rune(b))
				} else {
					out += "%" + strings.ToUpper(hex.EncodeToString([]byte{b}))
				}
			}
			return out
		}
		var names, list []string
		for name := range values {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			sort.Strings(values[name])
			for _, v := range values[name] {
				list = append(list, escape(name)+"="+escape(v))
			}
		}
		want := strings.Join(list, "&")
		// The order in the request must not matter.
		raw := strings.Split(values.Encode(), "&")
		raw = rapid.Permutation(raw).Draw(t, "order")
		if got := canonicalQuery(strings.Join(raw, "&")); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

func TestSignRequestHost(t *testing.T) {
	for _, c := range []struct{ target, host, want string }{
		{"https://h.example.com/", "", "h.example.com"},
		{"https://h.example.com:443/", "", "h.example.com"},
		{"http://h.example.com:80/", "", "h.example.com"},
		{"http://h.example.com:443/", "", "h.example.com:443"},
		{"https://h.example.com:8443/", "", "h.example.com:8443"},
		{"http://127.0.0.1:9000/", "", "127.0.0.1:9000"},
		{"https://[::1]:443/", "", "[::1]"},
		{"https://[::1]:444/", "", "[::1]:444"},
		{"https://h.example.com/", "other.example.com", "other.example.com"},
	} {
		req, err := http.NewRequest("GET", c.target, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.host != "" {
			req.Host = c.host
		}
		if err := SignRequest(req, emptySHA256, vectorKeys, vectorTime); err != nil {
			t.Fatal(err)
		}
		canonical, names := canonicalRequest("GET", "/", "", []signedHeader{
			{"host", c.want}, {"x-sdk-date", "20260102T030405Z"},
		}, emptySHA256)
		if want := authorization(vectorKeys, vectorTime, canonical, names); req.Header.Get("Authorization") != want {
			t.Errorf("%s (%s): not signed for host %s", c.target, c.host, c.want)
		}
		if req.Host != c.want {
			t.Errorf("%s: sent with host %s, signed for %s", c.target, req.Host, c.want)
		}
	}
}

func TestSignRequestRefuses(t *testing.T) {
	req, _ := http.NewRequest("GET", "https://h/", nil)
	for _, cred := range []Credentials{{}, {AccessKey: "a"}, {SecretKey: "s"}} {
		if SignRequest(req, emptySHA256, cred, vectorTime) == nil {
			t.Errorf("signed with incomplete keys %+v", cred)
		}
	}
	if SignRequest(&http.Request{Method: "GET", URL: &url.URL{Path: "/"}, Header: http.Header{}}, emptySHA256, vectorKeys, vectorTime) == nil {
		t.Error("signed without a host")
	}
	// A token of an earlier signature must not stay when the keys are permanent.
	req.Header.Set("X-Security-Token", "old")
	if err := SignRequest(req, emptySHA256, vectorKeys, vectorTime); err != nil || req.Header.Get("X-Security-Token") != "" {
		t.Errorf("stale security token kept: %v, %v", err, req.Header)
	}
}

func TestCredentialsAreNotShown(t *testing.T) {
	cred := Credentials{AccessKey: "AKIDENTIFIER01", SecretKey: "TOPSECRET-KEY", SecurityToken: "TOPSECRET-TOKEN"}
	password := Password{UserName: "u", DomainName: "d", Password: "TOPSECRET-PASSWORD"}
	var texts []string
	for _, v := range []any{
		cred, &cred, []Credentials{cred}, struct{ C Credentials }{cred}, password, &password,
		AKSK(StaticCredentials(cred)), PasswordToken(password), StaticToken("TOPSECRET-READY"),
		Options{Auth: PasswordToken(password)}, Options{Auth: StaticToken("TOPSECRET-READY")},
		newTestClient(t, nil, func(o *Options) { o.Auth = PasswordToken(password) }),
		newTestClient(t, nil, func(o *Options) { o.Auth = StaticToken("TOPSECRET-READY") }),
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			texts = append(texts, fmt.Sprintf(verb, v))
		}
	}
	for _, p := range []any{cred, password} {
		b, err := jsonMarshal(p)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, b)
	}
	texts = append(texts, cred.LogValue().String(), password.LogValue().String(), cred.GoString())
	if i := slices.IndexFunc(texts, func(s string) bool {
		return strings.Contains(s, "TOPSECRET") || strings.Contains(s, hex.EncodeToString([]byte("TOPSECRET"))) ||
			strings.Contains(s, "AKIDENTIFIER01")
	}); i >= 0 {
		t.Errorf("a secret shows in %q", texts[i])
	}
	if !strings.Contains(cred.String(), "AKID…") {
		t.Errorf("keys cannot be told apart: %s", cred)
	}
}
