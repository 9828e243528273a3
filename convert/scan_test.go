// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"
	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/convert/qcow2/qcow2test"
)

// sparse is a disk in memory: runs of data, with zeros between them that it knows of.
type sparse struct {
	size   int64
	runs   []image.Extent // sorted; Zero set = claimed to be zero
	data   func(p []byte, off int64)
	read   atomic.Int64
	failAt int64 // reads that touch this offset fail, if it is not 0
	onRead func()
}

var errRead = errors.New("the disk is broken here")

func (s *sparse) ReadAt(p []byte, off int64) (int, error) {
	if s.onRead != nil {
		s.onRead()
	}
	if s.failAt != 0 && off <= s.failAt && s.failAt < off+int64(len(p)) {
		return 0, errRead
	}
	n := int(min(int64(len(p)), s.size-off))
	s.data(p[:n], off)
	s.read.Add(int64(n))
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *sparse) Extent(start, length int64) (image.Extent, error) {
	for _, r := range s.runs {
		if start < r.Start+r.Length {
			r.Length = min(length, r.Start+r.Length-start)
			r.Start = start
			return r, nil
		}
	}
	return image.Extent{}, errors.New("out of bounds")
}

func (s *sparse) Close() error     { return nil }
func (s *sparse) Size() int64      { return s.size }
func (s *sparse) Type() image.Type { return "raw" }
func (s *sparse) Readable() error  { return nil }

// ones is a disk of size bytes, all of them 1.
func ones(size int64) *sparse {
	return &sparse{size: size, runs: []image.Extent{{Length: size, Allocated: true}}, data: func(p []byte, _ int64) {
		for i := range p {
			p[i] = 1
		}
	}}
}

// marks is a Marker that remembers blocks.
type marks struct {
	block int64
	mu    sync.Mutex
	data  map[int64]bool
}

func newMarks(block int64) *marks { return &marks{block: block, data: map[int64]bool{}} }

func (m *marks) BlockSize() int64 { return m.block }

func (m *marks) MarkRange(off, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for b := off / m.block; b*m.block < off+n; b++ {
		m.data[b] = true
	}
}

