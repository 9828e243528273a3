// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"encoding/json"
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"testing"
)

const sampleImage = `{"id":"498cc67e-7795-482c-8c47-32bcece2d7ec","name":"web-01","owner":"p1","status":"active",
 "visibility":"private","protected":false,"tags":["run=a1b2","old.x.y","alone"],"container_format":"bare","disk_format":"zvhd2",
 "min_disk":40,"min_ram":0,"max_ram":"","size":null,"virtual_size":null,"checksum":"d41d8","created_at":"2026-01-02T03:04:05Z",
 "updated_at":"2026-01-02T03:09:05Z","active_at":"2026-01-02T03:09:05Z","__os_type":"Linux","__os_version":"Ubuntu 22.04 server 64bit",
 "__os_bit":"64","__platform":"Ubuntu","__description":" two  blanks ","__imagetype":"private","virtual_env_type":"FusionCompute",
 "__image_source_type":"uds","__image_size":"42949672960","__support_arm":"true","__root_origin":"file","__isregistered":"true",
 "__system_support_market":true,"__data_origin":null,"hw_firmware_type":"uefi","enterprise_project_id":"0","__content_sha256":"abc"}`

func TestImageDecoding(t *testing.T) {
	var i Image
	if err := json.Unmarshal([]byte(sampleImage), &i); err != nil {
		t.Fatal(err)
	}
	want := Image{
		ID: testImage, Name: "web-01", Owner: "p1", Status: "active", Visibility: "private", Tags: []string{"run=a1b2", "old.x.y", "alone"},
		ContainerFormat: "bare", DiskFormat: "zvhd2", MinDisk: 40, Size: 42949672960, CreatedAt: "2026-01-02T03:04:05Z",
		UpdatedAt: "2026-01-02T03:09:05Z", OSType: "Linux", OSVersion: "Ubuntu 22.04 server 64bit", OSBit: "64", Platform: "Ubuntu",
		Description: " two  blanks ", ImageType: "private", VirtualEnvType: "FusionCompute", FirmwareType: "uefi", RootOrigin: "file",
		SupportARM: true, EnterpriseProjectID: "0",
		Attributes: map[string]any{
			"max_ram": "", "size": nil, "virtual_size": nil, "checksum": "d41d8", "active_at": "2026-01-02T03:09:05Z",
			"__image_source_type": "uds", "__isregistered": "true", "__system_support_market": true, "__data_origin": nil,
			"__content_sha256": "abc",
		},
	}
	if !reflect.DeepEqual(i, want) {
		t.Errorf("got  %+v\nwant %+v", i, want)
	}
	for key, want := range map[string]string{"run": "a1b2", "old": "x.y", "alone": ""} {
		if v, ok := i.Tag(key); !ok || v != want {
			t.Errorf("tag %s: %q, %v", key, v, ok)
		}
	}
	for _, key := range []string{"ru", "x", "", "run=a1b2x"} {
		if _, ok := i.Tag(key); ok {
			t.Errorf("tag %q found", key)
		}
	}
	// Everything that was there is there again, with its type.
	b, err := json.Marshal(i)
	if err != nil {
		t.Fatal(err)
	}
	var before, after map[string]any
	_ = json.Unmarshal([]byte(sampleImage), &before)
	_ = json.Unmarshal(b, &after)
	if !reflect.DeepEqual(before, after) {
		t.Errorf("encoded as %s", b)
	}
}

