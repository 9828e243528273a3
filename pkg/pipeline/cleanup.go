// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imsprep/imsprep/pkg/obs"
)

// LeftoverKind says what a leftover is.
type LeftoverKind string

// Kinds of leftovers.
const (
	LeftoverUpload     LeftoverKind = "upload"      // an unfinished multipart upload, which costs what its parts take
	LeftoverZeros      LeftoverKind = "zeros"       // zeros that one run copied from
	LeftoverSharedZero LeftoverKind = "shared-zero" // zeros kept for the next imports to copy from
	LeftoverPiece      LeftoverKind = "piece"       // a part's content, put together beside the object
	LeftoverCompanion  LeftoverKind = "companion"   // a bitmap or an account whose object is gone
	LeftoverObject     LeftoverKind = "object"      // an uploaded disk that was kept, with its bitmap and account
	LeftoverJournal    LeftoverKind = "journal"     // what a run remembered for resuming, on this machine
)

// accountSuffix is what the account that stands beside an uploaded disk has after the disk's key.
const accountSuffix = ".imsprep.json"

// Leftover is something that a run has left, in the bucket or on this machine.
type Leftover struct {
	Kind     LeftoverKind `json:"kind"`
	Bucket   string       `json:"bucket,omitempty"`
	Key      string       `json:"key,omitempty"`
	UploadID string       `json:"upload_id,omitempty"`
	Path     string       `json:"path,omitempty"`   // of a journal
	RunID    string       `json:"run_id,omitempty"` // of the run that made it, where known
	Size     int64        `json:"size"`             // bytes; of an upload those of its parts
	Parts    int          `json:"parts,omitempty"`  // of an upload
	// Changed is when something last happened to it: the newest part of an upload, the object's
	// making, the journal's writing.
	Changed time.Time `json:"changed"`
	Seconds int64     `json:"age_seconds"` // since Changed
	// With are the keys of objects that go with it.
	With []string `json:"with,omitempty"`
	Why  string   `json:"why"` // it is a leftover
	// Keep says why it is left alone; "" when it is to be removed.
	Keep    string `json:"keep,omitempty"`
	Removed bool   `json:"removed"`
	Error   string `json:"error,omitempty"` // why it could not be removed

	etag string
	disk string // whose companion it is
}

// Name is where the leftover is, for people.
func (l *Leftover) Name() string {
	if l.Path != "" {
		return l.Path
	}
	return "obs://" + l.Bucket + "/" + l.Key
}

// Cleanup says what to look for.
type Cleanup struct {
	Bucket string
	Prefix string // of keys
	// OlderThan protects what changed more recently: another run may be using it.
	OlderThan time.Duration
	// KeptObjects takes disks that were uploaded and kept as leftovers, too.
	KeptObjects bool
	// StateDir is the folder of the journals; "" for none.
	StateDir string
	// Resumable takes what the same command would go on with as leftovers, too.
	Resumable bool
	// Now, if not zero, is taken for the store's clock.
	Now time.Time
}

// Leftovers is what was found.
type Leftovers struct {
	List []*Leftover
	// Foreign counts unfinished uploads of keys that this program doesn't use. They are left alone.
	Foreign int
}

// leftoverSearch is one look through a bucket.
type leftoverSearch struct {
	*Importer
	Cleanup
	found   Leftovers
	uploads []*Leftover
	// journals are those of this bucket, by the key of their disk.
	journals map[string][]JournalInfo
	objects  map[string]obs.ListedObject
}

// FindLeftovers looks for what runs have left. It changes nothing. Of objects only those are taken that
// carry this program's mark; whose an unfinished upload is can't be told from outside, so those are
// taken whose key is one that this program uses.
func (i *Importer) FindLeftovers(ctx context.Context, c Cleanup) (*Leftovers, error) {
	s := &leftoverSearch{Importer: i, Cleanup: c, objects: map[string]obs.ListedObject{}, journals: map[string][]JournalInfo{}}
	info, err := i.OBS.CheckBucket(ctx, c.Bucket)
	if err != nil {
		return nil, err
	}
	if s.Now.IsZero() {
		// Ages are by the store's clock, which made the times.
		if s.Now = info.Date; s.Now.IsZero() {
			s.Now = time.Now()
		}
	}
	// First of all: what a run begins while the bucket is looked at is young.
	broken, err := s.readJournals()
	if err != nil {
		return nil, err
	}
	if err := s.findUploads(ctx); err != nil {
		return nil, err
	}
	if err := s.findObjects(ctx); err != nil {
		return nil, err
	}
	s.findJournals(broken)
	slices.SortStableFunc(s.found.List, func(a, b *Leftover) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.UploadID, b.UploadID), cmp.Compare(a.Path, b.Path))
	})
	return &s.found, nil
}

