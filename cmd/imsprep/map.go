// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/convert"
)

// mapExtent has the keys of `qemu-img map --output=json`.
type mapExtent struct {
	Start      int64 `json:"start"`
	Length     int64 `json:"length"`
	Depth      int   `json:"depth"`   // which file of the chain says what is here, 0 = the disk's own
	Present    bool  `json:"present"` // that file has an entry for it
	Zero       bool  `json:"zero"`    // known to read as zeros
	Data       bool  `json:"data"`    // bytes are stored for it
	Compressed bool  `json:"compressed"`
}

func (a *app) mapCommand() *cobra.Command {
	var f sourceFlags
	cmd := &cobra.Command{
		Use:     "map SRC",
		GroupID: groupLocal,
		Short:   "List a disk's extents: what is stored, what reads as zeros",
		Long: `Map lists the extents of a disk from its tables, without reading its data. The JSON form has the
keys of qemu-img map; depth tells which file of a chain decides, 0 for the disk's own. In the table
it has a column where there is a chain.`,
		Example: `  imsprep map web-01.qcow2
  imsprep map web-01.qcow2 --json`,
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
			a.warn(disk.Info().Warnings)
			show, finish := a.mapTable(len(disk.Info().Backing) > 0)
			if a.flags.json {
				show, finish = a.mapJSON()
			}
			for e, err := range disk.Map(cmd.Context()) {
				if err != nil {
					return err
				}
				if err := show(mapExtent{
					Start: e.Start, Length: e.Length, Depth: e.Depth, Present: e.Present,
					Zero: e.Zero, Data: e.Allocated && !e.Zero, Compressed: e.Compressed,
				}); err != nil {
					return err
				}
			}
			return finish()
		},
	}
	f.add(cmd)
	return cmd
}

// mapJSON writes one array, an extent a line, without holding it in memory.
func (a *app) mapJSON() (show func(mapExtent) error, finish func() error) {
	sep := "["
	return func(e mapExtent) error {
			out, err := json.Marshal(e)
			if err != nil {
				return err
			}
			a.printed = true
			_, err = fmt.Fprintf(a.out, "%s%s", sep, out)
			sep = ",\n"
			return err
		}, func() error {
			if sep == "[" {
				fmt.Fprint(a.out, sep)
			}
			_, err := fmt.Fprintln(a.out, "]")
			return err
		}
}

func (a *app) mapTable(chain bool) (show func(mapExtent) error, finish func() error) {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	if chain {
		fmt.Fprint(w, "depth\t")
	}
	fmt.Fprintln(w, "start\tlength\tkind\t")
	return func(e mapExtent) error {
		kind := "zero"
		switch {
		case e.Compressed:
			kind = "compressed"
		case e.Data:
			kind = "data"
		}
		if chain {
			fmt.Fprintf(w, "%d\t", e.Depth)
		}
		_, err := fmt.Fprintf(w, "%d\t%d\t%s\t\n", e.Start, e.Length, kind)
		return err
	}, w.Flush
}