// TestScanFindsContent scans random disks: what is handed out and marked is exactly what is not
// zero, every byte is handed out at most once, and the RAW file is the disk.
func TestScanFindsContent(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		im := qcow2test.Image{Version: 3, ClusterBits: rapid.SampledFrom([]uint{9, 12, 16}).Draw(t, "cluster bits"),
			Size: rapid.Int64Range(1, 2<<20).Draw(t, "size"), Zstd: rapid.Bool().Draw(t, "zstd")}
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		cluster := int64(1) << im.ClusterBits
		for i := range (im.Size + cluster - 1) / cluster {
			data := make([]byte, cluster)
			if rnd.IntN(3) > 0 {
				data[rnd.IntN(len(data))] = 1
			}
			if rnd.IntN(3) == 0 {
				im.Clusters = append(im.Clusters, qcow2test.Cluster{
					Index: i, Kind: qcow2test.Kind(rnd.IntN(4)), Data: data})
			}
		}
		want := im.Content(nil)
		want = append(want, make([]byte, (512-len(want)%512)%512)...)
		path := filepath.Join(dir, "src.qcow2")
		if err := os.WriteFile(path, im.Write().Bytes, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := convert.Open(context.Background(), path, convert.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()

		m := newMarks(int64(512) << rapid.IntRange(0, 9).Draw(t, "block"))
		s := convert.NewScanner(d, m)
		got := make([]byte, len(want))
		var mu sync.Mutex
		seen := map[int64]bool{}
		var progress atomic.Int64
		err = convert.Scan(context.Background(), s, convert.ScanOptions{
			Workers: rapid.IntRange(0, 4).Draw(t, "workers"), ChunkSize: rapid.IntRange(1, 300000).Draw(t, "chunk"),
			Progress: func(n int64) { progress.Add(n) },
		}, func(off int64, p []byte) error {
			mu.Lock()
			defer mu.Unlock()
			if seen[off] || convert.IsZero(p) {
				t.Errorf("chunk at %d: again %t, zero %t", off, seen[off], convert.IsZero(p))
			}
			seen[off] = true
			copy(got[off:], p)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatal("wrong content")
		}
		if progress.Load() != d.Size() {
			t.Fatalf("progress %d of %d", progress.Load(), d.Size())
		}
		dataBytes := int64(0)
		for b := int64(0); b*m.block < d.Size(); b++ {
			p := want[b*m.block : min((b+1)*m.block, d.Size())]
			if data := !convert.IsZero(p); data != m.data[b] {
				t.Fatalf("block %d is marked %t", b, m.data[b])
			} else if data {
				dataBytes += int64(len(p))
			}
		}
		if st := s.Stats(); st.DataBytes != dataBytes || st.ZeroBytes != d.Size()-dataBytes || st.BytesRead > d.Size() {
			t.Fatalf("stats %+v of %d, %d bytes in data blocks", st, d.Size(), dataBytes)
		}

		dst := filepath.Join(dir, "dst.raw")
		if _, err := convert.WriteRAW(context.Background(), d, dst, convert.RAWOptions{Overwrite: true}); err != nil {
			t.Fatal(err)
		}
		written, err := os.ReadFile(dst)
		if err != nil || !bytes.Equal(written, want) {
			t.Fatalf("wrong RAW file: %v", err)
		}
	})
}

// TestScanSkipsHoles scans 64 TiB with three bytes of data: time and reads follow the data.
func TestScanSkipsHoles(t *testing.T) {
	const size = 64 << 40
	s := ones(size)
	s.runs = []image.Extent{
		{Start: 0, Length: 1, Allocated: true},
		{Start: 1, Length: size/2 - 1, Zero: true},
		{Start: size / 2, Length: 1, Allocated: true},
		{Start: size/2 + 1, Length: size/2 - 2, Zero: true},
		{Start: size - 1, Length: 1, Allocated: true},
	}
	sc := convert.NewScanner(s, nil)
	var progress atomic.Int64
	err := convert.Scan(context.Background(), sc, convert.ScanOptions{Progress: func(n int64) { progress.Add(n) }}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.read.Load() != 3 || progress.Load() != size {
		t.Errorf("read %d bytes, progress %d, want 3 and %d", s.read.Load(), progress.Load(), int64(size))
	}
	want := convert.ScanStats{BytesRead: 3, DataBytes: 3 * convert.DefaultBlock, ZeroBytes: size - 3*convert.DefaultBlock}
	if st := sc.Stats(); st != want {
		t.Errorf("stats %+v, want %+v", st, want)
	}
}

func TestScanStopsAtErrors(t *testing.T) {
	for name, tc := range map[string]func(s *sparse) (func(int64, []byte) error, error){
		"reading": func(s *sparse) (func(int64, []byte) error, error) {
			s.failAt = 33 << 20
			return nil, errRead
		},
		"the callback": func(*sparse) (func(int64, []byte) error, error) {
			return func(int64, []byte) error { return os.ErrInvalid }, os.ErrInvalid
		},
		"mapping": func(s *sparse) (func(int64, []byte) error, error) {
			s.runs[0].Length = 16 << 20
			return nil, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := ones(64 << 20)
			fn, want := tc(s)
			err := convert.Scan(context.Background(), convert.NewScanner(s, nil), convert.ScanOptions{}, fn)
			if err == nil || want != nil && !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
		})
	}
}

// TestScanStopsWhenCancelled cancels in the middle: little more than what was under way is read.
func TestScanStopsWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	s := ones(1 << 40)
	var reads atomic.Int64
	s.onRead = func() {
		if reads.Add(1) == 5 {
			cancel()
		}
	}
	err := convert.Scan(ctx, convert.NewScanner(s, nil), convert.ScanOptions{Workers: 2, ChunkSize: 2 << 20}, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if n := reads.Load(); n > 20 {
		t.Errorf("%d chunks were read after the cancellation in the 5th", n)
	}
	for range convert.Extents(ctx, s) {
		if ctx.Err() == nil {
			t.Error("extents after the cancellation")
		}
	}
}

func TestReadRangeRefusesBadRanges(t *testing.T) {
	s := convert.NewScanner(ones(10<<20+7), newMarks(1<<20))
	for _, tc := range []struct {
		off, n int64
		ok     bool
	}{
		{0, 1 << 20, true}, {9 << 20, 1<<20 + 7, true}, {10 << 20, 7, true},
		{0, 0, false}, {-1 << 20, 1 << 20, false}, {1, 1<<20 - 1, false}, {0, 5, false}, {10 << 20, 8, false}, {11 << 20, 7, false},
	} {
		_, err := s.ReadRange(context.Background(), make([]byte, tc.n), tc.off)
		if (err == nil) != tc.ok {
			t.Errorf("%d bytes at %d: %v, want success: %t", tc.n, tc.off, err, tc.ok)
		}
	}
}

// TestReadRangeClears does not leave what was in the buffer.
func TestReadRangeClears(t *testing.T) {
	s := ones(4 << 20)
	s.runs = []image.Extent{{Length: 1 << 20, Allocated: true}, {Start: 1 << 20, Length: 3 << 20, Zero: true}}
	p := bytes.Repeat([]byte{0xEE}, 4<<20)
	zero, err := convert.NewScanner(s, nil).ReadRange(context.Background(), p, 0)
	if err != nil || zero || !convert.IsZero(p[1<<20:]) || convert.IsZero(p[:1<<20]) {
		t.Errorf("zero %t, %v", zero, err)
	}
	zero, err = convert.NewScanner(s, nil).ReadRange(context.Background(), p[:2<<20], 2<<20)
	if err != nil || !zero {
		t.Errorf("zero %t, %v", zero, err)
	}
}

func TestIsZero(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := make([]byte, rapid.IntRange(0, 10000).Draw(t, "length"))
		if !convert.IsZero(p) {
			t.Fatal("zeros are not zero")
		}
		if len(p) > 0 {
			p[rapid.IntRange(0, len(p)-1).Draw(t, "at")] = rapid.ByteRange(1, 255).Draw(t, "byte")
			if convert.IsZero(p) {
				t.Fatal("a byte was missed")
			}
		}
	})
}

