// SPDX-License-Identifier: Apache-2.0

//go:build !unix && !windows

package convert

// fileID does not know.
func fileID(*sourceFile) string { return "" }
