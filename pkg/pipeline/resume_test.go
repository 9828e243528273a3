// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

var errDead = errors.New("the process is dead")

// mortal lets requests of one run through until it dies, before one of them or after its answer. What
// the run does after that has no effect: not even cleaning up.
type mortal struct {
	next   http.RoundTripper
	before int // dies before this request, from 1; 0 = never
	after  int // dies after the answer to this one
	die    func()

	mu   sync.Mutex
	seen int
	dead bool
}

func (m *mortal) RoundTrip(r *http.Request) (*http.Response, error) {
	m.mu.Lock()
	m.seen++
	n := m.seen
	if !m.dead && n == m.before {
		m.dead = true
		m.die()
	}
	dead := m.dead
	m.mu.Unlock()
	if dead {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, errDead
	}
	// The server finishes what it has begun, whatever becomes of the client.
	resp, err := m.next.RoundTrip(r.WithContext(context.WithoutCancel(r.Context())))
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dead && n == m.after {
		m.dead = true
		m.die()
	}
	if m.dead && err == nil {
		_ = resp.Body.Close()
		return nil, errDead
	}
	return resp, err
}

// importer is another process's view of the cloud.
func (c *cloud) importer(t *testing.T, m *mortal) *pipeline.Importer {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	m.next = transport
	o, err := obs.New(obs.Options{
		Endpoint: c.store.URL(), Region: region, Transport: m,
		Credentials: func(context.Context) (obs.Credentials, error) {
			return obs.Credentials{AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey}, nil
		},
		BackoffBase: time.Millisecond, BackoffCap: 2 * time.Millisecond, MaxAttempts: 3,
	})
	if err != nil {
		t.Fatal(err)
	}
	i, err := ims.New(ims.Options{
		Endpoint: c.service, IAMEndpoint: c.service, Region: region, HTTPClient: &http.Client{Transport: m},
		Auth:           ims.AKSK(ims.StaticCredentials(ims.Credentials{AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey})),
		Retry:          ims.Backoff{MaxAttempts: 2, BaseDelay: time.Millisecond, MaxDelay: 2 * time.Millisecond},
		SubmitRetry:    ims.Backoff{MaxAttempts: 2, BaseDelay: time.Millisecond, MaxDelay: 2 * time.Millisecond},
		LookupInterval: 5 * time.Millisecond, LookupLimit: 40 * time.Millisecond, AllowPlainHTTP: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &pipeline.Importer{OBS: o, IMS: i, Region: region}
}

func runWith(ctx context.Context, i *pipeline.Importer, r pipeline.Request) (*pipeline.Result, error) {
	p, err := i.Plan(ctx, r)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	res, err := i.Run(ctx, p)
	if res != nil {
		res.Warnings = p.Warnings
	}
	return res, err
}

// files reads a folder whole; restore puts it back as it was.
func files(t *testing.T, dir string) map[string][]byte {
	m := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a temporary file that has just become the journal
			t.Error(err)
		} else if err == nil {
			m[e.Name()] = b
		}
	}
	return m
}

func restore(t *testing.T, dir string, m map[string][]byte) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	for name, b := range m {
		writeFile(t, filepath.Join(dir, name), b)
	}
}

const (
	resumeMiB  = 1 << 20
	resumeSize = 28 * resumeMiB
)

// resumeDisk has data at both ends and zeros that are worth copying.
func resumeDisk() []byte {
	disk := make([]byte, resumeSize)
	copy(disk, noise(7, 11*resumeMiB))
	copy(disk[23*resumeMiB:], noise(8, 5*resumeMiB))
	return disk
}

func noise(seed byte, n int) []byte {
	p := make([]byte, n)
	for at := 0; at < n; at += 100_000 {
		copy(p[at:], sparseDisk(100_000, uint64(seed)<<8+uint64(at/100_000)%251, 0))
	}
	return p
}

func (c *cloud) resumable(path, dir string, f pipeline.Format) pipeline.Request {
	r := c.request(path)
	r.Key, r.Format, r.StateDir, r.PartSize, r.Workers = "", f, dir, 5*resumeMiB, 1
	return r
}

