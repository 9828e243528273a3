// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

// stored puts n bytes of noise under the test's key.
func (e *env) stored(t failer, seed byte, n int64) *obstest.Content {
	c := noisy(t, seed, n)
	e.server.PutObject(obstest.Bucket, testKey, &obstest.Object{Content: c, ETag: string('a'+rune(seed)) + "-2", Modified: time.Now()})
	return c
}

func same(t *testing.T, c *obstest.Content, off int64, got []byte) {
	t.Helper()
	want := make([]byte, len(got))
	if _, err := c.ReadAt(want, off); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes at %d differ", len(got), off)
	}
}

var readFaults = map[string]obstest.Fault{
	"none":       {Op: obstest.OpListParts},
	"cut":        {Op: obstest.OpGetObject, Times: 3, Do: obstest.CutAnswer},
	"cut often":  {Op: obstest.OpGetObject, Times: 12, Do: obstest.CutAnswer}, // more often than attempts: each brings something
	"500":        {Op: obstest.OpGetObject, Times: 3, Do: obstest.Fail, Status: 500},
	"slow down":  obstest.Throttle(obstest.OpGetObject, 3),
	"reset":      {Op: obstest.OpGetObject, Times: 3, Do: obstest.Reset},
	"stall":      {Op: obstest.OpGetObject, Times: 2, Do: obstest.Stall},
	"stall late": {Op: obstest.OpGetObject, Times: 2, Do: obstest.StallBody},
}

func TestReadSurvives(t *testing.T) {
	t.Parallel()
	for name, f := range readFaults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, obstest.Options{}, func(o *Options) {
				if f.Do == obstest.Stall || f.Do == obstest.StallBody {
					o.IdleTimeout, o.MaxAttempts = 250*time.Millisecond, manyAttempts
				}
			})
			c := e.stored(t, 1, 3<<20)
			e.server.Inject(f)
			r, err := e.client.Object(t.Context(), obstest.Bucket, testKey)
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 2<<20)
			if n, err := r.ReadAt(t.Context(), p, 100); n != len(p) || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
			same(t, c, 100, p)
			e.server.ClearFaults()
			e.server.Inject(f)
			rc, err := e.client.GetRange(t.Context(), obstest.Bucket, testKey, 1, 3<<20-1)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(rc)
			if err != nil || len(got) != 3<<20-1 {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			same(t, c, 1, got)
			if err := rc.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestObjectReaderInParallel(t *testing.T) {
	e := newEnv(t, obstest.Options{}, nil)
	c := e.stored(t, 2, 5<<20+7)
	e.server.Inject(obstest.Fault{Op: obstest.OpGetObject, Times: 3, Do: obstest.CutAnswer})
	r, err := e.client.Object(t.Context(), obstest.Bucket, testKey)
	if err != nil {
		t.Fatal(err)
	}
	if r.Size() != 5<<20+7 || r.Info().ETag != "c-2" {
		t.Fatalf("%+v", r.Info())
	}
	at := r.ReaderAt(t.Context())
	var wg sync.WaitGroup
	for i := range uint64(4) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, i))
			for range 20 {
				off := rnd.Int64N(r.Size())
				p := make([]byte, 1+rnd.IntN(300_000))
				n, err := at.ReadAt(p, off)
				if want := min(int64(len(p)), r.Size()-off); int64(n) != want || (err == io.EOF) != (n < len(p)) || (err != nil && err != io.EOF) {
					t.Errorf("%d of %d at %d: %v", n, len(p), off, err)
					return
				}
				want := make([]byte, n)
				_, _ = c.ReadAt(want, off)
				if !bytes.Equal(want, p[:n]) {
					t.Errorf("%d bytes at %d differ", n, off)
				}
			}
		})
	}
	wg.Wait()
	// The whole as a reader of its own.
	got, err := io.ReadAll(io.NewSectionReader(at, 0, r.Size()))
	if err != nil || int64(len(got)) != r.Size() {
		t.Fatalf("%d, %v", len(got), err)
	}
	same(t, c, 0, got)
}

func TestObjectReaderEnds(t *testing.T) {
	e := newEnv(t, obstest.Options{}, nil)
	e.stored(t, 3, 1000)
	r, err := e.client.Object(t.Context(), obstest.Bucket, testKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		off  int64
		len  int
		want int
		err  error
	}{{0, 1000, 1000, nil}, {0, 1001, 1000, io.EOF}, {999, 1, 1, nil}, {1000, 1, 0, io.EOF}, {1000, 0, 0, nil}, {5000, 1, 0, io.EOF}, {3, 0, 0, nil}} {
		if n, err := r.ReadAt(t.Context(), make([]byte, tc.len), tc.off); n != tc.want || err != tc.err {
			t.Errorf("%d bytes at %d: %d, %v", tc.len, tc.off, n, err)
		}
	}
	if _, err := r.ReadAt(t.Context(), make([]byte, 1), -1); KindOf(err) != KindInvalid {
		t.Errorf("%v", err)
	}
	rc, err := e.client.GetRange(t.Context(), obstest.Bucket, testKey, 990, 11)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if got, err := io.ReadAll(rc); err == nil || len(got) != 10 {
		t.Errorf("%d bytes past the end, %v", len(got), err)
	}
	if _, err := e.client.Object(t.Context(), obstest.Bucket, "none"); KindOf(err) != KindNotFound {
		t.Errorf("%v", err)
	}
}

