// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
)

// DefaultLayout is the name of the layout that is used where none is named.
const DefaultLayout = "zvhd2"

// Limits of a layout's fields: far above what a real tool writes, and low
// enough that a layout read from a file cannot make Encode allocate at will.
const (
	maxPadTo   = 16 << 20
	maxLiteral = 1 << 20
)

// BitOrder says which bit of a word stands for the word's first block.
type BitOrder uint8

const (
	LSBFirst BitOrder = iota // the least significant bit, as in ZVHD2
	MSBFirst                 // the most significant bit, as in VHD's sector bitmap
)

func (o BitOrder) String() string {
	switch o {
	case LSBFirst:
		return "lsb-first"
	case MSBFirst:
		return "msb-first"
	}
	return fmt.Sprintf("BitOrder(%d)", uint8(o))
}

// Word is the unit that the bits are gathered in before they are stored.
type Word struct {
	Bytes     int  // 1, 2, 4 or 8
	BigEndian bool // how the word's bytes are stored; false when Bytes is 1
}

// Layout is how the bits of a map become the bytes of a file:
//
//	header | words of bits | fill | trailer
//
// Bits that stand for no block, in the last word and in the fill, are PadBit.
type Layout struct {
	Name      string
	BlockSize int64    // bytes of the disk that a bit stands for
	BitOrder  BitOrder // which bit of a word is its first block
	DataBit   uint8    // the bit of a block with data, 0 or 1
	PadBit    uint8    // the bit that stands for no block, 0 or 1
	Word      Word
	PadTo     int64  // the file's length is a multiple of this; 0 for no fill
	TrimTail  bool   // trailing zero words are dropped; excludes PadTo
	Header    []byte // literal bytes before the bits
	Trailer   []byte // literal bytes at the end of the file
}

// Layouts returns the built-in layouts, the default one first. The caller may
// change the values returned.
func Layouts() []Layout {
	zvhd2 := Layout{
		Name:      DefaultLayout,
		BlockSize: 2 << 20,
		BitOrder:  LSBFirst,
		DataBit:   1,
		Word:      Word{Bytes: 1},
		PadTo:     4096, // a segment of ZVHD2's bitmap: 32,768 blocks, 64 GiB of disk
	}
	compact := zvhd2
	compact.Name, compact.PadTo = "compact", 0
	return []Layout{zvhd2, compact}
}

// Lookup returns the built-in layout of that name. The error lists the names.
func Lookup(name string) (Layout, error) {
	var names []string
	for _, l := range Layouts() {
		if l.Name == name {
			return l, nil
		}
		names = append(names, l.Name)
	}
	return Layout{}, fmt.Errorf("unknown bitmap layout %q; known are %s", name, strings.Join(names, ", "))
}

// Validate tells whether every field has a value that the layout can be
// written with.
func (l Layout) Validate() error {
	reason := ""
	switch {
	case l.BlockSize < MinBlockSize || l.BlockSize&(l.BlockSize-1) != 0:
		reason = fmt.Sprintf("block size %d is not a power of two of at least %d", l.BlockSize, MinBlockSize)
	case l.BitOrder != LSBFirst && l.BitOrder != MSBFirst:
		reason = fmt.Sprintf("unknown bit order %d", l.BitOrder)
	case l.DataBit > 1:
		reason = fmt.Sprintf("data bit %d is not 0 or 1", l.DataBit)
	case l.PadBit > 1:
		reason = fmt.Sprintf("pad bit %d is not 0 or 1", l.PadBit)
	case l.Word.Bytes != 1 && l.Word.Bytes != 2 && l.Word.Bytes != 4 && l.Word.Bytes != 8:
		reason = fmt.Sprintf("a word of %d bytes is not one of 1, 2, 4, 8", l.Word.Bytes)
	case l.Word.Bytes == 1 && l.Word.BigEndian:
		reason = "a word of one byte has no byte order"
	case l.PadTo < 0 || l.PadTo > maxPadTo:
		reason = fmt.Sprintf("padding to %d bytes is not in 0..%d", l.PadTo, maxPadTo)
	case l.PadTo > 0 && l.TrimTail:
		reason = "a file is padded or trimmed, not both"
	case len(l.Header) > maxLiteral || len(l.Trailer) > maxLiteral:
		reason = fmt.Sprintf("header or trailer longer than %d bytes", maxLiteral)
	}
	if reason != "" {
		return fmt.Errorf("bitmap layout %q: %s", l.Name, reason)
	}
	return nil
}

