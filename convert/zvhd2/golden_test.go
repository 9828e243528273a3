// SPDX-License-Identifier: Apache-2.0

package zvhd2

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/csv"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/imsprep/imsprep/convert/zvhd2/zvhd2test"
)

// samples are the files by the vendor's writer, see testdata/zvhd2/README.md.
var samples = []string{"zero", "tiny", "odd", "sparse", "random", "multiseg", "dense-zlib"}

const samplesFolder = "../../testdata/zvhd2"

func readSample(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(samplesFolder, name+".zvhd2.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	file, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if name == "random" {
		// 2 MiB of noise are kept out of the repository: they are zero in the file there. The
		// payload is a frame header of 9 bytes and 16 raw blocks of 128 KiB with a header of 3
		// bytes each.
		noise := zvhd2test.Noise("random", BlockSize)
		for i := range 16 {
			copy(file[pageSize+recordHeader+9+3+i*(3+128<<10):], noise[i*128<<10:][:128<<10])
		}
		const want = "51e60949b8bc53f61f4c0c3cccaf724245911decd23e8e0e036df83f4a81c5fe"
		if got := sha256.Sum256(file); hex.EncodeToString(got[:]) != want {
			t.Fatalf("the sample %s has the SHA-256 %x, want %s", name, got, want)
		}
	}
	return file
}

// facts is a row of the samples' manifest.
type facts struct {
	virtualSize, originalSize int64
	sumVirtual, sumOriginal   string
}

func readManifest(t testing.TB) map[string]facts {
	t.Helper()
	f, err := os.Open(filepath.Join(samplesFolder, "manifest.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.Comma = '\t'
	rows, err := r.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	manifest := map[string]facts{}
	for _, row := range rows[1:] {
		virtual, err1 := strconv.ParseInt(row[1], 10, 64)
		original, err2 := strconv.ParseInt(row[3], 10, 64)
		if err1 != nil || err2 != nil {
			t.Fatalf("manifest: %v, %v", err1, err2)
		}
		manifest[row[0]] = facts{virtual, original, row[2], row[4]}
	}
	return manifest
}

// TestSamplesDecode reads the vendor's files with both sizes and compares them with the sums that
// the vendor's reader gave.
func TestSamplesDecode(t *testing.T) {
	manifest := readManifest(t)
	if len(manifest) != len(samples) {
		t.Fatalf("the manifest has %d files, want %d", len(manifest), len(samples))
	}
	for _, name := range samples {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := manifest[name+".zvhd2"]
			disk := zvhd2test.Sample(name)
			file := readSample(t, name)

			img, m := open(t, file, Options{})
			if m.VirtualSize != want.virtualSize || img.Size() != want.virtualSize || m.OriginalSize != want.originalSize ||
				m.CurrentSize != want.virtualSize {
				t.Errorf("sizes %+v, want %+v", m, want)
			}
			if n := int64(len(disk.Blocks())); m.stored != n || m.MappedBytes != n*BlockSize {
				t.Errorf("%d stored blocks, %d bytes mapped, want %d", m.stored, m.MappedBytes, n)
			}
			if warned := len(m.Warnings) > 0; warned != (want.virtualSize != want.originalSize) {
				t.Errorf("warnings: %q", m.Warnings)
			}
			variant, compression := "compact index", "zstd"
			if name == "dense-zlib" {
				variant, compression = "dense index", "zlib"
			}
			if m.Variant != variant || m.Compression != compression || m.Creator != "tap 1.4" {
				t.Errorf("variant %q, compression %q, creator %q", m.Variant, m.Compression, m.Creator)
			}
			sameDisk(t, img, disk)

			small, _ := open(t, file, Options{OriginalSize: true})
			if small.Size() != want.originalSize {
				t.Errorf("original size %d, want %d", small.Size(), want.originalSize)
			}
			sameDisk(t, small, disk)
			if name == "multiseg" {
				// Hashing 65 GiB takes minutes; the manifest's author gave the sums of the blocks
				// with data.
				for b, want := range map[int64]string{
					0:     "ba4b2b995f71261cdda6c578bf509b8c7454382ab64c39ed45895d2df983135a",
					32767: "bf55d611596d2f9a928f0e77511ff4068a7df5dd66c135c6a4c902c98cf03031",
					32768: "b3728f8e20f36782e80cf40f95d4005a525d046853bfca7a023153da1add7a13",
					33279: "636ee4cae513df700ace9b37ab74e3bca7e9546914ac1aa05837e0a43914870d",
				} {
					p := make([]byte, BlockSize)
					if _, err := img.ReadAt(p, b*BlockSize); err != nil {
						t.Fatal(err)
					}
					if got := sha256.Sum256(p); hex.EncodeToString(got[:]) != want {
						t.Errorf("block %d has the SHA-256 %x, want %s", b, got, want)
					}
				}
				return
			}
			if testing.Short() {
				return
			}
			h := sha256.New()
			buf := make([]byte, 5<<20) // not a multiple of the block size
			r := io.NewSectionReader(img, 0, img.Size())
			if _, err := io.CopyBuffer(h, io.LimitReader(struct{ io.Reader }{r}, want.originalSize), buf); err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(h.Sum(nil)); got != want.sumOriginal {
				t.Errorf("the original disk has the SHA-256 %s, want %s", got, want.sumOriginal)
			}
			if _, err := io.CopyBuffer(h, struct{ io.Reader }{r}, buf); err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(h.Sum(nil)); got != want.sumVirtual {
				t.Errorf("the disk has the SHA-256 %s, want %s", got, want.sumVirtual)
			}
		})
	}
}

