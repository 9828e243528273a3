// SPDX-License-Identifier: Apache-2.0

package zvhd2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/imsprep/imsprep/convert/zvhd2/zvhd2test"
)

// content is a disk of eight blocks, of which 0, 2 and 3 and the end of the last hold data.
var content = sync.OnceValue(func() zvhd2test.Disk {
	return zvhd2test.Disk{Size: 8 * BlockSize, Pieces: []zvhd2test.Piece{
		{Offset: 0, Data: zvhd2test.Text("zero", BlockSize)},
		{Offset: 2*BlockSize + 100, Data: zvhd2test.Noise("two", 9000)},
		{Offset: 4*BlockSize - 5000, Data: zvhd2test.Text("three", 5000)},
		{Offset: 8*BlockSize - 3, Data: []byte("end")},
	}}
})

// payloads are the compressed blocks of [content].
var payloads = sync.OnceValue(func() [][]byte {
	var all [][]byte
	disk := content()
	for _, b := range disk.Blocks() {
		all = append(all, zvhd2test.ZstdBlock(disk.Block(b)))
	}
	return all
})

// contentImage is the file of [content].
func contentImage() zvhd2test.Image {
	disk := content()
	im := zvhd2test.Image{Original: disk.Size}
	for i, b := range disk.Blocks() {
		im.Records = append(im.Records, zvhd2test.Record{
			Block: uint32(b), Payload: bytes.Clone(payloads()[i]),
		})
	}
	return im
}

func put32(off int, v uint32) func([]byte) {
	return func(h []byte) { binary.LittleEndian.PutUint32(h[off:], v) }
}

func put64(off int, v uint64) func([]byte) {
	return func(h []byte) { binary.LittleEndian.PutUint64(h[off:], v) }
}

func put8(off int, v byte) func([]byte) { return func(h []byte) { h[off] = v } }

// oldCreator makes a header that the exception of the checksum is for: hidden byte set after the
// sum.
func oldCreator(creator string, version uint32, hidden byte) func([]byte) []byte {
	return func(file []byte) []byte {
		h := file[len(file)-4096:]
		copy(h[28:32], creator)
		put32(32, version)(h)
		put32(64, zvhd2test.Checksum(h))(h)
		h[85] = hidden
		return file
	}
}

