// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"time"
)

const (
	tokenLife   = 24 * time.Hour
	tokenBytes  = 1500 // as a real one, a token is about 2 KB of text
	iamTime     = "2006-01-02T15:04:05.000000Z"
	maxFailures = 5 // wrong passwords in a row that lock a user

	minCredentialLife = 900 // seconds, also the default
	maxCredentialLife = 86400
)

// token is a token that IAM gave out.
type token struct {
	user    User
	project *Project // nil: scope of the account only
	expires time.Time
}

// authenticate tells whether the request proves what the call needs.
func (s *Server) authenticate(r *http.Request, need access) (caller, error) {
	if need == public {
		return caller{}, nil
	}
	now := s.now().Add(faultsOf(r).skew)
	if text := r.Header.Get("X-Auth-Token"); text != "" {
		t, err := s.checkToken(text, now, faultsOf(r).expireToken)
		if err != nil {
			return caller{}, err
		}
		if need == project && (t.project == nil || t.project.ID != s.opt.ProjectID) {
			return caller{}, imgError("IMG.0030", "the token's scope is not the project "+s.opt.ProjectID)
		}
		return caller{t.user.Deny}, nil
	}
	if r.Header.Get("Authorization") == "" {
		return caller{}, badCredentials("neither X-Auth-Token nor Authorization was sent")
	}
	account, err := verifySignature(r, now, s.Account)
	if err != nil {
		return caller{}, err
	}
	if id := r.Header.Get("X-Project-Id"); need == project && id != "" && id != s.opt.ProjectID && !s.isPartner(id) {
		return caller{}, gatewayError(http.StatusForbidden, "APIGW.0302", "The IAM user is not allowed to access the API: project "+id+" is not the user's.")
	}
	return caller{account.Deny}, nil
}

func (s *Server) checkToken(text string, now time.Time, expire bool) (*token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[text]
	if t == nil {
		return nil, badCredentials("decrypt token fail")
	}
	if expire {
		delete(s.tokens, text)
	}
	if expire || now.After(t.expires) {
		return nil, gatewayError(http.StatusUnauthorized, "APIGW.0307", "The token must be updated.")
	}
	return t, nil
}

// authRequest is the body of the token and security token calls.
type authRequest struct {
	Auth struct {
		Identity struct {
			Methods  []string `json:"methods"`
			Password struct {
				User struct {
					ID       string `json:"id"`
					Name     string `json:"name"`
					Password string `json:"password"`
					Domain   struct {
						ID   string `json:"id"`
						Name string `json:"name"`
					} `json:"domain"`
				} `json:"user"`
			} `json:"password"`
			Token struct {
				ID              string `json:"id"`
				DurationSeconds *int   `json:"duration_seconds"`
			} `json:"token"`
			TOTP struct {
				User struct {
					ID       string `json:"id"`
					Passcode string `json:"passcode"`
				} `json:"user"`
			} `json:"totp"`
			AssumeRole struct {
				AgencyName      string `json:"agency_name"`
				DomainName      string `json:"domain_name"`
				DomainID        string `json:"domain_id"`
				DurationSeconds *int   `json:"duration_seconds"`
			} `json:"assume_role"`
			Policy json.RawMessage `json:"policy"`
		} `json:"identity"`
		Scope *struct {
			Project *struct {
				ID   string `json:"id"`
				Name string `json:"name"`
			} `json:"project"`
			Domain json.RawMessage `json:"domain"`
		} `json:"scope"`
	} `json:"auth"`
}

func decodeAuth(r *http.Request) (*authRequest, error) {
	p, err := readBody(r, 1<<20)
	if err != nil {
		return nil, err
	}
	var a authRequest
	if err := json.Unmarshal(p, &a); err != nil {
		return nil, iamError(http.StatusBadRequest, "Request body is invalid.")
	}
	return &a, nil
}

