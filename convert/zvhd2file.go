// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bufio"
	"context"
	"io"
	"iter"
	"os"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/zvhd2"
)

// ZVHD2Options are the choices of [WriteZVHD2] and [EncodeZVHD2]; the zero value is good.
type ZVHD2Options struct {
	// Writer says how the image is written, see [zvhd2.WriterOptions].
	Writer    zvhd2.WriterOptions
	Overwrite bool          // [WriteZVHD2] alone: replace an existing regular file
	NoSync    bool          // [WriteZVHD2] alone: see [WriteFileUnsynced]
	Marker    Marker        // learns where data is, may be nil; blocks of [zvhd2.BlockSize]
	Progress  func(n int64) // called with every number of bytes of the disk done, from several goroutines
	Digest    *Digest       // becomes img's digest when all went well; nil computes none
}

// OpenZVHD2 opens the ZVHD2 image in the size bytes of r, with the virtual size that a cloud shows: whole
// GiB. A bad image gives an error with a method Refusal() (reason, remedy string). r must outlive it.
func OpenZVHD2(ctx context.Context, r io.ReaderAt, size int64) (image.Image, error) {
	return openZVHD2(ctx, r, size, false)
}

// OpenOriginalZVHD2 is [OpenZVHD2] with the size of the disk that the image was made from, rounded up to
// 512 bytes.
func OpenOriginalZVHD2(ctx context.Context, r io.ReaderAt, size int64) (image.Image, error) {
	return openZVHD2(ctx, r, size, true)
}

func openZVHD2(ctx context.Context, r io.ReaderAt, size int64, original bool) (image.Image, error) {
	meta, err := zvhd2.Preflight(ctx, r, size, zvhd2.Options{MaxVirtualSize: DefaultMaxVirtualSize, OriginalSize: original})
	if err != nil {
		return nil, err
	}
	return meta.Open(nil)
}

// MaxZVHD2Size is more than the bytes that the ZVHD2 image of a disk of size bytes can have, when
// nothing in it can be compressed.
func MaxZVHD2Size(size int64) int64 { return size + size/256 + 64<<20 }

// WriteZVHD2 writes img as a ZVHD2 file at path, as [WriteRAW] does a RAW file.
func WriteZVHD2(ctx context.Context, img image.Image, path string, o ZVHD2Options) (stats ScanStats, err error) {
	err = writeFile(ctx, img, path, o.Overwrite, !o.NoSync, func(f *os.File) error {
		w := bufio.NewWriterSize(f, 1<<20)
		if stats, err = EncodeZVHD2(ctx, img, w, o); err != nil {
			return err
		}
		return w.Flush()
	})
	return stats, err
}

// EncodeZVHD2 writes img as ZVHD2 to w, front to back and without seeking: each byte of the disk is
// read once, in parallel, and blocks of zeros are left out. The disk in the image is img's size rounded
// up to 512 bytes. What w got is an image only if the error is nil.
func EncodeZVHD2(ctx context.Context, img image.Image, w io.Writer, o ZVHD2Options) (ScanStats, error) {
	return NewZVHD2Stream(img, o).Encode(ctx, w)
}

// blockSource reads the disk's last block up to a whole sector, and counts.
type blockSource struct {
	s        *Scanner
	progress func(n int64)
}

// ReadRange implements zvhd2.Source.
func (b *blockSource) ReadRange(ctx context.Context, p []byte, off int64) (bool, error) {
	n := min(int64(len(p)), b.s.size-off)
	clear(p[n:])
	zero, err := b.s.ReadRange(ctx, p[:n], off)
	if err == nil {
		b.progress(n)
	}
	return zero, err
}

// dataExtents iterates over the extents from a block's beginning on that aren't known to be zero, and
// counts the blocks that none of them touches as done.
func (s *Scanner) dataExtents(ctx context.Context, from, block int64, progress func(n int64)) iter.Seq2[image.Extent, error] {
	return func(yield func(image.Extent, error) bool) {
		next := from // first byte that is neither skipped nor in a block with data
		skip := func(to int64) {
			if to = min(to, s.size); to > next {
				s.zero.Add(to - next)
				progress(to - next)
				next = to
			}
		}
		for e, err := range Extents(ctx, s.img) {
			if err == nil && (e.Zero || e.Start+e.Length <= from) {
				continue
			}
			if err == nil {
				skip(e.Start / block * block)
				next = max(next, min((e.Start+e.Length+block-1)/block*block, s.size))
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
		skip(s.size)
	}
}
