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
	Source  convert.Info      `json:"source"`
	Target  planTarget        `json:"target"`
	Upload  *obs.PlanSummary  `json:"upload,omitempty"` // of RAW: a ZVHD2's length isn't known beforehand
	Details *planPartsDetails `json:"parts,omitempty"`
	Image   *planImage        `json:"image,omitempty"`

	Concurrency *planBounds `json:"concurrency,omitempty"`
	LimitRate   int64       `json:"limit_rate,omitempty"` // bytes a second

	Warnings []string `json:"warnings,omitempty"`
}

type planTarget struct {
	Bucket    string          `json:"bucket"`
	Key       string          `json:"key"`
	Format    pipeline.Format `json:"format"`
	Reason    string          `json:"format_reason"`
	BitmapKey string          `json:"bitmap_key,omitempty"`
	Layout    string          `json:"bitmap_layout,omitempty"`
	MaxSize   int64           `json:"max_size"` // bytes that the object has at most
	Checked   bool            `json:"checked"`  // the clouds were asked
}

type planPartsDetails struct {
	PartSize  int64 `json:"part_size"`  // bytes, of data parts
	BlockSize int64 `json:"block_size"` // bytes; divides the parts' offsets
}

// planBounds are how many parts are sent at the same time.
type planBounds struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

func (b *planBounds) String() string {
	switch {
	case b.Min < b.Max:
		return fmt.Sprintf("%d to %d at a time, as the line carries", b.Min, b.Max)
	case b.Max == 1:
		return "one after another"
	}
	return fmt.Sprintf("%d at a time", b.Max)
}

type planImage struct {
	Name      string `json:"name"`
	OSVersion string `json:"os_version,omitempty"`
	Type      string `json:"type,omitempty"`
	MinDisk   int    `json:"min_disk"` // GB

	ImportPath pipeline.Path `json:"import_path"`
	Why        string        `json:"why"`
	Direct     bool          `json:"direct,omitempty"` // the file goes through the image service, not a bucket
}

// partCounts tells how the parts come to the server.
func partCounts(u *obs.PlanSummary) string {
	s := fmt.Sprintf("%d: %d sent, %d copied", u.Parts, u.SendParts, u.CopyParts)
	if u.ComposedParts > 0 {
		s += fmt.Sprintf(", %d composed of pieces (%s copied once more)", u.ComposedParts, size(u.ComposedBytes))
	}
	return s
}

// printPlan shows what an import or upload would do.
func (a *app) printPlan(p *pipeline.Plan) error {
	r := planReport{
		Source: p.Source,
		Target: planTarget{
			Bucket:  p.Request.Bucket,
			Key:     p.Request.Key,
			Format:  p.Format,
			Reason:  p.Reason,
			MaxSize: p.Disk.Size(),
			Checked: !p.Request.Offline,
		},
		Warnings: p.Warnings,
	}
	if p.HasBitmap() {
		r.Target.BitmapKey, r.Target.Layout = pipeline.BitmapKey(p.Request.Key), p.Layout.Name
	}
	if p.Parts != nil {
		summary := p.Parts.Summary()
		r.Upload = &summary
		r.Details = &planPartsDetails{PartSize: p.Parts.PartSize, BlockSize: p.Parts.BlockSize}
	} else if !p.Direct() {
		r.Target.MaxSize = convert.MaxZVHD2Size(r.Source.MappedSize)
	}
	if low, high := p.Concurrency(); high > 0 {
		high = min(high, obs.MaxStreams(a.limitRate))
		r.Concurrency, r.LimitRate = &planBounds{min(low, high), high}, a.limitRate
	}
	if img := p.Request.Image; img.Name != "" {
		r.Image = &planImage{Name: img.Name, OSVersion: img.OSVersion, Type: img.Type, MinDisk: img.MinDisk,
			ImportPath: p.Path, Why: p.Why, Direct: p.Direct()}
	}
	if a.flags.json {
		return a.printJSON(r)
	}
	a.warn(p.Warnings)
	fields := []field{
		{"source", fmt.Sprintf("%s (%s)", r.Source.Path, first(r.Source.Variant, r.Source.Format))},
		{"virtual size", size(r.Source.VirtualSize)},
	}
	if r.Image != nil {
		fields = append(fields, field{"import path", fmt.Sprintf("%s: %s", r.Image.ImportPath, r.Image.Why)})
	}
	object := fmt.Sprintf("obs://%s/%s", r.Target.Bucket, r.Target.Key)
	if p.Direct() {
		object = "none: the file goes through the image service"
	}
	fields = append(fields, field{"object", object}, field{"format", fmt.Sprintf("%s: %s", r.Target.Format, r.Target.Reason)})
	if r.Target.BitmapKey != "" {
		fields = append(fields, field{"bitmap", fmt.Sprintf("obs://%s/%s (layout %s)", r.Target.Bucket, r.Target.BitmapKey, r.Target.Layout)})
	}
	if u := r.Upload; u != nil {
		fields = append(fields,
			field{"data / floor / sent", fmt.Sprintf("%s / %s / %s", size(u.DataBytes), size(u.FloorBytes), size(u.PartBytes))},
			field{"to send", fmt.Sprintf("at most %s, in parts of up to %s", size(u.BytesToSend), size(r.Details.PartSize))},
			field{"to copy", fmt.Sprintf("%s of zeros made on the server", size(u.BytesToCopy))},
			field{"parts", partCounts(u)},
			field{"requests", fmt.Sprintf("about %d", u.Requests)},
			field{"memory", fmt.Sprintf("at most %s in part buffers", size(u.Memory))},
		)
	} else if p.Direct() {
		fields = append(fields, field{"to send", size(r.Target.MaxSize)})
	} else {
		fields = append(fields, field{"to send", fmt.Sprintf("what the data compresses to, at most %s", size(r.Target.MaxSize))})
	}
	if r.Concurrency != nil {
		fields = append(fields, field{"concurrency", r.Concurrency.String()})
	}
	if r.LimitRate > 0 {
		fields = append(fields, field{"rate", fmt.Sprintf("at most %s a second", size(r.LimitRate))})
	}
	if r.Image != nil {
		fields = append(fields, field{"image", r.Image.Name}, field{"os version", r.Image.OSVersion}, field{"min disk", fmt.Sprintf("%d GB", r.Image.MinDisk)})
	}
	checked := "bucket, keys"
	if p.Direct() {
		checked = "no bucket is needed"
	}
	if r.Image != nil {
		checked += ", operating system, quota, name"
	}
	if !r.Target.Checked {
		checked = "only what needs no cloud"
	}
	return printFields(a.out, append(fields, field{"checked", checked}))
}
