// SPDX-License-Identifier: Apache-2.0

package vmdk

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

// checkPage is how many bytes of tables are read at a time while they are checked.
const checkPage = 64 << 10

// check finds the mapping of the extent and checks every entry of it. If it is damaged and there
// is another one, that is used, but only if force is set: what has two mappings that differ may
// be damaged in other ways. It returns warnings.
func (s *sparse) check(ctx context.Context, force bool) ([]string, error) {
	var warnings []string
	other := *s
	err := s.checkPrimary(ctx)
	if err != nil && (s.redundant != 0 || s.markers && !s.indexed) {
		var damaged *Error
		if !errors.As(err, &damaged) {
			return nil, err
		}
		what := "its redundant grain directory"
		other.directoryAtEnd, other.zeroGrains = false, s.zeroGrains
		if s.redundant != 0 {
			other.directory = s.redundant
		} else {
			what = "the grains themselves, which say where they belong"
			other.indexed = true
		}
		otherErr := other.checkMapping(ctx)
		switch {
		case errors.As(otherErr, new(*Error)):
			return nil, err // about the first one
		case otherErr != nil:
			return nil, otherErr
		case !force:
			return nil, &Error{Reason: damaged.Reason, Remedy: "if there is no better copy, force the reading by " + what}
		}
		*s = other
		warnings = append(warnings, fmt.Sprintf("its grain directory is damaged (%s); it is read by %s, and may not be what "+
			"it was", damaged.Reason, what))
		err = nil
	}
	if err != nil {
		return nil, err
	}
	if s.unclean {
		warnings = append(warnings, "it was not closed cleanly; what was written last may be missing")
	}
	return warnings, nil
}

// checkPrimary checks the mapping that counts.
func (s *sparse) checkPrimary(ctx context.Context) error {
	if s.directoryAtEnd {
		if err := s.findFooter(ctx); err != nil {
			return err
		}
	}
	return s.checkMapping(ctx)
}

// checkMapping checks the grain directory at s.directory, or the index, and all that it leads to.
func (s *sparse) checkMapping(ctx context.Context) error {
	if s.indexed {
		if s.index == nil {
			if _, err := s.walkMarkers(ctx); err != nil {
				return err
			}
		}
		return s.checkIndex()
	}
	length := s.directoryEntries() * s.entryBytes
	if s.directory > s.size || length > s.size-s.directory {
		return bad("the grain directory of %d bytes at %d ends outside of the file of %d bytes; the image is truncated or "+
			"damaged", length, s.directory, s.size)
	}
	if what := s.inReserved(s.directory, s.directory+length); what != "" {
		return bad("the grain directory of %d bytes at %d lies in the %s", length, s.directory, what)
	}
	// Not append: the list may be shared with another attempt.
	s.reserved = slices.Concat(s.reserved, []byteRange{{s.directory, s.directory + length, "grain directory"}})
	tables, last, err := s.readDirectory(ctx)
	if err != nil {
		return err
	}
	return s.checkTables(ctx, tables, last)
}

// readDirectory returns the sorted offsets of the grain tables, none of which overlaps another, and
// that of the last entry, 0 if it is empty.
func (s *sparse) readDirectory(ctx context.Context) (tables []int64, last int64, err error) {
	entries := s.directoryEntries()
	page := make([]byte, min(checkPage, entries*s.entryBytes))
	// Tables that do not overlap need room in the file.
	most := s.size/max(s.tableBytes(), sectorSize) + 1
	for i := int64(0); i < entries; {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		p := page[:min(int64(len(page)), (entries-i)*s.entryBytes)]
		if err := s.readFull(p, s.directory+i*s.entryBytes); err != nil {
			return nil, 0, fmt.Errorf("read the grain directory: %w", err)
		}
		for n := int64(len(p)) / s.entryBytes; n > 0; n-- {
			table, err := s.table(s.entry(p, 0), i)
			if err != nil {
				return nil, 0, err
			}
			if last = table; table != 0 {
				if int64(len(tables)) == most {
					return nil, 0, bad("entries of the grain directory, up to %d, name the same grain tables", i)
				}
				tables = append(tables, table)
			}
			p, i = p[s.entryBytes:], i+1
		}
	}
	slices.Sort(tables)
	for i := 1; i < len(tables); i++ {
		if tables[i]-tables[i-1] < s.tableBytes() {
			return nil, 0, bad("the grain table at %d is used twice or overlaps with that at %d", tables[i], tables[i-1])
		}
	}
	return tables, last, nil
}

