// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/convert/qcow2/qcow2test"
)

// maxHostileAlloc bounds what refusing an image may allocate in total, in bytes.
const maxHostileAlloc = 64 << 20

// hostileBase is an image with a bit of everything, which is right until a case spoils it.
func hostileBase(version int, zstd bool) *qcow2test.File {
	data := bytes.Repeat([]byte("data"), 1<<14)
	return qcow2test.Image{Version: version, ClusterBits: 16, Size: 1 << 30, Zstd: zstd, LongHeader: version == 3,
		Extensions: []qcow2test.Extension{{Type: 0x12345678, Data: []byte("unknown")}},
		Clusters: []qcow2test.Cluster{
			{Index: 0, Data: data},
			{Index: 3, Kind: qcow2test.Compressed, Data: data},
			{Index: 9000, Data: data},
		}}.Write()
}

func extendedBase() *qcow2test.File {
	data := bytes.Repeat([]byte("data"), 1<<14)
	return qcow2test.Image{Version: 3, ClusterBits: 16, Size: 1 << 30, Extended: true, Clusters: []qcow2test.Cluster{
		{Index: 0, Kind: qcow2test.Subclusters, Data: data, Alloc: 0x0F, ZeroBits: 0xF0}}}.Write()
}

// put32 and put64 are the usual way to spoil a file: one number of the header.
func put32(off int64, v uint32) func(*qcow2test.File) {
	return func(f *qcow2test.File) { f.Put32(off, v) }
}

func put64(off int64, v uint64) func(*qcow2test.File) {
	return func(f *qcow2test.File) { f.Put64(off, v) }
}

func entry(cluster int64, v uint64) func(*qcow2test.File) {
	return func(f *qcow2test.File) { f.Put64(f.Entry[cluster], v) }
}

