// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// planReport is the dry run's document; docs/output.md describes its fields.
type planReport struct {
	Source  convert.Info     `json:"source"`
	Target  planTarget       `json:"target"`
	Upload  obs.PlanSummary  `json:"upload"`
	Image   *planImage       `json:"image,omitempty"`
	Details planPartsDetails `json:"parts"`

	Warnings []string `json:"warnings,omitempty"`
}

type planTarget struct {
	Bucket    string `json:"bucket"`
	Key       string `json:"key"`
	BitmapKey string `json:"bitmap_key"`
	Layout    string `json:"bitmap_layout"`
	Checked   bool   `json:"checked"` // the clouds were asked
}

type planPartsDetails struct {
	PartSize  int64 `json:"part_size"`  // bytes, of data parts
	BlockSize int64 `json:"block_size"` // bytes, of the bitmap
	Parallel  int   `json:"parallel"`
}

type planImage struct {
	Name      string `json:"name"`
	OSVersion string `json:"os_version,omitempty"`
	Type      string `json:"type,omitempty"`
	MinDisk   int    `json:"min_disk"` // GB
}

// printPlan shows what an import or upload would do.
func (a *app) printPlan(p *pipeline.Plan) error {
	r := planReport{
		Source: p.Disk.Info(),
		Target: planTarget{
			Bucket:    p.Request.Bucket,
			Key:       p.Request.Key,
			BitmapKey: pipeline.BitmapKey(p.Request.Key),
			Layout:    p.Layout.Name,
			Checked:   !p.Request.Offline,
		},
		Upload:   p.Parts.Summary(),
		Details:  planPartsDetails{PartSize: p.Parts.PartSize, BlockSize: p.Parts.BlockSize, Parallel: p.Parts.Workers},
		Warnings: p.Warnings,
	}
	if img := p.Request.Image; img.Name != "" {
		r.Image = &planImage{Name: img.Name, OSVersion: img.OSVersion, Type: img.Type, MinDisk: img.MinDisk}
	}
	if a.flags.json {
		return a.printJSON(r)
	}
	a.warn(p.Warnings)
	fields := []field{
		{"source", fmt.Sprintf("%s (%s)", r.Source.Path, first(r.Source.Variant, r.Source.Format))},
		{"virtual size", size(r.Source.VirtualSize)},
		{"object", fmt.Sprintf("obs://%s/%s", r.Target.Bucket, r.Target.Key)},
		{"bitmap", fmt.Sprintf("obs://%s/%s (layout %s)", r.Target.Bucket, r.Target.BitmapKey, r.Target.Layout)},
		{"to send", fmt.Sprintf("at most %s in %d parts of up to %s, %d at a time", size(r.Upload.BytesToSend), r.Upload.SendParts,
			size(r.Details.PartSize), r.Details.Parallel)},
		{"to copy", fmt.Sprintf("%s in %d parts, zeros made on the server", size(r.Upload.BytesToCopy), r.Upload.CopyParts)},
		{"requests", fmt.Sprintf("about %d", r.Upload.Requests)},
		{"memory", fmt.Sprintf("%s in part buffers", size(r.Upload.Memory))},
	}
	if r.Image != nil {
		fields = append(fields, field{"image", r.Image.Name}, field{"os version", r.Image.OSVersion}, field{"min disk", fmt.Sprintf("%d GB", r.Image.MinDisk)})
	}
	checked := "bucket, keys"
	if r.Image != nil {
		checked += ", operating system, quota, name"
	}
	if !r.Target.Checked {
		checked = "only what needs no cloud"
	}
	printFields(a.out, append(fields, field{"checked", checked}))
	return nil
}
