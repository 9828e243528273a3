// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// small is the compact layout with the block size that mapOf uses.
func small(change func(*Layout)) Layout {
	l := Layout{Name: "small", BlockSize: 512, DataBit: 1, Word: Word{Bytes: 1}}
	if change != nil {
		change(&l)
	}
	return l
}

func TestLookup(t *testing.T) {
	for _, l := range Layouts() {
		got, err := Lookup(l.Name)
		if err != nil || got.Name != l.Name {
			t.Errorf("Lookup(%q) = %+v, %v", l.Name, got, err)
		}
		if err := l.Validate(); err != nil {
			t.Error(err)
		}
	}
	if Layouts()[0].Name != DefaultLayout {
		t.Errorf("the first layout is %q", Layouts()[0].Name)
	}
	_, err := Lookup("nope")
	if err == nil {
		t.Fatal("an unknown layout was found")
	}
	for _, want := range []string{`"nope"`, "zvhd2", "compact"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
}

func TestBuiltInSizes(t *testing.T) {
	const mib, gib = int64(1 << 20), int64(1 << 30)
	for _, tc := range []struct {
		virtualSize    int64
		zvhd2, compact int64
	}{
		{1, 4096, 1},
		{2 * mib, 4096, 1},
		{16 * mib, 4096, 1},
		{16*mib + 1, 4096, 2},
		{64 * gib, 4096, 4096},
		{64*gib + 1, 8192, 4097},
		{1024 * gib, 65536, 65536},
		{64 * 1024 * gib, 4 * mib, 4 * mib},
	} {
		for name, want := range map[string]int64{"zvhd2": tc.zvhd2, "compact": tc.compact} {
			l, err := Lookup(name)
			if err != nil {
				t.Fatal(err)
			}
			if got := l.EncodedSize(tc.virtualSize); got != want {
				t.Errorf("%s of %d bytes: %d, want %d", name, tc.virtualSize, got, want)
			}
			m, err := NewMap(tc.virtualSize, l.BlockSize)
			if err != nil {
				t.Fatal(err)
			}
			if data, err := l.Encode(m); err != nil || int64(len(data)) != want {
				t.Errorf("%s of %d bytes: encoded %d, %v", name, tc.virtualSize, len(data), err)
			}
		}
	}
}

// TestEncode writes the same blocks under layouts that differ in one field
// each; the bytes are worked out by hand from what the field means.
func TestEncode(t *testing.T) {
	blocks := []int64{0, 2, 3, 9, 17} // of 20
	for _, tc := range []struct {
		name   string
		layout Layout
		want   []byte
	}{
		{"plain", small(nil), []byte{0x0D, 0x02, 0x02}},
		{"msb first", small(func(l *Layout) { l.BitOrder = MSBFirst }), []byte{0xB0, 0x40, 0x40}},
		{"clear bit is data", small(func(l *Layout) { l.DataBit = 0 }), []byte{0xF2, 0xFD, 0x0D}},
		{"clear bit is data, pad set", small(func(l *Layout) { l.DataBit, l.PadBit = 0, 1 }),
			[]byte{0xF2, 0xFD, 0xFD}},
		{"pad set", small(func(l *Layout) { l.PadBit, l.PadTo = 1, 4 }), []byte{0x0D, 0x02, 0xF2, 0xFF}},
		{"words of 2, little endian", small(func(l *Layout) { l.Word.Bytes = 2 }),
			[]byte{0x0D, 0x02, 0x02, 0x00}},
		{"words of 2, big endian", small(func(l *Layout) { l.Word = Word{2, true} }),
			[]byte{0x02, 0x0D, 0x00, 0x02}},
		{"words of 4, big endian", small(func(l *Layout) { l.Word = Word{4, true} }),
			[]byte{0x00, 0x02, 0x02, 0x0D}},
		{"words of 4, msb first, big endian", small(func(l *Layout) { l.Word, l.BitOrder = Word{4, true}, MSBFirst }),
			[]byte{0xB0, 0x40, 0x40, 0x00}},
		{"words of 4, msb first, little endian", small(func(l *Layout) { l.Word.Bytes, l.BitOrder = 4, MSBFirst }),
			[]byte{0x00, 0x40, 0x40, 0xB0}},
		{"words of 8", small(func(l *Layout) { l.Word.Bytes = 8 }), []byte{0x0D, 0x02, 0x02, 0, 0, 0, 0, 0}},
		{"padded", small(func(l *Layout) { l.PadTo = 8 }), []byte{0x0D, 0x02, 0x02, 0, 0, 0, 0, 0}},
		{"header and trailer", small(func(l *Layout) { l.Header, l.Trailer = []byte("HD"), []byte("T") }),
			[]byte{'H', 'D', 0x0D, 0x02, 0x02, 'T'}},
		{"header and trailer, padded", small(func(l *Layout) {
			l.Header, l.Trailer, l.PadTo = []byte("HD"), []byte("T"), 8
		}), []byte{'H', 'D', 0x0D, 0x02, 0x02, 0, 0, 'T'}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := mapOf(t, 20, blocks...)
			got, err := tc.layout.Encode(m)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, tc.want) {
				t.Fatalf("got % x, want % x", got, tc.want)
			}
			back, err := tc.layout.Decode(tc.want, m.VirtualSize())
			if err != nil {
				t.Fatal(err)
			}
			if d, err := Diff(m, back); err != nil || !d.Equal() {
				t.Errorf("decoded: %+v, %v", d, err)
			}
		})
	}
}

