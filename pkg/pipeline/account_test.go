// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert"
)

func pack(sums blockDigests) string {
	s, err := packBlocks(func(fn func(int64, convert.BlockDigest) error) error {
		for _, block := range slices.Sorted(maps.Keys(sums)) {
			if err := fn(block, sums[block]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		panic(err) // fn never fails
	}
	return s
}

// TestBlockDigestsComeBack packs and unpacks; a disk that is too short for them is an error.
func TestBlockDigestsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sums := blockDigests{}
		last := int64(-1)
		for _, block := range rapid.SliceOfN(rapid.Int64Range(0, 40), 0, 20).Draw(t, "blocks") {
			sums[block] = sha256.Sum256([]byte{byte(block)})
			last = max(last, block)
		}
		text := pack(sums)
		if got, err := unpackBlocks(text, 41); err != nil || !maps.Equal(got, sums) {
			t.Fatalf("%v, %v", got, err)
		}
		if last >= 0 {
			if got, err := unpackBlocks(text, last); err == nil {
				t.Fatalf("%d blocks in a disk of %d", len(got), last)
			}
		}
	})
}

// FuzzUnpackBlocks gives arbitrary lists: what is accepted has only blocks of the disk.
func FuzzUnpackBlocks(f *testing.F) {
	one, err := base64.StdEncoding.DecodeString(pack(blockDigests{3: {1}, 4: {2}, 9: {3}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(one)
	f.Add([]byte{0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		sums, err := unpackBlocks(base64.StdEncoding.EncodeToString(b), 100)
		if err != nil {
			return
		}
		for block := range sums {
			if block < 0 || block >= 100 {
				t.Fatalf("block %d", block)
			}
		}
		if again, err := unpackBlocks(pack(sums), 100); err != nil || !maps.Equal(again, sums) {
			t.Fatalf("%v came back as %v, %v", sums, again, err)
		}
	})
}
