// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
)

// cleanupLimit bounds the deleting of objects when a run ends badly: it happens after an interrupt,
// and nobody waits long for a program that was told to stop.
const cleanupLimit = 1500 * time.Millisecond

// UploadResult is what an upload did.
type UploadResult struct {
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
	Format Format `json:"format"`
	ETag   string `json:"etag"`

	VirtualSize int64 `json:"virtual_size"`           // bytes of the disk
	ObjectSize  int64 `json:"object_size"`            // bytes; of RAW the same
	DataBytes   int64 `json:"data_bytes"`             // bytes in blocks that aren't all zero
	BytesRead   int64 `json:"bytes_read"`             // bytes of the disk read and decoded
	BytesSent   int64 `json:"bytes_sent"`             // body bytes sent, with the zero object's and those of repeated parts
	BytesCopied int64 `json:"bytes_copied"`           // zeros made on the server by copying, and what was reused
	BytesReused int64 `json:"bytes_reused,omitempty"` // copied on the server from the object to reuse

	PartsSent   int `json:"parts_sent"`
	PartsCopied int `json:"parts_copied"`
	// PartsComposed were made of pieces, some sent and some copied.
	PartsComposed int `json:"parts_composed,omitempty"`
	Requests      int `json:"requests"`
	Retries       int `json:"retries"`

	// Concurrency tells how many requests were under way at the same time; absent when the bucket had no part
	// in it.
	Concurrency *obs.ConcurrencyResult `json:"concurrency,omitempty"`

	// PartsResumed and BytesResumed were there from an earlier run. They are of the object.
	PartsResumed int   `json:"parts_resumed,omitempty"`
	BytesResumed int64 `json:"bytes_resumed,omitempty"`

	Bitmap *BitmapResult `json:"bitmap,omitempty"` // of RAW

	// ContentDigest is that of what was sent, and SHA256, if asked for, its plain SHA-256 in hexadecimal: of
	// the disk, or of the file where that is sent as it is.
	ContentDigest *convert.Digest `json:"content_digest,omitempty"`
	SHA256        string          `json:"sha256,omitempty"`
	// Verified says that the object was read back and holds what was sent.
	Verified bool `json:"verified,omitempty"`
	// Account is the key of the object that tells of this one, if it stays.
	Account string `json:"account,omitempty"`

	blocks  *bitmap.Map      // what the bitmap says
	scanner *convert.Scanner // of RAW: what read the disk
}

// BitmapResult is the bitmap that stands beside the object.
type BitmapResult struct {
	Key        string `json:"key"`
	Layout     string `json:"layout"`
	BlockSize  int64  `json:"block_size"` // bytes
	Blocks     int64  `json:"blocks"`
	DataBlocks int64  `json:"data_blocks"`
}

// Result is a finished import.
type Result struct {
	ImageID string `json:"image_id,omitempty"` // absent with NoWait
	Name    string `json:"name"`
	Status  string `json:"status"` // the image's, or the job's when it isn't waited for
	JobID   string `json:"job_id,omitempty"`
	RunID   string `json:"run_id"`
	MinDisk int    `json:"min_disk"` // GB
	// ImportPath is the service's call that was used, and Why what decided it.
	ImportPath Path   `json:"import_path"`
	Why        string `json:"why"`
	// Recovered says that the answer to the import call was lost and the image found by its tag.
	Recovered bool `json:"recovered,omitempty"`
	// Resumed says that an earlier run of the same request was gone on with.
	Resumed    bool         `json:"resumed,omitempty"`
	ObjectKept bool         `json:"object_kept"`
	Upload     UploadResult `json:"upload"`
	Seconds    float64      `json:"seconds"`
	Warnings   []string     `json:"warnings,omitempty"`
}

// InterruptedError is a run that was told to stop. Next says what stands and how to go on.
type InterruptedError struct {
	Phase Phase
	Next  string
	Err   error
}

func (e *InterruptedError) Error() string {
	if e.Phase == "" {
		return "interrupted"
	}
	return fmt.Sprintf("interrupted while in %s", e.Phase)
}
func (e *InterruptedError) Unwrap() error { return e.Err }

// Hint says how to go on.
func (e *InterruptedError) Hint() string { return e.Next }

// ObjectKeptError is an import that failed after the upload; the object is still there.
type ObjectKeptError struct {
	Bucket, Key string
	Err         error
}

