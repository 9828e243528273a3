// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
)

const (
	scratchChunk = 1 << 20 // bytes that are unpacked at a time
	// scratchReserve is how many bytes stay free where an image is unpacked: a full disk harms
	// others.
	scratchReserve = 256 << 20
	// scratchCheck is how many bytes are written between two looks at the free room.
	scratchCheck = 64 << 20
)

// scratch is a temporary file without a name, or with one that goes when it is closed where a file
// must have one.
type scratch struct {
	f    *os.File
	dir  string
	name string // "" = it has none any more
	size int64
}

func newScratch(dir string) (*scratch, error) {
	f, err := os.CreateTemp(dir, ".imsprep-*.tmp")
	if err != nil {
		return nil, err
	}
	s := &scratch{f: f, dir: dir}
	// Without a name it is gone in any case, however this process ends.
	if os.Remove(f.Name()) != nil {
		s.name = f.Name()
	}
	return s, nil
}

// fill writes all of r, with holes for zeros. More than limit bytes give a [*limitError].
func (s *scratch) fill(ctx context.Context, r io.Reader, limit int64) error {
	if err := prepareSparse(s.f); err != nil {
		return &scratchError{err}
	}
	buf := make([]byte, scratchChunk)
	unchecked := int64(scratchCheck)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := readUp(r, buf)
		if int64(n) > limit-s.size {
			return &limitError{limit}
		}
		if n > 0 && !IsZero(buf[:n]) {
			if unchecked += int64(n); unchecked >= scratchCheck {
				unchecked = 0
				if free, ok := freeBytes(s.dir); ok && free < scratchReserve {
					return &scratchError{fmt.Errorf("%q has only %d bytes left", s.dir, free)}
				}
			}
			if err := writeSparse(s.f, buf[:n], s.size); err != nil {
				return &scratchError{err}
			}
		}
		s.size += int64(n)
		if err == io.EOF {
			return s.end()
		}
		if err != nil {
			return err
		}
	}
}

// readUp fills p as far as r goes. The error is r's own, so that an end that r did not expect is
// not taken for one.
func readUp(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = r.Read(p[n:])
		n += k
	}
	return n, err
}

// end gives the file its length, also where it ends with a hole.
func (s *scratch) end() error {
	if err := s.f.Truncate(s.size); err != nil {
		return &scratchError{err}
	}
	return nil
}

// unpackedLimit is how long an unpacked image of a disk of size bytes may be: there are tables, and
// blocks that are filled up.
func unpackedLimit(size int64) int64 {
	if size > math.MaxInt64/2 {
		return math.MaxInt64
	}
	return size + size/16 + 64<<20
}

// Close removes the file.
func (s *scratch) Close() error {
	err := s.f.Close()
	if s.name != "" {
		err = errors.Join(err, os.Remove(s.name))
	}
	return err
}

// scratchError says that the copy could not be written, which is no fault of the image.
type scratchError struct{ err error }

func (e *scratchError) Error() string { return "write the unpacked copy: " + e.err.Error() }
func (e *scratchError) Unwrap() error { return e.err }

// isPlainError tells errors of files and of the caller from those of damaged data.
func isPlainError(err error) bool {
	var path *fs.PathError
	var write *scratchError
	return errors.As(err, &path) || errors.As(err, &write) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
