// SPDX-License-Identifier: Apache-2.0

//go:build unix

package convert_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imsprep/imsprep/convert"
)

// makePipe makes a named pipe, whose opening for reading would wait for a writer for ever.
func makePipe(t *testing.T, path string) {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestSpecialFiles refuses what is no file, at once.
func TestSpecialFiles(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe.raw")
	makePipe(t, pipe)
	for path, want := range map[string]string{pipe: "pipe", dir: "folder", "/dev/zero": "character device", os.DevNull: "character device"} {
		for _, format := range append(convert.FormatNames(), "") {
			_, err := convert.Open(context.Background(), path, convert.OpenOptions{Format: format})
			var refused *convert.RefusedError
			if !errors.As(err, &refused) || !strings.Contains(refused.Reason, want) {
				t.Errorf("%s as %q: %v, want it refused as a %s", path, format, err, want)
			}
		}
	}
}

// TestOpeningDoesNotWait opens a pipe that took the place of a file after the first look at it.
func TestOpeningDoesNotWait(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	makePipe(t, pipe)
	f, err := convert.OpenNonblock(pipe)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestRAWKeepsHolesAndMode looks at what WriteRAW left on the disk.
func TestRAWKeepsHolesAndMode(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src.raw")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	const size = 256 << 20
	for _, off := range []int64{0, 100 << 20, size - 512} {
		if _, err := f.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	if allocated(t, src) > 1<<20 {
		skip(t, "the temporary folder's file system does not keep holes")
	}
	d, err := convert.Open(context.Background(), src, convert.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	old := syscall.Umask(0o027)
	defer syscall.Umask(old)
	dst := filepath.Join(dir, "dst.raw")
	stats, err := convert.WriteRAW(context.Background(), d, dst, convert.RAWOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := allocated(t, dst); n > 4*64<<10 {
		t.Errorf("the copy takes %d bytes on the disk", n)
	}
	if stats.BytesRead > 1<<20 {
		t.Errorf("%d bytes were read; holes must not be", stats.BytesRead)
	}
	if stats.DataBytes != 3*convert.DefaultBlock || stats.DataBytes+stats.ZeroBytes != size {
		t.Errorf("stats %+v", stats)
	}
	fi, err := os.Stat(dst)
	if err != nil || fi.Mode() != 0o640 || fi.Size() != size {
		t.Errorf("mode %v, size %d, %v, want 0640 and %d", fi.Mode(), fi.Size(), err, size)
	}
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Blocks * 512
}
