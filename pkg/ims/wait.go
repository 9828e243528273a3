// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Defaults of [WaitOptions].
const (
	DefaultWaitFirst       = 5 * time.Second
	DefaultWaitInterval    = 10 * time.Second
	DefaultWaitMaxInterval = 30 * time.Second
	DefaultWaitLimit       = 2 * time.Hour
	DefaultWaitTolerate    = 5 * time.Minute
)

// maxNotFound is how many answers "no such job" in a row are taken for a service that does not know
// its own job yet.
const maxNotFound = 3

// WaitOptions says how to wait for a job or an image. Zero fields mean the defaults.
type WaitOptions struct {
	First       time.Duration // until the first query; negative means at once
	Interval    time.Duration // between queries at the beginning; grows by a fifth each time
	MaxInterval time.Duration // to this
	Limit       time.Duration // in all
	// Tolerate is how long queries may fail in a row: a failed query is no failed job.
	Tolerate time.Duration

	OnUpdate func(*Job)   // after every successful query of a job
	OnImage  func(*Image) // after every successful query of an image
	OnError  func(error)  // after every query that failed and is tolerated

	// MarkerTag, Name and Since (by the service's clock, see [Submitted]) identify the image of a
	// job that succeeds without saying which image it made.
	MarkerTag Tag
	Name      string
	Since     time.Time
}

func (o WaitOptions) withDefaults() WaitOptions {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	if o.First == 0 {
		o.First = DefaultWaitFirst
	}
	set(&o.Interval, DefaultWaitInterval)
	set(&o.MaxInterval, max(DefaultWaitMaxInterval, o.Interval))
	set(&o.Limit, DefaultWaitLimit)
	set(&o.Tolerate, DefaultWaitTolerate)
	if o.OnUpdate == nil {
		o.OnUpdate = func(*Job) {}
	}
	if o.OnImage == nil {
		o.OnImage = func(*Image) {}
	}
	if o.OnError == nil {
		o.OnError = func(error) {}
	}
	return o
}

// JobFailedError says that the service did not make the image.
type JobFailedError struct {
	JobID   string // empty if only the image was followed
	ImageID string // a half-made image that may linger; may be empty
	Code    string // IMG.nnnn; may be empty
	Reason  string // may be empty
	Job     *Job   // nil if only the image was followed
}

func (e *JobFailedError) Error() string {
	s := "ims: "
	if e.JobID != "" {
		s += "job " + e.JobID + " failed"
	} else {
		s += "image " + e.ImageID + " failed"
	}
	reason := e.Reason
	if info, ok := lookupCode(e.Code); ok && reason == "" {
		reason = info.message
	}
	switch {
	case e.Code != "" && reason != "":
		s += ": " + e.Code + ": " + reason
	case e.Code != "" || reason != "":
		s += ": " + e.Code + reason
	default:
		s += " without a reason given"
	}
	return s
}

// Hint says what to do next, or is empty.
func (e *JobFailedError) Hint() string {
	info, _ := lookupCode(e.Code)
	hint := info.hint
	if e.ImageID != "" {
		if hint != "" {
			hint += " "
		}
		hint += "An unfinished image " + e.ImageID + " may remain: delete it."
	}
	return hint
}

// ErrorKind is that of the code; see [KindOf].
func (e *JobFailedError) ErrorKind() Kind {
	info, _ := lookupCode(e.Code)
	return info.kind
}

// WaitTimeoutError says that the time limit came before the end. The job goes on.
type WaitTimeoutError struct {
	JobID   string // empty when waiting for an image
	ImageID string
	Limit   time.Duration
	Job     *Job  // as last seen; nil if no query succeeded
	Err     error // the last failed query if no later one succeeded
}

func (e *WaitTimeoutError) Error() string {
	what := "job " + e.JobID
	if e.JobID == "" {
		what = "image " + e.ImageID
	}
	s := fmt.Sprintf("ims: %s did not end within %v", what, e.Limit)
	if e.Job != nil {
		s += " (" + string(e.Job.Status)
		if e.Job.Progress >= 0 {
			s += fmt.Sprintf(", %.0f %%", e.Job.Progress*100)
		}
		s += ")"
	}
	if e.Err != nil {
		s += ": last query: " + e.Err.Error()
	}
	return s
}

// Hint says what to do next.
func (e *WaitTimeoutError) Hint() string {
	return "It goes on in the cloud; wait again with its id, and do not import again."
}

func (e *WaitTimeoutError) Unwrap() error { return e.Err }

// ErrorKind implements [KindOf].
func (e *WaitTimeoutError) ErrorKind() Kind { return KindTransient }

