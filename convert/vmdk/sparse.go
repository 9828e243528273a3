// SPDX-License-Identifier: Apache-2.0

package vmdk

import (
	"encoding/binary"
	"math"
	"slices"
)

// Flags of a hosted sparse extent ("Hosted Sparse Extent Header").
const (
	flagNewlines   = 1 << 0 // the newline test bytes are valid
	flagRedundant  = 1 << 1 // there is a redundant grain directory
	flagZeroGrains = 1 << 2 // grain table entry 1 means zeros
	flagCompressed = 1 << 16
	flagMarkers    = 1 << 17
	flagsKnownHigh = flagCompressed | flagMarkers // the high half is what a reader must know
)

// directoryAtEnd, as the sector of the grain directory, says that the footer has it.
const directoryAtEnd = math.MaxUint64

// sparse is a sparse extent of any kind: its header, checked, and where its mapping is. The
// mapping has two levels: a grain directory of grain tables, whose entries say where the grains
// are.
type sparse struct {
	file
	kind       string // its magic
	capacity   int64  // bytes of the disk
	grain      int64  // bytes
	entryBytes int64  // of a table or directory entry: 4, seSparse 8
	tableSize  int64  // entries of a grain table
	directory  int64  // byte offset of the grain directory in the file
	zeroGrains bool
	compressed bool
	markers    bool
	reserved   []byteRange // of the file, where no table and no grain may be

	// Only hosted sparse extents:
	version          int
	flags            uint32
	overhead         int64
	redundant        int64 // byte offset of the redundant grain directory, 0 if there is none
	directoryAtEnd   bool
	descriptorOffset int64 // bytes, 0 if there is none
	descriptorBytes  int64
	unclean          bool

	// Only seSparse:
	tables int64 // byte offset of the grain tables
	grains int64 // byte offset of the grains

	// index has every grain of a stream without a grain directory, sorted: the number of the
	// grain in the upper half and its sector in the lower.
	index   []uint64
	indexed bool

	// As found by check:
	dataGrains int64
	cut        bool // the file ends inside of a grain
	footer     bool // the footer says where the grain directory is
}

// byteRange is the bytes from lo to hi of a file, with a name.
type byteRange struct {
	lo, hi int64
	what   string
}

// parseHosted checks the header of a hosted sparse extent. The same layout is used for footers.
// Where the grain directory is, is checked with the directory, since there may be a second one.
func parseHosted(f file, h []byte, at int64) (*sparse, error) {
	le := binary.LittleEndian
	if len(h) < sectorSize || string(h[:4]) != magicHosted {
		return nil, bad("the file of %d bytes has no whole header at %d", f.size, at)
	}
	s := &sparse{file: f, kind: magicHosted, entryBytes: 4, version: int(le.Uint32(h[4:])), flags: le.Uint32(h[8:]),
		unclean: h[72] != 0}
	if v := le.Uint32(h[4:]); v < 1 || v > 3 {
		return nil, bad("version %d at offset %d is not 1, 2 or 3", v, at+4)
	}
	if unknown := s.flags >> 16 << 16 &^ flagsKnownHigh; unknown != 0 {
		return nil, bad("flags %#08x at offset %d need the unknown features %#08x", s.flags, at+8, unknown)
	}
	if s.flags&flagNewlines != 0 && string(h[73:77]) != "\n \r\n" {
		return nil, &Error{
			Reason: "the newline test bytes at offset 73 are damaged",
			Remedy: "the file was changed by a transfer as text; transfer it again as binary",
		}
	}
	capacity, grain := le.Uint64(h[12:]), le.Uint64(h[20:])
	if capacity > math.MaxInt64/sectorSize {
		return nil, bad("capacity of %d sectors at offset %d is too large", capacity, at+12)
	}
	s.capacity = int64(capacity) * sectorSize
	if err := s.checkCompression(le.Uint16(h[77:]), at); err != nil {
		return nil, err
	}
	if err := s.checkDescriptorPlace(le.Uint64(h[28:]), le.Uint64(h[36:]), at); err != nil {
		return nil, err
	}
	if s.capacity == 0 {
		// Nothing but a container of a descriptor.
		return s, nil
	}
	most := uint64(maxGrainBytes / sectorSize)
	if s.compressed {
		most = maxPackedGrainBytes / sectorSize
	}
	if !isPowerOfTwo(grain) || grain > most {
		return nil, bad("grain size of %d sectors at offset %d is not a power of two up to %d", grain, at+20, most)
	}
	s.grain = int64(grain) * sectorSize
	entries := le.Uint32(h[44:])
	if entries < 1 || entries > maxTableEntries {
		return nil, bad("%d entries per grain table, at offset %d, are not between 1 and %d", entries, at+44,
			maxTableEntries)
	}
	s.tableSize = int64(entries)
	s.zeroGrains = s.flags&flagZeroGrains != 0
	overhead := le.Uint64(h[64:])
	if overhead > uint64(f.size)/sectorSize {
		return nil, bad("overhead of %d sectors at offset %d is more than the file of %d bytes; the image is truncated "+
			"or damaged", overhead, at+64, f.size)
	}
	s.overhead = int64(overhead) * sectorSize
	if redundant := le.Uint64(h[48:]); s.flags&flagRedundant != 0 && redundant < math.MaxInt64/sectorSize {
		s.redundant = int64(redundant) * sectorSize
	}
	directory := le.Uint64(h[56:])
	switch {
	case directory == directoryAtEnd:
		s.directoryAtEnd = true
	case directory >= math.MaxInt64/sectorSize:
		s.directory = math.MaxInt64 / sectorSize * sectorSize // outside of any file
	default:
		s.directory = int64(directory) * sectorSize
	}
	return s, s.checkDirectorySize()
}

