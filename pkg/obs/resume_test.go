// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

var errDead = errors.New("the process is dead")

// mortal is a transport that dies, with its user, before a request, after an answer, or in the middle
// of a body. Dead, it lets nothing through: not even cleaning up.
type mortal struct {
	next http.RoundTripper

	mu       sync.Mutex
	die      func() // what else happens
	request  int    // before this request, from 1; 0 = never
	answer   int    // after this answer
	bytes    int64  // after this many bytes of bodies
	dead     bool
	silent   bool // do not refuse after dying: only die was called
	requests int
	answers  int
	moved    int64
	parts    []sentPart // asked for
}

// sentPart is a request for one part of the object itself.
type sentPart struct {
	upload string
	number int
}

func (m *mortal) arm(request, answer int, bytes int64, silent bool, die func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.die, m.request, m.answer, m.bytes, m.silent = die, request, answer, bytes, silent
	m.dead, m.requests, m.answers, m.moved, m.parts = false, 0, 0, 0, nil
}

// check dies if it is time to; it is called with mu held.
func (m *mortal) check() error {
	if m.dead {
		if m.silent {
			return nil
		}
		return errDead
	}
	if (m.request > 0 && m.requests >= m.request) || (m.answer > 0 && m.answers >= m.answer) || (m.bytes > 0 && m.moved >= m.bytes) {
		m.dead = true
		m.die()
		return errDead
	}
	return nil
}

func (m *mortal) isDead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

func (m *mortal) RoundTrip(r *http.Request) (*http.Response, error) {
	m.mu.Lock()
	m.requests++
	q := r.URL.Query()
	if n, err := strconv.Atoi(q.Get("partNumber")); err == nil && r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, testKey) {
		m.parts = append(m.parts, sentPart{q.Get("uploadId"), n})
	}
	err := m.check()
	m.mu.Unlock()
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	if r.Body != nil && r.Body != http.NoBody {
		r = r.Clone(r.Context())
		r.Body = &mortalBody{r.Body, m}
	}
	resp, err := m.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.answers++
	err = m.check()
	m.mu.Unlock()
	if err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

type mortalBody struct {
	io.ReadCloser
	m *mortal
}

func (b *mortalBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), 64<<10)])
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	b.m.moved += int64(n)
	if derr := b.m.check(); derr != nil {
		return 0, derr
	}
	return n, err
}

// journal puts a State together as a caller would, through JSON.
type journal struct {
	mu     sync.Mutex
	lines  [][]byte
	closed func() bool
	inside atomic.Int64
}

func (j *journal) write(t failer) func(Delta) {
	return func(d Delta) {
		if j.inside.Add(1) != 1 {
			t.Fatalf("two checkpoints at the same time")
		}
		defer j.inside.Add(-1)
		if j.closed != nil && j.closed() {
			return
		}
		b, err := json.Marshal(d)
		if err != nil {
			t.Fatalf("%v", err)
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		j.lines = append(j.lines, b)
	}
}

func (j *journal) state(t failer) *State {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.lines) == 0 {
		return nil
	}
	var s State
	for _, l := range j.lines {
		var d Delta
		if err := json.Unmarshal(l, &d); err != nil {
			t.Fatalf("%v", err)
		}
		s.Apply(d)
	}
	// Once more as a whole.
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, secret := range []string{obstest.SecretKey, "secret", "token", "Signature"} {
		if strings.Contains(string(b), secret) {
			t.Fatalf("%q in %s", secret, b)
		}
	}
	var back State
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatalf("%v", err)
	}
	return &back
}

// spoil makes a state stale or wrong in one of many ways, and says how. forgets means that the run
// it was of can no longer be recognised by it.
func spoil(r *rand.Rand, s *State) (how string, forgets bool) {
	some := func() *PartState {
		if len(s.Parts) == 0 {
			return &PartState{}
		}
		return &s.Parts[r.IntN(len(s.Parts))]
	}
	switch r.IntN(11) {
	case 0:
		s.Parts = s.Parts[:r.IntN(len(s.Parts)+1)]
		return "tail lost", false
	case 1:
		some().ETag = strings.Repeat("ab", 16)
		return "other ETag", false
	case 2:
		some().ETag = ""
		return "no ETag", false
	case 3:
		some().Size += 4096
		return "other size", false
	case 4:
		some().Offset += 4096
		return "other offset", false
	case 5:
		some().Number = r.IntN(40) - 10
		return "other number", false
	case 6:
		s.Parts = append(s.Parts, s.Parts...)
		r.Shuffle(len(s.Parts), func(i, j int) { s.Parts[i], s.Parts[j] = s.Parts[j], s.Parts[i] })
		return "doubled and shuffled", false
	case 7:
		s.Boundaries += "0"
		return "other plan", false
	case 8:
		s.UploadID = strings.Repeat("7", 32)
		return "other upload", true
	case 9:
		s.Key += "x"
		return "other key", true
	default:
		*s = State{}
		return "empty", true
	}
}

