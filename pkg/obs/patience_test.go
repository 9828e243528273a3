// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"testing"
	"time"
)

// TestPatience: attempts are counted, and while nobody answers the time is looked at as well.
func TestPatience(t *testing.T) {
	silent, answered := &Error{Kind: KindTransient}, &Error{Kind: KindTransient, Status: 503}
	canceled := &Error{Kind: KindCanceled}
	type attempt struct {
		at    time.Duration
		e     *Error
		ended bool
	}
	for _, tc := range []struct {
		name     string
		outage   time.Duration
		attempts []attempt
	}{
		{"no outage is waited for", 0, []attempt{{0, silent, false}, {1, silent, false}, {2, silent, true}}},
		{"one is", 10, []attempt{{0, silent, false}, {1, silent, false}, {2, silent, false}, {9, silent, false}, {10, silent, true}}},
		{"it lasts from the first failure", 10, []attempt{{5, silent, false}, {11, silent, false}, {14, silent, false}, {15, silent, true}}},
		{"it is shorter than the attempts", 10, []attempt{{0, silent, false}, {20, silent, false}, {21, silent, true}}},
		{"an answer", 10, []attempt{{0, answered, false}, {1, answered, false}, {2, answered, true}}},
		{"an answer at last", 10, []attempt{{0, silent, false}, {1, silent, false}, {2, silent, false}, {3, answered, true}}},
		{"an answer in between", 10, []attempt{{0, silent, false}, {8, answered, false}, {9, silent, false}, {18, silent, false}, {19, silent, true}}},
		{"the user gave up", 10, []attempt{{0, silent, false}, {1, silent, false}, {2, canceled, true}}},
	} {
		p := patience{attempts: 3, outage: tc.outage}
		var epoch time.Time
		for i, a := range tc.attempts {
			if got := p.ended(i+1, a.e, epoch.Add(time.Hour+a.at)); got != a.ended {
				t.Errorf("%s: attempt %d ended: %v", tc.name, i+1, got)
			}
		}
	}
}
