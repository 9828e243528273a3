// SPDX-License-Identifier: Apache-2.0

package qcow1_test

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/lima-vm/go-qcow2reader/image"
)

var be = binary.BigEndian

// memory is a disk in memory, to be a parent.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }
func (m memory) Close() error                            { return nil }
func (m memory) Size() int64                             { return int64(len(m)) }
func (m memory) Type() image.Type                        { return "raw" }
func (m memory) Readable() error                         { return nil }

// Extent reports zero blocks of 512 bytes as such, to have many short extents.
func (m memory) Extent(start, length int64) (image.Extent, error) {
	if start < 0 || length <= 0 || start+length > m.Size() {
		return image.Extent{}, errors.New("out of bounds")
	}
	block := start / 512 * 512
	zero := len(bytes.Trim(m[block:min(block+512, m.Size())], "\x00")) == 0
	return image.Extent{Start: start, Length: min(length, 512-start%512), Allocated: !zero, Zero: zero}, nil
}

// disk is what an image is written from.
type disk struct {
	size        int64 // as in the header
	clusterBits uint
	l2Bits      uint
	data        map[int64][]byte
	packed      map[int64]bool // those of the data that are compressed
	unfinished  bool           // compressed clusters have no final block
	packAlign   int64          // where compressed clusters begin: 1 or 512
	shift       int64          // of plain clusters from multiples of the cluster size
	order       []int64        // of the disk's clusters in the file
	tablesLast  bool           // L2 tables lie behind the data
	backing     string
	missing     int64 // bytes cut off the end of the file, which must end in a plain cluster
	deflater    *flate.Writer
}

func (d *disk) cluster() int64 { return 1 << d.clusterBits }
func (d *disk) count() int64   { return (d.size-1)/d.cluster() + 1 }

// content is what the disk reads as.
func (d *disk) content(parent []byte) []byte {
	all := make([]byte, d.count()*d.cluster())
	copy(all[:d.size], parent)
	for i, p := range d.data {
		c := all[i*d.cluster() : (i+1)*d.cluster()]
		clear(c)
		copy(c, p)
	}
	if d.missing > 0 {
		end := (d.order[len(d.order)-1] + 1) * d.cluster()
		clear(all[end-d.missing : end])
	}
	return append(all[:d.size:d.size], make([]byte, (512-d.size%512)%512)...)
}

// deflate compresses a cluster.
func (d *disk) deflate(p []byte) []byte {
	var b bytes.Buffer
	if d.deflater == nil {
		d.deflater, _ = flate.NewWriter(nil, flate.DefaultCompression)
	}
	w := d.deflater
	w.Reset(&b)
	if _, err := w.Write(append(bytes.Clone(p), make([]byte, d.cluster()-int64(len(p)))...)); err != nil {
		panic(err)
	}
	finish := w.Close
	if d.unfinished {
		finish = w.Flush
	}
	if err := finish(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// write returns the image: the header, the backing file name, the L1 table, and L2 tables and data
// in the order asked for.
func (d *disk) write() []byte {
	f := make([]byte, 48)
	grow := func(n, align int64) int64 {
		at := (int64(len(f)) + align - 1) / align * align
		f = append(f, make([]byte, at-int64(len(f))+n)...)
		return at
	}
	copy(f, "QFI\xfb")
	be.PutUint32(f[4:], 1)
	be.PutUint32(f[20:], 12345)
	be.PutUint64(f[24:], uint64(d.size))
	f[32], f[33] = byte(d.clusterBits), byte(d.l2Bits)
	if d.backing != "" {
		be.PutUint64(f[8:], 48)
		be.PutUint32(f[16:], uint32(len(d.backing)))
		f = append(f, d.backing...)
	}
	span := d.cluster() << d.l2Bits
	l1 := grow((d.size+span-1)/span*8, 8)
	be.PutUint64(f[40:], uint64(l1))
	l2 := map[int64]int64{}
	tables := func() {
		for _, i := range d.order {
			if t := i >> d.l2Bits; l2[t] == 0 {
				l2[t] = grow(8<<d.l2Bits, 512)
				be.PutUint64(f[l1+t*8:], uint64(l2[t]))
			}
		}
	}
	if !d.tablesLast {
		tables()
	}
	entries := map[int64]uint64{}
	for _, i := range d.order {
		p := d.data[i]
		if d.packed[i] {
			p = d.deflate(p)
			at := grow(int64(len(p)), max(1, d.packAlign))
			copy(f[at:], p)
			if int64(len(p)) >= d.cluster() {
				panic("a cluster is too long when compressed")
			}
			entries[i] = 1<<63 | uint64(len(p))<<(63-d.clusterBits) | uint64(at)
			continue
		}
		grow(0, d.cluster())
		at := grow(d.shift+d.cluster(), 1) + d.shift
		copy(f[at:], p)
		entries[i] = uint64(at)
	}
	if d.tablesLast {
		tables()
	}
	for i, e := range entries {
		be.PutUint64(f[l2[i>>d.l2Bits]+i&(1<<d.l2Bits-1)*8:], e)
	}
	return f[:int64(len(f))-d.missing]
}

// last tells whether the file ends with a plain cluster, and which.
func (d *disk) last() (int64, bool) {
	if d.tablesLast || len(d.order) == 0 {
		return 0, false
	}
	i := d.order[len(d.order)-1]
	return i, !d.packed[i] && i != slices.Max(d.order)
}