func (e *ObjectKeptError) Error() string {
	return fmt.Sprintf("%v\n  the object was kept: obs://%s/%s", e.Err, e.Bucket, e.Key)
}
func (e *ObjectKeptError) Unwrap() error { return e.Err }

// NoImageError is a job that succeeded without telling its image, and no image that was found either.
type NoImageError struct{ JobID, Name string }

func (e *NoImageError) Error() string {
	return fmt.Sprintf("job %s succeeded, but tells no image, and none named %q was found", e.JobID, e.Name)
}

// run carries one plan out.
type run struct {
	*Importer
	plan *Plan
	// stays tells that the object is to be in the bucket when the run has succeeded.
	stays bool
	mu    sync.Mutex // events and warnings one at a time

	begun   atomic.Bool  // the upload's beginning was told
	anew    atomic.Bool  // what an earlier run has left turned out to be of no use
	resumed atomic.Int64 // bytes of the disk that were there from an earlier run
	jobEnds func()       // gives the slot of the job back
}

// jobBegins waits until there may be one more job at the service.
func (r *run) jobBegins(ctx context.Context) (err error) {
	if r.JobSlot != nil {
		var release func()
		if release, err = r.JobSlot(ctx); err == nil {
			r.jobEnds = release
		}
	}
	return err
}

func (r *run) event(e Event) {
	if r.Events == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Events(e)
}

// Upload sends the plan's disk and its bitmap to the bucket. When it fails, nothing is left there, unless
// it can be gone on with: then the error is a *[ResumableError], or an *[InterruptedError] that says so.
func (i *Importer) Upload(ctx context.Context, p *Plan) (*UploadResult, error) {
	r := &run{Importer: i, plan: p, stays: true}
	ctx, ended := p.journal.during(ctx)
	if err := r.prepare(ctx); err != nil {
		return nil, ended(r.unprepared(ctx, err))
	}
	res, err := r.upload(ctx)
	if err == nil {
		p.journal.remove()
	}
	return res, ended(err)
}

// unprepared is an error before anything was done.
func (r *run) unprepared(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return &InterruptedError{Phase: PhaseUpload, Err: ctx.Err(), Next: "Nothing was sent; run the same command again."}
	}
	return err
}

// Run carries out a plan made by [Importer.Plan]: upload, bitmap, import call, job. Until the service has
// accepted the import, a failure leaves nothing behind; after that, the objects stay until the import
// has succeeded, since the service reads them. Errors are those of the packages that found them, and
// *InterruptedError when ctx ended.
func (i *Importer) Run(ctx context.Context, p *Plan) (*Result, error) {
	ctx, ended := p.journal.during(ctx)
	res, err := i.run(ctx, p)
	return res, ended(err)
}

func (i *Importer) run(ctx context.Context, p *Plan) (*Result, error) {
	start := time.Now()
	r := &run{Importer: i, plan: p, stays: p.Request.KeepObject || p.Request.NoWait}
	defer func() {
		if r.jobEnds != nil {
			r.jobEnds()
		}
	}()
	if err := r.prepare(ctx); err != nil {
		return nil, r.unprepared(ctx, err)
	}
	if err := r.removeRemains(ctx); err != nil {
		return nil, r.unprepared(ctx, err)
	}
	up, sub, err := r.uploadAndSubmit(ctx)
	if err != nil {
		return nil, err
	}
	res := &Result{
		Name:     p.Request.Image.Name,
		RunID:    p.RunID,
		MinDisk:  p.Request.Image.MinDisk,
		Upload:   *up,
		Warnings: p.Warnings, // with those of the upload

		ImportPath: p.Path,
		Why:        p.Why,
	}
	res.JobID, res.Recovered, res.Resumed = sub.JobID, sub.Recovered, p.resume != nil && !r.anew.Load()
	if p.Request.NoWait {
		p.journal.remove()
		res.ImageID = sub.ImageID
		res.Status, res.ObjectKept = string(ims.JobInit), !p.Direct()
		if p.Direct() {
			res.Status = ims.ImageSaving // as far as is known: there is no job
		}
		res.Seconds = time.Since(start).Seconds()
		return res, nil
	}
	image, err := r.wait(ctx, sub)
	if err != nil {
		return nil, err
	}
	res.ImageID, res.Status = image.ID, image.Status
	res.ObjectKept = p.Request.KeepObject && !p.Direct()
	if !p.Request.KeepObject && !p.Direct() {
		r.event(Event{Phase: PhaseCleanup, State: StateStart})
		err := r.deleteObjects(ctx)
		if err != nil && ctx.Err() != nil {
			// The run is done but for this; it takes no time.
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
			err = r.deleteObjects(clean)
			cancel()
		}
		if err != nil {
			// The image is there and good; an object too many is not worth failing for.
			res.ObjectKept = true
			res.Warnings = append(res.Warnings, fmt.Sprintf("the object could not be deleted: %v", err))
			r.event(Event{Phase: PhaseCleanup, State: StateWarning, Note: err.Error()})
		}
		r.event(Event{Phase: PhaseCleanup, State: StateDone})
	}
	p.journal.remove()
	res.Seconds = time.Since(start).Seconds()
	return res, nil
}

