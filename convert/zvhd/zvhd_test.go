// SPDX-License-Identifier: Apache-2.0

package zvhd

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert/zvhd2/zvhd2test"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func preflight(file []byte, o Options) (*Metadata, error) {
	return Preflight(context.Background(), bytes.NewReader(file), int64(len(file)), o)
}

// open opens a file that must be good.
func open(t testing.TB, file []byte, o Options) (*Image, *Metadata) {
	t.Helper()
	m, err := preflight(file, o)
	if err != nil {
		t.Fatalf("preflight: %v", err)
	}
	img, err := m.Open(nil)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return img.(*Image), m
}

// refused checks that err is an *Error that names what is wanted.
func refused(t testing.TB, err error, want string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *Error about %q", err, want)
	}
	if reason, remedy := e.Refusal(); !strings.Contains(reason, want) || remedy != e.Remedy {
		t.Fatalf("got %q, want something about %q", reason, want)
	}
}

// allocated returns how many bytes fn allocates in all.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// fatal is what *testing.T and *rapid.T have in common here.
type fatal interface{ Fatalf(string, ...any) }

// checkEqual compares an image with a disk by extents, and its blocks with data in the given order.
func checkEqual(t fatal, img image.Image, want zvhd2test.Disk, order func([]int64)) {
	if img.Size() != want.Size {
		t.Fatalf("size %d, want %d", img.Size(), want.Size)
	}
	stored := map[int64]bool{}
	last := image.Extent{}
	for off := int64(0); off < img.Size(); off += last.Length {
		e, err := img.Extent(off, img.Size()-off)
		if err != nil || e.Start != off || e.Length <= 0 || e.Length > img.Size()-off ||
			e.Allocated == e.Zero || e.Allocated != e.Compressed {
			t.Fatalf("extent at %d: %+v, %v", off, e, err)
		}
		if off > 0 && e.Zero == last.Zero {
			t.Fatalf("%+v and %+v are one extent", last, e)
		}
		last = e
		for b := off / BlockSize; e.Allocated && b*BlockSize < off+e.Length; b++ {
			stored[b] = true
		}
		if n := e.Length / 3; n > 0 {
			for _, length := range []int64{n, img.Size() - off - n} {
				part, err := img.Extent(off+n, length)
				if err != nil || part.Start != off+n || part.Length != min(length, e.Length-n) || part.Zero != e.Zero {
					t.Fatalf("extent of %d bytes at %d: %+v, %v; a part of %+v", length, off+n, part, err, e)
				}
			}
		}
	}
	blocks := want.Blocks()
	if order != nil {
		order(blocks)
	}
	got := make([]byte, BlockSize)
	for _, b := range blocks {
		content := want.Block(b)
		if stored[b] == bytes.Equal(content, make([]byte, BlockSize)) {
			t.Fatalf("block %d: stored %t", b, stored[b])
		}
		off := max(0, b*BlockSize-1000)
		n, err := img.ReadAt(got[:min(int64(len(got)), img.Size()-off)], off)
		if err != nil || !bytes.HasPrefix(content, got[b*BlockSize-off:min(n, BlockSize)]) {
			t.Fatalf("block %d: %d, %v, or other bytes", b, n, err)
		}
	}
}

// samples are the files by the vendor's writer, see testdata/zvhd/README.md.
var samples = []string{"zero", "tiny", "odd", "sparse", "random", "window"}

const samplesFolder = "../../testdata/zvhd"

func readSample(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(samplesFolder, name+".zvhd.gz"))
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
		// 2 MiB of noise are kept out of the repository: they are zero in the file there. They are
		// in stored deflate blocks with a header of 5 bytes each.
		noise := zvhd2test.Noise("random", BlockSize)
		for p := file[pageSize+recordHeader+2:]; len(noise) > 0; {
			n := binary.LittleEndian.Uint16(p[1:])
			copy(p[5:5+n], noise)
			p, noise = p[5+n:], noise[n:]
		}
		const want = "a1a94faaa1d3e70528f9b49e431ede4027109b0ae26a02c8bc0bf0b8ceeeb1b1"
		if got := sha256.Sum256(file); hex.EncodeToString(got[:]) != want {
			t.Fatalf("the sample %s has the SHA-256 %x, want %s", name, got, want)
		}
	}
	return file
}

