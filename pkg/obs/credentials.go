// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
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

// otherKeys tells whether a refused request is worth repeating because the keys may be others by then.
// It tells the caller's source that the keys were refused.
func (c *Client) otherKeys(ctx context.Context, e *Error, ex *exchange) bool {
	ex.mu.Lock()
	used := ex.keys
	ex.mu.Unlock()
	expired := expiredCode(e.Code)
	if ctx.Err() != nil || used.AccessKey == "" || !expired && !mayBeKeys(e, used.SecurityToken != "") {
		return false
	}
	if c.o.Refused != nil {
		c.o.Refused(used)
	}
	if expired {
		return true
	}
	next, err := c.o.Credentials(ctx)
	return err == nil && next != used
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
