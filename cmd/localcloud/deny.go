// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"strings"

	"github.com/gofiber/fiber/v3"

	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

// denying refuses the requests to the object storage that need a right which one of the patterns takes
// away, by the names that custom policies give to the rights.
func denying(patterns []string) fiber.Handler {
	return func(c fiber.Ctx) error {
		if !imstest.Denied(patterns, obsRight(c.Method(), c.Path(), c.Queries())) {
			return c.Next()
		}
		c.Set("Content-Type", "application/xml")
		c.Set("Connection", "close") // the body was not read
		if c.Method() == http.MethodHead {
			return c.SendStatus(http.StatusForbidden)
		}
		return c.Status(http.StatusForbidden).SendString(`<?xml version="1.0" encoding="UTF-8"?>` +
			`<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>`)
	}
}

// obsRight is the right that a request to the object storage needs.
func obsRight(method, path string, query map[string]string) string {
	has := func(name string) bool { _, ok := query[name]; return ok }
	bucket, key, _ := strings.Cut(strings.Trim(path, "/"), "/")
	switch {
	case bucket == "":
		return "obs:bucket:ListAllMyBuckets"
	case key == "" && has("location"):
		return "obs:bucket:GetBucketLocation"
	case key == "" && has("uploads"):
		return "obs:bucket:ListBucketMultipartUploads"
	case key == "" && method == http.MethodHead:
		return "obs:bucket:HeadBucket"
	case key == "" && method == http.MethodGet:
		return "obs:bucket:ListBucket"
	case key == "" && method == http.MethodPost && has("delete"):
		return "obs:object:DeleteObject"
	case key == "":
		return "obs:bucket:CreateBucket"
	case method == http.MethodDelete && has("uploadId"):
		return "obs:object:AbortMultipartUpload"
	case method == http.MethodDelete:
		return "obs:object:DeleteObject"
	case method == http.MethodGet && has("uploadId"):
		return "obs:object:ListMultipartUploadParts"
	case method == http.MethodGet, method == http.MethodHead:
		return "obs:object:GetObject"
	}
	return "obs:object:PutObject"
}