// uploadAndSubmit brings the content to the service and starts the import, by a bucket or without one.
func (r *run) uploadAndSubmit(ctx context.Context) (*UploadResult, *ims.Submitted, error) {
	if r.plan.Direct() {
		return r.send(ctx)
	}
	if r.plan.resume != nil && r.plan.resume.Import.open() {
		if err := r.jobBegins(ctx); err != nil {
			return nil, nil, &InterruptedError{Phase: PhaseSubmit, Err: err, Next: "The import may have been accepted: run the same command again to follow it."}
		}
		if up, sub, err := r.follow(ctx); sub != nil || err != nil {
			return up, sub, err
		}
	}
	up, err := r.upload(ctx)
	if err != nil {
		return nil, nil, err
	}
	sub, err := r.submit(ctx, up)
	return up, sub, err
}

func (r *run) upload(ctx context.Context) (*UploadResult, error) {
	p := r.plan
	if err := p.makeBitmap(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, &InterruptedError{Phase: PhaseBitmap, Err: ctx.Err(), Next: "Nothing was sent; run the same command again to start anew."}
		}
		return nil, err
	}
	send := r.sendRAW
	if p.Parts == nil {
		send = r.sendZVHD2
	}
	total := p.Disk.Size()
	plain := r.startSHA256(ctx)
	defer plain.stop()
	res, err := send(ctx)
	if err != nil {
		return nil, r.uploadFailed(ctx, err)
	}
	r.started(total) // when all was there, nobody has said so
	resumed := r.resumed.Load()
	r.event(Event{Phase: PhaseUpload, State: StateDone, Unit: UnitBytes, Done: total, Total: total,
		Sent: max(0, total-resumed-res.BytesCopied), Copied: res.BytesCopied, Resumed: resumed})
	if res.blocks != nil && p.HasBitmap() {
		if err := r.putBitmap(ctx, res); err != nil {
			return nil, r.afterUpload(ctx, PhaseBitmap, err)
		}
	}
	if res.SHA256, err = plain.wait(); err != nil {
		return nil, r.afterUpload(ctx, PhaseUpload, err)
	}
	if p.Request.Verify {
		if err := r.readBack(ctx, res); err != nil {
			return nil, err
		}
	}
	if r.stays {
		r.describe(ctx, res)
	}
	return res, nil
}

// afterAbort says what an interrupted upload left in the bucket.
func afterAbort(err error) string {
	next := "The unfinished upload was aborted; run the same command again to start anew."
	var oe *obs.Error
	if errors.As(err, &oe) && len(oe.Left) > 0 {
		next = "There was no time to remove everything; left in the bucket: " + strings.Join(oe.Left, ", ")
	}
	return next
}

// result begins the account of an upload.
func (r *run) result(up *obs.UploadResult, stats convert.ScanStats) *UploadResult {
	if up.ZeroCopyRefused != "" {
		r.warn("zeros were sent instead of copied on the server: " + up.ZeroCopyRefused)
	}
	if len(up.Left) > 0 {
		r.warn("left in the bucket: " + strings.Join(up.Left, ", "))
	}
	return &UploadResult{
		Bucket:        r.plan.Request.Bucket,
		Key:           r.plan.Request.Key,
		Format:        r.plan.Format,
		ETag:          up.ETag,
		VirtualSize:   r.plan.Source.VirtualSize,
		ObjectSize:    up.Size,
		DataBytes:     stats.DataBytes,
		BytesRead:     stats.BytesRead,
		BytesSent:     up.BytesSent,
		BytesCopied:   up.BytesCopied,
		BytesReused:   up.BytesReused,
		PartsSent:     up.PartsSent,
		PartsCopied:   up.PartsCopied,
		PartsComposed: up.PartsComposed,
		Requests:      up.Requests,
		Retries:       up.Retries,
		Concurrency:   &up.Concurrency,
		PartsResumed:  up.PartsResumed,
		BytesResumed:  up.BytesResumed,
	}
}