// tidy does what a clean-up command does after what a run was known by has been lost.
func (e *env) tidy(t failer) {
	t.Helper()
	ctx := context.Background()
	list, err := e.client.ListUploads(ctx, obstest.Bucket, testKey)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, u := range list {
		if err := e.client.AbortUpload(ctx, obstest.Bucket, u.Key, u.ID); err != nil {
			t.Fatalf("%v", err)
		}
	}
	for _, k := range e.server.Keys(obstest.Bucket) {
		if strings.HasPrefix(k, testKey+ZeroMark) || strings.HasPrefix(k, testKey+PieceMark) {
			if err := e.client.Delete(ctx, obstest.Bucket, k); err != nil {
				t.Fatalf("%v", err)
			}
		}
	}
}

// cutting runs one upload again and again, interrupted at random, until it succeeds. run does one
// attempt with what was remembered and returns which parts were produced.
func cutting(t *testing.T, seed uint64, e *env, m *mortal, want *disk, requests int, deaths *int,
	run func(ctx context.Context, s *State, j *journal, resumable bool) (*UploadResult, error)) {
	r := rand.New(rand.NewPCG(seed, 5))
	var log []string
	fail := func(format string, a ...any) {
		t.Helper()
		t.Fatalf("seed %d: %s\n%s", seed, fmt.Sprintf(format, a...), strings.Join(log, "\n"))
	}
	var s *State
	var acknowledged []sentPart
	lost := false
	for attempt, cuts := 0, 1+r.IntN(4); ; attempt++ {
		ctx, cancel := context.WithCancel(t.Context())
		request, answer, bytes := 0, 0, int64(0)
		if attempt < cuts {
			switch r.IntN(3) {
			case 0:
				request = 1 + r.IntN(max(4, requests-requests/3*attempt))
			case 1:
				answer = 1 + r.IntN(max(4, requests-requests/3*attempt))
			case 2:
				bytes = 1 + r.Int64N(20<<20>>attempt)
			}
		}
		gentle := r.IntN(3) == 0 // a signal, after which there is time to clean up
		m.arm(request, answer, bytes, gentle, cancel)
		j := &journal{}
		if !gentle {
			j.closed = m.isDead
		}
		res, err := run(ctx, s, j, true)
		cancel()
		e.client.Close()
		e.server.Quiet()
		log = append(log, fmt.Sprintf("attempt %d: request %d, answer %d, byte %d, gentle %v: %v", attempt, request, answer, bytes, gentle, err))

		// What was acknowledged never goes out again, whatever became of the memory of it.
		for _, p := range m.parts {
			if slices.Contains(acknowledged, p) {
				fail("part %d was sent again", p.number)
			}
		}
		if err == nil {
			if lost {
				e.tidy(t)
			}
			if res.AlreadyComplete && attempt == 0 {
				fail("%+v", res)
			}
			e.checkStored(t, want, res)
			return
		}
		*deaths++
		if !m.isDead() {
			fail("it failed by itself")
		}
		var oe *Error
		if !errors.As(err, &oe) {
			fail("error %T", err)
		}
		if next := j.state(t); next != nil {
			s = next
			if gentle && oe.Kept != s.UploadID {
				fail("kept %q, remembered %q", oe.Kept, s.UploadID)
			}
		}
		if gentle && !lost {
			for _, k := range e.server.Keys(obstest.Bucket) {
				if k != testKey {
					fail("%s is left", k)
				}
			}
		}
		if s != nil {
			for _, p := range s.Parts {
				acknowledged = append(acknowledged, sentPart{s.UploadID, p.Number})
			}
		}
		lost = lost || s == nil // killed while the upload began
		if s != nil && r.IntN(4) == 0 {
			how, forgets := spoil(r, s)
			log = append(log, how)
			lost = lost || forgets
		}
		if r.IntN(8) == 0 {
			log = append(log, "aborted meanwhile")
			e.server.AbortUploads(testKey)
		}
	}
}

