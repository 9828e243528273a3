// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/imsprep/imsprep/pkg/obs"
)

const (
	// DefaultLease is how long a lock in a bucket outlives its holder.
	DefaultLease = time.Minute
	// MinLease and MaxLease bound it. The store's clock counts whole seconds, and what is shorter than a
	// few of them can't be told from nothing.
	MinLease = 3 * time.Second
	MaxLease = time.Hour

	// leaseBeats is how often a lease is renewed in its time, so that one lost request doesn't end it.
	leaseBeats = 4
	// settleTime is waited where the store doesn't keep conditions: whoever has seen that there is no lease
	// writes one within half of it or gives up, and only after it looks whose it is.
	settleTime = 2 * time.Second
	// journalRate bounds what journals in a bucket take of the line, in bytes a second: the largest, of
	// a full disk of 1 TiB, is written every 100 seconds.
	journalRate = 256 << 10
	// bucketEvery is how often a journal is written to a bucket at most, unless it must be.
	bucketEvery = 10 * time.Second
	// bucketPatience bounds one request about a lease or a journal, with its repeats.
	bucketPatience = time.Minute

	leaseExt = ".lease"
	maxLease = 4 << 10 // bytes
)

// StatePlace is a place in a bucket where runs on several machines remember what they do.
type StatePlace struct {
	Bucket string
	Prefix string // of keys; "" or ending with a slash
	// Lease is how long the lock of a run that died keeps others out; 0 is DefaultLease. A run whose requests
	// don't get through for so long loses what it works on to the next.
	Lease time.Duration
	// Holder names this machine and process for people; it has no other meaning.
	Holder Holder
}

// Holder is who holds a lock.
type Holder struct {
	Host string `json:"host,omitempty"`
	PID  int    `json:"pid,omitempty"`
}

// Validate checks the place and completes it.
func (s *StatePlace) Validate() error {
	if err := obs.ValidateBucket(s.Bucket, false); err != nil {
		return err
	}
	if s.Prefix != "" {
		s.Prefix = strings.TrimSuffix(s.Prefix, "/") + "/"
		if err := obs.ValidateKey(s.Prefix + strings.Repeat("x", 100)); err != nil { // the longest name
			return err
		}
	}
	if s.Lease == 0 {
		s.Lease = DefaultLease
	}
	if s.Lease < MinLease || s.Lease > MaxLease {
		return &CheckError{What: fmt.Sprintf("a lease of %v", s.Lease), Remedy: fmt.Sprintf("It is %v to %v.", MinLease, MaxLease), Usage: true}
	}
	return nil
}

func (s *StatePlace) String() string { return "obs://" + s.Bucket + "/" + s.Prefix }

// lease is the lock's object: EPOCH.lease in the journal's folder. Every run that gets hold of the journal
// begins an epoch and writes to objects of its own, EPOCH.lease and EPOCH-OWNER.json; so whatever a run that was
// thought dead still writes, it can't overwrite anything of its successor.
type lease struct {
	Version int     `json:"imsprep_lease"`
	Owner   string  `json:"owner"`   // random
	Seconds float64 `json:"seconds"` // after the object's last change it is void
	Beat    int     `json:"beat"`    // so that every renewal changes the object
	Holder  Holder  `json:"holder"`
}

// entry is an object in a journal's folder.
type entry struct {
	key   string
	epoch int
	owner string // of a journal; "" of a lease
}

func parseEntry(dir, key string) (e entry, ok bool) {
	name, ok := strings.CutPrefix(key, dir)
	if !ok {
		return e, false
	}
	e.key = key
	number := name
	switch {
	case strings.HasSuffix(name, leaseExt):
		number = strings.TrimSuffix(name, leaseExt)
	case strings.HasSuffix(name, journalExt):
		number, e.owner, ok = strings.Cut(strings.TrimSuffix(name, journalExt), "-")
		if !ok || e.owner == "" || strings.Contains(e.owner, "/") {
			return e, false
		}
	default:
		return e, false
	}
	n, err := strconv.Atoi(number)
	e.epoch = n
	return e, err == nil && n > 0 && number == fmt.Sprintf("%08d", n)
}

