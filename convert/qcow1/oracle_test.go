// SPDX-License-Identifier: Apache-2.0

package qcow1_test

import (
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
	"strings"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/qcow1"
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

// TestAgainstQEMU compares disks that qemu-img writes with what they were made of.
func TestAgainstQEMU(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for _, size := range []int64{512, 1 << 20, 5<<20 + 512, 12<<20 - 1024} {
		for _, name := range []string{"empty", "full", "sparse"} {
			for _, packed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d %s compressed=%t", size, name, packed), func(t *testing.T) {
					source := pattern(rnd, name, size)
					if size > 1<<20 {
						for i := range 64 << 10 { // cannot be compressed
							source[100<<10+i] = byte(rnd.Uint32())
						}
					}
					dir := t.TempDir()
					raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "disk")
					writeFile(t, raw, source)
					if packed {
						compress(t, raw, path, source)
					} else {
						run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow", raw, path)
					}
					img, m, err := open(readFile(t, path), nil)
					if err != nil {
						t.Fatal(err)
					}
					if img.Size() != size || digest(t, img) != sum(source) {
						t.Errorf("%d bytes, want the %d of the source", img.Size(), size)
					}
					if len(m.Warnings) > 0 || len(m.Features) > 0 || packed && name == "full" && m.CompressedClusters == 0 ||
						!packed && m.CompressedClusters > 0 {
						t.Errorf("features %q, warnings %q, %d compressed clusters", m.Features, m.Warnings, m.CompressedClusters)
					}
				})
			}
		}
	}
}

// compress makes a compressed disk. Some versions of qemu-img write it well and then exit with 1
// without a word (7.2 does), so it is what they read of it that counts.
func compress(t *testing.T, raw, path string, source []byte) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		skip(t, "there is no qemu-img")
	}
	out, err := exec.Command("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow", raw, path).CombinedOutput()
	if err != nil && len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	back := filepath.Join(t.TempDir(), "back")
	run(t, "qemu-img", "convert", "-f", "qcow", "-O", "raw", path, back)
	if sum(readFile(t, back)) != sum(source) {
		t.Fatal("qemu-img does not read what it was given")
	}
}

// TestChainOfQEMU compares an overlay that QEMU wrote, over a shorter parent, with what QEMU reads
// of it.
func TestChainOfQEMU(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	dir := t.TempDir()
	base, child, back := filepath.Join(dir, "base"), filepath.Join(dir, "child"), filepath.Join(dir, "back")
	parent := pattern(rnd, "full", 3<<20)
	writeFile(t, base, parent)
	run(t, "qemu-img", "create", "-f", "qcow", "-b", "base", "-F", "raw", child, "5M")
	run(t, "qemu-io", "-f", "qcow", "-c", "write -P 7 5000 9000", "-c", "write -P 0 64k 32k", "-c", "write -P 9 2M 64k",
		"-c", "write -P 8 4M 512", child)
	run(t, "qemu-img", "convert", "-f", "qcow", "-O", "raw", child, back)
	img, m, err := open(readFile(t, child), memory(parent))
	if err != nil {
		t.Fatal(err)
	}
	if m.BackingFile != "base" || m.BackingFormat != "" || !slices.Contains(m.Features, "backing file") {
		t.Errorf("%q, %q, %q", m.BackingFile, m.BackingFormat, m.Features)
	}
	if want := readFile(t, back); img.Size() != int64(len(want)) || digest(t, img) != sum(want) {
		t.Errorf("%d bytes differ from the %d of qemu-img", img.Size(), len(want))
	}
}

// TestQEMUReads compares disks of this test's writer with what qemu-img reads of them, so that
// writer and reader do not share a mistake. QEMU wants a window of at most 4 KiB, which is the
// cluster here.
func TestQEMUReads(t *testing.T) {
	dir := t.TempDir()
	path, back := filepath.Join(dir, "disk"), filepath.Join(dir, "back")
	two := mixed(1<<20, 2)
	two.packAlign, two.tablesLast, two.unfinished = 1, true, true
	shifted := mixed(1<<20, 1)
	shifted.shift = 1536
	for i, d := range []*disk{small(), mixed(1<<20, 2), two, shifted} {
		f := d.write()
		writeFile(t, path, f)
		run(t, "qemu-img", "convert", "-f", "qcow", "-O", "raw", path, back)
		img, _, err := open(f, nil)
		if err != nil {
			t.Fatal(err)
		}
		if digest(t, img) != sum(readFile(t, back)) {
			t.Errorf("disk %d: %d bytes differ from those of qemu-img", i, img.Size())
		}
	}
}

// TestEncrypted checks that an encrypted image is refused, and that what is said to help does.
func TestEncrypted(t *testing.T) {
	dir := t.TempDir()
	password, path, plain := filepath.Join(dir, "password"), filepath.Join(dir, "disk"), filepath.Join(dir, "plain")
	writeFile(t, password, []byte("123456"))
	run(t, "qemu-img", "create", "-f", "qcow", "--object", "secret,id=s,file="+password,
		"-o", "encrypt.format=aes,encrypt.key-secret=s", path, "1M")
	_, _, err := open(readFile(t, path), nil)
	var bad *qcow1.Error
	if !errors.As(err, &bad) {
		t.Fatalf("got %v, want it refused", err)
	}
	_, command, _ := strings.Cut(bad.Remedy, "`")
	command, _, _ = strings.Cut(command, "`")
	args := strings.Fields(strings.NewReplacer("PASSWORDFILE", password, "IMAGE", path, "NEW.qcow2", plain).Replace(command))
	if len(args) < 2 {
		t.Fatalf("remedy %q", bad.Remedy)
	}
	run(t, args[0], args[1:]...)
	if readFile(t, plain)[3] != 0xFB {
		t.Error("there is no QCOW2 image")
	}
}

// TestHugeEmpty opens the largest disk that the usual clusters can map: 8 TiB, without any data.
func TestHugeEmpty(t *testing.T) {
	d := &disk{size: 8 << 40, clusterBits: 12, l2Bits: 9}
	img, m, err := open(d.write(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := img.Extent(0, img.Size()); err != nil || e.Length != 8<<40 || !e.Zero || e.Allocated {
		t.Errorf("%+v, %v", e, err)
	}
	if m.MappedBytes != 0 || m.TableBytes() > 2<<20 {
		t.Errorf("%+v", m)
	}
}