// createToken is POST /v3/auth/tokens.
func (s *Server) createToken(w http.ResponseWriter, r *http.Request) error {
	a, err := decodeAuth(r)
	if err != nil {
		return err
	}
	id := a.Auth.Identity
	var user User
	switch {
	case slices.Equal(id.Methods, []string{"password"}), slices.Equal(id.Methods, []string{"password", "totp"}):
		if user, err = s.checkPassword(a); err != nil {
			return err
		}
		if err := s.checkPasscode(user, id.TOTP.User.ID, id.TOTP.User.Passcode); err != nil {
			return err
		}
	case slices.Equal(id.Methods, []string{"token"}):
		t, err := s.checkToken(id.Token.ID, s.now(), false)
		if err != nil {
			return iamError(http.StatusUnauthorized, "The token is invalid.")
		}
		user = t.user
	default:
		return iamError(http.StatusBadRequest, "The identity methods are not supported.")
	}
	var scope *Project
	if a.Auth.Scope != nil && a.Auth.Scope.Project != nil {
		want := a.Auth.Scope.Project
		i := slices.IndexFunc(s.projects, func(p Project) bool {
			return want.ID != "" && p.ID == want.ID || want.ID == "" && p.Name == want.Name
		})
		if i < 0 {
			return iamError(http.StatusUnauthorized, "The project does not exist or the user has no rights in it.")
		}
		scope = &s.projects[i]
	}
	raw := make([]byte, tokenBytes)
	rand.Read(raw)
	text := "MII" + base64.StdEncoding.EncodeToString(raw)
	now := s.now()
	t := &token{user: user, project: scope, expires: now.Add(tokenLife)}
	s.mu.Lock()
	s.tokens[text] = t
	s.mu.Unlock()

	domain := map[string]any{"id": s.opt.DomainID, "name": user.Domain}
	body := map[string]any{
		"expires_at": t.expires.Format(iamTime),
		"issued_at":  now.Format(iamTime),
		"methods":    id.Methods,
		"user":       map[string]any{"id": user.ID, "name": user.Name, "domain": domain},
		"roles":      []any{map[string]any{"id": "0", "name": "te_admin"}},
	}
	if scope != nil {
		body["project"] = map[string]any{"id": scope.ID, "name": scope.Name, "domain": domain}
	} else {
		body["domain"] = domain
	}
	if r.URL.Query().Get("nocatalog") == "" {
		body["catalog"] = []any{}
	}
	w.Header().Set("X-Subject-Token", text)
	return writeJSON(w, http.StatusCreated, map[string]any{"token": body})
}

// checkPassword finds the user. A user is locked after a few wrong passwords,
// so that a client that tries again and again is found out.
func (s *Server) checkPassword(a *authRequest) (User, error) {
	u := a.Auth.Identity.Password.User
	if u.Password == "" || u.ID == "" && (u.Name == "" || u.Domain.Name == "" && u.Domain.ID == "") {
		return User{}, iamError(http.StatusBadRequest, "The user name, the account name and the password are needed.")
	}
	wrong := iamError(http.StatusUnauthorized, "The username or password is wrong.")
	i := slices.IndexFunc(s.opt.Users, func(v User) bool {
		if u.ID != "" {
			return v.ID == u.ID
		}
		return v.Name == u.Name && (v.Domain == u.Domain.Name || u.Domain.Name == "" && u.Domain.ID == s.opt.DomainID)
	})
	if i < 0 {
		return User{}, wrong
	}
	user := s.opt.Users[i]
	key := user.Domain + "\x00" + user.Name
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failures[key] >= maxFailures {
		return User{}, iamError(http.StatusForbidden, "The user is locked because of too many wrong passwords.")
	}
	if subtle.ConstantTimeCompare([]byte(user.Password), []byte(u.Password)) != 1 {
		s.failures[key]++
		return User{}, wrong
	}
	s.failures[key] = 0
	return user, nil
}