// TestSamplesDecode reads the vendor's files with both sizes and compares them with the sums that
// the vendor's reader gave.
func TestSamplesDecode(t *testing.T) {
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
	manifest := map[string][]string{}
	for _, row := range rows[1:] {
		manifest[row[0]] = row
	}
	if len(manifest) != len(samples) {
		t.Fatalf("the manifest has %d files, want %d", len(manifest), len(samples))
	}
	for _, name := range samples {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := manifest[name+".zvhd"]
			disk := zvhd2test.Sample(name)
			file := readSample(t, name)

			small, m := open(t, file, Options{OriginalSize: true})
			if strconv.FormatInt(small.Size(), 10) != want[3] {
				t.Errorf("original size %d, want %s", small.Size(), want[3])
			}
			disk.Size = small.Size()
			checkEqual(t, small, disk, nil)
			mapped := int64(0)
			for _, b := range disk.Blocks() {
				mapped += min(BlockSize, disk.Size-b*BlockSize)
			}
			if m.MappedBytes != mapped || m.Compression != "zlib" || m.Creator != "tap 1.4" || m.Warnings != nil {
				t.Errorf("%+v, want %d bytes mapped", m, mapped)
			}

			img, m := open(t, file, Options{})
			if strconv.FormatInt(img.Size(), 10) != want[1] || m.CurrentSize != img.Size() ||
				m.OriginalSize != small.Size() {
				t.Errorf("size %d, want %s", img.Size(), want[1])
			}
			if n := int64(len(disk.Blocks())); m.MappedBytes != n*BlockSize || (len(m.Warnings) > 0) != (want[1] != want[3]) {
				t.Errorf("%d bytes mapped, want %d; %q", m.MappedBytes, n*BlockSize, m.Warnings)
			}
			disk.Size = img.Size()
			// The last block first: all before it have to be decoded for it.
			checkEqual(t, img, disk, func(b []int64) {
				for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
					b[i], b[j] = b[j], b[i]
				}
			})
			if testing.Short() {
				return
			}
			h := sha256.New()
			buf := make([]byte, 5<<20) // not a multiple of the block size
			sr := io.NewSectionReader(img, 0, img.Size())
			if _, err := io.CopyBuffer(h, io.LimitReader(struct{ io.Reader }{sr}, small.Size()), buf); err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(h.Sum(nil)); got != want[4] {
				t.Errorf("the original disk has the SHA-256 %s, want %s", got, want[4])
			}
			if _, err := io.CopyBuffer(h, struct{ io.Reader }{sr}, buf); err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(h.Sum(nil)); got != want[2] {
				t.Errorf("the disk has the SHA-256 %s, want %s", got, want[2])
			}
		})
	}
}

// stored is a record to be made.
type stored struct {
	block   uint32
	payload []byte
	noMagic bool
	noEnd   bool
	length  int64 // added to the payload length
}

// spec is a file to be made.
type spec struct {
	original, current int64
	records           []stored
	filler            byte
	noTail            bool
	header            func(h []byte) // before the checksum is made
	after             func(f []byte) []byte
}

func (s spec) bytes() []byte {
	le := binary.LittleEndian
	const gib = 1 << 30
	if s.current == 0 {
		s.current = (s.original + gib - 1) / gib * gib
	}
	head := bytes.Repeat([]byte{s.filler}, 4096)
	clear(head[:512])
	copy(head, "stream\x00\x00\x02\x00\x00\x00\x00\x00\x01\x00")
	le.PutUint64(head[16:], 1<<64-1)
	copy(head[28:], "tap\x00\x04\x00\x01\x00")
	le.PutUint64(head[40:], uint64(s.original))
	le.PutUint64(head[48:], uint64(s.current))
	head[60] = 4
	if s.header != nil {
		s.header(head)
	}
	le.PutUint32(head[64:], zvhd2test.Checksum(head))
	file := bytes.Clone(head)
	for _, r := range s.records {
		total := (len(r.payload) + 52 + 4095) / 4096 * 4096
		p := bytes.Repeat([]byte{s.filler}, total)
		clear(p[:48])
		copy(p, "hwstream bg\x00")
		if r.noMagic {
			p[11] = 1
		}
		le.PutUint32(p[12:], uint32(int64(len(r.payload))+r.length))
		le.PutUint32(p[16:], r.block)
		copy(p[48:], r.payload)
		copy(p[total-4:], "end\x00")
		if r.noEnd {
			p[total-1] = 1
		}
		file = append(file, p...)
	}
	if !s.noTail {
		file = append(file, head...)
	}
	if s.after != nil {
		file = s.after(file)
	}
	return file
}

