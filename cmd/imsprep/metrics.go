// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/imsprep/imsprep/pkg/metrics"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// runMetrics collects the numbers of one run; docs/observability.md is the manual of them.
type runMetrics struct {
	path    string // "" for none
	command string
	start   time.Time

	mu      sync.Mutex
	phases  []phaseMetrics
	retries []retryMetrics
	sent    pipeline.Event // the last of the phase that moves bytes
	moved   bool
	upload  *pipeline.UploadResult // when the upload has succeeded
}

type phaseMetrics struct {
	phase       pipeline.Phase
	begun, last time.Time
	done        bool
}

type retryMetrics struct {
	service string
	count   int
	waited  time.Duration
}

// startMetrics makes sure that the file can be written at the end, when it is too late to say that it can't.
func (a *app) startMetrics(command string) error {
	a.metrics.command, a.metrics.start = command, time.Now()
	path := first(a.flags.metricsFile, a.getenv("IMSPREP_METRICS_FILE"))
	if path == "" {
		return nil
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return usagef("--metrics-file %s: it is a folder", path)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
		return usagef("--metrics-file %s: there is no folder %s", path, filepath.Dir(path))
	}
	a.metrics.path = path
	return nil
}

func (m *runMetrics) event(now time.Time, e pipeline.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.Phase == "" || e.State == pipeline.StateWarning {
		return
	}
	i := slices.IndexFunc(m.phases, func(p phaseMetrics) bool { return p.phase == e.Phase })
	if i < 0 {
		i = len(m.phases)
		m.phases = append(m.phases, phaseMetrics{phase: e.Phase, begun: now})
	}
	m.phases[i].last, m.phases[i].done = now, e.State == pipeline.StateDone
	if e.Unit == pipeline.UnitBytes && (e.Phase == pipeline.PhaseUpload || !m.moved) {
		m.sent, m.moved = e, true
	}
}

func (m *runMetrics) retried(service string, wait time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.retries, func(r retryMetrics) bool { return r.service == service })
	if i < 0 {
		i = len(m.retries)
		m.retries = append(m.retries, retryMetrics{service: service})
	}
	m.retries[i].count++
	m.retries[i].waited += wait
}

func (m *runMetrics) uploaded(up *pipeline.UploadResult) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.upload = up
}

// gauges is what was collected, of a run that has ended with an exit code.
func (m *runMetrics) gauges(end time.Time, code int) []metrics.Gauge {
	m.mu.Lock()
	defer m.mu.Unlock()
	one := func(name, help string, value float64, labels ...metrics.Label) metrics.Gauge {
		return metrics.Gauge{Name: "imsprep_" + name, Help: help, Samples: []metrics.Sample{{Labels: labels, Value: value}}}
	}
	success := 0.0
	if code == exitDone {
		success = 1
	}
	list := []metrics.Gauge{
		one("run_info", "The run that this file is about; always 1.", 1,
			metrics.Label{Name: "command", Value: m.command}, metrics.Label{Name: "version", Value: version}),
		one("run_success", "1 if the run has succeeded, 0 if not.", success),
		one("run_exit_code", "The run's exit code.", float64(code)),
		one("run_start_time_seconds", "When the run began, in seconds since 1970.", float64(m.start.UnixMilli())/1000),
		one("run_end_time_seconds", "When the run ended, in seconds since 1970.", float64(end.UnixMilli())/1000),
		one("run_duration_seconds", "How long the run took.", end.Sub(m.start).Seconds()),
	}
	phases := metrics.Gauge{Name: "imsprep_phase_duration_seconds", Help: "How long a phase took, or had taken when the run ended."}
	done := metrics.Gauge{Name: "imsprep_phase_done", Help: "1 if the phase has ended, 0 if the run ended in it."}
	for _, p := range m.phases {
		labels := []metrics.Label{{Name: "phase", Value: string(p.phase)}}
		last, value := p.last, 1.0
		if !p.done {
			last, value = end, 0
		}
		phases.Samples = append(phases.Samples, metrics.Sample{Labels: labels, Value: last.Sub(p.begun).Seconds()})
		done.Samples = append(done.Samples, metrics.Sample{Labels: labels, Value: value})
	}
	retries := metrics.Gauge{Name: "imsprep_retries", Help: "Requests that were made again."}
	waits := metrics.Gauge{Name: "imsprep_backoff_seconds", Help: "Time that was waited before requests were made again, all workers added up."}
	for _, service := range []string{"ims", "obs"} {
		var r retryMetrics
		if i := slices.IndexFunc(m.retries, func(r retryMetrics) bool { return r.service == service }); i >= 0 {
			r = m.retries[i]
		}
		labels := []metrics.Label{{Name: "service", Value: service}}
		retries.Samples = append(retries.Samples, metrics.Sample{Labels: labels, Value: float64(r.count)})
		waits.Samples = append(waits.Samples, metrics.Sample{Labels: labels, Value: r.waited.Seconds()})
	}
	list = append(list, phases, done, retries, waits)
	if m.moved {
		list = append(list,
			one("progress_bytes", "Bytes of the disk that are done, by "+string(m.sent.Phase)+".", float64(m.sent.Done)),
			one("progress_total_bytes", "Bytes of the disk that are to be done.", float64(m.sent.Total)))
	}
	switch up := m.upload; {
	case up != nil:
		list = append(list,
			one("disk_virtual_size_bytes", "Virtual size of the disk.", float64(up.VirtualSize)),
			one("disk_data_bytes", "Bytes of the disk in blocks that aren't all zero.", float64(up.DataBytes)),
			one("object_size_bytes", "Size of the object.", float64(up.ObjectSize)),
			one("read_bytes", "Bytes of the disk that were read and decoded.", float64(up.BytesRead)),
			one("sent_bytes", "Bytes that were sent, with those of repeated requests.", float64(up.BytesSent)),
			one("copied_bytes", "Bytes of the object that were copied on the server.", float64(up.BytesCopied)),
			one("resumed_bytes", "Bytes of the object that were there from an earlier run.", float64(up.BytesResumed)),
			one("requests", "Requests of the upload.", float64(up.Requests)),
			metrics.Gauge{Name: "imsprep_parts", Help: "Parts of the object, by how they came there.", Samples: []metrics.Sample{
				{Labels: []metrics.Label{{Name: "how", Value: "sent"}}, Value: float64(up.PartsSent)},
				{Labels: []metrics.Label{{Name: "how", Value: "copied"}}, Value: float64(up.PartsCopied)},
				{Labels: []metrics.Label{{Name: "how", Value: "composed"}}, Value: float64(up.PartsComposed)},
				{Labels: []metrics.Label{{Name: "how", Value: "resumed"}}, Value: float64(up.PartsResumed)},
			}})
	case m.moved && m.sent.Phase == pipeline.PhaseUpload:
		// As far as it came: in bytes of the disk.
		list = append(list,
			one("sent_bytes", "Bytes that were sent, with those of repeated requests.", float64(m.sent.Sent)),
			one("copied_bytes", "Bytes of the object that were copied on the server.", float64(m.sent.Copied)),
			one("resumed_bytes", "Bytes of the object that were there from an earlier run.", float64(m.sent.Resumed)))
	}
	return list
}

// writeMetrics writes the file of a run that has ended. The run's own outcome stands whatever comes of it.
func (a *app) writeMetrics(code int) {
	if a.metrics.path == "" {
		return
	}
	if err := metrics.WriteFile(a.metrics.path, a.metrics.gauges(time.Now(), code)); err != nil {
		a.warn([]string{fmt.Sprintf("the metrics could not be written to %s: %v", a.metrics.path, err)})
	}
}
