// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

const (
	// firstPause and longestPause are how long an image waits after trouble that may pass: twice as long
	// each time, in between.
	firstPause   = 5 * time.Second
	longestPause = 5 * time.Minute
	// saveEvery is how often an image's progress is written down, for who looks at it from elsewhere.
	saveEvery = 2 * time.Second
	// lookEvery is how often it is looked whether another process is through with an image.
	lookEvery = time.Second
	// lastSave bounds the writing of a state when the run was told to stop.
	lastSave = 5 * time.Second
)

// Runner carries out a plan. All fields but Plan, Importer and Store may be left empty.
type Runner struct {
	Plan *Plan
	// Importer has the clients; its Events and JobSlot are the runner's own. With a client of object storage
	// that is limited in its rate all images share that limit.
	Importer pipeline.Importer
	Store    Store
	// Base is what every request has from the environment: state folder, confirmed layouts, a bucket.
	Base pipeline.Request
	// Layout finds a bitmap layout by its name.
	Layout func(name string) (bitmap.Layout, error)
	// Select tells which images are meant; nil is all.
	Select func(*Image) bool
	// Events is told what happens, one call at a time.
	Events func(Event)
	// Hint says what to do about an error, beside what the error itself knows.
	Hint func(error) string
	// Worker names this process for people.
	Worker string
	// Poll replaces the plan's interval between questions after jobs.
	Poll time.Duration
	// Pause replaces how long an image waits before it is tried again for the nth time in a row.
	Pause func(n int) time.Duration

	mu      sync.Mutex // events one at a time
	uploads *semaphore.Weighted
	jobs    *semaphore.Weighted
	began   time.Time

	keysMu sync.Mutex
	keys   error // why no more images are begun
}

