// SPDX-License-Identifier: Apache-2.0

package vmdk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"strings"
	"testing"

	libimage "github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/convert/vmdk"
)

// small returns an extent with three grains of 4 KiB in two tables.
func small(kind string) *extent {
	e := &extent{kind: kind, version: 1, sectors: 100, grain: 8, gtes: 8, level: 6, order: []int64{0, 2, 9},
		data: map[int64][]byte{}, zeroed: map[int64]bool{}}
	for _, i := range e.order {
		e.data[i] = bytes.Repeat([]byte{byte(i + 1), 2, 3, 4}, 1024)
	}
	switch kind {
	case hosted:
		e.descr, e.redundant = embedded("monolithicSparse"), true
		e.shift = 8
	case stream:
		e.descr, e.footer, e.version = embedded("streamOptimized"), true, 3
	}
	return e
}

func put32(at int64, v uint32) func([]byte) []byte {
	return func(f []byte) []byte {
		if at < 0 {
			at += int64(len(f))
		}
		le.PutUint32(f[at:], v)
		return f
	}
}

func put64(at int64, v uint64) func([]byte) []byte {
	return func(f []byte) []byte {
		if at < 0 {
			at += int64(len(f))
		}
		le.PutUint64(f[at:], v)
		return f
	}
}

func all(fs ...func([]byte) []byte) func([]byte) []byte {
	return func(f []byte) []byte {
		for _, g := range fs {
			f = g(f)
		}
		return f
	}
}

// directory changes entry i of the grain directory of a hosted extent, in both copies.
func directory(i int, v uint32) func([]byte) []byte {
	return func(f []byte) []byte {
		for _, at := range []int{48, 56} {
			le.PutUint32(f[int(le.Uint64(f[at:]))*512+i*4:], v)
		}
		return f
	}
}

// table changes entry i of the first grain table of a hosted extent, in both copies.
func table(i int, v uint32) func([]byte) []byte {
	return func(f []byte) []byte {
		for _, at := range []int{48, 56} {
			gt := le.Uint32(f[le.Uint64(f[at:])*512:])
			le.PutUint32(f[int(gt)*512+i*4:], v)
		}
		return f
	}
}

// entry returns entry i of the first grain table of a hosted extent.
func entry(f []byte, i int) uint32 {
	gt := le.Uint32(f[le.Uint64(f[56:])*512:])
	return le.Uint32(f[int(gt)*512+i*4:])
}

// data replaces the compressed data of the first grain of a stream.
func data(p []byte) func([]byte) []byte {
	return func(f []byte) []byte {
		at := le.Uint64(f[64:]) * 512
		clear(f[at+12 : at+512])
		le.PutUint32(f[at+8:], uint32(len(p)))
		copy(f[at+12:], p)
		return f
	}
}

// text replaces a part of the descriptor.
func text(old, with string) func([]byte) []byte {
	return func(f []byte) []byte {
		if !bytes.Contains(f, []byte(old)) {
			panic("no " + old)
		}
		g := bytes.Replace(f, []byte(old), []byte(with), 1)
		if bytes.HasPrefix(f, []byte("KDMV")) {
			// Keep the places of what follows, which the padding of the descriptor does.
			n := len(g) - len(f)
			end := 512 + int(le.Uint64(f[36:]))*512
			if n > 0 {
				g = append(g[:end:end], g[end+n:]...)
			} else {
				g = append(append(g[:end+n:end+n], make([]byte, -n)...), g[end+n:]...)
			}
		}
		return g
	}
}

