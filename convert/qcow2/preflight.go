// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"strings"
)

// Options says what [Preflight] accepts. The zero value accepts nothing out of the ordinary.
type Options struct {
	AllowBacking   bool  // accept an image with a backing file, which the caller then has to give
	Force          bool  // accept an image that is marked as corrupt
	MaxVirtualSize int64 // bytes, 0 = no limit but the format's

	// OpenDataFile opens the external data file of that name, which is the image author's, and gives
	// its content and its size in bytes; nil refuses images that have one. It is called once, when the
	// header was found good. Has the content an Extent method as an image.Image has, then what that
	// calls zero is.
	OpenDataFile func(name string) (r io.ReaderAt, size int64, err error)
}

// Metadata is what an image says of itself, checked.
type Metadata struct {
	Version            int
	VirtualSize        int64    // bytes, rounded up to 512
	ClusterSize        int64    // bytes
	Compression        string   // "zlib" or "zstd": how compressed clusters are stored, if there are any
	CompressedClusters int64    // number of compressed clusters
	MappedBytes        int64    // bytes of the disk in clusters that hold data, in whole clusters
	Features           []string // in the terms of the format
	Snapshots          int      // internal snapshots
	Warnings           []string // what the user should know
	BackingFile        string   // name of the backing file as stored, "" if there is none
	BackingFormat      string   // its format as stored, "" if not stated
	DataFile           string   // name of the external data file as stored, "" if there is none

	r             io.ReaderAt
	fileSize      int64
	headerLength  int64
	size          int64 // as in the header
	clusterBits   uint
	extended      bool  // extended L2 entries
	compression   uint8 // type
	l1Offset      int64
	l1Bytes       int64 // length of the L1 table in the file
	l1Used        int64 // entries that map the disk; those behind belong to saved states
	incompatible  uint64
	backingOffset int64
	featureNames  map[uint8]string // incompatible bits, as the image names them
	data          io.ReaderAt      // the external data file, nil = the data is in r
	dataSize      int64            // of the external data file
}

