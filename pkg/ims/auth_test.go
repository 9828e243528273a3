// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	tokenPath    = "/v3/auth/tokens"
	securityPath = "/v3.0/OS-CREDENTIAL/securitytokens"
	quotaPath    = "/v1/cloudimages/quota"
	quotaBody    = `{"quotas":{"resources":[{"type":"image","used":3,"quota":20,"min":1,"max":1000}]}}`
)

func tokenReply(token string, life time.Duration) reply {
	issued := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC) // only the life counts
	const form = "2006-01-02T15:04:05.000000Z"
	return reply{status: 201, header: map[string]string{"X-Subject-Token": token}, body: fmt.Sprintf(
		`{"token":{"expires_at":%q,"issued_at":%q,"project":{"id":"tp","name":"test-1"}}}`,
		issued.Add(life).Format(form), issued.Format(form))}
}

func withPassword(o *Options) {
	o.ProjectID = ""
	o.Auth = PasswordToken(Password{UserName: "user", DomainName: "account", Password: "the-password"})
}

func TestPasswordTokenRequest(t *testing.T) {
	f := newFake(t, map[string][]reply{
		"POST " + tokenPath: {tokenReply("T1", 24*time.Hour)}, "GET " + quotaPath: {ok(quotaBody)},
	})
	c := newTestClient(t, f, withPassword)
	for range 3 {
		if used, quota, err := c.Quota(background()); err != nil || used != 3 || quota != 20 {
			t.Fatalf("quota %d/%d, %v", used, quota, err)
		}
	}
	if id, err := c.ProjectID(background()); err != nil || id != "tp" {
		t.Errorf("project %q, %v: want the token's", id, err)
	}
	wantLines(t, f.lines(true), "POST "+tokenPath, "GET "+quotaPath, "GET "+quotaPath, "GET "+quotaPath)
	var got, want any
	if err := json.Unmarshal([]byte(f.seen[0].body), &got); err != nil {
		t.Fatal(err)
	}
	_ = json.Unmarshal([]byte(`{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"user",
		"password":"the-password","domain":{"name":"account"}}}},"scope":{"project":{"name":"test-1"}}}}`), &want)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("body %v, want %v", got, want)
	}
	if f.seen[0].query != "nocatalog=true" || f.seen[0].header.Get("X-Auth-Token") != "" || f.seen[0].header.Get("Authorization") != "" {
		t.Errorf("request %+v", f.seen[0])
	}
	if h := f.seen[1].header; h.Get("X-Auth-Token") != "T1" || h.Get("Authorization") != "" {
		t.Errorf("headers %v", h)
	}
}

func TestPasswordTokenBodies(t *testing.T) {
	for _, c := range []struct {
		p    Password
		want []string
	}{
		{Password{UserID: "uid", Password: "pw-pw"}, []string{`"user":{"id":"uid","password":"pw-pw"}`, `"project":{"name":"test-1"}`}},
		{Password{UserName: "u", DomainID: "did", Password: "pw-pw"}, []string{`"domain":{"id":"did"}`}},
		{Password{UserID: "u", Password: "pw-pw", ProjectID: "pid"}, []string{`"project":{"id":"pid"}`}},
		{Password{UserID: "u", Password: "pw-pw", ProjectName: "test-1_sub"}, []string{`"project":{"name":"test-1_sub"}`}},
	} {
		f := newFake(t, map[string][]reply{"POST " + tokenPath: {tokenReply("T", time.Hour)}})
		cl := newTestClient(t, f, func(o *Options) { o.ProjectID = ""; o.Auth = PasswordToken(c.p) })
		if _, err := cl.ProjectID(background()); err != nil {
			t.Fatal(err)
		}
		for _, w := range c.want {
			if !strings.Contains(f.seen[0].body, w) {
				t.Errorf("body %s has no %s", f.seen[0].body, w)
			}
		}
	}
}

