// SPDX-License-Identifier: Apache-2.0

package vdi_test

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

	"github.com/imsprep/imsprep/convert/vdi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(f []byte) (image.Image, *vdi.Metadata, error) {
	m, err := vdi.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), vdi.Options{})
	if err != nil {
		return nil, nil, err
	}
	img, err := m.Open(nil)
	return img, m, err
}

// drawDisk draws an image of any variant.
func drawDisk(t *rapid.T) *disk {
	d := &disk{
		blockSize: rapid.SampledFrom([]int64{4 << 10, 4 << 10, 16 << 10, 1 << 20}).Draw(t, "block"),
		static:    rapid.Bool().Draw(t, "static"),
		blocks:    map[int64][]byte{},
		discarded: map[int64]bool{},
		mapOffset: 512 * rapid.Int64Range(0, 9).Draw(t, "map"),
		gap:       512 * rapid.Int64Range(0, 9).Draw(t, "gap"),
		spare:     rapid.Int64Range(0, 200).Draw(t, "spare"),
	}
	d.spareData = d.spare > 0 && rapid.Bool().Draw(t, "data in a spare block")
	d.size = rapid.Int64Range(1, max(3, (400<<10)/d.blockSize)*d.blockSize).Draw(t, "size")
	if rapid.Bool().Draw(t, "whole sectors") {
		d.size = (d.size + 511) / 512 * 512
	}
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	density := rapid.IntRange(0, 4).Draw(t, "density")
	ascending := rapid.Bool().Draw(t, "ascending")
	for i, j := range rnd.Perm(int(d.count())) {
		if ascending {
			j = i
		}
		if d.static || rnd.IntN(4) < density {
			p := make([]byte, d.blockSize)
			for k := 0; k < len(p); k += 512 {
				p[k+rnd.IntN(512)] = byte(rnd.Uint32())
			}
			d.blocks[int64(j)] = p
			d.order = append(d.order, int64(j))
		} else if rnd.IntN(2) == 0 {
			d.discarded[int64(j)] = true
		}
	}
	if n := len(d.order); n > 0 && d.order[n-1] < d.count()-1 && rapid.IntRange(0, 3).Draw(t, "cut") == 0 {
		d.missing = rapid.Int64Range(1, d.blockSize-1).Draw(t, "missing")
	}
	return d
}

func TestReadsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDisk(t)
		want := d.content()
		img, meta, err := open(d.write())
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		if img.Size() != int64(len(want)) || meta.VirtualSize != img.Size() || img.Type() != vdi.Type {
			t.Fatalf("size %d, %d, type %s, want %d", img.Size(), meta.VirtualSize, img.Type(), len(want))
		}
		if (len(meta.Warnings) > 0) != (d.missing > 0 || d.size%512 != 0) {
			t.Fatalf("warnings %q", meta.Warnings)
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
			p := make([]byte, rapid.IntRange(0, int(2*d.blockSize)).Draw(t, "length"))
			n, err := img.ReadAt(p, off)
			left := min(int64(len(p)), img.Size()-off)
			if int64(n) != left || (n < len(p) || off == img.Size()) != (err == io.EOF) || err != nil && err != io.EOF {
				t.Fatalf("read of %d at %d: %d, %v", len(p), off, n, err)
			}
			if !bytes.Equal(p[:n], want[off:off+left]) {
				t.Fatalf("the %d bytes at %d differ", n, off)
			}
		}
		checkExtents(t, img, want, meta.MappedBytes)
		for off := int64(0); off < img.Size(); off += d.blockSize {
			e, err := img.Extent(off, min(d.blockSize, img.Size()-off))
			_, data := d.blocks[off/d.blockSize]
			alike := e.Allocated == (data || d.discarded[off/d.blockSize]) && e.Zero == !data && !e.Compressed
			if err != nil || !alike || e.Length != min(d.blockSize, img.Size()-off) {
				t.Fatalf("extent of block %d: %+v, %v", off/d.blockSize, e, err)
			}
		}
	})
}

// checkExtents checks that the extents tile the disk, that those that are zero read as zeros, that
// neighbours differ, and that those with data have mapped bytes in all.
func checkExtents(t *rapid.T, img image.Image, want []byte, mapped int64) {
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
		if !e.Zero {
			mapped -= e.Length
		}
		off, last = off+e.Length, e
	}
	if mapped != 0 {
		t.Fatalf("the extents lack %d mapped bytes", mapped)
	}
}

