// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const kooFile = `{"current":"cur","profiles":[
	{"name":"cur","mode":"AKSK","accessKeyId":"AKCURRENT","secretAccessKey":"SKCURRENT","region":"cn-north-4","projectId":"p-koo"},
	{"name":"sso","mode":"SSO","region":"eu-west-101","ssoAuth":{"stsToken":{"accessKeyId":"AKSSO12345","secretAccessKey":"SKSSO12345","securityToken":"STS=="}}},
	{"name":"secret","mode":"AKSK","accessKeyId":"AbC+/dEf==","secretAccessKey":"encrypted+/=="},
	{"name":"agency","mode":"AKSK","accessKeyId":"AKAGENCY1","secretAccessKey":"SKAGENCY1","agencyName":"a"},
	{"name":"through","mode":"AKSK","accessKeyId":"AKAGENCY1","secretAccessKey":"SKAGENCY1","agencyName":"a","agencyDomainName":"other"},
	{"name":"empty","mode":"AKSK"}]}`

const iniFile = "# of the SDK\n[other]\nak=wrong\n[basic]\nak = AKINI00001\nsk=SKINI00001\nproject_id=p-ini\niam_endpoint=https://iam.example.com\n"

// TestCredentialSources: the first source in the documented order is taken, whole.
func TestCredentialSources(t *testing.T) {
	meta := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			fmt.Fprint(w, `{"credential":{"access":"AKMETA0001","secret":"SKMETA","securitytoken":"T","expires_at":"2999-01-01T00:00:00Z"}}`)
		}
	}))
	defer meta.Close()
	home := t.TempDir()
	write := func(path, text string) string {
		t.Helper()
		path = filepath.Join(home, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ini, koo := write("sdk/credentials", iniFile), write("koo/config.json", kooFile)
	write("both/.huaweicloud/credentials", iniFile)
	write("both/.hcloud/config.json", kooFile)
	write("one/.hcloud/config.json", kooFile)
	write("bad/.huaweicloud/credentials", "[basic]\nak=only\n")
	write("bad/.hcloud/config.json", "SK-of-somebody")

	for _, tc := range []struct {
		name    string
		env     map[string]string
		profile string
		want    string // access key, region, project id; or a part of the error
		fails   bool
	}{
		{name: "environment first", env: map[string]string{"HW_ACCESS_KEY": "AK", "HW_SECRET_KEY": "SK", "HOME": home + "/both"}, want: "AK local -"},
		{name: "late keys before files", env: map[string]string{"OBS_ACCESS_KEY_ID": "AKOBS", "OBS_SECRET_ACCESS_KEY": "SK", "HOME": home + "/both"}, want: "AKOBS local -"},
		{name: "the SDK's file in the home", env: map[string]string{"HOME": home + "/both"}, want: "AKINI00001 local p-ini"},
		{name: "KooCLI's file in the home", env: map[string]string{"HOME": home + "/one", "HW_REGION_NAME": ""}, want: "AKCURRENT cn-north-4 p-koo"},
		{name: "the region of the environment", env: map[string]string{"HOME": home + "/one"}, want: "AKCURRENT local p-koo"},
		{name: "a named file", env: map[string]string{"HUAWEICLOUD_SDK_CREDENTIALS_FILE": ini, "HOME": home + "/one"}, want: "AKINI00001 local p-ini"},
		{name: "a named profile", env: map[string]string{"HW_SHARED_CONFIG_FILE": koo, "HW_PROFILE": "sso", "HW_REGION_NAME": ""}, want: "AKSSO12345 eu-west-101 -"},
		{name: "a profile on the command line wins", env: map[string]string{"HW_SHARED_CONFIG_FILE": koo, "HW_ACCESS_KEY": "AK", "HW_SECRET_KEY": "SK"}, profile: "cur", want: "AKCURRENT local p-koo"},
		{name: "metadata when nothing else is there", env: map[string]string{"HOME": home + "/none"}, want: "AKMETA0001 local -"},
		{name: "metadata when asked for", env: map[string]string{"HW_ACCESS_KEY": "AK", "HW_SECRET_KEY": "SK"}, profile: "metadata", want: "AKMETA0001 local -"},
		{name: "what lies in the home may be broken", env: map[string]string{"HOME": home + "/bad"}, want: "AKMETA0001 local -"},
		{name: "and is named when nothing is found", env: map[string]string{"HOME": home + "/bad", "IMSPREP_METADATA_ENDPOINT": "off"}, want: "isn't a configuration of KooCLI", fails: true},
		{name: "no credentials", env: map[string]string{"HOME": home + "/none", "IMSPREP_METADATA_ENDPOINT": "off"}, want: "no credentials found", fails: true},
		{name: "encrypted", env: map[string]string{"HW_SHARED_CONFIG_FILE": koo, "HW_PROFILE": "secret"}, want: "encrypted by KooCLI", fails: true},
		{name: "agency", env: map[string]string{"HW_SHARED_CONFIG_FILE": koo, "HW_PROFILE": "agency"}, want: "doesn't name the account", fails: true},
		{name: "agency of an account", env: map[string]string{"HW_SHARED_CONFIG_FILE": koo, "HW_PROFILE": "through"}, want: "AKAGENCY1 local - through a of other"},
		{name: "no keys", env: map[string]string{"HW_SHARED_CONFIG_FILE": koo, "HW_PROFILE": "empty"}, want: "no access key", fails: true},
		{name: "no such profile", env: map[string]string{"HW_SHARED_CONFIG_FILE": koo, "HW_PROFILE": "nobody"}, want: `no profile "nobody"`, fails: true},
		{name: "no such file", env: map[string]string{"HUAWEICLOUD_SDK_CREDENTIALS_FILE": ini + "x"}, want: "no such file", fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			env := map[string]string{"HW_REGION_NAME": "local", "IMSPREP_METADATA_ENDPOINT": meta.URL}
			for k, v := range tc.env {
				env[k] = v
			}
			o := withEnvironment(env)
			o.Options.Profile = tc.profile
			s, err := o.Settings()
			if err == nil {
				err = s.Check()
			}
			if tc.fails {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("got %v, want %q", err, tc.want)
				}
				for _, secret := range []string{"encrypted+/==", "SKAGENCY1", "SK-of-somebody"} {
					if strings.Contains(err.Error(), secret) {
						t.Errorf("%v", err)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			ak := s.Credentials.accessKey
			if s.Credentials.keys != nil {
				k, err := keySource{s}.Credentials(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				ak = k.AccessKey
			}
			got := fmt.Sprint(ak, " ", s.Region, " ", cmp.Or(s.ProjectID, "-"))
			if s.Agency != nil {
				got += " through " + s.Agency.Name + " of " + s.Agency.DomainName
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	// A guess that fails is told as what it is: no credentials.
	s := &Settings{Region: "r"}
	o := withEnvironment(map[string]string{"IMSPREP_METADATA_ENDPOINT": "http://127.0.0.1:1"})
	s.Credentials = o.metadata()
	s.Credentials.guessed = true
	if _, err := (keySource{s}).Credentials(context.Background()); !errors.Is(err, ErrNoCredentials) {
		t.Errorf("%v", err)
	}
}
