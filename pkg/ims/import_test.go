// SPDX-License-Identifier: Apache-2.0

package ims_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

// cloud is the simulated service with a RAW disk and its bitmap in a bucket. The simulator checks
// signatures, tokens and requests by code of its own.
type cloud struct {
	t      *testing.T
	server *imstest.Server
	url    string
	sha256 string // of the disk
}

func newCloud(t *testing.T) *cloud {
	t.Helper()
	layout, err := bitmap.Lookup(bitmap.DefaultLayout)
	if err != nil {
		t.Fatal(err)
	}
	disk := make([]byte, 3*layout.BlockSize+512)
	m, err := bitmap.NewMap(int64(len(disk)), layout.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 2*layout.BlockSize + 4095, 3 * layout.BlockSize} {
		disk[off] = 0xa5
		m.MarkRange(off, 1)
	}
	mf, err := layout.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	objects := &imstest.MemoryObjects{}
	objects.AddBucket("my-bucket", imstest.DefaultRegion)
	objects.Put("my-bucket", "dir/disk.raw", disk, "")
	objects.Put("my-bucket", "dir/disk.mf", mf, "")
	objects.Put("my-bucket", "dir/alone.raw", disk, "")
	server := imstest.New(imstest.Options{
		Accounts: []imstest.Account{
			{AccessKey: "AKTEST", SecretKey: "the-secret"},
			{AccessKey: "AKTEMP", SecretKey: "the-secret", SecurityToken: "the-security-token"},
		},
		Users:   []imstest.User{{ID: "u1", Name: "user", Password: "the-password", Domain: "account"}},
		Objects: objects,
	})
	front := httptest.NewServer(server)
	t.Cleanup(func() {
		front.Close()
		server.Close()
	})
	sum := sha256.Sum256(disk)
	return &cloud{t, server, front.URL, hex.EncodeToString(sum[:])}
}

func (c *cloud) client(change func(*ims.Options)) *ims.Client {
	c.t.Helper()
	fast := ims.Backoff{MaxAttempts: 5, BaseDelay: time.Millisecond, MaxDelay: time.Millisecond}
	o := ims.Options{
		Endpoint: c.url, IAMEndpoint: c.url, Region: imstest.DefaultRegion,
		Auth:  ims.AKSK(ims.StaticCredentials(ims.Credentials{AccessKey: "AKTEST", SecretKey: "the-secret"})),
		Retry: fast, SubmitRetry: fast, LookupInterval: time.Millisecond, LookupLimit: time.Minute,
	}
	if change != nil {
		change(&o)
	}
	client, err := ims.New(o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.CloseIdleConnections)
	return client
}

func request() *ims.QuickImport {
	return &ims.QuickImport{
		Name: "web 01", ImageURL: ims.ImageURL("my-bucket", "dir/disk.raw"), MinDisk: 10, OSVersion: "Ubuntu 22.04 server 64bit",
		Architecture: "x86", FirmwareType: "uefi", Description: "from a test",
		Tags: []ims.Tag{{Key: "env", Value: "test"}}, MarkerTag: ims.Tag{Key: "imsprep-run", Value: "a1b2"},
	}
}

var atOnce = ims.WaitOptions{First: -1, Interval: time.Millisecond, MaxInterval: time.Millisecond, Limit: time.Minute}

