// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/http"
	"testing"

	"github.com/minio/minio-go/v7"
)

func TestOBSRight(t *testing.T) {
	for _, c := range []struct {
		method, path string
		query        []string
		want         string
	}{
		{"GET", "/", nil, "obs:bucket:ListAllMyBuckets"},
		{"HEAD", "/b", nil, "obs:bucket:HeadBucket"},
		{"HEAD", "/b/", nil, "obs:bucket:HeadBucket"},
		{"GET", "/b", []string{"location"}, "obs:bucket:GetBucketLocation"},
		{"GET", "/b", []string{"uploads", "prefix"}, "obs:bucket:ListBucketMultipartUploads"},
		{"GET", "/b", []string{"prefix"}, "obs:bucket:ListBucket"},
		{"POST", "/b", []string{"delete"}, "obs:object:DeleteObject"},
		{"PUT", "/b", nil, "obs:bucket:CreateBucket"},
		{"PUT", "/b/k/l", nil, "obs:object:PutObject"},
		{"PUT", "/b/k", []string{"uploadId", "partNumber"}, "obs:object:PutObject"},
		{"POST", "/b/k", []string{"uploads"}, "obs:object:PutObject"},
		{"GET", "/b/k", []string{"uploadId"}, "obs:object:ListMultipartUploadParts"},
		{"DELETE", "/b/k", []string{"uploadId"}, "obs:object:AbortMultipartUpload"},
		{"DELETE", "/b/k", nil, "obs:object:DeleteObject"},
		{"HEAD", "/b/k", nil, "obs:object:GetObject"},
	} {
		query := map[string]string{}
		for _, name := range c.query {
			query[name] = ""
		}
		if got := obsRight(c.method, c.path, query); got != c.want {
			t.Errorf("%s %s %v: %s, want %s", c.method, c.path, c.query, got, c.want)
		}
	}
}

// TestDeny: what is denied is refused, and nothing else.
func TestDeny(t *testing.T) {
	r := start(t, "--deny", "obs:object:Delete*")
	c := r.core(nil)
	put(t, c, "k", []byte("x"), nil)
	err := c.RemoveObject(context.Background(), "images", "k", minio.RemoveObjectOptions{})
	if e := minio.ToErrorResponse(err); e.StatusCode != http.StatusForbidden || e.Code != "AccessDenied" {
		t.Errorf("delete: %v", err)
	}
	if got := get(t, c, "k", 0, 1); string(got) != "x" {
		t.Errorf("read %q", got)
	}
}
