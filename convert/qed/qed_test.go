// SPDX-License-Identifier: Apache-2.0

package qed_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert/qed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(f []byte, parent image.Image) (image.Image, *qed.Metadata, error) {
	m, err := qed.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)),
		qed.Options{AllowParent: parent != nil})
	if err != nil {
		return nil, nil, err
	}
	img, err := m.Open(parent)
	return img, m, err
}

// drawDisk draws an image of any variant and the bytes of its parent, nil if it has none.
func drawDisk(t *rapid.T) (*disk, memory) {
	d := &disk{
		clusterSize: rapid.SampledFrom([]int64{4 << 10, 4 << 10, 8 << 10, 64 << 10}).Draw(t, "cluster"),
		tableSize:   rapid.SampledFrom([]int64{1, 1, 2, 4, 16}).Draw(t, "table"),
		headerSize:  rapid.Int64Range(1, 3).Draw(t, "header"),
		data:        map[int64][]byte{},
		zeros:       map[int64]bool{},
		tablesLast:  rapid.Bool().Draw(t, "tables last"),
		features:    2 * rapid.Uint64Range(0, 1).Draw(t, "needs check"),
	}
	d.size = 512 * rapid.Int64Range(1, 5<<20/512).Draw(t, "sectors") // up to three L2 tables
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	noise := func(n int64) []byte {
		p := make([]byte, n)
		for i := int64(0); i < n; i += 512 {
			if rnd.IntN(4) > 0 {
				p[i+rnd.Int64N(512)] = byte(rnd.Uint32())
			}
		}
		return p
	}
	density := rapid.SampledFrom([]int{0, 1, 20, 100, 100}).Draw(t, "density")
	ascending := rapid.Bool().Draw(t, "ascending")
	kind := 0
	for i, j := range rnd.Perm(int(d.count())) {
		if ascending {
			j = i
		}
		if rnd.IntN(100) >= density {
			continue
		}
		if rnd.IntN(3) == 0 {
			kind = rnd.IntN(3)
		}
		switch kind {
		case 0:
			continue
		case 1:
			d.zeros[int64(j)] = true
		case 2:
			d.data[int64(j)] = noise(d.clusterSize)
		}
		d.order = append(d.order, int64(j))
	}
	if rapid.IntRange(0, 2).Draw(t, "backing") == 0 {
		d.backing = "parent"
		d.features |= 4 * rapid.Uint64Range(0, 1).Draw(t, "no probe")
		return d, memory(noise(512 * rapid.Int64Range(1, 2*d.size/512).Draw(t, "parent sectors")))
	}
	return d, nil
}

func TestReadsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, parent := drawDisk(t)
		want := d.content(parent)
		var p image.Image
		if parent != nil {
			p = parent
		}
		img, meta, err := open(d.write(), p)
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		if img.Size() != d.size || meta.VirtualSize != d.size || img.Type() != qed.Type {
			t.Fatalf("size %d, %d, type %s, want %d", img.Size(), meta.VirtualSize, img.Type(), d.size)
		}
		if check := d.features&2 != 0; (len(meta.Warnings) > 0) != check ||
			slices.Contains(meta.Features, "needs check") != check {
			t.Fatalf("features %q, warnings %q", meta.Features, meta.Warnings)
		}
		if meta.BackingFile != d.backing || (meta.BackingFormat == "raw") != (d.features&4 != 0) {
			t.Fatalf("backing file %q of format %q", meta.BackingFile, meta.BackingFormat)
		}
		got := make([]byte, len(want))
		if n, err := img.ReadAt(got, 0); n != len(want) || err != nil {
			t.Fatalf("read all: %d, %v", n, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatal("the disk differs")
		}
		for range 20 {
			off := rapid.Int64Range(0, img.Size()).Draw(t, "offset")
			p := make([]byte, rapid.IntRange(0, int(3*d.clusterSize)).Draw(t, "length"))
			n, err := img.ReadAt(p, off)
			left := min(int64(len(p)), img.Size()-off)
			if int64(n) != left || (n < len(p) || off == img.Size()) != (err == io.EOF) || err != nil && err != io.EOF {
				t.Fatalf("read of %d at %d: %d, %v", len(p), off, n, err)
			}
			if !bytes.Equal(p[:n], want[off:off+left]) {
				t.Fatalf("the %d bytes at %d differ", n, off)
			}
		}
		checkExtents(t, d, img, want, meta, parent)
	})
}