// compress makes records of a disk's blocks: one stream that is flushed after each block, or, if
// alone, blocks that do not refer to each other.
func compress(disk zvhd2test.Disk, level int, alone bool) []stored {
	var records []stored
	var b bytes.Buffer
	z, err := zlib.NewWriterLevel(&b, level)
	if err != nil {
		panic(err)
	}
	for i, block := range disk.Blocks() {
		var w interface {
			io.Writer
			Flush() error
		} = z
		if alone {
			if i == 0 {
				b.WriteString("\x78\x9c")
			}
			if w, err = flate.NewWriter(&b, level); err != nil {
				panic(err)
			}
		}
		if _, err := w.Write(disk.Block(block)); err != nil {
			panic(err)
		}
		if err := w.Flush(); err != nil {
			panic(err)
		}
		records = append(records, stored{block: uint32(block), payload: bytes.Clone(b.Bytes())})
		b.Reset()
	}
	return records
}

// content is a disk of eight blocks, of which 0, 2 and 3 and the end of the last hold data, which
// is alike where one ends and the next begins.
var content = sync.OnceValue(func() zvhd2test.Disk {
	return zvhd2test.Disk{Size: 8 * BlockSize, Pieces: []zvhd2test.Piece{
		{Offset: 0, Data: zvhd2test.Text("zero", BlockSize-30000)},
		{Offset: BlockSize - 30000, Data: zvhd2test.Noise("x", 30000)},
		{Offset: 2 * BlockSize, Data: zvhd2test.Noise("x", 30000)},
		{Offset: 3*BlockSize - 5000, Data: zvhd2test.Noise("x", 10000)},
		{Offset: 8*BlockSize - 3, Data: []byte("end")},
	}}
})

// contentRecords are the records of [content] as the vendor's writer would make them.
var contentRecords = sync.OnceValue(func() []stored { return compress(content(), 6, false) })

func contentSpec() spec {
	s := spec{original: content().Size}
	for _, r := range contentRecords() {
		r.payload = bytes.Clone(r.payload)
		s.records = append(s.records, r)
	}
	return s
}

