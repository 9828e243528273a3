// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/imsprep/imsprep/convert"
)

// maxBitmapFile bounds what a bitmap command may write: a bit a sector of 1 TiB, and a header.
const maxBitmapFile = 256<<20 + 1<<20

// bitmapCommand is a command line of the user's own that makes a bitmap: words, of which {raw} and
// {mf} stand for the two files. No shell is involved.
type bitmapCommand []string

func parseBitmapCommand(s string) (bitmapCommand, error) {
	if !strings.Contains(s, "{raw}") || !strings.Contains(s, "{mf}") {
		return nil, usagef("--bitmap-command %q: it must name {raw} and {mf}", s)
	}
	return strings.Fields(s), nil
}

// in makes bitmaps with the command, by way of a sparse RAW file in a folder below dir.
func (c bitmapCommand) in(dir string) func(context.Context, *convert.Disk) ([]byte, error) {
	return func(ctx context.Context, disk *convert.Disk) (mf []byte, err error) {
		tmp, err := os.MkdirTemp(dir, "imsprep-bitmap-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(tmp)
		raw, out := filepath.Join(tmp, "disk.raw"), filepath.Join(tmp, "disk.mf")
		if _, err := convert.WriteRAW(ctx, disk, raw, convert.RAWOptions{}); err != nil {
			return nil, err
		}
		words := make([]string, len(c))
		for i, w := range c {
			words[i] = strings.NewReplacer("{raw}", raw, "{mf}", out).Replace(w)
		}
		cmd := exec.CommandContext(ctx, words[0], words[1:]...)
		cmd.WaitDelay = time.Second
		if said, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("the bitmap command %s: %w: %s", words[0], err, strings.TrimSpace(string(said[max(0, len(said)-500):])))
		}
		switch fi, err := os.Stat(out); {
		case err != nil:
			// Not wrapped: no file that the command line names is missing, which would be exit code 2.
			return nil, fmt.Errorf("the bitmap command %s wrote no {mf}: %v", words[0], err)
		case fi.Size() == 0 || fi.Size() > maxBitmapFile:
			return nil, fmt.Errorf("the bitmap command %s wrote a bitmap of %d bytes", words[0], fi.Size())
		}
		return os.ReadFile(out)
	}
}
