// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
	lib "github.com/lima-vm/go-qcow2reader/image/qcow2"
	liblog "github.com/lima-vm/go-qcow2reader/log"
)

// maxZstdWindow is the largest window in bytes that a Zstandard frame may ask for: the one that
// RFC 8878, 3.1.1.1.2, recommends to support. Clusters have 2 MiB at most.
const maxZstdWindow = 8 << 20

// setUpLibrary sets the hooks that the library keeps per process: it must not log, and it gets
// decoders that are reused. Its own sets up a decoder for every cluster, and delivers so little per
// call that clusters are decoded over and over.
var setUpLibrary = sync.OnceFunc(func() {
	liblog.SetWarnFunc(nil)
	for _, t := range []lib.CompressionType{lib.CompressionTypeZlib, lib.CompressionTypeZstd} {
		lib.SetDecompressor(t, func(r io.Reader) (io.ReadCloser, error) {
			s, ok := r.(*io.SectionReader)
			if !ok {
				return nil, fmt.Errorf("compressed data comes as %T", r)
			}
			outer, off, n := s.Outer()
			v, ok := outer.(*view)
			if !ok {
				return nil, fmt.Errorf("compressed data comes from %T", outer)
			}
			// The library asks for a cluster and all sectors but the first, more than the entry says.
			sectors := (n-1<<v.clusterBits)/512 + 1
			return openCluster(v, uint8(t), off, sectors*512-off&511)
		})
	}
})

// clusterReader decodes one compressed cluster. It is used by one goroutine and reused by others.
type clusterReader struct {
	host    int64
	input   []byte
	in      bytes.Reader
	decoder io.Reader
	reset   func(io.Reader) error
	pool    *sync.Pool
}

// pools keeps decoders by compression type. They hold a window and an input buffer each, and there
// are never more of them than goroutines that read.
var pools = [...]*sync.Pool{compressionZlib: {}, compressionZstd: {}}

// openCluster returns a reader of the cluster whose compressed data is in the length bytes at
// host, or in what the file has of them. Its Read fills the whole buffer or fails.
func openCluster(v *view, compression uint8, host, length int64) (*clusterReader, error) {
	c, _ := pools[compression].Get().(*clusterReader)
	if c == nil {
		var err error
		if c, err = newClusterReader(compression); err != nil {
			return nil, err
		}
	}
	// The last compressed cluster is not padded: its last sector may be cut.
	length = min(length, v.size-host)
	if length <= 0 {
		return nil, bad("the compressed cluster at %d is outside of the file of %d bytes", host, v.size)
	}
	if int64(cap(c.input)) < length {
		c.input = make([]byte, roundUp(length, 64<<10))
	}
	c.input = c.input[:length]
	c.host = host
	if err := readFull(v, c.input, host); err != nil {
		return nil, err
	}
	c.in.Reset(c.input)
	if err := c.reset(&c.in); err != nil {
		return nil, c.damaged(err)
	}
	return c, nil
}

func newClusterReader(compression uint8) (*clusterReader, error) {
	c := &clusterReader{pool: pools[compression]}
	if compression == compressionZlib {
		d := flate.NewReader(&c.in)
		c.decoder = d
		c.reset = func(r io.Reader) error { return d.(flate.Resetter).Reset(r, nil) }
		return c, nil
	}
	// One at a time: no goroutines of its own, so that it may simply be dropped.
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxZstdWindow))
	if err != nil {
		return nil, err
	}
	c.decoder, c.reset = d, d.Reset
	return c, nil
}

// Read implements [io.Reader]. What follows the cluster in the input, which may be anything, is not
// looked at.
func (c *clusterReader) Read(p []byte) (int, error) {
	n, err := io.ReadFull(c.decoder, p)
	if err != nil {
		return n, c.damaged(err)
	}
	return n, nil
}

func (c *clusterReader) damaged(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return bad("the compressed cluster at %d is damaged: its data ends too early", c.host)
	}
	return bad("the compressed cluster at %d is damaged: %v", c.host, err)
}

// Close makes the decoder available to others.
func (c *clusterReader) Close() error {
	c.pool.Put(c)
	return nil
}