func TestRefuses(t *testing.T) {
	const grain = 4096
	for _, c := range []struct {
		name   string
		kind   string
		mutate func([]byte) []byte
		reason string
	}{
		{"empty", hosted, func([]byte) []byte { return nil }, "has no version"},
		{"only a magic", hosted, func(f []byte) []byte { return f[:4] }, "no whole header"},
		{"version 0", hosted, put32(4, 0), "version 0 at offset 4"},
		{"version 4", hosted, put32(4, 4), "version 4"},
		{"unknown flag", hosted, put32(8, 0x40003), "unknown features 0x00040000"},
		{"grain size all ones", hosted, put64(20, 1<<64-1), "grain size of 18446744073709551615 sectors at offset 20"},
		{"grain size 0", hosted, put64(20, 0), "grain size of 0"},
		{"grain size 7", hosted, put64(20, 7), "not a power of two"},
		{"grain size 2^22", hosted, put64(20, 1<<22), "up to 2097152"},
		{"compressed grain size 2^12", stream, put64(20, 1<<12), "up to 2048"},
		{"no entries per table", hosted, put32(44, 0), "0 entries per grain table"},
		{"entries all ones", hosted, put32(44, 1<<32-1), "4294967295 entries per grain table"},
		{"513 entries", hosted, put32(44, 513), "513 entries"},
		{"huge directory", hosted, all(put64(12, 0xFFFFFFFF), put32(44, 1), put64(20, 1)), "4294967295 entries, above"},
		{"capacity 2^63", hosted, put64(12, 1<<63), "too large"},
		{"capacity 2^55", hosted, put64(12, 1<<53), "needs a grain directory"},
		{"capacity with a directory outside", hosted, put64(12, 1<<25), "ends outside of the file"},
		{"directory in the header", hosted, all(put64(56, 0), put32(8, 1)), "directory of 8 bytes at 0 lies in the header"},
		{"directory in the descriptor", hosted, all(put64(56, 1), put32(8, 1)), "lies in the descriptor"},
		{"directory outside", hosted, all(put64(56, 1<<40), put32(8, 1)), "ends outside of the file"},
		{"directory far outside", hosted, all(put64(56, 1<<63), put32(8, 1)), "ends outside of the file"},
		{"no footer in a plain extent", hosted, all(put64(56, 1<<64-1), put32(8, 1)), "should be named in a footer"},
		{"table in the header", hosted, directory(0, 0x80000000), "grain table at 1099511627776 ends outside"},
		{"table outside", hosted, directory(1, 1), "lies in the descriptor"},
		{"tables equal", hosted, func(f []byte) []byte {
			for _, at := range []int{48, 56} {
				gd := f[le.Uint64(f[at:])*512:]
				le.PutUint32(gd[4:], le.Uint32(gd))
			}
			return f
		}, "is used twice"},
		{"grain in the descriptor", hosted, table(0, 1), "lies in the descriptor"},
		{"grain outside", hosted, table(0, 1<<31), "grain at 1099511627776 is outside of the file"},
		{"two entries equal", hosted, func(f []byte) []byte { return table(1, entry(f, 0))(f) }, "shares bytes of the file"},
		{"grains overlap", hosted, func(f []byte) []byte { return table(1, entry(f, 0)+1)(f) }, "shares bytes of the file"},
		{"grain over tables", hosted, func(f []byte) []byte {
			return table(1, le.Uint32(f[le.Uint64(f[56:])*512+4:]))(f)
		}, "shares bytes of the file with the grain table"},
		{"grain over the directory", hosted, func(f []byte) []byte { return table(1, uint32(le.Uint64(f[56:])))(f) },
			"lies in the grain directory"},
		{"truncated", hosted, func(f []byte) []byte { return f[:len(f)-grain] }, "the image is truncated"},
		{"truncated in the overhead", hosted, func(f []byte) []byte { return f[:2048] }, "overhead"},
		{"newlines", hosted, func(f []byte) []byte { copy(f[73:], "\n \n\n"); return f }, "newline"},
		{"compression without its flag", hosted, func(f []byte) []byte { f[77] = 1; return f }, "contradicts the flags"},
		{"compression 2", stream, func(f []byte) []byte { f[77] = 2; return f }, "compression 2"},
		{"flag without compression", stream, func(f []byte) []byte { f[77] = 0; return f }, "contradicts the flags"},
		{"markers alone", hosted, put32(8, 0x20003), "markers without compression"},
		{"descriptor outside", hosted, put64(28, 1<<40), "ends outside of the file"},
		{"descriptor huge", hosted, put64(36, 1<<40), "longer than"},
		{"descriptor empty", hosted, put64(36, 0), "is empty"},
		{"no descriptor", hosted, put64(28, 0), "not the whole of it"},
		{"descriptor of zeros", hosted, func(f []byte) []byte { clear(f[512:1024]); return f }, "no version"},
		{"no createType", hosted, text("createType", "creatype"), "no createType"},
		{"unknown createType", hosted, text("monolithicSparse", "monolithicNew"), `"monolithicNew" is unknown`},
		{"createType of several files", hosted, text("monolithicSparse", "twoGbMaxExtentSparse"), "means further files"},
		{"createType of a device", hosted, text("monolithicSparse", "fullDevice"), "physical device"},
		{"version of the descriptor", hosted, text("version=1", "version=4"), `version "4"`},
		{"two parents", hosted, text("CID=0123abcd", "parentCID=1"), `both parentcid="1" and "ffffffff"`},
		{"parent", hosted, text("ffffffff", "1234567"), "parentCID 01234567"},
		{"parent by name only", hosted, text("ddb.virtual", "parentFileNameHint=\"/etc/x\"\nddb"), "its parentCID says"},
		{"CID not a number", hosted, text("0123abcd", "xyz"), `cid="xyz"`},
		{"flat in a sparse file", hosted, text("SPARSE", "FLAT"), "not an extent"},
		{"VMFS in a sparse file", hosted, text("SPARSE", "VMFS"), "is of the type VMFS"},
		{"COWD alone", cowd, func(f []byte) []byte { return f }, "not the whole of it"},
		{"seSparse alone", sesparse, func(f []byte) []byte { return f }, "not the whole of it"},

		{"footer missing", stream, func(f []byte) []byte { return f[:len(f)-1536] }, "has no end"},
		{"footer cut", stream, func(f []byte) []byte { return f[:len(f)-512] }, "has no end"},
		{"footer of zeros", stream, func(f []byte) []byte { clear(f[len(f)-1024:]); return f }, "no whole header"},
		{"footer marker of a size", stream, put32(-1536+8, 3), "is not that of a footer"},
		{"footer marker of another type", stream, put32(-1536+12, 2), "is not that of a footer"},
		{"footer with another capacity", stream, put64(-1024+12, 96), "contradicts the header"},
		{"footer with another grain size", stream, put64(-1024+20, 16), "contradicts the header"},
		{"footer with other entries", stream, put32(-1024+44, 16), "contradicts the header"},
		{"footer names the footer", stream, put64(-1024+56, 1<<64-1), "does not say where"},
		{"footer with the directory outside", stream, put64(-1024+56, 1<<40), "ends outside"},
		{"footer damaged", stream, put32(-1024+4, 9), "footer: version 9"},
		{"end marker", stream, put32(-512+8, 1), "is not that of the end"},
		{"stream truncated", stream, func(f []byte) []byte { return f[:len(f)-3000] }, "truncated"},

		{"grain marker of size 0", stream, put32(1024+8, 0), "is not that of a grain"},
		{"grain marker of size all ones", stream, put32(1024+8, 1<<32-1), "4294967295 bytes of compressed data"},
		{"grain marker of size behind the end", stream, put32(1024+8, 8200), "ends outside of the file"},
		{"wrong LBA", stream, put64(1024, 16), "is for sector 16 of the disk, but the tables use it for sector 0"},
		{"LBA not a grain's", stream, put64(1024, 9), "where none can be"},
		{"LBA outside", stream, put64(1024, 104), "where none can be"},
		{"more than a grain", stream, data(deflate(make([]byte, grain+1), 6)), "longer than a grain"},
		{"a bomb", stream, data(deflate(make([]byte, 100*grain), 6)), "longer than a grain"},
		{"less than a grain", stream, data(deflate(make([]byte, grain-1), 6)), "has only 4095 bytes of 4096"},
		{"no data", stream, data(deflate(nil, 6)), "has only 0 bytes"},
		{"data cut", stream, data(deflate(bytes.Repeat([]byte{1}, grain), 6)[:9]), "ends too early"},
		{"garbage", stream, data([]byte("garbage garbage")), "damaged"},
		{"checksum", stream, func(f []byte) []byte {
			d := deflate(make([]byte, grain), 6)
			d[len(d)-1]++
			return data(d)(f)
		}, "damaged"},
		{"preset dictionary", stream, data([]byte{0x78, 0xBB, 1, 2, 3, 4, 5}), "damaged"},
		{"two entries of a stream equal", stream, func(f []byte) []byte {
			gd := le.Uint64(f[len(f)-1024+56:]) * 512
			gt := int(le.Uint32(f[gd:])) * 512
			le.PutUint32(f[gt+4:], le.Uint32(f[gt:]))
			return f
		}, "shares bytes of the file with another grain"},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, c.mutate(small(c.kind).write()), vmdk.Options{}, c.reason)
		})
	}
	for _, kind := range []string{hosted, stream} {
		if _, _, err := open(small(kind).write(), vmdk.Options{}, nil); err != nil {
			t.Errorf("the unchanged %s image: %v", kind, err)
		}
	}
}

