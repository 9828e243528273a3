// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

type object = map[string]any

// passwordBody asks for a token; scope is nil, or a project.
func passwordBody(password string, scope object) object {
	auth := object{"identity": object{"methods": []string{"password"}, "password": object{"user": object{
		"name": "user", "password": password, "domain": object{"name": "account"}}}}}
	if scope != nil {
		auth["scope"] = object{"project": scope}
	}
	return object{"auth": auth}
}

func (f *fixture) token(scope object) string {
	f.t.Helper()
	a := f.do("POST", "/v3/auth/tokens?nocatalog=true", passwordBody("secret", scope), unsigned)
	if a.status != http.StatusCreated || a.header.Get("X-Subject-Token") == "" {
		f.t.Fatalf("token: %d %s", a.status, a.raw)
	}
	return a.header.Get("X-Subject-Token")
}

func TestToken(t *testing.T) {
	f := newFixture(t, Options{MoreProjects: []Project{{"p2", "local-1_sub"}}})
	a := f.do("POST", "/v3/auth/tokens", passwordBody("secret", object{"name": DefaultRegion}), unsigned)
	tok, _ := a.body["token"].(object)
	if p, _ := tok["project"].(object); p["id"] != f.server.ProjectID() || p["name"] != DefaultRegion {
		t.Errorf("token %s", a.raw)
	}
	expires, err := time.Parse("2006-01-02T15:04:05.000000Z", fmt.Sprint(tok["expires_at"]))
	if d := time.Until(expires); err != nil || d < 23*time.Hour || d > 25*time.Hour {
		t.Errorf("expires %v: %v", tok["expires_at"], err)
	}
	good := f.token(object{"id": f.server.ProjectID()})
	if a := f.do("GET", "/v1/cloudimages/quota", nil, withToken(good)); a.status != http.StatusOK {
		t.Errorf("with a token: %d %s", a.status, a.raw)
	}
	for name, scope := range map[string]object{"account": nil, "other project": {"name": "local-1_sub"}} {
		if a := f.do("GET", "/v1/cloudimages/quota", nil, withToken(f.token(scope))); a.code() != "IMG.0030" {
			t.Errorf("scope of the %s: %d %s", name, a.status, a.raw)
		}
	}
	if a := f.do("GET", "/v1/cloudimages/quota", nil, withToken("nonsense")); a.status != http.StatusUnauthorized || a.code() != "APIGW.0301" {
		t.Errorf("bad token: %d %s", a.status, a.raw)
	}
	if a := f.do("GET", "/v1/cloudimages/quota", nil, unsigned); a.status != http.StatusUnauthorized {
		t.Errorf("no credentials: %d %s", a.status, a.raw)
	}
	again := object{"auth": object{"identity": object{"methods": []string{"token"}, "token": object{"id": good}}, "scope": object{"project": object{"name": DefaultRegion}}}}
	if a := f.do("POST", "/v3/auth/tokens", again, unsigned); a.status != http.StatusCreated {
		t.Errorf("from a token: %d %s", a.status, a.raw)
	}
}

func TestTokenErrors(t *testing.T) {
	f := newFixture(t, Options{})
	for _, tc := range []struct {
		name   string
		body   any
		status int
	}{
		{"not JSON", "{", 400},
		{"no method", object{"auth": object{}}, 400},
		{"unknown method", object{"auth": object{"identity": object{"methods": []string{"magic"}}}}, 400},
		{"no account", object{"auth": object{"identity": object{"methods": []string{"password"}, "password": object{"user": object{"name": "user", "password": "secret"}}}}}, 400},
		{"unknown user", object{"auth": object{"identity": object{"methods": []string{"password"}, "password": object{"user": object{"id": "u9", "password": "secret"}}}}}, 401},
		{"unknown project", passwordBody("secret", object{"name": "nowhere"}), 401},
		{"bad token", object{"auth": object{"identity": object{"methods": []string{"token"}, "token": object{"id": "x"}}}}, 401},
	} {
		a := f.do("POST", "/v3/auth/tokens", tc.body, unsigned)
		if a.status != tc.status || a.code() != fmt.Sprint(tc.status) || a.header.Get("X-Subject-Token") != "" {
			t.Errorf("%s: %d %s", tc.name, a.status, a.raw)
		}
	}
	for i := range maxFailures {
		if a := f.do("POST", "/v3/auth/tokens", passwordBody("wrong", nil), unsigned); a.status != 401 || !strings.Contains(string(a.raw), "The username or password is wrong.") {
			t.Errorf("wrong password %d: %d %s", i, a.status, a.raw)
		}
	}
	if a := f.do("POST", "/v3/auth/tokens", passwordBody("secret", nil), unsigned); a.status != http.StatusForbidden {
		t.Errorf("a locked user: %d %s", a.status, a.raw)
	}
}

