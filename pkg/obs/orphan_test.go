// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

// TestLostBegin loses or cuts answers to beginning an upload: the upload that nobody has the id of goes, and
// what may be somebody else's stays.
func TestLostBegin(t *testing.T) {
	t.Parallel()
	begin := func(do obstest.Action, times int) obstest.Fault {
		return obstest.Fault{Op: obstest.OpInitiate, Times: times, Do: do, Match: func(q *obstest.Request) bool { return q.Key == testKey }}
	}
	for _, tc := range []struct {
		name   string
		fault  obstest.Fault
		ownKey bool
		// others begin with the first attempt: an empty upload, one with a part, an old one
		empty, busy, old int
		also             *obstest.Fault
		fails            bool
		stays            int    // uploads, in the end
		left             string // a part of what is told to be left; "" for nothing
	}{
		{name: "lost", fault: begin(obstest.Lose, 1)},
		{name: "cut", fault: begin(obstest.CutAnswer, 1)},
		{name: "lost more than once", fault: begin(obstest.Lose, 3)},
		{name: "never heard", fault: begin(obstest.CutAnswer, 0), fails: true},
		{name: "refused for a while", fault: obstest.Throttle(obstest.OpInitiate, 2), empty: 1, stays: 1},
		{name: "others are at work", fault: begin(obstest.CutAnswer, 1), busy: 1, old: 2, stays: 3},
		{name: "another begins at the same moment", fault: begin(obstest.CutAnswer, 1), empty: 1, stays: 2, left: "somebody else's"},
		{name: "nobody else has the key", fault: begin(obstest.Lose, 2), ownKey: true, empty: 1, busy: 1, old: 1},
		{name: "never heard of the own key", fault: begin(obstest.Lose, 0), ownKey: true, fails: true},
		{name: "lists are refused", fault: begin(obstest.Lose, 1), also: &obstest.Fault{Op: obstest.OpListUploads, Do: obstest.Fail, Status: 403, Code: "AccessDenied"},
			stays: 1, left: "perhaps an empty upload of " + testKey},
		{name: "no clock", fault: begin(obstest.Lose, 1), also: &obstest.Fault{Op: obstest.OpHeadBucket, Do: obstest.Fail, Status: 403},
			stays: 1, left: "perhaps"},
		{name: "parts can't be listed", fault: begin(obstest.Lose, 1), also: &obstest.Fault{Op: obstest.OpListParts, After: 1, Do: obstest.Fail, Status: 403,
			Code: "AccessDenied"}, stays: 1, left: "somebody else's"},
		{name: "it can't be removed", fault: begin(obstest.Lose, 1), also: &obstest.Fault{Op: obstest.OpAbort, Do: obstest.Fail, Status: 403, Code: "AccessDenied"},
			stays: 1, left: "upload "},
	} {
		for _, stream := range []bool{false, true} {
			name := tc.name + ", planned"
			if stream {
				name = tc.name + ", stream"
			}
			t.Run(name, func(t *testing.T) {
				e := newEnv(t, obstest.Options{}, nil)
				first := true
				e.server.Inject(obstest.Fault{Op: obstest.OpInitiate, Do: obstest.Observe, Match: func(q *obstest.Request) bool {
					if !first || q.Key != testKey {
						return false
					}
					first = false
					for range tc.old {
						e.server.AddUpload(obstest.Bucket, testKey)
					}
					e.server.Backdate(obstest.Bucket, testKey, time.Minute, false)
					for range tc.empty {
						e.server.AddUpload(obstest.Bucket, testKey)
					}
					for range tc.busy {
						e.server.AddUpload(obstest.Bucket, testKey, obstest.Zeros(5<<20))
					}
					return false
				}})
				fired := e.server.Inject(tc.fault)
				if tc.also != nil {
					also := e.server.Inject(*tc.also)
					defer func() {
						if also.Fired() == 0 {
							t.Error("the second fault didn't happen")
						}
					}()
				}
				left, err := e.sendSmall(t.Context(), stream, tc.ownKey)
				if fired.Fired() == 0 {
					t.Fatal("the fault didn't happen")
				}
				if (err != nil) != tc.fails {
					t.Fatalf("error %v", err)
				}
				if got := e.server.Uploads(); len(got) != tc.stays || slices.ContainsFunc(got, func(k string) bool { return k != testKey }) {
					t.Errorf("%d uploads are there, want %d", len(got), tc.stays)
				}
				said := strings.Join(left, ", ")
				if !strings.Contains(said, tc.left) || (tc.left == "") != (said == "") {
					t.Errorf("said to be left: %q, want %q", said, tc.left)
				}
			})
		}
	}
}

// sendSmall sends a small object and returns what is said to be left.
func (e *env) sendSmall(ctx context.Context, stream, ownKey bool) ([]string, error) {
	var res *UploadResult
	var err error
	if stream {
		o := e.streamOptions()
		o.OwnKey = ownKey
		res, err = e.client.UploadStream(ctx, o, func(_ context.Context, w io.Writer) error {
			_, err := w.Write(make([]byte, 1000))
			return err
		})
	} else {
		plan, perr := NewPlan(1<<20, seq(Extent{Length: 1 << 20}), PlanOptions{})
		if perr != nil {
			return nil, perr
		}
		o := e.options(&disk{content: obstest.Zeros(1 << 20)}, plan)
		o.OwnKey = ownKey
		res, err = e.client.Upload(ctx, o)
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.Left, err
	}
	if err != nil {
		return nil, err
	}
	return res.Left, nil
}
