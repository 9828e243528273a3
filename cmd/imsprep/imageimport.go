// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/ims"
)

// Ways to import an object.
const (
	pathAuto   = "auto"
	pathQuick  = "quick"
	pathCommon = "common"
	pathData   = "data"
	pathNative = "native"
)

// objectImport is what the flags of `image import` say.
type objectImport struct {
	ims.CommonImport
	path       string
	dataDisk   bool
	tags       []string
	dataImages []string
	newer      bool
}

func (a *app) imageImportCommand() *cobra.Command {
	var f objectImport
	var job jobFlags
	cmd := a.cloudCommand("import obs://BUCKET/KEY --name NAME --min-disk GB", "Make an image of an object that is in a bucket already", `  imsprep image import obs://images/web-01.qcow2 --name web-01 --min-disk 40 --wait
  imsprep image import obs://images/big.zvhd2 --name big --min-disk 200 --os-version "Ubuntu 22.04 server 64bit"
  imsprep image import obs://images/web-01.vmdk --name web-01 --min-disk 40 --inject-drivers --kms-key KEY
  imsprep image import obs://images/sys.qcow2 --name app --min-disk 40 --data-image obs://images/data.qcow2=100
  imsprep image import obs://images/cd.iso --name installer --min-disk 10 --os-version "Ubuntu 22.04 server 64bit"`, cobra.ExactArgs(1),
		func(ctx context.Context, client *ims.Client, args []string) error {
			return a.runObjectImport(ctx, client, args[0], &f, &job)
		})
	cmd.Long = `Make an image of an object that is in a bucket already.

The service has several calls for this. --import-path auto takes the quick import for .zvhd2, and for .raw
(which needs its bitmap .mf beside it), the import that converts for every other format of up to 128 GB, and the
one for data disks with --data-disk. An encrypted image (--kms-key), drivers to be added (--inject-drivers), and
several disks at once (--data-image) need the import that converts; an ISO is recognized by its name.
Which call was taken, and why, is told on standard error.`
	fl := cmd.Flags()
	fl.StringVar(&f.path, "import-path", pathAuto, "auto, quick, common, data, native")
	fl.StringVar(&f.Name, "name", "", "name of the image (required)")
	fl.IntVar(&f.MinDisk, "min-disk", 0, "least size of disks made of it, in GB (required)")
	fl.StringVar(&f.Description, "description", "", "description of the image")
	fl.StringVar(&f.OSVersion, "os-version", "", "operating system, as `imsprep image os-versions` lists it; required where the disk isn't looked into")
	fl.StringVar(&f.OSType, "os-type", "", "Linux, Windows")
	fl.StringVar(&f.Type, "type", "", "ECS, BMS, IsoImage")
	fl.StringVar(&f.Architecture, "architecture", "", "x86, arm")
	fl.StringVar(&f.FirmwareType, "firmware", "", "bios, uefi")
	fl.StringVar(&f.LicenseType, "license-type", "", "platform, byol; Windows only")
	fl.BoolVar(&f.Configure, "inject-drivers", false, "let the service add drivers and change settings of the disk")
	fl.StringVar(&f.KMSKey, "kms-key", "", "encrypt the image with this key")
	fl.IntVar(&f.MinRAM, "min-ram", 0, "least memory of servers made of it, in MB")
	fl.IntVar(&f.MaxRAM, "max-ram", 0, "most memory of servers made of it, in MB")
	fl.StringVar(&f.EnterpriseProjectID, "enterprise-project", "", "enterprise project of the image")
	fl.StringArrayVar(&f.tags, "tag", nil, "a tag, as KEY=VALUE (repeatable)")
	fl.BoolVar(&f.dataDisk, "data-disk", false, "the object is a data disk")
	fl.StringArrayVar(&f.dataImages, "data-image", nil, "a data disk of the same server, as obs://BUCKET/KEY=GB (up to three)")
	fl.BoolVar(&f.QuickImport, "no-inspection", false, "with --import-path common: don't convert or look into the disk, which is .zvhd2, or .raw with a bitmap")
	fl.BoolVar(&f.newer, "new-api", false, "by the newer generation of the call")
	_ = cmd.RegisterFlagCompletionFunc("import-path", cobra.FixedCompletions(
		[]string{pathAuto, pathQuick, pathCommon, pathData, pathNative}, cobra.ShellCompDirectiveNoFileComp))
	return job.add(a, cmd, "") // an import
}

// choose says which call an import takes, and why.
func (f *objectImport) choose() (call, why string, err error) {
	ending := strings.ToLower(strings.TrimPrefix(path.Ext(f.ImageURL), "."))
	quick := ending == "raw" || ending == "zvhd2"
	switch f.path {
	case pathQuick, pathCommon, pathData, pathNative:
		if f.path == pathData && len(f.dataImages) > 0 {
			return "", "", usagef("--import-path data takes one data disk: leave --data-image out")
		}
		return f.path, "asked for", nil
	case pathAuto:
	default:
		return "", "", usagef("--import-path %q: it is one of auto, quick, common, data, native", f.path)
	}
	converts := ""
	switch {
	case f.KMSKey != "":
		converts = "an encrypted image"
	case f.Configure:
		converts = "drivers to be added"
	case len(f.dataImages) > 0:
		converts = "several disks at once"
	case f.MinRAM > 0 || f.MaxRAM > 0:
		converts = "a bound of the memory"
	case ending == "iso" || f.Type == ims.TypeISO:
		converts = "an ISO"
	}
	switch {
	case f.dataDisk && quick && f.KMSKey == "":
		return pathQuick, "a data disk in the format " + ending + " needs no conversion", nil
	case f.dataDisk:
		return pathData, "a data disk that is converted or encrypted", nil
	case converts != "":
		return pathCommon, "only the common import makes " + converts, nil
	case quick:
		return pathQuick, "the format " + ending + " needs no conversion", nil
	case slices.Contains(ims.CommonFormats(), ending):
		return pathCommon, "the format " + ending + " must be converted", nil
	}
	return "", "", usagef("%s: the format isn't one that the service imports (%s, iso)", f.ImageURL, strings.Join(ims.CommonFormats(), ", "))
}

