// SPDX-License-Identifier: Apache-2.0

package obstest

import (
	"bytes"
	"io"
	"sort"
)

// chunkSize is the grain in which zeros are left out.
const chunkSize = 64 << 10

// Content is the immutable content of an object or part. Zeros take no memory, so that a disk of a
// TiB with little data can be held.
type Content struct {
	size   int64
	chunks []chunk // ascending, none empty, anything else is zero
}

type chunk struct {
	off  int64
	data []byte
}

func (c chunk) end() int64 { return c.off + int64(len(c.data)) }

// NewContent reads r to its end.
func NewContent(r io.Reader) (*Content, error) {
	c := &Content{}
	buf := make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(r, buf)
		c.append(buf[:n])
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			if err == io.ErrUnexpectedEOF && n == 0 {
				return nil, err
			}
			return c, nil
		default:
			return nil, err
		}
	}
}

// Zeros is n zero bytes.
func Zeros(n int64) *Content { return &Content{size: n} }

func (c *Content) append(p []byte) {
	if !IsZero(p) {
		c.chunks = append(c.chunks, chunk{c.size, bytes.Clone(p)})
	}
	c.size += int64(len(p))
}

// Size returns the length in bytes.
func (c *Content) Size() int64 { return c.size }

// Slice returns n bytes from off on, sharing memory. The range must lie within the content.
func (c *Content) Slice(off, n int64) *Content {
	out := &Content{size: n}
	i := sort.Search(len(c.chunks), func(i int) bool { return c.chunks[i].end() > off })
	for ; i < len(c.chunks) && c.chunks[i].off < off+n; i++ {
		ch := c.chunks[i]
		from, to := max(ch.off, off), min(ch.end(), off+n)
		out.chunks = append(out.chunks, chunk{from - off, ch.data[from-ch.off : to-ch.off]})
	}
	return out
}

// Concat joins contents, sharing memory.
func Concat(parts ...*Content) *Content {
	out := &Content{}
	for _, p := range parts {
		for _, ch := range p.chunks {
			out.chunks = append(out.chunks, chunk{out.size + ch.off, ch.data})
		}
		out.size += p.size
	}
	return out
}

// ReadAt implements io.ReaderAt.
func (c *Content) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= c.size {
		return 0, io.EOF
	}
	var err error
	if int64(len(p)) > c.size-off {
		p, err = p[:c.size-off], io.EOF
	}
	clear(p)
	end := off + int64(len(p))
	i := sort.Search(len(c.chunks), func(i int) bool { return c.chunks[i].end() > off })
	for ; i < len(c.chunks) && c.chunks[i].off < end; i++ {
		ch := c.chunks[i]
		from, to := max(ch.off, off), min(ch.end(), end)
		copy(p[from-off:], ch.data[from-ch.off:to-ch.off])
	}
	return len(p), err
}

// Reader reads all of the content.
func (c *Content) Reader() io.Reader { return io.NewSectionReader(c, 0, c.size) }

// Zero tells whether every byte is zero.
func (c *Content) Zero() bool {
	for _, ch := range c.chunks {
		if !IsZero(ch.data) {
			return false
		}
	}
	return true
}

// Data calls f for the pieces that may hold anything but zeros, in ascending order.
func (c *Content) Data(f func(off int64, p []byte)) {
	for _, ch := range c.chunks {
		f(ch.off, ch.data)
	}
}

// Diff returns the offset of the first byte in which c and o differ, or that only one of them has;
// -1 when they are equal.
func (c *Content) Diff(o *Content) int64 {
	first := min(c.size, o.size)
	found := c.size != o.size
	compare := func(a, b *Content) {
		buf := make([]byte, chunkSize)
		a.Data(func(off int64, p []byte) {
			for len(p) > 0 && off < first {
				q := buf[:min(int64(len(p)), first-off, chunkSize)]
				_, _ = b.ReadAt(q, off)
				// Equal first: byte by byte is slow under the race detector.
				if i := 0; !bytes.Equal(q, p[:len(q)]) {
					for q[i] == p[i] {
						i++
					}
					first, found = off+int64(i), true
					return
				}
				p, off = p[len(q):], off+int64(len(q))
			}
		})
	}
	compare(c, o)
	compare(o, c)
	if !found {
		return -1
	}
	return first
}

// Close does nothing; with it a Content serves as a file.
func (c *Content) Close() error { return nil }

// IsZero tells whether every byte of p is zero.
func IsZero(p []byte) bool {
	const word = 256
	var zeros [word]byte
	for len(p) >= word {
		if !bytes.Equal(p[:word], zeros[:]) {
			return false
		}
		p = p[word:]
	}
	return bytes.Equal(p, zeros[:len(p)])
}
