// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

// islands is a disk with little data in many places; some of it turns out to be zeros.
func islands(r *rand.Rand, n int) (size int64, es []Extent) {
	zero := r.IntN(2) == 0
	for range 2*n + 1 {
		l := int64(1+r.IntN(12<<20)) | 1
		if !zero {
			l = int64(1 + r.IntN(300<<10))
			if r.IntN(6) == 0 {
				l = 7<<20 + 5
			}
		}
		es = append(es, Extent{size, l, zero})
		size += l
		zero = !zero
	}
	return size, es
}

// fewParts is a plan for a store that takes maxParts parts at most.
func fewParts(t failer, size int64, es []Extent, maxParts, workers int) *Plan {
	t.Helper()
	r := storeRules()
	r.maxParts, r.piece, r.compose = maxParts, 64<<20, 1<<20 // all but free of charge
	p, err := newPlan(size, seq(es...), PlanOptions{BlockSize: Grain, PartSize: MinPartSize, MemoryBudget: DefaultMemoryBudget,
		Workers: workers, ZeroCopy: ZeroCopyAuto}, r)
	if err != nil {
		t.Fatalf("%v", err)
	}
	checkPlan(t, p, size, seq(es...), PlanOptions{})
	return p
}

// scattered has composed parts within composed parts.
var scatteredExtents = func() []Extent {
	var es []Extent
	for i := range int64(12) {
		es = append(es, Extent{i * 11 << 20, 11<<20 - 100<<10, true}, Extent{(i+1)*11<<20 - 100<<10, 100 << 10, false})
	}
	return append(es, Extent{132 << 20, 8 << 20, false})
}()

const scatteredSize = 140 << 20

func quietSeventh(i int) bool { return i == 7 }

var scatteredContent = sync.OnceValue(func() *obstest.Content {
	return makeDisk(panicker{}, scatteredSize, scatteredExtents, quietSeventh).content
})

func scatteredPlan(t failer, workers int) *Plan {
	t.Helper()
	p := fewParts(t, scatteredSize, scatteredExtents, 8, workers)
	nested := func(p Part) bool { return composedPlan(p.Pieces) }
	if !slices.ContainsFunc(p.Parts, nested) {
		t.Fatalf("no composed part within another: %+v", p.Parts)
	}
	return p
}

func TestComposedParts(t *testing.T) {
	t.Parallel()
	for _, encrypted := range []bool{false, true} {
		e := newEnv(t, obstest.Options{Encrypted: encrypted}, nil)
		d := &disk{content: scatteredContent()}
		p := scatteredPlan(t, 3)
		res, err := e.client.Upload(t.Context(), e.options(d, p))
		if err != nil {
			t.Fatal(err)
		}
		e.checkStored(t, d, res)
		s := p.Summary()
		// One of the islands turned out to be zeros.
		want := s.BytesToSend - 2*Grain
		if encrypted {
			s.Requests-- // a shared zero object is not looked for
		}
		if res.BytesSent != want || e.server.Stats().BodyBytes != want || res.Requests != s.Requests || res.PartsComposed != s.ComposedParts {
			t.Fatalf("%+v, planned %+v", res, s)
		}
		if s.PartBytes > s.FloorBytes/2 || res.BytesCopied+res.BytesSent-seedSize != scatteredSize {
			t.Fatalf("%+v, planned %+v", res, s)
		}
		if n := e.server.Stats().MaxParallel; n > 3 {
			t.Fatalf("%d parts at the same time", n)
		}
	}
}

