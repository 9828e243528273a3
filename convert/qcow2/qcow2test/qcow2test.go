// SPDX-License-Identifier: Apache-2.0

// Package qcow2test writes small QCOW2 images for tests: right ones in every variant that the
// format has, and a map of where everything is, to make wrong ones of them.
package qcow2test

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Kind is how a cluster is stored.
type Kind int

// Kinds of clusters. Those that are not listed in an [Image] are not allocated.
const (
	Plain         Kind = iota
	Compressed         // by the image's compression type
	Zero               // zero flag, no place in the file (version 3)
	ZeroAllocated      // zero flag and a place, filled with bytes that must not be read (version 3)
	Subclusters        // as Alloc and ZeroBits say (extended L2 entries)
)

// Cluster is one cluster of the disk.
type Cluster struct {
	Index    int64 // its number on the disk
	Kind     Kind
	Data     []byte // a whole cluster
	Alloc    uint32 // subclusters that are stored
	ZeroBits uint32 // subclusters that are zero
	Offset   int64  // Compressed: use the data that is already there, 0 = store it
	Sectors  int64  // Compressed: number of sectors to state, 0 = what the data needs
}

// Extension is a header extension.
type Extension struct {
	Type uint32
	Data []byte
}

// Image says what to write.
type Image struct {
	Version     int // 2 or 3
	ClusterBits uint
	Size        int64 // bytes
	Zstd        bool
	Extended    bool // extended L2 entries
	LongHeader  bool // header_length 112 even without need
	Extensions  []Extension
	Backing     string
	Format      string    // of the backing file, "" = not stated
	DataFile    string    // name of the external data file, "" = none (version 3, no compressed clusters)
	Clusters    []Cluster // stored in this order
	CutTail     bool      // if a plain cluster ends the file, leave its trailing zeros out
}

// File is a written image and where its parts are, in bytes.
type File struct {
	Bytes    []byte
	External []byte // content of the external data file
	L1       int64
	Refcount int64
	L2       map[int64]int64 // offset of the L2 table by L1 index
	Entry    map[int64]int64 // offset of the L2 entry by cluster
	Data     map[int64]int64 // offset of the data by cluster
}

// Clone returns a copy whose bytes may be changed.
func (f *File) Clone() *File {
	c := *f
	c.Bytes = bytes.Clone(f.Bytes)
	return &c
}

// Put32 and Put64 change a number in the file.
func (f *File) Put32(off int64, v uint32) { binary.BigEndian.PutUint32(f.Bytes[off:], v) }

// Put64 changes a number in the file.
func (f *File) Put64(off int64, v uint64) { binary.BigEndian.PutUint64(f.Bytes[off:], v) }

// Get64 returns a number of the file.
func (f *File) Get64(off int64) uint64 { return binary.BigEndian.Uint64(f.Bytes[off:]) }

