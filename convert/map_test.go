// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/convert/qcow2/qcow2test"
)

// mapEntry is an extent as `qemu-img map --output=json` gives it.
type mapEntry struct {
	Start, Length       int64
	Depth               int
	Present, Zero, Data bool
}

// sameMap holds the map of a disk against that of qemu-img, neighbours that agree joined.
func sameMap(t *testing.T, img string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		skip(t, err.Error())
	}
	out, err := exec.Command("qemu-img", "map", "--output=json", img).Output()
	if err != nil {
		t.Fatal(err)
	}
	var entries, want, got []mapEntry
	if err := json.Unmarshal(out, &entries); err != nil {
		t.Fatal(err)
	}
	join := func(list []mapEntry, e mapEntry) []mapEntry {
		if n := len(list); n > 0 {
			last := list[n-1]
			last.Start, last.Length = e.Start, e.Length
			if last == e {
				list[n-1].Length += e.Length
				return list
			}
		}
		return append(list, e)
	}
	for _, e := range entries {
		want = join(want, e)
	}
	d, err := convert.Open(context.Background(), img, convert.OpenOptions{AllowBacking: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for e, err := range d.Map(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		m := mapEntry{e.Start, e.Length, e.Depth, e.Present, e.Zero, e.Allocated && !e.Zero}
		if n := len(got); n > 0 && got[n-1].Start+got[n-1].Length != e.Start {
			t.Errorf("%+v does not follow %+v", m, got[n-1])
		}
		before := len(got)
		if got = append(got, m); len(join(got[:before:before], m)) == before && !e.Compressed {
			t.Errorf("%+v should be one with the extent before", m)
		}
	}
	joined := []mapEntry(nil)
	for _, e := range got {
		joined = join(joined, e)
	}
	for i := range max(len(joined), len(want)) {
		if i >= len(joined) || i >= len(want) || joined[i] != want[i] {
			t.Fatalf("%s: entry %d of %d differs from qemu-img's of %d:\ngot  %+v\nwant %+v", filepath.Base(img), i,
				len(joined), len(want), joined[min(i, len(joined)-1)], want[min(i, len(want)-1)])
		}
	}
}

// TestMapAgainstQEMU compares the maps of chains: length, depth, and what is there.
func TestMapAgainstQEMU(t *testing.T) {
	dir := t.TempDir()
	const mib = 1 << 20
	base := filepath.Join(dir, "base.raw")
	writePatterned(t, base, 4*mib)
	// A hole at a place that every file system can have one at.
	if err := os.Truncate(base, 6*mib); err != nil {
		t.Fatal(err)
	}
	overlay := func(format, options, name, backing, backingFormat string, size string, writes ...string) string {
		t.Helper()
		img := filepath.Join(dir, name)
		args := []string{"create", "-q", "-f", format}
		if options != "" {
			args = append(args, "-o", options)
		}
		if backing != "" {
			args = append(args, "-b", backing, "-F", backingFormat)
		}
		args = append(args, img)
		if size != "" {
			args = append(args, size)
		}
		qemu(t, "qemu-img", args...)
		args = []string{"-f", format}
		for _, w := range writes {
			args = append(args, "-c", w)
		}
		qemu(t, "qemu-io", append(args, img)...)
		return img
	}
	some := []string{"write -P 1 0 64k", "write -P 2 1000k 300k", "write -z 2M 512k", "write -P 3 5M 100k"}
	other := []string{"write -P 4 64k 64k", "write -z 1100k 100k", "write -P 5 2200k 128k", "write -P 6 7M 64k"}
	single := overlay("qcow2", "", "single.qcow2", "", "", "8M", some...)
	mid := overlay("qcow2", "", "mid.qcow2", "base.raw", "raw", "", some...)
	top := overlay("qcow2", "cluster_size=4k", "top.qcow2", "mid.qcow2", "qcow2", "8M", other...)
	sub := overlay("qcow2", "extended_l2=on", "sub.qcow2", "top.qcow2", "qcow2", "9M", "write -P 7 10k 6k", "write -z 3M 2k")
	qed := overlay("qed", "", "over.qed", "single.qcow2", "qcow2", "", other[:3]...)
	parent := overlay("vmdk", "", "parent.vmdk", "", "", "8M", some...)
	child := overlay("vmdk", "", "child.vmdk", "parent.vmdk", "vmdk", "", other[0], other[3])
	for _, img := range []string{base, single, mid, top, sub, qed, parent, child} {
		sameMap(t, img)
	}
}

// TestMapOfChains tells the file that decides where QEMU is not asked: in the parents' own words.
func TestMapOfChains(t *testing.T) {
	dir := t.TempDir()
	const c = 1 << 12
	write(t, filepath.Join(dir, "base.raw"), make([]byte, 20*c)) // no holes that are known of
	mid := layer("base.raw", "raw", 3)
	mid.Clusters = append(mid.Clusters, qcow2test.Cluster{Index: 5, Kind: qcow2test.Compressed, Data: make([]byte, c)})
	write(t, filepath.Join(dir, "mid.qcow2"), mid.Write().Bytes)
	top := layer("mid.qcow2", "qcow2", 4)
	top.Size = 20 * c
	write(t, filepath.Join(dir, "top.qcow2"), top.Write().Bytes)
	d, err := convert.Open(context.Background(), filepath.Join(dir, "top.qcow2"), convert.OpenOptions{AllowBacking: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	type piece struct {
		clusters                  int64
		depth                     int
		present, zero, compressed bool
	}
	want := []piece{
		{3, 2, true, false, false}, {1, 1, true, false, false}, {1, 0, true, false, false}, {1, 1, true, false, true},
		{9, 2, true, false, false}, {1, 0, true, true, false}, {4, 0, false, true, false},
	}
	var got []piece
	for e, err := range d.Map(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, piece{e.Length / c, e.Depth, e.Present, e.Zero, e.Compressed})
	}
	if len(got) != len(want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("extent %d: got %+v, want %+v", i, got[i], want[i])
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, err := range d.Map(ctx) {
		if err == nil {
			t.Error("a cancelled map gave an extent")
		}
	}
}