// Whatever becomes of any request, the object is right or there is none, and nothing is left.
func TestComposedPartsThroughFaults(t *testing.T) {
	t.Parallel()
	faults := map[string]obstest.Fault{
		"500":        {Do: obstest.Fail, Status: 500, Code: "InternalError"},
		"501":        {Do: obstest.Fail, Status: 501, Code: "NotImplemented"},
		"403":        {Do: obstest.Fail, Status: 403, Code: "AccessDenied"},
		"404":        {Do: obstest.Fail, Status: 404, Code: "NoSuchKey"},
		"slow down":  {Do: obstest.Fail, Status: 503, Code: "SlowDown"},
		"reset":      {Do: obstest.Reset},
		"lost":       {Do: obstest.Lose},
		"error body": {Do: obstest.ErrorBody, Code: "InternalError"},
		"cancel":     {Do: obstest.Observe},
	}
	names := make([]string, 0, len(faults))
	for n := range faults {
		names = append(names, n)
	}
	slices.Sort(names)
	ends := map[string]int{}
	for seed := range cases(45) {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		size, es := islands(r, 1+r.IntN(6))
		name := names[seed%len(names)]
		f := faults[name]
		f.After, f.Times = r.IntN(50), []int{1, 2, 6, 1000}[r.IntN(4)]
		e := newEnv(t, obstest.Options{}, nil)
		d := makeDisk(t, size, es, func(i int) bool { return i%5 == 4 })
		p := fewParts(t, size, es, 6+r.IntN(12), 1+r.IntN(4))
		ctx, cancel := context.WithCancel(t.Context())
		var once sync.Once
		f.Match = func(q *obstest.Request) bool { // what cleans up is left alone
			switch q.Op {
			case obstest.OpDelete, obstest.OpAbort, obstest.OpListUploads, obstest.OpListObjects, obstest.OpHeadObject, obstest.OpListParts:
				return false
			}
			// Nobody can know the id of an upload of which the answer is lost.
			return q.Op != obstest.OpInitiate || q.Key != testKey || name != "lost"
		}
		if name == "cancel" {
			match := f.Match
			n := 0
			var mu sync.Mutex
			f.Match = func(q *obstest.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				if n++; match(q) && n > f.After {
					once.Do(cancel)
				}
				return true
			}
		}
		e.server.Inject(f)
		res, err := e.client.Upload(ctx, e.options(d, p))
		cancel()
		if err != nil {
			ends["failed"]++
			e.checkGone(t, err)
			continue
		}
		if ends["made"]++; res.PartsComposed > 0 {
			ends["made of pieces"]++
		}
		if res.ZeroCopyRefused != "" {
			ends["made without copying"]++
			d.asked = nil // it may have been read again
		}
		e.checkStored(t, d, res)
		if len(res.Left) > 0 {
			t.Fatalf("seed %d: left %v", seed, res.Left)
		}
	}
	t.Log(ends)
	for _, end := range []string{"failed", "made of pieces", "made without copying"} {
		if ends[end] == 0 {
			t.Errorf("no upload %s", end)
		}
	}
}

// The server stops copying when some composed parts are made and others are not.
func TestComposedPartsRefusedHalfway(t *testing.T) {
	t.Parallel()
	for op, after := range map[obstest.Op]int{obstest.OpCopyPart: 40, obstest.OpInitiate: 14, obstest.OpComplete: 12} {
		e := newEnv(t, obstest.Options{}, nil)
		f := obstest.Refuse(op, 501, "NotImplemented")
		f.After = after
		f.Match = func(q *obstest.Request) bool { return op == obstest.OpCopyPart || q.Key != testKey }
		e.server.Inject(f)
		d := &disk{content: scatteredContent()}
		o := e.options(d, scatteredPlan(t, 1))
		notes := 0
		o.Progress = func(ev UploadEvent) {
			if ev.Note != "" {
				notes++
			}
		}
		res, err := e.client.Upload(t.Context(), o)
		if err != nil {
			t.Fatal(op, err)
		}
		d.asked = nil // what is sent in one is read twice
		e.checkStored(t, d, res)
		if res.ZeroCopyRefused == "" || notes != 1 || res.PartsComposed == 0 || res.PartsSent == 0 {
			t.Fatalf("%s: %+v, %d notes", op, res, notes)
		}
	}
}