// A wrong password is sent once, however many requests want a token, also at the same time.
func TestWrongPasswordOnce(t *testing.T) {
	f := newFake(t, map[string][]reply{"POST " + tokenPath: {status(401,
		`{"error":{"code":401,"message":"The username or password is wrong: the-password","title":"Unauthorized"}}`)}})
	c := newTestClient(t, f, withPassword)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2 {
				_, _, err := c.Quota(background())
				wantError(t, err, KindAuth, "ask for a token", "The username or password is wrong")
				if strings.Contains(err.Error(), "the-password") {
					t.Errorf("the password shows in %v", err)
				}
			}
		})
	}
	wg.Wait()
	if n := f.count("POST", tokenPath); n != 1 {
		t.Errorf("the wrong password was sent %d times", n)
	}
}

func TestTokenIsAskedForOnce(t *testing.T) {
	f := newFake(t, map[string][]reply{
		"POST " + tokenPath: {tokenReply("T1", 24*time.Hour)}, "GET " + quotaPath: {ok(quotaBody)},
	})
	c := newTestClient(t, f, withPassword)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, _, err := c.Quota(background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := f.count("POST", tokenPath); n != 1 {
		t.Errorf("%d tokens were asked for", n)
	}
}

func TestTokenRenewal(t *testing.T) {
	clock := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	f := newFake(t, map[string][]reply{
		"POST " + tokenPath: {tokenReply("T1", 24*time.Hour), tokenReply("T2", 24*time.Hour), status(503, ""),
			status(503, ""), status(503, ""), status(503, ""), status(503, ""), tokenReply("T3", 24*time.Hour)},
		"GET " + quotaPath: {ok(quotaBody)},
	})
	c := newTestClient(t, f, func(o *Options) {
		withPassword(o)
		o.Now = func() time.Time { return clock }
	})
	for _, step := range []struct {
		pass time.Duration
		want string
	}{
		{0, "T1"},
		{23*time.Hour + 29*time.Minute, "T1"}, // 31 minutes remain
		{2 * time.Minute, "T2"},               // 29 remain
		{23*time.Hour + 31*time.Minute, "T2"}, // IAM is down, the token lives on
		{time.Minute, "T3"},
	} {
		clock = clock.Add(step.pass)
		if _, _, err := c.Quota(background()); err != nil {
			t.Fatal(err)
		}
		if got := f.seen[len(f.seen)-1].header.Get("X-Auth-Token"); got != step.want {
			t.Errorf("at %v: token %s, want %s", clock, got, step.want)
		}
	}
}

func TestTokenRefusedIsRenewedOnce(t *testing.T) {
	refused := status(401, `{"error_code":"APIGW.0307","error_msg":"The token must be updated."}`)
	for _, c := range []struct {
		name    string
		replies []reply
		tokens  int
		kind    Kind
	}{
		{"renewed", []reply{refused, ok(quotaBody)}, 2, 0},
		{"IMS says so", []reply{status(400, `{"error":{"code":"IMG.0087","message":"x"}}`), ok(quotaBody)}, 2, 0},
		{"refused again", []reply{refused}, 2, KindAuth},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, map[string][]reply{
				"POST " + tokenPath: {tokenReply("T1", time.Hour), tokenReply("T2", time.Hour)},
				"GET " + quotaPath:  c.replies,
			})
			_, _, err := newTestClient(t, f, withPassword).Quota(background())
			if c.kind == 0 && err != nil {
				t.Error(err)
			} else if c.kind != 0 {
				wantError(t, err, c.kind)
			}
			if n := f.count("POST", tokenPath); n != c.tokens {
				t.Errorf("%d tokens", n)
			}
			if n := f.count("GET", quotaPath); n != 2 {
				t.Errorf("%d requests", n)
			}
			if got := f.seen[len(f.seen)-1].header.Get("X-Auth-Token"); got != "T2" {
				t.Errorf("repeated with %s", got)
			}
		})
	}
}

