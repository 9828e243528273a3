// SPDX-License-Identifier: Apache-2.0

package ims_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

const partner = "0000000000000000000000000000beef"

// service is a simulator with a few disks and a project to share with.
type service struct {
	*imstest.Server
	t       *testing.T
	url     string
	objects *imstest.MemoryObjects
	disk    []byte
}

func newService(t *testing.T) *service { return serviceWith(t, imstest.Options{}) }

func serviceWith(t *testing.T, o imstest.Options) *service {
	t.Helper()
	s := &service{t: t, objects: &imstest.MemoryObjects{}, disk: make([]byte, 1<<20)}
	copy(s.disk[4096:], "a disk")
	s.objects.AddBucket("bkt", imstest.DefaultRegion)
	for _, key := range []string{"a.raw", "b.raw", "c.raw", "cd.iso"} {
		s.objects.Put("bkt", key, s.disk, "")
	}
	s.objects.Put("bkt", "wrong.qcow2", append([]byte("QFI\xfb"), s.disk...), "")
	o.Accounts = []imstest.Account{{AccessKey: "AKTEST", SecretKey: "the-secret"}}
	o.Users = append(o.Users, imstest.User{ID: "u1", Name: "user", Password: "the-password", Domain: "account"})
	o.Partners = []imstest.Project{{ID: partner, Name: "partner"}}
	o.Objects, o.TempDir = s.objects, t.TempDir()
	s.Server = imstest.New(o)
	front := httptest.NewServer(s.Server)
	s.url = front.URL
	t.Cleanup(func() { front.Close(); s.Close() })
	return s
}

func (s *service) client(change func(*ims.Options)) *ims.Client {
	s.t.Helper()
	fast := ims.Backoff{MaxAttempts: 3, BaseDelay: time.Millisecond, MaxDelay: time.Millisecond}
	o := ims.Options{
		Endpoint: s.url, IAMEndpoint: s.url, Region: imstest.DefaultRegion,
		Auth:  ims.AKSK(ims.StaticCredentials(ims.Credentials{AccessKey: "AKTEST", SecretKey: "the-secret"})),
		Retry: fast, SubmitRetry: fast, LookupInterval: time.Millisecond, LookupLimit: time.Minute,
	}
	if change != nil {
		change(&o)
	}
	c, err := ims.New(o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.CloseIdleConnections)
	return c
}

var quick = ims.WaitOptions{First: -1, Interval: time.Millisecond, MaxInterval: 5 * time.Millisecond, Limit: time.Minute}

// done waits for a job that was started without an error.
func (s *service) done(c *ims.Client) func(string, error) *ims.Job {
	return func(id string, err error) *ims.Job {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
		j, err := c.WaitJob(s.t.Context(), id, quick)
		if err != nil {
			s.t.Fatal(err)
		}
		return j
	}
}

// imported makes an image of bkt:a.raw.
func (s *service) imported(c *ims.Client, name string, tags ...ims.Tag) string {
	s.t.Helper()
	sub, err := c.CommonImport(s.t.Context(), &ims.CommonImport{Name: name, ImageURL: "bkt:a.raw", MinDisk: 1, Tags: tags}, ims.GenOld)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.done(c)(sub.JobID, nil).ImageID
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind ims.Kind) {
	t.Helper()
	if err == nil || ims.KindOf(err) != kind {
		t.Errorf("error %v of kind %v, want %v", err, ims.KindOf(err), kind)
	}
}

