// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

// noisy is n bytes of content; the same for the same seed.
func noisy(t failer, seed byte, n int64) *obstest.Content {
	t.Helper()
	c, err := obstest.NewContent(&noise{r: rand.NewChaCha8([32]byte{seed}), n: n})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return c
}

// produce writes content in pieces of n bytes.
func produce(c *obstest.Content, n int) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{c.Reader()}, make([]byte, n))
		return err
	}
}

func (e *env) streamOptions() StreamOptions {
	return StreamOptions{Bucket: obstest.Bucket, Key: testKey, PartSize: func(int) int64 { return MinPartSize }, MaxSize: 1 << 30}
}

func TestGrowingParts(t *testing.T) {
	for _, tc := range []struct{ max, first, last int64 }{
		{1, 8, 8},
		{78 << 30, 8, 8},
		{79 << 30, 8, 9},
		{1 << 40, 8, 111},
		{DefaultMaxStream, 8, 138},
	} {
		size := GrowingParts(tc.max)
		var total, before int64
		for n := 1; n <= MaxParts; n++ {
			s := size(n)
			if s < before || s < MinPartSize || s%(1<<20) != 0 {
				t.Fatalf("max %d: part %d has %d bytes after one of %d", tc.max, n, s, before)
			}
			total, before = total+s, s
		}
		if total < tc.max || size(1) != tc.first<<20 || size(MaxParts) != tc.last<<20 {
			t.Errorf("max %d: %d parts hold %d, first %d MiB, last %d MiB", tc.max, MaxParts, total, size(1)>>20, size(MaxParts)>>20)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.Int64Range(1, 45<<40).Draw(t, "max")
		if got := capacity(GrowingParts(most), most); got < most {
			t.Fatalf("%d parts hold %d of %d bytes", MaxParts, got, most)
		}
	})
}

func TestStreamProperties(t *testing.T) {
	t.Parallel()
	names := make([]string, 0, len(survivable))
	for n := range survivable {
		names = append(names, n)
	}
	slices.Sort(names)
	rapid.Check(t, func(rt *rapid.T) {
		tc := &rapidCleanup{T: rt}
		defer tc.run()
		e := newEnv(tc, obstest.Options{}, nil)
		size := rapid.Int64Range(1, 24<<20).Draw(rt, "size")
		d := &disk{content: noisy(rt, byte(size), size)}
		o := e.streamOptions()
		step := rapid.Int64Range(0, 2<<20).Draw(rt, "step")
		o.PartSize = func(part int) int64 { return MinPartSize + int64(part-1)*step }
		o.Workers = rapid.IntRange(1, 4).Draw(rt, "workers")
		o.MemoryBudget = rapid.Int64Range(1, 20<<20).Draw(rt, "budget")
		o.MaxSize = size + rapid.SampledFrom([]int64{0, 1, 1 << 30}).Draw(rt, "spare")
		for _, f := range survivable[rapid.SampledFrom(names).Draw(rt, "fault")] {
			e.server.Inject(f)
		}
		res, err := e.client.UploadStream(context.Background(), o, produce(d.content, rapid.IntRange(1<<10, 3<<20).Draw(rt, "write")))
		if err != nil {
			rt.Fatalf("%v", err)
		}
		e.checkStored(rt, d, res)
		var want []int64
		for left := size; left > 0; {
			n := min(left, o.PartSize(len(want)+1))
			want = append(want, n)
			left -= n
		}
		if got := e.server.Object(obstest.Bucket, testKey).PartSizes; !slices.Equal(got, want) {
			rt.Fatalf("parts %v, expected %v", got, want)
		}
	})
}

// Every fault at least once, and the numbers.
func TestStreamSurvives(t *testing.T) {
	t.Parallel()
	content := noisy(t, 1, 23<<20)
	for name, faults := range survivable {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{}, nil)
			for _, f := range faults {
				e.server.Inject(f)
			}
			o := e.streamOptions()
			o.Metadata, o.ContentType = map[string]string{"a": "b"}, "application/x-disk"
			asked := 0
			o.BeforeComplete = func(context.Context) error {
				asked++
				return nil
			}
			var last UploadEvent
			o.Progress = func(ev UploadEvent) {
				if ev.Done < last.Done || ev.Wire < last.Wire || ev.Done != ev.Sent || (ev.Total != 0 && ev.Total != 23<<20) {
					t.Errorf("%+v after %+v", ev, last)
				}
				last = ev
			}
			res, err := e.client.UploadStream(t.Context(), o, produce(content, 1<<20))
			if err != nil {
				t.Fatal(err)
			}
			e.checkStored(t, &disk{content: content}, res)
			stored := e.server.Object(obstest.Bucket, testKey)
			if stored.Metadata["a"] != "b" || stored.ContentType != "application/x-disk" || asked != 1 {
				t.Fatalf("%+v, asked %d times", stored, asked)
			}
			st := e.server.Stats()
			if last.Done != 23<<20 || last.Total != 23<<20 || last.Parts != 5 || res.PartsSent != 5 || res.BytesSent < st.BodyBytes {
				t.Fatalf("last event %+v, result %+v, server %+v", last, res, st)
			}
			total := 0
			for _, n := range st.Requests {
				total += n
			}
			// The transport repeats a lost HEAD by itself.
			if total < res.Requests || (len(faults) == 0 && total != res.Requests) {
				t.Fatalf("result says %d requests, the server saw %v", res.Requests, st.Requests)
			}
		})
	}
}

