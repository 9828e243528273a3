// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/convert"
)

// TestWrongBitmap proves that the content is made of the marked blocks only.
func TestWrongBitmap(t *testing.T) {
	f := newFixture(t, Options{DuplicateNames: true})
	disk := testDisk()
	f.putDisk("img/demo", disk)
	right := hexSHA256(disk)
	content := func() any { return f.image(f.wait(f.submit(body())))[AttrContentSHA256] }
	if got := content(); got != right {
		t.Fatalf("with the right bitmap: %v, want %s", got, right)
	}
	data := mapOf(t, disk)
	for forget := range data.Blocks() {
		m, err := bitmap.NewMap(data.VirtualSize(), data.BlockSize())
		if err != nil {
			t.Fatal(err)
		}
		for b := range data.Blocks() {
			if data.Data(b) && b != forget {
				m.MarkRange(b*data.BlockSize(), 1)
			}
		}
		f.objects.Put("bkt", "img/demo.mf", encodeMap(t, m), "")
		got := content()
		if changed := got != right; got == nil || changed != data.Data(forget) {
			t.Errorf("block %d not marked: content %v", forget, got)
		}
	}
	// Marking what is zero costs reading, but changes nothing.
	all, err := bitmap.NewMap(data.VirtualSize(), data.BlockSize())
	if err != nil {
		t.Fatal(err)
	}
	all.MarkRange(0, data.VirtualSize())
	f.objects.Put("bkt", "img/demo.mf", encodeMap(t, all), "")
	if got := content(); got != right {
		t.Errorf("with every block marked: %v", got)
	}
}

func TestFailures(t *testing.T) {
	disk := testDisk()
	for _, tc := range []struct {
		name    string
		prepare func(f *fixture)
		code    string
		reason  string
	}{
		{"bitmap too short", func(f *fixture) { f.objects.Put("bkt", "img/demo.mf", make([]byte, 4095), "") }, "IMG.1075", "4095 bytes"},
		{"bitmap empty", func(f *fixture) { f.objects.Put("bkt", "img/demo.mf", nil, "") }, "IMG.1075", "0 bytes"},
		{"bit after the end", func(f *fixture) {
			p := make([]byte, 4096)
			p[4095] = 0x80
			f.objects.Put("bkt", "img/demo.mf", p, "")
		}, "IMG.1075", "bitmap"},
		{"told to", func(f *fixture) { f.server.SetFaults(Faults{FailJobs: "IMG.0057", FailReason: "because"}) }, "IMG.0057", "because"},
		{"told to, documented reason", func(f *fixture) { f.server.SetFaults(Faults{FailJobs: "IMG.0072"}) }, "IMG.0072", "not supported"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t, Options{})
			f.putDisk("img/demo", disk)
			tc.prepare(f)
			job := f.wait(f.submit(body()))
			why, _ := job["fail_reason"].(string)
			if job["status"] != jobFail || job["error_code"] != tc.code || !strings.Contains(why, tc.reason) {
				t.Errorf("job %v", job)
			}
			im := f.image(job)
			if im["status"] != statusKilled || im[AttrContentSHA256] != nil {
				t.Errorf("image %v", im)
			}
			// What is left can be removed, and doesn't hold the name.
			if a := f.do("DELETE", "/v2/images/"+im["id"].(string), nil); a.status != http.StatusNoContent {
				t.Errorf("delete: %d %s", a.status, a.raw)
			}
		})
	}
}