// add takes a leftover into the list, or notes why it is left alone.
func (s *leftoverSearch) add(l *Leftover) {
	if l.Key != "" {
		l.Bucket = s.Bucket
	}
	age := max(0, s.Now.Sub(l.Changed))
	l.Seconds = int64(age / time.Second)
	if l.Keep == "" && age < s.OlderThan {
		l.Keep = fmt.Sprintf("it changed less than %v ago: a run may be using it", s.OlderThan)
	}
	s.found.List = append(s.found.List, l)
}

func isDiskKey(key string) bool {
	ext := path.Ext(key)
	return ext == FormatRAW.Ext() || ext == FormatZVHD2.Ext()
}

// helperOf says what a helper object's key belongs to: the disk's key, and what it is.
func helperOf(key string) (disk string, kind LeftoverKind, ok bool) {
	if strings.HasPrefix(key, obs.SharedZeros) {
		return "", LeftoverSharedZero, true
	}
	zeros, pieces := strings.Index(key, obs.ZeroMark), strings.Index(key, obs.PieceMark)
	switch {
	case zeros >= 0 && (pieces < 0 || zeros < pieces):
		return key[:zeros], LeftoverZeros, true
	case pieces >= 0:
		return key[:pieces], LeftoverPiece, true
	}
	return "", "", false
}

// findUploads looks at all unfinished uploads of the bucket, for they tell whether helpers are in use;
// only those under the prefix are leftovers.
func (s *leftoverSearch) findUploads(ctx context.Context) error {
	list, err := s.OBS.ListUploads(ctx, s.Bucket, "")
	if err != nil {
		return err
	}
	for _, u := range list {
		disk, kind, helper := helperOf(u.Key)
		if !helper {
			disk = u.Key
		}
		under := strings.HasPrefix(u.Key, s.Prefix)
		if !helper && !isDiskKey(u.Key) {
			if under {
				s.found.Foreign++
			}
			continue
		}
		content, err := s.OBS.UploadContent(ctx, s.Bucket, u.Key, u.ID)
		if obs.KindOf(err) == obs.KindNotFound {
			continue // it ended meanwhile
		}
		if err != nil {
			return err
		}
		l := &Leftover{
			Kind: LeftoverUpload, Key: u.Key, UploadID: u.ID, Size: content.Size, Parts: content.Parts,
			Changed: u.Initiated, Why: "an upload that was never finished; nobody but its maker can say whose",
		}
		if content.LastPart.After(l.Changed) {
			l.Changed = content.LastPart
		}
		if helper {
			l.Why = helperWhy[kind] + ", not finished"
		}
		s.keepForJournal(l, disk)
		s.uploads = append(s.uploads, l)
		if under {
			s.add(l)
		}
	}
	return nil
}

var helperWhy = map[LeftoverKind]string{
	LeftoverZeros:      "zeros that a run copied from and had no time to remove",
	LeftoverSharedZero: "zeros that were kept for the next imports to copy from",
	LeftoverPiece:      "a piece of a disk that a run had no time to remove",
}

// lastUse is when something last happened that may need the helpers of a disk: a helper can be much
// older than the last part of the upload that copies from it.
func (s *leftoverSearch) lastUse(disk string, kind LeftoverKind) time.Time {
	var last time.Time
	for _, u := range s.uploads {
		if (kind == LeftoverSharedZero || u.Key == disk) && u.Changed.After(last) {
			last = u.Changed
		}
	}
	return last
}

