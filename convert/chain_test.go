// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/convert/qcow2/qcow2test"
)

const kib = 1 << 10

// layer is a small image over a backing file, one cluster of which it has itself.
func layer(backing, format string, own int64) qcow2test.Image {
	return qcow2test.Image{Version: 3, ClusterBits: 12, Size: 64 * kib, Backing: backing, Format: format,
		Clusters: []qcow2test.Cluster{
			{Index: own, Data: bytes.Repeat([]byte{byte(own) + 1}, 4*kib)},
			{Index: 15, Kind: qcow2test.Zero},
		}}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, d *convert.Disk) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestChains reads right chains: layers of several formats, sizes and folders.
func TestChains(t *testing.T) {
	dir := t.TempDir()
	base := bytes.Repeat([]byte{0xBA}, 70*kib) // longer than its child: cut
	short := bytes.Repeat([]byte{0x5A}, 10*kib+5)
	write(t, filepath.Join(dir, "base.raw"), base)
	write(t, filepath.Join(dir, "short"), short)
	write(t, filepath.Join(dir, "elsewhere", "far.raw"), base)
	mid := layer("base.raw", "raw", 3)
	write(t, filepath.Join(dir, "mid.qcow2"), mid.Write().Bytes)
	top := layer("mid.qcow2", "qcow2", 4)
	write(t, filepath.Join(dir, "top.qcow2"), top.Write().Bytes)
	write(t, filepath.Join(dir, "over-short.qcow2"), layer("short", "raw", 2).Write().Bytes)
	write(t, filepath.Join(dir, "far.qcow2"), layer("far.raw", "raw", 2).Write().Bytes)
	sub := qcow2test.Image{Version: 3, ClusterBits: 14, Size: 64 * kib, Extended: true, Backing: "top.qcow2", Format: "qcow2",
		Clusters: []qcow2test.Cluster{{Index: 1, Kind: qcow2test.Subclusters, Alloc: 0xF, ZeroBits: 0xF0,
			Data: bytes.Repeat([]byte{0xCC}, 16*kib)}}}
	write(t, filepath.Join(dir, "sub.qcow2"), sub.Write().Bytes)

	topContent := top.Content(mid.Content(base))
	for _, tc := range []struct {
		name, file string
		want       []byte
		backing    []string
		dirs       []string
	}{
		{"over RAW", "mid.qcow2", mid.Content(base), []string{"base.raw"}, nil},
		{"two layers", "top.qcow2", topContent, []string{"mid.qcow2", "base.raw"}, nil},
		{"shorter parent", "over-short.qcow2", layer("", "", 2).Content(short), []string{"short"}, nil},
		{"another folder", "far.qcow2", layer("", "", 2).Content(base), []string{"elsewhere/far.raw"}, []string{"elsewhere"}},
		{"extended L2", "sub.qcow2", sub.Content(topContent), []string{"top.qcow2", "mid.qcow2", "base.raw"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(dir, tc.file)
			var refused *convert.RefusedError
			if _, err := convert.Open(context.Background(), path, convert.OpenOptions{}); !errors.As(err, &refused) {
				t.Errorf("without permission: %v, want it refused", err)
			}
			o := convert.OpenOptions{AllowBacking: true}
			for _, d := range tc.dirs {
				o.BackingDirs = append(o.BackingDirs, filepath.Join(dir, d))
			}
			d, err := convert.Open(context.Background(), path, o)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if !bytes.Equal(content(t, d), tc.want) {
				t.Error("wrong content")
			}
			var backing []string
			for _, p := range d.Info().Backing {
				rel, err := filepath.Rel(dir, p)
				if err != nil {
					t.Fatal(err)
				}
				backing = append(backing, filepath.ToSlash(rel))
			}
			if !slices.Equal(backing, tc.backing) {
				t.Errorf("backing files %q, want %q", backing, tc.backing)
			}
			checkZeroExtents(t, d, tc.want)
		})
	}
}

// checkZeroExtents walks the extents: without gap, and zero where they say so.
func checkZeroExtents(t *testing.T, d *convert.Disk, want []byte) {
	t.Helper()
	next := int64(0)
	for e, err := range convert.Extents(context.Background(), d) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Start != next || e.Length <= 0 {
			t.Fatalf("extent %+v after %d", e, next)
		}
		next += e.Length
		if e.Zero && !convert.IsZero(want[e.Start:next]) {
			t.Errorf("%+v is not zero", e)
		}
	}
	if next != d.Size() {
		t.Errorf("extents end at %d, want %d", next, d.Size())
	}
}