// cutDisk has all sorts of parts in little data.
var cutExtents = []Extent{
	{0, 10 << 20, false}, {10 << 20, 22 << 20, true}, {32 << 20, 5 << 20, false},
	{37 << 20, 10 << 20, false}, {47 << 20, 40 << 20, true}, {87 << 20, 1000, false},
}

const cutSize = 87<<20 + 1000

func newMortalEnv(t *testing.T) (*env, *mortal) {
	m := &mortal{}
	e := newEnv(t, obstest.Options{}, func(o *Options) {
		m.next = newTransport(nil)
		o.Transport = struct {
			http.RoundTripper
			closer
		}{m, m.next.(*http.Transport)}
	})
	return e, m
}

type closer interface{ CloseIdleConnections() }

func TestResumeAfterRandomCuts(t *testing.T) {
	t.Parallel()
	content := makeDisk(t, cutSize, cutExtents, func(i int) bool { return i == 3 }).content
	deaths := 0
	seeds := cases(24)
	for seed := range uint64(seeds) {
		e, m := newMortalEnv(t)
		o := PlanOptions{BlockSize: 1 << 20, PartSize: 5 << 20, Workers: 1 + int(seed%4)}
		if seed%7 == 0 {
			o.ZeroCopy = ZeroCopyOff
		}
		p := mustPlan(t, cutSize, cutExtents, o)
		if seed%5 == 0 {
			e.server.Inject(obstest.Refuse(obstest.OpCopyPart, 501, "NotImplemented"))
		}
		cutting(t, seed, e, m, &disk{content: content}, 20, &deaths, func(ctx context.Context, s *State, j *journal, resumable bool) (*UploadResult, error) {
			d := &disk{content: content}
			o := e.options(d, p)
			o.Resume, o.Checkpoint, o.Resumable = s, j.write(t), resumable
			o.Note = func(p Part) []byte { return []byte(strconv.Itoa(p.Number)) }
			res, err := e.client.Upload(ctx, o)
			for _, q := range j.lines {
				var d Delta
				if json.Unmarshal(q, &d) != nil || (d.Part != nil && string(d.Part.Note) != strconv.Itoa(d.Part.Number)) {
					t.Errorf("delta %s", q)
				}
			}
			if off := d.repeated(); off >= 0 {
				t.Fatalf("seed %d: byte %d was asked for twice", seed, off)
			}
			return res, err
		})
	}
	t.Logf("%d interruptions", deaths)
	if deaths < seeds {
		t.Fatalf("only %d interruptions", deaths)
	}
}

func TestResumeStreamAfterRandomCuts(t *testing.T) {
	t.Parallel()
	content := noisy(t, 6, 27<<20+123)
	deaths := 0
	seeds := cases(20)
	for seed := range uint64(seeds) {
		e, m := newMortalEnv(t)
		r := rand.New(rand.NewPCG(seed, 6))
		cutting(t, 1000+seed, e, m, &disk{content: content}, 9, &deaths, func(ctx context.Context, s *State, j *journal, resumable bool) (*UploadResult, error) {
			o := e.streamOptions()
			o.Workers = 1 + int(seed%4)
			o.Resume, o.Checkpoint, o.Resumable = s, j.write(t), resumable
			var from int64
			if r.IntN(4) > 0 {
				o.Reposition = func(done []PartState, off int64) (int64, error) {
					if last := done[len(done)-1]; last.Offset+last.Size != off {
						t.Errorf("%d bytes are there, but the last part is %+v", off, last)
					}
					from = off
					if r.IntN(2) == 0 {
						from = r.Int64N(off + 1)
					}
					return from, nil
				}
			}
			written := int64(0)
			o.Note = func(p Part) []byte {
				if p.Offset+p.Length < from+written {
					t.Errorf("part %+v noted after %d bytes from %d on", p, written, from)
				}
				return []byte(strconv.FormatInt(p.Offset, 10))
			}
			return e.client.UploadStream(ctx, o, func(_ context.Context, w io.Writer) error {
				buf := make([]byte, 300<<10)
				for off := from; off < content.Size(); {
					n, _ := content.ReadAt(buf, off)
					written = off - from
					if _, err := w.Write(buf[:n]); err != nil {
						return err
					}
					off += int64(n)
				}
				return nil
			})
		})
	}
	t.Logf("%d interruptions", deaths)
	if deaths < seeds {
		t.Fatalf("only %d interruptions", deaths)
	}
}

