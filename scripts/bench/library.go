// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"os"
	"runtime/debug"

	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader"
	"github.com/lima-vm/go-qcow2reader/convert"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
)

// libraryConvert is go-qcow2reader's own conversion, as the library comes, with the decoder of Zstandard
// that it leaves to its users.
func libraryConvert(src, dst string) error {
	qcow2.SetDecompressor(qcow2.CompressionTypeZstd, func(r io.Reader) (io.ReadCloser, error) {
		d, err := zstd.NewReader(r)
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	})
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	img, err := qcow2reader.Open(f)
	if err != nil {
		return err
	}
	defer img.Close()
	if err := img.Readable(); err != nil {
		return err
	}
	out, err := os.Create(dst)
	if err != nil {
		return err
	}
	return errors.Join(out.Truncate(img.Size()), convert.Convert(out, img, convert.Options{}), out.Close())
}

// libraryVersion is what this program was built with.
func libraryVersion() string {
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/lima-vm/go-qcow2reader" {
				return m.Version
			}
		}
	}
	return "of unknown version"
}
