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
	"path/filepath"
	"strings"
	"sync"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/qcow2"
	"github.com/imsprep/imsprep/convert/raw"
)

// Format names that [OpenOptions].Format accepts.
const (
	FormatQCOW2 = "qcow2"
	FormatRAW   = "raw"
)

// DefaultMaxVirtualSize is the largest virtual size in bytes that [Open] accepts unless told
// otherwise: 64 TiB, far above what any cloud takes as one disk and small enough that offsets and
// block counts stay far from the limits of their types.
const DefaultMaxVirtualSize = 64 << 40

// maxChainDepth bounds a backing chain: a chain this long is a mistake or an attack.
const maxChainDepth = 64

// OpenOptions says what [Open] may do. The zero value is the safe choice.
type OpenOptions struct {
	// Format is the source's format, one of [FormatNames]; "" finds it by content.
	Format string
	// AllowBacking permits backing files, which must be regular files with plain names in the folder
	// of the file that names them, or in one of BackingDirs.
	AllowBacking bool
	// BackingDirs are further folders where backing files may lie.
	BackingDirs []string
	// Force accepts an image that says of itself that it is damaged but that is readable.
	Force bool
	// MaxVirtualSize is the largest accepted virtual size in bytes; 0 means [DefaultMaxVirtualSize].
	MaxVirtualSize int64
}

// FormatNames lists the values of [OpenOptions].Format, sorted.
func FormatNames() []string { return []string{FormatQCOW2, FormatRAW} }

// RefusedError says that a disk image is damaged, hostile, not supported, or needs something that
// was not allowed.
type RefusedError struct {
	Path   string // the file, as it was named
	Format string // its format, "" if unknown
	Reason string // what is wrong; strings out of the image are quoted
	Remedy string // what to do next, "" if nothing helps
	Need   Need   // what would let the disk be opened, "" if nothing would
	Err    error  // the cause, may be nil
}

// Need is what a refused disk lacks, for a caller who can name the option that gives it.
type Need string