// sendRAW sends the disk's bytes where they belong and copies zeros on the server.
func (r *run) sendRAW(ctx context.Context) (*UploadResult, error) {
	p := r.plan
	blocks, err := bitmap.NewMap(p.Disk.Size(), cmp.Or(p.Layout.BlockSize, convert.DefaultBlock))
	if err != nil {
		return nil, err
	}
	scanner := convert.NewScanner(p.Disk, blocks).WithDigest()
	var reuse func(obs.Part) (obs.CopySource, bool)
	if p.reuse != nil {
		reuse = func(part obs.Part) (obs.CopySource, bool) { return p.reuse.source(scanner, part) }
	}
	up, err := r.OBS.Upload(ctx, obs.UploadOptions{
		Bucket:         p.Request.Bucket,
		Key:            p.Request.Key,
		OwnKey:         p.ownKey,
		Plan:           p.Parts,
		Source:         scanner,
		ZeroCopy:       p.Request.ZeroCopy,
		KeepZeros:      p.Request.KeepZeros,
		RunID:          p.RunID,
		BeforeComplete: r.beforeComplete,
		CleanupTimeout: cleanupLimit,
		Progress:       r.uploadEvent,
		Checkpoint:     r.checkpoint,
		Reuse:          reuse,
		Resumable:      p.journal.remembers(),
		Resume:         r.remembered(func(s obs.PartState) error { return scanner.Learn(s.Offset, s.Size, s.Note) }),
		Note: func(part obs.Part) []byte {
			if p.journal == nil {
				return nil
			}
			note, err := scanner.Note(part.Offset, part.Length)
			if err != nil {
				return nil // then the next run reads the part again
			}
			return note
		},
	})
	if err != nil {
		return nil, err
	}
	if up.AlreadyComplete {
		if p.copied {
			if err := learnAll(scanner, p.resume.Upload, p.Disk.Size()); err != nil {
				return nil, restError{err}
			}
		}
		// What the journal doesn't know of an object that is complete, for the bitmap.
		if err := errors.Join(scanner.ReadRest(ctx), p.Disk.CheckUnchanged()); err != nil {
			return nil, restError{err}
		}
	}
	digest, err := scanner.Digest(ctx)
	if err != nil {
		return nil, restError{err}
	}
	res := r.result(up, scanner.Stats())
	res.blocks, res.scanner, res.ContentDigest = blocks, scanner, &digest
	return res, nil
}

// learnAll takes up what the journal knows of an object that is complete. The disk may be a copy by now: a
// bitmap of what is in that could be one of another object.
func learnAll(scanner *convert.Scanner, s *obs.State, size int64) error {
	var known int64
	for _, part := range s.Parts {
		if err := scanner.Learn(part.Offset, part.Size, part.Note); err == nil {
			known += part.Size
		}
	}
	if known < size {
		return &CheckError{
			What: fmt.Sprintf("an earlier run completed the object, but only %d of its %d bytes are known, and this disk may be a copy of that one's",
				known, size),
			Remedy: "The object was removed: run the same command again to start anew.",
		}
	}
	return nil
}

// noted tells of what an upload notes, if there is something to tell.
func (r *run) noted(note string) bool {
	anew := strings.HasPrefix(note, "the upload starts anew")
	if anew {
		r.anew.Store(true)
	}
	if !anew && !strings.HasPrefix(note, "nothing more is copied") && !strings.HasPrefix(note, "no answer from the store") {
		return false
	}
	r.warn(note)
	return true
}

// uploadEvent passes on how a planned upload goes.
func (r *run) uploadEvent(e obs.UploadEvent) {
	if r.noted(e.Note) || !r.begun.Load() {
		return
	}
	// What is there is counted part by part; it was told at the beginning.
	there := max(e.Resumed, r.resumed.Load())
	r.event(Event{Phase: PhaseUpload, State: StateProgress, Unit: UnitBytes, Done: e.Done - e.Resumed + there, Total: e.Total,
		Sent: e.Sent, Copied: e.Copied, Resumed: there})
}

