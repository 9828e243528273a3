// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"fmt"
	"iter"

	"github.com/lima-vm/go-qcow2reader/image"
)

// Mapped is an extent of a disk and the file of its chain that decides on it.
type Mapped struct {
	image.Extent
	Depth   int  // 0 = the disk's own file, 1 = its backing file or parent, and so on
	Present bool // that file has an entry for the extent, be it only that it reads as zeros
}

// layer is an opened image of a chain.
type layer struct {
	format string
	img    image.Image                                   // over its parent
	parent image.Image                                   // nil = it has none
	open   func(parent image.Image) (image.Image, error) // opens it over another parent
}

// Map walks the extents of the disk from its tables, as [Extents] does, and tells for each the file
// that decides on it. What no file has an entry for is of the deepest one that could have one.
func (d *Disk) Map(ctx context.Context) iter.Seq2[Mapped, error] {
	return func(yield func(Mapped, error) bool) {
		layers, err := d.unstack()
		if err != nil {
			yield(Mapped{}, err)
			return
		}
		var run Mapped
		for off := int64(0); off < d.Size(); off += run.Length {
			run = Mapped{}
			for at := off; at < d.Size(); at = off + run.Length {
				if err := ctx.Err(); err != nil {
					yield(Mapped{}, err)
					return
				}
				e, err := d.mapped(layers, at, min(d.Size()-at, extentWindow))
				if err != nil {
					yield(Mapped{}, err)
					return
				}
				if run.Length == 0 {
					run = e
					continue
				}
				if run.Allocated != e.Allocated || run.Zero != e.Zero || run.Compressed != e.Compressed ||
					run.Depth != e.Depth || run.Present != e.Present {
					break
				}
				run.Length += e.Length
			}
			if !yield(run, nil) {
				return
			}
		}
	}
}

// mapped returns the first extent of a range that one file decides on.
func (d *Disk) mapped(layers []image.Image, start, length int64) (m Mapped, err error) {
	defer d.in.recoverPanic(d.info.Format, &err)
	for depth, img := range layers {
		e, err := img.Extent(start, length)
		if err == nil && (e.Start != start || e.Length <= 0 || e.Length > length) {
			err = fmt.Errorf("asked for the extent at %d, got %d bytes at %d", start, e.Length, e.Start)
		}
		if err != nil {
			return m, d.in.refuse(d.info.Format, err)
		}
		if !isBelow(e) {
			// A RAW file has every byte of its disk, holes too.
			return Mapped{Extent: e, Depth: depth, Present: e.Allocated || d.layers[depth].format == FormatRAW}, nil
		}
		length = e.Length
	}
	return m, fmt.Errorf("the extent at %d is in no file of the chain", start)
}

// unstack returns the images of the chain, the disk's own first, each over a parent that only says
// that it is asked.
func (d *Disk) unstack() (layers []image.Image, err error) {
	defer d.in.recoverPanic(d.info.Format, &err)
	for _, l := range d.layers {
		img := l.img
		if l.parent != nil {
			if img, err = l.open(below{l.parent}); err != nil {
				return nil, err
			}
		}
		layers = append(layers, img)
	}
	return layers, nil
}

// below stands for a parent whose every extent [isBelow].
type below struct{ image.Image }

// Extent returns what no image has, zeros that are compressed. A child hands it on as it is.
func (below) Extent(start, length int64) (image.Extent, error) {
	return image.Extent{Start: start, Length: length, Zero: true, Compressed: true}, nil
}

func isBelow(e image.Extent) bool { return e.Zero && e.Compressed }
