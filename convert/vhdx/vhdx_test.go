// SPDX-License-Identifier: Apache-2.0

package vhdx_test

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert/vhdx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(s *store, parent image.Image) (image.Image, *vhdx.Metadata, error) {
	m, err := vhdx.Preflight(context.Background(), s, s.size, vhdx.Options{AllowParent: parent != nil})
	if err != nil {
		return nil, nil, err
	}
	img, err := m.Open(parent)
	return img, m, err
}

// parentDisk is what the hot sectors of a parent hold.
type parentDisk struct {
	size int64
	hot  map[int64]bool
}

func (p parentDisk) Close() error     { return nil }
func (p parentDisk) Size() int64      { return p.size }
func (p parentDisk) Type() image.Type { return "raw" }
func (p parentDisk) Readable() error  { return nil }

func (p parentDisk) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > p.size {
		return 0, errors.New("out of bounds")
	}
	clear(b)
	for sector := off / 512; sector*512 < off+int64(len(b)); sector++ {
		if p.hot[sector] {
			data, at := pattern(2, sector), sector*512-off
			copy(b[max(0, at):], data[max(0, -at):])
		}
	}
	return len(b), nil
}

// Extent has many short extents near hot sectors and long ones elsewhere.
func (p parentDisk) Extent(start, length int64) (image.Extent, error) {
	if start < 0 || length <= 0 || start+length > p.size {
		return image.Extent{}, errors.New("out of bounds")
	}
	const piece = 256 << 10
	n := min(length, piece-start%piece)
	hot := false
	for sector := start / 512; sector*512 < start+n; sector++ {
		hot = hot || p.hot[sector]
	}
	return image.Extent{Start: start, Length: n, Allocated: hot, Zero: !hot}, nil
}

// drawDisk draws an image of any variant but without a log.
func drawDisk(t *rapid.T) *disk {
	d := &disk{
		block:  rapid.SampledFrom([]int64{1, 1, 1, 2, 32, 256}).Draw(t, "block") * mib,
		sector: rapid.SampledFrom([]int64{512, 4096}).Draw(t, "sector"),
		states: map[int64]uint64{},
		hot:    map[int64]bool{},
		gap:    rapid.Int64Range(0, 2).Draw(t, "gap"),
		cut:    rapid.Bool().Draw(t, "cut"),
	}
	switch rapid.IntRange(0, 2).Draw(t, "variant") {
	case 0:
		d.fixed = true
	case 1:
		d.child = true
	}
	blocks := rapid.Int64Range(1, 9).Draw(t, "blocks")
	if rapid.IntRange(0, 3).Draw(t, "chunks") == 0 { // more than one chunk
		blocks += d.ratio() * rapid.Int64Range(1, 2).Draw(t, "whole chunks")
	}
	d.size = blocks*d.block - d.sector*rapid.Int64Range(0, d.block/d.sector-1).Draw(t, "short of")
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	states := []uint64{6, 6, 6, 0, 1, 2, 3}
	if d.child {
		states = append(states, 7, 7, 7, 7)
	}
	used := []int64{0, blocks - 1, min(blocks-1, d.ratio()), min(blocks-1, d.ratio()-1)}
	for range 4 {
		used = append(used, rnd.Int64N(blocks))
	}
	slices.Sort(used)
	d.order = slices.Compact(used)
	rnd.Shuffle(len(d.order), func(i, j int) { d.order[i], d.order[j] = d.order[j], d.order[i] })
	for _, b := range d.order {
		d.states[b] = states[rnd.IntN(len(states))]
		sectors := d.block / 512
		for _, s := range []int64{0, 1, 7, 8, sectors - 1, rnd.Int64N(sectors), rnd.Int64N(sectors)} {
			if s += b * sectors; s < d.size/512 && rnd.IntN(3) > 0 {
				d.hot[s] = true
			}
		}
	}
	d.hot[rnd.Int64N(d.size/512)] = true
	run := max(1, d.block/mib*rnd.Int64N(100))
	salt := rnd.Uint64()
	d.present = func(sector int64) bool {
		return rand.New(rand.NewPCG(uint64(sector/run), salt)).IntN(2) == 0
	}
	d.locator = [][2]string{{"parent_linkage", "{" + strings.ToUpper(idParent) + "}"}, {"relative_path", `..\p.vhdx`}}
	return d
}

// parent returns the parent of a disk as an image, nil if it has none.
func (d *disk) parent() image.Image {
	if !d.child {
		return nil
	}
	return parentDisk{d.size, d.hot}
}

