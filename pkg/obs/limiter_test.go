// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

func mustAcquire(t *testing.T, l *limiter) ticket {
	t.Helper()
	tk, err := l.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tk
}

func TestLimiterHalvesOncePerWave(t *testing.T) {
	l := newLimiter(8)
	var wave []ticket
	for range 8 {
		wave = append(wave, mustAcquire(t, l))
	}
	for _, tk := range wave {
		l.release(tk, outcomeThrottled)
	}
	if l.limit != 4 {
		t.Fatalf("limit %d after one wave, want 4", l.limit)
	}
	for range 5 {
		l.release(mustAcquire(t, l), outcomeThrottled)
	}
	if l.limit != 1 {
		t.Fatalf("limit %d, want 1 and never less", l.limit)
	}
}

func TestLimiterRecoversSlowly(t *testing.T) {
	l := newLimiter(3)
	l.release(mustAcquire(t, l), outcomeThrottled) // 1
	good := func(n int) {
		for range n {
			l.release(mustAcquire(t, l), outcomeGood)
		}
	}
	good(recoverAfter - 1)
	l.release(mustAcquire(t, l), outcomeOther) // neither good nor bad news
	if l.limit != 1 {
		t.Fatalf("limit %d too early", l.limit)
	}
	good(1)
	if l.limit != 2 {
		t.Fatalf("limit %d, want 2", l.limit)
	}
	good(2*recoverAfter - 1)
	if l.limit != 2 {
		t.Fatalf("limit %d too early", l.limit)
	}
	good(1 + 100)
	if l.limit != 3 {
		t.Fatalf("limit %d, want the maximum 3", l.limit)
	}
}

func TestLimiterBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "max")
		l := newLimiter(n)
		outcomes := rapid.SliceOfN(rapid.IntRange(0, 2), 1, 60).Draw(t, "outcomes")
		var busy, worst atomic.Int64
		var next atomic.Int64
		var wg sync.WaitGroup
		for range 2 * n {
			wg.Go(func() {
				for {
					i := next.Add(1) - 1
					if i >= int64(len(outcomes)) {
						return
					}
					tk, err := l.acquire(context.Background())
					if err != nil {
						return
					}
					now := busy.Add(1)
					for w := worst.Load(); now > w && !worst.CompareAndSwap(w, now); w = worst.Load() {
					}
					busy.Add(-1)
					l.release(tk, outcome(outcomes[i]))
				}
			})
		}
		wg.Wait() // hangs if a wake-up gets lost
		if worst.Load() > int64(n) {
			t.Fatalf("%d at the same time, maximum %d", worst.Load(), n)
		}
		if l.inUse != 0 || l.limit < 1 || l.limit > n {
			t.Fatalf("in use %d, limit %d", l.inUse, l.limit)
		}
	})
}

func TestLimiterHonoursContext(t *testing.T) {
	l := newLimiter(1)
	tk := mustAcquire(t, l)
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error)
	go func() {
		_, err := l.acquire(ctx)
		errs <- err
	}()
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	l.release(tk, outcomeGood)
	if _, err := l.acquire(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("a slot after the end of the context: %v", err)
	}
}
