// SPDX-License-Identifier: Apache-2.0

package vhdx_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
)

var le = binary.LittleEndian

const (
	kib = 1 << 10
	mib = 1 << 20
)

// store is a file in memory that takes no room for what was never written.
type store struct {
	pages map[int64]*[4096]byte
	size  int64
	read  int64 // bytes that were read, where nobody reads concurrently
	count bool
}

func newStore() *store { return &store{pages: map[int64]*[4096]byte{}} }

func (s *store) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= s.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), s.size-off)]
	for done := 0; done < len(want); {
		at := off + int64(done)
		part := want[done:min(len(want), done+int(4096-at%4096))]
		if page := s.pages[at/4096]; page != nil {
			copy(part, page[at%4096:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	if s.count {
		s.read += int64(len(want))
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(p), nil
}

func (s *store) put(off int64, p ...byte) {
	s.size = max(s.size, off+int64(len(p)))
	for len(p) > 0 {
		page := s.pages[off/4096]
		if page == nil {
			page = new([4096]byte)
			s.pages[off/4096] = page
		}
		n := copy(page[off%4096:], p)
		p, off = p[n:], off+int64(n)
	}
}

func (s *store) put16(off int64, v uint16) { s.put(off, le.AppendUint16(nil, v)...) }
func (s *store) put32(off int64, v uint32) { s.put(off, le.AppendUint32(nil, v)...) }
func (s *store) put64(off int64, v uint64) { s.put(off, le.AppendUint64(nil, v)...) }

func (s *store) get(off, n int64) []byte {
	p := make([]byte, n)
	if got, err := s.ReadAt(p, off); got != len(p) && err != io.EOF {
		panic(err)
	}
	return p
}

func (s *store) get64(off int64) uint64 { return le.Uint64(s.get(off, 8)) }

func (s *store) clone() *store {
	c := newStore()
	c.size = s.size
	for i, p := range s.pages {
		q := *p
		c.pages[i] = &q
	}
	return c
}

// truncate cuts the file, or makes it longer.
func (s *store) truncate(size int64) {
	for i, p := range s.pages {
		if i*4096 >= size {
			delete(s.pages, i)
		} else if i*4096+4096 > size {
			clear(p[size-i*4096:])
		}
	}
	s.size = size
}

// seal makes the checksum of a structure right.
func (s *store) seal(off, n int64) {
	s.put32(off+4, 0)
	s.put32(off+4, crc32.Checksum(s.get(off, n), crc32.MakeTable(crc32.Castagnoli)))
}

// sealAll makes the checksums of all structures with a fixed place right.
func (s *store) sealAll() {
	s.seal(64*kib, 4*kib)
	s.seal(128*kib, 4*kib)
	s.seal(192*kib, 64*kib)
	s.seal(256*kib, 64*kib)
}

// guidBytes is a GUID as it is stored.
func guidBytes(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		panic("bad GUID " + s)
	}
	slices.Reverse(b[:4])
	slices.Reverse(b[4:6])
	slices.Reverse(b[6:8])
	return b
}

func utf16le(s string) (p []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		p = le.AppendUint16(p, u)
	}
	return p
}

const (
	idBAT      = "2dc27766-f623-4200-9d64-115e9bfd4a08"
	idMetadata = "8b7ca206-4790-4b9a-b8fe-575f050f886e"
	idLog      = "01020304-0506-0708-090a-0b0c0d0e0f10"
	idData     = "11223344-5566-7788-99aa-bbccddeeff00"
	idParent   = "aabbccdd-5566-7788-99aa-bbccddeeff00"
)

// Places in the files that write makes.
const (
	logAt      = 1 * mib
	logBytes   = 1 * mib
	metadataAt = 2 * mib
	batAt      = 3 * mib
	itemsAt    = metadataAt + 64*kib
)

// disk is a VHDX to be written. Sectors of 512 bytes that are hot have data of their owner in them,
// all others are zeros. States and the sectors that a partially present block has are the owner's
// choice.
type disk struct {
	size, block, sector int64
	fixed, child        bool
	states              map[int64]uint64 // of payload blocks, default 0
	present             func(sector int64) bool
	hot                 map[int64]bool // by number of 512 bytes from the disk's start
	order               []int64        // in which blocks are stored; those that are not named are not
	gap                 int64          // MBs between blocks
	cut                 bool           // the disk's last block ends with the disk, if it is the file's last
	locator             [][2]string
}

// pattern is what a hot sector holds.
func pattern(owner byte, sector int64) []byte {
	p := bytes.Repeat([]byte{owner}, 512)
	le.PutUint64(p, uint64(sector))
	p[8] = 1
	return p
}

func (d *disk) ratio() int64 { return d.sector << 23 / d.block }

func (d *disk) batIndex(block int64) int64 { return block + block/d.ratio() }

func (d *disk) write() *store {
	s := newStore()
	s.put(0, []byte("vhdxfile")...)
	s.put(8, utf16le("test \x1b1.0")...)
	for i, at := range []int64{64 * kib, 128 * kib} {
		s.put(at, []byte("head")...)
		s.put64(at+8, uint64(5+i))
		s.put(at+32, guidBytes(idData)...)
		s.put16(at+66, 1)
		s.put32(at+68, logBytes)
		s.put64(at+72, logAt)
	}
	entries := (d.size-1)/d.block + 1
	chunks := (entries-1)/d.ratio() + 1
	if entries += (entries - 1) / d.ratio(); d.child {
		entries = chunks * (d.ratio() + 1)
	}
	batBytes := (entries*8 + mib - 1) / mib * mib
	for _, at := range []int64{192 * kib, 256 * kib} {
		s.put(at, []byte("regi")...)
		s.put32(at+8, 2)
		s.put(at+16, guidBytes(idMetadata)...)
		s.put64(at+32, metadataAt)
		s.put32(at+40, mib)
		s.put32(at+44, 1)
		s.put(at+48, guidBytes(idBAT)...)
		s.put64(at+64, batAt)
		s.put32(at+72, uint32(batBytes))
		s.put32(at+76, 1)
	}
	s.sealAll()

	flags := uint32(0)
	if d.fixed {
		flags |= 1
	}
	if d.child {
		flags |= 2
	}
	items := []struct {
		id   string
		data []byte
	}{
		{"caa16737-fa36-4d43-b3b6-33f0aa44e76b", le.AppendUint32(le.AppendUint32(nil, uint32(d.block)), flags)},
		{"2fa54224-cd1b-4876-b211-5dbed83bf4b8", le.AppendUint64(nil, uint64(d.size))},
		{"8141bf1d-a96f-4709-ba47-f233a8faab5f", le.AppendUint32(nil, uint32(d.sector))},
		{"cda348c7-445d-4471-9cc9-e9885251c556", le.AppendUint32(nil, 4096)},
		{"beca12ab-b2e6-4523-93ef-c309e000c746", make([]byte, 16)},
	}
	if d.child {
		items = append(items, struct {
			id   string
			data []byte
		}{"a8d35f2d-b30b-454d-abf7-d3d84834ab0c", d.writeLocator()})
	}
	s.put(metadataAt, []byte("metadata")...)
	s.put16(metadataAt+10, uint16(len(items)))
	at := int64(itemsAt)
	for i, it := range items {
		e := int64(metadataAt + 32 + 32*i)
		s.put(e, guidBytes(it.id)...)
		s.put32(e+16, uint32(at-metadataAt))
		s.put32(e+20, uint32(len(it.data)))
		s.put32(e+24, 6)
		s.put(at, it.data...)
		at += int64(len(it.data))
	}

	next := batAt + batBytes
	s.truncate(max(s.size, next))
	take := func(n int64) int64 {
		next += d.gap * mib
		at := next
		next += n
		s.truncate(max(s.size, next))
		return at
	}
	bitmaps := map[int64]int64{}
	for n, b := range d.order {
		state := d.states[b]
		if state == 7 {
			chunk := b / d.ratio()
			if _, ok := bitmaps[chunk]; !ok {
				bitmaps[chunk] = take(mib)
				s.put64(batAt+8*(chunk*(d.ratio()+1)+d.ratio()), uint64(bitmaps[chunk])|6)
			}
			first := b % d.ratio() * d.block / d.sector
			page := make([]byte, d.block/d.sector/8)
			for i := range d.block / d.sector {
				if d.present(b*d.block/d.sector + i) {
					page[i/8] |= 1 << (i % 8)
				}
			}
			s.put(bitmaps[chunk]+first/8, page...)
		}
		if state == 6 || state == 7 {
			at := take(d.block)
			s.put64(batAt+8*d.batIndex(b), uint64(at)|state)
			for h := range d.hot {
				if h*512/d.block == b {
					s.put(at+h*512%d.block, pattern(1, h)...)
				}
			}
			if d.cut && b == (d.size-1)/d.block && n == len(d.order)-1 {
				s.truncate(at + (d.size-1)%d.block + 1)
			}
		} else {
			s.put64(batAt+8*d.batIndex(b), state|0xABC<<20) // stale offset
		}
	}
	return s
}

func (d *disk) writeLocator() []byte {
	p := append(guidBytes("b04aefb7-d19e-4a81-b789-25b8e9445913"), 0, 0)
	p = le.AppendUint16(p, uint16(len(d.locator)))
	at := len(p) + 12*len(d.locator)
	var text []byte
	for _, kv := range d.locator {
		k, v := utf16le(kv[0]), utf16le(kv[1])
		p = le.AppendUint32(p, uint32(at+len(text)))
		p = le.AppendUint32(p, uint32(at+len(text)+len(k)))
		p = le.AppendUint16(p, uint16(len(k)))
		p = le.AppendUint16(p, uint16(len(v)))
		text = append(append(text, k...), v...)
	}
	return append(p, text...)
}

// owner tells who has a sector of 512 bytes: 1 the disk, 2 its parent, 0 nobody.
func (d *disk) owner(sector int64) byte {
	switch d.states[sector*512/d.block] {
	case 0:
		if d.child {
			return 2
		}
	case 6:
		return 1
	case 7:
		if d.present(sector * 512 / d.sector) {
			return 1
		}
		return 2
	}
	return 0
}

// content returns what the disk holds.
func (d *disk) content(off, n int64) []byte {
	p := make([]byte, n)
	for sector := off / 512; sector*512 < off+n; sector++ {
		if !d.hot[sector] {
			continue
		}
		if owner := d.owner(sector); owner != 0 {
			data, at := pattern(owner, sector), sector*512-off
			copy(p[max(0, at):], data[max(0, -at):])
		}
	}
	return p
}

// update is a change of the file for the log to hold: a sector, or zeros.
type update struct {
	at    int64
	data  []byte // 4096 bytes
	zeros int64  // bytes, if data is nil
}

// logEntry returns an entry. The tail and the sizes are those of the header.
func logEntry(id string, sequence uint64, tail, flushed, last int64, updates []update) []byte {
	n := (64 + 32*len(updates) + 4095) / 4096 * 4096
	p := make([]byte, n)
	copy(p, "loge")
	le.PutUint32(p[12:], uint32(tail))
	le.PutUint64(p[16:], sequence)
	le.PutUint32(p[24:], uint32(len(updates)))
	copy(p[32:], guidBytes(id))
	le.PutUint64(p[48:], uint64(flushed))
	le.PutUint64(p[56:], uint64(last))
	for i, u := range updates {
		d := p[64+32*i:]
		le.PutUint64(d[16:], uint64(u.at))
		le.PutUint64(d[24:], sequence)
		if u.data == nil {
			copy(d, "zero")
			le.PutUint64(d[8:], uint64(u.zeros))
			continue
		}
		copy(d, "desc")
		copy(d[4:8], u.data[4092:])
		copy(d[8:16], u.data[:8])
		sector := append([]byte("data"), le.AppendUint32(nil, uint32(sequence>>32))...)
		sector = append(sector, u.data[8:4092]...)
		p = append(p, le.AppendUint32(sector, uint32(sequence))...)
	}
	le.PutUint32(p[8:], uint32(len(p)))
	sealEntry(p)
	return p
}

func sealEntry(p []byte) {
	clear(p[4:8])
	le.PutUint32(p[4:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
}

// putLog writes an entry at a position of the ring and returns the position behind it.
func (s *store) putLog(position int64, entry []byte) int64 {
	for i := 0; i < len(entry); i += 4096 {
		s.put(logAt+(position+int64(i))%logBytes, entry[i:i+4096]...)
	}
	return (position + int64(len(entry))) % logBytes
}

// useLog says in the headers that the log is in use.
func (s *store) useLog() {
	for _, at := range []int64{64 * kib, 128 * kib} {
		s.put(at+48, guidBytes(idLog)...)
	}
	s.sealAll()
}
