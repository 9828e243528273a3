// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"strings"
	texttemplate "text/template"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"

	"github.com/imsprep/imsprep/pkg/pipeline"
)

// Report is how far a batch is, or how it ended.
type Report struct {
	Batch     string          `json:"batch"`
	Plan      string          `json:"plan"` // path of the plan file
	Generated time.Time       `json:"generated"`
	Started   time.Time       `json:"started,omitzero"` // when the first image was begun
	Ended     time.Time       `json:"ended,omitzero"`   // when the last one ended; absent while any is at work
	Totals    Totals          `json:"totals"`
	Machines  []ReportMachine `json:"machines,omitempty"`
	Images    []ReportImage   `json:"images"`
}

// Totals count images and bytes.
type Totals struct {
	Images      int     `json:"images"`
	Done        int     `json:"done"`
	Failed      int     `json:"failed"`
	Refused     int     `json:"refused"`
	Running     int     `json:"running"`
	Waiting     int     `json:"waiting"`
	Interrupted int     `json:"interrupted"`
	Pending     int     `json:"pending"`
	Skipped     int     `json:"skipped"`
	VirtualSize int64   `json:"virtual_size"` // bytes of the disks of images that are done
	DataBytes   int64   `json:"data_bytes"`   // bytes of data in them
	BytesSent   int64   `json:"bytes_sent"`
	BytesCopied int64   `json:"bytes_copied"`
	Seconds     float64 `json:"seconds"` // from Started to Ended, or till now
}

// ReportMachine are the images of one machine. Complete says that all of them are done.
type ReportMachine struct {
	Machine  string   `json:"machine"`
	Complete bool     `json:"complete"`
	Images   []string `json:"images"`
	Missing  []string `json:"missing,omitempty"` // those that aren't done
}

// ReportImage is one image of a report.
type ReportImage struct {
	Index   int    `json:"index"` // in the plan, from 0
	Name    string `json:"name"`
	Source  string `json:"source"`
	Machine string `json:"machine,omitempty"`
	Type    string `json:"type"`
	Status  Status `json:"status"`
	ImageID string `json:"image_id,omitempty"`
	JobID   string `json:"job_id,omitempty"`

	DiskFormat   string          `json:"disk_format,omitempty"`
	ObjectFormat pipeline.Format `json:"object_format,omitempty"`
	VirtualSize  int64           `json:"virtual_size,omitempty"` // bytes
	DataBytes    int64           `json:"data_bytes,omitempty"`
	BytesSent    int64           `json:"bytes_sent,omitempty"`
	BytesCopied  int64           `json:"bytes_copied,omitempty"`
	BytesResumed int64           `json:"bytes_resumed,omitempty"` // that earlier runs had brought
	Retries      int             `json:"retries,omitempty"`       // requests that were repeated
	// Rate is bytes that were sent a second of the upload.
	Rate     float64        `json:"rate,omitempty"`
	Phase    pipeline.Phase `json:"phase,omitempty"`
	Progress *Progress      `json:"progress,omitempty"`
	Phases   []PhaseTime    `json:"phases,omitempty"`
	Seconds  float64        `json:"seconds,omitempty"` // in all phases and runs
	Runs     int            `json:"runs,omitempty"`
	Attempts int            `json:"attempts,omitempty"` // of the last run
	First    time.Time      `json:"first,omitzero"`     // when the first run began it
	Started  time.Time      `json:"started,omitzero"`   // when the last run began it
	Ended    time.Time      `json:"ended,omitzero"`
	Next     time.Time      `json:"next,omitzero"` // when it is tried again
	Worker   string         `json:"worker,omitempty"`
	Failure  *Failure       `json:"failure,omitempty"`
	Warnings []string       `json:"warnings,omitempty"`
}

// NewReport looks at the states of all images, or of those that are selected (nil is all).
func NewReport(ctx context.Context, p *Plan, store Store, selected func(*Image) bool) (*Report, error) {
	now := time.Now().UTC()
	r := &Report{Batch: p.Key(), Plan: p.File, Generated: now.Truncate(time.Second), Images: []ReportImage{}}
	for n := range p.Images {
		if selected != nil && !selected(&p.Images[n]) {
			continue
		}
		s, err := p.Status(ctx, store, n)
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			s = &State{Name: p.Images[n].Name, Status: StatusPending, Warnings: []string{err.Error()}}
		}
		r.add(p, n, s)
	}
	for _, i := range r.Images {
		if i.Status == StatusRunning || i.Status == StatusWaiting {
			r.Ended = time.Time{}
			break
		}
	}
	if end := r.Ended; !r.Started.IsZero() {
		if end.IsZero() {
			end = now
		}
		r.Totals.Seconds = end.Sub(r.Started).Seconds()
	}
	r.group()
	return r, nil
}

