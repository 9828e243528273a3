// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Kind classifies an error by what can be done about it.
type Kind int

const (
	KindUnknown     Kind = iota
	KindInvalid          // the request is wrong and stays wrong
	KindAuth             // who is asking could not be established: keys, token, password, clock
	KindPermission       // known, but not allowed
	KindNotFound         // no such image, job, project, object
	KindConflict         // a state is in the way: name taken, image protected or unfinished
	KindQuota            // a limit of the account is reached
	KindThrottled        // too many requests or tasks; later it works
	KindTransient        // the network or the service failed; later it may work
	KindUnsupported      // this cloud or region does not have the call
	KindResponse         // the answer makes no sense; perhaps another service gave it
)

var kindNames = [...]string{
	"unknown", "invalid request", "authentication", "permission", "not found", "conflict", "quota",
	"throttled", "transient", "unsupported", "unexpected answer",
}

func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return "unknown"
	}
	return kindNames[k]
}

// Temporary tells whether the same request may succeed later.
func (k Kind) Temporary() bool { return k == KindThrottled || k == KindTransient }

// Error is a call that failed: the service's answer when there was one (Status is not zero), else
// the network's error in Err. It never holds secrets.
type Error struct {
	Op     string // what was being done, for people
	Method string
	Path   string // without the query
	Status int    // HTTP status; 0 when there was no answer

	Code      string // IMG.nnnn, APIGW.nnnn or whatever the service calls it; may be empty
	Message   string
	RequestID string

	Kind Kind
	// RetryAfter is how long the service asks to wait; 0 when it does not say.
	RetryAfter time.Duration
	// ClockSkew is how far this machine's clock is ahead of the service's (negative: behind), known
	// for an answer 401 with a Date header.
	ClockSkew time.Duration
	// Redirect is where an answer 3xx points; it is not followed.
	Redirect string

	Err error // cause, may be nil
}

// clockTolerance is the skew from which on the clock is named as a possible cause. The gateway
// commonly refuses above 15 minutes; some installations are stricter.
const clockTolerance = 5 * time.Minute

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("ims: ")
	if e.Op != "" {
		b.WriteString(e.Op + ": ")
	}
	fmt.Fprintf(&b, "%s %s", e.Method, e.Path)
	switch {
	case e.Status != 0:
		fmt.Fprintf(&b, ": HTTP %d", e.Status)
		if e.Redirect != "" {
			b.WriteString(" (redirects to " + e.Redirect + ")")
		}
		if e.Code != "" && e.Code != strconv.Itoa(e.Status) {
			b.WriteString(" " + e.Code)
		}
		if e.Message != "" {
			b.WriteString(": " + e.Message)
		}
		if e.Err != nil {
			b.WriteString(": " + e.Err.Error())
		}
	case e.Err != nil:
		b.WriteString(": " + e.Err.Error())
	case e.Message != "":
		b.WriteString(": " + e.Message)
	}
	if e.RequestID != "" {
		b.WriteString(" (request id " + e.RequestID + ")")
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Hint says what to do next, or is empty.
func (e *Error) Hint() string {
	if e.Kind == KindAuth && (e.ClockSkew > clockTolerance || e.ClockSkew < -clockTolerance) {
		return skewText(e.ClockSkew) + "; requests are refused when the clocks differ by some minutes. " +
			"Set this machine's clock and try again."
	}
	info, _ := lookupCode(e.Code)
	if e.Status == http.StatusForbidden && e.Kind == KindPermission && (info.hint == "" || strings.HasSuffix(e.Code, ".0302")) {
		if hint := missingRight(e); hint != "" {
			return hint
		}
	}
	if info.hint != "" {
		return info.hint
	}
	if isCertificateError(e.Err) {
		return "The server's certificate is not trusted here: check the endpoint, or give the certificate " +
			"authority of a private installation."
	}
	var dns *net.DNSError
	if errors.As(e.Err, &dns) && dns.IsNotFound {
		return "The host name is not known: check the region and the endpoint, and the network connection."
	}
	switch {
	case e.Redirect != "":
		return "Redirects are not followed, because signatures are made for one host and path: check the endpoint."
	case e.Status == http.StatusRequestEntityTooLarge:
		return "Requests signed with an access key may hold 12 MB at most; larger ones need a token."
	}
	switch e.Kind {
	case KindAuth:
		return "Check the credentials, and that they belong to this cloud."
	case KindPermission:
		return "Grant the user the right for this call in the project (an IMS role or a custom policy)."
	case KindThrottled, KindTransient:
		return "Try again in some minutes."
	case KindNotFound:
		return "Check the id, the region and the project."
	case KindUnsupported:
		return "This region or cloud does not offer the call."
	case KindResponse:
		return "Check that the endpoint is that of the image service (or IAM), and that no proxy answers in its place."
	default:
		return ""
	}
}

func skewText(skew time.Duration) string {
	direction := "ahead of"
	if skew < 0 {
		direction, skew = "behind", -skew
	}
	return fmt.Sprintf("This machine's clock is %v %s the service's", skew.Round(time.Second), direction)
}

// KindOf finds the kind of any error of this package, however wrapped.
func KindOf(err error) Kind {
	var k interface{ ErrorKind() Kind }
	if errors.As(err, &k) {
		return k.ErrorKind()
	}
	return KindUnknown
}

// ErrorKind returns the field Kind; see [KindOf].
func (e *Error) ErrorKind() Kind { return e.Kind }

func isCertificateError(err error) bool {
	var verification *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &verification) || errors.As(err, &authority) || errors.As(err, &host) ||
		errors.As(err, &invalid)
}

