// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

const testKey = "disks/web-1.raw"

// disk is a Source that knows what it was asked for.
type disk struct {
	content *obstest.Content
	mu      sync.Mutex
	asked   [][2]int64
	before  func(ctx context.Context, off int64) error
}

func (d *disk) ReadRange(ctx context.Context, p []byte, off int64) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if d.before != nil {
		if err := d.before(ctx, off); err != nil {
			return false, err
		}
	}
	d.mu.Lock()
	d.asked = append(d.asked, [2]int64{off, off + int64(len(p))})
	d.mu.Unlock()
	if n, err := d.content.ReadAt(p, off); n != len(p) {
		return false, fmt.Errorf("read %d of %d: %w", n, len(p), err)
	}
	return obstest.IsZero(p), nil
}

// repeated returns the first byte asked for twice, -1 for none.
func (d *disk) repeated() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	slices.SortFunc(d.asked, func(a, b [2]int64) int { return int(a[0]>>9 - b[0]>>9) })
	for i := 1; i < len(d.asked); i++ {
		if d.asked[i][0] < d.asked[i-1][1] {
			return d.asked[i][0]
		}
	}
	return -1
}

// takeComposed drops what was asked for of the plan's composed parts, and returns the first byte of them that was asked
// for more than most times, -1 for none.
func (d *disk) takeComposed(p *Plan, most int) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	tooOften := int64(-1)
	for _, part := range p.Parts {
		if part.Pieces == nil {
			continue
		}
		var of [][2]int64
		d.asked = slices.DeleteFunc(d.asked, func(a [2]int64) bool {
			within := a[0] >= part.Offset && a[1] <= part.Offset+part.Length
			if within {
				of = append(of, a)
			}
			return within
		})
		for _, a := range of { // a byte that is asked for most often is the first one of some question
			n := 0
			for _, b := range of {
				if b[0] <= a[0] && a[0] < b[1] {
					n++
				}
			}
			if n > most && tooOften < 0 {
				tooOften = a[0]
			}
		}
	}
	return tooOften
}

// noise is n bytes that are not zeros.
type noise struct {
	r *rand.ChaCha8
	n int64
}

func (x *noise) Read(p []byte) (int, error) {
	if x.n == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), x.n)]
	_, _ = x.r.Read(p)
	for i := 0; i < len(p); i += 100 {
		p[i] |= 1
	}
	x.n -= int64(len(p))
	return len(p), nil
}

// makeDisk fills the extents that are not Zero with noise; quiet ones among them stay zeros.
func makeDisk(t failer, size int64, es []Extent, quiet func(i int) bool) *disk {
	t.Helper()
	var parts []*obstest.Content
	pos := int64(0)
	zeros := func(n int64) { parts = append(parts, obstest.Zeros(n)) }
	for i, e := range es {
		zeros(e.Start - pos)
		if e.Zero || quiet(i) {
			zeros(e.Length)
		} else {
			c, err := obstest.NewContent(&noise{r: rand.NewChaCha8([32]byte{byte(i)}), n: e.Length})
			if err != nil {
				t.Fatalf("%v", err)
			}
			parts = append(parts, c)
		}
		pos = e.Start + e.Length
	}
	zeros(size - pos)
	return &disk{content: obstest.Concat(parts...)}
}

func loud(int) bool { return false }

type env struct {
	server *obstest.Server
	client *Client
}

// manyAttempts is for tests with a short idle limit: on a busy machine nothing may move for so long, many
// times in a row, although nothing is wrong.
const manyAttempts = 1000

func newEnv(t interface{ Cleanup(func()) }, so obstest.Options, change func(*Options)) *env {
	so.ZeroState = zeroState
	s := obstest.New(so)
	t.Cleanup(s.Close)
	return newEnvOf(t, s, change)
}

// newEnvOf is newEnv with a server that there is.
func newEnvOf(t interface{ Cleanup(func()) }, s *obstest.Server, change func(*Options)) *env {
	o := Options{Endpoint: s.URL(), Region: "test-1", MaxAttempts: 4, IdleTimeout: 20 * time.Second,
		BackoffBase: time.Millisecond, BackoffCap: 4 * time.Millisecond,
		Credentials: StaticCredentials(Credentials{AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey})}
	if change != nil {
		change(&o)
	}
	c, err := New(o)
	if err != nil {
		panic(err)
	}
	t.Cleanup(c.Close)
	return &env{s, c}
}

func (e *env) options(d *disk, p *Plan) UploadOptions {
	return UploadOptions{Bucket: obstest.Bucket, Key: testKey, Plan: p, Source: d}
}

