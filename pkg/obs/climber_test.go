// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// line is what carries requests in a simulation.
type line struct {
	// carries returns how many bytes a second n requests move together, after some time.
	carries func(n int, after time.Duration) float64
	latency time.Duration // of a request, in which no byte moves
	noise   float64       // the rate of each 100 ms is off by up to this share
	// refuses tells whether the server asks a request to slow down, of n under way, when it began.
	refuses func(n int, after time.Duration) bool
	part    float64 // bytes of a part; 0 is 16 MiB
	// parts returns how many parts there are to be sent by then; nil is any number.
	parts func(after time.Duration) int
}

// flat is a line that n streams fill, each with rate bytes a second.
func flat(n int, rate float64) func(int, time.Duration) float64 {
	return func(k int, _ time.Duration) float64 { return rate * float64(min(k, n)) }
}

// simulated is what came of a simulation.
type simulated struct {
	levels []int     // the level of each second
	sent   []float64 // bytes of each second
	cuts   int
}

// median is that of the levels from a second on.
func (s simulated) median(from int) int {
	l := slices.Sorted(slices.Values(s.levels[from:]))
	return l[len(l)/2]
}

// mean is that of the bytes a second, from a second on.
func (s simulated) mean(from int) float64 {
	var sum float64
	for _, b := range s.sent[from:] {
		sum += b
	}
	return sum / float64(len(s.sent)-from)
}

// simulate sends parts over a line for some seconds, by a clock of its own, in steps of 10 ms.
func simulate(tb interface {
	Context() context.Context
	Fatal(...any)
	Fatalf(string, ...any)
}, ln line, low, high, most, seconds int, seed uint64) simulated {
	const step = 10 * time.Millisecond
	type request struct {
		ticket  ticket
		left    float64
		waiting time.Duration
		refused bool
	}
	var now time.Time
	var out simulated
	rnd := rand.New(rand.NewPCG(seed, 1))
	l := newLimiter(func() time.Time { return now }, low, high, most)
	size := ln.part
	if size == 0 {
		size = 16 << 20
	}
	var under []*request
	queued, begun := 0, 0 // parts that are held and wait; parts that were begun
	factor, sent := 1.0, 0.0
	start := now
	for i := range seconds * 100 {
		after := now.Sub(start)
		if i%10 == 0 {
			factor = 1 + ln.noise*(2*rnd.Float64()-1)
		}
		for l.held < l.room() && (ln.parts == nil || begun < ln.parts(after)) {
			if err := l.hold(tb.Context()); err != nil {
				tb.Fatal(err)
			}
			queued++
			begun++
		}
		for queued > 0 && l.inUse < l.climber.level {
			t, err := l.acquire(tb.Context())
			if err != nil {
				tb.Fatal(err)
			}
			queued--
			under = append(under, &request{ticket: t, left: size, waiting: ln.latency,
				refused: ln.refuses != nil && ln.refuses(len(under)+1, after)})
		}
		if l.inUse > most || l.held > most || l.climber.level > high || l.climber.level < 1 {
			tb.Fatalf("%d under way, %d held, level %d: bounds %d to %d, %d", l.inUse, l.held, l.climber.level, low, high, most)
		}
		moving := 0
		for _, r := range under {
			if r.waiting <= 0 && !r.refused {
				moving++
			}
		}
		now = now.Add(step)
		each := 0.0
		if moving > 0 {
			each = ln.carries(moving, after) * factor * step.Seconds() / float64(moving)
		}
		under = slices.DeleteFunc(under, func(r *request) bool {
			if r.waiting > 0 {
				r.waiting -= step
				return false
			}
			if r.refused {
				l.release(r.ticket, outcomeThrottled)
				queued++ // it is tried again
				return true
			}
			n := min(each, r.left)
			r.left -= n
			sent += n
			l.moved(int64(n))
			if r.left > 0 {
				return false
			}
			l.release(r.ticket, outcomeGood)
			l.drop()
			return true
		})
		if i%100 == 99 {
			out.levels, out.sent = append(out.levels, l.climber.base), append(out.sent, sent)
			sent = 0
		}
	}
	out.cuts = l.cuts
	return out
}

const mb = 1e6

// simulations are computed by one goroutine: there is nothing for the race detector to see.
func simulations(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("simulated by one goroutine")
	}
}

