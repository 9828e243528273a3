// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	l := newLimiter(time.Now, 8, 8, 8)
	var wave []ticket
	for range 8 {
		wave = append(wave, mustAcquire(t, l))
	}
	for _, tk := range wave {
		l.release(tk, outcomeThrottled)
	}
	if l.climber.level != 4 {
		t.Fatalf("limit %d after one wave, want 4", l.climber.level)
	}
	for range 5 {
		l.release(mustAcquire(t, l), outcomeThrottled)
	}
	if l.climber.level != 1 {
		t.Fatalf("limit %d, want 1 and never less", l.climber.level)
	}
}

func TestLimiterRecoversSlowly(t *testing.T) {
	l := newLimiter(time.Now, 3, 3, 3)
	l.release(mustAcquire(t, l), outcomeThrottled) // 1
	good := func(n int) {
		for range n {
			l.release(mustAcquire(t, l), outcomeGood)
		}
	}
	good(recoverAfter - 1)
	l.release(mustAcquire(t, l), outcomeOther) // neither good nor bad news
	if l.climber.level != 1 {
		t.Fatalf("level %d too early", l.climber.level)
	}
	good(1)
	if l.climber.level != 2 {
		t.Fatalf("level %d, want 2", l.climber.level)
	}
	good(2*recoverAfter - 1)
	if l.climber.level != 2 {
		t.Fatalf("level %d too early", l.climber.level)
	}
	good(1 + 100)
	if l.climber.level != 3 {
		t.Fatalf("level %d, want what was asked for, 3", l.climber.level)
	}
}

func TestLimiterBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 6).Draw(t, "most")
		high := rapid.IntRange(1, 6).Draw(t, "high")
		low := rapid.IntRange(1, high).Draw(t, "low")
		var clock atomic.Int64 // windows pass at once
		l := newLimiter(func() time.Time { return time.Unix(0, clock.Add(int64(windowTime))) }, low, high, most)
		outcomes := rapid.SliceOfN(rapid.IntRange(0, 2), 1, 60).Draw(t, "outcomes")
		var held, busy, worstHeld, worst, next atomic.Int64
		enter := func(n, worst *atomic.Int64) {
			now := n.Add(1)
			for w := worst.Load(); now > w && !worst.CompareAndSwap(w, now); w = worst.Load() {
			}
		}
		var wg sync.WaitGroup
		for range 2 * most {
			wg.Go(func() {
				for {
					i := next.Add(1) - 1
					if i >= int64(len(outcomes)) || l.hold(context.Background()) != nil {
						return
					}
					enter(&held, &worstHeld)
					tk, err := l.acquire(context.Background())
					if err != nil {
						return
					}
					enter(&busy, &worst)
					l.moved(64 << 20)
					busy.Add(-1)
					l.release(tk, outcome(outcomes[i]))
					held.Add(-1)
					l.drop()
				}
			})
		}
		wg.Wait() // hangs if a wake-up gets lost
		if worst.Load() > int64(min(high, most)) || worstHeld.Load() > int64(most) {
			t.Fatalf("%d at the same time, %d held; bounds %d and %d", worst.Load(), worstHeld.Load(), high, most)
		}
		if level := l.climber.level; l.inUse != 0 || l.held != 0 || level < 1 || level > min(high, most) {
			t.Fatalf("in use %d, held %d, level %d", l.inUse, l.held, level)
		}
	})
}

// A lower bound takes effect at once, whatever the level was.
func TestLimiterBound(t *testing.T) {
	l := newLimiter(time.Now, 6, 8, 12)
	l.bound(3, 4)
	if l.climber.level != 3 || l.room() != 4 || l.climber.min != 3 || l.climber.max != 3 {
		t.Fatalf("level %d, room %d, %d to %d", l.climber.level, l.room(), l.climber.min, l.climber.max)
	}
	l.bound(16, 16)
	if l.climber.max != 3 || l.most != 4 {
		t.Fatalf("a bound was raised to %d, %d", l.climber.max, l.most)
	}
}

func TestLimiterHonoursContext(t *testing.T) {
	l := newLimiter(time.Now, 1, 1, 1)
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
