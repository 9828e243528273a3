// SPDX-License-Identifier: Apache-2.0

package vmdk

import (
	"errors"
	"fmt"
	"sync"

	"github.com/imsprep/imsprep/convert/inflate"
)

// decoder decodes compressed grains. It is used by one goroutine and reused by others; there are
// never more of them than goroutines that read.
type decoder struct {
	input   []byte
	data    []byte // the compressed data, in input
	inflate inflate.Decoder
	grain   []byte // a decoded grain
}

var decoders = sync.Pool{New: func() any { return new(decoder) }}

// firstRead is how many bytes of a compressed grain are read before its length is known: enough for
// most grains, which have 64 KiB before they are compressed.
const firstRead = 32 << 10

// readGrain fills p from the position skip of the compressed grain at the offset host of the file.
func (s *sparse) readGrain(p []byte, host, number, skip int64) (err error) {
	d := decoders.Get().(*decoder)
	defer func() {
		// A decoder that panics on damaged data is a bug, but not worth the end of the process.
		if r := recover(); r != nil {
			err = bad("the grain at %d is damaged: %v", host, r)
			return
		}
		decoders.Put(d)
	}()
	if err := d.load(s, host, number); err != nil {
		return err
	}
	// What the grain has to have: the disk may end inside of the last one.
	need := min(s.grain, s.capacity-number*s.grain)
	out := p
	if skip != 0 || int64(len(p)) < s.grain {
		if int64(cap(d.grain)) < s.grain {
			d.grain = make([]byte, s.grain)
		}
		out = d.grain[:s.grain]
	}
	if err := d.decode(out, need); err != nil {
		return fmt.Errorf("the grain at %d: %w", host, err)
	}
	if len(out) != len(p) || skip != 0 {
		copy(p, out[skip:])
	}
	return nil
}

// load reads the compressed data of the grain at host, which has to be that of the grain of that
// number.
func (d *decoder) load(s *sparse, host, number int64) error {
	most := min(s.maxStored()+markerHeaderBytes, s.size-host)
	if int64(cap(d.input)) < most {
		d.input = make([]byte, most)
	}
	d.input = d.input[:most]
	if !s.markers {
		// The length is nowhere told: the data says itself where it ends.
		if err := s.readFull(d.input, host); err != nil {
			return err
		}
		d.data = d.input
		return nil
	}
	have := min(most, firstRead)
	if err := s.readFull(d.input[:have], host); err != nil {
		return err
	}
	if have < sectorSize {
		return bad("the grain at %d ends outside of the file of %d bytes; the image is truncated", host, s.size)
	}
	m := parseMarker(d.input)
	says, err := s.checkMarker(m, host)
	if err != nil {
		return err
	}
	if says != number {
		return bad("the grain at %d says that it is for sector %d of the disk, but the tables use it for sector %d",
			host, m.value, number*s.grain/sectorSize)
	}
	length := markerHeaderBytes + int64(m.size)
	if length > have {
		if err := s.readFull(d.input[have:length], host+have); err != nil {
			return err
		}
	}
	d.data = d.input[markerHeaderBytes:length]
	return nil
}

// decode fills out with the decoded data, which must have between need and len(out) bytes; a rest
// is cleared. Its checksum must be right.
func (d *decoder) decode(out []byte, need int64) error {
	n, _, err := d.inflate.Zlib(out, d.data)
	switch {
	case errors.Is(err, inflate.ErrFull):
		return bad("its data is longer than a grain of %d bytes", len(out))
	case errors.Is(err, inflate.ErrTruncated):
		return bad("its compressed data ends too early")
	case err != nil:
		return bad("its compressed data is damaged: %v", err)
	case int64(n) < need:
		return bad("its data has only %d bytes of %d", n, need)
	}
	clear(out[n:])
	return nil
}
