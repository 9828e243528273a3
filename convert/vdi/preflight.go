// SPDX-License-Identifier: Apache-2.0

package vdi

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// Options says what [Preflight] accepts.
type Options struct {
	MaxVirtualSize int64 // bytes, 0 = no limit but the format's
}

// Metadata is what an image says of itself, checked.
type Metadata struct {
	Variant     string   // [VariantDynamic] or [VariantStatic]
	VirtualSize int64    // bytes, rounded up to 512
	MappedBytes int64    // bytes of the disk in blocks that the file has
	BlockSize   int64    // bytes
	SectorSize  int      // bytes, always 512
	Compression string   // always ""
	Creator     string   // the text that the file begins with, printable
	Features    []string // in the terms of the format; it has none
	Warnings    []string // what the user should know
	ID          string   // this disk's UUID

	r          io.ReaderAt
	fileSize   int64
	blocks     int64 // entries of the block map
	mapOffset  int64
	dataOffset int64
}

// remedyFlatten says how to get a disk that stands alone. Only VirtualBox knows where the parents
// are: the file does not name them, and qemu-img does not read it either.
const remedyFlatten = "flatten it where its parents are, with `VBoxManage clonemedium disk CHILD.vdi WHOLE.vdi`, " +
	"and import the result (qemu-img cannot flatten it)"

