// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/imsprep/imsprep/bitmap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testAccount = Account{AccessKey: "AKEXAMPLE0000000001", SecretKey: "SKexample0000000000000000000000000000001"}

// fixture is a server with a bucket, and a client that signs by hand.
type fixture struct {
	t       *testing.T
	server  *Server
	http    *httptest.Server
	objects *MemoryObjects
	account Account
}

func newFixture(t *testing.T, o Options) *fixture {
	t.Helper()
	f := &fixture{t: t, objects: &MemoryObjects{}, account: testAccount}
	f.objects.AddBucket("bkt", DefaultRegion)
	f.objects.AddBucket("elsewhere", "other-1")
	if o.Objects == nil {
		o.Objects = f.objects
	}
	o.Accounts = append(o.Accounts, testAccount)
	o.Users = append(o.Users, User{ID: "u1", Name: "user", Password: "secret", Domain: "account"})
	f.server = New(o)
	f.http = httptest.NewServer(f.server)
	t.Cleanup(func() {
		f.server.Close() // first: jobs may hold requests up
		f.http.Client().CloseIdleConnections()
		f.http.Close()
	})
	return f
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	raw    []byte
	body   map[string]any
}

// code is the error code of any of the JSON shapes.
func (a answer) code() string {
	if e, ok := a.body["error"].(map[string]any); ok {
		return fmt.Sprint(e["code"])
	}
	s, _ := a.body["error_code"].(string)
	return s
}

// sign signs a request as documented, with code shared with nobody.
func sign(r *http.Request, body []byte, acc Account, now time.Time) {
	date := now.UTC().Format("20060102T150405Z")
	r.Header.Set("X-Sdk-Date", date)
	names, lines := "host;x-sdk-date", "host:"+r.URL.Host+"\nx-sdk-date:"+date+"\n"
	if acc.SecurityToken != "" {
		r.Header.Set("X-Security-Token", acc.SecurityToken)
		names, lines = names+";x-security-token", lines+"x-security-token:"+acc.SecurityToken+"\n"
	}
	query := strings.ReplaceAll(r.URL.Query().Encode(), "+", "%20") // Encode sorts by name
	digest := func(p []byte) string { s := sha256.Sum256(p); return hex.EncodeToString(s[:]) }
	path := strings.TrimSuffix(r.URL.EscapedPath(), "/") + "/"
	canonical := strings.Join([]string{r.Method, path, query, lines, names, digest(body)}, "\n")
	mac := hmac.New(sha256.New, []byte(acc.SecretKey))
	mac.Write([]byte("SDK-HMAC-SHA256\n" + date + "\n" + digest([]byte(canonical))))
	r.Header.Set("Authorization", fmt.Sprintf("SDK-HMAC-SHA256 Access=%s, SignedHeaders=%s, Signature=%x", acc.AccessKey, names, mac.Sum(nil)))
}

// do sends a request; prepare may change it after it was signed.
func (f *fixture) do(method, path string, body any, prepare ...func(*http.Request)) answer {
	f.t.Helper()
	a, err := f.try(method, path, body, prepare...)
	if err != nil {
		f.t.Fatal(err)
	}
	return a
}

func (f *fixture) try(method, path string, body any, prepare ...func(*http.Request)) (answer, error) {
	f.t.Helper()
	var p []byte
	switch b := body.(type) {
	case nil:
	case string:
		p = []byte(b)
	default:
		var err error
		if p, err = json.Marshal(b); err != nil {
			f.t.Fatal(err)
		}
	}
	req, err := http.NewRequest(method, f.http.URL+path, bytes.NewReader(p))
	if err != nil {
		f.t.Fatal(err)
	}
	if p != nil {
		req.Header.Set("Content-Type", "application/json;charset=UTF-8")
	}
	sign(req, p, f.account, time.Now())
	for _, fn := range prepare {
		fn(req)
	}
	res, err := f.http.Client().Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	a := answer{status: res.StatusCode, header: res.Header}
	if a.raw, err = io.ReadAll(res.Body); err != nil {
		return a, err
	}
	_ = json.Unmarshal(a.raw, &a.body) // some answers aren't objects
	if a.header.Get("X-Request-Id") == "" {
		f.t.Errorf("%s %s: no request id", method, path)
	}
	return a, nil
}

