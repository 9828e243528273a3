// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

// batchView shows the events of a batch on standard error, as progress does those of one run. It may be
// used by several goroutines.
type batchView interface {
	event(batch.Event)
	close()
}

func (a *app) newBatchView(p *batch.Plan, selected func(*batch.Image) bool) batchView {
	kind := a.flags.progress
	if kind == progressAuto {
		kind = progressLines
		if f, ok := a.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			kind = progressBar
		}
	}
	if a.flags.quiet {
		kind = progressNone
	}
	switch kind {
	case progressBar:
		n := 0
		for i := range p.Images {
			if selected(&p.Images[i]) {
				n++
			}
		}
		return newBatchBars(a.err, n)
	case progressLines:
		return &batchLines{w: a.err, last: map[string]time.Time{}}
	case progressJSON:
		return &batchJSON{enc: json.NewEncoder(a.err), last: map[string]time.Time{}}
	}
	return noBatchView{}
}

type noBatchView struct{}

func (noBatchView) event(batch.Event) {}
func (noBatchView) close()            {}

// batchSaid is what a line tells of an event; "" for nothing.
func batchSaid(e batch.Event) string {
	var said string
	switch e.Status {
	case batch.StatusDone:
		said = "done, image " + e.ImageID
	case batch.StatusRunning:
		if e.Attempt > 1 {
			said = fmt.Sprintf("trying again, for the %s time", humanize.Ordinal(e.Attempt))
		}
	case batch.StatusSkipped:
		said = "left out"
	case batch.StatusRefused, batch.StatusFailed, batch.StatusInterrupted, batch.StatusWaiting:
		said = string(e.Status)
		if e.Failure != nil {
			said += ": " + e.Failure.Message
		}
	}
	if i := e.Import; i != nil {
		switch i.State {
		case pipeline.StateStart:
			said = strings.ToLower(title(i.Phase))
			if i.Resumed > 0 {
				said += fmt.Sprintf(", %s of %s were there already", humanize.IBytes(uint64(i.Resumed)), humanize.IBytes(uint64(i.Total)))
			}
		case pipeline.StateWarning:
			said = "warning: " + i.Note
		}
	}
	if e.Note != "" {
		if said != "" {
			said += "; "
		}
		said += e.Note
	}
	if said != "" && e.Name != "" {
		said = e.Name + ": " + said
	}
	return strings.ReplaceAll(printable(said), "\n", "\n  ")
}

// batchLines shows a batch where there is no terminal.
type batchLines struct {
	mu   sync.Mutex
	w    io.Writer
	last map[string]time.Time
}

func (l *batchLines) event(e batch.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if said := batchSaid(e); said != "" {
		l.last[e.Name] = e.Time
		fmt.Fprintln(l.w, said)
		return
	}
	if i := e.Import; i != nil && i.State == pipeline.StateProgress && e.Time.Sub(l.last[e.Name]) >= lineEvery {
		l.last[e.Name] = e.Time
		fmt.Fprintf(l.w, "%s: %s, %s\n", printable(e.Name), strings.ToLower(title(i.Phase)), batchProgress(i, e.Rate))
	}
}

func (*batchLines) close() {}

// batchProgress is a count for people.
func batchProgress(i *pipeline.Event, rate float64) string {
	if i.Unit == pipeline.UnitPercent {
		return fmt.Sprintf("%d%%", i.Done)
	}
	s := fmt.Sprintf("%s of %s", humanize.IBytes(uint64(i.Done)), humanize.IBytes(uint64(i.Total)))
	if rate > 0 {
		s += fmt.Sprintf(", %s/s", humanize.IBytes(uint64(rate)))
	}
	return s
}

// batchJSON shows a batch to programs: an event a line.
type batchJSON struct {
	mu   sync.Mutex
	enc  *json.Encoder
	last map[string]time.Time
}

func (j *batchJSON) event(e batch.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e.Import != nil && e.Import.State == pipeline.StateProgress {
		if e.Time.Sub(j.last[e.Name]) < jsonEvery {
			return
		}
		j.last[e.Name] = e.Time
	}
	_ = j.enc.Encode(e)
}

func (*batchJSON) close() {}

