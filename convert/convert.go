// SPDX-License-Identifier: Apache-2.0

// Package convert opens virtual-machine disks and turns them into their plain content.
//
// [Open] finds out which format a file has, refuses what cannot be read safely and completely, and
// returns a [Disk]: the content by offset and the ranges that are known to read as zeros.
// [Scanner], [Scan] and [WriteRAW] read a disk once, in parallel and in bounded memory.
package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/lima-vm/go-qcow2reader/image"
)

// DefaultMaxVirtualSize is the largest virtual size in bytes that [Open] accepts unless told
// otherwise: 64 TiB, far above what any cloud takes as one disk and small enough that offsets and
// block counts stay far from the limits of their types.
const DefaultMaxVirtualSize = 64 << 40

// OpenOptions says what [Open] may do. The zero value is the safe choice.
type OpenOptions struct {
	// Format is the image's format, one of [FormatNames]; "" finds it by content.
	Format string
	// AllowBacking permits backing files, parent disks and external data files, which must be regular
	// files with plain names in the folder of the file that names them, or in one of BackingDirs.
	AllowBacking bool
	// BackingDirs are further folders where those may lie.
	BackingDirs []string
	// Force accepts an image that says of itself that it is damaged but that is readable.
	Force bool
	// OriginalSize takes the size of the disk that a ZVHD or ZVHD2 image was made from, instead of
	// the size that the cloud shows, which is the original one rounded up to whole GiB.
	OriginalSize bool
	// ScratchDir is a folder for the unpacked copy of a compressed image, which takes as much room
	// as the image has data and is gone when the disk is closed; "" = they are unpacked in memory,
	// piece by piece and as often as it takes, and refused if that is too often. The context given to
	// [Open] must live as long as such a disk.
	ScratchDir string
	// ArchiveDisk is the name of a disk's file in an archive that has several, such as an OVA.
	ArchiveDisk string
	// VHDSize says which of the two sizes that a VHD states counts: [VHDSizeCurrent], [VHDSizeGeometry],
	// or "" for what the creator's own tool shows.
	VHDSize string
	// MaxVirtualSize is the largest accepted virtual size in bytes; 0 means
	// [DefaultMaxVirtualSize].
	MaxVirtualSize int64

	window int64 // bytes of unpacked data kept, 0 = forwardWindow
}

// Values of [OpenOptions].VHDSize, as QEMU names them.
const (
	VHDSizeCurrent  = "current_size" // in bytes
	VHDSizeGeometry = "chs"          // cylinders × heads × sectors
)

// RefusedError says that a disk image is damaged, hostile, not supported, or needs something that
// was not allowed.
type RefusedError struct {
	Path   string // the file, as it was named
	Format string // its format, "" if unknown
	Reason string // what is wrong; strings out of the image are quoted
	Remedy string // what to do next, "" if nothing helps
	Need   Need   // what would let the disk be opened, "" if nothing would
	Err    error  // the cause, may be nil

	missing bool // a file that it needs was not found
}

// Need is what a refused disk lacks, for a caller who can name the option that gives it.
type Need string

// What a disk may need.
const (
	NeedBacking Need = "backing" // [OpenOptions].AllowBacking: it is based on other files
	NeedFormat  Need = "format"  // [OpenOptions].Format: its content does not tell
	NeedForce   Need = "force"   // [OpenOptions].Force: it is marked as damaged
	NeedScratch Need = "scratch" // [OpenOptions].ScratchDir: it must be unpacked first
	NeedDisk    Need = "disk"    // [OpenOptions].ArchiveDisk: there are several
	NeedVHDSize Need = "size"    // [OpenOptions].VHDSize: its two sizes differ, and data is between them
)

