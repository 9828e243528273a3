// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func jsonMarshal(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

func TestAnswerErrorShapes(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		name          string
		status        int
		header        map[string]string
		body          string
		code, message string
		id            string
		kind          Kind
	}{
		{
			name: "E1 extension", status: 400, body: `{"error":{"message":"The imagetype is invalid.","code":"IMG.0024"}}`,
			header: map[string]string{"X-Request-Id": "r-1"},
			code:   "IMG.0024", message: "The imagetype is invalid.", id: "r-1", kind: KindInvalid,
		},
		{
			name: "E2 gateway", status: 401,
			body: `{"error_msg":"Incorrect IAM authentication information: x","error_code":"APIGW.0301","request_id":"r-2"}`,
			code: "APIGW.0301", message: "Incorrect IAM authentication information: x", id: "r-2", kind: KindAuth,
		},
		{
			name: "E3 numeric code", status: 401,
			body: `{"error":{"code":401,"message":"The username or password is wrong.","title":"Unauthorized"}}`,
			code: "401", message: "The username or password is wrong.", kind: KindAuth,
		},
		{
			name: "E4 denial", status: 403,
			body: `{"error_msg":"Policy doesn't allow ims:images:list","error_code":"IMS.0001","request_id":"r",` +
				`"encoded_authorization_message":"XXXX","details":[{"error_code":"IMS.0002","error_msg":"denied"}]}`,
			code: "IMS.0001", message: "Policy doesn't allow ims:images:list [IMS.0002 denied]", id: "r", kind: KindPermission,
		},
		{
			name: "E5 XML", status: 403, header: map[string]string{"X-Openstack-Request-Id": "req-9"},
			body: `<?xml version="1.0"?><error><code>403</code><message>not <b>allowed</b> here</message></error>`,
			code: "403", message: "not", id: "req-9", kind: KindPermission,
		},
		{
			name: "E5 XML with prefix", status: 403,
			body: `<e:Error xmlns:e="u"><e:Code>AccessDenied</e:Code><e:Message>no</e:Message><e:RequestId>r7</e:RequestId></e:Error>`,
			code: "AccessDenied", message: "no", id: "r7", kind: KindPermission,
		},
		{
			name: "E5 HTML", status: 404,
			body: "<html>\n<head>\n<title>404 Not Found</title></head><body><h1>404 Not Found</h1>No image found.<br/></body></html>",
			code: "", message: "404 Not Found", kind: KindNotFound,
		},
		{
			name: "E5 Glance", status: 403, body: `{"message":"You are not permitted","code":"403 Forbidden","title":"Forbidden"}`,
			code: "403 Forbidden", message: "You are not permitted", kind: KindPermission,
		},
		{
			name: "E5 fault object", status: 400, body: `{"badRequest":{"code":400,"message":"bad limit"}}`,
			code: "400", message: "bad limit", kind: KindInvalid,
		},
		{name: "E6 empty", status: 502, message: "Bad Gateway", kind: KindTransient},
		{name: "E6 HTML", status: 503, body: "<HTML><body>  busy \x1b[31m now </body>", message: "busy [31m now", kind: KindTransient},
		{name: "plain text", status: 500, body: "upstream\r\nfailed", message: "upstream failed", kind: KindTransient},
		{name: "error is a string", status: 400, body: `{"error":"nope"}`, message: "nope", kind: KindInvalid},
		{name: "a string", status: 400, body: `"nope"`, message: "nope", kind: KindInvalid},
		{name: "null", status: 400, body: `null`, message: "Bad Request", kind: KindInvalid},
		{name: "array", status: 404, body: `[1]`, message: "Not Found", kind: KindNotFound},
		{name: "code without message", status: 400, body: `{"error":{"code":"IMG.0060"}}`, code: "IMG.0060",
			message: "The number of tasks exceeds the flow control limit", kind: KindThrottled},
		{name: "unknown code", status: 400, body: `{"error":{"code":"IMG.0777","message":"new"}}`, code: "IMG.0777",
			message: "new", kind: KindInvalid},
		{name: "quota", status: 400, body: `{"error":{"code":"IMG.0015","message":"full"}}`, code: "IMG.0015",
			message: "full", kind: KindQuota},
		{name: "gateway, other family", status: 404, body: `{"error_code":"APIG.0101","error_msg":"x"}`, code: "APIG.0101",
			message: "x", kind: KindUnsupported},
		{name: "gateway, the status decides", status: 504, body: `{"error_code":"APIGW.0201","error_msg":"Backend timeout."}`,
			code: "APIGW.0201", message: "Backend timeout.", kind: KindTransient},
		{name: "throttled", status: 429, body: `{"error_code":"APIGW.0308","error_msg":"x"}`, code: "APIGW.0308",
			message: "x", kind: KindThrottled},
		{name: "conflict", status: 409, body: "", message: "Conflict", kind: KindConflict},
		{name: "deep nesting", status: 400, body: strings.Repeat(`{"error":`, 50) + `{"code":"x"}` + strings.Repeat("}", 50),
			message: "Bad Request", kind: KindInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := http.Header{}
			for k, v := range c.header {
				h.Set(k, v)
			}
			e := answerError(c.status, h, []byte(c.body), now)
			if e.Code != c.code || e.Message != c.message || e.RequestID != c.id || e.Kind != c.kind || e.Status != c.status {
				t.Errorf("got code %q, message %q, id %q, kind %v; want %q, %q, %q, %v",
					e.Code, e.Message, e.RequestID, e.Kind, c.code, c.message, c.id, c.kind)
			}
			if c.id != "" && !strings.Contains(e.Error(), c.id) {
				t.Errorf("no request id in %q", e)
			}
			if strings.ContainsAny(e.Error(), "\x1b\r\n") {
				t.Errorf("control characters in %q", e)
			}
		})
	}
}

