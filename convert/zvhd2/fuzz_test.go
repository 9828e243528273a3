// SPDX-License-Identifier: Apache-2.0

package zvhd2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/imsprep/imsprep/convert/zvhd2/zvhd2test"
)

// pieces is a file of zeros with a few pieces.
type pieces struct {
	at   []int64
	data [][]byte
}

func (f *pieces) add(at int64, data []byte) {
	f.at, f.data = append(f.at, at), append(f.data, data)
}

func (f *pieces) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for i, at := range f.at {
		if from := at - off; from >= 0 && from < int64(len(p)) {
			copy(p[from:], f.data[i])
		} else if from < 0 && -from < int64(len(f.data[i])) {
			copy(p, f.data[i][-from:])
		}
	}
	return len(p), nil
}

// FuzzOpen opens a file that is put together of a footer, whose checksum is made right, and the
// content of the regions, and reads some of it. In the files it begins with the regions are where
// the footer says.
func FuzzOpen(f *testing.F) {
	seed := func(im zvhd2test.Image) {
		im.Current = roundUp(im.Original, BlockSize)
		file := im.Bytes()
		footer := file[len(file)-pageSize:][:headerSize]
		index := int64(binary.LittleEndian.Uint64(footer[offIndexOffset:]))
		bitmap := int64(binary.LittleEndian.Uint64(footer[offBitmapOffset:]))
		entries := bytes.TrimRight(file[index:bitmap], "\x00")
		bits := bytes.TrimRight(file[bitmap:][:bitmapSegment], "\x00")
		f.Add(footer, file[pageSize:index-pageSize], entries, bits)
	}
	disk := content()
	disk.Pieces = slices.Clone(disk.Pieces)
	disk.Pieces[0].Data = zvhd2test.Text("zero", 3000) // small seeds are changed more often
	disk.Pieces[1].Data = disk.Pieces[1].Data[:100]
	small := zvhd2test.Image{Original: disk.Size}
	for _, b := range disk.Blocks() {
		small.Records = append(small.Records, zvhd2test.Record{Block: uint32(b), Payload: zvhd2test.ZstdBlock(disk.Block(b))})
	}
	seed(small)
	small.Dense = true
	seed(small)
	small.Reverse = true
	seed(small)
	small.Zlib = true
	for i := range small.Records {
		small.Records[i].Payload = zvhd2test.ZlibBlock(disk.Block(int64(small.Records[i].Block)), 1, i%2 == 0)
	}
	seed(small)
	seed(zvhd2test.Image{Original: 100 * BlockSize})

	f.Fuzz(func(t *testing.T, footer, records, index, bitmap []byte) {
		if len(footer) > headerSize || len(records) > 1<<20 || len(index) > indexSegment || len(bitmap) > 4*bitmapSegment {
			return
		}
		footer = append(bytes.Clone(footer), make([]byte, headerSize-len(footer))...)
		copy(footer, magic)
		binary.LittleEndian.PutUint32(footer[offChecksum:], checksum(footer))
		file := new(pieces)
		file.add(0, footer)
		file.add(pageSize, records)
		at := 2*pageSize + roundUp(int64(len(records)), pageSize)
		file.add(at, index)
		at += roundUp(int64(len(index)), indexSegment)
		file.add(at, bitmap)
		at += max(roundUp(int64(len(bitmap)), bitmapSegment), bitmapSegment)
		file.add(at, footer)
		size := at + pageSize

		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, o := range []Options{{}, {OriginalSize: true}} {
			var m *Metadata
			var err error
			if used := allocated(func() { m, err = Preflight(ctx, file, size, o) }); used > 8<<20 {
				t.Fatalf("preflight of %d bytes allocated %d", size, used)
			}
			var refusal *Error
			if err != nil {
				if !errors.As(err, &refusal) {
					t.Fatalf("not an *Error: %v", err)
				}
				continue
			}
			img, err := m.Open(nil)
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, BlockSize)
			mapped := int64(0)
			for off, reads := int64(0), 0; off < img.Size(); {
				e, err := img.Extent(off, img.Size()-off)
				if err != nil || e.Start != off || e.Length <= 0 || e.Length > img.Size()-off || e.Allocated == e.Zero {
					t.Fatalf("extent at %d: %+v, %v", off, e, err)
				}
				if e.Allocated {
					mapped += e.Length
				}
				if reads++; reads <= 2 {
					n := min(BlockSize, e.Length)
					if got, err := img.ReadAt(p[:n], off); int64(got) != n && !errors.As(err, &refusal) {
						t.Fatalf("read at %d: %d, %v", off, got, err)
					} else if err == nil && e.Zero && !isZero(p[:n]) {
						t.Fatalf("the zeros at %d are not zero", off)
					}
				}
				off += e.Length
			}
			if mapped != m.MappedBytes {
				t.Fatalf("%d bytes mapped, extents have %d", m.MappedBytes, mapped)
			}
		}
	})
}

// FuzzResume goes on from a list of records: it is refused, or packed again as it was.
func FuzzResume(f *testing.F) {
	f.Add(int64(10*BlockSize), []byte{0, 1, 3, 2}, int64(4096*4), int64(5))
	f.Add(int64(MaxSize), binary.AppendUvarint(binary.AppendUvarint(nil, 1<<26), 1026), int64(4096*1027), int64(1<<26+1))
	f.Fuzz(func(t *testing.T, size int64, records []byte, offset, next int64) {
		a, err := Resume(Checkpoint{
			Header: Header{Size: size, Method: Zstd, Time: epoch, UUID: UUID{1}},
			Offset: offset, Next: next, Records: records,
		})
		if err != nil {
			return
		}
		// A varint can be longer than needed, so that the bytes need not be the same.
		c := a.Checkpoint()
		if len(c.Records) > len(records) || c.Offset != offset || c.Next != next {
			t.Fatalf("%+v", c)
		}
		if b, err := Resume(c); err != nil || b.Stored() != a.Stored() {
			t.Fatalf("%v", err)
		}
	})
}
