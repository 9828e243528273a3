// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"encoding/json"
	"log/slog"
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
