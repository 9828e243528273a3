// SPDX-License-Identifier: Apache-2.0

package inflate

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	fast "github.com/klauspost/compress/flate"
)

// samples are pieces of data of many kinds.
func samples(t testing.TB) [][]byte {
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 70000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	few := make([]byte, 65536)
	for i := range few {
		few[i] = "abcdefghijklmnop"[int(min(15, r.ExpFloat64()*2))]
	}
	skewed := make([]byte, 1<<16)
	for i := range skewed { // long codes
		skewed[i] = byte(min(255, r.ExpFloat64()*18))
	}
	all := [][]byte{nil, {7}, []byte("abc"), noise, few, skewed, make([]byte, 65536), bytes.Repeat([]byte{1, 2, 3}, 9000)}
	for i := range 8 {
		off := r.IntN(len(program) - 1<<20)
		all = append(all, program[off:off+1<<(10+i)])
	}
	for d := 1; d < 20; d++ {
		all = append(all, bytes.Repeat(noise[:d], 4000/d))
	}
	return all
}

func deflate(t testing.TB, p []byte, level int) []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err == nil {
		_, err = w.Write(p)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDecodesWhatWasEncoded(t *testing.T) {
	var d Decoder
	for i, want := range samples(t) {
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 6, 9} {
			packed := deflate(t, want, level)
			src := append(bytes.Clone(packed), "what follows"...)
			got := make([]byte, len(want))
			n, used, err := d.Deflate(got, src)
			if err != nil || n != len(want) || used != len(packed) || !bytes.Equal(got, want) {
				t.Fatalf("sample %d, level %d: %d of %d bytes, %d of %d used, equal: %t, %v", i, level, n, len(want), used, len(packed),
					bytes.Equal(got, want), err)
			}
			// More room than needed stays as it is.
			roomy := bytes.Repeat([]byte{0xA5}, len(want)+300)
			if n, _, err := d.Deflate(roomy, packed); err != nil || n != len(want) || !bytes.Equal(roomy[:n], want) {
				t.Fatalf("sample %d, level %d, with room: %d bytes, %v", i, level, n, err)
			}
			// Too little room gives what fits.
			if len(want) > 0 {
				short := len(want) / 2
				n, _, err := d.Deflate(got[:short], packed)
				if err != ErrFull || n != short || !bytes.Equal(got[:n], want[:n]) {
					t.Fatalf("sample %d, level %d, half the room: %d of %d bytes, %v", i, level, n, short, err)
				}
			}
			// Input that was cut is never whole, and what came out of it is right.
			clear(got)
			for _, cut := range []int{0, 1, len(packed) / 3, len(packed) - 1} {
				if cut >= len(packed) {
					continue
				}
				n, _, err := d.Deflate(got, packed[:cut])
				if err != ErrTruncated || !bytes.Equal(got[:n], want[:n]) {
					t.Fatalf("sample %d, level %d, cut at %d of %d: %d bytes, %v", i, level, cut, len(packed), n, err)
				}
			}
		}
	}
}

func TestZlib(t *testing.T) {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	want := bytes.Repeat([]byte("a grain of a disk, "), 500)
	if _, err := w.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	good := b.Bytes()
	var d Decoder
	got := make([]byte, len(want))
	if n, used, err := d.Zlib(got, append(bytes.Clone(good), 1, 2)); err != nil || n != len(want) || used != len(good) || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %d of %d used, %v", n, used, len(good), err)
	}
	change := func(at int, to byte) []byte {
		p := bytes.Clone(good)
		p[at] = to
		return p
	}
	for _, tc := range []struct {
		name string
		src  []byte
		want error
	}{
		{"nothing", nil, ErrTruncated},
		{"half a header", good[:1], ErrTruncated},
		{"no data", good[:2], ErrTruncated},
		{"half a checksum", good[:len(good)-2], ErrTruncated},
		{"another method", change(0, good[0]&^15|7), ErrDamaged},
		{"a larger window", change(0, 0x88), ErrDamaged},
		{"header's check", change(1, good[1]^1), ErrDamaged},
		{"a dictionary", change(1, 0x20+31-(0x7820)%31), ErrDamaged},
		{"checksum", change(len(good)-1, good[len(good)-1]^1), ErrChecksum},
	} {
		if _, _, err := d.Zlib(got, tc.src); err != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	if n, _, err := d.Zlib(got[:len(got)-1], good); err != ErrFull || n != len(got)-1 {
		t.Errorf("one byte too little room: %d, %v", n, err)
	}
}