func (r *Report) add(p *Plan, at int, s *State) {
	i := &p.Images[at]
	out := ReportImage{
		Index: at, Name: i.Name, Source: i.Source, Machine: i.Machine, Type: i.Type, Status: s.Status, JobID: s.JobID,
		VirtualSize: int64(i.VirtualSize), Phase: s.Phase, Progress: s.Progress, Phases: s.Phases, Runs: s.Runs, Attempts: s.Attempts,
		First: s.First, Started: s.Started, Ended: s.Ended, Next: s.Next, Worker: s.Worker, Failure: s.Failure, Warnings: s.Warnings,
	}
	if i.OVADisk != "" {
		out.Source += ": " + i.OVADisk
	}
	if s.Disk != nil {
		out.DiskFormat, out.VirtualSize = s.Disk.Format, s.Disk.VirtualSize
	}
	var upload float64
	for _, t := range s.Phases {
		out.Seconds += t.Seconds
		if t.Phase == pipeline.PhaseUpload {
			upload = t.Seconds
		}
	}
	if res := s.Result; res != nil && s.Status == StatusDone {
		u := res.Upload
		out.ImageID, out.ObjectFormat = res.ImageID, u.Format
		out.DataBytes, out.BytesSent, out.BytesCopied, out.BytesResumed, out.Retries = u.DataBytes, u.BytesSent, u.BytesCopied, u.BytesResumed, u.Retries
		if upload > 0 {
			out.Rate = float64(u.BytesSent+u.BytesResumed) / upload
		}
		r.Totals.VirtualSize += out.VirtualSize
	}
	t := &r.Totals
	t.Images++
	*map[Status]*int{
		StatusDone: &t.Done, StatusFailed: &t.Failed, StatusRefused: &t.Refused, StatusRunning: &t.Running, StatusWaiting: &t.Waiting,
		StatusInterrupted: &t.Interrupted, StatusPending: &t.Pending, StatusSkipped: &t.Skipped,
	}[s.Status]++
	t.DataBytes += out.DataBytes
	t.BytesSent += out.BytesSent
	t.BytesCopied += out.BytesCopied
	if !s.First.IsZero() && (r.Started.IsZero() || s.First.Before(r.Started)) {
		r.Started = s.First
	}
	if s.Ended.After(r.Ended) {
		r.Ended = s.Ended
	}
	r.Images = append(r.Images, out)
}

// group puts the images of machines together.
func (r *Report) group() {
	at := map[string]int{}
	for _, i := range r.Images {
		if i.Machine == "" {
			continue
		}
		n, ok := at[i.Machine]
		if !ok {
			n = len(r.Machines)
			at[i.Machine] = n
			r.Machines = append(r.Machines, ReportMachine{Machine: i.Machine, Complete: true})
		}
		m := &r.Machines[n]
		m.Images = append(m.Images, i.Name)
		if i.Status != StatusDone {
			m.Complete = false
			m.Missing = append(m.Missing, i.Name)
		}
	}
}

//go:embed report.html.tmpl
var htmlText string

//go:embed report.md.tmpl
var markdownText string

var (
	htmlReport     = template.Must(template.New("report").Funcs(template.FuncMap(reportFuncs)).Parse(htmlText))
	markdownReport = texttemplate.Must(texttemplate.New("report").Funcs(reportFuncs).Parse(markdownText))
)

var reportFuncs = texttemplate.FuncMap{
	"bytes": func(n int64) string {
		if n == 0 {
			return "–"
		}
		return humanize.IBytes(uint64(max(n, 0)))
	},
	"rate": func(r float64) string {
		if r <= 0 {
			return "–"
		}
		return humanize.IBytes(uint64(r)) + "/s"
	},
	"seconds": secondsText,
	"time": func(t time.Time) string {
		if t.IsZero() {
			return "–"
		}
		return t.UTC().Format("2006-01-02 15:04:05 UTC")
	},
	"md":      markdownEscape,
	"phase":   phaseText,
	"percent": func(part, whole int) float64 { return float64(part) * 100 / float64(max(whole, 1)) },
	"join":    strings.Join,
}

