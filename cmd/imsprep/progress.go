// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

const (
	progressAuto  = "auto"
	progressBar   = "bar"
	progressLines = "lines"
	progressJSON  = "json"
	progressNone  = "none"

	// lineEvery keeps a log readable over a night; jsonEvery keeps a consumer's display smooth.
	lineEvery = 10 * time.Second
	jsonEvery = time.Second
	// rateWindow smooths the rate over bursts of parts without hiding that a line has gone slow.
	rateWindow = 20 * time.Second
)

// progress shows the events of a run on standard error. close leaves the terminal in order; no
// event may follow it.
type progress interface {
	event(pipeline.Event)
	close()
}

func checkProgress(kind string) error {
	switch kind {
	case progressAuto, progressBar, progressLines, progressJSON, progressNone:
		return nil
	}
	return usagef("--progress %q: it is one of auto, bar, lines, json, none", kind)
}

// newProgress makes the view that the flags ask for.
func (a *app) newProgress() progress {
	shown := a.chooseProgress()
	a.view = &shared{progress: &logged{progress: shown, a: a, begun: map[pipeline.Phase]time.Time{}}, shown: shown}
	return a.view
}

// shared is a view that several goroutines may use.
type shared struct {
	mu sync.Mutex
	progress
	shown  progress
	closed atomic.Bool
}

func (s *shared) close() {
	s.closed.Store(true)
	s.progress.close()
}

// above is where lines go that are to stand above a progress bar, nil where there is none.
func (s *shared) above() io.Writer {
	if b, ok := s.shown.(*bars); ok && !s.closed.Load() {
		return b.p
	}
	return nil
}

func (s *shared) event(e pipeline.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.progress.event(e)
}

// retrying tells that a request to the image service is made again: it may wait for minutes, and
// silence would look like a hang.
func (a *app) retrying(e ims.RetryEvent) {
	a.metrics.retried("ims", e.Delay)
	if a.logging() {
		return // the client has told it to the log
	}
	note := fmt.Sprintf("%s: trying again in %v: %v", e.Op, e.Delay.Round(time.Millisecond), e.Err)
	if a.onRetry != nil {
		a.onRetry(note)
		return
	}
	if a.view == nil {
		if !a.flags.quiet {
			a.warn([]string{note})
		}
		return
	}
	a.view.event(pipeline.Event{State: pipeline.StateWarning, Note: note})
}

func (a *app) chooseProgress() progress {
	kind := a.flags.progress
	if kind == progressAuto {
		kind = progressLines
		if f, ok := a.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			kind = progressBar
		} else if a.logging() {
			kind = progressNone // the log tells it
		}
	}
	if a.flags.quiet {
		kind = progressNone
	}
	switch kind {
	case progressBar:
		return newBars(a.err, titles{job: a.jobTitle})
	case progressLines:
		return &lines{w: a.stderr(), titles: titles{job: a.jobTitle}}
	case progressJSON:
		return &jsonLines{enc: json.NewEncoder(a.stderr())}
	}
	return silent{}
}

// warn tells things to know before or after a run, in the form that progress has.
func (a *app) warn(warnings []string) {
	for _, w := range warnings {
		if a.logging() {
			a.log.Warn(w)
		} else if a.flags.progress == progressJSON {
			(&jsonLines{enc: json.NewEncoder(a.err)}).event(pipeline.Event{State: pipeline.StateWarning, Note: w})
		} else {
			fmt.Fprintf(a.err, "warning: %s\n", printable(w))
		}
	}
}

// say tells people how something ended; programs have the result.
func (a *app) say(format string, args ...any) {
	if a.logging() {
		a.log.Info(fmt.Sprintf(format, args...))
		return
	}
	if a.flags.progress != progressJSON && !a.flags.quiet {
		fmt.Fprintln(a.err, printable(fmt.Sprintf(format, args...)))
	}
}

type silent struct{}

