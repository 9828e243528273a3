// SPDX-License-Identifier: Apache-2.0

package vmdk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strings"
)

// Options says what [Preflight] accepts, and gives it the files that a disk of several has. The
// zero value accepts nothing out of the ordinary.
type Options struct {
	// MaxVirtualSize is the largest accepted virtual size in bytes, 0 = no limit but the format's.
	MaxVirtualSize int64
	// AllowParent accepts a disk with a parent, which the caller then has to give.
	AllowParent bool
	// Force accepts a sparse extent whose grain directory is damaged, if it has another one.
	Force bool
	// OpenExtent opens the file of that name beside the descriptor and gives its content and its
	// size in bytes. It is called once per name, in the order of the extents, and only with plain
	// file names; that the file is a regular one, no symbolic link, and neither the descriptor
	// itself nor one of those given before is for it to check. An error that is [fs.ErrNotExist]
	// says that the file is missing; others are returned as they are. The files must stay open as
	// long as the disk is used, and stay the caller's to close: there may be 4096 of them. If a
	// plain (flat) extent's content has a method Extent as image.Image has, its holes are
	// reported.
	//
	// nil refuses disks of several files.
	OpenExtent func(name string) (r io.ReaderAt, size int64, err error)
}

// Metadata is what a disk says of itself, checked.
type Metadata struct {
	Variant     string   // createType
	VirtualSize int64    // bytes, a multiple of 512
	MappedBytes int64    // bytes of the disk that its files store data for, in whole grains
	BlockSize   int64    // grain size in bytes, the largest if extents differ; 0 without sparse extents
	SectorSize  int      // bytes, always 512
	Compression string   // "zlib" if grains are compressed
	Creator     string   // "VirtualBox" if it can be told, else ""
	Features    []string // in the terms of the format
	Warnings    []string // what the user should know

	ID                 string   // content identifier (CID), 8 hexadecimal digits, "" if there is none
	ParentID           string   // that of the parent, "" if the disk has no parent
	ParentFileNameHint string   // where the parent was, printable; only to be shown
	ParentNames        []string // plain file name out of it, if it has one: a candidate

	Extents []Extent // what the disk consists of, in its order

	parts []part
}

// Extent is a stretch of the disk.
type Extent struct {
	Name   string // file name, "" for the file that was checked itself and for zeros
	Type   string // as in the descriptor: FLAT, SPARSE, ZERO, VMFS, VMFSSPARSE or SESPARSE
	Start  int64  // of the disk, in bytes
	Length int64  // bytes
	Offset int64  // bytes into the file, of FLAT
}

// part is how an extent is read.
type part struct {
	start, length int64   // bytes of the disk
	sparse        *sparse // nil for others
	flat          *file   // nil for others; with neither it is zeros
	offset        int64   // of flat, in bytes
}

const (
	giveDescriptor = "give the descriptor instead, the small text file (.vmdk) that names this one"
	remedyFlatten  = "allow parents if you trust the disk, or make it whole: remove its snapshots, clone it with " +
		"`vmkfstools -i`, or use `qemu-img convert -O qcow2` where the parents are"
	remedyDevice = "clone the disk to a file with `vmkfstools -i` or copy the device itself"
)

// Preflight checks the disk whose descriptor, or whose only sparse extent, is the size bytes of
// r: the descriptor, the headers and every entry of the tables of all extents. A bad or
// unsupported disk gives an [*Error]; errors of reading are returned as they are.
//
// It reads every table at least twice, so it takes time by what the files really hold. While it
// runs it keeps eight bytes per grain table, and a bit per grain, at most 32 MiB of those.
func Preflight(ctx context.Context, r io.ReaderAt, size int64, o Options) (*Metadata, error) {
	m := &Metadata{SectorSize: sectorSize}
	f := file{r, size}
	if size < 0 || size > math.MaxInt64/4 {
		return nil, bad("a file of %d bytes cannot be", size)
	}
	head := make([]byte, min(sectorSize, size))
	if err := f.readFull(head, 0); err != nil {
		return nil, err
	}
	var err error
	switch {
	case bytes.HasPrefix(head, []byte(magicHosted)):
		err = m.openHosted(ctx, f, head, o)
	case bytes.HasPrefix(head, []byte(magicCOWD)), bytes.HasPrefix(head, []byte(magicSESparse)):
		err = &Error{Reason: "it is one extent of a disk, and not the whole of it", Remedy: giveDescriptor}
	case size > maxDescriptorBytes:
		err = bad("it has no magic, and as a descriptor its %d bytes are more than %d", size, maxDescriptorBytes)
	default:
		err = m.openText(ctx, f, o)
	}
	if err != nil {
		return nil, err
	}
	m.describe()
	return m, nil
}

