// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"context"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// DryRun is what would become of an image.
type DryRun struct {
	Index   int    `json:"index"`
	Name    string `json:"name"`
	Machine string `json:"machine,omitempty"`
	// Status is what the image's state says, StatusPending for what would be begun.
	Status      Status          `json:"status"`
	Source      string          `json:"source"`
	Format      pipeline.Format `json:"format,omitempty"`
	ImportPath  pipeline.Path   `json:"import_path,omitempty"`
	Bucket      string          `json:"bucket,omitempty"`
	Key         string          `json:"key,omitempty"`
	VirtualSize int64           `json:"virtual_size,omitempty"` // bytes
	MaxSend     int64           `json:"max_send,omitempty"`     // bytes that are sent at most
	MinDisk     int             `json:"min_disk,omitempty"`     // GB
	// Problem is why it would fail or be refused.
	Problem  *Failure `json:"problem,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// DryRun opens every disk and asks the clouds everything that can be asked before a byte moves. Without
// clients it checks only what needs no cloud. Images that are done aren't looked at.
func (r *Runner) DryRun(ctx context.Context) ([]DryRun, error) {
	list := []DryRun{}
	for _, at := range r.selected() {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		d, err := r.dryRun(ctx, at)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}

func (r *Runner) dryRun(ctx context.Context, at int) (DryRun, error) {
	i := &r.Plan.Images[at]
	d := DryRun{Index: at, Name: i.Name, Machine: i.Machine, Source: i.Source}
	s, err := r.Status(ctx, at)
	if err != nil {
		return d, err
	}
	d.Status = s.Status
	switch s.Status {
	case StatusSkipped, StatusDone, StatusRunning, StatusWaiting:
		return d, nil
	case StatusRefused:
		if i.Refused != "" {
			d.Problem = s.Failure
			return d, nil
		}
	}
	w := &work{Runner: r, at: at, i: i}
	req, err := r.request(i)
	if err == nil {
		req.StateDir, req.Offline = "", r.Importer.OBS == nil
		// The bytes of an earlier run in the bucket are nothing to stumble over.
		var plan *pipeline.Plan
		if plan, err = r.Importer.Plan(ctx, req); err == nil {
			d.Format, d.ImportPath, d.VirtualSize, d.MinDisk = plan.Format, plan.Path, plan.Source.VirtualSize, plan.Request.Image.MinDisk
			d.Bucket, d.Key, d.Warnings = plan.Request.Bucket, plan.Request.Key, plan.Warnings
			switch {
			case plan.Parts != nil:
				d.MaxSend = plan.Parts.Summary().BytesToSend
			case plan.Direct():
				d.MaxSend = plan.Disk.Size()
			default:
				d.MaxSend = convert.MaxZVHD2Size(min(plan.Source.VirtualSize, max(plan.Source.MappedSize, 1)))
			}
			err = plan.Close()
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			return d, ctx.Err()
		}
		d.Problem = w.failure(err)
	}
	return d, nil
}