// TestReadsWhatTheVendorReads has files that differ from what the vendor's writer makes, and that
// its reader was seen to read rightly.
func TestReadsWhatTheVendorReads(t *testing.T) {
	for name, change := range map[string]func(s *spec){
		"as written":            func(s *spec) {},
		"level 1":               func(s *spec) { s.records = compress(content(), 1, false) },
		"level 9":               func(s *spec) { s.records = compress(content(), 9, false) },
		"blocks alone":          func(s *spec) { s.records = compress(content(), 6, true) },
		"left-over memory":      func(s *spec) { s.filler = 0xA5 },
		"other creator":         func(s *spec) { s.header = func(h []byte) { copy(h[28:], "\x01\x02\x03\x04") } },
		"other version":         func(s *spec) { s.header = func(h []byte) { h[32] = 3 } },
		"reserved bytes":        func(s *spec) { s.header = func(h []byte) { h[87], h[511] = 1, 1 } },
		"odd size":              func(s *spec) { s.original, s.current = 8*BlockSize-512, 8*BlockSize },
		"size in sectors":       func(s *spec) { s.current = s.original + 512 },
		"wrong checksum behind": func(s *spec) { s.after = func(f []byte) []byte { f[len(f)-4096+64]++; return f } },
		"more behind the tail":  func(s *spec) { s.after = func(f []byte) []byte { return append(f, make([]byte, 12345)...) } },
		"old checksum": func(s *spec) {
			s.header = func(h []byte) { copy(h[28:], "tap\x00\x01\x00\x01\x00") }
			s.after = func(f []byte) []byte { f[85] = 200; return f }
		},
		"stored block of zeros": func(s *spec) {
			disk := content()
			disk.Pieces = append(disk.Pieces[:4:4], zvhd2test.Piece{Offset: 5 * BlockSize, Data: []byte{0}}, disk.Pieces[4])
			s.records = compress(disk, 6, false)
			if len(s.records) != 5 {
				t.Fatal("no record of zeros")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := contentSpec()
			change(&s)
			want := content()
			for _, original := range []bool{false, true} {
				img, _ := open(t, s.bytes(), Options{OriginalSize: original})
				for _, b := range []int64{3, 0, 2, 7, 1, 5} {
					got := make([]byte, min(BlockSize, img.Size()-b*BlockSize))
					if n, err := img.ReadAt(got, b*BlockSize); err != nil || n != len(got) ||
						!bytes.Equal(got, want.Block(b)[:n]) {
						t.Errorf("block %d: %d, %v, or other bytes", b, n, err)
					}
				}
			}
		})
	}
}

