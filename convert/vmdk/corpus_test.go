// SPDX-License-Identifier: Apache-2.0

package vmdk_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	libimage "github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/vmdk"
)

// skip skips the test, loudly, or fails it where everything must run.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("IMSPREP_CI") == "1" {
		t.Fatal("IMSPREP_CI=1 and " + why)
	}
	t.Skip("SKIPPED, NOT CHECKED: " + why)
}

// unpack returns the content of a file, unpacked if its name ends in .gz.
func unpack(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(path, ".gz") {
		return b
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if b, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	return b
}

// openPath opens the disk at path with the extents beside it.
func openPath(t *testing.T, path string, parent libimage.Image) (libimage.Image, *vmdk.Metadata, error) {
	t.Helper()
	b := unpack(t, path)
	m, err := vmdk.Preflight(context.Background(), bytes.NewReader(b), int64(len(b)), vmdk.Options{
		AllowParent: parent != nil,
		OpenExtent: func(name string) (io.ReaderAt, int64, error) {
			f, err := os.Open(filepath.Join(filepath.Dir(path), name))
			if err != nil {
				return nil, 0, err
			}
			t.Cleanup(func() { _ = f.Close() })
			fi, err := f.Stat()
			return f, fi.Size(), err
		},
	})
	if err != nil {
		return nil, nil, err
	}
	img, err := m.Open(parent)
	return img, m, err
}

// digest returns the SHA-256 of the whole disk, read by its extents.
func digest(t testing.TB, img libimage.Image) string {
	t.Helper()
	h := sha256.New()
	buf, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < img.Size(); {
		e, err := img.Extent(off, img.Size()-off)
		if err != nil || e.Start != off || e.Length <= 0 || e.Length > img.Size()-off {
			t.Fatalf("extent at %d: %+v, %v", off, e, err)
		}
		for end := off + e.Length; off < end; {
			p := zeros[:min(int64(len(zeros)), end-off)]
			if !e.Zero {
				p = buf[:len(p)]
				if n, err := img.ReadAt(p, off); n != len(p) || err != nil && err != io.EOF {
					t.Fatalf("read at %d: %d, %v", off, n, err)
				}
			}
			h.Write(p)
			off += int64(len(p))
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestCorpus compares every VMDK of the corpus with what its manifest says.
func TestCorpus(t *testing.T) {
	dir := os.Getenv("IMSPREP_CORPUS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "corpus")
	}
	manifest, err := os.Open(filepath.Join(dir, "manifest.tsv"))
	if err != nil {
		skip(t, "there is no corpus: "+err.Error())
	}
	defer manifest.Close()
	seen := 0
	lines := bufio.NewScanner(manifest)
	for lines.Scan() {
		col := strings.Split(lines.Text(), "\t")
		if len(col) < 6 || !strings.HasPrefix(col[3], "VMDK") {
			continue
		}
		seen++
		t.Run(filepath.Base(col[0]), func(t *testing.T) {
			img, m, err := openPath(t, filepath.Join(dir, col[0]), nil)
			if strings.HasPrefix(col[5], "REFUSE") {
				var bad *vmdk.Error
				if !errors.As(err, &bad) {
					t.Fatalf("got %v, want it refused: %s", err, col[5])
				}
				t.Log(err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want, _ := strconv.ParseInt(col[4], 10, 64); img.Size() != want {
				t.Errorf("size %d, want %d", img.Size(), want)
			}
			if got := digest(t, img); got != col[5] {
				t.Errorf("digest %s, want %s", got, col[5])
			}
			if len(m.Warnings) > 0 || m.ID == "" || m.MappedBytes == 0 {
				t.Errorf("%+v", m)
			}
			t.Logf("%s, features %q", m.Variant, m.Features)
		})
	}
	if err := lines.Err(); err != nil || seen == 0 {
		t.Errorf("the manifest names %d VMDK disks: %v", seen, err)
	}
}