func TestImportAgainstSimulator(t *testing.T) {
	asTemporary := func(o *ims.Options) {
		o.Auth = ims.AKSK(ims.StaticCredentials(ims.Credentials{
			AccessKey: "AKTEMP", SecretKey: "the-secret", SecurityToken: "the-security-token",
		}))
	}
	asUser := func(o *ims.Options) {
		o.Auth = ims.PasswordToken(ims.Password{UserName: "user", DomainName: "account", Password: "the-password"})
	}
	for _, c := range []struct {
		name       string
		gen        ims.Generation
		faults     imstest.Faults
		options    func(*ims.Options)
		change     func(*ims.QuickImport)
		generation ims.Generation
		recovered  bool
	}{
		{name: "plain", generation: ims.GenOld},
		{name: "new generation", gen: ims.GenNew, generation: ims.GenNew},
		{name: "new generation is missing", gen: ims.GenNew, faults: imstest.Faults{NoNewGeneration: true}, generation: ims.GenOld},
		{name: "old generation is missing", faults: imstest.Faults{NoOldGeneration: true}, generation: ims.GenNew},
		{name: "no progress call", faults: imstest.Faults{NoProgressCall: true}, generation: ims.GenOld},
		{name: "temporary keys", options: asTemporary, generation: ims.GenOld},
		{name: "password", options: asUser, generation: ims.GenOld},
		{name: "password, token expires", options: asUser, faults: imstest.Faults{ExpireTokens: 1}, generation: ims.GenOld},
		{name: "throttled", faults: imstest.Faults{Throttle: 2}, generation: ims.GenOld},
		{name: "too many tasks", faults: imstest.Faults{FlowControl: 3}, generation: ims.GenOld},
		{name: "answer lost", faults: imstest.Faults{LoseImportAnswers: 1}, generation: ims.GenOld, recovered: true},
		{name: "image id not told", faults: imstest.Faults{HideImageID: true}, generation: ims.GenOld},
		{name: "data disk", generation: ims.GenOld, change: func(r *ims.QuickImport) {
			r.Type, r.OSType, r.OSVersion, r.Architecture, r.FirmwareType = ims.TypeDataImage, "Linux", "", "", ""
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := context.Background()
			cloud := newCloud(t)
			client := cloud.client(c.options)
			// What is asked before an import.
			if used, quota, err := client.Quota(ctx); err != nil || used != 0 || quota == 0 {
				t.Fatalf("quota %d of %d, %v", used, quota, err)
			}
			if id, err := client.ProjectID(ctx); err != nil || id != cloud.server.ProjectID() {
				t.Fatalf("project %q, %v", id, err)
			}
			cloud.server.SetFaults(c.faults)
			r := request()
			if c.change != nil {
				c.change(r)
			}
			sub, err := client.QuickImport(ctx, r, c.gen)
			if err != nil {
				t.Fatal(err)
			}
			if sub.Generation != c.generation || sub.Recovered != c.recovered || (sub.ImageID != "") != c.recovered || (sub.JobID == "") != c.recovered {
				t.Errorf("submitted %+v", sub)
			}
			imageID := sub.ImageID
			if sub.JobID != "" {
				o := atOnce
				o.MarkerTag, o.Name, o.Since = r.MarkerTag, r.Name, sub.SubmittedAt
				job, err := client.WaitJob(ctx, sub.JobID, o)
				if err != nil {
					t.Fatal(err)
				}
				imageID = job.ImageID
			}
			image, err := client.WaitImage(ctx, imageID, atOnce)
			if err != nil {
				t.Fatal(err)
			}
			if image.Name != r.Name || image.MinDisk != 10 || image.OSVersion != r.OSVersion && r.OSVersion != "" || image.Description != r.Description {
				t.Errorf("image %+v", image)
			}
			if v, ok := image.Tag("env"); !ok || v != "test" {
				t.Errorf("tags %v", image.Tags)
			}
			if got := image.Attributes[imstest.AttrContentSHA256]; got != cloud.sha256 {
				t.Errorf("content %v, want %s", got, cloud.sha256)
			}
			// One import, one image.
			list, err := client.ListImages(ctx, ims.ImageFilter{ImageType: "private"})
			if err != nil || len(list) != 1 || list[0].ID != imageID {
				t.Errorf("images %+v, %v", list, err)
			}
			if err := client.DeleteImage(ctx, imageID); err != nil {
				t.Error(err)
			}
			if _, err := client.Image(ctx, imageID); ims.KindOf(err) != ims.KindNotFound {
				t.Errorf("after deleting: %v", err)
			}
		})
	}
}

