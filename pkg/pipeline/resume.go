// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
)

// ResumableError is a run that failed in a way that may pass. What it has done so far was kept: the same
// request goes on from there.
type ResumableError struct{ Err error }

func (e *ResumableError) Error() string { return e.Err.Error() }
func (e *ResumableError) Unwrap() error { return e.Err }

// Hint says how to go on.
func (e *ResumableError) Hint() string {
	const again = "What is there was kept: run the same command again, and it goes on from there."
	var h interface{ Hint() string }
	if obs.KindOf(e.Err) != obs.KindTransient && errors.As(e.Err, &h) && h.Hint() != "" {
		return h.Hint() + "\n  " + again
	}
	return again
}

// canPass tells whether the same request may succeed later, when the user has changed nothing but what
// has nothing to do with the upload: keys, rights, clocks, quotas.
func canPass(err error) bool {
	var oe *obs.Error
	if errors.As(err, &oe) {
		switch oe.Kind {
		case obs.KindTransient, obs.KindCanceled, obs.KindAuth, obs.KindClock, obs.KindQuota:
			return true
		}
		return false
	}
	switch ims.KindOf(err) {
	case ims.KindTransient, ims.KindThrottled, ims.KindAuth, ims.KindPermission, ims.KindQuota:
		return true
	}
	return false
}

// openJournal finds out what an earlier run of the same request has left, settles key and run id, and
// keeps other runs out.
func (i *Importer) openJournal(ctx context.Context, p *Plan) error {
	r := &p.Request
	generated := r.Key == ""
	p.ownKey = generated
	name := func() {
		if r.Key == "" {
			r.Key = DefaultKey(r.Source, p.RunID, p.Format)
		}
	}
	defer name()
	if r.StateDir == "" && r.State == nil || r.Offline || i.OBS == nil {
		return nil
	}
	id, err := p.Disk.Identity()
	if errors.Is(err, convert.ErrNoIdentity) {
		p.Warnings = append(p.Warnings, fmt.Sprintf("this upload can't be resumed, for nothing would show that the source changed: %v", convert.ErrNoIdentity))
		return nil
	}
	if err != nil {
		return err
	}
	t := target{Endpoint: i.OBS.Endpoint(), Bucket: r.Bucket, Key: r.Key, Generated: generated}
	source := absolute(r.Source)
	suffix := ""
	if disk := r.Open.ArchiveDisk; disk != "" {
		suffix = "\x00" + disk // another disk of the same archive is another import
	}
	var j *journal
	var found *record
	var broken error
	if r.State != nil {
		j, found, broken, err = openBucketJournal(ctx, i.OBS, *r.State, bucketName(r.Source, suffix, r.Image.Name, t))
	} else {
		j, found, broken, err = openJournal(r.StateDir, journalName(source+suffix, t))
	}
	var busy *BusyError
	switch {
	case errors.As(err, &busy):
		return err
	case err != nil && r.State != nil:
		return fmt.Errorf("open the journal in %s: %w", r.State, err)
	case err != nil:
		p.Warnings = append(p.Warnings, fmt.Sprintf("this upload can't be resumed, for the folder of journals can't be used: %v", err))
		return nil
	}
	p.journal = j
	p.begin = record{Path: source, Source: id, Plan: planned{Format: p.Format, AsIs: p.choice.asIs}}
	if p.Parts == nil && p.Format == FormatZVHD2 && !p.choice.asIs {
		p.begin.Plan.Level = r.CompressionLevel
	}
	switch {
	case broken != nil:
		p.Warnings = append(p.Warnings, fmt.Sprintf("the upload starts anew: the journal of an earlier run, %s, is of no use: %v; "+
			"`imsprep cleanup` finds what that run has left in the bucket", j.where(), broken))
	case found != nil:
		if why := p.unfit(found, t); why != "" {
			p.Warnings = append(p.Warnings, "the upload starts anew: "+why)
			if sameStore(found, t) {
				p.useless = found
			}
			break
		}
		p.resume, p.RunID, r.Key = found, found.RunID, found.Target.Key
		if changed := p.begin.Source.Changed(found.Source); changed != "" {
			p.copied = true
			p.Warnings = append(p.Warnings, fmt.Sprintf("the disk may be a copy of the earlier run's (%s): %s", changed, p.copyMeans()))
		}
	}
	name()
	p.begin.RunID, t.Key = p.RunID, r.Key
	p.begin.Target = t
	return nil
}

