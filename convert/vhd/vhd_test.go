// SPDX-License-Identifier: Apache-2.0

package vhd_test

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
	"time"

	"github.com/lima-vm/go-qcow2reader/image"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert/vhd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(f []byte, parent image.Image, o vhd.Options) (image.Image, *vhd.Metadata, error) {
	o.AllowParent = parent != nil
	m, err := vhd.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), o)
	if err != nil {
		return nil, nil, err
	}
	img, err := m.Open(parent)
	return img, m, err
}

// drawDisk draws an image of any variant and the bytes of its parent, nil if it has none.
func drawDisk(t *rapid.T) (*disk, memory) {
	d := &disk{
		diskType:  uint32(rapid.IntRange(2, 4).Draw(t, "type")),
		size:      rapid.Int64Range(1, 600).Draw(t, "sectors") * 512,
		blockSize: rapid.SampledFrom([]int64{4 << 10, 4 << 10, 16 << 10, 64 << 10, 2 << 20, 4 << 20}).Draw(t, "block"),
		blocks:    map[int64]blockData{},
		gap:       512 * rapid.Int64Range(0, 3).Draw(t, "gap"),
		old:       rapid.IntRange(0, 4).Draw(t, "old footer") == 0,
		spare:     rapid.Int64Range(0, 200).Draw(t, "spare entries"),
		id:        1, parentID: 2,
	}
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
	if d.diskType == 2 {
		d.raw = noise(d.size)
		return d, nil
	}
	count := (d.size-1)/d.blockSize + 1
	density := rapid.IntRange(0, 4).Draw(t, "density")
	for i := range count {
		if rnd.IntN(4) >= density {
			continue
		}
		b := blockData{data: noise(min(d.blockSize, d.size-i*d.blockSize+1024) / 512 * 512)}
		if rnd.IntN(4) > 0 {
			b.sectors = make([]bool, d.blockSize/512)
			on := rnd.IntN(2) == 0
			for j := range b.sectors {
				if rnd.IntN(1+rnd.IntN(40)) == 0 {
					on = !on
				}
				b.sectors[j] = on
			}
		}
		d.blocks[i] = b
	}
	for _, i := range rnd.Perm(int(count)) {
		d.order = append(d.order, int64(i))
	}
	if rapid.IntRange(0, 3).Draw(t, "one footer") == 0 {
		d.noCopy = rapid.Bool().Draw(t, "at the end")
		d.noTail = !d.noCopy
	}
	if d.diskType == 4 {
		return d, memory(noise(512 * rapid.Int64Range(1, d.size/512).Draw(t, "parent sectors")))
	}
	return d, nil
}

func TestReadsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, parent := drawDisk(t)
		want := d.content(parent)
		f := d.write()
		var p image.Image
		if parent != nil {
			p = parent
		}
		img, meta, err := open(f.b, p, vhd.Options{})
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		if img.Size() != int64(len(want)) || meta.VirtualSize != img.Size() || img.Type() != vhd.Type {
			t.Fatalf("size %d, %d, type %s, want %d", img.Size(), meta.VirtualSize, img.Type(), len(want))
		}
		if (len(meta.Warnings) > 0) != (d.noCopy || d.noTail) {
			t.Fatalf("warnings %q", meta.Warnings)
		}
		if !d.noTail && d.diskType != 2 {
			if err := meta.CheckManyDistinct(2); err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, len(want))
		if n, err := img.ReadAt(got, 0); n != len(want) || err != nil && err != io.EOF {
			t.Fatalf("read all: %d, %v", n, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatal("wrong bytes")
		}
		for range 10 {
			off := rapid.Int64Range(0, img.Size()).Draw(t, "offset")
			buf := bytes.Repeat([]byte{0xEE}, rapid.IntRange(0, 100000).Draw(t, "length"))
			n, err := img.ReadAt(buf, off)
			wantN := min(len(buf), len(want)-int(off))
			if n != wantN || (n < len(buf)) != (err == io.EOF) && off < img.Size() {
				t.Fatalf("read %d at %d: %d, %v, want %d", len(buf), off, n, err, wantN)
			}
			if !bytes.Equal(buf[:n], want[off:int(off)+n]) {
				t.Fatalf("read %d at %d: wrong bytes", len(buf), off)
			}
			if len(bytes.Trim(buf[n:], "\xEE")) != 0 {
				t.Fatal("bytes behind the end of the disk were touched")
			}
		}
		checkExtents(t, img, want)
	})
}