// checkStored holds the object against the disk, and the bucket against leftovers.
func (e *env) checkStored(t failer, d *disk, res *UploadResult) {
	t.Helper()
	o := e.server.Object(obstest.Bucket, testKey)
	if o == nil {
		t.Fatalf("there is no object")
	}
	if off := o.Content.Diff(d.content); off >= 0 {
		t.Fatalf("object and disk differ at %d (sizes %d and %d)", off, o.Content.Size(), d.content.Size())
	}
	if o.ETag != res.ETag || res.Size != d.content.Size() {
		t.Fatalf("result %+v, ETag %s", res, o.ETag)
	}
	if o.StorageClass != "STANDARD" || o.Metadata[RunIDMetadata] != res.RunID {
		t.Fatalf("class %q, metadata %v", o.StorageClass, o.Metadata)
	}
	if keys := e.server.Keys(obstest.Bucket); len(keys) != 1 {
		t.Fatalf("left in the bucket: %v", keys)
	}
	e.checkClean(t)
	if off := d.repeated(); off >= 0 {
		t.Fatalf("byte %d was asked for twice", off)
	}
}

func (e *env) checkClean(t failer) {
	t.Helper()
	if u := e.server.Uploads(); len(u) != 0 {
		t.Fatalf("unfinished uploads: %v", u)
	}
	if v := e.server.Violations(); len(v) != 0 {
		t.Fatalf("violations: %v", v)
	}
}

// checkGone is for failed uploads: nothing may be left.
func (e *env) checkGone(t failer, err error) *Error {
	t.Helper()
	var oe *Error
	if !errors.As(err, &oe) {
		t.Fatalf("error %T %v is not an *Error", err, err)
	}
	if keys := e.server.Keys(obstest.Bucket); len(keys) != 0 || len(oe.Left) != 0 {
		t.Fatalf("left in the bucket: %v, admitted: %v", keys, oe.Left)
	}
	e.checkClean(t)
	return oe
}

func mustPlan(t failer, size int64, es []Extent, o PlanOptions) *Plan {
	t.Helper()
	p, err := NewPlan(size, seq(es...), o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return p
}

// sparse is a small disk with all sorts of parts: 12 MiB data, 12 MiB hole, 7 MiB data, 12 MiB data
// that reads as zeros, 12 MiB hole, a short tail.
var sparse = []Extent{
	{0, 12 << 20, false}, {12 << 20, 12 << 20, true}, {24 << 20, 7 << 20, false},
	{31 << 20, 12 << 20, false}, {43 << 20, 12 << 20, true}, {55 << 20, 1000, false},
}

const sparseSize = 55<<20 + 1000

// sparseContent is made once: noise takes longer than some of the tests.
var sparseContent = sync.OnceValue(func() *obstest.Content {
	return makeDisk(panicker{}, sparseSize, sparse, func(i int) bool { return i == 3 }).content
})

type panicker struct{}

func (panicker) Helper()                        {}
func (panicker) Fatalf(format string, a ...any) { panic(fmt.Sprintf(format, a...)) }

func sparseDisk(failer) *disk { return &disk{content: sparseContent()} }

var sparseOptions = PlanOptions{BlockSize: 1 << 20, PartSize: 6 << 20}

func TestUploadCountsWhatItSends(t *testing.T) {
	for _, mode := range []ZeroCopyMode{ZeroCopyAuto, ZeroCopyOn, ZeroCopyOff} {
		t.Run(string(mode), func(t *testing.T) {
			e := newEnv(t, obstest.Options{}, nil)
			d := sparseDisk(t)
			o := sparseOptions
			o.ZeroCopy = mode
			p := mustPlan(t, sparseSize, sparse, o)
			var last UploadEvent
			var events, inside atomic.Int64
			uo := e.options(d, p)
			uo.Metadata = map[string]string{"source-size": "42"}
			uo.Progress = func(ev UploadEvent) {
				if inside.Add(1) != 1 {
					t.Error("two reports at the same time")
				}
				if ev.Done < last.Done || ev.Wire < last.Wire || ev.Done != ev.Sent+ev.Copied {
					t.Errorf("%+v after %+v", ev, last)
				}
				last = ev
				events.Add(1)
				inside.Add(-1)
			}
			res, err := e.client.Upload(t.Context(), uo)
			if err != nil {
				t.Fatal(err)
			}
			e.checkStored(t, d, res)
			if e.server.Object(obstest.Bucket, testKey).Metadata["source-size"] != "42" {
				t.Fatal("metadata got lost")
			}
			st := e.server.Stats()
			if st.BodyBytes != res.BytesSent {
				t.Fatalf("result says %d bytes, the server got %d", res.BytesSent, st.BodyBytes)
			}
			total := 0
			for _, n := range st.Requests {
				total += n
			}
			if total != res.Requests || res.Retries != 0 {
				t.Fatalf("result says %d requests and %d retries, the server saw %v", res.Requests, res.Retries, st.Requests)
			}
			s := p.Summary()
			if mode == ZeroCopyOff {
				if res.BytesSent != sparseSize || res.PartsCopied != 0 || s.BytesToSend != sparseSize {
					t.Fatalf("%+v, plan %+v", res, s)
				}
			} else {
				// The plan's promise, less the data parts that turned out to be zeros.
				if res.BytesSent >= s.BytesToSend || res.BytesCopied <= s.BytesToCopy {
					t.Fatalf("%+v, plan %+v", res, s)
				}
				if res.BytesSent-seedSize+res.BytesCopied != sparseSize {
					t.Fatalf("sent %d and copied %d of %d", res.BytesSent, res.BytesCopied, sparseSize)
				}
			}
			if last.Done != sparseSize || last.Parts != len(p.Parts) || last.Wire != res.BytesSent || events.Load() < int64(len(p.Parts)) {
				t.Fatalf("last of %d events: %+v", events.Load(), last)
			}
			// Zero parts of the plan are never read.
			for _, a := range d.asked {
				i := slices.IndexFunc(p.Parts, func(q Part) bool { return q.Offset == a[0] })
				if i < 0 || p.Parts[i].Zero {
					t.Fatalf("asked for %v", a)
				}
			}
		})
	}
}

func TestUploadSummaryIsExact(t *testing.T) {
	t.Parallel()
	// Without surprises in the data, the plan foretells bytes and requests exactly.
	es := []Extent{{0, 20 << 20, false}, {20 << 20, 3 << 30, true}, {3<<30 + 20<<20, 8 << 20, false}}
	size := int64(3<<30 + 28<<20)
	e := newEnv(t, obstest.Options{}, nil)
	d := makeDisk(t, size, es, loud)
	p := mustPlan(t, size, es, PlanOptions{})
	res, err := e.client.Upload(t.Context(), e.options(d, p))
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, d, res)
	s := p.Summary()
	if int64(res.Requests) != int64(s.Requests) || res.BytesSent != s.BytesToSend || res.BytesCopied != s.BytesToCopy ||
		res.PartsSent != s.SendParts || res.PartsCopied != s.CopyParts {
		t.Fatalf("plan %+v, result %+v", s, res)
	}
}

