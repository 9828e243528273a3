// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/pkg/ims/imstest"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// TestReuse uploads a disk, changes it, and uploads it again with --reuse: the object is always the disk, and
// little is sent when the earlier object and its account are what they should be.
func TestReuse(t *testing.T) {
	const mib = 1 << 20
	old := make([]byte, 25*mib+512)
	for i := 0; i < 18*mib; i += 1000 {
		old[i] = byte(i/1000) | 1
	}
	clear(old[8*mib : 10*mib])
	changed := func(at ...int) []byte {
		b := slices.Clone(old)
		for _, i := range at {
			b[i] ^= 0x55
		}
		return b
	}
	refuse := func(status int, code string) func(c *cloud) {
		return func(c *cloud) {
			f := obstest.Refuse(obstest.OpCopyPart, status, code)
			f.Match = func(q *obstest.Request) bool {
				return strings.HasSuffix(q.HTTP.Header.Get("X-Amz-Copy-Source"), "old.raw")
			}
			c.store.Inject(f)
		}
	}
	account := func(change func(doc string) string) func(c *cloud) {
		return func(c *cloud) {
			key := pipeline.AccountKey("old.raw")
			o := *c.store.Object(obstest.Bucket, key)
			b := make([]byte, o.Content.Size())
			_, _ = o.Content.ReadAt(b, 0)
			content, err := obstest.NewContent(strings.NewReader(change(string(b))))
			if err != nil {
				t.Fatal(err)
			}
			o.Content = content
			c.store.PutObject(obstest.Bucket, key, &o)
		}
	}
	// forge makes the account tell of the new disk what is only true of the old one.
	forge := func(c *cloud) {
		r := c.request(writeFile(t, filepath.Join(t.TempDir(), "new.raw"), changed(5*mib, 14*mib)))
		r.Key = "new.raw"
		if _, err := c.upload(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		etag := c.store.Object(obstest.Bucket, "old.raw").ETag
		from := c.store.Object(obstest.Bucket, pipeline.AccountKey("new.raw"))
		b := make([]byte, from.Content.Size())
		_, _ = from.Content.ReadAt(b, 0)
		doc := strings.ReplaceAll(string(b), "new.raw", "old.raw")
		i := strings.Index(doc, `"etag":"`) + len(`"etag":"`)
		doc = doc[:i] + etag + doc[i+strings.Index(doc[i:], `"`):]
		account(func(string) string { return doc })(c)
	}
	for _, tc := range []struct {
		name    string
		disk    []byte
		before  func(c *cloud) // what happens before
		during  func(c *cloud) // what happens when the upload begins
		most    int64          // bytes sent at most, beside zeros; 0 = whatever
		reused  bool
		warning string
	}{
		{name: "nothing changed", disk: old, most: 512, reused: true},
		{name: "one block", disk: changed(5 * mib), most: 6*mib + 512, reused: true},
		{name: "two blocks of one part", disk: changed(7*mib, 9*mib), most: 6*mib + 512, reused: true},
		{name: "data where zeros were", disk: changed(22 * mib), most: 12*mib + 512, reused: true},
		{name: "zeros where data was", disk: append(append(slices.Clone(old[:12*mib]), make([]byte, 6*mib)...), old[18*mib:]...), most: 12*mib + 512, reused: true},
		{name: "a longer disk", disk: append(slices.Clone(old), make([]byte, 8*mib)...), most: 12 * mib, reused: true},
		{name: "a shorter disk", disk: old[:13*mib+512], most: 12 * mib, reused: true},
		{name: "no account", disk: changed(5 * mib), warning: "there is no such", before: func(c *cloud) {
			if err := c.OBS.Delete(t.Context(), obstest.Bucket, pipeline.AccountKey("old.raw")); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "a damaged account", disk: old, warning: "old.raw.imsprep.json", before: account(func(d string) string { return d[:len(d)/2] })},
		{name: "damaged digests", disk: old, warning: "damaged", before: account(func(d string) string { return strings.Replace(d, `"blocks":"`, `"blocks":"AAAA`, 1) })},
		{name: "a stale account", disk: old, warning: "another object", before: func(c *cloud) {
			o := *c.store.Object(obstest.Bucket, "old.raw")
			o.ETag = "0123-7"
			c.store.PutObject(obstest.Bucket, "old.raw", &o)
		}},
		{name: "a forged account", disk: changed(5*mib, 14*mib), warning: "other bytes", before: forge},
		{name: "an account of other bytes", disk: old, warning: "other bytes", before: func(c *cloud) { c.patch(t, "old.raw", 10*mib, 1) }},
		{name: "replaced meanwhile", disk: old, warning: "nothing more is copied", during: func(c *cloud) {
			o := *c.store.Object(obstest.Bucket, "old.raw")
			o.ETag = "0123-7"
			c.store.PutObject(obstest.Bucket, "old.raw", &o)
		}},
		{name: "no right to copy", disk: old, warning: "nothing more is copied", before: refuse(403, "AccessDenied")},
		{name: "no copying", disk: old, warning: "nothing more is copied", before: refuse(501, "NotImplemented")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := start(t, imstest.Options{})
			dir := t.TempDir()
			r := c.request(writeFile(t, filepath.Join(dir, "old.img"), old))
			r.Key, r.Workers = "old.raw", 1
			if _, err := c.upload(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if tc.before != nil {
				tc.before(c)
			}
			r.Source, r.Key = writeFile(t, filepath.Join(dir, "new.img"), tc.disk), "again.raw"
			r.Reuse = pipeline.ObjectName{Bucket: obstest.Bucket, Key: "old.raw"}
			p, err := c.PlanUpload(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if tc.during != nil {
				tc.during(c)
			}
			res, err := c.Upload(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, res.ObjectSize)
			_, _ = c.store.Object(obstest.Bucket, "again.raw").Content.ReadAt(got, 0)
			if !bytes.Equal(got, tc.disk) {
				t.Fatal("the object is not the disk")
			}
			const zeroObject = 5 * mib
			if (res.BytesReused > 0) != tc.reused && tc.reused || tc.most > 0 && res.BytesSent > tc.most+zeroObject {
				t.Errorf("sent %d bytes, reused %d", res.BytesSent, res.BytesReused)
			}
			if all := fmt.Sprint(p.Warnings); tc.warning == "" && len(p.Warnings) > 0 || !strings.Contains(all, tc.warning) {
				t.Errorf("warnings %q", p.Warnings)
			}
		})
	}
}
