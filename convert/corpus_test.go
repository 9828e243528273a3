// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imsprep/imsprep/convert"
)

func oldTime() time.Time { return time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC) }

// hashDisk returns the SHA-256 of the whole disk, without reading what is known to be zero, or ""
// for a large disk that is empty: hashing the zeros of 127 GiB takes minutes and tells nothing. With
// the race detector, which has nothing to see in it, disks above 1 GiB are not hashed either.
func hashDisk(t *testing.T, d *convert.Disk) string {
	t.Helper()
	if raceEnabled && d.Size() > 1<<30 {
		return ""
	}
	if e, err := d.Extent(0, d.Size()); err == nil && d.Size() > 32<<30 && e.Zero && e.Length == d.Size() {
		t.Logf("NOT HASHED: %d bytes that are known to be zero", d.Size())
		return ""
	}
	h := sha256.New()
	buf := make([]byte, 1<<20)
	zeros := make([]byte, 1<<20)
	for e, err := range convert.Extents(context.Background(), d) {
		if err != nil {
			t.Fatal(err)
		}
		for off, end := e.Start, e.Start+e.Length; off < end; {
			n := min(int64(len(buf)), end-off)
			p := zeros[:n]
			if !e.Zero {
				p = buf[:n]
				if _, err := d.ReadAt(p, off); err != nil && err != io.EOF {
					t.Fatal(err)
				}
			}
			h.Write(p)
			off += n
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// rows reads a manifest: lines of tab-separated fields, the first being their names.
func rows(t *testing.T, path string) []map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		skip(t, err.Error())
	}
	defer f.Close()
	var names []string
	var out []map[string]string
	s := bufio.NewScanner(f)
	for s.Scan() {
		fields := strings.Split(s.Text(), "\t")
		if names == nil {
			names = fields
			continue
		}
		row := map[string]string{}
		for i, n := range names {
			if i < len(fields) {
				row[n] = fields[i]
			}
		}
		out = append(out, row)
	}
	if err := s.Err(); err != nil || len(out) == 0 {
		t.Fatalf("%s: %d rows, %v", path, len(out), err)
	}
	return out
}

// corpusFiles unpacks a file of the corpus and those that its manifest says belong to it into a
// folder of their own, and returns the first one's path there.
func corpusFiles(t *testing.T, corpus string, row map[string]string) (path string, others int) {
	t.Helper()
	dir := t.TempDir()
	names := []string{row["file"]}
	for _, m := range regexp.MustCompile(`with (\S+/\S+)`).FindAllStringSubmatch(row["note"], -1) {
		names = append(names, m[1])
	}
	for i, name := range names {
		file := filepath.Join(dir, strings.TrimSuffix(filepath.Base(name), ".gz"))
		if err := unpackFile(filepath.Join(corpus, filepath.FromSlash(name)), file); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			path = file
		}
	}
	return path, len(names) - 1
}

// unpackFile copies a file, which is unpacked if its name says that it is gzip.
func unpackFile(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	var r io.Reader = src
	if strings.HasSuffix(from, ".gz") {
		if r, err = gzip.NewReader(src); err != nil {
			return err
		}
	}
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, r)
	return errors.Join(err, dst.Close())
}

