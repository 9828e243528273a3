// SPDX-License-Identifier: Apache-2.0

package qcow1

import "slices"

// Every byte of a file belongs to one thing at most: the format counts no references, so nothing
// may be shared. The places of the header, of the L1 table, of the backing file name and of the L2
// tables are kept as they are. Data is kept by cells of the file, a bit each: those of plain
// clusters, and those that compressed clusters touch. As every plain cluster is made of whole
// cells, it can share none of them with a compressed one. Only whether compressed clusters overlap
// each other is not known by their places, which are any bytes; there the sum of their lengths
// tells.

// span is a range of the file.
type span struct {
	offset, length int64
	what           string
}

func (s span) overlaps(offset, length int64) bool {
	return offset < s.offset+s.length && s.offset < offset+length
}

// fixedOverlap returns what at the start of the file overlaps the range, "" if nothing does.
func (m *Metadata) fixedOverlap(offset, length int64) string {
	for _, s := range m.fixed {
		if s.overlaps(offset, length) {
			return s.what
		}
	}
	return ""
}

// inTables tells whether one of the L2 tables, whose offsets are sorted, overlaps the range.
func (m *Metadata) inTables(tables []int64, offset, length int64) bool {
	// The first table that ends behind the range's start.
	i, _ := slices.BinarySearch(tables, offset-m.tableBytes()+1)
	return i < len(tables) && tables[i] < offset+length
}

// cellSet is a set of numbers, a bit each. It has memory only for the neighbourhoods of what it was
// given.
type cellSet struct {
	pages map[int64]*cellPage
	last  *cellPage // nil: there is none for index
	index int64
}

const cellPageBits = 4096 * 8

type cellPage [cellPageBits / 64]uint64

// page finds the page of cell i.
func (s *cellSet) page(i int64) *cellPage {
	if index := i / cellPageBits; s.last == nil || index != s.index {
		s.index, s.last = index, s.pages[index]
	}
	return s.last
}

// has tells whether cell i is in the set.
func (s *cellSet) has(i int64) bool {
	p := s.page(i)
	return p != nil && p[i%cellPageBits/64]&(1<<(i%64)) != 0
}

// add puts cell i in.
func (s *cellSet) add(i int64) {
	p := s.page(i)
	if p == nil {
		if s.pages == nil {
			s.pages = make(map[int64]*cellPage)
		}
		p = new(cellPage)
		s.pages[s.index], s.last = p, p
	}
	p[i%cellPageBits/64] |= 1 << (i % 64)
}
