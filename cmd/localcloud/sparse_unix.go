// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin || freebsd

package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// nextData returns the first offset from off on that holds data, or size.
func nextData(f *os.File, off, size int64) (int64, error) {
	return seekTo(f, off, size, unix.SEEK_DATA, off)
}

// nextHole returns the first offset from off on that is in a hole, or size.
func nextHole(f *os.File, off, size int64) (int64, error) {
	return seekTo(f, off, size, unix.SEEK_HOLE, size)
}

// seekTo asks the file system; unknown is the answer where it cannot tell.
func seekTo(f *os.File, off, size int64, whence int, unknown int64) (int64, error) {
	pos, err := unix.Seek(int(f.Fd()), off, whence)
	switch {
	case err == nil:
		return min(pos, size), nil
	case errors.Is(err, unix.ENXIO): // no data up to the end
		return size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return unknown, nil
	}
	return 0, os.NewSyscallError("lseek", err)
}
