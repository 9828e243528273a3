// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/settings"
)

// uploadFlags are the flags of commands that send a disk to a bucket.
type uploadFlags struct {
	zeroCopy          string
	keepZeros         bool
	partSize          byteSize
	line              lineFlags
	overwrite         bool
	format            string
	level             int
	layout            string
	acceptUnconfirmed bool
	bitmapCommand     string
	scratch           string
	dryRun            bool
	stateFlags
	restart bool
	verify  bool
	sha256  bool
	reuse   string
}

func (u *uploadFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&u.zeroCopy, "zero-copy", "auto", "make zero parts by copying on the server: auto, on, off")
	f.BoolVar(&u.keepZeros, "keep-zeros", false, "leave the object of zeros that is copied from in the bucket, under imsprep-zeros/, for the next uploads")
	f.Var(&u.partSize, "part-size", "size of a data part, such as 16MiB (default: the smallest that fits 10,000 parts, from 8MiB)")
	u.line.add(cmd, "parts that are sent")
	f.BoolVar(&u.overwrite, "overwrite", false, "replace an object of the same key")
	f.StringVar(&u.format, "format", string(pipeline.FormatAuto), "what the object is: auto, raw, zvhd2; auto goes by the key's ending, else it is raw where its bitmap's layout is confirmed, else zvhd2")
	f.IntVar(&u.level, "compression-level", 0, "of ZVHD2: 1 (fast) to 22 (small) (default: 3)")
	f.StringVar(&u.layout, "bitmap-layout", bitmap.DefaultLayout, "layout of the bitmap file: "+strings.Join(layoutNames(), ", "))
	f.BoolVar(&u.acceptUnconfirmed, "accept-unconfirmed-bitmap", false, "use a bitmap layout that isn't confirmed for this cloud")
	f.StringVar(&u.bitmapCommand, "bitmap-command", "", "have a command make the bitmap, such as 'java -jar CreateMF.jar {raw} {mf}'; it gets a sparse RAW file (with --bitmap-scratch)")
	f.StringVar(&u.scratch, "bitmap-scratch", "", "folder for that RAW file, which takes as much room as the disk has data; it is removed")
	f.BoolVar(&u.restart, "restart", false, "begin anew, and remove what an interrupted run has left, instead of going on with it")
	u.stateFlags.add(cmd)
	f.StringVar(&u.reuse, "reuse", "", "obs://BUCKET/KEY.raw of an earlier upload of this disk: what hasn't changed since is copied from it on the server")
	f.BoolVar(&u.verify, "verify", false, "read the object back and compare its content digest with the source's, before it counts as uploaded")
	f.BoolVar(&u.sha256, "sha256", false, "compute the plain SHA-256 of the disk, too: reads the disk a second time, front to back, beside the upload")
	f.BoolVar(&u.dryRun, "dry-run", false, "check everything, show the plan, and stop")
	for name, values := range map[string][]string{
		"zero-copy": {"auto", "on", "off"}, "format": {"auto", formatRAW, formatZVHD2}, "bitmap-layout": layoutNames(),
	} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
}

func (u *uploadFlags) apply(a *app, r *pipeline.Request) (err error) {
	switch {
	case (u.bitmapCommand == "") != (u.scratch == ""):
		return usagef("--bitmap-command and --bitmap-scratch go together: the command reads a RAW file, and nothing is written without being told where")
	case u.bitmapCommand != "" && u.format == formatZVHD2:
		return usagef("--bitmap-command is for RAW: ZVHD2 carries its bitmap itself")
	case u.bitmapCommand != "":
		command, err := parseBitmapCommand(u.bitmapCommand)
		if err != nil {
			return err
		}
		r.MakeBitmap = command.in(u.scratch)
	}
	mode := obs.ZeroCopyMode(u.zeroCopy)
	switch mode {
	case obs.ZeroCopyAuto, obs.ZeroCopyOn, obs.ZeroCopyOff:
	default:
		return usagef("--zero-copy %q: it is one of auto, on, off", u.zeroCopy)
	}
	l, err := a.line(&u.line)
	if err != nil {
		return err
	}
	r.Format = pipeline.Format(u.format)
	switch r.Format {
	case pipeline.FormatAuto, pipeline.FormatRAW, pipeline.FormatZVHD2:
	default:
		return usagef("--format %q: it is one of auto, raw, zvhd2", u.format)
	}
	if u.level < 0 || u.level > 22 {
		return usagef("--compression-level %d: it is 1 to 22", u.level)
	}
	r.CompressionLevel = u.level
	r.KeepZeros = u.keepZeros
	r.Verify, r.SHA256 = u.verify, u.sha256
	if u.reuse != "" {
		if r.Reuse.Bucket, r.Reuse.Key, err = parseObject(u.reuse); err != nil {
			return err
		}
	}
	if r.Restart = u.restart; !u.dryRun {
		if r.State, err = u.place(a); err != nil {
			return err
		}
		if r.State == nil {
			r.StateDir = a.sources().StateDir(u.stateDir)
		}
	}
	r.ZeroCopy, r.PartSize = mode, int64(u.partSize)
	r.MinWorkers, r.Workers = l.low, l.high
	r.Overwrite, r.AcceptUnconfirmed = u.overwrite, u.acceptUnconfirmed
	r.Layout, err = a.sources().LookupLayout(u.layout)
	return err
}

