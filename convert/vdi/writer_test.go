// SPDX-License-Identifier: Apache-2.0

package vdi_test

import (
	"encoding/binary"
)

var le = binary.LittleEndian

// disk is what an image is written from.
type disk struct {
	size      int64 // as in the header
	blockSize int64
	static    bool
	blocks    map[int64][]byte // by block of the disk; shorter ones are filled up with zeros
	discarded map[int64]bool
	order     []int64 // of the disk's blocks in the file
	spare     int64   // entries of the block map behind the disk
	spareData bool    // the first of them has a block
	mapOffset int64   // 0 = 512
	gap       int64   // bytes between the block map and the data, above the padding to 512
	missing   int64   // bytes cut off the end of the file
}

// count is the number of blocks of the disk.
func (d *disk) count() int64 { return (d.size-1)/d.blockSize + 1 }

// content is what the disk reads as.
func (d *disk) content() []byte {
	all := make([]byte, d.count()*d.blockSize)
	for i, data := range d.blocks {
		copy(all[i*d.blockSize:], data)
	}
	if d.missing > 0 {
		last := d.order[len(d.order)-1]
		clear(all[(last+1)*d.blockSize-d.missing : (last+1)*d.blockSize])
	}
	return all[:(d.size+511)/512*512]
}

// write returns the image. Every block of the order that has data gets a place.
func (d *disk) write() []byte {
	mapOffset := max(d.mapOffset, 512)
	entries := d.count() + d.spare
	dataOffset := (mapOffset+entries*4+511)/512*512 + d.gap
	f := make([]byte, dataOffset)
	copy(f, "<<< Test Disk Image >>>\n")
	put := func(at int, v uint32) { le.PutUint32(f[at:], v) }
	put(64, 0xBEDA107F)
	put(68, 0x00010001)
	put(72, 400)
	put(76, 1)
	if d.static {
		put(76, 2)
	}
	put(340, uint32(mapOffset))
	put(344, uint32(dataOffset))
	put(360, 512)
	le.PutUint64(f[368:], uint64(d.size))
	put(376, uint32(d.blockSize))
	put(384, uint32(entries))
	put(388, uint32(len(d.blocks)))
	for i := range 32 {
		f[392+i] = byte(i + 1)
	}
	table := f[mapOffset : mapOffset+entries*4]
	for i := range table {
		table[i] = 0xFF
	}
	for i := range d.discarded {
		le.PutUint32(table[i*4:], 0xFFFFFFFE)
	}
	next := uint32(0)
	if d.spareData {
		le.PutUint32(table[d.count()*4:], next)
		f = append(f, make([]byte, d.blockSize)...)
		next++
	}
	for _, i := range d.order {
		data, ok := d.blocks[i]
		if !ok {
			continue
		}
		le.PutUint32(f[mapOffset+i*4:], next)
		f = append(append(f, data...), make([]byte, d.blockSize-int64(len(data)))...)
		next++
	}
	return f[:int64(len(f))-d.missing]
}