func TestTrimTail(t *testing.T) {
	trim := func(word int) Layout {
		return small(func(l *Layout) { l.TrimTail, l.Word.Bytes, l.Trailer = true, word, []byte("T") })
	}
	for _, tc := range []struct {
		name   string
		layout Layout
		blocks []int64
		want   []byte
	}{
		{"bytes", trim(1), []int64{1, 9}, []byte{2, 2, 'T'}},
		{"empty", trim(1), nil, []byte{'T'}},
		{"nothing to drop", trim(1), []int64{299}, append(make([]byte, 37), 8, 'T')},
		{"words of 4", trim(4), []int64{1, 9}, []byte{2, 2, 0, 0, 'T'}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := mapOf(t, 300, tc.blocks...)
			got, err := tc.layout.Encode(m)
			if err != nil || !bytes.Equal(got, tc.want) {
				t.Fatalf("got % x, %v, want % x", got, err, tc.want)
			}
			back, err := tc.layout.Decode(got, m.VirtualSize())
			if err != nil {
				t.Fatal(err)
			}
			if d, err := Diff(m, back); err != nil || !d.Equal() {
				t.Errorf("decoded: %+v, %v", d, err)
			}
			untrimmed := append(append(bytes.TrimSuffix(got, []byte("T")), make([]byte, tc.layout.Word.Bytes)...), 'T')
			if _, err := tc.layout.Decode(untrimmed, m.VirtualSize()); err == nil {
				t.Errorf("% x was accepted with a word of zeros at the end", untrimmed)
			}
		})
	}
}

