// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/imsprep/imsprep/pkg/obs/obstest"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// shared is a request whose journal is in the bucket.
func (c *cloud) shared(path string, f pipeline.Format) pipeline.Request {
	r := c.resumable(path, "", f)
	r.State = &pipeline.StatePlace{Bucket: obstest.Bucket, Prefix: "state/run"}
	return r
}

// expire makes the leases of runs that are no more look as old as they will be.
func (c *cloud) expire() {
	for _, key := range c.store.Keys(obstest.Bucket) {
		if strings.HasSuffix(key, ".lease") {
			c.store.Backdate(obstest.Bucket, key, time.Hour, false)
		}
	}
}

// TestDeathWithStateInBucket ends a run before its requests and after their answers, those about the journal and the
// lease among them. The same request on another machine, with a copy of the disk in another folder, makes
// one image with the disk's content and leaves nothing.
func TestDeathWithStateInBucket(t *testing.T) {
	disk := resumeDisk()
	step := map[pipeline.Format]int{pipeline.FormatRAW: 4, pipeline.FormatZVHD2: 9}
	if raceEnabled || testing.Short() {
		step = map[pipeline.Format]int{pipeline.FormatRAW: 13, pipeline.FormatZVHD2: 29}
	}
	resumed := 0
	for f, step := range step {
		t.Run(string(f), func(t *testing.T) {
			total := 0
			for n := 1; total == 0 || n <= total; n += step {
				for _, after := range []bool{false, true} {
					path := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk)
					c, stop := newCloud(t, obstest.Options{Conditions: true}, imstest.Options{HashLimit: 64 << 20})
					ctx, cancel := context.WithCancel(t.Context())
					m := &mortal{before: n, die: cancel}
					if after {
						m.before, m.after = 0, n
					}
					res, err := runWith(ctx, c.importer(t, m), c.shared(path, f))
					cancel()
					if m.dead {
						c.store.Quiet()
						c.expire()
						what := fmt.Sprintf("death at request %d, after its answer: %v", n, after)
						other := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk)
						left := c.store.Keys(obstest.Bucket)
						res, err = runWith(t.Context(), c.importer(t, &mortal{}), c.shared(other, f))
						if err != nil {
							// When all was done but said, the image is what the next run finds.
							var check *pipeline.CheckError
							if !errors.As(err, &check) || !strings.Contains(err.Error(), "exists:") || strings.Contains(fmt.Sprint(left), ".json") {
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
					} else {
						if err != nil {
							t.Fatal(err)
						}
						total = n - 1
					}
					if t.Failed() {
						t.FailNow()
					}
					c.checkImage(t, res.ImageID, disk, f, filepath.Join(t.TempDir(), "none"))
					stop()
				}
			}
			t.Logf("%d requests, %d parts resumed so far", total, resumed)
		})
	}
	if resumed == 0 && !t.Failed() {
		t.Error("nothing was ever resumed")
	}
}

// stopped runs a request until the store has got some parts, and ends it with a signal or without one.
func (c *cloud) stopped(t *testing.T, r pipeline.Request, parts int, killed bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	m := &mortal{die: cancel}
	n := 0
	c.store.Inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Observe, Match: func(*obstest.Request) bool {
		if n++; n > parts {
			m.mu.Lock()
			m.dead = killed
			m.mu.Unlock()
			cancel()
		}
		return true
	}})
	if _, err := runWith(ctx, c.importer(t, m), r); err == nil {
		t.Fatal("it ended before it was stopped")
	}
	c.store.ClearFaults()
	c.store.Quiet()
	c.expire()
}

// TestCopyOnAnotherMachine: what tells a file on one machine doesn't on another. What was sent of the earlier
// run's disk counts as far as the disk of this one holds the same, whatever its times say.
func TestCopyOnAnotherMachine(t *testing.T) {
	disk := resumeDisk()
	for name, tc := range map[string]struct {
		killed bool
		change func(t *testing.T, disk []byte, was, path string) []byte
		// of the second run
		resumes, rereads bool
		warns            string
	}{
		"the same file": {false, func(t *testing.T, disk []byte, was, path string) []byte {
			if err := os.Link(was, path); err != nil {
				t.Skip(err)
			}
			return disk
		}, true, false, ""},
		// The journal isn't written as often as parts come in.
		"the same file, killed": {true, func(t *testing.T, disk []byte, was, path string) []byte {
			if err := os.Link(was, path); err != nil {
				t.Skip(err)
			}
			return disk
		}, true, true, ""},
		"a copy": {false, func(*testing.T, []byte, string, string) []byte { return disk }, true, true, "may be a copy"},
		"other content": {false, func(_ *testing.T, disk []byte, _, _ string) []byte {
			disk[3*resumeMiB]++ // in the first part, behind what identities look at
			return disk
		}, true, true, "may be a copy"},
		"another size": {false, func(_ *testing.T, disk []byte, _, _ string) []byte {
			return append(disk, make([]byte, resumeMiB)...)
		}, false, true, "starts anew: the source has changed"},
		"another beginning": {false, func(_ *testing.T, disk []byte, _, _ string) []byte {
			disk[1]++
			return disk
		}, false, true, "starts anew: the source has changed"},
	} {
		t.Run(name, func(t *testing.T) {
			c, stop := newCloud(t, obstest.Options{Conditions: true}, imstest.Options{HashLimit: 64 << 20})
			defer stop()
			first := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk)
			c.stopped(t, c.shared(first, pipeline.FormatRAW), 3, tc.killed)
			path := filepath.Join(t.TempDir(), "disk.raw")
			now := tc.change(t, slices.Clone(disk), first, path)
			if _, err := os.Stat(path); err != nil {
				writeFile(t, path, now)
			}
			res, err := runWith(t.Context(), c.importer(t, &mortal{}), c.shared(path, pipeline.FormatRAW))
			if err != nil {
				t.Fatal(err)
			}
			c.checkImage(t, res.ImageID, now, pipeline.FormatRAW, filepath.Join(t.TempDir(), "none"))
			if (res.Upload.PartsResumed > 0) != tc.resumes {
				t.Errorf("%d parts resumed, want any: %v", res.Upload.PartsResumed, tc.resumes)
			}
			if all := res.Upload.BytesRead == int64(len(now)); all != tc.rereads {
				t.Errorf("read %d bytes of %d, want all of them: %v", res.Upload.BytesRead, len(now), tc.rereads)
			}
			if got := strings.Join(res.Warnings, "\n"); tc.warns == "" && got != "" || !strings.Contains(got, tc.warns) {
				t.Errorf("warnings %q, want %q", got, tc.warns)
			}
		})
	}
}