func TestConcurrencyFindsItsLevel(t *testing.T) {
	simulations(t)
	cases := map[string]struct {
		line      line
		low, high int
		most      int     // 0: high
		from, to  int     // the median level afterwards
		share     float64 // of what the line can carry, at least; 0 is 0.9
		best      float64 // what that is
		seconds   int     // 0 is 300
	}{
		"one stream fills it":         {line: line{carries: flat(1, 10*mb)}, low: 1, high: 64, from: 1, to: 1, best: 10 * mb},
		"two fill it":                 {line: line{carries: flat(2, 10*mb)}, low: 1, high: 64, from: 2, to: 3, best: 20 * mb},
		"six fill it":                 {line: line{carries: flat(6, 20*mb)}, low: 1, high: 64, from: 6, to: 8, best: 120 * mb},
		"twelve fill it":              {line: line{carries: flat(12, 20*mb)}, low: 1, high: 64, from: 11, to: 15, best: 240 * mb},
		"forty fill it":               {line: line{carries: flat(40, 5*mb)}, low: 1, high: 64, from: 36, to: 50, best: 200 * mb},
		"it is never full":            {line: line{carries: flat(1000, 5*mb)}, low: 1, high: 16, from: 16, to: 16, best: 80 * mb},
		"it is slow":                  {line: line{carries: flat(1, 0.3*mb)}, low: 1, high: 64, from: 1, to: 2, best: 0.3 * mb, seconds: 3000},
		"from above":                  {line: line{carries: flat(3, 10*mb)}, low: 1, high: 64, from: 3, to: 4, best: 30 * mb},
		"the optimum is below MIN":    {line: line{carries: flat(2, 10*mb)}, low: 6, high: 64, from: 6, to: 6, best: 20 * mb},
		"the optimum is above MAX":    {line: line{carries: flat(12, 10*mb)}, low: 1, high: 5, from: 5, to: 5, best: 50 * mb},
		"memory for five":             {line: line{carries: flat(12, 10*mb)}, low: 1, high: 64, most: 5, from: 5, to: 5, best: 50 * mb},
		"a fixed number":              {line: line{carries: flat(2, 10*mb)}, low: 7, high: 7, from: 7, to: 7, best: 20 * mb},
		"noise of a tenth":            {line: line{carries: flat(6, 20*mb), noise: 0.1}, low: 1, high: 64, from: 5, to: 10, best: 120 * mb},
		"noise of a half":             {line: line{carries: flat(6, 20*mb), noise: 0.5}, low: 1, high: 64, from: 4, to: 16, share: 0.75, best: 120 * mb},
		"every request takes a while": {line: line{carries: flat(1000, 50*mb), latency: 300 * time.Millisecond}, low: 1, high: 16, from: 16, to: 16, best: 16 * 26 * mb},
		"requests without bodies": {line: line{carries: flat(1000, 50*mb), latency: 300 * time.Millisecond, part: 1}, low: 1, high: 16,
			from: 16, to: 16, best: 1},
		"more streams hurt": {line: line{carries: func(n int, _ time.Duration) float64 {
			return 10 * mb * float64(min(n, 6)) / max(1, float64(n)/6)
		}}, low: 1, high: 64, from: 5, to: 7, best: 60 * mb},
		"more streams hurt much, from above": {line: line{carries: func(n int, _ time.Duration) float64 {
			return 10 * mb * float64(min(n, 3)) / max(1, float64(n*n)/9)
		}}, low: 1, high: 64, from: 2, to: 4, share: 0.6, best: 30 * mb},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.most == 0 {
				c.most = c.high
			}
			if c.share == 0 {
				c.share = 0.9
			}
			if c.seconds == 0 {
				c.seconds = 300
			}
			seeds := uint64(1)
			if c.line.noise > 0 {
				seeds = 5
			}
			for seed := range seeds {
				s := simulate(t, c.line, c.low, c.high, c.most, c.seconds, seed)
				half := c.seconds / 2
				if m := s.median(half); m < c.from || m > c.to {
					t.Errorf("median level %d, want %d to %d: %v", m, c.from, c.to, s.levels)
				}
				if got := s.mean(half); got < c.share*c.best {
					t.Errorf("%.1f MB/s of %.1f: %v", got/mb, c.best/mb, s.levels)
				}
			}
		})
	}
}

// Nobody can say how many streams are best when the line or the reading side changes; what counts is that
// the level follows.
func TestConcurrencyFollowsTheLine(t *testing.T) {
	simulations(t)
	t.Parallel()
	const change = 200 * time.Second
	s := simulate(t, line{carries: func(n int, after time.Duration) float64 {
		if after < change {
			return flat(3, 20*mb)(n, after)
		}
		return flat(12, 20*mb)(n, after)
	}}, 1, 32, 32, 600, 1)
	if before, after := s.median(100), s.levels[len(s.levels)-1]; before > 14 || after < 11 || after > 16 {
		t.Fatalf("median level %d, at the end %d: %v", before, after, s.levels)
	}
	s = simulate(t, line{carries: func(n int, after time.Duration) float64 {
		if after < change {
			return flat(12, 20*mb)(n, after)
		}
		return flat(3, 2*mb)(n, after)
	}}, 1, 32, 32, 900, 1)
	if after := s.median(700); after > 5 || after < 3 {
		t.Fatalf("level %d afterwards: %v", after, s.levels)
	}
}