// survivable faults, by name for the shrinker's output.
var survivable = map[string][]obstest.Fault{
	"none":             nil,
	"slow down":        {obstest.Throttle(obstest.OpUploadPart, 3), obstest.Throttle(obstest.OpCopyPart, 2)},
	"429":              {{Op: obstest.OpUploadPart, Times: 3, Do: obstest.Fail, Status: 429, Code: "TooManyRequests"}},
	"500":              {{Times: 3, After: 1, Do: obstest.Fail, Status: 500, Code: "InternalError"}},
	"502 without XML":  {{Times: 3, Do: obstest.FailLate, Status: 502}},
	"reset in part":    {{Op: obstest.OpUploadPart, Times: 3, Do: obstest.Reset}},
	"reset anywhere":   {{Times: 3, After: 2, Do: obstest.Reset}},
	"lost parts":       {{Op: obstest.OpUploadPart, Times: 2, Do: obstest.Lose}, {Op: obstest.OpCopyPart, Times: 1, Do: obstest.Lose}},
	"copy error body":  {{Op: obstest.OpCopyPart, Times: 2, Do: obstest.ErrorBody, Code: "InternalError"}},
	"complete body":    {{Op: obstest.OpComplete, Times: 2, Do: obstest.ErrorBody, Code: "InternalError"}},
	"complete lost":    {{Op: obstest.OpComplete, Times: 2, Do: obstest.Lose}},
	"complete 503":     {{Op: obstest.OpComplete, Times: 2, Do: obstest.Fail, Status: 503, Code: "ServiceUnavailable"}},
	"list lags":        {{Op: obstest.OpListParts, Times: 2, Do: obstest.HideParts, Hide: 1}},
	"bad digest":       {{Op: obstest.OpUploadPart, Times: 2, Do: obstest.FailLate, Status: 400, Code: "BadDigest"}},
	"stored otherwise": {{Op: obstest.OpUploadPart, Times: 2, Do: obstest.Corrupt}},
	"begin lost":       {{Op: obstest.OpInitiate, Times: 2, Do: obstest.Lose}},
	"begin cut":        {{Op: obstest.OpInitiate, Times: 3, Do: obstest.CutAnswer}},
	"look lost":        {{Op: obstest.OpHeadObject, Times: 2, Do: obstest.Reset}},
}