// bucketKeeper keeps a journal, or another state, in a folder of a bucket.
type bucketKeeper struct {
	c     *obs.Client
	place StatePlace
	dir   string // of keys, with the slash at its end
	epoch int
	lease lease
	ctx   context.Context // of the run: once it has ended, there isn't much time left

	old  []entry // journals of earlier epochs; they go when this one has written its own
	late []entry // those that are gone by now

	mu      sync.Mutex // of what follows, and one renewal at a time
	since   time.Time  // when the last renewal that succeeded began
	gone    *BusyError // why the lease is lost
	onLost  func(error)
	stop    chan struct{}
	stopped sync.WaitGroup
}

// elapsed is a time since, by whichever clock says more: the monotonic one stands still while some systems
// sleep, the other one may be set.
func elapsed(since time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(since), now.Round(0).Sub(since.Round(0)))
}

// openBucketJournal gets hold of the journal of that name and reads it. As long as another run may hold it, it
// waits: until that one has gone, or its lease is over, or it turns out to be alive, which is a
// [*BusyError]. broken says why there is one that is of no use.
func openBucketJournal(ctx context.Context, c *obs.Client, place StatePlace, name string) (j *journal, found *record, broken, err error) {
	if err := place.Validate(); err != nil {
		return nil, nil, nil, err
	}
	k, newest, err := openBucket(ctx, c, place, place.Prefix+"journals/"+name+"/", maxJournal)
	if err != nil {
		return nil, nil, nil, err
	}
	// Two of one epoch are of runs that noticed each other before either did what can't be undone; at most
	// one has asked for an image.
	for _, b := range newest {
		r, why := decodeRecord(b)
		broken = cmp.Or(broken, why)
		if r != nil && (found == nil || r.Import.open() && !found.Import.open()) {
			found = r
		}
	}
	if found != nil {
		broken = nil
	}
	return &journal{keeper: k}, found, broken, nil
}

// openBucket gets hold of a folder in a bucket. It returns what was written there last, by whom ever; more than one
// content is of as many runs that held it at the same time.
func openBucket(ctx context.Context, c *obs.Client, place StatePlace, dir string, limit int64) (k *bucketKeeper, newest [][]byte, err error) {
	k = &bucketKeeper{c: c, place: place, dir: dir, ctx: ctx, stop: make(chan struct{})}
	k.lease = lease{Version: 1, Owner: newRunID(), Seconds: place.Lease.Seconds(), Holder: place.Holder}
	list, err := k.acquire(ctx)
	if err != nil {
		return nil, nil, err
	}
	if newest, err = k.newest(ctx, list, limit); err != nil {
		k.drop()
		return nil, nil, err
	}
	k.old = slices.DeleteFunc(slices.Clone(list), func(e entry) bool { return e.owner == "" })
	k.forget(ctx, list, func(e entry) bool { return e.owner == "" && e.epoch < k.epoch })
	k.stopped.Add(1)
	go k.renewals()
	return k, newest, nil
}

// newest reads what was written in the last epoch in which anything was: who writes has read, and
// removes, what was there before.
func (k *bucketKeeper) newest(ctx context.Context, list []entry, limit int64) (found [][]byte, err error) {
	list = slices.DeleteFunc(slices.Clone(list), func(e entry) bool { return e.owner == "" })
	slices.SortFunc(list, func(a, b entry) int { return cmp.Compare(b.epoch, a.epoch) })
	epoch := 0
	for _, e := range list {
		if epoch != 0 && epoch != e.epoch {
			break
		}
		small, err := k.c.GetSmall(ctx, k.place.Bucket, e.key, limit)
		switch {
		case isGone(err): // just now
		case err != nil:
			return nil, err
		default:
			epoch, found = e.epoch, append(found, small.Data)
		}
	}
	return found, nil
}