// TestHostileQCOW2 spoils an image in every way that broke a tool before. Each must be refused, by
// Open or, where only decoding can tell, by reading; with a reason that names the thing.
func TestHostileQCOW2(t *testing.T) {
	const c = 1 << 16
	v2 := hostileBase(2, false)
	v3 := hostileBase(3, false)
	zs := hostileBase(3, true)
	ext := extendedBase()
	size := uint64(len(v3.Bytes)+c-1) / c * c
	for _, tc := range []struct {
		name  string
		base  *qcow2test.File
		spoil func(*qcow2test.File)
		want  string // part of the reason
	}{
		{"version 4", v3, put32(4, 4), "version 4"},
		{"version 0", v3, put32(4, 0), "version 0"},
		{"version all ones", v3, put32(4, 0xFFFFFFFF), "version"},
		{"cluster_bits 0", v3, put32(20, 0), "cluster_bits"},
		{"cluster_bits 8", v3, put32(20, 8), "cluster_bits"},
		{"cluster_bits 22", v3, put32(20, 22), "cluster_bits"},
		{"cluster_bits 40", v3, put32(20, 40), "cluster_bits"},
		{"cluster_bits 63", v3, put32(20, 63), "cluster_bits"},
		{"cluster_bits all ones", v3, put32(20, 0xFFFFFFFF), "cluster_bits"},
		{"cluster_bits 13 with extended L2", ext, put32(20, 13), "extended L2"},
		{"header_length all ones", v3, put32(100, 0xFFFFFFFF), "header_length"},
		{"header_length 2^31-1", v3, put32(100, 0x7FFFFFFF), "header_length"},
		{"header_length 8", v3, put32(100, 8), "header_length"},
		{"header_length 108", v3, put32(100, 108), "header_length"},
		{"header_length above the cluster", v3, put32(100, c+8), "header_length"},
		{"refcount_order 7", v3, put32(96, 7), "refcount_order"},
		{"extension length 2^31-1", v3, put32(116, 0x7FFFFFFF), "extension"},
		{"extension length all ones", v3, put32(116, 0xFFFFFFFF), "extension"},
		{"extension length, version 2", v2, put32(76, 0x7FFFFFFF), "extension"},
		{"extension length one above the cluster", v3, put32(116, c-120+1), "extension"},
		{"too many extensions", v3, func(f *qcow2test.File) {
			for i := int64(0); i < 8000; i++ {
				f.Put64(112+8*i, 0x1234567800000000)
			}
		}, "extensions"},
		{"backing offset all ones", v3, put64(8, 1<<64-1), "backing file name offset"},
		{"backing offset in the header", v3, func(f *qcow2test.File) { f.Put64(8, 16); f.Put32(16, 4) }, "backing"},
		{"backing offset behind the cluster", v3, func(f *qcow2test.File) { f.Put64(8, c+1); f.Put32(16, 4) }, "backing"},
		{"backing size 1024", v3, func(f *qcow2test.File) { f.Put64(8, 200); f.Put32(16, 1024) }, "backing file name of 1024"},
		{"backing size all ones", v3, func(f *qcow2test.File) { f.Put64(8, 200); f.Put32(16, 0xFFFFFFFF) }, "backing"},
		{"backing name across the cluster's end", v3,
			func(f *qcow2test.File) { f.Put64(8, c-3); f.Put32(16, 4) }, "at most 3 fit"},
		{"refcount table all ones clusters", v3, put32(56, 0xFFFFFFFF), "refcount_table_clusters"},
		{"refcount table of no cluster", v3, put32(56, 0), "refcount_table_clusters"},
		{"refcount table misaligned", v3, put64(48, 2*c+512), "refcount table"},
		{"refcount table at 2^64-65536", v3, put64(48, 1<<64-c), "refcount table"},
		{"refcount table at 2^63", v3, put64(48, 1<<63), "refcount table"},
		{"refcount table in the header", v3, put64(48, 0), "refcount table"},
		{"snapshots all ones", v3, put32(60, 0xFFFFFFFF), "nb_snapshots"},
		{"snapshots 65536 at a bad offset", v3, func(f *qcow2test.File) { f.Put32(60, 65536); f.Put64(64, 1<<40) }, "snapshot table"},
		{"snapshots 65536 at an odd offset", v3, func(f *qcow2test.File) { f.Put32(60, 65536); f.Put64(64, 7) }, "snapshot table"},
		{"snapshots 65536 in a small file", v3, func(f *qcow2test.File) { f.Put32(60, 65536); f.Put64(64, c) }, "snapshot table"},
		{"l1_size all ones", v3, put32(36, 0xFFFFFFFF), "l1_size"},
		{"l1_size 2^31-1", v3, put32(36, 0x7FFFFFFF), "l1_size"},
		{"l1_size of 32 MiB in a small file", v3, put32(36, 4<<20), "L1 table"},
		{"l1_size 0", v3, put32(36, 0), "l1_size 0"},
		{"l1_size 1, too small", v3, put32(36, 1), "l1_size 1"},
		{"L1 offset misaligned", v3, put64(40, c+8), "L1 table offset"},
		{"L1 offset 0", v3, put64(40, 0), "L1 table offset"},
		{"L1 offset near 2^63", v3, put64(40, 1<<63-c), "L1 table"},
		{"L1 offset near 2^64", v3, put64(40, 1<<64-c), "L1 table"},
		{"L1 offset behind the file", v3, put64(40, size), "L1 table"},
		{"size 0", v3, put64(24, 0), "virtual size"},
		{"size 2^63", v3, put64(24, 1<<63), "virtual size"},
		{"size 2^64-1", v3, put64(24, 1<<64-1), "virtual size"},
		{"size 2^63-1", v3, put64(24, 1<<63-1), "virtual size"},
		{"size above the limit", v3, put64(24, 65<<40), "limit"},
		{"size above the L1 table", v3, put64(24, 1<<40), "l1_size"},
		{"L1 entry misaligned", v3, func(f *qcow2test.File) { f.Put64(f.L1, uint64(f.L2[0])+512) }, "L1 entry 0"},
		{"L1 entry with low bits", v3, func(f *qcow2test.File) { f.Put64(f.L1, uint64(f.L2[0])+1) }, "L1 entry 0"},
		{"L1 entry behind the file", v3, func(f *qcow2test.File) { f.Put64(f.L1, size) }, "L1 entry 0"},
		{"L1 entry at 2^55", v3, func(f *qcow2test.File) { f.Put64(f.L1, 1<<55) }, "L1 entry 0"},
		{"L1 entry above 2^56", v3, func(f *qcow2test.File) { f.Put64(f.L1, uint64(f.L2[0])|1<<57) }, "L1 entry 0"},
		{"L1 entry naming the L1 table", v3, func(f *qcow2test.File) { f.Put64(f.L1, uint64(f.L1)) }, "L1 entry 0"},
		{"two L1 entries with one table", v3, func(f *qcow2test.File) { f.Put64(f.L1+8, uint64(f.L2[0])) }, "same L2 table"},
		{"L2 entry misaligned", v3, entry(0, 5*c+512), "multiple of the cluster size"},
		{"L2 entry behind the file", v3, entry(0, size), "truncated"},
		{"L2 entry at 2^55", v3, entry(0, 1<<55), "truncated"},
		{"L2 entry above 2^56", v3, entry(0, 1<<57|4*c), "reserved"},
		{"L2 entry with reserved bits", v3, entry(0, 4*c|2), "reserved"},
		{"L2 entry pointing to the L1 table", v3, entry(0, c), "L1 table"},
		{"L2 entry pointing to the header, flagged", v3, entry(0, 1<<63|2), "reserved"},
		{"zero flag in version 2", v2, func(f *qcow2test.File) { f.Put64(f.L2[0]+8, 1) }, "zero flag"},
		{"zero flag with a place in version 2", v2, func(f *qcow2test.File) { f.Put64(f.Entry[0], f.Get64(f.Entry[0])|1) }, "zero flag"},
		{"compressed entry in the header", v3, entry(3, 1<<62|100), "header"},
		{"compressed entry at 0", v3, entry(3, 1<<62), "header"},
		{"compressed entry behind the file", v3, entry(3, 1<<62|size), "truncated"},
		{"compressed entry far behind the file", v3, entry(3, 1<<62|1<<53), "truncated"},
		{"compressed entry with garbage", v3, func(f *qcow2test.File) {
			copy(f.Bytes[f.Data[3]:], bytes.Repeat([]byte{0xFF}, 200))
		}, "damaged"},
		{"compressed entry with garbage, zstd", zs, func(f *qcow2test.File) {
			copy(f.Bytes[f.Data[3]:], bytes.Repeat([]byte{0xFF}, 20))
		}, "damaged"},
		{"compressed entry with no output", v3, func(f *qcow2test.File) {
			copy(f.Bytes[f.Data[3]:], "\x03\x00") // a final block with nothing in it
		}, "too early"},
		{"compressed entry with endless empty blocks", v3, func(f *qcow2test.File) {
			f.Put64(f.Entry[3], 1<<62|255<<54|uint64(f.Data[3]))
			f.Bytes = append(f.Bytes[:f.Data[3]], bytes.Repeat([]byte("\x00\x00\x00\xFF\xFF"), 30000)...)
			f.Put64(f.Entry[9000], 0)
		}, "too early"},
		{"compressed entry with no output, zstd", zs, func(f *qcow2test.File) {
			copy(f.Bytes[f.Data[3]:], "\x28\xB5\x2F\xFD\x20\x00\x01\x00\x00") // a frame of no bytes
			clear(f.Bytes[f.Data[3]+9:][:100])
		}, "damaged"},
		{"zstd window of 2 GiB", zs, func(f *qcow2test.File) {
			copy(f.Bytes[f.Data[3]:], "\x28\xB5\x2F\xFD\x00\xA8")
		}, "window"},
		{"compressed data cut by the stated length", v3, func(f *qcow2test.File) {
			// One sector that the data overruns: it begins at the sector's last byte.
			data := bytes.Clone(f.Bytes[f.Data[3]:][:300])
			copy(f.Bytes[f.Data[3]+511:], data)
			f.Put64(f.Entry[3], 1<<62|uint64(f.Data[3]+511))
		}, "too early"},
		{"file cut in the header", v3, func(f *qcow2test.File) { f.Bytes = f.Bytes[:60] }, "too short"},
		{"file cut behind the magic", v3, func(f *qcow2test.File) { f.Bytes = f.Bytes[:4] }, "too short"},
		{"file cut in the version 3 header", v3, func(f *qcow2test.File) { f.Bytes = f.Bytes[:90] }, "too short"},
		{"file cut in the L1 table", v3, func(f *qcow2test.File) { f.Bytes = f.Bytes[:f.L1+8] }, "L1 table"},
		{"file cut in an L2 table", v3, func(f *qcow2test.File) { f.Bytes = f.Bytes[:f.L2[0]+100] }, "truncated"},
		{"file cut before the last cluster", v3, func(f *qcow2test.File) { f.Bytes = f.Bytes[:f.Data[9000]] }, "truncated"},
		{"file cut in the middle", v3, func(f *qcow2test.File) { f.Bytes = f.Bytes[:len(f.Bytes)/2] }, "truncated"},
		{"both subcluster bits", ext, func(f *qcow2test.File) { f.Put64(f.Entry[0]+8, 0x1F_0000001F) }, "both"},
		{"subclusters allocated in no cluster", ext, func(f *qcow2test.File) { f.Put64(f.Entry[0], 0) }, "no cluster"},
		{"zero flag with extended L2", ext, func(f *qcow2test.File) { f.Put64(f.Entry[0], f.Get64(f.Entry[0])|1) }, "reserved"},
		{"unknown feature bit 5", v3, put64(72, 1<<5), "feature 5"},
		{"unknown feature bit 63", v3, put64(72, 1<<63), "feature 63"},
		{"compression type without its bit", v3, func(f *qcow2test.File) { f.Bytes[104] = 1 }, "contradicts"},
		{"compression bit without type", v3, put64(72, 1<<3), "contradicts"},
		{"compression type 2", v3, func(f *qcow2test.File) { f.Bytes[104] = 2; f.Put64(72, 1<<3) }, "compression type 2"},
		{"compression bit in a short header", v3, func(f *qcow2test.File) { f.Put32(100, 104); f.Put64(72, 1<<3) }, "contradicts"},
		{"AES", v3, put32(32, 1), "encrypted"},
		{"LUKS", v3, put32(32, 2), "encrypted"},
		{"unknown encryption", v2, put32(32, 77), "encrypted"},
		{"LUKS header extension", v3, put32(112, 0x0537BE77), "encrypted"},
		{"external data file", v3, put64(72, 1<<2), "external data file"},
		{"external data file name", v3, put32(112, 0x44415441), "external data file"},
		{"corrupt", v3, put64(72, 1<<1), "corrupt"},
		{"backing file", v3, func(f *qcow2test.File) {
			f.Put64(8, 200)
			f.Put32(16, 11)
			copy(f.Bytes[200:], "/etc/passwd")
		}, `"/etc/passwd"`},
		{"all entries point at one cluster", v3, func(f *qcow2test.File) {
			for i := int64(0); i < 8192; i++ {
				f.Put64(f.L2[0]+8*i, uint64(f.Data[0]))
			}
		}, "shared"},
		{"all entries point at one compressed cluster", v3, func(f *qcow2test.File) {
			e := f.Get64(f.Entry[3])
			for i := int64(0); i < 8192; i++ {
				f.Put64(f.L2[0]+8*i, e)
			}
		}, "places"},
		{"tables of random bits", v3, func(f *qcow2test.File) {
			for i := int64(0); i < 8192; i++ {
				f.Put64(f.L2[0]+8*i, uint64(i+1)*0x9E3779B97F4A7C15)
			}
		}, "L2 entry"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := tc.base.Clone()
			tc.spoil(f)
			path := filepath.Join(t.TempDir(), "disk.img") // a name that would do for RAW
			if err := os.WriteFile(path, f.Bytes, 0o600); err != nil {
				t.Fatal(err)
			}
			err := allocating(t, func() error { return openAndRead(path, convert.OpenOptions{}) })
			var refused *convert.RefusedError
			if !errors.As(err, &refused) {
				t.Fatalf("got %v, want it refused", err)
			}
			if refused.Path != path || refused.Format != "qcow2" || !strings.Contains(refused.Reason, tc.want) {
				t.Errorf("refused for %q as %q, want a reason with %q", refused.Reason, refused.Format, tc.want)
			}
			// Allowing more does not let anything in but what it is for.
			all := convert.OpenOptions{Format: "qcow2", AllowBacking: true, Force: true}
			if err := openAndRead(path, all); tc.name != "corrupt" && !errors.As(err, &refused) {
				t.Errorf("with everything allowed: %v, want it refused", err)
			} else if tc.name == "corrupt" && err != nil {
				t.Errorf("forced: %v", err)
			}
		})
	}
	for name, f := range map[string]*qcow2test.File{"version 2": v2, "version 3": v3, "zstd": zs, "extended": ext} {
		t.Run("unspoilt "+name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			if err := os.WriteFile(path, f.Bytes, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := openAndRead(path, convert.OpenOptions{}); err != nil {
				t.Errorf("the base of the cases must be right: %v", err)
			}
		})
	}
}

