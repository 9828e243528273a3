// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/convert/qcow2/qcow2test"
)

// wrappedDisk is a small QCOW2 image and its content.
func wrappedDisk() (file, content []byte) {
	im := qcow2test.Image{Version: 3, ClusterBits: 12, Size: 64 * kib, Clusters: []qcow2test.Cluster{
		{Index: 3, Data: bytes.Repeat([]byte("data"), 1<<10)}}}
	return im.Write().Bytes, im.Content(nil)
}

// pack compresses p as the file name's suffix says.
func pack(t *testing.T, suffix string, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch suffix {
	case ".gz":
		w, err = gzip.NewWriterLevel(&b, gzip.BestSpeed)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	case ".xz":
		w, err = xz.WriterConfig{DictCap: 1 << 20}.NewWriter(&b)
	case ".bz2":
		return packWith(t, p, "bzip2")
	}
	if err == nil {
		_, err = w.Write(p)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// packWith compresses p with a tool.
func packWith(t *testing.T, p []byte, tool string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		skip(t, err.Error())
	}
	cmd := exec.Command(tool, append([]string{"-c"}, args...)...)
	cmd.Stdin = bytes.NewReader(p)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// checkWrapped opens a file that must have the content and leave nothing behind.
func checkWrapped(t *testing.T, path string, o convert.OpenOptions, want []byte) convert.Info {
	t.Helper()
	d, err := convert.Open(context.Background(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content(t, d), want) {
		t.Error("wrong content")
	}
	checkZeroExtents(t, d, want)
	if err := errors.Join(d.CheckUnchanged(), d.Close()); err != nil {
		t.Error(err)
	}
	emptyFolder(t, o.ScratchDir)
	return d.Info()
}

func emptyFolder(t *testing.T, dir string) {
	t.Helper()
	if dir == "" {
		return
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in the scratch folder: %v, %v", left, err)
	}
}

// TestWrappers reads images out of every compression, and what the tools make of it.
func TestWrappers(t *testing.T) {
	image, want := wrappedDisk()
	noise := make([]byte, 3<<20)
	copy(noise[1<<20:], bytes.Repeat([]byte("not only zeros "), 1<<16))
	for _, suffix := range []string{".gz", ".xz", ".zst", ".bz2"} {
		t.Run(suffix, func(t *testing.T) {
			dir := t.TempDir()
			o := convert.OpenOptions{ScratchDir: t.TempDir()}
			// The name does not count, but for what is RAW.
			for _, name := range []string{"disk.qcow2" + suffix, "disk.img"} {
				path := filepath.Join(dir, name)
				write(t, path, pack(t, suffix, image))
				for _, o := range []convert.OpenOptions{o, {}} {
					info := checkWrapped(t, path, o, want)
					if info.Format != "qcow2" || len(info.Wrapped) != 1 || info.Path != path || info.Streamed != (o.ScratchDir == "") {
						t.Errorf("info %+v", info)
					}
				}
			}
			path := filepath.Join(dir, "disk.raw"+suffix)
			write(t, path, pack(t, suffix, noise))
			checkWrapped(t, path, o, noise)
			checkWrapped(t, path, convert.WithWindow(convert.OpenOptions{}, 1<<20), noise)
			raw := o
			raw.Format = "raw"
			checkWrapped(t, path, raw, noise)
			path = filepath.Join(dir, "disk"+suffix)
			write(t, path, pack(t, suffix, noise))
			refusedNeed(t, path, o, convert.NeedFormat)
			checkWrapped(t, path, raw, noise)
			// Two files in one, as the tools allow.
			write(t, path, append(pack(t, suffix, noise[:1<<20]), pack(t, suffix, noise[1<<20:])...))
			checkWrapped(t, path, raw, noise)
			// A RAW disk may begin as it likes.
			path = filepath.Join(dir, "guest.raw")
			packed := pack(t, suffix, image)
			write(t, path, packed)
			checkWrapped(t, path, raw, packed)
			emptyFolder(t, o.ScratchDir)
		})
	}
	for _, tc := range []struct{ suffix, tool, args string }{
		{".xz", "xz", "-9e"}, {".xz", "xz", "-T2 --block-size=262144"}, {".xz", "xz", "-0 --check=sha256"},
		{".xz", "xz", "--check=none"}, {".xz", "xz", "--check=crc32"}, {".zst", "zstd", "-19 --ultra --long=27"},
		{".zst", "zstd", "--no-check"}, {".gz", "gzip", "-1"}, {".bz2", "bzip2", "-1"},
	} {
		t.Run(tc.tool+" "+tc.args, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.raw"+tc.suffix)
			write(t, path, packWith(t, noise, tc.tool, strings.Fields(tc.args)...))
			checkWrapped(t, path, convert.OpenOptions{ScratchDir: t.TempDir()}, noise)
			checkWrapped(t, path, convert.WithWindow(convert.OpenOptions{}, 1<<20), noise)
		})
	}
	t.Run("overlay", func(t *testing.T) {
		dir := t.TempDir()
		base := bytes.Repeat([]byte{0xBA}, 64*kib)
		write(t, filepath.Join(dir, "base.raw"), base)
		over := layer("base.raw", "raw", 3)
		path := filepath.Join(dir, "over.qcow2.gz")
		write(t, path, pack(t, ".gz", over.Write().Bytes))
		o := convert.OpenOptions{ScratchDir: t.TempDir()}
		refusedNeed(t, path, o, convert.NeedBacking)
		o.AllowBacking = true
		checkWrapped(t, path, o, over.Content(base))
	})
	t.Run("no scratch folder", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "disk.gz")
		write(t, path, pack(t, ".gz", image))
		_, err := convert.Open(context.Background(), path, convert.OpenOptions{ScratchDir: filepath.Join(t.TempDir(), "none")})
		var refused *convert.RefusedError
		if !errors.Is(err, fs.ErrNotExist) || errors.As(err, &refused) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "disk.gz")
		write(t, path, pack(t, ".gz", noise))
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		scratch := t.TempDir()
		if _, err := convert.Open(ctx, path, convert.OpenOptions{ScratchDir: scratch}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		emptyFolder(t, scratch)
	})
}

