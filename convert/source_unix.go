// SPDX-License-Identifier: Apache-2.0

//go:build unix

package convert

import (
	"os"
	"syscall"
)

// openNonblock opens a file for reading without waiting for the other end of a FIFO and without
// taking a terminal; without follow, a symbolic link as the last component is an error.
func openNonblock(path string, follow bool) (*os.File, error) {
	flags := os.O_RDONLY | syscall.O_NONBLOCK | syscall.O_NOCTTY
	if !follow {
		flags |= syscall.O_NOFOLLOW
	}
	return os.OpenFile(path, flags, 0)
}

// allocatedBytes returns how many bytes the file occupies.
func allocatedBytes(fi os.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512 // POSIX leaves the unit open; it is 512 wherever this builds
	}
	return 0
}
