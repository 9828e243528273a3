// SPDX-License-Identifier: Apache-2.0

package vmdk_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/convert/vmdk"
)

var errDisk = errors.New("the disk is broken")

// faulty fails with the read of that number.
type faulty struct {
	io.ReaderAt
	left *int
}

func (f faulty) ReadAt(p []byte, off int64) (int, error) {
	if *f.left--; *f.left < 0 {
		return 0, errDisk
	}
	return f.ReaderAt.ReadAt(p, off)
}

// TestReadErrors lets one read after the other fail: the cause must come out every time, and must not
// be taken for a damaged image.
func TestReadErrors(t *testing.T) {
	index := small(stream)
	index.noDirectory = true
	raw := small(stream)
	raw.noMarkers = true
	big := small(stream)
	big.grain, big.sectors, big.level = 128, 1000, 0
	for i := range big.data {
		big.data[i] = make([]byte, 64<<10)
	}
	for name, e := range map[string]*extent{
		hosted: small(hosted), stream: small(stream), "no directory": index, "no markers": raw, "big grains": big,
		cowd: small(cowd), sesparse: small(sesparse), flat: {kind: flat, sectors: 3, data: map[int64][]byte{0: nil}},
	} {
		t.Run(name, func(t *testing.T) {
			e.descr = ""
			text, files := writeFiles("vmfsSparse", []*extent{e})
			if e.noDirectory || name == hosted {
				e.descr = embedded("streamOptimized")
				text = string(e.write())
			}
			for _, parent := range []bool{false, true} {
				if parent && e.noDirectory {
					continue
				}
				if parent {
					text = string(childOf([]byte(text)))
				}
				for n := 0; ; n++ {
					left := n
					all := func() error {
						o := vmdk.Options{AllowParent: parent, Force: true}
						o.OpenExtent = func(name string) (io.ReaderAt, int64, error) {
							r, size, err := files.open(name)
							return faulty{r, &left}, size, err
						}
						r := faulty{strings.NewReader(text), &left}
						m, err := vmdk.Preflight(context.Background(), r, int64(len(text)), o)
						if err != nil {
							return err
						}
						img, err := m.Open(nil)
						if parent {
							img, err = m.Open(faultyParent{memory(bytes.Repeat([]byte{1}, 30000)), &left})
						}
						if err != nil {
							return err
						}
						for off := int64(0); off < img.Size(); {
							x, err := img.Extent(off, img.Size()-off)
							if err != nil {
								return err
							}
							off += x.Length
						}
						_, err = img.ReadAt(make([]byte, img.Size()), 0)
						return errors.Join(err, img.Readable(), img.Close())
					}
					err := all()
					if err == nil {
						if n < 3 {
							t.Errorf("done after %d reads", n)
						}
						break
					}
					if !errors.Is(err, errDisk) || errors.As(err, new(*vmdk.Error)) {
						t.Fatalf("read %d failed: %v", n, err)
					}
				}
			}
		})
	}
}

// childOf gives a disk a parent, but no hint to it, which would move what follows the descriptor.
func childOf(b []byte) []byte {
	return bytes.Replace(b, []byte("parentCID=ffffffff"), []byte("parentCID=00000007"), 1)
}

// faultyParent fails with the read of that number.
type faultyParent struct {
	memory
	left *int
}

func (f faultyParent) ReadAt(p []byte, off int64) (int, error) {
	return faulty{f.memory, f.left}.ReadAt(p, off)
}

// TestNoDescriptor checks a stream that has no descriptor, which other kinds must have.
func TestNoDescriptor(t *testing.T) {
	e := small(stream)
	e.descr = ""
	img, m, err := open(e.write(), vmdk.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Warnings) != 1 || m.Variant != "streamOptimized" || m.ID != "" || img.Size() != 51200 {
		t.Errorf("%+v", m)
	}
	refused(t, e.write(), vmdk.Options{MaxVirtualSize: 51199}, "above the limit")
	e = small(hosted)
	e.descr = ""
	refused(t, put64(12, 0)(e.write()), vmdk.Options{}, "no descriptor either")
	refused(t, put64(12, 0)(small(stream).write()), vmdk.Options{}, "not a plain file name")
}

// TestManyWarnings checks that the number of warnings is bounded.
func TestManyWarnings(t *testing.T) {
	e := &extent{kind: flat, sectors: 1, data: map[int64][]byte{0: nil}}
	var extents []*extent
	for range 200 {
		extents = append(extents, e)
	}
	text, files := writeFiles("twoGbMaxExtentFlat", extents)
	for name := range files {
		files[name] = make([]byte, 1000)
	}
	m, err := preflight([]byte(text), vmdk.Options{OpenExtent: files.open})
	if err != nil || len(m.Warnings) != 101 || m.Warnings[100] != "there are 100 more warnings" {
		t.Errorf("%v, %q", err, m.Warnings)
	}
	for name := range files {
		delete(files, name)
	}
	refused(t, []byte(text), vmdk.Options{OpenExtent: files.open}, "and 190 more")
}