// TestDecodeIsStrict changes one thing at a time in a good file.
func TestDecodeIsStrict(t *testing.T) {
	layout := small(func(l *Layout) { l.Header, l.Trailer, l.PadTo = []byte("HD"), []byte("T"), 8 })
	good := []byte{'H', 'D', 0x0D, 0x02, 0x02, 0, 0, 'T'}
	const size = 20 * 512
	if _, err := layout.Decode(good, size); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func([]byte) []byte
		offset int64
		says   string
	}{
		{"empty", func([]byte) []byte { return nil }, -1, "0 bytes, want 8"},
		{"short", func(p []byte) []byte { return p[:7] }, -1, "7 bytes, want 8"},
		{"long", func(p []byte) []byte { return append(p, 0) }, -1, "9 bytes, want 8"},
		{"header", func(p []byte) []byte { p[1] ^= 1; return p }, 1, "header"},
		{"bit after the last block", func(p []byte) []byte { p[4] |= 0x10; return p }, 4, "fill"},
		{"last spare bit", func(p []byte) []byte { p[4] |= 0x80; return p }, 4, "fill"},
		{"padding", func(p []byte) []byte { p[6] = 1; return p }, 6, "fill"},
		{"trailer", func(p []byte) []byte { p[7] = 't'; return p }, 7, "trailer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := layout.Decode(tc.change(slices.Clone(good)), size)
			var format *FormatError
			if !errors.As(err, &format) {
				t.Fatalf("got %v, want a FormatError", err)
			}
			if format.Offset != tc.offset || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %q at %d, want %q at %d", err, format.Offset, tc.says, tc.offset)
			}
		})
	}

	words := small(func(l *Layout) { l.TrimTail, l.Word.Bytes, l.Header = true, 4, []byte{1, 2} })
	for _, data := range [][]byte{nil, {1}, {1, 3}} {
		if _, err := words.Decode(data, size); err == nil {
			t.Errorf("% x was accepted for a header", data)
		}
	}
	if _, err := words.Decode([]byte{1, 2, 1, 0}, size); err == nil {
		t.Error("half a word was accepted")
	}
	if _, err := words.Decode(append([]byte{1, 2}, make([]byte, 5000)...), size); err == nil {
		t.Error("more words than blocks were accepted")
	}
}

func TestDecodeHostileSizes(t *testing.T) {
	for _, size := range []int64{math.MinInt64, -1, 0, math.MaxInt64} {
		for _, l := range []Layout{small(nil), small(func(l *Layout) { l.TrimTail = true })} {
			_, err := l.Decode(nil, size)
			var se *SizeError
			if !errors.As(err, &se) {
				t.Errorf("size %d: got %v, want a SizeError", size, err)
			}
		}
	}
	if _, err := (Layout{}).Decode(nil, 512); err == nil {
		t.Error("the zero layout decoded something")
	}
}