// TestDamagedCodes has blocks, bit by bit, that no encoder writes.
func TestDamagedCodes(t *testing.T) {
	// Of a string of 0 and 1, the first is the lowest bit of the first byte.
	pack := func(s string) []byte {
		var p []byte
		n := 0
		for _, c := range s {
			if c == ' ' {
				continue
			}
			if n%8 == 0 {
				p = append(p, 0)
			}
			p[n/8] |= byte(c-'0') << (n % 8)
			n++
		}
		return append(p, make([]byte, 400)...)
	}
	for _, tc := range []struct {
		name, bits string
		want       error
	}{
		{"block of type 3", "1 11", ErrDamaged},
		{"stored, check of length", "1 00 00000 1000000000000000 1111111111111111", ErrDamaged},
		{"287 literals", "1 01 01111 00000 0000", ErrDamaged},
		{"31 distances", "1 01 00000 01111 0000", ErrDamaged},
		{"no code for lengths", "1 01 00000 00000 0000 000 000 000 000", ErrDamaged},
		{"too many codes for lengths", "1 01 00000 00000 0000 100 100 100 000", ErrDamaged},
		{"repetition of nothing", "1 01 00000 00000 0000 100 000 000 100 1", ErrDamaged},
		{"length 286 of the fixed code", "1 10 11000110", ErrDamaged},
		{"distance 30 of the fixed code", "1 10 00110000 0000001 11110", ErrDamaged},
		{"distance before the beginning", "1 10 0000001 00000", ErrDamaged},
	} {
		src := pack(tc.bits)
		for _, room := range []int{4, 4096} {
			var d Decoder
			n, _, err := d.Deflate(make([]byte, room), src)
			if err != tc.want {
				t.Errorf("%s, room for %d: %d bytes, %v, want %v", tc.name, room, n, err, tc.want)
			}
		}
		if _, err := io.ReadAll(flate.NewReader(bytes.NewReader(src))); err == nil {
			t.Errorf("%s: the standard library takes it", tc.name)
		}
	}
}

// TestBuildFillsTables has a code with as many second tables as there can be, and looks for entries that
// nothing was written to.
func TestBuildFillsTables(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		// A random complete code: leaves are split until there are enough.
		most := 2 + r.IntN(285)
		lengths := []uint8{1, 1}
		for tries := 0; len(lengths) < most && tries < 2000; tries++ {
			i := r.IntN(len(lengths))
			if r.IntN(3) > 0 {
				i = len(lengths) - 1 // deep ones
			}
			if lengths[i] < maxCodeBits {
				lengths[i]++
				lengths = append(lengths, lengths[i])
			}
		}
		r.Shuffle(len(lengths), func(i, j int) { lengths[i], lengths[j] = lengths[j], lengths[i] })
		var d Decoder
		if !build(d.literal[:], literalBits, lengths, literalEntries[:]) {
			t.Fatalf("a complete code was refused: %d", lengths)
		}
		for i, e := range d.literal[:1<<literalBits] {
			if e == 0 {
				t.Fatalf("entry %d of the table is empty: %d", i, lengths)
			}
			if e&entryLiteral == 0 && e&entryPointer != 0 {
				for j := range uint32(1) << (e >> 8 & 15) {
					if d.literal[e>>16+j] == 0 {
						t.Fatalf("entry %d of the second table at %d is empty: %d", j, e>>16, lengths)
					}
				}
			}
		}
		if len(lengths) <= distanceCodes {
			if !build(d.distance[:], distanceBits, lengths, distanceEntries[:]) {
				t.Fatalf("a complete code was refused: %d", lengths)
			}
		}
	}
}

