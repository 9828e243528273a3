// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/convert/qcow2/qcow2test"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	region    = "test-1"
	osVersion = "Ubuntu 22.04 server 64bit"
)

// cloud is an object store and an image service in memory.
type cloud struct {
	*pipeline.Importer
	store   *obstest.Server
	sim     *imstest.Server
	service string // endpoint of sim
}

// objects lets the simulated service read the store.
type objects struct{ *obstest.Server }

func (o objects) BucketRegion(_ context.Context, bucket string) (string, error) {
	if bucket != obstest.Bucket {
		return "", fs.ErrNotExist
	}
	return region, nil
}

func (o objects) Stat(_ context.Context, bucket, key string) (int64, string, error) {
	obj := o.Object(bucket, key)
	if obj == nil {
		return 0, "", fs.ErrNotExist
	}
	return obj.Content.Size(), obj.StorageClass, nil
}

func (o objects) Open(_ context.Context, bucket, key string) (imstest.ReaderAtCloser, error) {
	obj := o.Object(bucket, key)
	if obj == nil {
		return nil, fs.ErrNotExist
	}
	return obj.Content, nil
}

// newCloud starts a cloud; the returned function stops it.
func newCloud(t require, store obstest.Options, sim imstest.Options) (*cloud, func()) {
	store.Region = region
	c := &cloud{store: obstest.New(store)}
	sim.Region, sim.Objects = region, objects{c.store}
	sim.Accounts = []imstest.Account{{AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey}}
	c.sim = imstest.New(sim)
	srv := httptest.NewServer(c.sim)
	c.service = srv.URL

	o, err := obs.New(obs.Options{
		Endpoint: c.store.URL(),
		Region:   region,
		Credentials: func(context.Context) (obs.Credentials, error) {
			return obs.Credentials{AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey}, nil
		},
		BackoffBase: time.Millisecond,
		BackoffCap:  5 * time.Millisecond,
	})
	if err != nil {
		t.Fatalf("object store client: %v", err)
	}
	i, err := ims.New(ims.Options{
		Endpoint:       srv.URL,
		IAMEndpoint:    srv.URL,
		Region:         region,
		Auth:           ims.AKSK(ims.StaticCredentials(ims.Credentials{AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey})),
		Retry:          ims.Backoff{MaxAttempts: 3, BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond},
		SubmitRetry:    ims.Backoff{MaxAttempts: 3, BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond},
		LookupInterval: 5 * time.Millisecond,
		LookupLimit:    5 * time.Second,
		AllowPlainHTTP: true,
	})
	if err != nil {
		t.Fatalf("image service client: %v", err)
	}
	c.Importer = &pipeline.Importer{OBS: o, IMS: i, Region: region}
	return c, func() {
		o.Close()
		i.CloseIdleConnections()
		srv.Close()
		c.sim.Close()
		c.store.Close()
	}
}

// require is what *testing.T and *rapid.T have in common here.
type require interface {
	Fatalf(format string, args ...any)
	Helper()
}

func start(t *testing.T, sim imstest.Options) *cloud {
	t.Helper()
	c, stop := newCloud(t, obstest.Options{}, sim)
	t.Cleanup(stop)
	return c
}

func (c *cloud) request(source string) pipeline.Request {
	return pipeline.Request{
		Source:           source,
		Bucket:           obstest.Bucket,
		Key:              "disk.raw",
		Image:            ims.QuickImport{Name: "image", OSVersion: osVersion},
		ConfirmedLayouts: []string{bitmap.DefaultLayout},
		Wait:             ims.WaitOptions{First: time.Millisecond, Interval: 2 * time.Millisecond, MaxInterval: 5 * time.Millisecond, Limit: 30 * time.Second},
	}
}

// run plans and runs.
func (c *cloud) run(ctx context.Context, r pipeline.Request) (*pipeline.Result, error) {
	p, err := c.Plan(ctx, r)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return c.Run(ctx, p)
}

// imageSHA256 is what the service says of the image it made.
func (c *cloud) imageSHA256(t require, id string) string {
	t.Helper()
	return c.attribute(t, id, imstest.AttrContentSHA256)
}