func TestValidate(t *testing.T) {
	for name, change := range map[string]func(*Layout){
		"block size 0":              func(l *Layout) { l.BlockSize = 0 },
		"block size 256":            func(l *Layout) { l.BlockSize = 256 },
		"block size 3 MiB":          func(l *Layout) { l.BlockSize = 3 << 20 },
		"block size negative":       func(l *Layout) { l.BlockSize = math.MinInt64 },
		"bit order":                 func(l *Layout) { l.BitOrder = 2 },
		"data bit":                  func(l *Layout) { l.DataBit = 2 },
		"pad bit":                   func(l *Layout) { l.PadBit = 2 },
		"word of 0":                 func(l *Layout) { l.Word.Bytes = 0 },
		"word of 3":                 func(l *Layout) { l.Word.Bytes = 3 },
		"word of 16":                func(l *Layout) { l.Word.Bytes = 16 },
		"byte order of a byte":      func(l *Layout) { l.Word.BigEndian = true },
		"padding negative":          func(l *Layout) { l.PadTo = -1 },
		"padding too large":         func(l *Layout) { l.PadTo = maxPadTo + 1 },
		"both padded and trimmed":   func(l *Layout) { l.PadTo, l.TrimTail = 4096, true },
		"header too long":           func(l *Layout) { l.Header = make([]byte, maxLiteral+1) },
		"trailer too long":          func(l *Layout) { l.Trailer = make([]byte, maxLiteral+1) },
		"zero value of every field": func(l *Layout) { *l = Layout{} },
	} {
		l := small(change)
		if err := l.Validate(); err == nil {
			t.Errorf("%s: valid", name)
		}
		if _, err := l.Encode(mapOf(t, 1)); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

func TestEncodeWantsTheLayoutsBlocks(t *testing.T) {
	l, err := Lookup(DefaultLayout)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Encode(mapOf(t, 10)); err == nil {
		t.Error("a map of 512-byte blocks was encoded with 2 MiB ones")
	}
}

func TestCompare(t *testing.T) {
	m := mapOf(t, 70, 0, 9, 64)
	be := small(func(l *Layout) { l.Word = Word{4, true} })
	plain := small(func(l *Layout) { l.Header, l.Trailer, l.PadTo = []byte("H"), []byte("T"), 16 })
	for _, tc := range []struct {
		name   string
		layout Layout
		change func([]byte) []byte
		want   Comparison
	}{
		{"equal", plain, func(p []byte) []byte { return p },
			Comparison{Equal: true, Offset: -1, Block: -1, Want: 16, Got: 16}},
		{"block", plain, func(p []byte) []byte { p[2] = 0; return p },
			Comparison{Offset: 2, Region: RegionBits, Block: 9, Want: 16, Got: 16}},
		{"spare bit", plain, func(p []byte) []byte { p[9] |= 0x40; return p },
			Comparison{Offset: 9, Region: RegionFill, Block: -1, Want: 16, Got: 16}},
		{"padding", plain, func(p []byte) []byte { p[10] = 1; return p },
			Comparison{Offset: 10, Region: RegionFill, Block: -1, Want: 16, Got: 16}},
		{"header", plain, func(p []byte) []byte { p[0] = 1; return p },
			Comparison{Offset: 0, Region: RegionHeader, Block: -1, Want: 16, Got: 16}},
		{"trailer", plain, func(p []byte) []byte { p[15] = 1; return p },
			Comparison{Offset: 15, Region: RegionTrailer, Block: -1, Want: 16, Got: 16}},
		{"short", plain, func(p []byte) []byte { return p[:4] },
			Comparison{Offset: 4, Region: RegionEnd, Block: -1, Want: 16, Got: 4}},
		{"long", plain, func(p []byte) []byte { return append(p, 0) },
			Comparison{Offset: 16, Region: RegionEnd, Block: -1, Want: 16, Got: 17}},
		// Byte 1 of the first word holds blocks 16 to 23, byte 3 blocks 0 to 7.
		{"big-endian word", be, func(p []byte) []byte { p[1], p[3] = 1, 0; return p },
			Comparison{Offset: 1, Region: RegionBits, Block: 0, Want: 12, Got: 12}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file, err := tc.layout.Encode(m)
			if err != nil {
				t.Fatal(err)
			}
			got, err := tc.layout.Compare(m, tc.change(file))
			if err != nil || got != tc.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tc.want)
			}
		})
	}
}

// TestEncodeProperties checks random maps and layouts: the bytes are those of
// an encoder written bit by bit from the layout's description, they decode to
// the same map, and flipping any bit never gives the same map again.
func TestEncodeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := genLayout().Draw(t, "layout")
		m := genMap(l.BlockSize).Draw(t, "map")
		data, err := l.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		if want := encodeBitByBit(l, m); !bytes.Equal(data, want) {
			t.Fatalf("got  % x\nwant % x", data, want)
		}
		if size := l.EncodedSize(m.VirtualSize()); int64(len(data)) > size || (!l.TrimTail && int64(len(data)) != size) {
			t.Fatalf("%d bytes, EncodedSize says %d", len(data), size)
		}
		back, err := l.Decode(data, m.VirtualSize())
		if err != nil {
			t.Fatal(err)
		}
		if d, err := Diff(m, back); err != nil || !d.Equal() {
			t.Fatalf("decoded: %+v, %v", d, err)
		}
		if len(data) == 0 {
			return
		}
		bit := rapid.IntRange(0, len(data)*8-1).Draw(t, "bit")
		data[bit/8] ^= 1 << (bit % 8)
		if changed, err := l.Decode(data, m.VirtualSize()); err == nil {
			if d, err := Diff(m, changed); err != nil || d.OnlyA+d.OnlyB != 1 {
				t.Fatalf("bit %d flipped: %+v, %v", bit, d, err)
			}
		}
	})
}