// TestExtentsMerges joins neighbours that are alike and no others.
func TestExtentsMerges(t *testing.T) {
	s := &sparse{size: 50, runs: []image.Extent{
		{Start: 0, Length: 10, Zero: true}, {Start: 10, Length: 10, Zero: true}, {Start: 20, Length: 10, Allocated: true},
		{Start: 30, Length: 10, Allocated: true, Compressed: true}, {Start: 40, Length: 10, Allocated: true, Zero: true}}}
	var got []image.Extent
	for e, err := range convert.Extents(context.Background(), s) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	if len(got) != 4 || got[0] != (image.Extent{Length: 20, Zero: true}) || got[3].Start != 40 {
		t.Errorf("got %+v", got)
	}
	for e := range convert.Extents(context.Background(), s) {
		if e.Start > 0 {
			t.Error("goes on after the end of the loop")
		}
		break
	}
}

// TestWriteRAWLeavesNothing looks for files left behind by failures, and for files that were
// touched.
func TestWriteRAWLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, tc := range []struct {
		name    string
		ctx     context.Context
		prepare func(s *sparse, dir string)
		options convert.RAWOptions
		want    error
	}{
		{"reading fails", context.Background(), func(s *sparse, _ string) { s.failAt = 9 << 20 }, convert.RAWOptions{}, errRead},
		{"cancelled", ctx, func(s *sparse, _ string) { s.onRead = cancel }, convert.RAWOptions{}, context.Canceled},
		{"the target exists", context.Background(), func(_ *sparse, dir string) {
			write(t, filepath.Join(dir, "dst.raw"), []byte("precious"))
		}, convert.RAWOptions{}, os.ErrExist},
		{"the target appears meanwhile", context.Background(), func(s *sparse, dir string) {
			var once sync.Once
			s.onRead = func() { once.Do(func() { write(t, filepath.Join(dir, "dst.raw"), []byte("precious")) }) }
		}, convert.RAWOptions{}, os.ErrExist},
		{"reading fails and the target exists", context.Background(), func(s *sparse, dir string) {
			s.failAt = 9 << 20
			write(t, filepath.Join(dir, "dst.raw"), []byte("precious"))
		}, convert.RAWOptions{Overwrite: true}, errRead},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			s := ones(16 << 20)
			tc.prepare(s, dir)
			_, err := convert.WriteRAW(tc.ctx, s, filepath.Join(dir, "dst.raw"), tc.options)
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				b, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if e.Name() != "dst.raw" || string(b) != "precious" {
					t.Errorf("left behind: %s, %d bytes, %v", e.Name(), len(b), err)
				}
			}
		})
	}
}

