// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWrappers bounds how deep an image is wrapped: a compressed archive whose disk is compressed
// has three.
const maxWrappers = 3

// maxWindow bounds the memory of a decoder in bytes. It is what the xz and zstd tools use at most,
// unless they are told to go further.
const maxWindow = 128 << 20

// wrapper is a row of the table of what images are wrapped in.
type wrapper struct {
	name     string
	suffixes []string // of file names
	match    func(head, tail []byte) bool
	unwrap   func(d *Disk, ctx context.Context, in *input, o OpenOptions) (*input, error)
}

// wrappers is the table of all wrappers that are read.
var wrappers = []wrapper{
	{"gzip", []string{".gz", ".tgz"}, magicAt(0, "\x1F\x8B\x08"), compressed(gzipCodec)},
	{"xz", []string{".xz", ".txz"}, magicAt(0, xzHeaderMagic), compressed(xzCodec)},
	{"Zstandard", []string{".zst", ".tzst"}, magicAt(0, "\x28\xB5\x2F\xFD"), compressed(zstdCodec)},
	{"bzip2", []string{".bz2", ".tbz2"}, isBzip2, compressed(bzip2Codec)},
	{"tar", []string{".ova", ".tar", ".box"}, magicAt(257, "ustar"), (*Disk).openTar},
	{"OVF", []string{".ovf"}, isOVF, (*Disk).openOVF},
}

// unwrap takes the image out of all that it is wrapped in.
func (d *Disk) unwrap(ctx context.Context, in *input, o OpenOptions) (*input, error) {
	for range maxWrappers {
		w, err := wrapperOf(in, o.Format)
		if err != nil || w == nil {
			return in, err
		}
		if in, err = w.unwrap(d, ctx, in, o); err != nil {
			return nil, err
		}
	}
	return in, nil // chooseFormat refuses what is wrapped deeper
}

// wrapperOf returns what in is wrapped in, nil for none. A stated format is that of the image
// inside. But if that is RAW, the name must agree that there is a wrapper: the bytes of a RAW disk
// are a guest's, and may look like anything.
func wrapperOf(in *input, stated string) (*wrapper, error) {
	head, tail, err := in.readHeadTail(probeBytes)
	if err != nil {
		return nil, err
	}
	found := detect(head, tail)
	if len(found) != 1 || found[0].kind != sigWrapper {
		return nil, nil
	}
	w := found[0].wrapper
	if stated == FormatRAW && !slices.Contains(w.suffixes, strings.ToLower(filepath.Ext(in.name))) {
		return nil, nil
	}
	return w, nil
}

// codec is a compression.
type codec struct {
	name string
	// size returns how many bytes the unpacked data has, as far as the file tells cheaply, in
	// words.
	size func(in *input) string
	// open returns the unpacked data. It ends with io.EOF only if all of the input is well formed.
	open func(in *input, r io.Reader) (io.ReadCloser, error)
}

var (
	gzipCodec = codec{"gzip", gzipSize, func(_ *input, r io.Reader) (io.ReadCloser, error) {
		return gzip.NewReader(r)
	}}
	zstdCodec = codec{"Zstandard", zstdSize, func(_ *input, r io.Reader) (io.ReadCloser, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}}
	bzip2Codec = codec{"bzip2", func(*input) string { return "" }, func(_ *input, r io.Reader) (io.ReadCloser, error) {
		return io.NopCloser(bzip2.NewReader(r)), nil
	}}
	xzCodec = codec{"xz", xzSize, func(in *input, _ io.Reader) (io.ReadCloser, error) {
		r, err := newXZReader(in.r, in.size)
		return io.NopCloser(r), err
	}}
)

// gzipSize reads the trailer (RFC 1952, 2.3.1), which has the size of the last member modulo 2^32.
func gzipSize(in *input) string {
	var t [4]byte
	if _, err := in.r.ReadAt(t[:], in.size-4); err != nil && err != io.EOF || in.size < 18 {
		return ""
	}
	return fmt.Sprintf("%d bytes, or that and a multiple of 4 GiB", binary.LittleEndian.Uint32(t[:]))
}

