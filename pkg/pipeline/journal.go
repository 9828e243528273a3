// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/obs"
)

const (
	// journalVersion is raised when what is written means something else; another version's journal is
	// not understood, and the upload starts anew.
	journalVersion = 1
	// maxJournal bounds what is read: the largest real one, of a full disk of 1 TiB, has about 30 MB.
	maxJournal = 512 << 20
	// journalEvery is how often the journal is written at most while parts come in. What is lost of it is
	// read again but not sent again.
	journalEvery = time.Second
	// journalShare bounds the time that writing large journals takes, to one in so many.
	journalShare = 20

	// busyTries and busyPause are how a lock is asked for again: who lists journals has it for a moment,
	// and a process that was killed until the system has cleared it away.
	busyTries = 40
	busyPause = 25 * time.Millisecond

	journalExt = ".json"
	lockExt    = ".lock"
	tempExt    = ".tmp"
)

// record is what a journal holds: all that another process needs to go on with an import. There are no
// secrets in it. What it says of the upload counts as far as the server agrees.
type record struct {
	Written time.Time        `json:"written"`
	Path    string           `json:"path"`   // of the source
	Source  convert.Identity `json:"source"` // as it was when the upload began
	Target  target           `json:"target"`
	Plan    planned          `json:"plan"`
	RunID   string           `json:"run_id"`
	// Upload is nil until the bucket knows of it.
	Upload *obs.State `json:"upload,omitempty"`
	// Header of a ZVHD2 object: it must say the same in the rest of the object.
	Header *convert.ZVHD2Header `json:"zvhd2_header,omitempty"`
	// Import is nil until the import call is about to be made.
	Import *imported `json:"import,omitempty"`
	// Abandoned says why the upload failed for good, when it could not be removed.
	Abandoned string `json:"abandoned,omitempty"`
}

// target is where an object goes.
type target struct {
	Endpoint string `json:"endpoint"` // scheme and host
	Bucket   string `json:"bucket"`
	Key      string `json:"key"`
	// Generated means that the key was made from the run's id, so that nobody else uses it.
	Generated bool `json:"generated,omitempty"`
}

// planned is what of a plan must be the same for an upload to be gone on with, beside what package obs
// compares itself.
type planned struct {
	Format Format `json:"format"`
	AsIs   bool   `json:"as_is,omitempty"` // the file is sent, not the disk in it
	Level  int    `json:"level,omitempty"` // of ZVHD2
}

// imported is how far the import call has come.
type imported struct {
	Request string    `json:"request"`           // SHA-256 of what was asked for
	Attempt int       `json:"attempt,omitempty"` // jobs that failed before
	Asked   time.Time `json:"asked,omitzero"`    // when the call was about to be made
	JobID   string    `json:"job_id,omitempty"`
	ImageID string    `json:"image_id,omitempty"`
	Since   time.Time `json:"since,omitzero"` // by the service's clock, of the call
	// Upload is its result.
	Upload *UploadResult `json:"result,omitempty"`
}

// open tells whether the service may be at work.
func (i *imported) open() bool { return i != nil && !i.Asked.IsZero() }

// envelope is the file. Sum is the SHA-256 of State as it stands there: what the parts' notes say becomes
// the bitmap, and no server would notice a bit that was flipped in them.
type envelope struct {
	Version int             `json:"imsprep_journal"`
	Sum     string          `json:"sha256"`
	State   json.RawMessage `json:"state"`
}

func encodeRecord(r *record) ([]byte, error) {
	state, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(state)
	b, err := json.Marshal(envelope{journalVersion, hex.EncodeToString(sum[:]), state})
	return append(b, '\n'), err
}

func decodeRecord(b []byte) (*record, error) {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, errors.New("it is damaged or cut off")
	}
	if e.Version != journalVersion {
		return nil, fmt.Errorf("it is of version %d, this program writes version %d", e.Version, journalVersion)
	}
	if sum := sha256.Sum256(e.State); e.Sum != hex.EncodeToString(sum[:]) {
		return nil, errors.New("it is damaged: its checksum doesn't fit")
	}
	var r record
	if err := json.Unmarshal(e.State, &r); err != nil {
		return nil, fmt.Errorf("it can't be understood: %w", err)
	}
	if r.Upload != nil && r.Upload.UploadID == "" {
		r.Upload = nil
	}
	return &r, nil
}

