// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// kind is how a range of the disk is stored.
type kind uint8

const (
	kindUnallocated kind = iota // in the backing file, or zeros
	kindZero                    // zeros, whatever the backing file has
	kindPlain                   // in the file
	kindCompressed              // in the file, compressed
)

// segment is the rest of a cluster, or of a run of like subclusters, or of a range without L2
// table, from an offset of the disk on.
type segment struct {
	kind   kind
	length int64 // bytes of the disk
	host   int64 // plain: where the byte is, in the data file if there is one; compressed: where the cluster's data begins
	stored int64 // compressed: bytes of data at most
}

// cursor translates offsets of the disk ("Cluster mapping"). It remembers the pages of the tables
// that it used last, so that going on costs no look-up. It is used by one goroutine.
type cursor struct {
	img *Image

	l1, l2         []byte
	l1Page, l2Page int64 // index of the page, host offset of the page
}

// pageBytes is the length of a page of an L2 table.
func (m *Metadata) pageBytes() int64 { return min(tablePage, m.ClusterSize) }

// at returns the segment at off, which must lie within the disk. A segment may end behind the disk.
func (c *cursor) at(off int64) (segment, error) {
	m := c.img.m
	cluster := off >> m.clusterBits
	l1Index, l2Index := cluster/m.l2Entries(), cluster%m.l2Entries()
	table, err := c.l1Entry(l1Index)
	if err != nil {
		return segment{}, err
	}
	if table == 0 {
		span := m.l2Entries() << m.clusterBits
		return segment{kind: kindUnallocated, length: span - off&(span-1)}, nil
	}
	e, bitmap, err := c.l2Entry(table + l2Index*m.l2EntryBytes())
	if err != nil {
		return segment{}, err
	}
	within := off & (m.ClusterSize - 1)
	s := segment{length: m.ClusterSize - within}
	host := int64(e & entryOffset)
	placed, at := host != 0, host+within
	if m.data != nil {
		placed, at = placed || e&entryCopied != 0, off // where each byte has its own place
	}
	switch {
	case e&entryCompressed != 0:
		s.kind = kindCompressed
		s.host, s.stored = m.compressedRange(e)
	case m.extended:
		sub := uint(within >> (m.clusterBits - 5))
		var run uint
		s.kind, run = subclusters(bitmap, sub)
		s.length = int64(sub+run)<<(m.clusterBits-5) - within
		s.host = at
	case e&entryZero != 0:
		s.kind = kindZero
	case placed:
		s.kind = kindPlain
		s.host = at
	}
	return s, nil
}

// run returns the segment at off, and joins to it what follows in the file, as far as length goes.
func (c *cursor) run(off, length int64) (segment, error) {
	s, err := c.at(off)
	if err != nil || s.kind != kindPlain {
		return s, err
	}
	for s.length < length {
		next, err := c.at(off + s.length)
		if err != nil {
			return s, err
		}
		if next.kind != kindPlain || next.host != s.host+s.length {
			break
		}
		s.length += next.length
	}
	return s, nil
}

// subclusters returns how subcluster sub is stored and how many from it on are stored likewise
// ("Extended L2 Entries").
func subclusters(bitmap uint64, sub uint) (kind, uint) {
	alloc, zero := uint32(bitmap)>>sub, uint32(bitmap>>32)>>sub
	like := func(same uint32) uint { return min(uint(bits.TrailingZeros32(^same)), 32-sub) }
	switch {
	case alloc&1 != 0:
		return kindPlain, like(alloc)
	case zero&1 != 0:
		return kindZero, like(zero &^ alloc)
	default:
		return kindUnallocated, like(^(alloc | zero))
	}
}

// l1Entry returns the offset of the L2 table of an L1 entry, 0 if there is none.
func (c *cursor) l1Entry(index int64) (int64, error) {
	const entries = tablePage / 8
	if page := index / entries; c.l1 == nil || page != c.l1Page {
		p, ok := c.img.l1.Get(page)
		if !ok {
			m := c.img.m
			p = make([]byte, min(tablePage, (m.l1Used-page*entries)*8))
			if err := readFull(c.img.view, p, m.l1Offset+page*tablePage); err != nil {
				return 0, fmt.Errorf("read the L1 table: %w", err)
			}
			c.img.l1.Add(page, p)
		}
		c.l1, c.l1Page = p, page
	}
	return int64(binary.BigEndian.Uint64(c.l1[index%entries*8:]) & entryOffset), nil
}

// l2Entry returns the L2 entry at a host offset, and its bitmaps if it is an extended one.
func (c *cursor) l2Entry(pos int64) (e, bitmap uint64, err error) {
	m := c.img.m
	size := m.pageBytes()
	page := pos &^ (size - 1)
	if c.l2 == nil || page != c.l2Page {
		p, ok := c.img.l2.Get(page)
		if !ok {
			p = make([]byte, size)
			if err := readFull(c.img.view, p, page); err != nil {
				return 0, 0, fmt.Errorf("read an L2 table: %w", err)
			}
			c.img.l2.Add(page, p)
		}
		c.l2, c.l2Page = p, page
	}
	p := c.l2[pos-page:]
	e = binary.BigEndian.Uint64(p)
	if m.extended {
		bitmap = binary.BigEndian.Uint64(p[8:])
	}
	return e, bitmap, nil
}
