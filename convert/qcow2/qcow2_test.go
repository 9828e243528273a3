// SPDX-License-Identifier: Apache-2.0

package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader/image"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert/qcow2"
	"github.com/imsprep/imsprep/convert/qcow2/qcow2test"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a disk in memory, to be a parent.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }
func (m memory) Close() error                            { return nil }
func (m memory) Size() int64                             { return int64(len(m)) }
func (m memory) Type() image.Type                        { return "raw" }
func (m memory) Readable() error                         { return nil }

// Extent reports zero blocks of 512 bytes as such, to have many short extents.
func (m memory) Extent(start, length int64) (image.Extent, error) {
	if start < 0 || length <= 0 || start+length > m.Size() {
		return image.Extent{}, errors.New("out of bounds")
	}
	n := min(length, 512-start%512)
	block := start / 512 * 512
	zero := len(bytes.Trim(m[block:min(block+512, m.Size())], "\x00")) == 0
	return image.Extent{Start: start, Length: n, Allocated: !zero, Zero: zero}, nil
}

func open(f []byte, parent image.Image) (*qcow2.Image, *qcow2.Metadata, error) {
	return openWith(f, nil, parent)
}

// openWith opens an image whose external data file has the given content.
func openWith(f, external []byte, parent image.Image) (*qcow2.Image, *qcow2.Metadata, error) {
	m, err := qcow2.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), qcow2.Options{
		AllowBacking: parent != nil,
		OpenDataFile: func(string) (io.ReaderAt, int64, error) { return memory(external), int64(len(external)), nil },
	})
	if err != nil {
		return nil, nil, err
	}
	img, err := m.Open(parent)
	return img, m, err
}

// drawImage draws an image of any variant and, if it has a backing file, the parent's bytes.
func drawImage(t *rapid.T) (qcow2test.Image, memory) {
	im := qcow2test.Image{
		Version:     rapid.IntRange(2, 3).Draw(t, "version"),
		ClusterBits: rapid.SampledFrom([]uint{9, 9, 10, 12, 14, 16, 16, 21}).Draw(t, "cluster bits"),
	}
	if im.Version == 3 {
		im.Zstd = rapid.Bool().Draw(t, "zstd")
		im.Extended = im.ClusterBits >= 14 && rapid.Bool().Draw(t, "extended")
		im.LongHeader = rapid.Bool().Draw(t, "long header")
		if rapid.IntRange(0, 3).Draw(t, "data file") == 0 {
			im.DataFile = "data.raw"
		}
	}
	cluster := int64(1) << im.ClusterBits
	// Small clusters: more than one L2 table. Big ones: a few clusters are enough.
	most := max(2, min(200, 3<<20/cluster))
	im.Size = rapid.Int64Range(1, most*cluster).Draw(t, "size")
	if rapid.Bool().Draw(t, "whole sectors") {
		im.Size = (im.Size + 511) / 512 * 512
	}
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	noise := func() []byte {
		p := make([]byte, cluster)
		for i := 0; i < len(p); i += 8 { // compresses to less than half
			p[i] = byte(rnd.Uint32())
		}
		return p
	}
	count := (im.Size + cluster - 1) / cluster
	density := rapid.IntRange(0, 4).Draw(t, "density")
	for _, i := range rnd.Perm(int(count)) {
		if rnd.IntN(4) >= density {
			continue
		}
		c := qcow2test.Cluster{Index: int64(i), Data: noise()}
		kinds := []qcow2test.Kind{qcow2test.Plain}
		if im.DataFile == "" {
			kinds = append(kinds, qcow2test.Compressed)
		}
		if im.Version == 3 {
			kinds = append(kinds, qcow2test.Zero, qcow2test.ZeroAllocated)
		}
		if im.Extended {
			kinds = append(kinds, qcow2test.Subclusters, qcow2test.Subclusters, qcow2test.Subclusters)
		}
		c.Kind = kinds[rnd.IntN(len(kinds))]
		c.Alloc = rnd.Uint32() & rnd.Uint32()
		c.ZeroBits = rnd.Uint32() &^ c.Alloc
		if rnd.IntN(5) == 0 && c.Kind == qcow2test.Plain {
			clear(c.Data[len(c.Data)/2:])
		}
		im.Clusters = append(im.Clusters, c)
	}
	im.CutTail = rapid.Bool().Draw(t, "cut tail")
	var parent memory
	if rapid.IntRange(0, 2).Draw(t, "backing") == 0 {
		im.Backing, im.Format = "parent", "raw"
		parent = make(memory, rapid.Int64Range(1, 2*im.Size).Draw(t, "parent size"))
		for off := 0; off < len(parent); off += 512 {
			if rnd.IntN(2) == 0 {
				parent[off] = byte(rnd.IntN(255) + 1)
			}
		}
	}
	return im, parent
}