func (c *cloud) attribute(t require, id, name string) string {
	t.Helper()
	img, err := c.IMS.Image(context.Background(), id)
	if err != nil {
		t.Fatalf("image: %v", err)
	}
	return fmt.Sprint(img.Attributes[name])
}

// sparseSum is the sparse hash of a disk in whole GiB, as ZVHD2 has it.
func sparseSum(disk []byte) string {
	h := imstest.NewSparseHash()
	for i := 0; i < len(disk); i += imstest.SparseBlock {
		block := make([]byte, imstest.SparseBlock)
		copy(block, disk[i:])
		h.Add(int64(i/imstest.SparseBlock), block)
	}
	return h.Sum((int64(len(disk)) + 1<<30 - 1) >> 30 << 30)
}

// empty wants nothing in the bucket, and that no request broke OBS's rules.
func (c *cloud) empty(t require) {
	t.Helper()
	if keys := c.store.Keys(obstest.Bucket); len(keys) > 0 {
		t.Fatalf("left in the bucket: %q", keys)
	}
	if uploads := c.store.Uploads(); len(uploads) > 0 {
		t.Fatalf("unfinished uploads: %q", uploads)
	}
	if v := c.store.Violations(); len(v) > 0 {
		t.Fatalf("requests that OBS doesn't document: %q", v)
	}
}

func writeFile(t require, path string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatalf("%v", err)
	}
	return path
}

// sparseDisk is a disk of n bytes with data in some of its pieces.
func sparseDisk(n int, seed uint64, pieces ...int) []byte {
	disk := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	for _, at := range pieces {
		r.Read(disk[min(at, n):min(at+100_000, n)])
	}
	return disk
}

func sum(p []byte) string {
	h := sha256.Sum256(p)
	return hex.EncodeToString(h[:])
}

func TestImportKeepsContent(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		// Whole disks are hashed as long as they are small: a ZVHD2's has at least 1 GiB.
		c, stop := newCloud(t, obstest.Options{}, imstest.Options{HashLimit: 64 << 20})
		defer stop()

		const mib = 1 << 20
		n := rapid.IntRange(1, 28*mib/512).Draw(t, "sectors") * 512
		var at []int
		for _, x := range rapid.SliceOfN(rapid.Float64Range(0, 1), 0, 6).Draw(t, "data") {
			at = append(at, int(x*float64(n)))
		}
		disk := sparseDisk(n, rapid.Uint64Range(0, 1<<16-1).Draw(t, "seed"), at...)

		r := c.request(filepath.Join(dir, "disk.raw"))
		switch format := rapid.SampledFrom([]string{"raw", "qcow2", "zlib", "zstd"}).Draw(t, "format"); format {
		case "raw":
			writeFile(t, r.Source, disk)
		default:
			kind := qcow2test.Plain
			if format != "qcow2" {
				kind = qcow2test.Compressed
			}
			bits := rapid.UintRange(12, 18).Draw(t, "cluster bits")
			img := qcow2test.Image{Version: 3, ClusterBits: bits, Size: int64(n), Zstd: format == "zstd"}
			for i := 0; i<<bits < n; i++ {
				cluster := make([]byte, 1<<bits)
				copy(cluster, disk[i<<bits:])
				if !convert.IsZero(cluster) {
					img.Clusters = append(img.Clusters, qcow2test.Cluster{Index: int64(i), Kind: kind, Data: cluster})
				}
			}
			writeFile(t, r.Source, img.Write().Bytes)
		}
		r.ZeroCopy = rapid.SampledFrom([]obs.ZeroCopyMode{obs.ZeroCopyAuto, obs.ZeroCopyOn, obs.ZeroCopyOff}).Draw(t, "zero copy")
		r.PartSize = rapid.SampledFrom([]int64{0, 6 * mib, 10 * mib, 32 * mib}).Draw(t, "part size")
		r.Workers = rapid.IntRange(0, 3).Draw(t, "workers")
		if rapid.Bool().Draw(t, "data disk") {
			r.Image = ims.QuickImport{Name: "data", Type: ims.TypeDataImage}
		}
		if rapid.Bool().Draw(t, "no copying") && r.ZeroCopy != obs.ZeroCopyOn {
			c.store.Inject(obstest.Refuse(obstest.OpCopyPart, 501, "NotImplemented"))
		}

		r.Format = rapid.SampledFrom([]pipeline.Format{pipeline.FormatRAW, pipeline.FormatZVHD2}).Draw(t, "as")
		r.Key = ""
		res, err := c.run(context.Background(), r)
		if err != nil {
			t.Fatalf("import: %v", err)
		}
		if r.Format == pipeline.FormatZVHD2 {
			if got, want := c.attribute(t, res.ImageID, imstest.AttrContentSparse), sparseSum(disk); got != want {
				t.Fatalf("the image's content is %s, the disk's is %s (sparse hashes)", got, want)
			}
		} else if got := c.imageSHA256(t, res.ImageID); got != sum(disk) {
			t.Fatalf("the image's content is %s, the disk's is %s", got, sum(disk))
		}
		if res.Upload.VirtualSize != int64(n) || res.Status != "active" {
			t.Fatalf("result: %+v", res)
		}
		c.empty(t)
	})
}