func sameStore(r *record, t target) bool {
	return r.Target.Endpoint == t.Endpoint && r.Target.Bucket == t.Bucket && r.Target.Generated == t.Generated &&
		(t.Generated || r.Target.Key == t.Key) && r.RunID != "" && r.Target.Key != ""
}

// unfit says why an earlier run can't be gone on with, "" if it can.
func (p *Plan) unfit(r *record, t target) string {
	changed := p.begin.Source.Changed(r.Source)
	if p.journal.others() {
		changed = p.begin.Source.Differs(r.Source)
	}
	switch {
	case p.Request.Restart:
		return "as was asked for"
	case !sameStore(r, t):
		return "the journal of the earlier run is of another target"
	case changed != "":
		return "the source has changed since the earlier run: " + changed
	case r.Abandoned != "":
		return "the earlier run failed for good: " + r.Abandoned
	case r.Plan.Format != p.begin.Plan.Format:
		return fmt.Sprintf("the earlier run sent %s, not %s", r.Plan.Format, p.begin.Plan.Format)
	case r.Plan != p.begin.Plan:
		return "the earlier run compressed in another way"
	case p.Format == FormatZVHD2 && !p.choice.asIs && r.Upload != nil && r.Header == nil:
		return "the journal of the earlier run lacks what the object began with"
	case r.Import.open() && r.Import.Request != p.fingerprint():
		what := "the earlier run asked for another image"
		if r.Import.JobID != "" {
			what += " (job " + r.Import.JobID + ")"
		}
		return what
	}
	return ""
}

// copyMeans says what a source that may be a copy means for what an earlier run has done.
func (p *Plan) copyMeans() string {
	if p.resume.Import.open() {
		return "the image is of what that run has read"
	}
	return "it is read from its beginning, and what the bucket has isn't sent again"
}

// absolute is the name of a source whatever the working folder is, through links.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return path
}