func isGone(err error) bool {
	var e *obs.Error
	return errors.As(err, &e) && e.Kind == obs.KindNotFound && e.Code != "NoSuchBucket"
}

// entries lists the journal's folder.
func (k *bucketKeeper) entries(ctx context.Context) ([]entry, error) {
	var list []entry
	for o, err := range k.c.ListObjects(ctx, k.place.Bucket, k.dir) {
		if err != nil {
			return nil, err
		}
		if e, ok := parseEntry(k.dir, o.Key); ok {
			list = append(list, e)
		}
	}
	return list, nil
}

func (k *bucketKeeper) leaseKey(epoch int) string {
	return fmt.Sprintf("%s%08d%s", k.dir, epoch, leaseExt)
}

func (k *bucketKeeper) where() string {
	return fmt.Sprintf("obs://%s/%s%08d-%s%s", k.place.Bucket, k.dir, k.epoch, k.lease.Owner, journalExt)
}

func (k *bucketKeeper) key() string {
	return strings.TrimPrefix(k.where(), "obs://"+k.place.Bucket+"/")
}

// acquire begins an epoch, and returns what was in the folder just before.
func (k *bucketKeeper) acquire(ctx context.Context) ([]entry, error) {
	var seen seenLease
	for {
		looked := time.Now()
		list, err := k.entries(ctx)
		if err != nil {
			return nil, err
		}
		newest, last := 0, 0
		for _, e := range list {
			last = max(last, e.epoch)
			if e.owner == "" {
				newest = max(newest, e.epoch)
			}
		}
		if newest > 0 {
			switch over, err := k.over(ctx, newest, &seen); {
			case err != nil:
				return nil, err
			case !over:
				if err := sleep(ctx, min(time.Second, seen.l.length()/8)); err != nil {
					return nil, err
				}
				continue
			}
		}
		k.epoch = last + 1
		mine, err := k.claim(ctx, looked)
		if err != nil {
			return nil, err
		}
		if mine {
			return list, nil
		}
	}
}

// seenLease is another run's lease as it was seen first.
type seenLease struct {
	epoch int
	etag  string
	at    time.Time
	l     lease
}

// length is how long a lease holds. One that can't be read holds as long as ours would.
func (l lease) length() time.Duration {
	if d := time.Duration(l.Seconds * float64(time.Second)); d >= MinLease && d <= MaxLease {
		return d
	}
	return DefaultLease
}

func parseLease(b []byte) (l lease) {
	_ = json.Unmarshal(b, &l) // what can't be read has no owner, and the default length
	return l
}

// overdue tells whether a lease's object is older than it may be. Both times are the store's, in whole
// seconds.
func overdue(s obs.Small, length time.Duration) bool {
	known := !s.Date.IsZero() && !s.Modified.IsZero()
	return known && s.Date.Sub(s.Modified)-time.Second > length
}

// over tells whether a lease holds no more. When it was renewed since it was first seen, its holder is
// alive: a [*BusyError].
func (k *bucketKeeper) over(ctx context.Context, epoch int, seen *seenLease) (bool, error) {
	key := k.leaseKey(epoch)
	small, err := k.c.GetSmall(ctx, k.place.Bucket, key, maxLease)
	switch {
	case isGone(err):
		*seen = seenLease{}
		return true, nil // it was given up
	case err != nil && obs.KindOf(err) != obs.KindInvalid:
		return false, err
	}
	l := parseLease(small.Data)
	if !seen.at.IsZero() && (seen.etag != small.ETag || seen.epoch != epoch) {
		return false, &BusyError{Path: "obs://" + k.place.Bucket + "/" + key, PID: l.Holder.PID, Host: l.Holder.Host}
	}
	if seen.at.IsZero() {
		*seen = seenLease{epoch, small.ETag, time.Now(), l}
	}
	return overdue(small, seen.l.length()) || time.Since(seen.at) > seen.l.length(), nil
}

