// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"errors"
	"time"
)

// RecoverImport looks for the image of an import call that was made about asked, by this machine's clock,
// by a process that is no more and may not have got an answer. It looks until Options.LookupLimit has
// passed since then, once at least. nil without an error means that there is no such image: the service
// never got the call, or refused it. The image is looked for by its marker, and by its name and time of
// creation when there is no marker or half of the time has passed. Several images that could be it are
// an *[AmbiguousSubmitError].
func (c *Client) RecoverImport(ctx context.Context, name string, marker Tag, asked time.Time) (*Submitted, error) {
	if now := time.Now(); asked.After(now) {
		asked = now // the clock was set back
	}
	s := submission{name: name, marker: marker}
	until := asked.Add(c.lookupLimit)
	for attempt := 1; ; attempt++ {
		// As after a lost answer, the tag is believed alone for half of the time. The service's clock is
		// known from its answers.
		result := &Submitted{SubmittedAt: asked.Add(c.serviceTime().Sub(c.now())).Truncate(time.Second).Add(-2 * time.Second)}
		since := time.Time{}
		if marker.Key == "" || time.Since(asked) >= c.lookupLimit/2 {
			since = result.SubmittedAt
		}
		image, by, candidates, err := c.findCreated(ctx, marker, name, since)
		switch {
		case image != nil:
			return result.recovered(image, by), nil
		case len(candidates) > 0:
			return nil, s.ambiguous(result, errUnknownEnd, 0, candidates, nil)
		case err != nil && (ctx.Err() != nil || !KindOf(err).Temporary()):
			return nil, err
		}
		left := time.Until(until)
		if left <= 0 {
			return nil, err
		}
		c.onRetry(RetryEvent{Op: "look for the image of an earlier run", Attempt: attempt, Delay: min(c.lookupInterval, left), Err: errUnknownEnd})
		if err := sleep(ctx, min(c.lookupInterval, left)); err != nil {
			return nil, err
		}
	}
}

var errUnknownEnd = errors.New("the run that asked for it has ended without an answer")
