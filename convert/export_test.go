// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"encoding/binary"
	"hash/crc32"
	"os"
)

// Detect gives the names of the signatures found.
func Detect(head, tail []byte) []string {
	var names []string
	for _, s := range detect(head, tail) {
		names = append(names, s.name)
	}
	return names
}

// WithWindow has compressed files unpacked through a window of n bytes.
func WithWindow(o OpenOptions, n int64) OpenOptions {
	o.window = n
	return o
}

// Passes tells how often the compressed file of a disk was unpacked, and how much of it is kept, in
// bytes; 0, 0 if there is none.
func Passes(d *Disk) (passes float64, kept int64) {
	for _, t := range d.temps {
		if f, ok := t.(*forward); ok {
			f.mu.Lock()
			defer f.mu.Unlock()
			all := max(f.size, forwardChunk)
			return 1 + float64(all*forwardPasses-f.left)/float64(all), int64(len(f.chunks)+len(f.free)) * forwardChunk
		}
	}
	return 0, 0
}

// ForwardPasses is how often a compressed file may be unpacked.
const ForwardPasses = forwardPasses

// RAWName tells whether a name says RAW.
func RAWName(name string) bool { return rawName(name) }

// OpenNonblock opens a file without waiting.
func OpenNonblock(path string) (*os.File, error) { return openNonblock(path, true) }

// SealNote adds the checksum that a note ends with.
func SealNote(b []byte) []byte {
	return binary.BigEndian.AppendUint32(append([]byte(nil), b...), crc32.Checksum(b, castagnoli))
}