// xzWithWindow is an XZ file whose block header asks for a window, by the coded size of that.
func xzWithWindow(t *testing.T, p []byte, bits byte) []byte {
	b := pack(t, ".xz", p)
	h := b[12:][:(int(b[12])+1)*4]
	i := bytes.IndexByte(h[2:], 0x21) + 2
	h[i+2] = bits
	binary.LittleEndian.PutUint32(h[len(h)-4:], crc32.ChecksumIEEE(h[:len(h)-4]))
	return b
}

// TestHostileWrappers refuses what is damaged, cut, followed by something, or larger than it may
// be.
func TestHostileWrappers(t *testing.T) {
	image, want := wrappedDisk()
	image = append(bytes.Clone(image), bytes.Repeat([]byte("more "), 20000)...)
	type hostile struct {
		name string
		file []byte
		max  int64
		want string
	}
	var cases []hostile
	zeros := make([]byte, 66<<20) // the limit is 65 MiB and a bit
	for _, suffix := range []string{".gz", ".xz", ".zst", ".bz2"} {
		good := pack(t, suffix, image)
		for _, cut := range []int{1, 4, 9, len(good) / 2, len(good) - 12} {
			cases = append(cases, hostile{fmt.Sprintf("%s cut by %d", suffix, cut), good[:len(good)-cut], 0, ""})
		}
		flipped := bytes.Clone(good)
		flipped[len(good)/2] ^= 0x40
		cases = append(cases,
			hostile{suffix + " and garbage", append(bytes.Clone(good), "garbage garbage!"...), 0, "damaged or cut"},
			hostile{suffix + " and zeros", append(bytes.Clone(good), make([]byte, 13)...), 0, "damaged or cut"},
			hostile{suffix + " with a wrong bit", flipped, 0, "damaged or cut"},
			hostile{suffix + " four times", pack(t, suffix, pack(t, suffix, pack(t, suffix, pack(t, suffix, image)))), 0, "file, not a disk image"},
			hostile{suffix + " of nothing", pack(t, suffix, nil), 0, "empty"},
		)
		if !raceEnabled || suffix == ".gz" { // the others take long, and nothing runs beside them
			cases = append(cases, hostile{suffix + " above the limit", pack(t, suffix, zeros), 1 << 20, "above the limit"})
		}
	}
	big := bytes.Repeat([]byte{1}, 3<<20)
	cases = append(cases,
		hostile{"xz index of nothing", append(bytes.Clone(pack(t, ".xz", big)[:12]), make([]byte, 64)...), 0, "damaged or cut"},
		hostile{"xz window beyond the code", xzWithWindow(t, big, 41), 0, "filter"},
	)
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.img")
			write(t, path, tc.file)
			for _, dir := range []string{t.TempDir(), ""} {
				o := convert.OpenOptions{ScratchDir: dir, MaxVirtualSize: tc.max}
				err := allocating(t, func() error { return openAndRead(path, o) })
				var refused *convert.RefusedError
				if !errors.As(err, &refused) || !strings.Contains(refused.Reason, tc.want) {
					t.Errorf("got %v, want it refused for %q", err, tc.want)
				}
				emptyFolder(t, dir)
			}
		})
	}
	t.Run("xz window of 4 GiB", func(t *testing.T) {
		// More than the data needs is not taken.
		path := filepath.Join(t.TempDir(), "disk.xz")
		plain, _ := wrappedDisk()
		write(t, path, xzWithWindow(t, plain, 40))
		err := allocating(t, func() error {
			checkWrapped(t, path, convert.OpenOptions{ScratchDir: t.TempDir()}, want)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// member is a file of an archive.
type member struct {
	name string
	data []byte
	edit func(*tar.Header)
}

func archive(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Size: int64(len(m.data)), Mode: 0o644, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if m.edit != nil {
			m.edit(h)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.data[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// descriptor is an OVF descriptor of disks in files; more is put into each File.
func descriptor(more string, files ...string) []byte {
	var refs, disks strings.Builder
	for i, f := range files {
		fmt.Fprintf(&refs, `<File ovf:href="%s" ovf:id="file%d" %s/>`, f, i, more)
		fmt.Fprintf(&disks, `<Disk ovf:capacity="${disk.size}" ovf:diskId="vmdisk%d" ovf:fileRef="file%d"/>`, i, i)
	}
	return []byte(`<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
<References>` + refs.String() + `</References><DiskSection><Info>disks</Info>` + disks.String() + `
<Disk ovf:capacity="1" ovf:diskId="empty"/></DiskSection></Envelope>`)
}

func manifest(files ...member) []byte {
	var b bytes.Buffer
	for i, f := range files {
		if i%2 == 0 {
			fmt.Fprintf(&b, "SHA256(%s)= %x\n", f.name, sha256.Sum256(f.data))
		} else {
			fmt.Fprintf(&b, "SHA1(%s)= %x\r\n", f.name, sha1.Sum(f.data))
		}
	}
	return b.Bytes()
}

// TestOVA reads the disk of a package, and refuses packages that contradict themselves.
func TestOVA(t *testing.T) {
	image, want := wrappedDisk()
	other := bytes.Repeat([]byte{7}, 4096)
	disk, second := member{name: "web-disk1.vmdk", data: image}, member{name: "web-disk2.img", data: other}
	ovf := func(more string, files ...string) member {
		return member{name: "web.ovf", data: descriptor(more, files...)}
	}
	one := ovf("", disk.name)
	sized := ovf(fmt.Sprintf(`ovf:size="%d"`, len(image)), disk.name)
	both := ovf("", disk.name, second.name)
	mf := func(files ...member) member { return member{name: "web.mf", data: manifest(files...)} }
	packed := member{name: "web-disk1.vmdk.gz", data: pack(t, ".gz", image)}
	damaged := member{name: disk.name, data: append(bytes.Clone(image[:len(image)-1]), 9)}
	kind := func(flag byte) func(*tar.Header) {
		return func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = flag, "web.ovf", 0 }
	}
	capacity := func(n, unit string) []member {
		desc := strings.Replace(string(one.data), "${disk.size}", n+`" ovf:capacityAllocationUnits="`+unit, 1)
		o := member{name: "web.ovf", data: []byte(desc)}
		return []member{o, mf(o, disk), disk}
	}
	whole := archive(t, one, disk)
	for _, tc := range []struct {
		name    string
		members []member
		file    []byte // instead of members
		o       convert.OpenOptions
		want    []byte // nil = refused
		reason  string // or a warning
		need    convert.Need
	}{
		{name: "with a manifest", members: []member{sized, mf(sized, disk), disk}, want: want},
		{name: "manifest at the end", members: []member{one, disk, mf(disk, one)}, want: want},
		{name: "without a manifest", members: []member{one, disk}, want: want, reason: "no manifest"},
		{name: "manifest of less", members: []member{one, mf(one), disk}, want: want, reason: "says nothing of"},
		{name: "with ./", members: []member{one, {name: "./" + disk.name, data: image}}, want: want, reason: "no manifest"},
		{name: "RAW disk", members: []member{ovf("", second.name), second}, want: other, reason: "no manifest"},
		{name: "gzip inside", members: []member{ovf(`ovf:compression="gzip"`, packed.name), packed},
			o: convert.OpenOptions{ScratchDir: t.TempDir()}, want: want, reason: "no manifest"},
		{name: "gzip inside, no scratch", members: []member{ovf(`ovf:compression="gzip"`, packed.name), packed}, want: want, reason: "no manifest"},
		{name: "gzip outside, no scratch", file: pack(t, ".gz", whole), want: want, reason: "no manifest"},
		{name: "gzip outside", file: pack(t, ".gz", whole), o: convert.OpenOptions{ScratchDir: t.TempDir()}, want: want, reason: "no manifest"},
		{name: "two disks", members: []member{both, disk, second}, need: convert.NeedDisk, reason: `2 disks: "web-disk1.vmdk", "web-disk2.img"`},
		{name: "two disks, the first", members: []member{both, mf(both, disk), disk, second},
			o: convert.OpenOptions{ArchiveDisk: disk.name}, want: want},
		{name: "two disks, the second", members: []member{both, disk, second},
			o: convert.OpenOptions{ArchiveDisk: second.name}, want: other, reason: "no manifest"},
		{name: "two disks, another", members: []member{both, disk, second},
			o: convert.OpenOptions{ArchiveDisk: "x"}, need: convert.NeedDisk, reason: `no disk "x"`},
		{name: "wrong disk", members: []member{one, mf(one, disk), damaged}, reason: "manifest says"},
		{name: "wrong descriptor", members: []member{one, mf(sized, disk), disk}, reason: "manifest says"},
		{name: "damaged manifest", members: []member{one, {name: "web.mf", data: []byte("SHA256 web.ovf")}, disk}, reason: "manifest is damaged"},
		{name: "short digest", members: []member{one, {name: "web.mf", data: []byte("SHA256(web.ovf)= 00")}, disk}, reason: "wrong length"},
		{name: "unknown digest", members: []member{one, {name: "web.mf", data: []byte("MD5(web.ovf)= 00")}, disk}, reason: "known kind"},
		{name: "wrong size", members: []member{ovf(`ovf:size="5"`, disk.name), disk}, reason: "descriptor says"},
		{name: "missing disk", members: []member{one}, reason: "missing"},
		{name: "no disk", members: []member{ovf("")}, reason: "without a disk"},
		{name: "chunks", members: []member{ovf(`ovf:chunkSize="10"`, disk.name), disk}, reason: "chunks"},
		{name: "unknown compression", members: []member{ovf(`ovf:compression="lha"`, disk.name), disk}, reason: "compression"},
		{name: "disk above the folder", members: []member{ovf("", "../secret"), disk}, reason: "path"},
		{name: "absolute disk", members: []member{ovf("", "/etc/passwd"), disk}, reason: "path"},
		{name: "URL", members: []member{ovf("", "http://host/disk"), disk}, reason: "path"},
		{name: "member above the folder", members: []member{one, {name: "../web-disk1.vmdk", data: image}}, reason: "path"},
		{name: "absolute member", members: []member{one, {name: "/web-disk1.vmdk", data: image}}, reason: "path"},
		{name: "member in a folder", members: []member{one, {name: "d/web-disk1.vmdk", data: image}}, reason: "path"},
		{name: "symbolic link", members: []member{one, {name: disk.name, edit: kind(tar.TypeSymlink)}}, reason: "plain file"},
		{name: "hard link", members: []member{one, {name: disk.name, edit: kind(tar.TypeLink)}}, reason: "plain file"},
		{name: "device", members: []member{one, {name: disk.name, edit: kind(tar.TypeBlock)}}, reason: "plain file"},
		{name: "twice", members: []member{one, disk, disk}, reason: "two members"},
		{name: "two descriptors", members: []member{one, {name: "b.ovf", data: one.data}, disk}, reason: "2 OVF descriptors"},
		{name: "damaged descriptor", members: []member{{name: "web.ovf", data: []byte("<Envelope><References>")}, disk}, reason: "descriptor is damaged"},
		{name: "entities", members: []member{{name: "web.ovf", data: []byte("<!DOCTYPE x [<!ENTITY a \"b\">]><Envelope>&a;</Envelope>")}, disk}, reason: "descriptor is damaged"},
		{name: "cut in the disk", file: whole[:len(whole)-3000], reason: "truncated"},
		{name: "cut at the end", file: whole[:len(whole)-1024], reason: "truncated"},
		{name: "cut in a header", file: whole[:700], reason: ""},
		{name: "overlay", members: []member{ovf("", "o"), {name: "o", data: layer("web.ovf", "raw", 1).Write().Bytes}},
			o: convert.OpenOptions{AllowBacking: true}, reason: "no further file of an archive"},
		{name: "extent", members: []member{ovf("", "d"), {name: "d", data: []byte("# Disk DescriptorFile\nversion=1\nCID=fffffffe\n" +
			"parentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"web.ovf\" 0\n")}}, reason: "no further file of an archive"},
		{name: "capacity", members: capacity("65536", ""), want: want, reason: ""},
		{name: "capacity in KiB", members: capacity("64", "byte * 2^10"), want: want, reason: ""},
		{name: "no capacity", members: capacity("", ""), want: want, reason: "can't be checked"},
		{name: "wrong capacity", members: capacity("65537", "byte"), want: want, reason: "says that the disk has 65537 bytes, but it has 65536"},
		{name: "capacity in nothing", members: capacity("1", "parsecs"), want: want, reason: `units of "parsecs`},
		{name: "capacity beyond all", members: capacity("99999999999", "byte*2^60"), want: want, reason: "can't be checked"},
		{name: "capacity shifted away", members: capacity("1", "byte*2^99"), want: want, reason: "can't be checked"},
		{name: "tar of one disk", members: []member{{name: "disk.raw", data: other}}, want: other},
		{name: "tar of two files", members: []member{disk, second}, need: convert.NeedDisk, reason: "2 files"},
		{name: "tar of two files, one named", members: []member{disk, second}, o: convert.OpenOptions{ArchiveDisk: disk.name}, want: want},
		{name: "tar in a tar", members: []member{{name: "a.tar", data: archive(t, disk)}}, want: want},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "web.ova")
			if tc.file == nil {
				tc.file = archive(t, tc.members...)
			}
			write(t, path, tc.file)
			if tc.want != nil {
				info := checkWrapped(t, path, tc.o, tc.want)
				if w := strings.Join(info.Warnings, "\n"); !strings.Contains(w, tc.reason) || (w == "") != (tc.reason == "") {
					t.Errorf("warnings %q, want one with %q", w, tc.reason)
				}
				if info.Member == "" || len(info.Wrapped) == 0 {
					t.Errorf("info %+v", info)
				}
				return
			}
			err := allocating(t, func() error { return openAndRead(path, tc.o) })
			var refused *convert.RefusedError
			if !errors.As(err, &refused) || !strings.Contains(refused.Reason, tc.reason) || refused.Need != tc.need {
				t.Errorf("got %v, want it refused for %q", err, tc.reason)
			}
		})
	}
}

// TestOVF reads the disk that lies beside a descriptor.
func TestOVF(t *testing.T) {
	image, want := wrappedDisk()
	dir := t.TempDir()
	path := filepath.Join(dir, "web.ovf")
	disk := member{"disk.vmdk", image, nil}
	desc := member{"web.ovf", descriptor("", disk.name), nil}
	write(t, path, desc.data)
	refusedFor := func(want string) {
		t.Helper()
		_, err := convert.Open(context.Background(), path, convert.OpenOptions{})
		var refused *convert.RefusedError
		if !errors.As(err, &refused) || !strings.Contains(refused.Reason, want) {
			t.Errorf("got %v, want it refused for %q", err, want)
		}
	}
	refusedFor("missing")
	write(t, filepath.Join(dir, disk.name), image)
	info := checkWrapped(t, path, convert.OpenOptions{}, want)
	if info.Member != disk.name || len(info.Wrapped) != 1 || info.Wrapped[0] != "OVF" {
		t.Errorf("info %+v", info)
	}
	write(t, filepath.Join(dir, "web.mf"), manifest(desc, disk))
	checkWrapped(t, path, convert.OpenOptions{}, want)
	write(t, filepath.Join(dir, "web.mf"), manifest(disk, member{desc.name, nil, nil}))
	refusedFor("manifest says")
	write(t, path, descriptor("", "web.ovf"))
	refusedFor("twice")
	write(t, path, descriptor("", "../"+filepath.Base(dir)+"/"+disk.name))
	refusedFor("path")
}
