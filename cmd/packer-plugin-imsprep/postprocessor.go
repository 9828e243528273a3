// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/hcl/v2/hcldec"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/imsprep/imsprep/pkg/packer"
	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/settings"
)

// progressEvery is the interval of progress messages: Packer shows each on a line of its own.
const progressEvery = 10 * time.Second

// postProcessor imports the disk of an artifact.
type postProcessor struct {
	config Config
	// lookup is an environment variable; nil is the process's.
	lookup func(name string) (string, bool)
}

var _ packersdk.PostProcessor = (*postProcessor)(nil)

func (p *postProcessor) ConfigSpec() hcldec.ObjectSpec { return p.config.FlatMapstructure().HCL2Spec() }

func (p *postProcessor) Configure(raws ...any) error { return p.config.decode(raws) }

func (p *postProcessor) sources() *settings.Sources {
	lookup := p.lookup
	if lookup == nil {
		lookup = os.LookupEnv
	}
	return &settings.Sources{
		Options:   p.config.options(),
		Lookup:    lookup,
		ConfigDir: os.UserConfigDir,
		CacheDir:  os.UserCacheDir,
		Proxy:     http.ProxyFromEnvironment,
		UserAgent: "packer-plugin-imsprep/" + version,
		OnSecret:  func(secret string) { hide(secret) },
	}
}

// PostProcess imports the artifact's disk, and yields an artifact whose id is the image's. The input artifact is
// kept unless keep_input_artifact says otherwise; it is never removed when the import fails.
func (p *postProcessor) PostProcess(ctx context.Context, ui packersdk.Ui, input packersdk.Artifact) (packersdk.Artifact, bool, bool, error) {
	out, err := p.run(ctx, ui, input)
	if err != nil {
		var hinter interface{ Hint() string }
		if errors.As(err, &hinter) && hinter.Hint() != "" {
			err = fmt.Errorf("%w\n  %s", err, hinter.Hint())
		}
		return nil, true, true, err
	}
	if keep := p.config.KeepInputArtifact; keep != nil {
		return out, *keep, true, nil
	}
	return out, true, false, nil
}

func (p *postProcessor) run(ctx context.Context, ui packersdk.Ui, input packersdk.Artifact) (packersdk.Artifact, error) {
	disk, format, err := p.disk(input)
	if err != nil {
		return nil, err
	}
	o := p.sources()
	s, err := o.Settings()
	if err != nil {
		return nil, err
	}
	importer, err := s.Importer()
	if err != nil {
		return nil, err
	}
	keepClients := false
	defer func() {
		if !keepClients {
			importer.OBS.Close()
			importer.IMS.CloseIdleConnections()
		}
	}()
	r, err := p.config.request(disk, format, o, s)
	if err != nil {
		return nil, err
	}
	plan, err := importer.Plan(ctx, r)
	if err != nil {
		return nil, err
	}
	defer plan.Close()
	ui.Say(fmt.Sprintf("Importing %s as image %q, %s, through obs://%s/%s", disk, r.Image.Name, plan.Format, r.Bucket, plan.Request.Key))
	for _, w := range plan.Warnings {
		ui.Say("Warning: " + w)
	}
	importer.Events = tell(ui)
	res, err := importer.Run(ctx, plan)
	if err != nil {
		return nil, err
	}
	keepClients = true // Destroy needs them
	return &artifact{importer: importer, result: res, region: s.Region}, nil
}

// disk finds the disk of an artifact, and the format that its builder says it has.
func (p *postProcessor) disk(input packersdk.Artifact) (path, format string, err error) {
	files := input.Files()
	if paths, ok := input.State("diskPaths").([]string); ok && len(paths) > 0 { // of the QEMU builder
		files = paths
	}
	format, _ = input.State("diskType").(string)
	name, err := packer.Disk(input.BuilderId(), files, p.config.Disk)
	if err != nil {
		var several *packer.DiskError
		if errors.As(err, &several) && len(several.Disks) > 1 {
			err = fmt.Errorf("%w\n  Name one of them in the option disk, in a post-processor each", err)
		}
		return "", "", err
	}
	return filepath.FromSlash(name), format, nil
}

// tell shows the events of an import.
func tell(ui packersdk.Ui) func(pipeline.Event) {
	var last time.Time
	return func(e pipeline.Event) {
		switch e.State {
		case pipeline.StateWarning:
			ui.Say("Warning: " + e.Note)
		case pipeline.StateStart:
			last = time.Now()
			ui.Say(fmt.Sprintf("Phase %s: started %s", e.Phase, e.Note))
		case pipeline.StateProgress:
			if now := time.Now(); now.Sub(last) >= progressEvery && e.Total > 0 {
				last = now
				ui.Say(fmt.Sprintf("Phase %s: %d %%", e.Phase, e.Done*100/e.Total))
			}
		case pipeline.StateDone:
			ui.Say(fmt.Sprintf("Phase %s: done", e.Phase))
		}
	}
}