func TestTokenExpires(t *testing.T) {
	var ahead atomic.Int64
	f := newFixture(t, Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	tok := f.token(object{"name": DefaultRegion})
	ahead.Store(int64(tokenLife + time.Minute))
	if a := f.do("GET", "/v1/cloudimages/quota", nil, withToken(tok)); a.status != http.StatusUnauthorized || a.code() != "APIGW.0307" {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

func TestProjects(t *testing.T) {
	f := newFixture(t, Options{ProjectID: "p1", MoreProjects: []Project{{"p2", "local-1_sub"}}})
	names := func(path string, prepare ...func(*http.Request)) string {
		a := f.do("GET", path, nil, prepare...)
		if a.status != http.StatusOK {
			t.Fatalf("%s: %d %s", path, a.status, a.raw)
		}
		var s []string
		for _, p := range a.body["projects"].([]any) {
			s = append(s, p.(object)["name"].(string))
		}
		return strings.Join(s, " ")
	}
	if got := names("/v3/projects?name=local-1"); got != "local-1" {
		t.Errorf("by name: %s", got)
	}
	if got := names("/v3/projects?name=nowhere"); got != "" {
		t.Errorf("by another name: %s", got)
	}
	if got := names("/v3/auth/projects", withToken(f.token(nil))); got != "local-1 MOS local-1_sub" {
		t.Errorf("own: %s", got)
	}
	wrong := func(r *http.Request) { r.Header.Set("X-Project-Id", "p2") }
	if a := f.do("GET", "/v1/cloudimages/quota", nil, wrong); a.status != http.StatusForbidden || a.code() != "APIGW.0302" {
		t.Errorf("another project's id: %d %s", a.status, a.raw)
	}
}

func TestSecurityToken(t *testing.T) {
	var ahead atomic.Int64
	f := newFixture(t, Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	const path = "/v3.0/OS-CREDENTIAL/securitytokens"
	request := func(seconds any) object {
		tok := object{}
		if seconds != nil {
			tok["duration_seconds"] = seconds
		}
		return object{"auth": object{"identity": object{"methods": []string{"token"}, "token": tok}}}
	}
	tok := f.token(object{"name": DefaultRegion})
	a := f.do("POST", path, request(nil), withToken(tok))
	c, _ := a.body["credential"].(object)
	if a.status != http.StatusCreated || c["expires_at"] == nil {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	f.account = Account{AccessKey: c["access"].(string), SecretKey: c["secret"].(string), SecurityToken: c["securitytoken"].(string)}
	if a := f.do("GET", "/v1/cloudimages/quota", nil); a.status != http.StatusOK {
		t.Errorf("temporary keys: %d %s", a.status, a.raw)
	}
	if got, ok := f.server.Account(f.account.AccessKey); !ok || got.SecretKey != f.account.SecretKey {
		t.Errorf("the server does not know %v", f.account)
	}
	noToken := f.account
	noToken.SecurityToken = ""
	f.account, noToken = noToken, f.account
	if a := f.do("GET", "/v1/cloudimages/quota", nil); a.status != http.StatusUnauthorized {
		t.Errorf("without the security token: %d %s", a.status, a.raw)
	}
	f.account = noToken
	for _, bad := range []any{899, 86401} {
		if a := f.do("POST", path, request(bad), withToken(tok)); a.status != http.StatusBadRequest {
			t.Errorf("%v seconds: %d %s", bad, a.status, a.raw)
		}
	}
	if a := f.do("POST", path, request(900)); a.status != http.StatusUnauthorized {
		t.Errorf("without a token: %d %s", a.status, a.raw)
	}
	ahead.Store(int64(minCredentialLife*time.Second + time.Second))
	if _, ok := f.server.Account(f.account.AccessKey); ok {
		t.Error("temporary keys outlive their time")
	}
}

// TestSecretsStaySecret: no way of printing an account or a user shows more
// than its name.
func TestSecretsStaySecret(t *testing.T) {
	for _, v := range []any{testAccount, &testAccount, User{Name: "u", Password: testAccount.SecretKey}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			if s := fmt.Sprintf(verb, v); strings.Contains(s, testAccount.SecretKey) {
				t.Errorf("%s of %T: %s", verb, v, s)
			}
		}
	}
}
