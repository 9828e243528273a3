// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// maxSkew is how far a clock may be off before the store refuses signatures.
const maxSkew = 15 * time.Minute

// explain turns any failure of an attempt into an *Error: from the store's error answer, from what
// was remembered of the exchange, or from the network's error.
func (c *Client) explain(t target, err error, ex *exchange) *Error {
	e := &Error{Op: t.op, Bucket: t.bucket, Key: t.key, Part: t.part, Offset: t.offset}
	var date string
	var arrived time.Time
	if ex != nil {
		ex.mu.Lock()
		e.Status = ex.status
		date, arrived = ex.header.Get("Date"), ex.arrived
		e.RequestID = firstHeader(ex.header, "x-amz-request-id", "x-obs-request-id")
		e.Region = firstHeader(ex.header, "x-amz-bucket-region", "x-obs-bucket-location")
		if s, perr := strconv.Atoi(ex.header.Get("Retry-After")); perr == nil && s > 0 && s < 3600 {
			e.retryAfter = time.Duration(s) * time.Second
		}
		ex.mu.Unlock()
	}

	var known *Error
	var answer minio.ErrorResponse
	var status *statusError
	var keys *keysError
	switch {
	case errors.As(err, &known):
		// A check of ours inside the attempt.
		e.Kind, e.Code, e.Message, e.Err = known.Kind, known.Code, known.Message, known.Err
		return e
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		e.Kind, e.Err, e.Status, e.RequestID = KindCanceled, err, 0, ""
		var ue *url.Error
		if errors.As(err, &ue) {
			e.Err = ue.Err
		}
		return e
	case errors.As(err, &keys):
		e.Kind, e.Err = KindAuth, keys.err
		e.Message = "no keys: " + c.redact(keys.err.Error())
		return e
	case errors.As(err, &answer):
		if e.Status == 0 {
			// Refused by minio-go before anything was sent.
			e.Kind, e.Code, e.Message = KindInvalid, answer.Code, c.redact(answer.Message)
			return e
		}
		e.Code, e.Message = answer.Code, c.redact(oneLine(answer.Message))
		if answer.RequestID != "" {
			e.RequestID = answer.RequestID
		}
		if answer.Region != "" {
			e.Region = answer.Region
		}
		if strings.HasPrefix(e.Code, strconv.Itoa(e.Status)) {
			e.Code = "" // the status line, which is shown anyway
		}
	case errors.As(err, &status):
		e.Message = status.Error()
		if status.status == http.StatusNotFound {
			e.Code = "NoSuchBucket"
			if t.key != "" {
				e.Code = "NoSuchKey"
			}
		}
	default:
		c.explainNetwork(e, err)
		return e
	}

	e.Kind = kindOf(e.Status, e.Code)
	switch e.Kind {
	case KindRegion:
		e.Message = "the bucket lives in another region"
		if e.Region != "" {
			e.Message = "the bucket lives in region " + e.Region
		}
	case KindClock:
		e.Message = "this machine's clock is too far off"
	case KindNotFound:
		switch e.Code {
		case "NoSuchBucket":
			e.Message = "there is no such bucket"
		case "NoSuchKey":
			e.Message = "there is no such object"
		}
	case KindAuth, KindOther, KindQuota, KindInvalid, KindUnsupported, KindConflict, KindTransient,
		KindSource, KindIntegrity, KindCanceled:
	}
	// Answers to HEAD carry no code, so a wrong clock shows in the Date header only.
	if server, derr := http.ParseTime(date); derr == nil && (e.Kind == KindClock || e.Kind == KindAuth) {
		skew := arrived.Sub(server)
		if skew.Abs() > maxSkew {
			e.Kind = KindClock
			word := "ahead of"
			if skew < 0 {
				word = "behind"
			}
			e.Message = fmt.Sprintf("this machine's clock is %s %s the server's", skew.Abs().Round(time.Minute), word)
		}
	}
	return e
}