func layoutNames() []string {
	var names []string
	for _, l := range bitmap.Layouts() {
		names = append(names, l.Name)
	}
	return names
}

// importFlags are the flags of `imsprep import`.
type importFlags struct {
	sourceFlags
	packer packerFlags
	uploadFlags
	bucket, key string

	name, osVersion, description string
	minDisk                      int
	dataDisk                     bool
	osType, imageType            string
	architecture, firmware       string
	license, enterpriseProject   string
	tags                         []string
	api                          string
	importPath                   string
	extras                       pipeline.Extras

	allowDuplicate, keepObject, noWait bool
	timeout, poll                      time.Duration
}

func (a *app) importCommand() *cobra.Command {
	var f importFlags
	cmd := &cobra.Command{
		Use:     "import {SRC | --packer-manifest FILE} --bucket BUCKET --name NAME --os-version VERSION",
		GroupID: groupCloud,
		Short:   "Make an image of a disk: upload, import, and follow the job",
		Long: `Import takes a disk the whole way to an image: it checks all that can be checked before a byte
moves, streams the disk to the bucket (zero parts are copied on the server, not sent), writes the
bitmap beside it, starts the import and follows the job until the image is active.

The image's id is printed on standard output; progress goes to standard error. When the import
has succeeded, the object and its bitmap are deleted from the bucket unless --keep-object is given;
they also stay when the import fails or isn't waited for to its end, since the service reads them.
An import that was interrupted, killed, or ended by trouble that passes goes on where it was when the
same command is given again; --restart begins anew.

The service has several calls for imports, and --import-path auto takes
  quick   for disks of up to 1 TB, converted here as they are sent. The service doesn't look into
          the disk: operating system, architecture and firmware are what you say;
  common  for an ISO, an encrypted image (--kms-key), drivers to be added (--inject-drivers) and bounds
          of the memory: the file goes as it is, up to 128 GB, and the service converts it;
  data    for a data disk that is encrypted: the same for data disks.
On request only: native, which makes the image first and gives it the file's content, below 2 GB
without a bucket (12 MB with an access key), up to 128 GB by an object. --dry-run says what is
taken and why; a path that is asked for and can't be is refused before anything moves.`,
		Example: `  # a system disk
  imsprep import web-01.qcow2 --bucket images --name web-01 --os-version "Ubuntu 22.04 server 64bit"

  # a data disk, tagged
  imsprep import data.qcow2 --bucket images --name data-01 --data-disk --tag team=db --tag env=prod

  # have the service add drivers; it recognizes the system itself
  imsprep import exported.vmdk --bucket images --name app-01 --inject-drivers

  # look before you leap
  imsprep import web-01.qcow2 --bucket images --name web-01 \
      --os-version "Ubuntu 22.04 server 64bit" --dry-run

  # the disk that Packer has just built
  imsprep import --packer-manifest packer-manifest.json --bucket images --name web-01 \
      --os-version "Ubuntu 22.04 server 64bit"

  # in a build: start it, go on, look later
  job=$(imsprep import disk.raw --bucket images --name nightly --os-version "..." --no-wait -q)
  imsprep job wait "$job"`,
		Args: a.args(f.packer.args),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			var src string
			if len(args) > 0 {
				src = args[0]
			}
			return a.runImport(cmd.Context(), src, &f)
		},
	}
	a.cloudFlags(cmd)
	f.sourceFlags.add(cmd)
	f.uploadFlags.add(cmd)
	fl := cmd.Flags()
	f.packer.add(cmd)
	fl.StringVar(&f.bucket, "bucket", "", "bucket in the image service's region, of class Standard (environment: IMSPREP_BUCKET)")
	fl.StringVar(&f.key, "key", "", "the object's key, ending as its format (default: from the source's name)")
	fl.StringVar(&f.name, "name", "", "the image's name")
	fl.StringVar(&f.osVersion, "os-version", "", "the operating system, exactly as the region lists it")
	fl.StringVar(&f.description, "description", "", "the image's description")
	fl.IntVar(&f.minDisk, "min-disk", 0, "smallest disk for servers made from the image, in GB (default: the smallest that fits)")
	fl.BoolVar(&f.dataDisk, "data-disk", false, "make a data disk image")
	fl.StringVar(&f.osType, "os-type", "", "for a data disk: Linux or Windows (the service's default: Linux); for --import-path common also Other")
	fl.StringVar(&f.imageType, "type", "", "ECS, BMS or IsoImage (the service's default: ECS; a file named .iso is an IsoImage)")
	fl.StringVar(&f.importPath, "import-path", string(pipeline.PathAuto), "the service's call: auto, quick, common, data, native")
	fl.BoolVar(&f.extras.Configure, "inject-drivers", false, "let the service add drivers and change settings of the disk")
	fl.StringVar(&f.extras.KMSKey, "kms-key", "", "encrypt the image with this key")
	fl.IntVar(&f.extras.MinRAM, "min-ram", 0, "least memory of servers made of it, in MB")
	fl.IntVar(&f.extras.MaxRAM, "max-ram", 0, "most memory of servers made of it, in MB")
	fl.StringVar(&f.architecture, "architecture", "", "x86 or arm (the service's default: x86)")
	fl.StringVar(&f.firmware, "firmware", "", "bios or uefi (the service's default: bios)")
	fl.StringVar(&f.license, "license", "", "for Windows: platform or byol")
	fl.StringVar(&f.enterpriseProject, "enterprise-project", "", "enterprise project id (environment: HW_ENTERPRISE_PROJECT_ID)")
	fl.StringArrayVar(&f.tags, "tag", nil, "a tag, as key=value or key alone (repeatable)")
	fl.StringVar(&f.api, "api", "auto", "generation of the import call: auto, old (/v2), new (/v2.1)")
	fl.BoolVar(&f.allowDuplicate, "allow-duplicate-name", false, "import although an image of that name exists")
	fl.BoolVar(&f.keepObject, "keep-object", false, "keep the object and its bitmap after the import")
	fl.BoolVar(&f.noWait, "no-wait", false, "don't wait for the job: its id is printed, and the objects stay in the bucket")
	waitFlags(cmd, &f.timeout, &f.poll)
	_ = cmd.RegisterFlagCompletionFunc("import-path", cobra.FixedCompletions(
		[]string{pathAuto, pathQuick, pathCommon, pathData, pathNative}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func waitFlags(cmd *cobra.Command, timeout, poll *time.Duration) {
	cmd.Flags().DurationVar(timeout, "timeout", 2*time.Hour, "longest wait for the job")
	cmd.Flags().DurationVar(poll, "poll", 10*time.Second, "interval between questions after the job; it grows to three times that")
}

func waitOptions(timeout, poll time.Duration) ims.WaitOptions {
	return ims.WaitOptions{First: poll / 2, Interval: poll, MaxInterval: 3 * poll, Limit: timeout}
}

func (f *importFlags) request(a *app, src string, s *settings.Settings) (pipeline.Request, error) {
	r := pipeline.Request{
		Source: src,
		Bucket: first(f.bucket, s.Bucket),
		Key:    f.key,
		Image: ims.QuickImport{
			Name:                f.name,
			Description:         f.description,
			Type:                f.imageType,
			OSVersion:           f.osVersion,
			OSType:              f.osType,
			MinDisk:             f.minDisk,
			Architecture:        f.architecture,
			FirmwareType:        f.firmware,
			LicenseType:         f.license,
			EnterpriseProjectID: f.enterpriseProject,
		},
		ImportPath:         pipeline.Path(f.importPath),
		Extras:             f.extras,
		ConfirmedLayouts:   s.Confirmed,
		AllowDuplicateName: f.allowDuplicate,
		KeepObject:         f.keepObject,
		NoWait:             f.noWait,
		Wait:               waitOptions(f.timeout, f.poll),
	}
	path := r.ImportPath
	if !slices.Contains(pipeline.Paths(), path) {
		return r, usagef("--import-path %q: it is one of auto, quick, common, data, native", f.importPath)
	}
	f.dataDisk = f.dataDisk || path == pipeline.PathData
	// Where the service looks into the disk, it recognizes the system.
	recognized := path == pipeline.PathCommon || path == pipeline.PathNative || path == pipeline.PathAuto && f.extras != pipeline.Extras{}
	switch {
	case r.Bucket == "" && path != pipeline.PathNative: // a small file needs none
		return r, usagef("no bucket: give --bucket, or set IMSPREP_BUCKET")
	case f.name == "":
		return r, usagef("no image name: give --name")
	case f.dataDisk && f.imageType != "":
		return r, usagef("--type is for system disks: leave it out with --data-disk")
	case f.dataDisk && f.osVersion != "":
		return r, usagef("--os-version is for system disks: with --data-disk give --os-type, or nothing")
	case !f.dataDisk && f.osVersion == "" && !recognized:
		return r, usagef("no operating system: give --os-version (or --data-disk for a disk without one)")
	case f.timeout <= 0 || f.poll <= 0:
		return r, usagef("--timeout and --poll must be longer than nothing")
	}
	if f.dataDisk {
		r.Image.Type = ims.TypeDataImage
	}
	var err error
	if r.Image.Tags, err = parseTags(f.tags); err != nil {
		return r, err
	}
	switch f.api {
	case "auto":
		r.Generation = ims.GenAuto
	case "old":
		r.Generation = ims.GenOld
	case "new":
		r.Generation = ims.GenNew
	default:
		return r, usagef("--api %q: it is one of auto, old, new", f.api)
	}
	if err := f.uploadFlags.apply(a, &r); err != nil {
		return r, err
	}
	r.Open, err = f.sourceFlags.options()
	return r, err
}

func parseTags(list []string) ([]ims.Tag, error) {
	var tags []ims.Tag
	for _, t := range list {
		key, value, _ := strings.Cut(t, "=")
		if key == "" {
			return nil, usagef("--tag %q: it is written key=value, or key alone", t)
		}
		tags = append(tags, ims.Tag{Key: key, Value: value})
	}
	return tags, nil
}

func (a *app) runImport(ctx context.Context, src string, f *importFlags) error {
	s, err := a.settings()
	if err != nil {
		return err
	}
	if f.packer.manifest != "" {
		if src, err = f.packer.source(a); err != nil {
			return err
		}
	}
	f.enterpriseProject = first(f.enterpriseProject, a.getenv("HW_ENTERPRISE_PROJECT_ID"))
	r, err := f.request(a, src, s)
	if err != nil {
		return err
	}
	importer, err := a.importer(s, f.dryRun)
	if err != nil {
		return err
	}
	r.Offline = importer.OBS == nil
	plan, err := importer.Plan(ctx, r)
	if err != nil {
		return err
	}
	defer plan.Close()
	if f.dryRun {
		return a.printPlan(plan)
	}
	a.warn(plan.Warnings)
	if !a.flags.quiet && !a.flags.json {
		a.say("import path %s: %s", plan.Path, plan.Why)
	}
	view := a.newProgress()
	importer.Events = view.event
	res, err := importer.Run(ctx, plan)
	view.close()
	if err != nil {
		return err
	}
	a.metrics.uploaded(&res.Upload)
	if a.flags.json {
		return a.printJSON(res)
	}
	if f.noWait {
		_, err = fmt.Fprintln(a.out, first(res.JobID, res.ImageID))
		return err
	}
	a.say("image %s (%s) is %s: sent %s for %s of data in a disk of %s%s", res.ImageID, res.Name, res.Status,
		size(res.Upload.BytesSent), size(res.Upload.DataBytes), size(res.Upload.VirtualSize), usage(res.Upload.Concurrency))
	_, err = fmt.Fprintln(a.out, res.ImageID)
	return err
}

// importer makes the clients. A dry run without a cloud is allowed: it shows the plan, unchecked.
func (a *app) importer(s *settings.Settings, dryRun bool) (*pipeline.Importer, error) {
	if dryRun && s.Check() != nil {
		a.warn([]string{"no region or no credentials: what the cloud would refuse isn't checked"})
		return &pipeline.Importer{}, nil
	}
	return s.Importer()
}
