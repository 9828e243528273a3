// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/imsprep/imsprep/convert/raw"
)

// sourceFile is an opened file of a disk. Everything is read through this one handle: the file that
// was checked is the file that is read, whatever its name points to later.
type sourceFile struct {
	path      string
	file      *os.File
	info      os.FileInfo // at opening
	size      int64       // bytes; of a block device its capacity
	allocated int64       // bytes occupied, 0 if not known
	regular   bool        // a regular file, else a block device
}

// openSource opens a file that the user named: a regular file or a block device, through symbolic
// links if the user likes them. It does not block on a FIFO.
func openSource(path string) (*sourceFile, error) {
	// Opening a device can have effects (a tape rewinds), so look first; what counts is the second
	// look, at the handle.
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if reason := notReadable(fi.Mode(), true); reason != "" {
		return nil, &RefusedError{Path: path, Reason: "it " + reason}
	}
	f, err := openNonblock(path, true)
	if err != nil {
		return nil, err
	}
	s, err := newSource(path, f, true)
	if err != nil {
		_ = f.Close()
		var refused *siblingError
		if errors.As(err, &refused) {
			return nil, &RefusedError{Path: path, Reason: "it " + refused.reason}
		}
		return nil, err
	}
	return s, nil
}

// siblingError says why a file may not serve as a part of a disk.
type siblingError struct{ reason string }

func (e *siblingError) Error() string { return e.reason }

// openSibling opens the file with a plain name in the first of the folders that has it. Symbolic
// links are not followed and only a regular file will do. The caller has checked the name.
func openSibling(dirs []string, name string) (*sourceFile, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		fi, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if fi.Mode()&os.ModeSymlink != 0 {
			return nil, &siblingError{"is a symbolic link"}
		}
		if reason := notReadable(fi.Mode(), false); reason != "" {
			return nil, &siblingError{reason}
		}
		f, err := openNonblock(path, false)
		if err != nil {
			return nil, err
		}
		s, err := newSource(path, f, false)
		if err == nil && !os.SameFile(fi, s.info) {
			// Where the system cannot refuse to follow links, the link shows up as another file.
			err = &siblingError{"was replaced while it was opened"}
		}
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		return s, nil
	}
	return nil, os.ErrNotExist
}

func newSource(path string, f *os.File, device bool) (*sourceFile, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if reason := notReadable(fi.Mode(), device); reason != "" {
		return nil, &siblingError{reason}
	}
	s := &sourceFile{path: path, file: f, info: fi, size: fi.Size(), regular: fi.Mode().IsRegular()}
	if s.regular {
		s.allocated = allocatedBytes(fi)
	} else if s.size, err = raw.DeviceSize(f); err != nil {
		return nil, fmt.Errorf("size of %q: %w", path, err)
	}
	return s, nil
}

// notReadable says why a file of this kind is not a disk, "" if it may be one.
func notReadable(m os.FileMode, device bool) string {
	switch {
	case m.IsRegular():
		return ""
	case m&os.ModeDevice != 0 && m&os.ModeCharDevice == 0:
		if device {
			return ""
		}
		return "is a block device, not a regular file"
	case m.IsDir():
		return "is a folder, not a disk image"
	case m&os.ModeNamedPipe != 0:
		return "is a named pipe; a disk image is read at many offsets and must be a file"
	case m&os.ModeCharDevice != 0:
		return "is a character device, not a disk image"
	case m&os.ModeSocket != 0:
		return "is a socket, not a disk image"
	default:
		return "is not a regular file"
	}
}

// checkPlainName returns an error unless name is the name of a file in a folder and nothing more,
// on every system: what is plain on one must not be a path on another.
func checkPlainName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return errors.New("is not a file name")
	case len(name) > 255:
		return errors.New("has a name of more than 255 bytes")
	case strings.ContainsAny(name, `/\`):
		return errors.New("is a path; only a plain file name is followed")
	case strings.Contains(name, ":"):
		return errors.New("is not a plain file name (protocols, json: objects and drives are not followed)")
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7F }):
		return errors.New("contains control characters")
	case !filepath.IsLocal(name):
		return errors.New("is a reserved name")
	}
	return nil
}

// ChangedError is a source that was written to, or replaced, while it was read.
type ChangedError struct {
	Path string
	Err  error // how it changed
}

func (e *ChangedError) Error() string {
	return fmt.Sprintf("%q changed while it was read: %v", e.Path, e.Err)
}
func (e *ChangedError) Unwrap() error { return e.Err }

// Hint says what to do about it.
func (e *ChangedError) Hint() string {
	return "Stop whatever writes to it (a virtual machine that runs?), or take a snapshot or a copy of it, and run the same command again."
}

func (f *sourceFile) checkUnchanged() error {
	now, err := f.file.Stat()
	if err != nil {
		return fmt.Errorf("check that %q did not change: %w", f.path, err)
	}
	changed := func(format string, a ...any) error { return &ChangedError{f.path, fmt.Errorf(format, a...)} }
	if f.regular {
		if now.Size() != f.size {
			return changed("its size was %d and is %d bytes", f.size, now.Size())
		}
		if !now.ModTime().Equal(f.info.ModTime()) {
			return changed("it was written to")
		}
	} else if size, err := raw.DeviceSize(f.file); err != nil || size != f.size {
		return changed("its size is no longer %d bytes", f.size)
	}
	named, err := os.Stat(f.path)
	if err != nil {
		return changed("%w", err)
	}
	if !os.SameFile(named, f.info) {
		return changed("another file took its name")
	}
	return nil
}
