// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/pipeline"
)

// cleanupFlags are the flags of `imsprep cleanup`.
type cleanupFlags struct {
	bucket, prefix         string
	olderThan              time.Duration
	keptObjects, resumable bool
	stateDir               string
	yes                    bool
}

func (a *app) cleanupCommand() *cobra.Command {
	var f cleanupFlags
	cmd := &cobra.Command{
		Use:     "cleanup [--bucket BUCKET] [--yes]",
		GroupID: groupCloud,
		Short:   "Find and remove what interrupted runs have left",
		Long: `Cleanup looks through a bucket for what runs have left that had no time to clean up: unfinished
uploads (their parts cost as much as objects), zeros that were copied from, pieces of disks,
bitmaps without their disk. Without --yes it removes nothing and shows what it would.

What changed within --older-than is left alone, for another run may be using it. Objects are
removed only if they carry this program's mark; unfinished uploads have none, so those are taken
whose key ends in .raw or .zvhd2 or is a helper's. Disks that were uploaded and kept are taken only
with --kept-objects, and what the same command would resume only with --resumable.`,
		Example: `  # what would be removed?
  imsprep cleanup --bucket images

  # remove it
  imsprep cleanup --bucket images --yes

  # after an import that failed: its disk, too
  imsprep cleanup --bucket images --prefix web-01 --older-than 10m --kept-objects --yes`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.usageHint = cmd.CommandPath()
			return a.runCleanup(cmd.Context(), &f)
		},
	}
	a.cloudFlags(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.bucket, "bucket", "", "bucket to look through (environment: IMSPREP_BUCKET)")
	fl.StringVar(&f.prefix, "prefix", "", "only keys that begin so")
	fl.DurationVar(&f.olderThan, "older-than", 24*time.Hour, "leave alone what changed more recently")
	fl.BoolVar(&f.keptObjects, "kept-objects", false, "also disks that were uploaded and kept, with their bitmaps")
	fl.BoolVar(&f.resumable, "resumable", false, "also what the same command would resume")
	fl.StringVar(&f.stateDir, "state-dir", "", "folder of the journals (environment: IMSPREP_STATE_DIR)")
	fl.BoolVar(&f.yes, "yes", false, "remove it")
	return cmd
}

// cleanupResult is the document of `imsprep cleanup`.
type cleanupResult struct {
	Bucket         string               `json:"bucket"`
	Prefix         string               `json:"prefix,omitempty"`
	OlderThan      int64                `json:"older_than_seconds"`
	DryRun         bool                 `json:"dry_run"`
	Leftovers      []*pipeline.Leftover `json:"leftovers"`
	Bytes          int64                `json:"bytes"`           // of what is removed, or would be
	Removed        int                  `json:"removed"`         // 0 in a dry run
	Kept           int                  `json:"kept"`            // left alone, with the reason in each
	Failed         int                  `json:"failed"`          // could not be removed
	ForeignUploads int                  `json:"foreign_uploads"` // unfinished uploads of other programs
}

func (a *app) runCleanup(ctx context.Context, f *cleanupFlags) error {
	s, err := a.settings()
	if err != nil {
		return err
	}
	c := pipeline.Cleanup{
		Bucket: first(f.bucket, s.Bucket), Prefix: f.prefix, OlderThan: f.olderThan,
		KeptObjects: f.keptObjects, Resumable: f.resumable, StateDir: a.sources().StateDir(f.stateDir),
	}
	switch {
	case c.Bucket == "":
		return usagef("no bucket: give --bucket, or set IMSPREP_BUCKET")
	case c.OlderThan < 0:
		return usagef("--older-than %v: it can't be negative", c.OlderThan)
	}
	importer, err := a.importer(s, false)
	if err != nil {
		return err
	}
	found, err := importer.FindLeftovers(ctx, c)
	if err != nil {
		return err
	}
	var failure error
	if f.yes {
		failure = importer.RemoveLeftovers(ctx, found, nil)
	}
	res := cleanupResult{
		Bucket: c.Bucket, Prefix: c.Prefix, OlderThan: int64(c.OlderThan / time.Second), DryRun: !f.yes,
		Leftovers: found.List, ForeignUploads: found.Foreign,
	}
	if res.Leftovers == nil {
		res.Leftovers = []*pipeline.Leftover{} // [] and not null
	}
	for _, l := range res.Leftovers {
		switch {
		case l.Keep != "":
			res.Kept++
			continue
		case l.Error != "":
			res.Failed++
			continue
		case l.Removed:
			res.Removed++
		}
		res.Bytes += l.Size
	}
	if err := a.printCleanup(&res); err != nil {
		return err
	}
	return failure
}

func (a *app) printCleanup(res *cleanupResult) error {
	if a.flags.json {
		return a.printJSON(res)
	}
	if a.flags.quiet {
		for _, l := range res.Leftovers {
			if l.Removed || res.DryRun && l.Keep == "" {
				if _, err := fmt.Fprintln(a.out, printable(l.Name())); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if len(res.Leftovers) > 0 {
		rows := make([][]string, len(res.Leftovers))
		for n, l := range res.Leftovers {
			outcome := "would be removed"
			switch {
			case l.Keep != "":
				outcome = "kept: " + l.Keep
			case l.Error != "":
				outcome = "failed: " + l.Error
			case l.Removed:
				outcome = "removed"
			case !res.DryRun:
				outcome = "not reached"
			}
			rows[n] = []string{string(l.Kind), l.Name(), shortSize(l.Size), shortAge(l.Seconds), l.Why, outcome}
		}
		if err := table(a.out, []string{"WHAT", "WHERE", "SIZE", "AGE", "WHY", "OUTCOME"}, rows); err != nil {
			return err
		}
	}
	going := 0
	for _, l := range res.Leftovers {
		if l.Keep == "" && l.Error == "" {
			going++
		}
	}
	switch {
	case len(res.Leftovers) == 0:
		a.say("nothing was left in obs://%s/%s", res.Bucket, res.Prefix)
	case res.DryRun && going > 0:
		a.say("%d of %d would be removed, %s; give --yes to remove them", going, len(res.Leftovers), shortSize(res.Bytes))
	case res.DryRun:
		a.say("nothing would be removed")
	default:
		a.say("%d of %d removed, %s", res.Removed, len(res.Leftovers), shortSize(res.Bytes))
	}
	if res.ForeignUploads > 0 {
		a.say("%d unfinished uploads of other programs were left alone", res.ForeignUploads)
	}
	return nil
}

// shortAge is an age in the two largest units.
func shortAge(seconds int64) string {
	d, h, m, s := seconds/86400, seconds/3600%24, seconds/60%60, seconds%60
	switch {
	case d > 0:
		return fmt.Sprintf("%dd%dh", d, h)
	case h > 0:
		return fmt.Sprintf("%dh%dm", h, m)
	case m > 0:
		return fmt.Sprintf("%dm%ds", m, s)
	}
	return fmt.Sprintf("%ds", s)
}
