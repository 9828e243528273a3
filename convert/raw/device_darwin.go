// SPDX-License-Identifier: Apache-2.0

package raw

import (
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// Requests of sys/disk.h: seeking to the end of a device gives 0 on this system.
const (
	dkiocGetBlockSize  = 0x40046418 // u32: bytes
	dkiocGetBlockCount = 0x40086419 // u64: blocks
)

// DeviceSize returns the capacity in bytes of an open block device.
func DeviceSize(f *os.File) (int64, error) {
	block, err := unix.IoctlGetInt(int(f.Fd()), dkiocGetBlockSize)
	if err != nil {
		return 0, os.NewSyscallError("ioctl DKIOCGETBLOCKSIZE", err)
	}
	count, err := unix.IoctlGetInt(int(f.Fd()), dkiocGetBlockCount)
	if err != nil {
		return 0, os.NewSyscallError("ioctl DKIOCGETBLOCKCOUNT", err)
	}
	if block <= 0 || count < 0 || int64(count) > math.MaxInt64/int64(block) {
		return 0, fmt.Errorf("the device reports %d blocks of %d bytes", count, block)
	}
	return int64(block) * int64(count), nil
}
