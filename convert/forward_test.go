// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/convert/qcow2/qcow2test"
)

// patterned is a disk of blocks of 64 KiB, some of which are zero and none of which is another's.
func patterned(blocks int, zero func(block int) bool) []byte {
	disk := make([]byte, blocks<<16)
	rnd := rand.New(rand.NewPCG(5, 6))
	for b := range blocks {
		if zero(b) {
			continue
		}
		block := disk[b<<16 : (b+1)<<16]
		for i := 0; i < len(block); i += 1024 { // compresses well, and quickly
			binary.LittleEndian.PutUint64(block[i:], rnd.Uint64())
		}
	}
	return disk
}

// small is a window of the least size.
func small() convert.OpenOptions { return convert.WithWindow(convert.OpenOptions{}, 1<<20) }

// readInParts reads a disk as an upload does: parts in their order, by several readers at a time.
func readInParts(t *testing.T, d *convert.Disk, want []byte, part int64, readers int) {
	t.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			buf := make([]byte, part)
			for {
				off := next.Add(part) - part
				if off >= d.Size() {
					return
				}
				n := min(part, d.Size()-off)
				if _, err := d.ReadAt(buf[:n], off); err != nil && err != io.EOF {
					t.Errorf("read at %d: %v", off, err)
					return
				}
				if !bytes.Equal(buf[:n], want[off:off+n]) {
					t.Errorf("wrong content at %d", off)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestStreamed reads compressed disks without a copy of them: through a window that is a small part
// of the disk, in a bounded number of passes.
func TestStreamed(t *testing.T) {
	disk := patterned(5<<4, func(b int) bool { return b%48 > 30 })
	raw := filepath.Join(t.TempDir(), "disk.raw")
	write(t, raw, disk)
	vmdk := filepath.Join(t.TempDir(), "stream.vmdk")
	qemu(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, vmdk)
	stream, err := os.ReadFile(vmdk)
	if err != nil {
		t.Fatal(err)
	}
	qcow2 := filepath.Join(t.TempDir(), "disk.qcow2")
	qemu(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
	ordered, err := os.ReadFile(qcow2)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		image  []byte
		format string
		most   float64 // passes: the first, those of the tables, that of the data
	}{
		{"disk.raw", disk, "raw", 2.1}, {"stream.vmdk", stream, "vmdk", 5.1}, {"disk.qcow2", ordered, "qcow2", 5.1},
	} {
		for _, suffix := range []string{".gz", ".xz", ".zst", ".bz2"} {
			if tc.format != "raw" && (suffix == ".bz2" || suffix == ".xz") {
				continue // slow, and no other case than gzip
			}
			t.Run(tc.name+suffix, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), tc.name+suffix)
				write(t, path, pack(t, suffix, tc.image))
				d, err := convert.Open(context.Background(), path, convert.WithWindow(convert.OpenOptions{}, 2<<20))
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				if d.Type() != "" && string(d.Type()) != tc.format || !d.Info().Streamed ||
					tc.format == "raw" && !strings.Contains(strings.Join(d.Info().Warnings, "\n"), "5242880 bytes are unpacked twice") {
					t.Errorf("info %+v", d.Info())
				}
				checkZeroExtents(t, d, disk)
				readInParts(t, d, disk, 512<<10, 1)
				passes, kept := convert.Passes(d)
				if passes > tc.most || kept > 2<<20+8*256<<10 {
					t.Errorf("%.1f passes, %d bytes kept; want at most %.1f, and the window", passes, kept, tc.most)
				}
				readInParts(t, d, disk, 512<<10, 4)
			})
		}
	}
}