// encodeBitByBit is the specification of a layout in the slowest way there is.
func encodeBitByBit(l Layout, m *Map) []byte {
	perWord := int64(l.Word.Bytes) * 8
	var body []byte
	for first := int64(0); first < m.Blocks(); first += perWord {
		word := make([]byte, l.Word.Bytes)
		for i := range perWord {
			bit := l.PadBit
			if b := first + i; b < m.Blocks() {
				bit = 1 - l.DataBit
				if m.Data(b) {
					bit = l.DataBit
				}
			}
			value := i // the bit's place value in the word is 2^value
			if l.BitOrder == MSBFirst {
				value = perWord - 1 - i
			}
			at := value / 8
			if l.Word.BigEndian {
				at = int64(l.Word.Bytes) - 1 - at
			}
			word[at] |= bit << (value % 8)
		}
		body = append(body, word...)
	}
	zero := make([]byte, l.Word.Bytes)
	for l.TrimTail && bytes.HasSuffix(body, zero) {
		body = body[:len(body)-len(zero)]
	}
	out := append(slices.Clone(l.Header), body...)
	for l.PadTo > 0 && int64(len(out)+len(l.Trailer))%l.PadTo != 0 {
		out = append(out, -l.PadBit)
	}
	return append(out, l.Trailer...)
}

func genLayout() *rapid.Generator[Layout] {
	return rapid.Custom(func(t *rapid.T) Layout {
		l := Layout{
			Name:      "random",
			BlockSize: 512 << rapid.IntRange(0, 16).Draw(t, "block"),
			BitOrder:  rapid.SampledFrom([]BitOrder{LSBFirst, MSBFirst}).Draw(t, "order"),
			DataBit:   rapid.Uint8Range(0, 1).Draw(t, "data"),
			PadBit:    rapid.Uint8Range(0, 1).Draw(t, "pad"),
			Word:      Word{Bytes: rapid.SampledFrom([]int{1, 2, 4, 8}).Draw(t, "word")},
			Header:    rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "header"),
			Trailer:   rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "trailer"),
		}
		if l.Word.Bytes > 1 {
			l.Word.BigEndian = rapid.Bool().Draw(t, "big endian")
		}
		switch rapid.IntRange(0, 2).Draw(t, "tail") {
		case 1:
			l.PadTo = rapid.Int64Range(1, 64).Draw(t, "pad to")
		case 2:
			l.TrimTail = true
		}
		return l
	})
}

// FuzzDecode feeds arbitrary bytes, sizes and layouts to Decode. What it
// accepts must be what Encode writes for the map that came out.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x0D, 0x02, 0x02}, int64(20*512), uint8(0), uint8(0), []byte{}, []byte{})
	f.Add([]byte{'H', 0x0D, 0, 0, 0, 'T'}, int64(20*512), uint8(0xFF), uint8(0), []byte("H"), []byte("T"))
	f.Add([]byte{}, int64(1<<40), uint8(0x40), uint8(0), []byte{}, []byte{})
	f.Add(make([]byte, 16), int64(1), uint8(3), uint8(16), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, data []byte, size int64, fields, padTo uint8, header, trailer []byte) {
		if size > 1<<32 {
			size %= 1 << 32 // the largest maps are valid but slow to fuzz
		}
		l := Layout{
			Name:      "fuzz",
			BlockSize: 512,
			BitOrder:  BitOrder(fields & 1),
			DataBit:   fields >> 1 & 1,
			PadBit:    fields >> 2 & 1,
			Word:      Word{Bytes: 1 << (fields >> 3 & 3), BigEndian: fields>>5&1 == 1},
			TrimTail:  fields>>6&1 == 1,
			PadTo:     int64(padTo),
			Header:    header,
			Trailer:   trailer,
		}
		m, err := l.Decode(data, size)
		if err != nil {
			if m != nil {
				t.Fatal("a map together with an error")
			}
			return
		}
		again, err := l.Encode(m)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("accepted % x, encodes as % x, %v", data, again, err)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	l, err := Lookup(DefaultLayout)
	if err != nil {
		b.Fatal(err)
	}
	m, err := NewMap(64<<40, l.BlockSize)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := l.Encode(m); err != nil {
			b.Fatal(err)
		}
	}
}
