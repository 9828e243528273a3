// SPDX-License-Identifier: Apache-2.0

package batch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const region = "test-1"

// cloud is an object store and an image service in memory, with a folder of disks and states.
type cloud struct {
	pipeline.Importer
	store *obstest.Server
	sim   *imstest.Server
	dir   string
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

func newCloud(t *testing.T, sim imstest.Options) *cloud {
	t.Helper()
	c := &cloud{store: obstest.New(obstest.Options{Region: region, Conditions: true}), dir: t.TempDir()}
	sim.Region, sim.Objects, sim.HashLimit = region, objects{c.store}, 1
	sim.Accounts = []imstest.Account{{AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey}}
	c.sim = imstest.New(sim)
	srv := httptest.NewServer(c.sim)
	o, err := obs.New(obs.Options{Endpoint: c.store.URL(), Region: region, BackoffBase: time.Millisecond, BackoffCap: 5 * time.Millisecond,
		Credentials: func(context.Context) (obs.Credentials, error) {
			return obs.Credentials{AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	backoff := ims.Backoff{MaxAttempts: 2, BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond}
	i, err := ims.New(ims.Options{Endpoint: srv.URL, IAMEndpoint: srv.URL, Region: region, AllowPlainHTTP: true,
		Auth:  ims.AKSK(ims.StaticCredentials(ims.Credentials{AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey})),
		Retry: backoff, SubmitRetry: backoff, LookupInterval: 5 * time.Millisecond, LookupLimit: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c.Importer = pipeline.Importer{OBS: o, IMS: i, Region: region}
	t.Cleanup(func() {
		o.Close()
		i.CloseIdleConnections()
		srv.Close()
		c.sim.Close()
		c.store.Close()
	})
	return c
}

// disk writes a RAW disk with some data in it.
func (c *cloud) disk(t *testing.T, name string, seed byte) {
	t.Helper()
	content := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{seed}).Read(content[1<<20 : 3<<20])
	if err := os.WriteFile(filepath.Join(c.dir, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// plan writes a plan file and reads it.
func (c *cloud) plan(t *testing.T, text string) *batch.Plan {
	t.Helper()
	text = "version: 1\ndefaults: {bucket: " + obstest.Bucket + ", os_version: Ubuntu 22.04 server 64bit, format: zvhd2}\n" + text
	p, err := batch.Parse(filepath.Join(c.dir, "plan.yaml"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (c *cloud) runner(p *batch.Plan) *batch.Runner {
	state := filepath.Join(c.dir, "state")
	return &batch.Runner{Plan: p, Importer: c.Importer, Store: batch.NewFileStore(state, p.Key()), Base: pipeline.Request{StateDir: state},
		Poll: time.Millisecond, Pause: func(int) time.Duration { return time.Millisecond }, Worker: "a test"}
}

func states(t *testing.T, r *batch.Runner) (list []*batch.State) {
	t.Helper()
	for n := range r.Plan.Images {
		s, err := r.Status(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

// want compares the states of all images.
func want(t *testing.T, r *batch.Runner, statuses ...batch.Status) []*batch.State {
	t.Helper()
	list := states(t, r)
	var got []batch.Status
	for _, s := range list {
		got = append(got, s.Status)
	}
	if !slices.Equal(got, statuses) {
		for _, s := range list {
			t.Logf("%s: %s %+v", s.Name, s.Status, s.Failure)
		}
		t.Fatalf("states %v, want %v", got, statuses)
	}
	return list
}

func (c *cloud) images(t *testing.T) []ims.Image {
	t.Helper()
	list, err := c.IMS.ListImages(t.Context(), ims.ImageFilter{ImageType: "private"})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// empty wants nothing to be left in the bucket.
func (c *cloud) empty(t *testing.T) {
	t.Helper()
	c.store.Quiet()
	if keys, uploads := c.store.Keys(obstest.Bucket), c.store.Uploads(); len(keys)+len(uploads) > 0 {
		t.Errorf("left in the bucket: %q, uploads %q", keys, uploads)
	}
}

func TestRunAndAgain(t *testing.T) {
	c := newCloud(t, imstest.Options{})
	for n := range 3 {
		c.disk(t, fmt.Sprintf("d%d.raw", n), byte(n))
	}
	if err := os.WriteFile(filepath.Join(c.dir, "broken.qcow2"), append([]byte("QFI\xfb\x00\x00\x00\x02"), make([]byte, 600)...), 0o600); err != nil {
		t.Fatal(err)
	}
	const images = `limits: {images: 2}
images:
- {name: web, source: d0.raw, machine: web, tags: {team: x}}
- {name: web-data, source: d1.raw, machine: web, type: data}
- {name: broken, source: broken.qcow2}
- {name: missing, source: nowhere.raw}
- {name: told, source: x.raw, refused: it is encrypted}
- {name: left, source: y.raw, skip: true}
- {name: nameless, source: d2.raw, os_version: No Such System}
`
	r := c.runner(c.plan(t, images))
	err := r.Run(t.Context())
	var failed *batch.FailedError
	if !errors.As(err, &failed) || *failed != (batch.FailedError{Failed: 2, Refused: 2, Of: 7}) {
		t.Fatalf("got %v", err)
	}
	states := want(t, r, batch.StatusDone, batch.StatusDone, batch.StatusRefused, batch.StatusFailed, batch.StatusRefused, batch.StatusSkipped, batch.StatusFailed)
	for n, kind := range map[int]pipeline.ErrorKind{2: pipeline.KindRefused, 3: pipeline.KindUsage, 4: pipeline.KindRefused, 6: pipeline.KindUsage} {
		if f := states[n].Failure; f == nil || f.Kind != kind || states[n].Attempts > 1 {
			t.Errorf("%s: %+v after %d attempts, want kind %s", states[n].Name, f, states[n].Attempts, kind)
		}
	}
	for _, image := range c.images(t) {
		if !slices.Contains(image.Tags, "imsprep-machine=web") {
			t.Errorf("image %s has the tags %q", image.Name, image.Tags)
		}
	}
	if s := states[0]; s.Result.Upload.BytesSent == 0 || s.Disk.VirtualSize != 8<<20 || len(s.Phases) < 3 || s.Runs != 1 {
		t.Errorf("state %+v", s)
	}
	c.empty(t)

	// The same again does nothing but what can be done now.
	c.disk(t, "nowhere.raw", 9)
	before := map[string]string{}
	for _, image := range c.images(t) {
		before[image.Name] = image.ID
	}
	if err := r.Run(t.Context()); !errors.As(err, &failed) || failed.Failed != 1 {
		t.Fatalf("got %v", err)
	}
	want(t, r, batch.StatusDone, batch.StatusDone, batch.StatusRefused, batch.StatusDone, batch.StatusRefused, batch.StatusSkipped, batch.StatusFailed)
	for _, image := range c.images(t) {
		if id, ok := before[image.Name]; ok && id != image.ID || !ok && image.Name != "missing" {
			t.Errorf("image %s is %s, was %s", image.Name, image.ID, id)
		}
	}

	// An image that was deleted is made again.
	if err := c.IMS.DeleteImage(t.Context(), before["web"]); err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); !errors.As(err, &failed) {
		t.Fatalf("got %v", err)
	}
	if s := want(t, r, batch.StatusDone, batch.StatusDone, batch.StatusRefused, batch.StatusDone, batch.StatusRefused, batch.StatusSkipped, batch.StatusFailed)[0]; s.Result.ImageID == before["web"] || s.Runs != 2 {
		t.Errorf("it is %s still, after %d runs", s.Result.ImageID, s.Runs)
	}
	c.empty(t)
}

// TestTriedAgain: what may pass is tried again, up to a bound; what doesn't is not.
func TestTriedAgain(t *testing.T) {
	for _, tc := range []struct {
		name     string
		code     string
		failures int64
		attempts int
		status   batch.Status
		kind     pipeline.ErrorKind
	}{
		{"twice", "IMG.0057", 2, 3, batch.StatusDone, ""},
		{"always", "IMG.0057", 1000, 4, batch.StatusFailed, pipeline.KindTransient},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var left atomic.Int64
			left.Store(tc.failures)
			c := newCloud(t, imstest.Options{Faults: imstest.Faults{Hook: func(w http.ResponseWriter, r *http.Request) bool {
				// Each attempt asks for the operating systems once, and the client asks twice.
				if strings.Contains(r.URL.Path, "os_version") && left.Add(-1) >= -tc.failures {
					w.WriteHeader(http.StatusServiceUnavailable)
					return true
				}
				return false
			}}})
			c.disk(t, "d.raw", 1)
			r := c.runner(c.plan(t, "limits: {attempts: 4}\nimages: [{name: a, source: d.raw}]\n"))
			_ = r.Run(t.Context())
			s := want(t, r, tc.status)[0]
			if s.Attempts != tc.attempts {
				t.Errorf("%d attempts, want %d", s.Attempts, tc.attempts)
			}
			if tc.kind != "" && s.Failure.Kind != tc.kind {
				t.Errorf("failure %+v", s.Failure)
			}
		})
	}
}

func TestJobFails(t *testing.T) {
	c := newCloud(t, imstest.Options{Faults: imstest.Faults{FailJobs: "IMG.0057", FailReason: "no such format"}})
	c.disk(t, "d.raw", 1)
	r := c.runner(c.plan(t, "images: [{name: a, source: d.raw}]\n"))
	_ = r.Run(t.Context())
	s := want(t, r, batch.StatusFailed)[0]
	if s.Failure.Kind != pipeline.KindJob || s.Attempts != 1 || s.JobID == "" || s.Failure.Hint == "" {
		t.Fatalf("state %+v, failure %+v", s, s.Failure)
	}
	// The object was kept, and the next run asks for another import of it.
	c.sim.SetFaults(imstest.Faults{})
	_ = r.Run(t.Context())
	if s := want(t, r, batch.StatusDone)[0]; !s.Result.Resumed {
		t.Errorf("result %+v", s.Result)
	}
	c.empty(t)
}

// TestLimits: no more disks are uploaded, and no more jobs run at a time, than the plan allows.
func TestLimits(t *testing.T) {
	c := newCloud(t, imstest.Options{JobStep: 3 * time.Millisecond})
	var images strings.Builder
	for n := range 9 {
		c.disk(t, fmt.Sprintf("d%d.raw", n), byte(n))
		fmt.Fprintf(&images, "- {name: i%d, source: d%d.raw}\n", n, n)
	}
	r := c.runner(c.plan(t, "limits: {images: 2, jobs: 3}\nimages:\n"+images.String()))
	var mu sync.Mutex
	phases, most := map[string]pipeline.Phase{}, map[pipeline.Phase]int{}
	r.Events = func(e batch.Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Import != nil && e.Import.State == pipeline.StateStart {
			phases[e.Name] = e.Import.Phase
		}
		if e.Status == batch.StatusDone {
			delete(phases, e.Name)
		}
		count := map[pipeline.Phase]int{}
		for _, p := range phases {
			if count[p]++; count[p] > most[p] {
				most[p] = count[p]
			}
		}
	}
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if most[pipeline.PhaseUpload] > 2 || most[pipeline.PhaseJob] > 3 {
		t.Errorf("at the same time there were %v", most)
	}
	c.empty(t)
}

// TestInterrupted: a run that is told to stop ends, and the next one goes on.
func TestInterrupted(t *testing.T) {
	c := newCloud(t, imstest.Options{})
	for n := range 4 {
		c.disk(t, fmt.Sprintf("d%d.raw", n), byte(n))
	}
	r := c.runner(c.plan(t, "limits: {images: 1}\nimages:\n- {name: a, source: d0.raw}\n- {name: b, source: d1.raw}\n- {name: c, source: d2.raw}\n- {name: d, source: d3.raw}\n"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.Events = func(e batch.Event) {
		if e.Name == "b" && e.Import != nil && e.Import.Phase == pipeline.PhaseUpload {
			cancel()
		}
	}
	err := r.Run(ctx)
	if pipeline.KindOf(err) != pipeline.KindInterrupted {
		t.Fatalf("got %v", err)
	}
	for n, s := range states(t, r) {
		switch {
		case n == 0 && s.Status == batch.StatusDone: // its job may have ended meanwhile
		case n < 2 && (s.Status != batch.StatusInterrupted || s.Failure == nil || s.Failure.Hint == ""), n > 1 && s.Status != batch.StatusPending:
			t.Errorf("%s: %s %+v", s.Name, s.Status, s.Failure)
		}
	}
	r.Events = nil
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, r, batch.StatusDone, batch.StatusDone, batch.StatusDone, batch.StatusDone)
	if n := len(c.images(t)); n != 4 {
		t.Errorf("%d images", n)
	}
	c.empty(t)
}

// TestTwoAtOnce: several runs of one plan share the work and make no image twice.
func TestTwoAtOnce(t *testing.T) {
	c := newCloud(t, imstest.Options{})
	var images strings.Builder
	for n := range 6 {
		c.disk(t, fmt.Sprintf("d%d.raw", n), byte(n))
		fmt.Fprintf(&images, "- {name: i%d, source: d%d.raw}\n", n, n)
	}
	p := c.plan(t, "limits: {images: 2}\nimages:\n"+images.String())
	var wg sync.WaitGroup
	for range 3 {
		r := c.runner(p)
		wg.Go(func() {
			if err := r.Run(t.Context()); err != nil {
				t.Errorf("got %v", err)
			}
			want(t, r, slices.Repeat([]batch.Status{batch.StatusDone}, 6)...)
		})
	}
	wg.Wait()
	if n := len(c.images(t)); n != 6 {
		t.Errorf("%d images", n)
	}
	c.empty(t)
}

// TestDiedWhenDone: a run that made the image and died before it noted that is believed by the image's tag.
func TestDiedWhenDone(t *testing.T) {
	c := newCloud(t, imstest.Options{})
	c.disk(t, "d.raw", 1)
	r := c.runner(c.plan(t, "images: [{name: a, source: d.raw}]\n"))
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := want(t, r, batch.StatusDone)[0]
	id := s.Result.ImageID
	s.Status, s.Result = batch.StatusRunning, nil
	if err := r.Store.Save(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if got := want(t, r, batch.StatusInterrupted)[0]; got.Failure == nil {
		t.Error("nothing tells that it died")
	}
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := want(t, r, batch.StatusDone)[0]; got.Result.ImageID != id {
		t.Errorf("image %s, want %s", got.Result.ImageID, id)
	}
	// An image of the same name that somebody else made is not.
	s.RunID = "0123456789ab"
	if err := r.Store.Save(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	_ = r.Run(t.Context())
	if got := want(t, r, batch.StatusFailed)[0]; !strings.Contains(got.Failure.Message, "exists") {
		t.Errorf("failure %+v", got.Failure)
	}
}

// TestKeysRefused: keys that the cloud doesn't accept end the batch before it begins.
func TestKeysRefused(t *testing.T) {
	c := newCloud(t, imstest.Options{})
	c.disk(t, "d.raw", 1)
	r := c.runner(c.plan(t, "images: [{name: a, source: d.raw}]\n"))
	i, err := ims.New(ims.Options{Endpoint: "http://127.0.0.1:1", IAMEndpoint: "http://127.0.0.1:1", Region: region, ProjectID: strings.Repeat("0", 32),
		AllowPlainHTTP: true, Auth: ims.AKSK(ims.StaticCredentials(ims.Credentials{AccessKey: "wrong", SecretKey: "wrong"})),
		HTTPClient: &http.Client{Transport: toHandler{c.sim}}})
	if err != nil {
		t.Fatal(err)
	}
	r.Importer.IMS = i
	if err := r.Run(t.Context()); pipeline.KindOf(err) != pipeline.KindAuth {
		t.Errorf("got %v", err)
	}
	want(t, r, batch.StatusPending)
}

// toHandler carries requests to a handler without a network.
type toHandler struct{ http.Handler }

func (h toHandler) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	if r.Body == nil {
		r.Body = http.NoBody
	}
	h.ServeHTTP(w, r)
	return w.Result(), nil
}

func TestRunOne(t *testing.T) {
	c := newCloud(t, imstest.Options{})
	c.disk(t, "d.raw", 1)
	r := c.runner(c.plan(t, "images: [{name: a, source: d.raw}, {name: b, source: e.raw}]\n"))
	var busy *batch.BusyError
	_, unlock, err := r.Store.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.RunOne(t.Context(), 0); !errors.As(err, &busy) {
		t.Errorf("got %v", err)
	}
	unlock()
	if err := r.RunOne(t.Context(), 0); err != nil {
		t.Errorf("got %v", err)
	}
	want(t, r, batch.StatusDone, batch.StatusPending)
	var failed *batch.FailedError
	if err := r.RunOne(t.Context(), 1); !errors.As(err, &failed) {
		t.Errorf("got %v", err)
	}
	if err := r.RunOne(t.Context(), 2); pipeline.KindOf(err) != pipeline.KindUsage {
		t.Errorf("got %v", err)
	}
}

// TestNoPlaceForStates: without a place for its state an image isn't imported, and that isn't success.
func TestNoPlaceForStates(t *testing.T) {
	c := newCloud(t, imstest.Options{})
	c.disk(t, "d.raw", 1)
	r := c.runner(c.plan(t, "images: [{name: a, source: d.raw}]\n"))
	r.Store = batch.NewFileStore(filepath.Join(c.dir, "d.raw"), "b") // a file
	var failed *batch.FailedError
	var state *batch.StateError
	if err := r.Run(t.Context()); !errors.As(err, &failed) || failed.Failed != 1 || !errors.As(err, &state) {
		t.Errorf("got %v", err)
	}
	if n := len(c.images(t)); n != 0 {
		t.Errorf("%d images", n)
	}
}

func TestStateRoundTrip(t *testing.T) {
	s := batch.NewFileStore(t.TempDir(), "b")
	if got, err := s.Load(t.Context(), "a"); got != nil || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	_, unlock, err := s.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := s.Save(t.Context(), &batch.State{Name: "a", Status: batch.StatusDone}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(t.Context(), "a"); err != nil || got.Status != batch.StatusDone {
		t.Errorf("got %v, %v", got, err)
	}
	b, err := batch.EncodeState(&batch.State{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, b[:len(b)/2], bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 7`), 1)} {
		var wrong *batch.StateError
		if _, err := batch.DecodeState("a", bad); !errors.As(err, &wrong) {
			t.Errorf("got %v of %q", err, bad)
		}
	}
	if _, err := batch.DecodeState("b", b); err == nil {
		t.Error("another image's state was taken")
	}
	if batch.StateName("a/b") == batch.StateName("a b") || strings.ContainsAny(batch.StateName("a/../b\x00"), "/.\x00") {
		t.Error("names of states aren't names of files of their own")
	}
}
