// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"cmp"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/imsprep/imsprep/pkg/ims"
)

// tokenSet are the environment variables of one family of tools that lead to a token: a ready one, or a
// user, named or by id, with a password and the account (domain) that the user belongs to.
type tokenSet struct {
	token                  []string
	user, userID, password string
	domain, domainID       []string
}

var tokenSets = []tokenSet{
	{
		token: []string{"HW_AUTH_TOKEN"}, user: "HW_USER_NAME", userID: "HW_USER_ID", password: "HW_USER_PASSWORD",
		domain: []string{"HW_DOMAIN_NAME"}, domainID: []string{"HW_DOMAIN_ID"},
	},
	{
		token: []string{"OS_AUTH_TOKEN", "OS_TOKEN"}, user: "OS_USERNAME", userID: "OS_USER_ID", password: "OS_PASSWORD",
		domain:   []string{"OS_DOMAIN_NAME", "OS_USER_DOMAIN_NAME", "OS_PROJECT_DOMAIN_NAME"},
		domainID: []string{"OS_DOMAIN_ID", "OS_USER_DOMAIN_ID", "OS_PROJECT_DOMAIN_ID"},
	},
}

// mfaCode is the variable of the code that a virtual MFA device shows. It isn't a secret for long, but it
// would be seen on a command line while it still is one.
const mfaCode = "IMSPREP_MFA_CODE"

// tokenCredentials takes the first family that has a token or a user.
func (o *Sources) tokenCredentials() (Credentials, bool, error) {
	for _, set := range tokenSets {
		if t := o.Getenv(set.token...); t != "" {
			return Credentials{token: t, source: o.setName(set.token...)}, true, nil
		}
		p := ims.Password{
			UserName: o.Getenv(set.user), UserID: o.Getenv(set.userID), Password: o.Getenv(set.password),
			DomainName: o.Getenv(set.domain...), DomainID: o.Getenv(set.domainID...), Passcode: o.Getenv(mfaCode),
		}
		name := o.setName(set.user, set.userID)
		switch {
		case name == "":
			continue
		case p.Password == "" || p.UserID == "" && p.DomainName == "" && p.DomainID == "":
			return Credentials{}, false, usagef("%s is set, but %s and %s are needed with it", name, set.password, set.domain[0])
		case p.Passcode != "" && p.UserID == "":
			return Credentials{}, false, usagef("%s is set: with it the user's id is needed, in %s", mfaCode, set.userID)
		}
		return Credentials{user: &p, source: name + " and " + set.password}, true, nil
	}
	return Credentials{}, false, nil
}

// setName is the first of the variables that is set.
func (o *Sources) setName(names ...string) string {
	for _, n := range names {
		if o.Getenv(n) != "" {
			return n
		}
	}
	return ""
}

// agency is the agency to act through: that of the command line, else of the environment, else none.
func (o *Sources) agency() (*ims.Agency, error) {
	g := &ims.Agency{
		Name:       cmp.Or(o.Options.Agency, o.Getenv("HW_ASSUME_ROLE_AGENCY_NAME")),
		DomainName: cmp.Or(o.Options.AgencyDomain, o.Getenv("HW_ASSUME_ROLE_DOMAIN_NAME")),
		DomainID:   o.Getenv("HW_ASSUME_ROLE_DOMAIN_ID"),
	}
	if o.Options.AgencyDomain != "" {
		g.DomainID = ""
	}
	if g.Name == "" {
		if o.Options.AgencyDomain != "" {
			return nil, usagef("%s is given, but %s isn't", o.option("assume-domain"), o.option("assume-agency"))
		}
		return nil, nil
	}
	if v := o.Getenv("HW_ASSUME_ROLE_DURATION"); v != "" {
		seconds, err := strconv.Atoi(v)
		g.Life = time.Duration(seconds) * time.Second
		if err != nil || g.Life < ims.MinTemporaryLife || g.Life > ims.MaxTemporaryLife {
			return nil, usagef("HW_ASSUME_ROLE_DURATION is %q: it is 900 to 86400 seconds", v)
		}
	}
	if g.DomainName == "" && g.DomainID == "" {
		return nil, usagef("the agency %q is to be used, but the account that made it isn't named: give %s, or set HW_ASSUME_ROLE_DOMAIN_NAME",
			g.Name, o.option("assume-domain"))
	}
	return g, nil
}

// auth is how the credentials authenticate requests to the image and identity services.
func (s *Settings) auth() ims.Auth {
	switch c := s.Credentials; {
	case c.HasKeys():
		return ims.AKSKFrom(keySource{s})
	case c.token != "":
		return ims.StaticToken(c.token)
	default:
		return ims.PasswordToken(*c.user)
	}
}

// assume exchanges the credentials for keys that are got through the agency, whenever they are needed.
func (s *Settings) assume() error {
	if s.Agency == nil {
		return nil
	}
	o := s.clientOptions()
	// The project, if it is known, is one of the account that made the agency, not of the caller's own.
	o.ProjectID, o.ProjectName, o.Auth = "", s.Region, (&Settings{Credentials: s.Credentials, sources: s.sources}).auth()
	own, err := ims.New(o)
	if err != nil {
		return &UsageError{err}
	}
	source := fmt.Sprintf("the agency %q of %s, with %s", s.Agency.Name, cmp.Or(s.Agency.DomainName, s.Agency.DomainID), s.Credentials.source)
	s.Credentials = Credentials{keys: own.AgencyKeys(*s.Agency), source: source}
	s.Agency = nil
	return nil
}

// clientOptions are those of every client of the image and identity services.
func (s *Settings) clientOptions() ims.Options {
	transport := ims.NewTransport()
	transport.Proxy = s.sources.Proxy
	return ims.Options{
		HTTPClient:  &http.Client{Transport: transport},
		Endpoint:    s.Endpoints.IMS,
		IAMEndpoint: s.Endpoints.IAM,
		Region:      s.Region,
		ProjectID:   s.ProjectID,
		ProjectName: s.projectName,
		UserAgent:   s.sources.UserAgent,
		// Whoever names an endpoint without TLS means it: the local cloud has none.
		AllowPlainHTTP: true,
		Logger:         s.sources.Logger,
		OnRetry:        s.sources.OnRetry,
		LookupLimit:    s.sources.LookFor,
	}
}

// clouds are names for the domains of endpoints; any other value is a domain itself.
var clouds = map[string]string{
	"huaweicloud": ims.DefaultDomain,
	"europe":      ims.EuropeDomain,
	"otc":         ims.OpenTelekomDomain,
}

// cloudDomain is the domain that the option or HW_CLOUD means, "" for the one that goes with the region.
func (o *Sources) cloudDomain() string {
	cloud := cmp.Or(o.Options.Cloud, o.Getenv("HW_CLOUD"))
	return cmp.Or(clouds[strings.ToLower(cloud)], cloud)
}

// sdkEndpoint is the variable by which the vendor's SDKs are told a service's endpoint in a region.
func sdkEndpoint(service, region string) string {
	return "HUAWEICLOUD_SDK_REGION_" + strings.ToUpper(service+"_"+strings.ReplaceAll(region, "-", "_"))
}
