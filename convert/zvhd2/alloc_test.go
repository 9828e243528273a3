// SPDX-License-Identifier: Apache-2.0

package zvhd2

import (
	"bytes"
	"testing"
)

// TestAllocationsPerBlock counts what encoding a block allocates when all is warm.
func TestAllocationsPerBlock(t *testing.T) {
	if raceEnabled {
		t.Skip("with the race detector, sync.Pool forgets at random what it was given")
	}
	block := bytes.Repeat([]byte("text of a disk, "), BlockSize/16)
	for _, method := range []Method{Zstd, Zlib} {
		e, err := NewEncoder(method, 0)
		if err != nil {
			t.Fatal(err)
		}
		var out []byte
		got := testing.AllocsPerRun(10, func() {
			if out, err = e.Append(out[:0], 1, block); err != nil {
				t.Fatal(err)
			}
		})
		t.Logf("%s: %.0f allocations", method, got)
		if got > 8 {
			t.Errorf("%s: %.0f allocations for a block, want at most 8", method, got)
		}
	}
}
