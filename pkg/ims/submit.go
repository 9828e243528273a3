// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Generation chooses between the two generations of the import calls, which have the same body and
// answer. The newer ones are said to use the caller's own rights on OBS and KMS.
type Generation int

const (
	GenAuto Generation = iota // the older call; the newer one where that is missing
	GenOld                    // /v2/… only
	GenNew                    // /v2.1/…; the older call where it is missing
)

func (g Generation) String() string {
	switch g {
	case GenOld:
		return "old"
	case GenNew:
		return "new"
	default:
		return "auto"
	}
}

// Submitted is an import that the service has taken. JobID or ImageID is set.
type Submitted struct {
	JobID string
	// ImageID is set when the answer was lost and the image was found instead: follow it with
	// [Client.WaitImage].
	ImageID   string
	Recovered bool
	// RecoveredBy says how: "tag", or "name" (and time of creation), which is less certain.
	RecoveredBy string
	// Generation is the one that took it: GenOld or GenNew.
	Generation Generation
	// SubmittedAt is the time by the service's clock, a little early, before the request was sent.
	SubmittedAt time.Time
}

// AmbiguousSubmitError says that the service may have taken an import whose answer was lost.
// Sending it again may make a second image: what to check first is in Hint.
type AmbiguousSubmitError struct {
	Name      string
	MarkerTag Tag
	Since     time.Time // by the service's clock
	// LookedFor is how long the image was looked for.
	LookedFor time.Duration
	// Candidates are the ids of several images that it could be.
	Candidates []string
	// LookupErr is what went wrong with looking; nil if that worked and found nothing.
	LookupErr error
	Err       error // what happened to the answer
}

func (e *AmbiguousSubmitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ims: the answer to the request that imports %q was lost: %v; ", e.Name, e.Err)
	switch {
	case len(e.Candidates) > 0:
		fmt.Fprintf(&b, "several images could be the one it made: %s", strings.Join(e.Candidates, ", "))
	case e.LookupErr != nil:
		fmt.Fprintf(&b, "whether it made an image could not be found out: %v", e.LookupErr)
	case e.LookedFor > 0:
		fmt.Fprintf(&b, "no image of it appeared within %v, it may still come", e.LookedFor)
	default:
		b.WriteString("whether it made an image was not looked up")
	}
	return b.String()
}

// Hint says exactly what to check before importing again.
func (e *AmbiguousSubmitError) Hint() string {
	how := fmt.Sprintf("the name %q, created after %s", e.Name, e.Since.UTC().Format(time.RFC3339))
	query := ImageFilter{ImageType: "private", Name: e.Name}
	if e.MarkerTag.Key != "" {
		how = "the tag " + e.MarkerTag.String() + " (or " + how + ")"
		query = ImageFilter{ImageType: "private", Tag: e.MarkerTag}
	}
	return "The import may be running. Before starting it again, wait some minutes and look for a private image with " +
		how + ", in the console or with GET /v2/cloudimages?" + query.query().Encode() +
		". If there is one, wait until it is active and use it; only if there is none, import again."
}

func (e *AmbiguousSubmitError) Unwrap() []error {
	if e.LookupErr != nil {
		return []error{e.Err, e.LookupErr}
	}
	return []error{e.Err}
}

// ErrorKind implements [KindOf]: not transient although its cause may be, because repeating the
// request without a look is what must not happen.
func (e *AmbiguousSubmitError) ErrorKind() Kind { return KindUnknown }

