// SPDX-License-Identifier: Apache-2.0

package vhdx

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sort"
)

// The log ("Log") is a ring of sectors that holds entries. An entry is a header, descriptors, and a
// sector of data for each data descriptor.
const (
	logSector       = 4 * kib
	entryHeader     = 64
	descriptorBytes = 32
	// maxLogOps bounds the updates that are kept in memory, with some hundred bytes each. A log of
	// 1 MB has room for 32,000.
	maxLogOps    = 256 * kib
	minLogTarget = 192 * kib // the headers before are never updated through the log
)

// logEntry is a valid entry.
type logEntry struct {
	position    int64 // in the ring, bytes
	length      int64 // bytes
	tail        int64 // position of the oldest entry that is still needed
	sequence    uint64
	descriptors int64
	flushed     uint64 // size that the file had at least when the entry was written
	last        uint64 // size that the file has at least when the entry was applied
}

// ring reads the log, whose offsets wrap.
type ring struct {
	r      io.ReaderAt
	offset int64 // in the file
	length int64
}

// read reads p, which may be of one sector at most and not cross its end, at a position that may be
// behind the ring's end.
func (g *ring) read(p []byte, position int64) error {
	if err := readFull(g.r, p, g.offset+position%g.length); err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	return nil
}

// replay finds the updates that the log holds and returns the file with them applied, along with
// the number of entries and the size that the file then has.
func replay(ctx context.Context, r io.ReaderAt, fileSize int64, h *header) (v *view, entries int, err error) {
	g := &ring{r: r, offset: h.logOffset, length: h.logLength}
	found, err := g.entries(ctx, h.logGUID)
	if err != nil {
		return nil, 0, err
	}
	active := activeSequence(found, g.length)
	if active == nil {
		return nil, 0, &Error{
			Reason: fmt.Sprintf("its log at %d is in use but holds no complete sequence of entries", g.offset),
			Remedy: "open and close it where it was made, which repairs it if that is possible",
		}
	}
	last := active[len(active)-1]
	if last.flushed > uint64(fileSize) {
		return nil, 0, bad("its log says at %d that the file has %d bytes, but it has %d; the image is truncated",
			g.offset+last.position, last.flushed, fileSize)
	}
	if last.last > maxFileSize {
		return nil, 0, bad("its log says at %d that the file grows to %d bytes, above the limit of %d",
			g.offset+last.position, last.last, int64(maxFileSize))
	}
	var ops []logOp
	for _, e := range active {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		if ops, err = g.appendOps(ops, e); err != nil {
			return nil, 0, err
		}
	}
	v = &view{r: r, fileSize: fileSize, size: max(fileSize, int64(last.last)), ring: g, ops: ops}
	for _, op := range ops {
		v.size = max(v.size, op.end)
	}
	v.paint()
	return v, len(active), nil
}

// entries returns the valid entries by position. It reads the ring once: the checksums of the
// entries, which may claim to overlap, are put together from those of the sectors.
func (g *ring) entries(ctx context.Context, id guid) ([]logEntry, error) {
	sums := &sectorSums{prefix: []uint32{0}}
	var candidates []logEntry
	var stated []uint32 // checksum of each candidate
	var first []uint32  // that of its first sector, with the stated one as zeros
	sector := make([]byte, logSector)
	le := binary.LittleEndian
	for position := int64(0); position < g.length; position += logSector {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := g.read(sector, position); err != nil {
			return nil, err
		}
		sums.add(sector)
		if string(sector[:4]) != "loge" || guid(sector[32:48]) != id {
			continue
		}
		e := logEntry{
			position:    position,
			length:      int64(le.Uint32(sector[8:])),
			tail:        int64(le.Uint32(sector[12:])),
			sequence:    le.Uint64(sector[16:]),
			descriptors: int64(le.Uint32(sector[24:])),
			flushed:     le.Uint64(sector[48:]),
			last:        le.Uint64(sector[56:]),
		}
		if e.length == 0 || e.length%logSector != 0 || e.length > g.length ||
			e.tail%logSector != 0 || e.tail >= g.length || e.sequence == 0 ||
			entryHeader+descriptorBytes*e.descriptors > e.length {
			continue
		}
		candidates = append(candidates, e)
		stated = append(stated, le.Uint32(sector[4:]))
		clear(sector[4:8])
		first = append(first, rawCRC(sector))
	}
	valid := candidates[:0]
	for i, e := range candidates {
		begin := e.position/logSector + 1
		sum := sums.concat(first[i], begin, e.length/logSector-1)
		if finishCRC(sum, e.length) == stated[i] {
			valid = append(valid, e)
		}
	}
	return valid, nil
}

