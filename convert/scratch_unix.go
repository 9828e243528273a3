// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package convert

import "golang.org/x/sys/unix"

// freeBytes returns how many bytes a user may still write in a folder.
func freeBytes(dir string) (int64, bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true
}
