// SPDX-License-Identifier: Apache-2.0

package vmdk_test

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
	"strings"
	"testing"
)

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
}

func needQEMU(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		skip(t, "there is no qemu-img")
	}
}

// fileDigest returns the SHA-256 of a file.
func fileDigest(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// sparseRAW writes a disk of which every few MiB have data.
func sparseRAW(t *testing.T, path string, size, step int64, rnd *rand.Rand) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < size; off += 1 + rnd.Int64N(2*step) {
		p := make([]byte, min(1+rnd.Int64N(200_000), size-off))
		if rnd.IntN(2) == 0 {
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
		} else {
			copy(p, "compressible")
		}
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAgainstQEMU compares disks that qemu-img writes, in all of its variants, with what they
// were made of.
func TestAgainstQEMU(t *testing.T) {
	needQEMU(t)
	rnd := rand.New(rand.NewPCG(7, 8))
	for _, c := range []struct{ size, step int64 }{
		{512, 1}, {100 * 512, 1 << 20}, {1 << 20, 1 << 18}, {33<<20 + 1536, 1 << 20}, {96 << 20, 1 << 40},
		{2<<30 + 5<<20 + 512, 200 << 20},
	} {
		dir := t.TempDir()
		raw := filepath.Join(dir, "raw")
		sparseRAW(t, raw, c.size, c.step, rnd)
		want := fileDigest(t, raw)
		for _, options := range []string{
			"subformat=monolithicSparse", "subformat=monolithicSparse,zeroed_grain=on,compat6",
			"subformat=streamOptimized", "subformat=monolithicFlat",
			"subformat=twoGbMaxExtentSparse", "subformat=twoGbMaxExtentFlat",
		} {
			t.Run(fmt.Sprintf("%d %s", c.size, options), func(t *testing.T) {
				path := filepath.Join(dir, "disk.vmdk")
				qemuImg(t, "convert", "-f", "raw", "-O", "vmdk", "-o", options, raw, path)
				img, m, err := openPath(t, path, nil)
				if err != nil {
					t.Fatal(err)
				}
				if img.Size() != c.size || digest(t, img) != want {
					t.Errorf("%d bytes differ from the %d of the source", img.Size(), c.size)
				}
				if len(m.Warnings) > 0 || !strings.Contains(options, m.Variant) {
					t.Errorf("%s, warnings %q", m.Variant, m.Warnings)
				}
				files, err := filepath.Glob(filepath.Join(dir, "disk*"))
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range files {
					_ = os.Remove(f)
				}
			})
		}
	}
}

// TestAgainstQEMUParent compares a child that qemu-img writes, with zeroed grains, with what
// qemu-img reads of it.
func TestAgainstQEMUParent(t *testing.T) {
	needQEMU(t)
	rnd := rand.New(rand.NewPCG(9, 10))
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	sparseRAW(t, in("raw"), 40<<20, 1<<20, rnd)
	qemuImg(t, "convert", "-f", "raw", "-O", "vmdk", in("raw"), in("base.vmdk"))
	qemuImg(t, "create", "-f", "vmdk", "-o", "zeroed_grain=on", "-F", "vmdk", "-b", in("base.vmdk"), in("child.vmdk"))
	cmd := exec.Command("qemu-io", "-f", "vmdk", "-c", "write -P 7 1M 300k", "-c", "write -z 3M 2M", "-c", "write -P 9 39M 64k",
		in("child.vmdk"))
	if out, err := cmd.CombinedOutput(); err != nil {
		skip(t, fmt.Sprintf("qemu-io failed: %v\n%s", err, out))
	}
	qemuImg(t, "convert", "-f", "vmdk", "-O", "raw", in("child.vmdk"), in("whole"))
	parent, base, err := openPath(t, in("base.vmdk"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := openPath(t, in("child.vmdk"), nil); err == nil || !strings.Contains(err.Error(), "base.vmdk") {
		t.Errorf("without the parent: %v", err)
	}
	img, m, err := openPath(t, in("child.vmdk"), parent)
	if err != nil {
		t.Fatal(err)
	}
	if m.ParentID != base.ID || base.ID == "" || len(m.ParentNames) != 1 || m.ParentNames[0] != "base.vmdk" {
		t.Errorf("parent %s %q, want %s", m.ParentID, m.ParentNames, base.ID)
	}
	if digest(t, img) != fileDigest(t, in("whole")) {
		t.Error("wrong content")
	}
}

// TestQEMUReads compares disks of this test's writer with what qemu-img reads of them, so that
// writer and reader do not share a mistake.
func TestQEMUReads(t *testing.T) {
	needQEMU(t)
	rnd := rand.New(rand.NewPCG(11, 12))
	fill := func(e *extent) *extent {
		e.data, e.zeroed = map[int64][]byte{}, map[int64]bool{}
		zeroes := e.kind == sesparse || e.version == 3
		for i := range e.grains() {
			switch rnd.IntN(4) {
			case 0, 1:
				p := make([]byte, e.grain*512)
				for k := 0; k < len(p); k += 9 {
					p[k] = byte(rnd.Uint32())
				}
				e.data[i] = p
				e.order = append(e.order, i)
			case 2:
				if zeroes {
					e.zeroed[i] = true
				}
			}
		}
		rnd.Shuffle(len(e.order), func(i, j int) { e.order[i], e.order[j] = e.order[j], e.order[i] })
		return e
	}
	disks := map[string][]*extent{
		"monolithicSparse": {fill(&extent{kind: hosted, version: 1, sectors: 20003, grain: 128, gtes: 512,
			descr: embedded("monolithicSparse"), redundant: true})},
		"monolithicSparse small tables": {fill(&extent{kind: hosted, version: 3, sectors: 5001, grain: 8, gtes: 32,
			descr: embedded("monolithicSparse"), lateTable: true})},
		"streamOptimized": {fill(&extent{kind: stream, version: 3, sectors: 20003, grain: 128, gtes: 512, level: 6,
			descr: embedded("streamOptimized"), footer: true})},
		"streamOptimized without footer": {fill(&extent{kind: stream, version: 1, sectors: 5003, grain: 16, gtes: 64, level: 1,
			descr: embedded("streamOptimized")})},
		"twoGbMaxExtentSparse": {fill(&extent{kind: hosted, version: 1, sectors: 4096, grain: 128, gtes: 512}),
			fill(&extent{kind: hosted, version: 1, sectors: 999, grain: 8, gtes: 512, lateTable: true})},
		"vmfsSparse": {fill(&extent{kind: cowd, sectors: 9001, grain: 1})},
		"seSparse":   {fill(&extent{kind: sesparse, sectors: 70000, grain: 8})},
	}
	for name, extents := range disks {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "disk.vmdk")
			f := extents[0].write()
			if extents[0].descr == "" {
				text, files := writeFiles(name, extents)
				// QEMU skips read-only extents.
				f = []byte(strings.ReplaceAll(text, "RDONLY", "RW"))
				for n, b := range files {
					if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := os.WriteFile(path, f, 0o600); err != nil {
				t.Fatal(err)
			}
			qemuImg(t, "convert", "-f", "vmdk", "-O", "raw", path, filepath.Join(dir, "back"))
			img, _, err := openPath(t, path, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, img.Size())
			if _, err := img.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			want := unpack(t, filepath.Join(dir, "back"))
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes differ from the %d of qemu-img", len(got), len(want))
			}
			if len(bytes.Trim(got, "\x00")) == 0 {
				t.Error("nothing but zeros")
			}
		})
	}
}
