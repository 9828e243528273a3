// SPDX-License-Identifier: Apache-2.0

package zvhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/imsprep/imsprep/convert/zvhd2/zvhd2test"
)

// FuzzOpen opens a file of a header, whose checksum is made right, records, and a tail page, and
// reads some of it.
func FuzzOpen(f *testing.F) {
	disk := zvhd2test.Disk{Size: 5 * BlockSize, Pieces: []zvhd2test.Piece{
		{Offset: 100, Data: zvhd2test.Text("a", 3000)},
		{Offset: 3*BlockSize - 100, Data: zvhd2test.Noise("b", 200)},
		{Offset: 4 * BlockSize, Data: zvhd2test.Noise("b", 200)},
	}}
	for _, alone := range []bool{false, true} {
		file := spec{original: disk.Size, current: disk.Size, records: compress(disk, 6, alone)}.bytes()
		f.Add(file[:headerSize], file[pageSize:len(file)-pageSize])
	}
	file := spec{original: 1 << 40}.bytes()
	f.Add(file[:headerSize], []byte{})

	f.Fuzz(func(t *testing.T, header, records []byte) {
		if len(header) > headerSize || len(records) > 1<<20 {
			return
		}
		head := append(bytes.Clone(header), make([]byte, pageSize-len(header))...)
		copy(head, magic)
		binary.LittleEndian.PutUint32(head[offChecksum:], checksum(head))
		records = append(bytes.Clone(records), make([]byte, roundUp(int64(len(records)), pageSize)-int64(len(records)))...)
		file := bytes.Join([][]byte{head, records, head}, nil)

		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, o := range []Options{{}, {OriginalSize: true}} {
			var m *Metadata
			var err error
			used := allocated(func() { m, err = Preflight(ctx, bytes.NewReader(file), int64(len(file)), o) })
			if used > 1<<20 {
				t.Fatalf("preflight of %d bytes allocated %d", len(file), used)
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
				if reads++; reads <= 3 {
					n := min(BlockSize, e.Length)
					if got, err := img.ReadAt(p[:n], off); int64(got) != n && !errors.As(err, &refusal) {
						t.Fatalf("read at %d: %d, %v", off, got, err)
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
