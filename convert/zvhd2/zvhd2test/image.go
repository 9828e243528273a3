// SPDX-License-Identifier: Apache-2.0

package zvhd2test

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// Record is a stored block.
type Record struct {
	Block   uint32
	Payload []byte
	Number  uint32 // xor'ed to the block number in the record
	Entry   uint32 // xor'ed to the block number in the index
	NoMagic bool   // spoil the record's magic
	NoEnd   bool   // spoil the end mark
	Length  int64  // added to the payload length in the record
	Total   int64  // added to the record's length in the index
}

// Image is a ZVHD2 file to be made. The zero value of what is left out is what the vendor's writer
// does.
type Image struct {
	Original, Current int64 // bytes; Current 0 = Original in whole GiB
	Zlib              bool
	Dense             bool
	Records           []Record // in ascending order
	Reverse           bool     // the records are in descending order in the file
	Shift, Gap        int64    // bytes before the first record, and between records
	BitmapFirst       bool     // the bitmap lies before the index
	IndexSegments     int64    // more than needed
	BitmapSegments    int64    // more than needed
	NoMiddle          bool     // no middle page
	Bits              []uint32 // bits of the bitmap to turn over
	Filler            byte     // what is in places that have no meaning

	Head   func(h []byte) // changes the head page; the checksum is left
	Footer func(h []byte) // changes the footer page; the checksum is made right after
	After  func(f []byte) []byte
}

// Checksum is the complement of the sum of the header's bytes, the checksum's own taken for 0.
func Checksum(h []byte) uint32 {
	var sum uint32
	for i := range 512 {
		if i/4 != 16 {
			sum += uint32(h[i])
		}
	}
	return ^sum
}

// Bytes makes the file.
func (im Image) Bytes() []byte {
	le := binary.LittleEndian
	const gib = 1 << 30
	current := im.Current
	if current == 0 {
		current = (im.Original + gib - 1) / gib * gib
	}
	blocks := (im.Original + BlockSize - 1) / BlockSize
	fill := func(n int64) []byte { return bytes.Repeat([]byte{im.Filler}, int(n)) }

	head := fill(4096)
	clear(head[:512])
	copy(head, "z2strm\x00\x00\x02\x00\x00\x00\x00\x00\x01\x00")
	le.PutUint64(head[16:], 1<<64-1)
	copy(head[28:], "tap\x00\x04\x00\x01\x00")
	le.PutUint64(head[40:], uint64(im.Original))
	le.PutUint64(head[48:], uint64(current))
	head[60] = 4
	head[87] = 1
	le.PutUint32(head[88:], BlockSize)
	le.PutUint32(head[92:], uint32(blocks))
	if im.Dense {
		head[140] = 1
	}
	if !im.Zlib {
		head[141] = 1
	}
	le.PutUint32(head[64:], Checksum(head))

	file := slices.Clone(head)
	file = append(file, fill(im.Shift)...)
	entries := make([]byte, 16*len(im.Records))
	if im.Dense {
		entries = make([]byte, 16*blocks)
	}
	bitmap := make([]byte, 4096*((blocks+32767)/32768+im.BitmapSegments))
	order := make([]int, len(im.Records))
	for i := range order {
		order[i] = i
	}
	if im.Reverse {
		slices.Reverse(order)
	}
	for _, i := range order {
		r := im.Records[i]
		total := (int64(len(r.Payload)) + 52 + 4095) / 4096 * 4096
		e := entries[16*i:]
		if im.Dense {
			e = entries[16*r.Block:]
		}
		le.PutUint64(e, uint64(len(file)))
		le.PutUint32(e[8:], r.Block^r.Entry)
		le.PutUint32(e[12:], uint32(total+r.Total))
		bitmap[r.Block/8] |= 1 << (r.Block % 8)

		p := fill(total)
		clear(p[:48])
		copy(p, "hwstream bg\x00")
		if r.NoMagic {
			p[0] = 'x'
		}
		le.PutUint32(p[12:], uint32(int64(len(r.Payload))+r.Length))
		le.PutUint32(p[16:], r.Block^r.Number)
		copy(p[48:], r.Payload)
		copy(p[total-4:], "end\x00")
		if r.NoEnd {
			p[total-1] = 1
		}
		file = append(file, p...)
		file = append(file, fill(im.Gap)...)
	}
	for _, b := range im.Bits {
		bitmap[b/8] ^= 1 << (b % 8)
	}
	if !im.NoMiddle {
		file = append(file, head...)
	}
	file = append(file, fill((4096-int64(len(file))%4096)%4096)...)

	indexSegments := int64(len(entries)+524287)/524288 + im.IndexSegments
	index := fill(indexSegments * 524288)
	copy(index, entries)
	footer := slices.Clone(head)
	tables := [][]byte{index, bitmap}
	if im.BitmapFirst {
		slices.Reverse(tables)
	}
	at := []int64{int64(len(file)), int64(len(file) + len(tables[0]))}
	file = append(append(file, tables[0]...), tables[1]...)
	if im.BitmapFirst {
		slices.Reverse(at)
	}
	le.PutUint64(footer[96:], uint64(at[0]))
	le.PutUint64(footer[104:], uint64(at[1]))
	le.PutUint32(footer[112:], uint32(len(index)))
	le.PutUint32(footer[116:], uint32(len(bitmap)))
	le.PutUint32(footer[120:], 524288)
	le.PutUint32(footer[124:], 4096)
	le.PutUint32(footer[128:], uint32(indexSegments))
	le.PutUint32(footer[132:], uint32(len(bitmap)/4096))
	le.PutUint32(footer[136:], uint32(len(im.Records)))
	le.PutUint32(footer[64:], Checksum(footer))
	if im.Footer != nil {
		im.Footer(footer)
		le.PutUint32(footer[64:], Checksum(footer))
	}
	file = append(file, footer...)
	if im.Head != nil {
		im.Head(file[:4096])
	}
	if im.After != nil {
		file = im.After(file)
	}
	return file
}

// ZstdBlock compresses a block like the vendor's writer.
func ZstdBlock(p []byte) []byte {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true),
		zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return e.EncodeAll(p, nil)
}

// ZlibBlock compresses a block; the stream is finished, or ends with a sync flush like the
// vendor's.
func ZlibBlock(p []byte, level int, finish bool) []byte {
	var b bytes.Buffer
	w, err := zlib.NewWriterLevel(&b, level)
	if err != nil {
		panic(err)
	}
	if _, err := w.Write(p); err != nil {
		panic(err)
	}
	if err := w.Flush(); err != nil {
		panic(err)
	}
	if finish {
		if err := w.Close(); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}