// roundUp adds the zeros that a size which is not a multiple of 512 gets.
func roundUp(disk []byte) []byte {
	return append(disk, make([]byte, (512-len(disk)%512)%512)...)
}

func TestReadsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		im, parent := drawImage(t)
		want := roundUp(im.Content(parent))
		f := im.Write()
		var p image.Image
		if parent != nil {
			p = parent
		}
		img, _, err := openWith(f.Bytes, f.External, p)
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		var r io.ReaderAt = img
		if rapid.Bool().Draw(t, "by the library") {
			ref, err := img.Reference()
			if err != nil {
				t.Fatal(err)
			}
			if ref != nil {
				r = ref
			}
		}
		if img.Size() != int64(len(want)) {
			t.Fatalf("size %d, want %d", img.Size(), len(want))
		}
		got := make([]byte, len(want))
		if n, err := r.ReadAt(got, 0); n != len(want) || err != nil && err != io.EOF {
			t.Fatalf("read all: %d, %v", n, err)
		}
		if i := firstDifference(got, want); i >= 0 {
			t.Fatalf("byte %d is %#x, want %#x", i, got[i], want[i])
		}
		for range 20 {
			off := rapid.Int64Range(0, img.Size()).Draw(t, "offset")
			buf := bytes.Repeat([]byte{0xEE}, rapid.IntRange(0, 300000).Draw(t, "length"))
			n, err := r.ReadAt(buf, off)
			wantN := min(len(buf), len(want)-int(off))
			if n != wantN || (n < len(buf)) != (err == io.EOF) && off < img.Size() {
				t.Fatalf("read %d at %d: %d, %v, want %d", len(buf), off, n, err, wantN)
			}
			if !bytes.Equal(buf[:n], want[off:int(off)+n]) {
				t.Fatalf("read %d at %d: wrong bytes", len(buf), off)
			}
			for _, b := range buf[n:] {
				if b != 0xEE {
					t.Fatal("bytes behind the end of the disk were touched")
				}
			}
		}
		checkExtents(t, img, want)
	})
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
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
		inside := off + rapid.Int64Range(0, e.Length-1).Draw(t, "inside")
		again, err := img.Extent(inside, off+e.Length-inside)
		if err != nil || again.Zero != e.Zero || again.Allocated != e.Allocated || again.Compressed != e.Compressed {
			t.Fatalf("extent at %d is %+v, %v within %+v", inside, again, err, e)
		}
		off += e.Length
	}
}

