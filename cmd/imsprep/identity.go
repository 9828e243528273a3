// SPDX-License-Identifier: Apache-2.0

package main

import (
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
func (a *app) tokenCredentials() (credentials, bool, error) {
	for _, set := range tokenSets {
		if t := a.getenv(set.token...); t != "" {
			return credentials{token: t, source: a.setName(set.token...)}, true, nil
		}
		p := ims.Password{
			UserName: a.getenv(set.user), UserID: a.getenv(set.userID), Password: a.getenv(set.password),
			DomainName: a.getenv(set.domain...), DomainID: a.getenv(set.domainID...), Passcode: a.getenv(mfaCode),
		}
		name := a.setName(set.user, set.userID)
		switch {
		case name == "":
			continue
		case p.Password == "" || p.UserID == "" && p.DomainName == "" && p.DomainID == "":
			return credentials{}, false, usagef("%s is set, but %s and %s are needed with it", name, set.password, set.domain[0])
		case p.Passcode != "" && p.UserID == "":
			return credentials{}, false, usagef("%s is set: with it the user's id is needed, in %s", mfaCode, set.userID)
		}
		return credentials{user: &p, source: name + " and " + set.password}, true, nil
	}
	return credentials{}, false, nil
}

// setName is the first of the variables that is set.
func (a *app) setName(names ...string) string {
	for _, n := range names {
		if a.getenv(n) != "" {
			return n
		}
	}
	return ""
}

// agency is the agency to act through: that of the command line, else of the environment, else none.
func (a *app) agency() (*ims.Agency, error) {
	g := &ims.Agency{
		Name:       first(a.flags.agency, a.getenv("HW_ASSUME_ROLE_AGENCY_NAME")),
		DomainName: first(a.flags.agencyDomain, a.getenv("HW_ASSUME_ROLE_DOMAIN_NAME")),
		DomainID:   a.getenv("HW_ASSUME_ROLE_DOMAIN_ID"),
	}
	if a.flags.agencyDomain != "" {
		g.DomainID = ""
	}
	if g.Name == "" {
		if a.flags.agencyDomain != "" {
			return nil, usagef("--assume-domain is given, but --assume-agency isn't")
		}
		return nil, nil
	}
	if v := a.getenv("HW_ASSUME_ROLE_DURATION"); v != "" {
		seconds, err := strconv.Atoi(v)
		g.Life = time.Duration(seconds) * time.Second
		if err != nil || g.Life < ims.MinTemporaryLife || g.Life > ims.MaxTemporaryLife {
			return nil, usagef("HW_ASSUME_ROLE_DURATION is %q: it is 900 to 86400 seconds", v)
		}
	}
	return g, checkAgency(g)
}

func checkAgency(g *ims.Agency) error {
	if g.DomainName == "" && g.DomainID == "" {
		return usagef("the agency %q is to be used, but the account that made it isn't named: give --assume-domain, or set HW_ASSUME_ROLE_DOMAIN_NAME", g.Name)
	}
	return nil
}

// auth is how the credentials authenticate requests to the image and identity services.
func (s *settings) auth() ims.Auth {
	switch c := s.credentials; {
	case c.hasKeys():
		return ims.AKSKFrom(keySource{s})
	case c.token != "":
		return ims.StaticToken(c.token)
	default:
		return ims.PasswordToken(*c.user)
	}
}

// assume exchanges the credentials for keys that are got through the agency, whenever they are needed.
func (s *settings) assume() error {
	if s.agency == nil {
		return nil
	}
	o := s.clientOptions()
	// The project, if it is known, is one of the account that made the agency, not of the caller's own.
	o.ProjectID, o.ProjectName, o.Auth = "", s.region, (&settings{credentials: s.credentials}).auth()
	own, err := ims.New(o)
	if err != nil {
		return &usageError{err}
	}
	source := fmt.Sprintf("the agency %q of %s, with %s", s.agency.Name, first(s.agency.DomainName, s.agency.DomainID), s.credentials.source)
	s.credentials = credentials{keys: own.AgencyKeys(*s.agency), source: source}
	s.agency = nil
	return nil
}

// clientOptions are those of every client of the image and identity services.
func (s *settings) clientOptions() ims.Options {
	transport := ims.NewTransport()
	transport.Proxy = http.ProxyFromEnvironment
	return ims.Options{
		HTTPClient:  &http.Client{Transport: transport},
		Endpoint:    s.endpoints.ims,
		IAMEndpoint: s.endpoints.iam,
		Region:      s.region,
		ProjectID:   s.projectID,
		ProjectName: s.projectName,
		UserAgent:   userAgent(),
		// Whoever names an endpoint without TLS means it: the local cloud has none.
		AllowPlainHTTP: true,
		OnRetry:        s.onRetry,
		LookupLimit:    s.lookFor,
	}
}

// clouds are names for the domains of endpoints; any other value of --cloud is a domain itself.
var clouds = map[string]string{
	"huaweicloud": ims.DefaultDomain,
	"europe":      ims.EuropeDomain,
	"otc":         ims.OpenTelekomDomain,
}

// cloudDomain is the domain that --cloud or HW_CLOUD means, "" for the one that goes with the region.
func (a *app) cloudDomain() string {
	cloud := first(a.flags.cloud, a.getenv("HW_CLOUD"))
	return first(clouds[strings.ToLower(cloud)], cloud)
}

// sdkEndpoint is the variable by which the vendor's SDKs are told a service's endpoint in a region.
func sdkEndpoint(service, region string) string {
	return "HUAWEICLOUD_SDK_REGION_" + strings.ToUpper(service+"_"+strings.ReplaceAll(region, "-", "_"))
}
