// SPDX-License-Identifier: Apache-2.0

// Package settings finds out which cloud is meant and who we are there: from what was given
// explicitly, from the environment, and from profile and configuration files. It makes the clients
// of the services from that.
//
// It doesn't read the environment itself: commands pass it in, see [Sources].
package settings

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// UsageError is a value, given explicitly or in the environment, that can't be carried out as it stands.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

func usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// Options are settings that are given explicitly, as flags of a command or options of a plugin. Each wins
// over the environment; "" is one that isn't given.
type Options struct {
	Region    string // region id, such as cn-north-4
	ProjectID string
	Cloud     string // huaweicloud, europe, otc, or the domain of another cloud's endpoints

	// AccessKey, SecretKey and, of temporary keys, SecurityToken win over all other credentials. A command
	// has no flags for them: others can read a command line.
	AccessKey, SecretKey, SecurityToken string
	Profile                             string // of KooCLI, or "metadata"
	Agency, AgencyDomain                string // to act through, and the account that made it

	OBSEndpoint, IMSEndpoint, IAMEndpoint string
	OBSAddressing                         string // one of obs.Addressings
}

// Sources are where settings are looked for, and what their clients share.
type Sources struct {
	Options Options
	// OptionName is how an option is named to people, "--region" of region; nil names it as it is.
	OptionName func(option string) string
	Lookup     func(name string) (string, bool) // an environment variable

	// ConfigDir and CacheDir are the system's folders of a user; nil, or an error, is none.
	ConfigDir, CacheDir func() (string, error)

	Proxy     func(*http.Request) (*url.URL, error) // nil is none
	UserAgent string
	Logger    *slog.Logger         // of the clients; nil is none
	OnRetry   func(ims.RetryEvent) // as in ims.Options
	// OnObjectRetry is as OnRetry in obs.Options.
	OnObjectRetry func(obs.RetryEvent)
	// OnSecret, if not nil, is told of every secret that is found, also of keys that come during a run; it may
	// be called at any time and by several goroutines.
	OnSecret func(string)
	// LookFor is how long an image is looked for when it isn't known whether it was asked for; 0 is the
	// client's default, in which real services have always shown one.
	LookFor time.Duration
	// Store, if not nil, changes how the object storage is spoken to: how often, how long, over what.
	Store func(*obs.Options)
}

// option names an option to people.
func (o *Sources) option(name string) string {
	if o.OptionName != nil {
		return o.OptionName(name)
	}
	return name
}

// Settings is what the sources say about the cloud and who we are there. An option wins over the
// environment. All of one credential set comes from one source: an access key of one and a secret of
// another would be a riddle to whoever reads the error.
type Settings struct {
	Region      string
	ProjectID   string
	Bucket      string // where imports go, if the environment says
	Endpoints   Endpoints
	Credentials Credentials
	Agency      *ims.Agency // to act through, with the credentials; nil if there is none
	Confirmed   []string    // bitmap layouts confirmed for this cloud

	addressing  obs.Addressing
	projectName string
	skipped     error // why profile files in the home weren't taken
	sources     *Sources
}

// Endpoints are the addresses of the services; "" where nothing says one.
type Endpoints struct{ OBS, IMS, IAM string }