func (silent) event(pipeline.Event) {}
func (silent) close()               {}

// meter knows how fast something goes, over the last rateWindow.
type meter struct {
	samples []sample
}

type sample struct {
	at   time.Time
	done int64
}

// add takes a new count and drops what has left the window.
func (m *meter) add(at time.Time, done int64) {
	m.samples = append(m.samples, sample{at, done})
	for len(m.samples) > 2 && at.Sub(m.samples[1].at) > rateWindow {
		m.samples = m.samples[1:]
	}
}

// rate is in units a second; 0 if it isn't known.
func (m *meter) rate() float64 {
	if len(m.samples) < 2 {
		return 0
	}
	first, last := m.samples[0], m.samples[len(m.samples)-1]
	if d := last.at.Sub(first.at).Seconds(); d > 0 {
		return float64(last.done-first.done) / d
	}
	return 0
}

// left is the time to go; negative if it isn't known.
func (m *meter) left(done, total int64) time.Duration {
	r := m.rate()
	if r <= 0 || total <= 0 {
		return -1
	}
	return time.Duration(float64(total-done) / r * float64(time.Second)).Round(time.Second)
}

// describe is a count for people: how much of what, how fast, how long still.
func describe(e pipeline.Event, m *meter) string {
	if e.Unit == pipeline.UnitPercent {
		return fmt.Sprintf("%d%%", e.Done)
	}
	s := fmt.Sprintf("%s of %s", humanize.IBytes(uint64(e.Done)), humanize.IBytes(uint64(e.Total)))
	if r := m.rate(); r > 0 {
		s += fmt.Sprintf(", %s/s", humanize.IBytes(uint64(r)))
	}
	if l := m.left(e.Done, e.Total); l > 0 {
		s += fmt.Sprintf(", %v left", l)
	}
	return s
}

// title says in words what a phase does.
func title(p pipeline.Phase) string {
	switch p {
	case pipeline.PhaseUpload:
		return "Uploading"
	case pipeline.PhaseBitmap:
		return "Writing the bitmap"
	case pipeline.PhaseSubmit:
		return "Submitting the import"
	case pipeline.PhaseJob:
		return "Importing"
	case pipeline.PhaseCleanup:
		return "Cleaning up"
	case pipeline.PhaseVerify:
		return "Reading back"
	case phaseConvert:
		return "Converting"
	case phaseScan:
		return "Reading"
	}
	return string(p)
}

// titles says what phases do, in a command whose job may be no import.
type titles struct{ job string } // "" = an import

func (t titles) title(p pipeline.Phase) string {
	if p == pipeline.PhaseJob && t.job != "" {
		return t.job
	}
	return title(p)
}

// The phases of local commands, beside the pipeline's own.
const (
	phaseConvert pipeline.Phase = "convert"
	phaseScan    pipeline.Phase = "scan"
)

// resuming tells how much an earlier run has done.
func resuming(e pipeline.Event) string {
	return fmt.Sprintf("%s: resuming, %s of %s were there already", title(e.Phase),
		humanize.IBytes(uint64(e.Resumed)), humanize.IBytes(uint64(e.Total)))
}

// lines shows progress where there is no terminal: a line at each turn, and one at intervals.
type lines struct {
	titles
	w     io.Writer
	last  time.Time
	meter meter
}

