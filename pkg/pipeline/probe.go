// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"time"
)

// probeLimit bounds one look at an endpoint.
const probeLimit = 20 * time.Second

// probe is what one request without credentials found out about an endpoint. Of the steps only those up
// to the first that failed were taken.
type probe struct {
	host      string
	proxy     string   // that the request went through; then the name is looked up there
	addresses []string // of the name
	remote    string   // that was connected to
	tls       *tls.ConnectionState
	date      time.Time // the server's clock; zero if it doesn't tell
	took      time.Duration

	failed probeStep // "" if none
	err    error
}

type probeStep string

const (
	stepDNS     probeStep = "dns"
	stepConnect probeStep = "connect"
	stepTLS     probeStep = "tls"
)

// look sends one request without credentials; any answer will do.
func look(ctx context.Context, base *http.Transport, endpoint string) *probe {
	p := &probe{}
	u, err := url.Parse(endpoint)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		p.failed, p.err = stepDNS, &EndpointError{Step: stepDNS, Wrong: true, Err: errors.New("the endpoint isn't a URL of http or https")}
		return p
	}
	p.host = u.Hostname()
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	t := base.Clone()
	t.DisableKeepAlives = true
	defer t.CloseIdleConnections()

	var mu sync.Mutex // connections may be tried in parallel
	step := stepConnect
	trace := &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) { mu.Lock(); step = stepDNS; mu.Unlock() },
		DNSDone: func(i httptrace.DNSDoneInfo) {
			mu.Lock()
			defer mu.Unlock()
			for _, a := range i.Addrs {
				p.addresses = append(p.addresses, a.String())
			}
			if i.Err == nil {
				step = stepConnect
			}
		},
		GotConn: func(i httptrace.GotConnInfo) {
			mu.Lock()
			defer mu.Unlock()
			p.remote = i.Conn.RemoteAddr().String()
		},
		TLSHandshakeStart: func() { mu.Lock(); step = stepTLS; mu.Unlock() },
	}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodGet, u.Scheme+"://"+u.Host+"/", nil)
	if err != nil {
		p.failed, p.err = stepDNS, &EndpointError{Step: stepDNS, Wrong: true, Err: errors.New("the endpoint isn't a URL")}
		return p
	}
	if t.Proxy != nil {
		if proxy, err := t.Proxy(req); err == nil && proxy != nil {
			p.proxy = proxy.Host
		}
	}
	start := time.Now()
	resp, err := t.RoundTrip(req)
	p.took = time.Since(start)
	mu.Lock()
	defer mu.Unlock()
	if err != nil {
		p.failed = step
		p.err = &EndpointError{Endpoint: u.Host, Step: step, Proxy: p.proxy, Err: err}
		return p
	}
	defer resp.Body.Close()
	p.tls = resp.TLS
	p.date, _ = http.ParseTime(resp.Header.Get("Date")) // zero if it isn't there
	return p
}

// EndpointError is an endpoint that can't be spoken to.
type EndpointError struct {
	Endpoint string // host, and port if it isn't the usual one
	Step     probeStep
	Proxy    string
	Wrong    bool // it can't be right as it is written
	Err      error
}

func (e *EndpointError) Error() string {
	if e.Wrong {
		return e.Err.Error() // not the URL: there may be a password in it
	}
	doing := map[probeStep]string{stepDNS: "looking up", stepConnect: "connecting to", stepTLS: "setting up TLS with"}[e.Step]
	via := ""
	if e.Proxy != "" {
		via = " through the proxy " + e.Proxy
	}
	return fmt.Sprintf("%s %s%s: %s", doing, e.Endpoint, via, e.cause())
}

func (e *EndpointError) Unwrap() error { return e.Err }

// cause is the error without what is said anyway.
func (e *EndpointError) cause() string {
	var dns *net.DNSError
	var op *net.OpError
	var plain tls.RecordHeaderError
	switch {
	case errors.As(e.Err, &dns) && dns.IsNotFound:
		return "there is no such name"
	case errors.As(e.Err, &plain), strings.Contains(e.Err.Error(), "server gave HTTP response to HTTPS client"):
		return "the server speaks plain HTTP"
	case errors.As(e.Err, &op) && op.Err != nil && op.Op == "dial":
		return op.Err.Error()
	case errors.Is(e.Err, context.DeadlineExceeded):
		return fmt.Sprintf("no answer within %v", probeLimit)
	}
	return e.Err.Error()
}

// Transient tells whether it may be better later. What is written wrongly, and what a certificate or the
// version of TLS forbids, stays.
func (e *EndpointError) Transient() bool {
	var alert tls.AlertError
	var plain tls.RecordHeaderError
	text := e.Err.Error()
	return !e.Wrong && !e.certificate() && !errors.As(e.Err, &alert) && !errors.As(e.Err, &plain) &&
		!strings.Contains(text, "server gave HTTP response") && !strings.Contains(text, "tls: ")
}

func (e *EndpointError) certificate() bool {
	var verification *tls.CertificateVerificationError
	return errors.As(e.Err, &verification)
}

// Hint says what to do.
func (e *EndpointError) Hint() string {
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case e.Wrong:
		return "Write it as https://HOST, or HOST alone."
	case errors.As(e.Err, &name):
		return "The certificate is of another name: the endpoint is wrong, or something between here and there answers in its place."
	case errors.As(e.Err, &invalid) && invalid.Reason == x509.Expired:
		return "The certificate has expired or isn't valid yet: check this machine's clock first, then tell whoever runs the endpoint."
	case errors.As(e.Err, &authority):
		return "Nobody this machine trusts has signed the certificate: a private installation's authority must be added to " +
			"the system's (or named by SSL_CERT_FILE); else something between here and there reads along."
	case e.certificate():
		return "The certificate isn't accepted: check the endpoint, and whether something between here and there answers in its place."
	case !e.Transient():
		return "The endpoint must speak TLS 1.2 or newer: check its scheme and port."
	case e.Step == stepDNS:
		return "Check the region and the endpoint's name, and this machine's name servers."
	case e.Proxy != "":
		return "Check HTTPS_PROXY and NO_PROXY, and that the proxy lets this host through."
	}
	return "Check the network, a firewall between here and there, and whether a proxy is needed (HTTPS_PROXY)."
}