// Credentials is one of: an access key with its secret (and a security token when temporary), a
// ready IAM token, or a user with a password.
type Credentials struct {
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

func (c Credentials) HasKeys() bool  { return c.accessKey != "" || c.keys != nil }
func (c Credentials) hasToken() bool { return c.token != "" || c.user != nil }

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

// Getenv is the value of the first of names that is set and not empty.
func (o *Sources) Getenv(names ...string) string {
	for _, n := range names {
		if v, ok := o.Lookup(n); ok && v != "" {
			return v
		}
	}
	return ""
}

// Settings reads what is known about the cloud. It fails on half a credential set, not on a
// missing one: a local command needs none.
func (o *Sources) Settings() (*Settings, error) {
	s, err := o.settings()
	if s != nil {
		c := s.Credentials
		o.secret(c.secretKey, c.securityToken, c.token)
		if c.user != nil {
			o.secret(c.user.Password, c.user.Passcode)
		}
	}
	return s, err
}

func (o *Sources) settings() (*Settings, error) {
	f := &o.Options
	s := &Settings{
		Region:      cmp.Or(f.Region, o.Getenv("HW_REGION_NAME", "OS_REGION_NAME", "OS_REGION_ID")),
		ProjectID:   cmp.Or(f.ProjectID, o.Getenv("HW_PROJECT_ID", "HUAWEICLOUD_SDK_PROJECT_ID", "OS_PROJECT_ID", "OS_TENANT_ID")),
		projectName: o.Getenv("HW_PROJECT_NAME", "OS_PROJECT_NAME", "OS_TENANT_NAME"),
		Bucket:      o.Getenv("IMSPREP_BUCKET"),
		sources:     o,
	}
	endpoint := func(service string) string {
		if s.Region == "" {
			return ""
		}
		return cmp.Or(o.Getenv(sdkEndpoint(service, s.Region)), ims.ServiceEndpoint(service, s.Region, o.cloudDomain()))
	}
	s.addressing = obs.Addressing(cmp.Or(f.OBSAddressing, o.Getenv("IMSPREP_OBS_ADDRESSING"), string(obs.AddressingAuto)))
	if !slices.Contains(obs.Addressings(), s.addressing) {
		return nil, usagef("%s %q: it is auto, virtual or path", o.option("obs_addressing"), s.addressing)
	}
	s.Endpoints.OBS = cmp.Or(f.OBSEndpoint, o.Getenv("IMSPREP_OBS_ENDPOINT"), endpoint("obs"))
	s.Endpoints.IMS = cmp.Or(f.IMSEndpoint, o.Getenv("IMSPREP_IMS_ENDPOINT"), endpoint("ims"))
	s.Endpoints.IAM = cmp.Or(f.IAMEndpoint, o.Getenv(iamEndpoints...), endpoint("iam"))
	s.Endpoints.IAM = strings.TrimSuffix(strings.TrimSuffix(s.Endpoints.IAM, "/"), "/v3")
	s.Confirmed = strings.FieldsFunc(o.Getenv("IMSPREP_CONFIRMED_BITMAP"), func(r rune) bool { return r == ',' || r == ' ' })
	c, err := o.Config()
	if err != nil {
		return nil, err
	}
	s.Confirmed = append(s.Confirmed, c.confirmedIn(s.Region)...)
	if s.Agency, err = o.agency(); err != nil {
		return nil, err
	}
	s.Credentials, err = o.credentials()
	if err != nil || s.Credentials.Known() {
		return s, err
	}
	p, skipped, err := o.profile()
	if err != nil {
		return s, err
	}
	if p != nil {
		s.Credentials = p.Credentials
		if s.Agency == nil {
			s.Agency = p.agency
		}
		s.ProjectID = cmp.Or(s.ProjectID, p.projectID)
		if s.Region == "" {
			s.Confirmed = append(s.Confirmed, c.confirmedIn(p.region)...)
		}
		if s.Region = cmp.Or(s.Region, p.region); s.Region != "" {
			s.Endpoints.OBS = cmp.Or(s.Endpoints.OBS, endpoint("obs"))
			s.Endpoints.IMS = cmp.Or(s.Endpoints.IMS, endpoint("ims"))
			if f.IAMEndpoint == "" && o.Getenv(iamEndpoints...) == "" {
				s.Endpoints.IAM = cmp.Or(p.iamEndpoint, endpoint("iam"))
			}
		}
		return s, nil
	}
	s.skipped = skipped
	s.Credentials = o.metadata()
	s.Credentials.guessed = s.Credentials.Known()
	return s, nil
}

// Known tells whether there are credentials of any kind.
func (c Credentials) Known() bool { return c.HasKeys() || c.hasToken() }

func (o *Sources) credentials() (Credentials, error) {
	if f := &o.Options; f.AccessKey != "" || f.SecretKey != "" {
		if f.AccessKey == "" || f.SecretKey == "" {
			return Credentials{}, usagef("%s and %s are needed together", o.option("access_key"), o.option("secret_key"))
		}
		return Credentials{accessKey: f.AccessKey, secretKey: f.SecretKey, securityToken: f.SecurityToken,
			source: o.option("access_key") + " and " + o.option("secret_key")}, nil
	}
	switch o.Options.Profile {
	case "":
	case profileMetadata:
		c := o.metadata()
		if !c.Known() {
			return c, usagef("%s %s is given, but IMSPREP_METADATA_ENDPOINT is %s", o.option("profile"), profileMetadata, metadataOff)
		}
		return c, nil
	default:
		return Credentials{}, nil // a profile that is named here wins over the environment
	}
	if c, ok, err := o.keys(keySets); ok || err != nil {
		return c, err
	}
	if c, ok, err := o.tokenCredentials(); ok || err != nil {
		return c, err
	}
	c, _, err := o.keys(lateKeySets)
	return c, err
}

func (o *Sources) keys(sets []struct{ ak, sk, token string }) (Credentials, bool, error) {
	for _, set := range sets {
		ak, sk := o.Getenv(set.ak), o.Getenv(set.sk)
		switch {
		case ak == "" && sk == "":
			continue
		case ak == "" || sk == "":
			missing, there := set.sk, set.ak
			if ak == "" {
				missing, there = set.ak, set.sk
			}
			return Credentials{}, false, usagef("%s is set, but %s isn't: both are needed", there, missing)
		}
		c := Credentials{accessKey: ak, secretKey: sk, securityToken: o.Getenv(set.token), source: set.ak + " and " + set.sk}
		if c.securityToken != "" {
			c.source = set.ak + ", " + set.sk + " and " + set.token
		}
		return c, true, nil
	}
	return Credentials{}, false, nil
}

// Fixed tells whether the credentials are temporary and can't be renewed during a run.
func (c Credentials) Fixed() bool { return c.keys == nil && (c.securityToken != "" || c.token != "") }

// Keys says what is known of the credentials, without the secrets.
func (s *Settings) Keys() pipeline.Keys {
	c := s.Credentials
	k := pipeline.Keys{Source: c.source}
	switch {
	case !c.Known():
		k.Err = s.noCredentials()
	case c.HasKeys():
		k.Fixed = c.Fixed()
		k.Get = keySource{s}.Credentials
		if t, ok := c.keys.(interface{ Expires() time.Time }); ok {
			k.Expires = t.Expires
		}
	}
	return k
}

// Importer makes the clients of both services, and says who uses them.
func (s *Settings) Importer() (*pipeline.Importer, error) {
	i, err := s.IMSClient()
	if err != nil {
		return nil, err
	}
	o, err := s.OBSClient(i)
	if err != nil {
		return nil, err
	}
	return &pipeline.Importer{OBS: o, IMS: i, Region: s.Region}, nil
}

// secret tells of what must not be shown.
func (o *Sources) secret(list ...string) {
	if o == nil || o.OnSecret == nil {
		return
	}
	for _, s := range list {
		if s != "" {
			o.OnSecret(s)
		}
	}
}

// IMSClient makes the IMS client that the settings describe.
func (s *Settings) IMSClient() (*ims.Client, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	if err := s.assume(); err != nil {
		return nil, err
	}
	o := s.clientOptions()
	o.Auth = s.auth()
	client, err := ims.New(o)
	if err != nil {
		return nil, &UsageError{err}
	}
	return client, nil
}

// outage is how long a line may be down during an upload: long enough for a router that starts anew, short
// enough that whoever waits for the exit code hears of it.
const outage = 10 * time.Minute

// OBSClient makes the object storage client. Object storage takes no tokens: with token
// authentication temporary keys are fetched through the IMS client's IAM and renewed before they end.
func (s *Settings) OBSClient(i *ims.Client) (*obs.Client, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	var keys ims.KeySource = keySource{s}
	if !s.Credentials.HasKeys() {
		keys = i.ObjectKeys(24 * time.Hour)
	}
	o := obs.Options{
		Endpoint:   s.Endpoints.OBS,
		Addressing: s.addressing,
		Region:     s.Region,
		Credentials: func(ctx context.Context) (obs.Credentials, error) {
			k, err := keys.Credentials(ctx)
			s.sources.secret(k.SecretKey, k.SecurityToken)
			return obs.Credentials(k), err
		},
		Refused:   func(k obs.Credentials) { keys.Refused(ims.Credentials(k)) },
		Proxy:     s.sources.Proxy,
		Logger:    s.sources.Logger,
		OnRetry:   s.sources.OnObjectRetry,
		UserAgent: s.sources.UserAgent,
		Outage:    outage,
	}
	if s.sources.Store != nil {
		s.sources.Store(&o)
	}
	return obs.New(o)
}

// Check says what is missing before a cloud can be spoken to.
func (s *Settings) Check() error {
	switch {
	case s.Region == "":
		return usagef("no region: give %s, or set HW_REGION_NAME", s.sources.option("region"))
	case !s.Credentials.Known():
		return s.noCredentials()
	}
	return nil
}

// keySource are the keys of the settings. Where the metadata service was asked only because nothing else
// was found, its failure means that there are no credentials.
type keySource struct{ s *Settings }

func (k keySource) Credentials(ctx context.Context) (ims.Credentials, error) {
	c := k.s.Credentials
	if c.keys == nil {
		return ims.Credentials{AccessKey: c.accessKey, SecretKey: c.secretKey, SecurityToken: c.securityToken}, nil
	}
	keys, err := c.keys.Credentials(ctx)
	k.s.sources.secret(keys.SecretKey, keys.SecurityToken)
	if err != nil && c.guessed && ctx.Err() == nil {
		return keys, k.s.noCredentials()
	}
	return keys, err
}

// Refused implements ims.KeySource. Keys of the environment stay as they are: nobody can change the
// environment of a program that runs.
func (k keySource) Refused(c ims.Credentials) {
	if k.s.Credentials.keys != nil {
		k.s.Credentials.keys.Refused(c)
	}
}

func (s *Settings) noCredentials() error {
	err := ErrNoCredentials
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

// ErrNoCredentials is in the chain of the error for a cloud command without any keys.
var ErrNoCredentials = errors.New("not authenticated")
