// SPDX-License-Identifier: Apache-2.0

package batch_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/ims/imstest"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

// bucketStore is one process's view of the states.
func bucketStore(t *testing.T, c *cloud, host string) *batch.BucketStore {
	t.Helper()
	s, err := batch.NewBucketStore(c.OBS, pipeline.StatePlace{Bucket: obstest.Bucket, Prefix: "state",
		Holder: pipeline.Holder{Host: host, PID: 7}}, &batch.Plan{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func expire(c *cloud) {
	for _, key := range c.store.Keys(obstest.Bucket) {
		if strings.HasSuffix(key, ".lease") {
			c.store.Backdate(obstest.Bucket, key, time.Hour, false)
		}
	}
}

func TestBucketStore(t *testing.T) {
	c := newCloud(t, imstest.Options{})
	ctx := t.Context()
	one, two, laptop := bucketStore(t, c, "node-1"), bucketStore(t, c, "node-2"), bucketStore(t, c, "laptop")
	look := func(want batch.Status, held bool) {
		t.Helper()
		// A listing counts as new for a moment: a process that has just begun sees what is.
		laptop = bucketStore(t, c, "laptop")
		s, err := laptop.Load(ctx, "web 1")
		got, herr := laptop.Held(ctx, "web 1")
		if s == nil {
			s = &batch.State{}
		}
		if err != nil || herr != nil || s.Status != want || got != held {
			t.Fatalf("%q, held: %v (%v, %v), want %q, held: %v", s.Status, got, err, herr, want, held)
		}
	}
	look("", false)
	if err := one.Save(ctx, &batch.State{Name: "web 1"}); err == nil {
		t.Error("a state was saved without the lock")
	}
	held, unlock, err := one.Lock(ctx, "web 1")
	if err != nil {
		t.Fatal(err)
	}
	look("", true)
	var busy *batch.BusyError
	if _, _, err := one.Lock(ctx, "web 1"); !errors.As(err, &busy) {
		t.Errorf("error %v, want a BusyError", err)
	}
	if err := one.Save(ctx, &batch.State{Name: "web 1", Status: batch.StatusRunning}); err != nil {
		t.Fatal(err)
	}
	look(batch.StatusRunning, true)

	// The first one's machine stands still for longer than its lease, and another takes over.
	expire(c)
	look(batch.StatusRunning, false)
	_, unlockTwo, err := two.Lock(ctx, "web 1")
	if err != nil {
		t.Fatal(err)
	}
	look(batch.StatusRunning, true)
	if s, err := two.Load(ctx, "web 1"); err != nil || s.Status != batch.StatusRunning {
		t.Fatalf("%+v, %v", s, err)
	}
	if err := two.Save(ctx, &batch.State{Name: "web 1", Status: batch.StatusDone}); err != nil {
		t.Fatal(err)
	}
	// What the first one still writes counts no more.
	_ = one.Save(held, &batch.State{Name: "web 1", Status: batch.StatusFailed})
	look(batch.StatusDone, true)
	unlock()
	look(batch.StatusDone, true)
	unlockTwo()
	look(batch.StatusDone, false)

	// Another image is another state.
	if s, err := laptop.Load(ctx, "web-1"); err != nil || s != nil {
		t.Errorf("%+v, %v", s, err)
	}
	// Many questions after states are one listing.
	fresh := bucketStore(t, c, "laptop")
	before := c.store.Stats().Requests
	for range 20 {
		if s, err := fresh.Load(ctx, "web 1"); err != nil || s == nil {
			t.Fatalf("%+v, %v", s, err)
		}
	}
	after := c.store.Stats().Requests
	if n := after[obstest.OpGetObject] - before[obstest.OpGetObject]; n != 1 {
		t.Errorf("a state was read %d times", n)
	}
}

// TestLostWork: a worker that loses an image to another one says so, and not that all is well.
func TestLostWork(t *testing.T) {
	c := newCloud(t, imstest.Options{})
	c.disk(t, "d.raw", 1)
	r := c.runner(c.plan(t, "images: [{name: a, source: d.raw}]\n"))
	r.Store = &losing{BucketStore: bucketStore(t, c, "node-1")}
	err := r.RunOne(t.Context(), 0)
	var busy *batch.BusyError
	if !errors.As(err, &busy) {
		t.Fatalf("error %v, want a BusyError", err)
	}
}

// losing is a store whose locks are lost at once.
type losing struct{ *batch.BucketStore }

func (l *losing) Lock(ctx context.Context, name string) (context.Context, func(), error) {
	held, unlock, err := l.BucketStore.Lock(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	held, cancel := context.WithCancelCause(held)
	cancel(&pipeline.BusyError{Lost: true})
	return held, unlock, nil
}