// sendZVHD2 compresses the disk on its way: no local copy, parts are cut as blocks are finished.
func (r *run) sendZVHD2(ctx context.Context) (*UploadResult, error) {
	p := r.plan
	var stats convert.ScanStats
	var done atomic.Int64
	total := p.Disk.Size()
	o := convert.ZVHD2Options{Progress: func(n int64) {
		r.event(Event{Phase: PhaseUpload, State: StateProgress, Unit: UnitBytes, Done: done.Add(n), Total: total, Resumed: r.resumed.Load()})
	}}
	o.Writer.Level = p.Request.CompressionLevel
	if p.resume != nil && p.resume.Header != nil {
		// The same bytes as before are not sent again.
		o.Writer.Time, o.Writer.UUID = p.resume.Header.Time, p.resume.Header.UUID
	}
	encoder := convert.NewZVHD2Stream(p.Disk, o)
	scanner := encoder.Scanner().WithDigest()
	header := encoder.Header()
	p.journal.note(true, func(rec *record) { rec.Header = &header })
	up, err := r.OBS.UploadStream(ctx, obs.StreamOptions{
		Bucket:         p.Request.Bucket,
		Key:            p.Request.Key,
		OwnKey:         p.ownKey,
		MaxSize:        convert.MaxZVHD2Size(total),
		Workers:        p.Request.Workers,
		MinWorkers:     p.Request.MinWorkers,
		MemoryBudget:   p.Request.Memory,
		RunID:          p.RunID,
		BeforeComplete: r.beforeComplete,
		CleanupTimeout: cleanupLimit,
		Progress:       func(e obs.UploadEvent) { r.noted(e.Note) },
		Checkpoint:     r.checkpoint,
		Resumable:      p.journal.remembers(),
		Resume:         r.remembered(func(obs.PartState) error { return nil }),
		Note:           func(obs.Part) []byte { return encoder.Note() },
		Reposition: func(parts []obs.PartState, offset int64) (int64, error) {
			from, before, err := encoder.Resume(notesOf(parts), offset)
			if err != nil {
				return 0, nil // all is compressed again, and what the bucket has isn't sent again
			}
			r.started(before)
			return from, nil
		},
	}, func(ctx context.Context, w io.Writer) (err error) {
		r.started(0)
		stats, err = encoder.Encode(ctx, w)
		return err
	})
	if err != nil {
		return nil, err
	}
	if up.AlreadyComplete {
		// What is known of the disk is in the notes; what is not is read.
		_, _, _ = encoder.Resume(notesOf(p.resume.Upload.Parts), up.Size)
		if err := errors.Join(scanner.ReadRest(ctx), p.Disk.CheckUnchanged()); err != nil {
			return nil, restError{err}
		}
		stats = scanner.Stats()
	}
	digest, err := scanner.Digest(ctx)
	if err != nil {
		return nil, restError{err}
	}
	res := r.result(up, stats)
	res.ContentDigest = &digest
	return res, nil
}

func notesOf(parts []obs.PartState) [][]byte {
	notes := make([][]byte, len(parts))
	for i, p := range parts {
		notes[i] = p.Note
	}
	return notes
}

// beforeComplete is the last moment before the parts become an object: the source is looked at once
// more, and bitmap and account of an object about to be replaced go, so that they never stand beside one
// that they don't fit.
func (r *run) beforeComplete(ctx context.Context) error {
	if err := r.plan.Disk.CheckUnchanged(); err != nil {
		return err
	}
	// Once the object is there, the bitmap is made of what the journal knows of its parts.
	r.plan.journal.flush()
	if !r.plan.Request.Overwrite {
		return nil
	}
	keys := []string{AccountKey(r.plan.Request.Key)}
	if r.plan.HasBitmap() {
		keys = append(keys, BitmapKey(r.plan.Request.Key))
	}
	for _, key := range keys {
		if err := r.OBS.Delete(ctx, r.plan.Request.Bucket, key); err != nil && obs.KindOf(err) != obs.KindNotFound {
			return err
		}
	}
	return nil
}

// warn tells of something that stops nothing, now and in the result.
func (r *run) warn(s string) {
	r.mu.Lock()
	r.plan.Warnings = append(r.plan.Warnings, s)
	r.mu.Unlock()
	r.event(Event{Phase: PhaseUpload, State: StateWarning, Note: s})
}