func TestReadOfReplacedObject(t *testing.T) {
	e := newEnv(t, obstest.Options{}, nil)
	e.stored(t, 4, 8<<20)
	r, err := e.client.Object(t.Context(), obstest.Bucket, testKey)
	if err != nil {
		t.Fatal(err)
	}
	e.server.Inject(obstest.Fault{Op: obstest.OpGetObject, Times: 1, Do: obstest.CutAnswer})
	rc, err := e.client.GetRange(t.Context(), obstest.Bucket, testKey, 0, 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	e.stored(t, 5, 8<<20)
	if n, err := io.Copy(io.Discard, rc); KindOf(err) != KindConflict || n > 4<<20 {
		t.Fatalf("%d, %v", n, err)
	}
	if _, err := r.ReadAt(t.Context(), make([]byte, 10), 0); KindOf(err) != KindConflict {
		t.Fatalf("%v", err)
	}
}

func TestReadFails(t *testing.T) {
	for name, tc := range map[string]struct {
		fault obstest.Fault
		kind  Kind
	}{
		"never":   {obstest.Fault{Op: obstest.OpGetObject, Do: obstest.Reset}, KindTransient},
		"refused": {obstest.Refuse(obstest.OpGetObject, 403, "AccessDenied"), KindAuth},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{}, nil)
			e.stored(t, 6, 1<<20)
			r, err := e.client.Object(t.Context(), obstest.Bucket, testKey)
			if err != nil {
				t.Fatal(err)
			}
			e.server.Inject(tc.fault)
			if _, err := r.ReadAt(t.Context(), make([]byte, 1<<20), 0); KindOf(err) != tc.kind {
				t.Fatalf("%v", err)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		e := newEnv(t, obstest.Options{}, nil)
		e.stored(t, 7, 1<<20)
		r, err := e.client.Object(t.Context(), obstest.Bucket, testKey)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		e.server.Inject(obstest.Fault{Op: obstest.OpGetObject, Do: obstest.Stall, Match: func(*obstest.Request) bool {
			cancel()
			return true
		}})
		if _, err := r.ReadAt(ctx, make([]byte, 1<<20), 0); KindOf(err) != KindCanceled || !errors.Is(err, context.Canceled) {
			t.Fatalf("%v", err)
		}
	})
}

func TestGetRangeAfterAPause(t *testing.T) {
	t.Parallel()
	// A reader that pauses for longer than the idle limit finds its answer given up, and gets another.
	e := newEnv(t, obstest.Options{}, func(o *Options) { o.IdleTimeout, o.MaxAttempts = 100*time.Millisecond, manyAttempts })
	e.server.PutObject(obstest.Bucket, "big", &obstest.Object{Content: obstest.Zeros(64 << 20), ETag: "x", Modified: time.Now()})
	rc, err := e.client.GetRange(t.Context(), obstest.Bucket, "big", 0, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	e.client.meter.idle = time.Minute // a busy machine may take its time with the rest
	if n, err := io.Copy(io.Discard, rc); n != 64<<20 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if err := rc.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAddMetadata adds to what an object has, whatever happens on the way, and to that object only.
func TestAddMetadata(t *testing.T) {
	for name, tc := range map[string]struct {
		fault obstest.Fault
		etag  string
		want  Kind
	}{
		"works":       {fault: obstest.Fault{Op: obstest.OpListParts}},
		"lost answer": {fault: obstest.Fault{Op: obstest.OpPutObject, Times: 1, Do: obstest.Lose}},
		"500":         {fault: obstest.Fault{Op: obstest.OpPutObject, Times: 2, Do: obstest.Fail, Status: 500}},
		"error body":  {fault: obstest.Fault{Op: obstest.OpPutObject, Times: 1, Do: obstest.ErrorBody, Code: "InternalError"}},
		"refused":     {fault: obstest.Fault{Op: obstest.OpPutObject, Times: 9, Do: obstest.Fail, Status: 501, Code: "NotImplemented"}, want: KindUnsupported},
		"replaced":    {fault: obstest.Fault{Op: obstest.OpListParts}, etag: "other", want: KindConflict},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{}, nil)
			c := noisy(t, 1, 1<<20)
			e.server.PutObject(obstest.Bucket, testKey, &obstest.Object{Content: c, ETag: "e-2", ContentType: "application/x-disk",
				Metadata: map[string]string{RunIDMetadata: "run1"}, Modified: time.Now()})
			e.server.Inject(tc.fault)
			if tc.etag == "" {
				tc.etag = "e-2"
			}
			got, err := e.client.AddMetadata(t.Context(), obstest.Bucket, testKey, tc.etag, map[string]string{"digest": "x:1"})
			o := e.server.Object(obstest.Bucket, testKey)
			if tc.want != KindOther {
				if KindOf(err) != tc.want || o.ETag != "e-2" {
					t.Fatalf("%v, object %q", err, o.ETag)
				}
				return
			}
			if err != nil || got != o.ETag || o.Metadata["digest"] != "x:1" || o.Metadata[RunIDMetadata] != "run1" ||
				o.ContentType != "application/x-disk" || o.Content.Size() != 1<<20 {
				t.Fatalf("%q, %v: %+v", got, err, o)
			}
		})
	}
}