func TestImportSendsNoZeros(t *testing.T) {
	const mib = 1 << 20
	c := start(t, imstest.Options{})
	disk := sparseDisk(400*mib, 1, 100*mib)
	res, err := c.run(t.Context(), c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk)))
	if err != nil {
		t.Fatal(err)
	}
	// One part with data, and the zeros that the copies are made of.
	if wire := c.store.Stats().BodyBytes; wire > 32*mib {
		t.Errorf("%d bytes were sent for 100,000 bytes of data", wire)
	} else if mf := int64(4096); res.Upload.BytesSent+mf != wire {
		t.Errorf("the result says %d bytes and a bitmap of %d were sent, the server got %d", res.Upload.BytesSent, mf, wire)
	}
	if res.Upload.DataBytes != 2*mib || res.Upload.Bitmap.DataBlocks != 1 {
		t.Errorf("data: %d bytes, %d blocks; want one block of 2 MiB", res.Upload.DataBytes, res.Upload.Bitmap.DataBlocks)
	}
}

func TestChecksBeforeByteOne(t *testing.T) {
	dir := t.TempDir()
	source := writeFile(t, filepath.Join(dir, "disk.raw"), sparseDisk(1<<20, 1, 0))
	big := filepath.Join(dir, "big.raw")
	if f, err := os.Create(big); err != nil {
		t.Fatal(err)
	} else if err := errors.Join(f.Truncate(pipeline.MaxImageSize+512), f.Close()); err != nil {
		t.Fatal(err)
	}
	header := func(h map[string]string) obstest.Options { return obstest.Options{BucketHeaders: h} }
	tests := map[string]struct {
		store  obstest.Options
		sim    imstest.Options
		before func(t *testing.T, c *cloud)
		change func(r *pipeline.Request)
		want   string // in the error's text
	}{
		"too large":             {change: func(r *pipeline.Request) { r.Source = big }, want: "1 TB"},
		"min_disk too small":    {change: func(r *pipeline.Request) { r.Source = big; r.Image.MinDisk = 10 }, want: "1 TB"},
		"not a key of RAW":      {change: func(r *pipeline.Request) { r.Key = "disk.img" }, want: ".raw"},
		"key with a blank":      {change: func(r *pipeline.Request) { r.Key = "a b.raw" }, want: "blank"},
		"bucket name":           {change: func(r *pipeline.Request) { r.Bucket = "No_Bucket" }, want: "bucket"},
		"no such bucket":        {change: func(r *pipeline.Request) { r.Bucket = "other" }, want: "other"},
		"bucket elsewhere":      {store: header(map[string]string{"x-amz-bucket-region": "cn-north-4"}), want: "cn-north-4"},
		"bucket class":          {store: header(map[string]string{"x-default-storage-class": "GLACIER"}), want: "storage class"},
		"file system":           {store: header(map[string]string{"x-obs-fs-file-interface": "Enabled"}), want: "parallel file system"},
		"image name":            {change: func(r *pipeline.Request) { r.Image.Name = " x" }, want: "name"},
		"operating system":      {change: func(r *pipeline.Request) { r.Image.OSVersion = "Ubuntu 22.04" }, want: osVersion},
		"quota":                 {sim: imstest.Options{Quota: 1}, before: importOne, want: "quota"},
		"name taken":            {before: importOne, change: func(r *pipeline.Request) { r.Image.Name = "first" }, want: `"first" exists`},
		"unconfirmed layout":    {change: func(r *pipeline.Request) { r.ConfirmedLayouts, r.Format = nil, pipeline.FormatRAW }, want: "isn't confirmed"},
		"RAW's key for ZVHD2":   {change: func(r *pipeline.Request) { r.Key, r.Format = "disk.raw", pipeline.FormatZVHD2 }, want: ".zvhd2"},
		"broken layout":         {change: func(r *pipeline.Request) { r.Layout = bitmap.Layout{Name: "nonsense"} }, want: "nonsense"},
		"part size":             {change: func(r *pipeline.Request) { r.PartSize = 1 }, want: "part size"},
		"object exists":         {before: putObject("disk.raw"), want: "disk.raw exists"},
		"bitmap exists":         {before: putObject("disk.mf"), want: "disk.mf exists"},
		"no such disk":          {change: func(r *pipeline.Request) { r.Source = "nowhere.qcow2" }, want: "nowhere.qcow2"},
		"a disk that's no disk": {change: func(r *pipeline.Request) { r.Source = writeFile(t, filepath.Join(dir, "x"), []byte("x")) }, want: "refused"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, stop := newCloud(t, tt.store, tt.sim)
			defer stop()
			if tt.before != nil {
				tt.before(t, c)
			}
			r := c.request(source)
			if tt.change != nil {
				tt.change(&r)
			}
			sent := c.store.Stats().BodyBytes
			_, err := c.run(t.Context(), r)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one that says %q", err, tt.want)
			}
			if now := c.store.Stats().BodyBytes; now != sent {
				t.Errorf("%d bytes were sent before that was found", now-sent)
			}
		})
	}
}