// putBitmap writes the bitmap beside a RAW object: the service finds it by its name.
func (r *run) putBitmap(ctx context.Context, res *UploadResult) error {
	r.event(Event{Phase: PhaseBitmap, State: StateStart})
	layout, blocks, key := r.plan.Layout, res.blocks, BitmapKey(r.plan.Request.Key)
	mf, name := r.plan.bitmap, "by --bitmap-command"
	if mf == nil {
		var err error
		if mf, err = layout.Encode(blocks); err != nil {
			return err
		}
		name = layout.Name
	}
	if err := r.OBS.PutSmall(ctx, r.plan.Request.Bucket, key, mf, r.mark()); err != nil {
		return err
	}
	r.event(Event{Phase: PhaseBitmap, State: StateDone})
	res.Bitmap = &BitmapResult{
		Key:        key,
		Layout:     name,
		BlockSize:  blocks.BlockSize(),
		Blocks:     blocks.Blocks(),
		DataBlocks: blocks.Count(),
	}
	return nil
}

// mark is the metadata by which an object is known to be this run's.
func (r *run) mark() map[string]string { return map[string]string{obs.RunIDMetadata: r.plan.RunID} }

// ours tells whether an object is this run's; one that isn't there is not.
func (r *run) ours(ctx context.Context, key string) (bool, error) {
	info, err := r.OBS.Stat(ctx, r.plan.Request.Bucket, key)
	if obs.KindOf(err) == obs.KindNotFound {
		return false, nil
	}
	return err == nil && info.Metadata[obs.RunIDMetadata] == r.plan.RunID, err
}

func (r *run) submit(ctx context.Context, up *UploadResult) (*ims.Submitted, error) {
	if r.jobEnds == nil {
		if err := r.jobBegins(ctx); err != nil {
			return nil, r.afterUpload(ctx, PhaseSubmit, err)
		}
	}
	r.event(Event{Phase: PhaseSubmit, State: StateStart})
	for _, key := range r.plan.keys() {
		ok, err := r.ours(ctx, key)
		if err == nil && !ok {
			err = &CheckError{
				What:   fmt.Sprintf("obs://%s/%s was replaced by somebody else while this import ran", r.plan.Request.Bucket, key),
				Remedy: "Give each import a --key of its own, or none.",
			}
		}
		if err != nil {
			return nil, r.afterUpload(ctx, PhaseSubmit, err)
		}
	}
	r.asking(up)
	if err := r.plan.journal.sure(ctx); err != nil {
		r.asked(nil) // nothing was
		var busy *BusyError
		if errors.As(err, &busy) {
			return nil, err // the objects are the other run's
		}
		return nil, r.afterUpload(ctx, PhaseSubmit, err)
	}
	sub, err := r.submitImage(ctx)
	if err != nil {
		var unclear *ims.AmbiguousSubmitError
		var lost *ims.LostAnswerError
		switch {
		case errors.As(err, &unclear), errors.As(err, &lost):
			// The service may be reading the object right now.
			return nil, &ObjectKeptError{r.plan.Request.Bucket, r.plan.Request.Key, err}
		case ctx.Err() != nil:
			// The call may have gone out just before the interrupt.
			next := fmt.Sprintf("The import may have been accepted: look for an image named %q. The object was kept: obs://%s/%s",
				r.plan.Request.Image.Name, r.plan.Request.Bucket, r.plan.Request.Key)
			if r.plan.journal.remembers() {
				next = "The import may have been accepted: run the same command again, and it finds out."
			}
			return nil, &InterruptedError{Phase: PhaseSubmit, Err: ctx.Err(), Next: next}
		}
		r.asked(nil)
		return nil, r.afterUpload(ctx, PhaseSubmit, err)
	}
	r.asked(sub)
	note := "job " + sub.JobID
	if sub.Recovered {
		note = fmt.Sprintf("the answer was lost; found image %s by its %s", sub.ImageID, sub.RecoveredBy)
	}
	r.event(Event{Phase: PhaseSubmit, State: StateDone, Note: note})
	return sub, nil
}

