// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// Tags are those of an image, its machine's among them, sorted.
func (i *Image) tags() []ims.Tag {
	var list []ims.Tag
	for _, key := range slices.Sorted(maps.Keys(i.Tags)) {
		list = append(list, ims.Tag{Key: key, Value: i.Tags[key]})
	}
	if i.Machine != "" && i.Tags[MachineTag] == "" {
		list = append(list, ims.Tag{Key: MachineTag, Value: i.Machine})
	}
	return list
}

// Memory is each upload's share of the plan's, in bytes.
func (p *Plan) Memory() int64 { return int64(p.Limits.Memory) / int64(p.Limits.Images) }

// request says what is to be imported, on top of what base has from the environment.
func (r *Runner) request(i *Image) (pipeline.Request, error) {
	q := r.Base
	where := fmt.Sprintf("%s:%d:%d", r.Plan.File, i.Line, i.Column)
	missing := func(what, remedy string) (pipeline.Request, error) {
		return q, &pipeline.CheckError{What: fmt.Sprintf("%s: image %q has no %s", where, i.Name, what), Remedy: remedy, Usage: true}
	}
	path := cmp.Or(pipeline.Path(i.ImportPath), pipeline.PathAuto)
	extras := pipeline.Extras{KMSKey: i.KMSKey, Configure: isSet(i.InjectDrivers), MinRAM: i.MinRAM, MaxRAM: i.MaxRAM}
	data := i.Type == TypeData
	// Where the service looks into the disk, it recognizes the system.
	recognized := path == pipeline.PathCommon || path == pipeline.PathNative || path == pipeline.PathAuto && extras != pipeline.Extras{}
	q.Bucket = cmp.Or(i.Bucket, q.Bucket)
	switch {
	case q.Bucket == "" && path != pipeline.PathNative:
		return missing("bucket", "Write bucket: among the plan's defaults, or set IMSPREP_BUCKET.")
	case !data && i.OSVersion == "" && !recognized && i.ImageType != ims.TypeISO:
		return missing("os_version", "Write the operating system as the region lists it (imsprep image os-versions), or type: data for a disk without one.")
	}
	q.Source, q.Key, q.AddEnding = r.Plan.Path(i.Source), i.Key, true
	q.Open = convert.OpenOptions{
		Format: i.FormatIn, AllowBacking: isSet(i.AllowBacking), Force: isSet(i.Force), ArchiveDisk: i.OVADisk,
		OriginalSize: isSet(i.OriginalSize), VHDSize: i.VHDSize,
	}
	for _, dir := range i.BackingDirs {
		q.Open.BackingDirs = append(q.Open.BackingDirs, r.Plan.Path(dir))
	}
	if i.Scratch != "" {
		q.Open.ScratchDir = r.Plan.Path(i.Scratch)
	}
	if i.FormatIn != "" && !slices.Contains(convert.FormatNames(), i.FormatIn) {
		return q, &pipeline.CheckError{What: fmt.Sprintf("%s: image %q: format_in is %q", where, i.Name, i.FormatIn),
			Remedy: fmt.Sprintf("It is one of %v.", convert.FormatNames()), Usage: true}
	}
	q.Format, q.CompressionLevel = cmp.Or(pipeline.Format(i.Format), pipeline.FormatAuto), i.CompressionLevel
	q.ZeroCopy, q.PartSize, q.Memory = obs.ZeroCopyMode(cmp.Or(i.ZeroCopy, string(obs.ZeroCopyAuto))), int64(i.PartSize), r.Plan.Memory()
	q.AcceptUnconfirmed, q.Overwrite = isSet(i.AcceptUnconfirmedBitmap), isSet(i.Overwrite)
	q.Verify, q.SHA256 = isSet(i.Verify), isSet(i.SHA256)
	q.KeepObject, q.AllowDuplicateName = isSet(i.KeepObject), isSet(i.AllowDuplicateName)
	q.ImportPath, q.Extras = path, extras
	q.Image = ims.QuickImport{
		Name: i.Name, Description: i.Description, Type: i.ImageType, OSVersion: i.OSVersion, OSType: i.OSType, MinDisk: i.MinDisk,
		Architecture: i.Architecture, FirmwareType: i.Firmware, LicenseType: i.License,
		EnterpriseProjectID: cmp.Or(i.EnterpriseProject, r.Base.Image.EnterpriseProjectID), Tags: i.tags(),
	}
	if data {
		q.Image.Type = ims.TypeDataImage
	}
	poll := cmp.Or(r.Poll, time.Duration(i.Poll))
	q.Wait = ims.WaitOptions{First: poll / 2, Interval: poll, MaxInterval: 3 * poll, Limit: time.Duration(i.Timeout)}
	if i.BitmapLayout != "" && r.Layout != nil {
		var err error
		if q.Layout, err = r.Layout(i.BitmapLayout); err != nil {
			return q, &pipeline.CheckError{What: fmt.Sprintf("%s: image %q", where, i.Name), Err: err, Usage: true}
		}
	}
	return q, nil
}

func isSet(b *bool) bool { return b != nil && *b }
