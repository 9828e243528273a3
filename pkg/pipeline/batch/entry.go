// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// work is one image being imported.
type work struct {
	*Runner
	at   int
	i    *Image
	slot *slot

	saving   sync.Mutex // held while the state is written, so that the newest is written last
	mu       sync.Mutex
	s        *State
	dirty    bool
	wake     chan struct{}  // something worth writing at once has happened
	phase    time.Time      // when the phase began
	furthest int64          // most that was ever done of the upload, in bytes
	begun    int64          // what was there when the upload began
	last     pipeline.Phase // that the attempt got to
}

// one brings one image as far as it goes. It returns errBusy if another process has it, and another error if the
// state can't be locked; everything else is in the image's state.
func (r *Runner) one(ctx context.Context, at int, slot *slot) error {
	i := &r.Plan.Images[at]
	w := &work{Runner: r, at: at, i: i, slot: slot, wake: make(chan struct{}, 1)}
	switch {
	case i.Skip:
		w.tell(Event{Status: StatusSkipped})
		return nil
	case i.Refused != "":
		w.tell(Event{Status: StatusRefused, Failure: refusedByPlan(i)})
		return nil
	}
	held, unlock, err := r.Store.Lock(ctx, i.Name)
	if err != nil {
		var busy *BusyError
		if errors.As(err, &busy) {
			return errBusy
		}
		// Without a state others could work on it, too, and the next run would know nothing.
		w.tell(Event{Status: StatusFailed, Failure: w.failure(err)})
		return err
	}
	defer unlock()
	w.load(held)
	if w.s.Status == StatusDone && w.stillThere(held) {
		w.tell(Event{Status: StatusDone, ImageID: w.s.Result.ImageID, Note: "done before"})
		return nil
	}
	stop := w.saveNowAndThen(held)
	defer stop()
	w.run(held)
	return nil
}

// refusedByPlan is the failure of an image that the plan says would be refused.
func refusedByPlan(i *Image) *Failure {
	return &Failure{Kind: pipeline.KindRefused, Message: i.Refused,
		Hint: "Remove the line refused: from the plan when that is mended; or write skip: true to leave the image out."}
}

func (w *work) tell(e Event) {
	e.Index, e.Name, e.Machine = w.at, w.i.Name, w.i.Machine
	w.event(e)
}

// load takes up what is known of the image.
func (w *work) load(ctx context.Context) {
	s, err := w.Store.Load(ctx, w.i.Name)
	if err != nil {
		w.tell(Event{Note: fmt.Sprintf("what was known of it is of no use, so that it begins anew: %v", err)})
	}
	if s == nil {
		s = &State{Name: w.i.Name, Batch: w.Plan.Key(), Status: StatusPending}
	}
	w.s = s
}

// stillThere tells whether the image of an earlier run still exists.
func (w *work) stillThere(ctx context.Context) bool {
	if w.s.Entry != w.i.Fingerprint(w.Plan) {
		w.tell(Event{Note: fmt.Sprintf("the plan says something else of it than when image %s was made; that is left as it is: "+
			"delete it, or give the new one another name, to import again", w.s.Result.ImageID)})
	}
	if w.Importer.IMS == nil {
		return true
	}
	_, err := w.Importer.IMS.Image(ctx, w.s.Result.ImageID)
	switch {
	case err == nil:
		return true
	case ims.KindOf(err) == ims.KindNotFound:
		w.tell(Event{Note: fmt.Sprintf("image %s is gone; it is imported again", w.s.Result.ImageID)})
		w.s = &State{Name: w.s.Name, Batch: w.s.Batch, Status: StatusPending, Runs: w.s.Runs}
		return false
	}
	w.tell(Event{Note: fmt.Sprintf("whether image %s still exists couldn't be checked: %v", w.s.Result.ImageID, err)})
	return true
}

