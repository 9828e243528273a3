// SPDX-License-Identifier: Apache-2.0

package raw_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert/raw"
)

// create writes a file with holes: data at some of its blocks of 64 KiB.
func create(t interface{ Fatal(...any) }, path string, size int64, blocks []int64) *os.File {
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		off := b << 16
		if off >= size {
			continue
		}
		p := bytes.Repeat([]byte{byte(b) | 1}, int(min(1<<16, size-off)))
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// TestHolesAreZero walks random files: extents are gapless, and what they call zero is zero.
func TestHolesAreZero(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 4<<20).Draw(t, "size")
		f := create(t, path, size, rapid.SliceOfN(rapid.Int64Range(0, 64), 0, 20).Draw(t, "blocks"))
		defer f.Close()
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		img, err := raw.New(f, size, rapid.Bool().Draw(t, "sparse"))
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < size; {
			ask := rapid.Int64Range(1, size-off).Draw(t, "ask")
			e, err := img.Extent(off, ask)
			if err != nil || e.Start != off || e.Length <= 0 || e.Length > ask {
				t.Fatalf("extent of %d at %d: %+v, %v", ask, off, e, err)
			}
			if e.Zero && len(bytes.Trim(want[off:off+e.Length], "\x00")) != 0 {
				t.Fatalf("%+v is not zero", e)
			}
			off += e.Length
		}
		off := rapid.Int64Range(0, size).Draw(t, "offset")
		p := make([]byte, rapid.IntRange(0, 200000).Draw(t, "length"))
		n, err := img.ReadAt(p, off)
		if n != min(len(p), int(size-off)) || n < len(p) && err != io.EOF || n == len(p) && n > 0 && err != nil {
			t.Fatalf("read %d at %d of %d: %d, %v", len(p), off, size, n, err)
		}
		if !bytes.Equal(p[:n], want[off:off+int64(n)]) {
			t.Fatal("wrong bytes")
		}
	})
}

// TestHolesAreFound expects holes to be reported where the file system keeps them.
func TestHolesAreFound(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "disk"), 64<<20, []int64{3, 500})
	defer f.Close()
	img, err := raw.New(f, 64<<20, true)
	if err != nil {
		t.Fatal(err)
	}
	zero := int64(0)
	for off := int64(0); off < img.Size(); {
		e, err := img.Extent(off, img.Size()-off)
		if err != nil {
			t.Fatal(err)
		}
		if e.Zero {
			zero += e.Length
		}
		off += e.Length
	}
	if want := int64(64<<20 - 2<<16); zero != want {
		if zero == 0 && os.Getenv("IMSPREP_CI") != "1" {
			t.Skip("NOT TESTED: this file system or system does not report holes")
		}
		t.Errorf("%d bytes in holes, want %d", zero, want)
	}
}

// TestReadingWhileMapping shares an image between goroutines: asking for holes moves the offset of
// the descriptor, which reading must not notice.
func TestReadingWhileMapping(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "disk"), 4<<20, []int64{0, 7, 20, 63})
	defer f.Close()
	img, err := raw.New(f, 4<<20, true)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4<<20)
	if _, err := img.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			p := make([]byte, 100000)
			for i := range 200 {
				off := int64(g*200+i) * 7919 % (4<<20 - 100000)
				if _, err := img.ReadAt(p, off); err != nil || !bytes.Equal(p, want[off:off+100000]) {
					t.Errorf("read at %d: %v or wrong bytes", off, err)
				}
				if e, err := img.Extent(off, 100000); err != nil || e.Start != off {
					t.Errorf("extent at %d: %+v, %v", off, e, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestBadArguments(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "disk"), 1000, nil)
	defer f.Close()
	if _, err := raw.New(f, 0, true); !errors.Is(err, raw.ErrEmpty) {
		t.Errorf("empty: %v", err)
	}
	img, err := raw.New(f, 2000, true) // as if the file had become shorter
	if err != nil {
		t.Fatal(err)
	}
	if n, err := img.ReadAt(make([]byte, 1500), 0); n != 1000 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short file: %d, %v", n, err)
	}
	if _, err := img.ReadAt(make([]byte, 1), -1); err == nil || err == io.EOF {
		t.Errorf("negative offset: %v", err)
	}
	if n, err := img.ReadAt(make([]byte, 1), 2000); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	for _, q := range [][2]int64{{-1, 1}, {0, -1}, {0, 2001}, {2001, 0}, {1, 1<<63 - 1}} {
		if e, err := img.Extent(q[0], q[1]); err == nil {
			t.Errorf("extent of %d at %d: %+v, want an error", q[1], q[0], e)
		}
	}
}
