// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// names are the names of images, in their order.
func names(images []map[string]any) string {
	var s []string
	for _, im := range images {
		s = append(s, im["name"].(string))
	}
	return strings.Join(s, " ")
}

func TestList(t *testing.T) {
	base := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var clock atomic.Int64 // seconds after base, as imports see it
	f := newFixture(t, Options{Now: func() time.Time { return base.Add(time.Duration(clock.Load()) * time.Second) }})
	f.putDisk("img/demo", testDisk())
	s := f.server
	for i, name := range []string{"a", "b", "c", "d"} {
		clock.Store(int64(i))
		spec, err := s.checkQuickImport(&quickImportRequest{
			Name: &name, MinDisk: new(int64(40 + i%2)), OSVersion: "CentOS 7.6 64bit", ImageURL: new("bkt:img/demo.raw"),
			ImageTags: []Tag{{"n", name}, {"all", ""}}, Architecture: []string{"x86", "arm"}[i%2],
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.checkObject(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		if _, err := s.submit(spec); err != nil {
			t.Fatal(err)
		}
	}
	s.wg.Wait()
	// Lists are asked for without HTTP: signatures would need the true time.
	query := func(q string) string {
		v, err := url.ParseQuery(q)
		if err != nil {
			t.Fatal(err)
		}
		list, _, err := s.selectImages(s.ProjectID(), v, defaultLimit)
		if err != nil {
			return err.Error()[:8]
		}
		return names(list)
	}
	var ids []string
	for _, im := range s.images {
		if im.str("__imagetype") == "private" {
			ids = append(ids, im.str("id"))
		}
	}
	for q, want := range map[string]string{
		"__imagetype=private":                            "d c b a",
		"owner=" + s.ProjectID():                         "d c b a",
		"visibility=private&sort_dir=asc":                "a b c d",
		"__imagetype=private&sort_key=name":              "d c b a",
		"__imagetype=private&sort_key=name&sort_dir=asc": "a b c d",
		"name=b":                               "b",
		"name=B":                               "",
		"id=" + ids[2]:                         "c",
		"id=nothing":                           "",
		"tag=n%3Da":                            "a",
		"tag=n.a":                              "",
		"tag=all%3D":                           "d c b a",
		"tag=n":                                "",
		"__imagetype=private&architecture=arm": "d b",
		"__imagetype=private&min_disk=41":      "d b",
		"__imagetype=private&status=active&protected=false":         "d c b a",
		"__imagetype=private&status=queued":                         "",
		"__imagetype=private&__platform=Cent+OS":                    "d c b a",
		"__imagetype=private&__isregistered=True":                   "d c b a",
		"__imagetype=private&virtual_env_type=FusionCompute":        "d c b a",
		"__imagetype=private&enterprise_project_id=0":               "d c b a",
		"__imagetype=private&enterprise_project_id=all_granted_eps": "d c b a",
		"__imagetype=private&limit=2":                               "d c",
		"__imagetype=private&limit=2&marker=" + ids[2]:              "b a",
		"__imagetype=private&limit=2&marker=" + ids[0]:              "",
		"__imagetype=private&limit=0":                               "",
		"__imagetype=private&created_at=gt:2026-01-02T03:04:06Z":    "d c",
		"__imagetype=private&created_at=gte:2026-01-02T03:04:06Z":   "d c b",
		"__imagetype=private&created_at=lt:2026-01-02+03:04:06":     "a",
		"__imagetype=private&created_at=lte:2026-01-02T03:04:06Z":   "b a",
		"__imagetype=private&created_at=eq:2026-01-02T03:04:06Z":    "b",
		"__imagetype=private&updated_at=neq:2030-01-02T03:04:06Z":   "d c b a",
		"marker=nothing":                     "IMG.0027",
		"limit=x":                            "IMG.0001",
		"limit=-1":                           "IMG.0001",
		"sort_key=owner":                     "IMG.0001",
		"sort_dir=up":                        "IMG.0001",
		"created_at=today":                   "IMG.0001",
		"created_at=is:2026":                 "IMG.0001",
		"created_at=is:2026-01-02T03:04:06Z": "IMG.0001",
	} {
		if got := query(q); got != want {
			t.Errorf("%s: %q, want %q", q, got, want)
		}
	}
	if got := query(""); len(strings.Fields(got)) <= 4 {
		t.Errorf("without a filter there are public images too, got %q", got)
	}
}

func TestShowAndDelete(t *testing.T) {
	f := newFixture(t, Options{})
	f.putDisk("img/demo", testDisk())
	im := f.image(f.wait(f.submit(body())))
	path := "/v2/images/" + im["id"].(string)
	if a := f.do("GET", path, nil); a.status != http.StatusOK || a.body["name"] != "demo" || a.body["self"] != path {
		t.Errorf("show: %d %s", a.status, a.raw)
	}
	public := f.list("__imagetype", "gold")[0]["id"].(string)
	if a := f.do("DELETE", "/v2/images/"+public, nil); a.code() != "IMG.0094" {
		t.Errorf("delete a public image: %d %s", a.status, a.raw)
	}
	for _, method := range []string{"GET", "DELETE"} {
		a := f.do(method, "/v2/images/nothing", nil)
		if a.status != http.StatusNotFound || !strings.HasPrefix(a.header.Get("Content-Type"), "text/html") {
			t.Errorf("%s an unknown image: %d %s", method, a.status, a.raw)
		}
	}
	if a := f.do("DELETE", path, map[string]any{"delete_backup": true}); a.status != http.StatusNoContent || len(a.raw) != 0 {
		t.Errorf("delete: %d %s", a.status, a.raw)
	}
	if a := f.do("GET", path, nil); a.status != http.StatusNotFound {
		t.Errorf("after deleting: %d %s", a.status, a.raw)
	}
	f.wait(f.submit(body())) // the name is free again
}

func TestUpdate(t *testing.T) {
	f := newFixture(t, Options{})
	f.putDisk("img/demo", testDisk())
	id := f.image(f.wait(f.submit(body())))["id"].(string)
	op := func(op, path, value any) map[string]any {
		return map[string]any{"op": op, "path": path, "value": value}
	}
	native := func(r *http.Request) { r.Header.Set("Content-Type", "application/openstack-images-v2.1-json-patch") }
	a := f.do("PATCH", "/v2/cloudimages/"+id, []any{op("replace", "/name", "new"), op("add", "/mine", "x"), op("add", "/min_ram", "1024")})
	if a.status != http.StatusOK || a.body["name"] != "new" || a.body["mine"] != "x" || a.body["min_ram"] != 1024.0 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	a = f.do("PATCH", "/v2/images/"+id, []any{op("remove", "/mine", ""), op("add", "/protected", "true")}, native)
	if a.status != http.StatusOK || a.body["mine"] != nil || a.body["protected"] != true {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if a := f.do("DELETE", "/v2/images/"+id, nil); a.code() != "IMG.0091" {
		t.Errorf("delete a protected image: %d %s", a.status, a.raw)
	}
	for name, tc := range map[string]struct {
		op   any
		code string
	}{
		"fixed":           {op("replace", "/__os_version", "x"), "IMG.0035"},
		"content":         {op("replace", "/"+AttrContentSHA256, "x"), "IMG.0035"},
		"absent, replace": {op("replace", "/mine", "x"), "IMG.0035"},
		"absent, remove":  {op("remove", "/mine", "x"), "IMG.0035"},
		"path":            {op("add", "mine", "x"), "IMG.0001"},
		"deep path":       {op("add", "/a/b", "x"), "IMG.0001"},
		"number":          {op("add", "/min_ram", 1024), "IMG.0001"},
		"no value":        {map[string]any{"op": "add", "path": "/x"}, "IMG.0001"},
		"op":              {op("move", "/name", "x"), "IMG.0001"},
		"name":            {op("replace", "/name", "a/b"), "IMG.0003"},
		"firmware":        {op("add", "/hw_firmware_type", "efi"), "IMG.0141"},
		"ram":             {op("add", "/min_ram", "-1"), "IMG.0055"},
	} {
		// The good change in front of it must not be made either.
		a := f.do("PATCH", "/v2/cloudimages/"+id, []any{op("replace", "/name", "half"), tc.op})
		if a.status != http.StatusBadRequest || a.code() != tc.code {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
	if im := f.list("id", id); names(im) != "new" {
		t.Errorf("a refused update changed the image: %v", im)
	}
	if a := f.do("PATCH", "/v2/cloudimages/nothing", []any{}); a.code() != "IMG.0027" {
		t.Errorf("unknown image: %d %s", a.status, a.raw)
	}
	public := f.list("__imagetype", "gold")[0]["id"].(string)
	if a := f.do("PATCH", "/v2/cloudimages/"+public, []any{op("replace", "/name", "x")}); a.status != http.StatusForbidden {
		t.Errorf("public image: %d %s", a.status, a.raw)
	}
}

// FuzzQuickImport: whatever the body is, the answer is an import or one of
// the documented errors.
func FuzzQuickImport(f *testing.F) {
	f.Add(`{"name":"demo","image_url":"bkt:img/demo.raw","os_version":"Ubuntu 22.04 server 64bit","min_disk":40}`)
	f.Add(`{"name":"d","image_url":"bkt:d.zvhd2","type":"DataImage","os_type":"Linux","min_disk":1,"tags":["a.b","c"]}`)
	f.Add(`{"name":"demo","image_tags":[{"key":"k","value":"v"}],"min_disk":1e3}`)
	f.Add(`[]`)
	s := New(Options{Objects: &MemoryObjects{}})
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, body string) {
		var q quickImportRequest
		err := decodeStrict([]byte(body), &q)
		var spec *importSpec
		if err == nil {
			spec, err = s.checkQuickImport(&q)
		}
		if err == nil {
			if spec.bucket == "" || spec.key == "" || spec.minDisk < 1 || spec.minDisk > maxMinDisk || spec.format == "" ||
				!spec.dataDisk && spec.os.Key == "" || len(spec.tags) > maxTags {
				t.Errorf("accepted %+v", spec)
			}
			return
		}
		code, _, _ := strings.Cut(err.Error(), " ")
		if imgMessages[code] == "" {
			t.Errorf("the error %v has no documented code", err)
		}
	})
}

// FuzzImageFilter: no query makes a list fail in a way that isn't documented.
func FuzzImageFilter(f *testing.F) {
	f.Add("__imagetype=private&tag=a%3Db&created_at=gt:2026-01-02T03:04:05Z&limit=1")
	f.Add("marker=x&sort_key=size&sort_dir=asc&__platform=Red+Hat")
	s := New(Options{Objects: &MemoryObjects{}})
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, query string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		list, _, err := s.selectImages(s.ProjectID(), q, defaultLimit)
		if err != nil {
			code, _, _ := strings.Cut(err.Error(), " ")
			if imgMessages[code] == "" {
				t.Errorf("the error %v has no documented code", err)
			}
			return
		}
		if len(list) > len(s.images) {
			t.Errorf("%d images of %d", len(list), len(s.images))
		}
	})
}