// QuickImport starts a quick import: POST /v2/cloudimages/quickimport/action, or /v2.1/… in the
// newer generation (IMS API, "Importing an Image File Quickly").
//
// The request is sent again only when it certainly created nothing: no connection could be made,
// the service wants fewer requests or tasks (429, IMG.0060, IMG.0187), or says that it failed
// before the work began (IMG.0064, IMG.0065, IMG.0154; IMG.0014 and IMG.0018 after a look that
// found no image). When the answer is lost (time limit, broken connection, 5xx) the image is looked
// for by r.MarkerTag, and by name and time of creation, for Options.LookupLimit; a found image is
// reported in [Submitted], else the error is an *[AmbiguousSubmitError]. Other errors:
// *[ValidationError] (nothing was sent), *[Error].
func (c *Client) QuickImport(ctx context.Context, r *QuickImport, gen Generation) (*Submitted, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	s := submission{
		call: call{
			op: fmt.Sprintf("import image %q", r.Name), service: serviceIMS, method: http.MethodPost, body: r.body(),
			success: acceptedStatuses,
		},
		name: r.Name, marker: r.MarkerTag,
	}
	s.targets = gen.targetsOf("/v2/cloudimages/quickimport/action", "/v2.1/cloudimages/quickimport/action")
	return c.submit(ctx, s)
}

// submission is a request that creates an image through a job, and how to recognize that image.
type submission struct {
	call    call
	targets []target // the next one is taken when the installation lacks one
	name    string
	marker  Tag
	// check says what to look at when the answer is lost, for what makes no image that could be
	// looked for.
	check string
}

// targetsOf orders the two generations of a call.
func (g Generation) targetsOf(older, newer string) []target {
	o, n := target{GenOld, older}, target{GenNew, newer}
	switch g {
	case GenOld:
		return []target{o}
	case GenNew:
		return []target{n, o}
	default:
		return []target{o, n}
	}
}

// acceptedStatuses are those of an answer that holds a job's id.
var acceptedStatuses = []int{http.StatusOK, http.StatusCreated, http.StatusAccepted}

// LostAnswerError says that the service may have carried out a request whose answer was lost, and
// that it makes nothing this client could look for. It was not sent again.
type LostAnswerError struct {
	Op    string // what was being done
	Check string // what to look at before doing it again
	Err   error  // what happened to the answer
}

func (e *LostAnswerError) Error() string {
	return "ims: " + e.Op + ": the answer was lost, it may have been carried out: " + e.Err.Error()
}

func (e *LostAnswerError) Unwrap() error { return e.Err }

// Hint says what to look at first.
func (e *LostAnswerError) Hint() string { return "Before doing it again: " + e.Check }

// ErrorKind implements [KindOf]: not transient, for repeating it without a look may do it twice.
func (e *LostAnswerError) ErrorKind() Kind { return KindUnknown }

type target struct {
	generation Generation
	path       string
}

func (c *Client) submit(ctx context.Context, s submission) (*Submitted, error) {
	result := &Submitted{
		// The Date header has whole seconds, and so has created_at.
		SubmittedAt: c.serviceTime().Truncate(time.Second).Add(-2 * time.Second),
	}
	renewed := false
	refusedTimes, unsentTimes := 0, 0
	for next := 0; ; {
		result.Generation = s.targets[next].generation
		s.call.path = s.targets[next].path
		a, f := c.tell(ctx, &s.call)
		if f == nil {
			if result.JobID = jobIDOf(a.body); result.JobID != "" {
				return result, nil
			}
			return c.recover(ctx, s, result, malformed(s.call, a, "the answer holds no job id"))
		}
		if f.err.Status == 0 && !f.sent && ctx.Err() != nil {
			return nil, f.err
		}
		if f.final {
			return nil, f.err
		}
		if isAmbiguous(f) {
			return c.recover(ctx, s, result, f.err)
		}
		// From here on the service certainly did not take this request.
		if !renewed && c.renew(ctx, &s.call, f) {
			renewed = true
			continue
		}
		if isMissingCall(f.err) && next+1 < len(s.targets) {
			next++
			continue
		}
		var delay time.Duration
		attempt := 0
		info, _ := lookupCode(f.err.Code)
		switch {
		case !f.sent || f.err.Status == http.StatusTooManyRequests:
			unsentTimes++
			if !f.err.Kind.Temporary() || unsentTimes >= c.retry.MaxAttempts {
				return nil, f.err
			}
			attempt, delay = unsentTimes, c.retry.delay(unsentTimes, f.err.RetryAfter)
		// Without an image to look for, what may have begun is left to whoever asked.
		case info.retry == retrySubmit || info.retry == retrySubmitAfterLookup && s.check == "":
			refusedTimes++
			if refusedTimes >= c.submitRetry.MaxAttempts {
				return nil, f.err
			}
			attempt, delay = refusedTimes, c.submitRetry.delay(refusedTimes, f.err.RetryAfter)
		default:
			return nil, f.err
		}
		c.onRetry(RetryEvent{Op: s.call.op, Attempt: attempt, Delay: delay, Err: f.err})
		if sleep(ctx, delay) != nil {
			return nil, ended(ctx, f.err)
		}
		if info.retry == retrySubmitAfterLookup {
			image, by, candidates, err := c.findCreated(ctx, s.marker, s.name, result.SubmittedAt)
			switch {
			case image != nil:
				return result.recovered(image, by), nil
			case err != nil || len(candidates) > 0:
				return nil, s.ambiguous(result, f.err, 0, candidates, err)
			}
		}
	}
}

