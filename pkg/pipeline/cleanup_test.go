// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/ims/imstest"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// littered is a bucket with everything that a run can leave, what is in use, and what is of others.
func littered(t *testing.T) *cloud {
	c, stop := newCloud(t, obstest.Options{UploadsPage: 3}, imstest.Options{})
	t.Cleanup(stop)
	content, err := obstest.NewContent(bytes.NewReader([]byte("something")))
	if err != nil {
		t.Fatal(err)
	}
	const day = 24 * time.Hour
	object := func(key string, age time.Duration, ours bool) {
		o := &obstest.Object{Content: content, ETag: key, Modified: time.Now(), Metadata: map[string]string{}}
		if ours {
			o.Metadata[obs.RunIDMetadata] = "run-1"
		}
		c.store.PutObject(obstest.Bucket, key, o)
		c.store.Backdate(obstest.Bucket, key, age, true)
	}
	upload := func(key string, begun time.Duration, withParts bool) {
		c.store.AddUpload(obstest.Bucket, key, content, content)
		c.store.Backdate(obstest.Bucket, key, begun, withParts)
	}
	upload("dead.raw", 3*day, true)
	upload("long.raw", 3*day, false) // begun long ago, its last part came just now
	upload("young.zvhd2", time.Minute, true)
	upload("backup.tar", 3*day, true) // another program's
	upload("dead.raw.imsprep-zero-run-1-2", 3*day, true)
	object("dead.raw.imsprep-zero-run-1-0", 3*day, true)
	object("long.raw.imsprep-zero-run-2-0", 3*day, true) // of an upload that goes on
	object("dead.raw.imsprep-piece-run-1-4", 3*day, true)
	object("x.imsprep-zero-of-somebody-else", 3*day, false)
	object("imsprep-zeros/1073741824", 3*day, true) // kept, but long.raw may copy from it
	object("kept.raw", 2*day, true)
	object("kept.mf", 2*day, true)
	object("kept.raw.imsprep.json", 2*day, true)
	object("new.raw", time.Minute, true)
	object("new.mf", time.Minute, true)
	object("others.raw", 3*day, false)
	object("others.mf", 3*day, false)
	object("gone.mf", 3*day, true)
	object("gone.zvhd2.imsprep.json", 3*day, true)
	object("letter.txt", 3*day, true)
	return c
}

// outcome is what was found: what is to go, and what is to stay.
func outcome(found *pipeline.Leftovers) (gone, kept []string) {
	for _, l := range found.List {
		name := string(l.Kind) + " " + l.Key
		if l.Keep == "" {
			gone = append(gone, name)
		} else {
			kept = append(kept, name)
		}
	}
	return gone, kept
}

func TestFindLeftovers(t *testing.T) {
	c := littered(t)
	before := c.store.Keys(obstest.Bucket)
	always := []string{
		"upload dead.raw", "piece dead.raw.imsprep-piece-run-1-4", "zeros dead.raw.imsprep-zero-run-1-0",
		"upload dead.raw.imsprep-zero-run-1-2", "companion gone.mf", "companion gone.zvhd2.imsprep.json",
	}
	inUse := []string{
		"shared-zero imsprep-zeros/1073741824", "upload long.raw", "zeros long.raw.imsprep-zero-run-2-0", "upload young.zvhd2",
	}
	for _, tc := range []struct {
		name    string
		want    pipeline.Cleanup
		gone    []string
		kept    []string
		foreign int
	}{
		{name: "as it is", want: pipeline.Cleanup{OlderThan: 24 * time.Hour}, gone: always, kept: inUse, foreign: 1},
		{name: "with kept objects", want: pipeline.Cleanup{OlderThan: 24 * time.Hour, KeptObjects: true},
			gone: append(slices.Clone(always), "object kept.raw"), kept: append(slices.Clone(inUse), "object new.raw"), foreign: 1},
		{name: "everything", want: pipeline.Cleanup{KeptObjects: true},
			gone: append(append(slices.Clone(always), inUse...), "object kept.raw", "object new.raw"), foreign: 1},
		// What isn't listed under a prefix is looked for, lest a bitmap be taken from its disk.
		{name: "prefix", want: pipeline.Cleanup{Prefix: "kept.m"}},
		{name: "prefix of a helper", want: pipeline.Cleanup{Prefix: "imsprep-zeros/", OlderThan: time.Hour},
			kept: []string{"shared-zero imsprep-zeros/1073741824"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.want.Bucket = obstest.Bucket
			found, err := c.FindLeftovers(t.Context(), tc.want)
			if err != nil {
				t.Fatal(err)
			}
			gone, kept := outcome(found)
			for _, l := range [][]string{gone, kept, tc.gone, tc.kept} {
				slices.Sort(l)
			}
			if !slices.Equal(gone, tc.gone) || !slices.Equal(kept, tc.kept) || found.Foreign != tc.foreign {
				t.Errorf("to go:\n %q\nwant\n %q\nto stay:\n %q\nwant\n %q\n%d foreign, want %d",
					gone, tc.gone, kept, tc.kept, found.Foreign, tc.foreign)
			}
			for _, l := range found.List {
				if l.Why == "" || l.Changed.IsZero() || l.Size <= 0 {
					t.Errorf("incomplete: %+v", l)
				}
			}
		})
	}
	if after := c.store.Keys(obstest.Bucket); !slices.Equal(before, after) {
		t.Errorf("looking changed the bucket: %q", after)
	}
}