// checkExtents walks the disk in random questions: what is said to be zero must be, and the answers
// must be gapless, within the question, and the same whatever the question was.
func checkExtents(t *rapid.T, img image.Image, want []byte) {
	for off := int64(0); off < img.Size(); {
		ask := rapid.Int64Range(1, img.Size()-off).Draw(t, "ask")
		e, err := img.Extent(off, ask)
		if err != nil {
			t.Fatalf("extent of %d at %d: %v", ask, off, err)
		}
		if e.Start != off || e.Length <= 0 || e.Length > ask {
			t.Fatalf("extent of %d at %d: %+v", ask, off, e)
		}
		if e.Zero && len(bytes.Trim(want[off:off+e.Length], "\x00")) != 0 {
			t.Fatalf("%+v is not zero", e)
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

// TestExtentKinds says what each kind of range is reported as.
func TestExtentKinds(t *testing.T) {
	const c = 64 << 10
	one := bytes.Repeat([]byte{1}, c)
	half := make([]bool, c/512)
	for i := range half {
		half[i] = i >= 64
	}
	d := &disk{size: 6 * c, blockSize: c, blocks: map[int64]blockData{
		1: {data: one}, 2: {data: one}, 3: {data: one, sectors: half}}}
	parent := make(memory, 5*c)
	copy(parent[:1024], one)
	copy(parent[3*c:], one[:2048])
	for _, tc := range []struct {
		diskType uint32
		parent   image.Image
		want     []image.Extent
		mapped   int64
	}{
		{3, nil, []image.Extent{
			{Start: 0, Length: c, Zero: true},
			{Start: c, Length: 3 * c, Allocated: true},
			{Start: 4 * c, Length: 2 * c, Zero: true},
		}, 3 * c},
		{4, parent, []image.Extent{
			{Start: 0, Length: 1024, Allocated: true}, // the parent's
			{Start: 1024, Length: c - 1024, Zero: true},
			{Start: c, Length: 2*c + 2048, Allocated: true},
			{Start: 3*c + 2048, Length: c/2 - 2048, Zero: true},
			{Start: 3*c + c/2, Length: c / 2, Allocated: true},
			{Start: 4 * c, Length: 2 * c, Zero: true},
		}, 3 * c},
	} {
		d.diskType = tc.diskType
		img, meta, err := open(d.write().b, tc.parent, vhd.Options{})
		if err != nil {
			t.Fatal(err)
		}
		off := int64(0)
		for _, w := range tc.want {
			e, err := img.Extent(off, img.Size()-off)
			if err != nil || e != w {
				t.Errorf("type %d, extent at %d: %+v, %v, want %+v", tc.diskType, off, e, err, w)
			}
			off = w.Start + w.Length
		}
		if meta.MappedBytes != tc.mapped || meta.BlockSize != c || meta.SectorSize != 512 {
			t.Errorf("%+v", meta)
		}
		for _, q := range [][2]int64{{-1, 1}, {0, -1}, {0, 6*c + 1}, {6 * c, 1}, {1 << 62, 1 << 62}} {
			if e, err := img.Extent(q[0], q[1]); err == nil {
				t.Errorf("extent of %d at %d: %+v, want an error", q[1], q[0], e)
			}
		}
		if _, err := img.ReadAt(make([]byte, 1), -1); err == nil || err == io.EOF {
			t.Errorf("read at -1: %v", err)
		}
	}
}

// TestSize goes through the rules of which size counts.
func TestSize(t *testing.T) {
	const small, big = 10 * 4 * 17 * 512, 4 << 20 // by geometry, Current Size
	tail := blockData{data: make([]byte, 2<<20)}
	tail.data[len(tail.data)-1] = 1
	for _, tc := range []struct {
		creator string
		chs     [3]int
		rule    vhd.SizeRule
		last    *blockData // the last block
		want    int64      // 0 = refused
		warn    string
	}{
		{"vpc ", [3]int{10, 4, 17}, vhd.SizeByCreator, nil, small, "geometry, which counts"},
		{"qemu", [3]int{10, 4, 17}, vhd.SizeByCreator, &blockData{}, small, "geometry, which counts"},
		{"vpc ", [3]int{10, 4, 17}, vhd.SizeByCreator, &tail, 0, "there is data behind"},
		{"qemu", [3]int{10, 4, 17}, vhd.SizeCurrent, &tail, big, "Current Size, which counts"},
		{"win ", [3]int{10, 4, 17}, vhd.SizeGeometry, &tail, small, "geometry, which counts"},
		{"qemu", [3]int{10, 4, 17}, vhd.SizeGeometry, &tail, small, "geometry, which counts"},
		{"qemu", [3]int{100, 16, 63}, vhd.SizeByCreator, &tail, 100 * 16 * 63 * 512, "geometry, which counts"},
		{"win ", [3]int{10, 4, 17}, vhd.SizeByCreator, &tail, big, "Current Size, which counts"},
		{"win ", [3]int{120, 4, 17}, vhd.SizeByCreator, &tail, big, ""},
		{"d2v\x00", [3]int{10, 4, 17}, vhd.SizeByCreator, &tail, big, "Current Size, which counts"},
		{"wa\x00\x00", [3]int{10, 4, 17}, vhd.SizeByCreator, &tail, big, "Current Size, which counts"},
		{"vpc ", [3]int{65535, 16, 255}, vhd.SizeByCreator, &tail, big, ""},
		{"vpc ", [3]int{0, 4, 17}, vhd.SizeByCreator, nil, 0, "geometry"},
		{"vpc ", [3]int{0, 4, 17}, vhd.SizeCurrent, nil, big, ""},
		{"win ", [3]int{0, 4, 17}, vhd.SizeGeometry, nil, 0, "geometry"},
		{"win ", [3]int{0, 0, 0}, vhd.SizeByCreator, nil, big, ""},
	} {
		for _, diskType := range []uint32{2, 3} {
			d := &disk{diskType: diskType, size: big, chs: tc.chs, creator: tc.creator, blockSize: 2 << 20,
				raw: make([]byte, big), blocks: map[int64]blockData{}}
			if tc.last != nil {
				copy(d.raw[2<<20:], tc.last.data)
				d.blocks[1] = *tc.last
			}
			img, meta, err := open(d.write().b, nil, vhd.Options{Size: tc.rule})
			if tc.want == 0 {
				var refused *vhd.Error
				if !errors.As(err, &refused) || !strings.Contains(refused.Reason, tc.warn) {
					t.Errorf("%+v, type %d: %v, want it refused for %q", tc, diskType, err, tc.warn)
				}
				continue
			}
			if err != nil {
				t.Errorf("%+v, type %d: %v", tc, diskType, err)
				continue
			}
			if all := strings.Join(meta.Warnings, "\n"); img.Size() != tc.want || !strings.Contains(all, tc.warn) ||
				tc.warn == "" && all != "" {
				t.Errorf("%+v, type %d: size %d, warnings %q", tc, diskType, img.Size(), all)
			}
			got := make([]byte, tc.want)
			if n, err := img.ReadAt(got, 0); n != len(got) || err != nil {
				t.Errorf("%+v: read %d, %v", tc, n, err)
			}
			want := append(d.content(nil), make([]byte, max(0, tc.want-big))...)[:tc.want]
			if !bytes.Equal(got, want) {
				t.Errorf("%+v, type %d: wrong bytes", tc, diskType)
			}
		}
	}
}

// TestSizeOfChild checks that what the geometry cuts off of the parent is looked at, too.
func TestSizeOfChild(t *testing.T) {
	d := &disk{diskType: 4, size: 4 << 20, chs: [3]int{10, 4, 17}, creator: "vpc ", blockSize: 2 << 20}
	parent := make(memory, 4<<20)
	if _, _, err := open(d.write().b, parent, vhd.Options{}); err != nil {
		t.Error(err)
	}
	parent[4<<20-1] = 1
	if _, _, err := open(d.write().b, parent, vhd.Options{}); err == nil {
		t.Error("the parent's data behind the geometry's size was dropped")
	}
	if _, _, err := open(d.write().b, make(memory, 4<<20+512), vhd.Options{Size: vhd.SizeCurrent}); err == nil {
		t.Error("a parent larger than the disk was accepted")
	}
}

// TestParent checks what a differencing disk says of its parent.
func TestParent(t *testing.T) {
	le := func(s string) (p []byte) {
		for _, r := range s {
			p = append(p, byte(r), byte(r>>8))
		}
		return p
	}
	d := &disk{diskType: 4, size: 1 << 20, blockSize: 2 << 20, id: 0x11, parentID: 0x22,
		parentName: `D:\Disks\base one.vhd`,
		locators: map[string][]byte{
			"W2ru": le(`.\..\..\etc\new.vhd`),
			"W2ku": le(`\\host\share\base one.vhd` + "\x00\x00"),
			"MacX": []byte("file://localhost/Disks/b%C3%A4se.vhd\x00"),
			"Mac ": []byte("\x00\x01alias"),
			"Wi2r": []byte("old.vhd"),
		}}
	f := d.write().b
	_, err := vhd.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), vhd.Options{})
	var refused *vhd.Error
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "differencing") {
		t.Errorf("not allowed: %v", err)
	}
	if reason, remedy := refused.Refusal(); reason != refused.Reason || remedy == "" {
		t.Errorf("%q, %q", reason, remedy)
	}
	_, meta, err := open(f, memory(make([]byte, 512)), vhd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"new.vhd", "base one.vhd", "bäse.vhd"}; !slices.Equal(meta.ParentNames, want) {
		t.Errorf("names %q, want %q", meta.ParentNames, want)
	}
	if meta.ID != "11111111-1111-1111-1111-111111111111" ||
		meta.ParentID != "22222222-2222-2222-2222-222222222222" {
		t.Errorf("ids %q, %q", meta.ID, meta.ParentID)
	}
	if want := time.Date(2000, 1, 2, 0, 0, 0, 0, time.UTC); meta.ParentTimestamp != want || meta.Timestamp != want {
		t.Errorf("times %v, %v", meta.Timestamp, meta.ParentTimestamp)
	}
	if _, err := meta.Open(nil); err == nil {
		t.Error("opened without its parent")
	}
	d.diskType = 3
	g := d.write().b
	if m, err := vhd.Preflight(context.Background(), bytes.NewReader(g), int64(len(g)), vhd.Options{}); err != nil {
		t.Error(err)
	} else if _, err := m.Open(memory{}); err == nil {
		t.Error("a dynamic disk took a parent")
	}
}

