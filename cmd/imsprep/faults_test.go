// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

// The tests of this file are the rows of docs/faults.md: the program sends a disk to a real S3 server through a
// proxy that does what networks and servers do on bad days. Each ends with the right object, or with the right
// error, and with nothing left but what the same command goes on with; and each looks whether its fault happened.

// faultCloud is the local cloud that they share, with a user beside the access key.
var faultCloud = sync.OnceValues(func() (map[string]string, error) {
	dir, err := os.MkdirTemp("", "imsprep-faults")
	if err != nil {
		return nil, err
	}
	env, stop, err := launchCloud([]string{"--dir", dir, "--bucket", "images", "--bucket", importsBucket, "--token", "--job-step", "10ms", "--hash-limit", "1"},
		[]string{"LOCALCLOUD_ACCESS_KEY=" + faultKey, "LOCALCLOUD_SECRET_KEY=" + faultSecret})
	if err == nil {
		atExit = append(atExit, stop)
	}
	atExit = append(atExit, func() { os.RemoveAll(dir) })
	return env, err
})

// importsBucket is for whole imports, whose objects have names of the program's own.
const importsBucket = "imports"

const faultKey, faultSecret = "FAULTSACCESSKEY", "faults/secret+key"

var faultRuns atomic.Int64 // for names of objects

// faulty is a disk on its way to an object of its own.
type faulty struct {
	*testing.T
	env      map[string]string
	proxy    *obstest.Proxy
	store    *obs.Client // not through the proxy
	bucket   string
	key      string
	format   string
	disk     string
	content  []byte
	stateDir string
	args     []string
	// tune changes how the object storage is spoken to.
	tune func(*obs.Options)
}

const mib = 1 << 20

// layout of the disk: MiB of noise, the rest are holes.
var faultLayout = [][2]int{{0, 10}, {16, 1}, {23, 5}}

func newFaulty(t *testing.T, format string) *faulty {
	t.Helper()
	cloud, err := faultCloud()
	if err != nil {
		t.Fatal(err)
	}
	f := &faulty{T: t, env: map[string]string{}, bucket: cloud["IMSPREP_BUCKET"], format: format, stateDir: t.TempDir()}
	for k, v := range cloud {
		if !strings.HasPrefix(k, "HW_USER") && k != "HW_DOMAIN_NAME" {
			f.env[k] = v
		}
	}
	f.env["HOME"] = t.TempDir()
	f.env["HW_ACCESS_KEY"], f.env["HW_SECRET_KEY"] = faultKey, faultSecret
	endpoint := cloud["IMSPREP_OBS_ENDPOINT"]
	if f.proxy, err = obstest.NewProxy(endpoint); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.proxy.Close)
	f.env["IMSPREP_OBS_ENDPOINT"] = f.proxy.URL()
	f.store, err = obs.New(obs.Options{Endpoint: endpoint, Region: cloud["HW_REGION_NAME"],
		Credentials: obs.StaticCredentials(obs.Credentials{AccessKey: faultKey, SecretKey: faultSecret})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.store.Close)
	f.key = fmt.Sprintf("fault-%d.%s", faultRuns.Add(1), format)
	f.writeDisk(faultLayout, 28*mib+4096)
	return f
}

func (f *faulty) writeDisk(layout [][2]int, size int) {
	f.Helper()
	f.disk, f.content = filepath.Join(f.TempDir(), "disk.raw"), make([]byte, size)
	file, err := os.Create(f.disk)
	if err != nil {
		f.Fatal(err)
	}
	defer file.Close()
	noise := rand.NewChaCha8([32]byte{byte(faultRuns.Load())})
	for _, run := range layout {
		p := f.content[run[0]*mib : (run[0]+run[1])*mib]
		_, _ = noise.Read(p) // never fails
		if _, err := file.WriteAt(p, int64(run[0])*mib); err != nil {
			f.Fatal(err)
		}
	}
	if err := file.Truncate(int64(size)); err != nil {
		f.Fatal(err)
	}
}

// ended is how a run ended.
type ended struct {
	code   int
	said   string // on standard error, and an error's document
	result struct {
		Requests     int   `json:"requests"`
		Retries      int   `json:"retries"`
		PartsSent    int   `json:"parts_sent"`
		PartsCopied  int   `json:"parts_copied"`
		PartsResumed int64 `json:"parts_resumed"`
	}
}

