// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/ims"
)

// imageCommands are the commands below `imsprep image`, beside show.
func (a *app) imageCommands() []*cobra.Command {
	return []*cobra.Command{
		a.imageListCommand(), a.imageUpdateCommand(), a.imageDeleteCommand(),
		a.imageTagCommand(), a.imageShareCommand(),
		a.imageCopyCommand(), a.imageExportCommand(),
		a.imageImportCommand(), a.imageCreateCommand(), a.imageUploadCommand(), a.imageRegisterCommand(),
		a.imageQuotaCommand(), a.imageOSVersionsCommand(), a.imageVersionsCommand(), a.imageSchemaCommand(),
	}
}

func (a *app) imageListCommand() *cobra.Command {
	var (
		f                         ims.ImageFilter
		kind, tag                 string
		createdAfter, createdUpTo string
		updatedAfter              string
		native, v11               bool
		extra                     []string
	)
	cmd := a.cloudCommand("list", "List images, newest first", `  imsprep image list
  imsprep image list --type all --os-type Linux --tag env=prod
  imsprep image list --created-after 2026-01-02T03:04:05Z --sort name
  imsprep image list --status killed -q | xargs -r imsprep image delete`, cobra.NoArgs,
		func(ctx context.Context, client *ims.Client, _ []string) error {
			for _, c := range []struct {
				flag, value string
				allowed     []string
			}{
				{"type", kind, imageTypes}, {"status", f.Status, imageStatuses}, {"os-type", f.OSType, []string{"Linux", "Windows", "Other"}},
				{"os-bit", f.OSBit, []string{"32", "64"}}, {"architecture", f.Architecture, []string{"x86", "arm"}},
				{"env", f.VirtualEnvType, environments}, {"member-status", f.MemberStatus, []string{"pending", "accepted", "rejected"}},
				{"sort", f.SortKey, sortKeys}, {"order", f.SortDir, []string{"asc", "desc"}},
			} {
				if c.value != "" && !slices.Contains(c.allowed, c.value) {
					return usagef("--%s %q: it is one of %s", c.flag, c.value, strings.Join(c.allowed, ", "))
				}
			}
			if f.Limit < 0 {
				return usagef("--limit %d: it is a number of images, or 0 for all", f.Limit)
			}
			for flag, t := range map[string]*string{"created-after": &createdAfter, "created-before": &createdUpTo, "updated-after": &updatedAfter} {
				if *t != "" {
					moment, err := parseMoment(*t)
					if err != nil {
						return usagef("--%s %w", flag, err)
					}
					*t = moment
				}
			}
			f.ImageType = map[string]string{"public": "gold", "all": ""}[kind]
			if kind != "public" && kind != "all" {
				f.ImageType = kind
			}
			if f.MemberStatus != "" {
				f.Visibility = "shared"
			}
			if tag != "" {
				t, err := tagArg(tag)
				if err != nil {
					return err
				}
				f.Tag = t
			}
			switch {
			case createdAfter != "" && createdUpTo != "":
				return usagef("--created-after and --created-before: the service takes one of them")
			case createdAfter != "":
				f.CreatedAt = "gt:" + createdAfter
			case createdUpTo != "":
				f.CreatedAt = "lt:" + createdUpTo
			}
			if updatedAfter != "" {
				f.UpdatedAt = "gt:" + updatedAfter
			}
			if f.SortKey != "" && f.SortDir == "" {
				f.SortDir = "asc"
			}
			f.Extra = url.Values{}
			for _, e := range extra {
				name, value, ok := strings.Cut(e, "=")
				if !ok || name == "" {
					return usagef("--filter %q: it is written NAME=VALUE", e)
				}
				f.Extra.Add(name, value)
			}
			if v11 {
				return a.listV11(ctx, client, f)
			}
			list := client.ListImages
			if native {
				list = client.NativeImages
			}
			images, err := list(ctx, f)
			if err != nil {
				return err
			}
			return printList(a, images, func(i ims.Image) string { return i.ID },
				[]string{"ID", "NAME", "STATUS", "TYPE", "OS", "MIN DISK", "SIZE", "CREATED"}, imageRow)
		})
	fl := cmd.Flags()
	fl.StringVar(&kind, "type", "private", "private, shared, public, market, all")
	fl.StringVar(&f.Name, "name", "", "exactly this name")
	fl.StringVar(&f.Status, "status", "", "queued, saving, active, killed")
	fl.StringVar(&f.OSType, "os-type", "", "Linux, Windows, Other")
	fl.StringVar(&f.Platform, "platform", "", "such as Ubuntu, CentOS, Windows")
	fl.StringVar(&f.OSBit, "os-bit", "", "32, 64")
	fl.StringVar(&f.Architecture, "architecture", "", "x86, arm")
	fl.StringVar(&f.DiskFormat, "disk-format", "", "zvhd2, zvhd, vhd, raw, qcow2, iso")
	fl.StringVar(&f.VirtualEnvType, "env", "", "FusionCompute (servers), Ironic (bare metal), DataImage, IsoImage")
	fl.StringVar(&f.EnterpriseProjectID, "enterprise-project", "", "enterprise project, or all_granted_eps")
	fl.StringVar(&f.FlavorID, "flavor", "", "public images that a server flavor can use")
	fl.StringVar(&f.KMSKey, "kms-key", "", "encrypted with this key")
	fl.StringVar(&f.MemberStatus, "member-status", "", "images shared with this project: pending, accepted, rejected (with --type shared)")
	fl.StringVar(&tag, "tag", "", "images with this tag, KEY=VALUE")
	fl.StringVar(&createdAfter, "created-after", "", "UTC, such as 2026-01-02 or 2026-01-02T03:04:05Z")
	fl.StringVar(&createdUpTo, "created-before", "", "UTC, such as 2026-01-02 or 2026-01-02T03:04:05Z")
	fl.StringVar(&updatedAfter, "updated-after", "", "UTC, such as 2026-01-02 or 2026-01-02T03:04:05Z")
	fl.StringVar(&f.SortKey, "sort", "", "name, status, size, created_at, id, disk_format, container_format")
	fl.StringVar(&f.SortDir, "order", "", "asc, desc")
	fl.StringVar(&f.Marker, "after", "", "begin behind the image of this id")
	fl.IntVar(&f.Limit, "limit", 0, "most images to list; 0 for all")
	fl.StringArrayVar(&extra, "filter", nil, "any other parameter of the service's list, NAME=VALUE, such as __support_kvm=true (repeatable)")
	fl.BoolVar(&native, "native", false, "by the OpenStack call")
	fl.BoolVar(&v11, "v1.1", false, "by the abandoned version 1.1, for old installations; with --name, --status, --disk-format")
	return cmd
}