func (l *lines) event(e pipeline.Event) {
	now := time.Now()
	switch e.State {
	case pipeline.StateStart:
		l.last, l.meter = now, meter{}
		if e.Note != "" {
			fmt.Fprintf(l.w, "%s: %s\n", l.title(e.Phase), printable(e.Note))
			return
		}
		if e.Resumed > 0 {
			fmt.Fprintln(l.w, resuming(e))
			return
		}
		fmt.Fprintln(l.w, l.title(e.Phase))
	case pipeline.StateWarning:
		fmt.Fprintf(l.w, "warning: %s\n", printable(e.Note))
	case pipeline.StateProgress:
		l.meter.add(now, e.Done-e.Resumed)
		if now.Sub(l.last) >= lineEvery {
			l.last = now
			fmt.Fprintf(l.w, "%s: %s\n", l.title(e.Phase), describe(e, &l.meter))
		}
	case pipeline.StateDone:
		if e.Unit == pipeline.UnitBytes {
			fmt.Fprintf(l.w, "%s: done, %s\n", l.title(e.Phase), humanize.IBytes(uint64(e.Done)))
		} else if e.Note != "" {
			fmt.Fprintf(l.w, "%s: done, %s\n", l.title(e.Phase), e.Note)
		}
	}
}

func (l *lines) close() {}

// jsonLines shows progress to programs: an event a line, with the rate.
type jsonLines struct {
	enc   *json.Encoder
	last  time.Time
	meter meter
}

func (j *jsonLines) event(e pipeline.Event) {
	now := time.Now()
	if e.State == pipeline.StateStart {
		j.meter = meter{}
	}
	if e.State == pipeline.StateProgress {
		j.meter.add(now, e.Done-e.Resumed)
		if now.Sub(j.last) < jsonEvery {
			return
		}
		j.last = now
	}
	_ = j.enc.Encode(struct {
		Time time.Time `json:"time"`
		pipeline.Event
		Rate float64 `json:"rate,omitempty"`
	}{now.UTC(), e, j.meter.rate()})
}

func (j *jsonLines) close() {}

// bars shows a bar a phase on a terminal, without colour.
type bars struct {
	titles
	p   *mpb.Progress
	w   io.Writer
	bar *mpb.Bar

	mu    sync.Mutex // the drawing goroutine reads what follows
	now   pipeline.Event
	meter meter
}

func newBars(w io.Writer, t titles) *bars {
	return &bars{titles: t, p: mpb.New(mpb.WithOutput(w), mpb.WithWidth(40), mpb.WithAutoRefresh()), w: w}
}

func (b *bars) event(e pipeline.Event) {
	b.mu.Lock()
	if e.State == pipeline.StateStart {
		b.meter = meter{}
	}
	if e.State == pipeline.StateProgress {
		b.meter.add(time.Now(), e.Done-e.Resumed)
	}
	if e.State != pipeline.StateWarning {
		b.now = e
	}
	b.mu.Unlock()
	switch e.State {
	case pipeline.StateStart:
		if e.Resumed > 0 {
			fmt.Fprintln(b.p, resuming(e))
		}
		if e.Total > 0 {
			b.bar = b.add(e)
			b.bar.SetCurrent(e.Done)
		}
	case pipeline.StateWarning:
		fmt.Fprintf(b.p, "warning: %s\n", printable(e.Note))
	case pipeline.StateProgress:
		if b.bar != nil {
			b.bar.SetCurrent(e.Done)
		}
	case pipeline.StateDone:
		if b.bar != nil {
			b.bar.SetCurrent(e.Done)
			b.bar.SetTotal(-1, true)
			b.bar.Wait()
			b.bar = nil
		}
	}
}

func (b *bars) add(e pipeline.Event) *mpb.Bar {
	name := fmt.Sprintf("%-10s", b.title(e.Phase))
	return b.p.New(e.Total, mpb.BarStyle().Lbound("[").Filler("#").Tip(">").Padding("-").Rbound("]"),
		mpb.PrependDecorators(decor.Name(name)),
		mpb.AppendDecorators(decor.Percentage(), decor.Any(func(decor.Statistics) string {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.now.Phase != e.Phase {
				return ""
			}
			if e.Unit == pipeline.UnitPercent {
				return "  " + b.now.Note
			}
			return "  " + describe(b.now, &b.meter)
		})))
}

func (b *bars) close() {
	if b.bar != nil {
		b.bar.Abort(false)
	}
	b.p.Wait()
}