// TestReadsWhatTheVendorReads has files that differ from what the vendor's writer makes, and that
// its reader was seen to read rightly.
func TestReadsWhatTheVendorReads(t *testing.T) {
	for name, change := range map[string]func(*zvhd2test.Image){
		"as written":              func(im *zvhd2test.Image) {},
		"records in reverse":      func(im *zvhd2test.Image) { im.Reverse = true },
		"gaps between records":    func(im *zvhd2test.Image) { im.Gap = 3 * 4096 },
		"odd gaps":                func(im *zvhd2test.Image) { im.Gap, im.Reverse = 777, true },
		"shifted by 512":          func(im *zvhd2test.Image) { im.Shift = 512 },
		"shifted by 3":            func(im *zvhd2test.Image) { im.Shift = 3 },
		"no middle page":          func(im *zvhd2test.Image) { im.NoMiddle = true },
		"bitmap before index":     func(im *zvhd2test.Image) { im.BitmapFirst = true },
		"more segments":           func(im *zvhd2test.Image) { im.IndexSegments, im.BitmapSegments = 1, 20 },
		"dense index":             func(im *zvhd2test.Image) { im.Dense = true },
		"left-over memory":        func(im *zvhd2test.Image) { im.Filler = 0xA5 },
		"layout version 2":        func(im *zvhd2test.Image) { im.Head, im.Footer = put8(87, 2), put8(87, 2) },
		"damaged head":            func(im *zvhd2test.Image) { im.Head = put32(64, 0) },
		"features":                func(im *zvhd2test.Image) { im.Footer = put32(8, 77) },
		"file version":            func(im *zvhd2test.Image) { im.Footer = put32(12, 77) },
		"next structure":          func(im *zvhd2test.Image) { im.Footer = put64(16, 77) },
		"time":                    func(im *zvhd2test.Image) { im.Footer = put32(24, 1<<32-1) },
		"creator":                 func(im *zvhd2test.Image) { im.Footer = put32(28, 0x01020304) },
		"creator version":         func(im *zvhd2test.Image) { im.Footer = put32(32, 77) },
		"creator OS":              func(im *zvhd2test.Image) { im.Footer = put32(36, 77) },
		"geometry":                func(im *zvhd2test.Image) { im.Footer = put32(56, 77) },
		"disk type":               func(im *zvhd2test.Image) { im.Footer = put32(60, 2) },
		"UUID":                    func(im *zvhd2test.Image) { im.Footer = put64(70, 77) },
		"saved, hidden, aligned":  func(im *zvhd2test.Image) { im.Footer = put32(84, 0x01010101) },
		"reserved":                func(im *zvhd2test.Image) { im.Footer = put64(142, 77) },
		"reserved, last bytes":    func(im *zvhd2test.Image) { im.Footer = put64(504, 77) },
		"end of the magic":        func(im *zvhd2test.Image) { im.Footer = put8(6, 77) },
		"old checksum, 0.1":       func(im *zvhd2test.Image) { im.After = oldCreator("tap\x00", 0x00000001, 9) },
		"old checksum, 1.1":       func(im *zvhd2test.Image) { im.After = oldCreator("tapX", 0x00010001, 255) },
		"size in whole blocks":    func(im *zvhd2test.Image) { im.Current = im.Original },
		"size of another 2 MiB":   func(im *zvhd2test.Image) { im.Current = im.Original + 6<<20 },
		"original size uneven":    func(im *zvhd2test.Image) { im.Original -= 512 },
		"stored block of zeros":   func(im *zvhd2test.Image) { addZeroBlock(im) },
		"zlib":                    func(im *zvhd2test.Image) { useZlib(im, 1, false) },
		"zlib, level 9":           func(im *zvhd2test.Image) { useZlib(im, 9, false) },
		"zlib, finished":          func(im *zvhd2test.Image) { useZlib(im, 6, true) },
		"zlib, dense, left-overs": func(im *zvhd2test.Image) { useZlib(im, 1, false); im.Dense, im.Filler = true, 0xFF },
	} {
		t.Run(name, func(t *testing.T) {
			im := contentImage()
			change(&im)
			img, m := open(t, im.Bytes(), Options{})
			want := content()
			if im.Current != 0 && m.VirtualSize != im.Current {
				t.Errorf("size %d, want %d", m.VirtualSize, im.Current)
			}
			sameDisk(t, img, want)
			if m.Creator != printable(m.Creator) {
				t.Errorf("creator %q", m.Creator)
			}
			img, _ = open(t, im.Bytes(), Options{OriginalSize: true})
			if img.Size() != im.Original {
				t.Errorf("original size %d, want %d", img.Size(), im.Original)
			}
			sameDisk(t, img, want)
		})
	}
}

func addZeroBlock(im *zvhd2test.Image) {
	zero := zvhd2test.Record{Block: 1, Payload: zvhd2test.ZstdBlock(make([]byte, BlockSize))}
	im.Records = append(im.Records[:1:1], append([]zvhd2test.Record{zero}, im.Records[1:]...)...)
}

func useZlib(im *zvhd2test.Image, level int, finish bool) {
	disk := content()
	im.Zlib = true
	for i := range im.Records {
		im.Records[i].Payload = zvhd2test.ZlibBlock(disk.Block(int64(im.Records[i].Block)), level, finish)
	}
}

