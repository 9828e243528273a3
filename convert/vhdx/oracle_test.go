// SPDX-License-Identifier: Apache-2.0

package vhdx_test

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
	"strconv"
	"strings"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/vhdx"
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

// unpack opens a file, unpacked if its name ends in .gz, without the right to write to it.
func unpack(t *testing.T, path string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(path, ".gz") {
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), "disk")
		out, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(out, z); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(out.Close(), f.Close()); err != nil {
			t.Fatal(err)
		}
		if f, err = os.Open(name); err != nil {
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

// TestCorpus compares every VHDX of the corpus with what its manifest says.
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
		if len(col) < 6 || !strings.HasSuffix(strings.TrimSuffix(col[0], ".gz"), ".vhdx") {
			continue
		}
		seen++
		t.Run(filepath.Base(col[0]), func(t *testing.T) {
			f, size := unpack(t, filepath.Join(dir, col[0]))
			m, err := vhdx.Preflight(context.Background(), f, size, vhdx.Options{})
			if strings.HasPrefix(col[5], "REFUSE") {
				var e *vhdx.Error
				if !errors.As(err, &e) {
					t.Fatalf("got %v, want it refused: %s", err, col[5])
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			img, err := m.Open(nil)
			if err != nil {
				t.Fatal(err)
			}
			if want, _ := strconv.ParseInt(col[4], 10, 64); img.Size() != want {
				t.Errorf("size %d, want %d", img.Size(), want)
			}
			if got := digest(t, img); got != col[5] {
				t.Errorf("digest %s, want %s", got, col[5])
			}
			if dirty := strings.Contains(col[0], "log"); dirty != (len(m.Warnings) > 0) {
				t.Errorf("warnings %q", m.Warnings)
			}
		})
	}
	if seen == 0 {
		t.Error("the manifest names no VHDX")
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

// TestAgainstQEMU compares disks that qemu-img writes with what they were made of.
func TestAgainstQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		skip(t, "there is no qemu-img")
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for _, size := range []int64{512, 1 << 20, 5<<20 + 512, 2<<20*7 + 1024} {
		for _, pattern := range []string{"empty", "full", "sparse"} {
			for _, options := range []string{"subformat=fixed", "subformat=dynamic",
				"subformat=dynamic,block_size=1M,log_size=4M", "subformat=dynamic,block_size=2M",
				"subformat=dynamic,block_size=1M,block_state_zero=off", "subformat=fixed,block_size=2M"} {
				t.Run(fmt.Sprintf("%d %s %s", size, pattern, options), func(t *testing.T) {
					dir := t.TempDir()
					source := make([]byte, size)
					for off := int64(0); off < size; off += 4096 {
						if pattern == "full" || pattern == "sparse" && off>>20%3 == 1 && rnd.IntN(3) == 0 {
							source[off+rnd.Int64N(min(4096, size-off))] = byte(rnd.IntN(255) + 1)
						}
					}
					raw, disk, back := filepath.Join(dir, "raw"), filepath.Join(dir, "disk"), filepath.Join(dir, "back")
					if err := os.WriteFile(raw, source, 0o600); err != nil {
						t.Fatal(err)
					}
					qemuImg(t, "convert", "-f", "raw", "-O", "vhdx", "-o", options, raw, disk)
					qemuImg(t, "convert", "-f", "vhdx", "-O", "raw", disk, back)
					want, err := os.ReadFile(back)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.HasPrefix(want, source) {
						t.Fatal("qemu-img does not give back what it was given")
					}
					f, n := unpack(t, disk)
					m, err := vhdx.Preflight(context.Background(), f, n, vhdx.Options{})
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
					if fixed := strings.Contains(options, "fixed"); fixed != (m.Variant == vhdx.VariantFixed) {
						t.Errorf("variant %q", m.Variant)
					}
				})
			}
		}
	}
}