// secondsText is a length of time for people.
func secondsText(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d <= 0:
		return "–"
	case d < 50*time.Millisecond:
		return "<0.1 s"
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", s)
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", s)
	case d < time.Hour:
		return fmt.Sprintf("%d min %02d s", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%d h %02d min", d/time.Hour, d%time.Hour/time.Minute)
}

func phaseText(p pipeline.Phase) string {
	switch p {
	case pipeline.PhaseUpload:
		return "upload"
	case pipeline.PhaseVerify:
		return "reading back"
	case pipeline.PhaseBitmap:
		return "bitmap"
	case pipeline.PhaseSubmit:
		return "import call"
	case pipeline.PhaseJob:
		return "import job"
	case pipeline.PhaseCleanup:
		return "clean-up"
	}
	return string(p)
}

// markdownEscape makes a text that may be anything a piece of one line of Markdown that shows it as it is.
func markdownEscape(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n':
			b.WriteString("<br>")
		case unicode.IsControl(r) || !unicode.IsPrint(r) && r != ' ':
			b.WriteRune('�')
		case strings.ContainsRune("\\`*_{}[]()#+-.!|~", r) && !strings.ContainsRune(".-()", r):
			b.WriteRune('\\')
			b.WriteRune(r)
		case r == '<':
			b.WriteString("&lt;")
		case r == '>':
			b.WriteString("&gt;")
		case r == '&':
			b.WriteString("&amp;")
		case r == ':': // keeps addresses from becoming links
			b.WriteString("&#58;")
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Bad lists the images that failed or were refused.
func (r *Report) Bad() []ReportImage {
	return r.with(func(i ReportImage) bool { return i.Status.Bad() })
}

// Unfinished lists those that another run goes on with.
func (r *Report) Unfinished() []ReportImage {
	return r.with(func(i ReportImage) bool {
		return i.Status == StatusInterrupted || i.Status == StatusPending || i.Status == StatusRunning || i.Status == StatusWaiting
	})
}

// Warned lists those that came through with something to know.
func (r *Report) Warned() []ReportImage {
	return r.with(func(i ReportImage) bool { return len(i.Warnings) > 0 && !i.Status.Bad() })
}

func (r *Report) with(is func(ReportImage) bool) []ReportImage {
	var list []ReportImage
	for _, i := range r.Images {
		if is(i) {
			list = append(list, i)
		}
	}
	return list
}

// Verdict is the outcome in a few words.
func (r *Report) Verdict() string {
	t := r.Totals
	switch {
	case t.Running+t.Waiting > 0:
		return fmt.Sprintf("%d of %d images are done; %d at work", t.Done, t.Images, t.Running+t.Waiting)
	case t.Failed+t.Refused > 0:
		return fmt.Sprintf("%d of %d images are done; %d need attention", t.Done, t.Images, t.Failed+t.Refused)
	case t.Interrupted+t.Pending > 0:
		return fmt.Sprintf("%d of %d images are done; the rest is to be gone on with", t.Done, t.Images)
	case t.Skipped > 0:
		return fmt.Sprintf("all %d images are done; %d were left out", t.Done, t.Skipped)
	}
	return fmt.Sprintf("all %d images are done", t.Done)
}

// window is from when an image was begun to its end, or to now.
func (i ReportImage) window(r *Report) time.Duration {
	end := i.Ended
	if end.IsZero() {
		end = r.Generated
	}
	return end.Sub(i.First)
}

// Offset and Width place an image on the batch's time line, in percent.
func (i ReportImage) Offset(r *Report) float64 {
	if i.First.IsZero() || r.Totals.Seconds <= 0 {
		return 0
	}
	return min(100, max(0, i.First.Sub(r.Started).Seconds()*100/r.Totals.Seconds))
}

// Width is how long the image took, see [ReportImage.Offset].
func (i ReportImage) Width(r *Report) float64 {
	if i.First.IsZero() || r.Totals.Seconds <= 0 {
		return 0
	}
	return min(100-i.Offset(r), max(0.5, i.window(r).Seconds()*100/r.Totals.Seconds))
}

// Share is the part of the image's time that a phase took, in percent. The rest it waited, or no run was
// at work.
func (i ReportImage) Share(r *Report, t PhaseTime) float64 {
	return t.Seconds * 100 / max(i.window(r).Seconds(), i.Seconds, 1e-9)
}

// WriteJSON writes the report as one document.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteMarkdown writes the report as Markdown. Names, which come from disks and people, can't break it.
func (r *Report) WriteMarkdown(w io.Writer) error { return markdownReport.Execute(w, r) }

// WriteHTML writes the report as one page that needs nothing else.
func (r *Report) WriteHTML(w io.Writer) error { return htmlReport.Execute(w, r) }

// WriteDir writes report.md, report.json and report.html into a folder, each whole or not at all.
func (r *Report) WriteDir(dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var written []string
	for _, f := range []struct {
		name  string
		write func(io.Writer) error
	}{{"report.md", r.WriteMarkdown}, {"report.json", r.WriteJSON}, {"report.html", r.WriteHTML}} {
		var b bytes.Buffer
		if err := f.write(&b); err != nil {
			return written, err
		}
		path := filepath.Join(dir, f.name)
		if err := replace(path, b.Bytes()); err != nil {
			return written, err
		}
		written = append(written, path)
	}
	return written, nil
}

// replace gives a file new content. Several processes may do so at the same time.
func replace(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // a second close of a closed file only fails
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := cmp.Or(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// About says in what the image failed, and how.
func (f *Failure) About(s Status) string {
	said := map[pipeline.ErrorKind]string{
		pipeline.KindRefused: "the disk can't be imported as it is", pipeline.KindUsage: "the plan, or what it names, has to be corrected",
		pipeline.KindAuth: "keys or rights", pipeline.KindTransient: "trouble that may pass", pipeline.KindJob: "the import job failed",
		pipeline.KindRunning: "the job still ran when the time was up", pipeline.KindUnclear: "it isn't clear whether the service took the import",
		pipeline.KindInterrupted: "interrupted",
	}[f.Kind]
	if said == "" {
		said = string(s)
	}
	if f.Phase != "" {
		said += ", in the " + phaseText(f.Phase)
	}
	return said
}
