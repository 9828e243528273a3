// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imsprep/imsprep/convert"
)

// BenchmarkRead reads a disk of every format in its order, 4 MiB at a time by one reader: 32 MiB, of
// which a quarter is text, a quarter noise, and the rest zeros. An op is the whole disk.
func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(raw, patternedDisk(32<<20), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, bc := range []struct {
		name string
		args []string // of qemu-img convert, nil = RAW, or written here
	}{
		{"raw", nil},
		{"qcow2-plain", []string{"-O", "qcow2"}},
		{"qcow2-zlib", []string{"-O", "qcow2", "-c"}},
		{"qcow2-zstd", []string{"-O", "qcow2", "-c", "-o", "compression_type=zstd"}},
		{"qcow1-plain", []string{"-O", "qcow"}},
		{"qed", []string{"-O", "qed"}},
		{"vdi", []string{"-O", "vdi"}},
		{"vdi-static", []string{"-O", "vdi", "-o", "static=on"}},
		{"vhd-fixed", []string{"-O", "vpc", "-o", "subformat=fixed,force_size=on"}},
		{"vhd-dynamic", []string{"-O", "vpc", "-o", "force_size=on"}},
		{"vhdx-fixed", []string{"-O", "vhdx", "-o", "subformat=fixed"}},
		{"vhdx-dynamic", []string{"-O", "vhdx"}},
		{"vmdk-sparse", []string{"-O", "vmdk"}},
		{"vmdk-streamOptimized", []string{"-O", "vmdk", "-o", "subformat=streamOptimized"}},
		{"zvhd2", nil},
	} {
		b.Run(bc.name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "disk.img")
			switch {
			case bc.name == "zvhd2":
				src, err := convert.Open(context.Background(), raw, convert.OpenOptions{})
				if err == nil {
					_, err = convert.WriteZVHD2(context.Background(), src, path, convert.ZVHD2Options{})
					err = errors.Join(err, src.Close())
				}
				if err != nil {
					b.Fatal(err)
				}
			case bc.args == nil:
				path = raw
			default:
				args := append([]string{"convert", "-f", "raw"}, append(bc.args, raw, path)...)
				if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
					b.Fatalf("qemu-img %q: %v: %s", args, err, out)
				}
			}
			d, err := convert.Open(context.Background(), path, convert.OpenOptions{OriginalSize: true})
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			buf := make([]byte, 4<<20)
			b.SetBytes(d.Size())
			b.ReportAllocs()
			for b.Loop() {
				for off := int64(0); off < d.Size(); off += int64(len(buf)) {
					if _, err := d.ReadAt(buf, off); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkWriteRAW converts a QCOW2 of compressed clusters to a sparse RAW file, all workers at work. An op
// is a disk of 32 MiB.
func BenchmarkWriteRAW(b *testing.B) {
	dir := b.TempDir()
	raw, packed := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
	if err := os.WriteFile(raw, patternedDisk(32<<20), 0o600); err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, packed).CombinedOutput(); err != nil {
		b.Fatalf("qemu-img: %v: %s", err, out)
	}
	d, err := convert.Open(context.Background(), packed, convert.OpenOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	b.SetBytes(d.Size())
	b.ReportAllocs()
	for b.Loop() {
		o := convert.RAWOptions{Overwrite: true, NoSync: true}
		if _, err := convert.WriteRAW(context.Background(), d, filepath.Join(dir, "out.raw"), o); err != nil {
			b.Fatal(err)
		}
	}
}
