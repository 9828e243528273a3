// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff limits repetitions. Before attempt n+1 a random time between 0 and min(MaxDelay,
// BaseDelay·2^(n-1)) is waited ("full jitter"), and longer when the service asks for it
// (Retry-After, honoured up to four times MaxDelay).
type Backoff struct {
	MaxAttempts int // all of them, the first included; 1 means no repetition
	BaseDelay   time.Duration
	MaxDelay    time.Duration
}

// withDefaults fills in what is zero.
func (b Backoff) withDefaults(d Backoff) Backoff {
	if b.MaxAttempts <= 0 {
		b.MaxAttempts = d.MaxAttempts
	}
	if b.BaseDelay <= 0 {
		b.BaseDelay = d.BaseDelay
	}
	if b.MaxDelay <= 0 {
		b.MaxDelay = max(d.MaxDelay, b.BaseDelay)
	}
	return b
}

// ceiling is the longest wait after the given attempt (from 1).
func (b Backoff) ceiling(attempt int) time.Duration {
	d := min(b.BaseDelay, b.MaxDelay)
	for range attempt - 1 {
		if d >= b.MaxDelay/2 {
			return b.MaxDelay
		}
		d *= 2
	}
	return d
}

func (b Backoff) delay(attempt int, retryAfter time.Duration) time.Duration {
	d := b.ceiling(attempt)
	if d > 0 {
		d = rand.N(d + 1)
	}
	return d + min(retryAfter, 4*b.MaxDelay)
}

// sleep waits, or returns the context's error as soon as it ends.
func sleep(ctx context.Context, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lock is a mutex that can be waited for with a context.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) acquire(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l lock) release() { <-l }
