// SPDX-License-Identifier: Apache-2.0

package qcow1

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// Options says what [Preflight] accepts. The zero value accepts nothing out of the ordinary.
type Options struct {
	AllowParent    bool  // accept an image with a backing file, which the caller then has to give
	MaxVirtualSize int64 // bytes, 0 = no limit but the format's
}

// Metadata is what an image says of itself, checked.
type Metadata struct {
	VirtualSize int64    // bytes, rounded up to 512
	MappedBytes int64    // bytes of the disk in clusters that hold data
	BlockSize   int64    // bytes of a cluster
	SectorSize  int      // bytes, always 512
	Variant     string   // always ""
	Compression string   // "zlib" if there are compressed clusters, else ""
	Creator     string   // always ""
	Features    []string // in the terms of the format
	Warnings    []string // what the user should know

	CompressedClusters int64 // number of compressed clusters

	// BackingFile is the name of the backing file as stored, "" if there is none. It is a string of
	// the image's author. BackingFormat is always "": the format does not state it.
	BackingFile   string
	BackingFormat string

	r           io.ReaderAt
	fileSize    int64
	size        int64 // as in the header
	clusterBits uint
	l2Bits      uint
	l1Offset    int64
	l1Entries   int64
	fixed       []span // what is in the file besides L2 tables and data
}

// Preflight checks the image in the size bytes of r: the header, the L1 table and every L2 entry
// that the disk uses. A bad or unsupported image gives an [*Error]; errors of reading are returned
// as they are.
//
// It reads every table once, or twice if there is data that is not at multiples of the cluster
// size. While it runs it keeps one number per L2 table and two bits per cluster of the file, at
// most 32 and 64 MiB.
func Preflight(ctx context.Context, r io.ReaderAt, size int64, o Options) (*Metadata, error) {
	m := &Metadata{r: r, fileSize: size, SectorSize: sectorSize}
	if err := m.readHeader(o); err != nil {
		return nil, err
	}
	tables, last, err := m.readL1(ctx)
	if err != nil {
		return nil, err
	}
	// QEMU places data at multiples of the cluster size, but reads it at any multiple of 512.
	w := walker{m: m, tables: tables, last: last, cell: m.BlockSize}
	if err = w.walk(ctx); errors.Is(err, errUnaligned) {
		w = walker{m: m, tables: tables, last: last, cell: sectorSize}
		err = w.walk(ctx)
	}
	if err != nil {
		return nil, err
	}
	w.report()
	return m, nil
}

func (m *Metadata) readHeader(o Options) error {
	if m.fileSize < headerBytes {
		return bad("the file of %d bytes is too short for a header of %d", m.fileSize, headerBytes)
	}
	h := make([]byte, headerBytes)
	if err := readFull(m.r, h, 0); err != nil {
		return fmt.Errorf("read the header: %w", err)
	}
	if string(h[:4]) != magic {
		return bad("the magic at offset 0 is missing")
	}
	be := binary.BigEndian
	if v := be.Uint32(h[4:]); v != 1 {
		return bad("version %d at offset 4 is not 1", v)
	}
	clusterBits, l2Bits := h[32], h[33]
	switch {
	case clusterBits < minClusterBits || clusterBits > maxClusterBits:
		return bad("cluster bits %d at offset 32 are not between %d and %d", clusterBits, minClusterBits, maxClusterBits)
	case l2Bits < minL2Bits || l2Bits > maxL2Bits:
		return bad("L2 bits %d at offset 33 are not between %d and %d", l2Bits, minL2Bits, maxL2Bits)
	}
	m.clusterBits, m.l2Bits, m.BlockSize = uint(clusterBits), uint(l2Bits), 1<<clusterBits
	if err := checkCrypt(be.Uint32(h[36:])); err != nil {
		return err
	}
	if err := m.checkSize(be.Uint64(h[24:]), o.MaxVirtualSize); err != nil {
		return err
	}
	m.fixed = []span{{0, headerBytes, "the header"}}
	if err := m.checkL1Place(be.Uint64(h[40:])); err != nil {
		return err
	}
	return m.readBacking(be.Uint64(h[8:]), be.Uint32(h[16:]), o.AllowParent)
}