// Preflight checks the image in the size bytes of r: header, header extensions, L1 table and every
// L2 entry. A bad or unsupported image gives an [*Error]; errors of reading are returned as they
// are.
//
// It reads every mapping table once, so it takes time by what the file really holds, never by what
// it claims, and it keeps two numbers per L2 table in memory while it runs.
func Preflight(ctx context.Context, r io.ReaderAt, size int64, o Options) (*Metadata, error) {
	m := &Metadata{r: r, fileSize: size}
	if err := m.readHeader(o); err != nil {
		return nil, err
	}
	if err := m.walk(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// readHeader checks the header and its extensions.
func (m *Metadata) readHeader(o Options) error {
	var h [112]byte
	n := min(int64(len(h)), m.fileSize)
	if err := m.readFull(h[:n], 0); err != nil {
		return err
	}
	if n < 4 || string(h[:4]) != magic {
		return bad("the magic at offset 0 is missing")
	}
	if n < 72 {
		return bad("the file of %d bytes is too short for a header of 72", m.fileSize)
	}
	be := binary.BigEndian
	m.Version = int(be.Uint32(h[4:]))
	switch be.Uint32(h[4:]) {
	case 2:
		m.headerLength = 72
	case 3:
		if n < 104 {
			return bad("the file of %d bytes is too short for a header of 104", m.fileSize)
		}
	default:
		return bad("version %d at offset 4 is not 2 or 3", be.Uint32(h[4:]))
	}

	// cluster_bits comes first: everything else is measured in clusters.
	clusterBits := be.Uint32(h[20:])
	if clusterBits < minClusterBits || clusterBits > maxClusterBits {
		return bad("cluster_bits %d at offset 20 is not between %d and %d", clusterBits, minClusterBits, maxClusterBits)
	}
	m.clusterBits = uint(clusterBits)
	m.ClusterSize = 1 << clusterBits
	if m.Version == 3 {
		if err := m.readVersion3(h[:n]); err != nil {
			return err
		}
	}
	if err := m.checkSizes(be.Uint64(h[24:]), o.MaxVirtualSize); err != nil {
		return err
	}
	if err := m.checkBackingRange(be.Uint64(h[8:]), be.Uint32(h[16:])); err != nil {
		return err
	}
	ext, err := m.readExtensions()
	if err != nil {
		return err
	}
	if err := m.checkFeatures(be.Uint32(h[32:]), ext, o.Force); err != nil {
		return err
	}
	if err := m.readBacking(be.Uint32(h[16:]), ext, o.AllowBacking); err != nil {
		return err
	}
	if err := m.checkTables(h[:]); err != nil {
		return err
	}
	if err := m.openDataFile(h[:n], ext, o.OpenDataFile); err != nil {
		return err
	}
	m.describe(h[:n], ext)
	return nil
}

// readVersion3 reads the fields that version 3 added.
func (m *Metadata) readVersion3(h []byte) error {
	be := binary.BigEndian
	m.incompatible = be.Uint64(h[72:])
	if order := be.Uint32(h[96:]); order > 6 {
		return bad("refcount_order %d at offset 96 is above 6", order)
	}
	length := be.Uint32(h[100:])
	if length < 104 || length%8 != 0 || int64(length) > m.ClusterSize || int64(length) > m.fileSize {
		return bad("header_length %d at offset 100 is not a multiple of 8 between 104 and the cluster size %d "+
			"in a file of %d bytes", length, m.ClusterSize, m.fileSize)
	}
	m.headerLength = int64(length)
	if length > 104 {
		m.compression = h[104]
	}
	if m.compression > compressionZstd {
		return bad("compression type %d at offset 104 is unknown", m.compression)
	}
	if set := m.incompatible&incompatCompression != 0; set != (m.compression != compressionZlib) {
		return bad("compression type %d at offset 104 contradicts its feature bit %d", m.compression, btoi(set))
	}
	m.extended = m.incompatible&incompatExtendedL2 != 0
	if m.extended && m.clusterBits < minClusterBitsExtended {
		return bad("cluster_bits %d at offset 20 is below %d, which extended L2 entries need",
			m.clusterBits, minClusterBitsExtended)
	}
	return nil
}

func (m *Metadata) checkSizes(size uint64, limit int64) error {
	if size == 0 || size > math.MaxInt64-511 {
		return bad("virtual size %d at offset 24 is not between 1 and 2^63-512", size)
	}
	m.size = int64(size)
	m.VirtualSize = roundUp(m.size, 512)
	if limit > 0 && m.VirtualSize > limit {
		return bad("virtual size %d at offset 24 is above the limit of %d bytes", size, limit)
	}
	if m.VirtualSize != m.size {
		m.warn("the virtual size of %d bytes is not a multiple of 512; it is rounded up with zeros", m.size)
	}
	return nil
}

// extensions is what the header extensions say.
type extensions struct {
	backingFormat, dataFile string
	bitmaps, luks           bool
}

// readExtensions walks the list of header extensions, which ends at the backing file name or with
// the first cluster.
func (m *Metadata) readExtensions() (extensions, error) {
	var ext extensions
	end := min(m.ClusterSize, m.fileSize)
	if m.backingOffset != 0 {
		end = m.backingOffset
	}
	pos := m.headerLength
	for count := 0; end-pos >= 8; count++ {
		var h [8]byte
		if err := m.readFull(h[:], pos); err != nil {
			return ext, err
		}
		kind, length := binary.BigEndian.Uint32(h[:]), int64(binary.BigEndian.Uint32(h[4:]))
		if kind == extEnd {
			return ext, nil
		}
		if count == maxExtensions {
			return ext, bad("there are more than %d header extensions", maxExtensions)
		}
		if length > end-pos-8 {
			return ext, bad("header extension %#08x at offset %d has %d bytes where %d are left",
				kind, pos, length, end-pos-8)
		}
		var err error
		switch kind {
		case extBackingFormat:
			ext.backingFormat, err = m.readName("backing format", pos+8, length)
		case extFeatureNames:
			err = m.readFeatureNames(pos+8, length)
		case extBitmaps:
			ext.bitmaps = true
		case extEncryption:
			ext.luks = true
		case extDataFile:
			if length == 0 {
				return ext, bad("the name of the external data file at offset %d is empty", pos)
			}
			ext.dataFile, err = m.readName("external data file", pos+8, length)
		}
		if err != nil {
			return ext, err
		}
		pos += 8 + roundUp(length, 8)
	}
	return ext, nil
}

// readName reads a name out of a header extension.
func (m *Metadata) readName(what string, pos, length int64) (string, error) {
	if length > maxBackingName {
		return "", bad("the %s name at offset %d has %d bytes", what, pos, length)
	}
	name := make([]byte, length)
	err := m.readFull(name, pos)
	return string(name), err
}

// readFeatureNames reads the names of incompatible features ("Feature name table").
func (m *Metadata) readFeatureNames(pos, length int64) error {
	const entry = 48
	m.featureNames = make(map[uint8]string)
	for i := int64(0); i < min(length/entry, 3*64); i++ {
		var e [entry]byte
		if err := m.readFull(e[:], pos+i*entry); err != nil {
			return err
		}
		if e[0] == 0 && e[1] < 64 {
			name, _, _ := strings.Cut(string(e[2:]), "\x00")
			m.featureNames[e[1]] = name
		}
	}
	return nil
}

// checkFeatures refuses what cannot be read rightly.
func (m *Metadata) checkFeatures(crypt uint32, ext extensions, force bool) error {
	if unknown := m.incompatible &^ uint64(incompatKnown); unknown != 0 {
		for bit := uint8(0); bit < 64; bit++ {
			if unknown&(1<<bit) == 0 {
				continue
			}
			name := ""
			if n := m.featureNames[bit]; n != "" {
				name = fmt.Sprintf(" (%q)", n)
			}
			return bad("it needs the unknown incompatible feature %d%s", bit, name)
		}
	}
	if crypt != 0 || ext.luks {
		return &Error{
			Reason: fmt.Sprintf("it is encrypted (method %d at offset 32)", crypt),
			Remedy: "decrypt it with `qemu-img convert`, giving its secret with --object and --image-opts",
		}
	}
	if m.incompatible&incompatCorrupt != 0 {
		if !force {
			return &Error{
				Reason:   "it is marked as corrupt",
				Remedy:   "repair a copy with `qemu-img check -r all`, or force the reading of it as it is",
				Forcible: true,
			}
		}
		m.warn("it is marked as corrupt; its content may be wrong")
	}
	if m.incompatible&incompatDirty != 0 {
		m.warn("it was not closed cleanly; its mapping is valid nevertheless")
	}
	return nil
}

// checkBackingRange checks where the backing file name is said to be, without reading it.
func (m *Metadata) checkBackingRange(offset uint64, length uint32) error {
	if offset == 0 {
		return nil
	}
	// QEMU keeps the name in the first cluster.
	if offset < uint64(m.headerLength) || offset > uint64(m.ClusterSize) || offset > uint64(m.fileSize) {
		return bad("backing file name offset %d at offset 8 is not between the header and the end of the "+
			"first cluster", offset)
	}
	left := min(m.ClusterSize, m.fileSize) - int64(offset)
	if length > maxBackingName || int64(length) > left {
		return bad("backing file name of %d bytes at offset %d: at most %d fit",
			length, offset, min(maxBackingName, left))
	}
	m.backingOffset = int64(offset)
	return nil
}

// readBacking reads the name of the backing file, which is a string of the image's author: it is
// reported and not acted upon here.
func (m *Metadata) readBacking(length uint32, ext extensions, allow bool) error {
	if m.backingOffset == 0 || length == 0 {
		return nil
	}
	name := make([]byte, length)
	if err := m.readFull(name, m.backingOffset); err != nil {
		return err
	}
	if !allow {
		return &Error{
			Reason: fmt.Sprintf("it has a backing file %q, and backing files are not followed unless allowed", name),
			Remedy: "allow backing files if you trust the image, or make it self-contained with " +
				"`qemu-img convert -O qcow2`",
		}
	}
	m.BackingFile, m.BackingFormat = string(name), ext.backingFormat
	return nil
}

// openDataFile opens the external data file, if the image has one ("Header", bit 2 of
// incompatible_features and bit 1 of autoclear_features).
func (m *Metadata) openDataFile(h []byte, ext extensions, open func(string) (io.ReaderAt, int64, error)) error {
	raw := m.Version == 3 && binary.BigEndian.Uint64(h[88:])&autoclearRawData != 0
	if m.incompatible&incompatDataFile == 0 {
		switch {
		case ext.dataFile != "":
			return bad("it names an external data file, %q, but lacks the feature bit of one", ext.dataFile)
		case raw:
			return bad("bit 1 of autoclear_features at offset 88 says that its external data file is raw, but it has none")
		}
		return nil
	}
	switch {
	case ext.dataFile == "":
		return bad("its data is in an external data file, whose name it does not state")
	case m.Snapshots > 0:
		return bad("it has %d internal snapshots, which an image with an external data file cannot have", m.Snapshots)
	case raw && m.BackingFile != "":
		return bad("its external data file %q is said to be the whole disk, yet it has a backing file %q",
			ext.dataFile, m.BackingFile)
	case open == nil:
		return &Error{
			Reason: fmt.Sprintf("its data is in an external data file, %q, which is not opened", ext.dataFile),
			Remedy: "if you trust the image, make it self-contained with `qemu-img convert -O qcow2`",
		}
	}
	var err error
	if m.data, m.dataSize, err = open(ext.dataFile); err != nil {
		return err
	}
	m.DataFile = ext.dataFile
	return nil
}

// checkTables checks what the header says of the L1, refcount and snapshot tables. Refcounts and
// snapshots are not read, but an image that lies about them is damaged.
func (m *Metadata) checkTables(h []byte) error {
	be := binary.BigEndian
	entries, offset := be.Uint32(h[36:]), be.Uint64(h[40:])
	m.l1Bytes = int64(entries) * 8
	m.l1Used = (m.size-1)/(m.ClusterSize*m.l2Entries()) + 1
	switch {
	case m.l1Bytes > maxL1Bytes:
		return bad("l1_size %d at offset 36 is above the limit of %d entries", entries, maxL1Bytes/8)
	case int64(entries) < m.l1Used:
		return bad("l1_size %d at offset 36 is too small: the virtual size needs %d entries", entries, m.l1Used)
	}
	if err := m.checkTable("L1 table", 40, offset, m.l1Bytes); err != nil {
		return err
	}
	m.l1Offset = int64(offset)

	clusters := int64(be.Uint32(h[56:]))
	if clusters < 1 || clusters*m.ClusterSize > max(maxRefcountTableBytes, m.ClusterSize) {
		return bad("refcount_table_clusters %d at offset 56 is not between 1 and %d",
			clusters, max(maxRefcountTableBytes/m.ClusterSize, 1))
	}
	// The table's last cluster may be cut: entries that were never used need not be in the file.
	if err := m.checkTable("refcount table", 48, be.Uint64(h[48:]), (clusters-1)*m.ClusterSize+8); err != nil {
		return err
	}

	snapshots := be.Uint32(h[60:])
	if snapshots > maxSnapshots {
		return bad("nb_snapshots %d at offset 60 is above the limit of %d", snapshots, maxSnapshots)
	}
	if snapshots > 0 {
		const minEntry = 40
		if err := m.checkTable("snapshot table", 64, be.Uint64(h[64:]), int64(snapshots)*minEntry); err != nil {
			return err
		}
		m.Snapshots = int(snapshots)
		m.warn("it has %d internal snapshots; only the current state is converted", snapshots)
	}
	return nil
}

// checkTable checks the place of a table of length bytes, which may not be 0; field is where the
// header names it.
func (m *Metadata) checkTable(what string, field int, offset uint64, length int64) error {
	switch {
	case offset%uint64(m.ClusterSize) != 0:
		return bad("%s offset %d at offset %d is not a multiple of the cluster size %d",
			what, offset, field, m.ClusterSize)
	case offset < uint64(m.ClusterSize):
		return bad("%s offset %d at offset %d lies in the header", what, offset, field)
	case offset > uint64(m.fileSize) || length > m.fileSize-int64(offset):
		return bad("%s of %d bytes at %d ends outside of the file of %d bytes; the image is truncated or damaged",
			what, length, offset, m.fileSize)
	}
	return nil
}

// describe fills in what is only shown.
func (m *Metadata) describe(h []byte, ext extensions) {
	m.Compression = "zlib"
	if m.compression == compressionZstd {
		m.Compression = "zstd"
	}
	add := func(set bool, name string) {
		if set {
			m.Features = append(m.Features, name)
		}
	}
	add(m.incompatible&incompatDirty != 0, "dirty")
	add(m.incompatible&incompatCorrupt != 0, "corrupt")
	add(m.compression != compressionZlib, "compression type")
	add(m.extended, "extended L2 entries")
	if m.Version == 3 {
		add(binary.BigEndian.Uint64(h[80:])&1 != 0, "lazy refcounts")
	}
	add(ext.bitmaps, "bitmaps")
	add(m.BackingFile != "", "backing file")
	add(m.DataFile != "", "external data file")
	add(m.DataFile != "" && binary.BigEndian.Uint64(h[88:])&autoclearRawData != 0, "raw external data")
}

// l2EntryBytes is the length of an L2 entry in bytes.
func (m *Metadata) l2EntryBytes() int64 {
	if m.extended {
		return 16
	}
	return 8
}

// l2Entries is the number of entries of an L2 table.
func (m *Metadata) l2Entries() int64 { return m.ClusterSize / m.l2EntryBytes() }

func (m *Metadata) warn(format string, args ...any) {
	m.Warnings = append(m.Warnings, fmt.Sprintf(format, args...))
}

// readFull reads len(p) bytes at off, which the caller knows to be in the file.
func (m *Metadata) readFull(p []byte, off int64) error { return readFull(m.r, p, off) }

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%d bytes at offset %d: %w", len(p), off, err)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// tablePage is how many bytes of a table are read at a time.
const tablePage = 64 << 10

// walk checks the L1 table and all L2 tables.
func (m *Metadata) walk(ctx context.Context) error {
	tables, err := m.readL1(ctx)
	if err != nil {
		return err
	}
	w := walker{m: m, page: make([]byte, min(tablePage, m.ClusterSize))}
	for _, table := range tables {
		if err := ctx.Err(); err != nil {
			return err
		}
		used := m.l2Entries()
		if table.index == m.l1Used-1 {
			// What is behind the end of the disk is never read.
			if rest := ((m.size-1)>>m.clusterBits + 1) % used; rest != 0 {
				used = rest
			}
		}
		if err := w.table(table.offset, table.index*m.l2Entries(), used); err != nil {
			return err
		}
	}
	m.CompressedClusters = w.compressed
	m.MappedBytes = (w.plain + w.compressed) * m.ClusterSize
	if w.cut {
		m.warn("the file ends inside of its last cluster, which is filled up with zeros")
	}
	return w.checkAmplification(int64(len(tables)))
}

// l2Table is where an L2 table is and which L1 entry names it.
type l2Table struct{ offset, index int64 }

// readL1 returns the L2 tables, all at valid and different places, in the order of the file.
func (m *Metadata) readL1(ctx context.Context) (tables []l2Table, err error) {
	page := make([]byte, min(tablePage, m.l1Used*8))
	for i := int64(0); i < m.l1Used; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p := page[:min(int64(len(page)), (m.l1Used-i)*8)]
		if err := m.readFull(p, m.l1Offset+i*8); err != nil {
			return nil, fmt.Errorf("read the L1 table: %w", err)
		}
		for ; len(p) > 0; p, i = p[8:], i+1 {
			e := binary.BigEndian.Uint64(p)
			table := int64(e & entryOffset)
			switch {
			case e&l1Reserved != 0 || table&(m.ClusterSize-1) != 0:
				return nil, bad("L1 entry %d, %#016x, is not the offset of a cluster", i, e)
			case table == 0:
				continue
			case table < m.ClusterSize || m.inL1(table):
				return nil, bad("L1 entry %d: the L2 table at %d lies in the header or the L1 table", i, table)
			case table > m.fileSize-m.ClusterSize:
				return nil, bad("L1 entry %d: the L2 table at %d ends outside of the file of %d bytes; "+
					"the image is truncated or damaged", i, table, m.fileSize)
			}
			// Different tables need room, so there cannot be more of them than clusters in the file.
			if int64(len(tables)) >= m.fileSize>>m.clusterBits {
				return nil, errSharedL2
			}
			tables = append(tables, l2Table{table, i})
		}
	}
	slices.SortFunc(tables, func(a, b l2Table) int { return cmp.Compare(a.offset, b.offset) })
	for i := 1; i < len(tables); i++ {
		if tables[i].offset == tables[i-1].offset {
			return nil, errSharedL2
		}
	}
	return tables, nil
}

var errSharedL2 = &Error{Reason: "two L1 entries name the same L2 table"}

// inL1 tells whether the cluster at off is one of the L1 table's.
func (m *Metadata) inL1(off int64) bool {
	return off >= m.l1Offset && off < m.l1Offset+m.l1Bytes
}

// walker checks L2 tables and counts what they map.
type walker struct {
	m                 *Metadata
	page              []byte
	plain, compressed int64 // clusters
	places            distinct
	cut               bool // a cluster ends behind the end of the file
}

// table checks the first used entries of the L2 table at the offset, which map the disk from a
// cluster on.
func (w *walker) table(offset, cluster, used int64) error {
	entry := w.m.l2EntryBytes()
	for pos, end := offset, offset+used*entry; pos < end; {
		p := w.page[:min(int64(len(w.page)), end-pos)]
		if err := w.m.readFull(p, pos); err != nil {
			return fmt.Errorf("read an L2 table: %w", err)
		}
		for ; len(p) > 0; p, pos, cluster = p[entry:], pos+entry, cluster+1 {
			e, bitmap := binary.BigEndian.Uint64(p), uint64(0)
			if entry == 16 {
				bitmap = binary.BigEndian.Uint64(p[8:])
			}
			if e == 0 && bitmap == 0 {
				continue
			}
			if err := w.entry(pos, cluster, e, bitmap); err != nil {
				return err
			}
		}
	}
	return nil
}

// entry checks the L2 entry at pos, of a cluster of the disk.
func (w *walker) entry(pos, cluster int64, e, bitmap uint64) error {
	m := w.m
	if e&entryCompressed != 0 {
		host, _ := m.compressedRange(e)
		switch {
		case m.data != nil:
			return bad("L2 entry at %d: a compressed cluster in an image with an external data file", pos)
		case host < m.ClusterSize:
			return bad("L2 entry at %d: the compressed cluster at %d lies in the header", pos, host)
		case host >= m.fileSize:
			return bad("L2 entry at %d: the compressed cluster at %d is outside of the file of %d bytes; "+
				"the image is truncated or damaged", pos, host, m.fileSize)
		}
		w.compressed++
		w.places.add(uint64(host))
		return nil
	}
	host := int64(e & entryOffset)
	zero := e&entryZero != 0
	switch {
	case zero && m.Version < 3:
		return bad("L2 entry at %d, %#016x, has the zero flag, which version 2 does not have", pos, e)
	case e&l2Reserved != 0 || zero && m.extended:
		return bad("L2 entry at %d, %#016x, has reserved bits", pos, e)
	case host&(m.ClusterSize-1) != 0:
		return bad("L2 entry at %d: the data at %d is not at a multiple of the cluster size", pos, host)
	}
	placed := host != 0 || m.data != nil && e&entryCopied != 0
	stored := m.ClusterSize // bytes of the cluster up to the last that is stored
	if m.extended {
		alloc, zeros := uint32(bitmap), uint32(bitmap>>32)
		if alloc&zeros != 0 {
			return bad("L2 entry at %d: subclusters %#08x are both allocated and zero", pos, alloc&zeros)
		}
		if !placed && alloc != 0 {
			return bad("L2 entry at %d: subclusters %#08x are allocated in no cluster", pos, alloc)
		}
		zero = alloc == 0
		stored = int64(bits.Len32(alloc)) << (m.clusterBits - 5)
	}
	if !placed || zero {
		return nil
	}
	if m.data != nil {
		if err := m.checkPlace(pos, cluster<<m.clusterBits, host, stored); err != nil {
			return err
		}
		w.plain++
		return nil
	}
	switch {
	case host < m.ClusterSize || m.inL1(host):
		return bad("L2 entry at %d: the data at %d lies in the header or the L1 table", pos, host)
	case host >= m.fileSize:
		return bad("L2 entry at %d: the data at %d is outside of the file of %d bytes; the image is truncated",
			pos, host, m.fileSize)
	case host > m.fileSize-m.ClusterSize:
		w.cut = true
	}
	w.plain++
	return nil
}

// checkPlace checks the place of a cluster in the external data file, where every byte of the disk
// has its own offset ("Standard Cluster Descriptor").
func (m *Metadata) checkPlace(pos, off, host, stored int64) error {
	if host != off {
		return bad("L2 entry at %d: the data at %d of the external data file is not at its own place, %d", pos, host, off)
	}
	if end := min(off+stored, m.size); end > m.dataSize {
		return bad("L2 entry at %d: the data up to %d is outside of the external data file of %d bytes; "+
			"that file is truncated, or another disk's", pos, end, m.dataSize)
	}
	return nil
}

// compressedRange returns where the data of a compressed cluster begins and how many bytes it has
// at most ("Compressed Clusters Descriptor").
func (m *Metadata) compressedRange(e uint64) (host, length int64) {
	x := 62 - (m.clusterBits - 8)
	host = int64(e & (1<<x - 1))
	sectors := int64(e&(entryCompressed-1)>>x) + 1
	return host, sectors*512 - host&511
}
