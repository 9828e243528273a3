// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"crypto/md5"
	"encoding"
	"io"
	"math/rand/v2"
	"testing"
)

func TestZeroSums(t *testing.T) {
	var s zeroSums
	for _, n := range []int64{0, 1, zeroSumGrid - 1, 5 * zeroSumGrid, zeroSumGrid, 2*zeroSumGrid + 3, 9*zeroSumGrid + 1, 5 * zeroSumGrid,
		zeroStateGrid - 1, zeroStateGrid, zeroStateGrid + zeroSumGrid + 5} {
		if want := sum(md5.Sum(make([]byte, n))); s.of(n) != want {
			t.Errorf("%d zeros: %s instead of %s", n, s.of(n).hex(), want.hex())
		}
	}
}

// Each state leads to the next one, so a wrong one shows in two links. Some links a run are enough.
func TestZeroStates(t *testing.T) {
	if zeroState(MaxPartSize) == nil || zeroState(MaxPartSize+zeroStateGrid) != nil || zeroState(0) != nil || zeroState(zeroStateGrid+zeroSumGrid) != nil {
		t.Fatal("the states do not end at the longest part")
	}
	link := func(from, to int64) {
		h := md5.New()
		if from > 0 {
			if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(zeroState(from)); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = io.Copy(h, newZeros(to-from))
		got, _ := h.(encoding.BinaryMarshaler).MarshalBinary()
		if string(got) != string(zeroState(to)) {
			t.Errorf("the state after %d zeros is %x, not %x", to, got, zeroState(to))
		}
	}
	for n := int64(fineStateGrid); n <= zeroStateGrid; n += fineStateGrid {
		link(n-fineStateGrid, n)
	}
	const last = MaxPartSize / zeroStateGrid
	for _, i := range []int64{last - 1, 1 + rand.Int64N(last-1), 1 + rand.Int64N(last-1)} {
		link(i*zeroStateGrid, (i+1)*zeroStateGrid)
	}
}