// checkImage wants one image with the disk's content, and nothing in the bucket or the state folder.
func (c *cloud) checkImage(t *testing.T, id string, disk []byte, f pipeline.Format, dir string) {
	t.Helper()
	images, err := c.IMS.ListImages(t.Context(), ims.ImageFilter{ImageType: "private"})
	if err != nil || len(images) != 1 || images[0].ID != id {
		t.Fatalf("%d images instead of %s alone (%v)", len(images), id, err)
	}
	if f == pipeline.FormatZVHD2 {
		if got, want := c.attribute(t, id, imstest.AttrContentSparse), sparseSum(disk); got != want {
			t.Fatalf("the image's content is %s, the disk's is %s (sparse hashes)", got, want)
		}
	} else if got := c.imageSHA256(t, id); got != sum(disk) {
		t.Fatalf("the image's content is %s, the disk's is %s", got, sum(disk))
	}
	c.empty(t)
	if left := files(t, dir); len(left) > 0 {
		t.Fatalf("left in the state folder: %q", slices.Sorted(keysOf(left)))
	}
}

func keysOf(m map[string][]byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// TestDeathAtEveryRequest ends a run before each of its requests and after each answer, as kill -9 does:
// the journal stays as it is at that moment, and nothing is cleaned up. The same request then makes one
// image with the disk's content and leaves nothing.
func TestDeathAtEveryRequest(t *testing.T) {
	disk := resumeDisk()
	path := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk)
	for _, f := range []pipeline.Format{pipeline.FormatRAW, pipeline.FormatZVHD2} {
		t.Run(string(f), func(t *testing.T) {
			total, resumed := 0, 0
			step := 1
			if raceEnabled || testing.Short() {
				step = 5
			}
			for n := 1; total == 0 || n <= total; n += step {
				for _, after := range []bool{false, true} {
					if !after && n%4 != 1 {
						continue // it is nearly the same as after the answer to the one before
					}
					c, stop := newCloud(t, obstest.Options{}, imstest.Options{HashLimit: 64 << 20})
					dir := filepath.Join(t.TempDir(), "state")
					ctx, cancel := context.WithCancel(t.Context())
					var journal map[string][]byte
					m := &mortal{die: func() {
						journal = files(t, dir)
						cancel()
					}}
					if m.before = n; after {
						m.before, m.after = 0, n
					}
					r := c.resumable(path, dir, f)
					res, err := runWith(ctx, c.importer(t, m), r)
					cancel()
					if m.dead {
						c.store.Quiet()
						restore(t, dir, journal)
						what := fmt.Sprintf("death at request %d, after its answer: %v", n, after)
						res, err = runWith(t.Context(), c.importer(t, &mortal{}), r)
						if err != nil {
							// When all was done but said, the image is what the next run finds.
							var check *pipeline.CheckError
							if !errors.As(err, &check) || !strings.Contains(err.Error(), "exists:") || len(journal) > 0 {
								t.Fatalf("%s: %v", what, err)
							}
							_, id, _ := strings.Cut(check.What, "exists: ")
							res = &pipeline.Result{ImageID: id}
						}
						resumed += res.Upload.PartsResumed
						for _, w := range res.Warnings {
							if strings.Contains(w, "anew") {
								t.Errorf("%s: %s", what, w)
							}
						}
						if t.Failed() {
							t.Fatal(what)
						}
					} else {
						if err != nil {
							t.Fatal(err)
						}
						total = n - 1
					}
					c.checkImage(t, res.ImageID, disk, f, dir)
					stop()
				}
			}
			t.Logf("%d requests, %d parts resumed", total, resumed)
			if resumed == 0 {
				t.Error("nothing was ever resumed")
			}
		})
	}
}