// TestRefuses has a file for every check that a reader must make. None costs more memory than the
// file has, and the checks before reading see all but what is in the records.
func TestRefuses(t *testing.T) {
	const end = 4096 // of the file, from there to the footer
	extend := func(n int) func([]byte) []byte {
		return func(f []byte) []byte { return append(f, make([]byte, n)...) }
	}
	edit := func(back int64, change func([]byte)) func([]byte) []byte { // bytes from the end of the file
		return func(f []byte) []byte { change(f[int64(len(f))-back:]); return f }
	}
	for _, tc := range []struct {
		name   string
		change func(im *zvhd2test.Image)
		want   string
	}{
		{"empty file", func(im *zvhd2test.Image) { im.After = func([]byte) []byte { return nil } }, "magic"},
		{"a few bytes", func(im *zvhd2test.Image) { im.After = func(f []byte) []byte { return f[:100] } }, "100 bytes"},
		{"only a head", func(im *zvhd2test.Image) { im.After = func(f []byte) []byte { return f[:4096] } }, "footer is missing"},
		{"truncated", func(im *zvhd2test.Image) { im.After = func(f []byte) []byte { return f[:len(f)/2] } }, "footer"},
		{"truncated by a page", func(im *zvhd2test.Image) { im.After = func(f []byte) []byte { return f[:len(f)-4096] } }, "footer"},
		{"512 bytes more", func(im *zvhd2test.Image) { im.After = extend(512) }, "not a multiple"},
		{"a page more", func(im *zvhd2test.Image) { im.After = extend(4096) }, "footer"},
		{"head's magic", func(im *zvhd2test.Image) { im.Head = put8(0, 'x') }, "magic at offset 0"},
		{"head's layout version", func(im *zvhd2test.Image) { im.Head = put8(87, 0) }, "layout version 0"},
		{"footer's layout version", func(im *zvhd2test.Image) { im.Footer = put8(87, 0) }, "layout version 0"},
		{"footer's magic", func(im *zvhd2test.Image) { im.After = edit(end, put8(5, 'x')) }, "magic"},
		{"checksum", func(im *zvhd2test.Image) { im.After = edit(end-64, put8(0, 0)) }, "checksum"},
		{"bit of a reserved byte", func(im *zvhd2test.Image) { im.After = edit(end-400, put8(0, 4)) }, "checksum"},
		{"old checksum, 1.4", func(im *zvhd2test.Image) { im.After = oldCreator("tap\x00", 0x00010004, 1) }, "checksum"},
		{"old checksum, other creator", func(im *zvhd2test.Image) { im.After = oldCreator("qemu", 0x00010001, 1) }, "checksum"},
		{"old checksum, also wrong", func(im *zvhd2test.Image) {
			im.After = func(f []byte) []byte {
				f = oldCreator("tap\x00", 0x00010001, 1)(f)
				f[len(f)-4096+86] = 1
				return f
			}
		}, "checksum"},
		{"block size 3 MiB", func(im *zvhd2test.Image) { im.Footer = put32(88, 3<<20) }, "block size 3145728"},
		{"block size 1 MiB", func(im *zvhd2test.Image) { im.Footer = put32(88, 1<<20) }, "block size 1048576"},
		{"block size 64 MiB", func(im *zvhd2test.Image) { im.Footer = put32(88, 64<<20) }, "block size 67108864"},
		{"block size 0", func(im *zvhd2test.Image) { im.Footer = put32(88, 0) }, "block size 0"},
		{"method 2", func(im *zvhd2test.Image) { im.Footer = put8(141, 2) }, "method 2"},
		{"current below original", func(im *zvhd2test.Image) { im.Current = im.Original - BlockSize }, "below the original"},
		{"current not in blocks", func(im *zvhd2test.Image) { im.Current = im.Original + 512 }, "current size"},
		{"current 2^64-2 MiB", func(im *zvhd2test.Image) { im.Footer = put64(48, 1<<64-BlockSize) }, "current size"},
		{"current 2^63-2 MiB", func(im *zvhd2test.Image) { im.Footer = put64(48, 1<<63-BlockSize) }, "largest that is supported"},
		{"original not in sectors", func(im *zvhd2test.Image) { im.Footer = put64(40, 16<<20-1) }, "original size"},
		{"original 2^64-512", func(im *zvhd2test.Image) { im.Footer = put64(40, 1<<64-512) }, "original size"},
		{"sizes 0", func(im *zvhd2test.Image) {
			im.Footer = func(h []byte) { put64(40, 0)(h); put64(48, 0)(h); put32(92, 0)(h) }
		}, "leaves no disk"},
		{"block count 0", func(im *zvhd2test.Image) { im.Footer = put32(92, 0) }, "block count 0"},
		{"block count 2^32-1", func(im *zvhd2test.Image) { im.Footer = put32(92, 1<<32-1) }, "block count 4294967295"},
		{"block count 9", func(im *zvhd2test.Image) { im.Footer = put32(92, 9) }, "block count 9"},
		{"index offset 0", func(im *zvhd2test.Image) { im.Footer = put64(96, 0) }, "index offset 0"},
		{"index at the end", func(im *zvhd2test.Image) {
			im.Footer = func(h []byte) { put64(96, binary.LittleEndian.Uint64(h[104:])-8192)(h) }
		}, "index offset"},
		{"index offset 2^64-1", func(im *zvhd2test.Image) { im.Footer = put64(96, 1<<64-1) }, "index offset"},
		{"bitmap offset 0", func(im *zvhd2test.Image) { im.Footer = put64(104, 4095) }, "bitmap offset"},
		{"bitmap offset 2^63", func(im *zvhd2test.Image) { im.Footer = put64(104, 1<<63) }, "bitmap offset"},
		{"bitmap in the footer", func(im *zvhd2test.Image) {
			im.Footer = func(h []byte) { put64(104, binary.LittleEndian.Uint64(h[104:])+1)(h) }
		}, "bitmap offset"},
		{"index over the bitmap", func(im *zvhd2test.Image) {
			im.Footer = func(h []byte) { put64(104, binary.LittleEndian.Uint64(h[104:])-1)(h) }
		}, "overlap"},
		{"index length 0", func(im *zvhd2test.Image) { im.Footer = put32(112, 0) }, "index length 0"},
		{"bitmap length 512", func(im *zvhd2test.Image) { im.Footer = put32(116, 512) }, "bitmap length 512"},
		{"index segment size", func(im *zvhd2test.Image) { im.Footer = put32(120, 4096) }, "index segment size"},
		{"bitmap segment size", func(im *zvhd2test.Image) { im.Footer = put32(124, 0) }, "bitmap segment size"},
		{"no index segments", func(im *zvhd2test.Image) {
			im.Footer = func(h []byte) { put32(128, 0)(h); put32(112, 0)(h) }
		}, "index segment count 0"},
		{"no bitmap segments", func(im *zvhd2test.Image) {
			im.Footer = func(h []byte) { put32(132, 0)(h); put32(116, 0)(h) }
		}, "bitmap segment count 0"},
		{"8191 index segments", func(im *zvhd2test.Image) {
			im.Footer = func(h []byte) { put32(128, 8191)(h); put32(112, 8191*524288)(h) }
		}, "index offset"},
		{"2^20-1 bitmap segments", func(im *zvhd2test.Image) {
			im.Footer = func(h []byte) { put32(132, 1<<20-1)(h); put32(116, 1<<32-4096)(h) }
		}, "bitmap offset"},
		{"2^32-1 index segments", func(im *zvhd2test.Image) { im.Footer = put32(128, 1<<32-1) }, "index length"},
		{"stored count too small", func(im *zvhd2test.Image) { im.Footer = put32(136, 3) }, "stored blocks 3"},
		{"stored count too large", func(im *zvhd2test.Image) { im.Footer = put32(136, 5) }, "stored blocks 5"},
		{"stored count 2^32-1", func(im *zvhd2test.Image) { im.Footer = put32(136, 1<<32-1) }, "stored blocks 4294967295"},
		{"dense, stored count too large", func(im *zvhd2test.Image) { im.Dense = true; im.Footer = put32(136, 9) }, "stored blocks 9"},
		{"bit behind the last block", func(im *zvhd2test.Image) { im.Bits = []uint32{8} }, "block 8"},
		{"bit far behind the last block", func(im *zvhd2test.Image) { im.Bits = []uint32{32767} }, "block 32767"},
		{"bit in a segment too many", func(im *zvhd2test.Image) { im.BitmapSegments, im.Bits = 1, []uint32{32768 + 64} }, "block 32832"},
		{"bit without entry", func(im *zvhd2test.Image) { im.Bits = []uint32{1} }, "stored blocks 4"},
		{"one block for another", func(im *zvhd2test.Image) { im.Bits = []uint32{1, 2} }, "index entry"},
		{"entry without bit", func(im *zvhd2test.Image) { im.Dense, im.Bits = true, []uint32{3} }, "does not have block 3"},
		{"dense, bit without entry", func(im *zvhd2test.Image) { im.Dense, im.Bits = true, []uint32{1} }, "index entry"},
		{"entry of another block", func(im *zvhd2test.Image) { im.Records[1].Entry = 5 }, "is of block 7, but block 2"},
		{"dense, entry of another block", func(im *zvhd2test.Image) { im.Dense = true; im.Records[1].Entry = 1 }, "is of block 3"},
		{"length 0", func(im *zvhd2test.Image) { im.Records[1].Total = -recordOf(im, 1) }, "the length 0"},
		{"length not in pages", func(im *zvhd2test.Image) { im.Records[1].Total = 1 }, "is not a multiple"},
		{"length above the largest", func(im *zvhd2test.Image) {
			im.Records[1].Total = maxRecord + 4096 - recordOf(im, 1)
		}, "the length 4206592"},
		{"length into the index", func(im *zvhd2test.Image) { im.Records[3].Total, im.NoMiddle = 4096, true }, "does not end before"},
		{"length over the next record", func(im *zvhd2test.Image) { im.Records[1].Total = 4096 }, "overlap"},
		{"two blocks in one record", func(im *zvhd2test.Image) { im.After = sameEntry }, "overlap"},
		{"record in the head", func(im *zvhd2test.Image) { im.After = firstEntry(0) }, "lies in the head"},
		{"record in the head's last byte", func(im *zvhd2test.Image) { im.After = firstEntry(4095) }, "lies in the head"},
		{"record behind the file", func(im *zvhd2test.Image) { im.After = firstEntry(1 << 40) }, "does not end before"},
		{"record at 2^64-1", func(im *zvhd2test.Image) { im.After = firstEntry(1<<64 - 1) }, "does not end before"},

		{"record's magic", func(im *zvhd2test.Image) { im.Records[1].NoMagic = true }, "magic"},
		{"record of another block", func(im *zvhd2test.Image) { im.Records[1].Number = 1 }, "is of block 3"},
		{"record's end mark", func(im *zvhd2test.Image) { im.Records[1].NoEnd = true }, "end mark"},
		{"payload length 0", func(im *zvhd2test.Image) { im.Records[1].Length = -int64(len(im.Records[1].Payload)) }, "0 bytes of compressed"},
		{"payload longer by one", func(im *zvhd2test.Image) { im.Records[1].Length = 1 }, "block 2"},
		{"payload shorter by one", func(im *zvhd2test.Image) { im.Records[1].Length = -1 }, "block 2"},
		{"payload longer than the record", func(im *zvhd2test.Image) { im.Records[1].Length = 4096 }, "do not fit"},
		{"payload of 2^32-1", func(im *zvhd2test.Image) {
			im.Records[1].Length = 1<<32 - 1 - int64(len(im.Records[1].Payload))
		}, "do not fit"},
		{"zlib, shorter by one", func(im *zvhd2test.Image) { useZlib(im, 1, false); im.Records[1].Length = -1 }, "block 2"},
		{"zlib, longer by one", func(im *zvhd2test.Image) { useZlib(im, 1, false); im.Records[1].Length = 1 }, "block 2"},
		{"zlib, finished, longer by one", func(im *zvhd2test.Image) { useZlib(im, 1, true); im.Records[1].Length = 1 }, "follow"},
		{"zlib, finished, wrong sum", func(im *zvhd2test.Image) {
			useZlib(im, 1, true)
			im.Records[1].Payload[len(im.Records[1].Payload)-1]++
		}, "checksum"},
		{"zlib in a zstd image", func(im *zvhd2test.Image) { useZlib(im, 1, false); im.Zlib = false }, "zstd"},
		{"zstd in a zlib image", func(im *zvhd2test.Image) { im.Zlib = true }, "zlib"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			im := contentImage()
			tc.change(&im)
			file := im.Bytes()
			var err error
			used := allocated(func() { err = readAll(file) })
			refused(t, err, tc.want)
			if used > 32<<20 {
				t.Errorf("allocated %d bytes", used)
			}
		})
	}
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
		e, err := img.Extent(off, min(BlockSize, img.Size()-off))
		if err != nil {
			return err
		}
		if !e.Zero {
			if n, err := img.ReadAt(p[:e.Length], off); err != nil && (err != io.EOF || int64(n) < e.Length) {
				return err
			}
		}
		off += e.Length
	}
	return nil
}