// useRandomLog moves parts of the file into its log and writes rubbish where they were.
func useRandomLog(t *rapid.T, s *store) {
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "log seed"), 2))
	rubbish := func() []byte {
		p := make([]byte, 4096)
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		return p
	}
	final := s.clone()
	var updates []update
	for i := range s.pages {
		at := i * 4096
		if at >= 192*kib && (at < logAt || at >= logAt+logBytes) && (rnd.IntN(3) == 0 || at == batAt) && len(updates) < 140 {
			updates = append(updates, update{at: at, data: final.get(at, 4096)})
			s.put(at, rubbish()...)
		}
	}
	for at := int64(8 * mib); at+64*kib <= s.size && at < 10*mib; at += 64 * kib {
		if rnd.IntN(4) == 0 && len(bytes.Trim(final.get(at, 64*kib), "\x00")) == 0 {
			updates = append(updates, update{at: at, zeros: 64 * kib})
			s.put(at+4096*rnd.Int64N(16), rubbish()...)
		}
	}
	rnd.Shuffle(len(updates), func(i, j int) { updates[i], updates[j] = updates[j], updates[i] })
	size := final.size
	if rnd.IntN(3) == 0 {
		// The file may end before what the log puts behind its end.
		s.truncate((s.size - rnd.Int64N(min(s.size-batAt-mib, 2*mib)+1)) / 4096 * 4096)
		for at := s.size; at < size; at += 4096 {
			if p := final.get(at, 4096); len(bytes.Trim(p, "\x00")) != 0 {
				updates = append(updates, update{at: at, data: p})
			}
		}
	}
	// What the updates undo, in older entries: rubbish at the same places.
	var undone []update
	for _, u := range updates {
		if rnd.IntN(4) == 0 {
			undone = append(undone, update{at: u.at, data: rubbish()})
		} else if rnd.IntN(8) == 0 {
			undone = append(undone, update{at: u.at, zeros: 4096})
		}
	}
	flushed := s.size
	sequence := rnd.Uint64N(1<<40) + 10
	position := rnd.Int64N(logBytes/4096) * 4096
	position = s.putLog(position, logEntry(idLog, sequence-2, position, flushed, size, nil)) // no longer needed
	tail := position
	position = s.putLog(position, logEntry(idLog, sequence-1, tail, flushed, size, undone))
	for len(updates) > 0 {
		n := min(len(updates), 1+rnd.IntN(200), (logBytes-int(6*4096)-int((position-tail+logBytes)%logBytes))/4096*31/32)
		if n <= 0 {
			t.Skip("the log is too short")
		}
		position = s.putLog(position, logEntry(idLog, sequence, tail, flushed, size, updates[:n]))
		sequence++
		updates = updates[n:]
	}
	// What is not valid: a torn entry, one of another log, an old one with a gap in the numbers.
	torn := logEntry(idLog, sequence, tail, flushed, size, []update{{at: batAt, data: rubbish()}})
	torn[4096+100]++
	switch rnd.IntN(3) {
	case 0:
		s.putLog(position, torn)
	case 1:
		s.putLog(position, logEntry(idData, sequence, tail, flushed, size, []update{{at: batAt, data: rubbish()}}))
	case 2:
		s.putLog(position, logEntry(idLog, sequence+1, tail, flushed, size, []update{{at: batAt, data: rubbish()}}))
	}
	s.useLog0()
}

// useLog0 says in the headers that the log is in use, without touching the region tables.
func (s *store) useLog0() {
	for _, at := range []int64{64 * kib, 128 * kib} {
		s.put(at+48, guidBytes(idLog)...)
		s.seal(at, 4*kib)
	}
}

func TestReadsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDisk(t)
		s := d.write()
		warnings := 0
		if d.sector == 4096 {
			warnings++
		}
		if rapid.Bool().Draw(t, "log") {
			useRandomLog(t, s)
			warnings++
		} else if rapid.Bool().Draw(t, "first region table bad") {
			s.put(192*kib+9, 1)
			warnings++
		}
		if rapid.Bool().Draw(t, "old header") {
			s.put(64*kib+48, bytes.Repeat([]byte{0xEE}, 16)...)
			s.put(64*kib+72, 1)
			s.seal(64*kib, 4*kib)
		}
		before := s.bytesHash()
		img, meta, err := open(s, d.parent())
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		if img.Size() != d.size || meta.VirtualSize != d.size || meta.BlockSize != d.block ||
			int64(meta.SectorSize) != d.sector || img.Type() != vhdx.Type || meta.ID != idData {
			t.Fatalf("%+v", meta)
		}
		if len(meta.Warnings) != warnings {
			t.Fatalf("warnings %q, want %d", meta.Warnings, warnings)
		}
		check := func(off int64, n int) {
			off = max(0, min(off, d.size))
			buf := bytes.Repeat([]byte{0xEE}, n)
			got, err := img.ReadAt(buf, off)
			want := d.content(off, min(int64(n), d.size-off))
			if got != len(want) || (got < n) != (err == io.EOF) && off < d.size {
				t.Fatalf("read %d at %d: %d, %v, want %d", n, off, got, err, len(want))
			}
			if !bytes.Equal(buf[:got], want) {
				t.Fatalf("read %d at %d: wrong bytes", n, off)
			}
			if len(bytes.Trim(buf[got:], "\xEE")) != 0 {
				t.Fatal("bytes behind the end of the disk were touched")
			}
		}
		for sector := range d.hot {
			check(sector*512-700, 2000)
		}
		for range 10 {
			check(rapid.Int64Range(0, d.size).Draw(t, "offset"), rapid.IntRange(0, 100000).Draw(t, "length"))
		}
		if d.size <= 16*mib {
			check(0, int(d.size))
		}
		checkExtents(t, img, d)
		if !bytes.Equal(before, s.bytesHash()) {
			t.Fatal("the file was changed")
		}
	})
}

// bytesHash changes when the file does.
func (s *store) bytesHash() []byte {
	sum := uint32(0)
	for i, p := range s.pages {
		sum ^= crc32.ChecksumIEEE(append([]byte{byte(i), byte(i >> 8), byte(i >> 16)}, p[:]...))
	}
	return []byte{byte(sum), byte(sum >> 8), byte(sum >> 16), byte(sum >> 24), byte(len(s.pages))}
}

// checkExtents walks the disk in random questions: what is said to be zero must be, and the answers
// must be gapless, within the question, and as long as can be.
func checkExtents(t *rapid.T, img image.Image, d *disk) {
	for off := int64(0); off < img.Size(); {
		ask := img.Size() - off
		if rapid.IntRange(0, 3).Draw(t, "clip") == 0 {
			ask = rapid.Int64Range(1, ask).Draw(t, "ask")
		}
		e, err := img.Extent(off, ask)
		if err != nil {
			t.Fatalf("extent of %d at %d: %v", ask, off, err)
		}
		if e.Start != off || e.Length <= 0 || e.Length > ask {
			t.Fatalf("extent of %d at %d: %+v", ask, off, e)
		}
		for sector := range d.hot {
			if at := sector * 512; e.Zero && at < off+e.Length && at+512 > off && d.owner(sector) != 0 {
				t.Fatalf("%+v is not zero at %d", e, at)
			}
		}
		if e.Length < ask {
			next, err := img.Extent(off+e.Length, ask-e.Length)
			if err != nil || next.Zero == e.Zero && next.Allocated == e.Allocated {
				t.Fatalf("extent %+v could be joined with %+v, %v", e, next, err)
			}
		}
		off += e.Length
	}
}

// TestExtentKinds says what each kind of range is reported as, and what is counted.
func TestExtentKinds(t *testing.T) {
	d := &disk{size: 8*mib - 4096, block: mib, sector: 4096, child: true,
		states:  map[int64]uint64{1: 6, 2: 6, 3: 2, 4: 7, 5: 1, 6: 3, 7: 6},
		order:   []int64{7, 1, 2, 3, 4, 5, 6},
		present: func(s int64) bool { return s >= 4*256+64 },
		hot:     map[int64]bool{0: true},
		locator: [][2]string{{"parent_linkage", "{" + idParent + "}"}}}
	img, meta, err := open(d.write(), d.parent())
	if err != nil {
		t.Fatal(err)
	}
	off := int64(0)
	for _, w := range []image.Extent{
		{Length: mib / 4, Allocated: true}, // the parent's
		{Length: mib * 3 / 4, Zero: true},
		{Length: 2 * mib, Allocated: true},
		{Length: mib, Allocated: true, Zero: true},
		{Length: mib / 4, Zero: true},
		{Length: mib * 3 / 4, Allocated: true},
		{Length: 2 * mib, Allocated: true, Zero: true},
		{Length: mib - 4096, Allocated: true},
	} {
		w.Start = off
		e, err := img.Extent(off, img.Size()-off)
		if err != nil || e != w {
			t.Errorf("extent at %d: %+v, %v, want %+v", off, e, err, w)
		}
		off += w.Length
	}
	if meta.MappedBytes != 4*mib-4096 || meta.Creator != "test ?1.0" || meta.Variant != vhdx.VariantDifferencing {
		t.Errorf("%+v", meta)
	}
	for _, q := range [][2]int64{{-1, 1}, {0, -1}, {0, img.Size() + 1}, {img.Size(), 1}, {1 << 62, 1 << 62}} {
		if e, err := img.Extent(q[0], q[1]); err == nil {
			t.Errorf("extent of %d at %d: %+v, want an error", q[1], q[0], e)
		}
	}
	if _, err := img.ReadAt(make([]byte, 1), -1); err == nil || err == io.EOF {
		t.Errorf("read at -1: %v", err)
	}
}

