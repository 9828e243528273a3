// SPDX-License-Identifier: Apache-2.0

package obstest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// verify checks a request's signature V4 from the documentation's recipe, with none of the client's
// code. It returns an error code, "" when the signature is right.
func (s *Server) verify(r *http.Request) (code, message string) {
	auth, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return "AccessDenied", "no V4 signature"
	}
	field := map[string]string{}
	for f := range strings.SplitSeq(auth, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(f), "=")
		field[k] = v
	}
	scope := strings.Split(field["Credential"], "/")
	if len(scope) != 5 {
		return "AuthorizationHeaderMalformed", "bad credential scope"
	}
	account, ok := s.account(scope[0])
	if !ok {
		return "InvalidAccessKeyId", "the access key does not exist"
	}
	if account.SecurityToken != r.Header.Get("X-Amz-Security-Token") {
		return "InvalidAccessKeyId", "the security token does not belong to the access key"
	}
	if account.Expired {
		return "ExpiredToken", "the security token has expired"
	}
	date := r.Header.Get("X-Amz-Date")
	t, err := time.Parse("20060102T150405Z", date)
	if err != nil {
		return "AccessDenied", "no date"
	}
	if d := t.Sub(s.now()); d.Abs() > 15*time.Minute {
		return "RequestTimeTooSkewed", "the difference between the request time and the server's time is too large"
	}
	if scope[1] != date[:8] || scope[3] != "s3" || scope[4] != "aws4_request" {
		return "SignatureDoesNotMatch", "bad credential scope"
	}
	if scope[2] != s.o.Region {
		return "AuthorizationHeaderMalformed", "the region is wrong"
	}
	signed := strings.Split(field["SignedHeaders"], ";")
	for name := range r.Header {
		low := strings.ToLower(name)
		if strings.HasPrefix(low, "x-amz-") && !slices.Contains(signed, low) {
			return "SignatureDoesNotMatch", "header " + low + " is not signed"
		}
	}
	if !slices.Contains(signed, "host") || !slices.IsSorted(signed) {
		return "SignatureDoesNotMatch", "bad list of signed headers"
	}
	var b strings.Builder
	b.WriteString(r.Method + "\n" + canonicalPath(r.URL.Path) + "\n" + canonicalQuery(r.URL.Query()) + "\n")
	for _, name := range signed {
		value := strings.Join(r.Header.Values(name), ",")
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = r.Header.Get("Content-Length")
		}
		b.WriteString(name + ":" + strings.Join(strings.Fields(value), " ") + "\n")
	}
	b.WriteString("\n" + field["SignedHeaders"] + "\n" + r.Header.Get("X-Amz-Content-Sha256"))
	digest := sha256.Sum256([]byte(b.String()))
	toSign := "AWS4-HMAC-SHA256\n" + date + "\n" + strings.Join(scope[1:], "/") + "\n" + hex.EncodeToString(digest[:])
	key := []byte("AWS4" + account.SecretKey)
	for _, part := range scope[1:] {
		key = mac(key, part)
	}
	if !hmac.Equal([]byte(hex.EncodeToString(mac(key, toSign))), []byte(field["Signature"])) {
		return "SignatureDoesNotMatch", "the signature does not match"
	}
	return "", ""
}

func mac(key []byte, s string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(s))
	return h.Sum(nil)
}

func canonicalPath(p string) string {
	segs := strings.Split(p, "/")
	for i, s := range segs {
		segs[i] = escape(s)
	}
	return strings.Join(segs, "/")
}

func canonicalQuery(q url.Values) string {
	var pairs []string
	for k, vs := range q {
		for _, v := range vs {
			pairs = append(pairs, escape(k)+"="+escape(v))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

func escape(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(url.QueryEscape(s), "+", "%20"), "%7E", "~")
}
