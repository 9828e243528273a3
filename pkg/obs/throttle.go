// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"fmt"

	"golang.org/x/time/rate"
)

// MinLimitRate is the lowest limit of the rate, in bytes a second: below it a part would take hours, and
// stores give up connections on which little moves.
const MinLimitRate = 16 << 10

const (
	// throttleChunk is how many bytes wait together.
	throttleChunk = 16 << 10
	// throttleBurst is how much of a second's bytes may go at once after a pause.
	throttleBurst = 10
	// streamRate is how many bytes a second each request should have: of a low limit many requests would
	// have so little that the server takes them for dead.
	streamRate = 32 << 10
)

// MaxStreams is how many requests at a time a limit of the rate has room for, in bytes a second. 0 is none.
func MaxStreams(limitRate int64) int {
	if limitRate <= 0 {
		return MaxWorkers
	}
	return int(min(max(limitRate/streamRate, 1), MaxWorkers))
}

// throttle bounds the rate of all bodies together, of requests and of answers. nil is no bound.
type throttle struct{ bucket *rate.Limiter }

func newThrottle(limitRate int64) (*throttle, error) {
	switch {
	case limitRate == 0:
		return nil, nil
	case limitRate < MinLimitRate:
		return nil, fmt.Errorf("a limit of %d bytes a second: %d is the least", limitRate, MinLimitRate)
	}
	burst := min(max(limitRate/throttleBurst, throttleChunk), 1<<30)
	return &throttle{rate.NewLimiter(rate.Limit(limitRate), int(burst))}, nil
}

// cut shortens a buffer to what may wait together.
func (t *throttle) cut(p []byte) []byte {
	if t == nil {
		return p
	}
	return p[:min(len(p), throttleChunk)]
}

// wait waits until n bytes, up to throttleChunk, may have moved. While it waits nothing counts as idle.
func (t *throttle) wait(ctx context.Context, w *watchdog, n int) error {
	if t == nil || n == 0 {
		return nil
	}
	w.pause()
	defer w.touch()
	return t.bucket.WaitN(ctx, n)
}
