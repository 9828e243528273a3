// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"os"
	"sync"

	"github.com/lima-vm/go-qcow2reader/image"
)

// holeGrain is the unit in bytes in which zeros are left out of a RAW file. Smaller units save
// little space and fragment the file.
const holeGrain = 64 << 10

// RAWOptions are the choices of [WriteRAW]; the zero value is good.
type RAWOptions struct {
	Workers   int           // see [ScanOptions]
	Overwrite bool          // replace an existing regular file
	NoSync    bool          // see [WriteFileUnsynced]
	Marker    Marker        // learns where data is, may be nil
	Progress  func(n int64) // see [ScanOptions]
	Digest    *Digest       // becomes img's digest when all went well; nil computes none
}

// WriteRAW writes the content of img to a sparse file at path, in which zeros are holes. The file
// gets its name when it is complete and on the disk; until then it has a temporary name in the
// same folder, and it is removed after an error or when ctx ends. The source and, unless Overwrite
// is set, an existing file are never replaced; that gives an error for which errors.Is(err,
// fs.ErrExist).
func WriteRAW(ctx context.Context, img image.Image, path string, o RAWOptions) (ScanStats, error) {
	s := NewScanner(img, o.Marker)
	if o.Digest != nil {
		s.WithDigest()
	}
	err := writeFile(ctx, img, path, o.Overwrite, !o.NoSync, func(f *os.File) error {
		if err := prepareSparse(f); err != nil {
			return err
		}
		if err := f.Truncate(img.Size()); err != nil {
			return err
		}
		// Writes to one file wait for each other in the kernel, where who waits for a short time keeps a processor
		// busy, and where workers that take turns at each call end up reading at the same time too. Here one writes a
		// whole chunk while the others read: the same wall time, or less, with a quarter less processor time.
		var writing sync.Mutex
		err := Scan(ctx, s, ScanOptions{Workers: o.Workers, Progress: o.Progress}, func(off int64, p []byte) error {
			writing.Lock()
			defer writing.Unlock()
			return writeSparse(f, p, off)
		})
		if err != nil {
			return err
		}
		return s.digestTo(ctx, o.Digest)
	})
	return s.Stats(), err
}

// maxWrite is the most that is written in one call, in bytes. The kernel makes the pages of a file as large as the
// writes that fill them, and large ones are what a virtual machine gives back to its host first and waits for when it
// takes them again: on such a one 2 MiB at a time take twice as long, or longer, and 1 MiB sometimes.
const maxWrite = 512 << 10

// writeSparse writes those grains of p that are not all zero.
func writeSparse(f *os.File, p []byte, off int64) error {
	for start := 0; start < len(p); {
		end := min(start+holeGrain, len(p))
		if IsZero(p[start:end]) {
			start = end
			continue
		}
		for end < min(start+maxWrite, len(p)) {
			next := min(end+holeGrain, len(p))
			if IsZero(p[end:next]) {
				break
			}
			end = next
		}
		if _, err := f.WriteAt(p[start:end], off+int64(start)); err != nil {
			return err
		}
		start = end
	}
	return nil
}
