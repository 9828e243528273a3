// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lima-vm/go-qcow2reader/image"
)

// WriteFile has a file at path written by write, whole or not at all. The file gets its name when it is
// complete and on the disk; until then it has a temporary name in the same folder, and it is removed
// after an error or when ctx ends. The source img and, unless overwrite is set, an existing file are
// never replaced; that gives an error for which errors.Is(err, fs.ErrExist).
//
// [WriteFileUnsynced] doesn't wait until the file is on the disk.
func WriteFile(ctx context.Context, img image.Image, path string, overwrite bool, write func(f *os.File) error) error {
	return writeFile(ctx, img, path, overwrite, true, write)
}

// WriteFileUnsynced is [WriteFile] but that it leaves it to the system when the file goes to the disk, as cp
// does: after a crash of the machine, a file that has its name need not be complete.
func WriteFileUnsynced(ctx context.Context, img image.Image, path string, overwrite bool, write func(f *os.File) error) error {
	return writeFile(ctx, img, path, overwrite, false, write)
}

func writeFile(ctx context.Context, img image.Image, path string, overwrite, sync bool, write func(f *os.File) error) (err error) {
	if err := CheckTarget(img, path, overwrite); err != nil {
		return err
	}
	f, err := createTemp(path)
	if err != nil {
		return err
	}
	temp := f.Name()
	defer func() {
		if err != nil {
			_ = f.Close() // a second close of a closed file only fails
			_ = os.Remove(temp)
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if sync {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	if d, ok := img.(interface{ CheckUnchanged() error }); ok {
		if err := d.CheckUnchanged(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return rename(img, temp, path, overwrite, sync)
}

// CheckTarget returns an error if [WriteFile] would not write path: to know it before the work.
func CheckTarget(img image.Image, path string, overwrite bool) error {
	if dir, err := os.Stat(filepath.Dir(path)); err != nil {
		return err
	} else if !dir.IsDir() {
		return &os.PathError{Op: "create", Path: path, Err: errors.New("what should be its folder is none")}
	}
	fi, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		// A dangling link is an existing name too.
		if fi, err = os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	if err != nil {
		return err
	}
	if d, ok := img.(interface{ isSource(os.FileInfo) bool }); ok && d.isSource(fi) {
		return fmt.Errorf("write %q: it is the source: %w", path, os.ErrExist)
	}
	if !overwrite {
		return &os.PathError{Op: "create", Path: path, Err: os.ErrExist}
	}
	if !fi.Mode().IsRegular() && fi.Mode()&os.ModeSymlink == 0 {
		return fmt.Errorf("write %q: only a regular file is replaced", path)
	}
	return nil
}

// createTemp creates a file beside path that did not exist, with the permissions that the umask
// leaves.
func createTemp(path string) (*os.File, error) {
	for range 100 {
		var suffix [8]byte
		if _, err := rand.Read(suffix[:]); err != nil {
			return nil, err
		}
		name := ".imsprep-" + hex.EncodeToString(suffix[:]) + ".tmp"
		f, err := os.OpenFile(filepath.Join(filepath.Dir(path), name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if !errors.Is(err, os.ErrExist) {
			return f, err
		}
	}
	return nil, fmt.Errorf("create a temporary file for %q: %w", path, os.ErrExist)
}

// rename gives the finished file its name.
func rename(img image.Image, temp, path string, overwrite, sync bool) error {
	if sync {
		defer syncFolder(filepath.Dir(path))
	}
	if !overwrite {
		// Linking fails if the name exists, in one step; renaming would replace what another process
		// created in the meantime.
		err := os.Link(temp, path)
		if err == nil {
			return os.Remove(temp)
		}
		if errors.Is(err, os.ErrExist) {
			return &os.PathError{Op: "create", Path: path, Err: os.ErrExist}
		}
		// Not every file system has links.
	}
	if err := CheckTarget(img, path, overwrite); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// syncFolder makes the new name durable where the system can; the content is on the disk already.
func syncFolder(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
}
