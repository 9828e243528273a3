// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/settings"
)

// doctorFlags are the flags of `imsprep doctor`.
type doctorFlags struct {
	bucket, osVersion, stateDir string
	noWrite                     bool
}

func (a *app) doctorCommand() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:     "doctor [--bucket BUCKET] [--os-version VERSION]",
		GroupID: groupCloud,
		Short:   "Check everything that an import depends on",
		Long: `Doctor looks for what would make an import fail, before there is one: the keys and where they come
from, names, connections, TLS and clocks, the bucket, a small round trip through it (5 MiB that are
sent, copied, read back and removed; --no-write leaves it out), the image service's answers, the
quota, and the folder for journals. Each finding says what to do.

All checks are made, whatever fails; what depends on something that failed is skipped.`,
		Example: `  imsprep doctor --bucket images --os-version "Ubuntu 22.04 server 64bit"

  # change nothing anywhere
  imsprep doctor --bucket images --no-write`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.usageHint = cmd.CommandPath()
			return a.runDoctor(cmd.Context(), &f)
		},
	}
	a.cloudFlags(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.bucket, "bucket", "", "bucket of imports (environment: IMSPREP_BUCKET)")
	fl.StringVar(&f.osVersion, "os-version", "", "look whether the region lists this operating system")
	fl.BoolVar(&f.noWrite, "no-write", false, "write nothing to the bucket")
	fl.StringVar(&f.stateDir, "state-dir", "", "folder for journals (environment: IMSPREP_STATE_DIR)")
	return cmd
}

// doctorError ends a doctor whose checks failed.
type doctorError struct{ failed, checks, code int }

func (e *doctorError) Error() string {
	return fmt.Sprintf("%d of %d checks failed", e.failed, e.checks)
}

// doctorResult is the document of `imsprep doctor`.
type doctorResult struct {
	Checks   []doctorCheck `json:"checks"`
	OK       int           `json:"ok"`
	Warnings int           `json:"warnings"`
	Failed   int           `json:"failed"`
	Skipped  int           `json:"skipped"`
	ExitCode int           `json:"exit_code"`
}

type doctorCheck struct {
	pipeline.Check
	ExitCode int `json:"exit_code,omitempty"` // of a check that failed: what a command would end with
}

func (a *app) runDoctor(ctx context.Context, f *doctorFlags) error {
	d, closed := a.doctor(f)
	defer closed()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var lost error // output
	list, err := d.Examine(ctx, func(c pipeline.Check) {
		if err := a.printCheck(c); err != nil && lost == nil {
			lost = err
			stop()
		}
	})
	if lost != nil {
		return lost
	}
	if err != nil {
		return err
	}
	var res doctorResult
	failures := map[int]bool{}
	for _, c := range list {
		check := doctorCheck{Check: c}
		switch c.Status {
		case pipeline.CheckOK:
			res.OK++
		case pipeline.CheckWarning:
			res.Warnings++
		case pipeline.CheckSkipped:
			res.Skipped++
		case pipeline.CheckFailed:
			res.Failed++
			check.ExitCode = exitCode(c.Err)
			failures[check.ExitCode] = true
		}
		res.Checks = append(res.Checks, check)
	}
	// Trying again helps only if nothing else is wrong.
	for _, code := range []int{exitAuth, exitUsage, exitError, exitTransient} {
		if failures[code] {
			res.ExitCode = code
			break
		}
	}
	if res.Failed > 0 && res.ExitCode == exitDone {
		res.ExitCode = exitError
	}
	if a.flags.json {
		if err := a.printJSON(res); err != nil {
			return err
		}
	}
	if res.Failed > 0 {
		return &doctorError{res.Failed, len(list), res.ExitCode}
	}
	return nil
}

// printCheck prints a line, and below it what to do. With --quiet only what isn't well is told.
func (a *app) printCheck(c pipeline.Check) error {
	if a.flags.json || a.flags.quiet && (c.Status == pipeline.CheckOK || c.Status == pipeline.CheckSkipped) {
		return nil
	}
	_, err := fmt.Fprintf(a.out, "%-7s  %-17s  %s\n", c.Status, c.Name, printable(c.Summary))
	if err == nil && c.Hint != "" {
		_, err = fmt.Fprintf(a.out, "%28s  %s\n", "", printable(c.Hint))
	}
	return err
}

// doctor prepares the examination. What is wrong with the settings is a finding of it, not the end.
func (a *app) doctor(f *doctorFlags) (d *pipeline.Doctor, closed func()) {
	closed = func() {}
	s, err := a.settings()
	if s == nil {
		s = &settings.Settings{}
	}
	transport := ims.NewTransport()
	transport.Proxy = http.ProxyFromEnvironment
	d = &pipeline.Doctor{
		Endpoints:        map[string]string{"obs": s.Endpoints.OBS, "ims": s.Endpoints.IMS, "iam": s.Endpoints.IAM},
		Transport:        transport,
		Bucket:           first(f.bucket, s.Bucket),
		OSVersion:        f.osVersion,
		NoWrite:          f.noWrite,
		ConfirmedLayouts: s.Confirmed,
		StateDir:         a.sources().StateDir(f.stateDir),
		Keys:             s.Keys(),
	}
	if err != nil {
		d.Err, d.Keys = err, pipeline.Keys{}
		return d, closed
	}
	if s.Region == "" {
		d.Err = s.Check()
		return d, closed
	}
	if d.Keys.Err != nil {
		// Without keys there are no clients, but that is the keys' finding.
		d.Importer = &pipeline.Importer{Region: s.Region}
		return d, closed
	}
	importer, err := a.importer(s, false)
	if err != nil {
		d.Err = err
		return d, closed
	}
	d.Importer = importer
	d.Keys = s.Keys() // an agency's by now, if there is one
	return d, func() {
		importer.OBS.Close()
		importer.IMS.CloseIdleConnections()
	}
}