func TestPlainName(t *testing.T) {
	for path, want := range map[string]string{
		`C:\a\b.vhd`: "b.vhd", `..\b.vhd`: "b.vhd", "../../etc/passwd": "passwd", "b.vhd": "b.vhd", `C:b.vhd`: "b.vhd",
		"": "", `a\`: "", "..": "", `a\..`: "", ".": "", "a\x1b[2J": "", "a\nb": "", "a\u202eb": "", "a\ufffdb": "",
		"\xff": "", strings.Repeat("x", 256): "", "bäse ü.vhd": "bäse ü.vhd",
	} {
		if got := vhd.PlainName(path); got != want {
			t.Errorf("%q gives %q, want %q", path, got, want)
		}
	}
}

func TestBitRun(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 0xFF, 0, 0xFF, 0x0F, 0x80, 0x01, 0x5A}), 1, 20).Draw(t, "bits")
		i := rapid.Int64Range(0, int64(len(p))*8-1).Draw(t, "bit")
		bit := func(i int64) bool { return p[i/8]>>(7-i%8)&1 == 1 }
		n := int64(1)
		for i+n < int64(len(p))*8 && bit(i+n) == bit(i) {
			n++
		}
		if set, run := vhd.BitRun(p, i); set != bit(i) || run != n {
			t.Fatalf("%t, %d, want %t, %d", set, run, bit(i), n)
		}
	})
}

// TestConcurrentReads lets goroutines share an image, for the race detector.
func TestConcurrentReads(t *testing.T) {
	d := &disk{diskType: 4, size: 4 << 20, blockSize: 16 << 10, blocks: map[int64]blockData{}}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range int64(256) {
		b := blockData{data: bytes.Repeat([]byte{byte(i), 1}, 8<<10), sectors: make([]bool, 32)}
		for j := range b.sectors {
			b.sectors[j] = rnd.IntN(2) == 0
		}
		if i%3 > 0 {
			d.blocks[i] = b
		}
	}
	parent := memory(bytes.Repeat([]byte{7}, 3<<20))
	want := d.content(parent)
	img, _, err := open(d.write().b, parent, vhd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			buf := make([]byte, 50000)
			for i := range 100 {
				off := int64((i*8 + g) * 5003 % (4<<20 - len(buf)))
				if _, err := img.ReadAt(buf, off); err != nil {
					t.Errorf("read at %d: %v", off, err)
				}
				if !bytes.Equal(buf, want[off:off+int64(len(buf))]) {
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
	const size = 2040 << 30
	last := int64(size>>21 - 1)
	d := &disk{diskType: 3, size: size, blockSize: 2 << 20, blocks: map[int64]blockData{last: {data: []byte{1}}},
		order: []int64{last}}
	img, meta, err := open(d.write().b, nil, vhd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := img.Extent(0, size)
	if want := (image.Extent{Length: last << 21, Zero: true}); err != nil || e != want {
		t.Errorf("first extent: %+v, %v, want %+v", e, err, want)
	}
	if n := meta.TableBytes(); n <= 0 || n > 2<<20 {
		t.Errorf("tables of %d bytes", n)
	}
	d.size += 2 << 20
	if _, _, err := open(d.write().b, nil, vhd.Options{}); err == nil {
		t.Error("a dynamic disk above the format's limit was accepted")
	}
}

// counting is a file that counts what is read of it.
type counting struct {
	b []byte
	n int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(c.b).ReadAt(p, off)
	c.n += int64(n)
	return n, err
}

// maxHostileAlloc is what opening a hostile image may allocate, in bytes.
const maxHostileAlloc = 64 << 20

// refused checks that the image is refused, by an Error with the words, without much memory or
// reading.
func refused(t *testing.T, f []byte, o vhd.Options, want string) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	c := &counting{b: f}
	m, err := vhd.Preflight(context.Background(), c, int64(len(f)), o)
	if err == nil && m.Variant != vhd.VariantDifferencing {
		_, err = m.Open(nil)
	}
	runtime.ReadMemStats(&after)
	var e *vhd.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want it refused", err)
	}
	if !strings.Contains(e.Reason, want) {
		t.Errorf("refused for %q, want a reason with %q", e.Reason, want)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > maxHostileAlloc {
		t.Errorf("allocated %d bytes, want at most %d", n, maxHostileAlloc)
	}
	if c.n > int64(len(f))+64<<10 {
		t.Errorf("read %d bytes of a file of %d", c.n, len(f))
	}
}

// TestHostile is a table of what broke readers before.
func TestHostile(t *testing.T) {
	one := bytes.Repeat([]byte{1}, 2<<20)
	dynamic := (&disk{diskType: 3, size: 8 << 20, blockSize: 2 << 20, chs: [3]int{240, 4, 17}, blocks: map[int64]blockData{
		0: {data: one}, 2: {data: one}}}).write()
	child := (&disk{diskType: 4, size: 8 << 20, blockSize: 2 << 20, parentName: "p.vhd",
		locators: map[string][]byte{"W2ru": []byte("p\x00")}}).write()
	fixed := (&disk{diskType: 2, size: 1 << 20, raw: one[:1<<20]}).write()
	for name, f := range map[string]*file{"dynamic": dynamic, "fixed": fixed} {
		if _, _, err := open(f.b, nil, vhd.Options{}); err != nil {
			t.Fatalf("the base %s of the cases must be right: %v", name, err)
		}
	}
	foot32 := func(at int, v uint32) func(f *file) {
		return func(f *file) { f.both(func(p []byte) { be.PutUint32(p[at:], v) }); f.resum() }
	}
	foot64 := func(at int, v uint64) func(f *file) {
		return func(f *file) { f.both(func(p []byte) { be.PutUint64(p[at:], v) }); f.resum() }
	}
	head32 := func(at int64, v uint32) func(f *file) {
		return func(f *file) { be.PutUint32(f.b[f.header+at:], v); f.resum() }
	}
	head64 := func(at int64, v uint64) func(f *file) {
		return func(f *file) { be.PutUint64(f.b[f.header+at:], v); f.resum() }
	}
	entry := func(b int64, v uint32) func(f *file) {
		return func(f *file) { be.PutUint32(f.b[f.table+4*b:], v) }
	}
	for _, tc := range []struct {
		name  string
		base  *file
		spoil func(f *file)
		want  string
	}{
		{"block size 0", dynamic, head32(32, 0), "Block Size 0"},
		{"block size 0x80", dynamic, head32(32, 0x80), "Block Size 128"},
		{"block size 0x12345678", dynamic, head32(32, 0x12345678), "Block Size"},
		{"block size 2 GiB", dynamic, head32(32, 1<<31), "Block Size"},
		{"table entries 0x40000001", dynamic, head32(28, 0x40000001), "Max Table Entries"},
		{"table entries 0xFFFFFFFF", dynamic, head32(28, 0xFFFFFFFF), "Max Table Entries"},
		{"table entries 0", dynamic, head32(28, 0), "Max Table Entries"},
		{"table entries too few", dynamic, head32(28, 3), "Max Table Entries"},
		{"data offset in the footer", dynamic, foot64(16, 256), "Data Offset"},
		{"data offset 0", dynamic, foot64(16, 0), "Data Offset"},
		{"data offset 2^63", dynamic, foot64(16, 1<<63), "Data Offset"},
		{"data offset at the end", dynamic, func(f *file) { foot64(16, uint64(len(f.b)-512))(f) }, "Data Offset"},
		{"data offset before the end", dynamic, func(f *file) { foot64(16, uint64(len(f.b)-1024))(f) }, "Data Offset"},
		{"data offset of another place", dynamic, foot64(16, 2048), "cookie"},
		{"table beyond the end", dynamic, func(f *file) { head64(16, uint64(len(f.b)))(f) }, "Table Offset"},
		{"table at 2^63", dynamic, head64(16, 1<<63), "Table Offset"},
		{"table near 2^64", dynamic, head64(16, 1<<64-512), "Table Offset"},
		{"table over the footer", dynamic, head64(16, 0), "Table Offset"},
		{"table over the header", dynamic, head64(16, 1024), "overlaps the dynamic disk header"},
		{"table over the last footer", dynamic, func(f *file) { head64(16, uint64(len(f.b)-512))(f) }, "Max Table Entries"},
		{"equal entries", dynamic, func(f *file) { entry(0, uint32(f.starts[2]/512))(f) }, "overlap"},
		{"overlapping entries", dynamic, func(f *file) { entry(0, uint32(f.starts[2]/512)-1)(f) }, "overlap"},
		{"all entries equal", dynamic, func(f *file) {
			for b := range int64(4) {
				entry(b, uint32(f.starts[0]/512))(f)
			}
		}, "share"},
		{"entry 0", dynamic, entry(1, 0), "overlaps the footer copy"},
		{"entry in the header", dynamic, entry(1, 2), "overlaps the dynamic disk header"},
		{"entry in the table", dynamic, entry(1, 3), "overlaps the block allocation table"},
		{"entry beyond the end", dynamic, entry(1, 0xFFFFFFFE), "truncated"},
		{"block over the last footer", dynamic, func(f *file) { entry(2, uint32(f.starts[2]/512)+1)(f) }, "truncated"},
		{"truncated", dynamic, func(f *file) { f.b = f.b[:len(f.b)-1024] }, "truncated"},
		{"truncated within the table", dynamic, func(f *file) { f.b = f.b[:1540] }, "too short"},
		{"truncated behind the table", dynamic, func(f *file) { f.b = f.b[:2048] }, "truncated"},
		{"truncated within the header", dynamic, func(f *file) { f.b = f.b[:1100] }, "too short"},
		{"footer only", dynamic, func(f *file) { f.b = f.b[:512] }, "too short"},
		{"empty", dynamic, func(f *file) { f.b = nil }, "too short"},
		{"both checksums off by one", dynamic, func(f *file) { f.both(func(p []byte) { p[67]++ }) }, "checksum"},
		{"header checksum off by one", dynamic, func(f *file) { f.b[f.header+39]++ }, "checksum"},
		{"header version 2", dynamic, head32(24, 0x20000), "version"},
		{"footer version 2", dynamic, foot32(12, 0x20000), "version"},
		{"type 0", dynamic, foot32(60, 0), "type 0"},
		{"type 1", dynamic, foot32(60, 1), "type 1"},
		{"type 2 with a footer at 0", dynamic, foot32(60, 2), "fixed"},
		{"type 2 at the end only", dynamic, func(f *file) { be.PutUint32(f.b[len(f.b)-512+60:], 2); f.resum() }, "fixed"},
		{"type 2 at the end, no good copy", dynamic, func(f *file) {
			be.PutUint32(f.b[len(f.b)-512+60:], 2)
			f.resum()
			f.b[67]++
		}, "fixed"},
		{"type 4", dynamic, foot32(60, 4), "differencing"},
		{"type 5", dynamic, foot32(60, 5), "type 5"},
		{"type 6", dynamic, foot32(60, 6), "type 6"},
		{"footers of other sizes", dynamic, func(f *file) { be.PutUint64(f.b[48:], 6<<20); f.resum() }, "contradict"},
		{"footers of other ids", dynamic, func(f *file) { f.b[70]++; f.resum() }, "contradict"},
		{"size 0", dynamic, foot64(48, 0), "Current Size"},
		{"size not in sectors", dynamic, foot64(48, 8<<20-1), "Current Size"},
		{"size 2^63", dynamic, foot64(48, 1<<63), "Current Size"},
		{"size 2^64-512", dynamic, foot64(48, 1<<64-512), "Current Size"},
		{"size above the table", dynamic, foot64(48, 9<<20), "Max Table Entries"},
		{"size above the format", dynamic, foot64(48, 4<<40), "limit"},
		{"no cookie", dynamic, func(f *file) { f.both(func(p []byte) { p[0] = 'C' }) }, "cookie"},
		{"fixed above the file", fixed, foot64(48, 1<<20+512), "Current Size"},
		{"fixed of 2^62", fixed, foot64(48, 1<<62), "Current Size"},
		{"fixed with bad checksum", fixed, func(f *file) { f.b[len(f.b)-1]++ }, "checksum"},
		{"fixed of no geometry by Virtual PC", fixed, func(f *file) {
			f.both(func(p []byte) { copy(p[28:], "vpc ") })
			f.resum()
		}, "geometry"},
		{"fixed cut at the front", fixed, func(f *file) { f.b = f.b[512:] }, "truncated"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := tc.base.clone()
			tc.spoil(f)
			refused(t, f.b, vhd.Options{}, tc.want)
			if tc.name != "type 4" {
				refused(t, f.b, vhd.Options{AllowParent: true, Size: vhd.SizeByCreator}, tc.want)
			}
		})
	}
	for name, at := range map[string]uint64{"beyond the end": 1 << 40, "near 2^64": 1<<64 - 1} {
		t.Run("locator "+name, func(t *testing.T) {
			f := child.clone()
			head64(576+16, at)(f)
			refused(t, f.b, vhd.Options{AllowParent: true}, "parent locator 0")
		})
	}
	t.Run("locator length", func(t *testing.T) {
		f := child.clone()
		head32(576+8, 0xFFFFFFFF)(f)
		refused(t, f.b, vhd.Options{AllowParent: true}, "parent locator 0")
	})
	t.Run("limit", func(t *testing.T) {
		refused(t, dynamic.b, vhd.Options{MaxVirtualSize: 8<<20 - 1}, "limit")
		refused(t, fixed.b, vhd.Options{MaxVirtualSize: 1<<20 - 1}, "limit")
	})
	t.Run("many entries overlap", func(t *testing.T) {
		m, err := vhd.Preflight(context.Background(), bytes.NewReader(dynamic.b), int64(len(dynamic.b)), vhd.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for b, e := range []uint32{0, 2} { // the file changes behind the reader's back
			be.PutUint32(dynamic.b[dynamic.table+4*int64(e):], uint32(dynamic.starts[2]/512)-uint32(b))
		}
		for _, limit := range []int{2, 3, 100} {
			if err := m.CheckManyDistinct(limit); err == nil {
				t.Errorf("limit %d: overlap not found", limit)
			}
		}
	})
}

// TestOneGoodFooter checks that either footer alone is enough, with a warning.
func TestOneGoodFooter(t *testing.T) {
	d := &disk{diskType: 3, size: 4 << 20, blockSize: 2 << 20, blocks: map[int64]blockData{1: {data: []byte{9}}}}
	for _, end := range []bool{false, true} {
		f := d.write()
		at := 67
		if end {
			at = len(f.b) - 512 + 67
		}
		f.b[at]++
		img, meta, err := open(f.b, nil, vhd.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(meta.Warnings) != 1 || !strings.Contains(meta.Warnings[0], "not good") {
			t.Errorf("warnings %q", meta.Warnings)
		}
		p := make([]byte, 1)
		if _, err := img.ReadAt(p, 2<<20); err != nil || p[0] != 9 {
			t.Errorf("%d, %v", p[0], err)
		}
	}
}

// TestChangedFile checks that a table that changes after the check gives an error and not a crash.
func TestChangedFile(t *testing.T) {
	d := &disk{diskType: 3, size: 4 << 20, blockSize: 2 << 20, blocks: map[int64]blockData{1: {data: []byte{9}}}}
	f := d.write()
	img, _, err := open(f.b, nil, vhd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	be.PutUint32(f.b[f.table+4:], 0xFFFFFFFE)
	if n, err := img.ReadAt(make([]byte, 4<<20), 0); n != 2<<20 || err == nil || err == io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f := (&disk{diskType: 3, size: 4 << 20, blockSize: 2 << 20}).write()
	if _, err := vhd.Preflight(ctx, bytes.NewReader(f.b), int64(len(f.b)), vhd.Options{}); !errors.Is(err, ctx.Err()) {
		t.Errorf("got %v", err)
	}
}
