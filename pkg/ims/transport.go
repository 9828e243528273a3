// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// maxAnswer bounds the body of an answer; lists are asked for in pages far below it.
const maxAnswer = 4 << 20

type service int

const (
	serviceIMS service = iota
	serviceIAM
)

// call is one request, not yet authenticated.
type call struct {
	op      string // for people
	service service
	method  string
	path    string // decoded; ids in it must have been checked
	query   url.Values
	body    any // encoded as JSON; nil means none
	// contentType replaces application/json for body, or for file, which is sent as it is.
	contentType string
	file        *payload
	timeout     time.Duration // of one attempt instead of Options.RequestTimeout; 0 means that
	success     []int         // accepted statuses; nil means 200
	// repeatable says that carrying the request out twice does no harm; a GET always is.
	repeatable bool
	// once leaves repetition to the caller.
	once bool
	// anonymous requests carry no authentication.
	anonymous bool
	// uncertain, if set, is set to true when an attempt that is repeated may have been carried out.
	uncertain *bool
	// lost, if set, is set to true when the call fails in a way that may have been carried out.
	lost *bool
	// secrets are kept out of error texts in addition to those of the authentication.
	secrets []string
}

// payload is a body that is read while it is sent, each attempt from the beginning.
type payload struct {
	content io.ReaderAt
	size    int64 // bytes
}

// answer is an accepted answer, its body complete.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// failure is an attempt that did not succeed.
type failure struct {
	err *Error
	// sent is false only when it is certain that no byte of the request left for the service.
	sent bool
	// final failures are not to be repeated whatever their kind, e.g. when no token could be had
	// after all the repetitions that asking for a token has itself.
	final bool
	grant grant // what the request was authenticated with
}

// do carries out a call that is no submission: with repetitions, and one renewal of the
// authentication.
func (c *Client) do(ctx context.Context, k call) (*answer, error) {
	repeatable := k.repeatable || k.method == http.MethodGet
	renewed := false
	for attempt := 1; ; attempt++ {
		a, f := c.tell(ctx, &k)
		if f == nil {
			return a, nil
		}
		if k.lost != nil {
			*k.lost = isAmbiguous(f)
		}
		if ctx.Err() != nil {
			return nil, ended(ctx, f.err)
		}
		if !renewed && c.renew(ctx, &k, f) {
			renewed = true
			attempt--
			continue
		}
		if k.once || f.final || attempt >= c.retry.MaxAttempts || !retriable(f, repeatable) {
			return nil, f.err
		}
		if k.uncertain != nil && f.sent {
			*k.uncertain = true
		}
		delay := c.retry.delay(attempt, f.err.RetryAfter)
		c.onRetry(RetryEvent{Op: k.op, Attempt: attempt, Delay: delay, Err: f.err})
		if sleep(ctx, delay) != nil {
			return nil, ended(ctx, f.err)
		}
	}
}

// tell is attempt, told to the log.
func (c *Client) tell(ctx context.Context, k *call) (*answer, *failure) {
	if !c.log.Enabled(ctx, slog.LevelDebug) {
		return c.attempt(ctx, k)
	}
	start := time.Now()
	a, f := c.attempt(ctx, k)
	about := []slog.Attr{slog.String("op", k.op), slog.String("method", k.method), slog.String("path", k.path)}
	if f == nil {
		about = append(about, slog.Int("status", a.status))
	} else {
		about = append(about, slog.Int("status", f.err.Status), slog.String("code", f.err.Code))
	}
	c.log.LogAttrs(ctx, slog.LevelDebug, "request", append(about, slog.Float64("seconds", time.Since(start).Seconds()))...)
	return a, f
}

// ended is the error of a call that the caller's context ended while it was being repeated.
func ended(ctx context.Context, last *Error) error {
	if errors.Is(last, ctx.Err()) {
		return last
	}
	e := *last // the original may belong to others, too
	if e.Err == nil {
		e.Err = ctx.Err()
	} else {
		e.Err = fmt.Errorf("%w (%w)", ctx.Err(), e.Err)
	}
	return &e
}