func TestImageQuirks(t *testing.T) {
	for _, c := range []struct {
		body string
		want Image
	}{
		{`{}`, Image{}},
		{`{"min_disk":"40","min_ram":"512","__image_size":7,"protected":"True","__support_arm":true,"__os_bit":64}`,
			Image{MinDisk: 40, MinRAM: 512, Size: 7, Protected: true, SupportARM: true, OSBit: "64"}},
		{`{"min_disk":3.5,"__image_size":"big","protected":"perhaps","name":["x"],"tags":[1]}`, Image{Attributes: map[string]any{
			"min_disk": json.Number("3.5"), "__image_size": "big", "protected": "perhaps", "name": []any{"x"}, "tags": []any{json.Number("1")}}}},
		{`{"min_disk":-1,"x":12345678901234567890}`, Image{Attributes: map[string]any{
			"min_disk": json.Number("-1"), "x": json.Number("12345678901234567890")}}},
		{`{"name":null,"tags":[{"key":"a","value":"b"},"c=d"]}`, Image{Tags: []string{"a=b", "c=d"}}},
		{`{"tags":[]}`, Image{}},
	} {
		var i Image
		if err := json.Unmarshal([]byte(c.body), &i); err != nil || !reflect.DeepEqual(i, c.want) {
			t.Errorf("%s\ngot  %+v, %v\nwant %+v", c.body, i, err, c.want)
		}
		b, _ := json.Marshal(i)
		var again Image
		if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(i, again) {
			t.Errorf("%s\nbecame %s", c.body, b)
		}
	}
	for _, body := range []string{`[]`, `null`, `"x"`, `1`} {
		if err := imageUnmarshal(body); err == nil {
			t.Errorf("%s is an image", body)
		}
	}
}

func imageUnmarshal(s string) error { return new(Image).UnmarshalJSON([]byte(s)) }

func TestImageByID(t *testing.T) {
	f := newFake(t, map[string][]reply{"GET " + listPath: {
		images(anImage("other", "x", ""), anImage(testImage, "web-01", "")), images(anImage("other", "x", "")), images(), ok(`{}`), ok(`{"images":[7,{}]}`),
	}})
	c := newTestClient(t, f, nil)
	if i, err := c.Image(background(), testImage); err != nil || i.Name != "web-01" {
		t.Errorf("got %+v, %v", i, err)
	}
	if q, _ := url.ParseQuery(f.seen[0].query); q.Get("id") != testImage {
		t.Errorf("query %v", q)
	}
	for _, kind := range []Kind{KindNotFound, KindNotFound, KindResponse, KindNotFound} {
		_, err := c.Image(background(), testImage)
		wantError(t, err, kind, testImage)
	}
}