// refused checks that the disk is refused for a reason, when it is opened or when it is read, and
// without much memory.
func refused(t *testing.T, f []byte, o vmdk.Options, reason string) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	img, _, err := open(f, o, nil)
	if err == nil {
		_, err = io.Copy(io.Discard, io.NewSectionReader(img, 0, img.Size()))
	}
	runtime.ReadMemStats(&after)
	var b *vmdk.Error
	if !errors.As(err, &b) || !strings.Contains(err.Error(), reason) {
		t.Fatalf("got %v, want %q in an Error", err, reason)
	}
	if r, _ := b.Refusal(); r == "" {
		t.Error("no reason")
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("%d bytes were allocated", n)
	}
}

func TestRefusesDescriptors(t *testing.T) {
	base, files := writeFiles("twoGbMaxExtentSparse", []*extent{small(hosted), {kind: zero, sectors: 9}, small(hosted)})
	const line = `RW 100 SPARSE "a disk-001.vmdk"`
	in := func(old, with string) string {
		if !strings.Contains(base, old) {
			t.Fatalf("no %s", old)
		}
		return strings.Replace(base, old, with, 1)
	}
	name := func(s string) string { return in("a disk-001.vmdk", s) }
	const plain = "not a plain file name"
	for what, c := range map[string]struct{ text, reason string }{
		"no createType":           {in("createType", "x"), "no createType"},
		"no version":              {in("version=1\n", ""), "not with its version"},
		"extent first":            {line + "\n" + base, "does not begin with its version"},
		"version 4":               {in("version=1", "version=4"), `version "4"`},
		"10^6 lines":              {base + strings.Repeat(line+"\n", 1_000_000), "are more than 1048576"},
		"4097 lines":              {base + strings.Repeat("RW 1 ZERO\n", 4094), "more than 4096 extents"},
		"long line":               {base + "x=" + strings.Repeat("y", 70000) + "\n", "70002 bytes, more than 65536"},
		"no extents":              {strings.Split(base, "RW")[0], "no extents"},
		"mangled line":            {in("RW 100", "R 100"), "neither an extent nor a setting"},
		"VMFS with an offset":     {in(line, `RW 100 VMFS "a disk-001.vmdk" 1`), "has no meaning"},
		"flat without an offset":  {in(line, `RW 100 FLAT "a disk-001.vmdk"`), "no offset"},
		"partition":               {in(line, line+" 0 partitionUUID x"), "partitions of devices"},
		"raw device":              {in(line, `RW 100 VMFSRAW "/dev/sda"`), "physical device"},
		"device mapping":          {in(line, `RW 100 VMFSRDM "x-rdm.vmdk"`), "physical device"},
		"unknown type":            {in("SPARSE", "DENSE"), `"DENSE" is unknown`},
		"size 0":                  {in("RW 100", "RW 0"), "not a number of sectors"},
		"size not a number":       {in("RW 100", "RW 0x10"), "not a number of sectors"},
		"negative size":           {in("RW 100", "RW -5"), "not a number of sectors"},
		"huge size":               {in("RW 100", "RW 18014398509481984"), "not a number of sectors"},
		"huge sum":                {in("RW 100", "RW 18014398509481983"), "too large together"},
		"above the limit":         {in("RW 100", "RW 99999"), "above the limit of 10000000"},
		"offset 2^54":             {in(line, `RW 100 FLAT "a disk-001.vmdk" 18014398509481983`), "is too large"},
		"offset outside":          {in(line, `RW 100 FLAT "a disk-001.vmdk" 99`), "it is truncated"},
		"NOACCESS":                {in("RW 100", "NOACCESS 100"), "not accessible"},
		"no quotation marks":      {in(`"a disk-001.vmdk"`, "a"), "quotation"},
		"name without end":        {in(`"a disk-001.vmdk"`, `"a`), "does not end"},
		"empty name":              {name(""), "is empty"},
		"absolute name":           {name("/etc/shadow"), plain},
		"name in a parent folder": {name("../x.vmdk"), plain},
		"parent folder":           {name(".."), "is a folder"},
		"this folder":             {name("."), "is a folder"},
		"Windows path":            {name(`..\x.vmdk`), plain},
		"UNC path":                {name(`\\host\x.vmdk`), plain},
		"drive":                   {name("C:x.vmdk"), plain},
		"stream of a file":        {name("x.vmdk:y"), plain},
		"URL":                     {name("https://host"), plain},
		"nbd":                     {name("nbd:unix:x"), plain},
		"json":                    {name("json:{}"), plain},
		"device name":             {name("con.vmdk"), "device on Windows"},
		"port":                    {name("Com1"), "device on Windows"},
		"blank at the end":        {name("a "), "ends in a dot or a blank"},
		"escape sequence":         {name("a\x1b[2J"), "control characters"},
		"tab":                     {name("a\tb"), "control characters"},
		"right to left":           {name("a\u202Ekdmv.exe"), "control characters"},
		"not UTF-8":               {name("a\xff"), "not in UTF-8"},
		"long name":               {name(strings.Repeat("a", 256)), "too long"},
		"twice the same":          {in("disk-003", "disk-001"), `extents 1 and 3 are the same file, "a disk-001.vmdk"`},
		"missing":                 {name("gone.vmdk"), `missing: "gone.vmdk"`},
		"missing two": {strings.Replace(name("gone.vmdk"), "disk-003", "disk-004", 1),
			`2 files of its data are missing: "gone.vmdk", "a disk-004.vmdk"`},
		"another size":       {in("RW 100", "RW 80"), `extent 1, "a disk-001.vmdk": its header has a capacity of 51200`},
		"more than the size": {in("RW 100", "RW 101"), "its header has a capacity"},
		"not sparse":         {in("SPARSE", "VMFSSPARSE"), "does not begin as one of the type VMFSSPARSE"},
		"itself as sparse":   {name("disk.vmdk"), "does not begin as one of the type SPARSE"},
		"parent":             {in("parentCID=ffffffff", "parentCID=00000001"), "snapshot or linked clone"},
		"two types":          {in("version=1", "version=1\ncreateType=\"vmfs\""), "both createtype"},
	} {
		t.Run(what, func(t *testing.T) {
			files["disk.vmdk"] = []byte(c.text)
			refused(t, []byte(c.text), vmdk.Options{OpenExtent: files.open, MaxVirtualSize: 10_000_000}, c.reason)
		})
	}
	if _, _, err := open([]byte(base), vmdk.Options{OpenExtent: files.open}, nil); err != nil {
		t.Errorf("the unchanged disk: %v", err)
	}
	refused(t, []byte(base), vmdk.Options{}, `its data is in other files, such as "a disk-001.vmdk"`)
}

