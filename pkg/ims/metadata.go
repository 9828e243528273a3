// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Defaults of [MetadataOptions].
const (
	DefaultMetadataEndpoint = "http://169.254.169.254"
	// DefaultMetadataLimit is short: the service answers at once or, outside of a server, never.
	DefaultMetadataLimit = 3 * time.Second
)

const (
	metadataTokenPath = "/meta-data/latest/api/token"
	metadataKeyPath   = "/openstack/latest/securitykey"
	metadataTokenLife = "21600" // seconds
	maxMetadata       = 64 << 10
)

// MetadataOptions configures [MetadataKeys]. Zero fields mean the defaults.
type MetadataOptions struct {
	Endpoint  string            // DefaultMetadataEndpoint
	Limit     time.Duration     // for all requests of one exchange; DefaultMetadataLimit
	Transport http.RoundTripper // one without a proxy: the address is this machine's own
	Now       func() time.Time
}

// MetadataKeys supplies the temporary keys that a server gets through its agency from the metadata
// service: GET /openstack/latest/securitykey. Hardened servers want a session token first,
// PUT /meta-data/latest/api/token; where that call is missing (404, 405, 503) there is none.
//
// Errors are an *[Error]: [KindNotFound] when the server has no agency, [KindTransient] when
// nobody answers, which also means that this machine is no server of the cloud.
func MetadataKeys(o MetadataOptions) *TemporaryKeys {
	if o.Endpoint == "" {
		o.Endpoint = DefaultMetadataEndpoint
	}
	o.Endpoint = strings.TrimRight(o.Endpoint, "/")
	if o.Limit <= 0 {
		o.Limit = DefaultMetadataLimit
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Transport == nil {
		t := NewTransport()
		t.DisableKeepAlives = true // asked every few hours
		o.Transport = t
	}
	m := &metadata{MetadataOptions: o, http: &http.Client{
		Transport:     o.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	return newTemporaryKeys(func(ctx context.Context) (Credentials, time.Duration, error) {
		cred, end, err := m.credentials(ctx)
		return cred, end.Sub(o.Now()), err
	}, o.Now)
}

// MetadataCredentials is [MetadataKeys] for whoever can't say that keys were refused.
func MetadataCredentials(o MetadataOptions) CredentialsFunc { return MetadataKeys(o).Credentials }

type metadata struct {
	MetadataOptions
	http *http.Client
}

func (m *metadata) credentials(ctx context.Context) (Credentials, time.Time, error) {
	limited, cancel := context.WithTimeout(ctx, m.Limit)
	defer cancel()
	// On the hardened service keys are given only for a token, which a page that makes a server's
	// software send GET requests cannot get.
	header := http.Header{}
	token, err := m.ask(limited, http.MethodPut, metadataTokenPath,
		http.Header{"X-Metadata-Token-Ttl-Seconds": {metadataTokenLife}})
	var e *Error
	switch {
	case err == nil:
		header.Set("X-Metadata-Token", strings.TrimSpace(string(token)))
	case errors.As(err, &e) && (e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed ||
		e.Status == http.StatusServiceUnavailable):
	default:
		return Credentials{}, time.Time{}, m.cause(ctx, err)
	}
	body, err := m.ask(limited, http.MethodGet, metadataKeyPath, header)
	if err != nil {
		return Credentials{}, time.Time{}, m.cause(ctx, err)
	}
	wrong := func(why string) (Credentials, time.Time, error) {
		return Credentials{}, time.Time{}, &Error{
			Op: metadataOp, Method: http.MethodGet, Path: metadataKeyPath, Status: http.StatusOK, Kind: KindResponse, Message: why,
		}
	}
	object, err := decodeObject(body)
	if err != nil {
		return wrong("the answer is not the JSON object that was expected")
	}
	fields, _ := object["credential"].(map[string]any)
	cred := Credentials{
		AccessKey: text(fields["access"]), SecretKey: text(fields["secret"]), SecurityToken: text(fields["securitytoken"]),
	}
	if cred.AccessKey == "" || cred.SecretKey == "" || cred.SecurityToken == "" {
		return wrong("the answer holds no complete set of keys")
	}
	expires, ok := parseTime(text(fields["expires_at"]))
	if !ok || !expires.After(m.Now()) {
		return wrong("the keys have expired, or don't say when they will; check this machine's clock")
	}
	return cred, expires, nil
}

const metadataOp = "ask the metadata service for keys"

// cause keeps the time limit of ours apart from the caller's end.
func (m *metadata) cause(ctx context.Context, err error) error {
	var e *Error
	if ctx.Err() == nil && errors.As(err, &e) && errors.Is(err, context.DeadlineExceeded) {
		e.Err = fmt.Errorf("no answer within %v: %w", m.Limit, context.DeadlineExceeded)
	}
	return err
}

func (m *metadata) ask(ctx context.Context, method, path string, header http.Header) ([]byte, error) {
	fail := func(e *Error) ([]byte, error) {
		e.Op, e.Method, e.Path = metadataOp, method, path
		return nil, e
	}
	req, err := http.NewRequestWithContext(ctx, method, m.Endpoint+path, nil)
	if err != nil {
		return fail(&Error{Kind: KindInvalid, Message: "the endpoint of the metadata service is not a URL"})
	}
	req.Header = header
	resp, err := m.http.Do(req)
	if err != nil {
		return fail(networkError(networkCause(ctx, ctx, m.Limit, err, nil)))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxMetadata+1))
	switch {
	case resp.StatusCode != http.StatusOK:
		// The body is whoever's that answers there; it is not repeated.
		return fail(answerError(resp.StatusCode, resp.Header, nil, m.Now()))
	case err != nil:
		return fail(networkError(err))
	case len(body) > maxMetadata:
		return fail(&Error{Status: resp.StatusCode, Kind: KindResponse, Message: "the answer is too long"})
	}
	return body, nil
}
