// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/pkg/pipeline"
)

// TestLogHidesSecrets: no secret that was ever found is in a record, wherever it stands in it.
func TestLogHidesSecrets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.StringMatching(`[A-Za-z0-9+/="\\<&]{8,40}`).Draw(t, "secret")
		var out bytes.Buffer
		a := &app{streams: streams{out: io.Discard, err: &out, lookup: func(string) (string, bool) { return "", false }}}
		a.flags.log.format = rapid.SampledFrom([]string{logText, logJSON}).Draw(t, "format")
		a.flags.log.level = "debug"
		if err := a.startLog(); err != nil {
			t.Fatal(err)
		}
		a.secrets.add(secret)
		a.log.Warn("message with "+secret, "text", "x"+secret+"y", "error", errors.New(secret),
			"list", []string{secret}, slog.Group("group", "inner", secret), "sum", struct{ Key string }{secret})
		a.log.With("bound", secret).Info("x")
		a.view = &shared{progress: &logged{progress: silent{}, a: a, begun: map[pipeline.Phase]time.Time{}}}
		a.view.event(pipeline.Event{Phase: pipeline.PhaseJob, State: pipeline.StateWarning, Note: secret})
		a.finish(errors.New("failed with " + secret))
		quoted, _ := json.Marshal(secret)
		for _, form := range []string{secret, string(quoted[1 : len(quoted)-1])} {
			if strings.Contains(out.String(), form) {
				t.Fatalf("%q is in\n%s", form, out.String())
			}
		}
		if n := strings.Count(out.String(), "[redacted]"); n != 9 {
			t.Fatalf("%d were replaced in\n%s", n, out.String())
		}
	})
}

// TestLogBesideBar: while a bar is shown, the log's lines stand above it, each whole.
func TestLogBesideBar(t *testing.T) {
	var out bytes.Buffer
	a := &app{streams: streams{out: io.Discard, err: &out, lookup: func(string) (string, bool) { return "", false }}}
	a.flags.log.level, a.flags.progress = "info", progressBar
	if err := a.startLog(); err != nil {
		t.Fatal(err)
	}
	view := a.newProgress()
	view.event(pipeline.Event{Phase: pipeline.PhaseUpload, State: pipeline.StateStart, Unit: pipeline.UnitBytes, Total: 100})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 {
			a.log.Warn("from a worker")
		}
	}()
	for n := range int64(100) {
		view.event(pipeline.Event{Phase: pipeline.PhaseUpload, State: pipeline.StateProgress, Unit: pipeline.UnitBytes, Done: n, Total: 100})
	}
	<-done
	view.event(pipeline.Event{Phase: pipeline.PhaseUpload, State: pipeline.StateDone, Unit: pipeline.UnitBytes, Done: 100, Total: 100})
	view.close()
	a.log.Info("after the bar")
	got := out.String()
	if n := strings.Count(got, "level=WARN msg=\"from a worker\"\n"); n != 50 || !strings.Contains(got, "msg=\"phase done\" phase=upload") ||
		!strings.HasSuffix(got, "msg=\"after the bar\"\n") {
		t.Errorf("%d lines of the worker in\n%s", n, got)
	}
}
