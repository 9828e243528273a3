// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
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

// zeroStatesSHA256 is of the file of which each link was checked when it was made.
const zeroStatesSHA256 = "c41d43c86fa576bc5baf912a46b335f5035f0c038698ae918ad1c41ced05289d"

// Each state leads to the next one. To check all takes ten seconds; some a run check the sum, too.
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
	if got := sha256.Sum256([]byte(zeroStates)); hex.EncodeToString(got[:]) != zeroStatesSHA256 {
		t.Errorf("the SHA-256 of the states is %x", got)
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
