// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/ims"
)

// printImage prints an image that a command made or changed: as a document, its id with --quiet, or
// its main fields.
func (a *app) printImage(i *ims.Image) error {
	switch {
	case a.flags.json:
		return a.printJSON(i)
	case a.flags.quiet:
		_, err := fmt.Fprintln(a.out, i.ID)
		return err
	}
	return printFields(a.out, imageFields(i))
}

func (a *app) imageUpdateCommand() *cobra.Command {
	var name, description, firmware, multiqueue, enterpriseProject string
	var minRAM, maxRAM int
	var set, remove []string
	var native bool
	var cmd *cobra.Command
	cmd = a.cloudCommand("update ID", "Change attributes of an image", `  imsprep image update 498cc67e-7795-482c-8c47-32bcece2d7ec --name web-01 --description "first web server"
  imsprep image update 498cc67e-7795-482c-8c47-32bcece2d7ec --firmware uefi --min-ram 2048
  imsprep image update 498cc67e-7795-482c-8c47-32bcece2d7ec --set team=blue --remove obsolete`, cobra.ExactArgs(1),
		func(ctx context.Context, client *ims.Client, args []string) error {
			given := cmd.Flags().Changed
			var changes []ims.Change
			put := func(attribute, value string) {
				changes = append(changes, ims.Change{Op: ims.ChangeAdd, Attribute: attribute, Value: value})
			}
			for _, f := range []struct{ flag, attribute, value string }{
				{"name", "name", name}, {"description", "__description", description}, {"firmware", "hw_firmware_type", firmware},
				{"multiqueue", "hw_vif_multiqueue_enabled", multiqueue}, {"enterprise-project", "enterprise_project_id", enterpriseProject},
				{"min-ram", "min_ram", strconv.Itoa(minRAM)}, {"max-ram", "max_ram", strconv.Itoa(maxRAM)},
			} {
				if given(f.flag) {
					put(f.attribute, f.value)
				}
			}
			for _, s := range set {
				attribute, value, ok := strings.Cut(s, "=")
				if !ok {
					return usagef("--set %q: it is written NAME=VALUE", s)
				}
				put(attribute, value)
			}
			for _, r := range remove {
				changes = append(changes, ims.Change{Op: ims.ChangeRemove, Attribute: r})
			}
			if len(changes) == 0 {
				return usagef("nothing to change: give --name, --description, --set or another of the flags")
			}
			if err := ims.CheckChanges(args[0], changes...); err != nil {
				return err
			}
			image, err := client.Image(ctx, args[0])
			if err != nil {
				return err
			}
			// The service wants to be told whether an attribute is new.
			has := attributesOf(image)
			for n := range changes {
				if c := &changes[n]; c.Op == ims.ChangeAdd && has[c.Attribute] {
					c.Op = ims.ChangeReplace
				}
			}
			update := client.UpdateImage
			if native {
				update = client.UpdateNativeImage
			}
			if image, err = update(ctx, args[0], changes...); err != nil {
				return err
			}
			return a.printImage(image)
		})
	fl := cmd.Flags()
	fl.StringVar(&name, "name", "", "another name")
	fl.StringVar(&description, "description", "", "another description")
	fl.StringVar(&firmware, "firmware", "", "bios, uefi")
	fl.StringVar(&multiqueue, "multiqueue", "", "several queues of the network card: true, false")
	fl.StringVar(&enterpriseProject, "enterprise-project", "", "enterprise project to move it to")
	fl.IntVar(&minRAM, "min-ram", 0, "least memory of servers made of it, in MB")
	fl.IntVar(&maxRAM, "max-ram", 0, "most memory of servers made of it, in MB")
	fl.StringArrayVar(&set, "set", nil, "any attribute, NAME=VALUE (repeatable)")
	fl.StringArrayVar(&remove, "remove", nil, "an attribute to take away (repeatable)")
	fl.BoolVar(&native, "native", false, "by the OpenStack call")
	return cmd
}

// attributesOf are the attributes that an image has, by the service's names. The service shows some
// only where they are set.
func attributesOf(i *ims.Image) map[string]bool {
	has := map[string]bool{"name": true, "min_ram": true}
	for name := range i.Attributes {
		has[name] = true
	}
	has["__description"] = i.Description != ""
	has["hw_firmware_type"] = i.FirmwareType != ""
	has["enterprise_project_id"] = i.EnterpriseProjectID != ""
	return has
}