func checkCrypt(method uint32) error {
	switch method {
	case cryptNone:
		return nil
	case cryptAES:
		return &Error{
			Reason: "it is encrypted (AES, crypt method 1 at offset 36)",
			Remedy: "decrypt it with `qemu-img convert --object secret,id=s,file=PASSWORDFILE --image-opts " +
				"driver=qcow,encrypt.format=aes,encrypt.key-secret=s,file.filename=IMAGE -O qcow2 NEW.qcow2`",
		}
	}
	return bad("crypt method %d at offset 36 is unknown", method)
}

func (m *Metadata) checkSize(size uint64, limit int64) error {
	if size < 2 || size > math.MaxInt64-(sectorSize-1) {
		return bad("virtual size %d at offset 24 is not between 2 and 2^63-512", size)
	}
	m.size = int64(size)
	m.VirtualSize = roundUp(m.size, sectorSize)
	m.l1Entries = (m.size-1)>>(m.clusterBits+m.l2Bits) + 1
	switch {
	case limit > 0 && m.VirtualSize > limit:
		return bad("virtual size %d at offset 24 is above the limit of %d bytes", size, limit)
	case m.l1Entries > maxL1Bytes/8:
		return bad("virtual size %d at offset 24 needs an L1 table of %d entries, above the limit of %d",
			size, m.l1Entries, maxL1Bytes/8)
	}
	if m.VirtualSize != m.size {
		m.warn("the virtual size of %d bytes is not a multiple of %d; it is rounded up with zeros", m.size, sectorSize)
	}
	return nil
}

func (m *Metadata) checkL1Place(offset uint64) error {
	length := m.l1Entries * 8
	switch {
	case offset < headerBytes:
		return bad("L1 table offset %d at offset 40 lies in the header", offset)
	case offset%8 != 0:
		return bad("L1 table offset %d at offset 40 is not a multiple of 8", offset)
	case offset > uint64(m.fileSize) || length > m.fileSize-int64(offset):
		return bad("the L1 table of %d bytes at %d ends outside of the file of %d bytes; the image is truncated or "+
			"damaged", length, offset, m.fileSize)
	}
	m.l1Offset = int64(offset)
	m.fixed = append(m.fixed, span{m.l1Offset, length, "the L1 table"})
	return nil
}

// readBacking reads the name of the backing file, which is reported and not acted upon here.
func (m *Metadata) readBacking(offset uint64, length uint32, allow bool) error {
	if length > maxBackingName {
		return bad("backing file name of %d bytes at offset 16: at most %d are possible", length, maxBackingName)
	}
	if offset == 0 || length == 0 {
		return nil
	}
	if offset > uint64(m.fileSize) || int64(length) > m.fileSize-int64(offset) {
		return bad("backing file name of %d bytes at %d is outside of the file of %d bytes", length, offset, m.fileSize)
	}
	if what := m.fixedOverlap(int64(offset), int64(length)); what != "" {
		return bad("backing file name of %d bytes at %d overlaps %s", length, offset, what)
	}
	name := make([]byte, length)
	if err := readFull(m.r, name, int64(offset)); err != nil {
		return fmt.Errorf("read the backing file name: %w", err)
	}
	if !allow {
		return &Error{
			Reason: fmt.Sprintf("it has a backing file %q, and backing files are not followed unless allowed", name),
			Remedy: "allow backing files if you trust the image, or make it self-contained with " +
				"`qemu-img convert -O qcow2`",
		}
	}
	m.BackingFile = string(name)
	m.Features = append(m.Features, "backing file")
	m.fixed = append(m.fixed, span{int64(offset), int64(length), "the backing file name"})
	return nil
}