func (s *sparse) checkCompression(algorithm uint16, at int64) error {
	s.compressed, s.markers = s.flags&flagCompressed != 0, s.flags&flagMarkers != 0
	switch {
	case algorithm > 1:
		return bad("compression %d at offset %d is unknown", algorithm, at+77)
	case s.compressed != (algorithm == 1):
		return bad("compression %d at offset %d contradicts the flags %#08x at offset %d", algorithm, at+77, s.flags, at+8)
	case s.markers && !s.compressed:
		return bad("flags %#08x at offset %d want markers without compression, which nothing writes", s.flags, at+8)
	}
	return nil
}

func (s *sparse) checkDescriptorPlace(offset, sectors uint64, at int64) error {
	s.reserved = []byteRange{{0, sectorSize, "header"}}
	if offset == 0 {
		return nil
	}
	if sectors < 1 || sectors > maxDescriptorBytes/sectorSize {
		return bad("descriptor of %d sectors, at offset %d, is empty or longer than %d bytes", sectors, at+36,
			maxDescriptorBytes)
	}
	length := int64(sectors) * sectorSize
	if offset > uint64(s.size)/sectorSize || length > s.size-int64(offset)*sectorSize {
		return bad("descriptor of %d sectors at sector %d ends outside of the file of %d bytes; the image is truncated "+
			"or damaged", sectors, offset, s.size)
	}
	s.descriptorOffset, s.descriptorBytes = int64(offset)*sectorSize, length
	s.reserved = append(s.reserved, byteRange{s.descriptorOffset, s.descriptorOffset + length, "descriptor"})
	return nil
}

// cover is how many bytes of the disk a grain table maps. With all limits it is below 2^47.
func (s *sparse) cover() int64 { return s.tableSize * s.grain }

// directoryEntries is how many entries of the grain directory map the disk.
func (s *sparse) directoryEntries() int64 { return (s.capacity-1)/s.cover() + 1 }

// tableBytes is the length of a grain table.
func (s *sparse) tableBytes() int64 { return s.tableSize * s.entryBytes }

func (s *sparse) checkDirectorySize() error {
	// Entries first, so that nothing overflows.
	if n := s.directoryEntries(); n > maxDirectoryBytes/s.entryBytes {
		return bad("capacity of %d bytes with grains of %d and %d of them per table needs a grain directory of %d "+
			"entries, above the limit of %d", s.capacity, s.grain, s.tableSize, n, maxDirectoryBytes/s.entryBytes)
	}
	return nil
}

const (
	cowdHeaderBytes  = 2048
	cowdTableSize    = 4096
	maxCOWDGrainSize = 2048 // sectors
)