// TestRefuses has a file for every check that a reader must make.
func TestRefuses(t *testing.T) {
	put64 := func(off int, v uint64) func([]byte) {
		return func(h []byte) { binary.LittleEndian.PutUint64(h[off:], v) }
	}
	cut := func(n int) func([]byte) []byte { return func(f []byte) []byte { return f[:len(f)-n] } }
	for _, tc := range []struct {
		name   string
		change func(s *spec)
		want   string
	}{
		{"empty file", func(s *spec) { s.after = func([]byte) []byte { return nil } }, "magic"},
		{"a few bytes", func(s *spec) { s.after = func(f []byte) []byte { return f[:100] } }, "too short"},
		{"only a head", func(s *spec) { s.after = func(f []byte) []byte { return f[:4096] } }, "too short"},
		{"magic", func(s *spec) { s.header = func(h []byte) { h[5] = 'x' } }, "magic"},
		{"checksum", func(s *spec) { s.after = func(f []byte) []byte { f[64]++; return f } }, "checksum"},
		{"reserved byte", func(s *spec) { s.after = func(f []byte) []byte { f[300]++; return f } }, "checksum"},
		{"hidden, version 1.4", func(s *spec) { s.after = func(f []byte) []byte { f[85]++; return f } }, "checksum"},
		{"hidden, other creator", func(s *spec) {
			s.header = func(h []byte) { copy(h[28:], "tip\x00\x01\x00\x01\x00") }
			s.after = func(f []byte) []byte { f[85]++; return f }
		}, "checksum"},
		{"hidden and another byte", func(s *spec) {
			s.header = func(h []byte) { copy(h[28:], "tap\x00\x01\x00\x01\x00") }
			s.after = func(f []byte) []byte { f[85]++; f[86]++; return f }
		}, "checksum"},
		{"current below original", func(s *spec) { s.current = s.original - 512 }, "below the original"},
		{"current not in sectors", func(s *spec) { s.current = s.original + 1 }, "current size"},
		{"original not in sectors", func(s *spec) { s.header = put64(40, 1000) }, "original size 1000"},
		{"current 2^64-512", func(s *spec) { s.header = put64(48, 1<<64-512) }, "current size"},
		{"original 2^63", func(s *spec) { s.header = put64(40, 1<<63) }, "original size"},
		{"sizes 0", func(s *spec) { s.original, s.records = 0, nil }, "leaves no disk"},
		{"no tail page", func(s *spec) { s.noTail = true }, "without a tail page"},
		{"half a tail page", func(s *spec) { s.after = cut(2048) }, "without a tail page"},
		{"truncated in a record", func(s *spec) { s.after = func(f []byte) []byte { return f[:4096+5000] } }, "not wholly inside"},
		{"only half of the records", func(s *spec) { s.records, s.noTail = s.records[:2], true }, "without a tail page"},
		{"no record, no tail", func(s *spec) { s.after = func(f []byte) []byte { clear(f[4096:]); return f } }, "neither a record"},
		{"garbage between", func(s *spec) { s.records[2].noMagic = true }, "neither a record"},
		{"end mark", func(s *spec) { s.records[1].noEnd = true }, "end mark"},
		{"end mark of the last", func(s *spec) { s.records[3].noEnd = true }, "end mark"},
		{"payload length 0", func(s *spec) { s.records[1].length = -int64(len(s.records[1].payload)) }, "0 bytes of compressed"},
		{"payload length 2^32-1", func(s *spec) {
			s.records[1].length = 1<<32 - 1 - int64(len(s.records[1].payload))
		}, "4294967295 bytes of compressed"},
		{"payload above the largest", func(s *spec) { s.records[1].payload = make([]byte, maxRecord-recordFrame+1) }, "bytes of compressed"},
		{"payload into the next record", func(s *spec) { s.records[1].length = 4096 }, "end mark"},
		{"out of order", func(s *spec) { s.records[1], s.records[2] = s.records[2], s.records[1] }, "does not come after"},
		{"twice", func(s *spec) { s.records[2].block = 2 }, "does not come after"},
		{"behind the disk", func(s *spec) { s.current = s.original; s.records[3].block = 8 }, "behind the current size"},
		{"far behind the disk", func(s *spec) { s.records[3].block = 1<<32 - 1 }, "behind the current size"},

		{"longer by one", func(s *spec) { s.records[1].length = 1 }, "block 2"},
		{"shorter by one", func(s *spec) { s.records[1].length = -1 }, "block 2"},
		{"end of stream", func(s *spec) { s.records = finished(s.records) }, "stream ends"},
		{"a stream for each block", func(s *spec) {
			disk := content()
			for i, r := range s.records {
				s.records[i].payload = zvhd2test.ZlibBlock(disk.Block(int64(r.block)), 6, false)
			}
		}, "block 2"},
		{"no zlib header", func(s *spec) { s.records[0].payload = s.records[0].payload[2:] }, "zlib header"},
		{"preset dictionary", func(s *spec) { copy(s.records[0].payload, "\x78\xbb") }, "zlib header"},
		{"a block less", func(s *spec) { s.records[2].payload = []byte{0, 0, 0, 0xFF, 0xFF} }, "less than a block"},
		{"blocks swapped", func(s *spec) {
			s.records[0].payload = append(bytes.Clone(s.records[0].payload), s.records[3].payload...)
		}, "more than a block"},
		{"without the block before", func(s *spec) { s.records = append(s.records[:0:0], s.records[1:]...) }, "zlib header"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := contentSpec()
			tc.change(&s)
			file := s.bytes()
			var err error
			used := allocated(func() { err = readAll(file) })
			refused(t, err, tc.want)
			if used > 32<<20 {
				t.Errorf("allocated %d bytes", used)
			}
		})
	}
	// Data behind the original size is not dropped in silence.
	s := contentSpec()
	s.original = 7 * BlockSize
	if err := readAll(s.bytes()); err != nil {
		t.Error(err)
	}
	_, err := preflight(s.bytes(), Options{OriginalSize: true})
	refused(t, err, "behind the original size")
	s.original = 7*BlockSize + 512
	if _, err := preflight(s.bytes(), Options{OriginalSize: true}); err != nil {
		t.Error(err)
	}
}

// finished ends the stream in the last record.
func finished(records []stored) []stored {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, 6)
	if err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	last := &records[len(records)-1]
	last.payload = append(bytes.Clone(last.payload), b.Bytes()...)
	return records
}

// readAll opens a file and reads all blocks that are stored, into one buffer.
func readAll(file []byte) error {
	m, err := preflight(file, Options{})
	if err != nil {
		return err
	}
	img, err := m.Open(nil)
	if err != nil {
		return err
	}
	p := make([]byte, BlockSize)
	for off := int64(0); off < img.Size(); {
		e, err := img.Extent(off, min(1<<40, img.Size()-off))
		if err != nil {
			return err
		}
		if !e.Zero {
			e.Length = min(e.Length, BlockSize)
			if n, err := img.ReadAt(p[:e.Length], off); int64(n) < e.Length {
				return err
			}
		}
		off += e.Length
	}
	return nil
}