// explainNetwork is for failures without an answer, or with one that could not be read.
func (c *Client) explainNetwork(e *Error, err error) {
	var ue *url.Error
	for errors.As(err, &ue) {
		// Its text has the URL, and so upload ids and whatever a proxy put there.
		err = ue.Err
	}
	e.Kind = KindTransient
	text := err.Error()
	if strings.HasPrefix(text, "Connection closed by foreign host") {
		text = "the server closed the connection"
		err = errors.New(text)
	}
	var certificate *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var record tls.RecordHeaderError
	if errors.As(err, &certificate) || errors.As(err, &authority) || errors.As(err, &host) || errors.As(err, &record) ||
		strings.Contains(text, "server gave HTTP response to HTTPS client") {
		e.Kind = KindInvalid
	}
	if clean := c.redact(text); clean != text {
		err = errors.New(clean)
	}
	e.Err = err
}

func kindOf(status int, code string) Kind {
	if expiredCode(code) {
		return KindAuth
	}
	switch code {
	case "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NotSignedUp", "Unauthorized",
		"DeregisterUserId", "AllAccessDisabled", "AccountProblem", "TooManyWrongSignature", "InvalidToken",
		"InvalidSecurity":
		return KindAuth
	case "RequestTimeTooSkewed":
		return KindClock
	case "InArrearOrInsufficientBalance", "InsufficientStorageSpace":
		return KindQuota
	case "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "InvalidRegion":
		return KindRegion
	case "VirtualHostDomainRequired", "InvalidObjectState":
		return KindInvalid
	case "NotImplemented", "ServiceNotImplemented", "MethodNotAllowed", "FsNotSupport":
		return KindUnsupported
	case "NoSuchBucket", "NoSuchKey", "NoSuchUpload":
		return KindNotFound
	case "BadDigest", "IncompleteBody", "RequestTimeout", "OperationAborted", "SlowDown", "InternalError",
		"ServiceUnavailable", "TooManyRequests":
		return KindTransient
	}
	switch status {
	case http.StatusOK:
		// An answer that turned into an error after it had begun.
		return KindTransient
	case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return KindRegion
	case http.StatusUnauthorized, http.StatusForbidden:
		return KindAuth
	case http.StatusNotFound:
		return KindNotFound
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return KindUnsupported
	case http.StatusConflict, http.StatusPreconditionFailed:
		return KindConflict
	case http.StatusRequestTimeout, http.StatusTooManyRequests, 499, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, 520:
		return KindTransient
	}
	if status >= 400 && status < 500 {
		return KindInvalid
	}
	return KindOther
}

// bodyDamaged tells whether a code means that the body of a request that completes an upload was changed on its
// way. Of parts, whose bodies aren't signed, XAmzContentSHA256Mismatch means something else.
func bodyDamaged(code string) bool {
	return code == "XAmzContentSHA256Mismatch" || code == "MalformedXML"
}

// throttled tells whether the server asked for fewer requests.
func (e *Error) throttled() bool {
	return e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable || e.Code == "SlowDown"
}

func isCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

var secretParameter = regexp.MustCompile(
	`(?i)((?:x-amz-signature|x-amz-credential|x-amz-security-token|x-obs-security-token|signature|authorization|accesskeyid)["']?\s*[=:>]\s*)[^\s&,;"'<]+(?:\s+Credential=[^\s]+)?`)

// redact removes signatures and the keys in use from a text that came from outside.
func (c *Client) redact(s string) string {
	s = secretParameter.ReplaceAllString(s, "${1}"+redacted)
	for _, cr := range c.given.all() {
		for _, secret := range []string{cr.SecretKey, cr.SecurityToken} {
			if secret != "" {
				s = strings.ReplaceAll(s, secret, redacted)
				s = strings.ReplaceAll(s, url.QueryEscape(secret), redacted)
			}
		}
	}
	return s
}

// oneLine keeps a server's text fit for one line of an error.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }), " ")
	const longest = 300
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "..."
	}
	return s
}