// checkPasscode is the second factor of a user who has one.
func (s *Server) checkPasscode(u User, id, passcode string) error {
	if u.Passcode == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := u.Domain + "\x00" + u.Name
	if id != u.ID || subtle.ConstantTimeCompare([]byte(u.Passcode), []byte(passcode)) != 1 || s.passcodes[key] == passcode {
		return iamError(http.StatusUnauthorized, "The verification code is missing, wrong or was used before.")
	}
	s.passcodes[key] = passcode
	return nil
}

// listProjects is GET /v3/projects and GET /v3/auth/projects.
func (s *Server) listProjects(w http.ResponseWriter, r *http.Request) error {
	name := r.URL.Query().Get("name")
	list := []any{}
	for _, p := range s.projects {
		if name == "" || name == p.Name {
			list = append(list, map[string]any{
				"id": p.ID, "name": p.Name, "domain_id": s.opt.DomainID, "parent_id": s.opt.DomainID,
				"enabled": true, "is_domain": false, "description": "",
				"links": map[string]any{"self": "/v3/projects/" + p.ID},
			})
		}
	}
	return writeJSON(w, http.StatusOK, map[string]any{
		"projects": list,
		"links":    map[string]any{"self": r.URL.Path, "next": nil, "previous": nil},
	})
}

// createSecurityToken is POST /v3.0/OS-CREDENTIAL/securitytokens: a temporary access key for the user
// of a token, or through an agency for whoever asks.
func (s *Server) createSecurityToken(w http.ResponseWriter, r *http.Request) error {
	a, err := decodeAuth(r)
	if err != nil {
		return err
	}
	id := a.Auth.Identity
	c, _ := r.Context().Value(callerKey{}).(caller)
	seconds := id.Token.DurationSeconds
	switch {
	case slices.Equal(id.Methods, []string{"token"}):
		if r.Header.Get("X-Auth-Token") == "" {
			return iamError(http.StatusUnauthorized, "The token is missing.")
		}
	case slices.Equal(id.Methods, []string{"assume_role"}):
		q := id.AssumeRole
		i := slices.IndexFunc(s.opt.Agencies, func(g Agency) bool {
			return g.Name == q.AgencyName && (g.Domain == q.DomainName || q.DomainName == "" && q.DomainID == s.opt.DomainID)
		})
		if i < 0 {
			return iamError(http.StatusForbidden, "The agency does not exist or is not delegated to you.")
		}
		c, seconds = caller{s.opt.Agencies[i].Deny}, q.DurationSeconds
	default:
		return iamError(http.StatusBadRequest, "The identity methods are not supported.")
	}
	life := minCredentialLife
	if seconds != nil {
		life = *seconds
	}
	if life < minCredentialLife || life > maxCredentialLife {
		return iamError(http.StatusBadRequest, "duration_seconds must be from 900 to 86400.")
	}
	acc := Account{
		AccessKey:     "HST" + randomKey(17),
		SecretKey:     randomKey(40),
		SecurityToken: "gQ" + randomKey(600),
		Expires:       s.now().Add(time.Duration(life) * time.Second),
		Deny:          c.deny,
	}
	s.mu.Lock()
	s.accounts[acc.AccessKey] = acc
	s.mu.Unlock()
	return writeJSON(w, http.StatusCreated, map[string]any{"credential": map[string]any{
		"access": acc.AccessKey, "secret": acc.SecretKey, "securitytoken": acc.SecurityToken,
		"expires_at": acc.Expires.Format(iamTime),
	}})
}

// randomKey returns n characters of upper-case letters and digits.
func randomKey(n int) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" // 32: no bias from a byte
	p := make([]byte, n)
	rand.Read(p)
	for i := range p {
		p[i] = alphabet[p[i]%32]
	}
	return string(p)
}

// faultKey carries a request's share of the faults to its handler.
type faultKey struct{}

func faultsOf(r *http.Request) requestFaults {
	f, _ := r.Context().Value(faultKey{}).(requestFaults)
	return f
}
