// SPDX-License-Identifier: Apache-2.0

package vmdk

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
)

// Types of markers ("Stream-Optimized Compressed Sparse Extents").
const (
	markerEnd       = 0
	markerTable     = 1
	markerDirectory = 2
	markerFooter    = 3
)

// markerHeaderBytes is the length of what is before the data of a grain.
const markerHeaderBytes = 12

// footerBytes is the length of the footer with its marker before it and the end-of-stream marker
// behind.
const footerBytes = 3 * sectorSize

// marker is a sector that says what follows.
type marker struct {
	value uint64
	size  uint32 // bytes of compressed data, 0 if the marker is not a grain's
	kind  uint32 // of others
}

func parseMarker(p []byte) marker {
	le := binary.LittleEndian
	m := marker{value: le.Uint64(p), size: le.Uint32(p[8:])}
	if m.size == 0 {
		m.kind = le.Uint32(p[12:])
	}
	return m
}

// maxStored is how many bytes the data of a compressed grain may have. What cannot be compressed
// grows a little.
func (s *sparse) maxStored() int64 { return 2*s.grain + sectorSize }

// findFooter takes over what the footer says. It is at the very end of the file, or, if something
// was appended, in front of the end-of-stream marker. A stream without a footer is indexed by its
// markers.
func (s *sparse) findFooter(ctx context.Context) error {
	if s.size >= s.overhead+footerBytes {
		p := make([]byte, footerBytes)
		at := s.size - footerBytes
		if err := s.readFull(p, at); err != nil {
			return err
		}
		if string(p[sectorSize:][:4]) == magicHosted {
			if m := parseMarker(p); m != (marker{value: 1, kind: markerFooter}) {
				return bad("the marker at %d, of type %d with value %d and size %d, is not that of a footer", at,
					m.kind, m.value, m.size)
			}
			if m := parseMarker(p[2*sectorSize:]); m != (marker{}) {
				return bad("the marker at %d, of type %d with value %d and size %d, is not that of the end", at+2*sectorSize,
					m.kind, m.value, m.size)
			}
			return s.useFooter(p[sectorSize:2*sectorSize], at+sectorSize)
		}
	}
	if !s.markers {
		return bad("the grain directory should be named in a footer, but there is none; the image is truncated or damaged")
	}
	footer, err := s.walkMarkers(ctx)
	if err != nil {
		return err
	}
	if footer == 0 {
		s.indexed, s.directoryAtEnd = true, false
		return nil
	}
	s.index = nil
	p := make([]byte, sectorSize)
	if err := s.readFull(p, footer); err != nil {
		return err
	}
	return s.useFooter(p, footer)
}

// useFooter replaces the header by the footer p at the offset.
func (s *sparse) useFooter(p []byte, at int64) error {
	f, err := parseHosted(s.file, p, at)
	if err != nil {
		return within("footer", err)
	}
	switch {
	case f.capacity != s.capacity || f.grain != s.grain || f.tableSize != s.tableSize:
		return bad("the footer at %d contradicts the header: capacity %d and %d bytes, grain size %d and %d, %d and %d "+
			"entries per grain table", at, f.capacity, s.capacity, f.grain, s.grain, f.tableSize, s.tableSize)
	case f.compressed != s.compressed || f.markers != s.markers:
		return bad("the footer at %d contradicts the header: flags %#08x and %#08x", at, f.flags, s.flags)
	case f.directoryAtEnd:
		return bad("the footer at %d does not say where the grain directory is", at)
	}
	s.directory, s.directoryAtEnd, s.footer = f.directory, false, true
	s.redundant, s.zeroGrains = f.redundant, f.zeroGrains
	s.reserved = slices.Concat(s.reserved, []byteRange{{at, at + sectorSize, "footer"}})
	return nil
}

