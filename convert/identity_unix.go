// SPDX-License-Identifier: Apache-2.0

//go:build unix

package convert

import (
	"strconv"
	"syscall"
)

// fileID is the inode's number. The device's number is left out: a file system may get another one when
// it is mounted again.
func fileID(f *sourceFile) string {
	if st, ok := f.info.Sys().(*syscall.Stat_t); ok {
		return strconv.FormatUint(st.Ino, 10)
	}
	return ""
}