// allocating fails the test if f allocates more than a hostile image may cost.
func allocating(t *testing.T, f func() error) error {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := f()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > maxHostileAlloc {
		t.Errorf("allocated %d bytes, want at most %d", n, maxHostileAlloc)
	}
	return err
}

// openAndRead opens an image and reads all of it.
func openAndRead(path string, o convert.OpenOptions) error {
	d, err := convert.Open(context.Background(), path, o)
	if err != nil {
		return err
	}
	err = convert.Scan(context.Background(), convert.NewScanner(d, nil), convert.ScanOptions{Workers: 2}, nil)
	return errors.Join(err, d.Close())
}

// TestErrorsAreTyped tells bad images from files that cannot be opened.
func TestErrorsAreTyped(t *testing.T) {
	dir := t.TempDir()
	_, err := convert.Open(context.Background(), filepath.Join(dir, "missing.qcow2"), convert.OpenOptions{})
	var pathErr *fs.PathError
	var refused *convert.RefusedError
	if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &pathErr) || errors.As(err, &refused) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := convert.Open(context.Background(), dir, convert.OpenOptions{Format: "vmdx"}); err == nil ||
		errors.As(err, &refused) || !strings.Contains(err.Error(), "qcow, qcow2, qed, raw, vdi, vhd, vhdx, vmdk, zvhd, zvhd2") {
		t.Errorf("unknown format: %v", err)
	}
	f := hostileBase(3, false)
	f.Put64(72, 1<<40)
	f.Put32(112, 0x6803F857)
	f.Put32(116, 48)
	clear(f.Bytes[120:168])
	f.Bytes[121] = 40
	copy(f.Bytes[122:], "evil\x1b[2J")
	path := filepath.Join(dir, "x")
	if err := os.WriteFile(path, f.Bytes, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = convert.Open(context.Background(), path, convert.OpenOptions{})
	if err == nil || !strings.Contains(err.Error(), `"evil\x1b[2J"`) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("names out of the image must be quoted: %q", err)
	}
}
