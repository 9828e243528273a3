// SPDX-License-Identifier: Apache-2.0

//go:build !darwin

package raw

import (
	"io"
	"os"
)

// DeviceSize returns the capacity in bytes of an open block device.
func DeviceSize(f *os.File) (int64, error) { return f.Seek(0, io.SeekEnd) }
