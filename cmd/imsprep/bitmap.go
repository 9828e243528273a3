// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/convert"
)

func (a *app) bitmapCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "bitmap",
		GroupID: groupLocal,
		Short:   "Make, show and compare the bitmap of a RAW image",
		Long: `A quick import of a RAW object needs a bitmap beside it that tells which blocks hold data: the
same name with .mf. Its layout as the vendor's tool writes it is not public; a layout is therefore
named, and can be compared with a file of that tool.`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.bitmapCreateCommand(), a.bitmapShowCommand(), a.bitmapVerifyCommand(),
		a.bitmapInferCommand(), a.bitmapProbesCommand())
	return cmd
}

func (a *app) layoutFlag(cmd *cobra.Command, layout *string) {
	cmd.Flags().StringVar(layout, "layout", bitmap.DefaultLayout, "the file's layout")
	_ = cmd.RegisterFlagCompletionFunc("layout", cobra.FixedCompletions(layoutNames(), cobra.ShellCompDirectiveNoFileComp))
}

func (a *app) bitmapCreateCommand() *cobra.Command {
	var src sourceFlags
	var layout string
	var overwrite bool
	cmd := &cobra.Command{
		Use:     "create SRC FILE.mf",
		Short:   "Read a disk and write its bitmap",
		Example: `  imsprep bitmap create web-01.raw web-01.mf`,
		Args:    a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			l, err := a.sources().LookupLayout(layout)
			if err != nil {
				return err
			}
			disk, err := a.open(cmd.Context(), args[0], &src)
			if err != nil {
				return err
			}
			defer disk.Close()
			if err := a.checkTargets(disk, overwrite, args[1], ""); err != nil {
				return err
			}
			blocks, err := a.scan(cmd.Context(), disk, l.BlockSize)
			if err != nil {
				return err
			}
			if err := writeBitmap(cmd.Context(), disk, args[1], l, blocks, overwrite, false); err != nil {
				return err
			}
			return a.printBitmap(args[1], l, blocks)
		},
	}
	src.add(cmd)
	a.layoutFlag(cmd, &layout)
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "replace FILE.mf if it exists")
	return cmd
}

func (a *app) bitmapShowCommand() *cobra.Command {
	var layout string
	var diskSize byteSize
	cmd := &cobra.Command{
		Use:   "show FILE.mf --size SIZE",
		Short: "Show which blocks a bitmap says hold data",
		Example: `  imsprep bitmap show web-01.mf --size 40GiB
  imsprep bitmap show web-01.mf --size 42949672960 --json`,
		Args: a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			if diskSize <= 0 {
				return usagef("--size is needed: a bitmap doesn't tell its disk's virtual size")
			}
			l, err := a.sources().LookupLayout(layout)
			if err != nil {
				return err
			}
			data, err := readBitmap(args[0], l, int64(diskSize))
			if err != nil {
				return err
			}
			blocks, err := l.Decode(data, int64(diskSize))
			if err != nil {
				return err
			}
			return a.printBitmap(args[0], l, blocks)
		},
	}
	a.layoutFlag(cmd, &layout)
	cmd.Flags().Var(&diskSize, "size", "the disk's virtual size, such as 40GiB")
	return cmd
}

func (a *app) bitmapVerifyCommand() *cobra.Command {
	var src sourceFlags
	var layout string
	cmd := &cobra.Command{
		Use:   "verify SRC FILE.mf",
		Short: "Compare a bitmap with the one a disk should have, byte for byte",
		Long: `Verify reads the disk, computes its bitmap in the named layout and compares it with FILE.mf. Equal
files give exit code 0; otherwise the first difference is told, with exit code 1. With a file made by the
vendor's own tool this confirms, or refutes, a layout.`,
		Example: `  imsprep bitmap verify small.raw small.mf --layout zvhd2`,
		Args:    a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			l, err := a.sources().LookupLayout(layout)
			if err != nil {
				return err
			}
			return a.runBitmapVerify(cmd.Context(), args[0], args[1], &src, l)
		},
	}
	src.add(cmd)
	a.layoutFlag(cmd, &layout)
	return cmd
}