// networkError describes a request that got no (complete) answer.
func networkError(err error) *Error {
	e := &Error{Kind: KindTransient, Err: err}
	if isCertificateError(err) {
		e.Kind = KindInvalid
	}
	return e
}

// answerError describes an answer other than success; now is this machine's time.
func answerError(status int, header http.Header, body []byte, now time.Time) *Error {
	e := &Error{Status: status}
	decodeErrorBody(body, e)
	e.Code, e.Message = cleanText(e.Code, 100), cleanText(e.Message, maxMessage)
	for _, name := range []string{"X-Request-Id", "X-Openstack-Request-Id"} {
		if id := header.Get(name); id != "" {
			e.RequestID = id
			break
		}
	}
	e.RequestID = cleanText(e.RequestID, 100)
	e.RetryAfter = retryAfter(header.Get("Retry-After"), now)
	if status >= 300 && status < 400 {
		e.Redirect = cleanText(redirectTarget(header.Get("Location")), maxMessage)
	}
	if status == http.StatusUnauthorized {
		if date, err := http.ParseTime(header.Get("Date")); err == nil {
			e.ClockSkew = now.Sub(date).Round(time.Second)
		}
	}

	info, known := lookupCode(e.Code)
	if known && info.kind != KindUnknown {
		e.Kind = info.kind
	} else {
		e.Kind = kindOfStatus(status)
	}
	if e.Message == "" {
		e.Message = info.message
	}
	if e.Message == "" {
		e.Message = http.StatusText(status)
	}
	return e
}

// redirectTarget leaves the query out, which may repeat what should not be printed.
func redirectTarget(location string) string {
	location, _, _ = strings.Cut(location, "?")
	return location
}

func kindOfStatus(status int) Kind {
	switch status {
	case http.StatusUnauthorized:
		return KindAuth
	case http.StatusForbidden:
		return KindPermission
	case http.StatusNotFound, http.StatusGone:
		return KindNotFound
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return KindUnsupported
	case http.StatusConflict:
		return KindConflict
	case http.StatusTooManyRequests:
		return KindThrottled
	case http.StatusRequestTimeout:
		return KindTransient
	}
	switch {
	case status >= 500:
		return KindTransient
	case status >= 400:
		return KindInvalid
	default:
		return KindResponse
	}
}

// retryAfter reads both forms of the header: seconds, or a date.
func retryAfter(v string, now time.Time) time.Duration {
	const most = time.Hour
	if v == "" {
		return 0
	}
	if s, err := strconv.ParseInt(strings.TrimSpace(v), 10, 32); err == nil {
		return min(max(time.Duration(s)*time.Second, 0), most)
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(t.Sub(now), 0), most)
	}
	return 0
}

// maxMessage bounds what is kept of a message, in bytes.
const maxMessage = 600

// decodeErrorBody fills code, message and request id from any of the bodies the services send:
//
//	{"error":{"message":"…","code":"IMG.0024"}}               IMS
//	{"error_msg":"…","error_code":"APIGW.0301","request_id":"…"}  gateway
//	{"error":{"code":401,"message":"…","title":"…"}}          IAM, the code is a number
//	the gateway's with encoded_authorization_message, details  fine-grained denial
//	XML, or JSON of Glance                                     native OpenStack calls
//	HTML, plain text, nothing                                  load balancers
func decodeErrorBody(body []byte, e *Error) {
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return
	}
	if v, err := decodeJSON(body); err == nil {
		switch v := v.(type) {
		case map[string]any:
			errorFromObject(v, e, 0)
		case string:
			e.Message = v
		}
		return
	}
	if body[0] == '<' {
		errorFromXML(body, e)
		if e.Message == "" && e.Code == "" {
			e.Message = textOfMarkup(body)
		}
		return
	}
	e.Message = string(body)
}

