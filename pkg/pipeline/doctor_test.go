// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// doctor examines a cloud.
func (c *cloud) doctor(t *testing.T) *pipeline.Doctor {
	t.Helper()
	front := httptest.NewServer(c.sim)
	t.Cleanup(front.Close)
	return &pipeline.Doctor{
		Importer:  c.Importer,
		Endpoints: map[string]string{"obs": c.store.URL(), "ims": front.URL, "iam": front.URL},
		Transport: ims.NewTransport(),
		Keys: pipeline.Keys{Source: "the test", Get: ims.StaticCredentials(ims.Credentials{
			AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey})},
		Bucket: obstest.Bucket, OSVersion: osVersion, ConfirmedLayouts: []string{"a"}, StateDir: t.TempDir(),
	}
}

// findings are the checks that didn't end well, as NAME STATUS.
func findings(list []pipeline.Check) (names []string, all map[string]pipeline.Check) {
	all = map[string]pipeline.Check{}
	for _, c := range list {
		all[c.Name] = c
		if c.Status != pipeline.CheckOK {
			names = append(names, c.Name+" "+string(c.Status))
		}
	}
	slices.Sort(names)
	return names, all
}

var tellsAll = map[string]string{"x-default-storage-class": "STANDARD"}

// TestDoctor: each trouble is found by the check that is for it, with advice, and what doesn't depend on
// it is checked all the same. Nothing stays in the bucket.
func TestDoctor(t *testing.T) {
	skipped := func(names ...string) (list []string) {
		for _, n := range names {
			list = append(list, n+" skipped")
		}
		return list
	}
	ofBucket := skipped("bucket-region", "bucket-class", "bucket-kind", "bucket-addressing", "round-trip", "copy")
	ofService := skipped("images", "tags", "quota", "os-versions", "os-version")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	untrusted := httptest.NewUnstartedServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are broken off
	untrusted.StartTLS()
	defer untrusted.Close()
	for _, tc := range []struct {
		name    string
		headers map[string]string
		sim     imstest.Options
		change  func(c *cloud, d *pipeline.Doctor)
		want    []string // beside create, which is always skipped
		say     string   // somewhere in the first failure or warning, or its advice
		kind    obs.Kind // of the first failure, if it is of object storage
	}{
		{name: "all is well"},
		{name: "archive class", headers: map[string]string{"x-default-storage-class": "GLACIER"},
			want: append(skipped("round-trip", "copy"), "bucket-class failed"), say: "class Standard"},
		{name: "file system", headers: map[string]string{"x-obs-fs-file-interface": "Enabled"},
			want: append(skipped("round-trip", "copy"), "bucket-kind failed"), say: "ordinary bucket"},
		{name: "elsewhere", headers: map[string]string{"x-amz-bucket-region": "other-1"},
			want: append(skipped("round-trip", "copy"), "bucket-region failed"), say: "other-1"},
		{name: "region untold", headers: map[string]string{"x-amz-bucket-region": ""}, want: []string{"bucket-region warning"}, say: "doesn't tell"},
		{name: "clock", change: func(c *cloud, _ *pipeline.Doctor) { c.store.SetClock(-time.Hour) },
			want: append(append(append(skipped("bucket", "project"), ofBucket...), ofService...), "clock failed"), say: "1h0m", kind: obs.KindClock},
		{name: "clock a little off", change: func(c *cloud, _ *pipeline.Doctor) { c.store.SetClock(5 * time.Minute) },
			want: []string{"clock warning"}, say: "behind"},
		{name: "wrong keys", change: func(c *cloud, _ *pipeline.Doctor) {
			c.store.SetAccount(obstest.AccessKey, obstest.Account{SecretKey: "another"})
		}, want: append([]string{"bucket failed"}, ofBucket...), say: "secret key does not belong", kind: obs.KindAuth},
		{name: "no such bucket", change: func(_ *cloud, d *pipeline.Doctor) { d.Bucket = "no-such-bucket" },
			want: append([]string{"bucket failed"}, ofBucket...), say: "no such bucket", kind: obs.KindNotFound},
		{name: "no bucket", change: func(_ *cloud, d *pipeline.Doctor) { d.Bucket = "" }, want: append(skipped("bucket"), ofBucket...)},
		{name: "no writing", change: func(_ *cloud, d *pipeline.Doctor) { d.NoWrite = true }, want: skipped("round-trip", "copy")},
		{name: "no right to write", change: func(c *cloud, _ *pipeline.Doctor) {
			c.store.Inject(obstest.Refuse(obstest.OpUploadPart, 403, "AccessDenied"))
		}, want: []string{"round-trip failed", "copy skipped"}, say: "obs:object:PutObject", kind: obs.KindAuth},
		{name: "no copies", change: func(c *cloud, _ *pipeline.Doctor) {
			c.store.Inject(obstest.Refuse(obstest.OpCopyPart, 501, "NotImplemented"))
		}, want: []string{"copy warning"}, say: "NotImplemented"},
		{name: "quota", sim: imstest.Options{Quota: 1}, change: func(c *cloud, _ *pipeline.Doctor) {
			if _, err := c.IMS.CreateImage(t.Context(), &ims.ImageMetadata{Name: "a"}); err != nil {
				t.Fatal(err)
			}
		},
			want: []string{"quota failed"}, say: "1 of 1"},
		{name: "unknown system", change: func(_ *cloud, d *pipeline.Doctor) { d.OSVersion = "Ubuntu 22.04 server 64 bit" },
			want: []string{"os-version failed"}, say: osVersion},
		{name: "no right to list", sim: imstest.Options{Deny: []string{"ims:images:list"}},
			want: []string{"images failed", "tags failed", "os-versions failed", "os-version skipped"}, say: "ims:images:list"},
		{name: "nobody listens", change: func(_ *cloud, d *pipeline.Doctor) { d.Endpoints["obs"] = "http://127.0.0.1:1" },
			want: append(append(skipped("tls.obs", "bucket"), ofBucket...), "connect.obs failed"), say: "refused"},
		{name: "unknown name", change: func(_ *cloud, d *pipeline.Doctor) { d.Endpoints["ims"] = "https://ims.invalid" },
			want: append(append(skipped("connect.ims", "tls.ims"), ofService...), "dns.ims failed"), say: "region"},
		{name: "untrusted certificate", change: func(_ *cloud, d *pipeline.Doctor) { d.Endpoints["ims"] = untrusted.URL },
			want: append([]string{"tls.ims failed"}, ofService...), say: "Nobody this machine trusts"},
		{name: "no TLS there", change: func(c *cloud, d *pipeline.Doctor) {
			d.Endpoints["ims"] = strings.Replace(c.store.URL(), "http:", "https:", 1)
		}, want: append([]string{"tls.ims failed"}, ofService...), say: "plain HTTP"},
		{name: "no endpoint", change: func(_ *cloud, d *pipeline.Doctor) { d.Endpoints["iam"] = "" },
			want: skipped("dns.iam", "connect.iam", "tls.iam", "project")},
		{name: "no keys", change: func(_ *cloud, d *pipeline.Doctor) {
			d.Keys, d.Importer = pipeline.Keys{Err: errors.New("no keys")}, &pipeline.Importer{Region: region}
		}, want: append(append(append(skipped("bucket", "project"), ofBucket...), ofService...), "keys failed"), say: "no keys"},
		{name: "nothing", change: func(_ *cloud, d *pipeline.Doctor) { d.Importer, d.Err = nil, errors.New("no region") },
			want: append(append(append(skipped("bucket", "project"), ofBucket...), ofService...), "configuration failed"), say: "no region"},
		{name: "keys that stay", change: func(_ *cloud, d *pipeline.Doctor) { d.Keys.Fixed = true }, want: []string{"keys warning"}, say: "HUAWEICLOUD_SDK_CREDENTIALS_FILE"},
		{name: "no folder", change: func(_ *cloud, d *pipeline.Doctor) { d.StateDir = filepath.Join(file, "below") },
			want: append(skipped("room"), "state-folder failed"), say: "IMSPREP_STATE_DIR"},
		{name: "a folder to be made", change: func(_ *cloud, d *pipeline.Doctor) { d.StateDir = filepath.Join(d.StateDir, "a", "b") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			headers := map[string]string{"x-default-storage-class": "STANDARD"}
			for k, v := range tc.headers {
				headers[k] = v
			}
			c, stop := newCloud(t, obstest.Options{BucketHeaders: headers}, tc.sim)
			defer stop()
			d := c.doctor(t)
			if tc.change != nil {
				tc.change(c, d)
			}
			var told []pipeline.Check
			list, err := d.Examine(t.Context(), func(c pipeline.Check) { told = append(told, c) })
			if err != nil || len(told) != len(list) {
				t.Fatalf("%v; %d of %d told", err, len(told), len(list))
			}
			got, _ := findings(list)
			want := append(slices.Clone(tc.want), "create skipped")
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("found\n%q, want\n%q", got, want)
			}
			for _, f := range list {
				if f.Summary == "" || (f.Status == pipeline.CheckFailed) != (f.Err != nil) || strings.Contains(f.Summary+f.Hint, obstest.SecretKey) {
					t.Errorf("%+v", f)
				}
			}
			if bad := slices.IndexFunc(list, func(c pipeline.Check) bool {
				return c.Status == pipeline.CheckFailed || c.Status == pipeline.CheckWarning
			}); bad >= 0 {
				if f := list[bad]; !strings.Contains(f.Summary+" "+f.Hint, tc.say) || tc.say == "" || obs.KindOf(f.Err) != tc.kind {
					t.Errorf("%+v, want %q and kind %v", f, tc.say, tc.kind)
				}
			}
			if keys, uploads := c.store.Keys(obstest.Bucket), c.store.Uploads(); len(keys)+len(uploads) > 0 {
				t.Errorf("left in the bucket: %q, %q", keys, uploads)
			}
			if left, err := os.ReadDir(d.StateDir); err == nil && len(left) > 0 {
				t.Errorf("left in the state folder: %v", left)
			}
		})
	}
}

// TestDoctorInterrupted: an end in the middle leaves nothing.
func TestDoctorInterrupted(t *testing.T) {
	c, stop := newCloud(t, obstest.Options{BucketHeaders: tellsAll}, imstest.Options{})
	defer stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.store.Inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Observe, Match: func(*obstest.Request) bool { cancel(); return true }})
	if _, err := c.doctor(t).Examine(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	c.store.Quiet()
	if keys, uploads := c.store.Keys(obstest.Bucket), c.store.Uploads(); len(keys)+len(uploads) > 0 {
		t.Errorf("left in the bucket: %q, %q", keys, uploads)
	}
}