// imsprep runs the program in this process.
func (f *faulty) imsprep(args ...string) ended {
	f.Helper()
	var stdout, stderr bytes.Buffer
	code := run(args, streams{out: &stdout, err: &stderr, lookFor: 2 * time.Second,
		lookup: func(name string) (string, bool) { v, ok := f.env[name]; return v, ok },
		store: func(o *obs.Options) {
			o.BackoffBase, o.BackoffCap, o.MaxAttempts, o.Outage = time.Millisecond, 20*time.Millisecond, 6, 0
			if f.tune != nil {
				f.tune(o)
			}
		}})
	e := ended{code: code, said: stderr.String()}
	if strings.Contains(stdout.String(), `"error":`) {
		e.said += stdout.String()
	} else if stdout.Len() > 0 {
		if err := json.Unmarshal(stdout.Bytes(), &e.result); err != nil {
			f.Fatalf("%v: %s", err, stdout.String())
		}
	}
	for _, secret := range []string{faultSecret, "Signature=", "X-Amz-Signature"} {
		if strings.Contains(e.said, secret) {
			f.Errorf("%q is in the output:\n%s", secret, e.said)
		}
	}
	return e
}

// upload gives the command.
func (f *faulty) upload() ended {
	f.Helper()
	return f.imsprep(append([]string{"upload", f.disk, "obs://" + f.bucket + "/" + f.key, "--format", f.format, "--accept-unconfirmed-bitmap",
		"--part-size", "5MiB", "--json", "--progress", "lines", "--state-dir", f.stateDir}, f.args...)...)
}

// arrives wants a run to end with the object, and nothing beside it.
func (f *faulty) arrives() ended {
	f.Helper()
	e := f.upload()
	if e.code != exitDone {
		f.Fatalf("exit code %d: %s", e.code, e.said)
	}
	f.stored()
	return e
}

// stored compares the object with the disk, and looks for leftovers.
func (f *faulty) stored() {
	f.Helper()
	ctx := f.Context()
	if f.format == formatRAW {
		o, err := f.store.Object(ctx, f.bucket, f.key)
		if err != nil {
			f.Fatal(err)
		}
		got := make([]byte, o.Size())
		if _, err := o.ReadAt(ctx, got, 0); err != nil && !errors.Is(err, io.EOF) {
			f.Fatal(err)
		}
		if !bytes.Equal(got, f.content) {
			f.Fatal("the object isn't the disk")
		}
	} else {
		f.proxy.ClearFaults()
		if e := f.imsprep("verify", f.disk, "obs://"+f.bucket+"/"+f.key, "--json", "--progress", "none"); e.code != exitDone {
			f.Fatalf("verifying: exit code %d: %s", e.code, e.said)
		}
	}
	beside := strings.TrimSuffix(f.key, filepath.Ext(f.key)) + ".mf"
	if left := f.there(f.key, f.key+".imsprep.json", beside); len(left) > 0 {
		f.Errorf("left: %q", left)
	}
}

// fails wants a run to end with an exit code and words, and with nothing left.
func (f *faulty) fails(code int, words ...string) {
	f.Helper()
	f.ends(code, words...)
	if left := f.there(); len(left) > 0 {
		f.Errorf("left: %q", left)
	}
}

// pauses wants a run to end with an exit code and words, and to keep the unfinished upload: when the fault
// has passed, the same command ends with the object. It returns how that went.
func (f *faulty) pauses(code int, words ...string) ended {
	f.Helper()
	f.ends(code, words...)
	left := f.there()
	journals := slices.DeleteFunc(slices.Clone(left), func(name string) bool { return !strings.HasPrefix(name, "state: ") })
	if len(journals) == 0 || !slices.ContainsFunc(left, func(name string) bool { return strings.HasPrefix(name, "upload of "+f.key+" ") }) {
		f.Errorf("there are %q, and so nothing to go on with", left)
	}
	if len(left) != len(journals)+1 {
		f.Errorf("there is more than an upload to go on with: %q", left)
	}
	f.proxy.ClearFaults()
	f.tune = nil
	return f.arrives()
}

func (f *faulty) ends(code int, words ...string) {
	f.Helper()
	e := f.upload()
	if e.code != code {
		f.Fatalf("exit code %d, want %d: %s", e.code, code, e.said)
	}
	for _, w := range words {
		if !strings.Contains(e.said, w) {
			f.Errorf("it doesn't say %q: %s", w, e.said)
		}
	}
}

// there returns what is in the bucket and in the state folder for this run, but for some keys.
func (f *faulty) there(but ...string) (names []string) {
	f.Helper()
	prefix := strings.TrimSuffix(f.key, filepath.Ext(f.key)) + "."
	for o, err := range f.store.ListObjects(f.Context(), f.bucket, prefix) {
		if err != nil {
			f.Fatal(err)
		}
		if !slices.Contains(but, o.Key) {
			names = append(names, o.Key)
		}
	}
	uploads, err := f.store.ListUploads(f.Context(), f.bucket, prefix)
	if err != nil {
		f.Fatal(err)
	}
	for _, u := range uploads {
		names = append(names, "upload of "+u.Key+" "+u.ID)
	}
	entries, err := os.ReadDir(f.stateDir)
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, "state: "+e.Name())
	}
	return names
}

// inject orders a fault, and wants it to have happened by the end of the test.
func (f *faulty) inject(fault obstest.Fault) *obstest.Injected {
	f.Helper()
	in := f.proxy.Inject(fault)
	f.Cleanup(func() {
		if n := in.Fired(); n == 0 || fault.Times > 0 && n < fault.Times {
			f.Errorf("the fault happened %d times, and not %d", n, max(fault.Times, 1))
		}
	})
	return in
}

