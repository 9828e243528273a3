// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"
)

// headerBytes is how much of each file goes into an [Identity]: the headers and first tables of every
// format, and little enough to read in no time.
const headerBytes = 64 << 10

// ErrNoIdentity says that nothing would show that a source changed: a block device has no time of its
// last change.
var ErrNoIdentity = errors.New("it is a block device, which doesn't tell when it was written to")

// Identity tells a disk from another, and from itself after it was written to, without reading all of
// it. It can be kept as JSON.
type Identity struct {
	Format      string         `json:"format"`
	Member      string         `json:"member,omitempty"` // the disk's file in an archive
	VirtualSize int64          `json:"virtual_size"`     // bytes
	Files       []FileIdentity `json:"files"`            // every file that the disk's data is in, the named one first
}

// FileIdentity is what tells one file.
type FileIdentity struct {
	Name    string    `json:"name"`         // without its folder
	Size    int64     `json:"size"`         // bytes
	ModTime time.Time `json:"mtime"`        // as finely as the file system has it
	ID      string    `json:"id,omitempty"` // inode or file index, "" where there is none
	Header  string    `json:"header"`       // SHA-256 of the first 64 KiB, in hexadecimal
}

// Identity reads the first bytes of every file of the disk. It returns [ErrNoIdentity] in the chain of
// its error for a disk on a block device.
func (d *Disk) Identity() (Identity, error) {
	id := Identity{Format: d.info.Format, Member: d.info.Member, VirtualSize: d.Size()}
	for _, f := range d.files {
		file, err := f.identity()
		if err != nil {
			return Identity{}, fmt.Errorf("identify %q: %w", f.path, err)
		}
		id.Files = append(id.Files, file)
	}
	return id, nil
}

func (f *sourceFile) identity() (FileIdentity, error) {
	if !f.regular {
		return FileIdentity{}, ErrNoIdentity
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f.file, 0, headerBytes)); err != nil {
		return FileIdentity{}, err
	}
	return FileIdentity{
		Name:    filepath.Base(f.path),
		Size:    f.size,
		ModTime: f.info.ModTime().UTC(),
		ID:      fileID(f),
		Header:  hex.EncodeToString(h.Sum(nil)),
	}, nil
}

// Differs says in what the disk differs from how it was, as far as that would show in a copy of it on another
// machine: as [Identity.Changed], but for times and file numbers.
func (i Identity) Differs(was Identity) string {
	i.Files = slices.Clone(i.Files)
	for n := range min(len(i.Files), len(was.Files)) {
		i.Files[n].ModTime, i.Files[n].ID = was.Files[n].ModTime, was.Files[n].ID
	}
	return i.Changed(was)
}

// Changed says in what the disk differs from how it was, "" if it is the same.
func (i Identity) Changed(was Identity) string {
	switch {
	case i.Format != was.Format:
		return fmt.Sprintf("it is read as %s, not as %s", i.Format, was.Format)
	case i.Member != was.Member:
		return fmt.Sprintf("the disk in it is %q, not %q", i.Member, was.Member)
	case i.VirtualSize != was.VirtualSize:
		return fmt.Sprintf("the disk has %d bytes, it had %d", i.VirtualSize, was.VirtualSize)
	case len(i.Files) != len(was.Files):
		return fmt.Sprintf("it is in %d files, it was in %d", len(i.Files), len(was.Files))
	}
	for n, f := range i.Files {
		w := was.Files[n]
		switch {
		case f.Size != w.Size:
			return fmt.Sprintf("%q has %d bytes, it had %d", f.Name, f.Size, w.Size)
		case !f.ModTime.Equal(w.ModTime):
			return fmt.Sprintf("%q was written to", f.Name)
		case f.Header != w.Header:
			return fmt.Sprintf("the first bytes of %q are others", f.Name)
		case f.ID != w.ID:
			return fmt.Sprintf("%q is another file of the same name", f.Name)
		}
	}
	return ""
}