// claim writes the lease of an epoch, and tells whether it is this run's.
func (k *bucketKeeper) claim(ctx context.Context, looked time.Time) (bool, error) {
	k.lease.Beat++
	b, err := json.Marshal(k.lease)
	if err != nil {
		return false, err
	}
	key := k.leaseKey(k.epoch)
	k.since = time.Now()
	err = k.c.PutNew(ctx, k.place.Bucket, key, b)
	kept := false
	switch obs.KindOf(err) {
	case obs.KindConflict: // somebody was faster; or this run, and the answer was lost
	case obs.KindUnsupported, obs.KindInvalid:
		err = k.c.PutSmall(ctx, k.place.Bucket, key, b, nil)
	default:
		if err == nil {
			kept, err = k.c.KnowsConditions(ctx, k.place.Bucket, key, b)
		}
	}
	if err != nil && obs.KindOf(err) != obs.KindConflict {
		return false, err
	}
	if kept {
		return true, nil
	}
	if err == nil {
		if elapsed(looked) > settleTime/2 {
			// Whoever came meanwhile may have looked already, and been right. This run's lease is in their
			// way for as long as it holds.
			k.drop()
			return false, sleep(ctx, settleTime)
		}
		if err := sleep(ctx, settleTime); err != nil {
			k.drop()
			return false, err
		}
	}
	return k.mine(ctx)
}

// mine looks whether the newest epoch is this run's.
func (k *bucketKeeper) mine(ctx context.Context) (bool, error) {
	list, err := k.entries(ctx)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(list, func(e entry) bool { return e.epoch > k.epoch }) {
		return false, nil
	}
	l, err := k.readLease(ctx)
	return l.Owner == k.lease.Owner, err
}

// readLease reads this epoch's lease; none is an empty one.
func (k *bucketKeeper) readLease(ctx context.Context) (l lease, err error) {
	small, err := k.c.GetSmall(ctx, k.place.Bucket, k.leaseKey(k.epoch), maxLease)
	if isGone(err) {
		return l, nil
	}
	return parseLease(small.Data), err
}

// drop removes this run's lease, if it is there.
func (k *bucketKeeper) drop() {
	ctx, cancel := k.limited()
	defer cancel()
	if l, err := k.readLease(ctx); err == nil && l.Owner == k.lease.Owner {
		_ = k.c.Delete(ctx, k.place.Bucket, k.leaseKey(k.epoch)) // else it is over soon
	}
}

// renewals keeps the lease until the journal is given up.
func (k *bucketKeeper) renewals() {
	defer k.stopped.Done()
	every := k.place.Lease / leaseBeats
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		select {
		case <-k.stop:
			return
		case <-timer.C:
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(k.ctx), every)
		err := k.held(ctx)
		cancel()
		var busy *BusyError
		if errors.As(err, &busy) {
			return
		}
		timer.Reset(every)
	}
}

// held makes the lease last longer, unless another run has taken over; then, and when it has run out, the
// lease is lost.
func (k *bucketKeeper) held(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.gone != nil {
		return k.gone
	}
	began := time.Now()
	err := k.renewed(ctx)
	var busy *BusyError
	switch {
	case err == nil:
		k.since = began
	case errors.As(err, &busy):
		k.lose(busy)
	case elapsed(k.since) > k.place.Lease-time.Second: // the store counts in whole seconds
		k.lose(&BusyError{Path: k.where(), Lost: true})
	}
	if k.gone != nil {
		return k.gone
	}
	return err
}

// lose is called with mu held.
func (k *bucketKeeper) lose(why *BusyError) {
	k.gone = why
	if k.onLost != nil {
		k.onLost(why)
	}
}