// faultFormats are those that a test goes through: both, and one of them under the race detector.
func faultFormats(t *testing.T) []string {
	formats := []string{formatRAW, formatZVHD2}
	if raceEnabled {
		i := len(t.Name()) % 2
		return formats[i : i+1]
	}
	return formats
}

// uploadOps are the requests of an upload of the disk as RAW.
var uploadOps = []obstest.Op{obstest.OpHeadBucket, obstest.OpHeadObject, obstest.OpInitiate, obstest.OpPutObject, obstest.OpUploadPart,
	obstest.OpCopyPart, obstest.OpListParts, obstest.OpComplete, obstest.OpDelete}

// passing sends a disk in both formats while faults happen, each to every one of its requests, twice.
func passing(t *testing.T, ops []obstest.Op, faults []obstest.Fault, more ...func(*faulty)) {
	t.Helper()
	for _, format := range faultFormats(t) {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, format)
			for _, m := range more {
				m(f)
			}
			for _, op := range ops {
				if format == formatZVHD2 && (op == obstest.OpCopyPart || op == obstest.OpDelete) {
					continue // it makes none
				}
				for _, fault := range faults {
					fault.Op, fault.Times = op, 2
					if op == obstest.OpComplete && (fault.Do == obstest.Lose || fault.Do == obstest.CutAnswer) || op == obstest.OpPutObject {
						fault.Times = 1 // then the object is there; or it's the one request of its kind
					}
					f.inject(fault)
				}
			}
			f.arrives()
		})
	}
}

// twice is how often a fault happens that passes.
const twice = 2

// counting is a transport that counts failures to connect.
type counting struct {
	http.RoundTripper
	refused func(n int64)
	n       atomic.Int64
}

func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(r)
	if errors.Is(err, syscall.ECONNREFUSED) {
		c.refused(c.n.Add(1))
	}
	return resp, err
}

func TestFaultConnectionRefused(t *testing.T) {
	t.Parallel()
	t.Run("from the beginning", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.proxy.Down()
		f.fails(exitTransient, "connection refused", "attempts", "run the same command again")
	})
	// In the middle, all connections break, and others are refused for a while.
	interrupt := func(f *faulty, refused func(n int64)) *counting {
		c := &counting{RoundTripper: &http.Transport{}, refused: refused}
		f.tune = func(o *obs.Options) { o.Transport, o.MaxAttempts = c, 12 }
		var parts atomic.Int64
		f.proxy.Inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Observe, Match: func(*obstest.Request) bool {
			if parts.Add(1) == 3 {
				f.proxy.Down()
			}
			return false
		}})
		return c
	}
	for _, format := range faultFormats(t) {
		t.Run(format+" in the middle", func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, format)
			c := interrupt(f, func(n int64) {
				if n == 3 {
					if err := f.proxy.Up(); err != nil {
						t.Error(err)
					}
				}
			})
			f.arrives()
			if c.n.Load() < 3 {
				t.Errorf("refused %d times", c.n.Load())
			}
		})
		t.Run(format+" for longer than all attempts", func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, format)
			f.args = []string{"--concurrency", "1"}
			interrupt(f, func(n int64) {
				if n == 8 {
					if err := f.proxy.Up(); err != nil {
						t.Error(err)
					}
				}
			})
			patient := f.tune
			f.tune = func(o *obs.Options) {
				patient(o)
				o.MaxAttempts, o.Outage = 3, 10*time.Minute
			}
			if e := f.arrives(); strings.Count(e.said, "no answer from the store, waiting for it for up to 10m0s: ") != 1 {
				t.Errorf("it says %s", e.said)
			}
		})
		t.Run(format+" for good", func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, format)
			f.args = []string{"--concurrency", "1"}
			c := interrupt(f, func(int64) {})
			f.ends(exitTransient, "connection refused", "after 12 attempts", "run the same command again")
			if c.n.Load() < 11 {
				t.Errorf("refused %d times", c.n.Load())
			}
			f.proxy.ClearFaults()
			if err := f.proxy.Up(); err != nil {
				t.Fatal(err)
			}
			if e := f.arrives(); e.result.PartsResumed < 2 {
				t.Errorf("%d parts were resumed", e.result.PartsResumed)
			}
		})
	}
}

func TestFaultReset(t *testing.T) {
	t.Parallel()
	passing(t, uploadOps, []obstest.Fault{{Do: obstest.Reset}})
	t.Run("for good", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Reset, After: 2})
		f.args = []string{"--concurrency", "1"}
		if e := f.pauses(exitTransient, "upload part", "after 6 attempts", "run the same command again"); e.result.PartsResumed < 2 {
			t.Errorf("%d parts were resumed", e.result.PartsResumed)
		}
	})
}

