// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// issuedToken is a token and what its answer says about it.
type issuedToken struct {
	token     string
	projectID string
	life      time.Duration
}

// unstatedTokenLife is assumed when the answer does not say how long the token lives; tokens live a
// day, and one that ends early is renewed when it is refused.
const unstatedTokenLife = 12 * time.Hour

// Paths of IAM.
const (
	iamTokenPath     = "/v3/auth/tokens"
	securityKeysPath = "/v3.0/OS-CREDENTIAL/securitytokens"
)

// passwordToken asks for a token: POST /v3/auth/tokens (IAM API, with a password, or with a password and
// virtual MFA).
func (c *Client) passwordToken(ctx context.Context, p Password) (issuedToken, error) {
	user := map[string]any{"password": p.Password}
	if p.UserID != "" {
		user["id"] = p.UserID
	} else {
		user["name"] = p.UserName
		domain := map[string]any{}
		if p.DomainID != "" {
			domain["id"] = p.DomainID
		} else {
			domain["name"] = p.DomainName
		}
		user["domain"] = domain
	}
	project := map[string]any{}
	if p.ProjectID != "" {
		project["id"] = p.ProjectID
	} else {
		project["name"] = p.ProjectName
	}
	identity := map[string]any{"methods": []string{"password"}, "password": map[string]any{"user": user}}
	if p.Passcode != "" {
		identity["methods"] = []string{"password", "totp"}
		identity["totp"] = map[string]any{"user": map[string]any{"id": p.UserID, "passcode": p.Passcode}}
	}
	k := call{
		op: "ask for a token", service: serviceIAM, method: http.MethodPost, path: iamTokenPath,
		query: url.Values{"nocatalog": {"true"}},
		body: map[string]any{"auth": map[string]any{
			"identity": identity,
			"scope":    map[string]any{"project": project},
		}},
		success: []int{http.StatusCreated, http.StatusOK}, anonymous: true,
		// A passcode is good once, and its use may have been noted although the answer was lost.
		repeatable: p.Passcode == "",
		secrets:    []string{p.Password, p.Passcode},
	}
	a, err := c.do(ctx, k)
	if err != nil {
		return issuedToken{}, err
	}
	t := issuedToken{token: a.header.Get(headerSubjectToken), life: unstatedTokenLife}
	if t.token == "" {
		return issuedToken{}, malformed(k, a, "the answer holds no token")
	}
	// The body is a convenience; the token is good without it.
	if m, err := decodeObject(a.body); err == nil {
		body, _ := m["token"].(map[string]any)
		if project, ok := body["project"].(map[string]any); ok {
			t.projectID = text(project["id"])
		}
		expires, okExpires := parseTime(text(body["expires_at"]))
		issued, okIssued := parseTime(text(body["issued_at"]))
		if !okIssued {
			issued = c.serviceTime()
		}
		if okExpires && expires.After(issued) {
			t.life = expires.Sub(issued)
		}
	}
	return t, nil
}

// projectState is the project id once it is known.
type projectState struct {
	lock lock
	id   string
	// skip is set when looking for the project only to send its header has failed for good.
	skip bool
}

// ProjectID is the id of the project that the client works in: the one given in [Options], else
// that of the token, else the one project of the name ProjectName or Region (GET /v3/projects, or
// GET /v3/auth/projects where that is not allowed; IAM API, lists of projects). No match, or several, is an *[Error] of
// [KindNotFound] or [KindInvalid] that says what was found.
func (c *Client) ProjectID(ctx context.Context) (string, error) {
	if err := c.project.lock.acquire(ctx); err != nil {
		return "", err
	}
	defer c.project.lock.release()
	if c.project.id != "" {
		return c.project.id, nil
	}
	id, err := c.auth.tokenProject(ctx)
	if err == nil && id == "" {
		id, err = c.findProject(ctx)
	}
	if err != nil {
		return "", err
	}
	c.project.id = id
	return id, nil
}