// Preflight checks the image in the size bytes of r: the header and every entry of the block map. A
// bad or unsupported image gives an [*Error]; errors of reading are returned as they are.
//
// It reads the block map once, and keeps one bit per block of the file while it runs, at most 64
// MiB.
func Preflight(ctx context.Context, r io.ReaderAt, size int64, o Options) (*Metadata, error) {
	m := &Metadata{r: r, fileSize: size, SectorSize: sectorSize}
	if err := m.readHeader(o); err != nil {
		return nil, err
	}
	if err := m.checkMap(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Metadata) readHeader(o Options) error {
	if m.fileSize < headerBytes {
		return bad("the file of %d bytes is too short for a header of %d", m.fileSize, headerBytes)
	}
	h := make([]byte, headerBytes)
	if err := readFull(m.r, h, 0); err != nil {
		return fmt.Errorf("read the header: %w", err)
	}
	le := binary.LittleEndian
	if s := le.Uint32(h[64:]); s != signature {
		return bad("the signature %#08x at offset 64 is not %#08x", s, uint32(signature))
	}
	if v := le.Uint32(h[68:]); v != version11 {
		return &Error{
			Reason: fmt.Sprintf("version %d.%d at offset 68 is not 1.1", v>>16, v&0xFFFF),
			Remedy: "convert it with `VBoxManage clonemedium disk OLD.vdi NEW.vdi`",
		}
	}
	if err := m.checkType(h); err != nil {
		return err
	}
	m.Creator = printable(h[:64])
	m.ID = formatID(h[392:408])
	if s := le.Uint32(h[360:]); s != sectorSize {
		return bad("sector size %d at offset 360 is not %d", s, sectorSize)
	}
	block := int64(le.Uint32(h[376:]))
	if block < minBlockSize || block > maxBlockSize || block&(block-1) != 0 {
		return bad("block size %d at offset 376 is not a power of two between %d and %d",
			block, minBlockSize, maxBlockSize)
	}
	m.BlockSize = block
	if extra := le.Uint32(h[380:]); extra != 0 {
		return bad("%d extra bytes before each block, at offset 380, are not supported", extra)
	}
	if err := m.checkMapPlace(le.Uint32(h[384:]), le.Uint32(h[340:]), le.Uint32(h[344:])); err != nil {
		return err
	}
	return m.checkSize(le.Uint64(h[368:]), o.MaxVirtualSize)
}

// checkType checks the image type and that there is no parent, which counts whatever the type is.
func (m *Metadata) checkType(h []byte) error {
	parent, parentState := h[424:440], h[440:456]
	none := make([]byte, 16)
	linked := !bytes.Equal(parent, none) || !bytes.Equal(parentState, none)
	switch t := binary.LittleEndian.Uint32(h[76:]); {
	case t == imageDifferencing || linked && (t == imageDynamic || t == imageStatic):
		return &Error{
			Reason: fmt.Sprintf("it is a differencing disk (type %d at offset 76), as snapshots are, and useless "+
				"without its parent %s", t, formatID(parent)),
			Remedy: remedyFlatten,
		}
	case t == imageUndo:
		return &Error{Reason: "it is an undo disk (type 3 at offset 76)", Remedy: remedyFlatten}
	case t == imageDynamic:
		m.Variant = VariantDynamic
	case t == imageStatic:
		m.Variant = VariantStatic
	default:
		return bad("image type %d at offset 76 is unknown", t)
	}
	return nil
}

// checkMapPlace checks where the block map of that many entries and the data are said to be.
func (m *Metadata) checkMapPlace(blocks, mapOffset, dataOffset uint32) error {
	m.blocks, m.mapOffset, m.dataOffset = int64(blocks), int64(mapOffset), int64(dataOffset)
	switch {
	case m.mapOffset%sectorSize != 0 || m.mapOffset < headerBytes:
		return bad("block map offset %d at offset 340 is not a multiple of %d behind the header", mapOffset, sectorSize)
	case m.dataOffset%sectorSize != 0 || m.dataOffset < headerBytes:
		return bad("data offset %d at offset 344 is not a multiple of %d behind the header", dataOffset, sectorSize)
	case m.blocks > maxBlocks:
		return bad("%d blocks at offset 384 are above the limit of %d", blocks, maxBlocks)
	case m.mapOffset > m.fileSize || m.blocks*4 > m.fileSize-m.mapOffset:
		return bad("the block map of %d bytes at %d ends outside of the file of %d bytes; the image is truncated or "+
			"damaged", m.blocks*4, mapOffset, m.fileSize)
	case m.dataOffset < m.mapOffset+m.blocks*4:
		return bad("data offset %d at offset 344 lies before the end of the block map, %d",
			dataOffset, m.mapOffset+m.blocks*4)
	}
	return nil
}

func (m *Metadata) checkSize(size uint64, limit int64) error {
	if size == 0 || size > math.MaxInt64-(sectorSize-1) {
		return bad("virtual size %d at offset 368 is not between 1 and 2^63-512", size)
	}
	// Like QEMU: the last sector is taken whole from its block.
	m.VirtualSize = roundUp(int64(size), sectorSize)
	switch {
	case limit > 0 && m.VirtualSize > limit:
		return bad("virtual size %d at offset 368 is above the limit of %d bytes", size, limit)
	case m.VirtualSize > m.blocks*m.BlockSize: // at most 2^55
		return bad("virtual size %d at offset 368 is more than %d blocks of %d bytes hold",
			size, m.blocks, m.BlockSize)
	}
	if m.VirtualSize != int64(size) {
		m.warn("the virtual size of %d bytes is not a multiple of %d; it is rounded up", size, sectorSize)
	}
	return nil
}

// tablePage is how many bytes of the block map are read at a time.
const tablePage = 64 << 10

// checkMap checks every entry of the block map, even of blocks behind the end of the disk.
func (m *Metadata) checkMap(ctx context.Context) error {
	var seen blockSet
	page := make([]byte, min(tablePage, m.blocks*4))
	for i := int64(0); i < m.blocks; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := page[:min(int64(len(page)), (m.blocks-i)*4)]
		if err := readFull(m.r, p, m.mapOffset+i*4); err != nil {
			return fmt.Errorf("read the block map: %w", err)
		}
		for ; len(p) > 0; p, i = p[4:], i+1 {
			e := binary.LittleEndian.Uint32(p)
			if e >= entryDiscarded {
				continue
			}
			if err := m.checkEntry(&seen, i, int64(e)); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkEntry checks entry e of block i of the disk.
func (m *Metadata) checkEntry(seen *blockSet, i, e int64) error {
	start := m.dataOffset + e*m.BlockSize // at most 2^59
	switch {
	case start >= m.fileSize:
		return bad("block map entry %d at %d: the block at %d is outside of the file of %d bytes; the image is "+
			"truncated or damaged", i, m.mapOffset+i*4, start, m.fileSize)
	case e >= maxBlocks:
		return bad("block map entry %d at %d, %#08x, is above the limit of %d blocks", i, m.mapOffset+i*4, e, maxBlocks)
	case !seen.add(e):
		return bad("block map entry %d at %d: the block at %d is also another entry's", i, m.mapOffset+i*4, start)
	}
	used := min(m.BlockSize, m.VirtualSize-i*m.BlockSize)
	if used <= 0 {
		return nil
	}
	m.MappedBytes += used
	// Blocks do not overlap, so this can only be the one that is last in the file.
	if used > m.fileSize-start {
		m.warn("the file ends inside of its last block, which is filled up with zeros: %d bytes are missing",
			used-(m.fileSize-start))
	}
	return nil
}

func (m *Metadata) warn(format string, args ...any) {
	m.Warnings = append(m.Warnings, fmt.Sprintf(format, args...))
}