// Requests that were refused with the same token get one new token together.
func TestTokenRefusedManyAtOnce(t *testing.T) {
	var valid atomic.Value
	valid.Store("T2")
	issued := 0
	handler := roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Path == tokenPath {
			issued++ // the client asks for one at a time; -race would tell
			return tokenReply(fmt.Sprintf("T%d", issued), 24*time.Hour).response(), nil
		}
		if r.Header.Get("X-Auth-Token") != valid.Load() {
			return status(401, `{"error_code":"APIGW.0307"}`).response(), nil
		}
		return ok(quotaBody).response(), nil
	})
	c := newTestClient(t, handler, withPassword)
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			if _, _, err := c.Quota(background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if issued != 2 {
		t.Errorf("%d tokens issued, want 2", issued)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestTokenWithoutHeader(t *testing.T) {
	f := newFake(t, map[string][]reply{"POST " + tokenPath: {status(201, `{}`)}})
	_, _, err := newTestClient(t, f, withPassword).Quota(background())
	wantError(t, err, KindResponse, "no token")
}

func TestStaticToken(t *testing.T) {
	f := newFake(t, map[string][]reply{"GET " + quotaPath: {status(401, `{"error_code":"APIGW.0307","error_msg":"bad ready-token"}`)}})
	c := newTestClient(t, f, func(o *Options) { o.Auth = StaticToken("ready-token") })
	_, _, err := c.Quota(background())
	wantError(t, err, KindAuth, "APIGW.0307", redacted)
	if strings.Contains(err.Error(), "ready-token") {
		t.Errorf("the token shows in %v", err)
	}
	wantLines(t, f.lines(true), "GET "+quotaPath)
	if f.seen[0].header.Get("X-Auth-Token") != "ready-token" {
		t.Errorf("headers %v", f.seen[0].header)
	}
}

func TestAKSKHeaders(t *testing.T) {
	f := newFake(t, map[string][]reply{"GET " + quotaPath: {ok(quotaBody)}})
	cred := testKeys
	cred.SecurityToken = "temporary-token"
	c := newTestClient(t, f, func(o *Options) { o.Auth = AKSK(StaticCredentials(cred)) })
	if _, _, err := c.Quota(background()); err != nil {
		t.Fatal(err)
	}
	h := f.seen[0].header
	if h.Get("X-Project-Id") != "p1" || h.Get("X-Security-Token") != "temporary-token" || h.Get("X-Auth-Token") != "" ||
		!strings.Contains(h.Get("Authorization"), "SignedHeaders=host;x-project-id;x-sdk-date;x-security-token,") {
		t.Errorf("headers %v", h)
	}
	if h.Get("User-Agent") != DefaultUserAgent {
		t.Errorf("user agent %q", h.Get("User-Agent"))
	}
}

// An answer that repeats what it was asked with must not carry it into an error.
func TestErrorsHoldNoSecrets(t *testing.T) {
	cred := Credentials{AccessKey: "AKX", SecretKey: "the-secret-key", SecurityToken: "the-security-token"}
	c := newTestClient(t, roundTrip(func(r *http.Request) (*http.Response, error) {
		return status(401, fmt.Sprintf(`{"error_code":"APIGW.0301","error_msg":"got %s with the-secret-key and %s"}`,
			r.Header.Get("Authorization"), r.Header.Get("X-Security-Token"))).response(), nil
	}), func(o *Options) { o.Auth = AKSK(StaticCredentials(cred)) })
	_, _, err := c.Quota(background())
	wantError(t, err, KindAuth, "APIGW.0301")
	for _, s := range []string{"the-secret-key", "the-security-token", "Signature=", "SDK-HMAC"} {
		if strings.Contains(fmt.Sprintf("%+v", err), s) {
			t.Errorf("%s shows in %+v", s, err)
		}
	}
}

func (r reply) response() *http.Response {
	f := &fake{t: nil, replies: map[string][]reply{"GET /": {r}}}
	req, _ := http.NewRequest("GET", "http://x/", nil)
	resp, err := f.RoundTrip(req)
	if err != nil {
		panic(err)
	}
	return resp
}

func TestExpiredKeysAreReadAgain(t *testing.T) {
	refused := status(401, `{"error_code":"APIGW.0301","error_msg":"expired"}`)
	n := 0
	f := newFake(t, map[string][]reply{"GET " + quotaPath: {refused, ok(quotaBody)}})
	c := newTestClient(t, f, func(o *Options) {
		o.Auth = AKSK(func(context.Context) (Credentials, error) {
			n++
			return Credentials{AccessKey: fmt.Sprintf("AK%d", n), SecretKey: "secret"}, nil
		})
	})
	if _, _, err := c.Quota(background()); err != nil {
		t.Error(err)
	}
	// Keys that do not change are not tried twice.
	f = newFake(t, map[string][]reply{"GET " + quotaPath: {refused}})
	_, _, err := newTestClient(t, f, nil).Quota(background())
	wantError(t, err, KindAuth)
	if len(f.seen) != 1 {
		t.Errorf("%d requests with the same keys", len(f.seen))
	}
}

func TestCredentialsFuncErrors(t *testing.T) {
	errKeys := errors.New("no keys here")
	f := newFake(t, nil)
	c := newTestClient(t, f, func(o *Options) {
		o.Auth = AKSK(func(context.Context) (Credentials, error) { return Credentials{}, errKeys })
	})
	if _, _, err := c.Quota(background()); !errors.Is(err, errKeys) {
		t.Errorf("got %v", err)
	}
	c = newTestClient(t, f, func(o *Options) { o.Auth = AKSK(StaticCredentials(Credentials{AccessKey: "x"})) })
	_, _, err := c.Quota(background())
	wantError(t, err, KindAuth, "no secret key")
	if len(f.seen) != 0 {
		t.Errorf("sent %v", f.lines(false))
	}
}

func TestProjectLookup(t *testing.T) {
	project := func(id, name string) string { return fmt.Sprintf(`{"id":%q,"name":%q}`, id, name) }
	list := func(items ...string) reply { return ok(`{"projects":[` + strings.Join(items, ",") + `],"links":{}}`) }
	denied := status(403, `{"error":{"code":403,"message":"You are not authorized"}}`)
	for _, c := range []struct {
		name        string
		all, own    []reply
		projectName string
		want        string
		kind        Kind
		text        []string
	}{
		{name: "one", all: []reply{list(project("a", "test-1"))}, want: "a"},
		{name: "others and MOS ignored", all: []reply{list(project("m", "MOS"), project("s", "test-1_sub"), project("a", "test-1"))}, want: "a"},
		{name: "by name", projectName: "test-1_sub", all: []reply{list(project("s", "test-1_sub"))}, want: "s"},
		{name: "none", all: []reply{list(project("m", "MOS"))}, kind: KindNotFound, text: []string{`"test-1"`, "give the project's id"}},
		{name: "several", all: []reply{list(project("b", "test-1"), project("a", "test-1"))}, kind: KindInvalid, text: []string{"a, b"}},
		{name: "own projects", all: []reply{denied}, own: []reply{list(project("x", "other"), project("a", "test-1"))}, want: "a"},
		{name: "both denied", all: []reply{denied}, own: []reply{denied}, kind: KindPermission},
		{name: "a page", all: []reply{ok("<html><title>Login</title>")}, kind: KindResponse, text: []string{"Login"}},
		{name: "no list", all: []reply{ok(`{}`)}, kind: KindResponse},
		{name: "after trouble", all: []reply{status(502, ""), broken(errReset), list(project("a", "test-1"))}, want: "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, map[string][]reply{"GET /v3/projects": c.all, "GET /v3/auth/projects": c.own})
			cl := newTestClient(t, f, func(o *Options) { o.ProjectID = ""; o.ProjectName = c.projectName })
			for range 2 {
				id, err := cl.ProjectID(background())
				if id != c.want {
					t.Errorf("got %q, %v", id, err)
				}
				if c.want == "" {
					wantError(t, err, c.kind, c.text...)
					return
				}
			}
			if n := f.count("GET", "/v3/projects"); n > len(c.all) {
				t.Errorf("looked up %d times", n)
			}
			if c.projectName != "" && f.seen[0].query != "name="+c.projectName {
				t.Errorf("query %s", f.seen[0].query)
			}
		})
	}
}

// The project's header is sent when it can be found, and its absence is no reason to fail.
func TestProjectHeader(t *testing.T) {
	for _, c := range []struct {
		name    string
		project reply
		header  string
		kind    Kind
	}{
		{"found", ok(`{"projects":[{"id":"a","name":"test-1"}]}`), "a", 0},
		{"not found", ok(`{"projects":[]}`), "", 0},
		{"IAM is down", status(503, ""), "", 0},
		{"wrong keys", status(401, `{"error_code":"APIGW.0301"}`), "", KindAuth},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, map[string][]reply{"GET /v3/projects": {c.project}, "GET " + quotaPath: {ok(quotaBody)}})
			cl := newTestClient(t, f, func(o *Options) { o.ProjectID = "" })
			_, _, err := cl.Quota(background())
			if c.kind != 0 {
				wantError(t, err, c.kind)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			before := f.count("GET", "/v3/projects")
			if _, _, err := cl.Quota(background()); err != nil {
				t.Fatal(err)
			}
			if after := f.count("GET", "/v3/projects"); after != before {
				t.Errorf("looked up again: %d, %d", before, after)
			}
			if got := f.seen[len(f.seen)-1].header.Get("X-Project-Id"); got != c.header {
				t.Errorf("header %q, want %q", got, c.header)
			}
		})
	}
}

