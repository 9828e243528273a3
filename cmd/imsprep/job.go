// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

func (a *app) jobCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "job",
		GroupID: groupCloud,
		Short:   "Look at a job of the image service, or wait for it",
		Args:    a.args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.jobShowCommand(), a.jobWaitCommand())
	return cmd
}

func (a *app) jobShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show a job",
		Example: `  imsprep job show ff80808280c204e30180d2784c3c0d86`,
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			client, err := a.imsClient()
			if err != nil {
				return err
			}
			job, err := client.Job(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.flags.json {
				return a.printJSON(job)
			}
			if a.flags.quiet {
				if len(job.ImageIDs) > 0 {
					_, err = fmt.Fprintln(a.out, strings.Join(job.ImageIDs, "\n"))
				}
				return err
			}
			percent := ""
			if job.Progress >= 0 {
				percent = fmt.Sprintf("%.0f%%", job.Progress*100)
			}
			return printFields(a.out, []field{
				{"id", job.ID}, {"type", job.Type}, {"status", string(job.Status)}, {"progress", percent},
				{"task", job.CurrentTask}, {"image", job.ImageID}, {"image name", job.ImageName},
				{"begin", job.BeginTime}, {"end", job.EndTime}, {"error", job.ErrorCode}, {"reason", job.FailReason},
			})
		},
	}
	a.cloudFlags(cmd)
	return cmd
}

func (a *app) jobWaitCommand() *cobra.Command {
	var timeout, poll time.Duration
	cmd := &cobra.Command{
		Use:   "wait ID",
		Short: "Wait for a job to end; prints the image's id",
		Example: `  imsprep job wait ff80808280c204e30180d2784c3c0d86
  imsprep job wait ff80808280c204e30180d2784c3c0d86 --timeout 30m`,
		Args: a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			if err := checkWait(timeout, poll); err != nil {
				return err
			}
			return a.runJobWait(cmd.Context(), args[0], waitOptions(timeout, poll))
		},
	}
	a.cloudFlags(cmd)
	waitFlags(cmd, &timeout, &poll)
	return cmd
}

func (a *app) runJobWait(ctx context.Context, id string, o ims.WaitOptions) error {
	client, err := a.imsClient()
	if err != nil {
		return err
	}
	a.jobTitle = "Waiting"
	view := a.newProgress()
	event := func(state pipeline.State, done int64, note string) {
		view.event(pipeline.Event{Phase: pipeline.PhaseJob, State: state, Unit: pipeline.UnitPercent, Done: done, Total: 100, Note: note})
	}
	o.First = -1 // at once: the job may long be done
	o.OnUpdate = func(j *ims.Job) {
		event(pipeline.StateProgress, int64(max(j.Progress, 0)*100), string(j.Status))
	}
	o.OnError = func(err error) { event(pipeline.StateWarning, 0, err.Error()) }
	event(pipeline.StateStart, 0, id)
	job, err := client.WaitJob(ctx, id, o)
	if err == nil {
		event(pipeline.StateDone, 100, job.ImageID)
	}
	view.close()
	if err != nil {
		if ctx.Err() != nil {
			return jobGoesOn(ctx, id)
		}
		return err
	}
	if job.ImageID == "" {
		return &pipeline.NoImageError{JobID: id, Name: job.ImageName}
	}
	if a.flags.json {
		return a.printJSON(job)
	}
	_, err = fmt.Fprintln(a.out, job.ImageID)
	return err
}

// imsClient makes a client for commands that need nothing but the image service.
func (a *app) imsClient() (*ims.Client, error) {
	s, err := a.settings()
	if err != nil {
		return nil, err
	}
	return s.IMSClient()
}