// What a disk may need.
const (
	NeedBacking Need = "backing" // [OpenOptions].AllowBacking: it is based on other files
	NeedFormat  Need = "format"  // [OpenOptions].Format: its content does not tell
	NeedForce   Need = "force"   // [OpenOptions].Force: it is marked as damaged
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

// Info describes an open disk.
type Info struct {
	Path        string   `json:"path"`
	Format      string   `json:"format"`
	Variant     string   `json:"variant,omitempty"`      // for example "version 3"
	VirtualSize int64    `json:"virtual_size"`           // bytes of the disk
	FileSize    int64    `json:"file_size"`              // length of the file in bytes
	DiskSize    int64    `json:"disk_size,omitempty"`    // bytes the file occupies, 0 if not known
	MappedSize  int64    `json:"mapped_size,omitempty"`  // bytes of the disk that this file maps to data
	ClusterSize int64    `json:"cluster_size,omitempty"` // bytes
	Compression string   `json:"compression,omitempty"`  // of compressed clusters: "zlib" or "zstd"
	Compressed  int64    `json:"compressed_clusters"`    // number of compressed clusters
	Features    []string `json:"features,omitempty"`     // as the format names them
	Backing     []string `json:"backing,omitempty"`      // files of the chain, nearest first
	Snapshots   int      `json:"snapshots"`              // internal snapshots, which are not converted
	Warnings    []string `json:"warnings,omitempty"`     // what the user should know
}

// Disk is an open disk image. It implements image.Image of go-qcow2reader; ReadAt and Extent are
// safe for concurrent use.
type Disk struct {
	img   image.Image
	files []*sourceFile // the image and then its backing files
	info  Info

	closeOnce sync.Once
	closeErr  error
}

var _ image.Image = (*Disk)(nil)

// Open opens the disk image at path for reading. It opens no other file unless AllowBacking is set.
//
// The image is checked completely before it is read: every header field and every mapping table. A
// bad image gives a [*RefusedError]; a file that cannot be opened or read gives the plain error.
func Open(ctx context.Context, path string, o OpenOptions) (*Disk, error) {
	switch o.Format {
	case "", FormatQCOW2, FormatRAW:
	default:
		return nil, fmt.Errorf("open %q: unknown format %q, want one of %s",
			path, o.Format, strings.Join(FormatNames(), ", "))
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
	format, warnings, err := chooseFormat(f, o.Format)
	if err != nil {
		return err
	}
	d.info = Info{
		Path: f.path, Format: format, FileSize: f.size, DiskSize: f.allocated, Warnings: warnings,
	}
	d.img, err = d.openFormat(ctx, f, format, o, &d.info)
	if err != nil {
		return err
	}
	d.info.VirtualSize = d.img.Size()
	for _, parent := range d.files[1:] {
		d.info.Backing = append(d.info.Backing, parent.path)
	}
	return nil
}

// openFormat opens f, which is known to be of the format, and its backing chain. It fills in info
// unless that is nil.
func (d *Disk) openFormat(
	ctx context.Context, f *sourceFile, format string, o OpenOptions, info *Info,
) (image.Image, error) {
	if format == FormatRAW {
		if f.size == 0 {
			return nil, &RefusedError{Path: f.path, Format: format, Reason: "the file is empty"}
		}
		if f.size > o.MaxVirtualSize {
			return nil, &RefusedError{Path: f.path, Format: format, Reason: fmt.Sprintf(
				"virtual size %d is above the limit of %d bytes", f.size, o.MaxVirtualSize)}
		}
		img, err := raw.New(f.file, f.size, f.regular)
		if err != nil {
			return nil, fmt.Errorf("open %q: %w", f.path, err)
		}
		if info != nil && f.size%512 != 0 {
			info.Warnings = append(info.Warnings, fmt.Sprintf(
				"the size of %d bytes is not a multiple of 512; it is kept as it is", f.size))
		}
		return img, nil
	}
	meta, err := qcow2.Preflight(ctx, f.file, f.size, qcow2.Options{
		AllowBacking:   true, // openBacking decides
		Force:          o.Force,
		MaxVirtualSize: o.MaxVirtualSize,
	})
	if err != nil {
		return nil, f.refuse(format, err)
	}
	if info != nil {
		info.Variant = fmt.Sprintf("version %d", meta.Version)
		info.ClusterSize = meta.ClusterSize
		info.Compression = meta.Compression
		info.Compressed = meta.CompressedClusters
		info.MappedSize = meta.MappedBytes
		info.Features = meta.Features
		info.Snapshots = meta.Snapshots
		info.Warnings = append(info.Warnings, meta.Warnings...)
	}
	var parent image.Image
	if meta.BackingFile != "" {
		if parent, err = d.openBacking(ctx, f, meta, o); err != nil {
			return nil, err
		}
	}
	img, err := meta.Open(parent)
	if err != nil {
		return nil, f.refuse(format, err)
	}
	return img, nil
}

// openBacking opens the file that the QCOW2 image child names as its backing file.
func (d *Disk) openBacking(
	ctx context.Context, child *sourceFile, meta *qcow2.Metadata, o OpenOptions,
) (image.Image, error) {
	refuse := func(remedy, reason string, args ...any) error {
		return &RefusedError{Path: child.path, Format: FormatQCOW2,
			Reason: fmt.Sprintf(reason, args...), Remedy: remedy}
	}
	name := meta.BackingFile
	if !o.AllowBacking {
		return nil, &RefusedError{Path: child.path, Format: FormatQCOW2, Need: NeedBacking,
			Reason: fmt.Sprintf("it has a backing file %q, and backing files are not followed unless allowed", name),
			Remedy: "allow backing files if you trust the image, or make it self-contained with " +
				"`qemu-img convert -O qcow2`"}
	}
	switch meta.BackingFormat {
	case FormatQCOW2, FormatRAW:
	case "":
		return nil, refuse("state it with `qemu-img rebase -u -F FORMAT -b BACKING IMAGE`",
			"it does not state the format of its backing file %q", name)
	default:
		return nil, refuse("flatten the image with `qemu-img convert`",
			"its backing file %q is said to be of the format %q, which cannot be read",
			name, meta.BackingFormat)
	}
	if err := checkPlainName(name); err != nil {
		return nil, refuse("put the file beside the image and name it with "+
			"`qemu-img rebase -u -F FORMAT -b NAME IMAGE`", "its backing file %q %v", name, err)
	}
	if len(d.files) > maxChainDepth {
		return nil, refuse("flatten the image with `qemu-img convert`",
			"its backing chain is longer than %d files", maxChainDepth)
	}
	f, err := openSibling(append([]string{filepath.Dir(child.path)}, o.BackingDirs...), name)
	if err != nil {
		var refused *siblingError
		if errors.As(err, &refused) {
			return nil, refuse("", "its backing file %q %s", name, refused.reason)
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil, refuse("put the file beside the image or name its folder",
				"its backing file %q was not found", name)
		}
		return nil, fmt.Errorf("open the backing file of %q: %w", child.path, err)
	}
	for _, seen := range d.files {
		if os.SameFile(seen.info, f.info) {
			_ = f.file.Close()
			return nil, refuse("", "its backing chain contains %q twice", name)
		}
	}
	d.files = append(d.files, f)
	// The stated format is binding: a guest may have written anything at the start of a RAW disk.
	_, warnings, err := chooseFormat(f, meta.BackingFormat)
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		d.info.Warnings = append(d.info.Warnings, fmt.Sprintf("backing file %q: %s", name, w))
	}
	return d.openFormat(ctx, f, meta.BackingFormat, o, nil)
}

// refuse turns a reader's complaint into a [*RefusedError] and leaves other errors what they are.
func (f *sourceFile) refuse(format string, err error) error {
	var bad *qcow2.Error
	if errors.As(err, &bad) {
		refused := &RefusedError{Path: f.path, Format: format, Reason: err.Error(), Remedy: bad.Remedy, Err: err}
		if bad.Forcible {
			refused.Need = NeedForce
		}
		return refused
	}
	return fmt.Errorf("read %q: %w", f.path, err)
}

// ReadAt implements [io.ReaderAt]. It reads exactly min(len(p), size-off) bytes or fails. A damaged
// part of the image gives a [*RefusedError].
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.img.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = d.files[0].refuse(d.info.Format, err)
	}
	return n, err
}

// Extent returns the first range of start..start+length, which must lie within the disk, whose
// bytes are stored alike. An extent with Zero set reads as zeros.
func (d *Disk) Extent(start, length int64) (image.Extent, error) {
	e, err := d.img.Extent(start, length)
	if err != nil {
		err = d.files[0].refuse(d.info.Format, err)
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
	i.Features = append([]string(nil), i.Features...)
	i.Backing = append([]string(nil), i.Backing...)
	i.Warnings = append([]string(nil), i.Warnings...)
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

// Close closes every file of the disk. Closing twice is allowed.
func (d *Disk) Close() error {
	d.closeOnce.Do(func() {
		var errs []error
		for _, f := range d.files {
			errs = append(errs, f.file.Close())
		}
		d.closeErr = errors.Join(errs...)
	})
	return d.closeErr
}
