// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"math"

	"golang.org/x/sys/windows"
)

// freeBytes returns how many bytes a user may still write in a folder.
func freeBytes(dir string) (int64, bool) {
	name, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, false
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(name, &free, nil, nil); err != nil {
		return 0, false
	}
	return int64(min(free, math.MaxInt64)), true
}
