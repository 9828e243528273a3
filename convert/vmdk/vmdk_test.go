// SPDX-License-Identifier: Apache-2.0

package vmdk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	libimage "github.com/lima-vm/go-qcow2reader/image"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert/vmdk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a disk in memory, to be a parent or a flat extent with holes.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }
func (m memory) Close() error                            { return nil }
func (m memory) Size() int64                             { return int64(len(m)) }
func (m memory) Type() libimage.Type                     { return "raw" }
func (m memory) Readable() error                         { return nil }

// Extent reports zero blocks of 512 bytes as such, to have many short extents.
func (m memory) Extent(start, length int64) (libimage.Extent, error) {
	if start < 0 || length <= 0 || start+length > m.Size() {
		return libimage.Extent{}, errors.New("out of bounds")
	}
	n := min(length, 512-start%512)
	block := start / 512 * 512
	zero := len(bytes.Trim(m[block:min(block+512, m.Size())], "\x00")) == 0
	return libimage.Extent{Start: start, Length: n, Allocated: !zero, Zero: zero}, nil
}

func preflight(f []byte, o vmdk.Options) (*vmdk.Metadata, error) {
	return vmdk.Preflight(context.Background(), bytes.NewReader(f), int64(len(f)), o)
}

func open(f []byte, o vmdk.Options, parent libimage.Image) (libimage.Image, *vmdk.Metadata, error) {
	m, err := preflight(f, o)
	if err != nil {
		return nil, nil, err
	}
	img, err := m.Open(parent)
	return img, m, err
}

// drawExtent draws an extent of a kind.
func drawExtent(t *rapid.T, kind string) *extent {
	e := &extent{kind: kind, version: uint32(rapid.IntRange(1, 3).Draw(t, "version")),
		data: map[int64][]byte{}, zeroed: map[int64]bool{}}
	e.grain = rapid.SampledFrom([]int64{1, 2, 8, 8, 16, 128}).Draw(t, "grain")
	e.gtes = rapid.SampledFrom([]int64{1, 3, 16, 100, 512}).Draw(t, "entries")
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	noise := func(n int64) []byte {
		p := make([]byte, n)
		for i := range p {
			if rnd.IntN(3) == 0 {
				p[i] = byte(rnd.Uint32())
			}
		}
		return p
	}
	zeroes := false
	switch kind {
	case hosted:
		e.redundant = rapid.Bool().Draw(t, "redundant")
		e.lateTable = rapid.Bool().Draw(t, "late tables")
		e.shift = rapid.Int64Range(0, 3).Draw(t, "shift")
		zeroes = rapid.Bool().Draw(t, "zeroed grains")
	case stream:
		e.noMarkers = rapid.IntRange(0, 4).Draw(t, "no markers") == 0
		e.noDirectory = !e.noMarkers && rapid.IntRange(0, 2).Draw(t, "no directory") == 0
		e.footer = rapid.Bool().Draw(t, "footer")
		if !e.noMarkers {
			e.tail = rapid.SampledFrom([]int{0, 0, 512, 5000}).Draw(t, "tail")
		}
		e.level = rapid.SampledFrom([]int{0, 1, 9}).Draw(t, "level")
		zeroes = rapid.Bool().Draw(t, "zeroed grains")
	case cowd:
		e.gtes = 4096
	case sesparse:
		e.grain, e.gtes = 8, 4096
		zeroes = true
	case flat, zero:
		e.sectors = rapid.Int64Range(1, 300).Draw(t, "sectors")
		e.offset = rapid.Int64Range(0, 5).Draw(t, "offset")
		e.data[0] = noise(e.sectors * 512)
		return e
	}
	most := max(2, min(700, 4000/e.grain)) * e.grain
	e.sectors = rapid.Int64Range(1, most).Draw(t, "sectors")
	density := rapid.IntRange(0, 4).Draw(t, "density")
	for i := range e.grains() {
		switch {
		case rnd.IntN(4) < density:
			e.data[i] = noise(e.grain * 512)
			if left := (e.sectors - i*e.grain) * 512; kind == stream && left < e.grain*512 && rnd.IntN(2) == 0 {
				e.data[i] = e.data[i][:left]
			}
			e.order = append(e.order, i)
		case zeroes && rnd.IntN(2) == 0:
			e.zeroed[i] = true
		}
	}
	if rapid.Bool().Draw(t, "shuffled") {
		rnd.Shuffle(len(e.order), func(i, j int) { e.order[i], e.order[j] = e.order[j], e.order[i] })
	}
	if n := len(e.order); kind == hosted && !e.lateTable && n > 0 && rapid.IntRange(0, 3).Draw(t, "cut") == 0 {
		last := e.order[n-1]
		e.cut = rapid.Int64Range(1, e.grain*512-1).Draw(t, "missing")
		clear(e.data[last][e.grain*512-e.cut:])
	}
	return e
}