func importOne(t *testing.T, c *cloud) {
	r := c.request(writeFile(t, filepath.Join(t.TempDir(), "first.raw"), sparseDisk(1<<20, 1, 0)))
	r.Image.Name = "first"
	if _, err := c.run(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

func putObject(key string) func(t *testing.T, c *cloud) {
	return func(t *testing.T, c *cloud) {
		content, err := obstest.NewContent(strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		c.store.PutObject(obstest.Bucket, key, &obstest.Object{Content: content})
	}
}

// during runs f once, in the middle of the first part's way to the store.
func (c *cloud) during(op obstest.Op, f func()) {
	var once sync.Once
	c.store.Inject(obstest.Fault{Op: op, Do: obstest.Observe, Match: func(*obstest.Request) bool {
		once.Do(f)
		return true
	}})
}

func TestSourceChangedMeanwhile(t *testing.T) {
	c := start(t, imstest.Options{})
	path := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(20<<20, 1, 0, 9<<20))
	c.during(obstest.OpUploadPart, func() {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_, err = io.WriteString(f, "more")
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Error(err)
		}
	})
	_, err := c.run(t.Context(), c.request(path))
	if err == nil || !strings.Contains(err.Error(), "changed") {
		t.Fatalf("error %v, want one that says that the source changed", err)
	}
	var h interface{ Hint() string }
	if !errors.As(err, &h) || !strings.Contains(h.Hint(), "virtual machine") {
		t.Errorf("%v doesn't say what to do", err)
	}
	c.empty(t)
}

func TestInterruptedUploadLeavesNothing(t *testing.T) {
	for _, op := range []obstest.Op{obstest.OpInitiate, obstest.OpPutObject, obstest.OpUploadPart, obstest.OpCopyPart, obstest.OpListParts, obstest.OpComplete} {
		t.Run(string(op), func(t *testing.T) {
			c := start(t, imstest.Options{})
			path := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(80<<20, 1, 0))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c.during(op, func() {
				cancel()
				// The server finishes what it has begun, later than the client gives up.
				time.Sleep(20 * time.Millisecond)
			})
			_, err := c.run(ctx, c.request(path))
			var interrupted *pipeline.InterruptedError
			if !errors.As(err, &interrupted) || interrupted.Phase != pipeline.PhaseUpload || interrupted.Next == "" {
				t.Fatalf("error %v, want an interrupted upload that says how to go on", err)
			}
			c.store.Quiet() // for what would still appear
			c.empty(t)
		})
	}
}

