// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"crypto/md5"
	_ "embed"
	"encoding"
	"encoding/binary"
	"hash"
	"io"
	"sync"
)

// zeroStateGrid is how many zeros lie between two states of zeroStates.
const zeroStateGrid = 4 << 20

// zeroStates are the four words of an MD5 after 4 MiB, 8 MiB, ... 5 GiB of zeros. Hashing that much takes
// ten seconds, in which no byte would move. `go test ./pkg/obs -run ZeroStates -update` makes the file.
//
//go:embed zerostates.bin
var zeroStates string

// zeroSums knows the MD5 of n zeros, and hashes fewer than zeroStateGrid of them for a length up to MaxPartSize that is
// new to it.
type zeroSums struct {
	mu   sync.Mutex
	sums map[int64]sum
}

func (s *zeroSums) of(n int64) sum {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.sums[n]; ok {
		return v
	}
	if s.sums == nil {
		s.sums = map[int64]sum{}
	}
	v := sum(afterZeros(n).Sum(nil))
	s.sums[n] = v
	return v
}

// afterZeros returns an MD5 that has had n zeros.
func afterZeros(n int64) hash.Hash {
	h := md5.New()
	known := n / zeroStateGrid * zeroStateGrid
	if state := zeroState(known); state == nil || h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state) != nil {
		known = 0
	}
	_, _ = io.Copy(h, newZeros(n-known)) // neither side can fail
	return h
}

// zeroState returns what an MD5's MarshalBinary returns after n zeros, nil when that is not known.
func zeroState(n int64) []byte {
	i := int(n / zeroStateGrid)
	if i < 1 || n%zeroStateGrid != 0 || i > len(zeroStates)/md5.Size {
		return nil
	}
	b := append([]byte("md5\x01"), zeroStates[(i-1)*md5.Size:i*md5.Size]...)
	b = append(b, make([]byte, md5.BlockSize)...)
	return binary.BigEndian.AppendUint64(b, uint64(n))
}