// TestFaultAnswerLost: what was asked for is done, and nobody hears of it.
func TestFaultAnswerLost(t *testing.T) {
	t.Parallel()
	passing(t, uploadOps, []obstest.Fault{{Do: obstest.Lose}})
}

func TestFaultStalled(t *testing.T) {
	t.Parallel()
	const limit = 400 * time.Millisecond
	impatient := func(f *faulty) { f.tune = func(o *obs.Options) { o.IdleTimeout, o.MaxAttempts = limit, 12 } }
	t.Run("anything", func(t *testing.T) {
		t.Parallel()
		// The server may think five times as long about copying and completing.
		passing(t, []obstest.Op{obstest.OpUploadPart, obstest.OpInitiate, obstest.OpListParts, obstest.OpCopyPart, obstest.OpComplete, obstest.OpHeadObject},
			[]obstest.Fault{{Do: obstest.Stall}}, impatient)
	})
	t.Run("halfway", func(t *testing.T) {
		t.Parallel()
		passing(t, []obstest.Op{obstest.OpUploadPart}, []obstest.Fault{{Do: obstest.StallBody}, {Do: obstest.StallAnswer}}, impatient)
	})
	t.Run("answer", func(t *testing.T) {
		t.Parallel()
		passing(t, []obstest.Op{obstest.OpInitiate, obstest.OpListParts}, []obstest.Fault{{Do: obstest.StallAnswer}}, impatient)
	})
	t.Run("for good", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.tune = func(o *obs.Options) { o.IdleTimeout, o.MaxAttempts = limit, 3 }
		f.args = []string{"--concurrency", "1"}
		f.inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.StallBody, After: 1})
		f.pauses(exitTransient, "no bytes moved for 400ms", "after 3 attempts")
	})
	// Every part takes longer than the limit, but never stands still for so long.
	t.Run("slow is not stalled", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.writeDisk([][2]int{{0, 16}}, 16*mib)
		f.args = []string{"--part-size", "16MiB"}
		f.tune = func(o *obs.Options) { o.IdleTimeout, o.MaxAttempts = 1500*time.Millisecond, 8 }
		slow := f.inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Trickle, Pause: 110 * time.Millisecond})
		begin := time.Now()
		f.arrives()
		// It must have been long enough that a limit of the whole time would have ended each attempt.
		if took := time.Since(begin) / time.Duration(slow.Fired()); took < 1500*time.Millisecond {
			t.Errorf("a part took %v", took)
		}
	})
}

func TestFaultServerErrors(t *testing.T) {
	t.Parallel()
	// The second is a gateway's, which speaks no XML.
	passing(t, uploadOps, []obstest.Fault{{Do: obstest.FailLate, Status: 500, Code: "InternalError", Message: "we encountered an internal error"}})
	t.Run("gateway", func(t *testing.T) {
		t.Parallel()
		passing(t, uploadOps, []obstest.Fault{{Do: obstest.Fail, Status: 502}})
	})
	for _, op := range []obstest.Op{obstest.OpUploadPart, obstest.OpListParts, obstest.OpComplete} {
		t.Run("for good "+string(op), func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, formatRAW)
			f.inject(obstest.Fault{Op: op, Do: obstest.FailLate, Status: 500, Code: "InternalError"})
			f.pauses(exitTransient, "HTTP 500 InternalError", "after 6 attempts", "run the same command again")
		})
	}
}

func TestFaultSlowDown(t *testing.T) {
	t.Parallel()
	passing(t, uploadOps, []obstest.Fault{{Do: obstest.FailLate, Status: 503, Code: "SlowDown", Message: "reduce your request rate"}})
	t.Run("429", func(t *testing.T) {
		t.Parallel()
		passing(t, uploadOps, []obstest.Fault{{Do: obstest.Fail, Status: 429, Code: "TooManyRequests", Header: map[string]string{"Retry-After": "1"}}})
	})
	t.Run("for good", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.FailLate, Status: 503, Code: "SlowDown", After: 2})
		if e := f.pauses(exitTransient, "HTTP 503 SlowDown", "after 6 attempts"); e.result.PartsResumed == 0 {
			t.Error("nothing was resumed")
		}
	})
}

// gate is a transport that looks how many parts are under way: it waits until four are, passes their answers on
// when each of them has been told to slow down, sees that there are two for a while, and then more again.
//
// The answers wait for each other so that nothing else is under way at the cut: a request of before would count
// for the recovery, and one of after it could be the one that is slowed down.
type gate struct {
	next http.RoundTripper

	mu        sync.Mutex
	changed   *sync.Cond
	under     int // way
	slowed    int // answers
	good      int // answers after those
	most      int // under way while good was below enough
	recovered int // the most under way afterwards
	enough    int
	late      bool // it took too long
}

