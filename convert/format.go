// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/qcow1"
	"github.com/imsprep/imsprep/convert/qcow2"
	"github.com/imsprep/imsprep/convert/qed"
	"github.com/imsprep/imsprep/convert/raw"
	"github.com/imsprep/imsprep/convert/vdi"
	"github.com/imsprep/imsprep/convert/vhd"
	"github.com/imsprep/imsprep/convert/vhdx"
	"github.com/imsprep/imsprep/convert/vmdk"
	"github.com/imsprep/imsprep/convert/zvhd"
	"github.com/imsprep/imsprep/convert/zvhd2"
)

// Format names that [OpenOptions].Format accepts.
const (
	FormatQCOW  = "qcow" // version 1
	FormatQCOW2 = "qcow2"
	FormatQED   = "qed"
	FormatRAW   = "raw"
	FormatVDI   = "vdi"
	FormatVHD   = "vhd"
	FormatVHDX  = "vhdx"
	FormatVMDK  = "vmdk"
	FormatZVHD  = "zvhd"
	FormatZVHD2 = "zvhd2"
)

// format is a row of the table of formats: all that this package knows of one.
type format struct {
	name    string
	aliases []string // what other tools call it
	match   func(head, tail []byte) bool

	// check runs the format's preflight over an image and says in common terms what it found.
	check func(ctx context.Context, in *input, o checkOptions) (*checked, error)
}

// checkOptions is what a format's check may use.
type checkOptions struct {
	force          bool
	originalSize   bool
	vhdSize        string
	maxVirtualSize int64
	// extent opens another file that the disk's own data is in; dataFile does so if that was allowed.
	extent, dataFile func(name string) (io.ReaderAt, int64, error)
}

// checked is an image that passed its format's preflight. That it has a parent is only stated here:
// whether that may be opened is not the format's to decide.
type checked struct {
	info   Info // without what the file itself tells
	id     string
	parent *parentRef
	open   func(parent image.Image) (image.Image, error)
}

// parentRef is what an image says of the disk that it is based on. The names are the image
// author's.
type parentRef struct {
	what   string   // "backing file" or "parent disk"
	names  []string // what its file may be called, the likeliest one first
	format string   // its format, stated or implied, "" = to be told by its content
	// unstated says how to state the format, if an image that does not is refused.
	unstated string
	// verify returns why an opened disk is not the one that is meant, nil = nothing is known of it.
	verify func(parent *checked) string
}

// formats is the table of all formats that are read.
var formats = []format{
	{FormatQCOW, []string{"qcow1"}, isQCOW(func(v uint32) bool { return v == 1 }), checkQCOW1},
	{FormatQCOW2, nil, isQCOW(func(v uint32) bool { return v != 1 }), checkQCOW2},
	{FormatQED, nil, magicAt(0, "QED\x00"), checkQED},
	{FormatRAW, nil, nil, checkRAW},
	{FormatVDI, nil, magicAt(64, "\x7F\x10\xDA\xBE"), checkVDI},
	{FormatVHD, []string{"vpc"},
		anyOf(magicAt(0, "conectix"), tailMagic(512, "conectix"), tailMagic(511, "conectix")), checkVHD},
	{FormatVHDX, nil, magicAt(0, "vhdxfile"), checkVHDX},
	{FormatVMDK, nil, isVMDK, checkVMDK},
	{FormatZVHD, nil, magicAt(0, "stream\x00\x00"), checkZVHD},
	{FormatZVHD2, nil, magicAt(0, "z2strm"), checkZVHD2},
}

// FormatNames lists the values of [OpenOptions].Format, sorted. The names that qemu-img has for
// them are accepted, too.
func FormatNames() []string {
	names := make([]string, len(formats))
	for i, f := range formats {
		names[i] = f.name
	}
	slices.Sort(names)
	return names
}

// lookupFormat finds a format by its name or another that it is known by.
func lookupFormat(name string) (*format, bool) {
	for i := range formats {
		if f := &formats[i]; f.name == name || slices.Contains(f.aliases, name) {
			return f, true
		}
	}
	return nil, false
}