func TestWriteRAWReplacesOnRequest(t *testing.T) {
	dst := filepath.Join(t.TempDir(), "dst.raw")
	write(t, dst, []byte("old"))
	s := ones(70000)
	if _, err := convert.WriteRAW(context.Background(), s, dst, convert.RAWOptions{Overwrite: true}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dst)
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{1}, 70000)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestWriteRAWKeepsTheSource never writes over a file of the source, by whatever name.
func TestWriteRAWKeepsTheSource(t *testing.T) {
	dir := t.TempDir()
	src, link := filepath.Join(dir, "src.raw"), filepath.Join(dir, "link.raw")
	write(t, src, []byte("source"))
	if err := os.Link(src, link); err != nil {
		skip(t, err.Error())
	}
	d, err := convert.Open(context.Background(), src, convert.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, dst := range []string{src, link} {
		if _, err := convert.WriteRAW(context.Background(), d, dst, convert.RAWOptions{Overwrite: true}); err == nil {
			t.Errorf("%s was written over", dst)
		}
	}
	if b, err := os.ReadFile(src); err != nil || string(b) != "source" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestCheckUnchanged changes a source in every way that must be noticed.
func TestCheckUnchanged(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"nothing":   nil,
		"longer":    func(p string) error { return os.Truncate(p, 20<<20) },
		"shorter":   func(p string) error { return os.Truncate(p, 4096) },
		"rewritten": func(p string) error { return os.WriteFile(p, make([]byte, 10<<20), 0o600) },
		"replaced": func(p string) error {
			return errors.Join(os.WriteFile(p+"2", make([]byte, 10<<20), 0o600), os.Rename(p+"2", p))
		},
		"removed": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "src.raw")
			write(t, path, bytes.Repeat([]byte{1}, 10<<20))
			old := oldTime()
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
			d, err := convert.Open(context.Background(), path, convert.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if err := d.CheckUnchanged(); err != nil {
				t.Fatalf("unchanged: %v", err)
			}
			if change == nil {
				return
			}
			if err := change(path); err != nil {
				t.Fatal(err)
			}
			if err := d.CheckUnchanged(); err == nil {
				t.Error("the change was not noticed")
			}
			dst := path + ".out"
			if _, err := convert.WriteRAW(context.Background(), d, dst, convert.RAWOptions{}); err == nil {
				t.Error("a mixture was written")
			}
			if _, err := os.Lstat(dst); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the target exists: %v", err)
			}
		})
	}
}

// TestMemoryIsBounded scans much more than the buffers hold.
func TestMemoryIsBounded(t *testing.T) {
	s := ones(1 << 30)
	err := allocating(t, func() error {
		return convert.Scan(context.Background(), convert.NewScanner(s, nil),
			convert.ScanOptions{Workers: 4, ChunkSize: 4 << 20}, func(int64, []byte) error { return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
}
