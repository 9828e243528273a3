// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

type batchRunFlags struct {
	batchFlags
	line      lineFlags
	dryRun    bool
	reportDir string
	poll      time.Duration
	index     string
	baseDir   string
}

func (a *app) batchRunCommand() *cobra.Command {
	var f batchRunFlags
	cmd := &cobra.Command{
		Use:   "run PLAN",
		Short: "Import the disks of a plan, or go on with that",
		Long: `Run imports the disks of a plan, several at a time, within the plan's limits. Given again, it goes on:
images that are done are left alone once it is sure that they still exist, interrupted ones go on
where they were, failed ones are tried again. Within one run, trouble that may pass (the network, a
service) is tried again after a while; a disk that is refused, or a wrong value, is not.

Ctrl-C ends it cleanly; it may also be killed. Several runs of one plan share the work. At the end
stands a table, with --json the report, and in the folder of --report-dir the report as a page, as
Markdown and as JSON. The exit code is 0 when all is done, 8 when images failed or were refused, 130
when the run was interrupted.

On a cluster each process imports one image, the one of --index, and a scheduler starts, limits and
repeats them; with --state their states and journals are in a bucket, so that one on another machine goes on,
and "batch status" and "batch report" with the same --state show them all. The exit code is then that of
the image: 5, 7 and 130 are worth a retry.`,
		Example: `  imsprep batch run plan.yaml --dry-run
  imsprep batch run plan.yaml --report-dir report
  imsprep batch run plan.yaml --only 'web-*' --skip web-07

  # one image, as a scheduler's task does it
  imsprep batch run plan.yaml --index 17 --state obs://images/imsprep-state`,
		Args: a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			return a.runBatch(cmd.Context(), args[0], &f)
		},
	}
	a.cloudFlags(cmd)
	f.add(cmd)
	fl := cmd.Flags()
	f.line.add(cmd, "parts of one image that are sent")
	fl.BoolVar(&f.dryRun, "dry-run", false, "open every disk and check everything, show what would be done, and stop")
	fl.StringVar(&f.reportDir, "report-dir", "", "folder for report.html, report.md and report.json, written at the end")
	fl.StringVar(&f.index, "index", indexAuto, "import one image, by its place in the plan from 0, or all; auto takes it from JOB_COMPLETION_INDEX, SLURM_ARRAY_TASK_ID or NOMAD_ALLOC_INDEX where that is set")
	fl.StringVar(&f.baseDir, "base-dir", "", "folder that relative paths in the plan start from (default: the plan file's)")
	fl.DurationVar(&f.poll, "poll", 0, "interval between questions after jobs (default: the plan's)")
	return cmd
}

// batchRunner makes what carries a plan out.
func (a *app) batchRunner(p *batch.Plan, f *batchFlags, line *lineFlags, dryRun bool) (*batch.Runner, error) {
	s, err := a.settings()
	if err != nil {
		return nil, err
	}
	selected, err := f.selection(p)
	if err != nil {
		return nil, err
	}
	store, place, err := a.batchStore(p, &f.stateFlags)
	if err != nil {
		return nil, err
	}
	l, err := a.line(line)
	if err != nil {
		return nil, err
	}
	if p.Limits.Rate > 0 && line.limitRate == "" { // one client for all images, and so one limit
		a.limitRate = int64(p.Limits.Rate)
	}
	importer, err := a.importer(s, dryRun)
	if err != nil {
		return nil, err
	}
	return &batch.Runner{
		Plan: p, Importer: *importer, Store: store, Select: selected, Layout: a.sources().LookupLayout, Worker: worker(),
		Base: pipeline.Request{
			MinWorkers: l.low, Workers: l.high,
			StateDir: a.sources().StateDir(f.stateDir), State: place, Bucket: s.Bucket, ConfirmedLayouts: s.Confirmed,
			Image: ims.QuickImport{EnterpriseProjectID: a.getenv("HW_ENTERPRISE_PROJECT_ID")},
		},
		Hint: a.keysHint,
	}, nil
}

