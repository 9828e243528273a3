// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"
)

// Auth is a way to authenticate: [AKSK], [PasswordToken] or [StaticToken]. A value can be given to
// several clients; what it learns (tokens) belongs to each client.
type Auth interface {
	bind(c *Client) (authorizer, error)
}

// authorizer authenticates the requests of one client. Its methods are safe for concurrent use.
type authorizer interface {
	// authorize adds the authentication to a request, the last thing before it is sent.
	authorize(ctx context.Context, req *http.Request, bodySHA256 string) (grant, error)
	// renew is told that the service refused a grant, and reports whether a repetition will have
	// another one.
	renew(ctx context.Context, refused grant) bool
	// wantsProject tells whether requests to IMS need the header X-Project-Id.
	wantsProject() bool
	// tokenProject is the project of the token, empty if that is not known.
	tokenProject(ctx context.Context) (string, error)
	// objectCredentials are keys for OBS if the authorizer works with keys, else nil.
	objectCredentials() CredentialsFunc
}

// grant is what one request was authenticated with.
type grant struct {
	cred  Credentials
	token string
}

func (g grant) secrets() []string { return []string{g.cred.SecretKey, g.cred.SecurityToken, g.token} }

// AKSK authenticates with an access key. f is asked for every request.
func AKSK(f CredentialsFunc) Auth { return &keyAuth{f, func(Credentials) {}} }

type keyAuth struct {
	credentials CredentialsFunc
	refused     func(Credentials)
}

func (a *keyAuth) bind(c *Client) (authorizer, error) {
	if a.credentials == nil {
		return nil, errors.New("ims: no credentials given")
	}
	return &keyAuthorizer{keyAuth: a, now: c.now}, nil
}

type keyAuthorizer struct {
	*keyAuth
	now func() time.Time
}

func (a *keyAuthorizer) authorize(ctx context.Context, req *http.Request, bodySHA256 string) (grant, error) {
	cred, err := a.credentials(ctx)
	if err != nil {
		return grant{}, fmt.Errorf("getting credentials: %w", err)
	}
	if cred.AccessKey == "" || cred.SecretKey == "" {
		return grant{}, &Error{
			Op: "sign the request", Method: req.Method, Path: req.URL.Path, Kind: KindAuth,
			Message: "no access key or no secret key",
		}
	}
	return grant{cred: cred}, SignRequest(req, bodySHA256, cred, a.now())
}

// renew helps when the keys are temporary and their source has newer ones by now.
func (a *keyAuthorizer) renew(ctx context.Context, refused grant) bool {
	a.refused(refused.cred)
	cred, err := a.credentials(ctx)
	return err == nil && cred != refused.cred
}

func (a *keyAuthorizer) wantsProject() bool                           { return true }
func (a *keyAuthorizer) tokenProject(context.Context) (string, error) { return "", nil }
func (a *keyAuthorizer) objectCredentials() CredentialsFunc           { return a.credentials }

// StaticToken authenticates with a ready token, which cannot be renewed.
func StaticToken(token string) Auth { return &staticToken{token} }

type staticToken struct{ token string }

// Format keeps the token out of every formatted output.
func (a *staticToken) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "IAM token") }

// LogValue implements [slog.LogValuer].
func (a *staticToken) LogValue() slog.Value { return slog.StringValue("IAM token") }

func (a *staticToken) bind(*Client) (authorizer, error) {
	if a.token == "" {
		return nil, errors.New("ims: the token is empty")
	}
	return a, nil
}

func (a *staticToken) authorize(_ context.Context, req *http.Request, _ string) (grant, error) {
	req.Header.Set(headerAuthToken, a.token)
	return grant{token: a.token}, nil
}

func (a *staticToken) renew(context.Context, grant) bool            { return false }
func (a *staticToken) wantsProject() bool                           { return false }
func (a *staticToken) tokenProject(context.Context) (string, error) { return "", nil }
func (a *staticToken) objectCredentials() CredentialsFunc           { return nil }

// Password is who asks for a token. The user is named by UserID, or by UserName with the account's
// DomainName (or DomainID). The token is for the project ProjectID, else ProjectName, else the
// client's.
type Password struct {
	UserName   string
	UserID     string
	Password   string
	DomainName string
	DomainID   string
	// Passcode is what the user's virtual MFA device shows, empty if there is none; it needs UserID. It is
	// good for one token, so nothing can renew that.
	Passcode string

	ProjectID   string
	ProjectName string
}

func (p Password) String() string {
	user := p.UserName
	if user == "" {
		user = p.UserID
	}
	return "password of user " + user
}

// Format makes every verb of fmt print what String does.
func (p Password) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, p.String()) }

// GoString implements [fmt.GoStringer].
func (p Password) GoString() string { return p.String() }

