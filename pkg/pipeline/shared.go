// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"strings"

	"github.com/imsprep/imsprep/pkg/obs"
)

// maxShared bounds a shared state, in bytes.
const maxShared = 4 << 20

// SharedState is a small state in a folder of a bucket that this process alone may write, until it is closed
// or its lease is lost. It is kept as journals in buckets are.
type SharedState struct{ k *bucketKeeper }

// OpenShared gets hold of a folder of the place, which no other folder contains, and returns what was
// written there last; more than one content is of processes that held it at the same time, and noticed. As
// long as another process may hold it, it waits: until that one has closed it, or its lease is over, or it turns
// out to be alive, which is a [*BusyError]. ctx is that of the work: once it has ended, writing gets little time.
func OpenShared(ctx context.Context, c *obs.Client, place StatePlace, folder string) (*SharedState, [][]byte, error) {
	if err := place.Validate(); err != nil {
		return nil, nil, err
	}
	k, newest, err := openBucket(ctx, c, place, place.Prefix+folder+"/", maxShared)
	if err != nil {
		return nil, nil, err
	}
	return &SharedState{k}, newest, nil
}

// During returns a context that ends when the lease is lost, with a [*BusyError] as its cause.
func (s *SharedState) During(ctx context.Context) (context.Context, context.CancelFunc) {
	inner, cancel := context.WithCancelCause(ctx)
	s.k.guard(cancel)
	return inner, func() { s.k.guard(nil); cancel(nil) }
}

// Save replaces the state, whole or not at all. It fails with a [*BusyError] when the lease is lost.
func (s *SharedState) Save(b []byte) error { return s.k.write(b) }

// Close lets others have the folder. The state stays.
func (s *SharedState) Close() { s.k.release() }

// SharedEntry is an object of a shared state, as a listing of the bucket shows it.
type SharedEntry struct {
	Folder string // below the place
	Epoch  int    // the highest counts
	Lease  bool   // a lease; else a state
	obs.ListedObject
}

// ListShared lists the objects of all shared states in folders of the place that begin so.
func ListShared(ctx context.Context, c *obs.Client, place StatePlace, folders string) ([]SharedEntry, error) {
	if err := place.Validate(); err != nil {
		return nil, err
	}
	var list []SharedEntry
	for o, err := range c.ListObjects(ctx, place.Bucket, place.Prefix+folders) {
		if err != nil {
			return nil, err
		}
		dir := o.Key[:strings.LastIndexByte(o.Key, '/')+1]
		if e, ok := parseEntry(dir, o.Key); ok && len(dir) > len(place.Prefix) {
			folder := strings.TrimSuffix(strings.TrimPrefix(dir, place.Prefix), "/")
			list = append(list, SharedEntry{Folder: folder, Epoch: e.epoch, Lease: e.owner == "", ListedObject: o})
		}
	}
	return list, nil
}

// ReadShared reads a state as it was listed; nil when it has gone meanwhile.
func ReadShared(ctx context.Context, c *obs.Client, place StatePlace, e SharedEntry) ([]byte, error) {
	small, err := c.GetSmall(ctx, place.Bucket, e.Key, maxShared)
	if isGone(err) {
		return nil, nil
	}
	return small.Data, err
}

// SharedHeld tells whether a lease as it was listed still holds, as far as it can be told without watching
// it.
func SharedHeld(ctx context.Context, c *obs.Client, place StatePlace, e SharedEntry) (bool, error) {
	small, err := c.GetSmall(ctx, place.Bucket, e.Key, maxLease)
	if isGone(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return !overdue(small, parseLease(small.Data).length()), nil
}