// openText opens a disk by its descriptor file.
func (m *Metadata) openText(ctx context.Context, f file, o Options) error {
	d, err := readDescriptor(f, 0, f.size, false)
	if err != nil {
		return err
	}
	return m.openFiles(ctx, d, o)
}

func readDescriptor(f file, at, length int64, embedded bool) (*descriptor, error) {
	text := make([]byte, length)
	if err := f.readFull(text, at); err != nil {
		return nil, fmt.Errorf("read the descriptor: %w", err)
	}
	return parseDescriptor(text, embedded)
}

// openHosted opens a disk by a hosted sparse extent, which it is all of, or which is but a
// container for the descriptor.
func (m *Metadata) openHosted(ctx context.Context, f file, head []byte, o Options) error {
	s, err := parseHosted(f, head, 0)
	if err != nil {
		return err
	}
	e := Extent{Type: "SPARSE", Length: s.capacity}
	if s.descriptorOffset == 0 {
		switch {
		case s.capacity == 0:
			return bad("capacity at offset 12 is 0, and there is no descriptor either")
		case !s.compressed:
			return &Error{Reason: "it is one extent of a disk, without a descriptor, and not the whole of it",
				Remedy: giveDescriptor}
		}
		// Some writers of streams leave the descriptor out. Disks of several files are never
		// compressed.
		m.Variant = streamOptimized
		m.warn("it has no descriptor; it is taken for a whole disk without a parent")
	} else {
		d, err := readDescriptor(f, s.descriptorOffset, s.descriptorBytes, s.capacity != 0)
		if err != nil {
			return err
		}
		if s.capacity == 0 {
			return m.openFiles(ctx, d, o)
		}
		if err := m.takeDescriptor(d, o); err != nil {
			return err
		}
		if err := m.checkOwnExtent(d, s.capacity); err != nil {
			return err
		}
	}
	if o.MaxVirtualSize > 0 && s.capacity > o.MaxVirtualSize {
		return bad("capacity of %d bytes, at offset 12, is above the limit of %d", s.capacity, o.MaxVirtualSize)
	}
	if err := m.addSparse(ctx, e, s, o); err != nil {
		return err
	}
	m.VirtualSize = s.capacity
	return nil
}

// checkOwnExtent checks that an embedded descriptor describes the file that it is in. The
// extent's name is of no interest, since files get renamed, and the length in the header is the
// one that counts.
func (m *Metadata) checkOwnExtent(d *descriptor, capacity int64) error {
	if _, layout := layoutOf(d.createType); layout != layoutHosted || len(d.extents) > 1 {
		return bad("createType %.100q with %d extents, in a descriptor inside of a sparse extent, means further files",
			d.createType, len(d.extents))
	}
	for _, e := range d.extents {
		if e.kind != "SPARSE" {
			return bad("the extent in the descriptor is of the type %s, but the file is a sparse extent", e.kind)
		}
		if e.sectors != capacity/sectorSize {
			m.warn("the descriptor says that the disk has %d sectors, the header %d; the header counts", e.sectors,
				capacity/sectorSize)
		}
	}
	return nil
}

// takeDescriptor takes over what a descriptor says of the disk as a whole.
func (m *Metadata) takeDescriptor(d *descriptor, o Options) error {
	name, layout := layoutOf(d.createType)
	switch layout {
	case layoutUnknown:
		return bad("createType %.100q is unknown", d.createType)
	case layoutDevice:
		return &Error{Reason: fmt.Sprintf("createType %q means a physical device, which is not opened", name),
			Remedy: remedyDevice}
	}
	m.Variant = name
	m.ID = d.cid
	if d.parentCID != "" {
		if !o.AllowParent {
			return &Error{
				Reason: fmt.Sprintf("it is a snapshot or linked clone (parentCID %s), and useless without its parent %.200q",
					d.parentCID, d.parentHint),
				Remedy: remedyFlatten,
			}
		}
		m.ParentID, m.ParentFileNameHint = d.parentCID, printable(d.parentHint)
		if n := parentName(d.parentHint); n != "" {
			m.ParentNames = []string{n}
		}
		m.feature("parent")
	}
	if d.hardware != "" {
		m.feature("virtual hardware version " + printable(d.hardware))
	}
	if d.tracked {
		m.feature("change tracking")
	}
	if d.virtualBox {
		m.Creator = "VirtualBox"
	}
	return nil
}