func (a *app) runObjectImport(ctx context.Context, client *ims.Client, object string, f *objectImport, job *jobFlags) error {
	var err error
	if f.ImageURL, err = objectURL(object); err != nil {
		return err
	}
	if f.Tags, err = tagArgs(f.tags); err != nil {
		return err
	}
	if strings.HasSuffix(strings.ToLower(f.ImageURL), ".iso") && f.Type == "" {
		f.Type = ims.TypeISO
	}
	if f.QuickImport && f.path != pathCommon {
		return usagef("--no-inspection has a meaning only with --import-path common")
	}
	for _, d := range f.dataImages {
		object, gb, _ := cutLast(d, "=")
		n, err := strconv.Atoi(gb)
		if err != nil {
			return usagef("--data-image %q: it is written obs://BUCKET/KEY=GB", d)
		}
		data := ims.DataImage{MinDisk: n}
		if data.ImageURL, err = objectURL(object); err != nil {
			return err
		}
		f.DataImages = append(f.DataImages, data)
	}
	call, why, err := f.choose()
	if err != nil {
		return err
	}
	if !a.flags.quiet && !a.flags.json {
		a.say("import path %s: %s", call, why)
	}
	s, err := f.submit(ctx, client, call)
	if err != nil {
		return err
	}
	s.Status, s.ImportPath, s.Why = string(ims.JobInit), call, why
	return a.finishJob(ctx, client, s, job, nil)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// submit carries out the import by the call that was chosen.
func (f *objectImport) submit(ctx context.Context, client *ims.Client, call string) (started, error) {
	gen := generation(f.newer)
	var sub *ims.Submitted
	var err error
	switch call {
	case pathQuick:
		if f.Configure || f.KMSKey != "" || len(f.DataImages) > 0 || f.MinRAM > 0 || f.MaxRAM > 0 {
			return started{}, usagef("a quick import takes no --inject-drivers, --kms-key, --data-image, --min-ram and --max-ram")
		}
		r := &ims.QuickImport{
			Name: f.Name, ImageURL: f.ImageURL, MinDisk: f.MinDisk, Type: f.Type, Description: f.Description, OSVersion: f.OSVersion,
			Architecture: f.Architecture, FirmwareType: f.FirmwareType, LicenseType: f.LicenseType, OSType: f.OSType,
			EnterpriseProjectID: f.EnterpriseProjectID, Tags: f.Tags,
		}
		if f.dataDisk {
			r.Type = ims.TypeDataImage
		}
		sub, err = client.QuickImport(ctx, r, gen)
	case pathCommon:
		if f.dataDisk {
			return started{}, usagef("the common import takes system disks: give --import-path data, or leave --data-disk out")
		}
		sub, err = client.CommonImport(ctx, &f.CommonImport, gen)
	case pathData:
		if f.OSVersion != "" || f.Type != "" || f.Architecture != "" || f.FirmwareType != "" || f.LicenseType != "" || f.Configure {
			return started{}, usagef("a data disk has no --os-version, --type, --architecture, --firmware, --license-type and --inject-drivers")
		}
		sub, err = client.ImportDataDisk(ctx, &ims.DataDiskImport{
			Name: f.Name, ImageURL: f.ImageURL, MinDisk: f.MinDisk, OSType: f.OSType, Description: f.Description, KMSKey: f.KMSKey,
			EnterpriseProjectID: f.EnterpriseProjectID, Tags: f.Tags,
		}, gen)
	case pathNative:
		return f.register(ctx, client)
	}
	if err != nil {
		return started{}, err
	}
	return started{JobID: sub.JobID, ImageID: sub.ImageID}, nil
}

// register makes the image in two steps. An image that can't be registered isn't left behind.
func (f *objectImport) register(ctx context.Context, client *ims.Client) (started, error) {
	m := &ims.ImageMetadata{
		Name: f.Name, OSVersion: f.OSVersion, MinDisk: f.MinDisk, MinRAM: f.MinRAM, Tags: f.Tags, Attributes: map[string]string{},
	}
	if f.FirmwareType != "" {
		m.Attributes["hw_firmware_type"] = f.FirmwareType
	}
	image, err := client.CreateImage(ctx, m)
	if err != nil {
		return started{}, err
	}
	id, err := client.RegisterImage(ctx, image.ID, f.ImageURL)
	if err != nil {
		if ims.KindOf(err) != ims.KindUnknown {
			_ = client.DeleteImage(context.WithoutCancel(ctx), image.ID)
		}
		return started{}, err
	}
	return started{JobID: id, ImageID: image.ID}, nil
}