// checkTables checks the entries of the grain tables, and that no two grains share bytes of the
// file, nor a grain with a table: in no honest image do they, and with it a small file could
// claim any amount of data.
func (s *sparse) checkTables(ctx context.Context, tables []int64, last int64) error {
	w := tableWalker{s: s, ctx: ctx, last: last, page: make([]byte, min(checkPage, s.tableBytes()))}
	var first, differ, end int64
	lastGrain := (s.capacity - 1) / s.grain
	lastPos := last + lastGrain%s.tableSize*s.entryBytes
	withData := tables[:0:0]
	s.dataGrains, s.cut = 0, false
	for _, table := range tables {
		before := s.dataGrains
		err := w.walk(table, func(pos, host int64) error {
			if s.dataGrains == 0 {
				first = host
			}
			differ |= host - first
			end = max(end, host+s.leastStored())
			need := s.grain
			if pos == lastPos {
				need = s.capacity - lastGrain*s.grain
			}
			s.cut = s.cut || !s.compressed && need > s.size-host
			s.dataGrains++
			return nil
		})
		if err != nil {
			return err
		}
		if s.dataGrains > before {
			withData = append(withData, table)
		}
	}
	if s.dataGrains == 0 {
		return nil
	}
	// Grains usually lie at multiples of their length from each other, and then a bit for each is
	// enough. Otherwise the bits stand for the largest unit that divides all distances.
	unit := int64(1) << bits.TrailingZeros64(uint64(differ|s.leastStored()))
	o := occupancy{unit: unit, base: first % unit, perGrain: s.leastStored() / unit}
	for o.lo = 0; o.lo <= o.slot(end-1); o.lo += occupancyBits {
		o.reset(o.slot(end-1) + 1 - o.lo)
		for _, table := range withData {
			err := w.walk(table, func(pos, host int64) error {
				if !o.add(o.slot(host)) {
					return bad("grain table entry at %d: the grain at %d shares bytes of the file with another grain", pos, host)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		for _, table := range tables {
			if at, ok := o.overlaps(table, table+s.tableBytes()); ok {
				return bad("the grain at about %d shares bytes of the file with the grain table at %d", at, table)
			}
		}
	}
	return nil
}

// tableWalker reads grain tables.
type tableWalker struct {
	s    *sparse
	ctx  context.Context
	last int64 // offset of the table that maps the end of the disk
	page []byte
}

// walk calls fn for every entry of the table that stands for data: with where the entry is and
// where the data is. Entries behind the end of the disk are not looked at.
func (w *tableWalker) walk(table int64, fn func(pos, host int64) error) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	s := w.s
	used := s.tableSize
	if table == w.last {
		used = (s.capacity-1)/s.grain%s.tableSize + 1
	}
	for pos, end := table, table+used*s.entryBytes; pos < end; {
		p := w.page[:min(int64(len(w.page)), end-pos)]
		if err := s.readFull(p, pos); err != nil {
			return fmt.Errorf("read a grain table: %w", err)
		}
		for n := int64(len(p)) / s.entryBytes; n > 0; n-- {
			kind, host, err := s.grainAt(s.entry(p, 0), pos)
			if err == nil && kind >= kindPlain {
				err = fn(pos, host)
			}
			if err != nil {
				return err
			}
			p, pos = p[s.entryBytes:], pos+s.entryBytes
		}
	}
	return nil
}

// occupancyBits is how many units of a file are looked at together: 32 MiB of bits. With the
// smallest unit, a sector, that is 128 GiB of file.
const occupancyBits = 1 << 28

// occupancy has a bit for each unit of a stretch of the file that a grain covers.
type occupancy struct {
	unit, base int64 // bytes; unit i is from base + i * unit on
	perGrain   int64 // units
	lo         int64 // first unit of the stretch
	words      []uint64
}

// slot returns the number of the unit that has the byte at off, -1 if it is before the first one.
func (o *occupancy) slot(off int64) int64 {
	if off < o.base {
		return -1
	}
	return (off - o.base) / o.unit
}

// reset empties the stretch and gives it at most n units.
func (o *occupancy) reset(n int64) {
	words := (min(n, occupancyBits) + 63) / 64
	if int64(len(o.words)) < words {
		o.words = make([]uint64, words)
	}
	o.words = o.words[:words]
	clear(o.words)
}

// clip returns what of the units from first on, before end, is in the stretch, counted from its
// start.
func (o *occupancy) clip(first, end int64) (int64, int64) {
	return max(first-o.lo, 0), min(end-o.lo, int64(len(o.words))*64)
}

// add marks the units of a grain and tells whether they were free.
func (o *occupancy) add(first int64) bool {
	free := true
	for i, end := o.clip(first, first+o.perGrain); i < end; {
		mask, n := maskFrom(i, end)
		free = free && o.words[i/64]&mask == 0
		o.words[i/64] |= mask
		i += n
	}
	return free
}

// overlaps tells whether a grain has any of the bytes from lo to hi of the file, and about where.
func (o *occupancy) overlaps(lo, hi int64) (int64, bool) {
	for i, end := o.clip(max(o.slot(lo), 0), o.slot(hi-1)+1); i < end; {
		mask, n := maskFrom(i, end)
		if w := o.words[i/64] & mask; w != 0 {
			return o.base + (o.lo+i/64*64+int64(bits.TrailingZeros64(w)))*o.unit, true
		}
		i += n
	}
	return 0, false
}

// maskFrom returns the bits of the word of bit i from it on and before end, and how many they are.
func maskFrom(i, end int64) (mask uint64, n int64) {
	n = min(64-i%64, end-i)
	return ^uint64(0) >> (64 - n) << (i % 64), n
}