// EncodedSize returns the length in bytes of the file for a disk of
// virtualSize bytes; with TrimTail the longest that it can have. The layout
// must be valid.
func (l Layout) EncodedSize(virtualSize int64) int64 {
	n := int64(len(l.Header)) + l.bitsSize(blockCount(virtualSize, l.BlockSize)) + int64(len(l.Trailer))
	if l.PadTo > 0 {
		n = (n + l.PadTo - 1) / l.PadTo * l.PadTo
	}
	return n
}

// bitsSize returns the length in bytes of the whole words that hold a bit for
// each block.
func (l Layout) bitsSize(blocks int64) int64 {
	perWord := int64(l.Word.Bytes) * 8
	return (blocks + perWord - 1) / perWord * int64(l.Word.Bytes)
}

// Encode returns the file for m, whose block size must be the layout's.
func (l Layout) Encode(m *Map) ([]byte, error) {
	if err := l.Validate(); err != nil {
		return nil, err
	}
	if m.blockSize != l.BlockSize {
		return nil, fmt.Errorf("bitmap layout %q has blocks of %d bytes, the map has blocks of %d",
			l.Name, l.BlockSize, m.blockSize)
	}
	size := l.EncodedSize(m.virtualSize)
	out := make([]byte, 0, size+8) // the last step of 64 bits may reach past the last word
	out = append(out, l.Header...)
	for i := range m.words {
		w := m.words[i].Load()
		if l.DataBit == 0 {
			w = ^w
		}
		if spare := int64(i+1)*64 - m.blocks; spare > 0 {
			w = w<<spare>>spare | l.padWord()<<(64-spare)
		}
		out = binary.LittleEndian.AppendUint64(out, w)
	}
	start := len(l.Header)
	out = out[:start+int(l.bitsSize(m.blocks))]
	l.permute(out[start:])
	if l.TrimTail {
		out = out[:start+trimmed(out[start:], l.Word.Bytes)]
	}
	if l.PadTo > 0 {
		fill := size - int64(len(out)+len(l.Trailer))
		out = append(out, bytes.Repeat([]byte{byte(l.padWord())}, int(fill))...)
	}
	return append(out, l.Trailer...), nil
}

// padWord returns 64 bits that stand for no block.
func (l Layout) padWord() uint64 { return -uint64(l.PadBit) }

// permute turns words of bits between the order that the map has them in
// (bytes ascending, least significant bit first) and the layout's. It is its
// own inverse, which is why Encode and Decode cannot disagree about it.
func (l Layout) permute(p []byte) {
	msb := l.BitOrder == MSBFirst
	if msb {
		for i, b := range p {
			p[i] = bits.Reverse8(b)
		}
	}
	// The first block's byte is the least significant one of its word if the
	// least significant bit is the first, and the most significant one if not:
	// where that and the byte order disagree, the bytes change places.
	if n := l.Word.Bytes; n > 1 && msb != l.Word.BigEndian {
		for ; len(p) > 0; p = p[n:] {
			for i, j := 0, n-1; i < j; i, j = i+1, j-1 {
				p[i], p[j] = p[j], p[i]
			}
		}
	}
}

// trimmed returns the length of p without its trailing words of zeros.
func trimmed(p []byte, word int) int {
	n := len(bytes.TrimRight(p, "\x00"))
	return (n + word - 1) / word * word
}

// FormatError says why bytes are not a bitmap file of a layout for a disk.
type FormatError struct {
	Layout string
	Offset int64 // in the file, in bytes; -1 when the file's length is what is wrong
	Reason string
}

func (e *FormatError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("not a bitmap of layout %q: %s", e.Layout, e.Reason)
	}
	return fmt.Sprintf("not a bitmap of layout %q: at byte %d: %s", e.Layout, e.Offset, e.Reason)
}