func TestTemporaryCredentials(t *testing.T) {
	keys := func(n int, expires string) reply {
		return status(201, fmt.Sprintf(`{"credential":{"access":"AK%d","secret":"SK%d","securitytoken":"ST%d","expires_at":%q}}`, n, n, n, expires))
	}
	f := newFake(t, map[string][]reply{
		"POST " + tokenPath:    {tokenReply("T1", 24*time.Hour)},
		"POST " + securityPath: {status(500, ""), keys(1, "")},
	})
	c := newTestClient(t, f, withPassword)
	got, err := c.TemporaryCredentials(background(), 2*time.Hour)
	if want := (Credentials{"AK1", "SK1", "ST1"}); err != nil || got != want {
		t.Fatalf("got %v, %v", got, err)
	}
	last := f.seen[len(f.seen)-1]
	if last.header.Get("X-Auth-Token") != "T1" ||
		last.body != `{"auth":{"identity":{"methods":["token"],"token":{"duration_seconds":7200}}}}` {
		t.Errorf("request %+v", last)
	}
	for _, d := range []time.Duration{time.Second, 25 * time.Hour, -1} {
		_, err := c.TemporaryCredentials(background(), d)
		wantError(t, err, KindInvalid, "15m0s to 24h0m0s")
	}
	_, err = newTestClient(t, f, nil).TemporaryCredentials(background(), 0)
	wantError(t, err, KindInvalid, "only tokens")
	f.replies["POST "+securityPath] = []reply{status(201, `{"credential":{"access":"A"}}`)}
	_, err = c.TemporaryCredentials(background(), 0)
	wantError(t, err, KindResponse, "no complete set")
}