// withToken replaces the signature by a token.
func withToken(token string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header.Del("Authorization")
		r.Header.Set("X-Auth-Token", token)
	}
}

func unsigned(r *http.Request) { r.Header.Del("Authorization") }

// putDisk stores a RAW disk and a bitmap of what isn't zero in it.
func (f *fixture) putDisk(key string, disk []byte) {
	f.t.Helper()
	f.objects.Put("bkt", key+".raw", disk, "")
	f.objects.Put("bkt", key+".mf", encodeMap(f.t, mapOf(f.t, disk)), "")
}

func mapOf(t *testing.T, disk []byte) *bitmap.Map {
	t.Helper()
	l := layout(t)
	m, err := bitmap.NewMap(int64(len(disk)), l.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < int64(len(disk)); off += l.BlockSize {
		if !isZero(disk[off:min(off+l.BlockSize, int64(len(disk)))]) {
			m.MarkRange(off, 1)
		}
	}
	return m
}

func layout(t *testing.T) bitmap.Layout {
	t.Helper()
	l, err := bitmap.Lookup(bitmap.DefaultLayout)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func encodeMap(t *testing.T, m *bitmap.Map) []byte {
	t.Helper()
	p, err := layout(t).Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// testDisk is a disk of a length that is no multiple of a block, with data in
// its first, third and last block.
func testDisk() []byte {
	disk := make([]byte, 9<<20+512)
	r := rand.New(rand.NewPCG(1, 2))
	for _, off := range []int{0, 5 << 20, len(disk) - 512} {
		for i := range 512 {
			disk[off+i] = byte(r.Uint32())
		}
	}
	return disk
}

// body is a good quick import with changes; nil removes a field.
func body(changes ...any) map[string]any {
	b := map[string]any{"name": "demo", "image_url": "bkt:img/demo.raw", "os_version": "Ubuntu 22.04 server 64bit", "min_disk": 40}
	for i := 0; i < len(changes); i += 2 {
		if changes[i+1] == nil {
			delete(b, changes[i].(string))
		} else {
			b[changes[i].(string)] = changes[i+1]
		}
	}
	return b
}

const quickPath = "/v2/cloudimages/quickimport/action"

// submit starts an import and returns the job's id.
func (f *fixture) submit(b map[string]any) string {
	f.t.Helper()
	a := f.do("POST", quickPath, b)
	id, _ := a.body["job_id"].(string)
	if a.status != http.StatusOK || id == "" {
		f.t.Fatalf("import: %d %s", a.status, a.raw)
	}
	return id
}

// wait polls a job until it has ended.
func (f *fixture) wait(id string) map[string]any {
	f.t.Helper()
	for {
		a := f.do("GET", "/v1/cloudimages/job/"+id, nil)
		if a.status != http.StatusOK {
			f.t.Fatalf("job: %d %s", a.status, a.raw)
		}
		if s := a.body["status"]; s == jobSuccess || s == jobFail {
			return a.body
		}
	}
}

// list returns the images of a query.
func (f *fixture) list(query ...string) []map[string]any {
	f.t.Helper()
	v := url.Values{}
	for i := 0; i < len(query); i += 2 {
		v.Add(query[i], query[i+1])
	}
	a := f.do("GET", "/v2/cloudimages?"+v.Encode(), nil)
	if a.status != http.StatusOK {
		f.t.Fatalf("list %v: %d %s", query, a.status, a.raw)
	}
	var images []map[string]any
	for _, im := range a.body["images"].([]any) {
		images = append(images, im.(map[string]any))
	}
	return images
}

func (f *fixture) image(job map[string]any) map[string]any {
	f.t.Helper()
	id, _ := job["entities"].(map[string]any)["image_id"].(string)
	images := f.list("id", id)
	if len(images) != 1 {
		f.t.Fatalf("%d images of id %q", len(images), id)
	}
	return images[0]
}

func TestQuickImport(t *testing.T) {
	f := newFixture(t, Options{})
	disk := testDisk()
	f.putDisk("img/demo", disk)
	for _, path := range []string{quickPath, "/v2.1/cloudimages/quickimport/action"} {
		t.Run(path, func(t *testing.T) {
			generation, _, _ := strings.Cut(path[1:], "/")
			a := f.do("POST", path, body("name", "demo "+generation, "hw_firmware_type", "uefi",
				"description", "a test", "image_tags", []Tag{{"run", "a1"}, {"empty", ""}}))
			if a.status != http.StatusOK {
				t.Fatalf("%d %s", a.status, a.raw)
			}
			job := f.wait(a.body["job_id"].(string))
			if job["status"] != jobSuccess || job["error_code"] != nil || job["end_time"] == "" {
				t.Fatalf("job %v", job)
			}
			im := f.image(job)
			for attr, want := range map[string]any{
				"status": "active", "name": "demo " + generation, "min_disk": 40.0,
				"__os_version": "Ubuntu 22.04 server 64bit", "__os_type": "Linux", "__platform": "Ubuntu", "__os_bit": "64",
				"hw_firmware_type": "uefi", "__root_origin": "file", "__imagetype": "private", "__image_size": fmt.Sprint(len(disk)),
				"owner": f.server.ProjectID(), "__description": "a test", "virtual_env_type": "FusionCompute", "architecture": "x86",
				AttrContentSHA256: hexSHA256(disk), AttrContentSize: fmt.Sprint(len(disk)),
			} {
				if im[attr] != want {
					t.Errorf("%s is %v, want %v", attr, im[attr], want)
				}
			}
			if got := fmt.Sprint(im["tags"]); got != "[run=a1 empty=]" {
				t.Errorf("tags %s", got)
			}
		})
	}
	if n := len(f.list("__imagetype", "private", "tag", "run=a1")); n != 2 {
		t.Errorf("%d images have the tag", n)
	}
}

func TestDataDisk(t *testing.T) {
	f := newFixture(t, Options{})
	f.putDisk("img/demo", testDisk())
	job := f.wait(f.submit(body("type", "DataImage", "os_version", nil, "os_type", "Windows", "tags", []string{"a.b.c", "d"})))
	im := f.image(job)
	if im["virtual_env_type"] != "DataImage" || im["__os_type"] != "Windows" || im["__os_version"] != nil {
		t.Errorf("image %v", im)
	}
	if got := fmt.Sprint(im["tags"]); got != "[a=b.c d=]" {
		t.Errorf("tags %s", got)
	}
}

// TestValidation has a case for each rule of the request.
func TestValidation(t *testing.T) {
	f := newFixture(t, Options{Quota: 3})
	f.putDisk("img/demo", testDisk())
	f.putDisk("img/taken", testDisk())
	f.wait(f.submit(body("name", "taken", "image_url", "bkt:img/taken.raw")))
	f.objects.Put("bkt", "img/nomap.raw", testDisk(), "")
	f.objects.Put("bkt", "img/empty.raw", nil, "")
	f.objects.Put("bkt", "img/cold.raw", testDisk(), "GLACIER")
	f.objects.Put("bkt", "img/demo.qcow2", testDisk(), "")
	f.objects.Put("elsewhere", "demo.raw", testDisk(), "")
	eleven := make([]Tag, 11)
	for i := range eleven {
		eleven[i].Key = fmt.Sprint("k", i)
	}
	for _, tc := range []struct {
		name string
		body any
		code string
	}{
		{"no body", nil, "IMG.0007"},
		{"not JSON", "{", "IMG.0001"},
		{"more after the JSON", `{} {}`, "IMG.0001"},
		{"unknown field", body("cmk_id", "x"), "IMG.0001"},
		{"text for a number", body("min_disk", "40"), "IMG.0001"},

		{"no name", body("name", nil), "IMG.0013"},
		{"empty name", body("name", ""), "IMG.0013"},
		{"name of 129 characters", body("name", strings.Repeat("é", 129)), "IMG.0002"},
		{"name with a slash", body("name", "a/b"), "IMG.0003"},
		{"name ends with a blank", body("name", "a "), "IMG.0003"},
		{"name begins with a blank", body("name", " a"), "IMG.0003"},
		{"name taken", body("name", "taken"), "IMG.0009"},
		{"long description", body("description", strings.Repeat("x", 1025)), "IMG.0004"},
		{"description of two lines", body("description", "a\nb"), "IMG.0054"},
		{"description with <", body("description", "a<b"), "IMG.0054"},

		{"both kinds of tags", body("tags", []string{"a.b"}, "image_tags", []Tag{{"c", "d"}}), "IMG.0115"},
		{"eleven tags", body("image_tags", eleven), "IMG.0116"},
		{"empty key", body("image_tags", []Tag{{"", "x"}}), "IMG.0115"},
		{"key with a dot", body("image_tags", []Tag{{"a.b", "x"}}), "IMG.0115"},
		{"long key", body("image_tags", []Tag{{strings.Repeat("k", 37), "x"}}), "IMG.0115"},
		{"long value", body("image_tags", []Tag{{"k", strings.Repeat("v", 44)}}), "IMG.0115"},
		{"value with a blank", body("image_tags", []Tag{{"k", "a b"}}), "IMG.0115"},
		{"key twice", body("image_tags", []Tag{{"k", "a"}, {"k", "b"}}), "IMG.0115"},

		{"no min_disk", body("min_disk", nil), "IMG.0055"},
		{"min_disk 0", body("min_disk", 0), "IMG.0055"},
		{"min_disk 1025", body("min_disk", 1025), "IMG.0111"},
		{"min_disk 1025 of a data disk", body("type", "DataImage", "os_version", nil, "min_disk", 1025), "IMG.0055"},
		{"type", body("type", "IsoImage"), "IMG.0024"},
		{"no os_version", body("os_version", nil), "IMG.0159"},
		{"empty os_version", body("os_version", ""), "IMG.0159"},
		{"os_version in other letters", body("os_version", "Ubuntu 22.04 Server 64bit"), "IMG.0056"},
		{"os_version of a data disk", body("type", "DataImage"), "IMG.0001"},
		{"os_type", body("type", "DataImage", "os_version", nil, "os_type", "Other"), "IMG.0122"},
		{"architecture", body("architecture", "x86_64"), "IMG.0212"},
		{"firmware", body("hw_firmware_type", "UEFI"), "IMG.0141"},
		{"arm with bios", body("architecture", "arm", "hw_firmware_type", "bios"), "IMG.0141"},
		{"licence", body("license_type", "gpl"), "IMG.0001"},
		{"enterprise project", body("enterprise_project_id", "default"), "IMG.0155"},

		{"no image_url", body("image_url", nil), "IMG.0017"},
		{"image_url without a colon", body("image_url", "bkt/img/demo.raw"), "IMG.0017"},
		{"image_url is a URL", body("image_url", "https://bkt.example.com/img/demo.raw"), "IMG.0017"},
		{"no bucket", body("image_url", ":img/demo.raw"), "IMG.0068"},
		{"bucket's name", body("image_url", "BKT:img/demo.raw"), "IMG.0109"},
		{"no key", body("image_url", "bkt:"), "IMG.0017"},
		{"blank in the key", body("image_url", "bkt:img/my demo.raw"), "IMG.0175"},
		{"no such bucket", body("image_url", "nothing:img/demo.raw"), "IMG.0069"},
		{"bucket elsewhere", body("image_url", "elsewhere:demo.raw"), "IMG.0058"},
		{"no such object", body("image_url", "bkt:img/nothing.raw"), "IMG.0057"},
		{"empty object", body("image_url", "bkt:img/empty.raw"), "IMG.0057"},
		{"storage class", body("image_url", "bkt:img/cold.raw"), "IMG.0057"},
		{"format", body("image_url", "bkt:img/demo.qcow2"), "IMG.0158"},
		{"no bitmap", body("image_url", "bkt:img/nomap.raw"), "IMG.0158"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := f.do("POST", quickPath, tc.body)
			if a.status != http.StatusBadRequest || a.code() != tc.code {
				t.Errorf("%d %s, want %s", a.status, a.raw, tc.code)
			}
		})
	}
	if n := len(f.list("__imagetype", "private")); n != 1 {
		t.Errorf("refused imports left images: there are %d", n)
	}

	for i := range 2 {
		f.wait(f.submit(body("name", fmt.Sprint("fill ", i))))
	}
	if a := f.do("POST", quickPath, body()); a.code() != "IMG.0015" {
		t.Errorf("beyond the quota: %d %s", a.status, a.raw)
	}
	if a := f.do("GET", "/v1/cloudimages/quota", nil); !strings.Contains(string(a.raw), `"quota":3`) || !strings.Contains(string(a.raw), `"used":3`) {
		t.Errorf("quota %s", a.raw)
	}
	a := f.do("POST", quickPath, body(), func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") })
	if a.code() != "IMG.0001" {
		t.Errorf("content type: %s", a.raw)
	}
}

// TestAccepted has what is at the edge of the rules, on the right side.
func TestAccepted(t *testing.T) {
	f := newFixture(t, Options{})
	f.putDisk("img/demo", testDisk())
	for i, b := range []map[string]any{
		body("name", strings.Repeat("n", 128)),
		body("name", "映像 1_a.b-c"),
		body("min_disk", 1), body("min_disk", 1024),
		body("description", strings.Repeat("é", 1024)),
		body("architecture", "arm"), body("type", "BMS"), body("license_type", "byol"),
		body("enterprise_project_id", "84ac7f2b-bf19-4efb-86a0-b5be8771b476"),
		body("image_tags", []Tag{{strings.Repeat("k", 36), strings.Repeat("v", 43)}, {"标签", ""}}),
		body("type", "DataImage", "os_version", ""),
	} {
		if i > 1 {
			b["name"] = fmt.Sprint("image ", i)
		}
		if job := f.wait(f.submit(b)); job["status"] != jobSuccess {
			t.Errorf("%v: %v", b, job)
		}
	}
}

func TestLimitsOfSize(t *testing.T) {
	big := &bigObjects{size: 2 * gib}
	f := newFixture(t, Options{Objects: big})
	if a := f.do("POST", quickPath, body("min_disk", 1)); a.code() != "IMG.0055" {
		t.Errorf("min_disk below the disk: %s", a.raw)
	}
	big.size++
	if a := f.do("POST", quickPath, body("min_disk", 2)); a.code() != "IMG.0055" {
		t.Errorf("min_disk a byte below the disk: %s", a.raw)
	}
	big.size = 1<<40 + 1
	if a := f.do("POST", quickPath, body("min_disk", 1024)); a.code() != "IMG.0059" {
		t.Errorf("more than a terabyte: %s", a.raw)
	}
}

func TestUnknownPaths(t *testing.T) {
	f := newFixture(t, Options{})
	for _, p := range [][2]string{{"GET", "/v3/cloudimages"}, {"PUT", quickPath}, {"GET", "/v2//cloudimages"}, {"GET", "/v2/cloudimages/"}, {"GET", "/v9"}} {
		if a := f.do(p[0], p[1], nil); a.status != http.StatusNotFound || a.code() != "APIGW.0101" {
			t.Errorf("%v: %d %s", p, a.status, a.raw)
		}
	}
	if a := f.do("GET", "/", nil, unsigned); a.status != http.StatusMultipleChoices {
		t.Errorf("versions: %d %s", a.status, a.raw)
	}
	if a := f.do("GET", "/v2", nil, unsigned); a.status != http.StatusOK {
		t.Errorf("version: %d %s", a.status, a.raw)
	}
	if a := f.do("POST", "/v2/cloudimages/action", `{}`); a.code() != "IMG.0013" {
		t.Errorf("common import: %s", a.raw)
	}
}

func TestOSVersions(t *testing.T) {
	f := newFixture(t, Options{})
	count := func(query string) (n int) {
		a := f.do("GET", "/v1/cloudimages/os_version"+query, nil)
		var list []struct {
			Platform string      `json:"platform"`
			Versions []OSVersion `json:"version_list"`
		}
		if err := json.Unmarshal(a.raw, &list); err != nil {
			t.Fatalf("%v: %s", err, a.raw)
		}
		for _, p := range list {
			for _, v := range p.Versions {
				if v.Key == "" || v.Platform != p.Platform || v.Bit != 32 && v.Bit != 64 {
					t.Errorf("entry %+v", v)
				}
				n++
			}
		}
		return n
	}
	all, arm := count(""), count("?tag=arm")
	if all < 100 || arm == 0 || arm >= all {
		t.Errorf("%d versions, %d for arm", all, arm)
	}
	if n := count("?tag=arm&tag=uefi"); n != count("?tag=arm,uefi") {
		t.Errorf("repeated and joined tags differ")
	}
}
