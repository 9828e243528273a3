// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// upload plans and uploads.
func (c *cloud) upload(ctx context.Context, r pipeline.Request) (*pipeline.UploadResult, error) {
	p, err := c.PlanUpload(ctx, r)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return c.Upload(ctx, p)
}

// digestOf is the digest of a disk.
func digestOf(t *testing.T, path string) convert.Digest {
	t.Helper()
	d, err := convert.Open(t.Context(), path, convert.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := convert.NewScanner(d, nil).WithDigest()
	if err := s.ReadRest(t.Context()); err != nil {
		t.Fatal(err)
	}
	sum, err := s.Digest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// patch flips bits of a byte of an object and changes nothing else of it.
func (c *cloud) patch(t *testing.T, key string, at int64, bits byte) {
	t.Helper()
	o := c.store.Object(obstest.Bucket, key)
	b := make([]byte, o.Content.Size())
	_, _ = o.Content.ReadAt(b, 0)
	if at < 0 {
		at += int64(len(b))
	}
	b[at] ^= bits
	content, err := obstest.NewContent(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	changed := *o
	changed.Content = content
	c.store.PutObject(obstest.Bucket, key, &changed)
}

// TestUploadTellsWhatItSent uploads one disk in both formats: digest and SHA-256 are the disk's, in the result,
// the metadata and the account.
func TestUploadTellsWhatItSent(t *testing.T) {
	disk := sparseDisk(20<<20+512, 7, 0, 9<<20, 20<<20)
	path := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk)
	want := digestOf(t, path)
	for _, key := range []string{"disk.raw", "disk.zvhd2"} {
		t.Run(key, func(t *testing.T) {
			c := start(t, imstest.Options{})
			r := c.request(path)
			r.Key, r.Format, r.Verify, r.SHA256 = key, pipeline.Format(strings.TrimPrefix(filepath.Ext(key), ".")), true, true
			res, err := c.upload(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if res.ContentDigest == nil || *res.ContentDigest != want || res.SHA256 != sum(disk) || !res.Verified || res.Account == "" {
				t.Fatalf("%+v, want the digest %v", res, want)
			}
			o := c.store.Object(obstest.Bucket, key)
			if o.ETag != res.ETag || o.Metadata[pipeline.DigestMetadata] != want.String() || o.Metadata[pipeline.SHA256Metadata] != sum(disk) ||
				o.Metadata[obs.RunIDMetadata] == "" {
				t.Errorf("the object has %q and %v", o.ETag, o.Metadata)
			}
			var account struct {
				ETag   string         `json:"etag"`
				Digest convert.Digest `json:"content_digest"`
			}
			b := make([]byte, c.store.Object(obstest.Bucket, res.Account).Content.Size())
			_, _ = c.store.Object(obstest.Bucket, res.Account).Content.ReadAt(b, 0)
			if err := json.Unmarshal(b, &account); err != nil || account.ETag != res.ETag || account.Digest != want {
				t.Errorf("the account %s: %v", b, err)
			}
			if v := c.store.Violations(); len(v) > 0 {
				t.Errorf("requests that OBS doesn't document: %q", v)
			}
		})
	}
}

// TestMetadataIsNotWorthFailing: where the server can't copy an object onto itself, or the account can't be
// written, the upload is good all the same, and says so.
func TestMetadataIsNotWorthFailing(t *testing.T) {
	c := start(t, imstest.Options{})
	r := c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(6<<20, 1, 0)))
	refuse := obstest.Refuse(obstest.OpPutObject, 403, "AccessDenied")
	refuse.Match = func(q *obstest.Request) bool {
		return q.HTTP.Header.Get("X-Amz-Metadata-Directive") != "" || q.Key == pipeline.AccountKey(r.Key)
	}
	c.store.Inject(refuse)
	p, err := c.PlanUpload(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	res, err := c.Upload(t.Context(), p)
	if err != nil || res.Account != "" || len(p.Warnings) != 2 {
		t.Fatalf("%+v, %v, warnings %q", res, err, p.Warnings)
	}
}

// TestReadBackFindsDamage: what the store loses between completing and reading back fails the run, and the
// damaged object goes.
func TestReadBackFindsDamage(t *testing.T) {
	disk := sparseDisk(12<<20, 3, 0, 8<<20)
	path := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk)
	for name, tc := range map[string]struct {
		format pipeline.Format
		key    string
		at     int64
		bits   byte
	}{
		"data":        {pipeline.FormatRAW, "disk.raw", 5, 0xFF},
		"zeros":       {pipeline.FormatRAW, "disk.raw", 5 << 20, 0xFF},
		"the bitmap":  {pipeline.FormatRAW, "disk.mf", 0, 0x01},
		"compressed":  {pipeline.FormatZVHD2, "disk.zvhd2", 9000, 0xFF},
		"its trailer": {pipeline.FormatZVHD2, "disk.zvhd2", -4000, 0xFF},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, imstest.Options{})
			r := c.request(path)
			r.Key, r.Format, r.Verify = "disk"+tc.format.Ext(), tc.format, true
			var once bool
			c.Events = func(e pipeline.Event) {
				if e.Phase == pipeline.PhaseVerify && !once {
					once = true
					c.patch(t, tc.key, tc.at, tc.bits)
				}
			}
			_, err := c.run(t.Context(), r)
			var bad *pipeline.MismatchError
			if !errors.As(err, &bad) {
				t.Fatalf("%v", err)
			}
			c.empty(t)
		})
	}
}