// tableBytes is the length of an L2 table: at most 64 KiB.
func (m *Metadata) tableBytes() int64 { return 8 << m.l2Bits }

func (m *Metadata) warn(format string, args ...any) {
	m.Warnings = append(m.Warnings, fmt.Sprintf(format, args...))
}

// l1Page is how many bytes of the L1 table are read at a time.
const l1Page = 64 << 10

// readL1 returns the sorted offsets of the L2 tables, all valid and apart from each other, and that
// of the last L1 entry (0 if that is empty).
func (m *Metadata) readL1(ctx context.Context) (tables []int64, last int64, err error) {
	page := make([]byte, min(l1Page, m.l1Entries*8))
	for i := int64(0); i < m.l1Entries; {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		p := page[:min(int64(len(page)), (m.l1Entries-i)*8)]
		if err := readFull(m.r, p, m.l1Offset+i*8); err != nil {
			return nil, 0, fmt.Errorf("read the L1 table: %w", err)
		}
		for ; len(p) > 0; p, i = p[8:], i+1 {
			e := binary.BigEndian.Uint64(p)
			if e == 0 {
				last = 0
				continue
			}
			if err := m.checkL1Entry(i, e); err != nil {
				return nil, 0, err
			}
			last = int64(e)
			tables = append(tables, last)
			// Different tables need room, so there cannot be more of them than fit into the file.
			if int64(len(tables)) > m.fileSize/m.tableBytes() {
				return nil, 0, bad("L1 entry %d at %d: there are more L2 tables than the file of %d bytes holds, so some "+
					"are shared", i, m.l1Offset+i*8, m.fileSize)
			}
		}
	}
	slices.Sort(tables)
	for i := 1; i < len(tables); i++ {
		if tables[i]-tables[i-1] < m.tableBytes() {
			return nil, 0, bad("the L2 tables at %d and %d overlap", tables[i-1], tables[i])
		}
	}
	return tables, last, nil
}

func (m *Metadata) checkL1Entry(i int64, e uint64) error {
	at := m.l1Offset + i*8
	switch {
	case e%sectorSize != 0:
		return bad("L1 entry %d at %d: %#x is not a multiple of %d", i, at, e, sectorSize)
	case e > uint64(m.fileSize) || m.tableBytes() > m.fileSize-int64(e):
		return bad("L1 entry %d at %d: the L2 table at %d ends outside of the file of %d bytes; the image is truncated "+
			"or damaged", i, at, e, m.fileSize)
	}
	if what := m.fixedOverlap(int64(e), m.tableBytes()); what != "" {
		return bad("L1 entry %d at %d: the L2 table at %d overlaps %s", i, at, e, what)
	}
	return nil
}

// walker checks L2 tables and counts what they map.
type walker struct {
	m      *Metadata
	tables []int64
	last   int64
	cell   int64 // bytes of the file per number in the sets

	plainCells, packedCells cellSet
	packed                  int64 // number of compressed clusters
	mapped                  int64 // bytes of the disk
	stored                  int64 // bytes of the file
	missing                 int64 // bytes of the disk that the end of the file cuts off
}

// errUnaligned says that the cells must be sectors.
var errUnaligned = errors.New("a plain cluster is not at a multiple of the cluster size")

func (w *walker) walk(ctx context.Context) error {
	m := w.m
	if cells := m.fileSize / w.cell; cells > maxCells {
		return bad("the file of %d bytes has more than %d units of %d bytes", m.fileSize, maxCells, w.cell)
	}
	page := make([]byte, m.tableBytes())
	clusters := (m.size-1)>>m.clusterBits + 1
	for _, table := range w.tables {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, disk := page, int64(math.MaxInt64)
		if table == w.last {
			// What is behind the end of the disk is never read.
			first := (m.l1Entries - 1) << m.l2Bits
			p, disk = page[:(clusters-first)*8], m.size-first<<m.clusterBits
		}
		if err := readFull(m.r, p, table); err != nil {
			return fmt.Errorf("read an L2 table: %w", err)
		}
		for i := int64(0); i < int64(len(p)/8); i++ {
			e := binary.BigEndian.Uint64(p[i*8:])
			if e == 0 {
				continue
			}
			if err := w.entry(table+i*8, e, min(m.BlockSize, disk-i<<m.clusterBits)); err != nil {
				return err
			}
		}
	}
	// Compressed clusters have lengths in bytes, so this is exact.
	own := w.stored + int64(len(w.tables))*m.tableBytes()
	for _, s := range m.fixed {
		own += s.length
	}
	if own > roundUp(m.fileSize, m.BlockSize) {
		return bad("its header, tables and clusters have %d bytes, which cannot be in a file of %d bytes unless "+
			"compressed clusters are shared", own, m.fileSize)
	}
	return nil
}