func TestCommonImport(t *testing.T) {
	s := newService(t)
	c := s.client(nil)
	ctx := t.Context()
	sub := must[*ims.Submitted](t)(c.CommonImport(ctx, &ims.CommonImport{
		Name: "web", ImageURL: "bkt:a.raw", MinDisk: 1, OSVersion: "Ubuntu 22.04 server 64bit", MinRAM: 512, MaxRAM: 4096,
		KMSKey: "key-1", FirmwareType: "uefi", Configure: true, Description: "d", Tags: []ims.Tag{{Key: "k", Value: "v"}},
		DataImages: []ims.DataImage{{ImageURL: "bkt:b.raw", MinDisk: 2000}, {ImageURL: "bkt:c.raw", MinDisk: 1, Name: "logs"}},
	}, ims.GenNew))
	if sub.Generation != ims.GenNew {
		t.Errorf("taken by the %v generation", sub.Generation)
	}
	j := s.done(c)(sub.JobID, nil)
	if len(j.ImageIDs) != 3 || len(j.SubJobs) != 3 {
		t.Fatalf("job %+v", j)
	}
	for n, want := range []struct {
		name, env string
		minDisk   int64
	}{{"web", "FusionCompute", 1}, {"web-data1", "DataImage", 2000}, {"logs", "DataImage", 1}} {
		i := must[*ims.Image](t)(c.Image(ctx, j.ImageIDs[n]))
		if i.Name != want.name || i.VirtualEnvType != want.env || i.MinDisk != want.minDisk || i.Status != ims.ImageActive ||
			i.Attributes["__system__cmkid"] != "key-1" || i.Size != int64(len(s.disk)) {
			t.Errorf("image %d: %+v", n, i)
		}
	}
	system := must[*ims.Image](t)(c.Image(ctx, j.ImageIDs[0]))
	if system.OSVersion != "Ubuntu 22.04 server 64bit" || system.MinRAM != 512 || system.Attributes["max_ram"] != "4096" ||
		system.FirmwareType != "uefi" {
		t.Errorf("%+v", system)
	}

	// An ISO, a data disk, and a file that isn't what its name says.
	sub = must[*ims.Submitted](t)(c.CommonImport(ctx, &ims.CommonImport{
		Name: "cd", ImageURL: "bkt:cd.iso", MinDisk: 10, Type: ims.TypeISO, OSVersion: "Ubuntu 22.04 server 64bit",
	}, ims.GenAuto))
	s.done(c)(sub.JobID, nil)
	sub = must[*ims.Submitted](t)(c.ImportDataDisk(ctx, &ims.DataDiskImport{
		Name: "data", ImageURL: "bkt:a.raw", MinDisk: 40, OSType: "Windows",
	}, ims.GenAuto))
	j = s.done(c)(sub.JobID, nil)
	if i := must[*ims.Image](t)(c.Image(ctx, j.ImageID)); i.OSType != "Windows" || i.VirtualEnvType != "DataImage" {
		t.Errorf("data disk %+v", i)
	}
	sub = must[*ims.Submitted](t)(c.ImportDataDisk(ctx, &ims.DataDiskImport{Name: "bad", ImageURL: "bkt:wrong.qcow2", MinDisk: 40}, ims.GenAuto))
	_, err := c.WaitJob(ctx, sub.JobID, quick)
	var failed *ims.JobFailedError
	if !errors.As(err, &failed) || failed.Code != "IMG.0072" {
		t.Errorf("a QCOW2 that isn't one: %v", err)
	}
}