// run tries until the image is done, or it makes no sense to go on.
func (w *work) run(ctx context.Context) {
	w.begin()
	for n := 1; ; n++ {
		before := w.most()
		w.mu.Lock()
		w.last = ""
		w.mu.Unlock()
		w.set(func(s *State) { s.Status, s.Failure, s.Next = StatusRunning, nil, time.Time{}; s.Attempts++ })
		w.tell(Event{Status: StatusRunning, Attempt: w.attempts()})
		res, err := w.attempt(ctx)
		if err == nil {
			w.end(ctx, StatusDone, res, nil)
			return
		}
		if w.most() > before {
			n = 1 // it gets on
		}
		if ctx.Err() != nil || !again(err) || n >= w.Plan.Limits.Attempts {
			w.end(ctx, statusOf(ctx, err), nil, err)
			return
		}
		pause := w.pause(n)
		f := w.failure(err)
		w.set(func(s *State) { s.Status, s.Failure, s.Next = StatusWaiting, f, time.Now().Add(pause).UTC() })
		w.tell(Event{Status: StatusWaiting, Failure: f, Attempt: w.attempts(), Note: fmt.Sprintf("trying again in %v", pause.Round(time.Second))})
		w.slot.release() // others may use the time
		if !sleep(ctx, pause) || w.slot.acquire(ctx) != nil {
			w.end(ctx, StatusInterrupted, nil, &pipeline.InterruptedError{Phase: f.Phase, Err: ctx.Err(), Next: "The next run tries it again."})
			return
		}
	}
}

func statusOf(ctx context.Context, err error) Status {
	switch kind := pipeline.KindOf(err); {
	case ctx.Err() != nil, kind == pipeline.KindInterrupted:
		return StatusInterrupted
	case kind == pipeline.KindRefused:
		return StatusRefused
	}
	return StatusFailed
}

func (w *work) begin() {
	now := time.Now().UTC()
	w.set(func(s *State) {
		if s.First.IsZero() {
			s.First = now
		}
		s.Started, s.Ended, s.Worker, s.Attempts, s.Warnings = now, time.Time{}, w.Worker, 0, nil
		s.Entry = w.i.Fingerprint(w.Plan)
		s.Runs++
	})
}

func (w *work) most() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.furthest
}

func (w *work) attempts() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.s.Attempts
}