func TestResumeComposedPartsAfterRandomCuts(t *testing.T) {
	t.Parallel()
	deaths := 0
	seeds := cases(7)
	for seed := range uint64(seeds) {
		e, m := newMortalEnv(t)
		p := scatteredPlan(t, 1+int(seed%3))
		cutting(t, 2000+seed, e, m, &disk{content: scatteredContent()}, 90, &deaths, func(ctx context.Context, s *State, j *journal, resumable bool) (*UploadResult, error) {
			d := &disk{content: scatteredContent()}
			o := e.options(d, p)
			o.Resume, o.Checkpoint, o.Resumable = s, j.write(t), resumable
			res, err := e.client.Upload(ctx, o)
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

// A run was killed: its helper objects are found by their keys, whichever they are.
func TestResumeSweepsPieces(t *testing.T) {
	t.Parallel()
	e := newEnv(t, obstest.Options{}, nil)
	p := scatteredPlan(t, 1)
	j := &journal{}
	o := e.options(&disk{content: scatteredContent()}, p)
	o.Checkpoint, o.Resumable = j.write(t), true
	f := obstest.Refuse(obstest.OpComplete, 503, "ServiceUnavailable")
	f.After, f.Match = 2, func(q *obstest.Request) bool { return strings.Contains(q.Key, PieceMark) }
	e.server.Inject(f)
	_, err := e.client.Upload(t.Context(), o)
	_ = err // after a 503 auto goes on without copying
	s := j.state(t)
	b, _ := json.Marshal(s)
	if s == nil || !s.Composed || !strings.Contains(string(b), `"composed":true`) {
		t.Fatalf("%+v", s)
	}
	e.server.ClearFaults()
	for i := range 3 {
		key := testKey + PieceMark + s.RunID + "-" + strconv.Itoa(100+i) + "-7"
		e.server.PutObject(obstest.Bucket, key, &obstest.Object{Content: obstest.Zeros(1), ETag: "x"})
		e.server.AddUpload(obstest.Bucket, key+"1")
	}
	d := &disk{content: scatteredContent()}
	o = e.options(d, p)
	o.Resume = s
	res, err := e.client.Upload(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, d, res)
}

func TestComposedPartsRefuseLongKeys(t *testing.T) {
	// The helpers' keys would be too long: all is sent.
	e := newEnv(t, obstest.Options{}, nil)
	d := &disk{content: scatteredContent()}
	o := e.options(d, scatteredPlan(t, 2))
	o.Key = strings.Repeat("k", maxKeyLength)
	res, err := e.client.Upload(t.Context(), o)
	if err != nil || res.ZeroCopyRefused == "" || res.BytesSent != scatteredSize {
		t.Fatalf("%+v, %v", res, err)
	}
	o.ZeroCopy = ZeroCopyOn
	var oe *Error
	if _, err = e.client.Upload(t.Context(), o); !errors.As(err, &oe) || oe.Kind != KindInvalid {
		t.Fatal(err)
	}
}

func TestSharedZeroObject(t *testing.T) {
	t.Parallel()
	if SharedZeroKey(30<<20) != "imsprep-zeros/83886080" || SharedZeroKey(1) != "imsprep-zeros/5242880" || SharedZeroKey(MaxPartSize) != "imsprep-zeros/5368709120" {
		t.Fatal(SharedZeroKey(30 << 20))
	}
	const size = 45 << 20
	es := []Extent{{0, 5 << 20, false}, {5 << 20, 30 << 20, true}, {35 << 20, 10 << 20, false}}
	content := makeDisk(t, size, es, loud).content
	plan := mustPlan(t, size, es, PlanOptions{})
	key, length := SharedZeroKey(plan.ZeroObjectSize), sharedSize(plan.ZeroObjectSize)
	e := newEnv(t, obstest.Options{}, nil)
	upload := func(keep bool) *UploadResult {
		t.Helper()
		d := &disk{content: content}
		o := e.options(d, plan)
		o.KeepZeros = keep
		res, err := e.client.Upload(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		shared := e.server.Object(obstest.Bucket, key)
		_ = e.client.Delete(t.Context(), obstest.Bucket, key)
		e.checkStored(t, d, res)
		if shared != nil {
			e.server.PutObject(obstest.Bucket, key, shared)
		}
		if res.ZeroCopyRefused != "" || res.BytesCopied != 30<<20 {
			t.Fatalf("%+v", res)
		}
		return res
	}
	const data = 15 << 20
	if res := upload(false); res.BytesSent != data+seedSize || e.server.Object(obstest.Bucket, key) != nil {
		t.Fatalf("%+v", res)
	}
	if res := upload(true); res.BytesSent != data+seedSize {
		t.Fatalf("%+v", res)
	}
	good := e.server.Object(obstest.Bucket, key)
	if good == nil || good.Content.Size() != length || !good.Content.Zero() {
		t.Fatalf("kept %+v", good)
	}
	if res := upload(false); res.BytesSent != data || e.server.Object(obstest.Bucket, key) != good {
		t.Fatalf("%+v", res)
	}
	// Whatever stands there is only believed as far as its copies' MD5s go.
	rotten := makeDisk(t, length, []Extent{{1 << 20, 1, false}}, loud).content
	e.server.PutObject(obstest.Bucket, key, &obstest.Object{Content: rotten, ETag: "x"})
	if res := upload(false); res.BytesSent != data+seedSize {
		t.Fatalf("%+v", res)
	}
	e.server.PutObject(obstest.Bucket, key, &obstest.Object{Content: obstest.Zeros(1), ETag: "x"})
	if res := upload(false); res.BytesSent != data+seedSize {
		t.Fatalf("%+v", res)
	}
	// It vanishes between the look and the copy.
	e.server.PutObject(obstest.Bucket, key, good)
	f := obstest.Fault{Op: obstest.OpCopyPart, Times: 1, Do: obstest.Fail, Status: 404, Code: "NoSuchKey"}
	e.server.Inject(f)
	if res := upload(false); res.BytesSent != data+seedSize {
		t.Fatalf("%+v", res)
	}
	// A store that encrypts cannot prove it.
	e = newEnv(t, obstest.Options{Encrypted: true}, nil)
	e.server.PutObject(obstest.Bucket, key, &obstest.Object{Content: rotten, ETag: "x"})
	if res := upload(false); res.BytesSent != data+seedSize {
		t.Fatalf("%+v", res)
	}
	// It cannot be kept: that is no reason to fail.
	e = newEnv(t, obstest.Options{}, nil)
	f = obstest.Refuse(obstest.OpPutObject, 403, "AccessDenied")
	f.Match = func(q *obstest.Request) bool { return q.Key == key }
	e.server.Inject(f)
	if res := upload(true); res.BytesSent != data+seedSize {
		t.Fatalf("%+v", res)
	}
}
