// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/raw"
)

// dataFile is what QCOW2 calls a file that has an image's data.
const dataFile = "external data file"

// maxChainDepth bounds a backing chain: a chain this long is a mistake or an attack.
const maxChainDepth = 64

// chain opens an image, the further files that its data is in, and what it is based on. Every file
// of a chain is found by the same rules, whatever the formats call it.
type chain struct {
	d        *Disk
	o        OpenOptions
	backing  []string // paths of the files below the image, nearest first
	extents  []string // paths of further files of the image
	warnings []string // of the files below the image
}

// open opens an image that is known to be of the format, and its chain. With a verify, the image
// must pass that, too.
func (c *chain) open(
	ctx context.Context, in *input, f *format, verify func(*checked) error,
) (*checked, image.Image, error) {
	top, err := c.check(ctx, in, f)
	if err != nil {
		return nil, nil, in.refuse(f.name, err)
	}
	if verify != nil {
		if err := verify(top); err != nil {
			return nil, nil, err
		}
	}
	var parent image.Image
	if top.parent != nil {
		if parent, err = c.openParent(ctx, in, f, top.parent); err != nil {
			return nil, nil, err
		}
	}
	img, err := top.open(parent)
	if err != nil {
		return nil, nil, in.refuse(f.name, err)
	}
	c.d.layers = append([]layer{{format: f.name, img: img, parent: parent, open: top.open}}, c.d.layers...)
	return top, img, nil
}

// check runs the format's preflight.
func (c *chain) check(ctx context.Context, in *input, f *format) (top *checked, err error) {
	defer in.recoverPanic(f.name, &err)
	return f.check(ctx, in, checkOptions{
		force:          c.o.Force,
		originalSize:   c.o.OriginalSize,
		vhdSize:        c.o.VHDSize,
		maxVirtualSize: c.o.MaxVirtualSize,
		extent:         func(name string) (io.ReaderAt, int64, error) { return c.openExtent(in, f, name) },
		dataFile:       func(name string) (io.ReaderAt, int64, error) { return c.openDataFile(in, f, name) },
	})
}

// openParent opens the parent that an image names.
func (c *chain) openParent(ctx context.Context, child *input, f *format, ref *parentRef) (image.Image, error) {
	refuse := func(need Need, remedy, reason string, args ...any) (image.Image, error) {
		refused := child.bad(f.name, reason, args...)
		refused.Need, refused.Remedy = need, remedy
		return nil, refused
	}
	flatten := f.flattening()
	switch {
	case !c.o.AllowBacking:
		return refuse(NeedBacking, "allow backing files if you trust the image, or "+flatten,
			"it has a %s%s, and those are not followed unless allowed", ref.what, quoted(ref.names))
	case len(ref.names) == 0:
		return refuse("", "", "it has a %s without a usable name", ref.what)
	case ref.format == "" && ref.unstated != "":
		return refuse("", ref.unstated, "it does not state the format of its %s%s", ref.what, quoted(ref.names))
	case len(c.backing) >= maxChainDepth:
		return refuse("", flatten, "its backing chain is longer than %d files", maxChainDepth)
	}
	if ref.format != "" {
		if _, ok := lookupFormat(ref.format); !ok {
			return refuse("", flatten, "its %s%s is said to be of the format %q, which cannot be read",
				ref.what, quoted(ref.names), ref.format)
		}
	}
	file, name, err := c.openNamed(child, f, ref.what, ref.names, c.o.BackingDirs)
	if err != nil {
		return nil, err
	}
	c.backing = append(c.backing, file.path)
	in := file.input()
	// A stated format is binding: a guest may have written anything at the start of a RAW disk.
	format, warnings, err := chooseFormat(in, ref.format)
	if err != nil {
		return nil, err
	}
	if ref.format == "" && format.name != FormatRAW && in.rawName() {
		return refuse("", flatten, "its %s %q is called a RAW disk but has the signature of a %s file",
			ref.what, name, format.name)
	}
	for _, w := range warnings {
		c.warnings = append(c.warnings, fmt.Sprintf("%s %q: %s", ref.what, name, w))
	}
	_, img, err := c.open(ctx, in, format, func(parent *checked) error {
		if ref.format == "" && parent.parent != nil {
			// What looks like an image may be a RAW disk that a guest wrote to. It must not name
			// files.
			_, err := refuse("", flatten, "it does not state the format of its %s %q, which names another file",
				ref.what, name)
			return err
		}
		if ref.verify == nil {
			return nil
		}
		if reason := ref.verify(parent); reason != "" {
			_, err := refuse("", "put the disk that it was made from beside it", "its %s %q %s", ref.what, name, reason)
			return err
		}
		return nil
	})
	return img, err
}