func (a *app) imageDeleteCommand() *cobra.Command {
	var backup bool
	cmd := a.cloudCommand("delete ID...", "Delete images; the objects they were made of stay", `  imsprep image delete 498cc67e-7795-482c-8c47-32bcece2d7ec
  imsprep image list --status killed -q | xargs -r imsprep image delete`, cobra.MinimumNArgs(1),
		func(ctx context.Context, client *ims.Client, args []string) error {
			remove := client.DeleteImage
			if backup {
				remove = client.DeleteWholeImage
			}
			deleted := []string{}
			var errs []error
			for _, id := range args {
				if err := remove(ctx, id); err != nil {
					if errs = append(errs, err); ctx.Err() != nil {
						break
					}
					continue
				}
				deleted = append(deleted, id)
				if !a.flags.json {
					if _, err := fmt.Fprintln(a.out, id); err != nil {
						return err
					}
				}
			}
			if a.flags.json && len(errs) == 0 {
				return a.printJSON(map[string][]string{"deleted": deleted})
			}
			return errors.Join(errs...)
		})
	cmd.Flags().BoolVar(&backup, "with-backup", false, "of a whole server's image, delete the backup too")
	return cmd
}

func (a *app) imageCopyCommand() *cobra.Command {
	var c ims.Copy
	var r ims.RegionCopy
	var newer bool
	var job jobFlags
	cmd := a.cloudCommand("copy ID --name NAME", "Copy an image, in the region or to another one", `  imsprep image copy 498cc67e-7795-482c-8c47-32bcece2d7ec --name web-02 --wait
  imsprep image copy 498cc67e-7795-482c-8c47-32bcece2d7ec --name secret --kms-key KEY      # encrypt it
  imsprep image copy 498cc67e-7795-482c-8c47-32bcece2d7ec --name web-01 --to-region cn-south-1 --agency ims_agency`, cobra.ExactArgs(1),
		func(ctx context.Context, client *ims.Client, args []string) error {
			if r.Region == "" {
				if r.AgencyName+r.ProjectName+r.VaultID != "" {
					return usagef("--agency, --to-project and --vault have a meaning only with --to-region")
				}
				sub, err := client.CopyImage(ctx, args[0], c, generation(newer))
				if err != nil {
					return err
				}
				return a.finishJob(ctx, client, started{JobID: sub.JobID, ImageID: sub.ImageID, Status: string(ims.JobInit)}, &job, nil)
			}
			if c.KMSKey != "" || c.EnterpriseProjectID != "" {
				return usagef("--kms-key and --enterprise-project have no meaning with --to-region")
			}
			r.Name, r.Description = c.Name, c.Description
			r.ProjectName = first(r.ProjectName, r.Region)
			id, err := client.CopyImageToRegion(ctx, args[0], r)
			if err != nil {
				return err
			}
			return a.finishJob(ctx, client, started{JobID: id, Status: string(ims.JobInit)}, &job, nil)
		})
	fl := cmd.Flags()
	fl.StringVar(&c.Name, "name", "", "name of the copy (required)")
	fl.StringVar(&c.Description, "description", "", "description of the copy")
	fl.StringVar(&c.KMSKey, "kms-key", "", "encrypt the copy with this key")
	fl.StringVar(&c.EnterpriseProjectID, "enterprise-project", "", "enterprise project of the copy")
	fl.StringVar(&r.Region, "to-region", "", "another region")
	fl.StringVar(&r.ProjectName, "to-project", "", "name of the project there (default: the region's name)")
	fl.StringVar(&r.AgencyName, "agency", "", "agency that may act for you in both regions (required with --to-region)")
	fl.StringVar(&r.VaultID, "vault", "", "backup vault there, for images of whole servers")
	fl.BoolVar(&newer, "new-api", false, "by the newer generation of the call")
	return job.add(a, cmd, "Copying")
}

func generation(newer bool) ims.Generation {
	if newer {
		return ims.GenNew
	}
	return ims.GenAuto
}