// parseCOWD checks the header of a COWD extent.
func parseCOWD(f file) (*sparse, error) {
	if f.size < cowdHeaderBytes {
		return nil, bad("the file of %d bytes is too short for a header of %d", f.size, cowdHeaderBytes)
	}
	var h [32]byte
	if err := f.readFull(h[:], 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if v := le.Uint32(h[4:]); v != 1 {
		return nil, bad("version %d at offset 4 is not 1", v)
	}
	capacity, grain := le.Uint32(h[12:]), le.Uint32(h[16:])
	switch {
	case capacity == 0:
		return nil, bad("capacity at offset 12 is 0")
	case !isPowerOfTwo(uint64(grain)) || grain > maxCOWDGrainSize:
		return nil, bad("grain size of %d sectors at offset 16 is not a power of two up to %d", grain, maxCOWDGrainSize)
	}
	s := &sparse{file: f, kind: magicCOWD, entryBytes: 4, tableSize: cowdTableSize,
		capacity: int64(capacity) * sectorSize, grain: int64(grain) * sectorSize,
		directory: int64(le.Uint32(h[20:])) * sectorSize,
		reserved:  []byteRange{{0, cowdHeaderBytes, "header"}}}
	if n := le.Uint32(h[24:]); int64(n) < s.directoryEntries() {
		return nil, bad("%d entries of the grain directory, at offset 24, are too few: the capacity needs %d",
			n, s.directoryEntries())
	}
	return s, s.checkDirectorySize()
}

// Fixed values of the seSparse format.
const (
	seVersion         = 0x0000000200000001
	seGrainSize       = 8  // sectors
	seTableSectors    = 64 // of a grain table
	seVolatileMagic   = 0xCAFECAFE
	seHeaderBytes     = 512
	seDirectoryTagged = 0x10000000 // upper half of a grain directory entry
)

// parseSESparse checks the two headers of a seSparse extent.
func parseSESparse(f file) (*sparse, error) {
	if f.size < seHeaderBytes {
		return nil, bad("the file of %d bytes is too short for a header of %d", f.size, seHeaderBytes)
	}
	var h [seHeaderBytes]byte
	if err := f.readFull(h[:], 0); err != nil {
		return nil, err
	}
	field := func(i int) uint64 { return binary.LittleEndian.Uint64(h[i*8:]) }
	for i, want := range [...]uint64{
		0: field(0), 1: seVersion, 2: field(2), 3: seGrainSize, 4: seTableSectors, 5: 0, 6: 0, 7: 0, 8: 0, 9: 0,
	} {
		if field(i) != want {
			return nil, bad("field %#x at offset %d is not %#x", field(i), i*8, want)
		}
	}
	for i := 26; i < seHeaderBytes/8; i++ {
		if field(i) != 0 {
			return nil, bad("padding %#x at offset %d is not 0", field(i), i*8)
		}
	}
	capacity := field(2)
	if capacity == 0 || capacity > math.MaxInt64/sectorSize {
		return nil, bad("capacity of %d sectors at offset 16 is 0 or too large", capacity)
	}
	s := &sparse{file: f, kind: magicSESparse, entryBytes: 8, tableSize: seTableSectors * sectorSize / 8,
		capacity: int64(capacity) * sectorSize, grain: seGrainSize * sectorSize, zeroGrains: true,
		reserved: []byteRange{{0, seHeaderBytes, "header"}}}
	offset := func(i int, what string) (int64, error) {
		if field(i) == 0 || field(i) > uint64(f.size)/sectorSize {
			return 0, bad("%s at sector %d, named at offset %d, is in the header or outside of the file of %d bytes",
				what, field(i), i*8, f.size)
		}
		return int64(field(i)) * sectorSize, nil
	}
	volatile, err := offset(10, "the volatile header")
	if err != nil {
		return nil, err
	}
	if s.directory, err = offset(16, "the grain directory"); err != nil {
		return nil, err
	}
	if s.tables, err = offset(18, "the grain tables"); err != nil {
		return nil, err
	}
	if s.grains, err = offset(24, "the grains"); err != nil {
		return nil, err
	}
	if err := s.checkDirectorySize(); err != nil {
		return nil, err
	}
	if n := field(17); n > maxDirectoryBytes/sectorSize || int64(n)*sectorSize < s.directoryEntries()*8 {
		return nil, bad("grain directory of %d sectors, at offset 136, is too large or too small: the capacity needs %d "+
			"entries", n, s.directoryEntries())
	}
	if volatile > f.size-seHeaderBytes {
		return nil, bad("the volatile header at %d ends outside of the file of %d bytes", volatile, f.size)
	}
	var v [32]byte
	if err := f.readFull(v[:], volatile); err != nil {
		return nil, err
	}
	if magic := binary.LittleEndian.Uint64(v[:]); magic != seVolatileMagic {
		return nil, bad("the magic %#x of the volatile header at %d is not %#x", magic, volatile, seVolatileMagic)
	}
	if replay := binary.LittleEndian.Uint64(v[24:]); replay != 0 {
		return nil, &Error{
			Reason: "it was not closed cleanly: its journal has to be replayed",
			Remedy: "open and close the disk with ESXi, for example by starting the machine, or consolidate its snapshots",
		}
	}
	s.reserved = append(s.reserved, byteRange{volatile, volatile + seHeaderBytes, "volatile header"})
	return s, nil
}

// kind of a range of the disk: how it is stored.
type kind uint8

const (
	kindUnallocated kind = iota // in the parent, or zeros
	kindZero                    // zeros, whatever the parent has
	kindPlain                   // in the file
	kindCompressed              // in the file, compressed
)

// table returns the offset of the grain table that an entry of the grain directory names, 0 if
// there is none. The whole table is inside the file, and not in the header.
func (s *sparse) table(e uint64, index int64) (int64, error) {
	if e == 0 {
		return 0, nil
	}
	var off int64
	if s.kind == magicSESparse {
		if e>>32 != seDirectoryTagged {
			return 0, bad("grain directory entry %d, %#016x, is not a grain table", index, e)
		}
		off = s.tables + int64(uint32(e))*s.tableBytes()
	} else {
		off = int64(e) * sectorSize
	}
	if off > s.size-s.tableBytes() {
		return 0, bad("grain directory entry %d: the grain table at %d ends outside of the file of %d bytes; the image "+
			"is truncated or damaged", index, off, s.size)
	}
	if what := s.inReserved(off, off+s.tableBytes()); what != "" {
		return 0, bad("grain directory entry %d: the grain table at %d lies in the %s", index, off, what)
	}
	return off, nil
}

// inReserved returns the name of what may not be overlapped by the bytes from lo to hi, "" if
// they are free.
func (s *sparse) inReserved(lo, hi int64) string {
	for _, r := range s.reserved {
		if lo < r.hi && r.lo < hi {
			return r.what
		}
	}
	return ""
}

// grainAt returns what an entry of a grain table at pos of the file says: where the grain begins,
// if it has data. It begins inside the file.
func (s *sparse) grainAt(e uint64, pos int64) (kind, int64, error) {
	if e == 0 {
		return kindUnallocated, 0, nil
	}
	var host int64
	if s.kind == magicSESparse {
		switch e >> 60 {
		case 1, 2:
			return kindZero, 0, nil
		case 3:
		default:
			return 0, 0, bad("grain table entry at %d, %#016x, is of no known kind", pos, e)
		}
		number := e>>48&0xFFF | e&0xFFFFFFFFFFFF<<12
		if number >= uint64(s.size)/uint64(s.grain)+1 {
			return 0, 0, bad("grain table entry at %d: grain %d is outside of the file of %d bytes; the image is "+
				"truncated", pos, number, s.size)
		}
		host = s.grains + int64(number)*s.grain
	} else {
		if e == 1 && s.zeroGrains {
			return kindZero, 0, nil
		}
		host = int64(e) * sectorSize
	}
	if host >= s.size {
		return 0, 0, bad("grain table entry at %d: the grain at %d is outside of the file of %d bytes; the image is "+
			"truncated", pos, host, s.size)
	}
	if what := s.inReserved(host, host+s.leastStored()); what != "" {
		return 0, 0, bad("grain table entry at %d: the grain at %d lies in the %s", pos, host, what)
	}
	if s.compressed {
		return kindCompressed, host, nil
	}
	return kindPlain, host, nil
}

// leastStored is how many bytes of the file a grain needs at least.
func (s *sparse) leastStored() int64 {
	if s.compressed {
		return sectorSize
	}
	return s.grain
}

// entry decodes entry i of a table or a part of one.
func (s *sparse) entry(p []byte, i int64) uint64 {
	if s.entryBytes == 8 {
		return binary.LittleEndian.Uint64(p[i*8:])
	}
	return uint64(binary.LittleEndian.Uint32(p[i*4:]))
}

// find returns the place of a grain in the index, or of the next one that there is.
func (s *sparse) find(number int64) int {
	i, _ := slices.BinarySearch(s.index, uint64(number)<<32)
	return i
}