// interrupted runs an upload of the cut disk up to its first data part after after others, with a
// signal's time to clean up, and returns what was remembered.
func (e *env) interrupted(t *testing.T, content *obstest.Content, p *Plan, after int) *State {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	e.server.Inject(obstest.Fault{Op: obstest.OpUploadPart, After: after, Do: obstest.Stall, Match: func(*obstest.Request) bool { return true }})
	j := &journal{}
	o := e.options(&disk{content: content}, p)
	o.Resumable = true
	write := j.write(t)
	o.Checkpoint = func(d Delta) {
		write(d)
		if sent := len(j.state(t).Parts); d.Part != nil && sent >= after {
			cancel()
		}
	}
	_, err := e.client.Upload(ctx, o)
	var oe *Error
	if !errors.As(err, &oe) || oe.Kind != KindCanceled || oe.Kept == "" || len(oe.Left) > 0 {
		t.Fatalf("%+v", err)
	}
	if u := e.server.Uploads(); !slices.Equal(u, []string{testKey}) {
		t.Fatalf("unfinished uploads %v", u)
	}
	if k := e.server.Keys(obstest.Bucket); len(k) != 0 {
		t.Fatalf("left %v", k)
	}
	e.server.ClearFaults()
	return j.state(t)
}

var cutOptions = PlanOptions{BlockSize: 1 << 20, PartSize: 5 << 20, Workers: 1}

func cutContent(t *testing.T) *obstest.Content {
	return makeDisk(t, cutSize, cutExtents, func(i int) bool { return i == 3 }).content
}

func TestResumeCases(t *testing.T) {
	t.Parallel()
	content := cutContent(t)
	plan := mustPlan(t, cutSize, cutExtents, cutOptions)
	complete := func(t *testing.T, e *env, s *State) {
		// An earlier run completed it and died before it could say so.
		o := e.options(&disk{content: content}, plan)
		o.Resume = s
		if _, err := e.client.Upload(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, e *env, s *State, o *UploadOptions)
		anew   string // why
		done   bool   // already complete
	}{
		{name: "as it was", change: func(*testing.T, *env, *State, *UploadOptions) {}},
		{name: "run id given", change: func(_ *testing.T, _ *env, s *State, o *UploadOptions) { o.RunID = "another" }},
		{name: "completed", change: func(t *testing.T, e *env, s *State, _ *UploadOptions) { complete(t, e, s) }, done: true},
		{name: "completed, then replaced", change: func(t *testing.T, e *env, s *State, _ *UploadOptions) {
			complete(t, e, s)
			e.server.PutObject(obstest.Bucket, testKey, &obstest.Object{Content: obstest.Zeros(cutSize), ETag: "x"})
		}, anew: "gone"},
		{name: "aborted", change: func(_ *testing.T, e *env, _ *State, _ *UploadOptions) { e.server.AbortUploads(testKey) }, anew: "gone"},
		{name: "another plan", change: func(t *testing.T, _ *env, _ *State, o *UploadOptions) {
			q := cutOptions
			q.PartSize = 7 << 20
			o.Plan = mustPlan(t, cutSize, cutExtents, q)
		}, anew: "cut in another way"},
		{name: "another mode", change: func(_ *testing.T, _ *env, _ *State, o *UploadOptions) { o.ZeroCopy = ZeroCopyOff }, anew: "cut in another way"},
		{name: "another bucket", change: func(_ *testing.T, e *env, s *State, _ *UploadOptions) {
			e.server.AbortUploads(testKey)
			s.Bucket = "others"
		}, anew: "something else"},
		{name: "run id that cannot be", change: func(_ *testing.T, e *env, s *State, _ *UploadOptions) {
			e.server.AbortUploads(testKey)
			s.RunID = "../x"
		}, anew: "something else"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{}, nil)
			s := e.interrupted(t, content, plan, 3)
			if len(s.Parts) < 3 {
				t.Fatalf("%+v", s)
			}
			d := &disk{content: content}
			o := e.options(d, plan)
			o.Resume = s
			tc.change(t, e, s, &o)
			j := &journal{}
			o.Checkpoint = j.write(t)
			note := ""
			var last UploadEvent
			o.Progress = func(ev UploadEvent) {
				note += ev.Note
				last = ev
			}
			res, err := e.client.Upload(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			e.checkStored(t, d, res)
			if !strings.Contains(res.StartedAnew, tc.anew) || (tc.anew == "") != (res.StartedAnew == "") || !strings.Contains(note, tc.anew) {
				t.Fatalf("started anew: %q, note %q", res.StartedAnew, note)
			}
			if tc.done {
				if !res.AlreadyComplete || len(d.asked) > 0 || len(j.lines) > 0 || res.BytesSent > 0 {
					t.Fatalf("%+v after reading %v", res, d.asked)
				}
				return
			}
			if last.Done != cutSize || last.Sent+last.Copied+last.Resumed != cutSize || last.Resumed != res.BytesResumed {
				t.Fatalf("last event %+v", last)
			}
			if resumed := res.PartsResumed > 0; resumed != (tc.anew == "") || res.PartsSent+res.PartsCopied+res.PartsResumed != len(o.Plan.Parts) && tc.name != "another mode" {
				t.Fatalf("%+v", res)
			}
			if tc.anew == "" && (res.PartsResumed != len(s.Parts) || res.RunID != s.RunID) {
				t.Fatalf("%+v of %+v", res, s)
			}
			end := j.state(t)
			if end.RunID != res.RunID || len(end.Parts) != res.PartsSent+res.PartsCopied+res.PartsResumed {
				t.Fatalf("remembered %+v, result %+v", end, res)
			}
		})
	}
}

