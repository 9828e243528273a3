// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"testing"

	"github.com/imsprep/imsprep/bitmap"
)

// BenchmarkRebuild reads disks of 1 GiB: how long an import's job takes.
func BenchmarkRebuild(b *testing.B) {
	const size = 1 << 30
	for name, c := range map[string]struct{ data, limit int64 }{
		"zeros": {0, 0}, "data": {size, 0}, "zeros beyond the hash limit": {0, 1},
	} {
		b.Run(name, func(b *testing.B) {
			m, err := bitmap.NewMap(size, SparseBlock)
			if err != nil {
				b.Fatal(err)
			}
			if c.data > 0 {
				m.MarkRange(0, c.data)
			}
			b.SetBytes(size)
			for b.Loop() {
				if _, err := rebuild(b.Context(), rawDisk(&bigObjects{size: size}, m), c.limit, func(float64) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
