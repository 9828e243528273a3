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
// never got the call, or refused it. Without a marker the image is looked for by its name and its time
// of creation. Several images that could be it are an *[AmbiguousSubmitError].
func (c *Client) RecoverImport(ctx context.Context, name string, marker Tag, asked time.Time) (*Submitted, error) {
	if now := c.now(); asked.After(now) {
		asked = now // the clock was set back
	}
	since := c.serviceTime().Add(asked.Sub(c.now())).Truncate(time.Second).Add(-2 * time.Second)
	s := submission{name: name, marker: marker}
	result := &Submitted{SubmittedAt: since}
	byName, nameSince := "", time.Time{}
	if marker.Key == "" {
		byName, nameSince = name, since
	}
	until := asked.Add(c.lookupLimit)
	for attempt := 1; ; attempt++ {
		image, by, candidates, err := c.findCreated(ctx, marker, byName, nameSince)
		switch {
		case image != nil:
			return result.recovered(image, by), nil
		case len(candidates) > 0:
			return nil, s.ambiguous(result, errUnknownEnd, 0, candidates, nil)
		case err != nil && (ctx.Err() != nil || !KindOf(err).Temporary()):
			return nil, err
		}
		left := until.Sub(c.now())
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