func TestRemoveLeftovers(t *testing.T) {
	c := littered(t)
	found, err := c.FindLeftovers(t.Context(), pipeline.Cleanup{Bucket: obstest.Bucket, OlderThan: 24 * time.Hour, KeptObjects: true})
	if err != nil {
		t.Fatal(err)
	}
	told := map[*pipeline.Leftover]bool{}
	if err := c.RemoveLeftovers(t.Context(), found, func(l *pipeline.Leftover) { told[l] = true }); err != nil {
		t.Fatal(err)
	}
	for _, l := range found.List {
		if l.Removed != (l.Keep == "") || told[l] != l.Removed {
			t.Errorf("%s: removed %v, told %v, keep %q", l.Name(), l.Removed, told[l], l.Keep)
		}
	}
	if got, want := c.store.Keys(obstest.Bucket), []string{
		"imsprep-zeros/1073741824", "letter.txt", "long.raw.imsprep-zero-run-2-0", "new.mf", "new.raw", "others.mf", "others.raw",
		"x.imsprep-zero-of-somebody-else",
	}; !slices.Equal(got, want) {
		t.Errorf("in the bucket are\n%q, want\n%q", got, want)
	}
	if got, want := c.store.Uploads(), []string{"backup.tar", "long.raw", "young.zvhd2"}; !slices.Equal(got, want) {
		t.Errorf("uploads %q, want %q", got, want)
	}
	again, err := c.FindLeftovers(t.Context(), pipeline.Cleanup{Bucket: obstest.Bucket, OlderThan: 24 * time.Hour, KeptObjects: true})
	if err != nil {
		t.Fatal(err)
	}
	if gone, _ := outcome(again); len(gone) > 0 {
		t.Errorf("found again: %q", gone)
	}
}

