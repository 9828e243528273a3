// SPDX-License-Identifier: Apache-2.0

package vmdk_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/imsprep/imsprep/convert/vmdk"
)

// FuzzOpen checks that no file, and no file as an extent of another, makes the reader panic,
// hang, or contradict itself.
func FuzzOpen(f *testing.F) {
	for _, kind := range []string{hosted, stream} {
		f.Add(small(kind).write(), []byte{}, false)
	}
	e := small(stream)
	e.noDirectory = true
	f.Add(e.write(), []byte{}, true)
	e = small(stream)
	e.noMarkers = true
	f.Add(e.write(), []byte{}, true)
	for _, kind := range []string{hosted, cowd, sesparse, flat} {
		e := small(kind)
		if kind == flat {
			e.sectors, e.offset = 3, 1
		}
		text, files := writeFiles("vmfsSparse", []*extent{e, {kind: zero, sectors: 7}})
		f.Add([]byte(text), files["a disk-001.vmdk"], true)
	}
	f.Fuzz(func(t *testing.T, b, ext []byte, free bool) {
		o := vmdk.Options{Force: free, AllowParent: free}
		opened := 0
		o.OpenExtent = func(string) (io.ReaderAt, int64, error) {
			opened++
			return bytes.NewReader(ext), int64(len(ext)), nil
		}
		m, err := vmdk.Preflight(context.Background(), bytes.NewReader(b), int64(len(b)), o)
		if err != nil {
			if !errors.As(err, new(*vmdk.Error)) {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		total := int64(len(b)) + int64(opened)*int64(len(ext))
		if m.TableBytes() > 8<<20 || m.Compression == "" && m.MappedBytes > total+m.BlockSize*int64(opened+1) {
			t.Fatalf("%d bytes mapped and %d of tables in files of %d", m.MappedBytes, m.TableBytes(), total)
		}
		img, err := m.Open(nil)
		if m.ParentID != "" {
			if err == nil {
				t.Fatal("opened without its parent")
			}
			img, err = m.Open(memory(bytes.Repeat([]byte{1}, 1000)))
		}
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64<<10)
		for off, left := int64(0), 64; off < img.Size() && left > 0; left-- {
			e, err := img.Extent(off, img.Size()-off)
			if err != nil || e.Start != off || e.Length <= 0 || e.Length > img.Size()-off {
				t.Fatalf("extent at %d: %+v, %v", off, e, err)
			}
			p := buf[:min(int64(len(buf)), e.Length)]
			n, err := img.ReadAt(p, off)
			if (n != len(p) || err != nil && err != io.EOF) && !(e.Compressed && errors.As(err, new(*vmdk.Error))) {
				t.Fatalf("read at %d: %d, %v", off, n, err)
			}
			if e.Zero && len(bytes.Trim(p, "\x00")) > 0 {
				t.Fatalf("%+v is not zero", e)
			}
			off += e.Length
		}
	})
}

// FuzzDescriptor checks the parser of descriptors: whatever it accepts, only plain names are
// opened.
func FuzzDescriptor(f *testing.F) {
	for _, line := range []string{
		"RW 4 FLAT \"a b.vmdk\" 0\n", "RDONLY 4\tVMFS \"x\"\r\n# c\r\nddb.a = \"b\"\r\n", "RW 9 ZERO\nRW 1 SPARSE \"../x\"\n",
	} {
		f.Add("version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\n" + line)
	}
	f.Fuzz(func(t *testing.T, text string) {
		seen := map[string]bool{}
		_, err := vmdk.Preflight(context.Background(), bytes.NewReader([]byte(text)), int64(len(text)), vmdk.Options{
			OpenExtent: func(name string) (io.ReaderAt, int64, error) {
				if name == "" || name == "." || name == ".." || seen[name] || bytes.ContainsAny([]byte(name), "/\\:\x00\n\r\x1b") {
					t.Fatalf("%q was opened", name)
				}
				seen[name] = true
				return bytes.NewReader(make([]byte, 4096)), 4096, nil
			},
		})
		if err != nil && !errors.As(err, new(*vmdk.Error)) {
			t.Fatal(err)
		}
	})
}