// fingerprint identifies what image is asked for.
func (p *Plan) fingerprint() string {
	if p.Path == "" {
		return ""
	}
	img := p.Request.Image
	// These follow from the rest.
	img.ImageURL, img.MarkerTag, img.MinDisk = "", ims.Tag{}, 0
	b, err := json.Marshal(struct {
		Path   Path
		Extras Extras
		Image  ims.QuickImport
	}{p.Path, p.Request.Extras, img})
	if err != nil {
		return "" // cannot happen: there are only texts and numbers in it
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// marker is the value of the image's tag: the run's id, and after a job that failed another one, so that
// its remains aren't taken for the image.
func (p *Plan) marker() string {
	if p.resume != nil && p.resume.Import != nil && p.resume.Import.Attempt > 0 {
		return fmt.Sprintf("%s-%d", p.RunID, p.resume.Import.Attempt+1)
	}
	return p.RunID
}

// isMarked tells whether an image is of the run that is gone on with.
func (p *Plan) isMarked(image *ims.Image) bool {
	return p.resume != nil && IsMarked(image, p.resume.RunID)
}

// IsMarked tells whether an image has the tag of a run, or of one of its repetitions after a job that failed.
func IsMarked(image *ims.Image, runID string) bool {
	return runID != "" && slices.ContainsFunc(image.Tags, func(tag string) bool {
		value, ok := strings.CutPrefix(tag, MarkerKey)
		value = strings.TrimLeft(value, "=.") // newer and older installations
		return ok && (value == runID || strings.HasPrefix(value, runID+"-"))
	})
}

// removeRemains deletes the images that failed jobs of an earlier run have left: their name is taken.
func (r *run) removeRemains(ctx context.Context) error {
	for _, id := range r.plan.remains {
		if err := r.IMS.DeleteImage(ctx, id); err != nil && ims.KindOf(err) != ims.KindNotFound {
			return fmt.Errorf("delete image %s, which an earlier job failed at: %w", id, err)
		}
		r.warn(fmt.Sprintf("image %s, which an earlier job failed at, was deleted", id))
	}
	return nil
}

// ofEarlierRun tells whether an object with that run's mark may be replaced or removed.
func (p *Plan) ofEarlierRun(runID string) bool {
	switch {
	case runID == "":
		return false
	case p.resume != nil:
		return runID == p.resume.RunID
	case p.useless != nil:
		return runID == p.useless.RunID && !p.useless.Import.open()
	}
	return false
}

// prepare removes what an earlier run has left that is of no use, and begins the journal.
func (r *run) prepare(ctx context.Context) error {
	p := r.plan
	if p.journal == nil {
		return nil
	}
	if p.useless != nil {
		// The journal stays until all is gone.
		if err := r.discard(ctx, p.useless); err != nil {
			return err
		}
	}
	first := p.begin
	if p.resume != nil {
		first = *p.resume
		first.Path = p.begin.Path
	}
	if !p.journal.begin(first, func(err error) {
		r.warn(fmt.Sprintf("how far the upload is can't be written down, so that it may be impossible to resume it: %v", err))
	}) && p.journal.others() {
		// Without it, a run on another machine would begin from nothing.
		return p.journal.fault()
	}
	if p.resume == nil {
		return nil
	}
	known := ""
	if p.resume.Upload != nil {
		known = p.resume.Upload.UploadID
	}
	// A run may have ended between beginning an upload and writing its id down.
	if p.resume.Target.Generated {
		r.sweep(ctx, known)
	} else if known == "" {
		list, err := r.OBS.ListUploads(ctx, p.Request.Bucket, p.Request.Key)
		for _, u := range list {
			if err == nil && u.Key == p.Request.Key {
				r.warn(fmt.Sprintf("there is an unfinished upload %s of obs://%s/%s, which may be the earlier run's: "+
					"`imsprep cleanup` shows and removes it", u.ID, p.Request.Bucket, u.Key))
			}
		}
	}
	return ctx.Err()
}

// sweep removes unfinished uploads of the run's own key but the known one. Listing takes a right of its
// own; without it they are left for cleaning up.
func (r *run) sweep(ctx context.Context, known string) {
	key := r.plan.Request.Key
	list, err := r.OBS.ListUploads(ctx, r.plan.Request.Bucket, key)
	if err != nil {
		return
	}
	for _, u := range list {
		if u.Key == key && u.ID != known {
			if err := r.OBS.AbortUpload(ctx, r.plan.Request.Bucket, key, u.ID); err != nil && obs.KindOf(err) != obs.KindNotFound && ctx.Err() == nil {
				r.warn(fmt.Sprintf("an unfinished upload of an earlier run could not be removed: %v", err))
			}
		}
	}
}

// discard removes what an earlier run has in the bucket. What the image service may be reading stays.
func (r *run) discard(ctx context.Context, old *record) error {
	bucket, key := old.Target.Bucket, old.Target.Key
	if i := old.Import; i.open() {
		done := false
		if i.JobID != "" && r.IMS != nil {
			job, err := r.IMS.Job(ctx, i.JobID)
			done = err == nil && job.Done()
		}
		if !done {
			if ctx.Err() == nil {
				r.warn(fmt.Sprintf("the image service may still read obs://%s/%s for an earlier run: it stays there", bucket, key))
			}
			return ctx.Err()
		}
	}
	state := obs.State{Bucket: bucket, Key: key, RunID: old.RunID}
	if old.Upload != nil {
		state = *old.Upload
		state.Bucket, state.Key, state.RunID = bucket, key, old.RunID
	}
	left := r.OBS.Discard(ctx, state)
	if old.Target.Generated {
		list, err := r.OBS.ListUploads(ctx, bucket, key)
		for _, u := range list {
			if err == nil && u.Key == key && r.OBS.AbortUpload(ctx, bucket, key, u.ID) != nil {
				left = append(left, "upload "+u.ID+" of "+key)
			}
		}
	}
	for _, beside := range []string{BitmapKey(key), AccountKey(key)} {
		if info, err := r.OBS.Stat(ctx, bucket, beside); err == nil && info.Metadata[obs.RunIDMetadata] == old.RunID {
			if err := r.OBS.Delete(ctx, bucket, beside); err != nil {
				left = append(left, beside)
			}
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if len(left) > 0 {
		r.warn("an earlier run left in the bucket what could not be removed: " + strings.Join(left, ", "))
	}
	return nil
}

// checkpoint hears of the upload's progress, for the journal.
func (r *run) checkpoint(d obs.Delta) {
	// Without the id on the disk nobody could take the upload up; and a stream's length is what shows that
	// it was completed.
	r.plan.journal.note(d.Begun != nil || d.Size > 0, func(rec *record) {
		if rec.Upload == nil {
			rec.Upload = &obs.State{}
		}
		rec.Upload.Apply(d)
		if d.Begun != nil {
			// From here on its parts are those that were read here.
			rec.Source = r.plan.begin.Source
		}
	})
	if d.Begun != nil && r.plan.Parts != nil {
		var there int64
		for _, p := range d.Begun.Parts {
			there += p.Size
		}
		r.started(there)
	}
}

// started tells once that the upload begins, and how much of it was there.
func (r *run) started(there int64) {
	if r.begun.Swap(true) {
		return
	}
	total := r.plan.Disk.Size()
	r.resumed.Store(there)
	e := Event{Phase: PhaseUpload, State: StateStart, Unit: UnitBytes, Total: total, Done: there, Resumed: there}
	switch {
	case r.anew.Load():
	case r.plan.copied:
		e.Note = "resuming; what the bucket has is compared with the disk"
	case r.plan.resume != nil && there == 0:
		e.Note = "resuming; no part of it was finished"
	}
	r.event(e)
}

// remembered returns the earlier run's upload with those parts whose notes learn takes up; nil for none.
// Others are read again, and sent only if the server doesn't have them.
func (r *run) remembered(learn func(obs.PartState) error) *obs.State {
	if r.plan.resume == nil || r.plan.resume.Upload == nil {
		return nil
	}
	s := *r.plan.resume.Upload
	if r.plan.copied {
		s.Parts = nil
		return &s
	}
	s.Parts = slices.DeleteFunc(slices.Clone(s.Parts), func(p obs.PartState) bool { return learn(p) != nil })
	return &s
}

// restError is what went wrong after the object was there.
type restError struct{ error }

func (e restError) Unwrap() error { return e.error }

// uploadFailed decides what becomes of an upload that didn't end well.
func (r *run) uploadFailed(ctx context.Context, err error) error {
	j := r.plan.journal
	var rest restError
	if errors.As(err, &rest) {
		return r.afterUpload(ctx, PhaseUpload, rest.error)
	}
	var oe *obs.Error
	isStore := errors.As(err, &oe)
	kept := isStore && oe.Kept != ""
	if kept {
		if j.flush(); !j.knows(oe.Kept) {
			// Nobody could find it again.
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
			defer cancel()
			if aerr := r.OBS.AbortUpload(clean, r.plan.Request.Bucket, r.plan.Request.Key, oe.Kept); aerr != nil && obs.KindOf(aerr) != obs.KindNotFound {
				oe.Left = append(oe.Left, "upload "+oe.Kept+" of "+r.plan.Request.Key)
			}
			kept = false
		}
	}
	// Before the upload has an id there is nothing to keep, but perhaps something to look for.
	early := !kept && isStore && canPass(err) && ctx.Err() == nil && j.remembers() && !j.hasUpload()
	switch {
	case kept || early:
		if ctx.Err() != nil {
			return &InterruptedError{Phase: PhaseUpload, Err: ctx.Err(), Next: "What is there was kept: run the same command again, and it goes on from there."}
		}
		return &ResumableError{err}
	case isStore && len(oe.Left) > 0 && j.remembers():
		j.note(true, func(rec *record) { rec.Abandoned = oe.Op + ": " + oe.Kind.String() })
	default:
		j.remove()
	}
	if ctx.Err() != nil {
		return &InterruptedError{Phase: PhaseUpload, Err: ctx.Err(), Next: afterAbort(err)}
	}
	return err
}

// afterUpload decides what becomes of the objects of a run that didn't end well before the service knew
// of it: they are kept for the next run if that can succeed, else removed.
func (r *run) afterUpload(ctx context.Context, phase Phase, err error) error {
	j := r.plan.journal
	if j.flush(); j.remembers() && (ctx.Err() != nil || canPass(err)) {
		if ctx.Err() != nil {
			return &InterruptedError{Phase: phase, Err: ctx.Err(), Next: "The object was kept: run the same command again, and it goes on from there."}
		}
		return &ResumableError{err}
	}
	removed, err := r.abandon(ctx, phase, err)
	if removed {
		j.remove()
	} else {
		j.note(true, func(rec *record) { rec.Abandoned = "its objects could not be removed" })
	}
	return err
}

// asking notes that the import call is about to be made. From here on the service may have the import.
func (r *run) asking(up *UploadResult) {
	r.plan.journal.note(true, func(rec *record) {
		attempt := 0
		if rec.Import != nil {
			attempt = rec.Import.Attempt
		}
		rec.Import = &imported{Request: r.plan.fingerprint(), Attempt: attempt, Asked: time.Now().UTC(), Upload: up}
	})
}

// asked notes what the service answered; nil is that it certainly took nothing.
func (r *run) asked(sub *ims.Submitted) {
	r.plan.journal.note(true, func(rec *record) {
		if rec.Import == nil {
			return
		}
		if sub == nil {
			rec.Import.Asked = time.Time{}
			return
		}
		rec.Import.JobID, rec.Import.ImageID, rec.Import.Since = sub.JobID, sub.ImageID, sub.SubmittedAt
	})
}

// jobFailed notes that another import must be asked for.
func (r *run) jobFailed() {
	r.plan.journal.note(true, func(rec *record) {
		if rec.Import != nil {
			rec.Import = &imported{Attempt: rec.Import.Attempt + 1, Upload: rec.Import.Upload}
		}
	})
}

// follow goes on with an import that an earlier run has asked for. It returns nil if the service doesn't
// know of it.
func (r *run) follow(ctx context.Context) (*UploadResult, *ims.Submitted, error) {
	p := r.plan
	i := p.resume.Import
	up := i.Upload
	if up == nil {
		up = &UploadResult{Bucket: p.Request.Bucket, Key: p.Request.Key, Format: p.Format, VirtualSize: p.Source.VirtualSize}
	}
	if i.JobID != "" || i.ImageID != "" {
		r.event(Event{Phase: PhaseSubmit, State: StateDone, Note: "an earlier run did that"})
		return up, &ims.Submitted{JobID: i.JobID, ImageID: i.ImageID, SubmittedAt: i.Since}, nil
	}
	r.event(Event{Phase: PhaseSubmit, State: StateStart, Note: "an earlier run ended while it asked for the import; looking for its image"})
	sub, err := r.IMS.RecoverImport(ctx, p.Request.Image.Name, p.Request.Image.MarkerTag, i.Asked)
	if sub == nil && err == nil && p.journal.others() {
		// By the other machine's clock it may have been just now.
		sub, err = r.IMS.RecoverImport(ctx, p.Request.Image.Name, p.Request.Image.MarkerTag, time.Now())
	}
	switch {
	case ctx.Err() != nil:
		return nil, nil, &InterruptedError{Phase: PhaseSubmit, Err: ctx.Err(), Next: "An earlier run may have started the import: run the same command again to find out."}
	case err != nil:
		return nil, nil, &ResumableError{err}
	case sub == nil:
		r.asked(nil)
		return nil, nil, nil
	}
	r.asked(sub)
	r.event(Event{Phase: PhaseSubmit, State: StateDone, Note: fmt.Sprintf("found image %s by its %s", sub.ImageID, sub.RecoveredBy)})
	return up, sub, nil
}