func checkRAW(_ context.Context, in *input, o checkOptions) (*checked, error) {
	switch {
	case in.size == 0:
		return nil, in.bad(FormatRAW, "the file is empty")
	case in.size > o.maxVirtualSize:
		return nil, in.bad(FormatRAW, "virtual size %d is above the limit of %d bytes", in.size, o.maxVirtualSize)
	}
	c := &checked{open: func(image.Image) (image.Image, error) { return raw.New(in.r, in.size, in.holes) }}
	if in.size%512 != 0 {
		c.info.Warnings = append(c.info.Warnings, fmt.Sprintf(
			"the size of %d bytes is not a multiple of 512; it is kept as it is", in.size))
	}
	return c, nil
}

func checkQCOW1(ctx context.Context, in *input, o checkOptions) (*checked, error) {
	m, err := qcow1.Preflight(ctx, in.r, in.size, qcow1.Options{AllowParent: true, MaxVirtualSize: o.maxVirtualSize})
	if err != nil {
		return nil, err
	}
	return &checked{
		info: Info{
			ClusterSize: m.BlockSize, MappedSize: m.MappedBytes, SectorSize: m.SectorSize,
			Compression: m.Compression, Compressed: m.CompressedClusters, Features: m.Features, Warnings: m.Warnings,
		},
		parent: backingFile(m.BackingFile, m.BackingFormat, ""),
		open:   m.Open,
	}, nil
}

func checkQCOW2(ctx context.Context, in *input, o checkOptions) (*checked, error) {
	m, err := qcow2.Preflight(ctx, in.r, in.size, qcow2.Options{
		AllowBacking: true, Force: o.force, MaxVirtualSize: o.maxVirtualSize, OpenDataFile: o.dataFile,
	})
	if err != nil {
		return nil, err
	}
	return &checked{
		info: Info{
			Variant: fmt.Sprintf("version %d", m.Version), ClusterSize: m.ClusterSize, MappedSize: m.MappedBytes,
			Compression: m.Compression, Compressed: m.CompressedClusters,
			Features: m.Features, Snapshots: m.Snapshots, Warnings: m.Warnings,
		},
		parent: backingFile(m.BackingFile, m.BackingFormat,
			"state it with `qemu-img rebase -u -F FORMAT -b BACKING IMAGE`"),
		open: func(parent image.Image) (image.Image, error) { return m.Open(parent) },
	}, nil
}

// backingFile is the parent of an image of QEMU's, nil if name is "".
func backingFile(name, format, unstated string) *parentRef {
	if name == "" {
		return nil
	}
	return &parentRef{what: "backing file", names: []string{name}, format: format, unstated: unstated}
}

func checkQED(ctx context.Context, in *input, o checkOptions) (*checked, error) {
	m, err := qed.Preflight(ctx, in.r, in.size, qed.Options{AllowParent: true, MaxVirtualSize: o.maxVirtualSize})
	if err != nil {
		return nil, err
	}
	return &checked{
		info: Info{
			ClusterSize: m.BlockSize, MappedSize: m.MappedBytes, SectorSize: m.SectorSize,
			Features: m.Features, Warnings: m.Warnings,
		},
		parent: backingFile(m.BackingFile, m.BackingFormat, ""),
		open:   m.Open,
	}, nil
}

func checkVDI(ctx context.Context, in *input, o checkOptions) (*checked, error) {
	m, err := vdi.Preflight(ctx, in.r, in.size, vdi.Options{MaxVirtualSize: o.maxVirtualSize})
	if err != nil {
		return nil, err
	}
	return &checked{
		info: Info{
			Variant: m.Variant, ClusterSize: m.BlockSize, MappedSize: m.MappedBytes, SectorSize: m.SectorSize,
			Creator: m.Creator, Features: m.Features, Warnings: m.Warnings,
		},
		id:   m.ID,
		open: m.Open,
	}, nil
}

func checkVHD(ctx context.Context, in *input, o checkOptions) (*checked, error) {
	rule := map[string]vhd.SizeRule{VHDSizeCurrent: vhd.SizeCurrent, VHDSizeGeometry: vhd.SizeGeometry}[o.vhdSize]
	m, err := vhd.Preflight(ctx, in.r, in.size, vhd.Options{AllowParent: true, Size: rule, MaxVirtualSize: o.maxVirtualSize})
	if err != nil {
		return nil, err
	}
	c := &checked{
		info: Info{
			Variant: m.Variant, ClusterSize: m.BlockSize, MappedSize: m.MappedBytes, SectorSize: m.SectorSize,
			Creator: m.Creator, Features: m.Features, Warnings: m.Warnings,
		},
		id:   m.ID,
		open: m.Open,
	}
	if m.Variant == vhd.VariantDifferencing {
		c.parent = parentDisk(FormatVHD, m.ParentNames, "unique id", m.ParentID)
	}
	return c, nil
}