// zstdSize reads the header of the first frame, which may have the frame's size (RFC 8878,
// 3.1.1.1).
func zstdSize(in *input) string {
	var head [zstd.HeaderMaxSize]byte
	n, _ := in.r.ReadAt(head[:], 0)
	var h zstd.Header
	if err := h.Decode(head[:n]); err != nil || !h.HasFCS {
		return ""
	}
	return fmt.Sprintf("%d bytes or more", h.FrameContentSize)
}

func xzSize(in *input) string {
	blocks, err := readXZBlocks(in.r, in.size)
	if err != nil {
		return ""
	}
	n := int64(0)
	for _, b := range blocks {
		n += b.size
	}
	return fmt.Sprintf("%d bytes", n)
}

// compressed returns how to unwrap what the codec made: into a file, since it cannot be read at
// random.
func compressed(c codec) func(d *Disk, ctx context.Context, in *input, o OpenOptions) (*input, error) {
	return func(d *Disk, ctx context.Context, in *input, o OpenOptions) (*input, error) {
		if o.ScratchDir == "" {
			refused := in.bad("", "it is a %s file, which can only be read at random when it is unpacked", c.name)
			refused.Need, refused.Remedy = NeedScratch, "name a folder for the unpacked copy"
			if size := c.size(in); size != "" {
				refused.Remedy += fmt.Sprintf(", which has %s (zeros take no room)", size)
			}
			return nil, refused
		}
		s, err := newScratch(o.ScratchDir)
		if err != nil {
			return nil, fmt.Errorf("unpack %q: %w", in.label, err)
		}
		d.temps = append(d.temps, s)
		if err := c.unpack(ctx, in, s, o.MaxVirtualSize); err != nil {
			return nil, err
		}
		name := in.name
		if ext := filepath.Ext(name); slices.Contains([]string{".tgz", ".txz", ".tzst", ".tbz2"}, strings.ToLower(ext)) {
			name = strings.TrimSuffix(name, ext) + ".tar"
		} else {
			name = strings.TrimSuffix(name, ext)
		}
		out := &input{
			label: in.label, name: name, r: s.f, size: s.size, holes: true,
			dir: in.dir, wrapped: in.wrapped, member: in.member,
		}
		return out.within(c.name), nil
	}
}

// unpack writes what is in the input to s.
func (c codec) unpack(ctx context.Context, in *input, s *scratch, maxVirtualSize int64) error {
	src := bufio.NewReaderSize(io.NewSectionReader(in.r, 0, in.size), 1<<20)
	r, err := c.open(in, src)
	if err == nil {
		err = s.fill(ctx, r, unpackedLimit(maxVirtualSize))
		err = errors.Join(err, r.Close())
	}
	var limit *limitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &limit):
		return in.bad("", "unpacked, it has more than %d bytes, above the limit", limit.size)
	case isPlainError(err):
		return fmt.Errorf("unpack %q: %w", in.label, err)
	}
	refused := in.bad("", "the %s data is damaged or cut: %v", c.name, err)
	refused.Err = err
	return refused
}

// limitError says that unpacked data is larger than allowed.
type limitError struct{ size int64 }

func (e *limitError) Error() string { return fmt.Sprintf("more than %d bytes", e.size) }

// isOVF matches the descriptor of an OVF package: an XML text with the element Envelope of the
// standard's name space.
func isOVF(head, _ []byte) bool {
	head = bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\xEF\xBB\xBF")), " \t\r\n")
	return bytes.HasPrefix(head, []byte("<")) && bytes.Contains(head, []byte("Envelope")) &&
		bytes.Contains(head, []byte("schemas.dmtf.org/ovf/envelope/"))
}
