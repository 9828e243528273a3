// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/convert"
)

// Attributes of an image that only the simulator has: what the disk is that a
// quick import has made.
const (
	// AttrContentSHA256 is the SHA-256, in hex, of the whole disk as a server
	// would read it: the blocks that the bitmap marks as data, zeros elsewhere.
	// It is missing for disks larger than Options.HashLimit.
	AttrContentSHA256 = "__content_sha256"
	// AttrContentSize is the size of that disk in bytes, in decimal.
	AttrContentSize = "__content_size"
	// AttrContentSparse is a hash of the same content whose cost is in its data
	// and not in its size. See [SparseHash].
	AttrContentSparse = "__content_sparse_sha256"
	// AttrContentData is how many bytes the bitmap marks as data, in decimal.
	AttrContentData = "__content_data_bytes"
)

// SparseBlock is the size of the blocks that a [SparseHash] is made of.
const SparseBlock = 2 << 20

// SparseHash hashes a disk without its zeros. It is the SHA-256 of, for each
// block of SparseBlock bytes that is not all zeros, in order: the number of the
// block as 8 bytes, big-endian, and the SHA-256 of its content; and at the end
// the disk's size as 8 bytes. The last block may be shorter. Two disks of the
// same size and content have the same hash, however their zeros are stored.
type SparseHash struct {
	h hash.Hash
}

// NewSparseHash returns the hash of an empty disk.
func NewSparseHash() *SparseHash { return &SparseHash{sha256.New()} }

// Add adds a block by number and content, unless it is all zeros. Blocks must
// come in order.
func (s *SparseHash) Add(block int64, p []byte) {
	if isZero(p) {
		return
	}
	sum := sha256.Sum256(p)
	s.h.Write(binary.BigEndian.AppendUint64(nil, uint64(block)))
	s.h.Write(sum[:])
}

// Sum returns the hash in hex for a disk of that size. Nothing may be added
// afterwards.
func (s *SparseHash) Sum(size int64) string {
	s.h.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
	return hex.EncodeToString(s.h.Sum(nil))
}

// content is what was found when an image's disk was read.
type content struct {
	size, data     int64
	sha256, sparse string // "" if not computed
}

// maxBitmap bounds the .mf that is read into memory. The bitmap of a terabyte
// has 64 KiB with a bit per 2 MiB, and 256 MiB with one per sector.
const maxBitmap = 256<<20 + 1<<20

// readContent reads the object as the service does to make an image of it.
// progress learns which part of the work is done; its error ends the reading.
func (s *Server) readContent(ctx context.Context, spec *importSpec, progress func(float64) error) (*content, error) {
	obj, err := s.opt.Objects.Open(ctx, spec.bucket, spec.key)
	if err != nil {
		return nil, jobErrorf("IMG.0057", "%s: %s", spec.key, reason(err))
	}
	defer obj.Close()
	if !spec.quick {
		return s.readConverted(ctx, obj, spec, progress)
	}
	var d disk
	if spec.format == "raw" {
		d, err = s.openRAW(ctx, obj, spec)
	} else {
		d, err = openZVHD2(ctx, obj, spec)
	}
	if err != nil {
		return nil, err
	}
	return rebuild(ctx, d, s.opt.HashLimit, progress)
}

// disk is what an object holds, as lazy loading sees it: only blocks that are marked as data are read.
type disk struct {
	size int64 // bytes
	// read fills p with the content at off and returns how many bytes of it are marked as data. With
	// none, p is left as it is.
	read func(off int64, p []byte) (marked int64, err error)
}

// openRAW opens a RAW object by the bitmap beside it.
func (s *Server) openRAW(ctx context.Context, obj io.ReaderAt, spec *importSpec) (disk, error) {
	m, err := s.readBitmap(ctx, spec)
	if err != nil {
		return disk{}, err
	}
	return disk{m.VirtualSize(), func(off int64, p []byte) (int64, error) { return readMarked(obj, m, off, p) }}, nil
}