func (g *gate) RoundTrip(r *http.Request) (*http.Response, error) {
	if !r.URL.Query().Has("partNumber") {
		return g.next.RoundTrip(r)
	}
	sent := r.Header.Get("X-Amz-Copy-Source") == ""
	g.mu.Lock()
	before := g.slowed < 4
	if !before || sent {
		g.under++
	}
	g.changed.Broadcast()
	switch {
	case before && sent:
		g.wait(func() bool { return g.under >= 4 })
	case !before && g.good < g.enough:
		g.most = max(g.most, g.under)
	case !before:
		g.wait(func() bool {
			g.recovered = max(g.recovered, g.under)
			return g.recovered > 2
		})
	}
	g.mu.Unlock()
	resp, err := g.next.RoundTrip(r)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil {
		if resp.StatusCode == http.StatusServiceUnavailable {
			g.slowed++
		} else if !before {
			g.good++
		}
	}
	g.changed.Broadcast()
	if before && sent {
		g.wait(func() bool { return g.slowed >= 4 })
	}
	if !before || sent {
		g.under--
	}
	return resp, err
}

func (g *gate) wait(until func() bool) {
	for !g.late && !until() {
		g.changed.Wait()
	}
}

// TestFaultSlowDownHalves: a server that asks to slow down halves the number of parts under way, which then recovers.
func TestFaultSlowDownHalves(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, formatRAW)
	const islands, apart, island = 20, 6 * mib, 64 << 10 // each is sent as a piece
	disk := make([]byte, islands*apart)
	var extents []obs.Extent
	for i := range islands {
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(disk[(i+1)*apart-island : (i+1)*apart]) // never fails
		extents = append(extents, obs.Extent{Start: int64(i * apart), Length: apart - island, Zero: true},
			obs.Extent{Start: int64((i+1)*apart - island), Length: island})
	}
	plan, err := obs.NewPlan(int64(len(disk)), func(yield func(obs.Extent, error) bool) {
		for _, e := range extents {
			if !yield(e, nil) {
				return
			}
		}
	}, obs.PlanOptions{BlockSize: 64 << 10, Workers: 4, MinWorkers: 4})
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{next: &http.Transport{}, enough: 8 * 2} // see recoverAfter in pkg/obs
	g.changed = sync.NewCond(&g.mu)
	defer time.AfterFunc(5*time.Minute, func() { // a busy machine under the race detector took one
		g.mu.Lock()
		defer g.mu.Unlock()
		g.late = true
		g.changed.Broadcast()
	}).Stop()
	client, err := obs.New(obs.Options{Endpoint: f.proxy.URL(), Region: f.env["HW_REGION_NAME"], Transport: g,
		BackoffBase: time.Millisecond, BackoffCap: 2 * time.Millisecond,
		Credentials: obs.StaticCredentials(obs.Credentials{AccessKey: faultKey, SecretKey: faultSecret})})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	f.inject(obstest.Throttle(obstest.OpUploadPart, 4))
	res, err := client.Upload(t.Context(), obs.UploadOptions{Bucket: f.bucket, Key: f.key, Plan: plan, Source: memory(disk)})
	if err != nil {
		t.Fatal(err)
	}
	if g.late || g.slowed != 4 || g.most == 0 || g.most > 2 || g.recovered < 3 || res.Concurrency.Slowed != 1 {
		t.Errorf("after %d times SlowDown up to %d parts were under way, later %d; late: %v, result %+v", g.slowed, g.most, g.recovered, g.late, res.Concurrency)
	}
	f.content = disk
	f.stored()
}

// memory is a source of bytes.
type memory []byte

func (m memory) ReadRange(_ context.Context, p []byte, off int64) (allZero bool, err error) {
	copy(p, m[off:])
	return len(bytes.Trim(p, "\x00")) == 0, nil
}

func TestFaultTruncatedRequest(t *testing.T) {
	t.Parallel()
	// Half of a body arrives, and then the connection breaks, or somebody between passes half on as all.
	passing(t, []obstest.Op{obstest.OpUploadPart, obstest.OpPutObject, obstest.OpComplete}, []obstest.Fault{{Do: obstest.Reset}, {Do: obstest.Shorten}})
	t.Run("for good", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Shorten})
		f.pauses(exitTransient, "HTTP 400 BadDigest") // the server's own word
	})
}

func TestFaultTruncatedAnswer(t *testing.T) {
	t.Parallel()
	bodies := slices.DeleteFunc(slices.Clone(uploadOps), func(op obstest.Op) bool {
		return op == obstest.OpHeadBucket || op == obstest.OpHeadObject
	})
	passing(t, bodies, []obstest.Fault{{Do: obstest.CutAnswer}})
	t.Run("while reading back", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.args = []string{"--verify"}
		f.inject(obstest.Fault{Op: obstest.OpGetObject, Do: obstest.CutAnswer, Times: twice})
		f.arrives()
	})
	t.Run("list for good", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.inject(obstest.Fault{Op: obstest.OpListParts, Do: obstest.CutAnswer})
		f.pauses(exitTransient, "list parts", "after 6 attempts")
	})
}

