// SPDX-License-Identifier: Apache-2.0

package qed_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"
)

// skip skips the test, loudly, or fails it where everything must run.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("IMSPREP_CI") == "1" {
		t.Fatal("IMSPREP_CI=1 and " + why)
	}
	t.Skip("SKIPPED, NOT CHECKED: " + why)
}

// digest returns the SHA-256 of the whole disk, read by its extents.
func digest(t *testing.T, img image.Image) string {
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

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// run runs a tool of QEMU, or skips the test if there is none.
func run(t *testing.T, tool string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		skip(t, "there is no "+tool)
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", tool, args, err, out)
	}
}

// pattern returns a disk with data everywhere, nowhere or here and there.
func pattern(rnd *rand.Rand, name string, size int64) []byte {
	p := make([]byte, size)
	for off := int64(0); off < size; off += 4096 {
		if name == "full" || name == "sparse" && off>>18%3 == 1 && rnd.IntN(3) == 0 {
			p[off+rnd.Int64N(min(4096, size-off))] = byte(rnd.IntN(255) + 1)
		}
	}
	return p
}

// TestAgainstQEMU compares disks that qemu-img writes with what they were made of. QEMU cannot open
// what it makes itself with tables of one cluster, so there is no such disk here.
func TestAgainstQEMU(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for _, size := range []int64{512, 1 << 20, 5<<20 + 512, 12<<20 - 1024} {
		for _, name := range []string{"empty", "full", "sparse"} {
			for _, options := range []string{"cluster_size=4096,table_size=2",
				"cluster_size=64k", "cluster_size=1M,table_size=16"} {
				t.Run(fmt.Sprintf("%d %s %s", size, name, options), func(t *testing.T) {
					source := pattern(rnd, name, size)
					dir := t.TempDir()
					raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "disk")
					writeFile(t, raw, source)
					run(t, "qemu-img", "convert", "-f", "raw", "-O", "qed", "-o", options, raw, path)
					img, m, err := open(readFile(t, path), nil)
					if err != nil {
						t.Fatal(err)
					}
					if img.Size() != size || digest(t, img) != sum(source) {
						t.Errorf("%d bytes, want the %d of the source", img.Size(), size)
					}
					if len(m.Warnings) > 0 || len(m.Features) > 0 {
						t.Errorf("features %q, warnings %q", m.Features, m.Warnings)
					}
				})
			}
		}
	}
}

// TestChainOfQEMU compares an overlay that QEMU wrote, with zeros over data and a shorter parent,
// with what QEMU reads of it.
func TestChainOfQEMU(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	dir := t.TempDir()
	base, child, back := filepath.Join(dir, "base"), filepath.Join(dir, "child"), filepath.Join(dir, "back")
	parent := pattern(rnd, "full", 3<<20)
	writeFile(t, base, parent)
	run(t, "qemu-img", "create", "-f", "qed", "-o", "cluster_size=4096,table_size=2", "-b", "base", "-F", "raw", child, "5M")
	run(t, "qemu-io", "-f", "qed", "-c", "write -P 7 5000 9000", "-c", "write -z 64k 32k", "-c", "write -P 9 2M 64k",
		"-c", "write -P 8 4M 512", child)
	run(t, "qemu-img", "convert", "-f", "qed", "-O", "raw", child, back)
	img, m, err := open(readFile(t, child), memory(parent))
	if err != nil {
		t.Fatal(err)
	}
	if m.BackingFile != "base" || m.BackingFormat != "raw" || !slices.Contains(m.Features, "backing file") {
		t.Errorf("%q, %q, %q", m.BackingFile, m.BackingFormat, m.Features)
	}
	if want := readFile(t, back); img.Size() != int64(len(want)) || digest(t, img) != sum(want) {
		t.Errorf("%d bytes differ from the %d of qemu-img", img.Size(), len(want))
	}
	if e, err := img.Extent(64<<10, 64<<10); err != nil || !e.Allocated || !e.Zero || e.Length != 32<<10 {
		t.Errorf("zeros over data: %+v, %v", e, err)
	}
}

// TestQEMUReads compares disks of this test's writer with what qemu-img reads of them, so that
// writer and reader do not share a mistake.
func TestQEMUReads(t *testing.T) {
	dir := t.TempDir()
	path, back := filepath.Join(dir, "disk"), filepath.Join(dir, "back")
	two := small()
	two.tableSize = 2
	for _, d := range []*disk{
		two,
		{size: 40<<10 + 512, clusterSize: 8 << 10, tableSize: 2, headerSize: 2, order: []int64{5, 3, 0}, tablesLast: true,
			data: map[int64][]byte{5: bytes.Repeat([]byte{1}, 8<<10), 0: {2}}, zeros: map[int64]bool{3: true}, features: 2},
	} {
		f := d.write()
		clear(f[24:40]) // qemu-img wants to clear the autoclear features that it does not know
		writeFile(t, path, f)
		run(t, "qemu-img", "convert", "-f", "qed", "-O", "raw", path, back)
		img, _, err := open(f, nil)
		if err != nil {
			t.Fatal(err)
		}
		if digest(t, img) != sum(readFile(t, back)) {
			t.Errorf("%d bytes differ from those of qemu-img", img.Size())
		}
	}
}

// TestDirty reads an image whose writer was killed: it has the flag, and is read as QEMU does.
func TestDirty(t *testing.T) {
	dir := t.TempDir()
	path, back := filepath.Join(dir, "disk"), filepath.Join(dir, "back")
	run(t, "qemu-img", "create", "-f", "qed", path, "8M")
	// A crash of qemu-io, on purpose; its output says so.
	cmd := exec.Command("qemu-io", "-f", "qed", "-c", "write -P 5 100k 300k", "-c", "flush", "-c", "sigraise 9", path)
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Fatalf("qemu-io did not die: %s", out)
	}
	f := readFile(t, path)
	run(t, "qemu-img", "convert", "-f", "qed", "-O", "raw", path, back)
	img, m, err := open(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(m.Features, "needs check") || len(m.Warnings) != 1 ||
		!strings.Contains(m.Warnings[0], "not closed cleanly") {
		t.Errorf("features %q, warnings %q", m.Features, m.Warnings)
	}
	if digest(t, img) != sum(readFile(t, back)) {
		t.Error("the disk differs from what qemu-img reads")
	}
}

// TestHugeEmpty opens a disk of 1 TiB without any data.
func TestHugeEmpty(t *testing.T) {
	d := &disk{size: 1 << 40, clusterSize: 64 << 10, tableSize: 4, headerSize: 1}
	f := d.write()
	img, m, err := open(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := img.Extent(0, img.Size()); err != nil || e.Length != 1<<40 || !e.Zero || e.Allocated {
		t.Errorf("%+v, %v", e, err)
	}
	if m.MappedBytes != 0 || m.TableBytes() > 2<<20 {
		t.Errorf("%+v", m)
	}
}