// entry checks the L2 entry at pos, whose cluster has used bytes within the disk.
func (w *walker) entry(pos int64, e uint64, used int64) error {
	m := w.m
	host, length := int64(e), m.BlockSize
	if e&entryCompressed != 0 {
		host, length = m.compressedRange(e)
		if length == 0 {
			return bad("L2 entry at %d, %#016x, is of a compressed cluster of no bytes", pos, e)
		}
		if host >= m.fileSize || length > m.fileSize-host {
			return bad("L2 entry at %d: the compressed cluster of %d bytes at %d ends outside of the file of %d bytes; "+
				"the image is truncated or damaged", pos, length, host, m.fileSize)
		}
	} else {
		if host%sectorSize != 0 {
			return bad("L2 entry at %d: the data at %d is not at a multiple of %d", pos, host, sectorSize)
		}
		if host >= m.fileSize {
			return bad("L2 entry at %d: the data at %d is outside of the file of %d bytes; the image is truncated or "+
				"damaged", pos, host, m.fileSize)
		}
	}
	if what := m.fixedOverlap(host, length); what != "" {
		return bad("L2 entry at %d: the cluster at %d overlaps %s", pos, host, what)
	}
	if m.inTables(w.tables, host, length) {
		return bad("L2 entry at %d: the cluster at %d overlaps an L2 table", pos, host)
	}
	w.mapped += used
	w.stored += length
	if e&entryCompressed != 0 {
		return w.compressedCells(pos, host, length)
	}
	w.missing += max(0, used-(m.fileSize-host))
	return w.cells(pos, host)
}

// cells takes the cells of a plain cluster. The file's end may cut one cluster: two would overlap.
func (w *walker) cells(pos, host int64) error {
	if host%w.cell != 0 {
		return errUnaligned
	}
	first := host / w.cell
	for i := first; i < first+w.m.BlockSize/w.cell; i++ {
		if w.plainCells.has(i) || w.packedCells.has(i) {
			return bad("L2 entry at %d: the cluster at %d overlaps another cluster at %d", pos, host, i*w.cell)
		}
		w.plainCells.add(i)
	}
	return nil
}

func (w *walker) compressedCells(pos, host, length int64) error {
	w.packed++
	for i := host / w.cell; i <= (host+length-1)/w.cell; i++ {
		if w.plainCells.has(i) {
			return bad("L2 entry at %d: the compressed cluster at %d overlaps another cluster at %d", pos, host, i*w.cell)
		}
		w.packedCells.add(i)
	}
	return nil
}

// report puts into the metadata what was found.
func (w *walker) report() {
	m := w.m
	m.MappedBytes, m.CompressedClusters = w.mapped, w.packed
	if w.packed > 0 {
		m.Compression = "zlib"
	}
	if w.missing > 0 {
		m.warn("the file ends inside of its last cluster, which is filled up with zeros: %d bytes are missing", w.missing)
	}
}

// compressedRange returns where the data of a compressed cluster is in the file.
func (m *Metadata) compressedRange(e uint64) (host, length int64) {
	bits := 63 - m.clusterBits
	return int64(e & (1<<bits - 1)), int64(e>>bits) & (m.BlockSize - 1)
}
