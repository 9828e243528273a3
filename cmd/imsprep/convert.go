// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/convert/zvhd2"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// maxParallel bounds the chunks in flight, and so the memory: 2 MiB each.
const maxParallel = 64

// Formats that disks are written in.
const (
	formatRAW   = "raw"
	formatZVHD2 = "zvhd2"
)

type convertFlags struct {
	sourceFlags
	output    string
	bitmap    string
	layout    string
	overwrite bool
	workers   int
	level     int
	sha256    bool
	noSync    bool
}

func (a *app) convertCommand() *cobra.Command {
	var f convertFlags
	cmd := &cobra.Command{
		Use:     "convert SRC DST",
		GroupID: groupLocal,
		Short:   "Write a disk as a sparse RAW file with its bitmap, or as ZVHD2",
		Long: `Convert writes the disk's content to another file, which gets its name when it is complete and on
the disk; an interrupted conversion leaves nothing behind. With --no-sync it doesn't wait for the
disk, as cp and qemu-img don't: what had its name before the machine crashed may then be incomplete.

A RAW file is sparse: holes stay holes, and what is all zero takes no room. The bitmap that a quick
import needs is written beside it, as DST's base name with .mf. A ZVHD2 file is compressed and
carries its bitmap itself.`,
		Example: `  imsprep convert web-01.qcow2 web-01.raw
  imsprep convert web-01.qcow2 web-01.raw --bitmap none
  imsprep convert overlay.qcow2 full.raw --allow-backing
  imsprep convert web-01.qcow2 web-01.zvhd2 -O zvhd2 --compression-level 9`,
		Args: a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			return a.runConvert(cmd.Context(), args[0], args[1], &f)
		},
	}
	f.sourceFlags.add(cmd)
	fl := cmd.Flags()
	fl.StringVarP(&f.output, "output-format", "O", formatRAW, "the format to write: raw, zvhd2")
	fl.IntVar(&f.level, "compression-level", 0, "of ZVHD2: 1 (fast) to 22 (small) (default: 3)")
	fl.StringVar(&f.bitmap, "bitmap", "", "file for the bitmap, or none (default: DST's base name with .mf)")
	fl.StringVar(&f.layout, "bitmap-layout", bitmap.DefaultLayout, "layout of the bitmap file: "+strings.Join(layoutNames(), ", "))
	fl.BoolVar(&f.sha256, "sha256", false, "compute the plain SHA-256 of the disk, too: reads it a second time, front to back, beside the conversion")
	fl.BoolVar(&f.overwrite, "overwrite", false, "replace DST and its bitmap if they exist")
	fl.BoolVar(&f.noSync, "no-sync", false, "don't wait until the file is on the disk; the system writes it in its own time")
	fl.IntVar(&f.workers, "concurrency", 0, "chunks in flight (default: one a processor)")
	return cmd
}

// convertResult is the document of a conversion.
type convertResult struct {
	Source      string               `json:"source"`
	Path        string               `json:"path"`
	Format      string               `json:"format"`
	VirtualSize int64                `json:"virtual_size"` // bytes
	DataBytes   int64                `json:"data_bytes"`   // bytes in blocks that aren't all zero
	Digest      convert.Digest       `json:"content_digest"`
	SHA256      string               `json:"sha256,omitempty"`
	Bitmap      *convertBitmapResult `json:"bitmap,omitempty"`
}

type convertBitmapResult struct {
	Path       string `json:"path"`
	Layout     string `json:"layout"`
	Blocks     int64  `json:"blocks"`
	DataBlocks int64  `json:"data_blocks"`
}

