// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestBackoffHasFullJitter: the wait before attempt n+1 is anything from nothing to a ceiling that doubles up to
// a cap, and at least what the server asked for, up to the cap.
func TestBackoffHasFullJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(Options{Endpoint: "127.0.0.1:1", Region: "r", Credentials: StaticCredentials(Credentials{}),
			BackoffBase: 500 * time.Millisecond, BackoffCap: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		waited := func(n int, e *Error) time.Duration {
			begin := time.Now()
			if err := c.backoff(context.Background(), n, e); err != nil {
				t.Fatal(err)
			}
			return time.Since(begin)
		}
		for n, ceiling := range map[int]time.Duration{1: 500 * time.Millisecond, 2: time.Second, 4: 4 * time.Second, 7: 30 * time.Second, 1000: 30 * time.Second} {
			tenths := map[time.Duration]int{}
			for range 500 { // that one of ten is never met has a chance of 1 in 10^21
				d := waited(n, &Error{})
				if d < 0 || d > ceiling {
					t.Fatalf("after attempt %d it waits %v, and the ceiling is %v", n, d, ceiling)
				}
				tenths[min(d*10/ceiling, 9)]++
			}
			if len(tenths) != 10 {
				t.Errorf("after attempt %d the waits are not from all of 0 to %v: %v", n, ceiling, tenths)
			}
		}
		if d := waited(1, &Error{retryAfter: 7 * time.Second}); d != 7*time.Second {
			t.Errorf("the server asked for 7 s, and it waits %v", d)
		}
		if d := waited(1, &Error{retryAfter: time.Hour}); d != 30*time.Second {
			t.Errorf("the server asked for an hour, and it waits %v", d)
		}
	})
}