func TestRefusalsOfSimulator(t *testing.T) {
	for _, c := range []struct {
		name    string
		options func(*ims.Options)
		faults  imstest.Faults
		change  func(*ims.QuickImport)
		kind    ims.Kind
		code    string
		hint    string
	}{
		{name: "no bitmap", change: func(r *ims.QuickImport) { r.ImageURL = "my-bucket:dir/alone.raw" }, kind: ims.KindInvalid, code: "IMG.0158", hint: ".mf"},
		{name: "no object", change: func(r *ims.QuickImport) { r.ImageURL = "my-bucket:nothing.raw" }, kind: ims.KindInvalid, code: "IMG.0057", hint: "object"},
		{name: "wrong secret", kind: ims.KindAuth, code: "APIGW.0301", hint: "secret key", options: func(o *ims.Options) {
			o.Auth = ims.AKSK(ims.StaticCredentials(ims.Credentials{AccessKey: "AKTEST", SecretKey: "wrong-secret"}))
		}},
		{name: "wrong password", kind: ims.KindAuth, hint: "credentials", options: func(o *ims.Options) {
			o.Auth = ims.PasswordToken(ims.Password{UserName: "user", DomainName: "account", Password: "wrong-password"})
		}},
		{name: "wrong clock", faults: imstest.Faults{ClockSkew: time.Hour}, kind: ims.KindAuth, hint: "behind the service's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cloud := newCloud(t)
			cloud.server.SetFaults(c.faults)
			r := request()
			if c.change != nil {
				c.change(r)
			}
			_, err := cloud.client(c.options).QuickImport(context.Background(), r, ims.GenAuto)
			var e *ims.Error
			if !errors.As(err, &e) || e.Kind != c.kind || c.code != "" && e.Code != c.code || e.RequestID == "" && c.code != "" {
				t.Fatalf("got %+v", err)
			}
			if !strings.Contains(e.Hint(), c.hint) {
				t.Errorf("hint %q, want %q", e.Hint(), c.hint)
			}
			if strings.Contains(err.Error(), "wrong-") {
				t.Errorf("a secret shows in %v", err)
			}
		})
	}
}

func TestFailedJobOfSimulator(t *testing.T) {
	ctx := context.Background()
	cloud := newCloud(t)
	cloud.server.SetFaults(imstest.Faults{FailJobs: "IMG.0057", FailReason: "made to fail"})
	client := cloud.client(nil)
	sub, err := client.QuickImport(ctx, request(), ims.GenAuto)
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.WaitJob(ctx, sub.JobID, atOnce)
	var failed *ims.JobFailedError
	if !errors.As(err, &failed) || failed.Code != "IMG.0057" || !strings.Contains(err.Error(), "made to fail") {
		t.Errorf("got %v", err)
	}
	if _, err := client.Job(ctx, "0123456789abcdef0123456789abcdef"); err == nil {
		t.Error("an unknown job is known")
	}
}

func TestListsOfSimulator(t *testing.T) {
	ctx := context.Background()
	cloud := newCloud(t)
	client := cloud.client(func(o *ims.Options) {
		o.Auth = ims.PasswordToken(ims.Password{UserName: "user", DomainName: "account", Password: "the-password"})
	})
	list, err := client.OSVersions(ctx, "x86")
	if err != nil || len(list) == 0 {
		t.Fatalf("got %v, %v", list, err)
	}
	if got := ims.NearestOSVersions("ubuntu 22.04", list, 1); len(got) != 1 || got[0] != "Ubuntu 22.04 server 64bit" {
		t.Errorf("got %q", got)
	}
	// Keys exchanged for the token authenticate as well.
	keys := client.ObjectCredentials(time.Hour)
	if _, _, err := cloud.client(func(o *ims.Options) { o.Auth = ims.AKSK(keys) }).Quota(ctx); err != nil {
		t.Error(err)
	}
	cloud.server.SetFaults(imstest.Faults{NoOSVersions: true})
	if _, err := client.OSVersions(ctx); ims.KindOf(err) != ims.KindUnsupported && ims.KindOf(err) != ims.KindNotFound {
		t.Errorf("got %v", err)
	}
}
