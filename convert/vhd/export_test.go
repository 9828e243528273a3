// SPDX-License-Identifier: Apache-2.0

package vhd

import "context"

// CheckManyDistinct looks for overlapping blocks with limit entries in memory at a time.
func (m *Metadata) CheckManyDistinct(limit int) error {
	return m.checkManyDistinct(context.Background(), make([]uint32, 0, limit))
}

// PlainName is what the package makes of a stored path.
func PlainName(path string) string { return plainName(path) }

// BitRun is how the package reads a sector bitmap.
func BitRun(p []byte, i int64) (bool, int64) { return bitRun(p, i) }
