// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	signAlgorithm  = "SDK-HMAC-SHA256"
	signTimeFormat = "20060102T150405Z"

	// unsignedPayload stands for the hash of a body that isn't JSON, as the vendor's SDK sends it.
	unsignedPayload = "UNSIGNED-PAYLOAD"

	headerDate          = "X-Sdk-Date"
	headerContentSHA256 = "X-Sdk-Content-Sha256"
	headerProjectID     = "X-Project-Id"
	headerSecurityToken = "X-Security-Token"
	headerAuthToken     = "X-Auth-Token"
	headerSubjectToken  = "X-Subject-Token"
)

// SignRequest authenticates req with the signature SDK-HMAC-SHA256 of the API gateway: it sets
// X-Sdk-Date to t, X-Security-Token when cred is temporary, and Authorization. The signed headers
// are Host and every header of req whose name begins with "X-"; those must not change afterwards,
// and a redirect must not be followed with them.
//
// bodySHA256 is the lower-case hexadecimal SHA-256 of exactly the bytes that will be sent; a header
// X-Sdk-Content-Sha256 that req already carries takes its place, literally.
func SignRequest(req *http.Request, bodySHA256 string, cred Credentials, t time.Time) error {
	if cred.AccessKey == "" || cred.SecretKey == "" {
		return errors.New("ims: no access key or no secret key to sign the request with")
	}
	if req.URL == nil || req.URL.Host == "" {
		return errors.New("ims: a request without a host cannot be signed")
	}
	// What is signed must be what travels: net/http sends Request.Host when it is set.
	req.Host = canonicalHost(req)
	req.Header.Set(headerDate, t.UTC().Format(signTimeFormat))
	if cred.SecurityToken != "" {
		req.Header.Set(headerSecurityToken, cred.SecurityToken)
	} else {
		req.Header.Del(headerSecurityToken)
	}
	if literal := req.Header.Get(headerContentSHA256); literal != "" {
		bodySHA256 = literal
	}

	headers := []signedHeader{{"host", req.Host}}
	for name, values := range req.Header {
		name = strings.ToLower(name)
		// The gateway leaves names with an underscore out of its own calculation.
		if strings.HasPrefix(name, "x-") && !strings.Contains(name, "_") {
			headers = append(headers, signedHeader{name, strings.Join(values, ",")})
		}
	}
	canonical, names := canonicalRequest(req.Method, req.URL.Path, req.URL.RawQuery, headers, bodySHA256)
	req.Header.Set("Authorization", authorization(cred, t, canonical, names))
	return nil
}

// canonicalHost is the host to send and to sign: the port only when it isn't the scheme's own.
func canonicalHost(req *http.Request) string {
	h := req.Host
	if h == "" {
		h = req.URL.Host
	}
	host, port, err := net.SplitHostPort(h)
	if err != nil {
		return h
	}
	if (req.URL.Scheme == "https" && port == "443") || (req.URL.Scheme == "http" && port == "80") {
		if strings.Contains(host, ":") {
			return "[" + host + "]"
		}
		return host
	}
	return h
}

type signedHeader struct{ name, value string } // name in lower case

// canonicalRequest joins the six parts that the signature covers. It sorts headers and also returns
// their names joined by semicolons.
func canonicalRequest(
	method, path, rawQuery string, headers []signedHeader, bodySHA256 string,
) (canonical, names string) {
	slices.SortFunc(headers, func(a, b signedHeader) int { return strings.Compare(a.name, b.name) })
	var block, list strings.Builder
	for i, h := range headers {
		block.WriteString(h.name + ":" + strings.TrimSpace(h.value) + "\n")
		if i > 0 {
			list.WriteByte(';')
		}
		list.WriteString(h.name)
	}
	names = list.String()
	return strings.Join([]string{
		strings.ToUpper(method), canonicalPath(path), canonicalQuery(rawQuery), block.String(), names, bodySHA256,
	}, "\n"), names
}

// canonicalPath encodes a decoded path; the canonical form always ends with a slash.
func canonicalPath(path string) string {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i] = percentEncode(s)
	}
	p := strings.Join(segments, "/")
	if !strings.HasSuffix(p, "/") {
		p += "/"
	}
	return p
}

// canonicalQuery decodes, sorts (by name, then by value) and encodes the parameters of a query.
func canonicalQuery(raw string) string {
	type parameter struct{ name, value string }
	var list []parameter
	for p := range strings.SplitSeq(raw, "&") {
		if p == "" {
			continue
		}
		name, value, _ := strings.Cut(p, "=")
		list = append(list, parameter{unescapeQuery(name), unescapeQuery(value)})
	}
	slices.SortFunc(list, func(a, b parameter) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.value, b.value))
	})
	var b strings.Builder
	for i, p := range list {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(percentEncode(p.name) + "=" + percentEncode(p.value))
	}
	return b.String()
}

// unescapeQuery takes what isn't valid percent-encoding literally.
func unescapeQuery(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

// percentEncode encodes every byte but the unreserved characters of RFC 3986, which is stricter
// than anything in net/url.
func percentEncode(s string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	b.Grow(len(s))
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			c == '-', c == '_', c == '.', c == '~':
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

func authorization(cred Credentials, t time.Time, canonical, names string) string {
	toSign := signAlgorithm + "\n" + t.UTC().Format(signTimeFormat) + "\n" + hexSHA256([]byte(canonical))
	mac := hmac.New(sha256.New, []byte(cred.SecretKey))
	mac.Write([]byte(toSign))
	return signAlgorithm + " Access=" + cred.AccessKey + ", SignedHeaders=" + names +
		", Signature=" + hex.EncodeToString(mac.Sum(nil))
}

func hexSHA256(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}
