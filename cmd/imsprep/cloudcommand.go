// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// cloudRun is a command's work with a client of the image service.
type cloudRun func(ctx context.Context, client *ims.Client, args []string) error

// cloudCommand makes a command that needs the image service and nothing else.
func (a *app) cloudCommand(use, short, example string, args cobra.PositionalArgs, run cloudRun) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example, Args: a.args(args),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			client, err := a.imsClient()
			if err != nil {
				return err
			}
			defer client.CloseIdleConnections()
			return run(cmd.Context(), client, args)
		},
	}
	a.cloudFlags(cmd)
	return cmd
}

// parentCommand makes a command that only has others below it.
func (a *app) parentCommand(use, short string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(below...)
	return cmd
}

// table prints rows under a header, aligned. Values come from a service: what would do something to
// a terminal, or break a row, is made visible.
func table(w io.Writer, header []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		cells := make([]string, len(row))
		for n, cell := range row {
			if cell == "" {
				cell = "-"
			}
			if strings.ContainsFunc(cell, func(r rune) bool { return r < ' ' || 0x7f <= r && r < 0xa0 }) {
				cell = fmt.Sprintf("%q", cell)
			}
			cells[n] = cell
		}
		fmt.Fprintln(t, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	return t.Flush()
}

// printList prints a list as a document, as ids alone with --quiet, or as a table.
func printList[T any](a *app, list []T, id func(T) string, header []string, row func(T) []string) error {
	switch {
	case a.flags.json:
		if list == nil {
			list = []T{} // [] and not null
		}
		return a.printJSON(list)
	case a.flags.quiet:
		for _, item := range list {
			if _, err := fmt.Fprintln(a.out, id(item)); err != nil {
				return err
			}
		}
		return nil
	}
	rows := make([][]string, len(list))
	for n, item := range list {
		rows[n] = row(item)
	}
	return table(a.out, header, rows)
}

// jobFlags say whether a command waits for the job that it starts.
type jobFlags struct {
	wait          bool
	timeout, poll time.Duration
}

// add gives the flags to a command, whose job does what title says, such as "Copying".
func (f *jobFlags) add(a *app, cmd *cobra.Command, title string) *cobra.Command {
	cmd.Flags().BoolVar(&f.wait, "wait", false, "wait for the job to end")
	waitFlags(cmd, &f.timeout, &f.poll)
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		// Before the job is started: its id must not be lost.
		if err := checkWait(f.timeout, f.poll); err != nil {
			a.usageHint = cmd.CommandPath()
			return err
		}
		a.jobTitle = title
		return run(cmd, args)
	}
	return cmd
}

// checkWait refuses times that make no sense.
func checkWait(timeout, poll time.Duration) error {
	if timeout <= 0 || poll <= 0 {
		return usagef("--timeout and --poll must be longer than nothing")
	}
	return nil
}

// started is the document of a job that isn't waited for.
type started struct {
	JobID   string `json:"job_id,omitempty"`
	ImageID string `json:"image_id,omitempty"`
	Status  string `json:"status"`
	// ImportPath is which call an import took, and Why what decided it.
	ImportPath string `json:"import_path,omitempty"`
	Why        string `json:"why,omitempty"`
}

// finishJob tells the id of a job that was started, or waits for its end. result, if not nil, is
// what to print when it has ended well; else that is the image's id.
func (a *app) finishJob(
	ctx context.Context, client *ims.Client, s started, f *jobFlags, result func(*ims.Job) string,
) error {
	if !f.wait {
		if a.flags.json {
			return a.printJSON(s)
		}
		if _, err := fmt.Fprintln(a.out, first(s.JobID, s.ImageID)); err != nil {
			return err
		}
		if !a.flags.quiet && s.JobID != "" {
			a.say("follow it with: imsprep job wait %s", s.JobID)
		}
		return nil
	}
	job, err := a.followJob(ctx, client, s, f)
	if err != nil {
		return err
	}
	if a.flags.json {
		return a.printJSON(job)
	}
	var text string
	switch {
	case result != nil:
		text = result(job)
	case len(job.ImageIDs) > 1:
		text = strings.Join(job.ImageIDs, "\n")
	case job.ImageID == "":
		return &pipeline.NoImageError{JobID: s.JobID, Name: job.ImageName}
	default:
		text = job.ImageID
	}
	_, err = fmt.Fprintln(a.out, text)
	return err
}

// followJob waits for a job, or for the image alone when a lost answer left no more, and shows its
// progress.
func (a *app) followJob(ctx context.Context, client *ims.Client, s started, f *jobFlags) (*ims.Job, error) {
	view := a.newProgress()
	defer view.close()
	event := func(state pipeline.State, done int64, note string) {
		view.event(pipeline.Event{Phase: pipeline.PhaseJob, State: state, Unit: pipeline.UnitPercent, Done: done, Total: 100, Note: note})
	}
	o := waitOptions(f.timeout, f.poll)
	o.OnUpdate = func(j *ims.Job) { event(pipeline.StateProgress, int64(max(j.Progress, 0)*100), string(j.Status)) }
	o.OnImage = func(i *ims.Image) { event(pipeline.StateProgress, 100, "image "+i.Status) }
	o.OnError = func(err error) { event(pipeline.StateWarning, 0, err.Error()) }
	event(pipeline.StateStart, 0, first(s.JobID, s.ImageID))
	job := &ims.Job{ImageID: s.ImageID, Status: ims.JobSuccess}
	var err error
	if s.JobID != "" {
		job, err = client.WaitJob(ctx, s.JobID, o)
	} else {
		_, err = client.WaitImage(ctx, s.ImageID, o)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, jobGoesOn(ctx, s.JobID)
		}
		return nil, err
	}
	event(pipeline.StateDone, 100, job.ImageID)
	return job, nil
}

// jobGoesOn is the end of waiting for a job that was interrupted. id may be empty.
func jobGoesOn(ctx context.Context, id string) error {
	next := "The job goes on at the service."
	if id != "" {
		next += " Follow it with: imsprep job wait " + id
	}
	return &pipeline.InterruptedError{Phase: pipeline.PhaseJob, Err: ctx.Err(), Next: next}
}

// objectURL reads an object on the command line, obs://BUCKET/KEY, s3://BUCKET/KEY or the image
// service's own BUCKET:KEY.
func objectURL(arg string) (string, error) {
	for _, scheme := range []string{"obs://", "s3://"} {
		if rest, ok := strings.CutPrefix(arg, scheme); ok {
			bucket, key, _ := strings.Cut(rest, "/")
			if bucket == "" || key == "" {
				return "", usagef("%q: an object is written %sBUCKET/KEY", arg, scheme)
			}
			return ims.ImageURL(bucket, key), nil
		}
	}
	if bucket, key, ok := strings.Cut(arg, ":"); ok && bucket != "" && key != "" && !strings.HasPrefix(key, "//") {
		return arg, nil
	}
	return "", usagef("%q: an object is written obs://BUCKET/KEY", arg)
}

// tagArg reads KEY=VALUE, or KEY alone.
func tagArg(arg string) (ims.Tag, error) {
	key, value, _ := strings.Cut(arg, "=")
	if key == "" {
		return ims.Tag{}, usagef("%q: a tag is written KEY=VALUE, or KEY alone", arg)
	}
	return ims.Tag{Key: key, Value: value}, nil
}

func tagArgs(args []string) ([]ims.Tag, error) {
	tags := make([]ims.Tag, len(args))
	for n, arg := range args {
		var err error
		if tags[n], err = tagArg(arg); err != nil {
			return nil, err
		}
	}
	return tags, nil
}