// Event is something that happened to an image, or, without a name, to the whole batch.
type Event struct {
	Time    time.Time `json:"time"`
	Index   int       `json:"index"` // of the image in the plan, from 0; -1 for the batch
	Name    string    `json:"image,omitempty"`
	Machine string    `json:"machine,omitempty"`
	// Status is set when the image's status has changed.
	Status  Status `json:"status,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
	// Import is what the import itself tells; nil else.
	Import *pipeline.Event `json:"import,omitempty"`
	Rate   float64         `json:"rate,omitempty"` // bytes of the disk a second, of Import
	Note   string          `json:"note,omitempty"`
	// Failure comes with StatusFailed, StatusRefused, StatusWaiting and StatusInterrupted.
	Failure *Failure `json:"failure,omitempty"`
	ImageID string   `json:"image_id,omitempty"`
	// Result comes with StatusDone of an image that was made now.
	Result *pipeline.Result `json:"-"`
}

// FailedError says that a batch has ended, and that some of its images failed.
type FailedError struct {
	Failed, Refused, Of int
	Err                 error // what kept states from being written, nil if nothing did
}

func (e *FailedError) Error() string {
	s := e.count()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause that they have in common.
func (e *FailedError) Unwrap() error { return e.Err }

func (e *FailedError) count() string {
	switch {
	case e.Refused == 0:
		return fmt.Sprintf("%d of %d images failed", e.Failed, e.Of)
	case e.Failed == 0:
		return fmt.Sprintf("%d of %d images were refused", e.Refused, e.Of)
	}
	return fmt.Sprintf("%d of %d images failed, %d were refused", e.Failed, e.Of, e.Refused)
}

// Hint says what to do.
func (e *FailedError) Hint() string {
	return "Mend what the report names and give the same command again: what is done stays done, the rest is tried again."
}

// unfinished are images that were never begun, since the cloud doesn't accept the keys.
type unfinishedError struct {
	left int
	err  error
}

func (e *unfinishedError) Error() string {
	return fmt.Sprintf("%d images were not begun: the cloud doesn't accept the keys: %v", e.left, e.err)
}
func (e *unfinishedError) Unwrap() error { return e.err }

func (r *Runner) event(e Event) {
	if r.Events == nil {
		return
	}
	e.Time = time.Now().UTC()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Events(e)
}

// Run imports what isn't done yet and returns when everything has ended well or badly. The outcome is in
// the states; the error is a *[FailedError] when images failed or were refused, a
// *[pipeline.InterruptedError] when ctx ended, or what keeps every image from being imported.
func (r *Runner) Run(ctx context.Context) error {
	r.start()
	selected := r.selected()
	if err := r.askFirst(ctx, selected); err != nil {
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var busy []int
	var lost []error // what keeps states from being kept
	left := 0
	for n, at := range selected {
		if err := r.uploads.Acquire(ctx, 1); err != nil {
			break
		}
		if r.noKeys() != nil {
			r.uploads.Release(1)
			left = len(selected) - n
			break
		}
		slot := &slot{r.uploads, true}
		wg.Go(func() {
			defer slot.release()
			err := r.one(ctx, at, slot)
			mu.Lock()
			defer mu.Unlock()
			if err == errBusy {
				busy = append(busy, at)
			} else if err != nil {
				lost = append(lost, err)
			}
		})
	}
	wg.Wait()
	for _, at := range busy {
		if ctx.Err() != nil || r.noKeys() != nil {
			break
		}
		r.afterOther(ctx, at)
	}
	err := r.outcome(ctx, selected, left, true)
	var failed *FailedError
	if len(lost) > 0 && errors.As(err, &failed) {
		failed.Err = lost[0]
	}
	return err
}

// RunOne imports one image of the plan, by its index from 0, as [Runner.Run] does. It fails with a
// *[BusyError] when another process is at work on it, and with a *[FailedError] when it fails. nil means that
// it is done, or left out on purpose.
func (r *Runner) RunOne(ctx context.Context, index int) error {
	if index < 0 || index >= len(r.Plan.Images) {
		return &pipeline.CheckError{What: fmt.Sprintf("the plan has no image %d: its %d images count from 0", index, len(r.Plan.Images)), Usage: true}
	}
	r.start()
	if err := r.uploads.Acquire(ctx, 1); err != nil {
		return err
	}
	slot := &slot{r.uploads, true}
	defer slot.release()
	switch err := r.one(ctx, index, slot); {
	case err == errBusy:
		return &BusyError{Name: r.Plan.Images[index].Name}
	case err != nil && ctx.Err() == nil:
		return err
	}
	if err := r.outcome(ctx, []int{index}, 0, false); err != nil {
		return err
	}
	s, err := r.Status(ctx, index)
	switch {
	case err != nil:
		return err
	case s.Status == StatusDone, s.Status == StatusSkipped:
		return nil
	}
	// It was taken over by another process.
	return &BusyError{Name: s.Name, Worker: s.Worker}
}

func (r *Runner) start() {
	r.began = time.Now()
	r.uploads = semaphore.NewWeighted(int64(r.Plan.Limits.Images))
	r.jobs = semaphore.NewWeighted(int64(r.Plan.Limits.Jobs))
}

// selected lists the images that are meant, in the plan's order.
func (r *Runner) selected() []int {
	var list []int
	for n := range r.Plan.Images {
		if r.Select == nil || r.Select(&r.Plan.Images[n]) {
			list = append(list, n)
		}
	}
	return list
}

// outcome looks at what became of the images. With all, none may be left undone.
func (r *Runner) outcome(ctx context.Context, selected []int, left int, all bool) error {
	failed := &FailedError{Of: len(selected)}
	for _, at := range selected {
		switch s, err := r.Status(context.WithoutCancel(ctx), at); {
		case err != nil:
			failed.Failed++
		case s.Status == StatusRefused:
			failed.Refused++
		case s.Status == StatusFailed, all && s.Status != StatusDone && s.Status != StatusSkipped:
			failed.Failed++
		}
	}
	switch {
	case ctx.Err() != nil:
		return &pipeline.InterruptedError{Err: ctx.Err(), Next: "What is there was kept: give the same command again, and it goes on from there."}
	case left > 0:
		return &unfinishedError{left, r.noKeys()}
	case failed.Failed+failed.Refused > 0:
		return failed
	}
	return nil
}

// askFirst asks the cloud once what would fail for every image.
func (r *Runner) askFirst(ctx context.Context, selected []int) error {
	if r.Importer.IMS == nil {
		return nil
	}
	used, quota, err := r.Importer.IMS.Quota(ctx)
	var check *pipeline.CheckError // there are no keys at all
	switch {
	case ctx.Err() != nil:
		return &pipeline.InterruptedError{Err: ctx.Err(), Next: "Nothing was begun; give the same command again."}
	case hopeless(err), errors.As(err, &check):
		return err
	case err != nil || quota <= 0:
		return nil // each import asks again
	}
	todo := 0
	for _, at := range selected {
		if i := &r.Plan.Images[at]; i.Skip || i.Refused != "" {
			continue
		}
		if s, err := r.Store.Load(ctx, r.Plan.Images[at].Name); err != nil || s == nil || s.Status != StatusDone {
			todo++
		}
	}
	if free := max(0, quota-used); free < todo {
		r.event(Event{Index: -1, Note: fmt.Sprintf("the quota has room for %d more private images, and %d are to be made", free, todo)})
	}
	return nil
}

// hopeless tells whether an error means that nothing will work with these keys. A right that is missing
// may be missing for one bucket only.
func hopeless(err error) bool {
	var oe *obs.Error
	if errors.As(err, &oe) {
		return oe.Kind == obs.KindClock || oe.Kind == obs.KindAuth && oe.Code != "AccessDenied"
	}
	return ims.KindOf(err) == ims.KindAuth
}

func (r *Runner) noKeys() error {
	r.keysMu.Lock()
	defer r.keysMu.Unlock()
	return r.keys
}

// slot is the right to upload.
type slot struct {
	of   *semaphore.Weighted
	held bool
}

func (s *slot) release() {
	if s.held {
		s.held = false
		s.of.Release(1)
	}
}

func (s *slot) acquire(ctx context.Context) error {
	if s.held {
		return nil
	}
	err := s.of.Acquire(ctx, 1)
	s.held = err == nil
	return err
}

var errBusy = errors.New("another process has it")

// afterOther waits until another process is through with an image, and does what that left undone.
func (r *Runner) afterOther(ctx context.Context, at int) {
	i := &r.Plan.Images[at]
	r.event(Event{Index: at, Name: i.Name, Machine: i.Machine, Note: "another process is at work on it; waiting for that"})
	for {
		if held, err := r.Store.Held(ctx, i.Name); err == nil && !held {
			s, err := r.Store.Load(ctx, i.Name)
			if err == nil && s != nil && s.Status.Bad() && s.Ended.After(r.began) {
				r.event(Event{Index: at, Name: i.Name, Machine: i.Machine, Status: s.Status, Failure: s.Failure, Note: "in another process"})
				return // it has had its tries
			}
			if r.uploads.Acquire(ctx, 1) != nil {
				return
			}
			slot := &slot{r.uploads, true}
			err = r.one(ctx, at, slot)
			slot.release()
			if err != errBusy {
				return
			}
		}
		if !sleep(ctx, lookEvery) {
			return
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// pause is how long to wait before the nth repetition.
func (r *Runner) pause(n int) time.Duration {
	if r.Pause != nil {
		return r.Pause(n)
	}
	d := min(firstPause<<min(n-1, 16), longestPause)
	// Those that failed together shouldn't come back together.
	return d*4/5 + rand.N(d*2/5)
}

// again tells whether the same request may succeed soon, without anybody doing anything.
func again(err error) bool {
	switch pipeline.KindOf(err) {
	case pipeline.KindTransient:
		return true
	case pipeline.KindJob:
		return ims.KindOf(err).Temporary()
	}
	return false
}