func TestInterruptedJobGoesOn(t *testing.T) {
	c := start(t, imstest.Options{JobStep: 50 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.Events = func(e pipeline.Event) {
		if e.Phase == pipeline.PhaseJob {
			cancel()
		}
	}
	_, err := c.run(ctx, c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(1<<20, 1, 0))))
	var interrupted *pipeline.InterruptedError
	if !errors.As(err, &interrupted) || interrupted.Phase != pipeline.PhaseJob {
		t.Fatalf("error %v, want an interrupted job", err)
	}
	_, id, ok := strings.Cut(interrupted.Next, "imsprep job wait ")
	if !ok {
		t.Fatalf("%q doesn't say how to follow the job", interrupted.Next)
	}
	id, _, _ = strings.Cut(id, "\n")
	// The service still needs the object; what was said works.
	job, err := c.IMS.WaitJob(t.Context(), id, ims.WaitOptions{Interval: 5 * time.Millisecond, Limit: 30 * time.Second})
	if err != nil || job.ImageID == "" {
		t.Fatalf("the job that goes on: %+v, %v", job, err)
	}
}

// TestRefusedImportTakesTheObjectBack: as long as the service knows of nothing, nothing stays.
func TestRefusedImportTakesTheObjectBack(t *testing.T) {
	c := start(t, imstest.Options{})
	r := c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(1<<20, 1, 0)))
	r.AllowDuplicateName = true
	importOne(t, c)
	r.Image.Name = "first"
	_, err := c.run(t.Context(), r)
	var ie *ims.Error
	if !errors.As(err, &ie) || ie.Code != "IMG.0009" {
		t.Fatalf("error %v, want IMG.0009", err)
	}
	c.empty(t)
}

func TestFailedBitmapTakesTheObjectBack(t *testing.T) {
	c := start(t, imstest.Options{})
	c.store.Inject(obstest.Fault{Op: obstest.OpPutObject, Do: obstest.Fail, Status: 403, Code: "AccessDenied",
		Match: func(r *obstest.Request) bool { return strings.HasSuffix(r.Key, ".mf") }})
	_, err := c.run(t.Context(), c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(1<<20, 1, 0))))
	if obs.KindOf(err) != obs.KindAuth {
		t.Fatalf("error %v, want AccessDenied", err)
	}
	c.empty(t)
}

func TestFailedJobKeepsTheObject(t *testing.T) {
	c := start(t, imstest.Options{Faults: imstest.Faults{FailJobs: "IMG.0057", FailReason: "no reason"}})
	_, err := c.run(t.Context(), c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(1<<20, 1, 0))))
	var failed *ims.JobFailedError
	var kept *pipeline.ObjectKeptError
	if !errors.As(err, &failed) || failed.Code != "IMG.0057" || !errors.As(err, &kept) {
		t.Fatalf("error %v, want a failed job and a kept object", err)
	}
	if keys := c.store.Keys(obstest.Bucket); !slices.Equal(keys, []string{"disk.mf", "disk.raw"}) {
		t.Errorf("in the bucket: %q", keys)
	}
}

// TestLostAnswerMakesOneImage: the import call's answer is lost after the service took it.
func TestLostAnswerMakesOneImage(t *testing.T) {
	c := start(t, imstest.Options{DuplicateNames: true, Faults: imstest.Faults{LoseImportAnswers: 1}})
	res, err := c.run(t.Context(), c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(1<<20, 1, 0))))
	if err != nil {
		t.Fatal(err)
	}
	if !res.Recovered || res.Status != "active" {
		t.Errorf("result %+v, want a recovered active image", res)
	}
	images, err := c.IMS.ListImages(t.Context(), ims.ImageFilter{ImageType: "private"})
	if err != nil || len(images) != 1 {
		t.Errorf("%d images, want 1 (%v)", len(images), err)
	}
	c.empty(t)
}