// headerProject is the project id for the header X-Project-Id, which only accounts with several
// projects in a region need: not being able to find it is no reason not to send the request.
func (c *Client) headerProject(ctx context.Context) (string, error) {
	if err := c.project.lock.acquire(ctx); err != nil {
		return "", err
	}
	known, skip := c.project.id, c.project.skip
	c.project.lock.release()
	if known != "" || skip || c.iam == nil || c.projectName == "" {
		return known, nil
	}
	id, err := c.ProjectID(ctx)
	if err == nil {
		return id, nil
	}
	if ctx.Err() != nil || KindOf(err) == KindAuth {
		return "", err
	}
	if err := c.project.lock.acquire(ctx); err != nil {
		return "", err
	}
	c.project.skip = true
	c.project.lock.release()
	return "", nil
}

type project struct{ id, name string }

func (c *Client) findProject(ctx context.Context) (string, error) {
	if c.projectName == "" {
		return "", &Error{
			Op: "look the project up", Method: http.MethodGet, Path: "/v3/projects", Kind: KindInvalid,
			Message: "neither the project's id nor its name nor a region is given",
		}
	}
	list, err := c.projects(ctx, "/v3/projects", url.Values{"name": {c.projectName}})
	if KindOf(err) == KindPermission {
		// Listing one's own projects needs no right.
		var second error
		if list, second = c.projects(ctx, "/v3/auth/projects", nil); second != nil {
			return "", errors.Join(err, second)
		}
		err = nil
	}
	if err != nil {
		return "", err
	}
	list = slices.DeleteFunc(list, func(p project) bool {
		// MOS is a project that OBS brings along, and not every installation filters exactly.
		return p.id == "" || p.name == "MOS" || p.name != c.projectName
	})
	switch len(list) {
	case 1:
		return list[0].id, nil
	case 0:
		return "", &Error{
			Op: "look the project up", Method: http.MethodGet, Path: "/v3/projects", Kind: KindNotFound,
			Message: fmt.Sprintf("no project is named %q: give the project's id", c.projectName),
		}
	}
	var ids []string
	for _, p := range list {
		ids = append(ids, cleanText(p.id, 100))
	}
	slices.Sort(ids)
	return "", &Error{
		Op: "look the project up", Method: http.MethodGet, Path: "/v3/projects", Kind: KindInvalid,
		Message: fmt.Sprintf("%d projects are named %q: give the id of one of %s",
			len(ids), c.projectName, strings.Join(ids, ", ")),
	}
}

func (c *Client) projects(ctx context.Context, path string, query url.Values) ([]project, error) {
	k := call{op: "look the project up", service: serviceIAM, method: http.MethodGet, path: path, query: query}
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	m, err := a.object(k)
	if err != nil {
		return nil, err
	}
	items, ok := m["projects"].([]any)
	if !ok {
		return nil, malformed(k, a, "the answer holds no list of projects")
	}
	var list []project
	for _, item := range items {
		if p, ok := item.(map[string]any); ok {
			list = append(list, project{id: text(p["id"]), name: text(p["name"])})
		}
	}
	return list, nil
}

// Limits of the life of temporary credentials.
const (
	MinTemporaryLife     = 900 * time.Second
	MaxTemporaryLife     = 86400 * time.Second
	defaultTemporaryLife = time.Hour
)

// TemporaryCredentials exchanges the token for keys with a security token, which OBS needs since it
// takes no tokens: POST /v3.0/OS-CREDENTIAL/securitytokens (IAM API, temporary keys from a token). d is
// their life, 15 minutes to 24 hours; 0 means one hour. It fails with [KindInvalid] when the client has
// keys itself; see [Client.ObjectCredentials], which covers both cases.
func (c *Client) TemporaryCredentials(ctx context.Context, d time.Duration) (Credentials, error) {
	cred, _, err := c.temporaryCredentials(ctx, d)
	return cred, err
}

func (c *Client) temporaryCredentials(ctx context.Context, d time.Duration) (Credentials, time.Duration, error) {
	if d == 0 {
		d = defaultTemporaryLife
	}
	identity := map[string]any{
		"methods": []string{"token"},
		"token":   map[string]any{"duration_seconds": int(d / time.Second)},
	}
	const op = "exchange the token for temporary keys"
	if c.auth.objectCredentials() != nil {
		return Credentials{}, 0, noKeys(op, "only tokens can be exchanged; this client authenticates with keys")
	}
	return c.securityKeys(ctx, op, d, identity)
}

