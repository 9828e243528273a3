// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/lima-vm/go-qcow2reader/image"
)

// input is the content of an image, wherever it lies: a file, a member of an archive in place, or
// an unpacked copy. Readers of formats see nothing else.
type input struct {
	label   string // for people: the file's path, and the member of an archive
	name    string // the image's own file name, which may say that it is RAW
	r       io.ReaderAt
	size    int64    // bytes
	device  bool     // a block device
	holes   bool     // r may be asked for holes, if it knows any
	dir     string   // folder of the files that belong to the image, "" = there can be none
	wrapped []string // what it is wrapped in, outermost first
	member  string   // its name in the archive, "" = in none
	disk    *ovfDisk // what an OVF descriptor says of it, nil = nothing
}

// input returns the content of an opened file.
func (f *sourceFile) input() *input {
	return &input{
		label: f.path, name: filepath.Base(f.path), r: f.file, size: f.size,
		device: !f.regular, holes: f.regular, dir: filepath.Dir(f.path),
	}
}

// section returns the n bytes at off as an input of its own, called name.
func (in *input) section(name string, off, n int64) *input {
	return &input{
		label: in.label + ": " + name, name: name, r: newSection(in.r, off, n), size: n, holes: true,
		wrapped: in.wrapped, member: name,
	}
}

// newSection returns n bytes of r, which still know where they are zero if r does.
func newSection(r io.ReaderAt, off, n int64) io.ReaderAt {
	s := io.NewSectionReader(r, off, n)
	if e, ok := r.(extenter); ok {
		return sparseSection{s, e, off}
	}
	return s
}

// sparseSection is a section of a file that knows where it is zero.
type sparseSection struct {
	io.ReaderAt
	whole extenter
	off   int64
}

// Extent implements [extenter].
func (s sparseSection) Extent(start, length int64) (image.Extent, error) {
	e, err := s.whole.Extent(s.off+start, length)
	e.Start -= s.off
	return e, err
}

// within notes that in was found inside of something.
func (in *input) within(wrapper string) *input {
	in.wrapped = append(in.wrapped[:len(in.wrapped):len(in.wrapped)], wrapper)
	return in
}

// bad returns the refusal of an input, for a reason that no reader gave.
func (in *input) bad(format, reason string, args ...any) *RefusedError {
	return &RefusedError{Path: in.label, Format: format, Reason: fmt.Sprintf(reason, args...)}
}

// refusal is an error by which a reader refuses an image.
type refusal interface {
	error
	// Refusal returns what is wrong, and what to do next, which is "" if nothing helps.
	Refusal() (reason, remedy string)
}

// refuse turns a reader's complaint into a [*RefusedError] and leaves other errors what they are.
func (in *input) refuse(format string, err error) error {
	var refused *RefusedError
	var bad refusal
	switch {
	case errors.As(err, &refused):
		return refused // it names the file itself, whatever the reader said of it on the way
	case !errors.As(err, &bad):
		return fmt.Errorf("read %q: %w", in.label, err)
	}
	_, remedy := bad.Refusal()
	refused = &RefusedError{Path: in.label, Format: format, Reason: err.Error(), Remedy: remedy, Err: err}
	if f, ok := bad.(interface{ NeedsForce() bool }); ok && f.NeedsForce() {
		refused.Need = NeedForce
	}
	if s, ok := bad.(interface{ NeedsSize() bool }); ok && s.NeedsSize() {
		refused.Need = NeedVHDSize
	}
	return refused
}

// recoverPanic makes a panic of a reader the refusal of the image. The tables of an image can be
// changed by others after they were checked; should a reader rely on them after all, that is a
// damaged image and not the end of the process.
func (in *input) recoverPanic(format string, err *error) {
	if r := recover(); r != nil {
		*err = in.bad(format, "reading it failed: %v", r)
	}
}

// readHeadTail returns the first and the last bytes of the image, at most n of each.
func (in *input) readHeadTail(n int64) (head, tail []byte, err error) {
	n = min(n, in.size)
	head, tail = make([]byte, n), make([]byte, n)
	if _, err := in.r.ReadAt(head, 0); err != nil && (err != io.EOF || n != in.size) {
		return nil, nil, fmt.Errorf("read the start of %q: %w", in.label, err)
	}
	if _, err := in.r.ReadAt(tail, in.size-n); err != nil && err != io.EOF {
		return nil, nil, fmt.Errorf("read the end of %q: %w", in.label, err)
	}
	return head, tail, nil
}

// rawName tells whether the image's name says that it is a RAW disk.
func (in *input) rawName() bool { return rawName(in.name) }

// rawName tells whether a file's name says that it is a RAW disk.
func rawName(path string) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".raw", ".img", ".bin":
		return true
	}
	return false
}