// TestBadChains refuses every name and file that a chain may not have, even when chains are
// allowed.
func TestBadChains(t *testing.T) {
	base := bytes.Repeat([]byte{0xBA}, 64*kib)
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, base)
	for _, tc := range []struct {
		name            string
		backing, format string
		prepare         func(t *testing.T, dir string)
		want            string
	}{
		{"absolute name", secret, "raw", nil, "path"},
		{"name above the folder", "../secret", "raw", nil, "path"},
		{"name below the folder", "sub/base.raw", "raw", nil, "path"},
		{"name with backslashes", `..\secret`, "raw", nil, "path"},
		{"dot dot", "..", "raw", nil, "not a file name"},
		{"json name", `json:{"driver":"raw","file":{"filename":"base.raw"}}`, "raw", nil, "plain file name"},
		{"protocol name", "nbd:unix:socket", "raw", nil, "plain file name"},
		{"name with a NUL", "base.raw\x00x", "raw", nil, "control"},
		{"missing file", "nothing.raw", "raw", nil, "not found"},
		{"no format stated", "base.raw", "", nil, "does not state"},
		{"unknown format", "base.raw", "luks", nil, `"luks"`},
		{"VMDK stated, RAW found", "base.raw", "vmdk", nil, "no vmdk image"},
		{"format with control characters", "base.raw", "\x1b[2J", nil, `"\x1b[2J"`},
		{"QCOW2 stated, RAW found", "base.raw", "qcow2", nil, "no qcow2 image"},
		{"itself", "child.qcow2", "qcow2", nil, "twice"},
		{"itself as RAW", "child.qcow2", "raw", nil, "twice"},
		{"itself by a hard link", "link.qcow2", "qcow2", func(t *testing.T, dir string) {
			if err := os.Link(filepath.Join(dir, "child.qcow2"), filepath.Join(dir, "link.qcow2")); err != nil {
				skip(t, err.Error())
			}
		}, "twice"},
		{"a loop of two", "other.qcow2", "qcow2", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "other.qcow2"), layer("child.qcow2", "qcow2", 1).Write().Bytes)
		}, "twice"},
		{"symbolic link", "link.raw", "raw", func(t *testing.T, dir string) {
			if err := os.Symlink(secret, filepath.Join(dir, "link.raw")); err != nil {
				skip(t, err.Error())
			}
		}, "symbolic link"},
		{"dangling symbolic link", "link.raw", "raw", func(t *testing.T, dir string) {
			if err := os.Symlink("nowhere", filepath.Join(dir, "link.raw")); err != nil {
				skip(t, err.Error())
			}
		}, "symbolic link"},
		{"folder", "folder", "raw", func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, "folder"},
		{"named pipe", "pipe", "raw", func(t *testing.T, dir string) { makePipe(t, filepath.Join(dir, "pipe")) }, "pipe"},
		{"empty RAW file", "empty", "raw", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "empty"), nil)
		}, "empty"},
		{"damaged parent", "bad.qcow2", "qcow2", func(t *testing.T, dir string) {
			f := hostileBase(3, false)
			f.Put32(36, 0xFFFFFFFF)
			write(t, filepath.Join(dir, "bad.qcow2"), f.Bytes)
		}, "l1_size"},
		{"65 layers", "l0.qcow2", "qcow2", func(t *testing.T, dir string) {
			for i := range 70 {
				write(t, filepath.Join(dir, fmt.Sprintf("l%d.qcow2", i)),
					layer(fmt.Sprintf("l%d.qcow2", i+1), "qcow2", 1).Write().Bytes)
			}
		}, "longer than 64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "base.raw"), base)
			write(t, filepath.Join(dir, "sub", "base.raw"), base)
			child := filepath.Join(dir, "child.qcow2")
			write(t, child, layer(tc.backing, tc.format, 1).Write().Bytes)
			if tc.prepare != nil {
				tc.prepare(t, dir)
			}
			err := allocating(t, func() error { return openAndRead(child, convert.OpenOptions{AllowBacking: true}) })
			var refused *convert.RefusedError
			if !errors.As(err, &refused) || !strings.Contains(refused.Reason, tc.want) {
				t.Errorf("got %v, want it refused for %q", err, tc.want)
			}
			if strings.ContainsAny(fmt.Sprint(err), "\x00\x1b") {
				t.Errorf("control characters in %q", err)
			}
		})
	}
}

// TestStatedRAWParent reads a parent as RAW if its child says so, whatever a guest wrote at its
// start.
func TestStatedRAWParent(t *testing.T) {
	dir := t.TempDir()
	base := hostileBase(3, false).Bytes
	write(t, filepath.Join(dir, "base"), base)
	im := layer("base", "raw", 1)
	write(t, filepath.Join(dir, "child"), im.Write().Bytes)
	d, err := convert.Open(context.Background(), filepath.Join(dir, "child"), convert.OpenOptions{AllowBacking: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if !bytes.Equal(content(t, d), im.Content(base)) {
		t.Error("wrong content")
	}
	if w := d.Info().Warnings; len(w) != 1 || !strings.Contains(w[0], "signature of a qcow2") {
		t.Errorf("warnings %q", w)
	}
}

// TestSourceByLink opens what the user names, also by a symbolic link.
func TestSourceByLink(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "disk.raw"), []byte("content"))
	link := filepath.Join(dir, "link.raw")
	if err := os.Symlink("disk.raw", link); err != nil {
		skip(t, err.Error())
	}
	d, err := convert.Open(context.Background(), link, convert.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := content(t, d); string(got) != "content" {
		t.Errorf("got %q", got)
	}
}
