// SPDX-License-Identifier: Apache-2.0

package ims_test

import (
	"strings"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

// TestAgencyKeys: with an access key and with a token, an agency gives keys that have its rights.
func TestAgencyKeys(t *testing.T) {
	s := serviceWith(t, imstest.Options{Agencies: []imstest.Agency{{Name: "importer", Domain: "other", Deny: []string{"*:delete"}}}})
	password := ims.PasswordToken(ims.Password{UserID: "u1", Password: "the-password"})
	for name, base := range map[string]*ims.Client{"key": s.client(nil), "token": s.client(func(o *ims.Options) { o.Auth = password })} {
		keys := base.AgencyKeys(ims.Agency{Name: "importer", DomainName: "other", Life: 20 * time.Minute})
		c := s.client(func(o *ims.Options) { o.Auth = ims.AKSKFrom(keys) })
		if _, err := c.ListImages(t.Context(), ims.ImageFilter{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if left := time.Until(keys.Expires()); left < 15*time.Minute || left > 20*time.Minute {
			t.Errorf("%s: the keys live for %v", name, left)
		}
		wantKind(t, c.DeleteImage(t.Context(), "3d2e6ff2-2f3d-4b51-9d83-5a7a2d2c0e11"), ims.KindPermission)

		_, err := base.AgencyKeys(ims.Agency{Name: "unknown", DomainName: "other"}).Credentials(t.Context())
		wantKind(t, err, ims.KindPermission)
		for _, a := range []ims.Agency{{Name: "importer"}, {Name: "importer", DomainID: "x", Life: time.Minute}} {
			_, err := base.AgencyKeys(a).Credentials(t.Context())
			wantKind(t, err, ims.KindInvalid)
		}
	}
}

// TestPasscode: a token with a second factor is asked for once, and its end is told for what it is.
func TestPasscode(t *testing.T) {
	s := serviceWith(t, imstest.Options{Users: []imstest.User{{ID: "u2", Name: "mfa", Password: "secret", Domain: "account", Passcode: "123456"}}})
	with := func(passcode string) *ims.Client {
		return s.client(func(o *ims.Options) {
			o.Auth = ims.PasswordToken(ims.Password{UserID: "u2", Password: "secret", Passcode: passcode})
		})
	}
	for _, passcode := range []string{"", "654321"} {
		_, err := with(passcode).ListImages(t.Context(), ims.ImageFilter{})
		wantKind(t, err, ims.KindAuth)
	}
	c := with("123456")
	for range 2 {
		if _, err := c.ListImages(t.Context(), ims.ImageFilter{}); err != nil {
			t.Fatal(err)
		}
	}
	s.SetFaults(imstest.Faults{ExpireTokens: 1})
	if _, err := c.ListImages(t.Context(), ims.ImageFilter{}); err == nil || !strings.Contains(err.Error(), "passcode") {
		t.Errorf("after the token ended: %v", err)
	}
	if _, err := ims.New(ims.Options{Region: "r", Auth: ims.PasswordToken(ims.Password{UserName: "u", DomainName: "d", Password: "p", Passcode: "1"})}); err == nil {
		t.Error("a passcode without the user's id")
	}
}