func (a *app) runBitmapVerify(ctx context.Context, source, file string, src *sourceFlags, l bitmap.Layout) error {
	disk, err := a.open(ctx, source, src)
	if err != nil {
		return err
	}
	defer disk.Close()
	blocks, err := a.scan(ctx, disk, l.BlockSize)
	if err != nil {
		return err
	}
	data, err := readBitmap(file, l, blocks.VirtualSize())
	if err != nil {
		return err
	}
	c, err := l.Compare(blocks, data)
	if err != nil {
		return err
	}
	if a.flags.json {
		if err := a.printJSON(struct {
			Layout string `json:"layout"`
			Equal  bool   `json:"equal"`
			Offset int64  `json:"offset"` // first byte that differs, -1 if none
			Region string `json:"region,omitempty"`
			Block  int64  `json:"block"` // block it stands for, -1 if none
			Want   int64  `json:"want_length"`
			Got    int64  `json:"got_length"`
		}{l.Name, c.Equal, c.Offset, string(c.Region), c.Block, c.Want, c.Got}); err != nil {
			return err
		}
	}
	switch {
	case c.Equal:
		a.say("equal: %d bytes, layout %s, %d of %d blocks hold data", c.Got, l.Name, blocks.Count(), blocks.Blocks())
		return nil
	case c.Block >= 0:
		return fmt.Errorf("%s differs from layout %q at byte %d, which stands for block %d (disk offset %d); lengths %d, expected %d",
			file, l.Name, c.Offset, c.Block, c.Block*l.BlockSize, c.Got, c.Want)
	default:
		return fmt.Errorf("%s differs from layout %q at byte %d (%s); lengths %d, expected %d", file, l.Name, c.Offset, c.Region, c.Got, c.Want)
	}
}

// readBitmap reads a bitmap file, but no more of it than could possibly be right and one byte.
func readBitmap(path string, l bitmap.Layout, virtualSize int64) ([]byte, error) {
	// Opening a pipe would wait for a writer.
	if fi, err := os.Stat(path); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, usagef("%q isn't a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, l.EncodedSize(virtualSize)+1))
}

// open opens the disk that a command names, and tells its warnings.
func (a *app) open(ctx context.Context, path string, src *sourceFlags) (*convert.Disk, error) {
	o, err := src.options()
	if err != nil {
		return nil, err
	}
	disk, err := convert.Open(ctx, path, o)
	if err == nil {
		a.warn(disk.Info().Warnings)
	}
	return disk, err
}

// scan reads a whole disk for its block map.
func (a *app) scan(ctx context.Context, disk *convert.Disk, blockSize int64) (*bitmap.Map, error) {
	blocks, err := bitmap.NewMap(disk.Size(), blockSize)
	if err != nil {
		return nil, err
	}
	done := a.localProgress(phaseScan, disk.Size())
	err = convert.Scan(ctx, convert.NewScanner(disk, blocks), convert.ScanOptions{Progress: done.add}, nil)
	done.close(err)
	if err != nil {
		return nil, err
	}
	return blocks, disk.CheckUnchanged()
}

// bitmapRun is a run of blocks in the document of a bitmap.
type bitmapRun struct {
	Block  int64 `json:"block"`
	Blocks int64 `json:"blocks"`
	Data   bool  `json:"data"`
}

func (a *app) printBitmap(path string, l bitmap.Layout, blocks *bitmap.Map) error {
	if a.flags.json {
		runs := []bitmapRun{}
		for r := range blocks.Runs() {
			runs = append(runs, bitmapRun{r.Start, r.Length, r.Data})
		}
		return a.printJSON(struct {
			Path        string      `json:"path"`
			Layout      string      `json:"layout"`
			VirtualSize int64       `json:"virtual_size"`
			BlockSize   int64       `json:"block_size"`
			Blocks      int64       `json:"blocks"`
			DataBlocks  int64       `json:"data_blocks"`
			Runs        []bitmapRun `json:"runs"`
		}{path, l.Name, blocks.VirtualSize(), l.BlockSize, blocks.Blocks(), blocks.Count(), runs})
	}
	return printFields(a.out, []field{
		{"path", path},
		{"layout", l.Name},
		{"virtual size", size(blocks.VirtualSize())},
		{"block size", size(l.BlockSize)},
		{"blocks", fmt.Sprintf("%d, of which %d hold data", blocks.Blocks(), blocks.Count())},
	})
}
