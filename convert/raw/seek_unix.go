// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package raw

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// nextData returns where the next data at or after off begins and, if it begins at off, where it
// ends. A negative start means that only a hole follows.
func nextData(f *os.File, off int64) (start, end int64, err error) {
	start, err = f.Seek(off, unix.SEEK_DATA)
	if errors.Is(err, syscall.ENXIO) {
		return -1, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	if start < off {
		return 0, 0, errNoHoles
	}
	if start > off {
		return start, 0, nil
	}
	end, err = f.Seek(off, unix.SEEK_HOLE)
	return start, end, err
}