// checkExtents checks that the extents tile the disk, that those that are zero read as zeros, that
// neighbours differ, and that they say of every cluster what it is.
func checkExtents(t *rapid.T, d *disk, img image.Image, want []byte, meta *qed.Metadata, parent memory) {
	var last image.Extent
	mapped := int64(0)
	for off := int64(0); off < img.Size(); {
		e, err := img.Extent(off, img.Size()-off)
		if err != nil || e.Start != off || e.Length <= 0 || e.Length > img.Size()-off {
			t.Fatalf("extent at %d: %+v, %v", off, e, err)
		}
		if off > 0 && e.Allocated == last.Allocated && e.Zero == last.Zero && e.Compressed == last.Compressed {
			t.Fatalf("%+v goes on in %+v", last, e)
		}
		if e.Zero && len(bytes.Trim(want[off:off+e.Length], "\x00")) > 0 {
			t.Fatalf("%+v is not zero", e)
		}
		off, last = off+e.Length, e
	}
	for i := range d.count() {
		off := i * d.clusterSize
		n := min(d.clusterSize, d.size-off)
		e, err := img.Extent(off, n)
		if err != nil {
			t.Fatal(err)
		}
		expect := image.Extent{Start: off, Length: n, Zero: true}
		switch _, data := d.data[i]; {
		case data:
			expect.Allocated, expect.Zero = true, false
			mapped += n
		case d.zeros[i]:
			expect.Allocated = true
		case off < parent.Size():
			continue // whatever the parent says, which the above has checked
		}
		if e != expect {
			t.Fatalf("cluster %d: %+v, want %+v", i, e, expect)
		}
	}
	if mapped != meta.MappedBytes {
		t.Fatalf("%d mapped bytes, want %d", meta.MappedBytes, mapped)
	}
}