func (a *app) runBatch(ctx context.Context, file string, f *batchRunFlags) error {
	if f.poll < 0 {
		return usagef("--poll must be longer than nothing")
	}
	p, err := loadPlan(file)
	if err != nil {
		return err
	}
	if f.baseDir != "" {
		p.Dir = f.baseDir
	}
	r, err := a.batchRunner(p, &f.batchFlags, &f.line, f.dryRun)
	if err != nil {
		return err
	}
	r.Poll = f.poll
	index, from, err := a.imageIndex(f.index, len(p.Images))
	if err != nil {
		return err
	}
	if index >= 0 {
		only := &p.Images[index]
		r.Select = func(i *batch.Image) bool { return i == only }
		if !a.flags.quiet {
			a.say("image %q, index %d of %d (%s)", only.Name, index, len(p.Images), from)
		}
	}
	if f.dryRun {
		return a.dryRunBatch(ctx, r)
	}
	view := a.newBatchView(p, r.Select)
	r.Events = func(e batch.Event) {
		if e.Result != nil {
			a.metrics.uploaded(&e.Result.Upload)
		}
		view.event(e)
	}
	a.onRetry = func(note string) { view.event(batch.Event{Time: time.Now().UTC(), Index: -1, Note: note}) }
	run := a.runImages(ctx, r, index)
	view.close()
	a.onRetry = nil
	var failed *batch.FailedError
	if run != nil && !errors.As(run, &failed) && pipeline.KindOf(run) != pipeline.KindInterrupted && pipeline.KindOf(run) != pipeline.KindAuth {
		return run
	}
	return errors.Join(a.endBatch(ctx, p, r.Store, r.Select, f.reportDir), run)
}

// endBatch tells and writes how a batch stands.
func (a *app) endBatch(ctx context.Context, p *batch.Plan, store batch.Store, selected func(*batch.Image) bool, dir string) error {
	report, err := batch.NewReport(context.WithoutCancel(ctx), p, store, selected)
	if err != nil {
		return err
	}
	if dir != "" {
		written, err := report.WriteDir(dir)
		if err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		a.say("the report: %s", written[len(written)-1])
	}
	return a.printBatch(report)
}

// printBatch prints a report's images: as a document, as ids alone, or as a table.
func (a *app) printBatch(r *batch.Report) error {
	switch {
	case a.flags.json:
		return a.printJSON(r)
	case a.flags.quiet:
		for _, i := range r.Images {
			if i.ImageID != "" {
				if _, err := fmt.Fprintf(a.out, "%s\t%s\n", i.ImageID, printable(i.Name)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := table(a.out, batchHeader, batchRows(r)); err != nil {
		return err
	}
	for _, m := range r.Machines {
		if !m.Complete {
			a.say("machine %s is incomplete: %s", m.Machine, fmt.Sprint(m.Missing))
		}
	}
	return nil
}

// wouldFailError is the outcome of a dry run in which images would fail.
type wouldFailError struct{ batch.FailedError }

func (e *wouldFailError) Error() string {
	return fmt.Sprintf("%d of %d images would fail or be refused", e.Failed+e.Refused, e.Of)
}
func (e *wouldFailError) Unwrap() error { return &e.FailedError }
func (e *wouldFailError) Hint() string {
	return "Mend what is named above, or leave the images out with skip: true."
}

func (a *app) dryRunBatch(ctx context.Context, r *batch.Runner) error {
	list, err := r.DryRun(ctx)
	if err != nil {
		return err
	}
	count := batch.FailedError{Of: len(list)}
	for _, d := range list {
		switch {
		case d.Problem == nil:
		case d.Problem.Kind == pipeline.KindRefused:
			count.Refused++
		default:
			count.Failed++
		}
	}
	bad := count.Failed + count.Refused
	var failed error
	if bad > 0 {
		failed = &wouldFailError{count}
	}
	if a.flags.json {
		return errors.Join(a.printJSON(list), failed)
	}
	var rows [][]string
	for _, d := range list {
		row := []string{d.Name, string(d.Status), "", "", "", "", ""}
		if d.Format != "" {
			row[2], row[3], row[4] = string(d.Format), shortSize(d.VirtualSize), "up to "+shortSize(d.MaxSend)
			row[5] = d.Key
		}
		if d.Problem != nil {
			row[6] = oneLine(d.Problem.Message, 100)
		} else if len(d.Warnings) > 0 {
			row[6] = "warning: " + oneLine(d.Warnings[0], 80)
		}
		rows = append(rows, row)
	}
	if err := table(a.out, []string{"IMAGE", "STATE", "FORMAT", "SIZE", "TO SEND", "OBJECT", "PROBLEM"}, rows); err != nil {
		return err
	}
	if !a.flags.quiet {
		for _, d := range list {
			if d.Problem != nil {
				a.say("%s: %s", d.Name, d.Problem.Message)
				if d.Problem.Hint != "" {
					a.say("  %s", d.Problem.Hint)
				}
			}
		}
	}
	return failed
}
