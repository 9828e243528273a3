// SPDX-License-Identifier: Apache-2.0

package vhd_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/vhd"
)

// skip skips the test, loudly, or fails it where everything must run.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("IMSPREP_CI") == "1" {
		t.Fatal("IMSPREP_CI=1 and " + why)
	}
	t.Skip("SKIPPED, NOT CHECKED: " + why)
}

// corpus returns the folder of disks by others' tools.
func corpus(t *testing.T) string {
	dir := os.Getenv("IMSPREP_CORPUS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "corpus")
	}
	if _, err := os.Stat(filepath.Join(dir, "manifest.tsv")); err != nil {
		skip(t, "there is no corpus: "+err.Error())
	}
	return dir
}

// unpack opens a file of the corpus, unpacked if it ends in .gz.
func unpack(t *testing.T, path string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(path, ".gz") {
		packed := f
		z, err := gzip.NewReader(packed)
		if err != nil {
			t.Fatal(err)
		}
		if f, err = os.Create(filepath.Join(t.TempDir(), "disk")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(f, z); err != nil {
			t.Fatal(err)
		}
		if err := packed.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, info.Size()
}

// digest returns the SHA-256 of the whole disk: extents that are zero are hashed from a buffer, all
// others are read.
func digest(t *testing.T, img image.Image) string {
	t.Helper()
	h := sha256.New()
	buf, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < img.Size(); {
		e, err := img.Extent(off, img.Size()-off)
		if err != nil {
			t.Fatal(err)
		}
		if e.Start != off || e.Length <= 0 || e.Length > img.Size()-off {
			t.Fatalf("extent at %d: %+v", off, e)
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

// The corpus has an empty disk of 127 GiB. That it is one extent of zeros says all that hashing
// them, which takes minutes, would; bigZeroDigest is what sha256sum says of so many zeros.
const (
	bigZeroSize   = 136363130880
	bigZeroDigest = "2a4f06d5c9672ce7acfe68d55f16be1e1c96891af6a79eefe50eefae0cc5ae8d"
)

// TestCorpus compares every VHD of the corpus with what its manifest says.
func TestCorpus(t *testing.T) {
	dir := corpus(t)
	manifest, err := os.Open(filepath.Join(dir, "manifest.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	defer manifest.Close()
	seen := 0
	for lines := bufio.NewScanner(manifest); lines.Scan(); {
		col := strings.Split(lines.Text(), "\t")
		if len(col) < 6 || !strings.HasSuffix(strings.TrimSuffix(col[0], ".gz"), ".vhd") {
			continue
		}
		seen++
		t.Run(filepath.Base(col[0]), func(t *testing.T) {
			f, size := unpack(t, filepath.Join(dir, col[0]))
			m, err := vhd.Preflight(context.Background(), f, size, vhd.Options{})
			child := strings.Contains(col[3], "differencing") && col[4] != "-"
			if strings.HasPrefix(col[5], "REFUSE") || child {
				var e *vhd.Error
				if !errors.As(err, &e) {
					t.Fatalf("got %v, want it refused: %s", err, col[5])
				}
				if !child {
					return
				}
			} else if err != nil {
				t.Fatal(err)
			}
			var parent image.Image
			if child {
				pf, psize := unpack(t, filepath.Join(dir, filepath.Dir(col[0]), "parent.vhd.gz"))
				pm, err := vhd.Preflight(context.Background(), pf, psize, vhd.Options{})
				if err != nil {
					t.Fatal(err)
				}
				if parent, err = pm.Open(nil); err != nil {
					t.Fatal(err)
				}
				m, err = vhd.Preflight(context.Background(), f, size, vhd.Options{AllowParent: true})
				if err != nil {
					t.Fatal(err)
				}
				if m.ParentID != pm.ID || !slices.Contains(m.ParentNames, "parent.vhd") {
					t.Errorf("parent %s, %q, want %s", m.ParentID, m.ParentNames, pm.ID)
				}
			}
			img, err := m.Open(parent)
			if err != nil {
				t.Fatal(err)
			}
			if want, _ := strconv.ParseInt(col[4], 10, 64); img.Size() != want {
				t.Errorf("size %d, want %d", img.Size(), want)
			}
			got := ""
			if e, err := img.Extent(0, img.Size()); err == nil && e.Zero && e.Length == bigZeroSize && img.Size() == bigZeroSize {
				got = bigZeroDigest
			} else {
				got = digest(t, img)
			}
			if got != col[5] {
				t.Errorf("digest %s, want %s", got, col[5])
			}
		})
	}
	if seen == 0 {
		t.Error("the manifest names no VHD")
	}
}

// TestCorpusChild reads what a differencing disk by Windows says of its parent, and its sectors
// over a parent of zeros.
func TestCorpusChild(t *testing.T) {
	f, size := unpack(t, filepath.Join(corpus(t), "vhd", "dfvfs_fat-differential.vhd.gz"))
	m, err := vhd.Preflight(context.Background(), f, size, vhd.Options{AllowParent: true})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"fat-parent.vhd"}; !slices.Equal(m.ParentNames, want) {
		t.Errorf("names %q, want %q", m.ParentNames, want)
	}
	if want := "5fa21a55-f394-aa4d-9958-1951a67d5540"; m.ParentID != want {
		t.Errorf("parent %q, want %q", m.ParentID, want)
	}
	if m.ParentTimestamp.IsZero() && m.Timestamp.IsZero() {
		t.Error("no time stamps")
	}
	img, err := m.Open(memory(make([]byte, 4<<20)))
	if err != nil {
		t.Fatal(err)
	}
	// Every sector that holds data is marked as present: a parent of ones shows through only
	// elsewhere.
	ones, err := m.Open(memory(bytes.Repeat([]byte{0xFF}, 4<<20)))
	if err != nil {
		t.Fatal(err)
	}
	a, b := make([]byte, 512), make([]byte, 512)
	present := 0
	for off := int64(0); off < img.Size(); off += 512 {
		if _, err := img.ReadAt(a, off); err != nil {
			t.Fatal(err)
		}
		if _, err := ones.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(a, b) {
			present++
		} else if len(bytes.Trim(a, "\x00")) != 0 {
			t.Errorf("the sector at %d is a mixture", off)
		}
	}
	if present == 0 {
		t.Error("no sector is in the child")
	}
}

// qemuImg runs qemu-img and returns what it says.
func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestAgainstQEMU compares disks that qemu-img writes with what it reads of them itself.
func TestAgainstQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		skip(t, "there is no qemu-img")
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for _, size := range []int64{512, 1 << 20, 5<<20 + 512, 2<<20*7 + 1024, 40 << 20} {
		for _, pattern := range []string{"empty", "full", "sparse"} {
			for _, options := range []string{"subformat=fixed", "subformat=dynamic",
				"subformat=fixed,force_size=on", "subformat=dynamic,force_size=on"} {
				t.Run(fmt.Sprintf("%d %s %s", size, pattern, options), func(t *testing.T) {
					dir := t.TempDir()
					source := make([]byte, size)
					for off := int64(0); off < size; off += 4096 {
						if pattern == "full" || pattern == "sparse" && off>>21%3 == 1 && rnd.IntN(3) == 0 {
							source[off+rnd.Int64N(min(4096, size-off))] = byte(rnd.IntN(255) + 1)
						}
					}
					raw, disk, back := filepath.Join(dir, "raw"), filepath.Join(dir, "disk"), filepath.Join(dir, "back")
					if err := os.WriteFile(raw, source, 0o600); err != nil {
						t.Fatal(err)
					}
					qemuImg(t, "convert", "-f", "raw", "-O", "vpc", "-o", options, raw, disk)
					qemuImg(t, "convert", "-f", "vpc", "-O", "raw", disk, back)
					want, err := os.ReadFile(back)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.HasPrefix(want, source) {
						t.Fatal("qemu-img does not give back what it was given")
					}
					f, n := unpack(t, disk)
					m, err := vhd.Preflight(context.Background(), f, n, vhd.Options{})
					if err != nil {
						t.Fatal(err)
					}
					img, err := m.Open(nil)
					if err != nil {
						t.Fatal(err)
					}
					sum := sha256.Sum256(want)
					if img.Size() != int64(len(want)) || digest(t, img) != hex.EncodeToString(sum[:]) {
						t.Errorf("%d bytes, want the %d of qemu-img", img.Size(), len(want))
					}
					if len(m.Warnings) > 0 {
						t.Errorf("warnings %q", m.Warnings)
					}
				})
			}
		}
	}
}
