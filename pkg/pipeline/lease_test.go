// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

const leaseDir = "p/journals/x/"

func leaseStore(t *testing.T, o obstest.Options) (*obstest.Server, *obs.Client) {
	t.Helper()
	s := obstest.New(o)
	t.Cleanup(s.Close)
	c, err := obs.New(obs.Options{Endpoint: s.URL(), Region: "test-1", BackoffBase: time.Millisecond, BackoffCap: 2 * time.Millisecond,
		Credentials: func(context.Context) (obs.Credentials, error) {
			return obs.Credentials{AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return s, c
}

func place(host string) StatePlace {
	return StatePlace{Bucket: obstest.Bucket, Prefix: "p", Holder: Holder{Host: host, PID: 7}}
}

// TestOneHoldsTheJournal: of several machines that want one journal at the same moment one gets it, on a store that
// keeps conditions and on one that knows none; the others are told who has it, and get it afterwards.
func TestOneHoldsTheJournal(t *testing.T) {
	for name, keeps := range map[string]bool{"conditions kept": true, "conditions ignored": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, c := leaseStore(t, obstest.Options{Conditions: keeps})
			var wg sync.WaitGroup
			var mu sync.Mutex
			var got []*journal
			const of = 4
			var ended atomic.Int64
			all := make(chan struct{})
			for n := range of {
				wg.Go(func() {
					j, _, _, err := openBucketJournal(t.Context(), c, place(fmt.Sprint("node-", n)), "x")
					var busy *BusyError
					if err != nil && !errors.As(err, &busy) {
						t.Error(err)
					} else if err != nil && (!strings.Contains(err.Error(), "process 7 on node-") || busy.Lost) {
						t.Errorf("error %v, want it to tell who has it", err)
					}
					if err == nil {
						mu.Lock()
						got = append(got, j)
						mu.Unlock()
					}
					if ended.Add(1) == of {
						close(all)
					}
				})
			}
			for waiting := true; waiting; {
				select {
				case <-all:
					waiting = false
				case <-time.After(10 * time.Millisecond): // sooner than by itself
					mu.Lock()
					for _, j := range got {
						if err := j.held(t.Context()); err != nil {
							t.Error(err)
						}
					}
					mu.Unlock()
				}
			}
			wg.Wait()
			if len(got) != 1 {
				t.Fatalf("%d have the journal", len(got))
			}
			got[0].close()
			if left := s.Keys(obstest.Bucket); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// TestLeaseOfTheDead: what a run that died leaves keeps others out for as long as its lease, and no longer.
func TestLeaseOfTheDead(t *testing.T) {
	s, c := leaseStore(t, obstest.Options{Conditions: true})
	put := func(key, content string) {
		t.Helper()
		if err := c.PutSmall(t.Context(), obstest.Bucket, leaseDir+key, []byte(content), nil); err != nil {
			t.Fatal(err)
		}
	}
	dead, err := json.Marshal(lease{Version: 1, Owner: "dead", Seconds: 3600, Holder: Holder{"node-9", 1}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"whole": string(dead), "damaged": "{", "too long": strings.Repeat("x", maxLease+1)} {
		put("00000004.lease", content)
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, _, _, err := openBucketJournal(short, c, place("a"), "x"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: error %v, want that it waits for the lease to end", name, err)
		}
		cancel()
		s.Backdate(obstest.Bucket, leaseDir+"00000004.lease", 3605*time.Second, false)
		j, found, broken, err := openBucketJournal(t.Context(), c, place("a"), "x")
		if err != nil || found != nil || broken != nil {
			t.Fatal(name, found, broken, err)
		}
		if want := "obs://" + obstest.Bucket + "/" + leaseDir + "00000005-"; !strings.HasPrefix(j.where(), want) {
			t.Errorf("%s: the journal is %s, want %s...", name, j.where(), want)
		}
		j.close()
	}
	if left := s.Keys(obstest.Bucket); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestJournalInBucket: the newest journal counts, and of two of one epoch the one that has asked for an image.
func TestJournalInBucket(t *testing.T) {
	s, c := leaseStore(t, obstest.Options{Conditions: true})
	put := func(key string, change func(*record)) {
		t.Helper()
		r := testRecord()
		change(&r)
		b, err := encodeRecord(&r)
		if err == nil {
			err = c.PutSmall(t.Context(), obstest.Bucket, leaseDir+key, b, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put("00000008-a.json", func(r *record) { r.RunID = "old" })
	put("00000009-a.json", func(r *record) { r.Import = nil })
	put("00000009-b.json", func(r *record) { r.RunID = "asked" })
	put("00000009-c.json", func(r *record) { r.Import = nil })
	put("zero.json", func(r *record) { r.RunID = "not ours" })
	j, found, broken, err := openBucketJournal(t.Context(), c, place("a"), "x")
	if err != nil || broken != nil || found == nil || found.RunID != "asked" {
		t.Fatalf("%+v, %v, %v", found, broken, err)
	}
	// Before this run has written its own, the next one must find what this one has found.
	if n := len(s.Keys(obstest.Bucket)); n != 6 {
		t.Errorf("objects: %q", s.Keys(obstest.Bucket))
	}
	var failed error
	if !j.begin(*found, func(err error) { failed = err }) || failed != nil {
		t.Fatal(failed)
	}
	// Others need not wait for the time to write.
	j.note(false, func(r *record) { r.RunID = "later" })
	if err := j.sure(t.Context()); err != nil {
		t.Error(err)
	}
	// A journal that this run knows nothing of is another's, whatever the leases say.
	put("00000010-z.json", func(*record) {})
	var busy *BusyError
	if err := j.sure(t.Context()); !errors.As(err, &busy) {
		t.Errorf("error %v, want a BusyError", err)
	}
	if err := c.Delete(t.Context(), obstest.Bucket, leaseDir+"00000010-z.json"); err != nil {
		t.Fatal(err)
	}
	j.close()
	j, found, broken, err = openBucketJournal(t.Context(), c, place("a"), "x")
	if err != nil || broken != nil || found == nil || found.RunID != "later" {
		t.Fatalf("%+v, %v, %v", found, broken, err)
	}
	if !j.begin(*found, nil) {
		t.Fatal("it isn't written")
	}
	// Without the right to write there is no import that nobody else would hear of.
	s.Inject(obstest.Refuse(obstest.OpPutObject, 403, "AccessDenied"))
	j.note(true, func(r *record) { r.RunID = "never" })
	if err := j.sure(t.Context()); obs.KindOf(err) != obs.KindAuth {
		t.Errorf("error %v, want that the journal couldn't be written", err)
	}
	s.ClearFaults()
	j.remove()
	j.close()
	if left := s.Keys(obstest.Bucket); len(left) != 1 || left[0] != leaseDir+"zero.json" {
		t.Errorf("left: %q", left)
	}
}

// TestLostLease: a run hears of it when another has taken over, and when it can't reach the bucket for as long
// as its lease; from then on it writes nothing.
func TestLostLease(t *testing.T) {
	for name, lose := range map[string]func(s *obstest.Server, c *obs.Client){
		"taken over": func(_ *obstest.Server, c *obs.Client) {
			_ = c.PutSmall(context.Background(), obstest.Bucket, leaseDir+"00000002.lease", []byte("{}"), nil)
		},
		"cut off": func(s *obstest.Server, _ *obs.Client) {
			s.Inject(obstest.Fault{Do: obstest.Fail, Status: 503, Code: "SlowDown"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, c := leaseStore(t, obstest.Options{Conditions: true})
			short := place("a")
			short.Lease = MinLease
			j, _, _, err := openBucketJournal(t.Context(), c, short, "x")
			if err != nil || !j.begin(testRecord(), nil) {
				t.Fatal(err)
			}
			ctx, ended := j.during(t.Context())
			lose(s, c)
			<-ctx.Done()
			var busy *BusyError
			if err := ended(ctx.Err()); !errors.As(err, &busy) || !busy.Lost || busy.Hint() == "" {
				t.Errorf("error %v, want that the lease is lost", err)
			}
			s.ClearFaults()
			before := s.Stats().Requests[obstest.OpPutObject]
			j.note(true, func(r *record) { r.RunID = "late" })
			j.remove()
			if after := s.Stats().Requests[obstest.OpPutObject]; after != before {
				t.Errorf("it wrote %d objects that are another's", after-before)
			}
			j.close()
			if s.Object(obstest.Bucket, leaseDir+"00000001-"+j.keeper.(*bucketKeeper).lease.Owner+".json") == nil {
				t.Error("the journal is gone that the other run goes on from")
			}
		})
	}
}

func TestJournalPause(t *testing.T) {
	k := &bucketKeeper{}
	for _, tc := range []struct {
		n    int
		took time.Duration
		want time.Duration
	}{
		{1 << 10, time.Millisecond, bucketEvery},
		{25 << 20, time.Second, 100 * time.Second}, // a full disk of 1 TiB
		{1 << 20, 3 * time.Second, time.Minute},
	} {
		if got := k.pause(tc.n, tc.took); got != tc.want {
			t.Errorf("%d bytes in %v: next in %v, want %v", tc.n, tc.took, got, tc.want)
		}
	}
}

func TestStatePlace(t *testing.T) {
	for _, tc := range []struct {
		place StatePlace
		want  string // "" is good
	}{
		{StatePlace{Bucket: "b-1", Prefix: "a/b"}, ""},
		{StatePlace{Bucket: "b-1"}, ""},
		{StatePlace{Bucket: "B_1"}, "bucket"},
		{StatePlace{Bucket: "b-1", Prefix: "with blank"}, "key"},
		{StatePlace{Bucket: "b-1", Prefix: strings.Repeat("x", 1000)}, "key"},
		{StatePlace{Bucket: "b-1", Lease: time.Second}, "lease of 1s"},
		{StatePlace{Bucket: "b-1", Lease: 2 * time.Hour}, "lease of 2h"},
	} {
		err := tc.place.Validate()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.place, err, tc.want)
		}
		if err == nil && (tc.place.Lease != DefaultLease || tc.place.Prefix != "" && !strings.HasSuffix(tc.place.Prefix, "/")) {
			t.Errorf("%+v isn't complete", tc.place)
		}
	}
}

// FuzzParseEntry: only what this program names so is taken for its own.
func FuzzParseEntry(f *testing.F) {
	for _, key := range []string{"00000001.lease", "00000002-abc.json", "00000000.lease", "1.lease", "-00000001.json", "00000001-.json", "99999999999999999999.lease"} {
		f.Add("p/journals/x/", "p/journals/x/"+key)
	}
	f.Fuzz(func(t *testing.T, dir, key string) {
		e, ok := parseEntry(dir, key)
		if !ok {
			return
		}
		again := fmt.Sprintf("%s%08d%s", dir, e.epoch, leaseExt)
		if e.owner != "" {
			again = fmt.Sprintf("%s%08d-%s%s", dir, e.epoch, e.owner, journalExt)
		}
		if again != key || e.key != key || e.epoch < 1 {
			t.Fatalf("%q was taken for %+v, which is written %q", key, e, again)
		}
	})
}
