// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"crypto/md5"
	"encoding"
	"flag"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "compute zerostates.bin anew")

func TestZeroSums(t *testing.T) {
	var s zeroSums
	for _, n := range []int64{0, 1, zeroStateGrid - 1, 5 * zeroStateGrid, zeroStateGrid, 2*zeroStateGrid + 3, 9*zeroStateGrid + 1, 5 * zeroStateGrid} {
		if want := sum(md5.Sum(make([]byte, n))); s.of(n) != want {
			t.Errorf("%d zeros: %s instead of %s", n, s.of(n).hex(), want.hex())
		}
	}
}

// Each state leads to the next one, so a wrong one shows in two links. Some links a run are enough.
func TestZeroStates(t *testing.T) {
	const states = MaxPartSize / zeroStateGrid
	next := func(h hash.Hash) []byte {
		_, _ = io.Copy(h, newZeros(zeroStateGrid))
		state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return state
	}
	if *update {
		var all []byte
		for h, magic := md5.New(), len("md5\x01"); len(all) < states*md5.Size; {
			all = append(all, next(h)[magic:magic+md5.Size]...)
		}
		if err := os.WriteFile("zerostates.bin", all, 0o644); err != nil {
			t.Fatal(err)
		}
		zeroStates = string(all)
	}
	if zeroState(MaxPartSize) == nil || zeroState(MaxPartSize+zeroStateGrid) != nil || zeroState(0) != nil || zeroState(zeroStateGrid+1) != nil {
		t.Fatal("the states do not end at the longest part")
	}
	links := []int64{0, 1, states - 1}
	for range 30 {
		links = append(links, rand.Int64N(states))
	}
	for _, i := range links {
		from, to := i*zeroStateGrid, (i+1)*zeroStateGrid
		h := md5.New()
		if from > 0 {
			if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(zeroState(from)); err != nil {
				t.Fatal(err)
			}
		}
		if got := next(h); string(got) != string(zeroState(to)) {
			t.Errorf("the state after %d zeros is %x, not %x", to, got, zeroState(to))
		}
	}
}

// The state behind the last of the table, from where it ends.
func TestZeroSumsBeyondTheTable(t *testing.T) {
	h := md5.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(zeroState(MaxPartSize)); err != nil {
		t.Fatal(err)
	}
	const more = 2*zeroStateGrid + 1
	_, _ = io.Copy(h, newZeros(more))
	var s zeroSums
	if want := sum(h.Sum(nil)); s.of(MaxPartSize+more) != want {
		t.Errorf("%s instead of %s", s.of(MaxPartSize+more).hex(), want.hex())
	}
}