func TestAnswerErrorBounds(t *testing.T) {
	for _, body := range []string{
		strings.Repeat("x", 1<<20), `{"error":{"message":"` + strings.Repeat("é", 1<<18) + `"}}`,
		"<p>" + strings.Repeat("y ", 1<<18), "<a><message>" + strings.Repeat("z", 1<<18),
	} {
		e := answerError(500, http.Header{}, []byte(body), time.Now())
		if len(e.Message) > maxMessage+len("…") || !utf8.ValidString(e.Message) {
			t.Errorf("message of %d bytes kept", len(e.Message))
		}
	}
}

func TestClockSkewHint(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		service time.Duration // service's clock minus ours
		want    string
	}{
		{-17 * time.Minute, "17m0s ahead of the service's"},
		{time.Hour, "1h0m0s behind the service's"},
		{30 * time.Second, ""},
	} {
		h := http.Header{"Date": {now.Add(c.service).Format(http.TimeFormat)}}
		e := answerError(401, h, []byte(`{"error_code":"APIGW.0301","error_msg":"verify failed"}`), now)
		if c.want == "" {
			if strings.Contains(e.Hint(), "behind") || strings.Contains(e.Hint(), "ahead") {
				t.Errorf("the clock is blamed for %v: %q", c.service, e.Hint())
			}
		} else if !strings.Contains(e.Hint(), c.want) {
			t.Errorf("hint %q, want %q", e.Hint(), c.want)
		}
		if e.ClockSkew != -c.service {
			t.Errorf("skew %v, want %v", e.ClockSkew, -c.service)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-1": 0, "x": 0, "999999999": time.Hour, "99999999999999999999": 0,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(-time.Minute).Format(http.TimeFormat):     0,
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("retryAfter(%q) = %v, want %v", in, got, want)
		}
	}
}

func TestCodeTable(t *testing.T) {
	if len(imsCodes) < 200 {
		t.Fatalf("only %d codes", len(imsCodes))
	}
	for code, info := range imsCodes {
		if info.message == "" || info.kind == KindUnknown {
			t.Errorf("%s: %+v", code, info)
		}
	}
	// What may be repeated decides whether a second image can come into being: spelled out here.
	want := map[string]retryRule{
		"IMG.0060": retrySubmit, "IMG.0064": retrySubmit, "IMG.0065": retrySubmit, "IMG.0154": retrySubmit,
		"IMG.0187": retrySubmit, "IMG.0014": retrySubmitAfterLookup, "IMG.0018": retrySubmitAfterLookup,
		"IMG.0023": retryQuery, "IMG.0061": retryQuery,
	}
	for code, info := range imsCodes {
		if info.retry != want[code] {
			t.Errorf("%s: retry rule %v, want %v", code, info.retry, want[code])
		}
	}
	for _, code := range []string{"", "IMG.", "IMG.9999", "APIGW.", "APIGW.9999", "APIGX.0101"} {
		if _, ok := lookupCode(code); ok {
			t.Errorf("%q is known", code)
		}
	}
	for _, code := range []string{"IMG.0158", "APIGW.0301", "APIG.0301"} {
		if info, ok := lookupCode(code); !ok || info.hint == "" {
			t.Errorf("%s has no hint", code)
		}
	}
	if !strings.Contains(imsCodes["IMG.0158"].hint, ".mf") {
		t.Errorf("IMG.0158 does not explain the bitmap: %s", imsCodes["IMG.0158"].hint)
	}
}

func TestKindAndHintThroughWrapping(t *testing.T) {
	e := fmt.Errorf("while: %w", errors.Join(errors.New("x"), &Error{Kind: KindQuota, Code: "IMG.0015"}))
	if KindOf(e) != KindQuota || !strings.Contains(hintOf(e), "quota") {
		t.Errorf("kind %v, hint %q", KindOf(e), hintOf(e))
	}
	if KindOf(errors.New("x")) != KindUnknown || hintOf(errors.New("x")) != "" || KindOf(nil) != KindUnknown {
		t.Error("a foreign error has a kind")
	}
	// The cause is transient, repeating is not the cure.
	ambiguous := &AmbiguousSubmitError{Name: "n", Err: &Error{Kind: KindTransient}}
	if KindOf(ambiguous).Temporary() {
		t.Error("an ambiguous submission looks retriable")
	}
	for k := KindUnknown; k <= KindResponse; k++ {
		if k != KindUnknown && k.String() == "unknown" {
			t.Errorf("kind %d has no name", k)
		}
	}
	if Kind(-1).String() != "unknown" || Kind(99).String() != "unknown" {
		t.Error("kinds out of range")
	}
}

func TestIsMissingCall(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		want   bool
	}{
		{404, "", true},
		{405, "", true},
		{404, `{"error_code":"APIGW.0101","error_msg":"x"}`, true},
		{400, `{"error_code":"APIG.0101","error_msg":"x"}`, true},
		{404, `{"error":{"code":404,"message":"x"}}`, true},
		{404, `{"error":{"code":"IMG.0027","message":"x"}}`, false},
		{400, `{"error":{"code":"IMG.0105","message":"x"}}`, false},
		{404, `{"error":{"code":"IMG.9999","message":"x"}}`, false},
		{403, "", false},
		{500, "", false},
	} {
		if got := isMissingCall(answerError(c.status, http.Header{}, []byte(c.body), time.Now())); got != c.want {
			t.Errorf("%d %s: %v", c.status, c.body, got)
		}
	}
}