// TestWrongBitmapShows proves that the simulator's digest depends on the bitmap: without this, the
// other tests could not fail for a wrong one.
func TestWrongBitmapShows(t *testing.T) {
	c := start(t, imstest.Options{})
	disk := sparseDisk(8<<20, 1, 0, 5<<20)
	r := c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk))
	r.NoWait = true
	p, err := c.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := c.Upload(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	mf := c.store.Object(obstest.Bucket, "disk.mf")
	bits, err := io.ReadAll(mf.Content.Reader())
	if err != nil {
		t.Fatal(err)
	}
	bits[0] &^= 1 // the first block is said to hold no data
	content, err := obstest.NewContent(bytes.NewReader(bits))
	if err != nil {
		t.Fatal(err)
	}
	c.store.PutObject(obstest.Bucket, "disk.mf", &obstest.Object{Content: content})
	sub, err := c.IMS.QuickImport(t.Context(), &p.Request.Image, ims.GenAuto)
	if err != nil {
		t.Fatal(err)
	}
	job, err := c.IMS.WaitJob(t.Context(), sub.JobID, r.Wait)
	if err != nil {
		t.Fatal(err)
	}
	clear(disk[:2<<20])
	if got := c.imageSHA256(t, job.ImageID); got != sum(disk) {
		t.Errorf("the image's content is %s, want the disk without its first block, %s", got, sum(disk))
	}
}

func TestNoWaitAndKeepObject(t *testing.T) {
	c := start(t, imstest.Options{JobStep: 20 * time.Millisecond})
	r := c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(1<<20, 1, 0)))
	r.NoWait = true
	res, err := c.run(t.Context(), r)
	if err != nil || res.JobID == "" || !res.ObjectKept {
		t.Fatalf("result %+v, %v", res, err)
	}
	if _, err := c.IMS.WaitJob(t.Context(), res.JobID, r.Wait); err != nil {
		t.Fatal(err)
	}
	r.NoWait, r.KeepObject, r.Overwrite, r.Image.Name = false, true, true, "second"
	res, err = c.run(t.Context(), r)
	if err != nil || !res.ObjectKept || res.ImageID == "" {
		t.Fatalf("result %+v, %v", res, err)
	}
	if keys := c.store.Keys(obstest.Bucket); !slices.Equal(keys, []string{"disk.mf", "disk.raw", "disk.raw.imsprep.json"}) {
		t.Errorf("in the bucket: %q", keys)
	}
}

// TestTagsLeaveNoRoomForTheMarker: an image has ten tags at most; the user's come first.
func TestTagsLeaveNoRoomForTheMarker(t *testing.T) {
	c := start(t, imstest.Options{})
	r := c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(1<<20, 1, 0)))
	for i := range 10 {
		r.Image.Tags = append(r.Image.Tags, ims.Tag{Key: fmt.Sprintf("key%d", i)})
	}
	res, err := c.run(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Warnings) == 0 || !strings.Contains(res.Warnings[0], pipeline.MarkerKey) {
		t.Errorf("warnings %q, want one about the tag %s", res.Warnings, pipeline.MarkerKey)
	}
}

// TestAutoTakesZVHD2 where no bitmap layout is confirmed: it needs no bitmap.
func TestAutoTakesZVHD2(t *testing.T) {
	c := start(t, imstest.Options{HashLimit: 1})
	disk := sparseDisk(30<<20, 3, 0, 21<<20)
	r := c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk))
	r.ConfirmedLayouts, r.Key = nil, ""
	p, err := c.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Format != pipeline.FormatZVHD2 || !strings.Contains(p.Reason, "isn't confirmed") || filepath.Ext(p.Request.Key) != ".zvhd2" {
		t.Fatalf("format %s (%s), key %s", p.Format, p.Reason, p.Request.Key)
	}
	res, err := c.Run(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.attribute(t, res.ImageID, imstest.AttrContentSparse), sparseSum(disk); got != want {
		t.Errorf("the image's content is %s, the disk's is %s (sparse hashes)", got, want)
	}
	if res.Upload.Bitmap != nil || res.Upload.ObjectSize >= int64(len(disk)) || res.Upload.BytesSent != res.Upload.ObjectSize {
		t.Errorf("upload %+v", res.Upload)
	}
	c.empty(t)
}