// interrupted runs a request until the store has some parts, and returns the journal's path.
func (c *cloud) interrupted(t *testing.T, r pipeline.Request, parts int) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	c.store.Inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Observe, Match: func(*obstest.Request) bool {
		if n++; n > parts {
			cancel()
		}
		return true
	}})
	_, err := runWith(ctx, c.importer(t, &mortal{}), r)
	var e *pipeline.InterruptedError
	if !errors.As(err, &e) || e.Phase != pipeline.PhaseUpload || !strings.Contains(e.Next, "goes on from there") {
		t.Fatalf("error %v, want an interrupted upload that can be resumed", err)
	}
	c.store.ClearFaults()
	c.store.Quiet()
	if u := c.store.Uploads(); len(u) != 1 || len(c.store.Keys(obstest.Bucket)) != 0 {
		t.Fatalf("uploads %q, objects %q: want the unfinished upload alone", u, c.store.Keys(obstest.Bucket))
	}
	found, err := filepath.Glob(filepath.Join(r.StateDir, "*.json"))
	if err != nil || len(found) != 1 {
		t.Fatalf("journals %q (%v)", found, err)
	}
	fi, err := os.Stat(found[0])
	if err != nil || fi.Mode().Perm()&0o077 != 0 {
		t.Fatalf("mode %v (%v): others may read it", fi.Mode(), err)
	}
	b, err := os.ReadFile(found[0])
	if err != nil || strings.Contains(string(b), obstest.SecretKey) || strings.Contains(string(b), obstest.AccessKey) {
		t.Fatalf("keys in the journal (%v)", err)
	}
	return found[0]
}

// TestUselessJournals: whatever is in the way of resuming, the import is right, and one sentence says why
// it started anew.
func TestUselessJournals(t *testing.T) {
	edit := func(change func(b []byte) []byte) func(*testing.T, *cloud, *pipeline.Request, string) {
		return func(t *testing.T, _ *cloud, _ *pipeline.Request, journal string) {
			b, err := os.ReadFile(journal)
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, journal, change(b))
		}
	}
	for name, tt := range map[string]struct {
		change func(t *testing.T, c *cloud, r *pipeline.Request, journal string)
		anew   string // what is said; "" if the upload is resumed
		lost   bool   // nobody can know of the old upload any more
	}{
		"as it was":  {change: func(*testing.T, *cloud, *pipeline.Request, string) {}},
		"other name": {change: func(_ *testing.T, _ *cloud, r *pipeline.Request, _ string) { r.Image.Name = "other" }},
		"cut off":    {change: edit(func(b []byte) []byte { return b[:len(b)/2] }), anew: "damaged or cut off", lost: true},
		"empty":      {change: edit(func([]byte) []byte { return nil }), anew: "damaged or cut off", lost: true},
		"a flipped bit": {change: edit(func(b []byte) []byte {
			b[strings.Index(string(b), `"note":"`)+12] ^= 1
			return b
		}), anew: "checksum", lost: true},
		"another version": {change: edit(func(b []byte) []byte {
			return []byte(strings.Replace(string(b), `"imsprep_journal":1`, `"imsprep_journal":9`, 1))
		}), anew: "version 9", lost: true},
		"a folder": {change: func(t *testing.T, _ *cloud, _ *pipeline.Request, journal string) {
			if err := errors.Join(os.Remove(journal), os.Mkdir(journal, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, anew: "isn't a file", lost: true},
		"another plan":   {change: func(_ *testing.T, _ *cloud, r *pipeline.Request, _ string) { r.PartSize = 9 * resumeMiB }, anew: "cut in another way"},
		"another format": {change: func(_ *testing.T, _ *cloud, r *pipeline.Request, _ string) { r.Format = pipeline.FormatZVHD2 }, anew: "sent raw, not zvhd2"},
		"restart":        {change: func(_ *testing.T, _ *cloud, r *pipeline.Request, _ string) { r.Restart = true }, anew: "as was asked for"},
		"upload gone": {change: func(_ *testing.T, c *cloud, _ *pipeline.Request, _ string) {
			c.store.AbortUploads(c.store.Uploads()[0])
		},
			anew: "unfinished upload is gone"},
		"source written to": {change: func(t *testing.T, _ *cloud, r *pipeline.Request, _ string) {
			later := time.Now().Add(3 * time.Second)
			if err := os.Chtimes(r.Source, later, later); err != nil {
				t.Fatal(err)
			}
		}, anew: `"disk.raw" was written to`},
		"first bytes changed": {change: func(t *testing.T, _ *cloud, r *pipeline.Request, _ string) {
			fi, err := os.Stat(r.Source)
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(r.Source, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("other"), 0)
				err = errors.Join(err, f.Close(), os.Chtimes(r.Source, fi.ModTime(), fi.ModTime()))
			}
			if err != nil {
				t.Fatal(err)
			}
		}, anew: "first bytes"},
		"another file": {change: func(t *testing.T, _ *cloud, r *pipeline.Request, _ string) {
			fi, err := os.Stat(r.Source)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(r.Source)
			if err == nil {
				writeFile(t, r.Source+".new", b)
				err = errors.Join(os.Chtimes(r.Source+".new", fi.ModTime(), fi.ModTime()), os.Rename(r.Source+".new", r.Source))
			}
			if err != nil {
				t.Fatal(err)
			}
		}, anew: "another file of the same name"},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, imstest.Options{HashLimit: 64 << 20})
			dir := filepath.Join(t.TempDir(), "state")
			r := c.resumable(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), resumeDisk()), dir, pipeline.FormatRAW)
			journal := c.interrupted(t, r, 2)
			old := c.store.Uploads()
			sent := c.store.Stats().BodyBytes
			tt.change(t, c, &r, journal)
			var first *pipeline.Event
			early := false
			i := c.importer(t, &mortal{})
			i.Events = func(e pipeline.Event) {
				if e.State == pipeline.StateStart && e.Phase == pipeline.PhaseUpload {
					first = &e
				}
				early = early || e.State == pipeline.StateProgress && first == nil
			}
			res, err := runWith(t.Context(), i, r)
			if err != nil {
				t.Fatal(err)
			}
			said := strings.Join(res.Warnings, "\n")
			if strings.Count(said, "starts anew") != min(len(tt.anew), 1) || !strings.Contains(said, tt.anew) {
				t.Errorf("it said %q, want %q", said, tt.anew)
			}
			if resumed := res.Upload.PartsResumed > 0; resumed != (tt.anew == "") || resumed != (first.Resumed > 0) || res.Resumed != resumed || early ||
				strings.Contains(first.Note, "resuming") {
				t.Errorf("result %+v, first event %+v, progress before it: %v", res, first, early)
			}
			if tt.anew == "" && res.Upload.BytesSent+res.Upload.BytesResumed-c.store.Stats().BodyBytes+sent > res.Upload.BytesResumed {
				t.Errorf("%d bytes were sent", c.store.Stats().BodyBytes-sent)
			}
			if tt.lost {
				if u := c.store.Uploads(); !slices.Equal(u, old) {
					t.Errorf("uploads %q, want the one that nobody knows any more, %q", u, old)
				}
				c.store.AbortUploads(old[0])
			}
			if name == "a folder" { // it isn't ours to remove
				_ = os.Remove(journal)
			}
			disk, err := os.ReadFile(r.Source)
			if err != nil {
				t.Fatal(err)
			}
			c.checkImage(t, res.ImageID, disk, r.Format, dir)
		})
	}
}