// TestRemoveLeftoversInTrouble: what can't be removed is said, and the rest is removed all the same.
func TestRemoveLeftoversInTrouble(t *testing.T) {
	for name, tc := range map[string]struct {
		trouble func(c *cloud)
		fails   map[string]string // key: what its error says
	}{
		"denied": {func(c *cloud) {
			c.store.Inject(obstest.Refuse(obstest.OpDelete, 403, "AccessDenied"))
		}, map[string]string{"gone.mf": "AccessDenied", "dead.raw.imsprep-piece-run-1-4": "AccessDenied"}},
		"replaced meanwhile": {func(c *cloud) {
			o := *c.store.Object(obstest.Bucket, "gone.mf")
			o.ETag = "another"
			c.store.PutObject(obstest.Bucket, "gone.mf", &o)
		}, map[string]string{"gone.mf": "replaced"}},
		"not really deleted": {func(c *cloud) {
			c.store.Inject(obstest.Fault{Op: obstest.OpDelete, Do: obstest.Fail, Status: 204,
				Match: func(r *obstest.Request) bool { return r.Key == "gone.mf" }})
		}, map[string]string{"gone.mf": "still there"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := littered(t)
			found, err := c.FindLeftovers(t.Context(), pipeline.Cleanup{Bucket: obstest.Bucket, OlderThan: 24 * time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			tc.trouble(c)
			err = c.RemoveLeftovers(t.Context(), found, nil)
			var failed *pipeline.CleanupError
			if !errors.As(err, &failed) || failed.Failed < len(tc.fails) {
				t.Fatalf("%v", err)
			}
			got := map[string]string{}
			for _, l := range found.List {
				if l.Error != "" {
					got[l.Key] = l.Error
				}
				if l.Removed && l.Error != "" || l.Kind == pipeline.LeftoverUpload && l.Removed != (l.Keep == "") {
					t.Errorf("%+v", l)
				}
			}
			if failed.Failed != len(got) {
				t.Errorf("%d failed, %d say so", failed.Failed, len(got))
			}
			for key, say := range tc.fails {
				if !strings.Contains(got[key], say) || c.store.Object(obstest.Bucket, key) == nil {
					t.Errorf("%s: %q of %q", key, got[key], slices.Collect(maps.Keys(got)))
				}
			}
		})
	}
}

// writeJournal writes what a run would have remembered of an upload.
func writeJournal(t *testing.T, dir, name, endpoint, key, uploadID, jobID string, written time.Time) string {
	t.Helper()
	state := fmt.Sprintf(`{"written":%q,"path":"/disks/%s","target":{"endpoint":%q,"bucket":%q,"key":%q},"run_id":"run-j",`+
		`"upload":{"bucket":%[4]q,"key":%[5]q,"upload_id":%q,"run_id":"run-j"},"import":{"job_id":%q}}`,
		written.UTC().Format(time.RFC3339), name, endpoint, obstest.Bucket, key, uploadID, jobID)
	sum := sha256.Sum256([]byte(state))
	path := filepath.Join(dir, name+".json")
	if err := os.WriteFile(path, fmt.Appendf(nil, `{"imsprep_journal":1,"sha256":"%x","state":%s}`, sum, state), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestLeftoversWithJournals: what can be resumed, what a run is at work on and what the service may read
// is left alone, and so are journals of other places.
func TestLeftoversWithJournals(t *testing.T) {
	c, stop := newCloud(t, obstest.Options{}, imstest.Options{})
	defer stop()
	dir := t.TempDir()
	old := time.Now().Add(-72 * time.Hour)
	content, err := obstest.NewContent(strings.NewReader("something"))
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{}
	for _, key := range []string{"resume.raw", "busy.raw", "unknown.raw"} {
		ids[key] = c.store.AddUpload(obstest.Bucket, key, content)
		c.store.Backdate(obstest.Bucket, key, 72*time.Hour, true)
	}
	for _, key := range []string{"resume.raw.imsprep-zero-run-j-0", "imported.zvhd2"} {
		c.store.PutObject(obstest.Bucket, key, &obstest.Object{Content: content, ETag: key, Modified: old,
			Metadata: map[string]string{obs.RunIDMetadata: "run-j"}})
	}
	url := c.OBS.Endpoint()
	writeJournal(t, dir, "resume", url, "resume.raw", ids["resume.raw"], "", old)
	busy := writeJournal(t, dir, "busy", url, "busy.raw", ids["busy.raw"], "", old)
	writeJournal(t, dir, "imported", url, "imported.zvhd2", "done", "job-1", old)
	writeJournal(t, dir, "gone", url, "gone.raw", "no-such-upload", "", old)
	elsewhere := writeJournal(t, dir, "elsewhere", "https://obs.example.com", "a.raw", "no-such-upload", "", old)
	damaged := filepath.Join(dir, "damaged.json")
	if err := os.WriteFile(damaged, []byte(`{"imsprep_journal":1,`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(damaged, old, old); err != nil {
		t.Fatal(err)
	}
	release, err := pipeline.HoldJournal(busy)
	if err != nil {
		t.Fatal(err)
	}
	defer release()

	want := pipeline.Cleanup{Bucket: obstest.Bucket, OlderThan: 24 * time.Hour, KeptObjects: true, StateDir: dir}
	check := func(name string, wantGone, wantKept []string) *pipeline.Leftovers {
		t.Helper()
		found, err := c.FindLeftovers(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		gone, kept := outcome(found)
		for _, l := range [][]string{gone, kept, wantGone, wantKept} {
			slices.Sort(l)
		}
		if !slices.Equal(gone, wantGone) || !slices.Equal(kept, wantKept) {
			t.Errorf("%s: to go\n %q\nwant\n %q\nto stay\n %q\nwant\n %q", name, gone, wantGone, kept, wantKept)
		}
		return found
	}
	check("as it is", []string{"upload unknown.raw", "journal gone.raw", "journal "}, []string{
		"upload resume.raw", "zeros resume.raw.imsprep-zero-run-j-0", "journal resume.raw", "upload busy.raw", "journal busy.raw",
		"object imported.zvhd2", "journal imported.zvhd2",
	})
	want.Resumable = true
	found := check("resumable", []string{"upload unknown.raw", "journal gone.raw", "journal ", "upload resume.raw",
		"zeros resume.raw.imsprep-zero-run-j-0", "journal resume.raw", "object imported.zvhd2", "journal imported.zvhd2",
	}, []string{"upload busy.raw", "journal busy.raw"})
	if err := c.RemoveLeftovers(t.Context(), found, nil); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || !slices.Equal(left, []string{busy, elsewhere}) {
		t.Errorf("journals left: %q, %v", left, err)
	}
	if u, k := c.store.Uploads(), c.store.Keys(obstest.Bucket); !slices.Equal(u, []string{"busy.raw"}) || len(k) > 0 {
		t.Errorf("left are uploads %q, objects %q", u, k)
	}
}