// wait follows the import to its image, by the job or, when only the image is known, by its status.
func (r *run) wait(ctx context.Context, sub *ims.Submitted) (*ims.Image, error) {
	req := &r.plan.Request
	o := req.Wait
	o.MarkerTag, o.Name, o.Since = req.Image.MarkerTag, req.Image.Name, sub.SubmittedAt
	o.OnUpdate = func(j *ims.Job) {
		r.event(Event{Phase: PhaseJob, State: StateProgress, Unit: UnitPercent, Done: int64(max(j.Progress, 0) * 100), Total: 100, Note: string(j.Status)})
	}
	o.OnError = func(err error) {
		r.event(Event{Phase: PhaseJob, State: StateWarning, Note: err.Error()})
	}
	o.OnImage = func(i *ims.Image) {
		r.event(Event{Phase: PhaseJob, State: StateProgress, Unit: UnitPercent, Done: 100, Total: 100, Note: "image " + i.Status})
	}
	r.event(Event{Phase: PhaseJob, State: StateStart, Unit: UnitPercent, Total: 100, Note: cmp.Or(sub.JobID, sub.ImageID)})
	id := sub.ImageID
	deadline := time.Now().Add(o.Limit)
	var err error
	if sub.JobID != "" {
		var job *ims.Job
		if job, err = r.IMS.WaitJob(ctx, sub.JobID, o); err == nil {
			id = cmp.Or(job.ImageID, id)
		} else if r.plan.resume != nil && ims.KindOf(err) == ims.KindNotFound {
			// The service doesn't remember jobs for ever; the image is what counts.
			found, ferr := r.IMS.RecoverImport(ctx, req.Image.Name, req.Image.MarkerTag, r.plan.journal.askedAt())
			if ferr == nil && found != nil {
				id, err = found.ImageID, nil
			}
		}
	}
	if err == nil && id == "" {
		err = &NoImageError{JobID: sub.JobID, Name: req.Image.Name}
	}
	var image *ims.Image
	if err == nil {
		// The job's word is not enough: the image itself must be active. Both waits share one limit.
		o.First, o.Limit = -1, max(time.Until(deadline), time.Second)
		image, err = r.IMS.WaitImage(ctx, id, o)
	}
	if err != nil {
		var failed *ims.JobFailedError
		if errors.As(err, &failed) {
			r.jobFailed()
		}
		if ctx.Err() != nil {
			next := fmt.Sprintf("The import goes on at the service. Follow it with: imsprep job wait %s", sub.JobID)
			if sub.JobID == "" {
				next = fmt.Sprintf("The import goes on at the service. Look at it with: imsprep image show %s", id)
			}
			if r.plan.journal.remembers() {
				next += "\n  The same command again follows it, too, and removes the object at the end."
			} else {
				next += fmt.Sprintf("\n  The service still reads the object; delete it when the import is done: obs://%s/%s", req.Bucket, req.Key)
			}
			return nil, &InterruptedError{Phase: PhaseJob, Err: ctx.Err(), Next: next}
		}
		return nil, &ObjectKeptError{req.Bucket, req.Key, err}
	}
	r.event(Event{Phase: PhaseJob, State: StateDone, Unit: UnitPercent, Done: 100, Total: 100, Note: image.ID})
	return image, nil
}

// abandon removes the objects of a run that failed for good before the service knew of it, and says
// so if even that fails.
func (r *run) abandon(ctx context.Context, phase Phase, err error) (removed bool, _ error) {
	interrupted := ctx.Err() != nil
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	next := "The upload was taken back; run the same command again to start anew."
	removed = true
	if derr := r.deleteObjects(clean); derr != nil {
		left := &ObjectKeptError{r.plan.Request.Bucket, r.plan.Request.Key, err}
		if !interrupted {
			return false, left
		}
		removed = false
		next = fmt.Sprintf("The object obs://%s/%s is left behind: %v", left.Bucket, left.Key, derr)
	}
	if interrupted {
		return removed, &InterruptedError{Phase: phase, Err: ctx.Err(), Next: next}
	}
	return removed, err
}

// deleteObjects deletes the run's objects. One that isn't there is fine, and one that isn't the run's
// is left alone.
func (r *run) deleteObjects(ctx context.Context) error {
	var errs []error
	keys := r.plan.keys()
	if (r.stays || r.plan.resume != nil) && len(keys) > 0 { // an earlier run may have meant it to stay
		keys = append(slices.Clone(keys), AccountKey(r.plan.Request.Key))
	}
	for _, key := range keys {
		ok, err := r.ours(ctx, key)
		if ok {
			err = r.OBS.Delete(ctx, r.plan.Request.Bucket, key)
		}
		if err != nil && obs.KindOf(err) != obs.KindNotFound {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