// TestOpensNothingElse checks that no file is asked for before all names are known to be plain,
// and none by a disk in a single file.
func TestOpensNothingElse(t *testing.T) {
	never := func(name string) (io.ReaderAt, int64, error) {
		t.Errorf("%q was opened", name)
		return nil, 0, fs.ErrNotExist
	}
	for _, kind := range []string{hosted, stream} {
		if _, err := preflight(small(kind).write(), vmdk.Options{OpenExtent: never}); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{`RW 1 FLAT "/dev/null" 0`, `RW 18014398509481983 ZERO`, "RW 1 VMFSRAW"} {
		d := fmt.Sprintf(descriptorHead, "vmfs") + "RW 1 VMFS \"a.vmdk\"\n" + bad + "\n"
		if _, err := preflight([]byte(d), vmdk.Options{OpenExtent: never}); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

// TestErrorsOfOpening checks that what goes wrong with a file is told with its name and its cause.
func TestErrorsOfOpening(t *testing.T) {
	d := fmt.Sprintf(descriptorHead, "vmfs") + "RW 1 VMFS \"a.vmdk\"\n"
	_, err := preflight([]byte(d), vmdk.Options{OpenExtent: func(string) (io.ReaderAt, int64, error) {
		return nil, 0, fs.ErrPermission
	}})
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), `"a.vmdk"`) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f := small(hosted).write()
	if _, err := vmdk.Preflight(ctx, bytes.NewReader(f), int64(len(f)), vmdk.Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestSESparseAndCOWD checks the headers that only these have.
func TestSESparseAndCOWD(t *testing.T) {
	for _, c := range []struct {
		name   string
		kind   string
		mutate func([]byte) []byte
		reason string
	}{
		{"version", sesparse, put64(8, 1), "at offset 8 is not 0x200000001"},
		{"grain size", sesparse, put64(24, 16), "at offset 24"},
		{"table size", sesparse, put64(32, 128), "at offset 32"},
		{"flags", sesparse, put64(40, 1), "at offset 40"},
		{"padding", sesparse, put64(504, 1), "padding"},
		{"capacity", sesparse, put64(16, 0), "is 0 or too large"},
		{"volatile header outside", sesparse, put64(80, 1<<40), "the volatile header at sector"},
		{"volatile header in the header", sesparse, put64(80, 0), "in the header"},
		{"volatile magic", sesparse, put64(512, 1), "magic 0x1 of the volatile header"},
		{"journal", sesparse, put64(512+24, 1), "journal has to be replayed"},
		{"directory outside", sesparse, put64(128, 1<<63), "the grain directory at sector"},
		{"directory too small", sesparse, put64(136, 0), "too small"},
		{"directory huge", sesparse, put64(136, 1<<63), "too large"},
		{"directory entry", sesparse, put64(1024, 5), "is not a grain table"},
		{"table outside", sesparse, put64(1024, 0x10000000<<32|1<<31), "ends outside"},
		{"entry of no kind", sesparse, put64(1536+32768, 5), "of no known kind"},
		{"entry of kind 4", sesparse, put64(1536+32768, 4<<60), "of no known kind"},
		{"grain outside", sesparse, put64(1536+32768, 3<<60|1), "is outside of the file"},
		{"grain far outside", sesparse, put64(1536+32768, 1<<62-1), "is outside of the file"},
		{"grains equal", sesparse, func(f []byte) []byte {
			le.PutUint64(f[1536+32768+8:], le.Uint64(f[1536+32768:]))
			return f
		}, "shares bytes"},
		{"short", sesparse, func(f []byte) []byte { return f[:300] }, "too short"},
		{"version", cowd, put32(4, 2), "version 2"},
		{"capacity", cowd, put32(12, 0), "is 0"},
		{"grain size", cowd, put32(16, 3), "not a power of two"},
		{"entries", cowd, put32(24, 0), "too few"},
		{"directory", cowd, put32(20, 1), "lies in the header"},
		{"directory outside", cowd, put32(20, 1<<31), "ends outside"},
		{"table outside", cowd, put32(2048, 1<<31), "ends outside"},
		{"grain in the header", cowd, func(f []byte) []byte { return put32(int64(le.Uint32(f[2048:]))*512, 3)(f) },
			"lies in the header"},
		{"truncated", cowd, func(f []byte) []byte { return f[:len(f)-4096] }, "is truncated"},
		{"short", cowd, func(f []byte) []byte { return f[:2000] }, "too short"},
	} {
		t.Run(c.kind+" "+c.name, func(t *testing.T) {
			d, files := writeFiles("vmfsSparse", []*extent{small(c.kind)})
			if _, _, err := open([]byte(d), vmdk.Options{OpenExtent: files.open}, nil); err != nil {
				t.Fatal("the unchanged disk: ", err)
			}
			const name = "a disk-001.vmdk"
			files[name] = c.mutate(files[name])
			refused(t, []byte(d), vmdk.Options{OpenExtent: files.open}, c.reason)
		})
	}
}

// TestRecovery checks that another mapping is used when the first is damaged, but only if that is
// wanted.
func TestRecovery(t *testing.T) {
	for _, c := range []struct {
		name   string
		kind   string
		mutate func([]byte) []byte
		warn   string
	}{
		{"entry", hosted, func(f []byte) []byte { return put32(int64(le.Uint64(f[56:]))*512, 1<<31)(f) }, "redundant"},
		{"directory", hosted, put64(56, 1<<62), "redundant"},
		{"stream", stream, put64(-1024+56, 1), "the grains themselves"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := small(c.kind)
			f := c.mutate(e.write())
			_, err := preflight(f, vmdk.Options{})
			var b *vmdk.Error
			if !errors.As(err, &b) || !strings.Contains(b.Remedy, "force the reading by") {
				t.Fatal(err)
			}
			img, m, err := open(f, vmdk.Options{Force: true}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(strings.Join(m.Warnings, "\n"), c.warn) {
				t.Errorf("warnings %q", m.Warnings)
			}
			got := make([]byte, img.Size())
			if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, e.content(nil)) {
				t.Errorf("wrong content, %v", err)
			}
			// Nothing is promised if both are damaged.
			for i := range f[1024:] {
				f[1024+i] ^= 0xFF
			}
			if _, err := preflight(f, vmdk.Options{Force: true}); !errors.As(err, &b) {
				t.Errorf("both damaged: %v", err)
			}
		})
	}
}

// TestNoDirectory checks streams whose directory has to be made.
func TestNoDirectory(t *testing.T) {
	e := small(stream)
	e.noDirectory = true
	f := e.write()
	img, m, err := open(f, vmdk.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Warnings) == 0 || m.MappedBytes != 3*4096 || m.TableBytes() != 24 {
		t.Errorf("%+v, %d bytes of tables", m, m.TableBytes())
	}
	checkExtents(t, img, e.content(nil))
	for name, c := range map[string]struct {
		mutate func([]byte) []byte
		reason string
	}{
		"no end":           {func(f []byte) []byte { return f[:len(f)-512] }, "has no end"},
		"grain twice":      {put64(1024+512, 0), "two grains for sector 0 of the disk, at 1024 and at 1536"},
		"unknown marker":   {all(put32(1024+8, 0), put32(1024+12, 4)), "unknown type 4"},
		"table outside":    {all(put64(1024, 1<<63), put32(1024+8, 0), put32(1024+12, 1)), "ends outside of the file"},
		"end in the midst": {func(f []byte) []byte { clear(f[1024 : 1024+512]); return f }, "is not at the end of the file"},
		"parent":           {text("ffffffff", "12345678"), "no grain directory"},
		"more":             {func(f []byte) []byte { return append(f, 1) }, "is not at the end of the file"},
	} {
		_, err := preflight(c.mutate(bytes.Clone(f)), vmdk.Options{AllowParent: true})
		var b *vmdk.Error
		if !errors.As(err, &b) || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: got %v, want %q", name, err, c.reason)
		}
	}
}

// TestMetadata checks what is told of a disk.
func TestMetadata(t *testing.T) {
	e := small(hosted)
	e.descr = strings.Replace(withParent(e.descr, memory{1}), `"4"`, "\"4\x1b[2J\"\nddb.uuid.image=\"x\"\nchangeTrackPath=\"a\"", 1)
	e.redundant = false
	f := e.write()
	f[72] = 1
	m, err := preflight(f, vmdk.Options{AllowParent: true})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%s %s %d %d %d %q %q %q %s %s %q %q", m.Variant, m.Creator, m.VirtualSize, m.MappedBytes,
		m.BlockSize, m.Compression, m.Features, m.Warnings, m.ID, m.ParentID, m.ParentFileNameHint, m.ParentNames)
	want := `monolithicSparse VirtualBox 51200 12288 4096 "" ["parent" "virtual hardware version 4?[2J" "change tracking"] ` +
		`["the descriptor says that the disk has 77 sectors, the header 100; the header counts" ` +
		`"it was not closed cleanly; what was written last may be missing"] 0123abcd 00000007 "C:\\VMs\\base.vmdk" ["base.vmdk"]`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := m.Open(nil); err == nil {
		t.Error("opened without the parent")
	}
	if m, err = preflight(small(stream).write(), vmdk.Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Open(memory{1}); err == nil {
		t.Error("opened with a parent that it does not have")
	}
	if m.Compression != "zlib" {
		t.Errorf("%+v", m)
	}
	for hint, name := range map[string]string{"a.vmdk": "a.vmdk", "/x/../b": "b", `C:\x\c d`: "c d", "..": "", "x/": "",
		"C:e": "", "/vmfs/\x1b": ""} {
		e.descr = strings.Replace(embedded("monolithicSparse"), "parentCID=ffffffff", "parentCID=1\nparentFileNameHint="+hint, 1)
		m, err := preflight(e.write(), vmdk.Options{AllowParent: true})
		if err != nil || strings.Join(m.ParentNames, "|") != name {
			t.Errorf("%q: %q, %v", hint, m.ParentNames, err)
		}
	}
}

// TestContainer checks a sparse extent that only contains the descriptor of a flat disk.
func TestContainer(t *testing.T) {
	d, files := writeFiles("monolithicFlat", []*extent{{kind: flat, sectors: 3, data: map[int64][]byte{0: []byte("hello")}}})
	e := extent{kind: hosted, version: 1, descr: d}
	f := append(e.begin(), 0)
	copy(f, e.header(1, 0, 0, 0, 0))
	img, m, err := open(f, vmdk.Options{OpenExtent: files.open}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := make([]byte, 5); img.Size() != 1536 || m.MappedBytes != 1536 || m.BlockSize != 0 {
		t.Errorf("%+v", m)
	} else if _, err := img.ReadAt(p, 0); err != nil || string(p) != "hello" {
		t.Errorf("%q, %v", p, err)
	}
}

// TestHoles checks that the holes of flat extents are told.
func TestHoles(t *testing.T) {
	content := make(memory, 4096)
	content[1024] = 1
	d := fmt.Sprintf(descriptorHead, "vmfs") + "RW 4 ZERO\nRW 6 FLAT \"a\" 1\n"
	img, _, err := open([]byte(d), vmdk.Options{OpenExtent: func(string) (io.ReaderAt, int64, error) {
		return content, content.Size(), nil
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []libimage.Extent
	for off := int64(0); off < img.Size(); {
		e, err := img.Extent(off, img.Size()-off)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
		off += e.Length
	}
	want := []libimage.Extent{{Start: 0, Length: 2560, Zero: true}, {Start: 2560, Length: 512, Allocated: true},
		{Start: 3072, Length: 2048, Zero: true}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestChangedLater checks that tables that change after they were checked do no harm.
func TestChangedLater(t *testing.T) {
	for _, kind := range []string{hosted, stream} {
		f := small(kind).write()
		img, _, err := open(f, vmdk.Options{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range f[1024:] {
			f[1024+i] = 0x55
		}
		if _, err := img.ReadAt(make([]byte, img.Size()), 0); !errors.As(err, new(*vmdk.Error)) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}