// WaitJob queries a job until it has ended, and returns it when it succeeded. It fails with a
// *[JobFailedError] (the job is returned too), a *[WaitTimeoutError] when o.Limit comes first, the
// context's error, or the error of the query when queries fail for longer than o.Tolerate or in a
// way that waiting does not mend.
//
// A job that succeeded without naming its image is returned with the image that o.MarkerTag, or
// o.Name and o.Since, identify; with an empty ImageID if there is no such image.
func (c *Client) WaitJob(ctx context.Context, id string, o WaitOptions) (*Job, error) {
	o = o.withDefaults()
	var last *Job
	err := poll(ctx, o, func(ctx context.Context) (bool, error) {
		j, err := c.job(ctx, id, call{once: true})
		if err != nil {
			return false, err
		}
		last = j
		o.OnUpdate(j)
		return j.Done(), nil
	})
	switch {
	case errors.Is(err, errLimit):
		timeout := &WaitTimeoutError{JobID: id, Limit: o.Limit, Job: last, Err: errors.Unwrap(err)}
		if last != nil {
			timeout.ImageID = last.ImageID
		}
		return last, timeout
	case err != nil:
		return last, fmt.Errorf("waiting for job %s: %w", cleanText(id, 128), err)
	}
	if err := last.Err(); err != nil {
		return last, err
	}
	if last.ImageID == "" && (o.MarkerTag.Key != "" || o.Name != "" && !o.Since.IsZero()) {
		// Not knowing the image is no failure of the job, so neither is not finding it.
		if image, _, _, err := c.findCreated(ctx, o.MarkerTag, o.Name, o.Since); err != nil {
			o.OnError(err)
		} else if image != nil {
			last.ImageID, last.ImageIDs = image.ID, []string{image.ID}
		}
	}
	return last, nil
}

// WaitImage queries an image until it is active: for an import of which only the image is known,
// and to be sure after a job. It fails with a *[JobFailedError] when the image is killed or
// deleted, and otherwise as [Client.WaitJob] does.
func (c *Client) WaitImage(ctx context.Context, imageID string, o WaitOptions) (*Image, error) {
	o = o.withDefaults()
	var last *Image
	err := poll(ctx, o, func(ctx context.Context) (bool, error) {
		i, err := c.image(ctx, imageID, call{op: "read image " + cleanText(imageID, 80), once: true})
		if err != nil {
			return false, err
		}
		last = i
		o.OnImage(i)
		return i.Status == ImageActive || i.Status == ImageKilled || i.Status == ImageDeleted, nil
	})
	switch {
	case errors.Is(err, errLimit):
		return last, &WaitTimeoutError{ImageID: imageID, Limit: o.Limit, Err: errors.Unwrap(err)}
	case err != nil:
		return last, fmt.Errorf("waiting for image %s: %w", cleanText(imageID, 128), err)
	case last.Status != ImageActive:
		return last, &JobFailedError{ImageID: imageID, Reason: "its status is " + last.Status}
	}
	return last, nil
}

var errLimit = errors.New("time limit")

// limitError is errLimit with the error of the last query, which may be nil.
type limitError struct{ last error }

func (e *limitError) Error() string        { return errLimit.Error() }
func (e *limitError) Is(target error) bool { return target == errLimit }
func (e *limitError) Unwrap() error        { return e.last }

// poll calls query until it is done, with growing pauses.
func poll(ctx context.Context, o WaitOptions, query func(context.Context) (done bool, err error)) error {
	limited, cancel := context.WithTimeout(ctx, o.Limit)
	defer cancel()
	var (
		failingSince time.Time
		notFound     int
		lastErr      error
	)
	pause := max(o.First, 0)
	interval := o.Interval
	for {
		if err := sleep(limited, pause); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &limitError{lastErr}
		}
		done, err := query(limited)
		switch {
		case err == nil && done:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case limited.Err() != nil:
			return &limitError{lastErr}
		}
		pause = interval
		if err == nil {
			failingSince, notFound, lastErr = time.Time{}, 0, nil
		} else {
			lastErr = err
			if failingSince.IsZero() {
				failingSince = time.Now()
			}
			if KindOf(err) == KindNotFound {
				notFound++
			} else {
				notFound = 0
			}
			if !tolerable(err, notFound) || time.Since(failingSince) >= o.Tolerate {
				return err
			}
			var e *Error
			if errors.As(err, &e) {
				pause = max(pause, min(e.RetryAfter, o.MaxInterval))
			}
			o.OnError(err)
		}
		interval = min(interval+interval/5, o.MaxInterval)
	}
}

// tolerable tells whether asking again can help.
func tolerable(err error, notFound int) bool {
	kind := KindOf(err)
	var e *Error
	if errors.As(err, &e) {
		if info, ok := lookupCode(e.Code); ok && info.retry != retryNever {
			return true
		}
	}
	// A page in place of JSON comes from something in front of the service, like a 502.
	return kind.Temporary() || kind == KindResponse || kind == KindNotFound && notFound < maxNotFound
}
