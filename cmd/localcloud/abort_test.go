// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// TestAbortUnderParts aborts uploads while their parts arrive, as a client does that is told to stop: a
// part is stored or its upload doesn't exist, and aborting works. Nothing of it is an internal error, which
// the gateway would print.
func TestAbortUnderParts(t *testing.T) {
	r := start(t)
	// Not r.core: that remembers answers, which is for one request at a time.
	c, err := minio.NewCore(strings.TrimPrefix(r.env["IMSPREP_OBS_ENDPOINT"], "http://"), &minio.Options{
		Creds:  credentials.NewStaticV4(r.env["HW_ACCESS_KEY"], r.env["HW_SECRET_KEY"], ""),
		Region: r.env["HW_REGION_NAME"], BucketLookup: minio.BucketLookupPath, MaxRetries: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	p := random(t, 256<<10)
	ctx := context.Background()
	code := func(err error) string {
		var answer minio.ErrorResponse
		if err == nil || !errors.As(err, &answer) {
			return ""
		}
		return answer.Code
	}
	for range 25 {
		id := must(c.NewMultipartUpload(ctx, "images", "aborted.raw", minio.PutObjectOptions{}))(t)
		var parts sync.WaitGroup
		begun := make(chan struct{}, 8)
		for n := range cap(begun) {
			parts.Go(func() {
				begun <- struct{}{}
				_, err := c.PutObjectPart(ctx, "images", "aborted.raw", id, n+1, bytes.NewReader(p), int64(len(p)),
					minio.PutObjectPartOptions{Md5Base64: md5Base64(p), DisableContentSha256: true})
				if code := code(err); err != nil && code != "NoSuchUpload" {
					t.Errorf("part %d: %s: %v", n+1, code, err)
				}
			})
		}
		for range cap(begun) / 2 {
			<-begun
		}
		if err := c.AbortMultipartUpload(ctx, "images", "aborted.raw", id); err != nil {
			t.Errorf("aborting: %s: %v", code(err), err)
		}
		parts.Wait()
	}
}
