// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"slices"
	"testing"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

// TestListObjects goes through several pages of keys that need escaping, and through failing ones.
func TestListObjects(t *testing.T) {
	e := newEnv(t, obstest.Options{UploadsPage: 2}, nil)
	s, c := e.server, e.client
	want := []string{"a b+c.raw", "a/<&>.raw", "a/ä%41.raw", "a/\x01.raw", "ab"}
	slices.Sort(want)
	for _, key := range append([]string{"b"}, want...) {
		s.PutObject(obstest.Bucket, key, &obstest.Object{Content: &obstest.Content{}, ETag: key})
	}
	s.Inject(obstest.Throttle(obstest.OpListObjects, 2))
	var got []string
	for o, err := range c.ListObjects(t.Context(), obstest.Bucket, "a") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, o.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
	for range c.ListObjects(t.Context(), obstest.Bucket, "a") {
		break // the rest isn't asked for
	}

	for _, err := range c.ListObjects(t.Context(), "no-such-bucket", "") {
		if !isCode(err, "NoSuchBucket") {
			t.Errorf("%v", err)
		}
	}
	s.Inject(obstest.Refuse(obstest.OpListObjects, 403, "AccessDenied"))
	for _, err := range c.ListObjects(t.Context(), obstest.Bucket, "") {
		if !isCode(err, "AccessDenied") || KindOf(err) != KindAuth {
			t.Errorf("%v", err)
		}
	}
}

// FuzzListing feeds answers of any kind to the parser of listings.
func FuzzListing(f *testing.F) {
	f.Add([]byte(`<ListBucketResult><IsTruncated>true</IsTruncated><NextMarker>b%2Fc</NextMarker><EncodingType>url</EncodingType>` +
		`<Contents><Key>a%20b</Key><Size>5</Size><ETag>"x"</ETag><LastModified>2026-01-02T03:04:05.000Z</LastModified></Contents></ListBucketResult>`))
	f.Add([]byte(`<ListBucketResult><Contents><Key></Key><Size>-1</Size></Contents></ListBucketResult>`))
	f.Add([]byte(`<Error><Code>AccessDenied</Code></Error>`))
	f.Fuzz(func(t *testing.T, body []byte) {
		page, err := parseListing(body)
		if err != nil {
			return
		}
		for _, o := range page.Contents {
			if o.Key == "" || o.Size < 0 {
				t.Errorf("accepted %+v", o)
			}
		}
	})
}
