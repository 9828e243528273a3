// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestZVHD2Golden holds the default layout against the bitmaps inside files
// that the vendor's own ZVHD2 writer made. The blocks with data are those that
// testdata/zvhd2/README.md names, not something read from the files.
func TestZVHD2Golden(t *testing.T) {
	layout, err := Lookup(DefaultLayout)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		file     string
		size     int64 // of the disk the file was made from, rounded up to a sector
		segments int   // of 4096 bytes, 32,768 blocks each
		blocks   []int64
	}{
		{"zero", 64 << 20, 1, nil},
		{"tiny", 8 << 20, 1, []int64{0, 2, 3}},
		{"odd", 5244416, 1, []int64{1, 2}},
		{"sparse", 1 << 30, 1, []int64{0, 1, 255, 256, 300, 511}},
		{"multiseg", 65 << 30, 2, []int64{0, 32767, 32768, 33279}},
	} {
		t.Run(tc.file, func(t *testing.T) {
			region := zvhd2Bitmap(t, filepath.Join("..", "testdata", "zvhd2", tc.file+".zvhd2.gz"))
			if len(region) != tc.segments*4096 {
				t.Fatalf("the file's bitmap has %d bytes", len(region))
			}
			m, err := NewMap(tc.size, layout.BlockSize)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range tc.blocks {
				m.MarkRange(b*layout.BlockSize, 1)
			}
			got, err := layout.Encode(m)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, region) {
				cmp, err := layout.Compare(m, region)
				t.Fatalf("differs from the vendor's bitmap: %+v, %v", cmp, err)
			}
			back, err := layout.Decode(region, tc.size)
			if err != nil {
				t.Fatal(err)
			}
			if d, err := Diff(m, back); err != nil || !d.Equal() {
				t.Errorf("decoded: %+v, %v", d, err)
			}
		})
	}
}

// zvhd2Bitmap returns the bitmap of a gzipped ZVHD2 file: its place is in the
// footer, the file's last 4096 bytes, as byte offset at 104 and length at 116.
func zvhd2Bitmap(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	footer := data[len(data)-4096:]
	if !bytes.HasPrefix(footer, []byte("z2strm")) {
		t.Fatalf("%s does not end in a ZVHD2 footer", path)
	}
	off := binary.LittleEndian.Uint64(footer[104:])
	return data[off : off+uint64(binary.LittleEndian.Uint32(footer[116:]))]
}