func (a *app) runConvert(ctx context.Context, src, dst string, f *convertFlags) error {
	switch {
	case f.output != formatRAW && f.output != formatZVHD2:
		return usagef("--output-format %q: it is raw or zvhd2", f.output)
	case f.output == formatZVHD2 && f.bitmap != "" && f.bitmap != "none":
		return usagef("--bitmap is for RAW: a ZVHD2 file carries its bitmap itself")
	case f.level != 0 && f.output != formatZVHD2:
		return usagef("--compression-level is for ZVHD2")
	case f.level < 0 || f.level > 22:
		return usagef("--compression-level %d: it is 1 to 22", f.level)
	case f.workers < 0 || f.workers > maxParallel:
		return usagef("--concurrency %d: it is 1 to %d, or 0 for one a processor", f.workers, maxParallel)
	}
	layout, err := a.sources().LookupLayout(f.layout)
	if err != nil {
		return err
	}
	mf := f.bitmap
	switch {
	case mf == "none" || f.output == formatZVHD2:
		mf = ""
	case mf == "":
		mf = bitmapBeside(dst)
	}
	open, err := f.options()
	if err != nil {
		return err
	}
	disk, err := convert.Open(ctx, src, open)
	if err != nil {
		return err
	}
	defer disk.Close()
	// What stands in the way is told before the work, not after it.
	if err := a.checkTargets(disk, f.overwrite, dst, mf); err != nil {
		return err
	}
	a.warn(disk.Info().Warnings)
	blocks, err := bitmap.NewMap(disk.Size(), layout.BlockSize)
	if err != nil {
		return err
	}
	if f.overwrite && f.output == formatRAW {
		// A bitmap never stands beside a disk that it doesn't fit.
		if err := removeBitmap(disk, bitmapBeside(dst)); err != nil {
			return err
		}
	}
	done := a.localProgress(phaseConvert, disk.Size())
	plain := startSHA256(ctx, disk, f.sha256)
	defer plain.stop()
	var stats convert.ScanStats
	var digest convert.Digest
	var wanted *convert.Digest
	if a.flags.json {
		wanted = &digest // which costs as much as all the rest where nothing is unpacked, and is shown there only
	}
	if f.output == formatZVHD2 {
		stats, err = convert.WriteZVHD2(ctx, disk, dst, convert.ZVHD2Options{
			Writer:    zvhd2.WriterOptions{Level: f.level, Workers: f.workers},
			Overwrite: f.overwrite,
			NoSync:    f.noSync,
			Progress:  done.add,
			Digest:    wanted,
		})
	} else {
		stats, err = convert.WriteRAW(ctx, disk, dst, convert.RAWOptions{
			Workers:   f.workers,
			Overwrite: f.overwrite,
			NoSync:    f.noSync,
			Marker:    blocks,
			Progress:  done.add,
			Digest:    wanted,
		})
	}
	done.close(err)
	if err != nil {
		return err
	}
	res := convertResult{Source: src, Path: dst, Format: f.output, VirtualSize: disk.Size(), DataBytes: stats.DataBytes, Digest: digest}
	if res.SHA256, err = plain.wait(); err != nil {
		return fmt.Errorf("%s is complete, but the SHA-256 of the source could not be computed: %w", dst, err)
	}
	if mf != "" {
		if err := writeBitmap(ctx, disk, mf, layout, blocks, f.overwrite, f.noSync); err != nil {
			return fmt.Errorf("%s is complete, but its bitmap could not be written: %w", dst, err)
		}
		res.Bitmap = &convertBitmapResult{Path: mf, Layout: layout.Name, Blocks: blocks.Blocks(), DataBlocks: blocks.Count()}
	}
	if a.flags.json {
		return a.printJSON(res)
	}
	a.say("%s: %s, of which %s hold data", dst, size(res.VirtualSize), size(res.DataBytes))
	return nil
}

// bitmapBeside is where the bitmap of a RAW file goes.
func bitmapBeside(raw string) string { return strings.TrimSuffix(raw, filepath.Ext(raw)) + ".mf" }

// checkTargets says what keeps a disk and its bitmap, "" for none, from being written.
func (a *app) checkTargets(disk *convert.Disk, overwrite bool, dst, mf string) error {
	if mf != "" && sameFile(dst, mf) {
		return usagef("the disk and its bitmap can't both be %q: give --bitmap another name", dst)
	}
	for _, path := range []string{dst, mf} {
		if path == "" {
			continue
		}
		if err := convert.CheckTarget(disk, path, overwrite); err != nil {
			if errors.Is(err, fs.ErrExist) && !overwrite {
				err = fmt.Errorf("%w; give --overwrite to replace it", err)
			}
			return &usageError{Err: err}
		}
	}
	return nil
}

// sameFile tells whether two paths are one file, or would be if they were made.
func sameFile(a, b string) bool {
	x, xerr := os.Stat(a)
	y, yerr := os.Stat(b)
	if xerr == nil && yerr == nil {
		return os.SameFile(x, y)
	}
	x, xerr = os.Stat(filepath.Dir(a))
	y, yerr = os.Stat(filepath.Dir(b))
	return xerr == nil && yerr == nil && os.SameFile(x, y) && filepath.Base(a) == filepath.Base(b)
}

// removeBitmap removes a bitmap whose RAW file is about to be replaced.
func removeBitmap(disk *convert.Disk, mf string) error {
	if fi, err := os.Lstat(mf); err != nil || !fi.Mode().IsRegular() || convert.CheckTarget(disk, mf, true) != nil {
		return nil // there is none, or it is something else: then it isn't ours to touch
	}
	return os.Remove(mf)
}

// writeBitmap writes a disk's bitmap file, whole or not at all.
func writeBitmap(ctx context.Context, disk *convert.Disk, path string, layout bitmap.Layout, blocks *bitmap.Map, overwrite, noSync bool) error {
	data, err := layout.Encode(blocks)
	if err != nil {
		return err
	}
	write := convert.WriteFile
	if noSync {
		write = convert.WriteFileUnsynced
	}
	return write(ctx, disk, path, overwrite, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// counter turns increments from several goroutines into events of one phase.
type counter struct {
	add   func(n int64)
	close func(err error)
}

// localProgress shows a phase that is counted in bytes of the disk.
func (a *app) localProgress(phase pipeline.Phase, total int64) counter {
	view := a.newProgress()
	event := pipeline.Event{Phase: phase, State: pipeline.StateStart, Unit: pipeline.UnitBytes, Total: total}
	view.event(event)
	steps := make(chan int64)
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		event.State = pipeline.StateProgress
		for n := range steps {
			event.Done += n
			view.event(event)
		}
	}()
	return counter{
		add: func(n int64) { steps <- n },
		close: func(err error) {
			close(steps)
			<-shown
			if err == nil {
				event.State, event.Done = pipeline.StateDone, total
				view.event(event)
			}
			view.close()
		},
	}
}