// layout is a file cut into its regions by its footer.
type layout struct {
	head, middle, index, bitmap, footer []byte
	entries                             []entry
	records                             [][]byte
}

func cut(t *testing.T, file []byte) layout {
	t.Helper()
	le := binary.LittleEndian
	l := layout{head: file[:4096], footer: file[len(file)-4096:]}
	index, bitmap := le.Uint64(l.footer[96:]), le.Uint64(l.footer[104:])
	l.index = file[index:][:le.Uint32(l.footer[112:])]
	l.bitmap = file[bitmap:][:le.Uint32(l.footer[116:])]
	l.middle = file[index-4096:][:4096]
	for i := range le.Uint32(l.footer[136:]) {
		e := parseEntry(l.index[16*i:])
		l.entries = append(l.entries, e)
		l.records = append(l.records, file[e.offset:][:e.length])
	}
	return l
}

// TestWritesLikeTheVendor gives the writer the disks of the vendor's files, and compares what it
// makes region by region.
func TestWritesLikeTheVendor(t *testing.T) {
	le := binary.LittleEndian
	for _, name := range samples {
		if name == "dense-zlib" {
			continue // the writer has no dense index
		}
		t.Run(name, func(t *testing.T) {
			vendor := readSample(t, name)
			want := cut(t, vendor)
			disk := zvhd2test.Sample(name)
			got := writeDisk(t, disk, WriterOptions{
				Time: epoch.Add(time.Duration(le.Uint32(want.head[24:])) * time.Second),
				UUID: UUID(want.head[68:84]),
			})
			l := cut(t, got)

			// The structure of the head is the vendor's to the last byte.
			if !bytes.Equal(l.head[:512], want.head[:512]) {
				t.Errorf("head:\n%x\nwant\n%x", l.head[:512], want.head[:512])
			}
			if !isZero(l.head[512:]) || !isZero(l.footer[512:]) {
				t.Error("the filler is not zero")
			}
			// The vendor's middle page has the number of stored blocks and the head's checksum;
			// ours is the head.
			middle := bytes.Clone(want.middle[:512])
			if n := le.Uint32(middle[136:]); int(n) != len(disk.Blocks()) {
				t.Errorf("the vendor's middle page has %d stored blocks", n)
			}
			le.PutUint32(middle[136:], 0)
			if !bytes.Equal(middle, want.head[:512]) || !bytes.Equal(l.middle, l.head) {
				t.Error("the middle page is not like the head")
			}
			// The footer differs in what depends on the length of the records.
			a, b := bytes.Clone(l.footer[:512]), bytes.Clone(want.footer[:512])
			if checksum(a) != le.Uint32(a[64:]) || checksum(b) != le.Uint32(b[64:]) {
				t.Error("a footer's checksum is wrong")
			}
			for _, p := range [][]byte{a, b} {
				clear(p[64:68])
				clear(p[96:112])
			}
			if !bytes.Equal(a, b) {
				t.Errorf("footer:\n%x\nwant\n%x", a, b)
			}
			if !bytes.Equal(l.bitmap, want.bitmap) || len(l.index) != len(want.index) {
				t.Error("the bitmap or the length of the index differs")
			}
			if !isZero(l.index[16*len(l.entries):]) {
				t.Error("the rest of the index is not zero")
			}
			// Records are contiguous, in order, and framed alike.
			end := uint64(4096)
			for i, e := range l.entries {
				if e.offset != end || e.block != want.entries[i].block || int64(e.block) != disk.Blocks()[i] {
					t.Errorf("entry %d: %+v, want offset %d and the block of %+v", i, e, end, want.entries[i])
				}
				end += uint64(e.length)
				a, b := bytes.Clone(l.records[i]), bytes.Clone(want.records[i])
				n := le.Uint32(a[12:])
				if !isZero(a[48+n : len(a)-4]) {
					t.Errorf("the padding of record %d is not zero", i)
				}
				if e.length != (n+52+4095)/4096*4096 {
					t.Errorf("record %d of %d bytes has %d of payload", i, e.length, n)
				}
				clear(a[12:16])
				clear(b[12:16])
				if !bytes.Equal(a[:48], b[:48]) || !bytes.Equal(a[len(a)-4:], b[len(b)-4:]) {
					t.Errorf("record %d: %x ... %x, want %x ... %x", i, a[:48], a[len(a)-4:], b[:48], b[len(b)-4:])
				}
				// The frame's header: single segment, four bytes of content size, no checksum, no
				// dictionary.
				if frame := a[48:57]; !bytes.Equal(frame, b[48:57]) || hex.EncodeToString(frame) != "28b52ffda000002000" {
					t.Errorf("record %d: frame header %x, want %x", i, frame, b[48:57])
				}
			}
			if at := le.Uint64(l.footer[96:]); at != end+4096 || le.Uint64(l.footer[104:]) != at+uint64(len(l.index)) ||
				at+uint64(len(l.index)+len(l.bitmap)+4096) != uint64(len(got)) {
				t.Errorf("index offset %d, bitmap offset %d in %d bytes", at, le.Uint64(l.footer[104:]), len(got))
			}
			switch name {
			case "zero":
				// Nothing depends on the compression: the file is the vendor's, byte for byte.
				if !bytes.Equal(got, vendor) || len(got) != 16384 || len(l.index) != 0 ||
					le.Uint64(l.footer[96:]) != le.Uint64(l.footer[104:]) {
					t.Error("the image of zeros is not the vendor's")
				}
			case "random":
				// What does not compress is stored raw by both.
				if le.Uint32(l.records[0][12:]) != 2097209 || len(l.records[0]) != 2101248 ||
					!bytes.Equal(l.records[0][:48+2097209], want.records[0][:48+2097209]) {
					t.Error("the block of noise is not the vendor's")
				}
			case "tiny":
				if len(vendor) != 638976 || le.Uint32(l.head[64:]) != 0xFFFFE6DF || le.Uint32(want.footer[64:]) != 0xFFFFE560 ||
					l.bitmap[0] != 0x0D {
					t.Error("not the worked example")
				}
			}
		})
	}
}

// writeDisk writes a disk's blocks with data.
func writeDisk(t testing.TB, disk zvhd2test.Disk, o WriterOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, disk.Size, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range disk.Blocks() {
		n := min(BlockSize, disk.Size-block*BlockSize)
		if err := w.WriteBlock(context.Background(), block, disk.Block(block)[:n]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
