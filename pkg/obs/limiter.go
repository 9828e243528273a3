// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"sync"
	"time"
)

const (
	// A window lasts this long at least, and until streamWork bytes have moved for each request under way: a
	// body leaves in pieces of 64 KiB, and a few of them would tell little.
	windowTime = time.Second
	streamWork = 1 << 20
	// After a change of the level half of both passes first: connections are made and become fast, buffers fill.
	settleShare = 2
	// requestWork is what a request without a body counts in a window, in bytes; the planner takes it for the
	// same.
	requestWork = requestBytes
)

// limiter bounds how many requests are under way at the same time, and how many parts are held in memory, by
// the level of a climber, which it feeds with what it sees. Some parts more than the level are held: they are
// read while others are sent.
type limiter struct {
	now func() time.Time

	mu      sync.Mutex
	climber climber
	most    int           // parts that may be held
	held    int           // parts being read, waiting, or on their way
	inUse   int           // requests under way
	reached int           // the most that were
	cuts    int           // how often the level was cut
	window  window        // being measured
	changed chan struct{} // closed and replaced when there may be room
}

// window is a stretch of time at one level.
type window struct {
	settling bool
	start    time.Time
	last     time.Time     // up to which busy is counted
	busy     time.Duration // of it, as many parts as are permitted were held
	work     int64         // bytes that have moved
}

// newLimiter makes a limiter whose level stays from low to high and under which at most most parts are held.
func newLimiter(now func() time.Time, low, high, most int) *limiter {
	high = max(1, min(high, most))
	l := &limiter{now: now, climber: newClimber(max(1, min(low, high)), high), most: max(1, most), changed: make(chan struct{})}
	l.begin(true)
	return l
}

// bound lowers the highest level and the number of parts that may be held.
func (l *limiter) bound(high, most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.most = min(l.most, max(1, most))
	l.climber.lower(min(high, l.most))
}

// ticket remembers under which level a request started.
type ticket struct{ cuts int }

// acquire waits until one request more may be under way, or for the end of ctx.
func (l *limiter) acquire(ctx context.Context) (t ticket, err error) {
	err = l.wait(ctx, func() bool {
		if l.inUse >= l.climber.level {
			return false
		}
		l.inUse++
		l.reached = max(l.reached, l.inUse)
		t = ticket{l.cuts}
		return true
	})
	return t, err
}

// outcome of a request, as far as the limiter is concerned.
type outcome int

const (
	outcomeOther     outcome = iota
	outcomeGood              // the server took it
	outcomeThrottled         // the server asked to slow down
)

// release ends a request. Of those that were under way together only the first throttled one cuts the
// level: the others tell the same news.
func (l *limiter) release(t ticket, o outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inUse--
	switch o {
	case outcomeThrottled:
		l.cut(t)
	case outcomeGood:
		level := l.climber.level
		l.window.work += requestWork
		l.look()
		if l.climber.succeeded(); l.climber.level != level && !l.window.settling {
			l.begin(true)
		}
	case outcomeOther:
	}
	l.wake()
}

// cut halves the level for a request that the server asked to slow down.
func (l *limiter) cut(t ticket) {
	if t.cuts == l.cuts {
		l.cuts++
		l.climber.throttled()
		l.begin(true)
	}
}

// slow is release for a request that was throttled and goes on, after a while.
func (l *limiter) slow(t ticket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut(t)
}

// enter is hold and acquire in one, and leave their ends, for what is not read ahead.
func (l *limiter) enter(ctx context.Context) (ticket, error) {
	if err := l.hold(ctx); err != nil {
		return ticket{}, err
	}
	t, err := l.acquire(ctx)
	if err != nil {
		l.drop()
	}
	return t, err
}

func (l *limiter) leave(t ticket, good bool) {
	o := outcomeOther
	if good {
		o = outcomeGood
	}
	l.release(t, o)
	l.drop()
}

// hold waits until one part more may be held in memory, or for the end of ctx.
func (l *limiter) hold(ctx context.Context) error {
	return l.wait(ctx, func() bool {
		if l.held >= l.room() {
			return false
		}
		l.tick()
		l.held++
		return true
	})
}

// drop ends holding a part.
func (l *limiter) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tick()
	l.held--
	l.wake()
}

// room is how many parts may be held.
func (l *limiter) room() int { return min(l.climber.level+ahead(l.climber.level), l.most) }

// maxAhead keeps DefaultWorkers parts of DefaultPartSize, and all else that an upload needs, below 200 MB. Where many
// requests are under way reading isn't what holds them up.
const maxAhead = 2

// ahead is how many parts are read while as many as the level are sent.
func ahead(level int) int { return max(1, min(level/2, maxAhead)) }

func (l *limiter) wait(ctx context.Context, taken func() bool) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		l.mu.Lock()
		if taken() {
			l.mu.Unlock()
			return nil
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *limiter) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// moved hears of bytes that have moved, and with n below 0 of some that turned out to be of no use.
func (l *limiter) moved(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.window.work += n
	if before := l.climber.level; n > 0 && l.look() && l.climber.level > before {
		l.wake()
	}
}

// begin begins a window.
func (l *limiter) begin(settling bool) {
	now := l.now()
	l.window = window{settling: settling, start: now, last: now}
}

// tick counts the time up to now as busy if it was.
func (l *limiter) tick() {
	now := l.now()
	if l.held >= l.room() {
		l.window.busy += now.Sub(l.window.last)
	}
	l.window.last = now
}

// look ends the window if it has lasted long enough. It returns whether the climber has heard of it.
func (l *limiter) look() bool {
	w, level := &l.window, l.climber.level
	least, work := windowTime, int64(level)*streamWork
	if w.settling {
		least, work = least/settleShare, work/settleShare
	}
	if l.tick(); w.last.Sub(w.start) < least || w.work < work {
		return false
	}
	if w.settling {
		// Requests that were more than there may be now have to end first.
		if l.inUse <= level {
			l.begin(false)
		}
		return false
	}
	took := w.last.Sub(w.start)
	l.climber.measured(float64(w.work)/took.Seconds(), w.busy > took/2)
	l.begin(l.climber.level != level)
	return true
}

// ConcurrencyResult tells how many requests were under way at the same time.
type ConcurrencyResult struct {
	Min     int `json:"min"` // bounds, as far as memory permits
	Max     int `json:"max"`
	Reached int `json:"reached"` // the most that were
	Last    int `json:"last"`    // the level at the end
	// Slowed is how often the level was halved because the server asked to slow down.
	Slowed int `json:"slowed"`
}

func (l *limiter) result() ConcurrencyResult {
	if l == nil {
		return ConcurrencyResult{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return ConcurrencyResult{Min: l.climber.min, Max: l.climber.max, Reached: l.reached, Last: l.climber.base, Slowed: l.cuts}
}
