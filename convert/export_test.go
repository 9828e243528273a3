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

// RAWName tells whether a name says RAW.
func RAWName(name string) bool { return rawName(name) }

// OpenNonblock opens a file without waiting.
func OpenNonblock(path string) (*os.File, error) { return openNonblock(path, true) }

// SealNote adds the checksum that a note ends with.
func SealNote(b []byte) []byte {
	return binary.BigEndian.AppendUint32(append([]byte(nil), b...), crc32.Checksum(b, castagnoli))
}