// isAmbiguous tells whether the request may have been carried out although it failed.
func isAmbiguous(f *failure) bool {
	if !f.sent {
		return false
	}
	if info, ok := lookupCode(f.err.Code); ok && f.err.Status < 500 {
		return info.retry == retryQuery
	}
	switch status := f.err.Status; {
	case status == 0, status < 300, status == http.StatusRequestTimeout, status >= 500:
		return true
	}
	return false
}

// recover looks for the image of a request whose answer was lost.
func (c *Client) recover(ctx context.Context, s submission, result *Submitted, cause error) (*Submitted, error) {
	if s.check != "" {
		return nil, &LostAnswerError{Op: s.call.op, Check: s.check, Err: cause}
	}
	if err := ctx.Err(); err != nil {
		return nil, s.ambiguous(result, cause, 0, nil, nil)
	}
	limited, cancel := context.WithTimeout(ctx, c.lookupLimit)
	defer cancel()
	start := time.Now()
	var lookupErr error
	for attempt := 1; ; attempt++ {
		// Somebody else's image may have the name, nobody's has the tag: the tag gets half of the
		// time alone.
		since := time.Time{}
		if s.marker.Key == "" || time.Since(start) >= c.lookupLimit/2 {
			since = result.SubmittedAt
		}
		look := limited
		if attempt == 1 {
			look = ctx // one whole look, however short the limit and slow the answer
		}
		image, by, candidates, err := c.findCreated(look, s.marker, s.name, since)
		switch {
		case image != nil:
			return result.recovered(image, by), nil
		case len(candidates) > 0:
			return nil, s.ambiguous(result, cause, 0, candidates, nil)
		case look.Err() == nil:
			lookupErr = err
		}
		if err != nil && look.Err() == nil && !KindOf(err).Temporary() {
			return nil, s.ambiguous(result, cause, 0, nil, err)
		}
		c.onRetry(RetryEvent{Op: "look for the image of the lost answer", Attempt: attempt, Delay: c.lookupInterval, Err: cause})
		if sleep(limited, c.lookupInterval) != nil {
			if ctx.Err() != nil && lookupErr == nil {
				lookupErr = ctx.Err()
			}
			return nil, s.ambiguous(result, cause, c.lookupLimit, nil, lookupErr)
		}
	}
}

func (r *Submitted) recovered(image *Image, by string) *Submitted {
	r.ImageID, r.Recovered, r.RecoveredBy = image.ID, true, by
	return r
}

func (s *submission) ambiguous(
	result *Submitted, cause error, lookedFor time.Duration, candidates []string, lookupErr error,
) error {
	return &AmbiguousSubmitError{
		Name: s.name, MarkerTag: s.marker, Since: result.SubmittedAt, LookedFor: lookedFor,
		Candidates: candidates, LookupErr: lookupErr, Err: cause,
	}
}

// jobIDOf reads {"job_id": "…"}; one documented sample has a blank inside the quotes.
func jobIDOf(body []byte) string {
	m, err := decodeObject(body)
	if err != nil {
		return ""
	}
	id := text(m["job_id"])
	if _, isString := m["job_id"].(string); !isString || checkID("job", id) != nil {
		return ""
	}
	return id
}