// TestTwoRunsAtOnce: the second is refused, and the first isn't disturbed.
func TestTwoRunsAtOnce(t *testing.T) {
	c := start(t, imstest.Options{HashLimit: 64 << 20})
	dir := filepath.Join(t.TempDir(), "state")
	disk := resumeDisk()
	r := c.resumable(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk), dir, pipeline.FormatRAW)
	p, err := c.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var busy *pipeline.BusyError
	if _, err := runWith(t.Context(), c.importer(t, &mortal{}), r); !errors.As(err, &busy) || busy.PID != os.Getpid() {
		t.Fatalf("error %v, want that this process is at work", err)
	}
	other := r
	other.Key = "other.raw"
	q, err := c.Plan(t.Context(), other)
	if err != nil {
		t.Fatalf("with a key of its own: %v", err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	res, err := c.Run(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	c.checkImage(t, res.ImageID, disk, r.Format, dir)
}

// TestNoPlaceForTheJournal: that is told once, the import goes on, and what fails leaves nothing.
func TestNoPlaceForTheJournal(t *testing.T) {
	disk := resumeDisk()
	for name, block := range map[string]func(t *testing.T, dir string){
		"no folder": func(t *testing.T, dir string) { writeFile(t, dir, []byte("a file")) },
		// As on a full disk: the lock can be had, but nothing can be written.
		"no room": func(t *testing.T, dir string) {
			p := filepath.Join(dir, "x")
			if err := os.MkdirAll(p, 0o700); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, imstest.Options{HashLimit: 64 << 20})
			dir := filepath.Join(t.TempDir(), "state")
			r := c.resumable(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk), dir, pipeline.FormatRAW)
			block(t, dir)
			i := c.importer(t, &mortal{})
			p, err := i.Plan(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if name == "no room" {
				locks, err := filepath.Glob(filepath.Join(dir, "*.lock"))
				if err != nil || len(locks) != 1 {
					t.Fatalf("%q, %v", locks, err)
				}
				if err := os.MkdirAll(filepath.Join(strings.TrimSuffix(locks[0], ".lock")+".json.tmp", "full"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			c.store.Inject(obstest.Refuse(obstest.OpListParts, 503, "ServiceUnavailable"))
			if _, err := i.Run(t.Context(), p); obs.KindOf(err) != obs.KindTransient {
				t.Fatal(err)
			}
			c.store.ClearFaults()
			c.empty(t)
			res, err := i.Run(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			said := 0
			for _, w := range res.Warnings {
				if strings.Contains(w, "resume") {
					said++
				}
			}
			if want := 1 + strings.Count(name, "room"); said != want { // once a run
				t.Errorf("warnings %q", res.Warnings)
			}
			if got := c.imageSHA256(t, res.ImageID); got != sum(disk) {
				t.Errorf("the image's content is %s", got)
			}
			c.empty(t)
		})
	}
}

// TestTroubleThatPasses: the store or the service has trouble at each step. The run ends with what can
// be gone on with, and the same request does.
func TestTroubleThatPasses(t *testing.T) {
	mf := func(r *obstest.Request) bool { return strings.HasSuffix(r.Key, ".mf") }
	for name, tt := range map[string]struct {
		fault obstest.Fault
		kind  obs.Kind
		least int64 // bytes that are there afterwards
	}{
		"parts":         {obstest.Fault{Op: obstest.OpUploadPart, After: 2, Do: obstest.Fail, Status: 503, Code: "SlowDown"}, obs.KindTransient, 5 * resumeMiB},
		"keys ended":    {obstest.Fault{Op: obstest.OpUploadPart, After: 2, Do: obstest.Fail, Status: 403, Code: "ExpiredToken"}, obs.KindAuth, 5 * resumeMiB},
		"bucket full":   {obstest.Fault{Op: obstest.OpUploadPart, After: 2, Do: obstest.Fail, Status: 403, Code: "InsufficientStorageSpace"}, obs.KindQuota, 5 * resumeMiB},
		"beginning":     {obstest.Refuse(obstest.OpInitiate, 503, "ServiceUnavailable"), obs.KindTransient, 0},
		"list of parts": {obstest.Refuse(obstest.OpListParts, 503, "ServiceUnavailable"), obs.KindTransient, resumeSize},
		"completing":    {obstest.Refuse(obstest.OpComplete, 503, "ServiceUnavailable"), obs.KindTransient, resumeSize},
		"the bitmap":    {obstest.Fault{Op: obstest.OpPutObject, Match: mf, Do: obstest.Fail, Status: 503}, obs.KindTransient, resumeSize},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, imstest.Options{HashLimit: 64 << 20})
			dir := filepath.Join(t.TempDir(), "state")
			disk := resumeDisk()
			r := c.resumable(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk), dir, pipeline.FormatRAW)
			c.store.Inject(tt.fault)
			_, err := runWith(t.Context(), c.importer(t, &mortal{}), r)
			var again *pipeline.ResumableError
			if !errors.As(err, &again) || obs.KindOf(err) != tt.kind || !strings.Contains(again.Hint(), "run the same command again") {
				t.Fatalf("error %v, want one that can be gone on from", err)
			}
			c.store.ClearFaults()
			res, err := runWith(t.Context(), c.importer(t, &mortal{}), r)
			if err != nil {
				t.Fatal(err)
			}
			if !res.Resumed || res.Upload.BytesResumed < tt.least || res.Upload.DataBytes != 18*resumeMiB {
				t.Errorf("result %+v", res)
			}
			c.checkImage(t, res.ImageID, disk, r.Format, dir)
		})
	}
	t.Run("for good", func(t *testing.T) {
		c := start(t, imstest.Options{})
		dir := filepath.Join(t.TempDir(), "state")
		r := c.resumable(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), resumeDisk()), dir, pipeline.FormatRAW)
		c.store.Inject(obstest.Fault{Op: obstest.OpUploadPart, After: 1, Do: obstest.Fail, Status: 400, Code: "InvalidArgument"})
		_, err := runWith(t.Context(), c.importer(t, &mortal{}), r)
		var again *pipeline.ResumableError
		if err == nil || errors.As(err, &again) {
			t.Fatalf("error %v", err)
		}
		c.empty(t)
		if left := files(t, dir); len(left) > 0 {
			t.Errorf("left in the state folder: %d files", len(left))
		}
	})
	t.Run("for good, and it can't be removed", func(t *testing.T) {
		c := start(t, imstest.Options{HashLimit: 64 << 20})
		dir := filepath.Join(t.TempDir(), "state")
		disk := resumeDisk()
		r := c.resumable(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk), dir, pipeline.FormatRAW)
		c.store.Inject(obstest.Fault{Op: obstest.OpUploadPart, After: 1, Do: obstest.Fail, Status: 400, Code: "InvalidArgument"})
		c.store.Inject(obstest.Refuse(obstest.OpAbort, 403, "AccessDenied"))
		if _, err := runWith(t.Context(), c.importer(t, &mortal{}), r); err == nil {
			t.Fatal("no error")
		}
		c.store.ClearFaults()
		res, err := runWith(t.Context(), c.importer(t, &mortal{}), r)
		if err != nil {
			t.Fatal(err)
		}
		if said := strings.Join(res.Warnings, "\n"); !strings.Contains(said, "failed for good") {
			t.Errorf("it said %q", said)
		}
		c.checkImage(t, res.ImageID, disk, r.Format, dir)
	})
}

