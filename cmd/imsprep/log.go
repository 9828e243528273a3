// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/imsprep/imsprep/pkg/pipeline"
)

const (
	logText = "text"
	logJSON = "json"
	logOff  = "off"
)

// logLevels are the values of --log-level, with what they mean.
var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// logFlags say whether there is a log, and how it looks. It goes to standard error, in the place of what is
// told to people there.
type logFlags struct{ format, level string }

// startLog makes the log that the flags or the environment ask for. One of the two is enough.
func (a *app) startLog() error {
	format, level := first(a.flags.log.format, a.getenv("IMSPREP_LOG_FORMAT")), first(a.flags.log.level, a.getenv("IMSPREP_LOG_LEVEL"))
	if format == "" && level == "" || level == logOff {
		return nil
	}
	min, ok := logLevels[first(level, "info")]
	if !ok {
		return usagef("--log-level %q: it is one of debug, info, warn, error, off", level)
	}
	o := &slog.HandlerOptions{Level: min, ReplaceAttr: a.secrets.replace}
	var h slog.Handler
	switch first(format, logText) {
	case logText:
		h = slog.NewTextHandler(logWriter{a}, o)
	case logJSON:
		h = slog.NewJSONHandler(logWriter{a}, o)
	default:
		return usagef("--log-format %q: it is text or json", format)
	}
	a.log = slog.New(h)
	return nil
}

// logging tells whether there is a log.
func (a *app) logging() bool { return a.log != nil }

// logWriter writes the log's lines to standard error, above a progress bar if there is one.
type logWriter struct{ a *app }

func (w logWriter) Write(p []byte) (int, error) {
	if v := w.a.view; v != nil {
		if to := v.above(); to != nil {
			return to.Write(p)
		}
	}
	return w.a.stderr().Write(p)
}

// stderr is standard error for several goroutines.
func (a *app) stderr() io.Writer { return &lockedWriter{&a.errLock, a.err} }

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// secrets keeps what must not be shown out of what is written.
type secrets struct {
	mu   sync.RWMutex
	list []string
}

// minSecret is the least length in bytes of what is taken for a secret: replacing shorter words only garbles
// a text.
const minSecret = 4

func (s *secrets) add(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(secret) >= minSecret && !slices.Contains(s.list, secret) {
		s.list = append(s.list, secret)
	}
}

// redact replaces the secrets in a text.
func (s *secrets) redact(text string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, secret := range s.list {
		text = strings.ReplaceAll(text, secret, "[redacted]")
	}
	return text
}

// replace redacts the values of a log record, the message included. What isn't plain becomes text first.
func (s *secrets) replace(_ []string, attr slog.Attr) slog.Attr {
	switch attr.Value.Kind() {
	case slog.KindString:
		attr.Value = slog.StringValue(s.redact(attr.Value.String()))
	case slog.KindAny:
		switch attr.Value.Any().(type) {
		case slog.Level, *slog.Source, time.Time:
		default:
			attr.Value = slog.StringValue(s.redact(fmt.Sprint(attr.Value.Any())))
		}
	}
	return attr
}

// logged tells the events of a run to the log, too, and to the metrics.
type logged struct {
	progress
	a     *app
	begun map[pipeline.Phase]time.Time
	last  time.Time
}

func (l *logged) event(e pipeline.Event) {
	now := time.Now()
	l.a.metrics.event(now, e)
	if l.a.logging() {
		l.log(now, e)
		if e.State == pipeline.StateWarning {
			return // told
		}
	}
	l.progress.event(e)
}

func (l *logged) log(now time.Time, e pipeline.Event) {
	level, msg := slog.LevelInfo, "phase started"
	attrs := []slog.Attr{slog.String("phase", string(e.Phase))}
	switch e.State {
	case pipeline.StateStart:
		l.begun[e.Phase], l.last = now, now
	case pipeline.StateProgress:
		if now.Sub(l.last) < lineEvery {
			return
		}
		l.last, msg = now, "phase goes on"
	case pipeline.StateDone:
		msg = "phase done"
		if begun, ok := l.begun[e.Phase]; ok {
			attrs = append(attrs, slog.Float64("seconds", now.Sub(begun).Seconds()))
		}
	case pipeline.StateWarning:
		level, msg, e.Note = slog.LevelWarn, e.Note, ""
		if e.Phase == "" {
			attrs = nil
		}
	}
	if e.Unit == pipeline.UnitBytes {
		attrs = append(attrs, slog.Int64("done_bytes", e.Done), slog.Int64("total_bytes", e.Total))
		for _, part := range []struct {
			name  string
			bytes int64
		}{{"sent_bytes", e.Sent}, {"copied_bytes", e.Copied}, {"resumed_bytes", e.Resumed}} {
			if part.bytes > 0 {
				attrs = append(attrs, slog.Int64(part.name, part.bytes))
			}
		}
	} else if e.Unit == pipeline.UnitPercent {
		attrs = append(attrs, slog.Float64("ratio", float64(e.Done)/100))
	}
	if e.Note != "" {
		attrs = append(attrs, slog.String("note", e.Note))
	}
	l.a.log.LogAttrs(context.Background(), level, msg, attrs...)
}