// Error gives path, format, reason and remedy in one line.
func (e *RefusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q: ", e.Path)
	if e.Format != "" {
		fmt.Fprintf(&b, "%s image ", e.Format)
	}
	b.WriteString("refused: " + e.Reason)
	if e.Remedy != "" {
		b.WriteString("; " + e.Remedy)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// Info describes an open disk. Of what a format does not have, the field is empty.
type Info struct {
	Path         string   `json:"path"`
	Wrapped      []string `json:"wrapped_in,omitempty"` // what the image is wrapped in, outermost first
	Member       string   `json:"member,omitempty"`     // the image's file in an archive
	Streamed     bool     `json:"streamed,omitempty"`   // a compressed file is unpacked as it is read
	Format       string   `json:"format"`
	Variant      string   `json:"variant,omitempty"`       // in the terms of the format
	Creator      string   `json:"creator,omitempty"`       // the program that wrote the image
	VirtualSize  int64    `json:"virtual_size"`            // bytes of the disk
	OriginalSize int64    `json:"original_size,omitempty"` // bytes of the disk that a ZVHD or ZVHD2 was made from
	FileSize     int64    `json:"file_size"`               // length of the file in bytes
	DiskSize     int64    `json:"disk_size,omitempty"`     // bytes the file occupies, 0 if not known
	MappedSize   int64    `json:"mapped_size,omitempty"`   // bytes of the disk that this file maps to data
	ClusterSize  int64    `json:"cluster_size,omitempty"`  // bytes of a cluster, grain or block
	SectorSize   int      `json:"sector_size,omitempty"`   // bytes of a logical sector
	Compression  string   `json:"compression,omitempty"`   // of compressed clusters: "zlib" or "zstd"
	Compressed   int64    `json:"compressed_clusters"`     // number of compressed clusters, as far as it is known
	Features     []string `json:"features,omitempty"`      // as the format names them
	Extents      []string `json:"extent_files,omitempty"`  // further files that the disk's data is in
	Backing      []string `json:"backing,omitempty"`       // files of the chain, nearest first
	Snapshots    int      `json:"snapshots"`               // internal snapshots, which are not converted
	Warnings     []string `json:"warnings,omitempty"`      // what the user should know
}

// Disk is an open disk image. It implements image.Image of go-qcow2reader; ReadAt and Extent are
// safe for concurrent use.
type Disk struct {
	img   image.Image
	in    *input
	files []*sourceFile // every file that was opened, the image's own first
	temps []io.Closer   // unpacked copies
	// layers are the images of the chain, the disk's own first.
	layers []layer
	info   Info

	closeOnce sync.Once
	closeErr  error
}

var _ image.Image = (*Disk)(nil)

// Open opens the disk image at path for reading. It opens no other file unless AllowBacking is set,
// but for those that hold the disk's own data: the extents of a VMDK and the disk of an OVF, which
// must be regular files with plain names in the folder of the file that names them.
//
// The image is checked completely before it is read: every header field and every mapping table. A
// bad image gives a [*RefusedError]; a file that cannot be opened or read gives the plain error.
func Open(ctx context.Context, path string, o OpenOptions) (*Disk, error) {
	if o.Format != "" {
		f, ok := lookupFormat(o.Format)
		if !ok {
			return nil, fmt.Errorf("open %q: unknown format %q, want one of %s",
				path, o.Format, strings.Join(FormatNames(), ", "))
		}
		o.Format = f.name
	}
	if !slices.Contains([]string{"", VHDSizeCurrent, VHDSizeGeometry}, o.VHDSize) {
		return nil, fmt.Errorf("open %q: unknown size rule of VHD %q, want %s or %s", path, o.VHDSize, VHDSizeCurrent, VHDSizeGeometry)
	}
	if o.MaxVirtualSize < 0 {
		return nil, fmt.Errorf("open %q: negative maximal virtual size", path)
	}
	if o.MaxVirtualSize == 0 {
		o.MaxVirtualSize = DefaultMaxVirtualSize
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := openSource(path)
	if err != nil {
		return nil, err
	}
	d := &Disk{files: []*sourceFile{f}}
	if err := d.open(ctx, o); err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

// open builds the reader of d.files[0] and of what it is based on.
func (d *Disk) open(ctx context.Context, o OpenOptions) error {
	f := d.files[0]
	in, err := d.unwrap(ctx, f.input(), o)
	if err != nil {
		return err
	}
	d.in = in
	format, warnings, err := chooseFormat(in, o.Format)
	if err != nil {
		return err
	}
	c := &chain{d: d, o: o}
	top, img, err := c.open(ctx, in, format, nil)
	if err != nil {
		return err
	}
	d.img = img
	d.checkCapacity(in, img.Size())
	info := top.info
	info.Path, info.Wrapped, info.Member, info.Format = f.path, in.wrapped, in.member, format.name
	info.Streamed = d.info.Streamed
	info.VirtualSize, info.FileSize, info.DiskSize = img.Size(), f.size, f.allocated
	info.Extents, info.Backing = c.extents, c.backing
	info.Warnings = slices.Concat(d.info.Warnings, warnings, info.Warnings, c.warnings)
	d.info = info
	return nil
}

// warn notes what the user should know of the files that the image is in.
func (d *Disk) warn(format string, args ...any) {
	d.info.Warnings = append(d.info.Warnings, fmt.Sprintf(format, args...))
}

// ReadAt implements [io.ReaderAt]. It reads exactly min(len(p), size-off) bytes or fails. A damaged
// part of the image gives a [*RefusedError].
func (d *Disk) ReadAt(p []byte, off int64) (n int, err error) {
	defer d.in.recoverPanic(d.info.Format, &err)
	n, err = d.img.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = d.in.refuse(d.info.Format, err)
	}
	return n, err
}

// Extent returns the first range of start..start+length, which must lie within the disk, whose
// bytes are stored alike. An extent with Zero set reads as zeros.
func (d *Disk) Extent(start, length int64) (e image.Extent, err error) {
	defer d.in.recoverPanic(d.info.Format, &err)
	e, err = d.img.Extent(start, length)
	if err != nil {
		err = d.in.refuse(d.info.Format, err)
	}
	return e, err
}

// Size returns the virtual size in bytes.
func (d *Disk) Size() int64 { return d.img.Size() }

// Type returns the format.
func (d *Disk) Type() image.Type { return image.Type(d.info.Format) }

// Readable returns nil: what cannot be read is not opened.
func (d *Disk) Readable() error { return nil }

// Info describes the disk.
func (d *Disk) Info() Info {
	i := d.info
	for _, list := range []*[]string{&i.Wrapped, &i.Features, &i.Extents, &i.Backing, &i.Warnings} {
		*list = slices.Clone(*list)
	}
	return i
}

// CheckUnchanged returns an error if one of the disk's files changed since it was opened: in size,
// in modification time, or because another file took its name. What was read may then be a mixture.
func (d *Disk) CheckUnchanged() error {
	for _, f := range d.files {
		if err := f.checkUnchanged(); err != nil {
			return err
		}
	}
	return nil
}

// isSource tells whether fi is one of the disk's files.
func (d *Disk) isSource(fi os.FileInfo) bool {
	for _, f := range d.files {
		if os.SameFile(f.info, fi) {
			return true
		}
	}
	return false
}

// Close closes every file of the disk and removes unpacked copies. Closing twice is allowed.
func (d *Disk) Close() error {
	d.closeOnce.Do(func() {
		var errs []error
		for _, t := range d.temps { // first: one that is streamed reads a file
			errs = append(errs, t.Close())
		}
		for _, f := range d.files {
			errs = append(errs, f.file.Close())
		}
		d.closeErr = errors.Join(errs...)
	})
	return d.closeErr
}
