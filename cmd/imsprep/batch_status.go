// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

func (a *app) batchStatusCommand() *cobra.Command {
	var f batchFlags
	var watch bool
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "status PLAN",
		Short: "Show how far a plan's images are",
		Long: `Status shows how far each image of a plan is, by what runs of it, in this or other processes, have
written down. It asks no cloud, but for the bucket
of --state. With --watch it shows that again and again until all images are done,
failed or left out; with --json too, a document a line.`,
		Example: `  imsprep batch status plan.yaml
  imsprep batch status plan.yaml --watch`,
		Args: a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			if every <= 0 {
				return usagef("--interval must be longer than nothing")
			}
			p, err := loadPlan(args[0])
			if err != nil {
				return err
			}
			selected, err := f.selection(p)
			if err != nil {
				return err
			}
			store, _, err := a.batchStore(p, &f.stateFlags)
			if err != nil {
				return err
			}
			if watch {
				return a.watchBatch(cmd.Context(), p, store, selected, every)
			}
			report, err := batch.NewReport(cmd.Context(), p, store, selected)
			if err != nil {
				return err
			}
			if err := a.printBatch(report); err != nil || a.flags.json {
				return err
			}
			a.say("%s", report.Verdict())
			return nil
		},
	}
	a.cloudFlags(cmd)
	f.add(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again and again")
	cmd.Flags().DurationVar(&every, "interval", 2*time.Second, "of --watch")
	return cmd
}

var batchHeader = []string{"IMAGE", "STATE", "PROGRESS", "SENT", "RATE", "TIME", "IMAGE ID", "NOTE"}

func batchRows(r *batch.Report) [][]string {
	var rows [][]string
	for _, i := range r.Images {
		name := i.Name
		if i.Machine != "" && i.Machine != i.Name {
			name += " (" + i.Machine + ")"
		}
		row := []string{name, string(i.Status), "", "", "", "", i.ImageID, ""}
		if i.Phase != "" && i.Progress != nil {
			row[2] = strings.ToLower(title(i.Phase))
			switch p := i.Progress; {
			case p.Unit == pipeline.UnitBytes && p.Total > 0:
				row[2] += fmt.Sprintf(" %d%% of %s", p.Done*100/p.Total, shortSize(p.Total))
				row[3] = shortSize(p.Sent)
				if p.Rate > 0 {
					row[4] = shortSize(int64(p.Rate)) + "/s"
				}
			case p.Unit == pipeline.UnitPercent:
				row[2] += fmt.Sprintf(" %d%%", p.Done)
			}
		}
		if i.Status == batch.StatusDone {
			row[3] = shortSize(i.BytesSent)
			if i.Rate > 0 {
				row[4] = shortSize(int64(i.Rate)) + "/s"
			}
		}
		if i.Seconds > 0 {
			row[5] = time.Duration(i.Seconds * float64(time.Second)).Round(time.Second).String()
		}
		if i.Failure != nil {
			row[7] = oneLine(i.Failure.Message, 90)
		} else if len(i.Warnings) > 0 {
			row[7] = "warning: " + oneLine(i.Warnings[0], 80)
		}
		rows = append(rows, row)
	}
	return rows
}

// watchBatch shows a batch until nothing is left to be done.
func (a *app) watchBatch(ctx context.Context, p *batch.Plan, store batch.Store, selected func(*batch.Image) bool, every time.Duration) error {
	f, ok := a.out.(*os.File)
	live := ok && term.IsTerminal(int(f.Fd())) && !a.flags.json
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		report, err := batch.NewReport(ctx, p, store, selected)
		if err != nil {
			return cmp.Or(ctx.Err(), err)
		}
		if a.flags.json {
			line, err := json.Marshal(report)
			if err != nil {
				return err
			}
			a.printed = true
			if _, err := fmt.Fprintln(a.out, string(line)); err != nil {
				return err
			}
		} else {
			var b bytes.Buffer
			if err := table(&b, batchHeader, batchRows(report)); err != nil {
				return err
			}
			fmt.Fprintf(&b, "%s  %s\n", report.Generated.Local().Format(time.TimeOnly), report.Verdict())
			text := b.String()
			if live {
				text = "\x1b[H" + strings.ReplaceAll(fit(text, int(f.Fd())), "\n", "\x1b[K\n") + "\x1b[J"
			}
			if _, err := fmt.Fprint(a.out, text); err != nil {
				return err
			}
		}
		if t := report.Totals; t.Pending+t.Running+t.Waiting+t.Interrupted == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// fit cuts lines to the terminal's width, and leaves out lines in the middle that have no room.
func fit(text string, fd int) string {
	width, height, err := term.GetSize(fd)
	if err != nil || width < 20 || height < 5 {
		return text
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for n, line := range lines {
		if r := []rune(line); len(r) >= width {
			lines[n] = string(r[:width-1])
		}
	}
	if over := len(lines) - (height - 1); over > 0 {
		keep := height - 3
		lines = append(append(lines[:keep:keep], fmt.Sprintf("... %d more", over+1)), lines[len(lines)-1])
	}
	return strings.Join(lines, "\n") + "\n"
}