func TestOptions(t *testing.T) {
	file := contentSpec().bytes()
	for _, tc := range []struct {
		o    Options
		want string // "" = accepted
	}{
		{Options{MaxVirtualSize: 1 << 30}, ""},
		{Options{MaxVirtualSize: 1<<30 - 1}, "above the limit"},
		{Options{MaxVirtualSize: 8 * BlockSize, OriginalSize: true}, ""},
		{Options{MaxVirtualSize: 8*BlockSize - 1, OriginalSize: true}, "above the limit"},
	} {
		_, err := preflight(file, tc.o)
		if tc.want != "" {
			refused(t, err, tc.want)
		} else if err != nil {
			t.Errorf("%+v: %v", tc.o, err)
		}
	}
	img, m := open(t, file, Options{OriginalSize: true})
	if _, err := m.Open(img); err == nil {
		t.Error("a parent was accepted")
	}
	for _, off := range []int64{img.Size(), 1 << 62} {
		if n, err := img.ReadAt(make([]byte, 1), off); n != 0 || err != io.EOF {
			t.Errorf("read at %d: %d, %v", off, n, err)
		}
	}
	if _, err := img.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("read at -1")
	}
	if n, err := img.ReadAt(make([]byte, 10), img.Size()-3); n != 3 || err != io.EOF {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	for _, e := range [][2]int64{{-1, 1}, {0, img.Size() + 1}, {0, -1}, {1, 1<<63 - 1}} {
		if _, err := img.Extent(e[0], e[1]); err == nil {
			t.Errorf("extent of %d bytes at %d", e[1], e[0])
		}
	}
	// A huge disk of zeros.
	huge := spec{original: 1<<63 - 512, current: 1<<63 - 512}.bytes()
	img, _ = open(t, huge, Options{})
	if e, err := img.Extent(1<<40, 1<<62); err != nil || !e.Zero || e.Length != 1<<62 {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestReadsWhatWasWritten reads drawn disks in a drawn order.
func TestReadsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		disk := zvhd2test.Disk{Size: rapid.Int64Range(1, 12*BlockSize/512).Draw(t, "sectors") * 512}
		noise := zvhd2test.Noise("shared", 40000)
		for at := int64(0); at < disk.Size; {
			at += rnd.Int64N(2 * BlockSize)
			n := min(disk.Size-at, rnd.Int64N(40000)+1)
			if n <= 0 {
				break
			}
			disk.Pieces = append(disk.Pieces, zvhd2test.Piece{Offset: at, Data: noise[40000-n:]})
			at += n
		}
		level := rapid.SampledFrom([]int{1, 6}).Draw(t, "level")
		file := spec{original: disk.Size, records: compress(disk, level, rapid.Bool().Draw(t, "alone"))}.bytes()
		m, err := preflight(file, Options{OriginalSize: true})
		if err != nil {
			t.Fatal(err)
		}
		opened, err := m.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		img := opened.(*Image)
		// With many blocks, most windows are not kept.
		img.stride = max(img.stride, rapid.IntRange(1, 4).Draw(t, "stride"))
		checkEqual(t, img, disk, func(b []int64) {
			if rapid.Bool().Draw(t, "shuffle") {
				rnd.Shuffle(len(b), func(i, j int) { b[i], b[j] = b[j], b[i] })
			}
		})
	})
}

// manyBlocks is a disk of small pieces in n blocks, every third of which is zero.
func manyBlocks(n int64) zvhd2test.Disk {
	disk := zvhd2test.Disk{Size: n * BlockSize}
	for b := range n {
		if b%3 != 2 {
			data := []byte(fmt.Sprintf("block %d", b))
			disk.Pieces = append(disk.Pieces, zvhd2test.Piece{Offset: (b+1)*BlockSize - int64(len(data)), Data: data})
		}
	}
	return disk
}

