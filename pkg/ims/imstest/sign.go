// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The signature is SDK-HMAC-SHA256 of the API gateway: like AWS's version 4,
// but with the secret itself as the key and a canonical path that ends in "/".
const (
	signAlgorithm = "SDK-HMAC-SHA256"
	signTime      = "20060102T150405Z"
	clockWindow   = 15 * time.Minute

	headerDate          = "X-Sdk-Date"
	headerContentSHA256 = "X-Sdk-Content-Sha256"
	headerSecurityToken = "X-Security-Token"
)

// badCredentials is how the gateway refuses a signature or a token.
func badCredentials(format string, args ...any) *answerError {
	return gatewayError(http.StatusUnauthorized, "APIGW.0301",
		"Incorrect IAM authentication information: "+fmt.Sprintf(format, args...))
}

// authorization is a parsed Authorization header.
type authorization struct {
	accessKey string
	headers   []string // as named by the client: lower case, sorted, joined by ";"
	signature string
}

func parseAuthorization(h string) (authorization, error) {
	var a authorization
	rest, ok := strings.CutPrefix(h, signAlgorithm+" ")
	if !ok {
		return a, badCredentials("the algorithm is not %s", signAlgorithm)
	}
	for field := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(field), "=")
		if !ok {
			return a, badCredentials("the Authorization header is malformed")
		}
		switch name {
		case "Access":
			a.accessKey = value
		case "SignedHeaders":
			a.headers = strings.Split(value, ";")
		case "Signature":
			a.signature = value
		default:
			return a, badCredentials("the Authorization header has an unknown field")
		}
	}
	if a.accessKey == "" || len(a.headers) == 0 || a.signature == "" {
		return a, badCredentials("the Authorization header lacks a field")
	}
	if !slices.IsSorted(a.headers) || slices.ContainsFunc(a.headers, func(h string) bool { return h != strings.ToLower(h) || h == "" }) {
		return a, badCredentials("SignedHeaders is not a sorted list of lower-case names")
	}
	return a, nil
}

// verifySignature checks the signature of a request at a point in time. It
// returns the account that signed, and leaves the body to be read again.
func verifySignature(r *http.Request, now time.Time, account func(accessKey string) (Account, bool)) (Account, error) {
	a, err := parseAuthorization(r.Header.Get("Authorization"))
	if err != nil {
		return Account{}, err
	}
	date := r.Header.Get(headerDate)
	t, err := time.Parse(signTime, date)
	if err != nil {
		return Account{}, badCredentials("X-Sdk-Date is missing or malformed")
	}
	if d := now.Sub(t); d > clockWindow || d < -clockWindow {
		return Account{}, badCredentials("signature expired or not yet valid, signed at %s, now %s", date, now.Format(signTime))
	}
	acc, ok := account(a.accessKey)
	if !ok {
		return Account{}, badCredentials("no such access key %s", a.accessKey)
	}
	if r.Header.Get(headerSecurityToken) != acc.SecurityToken {
		return Account{}, badCredentials("the security token does not belong to the access key")
	}
	// What changes the meaning of the request must be signed.
	must := []string{headerDate}
	for _, h := range []string{headerSecurityToken, headerContentSHA256} {
		if r.Header.Get(h) != "" {
			must = append(must, h)
		}
	}
	for _, h := range must {
		if !slices.Contains(a.headers, strings.ToLower(h)) {
			return Account{}, badCredentials("the header %s is not signed", h)
		}
	}
	payload := r.Header.Get(headerContentSHA256)
	if payload == "" {
		body, err := readBody(r, maxSignedBody)
		if err != nil {
			return Account{}, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		payload = hexSHA256(body)
	}
	canonical, err := canonicalRequest(r, a.headers, payload)
	if err != nil {
		return Account{}, err
	}
	mac := hmac.New(sha256.New, []byte(acc.SecretKey))
	fmt.Fprintf(mac, "%s\n%s\n%s", signAlgorithm, date, hexSHA256([]byte(canonical)))
	if !hmac.Equal([]byte(hex.EncodeToString(mac.Sum(nil))), []byte(a.signature)) {
		return Account{}, badCredentials("verify aksk signature fail, canonicalRequest:%s", strings.ReplaceAll(canonical, "\n", "|"))
	}
	return acc, nil
}

// canonicalRequest is the text whose hash is signed.
func canonicalRequest(r *http.Request, signed []string, payload string) (string, error) {
	var b strings.Builder
	b.WriteString(strings.ToUpper(r.Method) + "\n")

	segments := strings.Split(r.URL.Path, "/")
	for i, s := range segments {
		segments[i] = percentEncode(s)
	}
	uri := strings.Join(segments, "/")
	if !strings.HasSuffix(uri, "/") {
		uri += "/"
	}
	b.WriteString(uri + "\n")

	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", gatewayError(http.StatusBadRequest, "APIGW.0201", "The query string is malformed.")
	}
	var query [][2]string
	for name, vs := range values {
		for _, v := range vs {
			query = append(query, [2]string{percentEncode(name), percentEncode(v)})
		}
	}
	slices.SortFunc(query, func(a, b [2]string) int {
		if c := strings.Compare(a[0], b[0]); c != 0 {
			return c
		}
		return strings.Compare(a[1], b[1])
	})
	for i, q := range query {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(q[0] + "=" + q[1])
	}
	b.WriteByte('\n')

	for _, name := range signed {
		value := r.Header.Get(name)
		if name == "host" {
			value = r.Host
		} else if len(r.Header.Values(name)) == 0 {
			return "", badCredentials("the signed header %s is missing", name)
		}
		b.WriteString(name + ":" + strings.TrimSpace(value) + "\n")
	}
	b.WriteString("\n" + strings.Join(signed, ";") + "\n" + payload)
	return b.String(), nil
}

// percentEncode encodes every byte but the unreserved characters of RFC 3986.
func percentEncode(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', strings.IndexByte("-_.~", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func hexSHA256(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}