func TestFaultBadDigest(t *testing.T) {
	t.Parallel()
	passing(t, []obstest.Op{obstest.OpUploadPart, obstest.OpPutObject, obstest.OpComplete}, []obstest.Fault{{Do: obstest.Flip}})
	t.Run("for good", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Flip})
		f.pauses(exitTransient, "HTTP 400 BadDigest", "after 6 attempts") // the server's own word
	})
	t.Run("ETags that aren't what was sent", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.inject(obstest.Fault{Op: obstest.OpCopyPart, Do: obstest.Corrupt, Times: twice})
		f.arrives()
	})
}

func TestFaultExpiredToken(t *testing.T) {
	t.Parallel()
	expired := obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.FailLate, Status: 403, Code: "ExpiredToken", Message: "the provided token has expired"}
	// signer is the access key that a request was signed with.
	signer := func(q *obstest.Request) string {
		_, after, _ := strings.Cut(q.HTTP.Header.Get("Authorization"), "Credential=")
		key, _, _ := strings.Cut(after, "/")
		return key
	}
	asUser := func(f *faulty) {
		cloud, _ := faultCloud() // has answered before
		for _, name := range []string{"HW_USER_NAME", "HW_USER_PASSWORD", "HW_DOMAIN_NAME"} {
			f.env[name] = cloud[name]
		}
		delete(f.env, "HW_ACCESS_KEY")
		delete(f.env, "HW_SECRET_KEY")
	}
	for _, format := range faultFormats(t) {
		t.Run(format+" new keys", func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, format)
			asUser(f)
			// The keys of the first request are not taken any more once the second part comes.
			var mu sync.Mutex
			var order []string
			ended := expired
			ended.Op = ""
			ended.Match = func(q *obstest.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				key := signer(q)
				if !slices.Contains(order, key) {
					order = append(order, key)
				}
				return key == order[0] && (q.Part >= 2 || q.Op == obstest.OpComplete)
			}
			f.inject(ended)
			f.arrives()
			if len(order) != 2 {
				t.Errorf("signed with %q, and not with two keys", order)
			}
		})
	}
	t.Run("new keys that aren't taken either", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.args = []string{"--concurrency", "1"}
		asUser(f)
		refused := f.inject(expired)
		f.pauses(exitAuth, "HTTP 403 ExpiredToken", "after 2 attempts", "get new ones and run the same command again")
		if refused.Fired() != 2 {
			t.Errorf("asked %d times, and not once more with new keys", refused.Fired())
		}
	})
	t.Run("keys of the environment", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.inject(expired)
		f.pauses(exitAuth, "HTTP 403 ExpiredToken", "get new ones and run the same command again")
	})
}

func TestFaultNoSuchUpload(t *testing.T) {
	t.Parallel()
	for _, format := range faultFormats(t) {
		for _, op := range []obstest.Op{obstest.OpUploadPart, obstest.OpListParts, obstest.OpComplete} {
			t.Run(format+" "+string(op), func(t *testing.T) {
				t.Parallel()
				f := newFaulty(t, format)
				// Somebody aborts the upload: the server's own 404.
				var first sync.Once
				var aborted atomic.Bool
				f.proxy.Inject(obstest.Fault{Op: op, Do: obstest.Observe, Match: func(q *obstest.Request) bool {
					if q.Key != f.key {
						return false
					}
					first.Do(func() {
						err := f.store.AbortUpload(context.Background(), f.bucket, f.key, q.HTTP.URL.Query().Get("uploadId"))
						if err != nil {
							t.Error(err)
						}
						aborted.Store(true)
					})
					return false
				}})
				f.ends(exitError, "HTTP 404 NoSuchUpload")
				if !aborted.Load() {
					t.Error("the upload wasn't aborted")
				}
				e := f.arrives()
				if e.result.PartsResumed != 0 || !strings.Contains(e.said, "the upload starts anew: the unfinished upload is gone") {
					t.Errorf("%d parts were resumed: %s", e.result.PartsResumed, e.said)
				}
			})
		}
	}
}

func TestFaultErrorInCopyAnswer(t *testing.T) {
	t.Parallel()
	broken := obstest.Fault{Op: obstest.OpCopyPart, Do: obstest.ErrorBody, Code: "InternalError"}
	t.Run("passes", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		some := broken
		some.Times = twice
		f.inject(some)
		if e := f.arrives(); e.result.PartsCopied == 0 {
			t.Error("nothing was copied")
		}
	})
	t.Run("for good", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.inject(broken)
		e := f.arrives()
		if e.result.PartsCopied != 0 || strings.Count(e.said, "zeros were sent instead of copied") != 1 {
			t.Errorf("%d parts were copied, and it says: %s", e.result.PartsCopied, e.said)
		}
	})
	t.Run("for good, and copying is a must", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.args = []string{"--zero-copy", "on"}
		f.inject(broken)
		f.pauses(exitTransient, "CopyWithoutETag")
	})
}