// What was acknowledged but not remembered is read again, and not sent again.
func TestResumeWithoutMemoryOfParts(t *testing.T) {
	content := cutContent(t)
	plan := mustPlan(t, cutSize, cutExtents, cutOptions)
	e := newEnv(t, obstest.Options{}, nil)
	s := e.interrupted(t, content, plan, 4)
	had := len(s.Parts)
	s.Parts = nil
	d := &disk{content: content}
	o := e.options(d, plan)
	o.Resume = s
	res, err := e.client.Upload(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, d, res)
	if res.PartsResumed != had || len(d.asked) == 0 {
		t.Fatalf("%+v, had %d", res, had)
	}
}

func TestResumeAfterCopyingWasRefused(t *testing.T) {
	content := cutContent(t)
	plan := mustPlan(t, cutSize, cutExtents, cutOptions)
	e := newEnv(t, obstest.Options{}, nil)
	refuse := obstest.Refuse(obstest.OpCopyPart, 501, "NotImplemented")
	e.server.Inject(refuse)
	s := e.interrupted(t, content, plan, 3)
	if !s.CopyRefused {
		t.Fatalf("%+v", s)
	}
	e.server.Inject(refuse)
	d := &disk{content: content}
	o := e.options(d, plan)
	o.Resume = s
	before := e.server.Stats().Requests[obstest.OpCopyPart]
	res, err := e.client.Upload(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, d, res)
	if res.PartsResumed != len(s.Parts) || res.ZeroCopyRefused == "" || e.server.Stats().Requests[obstest.OpCopyPart] != before {
		t.Fatalf("%+v", res)
	}
}

func TestResumeOnEncryptedStore(t *testing.T) {
	content := cutContent(t)
	plan := mustPlan(t, cutSize, cutExtents, cutOptions)
	e := newEnv(t, obstest.Options{Encrypted: true}, nil)
	s := e.interrupted(t, content, plan, 3)
	if !s.Encrypted {
		t.Fatalf("%+v", s)
	}
	d := &disk{content: content}
	o := e.options(d, plan)
	o.Resume = s
	res, err := e.client.Upload(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, d, res)
	if res.PartsResumed != len(s.Parts) || res.PartsCopied == 0 {
		t.Fatalf("%+v", res)
	}
}