// TestParent checks what a differencing disk says of its parent, and what it does not accept.
func TestParent(t *testing.T) {
	d := &disk{size: 4 * mib, block: mib, sector: 512, child: true, locator: [][2]string{
		{"parent_linkage", "{" + strings.ToUpper(idParent) + "}"},
		{"parent_linkage2", "{" + idLog + "}"},
		{"absolute_win32_path", `C:\Disks\old.vhdx`},
		{"relative_path", `.\..\..\new.vhdx`},
		{"volume_path", `\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\Disks\old.vhdx`},
		{"something else", "x"},
	}}
	s := d.write()
	if _, err := vhdx.Preflight(context.Background(), s, s.size, vhdx.Options{}); err == nil {
		t.Error("a differencing disk was accepted without asking")
	} else if e := new(vhdx.Error); !errors.As(err, &e) || e.Remedy == "" {
		t.Errorf("%v", err)
	} else if reason, remedy := e.Refusal(); reason != e.Reason || remedy != e.Remedy {
		t.Errorf("%q, %q", reason, remedy)
	}
	_, meta, err := open(s, d.parent())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"new.vhdx", "old.vhdx"}; !slices.Equal(meta.ParentNames, want) {
		t.Errorf("names %q, want %q", meta.ParentNames, want)
	}
	if meta.ParentID != idParent || meta.ParentID2 != idLog || meta.ID != idData {
		t.Errorf("ids %q, %q, %q", meta.ParentID, meta.ParentID2, meta.ID)
	}
	if _, err := meta.Open(nil); err == nil {
		t.Error("opened without its parent")
	}
	if _, err := meta.Open(parentDisk{size: 4*mib - 512}); err == nil {
		t.Error("opened with a parent of another size")
	}
	linkage := [2]string{"parent_linkage", "{" + idParent + "}"}
	for name, locator := range map[string][][2]string{
		"no linkage":       {{"relative_path", "a"}},
		"no braces":        {{"parent_linkage", idParent}},
		"no GUID":          {{"parent_linkage", "{" + strings.Repeat("x", 36) + "}"}},
		"second no GUID":   {linkage, {"parent_linkage2", "{}"}},
		"twice":            {linkage, linkage},
		"empty value":      {linkage, {"relative_path", ""}},
		"empty key":        {linkage, {"", "a"}},
		"no entries":       {},
		"misplaced dashes": {{"parent_linkage", "{" + strings.Replace(idParent, "-5566", "5566-", 1) + "}"}},
	} {
		d.locator = locator
		if _, _, err := open(d.write(), d.parent()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	d.child, d.locator = false, nil
	if _, meta, err := open(d.write(), nil); err != nil {
		t.Error(err)
	} else if _, err := meta.Open(parentDisk{size: 4 * mib}); err == nil {
		t.Error("a dynamic disk took a parent")
	}
}

func TestPlainName(t *testing.T) {
	for path, want := range map[string]string{
		`C:\a\b.vhdx`: "b.vhdx", "../../etc/passwd": "passwd", "b.vhdx": "b.vhdx", `C:b`: "b", "bäse ü": "bäse ü",
		"": "", `a\`: "", "..": "", ".": "", "a\x1b[2J": "", "a\nb": "", "a\u202eb": "", "a\ufffdb": "", "\xff": "",
		strings.Repeat("x", 256): "",
	} {
		if got := vhdx.PlainName(path); got != want {
			t.Errorf("%q gives %q, want %q", path, got, want)
		}
	}
}

func TestBitRun(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 0xFF, 0, 0xFF, 0x0F, 0x80, 0x01, 0x5A}), 1, 20).Draw(t, "bits")
		i := rapid.Int64Range(0, int64(len(p))*8-1).Draw(t, "bit")
		bit := func(i int64) bool { return p[i/8]>>(i%8)&1 == 1 }
		n := int64(1)
		for i+n < int64(len(p))*8 && bit(i+n) == bit(i) {
			n++
		}
		if set, run := vhdx.BitRun(p, i); set != bit(i) || run != n {
			t.Fatalf("%t, %d, want %t, %d", set, run, bit(i), n)
		}
	})
}

// TestRingCRC compares checksums that are put together with those of the standard library.
func TestRingCRC(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sectors := rapid.Int64Range(1, 9).Draw(t, "sectors")
		ring := make([]byte, sectors*4096)
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 3))
		for i := range ring {
			ring[i] = byte(rnd.Uint32())
		}
		first := rapid.Int64Range(0, sectors-1).Draw(t, "first")
		count := rapid.Int64Range(0, sectors).Draw(t, "count")
		run := slices.Concat(ring, ring)[first*4096:][:count*4096]
		want := crc32.Checksum(run, crc32.MakeTable(crc32.Castagnoli))
		if got := vhdx.RingCRC(ring, first, count); got != want {
			t.Fatalf("%#x, want %#x", got, want)
		}
	})
}

// TestConcurrentReads lets goroutines share an image, for the race detector.
func TestConcurrentReads(t *testing.T) {
	d := &disk{size: 8 * mib, block: mib, sector: 512, child: true, hot: map[int64]bool{}, states: map[int64]uint64{},
		present: func(s int64) bool { return s/3%2 == 0 },
		locator: [][2]string{{"parent_linkage", "{" + idParent + "}"}}}
	for s := range int64(8 * mib / 512) {
		if s%5 > 0 {
			d.hot[s] = true
		}
	}
	for b := range int64(7) {
		d.states[b] = []uint64{6, 7, 0}[b%3]
		d.order = append(d.order, b)
	}
	s := d.write()
	at := s.putLog(0, logEntry(idLog, 1, 0, s.size, s.size, []update{{at: batAt, data: s.get(batAt, 4096)}}))
	s.putLog(at, logEntry(idLog, 2, 0, s.size, s.size, []update{{at: metadataAt, data: s.get(metadataAt, 4096)}}))
	s.put(batAt, make([]byte, 4096)...)
	s.put(metadataAt, make([]byte, 4096)...)
	s.useLog()
	img, _, err := open(s, d.parent())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			buf := make([]byte, 50000)
			for i := range 50 {
				off := int64((i*8 + g) * 50003 % (8*mib - len(buf)))
				if _, err := img.ReadAt(buf, off); err != nil {
					t.Errorf("read at %d: %v", off, err)
				}
				if !bytes.Equal(buf, d.content(off, int64(len(buf)))) {
					t.Errorf("read at %d: wrong bytes", off)
				}
				if _, err := img.Extent(off, int64(len(buf))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestHugeEmptyDisk maps a disk of the largest size, whose last block alone is there.
func TestHugeEmptyDisk(t *testing.T) {
	const size = 64 << 40
	last := int64(size/(32*mib) - 1)
	d := &disk{size: size, block: 32 * mib, sector: 512, states: map[int64]uint64{last: 6}, order: []int64{last},
		hot: map[int64]bool{size/512 - 1: true}}
	img, meta, err := open(d.write(), nil)
	if err != nil {
		t.Fatal(err)
	}
	e, err := img.Extent(0, size)
	if want := (image.Extent{Length: size - 32*mib, Zero: true}); err != nil || e != want {
		t.Errorf("first extent: %+v, %v, want %+v", e, err, want)
	}
	buf := make([]byte, 1024)
	if n, err := img.ReadAt(buf, size-1024); n != 1024 || err != nil || !bytes.Equal(buf, d.content(size-1024, 1024)) {
		t.Errorf("%d, %v", n, err)
	}
	if n := meta.TableBytes(); n <= 0 || n > 2*mib {
		t.Errorf("tables of %d bytes", n)
	}
}

// TestChangedFile checks that a table that changes after the check gives an error and not a crash.
func TestChangedFile(t *testing.T) {
	for _, e := range []uint64{4, 5, 7, 1<<63 | 6, 6 | 1<<40, 6 | offsetAll} {
		d := &disk{size: 2 * mib, block: mib, sector: 512, states: map[int64]uint64{1: 6}, order: []int64{1}}
		s := d.write()
		img, _, err := open(s, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.put64(batAt+8, e)
		if n, err := img.ReadAt(make([]byte, 2*mib), 0); n != mib || err == nil || err == io.EOF {
			t.Errorf("entry %#x: %d, %v", e, n, err)
		}
	}
}

const offsetAll = 1<<64 - mib

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s := (&disk{size: mib, block: mib, sector: 512}).write()
	if _, err := vhdx.Preflight(ctx, s, s.size, vhdx.Options{}); !errors.Is(err, ctx.Err()) {
		t.Errorf("got %v", err)
	}
}