// TestManyReaders reads in parallel, in sequence and at random, and counts what is decoded.
func TestManyReaders(t *testing.T) {
	disk := manyBlocks(45)
	file := spec{original: disk.Size, records: compress(disk, 1, false)}.bytes()
	m, err := preflight(file, Options{OriginalSize: true})
	if err != nil {
		t.Fatal(err)
	}
	counted := &countingReader{r: bytes.NewReader(file)}
	m.r = counted
	opened, err := m.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	img := opened.(*Image)
	check := func(got []byte, b int64) {
		want := disk.Block(b)
		if n, err := img.ReadAt(got, b*BlockSize); err != nil || n != BlockSize || !bytes.Equal(got, want) {
			t.Errorf("block %d: %d, %v, or other bytes", b, n, err)
		}
	}
	// Four goroutines take blocks in ascending order, as a conversion does.
	var wg sync.WaitGroup
	next := make(chan int64)
	for range 4 {
		wg.Go(func() {
			got := make([]byte, BlockSize)
			for b := range next {
				check(got, b)
			}
		})
	}
	for b := range int64(45) {
		next <- b
	}
	close(next)
	wg.Wait()
	// A block is decoded once, two reads, and once more if who asked for it came late.
	if n := counted.count(); n > 2*2*30 {
		t.Errorf("%d reads for 30 blocks in sequence", n)
	}
	before := counted.count()
	for i := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 4))
			got := make([]byte, BlockSize)
			for range 30 {
				check(got, rnd.Int64N(45))
			}
		})
	}
	wg.Wait()
	// All windows are known now: no read needs another block.
	if n := counted.count() - before; n > 2*4*30 {
		t.Errorf("%d reads for 120 blocks at random", n)
	}

	// One goroutine never decodes a block again.
	if opened, err = m.Open(nil); err != nil {
		t.Fatal(err)
	}
	img = opened.(*Image)
	before = counted.count()
	for off := int64(0); off < img.Size(); off += 500000 {
		if _, err := img.ReadAt(make([]byte, 500000), off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	}
	if n := counted.count() - before; n != 2*30 {
		t.Errorf("%d reads for 30 blocks in small pieces", n)
	}
}

type countingReader struct {
	r  io.ReaderAt
	mu sync.Mutex
	n  int
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	return c.r.ReadAt(p, off)
}

func (c *countingReader) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// TestSparseWindows reads from an image of which few windows are kept.
func TestSparseWindows(t *testing.T) {
	disk := manyBlocks(60)
	file := spec{original: disk.Size, records: compress(disk, 1, false)}.bytes()
	img, _ := open(t, file, Options{OriginalSize: true})
	img.stride = 10
	checkEqual(t, img, disk, func(b []int64) {
		rand.New(rand.NewPCG(1, 2)).Shuffle(len(b), func(i, j int) { b[i], b[j] = b[j], b[i] })
	})
	if len(img.kept) != 4 {
		t.Errorf("%d windows are kept, want 4 of 40", len(img.kept))
	}
}

// TestCancelled stops a preflight.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	file := contentSpec().bytes()
	if _, err := Preflight(ctx, bytes.NewReader(file), int64(len(file)), Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// BenchmarkSequential reads whole blocks of machine code in sequence.
func BenchmarkSequential(b *testing.B) {
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		b.Fatal(err)
	}
	disk := zvhd2test.Disk{Size: BlockSize * int64(len(data)/BlockSize)}
	disk.Pieces = []zvhd2test.Piece{{Offset: 0, Data: data[:disk.Size]}}
	file := spec{original: disk.Size, records: compress(disk, 6, false)}.bytes()
	p := make([]byte, BlockSize)
	b.SetBytes(BlockSize)
	img, off := image.Image(nil), int64(0)
	for b.Loop() {
		if off%disk.Size == 0 {
			img, _ = open(b, file, Options{OriginalSize: true}) // forget what was decoded
			off = 0
		}
		if _, err := img.ReadAt(p, off); err != nil {
			b.Fatal(err)
		}
		off += BlockSize
	}
}