func TestBrokenStorage(t *testing.T) {
	l := layout(t)
	big := &bigObjects{size: 8 << 20, fail: true}
	m, err := bitmap.NewMap(big.size, l.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	m.MarkRange(0, big.size)
	big.mf = encodeMap(t, m)
	f := newFixture(t, Options{Objects: big})
	if job := f.wait(f.submit(body())); job["error_code"] != "IMG.0057" {
		t.Errorf("job %v", job)
	}
}

// TestLifeCycle looks at a job and its image in each of their states.
func TestLifeCycle(t *testing.T) {
	t.Run("waiting", func(t *testing.T) {
		f := newFixture(t, Options{JobStep: time.Hour, MaxTasks: 2})
		f.putDisk("img/demo", testDisk())
		id := f.submit(body())
		a := f.do("GET", "/v1/cloudimages/job/"+id, nil)
		if a.body["status"] != jobInit || a.body["end_time"] != "" || a.body["error_code"] != nil {
			t.Errorf("job %s", a.raw)
		}
		images := f.list("name", "demo", "__imagetype", "private")
		if len(images) != 1 || images[0]["status"] != statusQueued {
			t.Fatalf("images %v", images)
		}
		if a := f.do("DELETE", "/v2/images/"+images[0]["id"].(string), nil); a.code() != "IMG.0090" {
			t.Errorf("delete: %d %s", a.status, a.raw)
		}
		f.submit(body("name", "second"))
		if a := f.do("POST", quickPath, body("name", "third")); a.code() != "IMG.0060" {
			t.Errorf("a third task: %s", a.raw)
		}
	})
	t.Run("running", func(t *testing.T) {
		opened, goOn := make(chan bool), make(chan bool)
		big := &bigObjects{size: 4 << 20, mf: make([]byte, 4096), open: func() { opened <- true; <-goOn }}
		f := newFixture(t, Options{Objects: big})
		id := f.submit(body())
		<-opened
		a := f.do("GET", "/v1/cloudimages/job/"+id, nil)
		e := a.body["entities"].(map[string]any)
		if p, _ := e["process_percent"].(float64); a.body["status"] != jobRunning || p <= 0 || p >= 1 || e["subJobId"] == "" {
			t.Errorf("progress %s", a.raw)
		}
		old := f.do("GET", "/v1/"+f.server.ProjectID()+"/jobs/"+id, nil)
		if old.body["status"] != jobRunning || strings.Contains(string(old.raw), "process_percent") {
			t.Errorf("status %s", old.raw)
		}
		if im := f.image(a.body); im["status"] != statusSaving {
			t.Errorf("image %v", im)
		}
		goOn <- true
		job := f.wait(id)
		if job["status"] != jobSuccess || f.image(job)["status"] != statusActive {
			t.Errorf("job %v", job)
		}
		if n := big.read.Load(); n != 0 {
			t.Errorf("%d bytes were read of a disk without data", n)
		}
	})
}

func TestUnknownJob(t *testing.T) {
	f := newFixture(t, Options{})
	if a := f.do("GET", "/v1/cloudimages/job/nothing", nil); a.status != http.StatusBadRequest || a.code() != "IMG.0031" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if a := f.do("GET", "/v1/another/jobs/nothing", nil); a.code() != "IMG.0067" {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

// TestCloseEndsWork: a terabyte of zeros would take minutes to hash.
func TestCloseEndsWork(t *testing.T) {
	started := make(chan bool, 1)
	big := &bigObjects{size: 1 << 40, mf: make([]byte, 16*4096), open: func() { started <- true }}
	f := newFixture(t, Options{Objects: big})
	f.submit(body("min_disk", 1024))
	<-started
	f.server.Close() // hangs if the job does not end; goleak sees it if it lives on
	if a := f.do("GET", "/v1/cloudimages/quota", nil); a.status != http.StatusServiceUnavailable {
		t.Errorf("after Close: %d", a.status)
	}
}

// TestHashLimit: a disk above the limit has the sparse hash alone, fast.
func TestHashLimit(t *testing.T) {
	l := layout(t)
	big := &bigObjects{size: 1 << 40}
	m, err := bitmap.NewMap(big.size, l.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	m.MarkRange(300<<30, 3<<20)
	big.mf = encodeMap(t, m)
	f := newFixture(t, Options{Objects: big, HashLimit: 1 << 30})
	im := f.image(f.wait(f.submit(body("min_disk", 1024))))
	if im["status"] != statusActive || im[AttrContentSHA256] != nil || im[AttrContentSize] != "1099511627776" || im[AttrContentData] != "4194304" {
		t.Fatalf("image %v", im)
	}
	h := sha256.New()
	block := make([]byte, SparseBlock)
	for i := range block {
		block[i] = 0xa5
	}
	for _, b := range []uint64{300 << 9, 300<<9 + 1} {
		sum := sha256.Sum256(block)
		h.Write(binary.BigEndian.AppendUint64(nil, b))
		h.Write(sum[:])
	}
	h.Write(binary.BigEndian.AppendUint64(nil, 1<<40))
	if want := hex.EncodeToString(h.Sum(nil)); im[AttrContentSparse] != want {
		t.Errorf("sparse hash %v, want %s", im[AttrContentSparse], want)
	}
	if n := big.read.Load(); n != 4<<20 {
		t.Errorf("%d bytes were read, 4 MiB are marked", n)
	}
}

// TestRebuild compares, for any block size, content and marks, with the disk
// put together the simple way.
func TestRebuild(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		block := int64(512) << rapid.IntRange(0, 14).Draw(t, "log2 of the block")
		size := rapid.Int64Range(1, 5<<20).Draw(t, "size")
		m, err := bitmap.NewMap(size, block)
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(0, 6).Draw(t, "ranges") {
			off := rapid.Int64Range(0, size-1).Draw(t, "offset")
			m.MarkRange(off, rapid.Int64Range(1, size-off).Draw(t, "length"))
		}
		src := &bigObjects{size: size}
		want := make([]byte, size)
		var data int64
		for b := range m.Blocks() {
			if m.Data(b) {
				p := want[b*block : min((b+1)*block, size)]
				copy(p, bytes.Repeat([]byte{0xa5}, len(p)))
				data += int64(len(p))
			}
		}
		last := -1.0
		c, err := rebuild(t.Context(), rawDisk(src, m), 0, func(p float64) error {
			if p < last || p > 1 {
				t.Fatalf("progress from %v to %v", last, p)
			}
			last = p
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if c.sha256 != hexSHA256(want) || c.size != size || c.data != data || src.read.Load() != data || last != 1 {
			t.Fatalf("content %+v, %d bytes read, progress %v; want %s, %d bytes of data", c, src.read.Load(), last, hexSHA256(want), data)
		}
		sparse := NewSparseHash()
		for off := int64(0); off < size; off += SparseBlock {
			sparse.Add(off/SparseBlock, want[off:min(off+SparseBlock, size)])
		}
		if got := sparse.Sum(size); got != c.sparse {
			t.Fatalf("sparse hash %s, want %s", c.sparse, got)
		}
	})
}

// TestZVHD2 rebuilds a file of the vendor's own writer.
func TestZVHD2(t *testing.T) {
	const golden = "../../../testdata/zvhd2/tiny.zvhd2.gz"
	f := newFixture(t, Options{DuplicateNames: true})
	packed, err := os.Open(golden)
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	image, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	f.objects.Put("bkt", "demo.zvhd2", image, "")
	im := f.image(f.wait(f.submit(body("image_url", "bkt:demo.zvhd2"))))
	// Size and sum are the vendor's reader's, from testdata/zvhd2/manifest.tsv.
	if im["status"] != statusActive || im[AttrContentSize] != "1073741824" ||
		im[AttrContentSHA256] != "3b338b7cf7f2fa57e224eb170a4b0004f462851adaada204d2f884ec9e8a2e6b" {
		t.Errorf("image %v", im)
	}
	broken := bytes.Clone(image)
	broken[len(broken)-1000] ^= 0xff
	broken[len(broken)-4096+100] ^= 0xff // the footer's checksum no longer holds
	f.objects.Put("bkt", "demo.zvhd2", broken, "")
	if job := f.wait(f.submit(body("image_url", "bkt:demo.zvhd2"))); job["error_code"] != "IMG.0057" {
		t.Errorf("a broken footer: %v", job)
	}
	f.objects.Put("bkt", "demo.zvhd2", make([]byte, 4*4096), "")
	if job := f.wait(f.submit(body("image_url", "bkt:demo.zvhd2"))); job["error_code"] != "IMG.0057" {
		t.Errorf("not ZVHD2: %v", job)
	}
}

// TestZVHD2LargerThanMinDisk: the size that counts is in whole GiB.
func TestZVHD2LargerThanMinDisk(t *testing.T) {
	f := newFixture(t, Options{})
	raw := filepath.Join(t.TempDir(), "disk.raw")
	if err := errors.Join(os.WriteFile(raw, nil, 0o600), os.Truncate(raw, 40*gib+512)); err != nil {
		t.Fatal(err)
	}
	d, err := convert.Open(t.Context(), raw, convert.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var image bytes.Buffer
	if _, err := convert.EncodeZVHD2(t.Context(), d, &image, convert.ZVHD2Options{}); err != nil {
		t.Fatal(err)
	}
	f.objects.Put("bkt", "demo.zvhd2", image.Bytes(), "")
	if job := f.wait(f.submit(body("image_url", "bkt:demo.zvhd2", "min_disk", 40))); job["error_code"] != "IMG.0055" {
		t.Errorf("min_disk below the disk: %v", job)
	}
}

func rawDisk(src io.ReaderAt, m *bitmap.Map) disk {
	return disk{m.VirtualSize(), func(off int64, p []byte) (int64, error) { return readMarked(src, m, off, p) }}
}