// TestStreamedTwice reads a disk by two readers far apart, as who sends and who checks, for one more
// pass each.
func TestStreamedTwice(t *testing.T) {
	disk := patterned(16<<4, func(int) bool { return false })
	path := filepath.Join(t.TempDir(), "disk.raw.gz")
	write(t, path, pack(t, ".gz", disk))
	d, err := convert.Open(context.Background(), path, small())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	buf := make([]byte, 256<<10)
	read := func(off int64) {
		t.Helper()
		if _, err := d.ReadAt(buf, off); err != nil && err != io.EOF || !bytes.Equal(buf, disk[off:off+int64(len(buf))]) {
			t.Fatalf("wrong content at %d, or %v", off, err)
		}
	}
	const apart = 8 << 20
	for off := int64(0); off < int64(len(disk))+apart; off += int64(len(buf)) {
		if off < int64(len(disk)) {
			read(off)
		}
		if off >= apart {
			read(off - apart)
		}
	}
	if passes, _ := convert.Passes(d); passes > 3.1 {
		t.Errorf("%.1f passes, want 3", passes)
	}
}

// TestStreamedRestarts begins where a member of a gzip file or a block of an xz file begins, not
// always at the start.
func TestStreamedRestarts(t *testing.T) {
	disk := patterned(40<<4, func(int) bool { return false })
	var members []byte
	for off := 0; off < len(disk); off += 3 << 20 {
		members = append(members, pack(t, ".gz", disk[off:min(off+3<<20, len(disk))])...)
	}
	for name, file := range map[string][]byte{
		"disk.raw.gz": members,
		"disk.raw.xz": packWith(t, disk, "xz", "-0", "--block-size=3145728"),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), name)
			write(t, path, file)
			d, err := convert.Open(context.Background(), path, small())
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			buf := make([]byte, 100)
			for i := range int64(10) { // from the end to the start
				off := int64(len(disk)) - (i+1)*4<<20
				if _, err := d.ReadAt(buf, off); err != nil || !bytes.Equal(buf, disk[off:off+100]) {
					t.Fatalf("wrong content at %d, or %v", off, err)
				}
			}
			// Ten times at most what lies between two restarts, a quarter of the disk; from the start it would
			// be half of it.
			if passes, _ := convert.Passes(d); passes > 1+10*10.0/40 {
				t.Errorf("%.1f passes", passes)
			}
		})
	}
}

