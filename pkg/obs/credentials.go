// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Credentials are an access key pair and, for temporary keys, a security token. They print, log and
// marshal without their secrets.
type Credentials struct {
	AccessKey     string
	SecretKey     string
	SecurityToken string
}

// CredentialsFunc returns the keys to sign the next request with. It is called once a request, from
// several goroutines, so that temporary keys can be renewed during a long upload: it should answer
// from memory while its keys are fresh.
type CredentialsFunc func(ctx context.Context) (Credentials, error)

// StaticCredentials returns a CredentialsFunc that always answers cr.
func StaticCredentials(cr Credentials) CredentialsFunc {
	return func(context.Context) (Credentials, error) { return cr, nil }
}

const redacted = "[redacted]"

// String tells which key this is (access keys are names, not secrets) and nothing more.
func (c Credentials) String() string { return "access key " + c.shownKey() }

// GoString is String, so that %#v does not show the secrets either.
func (c Credentials) GoString() string { return "obs.Credentials{" + c.shownKey() + "}" }

// LogValue implements slog.LogValuer.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON keeps the secrets out of reports and state files.
func (c Credentials) MarshalJSON() ([]byte, error) {
	m := map[string]string{"access_key": c.AccessKey}
	if c.SecretKey != "" {
		m["secret_key"] = redacted
	}
	if c.SecurityToken != "" {
		m["security_token"] = redacted
	}
	return json.Marshal(m)
}

func (c Credentials) shownKey() string {
	if c.AccessKey == "" {
		return "(none)"
	}
	return c.AccessKey
}

// keyring remembers the keys that were given lately. minio-go fetches keys for several requests at a
// time, so only the signed request itself tells which keys it has.
type keyring struct {
	mu     sync.Mutex
	recent []Credentials // the latest last
}

// keyringSize is how many keys are remembered: those that requests under way can be signed with, and then
// some.
const keyringSize = 8

func (k *keyring) add(cr Credentials) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if i := slices.Index(k.recent, cr); i >= 0 {
		k.recent = slices.Delete(k.recent, i, i+1)
	} else if len(k.recent) == keyringSize {
		k.recent = slices.Delete(k.recent, 0, 1)
	}
	k.recent = append(k.recent, cr)
}

func (k *keyring) all() []Credentials {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.recent)
}

// ofRequest finds the keys that a request was signed with; none if it is not signed.
func (k *keyring) ofRequest(h http.Header) Credentials {
	_, rest, _ := strings.Cut(h.Get("Authorization"), "Credential=")
	id, _, _ := strings.Cut(rest, "/")
	token := h.Get("X-Amz-Security-Token")
	for _, cr := range slices.Backward(k.all()) {
		if cr.AccessKey == id && cr.SecurityToken == token {
			return cr
		}
	}
	return Credentials{}
}

// renewal says what became of the keys of a refused request.
type renewal int

const (
	renewalNone  renewal = iota // the keys are not the reason, or there are no others
	renewalMaybe                // they have ended; whether the source has others will show
	renewalDone                 // the source has others now
)

// renew tells whether a refused request is worth repeating because the keys may be others by then.
// It tells the caller's source that the keys were refused.
func (c *Client) renew(ctx context.Context, e *Error, ex *exchange) {
	ex.mu.Lock()
	used := ex.keys
	ex.mu.Unlock()
	expired := expiredCode(e.Code)
	if ctx.Err() != nil || used.AccessKey == "" || !expired && !mayBeKeys(e, used.SecurityToken != "") {
		return
	}
	if c.o.Refused != nil {
		c.o.Refused(used)
	}
	e.signedBy = used.AccessKey
	next, err := c.o.Credentials(ctx)
	switch {
	case err == nil && next != used:
		e.renewal = renewalDone
	case expired:
		e.renewal = renewalMaybe
	}
}

// refresh allows a call one more attempt when its keys were refused. A request that was signed with those
// very keys although others were there by then, because it was signed at the same moment, doesn't count.
type refresh struct{ refused string }

func (r *refresh) again(e *Error) bool {
	switch {
	case e.renewal == renewalNone:
		return false
	case r.refused == "":
		r.refused = e.signedBy
		return true
	}
	return e.renewal == renewalDone && e.signedBy == r.refused
}

// mayBeKeys tells whether a refusal can mean that the keys are no longer good. Stores don't agree on how
// they say so of temporary keys, and an answer to HEAD says nothing.
func mayBeKeys(e *Error, temporary bool) bool {
	switch e.Code {
	case "InvalidAccessKeyId", "InvalidToken", "InvalidSecurity", "SignatureDoesNotMatch":
		return true
	case "", "AccessDenied", "Forbidden":
		return temporary && (e.Status == http.StatusForbidden || e.Status == http.StatusUnauthorized)
	}
	return false
}