// Faults that zero copies do not survive, but auto does.
var autoSurvives = map[string][]obstest.Fault{
	"copy 501":       {obstest.Refuse(obstest.OpCopyPart, 501, "NotImplemented")},
	"copy 403":       {obstest.Refuse(obstest.OpCopyPart, 403, "AccessDenied")},
	"copy 405":       {obstest.Refuse(obstest.OpCopyPart, 405, "MethodNotAllowed")},
	"copy 400":       {obstest.Refuse(obstest.OpCopyPart, 400, "InvalidRequest")},
	"copy no ETag":   {{Op: obstest.OpCopyPart, Do: obstest.ErrorBody, Code: "InternalError"}},
	"copy 501 later": {{Op: obstest.OpCopyPart, After: 5, Do: obstest.Fail, Status: 501, Code: "NotImplemented"}},
	"copy 500 later": {{Op: obstest.OpCopyPart, After: 5, Do: obstest.Fail, Status: 500, Code: "InternalError"}},
	"seed refused":   {obstest.Refuse(obstest.OpPutObject, 403, "AccessDenied")},
	"zero object gone": {{Op: obstest.OpCopyPart, After: 4, Do: obstest.Fail, Status: 404,
		Code: "NoSuchKey"}},
}

type rapidCleanup struct {
	*rapid.T
	fns []func()
}

func (c *rapidCleanup) Cleanup(f func()) { c.fns = append(c.fns, f) }
func (c *rapidCleanup) run() {
	for _, f := range c.fns {
		f()
	}
}

func TestUploadProperties(t *testing.T) {
	t.Parallel()
	all := map[string][]obstest.Fault{}
	for n, f := range survivable {
		all[n] = f
	}
	for n, f := range autoSurvives {
		all[n] = f
	}
	names := make([]string, 0, len(all))
	for n := range all {
		names = append(names, n)
	}
	slices.Sort(names)
	rapid.Check(t, func(rt *rapid.T) {
		mode := rapid.SampledFrom([]ZeroCopyMode{ZeroCopyAuto, ZeroCopyOn, ZeroCopyOff}).Draw(rt, "mode")
		fault := rapid.SampledFrom(names).Draw(rt, "fault")
		if _, ok := autoSurvives[fault]; ok && mode == ZeroCopyOn {
			mode = ZeroCopyAuto
		}
		size := rapid.Int64Range(1, 24<<20).Draw(rt, "size")
		var es []Extent
		for pos := int64(0); pos < size; {
			n := min(rapid.Int64Range(1, 12<<20).Draw(rt, "run"), size-pos)
			es = append(es, Extent{pos, n, rapid.Bool().Draw(rt, "zero")})
			pos += n
		}
		quiet := rapid.IntRange(0, 3).Draw(rt, "quiet")
		o := PlanOptions{
			BlockSize: 1 << rapid.IntRange(9, 21).Draw(rt, "block"), ZeroCopy: mode,
			Workers:  rapid.IntRange(1, 4).Draw(rt, "workers"),
			PartSize: rapid.SampledFrom([]int64{0, MinPartSize, 7 << 20}).Draw(rt, "part"),
		}
		tc := &rapidCleanup{T: rt}
		defer tc.run()
		e := newEnv(tc, obstest.Options{}, nil)
		d := makeDisk(rt, size, es, func(i int) bool { return i%4 == quiet })
		p := mustPlan(rt, size, es, o)
		for _, f := range all[fault] {
			e.server.Inject(f)
		}
		res, err := e.client.Upload(context.Background(), e.options(d, p))
		if err != nil {
			rt.Fatalf("%v", err)
		}
		if res.ZeroCopyRefused != "" {
			// What was to be composed may have been read for that; then it is read for its MD5, and to be sent in one.
			if off := d.takeComposed(p, 3); off >= 0 {
				rt.Fatalf("byte %d of a composed part was asked for more than three times", off)
			}
		}
		e.checkStored(rt, d, res)
		if len(res.Left) > 0 {
			rt.Fatalf("left %v", res.Left)
		}
	})
}

// Every fault at least once, on a disk that has all sorts of parts.
func TestUploadSurvives(t *testing.T) {
	t.Parallel()
	run := func(t *testing.T, faults []obstest.Fault, refused bool) {
		e := newEnv(t, obstest.Options{}, nil)
		d := sparseDisk(t)
		p := mustPlan(t, sparseSize, sparse, sparseOptions)
		for _, f := range faults {
			e.server.Inject(f)
		}
		uo := e.options(d, p)
		notes := 0
		uo.Progress = func(ev UploadEvent) {
			if ev.Note != "" {
				notes++
			}
		}
		res, err := e.client.Upload(t.Context(), uo)
		if err != nil {
			t.Fatal(err)
		}
		e.checkStored(t, d, res)
		if refused != (res.ZeroCopyRefused != "") || refused != (notes == 1) {
			t.Fatalf("refused %q, %d notes", res.ZeroCopyRefused, notes)
		}
	}
	for name, faults := range survivable {
		t.Run(name, func(t *testing.T) { run(t, faults, false) })
	}
	for name, faults := range autoSurvives {
		t.Run(name, func(t *testing.T) { run(t, faults, true) })
	}
}

