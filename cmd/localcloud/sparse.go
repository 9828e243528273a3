// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"github.com/minio/crc64nvme"
)

// zeroBlock is the granularity in which zeros in uploaded data become holes:
// fine enough for the small gaps of a file system, coarse enough that a file
// does not fall into thousands of extents.
const zeroBlock = 64 << 10

// punchZeros turns blocks of zeros in f into holes. It is an optimisation:
// where the file system cannot do it, f stays as it is.
func punchZeros(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() < zeroBlock {
		return nil
	}
	buf := make([]byte, 16*zeroBlock)
	run := int64(-1) // where the current run of zero blocks began
	flush := func(end int64) error {
		if run < 0 {
			return nil
		}
		start := run
		run = -1
		if start == 0 && end == fi.Size() { // works without hole punching, too
			return errors.Join(f.Truncate(0), f.Truncate(end))
		}
		return punchHole(f, start, end-start)
	}
	for off := int64(0); off < fi.Size(); {
		n, err := f.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 {
			break
		}
		for b := 0; b < n; b += zeroBlock {
			block := buf[b:min(b+zeroBlock, n)]
			if isZero(block) {
				if run < 0 {
					run = off + int64(b)
				}
			} else if err := flush(off + int64(b)); err != nil {
				return ignoreUnsupported(err)
			}
		}
		off += int64(n)
	}
	return ignoreUnsupported(flush(fi.Size()))
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

func isZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

// sums are what the backend stores with a part.
type sums struct {
	md5   string // hex
	crc64 string // CRC-64/NVME, big-endian, base64
}

// zeroStep is the distance of the saved states of zeroSums: what hashing one
// more length costs at most.
const zeroStep = 8 << 20

// zeroSums knows the checksums of runs of zeros. MD5 has no shortcut for
// them, but its state after n zeros can be kept: any length costs one pass up
// to the longest length so far, once, and at most zeroStep bytes after that.
type zeroSums struct {
	mu     sync.Mutex
	states []zeroState // after 0, zeroStep, 2*zeroStep ... zeros
	known  map[int64]sums
}

type zeroState struct {
	md5 []byte // of encoding.BinaryMarshaler
	crc uint64
}

func (z *zeroSums) of(ctx context.Context, n int64) (sums, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if s, ok := z.known[n]; ok {
		return s, nil
	}
	if z.known == nil {
		z.known = map[int64]sums{}
	}
	h := md5.New()
	var crc uint64
	at := min(n/zeroStep, int64(len(z.states))-1)
	if at >= 0 {
		if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(z.states[at].md5); err != nil {
			return sums{}, fmt.Errorf("resume a checksum: %w", err)
		}
		crc = z.states[at].crc
	} else {
		at = 0
	}
	for off := at * zeroStep; ; {
		if off%zeroStep == 0 && off/zeroStep == int64(len(z.states)) {
			state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
			if err != nil {
				return sums{}, fmt.Errorf("save a checksum: %w", err)
			}
			z.states = append(z.states, zeroState{state, crc})
		}
		if off == n {
			break
		}
		if err := ctx.Err(); err != nil {
			return sums{}, err
		}
		p := zeroBytes[:min(n-off, zeroStep-off%zeroStep, int64(len(zeroBytes)))]
		write(h, p)
		crc = crc64nvme.Update(crc, p)
		off += int64(len(p))
	}
	s := newSums(h.Sum(nil), crc)
	z.known[n] = s
	return s, nil
}

// zeroBytes is only ever read.
var zeroBytes = make([]byte, 1<<20)

// write adds p to h, which never fails.
func write(h hash.Hash, p []byte) { _, _ = h.Write(p) }
