// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// infoDocument is what info prints.
type infoDocument struct {
	convert.Info
	ImportRefusals []string `json:"import_refusals,omitempty"` // why an import would refuse it nevertheless
}

// importRefusals are the rules of the service that a disk breaks whatever it is imported as.
func importRefusals(i convert.Info) []string {
	if i.VirtualSize > pipeline.MaxImageSize {
		return []string{fmt.Sprintf("its virtual size is above %s, the most that the service takes", size(pipeline.MaxImageSize))}
	}
	return nil
}

func (a *app) infoCommand() *cobra.Command {
	var f sourceFlags
	cmd := &cobra.Command{
		Use:     "info SRC",
		GroupID: groupLocal,
		Short:   "Tell what a disk is, and what would refuse it",
		Long: `Info opens a disk the way an import would: what is damaged, hostile, unsupported, or needs a file
that isn't allowed is refused with exit code 3 and the reason. A disk that can be read but not
imported, for it is too large, is told of. No file is opened but the one named
and those beside it that hold the disk's own data (the extents of a VMDK, the disk of an OVF).`,
		Example: `  imsprep info web-01.qcow2
  imsprep info appliance.ova
  imsprep info web-01.vhdx.gz
  imsprep info overlay.qcow2 --allow-backing --json`,
		Args: a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			open, err := f.options()
			if err != nil {
				return err
			}
			disk, err := convert.Open(cmd.Context(), args[0], open)
			if err != nil {
				return err
			}
			defer disk.Close()
			info := infoDocument{disk.Info(), importRefusals(disk.Info())}
			if a.flags.json {
				return a.printJSON(info)
			}
			return printFields(a.out, infoFields(info))
		},
	}
	f.add(cmd)
	return cmd
}

func infoFields(i infoDocument) []field {
	wrapped := strings.Join(i.Wrapped, ", ")
	if i.Streamed {
		wrapped += ", unpacked as it is read"
	}
	fields := []field{
		{"path", i.Path},
		{"wrapped in", wrapped},
		{"member", i.Member},
		{"format", i.Format},
		{"variant", i.Variant},
		{"creator", i.Creator},
	}
	sized := func(name string, n int64) {
		if n > 0 {
			fields = append(fields, field{name, size(n)})
		}
	}
	sized("virtual size", i.VirtualSize)
	if i.OriginalSize != i.VirtualSize {
		sized("original size", i.OriginalSize)
	}
	sized("file size", i.FileSize)
	sized("on disk", i.DiskSize)
	sized("mapped data", i.MappedSize)
	sized("cluster size", i.ClusterSize)
	sized("sector size", int64(i.SectorSize))
	fields = append(fields,
		field{"compression", i.Compression},
		field{"features", strings.Join(i.Features, ", ")},
	)
	if i.Snapshots > 0 {
		fields = append(fields, field{"snapshots", fmt.Sprintf("%d, not imported", i.Snapshots)})
	}
	for _, e := range i.Extents {
		fields = append(fields, field{"extent", e})
	}
	for _, b := range i.Backing {
		fields = append(fields, field{"backed by", b})
	}
	for _, w := range i.Warnings {
		fields = append(fields, field{"warning", w})
	}
	for _, r := range i.ImportRefusals {
		fields = append(fields, field{"can't be imported", r})
	}
	return fields
}
