// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"math"

	"golang.org/x/sys/windows"
)

// room is how many bytes a folder's file system has for us; ok is false if that can't be told.
func room(dir string) (free int64, ok bool) {
	path, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, false
	}
	var available uint64
	if err := windows.GetDiskFreeSpaceEx(path, &available, nil, nil); err != nil {
		return 0, false
	}
	return int64(min(available, math.MaxInt64)), true
}