// openZVHD2 opens a ZVHD2 object, whose index and bitmap say what is in it.
func openZVHD2(ctx context.Context, obj io.ReaderAt, spec *importSpec) (disk, error) {
	img, err := convert.OpenZVHD2(ctx, obj, spec.size)
	if err != nil {
		return disk{}, jobErrorf("IMG.0057", "%v", err)
	}
	size := img.Size()
	if size > spec.minDisk*gib {
		return disk{}, jobErrorf("IMG.0055", "the disk has %d bytes, min_disk is %d", size, spec.minDisk)
	}
	return disk{size, func(off int64, p []byte) (marked int64, err error) {
		for at := off; at < off+int64(len(p)); {
			e, err := img.Extent(at, off+int64(len(p))-at)
			if err != nil {
				return 0, jobErrorf("IMG.0057", "at %d: %v", at, err)
			}
			if !e.Zero {
				marked += e.Length
			}
			at += e.Length
		}
		if marked == 0 {
			return 0, nil
		}
		if n, err := img.ReadAt(p, off); n < len(p) {
			return 0, jobErrorf("IMG.0057", "read %d bytes at %d: %v", len(p), off, err)
		}
		return marked, nil
	}}, nil
}

func (s *Server) readBitmap(ctx context.Context, spec *importSpec) (*bitmap.Map, error) {
	key := bitmapKey(spec.key)
	size, _, err := s.opt.Objects.Stat(ctx, spec.bucket, key)
	if err != nil {
		return nil, jobErrorf("IMG.0158", "%s: %s", key, reason(err))
	}
	if size > maxBitmap {
		return nil, jobErrorf("IMG.1075", "the bitmap %s has %d bytes", key, size)
	}
	f, err := s.opt.Objects.Open(ctx, spec.bucket, key)
	if err != nil {
		return nil, jobErrorf("IMG.0158", "%s: %s", key, reason(err))
	}
	defer f.Close()
	p := make([]byte, size)
	if _, err := f.ReadAt(p, 0); err != nil && !(errors.Is(err, io.EOF) && size == 0) {
		return nil, jobErrorf("IMG.1075", "the bitmap %s cannot be read", key)
	}
	m, err := s.opt.Layout.Decode(p, spec.size)
	if err != nil {
		return nil, jobErrorf("IMG.1075", "the bitmap %s: %v", key, err)
	}
	return m, nil
}

// rebuild reads the blocks that are marked as data, and nothing else, and
// hashes the disk that they make. Memory is one block of SparseBlock bytes.
func rebuild(ctx context.Context, d disk, hashLimit int64, progress func(float64) error) (*content, error) {
	size := d.size
	c := &content{size: size}
	var full hash.Hash
	if hashLimit == 0 || size <= hashLimit {
		full = sha256.New()
	}
	sparse := NewSparseHash()
	buf := make([]byte, min(SparseBlock, size))
	// The work is in the data, and in the zeros when they are hashed as well.
	for off := int64(0); off < size; off += SparseBlock {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := progress(float64(off) / float64(size)); err != nil {
			return nil, err
		}
		p := buf[:min(SparseBlock, size-off)]
		marked, err := d.read(off, p)
		if err != nil {
			return nil, err
		}
		c.data += marked
		if marked > 0 {
			sparse.Add(off/SparseBlock, p)
		} else {
			p = zeros[:len(p)]
		}
		if full != nil {
			full.Write(p)
		}
	}
	if err := progress(1); err != nil {
		return nil, err
	}
	c.sparse = sparse.Sum(size)
	if full != nil {
		c.sha256 = hex.EncodeToString(full.Sum(nil))
	}
	return c, nil
}

// readMarked fills p with the disk's content at off and returns how many bytes
// of it are marked as data. With none, p is left as it is.
func readMarked(src io.ReaderAt, m *bitmap.Map, off int64, p []byte) (marked int64, err error) {
	step := m.BlockSize()
	end := off + int64(len(p))
	first := true
	for at := off; at < end; {
		block := at / step
		next := min((block+1)*step, end)
		if m.Data(block) {
			if first {
				clear(p)
				first = false
			}
			// Whole runs are read at once.
			for next < end && m.Data(next/step) {
				next = min((next/step+1)*step, end)
			}
			q := p[at-off : next-off]
			if n, err := src.ReadAt(q, at); n < len(q) {
				if errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.EOF) {
					err = errors.New("the object has changed")
				}
				return 0, jobErrorf("IMG.0057", "read %d bytes at %d: %v", len(q), at, err)
			}
			marked += int64(len(q))
		}
		at = next
	}
	return marked, nil
}

// zeros is only ever read.
var zeros = make([]byte, SparseBlock)

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