// retriable applies the rules for requests that may be repeated; others only when they certainly
// did not arrive.
func retriable(f *failure, repeatable bool) bool {
	if !repeatable {
		return f.err.Status == http.StatusTooManyRequests || (!f.sent && f.err.Kind.Temporary())
	}
	if info, ok := lookupCode(f.err.Code); ok && info.retry != retryNever {
		return true
	}
	switch f.err.Status {
	case 0:
		return f.err.Kind == KindTransient
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	// An answer that broke off has the status of its header.
	return f.err.Kind == KindTransient && f.err.Err != nil
}

// renew reports whether the failure is one that other credentials may cure, and there are some.
func (c *Client) renew(ctx context.Context, k *call, f *failure) bool {
	if k.anonymous || f.final || !(f.err.Status == http.StatusUnauthorized ||
		f.err.Status != 0 && slices.Contains([]string{"APIGW.0307", "APIG.0307", "IMG.0087"}, f.err.Code)) {
		return false
	}
	return c.auth.renew(ctx, f.grant)
}

// attempt sends the request once.
func (c *Client) attempt(ctx context.Context, k *call) (*answer, *failure) {
	f := &failure{}
	fail := func(e *Error) (*answer, *failure) {
		e.Op, e.Method, e.Path = k.op, k.method, k.path
		f.err = e
		return nil, f
	}
	// hopeless ends the call: nothing was sent, and sending it again would end the same way.
	hopeless := func(err error) (*answer, *failure) {
		f.final = true
		var e *Error
		if errors.As(err, &e) {
			// A request that this one depends on failed; its own error says more.
			f.err = e
			return nil, f
		}
		return fail(&Error{Err: err})
	}
	limit := cmp.Or(k.timeout, c.requestTimeout)
	actx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	var project string
	if k.service == serviceIMS && c.auth.wantsProject() {
		var err error
		if project, err = c.headerProject(ctx); err != nil {
			return hopeless(err)
		}
	}
	req, bodyHash, err := c.newRequest(actx, k)
	if err != nil {
		return hopeless(&Error{Op: k.op, Method: k.method, Path: k.path, Kind: KindInvalid, Err: err})
	}
	secrets := k.secrets
	if !k.anonymous {
		if project != "" {
			req.Header.Set(headerProjectID, project)
		}
		f.grant, err = c.auth.authorize(ctx, req, bodyHash)
		if err != nil {
			return hopeless(err)
		}
		secrets = append(slices.Clone(secrets), f.grant.secrets()...)
		secrets = append(secrets, req.Header.Get("Authorization"), signatureOf(req))
	}

	var connected atomic.Bool
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	}))
	resp, err := c.http.Do(req)
	if err != nil {
		// Both signs are required: a transport of the caller's may not report connections.
		f.sent = connected.Load() || !failedBeforeSending(err)
		return fail(networkError(networkCause(ctx, actx, limit, err, secrets)))
	}
	f.sent = true
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	c.noteClock(resp.Header)
	success := slices.Contains(k.success, resp.StatusCode) || k.success == nil && resp.StatusCode == http.StatusOK
	switch {
	case err != nil && success:
		e := networkError(fmt.Errorf("the answer broke off: %w", networkCause(ctx, actx, limit, err, secrets)))
		e.Status = resp.StatusCode
		return fail(e)
	case !success:
		// What could be read of an error's body is better than nothing.
		return fail(answerError(resp.StatusCode, resp.Header, redact(body[:min(len(body), 64<<10)], secrets), c.now()))
	case len(body) > maxAnswer:
		return fail(&Error{
			Status: resp.StatusCode, Kind: KindResponse,
			Message: fmt.Sprintf("the answer is longer than %d MiB", maxAnswer>>20),
		})
	}
	return &answer{status: resp.StatusCode, header: resp.Header, body: body}, nil
}