// TestStreamedProperty reads anything in any order, by several readers.
func TestStreamedProperty(t *testing.T) {
	dir := t.TempDir()
	disk := patterned(32, func(b int) bool { return b%7 > 4 })[:32<<16-777]
	for _, suffix := range []string{".gz", ".zst"} {
		write(t, filepath.Join(dir, "disk.raw"+suffix), pack(t, suffix, disk))
	}
	rapid.Check(t, func(r *rapid.T) {
		suffix := rapid.SampledFrom([]string{".gz", ".zst"}).Draw(r, "suffix")
		d, err := convert.Open(context.Background(), filepath.Join(dir, "disk.raw"+suffix), small())
		if err != nil {
			r.Fatal(err)
		}
		defer d.Close()
		type question struct{ off, n int64 }
		asked := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) question {
			return question{rapid.Int64Range(0, int64(len(disk))).Draw(r, "off"), rapid.Int64Range(0, 400000).Draw(r, "n")}
		}), 1, 8).Draw(r, "asked")
		var wg sync.WaitGroup
		var mu sync.Mutex
		for reader := range 3 {
			wg.Go(func() {
				for i, q := range asked {
					if i%3 != reader {
						continue
					}
					buf := make([]byte, q.n)
					n, err := d.ReadAt(buf, q.off)
					want := disk[q.off:min(q.off+q.n, int64(len(disk)))]
					// Three readers of a window of two chunks can take chunks from each other until the
					// passes are used up; whether they do is up to the scheduler.
					var refused *convert.RefusedError
					if errors.As(err, &refused) && refused.Need == convert.NeedScratch {
						want, err = want[:min(n, len(want))], nil
					}
					if n != len(want) || !bytes.Equal(buf[:n], want) || err != nil && err != io.EOF {
						mu.Lock()
						r.Errorf("read %d at %d: %d, %v", q.n, q.off, n, err)
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
	})
}

// TestStreamedTooOften refuses an image that is in an order in which it can't be streamed, and says
// what would help.
func TestStreamedTooOften(t *testing.T) {
	if raceEnabled {
		return // 16 passes take long, and one reader races with nobody
	}
	// Clusters in the reverse order, with more between two of them than the window has.
	im := qcow2test.Image{Version: 3, ClusterBits: 16, Size: 34 << 20}
	disk := patterned(34<<4, func(int) bool { return false })
	for i := int64(34<<4 - 1); i >= 0; i-- {
		im.Clusters = append(im.Clusters, qcow2test.Cluster{Index: i, Data: disk[i<<16 : (i+1)<<16]})
	}
	path := filepath.Join(t.TempDir(), "disk.qcow2.gz")
	write(t, path, pack(t, ".gz", im.Write().Bytes))
	err := openAndRead(path, small())
	var refused *convert.RefusedError
	if !errors.As(err, &refused) || refused.Need != convert.NeedScratch || !strings.Contains(refused.Reason, "more than 16 times") ||
		!strings.Contains(refused.Remedy, "which has 35") {
		t.Errorf("got %v, want it refused", err)
	}
	o := small()
	o.ScratchDir = t.TempDir()
	if err := openAndRead(path, o); err != nil {
		t.Error(err)
	}
}

// TestStreamedEnds ends reading by closing the disk, by the context, and when the file changes.
func TestStreamedEnds(t *testing.T) {
	disk := patterned(16<<4, func(int) bool { return false })
	path := filepath.Join(t.TempDir(), "disk.raw.gz")
	file := pack(t, ".gz", disk)
	write(t, path, file)
	buf := make([]byte, 4096)
	t.Run("closed", func(t *testing.T) {
		d, err := convert.Open(context.Background(), path, small())
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range int64(4) {
			wg.Go(func() { // it may end before it begins
				if _, err := d.ReadAt(make([]byte, 4096), i<<20); err != nil && !errors.Is(err, os.ErrClosed) {
					t.Errorf("got %v", err)
				}
			})
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if _, err := d.ReadAt(buf, 5<<20); !errors.Is(err, os.ErrClosed) {
			t.Errorf("read after closing: %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		d, err := convert.Open(ctx, path, small())
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		cancel()
		if _, err := d.ReadAt(buf, 5<<20); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if _, err := convert.Open(ctx, path, small()); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("changed at the start", func(t *testing.T) {
		changed := filepath.Join(t.TempDir(), "disk.raw.gz")
		write(t, changed, file)
		d, err := convert.Open(context.Background(), changed, small())
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		f, err := os.OpenFile(changed, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 20), 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the failure leaves nothing half made
			if _, err := d.ReadAt(buf, 5<<20); err == nil || !strings.Contains(err.Error(), "changed while it was read") {
				t.Errorf("got %v", err)
			}
		}
	})
	t.Run("changed", func(t *testing.T) {
		d, err := convert.Open(context.Background(), path, small())
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := os.Truncate(path, int64(len(file)/3)); err != nil {
			t.Fatal(err)
		}
		var refused *convert.RefusedError
		if _, err := d.ReadAt(buf, 12<<20); err == nil || errors.As(err, &refused) || !strings.Contains(err.Error(), "changed while it was read") {
			t.Errorf("got %v", err)
		}
		if err := d.CheckUnchanged(); err == nil {
			t.Error("the change wasn't found")
		}
	})
}

// TestStreamedMembers reads gzip files whose trailers lie and that are made of many members.
func TestStreamedMembers(t *testing.T) {
	disk := patterned(40, func(b int) bool { return b > 20 })
	var many bytes.Buffer
	w := gzip.NewWriter(&many)
	for off := 0; off < len(disk); off += 1000 {
		w.Reset(&many)
		_, err := w.Write(disk[off:min(off+1000, len(disk))])
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "disk.raw.gz")
	write(t, path, many.Bytes())
	checkWrapped(t, path, small(), disk)
	lies := bytes.Clone(pack(t, ".gz", disk))
	binary.LittleEndian.PutUint32(lies[len(lies)-4:], 1<<32-1)
	for name, file := range map[string][]byte{
		"a trailer of 4 GiB": lies,
		"cut between":        many.Bytes()[:many.Len()-9],
		"garbage after":      append(bytes.Clone(many.Bytes()), "garbage"...),
	} {
		write(t, path, file)
		err := allocating(t, func() error { return openAndRead(path, small()) })
		var refused *convert.RefusedError
		if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "damaged or cut") {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
}