// flattening tells how to make one whole disk of a chain where all of its files are. QEMU reads a
// differencing VHD as if it had no parent, and refuses a differencing VHDX.
func (f *format) flattening() string {
	switch f.name {
	case "vhd", "vhdx":
		return "make it whole where its parents are, with Hyper-V's `Convert-VHD CHILD WHOLE.vhdx -VHDType Dynamic` " +
			"(qemu-img cannot)"
	}
	return "make it self-contained with `qemu-img convert -O qcow2`"
}

// openExtent opens another file of an image, which must lie beside it.
func (c *chain) openExtent(in *input, f *format, name string) (io.ReaderAt, int64, error) {
	return c.openPart(in, f, "extent", name, nil)
}

// openDataFile opens the external data file of a QCOW2 image. Unlike an extent it may be any file, so
// it must be allowed like a backing file.
func (c *chain) openDataFile(in *input, f *format, name string) (io.ReaderAt, int64, error) {
	if !c.o.AllowBacking {
		refused := in.bad(f.name, "its data is in an external data file, %q, and that is not opened unless allowed", name)
		refused.Need = NeedBacking
		refused.Remedy = "allow it if you trust the image, or make it self-contained with `qemu-img convert -O qcow2`"
		return nil, 0, refused
	}
	return c.openPart(in, f, dataFile, name, c.o.BackingDirs)
}

// openPart opens a plain file that an image's own data is in.
func (c *chain) openPart(in *input, f *format, what, name string, dirs []string) (io.ReaderAt, int64, error) {
	file, _, err := c.openNamed(in, f, what, []string{name}, dirs)
	if err != nil {
		return nil, 0, err
	}
	if len(c.backing) == 0 {
		c.extents = append(c.extents, file.path)
	}
	if file.size == 0 {
		return file.file, 0, nil
	}
	img, err := raw.New(file.file, file.size, true) // it knows the file's holes
	return img, file.size, err
}

// openNamed opens the first of the named files that there is, in the folder of in or in another one
// of dirs. A name is the image author's: it must be plain, and no file may be used twice.
func (c *chain) openNamed(in *input, f *format, what string, names, dirs []string) (*sourceFile, string, error) {
	refuse := func(remedy, reason string, args ...any) (*sourceFile, string, error) {
		refused := in.bad(f.name, reason, args...)
		refused.Remedy = remedy
		return nil, "", refused
	}
	if in.dir == "" {
		return refuse("unpack the archive first",
			"it needs its %s%s, and no further file of an archive is opened", what, quoted(names))
	}
	dirs = append([]string{in.dir}, dirs...)
	for _, name := range names {
		if err := checkPlainName(name); err != nil {
			remedy := "put the file beside the image and give it a plain name, with a QEMU image by "
			if what == dataFile {
				remedy += "`qemu-img amend -o data_file=NAME IMAGE`"
			} else {
				remedy += "`qemu-img rebase -u -F FORMAT -b NAME IMAGE`"
			}
			return refuse(remedy, "its %s %q %v", what, name, err)
		}
		file, err := openSibling(dirs, name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			var refused *siblingError
			if errors.As(err, &refused) {
				return refuse("", "its %s %q %s", what, name, refused.reason)
			}
			return nil, "", fmt.Errorf("open the %s of %q: %w", what, in.label, err)
		}
		for _, seen := range c.d.files {
			if os.SameFile(seen.info, file.info) {
				_ = file.file.Close()
				return refuse("", "its chain of files contains %q twice", name)
			}
		}
		c.d.files = append(c.d.files, file)
		return file, name, nil
	}
	remedy := "put the file beside the image"
	if len(dirs) > 1 || what != "extent" {
		remedy += " or name its folder"
	}
	refused := in.bad(f.name, "its %s%s was not found", what, quoted(names))
	refused.Remedy, refused.missing = remedy, true
	return nil, "", refused
}

// quoted lists names of an image's author, with a blank before them.
func quoted(names []string) string {
	s := ""
	for i, n := range names {
		if i > 0 {
			s += " or"
		}
		s += fmt.Sprintf(" %q", n)
	}
	return s
}