// readRecord reads a journal; nil without an error is one that doesn't exist.
func readRecord(path string) (*record, error) {
	switch fi, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular(): // opening a pipe would wait for a writer
		return nil, errors.New("it isn't a file")
	case fi.Size() > maxJournal:
		return nil, fmt.Errorf("it has %d bytes", fi.Size())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxJournal+1))
	if err != nil {
		return nil, err
	}
	return decodeRecord(b)
}

// journalName is the name, without ending, of the journal of a source and a target. It doesn't depend
// on the source's content: a source that changed must be found again, to be told and to remove what is of
// no use any more.
func journalName(source string, t target) string {
	if t.Generated {
		t.Key = ""
	}
	h := sha256.New()
	for _, s := range []string{source, t.Endpoint, t.Bucket, t.Key} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// keeper is the place of one journal, held against other runs until it is released. Its methods are not
// called at the same time, but for sure.
type keeper interface {
	// where names the journal for people.
	where() string
	// write replaces the journal, whole or not at all.
	write(b []byte) error
	// pause is how long nothing is written after a journal of n bytes that took so long, unless it must be.
	pause(n int, took time.Duration) time.Duration
	// shared tells that runs on other machines may go on from the journal. Writing takes its time there, so what
	// need not be written at once is not waited for.
	shared() bool
	// guard tells lost, once, when the journal is held no more.
	guard(lost func(error))
	// held asks whether it still is; a [*BusyError] says that it isn't.
	held(ctx context.Context) error
	// sure fails with a [*BusyError] when another run may have taken the journal over. After nil, whoever takes
	// it over later finds what was written before the call.
	sure(ctx context.Context) error
	// remove forgets the journal. The lock stays.
	remove()
	// release lets other runs have the journal.
	release()
}

// journal remembers one import, in a place that is held against other runs. Its methods may be called on
// nil, which remembers nothing, and by several goroutines.
type journal struct {
	keeper

	writing sync.Mutex // held while the journal is written, and taken before mu

	mu      sync.Mutex
	r       record
	begun   bool      // there is something in r
	dirty   bool      // r isn't written
	stored  string    // the id of the upload that the written journal knows
	written bool      // there is a journal that can be gone on from
	next    time.Time // when it may be written again, unless it must be before
	timer   *time.Timer
	failed  func(error) // told of the first write that fails, once
	failure error       // of the last write
	closed  bool
}

// openJournal locks the journal of that name in a folder and reads it. broken says why there is one that
// is of no use.
func openJournal(dir, name string) (j *journal, found *record, broken, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, nil, err
	}
	path := filepath.Join(dir, name+journalExt)
	l, err := acquirePatiently(filepath.Join(dir, name+lockExt))
	if err != nil {
		return nil, nil, nil, err
	}
	found, broken = readRecord(path)
	return &journal{keeper: &fileKeeper{path, l}}, found, broken, nil
}

// fileKeeper keeps a journal in a file. The lock is the system's.
type fileKeeper struct {
	path string
	lock *lock
}

func (f *fileKeeper) where() string        { return f.path }
func (f *fileKeeper) write(b []byte) error { return replaceFile(f.path, b) }
func (f *fileKeeper) shared() bool         { return false }

// The system's lock isn't lost.
func (f *fileKeeper) guard(func(error))          {}
func (f *fileKeeper) held(context.Context) error { return nil }

func (f *fileKeeper) release() { f.lock.release() }

func (f *fileKeeper) pause(_ int, took time.Duration) time.Duration {
	return max(journalEvery, journalShare*took)
}

// sure: the lock can't be lost.
func (f *fileKeeper) sure(context.Context) error { return nil }

func (f *fileKeeper) remove() {
	_ = os.Remove(f.path + tempExt)
	if err := os.Remove(f.path); err == nil {
		// A journal that came back after a power failure would be of an upload that is no more.
		syncFolder(filepath.Dir(f.path))
	}
}

