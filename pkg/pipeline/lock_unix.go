// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package pipeline

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// removeLocked: a file that is locked can be removed, and whoever waits for it notices.
const removeLocked = true

// lockFile returns false if another process has the lock.
func lockFile(f *os.File) (bool, error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		default:
			return false, errors.Join(errNoLocks, err)
		}
	}
}
