// SPDX-License-Identifier: Apache-2.0

package batch_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

// memory is a store of states in memory.
type memory map[string]*batch.State

func (m memory) Load(_ context.Context, name string) (*batch.State, error) {
	if s := m[name]; s != nil {
		c := *s
		return &c, nil
	}
	return nil, nil
}
func (m memory) Save(_ context.Context, s *batch.State) error { m[s.Name] = s; return nil }
func (m memory) Held(_ context.Context, name string) (bool, error) {
	return strings.HasPrefix(name, "held"), nil
}
func (m memory) Lock(ctx context.Context, _ string) (context.Context, func(), error) {
	return ctx, func() {}, nil
}

const hostile = `</td><script>alert(1)</script>|[x](javascript:alert(1))` + "`'\"&\u202e"

// newReport has an image of every kind, some with hostile texts.
func newReport(t *testing.T) *batch.Report {
	t.Helper()
	quoted, err := json.Marshal(hostile)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.ReplaceAll(string(quoted), "\\u202e", "\u202e")
	p, err := batch.Parse("plan.yaml", []byte(`version: 1
name: b
images:
- {name: done, source: `+name+`, machine: web}
- {name: `+name+`, source: x, machine: web, type: data}
- {name: held, source: y}
- {name: died, source: z}
- {name: fresh, source: f}
- {name: told, source: g, refused: `+name+`}
- {name: left, source: h, skip: true}
- {name: held-waiting, source: i, machine: db}
`))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	phases := []batch.PhaseTime{{Phase: pipeline.PhaseUpload, Seconds: 8}, {Phase: pipeline.PhaseJob, Seconds: 2}}
	m := memory{
		"done": {Name: "done", Status: batch.StatusDone, Runs: 2, First: start, Started: start, Ended: start.Add(10 * time.Second), Phases: phases,
			Disk:     &batch.DiskFacts{Format: "qcow2", VirtualSize: 40 << 30},
			Result:   &pipeline.Result{ImageID: "id-1", Upload: pipeline.UploadResult{Format: "zvhd2", DataBytes: 4 << 30, BytesSent: 2 << 30, BytesResumed: 2 << 30}},
			Warnings: []string{hostile}},
		hostile: {Name: hostile, Status: batch.StatusFailed, Runs: 1, Attempts: 5, First: start, Started: start.Add(5 * time.Second), Ended: start.Add(20 * time.Second),
			Phases: phases, Failure: &batch.Failure{Kind: pipeline.KindJob, Message: "job failed\n" + hostile, Hint: hostile, Phase: pipeline.PhaseJob, At: start}},
		"held":         {Name: "held", Status: batch.StatusRunning, Started: start, Phase: pipeline.PhaseUpload, Progress: &batch.Progress{Unit: pipeline.UnitBytes, Done: 5, Total: 10}},
		"died":         {Name: "died", Status: batch.StatusRunning, Started: start},
		"held-waiting": {Name: "held-waiting", Status: batch.StatusWaiting, Failure: &batch.Failure{Kind: pipeline.KindTransient, Message: "no route"}},
	}
	r, err := batch.NewReport(t.Context(), p, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReport(t *testing.T) {
	r := newReport(t)
	want := batch.Totals{Images: 8, Done: 1, Failed: 1, Refused: 1, Running: 1, Waiting: 1, Interrupted: 1, Pending: 1, Skipped: 1,
		VirtualSize: 40 << 30, DataBytes: 4 << 30, BytesSent: 2 << 30}
	got := r.Totals
	got.Seconds = 0
	if got != want {
		t.Errorf("totals %+v, want %+v", got, want)
	}
	if len(r.Machines) != 2 || r.Machines[0].Complete || fmt.Sprint(r.Machines[0].Missing) != "["+hostile+"]" {
		t.Errorf("machines %+v", r.Machines)
	}
	if i := r.Images[0]; i.Rate != float64(4<<30)/8 || i.Seconds != 10 || i.ImageID != "id-1" {
		t.Errorf("image %+v", i)
	}
	if f := r.Images[3].Failure; f == nil || f.Kind != pipeline.KindInterrupted {
		t.Errorf("one that died has the failure %+v", f)
	}
	if r.Verdict() == "" || !r.Ended.IsZero() {
		t.Errorf("it says %q and ended at %v", r.Verdict(), r.Ended)
	}
}

// TestReportHostile: whatever names and messages hold, they are text.
func TestReportHostile(t *testing.T) {
	r := newReport(t)
	var page bytes.Buffer
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	doc, err := html.Parse(bytes.NewReader(page.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for n := range doc.Descendants() {
		switch n.Type {
		case html.ElementNode:
			switch n.Data {
			case "script", "a", "img", "link", "iframe", "object", "base", "form", "svg":
				t.Errorf("there is a %s in the page", n.Data)
			}
			for _, a := range n.Attr {
				if strings.HasPrefix(a.Key, "on") || a.Key == "src" || a.Key == "href" {
					t.Errorf("%s has the attribute %s=%q", n.Data, a.Key, a.Val)
				}
			}
		case html.TextNode:
			text += n.Data
		}
	}
	// The name, the source, twice the message, the hint, the reason of the plan, a warning, two lists of the machine.
	if n := strings.Count(text, hostile); n < 9 {
		t.Errorf("the page has the text %d times", n)
	}
	for _, outside := range []string{"http://", "https://", "@import", "url("} {
		if strings.Contains(page.String(), outside) {
			t.Errorf("the page refers to something outside: %s", outside)
		}
	}

	var md bytes.Buffer
	if err := r.WriteMarkdown(&md); err != nil {
		t.Fatal(err)
	}
	for _, raw := range []string{"<script", "</td>", "[x](", "\u202e"} {
		if strings.Contains(md.String(), raw) {
			t.Errorf("the Markdown has %q:\n%s", raw, md.String())
		}
	}
	for line := range strings.Lines(md.String()) {
		bars := strings.Count(line, "|") - strings.Count(line, `\|`)
		if strings.HasPrefix(line, "| 1 |") && bars != 13 {
			t.Errorf("a row has %d bars: %s", bars, line)
		}
	}
}

func TestReportFiles(t *testing.T) {
	r := newReport(t)
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 2 { // the second replaces the first
		written, err := r.WriteDir(dir)
		if err != nil || len(written) != 3 {
			t.Fatal(written, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("%v, %v", entries, err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var back batch.Report
	if err := json.Unmarshal(b, &back); err != nil || len(back.Images) != 8 || back.Images[1].Name != hostile {
		t.Errorf("%v, %+v", err, back)
	}
}
