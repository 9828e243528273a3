// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"sync"
)

// limiter bounds how many parts are on their way at the same time. The bound halves when the server
// asks to slow down and recovers by one after a number of successes that grows with the bound, so
// that it climbs slowly towards what the server turned out not to bear.
type limiter struct {
	mu      sync.Mutex
	max     int
	limit   int
	inUse   int
	good    int           // successes since the limit last changed
	cuts    int           // how often the limit was cut
	changed chan struct{} // closed and replaced when a slot may have become free
}

// recoverAfter is how many successes a slot must see before one more is added.
const recoverAfter = 8

func newLimiter(n int) *limiter {
	return &limiter{max: n, limit: n, changed: make(chan struct{})}
}

// ticket remembers under which limit a request started.
type ticket struct{ cuts int }

// acquire waits for a slot, or for the end of ctx.
func (l *limiter) acquire(ctx context.Context) (ticket, error) {
	for {
		if err := ctx.Err(); err != nil {
			return ticket{}, err
		}
		l.mu.Lock()
		if l.inUse < l.limit {
			l.inUse++
			t := ticket{l.cuts}
			l.mu.Unlock()
			return t, nil
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ticket{}, ctx.Err()
		}
	}
}

// outcome of a request, as far as the limiter is concerned.
type outcome int

const (
	outcomeOther     outcome = iota
	outcomeGood              // the server took it
	outcomeThrottled         // the server asked to slow down
)

// release gives the slot back. Of the requests that were under way together only the first
// throttled one cuts the limit: the others tell the same news.
func (l *limiter) release(t ticket, o outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inUse--
	switch o {
	case outcomeThrottled:
		l.good = 0
		if t.cuts == l.cuts {
			l.cuts++
			l.limit = max(1, l.limit/2)
		}
	case outcomeGood:
		if l.limit < l.max {
			if l.good++; l.good >= recoverAfter*l.limit {
				l.good = 0
				l.limit++
			}
		}
	case outcomeOther:
	}
	close(l.changed)
	l.changed = make(chan struct{})
}
