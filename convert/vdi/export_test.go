// SPDX-License-Identifier: Apache-2.0

package vdi

import "io"

// SetReader makes the disk be read from another file than the one that was checked.
func SetReader(m *Metadata, r io.ReaderAt) { m.r = r }

// Add puts numbers into a new set of blocks and tells of each whether it was not there before.
func Add(numbers ...int64) (fresh []bool) {
	var s blockSet
	for _, n := range numbers {
		fresh = append(fresh, s.add(n))
	}
	return fresh
}