func (s *leftoverSearch) findObjects(ctx context.Context) error {
	for o, err := range s.OBS.ListObjects(ctx, s.Bucket, s.Prefix) {
		if err != nil {
			return err
		}
		_, _, helper := helperOf(o.Key)
		if helper || isDiskKey(o.Key) || path.Ext(o.Key) == ".mf" || strings.HasSuffix(o.Key, accountSuffix) {
			s.objects[o.Key] = o
		}
	}
	var candidates []*Leftover
	for key, o := range s.objects {
		l := &Leftover{Key: key, Size: o.Size, Changed: o.Modified}
		disk, kind, helper := helperOf(key)
		account, isAccount := strings.CutSuffix(key, accountSuffix)
		switch {
		case helper:
			l.Kind, l.Why = kind, helperWhy[kind]
			if use := s.lastUse(disk, kind); use.After(l.Changed) {
				l.Changed = use
			}
			s.keepForJournal(l, disk)
		case isAccount:
			if s.known(account) {
				continue
			}
			l.Kind, l.Why, l.disk = LeftoverCompanion, "the account of an uploaded disk that is gone", account
		case path.Ext(key) == ".mf":
			l.disk = strings.TrimSuffix(key, ".mf") + FormatRAW.Ext()
			if s.known(l.disk) {
				continue
			}
			l.Kind, l.Why = LeftoverCompanion, "the bitmap of an uploaded disk that is gone"
		case s.KeptObjects:
			l.Kind, l.Why = LeftoverObject, "an uploaded disk that was kept"
			for _, with := range []string{BitmapKey(key), key + accountSuffix} {
				if o, ok := s.objects[with]; ok && (with != BitmapKey(key) || path.Ext(key) == FormatRAW.Ext()) {
					l.With = append(l.With, with)
					l.Size += o.Size
				}
			}
			s.keepForJournal(l, key)
		default:
			continue
		}
		candidates = append(candidates, l)
	}
	// Only what carries our mark is ours, whatever it is called.
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cleanupWorkers)
	for _, l := range candidates {
		g.Go(func() error {
			info, err := s.OBS.Stat(gctx, s.Bucket, l.Key)
			if err != nil && obs.KindOf(err) != obs.KindNotFound {
				return err
			}
			l.RunID, l.etag = info.Metadata[obs.RunIDMetadata], info.ETag
			if l.disk != "" && l.RunID != "" {
				// Under a prefix the disk itself may not have been listed.
				switch _, err := s.OBS.Stat(gctx, s.Bucket, l.disk); {
				case err == nil:
					l.RunID = ""
				case obs.KindOf(err) != obs.KindNotFound:
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, l := range candidates {
		if l.RunID != "" {
			s.add(l)
		}
	}
	return nil
}

// known tells whether a disk was listed in the bucket, or is on its way there.
func (s *leftoverSearch) known(key string) bool {
	_, ok := s.objects[key]
	return ok || !s.lastUse(key, "").IsZero()
}

// readJournals takes up the journals of the bucket, and returns those that can't be understood.
func (s *leftoverSearch) readJournals() (broken []JournalInfo, err error) {
	if s.StateDir == "" {
		return nil, nil
	}
	list, err := Journals(s.StateDir)
	if err != nil {
		return nil, err
	}
	for _, j := range list {
		switch {
		case j.Problem != "":
			broken = append(broken, j)
		case j.Bucket == s.Bucket && j.Endpoint == s.OBS.Endpoint():
			s.journals[j.Key] = append(s.journals[j.Key], j)
		}
	}
	return broken, nil
}

// keepForJournal leaves alone what a run is at work on, what can be resumed, and what the image service
// may be reading.
func (s *leftoverSearch) keepForJournal(l *Leftover, disk string) {
	for _, j := range s.journals[disk] {
		switch {
		case l.Kind == LeftoverUpload && l.Key == disk && j.UploadID != l.UploadID:
			continue // another upload of the same key
		case j.Busy:
			l.Keep = "a run is at work on it"
		case s.Resumable:
			continue
		case j.JobID != "":
			l.Keep = "the image service may be reading it (job " + j.JobID + "); the same command goes on with it"
		default:
			l.Keep = "the same command as before resumes it (of " + j.Source + ")"
		}
		if l.RunID == "" {
			l.RunID = j.RunID
		}
		return
	}
}

// findJournals adds journals whose upload is gone or goes, and those that nobody can use.
func (s *leftoverSearch) findJournals(broken []JournalInfo) {
	for _, j := range broken {
		l := &Leftover{Kind: LeftoverJournal, Path: j.Path, Why: "a journal that can't be used: " + j.Problem}
		if fi, err := os.Lstat(j.Path); err == nil {
			l.Changed, l.Size = fi.ModTime(), fi.Size()
		}
		s.addJournal(l, j)
	}
	for key, list := range s.journals {
		if !strings.HasPrefix(key, s.Prefix) {
			continue
		}
		for _, j := range list {
			l := &Leftover{Kind: LeftoverJournal, Path: j.Path, Key: key, RunID: j.RunID, Changed: j.Written,
				Why: "a journal whose upload is gone, of " + j.Source}
			if fi, err := os.Lstat(j.Path); err == nil {
				l.Size = fi.Size()
			}
			alive := j.JobID != ""
			for _, u := range s.uploads {
				alive = alive || u.UploadID == j.UploadID && u.Key == key
			}
			if alive {
				l.Why = "a journal, of " + j.Source
				s.keepForJournal(l, key)
			}
			s.addJournal(l, j)
		}
	}
}

// addJournal is add for what lies on this machine, whose clock made the times.
func (s *leftoverSearch) addJournal(l *Leftover, j JournalInfo) {
	if j.Busy {
		l.Keep = "a run is at work on it"
	}
	now := s.Now
	s.Now = time.Now()
	s.add(l)
	s.Now = now
}

// cleanupWorkers is how many leftovers are looked at or removed at a time.
const cleanupWorkers = 4

// CleanupError is a clean-up that could not remove everything.
type CleanupError struct {
	Failed int
	Err    error // of the first
}

func (e *CleanupError) Error() string {
	if e.Failed == 1 {
		return e.Err.Error()
	}
	return fmt.Sprintf("%d leftovers could not be removed, the first: %v", e.Failed, e.Err)
}
func (e *CleanupError) Unwrap() error { return e.Err }

// RemoveLeftovers removes what was found, except what is to be kept, and makes sure that it is gone.
// done, if not nil, is told of each, one at a time. An object that isn't the one that was found any more is
// left alone. What could not be removed has its Error set; the error is a *CleanupError then, or says
// that ctx ended.
func (i *Importer) RemoveLeftovers(ctx context.Context, found *Leftovers, done func(*Leftover)) error {
	var mu sync.Mutex
	var failed CleanupError
	remove := func(list []*Leftover) {
		var g errgroup.Group
		g.SetLimit(cleanupWorkers)
		for _, l := range list {
			g.Go(func() error {
				if ctx.Err() != nil {
					return nil
				}
				err := i.removeLeftover(ctx, l)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					l.Error = err.Error()
					if failed.Failed++; failed.Err == nil {
						failed.Err = err
					}
				}
				if done != nil {
					done(l)
				}
				return nil
			})
		}
		_ = g.Wait()
	}
	var uploads, objects []*Leftover
	for _, l := range found.List {
		switch {
		case l.Keep != "" || l.Removed:
		case l.Kind == LeftoverUpload:
			uploads = append(uploads, l)
		default:
			objects = append(objects, l)
		}
	}
	remove(uploads) // first: one that is being completed may bring an object back
	remove(objects)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case failed.Err != nil:
		return &failed
	}
	return nil
}

func (i *Importer) removeLeftover(ctx context.Context, l *Leftover) error {
	switch l.Kind {
	case LeftoverJournal:
		if err := RemoveJournal(l.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		l.Removed = true
		return nil
	case LeftoverUpload:
		if err := i.OBS.AbortUpload(ctx, l.Bucket, l.Key, l.UploadID); err != nil {
			return err
		}
		l.Removed = true
		return nil
	}
	// What goes with an object goes before it, so that nothing is left that is found less easily.
	for _, key := range l.With {
		if err := i.removeOurs(ctx, l.Bucket, key, ""); err != nil {
			return err
		}
	}
	if err := i.removeOurs(ctx, l.Bucket, l.Key, l.etag); err != nil {
		return err
	}
	l.Removed = true
	return nil
}

// errReplaced is in the chain of the error for an object that was replaced while it was to be removed.
var errReplaced = errors.New("it was replaced meanwhile, and was left alone")

// removeOurs deletes an object that carries our mark and, if etag isn't empty, has that ETag. Another
// one is left alone: silently if it merely goes with something, else with an error.
func (i *Importer) removeOurs(ctx context.Context, bucket, key, etag string) error {
	info, err := i.OBS.Stat(ctx, bucket, key)
	switch {
	case obs.KindOf(err) == obs.KindNotFound:
		return nil
	case err != nil:
		return err
	case etag != "" && info.ETag != etag:
		return fmt.Errorf("obs://%s/%s: %w", bucket, key, errReplaced)
	case info.Metadata[obs.RunIDMetadata] == "":
		return nil
	}
	if err := i.OBS.Delete(ctx, bucket, key); err != nil {
		return err
	}
	switch _, err := i.OBS.Stat(ctx, bucket, key); {
	case obs.KindOf(err) == obs.KindNotFound:
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("obs://%s/%s is still there after it was deleted", bucket, key)
}