func (c *Client) newRequest(ctx context.Context, k *call) (*http.Request, string, error) {
	base := c.ims
	if k.service == serviceIAM {
		base = c.iam
	}
	if base == nil {
		return nil, "", errors.New("no endpoint of IAM is known: give it, or the region")
	}
	u := *base
	u.Path += k.path
	// A plus for a blank is right in forms only; not every gateway takes it in a query.
	u.RawQuery = strings.ReplaceAll(k.query.Encode(), "+", "%20")

	var body []byte
	if k.body != nil {
		var err error
		if body, err = json.Marshal(k.body); err != nil {
			return nil, "", err
		}
	}
	req, err := http.NewRequestWithContext(ctx, k.method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, "", errors.New("the request's URL cannot be formed")
	}
	switch {
	case k.file != nil:
		// The gateway takes no hash over a body that isn't JSON: the literal stands for it and is
		// signed.
		req.Body = io.NopCloser(io.NewSectionReader(k.file.content, 0, k.file.size))
		req.GetBody = func() (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(k.file.content, 0, k.file.size)), nil
		}
		req.ContentLength = k.file.size
		req.Header.Set("Content-Type", k.contentType)
		req.Header.Set(headerContentSHA256, unsignedPayload)
	case k.body != nil:
		req.Header.Set("Content-Type", cmp.Or(k.contentType, "application/json"))
		if k.contentType != "" {
			req.Header.Set(headerContentSHA256, unsignedPayload)
		}
	default:
		req.Body, req.GetBody, req.ContentLength = nil, nil, 0
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", c.userAgent)
	return req, hexSHA256(body), nil
}

// networkCause turns the HTTP client's error into one that says which limit ended the attempt and
// holds no URL.
func networkCause(ctx, actx context.Context, limit time.Duration, err error, secrets []string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if actx.Err() != nil {
		return fmt.Errorf("no answer within %v: %w", limit, context.DeadlineExceeded)
	}
	if s := err.Error(); string(redact([]byte(s), secrets)) != s {
		return errors.New(string(redact([]byte(s), secrets)))
	}
	return err
}

// failedBeforeSending recognizes the errors of getting a connection.
func failedBeforeSending(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) && (op.Op == "dial" || op.Op == "proxyconnect") {
		return true
	}
	var dns *net.DNSError
	return errors.As(err, &dns) || isCertificateError(err)
}

// noteClock remembers how far the service's clock is from ours.
func (c *Client) noteClock(h http.Header) {
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		c.clockOffset.Store(int64(date.Sub(c.now())))
	}
}

// serviceTime is the service's clock as far as it is known.
func (c *Client) serviceTime() time.Time { return c.now().Add(time.Duration(c.clockOffset.Load())) }

// redact removes secrets that the other side repeats in its answer.
func redact(p []byte, secrets []string) []byte {
	for _, s := range secrets {
		// Something so short is no secret, and replacing it would only garble the text.
		if len(s) >= 4 {
			p = bytes.ReplaceAll(p, []byte(s), []byte(redacted))
		}
	}
	return p
}

func signatureOf(req *http.Request) string {
	_, s, _ := strings.Cut(req.Header.Get("Authorization"), "Signature=")
	return s
}

// malformed is the error for an accepted answer whose body makes no sense.
func malformed(k call, a *answer, why string) *Error {
	e := &Error{
		Op: k.op, Method: k.method, Path: k.path, Status: a.status, Kind: KindResponse, Message: why,
	}
	for _, name := range []string{"X-Request-Id", "X-Openstack-Request-Id"} {
		if e.RequestID == "" {
			e.RequestID = cleanText(a.header.Get(name), 100)
		}
	}
	return e
}

// object decodes the answer's body as a JSON object.
func (a *answer) object(k call) (map[string]any, error) {
	m, err := decodeObject(a.body)
	if err != nil {
		return nil, malformed(k, a, "the answer is "+describeBody(a.body))
	}
	return m, nil
}

func describeBody(body []byte) string {
	body = bytes.TrimSpace(body)
	switch {
	case len(body) == 0:
		return "empty"
	case body[0] == '<':
		return "a page (" + cleanText(textOfMarkup(body), 80) + "), not JSON"
	default:
		return "not the JSON object that was expected"
	}
}