// walkMarkers goes through the stream from marker to marker up to its end, and puts what grains
// there are in the index. It returns where the footer is, 0 if there is none.
//
// The limits of the grain directory and of grain tables keep the numbers of grains below 2^32.
//
// It reads a sector per grain, so it takes time by the length of the file. A stream that ends
// without an end-of-stream marker was cut off.
func (s *sparse) walkMarkers(ctx context.Context) (footer int64, err error) {
	s.index = []uint64{}
	sorted := true
	p := make([]byte, sectorSize)
	for at := max(s.overhead, s.descriptorOffset+s.descriptorBytes, sectorSize); ; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if at > s.size-sectorSize {
			return 0, bad("the stream of grains has no end: the file of %d bytes is truncated", s.size)
		}
		if err := s.readFull(p, at); err != nil {
			return 0, err
		}
		m := parseMarker(p)
		if m.size == 0 {
			var length uint64
			switch m.kind {
			case markerEnd:
				if err := s.checkEnd(m, at); err != nil {
					return 0, err
				}
				if !sorted {
					slices.Sort(s.index)
				}
				return footer, nil
			case markerTable, markerDirectory:
				length = m.value
			case markerFooter:
				if m.value != 1 || footer != 0 {
					return 0, bad("the footer marker at %d has the value %d or is not the first one", at, m.value)
				}
				footer, length = at+sectorSize, 1
			default:
				return 0, bad("the marker at %d is of the unknown type %d", at, m.kind)
			}
			if length > uint64(s.size)/sectorSize || int64(length)*sectorSize > s.size-at-sectorSize {
				return 0, bad("what the marker at %d announces, %d sectors, ends outside of the file of %d bytes; the image is "+
					"truncated", at, length, s.size)
			}
			at += sectorSize + int64(length)*sectorSize
			continue
		}
		grain, err := s.checkMarker(m, at)
		if err != nil {
			return 0, err
		}
		if footer != 0 {
			return 0, bad("a grain at %d follows the footer at %d", at, footer)
		}
		if at/sectorSize > 1<<32-1 {
			return 0, bad("the grain at %d is behind what a grain table can tell", at)
		}
		e := uint64(grain)<<32 | uint64(at/sectorSize)
		if n := len(s.index); n > 0 && e < s.index[n-1] {
			sorted = false
		}
		if len(s.index) == maxIndexBytes/8 {
			return 0, bad("it has no grain directory, and more than %d grains are too many to make one", len(s.index))
		}
		s.index = append(s.index, e)
		at += roundUp(markerHeaderBytes+int64(m.size), sectorSize)
	}
}

// maxPadding is how many zeros may follow the end of a stream.
const maxPadding = 64 << 10

// checkEnd checks that a stream really ends with the end-of-stream marker at the offset: any
// sector of zeros looks like one.
func (s *sparse) checkEnd(m marker, at int64) error {
	rest := s.size - at - sectorSize
	if m.value == 0 && rest <= maxPadding {
		p := make([]byte, rest)
		if err := s.readFull(p, at+sectorSize); err != nil {
			return err
		}
		if len(bytes.Trim(p, "\x00")) == 0 {
			return nil
		}
	}
	return bad("the end-of-stream marker at %d with the value %d is not at the end of the file of %d bytes", at, m.value, s.size)
}

// checkMarker checks the marker of a grain at the offset and returns the grain's number.
func (s *sparse) checkMarker(m marker, at int64) (int64, error) {
	switch {
	case m.size == 0:
		return 0, bad("the marker at %d, of type %d, is not that of a grain", at, m.kind)
	case int64(m.size) > s.maxStored():
		return 0, bad("the grain at %d has %d bytes of compressed data, more than %d", at, m.size, s.maxStored())
	case int64(m.size) > s.size-at-markerHeaderBytes:
		return 0, bad("the grain at %d with %d bytes of compressed data ends outside of the file of %d bytes; the image is "+
			"truncated", at, m.size, s.size)
	case m.value >= uint64(s.capacity)/sectorSize || int64(m.value)*sectorSize%s.grain != 0:
		return 0, bad("the grain at %d says that it is for sector %d of the disk, where none can be", at, m.value)
	}
	return int64(m.value) * sectorSize / s.grain, nil
}

// checkIndex checks that no grain is there twice.
func (s *sparse) checkIndex() error {
	for i := 1; i < len(s.index); i++ {
		if s.index[i]>>32 == s.index[i-1]>>32 {
			return bad("there are two grains for sector %d of the disk, at %d and at %d", int64(s.index[i]>>32)*s.grain/sectorSize,
				int64(uint32(s.index[i-1]))*sectorSize, int64(uint32(s.index[i]))*sectorSize)
		}
	}
	s.dataGrains = int64(len(s.index))
	return nil
}