func TestObjectCredentials(t *testing.T) {
	clock := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	issued := 0
	down := false
	c := newTestClient(t, roundTrip(func(r *http.Request) (*http.Response, error) {
		if down {
			return status(503, "").response(), nil
		}
		issued++
		re := status(201, fmt.Sprintf(`{"credential":{"access":"AK%d","secret":"S","securitytoken":"T","expires_at":%q}}`,
			issued, clock.Add(7*time.Hour).Add(time.Hour).Format("2006-01-02T15:04:05.000000Z")))
		// The service's clock is seven hours ahead: only the difference counts.
		re.header = map[string]string{"Date": clock.Add(7 * time.Hour).Format(http.TimeFormat)}
		return re.response(), nil
	}), func(o *Options) {
		o.Auth = StaticToken("ready-token")
		o.Now = func() time.Time { return clock }
	})
	keys := c.ObjectCredentials(24 * time.Hour) // the service grants one hour only
	for _, step := range []struct {
		pass time.Duration
		down bool
		want string
	}{
		{0, false, "AK1"}, {29 * time.Minute, false, "AK1"}, {2 * time.Minute, false, "AK2"},
		{40 * time.Minute, true, "AK2"}, {19 * time.Minute, true, "AK2"}, {2 * time.Minute, true, ""}, {0, false, "AK3"},
	} {
		clock, down = clock.Add(step.pass), step.down
		got, err := keys(background())
		if got.AccessKey != step.want || (err != nil) != (step.want == "") {
			t.Errorf("at %v: got %v, %v, want %s", clock, got, err, step.want)
		}
	}
	own := newTestClient(t, nil, nil).ObjectCredentials(0)
	if got, err := own(background()); err != nil || got != testKeys {
		t.Errorf("got %v, %v, want the client's own keys", got, err)
	}
}