func TestFaultErrorInCompleteAnswer(t *testing.T) {
	t.Parallel()
	passing(t, []obstest.Op{obstest.OpComplete}, []obstest.Fault{{Do: obstest.ErrorBody, Code: "InternalError"}})
	t.Run("for good", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.inject(obstest.Fault{Op: obstest.OpComplete, Do: obstest.ErrorBody, Code: "InternalError", Match: func(q *obstest.Request) bool { return q.Key == f.key }})
		if e := f.pauses(exitTransient, "complete upload", "InternalError"); e.result.PartsSent != 0 {
			t.Errorf("%d parts were sent again", e.result.PartsSent)
		}
	})
}

// TestFaultLostCompleteAnswer: the object is there, the answer isn't, and the upload's id is worth nothing any more.
func TestFaultLostCompleteAnswer(t *testing.T) {
	t.Parallel()
	for _, format := range faultFormats(t) {
		ours := func(f *faulty) func(*obstest.Request) bool {
			return func(q *obstest.Request) bool { return q.Key == f.key }
		}
		for _, do := range []obstest.Action{obstest.Lose, obstest.CutAnswer} {
			t.Run(fmt.Sprintf("%s %d", format, do), func(t *testing.T) {
				t.Parallel()
				f := newFaulty(t, format)
				completed := 0
				f.proxy.Inject(obstest.Fault{Op: obstest.OpComplete, Do: obstest.Observe, Match: func(q *obstest.Request) bool {
					if q.Key == f.key {
						completed++
					}
					return false
				}})
				f.inject(obstest.Fault{Op: obstest.OpComplete, Do: do, Match: ours(f)})
				f.arrives()
				if completed != 1 {
					t.Errorf("completed %d times although the object was there", completed)
				}
			})
		}
		t.Run(format+" and the look, too", func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, format)
			done := false
			f.inject(obstest.Fault{Op: obstest.OpComplete, Do: obstest.Lose, Match: func(q *obstest.Request) bool {
				done = done || q.Key == f.key
				return q.Key == f.key
			}})
			f.inject(obstest.Fault{Op: obstest.OpHeadObject, Do: obstest.Reset, Match: func(*obstest.Request) bool { return done }})
			f.ends(exitTransient, "complete upload", "run the same command again")
			f.proxy.ClearFaults()
			e := f.arrives()
			if e.result.PartsSent != 0 || e.result.PartsResumed == 0 {
				t.Errorf("%d parts were sent, %d resumed", e.result.PartsSent, e.result.PartsResumed)
			}
		})
	}
}

func TestFaultLaggingPartList(t *testing.T) {
	t.Parallel()
	passing(t, []obstest.Op{obstest.OpListParts}, []obstest.Fault{{Do: obstest.HideParts, Hide: 1}, {Do: obstest.HideParts, Hide: 100}})
	t.Run("for good", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.inject(obstest.Fault{Op: obstest.OpListParts, Do: obstest.HideParts, Hide: 1})
		f.fails(exitError, "compare part list", "the server lists", "after 6 attempts")
	})
	t.Run("when it is resumed", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t, formatRAW)
		f.args = []string{"--concurrency", "1"}
		f.inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Reset, After: 2})
		f.ends(exitTransient)
		f.proxy.ClearFaults()
		// A part that the list doesn't show yet is sent again.
		f.inject(obstest.Fault{Op: obstest.OpListParts, Do: obstest.HideParts, Hide: 1, Times: 1})
		if e := f.arrives(); e.result.PartsResumed == 0 {
			t.Error("nothing was resumed")
		}
	})
}

func TestFaultClockSkew(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		ahead time.Duration
		after int
		words string
	}{
		{"behind", 2 * time.Hour, 0, "this machine's clock is 2h0m0s behind the server's"},
		{"ahead", -3 * time.Hour, 0, "this machine's clock is 3h0m0s ahead of the server's"},
		{"in the middle", 2 * time.Hour, 8, "this machine's clock is 2h0m0s behind the server's"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, formatRAW)
			f.inject(obstest.Fault{Do: obstest.SkewClock, Skew: tc.ahead, After: tc.after})
			words := []string{tc.words, "set this machine's clock (NTP)"}
			if tc.after == 0 {
				f.fails(exitAuth, words...)
				return
			}
			// As long as the clock is off, nothing can be removed either.
			f.ends(exitAuth, words...)
			f.proxy.ClearFaults()
			f.arrives()
		})
	}
}

// nameServer answers every question with SERVFAIL or "no such name" for a while, then with 127.0.0.1.
type nameServer struct {
	conn  net.PacketConn
	asked atomic.Int64
	code  byte // RCODE of RFC 1035, 4.1.1
	times int64
}

func newNameServer(t *testing.T, code byte, times int64) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{conn: conn, code: code, times: times}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serve()
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return s
}