// Write returns the image. It panics on a specification that no image can have.
func (im Image) Write() *File {
	cluster := int64(1) << im.ClusterBits
	entry := int64(8)
	if im.Extended {
		entry = 16
	}
	perTable := cluster / entry
	l1 := (im.Size + cluster*perTable - 1) / (cluster * perTable)
	f := &File{L2: map[int64]int64{}, Entry: map[int64]int64{}, Data: map[int64]int64{}}
	f.Bytes = make([]byte, cluster)
	im.header(f, l1)
	if im.DataFile != "" {
		f.External = make([]byte, im.Size)
	}

	alloc := func(n int64) int64 { // n bytes at a cluster boundary
		off := (int64(len(f.Bytes)) + cluster - 1) &^ (cluster - 1)
		f.Bytes = append(f.Bytes, make([]byte, off+n-int64(len(f.Bytes)))...)
		return off
	}
	whole := func(n int64) int64 { return (n + cluster - 1) &^ (cluster - 1) }
	f.L1 = alloc(whole(l1 * 8))
	f.Refcount = alloc(cluster)
	f.Put64(40, uint64(f.L1))
	f.Put64(48, uint64(f.Refcount))
	f.Put32(56, 1)

	for _, c := range im.Clusters {
		table, ok := f.L2[c.Index/perTable]
		if !ok {
			table = alloc(cluster)
			f.L2[c.Index/perTable] = table
			f.Put64(f.L1+c.Index/perTable*8, uint64(table)|1<<63)
		}
		f.Entry[c.Index] = table + c.Index%perTable*entry
	}
	stored := int64(0)               // offset of the plain cluster that was stored last
	compressed := map[*byte][]byte{} // many clusters may share their data
	packed := int64(0)               // where the next compressed cluster may go, 0 = nowhere
	for _, c := range im.Clusters {
		e := uint64(0)
		switch c.Kind {
		case Plain, ZeroAllocated, Subclusters:
			if c.Kind == Subclusters && c.Alloc == 0 {
				break
			}
			off, data := c.Index*cluster, c.Data
			if c.Kind == ZeroAllocated {
				data = bytes.Repeat([]byte{0xA5}, int(cluster))
			}
			if im.DataFile != "" {
				copy(f.External[off:], data)
			} else {
				off = alloc(cluster)
				copy(f.Bytes[off:], data)
			}
			f.Data[c.Index] = off
			e = uint64(off) | 1<<63
			stored, packed = off, 0
		case Compressed:
			off, n := c.Offset, int64(1)
			if off == 0 {
				data := compressed[&c.Data[0]]
				if data == nil {
					data = im.compress(c.Data)
					compressed[&c.Data[0]] = data
				}
				if packed == 0 {
					packed = alloc(0)
				}
				off, n = packed, int64(len(data))
				f.Bytes = append(f.Bytes[:off], data...)
				packed += n
			}
			f.Data[c.Index] = off
			x := 62 - (im.ClusterBits - 8)
			sectors := (off+n-1)/512 - off/512
			if c.Sectors > 0 {
				sectors = c.Sectors - 1
			}
			if sectors >= 1<<(im.ClusterBits-8) {
				panic(fmt.Sprintf("compressed cluster of %d bytes does not fit", n))
			}
			e = 1<<62 | uint64(sectors)<<x | uint64(off)
		}
		if c.Kind == Zero || c.Kind == ZeroAllocated {
			e |= 1
		}
		f.Put64(f.Entry[c.Index], e)
		if im.Extended {
			bitmap := uint64(c.ZeroBits)<<32 | uint64(c.Alloc)
			switch c.Kind {
			case Plain:
				bitmap = 0xFFFFFFFF
			case Zero, ZeroAllocated:
				f.Put64(f.Entry[c.Index], e&^1)
				bitmap = 0xFFFFFFFF << 32
			case Compressed:
				bitmap = 0
			}
			f.Put64(f.Entry[c.Index]+8, bitmap)
		}
	}
	if end := int64(len(f.Bytes)); im.CutTail && im.DataFile == "" && stored > 0 && stored+cluster == end {
		for end-1 > stored && f.Bytes[end-1] == 0 {
			end--
		}
		f.Bytes = f.Bytes[:end]
	}
	return f
}

func (im Image) header(f *File, l1 int64) {
	copy(f.Bytes, "QFI\xfb")
	f.Put32(4, uint32(im.Version))
	f.Put32(20, uint32(im.ClusterBits))
	f.Put64(24, uint64(im.Size))
	f.Put32(36, uint32(l1))
	pos := int64(72)
	if im.Version >= 3 {
		pos = 104
		if im.LongHeader || im.Zstd {
			pos = 112
		}
		features := uint64(0)
		if im.Zstd {
			features |= 1 << 3
			f.Bytes[104] = 1
		}
		if im.Extended {
			features |= 1 << 4
		}
		if im.DataFile != "" {
			features |= 1 << 2
		}
		f.Put64(72, features)
		f.Put32(96, 4)
		f.Put32(100, uint32(pos))
	}
	exts := im.Extensions
	if im.Format != "" {
		exts = append([]Extension{{0xE2792ACA, []byte(im.Format)}}, exts...)
	}
	if im.DataFile != "" {
		exts = append([]Extension{{0x44415441, []byte(im.DataFile)}}, exts...)
	}
	for _, e := range exts {
		f.Put32(pos, e.Type)
		f.Put32(pos+4, uint32(len(e.Data)))
		copy(f.Bytes[pos+8:], e.Data)
		pos += 8 + (int64(len(e.Data))+7)&^7
	}
	if im.Backing != "" {
		pos += 8 // end of the extensions
		f.Put64(8, uint64(pos))
		f.Put32(16, uint32(len(im.Backing)))
		copy(f.Bytes[pos:], im.Backing)
	}
}

func (im Image) compress(p []byte) []byte {
	if im.Zstd {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
		if err != nil {
			panic(err)
		}
		return e.EncodeAll(p, nil)
	}
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.DefaultCompression)
	if err != nil {
		panic(err)
	}
	if _, err := w.Write(p); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// Content returns the disk that the image stands for, over the parent's bytes.
func (im Image) Content(parent []byte) []byte {
	cluster := int64(1) << im.ClusterBits
	disk := make([]byte, (im.Size+cluster-1)&^(cluster-1))
	copy(disk[:im.Size], parent)
	for _, c := range im.Clusters {
		p := disk[c.Index*cluster:][:cluster]
		switch c.Kind {
		case Plain, Compressed:
			copy(p, c.Data)
		case Zero, ZeroAllocated:
			clear(p)
		case Subclusters:
			sub := cluster / 32
			for i := range int64(32) {
				switch {
				case c.Alloc>>i&1 != 0:
					copy(p[i*sub:(i+1)*sub], c.Data[i*sub:])
				case c.ZeroBits>>i&1 != 0:
					clear(p[i*sub : (i+1)*sub])
				}
			}
		}
	}
	return disk[:im.Size]
}
