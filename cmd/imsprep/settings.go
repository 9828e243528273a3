// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// settings is what the flags and the environment say about the cloud and who we are there. A flag
// wins over the environment. All of one credential set comes from one source: an access key of one
// and a secret of another would be a riddle to whoever reads the error.
type settings struct {
	region      string
	projectID   string
	projectName string
	endpoints   struct{ obs, ims, iam string }
	credentials credentials
	agency      *ims.Agency // to act through, with the credentials; nil if there is none
	bucket      string
	skipped     error    // why profile files in the home weren't taken
	confirmed   []string // bitmap layouts confirmed for this cloud
	onRetry     func(ims.RetryEvent)
	lookFor     time.Duration // as in streams
}

// credentials is one of: an access key with its secret (and a security token when temporary), a
// ready IAM token, or a user with a password.
type credentials struct {
	accessKey, secretKey, securityToken string
	token                               string
	user                                *ims.Password // nil if nobody is named
	// keys is where keys come from that may change during a run: a profile file, the metadata service.
	keys ims.KeySource
	// guessed: nothing else was found, and the metadata service may not be there either.
	guessed bool
	// source says where they are from, for people.
	source string
}

// profileMetadata as the name of a profile means the metadata service.
const profileMetadata = "metadata"

func (c credentials) hasKeys() bool  { return c.accessKey != "" || c.keys != nil }
func (c credentials) hasToken() bool { return c.token != "" || c.user != nil }

// keySets are the environment variables of access keys, in the order in which they are honoured:
// what Terraform and Packer use, what the vendor's SDKs use, what OpenStack tools use, what the
// object storage SDK uses. AWS_* is left alone on purpose: too easily another cloud's keys.
var keySets = []struct{ ak, sk, token string }{
	{"HW_ACCESS_KEY", "HW_SECRET_KEY", "HW_SECURITY_TOKEN"},
	{"HUAWEICLOUD_SDK_AK", "HUAWEICLOUD_SDK_SK", "HUAWEICLOUD_SDK_SECURITY_TOKEN"},
}

// iamEndpoints are the variables of the identity service's endpoint.
var iamEndpoints = []string{"IMSPREP_IAM_ENDPOINT", "HW_AUTH_URL", "HUAWEICLOUD_SDK_IAM_ENDPOINT", "OS_AUTH_URL"}

var lateKeySets = []struct{ ak, sk, token string }{
	{"OS_ACCESS_KEY", "OS_SECRET_KEY", "OS_SECURITY_TOKEN"},
	{"OS_ACCESS_KEY_ID", "OS_ACCESS_KEY_SECRET", "OS_AKSK_SECURITY_TOKEN"},
	{"OS_AK", "OS_SK", "OS_AKSK_SECURITY_TOKEN"},
	{"OBS_ACCESS_KEY_ID", "OBS_SECRET_ACCESS_KEY", "OBS_SECURITY_TOKEN"},
}