// When there is too little to send, more requests at a time prove nothing.
func TestConcurrencyIgnoresATrickle(t *testing.T) {
	simulations(t)
	t.Parallel()
	s := simulate(t, line{carries: flat(1000, 20*mb), parts: func(after time.Duration) int {
		return int(after / (4 * time.Second))
	}}, 1, 64, 64, 300, 1)
	if hi := slices.Max(s.levels); hi != DefaultConcurrency {
		t.Fatalf("level %d: %v", hi, s.levels)
	}
}

// A server that bears a number of requests and refuses more.
func TestConcurrencyObeysTheServer(t *testing.T) {
	simulations(t)
	t.Parallel()
	s := simulate(t, line{carries: flat(1000, 20*mb), latency: 20 * time.Millisecond,
		refuses: func(n int, _ time.Duration) bool { return n > 6 }}, 1, 64, 64, 600, 1)
	if m := s.median(100); m < 3 || m > 6 {
		t.Errorf("median level %d: %v", m, s.levels)
	}
	if hi := slices.Max(s.levels[20:]); hi > 7 {
		t.Errorf("level %d, and the server bears 6: %v", hi, s.levels)
	}
	if s.cuts < 2 || s.cuts > 30 {
		t.Errorf("it was cut %d times in 600 s", s.cuts)
	}
	if got := s.mean(100); got < 3*20*mb {
		t.Errorf("%.0f MB/s of 120: %v", got/mb, s.levels)
	}
	// It has a bad minute, and is then as before.
	s = simulate(t, line{carries: flat(8, 20*mb), refuses: func(_ int, after time.Duration) bool {
		return after > 100*time.Second && after < 160*time.Second
	}}, 1, 64, 64, 900, 1)
	if m := slices.Max(s.levels[110:160]); m > 4 {
		t.Errorf("level %d while it refuses: %v", m, s.levels)
	}
	if m := s.median(700); m < 7 || m > 10 {
		t.Errorf("median level %d afterwards: %v", m, s.levels)
	}
	// A number that was asked for is come back to.
	s = simulate(t, line{carries: flat(8, 20*mb), refuses: func(_ int, after time.Duration) bool {
		return after > 10*time.Second && after < 12*time.Second
	}}, 6, 6, 6, 300, 1)
	if s.cuts == 0 || slices.Min(s.levels) > 3 || s.levels[len(s.levels)-1] != 6 {
		t.Errorf("%d cuts: %v", s.cuts, s.levels)
	}
}

// Whatever the line and the server do, the bounds hold (simulate looks), and most of what the line carries
// is used.
func TestConcurrencyOfAnyLine(t *testing.T) {
	simulations(t)
	rapid.Check(t, func(t *rapid.T) {
		high := rapid.IntRange(1, 32).Draw(t, "high")
		low := rapid.IntRange(1, high).Draw(t, "low")
		most := rapid.IntRange(1, 48).Draw(t, "most")
		full := rapid.IntRange(1, 24).Draw(t, "full")
		rate := rapid.Float64Range(2, 60).Draw(t, "rate") * mb
		ln := line{carries: flat(full, rate),
			latency: time.Duration(rapid.IntRange(0, 20).Draw(t, "latency")) * 10 * time.Millisecond,
			noise:   rapid.Float64Range(0, 0.2).Draw(t, "noise"),
			part:    rapid.Float64Range(5, 16).Draw(t, "part") * (1 << 20),
		}
		refusing := rapid.IntRange(0, 3).Draw(t, "refusing") == 0
		if refusing {
			p := rapid.IntRange(1, 200).Draw(t, "one in")
			n := 0
			ln.refuses = func(int, time.Duration) bool { n++; return n%p == 0 }
		}
		s := simulate(t, ln, low, high, most, 200, rapid.Uint64().Draw(t, "seed"))
		if best := rate * float64(min(full, high, most)); !refusing && s.mean(100) < 0.6*best*ln.sending(rate) {
			t.Fatalf("%.1f of %.1f MB/s: %v", s.mean(100)/mb, best/mb, s.levels)
		}
	})
}

// sending is the share of its time in which a request moves bytes.
func (ln line) sending(rate float64) float64 {
	took := ln.part / rate
	return took / (took + ln.latency.Seconds() + 0.02) // and what the simulation's steps add
}
