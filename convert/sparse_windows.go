// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"os"

	"golang.org/x/sys/windows"
)

// prepareSparse marks a file as sparse, without which its holes would be written out. A file system
// that has no sparse files still gives the right content.
func prepareSparse(f *os.File) error {
	var n uint32
	_ = windows.DeviceIoControl(windows.Handle(f.Fd()), windows.FSCTL_SET_SPARSE, nil, 0, nil, 0, &n, nil)
	return nil
}
