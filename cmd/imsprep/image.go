// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/ims"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "image",
		GroupID: groupCloud,
		Short:   "List, change, copy, share and make images",
		Args:    a.args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var native bool
	show := &cobra.Command{
		Use:     "show ID",
		Short:   "Show an image with all its attributes",
		Example: `  imsprep image show 498cc67e-7795-482c-8c47-32bcece2d7ec --json`,
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			client, err := a.imsClient()
			if err != nil {
				return err
			}
			read := client.Image
			if native {
				read = client.NativeImage
			}
			image, err := read(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.flags.json {
				return a.printJSON(image)
			}
			if a.flags.quiet {
				_, err = fmt.Fprintln(a.out, image.ID)
				return err
			}
			return printFields(a.out, imageFields(image))
		},
	}
	a.cloudFlags(show)
	show.Flags().BoolVar(&native, "native", false, "by OpenStack's call")
	cmd.AddCommand(show)
	cmd.AddCommand(a.imageCommands()...)
	return cmd
}

func imageFields(image *ims.Image) []field {
	fields := []field{
		{"id", image.ID}, {"name", image.Name}, {"status", image.Status},
		{"os version", image.OSVersion}, {"firmware", image.FirmwareType},
		{"min disk", fmt.Sprintf("%d GB", image.MinDisk)}, {"created", image.CreatedAt},
		{"description", image.Description},
	}
	for _, t := range image.Tags {
		fields = append(fields, field{"tag", t})
	}
	for _, name := range slices.Sorted(maps.Keys(image.Attributes)) {
		if v := image.Attributes[name]; v != nil {
			fields = append(fields, field{name, fmt.Sprint(v)})
		}
	}
	return fields
}