func embedded(createType string) string {
	return fmt.Sprintf(descriptorHead, createType) + "RW 77 SPARSE \"/old/name.vmdk\"\nddb.virtualHWVersion = \"4\"\n"
}

// drawDisk draws a disk of any variant: its file and extents, its content, and what it is.
func drawDisk(t *rapid.T) (f []byte, d folder, want []byte, parent memory) {
	text := ""
	if variant := rapid.IntRange(0, 9).Draw(t, "variant"); variant < 5 {
		e := drawExtent(t, rapid.SampledFrom([]string{hosted, stream}).Draw(t, "kind"))
		e.descr = embedded(map[string]string{hosted: "monolithicSparse", stream: "streamOptimized"}[e.kind])
		if !e.noDirectory {
			parent = drawParent(t, e.sectors*512)
			e.descr = withParent(e.descr, parent)
		}
		return e.write(), nil, e.content(parent), parent
	}
	var extents []*extent
	size := int64(0)
	for range rapid.IntRange(1, 4).Draw(t, "extents") {
		e := drawExtent(t, rapid.SampledFrom([]string{hosted, hosted, stream, cowd, sesparse, flat, zero}).Draw(t, "kind"))
		e.noDirectory = false
		e.rounded = e.kind != stream && rapid.IntRange(0, 3).Draw(t, "rounded") == 0
		extents = append(extents, e)
		size += e.sectors * 512
	}
	parent = drawParent(t, size)
	full := append(bytes.Clone(parent), make([]byte, size)...)[:size]
	for _, e := range extents {
		at := len(want)
		want = append(want, e.content(full[at:at+int(e.sectors)*512])...)
	}
	text, d = writeFiles(rapid.SampledFrom([]string{"twoGbMaxExtentSparse", "2GbMaxExtentFlat", "vmfssparse"}).
		Draw(t, "type"), extents)
	text = withParent(text, parent)
	if rapid.Bool().Draw(t, "CRLF") {
		text = strings.ReplaceAll(text, "\n", " \r\n")
	}
	return []byte(text), d, want, parent
}

func withParent(text string, parent memory) string {
	if parent == nil {
		return text
	}
	return strings.Replace(text, "parentCID=ffffffff", "parentCID=00000007\nparentFileNameHint=\"C:\\VMs\\base.vmdk\"", 1)
}

func drawParent(t *rapid.T, size int64) memory {
	if rapid.IntRange(0, 2).Draw(t, "parent") > 0 {
		return nil
	}
	p := make(memory, rapid.Int64Range(1, 2*size).Draw(t, "parent's size"))
	for i := 0; i < len(p); i += 1024 {
		p[i] = byte(i>>10) | 1
	}
	return p
}

func TestReadsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, files, want, parent := drawDisk(t)
		var p libimage.Image
		if parent != nil {
			p = parent
		}
		o := vmdk.Options{AllowParent: parent != nil, OpenExtent: files.open}
		img, m, err := open(f, o, p)
		if err != nil {
			t.Fatal(err)
		}
		if img.Size() != int64(len(want)) || m.VirtualSize != img.Size() || img.Type() != vmdk.Type || m.SectorSize != 512 {
			t.Fatalf("size %d, %d, type %s, want %d", img.Size(), m.VirtualSize, img.Type(), len(want))
		}
		if parent != nil && (m.ParentID != "00000007" || len(m.ParentNames) != 1 || m.ParentNames[0] != "base.vmdk") {
			t.Fatalf("parent %q, %q", m.ParentID, m.ParentNames)
		}
		if m.ID != "0123abcd" || m.TableBytes() > 3<<20 {
			t.Fatalf("ID %q, %d bytes of tables", m.ID, m.TableBytes())
		}
		got := make([]byte, len(want))
		if n, err := img.ReadAt(got, 0); n != len(want) || err != nil && err != io.EOF {
			t.Fatalf("read all: %d, %v", n, err)
		}
		if !bytes.Equal(got, want) {
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("wrong byte at %d", i)
				}
			}
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

type fataler interface{ Fatalf(string, ...any) }

// checkExtents checks that the extents tile the disk, and that those said to be zeros are.
func checkExtents(t fataler, img libimage.Image, want []byte) {
	var last libimage.Extent
	for off := int64(0); off < img.Size(); {
		e, err := img.Extent(off, img.Size()-off)
		if err != nil || e.Start != off || e.Length <= 0 || e.Length > img.Size()-off {
			t.Fatalf("extent at %d: %+v, %v", off, e, err)
		}
		if e.Zero && len(bytes.Trim(want[off:off+e.Length], "\x00")) > 0 {
			t.Fatalf("%+v is not zero", e)
		}
		if !e.Zero && !e.Allocated || e.Compressed && e.Zero {
			t.Fatalf("%+v makes no sense", e)
		}
		if off > 0 && last.Zero == e.Zero && last.Allocated == e.Allocated && last.Compressed == e.Compressed {
			t.Fatalf("%+v could be joined with %+v", e, last)
		}
		last = e
		off += e.Length
	}
	if e, err := img.Extent(img.Size(), 0); err != nil || e.Length != 0 {
		t.Fatalf("extent at the end: %+v, %v", e, err)
	}
	for _, at := range [][2]int64{{-1, 1}, {0, -1}, {0, img.Size() + 1}, {img.Size() + 1, 0}} {
		if _, err := img.Extent(at[0], at[1]); err == nil {
			t.Fatalf("extent %d is not refused", at)
		}
	}
	if n, err := img.ReadAt(make([]byte, 1), -1); n != 0 || err == nil || err == io.EOF {
		t.Fatalf("read before the start: %d, %v", n, err)
	}
	if n, err := img.ReadAt(make([]byte, 1), img.Size()); n != 0 || err != io.EOF {
		t.Fatalf("read at the end: %d, %v", n, err)
	}
}

// TestConcurrentReaders reads each variant from several goroutines at once.
func TestConcurrentReaders(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, kind := range []string{hosted, stream, cowd, sesparse} {
		t.Run(kind, func(t *testing.T) {
			e := &extent{kind: kind, version: 1, sectors: 6000, grain: 8, gtes: 64, data: map[int64][]byte{}, level: 1}
			for i := range e.grains() {
				if i%5 > 1 {
					e.data[i] = bytes.Repeat([]byte{byte(rnd.Uint32()), byte(i), 7, 8}, 1024)
					e.order = append(e.order, i)
				}
			}
			want := e.content(nil)
			text, files := writeFiles("twoGbMaxExtentSparse", []*extent{e})
			img, _, err := open([]byte(text), vmdk.Options{OpenExtent: files.open}, nil)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for g := range 8 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					rnd := rand.New(rand.NewPCG(uint64(g), 3))
					p := make([]byte, 40000)
					for range 100 {
						off := rnd.Int64N(img.Size())
						n, err := img.ReadAt(p[:rnd.IntN(len(p))], off)
						if err != nil && err != io.EOF || !bytes.Equal(p[:n], want[off:off+int64(n)]) {
							t.Errorf("%d bytes at %d: %v", n, off, err)
						}
						if e, err := img.Extent(off, img.Size()-off); err != nil || e.Length <= 0 {
							t.Errorf("extent at %d: %+v, %v", off, e, err)
						}
					}
				}()
			}
			wg.Wait()
		})
	}
}