func (a *app) imageExportCommand() *cobra.Command {
	var e ims.Export
	var newer bool
	var job jobFlags
	cmd := a.cloudCommand("export ID obs://BUCKET/KEY", "Write an image to an object", `  imsprep image export 498cc67e-7795-482c-8c47-32bcece2d7ec obs://images/web-01.qcow2 --format qcow2 --wait
  imsprep image export 498cc67e-7795-482c-8c47-32bcece2d7ec obs://images/web-01.zvhd2 --quick`, cobra.ExactArgs(2),
		func(ctx context.Context, client *ims.Client, args []string) error {
			object, err := objectURL(args[1])
			if err != nil {
				return err
			}
			e.BucketURL = object
			id, err := client.ExportImage(ctx, args[0], e, generation(newer))
			if err != nil {
				return err
			}
			return a.finishJob(ctx, client, started{JobID: id, Status: string(ims.JobInit)}, &job, func(*ims.Job) string { return args[1] })
		})
	fl := cmd.Flags()
	fl.StringVar(&e.Format, "format", "", "qcow2, vhd, zvhd, vmdk; up to 128 GB")
	fl.BoolVar(&e.Quick, "quick", false, "as zvhd2, without conversion; up to 1 TB, not for encrypted images")
	fl.BoolVar(&newer, "new-api", false, "by the newer generation of the call")
	return job.add(a, cmd, "Exporting")
}

func (a *app) imageCreateCommand() *cobra.Command {
	var m ims.ImageMetadata
	var tags, set []string
	cmd := a.cloudCommand("create", "Make an image without content, to be uploaded or registered", `  id=$(imsprep image create --name web-01 --os-version "Ubuntu 22.04 server 64bit" --disk-format qcow2 --min-disk 40 -q)
  imsprep image register $id obs://images/web-01.qcow2 --wait`, cobra.NoArgs,
		func(ctx context.Context, client *ims.Client, _ []string) error {
			var err error
			if m.Tags, err = tagArgs(tags); err != nil {
				return err
			}
			m.Attributes = map[string]string{}
			for _, s := range set {
				name, value, ok := strings.Cut(s, "=")
				if !ok {
					return usagef("--set %q: it is written NAME=VALUE", s)
				}
				m.Attributes[name] = value
			}
			image, err := client.CreateImage(ctx, &m)
			if err != nil {
				return err
			}
			return a.printImage(image)
		})
	fl := cmd.Flags()
	fl.StringVar(&m.Name, "name", "", "name of the image (required)")
	fl.StringVar(&m.OSVersion, "os-version", "", "operating system, as `imsprep image os-versions` lists it")
	fl.StringVar(&m.DiskFormat, "disk-format", "", "zvhd2, zvhd, vhd, raw, qcow2, iso")
	fl.IntVar(&m.MinDisk, "min-disk", 0, "least size of disks made of it, in GB")
	fl.IntVar(&m.MinRAM, "min-ram", 0, "least memory of servers made of it, in MB")
	fl.BoolVar(&m.Protected, "protected", false, "protect it from being deleted")
	fl.StringArrayVar(&tags, "tag", nil, "a tag, as KEY=VALUE (repeatable)")
	fl.StringArrayVar(&set, "set", nil, "another attribute, NAME=VALUE, such as hw_firmware_type=uefi (repeatable)")
	return cmd
}

func (a *app) imageUploadCommand() *cobra.Command {
	return a.cloudCommand("upload ID FILE", "Upload a file below 2 GB as the content of an image that `image create` made",
		`  imsprep image upload $id small.qcow2       # above 12 MB this needs a user and a password, not an access key`, cobra.ExactArgs(2),
		func(ctx context.Context, client *ims.Client, args []string) error {
			file, err := os.Open(args[1])
			if err != nil {
				return err
			}
			defer file.Close()
			info, err := file.Stat()
			switch {
			case err != nil:
				return err
			case !info.Mode().IsRegular():
				return usagef("%q isn't a regular file", args[1])
			}
			if err := client.UploadImageFile(ctx, args[0], file, info.Size()); err != nil {
				return err
			}
			image, err := client.WaitImage(ctx, args[0], ims.WaitOptions{First: -1})
			if err != nil {
				return err
			}
			return a.printImage(image)
		})
}

func (a *app) imageRegisterCommand() *cobra.Command {
	var job jobFlags
	cmd := a.cloudCommand("register ID obs://BUCKET/KEY", "Make an object the content of an image that `image create` made",
		`  imsprep image register $id obs://images/web-01.qcow2 --wait`, cobra.ExactArgs(2),
		func(ctx context.Context, client *ims.Client, args []string) error {
			object, err := objectURL(args[1])
			if err != nil {
				return err
			}
			id, err := client.RegisterImage(ctx, args[0], object)
			if err != nil {
				return err
			}
			return a.finishJob(ctx, client, started{JobID: id, ImageID: args[0], Status: string(ims.JobInit)}, &job, nil)
		})
	return job.add(a, cmd, "Registering")
}