func recordOf(im *zvhd2test.Image, i int) int64 {
	return recordLength(int64(len(im.Records[i].Payload)))
}

// firstEntry sets the offset in the first index entry.
func firstEntry(offset uint64) func([]byte) []byte {
	return func(f []byte) []byte {
		index := binary.LittleEndian.Uint64(f[len(f)-4096+96:])
		put64(0, offset)(f[index:])
		return f
	}
}

// sameEntry lets the second index entry name the record of the first.
func sameEntry(f []byte) []byte {
	index := f[binary.LittleEndian.Uint64(f[len(f)-4096+96:]):]
	copy(index[16:24], index[:8])
	copy(index[28:32], index[12:16])
	return f
}

func TestOptions(t *testing.T) {
	file := contentImage().Bytes()
	for _, tc := range []struct {
		o    Options
		want string // "" = accepted
	}{
		{Options{}, ""},
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
	// A disk of no blocks is zeros, and nothing at all when its original size is wanted.
	empty := zvhd2test.Image{Original: 0, Current: 1 << 30}.Bytes()
	img, m := open(t, empty, Options{})
	if e, err := img.Extent(0, 1<<30); err != nil || !e.Zero || e.Length != 1<<30 || m.MappedBytes != 0 {
		t.Errorf("%+v, %v", e, err)
	}
	_, err := preflight(empty, Options{OriginalSize: true})
	refused(t, err, "original size 0")
	if _, err := m.Open(img); err == nil {
		t.Error("a parent was accepted")
	}
}

// TestZstdFrames has payloads in forms that the vendor's reader was seen to read or to refuse.
func TestZstdFrames(t *testing.T) {
	p := append(zvhd2test.Noise("frames", 70000), zvhd2test.Text("frames", BlockSize-70000)...)
	encode := func(p []byte, o ...zstd.EOption) []byte {
		e, err := zstd.NewWriter(nil, append(o, zstd.WithEncoderConcurrency(1))...)
		if err != nil {
			t.Fatal(err)
		}
		return e.EncodeAll(p, nil)
	}
	stream := func(window int) []byte {
		var b bytes.Buffer
		e, err := zstd.NewWriter(&b, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		// In two pieces, so that the length is not known in the frame's header.
		if _, err := e.Write(p[:BlockSize/2]); err != nil {
			t.Fatal(err)
		}
		if err := e.Flush(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Write(p[BlockSize/2:]); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	// A window of 2 GiB, which the encoder does not make: exponent 21 in the window descriptor.
	long := stream(BlockSize)
	if long[4]&0xE0 != 0 {
		t.Fatalf("frame header descriptor %#x: the content size is known", long[4])
	}
	long[5] = 21 << 3
	skippable := append([]byte{0x50, 0x2A, 0x4D, 0x18, 5, 0, 0, 0}, "hello"...)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	plain := encode(p)
	crc := encode(p, zstd.WithEncoderCRC(true))
	wrongCRC := bytes.Clone(crc)
	wrongCRC[len(wrongCRC)-1]++

	for name, tc := range map[string]struct {
		payload []byte
		want    string // "" = read
	}{
		"plain":              {encode(p, zstd.WithEncoderCRC(false)), ""},
		"fastest":            {encode(p, zstd.WithEncoderLevel(zstd.SpeedFastest)), ""},
		"best":               {encode(p, zstd.WithEncoderLevel(zstd.SpeedBestCompression)), ""},
		"checksum":           {crc, ""},
		"no content size":    {stream(BlockSize), ""},
		"small window":       {stream(64 << 10), ""},
		"window of 128 MiB":  {stream(128 << 20), ""},
		"window of 2 GiB":    {long, ""},
		"several frames":     {join(encode(p[:100]), encode(p[100:1<<20]), encode(p[1<<20:])), ""},
		"an empty frame":     {join(plain, encode(nil, zstd.WithZeroFrames(true))), ""},
		"skippable in front": {join(skippable, plain), ""},
		"skippable behind":   {join(plain, skippable), ""},

		"wrong checksum":       {wrongCRC, "zstd"},
		"bytes behind":         {join(plain, []byte("01234567")), "zstd"},
		"4 bytes behind":       {join(plain, make([]byte, 4)), "zstd"},
		"3 bytes behind":       {join(plain, make([]byte, 3)), "zstd"},
		"2 bytes behind":       {join(plain, make([]byte, 2)), "zstd"},
		"1 byte behind":        {join(plain, make([]byte, 1)), "zstd"},
		"a magic behind":       {join(plain, plain[:4]), "zstd"},
		"cut":                  {plain[:len(plain)-1], "zstd"},
		"less":                 {encode(p[:BlockSize-1]), "less than a block"},
		"more":                 {encode(append(bytes.Clone(p), 0)), "more than a block"},
		"much more":            {encode(make([]byte, 64<<20)), "more than a block"},
		"more, size not known": {join(stream(BlockSize), encode(p[:1])), "more than a block"},
		"less in two frames":   {join(encode(p[:100]), encode(p[101:])), "less than a block"},
		"only skippable":       {skippable, "less than a block"},
		"garbage":              {zvhd2test.Noise("garbage", 5000), "zstd"},
	} {
		t.Run(name, func(t *testing.T) {
			im := zvhd2test.Image{Original: BlockSize, Records: []zvhd2test.Record{{Payload: tc.payload}}}
			file := im.Bytes()
			img, _ := open(t, file, Options{})
			got := make([]byte, BlockSize)
			var err error
			used := allocated(func() { _, err = img.ReadAt(got, 0) })
			switch {
			case tc.want != "":
				refused(t, err, tc.want)
			case err != nil:
				t.Fatal(err)
			case !bytes.Equal(got, p):
				t.Fatal("it was read wrongly")
			}
			if used > 8<<20 {
				t.Errorf("allocated %d bytes", used)
			}
		})
	}
}

// TestHeader checks what is computed for the header.
func TestHeader(t *testing.T) {
	const mib, gib, tib = 1 << 20, 1 << 30, 1 << 40
	for _, tc := range []struct {
		size     int64
		geometry string
	}{
		{512, "0/4/17"},
		{8 * mib, "240/4/17"},
		{33 * mib, "993/4/17"},
		{64 * mib, "963/8/17"},
		{500 * mib, "1015/16/63"},
		{510 * mib, "1036/16/63"},
		{1000 * mib, "2031/16/63"},
		{gib, "2080/16/63"},
		{31 * gib, "64495/16/63"},
		{32*gib - 512, "16448/16/255"},
		{100 * gib, "51400/16/255"},
		{tib, "65535/16/255"},
		{2 * tib, "0/4/17"},
		{2*tib + gib, "2080/16/63"},
	} {
		a, err := NewAssembler(Header{Size: tc.size})
		if err != nil {
			t.Fatal(err)
		}
		g := binary.LittleEndian.Uint32(a.Head()[56:])
		if got := fmt.Sprintf("%d/%d/%d", g>>16, g>>8&0xFF, g&0xFF); got != tc.geometry {
			t.Errorf("%d bytes: geometry %s, want %s", tc.size, got, tc.geometry)
		}
	}
	for _, tc := range []struct{ size, original, current, blocks int64 }{
		{1, 512, gib, 1},
		{8 * mib, 8 * mib, gib, 4},
		{5244316, 5244416, gib, 3},
		{gib, gib, gib, 512},
		{gib + 1, gib + 512, 2 * gib, 513},
		{65 * gib, 65 * gib, 65 * gib, 33280},
		{tib, tib, tib, 1 << 19},
		{MaxSize, MaxSize, MaxSize, 1 << 27},
	} {
		a, err := NewAssembler(Header{Size: tc.size})
		if err != nil {
			t.Fatal(err)
		}
		h, le := a.Head(), binary.LittleEndian
		if o, c, b := le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint32(h[92:]); o != uint64(tc.original) ||
			c != uint64(tc.current) || b != uint32(tc.blocks) || a.Blocks() != tc.blocks {
			t.Errorf("%d bytes: original %d, current %d, %d blocks; want %+v", tc.size, o, c, b, tc)
		}
		if len(h) != 4096 || le.Uint32(h[64:]) != zvhd2test.Checksum(h) {
			t.Errorf("%d bytes: a head of %d bytes with a wrong checksum", tc.size, len(h))
		}
	}
}