// TestJobThatFailed: the same request asks for another import of the object that is there.
func TestJobThatFailed(t *testing.T) {
	c := start(t, imstest.Options{Faults: imstest.Faults{FailJobs: "IMG.0057"}, DuplicateNames: true})
	dir := filepath.Join(t.TempDir(), "state")
	r := c.resumable(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), resumeDisk()), dir, pipeline.FormatRAW)
	var failed *ims.JobFailedError
	for n := range 2 {
		sent := c.store.Stats().BodyBytes
		_, err := runWith(t.Context(), c.importer(t, &mortal{}), r)
		if !errors.As(err, &failed) {
			t.Fatal(err)
		}
		if more := c.store.Stats().BodyBytes - sent; n > 0 && more > resumeMiB {
			t.Errorf("%d bytes were sent again", more)
		}
	}
	// What the jobs have left of the image goes before the next is asked for.
	if list, err := c.IMS.ListImages(t.Context(), ims.ImageFilter{Name: r.Image.Name}); err != nil || len(list) != 1 {
		t.Errorf("%d images of the name, %v", len(list), err)
	}
	// With --restart the object of the failed job goes.
	r.AllowDuplicateName = true // for the image isn't this run's
	old := c.store.Keys(obstest.Bucket)
	r.Restart = true
	if _, err := runWith(t.Context(), c.importer(t, &mortal{}), r); !errors.As(err, &failed) {
		t.Fatal(err)
	}
	for _, k := range c.store.Keys(obstest.Bucket) {
		if slices.Contains(old, k) {
			t.Errorf("%s is still there", k)
		}
	}
}