// set changes the state; it is written soon.
func (w *work) set(change func(*State)) {
	w.mu.Lock()
	change(w.s)
	w.dirty = true
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// attempt imports the image once.
func (w *work) attempt(ctx context.Context) (*pipeline.Result, error) {
	req, err := w.request(w.i)
	if err != nil {
		return nil, err
	}
	imp := w.Importer
	imp.Events = w.heard
	imp.JobSlot = func(ctx context.Context) (func(), error) {
		if err := w.jobs.Acquire(ctx, 1); err != nil {
			return nil, err
		}
		return sync.OnceFunc(func() { w.jobs.Release(1) }), nil
	}
	plan, err := imp.Plan(ctx, req)
	if err == nil {
		defer plan.Close()
	}
	if err != nil || !plan.Resumes() {
		if res := w.madeBefore(ctx); res != nil {
			return res, nil
		}
	}
	if err != nil {
		return nil, err
	}
	w.opened(plan)
	// Without the run's id in the state a run that dies when all is done would leave an image that the next
	// one takes for somebody else's.
	if err := w.save(ctx); err != nil {
		return nil, err
	}
	res, err := imp.Run(ctx, plan)
	w.phaseEnds("")
	return res, err
}

// opened notes what the disk is.
func (w *work) opened(plan *pipeline.Plan) {
	src := plan.Source
	warnings := slices.Clone(plan.Warnings)
	if was := int64(w.i.VirtualSize); was > 0 && was != src.VirtualSize {
		warnings = append(warnings, fmt.Sprintf("the disk has %d bytes; it had %d when the plan was made", src.VirtualSize, was))
	}
	w.set(func(s *State) {
		s.Disk = &DiskFacts{Format: src.Format, Variant: src.Variant, VirtualSize: src.VirtualSize, DataSize: src.MappedSize}
		s.RunID, s.Warnings = plan.RunID, warnings
	})
	for _, warning := range warnings {
		w.tell(Event{Note: warning})
	}
}

// madeBefore looks whether an earlier run made the image and died before it could say so. By then the
// import's own journal is gone, and nothing is left in the bucket.
func (w *work) madeBefore(ctx context.Context) *pipeline.Result {
	if w.s.RunID == "" || w.Importer.IMS == nil {
		return nil
	}
	images, err := w.Importer.IMS.ListImages(ctx, ims.ImageFilter{Name: w.i.Name, ImageType: "private", Status: "active"})
	if err != nil {
		return nil // planning asks, too, and tells
	}
	for _, image := range images {
		if pipeline.IsMarked(&image, w.s.RunID) {
			return &pipeline.Result{ImageID: image.ID, Name: image.Name, Status: image.Status, RunID: w.s.RunID, MinDisk: int(image.MinDisk),
				Resumed: true, JobID: w.s.JobID,
				Warnings: []string{"an earlier run made the image and ended before it could note what it had sent"}}
		}
	}
	return nil
}

// heard passes on what the import tells, and notes it.
func (w *work) heard(e pipeline.Event) {
	rate := 0.0
	switch e.State {
	case pipeline.StateStart:
		w.phaseEnds(e.Phase)
		w.mu.Lock()
		w.begun = e.Resumed
		w.mu.Unlock()
	case pipeline.StateDone:
		if e.Phase == pipeline.PhaseSubmit {
			if id, ok := strings.CutPrefix(e.Note, "job "); ok {
				w.set(func(s *State) { s.JobID = id })
			}
			w.slot.release() // the service works now; the line is free for another disk
		}
	case pipeline.StateWarning:
		w.set(func(s *State) { s.Warnings = append(s.Warnings, e.Note) })
	}
	if e.State != pipeline.StateWarning {
		w.mu.Lock()
		w.dirty, w.last = true, e.Phase
		if e.Phase == pipeline.PhaseUpload {
			w.furthest = max(w.furthest, e.Done)
			if d := time.Since(w.phase).Seconds(); d > 0 {
				rate = float64(max(0, e.Done-w.begun)) / d
			}
		}
		w.s.Phase = e.Phase
		w.s.Progress = &Progress{Unit: e.Unit, Done: e.Done, Total: e.Total, Sent: e.Sent, Copied: e.Copied, Rate: rate}
		w.mu.Unlock()
	}
	w.tell(Event{Import: &e, Rate: rate})
}

// phaseEnds counts the time of the phase that was, when the next begins.
func (w *work) phaseEnds(next pipeline.Phase) {
	now := time.Now()
	w.mu.Lock()
	if !w.phase.IsZero() {
		w.s.addTime(w.s.Phase, now.Sub(w.phase))
	}
	w.phase = now
	if next == "" {
		w.phase = time.Time{}
	}
	w.s.Phase = next
	w.mu.Unlock()
	w.set(func(*State) {})
}

// end notes how it went.
func (w *work) end(ctx context.Context, status Status, res *pipeline.Result, err error) {
	var f *Failure
	if err != nil {
		f = w.failure(err)
		if hopeless(err) {
			w.keysMu.Lock()
			w.keys = err
			w.keysMu.Unlock()
		}
	}
	w.set(func(s *State) {
		s.Status, s.Failure, s.Progress, s.Phase, s.Next = status, f, nil, "", time.Time{}
		s.Ended = time.Now().UTC()
		if res != nil {
			s.Result, s.JobID = res, res.JobID
			for _, warning := range res.Warnings {
				if !slices.Contains(s.Warnings, warning) {
					s.Warnings = append(s.Warnings, warning)
				}
			}
		}
	})
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSave)
	defer cancel()
	if serr := w.save(last); serr != nil {
		w.tell(Event{Note: serr.Error()})
	}
	e := Event{Status: status, Failure: f, Attempt: w.attempts()}
	if res != nil {
		e.ImageID, e.Result = res.ImageID, res
	}
	w.tell(e)
}

