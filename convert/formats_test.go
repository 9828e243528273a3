// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/convert/qcow2/qcow2test"
)

func TestFormatNames(t *testing.T) {
	names := convert.FormatNames()
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("names %q", names)
	}
	for _, n := range []string{"qcow", "qcow2", "qed", "raw", "vdi", "vhd", "vhdx", "vmdk", "zvhd", "zvhd2"} {
		if !slices.Contains(names, n) {
			t.Errorf("%q is missing in %q", n, names)
		}
	}
}

// TestQEMUFormats reads images of every other format and variant that QEMU can write, and writes
// them out again in every format that this package writes.
func TestQEMUFormats(t *testing.T) {
	dir := t.TempDir()
	const size = 6<<20 + 512*7 // no multiple of any block
	src := filepath.Join(dir, "src.raw")
	writePatterned(t, src, size)
	want, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		format, options string
		compress        bool
		variant         string
	}{
		{format: "qcow"},
		{format: "qed"},
		{format: "qed", options: "cluster_size=8k,table_size=4"},
		{format: "qed", options: "cluster_size=1M,table_size=2"},
		{format: "vdi", variant: "dynamic"},
		{format: "vdi", options: "static=on", variant: "static"},
		{format: "vmdk", variant: "monolithicSparse"},
		{format: "vmdk", options: "subformat=monolithicFlat", variant: "monolithicFlat"},
		{format: "vmdk", options: "subformat=twoGbMaxExtentSparse", variant: "twoGbMaxExtentSparse"},
		{format: "vmdk", options: "subformat=twoGbMaxExtentFlat", variant: "twoGbMaxExtentFlat"},
		{format: "vmdk", options: "subformat=streamOptimized", compress: true, variant: "streamOptimized"},
		{format: "vmdk", options: "zeroed_grain=on", variant: "monolithicSparse"},
		{format: "vhdx", variant: "dynamic"},
		{format: "vhdx", options: "block_size=256M", variant: "dynamic"},
		{format: "vhdx", options: "subformat=fixed", variant: "fixed"},
		{format: "vpc", options: "force_size=on", variant: "dynamic"},
		{format: "vpc", options: "force_size=on,subformat=fixed", variant: "fixed"},
	} {
		t.Run(strings.Trim(tc.format+" "+tc.options, " "), func(t *testing.T) {
			dir := t.TempDir()
			img := filepath.Join(dir, "disk.img")
			args := []string{"convert", "-f", "raw", "-O", tc.format}
			if tc.options != "" {
				args = append(args, "-o", tc.options)
			}
			if tc.compress {
				args = append(args, "-c")
			}
			qemu(t, "qemu-img", append(args, src, img)...)
			for _, stated := range []string{"", tc.format} {
				d, err := convert.Open(context.Background(), img, convert.OpenOptions{Format: stated})
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(content(t, d), want) {
					t.Error("wrong content")
				}
				checkZeroExtents(t, d, want)
				info := d.Info()
				if info.Variant != tc.variant || info.Format != strings.Replace(tc.format, "vpc", "vhd", 1) || info.VirtualSize != size {
					t.Errorf("info %+v", info)
				}
				if stated == "" {
					checkOutputs(t, d, want)
				}
				if err := errors.Join(d.CheckUnchanged(), d.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Run("several extents", func(t *testing.T) {
		for _, sub := range []string{"twoGbMaxExtentSparse", "twoGbMaxExtentFlat"} {
			dir := t.TempDir()
			img := filepath.Join(dir, "disk.vmdk")
			qemu(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat="+sub, img, "5G")
			qemu(t, "qemu-io", "-c", "write -P 1 0 64k", "-c", "write -P 2 2047M 2M", "-c", "write -P 3 5119M 1M", img)
			// The disk is large and empty: compared is what is in it.
			raw := filepath.Join(dir, "want.raw")
			qemu(t, "qemu-img", "convert", "-O", "raw", img, raw)
			var info convert.Info
			var sums []string
			for _, path := range []string{raw, img} {
				d, err := convert.Open(context.Background(), path, convert.OpenOptions{})
				if err != nil {
					t.Fatal(err)
				}
				sums, info = append(sums, dataSum(t, d)), d.Info()
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
			if sums[0] != sums[1] || info.VirtualSize != 5<<30 {
				t.Errorf("%s: other content than qemu-img reads", sub)
			}
			if len(info.Extents) != 3 {
				t.Errorf("%s: extents %q", sub, info.Extents)
			}
			// Each of them is needed.
			if err := os.Rename(info.Extents[1], info.Extents[1]+".away"); err != nil {
				t.Fatal(err)
			}
			refusedBecause(t, img, convert.OpenOptions{}, filepath.Base(info.Extents[1]))
			// Its place is not taken by a link, nor by another extent.
			if err := os.Symlink(info.Extents[1]+".away", info.Extents[1]); err != nil {
				skip(t, err.Error())
			}
			refusedBecause(t, img, convert.OpenOptions{}, "symbolic link")
			if err := errors.Join(os.Remove(info.Extents[1]), os.Link(info.Extents[0], info.Extents[1])); err != nil {
				skip(t, err.Error())
			}
			refusedBecause(t, img, convert.OpenOptions{}, "twice")
		}
	})
}

// checkOutputs writes a disk in every format that can be written and reads it back.
func checkOutputs(t *testing.T, d *convert.Disk, want []byte) {
	t.Helper()
	ctx := context.Background()
	for format, write := range map[string]func(path string) error{
		"raw": func(path string) error {
			_, err := convert.WriteRAW(ctx, d, path, convert.RAWOptions{})
			return err
		},
		"zvhd2": func(path string) error {
			_, err := convert.WriteZVHD2(ctx, d, path, convert.ZVHD2Options{})
			return err
		},
	} {
		path := filepath.Join(t.TempDir(), "out."+format)
		if err := write(path); err != nil {
			t.Fatal(err)
		}
		out, err := convert.Open(ctx, path, convert.OpenOptions{OriginalSize: true})
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		if string(out.Type()) != format || !bytes.Equal(content(t, out), want) {
			t.Errorf("%s of %s has other content", out.Type(), d.Type())
		}
	}
}

func refusedBecause(t *testing.T, path string, o convert.OpenOptions, want string) {
	t.Helper()
	d, err := convert.Open(context.Background(), path, o)
	if err == nil {
		_ = d.Close()
	}
	var refused *convert.RefusedError
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, want) {
		t.Errorf("got %v, want it refused for %q", err, want)
	}
}

// TestQEMUChains reads chains of every format that QEMU can make them of.
func TestQEMUChains(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "base.raw")
	writePatterned(t, src, 6<<20)
	allow := convert.OpenOptions{AllowBacking: true}
	for _, format := range []string{"qcow", "qed", "vmdk"} {
		qemu(t, "qemu-img", "convert", "-f", "raw", "-O", format, src, filepath.Join(dir, "base."+format))
	}
	overlay := func(t *testing.T, format, base, baseFormat string) string {
		t.Helper()
		img := filepath.Join(dir, "over-"+base+"."+format)
		qemu(t, "qemu-img", "create", "-q", "-f", format, "-b", base, "-F", baseFormat, img)
		qemu(t, "qemu-io", "-f", format, "-c", "write -P 0x77 1000k 300k", "-c", "write -P 0x78 5001k 3k", img)
		return img
	}
	for _, tc := range []struct{ format, base string }{
		{"qcow", "raw"}, {"qcow", "qcow"}, {"qed", "raw"}, {"qed", "qed"}, {"vmdk", "vmdk"},
		{"qcow2", "vmdk"}, {"qcow2", "qed"}, {"qcow2", "qcow"},
	} {
		t.Run(tc.format+" over "+tc.base, func(t *testing.T) {
			img := overlay(t, tc.format, "base."+tc.base, tc.base)
			refusedNeed(t, img, convert.OpenOptions{}, convert.NeedBacking)
			compareWithQEMU(t, img)
		})
	}
	t.Run("VMDK over a parent that was written to", func(t *testing.T) {
		img := overlay(t, "vmdk", "base.vmdk", "vmdk")
		qemu(t, "qemu-io", "-f", "vmdk", "-c", "write -P 1 0 512", filepath.Join(dir, "base.vmdk"))
		refusedBecause(t, img, allow, "CID")
	})
	t.Run("parent that looks like an image", func(t *testing.T) {
		// A guest can write this into its RAW disk. The child does not say what its parent is.
		img := overlay(t, "qcow", "base.raw", "raw")
		write(t, src, layer("secret", "raw", 1).Write().Bytes)
		refusedBecause(t, img, allow, "is called a RAW disk")
		inner := layer("secret", "raw", 1).Write().Bytes
		write(t, filepath.Join(dir, "secret"), bytes.Repeat([]byte{1}, 1<<20))
		write(t, filepath.Join(dir, "base"), bytes.Repeat([]byte{1}, 1<<20))
		img = filepath.Join(dir, "over.qcow")
		qemu(t, "qemu-img", "create", "-q", "-f", "qcow", "-b", "base", "-F", "raw", img)
		refusedBecause(t, img, allow, "name does not say RAW")
		write(t, filepath.Join(dir, "base"), inner)
		refusedBecause(t, img, allow, "names another file")
	})
}

// TestDifferencingVHD reads the corpus's differencing disk and holds its parent's identity against
// what it states.
func TestDifferencingVHD(t *testing.T) {
	corpus := os.Getenv("IMSPREP_CORPUS")
	if corpus == "" {
		corpus = filepath.Join("..", "..", "shared", "corpus")
	}
	for _, row := range rows(t, filepath.Join(corpus, "manifest.tsv")) {
		if row["file"] != "synthetic/vhd-diff/child.vhd.gz" {
			continue
		}
		path, _ := corpusFiles(t, corpus, row)
		parent := filepath.Join(filepath.Dir(path), "parent.vhd")
		allow := convert.OpenOptions{AllowBacking: true}
		refusedNeed(t, path, convert.OpenOptions{}, convert.NeedBacking)
		// QEMU would flatten it to a wrong disk.
		if _, err := convert.Open(context.Background(), path, convert.OpenOptions{}); !strings.Contains(err.Error(), "`Convert-VHD ") ||
			strings.Contains(err.Error(), "`qemu-img") {
			t.Errorf("the remedy in %v", err)
		}
		d, err := convert.Open(context.Background(), path, allow)
		if err != nil {
			t.Fatal(err)
		}
		if b := d.Info().Backing; len(b) != 1 || b[0] != parent {
			t.Errorf("chain %q, want %q", b, parent)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := os.Rename(parent, parent+".away"); err != nil {
			t.Fatal(err)
		}
		refusedBecause(t, path, allow, "not found")
		far := convert.OpenOptions{AllowBacking: true, BackingDirs: []string{t.TempDir()}}
		moved := filepath.Join(far.BackingDirs[0], "parent.vhd")
		if err := os.Rename(parent+".away", moved); err != nil {
			t.Fatal(err)
		}
		if d, err = convert.Open(context.Background(), path, far); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		qemu(t, "qemu-img", "create", "-q", "-f", "vpc", "-o", "force_size=on", parent, "5M")
		refusedBecause(t, path, allow, "unique id")
		write(t, parent, bytes.Repeat([]byte{1}, 5<<20))
		refusedBecause(t, path, allow, "no vhd image")
		return
	}
	t.Fatal("the corpus has no differencing VHD")
}

// TestVHDSize leaves it to the caller which size of a VHD counts, where its creator leaves data in doubt.
func TestVHDSize(t *testing.T) {
	dir := t.TempDir()
	raw, img := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.vhd")
	const size = 8 << 20 // no whole number of cylinders
	disk := bytes.Repeat([]byte{1}, size)
	write(t, raw, disk)
	qemu(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", raw, img)
	// As an older QEMU would have written it: by its name, the geometry counts.
	f, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	var chs int
	for _, at := range []int{0, len(f) - 512} {
		footer := f[at : at+512]
		copy(footer[28:], "qemu")
		footer[56], footer[57], footer[58], footer[59] = 0, 200, 4, 17 // cylinders, heads, sectors
		chs = 200 * 4 * 17 * 512
		clear(footer[64:68])
		sum := uint32(0)
		for _, b := range footer {
			sum += uint32(b)
		}
		binary.BigEndian.PutUint32(footer[64:], ^sum)
	}
	write(t, img, f)
	refusedNeed(t, img, convert.OpenOptions{}, convert.NeedVHDSize)
	for rule, want := range map[string]int{convert.VHDSizeCurrent: size, convert.VHDSizeGeometry: chs} {
		d, err := convert.Open(context.Background(), img, convert.OpenOptions{VHDSize: rule})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, d), disk[:want]) || len(d.Info().Warnings) != 1 {
			t.Errorf("%s: %d bytes, warnings %q", rule, d.Size(), d.Info().Warnings)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := convert.Open(context.Background(), img, convert.OpenOptions{VHDSize: "small"}); err == nil {
		t.Error("an unknown rule was taken")
	}
}

// TestDifferencingVHDX makes a child of a disk of QEMU's, which can't make one itself, and holds its
// parent's identity against what it states (MS-VHDX, 2.6.2.6).
func TestDifferencingVHDX(t *testing.T) {
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	writePatterned(t, raw, 6<<20)
	parent, child := filepath.Join(dir, "parent.vhdx"), filepath.Join(dir, "child.vhdx")
	qemu(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", raw, parent)
	qemu(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M,block_state_zero=off", child, "6M")
	qemu(t, "qemu-io", "-f", "vhdx", "-c", "write -P 7 1M 1M", child)
	p, err := os.ReadFile(parent)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	// The current header is the one with the higher sequence number; the data write GUID is at 32.
	header := p[64<<10:]
	if le.Uint64(p[128<<10+8:]) > le.Uint64(header[8:]) {
		header = p[128<<10:]
	}
	id := header[32:48]
	guid := fmt.Sprintf("{%08x-%04x-%04x-%x-%x}", le.Uint32(id), le.Uint16(id[4:]), le.Uint16(id[6:]), id[8:10], id[10:16])
	locator := func(guid, name string) []byte {
		b := append([]byte("\xB7\xEF\x4A\xB0\x9E\xD1\x81\x4A\xB7\x89\x25\xB8\xE9\x44\x59\x13"), 0, 0, 2, 0) // type, reserved, entries
		var text []byte
		for _, kv := range [][2]string{{"parent_linkage", guid}, {"relative_path", name}} {
			key, value := utf16.Encode([]rune(kv[0])), utf16.Encode([]rune(kv[1]))
			at := uint32(20 + 2*12 + len(text))
			b = le.AppendUint32(le.AppendUint32(b, at), at+uint32(2*len(key)))
			b = le.AppendUint16(le.AppendUint16(b, uint16(2*len(key))), uint16(2*len(value)))
			for _, c := range append(key, value...) {
				text = le.AppendUint16(text, c)
			}
		}
		return append(b, text...)
	}
	fresh, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	differ := func(guid, name string) {
		t.Helper()
		f := bytes.Clone(fresh)
		at := bytes.Index(f, []byte("metadata"))
		if at < 0 {
			t.Fatal("no metadata region")
		}
		table := f[at:]
		count := int(le.Uint16(table[10:]))
		for i := range count {
			e := table[32+32*i:]
			if string(e[:4]) == "\x37\x67\xA1\xCA" { // file parameters: has a parent
				flags := table[le.Uint32(e[16:])+4:]
				flags[0] |= 2
			}
		}
		l := locator(guid, name)
		e := table[32+32*count:]
		copy(e, "\x2D\x5F\xD3\xA8\x0B\xB3\x4D\x45\xAB\xF7\xD3\xD8\x48\x34\xAB\x0C")
		le.PutUint32(e[16:], 512<<10) // in the region of 1 MiB
		le.PutUint32(e[20:], uint32(len(l)))
		le.PutUint32(e[24:], 4) // required
		le.PutUint16(table[10:], uint16(count+1))
		copy(table[512<<10:], l)
		write(t, child, f)
	}
	allow := convert.OpenOptions{AllowBacking: true}
	differ(guid, `.\parent.vhdx`)
	refusedNeed(t, child, convert.OpenOptions{}, convert.NeedBacking)
	d, err := convert.Open(context.Background(), child, allow)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	copy(want[1<<20:], bytes.Repeat([]byte{7}, 1<<20))
	if !bytes.Equal(content(t, d), want) || d.Info().Variant != "differencing" || len(d.Info().Backing) != 1 {
		t.Errorf("wrong content, or %+v", d.Info())
	}
	checkZeroExtents(t, d, want)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	differ("{00112233-4455-6677-8899-aabbccddeeff}", `.\parent.vhdx`)
	refusedBecause(t, child, allow, "data write GUID")
	differ(guid, `.\nowhere.vhdx`)
	refusedBecause(t, child, allow, "not found")
	differ(guid, `.\child.vhdx`)
	refusedBecause(t, child, allow, "twice")
	differ(guid, `.\parent.vhdx`)
	write(t, parent, want)
	refusedBecause(t, child, allow, "no vhdx image")
}

// TestOutputsProperty writes random disks in every output format.
func TestOutputsProperty(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(r *rapid.T) {
		im := qcow2test.Image{Version: 3, ClusterBits: 16, Size: rapid.Int64Range(1, 5<<11).Draw(r, "sectors") * 512}
		for i := range (im.Size + 65535) >> 16 {
			data := bytes.Repeat([]byte{rapid.Byte().Draw(r, "byte")}, 1<<16)
			switch rapid.IntRange(0, 5).Draw(r, "kind") {
			case 0:
				im.Clusters = append(im.Clusters, qcow2test.Cluster{Index: i, Data: data})
			case 1:
				im.Clusters = append(im.Clusters, qcow2test.Cluster{Index: i, Kind: qcow2test.Compressed, Data: data})
			case 2:
				im.Clusters = append(im.Clusters, qcow2test.Cluster{Index: i, Kind: qcow2test.Zero})
			}
		}
		path := filepath.Join(dir, "disk.qcow2")
		write(t, path, im.Write().Bytes)
		d, err := convert.Open(context.Background(), path, convert.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		checkOutputs(t, d, im.Content(nil))
	})
}

// TestQEMUDataFile reads images whose data QEMU keeps in an external data file.
func TestQEMUDataFile(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src.raw")
	writePatterned(t, src, 6<<20+512*7)
	allow := convert.OpenOptions{AllowBacking: true}
	// make writes an image with a data file beside it; options are qemu-img's. QEMU stores the name as
	// it was given and looks for it in the current folder, not in the image's.
	make := func(t *testing.T, options string) (img, data string) {
		t.Helper()
		dir := t.TempDir()
		t.Chdir(dir)
		qemu(t, "qemu-img", "convert", "-O", "qcow2", "-o", "data_file=disk.data"+options, src, "disk.qcow2")
		return filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "disk.data")
	}
	for _, options := range []string{"", ",data_file_raw=on", ",preallocation=metadata", ",preallocation=full",
		",extended_l2=on", ",cluster_size=4k", ",extended_l2=on,preallocation=metadata"} {
		t.Run("data file"+options, func(t *testing.T) {
			img, data := make(t, options)
			refusedNeed(t, img, convert.OpenOptions{}, convert.NeedBacking)
			qemu(t, "qemu-io", "-c", "write -P 0x77 1000k 300k", "-c", "write -z 2M 512k", img)
			compareWithQEMU(t, img)
			d, err := convert.Open(context.Background(), img, allow)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if x := d.Info().Extents; len(x) != 1 || x[0] != data {
				t.Errorf("extents %q, want %q", x, data)
			}
		})
	}
	t.Run("below an overlay", func(t *testing.T) {
		img, _ := make(t, "")
		over := filepath.Join(filepath.Dir(img), "over.qcow2")
		qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", over)
		qemu(t, "qemu-io", "-c", "write -P 0x77 1000k 300k", over)
		compareWithQEMU(t, over)
	})
	t.Run("in another folder", func(t *testing.T) {
		img, data := make(t, "")
		far := t.TempDir()
		if err := os.Rename(data, filepath.Join(far, "disk.data")); err != nil {
			t.Fatal(err)
		}
		refusedBecause(t, img, allow, `external data file "disk.data" was not found`)
		if err := openAndRead(img, convert.OpenOptions{AllowBacking: true, BackingDirs: []string{far}}); err != nil {
			t.Error(err)
		}
	})
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, img, data string) error
		want  string
	}{
		{"cut", func(_ *testing.T, _, data string) error { return os.Truncate(data, 5<<20) }, "truncated"},
		{"empty", func(_ *testing.T, _, data string) error { return os.Truncate(data, 0) }, "truncated"},
		{"a symbolic link", func(_ *testing.T, _, data string) error {
			return errors.Join(os.Rename(data, data+".away"), os.Symlink(data+".away", data))
		}, "symbolic link"},
		{"a named pipe", func(t *testing.T, _, data string) error {
			makePipe(t, data+".pipe")
			return os.Rename(data+".pipe", data)
		}, "pipe"},
		{"a folder", func(_ *testing.T, _, data string) error {
			return errors.Join(os.Remove(data), os.Mkdir(data, 0o700))
		}, "folder"},
		{"the image itself by a link", func(_ *testing.T, img, data string) error {
			return errors.Join(os.Remove(data), os.Link(img, data))
		}, "twice"},
		{"an absolute name", func(t *testing.T, img, data string) error {
			return patchFile(img, "disk.data", "/dev/zero")
		}, "is a path"},
		{"a json name", func(_ *testing.T, img, _ string) error {
			return patchFile(img, "disk.data", "json:{aa}")
		}, "plain file name"},
		{"the image itself by its name", func(_ *testing.T, img, _ string) error {
			return errors.Join(os.Rename(img, filepath.Join(filepath.Dir(img), "self.data")),
				patchFile(filepath.Join(filepath.Dir(img), "self.data"), "disk.data", "self.data"),
				os.Symlink("self.data", img))
		}, "twice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img, data := make(t, "")
			if err := tc.spoil(t, img, data); err != nil {
				t.Fatal(err)
			}
			refusedBecause(t, img, allow, tc.want)
		})
	}
}

// patchFile replaces the first occurrence of a text in a file by another of the same length.
func patchFile(path, from, to string) error {
	p, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	at := bytes.Index(p, []byte(from))
	if at < 0 || len(from) != len(to) {
		return errors.New(path + " has no " + from)
	}
	copy(p[at:], to)
	return os.WriteFile(path, p, 0o600)
}
