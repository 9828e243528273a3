// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
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
	// open returns the unpacked data from a place on, 0 or one that an earlier reader's places gave. It
	// ends with io.EOF only if all of the input is well formed.
	open func(in *input, at int64) (io.ReadCloser, error)
}

var (
	gzipCodec = codec{"gzip", func(in *input, at int64) (io.ReadCloser, error) {
		return newGzipReader(in, at)
	}}
	zstdCodec = codec{"Zstandard", func(in *input, _ int64) (io.ReadCloser, error) {
		d, err := zstd.NewReader(buffered(in, 0), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}}
	bzip2Codec = codec{"bzip2", func(in *input, _ int64) (io.ReadCloser, error) {
		return io.NopCloser(bzip2.NewReader(buffered(in, 0))), nil
	}}
	xzCodec = codec{"xz", func(in *input, at int64) (io.ReadCloser, error) {
		return newXZReader(in.r, in.size, at)
	}}
)

// buffered reads an input from an offset to its end.
func buffered(in *input, at int64) *bufio.Reader {
	return bufio.NewReaderSize(io.NewSectionReader(in.r, at, in.size-at), 256<<10)
}

// minRestart is how many unpacked bytes two places of one file are apart at least, which bounds their
// number.
const minRestart = 8 << 20

// gzipReader reads the members of a gzip file (RFC 1952, 2.2), each of which can be unpacked without
// those before it.
type gzipReader struct {
	z       *gzip.Reader
	in      *countingReader
	buf     *bufio.Reader
	out     int64
	members []restart
}

// countingReader counts what was read.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func newGzipReader(in *input, at int64) (*gzipReader, error) {
	g := &gzipReader{in: &countingReader{r: io.NewSectionReader(in.r, at, in.size-at), n: at}}
	g.buf = bufio.NewReaderSize(g.in, 256<<10)
	var err error
	if g.z, err = gzip.NewReader(g.buf); err == nil {
		g.z.Multistream(false)
	}
	return g, err
}

// Read implements [io.Reader].
func (g *gzipReader) Read(p []byte) (int, error) {
	for {
		n, err := g.z.Read(p)
		g.out += int64(n)
		if err == io.EOF && n == 0 {
			at := g.in.n - int64(g.buf.Buffered()) // the buffer has no byte of the next member less
			if err := g.z.Reset(g.buf); err != nil {
				return 0, err // io.EOF if there is no more
			}
			g.z.Multistream(false)
			if last := len(g.members) - 1; g.out >= minRestart && (last < 0 || g.out-g.members[last].out >= minRestart) {
				g.members = append(g.members, restart{at, g.out})
			}
			continue
		}
		if err == io.EOF {
			err = nil
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// Close implements [io.Closer].
func (g *gzipReader) Close() error { return g.z.Close() }

// places returns where members begin.
func (g *gzipReader) places() []restart { return g.members }

// compressed returns how to unwrap what the codec made, which cannot be read at random: into a file,
// if there is a folder for it, else as often as it takes.
func compressed(c codec) func(d *Disk, ctx context.Context, in *input, o OpenOptions) (*input, error) {
	return func(d *Disk, ctx context.Context, in *input, o OpenOptions) (*input, error) {
		if o.ScratchDir == "" {
			return c.stream(ctx, d, in, o)
		}
		s, err := newScratch(o.ScratchDir)
		if err != nil {
			return nil, fmt.Errorf("unpack %q: %w", in.label, err)
		}
		d.temps = append(d.temps, s)
		if err := c.unpack(ctx, in, s, o.MaxVirtualSize); err != nil {
			return nil, err
		}
		return in.unpacked(c.name, s.f, s.size), nil
	}
}

// unpacked returns what was in a compressed input.
func (in *input) unpacked(codec string, r io.ReaderAt, size int64) *input {
	name := in.name
	if ext := filepath.Ext(name); slices.Contains([]string{".tgz", ".txz", ".tzst", ".tbz2"}, strings.ToLower(ext)) {
		name = strings.TrimSuffix(name, ext) + ".tar"
	} else {
		name = strings.TrimSuffix(name, ext)
	}
	out := &input{
		label: in.label, name: name, r: r, size: size, holes: true,
		dir: in.dir, wrapped: in.wrapped, member: in.member, disk: in.disk,
	}
	return out.within(codec)
}

// stream reads what is in the input without a copy.
func (c codec) stream(ctx context.Context, d *Disk, in *input, o OpenOptions) (*input, error) {
	window := o.window
	if window == 0 {
		window = forwardWindow
	}
	f, err := newForward(ctx, in, c, unpackedLimit(o.MaxVirtualSize), window)
	if err != nil {
		return nil, c.refuse(in, err)
	}
	d.temps = append(d.temps, f)
	if f.size > window {
		d.warn("%s: %s data cannot be read at random; its %d bytes are unpacked twice at least, and once more each time that "+
			"the disk is read; with a scratch folder, once", in.label, c.name, f.size)
	}
	d.info.Streamed = true
	return in.unpacked(c.name, f, f.size), nil
}

// remedy says what a scratch folder costs.
func (c codec) remedy(size int64) string {
	return fmt.Sprintf("name a folder for the unpacked copy, which has %d bytes (zeros take no room)", size)
}

// unpack writes what is in the input to s.
func (c codec) unpack(ctx context.Context, in *input, s *scratch, maxVirtualSize int64) error {
	r, err := c.open(in, 0)
	if err == nil {
		err = s.fill(ctx, r, unpackedLimit(maxVirtualSize))
		err = errors.Join(err, r.Close())
	}
	if err != nil {
		return c.refuse(in, err)
	}
	return nil
}

// refuse returns the error for data that could not be unpacked.
func (c codec) refuse(in *input, err error) error {
	var limit *limitError
	switch {
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
