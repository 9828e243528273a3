// SPDX-License-Identifier: Apache-2.0

package qcow1

import (
	"errors"
	"io"
	"sync"

	"github.com/imsprep/imsprep/convert/inflate"
)

// windowBytes is how much compressed data is read at a time at most. It is more than any cluster.
const windowBytes = 128 << 10

// decoder decodes compressed clusters. It is used by one goroutine and reused by others.
type decoder struct {
	window  []byte // a part of the file
	offset  int64  // of the window
	inflate inflate.Decoder
	cluster []byte // for clusters that are not wanted from their start on
}

// decoders keeps decoders of all images: a few hundred KiB for each goroutine that reads.
var decoders sync.Pool

func newDecoder() *decoder {
	d, ok := decoders.Get().(*decoder)
	if !ok {
		d = &decoder{window: make([]byte, 0, windowBytes), cluster: make([]byte, 1<<maxClusterBits)}
	}
	d.window = d.window[:0]
	return d
}

func (d *decoder) release() { decoders.Put(d) }

// has tells whether the window has a range of the file.
func (d *decoder) has(host, length int64) bool {
	return len(d.window) > 0 && host >= d.offset && host+length <= d.offset+int64(len(d.window))
}

// load reads the window.
func (d *decoder) load(r io.ReaderAt, host, length int64) error {
	d.window = d.window[:length]
	d.offset = host
	if err := readFull(r, d.window, host); err != nil {
		d.window = d.window[:0]
		return err
	}
	return nil
}

// decode fills p with what the cluster at host has from the position skip on. Its data must be in
// the window. What follows the end of the cluster there, if anything, is not looked at.
func (d *decoder) decode(p []byte, skip, host, length int64) error {
	out := p
	if skip > 0 {
		out = d.cluster[:skip+int64(len(p))]
	}
	if n, _, err := d.inflate.Deflate(out, d.window[host-d.offset:][:length]); n < len(out) {
		if err == nil || errors.Is(err, inflate.ErrTruncated) {
			return bad("the compressed cluster of %d bytes at %d is damaged: its data ends too early", length, host)
		}
		return bad("the compressed cluster of %d bytes at %d is damaged: %v", length, host, err)
	}
	if skip > 0 {
		copy(p, out[skip:])
	}
	return nil
}