func noKeys(op, message string) error {
	return &Error{Op: op, Method: http.MethodPost, Path: securityKeysPath, Kind: KindInvalid, Message: message}
}

// securityKeys asks for temporary keys: POST /v3.0/OS-CREDENTIAL/securitytokens.
func (c *Client) securityKeys(ctx context.Context, op string, d time.Duration, identity map[string]any) (Credentials, time.Duration, error) {
	if d < MinTemporaryLife || d > MaxTemporaryLife {
		return Credentials{}, 0, noKeys(op, fmt.Sprintf("the life of temporary keys is %v to %v, not %v", MinTemporaryLife, MaxTemporaryLife, d))
	}
	k := call{
		op: op, service: serviceIAM, method: http.MethodPost, path: securityKeysPath,
		success: []int{http.StatusCreated, http.StatusOK},
		// Keys that nobody received harm nobody.
		repeatable: true,
		body:       map[string]any{"auth": map[string]any{"identity": identity}},
	}
	a, err := c.do(ctx, k)
	if err != nil {
		return Credentials{}, 0, err
	}
	m, err := a.object(k)
	if err != nil {
		return Credentials{}, 0, err
	}
	fields, _ := m["credential"].(map[string]any)
	cred := Credentials{
		AccessKey: text(fields["access"]), SecretKey: text(fields["secret"]), SecurityToken: text(fields["securitytoken"]),
	}
	if cred.AccessKey == "" || cred.SecretKey == "" || cred.SecurityToken == "" {
		return Credentials{}, 0, malformed(k, a, "the answer holds no complete set of keys")
	}
	life := d
	if expires, ok := parseTime(text(fields["expires_at"])); ok {
		// The service may grant less than was asked for. Its own clock is the measure.
		if left := expires.Sub(c.serviceTime()); left > 0 {
			life = min(life, left)
		}
	}
	return cred, life, nil
}

// Agency is an agency by which another account, or one of its own, lets this client's user act for it.
type Agency struct {
	Name       string
	DomainName string        // of the account that made the agency; or DomainID
	DomainID   string        // instead of DomainName
	Life       time.Duration // of the keys; 15 minutes to 24 hours, 0 means one hour
}

// AgencyKeys are temporary keys of an agency, asked for with the client's own credentials, again and
// again before they expire: POST /v3.0/OS-CREDENTIAL/securitytokens with the method assume_role (IAM API,
// temporary keys through an agency). They work for IMS, IAM and OBS. The project that they are for is
// one of the agency's account.
func (c *Client) AgencyKeys(a Agency) *TemporaryKeys {
	return newTemporaryKeys(func(ctx context.Context) (Credentials, time.Duration, error) {
		op := fmt.Sprintf("get keys through the agency %q", a.Name)
		if a.Name == "" || a.DomainName == "" && a.DomainID == "" {
			return Credentials{}, 0, noKeys(op, "an agency is named by its name and the account (domain) that made it")
		}
		d := cmp.Or(a.Life, defaultTemporaryLife)
		role := map[string]any{"agency_name": a.Name, "duration_seconds": int(d / time.Second)}
		if a.DomainID != "" {
			role["domain_id"] = a.DomainID
		} else {
			role["domain_name"] = a.DomainName
		}
		return c.securityKeys(ctx, op, d, map[string]any{"methods": []string{"assume_role"}, "assume_role": role})
	}, c.now)
}

// ObjectCredentials supplies keys for OBS: the client's own if it has keys, else those of
// [Client.ObjectKeys].
func (c *Client) ObjectCredentials(d time.Duration) CredentialsFunc {
	if own := c.auth.objectCredentials(); own != nil {
		return own
	}
	return c.ObjectKeys(d).Credentials
}

// ObjectKeys are temporary keys of life d (0 means one hour) for OBS, which the client's token is
// exchanged for, again and again before they expire. A client that has keys itself has none to exchange:
// asking fails with [KindInvalid].
func (c *Client) ObjectKeys(d time.Duration) *TemporaryKeys {
	return newTemporaryKeys(func(ctx context.Context) (Credentials, time.Duration, error) {
		return c.temporaryCredentials(ctx, d)
	}, c.now)
}

// parseTime reads the times of IAM, which have fractions of a second and sometimes no zone (UTC).
func parseTime(s string) (time.Time, bool) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}
