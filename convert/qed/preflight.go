// SPDX-License-Identifier: Apache-2.0

package qed

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"
)

// Options says what [Preflight] accepts. The zero value accepts nothing out of the ordinary.
type Options struct {
	AllowParent    bool  // accept an image with a backing file, which the caller then has to give
	MaxVirtualSize int64 // bytes, 0 = no limit but the format's
}

// Metadata is what an image says of itself, checked.
type Metadata struct {
	VirtualSize int64    // bytes, a multiple of 512
	MappedBytes int64    // bytes of the disk in clusters that hold data
	BlockSize   int64    // bytes of a cluster
	SectorSize  int      // bytes, always 512
	Variant     string   // always ""
	Compression string   // always ""
	Creator     string   // always ""
	Features    []string // in the terms of the format
	Warnings    []string // what the user should know

	// BackingFile is the name of the backing file as stored, "" if there is none. It is a string of
	// the image's author. BackingFormat is "raw" if the image says so, or "" if it says nothing.
	BackingFile   string
	BackingFormat string

	r           io.ReaderAt
	fileSize    int64
	clusterBits uint
	clusters    int64 // in the file; what is behind the last whole one is not used
	tableBytes  int64 // of the L1 and of every L2 table
	headerEnd   int64 // end of the header's clusters
	l1Offset    int64
	l1Used      int64 // entries that map the disk
}

// Preflight checks the image in the size bytes of r: the header, the L1 table and every L2 entry
// that the disk uses. A bad or unsupported image gives an [*Error]; errors of reading are returned
// as they are.
//
// It reads every table once, and keeps one bit per cluster of the file while it runs, at most 64
// MiB.
func Preflight(ctx context.Context, r io.ReaderAt, size int64, o Options) (*Metadata, error) {
	m := &Metadata{r: r, fileSize: size, SectorSize: sectorSize}
	if err := m.readHeader(o); err != nil {
		return nil, err
	}
	w := walker{m: m, page: make([]byte, m.pageBytes())}
	if err := w.walk(ctx); err != nil {
		return nil, err
	}
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
	le := binary.LittleEndian
	if err := m.takeGeometry(le.Uint32(h[4:]), le.Uint32(h[8:]), le.Uint32(h[12:])); err != nil {
		return err
	}
	features := le.Uint64(h[16:])
	if unknown := features &^ featuresKnown; unknown != 0 {
		return bad("it needs the unknown feature %d (bit of %#x at offset 16)", bits.TrailingZeros64(unknown), features)
	}
	if err := m.checkSize(le.Uint64(h[48:]), o.MaxVirtualSize); err != nil {
		return err
	}
	l1 := le.Uint64(h[40:])
	if err := m.checkTable("L1 table offset at 40", l1); err != nil {
		return err
	}
	m.l1Offset = int64(l1)
	if features&featureNeedCheck != 0 {
		m.Features = append(m.Features, "needs check")
		m.warn("it was not closed cleanly; its tables are sound, but what was written last may be missing")
	}
	if features&featureBacking != 0 {
		return m.readBacking(le.Uint32(h[56:]), le.Uint32(h[60:]), features&featureNoProbe != 0, o.AllowParent)
	}
	return nil
}

// takeGeometry checks the sizes that everything else is measured in: clusters in bytes, tables and
// the header in clusters.
func (m *Metadata) takeGeometry(cluster, table, header uint32) error {
	switch {
	case cluster < minClusterSize || cluster > maxClusterSize || cluster&(cluster-1) != 0:
		return bad("cluster size %d at offset 4 is not a power of two between %d and %d",
			cluster, minClusterSize, maxClusterSize)
	case table < 1 || table > maxTableSize || table&(table-1) != 0:
		return bad("table size %d at offset 8 is not a power of two between 1 and %d", table, maxTableSize)
	}
	m.BlockSize = int64(cluster)
	m.clusterBits = uint(bits.TrailingZeros32(cluster))
	m.tableBytes = int64(table) * m.BlockSize
	m.headerEnd = int64(header) * m.BlockSize
	m.clusters = m.fileSize >> m.clusterBits
	switch {
	case header < 1 || m.headerEnd > math.MaxUint32:
		return bad("header size %d at offset 12 is not between 1 and %d clusters of %d bytes",
			header, math.MaxUint32/m.BlockSize, cluster)
	case m.headerEnd > m.end():
		return bad("the header of %d bytes ends outside of the %d whole clusters of the file; the image is truncated "+
			"or damaged", m.headerEnd, m.clusters)
	case m.clusters > maxClusters:
		return bad("the file has %d clusters of %d bytes, above the limit of %d", m.clusters, cluster, maxClusters)
	}
	return nil
}

func (m *Metadata) checkSize(size uint64, limit int64) error {
	if size == 0 || size%sectorSize != 0 || size > math.MaxInt64 {
		return bad("virtual size %d at offset 48 is not a multiple of %d between %d and 2^63-%d",
			size, sectorSize, sectorSize, sectorSize)
	}
	m.VirtualSize = int64(size)
	m.l1Used = ((m.VirtualSize-1)>>m.clusterBits)/m.entries() + 1
	switch {
	case limit > 0 && m.VirtualSize > limit:
		return bad("virtual size %d at offset 48 is above the limit of %d bytes", size, limit)
	case m.l1Used > m.entries():
		return bad("virtual size %d at offset 48 is more than tables of %d entries map", size, m.entries())
	}
	return nil
}