func TestStreamMemoryIsBounded(t *testing.T) {
	t.Parallel()
	e := newEnv(t, obstest.Options{}, nil)
	var slabs atomic.Int64
	e.client.newBuffer = func(n int64) []byte {
		if n != slabSize {
			t.Errorf("a buffer of %d bytes", n)
		}
		slabs.Add(1)
		return make([]byte, n)
	}
	// Parts grow past half of the budget, where only one can be on its way, and past all of it.
	o := e.streamOptions()
	o.PartSize = func(part int) int64 { return MinPartSize + int64(part-1)<<20 }
	o.MemoryBudget = 12 << 20
	o.Workers = 8
	content := noisy(t, 2, 100<<20)
	e.server.Inject(obstest.Throttle(obstest.OpUploadPart, 3))
	res, err := e.client.UploadStream(t.Context(), o, produce(content, 100<<10))
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, &disk{content: content}, res)
	sizes := e.server.Object(obstest.Bucket, testKey).PartSizes
	if longest := o.PartSize(len(sizes)); longest <= o.MemoryBudget || slabs.Load() > longest>>20 {
		t.Fatalf("parts %v, %d MiB of buffers", sizes, slabs.Load())
	}
	if n := e.server.Stats().MaxParallel; n > 2 {
		t.Fatalf("%d parts at the same time", n)
	}
}

func TestStreamHoldsTheProducerBack(t *testing.T) {
	t.Parallel()
	e := newEnv(t, obstest.Options{}, nil)
	release := make(chan struct{})
	var open sync.Once
	e.server.Inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Observe, Match: func(*obstest.Request) bool {
		<-release
		return true
	}})
	o := e.streamOptions()
	o.MemoryBudget = 13 << 20
	content := noisy(t, 3, 40<<20)
	var taken, most atomic.Int64
	res, err := e.client.UploadStream(t.Context(), o, func(ctx context.Context, w io.Writer) error {
		buf := make([]byte, 1<<20)
		// The server answers nothing until the producer was kept waiting for a while.
		timer := time.AfterFunc(200*time.Millisecond, func() {
			most.Store(taken.Load())
			open.Do(func() { close(release) })
		})
		defer timer.Stop()
		r := content.Reader()
		for {
			n, err := io.ReadFull(r, buf)
			if n == 0 {
				return nil
			}
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
			taken.Add(int64(n))
			if err != nil {
				return nil
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, &disk{content: content}, res)
	if most.Load() > 13<<20 {
		t.Fatalf("%d bytes were taken while nothing could be sent", most.Load())
	}
}

func TestStreamFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("bad sector")
	content := noisy(t, 4, 23<<20)
	for _, tc := range []struct {
		name   string
		faults []obstest.Fault
		change func(*StreamOptions)
		write  func(context.Context, io.Writer) error
		kind   Kind
		code   string
		err    error
	}{
		{name: "producer at once", write: func(context.Context, io.Writer) error { return broken }, kind: KindSource, err: broken},
		{name: "producer midway", write: func(_ context.Context, w io.Writer) error {
			if _, err := io.CopyN(w, content.Reader(), 17<<20); err != nil {
				return err
			}
			return broken
		}, kind: KindSource, err: broken},
		{name: "producer gives up while parts stall", faults: []obstest.Fault{{Op: obstest.OpUploadPart, Do: obstest.Stall}},
			write: func(_ context.Context, w io.Writer) error {
				if _, err := io.CopyN(w, content.Reader(), 7<<20); err != nil {
					return err
				}
				return broken
			}, kind: KindSource, err: broken},
		{name: "nothing written", write: func(context.Context, io.Writer) error { return nil }, kind: KindInvalid},
		{name: "too long", change: func(o *StreamOptions) { o.MaxSize = 23<<20 - 1 }, kind: KindInvalid},
		{name: "too long and not admitted", change: func(o *StreamOptions) { o.MaxSize = 23<<20 - 1 },
			write: func(_ context.Context, w io.Writer) error {
				_, _ = io.Copy(w, content.Reader())
				return nil
			}, kind: KindInvalid},
		{name: "part refused", faults: []obstest.Fault{obstest.Refuse(obstest.OpUploadPart, 403, "AccessDenied")}, kind: KindAuth, code: "AccessDenied"},
		{name: "part refused and not admitted", faults: []obstest.Fault{obstest.Refuse(obstest.OpUploadPart, 403, "AccessDenied")},
			write: func(_ context.Context, w io.Writer) error {
				_, _ = io.Copy(w, content.Reader())
				return nil
			}, kind: KindAuth, code: "AccessDenied"},
		{name: "part refused, producer waits", faults: []obstest.Fault{obstest.Refuse(obstest.OpUploadPart, 403, "AccessDenied")},
			write: func(ctx context.Context, w io.Writer) error {
				if _, err := io.CopyN(w, content.Reader(), 5<<20); err != nil {
					return err
				}
				<-ctx.Done()
				return ctx.Err()
			}, kind: KindAuth, code: "AccessDenied"},
		{name: "last part refused", faults: []obstest.Fault{{Op: obstest.OpUploadPart, Match: func(q *obstest.Request) bool { return q.Part == 5 },
			Do: obstest.Fail, Status: 403, Code: "AccessDenied"}}, kind: KindAuth, code: "AccessDenied"},
		{name: "list misses a part", faults: []obstest.Fault{{Op: obstest.OpListParts, Do: obstest.HideParts, Hide: 1}}, kind: KindIntegrity},
		{name: "source changed", change: func(o *StreamOptions) { o.BeforeComplete = func(context.Context) error { return broken } },
			kind: KindSource, err: broken},
		{name: "cannot begin", faults: []obstest.Fault{obstest.Refuse(obstest.OpInitiate, 403, "AccessDenied")},
			write: func(context.Context, io.Writer) error { panic("called without an upload") }, kind: KindAuth, code: "AccessDenied"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{}, nil)
			for _, f := range tc.faults {
				e.server.Inject(f)
			}
			o := e.streamOptions()
			if tc.change != nil {
				tc.change(&o)
			}
			if tc.write == nil {
				tc.write = produce(content, 1<<20)
			}
			var kept io.Writer
			_, err := e.client.UploadStream(t.Context(), o, func(ctx context.Context, w io.Writer) error {
				kept = w
				return tc.write(ctx, w)
			})
			oe := e.checkGone(t, err)
			if oe.Kind != tc.kind || oe.Code != tc.code || (tc.err != nil && !errors.Is(err, tc.err)) {
				t.Fatalf("kind %v, code %q: %v", oe.Kind, oe.Code, err)
			}
			if kept != nil {
				if _, err := kept.Write([]byte("late")); err == nil {
					t.Fatal("a write after the end was taken")
				}
			}
		})
	}
}

