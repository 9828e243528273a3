// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"strconv"

	"golang.org/x/sys/windows"
)

// fileID is the file's index on its volume.
func fileID(f *sourceFile) string {
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(windows.Handle(f.file.Fd()), &info); err != nil {
		return ""
	}
	return strconv.FormatUint(uint64(info.FileIndexHigh)<<32|uint64(info.FileIndexLow), 10)
}
