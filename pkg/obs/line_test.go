// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

// onLine runs f with a client whose line is l, by a clock that stands still while anything computes: what
// takes a minute on such a line takes no longer here than hashing its bytes.
func onLine(t *testing.T, l *obstest.Line, change func(*Options), f func(t *testing.T, e *env)) {
	t.Helper()
	s := obstest.New(obstest.Options{ZeroState: zeroState})
	t.Cleanup(s.Close)
	l.Next = s.Handler()
	synctest.Test(t, func(t *testing.T) {
		f(t, newEnvOf(t, s, func(o *Options) {
			o.Transport, o.IdleTimeout = l, time.Minute
			if change != nil {
				change(o)
			}
		}))
	})
}

// noisyDisk is n bytes of a disk without zeros, of which only the first MiB is drawn.
func noisyDisk(t *testing.T, n int64) *disk {
	t.Helper()
	c, err := obstest.NewContent(&noise{r: rand.NewChaCha8([32]byte{7}), n: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var parts []*obstest.Content
	for range n >> 20 {
		parts = append(parts, c)
	}
	return &disk{content: obstest.Concat(parts...)}
}

// timed uploads a disk over a line and returns what it made and how long that would have taken.
func timed(t *testing.T, l *obstest.Line, mib int64, o PlanOptions) (*UploadResult, time.Duration) {
	t.Helper()
	var res *UploadResult
	var took time.Duration
	onLine(t, l, nil, func(t *testing.T, e *env) {
		d := noisyDisk(t, mib<<20)
		o.PartSize = MinPartSize
		start := time.Now()
		var err error
		if res, err = e.client.Upload(t.Context(), e.options(d, mustPlan(t, mib<<20, nil, o))); err != nil {
			t.Fatal(err)
		}
		took = time.Since(start)
		e.checkStored(t, d, res)
	})
	t.Logf("%d to %d: %v, %+v, %d bodies at a time, %d retries", o.MinWorkers, o.Workers, took, res.Concurrency, l.Most(), res.Retries)
	return res, took
}

// A line that six streams fill: as many as that are found, and nothing is lost on the way there.
func TestUploadFillsALine(t *testing.T) {
	t.Parallel()
	six := func() *obstest.Line {
		return &obstest.Line{Each: 1 << 20, Total: 6 << 20, Latency: 50 * time.Millisecond}
	}
	if raceDetector {
		timed(t, six(), 40, PlanOptions{})
		return
	}
	const mib = 100
	_, one := timed(t, six(), mib, PlanOptions{Workers: 1})
	_, best := timed(t, six(), mib, PlanOptions{Workers: 6, MinWorkers: 6})
	res, auto := timed(t, six(), mib, PlanOptions{})
	if c := res.Concurrency; c.Last < 5 || c.Last > 9 || c.Reached < 6 || c.Slowed != 0 || c.Min != 1 || c.Max != DefaultWorkers {
		t.Errorf("%+v", c)
	}
	if auto > best*5/4 || auto > one/3 {
		t.Errorf("it took %v; %v one after another, %v with six at a time", auto, one, best)
	}
}

// A line that one stream fills is given few.
func TestUploadSparesASlowLine(t *testing.T) {
	t.Parallel()
	if raceDetector {
		t.Skip("as TestUploadFillsALine, and it takes more bytes")
	}
	slow := func() *obstest.Line { return &obstest.Line{Total: 1 << 20, Latency: 20 * time.Millisecond} }
	res, auto := timed(t, slow(), 150, PlanOptions{})
	if c := res.Concurrency; c.Last > 2 || c.Reached > 2*DefaultConcurrency {
		t.Errorf("%+v", c)
	}
	if auto > 160*time.Second {
		t.Errorf("it took %v", auto)
	}
}

// A server that bears five requests: it is not asked for more for long, and nothing is lost.
func TestUploadObeysTheServer(t *testing.T) {
	t.Parallel()
	line := &obstest.Line{Each: 1 << 20, Latency: 20 * time.Millisecond, Bears: 5}
	res, _ := timed(t, line, 100, PlanOptions{})
	if c := res.Concurrency; c.Slowed == 0 || c.Slowed > 5 || c.Last > 5 {
		t.Errorf("%+v", c)
	}
}

// A stream is sent by the same rules.
func TestStreamFillsALine(t *testing.T) {
	t.Parallel()
	line := &obstest.Line{Each: 1 << 20, Total: 8 << 20, Latency: 50 * time.Millisecond}
	onLine(t, line, nil, func(t *testing.T, e *env) {
		const size = 100 << 20
		d := noisyDisk(t, size)
		start := time.Now()
		res, err := e.client.UploadStream(t.Context(), StreamOptions{Bucket: obstest.Bucket, Key: testKey, MaxSize: size,
			PartSize: func(int) int64 { return MinPartSize }}, func(_ context.Context, w io.Writer) error {
			_, err := io.Copy(w, io.NewSectionReader(d.content, 0, size))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		e.checkStored(t, d, res)
		took := time.Since(start)
		t.Logf("%v, %+v", took, res.Concurrency)
		if c := res.Concurrency; c.Last < 7 || c.Last > 12 || took > 30*time.Second {
			t.Errorf("%+v after %v", c, took)
		}
	})
}

// The rate is that of all bodies together, whatever is repeated, and waiting for one's turn is not idleness.
func TestLimitRate(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	for name, repeat := range map[string]bool{"plain": false, "with a part sent twice": true} {
		onLine(t, &obstest.Line{}, func(o *Options) { o.LimitRate = limit }, func(t *testing.T, e *env) {
			if repeat {
				f := obstest.Refuse(obstest.OpUploadPart, 500, "InternalError")
				f.Do, f.Times = obstest.FailLate, 1
				e.server.Inject(f)
			}
			d := noisyDisk(t, 20<<20)
			start := time.Now()
			res, err := e.client.Upload(t.Context(), e.options(d, mustPlan(t, 20<<20, nil, PlanOptions{PartSize: MinPartSize})))
			if err != nil {
				t.Fatal(err)
			}
			e.checkStored(t, d, res)
			if repeat != (res.BytesSent == 25<<20) || res.Retries > 1 {
				t.Errorf("%s: %+v", name, res)
			}
			checkRate(t, name, res.BytesSent, limit, time.Since(start))
		})
	}
}

// checkRate holds how long bytes took against a limit.
func checkRate(t *testing.T, name string, bytes, limit int64, took time.Duration) {
	t.Helper()
	least := time.Duration(float64(bytes-max(limit/throttleBurst, throttleChunk)) / float64(limit) * float64(time.Second))
	if took < least || took > least*11/10 {
		t.Errorf("%s: %d bytes took %v, at %d a second at least %v", name, bytes, took, limit, least)
	}
}

// The lowest rate: every 16 KiB wait longer than the idle limit.
func TestLimitRateIsNotIdleness(t *testing.T) {
	t.Parallel()
	onLine(t, &obstest.Line{}, func(o *Options) { o.LimitRate, o.IdleTimeout = MinLimitRate, time.Second/2 }, func(t *testing.T, e *env) {
		d := noisyDisk(t, 6<<20)
		start := time.Now()
		res, err := e.client.Upload(t.Context(), e.options(d, mustPlan(t, 6<<20, nil, PlanOptions{PartSize: MinPartSize})))
		if err != nil {
			t.Fatal(err)
		}
		e.checkStored(t, d, res)
		if c := res.Concurrency; c.Max != 1 || res.Retries != 0 {
			t.Errorf("%+v: a stream has less than it needs", res)
		}
		checkRate(t, "upload", res.BytesSent, MinLimitRate, time.Since(start))

		o, err := e.client.Object(t.Context(), obstest.Bucket, testKey)
		if err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		if _, err := o.ReadAt(t.Context(), make([]byte, 1<<20), 0); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		checkRate(t, "reading back", 1<<20, MinLimitRate, time.Since(start))
	})
}

func TestMaxStreams(t *testing.T) {
	for limit, want := range map[int64]int{0: MaxWorkers, MinLimitRate: 1, 64 << 10: 2, 1 << 20: 32, 1 << 40: MaxWorkers} {
		if got := MaxStreams(limit); got != want {
			t.Errorf("%d bytes a second: %d streams, want %d", limit, got, want)
		}
	}
	for _, limit := range []int64{-1, 1, MinLimitRate - 1} {
		_, err := New(Options{Endpoint: "localhost", Region: "r", LimitRate: limit,
			Credentials: StaticCredentials(Credentials{AccessKey: "a", SecretKey: "s"})})
		if KindOf(err) != KindInvalid {
			t.Errorf("%d bytes a second: %v", limit, err)
		}
	}
}
