// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

// rotation is a source of temporary keys as the caches of real ones are: it gives the same keys until it
// is told that they are refused.
type rotation struct {
	mu         sync.Mutex
	generation int
	last       int // generation that is ever given
	refused    int
}

func (r *rotation) keys() Credentials {
	n := strconv.Itoa(r.generation)
	return Credentials{AccessKey: "KEY" + n, SecretKey: "secret" + n, SecurityToken: "token" + n}
}

func (r *rotation) Credentials(context.Context) (Credentials, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys(), nil
}

func (r *rotation) Refused(c Credentials) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused++
	if c == r.keys() && r.generation < r.last {
		r.generation++
	}
}

// TestRefusedKeysAreReplaced: whatever words a store has for keys that are no longer good, the source is
// told, and the request is repeated with other keys, if there are any.
func TestRefusedKeysAreReplaced(t *testing.T) {
	for _, tc := range []struct {
		code  string
		put   bool // else a HEAD, whose answer says nothing
		last  int
		good  bool
		tried int
	}{
		{code: "ExpiredToken", put: true, last: 2, good: true, tried: 2},
		{code: "ExpiredToken", put: true, last: 1, tried: 2},
		{code: "InvalidAccessKeyId", put: true, last: 2, good: true, tried: 2},
		{code: "AccessDenied", put: true, last: 2, good: true, tried: 2},
		{code: "AccessDenied", put: true, last: 1, tried: 1},
		{code: "AccessDenied", last: 2, good: true, tried: 2},
		{code: "AccessDenied", last: 1, tried: 1},
		{code: "AllAccessDisabled", put: true, last: 2, tried: 1},
	} {
		t.Run(tc.code, func(t *testing.T) {
			r := &rotation{generation: 1, last: tc.last}
			e := newEnv(t, obstest.Options{Accounts: map[string]obstest.Account{
				"KEY1": {SecretKey: "secret1", SecurityToken: "token1"}, "KEY2": {SecretKey: "secret2", SecurityToken: "token2"},
			}}, func(o *Options) { o.Credentials, o.Refused = r.Credentials, r.Refused })
			op := obstest.OpHeadObject
			if tc.put {
				op = obstest.OpPutObject
			}
			e.server.PutObject(obstest.Bucket, "a", &obstest.Object{Content: &obstest.Content{}})
			e.server.Inject(obstest.Fault{Op: op, Do: obstest.FailLate, Status: 403, Code: tc.code, Match: func(q *obstest.Request) bool {
				return bytes.Contains([]byte(q.HTTP.Header.Get("Authorization")), []byte("KEY1"))
			}})
			var err error
			if tc.put {
				err = e.client.PutSmall(t.Context(), obstest.Bucket, "a", []byte("x"), nil)
			} else {
				_, err = e.client.Stat(t.Context(), obstest.Bucket, "a")
			}
			if (err == nil) != tc.good || e.server.Stats().Requests[op] != tc.tried {
				t.Errorf("%v after %d requests, want %d", err, e.server.Stats().Requests[op], tc.tried)
			}
			if !tc.good && KindOf(err) != KindAuth {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestKeysFetchedTogether: minio-go fetches keys once for all requests that ask at the same time. Each of
// them must still know which keys it was refused with, and get others.
func TestKeysFetchedTogether(t *testing.T) {
	t.Parallel()
	r := &rotation{generation: 1, last: 2}
	e := newEnv(t, obstest.Options{Accounts: map[string]obstest.Account{
		"KEY1": {SecretKey: "secret1", SecurityToken: "token1", Expired: true},
		"KEY2": {SecretKey: "secret2", SecurityToken: "token2"},
	}}, func(o *Options) {
		o.Refused = r.Refused
		o.Credentials = func(ctx context.Context) (Credentials, error) {
			cr, err := r.Credentials(ctx)
			time.Sleep(20 * time.Millisecond) // so that the others find this one fetching, with keys that are old by then
			return cr, err
		}
	})
	var g errgroup.Group
	for n := range 16 {
		g.Go(func() error {
			return e.client.PutSmall(t.Context(), obstest.Bucket, strconv.Itoa(n), []byte("x"), nil)
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// TestUploadOutlivesItsKeys: keys that end in the middle of an upload, and once more at its completion.
func TestUploadOutlivesItsKeys(t *testing.T) {
	t.Parallel()
	r := &rotation{generation: 1, last: 3}
	accounts := map[string]obstest.Account{}
	for g := range 3 {
		n := strconv.Itoa(g + 1)
		accounts["KEY"+n] = obstest.Account{SecretKey: "secret" + n, SecurityToken: "token" + n}
	}
	e := newEnv(t, obstest.Options{Accounts: accounts}, func(o *Options) { o.Credentials, o.Refused = r.Credentials, r.Refused })
	var mu sync.Mutex
	parts := 0
	end := func(key string) {
		a := accounts[key]
		a.Expired = true
		e.server.SetAccount(key, a)
	}
	e.server.Inject(obstest.Fault{Do: obstest.Observe, Match: func(q *obstest.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		switch q.Op {
		case obstest.OpUploadPart:
			if parts++; parts == 2 {
				end("KEY1")
			}
		case obstest.OpListParts:
			end("KEY2")
		}
		return false
	}})
	es := []Extent{{0, 40 << 20, false}}
	d := makeDisk(t, 40<<20, es, loud)
	res, err := e.client.Upload(t.Context(), e.options(d, mustPlan(t, 40<<20, es, PlanOptions{PartSize: 5 << 20, Workers: 3})))
	if err != nil {
		t.Fatal(err)
	}
	if r.generation != 3 {
		t.Errorf("the last keys are of generation %d", r.generation)
	}
	e.checkStored(t, d, res)
}

// TestUploadKeptWhenKeysEnd: keys that end for good end the run, but not the upload, which goes on with
// other keys.
func TestUploadKeptWhenKeysEnd(t *testing.T) {
	t.Parallel()
	r := &rotation{generation: 1, last: 1}
	first := obstest.Account{SecretKey: "secret1", SecurityToken: "token1"}
	e := newEnv(t, obstest.Options{Accounts: map[string]obstest.Account{
		"KEY1": first, "KEY2": {SecretKey: "secret2", SecurityToken: "token2"},
	}}, func(o *Options) { o.Credentials, o.Refused = r.Credentials, r.Refused })
	var mu sync.Mutex
	parts := 0
	e.server.Inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Observe, Match: func(*obstest.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if parts++; parts == 4 {
			first.Expired = true
			e.server.SetAccount("KEY1", first)
		}
		return false
	}})
	es := []Extent{{0, 40 << 20, false}}
	p := mustPlan(t, 40<<20, es, PlanOptions{PartSize: 5 << 20, Workers: 1})
	o := e.options(makeDisk(t, 40<<20, es, loud), p)
	var state State
	o.Resumable, o.Checkpoint = true, func(d Delta) {
		mu.Lock()
		defer mu.Unlock()
		state.Apply(d)
	}
	_, err := e.client.Upload(t.Context(), o)
	var failed *Error
	if !errors.As(err, &failed) || failed.Kind != KindAuth || failed.Kept == "" || failed.Kept != state.UploadID || len(state.Parts) == 0 {
		t.Fatalf("%v, kept %+v", err, state)
	}
	r.mu.Lock()
	r.last, r.generation = 2, 2 // as if the user had set new ones
	r.mu.Unlock()
	d := makeDisk(t, 40<<20, es, loud)
	o = e.options(d, p)
	o.Resume = &state
	res, err := e.client.Upload(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if res.PartsResumed != len(state.Parts) {
		t.Errorf("%d parts resumed, %d were there", res.PartsResumed, len(state.Parts))
	}
	e.checkStored(t, d, res)
}