func TestNewRefuses(t *testing.T) {
	auth := AKSK(StaticCredentials(testKeys))
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"no auth", Options{Region: "r"}, "authentication"},
		{"nothing", Options{Auth: auth}, "neither a region nor an endpoint"},
		{"region", Options{Auth: auth, Region: "evil.com/x"}, "region"},
		{"plain http", Options{Auth: auth, Endpoint: "http://ims.example.com"}, "plain http"},
		{"plain http of IAM", Options{Auth: auth, Endpoint: "ims.example.com", IAMEndpoint: "http://iam.example.com"}, "IAM"},
		{"user in URL", Options{Auth: auth, Endpoint: "https://u:hidden@h"}, "user"},
		{"query", Options{Auth: auth, Endpoint: "https://h?x=1"}, "query"},
		{"scheme", Options{Auth: auth, Endpoint: "ftp://h"}, "https"},
		{"no host", Options{Auth: auth, Endpoint: "https:///x"}, "no host"},
		{"not a URL", Options{Auth: auth, Endpoint: "https://u:hidden@[::1"}, "not a URL"},
		{"no credentials", Options{Auth: AKSK(nil), Region: "r"}, "credentials"},
		{"empty token", Options{Auth: StaticToken(""), Region: "r"}, "token"},
		{"no user", Options{Auth: PasswordToken(Password{Password: "x"}), Region: "r"}, "user"},
		{"no account", Options{Auth: PasswordToken(Password{UserName: "u", Password: "x"}), Region: "r"}, "account"},
		{"no password", Options{Auth: PasswordToken(Password{UserID: "u"}), Region: "r"}, "password"},
		{"no IAM", Options{Auth: PasswordToken(Password{UserID: "u", Password: "x"}), Endpoint: "https://h"}, "IAM"},
		{"no project", Options{Auth: PasswordToken(Password{UserID: "u", Password: "x"}), Endpoint: "https://h", IAMEndpoint: "https://i"}, "project"},
	} {
		_, err := New(c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	for _, e := range []string{"http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "ims.example.com", "https://h/prefix/"} {
		if _, err := New(Options{Auth: auth, Endpoint: e}); err != nil {
			t.Errorf("%s: %v", e, err)
		}
	}
	if _, err := New(Options{Auth: auth, Endpoint: "http://ims.example.com", AllowPlainHTTP: true}); err != nil {
		t.Error(err)
	}
}

func TestServiceEndpoint(t *testing.T) {
	for _, c := range [][4]string{
		{"ims", "cn-north-4", "", "https://ims.cn-north-4.myhuaweicloud.com"},
		{"iam", "eu-west-101", "", "https://iam.eu-west-101.myhuaweicloud.eu"},
		{"obs", "eu-west-0", "", "https://obs.eu-west-0.myhuaweicloud.com"},
		{"ims", "eu-de", "otc.t-systems.com", "https://ims.eu-de.otc.t-systems.com"},
	} {
		if got := ServiceEndpoint(c[0], c[1], c[2]); got != c[3] {
			t.Errorf("got %s, want %s", got, c[3])
		}
	}
}