// errorFromObject looks for the fields in the object and, two levels deep, in the objects in it.
func errorFromObject(m map[string]any, e *Error, depth int) {
	set := func(dst *string, names ...string) {
		for _, name := range names {
			if *dst == "" {
				*dst = text(m[name])
			}
		}
	}
	set(&e.Code, "error_code", "errorCode", "code")
	set(&e.Message, "error_msg", "errorMsg", "message", "error_message", "title")
	set(&e.RequestID, "request_id", "requestId", "requestid")
	if s, ok := m["error"].(string); ok && e.Message == "" {
		e.Message = s
	}
	if depth >= 2 {
		return
	}
	if inner, ok := m["error"].(map[string]any); ok {
		errorFromObject(inner, e, depth+1)
	}
	if details, ok := m["details"].([]any); ok {
		for _, d := range details {
			if inner, ok := d.(map[string]any); ok {
				detail := Error{}
				errorFromObject(inner, &detail, 2)
				if detail.Code != "" || detail.Message != "" {
					e.Message = strings.TrimSpace(e.Message + " [" + strings.TrimSpace(detail.Code+" "+detail.Message) + "]")
				}
			}
		}
	}
	if len(m) == 1 && e.Message == "" && e.Code == "" {
		// OpenStack wraps the fault into one member named after it, e.g. "badRequest".
		for _, v := range m {
			if inner, ok := v.(map[string]any); ok {
				errorFromObject(inner, e, depth+1)
			}
		}
	}
}

// errorFromXML takes the first element of each well-known name.
func errorFromXML(body []byte, e *Error) {
	d := xml.NewDecoder(bytes.NewReader(body))
	d.Strict = false
	d.AutoClose = xml.HTMLAutoClose
	d.Entity = xml.HTMLEntity
	var current *string
	for {
		token, err := d.RawToken()
		if err != nil {
			return
		}
		switch t := token.(type) {
		case xml.StartElement:
			current = nil
			switch strings.ToLower(t.Name.Local) {
			case "html":
				return
			case "code", "error_code", "errorcode":
				current = &e.Code
			case "message", "error_msg", "errormsg":
				current = &e.Message
			case "request_id", "requestid":
				current = &e.RequestID
			}
			if current != nil && *current != "" {
				current = nil
			}
		case xml.CharData:
			if current != nil {
				*current += strings.TrimSpace(string(t))
			}
		case xml.EndElement:
			current = nil
		}
	}
}

// textOfMarkup takes a page's title, else its text without the tags.
func textOfMarkup(body []byte) string {
	s := strings.ToValidUTF8(string(body), "")
	// ToLower may change the length of odd characters; only ASCII is searched for.
	lower := asciiLower(s)
	if start := strings.Index(lower, "<title>"); start >= 0 {
		start += len("<title>")
		if n := strings.Index(lower[start:], "</title>"); n >= 0 {
			if title := strings.TrimSpace(s[start : start+n]); title != "" {
				return title
			}
		}
	}
	var b strings.Builder
	in := false
	for _, r := range s {
		switch {
		case r == '<':
			in = true
			b.WriteByte(' ')
		case r == '>':
			in = false
		case !in:
			b.WriteRune(r)
		}
		if b.Len() > 4*maxMessage {
			break
		}
	}
	return b.String()
}

func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + ('a' - 'A')
		}
	}
	return string(b)
}

// cleanText makes foreign text fit for a line of an error message: no control characters (a
// terminal would obey them), single blanks, a bounded length.
func cleanText(s string, limit int) string {
	var b strings.Builder
	blank := false
	for _, r := range s {
		if r == utf8.RuneError || unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			blank = b.Len() > 0
			continue
		}
		// One byte is for the blank.
		if b.Len()+utf8.RuneLen(r) >= limit {
			b.WriteString("…")
			break
		}
		if blank {
			b.WriteByte(' ')
			blank = false
		}
		b.WriteRune(r)
	}
	return b.String()
}

// decodeJSON decodes exactly one value and keeps numbers as they were written.
func decodeJSON(p []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(p))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, errors.New("more than one JSON value")
	}
	return v, nil
}

// decodeObject decodes a JSON object.
func decodeObject(p []byte) (map[string]any, error) {
	v, err := decodeJSON(p)
	if err != nil {
		return nil, err
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("not a JSON object")
	}
	return m, nil
}

// text reads a string, or anything else that can be written as one: the services quote numbers and
// booleans, or don't, depending on their generation.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return strings.TrimSpace(v)
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	default:
		return ""
	}
}

// isMissingCall tells "this installation does not have the call" from "what you ask for does not
// exist": the gateway's own code, or a 404 or 405 that carries no code of IMS.
func isMissingCall(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	if info, ok := lookupCode(e.Code); ok {
		return info.kind == KindUnsupported && !strings.HasPrefix(e.Code, "IMG.")
	}
	return (e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed) &&
		!strings.HasPrefix(e.Code, "IMG.")
}
