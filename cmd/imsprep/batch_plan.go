// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

type batchPlanFlags struct {
	name, bucket, osVersion, format, scratch string
	tags                                     []string
	backing                                  bool
	backingDirs                              []string
	images, jobs                             int
	memory                                   byteSize
	rate                                     string
}

func (a *app) batchPlanCommand() *cobra.Command {
	var f batchPlanFlags
	cmd := &cobra.Command{
		Use:   "plan FOLDER|DISK|LIST.csv...",
		Short: "Look at disks and propose a plan",
		Long: `Plan looks at disks the way an import would and prints a plan on standard output, for people to
edit. Folders are looked through, with those below them. What is no disk of its own is told in
comments: extent files of a VMDK, parents of differencing disks, files of an OVF package. The disks
of one machine, by an OVF or OVA or by the .vmx beside them, are grouped. A disk that would be refused
is in the plan with the reason; the run leaves it out and reports it.

A list is a CSV file whose first line names the columns, with the keys of an image in a plan:
source, and any of name, machine, type, os_version, bucket, key, format, min_disk, tags, ...`,
		Example: `  imsprep batch plan /exports --bucket images --os-version "Ubuntu 22.04 server 64bit" > plan.yaml
  imsprep batch plan inventory.csv > plan.yaml
  imsprep batch plan a.qcow2 b.vmdk appliance.ova > plan.yaml`,
		Args: a.args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			return a.runBatchPlan(cmd.Context(), args, &f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "name of the batch, under which it is remembered what became of it (default: of the first folder, and chance)")
	fl.StringVar(&f.bucket, "bucket", "", "bucket of all images")
	fl.StringVar(&f.osVersion, "os-version", "", "operating system of all system disks")
	fl.StringVar(&f.format, "format", "auto", "what the objects are: auto, raw, zvhd2")
	fl.StringArrayVar(&f.tags, "tag", nil, "a tag of all images, as key=value or key alone (repeatable)")
	fl.BoolVar(&f.backing, "allow-backing", false, "follow backing files and parent disks, also in the run")
	fl.StringArrayVar(&f.backingDirs, "backing-dir", nil, "another folder in which they may lie (repeatable)")
	fl.StringVar(&f.scratch, "scratch", "", "folder to unpack compressed disks to, also in the run")
	fl.IntVar(&f.images, "images", batch.DefaultImagesAtOnce, "limit: disks uploaded at the same time")
	fl.IntVar(&f.jobs, "jobs", batch.DefaultJobs, "limit: import jobs at the service at the same time, up to 40")
	f.memory = batch.DefaultMemory
	fl.Var(&f.memory, "memory", "limit: memory for the buffers of all uploads together")
	fl.StringVar(&f.rate, "rate", "", "limit: bytes a second that all uploads together send, such as 100MiB/s")
	return cmd
}

func (a *app) runBatchPlan(ctx context.Context, args []string, f *batchPlanFlags) error {
	tags, err := parseTags(f.tags)
	if err != nil {
		return err
	}
	o := batch.ProposeOptions{
		Paths: args, Name: f.name,
		Defaults: batch.Settings{Bucket: f.bucket, OSVersion: f.osVersion, Format: f.format, BackingDirs: f.backingDirs, Scratch: f.scratch},
		Limits:   batch.Limits{Images: f.images, Jobs: f.jobs, Memory: batch.Size(f.memory)},
	}
	if f.backing {
		o.Defaults.AllowBacking = &f.backing
	}
	for _, t := range tags {
		if o.Defaults.Tags == nil {
			o.Defaults.Tags = map[string]string{}
		}
		o.Defaults.Tags[t.Key] = t.Value
	}
	if f.rate != "" {
		if o.Limits.Rate, err = batch.ParseRate(f.rate); err != nil {
			return &usageError{Err: err}
		}
	}
	if o.Name == "" {
		o.Name = batchName(args[0])
	}
	if !a.flags.quiet && a.flags.progress != progressNone {
		last := time.Now()
		o.Looking = func(path string) {
			if now := time.Now(); now.Sub(last) > 2*time.Second {
				last = now
				a.say("looking at %s", path)
			}
		}
	}
	p, err := batch.Propose(ctx, o)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := p.WriteYAML(&text); err != nil {
		return err
	}
	// What is written must be a plan: the limits and the name came from flags.
	if _, err := batch.Parse("the plan", text.Bytes()); err != nil {
		return &usageError{Err: err}
	}
	refused := 0
	for _, i := range p.Plan.Images {
		if i.Refused != "" {
			refused++
		}
	}
	if refused > 0 && !a.flags.quiet {
		a.say("%d of %d disks would be refused: look for \"refused:\" in the plan", refused, len(p.Plan.Images))
	}
	if !a.flags.json {
		_, err := a.out.Write(text.Bytes())
		return err
	}
	var doc struct {
		Plan    any             `json:"plan"`
		Ignored []batch.Ignored `json:"ignored"`
	}
	if err := yaml.Unmarshal(text.Bytes(), &doc.Plan); err != nil {
		return err
	}
	if doc.Ignored = p.Ignored; doc.Ignored == nil {
		doc.Ignored = []batch.Ignored{}
	}
	return a.printJSON(doc)
}

// batchName is readable and nobody else's.
func batchName(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	base := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))), "-")
	var chance [3]byte
	rand.Read(chance[:]) // never fails (crypto/rand since Go 1.24)
	return first(base[:min(len(base), 40)], "batch") + "-" + hex.EncodeToString(chance[:])
}
