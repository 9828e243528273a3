// SPDX-License-Identifier: Apache-2.0

package qcow2_test

import (
	"bytes"
	"compress/flate"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	lib "github.com/lima-vm/go-qcow2reader/image/qcow2"
)

// libraryDefault opens an image with the library and the decoders that it has without us: for zlib
// its own, for zstd the one that its documentation shows. The library keeps decoders per process
// and takes them when it opens an image, so every other image must be open already.
func libraryDefault(b *testing.B, file []byte) io.ReaderAt {
	b.Helper()
	for t, d := range map[lib.CompressionType]lib.Decompressor{
		lib.CompressionTypeZlib: func(r io.Reader) (io.ReadCloser, error) { return flate.NewReader(r), nil },
		lib.CompressionTypeZstd: func(r io.Reader) (io.ReadCloser, error) {
			d, err := zstd.NewReader(r)
			if err != nil {
				return nil, err
			}
			return d.IOReadCloser(), nil
		},
	} {
		lib.SetDecompressor(t, d)
	}
	img, err := lib.Open(bytes.NewReader(file), nil)
	if err != nil {
		b.Fatal(err)
	}
	return img
}
