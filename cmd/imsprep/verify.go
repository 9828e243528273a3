// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

type verifyFlags struct {
	sourceFlags
	layout   string
	dataOnly bool
	line     lineFlags
}

func (a *app) verifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:     "verify SRC obs://BUCKET/KEY",
		GroupID: groupCloud,
		Short:   "Read an object back and compare it with a disk, byte by byte",
		Long: `Verify downloads an object and compares the disk in it with SRC: a .raw object byte by byte, also where
the disk has zeros; a .zvhd2 object by decoding it; any other object with SRC's own bytes, as the
file that it is. The bitmap beside a .raw object, if there is one, must mark every block that
holds data. Nothing is written, here or there.

Exit code 0 is that all is equal; 1 that something differs, and the message says where first.
Without SRC at hand, compare content_digest of --json with the result of the upload.`,
		Example: `  imsprep verify web-01.qcow2 obs://images/web-01.raw
  imsprep verify web-01.qcow2 obs://images/web-01.zvhd2 --json
  imsprep verify big.qcow2 obs://images/big.raw --data-only`,
		Args: a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			return a.runVerify(cmd.Context(), args[0], args[1], &f)
		},
	}
	a.cloudFlags(cmd)
	f.sourceFlags.add(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.layout, "bitmap-layout", bitmap.DefaultLayout, "layout of the bitmap beside the object: "+strings.Join(layoutNames(), ", "))
	fl.BoolVar(&f.dataOnly, "data-only", false, "don't download what SRC knows to be zeros; whether the object has zeros there stays unknown")
	f.line.add(cmd, "ranges of 4 MiB that are read")
	return cmd
}

func (a *app) runVerify(ctx context.Context, src, target string, f *verifyFlags) error {
	r := pipeline.VerifyRequest{Source: src, DataOnly: f.dataOnly}
	l, err := a.line(&f.line)
	if err != nil {
		return err
	}
	r.MinWorkers, r.Workers = l.low, l.high
	if r.Bucket, r.Key, err = parseObject(target); err != nil {
		return err
	}
	if r.Layout, err = a.sources().LookupLayout(f.layout); err != nil {
		return err
	}
	if r.Open, err = f.options(); err != nil {
		return err
	}
	s, err := a.settings()
	if err != nil {
		return err
	}
	importer, err := a.importer(s, false)
	if err != nil {
		return err
	}
	view := a.newProgress()
	importer.Events = view.event
	res, err := importer.Verify(ctx, r)
	view.close()
	if err != nil {
		return err
	}
	if res.LeftOut > 0 {
		a.warn([]string{fmt.Sprintf("%s of the object were not looked at: %s knows zeros there, what the object has is unknown (--data-only)",
			size(res.LeftOut), src)})
	}
	if a.flags.json {
		if err := a.printJSON(res); err != nil {
			return err
		}
	}
	if problem := res.Problem(); problem != "" {
		return &pipeline.MismatchError{What: problem, Remedy: "Don't import it: upload the disk again."}
	}
	if a.flags.json {
		return nil
	}
	if res.Bitmap != nil && res.Bitmap.Unneeded > 0 {
		a.warn([]string{fmt.Sprintf("the bitmap marks %d blocks that hold nothing but zeros, which does no harm", res.Bitmap.Unneeded)})
	}
	what := "equal"
	if res.LeftOut > 0 {
		what = "equal in what was compared"
	}
	bitmapToo := ""
	if res.Bitmap != nil {
		bitmapToo = ", and its bitmap fits"
	}
	a.say("%s compared, %s downloaded%s%s", size(res.Compared), size(res.Downloaded), bitmapToo, usage(&res.Concurrency))
	_, err = fmt.Fprintln(a.out, what)
	return err
}