func TestNothingIsAllocated(t *testing.T) {
	src := deflate(t, bytes.Repeat([]byte("text "), 10000), 6)
	dst := make([]byte, 50000)
	d := new(Decoder)
	if n := testing.AllocsPerRun(10, func() { _, _, _ = d.Deflate(dst, src) }); n != 0 {
		t.Errorf("%v allocations for decoding", n)
	}
}

// FuzzDeflate compares with the standard library: what one takes the other takes, to the same bytes and the
// same end.
func FuzzDeflate(f *testing.F) {
	for _, s := range samples(f)[:6] {
		s = s[:min(len(s), 2000)]
		for _, level := range []int{-2, 0, 1, 9} {
			f.Add(deflate(f, s, level), uint16(len(s)))
		}
	}
	f.Add([]byte{0x4b, 0x04, 0x00}, uint16(0))
	var d Decoder
	f.Fuzz(func(t *testing.T, src []byte, room uint16) {
		in := bytes.NewReader(src)
		want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(in), 1<<17))
		if len(want) == 1<<17 {
			return // long repetitions are all alike
		}
		guard := []byte("do not write here")
		dst := append(make([]byte, len(want)), guard...)
		n, used, err := d.Deflate(dst[:len(want)], src)
		if !bytes.Equal(dst[len(want):], guard) {
			t.Fatal("wrote behind the room")
		}
		if (err == nil) != (wantErr == nil) && !(wantErr != nil && err == ErrFull) {
			t.Fatalf("got %v, the standard library %v", err, wantErr)
		}
		if !bytes.Equal(dst[:n], want[:n]) {
			t.Fatal("other bytes than the standard library's")
		}
		if err == nil && (n != len(want) || used != len(src)-in.Len()) {
			t.Fatalf("%d bytes of %d used, the standard library %d of %d", n, used, len(want), len(src)-in.Len())
		}
		// With more and with less room, in which the fast way ends elsewhere.
		roomy := make([]byte, len(want)+600)
		if k, _, err2 := d.Deflate(roomy, src); (err2 == nil) != (wantErr == nil) || !bytes.Equal(roomy[:min(k, len(want))], want[:min(k, len(want))]) {
			t.Fatalf("with room: %d bytes, %v, the standard library %v", k, err2, wantErr)
		}
		less := make([]byte, int(room)%(len(want)+1))
		if k, _, err2 := d.Deflate(less, src); !bytes.Equal(less[:k], want[:k]) || err2 == nil && (k != len(want) || wantErr != nil) {
			t.Fatalf("with room for %d: %d bytes, %v", len(less), k, err2)
		}
	})
}

// BenchmarkDeflate decodes clusters of 64 KiB of this test's own program, as ways of doing it.
func BenchmarkDeflate(b *testing.B) {
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		b.Fatal(err)
	}
	const cluster = 64 << 10
	var packed [][]byte
	for off := 0; off+cluster <= min(len(program), 4<<20); off += cluster {
		packed = append(packed, deflate(b, program[off:off+cluster], 6))
	}
	dst := make([]byte, cluster)
	run := func(name string, decode func(src []byte) error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(cluster)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if err := decode(packed[i%len(packed)]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
	var d Decoder
	run("inflate", func(src []byte) error {
		_, _, err := d.Deflate(dst, src)
		return err
	})
	k := fast.NewReader(nil)
	run("klauspost", func(src []byte) error {
		return errors.Join(k.(fast.Resetter).Reset(bytes.NewReader(src), nil), readFull(k, dst))
	})
	s := flate.NewReader(nil)
	run("standard", func(src []byte) error {
		return errors.Join(s.(flate.Resetter).Reset(bytes.NewReader(src), nil), readFull(s, dst))
	})
}

func readFull(r io.Reader, p []byte) error {
	if _, err := io.ReadFull(r, p); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return nil
}
