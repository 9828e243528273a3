// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// removeLocked: an open file can't be removed, and between closing and removing it somebody else could
// have locked it. It stays; it is as good as empty.
const removeLocked = false

// lockedByte lies behind the content, which others must be able to read: locks are binding here.
const lockedByte = 1 << 30

// lockFile returns false if another process has the lock.
func lockFile(f *os.File) (bool, error) {
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY,
		0, 1, 0, &windows.Overlapped{Offset: lockedByte})
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, windows.ERROR_LOCK_VIOLATION), errors.Is(err, windows.ERROR_IO_PENDING):
		return false, nil
	}
	return false, errors.Join(errNoLocks, err)
}