func TestUploadFails(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		fault obstest.Fault
		mode  ZeroCopyMode
		kind  Kind
		code  string
		once  obstest.Op // this call must not have been repeated
	}{
		{"wrong secret", obstest.Refuse("", 403, "SignatureDoesNotMatch"), "", KindAuth, "SignatureDoesNotMatch", obstest.OpInitiate},
		{"no right to write", obstest.Refuse(obstest.OpInitiate, 403, "AccessDenied"), "", KindAuth, "AccessDenied", obstest.OpInitiate},
		{"no right to send", obstest.Refuse(obstest.OpUploadPart, 403, "AccessDenied"), "", KindAuth, "AccessDenied", ""},
		{"too many wrong signatures", obstest.Refuse(obstest.OpInitiate, 400, "TooManyWrongSignature"), "", KindAuth, "TooManyWrongSignature", obstest.OpInitiate},
		{"arrears", obstest.Refuse(obstest.OpInitiate, 403, "InArrearOrInsufficientBalance"), "", KindQuota, "InArrearOrInsufficientBalance", obstest.OpInitiate},
		{"bucket full", obstest.Refuse(obstest.OpUploadPart, 403, "InsufficientStorageSpace"), "", KindQuota, "InsufficientStorageSpace", ""},
		{"path style", obstest.Refuse("", 403, "VirtualHostDomainRequired"), "", KindInvalid, "VirtualHostDomainRequired", obstest.OpInitiate},
		{"throttled for good", obstest.Refuse(obstest.OpUploadPart, 503, "SlowDown"), "", KindTransient, "SlowDown", ""},
		{"never takes a part", obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Reset}, "", KindTransient, "", ""},
		{"upload vanished", obstest.Refuse(obstest.OpUploadPart, 404, "NoSuchUpload"), "", KindNotFound, "NoSuchUpload", ""},
		{"part always rots", obstest.Fault{Op: obstest.OpUploadPart, Match: func(q *obstest.Request) bool { return q.Part == 2 }, Do: obstest.Corrupt},
			"", KindTransient, "BadDigest", ""},
		{"list misses a part", obstest.Fault{Op: obstest.OpListParts, Do: obstest.HideParts, Hide: 1}, "", KindIntegrity, "", ""},
		{"list refused", obstest.Refuse(obstest.OpListParts, 403, "AccessDenied"), "", KindAuth, "AccessDenied", obstest.OpListParts},
		{"invalid part", obstest.Refuse(obstest.OpComplete, 400, "InvalidPart"), ZeroCopyOff, KindInvalid, "InvalidPart", obstest.OpComplete},
		{"complete fails for good", obstest.Fault{Op: obstest.OpComplete, Do: obstest.ErrorBody, Code: "InternalError"}, "", KindTransient, "InternalError", ""},
		{"object unreadable", obstest.Refuse(obstest.OpHeadObject, 403, ""), "", KindAuth, "", ""},
		{"on: copy 501", obstest.Refuse(obstest.OpCopyPart, 501, "NotImplemented"), ZeroCopyOn, KindUnsupported, "NotImplemented", ""},
		{"on: copy without ETag", obstest.Fault{Op: obstest.OpCopyPart, Do: obstest.ErrorBody, Code: "AccessDenied"}, ZeroCopyOn, KindTransient, "CopyWithoutETag", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{}, nil)
			d := sparseDisk(t)
			o := sparseOptions
			o.ZeroCopy = tc.mode
			e.server.Inject(tc.fault)
			_, err := e.client.Upload(t.Context(), e.options(d, mustPlan(t, sparseSize, sparse, o)))
			if err == nil {
				t.Fatal("no error")
			}
			t.Log(err)
			if tc.name == "object unreadable" {
				// HEAD is refused for cleaning up too: the object stays and that is admitted.
				var oe *Error
				if !errors.As(err, &oe) || oe.Kind != KindAuth || !slices.Contains(oe.Left, testKey) {
					t.Fatalf("error %+v", oe)
				}
				return
			}
			oe := e.checkGone(t, err)
			if oe.Kind != tc.kind || oe.Code != tc.code {
				t.Fatalf("kind %v, code %q: %v", oe.Kind, oe.Code, err)
			}
			if oe.Hint() == "" && oe.Kind != KindInvalid {
				t.Fatal("no hint")
			}
			want := 1
			if tc.once == obstest.OpListParts {
				want++ // the look whether the aborted upload is gone
			}
			if tc.once != "" && e.server.Stats().Requests[tc.once] != want {
				t.Fatalf("asked %d times", e.server.Stats().Requests[tc.once])
			}
		})
	}
}

func TestUploadKeepsWhatWasThere(t *testing.T) {
	e := newEnv(t, obstest.Options{}, nil)
	old := &obstest.Object{Content: &obstest.Content{}, ETag: "old"}
	e.server.PutObject(obstest.Bucket, testKey, old)
	e.server.Inject(obstest.Fault{Op: obstest.OpComplete, Do: obstest.Fail, Status: 503, Code: "ServiceUnavailable"})
	d := sparseDisk(t)
	if _, err := e.client.Upload(t.Context(), e.options(d, mustPlan(t, sparseSize, sparse, sparseOptions))); err == nil {
		t.Fatal("no error")
	}
	if e.server.Object(obstest.Bucket, testKey) != old || len(e.server.Keys(obstest.Bucket)) != 1 {
		t.Fatal("the object that was there before is gone")
	}
	e.checkClean(t)
}

