// SPDX-License-Identifier: Apache-2.0

package zvhd2

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lima-vm/go-qcow2reader/image"
	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert/zvhd2/zvhd2test"
)

// source reads blocks of a disk.
type source struct {
	disk  zvhd2test.Disk
	reads atomic.Int64
	fail  func(off int64) error
}

func (s *source) ReadRange(ctx context.Context, p []byte, off int64) (bool, error) {
	s.reads.Add(1)
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if s.fail != nil {
		if err := s.fail(off); err != nil {
			return false, err
		}
	}
	if want := min(BlockSize, s.disk.Size-off); off%BlockSize != 0 || int64(len(p)) != want {
		return false, fmt.Errorf("asked for %d bytes at %d, expected %d", len(p), off, want)
	}
	if _, err := s.disk.ReadAt(p, off); err != nil {
		return false, err
	}
	return isZero(p), nil
}

// extents gives the pieces of a disk and the zeros between them.
func extents(d zvhd2test.Disk) iter.Seq2[image.Extent, error] {
	return func(yield func(image.Extent, error) bool) {
		at := int64(0)
		for _, p := range d.Pieces {
			if p.Offset > at && !yield(image.Extent{Start: at, Length: p.Offset - at, Zero: true}, nil) {
				return
			}
			if !yield(image.Extent{Start: p.Offset, Length: int64(len(p.Data)), Allocated: true}, nil) {
				return
			}
			at = p.Offset + int64(len(p.Data))
		}
		if at < d.Size {
			yield(image.Extent{Start: at, Length: d.Size - at, Zero: true}, nil)
		}
	}
}

// drawDisk draws a disk of a few blocks whose size is a multiple of 512.
func drawDisk(t *rapid.T) zvhd2test.Disk {
	size := rapid.Int64Range(1, 6*BlockSize/512).Draw(t, "sectors") * 512
	if rapid.Bool().Draw(t, "whole blocks") {
		size = roundUp(size, BlockSize)
	}
	if rapid.IntRange(0, 3).Draw(t, "far") == 0 {
		size += 70000 * BlockSize // three segments of bitmap
	}
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2))
	d := zvhd2test.Disk{Size: size}
	at := int64(0)
	for range rapid.IntRange(0, 4).Draw(t, "pieces") {
		if at >= size {
			break
		}
		at += rnd.Int64N(min(size-at, 2*BlockSize))
		if rnd.IntN(4) == 0 {
			at = min(at/BlockSize*BlockSize+BlockSize, size-1)
		}
		n := int(min(size-at, rnd.Int64N(BlockSize+BlockSize/2)+1))
		p := make([]byte, n)
		switch rnd.IntN(4) {
		case 0:
			p = zvhd2test.Text(fmt.Sprint(at), n)
		case 1:
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
		case 2:
			for i := 0; i < n; i += 1 + rnd.IntN(3000) {
				p[i] = byte(rnd.Uint32())
			}
		case 3:
			p[n-1] = 1
		}
		d.Pieces = append(d.Pieces, zvhd2test.Piece{Offset: at, Data: p})
		at += int64(n)
		if rnd.IntN(8) == 0 && size > 60000*BlockSize && at < 32000*BlockSize {
			at += rnd.Int64N(30000 * BlockSize)
		}
	}
	return d
}

func drawOptions(t *rapid.T) WriterOptions {
	o := WriterOptions{
		Method: rapid.SampledFrom([]Method{"", Zstd, Zlib}).Draw(t, "method"),
		Time:   epoch.Add(time.Duration(rapid.Uint32().Draw(t, "time")) * time.Second),
		UUID:   UUID{1, 2, 3},
	}
	// The slowest levels are left to another test.
	most := 9
	if o.Method == Zlib {
		most = 5
	}
	o.Level = rapid.IntRange(0, most).Draw(t, "level")
	return o
}