func TestListImagesFilter(t *testing.T) {
	f := newFake(t, map[string][]reply{"GET " + listPath: {images()}})
	_, err := newTestClient(t, f, nil).ListImages(background(), ImageFilter{
		ID: "i", Name: "a b", Status: "active", ImageType: "private", Visibility: "private", Owner: "o", OSType: "Linux", Platform: "Ubuntu",
		Architecture: "arm", DiskFormat: "raw", VirtualEnvType: "DataImage", EnterpriseProjectID: "0", CreatedAt: "gt:2026-01-02T03:04:05Z",
		UpdatedAt: "lt:2026-01-02T03:04:05Z", Tag: Tag{"k", "v"}, SortKey: "name", SortDir: "asc", Extra: url.Values{"min_ram": {"1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "__imagetype=private&__os_type=Linux&__platform=Ubuntu&architecture=arm&created_at=gt%3A2026-01-02T03%3A04%3A05Z&" +
		"disk_format=raw&enterprise_project_id=0&id=i&limit=100&min_ram=1&name=a%20b&owner=o&sort_dir=asc&sort_key=name&status=active&" +
		"tag=k%3Dv&updated_at=lt%3A2026-01-02T03%3A04%3A05Z&virtual_env_type=DataImage&visibility=private"
	if f.seen[0].query != want {
		t.Errorf("got  %s\nwant %s", f.seen[0].query, want)
	}
}

func TestListImagesPages(t *testing.T) {
	page := func(from, n int) reply {
		var items []string
		for i := range n {
			items = append(items, fmt.Sprintf(`{"id":"i%d"}`, from+i))
		}
		return images(items...)
	}
	for _, c := range []struct {
		name    string
		limit   int
		pages   []reply
		want    int
		queries []string
	}{
		{"empty", 0, []reply{page(0, 0)}, 0, []string{"limit=100"}},
		{"short", 0, []reply{page(0, 99)}, 99, []string{"limit=100"}},
		{"exactly one", 0, []reply{page(0, 100), page(0, 0)}, 100, []string{"limit=100", "limit=100&marker=i99"}},
		{"three", 0, []reply{page(0, 100), page(100, 100), page(200, 1)}, 201, []string{"limit=100", "limit=100&marker=i99", "limit=100&marker=i199"}},
		{"marker ignored", 0, []reply{page(0, 100)}, 100, []string{"limit=100", "limit=100&marker=i99"}},
		{"limited", 150, []reply{page(0, 100), page(100, 50)}, 150, []string{"limit=100", "limit=50&marker=i99"}},
		{"limit ignored", 3, []reply{page(0, 100)}, 3, []string{"limit=3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, map[string][]reply{"GET " + listPath: c.pages})
			got, err := newTestClient(t, f, nil).ListImages(background(), ImageFilter{Limit: c.limit})
			if err != nil || len(got) != c.want {
				t.Errorf("got %d images, %v", len(got), err)
			}
			var queries []string
			for _, r := range f.seen {
				queries = append(queries, r.query)
			}
			wantLines(t, queries, c.queries...)
		})
	}
}

func TestDeleteImage(t *testing.T) {
	path := "/v2/images/" + testImage
	for _, c := range []struct {
		name     string
		replies  []reply
		kind     Kind
		requests int
	}{
		{"deleted", []reply{status(204, "")}, 0, 1},
		{"unknown", []reply{status(404, "")}, KindNotFound, 1},
		{"unknown by code", []reply{imgError("IMG.0144")}, KindNotFound, 1},
		{"unfinished", []reply{imgError("IMG.0090")}, KindConflict, 1},
		{"protected", []reply{imgError("IMG.0091")}, KindConflict, 1},
		{"lost answer", []reply{broken(errReset), status(404, "")}, 0, 2},
		{"never arrived, unknown", []reply{broken(errRefused), status(404, "")}, KindNotFound, 2},
		{"in the end", []reply{status(503, ""), status(204, "")}, 0, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, map[string][]reply{"DELETE " + path: c.replies})
			err := newTestClient(t, f, nil).DeleteImage(background(), testImage)
			if c.kind != 0 {
				wantError(t, err, c.kind, testImage)
			} else if err != nil {
				t.Error(err)
			}
			if len(f.seen) != c.requests {
				t.Errorf("%d requests", len(f.seen))
			}
		})
	}
}

func TestOSVersions(t *testing.T) {
	const body = `[{"platform":"Ubuntu","version_list":[{"platform":"Ubuntu","os_version_key":"Ubuntu 22.04 server 64bit",
		"os_version":"Ubuntu 22.04 server 64bit","os_bit":64,"os_type":"Linux"},{"os_version":"Ubuntu 20.04 server 64bit","os_bit":"64"},null]},
		{"platform":"Other","version_list":[{"os_version_key":"Other(32 bit)","os_bit":32,"os_type":"Other"},{"os_version_key":"Other(32 bit)"}]},7]`
	f := newFake(t, map[string][]reply{"GET /v1/cloudimages/os_version": {ok(body), ok(`{"os_versions":` + body + `}`), ok(`[]`), ok(`{"a":1}`), ok(`x`), status(404, "")}})
	c := newTestClient(t, f, nil)
	want := []OSVersion{
		{"Ubuntu", "Ubuntu 22.04 server 64bit", "Ubuntu 22.04 server 64bit", "Linux", 64},
		{"Ubuntu", "Ubuntu 20.04 server 64bit", "Ubuntu 20.04 server 64bit", "", 64},
		{"Other", "Other(32 bit)", "Other(32 bit)", "Other", 32},
	}
	for range 2 {
		got, err := c.OSVersions(background(), "x86", "uefi")
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	if f.seen[0].query != "tag=x86&tag=uefi" {
		t.Errorf("query %s", f.seen[0].query)
	}
	if got, err := c.OSVersions(background()); err != nil || len(got) != 0 || f.seen[2].query != "" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, kind := range []Kind{KindResponse, KindResponse, KindNotFound} {
		_, err := c.OSVersions(background())
		wantError(t, err, kind)
	}
}

func TestNearestOSVersions(t *testing.T) {
	list := StaticOSVersions()
	for _, c := range []struct{ want, first string }{
		{"Ubuntu 22.04 server 64bit", "Ubuntu 22.04 server 64bit"},
		{"ubuntu 22.04 Server 64Bit", "Ubuntu 22.04 server 64bit"},
		{"Ubuntu22.04", "Ubuntu 22.04 server 64bit"},
		{"ubuntu  22.04 LTS (x86_64)", "Ubuntu 22.04 server 64bit"},
		{"Ubunto 22.04", "Ubuntu 22.04 server 64bit"},
		{"ubnutu-20.04", "Ubuntu 20.04 server 64bit"},
		{"Ubuntu 14.04 32bit", "Ubuntu 14.04 server 32bit"},
		{"centos7.6", "CentOS 7.6 64bit"},
		{"Cent OS 7.9", "CentOS 7.9 64bit"},
		{"RHEL 8.4", "Redhat Linux Enterprise 8.4 64bit"},
		{"Red Hat Linux Enterprise 7.5 64bit", "Redhat Linux Enterprise 7.5 64bit"},
		{"debian 12", "Debian GNU/Linux 12.0.0 64bit"},
		{"Debian 11.3.0", "Debian GNU/Linux 11.3.0 64bit"},
		{"windows 2019 standard", "Windows Server 2019 Standard 64bit"},
		{"SLES 15 SP5", "SUSE Linux Enterprise Server 15 SP5 64bit"},
		{"rocky 9.2", "Rocky Linux 9.2 64bit"},
		{"openeuler 22.03 sp1", "openEuler 22.03 SP1 64bit"},
		{"fedora 39", "Fedora 39 64bit"},
		{"22.04", "Ubuntu 22.04 server 64bit"},
	} {
		got := NearestOSVersions(c.want, list, 3)
		if len(got) != 3 || got[0] != c.first {
			t.Errorf("%q: got %q, want %q first", c.want, got, c.first)
		}
	}
	for _, want := range []string{"", "xyz", "64bit", "linux server", strings.Repeat("q", 1000)} {
		if got := NearestOSVersions(want, list, 3); len(got) != 0 {
			t.Errorf("%q: got %q, want nothing", want, got)
		}
	}
	// A system without that version still gets the system's other versions.
	for _, name := range NearestOSVersions("Ubuntu 99.10", list, 5) {
		if !strings.HasPrefix(name, "Ubuntu") {
			t.Errorf("Ubuntu 99.10: %q", name)
		}
	}
	if got := NearestOSVersions("Ubuntu", list, 0); got != nil {
		t.Errorf("got %q", got)
	}
	if got := NearestOSVersions("a b", []OSVersion{{Key: "A B"}, {Key: "A B"}, {Key: ""}}, 9); len(got) != 1 {
		t.Errorf("got %q", got)
	}
	// The order of the list does not matter.
	first := fmt.Sprint(NearestOSVersions("centos 7", list, 5))
	for i := range list {
		j := (i * 7919) % len(list)
		list[i], list[j] = list[j], list[i]
	}
	if again := fmt.Sprint(NearestOSVersions("centos 7", list, 5)); again != first {
		t.Errorf("%s, then %s", first, again)
	}
}

func TestStaticOSVersions(t *testing.T) {
	list := StaticOSVersions()
	seen := map[string]bool{}
	for _, o := range list {
		if seen[o.Key] || o.Key == "" || o.Platform == "" || o.OSType == "" || strings.TrimSpace(o.Key) != o.Key || checkOSVersion(o.Key) != "" {
			t.Errorf("%+v", o)
		}
		seen[o.Key] = true
	}
	for _, name := range []string{"Ubuntu 24.04 server 64bit", "Windows Server 2019 Standard 64bit", "CentOS 7.6 64bit", "Other(64 bit)"} {
		if !seen[name] {
			t.Errorf("%s is missing", name)
		}
	}
	list[0].Key = "changed"
	if StaticOSVersions()[0].Key == "changed" {
		t.Error("the list is shared")
	}
}