// activeSequence returns the entries to apply, oldest first, or nil if there is no complete
// sequence.
//
// A sequence is a run of entries, each behind the one before and with the next number. It is
// complete if the tail of its last entry is one of its entries; those before the tail are no longer
// needed. So every complete sequence is found by going from the tails of those entries that have no
// successor.
func activeSequence(entries []logEntry, ringLength int64) []logEntry {
	at := make(map[int64]int, len(entries))
	for i, e := range entries {
		at[e.position] = i
	}
	next := func(i int) int {
		e := entries[i]
		j, ok := at[(e.position+e.length)%ringLength]
		if !ok || entries[j].sequence != e.sequence+1 {
			return -1
		}
		return j
	}
	// end[i] is the last entry of the run from i on. Numbers rise along a run, so going through the
	// entries by falling number meets a successor first.
	order := make([]int, len(entries))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		if entries[a].sequence > entries[b].sequence {
			return -1
		}
		if entries[a].sequence < entries[b].sequence {
			return 1
		}
		return a - b
	})
	end := make([]int, len(entries))
	for _, i := range order {
		end[i] = i
		if j := next(i); j >= 0 {
			end[i] = end[j]
		}
	}
	for _, i := range order {
		tail, ok := at[entries[i].tail]
		if end[i] != i || !ok || end[tail] != i {
			continue
		}
		var run []logEntry
		length := int64(0)
		for j := tail; ; j = next(j) {
			run = append(run, entries[j])
			if length += entries[j].length; length > ringLength {
				break // it overlaps itself
			}
			if j == i {
				return run
			}
		}
	}
	return nil
}

// logOp is an update of the file: a range of zeros, or a sector whose data is in the log.
type logOp struct {
	start, end int64
	zero       bool
	data       int64 // position in the ring of the data sector
	leading    [8]byte
	trailing   [4]byte
}

// appendOps appends the updates of an entry. An entry whose checksum is right but whose descriptors
// are wrong was made that way; it is not taken for one that was only half written.
func (g *ring) appendOps(ops []logOp, e logEntry) ([]logOp, error) {
	le := binary.LittleEndian
	descriptorSectors := (entryHeader + descriptorBytes*e.descriptors + logSector - 1) / logSector
	data := e.position + descriptorSectors*logSector
	end := e.position + e.length
	sector := make([]byte, logSector)
	loaded := int64(-1)
	for i := range e.descriptors {
		where := e.position + entryHeader + i*descriptorBytes
		if s := where &^ (logSector - 1); s != loaded {
			if err := g.read(sector, s); err != nil {
				return nil, err
			}
			loaded = s
		}
		d := sector[where-loaded:][:descriptorBytes]
		fail := func(format string, args ...any) error {
			return bad("log descriptor at %d: %s", g.offset+where%g.length, fmt.Sprintf(format, args...))
		}
		if sequence := le.Uint64(d[24:]); sequence != e.sequence {
			return nil, fail("sequence number %d, want %d", sequence, e.sequence)
		}
		target, length := le.Uint64(d[16:]), uint64(logSector)
		op := logOp{zero: string(d[:4]) == "zero", leading: [8]byte(d[8:16]), trailing: [4]byte(d[4:8])}
		switch {
		case op.zero:
			length = le.Uint64(d[8:])
		case string(d[:4]) != "desc":
			return nil, fail("the signature is neither \"desc\" nor \"zero\"")
		}
		if target%logSector != 0 || length%logSector != 0 || target < minLogTarget ||
			target > maxFileSize || length > maxFileSize-target {
			return nil, fail("the update of %d bytes at %d is not of whole sectors between %d and %d",
				length, target, minLogTarget, int64(maxFileSize))
		}
		op.start, op.end = int64(target), int64(target+length)
		if !op.zero {
			if data+logSector > end {
				return nil, fail("its data lies behind the entry of %d bytes at %d", e.length, g.offset+e.position)
			}
			if err := g.checkData(data, e.sequence); err != nil {
				return nil, err
			}
			op.data = data % g.length
			data += logSector
		}
		if op.end == op.start {
			continue
		}
		if len(ops) == maxLogOps {
			return nil, bad("its log at %d holds more than %d updates", g.offset, maxLogOps)
		}
		ops = append(ops, op)
	}
	return ops, nil
}

