// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/bitmap"
)

func (a *app) bitmapProbesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "probes DIR",
		Short: "Write small disks whose bitmaps tell a tool's layout",
		Long: `Probes writes sparse RAW files. Make a bitmap of each with the vendor's CreateMF.jar and give the
pairs to bitmap infer. They claim up to 64 GiB each but take some 13 MiB altogether, on a file system
that keeps holes. Files that exist are never replaced.`,
		Example: `  imsprep bitmap probes probes`,
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			return a.runBitmapProbes(cmd.Context(), args[0])
		},
	}
}

// probeResult is a probe in the document of `bitmap probes`.
type probeResult struct {
	Path        string `json:"path"`
	VirtualSize int64  `json:"virtual_size"`
	Purpose     string `json:"purpose"`
}

func (a *app) runBitmapProbes(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	probes := bitmap.Probes()
	for _, p := range probes { // all of them before the first is written
		if _, err := os.Lstat(probePath(dir, p)); err == nil {
			return usagef("%s exists: probes never replace a file", probePath(dir, p))
		}
	}
	var written []probeResult
	for _, p := range probes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := writeProbe(probePath(dir, p), p); err != nil {
			return err
		}
		written = append(written, probeResult{probePath(dir, p), p.VirtualSize, p.Purpose})
	}
	if a.flags.json {
		return a.printJSON(struct {
			Probes []probeResult `json:"probes"`
		}{written})
	}
	var fields []field
	for _, w := range written {
		fields = append(fields, field{w.Path, w.Purpose})
	}
	if err := printFields(a.out, fields); err != nil {
		return err
	}
	a.say(`
Make the bitmap of each with the vendor's tool:
  for f in %[1]s/*.raw; do java -jar CreateMF.jar "$f" "${f%%.raw}.mf"; done
and find the layout:
  imsprep bitmap infer $(for f in %[1]s/*.mf; do echo "${f%%.mf}.raw" "$f"; done)
The bitmaps of same-1 and same-2 must be equal, and so must those of hole and written-zeros.`, dir)
	return nil
}

func probePath(dir string, p bitmap.Probe) string { return filepath.Join(dir, p.Name+".raw") }

// writeProbe makes a probe's file; on an error none is left.
func writeProbe(path string, p bitmap.Probe) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			_ = os.Remove(path)
			err = fmt.Errorf("writing a probe: %w", err)
		}
	}()
	if err := f.Truncate(p.VirtualSize); err != nil {
		return err
	}
	for _, e := range p.Zeros {
		if _, err := f.WriteAt(make([]byte, e.Length), e.Start); err != nil {
			return err
		}
	}
	for _, e := range p.Extents() {
		if _, err := f.WriteAt(bytes.Repeat([]byte{0xFF}, int(e.Length)), e.Start); err != nil {
			return err
		}
	}
	return nil
}