func TestReadsConcurrently(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	d := &disk{size: 64 << 20, blockSize: 4 << 10, blocks: map[int64][]byte{}}
	for _, i := range rnd.Perm(int(d.count())) {
		if i%3 > 0 {
			d.blocks[int64(i)] = []byte{byte(i), byte(i >> 8), 1}
			d.order = append(d.order, int64(i))
		}
	}
	want := d.content()
	img, _, err := open(d.write())
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

// small is a disk of four blocks, of which three are in the file.
func small() *disk {
	return &disk{size: 16 << 10, blockSize: 4 << 10, order: []int64{2, 0, 1}, spare: 1,
		blocks: map[int64][]byte{0: {1}, 1: {2}, 2: bytes.Repeat([]byte{3}, 4<<10)}}
}

// put32 and put64 change a field.
func put32(at int, v uint32) func(f []byte) []byte {
	return func(f []byte) []byte { le.PutUint32(f[at:], v); return f }
}

func put64(at int, v uint64) func(f []byte) []byte {
	return func(f []byte) []byte { le.PutUint64(f[at:], v); return f }
}

func TestRefuses(t *testing.T) {
	const table = 512
	const data = 1024 // of small disks
	for name, c := range map[string]struct {
		change func(f []byte) []byte
		reason string // a part of it
	}{
		"empty":                     {func(f []byte) []byte { return nil }, "too short"},
		"header cut":                {func(f []byte) []byte { return f[:511] }, "too short"},
		"signature":                 {put32(64, 0xBEDA107E), "signature"},
		"version 1.0":               {put32(68, 0x00010000), "version 1.0"},
		"version 0.1":               {put32(68, 1), "version 0.1"},
		"type 0":                    {put32(76, 0), "image type 0"},
		"type 3":                    {put32(76, 3), "undo disk"},
		"type 4":                    {put32(76, 4), "differencing"},
		"type 5":                    {put32(76, 5), "image type 5"},
		"parent UUID":               {put32(424, 1), "parent 00000001-0000"},
		"parent UUID, last byte":    {put32(436, 1<<24), "differencing"},
		"parent modification UUID":  {put32(452, 1), "differencing"},
		"sector size 0":             {put32(360, 0), "sector size 0"},
		"sector size 4096":          {put32(360, 4096), "sector size 4096"},
		"size 0":                    {put64(368, 0), "virtual size 0"},
		"size above the map":        {put64(368, 20<<10+1), "more than 5 blocks"},
		"size 2^63":                 {put64(368, 1<<63), "virtual size"},
		"size 2^63-1":               {put64(368, 1<<63-1), "virtual size"},
		"size 2^63-512":             {put64(368, 1<<63-512), "virtual size"},
		"size 2^64-512":             {put64(368, 1<<64-512), "virtual size"},
		"block size 0":              {put32(376, 0), "block size 0"},
		"block size 3":              {put32(376, 3), "block size 3"},
		"block size 2048":           {put32(376, 2048), "block size 2048"},
		"block size 3 << 20":        {put32(376, 3<<20), "block size 3145728"},
		"block size 128 MiB":        {put32(376, 128<<20), "block size"},
		"block size 2^31":           {put32(376, 1<<31), "block size"},
		"extra bytes":               {put32(380, 512), "512 extra bytes"},
		"blocks 0":                  {put32(384, 0), "more than 0 blocks"},
		"blocks too few":            {put32(384, 3), "more than 3 blocks"},
		"blocks 0xFFFFFFFF":         {put32(384, 0xFFFFFFFF), "above the limit"},
		"blocks 0x1FFFFF81":         {put32(384, 0x1FFFFF81), "above the limit"},
		"blocks 0x1FFFFF80":         {put32(384, 0x1FFFFF80), "outside of the file"},
		"map in the header":         {put32(340, 0), "block map offset 0"},
		"map unaligned":             {put32(340, 513), "block map offset 513"},
		"map beyond the end":        {put32(340, 1<<20), "outside of the file"},
		"map at 2^32-512":           {put32(340, 1<<32-512), "outside of the file"},
		"map in the data":           {put32(340, data), "before the end of the block map"},
		"data in the header":        {put32(344, 0), "data offset 0"},
		"data unaligned":            {put32(344, data+1), "data offset 1025"},
		"data in the map":           {put32(344, table), "before the end of the block map"},
		"data beyond the end":       {put32(344, 1<<20), "outside of the file"},
		"entry 0xFFFFFFFD":          {put32(table, 0xFFFFFFFD), "outside of the file"},
		"entry at the end":          {put32(table, 3), "block map entry 0 at 512: the block at 13312 is outside"},
		"two equal entries":         {put32(table+4, 1), "block map entry 1 at 516: the block at 5120 is also"},
		"equal to a spare entry":    {put32(table+16, 0), "block map entry 4 at 528"},
		"spare entry out of file":   {put32(table+16, 99), "block map entry 4"},
		"truncated by a block":      {func(f []byte) []byte { return f[:len(f)-4<<10] }, "truncated"},
		"truncated inside the map":  {func(f []byte) []byte { return f[:table+8] }, "truncated"},
		"truncated before the data": {func(f []byte) []byte { return f[:data] }, "truncated"},
	} {
		t.Run(name, func(t *testing.T) {
			f := c.change(small().write())
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _, err := open(f)
			runtime.ReadMemStats(&after)
			var bad *vdi.Error
			if !errors.As(err, &bad) {
				t.Fatalf("got %v, want it refused", err)
			}
			reason, remedy := bad.Refusal()
			if !strings.Contains(reason, c.reason) {
				t.Errorf("reason %q, want %q in it", reason, c.reason)
			}
			if strings.Contains(reason, "differencing") != strings.Contains(remedy, "VBoxManage clonemedium") &&
				!strings.Contains(reason, "version") && !strings.Contains(reason, "undo") {
				t.Errorf("reason %q, remedy %q", reason, remedy)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
	if _, _, err := open(small().write()); err != nil {
		t.Errorf("the unchanged image: %v", err)
	}
}

func TestMetadata(t *testing.T) {
	f := small().write()
	copy(f, "<<< Evil\x1b[31m\xff\x00 hidden")
	_, m, err := open(f)
	if err != nil {
		t.Fatal(err)
	}
	if m.Creator != "Evil?[31m?" || m.ID != "04030201-0605-0807-090a-0b0c0d0e0f10" || m.Variant != vdi.VariantDynamic ||
		m.BlockSize != 4<<10 || m.SectorSize != 512 || m.MappedBytes != 12<<10 || m.TableBytes() != 20 {
		t.Errorf("%+v", m)
	}
	if _, err := m.Open(mustOpen(t, f)); err == nil {
		t.Error("a parent is accepted")
	}
}

func mustOpen(t *testing.T, f []byte) image.Image {
	t.Helper()
	img, _, err := open(f)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestVirtualSizeLimit(t *testing.T) {
	f := small().write()
	for limit, ok := range map[int64]bool{16<<10 - 1: false, 16 << 10: true, 0: true} {
		_, err := vdi.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)),
			vdi.Options{MaxVirtualSize: limit})
		if (err == nil) != ok {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

func TestStopsWhenCancelled(t *testing.T) {
	f := small().write()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := vdi.Preflight(ctx, bytes.NewReader(f), int64(len(f)), vdi.Options{})
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
	f := small().write()
	for _, at := range []int64{100, 513} {
		_, err := vdi.Preflight(context.Background(), broken{bytes.NewReader(f), at}, int64(len(f)), vdi.Options{})
		if !errors.Is(err, errBroken) {
			t.Errorf("broken at %d: %v", at, err)
		}
	}
	m, err := vdi.Preflight(context.Background(), broken{bytes.NewReader(f), 2000}, int64(len(f)), vdi.Options{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := m.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := img.ReadAt(make([]byte, 8<<10), 8<<10); !errors.Is(err, errBroken) {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := img.ReadAt(make([]byte, 4<<10), 12<<10); n != 4<<10 || err != nil {
		t.Errorf("a free block: %d, %v", n, err)
	}
	// A file that became shorter after it was checked.
	m, err = vdi.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), vdi.Options{})
	if err != nil {
		t.Fatal(err)
	}
	vdi.SetReader(m, bytes.NewReader(f[:2000]))
	if img, err = m.Open(nil); err != nil {
		t.Fatal(err)
	}
	if n, err := img.ReadAt(make([]byte, 16<<10), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d, %v", n, err)
	}
}

func TestBadArguments(t *testing.T) {
	img := mustOpen(t, small().write())
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

// Blocks that lie side by side are read at once.
func TestReadsInBatches(t *testing.T) {
	d := &disk{size: 1 << 20, blockSize: 4 << 10, static: true, blocks: map[int64][]byte{}}
	for i := range d.count() {
		d.blocks[i] = []byte{1}
		d.order = append(d.order, i)
	}
	f := d.write()
	m, err := vdi.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), vdi.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{ReaderAt: bytes.NewReader(f)}
	vdi.SetReader(m, c)
	img, err := m.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.ReadAt(make([]byte, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	if c.n != 2 {
		t.Errorf("%d reads, want one of the map and one of the data", c.n)
	}
}

func BenchmarkRead(b *testing.B) {
	d := &disk{size: 64 << 20, blockSize: 1 << 20, blocks: map[int64][]byte{}}
	for i := range d.count() {
		d.blocks[i] = []byte{1}
		d.order = append(d.order, i)
	}
	img, _, err := open(d.write())
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
	got := vdi.Add(0, page, 63, 64, 0, page+1, page, 5*page, 1, page+63, page-1, 5*page)
	want := []bool{true, true, true, true, false, true, false, true, true, true, true, false}
	if !slices.Equal(got, want) {
		t.Errorf("%t, want %t", got, want)
	}
}
