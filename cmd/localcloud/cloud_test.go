// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

const asCloud = "LOCALCLOUD_TEST_AS_MAIN"

// TestMain lets the test binary be the command: the object storage is one per
// process and changes its working directory.
func TestMain(m *testing.M) {
	if os.Getenv(asCloud) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// skip leaves a test out where it cannot run, which must not happen in CI.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("IMSPREP_CI") == "1" {
		t.Fatal("skipped in CI: " + why)
	}
	t.Skip("SKIPPED: " + why)
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asCloud+"=1")
	cmd.Stderr = os.Stderr
	return cmd
}

// running is a local cloud in a process of its own.
type running struct {
	t    *testing.T
	env  map[string]string
	dir  string
	last http.Header // of the object storage's latest answer
}

// RoundTrip lets a test see headers that the client keeps to itself.
func (r *running) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := http.DefaultTransport.RoundTrip(req)
	if err == nil {
		r.last = res.Header
	}
	return res, err
}

func start(t *testing.T, args ...string) *running {
	t.Helper()
	dir := t.TempDir()
	cmd := command(t, append([]string{"--dir", dir, "--job-step", "1ms"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, env: map[string]string{}, dir: dir}
	lines := bufio.NewScanner(out)
	for r.env["IMSPREP_BUCKET"] == "" && lines.Scan() {
		kv, ok := strings.CutPrefix(lines.Text(), "export ")
		if !ok {
			t.Errorf("a line of standard output is not ours: %q", lines.Text())
		}
		k, v, _ := strings.Cut(kv, "=")
		r.env[k] = v
	}
	rest := make(chan []byte, 1)
	go func() {
		p, _ := io.ReadAll(out)
		rest <- p
	}()
	t.Cleanup(func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		if more := <-rest; len(more) > 0 {
			t.Errorf("standard output has more than the environment: %q", more)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("after Ctrl-C: %v", err)
		}
	})
	return r
}

// core is a client of the object storage with the cloud's or other keys.
func (r *running) core(creds *credentials.Credentials) *minio.Core {
	r.t.Helper()
	if creds == nil {
		creds = credentials.NewStaticV4(r.env["HW_ACCESS_KEY"], r.env["HW_SECRET_KEY"], "")
	}
	c, err := minio.NewCore(strings.TrimPrefix(r.env["IMSPREP_OBS_ENDPOINT"], "http://"), &minio.Options{
		Creds: creds, Region: r.env["HW_REGION_NAME"], BucketLookup: minio.BucketLookupPath, MaxRetries: 1,
		Transport: r,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// do sends a request to IMS or IAM, signed by hand unless there is a token.
func (r *running) do(method, path, token string, body any) (int, http.Header, map[string]any) {
	r.t.Helper()
	var p []byte
	if body != nil {
		var err error
		if p, err = json.Marshal(body); err != nil {
			r.t.Fatal(err)
		}
	}
	req, err := http.NewRequest(method, r.env["IMSPREP_IMS_ENDPOINT"]+path, bytes.NewReader(p))
	if err != nil {
		r.t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("X-Auth-Token", token)
	} else if !strings.HasSuffix(path, "/tokens") {
		r.sign(req, p)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	answer := map[string]any{}
	if p, _ := io.ReadAll(res.Body); len(p) > 0 {
		if err := json.Unmarshal(p, &answer); err != nil {
			r.t.Fatalf("%s %s: %s: %q", method, path, res.Status, p)
		}
	}
	return res.StatusCode, res.Header, answer
}

func (r *running) sign(req *http.Request, body []byte) {
	date := time.Now().UTC().Format("20060102T150405Z")
	req.Header.Set("X-Sdk-Date", date)
	path := req.URL.Path
	if !strings.HasSuffix(path, "/") {
		path += "/"
	}
	sum := sha256.Sum256(body)
	canonical := strings.Join([]string{
		req.Method, path, req.URL.Query().Encode(),
		"host:" + req.URL.Host + "\nx-sdk-date:" + date + "\n", "host;x-sdk-date", hex.EncodeToString(sum[:]),
	}, "\n")
	sum = sha256.Sum256([]byte(canonical))
	mac := hmac.New(sha256.New, []byte(r.env["HW_SECRET_KEY"]))
	mac.Write([]byte("SDK-HMAC-SHA256\n" + date + "\n" + hex.EncodeToString(sum[:])))
	req.Header.Set("Authorization", "SDK-HMAC-SHA256 Access="+r.env["HW_ACCESS_KEY"]+
		", SignedHeaders=host;x-sdk-date, Signature="+hex.EncodeToString(mac.Sum(nil)))
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	rand.Read(p)
	return p
}

func md5Hex(p []byte) string {
	sum := md5.Sum(p)
	return hex.EncodeToString(sum[:])
}

func md5Base64(p []byte) string {
	sum := md5.Sum(p)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// put stores an object with Content-MD5 and an unsigned payload, as imsprep does.
func put(t *testing.T, c *minio.Core, key string, p []byte, meta map[string]string) {
	t.Helper()
	info := must(c.PutObject(context.Background(), "images", key, bytes.NewReader(p), int64(len(p)), md5Base64(p), "",
		minio.PutObjectOptions{DisableContentSha256: true, UserMetadata: meta}))(t)
	if info.ETag != md5Hex(p) {
		t.Fatalf("%s: ETag %s, want %s", key, info.ETag, md5Hex(p))
	}
}

func get(t *testing.T, c *minio.Core, key string, off, n int64) []byte {
	t.Helper()
	var o minio.GetObjectOptions
	if err := o.SetRange(off, off+n-1); err != nil {
		t.Fatal(err)
	}
	body, _, _, err := c.GetObject(context.Background(), "images", key, o)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	return must(io.ReadAll(body))(t)
}

// upload is a multipart upload in progress.
type upload struct {
	t       *testing.T
	c       *minio.Core
	key, id string
	parts   []minio.CompletePart
	sums    []byte // of the parts, for the ETag
	size    int64
}

func newUpload(t *testing.T, c *minio.Core, key string, meta map[string]string) *upload {
	t.Helper()
	id := must(c.NewMultipartUpload(context.Background(), "images", key, minio.PutObjectOptions{UserMetadata: meta}))(t)
	return &upload{t: t, c: c, key: key, id: id}
}

func (u *upload) add(etag string, n int64) {
	u.t.Helper()
	sum, err := hex.DecodeString(etag)
	if err != nil || len(sum) != md5.Size {
		u.t.Fatalf("part %d: ETag %q", len(u.parts)+1, etag)
	}
	u.parts = append(u.parts, minio.CompletePart{PartNumber: len(u.parts) + 1, ETag: etag})
	u.sums = append(u.sums, sum...)
	u.size += n
}

func (u *upload) send(p []byte) {
	u.t.Helper()
	part := must(u.c.PutObjectPart(context.Background(), "images", u.key, u.id, len(u.parts)+1, bytes.NewReader(p), int64(len(p)),
		minio.PutObjectPartOptions{Md5Base64: md5Base64(p), DisableContentSha256: true}))(u.t)
	if part.ETag != md5Hex(p) {
		u.t.Fatalf("part %d: ETag %s, want %s", part.PartNumber, part.ETag, md5Hex(p))
	}
	u.add(part.ETag, int64(len(p)))
}

func (u *upload) copy(src string, off, n int64, want string) {
	u.t.Helper()
	part := must(u.c.CopyObjectPart(context.Background(), "images", src, "images", u.key, u.id, len(u.parts)+1, off, n, nil))(u.t)
	part.ETag = strings.Trim(part.ETag, `"`) // the client leaves this one's quotes on
	if want != "" && part.ETag != want {
		u.t.Fatalf("part %d: ETag %s, want %s", part.PartNumber, part.ETag, want)
	}
	u.add(part.ETag, n)
}

func (u *upload) complete() {
	u.t.Helper()
	ctx := context.Background()
	listed, marker := 0, 0
	for {
		l := must(u.c.ListObjectParts(ctx, "images", u.key, u.id, marker, 1000))(u.t)
		for _, p := range l.ObjectParts {
			if got := strings.Trim(p.ETag, `"`); got != u.parts[listed].ETag {
				u.t.Fatalf("part %d is listed with ETag %s, want %s", p.PartNumber, got, u.parts[listed].ETag)
			}
			listed++
		}
		if !l.IsTruncated {
			break
		}
		marker = l.NextPartNumberMarker
	}
	if listed != len(u.parts) {
		u.t.Fatalf("%d parts are listed, want %d", listed, len(u.parts))
	}
	info := must(u.c.CompleteMultipartUpload(ctx, "images", u.key, u.id, u.parts, minio.PutObjectOptions{}))(u.t)
	if want := fmt.Sprintf("%s-%d", md5Hex(u.sums), len(u.parts)); info.ETag != want {
		u.t.Fatalf("ETag %s, want %s", info.ETag, want)
	}
	st := must(u.c.StatObject(ctx, "images", u.key, minio.StatObjectOptions{}))(u.t)
	if st.Size != u.size {
		u.t.Fatalf("%d bytes, want %d", st.Size, u.size)
	}
}

func TestObjectStorage(t *testing.T) {
	r := start(t)
	c := r.core(nil)
	ctx := context.Background()
	const mib = 1 << 20

	small := random(t, 12345)
	put(t, c, "dir/small", small, map[string]string{"run": "first"})
	if got := get(t, c, "dir/small", 0, int64(len(small))); !bytes.Equal(got, small) {
		t.Error("an object is not what was stored")
	}
	put(t, c, "dir/small", small[:100], nil)
	if st := must(c.StatObject(ctx, "images", "dir/small", minio.StatObjectOptions{}))(t); len(st.UserMetadata) != 0 {
		t.Errorf("a new object has the old one's metadata %v", st.UserMetadata)
	}

	// A damaged body is refused.
	_, err := c.PutObject(ctx, "images", "damaged", bytes.NewReader(small), int64(len(small)), md5Base64(small[1:]), "", minio.PutObjectOptions{})
	if code := minio.ToErrorResponse(err).Code; code != "BadDigest" {
		t.Errorf("a wrong Content-MD5: %v", err)
	}

	// Parts: sent, with zeros inside, copied whole, copied in part, of zeros.
	a, b := random(t, 6*mib), random(t, 7*mib)
	clear(b[mib : 4*mib])
	u := newUpload(t, c, "big", map[string]string{"run": "r1"})
	u.send(a)
	u.send(b)
	u.complete()
	if st := must(c.StatObject(ctx, "images", "big", minio.StatObjectOptions{}))(t); st.UserMetadata["Run"] != "r1" {
		t.Errorf("metadata %v", st.UserMetadata)
	}
	whole := append(bytes.Clone(a), b...)
	v := newUpload(t, c, "copied", nil)
	v.copy("big", 0, 13*mib, md5Hex(whole))
	v.copy("big", 5*mib, 6*mib, md5Hex(whole[5*mib:11*mib])) // data, hole, data
	v.copy("big", 7*mib+65536, mib, md5Hex(make([]byte, mib)))
	v.complete()
	want := append(bytes.Clone(whole), whole[5*mib:11*mib]...)
	want = append(want, make([]byte, mib)...)
	if got := get(t, c, "copied", 0, int64(len(want))); !bytes.Equal(got, want) {
		t.Error("an object of copied parts is not what was copied")
	}

	// What must fail as it does with the backend alone.
	w := newUpload(t, c, "failing", nil)
	for name, src := range map[string]string{"no object": "nothing", "too far": "dir/small"} {
		if _, err := c.CopyObjectPart(ctx, "images", src, "images", "failing", w.id, 1, 0, mib, nil); err == nil {
			t.Errorf("copy part, %s: no error", name)
		}
	}
	if _, err := c.CopyObjectPart(ctx, "images", "big", "images", "failing", "nosuchupload", 1, 8*mib, mib, nil); minio.ToErrorResponse(err).Code != "NoSuchUpload" {
		t.Errorf("copy part into an unknown upload: %v", err)
	}
	if _, err := c.CopyObjectPart(ctx, "images", "big", "images", "failing", w.id, 1, 8*mib, mib,
		map[string]string{"x-amz-copy-source-if-match": "0123"}); minio.ToErrorResponse(err).Code != "PreconditionFailed" {
		t.Errorf("copy part with another ETag: %v", err)
	}
	if err := c.AbortMultipartUpload(ctx, "images", "failing", w.id); err != nil {
		t.Error(err)
	}
	// An upload whose object finds no place, since there are objects below its name or it is below one's, ends with the
	// request, and nobody is told that it was completed.
	for _, key := range []string{"dir/small/below", "dir"} {
		x := newUpload(t, c, key, nil)
		x.send(a)
		x.send(b)
		for range 2 {
			if info, err := c.CompleteMultipartUpload(ctx, "images", x.key, x.id, x.parts, minio.PutObjectOptions{}); err == nil {
				t.Errorf("%s was made beside dir/small: %+v", key, info)
			}
			if _, err := c.ListObjectParts(ctx, "images", x.key, x.id, 0, 10); minio.ToErrorResponse(err).Code != "NoSuchUpload" {
				t.Errorf("%s: parts of an upload that was emptied: %v", key, err)
			}
		}
	}
	// Completing once more is an answer that was lost; aborting and then completing is a mistake.
	y := newUpload(t, c, "big", nil)
	y.send(b)
	complete := func(id, ifMatch string) (int, string) {
		t.Helper()
		signed := must(c.Presign(ctx, http.MethodPost, "images", "big", time.Minute, url.Values{"uploadId": {id}}))(t)
		body := fmt.Sprintf(`<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"%s"</ETag></Part></CompleteMultipartUpload>`, md5Hex(b))
		req := must(http.NewRequest(http.MethodPost, signed.String(), strings.NewReader(body)))(t)
		if ifMatch != "" {
			req.Header.Set("If-Match", ifMatch)
		}
		res := must(http.DefaultClient.Do(req))(t)
		defer res.Body.Close()
		return res.StatusCode, string(must(io.ReadAll(res.Body))(t))
	}
	if status, answer := complete(y.id, md5Hex(nil)); status != http.StatusPreconditionFailed {
		t.Errorf("complete instead of another object: %d %s", status, answer)
	}
	for n := range 2 {
		ifMatch := ""
		if n == 0 {
			ifMatch = must(c.StatObject(ctx, "images", "big", minio.StatObjectOptions{}))(t).ETag
		}
		if status, answer := complete(y.id, ifMatch); status != http.StatusOK || !strings.Contains(answer, md5Hex(y.sums)+"-1") {
			t.Errorf("complete, time %d: %d %s", n+1, status, answer)
		}
	}
	if got := get(t, c, "big", 0, int64(len(b))); !bytes.Equal(got, b) {
		t.Error("an object is not what it was replaced by")
	}
	z := newUpload(t, c, "big", nil)
	z.send(b)
	if err := c.AbortMultipartUpload(ctx, "images", "big", z.id); err != nil {
		t.Error(err)
	}
	if status, answer := complete(z.id, ""); status != http.StatusNotFound || !strings.Contains(answer, "NoSuchUpload") {
		t.Errorf("complete what was aborted: %d %s", status, answer)
	}
	uploads := must(c.ListMultipartUploads(ctx, "images", "", "", "", "", 10))(t)
	if len(uploads.Uploads) != 0 {
		t.Errorf("left: %+v", uploads.Uploads)
	}
	var left []string
	_ = filepath.WalkDir(filepath.Join(metadataDir(r.dir), "images", ".sgwtmp"), func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != "objname" { // one small file for each key
			left = append(left, p)
		}
		return nil
	})
	if len(left) > 0 {
		t.Errorf("metadata of ended uploads is left: %q", left)
	}

	// OBS knows no checksums but MD5.
	req := must(http.NewRequest("PUT", r.env["IMSPREP_OBS_ENDPOINT"]+"/images/x", bytes.NewReader(small)))(t)
	req.Header.Set("X-Amz-Checksum-Crc32c", "AAAAAA==")
	refused := must(http.DefaultClient.Do(req))(t)
	text := must(io.ReadAll(refused.Body))(t)
	refused.Body.Close()
	if refused.StatusCode != http.StatusBadRequest || !bytes.Contains(text, []byte("XAmzContentSHA256Mismatch")) {
		t.Errorf("a checksum that OBS does not know: %s %s", refused.Status, text)
	}

	// The bucket tells its region; other keys are refused.
	if ok := must(c.BucketExists(ctx, "images"))(t); !ok {
		t.Error("no bucket")
	}
	if got := r.last.Get("X-Amz-Bucket-Region"); got != imstest.DefaultRegion {
		t.Errorf("the bucket's region is %q", got)
	}
	if got := r.last.Get("X-Default-Storage-Class"); got != imstest.StorageStandard {
		t.Errorf("the bucket's storage class is %q", got)
	}
	res := must(http.Head(r.env["IMSPREP_OBS_ENDPOINT"] + "/images"))(t)
	res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("an unsigned request: %s", res.Status)
	}
	for name, bad := range map[string]struct {
		creds *credentials.Credentials
		code  string
	}{
		"wrong secret": {credentials.NewStaticV4(r.env["HW_ACCESS_KEY"], "wrong", ""), "SignatureDoesNotMatch"},
		"unknown key":  {credentials.NewStaticV4("NOSUCHKEY", "wrong", ""), "InvalidAccessKeyId"},
	} {
		_, err := r.core(bad.creds).PutObject(ctx, "images", "x", bytes.NewReader(small[:10]), 10, "", "", minio.PutObjectOptions{})
		if got := minio.ToErrorResponse(err).Code; got != bad.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTerabyteOfZeros composes a disk of 1 TiB with little data the way
// imsprep does: a seed of zeros is sent, a zero object is composed of it, and
// parts of zeros are copied from that.
func TestTerabyteOfZeros(t *testing.T) {
	if runtime.GOOS == "windows" {
		skip(t, "files have no holes here, a terabyte would be written")
	}
	r := start(t)
	c := r.core(nil)
	const seed, mib, gib = 5 << 20, 1 << 20, 1 << 30
	put(t, c, "disk.zero-seed", make([]byte, seed), nil)
	seedSum := md5Hex(make([]byte, seed))

	z := newUpload(t, c, "disk.zero", nil)
	for z.size+seed <= gib {
		z.copy("disk.zero-seed", 0, seed, seedSum)
	}
	if rest := gib - z.size; rest > 0 {
		z.copy("disk.zero-seed", 0, rest, md5Hex(make([]byte, rest)))
	}
	z.complete()

	h := md5.New()
	for range gib / mib {
		h.Write(zeroBytes)
	}
	gibSum := hex.EncodeToString(h.Sum(nil))

	head, middle := random(t, 16*mib), random(t, 16*mib)
	d := newUpload(t, c, "disk.raw", nil)
	d.send(head)
	for d.size < 512*gib {
		d.copy("disk.zero", 0, gib, gibSum)
	}
	at := d.size
	d.send(middle)
	for d.size+gib <= 1024*gib {
		d.copy("disk.zero", 0, gib, gibSum)
	}
	d.copy("disk.zero", 0, 1024*gib-d.size, "")
	d.complete()
	if d.size != 1024*gib {
		t.Fatalf("composed %d bytes", d.size)
	}
	for off, want := range map[int64][]byte{
		0:                head,
		at:               middle,
		at - mib:         make([]byte, mib),
		at + 16*mib:      make([]byte, mib),
		1024*gib - mib:   make([]byte, mib),
		16 * mib:         make([]byte, mib),
		700*gib + 123456: make([]byte, 1000),
	} {
		if !bytes.Equal(get(t, c, "disk.raw", off, int64(len(want))), want) {
			t.Errorf("wrong content at %d", off)
		}
	}
	if n := allocated(t, r.dir); n > 48*mib {
		t.Errorf("a disk with 32 MiB of data takes %d bytes", n)
	}
}

// quickImport imports an object and waits for the job.
func (r *running) quickImport(body map[string]any) (job map[string]any) {
	r.t.Helper()
	status, _, answer := r.do("POST", "/v2/cloudimages/quickimport/action", "", body)
	if status != http.StatusOK {
		r.t.Fatalf("import: %d %v", status, answer)
	}
	for last := -1.0; ; time.Sleep(time.Millisecond) {
		status, _, job = r.do("GET", "/v1/cloudimages/job/"+answer["job_id"].(string), "", nil)
		if status != http.StatusOK {
			r.t.Fatalf("job: %d %v", status, job)
		}
		switch job["status"] {
		case "SUCCESS", "FAIL":
			return job
		case "RUNNING":
			p := job["entities"].(map[string]any)["process_percent"].(float64)
			if p < last {
				r.t.Errorf("the percentage fell from %v to %v", last, p)
			}
			last = p
		}
	}
}

func TestQuickImport(t *testing.T) {
	r := start(t, "--hash-limit", "0")
	c := r.core(nil)
	disk := make([]byte, 9<<20)
	copy(disk[3<<20:], random(t, 1<<20))
	copy(disk[8<<20:], random(t, 1<<20))
	put(t, c, "dir/disk.raw", disk, nil)

	body := map[string]any{"name": "demo", "image_url": "images:dir/disk.raw", "os_version": "Ubuntu 22.04 server 64bit",
		"min_disk": 10, "image_tags": []imstest.Tag{{Key: "run", Value: "a1"}}}
	status, _, answer := r.do("POST", "/v2/cloudimages/quickimport/action", "", body)
	if status != http.StatusBadRequest || !strings.Contains(fmt.Sprint(answer), "IMG.0158") {
		t.Fatalf("without a bitmap: %d %v", status, answer)
	}

	layout := must(bitmap.Lookup(r.env["IMSPREP_CONFIRMED_BITMAP"]))(t)
	m := must(bitmap.NewMap(int64(len(disk)), layout.BlockSize))(t)
	m.MarkRange(3<<20, 1<<20)
	m.MarkRange(8<<20, 1<<20)
	put(t, c, "dir/disk.mf", must(layout.Encode(m))(t), nil)

	job := r.quickImport(body)
	if job["status"] != "SUCCESS" {
		t.Fatalf("job %v", job)
	}
	id := job["entities"].(map[string]any)["image_id"].(string)
	_, _, list := r.do("GET", "/v2/cloudimages?__imagetype=private&tag=run%3Da1", "", nil)
	images := list["images"].([]any)
	if len(images) != 1 {
		t.Fatalf("%d images with the tag", len(images))
	}
	image := images[0].(map[string]any)
	sum := sha256.Sum256(disk)
	if image["id"] != id || image["status"] != "active" || image[imstest.AttrContentSHA256] != hex.EncodeToString(sum[:]) {
		t.Errorf("image %v, want content %x", image, sum)
	}

	// A bitmap that forgets a block makes another disk.
	forgetful := must(bitmap.NewMap(int64(len(disk)), layout.BlockSize))(t)
	forgetful.MarkRange(3<<20, 1<<20)
	put(t, c, "dir/disk.mf", must(layout.Encode(forgetful))(t), nil)
	body["name"] = "damaged"
	job = r.quickImport(body)
	id = job["entities"].(map[string]any)["image_id"].(string)
	_, _, image = r.do("GET", "/v2/images/"+id, "", nil)
	if got := image[imstest.AttrContentSHA256]; got == hex.EncodeToString(sum[:]) || got == nil {
		t.Errorf("a wrong bitmap gives the right content %v", got)
	}
}

// TestTemporaryCredentials: a token buys keys that the object storage takes,
// but only with their security token.
func TestTemporaryCredentials(t *testing.T) {
	t.Setenv("LOCALCLOUD_PASSWORD", "s3cret")
	r := start(t, "--token")
	if r.env["HW_USER_PASSWORD"] != "s3cret" || r.env["HW_SECRET_KEY"] != "" {
		t.Fatalf("environment %v", r.env)
	}
	status, h, answer := r.do("POST", "/v3/auth/tokens?nocatalog=true", "", map[string]any{"auth": map[string]any{
		"identity": map[string]any{"methods": []string{"password"}, "password": map[string]any{"user": map[string]any{
			"name": r.env["HW_USER_NAME"], "password": "s3cret", "domain": map[string]any{"name": r.env["HW_DOMAIN_NAME"]}}}},
		"scope": map[string]any{"project": map[string]any{"name": r.env["HW_REGION_NAME"]}}}})
	if status != http.StatusCreated {
		t.Fatalf("token: %d %v", status, answer)
	}
	status, _, answer = r.do("POST", "/v3.0/OS-CREDENTIAL/securitytokens", h.Get("X-Subject-Token"), map[string]any{"auth": map[string]any{
		"identity": map[string]any{"methods": []string{"token"}, "token": map[string]any{"duration_seconds": 3600}}}})
	if status != http.StatusCreated {
		t.Fatalf("security token: %d %v", status, answer)
	}
	k := answer["credential"].(map[string]any)
	access, secret, token := k["access"].(string), k["secret"].(string), k["securitytoken"].(string)
	put(t, r.core(credentials.NewStaticV4(access, secret, token)), "x", []byte("hello"), nil)
	for name, creds := range map[string]*credentials.Credentials{
		"no token":    credentials.NewStaticV4(access, secret, ""),
		"wrong token": credentials.NewStaticV4(access, secret, "x"),
	} {
		_, err := r.core(creds).StatObject(context.Background(), "images", "x", minio.StatObjectOptions{})
		if got := minio.ToErrorResponse(err).StatusCode; got != http.StatusBadRequest && got != http.StatusForbidden {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCommand(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		skip(t, "there is no shell")
	}
	tmp := t.TempDir()
	dir := t.TempDir()
	for _, tc := range []struct {
		name string
		args []string
		code int
		out  string
	}{
		{"environment", []string{"--region", "eu-test-1", "--bucket", "b-1", "--bucket", "b-2", "--", "sh", "-c", `echo "$HW_REGION_NAME $IMSPREP_BUCKET"`}, 0, "eu-test-1 b-1\n"},
		{"working directory", []string{"--exec", "sh", "-c", "pwd"}, 0, dir + "\n"},
		{"exit code", []string{"--", "sh", "-c", "exit 7"}, 7, ""},
		{"killed", []string{"--", "sh", "-c", "kill -TERM $$"}, 128 + 15, ""},
		{"no such command", []string{"--", "/no/such/command"}, exitNotFound, ""},
		{"nothing after --", []string{"--"}, exitUsage, ""},
		{"unknown flag", []string{"--nonsense"}, exitUsage, ""},
		{"argument", []string{"nonsense"}, exitUsage, ""},
		{"bucket name", []string{"--bucket", "Bad_Name", "--", "true"}, 1, ""},
		{"layout", []string{"--bitmap-layout", "nonsense", "--", "true"}, exitUsage, ""},
		{"help", []string{"--help"}, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := command(t, tc.args...)
			cmd.Dir = dir
			cmd.Env = append(cmd.Env, "TMPDIR="+tmp)
			cmd.Stderr = nil
			out, err := cmd.Output()
			if cmd.ProcessState == nil {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != tc.code {
				t.Errorf("exit code %d, want %d", got, tc.code)
			}
			if tc.out != "" && string(out) != tc.out || tc.out == "" && len(out) > 0 {
				t.Errorf("output %q, want %q", out, tc.out)
			}
			if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// TestSignals: a signal to the local cloud reaches its command, and both end.
func TestSignals(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		skip(t, "there is no shell")
	}
	cmd := command(t, "--", "sh", "-c", `trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.05; done`)
	out := must(cmd.StdoutPipe())(t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, want := range []string{"ready", "got it"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("got %q, want %q", lines.Text(), want)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && want == "ready" {
			t.Fatal(err)
		}
	}
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("exit code %d, want the command's 3", code)
	}
}
