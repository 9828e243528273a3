// SPDX-License-Identifier: Apache-2.0

package obs

import "time"

// patience is how long a request is repeated: so many attempts, and more as long as the store has been silent
// for less than outage. A server that answers says what it thinks of being asked again; a line that is down comes back
// by itself, and in that time attempts cost nothing.
type patience struct {
	attempts int
	outage   time.Duration
	silent   time.Time // since when there was no answer, zero if there was
}

// ended tells whether attempt n, which failed with e at that time, was the last.
func (p *patience) ended(n int, e *Error, now time.Time) bool {
	if e.Status != 0 || e.Kind != KindTransient {
		p.silent = time.Time{}
		return n >= p.attempts
	}
	if p.silent.IsZero() {
		p.silent = now
	}
	return n >= p.attempts && now.Sub(p.silent) >= p.outage
}

// silence tells the user, once until parts arrive again, why nothing moves.
func (m *multipart) silence(e *Error) {
	if m.told.Swap(true) {
		return
	}
	why := *e
	why.Attempts = 0
	m.report(func(ev *UploadEvent) {
		ev.Note = "no answer from the store, waiting for it for up to " + m.c.o.Outage.String() + ": " + why.Error()
	})
}