// freezer holds all requests of one run from a certain one on, until it thaws, as if its machine stood
// still.
type freezer struct {
	at   int // from 1; 0 = never
	next http.RoundTripper

	mu     sync.Mutex
	seen   int
	frozen chan struct{} // closed when it freezes
	thaw   chan struct{} // closed to go on
}

func newFreezer(at int) *freezer {
	return &freezer{at: at, frozen: make(chan struct{}), thaw: make(chan struct{})}
}

func (f *freezer) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	f.seen++
	wait := f.at > 0 && f.seen >= f.at
	if f.seen == f.at {
		close(f.frozen)
	}
	f.mu.Unlock()
	if wait {
		<-f.thaw
	}
	return f.next.RoundTrip(r)
}

// start lets a run begin, and returns when it freezes or ends.
func (c *cloud) start(t *testing.T, f *freezer, r pipeline.Request) (ended chan error, result **pipeline.Result) {
	t.Helper()
	m := &mortal{}
	i := c.importer(t, m)
	f.next, m.next = m.next, f
	ended, result = make(chan error, 1), new(*pipeline.Result)
	done := make(chan struct{})
	go func() {
		defer close(done)
		res, err := runWith(context.WithoutCancel(t.Context()), i, r)
		*result = res
		ended <- err
	}()
	select {
	case <-f.frozen:
	case <-done:
	}
	return ended, result
}

// TestTwoWorkersAtOnce: a run stands still for so long that another takes its work over, which may stand still
// itself, and then goes on, not knowing. Whatever the moment is, there is one image with the disk's content at
// the end.
func TestTwoWorkersAtOnce(t *testing.T) {
	disk := resumeDisk()
	path := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk)
	moments := [][2]int{{4, 0}, {9, 0}, {12, 16}, {15, 31}, {18, 22}, {21, 0}, {24, 33}, {27, 9}, {30, 0}, {33, 40}, {36, 45}, {39, 0}, {42, 50}}
	if raceEnabled || testing.Short() {
		moments = [][2]int{{15, 31}, {21, 0}, {33, 40}, {36, 0}}
	}
	for _, at := range moments {
		t.Run(fmt.Sprintf("%d and %d", at[0], at[1]), func(t *testing.T) {
			c, stop := newCloud(t, obstest.Options{Conditions: true}, imstest.Options{HashLimit: 64 << 20})
			defer stop()
			first, second := newFreezer(at[0]), newFreezer(at[1])
			oneEnded, one := c.start(t, first, c.shared(path, pipeline.FormatRAW))
			c.expire()
			twoEnded, two := c.start(t, second, c.shared(path, pipeline.FormatRAW))
			close(first.thaw)
			oneErr := <-oneEnded
			close(second.thaw)
			twoErr := <-twoEnded
			t.Logf("first: %v; second: %v", oneErr, twoErr)
			c.store.Quiet()
			// Who lost its work says so, whatever went wrong first.
			var busy *pipeline.BusyError
			if oneErr != nil && !errors.As(oneErr, &busy) {
				t.Errorf("the first one failed with %v", oneErr)
			}
			res := *two
			if twoErr != nil {
				res = *one
			}
			for n := 0; oneErr != nil && twoErr != nil; n++ {
				c.expire()
				res, twoErr = runWith(t.Context(), c.importer(t, &mortal{}), c.shared(path, pipeline.FormatRAW))
				if twoErr != nil && n == 3 {
					t.Fatalf("nobody gets it done: %v", twoErr)
				}
			}
			images, err := c.IMS.ListImages(t.Context(), ims.ImageFilter{ImageType: "private"})
			if err != nil || len(images) != 1 || images[0].ID != res.ImageID {
				t.Fatalf("%d images instead of %s alone (%v)", len(images), res.ImageID, err)
			}
			if got := c.imageSHA256(t, res.ImageID); got != sum(disk) {
				t.Fatalf("the image's content is %s, the disk's is %s", got, sum(disk))
			}
			// What the first one was about to write when it stood still may be there now; it is small, and
			// cleaning up finds it. No disk may be.
			for _, key := range c.store.Keys(obstest.Bucket) {
				if !strings.HasPrefix(key, "state/run/journals/") && !strings.HasSuffix(key, ".mf") {
					t.Errorf("left in the bucket: %s", key)
				}
			}
			if left := c.store.Uploads(); len(left) > 0 {
				t.Errorf("unfinished uploads: %q", left)
			}
		})
	}
}
