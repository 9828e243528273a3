// SPDX-License-Identifier: Apache-2.0

// Package raw reads plain disks: files and block devices whose bytes are the disk's bytes.
package raw

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/lima-vm/go-qcow2reader/image"
)

// Type is the format's name.
const Type = image.Type("raw")

// ErrEmpty says that a file has no bytes and so is no disk.
var ErrEmpty = errors.New("the file is empty")

// errNoHoles says that a file's holes cannot be told from its data.
var errNoHoles = errors.New("holes are not reported here")

// Image is a RAW disk. It implements image.Image; ReadAt and Extent are safe for concurrent use.
// Its size may be any number of bytes; what needs whole sectors must round it up itself.
type Image struct {
	r    io.ReaderAt
	size int64
	file *os.File // r, if it may be asked for holes
	ext  extenter // r, if it knows itself where it is zero

	// Asking for holes moves the descriptor's offset, which goroutines share. Reading does not use
	// it.
	seek    sync.Mutex
	noHoles atomic.Bool
}

var _ image.Image = (*Image)(nil)

// extenter is content that knows where it is zero, in the manner of an image.Image.
type extenter interface {
	Extent(start, length int64) (image.Extent, error)
}

// New returns a reader of the first size bytes of r, which stays the caller's to close. With sparse
// set, and if r is an [*os.File], the holes that the file system knows of are reported as zeros; it
// should be set for regular files only. What has an Extent method itself is asked by that.
func New(r io.ReaderAt, size int64, sparse bool) (*Image, error) {
	if size <= 0 {
		return nil, ErrEmpty
	}
	img := &Image{r: r, size: size}
	if sparse {
		img.file, _ = r.(*os.File)
		img.ext, _ = r.(extenter)
	}
	img.noHoles.Store(img.file == nil)
	return img, nil
}

// ReadAt implements [io.ReaderAt]: min(len(p), size-off) bytes or an error.
func (img *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at the negative offset %d", off)
	}
	if off >= img.size {
		return 0, io.EOF
	}
	want := p
	if int64(len(want)) > img.size-off {
		want = want[:img.size-off]
	}
	n, err := img.r.ReadAt(want, off)
	switch {
	case n < len(want) && err == io.EOF:
		return n, fmt.Errorf("the file ends at byte %d, expected %d: %w", off+int64(n), img.size,
			io.ErrUnexpectedEOF)
	case n < len(want):
		return n, err
	case n < len(p):
		return n, io.EOF
	}
	return n, nil
}

// Extent returns the data or the hole at start, clipped to length bytes. A range for which the
// system has no answer is data.
func (img *Image) Extent(start, length int64) (image.Extent, error) {
	if start < 0 || length < 0 || start > img.size || length > img.size-start {
		return image.Extent{}, fmt.Errorf("extent of %d bytes at %d is outside of the disk of %d bytes",
			length, start, img.size)
	}
	if img.ext != nil && length > 0 {
		return img.ext.Extent(start, length)
	}
	all := image.Extent{Start: start, Length: length, Allocated: true}
	if length == 0 || img.noHoles.Load() {
		return all, nil
	}
	img.seek.Lock()
	data, end, err := nextData(img.file, start)
	img.seek.Unlock()
	switch {
	case err != nil:
		// The answer only saves work, so its lack is not an error; do not ask again.
		img.noHoles.Store(true)
		return all, nil
	case data < 0 || data-start >= length:
		return image.Extent{Start: start, Length: length, Zero: true}, nil
	case data > start:
		return image.Extent{Start: start, Length: data - start, Zero: true}, nil
	case end <= start:
		return all, nil
	}
	all.Length = min(length, end-start)
	return all, nil
}

// Size returns the size in bytes.
func (img *Image) Size() int64 { return img.size }

// Type returns the format's name.
func (img *Image) Type() image.Type { return Type }

// Readable returns nil.
func (img *Image) Readable() error { return nil }

// Close does nothing: the file is the caller's.
func (img *Image) Close() error { return nil }
