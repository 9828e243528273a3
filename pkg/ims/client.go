// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// Domains of endpoints: Huawei Cloud's, that of its European site, which goes with the regions
// eu-west-1…, and Open Telekom Cloud's; see [ServiceEndpoint].
const (
	DefaultDomain     = "myhuaweicloud.com"
	EuropeDomain      = "myhuaweicloud.eu"
	OpenTelekomDomain = "otc.t-systems.com"
)

// Defaults of [Options].
const (
	DefaultRequestTimeout = 60 * time.Second
	DefaultLookupInterval = 10 * time.Second
	DefaultLookupLimit    = 5 * time.Minute
	DefaultUserAgent      = "imsprep"
)

// DefaultRetry and DefaultSubmitRetry are what [Options] falls back to: short waits for queries,
// long ones when the service wants fewer tasks at a time (IMG.0060), since those run for minutes.
func DefaultRetry() Backoff {
	return Backoff{MaxAttempts: 5, BaseDelay: 500 * time.Millisecond, MaxDelay: 20 * time.Second}
}

// DefaultSubmitRetry is described at [DefaultRetry].
func DefaultSubmitRetry() Backoff {
	return Backoff{MaxAttempts: 8, BaseDelay: 30 * time.Second, MaxDelay: 5 * time.Minute}
}

// Options configures a [Client].
type Options struct {
	// Endpoint is the URL of IMS, IAMEndpoint that of IAM. Empty: formed from Region by
	// [ServiceEndpoint]. A host alone means https.
	Endpoint    string
	IAMEndpoint string
	Region      string
	// Domain replaces the cloud's domain in the endpoints that are formed from Region.
	Domain string

	// ProjectID always wins. Without it the project is that of the token, or it is looked up under
	// ProjectName, which defaults to Region (every region has a project of its own name).
	ProjectID   string
	ProjectName string

	Auth Auth // required

	// HTTPClient is copied; redirects are never followed. Nil means one on [NewTransport], which
	// uses no proxy because this package does not read the environment.
	HTTPClient *http.Client
	UserAgent  string
	Now        func() time.Time // this machine's clock; nil means time.Now

	// RequestTimeout bounds one attempt of one request.
	RequestTimeout time.Duration
	// Retry is for queries and for what can be repeated without harm; also for a request that
	// provably did not reach the service.
	Retry Backoff
	// SubmitRetry is for imports that the service turned away for the moment.
	SubmitRetry Backoff
	// LookupInterval and LookupLimit: how often and how long an image is looked for after the
	// answer to the request that creates it was lost.
	LookupInterval time.Duration
	LookupLimit    time.Duration
	// Logger, if not nil, is told of every attempt of a request (debug) and of every wait before another one (warn).
	Logger *slog.Logger
	// OnRetry, if set, is told before every wait for a repetition; it may be called concurrently.
	OnRetry func(RetryEvent)

	// AllowPlainHTTP permits http endpoints other than this machine's own.
	AllowPlainHTTP bool
}

// RetryEvent describes a repetition that is about to be waited for.
type RetryEvent struct {
	Op      string // what is being done, for people
	Attempt int    // the attempt that failed, from 1
	Delay   time.Duration
	Err     error
}

// Client speaks to the IMS and IAM of one region. It is safe for concurrent use.
type Client struct {
	ims, iam  *url.URL // iam is nil when it is not known
	http      *http.Client
	userAgent string
	now       func() time.Time

	projectName string
	project     projectState
	auth        authorizer

	requestTimeout     time.Duration
	retry, submitRetry Backoff
	lookupInterval     time.Duration
	lookupLimit        time.Duration
	onRetry            func(RetryEvent)
	log                *slog.Logger

	// useStatusCall is set when the installation turned out not to have the job progress call.
	useStatusCall atomic.Bool
	// clockOffset is service time minus ours in nanoseconds by the last Date header; 0 if unknown.
	clockOffset atomic.Int64
}