// TestReadsWhatWasWritten writes a disk in several ways, with results that are equal to the last
// byte, and reads it back.
func TestReadsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk, o := drawDisk(t), drawOptions(t)
		o.Workers = 1
		want := pushed(t, disk, o, rapid.Bool().Draw(t, "with zeros"))
		o.Workers = rapid.IntRange(2, 5).Draw(t, "workers")
		if got := pulled(t, disk, o); !bytes.Equal(got, want) {
			t.Fatal("with more workers the image is another")
		}

		m, err := preflight(want, Options{OriginalSize: true})
		if err != nil {
			t.Fatal(err)
		}
		if m.VirtualSize != disk.Size || m.CurrentSize != roundUp(disk.Size, gib) {
			t.Fatalf("sizes %+v of a disk of %d bytes", m, disk.Size)
		}
		img, err := m.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		checkEqual(t, img, disk)
		mapped := int64(0)
		for _, b := range disk.Blocks() {
			if !isZero(disk.Block(b)) {
				mapped += min(BlockSize, disk.Size-b*BlockSize)
			}
		}
		if m.MappedBytes != mapped {
			t.Fatalf("%d bytes mapped, want %d", m.MappedBytes, mapped)
		}

		// With the current size, zeros follow.
		m, err = preflight(want, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if img, err = m.Open(nil); err != nil {
			t.Fatal(err)
		}
		disk.Size = roundUp(disk.Size, gib)
		checkEqual(t, img, disk)
	})
}