// openFiles opens the extents of a descriptor.
func (m *Metadata) openFiles(ctx context.Context, d *descriptor, o Options) error {
	if err := m.takeDescriptor(d, o); err != nil {
		return err
	}
	if err := m.listExtents(d, o); err != nil {
		return err
	}
	files, err := m.openExtents(ctx, o)
	if err != nil {
		return err
	}
	for i, e := range m.Extents {
		if err := m.addExtent(ctx, e, files[i], o); err != nil {
			if e.Name == "" {
				return err
			}
			return within(fmt.Sprintf("extent %d, %q", i+1, e.Name), err)
		}
	}
	return nil
}

// within says which file an error is about.
func within(what string, err error) error {
	var b *Error
	if errors.As(err, &b) {
		return &Error{Reason: what + ": " + err.Error(), Remedy: b.Remedy}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// listExtents checks the extent lines before any of them has an effect.
func (m *Metadata) listExtents(d *descriptor, o Options) error {
	if len(d.extents) == 0 {
		return bad("the descriptor has no extents")
	}
	seen := make(map[string]int)
	for i, e := range d.extents {
		switch {
		case e.access == "NOACCESS":
			return bad("extent %d, %.100q, is marked as not accessible", i+1, e.name)
		case e.kind == "VMFSRDM" || e.kind == "VMFSRAW":
			return &Error{Reason: fmt.Sprintf("extent %d is of the type %s, a physical device, which is not opened", i+1,
				e.kind), Remedy: remedyDevice}
		case e.sectors > math.MaxInt64/sectorSize-m.VirtualSize/sectorSize:
			return bad("extents 1 to %d are too large together", i+1)
		case e.offset > math.MaxInt64/sectorSize-e.sectors:
			return bad("extent %d, %d sectors from sector %d of its file on, is too large", i+1, e.sectors, e.offset)
		}
		if e.kind != "ZERO" {
			if err := checkName(e.name); err != nil {
				return &Error{
					Reason: fmt.Sprintf("the file name of extent %d, %.200q, %v", i+1, e.name, err),
					Remedy: "put the file beside the descriptor, under a plain name, and correct that line of the descriptor",
				}
			}
			if first, ok := seen[e.name]; ok {
				return bad("extents %d and %d are the same file, %q", first+1, i+1, e.name)
			}
			seen[e.name] = i
		}
		x := Extent{Type: e.kind, Name: e.name, Start: m.VirtualSize, Length: e.sectors * sectorSize,
			Offset: e.offset * sectorSize}
		m.Extents = append(m.Extents, x)
		m.VirtualSize += x.Length
	}
	if o.MaxVirtualSize > 0 && m.VirtualSize > o.MaxVirtualSize {
		return bad("the extents are %d bytes together, above the limit of %d", m.VirtualSize, o.MaxVirtualSize)
	}
	if o.OpenExtent == nil && len(seen) > 0 {
		return &Error{Reason: fmt.Sprintf("its data is in other files, such as %q, which cannot be opened from here",
			firstName(m.Extents))}
	}
	return nil
}

func firstName(extents []Extent) string {
	for _, e := range extents {
		if e.Name != "" {
			return e.Name
		}
	}
	return ""
}

// openExtents opens the files of all extents, or names those that are missing.
func (m *Metadata) openExtents(ctx context.Context, o Options) ([]file, error) {
	const mostNamed = 10
	files := make([]file, len(m.Extents))
	var missing []string
	count := 0
	for i, e := range m.Extents {
		if e.Name == "" {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r, size, err := o.OpenExtent(e.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if count++; count <= mostNamed {
				missing = append(missing, fmt.Sprintf("%q", e.Name))
			}
		case err != nil:
			return nil, fmt.Errorf("extent %d, %q: %w", i+1, e.Name, err)
		case size < 0 || size > math.MaxInt64/4:
			return nil, fmt.Errorf("extent %d, %q: a file of %d bytes cannot be", i+1, e.Name, size)
		default:
			files[i] = file{r, size}
		}
	}
	if count == 0 {
		return files, nil
	}
	if count > mostNamed {
		missing = append(missing, fmt.Sprintf("and %d more", count-mostNamed))
	}
	reason := "a file of its data is missing: "
	if count > 1 {
		reason = fmt.Sprintf("%d files of its data are missing: ", count)
	}
	return nil, &Error{Reason: reason + strings.Join(missing, ", "),
		Remedy: "put all of the disk's files into the folder of the descriptor"}
}

// addExtent checks an extent that has a file of its own.
func (m *Metadata) addExtent(ctx context.Context, e Extent, f file, o Options) error {
	switch e.Type {
	case "ZERO":
		m.parts = append(m.parts, part{start: e.Start, length: e.Length})
		return nil
	case "FLAT", "VMFS":
		return m.addFlat(e, f)
	}
	var magic [8]byte
	if err := f.readFull(magic[:min(f.size, int64(len(magic)))], 0); err != nil {
		return err
	}
	var s *sparse
	var err error
	switch {
	case e.Type == "SPARSE" && string(magic[:4]) == magicHosted:
		head := make([]byte, min(sectorSize, f.size))
		if err := f.readFull(head, 0); err != nil {
			return err
		}
		s, err = parseHosted(f, head, 0)
	case e.Type == "VMFSSPARSE" && string(magic[:4]) == magicCOWD:
		s, err = parseCOWD(f)
	case e.Type == "SESPARSE" && string(magic[:]) == magicSESparse:
		s, err = parseSESparse(f)
	default:
		return bad("the file does not begin as one of the type %s", e.Type)
	}
	if err != nil {
		return err
	}
	// Sizes in headers may be rounded up to whole grains.
	if s.capacity < e.Length || s.grain == 0 || s.capacity > roundUp(e.Length, s.grain) {
		return bad("its header has a capacity of %d bytes, the descriptor %d", s.capacity, e.Length)
	}
	return m.addSparse(ctx, e, s, o)
}

func (m *Metadata) addFlat(e Extent, f file) error {
	if e.Length > f.size-e.Offset {
		return bad("the file has %d bytes, but the extent goes up to %d; it is truncated", f.size, e.Offset+e.Length)
	}
	if e.Offset == 0 && f.size > e.Length {
		m.warn("extent %q: the file has %d bytes, of which only %d belong to the disk", e.Name, f.size, e.Length)
	}
	m.parts = append(m.parts, part{start: e.Start, length: e.Length, flat: &f, offset: e.Offset})
	m.MappedBytes += e.Length
	return nil
}

// addSparse checks the tables of a sparse extent.
func (m *Metadata) addSparse(ctx context.Context, e Extent, s *sparse, o Options) error {
	warnings, err := s.check(ctx, o.Force)
	if err != nil {
		return err
	}
	if s.indexed {
		if m.ParentID != "" {
			// Grains that are zeros although the parent's are not are told by the tables only.
			return bad("it has a parent, but no grain directory")
		}
		m.feature("no grain directory")
		m.warn("it has no grain directory; its grains were found by walking through the whole file")
	}
	for _, w := range warnings {
		if e.Name != "" {
			w = fmt.Sprintf("extent %q: %s", e.Name, w)
		}
		m.warn("%s", w)
	}
	if s.cut {
		m.warn("the file ends inside of its last grain, which is filled up with zeros")
	}
	if len(m.Extents) == 0 {
		m.Extents = []Extent{e}
	}
	m.parts = append(m.parts, part{start: e.Start, length: e.Length, sparse: s})
	m.MappedBytes += s.dataGrains * s.grain
	m.BlockSize = max(m.BlockSize, s.grain)
	if s.compressed {
		m.Compression = "zlib"
	}
	for _, f := range []struct {
		name string
		on   bool
	}{
		{"compressed grains", s.compressed}, {"markers", s.markers}, {"zeroed grains", s.zeroGrains},
		{"redundant grain directory", s.redundant != 0}, {"footer", s.footer},
	} {
		if f.on {
			m.feature(f.name)
		}
	}
	return nil
}

// describe sorts out what is only shown.
func (m *Metadata) describe() {
	const most = 100
	if n := len(m.Warnings); n > most {
		m.Warnings = append(m.Warnings[:most:most], fmt.Sprintf("there are %d more warnings", n-most))
	}
}

// feature adds a feature unless it is there.
func (m *Metadata) feature(name string) {
	for _, f := range m.Features {
		if f == name {
			return
		}
	}
	m.Features = append(m.Features, name)
}

func (m *Metadata) warn(format string, args ...any) {
	m.Warnings = append(m.Warnings, fmt.Sprintf(format, args...))
}
