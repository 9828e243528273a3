// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package pipeline

import "golang.org/x/sys/unix"

// room is how many bytes a folder's file system has for us; ok is false if that can't be told.
func room(dir string) (free int64, ok bool) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), true
}