// pushed writes a disk block by block.
func pushed(t *rapid.T, disk zvhd2test.Disk, o WriterOptions, zeros bool) []byte {
	var b bytes.Buffer
	w, err := NewWriter(&b, disk.Size, o)
	if err != nil {
		t.Fatal(err)
	}
	blocks := disk.Blocks()
	if zeros && disk.Size < 1000*BlockSize {
		blocks = nil
		for block := range blockCount(disk.Size) {
			blocks = append(blocks, block)
		}
	}
	for _, block := range blocks {
		p := disk.Block(block)[:min(BlockSize, disk.Size-block*BlockSize)]
		if err := w.WriteBlock(context.Background(), block, p); err != nil {
			t.Fatal(err)
		}
		clear(p) // it is the caller's again
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pulled writes a disk by its extents.
func pulled(t *rapid.T, disk zvhd2test.Disk, o WriterOptions) []byte {
	var b bytes.Buffer
	w, err := NewWriter(&b, disk.Size, o)
	if err != nil {
		t.Fatal(err)
	}
	src := &source{disk: disk}
	if err := w.WriteFrom(context.Background(), src, extents(disk)); err != nil {
		t.Fatal(err)
	}
	if n := src.reads.Load(); n != int64(len(disk.Blocks())) {
		t.Fatalf("%d blocks were read, of %d with data", n, len(disk.Blocks()))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if s := w.Stats(); s.Stored > src.reads.Load() {
		t.Fatalf("%+v", s)
	}
	return b.Bytes()
}

// checkEqual compares an image with a disk at random places, in parallel, and by extents.
func checkEqual(t *rapid.T, img image.Image, want zvhd2test.Disk) {
	if img.Size() != want.Size {
		t.Fatalf("size %d, want %d", img.Size(), want.Size)
	}
	stored := map[int64]bool{}
	last := image.Extent{}
	for off := int64(0); off < img.Size(); off += last.Length {
		e, err := img.Extent(off, img.Size()-off)
		if err != nil || e.Start != off || e.Length <= 0 || e.Length > img.Size()-off || e.Allocated == e.Zero {
			t.Fatalf("extent at %d: %+v, %v", off, e, err)
		}
		if off > 0 && e.Zero == last.Zero {
			t.Fatalf("%+v and %+v are one extent", last, e)
		}
		last = e
		for b := off / BlockSize; e.Allocated && b*BlockSize < off+e.Length; b++ {
			stored[b] = true
		}
		// A part of an extent is like the whole.
		if n := e.Length / 3; n > 0 {
			part, err := img.Extent(off+n, n)
			if err != nil || part.Start != off+n || part.Length != n || part.Zero != e.Zero {
				t.Fatalf("extent of %d bytes at %d: %+v, %v", n, off+n, part, err)
			}
			part, err = img.Extent(off+n, img.Size()-off-n)
			if err != nil || part.Start != off+n || part.Length != e.Length-n || part.Zero != e.Zero {
				t.Fatalf("extent at %d: %+v, %v; a part of %+v", off+n, part, err, e)
			}
		}
	}
	for _, b := range want.Blocks() {
		if stored[b] == isZero(want.Block(b)) {
			t.Fatalf("block %d: stored %t", b, stored[b])
		}
	}
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "reads"), 3))
	type read struct{ off, n int64 }
	reads := []read{{0, min(want.Size, 3*BlockSize)}, {want.Size - 1, 1}, {want.Size - 1, 10}}
	for _, p := range want.Pieces {
		off := max(0, p.Offset-rnd.Int64N(10000))
		reads = append(reads, read{off, rnd.Int64N(int64(len(p.Data)) + 20000)})
		reads = append(reads, read{p.Offset / BlockSize * BlockSize, BlockSize})
	}
	errs := make([]error, len(reads))
	var wg sync.WaitGroup
	for i, r := range reads {
		wg.Go(func() {
			got, expected := make([]byte, r.n), make([]byte, r.n)
			n, err := img.ReadAt(got, r.off)
			m, wantErr := want.ReadAt(expected, r.off)
			if n != m || err != wantErr || !bytes.Equal(got[:n], expected[:m]) {
				errs[i] = fmt.Errorf("%d bytes at %d: %d, %v; want %d, %v, or other bytes", r.n, r.off, n, err, m, wantErr)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// TestSlowLevels writes a block with all levels that differ, with encoders that are new and that
// were used, and reads it.
func TestSlowLevels(t *testing.T) {
	blocks := [][]byte{
		append(zvhd2test.Text("a", BlockSize-300000), zvhd2test.Noise("a", 300000)...),
		append(zvhd2test.Noise("b", 100000), make([]byte, BlockSize-100000)...),
		append(zvhd2test.Text("a", 400000), bytes.Repeat([]byte("abcd"), (BlockSize-400000)/4)...),
	}
	for _, method := range []Method{Zstd, Zlib} {
		lengths := map[int]int{}
		levels := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
		if method == Zstd {
			levels = append(levels, 10, 22)
		}
		if raceEnabled { // the encoders are many times slower
			levels = []int{0, levels[len(levels)-1], 1, 3}
		}
		for _, level := range levels {
			used, err := NewEncoder(method, level)
			if err != nil {
				t.Fatal(err)
			}
			records := map[int][]byte{}
			for _, i := range []int{0, 1, 2, 0, 1, 2, 2, 1, 0} {
				r, err := used.Append(nil, int64(i), blocks[i])
				if err != nil {
					t.Fatal(err)
				}
				if records[i] == nil {
					records[i] = r
					lengths[level] += len(r)
				} else if !bytes.Equal(records[i], r) {
					t.Fatalf("%s, level %d: a used encoder makes another record of block %d", method, level, i)
				}
				fresh, err := NewEncoder(method, level)
				if err != nil {
					t.Fatal(err)
				}
				// What is there already is left alone.
				prefix := []byte("prefix")
				f, err := fresh.Append(prefix, int64(i), blocks[i])
				if err != nil || !bytes.Equal(f, append(prefix, r...)) {
					t.Fatalf("%s, level %d: a new encoder makes another record of block %d: %v", method, level, i, err)
				}
				payload, err := parseRecord(r, 0, int64(i))
				if err != nil {
					t.Fatal(err)
				}
				got, d := make([]byte, BlockSize), new(decoder)
				if method == Zlib {
					err = d.inflate(got, payload)
					// As the vendor's writer ends it.
					if payload[0] != 0x78 || !bytes.HasSuffix(payload, syncFlush) || level <= 1 && payload[1] != 1 {
						t.Errorf("level %d: payload %x ... %x", level, payload[:2], payload[len(payload)-4:])
					}
				} else {
					err = d.unzstd(got, payload)
				}
				if err != nil || !bytes.Equal(got, blocks[i]) {
					t.Fatalf("%s, level %d: block %d was not read back: %v", method, level, i, err)
				}
			}
		}
		best := map[Method]int{Zstd: 22, Zlib: 9}[method]
		if lengths[best] >= lengths[1] || lengths[0] != lengths[map[Method]int{Zstd: 3, Zlib: 1}[method]] {
			t.Errorf("%s: lengths by level %v", method, lengths)
		}
	}
}

func TestEncoderRefuses(t *testing.T) {
	for _, tc := range []struct {
		method Method
		level  int
		want   string
	}{
		{Zstd, 23, "level 23 is not between 1 and 22"},
		{Zstd, -1, "level -1"},
		{"", 30, "level 30"},
		{Zlib, 10, "level 10 is not between 1 and 9"},
		{"lz4", 1, `method "lz4"`},
	} {
		if _, err := NewEncoder(tc.method, tc.level); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v", tc, err)
		}
		if _, err := NewWriter(io.Discard, 1, WriterOptions{Method: tc.method, Level: tc.level}); err == nil {
			t.Errorf("%+v: a writer was made", tc)
		}
	}
	e, err := NewEncoder("", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range []int64{-1, 1 << 32} {
		if _, err := e.Append(nil, block, []byte{1}); err == nil {
			t.Errorf("block %d was taken", block)
		}
	}
	if _, err := e.Append(nil, 0, make([]byte, BlockSize+1)); err == nil {
		t.Error("a block that is too long was taken")
	}
	// A block that is short is filled up with zeros, whatever the encoder did before.
	for _, n := range []int{BlockSize - 1, 100, 3000} {
		p := make([]byte, BlockSize)
		copy(p, zvhd2test.Noise("short", n))
		short, err := e.Append(nil, 0, p[:n])
		if err != nil {
			t.Fatal(err)
		}
		if full, err := e.Append(nil, 0, p); err != nil || !bytes.Equal(short, full) {
			t.Errorf("a block of %d bytes is stored with something else behind it: %v", n, err)
		}
	}
	for _, p := range [][]byte{nil, make([]byte, 1), make([]byte, BlockSize)} {
		if r, err := e.Append([]byte("x"), 0, p); err != nil || string(r) != "x" {
			t.Errorf("%d zeros: %q, %v", len(p), r, err)
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	for _, size := range []int64{-1, 0, MaxSize + 1} {
		if _, err := NewWriter(io.Discard, size, WriterOptions{}); err == nil {
			t.Errorf("a disk of %d bytes was taken", size)
		}
	}
	for _, year := range []int{1999, 2137} {
		o := WriterOptions{Time: time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC)}
		if _, err := NewWriter(io.Discard, 1, o); err == nil {
			t.Errorf("the year %d was taken", year)
		}
	}
	if _, err := NewWriter(io.Discard, 1, WriterOptions{Workers: -1}); err == nil {
		t.Error("-1 workers were taken")
	}

	ctx := context.Background()
	block := bytes.Repeat([]byte{1}, BlockSize)
	for name, use := range map[string]func(w *Writer) error{
		"same block":       func(w *Writer) error { return w.WriteBlock(ctx, 2, block) },
		"earlier block":    func(w *Writer) error { return w.WriteBlock(ctx, 1, block) },
		"negative":         func(w *Writer) error { return w.WriteBlock(ctx, -1, block) },
		"behind the end":   func(w *Writer) error { return w.WriteBlock(ctx, 5, block) },
		"too short":        func(w *Writer) error { return w.WriteBlock(ctx, 3, block[1:]) },
		"last, too long":   func(w *Writer) error { return w.WriteBlock(ctx, 4, block) },
		"cancelled":        func(w *Writer) error { return w.WriteBlock(cancelled(), 3, block) },
		"aborted":          func(w *Writer) error { w.Abort(); return w.WriteBlock(ctx, 3, block) },
		"extents, failing": func(w *Writer) error { return w.WriteFrom(ctx, new(source), failing) },
		"extents, outside": func(w *Writer) error {
			return w.WriteFrom(ctx, new(source), extents(zvhd2test.Disk{Size: 5 * BlockSize}))
		},
		"extents, cancelled": func(w *Writer) error {
			disk := zvhd2test.Disk{Size: 5 * BlockSize, Pieces: []zvhd2test.Piece{{Offset: 4 * BlockSize, Data: block[:100]}}}
			return w.WriteFrom(cancelled(), &source{disk: disk}, extents(disk))
		},
		"source, failing": func(w *Writer) error {
			disk := zvhd2test.Disk{Size: 4*BlockSize + 512, Pieces: []zvhd2test.Piece{{Offset: 4 * BlockSize, Data: block[:100]}}}
			return w.WriteFrom(ctx, &source{disk: disk, fail: func(int64) error { return io.ErrNoProgress }}, extents(disk))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			w, err := NewWriter(&b, 4*BlockSize+512, WriterOptions{Workers: 2})
			if err != nil {
				t.Fatal(err)
			}
			if err := w.WriteBlock(ctx, 2, block); err != nil {
				t.Fatal(err)
			}
			first := use(w)
			if first == nil {
				t.Fatal("no error")
			}
			// It stays with the first error, and never completes the image.
			if err := w.WriteBlock(ctx, 3, block); !errors.Is(err, first) {
				t.Errorf("next block: %v, want %v", err, first)
			}
			for range 2 {
				if err := w.Close(); !errors.Is(err, first) {
					t.Errorf("close: %v, want %v", err, first)
				}
			}
			if err := w.WriteBlock(ctx, 3, block); err == nil {
				t.Error("a closed writer took a block")
			}
			if _, err := preflight(b.Bytes(), Options{}); err == nil {
				t.Error("the image looks complete")
			}
		})
	}
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func failing(yield func(image.Extent, error) bool) { yield(image.Extent{}, io.ErrNoProgress) }

// limited takes so many calls of Write and fails the next.
type limited struct {
	bytes.Buffer
	calls int
	short bool
}

var errFull = errors.New("full")

func (l *limited) Write(p []byte) (int, error) {
	if l.calls--; l.calls == -1 {
		if l.short {
			return len(p) - 1, nil
		}
		return 0, errFull
	}
	return l.Buffer.Write(p)
}

// TestFailingOutput lets each call of Write fail in turn: no image is complete, and nothing is left
// running.
func TestFailingOutput(t *testing.T) {
	disk := content()
	for calls := 0; ; calls++ {
		out := &limited{calls: calls, short: calls%2 == 1}
		w, err := NewWriter(out, disk.Size, WriterOptions{Workers: 3})
		if err != nil {
			t.Fatal(err)
		}
		err = w.WriteFrom(context.Background(), &source{disk: disk}, extents(disk))
		closeErr := w.Close()
		if closeErr == nil {
			if err != nil {
				t.Errorf("%d calls: %v, but the image is complete", calls, err)
			}
			// Head, four records, middle page, index, bitmap, footer.
			if calls != 9 {
				t.Errorf("complete after %d calls of Write", calls)
			}
			img, _ := open(t, out.Bytes(), Options{})
			sameDisk(t, img, disk)
			return
		}
		want := errFull
		if out.short {
			want = io.ErrShortWrite
		}
		if !errors.Is(closeErr, want) || err != nil && !errors.Is(err, want) {
			t.Errorf("%d calls: %v, %v", calls, err, closeErr)
		}
		if out.calls != -1 {
			t.Errorf("%d calls: %d more after the one that failed", calls, -1-out.calls)
		}
		if _, err := preflight(out.Bytes(), Options{}); err == nil {
			t.Errorf("%d calls: the image looks complete", calls)
		}
	}
}

// uploader takes a stream, and a checkpoint before each record.
type uploader struct {
	bytes.Buffer
	w           *Writer
	checkpoints []Checkpoint
	packed      []byte // the same, as a journal that stores each record once
	count       int64
}

func (u *uploader) Write(p []byte) (int, error) {
	if string(p[:4]) == recordMagic[:4] {
		u.checkpoints = append(u.checkpoints, u.w.Checkpoint())
		u.packed = u.w.AppendRecords(u.packed, u.count)
		u.count = u.w.Stats().Stored
	}
	return u.Buffer.Write(p)
}

// TestResume goes on from every checkpoint, through JSON, and gets the same file as in one go.
func TestResume(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk, o := drawDisk(t), drawOptions(t)
		o.Level, o.Workers = 1, 3
		u := new(uploader)
		var err error
		if u.w, err = NewWriter(u, disk.Size, o); err != nil {
			t.Fatal(err)
		}
		if err := u.w.WriteFrom(context.Background(), &source{disk: disk}, extents(disk)); err != nil {
			t.Fatal(err)
		}
		if err := u.w.Close(); err != nil {
			t.Fatal(err)
		}
		want := u.Bytes()
		last := u.w.Checkpoint()
		if u.packed = u.w.AppendRecords(u.packed, u.count); !bytes.Equal(u.packed, last.Records) {
			t.Fatalf("packed piece by piece %x, in one %x", u.packed, last.Records)
		}
		for _, c := range append(u.checkpoints, last) {
			text, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			var back Checkpoint
			if err := json.Unmarshal(text, &back); err != nil {
				t.Fatal(err)
			}
			rest := new(bytes.Buffer)
			w, err := NewWriter(rest, disk.Size, WriterOptions{Resume: &back, Level: 1, Workers: 2})
			if err != nil {
				t.Fatal(err)
			}
			if err := w.WriteFrom(context.Background(), &source{disk: disk}, extents(disk)); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(rest.Bytes(), want[c.Offset:]) {
				t.Fatalf("resumed at %d, block %d: the file is another", c.Offset, c.Next)
			}
		}
	})
}

func TestDamagedCheckpoints(t *testing.T) {
	a, err := NewAssembler(Header{Size: 10 * BlockSize})
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range []int64{0, 3, 4} {
		if err := a.Add(block, 8192); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Resume(a.Checkpoint()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(c *Checkpoint){
		"size":        func(c *Checkpoint) { c.Size = 0 },
		"small size":  func(c *Checkpoint) { c.Size = 4 * BlockSize },
		"method":      func(c *Checkpoint) { c.Method = "lz4" },
		"no method":   func(c *Checkpoint) { c.Method = "" },
		"no time":     func(c *Checkpoint) { c.Time = time.Time{} },
		"time":        func(c *Checkpoint) { c.Time = c.Time.Add(1) },
		"no UUID":     func(c *Checkpoint) { c.UUID = UUID{} },
		"offset":      func(c *Checkpoint) { c.Offset += 4096 },
		"next":        func(c *Checkpoint) { c.Next++ },
		"cut":         func(c *Checkpoint) { c.Records = c.Records[:3] },
		"a record":    func(c *Checkpoint) { c.Records = c.Records[:4] },
		"length 0":    func(c *Checkpoint) { c.Records[1] = 0 },
		"varint":      func(c *Checkpoint) { c.Records = bytes.Repeat([]byte{0xFF}, 20) },
		"length":      func(c *Checkpoint) { c.Records = binary.AppendUvarint(c.Records[:1], 1027) },
		"block":       func(c *Checkpoint) { c.Records[4] = 6 },
		"block 2^64":  func(c *Checkpoint) { c.Records = append(binary.AppendUvarint(nil, 1<<64-1), 1) },
		"length 2^63": func(c *Checkpoint) { c.Records = binary.AppendUvarint(c.Records[:1], 1<<63) },
	} {
		c := a.Checkpoint()
		change(&c)
		if _, err := Resume(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	c := a.Checkpoint()
	if _, err := NewWriter(io.Discard, c.Size+1, WriterOptions{Resume: &c}); err == nil {
		t.Error("a checkpoint of another disk was accepted")
	}
	for _, text := range []string{``, `61fd7399-56b4-4a73-99eb-3f918ec6d7e`, `61fd739956b44a7399eb3f918ec6d7e0`,
		`61FD7399-56b4-4a73-99eb-3f918ec6d7e0`, `xxfd7399-56b4-4a73-99eb-3f918ec6d7e0`} {
		if new(UUID).UnmarshalText([]byte(text)) == nil {
			t.Errorf("UUID %q was accepted", text)
		}
	}
	u := NewUUID()
	if u == NewUUID() || u[6]>>4 != 4 || u[8]>>6 != 2 {
		t.Errorf("UUID %v is not a random one", u)
	}
	if err := a.Add(4, 4096); err == nil {
		t.Error("a block was added twice")
	}
	for _, length := range []int64{0, 1, 4097, maxRecord + 4096} {
		if err := a.Add(7, length); err == nil {
			t.Errorf("a record of %d bytes was added", length)
		}
	}
}

// hollow is a file of a head, zeros, and a tail.
type hollow struct {
	head, tail []byte
	size       int64
}

func (h hollow) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(h.head)) {
		copy(p, h.head[off:])
	}
	tail := h.size - int64(len(h.tail))
	if end := off + int64(len(p)); end > tail {
		copy(p[max(0, tail-off):], h.tail[max(0, off-tail):])
	}
	return len(p), nil
}

// TestTebibyte assembles an image of 1 TiB that is full of data, in little memory.
func TestTebibyte(t *testing.T) {
	const size, blocks = 1<<40 - 5*BlockSize, 1<<19 - 5
	a, err := NewAssembler(Header{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	used := allocated(func() {
		for block := range int64(blocks) {
			if err := a.Add(block, 4096+block%2*2097152); err != nil {
				t.Fatal(err)
			}
		}
	})
	if used > 32<<20 { // the slice grows by copying
		t.Errorf("adding all blocks allocated %d bytes", used)
	}
	if n := cap(a.stored) * 8; n > 8<<20 {
		t.Errorf("%d bytes are held", n)
	}
	c := a.Checkpoint()
	if len(c.Records) > 3*blocks {
		t.Errorf("the checkpoint has %d bytes", len(c.Records))
	}
	if b, err := Resume(c); err != nil || b.Offset() != a.Offset() {
		t.Fatalf("resumed: %v", err)
	}
	var tail bytes.Buffer
	tail.Grow(int(a.TailLength()))
	used = allocated(func() { err = a.WriteTail(&tail) })
	if err != nil || int64(tail.Len()) != a.TailLength() || tail.Len() != 8192+16*524288+16*4096 || used > 1<<20 {
		t.Fatalf("tail of %d bytes, expected %d, allocated %d: %v", tail.Len(), a.TailLength(), used, err)
	}
	if !isZero(tail.Bytes()[4096+blocks*16:][:5*16]) {
		t.Error("the rest of the index is not zero")
	}
	file := hollow{head: a.Head(), tail: tail.Bytes(), size: a.Offset() + a.TailLength()}
	var m *Metadata
	used = allocated(func() { m, err = Preflight(context.Background(), file, file.size, Options{}) })
	if err != nil || m.MappedBytes != blocks*BlockSize || used > 4<<20 ||
		m.TableBytes() > 2<<20 {
		t.Fatalf("preflight allocated %d bytes: %+v, %v", used, m, err)
	}
	img, err := m.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := img.Extent(0, img.Size()); err != nil || e.Length != blocks*BlockSize || !e.Allocated {
		t.Fatalf("%+v, %v", e, err)
	}
	for _, b := range []int64{0, 4095, 4096, 32768, 300001, blocks - 1} {
		_, err = img.ReadAt(make([]byte, 1), b*BlockSize)
		refused(t, err, fmt.Sprintf("the record of block %d at %d does not begin with", b,
			4096+b*4096+b/2*2097152))
	}
}

// TestWriterMemory writes much through few buffers.
func TestWriterMemory(t *testing.T) {
	const blocks = 100
	block := zvhd2test.Noise("memory", BlockSize)
	w, err := NewWriter(io.Discard, blocks*BlockSize, WriterOptions{Workers: 2, Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	used := allocated(func() {
		for i := range int64(blocks) {
			if err := w.WriteBlock(context.Background(), i, block); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	})
	// Four pairs of buffers, two encoders, a segment of the index; 200 MiB were given. Encoders that are
	// not in use can be collected and made again; with the race detector, pools forget on purpose.
	if used > 80<<20 && !raceEnabled {
		t.Errorf("allocated %d bytes", used)
	}
	if s := w.Stats(); s.Stored != blocks || s.Bytes != 4096+blocks*2101248 {
		t.Errorf("%+v", s)
	}
}

// TestDefaults leaves everything open.
func TestDefaults(t *testing.T) {
	var b bytes.Buffer
	w, err := NewWriter(&b, 1, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteBlock(context.Background(), 0, []byte{1}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	c := w.Checkpoint()
	if c.Method != Zstd || time.Since(c.Time).Abs() > time.Hour || c.UUID == (UUID{}) || c.Next != 1 {
		t.Errorf("%+v", c)
	}
	img, m := open(t, b.Bytes(), Options{OriginalSize: true})
	if m.VirtualSize != 512 {
		t.Errorf("size %d", m.VirtualSize)
	}
	got := make([]byte, 513)
	if n, err := img.ReadAt(got, 0); n != 512 || err != io.EOF || got[0] != 1 || !isZero(got[1:]) {
		t.Errorf("%d, %v, %x", n, err, got)
	}
	for _, read := range []struct {
		off int64
		err error
	}{{512, io.EOF}, {1 << 40, io.EOF}} {
		if n, err := img.ReadAt(got, read.off); n != 0 || err != read.err {
			t.Errorf("read at %d: %d, %v", read.off, n, err)
		}
	}
	if _, err := img.ReadAt(got, -1); err == nil {
		t.Error("read at -1")
	}
	for _, e := range [][2]int64{{-1, 1}, {0, 513}, {513, 0}, {0, -1}, {1, 1<<63 - 1}} {
		if _, err := img.Extent(e[0], e[1]); err == nil {
			t.Errorf("extent of %d bytes at %d", e[1], e[0])
		}
	}
	if e, err := img.Extent(512, 0); err != nil || e.Length != 0 {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestLibzstdReads gives frames of the encoder to libzstd, which the vendor's reader uses, by way
// of a QCOW2 image with clusters of the same size, compressed with zstd.
func TestLibzstdReads(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		skip(t, "qemu-img is not installed")
	}
	var blocks [][]byte
	for i := range 5 {
		text, noise := zvhd2test.Text(fmt.Sprint(i), BlockSize), zvhd2test.Noise(fmt.Sprint(i), BlockSize)
		blocks = append(blocks, append(text[:i*BlockSize/4:i*BlockSize/4], noise[i*BlockSize/4:]...))
	}
	blocks = append(blocks, append([]byte{1}, make([]byte, BlockSize-1)...))
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		blocks = append(blocks, program[i*BlockSize/2:][:BlockSize])
	}
	levels := []int{1, 3, 6, 10}
	if raceEnabled {
		levels = levels[:2]
	}
	for _, level := range levels {
		t.Run(fmt.Sprint(level), func(t *testing.T) {
			e, err := NewEncoder(Zstd, level)
			if err != nil {
				t.Fatal(err)
			}
			// QCOW2: header, refcount table, refcount block and L1 table, then the L2 table, in
			// clusters of 2 MiB; then the payloads. A compressed entry has an offset of 49 bits,
			// then sectors - 1.
			be := binary.BigEndian
			file := make([]byte, 5*BlockSize)
			copy(file, "QFI\xfb\x00\x00\x00\x03")
			be.PutUint32(file[20:], 21)
			be.PutUint64(file[24:], uint64(len(blocks)*BlockSize))
			be.PutUint32(file[36:], 1)
			be.PutUint64(file[40:], 3*BlockSize)
			be.PutUint64(file[48:], 1*BlockSize)
			be.PutUint32(file[56:], 1)
			be.PutUint64(file[72:], 1<<3)
			be.PutUint32(file[96:], 4)
			be.PutUint32(file[100:], 112)
			file[104] = 1
			be.PutUint64(file[BlockSize:], 2*BlockSize)
			be.PutUint64(file[3*BlockSize:], 4*BlockSize|1<<63)
			for i, block := range blocks {
				r, err := e.Append(nil, int64(i), block)
				if err != nil {
					t.Fatal(err)
				}
				payload := r[recordHeader:][:binary.LittleEndian.Uint32(r[offPayload:])]
				sectors := uint64(len(payload)+511) / 512
				be.PutUint64(file[4*BlockSize+8*i:], 1<<62|(sectors-1)<<49|uint64(len(file)))
				file = append(file, payload...)
				file = append(file, make([]byte, int(sectors*512)-len(payload))...)
			}
			in, out := filepath.Join(t.TempDir(), "in"), filepath.Join(t.TempDir(), "out")
			if err := os.WriteFile(in, file, 0o600); err != nil {
				t.Fatal(err)
			}
			if text, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", in, out).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, bytes.Join(blocks, nil)) {
				t.Error("libzstd reads other bytes")
			}
		})
	}
}

// TestManyReaders reads parts of few blocks from many goroutines.
func TestManyReaders(t *testing.T) {
	disk := content()
	img, _ := open(t, contentImage().Bytes(), Options{OriginalSize: true})
	var wg sync.WaitGroup
	for i := range 4 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 4))
			got, want := make([]byte, 300000), make([]byte, 300000)
			for range 50 {
				off := rnd.Int64N(disk.Size - 300000)
				if rnd.IntN(2) == 0 {
					off = rnd.Int64N(10) * 1000
				}
				if _, err := disk.ReadAt(want, off); err != nil {
					t.Error(err)
				}
				if _, err := img.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
					t.Errorf("at %d: %v, or other bytes", off, err)
				}
				if e, err := img.Extent(off, 300000); err != nil || e.Start != off {
					t.Errorf("%+v, %v", e, err)
				}
			}
		})
	}
	wg.Wait()
}
