// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"context"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"
)

// Rights to the calls, as custom policies name them. The documentation names none for jobs, the quota
// and members: those calls are denied only to whom everything of the service is (ims:*).
const (
	rightImportSystem = "ims:serverImages:create"
	rightImportData   = "ims:dataImages:create"
	rightList         = "ims:images:list"
	rightGet          = "ims:images:get"
	rightCreate       = "ims:images:create"
	rightUpload       = "ims:images:upload"
	rightUpdate       = "ims:images:update"
	rightDelete       = "ims:images:delete"
	rightExport       = "ims:images:export"
	rightCopy         = "ims:images:copy"
	rightProjects     = "iam:projects:listProjects"
	rightUnnamed      = "ims:*" // of a call for which none is named
)

// caller is who sent a request, and what that account or user may not do.
type caller struct {
	deny []string
}

type callerKey struct{}

// withCaller keeps the caller for checks that need the request's body.
func withCaller(r *http.Request, c caller) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
}

// allow refuses a caller who lacks a right.
func (s *Server) allow(r *http.Request, rights ...string) error {
	c, _ := r.Context().Value(callerKey{}).(caller)
	for _, right := range rights {
		if Denied(s.opt.Deny, right) || Denied(c.deny, right) {
			return denied(r, right)
		}
	}
	return nil
}

// Denied tells whether one of the patterns takes a right away. A pattern is a right, such as
// ims:images:create, in which a * stands for any text.
func Denied(patterns []string, right string) bool {
	for _, p := range patterns {
		if matches(p, right) {
			return true
		}
	}
	return false
}

// matches compares a pattern with stars, of which there are few.
func matches(pattern, s string) bool {
	literal, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	tail, ok := strings.CutPrefix(s, literal)
	if !ok {
		return false
	}
	for n := 0; n <= len(tail); n++ {
		if matches(rest, tail[n:]) {
			return true
		}
	}
	return false
}

// denied is the refusal of a caller who lacks a right: the gateway's, with details; XML from a native
// call; IAM's own from IAM.
func denied(r *http.Request, right string) error {
	msg := fmt.Sprintf("Policy doesn't allow %s to be performed.", right)
	text := "APIGW.0302 " + msg
	switch {
	case strings.HasPrefix(right, "iam:"):
		return iamError(http.StatusForbidden, "You are not authorized to perform the requested action: "+right)
	case strings.HasPrefix(r.URL.Path, "/v2/images"), strings.HasPrefix(r.URL.Path, "/v1.1/"):
		return &answerError{http.StatusForbidden, "application/xml", func(id string) []byte {
			p, err := xml.Marshal(struct {
				XMLName xml.Name `xml:"error"`
				Code    string   `xml:"error_code"`
				Message string   `xml:"error_msg"`
				ID      string   `xml:"request_id"`
			}{Code: "APIGW.0302", Message: msg, ID: id})
			if err != nil { // only strings go in
				panic(err)
			}
			return p
		}, text}
	}
	return jsonError(http.StatusForbidden, text, func(id string) any {
		return map[string]any{
			"error_code": "APIGW.0302", "error_msg": msg, "request_id": id,
			"encoded_authorization_message": base64.StdEncoding.EncodeToString([]byte(id + right)),
			"details":                       []any{map[string]any{"error_code": "IMG.0161", "error_msg": "You do not have permission."}},
		}
	})
}
