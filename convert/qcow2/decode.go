// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/imsprep/imsprep/convert/inflate"
)

// maxZstdWindow is the largest window in bytes that a Zstandard frame may ask for: the one that
// RFC 8878, 3.1.1.1.2, recommends to support. Clusters have 2 MiB at most.
const maxZstdWindow = 8 << 20

// decoder decodes compressed clusters. It is used by one goroutine and reused by others; there are never
// more of them than goroutines that read.
type decoder struct {
	input   []byte
	cluster []byte // for a cluster that isn't wanted from its start on
	inflate inflate.Decoder
	frame   *zstd.Decoder // of whole clusters; both are made when they are needed
	stream  *zstd.Decoder
	in      bytes.Reader
}

var decoders = sync.Pool{New: func() any { return new(decoder) }}

// readCompressed reads p at the position skip in a compressed cluster. What follows the cluster in the
// input, which may be anything, is not looked at.
func (img *Image) readCompressed(p []byte, skip int64, s segment) error {
	d := decoders.Get().(*decoder)
	if err := d.load(img.view, s.host, s.stored); err != nil {
		return err
	}
	out := p
	if skip > 0 {
		d.cluster = grow(d.cluster, skip+int64(len(p)))
		out = d.cluster
	}
	var err error
	if img.m.compression == compressionZstd {
		err = d.decodeZstd(out, int64(len(out)) == img.m.ClusterSize)
	} else {
		err = d.decodeDeflate(out)
	}
	if err != nil {
		return damagedCluster(s.host, err)
	}
	if skip > 0 {
		copy(p, out[skip:])
	}
	decoders.Put(d) // but for one that failed, whatever state it is in
	return nil
}

// load reads the compressed data in the length bytes at host, or in what the file has of them.
func (d *decoder) load(v *view, host, length int64) error {
	// The last compressed cluster is not padded: its last sector may be cut.
	length = min(length, v.size-host)
	if length <= 0 {
		return bad("the compressed cluster at %d is outside of the file of %d bytes", host, v.size)
	}
	d.input = grow(d.input, length)
	return readFull(v, d.input, host)
}

// grow returns a buffer of n bytes, which is p if that is large enough.
func grow(p []byte, n int64) []byte {
	if int64(cap(p)) < n {
		p = make([]byte, roundUp(n, 64<<10))
	}
	return p[:n]
}

// decodeDeflate fills out with the beginning of the cluster.
func (d *decoder) decodeDeflate(out []byte) error {
	n, _, err := d.inflate.Deflate(out, d.input)
	if n == len(out) {
		return nil
	}
	if err == nil {
		err = inflate.ErrTruncated
	}
	return err
}

// decodeZstd fills out with the beginning of the cluster, or with the whole of it.
func (d *decoder) decodeZstd(out []byte, whole bool) (err error) {
	// A cluster is one frame, whose data goes right to where it is wanted. Whatever else it may be is
	// decoded as a stream, which takes what there is and copies it.
	if n := frameLength(d.input); n > 0 && whole {
		if d.frame == nil {
			if d.frame, err = newZstd(); err != nil {
				return err
			}
		}
		if got, err := d.frame.DecodeAll(d.input[:n], out[:0:len(out)]); err == nil && len(got) == len(out) {
			return nil
		}
	}
	if d.stream == nil {
		// Not the other one, which waits for the end of a stream that was begun.
		if d.stream, err = newZstd(); err != nil {
			return err
		}
	}
	d.in.Reset(d.input)
	if err = d.stream.Reset(&d.in); err == nil {
		_, err = io.ReadFull(d.stream, out)
	}
	return err
}

// newZstd returns a decoder without goroutines of its own, so that it may simply be dropped.
func newZstd() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecodeAllCapLimit(true))
}

// frameLength returns the length in bytes of the Zstandard frame that p begins with (RFC 8878, 3.1.1), 0 if
// p has none or not the whole of it.
func frameLength(p []byte) int {
	var h zstd.Header
	if h.Decode(p) != nil || h.Skippable {
		return 0
	}
	at := h.HeaderSize
	for last := false; !last; {
		if len(p)-at < 3 {
			return 0
		}
		block := int(p[at]) | int(p[at+1])<<8 | int(p[at+2])<<16
		last = block&1 == 1
		at += 3
		if block>>1&3 == 1 {
			at++ // one byte, repeated
		} else {
			at += block >> 3
		}
	}
	if h.HasCheckSum {
		at += 4
	}
	if at > len(p) {
		return 0
	}
	return at
}

func damagedCluster(host int64, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, inflate.ErrTruncated) {
		return bad("the compressed cluster at %d is damaged: its data ends too early", host)
	}
	return bad("the compressed cluster at %d is damaged: %v", host, err)
}