// TestAnotherImageMeanwhile: the service may be at work on the object of an import that was asked for.
// One for another image doesn't follow that job, and leaves its object alone.
func TestAnotherImageMeanwhile(t *testing.T) {
	c := start(t, imstest.Options{JobStep: time.Hour})
	dir := filepath.Join(t.TempDir(), "state")
	r := c.resumable(writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), resumeDisk()), dir, pipeline.FormatRAW)
	r.Wait.Limit = 20 * time.Millisecond
	var limit *ims.WaitTimeoutError
	if _, err := runWith(t.Context(), c.importer(t, &mortal{}), r); !errors.As(err, &limit) {
		t.Fatal(err)
	}
	job, objects := limit.JobID, c.store.Keys(obstest.Bucket)
	// The same request follows the same job.
	if _, err := runWith(t.Context(), c.importer(t, &mortal{}), r); !errors.As(err, &limit) || limit.JobID != job {
		t.Fatalf("%v, want the limit of job %s", err, job)
	}
	r.Image.Name = "other"
	if _, err := runWith(t.Context(), c.importer(t, &mortal{}), r); !errors.As(err, &limit) || limit.JobID == job {
		t.Fatalf("%v, want another job than %s", err, job)
	}
	for _, k := range objects {
		if c.store.Object(obstest.Bucket, k) == nil {
			t.Errorf("%s was taken from the service", k)
		}
	}
}