// getenv is the value of the first of names that is set and not empty.
func (a *app) getenv(names ...string) string {
	for _, n := range names {
		if v, ok := a.lookup(n); ok && v != "" {
			return v
		}
	}
	return ""
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// settings reads what is known about the cloud. It fails on half a credential set, not on a
// missing one: a local command needs none.
func (a *app) settings() (*settings, error) {
	f := &a.flags
	s := &settings{
		region:      first(f.region, a.getenv("HW_REGION_NAME", "OS_REGION_NAME", "OS_REGION_ID")),
		projectID:   first(f.projectID, a.getenv("HW_PROJECT_ID", "HUAWEICLOUD_SDK_PROJECT_ID", "OS_PROJECT_ID", "OS_TENANT_ID")),
		projectName: a.getenv("HW_PROJECT_NAME", "OS_PROJECT_NAME", "OS_TENANT_NAME"),
		bucket:      a.getenv("IMSPREP_BUCKET"),
		onRetry:     a.retrying,
		lookFor:     a.lookFor,
	}
	endpoint := func(service string) string {
		if s.region == "" {
			return ""
		}
		return first(a.getenv(sdkEndpoint(service, s.region)), ims.ServiceEndpoint(service, s.region, a.cloudDomain()))
	}
	s.endpoints.obs = first(f.obsEndpoint, a.getenv("IMSPREP_OBS_ENDPOINT"), endpoint("obs"))
	s.endpoints.ims = first(f.imsEndpoint, a.getenv("IMSPREP_IMS_ENDPOINT"), endpoint("ims"))
	s.endpoints.iam = first(f.iamEndpoint, a.getenv(iamEndpoints...), endpoint("iam"))
	s.endpoints.iam = strings.TrimSuffix(strings.TrimSuffix(s.endpoints.iam, "/"), "/v3")
	s.confirmed = strings.FieldsFunc(a.getenv("IMSPREP_CONFIRMED_BITMAP"), func(r rune) bool { return r == ',' || r == ' ' })
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	s.confirmed = append(s.confirmed, c.confirmedIn(s.region)...)
	if s.agency, err = a.agency(); err != nil {
		return nil, err
	}
	s.credentials, err = a.credentials()
	a.fixedKeys = s.credentials.securityToken != "" || s.credentials.token != ""
	if err != nil || s.credentials.known() {
		return s, err
	}
	p, skipped, err := a.profile()
	if err != nil {
		return s, err
	}
	if p != nil {
		s.credentials = p.credentials
		if s.agency == nil {
			s.agency = p.agency
		}
		s.projectID = first(s.projectID, p.projectID)
		if s.region == "" {
			s.confirmed = append(s.confirmed, c.confirmedIn(p.region)...)
		}
		if s.region = first(s.region, p.region); s.region != "" {
			s.endpoints.obs = first(s.endpoints.obs, endpoint("obs"))
			s.endpoints.ims = first(s.endpoints.ims, endpoint("ims"))
			if f.iamEndpoint == "" && a.getenv(iamEndpoints...) == "" {
				s.endpoints.iam = first(p.iamEndpoint, endpoint("iam"))
			}
		}
		return s, nil
	}
	s.skipped = skipped
	s.credentials = a.metadata()
	s.credentials.guessed = s.credentials.known()
	return s, nil
}

// known tells whether there are credentials of any kind.
func (c credentials) known() bool { return c.hasKeys() || c.hasToken() }

func (a *app) credentials() (credentials, error) {
	switch a.flags.profile {
	case "":
	case profileMetadata:
		c := a.metadata()
		if !c.known() {
			return c, usagef("--profile %s is given, but IMSPREP_METADATA_ENDPOINT is %s", profileMetadata, metadataOff)
		}
		return c, nil
	default:
		return credentials{}, nil // a profile that is named here wins over the environment
	}
	if c, ok, err := a.keys(keySets); ok || err != nil {
		return c, err
	}
	if c, ok, err := a.tokenCredentials(); ok || err != nil {
		return c, err
	}
	c, _, err := a.keys(lateKeySets)
	return c, err
}

func (a *app) keys(sets []struct{ ak, sk, token string }) (credentials, bool, error) {
	for _, set := range sets {
		ak, sk := a.getenv(set.ak), a.getenv(set.sk)
		switch {
		case ak == "" && sk == "":
			continue
		case ak == "" || sk == "":
			missing, there := set.sk, set.ak
			if ak == "" {
				missing, there = set.ak, set.sk
			}
			return credentials{}, false, usagef("%s is set, but %s isn't: both are needed", there, missing)
		}
		c := credentials{accessKey: ak, secretKey: sk, securityToken: a.getenv(set.token), source: set.ak + " and " + set.sk}
		if c.securityToken != "" {
			c.source = set.ak + ", " + set.sk + " and " + set.token
		}
		return c, true, nil
	}
	return credentials{}, false, nil
}

// imsClient makes the IMS client that the settings describe.
func (s *settings) imsClient() (*ims.Client, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if err := s.assume(); err != nil {
		return nil, err
	}
	o := s.clientOptions()
	o.Auth = s.auth()
	client, err := ims.New(o)
	if err != nil {
		return nil, &usageError{err}
	}
	return client, nil
}

// obsClient makes the object storage client. Object storage takes no tokens: with token
// authentication temporary keys are fetched through the IMS client's IAM and renewed before they end.
func (s *settings) obsClient(i *ims.Client) (*obs.Client, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	var keys ims.KeySource = keySource{s}
	if !s.credentials.hasKeys() {
		keys = i.ObjectKeys(24 * time.Hour)
	}
	return obs.New(obs.Options{
		Endpoint: s.endpoints.obs,
		Region:   s.region,
		Credentials: func(ctx context.Context) (obs.Credentials, error) {
			k, err := keys.Credentials(ctx)
			return obs.Credentials(k), err
		},
		Refused:   func(k obs.Credentials) { keys.Refused(ims.Credentials(k)) },
		Proxy:     http.ProxyFromEnvironment,
		UserAgent: userAgent(),
	})
}

// check says what is missing before a cloud can be spoken to.
func (s *settings) check() error {
	switch {
	case s.region == "":
		return usagef("no region: give --region, or set HW_REGION_NAME")
	case !s.credentials.known():
		return s.noCredentials()
	}
	return nil
}

// keySource are the keys of the settings. Where the metadata service was asked only because nothing else
// was found, its failure means that there are no credentials.
type keySource struct{ s *settings }

func (k keySource) Credentials(ctx context.Context) (ims.Credentials, error) {
	c := k.s.credentials
	if c.keys == nil {
		return ims.Credentials{AccessKey: c.accessKey, SecretKey: c.secretKey, SecurityToken: c.securityToken}, nil
	}
	keys, err := c.keys.Credentials(ctx)
	if err != nil && c.guessed && ctx.Err() == nil {
		return keys, k.s.noCredentials()
	}
	return keys, err
}

// Refused implements ims.KeySource. Keys of the environment stay as they are: nobody can change the
// environment of a program that runs.
func (k keySource) Refused(c ims.Credentials) {
	if k.s.credentials.keys != nil {
		k.s.credentials.keys.Refused(c)
	}
}

func (s *settings) noCredentials() error {
	err := errNoCredentials
	if s.skipped != nil {
		err = fmt.Errorf("%w (%w)", err, s.skipped)
	}
	return &pipeline.CheckError{
		What: "no credentials found",
		Remedy: "Set HW_ACCESS_KEY and HW_SECRET_KEY (and HW_SECURITY_TOKEN when they are temporary),\n" +
			"  or HW_USER_NAME, HW_USER_PASSWORD and HW_DOMAIN_NAME.",
		Err: err,
	}
}

// errNoCredentials is in the chain of the error for a cloud command without any keys.
var errNoCredentials = errors.New("not authenticated")

func userAgent() string { return "imsprep/" + version }