// TestExtentKinds says what each kind of cluster is reported as.
func TestExtentKinds(t *testing.T) {
	data := bytes.Repeat([]byte{7}, 16<<10)
	im := qcow2test.Image{Version: 3, ClusterBits: 14, Size: 8 << 14, Extended: true, Clusters: []qcow2test.Cluster{
		{Index: 1, Kind: qcow2test.Plain, Data: data},
		{Index: 2, Kind: qcow2test.Plain, Data: data},
		{Index: 3, Kind: qcow2test.Compressed, Data: data},
		{Index: 4, Kind: qcow2test.Zero},
		{Index: 5, Kind: qcow2test.ZeroAllocated},
		{Index: 6, Kind: qcow2test.Subclusters, Data: data, Alloc: 0x0000FFFF, ZeroBits: 0xFF000000},
	}}
	img, meta, err := open(im.Write().Bytes, nil)
	if err != nil {
		t.Fatal(err)
	}
	const c = 1 << 14
	want := []image.Extent{
		{Start: 0, Length: c, Zero: true},
		{Start: c, Length: 2 * c, Allocated: true},
		{Start: 3 * c, Length: c, Allocated: true, Compressed: true},
		{Start: 4 * c, Length: 2 * c, Allocated: true, Zero: true},
		{Start: 6 * c, Length: c / 2, Allocated: true},
		{Start: 6*c + c/2, Length: c / 4, Zero: true},
		{Start: 6*c + c/2 + c/4, Length: c / 4, Allocated: true, Zero: true},
		{Start: 7 * c, Length: c, Zero: true},
	}
	off := int64(0)
	for _, w := range want {
		e, err := img.Extent(off, img.Size()-off)
		if err != nil || e != w {
			t.Errorf("extent at %d: %+v, %v, want %+v", off, e, err, w)
		}
		off = w.Start + w.Length
	}
	if meta.CompressedClusters != 1 || meta.MappedBytes != 4*c {
		t.Errorf("%d compressed clusters and %d mapped bytes, want 1 and %d", meta.CompressedClusters,
			meta.MappedBytes, 4*c)
	}
	for _, q := range [][2]int64{{-1, 1}, {0, -1}, {0, 8*c + 1}, {8 * c, 1}, {1 << 62, 1 << 62}} {
		if e, err := img.Extent(q[0], q[1]); err == nil {
			t.Errorf("extent of %d at %d: %+v, want an error", q[1], q[0], e)
		}
	}
}