func checkVHDX(ctx context.Context, in *input, o checkOptions) (*checked, error) {
	m, err := vhdx.Preflight(ctx, in.r, in.size, vhdx.Options{AllowParent: true, MaxVirtualSize: o.maxVirtualSize})
	if err != nil {
		return nil, err
	}
	c := &checked{
		info: Info{
			Variant: m.Variant, ClusterSize: m.BlockSize, MappedSize: m.MappedBytes, SectorSize: m.SectorSize,
			Creator: m.Creator, Features: m.Features, Warnings: m.Warnings,
		},
		id:   m.ID,
		open: m.Open,
	}
	if m.Variant == vhdx.VariantDifferencing {
		ids := []string{m.ParentID}
		if m.ParentID2 != "" {
			ids = append(ids, m.ParentID2)
		}
		c.parent = parentDisk(FormatVHDX, m.ParentNames, "data write GUID", ids...)
		sameID := c.parent.verify
		c.parent.verify = func(parent *checked) string {
			if parent.info.SectorSize != m.SectorSize {
				return fmt.Sprintf("has sectors of %d bytes, not of %d", parent.info.SectorSize, m.SectorSize)
			}
			return sameID(parent)
		}
	}
	return c, nil
}

// parentDisk is the parent of a differencing disk, which has the child's format and one of the
// identities that the child states; what is what the format calls those.
func parentDisk(format string, names []string, what string, ids ...string) *parentRef {
	return &parentRef{what: "parent disk", names: names, format: format, verify: func(parent *checked) string {
		if slices.Contains(ids, parent.id) {
			return ""
		}
		return fmt.Sprintf("has the %s %s, not %s", what, parent.id, strings.Join(ids, " or "))
	}}
}

func checkVMDK(ctx context.Context, in *input, o checkOptions) (*checked, error) {
	m, err := vmdk.Preflight(ctx, in.r, in.size, vmdk.Options{
		AllowParent: true, Force: o.force, MaxVirtualSize: o.maxVirtualSize, OpenExtent: o.extent,
	})
	if err != nil {
		return nil, err
	}
	c := &checked{
		info: Info{
			Variant: m.Variant, ClusterSize: m.BlockSize, MappedSize: m.MappedBytes, SectorSize: m.SectorSize,
			Compression: m.Compression, Creator: m.Creator, Features: m.Features, Warnings: m.Warnings,
		},
		id:   m.ID,
		open: m.Open,
	}
	if m.ParentID != "" {
		c.parent = parentDisk(FormatVMDK, m.ParentNames, "CID", m.ParentID)
	}
	return c, nil
}

func checkZVHD(ctx context.Context, in *input, o checkOptions) (*checked, error) {
	m, err := zvhd.Preflight(ctx, in.r, in.size, zvhd.Options{
		MaxVirtualSize: o.maxVirtualSize, OriginalSize: o.originalSize,
	})
	if err != nil {
		return nil, err
	}
	return &checked{
		info: Info{
			Variant: m.Variant, ClusterSize: m.BlockSize, MappedSize: m.MappedBytes, SectorSize: m.SectorSize,
			Compression: m.Compression, Creator: m.Creator, OriginalSize: m.OriginalSize,
			Features: m.Features, Warnings: m.Warnings,
		},
		open: m.Open,
	}, nil
}

func checkZVHD2(ctx context.Context, in *input, o checkOptions) (*checked, error) {
	m, err := zvhd2.Preflight(ctx, in.r, in.size, zvhd2.Options{
		MaxVirtualSize: o.maxVirtualSize, OriginalSize: o.originalSize,
	})
	if err != nil {
		return nil, err
	}
	return &checked{
		info: Info{
			Variant: m.Variant, ClusterSize: m.BlockSize, MappedSize: m.MappedBytes, SectorSize: m.SectorSize,
			Compression: m.Compression, Creator: m.Creator, OriginalSize: m.OriginalSize,
			Features: m.Features, Warnings: m.Warnings,
		},
		open: m.Open,
	}, nil
}
