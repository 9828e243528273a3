// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// Credentials is an access key pair, with a security token when it is a temporary one. It can be
// converted to the type of the same shape in pkg/obs. Formatting, logging or encoding it shows the
// beginning of the access key only.
type Credentials struct {
	AccessKey     string
	SecretKey     string
	SecurityToken string // empty for a permanent key
}

// CredentialsFunc supplies the credentials of one request. It is called for every request, so that
// keys that expire can be exchanged during a long run, and must be safe for concurrent use.
type CredentialsFunc func(ctx context.Context) (Credentials, error)

// StaticCredentials always supplies c.
func StaticCredentials(c Credentials) CredentialsFunc {
	return func(context.Context) (Credentials, error) { return c, nil }
}

func (c Credentials) String() string {
	s := "access key " + shorten(c.AccessKey)
	if c.SecurityToken != "" {
		s += " (temporary)"
	}
	return s
}

// Format makes every verb of fmt print what String does.
func (c Credentials) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// GoString implements [fmt.GoStringer].
func (c Credentials) GoString() string { return c.String() }

// LogValue implements [slog.LogValuer].
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON implements [json.Marshaler]; the result cannot be decoded back.
func (c Credentials) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }

// shorten shows enough of an access key to tell two apart and too little to use.
func shorten(ak string) string {
	switch {
	case ak == "":
		return "(none)"
	case len(ak) <= 8:
		return "…"
	default:
		return ak[:4] + "…"
	}
}