// readBacking reads the name of the backing file, which is reported and not acted upon here.
func (m *Metadata) readBacking(offset, length uint32, raw, allow bool) error {
	if length == 0 {
		return nil
	}
	if offset < headerBytes || int64(offset) > m.headerEnd || int64(length) > m.headerEnd-int64(offset) {
		return bad("backing file name of %d bytes at %d is outside of the header of %d bytes",
			length, offset, m.headerEnd)
	}
	if length > maxBackingName {
		return bad("backing file name of %d bytes at offset 60: at most %d are possible", length, maxBackingName)
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
	if raw {
		m.BackingFormat = "raw"
	}
	return nil
}

// entries is the number of entries of a table.
func (m *Metadata) entries() int64 { return m.tableBytes / 8 }

// end is where the last whole cluster of the file ends.
func (m *Metadata) end() int64 { return m.clusters << m.clusterBits }

// checkTable checks the place of a table.
func (m *Metadata) checkTable(what string, offset uint64) error {
	switch {
	case offset%uint64(m.BlockSize) != 0:
		return bad("%s: %d is not a multiple of the cluster size %d", what, offset, m.BlockSize)
	case offset < uint64(m.headerEnd):
		return bad("%s: the table at %d lies in the header", what, offset)
	case offset > uint64(m.end()) || m.tableBytes > m.end()-int64(offset):
		return bad("%s: the table of %d bytes at %d ends outside of the %d whole clusters of the file; the image is "+
			"truncated or damaged", what, m.tableBytes, offset, m.clusters)
	}
	return nil
}

func (m *Metadata) warn(format string, args ...any) {
	m.Warnings = append(m.Warnings, fmt.Sprintf(format, args...))
}

// tablePage is how many bytes of a table are read at a time.
const tablePage = 64 << 10

// pageBytes is the length of a page of a table, of which all tables have a whole number.
func (m *Metadata) pageBytes() int64 { return min(tablePage, m.tableBytes) }

// walker checks the tables and that no cluster is used twice, which bounds their number.
type walker struct {
	m    *Metadata
	page []byte
	used clusterSet
}

func (w *walker) walk(ctx context.Context) error {
	m := w.m
	if err := w.useTable("L1 table", m.l1Offset); err != nil {
		return err
	}
	l1 := make([]byte, min(m.pageBytes(), m.l1Used*8))
	clusters := (m.VirtualSize-1)>>m.clusterBits + 1
	for i := int64(0); i < m.l1Used; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := l1[:min(int64(len(l1)), (m.l1Used-i)*8)]
		if err := readFull(m.r, p, m.l1Offset+i*8); err != nil {
			return fmt.Errorf("read the L1 table: %w", err)
		}
		for ; len(p) > 0; p, i = p[8:], i+1 {
			table := binary.LittleEndian.Uint64(p)
			if table == entryUnallocated {
				continue
			}
			what := fmt.Sprintf("L1 entry %d at %d", i, m.l1Offset+i*8)
			if err := m.checkTable(what, table); err != nil {
				return err
			}
			if err := w.useTable(what, int64(table)); err != nil {
				return err
			}
			if err := w.table(ctx, int64(table), i*m.entries(), clusters); err != nil {
				return err
			}
		}
	}
	return nil
}

// useTable takes the clusters of a table.
func (w *walker) useTable(what string, offset int64) error {
	for at := offset; at < offset+w.m.tableBytes; at += w.m.BlockSize {
		if !w.used.add(at >> w.m.clusterBits) {
			return bad("%s: the cluster at %d of the table at %d is also used otherwise", what, at, offset)
		}
	}
	return nil
}

// table checks the L2 table at the offset, whose first entry is that of the disk's cluster first.
// What is behind the end of the disk is never read.
func (w *walker) table(ctx context.Context, offset, first, clusters int64) error {
	m := w.m
	for pos, end := offset, offset+min(m.entries(), clusters-first)*8; pos < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := w.page[:min(int64(len(w.page)), end-pos)]
		if err := readFull(m.r, p, pos); err != nil {
			return fmt.Errorf("read an L2 table: %w", err)
		}
		for ; len(p) > 0; p, pos = p[8:], pos+8 {
			e := binary.LittleEndian.Uint64(p)
			if e == entryUnallocated || e == entryZero {
				continue
			}
			if err := w.entry(pos, e); err != nil {
				return err
			}
			m.MappedBytes += min(m.BlockSize, m.VirtualSize-(first+(pos-offset)/8)*m.BlockSize)
		}
	}
	return nil
}

// entry checks the L2 entry at pos, which names a cluster with data.
func (w *walker) entry(pos int64, e uint64) error {
	m := w.m
	switch {
	case e%uint64(m.BlockSize) != 0:
		return bad("L2 entry at %d: %#x is not a multiple of the cluster size %d", pos, e, m.BlockSize)
	case e < uint64(m.headerEnd):
		return bad("L2 entry at %d: the data at %d lies in the header", pos, e)
	case e >= uint64(m.end()):
		return bad("L2 entry at %d: the data at %d is outside of the %d whole clusters of the file; the image is "+
			"truncated or damaged", pos, e, m.clusters)
	case !w.used.add(int64(e >> m.clusterBits)):
		return bad("L2 entry at %d: the cluster at %d is also used otherwise", pos, e)
	}
	return nil
}
