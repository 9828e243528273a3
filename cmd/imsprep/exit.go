// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/pipeline/batch"
	"github.com/imsprep/imsprep/pkg/settings"
)

// Exit codes; docs/exit-codes.md is the manual of this list.
const (
	exitDone        = 0
	exitError       = 1
	exitUsage       = 2
	exitRefused     = 3
	exitAuth        = 4
	exitTransient   = 5
	exitJobFailed   = 6
	exitRunning     = 7
	exitSomeFailed  = 8
	exitInterrupted = 130
)

func usagef(format string, args ...any) error { return &usageError{Err: fmt.Errorf(format, args...)} }

// exitCode is the one place that turns an error into an exit code.
func exitCode(err error) int {
	var usage *usageError
	var doctor *doctorError
	var failed *batch.FailedError
	var image *imageError
	var render *batch.RenderError
	var busy *batch.BusyError
	var plan *batch.PlanError
	kind := pipeline.KindOf(err)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &doctor):
		return doctor.code
	case errors.As(err, &image):
		return exitCodes[image.failure.Kind]
	case errors.As(err, &failed):
		return exitSomeFailed
	case errors.As(err, &busy):
		return exitTransient
	case kind == pipeline.KindInterrupted:
		return exitInterrupted
	case kind == pipeline.KindUnclear, kind == pipeline.KindJob, kind == pipeline.KindRunning:
		return exitCodes[kind] // whatever the caller makes of it
	case errors.As(err, &usage), errors.As(err, &plan), errors.As(err, &render):
		return exitUsage
	case errors.Is(err, settings.ErrNoCredentials):
		return exitAuth
	}
	return exitCodes[kind]
}

// exitCodes are those of the kinds of failure.
var exitCodes = map[pipeline.ErrorKind]int{
	pipeline.KindOther:       exitError,
	pipeline.KindUsage:       exitUsage,
	pipeline.KindRefused:     exitRefused,
	pipeline.KindAuth:        exitAuth,
	pipeline.KindTransient:   exitTransient,
	pipeline.KindJob:         exitJobFailed,
	pipeline.KindRunning:     exitRunning,
	pipeline.KindUnclear:     exitError,
	pipeline.KindInterrupted: exitInterrupted,
}

// hinter is an error that knows what the user can do next.
type hinter interface{ Hint() string }

// sourceHint names the flag that would let a refused disk be opened.
func sourceHint(err error) string {
	var refused *convert.RefusedError
	if !errors.As(err, &refused) {
		return ""
	}
	switch refused.Need {
	case convert.NeedBacking:
		return "give --allow-backing if you trust the disk and the files that it is based on"
	case convert.NeedFormat:
		return "give --format-in raw if it is a plain disk, or the format that it has"
	case convert.NeedForce:
		return "give --force to read it as it is"
	case convert.NeedScratch:
		return "give --scratch DIR, or unpack it yourself"
	case convert.NeedDisk:
		return "give --ova-disk NAME"
	case convert.NeedVHDSize:
		return "give --vhd-size current_size for all of it, or chs for what the geometry says"
	}
	return ""
}

// keysHint says what to do about temporary keys that ended and couldn't be renewed; "" if that isn't
// what happened.
func (a *app) keysHint(err error) string {
	if !a.fixedKeys || exitCode(err) != exitAuth {
		return ""
	}
	var oe *obs.Error
	var ie *ims.Error
	if !errors.As(err, &oe) && !errors.As(err, &ie) {
		return ""
	}
	return "The environment holds temporary keys or a token, and a running program can't get others from there: when they have\n" +
		"  ended, set new ones and run the same command again. A file that HUAWEICLOUD_SDK_CREDENTIALS_FILE names is read\n" +
		"  again when it changes."
}

// interrupted tells whether a run itself says that it was interrupted, and what that left.
func interrupted(err error) bool {
	var e *pipeline.InterruptedError
	return errors.As(err, &e)
}

// finish reports how the command ended and returns its exit code. What went wrong is told on
// standard error; with --json standard output holds one document, also then.
func (a *app) finish(err error) int {
	code := exitCode(err)
	if err == nil {
		if a.logging() {
			a.log.Info("command done", "command", a.metrics.command, "exit_code", code, "seconds", time.Since(a.metrics.start).Seconds())
		}
		return code
	}
	msg := err.Error()
	if code == exitInterrupted && !interrupted(err) {
		msg = "interrupted"
	}
	hint := sourceHint(err)
	var h hinter
	if errors.As(err, &h) && (code != exitInterrupted || interrupted(err)) {
		hint = h.Hint()
	}
	if more := a.keysHint(err); more != "" {
		if hint != "" {
			hint += "\n  "
		}
		hint += more
	}
	msg, hint = printable(a.secrets.redact(msg)), printable(a.secrets.redact(hint))
	if a.flags.json {
		var doc struct {
			Error struct {
				Message  string `json:"message"`
				Hint     string `json:"hint,omitempty"`
				ExitCode int    `json:"exit_code"`
			} `json:"error"`
		}
		doc.Error.Message, doc.Error.Hint, doc.Error.ExitCode = msg, hint, code
		if out, jerr := json.MarshalIndent(doc, "", "  "); jerr == nil && !a.printed {
			fmt.Fprintln(a.out, string(out))
		}
	}
	if a.logging() {
		a.log.Error(msg, "hint", hint, "command", a.metrics.command, "exit_code", code, "seconds", time.Since(a.metrics.start).Seconds())
	}
	if a.flags.progress == progressJSON {
		_ = json.NewEncoder(a.err).Encode(struct {
			Time     time.Time `json:"time"`
			State    string    `json:"state"`
			Message  string    `json:"message"`
			Hint     string    `json:"hint,omitempty"`
			ExitCode int       `json:"exit_code"`
		}{time.Now().UTC(), "error", msg, hint, code})
		return code
	}
	if a.logging() {
		return code
	}
	fmt.Fprintf(a.err, "imsprep: %s\n", msg)
	if hint != "" {
		fmt.Fprintf(a.err, "  %s\n", hint)
	}
	var usage *usageError
	if errors.As(err, &usage) && a.usageHint != "" {
		fmt.Fprintf(a.err, "  See `%s --help`.\n", a.usageHint)
	}
	return code
}