func TestNames(t *testing.T) {
	for source, want := range map[string]string{
		"/disks/web 01.qcow2": "web-01-run.raw",
		"a.b.qcow2":           "a.b-run.raw",
		"Größe.raw":           "Gr--e-run.raw",
		"...":                 "disk-run.raw",
		"disk":                "disk-run.raw",
	} {
		got := pipeline.DefaultKey(source, "run", pipeline.FormatRAW)
		if got != want {
			t.Errorf("DefaultKey(%q) = %q, want %q", source, got, want)
		}
		if err := obs.ValidateKey(got); err != nil {
			t.Errorf("DefaultKey(%q): %v", source, err)
		}
	}
	if got := pipeline.BitmapKey("a.b/web.01.raw"); got != "a.b/web.01.mf" {
		t.Errorf("BitmapKey: %q", got)
	}
}

// TestTwoImportsOfOneName: disks of one name, imported at the same time, become images of their own.
func TestTwoImportsOfOneName(t *testing.T) {
	c := start(t, imstest.Options{})
	var wg sync.WaitGroup
	for i := range 4 {
		disk := sparseDisk(12<<20, uint64(i+1), 0, 7<<20)
		r := c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk))
		r.Key, r.Image.Name = "", fmt.Sprintf("image-%d", i)
		wg.Go(func() {
			res, err := c.run(t.Context(), r)
			if err != nil {
				t.Error(err)
				return
			}
			img, err := c.IMS.Image(t.Context(), res.ImageID)
			if err != nil || img.Attributes[imstest.AttrContentSHA256] != sum(disk) {
				t.Errorf("image %d isn't its disk (%v)", i, err)
			}
		})
	}
	wg.Wait()
	c.empty(t)
}

// TestReplacedMeanwhile: with a key given by hand, another run's object is noticed before it becomes
// this run's image, and is left alone.
func TestReplacedMeanwhile(t *testing.T) {
	c := start(t, imstest.Options{})
	r := c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(1<<20, 1, 0)))
	c.Events = func(e pipeline.Event) {
		if e.Phase == pipeline.PhaseBitmap && e.State == pipeline.StateDone {
			putObject("disk.raw")(t, c)
		}
	}
	if _, err := c.run(t.Context(), r); err == nil || !strings.Contains(err.Error(), "replaced by somebody else") {
		t.Fatalf("error %v", err)
	}
	if keys := c.store.Keys(obstest.Bucket); !slices.Equal(keys, []string{"disk.raw"}) {
		t.Errorf("in the bucket: %q; want the other one's object and nothing else", keys)
	}
}

// TestOverwriteTakesTheOldBitmapAway before the new object appears.
func TestOverwriteTakesTheOldBitmapAway(t *testing.T) {
	c := start(t, imstest.Options{})
	putObject("disk.raw")(t, c)
	putObject("disk.mf")(t, c)
	r := c.request(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(1<<20, 1, 0)))
	r.Overwrite = true
	c.during(obstest.OpComplete, func() {
		if c.store.Object(obstest.Bucket, "disk.mf") != nil {
			t.Error("the old bitmap would stand beside the new object")
		}
	})
	if _, err := c.run(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	c.empty(t)
}

func TestMinDisk(t *testing.T) {
	for _, tt := range []struct {
		size   int64
		typ    string
		os     string
		wantGB int
	}{
		{1, "", osVersion, 10},
		{10 << 30, "", osVersion, 10},
		{10<<30 + 1, "", osVersion, 11},
		{1, "", "Windows Server 2019 Standard 64bit", 20},
		{2147991552, ims.TypeDataImage, "", 10},
		{1 << 40, "", osVersion, 1024},
	} {
		if got := pipeline.MinDisk(tt.size, tt.typ, tt.os); got != tt.wantGB {
			t.Errorf("MinDisk(%d, %q, %q) = %d, want %d", tt.size, tt.typ, tt.os, got, tt.wantGB)
		}
	}
}