func TestResumableKeepsOnlyWhatMaySucceed(t *testing.T) {
	t.Parallel()
	content := cutContent(t)
	plan := mustPlan(t, cutSize, cutExtents, cutOptions)
	for _, tc := range []struct {
		name  string
		fault obstest.Fault
		kept  bool
		done  bool // the object is there
	}{
		{"throttled", obstest.Refuse(obstest.OpUploadPart, 503, "SlowDown"), true, false},
		{"keys expired", obstest.Refuse(obstest.OpUploadPart, 403, "ExpiredToken"), true, false},
		{"bucket full", obstest.Refuse(obstest.OpUploadPart, 403, "InsufficientStorageSpace"), true, false},
		{"list unreachable", obstest.Refuse(obstest.OpListParts, 503, "ServiceUnavailable"), true, false},
		{"completed unseen", obstest.Fault{Op: obstest.OpHeadObject, Do: obstest.Fail, Status: 503}, true, true},
		{"bad request", obstest.Refuse(obstest.OpUploadPart, 400, "InvalidArgument"), false, false},
		{"list differs", obstest.Fault{Op: obstest.OpListParts, Do: obstest.HideParts, Hide: 1}, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{}, nil)
			e.server.Inject(tc.fault)
			j := &journal{}
			o := e.options(&disk{content: content}, plan)
			o.Resumable, o.Checkpoint = true, j.write(t)
			_, err := e.client.Upload(t.Context(), o)
			if !tc.kept {
				if oe := e.checkGone(t, err); oe.Kept != "" {
					t.Fatalf("kept %q", oe.Kept)
				}
				return
			}
			var oe *Error
			if !errors.As(err, &oe) || oe.Kept != j.state(t).UploadID || len(oe.Left) > 0 {
				t.Fatalf("%+v", err)
			}
			if n := len(e.server.Keys(obstest.Bucket)); (n == 1) != tc.done || n > 1 || (len(e.server.Uploads()) == 1) == tc.done {
				t.Fatalf("objects %v, uploads %v", e.server.Keys(obstest.Bucket), e.server.Uploads())
			}
			e.server.ClearFaults()
			d := &disk{content: content}
			o = e.options(d, plan)
			o.Resume = j.state(t)
			res, err := e.client.Upload(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			e.checkStored(t, d, res)
			if res.AlreadyComplete != tc.done || res.StartedAnew != "" {
				t.Fatalf("%+v", res)
			}
		})
	}
}

// The server's list cannot be had at the moment: nothing is thrown away.
func TestResumeWhileUnreachable(t *testing.T) {
	content := cutContent(t)
	plan := mustPlan(t, cutSize, cutExtents, cutOptions)
	e := newEnv(t, obstest.Options{}, nil)
	s := e.interrupted(t, content, plan, 2)
	e.server.Inject(obstest.Refuse(obstest.OpListParts, 503, "ServiceUnavailable"))
	o := e.options(&disk{content: content}, plan)
	o.Resume, o.Resumable = s, true
	_, err := e.client.Upload(t.Context(), o)
	var oe *Error
	if !errors.As(err, &oe) || oe.Kind != KindTransient || oe.Kept != s.UploadID || len(e.server.Uploads()) != 1 {
		t.Fatalf("%+v, uploads %v", err, e.server.Uploads())
	}
}

func TestResumeStreamThatChanged(t *testing.T) {
	// Other bytes than before: parts that are produced again show it, and go out as they are now.
	e := newEnv(t, obstest.Options{}, nil)
	before, after := noisy(t, 7, 17<<20), noisy(t, 8, 12<<20)
	broken := errors.New("unplugged")
	j := &journal{}
	o := e.streamOptions()
	o.Checkpoint, o.Resumable, o.Workers = j.write(t), true, 1
	ctx, cancel := context.WithCancel(t.Context())
	_, err := e.client.UploadStream(ctx, o, func(_ context.Context, w io.Writer) error {
		if _, err := io.CopyN(w, before.Reader(), 17<<20); err != nil {
			return err
		}
		for len(j.state(t).Parts) < 3 {
			runtime.Gosched()
		}
		cancel()
		return broken
	})
	if KindOf(err) != KindCanceled {
		t.Fatal(err)
	}
	o.Resume = j.state(t)
	res, err := e.client.UploadStream(t.Context(), o, produce(after, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, &disk{content: after}, res)
	if res.PartsResumed != 0 || res.PartsSent != 3 {
		t.Fatalf("%+v", res)
	}
}

func TestResumeStreamRefusesWrongPosition(t *testing.T) {
	content := noisy(t, 9, 17<<20)
	for name, reposition := range map[string]func([]PartState, int64) (int64, error){
		"beyond":   func(_ []PartState, off int64) (int64, error) { return off + 1, nil },
		"negative": func([]PartState, int64) (int64, error) { return -1, nil },
		"error":    func([]PartState, int64) (int64, error) { return 0, errDead },
		"too far":  func(_ []PartState, off int64) (int64, error) { return off - 1, nil }, // and then nothing is written
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{}, nil)
			j := &journal{}
			o := e.streamOptions()
			o.Checkpoint, o.Resumable = j.write(t), true
			e.server.Inject(obstest.Refuse(obstest.OpComplete, 503, "ServiceUnavailable"))
			if _, err := e.client.UploadStream(t.Context(), o, produce(content, 1<<20)); KindOf(err) != KindTransient {
				t.Fatal(err)
			}
			e.server.ClearFaults()
			o.Resume, o.Reposition = j.state(t), reposition
			if o.Resume.Size != 17<<20 {
				t.Fatalf("%+v", o.Resume)
			}
			_, err := e.client.UploadStream(t.Context(), o, func(context.Context, io.Writer) error { return nil })
			if k := e.checkGone(t, err).Kind; k != KindInvalid && !errors.Is(err, errDead) {
				t.Fatalf("kind %v: %v", k, err)
			}
		})
	}
}