// TestCommonImportConverts: the image has the content of the disk in the QCOW2 file, by the digest
// of testdata/manifest.tsv, which is qemu-img's.
func TestCommonImportConverts(t *testing.T) {
	file, err := os.ReadFile("../../testdata/ext4-zlib.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	s := newService(t)
	s.objects.Put("bkt", "ext4.qcow2", file, "")
	c := s.client(nil)
	sub := must[*ims.Submitted](t)(c.CommonImport(t.Context(), &ims.CommonImport{Name: "ext4", ImageURL: "bkt:ext4.qcow2", MinDisk: 1}, ims.GenAuto))
	i := must[*ims.Image](t)(c.Image(t.Context(), s.done(c)(sub.JobID, nil).ImageID))
	if got := i.Attributes[imstest.AttrContentSHA256]; got != "7241d55779a25f9097288a215cb1e130fca9d6e98ca4f1dfd77a49f2b3c4ad20" {
		t.Errorf("content %v", got)
	}
}

func TestCommonImportRules(t *testing.T) {
	base := func() *ims.CommonImport { return &ims.CommonImport{Name: "n", ImageURL: "bkt:a.qcow2", MinDisk: 40} }
	if err := base().Validate(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(*ims.CommonImport){
		"name":             func(r *ims.CommonImport) { r.Name = " x" },
		"image_url":        func(r *ims.CommonImport) { r.ImageURL = "bkt:a.txt" },
		"min_disk":         func(r *ims.CommonImport) { r.MinDisk = 1025 },
		"os_version":       func(r *ims.CommonImport) { r.Type, r.ImageURL = ims.TypeISO, "bkt:a.iso" },
		"cmk_id":           func(r *ims.CommonImport) { r.Type, r.KMSKey = ims.TypeBMS, "k" },
		"max_ram":          func(r *ims.CommonImport) { r.MinRAM, r.MaxRAM = 2, 1 },
		"hw_firmware_type": func(r *ims.CommonImport) { r.Architecture, r.FirmwareType = "arm", "bios" },
		"data_images":      func(r *ims.CommonImport) { r.DataImages = make([]ims.DataImage, 4) },
		"data_images[0].image_url": func(r *ims.CommonImport) {
			r.DataImages = []ims.DataImage{{ImageURL: r.ImageURL, MinDisk: 1}}
		},
		"image_tags": func(r *ims.CommonImport) { r.Tags = []ims.Tag{{Key: "a b"}} },
	} {
		r := base()
		change(r)
		var v *ims.ValidationError
		if err := r.Validate(); !errors.As(err, &v) || !slices.ContainsFunc(v.Problems, func(p ims.Problem) bool { return p.Field == field }) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestNativeUpload(t *testing.T) {
	s := newService(t)
	keys := s.client(nil)
	token := s.client(func(o *ims.Options) {
		o.Auth = ims.PasswordToken(ims.Password{UserName: "user", DomainName: "account", Password: "the-password"})
	})
	ctx := t.Context()
	meta := &ims.ImageMetadata{
		Name: "up", OSVersion: "Ubuntu 22.04 server 64bit", DiskFormat: "raw", MinDisk: 10, Tags: []ims.Tag{{Key: "k", Value: "v"}},
		Attributes: map[string]string{"hw_firmware_type": "uefi"},
	}
	i := must[*ims.Image](t)(keys.CreateImage(ctx, meta))
	if i.Status != ims.ImageQueued || i.FirmwareType != "uefi" || i.OSVersion != meta.OSVersion {
		t.Errorf("%+v", i)
	}
	// What fits into a signed request goes with an access key.
	ok(t, keys.UploadImageFile(ctx, i.ID, bytes.NewReader(s.disk), int64(len(s.disk))))
	i = must[*ims.Image](t)(keys.WaitImage(ctx, i.ID, quick))
	if i.Size != int64(len(s.disk)) {
		t.Errorf("size %d", i.Size)
	}

	large := make([]byte, ims.MaxSignedBody+1)
	large[0] = 1
	meta.Name = "up2"
	i = must[*ims.Image](t)(keys.CreateImage(ctx, meta))
	err := keys.UploadImageFile(ctx, i.ID, bytes.NewReader(large), int64(len(large)))
	wantKind(t, err, ims.KindInvalid)
	if err == nil || !strings.Contains(err.Error(), "12 MB") {
		t.Errorf("%v", err)
	}
	wantKind(t, keys.UploadImageFile(ctx, i.ID, bytes.NewReader(nil), ims.MaxNativeUpload), ims.KindInvalid)
	ok(t, token.UploadImageFile(ctx, i.ID, bytes.NewReader(large), int64(len(large))))
	if i = must[*ims.Image](t)(token.Image(ctx, i.ID)); i.Status != ims.ImageActive || i.Size != int64(len(large)) {
		t.Errorf("%+v", i)
	}
	// It has its content.
	wantKind(t, token.UploadImageFile(ctx, i.ID, bytes.NewReader(large), int64(len(large))), ims.KindConflict)

	meta.Name = "registered"
	i = must[*ims.Image](t)(keys.CreateImage(ctx, meta))
	s.done(keys)(keys.RegisterImage(ctx, i.ID, "bkt:b.raw"))
	if i = must[*ims.Image](t)(keys.NativeImage(ctx, i.ID)); i.Status != ims.ImageActive {
		t.Errorf("%+v", i)
	}
	ok(t, keys.DeleteWholeImage(ctx, i.ID))
	_, err = keys.NativeImage(ctx, i.ID)
	wantKind(t, err, ims.KindNotFound)
}

func TestUpdateImage(t *testing.T) {
	s := newService(t)
	c := s.client(nil)
	ctx := t.Context()
	id := s.imported(c, "web")
	i := must[*ims.Image](t)(c.UpdateImage(ctx, id,
		ims.Change{Op: ims.ChangeReplace, Attribute: "name", Value: "web-2"},
		ims.Change{Op: ims.ChangeReplace, Attribute: "min_ram", Value: "1024"},
		ims.Change{Op: ims.ChangeAdd, Attribute: "owner_team", Value: "blue"}))
	if i.Name != "web-2" || i.MinRAM != 1024 || i.Attributes["owner_team"] != "blue" {
		t.Errorf("%+v", i)
	}
	i = must[*ims.Image](t)(c.UpdateNativeImage(ctx, id, ims.Change{Op: ims.ChangeRemove, Attribute: "owner_team"}))
	if _, there := i.Attributes["owner_team"]; there {
		t.Errorf("%+v", i)
	}
	for _, ch := range []ims.Change{
		{Op: "move", Attribute: "name", Value: "x"}, {Op: ims.ChangeAdd, Attribute: "__os_version", Value: "x"},
		{Op: ims.ChangeReplace, Attribute: "hw_firmware_type", Value: "efi"}, {Op: ims.ChangeRemove, Attribute: "name"},
		{Op: ims.ChangeAdd, Attribute: "a/b", Value: "x"}, {Op: ims.ChangeReplace, Attribute: "__description", Value: "<"},
	} {
		if _, err := c.UpdateImage(ctx, id, ch); ims.KindOf(err) != ims.KindInvalid {
			t.Errorf("%+v: %v", ch, err)
		}
	}
}

func TestListEveryWay(t *testing.T) {
	s := newService(t)
	c := s.client(nil)
	ctx := t.Context()
	a, b := s.imported(c, "a", ims.Tag{Key: "env", Value: "prod"}), s.imported(c, "b")
	yes := false
	ids := func(list []ims.Image, err error) []string {
		t.Helper()
		ok(t, err)
		var ids []string
		for _, i := range list {
			ids = append(ids, i.ID)
		}
		return ids
	}
	private := func(f ims.ImageFilter) ims.ImageFilter { f.ImageType = "private"; return f }
	for name, f := range map[string]struct {
		filter ims.ImageFilter
		want   []string
	}{
		"all":      {private(ims.ImageFilter{SortKey: "name", SortDir: "asc"}), []string{a, b}},
		"marker":   {private(ims.ImageFilter{SortKey: "name", SortDir: "asc", Marker: a}), []string{b}},
		"limit":    {private(ims.ImageFilter{SortKey: "name", SortDir: "asc", Limit: 1}), []string{a}},
		"tag":      {ims.ImageFilter{Tag: ims.Tag{Key: "env", Value: "prod"}}, []string{a}},
		"min disk": {private(ims.ImageFilter{MinDisk: 2}), nil},
		"not":      {private(ims.ImageFilter{Protected: &yes, Name: "b", OSBit: "64", ContainerFormat: "bare"}), []string{b}},
		"extra":    {private(ims.ImageFilter{Name: "a", Extra: url.Values{"__support_kvm": {"true"}}}), []string{a}},
	} {
		if got := ids(c.ListImages(ctx, f.filter)); !slices.Equal(got, f.want) {
			t.Errorf("%s: %v, want %v", name, got, f.want)
		}
		if got := ids(c.NativeImages(ctx, f.filter)); !slices.Equal(got, f.want) {
			t.Errorf("%s, native: %v, want %v", name, got, f.want)
		}
	}
	details := must[[]ims.ImageDetailV11](t)(c.ImageDetailsV11(ctx, url.Values{"name": {"a"}}))
	if len(details) != 1 || details[0].ID != a || details[0].Size != int64(len(s.disk)) || strings.HasSuffix(details[0].CreatedAt, "Z") {
		t.Errorf("%+v", details)
	}
	if v := must[[]ims.APIVersion](t)(c.Versions(ctx)); len(v) < 2 {
		t.Errorf("%+v", v)
	}
	if v := must[*ims.APIVersion](t)(c.Version(ctx, "v2")); v.ID != "v2" || v.Status == "" {
		t.Errorf("%+v", v)
	}
	for _, name := range []string{"image", "images", "member", "members"} {
		if m := must[map[string]any](t)(c.Schema(ctx, name)); m["name"] != name {
			t.Errorf("%s: %v", name, m)
		}
	}
	_, err := c.Schema(ctx, "task")
	wantKind(t, err, ims.KindInvalid)
}

func TestTags(t *testing.T) {
	s := newService(t)
	c := s.client(nil)
	ctx := t.Context()
	a, b := s.imported(c, "a"), s.imported(c, "b")
	tags := func(want ...ims.Tag) {
		t.Helper()
		if got := must[[]ims.Tag](t)(c.Tags(ctx, a)); !slices.Equal(got, want) {
			t.Errorf("tags %v, want %v", got, want)
		}
	}
	ok(t, c.AddTag(ctx, a, ims.Tag{Key: "env", Value: "test"}))
	ok(t, c.AddTag(ctx, a, ims.Tag{Key: "env", Value: "prod"}))
	ok(t, c.AddTags(ctx, a, ims.Tag{Key: "x", Value: "1"}, ims.Tag{Key: "y"}))
	ok(t, c.SetTag(ctx, a, ims.Tag{Key: "x", Value: "2"}))
	ok(t, c.AddNativeTag(ctx, a, "alone"))
	tags(ims.Tag{Key: "env", Value: "prod"}, ims.Tag{Key: "x", Value: "2"}, ims.Tag{Key: "y"}, ims.Tag{Key: "alone"})
	ok(t, c.AddTag(ctx, b, ims.Tag{Key: "env", Value: "test"}))

	if got := must[[]string](t)(c.ListTags(ctx, ims.ImageFilter{ID: b}, 1, 10)); !slices.Equal(got, []string{"env=test"}) {
		t.Errorf("%v", got)
	}
	all := must[[]ims.TagValues](t)(c.ProjectTags(ctx))
	if i := slices.IndexFunc(all, func(v ims.TagValues) bool { return v.Key == "env" }); i < 0 || len(all[i].Values) != 2 {
		t.Errorf("%v", all)
	}
	for name, f := range map[string]struct {
		filter ims.TagFilter
		want   []string
	}{
		"all":     {ims.TagFilter{All: []ims.TagValues{{Key: "env", Values: []string{"prod"}}, {Key: "x"}}}, []string{a}},
		"any":     {ims.TagFilter{Any: []ims.TagValues{{Key: "env", Values: []string{"prod", "test"}}}}, []string{a, b}},
		"not any": {ims.TagFilter{NotAny: []ims.TagValues{{Key: "x"}}}, []string{b}},
		"not all": {ims.TagFilter{NotAll: []ims.TagValues{{Key: "env", Values: []string{"test"}}}}, []string{a}},
		"name":    {ims.TagFilter{Name: "b"}, []string{b}},
		"id":      {ims.TagFilter{ID: a}, []string{a}},
		"without": {ims.TagFilter{Without: true}, nil},
		"limit":   {ims.TagFilter{Limit: 1}, []string{a}},
	} {
		var got []string
		for _, i := range must[[]ims.TaggedImage](t)(c.ImagesByTags(ctx, f.filter)) {
			got = append(got, i.ID)
		}
		if !slices.Equal(got, f.want) {
			t.Errorf("%s: %v, want %v", name, got, f.want)
		}
		if n := must[int](t)(c.CountImagesByTags(ctx, f.filter)); f.filter.Limit == 0 && n != len(f.want) {
			t.Errorf("%s: count %d", name, n)
		}
	}

	ok(t, c.DeleteTag(ctx, a, "env"))
	wantKind(t, c.DeleteTag(ctx, a, "env"), ims.KindNotFound)
	ok(t, c.DeleteTags(ctx, a, "x", "never"))
	ok(t, c.DeleteTagsV1(ctx, a, ims.Tag{Key: "y"}))
	tags(ims.Tag{Key: "alone"})
	ok(t, c.DeleteNativeTag(ctx, a, "alone"))
	tags()
	wantKind(t, c.AddTag(ctx, a, ims.Tag{Key: "a b"}), ims.KindInvalid)
	wantKind(t, c.DeleteTag(ctx, a, "a/b"), ims.KindInvalid)
	wantKind(t, c.AddNativeTag(ctx, a, "a=b"), ims.KindInvalid)
}

func TestSharing(t *testing.T) {
	s := newService(t)
	owner := s.client(nil)
	other := s.client(func(o *ims.Options) { o.ProjectID = partner })
	ctx := t.Context()
	id := s.imported(owner, "web")
	shared := func(status string) int {
		t.Helper()
		return len(must[[]ims.Image](t)(other.ListImages(ctx, ims.ImageFilter{Visibility: "shared", MemberStatus: status})))
	}
	j := s.done(owner)(owner.ShareImages(ctx, []string{id}, []string{partner}))
	if !slices.Equal(j.ImageIDs, []string{id}) || shared("") != 0 || shared(ims.MemberPending) != 1 {
		t.Errorf("job %+v", j)
	}
	if _, err := other.CopyImage(ctx, id, ims.Copy{Name: "mine"}, ims.GenAuto); err == nil {
		t.Error("an image that was not accepted was copied")
	}
	s.done(other)(other.AnswerShares(ctx, []string{id}, partner, ims.MemberAccepted, ""))
	if shared("") != 1 {
		t.Error("the accepted image isn't listed")
	}
	for _, read := range []func(context.Context, string) ([]ims.Member, error){owner.Members, owner.NativeMembers, other.Members} {
		list := must[[]ims.Member](t)(read(ctx, id))
		if len(list) != 1 || list[0].ProjectID != partner || list[0].Status != ims.MemberAccepted || list[0].ImageID != id {
			t.Errorf("%+v", list)
		}
	}
	if m := must[*ims.Member](t)(owner.Member(ctx, id, partner)); m.Status != ims.MemberAccepted {
		t.Errorf("%+v", m)
	}
	// Only the owner may change it.
	if _, err := other.UpdateImage(ctx, id, ims.Change{Op: ims.ChangeReplace, Attribute: "name", Value: "x"}); ims.KindOf(err) != ims.KindPermission {
		t.Errorf("%v", err)
	}
	s.done(owner)(owner.UnshareImages(ctx, []string{id}, []string{partner}))
	if _, err := other.Image(ctx, id); ims.KindOf(err) != ims.KindNotFound {
		t.Errorf("%v", err)
	}

	must[*ims.Member](t)(owner.AddNativeMember(ctx, id, partner))
	_, err := owner.AddNativeMember(ctx, id, partner)
	wantKind(t, err, ims.KindConflict)
	must[*ims.Member](t)(other.UpdateNativeMember(ctx, id, partner, ims.MemberRejected, ""))
	if m := must[*ims.Member](t)(owner.NativeMember(ctx, id, partner)); m.Status != ims.MemberRejected {
		t.Errorf("%+v", m)
	}
	ok(t, owner.DeleteNativeMember(ctx, id, partner))
	if list := must[[]ims.Member](t)(owner.Members(ctx, id)); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	_, err = owner.ShareImages(ctx, []string{id}, []string{"unknown"})
	if e := new(ims.Error); !errors.As(err, &e) || e.Code != "IMG.0108" {
		t.Errorf("%v", err)
	}
	_, err = owner.ShareImages(ctx, nil, []string{partner})
	wantKind(t, err, ims.KindInvalid)
}

func TestCopyAndExport(t *testing.T) {
	s := newService(t)
	c := s.client(nil)
	ctx := t.Context()
	id := s.imported(c, "web")
	sub := must[*ims.Submitted](t)(c.CopyImage(ctx, id, ims.Copy{Name: "secret", KMSKey: "key-1", Description: "d"}, ims.GenNew))
	copied := s.done(c)(sub.JobID, nil).ImageID
	if i := must[*ims.Image](t)(c.Image(ctx, copied)); i.Status != ims.ImageActive || i.Attributes["__system__cmkid"] != "key-1" || copied == id {
		t.Errorf("%+v", i)
	}
	region := ims.RegionCopy{Name: "there", Region: "local-2", ProjectName: "local-2", AgencyName: "ims_agency"}
	if j := s.done(c)(c.CopyImageToRegion(ctx, id, region)); j.ImageID == "" || j.ImageName != "there" {
		t.Errorf("%+v", j)
	}
	_, err := c.CopyImageToRegion(ctx, copied, region)
	if e := new(ims.Error); !errors.As(err, &e) || e.Code != "IMG.0143" {
		t.Errorf("encrypted: %v", err)
	}
	s.done(c)(c.ExportImage(ctx, id, ims.Export{BucketURL: "bkt:out.qcow2", Format: "qcow2"}, ims.GenAuto))
	s.done(c)(c.ExportImage(ctx, id, ims.Export{BucketURL: "bkt:out.zvhd2", Quick: true}, ims.GenNew))
	if _, _, err := s.objects.Stat(ctx, "bkt", "out.qcow2"); err != nil {
		t.Error(err)
	}
	_, err = c.ExportImage(ctx, id, ims.Export{BucketURL: "bkt:out.qcow2", Format: "vhd"}, ims.GenAuto)
	if e := new(ims.Error); !errors.As(err, &e) || e.Code != "IMG.0070" {
		t.Errorf("the object is there: %v", err)
	}
	for _, e := range []ims.Export{{BucketURL: "bkt:x"}, {BucketURL: "bkt:x", Format: "vhd", Quick: true}, {BucketURL: "x", Format: "vhd"}} {
		_, err := c.ExportImage(ctx, id, e, ims.GenAuto)
		wantKind(t, err, ims.KindInvalid)
	}
}

// TestLostAnswers: what starts a job is never sent twice when it may have been carried out.
func TestLostAnswers(t *testing.T) {
	s := newService(t)
	c := s.client(nil)
	ctx := t.Context()
	id := s.imported(c, "web")
	sent := 0
	s.SetFaults(imstest.Faults{Hook: func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			return false
		}
		sent++
		w.WriteHeader(http.StatusGatewayTimeout)
		return true
	}})
	for name, call := range map[string]func() error{
		"export": func() error {
			_, err := c.ExportImage(ctx, id, ims.Export{BucketURL: "bkt:x.vhd", Format: "vhd"}, ims.GenAuto)
			return err
		},
		"share":    func() error { _, err := c.ShareImages(ctx, []string{id}, []string{partner}); return err },
		"unshare":  func() error { _, err := c.UnshareImages(ctx, []string{id}, []string{partner}); return err },
		"answer":   func() error { _, err := c.AnswerShares(ctx, []string{id}, partner, "accepted", ""); return err },
		"register": func() error { _, err := c.RegisterImage(ctx, id, "bkt:a.raw"); return err },
		"create":   func() error { _, err := c.CreateImage(ctx, &ims.ImageMetadata{Name: "n"}); return err },
		"region": func() error {
			_, err := c.CopyImageToRegion(ctx, id, ims.RegionCopy{Name: "n", Region: "local-2", ProjectName: "local-2", AgencyName: "a"})
			return err
		},
	} {
		sent = 0
		err := call()
		var lost *ims.LostAnswerError
		if !errors.As(err, &lost) || sent != 1 || lost.Hint() == "" || ims.KindOf(err).Temporary() {
			t.Errorf("%s: sent %d times, %v", name, sent, err)
		}
	}
	// What does no harm twice is repeated.
	sent = 0
	if err := c.AddTag(ctx, id, ims.Tag{Key: "k"}); err == nil || sent != 3 {
		t.Errorf("tag: sent %d times, %v", sent, err)
	}
}
