// SPDX-License-Identifier: Apache-2.0

// Package zvhd2test makes what tests of the ZVHD2 and ZVHD formats need: the disks that the
// vendor's sample files were made from, and ZVHD2 files of every kind, right and wrong. It shares
// no code with the reader and the writer that it tests.
package zvhd2test

import (
	"crypto/sha512"
	"fmt"
	"io"
	"strings"
)

// BlockSize is the number of bytes in a block.
const BlockSize = 2 << 20

// Piece is data at an offset of a disk.
type Piece struct {
	Offset int64
	Data   []byte
}

// Disk is a disk of zeros with a few pieces of data, in ascending order.
type Disk struct {
	Size   int64 // bytes, may be no multiple of 512
	Pieces []Piece
}

// ReadAt implements [io.ReaderAt].
func (d Disk) ReadAt(p []byte, off int64) (int, error) {
	if off >= d.Size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), d.Size-off))
	clear(p[:n])
	for _, piece := range d.Pieces {
		if from := piece.Offset - off; from >= int64(n) || from+int64(len(piece.Data)) <= 0 {
			continue
		} else if from >= 0 {
			copy(p[from:n], piece.Data)
		} else {
			copy(p[:n], piece.Data[-from:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Block returns the content of a block, filled up with zeros.
func (d Disk) Block(b int64) []byte {
	p := make([]byte, BlockSize)
	if _, err := d.ReadAt(p, b*BlockSize); err != nil && err != io.EOF {
		panic(err)
	}
	return p
}

// Blocks returns the numbers of the blocks that hold data, in ascending order.
func (d Disk) Blocks() []int64 {
	var blocks []int64
	for _, p := range d.Pieces {
		for b := p.Offset / BlockSize; b*BlockSize < p.Offset+int64(len(p.Data)); b++ {
			if len(blocks) == 0 || blocks[len(blocks)-1] < b {
				blocks = append(blocks, b)
			}
		}
	}
	return blocks
}

// Text returns n bytes of lines, T(s) in the notes on the sample files.
func Text(s string, n int) []byte {
	var b strings.Builder
	for i := 0; b.Len() < n; i = (i + 1) % 1000 {
		fmt.Fprintf(&b, "%s line %08d\n", s, i)
	}
	return []byte(b.String()[:n])
}

// Noise returns n bytes of noise, R(s) in the notes on the sample files.
func Noise(s string, n int) []byte {
	var b []byte
	for i := 0; len(b) < n; i++ {
		sum := sha512.Sum512([]byte(fmt.Sprintf("%s:%d", s, i)))
		b = append(b, sum[:]...)
	}
	return b[:n]
}

// Sample returns the disk that a sample file was made from, by the name of the file without its
// suffix.
func Sample(name string) Disk {
	const mib, gib = 1 << 20, 1 << 30
	last := func(n int) []byte { return Text("last", n) }
	at := func(offset int64, data []byte) Piece { return Piece{offset, data} }
	switch name {
	case "zero":
		return Disk{Size: 64 * mib}
	case "tiny":
		return Disk{8 * mib, []Piece{
			at(0, Text("tiny", 2*mib)),
			at(4206649, []byte("hello, zvhd2")),
			at(3*BlockSize, Noise("tiny3", 64<<10)),
			at(3*BlockSize+64<<10, Text("tiny3", BlockSize-64<<10)),
		}}
	case "odd":
		return Disk{5244316, []Piece{
			at(BlockSize+BlockSize/2, Text("odd1", 300000)),
			at(2*BlockSize+500000, Noise("odd2", 20000)),
			at(5244316-7, []byte("THE END")),
		}}
	case "sparse", "dense-zlib":
		return Disk{gib, []Piece{
			at(0, []byte("block zero")),
			at(2*BlockSize-5, []byte("five.")),
			at(255*BlockSize+1000, Text("s255", 70000)),
			at(256*BlockSize, []byte("block 256")),
			at(300*BlockSize+777, Noise("s300", 3000)),
			at(gib-512, last(512)),
		}}
	case "random":
		return Disk{2 * mib, []Piece{at(0, Noise("random", 2*mib))}}
	case "multiseg":
		return Disk{65 * gib, []Piece{
			at(0, []byte("first block")),
			at(32767*BlockSize, Text("b32767", 5000)),
			at(32769*BlockSize-9, []byte("seg two  ")),
			at(33279*BlockSize+4096, Text("b33279", 1000)),
		}}
	case "window":
		return Disk{8 * mib, []Piece{
			at(0, Text("win0", 100000)),
			at(BlockSize-16<<10, Noise("win", 16<<10)),
			at(2*BlockSize, Noise("win", 16<<10)),
			at(3*BlockSize+5, Noise("win", 9000)),
			at(3*BlockSize+100000, Text("win3", 50000)),
		}}
	}
	panic("there is no sample " + name)
}
