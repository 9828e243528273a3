// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

func (a *app) batchCommand() *cobra.Command {
	cmd := a.parentCommand("batch", "Import many disks by one plan",
		a.batchPlanCommand(), a.batchRunCommand(), a.batchStatusCommand(), a.batchReportCommand(), a.batchRenderCommand(), a.batchSchemaCommand())
	cmd.GroupID = groupCloud
	cmd.Long = `Batch imports many disks by a plan, which is a YAML file: "batch plan" looks at disks and proposes
one, people edit it, and "batch run" carries it out within its limits. A run may be interrupted or
killed at any time; the same command goes on where it was. One failure never stops the rest.`
	cmd.Example = `  imsprep batch plan /exports --bucket images > plan.yaml
  $EDITOR plan.yaml
  imsprep batch run plan.yaml --dry-run
  imsprep batch run plan.yaml --report-dir report
  imsprep batch status plan.yaml --watch`
	return cmd
}

// batchFlags choose images of a plan, and where their states are.
type batchFlags struct {
	only, skip []string
	stateFlags
}

func (f *batchFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVar(&f.only, "only", nil, "only images whose name, or machine, matches the pattern, such as 'web-*' (repeatable)")
	fl.StringArrayVar(&f.skip, "skip", nil, "not those that match (repeatable)")
	f.stateFlags.add(cmd)
}

// selection checks the patterns, and that each of them means something: one that doesn't is a slip.
func (f *batchFlags) selection(p *batch.Plan) (func(*batch.Image) bool, error) {
	matches := func(pattern string, i *batch.Image) bool {
		name, err := path.Match(pattern, i.Name)
		machine, _ := path.Match(pattern, i.Machine)
		return err == nil && (name || machine && i.Machine != "")
	}
	for flag, patterns := range map[string][]string{"--only": f.only, "--skip": f.skip} {
		for _, pattern := range patterns {
			if _, err := path.Match(pattern, ""); err != nil {
				return nil, usagef("%s %q isn't a pattern: * is any text, ? one character, [a-z] one of several", flag, pattern)
			}
			found := false
			for n := range p.Images {
				found = found || matches(pattern, &p.Images[n])
			}
			if !found {
				return nil, usagef("%s %q matches no image of the plan", flag, pattern)
			}
		}
	}
	return func(i *batch.Image) bool {
		any := func(patterns []string) bool {
			for _, pattern := range patterns {
				if matches(pattern, i) {
					return true
				}
			}
			return false
		}
		return (len(f.only) == 0 || any(f.only)) && !any(f.skip)
	}, nil
}

// batchStore is where the states of a plan's images are; place is nil for a folder of this machine.
func (a *app) batchStore(p *batch.Plan, f *stateFlags) (store batch.Store, place *pipeline.StatePlace, err error) {
	if place, err = f.place(a); err != nil {
		return nil, nil, err
	}
	if place != nil {
		s, err := a.settings()
		if err != nil {
			return nil, nil, err
		}
		importer, err := a.importer(s, false)
		if err != nil {
			return nil, nil, err
		}
		store, err := batch.NewBucketStore(importer.OBS, *place, p)
		return store, place, err
	}
	dir := a.sources().StateDir(f.stateDir)
	if dir == "" {
		return nil, nil, usagef("there is no folder for the states of the images: give --state-dir, or --state")
	}
	return batch.NewFileStore(dir, p.Key()), nil, nil
}

// loadPlan reads a plan file; what is wrong in it is the user's to mend.
func loadPlan(file string) (*batch.Plan, error) {
	p, err := batch.Load(file)
	var bad *batch.PlanError
	if errors.As(err, &bad) {
		return nil, &usageError{Err: err}
	}
	return p, err
}

// worker names this process for people.
func worker() string {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Sprintf("process %d", os.Getpid())
	}
	return fmt.Sprintf("process %d on %s", os.Getpid(), host)
}

// oneLine is the beginning of a text, for a column of a table.
func oneLine(s string, most int) string {
	s, _, more := strings.Cut(s, "\n")
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	if more {
		s += " …"
	}
	return s
}