// LogValue implements [slog.LogValuer].
func (p Password) LogValue() slog.Value { return slog.StringValue(p.String()) }

// MarshalJSON implements json.Marshaler; the result cannot be decoded back.
func (p Password) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// PasswordToken authenticates with tokens that are asked for with a password: one for all requests,
// renewed when less than 30 minutes of its life remain, or when a request is refused with it. After
// a refused password none is asked for again, because IAM locks users who guess.
func PasswordToken(p Password) Auth { return &passwordAuth{p} }

type passwordAuth struct{ password Password }

// Format keeps the password out of every formatted output.
func (a *passwordAuth) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, a.password.String()) }

// LogValue implements [slog.LogValuer].
func (a *passwordAuth) LogValue() slog.Value { return a.password.LogValue() }

func (a *passwordAuth) bind(c *Client) (authorizer, error) {
	p := a.password
	switch {
	case p.Password == "":
		return nil, errors.New("ims: the password is empty")
	case p.UserID == "" && p.UserName == "":
		return nil, errors.New("ims: no user is named")
	case p.Passcode != "" && p.UserID == "":
		return nil, errors.New("ims: a passcode of a virtual MFA device needs the user's id")
	case p.UserID == "" && p.DomainName == "" && p.DomainID == "":
		return nil, errors.New("ims: a user's name needs the name of the account (domain) too")
	case c.iam == nil:
		return nil, errors.New("ims: no endpoint of IAM to ask for a token: give it, or the region")
	}
	if p.ProjectID == "" && p.ProjectName == "" {
		p.ProjectID, p.ProjectName = c.project.id, c.projectName
	}
	if p.ProjectID == "" && p.ProjectName == "" {
		return nil, errors.New("ims: a token for IMS needs a project: give its id, its name or the region")
	}
	return &tokenAuthorizer{client: c, password: p, lock: newLock()}, nil
}

// tokenMargin is the remaining life below which a token is renewed.
const tokenMargin = 30 * time.Minute

type tokenAuthorizer struct {
	client   *Client
	password Password

	lock    lock // held while asking, so that a token is asked for once
	token   string
	project string
	renewAt time.Time
	expires time.Time
	refused error // a password that was refused stays refused
}

// Format keeps password and token out of every formatted output.
func (a *tokenAuthorizer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, a.password.String()) }

func (a *tokenAuthorizer) authorize(ctx context.Context, req *http.Request, _ string) (grant, error) {
	token, _, err := a.get(ctx)
	if err != nil {
		return grant{}, err
	}
	req.Header.Set(headerAuthToken, token)
	return grant{token: token}, nil
}

func (a *tokenAuthorizer) get(ctx context.Context) (token, project string, err error) {
	if err := a.lock.acquire(ctx); err != nil {
		return "", "", err
	}
	defer a.lock.release()
	now := a.client.now()
	if a.token != "" && now.Before(a.renewAt) {
		return a.token, a.project, nil
	}
	if a.refused != nil {
		return "", "", a.refused
	}
	t, err := a.client.passwordToken(ctx, a.password)
	if a.password.Passcode != "" && ctx.Err() == nil {
		// Whatever became of it, the passcode was shown to IAM and is not good a second time.
		a.refused = &Error{
			Op: "ask for a token", Method: http.MethodPost, Path: iamTokenPath, Kind: KindAuth,
			Message: "the token has ended, and the passcode of the virtual MFA device was good for that one only: start again with a new one",
		}
	}
	if err != nil {
		var e *Error
		if errors.As(err, &e) && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden) {
			a.refused = err
		} else if a.token != "" && now.Before(a.expires) && ctx.Err() == nil {
			// The old token still works; IAM may be back for the next request.
			return a.token, a.project, nil
		}
		return "", "", err
	}
	a.token, a.project = t.token, t.projectID
	// Only the length of the token's life is taken from the answer: this machine's clock may be
	// wrong.
	a.expires = now.Add(t.life)
	a.renewAt = now.Add(t.life - min(tokenMargin, t.life/2))
	return a.token, a.project, nil
}

func (a *tokenAuthorizer) renew(ctx context.Context, refused grant) bool {
	if a.lock.acquire(ctx) != nil {
		return false
	}
	defer a.lock.release()
	if a.token == refused.token {
		a.token = ""
	}
	// With a passcode the repetition ends at once, with an error that says why.
	return a.refused == nil || a.password.Passcode != ""
}

func (a *tokenAuthorizer) wantsProject() bool { return false }

func (a *tokenAuthorizer) tokenProject(ctx context.Context) (string, error) {
	_, project, err := a.get(ctx)
	return project, err
}

func (a *tokenAuthorizer) objectCredentials() CredentialsFunc { return nil }