// TestVerify compares a disk with objects that are right and that are wrong in every way.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	disk := sparseDisk(13<<20+512, 5, 0, 6<<20, 13<<20)
	path := writeFile(t, filepath.Join(dir, "disk.raw"), disk)
	other := slices.Clone(disk)
	other[6<<20] ^= 1
	other[8<<20] ^= 1
	c := start(t, imstest.Options{})
	for _, f := range []pipeline.Format{pipeline.FormatRAW, pipeline.FormatZVHD2} {
		r := c.request(path)
		r.Key, r.Format = "disk"+f.Ext(), f
		if _, err := c.upload(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(source, key string) (*pipeline.VerifyResult, error) {
		return c.Verify(t.Context(), pipeline.VerifyRequest{Source: source, Bucket: obstest.Bucket, Key: key})
	}
	for _, key := range []string{"disk.raw", "disk.zvhd2"} {
		res, err := verify(path, key)
		if err != nil || !res.Equal || res.Problem() != "" || res.Compared != int64(len(disk)) || *res.ContentDigest != digestOf(t, path) {
			t.Errorf("%s: %+v, %v", key, res, err)
		}
		if key == "disk.raw" && (res.Downloaded != int64(len(disk)) || res.Bitmap == nil || res.Bitmap.Marked != 3) {
			t.Errorf("%s: %+v, %+v", key, res, res.Bitmap)
		}
		c.store.Inject(obstest.Fault{Op: obstest.OpGetObject, Times: 3, Do: obstest.CutAnswer})
		if res, err := verify(path, key); err != nil || !res.Equal {
			t.Errorf("%s, broken off: %+v, %v", key, res, err)
		}
		changed := writeFile(t, filepath.Join(dir, "changed.raw"), other)
		res, err = verify(changed, key)
		if err != nil || res.Equal || res.Blocks != 2 ||
			*res.First != (pipeline.ObjectDifference{Offset: 6 << 20, Block: 3, Source: other[6<<20], Object: disk[6<<20]}) {
			t.Errorf("%s, changed: %+v, %v", key, res, err)
		} else if p := res.Problem(); !strings.Contains(p, "2 blocks of") || !strings.Contains(p, "byte 6291456 (block 3)") {
			t.Error(p)
		}
		for _, n := range []int{-512, -1, 1, 512} {
			sized := make([]byte, len(disk)+n)
			copy(sized, disk)
			res, err := verify(writeFile(t, filepath.Join(dir, "sized.raw"), sized), key)
			if err != nil || res.Equal || res.Problem() == "" {
				t.Errorf("%s, %d bytes more: %+v, %v", key, n, res, err)
			}
		}
	}
	// What the source has as zeros is looked at, too.
	c.patch(t, "disk.raw", 3<<20, 1)
	if res, err := verify(path, "disk.raw"); err != nil || res.Equal || res.First.Offset != 3<<20 {
		t.Errorf("zeros changed: %+v, %v", res, err)
	}
	c.patch(t, "disk.raw", 3<<20, 1)
	c.patch(t, "disk.mf", 0, 0x01)
	res, err := verify(path, "disk.raw")
	if err != nil || res.Equal || res.First != nil || res.Bitmap.Unmarked != 1 || res.Bitmap.FirstUnmarked != 0 {
		t.Errorf("bitmap: %+v, %v", res, err)
	}
	if res != nil && !strings.Contains(res.Problem(), "lacks 1 block that") {
		t.Error(res.Problem())
	}
}

// TestVerifyAFileAsItIs: an object that ends otherwise is the file itself.
func TestVerifyAFileAsItIs(t *testing.T) {
	c := start(t, imstest.Options{})
	b := []byte(strings.Repeat("not a disk", 100_001))
	path := writeFile(t, filepath.Join(t.TempDir(), "disk.vmdk"), b)
	content, err := obstest.NewContent(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	c.store.PutObject(obstest.Bucket, "disk.vmdk", &obstest.Object{Content: content, ETag: "e"})
	res, err := c.Verify(t.Context(), pipeline.VerifyRequest{Source: path, Bucket: obstest.Bucket, Key: "disk.vmdk"})
	if err != nil || !res.Equal || res.Format != "" {
		t.Errorf("%+v, %v", res, err)
	}
	c.store.PutObject(obstest.Bucket, "empty.raw", &obstest.Object{Content: obstest.Zeros(0), ETag: "e"})
	res, err = c.Verify(t.Context(), pipeline.VerifyRequest{Source: path, Open: convert.OpenOptions{Format: "raw"}, Bucket: obstest.Bucket, Key: "empty.raw"})
	if err != nil || res.Equal || !strings.Contains(res.Problem(), "holds a disk of 0 bytes") {
		t.Errorf("%+v, %v", res, err)
	}
}