// TestCorpus reads real images of many origins, packed and unpacked and by a name that would do for
// RAW, too. Each must have the content that its manifest says or be refused.
func TestCorpus(t *testing.T) {
	dir := os.Getenv("IMSPREP_CORPUS")
	if dir == "" {
		dir = filepath.Join("..", "..", "shared", "corpus")
	}
	for _, row := range rows(t, filepath.Join(dir, "manifest.tsv")) {
		t.Run(row["file"], func(t *testing.T) {
			packed := filepath.Join(dir, filepath.FromSlash(row["file"]))
			path, others := corpusFiles(t, dir, row)
			img := filepath.Join(filepath.Dir(path), "disk.img")
			if err := unpackFile(path, img); err != nil {
				t.Fatal(err)
			}
			paths := []string{path, img}
			o := convert.OpenOptions{AllowBacking: true, ScratchDir: t.TempDir()}
			if strings.HasSuffix(packed, ".gz") {
				if others == 0 {
					// Unpacked to a file, and as it is read.
					paths = append(paths, packed, packed)
				}
			}
			sum := ""
			for i, path := range paths {
				o := o
				if i == 3 {
					o.ScratchDir = ""
				}
				d, err := convert.Open(context.Background(), path, o)
				if strings.HasPrefix(row["raw_sha256"], "REFUSE") {
					var refused *convert.RefusedError
					if !errors.As(err, &refused) {
						t.Errorf("got %v, want it refused", err)
					}
					if err == nil {
						_ = d.Close()
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if want := row["virtual_size"]; strconv.FormatInt(d.Size(), 10) != want {
					t.Errorf("virtual size %d, want %s", d.Size(), want)
				}
				// Each copy has the data of the first, whose whole content is known.
				got := dataSum(t, d)
				if sum == "" {
					sum = got
					if got, want := hashDisk(t, d), row["raw_sha256"]; got != "" && got != want {
						t.Errorf("content %s, want %s", got, want)
					}
				}
				if got != sum {
					t.Errorf("%s has other data than %s", path, paths[0])
				}
				if err := errors.Join(d.CheckUnchanged(), d.Close()); err != nil {
					t.Error(err)
				}
			}
			if left, err := os.ReadDir(o.ScratchDir); err != nil || len(left) > 0 {
				t.Errorf("left in the scratch folder: %v, %v", left, err)
			}
		})
	}
}

// dataSum returns a sum of where the disk's blocks that are not zero are, and of what is in them.
func dataSum(t *testing.T, d *convert.Disk) string {
	t.Helper()
	var mu sync.Mutex
	blocks := make(map[int64][32]byte)
	err := convert.Scan(context.Background(), convert.NewScanner(d, nil), convert.ScanOptions{ChunkSize: convert.DefaultBlock},
		func(off int64, p []byte) error {
			mu.Lock()
			defer mu.Unlock()
			blocks[off] = sha256.Sum256(p)
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(blocks)
}

// refusedNeed wants an image to be refused for want of an option.
func refusedNeed(t *testing.T, path string, o convert.OpenOptions, need convert.Need) {
	t.Helper()
	d, err := convert.Open(context.Background(), path, o)
	if err == nil {
		_ = d.Close()
	}
	var refused *convert.RefusedError
	if !errors.As(err, &refused) || refused.Need != need || refused.Remedy == "" {
		t.Errorf("got %v, want it refused with the need %q", err, need)
	}
}

// TestSampleDisks reads the repository's own disks, whose sums were taken from what qemu-img reads.
func TestSampleDisks(t *testing.T) {
	dir := filepath.Join("..", "testdata")
	for _, row := range rows(t, filepath.Join(dir, "manifest.tsv")) {
		t.Run(row["file"], func(t *testing.T) {
			path := filepath.Join(dir, row["file"])
			d, err := convert.Open(context.Background(), path, convert.OpenOptions{AllowBacking: true})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if got := hashDisk(t, d); got != row["sha256"] || strconv.FormatInt(d.Size(), 10) != row["virtual_size"] {
				t.Errorf("content %s of %d bytes, want %s of %s", got, d.Size(), row["sha256"], row["virtual_size"])
			}
			dst := filepath.Join(t.TempDir(), "out.raw")
			if _, err := convert.WriteRAW(context.Background(), d, dst, convert.RAWOptions{}); err != nil {
				t.Fatal(err)
			}
			raw, err := convert.Open(context.Background(), dst, convert.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			if got := hashDisk(t, raw); got != row["sha256"] {
				t.Errorf("the RAW file has the content %s, want %s", got, row["sha256"])
			}
		})
	}
}

// qemu runs qemu-img or qemu-io, or skips the test.
func qemu(t *testing.T, tool string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		skip(t, err.Error())
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", tool, args, err, out)
	}
}

// TestQEMU reads images made by QEMU in every variant that it can make, and by its eyes images made
// by this repository's tests.
func TestQEMU(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src.raw")
	writePatterned(t, src, 20<<20+512*7)
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"plain", nil},
		{"version 2", []string{"-o", "compat=0.10"}},
		{"zlib", []string{"-c"}},
		{"zlib, version 2", []string{"-c", "-o", "compat=0.10"}},
		{"zstd", []string{"-c", "-o", "compression_type=zstd"}},
		{"512", []string{"-o", "cluster_size=512"}},
		{"512 zlib", []string{"-c", "-o", "cluster_size=512"}},
		{"4096 zstd", []string{"-c", "-o", "cluster_size=4096,compression_type=zstd"}},
		{"2 MiB", []string{"-o", "cluster_size=2M"}},
		{"2 MiB zlib", []string{"-c", "-o", "cluster_size=2M"}},
		{"2 MiB zstd", []string{"-c", "-o", "cluster_size=2M,compression_type=zstd"}},
		{"extended L2", []string{"-o", "extended_l2=on"}},
		{"extended L2 16 KiB", []string{"-o", "extended_l2=on,cluster_size=16k"}},
		{"extended L2 zstd", []string{"-c", "-o", "extended_l2=on,cluster_size=128k,compression_type=zstd"}},
		{"preallocated tables", []string{"-o", "preallocation=metadata"}},
		{"preallocated", []string{"-S", "0", "-o", "preallocation=falloc"}},
		{"lazy refcounts", []string{"-o", "lazy_refcounts=on"}},
		{"refcounts of 1 bit", []string{"-o", "refcount_bits=1"}},
		{"no zero detection", []string{"-S", "0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := filepath.Join(dir, "img.qcow2")
			qemu(t, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, tc.args...), src, img)...)
			compareWithQEMU(t, img)
		})
	}
	t.Run("written to", func(t *testing.T) {
		base, img := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "over.qcow2")
		qemu(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", src, base)
		for _, opts := range []string{"compat=1.1", "compat=0.10", "cluster_size=4k", "extended_l2=on,cluster_size=32k"} {
			qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", opts, "-b", "base.qcow2", "-F", "qcow2", img, "24M")
			qemu(t, "qemu-io", "-c", "write -P 0x77 1000k 300k", "-c", "write -z 3M 1M", "-c", "write -P 0x78 5001k 3k",
				"-c", "discard 6M 128k", "-c", "write -P 0x79 21M 64k", "-c", "write -z 9000k 2k", img)
			compareWithQEMU(t, img)
			qemu(t, "qemu-img", "snapshot", "-c", "one", img)
			qemu(t, "qemu-io", "-c", "write -P 0x7A 1M 100k", img)
			compareWithQEMU(t, img)
		}
	})
	t.Run("empty", func(t *testing.T) {
		img := filepath.Join(dir, "empty.qcow2")
		for _, size := range []string{"512", "1G", "3T"} {
			qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", img, size)
			d, err := convert.Open(context.Background(), img, convert.OpenOptions{})
			if err != nil {
				t.Fatalf("%s: %v", size, err)
			}
			e, err := d.Extent(0, d.Size())
			if err != nil || !e.Zero || e.Length != d.Size() {
				t.Errorf("%s: extent %+v, %v", size, e, err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("encrypted", func(t *testing.T) {
		img := filepath.Join(dir, "luks.qcow2")
		qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x",
			"-o", "encrypt.format=aes,encrypt.key-secret=s", img, "1M")
		refusedFor(t, img, "encrypted")
	})
	t.Run("data file", func(t *testing.T) {
		img := filepath.Join(dir, "data.qcow2")
		qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data.bin"), img, "1M")
		refusedFor(t, img, "external data file")
	})
	t.Run("parallels", func(t *testing.T) {
		img := filepath.Join(dir, "foreign.img")
		qemu(t, "qemu-img", "create", "-q", "-f", "parallels", img, "8M")
		refusedFor(t, img, "Parallels images")
	})
}

func refusedFor(t *testing.T, path, want string) {
	t.Helper()
	_, err := convert.Open(context.Background(), path, convert.OpenOptions{})
	var refused *convert.RefusedError
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, want) || refused.Remedy == "" {
		t.Errorf("got %v, want it refused for %q, with a remedy", err, want)
	}
}

// compareWithQEMU holds the content of an image against what qemu-img reads, and our RAW file too.
func compareWithQEMU(t *testing.T, img string) {
	t.Helper()
	want := filepath.Join(t.TempDir(), "want.raw")
	qemu(t, "qemu-img", "convert", "-O", "raw", img, want)
	f, err := os.Open(want)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		t.Fatal(err)
	}
	d, err := convert.Open(context.Background(), img, convert.OpenOptions{AllowBacking: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := hashDisk(t, d); d.Size() != size || got != hex.EncodeToString(h.Sum(nil)) {
		t.Errorf("content %s of %d bytes, qemu-img reads %x of %d", got, d.Size(), h.Sum(nil), size)
	}
	got := filepath.Join(t.TempDir(), "got.raw")
	if _, err := convert.WriteRAW(context.Background(), d, got, convert.RAWOptions{}); err != nil {
		t.Fatal(err)
	}
	qemu(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", got, want)
}

// writePatterned writes a disk with runs of zeros, of text and of noise of many lengths.
func writePatterned(t *testing.T, path string, size int) {
	t.Helper()
	write(t, path, patternedDisk(size))
}

func patternedDisk(size int) []byte {
	disk := make([]byte, size)
	x := uint64(88172645463325252)
	next := func(n uint64) int {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		return int(x % n)
	}
	for off := 0; off < size; {
		n := min(1<<next(19)+next(1000), size-off)
		p := disk[off : off+n]
		switch next(4) {
		case 0, 1: // zeros
		case 2:
			for i := range p {
				p[i] = "The quick brown fox. "[i%21]
			}
		default:
			for i := range p {
				p[i] = byte(next(256))
			}
		}
		off += n
	}
	return disk
}
