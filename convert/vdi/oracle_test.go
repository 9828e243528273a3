// SPDX-License-Identifier: Apache-2.0

package vdi_test

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

	"github.com/imsprep/imsprep/convert/vdi"
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
	t.Helper()
	dir := os.Getenv("IMSPREP_CORPUS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "corpus")
	}
	if _, err := os.Stat(filepath.Join(dir, "manifest.tsv")); err != nil {
		skip(t, "there is no corpus: "+err.Error())
	}
	return dir
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

// TestCorpus compares every VDI of the corpus with what its manifest says.
func TestCorpus(t *testing.T) {
	dir := corpus(t)
	manifest, err := os.Open(filepath.Join(dir, "manifest.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	defer manifest.Close()
	seen := 0
	lines := bufio.NewScanner(manifest)
	for lines.Scan() {
		col := strings.Split(lines.Text(), "\t")
		if len(col) < 6 || !strings.HasSuffix(strings.TrimSuffix(col[0], ".gz"), ".vdi") {
			continue
		}
		seen++
		t.Run(filepath.Base(col[0]), func(t *testing.T) {
			img, m, err := open(unpack(t, filepath.Join(dir, col[0])))
			if strings.HasPrefix(col[5], "REFUSE") {
				var bad *vdi.Error
				if !errors.As(err, &bad) || !strings.Contains(bad.Remedy, "VBoxManage") {
					t.Errorf("got %v, want it refused: %s", err, col[5])
				}
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
			if !strings.Contains(col[3], m.Variant) || len(m.Warnings) > 0 {
				t.Errorf("%s, %q, want %s", m.Variant, m.Warnings, col[3])
			}
		})
	}
	if err := lines.Err(); err != nil || seen == 0 {
		t.Errorf("the manifest names %d VDI disks: %v", seen, err)
	}
}

// qemuImg runs qemu-img.
func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
}

// TestAgainstQEMU compares disks that qemu-img writes with what they were made of.
func TestAgainstQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		skip(t, "there is no qemu-img")
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for _, size := range []int64{512, 1 << 20, 5<<20 + 512, 2<<20*7 - 1024, 40 << 20} {
		for _, pattern := range []string{"empty", "full", "sparse"} {
			for _, static := range []string{"off", "on"} {
				t.Run(fmt.Sprintf("%d %s static=%s", size, pattern, static), func(t *testing.T) {
					dir := t.TempDir()
					source := make([]byte, size)
					for off := int64(0); off < size; off += 4096 {
						if pattern == "full" || pattern == "sparse" && off>>21%3 == 1 && rnd.IntN(3) == 0 {
							source[off+rnd.Int64N(min(4096, size-off))] = byte(rnd.IntN(255) + 1)
						}
					}
					raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "disk")
					if err := os.WriteFile(raw, source, 0o600); err != nil {
						t.Fatal(err)
					}
					qemuImg(t, "convert", "-f", "raw", "-O", "vdi", "-o", "static="+static, raw, path)
					img, m, err := open(unpack(t, path))
					if err != nil {
						t.Fatal(err)
					}
					sum := sha256.Sum256(source)
					if img.Size() != size || digest(t, img) != hex.EncodeToString(sum[:]) {
						t.Errorf("%d bytes, want the %d of the source", img.Size(), size)
					}
					variant := map[string]string{"off": vdi.VariantDynamic, "on": vdi.VariantStatic}[static]
					if len(m.Warnings) > 0 || m.Variant != variant {
						t.Errorf("%s, warnings %q", m.Variant, m.Warnings)
					}
				})
			}
		}
	}
}

// TestQEMUReads compares disks of this test's writer with what qemu-img reads of them, so that
// writer and reader do not share a mistake. QEMU knows only blocks of 1 MiB.
func TestQEMUReads(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		skip(t, "there is no qemu-img")
	}
	block := func(b byte) []byte { return bytes.Repeat([]byte{b}, 1<<20) }
	for name, d := range map[string]*disk{
		"out of order": {size: 4<<20 + 512, blocks: map[int64][]byte{0: block(1), 2: block(2), 4: block(3)},
			order: []int64{4, 0, 2}, discarded: map[int64]bool{1: true}},
		"not in whole sectors": {size: 2<<20 + 700, blocks: map[int64][]byte{1: block(1), 2: block(2)},
			order: []int64{2, 1}, gap: 1 << 20, mapOffset: 4096, spare: 3, spareData: true},
		"static": {size: 2 << 20, static: true, blocks: map[int64][]byte{0: block(1), 1: block(2)}, order: []int64{1, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			d.blockSize = 1 << 20
			dir := t.TempDir()
			path, back := filepath.Join(dir, "disk"), filepath.Join(dir, "back")
			f := d.write()
			if err := os.WriteFile(path, f, 0o600); err != nil {
				t.Fatal(err)
			}
			qemuImg(t, "convert", "-f", "vdi", "-O", "raw", path, back)
			want := sha256.Sum256(unpack(t, back))
			img, _, err := open(f)
			if err != nil {
				t.Fatal(err)
			}
			if digest(t, img) != hex.EncodeToString(want[:]) {
				t.Errorf("%d bytes differ from those of qemu-img", img.Size())
			}
		})
	}
}

// TestHugeMap checks a disk of 64 TiB, whose map alone has 256 MiB: it must take neither long nor
// much memory. The map is made up, not stored.
func TestHugeMap(t *testing.T) {
	d := &disk{size: 1 << 20, blockSize: 1 << 20, blocks: map[int64][]byte{0: {1}}, order: []int64{0}}
	f := d.write()
	const blocks = 64 << 20
	le.PutUint64(f[368:], blocks<<20)
	le.PutUint32(f[384:], blocks)
	le.PutUint32(f[344:], 512+blocks*4)
	size := int64(512 + blocks*4 + 1<<20)
	m, err := vdi.Preflight(context.Background(), freeMap{f[:512]}, size, vdi.Options{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := m.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := img.Extent(0, img.Size()); err != nil || e.Length != img.Size() || !e.Zero {
		t.Errorf("%+v, %v", e, err)
	}
	if m.TableBytes() > 1<<20 {
		t.Errorf("%d bytes of tables", m.TableBytes())
	}
}

// freeMap is a header, and then a block map without end in which every block is free.
type freeMap struct{ header []byte }

func (f freeMap) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = 0xFF
	}
	if off < int64(len(f.header)) {
		copy(p, f.header[off:])
	}
	return len(p), nil
}