// failure says what went wrong, for people who read it later.
func (w *work) failure(err error) *Failure {
	f := &Failure{Kind: pipeline.KindOf(err), Message: err.Error(), At: time.Now().UTC()}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		f.Hint = h.Hint()
	}
	if w.Hint != nil {
		if more := w.Hint(err); more != "" && more != f.Hint {
			f.Hint = strings.TrimPrefix(f.Hint+"\n"+more, "\n")
		}
	}
	if f.Hint == "" {
		f.Hint = whatToDo(err, f.Kind)
	}
	w.mu.Lock()
	f.Phase = w.last
	w.mu.Unlock()
	return f
}

// whatToDo is said of an error that says nothing itself.
func whatToDo(err error, kind pipeline.ErrorKind) string {
	var refused *convert.RefusedError
	var check *pipeline.CheckError
	var oe *obs.Error
	switch {
	case errors.As(err, &check) && check.Remedy != "":
		return "" // it is in the message
	case errors.As(err, &refused) && refused.Remedy != "":
		return ""
	case kind == pipeline.KindRefused:
		return "Get the disk again from where it came, or export it anew; `imsprep info` tells whether it is whole."
	case kind == pipeline.KindTransient:
		return "The same command tries it again and goes on from what is there."
	case kind == pipeline.KindUsage:
		return "Correct the image's entry in the plan, and give the same command again."
	case kind == pipeline.KindAuth, errors.As(err, &oe) && oe.Kind == obs.KindAuth:
		return "Check keys and rights (`imsprep doctor`), and give the same command again."
	case kind == pipeline.KindJob:
		return "The object was kept; the same command asks for another import of it."
	}
	return ""
}

// save writes the state.
func (w *work) save(ctx context.Context) error {
	w.saving.Lock()
	defer w.saving.Unlock()
	w.mu.Lock()
	copied := *w.s
	copied.Phases, copied.Warnings = slices.Clone(w.s.Phases), slices.Clone(w.s.Warnings)
	w.dirty = false
	w.mu.Unlock()
	return w.Store.Save(ctx, &copied)
}

// saveNowAndThen writes the state while the image is at work, so that others see how far it is.
func (w *work) saveNowAndThen(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(saveEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.wake:
			case <-tick.C:
			}
			w.mu.Lock()
			dirty := w.dirty
			w.mu.Unlock()
			if dirty && ctx.Err() == nil {
				_ = w.save(ctx) // the last one, in end, is told when it fails
			}
		}
	}()
	return func() { cancel(); <-done }
}

// Status is what is known of an image of the plan, by its index: what is in its state, what the plan says,
// and whether somebody is at work on it. The state is never nil without an error.
func (r *Runner) Status(ctx context.Context, at int) (*State, error) {
	return r.Plan.Status(ctx, r.Store, at)
}

// Status is [Runner.Status] without a runner.
func (p *Plan) Status(ctx context.Context, store Store, at int) (*State, error) {
	i := &p.Images[at]
	fresh := &State{Name: i.Name, Batch: p.Key(), Status: StatusPending}
	s, err := store.Load(ctx, i.Name)
	if err != nil {
		return nil, err
	}
	if s == nil {
		s = fresh
	}
	switch s.Status {
	case StatusRunning, StatusWaiting:
		held, err := store.Held(ctx, i.Name)
		if err != nil {
			return nil, err
		}
		if !held {
			s.Status, s.Progress, s.Next = StatusInterrupted, nil, time.Time{}
			if s.Failure == nil {
				s.Failure = &Failure{Kind: pipeline.KindInterrupted, Message: "the process that was at work on it ended without a word",
					Hint: "The next run goes on from what is there.", Phase: s.Phase, At: s.Updated}
			}
		}
	case StatusDone:
	default:
		switch {
		case i.Skip:
			s.Status, s.Failure = StatusSkipped, nil
		case i.Refused != "":
			s.Status, s.Failure = StatusRefused, refusedByPlan(i)
		}
	}
	return s, nil
}