func (s *nameServer) serve() {
	b := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(b)
		if err != nil {
			return
		}
		// The header has 12 bytes, and then come a name, whose labels end with an empty one, type and class.
		end := 12
		for end < n && b[end] != 0 {
			end += int(b[end]) + 1
		}
		end += 5
		if n < 12 || end > n {
			continue
		}
		answer := append([]byte{b[0], b[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, b[12:end]...)
		switch {
		case s.times < 0 || s.asked.Add(1) <= s.times:
			answer[3] |= s.code
		case b[end-3] == 1: // an address
			answer[7] = 1
			answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1)
		}
		_, _ = s.conn.WriteTo(answer, from)
	}
}

// transport looks names up there.
func (s *nameServer) transport() *http.Transport {
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", s.conn.LocalAddr().String())
	}}
	return &http.Transport{DialContext: (&net.Dialer{Resolver: r}).DialContext, DisableKeepAlives: true}
}

func TestFaultDNS(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		code  byte
		times int64
		words string
	}{
		{"the server fails for a while", 2, 6, ""},
		{"no such name for a while", 3, 4, ""},
		{"no such name", 3, 1 << 40, "no such host"},
		{"the server fails", 2, 1 << 40, "server misbehaving"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, formatRAW)
			names := newNameServer(t, tc.code, tc.times)
			f.tune = func(o *obs.Options) { o.Transport, o.MaxAttempts = names.transport(), 12 }
			f.env["IMSPREP_OBS_ENDPOINT"] = strings.Replace(f.proxy.URL(), "127.0.0.1", "store.localhost", 1)
			if tc.words == "" {
				f.arrives()
			} else {
				f.fails(exitTransient, tc.words, "store.localhost")
			}
			if names.asked.Load() < min(tc.times, 4) {
				t.Errorf("asked %d times", names.asked.Load())
			}
		})
	}
}

// TestFaultLostBeginAnswer: an upload was begun, and nobody knows its id.
func TestFaultLostBeginAnswer(t *testing.T) {
	t.Parallel()
	for _, format := range faultFormats(t) {
		for _, do := range []obstest.Action{obstest.Lose, obstest.CutAnswer} {
			t.Run(fmt.Sprintf("%s %d", format, do), func(t *testing.T) {
				t.Parallel()
				f := newFaulty(t, format)
				f.inject(obstest.Fault{Op: obstest.OpInitiate, Do: do, Times: twice, Match: func(q *obstest.Request) bool { return q.Key == f.key }})
				f.arrives()
			})
		}
		t.Run(format+" for good", func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, format)
			f.inject(obstest.Fault{Op: obstest.OpInitiate, Do: obstest.CutAnswer})
			f.ends(exitTransient, "begin upload", "after 6 attempts")
			if left := f.there(); slices.ContainsFunc(left, func(name string) bool { return !strings.HasPrefix(name, "state: ") }) {
				t.Errorf("left: %q", left)
			}
			f.proxy.ClearFaults()
			f.arrives()
		})
	}
}

// TestFaultsDuringImport imports a disk whole, with every kind of fault once on its way.
func TestFaultsDuringImport(t *testing.T) {
	t.Parallel()
	cloud, err := faultCloud()
	if err != nil {
		t.Fatal(err)
	}
	for n, format := range faultFormats(t) {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			proxy, err := obstest.NewProxy(cloud["IMSPREP_OBS_ENDPOINT"])
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(proxy.Close)
			env := map[string]string{"HOME": t.TempDir()}
			for k, v := range cloud {
				if !strings.HasPrefix(k, "HW_USER") && k != "HW_DOMAIN_NAME" {
					env[k] = v
				}
			}
			env["IMSPREP_BUCKET"] = importsBucket
			env["IMSPREP_OBS_ENDPOINT"], env["HW_ACCESS_KEY"], env["HW_SECRET_KEY"] = proxy.URL(), faultKey, faultSecret
			k := newKiller(t, env, format, rand.New(rand.NewPCG(1, uint64(n))))
			faults := []*obstest.Injected{
				proxy.Inject(obstest.Fault{Op: obstest.OpInitiate, Do: obstest.CutAnswer, Times: 1}),
				proxy.Inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Reset, Times: 1}),
				proxy.Inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Flip, Times: 1}),
				proxy.Inject(obstest.Throttle(obstest.OpUploadPart, 1)),
				proxy.Inject(obstest.Fault{Op: obstest.OpListParts, Do: obstest.HideParts, Hide: 1, Times: 1}),
				proxy.Inject(obstest.Fault{Op: obstest.OpComplete, Do: obstest.Lose, Times: 1}),
				proxy.Inject(obstest.Fault{Op: obstest.OpDelete, Do: obstest.Reset, Times: 1}),
			}
			image, _, said := k.run(t, "faults-"+format, never)
			for i, in := range faults {
				if in.Fired() == 0 {
					t.Errorf("fault %d didn't happen", i)
				}
			}
			if err := k.check(t.Context(), "faults-"+format, image); err != nil {
				t.Errorf("%v\n%s", err, said)
			}
		})
	}
}
