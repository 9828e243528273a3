// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"compress/flate"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	lib "github.com/lima-vm/go-qcow2reader/image/qcow2"
	liblog "github.com/lima-vm/go-qcow2reader/log"
)

// Reference is an image whose compressed clusters are read by go-qcow2reader, with the decoders of the
// standard library and, for Zstandard, as a stream.
type Reference struct {
	img *Image
	lib *lib.Qcow2
}

// Reference returns the reference of an image, nil for those that the library doesn't read: with a parent,
// extended L2 entries, or an external data file.
func (img *Image) Reference() (*Reference, error) {
	if img.parent != nil || img.m.extended || img.m.data != nil {
		return nil, nil
	}
	setUpLibrary()
	l, err := lib.Open(img.view, nil)
	if err == nil {
		err = l.Readable()
	}
	if err != nil {
		return nil, err
	}
	return &Reference{img, l}, nil
}

// setUpLibrary sets the hooks that the library keeps per process. It takes what a Read gives for all there
// is, and decodes the cluster again for the rest.
var setUpLibrary = sync.OnceFunc(func() {
	liblog.SetWarnFunc(nil)
	lib.SetDecompressor(lib.CompressionTypeZlib, func(r io.Reader) (io.ReadCloser, error) {
		return whole{flate.NewReader(r)}, nil
	})
	lib.SetDecompressor(lib.CompressionTypeZstd, func(r io.Reader) (io.ReadCloser, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return whole{d.IOReadCloser()}, nil
	})
})

// whole fills what it is given.
type whole struct{ io.ReadCloser }

func (w whole) Read(p []byte) (int, error) { return io.ReadFull(w.ReadCloser, p) }

// ReadAt implements [io.ReaderAt].
func (r *Reference) ReadAt(p []byte, off int64) (int, error) {
	if off >= r.img.Size() {
		return r.img.ReadAt(p, off)
	}
	done := 0
	for end := min(int64(len(p)), r.img.Size()-off); int64(done) < end; {
		at := off + int64(done)
		e, err := r.img.Extent(at, end-int64(done))
		if err != nil {
			return done, err
		}
		part := p[done : done+int(e.Length)]
		if e.Compressed {
			err = readFull(r.lib, part, at)
		} else if _, err = r.img.ReadAt(part, at); errors.Is(err, io.EOF) {
			err = nil
		}
		if err != nil {
			return done, err
		}
		done += len(part)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// FrameLength exposes frameLength.
func FrameLength(p []byte) int { return frameLength(p) }

// Distinct exposes the counter of different places.
type Distinct struct{ d distinct }

func (d *Distinct) Add(v uint64)   { d.d.add(v) }
func (d *Distinct) Count() float64 { return d.d.count() }
