// SPDX-License-Identifier: Apache-2.0

package qcow1_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

	"github.com/imsprep/imsprep/convert/qcow1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(f []byte, parent image.Image) (image.Image, *qcow1.Metadata, error) {
	m, err := qcow1.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)),
		qcow1.Options{AllowParent: parent != nil})
	if err != nil {
		return nil, nil, err
	}
	img, err := m.Open(parent)
	return img, m, err
}

// drawDisk draws an image of any variant and the bytes of its parent, nil if it has none.
func drawDisk(t *rapid.T) (*disk, memory) {
	d := &disk{
		clusterBits: rapid.SampledFrom([]uint{9, 10, 12, 12, 16}).Draw(t, "cluster bits"),
		l2Bits:      rapid.SampledFrom([]uint{6, 6, 9, 13}).Draw(t, "L2 bits"),
		data:        map[int64][]byte{},
		packed:      map[int64]bool{},
		unfinished:  rapid.Bool().Draw(t, "unfinished"),
		packAlign:   rapid.SampledFrom([]int64{1, 512}).Draw(t, "pack align"),
		tablesLast:  rapid.Bool().Draw(t, "tables last"),
	}
	most := max(2, min(300, 3<<20/d.cluster()))
	d.size = rapid.Int64Range(2, most*d.cluster()).Draw(t, "size")
	if rapid.Bool().Draw(t, "whole sectors") {
		d.size = (d.size + 511) / 512 * 512
	}
	if rapid.IntRange(0, 3).Draw(t, "unaligned") == 0 {
		d.shift = 512 * rapid.Int64Range(0, d.cluster()/512-1).Draw(t, "shift")
	}
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	noise := func(n int64) []byte {
		p := make([]byte, n)
		for i := int64(0); i < n; i += 128 {
			if rnd.IntN(4) > 0 {
				p[i+rnd.Int64N(min(128, n-i))] = byte(rnd.Uint32())
			}
		}
		return p
	}
	density := rapid.SampledFrom([]int{0, 2, 20, 100, 100}).Draw(t, "density")
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
		if kind == 0 {
			continue
		}
		d.data[int64(j)] = noise(d.cluster())
		d.packed[int64(j)] = kind == 1
		d.order = append(d.order, int64(j))
	}
	if _, ok := d.last(); ok && rapid.IntRange(0, 2).Draw(t, "cut") == 0 {
		d.missing = rapid.Int64Range(1, d.cluster()-1).Draw(t, "missing")
	}
	if rapid.IntRange(0, 2).Draw(t, "backing") == 0 {
		d.backing = "parent"
		return d, memory(noise(rapid.Int64Range(1, 2*d.size).Draw(t, "parent size")))
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
		if img.Size() != int64(len(want)) || meta.VirtualSize != img.Size() || img.Type() != qcow1.Type {
			t.Fatalf("size %d, %d, type %s, want %d", img.Size(), meta.VirtualSize, img.Type(), len(want))
		}
		if warn := d.size%512 != 0 || d.missing > 0; (len(meta.Warnings) > 0) != warn {
			t.Fatalf("warnings %q", meta.Warnings)
		}
		packed := int64(0)
		for i := range d.data {
			if d.packed[i] {
				packed++
			}
		}
		if meta.CompressedClusters != packed || (meta.Compression == "zlib") != (packed > 0) {
			t.Fatalf("%d compressed clusters, %q, want %d", meta.CompressedClusters, meta.Compression, packed)
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
			p := make([]byte, rapid.IntRange(0, int(3*d.cluster())).Draw(t, "length"))
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
func checkExtents(t *rapid.T, d *disk, img image.Image, want []byte, meta *qcow1.Metadata, parent memory) {
	var last image.Extent
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
	mapped := int64(0)
	for i := range d.count() {
		off := i * d.cluster()
		n := min(d.cluster(), d.size-off)
		e, err := img.Extent(off, n)
		if err != nil {
			t.Fatal(err)
		}
		expect := image.Extent{Start: off, Length: n, Zero: true}
		if _, ok := d.data[i]; ok {
			expect = image.Extent{Start: off, Length: n, Allocated: true, Compressed: d.packed[i]}
			mapped += n
		} else if off < parent.Size() {
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
	d := mixed(32<<20, 2)
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
			for range 100 {
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

// mixed is a disk with clusters of 4 KiB that are all there, one in every plain ones not
// compressed, in runs of 100.
func mixed(size int64, every int64) *disk {
	d := &disk{size: size, clusterBits: 12, l2Bits: 9, packAlign: 512,
		data: map[int64][]byte{}, packed: map[int64]bool{}}
	for i := range d.count() {
		d.data[i] = bytes.Repeat([]byte{byte(i), byte(i >> 8), 1, 7}, 700)
		d.packed[i] = i/100%every != 0
		d.order = append(d.order, i)
	}
	return d
}

// small is a disk with two L2 tables. In the file: the header, the L1 table of three entries at 48,
// the L2 tables of 512 bytes at 512 and 1024, the plain clusters 64, 0 and 1 of the disk from 1536
// on, and the compressed cluster 2 behind them.
func small() *disk {
	return &disk{size: 80 << 10, clusterBits: 9, l2Bits: 6, order: []int64{64, 0, 1, 2},
		data:   map[int64][]byte{64: {1}, 0: {2}, 1: bytes.Repeat([]byte{3}, 512), 2: {4}},
		packed: map[int64]bool{2: true}}
}

// smallL2 is the second L2 table, which maps the disk's start.
const smallL1, smallL2, smallData, smallPacked = 48, 1024, 1536, 3072

// put8, put32 and put64 change a field.
func put8(at int, v byte) func(f []byte) []byte {
	return func(f []byte) []byte { f[at] = v; return f }
}

func put32(at int, v uint32) func(f []byte) []byte {
	return func(f []byte) []byte { be.PutUint32(f[at:], v); return f }
}

func put64(at int, v uint64) func(f []byte) []byte {
	return func(f []byte) []byte { be.PutUint64(f[at:], v); return f }
}

// all makes several changes.
func all(changes ...func(f []byte) []byte) func(f []byte) []byte {
	return func(f []byte) []byte {
		for _, c := range changes {
			f = c(f)
		}
		return f
	}
}

func cut(n int) func(f []byte) []byte { return func(f []byte) []byte { return f[:n] } }

// packedEntry is the L2 entry of a compressed cluster with clusters of 512 bytes.
func packedEntry(host, length uint64) uint64 { return 1<<63 | length<<54 | host }

func TestRefuses(t *testing.T) {
	whole := len(small().write())
	end := uint64(whole)
	length := end - smallPacked
	for name, c := range map[string]struct {
		change func(f []byte) []byte
		reason string // a part of it
	}{
		"empty":                    {cut(0), "too short"},
		"header cut":               {cut(47), "too short"},
		"magic":                    {put32(0, 0x514649FA), "magic"},
		"version 0":                {put32(4, 0), "version 0"},
		"version 2":                {put32(4, 2), "version 2"},
		"size 0":                   {put64(24, 0), "virtual size 0"},
		"size 1":                   {put64(24, 1), "virtual size 1"},
		"size 0xEE..":              {put64(24, 0xEEEEEEEEEEEEEEEE), "virtual size"},
		"size 0x7FFF..":            {put64(24, 0x7FFFFFFFFFFFFFFF), "virtual size"},
		"size 2^63-512":            {put64(24, 1<<63-512), "above the limit of 4194304"},
		"size above L1 limit":      {put64(24, 128<<30+1), "L1 table of 4194305 entries"},
		"size above L1 in file":    {put64(24, 128<<30), "the L1 table of 33554432 bytes at 48 ends outside"},
		"size grown over L2":       {put64(24, 60*32<<10), "overlaps the L1 table"},
		"cluster bits 255":         {put8(32, 255), "cluster bits 255"},
		"cluster bits 31":          {put8(32, 31), "cluster bits 31"},
		"cluster bits 8":           {put8(32, 8), "cluster bits 8"},
		"cluster bits 17":          {put8(32, 17), "cluster bits 17"},
		"cluster bits 0":           {put8(32, 0), "cluster bits 0"},
		"L2 bits 255":              {put8(33, 255), "L2 bits 255"},
		"L2 bits 5":                {put8(33, 5), "L2 bits 5"},
		"L2 bits 14":               {put8(33, 14), "L2 bits 14"},
		"L2 bits 27":               {put8(33, 27), "L2 bits 27"},
		"L2 bits 13":               {put8(33, 13), "ends outside"},
		"encrypted":                {put32(36, 1), "encrypted (AES"},
		"crypt method 2":           {put32(36, 2), "crypt method 2"},
		"L1 offset 0":              {put64(40, 0), "lies in the header"},
		"L1 unaligned":             {put64(40, 49), "L1 table offset 49"},
		"L1 at the end":            {put64(40, end/8*8), "ends outside"},
		"L1 at 2^64-8":             {put64(40, 1<<64-8), "ends outside"},
		"L2 in the L1":             {all(put64(40, smallL2), put64(smallL2, smallL2)), "overlaps the L1 table"},
		"L2 unaligned":             {put64(smallL1, smallL2+8), "L1 entry 0 at 48: 0x408 is not a multiple"},
		"L2 at the end":            {put64(smallL1, (end+511)/512*512), "ends outside"},
		"L2 at 2^63":               {put64(smallL1, 1<<63), "ends outside"},
		"L2 table shared":          {put64(smallL1+8, smallL2), "the L2 tables at 1024 and 1024 overlap"},
		"L2 table is data":         {put64(smallL1+8, smallData+512), "overlaps an L2 table"},
		"data unaligned":           {put64(smallL2, smallData+1), "L2 entry at 1024: the data at 1537"},
		"data at the end":          {put64(smallL2, (end+511)/512*512), "outside"},
		"data at 2^62":             {put64(smallL2, 1<<62), "outside"},
		"data in an L2 table":      {put64(smallL2, 512), "overlaps an L2 table"},
		"data in its L2 table":     {put64(smallL2, smallL2), "overlaps an L2 table"},
		"data twice":               {put64(smallL2, smallData), "overlaps another cluster at 1536"},
		"data is compressed data":  {put64(smallL2, smallPacked), "overlaps another cluster at 3072"},
		"compressed length 0":      {put64(smallL2+16, packedEntry(smallPacked, 0)), "of no bytes"},
		"compressed too long":      {put64(smallL2+16, packedEntry(smallPacked, length+1)), "ends outside"},
		"compressed at the end":    {put64(smallL2+16, packedEntry(end, 1)), "ends outside"},
		"compressed far":           {put64(smallL2+16, packedEntry(1<<53, 1)), "ends outside"},
		"compressed in the header": {put64(smallL2+16, packedEntry(47, 1)), "overlaps the header"},
		"compressed in the L1":     {put64(smallL2+16, packedEntry(71, 1)), "overlaps the L1 table"},
		"compressed in an L2":      {put64(smallL2+16, packedEntry(smallL2+511, 1)), "overlaps an L2 table"},
		"compressed over an L2":    {put64(smallL2+16, packedEntry(500, 13)), "overlaps an L2 table"},
		"compressed in data":       {put64(smallL2+16, packedEntry(smallPacked-1, 2)), "overlaps another cluster at 2560"},
		"data in compressed data":  {put64(smallL2, packedEntry(smallData+1024, 5)), "L2 entry at 1032: the cluster at 2560 overlaps"},
		"truncated":                {cut(whole - 1), "truncated"},
		"truncated in the data":    {cut(smallData + 511), "truncated"},
		"truncated in the L2":      {cut(smallL2 + 100), "truncated"},
		"truncated in the L1":      {cut(smallL1 + 20), "truncated"},
		"backing size 0xFFFFFFFF":  {all(put64(8, 48), put32(16, 0xFFFFFFFF)), "4294967295 bytes at offset 16"},
		"backing size 0x7FFFFFFF":  {all(put64(8, 48), put32(16, 0x7FFFFFFF)), "2147483647 bytes at offset 16"},
		"no backing, size 1024":    {put32(16, 1024), "1024 bytes at offset 16"},
		"backing at 2^64-1":        {all(put64(8, 1<<64-1), put32(16, 5)), "outside of the file"},
		"backing at the end":       {all(put64(8, end-4), put32(16, 5)), "outside of the file"},
		"backing in the header":    {all(put64(8, 40), put32(16, 5)), "overlaps the header"},
		"backing in the L1":        {all(put64(8, 60), put32(16, 5)), "overlaps the L1 table"},
		"backing file":             {all(put64(8, 80), put32(16, 5)), "it has a backing file"},
	} {
		t.Run(name, func(t *testing.T) {
			f := c.change(small().write())
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _, err := open(f, nil)
			runtime.ReadMemStats(&after)
			var bad *qcow1.Error
			if !errors.As(err, &bad) {
				t.Fatalf("got %v, want it refused", err)
			}
			reason, remedy := bad.Refusal()
			if !strings.Contains(reason, c.reason) {
				t.Errorf("reason %q, want %q in it", reason, c.reason)
			}
			if (name == "backing file" || name == "encrypted") != strings.Contains(remedy, "qemu-img convert") {
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

// A compressed cluster that cannot be decoded is found when it is read, and only that fails.
func TestDamagedCluster(t *testing.T) {
	whole := small().write()
	for name, change := range map[string]func(f []byte) []byte{
		"garbage":           put8(smallPacked, 0xFF),
		"too short":         put64(smallL2+16, packedEntry(smallPacked, 4)),
		"one byte":          put64(smallL2+16, packedEntry(smallPacked, 1)),
		"ends before":       put32(smallPacked, 0x03000000), // an empty final block
		"endless no output": func(f []byte) []byte { clear(f[smallPacked:]); return f },
	} {
		t.Run(name, func(t *testing.T) {
			img, _, err := open(change(bytes.Clone(whole)), nil)
			if err != nil {
				t.Fatal(err)
			}
			var bad *qcow1.Error
			for _, r := range [][2]int64{{1024, 512}, {0, 4096}, {1535, 1}} {
				if n, err := img.ReadAt(make([]byte, r[1]), r[0]); !errors.As(err, &bad) ||
					!strings.Contains(err.Error(), fmt.Sprintf("at %d", smallPacked)) || int64(n) > 1024 {
					t.Errorf("read at %d: %d, %v", r[0], n, err)
				}
			}
			if n, err := img.ReadAt(make([]byte, 1024), 0); n != 1024 || err != nil {
				t.Errorf("read what is before: %d, %v", n, err)
			}
		})
	}
}

// TestSharedData builds an amplifier: many entries for the same data.
func TestSharedData(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	d := &disk{size: 4 << 20, clusterBits: 16, l2Bits: 6, order: []int64{0},
		data: map[int64][]byte{0: make([]byte, 1<<16)}, packed: map[int64]bool{0: true}}
	for i := 0; i < 1<<16; i += 8 {
		d.data[0][i] = byte(rnd.Uint32())
	}
	f := d.write()
	if _, _, err := open(f, nil); err != nil {
		t.Fatal(err)
	}
	entry := be.Uint64(f[512:])
	for i := range 64 {
		be.PutUint64(f[512+i*8:], entry)
	}
	var bad *qcow1.Error
	if _, _, err := open(f, nil); !errors.As(err, &bad) || !strings.Contains(bad.Reason, "are shared") {
		t.Errorf("%v", err)
	}
}

func TestBackingFile(t *testing.T) {
	d := small()
	d.backing = "\x1b[31m/etc/passwd\n"
	f := d.write()
	_, _, err := open(f, nil)
	var bad *qcow1.Error
	if !errors.As(err, &bad) || !strings.Contains(bad.Reason, `"\x1b[31m/etc/passwd\n"`) {
		t.Errorf("%v", err)
	}
	m, err := qcow1.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), qcow1.Options{AllowParent: true})
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
	// Half of what names a backing file is none.
	for _, change := range []func(f []byte) []byte{put64(8, 48), put32(16, 5)} {
		if _, m, err = open(change(small().write()), nil); err != nil || m.BackingFile != "" {
			t.Errorf("%v, %v", m, err)
		}
	}
	// The name is part of the file: data over it is refused.
	at := int(be.Uint64(f[be.Uint64(f[40:]):])) // the first L2 table
	be.PutUint64(f[at:], packedEntry(50, 3))
	if _, err := qcow1.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)),
		qcow1.Options{AllowParent: true}); !errors.As(err, &bad) || !strings.Contains(bad.Reason, "overlaps the backing file name") {
		t.Errorf("%v", err)
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

var errBroken = errors.New("broken")

func TestWrongParent(t *testing.T) {
	d := small()
	d.backing = "parent"
	size := make(memory, 1<<20)
	for _, w := range []wrong{
		{size, image.Extent{Start: 0, Length: 512}, nil},
		{size, image.Extent{Start: 2048, Length: 0}, nil},
		{size, image.Extent{Start: 2048, Length: 1 << 30}, nil},
		{size, image.Extent{Start: 2048, Length: 512}, errBroken},
	} {
		img, _, err := open(d.write(), w)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := img.Extent(2048, 512); err == nil || !errors.Is(err, w.err) && w.err != nil {
			t.Errorf("%+v, %v", e, err)
		}
		want := w.err
		if want == nil {
			want = io.ErrUnexpectedEOF
		}
		if n, err := img.ReadAt(make([]byte, 512), 2048); !errors.Is(err, want) {
			t.Errorf("%d, %v, want %v", n, err, want)
		}
	}
}

func TestVirtualSizeLimit(t *testing.T) {
	f := small().write()
	for limit, ok := range map[int64]bool{80<<10 - 1: false, 80 << 10: true, 0: true} {
		_, err := qcow1.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)),
			qcow1.Options{MaxVirtualSize: limit})
		if (err == nil) != ok {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

func TestStopsWhenCancelled(t *testing.T) {
	f := small().write()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := qcow1.Preflight(ctx, bytes.NewReader(f), int64(len(f)), qcow1.Options{})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// broken fails to read what is at an offset or behind it.
type broken struct {
	io.ReaderAt
	at int64
}

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
	for _, at := range []int64{40, 50, 70, 600} {
		_, err := qcow1.Preflight(context.Background(), broken{bytes.NewReader(f), at}, int64(len(f)),
			qcow1.Options{AllowParent: true})
		if !errors.Is(err, errBroken) {
			t.Errorf("broken at %d: %v", at, err)
		}
	}
}

// The file can be changed after it was checked. Then reading fails, and nothing worse happens.
func TestFileChanges(t *testing.T) {
	f := small().write()
	for name, other := range map[string][]byte{
		"shorter":           f[:smallData+100],
		"compressed cut":    f[:len(f)-1],
		"without tables":    f[:60],
		"other L1 entries":  put64(smallL1, 1<<63)(bytes.Clone(f)),
		"other L2 entries":  put64(smallL2, 1<<63-512)(bytes.Clone(f)),
		"other compression": put64(smallL2, 1<<64-1)(bytes.Clone(f)),
		"of no bytes":       put64(smallL2, packedEntry(1, 0))(bytes.Clone(f)),
	} {
		m, err := qcow1.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), qcow1.Options{})
		if err != nil {
			t.Fatal(err)
		}
		qcow1.SetReader(m, bytes.NewReader(other))
		img, err := m.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		var bad *qcow1.Error
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

// Clusters that lie side by side are read at once, compressed or not.
func TestReadsInBatches(t *testing.T) {
	for _, align := range []int64{1, 512} {
		d := mixed(800<<10, 2) // 100 plain and 100 compressed clusters
		d.packAlign = align
		f := d.write()
		m, err := qcow1.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), qcow1.Options{})
		if err != nil {
			t.Fatal(err)
		}
		c := &counter{ReaderAt: bytes.NewReader(f)}
		qcow1.SetReader(m, c)
		img, err := m.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := img.ReadAt(make([]byte, 800<<10), 0); err != nil {
			t.Fatal(err)
		}
		if c.n != 4 {
			t.Errorf("%d reads, want one of each table and one of each kind of data", c.n)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	for name, every := range map[string]int64{"plain": 1, "compressed": 1 << 40} {
		b.Run(name, func(b *testing.B) {
			d := mixed(64<<20, every)
			for i := range d.packed {
				d.packed[i] = name == "compressed"
			}
			img, _, err := open(d.write(), nil)
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
		})
	}
}

// The set of what is used in the file keeps numbers apart that are far from each other.
func TestSet(t *testing.T) {
	const page = 4096 * 8
	got := qcow1.Add(0, page, 63, 64, 0, page+1, page, 5*page, 1, page+63, page-1, 5*page)
	want := []bool{true, true, true, true, false, true, false, true, true, true, true, false}
	if !slices.Equal(got, want) {
		t.Errorf("%t, want %t", got, want)
	}
}

// What is mapped behind the end of the disk is nobody's data, so it does not matter.
func TestIgnoresWhatIsBehindTheEnd(t *testing.T) {
	d := small()
	d.size = 50 << 10 // 100 clusters, of which the second L2 table maps 36
	for pos, ok := range map[int]bool{512 + 35*8: false, 512 + 36*8: true} {
		_, _, err := open(put64(pos, 1<<40)(d.write()), nil)
		if (err == nil) != ok {
			t.Errorf("entry at %d: %v", pos, err)
		}
	}
}

// Only the second of three L2 tables exists, and only its first entry.
func TestRangesWithoutTable(t *testing.T) {
	const span, cluster = 32 << 10, 512
	d := &disk{size: 96 << 10, clusterBits: 9, l2Bits: 6, order: []int64{64}, data: map[int64][]byte{64: {1}}}
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