// Decode reads the file for a disk of virtualSize bytes. It accepts exactly
// what Encode writes: the length, the literal bytes, and the bits that stand
// for no block must be right. The error about data is a [*FormatError], that
// about virtualSize a [*SizeError].
func (l Layout) Decode(data []byte, virtualSize int64) (*Map, error) {
	if err := l.Validate(); err != nil {
		return nil, err
	}
	if err := checkSize(virtualSize, l.BlockSize); err != nil {
		return nil, err
	}
	// The length is checked before anything is allocated. That of a trimmed file
	// depends on its blocks: there the comparison at the end decides.
	size, fixed := l.EncodedSize(virtualSize), len(l.Header)+len(l.Trailer)
	got := int64(len(data))
	switch {
	case !l.TrimTail && got != size:
		return nil, l.formatErrorf(-1, "%d bytes, want %d for a disk of %d bytes", got, size, virtualSize)
	case l.TrimTail && got < int64(fixed):
		return nil, l.formatErrorf(-1, "%d bytes, want %d to %d for a disk of %d bytes", got, fixed, size, virtualSize)
	}
	m, err := NewMap(virtualSize, l.BlockSize)
	if err != nil {
		return nil, err
	}
	// What TrimTail dropped were zeros: words that the copy leaves as they are.
	stored := make([]byte, len(m.words)*8)
	n := l.bitsSize(m.blocks)
	copy(stored[:n], data[len(l.Header):len(data)-len(l.Trailer)])
	l.permute(stored[:n])
	for i := range m.words {
		w := binary.LittleEndian.Uint64(stored[i*8:])
		if l.DataBit == 0 {
			w = ^w
		}
		if spare := int64(i+1)*64 - m.blocks; spare > 0 {
			w = w << spare >> spare
		}
		m.words[i].Store(w)
	}
	// Everything that is not a block's bit is checked by writing it again, so
	// that strictness needs no second description of the layout.
	cmp, err := l.Compare(m, data)
	if err != nil {
		return nil, err
	}
	switch {
	case cmp.Equal:
		return m, nil
	case cmp.Region == RegionEnd:
		return nil, l.formatErrorf(-1, "%d bytes, where the same blocks take %d", cmp.Got, cmp.Want)
	default:
		return nil, l.formatErrorf(cmp.Offset, "the %s differs from what the layout has there", cmp.Region)
	}
}

func (l Layout) formatErrorf(offset int64, format string, args ...any) error {
	return &FormatError{Layout: l.Name, Offset: offset, Reason: fmt.Sprintf(format, args...)}
}

// Region is a part of a bitmap file.
type Region string

const (
	RegionHeader  Region = "header"
	RegionBits    Region = "bits"
	RegionFill    Region = "fill" // bits after the last block, and padding bytes
	RegionTrailer Region = "trailer"
	RegionEnd     Region = "end" // after the shorter of two files
)

// Comparison is how a bitmap file compares with the one that Encode writes.
type Comparison struct {
	Equal  bool
	Offset int64  // first byte that differs, -1 if none
	Region Region // where that byte is in the file that Encode writes; "" if none
	Block  int64  // in RegionBits the first block whose bit differs, else -1
	Want   int64  // length in bytes of what Encode writes
	Got    int64  // length in bytes of the file compared
}

// Compare compares file, byte for byte, with what Encode writes for m.
func (l Layout) Compare(m *Map, file []byte) (Comparison, error) {
	want, err := l.Encode(m)
	if err != nil {
		return Comparison{}, err
	}
	c := Comparison{Offset: -1, Block: -1, Want: int64(len(want)), Got: int64(len(file))}
	n := min(len(want), len(file))
	at := 0
	for at < n && want[at] == file[at] {
		at++
	}
	if at == len(want) && at == len(file) {
		c.Equal = true
		return c, nil
	}
	c.Offset = int64(at)
	if at == n {
		c.Region = RegionEnd
		return c, nil
	}
	bitsEnd := min(int64(len(l.Header))+l.bitsSize(m.blocks), c.Want-int64(len(l.Trailer)))
	switch {
	case at < len(l.Header):
		c.Region = RegionHeader
	case c.Offset >= c.Want-int64(len(l.Trailer)):
		c.Region = RegionTrailer
	case c.Offset >= bitsEnd:
		c.Region = RegionFill
	default:
		c.Region, c.Block = RegionBits, l.firstDifference(want, file, at)
		if c.Block >= m.blocks {
			c.Region, c.Block = RegionFill, -1
		}
	}
	return c, nil
}

// firstDifference returns the lowest block whose bit differs in the word that
// the byte at offset at belongs to. The whole word counts because its bytes may
// be stored in the opposite order of its blocks.
func (l Layout) firstDifference(a, b []byte, at int) int64 {
	size := l.Word.Bytes
	word := (at - len(l.Header)) / size
	start := len(l.Header) + word*size
	var x [8]byte
	for i := range size {
		if start+i < len(a) && start+i < len(b) {
			x[i] = a[start+i] ^ b[start+i]
		}
	}
	l.permute(x[:size])
	return int64(word)*int64(size)*8 + int64(bits.TrailingZeros64(binary.LittleEndian.Uint64(x[:])))
}