// What the service's list can be restricted to.
var (
	imageTypes    = []string{"private", "shared", "public", "market", "all"}
	imageStatuses = []string{"queued", "saving", "active", "killed", "deleted"}
	environments  = []string{"FusionCompute", "Ironic", "DataImage", "IsoImage"}
	sortKeys      = []string{"name", "container_format", "disk_format", "status", "id", "size", "created_at"}
)

// parseMoment reads a time on the command line, of UTC unless it says another zone, and writes it as the
// service wants it.
func parseMoment(s string) (string, error) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", time.DateTime, "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC().Format("2006-01-02T15:04:05Z"), nil
		}
	}
	return "", fmt.Errorf("%q: it is a time of UTC, such as 2026-01-02, 2026-01-02T03:04:05Z or 2026-01-02T05:04:05+02:00", s)
}

func imageRow(i ims.Image) []string {
	system := i.OSVersion
	if system == "" {
		system = i.OSType
	}
	bytes := ""
	if i.Size > 0 {
		bytes = humanize.IBytes(uint64(i.Size))
	}
	kind := i.ImageType
	if kind == "gold" {
		kind = "public"
	}
	return []string{i.ID, i.Name, i.Status, kind, system, fmt.Sprintf("%d GB", i.MinDisk), bytes, i.CreatedAt}
}