func (k *bucketKeeper) renewed(ctx context.Context) error {
	switch mine, err := k.mine(ctx); {
	case err != nil:
		return err
	case !mine:
		return &BusyError{Path: k.where(), Lost: true}
	}
	k.lease.Beat++
	b, err := json.Marshal(k.lease)
	if err != nil {
		return err
	}
	return k.c.PutSmall(ctx, k.place.Bucket, k.leaseKey(k.epoch), b, nil)
}

// lost returns why the lease is lost, nil while it isn't.
func (k *bucketKeeper) lost() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.gone != nil {
		return k.gone
	}
	return nil
}

// guard tells lost, once, when the lease is lost.
func (k *bucketKeeper) guard(lost func(error)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.onLost = lost
	if k.gone != nil && lost != nil {
		lost(k.gone)
	}
}

// limited is the time that a request has which is made whether the run has ended or not: little if it
// has.
func (k *bucketKeeper) limited() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(k.ctx), bucketPatience)
	stop := context.AfterFunc(k.ctx, func() {
		_ = sleep(ctx, cleanupLimit) // or until the request is through
		cancel()
	})
	return ctx, func() {
		stop()
		cancel()
	}
}

func (k *bucketKeeper) shared() bool { return true }

func (k *bucketKeeper) pause(n int, took time.Duration) time.Duration {
	return max(bucketEvery, journalShare*took, time.Duration(n)*time.Second/journalRate)
}

func (k *bucketKeeper) write(b []byte) error {
	if err := k.lost(); err != nil {
		return err
	}
	ctx, cancel := k.limited()
	defer cancel()
	if err := k.c.PutSmall(ctx, k.place.Bucket, k.key(), b, nil); err != nil {
		return err
	}
	if k.old != nil {
		k.forget(ctx, k.old, func(entry) bool { return true })
		k.late, k.old = k.old, nil
	}
	return nil
}

// forget removes objects of the folder. What can't be removed is void all the same.
func (k *bucketKeeper) forget(ctx context.Context, list []entry, which func(entry) bool) {
	for _, e := range list {
		if which(e) {
			_ = k.c.Delete(ctx, k.place.Bucket, e.key)
		}
	}
}

// sure: the journal has been written. Now the lease must still be this run's, and nobody else's journal may
// be there that this run hasn't read. Of two runs that believe to hold the lease, whatever the reason,
// the second to write its journal finds the other's.
func (k *bucketKeeper) sure(ctx context.Context) error {
	if err := k.held(ctx); err != nil {
		return err
	}
	list, err := k.entries(ctx)
	if err != nil {
		return err
	}
	own := false
	for _, e := range list {
		if e.owner == k.lease.Owner && e.epoch == k.epoch {
			own = true
		} else if e.owner != "" && !slices.Contains(k.late, e) || e.epoch > k.epoch {
			return &BusyError{Path: "obs://" + k.place.Bucket + "/" + e.key}
		}
	}
	l, err := k.readLease(ctx)
	if err != nil {
		return err
	}
	if !own || l.Owner != k.lease.Owner { // whoever removes the journal has read it, and goes on
		k.mu.Lock()
		defer k.mu.Unlock()
		k.lose(&BusyError{Path: k.where(), Lost: true})
		return k.gone
	}
	return nil
}

func (k *bucketKeeper) remove() {
	if k.lost() != nil {
		return // it is another's
	}
	ctx, cancel := k.limited()
	defer cancel()
	k.forget(ctx, k.old, func(entry) bool { return true })
	_ = k.c.Delete(ctx, k.place.Bucket, k.key()) // what stays tells of an upload that is no more
}

func (k *bucketKeeper) release() {
	close(k.stop)
	k.stopped.Wait()
	k.drop()
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// bucketName is the name of the journal of an import or upload that may go on on another machine, where the
// source has another path.
func bucketName(source, member, image string, t target) string {
	return journalName(path.Base(strings.ReplaceAll(source, `\`, "/"))+member+"\n"+image, t)
}
