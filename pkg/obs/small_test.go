// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

func TestSmallObjects(t *testing.T) {
	for name, keeps := range map[string]bool{"conditions kept": true, "conditions ignored": false} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{Conditions: keeps}, nil)
			s, c, ctx := e.server, e.client, t.Context()
			if _, err := c.GetSmall(ctx, obstest.Bucket, "a", 10); KindOf(err) != KindNotFound || !isCode(err, "NoSuchKey") {
				t.Fatalf("%v", err)
			}
			s.Inject(obstest.Throttle(obstest.OpPutObject, 1))
			if err := c.PutNew(ctx, obstest.Bucket, "a", []byte("one")); err != nil {
				t.Fatal(err)
			}
			if knows, err := c.KnowsConditions(ctx, obstest.Bucket, "a", []byte("one")); err != nil || knows != keeps {
				t.Fatalf("%v, %v", knows, err)
			}
			want := "one"
			if err := c.PutNew(ctx, obstest.Bucket, "a", []byte("two")); keeps != (KindOf(err) == KindConflict) {
				t.Fatalf("%v", err)
			} else if !keeps {
				want = "two"
			}
			s.SetClock(time.Hour / 60)
			s.Inject(obstest.Throttle(obstest.OpGetObject, 1))
			got, err := c.GetSmall(ctx, obstest.Bucket, "a", 3)
			if err != nil || string(got.Data) != want || got.ETag == "" {
				t.Fatalf("%+v, %v", got, err)
			}
			if age := got.Date.Sub(got.Modified); age < time.Minute || age > 2*time.Minute {
				t.Errorf("it is %v old by the store's clock, which went a minute on", age)
			}
			if _, err := c.GetSmall(ctx, obstest.Bucket, "a", 2); KindOf(err) != KindInvalid {
				t.Errorf("%v", err)
			}
			if _, err := c.GetSmall(ctx, "no-such-bucket", "a", 2); !isCode(err, "NoSuchBucket") {
				t.Errorf("%v", err)
			}
			// Half an answer is asked for again.
			s.Inject(obstest.Fault{Op: obstest.OpGetObject, Do: obstest.CutAnswer, Times: 1})
			if got, err := c.GetSmall(ctx, obstest.Bucket, "a", 3); err != nil || string(got.Data) != want {
				t.Errorf("%q, %v", got.Data, err)
			}
			// A store may refuse what it doesn't know.
			s.Inject(obstest.Refuse(obstest.OpPutObject, 501, "NotImplemented"))
			if knows, err := c.KnowsConditions(ctx, obstest.Bucket, "a", []byte("one")); err != nil || knows {
				t.Errorf("%v, %v", knows, err)
			}
			if v := s.Violations(); len(v) > 0 {
				t.Errorf("%q", v)
			}
		})
	}
}