func TestStateApply(t *testing.T) {
	var s State
	begun := &State{Bucket: "b", Key: "k", UploadID: "1", Parts: []PartState{{Number: 1}}}
	s.Apply(Delta{Begun: begun})
	s.Apply(Delta{Part: &PartState{Number: 2, Note: []byte{1, 2}}})
	s.Apply(Delta{Size: 7})
	if s.UploadID != "1" || len(s.Parts) != 2 || s.Size != 7 || len(begun.Parts) != 1 {
		t.Fatalf("%+v", s)
	}
	s.Apply(Delta{Begun: &State{UploadID: "2"}})
	if s.UploadID != "2" || len(s.Parts) != 0 || s.Size != 0 {
		t.Fatalf("%+v", s)
	}
}

func TestCopiedPartsAreChecked(t *testing.T) {
	wrong := obstest.Fault{Op: obstest.OpCopyPart, Do: obstest.Corrupt}
	t.Run("passing", func(t *testing.T) {
		e := newEnv(t, obstest.Options{}, nil)
		d := sparseDisk(t)
		f := wrong
		f.After, f.Times = 2, 2
		e.server.Inject(f)
		res, err := e.client.Upload(t.Context(), e.options(d, mustPlan(t, sparseSize, sparse, sparseOptions)))
		if err != nil {
			t.Fatal(err)
		}
		e.checkStored(t, d, res)
		if res.PartsCopied == 0 || res.Retries < 2 || res.ZeroCopyRefused != "" {
			t.Fatalf("%+v", res)
		}
	})
	t.Run("auto", func(t *testing.T) {
		e := newEnv(t, obstest.Options{}, nil)
		d := sparseDisk(t)
		e.server.Inject(wrong)
		res, err := e.client.Upload(t.Context(), e.options(d, mustPlan(t, sparseSize, sparse, sparseOptions)))
		if err != nil {
			t.Fatal(err)
		}
		e.checkStored(t, d, res)
		if res.PartsCopied != 0 || !strings.Contains(res.ZeroCopyRefused, "BadDigest") {
			t.Fatalf("%+v", res)
		}
	})
	t.Run("on", func(t *testing.T) {
		e := newEnv(t, obstest.Options{}, nil)
		e.server.Inject(wrong)
		o := e.options(sparseDisk(t), mustPlan(t, sparseSize, sparse, sparseOptions))
		o.ZeroCopy = ZeroCopyOn
		_, err := e.client.Upload(t.Context(), o)
		if oe := e.checkGone(t, err); oe.Code != "BadDigest" {
			t.Fatal(err)
		}
	})
	t.Run("encrypted", func(t *testing.T) {
		e := newEnv(t, obstest.Options{Encrypted: true}, nil)
		d := sparseDisk(t)
		o := e.options(d, mustPlan(t, sparseSize, sparse, sparseOptions))
		o.ZeroCopy = ZeroCopyOn
		res, err := e.client.Upload(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		e.checkStored(t, d, res)
		if res.PartsCopied == 0 || res.Retries != 0 {
			t.Fatalf("%+v", res)
		}
	})
}

func TestUnfinishedUploads(t *testing.T) {
	e := newEnv(t, obstest.Options{UploadsPage: 2}, nil)
	ctx := t.Context()
	var ids []string
	for _, key := range []string{"a", "b/1", "b/2", "b/2", "b/2", "c"} {
		id, err := e.client.core.NewMultipartUpload(ctx, obstest.Bucket, key, minio.PutObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	list, err := e.client.ListUploads(ctx, obstest.Bucket, "b/")
	if err != nil || len(list) != 4 || list[0].Key != "b/1" || list[0].ID != ids[1] || time.Since(list[0].Initiated) > time.Hour {
		t.Fatalf("%+v, %v", list, err)
	}
	if all, err := e.client.ListUploads(ctx, obstest.Bucket, ""); err != nil || len(all) != 6 {
		t.Fatalf("%+v, %v", all, err)
	}
	// The first time it does not take.
	e.server.Inject(obstest.Fault{Op: obstest.OpAbort, Times: 1, Do: obstest.Fail, Status: http.StatusNoContent})
	for range 2 {
		if err := e.client.AbortUpload(ctx, obstest.Bucket, "b/2", ids[3]); err != nil {
			t.Fatal(err)
		}
		if u := e.server.Uploads(); !slices.Equal(u, []string{"a", "b/1", "b/2", "b/2", "c"}) {
			t.Fatalf("%v", u)
		}
	}
	e.server.Inject(obstest.Fault{Op: obstest.OpAbort, Do: obstest.Fail, Status: http.StatusNoContent})
	if err := e.client.AbortUpload(ctx, obstest.Bucket, "a", ids[0]); KindOf(err) != KindTransient {
		t.Fatalf("%v", err)
	}
	if err := e.client.AbortUpload(ctx, obstest.Bucket, "a", ""); KindOf(err) != KindInvalid {
		t.Fatalf("%v", err)
	}
	e.server.Inject(obstest.Refuse(obstest.OpListUploads, 403, "AccessDenied"))
	if _, err := e.client.ListUploads(ctx, obstest.Bucket, ""); KindOf(err) != KindAuth {
		t.Fatalf("%v", err)
	}
}

// TestDiscard: all that an unfinished or a completed run has in the bucket goes, and nothing else.
func TestDiscard(t *testing.T) {
	content := cutContent(t)
	plan := mustPlan(t, cutSize, cutExtents, cutOptions)
	ctx := t.Context()
	put := func(e *env, key, runID string) {
		e.server.PutObject(obstest.Bucket, key, &obstest.Object{Content: obstest.Zeros(1), ETag: "x",
			Metadata: map[string]string{RunIDMetadata: runID}})
	}
	t.Run("unfinished", func(t *testing.T) {
		e := newEnv(t, obstest.Options{}, nil)
		s := e.interrupted(t, content, plan, 3)
		put(e, testKey+ZeroMark+s.RunID+"-0", s.RunID)
		put(e, testKey, "others")
		if _, err := e.client.core.NewMultipartUpload(ctx, obstest.Bucket, testKey+ZeroMark+s.RunID+"-1", minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
		if left := e.client.Discard(ctx, *s); len(left) > 0 {
			t.Errorf("left %q", left)
		}
		if k, u := e.server.Keys(obstest.Bucket), e.server.Uploads(); !slices.Equal(k, []string{testKey}) || len(u) > 0 {
			t.Errorf("objects %q, uploads %q; want the other's object alone", k, u)
		}
	})
	t.Run("completed", func(t *testing.T) {
		e := newEnv(t, obstest.Options{}, nil)
		put(e, testKey, "run")
		put(e, testKey+"x", "run")
		if left := e.client.Discard(ctx, State{Bucket: obstest.Bucket, Key: testKey, RunID: "run"}); len(left) > 0 {
			t.Errorf("left %q", left)
		}
		if k := e.server.Keys(obstest.Bucket); !slices.Equal(k, []string{testKey + "x"}) {
			t.Errorf("objects %q", k)
		}
	})
	t.Run("refused", func(t *testing.T) {
		e := newEnv(t, obstest.Options{}, nil)
		s := e.interrupted(t, content, plan, 3)
		e.server.Inject(obstest.Refuse(obstest.OpAbort, 403, "AccessDenied"))
		if left := e.client.Discard(ctx, *s); len(left) != 1 || !strings.Contains(left[0], s.UploadID) {
			t.Errorf("left %q", left)
		}
	})
	t.Run("nothing of ours", func(t *testing.T) {
		e := newEnv(t, obstest.Options{}, nil)
		put(e, testKey, "")
		for _, s := range []State{{}, {Bucket: obstest.Bucket, Key: testKey}, {Bucket: obstest.Bucket, Key: testKey, RunID: "../x"}} {
			e.client.Discard(ctx, s)
		}
		if k := e.server.Keys(obstest.Bucket); len(k) != 1 {
			t.Errorf("objects %q", k)
		}
	})
}
