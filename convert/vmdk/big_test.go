// SPDX-License-Identifier: Apache-2.0

package vmdk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/convert/vmdk"
)

// holes is a file without end that is zeros but for some pieces, none of which is at the border of two.
type holes map[int64][]byte

func (h holes) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at, piece := range h {
		if lo := max(at, off); lo < min(at+int64(len(piece)), off+int64(len(p))) {
			copy(p[lo-off:], piece[lo-at:])
		}
	}
	return len(p), nil
}

func u32s(v ...uint32) []byte {
	p := make([]byte, 4*len(v))
	for i, v := range v {
		le.PutUint32(p[i*4:], v)
	}
	return p
}

// TestFarApart checks that grains far from each other in the file are compared, though the bits for them
// do not fit into memory.
func TestFarApart(t *testing.T) {
	const far = 600 << 20 // sectors: 300 GiB
	const size = (far + 100) * 512
	h := holes{
		0:    append([]byte("COWD"), u32s(1, 3, 100, 1, 4, 1)...),
		2048: u32s(8),
		4096: u32s(far, far+1, 50, 0, far+2),
	}
	text := fmt.Sprintf(descriptorHead, "vmfsSparse") + "RW 100 VMFSSPARSE \"a\"\n"
	o := vmdk.Options{OpenExtent: func(string) (io.ReaderAt, int64, error) { return h, size, nil }}
	m, err := preflight([]byte(text), o)
	if err != nil || m.MappedBytes != 4*512 {
		t.Fatal(m, err)
	}
	h[4096] = u32s(far, far+1, 50, 0, far+1)
	if _, err := preflight([]byte(text), o); err == nil ||
		!strings.Contains(err.Error(), "entry at 4112: the grain at 322122547712 shares bytes") {
		t.Error(err)
	}
	// Bytes of the first grain and of its table.
	h[4096] = u32s(far, far+1, 9)
	if _, err := preflight([]byte(text), o); err == nil || !strings.Contains(err.Error(), "the grain table at 4096") {
		t.Error(err)
	}
}

// full is a hosted sparse extent of a disk all of whose grains are stored, in order, made up as it is
// read. Its content is zeros.
type full struct {
	head          []byte
	grains, first int64 // sector of the first grain
}

const fullTables = 64 << 10 // sector of the first grain table

func newFull(size int64) full {
	e := extent{kind: hosted, version: 1, sectors: size / 512, grain: 128, gtes: 512, descr: embedded("monolithicSparse")}
	f := full{grains: e.grains()}
	f.first = fullTables + (f.grains/512+1)*4
	f.head = e.begin()
	copy(f.head, e.header(1, 128, 0, uint64(f.first), 0))
	return f
}

func (f full) size() int64 { return (f.first + f.grains*128) * 512 }

func (f full) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(f.head)) {
		copy(p, f.head[off:])
	}
	for i := 0; i+4 <= len(p); i += 4 {
		at := off + int64(i)
		switch n := (at - fullTables*512) / 4; {
		case at >= f.first*512:
			return len(p), nil
		case at >= fullTables*512:
			if n < f.grains {
				le.PutUint32(p[i:], uint32(f.first+n*128))
			}
		case at >= 128*512 && (at-128*512)/4 < (f.grains+511)/512:
			le.PutUint32(p[i:], uint32(fullTables+(at-128*512)/4*4))
		}
	}
	return len(p), nil
}

// TestFullDisk checks the memory for a disk of 1 TiB that is stored as a whole.
func TestFullDisk(t *testing.T) {
	f := newFull(1 << 40)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	m, err := vmdk.Preflight(context.Background(), f, f.size(), vmdk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := m.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 || m.TableBytes() > 2<<20 || m.MappedBytes != 1<<40 {
		t.Errorf("%d bytes were allocated, %d for tables, %d mapped", n, m.TableBytes(), m.MappedBytes)
	}
	if e, err := img.Extent(0, img.Size()); err != nil || e.Length != img.Size() || !e.Allocated {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestEmptyDisk checks a disk of 64 TiB without data, whose directory alone has 8 MiB.
func TestEmptyDisk(t *testing.T) {
	e := extent{kind: hosted, version: 1, sectors: 64 << 40 / 512, grain: 128, gtes: 512, descr: embedded("monolithicSparse")}
	f := e.begin()
	copy(f, e.header(1, 128, 0, 128, 0))
	m, err := vmdk.Preflight(context.Background(), holes{0: f}, 16<<20, vmdk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := m.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := img.Extent(0, img.Size()); err != nil || e.Length != 64<<40 || !e.Zero || e.Allocated {
		t.Errorf("%+v, %v", e, err)
	}
	_, err = vmdk.Preflight(context.Background(), holes{0: f}, 16<<20, vmdk.Options{MaxVirtualSize: 1 << 40})
	if !errors.As(err, new(*vmdk.Error)) {
		t.Error(err)
	}
}

func BenchmarkPreflight1TiB(b *testing.B) {
	f := newFull(1 << 40)
	for b.Loop() {
		if _, err := vmdk.Preflight(context.Background(), f, f.size(), vmdk.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExtent1TiB(b *testing.B) {
	f := newFull(1 << 40)
	m, err := vmdk.Preflight(context.Background(), f, f.size(), vmdk.Options{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		img, err := m.Open(nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := img.Extent(0, img.Size()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadAt reads 64 MiB in chunks of 2 MiB.
func BenchmarkReadAt(b *testing.B) {
	for _, kind := range []string{hosted, stream, cowd, sesparse} {
		b.Run(kind, func(b *testing.B) {
			e := &extent{kind: kind, version: 1, sectors: 64 << 20 / 512, grain: 128, gtes: 512, level: 6, data: map[int64][]byte{}}
			if kind == sesparse || kind == cowd {
				e.grain = 8
			}
			for i := range e.grains() {
				e.data[i] = bytes.Repeat([]byte(fmt.Sprintf("grain %d of a disk; ", i)), int(e.grain)*512/18)[:e.grain*512]
				e.order = append(e.order, i)
			}
			text, files := writeFiles("twoGbMaxExtentSparse", []*extent{e})
			img, _, err := open([]byte(text), vmdk.Options{OpenExtent: files.open}, nil)
			if err != nil {
				b.Fatal(err)
			}
			p := make([]byte, 2<<20)
			b.SetBytes(img.Size())
			b.ReportAllocs()
			for b.Loop() {
				for off := int64(0); off < img.Size(); off += int64(len(p)) {
					if _, err := img.ReadAt(p, off); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