// begin sets what the journal holds and writes it. It returns false if there is nothing to go on from.
func (j *journal) begin(r record, failed func(error)) bool {
	if j == nil {
		return false
	}
	j.mu.Lock()
	j.r, j.begun, j.dirty, j.written, j.stored, j.failed = r, true, true, false, "", failed
	j.mu.Unlock()
	j.flush()
	return j.remembers()
}

// note changes what is remembered. It is written at once, or when it is time to.
func (j *journal) note(now bool, change func(r *record)) {
	if j == nil {
		return
	}
	j.mu.Lock()
	if !j.begun || j.closed {
		j.mu.Unlock()
		return
	}
	change(&j.r)
	j.dirty = true
	wait := time.Until(j.next)
	if now = now || wait <= 0 && !j.shared(); !now && j.timer == nil {
		j.timer = time.AfterFunc(wait, func() { j.write(false) })
	}
	j.mu.Unlock()
	if now {
		j.flush()
	}
}

// flush writes what isn't written.
func (j *journal) flush() {
	if j != nil {
		j.write(true)
	}
}

// knows tells whether what is written knows the upload.
func (j *journal) knows(uploadID string) bool {
	if j == nil {
		return false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.written && uploadID != "" && j.stored == uploadID
}

// remembers tells whether there is something written that another run can go on from.
func (j *journal) remembers() bool {
	if j == nil {
		return false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.written
}

// hasUpload tells whether an upload with an id is remembered.
func (j *journal) hasUpload() bool {
	if j == nil {
		return false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.r.Upload != nil
}

// askedAt is when the import call was made.
func (j *journal) askedAt() time.Time {
	if j == nil {
		return time.Time{}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.r.Import == nil {
		return time.Time{}
	}
	return j.r.Import.Asked
}

// write writes what isn't written; when it need not be now, it waits for its time.
func (j *journal) write(now bool) {
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	j.stop()
	if !j.dirty || !j.begun || j.closed {
		j.mu.Unlock()
		return
	}
	start := time.Now()
	if wait := j.next.Sub(start); !now && wait > 0 { // it was written meanwhile
		j.timer = time.AfterFunc(wait, func() { j.write(false) })
		j.mu.Unlock()
		return
	}
	j.r.Written = start.UTC().Truncate(time.Second)
	b, err := encodeRecord(&j.r)
	id := ""
	if j.r.Upload != nil {
		id = j.r.Upload.UploadID
	}
	j.dirty = false
	// What comes meanwhile, an upload does not wait for.
	j.mu.Unlock()
	if err == nil {
		err = j.keeper.write(b)
	}
	j.mu.Lock()
	end := time.Now()
	j.next = end.Add(j.pause(len(b), end.Sub(start)))
	var failed func(error)
	var busy *BusyError
	if j.failure = err; err == nil {
		j.written, j.stored = true, id
	} else if j.dirty = true; !errors.As(err, &busy) { // a journal that is another's ends the run, which says so
		failed, j.failed = j.failed, nil
	}
	j.mu.Unlock()
	if failed != nil {
		failed(err)
	}
}

// sure fails when another run may have taken the import over, or when that run would not find out what
// this one has done.
func (j *journal) sure(ctx context.Context) error {
	if j == nil || !j.shared() {
		return nil
	}
	if err := j.fault(); err != nil {
		return err
	}
	return j.keeper.sure(ctx)
}

// fault is why the last write failed, nil if it didn't.
func (j *journal) fault() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failure
}

// others tells whether runs on other machines may go on from the journal.
func (j *journal) others() bool { return j != nil && j.shared() }

// during returns the context of a run that ends when the journal is lost to another one, and what makes an
// error of such a run say so.
func (j *journal) during(ctx context.Context) (context.Context, func(error) error) {
	if !j.others() {
		return ctx, func(err error) error { return err }
	}
	inner, cancel := context.WithCancelCause(ctx)
	j.guard(cancel)
	return inner, func(err error) error {
		j.guard(nil)
		defer cancel(nil)
		return j.blame(ctx, err)
	}
}

// blame says whether an error comes of another run's having taken the journal over: what that run does
// explains anything.
func (j *journal) blame(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || !j.others() {
		return err
	}
	var busy *BusyError
	if errors.As(j.held(ctx), &busy) {
		return busy
	}
	return err
}

// ReplaceFile gives a file new content, whole or not at all, also when the power fails. Whoever calls it
// is the only one that writes the file.
func ReplaceFile(path string, b []byte) error { return replaceFile(path, b) }

func replaceFile(path string, b []byte) (err error) {
	// The lock makes this process the only one that writes it. What a killed one left is in the way, and
	// so would be a link that somebody put there.
	temp := path + tempExt
	_ = os.Remove(temp)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // a second close of a closed file only fails
			_ = os.Remove(temp)
		}
	}()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	syncFolder(filepath.Dir(path))
	return nil
}

// syncFolder makes names durable where the system can.
func syncFolder(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
}

// remove forgets everything: there is nothing to go on with any more. The lock stays.
func (j *journal) remove() {
	if j == nil {
		return
	}
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	j.stop()
	j.begun, j.written, j.dirty, j.stored = false, false, false, ""
	j.r = record{}
	j.mu.Unlock()
	j.keeper.remove()
}

func (j *journal) stop() {
	if j.timer != nil {
		j.timer.Stop()
		j.timer = nil
	}
}

// close writes what isn't written and gives the lock up.
func (j *journal) close() {
	if j == nil {
		return
	}
	j.flush()
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	j.stop()
	was := j.closed
	j.closed = true
	j.mu.Unlock()
	if !was {
		j.release()
	}
}

// JournalInfo is what a journal tells, for lists and for cleaning up.
type JournalInfo struct {
	Path     string    `json:"path"` // of the journal
	Written  time.Time `json:"written,omitzero"`
	Source   string    `json:"source,omitempty"`   // path of the disk
	Endpoint string    `json:"endpoint,omitempty"` // of the object storage, scheme and host
	Bucket   string    `json:"bucket,omitempty"`
	Key      string    `json:"key,omitempty"`
	RunID    string    `json:"run_id,omitempty"`
	UploadID string    `json:"upload_id,omitempty"`
	JobID    string    `json:"job_id,omitempty"` // of the import that was begun
	Done     int64     `json:"bytes_done"`       // bytes of the object that the bucket had
	Busy     bool      `json:"busy"`             // a run is at work on it
	Problem  string    `json:"problem,omitempty"`
}

// Journals lists the journals in a state folder. A folder that doesn't exist has none. A journal that
// can't be read is listed with its Problem.
func Journals(dir string) ([]JournalInfo, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []JournalInfo
	for _, e := range entries {
		if filepath.Ext(e.Name()) != journalExt {
			continue
		}
		info := JournalInfo{Path: filepath.Join(dir, e.Name())}
		r, err := readRecord(info.Path)
		if err == nil && r == nil {
			continue // it has just gone
		}
		if err != nil {
			info.Problem = err.Error()
		} else {
			info.Written, info.Source, info.RunID = r.Written, r.Path, r.RunID
			info.Endpoint, info.Bucket, info.Key = r.Target.Endpoint, r.Target.Bucket, r.Target.Key
			if r.Upload != nil {
				info.UploadID = r.Upload.UploadID
				for _, p := range r.Upload.Parts {
					info.Done += p.Size
				}
			}
			if r.Import != nil {
				info.JobID = r.Import.JobID
			}
		}
		l, err := acquire(strings.TrimSuffix(info.Path, journalExt) + lockExt)
		var busy *BusyError
		if info.Busy = errors.As(err, &busy); err == nil {
			l.release()
		}
		list = append(list, info)
	}
	return list, nil
}

// RemoveJournal removes a journal, after which its upload can't be resumed; what that has in the bucket
// stays there. It fails with a [*BusyError] while a run is at work on it.
func RemoveJournal(path string) error {
	l, err := acquire(strings.TrimSuffix(path, journalExt) + lockExt)
	if err != nil {
		return err
	}
	defer l.release()
	_ = os.Remove(path + tempExt)
	return os.Remove(path)
}
