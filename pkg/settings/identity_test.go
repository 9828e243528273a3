// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func withEnvironment(env map[string]string) *Sources {
	return &Sources{
		Lookup: func(name string) (string, bool) {
			v, ok := env[name]
			return v, ok
		},
		ConfigDir: os.UserConfigDir,
	}
}

// TestIdentity: who is meant by which variables, in the documented order.
func TestIdentity(t *testing.T) {
	for _, c := range []struct {
		name string
		env  string // NAME=VALUE, with blanks
		want string // key/token/user@account#code, then the agency; or a part of the error
		fail bool
	}{
		{name: "Terraform's key before everything", env: "HW_ACCESS_KEY=a HW_SECRET_KEY=b HUAWEICLOUD_SDK_AK=c HUAWEICLOUD_SDK_SK=d HW_AUTH_TOKEN=t", want: "key a"},
		{name: "the SDK's before a token", env: "HUAWEICLOUD_SDK_AK=c HUAWEICLOUD_SDK_SK=d HW_AUTH_TOKEN=t", want: "key c"},
		{name: "a token before a user", env: "HW_AUTH_TOKEN=t HW_USER_NAME=u HW_USER_PASSWORD=p HW_DOMAIN_NAME=d", want: "token t"},
		{name: "HW before OS", env: "OS_TOKEN=t HW_USER_NAME=u HW_USER_PASSWORD=p HW_DOMAIN_NAME=d", want: "user u@d"},
		{name: "OpenStack's token", env: "OS_TOKEN=t OS_USERNAME=u OS_PASSWORD=p OS_USER_DOMAIN_NAME=d", want: "token t"},
		{name: "OpenStack's user", env: "OS_USERNAME=u OS_PASSWORD=p OS_USER_DOMAIN_NAME=d OS_ACCESS_KEY=a OS_SECRET_KEY=b", want: "user u@d"},
		{name: "account by id", env: "OS_USERNAME=u OS_PASSWORD=p OS_PROJECT_DOMAIN_ID=d1", want: "user u@d1"},
		{name: "user by id", env: "HW_USER_ID=u1 HW_USER_PASSWORD=p", want: "user u1@"},
		{name: "second factor", env: "HW_USER_ID=u1 HW_USER_PASSWORD=p IMSPREP_MFA_CODE=123456", want: "user u1@#123456"},
		{name: "OpenStack's key after the users", env: "OS_ACCESS_KEY=a OS_SECRET_KEY=b OBS_ACCESS_KEY_ID=c OBS_SECRET_ACCESS_KEY=d", want: "key a"},
		{name: "its other names", env: "OS_ACCESS_KEY_ID=a OS_ACCESS_KEY_SECRET=b", want: "key a"},
		{name: "its short names", env: "OS_AK=a OS_SK=b", want: "key a"},
		{name: "AWS is another cloud", env: "AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b", want: "no credentials found", fail: true},
		{name: "agency", env: "HW_ACCESS_KEY=a HW_SECRET_KEY=b HW_ASSUME_ROLE_AGENCY_NAME=g HW_ASSUME_ROLE_DOMAIN_NAME=other HW_ASSUME_ROLE_DURATION=3600",
			want: "key a through g of other for 1h0m0s"},

		{name: "half a key", env: "OS_AK=a", want: "OS_SK isn't", fail: true},
		{name: "no password", env: "HW_USER_NAME=u", want: "HW_USER_PASSWORD and HW_DOMAIN_NAME are needed", fail: true},
		{name: "no account", env: "OS_USERNAME=u OS_PASSWORD=p", want: "OS_DOMAIN_NAME", fail: true},
		{name: "a code for nobody", env: "HW_USER_NAME=u HW_USER_PASSWORD=p HW_DOMAIN_NAME=d IMSPREP_MFA_CODE=1", want: "in HW_USER_ID", fail: true},
		{name: "agency of nobody", env: "HW_ACCESS_KEY=a HW_SECRET_KEY=b HW_ASSUME_ROLE_AGENCY_NAME=g", want: "isn't named", fail: true},
		{name: "duration", env: "HW_ACCESS_KEY=a HW_SECRET_KEY=b HW_ASSUME_ROLE_AGENCY_NAME=g HW_ASSUME_ROLE_DOMAIN_ID=d HW_ASSUME_ROLE_DURATION=1h", want: "900 to 86400", fail: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			env := map[string]string{"HW_REGION_NAME": "r", "IMSPREP_METADATA_ENDPOINT": "off", "IMSPREP_CONFIG": filepath.Join(t.TempDir(), "none")}
			for _, v := range strings.Fields(c.env) {
				name, value, _ := strings.Cut(v, "=")
				env[name] = value
			}
			s, err := withEnvironment(env).Settings()
			if err == nil {
				err = s.Check()
			}
			if c.fail {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("got %v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			switch u := s.Credentials.user; {
			case s.Credentials.accessKey != "":
				got = "key " + s.Credentials.accessKey
			case s.Credentials.token != "":
				got = "token " + s.Credentials.token
			default:
				got = "user " + cmp.Or(u.UserName, u.UserID) + "@" + cmp.Or(u.DomainName, u.DomainID)
				if u.Passcode != "" {
					got += "#" + u.Passcode
				}
			}
			if g := s.Agency; g != nil {
				got += fmt.Sprintf(" through %s of %s for %v", g.Name, cmp.Or(g.DomainName, g.DomainID), g.Life)
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestEndpoints: of a region, of each site, of other clouds, and of whatever is named.
func TestEndpoints(t *testing.T) {
	for _, c := range []struct {
		env  string
		want string // image service, identity service, object storage
	}{
		{"HW_REGION_NAME=cn-north-4", "https://ims.cn-north-4.myhuaweicloud.com https://iam.cn-north-4.myhuaweicloud.com https://obs.cn-north-4.myhuaweicloud.com"},
		{"OS_REGION_ID=af-south-1", "https://ims.af-south-1.myhuaweicloud.com https://iam.af-south-1.myhuaweicloud.com https://obs.af-south-1.myhuaweicloud.com"},
		{"HW_REGION_NAME=eu-west-0", "https://ims.eu-west-0.myhuaweicloud.com https://iam.eu-west-0.myhuaweicloud.com https://obs.eu-west-0.myhuaweicloud.com"},
		{"HW_REGION_NAME=eu-west-101", "https://ims.eu-west-101.myhuaweicloud.eu https://iam.eu-west-101.myhuaweicloud.eu https://obs.eu-west-101.myhuaweicloud.eu"},
		{"OS_REGION_NAME=eu-de HW_CLOUD=otc", "https://ims.eu-de.otc.t-systems.com https://iam.eu-de.otc.t-systems.com https://obs.eu-de.otc.t-systems.com"},
		{"HW_REGION_NAME=r HW_CLOUD=cloud.example", "https://ims.r.cloud.example https://iam.r.cloud.example https://obs.r.cloud.example"},
		{"HW_REGION_NAME=r-1 HUAWEICLOUD_SDK_REGION_IMS_R_1=https://a HUAWEICLOUD_SDK_IAM_ENDPOINT=https://b IMSPREP_OBS_ENDPOINT=https://c", "https://a https://b https://c"},
		{"HW_REGION_NAME=r IMSPREP_IMS_ENDPOINT=https://a HW_AUTH_URL=https://b/v3/ IMSPREP_OBS_ENDPOINT=c", "https://a https://b c"},
	} {
		env := map[string]string{"HW_ACCESS_KEY": "a", "HW_SECRET_KEY": "b", "IMSPREP_CONFIG": filepath.Join(t.TempDir(), "none")}
		for _, v := range strings.Fields(c.env) {
			name, value, _ := strings.Cut(v, "=")
			env[name] = value
		}
		s, err := withEnvironment(env).Settings()
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Endpoints.IMS + " " + s.Endpoints.IAM + " " + s.Endpoints.OBS; got != c.want {
			t.Errorf("%s: %s", c.env, got)
		}
	}
}