// checkData checks that the data sector at a position belongs to the entry with the sequence
// number.
func (g *ring) checkData(position int64, sequence uint64) error {
	var head [8]byte
	var foot [4]byte
	if err := g.read(head[:], position); err != nil {
		return err
	}
	if err := g.read(foot[:], position+logSector-4); err != nil {
		return err
	}
	le := binary.LittleEndian
	got := uint64(le.Uint32(head[4:]))<<32 | uint64(le.Uint32(foot[:]))
	if string(head[:4]) != "data" || got != sequence {
		return bad("the log's data sector at %d is not one of entry %d", g.offset+position%g.length, sequence)
	}
	return nil
}

// view is the file as it is with the log applied. It keeps where the updated sectors are in the
// log, not what they hold.
type view struct {
	r        io.ReaderAt
	fileSize int64
	size     int64 // with what the log adds, which is zeros where it says nothing else
	ring     *ring
	ops      []logOp
	patches  []patch // sorted, not overlapping
}

// patch is a range of the file that an update gives.
type patch struct {
	start, end int64
	op         int32
}

// paint works out which update counts where: of those that overlap, the last.
func (v *view) paint() {
	bounds := make([]int64, 0, 2*len(v.ops))
	for _, op := range v.ops {
		bounds = append(bounds, op.start, op.end)
	}
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	// next[i] is the first range from i on that no later update has; ranges are bounds[i:i+2].
	next := make([]int32, len(bounds))
	owner := make([]int32, len(bounds))
	for i := range next {
		next[i], owner[i] = int32(i), -1
	}
	free := func(i int) int {
		for int(next[i]) != i {
			next[i] = next[next[i]]
			i = int(next[i])
		}
		return i
	}
	for i := len(v.ops) - 1; i >= 0; i-- {
		begin, _ := slices.BinarySearch(bounds, v.ops[i].start)
		end, _ := slices.BinarySearch(bounds, v.ops[i].end)
		for j := free(begin); j < end; j = free(j) {
			owner[j] = int32(i)
			next[j] = int32(j + 1)
		}
	}
	for i, op := range owner {
		if op < 0 {
			continue
		}
		p := patch{start: bounds[i], end: bounds[i+1], op: op}
		if n := len(v.patches); n > 0 && v.patches[n-1].end == p.start &&
			v.ops[op].zero && v.ops[v.patches[n-1].op].zero {
			v.patches[n-1].end = p.end
			continue
		}
		v.patches = append(v.patches, p)
	}
}

// ReadAt implements [io.ReaderAt]. Reads inside the file are complete or fail.
func (v *view) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at the negative offset %d", off)
	}
	want := p[:max(0, min(int64(len(p)), v.size-off))]
	i := sort.Search(len(v.patches), func(i int) bool { return v.patches[i].end > off })
	for done := 0; done < len(want); {
		at, part := off+int64(done), want[done:]
		var err error
		switch {
		case i < len(v.patches) && v.patches[i].start <= at:
			part = part[:min(int64(len(part)), v.patches[i].end-at)]
			err = v.readPatch(part, at, &v.ops[v.patches[i].op])
			if at+int64(len(part)) == v.patches[i].end {
				i++
			}
		case at >= v.fileSize:
			if i < len(v.patches) {
				part = part[:min(int64(len(part)), v.patches[i].start-at)]
			}
			clear(part)
		default:
			part = part[:min(int64(len(part)), v.fileSize-at)]
			if i < len(v.patches) {
				part = part[:min(int64(len(part)), v.patches[i].start-at)]
			}
			err = readFull(v.r, part, at)
		}
		if err != nil {
			return done, err
		}
		done += len(part)
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

// readPatch reads p, which lies within an update.
func (v *view) readPatch(p []byte, at int64, op *logOp) error {
	if op.zero {
		clear(p)
		return nil
	}
	var sector [logSector]byte
	if err := v.ring.read(sector[:], op.data); err != nil {
		return err
	}
	copy(sector[:8], op.leading[:])
	copy(sector[logSector-4:], op.trailing[:])
	copy(p, sector[at-op.start:])
	return nil
}
