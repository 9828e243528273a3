// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/convert"
)

// digestResult is the document of a digest.
type digestResult struct {
	Path        string         `json:"path"`
	VirtualSize int64          `json:"virtual_size"` // bytes
	DataBytes   int64          `json:"data_bytes"`   // bytes in blocks that aren't all zero
	Digest      convert.Digest `json:"content_digest"`
	SHA256      string         `json:"sha256,omitempty"`
}

func (a *app) digestCommand() *cobra.Command {
	var f sourceFlags
	var plain bool
	cmd := &cobra.Command{
		Use:     "digest SRC",
		GroupID: groupLocal,
		Short:   "Compute the digest of a disk's content, as uploads store it",
		Long: `Digest reads a disk once, in parallel, and prints the digest of its content. Two disks have the same
digest only if they have the same size and the same bytes; formats, holes and compression don't
matter. It is what upload and import show as content_digest and store with an object that stays.

With --sha256 the plain SHA-256 comes in a second line: what sha256sum prints of the disk's RAW
file. That one can only be computed front to back, and takes longer.`,
		Example: `  imsprep digest web-01.qcow2
  imsprep digest web-01.zvhd2 --original-size
  imsprep digest web-01.qcow2 --sha256 --json`,
		Args: a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			return a.runDigest(cmd.Context(), args[0], &f, plain)
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&plain, "sha256", false, "compute the plain SHA-256, too")
	return cmd
}

func (a *app) runDigest(ctx context.Context, src string, f *sourceFlags, plain bool) error {
	open, err := f.options()
	if err != nil {
		return err
	}
	disk, err := convert.Open(ctx, src, open)
	if err != nil {
		return err
	}
	defer disk.Close()
	a.warn(disk.Info().Warnings)
	sum := startSHA256(ctx, disk, plain)
	defer sum.stop()
	s := convert.NewScanner(disk, nil).WithDigest()
	done := a.localProgress(phaseScan, disk.Size())
	err = convert.Scan(ctx, s, convert.ScanOptions{Progress: done.add}, nil)
	done.close(err)
	if err != nil {
		return err
	}
	res := digestResult{Path: src, VirtualSize: disk.Size(), DataBytes: s.Stats().DataBytes}
	if res.Digest, err = s.Digest(ctx); err != nil {
		return err
	}
	if res.SHA256, err = sum.wait(); err != nil {
		return err
	}
	if err := disk.CheckUnchanged(); err != nil {
		return err
	}
	if a.flags.json {
		return a.printJSON(res)
	}
	if _, err = fmt.Fprintln(a.out, res.Digest); err == nil && plain {
		_, err = fmt.Fprintf(a.out, "sha256:%s\n", res.SHA256)
	}
	return err
}

// plainSum is a SHA-256 being computed beside other work; nil is none.
type plainSum struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	sum    string
	err    error
}

func startSHA256(ctx context.Context, disk image.Image, wanted bool) *plainSum {
	if !wanted {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &plainSum{cancel: cancel}
	p.wg.Go(func() {
		sum, err := convert.SHA256(ctx, disk, nil)
		p.sum, p.err = hex.EncodeToString(sum[:]), err
	})
	return p
}

func (p *plainSum) stop() {
	if p != nil {
		p.cancel()
		p.wg.Wait()
	}
}

func (p *plainSum) wait() (string, error) {
	if p == nil {
		return "", nil
	}
	p.wg.Wait()
	if p.err != nil {
		return "", p.err
	}
	return p.sum, nil
}
