// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

const (
	// listEvery is how long a listing of the states counts as new: who asks for the states of all images
	// asks for one after the other.
	listEvery = time.Second
	// sharedKey is the batch's name where the plan has none: the place in the bucket tells batches apart.
	sharedKey = "plan"
)

// BucketStore keeps states in a bucket, so that processes on several machines share the work on a plan, go on
// with each other's, and show how far all are. An image is locked by a lease, see [pipeline.SharedState].
type BucketStore struct {
	c     *obs.Client
	place pipeline.StatePlace
	base  string // of folders, with a slash at its end

	mu     sync.Mutex
	locked map[string]*pipeline.SharedState // by folder
	listed time.Time
	states map[string]pipeline.SharedEntry // the newest of each folder
	leases map[string]pipeline.SharedEntry
	read   map[string]readState // by key
}

// readState is a state as it was read.
type readState struct {
	etag string
	b    []byte
}

// NewBucketStore keeps the states of a plan at a place in a bucket. A plan without a name has one there that
// doesn't depend on its file's path, which differs from machine to machine.
func NewBucketStore(c *obs.Client, place pipeline.StatePlace, p *Plan) (*BucketStore, error) {
	if err := place.Validate(); err != nil {
		return nil, err
	}
	return &BucketStore{c: c, place: place, base: "batch/" + cmp.Or(p.Name, sharedKey) + "/",
		locked: map[string]*pipeline.SharedState{}, read: map[string]readState{}}, nil
}

func (s *BucketStore) folder(name string) string { return s.base + StateName(name) }

// Lock implements [Store]. When a process that has died seems to have the lock, it waits until that one's lease is
// over.
func (s *BucketStore) Lock(ctx context.Context, name string) (context.Context, func(), error) {
	folder := s.folder(name)
	s.mu.Lock()
	_, mine := s.locked[folder]
	s.mu.Unlock()
	if mine {
		return nil, nil, &BusyError{name, "this process"}
	}
	state, _, err := pipeline.OpenShared(ctx, s.c, s.place, folder)
	var busy *pipeline.BusyError
	switch {
	case errors.As(err, &busy):
		worker := ""
		if busy.PID > 0 {
			worker = fmt.Sprintf("process %d on %s", busy.PID, busy.Host)
		}
		return nil, nil, &BusyError{name, worker}
	case err != nil:
		return nil, nil, &StateError{name, err}
	}
	held, cancel := state.During(ctx)
	s.mu.Lock()
	s.locked[folder] = state
	s.listed = time.Time{} // the process before may have written since
	s.mu.Unlock()
	return held, func() {
		s.mu.Lock()
		delete(s.locked, folder)
		s.listed = time.Time{}
		s.mu.Unlock()
		cancel()
		state.Close()
	}, nil
}

// Load implements [Store].
func (s *BucketStore) Load(ctx context.Context, name string) (*State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range 5 {
		if err := s.list(ctx); err != nil {
			return nil, &StateError{name, err}
		}
		e, ok := s.states[s.folder(name)]
		if !ok {
			return nil, nil
		}
		known := s.read[e.Key]
		if known.etag == e.ETag && e.ETag != "" {
			return DecodeState(name, known.b)
		}
		b, err := pipeline.ReadShared(ctx, s.c, s.place, e)
		switch {
		case err != nil:
			return nil, &StateError{name, err}
		case b != nil:
			s.read[e.Key] = readState{e.ETag, b}
			return DecodeState(name, b)
		}
		s.listed = time.Time{} // another process has just taken over
	}
	return nil, &StateError{name, errors.New("it changes faster than it can be read")}
}

// Held implements [Store].
func (s *BucketStore) Held(ctx context.Context, name string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.list(ctx); err != nil {
		return false, &StateError{name, err}
	}
	e, ok := s.leases[s.folder(name)]
	if !ok {
		return false, nil
	}
	held, err := pipeline.SharedHeld(ctx, s.c, s.place, e)
	if err != nil {
		return false, &StateError{name, err}
	}
	return held, nil
}

// Save implements [Store]. Only who has the lock can save.
func (s *BucketStore) Save(_ context.Context, st *State) error {
	folder := s.folder(st.Name)
	s.mu.Lock()
	state := s.locked[folder]
	s.listed = time.Time{}
	s.mu.Unlock()
	if state == nil {
		return &StateError{st.Name, errors.New("it isn't locked")}
	}
	b, err := EncodeState(st)
	if err == nil {
		err = state.Save(b)
	}
	if err != nil {
		return &StateError{st.Name, err}
	}
	return nil
}

// list looks what there is, with mu held.
func (s *BucketStore) list(ctx context.Context) error {
	if time.Since(s.listed) < listEvery {
		return nil
	}
	began := time.Now()
	list, err := pipeline.ListShared(ctx, s.c, s.place, s.base)
	if err != nil {
		return err
	}
	s.states, s.leases = map[string]pipeline.SharedEntry{}, map[string]pipeline.SharedEntry{}
	keys := map[string]readState{}
	for _, e := range list {
		of := s.states
		if e.Lease {
			of = s.leases
		} else if known, ok := s.read[e.Key]; ok {
			keys[e.Key] = known
		}
		if was, ok := of[e.Folder]; !ok || was.Epoch < e.Epoch || was.Epoch == e.Epoch && was.Modified.Before(e.Modified) {
			of[e.Folder] = e
		}
	}
	s.read, s.listed = keys, began
	return nil
}