func (a *app) listV11(ctx context.Context, client *ims.Client, f ims.ImageFilter) error {
	q := url.Values{}
	for name, value := range map[string]string{"name": f.Name, "status": f.Status, "disk_format": f.DiskFormat} {
		if value != "" {
			q.Set(name, value)
		}
	}
	//lint:ignore SA1019 old installations have nothing else
	images, err := client.ImageDetailsV11(ctx, q)
	if err != nil {
		return err
	}
	return printList(a, images, func(i ims.ImageDetailV11) string { return i.ID }, []string{"ID", "NAME", "STATUS", "MIN DISK", "CREATED"},
		func(i ims.ImageDetailV11) []string {
			return []string{i.ID, i.Name, i.Status, fmt.Sprintf("%d GB", i.MinDisk), i.CreatedAt}
		})
}

func (a *app) imageQuotaCommand() *cobra.Command {
	return a.cloudCommand("quota", "Show how many private images there are and may be", `  imsprep image quota
  imsprep image quota -q          # how many more there may be`, cobra.NoArgs,
		func(ctx context.Context, client *ims.Client, _ []string) error {
			used, quota, err := client.Quota(ctx)
			if err != nil {
				return err
			}
			switch {
			case a.flags.json:
				return a.printJSON(map[string]int{"used": used, "quota": quota, "free": quota - used})
			case a.flags.quiet:
				_, err = fmt.Fprintln(a.out, quota-used)
			default:
				_, err = fmt.Fprintf(a.out, "%d of %d private images\n", used, quota)
			}
			return err
		})
}

func (a *app) imageOSVersionsCommand() *cobra.Command {
	var tags []string
	var nearest int
	cmd := a.cloudCommand("os-versions [TEXT]", "List the operating systems that the region knows, to the letter", `  imsprep image os-versions
  imsprep image os-versions ubuntu
  imsprep image os-versions "ubuntu server 22.04" --nearest 3
  imsprep image os-versions --for arm`, cobra.MaximumNArgs(1),
		func(ctx context.Context, client *ims.Client, args []string) error {
			list, err := client.OSVersions(ctx, tags...)
			if err != nil {
				return err
			}
			if len(args) == 1 && nearest > 0 {
				order := ims.NearestOSVersions(args[0], list, nearest)
				known := map[string]ims.OSVersion{}
				for _, v := range list {
					known[v.Key] = v
				}
				list = nil
				for _, key := range order {
					list = append(list, known[key])
				}
			} else if len(args) == 1 {
				var found []ims.OSVersion
				for _, v := range list {
					if strings.Contains(strings.ToLower(v.Platform+" "+v.Key), strings.ToLower(args[0])) {
						found = append(found, v)
					}
				}
				list = found
			}
			return printList(a, list, func(v ims.OSVersion) string { return v.Key }, []string{"OS VERSION", "PLATFORM", "TYPE", "BITS"},
				func(v ims.OSVersion) []string { return []string{v.Key, v.Platform, v.OSType, strconv.Itoa(v.Bits)} })
		})
	cmd.Flags().StringSliceVar(&tags, "for", nil, "only those for x86, arm, uefi, bms (repeatable)")
	cmd.Flags().IntVar(&nearest, "nearest", 0, "the N that are spelled most like TEXT")
	return cmd
}

func (a *app) imageVersionsCommand() *cobra.Command {
	return a.cloudCommand("versions [VERSION]", "List the versions of the service's API; needs no rights, so it also tells whether the service answers",
		`  imsprep image versions`, cobra.MaximumNArgs(1),
		func(ctx context.Context, client *ims.Client, args []string) error {
			var list []ims.APIVersion
			var err error
			if len(args) == 0 {
				list, err = client.Versions(ctx)
			} else {
				var one *ims.APIVersion
				if one, err = client.Version(ctx, args[0]); err == nil {
					list = []ims.APIVersion{*one}
				}
			}
			if err != nil {
				return err
			}
			return printList(a, list, func(v ims.APIVersion) string { return v.ID }, []string{"VERSION", "STATUS", "UPDATED"},
				func(v ims.APIVersion) []string { return []string{v.ID, v.Status, v.Updated} })
		})
}

func (a *app) imageSchemaCommand() *cobra.Command {
	cmd := a.cloudCommand("schema {image|images|member|members}", "Print the JSON schema of what the OpenStack calls answer",
		`  imsprep image schema image`, cobra.ExactArgs(1),
		func(ctx context.Context, client *ims.Client, args []string) error {
			schema, err := client.Schema(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printJSON(schema)
		})
	cmd.ValidArgs = []string{"image", "images", "member", "members"}
	return cmd
}
