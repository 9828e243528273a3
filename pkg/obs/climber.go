// SPDX-License-Identifier: Apache-2.0

package obs

// DefaultConcurrency is how many requests are under way at the same time at first, when nothing is known of
// the line.
const DefaultConcurrency = 4

const (
	// worthwhile is what a request more must bring to be kept, as a share of what the others bring each: on a
	// line that is not full it is 1, on a full one 0, and where more requests hurt it is below that.
	worthwhile = 1.0 / 3
	// stepShare: a level is changed by a 4th of itself, so that what a step brings is as plain at 40 as at 4.
	stepShare = 4
	// restWindows is how many windows pass without a trial after neither more nor fewer requests were better.
	// It doubles up to maxRestWindows while nothing changes.
	restWindows, maxRestWindows = 4, 16
	// recoverAfter is how many successes each request of the level must see after a cut before there may be
	// one more.
	recoverAfter = 8
)

// climber finds the number of requests to have under way at the same time, its level, by the goodput of one
// window of time after another. It compares the level that it is at, the base, with one above or below, and
// moves there if that is better: more requests must bring more goodput, fewer must not cost much. As the base is
// measured anew before each trial, a line that becomes faster or slower misleads it once at most. Above min it
// begins by doubling.
//
// A server that asks to slow down halves the level, below min too; it recovers by one after enough successes.
//
// It has no clock and no lock: limiter has them.
type climber struct {
	min, max int
	level    int

	base     int     // the level that is compared with
	baseRate float64 // its goodput, as measured last
	up       bool    // the direction of the next trial
	doubling bool    // nothing has been worse yet
	failed   int     // trials in a row that were no better, in either direction
	rest     int     // windows to come without a trial
	restNext int     // how many of them there will be next time

	slowed bool // a server has asked to slow down
	good   int  // successes since the level last changed
}

// newClimber makes a climber that stays from low to high, which are at least 1.
func newClimber(low, high int) climber {
	start := min(max(low, DefaultConcurrency), high)
	return climber{min: low, max: high, level: start, base: start, up: true, doubling: true, restNext: restWindows}
}

// lower makes high the highest level.
func (c *climber) lower(high int) {
	c.max = min(c.max, max(1, high))
	c.min = min(c.min, c.max)
	if c.level > c.max || c.base > c.max {
		c.settle(c.max)
	}
}

// settle makes a level the base, of which nothing is known.
func (c *climber) settle(level int) {
	c.level, c.base, c.baseRate, c.good, c.failed = level, level, 0, 0, 0
}

// throttled hears that the server asked to slow down, once for all requests that were under way together.
func (c *climber) throttled() {
	c.settle(max(1, c.level/2))
	c.slowed, c.doubling, c.up = true, false, true
	c.rest, c.restNext = 0, restWindows
}

// succeeded hears of each request that went well.
func (c *climber) succeeded() {
	c.good++
	if c.level < c.min && c.recovered() {
		c.settle(c.level + 1)
	}
}

// recovered tells whether there may be one request more after a cut.
func (c *climber) recovered() bool { return !c.slowed || c.good >= recoverAfter*c.level }

// measured hears the goodput of a window during which the level did not change, in any unit. busy tells whether
// as many requests were under way as the level permits: if not, something else is the narrow place, and
// nothing follows.
func (c *climber) measured(rate float64, busy bool) {
	switch {
	case !busy:
		c.level = c.base
	case c.level == c.base:
		c.baseRate = rate
		c.try()
	default:
		c.judge(rate)
	}
}

// try chooses the next level to compare the base with.
func (c *climber) try() {
	if c.rest > 0 {
		c.rest--
		return
	}
	for range 2 {
		next := c.next()
		switch {
		case next > c.base && !c.recovered():
			return
		case next != c.base:
			c.level = next
			return
		}
		c.reject() // a bound is as good as a trial that failed
		if c.rest > 0 {
			return
		}
	}
}

// next is the level to try, the base itself if a bound is in the way.
func (c *climber) next() int {
	step := max(1, c.base/stepShare)
	switch {
	case c.up && c.doubling:
		step = c.base
	case c.up && c.slowed:
		step = 1
	}
	if c.up {
		return max(c.base, min(c.base+step, c.max))
	}
	return min(c.base, max(c.base-step, c.min))
}

// judge compares a trial with the base.
func (c *climber) judge(rate float64) {
	share := worthwhile * float64(c.level-c.base) / float64(c.base) // of goodput, below 0 for fewer requests
	if rate <= c.baseRate*(1+share) {
		c.level = c.base
		c.reject()
		return
	}
	up := c.level > c.base
	c.settle(c.level)
	c.baseRate, c.restNext = rate, restWindows
	if !up {
		c.doubling = false
	}
	c.try()
}

// reject turns round, and rests when neither direction was better.
func (c *climber) reject() {
	if c.up && c.doubling {
		c.doubling = false // too far, perhaps; the next step up is a short one
		return
	}
	c.up = !c.up
	if c.failed++; c.failed >= 2 {
		c.failed = 0
		c.rest, c.restNext = c.restNext, min(2*c.restNext, maxRestWindows)
	}
}
