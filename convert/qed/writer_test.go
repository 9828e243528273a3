// SPDX-License-Identifier: Apache-2.0

package qed_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/lima-vm/go-qcow2reader/image"
)

var le = binary.LittleEndian

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
	size        int64
	clusterSize int64
	tableSize   int64 // in clusters
	headerSize  int64 // in clusters
	data        map[int64][]byte
	zeros       map[int64]bool
	order       []int64 // of the disk's clusters in the file
	tablesLast  bool    // L2 tables lie behind the data
	backing     string
	features    uint64 // besides the backing file
}

func (d *disk) entries() int64 { return d.clusterSize * d.tableSize / 8 }
func (d *disk) count() int64   { return (d.size-1)/d.clusterSize + 1 }

// content is what the disk reads as.
func (d *disk) content(parent []byte) []byte {
	all := make([]byte, d.count()*d.clusterSize)
	copy(all[:d.size], parent)
	for i := range d.zeros {
		clear(all[i*d.clusterSize : (i+1)*d.clusterSize])
	}
	for i, p := range d.data {
		copy(all[i*d.clusterSize:(i+1)*d.clusterSize], append(bytes.Clone(p), make([]byte, d.clusterSize)...))
	}
	return all[:d.size]
}

// write returns the image: the header, the L1 table, and L2 tables and data in the order asked for.
func (d *disk) write() []byte {
	f := make([]byte, d.headerSize*d.clusterSize)
	grow := func(n int64) int64 {
		at := int64(len(f))
		f = append(f, make([]byte, n)...)
		return at
	}
	l1 := grow(d.tableSize * d.clusterSize)
	var indexes []int64
	for _, i := range d.order {
		if t := i / d.entries(); !slices.Contains(indexes, t) {
			indexes = append(indexes, t)
		}
	}
	l2 := map[int64]int64{}
	tables := func() {
		for _, t := range indexes {
			l2[t] = grow(d.tableSize * d.clusterSize)
			le.PutUint64(f[l1+t*8:], uint64(l2[t]))
		}
	}
	if !d.tablesLast {
		tables()
	}
	places := map[int64]int64{}
	for _, i := range d.order {
		if p, ok := d.data[i]; ok {
			places[i] = grow(d.clusterSize)
			copy(f[places[i]:], p)
		}
	}
	if d.tablesLast {
		tables()
	}
	for _, i := range d.order {
		e := uint64(places[i])
		if d.zeros[i] {
			e = 1
		}
		le.PutUint64(f[l2[i/d.entries()]+i%d.entries()*8:], e)
	}
	copy(f, "QED\x00")
	le.PutUint32(f[4:], uint32(d.clusterSize))
	le.PutUint32(f[8:], uint32(d.tableSize))
	le.PutUint32(f[12:], uint32(d.headerSize))
	le.PutUint64(f[16:], d.features)
	le.PutUint64(f[24:], ^uint64(0)) // compatible and autoclear features say nothing to a reader
	le.PutUint64(f[32:], ^uint64(0))
	le.PutUint64(f[40:], uint64(l1))
	le.PutUint64(f[48:], uint64(d.size))
	if d.backing != "" {
		le.PutUint64(f[16:], d.features|1)
		le.PutUint32(f[56:], 64)
		le.PutUint32(f[60:], uint32(len(d.backing)))
		copy(f[64:], d.backing)
	}
	return f
}
