// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

// TestRoundTripLeavesNothing: whatever fails, and whenever the run is ended, nothing stays in the bucket
// that can be removed, and what can't be is named.
func TestRoundTripLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		fault    *obstest.Fault
		cancelAt obstest.Op
		kind     Kind // of the error; KindOther: none
		refused  bool
		left     bool
	}{
		{name: "all is well"},
		{name: "no copies", fault: &obstest.Fault{Op: obstest.OpCopyPart, Do: obstest.Fail, Status: 501, Code: "NotImplemented"}, refused: true},
		{name: "no writing", fault: &obstest.Fault{Op: obstest.OpPutObject, Do: obstest.Fail, Status: 403, Code: "AccessDenied"}, kind: KindAuth},
		{name: "no multipart", fault: &obstest.Fault{Op: obstest.OpInitiate, Do: obstest.Fail, Status: 403, Code: "AccessDenied"}, kind: KindAuth},
		{name: "no completing", fault: &obstest.Fault{Op: obstest.OpComplete, Do: obstest.Fail, Status: 403, Code: "AccessDenied"}, kind: KindAuth},
		{name: "no reading", fault: &obstest.Fault{Op: obstest.OpGetObject, Do: obstest.Fail, Status: 403, Code: "AccessDenied"}, kind: KindAuth},
		{name: "lost answer to beginning", fault: &obstest.Fault{Op: obstest.OpInitiate, Do: obstest.Lose, Times: 1}},
		{name: "lost answer to completing", fault: &obstest.Fault{Op: obstest.OpComplete, Do: obstest.Lose, Times: 1}},
		{name: "no listing", fault: &obstest.Fault{Op: obstest.OpListUploads, Do: obstest.Fail, Status: 403, Code: "AccessDenied"}},
		{name: "no deleting", fault: &obstest.Fault{Op: obstest.OpDelete, Do: obstest.Fail, Status: 403, Code: "AccessDenied"}, left: true},
		{name: "ended while sending", cancelAt: obstest.OpPutObject, kind: KindCanceled},
		{name: "ended while beginning", cancelAt: obstest.OpInitiate, kind: KindCanceled},
		{name: "ended while copying", cancelAt: obstest.OpCopyPart, kind: KindCanceled},
		{name: "ended while completing", cancelAt: obstest.OpComplete, kind: KindCanceled},
		{name: "ended while reading", cancelAt: obstest.OpGetObject, kind: KindCanceled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{}, nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tc.fault != nil {
				e.server.Inject(*tc.fault)
			}
			if tc.cancelAt != "" {
				e.server.Inject(obstest.Fault{Op: tc.cancelAt, Do: obstest.Observe, Match: func(*obstest.Request) bool { cancel(); return true }})
			}
			res, err := e.client.RoundTrip(ctx, obstest.Bucket, "doctor")
			if (err != nil) != (tc.kind != KindOther) || KindOf(err) != tc.kind {
				t.Fatalf("%v, want kind %v", err, tc.kind)
			}
			if (res.CopyRefused != nil) != tc.refused || (len(res.Left) > 0) != tc.left {
				t.Errorf("%+v", res)
			}
			e.server.Quiet()
			if keys, uploads := e.server.Keys(obstest.Bucket), e.server.Uploads(); len(keys)+len(uploads) != len(res.Left) {
				t.Errorf("left are objects %q and uploads %q; it says %q", keys, uploads, res.Left)
			}
			for _, v := range e.server.Violations() {
				t.Error(v)
			}
			if err == nil && (res.BytesSent < MinPartSize || !tc.refused && res.BytesSent > MinPartSize+roundTripTail) {
				t.Errorf("%d bytes sent", res.BytesSent)
			}
			for _, key := range e.server.Keys(obstest.Bucket) {
				if !strings.Contains(key, ".imsprep-piece-") {
					t.Errorf("cleaning up would not know %q", key)
				}
			}
		})
	}
}
