// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/pipeline"
)

func (a *app) uploadCommand() *cobra.Command {
	var src sourceFlags
	var up uploadFlags
	cmd := &cobra.Command{
		Use:     "upload SRC obs://BUCKET/KEY",
		GroupID: groupCloud,
		Short:   "Send a disk to a bucket, and stop there",
		Long: `Upload does the first half of an import: it streams the disk to an object of a bucket, as RAW, with
zero parts copied on the server and the bitmap beside it under the same base name, or as ZVHD2.
KEY ends in .raw or .zvhd2, and so says which. An upload that was interrupted, killed, or ended by
trouble that passes goes on where it was when the same command is given again; --restart begins
anew.

Any store that speaks S3 will do: give its --obs-endpoint and --region. s3://BUCKET/KEY means the
same as obs://BUCKET/KEY. The image service isn't asked for anything.`,
		Example: `  imsprep upload web-01.qcow2 obs://images/web-01.raw
  imsprep upload web-01.qcow2 obs://images/web-01.zvhd2 --dry-run

  # what has changed since yesterday; the rest is copied on the server
  imsprep upload web-01.qcow2 obs://images/tuesday.raw --reuse obs://images/monday.raw

  # a MinIO or another S3 store; HW_ACCESS_KEY and HW_SECRET_KEY are its keys
  imsprep upload web-01.qcow2 s3://images/web-01.zvhd2 --obs-endpoint http://10.0.0.7:9000 --region us-east-1`,
		Args: a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			return a.runUpload(cmd.Context(), args[0], args[1], &src, &up)
		},
	}
	a.cloudFlags(cmd)
	src.add(cmd)
	up.add(cmd)
	return cmd
}

// parseObject takes obs://BUCKET/KEY apart; s3:// is the same.
func parseObject(s string) (bucket, key string, err error) {
	rest, ok := strings.CutPrefix(s, "obs://")
	if !ok {
		rest, ok = strings.CutPrefix(s, "s3://")
	}
	bucket, key, slash := strings.Cut(rest, "/")
	if !ok || !slash || bucket == "" || key == "" {
		return "", "", usagef("%q isn't an object: it is written obs://BUCKET/KEY", s)
	}
	return bucket, key, nil
}

func (a *app) runUpload(ctx context.Context, src, target string, sf *sourceFlags, uf *uploadFlags) error {
	s, err := a.settings()
	if err != nil {
		return err
	}
	r := pipeline.Request{Source: src, ConfirmedLayouts: s.Confirmed}
	if r.Bucket, r.Key, err = parseObject(target); err != nil {
		return err
	}
	if err := uf.apply(a, &r); err != nil {
		return err
	}
	if r.Open, err = sf.options(); err != nil {
		return err
	}
	importer, err := a.importer(s, uf.dryRun)
	if err != nil {
		return err
	}
	r.Offline = importer.OBS == nil
	plan, err := importer.PlanUpload(ctx, r)
	if err != nil {
		return err
	}
	defer plan.Close()
	if uf.dryRun {
		return a.printPlan(plan)
	}
	a.warn(plan.Warnings)
	view := a.newProgress()
	importer.Events = view.event
	res, err := importer.Upload(ctx, plan)
	view.close()
	if err != nil {
		return err
	}
	a.metrics.uploaded(res)
	if a.flags.json {
		return a.printJSON(res)
	}
	a.say("sent %s for %s of data in a disk of %s%s", size(res.BytesSent), size(res.DataBytes), size(res.VirtualSize), usage(res.Concurrency))
	_, err = fmt.Fprintf(a.out, "obs://%s/%s\n", res.Bucket, res.Key)
	return err
}