// batchBars shows a bar an image at work, and one for the whole batch, on a terminal.
type batchBars struct {
	p     *mpb.Progress
	total *mpb.Bar

	mu   sync.Mutex
	bars map[string]*batchBar
	of   int // images
	// counts are of images by their last status.
	status map[string]batch.Status
}

// batchBar is what the drawing goroutine reads of one image.
type batchBar struct {
	bar  *mpb.Bar
	text string
}

func newBatchBars(w io.Writer, of int) *batchBars {
	b := &batchBars{p: mpb.New(mpb.WithOutput(w), mpb.WithWidth(24), mpb.WithAutoRefresh()), of: of,
		bars: map[string]*batchBar{}, status: map[string]batch.Status{}}
	b.total = b.p.New(int64(of), barStyle(), mpb.BarPriority(1<<30),
		mpb.PrependDecorators(decor.Name(fmt.Sprintf("%-28s", "all"))),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return b.summary() })))
	return b
}

func barStyle() mpb.BarFillerBuilder {
	return mpb.BarStyle().Lbound("[").Filler("#").Tip(">").Padding("-").Rbound("]")
}

func (b *batchBars) summary() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	count := map[batch.Status]int{}
	for _, s := range b.status {
		count[s]++
	}
	s := fmt.Sprintf(" %d of %d done", count[batch.StatusDone], b.of)
	for _, status := range []batch.Status{batch.StatusRunning, batch.StatusWaiting, batch.StatusFailed, batch.StatusRefused} {
		if n := count[status]; n > 0 {
			s += fmt.Sprintf(", %d %s", n, status)
		}
	}
	return s
}

func (b *batchBars) event(e batch.Event) {
	said := ""
	switch e.Status {
	case batch.StatusDone, batch.StatusFailed, batch.StatusRefused, batch.StatusInterrupted, batch.StatusSkipped, batch.StatusWaiting:
		said = batchSaid(e)
	default:
		if e.Note != "" || e.Import != nil && e.Import.State == pipeline.StateWarning {
			said = batchSaid(e)
		}
	}
	if said != "" {
		fmt.Fprintln(b.p, said)
	}
	if e.Name == "" {
		return
	}
	b.mu.Lock()
	if e.Status != "" {
		b.status[e.Name] = e.Status
	}
	ended := int64(0)
	for _, s := range b.status {
		if s != batch.StatusRunning && s != batch.StatusWaiting {
			ended++
		}
	}
	bar := b.bars[e.Name]
	b.mu.Unlock()
	b.total.SetCurrent(ended)
	switch {
	case e.Status == batch.StatusRunning && bar == nil:
		b.add(e.Name)
	case e.Status != "" && e.Status != batch.StatusRunning && bar != nil:
		b.mu.Lock()
		delete(b.bars, e.Name)
		b.mu.Unlock()
		bar.bar.Abort(true)
	case e.Import != nil && e.Import.State != pipeline.StateWarning && bar != nil:
		i := e.Import
		b.mu.Lock()
		bar.text = strings.ToLower(title(i.Phase))
		if i.Total > 0 {
			bar.text += " " + batchProgress(i, e.Rate)
		}
		b.mu.Unlock()
		if i.Total > 0 && i.Total != 100 || i.Unit == pipeline.UnitPercent {
			bar.bar.SetTotal(max(i.Total, 1)+1, false) // a bar that is full would end
			bar.bar.SetCurrent(i.Done)
		}
	}
}

func (b *batchBars) add(name string) {
	shown := []rune(printable(name))
	if len(shown) > 27 {
		shown = append(shown[:26:26], '…')
	}
	bar := &batchBar{text: "opening"}
	b.mu.Lock()
	b.bars[name] = bar
	b.mu.Unlock()
	bar.bar = b.p.New(0, barStyle(), mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Name(fmt.Sprintf("%-28s", string(shown)))),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			b.mu.Lock()
			defer b.mu.Unlock()
			return " " + bar.text
		})))
}

func (b *batchBars) close() {
	b.mu.Lock()
	left := b.bars
	b.bars = map[string]*batchBar{}
	b.mu.Unlock()
	for _, bar := range left {
		bar.bar.Abort(true)
	}
	b.total.Abort(false)
	b.p.Wait()
}