func TestStreamCancelled(t *testing.T) {
	t.Parallel()
	content := noisy(t, 5, 40<<20)
	for _, tc := range []struct {
		name string
		op   obstest.Op
		do   obstest.Action
	}{
		{"while parts are on their way", obstest.OpUploadPart, obstest.StallBody},
		{"while parts are listed", obstest.OpListParts, obstest.Stall},
		{"while it is completed", obstest.OpComplete, obstest.Stall},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{}, nil)
			ctx, cancel := context.WithCancel(t.Context())
			e.server.Inject(obstest.Fault{Op: tc.op, Do: tc.do, Match: func(*obstest.Request) bool {
				cancel()
				return true
			}})
			o := e.streamOptions()
			o.MemoryBudget = 8 << 20 // so that the producer waits
			_, err := e.client.UploadStream(ctx, o, produce(content, 1<<20))
			if oe := e.checkGone(t, err); oe.Kind != KindCanceled || !errors.Is(err, context.Canceled) {
				t.Fatalf("%v", err)
			}
		})
	}
}

func TestStreamRefusesNonsense(t *testing.T) {
	e := newEnv(t, obstest.Options{}, nil)
	for name, change := range map[string]func(*StreamOptions){
		"bucket":          func(o *StreamOptions) { o.Bucket = "No" },
		"key":             func(o *StreamOptions) { o.Key = "a b" },
		"run id":          func(o *StreamOptions) { o.RunID = "a/b" },
		"size":            func(o *StreamOptions) { o.MaxSize = -1 },
		"huge":            func(o *StreamOptions) { o.MaxSize = MaxObjectSize + 1 },
		"too huge":        func(o *StreamOptions) { o.MaxSize, o.PartSize = MaxObjectSize, nil },
		"too small parts": func(o *StreamOptions) { o.MaxSize = MaxParts*MinPartSize + 1 },
		"tiny parts":      func(o *StreamOptions) { o.PartSize = func(int) int64 { return MinPartSize - 1 } },
		"vast parts":      func(o *StreamOptions) { o.PartSize = func(int) int64 { return MaxPartSize + 1 } },
		"workers":         func(o *StreamOptions) { o.Workers = MaxWorkers + 1 },
		"budget":          func(o *StreamOptions) { o.MemoryBudget = -1 },
		"run id taken":    func(o *StreamOptions) { o.Metadata = map[string]string{RunIDMetadata: "c"} },
	} {
		t.Run(name, func(t *testing.T) {
			o := e.streamOptions()
			change(&o)
			_, err := e.client.UploadStream(t.Context(), o, produce(obstest.Zeros(1), 1))
			if KindOf(err) != KindInvalid {
				t.Fatalf("error %v", err)
			}
			if n := len(e.server.Stats().Requests); n != 0 {
				t.Fatal("it asked the server")
			}
		})
	}
}