// TestConcurrentReads lets goroutines share an image, for the race detector.
func TestConcurrentReads(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	{
		for _, zstd := range []bool{false, true} {
			im := qcow2test.Image{Version: 3, ClusterBits: 12, Size: 4 << 20, Zstd: zstd}
			for i := range int64(1024) {
				data := bytes.Repeat([]byte{byte(i), byte(i >> 8), 1, 2}, 1024)
				im.Clusters = append(im.Clusters, qcow2test.Cluster{
					Index: i, Kind: qcow2test.Kind(rnd.IntN(3)), Data: data})
			}
			img, _, err := open(im.Write().Bytes, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := im.Content(nil)
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
	}
}

// TestAcceptedOddities reads what is unusual and right.
func TestAcceptedOddities(t *testing.T) {
	data := bytes.Repeat([]byte("abcd"), 1024)
	im := qcow2test.Image{Version: 3, ClusterBits: 12, Size: 5 << 12, Clusters: []qcow2test.Cluster{
		{Index: 0, Data: data}, {Index: 4, Kind: qcow2test.Compressed, Data: data, Sectors: 15}}}
	for name, spoil := range map[string]func(f *qcow2test.File){
		"compressed data said to go on behind the end of the file": func(*qcow2test.File) {},
		"entries behind the end of the disk":                       func(f *qcow2test.File) { f.Put64(f.L2[0]+8*5, 1<<55|7) },
		"L1 entries of a saved state": func(f *qcow2test.File) {
			f.Put32(36, 9)
			f.Put64(f.L1+8, 1<<60|3)
		},
		"an empty backing file name":   func(f *qcow2test.File) { f.Put64(8, 200) },
		"dirty":                        func(f *qcow2test.File) { f.Put64(72, 1) },
		"unknown compatible features":  func(f *qcow2test.File) { f.Put64(80, 1<<63); f.Put64(88, 1<<63) },
		"unknown fields in the header": func(f *qcow2test.File) { f.Put32(100, 128); f.Put64(112, 1<<63-1) },
		"refcount-is-one flag alone":   func(f *qcow2test.File) { f.Put64(f.L2[0]+8, 1<<63) },
		"snapshots":                    func(f *qcow2test.File) { f.Put32(60, 2); f.Put64(64, uint64(f.Refcount)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := im.Write()
			spoil(f)
			img, _, err := open(f.Bytes, nil)
			if err != nil {
				t.Fatal(err)
			}
			ref, err := img.Reference()
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range []io.ReaderAt{img, ref} {
				got := make([]byte, im.Size)
				if _, err := r.ReadAt(got, 0); err != nil && err != io.EOF {
					t.Fatal(err)
				}
				if !bytes.Equal(got, im.Content(nil)) {
					t.Error("wrong content")
				}
			}
		})
	}
}

// TestDataFile refuses external data files that are not what their image says.
func TestDataFile(t *testing.T) {
	const c = 1 << 14
	data := bytes.Repeat([]byte{7}, c)
	full := qcow2test.Image{Version: 3, ClusterBits: 14, Size: 4*c - 1024, DataFile: "d\x1b", Clusters: []qcow2test.Cluster{
		{Index: 0, Data: data}, {Index: 2, Kind: qcow2test.Zero}, {Index: 3, Data: data}}}
	sub := full
	sub.Extended, sub.Clusters = true, []qcow2test.Cluster{
		{Index: 0, Kind: qcow2test.Subclusters, Data: data, Alloc: 1}, {Index: 3, Kind: qcow2test.Subclusters, Data: data, Alloc: 0x0F}}
	for _, tc := range []struct {
		name  string
		im    qcow2test.Image
		spoil func(f *qcow2test.File)
		want  string // "" = it is right
	}{
		{"right", full, func(*qcow2test.File) {}, ""},
		{"right, subclusters", sub, func(*qcow2test.File) {}, ""},
		{"longer than the disk", full, func(f *qcow2test.File) { f.External = append(f.External, 1) }, ""},
		{"as long as the last subcluster", sub, func(f *qcow2test.File) { f.External = f.External[:3*c+c/8] }, ""},
		{"a byte too short", full, func(f *qcow2test.File) { f.External = f.External[:4*c-1025] }, "up to 64512 is outside of the external data file of 64511 bytes"},
		{"a byte too short, subclusters", sub, func(f *qcow2test.File) { f.External = f.External[:3*c+c/8-1] }, "outside of the external data file"},
		{"empty", full, func(f *qcow2test.File) { f.External = nil }, "outside of the external data file of 0"},
		{"a cluster at another's place", full, func(f *qcow2test.File) { f.Put64(f.Entry[3], 1<<63|c) }, "not at its own place, 49152"},
		{"a cluster at the first one's place", full, func(f *qcow2test.File) { f.Put64(f.Entry[3], 1<<63) }, "not at its own place"},
		{"a compressed cluster", full, func(f *qcow2test.File) { f.Put64(f.Entry[3], 1<<62|3*c) }, "compressed"},
		{"subclusters nowhere", sub, func(f *qcow2test.File) { f.Put64(f.Entry[0], 0) }, "allocated in no cluster"},
		{"without a name", full, func(f *qcow2test.File) { f.Put32(104, 0x12345678) }, "does not state"},
		{"with an empty name", full, func(f *qcow2test.File) { f.Put32(108, 0) }, "is empty"},
		{"with a name of 2,000 bytes", full, func(f *qcow2test.File) { f.Put32(108, 2000) }, "has 2000 bytes"},
		{"without the feature", full, func(f *qcow2test.File) { f.Put64(72, 0) }, "lacks the feature bit"},
		{"raw without the feature", full, func(f *qcow2test.File) { f.Put64(72, 0); f.Put32(104, 0); f.Put64(88, 2) }, "autoclear_features"},
		{"snapshots", full, func(f *qcow2test.File) { f.Put32(60, 1); f.Put64(64, uint64(f.Refcount)) }, "snapshots"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := tc.im.Write()
			tc.spoil(f)
			img, m, err := openWith(f.Bytes, f.External, nil)
			var bad *qcow2.Error
			if tc.want != "" {
				if !errors.As(err, &bad) || !strings.Contains(bad.Reason, tc.want) || strings.Contains(bad.Reason, "\x1b") {
					t.Errorf("got %v, want it refused for %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, img.Size())
			if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, tc.im.Content(nil)) {
				t.Errorf("wrong content, or %v", err)
			}
			if m.DataFile != "d\x1b" || !slices.Contains(m.Features, "external data file") {
				t.Errorf("data file %q, features %q", m.DataFile, m.Features)
			}
		})
	}
	t.Run("not opened", func(t *testing.T) {
		f := full.Write()
		_, err := qcow2.Preflight(context.Background(), bytes.NewReader(f.Bytes), int64(len(f.Bytes)), qcow2.Options{})
		var bad *qcow2.Error
		if !errors.As(err, &bad) || !strings.Contains(bad.Reason, `"d\x1b", which is not opened`) {
			t.Errorf("got %v, want it refused", err)
		}
	})
	t.Run("not opened for a bad header", func(t *testing.T) {
		f := full.Write()
		f.Put32(56, 0)
		_, err := qcow2.Preflight(context.Background(), bytes.NewReader(f.Bytes), int64(len(f.Bytes)), qcow2.Options{
			OpenDataFile: func(string) (io.ReaderAt, int64, error) {
				t.Error("opened")
				return nil, 0, io.EOF
			}})
		var bad *qcow2.Error
		if !errors.As(err, &bad) {
			t.Errorf("got %v, want it refused", err)
		}
	})
}

// TestHugeEmptyDisk maps a disk of 32 TiB whose tables are all empty but one at the far end.
func TestHugeEmptyDisk(t *testing.T) {
	const size = 32 << 40
	last := int64(size>>16 - 1)
	im := qcow2test.Image{Version: 3, ClusterBits: 16, Size: size, Clusters: []qcow2test.Cluster{
		{Index: last, Kind: qcow2test.Plain, Data: bytes.Repeat([]byte{1}, 1<<16)}}}
	img, _, err := open(im.Write().Bytes, nil)
	if err != nil {
		t.Fatal(err)
	}
	e, err := img.Extent(0, size)
	if want := (image.Extent{Length: last << 16, Zero: true}); err != nil || e != want {
		t.Errorf("first extent: %+v, %v, want %+v", e, err, want)
	}
}

// countingReader counts what is asked of it.
type countingReader struct {
	r     io.ReaderAt
	reads int
	bytes int64
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	c.bytes += int64(len(p))
	return c.r.ReadAt(p, off)
}

// TestPreflightReadsTablesOnce bounds the work of the check by the tables that the file has.
func TestPreflightReadsTablesOnce(t *testing.T) {
	im := qcow2test.Image{Version: 3, ClusterBits: 9, Size: 1 << 20}
	for i := range int64(2048) {
		im.Clusters = append(im.Clusters, qcow2test.Cluster{Index: i, Data: make([]byte, 512)})
	}
	f := im.Write()
	c := &countingReader{r: bytes.NewReader(f.Bytes)}
	if _, err := qcow2.Preflight(context.Background(), c, int64(len(f.Bytes)), qcow2.Options{}); err != nil {
		t.Fatal(err)
	}
	tables := int64(len(f.L2)) * 512
	if c.bytes > tables+4096 || c.reads > len(f.L2)+10 {
		t.Errorf("%d reads of %d bytes for %d tables of %d bytes", c.reads, c.bytes, len(f.L2), tables)
	}
}

func TestPreflightIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f := qcow2test.Image{Version: 3, ClusterBits: 16, Size: 1 << 20}.Write()
	_, err := qcow2.Preflight(ctx, bytes.NewReader(f.Bytes), int64(len(f.Bytes)), qcow2.Options{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// TestFileShrinks reads an image whose file became shorter after it was checked.
func TestFileShrinks(t *testing.T) {
	data := bytes.Repeat([]byte{3}, 4096)
	for _, kind := range []qcow2test.Kind{qcow2test.Plain, qcow2test.Compressed} {
		im := qcow2test.Image{Version: 3, ClusterBits: 12, Size: 8192, Clusters: []qcow2test.Cluster{
			{Index: 0, Kind: qcow2test.Plain, Data: data}, {Index: 1, Kind: kind, Data: data}}}
		f := im.Write()
		{
			short := &shrinking{data: f.Bytes}
			m, err := qcow2.Preflight(context.Background(), short, int64(len(f.Bytes)), qcow2.Options{})
			if err != nil {
				t.Fatal(err)
			}
			img, err := m.Open(nil)
			if err != nil {
				t.Fatal(err)
			}
			short.cut = f.Data[1]
			n, err := img.ReadAt(make([]byte, 8192), 0)
			if err == nil || err == io.EOF || n > 4096 {
				t.Errorf("kind %d: read %d bytes, %v, want an error", kind, n, err)
			}
		}
	}
}

type shrinking struct {
	data []byte
	cut  int64
}

func (s *shrinking) ReadAt(p []byte, off int64) (int, error) {
	data := s.data
	if s.cut > 0 {
		data = data[:s.cut]
	}
	return bytes.NewReader(data).ReadAt(p, off)
}

// TestDistinct holds the estimate against the truth.
func TestDistinct(t *testing.T) {
	for _, n := range []int{0, 1, 10, 1000, 40000, 1000000} {
		var d qcow2.Distinct
		for i := range 3 * n {
			d.Add(uint64(i%n) * 512)
		}
		// Six standard errors.
		if got := d.Count(); got < float64(n)*0.95 || got > float64(n)*1.05 {
			t.Errorf("%d numbers are counted as %.0f", n, got)
		}
	}
}

// TestSharing accepts a few clusters that share their data and refuses the multiplier.
func TestSharing(t *testing.T) {
	data := bytes.Repeat([]byte{0xFF}, 1<<16)
	compressed := func(zstd bool, clusters, places int64) []byte {
		im := qcow2test.Image{Version: 3, ClusterBits: 16, Size: clusters << 16, Zstd: zstd}
		for i := range clusters {
			im.Clusters = append(im.Clusters, qcow2test.Cluster{Index: i, Kind: qcow2test.Compressed, Data: data})
		}
		for i := places; i < clusters; i++ {
			im.Clusters[i].Offset = 1 // patched below
		}
		f := im.Write()
		for i := places; i < clusters; i++ {
			f.Put64(f.Entry[i], f.Get64(f.Entry[i%places]))
		}
		return f.Bytes
	}
	plain := func(clusters, places int64) []byte {
		im := qcow2test.Image{Version: 3, ClusterBits: 16, Size: clusters << 16}
		for i := range clusters {
			c := qcow2test.Cluster{Index: i, Kind: qcow2test.Plain, Data: data}
			if i >= places {
				c = qcow2test.Cluster{Index: i, Kind: qcow2test.Zero}
			}
			im.Clusters = append(im.Clusters, c)
		}
		f := im.Write()
		for i := places; i < clusters; i++ {
			f.Put64(f.Entry[i], f.Get64(f.Entry[i%places]))
		}
		return f.Bytes
	}
	for _, tc := range []struct {
		name   string
		file   []byte
		accept bool
	}{
		{"highly compressible, zlib", compressed(false, 8192, 8192), true},
		{"highly compressible, zstd", compressed(true, 8192, 8192), true},
		{"a small image that shares", compressed(false, 1000, 1), true},
		{"clusters used ten times", compressed(false, 8000, 800), true},
		{"one compressed cluster for all", compressed(false, 8192, 1), false},
		{"one compressed cluster for all, zstd", compressed(true, 8192, 1), false},
		{"plain clusters used twice", plain(64, 32), true},
		{"one plain cluster for all", plain(8192, 1), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := open(tc.file, nil)
			var bad *qcow2.Error
			if tc.accept && err != nil || !tc.accept && !errors.As(err, &bad) {
				t.Errorf("got %v, want accepted: %t", err, tc.accept)
			}
		})
	}
}

// FuzzOpenQCOW2 reads what passes the check, by both readers, which must agree. Its inputs are
// large for the minimizer: run it with -fuzzminimizetime=10x.
func FuzzOpenQCOW2(f *testing.F) {
	for _, im := range fuzzImages() {
		f.Add(im.Write().Bytes)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		var parent image.Image
		external := memory(bytes.Repeat([]byte{1, 0, 0, 0, 5}, 10000))
		m, err := qcow2.Preflight(context.Background(), bytes.NewReader(file), int64(len(file)), qcow2.Options{
			AllowBacking: true, Force: true, MaxVirtualSize: 64 << 40,
			OpenDataFile: func(string) (io.ReaderAt, int64, error) { return external, external.Size(), nil },
		})
		if err != nil {
			return
		}
		if m.BackingFile != "" {
			parent = memory(bytes.Repeat([]byte{1, 0, 0}, 1000))
		}
		img, err := m.Open(parent)
		if err != nil {
			t.Fatalf("passed the check, but: %v", err)
		}
		var ref io.ReaderAt = img
		if r, err := img.Reference(); err != nil {
			t.Fatal(err)
		} else if r != nil {
			ref = r
		}
		// A bounded part of the map; and of each extent the beginning, by both readers.
		off := int64(0)
		for i := 0; i < 64 && off < img.Size(); i++ {
			e, err := img.Extent(off, img.Size()-off)
			if err != nil {
				t.Fatalf("extent at %d: %v", off, err)
			}
			if e.Start != off || e.Length <= 0 || e.Length > img.Size()-off {
				t.Fatalf("extent at %d: %+v", off, e)
			}
			a, b := make([]byte, min(e.Length, 3000)), make([]byte, min(e.Length, 3000))
			n, errA := img.ReadAt(a, off)
			if errA != nil && errA != io.EOF && n == len(a) {
				t.Fatalf("read at %d: %d bytes and %v", off, n, errA)
			}
			_, errB := ref.ReadAt(b, off)
			if (errA == nil || errA == io.EOF) != (errB == nil || errB == io.EOF) {
				t.Fatalf("read at %d: %v and %v", off, errA, errB)
			}
			if errA == nil {
				if !bytes.Equal(a, b) {
					t.Fatalf("read at %d: the readers differ", off)
				}
				if e.Zero && len(bytes.Trim(a, "\x00")) != 0 {
					t.Fatalf("%+v is not zero", e)
				}
			}
			off += e.Length
		}
	})
}

// fuzzImages are small images of every variant.
func fuzzImages() []qcow2test.Image {
	data := bytes.Repeat([]byte("0123456789abcdef"), 32)
	small := []qcow2test.Cluster{
		{Index: 0, Data: data}, {Index: 2, Kind: qcow2test.Compressed, Data: data},
		{Index: 3, Kind: qcow2test.Compressed, Data: data}, {Index: 70, Data: data},
	}
	flags := append(small[:len(small):len(small)],
		qcow2test.Cluster{Index: 5, Kind: qcow2test.Zero}, qcow2test.Cluster{Index: 6, Kind: qcow2test.ZeroAllocated})
	big := bytes.Repeat(data, 32)
	sub := []qcow2test.Cluster{{Index: 1, Kind: qcow2test.Subclusters, Data: big, Alloc: 0xF0F0, ZeroBits: 0x0F0F0000}}
	return []qcow2test.Image{
		{Version: 2, ClusterBits: 9, Size: 50000, Clusters: small},
		{Version: 3, ClusterBits: 9, Size: 50001, Clusters: flags, Zstd: true},
		{Version: 3, ClusterBits: 9, Size: 50176, Clusters: flags, LongHeader: true, Backing: "base.img", Format: "raw"},
		{Version: 3, ClusterBits: 9, Size: 50176, Extensions: []qcow2test.Extension{{Type: 0x6803F857, Data: make([]byte, 96)}}},
		{Version: 3, ClusterBits: 14, Size: 1 << 25, Clusters: sub, Extended: true},
		{Version: 3, ClusterBits: 9, Size: 40000, DataFile: "d", Clusters: []qcow2test.Cluster{
			{Index: 0, Data: data}, {Index: 70, Data: data}, {Index: 71, Kind: qcow2test.ZeroAllocated}}},
		{Version: 3, ClusterBits: 14, Size: 40000, DataFile: "d", Extended: true, Clusters: sub},
	}
}

func BenchmarkCompressedRead(b *testing.B) {
	// Text-like clusters, which compress to about a third.
	rnd := rand.New(rand.NewPCG(3, 4))
	words := make([][]byte, 500)
	for i := range words {
		words[i] = fmt.Appendf(nil, "%x ", rnd.Uint32())
	}
	const size = 64 << 20
	disk := make([]byte, 0, size+16)
	for len(disk) < size {
		disk = append(disk, words[rnd.IntN(len(words))]...)
	}
	names := []string{"zlib", "zstd"}
	var files [2][]byte
	var pooled [2]io.ReaderAt
	for i := range names {
		im := qcow2test.Image{Version: 3, ClusterBits: 16, Size: size, Zstd: i == 1}
		for c := range int64(size >> 16) {
			im.Clusters = append(im.Clusters, qcow2test.Cluster{
				Index: c, Kind: qcow2test.Compressed, Data: disk[c<<16 : (c+1)<<16]})
		}
		files[i] = im.Write().Bytes
		img, _, err := open(files[i], nil)
		if err != nil {
			b.Fatal(err)
		}
		pooled[i] = img
	}
	for i, name := range names {
		for sub, r := range map[string]io.ReaderAt{"pooled": pooled[i], "default": libraryDefault(b, files[i])} {
			b.Run(name+"/"+sub, func(b *testing.B) {
				buf := make([]byte, 4<<20)
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					for off := int64(0); off < size; off += int64(len(buf)) {
						if n, err := r.ReadAt(buf, off); n != len(buf) {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

// TestFrameLength finds the end of a frame whatever follows it, and says 0 of what isn't a whole one.
func TestFrameLength(t *testing.T) {
	for _, data := range [][]byte{{1}, make([]byte, 1<<20), bytes.Repeat([]byte("a cluster of some disk "), 30000)} {
		for _, checked := range []bool{false, true} {
			e, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(checked))
			if err != nil {
				t.Fatal(err)
			}
			frame := e.EncodeAll(data, nil)
			if got := qcow2.FrameLength(append(bytes.Clone(frame), "what follows"...)); got != len(frame) {
				t.Errorf("%d bytes, checksum %t: got %d, want %d", len(data), checked, got, len(frame))
			}
			for cut := range frame[:min(len(frame), 300)] {
				if got := qcow2.FrameLength(frame[:cut]); got != 0 {
					t.Errorf("%d bytes, checksum %t, cut at %d of %d: got %d", len(data), checked, cut, len(frame), got)
				}
			}
		}
	}
	if got := qcow2.FrameLength([]byte{0x50, 0x2A, 0x4D, 0x18, 1, 0, 0, 0, 0}); got != 0 {
		t.Errorf("skippable frame: got %d", got)
	}
}

// TestSameAsLibrary reads the sample disks with the library, too.
func TestSameAsLibrary(t *testing.T) {
	for _, name := range []string{"ext4-plain.qcow2", "ext4-zlib.qcow2", "ext4-zstd.qcow2"} {
		file, err := os.ReadFile(filepath.Join("..", "..", "testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		img, _, err := open(file, nil)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := img.Reference()
		if err != nil || ref == nil {
			t.Fatal("no reference", err)
		}
		got, want := make([]byte, 1<<20), make([]byte, 1<<20)
		for off := int64(0); off < img.Size(); {
			e, err := img.Extent(off, img.Size()-off)
			if err != nil {
				t.Fatal(err)
			}
			if e.Zero {
				off += e.Length
				continue
			}
			n := min(int64(len(got)), e.Length)
			_, errA := img.ReadAt(got[:n], off)
			_, errB := ref.ReadAt(want[:n], off)
			if errA != nil || errB != nil || !bytes.Equal(got[:n], want[:n]) {
				t.Fatalf("%s: %d bytes at %d: %v, %v, equal: %t", name, n, off, errA, errB, bytes.Equal(got[:n], want[:n]))
			}
			off += n
		}
	}
}