func TestUploadSourceFails(t *testing.T) {
	e := newEnv(t, obstest.Options{}, nil)
	d := sparseDisk(t)
	broken := errors.New("bad sector")
	d.before = func(_ context.Context, off int64) error {
		if off >= 42<<20 {
			return broken
		}
		return nil
	}
	_, err := e.client.Upload(t.Context(), e.options(d, mustPlan(t, sparseSize, sparse, sparseOptions)))
	oe := e.checkGone(t, err)
	if oe.Kind != KindSource || !errors.Is(err, broken) || oe.Offset < 42<<20 || oe.Part == 0 {
		t.Fatalf("%+v", oe)
	}
}

func TestUploadCancelled(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		op   obstest.Op
		do   obstest.Action
	}{
		{"while a part is on its way", obstest.OpUploadPart, obstest.StallBody},
		{"while a part is not read", obstest.OpUploadPart, obstest.Stall},
		{"while the zero object is made", obstest.OpCopyPart, obstest.Stall},
		{"while parts are listed", obstest.OpListParts, obstest.Stall},
		{"while it is completed", obstest.OpComplete, obstest.Stall},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{}, nil)
			d := sparseDisk(t)
			reached := make(chan struct{})
			var once sync.Once
			e.server.Inject(obstest.Fault{Op: tc.op, Do: tc.do, Match: func(*obstest.Request) bool {
				once.Do(func() { close(reached) })
				return true
			}})
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-reached
				cancel()
			}()
			_, err := e.client.Upload(ctx, e.options(d, mustPlan(t, sparseSize, sparse, sparseOptions)))
			oe := e.checkGone(t, err)
			if oe.Kind != KindCanceled || !errors.Is(err, context.Canceled) {
				t.Fatalf("%v", err)
			}
		})
	}
}

func TestUploadCancelledWhileThrottled(t *testing.T) {
	t.Parallel()
	// A back-off of an hour must not outlive the context.
	e := newEnv(t, obstest.Options{}, func(o *Options) { o.BackoffBase, o.BackoffCap = time.Hour, time.Hour })
	d := sparseDisk(t)
	ctx, cancel := context.WithCancel(t.Context())
	e.server.Inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Fail, Status: 503, Code: "SlowDown",
		Match: func(*obstest.Request) bool {
			time.AfterFunc(50*time.Millisecond, cancel)
			return true
		}})
	_, err := e.client.Upload(ctx, e.options(d, mustPlan(t, sparseSize, sparse, sparseOptions)))
	if oe := e.checkGone(t, err); oe.Kind != KindCanceled {
		t.Fatal(err)
	}
}

func TestUploadCompleteLostWhileCancelled(t *testing.T) {
	// The object came to be although the user gave up: it must go.
	e := newEnv(t, obstest.Options{}, nil)
	d := sparseDisk(t)
	ctx, cancel := context.WithCancel(t.Context())
	e.server.Inject(obstest.Fault{Op: obstest.OpComplete, Do: obstest.Lose})
	e.server.Inject(obstest.Fault{Op: obstest.OpHeadObject, Times: 1, Do: obstest.Fail, Status: 500,
		Match: func(q *obstest.Request) bool {
			if q.Key == testKey {
				cancel()
			}
			return q.Key == testKey
		}})
	_, err := e.client.Upload(ctx, e.options(d, mustPlan(t, sparseSize, sparse, sparseOptions)))
	if oe := e.checkGone(t, err); oe.Kind != KindCanceled {
		t.Fatal(err)
	}
}

func TestUploadIdleLimit(t *testing.T) {
	t.Parallel()
	for _, do := range []obstest.Action{obstest.Stall, obstest.StallBody} {
		e := newEnv(t, obstest.Options{}, func(o *Options) { o.IdleTimeout, o.MaxAttempts = 300*time.Millisecond, manyAttempts })
		d := sparseDisk(t)
		e.server.Inject(obstest.Fault{Op: obstest.OpUploadPart, Times: 2, Do: do})
		res, err := e.client.Upload(t.Context(), e.options(d, mustPlan(t, sparseSize, sparse, sparseOptions)))
		if err != nil {
			t.Fatal(err)
		}
		e.checkStored(t, d, res)
		if res.Retries < 2 {
			t.Fatalf("%d retries", res.Retries)
		}
	}
	e := newEnv(t, obstest.Options{}, func(o *Options) { o.IdleTimeout, o.MaxAttempts = 50*time.Millisecond, 2 })
	e.server.Inject(obstest.Fault{Op: obstest.OpHeadBucket, Do: obstest.Stall})
	_, err := e.client.CheckBucket(t.Context(), obstest.Bucket)
	var idle *IdleError
	if KindOf(err) != KindTransient || !errors.As(err, &idle) {
		t.Fatalf("error %v", err)
	}
}