// New checks the options and makes a client; nothing is sent.
func New(o Options) (*Client, error) {
	if o.Auth == nil {
		return nil, errors.New("ims: no authentication given")
	}
	if o.Region != "" && !validRegion(o.Region) {
		return nil, fmt.Errorf("ims: region %q: only lower-case letters, digits and hyphens", cleanText(o.Region, 60))
	}
	if o.Endpoint == "" {
		if o.Region == "" {
			return nil, errors.New("ims: neither a region nor an endpoint of IMS is given")
		}
		o.Endpoint = ServiceEndpoint("ims", o.Region, o.Domain)
	}
	if o.IAMEndpoint == "" && o.Region != "" {
		o.IAMEndpoint = ServiceEndpoint("iam", o.Region, o.Domain)
	}
	c := &Client{
		userAgent:      o.UserAgent,
		now:            o.Now,
		projectName:    o.ProjectName,
		requestTimeout: o.RequestTimeout,
		retry:          o.Retry.withDefaults(DefaultRetry()),
		submitRetry:    o.SubmitRetry.withDefaults(DefaultSubmitRetry()),
		lookupInterval: o.LookupInterval,
		lookupLimit:    o.LookupLimit,
		onRetry:        o.OnRetry,
		project:        projectState{lock: newLock(), id: strings.TrimSpace(o.ProjectID)},
	}
	var err error
	if c.ims, err = parseEndpoint("IMS", o.Endpoint, o.AllowPlainHTTP); err != nil {
		return nil, err
	}
	if o.IAMEndpoint != "" {
		if c.iam, err = parseEndpoint("IAM", o.IAMEndpoint, o.AllowPlainHTTP); err != nil {
			return nil, err
		}
	}
	if c.projectName == "" {
		c.projectName = o.Region
	}
	if c.userAgent == "" {
		c.userAgent = DefaultUserAgent
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.requestTimeout <= 0 {
		c.requestTimeout = DefaultRequestTimeout
	}
	if c.lookupInterval <= 0 {
		c.lookupInterval = DefaultLookupInterval
	}
	if c.lookupLimit <= 0 {
		c.lookupLimit = DefaultLookupLimit
	}
	c.log = cmp.Or(o.Logger, slog.New(slog.DiscardHandler)).With(slog.String("service", "ims"))
	c.onRetry = func(e RetryEvent) {
		c.log.LogAttrs(context.Background(), slog.LevelWarn, "request is repeated", slog.String("op", e.Op), slog.Int("attempt", e.Attempt),
			slog.Float64("delay_seconds", e.Delay.Seconds()), slog.Any("error", e.Err))
		if o.OnRetry != nil {
			o.OnRetry(e)
		}
	}

	hc := http.Client{}
	if o.HTTPClient != nil {
		hc = *o.HTTPClient
	} else {
		hc.Transport = NewTransport()
	}
	if t, ok := hc.Transport.(*http.Transport); ok && t.TLSClientConfig != nil &&
		t.TLSClientConfig.MinVersion != 0 && t.TLSClientConfig.MinVersion < tls.VersionTLS12 {
		return nil, errors.New("ims: the HTTP client allows TLS below 1.2")
	}
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.http = &hc

	c.auth, err = o.Auth.bind(c)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Format keeps everything that the client knows, secrets among it, out of formatted output.
func (c *Client) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "IMS client of "+c.ims.Host) }

// CloseIdleConnections closes the connections that are kept open for further requests.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// NewTransport is the transport of a client that is given none: TLS 1.2 or newer, limits on every
// step, and no proxy. Set Proxy or TLSClientConfig.RootCAs on it before use if they are needed.
func NewTransport() *http.Transport {
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   15 * time.Second,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConns:          16,
		MaxIdleConnsPerHost:   8,
		ForceAttemptHTTP2:     true,
		// An answer's header this large can only be meant to hurt; tokens come in a header of a few
		// KB.
		MaxResponseHeaderBytes: 256 << 10,
	}
}

// ServiceEndpoint is the URL of a service ("ims", "iam", "obs") in a region. An empty domain means
// Huawei Cloud's: myhuaweicloud.eu for the Europe site (regions eu-west-1…), else
// myhuaweicloud.com. The sister clouds have their own domains.
func ServiceEndpoint(service, region, domain string) string {
	if domain == "" {
		domain = DefaultDomain
		if strings.HasPrefix(region, "eu-west-1") {
			domain = EuropeDomain
		}
	}
	return "https://" + service + "." + region + "." + domain
}

func validRegion(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return len(s) <= 63 && s[0] != '-'
}

func parseEndpoint(service, s string, allowHTTP bool) (*url.URL, error) {
	fail := func(why string) (*url.URL, error) {
		return nil, fmt.Errorf("ims: endpoint of %s: %s", service, why)
	}
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		// The parser's error repeats the text, which may hold a password.
		return fail("not a URL")
	}
	switch {
	case u.User != nil:
		return fail("must not hold a user or password")
	case u.Scheme != "https" && u.Scheme != "http":
		return fail("must be an https URL")
	case u.Hostname() == "":
		return fail("names no host")
	case u.RawQuery != "" || u.Fragment != "":
		return fail("must not hold a query or fragment")
	case u.Scheme == "http" && !allowHTTP && !isLoopback(u.Hostname()):
		return fail("plain http would show tokens to the network; only https is accepted for " + u.Hostname())
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	return u, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
