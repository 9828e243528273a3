// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"net/http"
	"strings"
	"testing"
)

func TestDenied(t *testing.T) {
	for _, c := range []struct {
		pattern, right string
		want           bool
	}{
		{"ims:images:create", "ims:images:create", true},
		{"ims:images:create", "ims:images:creates", false},
		{"ims:*", "ims:images:create", true},
		{"ims:*:create", "ims:serverImages:create", true},
		{"ims:*:create", "ims:images:list", false},
		{"*:update", "ims:images:update", true},
		{"*", "iam:projects:listProjects", true},
		{"", "ims:images:list", false},
	} {
		if got := Denied([]string{"x", c.pattern}, c.right); got != c.want {
			t.Errorf("%q denies %q: %v", c.pattern, c.right, got)
		}
	}
}

// TestPermissions: who lacks a right is refused that call and no other one, in the shape of the call's kind.
func TestPermissions(t *testing.T) {
	tag := object{"tag": object{"key": "k", "value": "v"}}
	for _, c := range []struct {
		deny, method, path string
		body               any
		refused            bool
		shape              string
	}{
		{"ims:images:list", "GET", "/v2/cloudimages", nil, true, "encoded_authorization_message"},
		{"ims:images:list", "GET", "/v1/cloudimages/quota", nil, false, ""},
		{"ims:*:create", "GET", "/v2/cloudimages", nil, false, ""},
		{"ims:*:create", "POST", "/v2/images", object{"name": "n"}, true, "<error_code>APIGW.0302</error_code>"},
		{"ims:images:update", "POST", "/v2/PROJECT/images/IMAGE/tags", tag, true, "ims:images:update"},
		{"ims:images:delete", "DELETE", "/v2/images/IMAGE", nil, true, "<error_msg>"},
		{"ims:dataImages:create", "POST", "/v2/cloudimages/quickimport/action", object{"type": "DataImage"}, true, "ims:dataImages:create"},
		{"ims:serverImages:create", "POST", "/v2/cloudimages/quickimport/action", object{"type": "DataImage"}, false, ""},
		{"ims:*", "GET", "/v1/cloudimages/quota", nil, true, "IMG.0161"},
		{"iam:*", "GET", "/v3/projects", nil, true, `"title":"Forbidden"`},
		{"iam:*", "GET", "/v3/auth/projects", nil, false, ""},
	} {
		f := newFixture(t, Options{Deny: []string{c.deny}})
		path := strings.NewReplacer("PROJECT", f.server.ProjectID(), "IMAGE", "3d2e6ff2-2f3d-4b51-9d83-5a7a2d2c0e11").Replace(c.path)
		a := f.do(c.method, path, c.body)
		if (a.status == http.StatusForbidden) != c.refused || !strings.Contains(string(a.raw), c.shape) {
			t.Errorf("without %s, %s %s: %d %s", c.deny, c.method, path, a.status, a.raw)
		}
	}
}

func assumeRole(agency, domain string) object {
	return object{"auth": object{"identity": object{"methods": []string{"assume_role"},
		"assume_role": object{"agency_name": agency, "domain_name": domain, "duration_seconds": 3600}}}}
}

// TestAgency: keys through an agency have the rights that were delegated, not the caller's.
func TestAgency(t *testing.T) {
	f := newFixture(t, Options{Agencies: []Agency{{Name: "importer", Domain: "other", Deny: []string{"ims:images:delete"}}}})
	if a := f.do("POST", "/v3.0/OS-CREDENTIAL/securitytokens", assumeRole("importer", "third")); a.status != http.StatusForbidden {
		t.Errorf("an agency of another account: %d %s", a.status, a.raw)
	}
	a := f.do("POST", "/v3.0/OS-CREDENTIAL/securitytokens", assumeRole("importer", "other"))
	c, _ := a.body["credential"].(object)
	if a.status != http.StatusCreated || c == nil {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	f.account = Account{AccessKey: c["access"].(string), SecretKey: c["secret"].(string), SecurityToken: c["securitytoken"].(string)}
	if a := f.do("GET", "/v2/cloudimages", nil); a.status != http.StatusOK {
		t.Errorf("list: %d %s", a.status, a.raw)
	}
	if a := f.do("DELETE", "/v2/images/3d2e6ff2-2f3d-4b51-9d83-5a7a2d2c0e11", nil); a.status != http.StatusForbidden {
		t.Errorf("delete: %d %s", a.status, a.raw)
	}
}

// TestPasscode: with a second factor the password alone is not enough, and a passcode serves once.
func TestPasscode(t *testing.T) {
	user := User{ID: "u1", Name: "mfa", Password: "secret", Domain: "account", Passcode: "123456"}
	f := newFixture(t, Options{Users: []User{user}})
	ask := func(passcode string) int {
		identity := object{"methods": []string{"password", "totp"},
			"password": object{"user": object{"id": "u1", "password": "secret"}},
			"totp":     object{"user": object{"id": "u1", "passcode": passcode}}}
		return f.do("POST", "/v3/auth/tokens", object{"auth": object{"identity": identity, "scope": object{"project": object{"name": DefaultRegion}}}}, unsigned).status
	}
	alone := object{"auth": object{"identity": object{"methods": []string{"password"},
		"password": object{"user": object{"id": "u1", "password": "secret"}}}}}
	if a := f.do("POST", "/v3/auth/tokens", alone, unsigned); a.status != http.StatusUnauthorized {
		t.Errorf("without a passcode: %d %s", a.status, a.raw)
	}
	for n, want := range []int{http.StatusUnauthorized, http.StatusCreated, http.StatusUnauthorized} {
		if got := ask([]string{"000000", "123456", "123456"}[n]); got != want {
			t.Errorf("attempt %d: %d, want %d", n, got, want)
		}
	}
}