// The meter by itself, on a clock of its own.
func TestMeterWatchesMovementNotDuration(t *testing.T) {
	const limit = time.Minute
	for _, tc := range []struct {
		name           string
		write, wait    time.Duration // before each KiB of the body, and before the answer
		read           time.Duration // before each KiB of the answer
		factor         int
		inTrip, inBody bool // where it is given up
	}{
		{"slow but moving", 50 * time.Second, 50 * time.Second, 50 * time.Second, 1, false, false},
		{"stalls while sending", 61 * time.Second, 0, 0, 1, true, false},
		{"stalls before the answer", 0, 61 * time.Second, 0, 1, true, false},
		{"works before the answer", 0, 299 * time.Second, 0, serverWork, false, false},
		{"stalls within the answer", 0, 0, 61 * time.Second, 1, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pause := func(ctx context.Context, d time.Duration) error {
					select {
					case <-time.After(d):
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				m := &meter{idle: limit, next: roundTrip(func(r *http.Request) (*http.Response, error) {
					defer r.Body.Close()
					buf := make([]byte, 1024)
					for {
						if err := pause(r.Context(), tc.write); err != nil {
							return nil, err
						}
						if _, err := r.Body.Read(buf); err == io.EOF {
							break
						}
					}
					if err := pause(r.Context(), tc.wait); err != nil {
						return nil, err
					}
					body := readFunc(func(p []byte) (int, error) {
						if err := pause(r.Context(), tc.read); err != nil {
							return 0, err
						}
						return min(len(p), 1024), nil
					})
					return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(io.LimitReader(body, 10<<10))}, nil
				})}
				ex := &exchange{idle: time.Duration(tc.factor) * limit}
				req, err := http.NewRequestWithContext(context.WithValue(t.Context(), exchangeKey{}, ex), "PUT", "http://h/", newZeros(10<<10))
				if err != nil {
					t.Fatal(err)
				}
				var idle *IdleError
				resp, err := m.RoundTrip(req)
				if tc.inTrip != errors.As(err, &idle) || tc.inTrip != (err != nil) {
					t.Fatalf("error %v", err)
				}
				if err != nil {
					return
				}
				_, err = io.Copy(io.Discard, resp.Body)
				if tc.inBody != errors.As(err, &idle) || tc.inBody != (err != nil) {
					t.Fatalf("error %v", err)
				}
				if err := resp.Body.Close(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func TestUploadBuffersAreBounded(t *testing.T) {
	t.Parallel()
	e := newEnv(t, obstest.Options{}, nil)
	var buffers, bytes atomic.Int64
	e.client.newBuffer = func(n int64) []byte {
		buffers.Add(1)
		bytes.Add(n)
		return make([]byte, n)
	}
	const size = 120 << 20
	es := []Extent{{0, size, false}}
	d := makeDisk(t, size, es, loud)
	p := mustPlan(t, size, es, PlanOptions{PartSize: 6 << 20, MemoryBudget: 13 << 20, Workers: 8})
	e.server.Inject(obstest.Throttle(obstest.OpUploadPart, 3)) // fewer than attempts
	res, err := e.client.Upload(t.Context(), e.options(d, p))
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, d, res)
	if p.Workers != 2 || buffers.Load() > 2 || bytes.Load() > p.Summary().Memory || bytes.Load() > 13<<20 {
		t.Fatalf("%d workers, %d buffers, %d bytes", p.Workers, buffers.Load(), bytes.Load())
	}
	if n := e.server.Stats().MaxParallel; n > 2 {
		t.Fatalf("%d parts at the same time", n)
	}
}

func TestUploadTiB(t *testing.T) {
	t.Parallel()
	const size = 1 << 40
	var es []Extent
	for i := range int64(16) {
		start := i * size / 16
		n := int64(1<<20) + i*(700<<10)
		es = append(es, Extent{start, n, false}, Extent{start + n, size/16 - n, true})
	}
	e := newEnv(t, obstest.Options{}, nil)
	d := makeDisk(t, size, es, loud)
	p := mustPlan(t, size, es, PlanOptions{})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	res, err := e.client.Upload(t.Context(), e.options(d, p))
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	e.checkStored(t, d, res)
	st := e.server.Stats()
	t.Logf("%d bytes sent, %d copied, %d requests, %d parts; heap from the system %+d MiB", res.BytesSent, res.BytesCopied,
		res.Requests, len(p.Parts), (int64(after.HeapSys)-int64(before.HeapSys))>>20)
	if st.BodyBytes != res.BytesSent || res.BytesSent != p.Summary().BytesToSend || res.BytesSent > 200<<20 {
		t.Fatalf("sent %d, the server got %d, planned %d", res.BytesSent, st.BodyBytes, p.Summary().BytesToSend)
	}
}

func TestUploadManyParts(t *testing.T) {
	t.Parallel()
	// More than one page of the part list.
	const size = 1100 * int64(MaxPartSize)
	e := newEnv(t, obstest.Options{}, nil)
	d := makeDisk(t, size, nil, loud)
	es := []Extent{{0, size, true}}
	p := mustPlan(t, size, es, PlanOptions{})
	res, err := e.client.Upload(t.Context(), e.options(d, p))
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, d, res)
	if n := e.server.Stats().Requests[obstest.OpListParts]; n != 2 {
		t.Fatalf("%d pages of %d parts", n, len(p.Parts))
	}
}

func TestUploadCopyConditionUnknown(t *testing.T) {
	e := newEnv(t, obstest.Options{}, nil)
	e.server.Inject(obstest.Fault{Op: obstest.OpCopyPart, Do: obstest.Fail, Status: 501, Code: "NotImplemented",
		Match: func(q *obstest.Request) bool { return q.HTTP.Header.Get("X-Amz-Copy-Source-If-Match") != "" }})
	d := sparseDisk(t)
	o := sparseOptions
	o.ZeroCopy = ZeroCopyOn
	res, err := e.client.Upload(t.Context(), e.options(d, mustPlan(t, sparseSize, sparse, o)))
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, d, res)
}

func TestUploadZeroSourceReplaced(t *testing.T) {
	// Somebody overwrites the zero object: its ETag is pinned, so no part gets wrong bytes.
	e := newEnv(t, obstest.Options{}, nil)
	rotten, err := obstest.NewContent(&noise{r: rand.NewChaCha8([32]byte{9}), n: 20 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	e.server.Inject(obstest.Fault{Op: obstest.OpCopyPart, Do: obstest.Observe, Match: func(q *obstest.Request) bool {
		if q.Key == testKey && q.Part > 3 {
			once.Do(func() {
				for _, k := range e.server.Keys(obstest.Bucket) {
					e.server.PutObject(obstest.Bucket, k, &obstest.Object{Content: rotten, ETag: "rotten"})
				}
			})
		}
		return true
	}})
	d := sparseDisk(t)
	res, err := e.client.Upload(t.Context(), e.options(d, mustPlan(t, sparseSize, sparse, sparseOptions)))
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, d, res)
	if !strings.Contains(res.ZeroCopyRefused, "PreconditionFailed") {
		t.Fatalf("refused: %q", res.ZeroCopyRefused)
	}
}

func TestUploadOverridesPlan(t *testing.T) {
	e := newEnv(t, obstest.Options{}, nil)
	d := sparseDisk(t)
	uo := e.options(d, mustPlan(t, sparseSize, sparse, sparseOptions))
	uo.ZeroCopy = ZeroCopyOff
	res, err := e.client.Upload(t.Context(), uo)
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, d, res)
	if res.BytesSent != sparseSize || e.server.Stats().Requests[obstest.OpCopyPart] != 0 {
		t.Fatalf("%+v", res)
	}
}

func TestUploadRefusesNonsense(t *testing.T) {
	e := newEnv(t, obstest.Options{}, nil)
	good := e.options(sparseDisk(t), mustPlan(t, sparseSize, sparse, sparseOptions))
	for name, change := range map[string]func(*UploadOptions){
		"bucket":         func(o *UploadOptions) { o.Bucket = "No" },
		"key":            func(o *UploadOptions) { o.Key = "a b" },
		"plan":           func(o *UploadOptions) { o.Plan = nil },
		"source":         func(o *UploadOptions) { o.Source = nil },
		"empty plan":     func(o *UploadOptions) { o.Plan = &Plan{} },
		"mode":           func(o *UploadOptions) { o.ZeroCopy = "x" },
		"run id":         func(o *UploadOptions) { o.RunID = "a/b" },
		"metadata name":  func(o *UploadOptions) { o.Metadata = map[string]string{"A b": "c"} },
		"metadata value": func(o *UploadOptions) { o.Metadata = map[string]string{"a": "c\n"} },
		"run id taken":   func(o *UploadOptions) { o.Metadata = map[string]string{RunIDMetadata: "c"} },
		"plan with a gap": func(o *UploadOptions) {
			p := *o.Plan
			p.Parts = slices.Delete(slices.Clone(p.Parts), 1, 2)
			o.Plan = &p
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := good
			change(&o)
			if _, err := e.client.Upload(t.Context(), o); KindOf(err) != KindInvalid {
				t.Fatalf("error %v", err)
			}
			if n := len(e.server.Stats().Requests); n != 0 {
				t.Fatal("it asked the server")
			}
		})
	}
}
