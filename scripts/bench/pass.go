// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
)

// bitmapPass stands for what makes a bitmap of a RAW file today: it reads all of the file, as the vendor's tool
// does, and writes a bit for each block of 1 MiB that isn't zero.
func bitmapPass(src, dst string) error {
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	var bits []byte
	buf, zeros := make([]byte, mib), make([]byte, mib)
	for i := 0; ; i++ {
		n, err := io.ReadFull(f, buf)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			if errors.Is(err, io.EOF) {
				return os.WriteFile(dst, bits, 0o644)
			}
			return err
		}
		if i%8 == 0 {
			bits = append(bits, 0)
		}
		if !bytes.Equal(buf[:n], zeros[:n]) {
			bits[i/8] |= 1 << (i % 8)
		}
	}
}