func TestReadsConcurrently(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	d := &disk{size: 64 << 20, clusterSize: 4 << 10, tableSize: 1, headerSize: 1, data: map[int64][]byte{}}
	for _, i := range rnd.Perm(int(d.count())) {
		if i%3 > 0 {
			d.data[int64(i)] = []byte{byte(i), byte(i >> 8), 1}
			d.order = append(d.order, int64(i))
		}
	}
	want := d.content(nil)
	img, _, err := open(d.write(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 3))
			p := make([]byte, 100<<10)
			for range 200 {
				off := rnd.Int64N(img.Size())
				n, err := img.ReadAt(p, off)
				if err != nil && err != io.EOF || !bytes.Equal(p[:n], want[off:off+int64(n)]) {
					t.Errorf("read at %d: %d, %v", off, n, err)
					return
				}
				if _, err := img.Extent(off, img.Size()-off); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// small is a disk with two L2 tables. In the file: the header, the L1 table at 4096, the L2 tables
// at 8192 and 12288, and the clusters 513, 0 and 1 of the disk from 16384 on.
func small() *disk {
	return &disk{size: 3 << 20, clusterSize: 4 << 10, tableSize: 1, headerSize: 1, order: []int64{513, 0, 1, 2},
		data: map[int64][]byte{513: {1}, 0: {2}, 1: bytes.Repeat([]byte{3}, 4<<10)}, zeros: map[int64]bool{2: true}}
}

const smallL1, smallL2, smallData = 4096, 12288, 16384 // the second L2 table maps the disk's start

// put32 and put64 change a field.
func put32(at int, v uint32) func(f []byte) []byte {
	return func(f []byte) []byte { le.PutUint32(f[at:], v); return f }
}

func put64(at int, v uint64) func(f []byte) []byte {
	return func(f []byte) []byte { le.PutUint64(f[at:], v); return f }
}

// both makes two changes.
func both(a, b func(f []byte) []byte) func(f []byte) []byte {
	return func(f []byte) []byte { return b(a(f)) }
}

func cut(n int) func(f []byte) []byte { return func(f []byte) []byte { return f[:n] } }

func TestRefuses(t *testing.T) {
	const end = smallData + 3*4096
	for name, c := range map[string]struct {
		change func(f []byte) []byte
		reason string // a part of it
	}{
		"empty":                  {cut(0), "too short"},
		"header cut":             {cut(63), "too short"},
		"header cluster cut":     {cut(4095), "the header of 4096 bytes ends outside"},
		"magic":                  {put32(0, 0x01444551), "magic"},
		"cluster size 0":         {put32(4, 0), "cluster size 0"},
		"cluster size 4095":      {put32(4, 4095), "cluster size 4095"},
		"cluster size 2048":      {put32(4, 2048), "cluster size 2048"},
		"cluster size 12288":     {put32(4, 12288), "cluster size 12288"},
		"cluster size 2^27":      {put32(4, 1<<27), "cluster size 134217728"},
		"cluster size 2^26":      {put32(4, 1<<26), "outside of the 0 whole clusters"},
		"table size 0":           {put32(8, 0), "table size 0"},
		"table size 3":           {put32(8, 3), "table size 3"},
		"table size 32":          {put32(8, 32), "table size 32"},
		"table size 16":          {put32(8, 16), "ends outside"},
		"header size 0":          {put32(12, 0), "header size 0"},
		"header size 2^20":       {put32(12, 1<<20), "header size 1048576"},
		"header size 0xFFFFFFFF": {put32(12, 0xFFFFFFFF), "header size 4294967295"},
		"header size above file": {put32(12, 8), "the header of 32768 bytes"},
		"header over the tables": {put32(12, 2), "lies in the header"},
		"unknown feature":        {put64(16, 8), "unknown feature 3"},
		"unknown feature 63":     {put64(16, 1<<63), "unknown feature 63"},
		"L1 offset 0":            {put64(40, 0), "lies in the header"},
		"L1 unaligned":           {put64(40, smallL1+8), "4104 is not a multiple"},
		"L1 at the end":          {put64(40, end), "ends outside"},
		"L1 beyond the end":      {put64(40, 1<<40), "ends outside"},
		"L1 at 2^64-4096":        {put64(40, 1<<64-4096), "ends outside"},
		"size 0":                 {put64(48, 0), "virtual size 0"},
		"size 513":               {put64(48, 513), "virtual size 513"},
		"size above the tables":  {put64(48, 1<<30+512), "more than tables of 512 entries"},
		"size 2^63-512":          {put64(48, 1<<63-512), "more than tables"},
		"size 2^63":              {put64(48, 1<<63), "virtual size"},
		"size 2^64-512":          {put64(48, 1<<64-512), "virtual size"},
		"L2 unaligned":           {put64(smallL1, smallL2+8), "L1 entry 0 at 4096: 12296 is not a multiple"},
		"L2 entry 1 in L1":       {put64(smallL1, 1), "not a multiple"},
		"L2 in the header":       {put64(smallL1, 0x8000<<48), "ends outside"},
		"L2 beyond the end":      {put64(smallL1, end), "ends outside"},
		"L2 table shared":        {put64(smallL1+8, smallL2), "L1 entry 1 at 4104: the cluster at 12288"},
		"L2 table is the L1":     {put64(smallL1, smallL1), "also used otherwise"},
		"L2 table is data":       {put64(smallL1+8, smallData+4096), "also used otherwise"},
		"data unaligned":         {put64(smallL2, smallData+1), "L2 entry at 12288: 0x4001 is not a multiple"},
		"data is 2":              {put64(smallL2, 2), "not a multiple"},
		"data at the end":        {put64(smallL2, end), "outside"},
		"data at 2^63":           {put64(smallL2, 1<<63), "outside"},
		"data in the L1":         {put64(smallL2, smallL1), "also used otherwise"},
		"data in its L2":         {put64(smallL2, smallL2), "also used otherwise"},
		"data twice":             {put64(smallL2, smallData), "L2 entry at 8200: the cluster at 16384 is also"},
		"data twice, check":      {both(put64(smallL2, smallData), put64(16, 2)), "also used otherwise"},
		"file cut by a byte":     {cut(end - 1), "truncated"},
		"file cut in the tables": {cut(smallL2 + 100), "truncated"},
		"backing name in header": {both(put64(16, 1), put64(56, 63|10<<32)), "backing file name of 10 bytes at 63"},
		"backing name too long":  {both(put64(16, 1), put64(56, 64|1024<<32)), "at most 1023"},
		"backing name outside":   {both(put64(16, 1), put64(56, 4090|7<<32)), "backing file name of 7 bytes at 4090"},
		"backing name huge":      {both(put64(16, 1), put64(56, 1<<64-1)), "backing file name of 4294967295"},
		"backing file":           {both(put64(16, 5), put64(56, 0|4<<32|64)), "it has a backing file"},
	} {
		t.Run(name, func(t *testing.T) {
			f := c.change(small().write())
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _, err := open(f, nil)
			runtime.ReadMemStats(&after)
			var bad *qed.Error
			if !errors.As(err, &bad) {
				t.Fatalf("got %v, want it refused", err)
			}
			reason, remedy := bad.Refusal()
			if !strings.Contains(reason, c.reason) {
				t.Errorf("reason %q, want %q in it", reason, c.reason)
			}
			if (name == "backing file") != strings.Contains(remedy, "qemu-img convert") {
				t.Errorf("remedy %q", remedy)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
	if _, _, err := open(small().write(), nil); err != nil {
		t.Errorf("the unchanged image: %v", err)
	}
}

func TestBackingFile(t *testing.T) {
	d := small()
	d.backing = "\x1b[31m/etc/passwd\n"
	f := d.write()
	_, _, err := open(f, nil)
	var bad *qed.Error
	if !errors.As(err, &bad) || !strings.Contains(bad.Reason, `"\x1b[31m/etc/passwd\n"`) {
		t.Errorf("%v", err)
	}
	m, err := qed.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), qed.Options{AllowParent: true})
	if err != nil {
		t.Fatal(err)
	}
	if m.BackingFile != d.backing || m.BackingFormat != "" || !slices.Equal(m.Features, []string{"backing file"}) {
		t.Errorf("%q, %q, %q", m.BackingFile, m.BackingFormat, m.Features)
	}
	if _, err := m.Open(nil); err == nil {
		t.Error("it opens without its parent")
	}
	if _, _, err := open(small().write(), memory{1}); err == nil {
		t.Error("a parent that is not needed is accepted")
	}
	// The bit alone is no backing file.
	f = put64(16, 5)(small().write())
	if _, m, err = open(f, nil); err != nil || m.BackingFile != "" {
		t.Errorf("%v, %v", m, err)
	}
}

// wrong is a parent that does not keep the rules.
type wrong struct {
	memory
	e   image.Extent
	err error
}

func (w wrong) Extent(int64, int64) (image.Extent, error) { return w.e, w.err }
func (w wrong) ReadAt(p []byte, off int64) (int, error)   { return 0, w.err }

func TestWrongParent(t *testing.T) {
	d := small()
	d.backing = "parent"
	size := make(memory, 1<<20)
	for _, w := range []wrong{
		{size, image.Extent{Start: 0, Length: 4096}, nil},
		{size, image.Extent{Start: 12288, Length: 0}, nil},
		{size, image.Extent{Start: 12288, Length: 1 << 30}, nil},
		{size, image.Extent{Start: 12288, Length: 4096}, errBroken},
	} {
		img, _, err := open(d.write(), w)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := img.Extent(12288, 4096); err == nil || !errors.Is(err, w.err) && w.err != nil {
			t.Errorf("%+v, %v", e, err)
		}
		want := w.err
		if want == nil {
			want = io.ErrUnexpectedEOF
		}
		if n, err := img.ReadAt(make([]byte, 4096), 12288); !errors.Is(err, want) {
			t.Errorf("%d, %v, want %v", n, err, want)
		}
	}
}

func TestVirtualSizeLimit(t *testing.T) {
	f := small().write()
	for limit, ok := range map[int64]bool{3<<20 - 1: false, 3 << 20: true, 0: true} {
		_, err := qed.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)),
			qed.Options{MaxVirtualSize: limit})
		if (err == nil) != ok {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

func TestStopsWhenCancelled(t *testing.T) {
	f := small().write()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := qed.Preflight(ctx, bytes.NewReader(f), int64(len(f)), qed.Options{})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// broken fails to read what is at an offset or behind it.
type broken struct {
	io.ReaderAt
	at int64
}

var errBroken = errors.New("broken")

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > b.at {
		return 0, errBroken
	}
	return b.ReaderAt.ReadAt(p, off)
}

func TestPassesReadErrors(t *testing.T) {
	d := small()
	d.backing = "parent"
	f := d.write()
	for _, at := range []int64{60, 66, smallL1 + 4, smallL2 + 100} {
		_, err := qed.Preflight(context.Background(), broken{bytes.NewReader(f), at}, int64(len(f)),
			qed.Options{AllowParent: true})
		if !errors.Is(err, errBroken) {
			t.Errorf("broken at %d: %v", at, err)
		}
	}
}

// The file can be changed after it was checked. Then reading fails, and nothing worse happens.
func TestFileChanges(t *testing.T) {
	f := small().write()
	for name, other := range map[string][]byte{
		"shorter":          f[:smallData+100],
		"without tables":   f[:smallL1],
		"other L1 entries": put64(smallL1, 1<<63)(bytes.Clone(f)),
		"other L2 entries": put64(smallL2, 1<<64-4096)(bytes.Clone(f)),
	} {
		m, err := qed.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), qed.Options{})
		if err != nil {
			t.Fatal(err)
		}
		qed.SetReader(m, bytes.NewReader(other))
		img, err := m.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		var bad *qed.Error
		if n, err := img.ReadAt(make([]byte, 8<<10), 0); !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &bad) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}

func TestBadArguments(t *testing.T) {
	img, _, err := open(small().write(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := img.ReadAt(make([]byte, 1), -1); n != 0 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, img.Size() + 1}, {img.Size() + 1, 0}, {1, 1<<63 - 1}} {
		if e, err := img.Extent(r[0], r[1]); err == nil {
			t.Errorf("%d: %+v", r, e)
		}
	}
	for _, at := range []int64{0, 5, img.Size()} {
		if e, err := img.Extent(at, 0); err != nil || e.Length != 0 || e.Start != at {
			t.Errorf("%+v, %v", e, err)
		}
	}
}

// counter counts reads.
type counter struct {
	io.ReaderAt
	n int
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	c.n++
	return c.ReaderAt.ReadAt(p, off)
}

// Clusters that lie side by side are read at once.
func TestReadsInBatches(t *testing.T) {
	d := full(1 << 20)
	f := d.write()
	m, err := qed.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), qed.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{ReaderAt: bytes.NewReader(f)}
	qed.SetReader(m, c)
	img, err := m.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.ReadAt(make([]byte, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	if c.n != 3 {
		t.Errorf("%d reads, want one of each table and one of the data", c.n)
	}
}

// full is a disk with clusters of 4 KiB that are all there and in order.
func full(size int64) *disk {
	d := &disk{size: size, clusterSize: 4 << 10, tableSize: 4, headerSize: 1, data: map[int64][]byte{}}
	for i := range d.count() {
		d.data[i] = []byte{1}
		d.order = append(d.order, i)
	}
	return d
}

func BenchmarkRead(b *testing.B) {
	img, _, err := open(full(64<<20).write(), nil)
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 4<<20)
	b.SetBytes(img.Size())
	for b.Loop() {
		for off := int64(0); off < img.Size(); off += int64(len(p)) {
			if _, err := img.ReadAt(p, off); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// The set of what is used in the file keeps numbers apart that are far from each other.
func TestSet(t *testing.T) {
	const page = 4096 * 8
	got := qed.Add(0, page, 63, 64, 0, page+1, page, 5*page, 1, page+63, page-1, 5*page)
	want := []bool{true, true, true, true, false, true, false, true, true, true, true, false}
	if !slices.Equal(got, want) {
		t.Errorf("%t, want %t", got, want)
	}
}

// What is mapped behind the end of the disk is nobody's data, so it does not matter.
func TestIgnoresWhatIsBehindTheEnd(t *testing.T) {
	// The disk ends between these two.
	for pos, ok := range map[int]bool{8192 + 255*8: false, 8192 + 256*8: true} {
		_, _, err := open(put64(pos, 1<<40)(small().write()), nil)
		if (err == nil) != ok {
			t.Errorf("entry at %d: %v", pos, err)
		}
	}
}

// Only the second of three L2 tables exists, and only its first entry.
func TestRangesWithoutTable(t *testing.T) {
	const span, cluster = 2 << 20, 4096
	d := &disk{size: 6 << 20, clusterSize: 4 << 10, tableSize: 1, headerSize: 1, order: []int64{512}, data: map[int64][]byte{512: {1}}}
	img, _, err := open(d.write(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for start, want := range map[int64]image.Extent{
		0:                  {Length: span, Zero: true},
		cluster + 5:        {Length: span - cluster - 5, Zero: true},
		span:               {Length: cluster, Allocated: true},
		span + 5:           {Length: cluster - 5, Allocated: true},
		span + cluster:     {Length: 2*span - cluster, Zero: true},
		2*span + cluster/2: {Length: span - cluster/2, Zero: true},
	} {
		want.Start = start
		if e, err := img.Extent(start, img.Size()-start); err != nil || e != want {
			t.Errorf("%+v, %v, want %+v", e, err, want)
		}
		p := make([]byte, img.Size()-start)
		if _, err := img.ReadAt(p, start); err != nil || !bytes.Equal(p, d.content(nil)[start:]) {
			t.Errorf("what is behind %d differs: %v", start, err)
		}
	}
}
