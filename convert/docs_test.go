// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/convert"
)

var updateReadme = flag.Bool("update-readme", false, "write the table of formats into the README")

// support is a row of the README's table of formats.
type support struct {
	name     string // as people call the format
	format   string // as convert does, "" = a wrapper
	variants string // what is read
	extents  string // where it is told what need not be read
	oracle   string // what the content is compared with
	tests    string // the tests that do so, those without a package being of this one
	refused  string // when, beside what is damaged, cut, or in contradiction to itself
}

// supported is what is read, how that is known, and what is refused. ¹ = only with --allow-backing.
var supported = []support{
	{"RAW", "raw", "files, block devices", "holes of the file system", "the bytes",
		"raw.TestHolesAreZero TestDetect", "neither the name nor `--format-in` says RAW; LUKS"},
	{"QCOW2", "qcow2", "versions 2 and 3; plain, zlib, zstd, extended L2; every cluster size; internal snapshots are left out",
		"L1 and L2 tables, subclusters", "qemu-img, go-qcow2reader, corpus",
		"TestQEMU TestMapAgainstQEMU TestCorpus TestSampleDisks qcow2.FuzzOpenQCOW2", "encrypted; marked corrupt (`--force` reads it); unknown features"},
	{"", "qcow2", "backing file¹; external data file¹", "the chain's; holes of the data file", "qemu-img",
		"TestQEMU TestQEMUChains TestQEMUDataFile TestMapAgainstQEMU TestChains", "a path, a link, missing, of another format than stated"},
	{"QCOW", "qcow", "version 1; plain, compressed; backing file¹", "L1 and L2 tables", "qemu-img",
		"qcow1.TestAgainstQEMU qcow1.TestQEMUReads qcow1.TestChainOfQEMU", "encrypted"},
	{"QED", "qed", "clean, not closed cleanly; backing file¹", "L1 and L2 tables", "qemu-img",
		"qed.TestAgainstQEMU qed.TestQEMUReads qed.TestDirty qed.TestChainOfQEMU", "unknown features"},
	{"VMDK", "vmdk", "monolithicSparse, twoGbMaxExtentSparse; zeroed grains, redundant directories", "grain directory and tables",
		"qemu-img, corpus", "TestQEMUFormats vmdk.TestAgainstQEMU vmdk.TestQEMUReads vmdk.TestCorpus", "an extent is missing (it is named), a path or a link"},
	{"", "vmdk", "monolithicFlat, twoGbMaxExtentFlat, vmfs (ESXi)", "holes of the extents", "qemu-img, corpus",
		"TestQEMUFormats vmdk.TestAgainstQEMU vmdk.TestCorpus vmdk.TestHoles", "as above; physical devices"},
	{"", "vmdk", "streamOptimized: directory at the start, in a footer, or rebuilt from the markers", "grain tables, or the markers", "qemu-img, corpus",
		"TestQEMUFormats vmdk.TestQEMUReads vmdk.TestCorpus vmdk.TestNoDirectory", "no end; directory damaged (`--force` rebuilds it)"},
	{"", "vmdk", "vmfsSparse (COWD), seSparse; parents¹ by CID", "grain directory and tables, the chain's", "qemu-img, corpus",
		"vmdk.TestQEMUReads vmdk.TestAgainstQEMUParent TestQEMUChains vmdk.TestCorpus", "journal of a seSparse to be replayed; the parent was changed"},
	{"VHD", "vhd", "fixed, dynamic; size by creator or `--vhd-size`; 511-byte footers", "block allocation table", "qemu-img, corpus",
		"vhd.TestAgainstQEMU TestQEMUFormats vhd.TestCorpus vhd.TestSize TestVHDSize", "data where the size would cut it off"},
	{"", "vhd", "differencing¹ by unique id", "sector bitmaps, the chain's", "corpus",
		"vhd.TestCorpusChild TestDifferencingVHD", "another parent than stated"},
	{"VHDX", "vhdx", "fixed, dynamic; sectors of 512 and 4,096 bytes; a log is replayed in memory", "block allocation table", "qemu-img, corpus",
		"vhdx.TestAgainstQEMU TestQEMUFormats vhdx.TestCorpus vhdx.TestReadsWhatWasWritten", "a log without a whole sequence; unknown regions or items"},
	{"", "vhdx", "differencing¹ by data write GUID", "sector bitmaps, the chain's", "own writer",
		"TestDifferencingVHDX vhdx.TestReadsWhatWasWritten", "another parent than stated"},
	{"VDI", "vdi", "static, dynamic", "block map", "qemu-img, corpus",
		"vdi.TestAgainstQEMU vdi.TestQEMUReads TestQEMUFormats vdi.TestCorpus", "differencing (snapshots), undo; version other than 1.1"},
	{"ZVHD", "zvhd", "one zlib stream in blocks", "records", "the vendor's driver",
		"zvhd.TestSamplesDecode zvhd.TestReadsWhatTheVendorReads", "`--original-size` with data behind that"},
	{"ZVHD2", "zvhd2", "zlib, zstd; with index", "bitmap and index", "the vendor's driver",
		"zvhd2.TestSamplesDecode zvhd2.TestReadsWhatTheVendorReads zvhd2.TestWritesLikeTheVendor", "without an index"},
	{"gzip, xz, zstd, bzip2", "", "around any of them: unpacked as it is read, or once with `--scratch`", "zeros, found when it is opened", "their tools",
		"TestWrappers TestStreamed TestCorpus TestHostileWrappers", "cut, followed by something; needs more than 16 passes without `--scratch`"},
	{"OVA, OVF, tar", "", "the disk in place; `--ova-disk` of several", "the disk's", "own archives",
		"TestOVA TestOVF", "sizes or manifest's digests differ; links and paths inside"},
}

// TestReadmeTable holds the README's table against supported, and that against the formats and tests
// that there are.
func TestReadmeTable(t *testing.T) {
	tests := testsOf(t)
	var table strings.Builder
	table.WriteString("| format | read | extents from | compared with | refused when² |\n|---|---|---|---|---|\n")
	var formats []string
	for _, s := range supported {
		fmt.Fprintf(&table, "| %s | %s | %s | %s | %s |\n", s.name, s.variants, s.extents, s.oracle, s.refused)
		if s.format != "" && !slices.Contains(formats, s.format) {
			formats = append(formats, s.format)
		}
		for _, name := range strings.Fields(s.tests) {
			if !tests[name] {
				t.Errorf("%s %s: there is no test %s", s.name, s.variants, name)
			}
		}
	}
	slices.Sort(formats)
	if !slices.Equal(formats, convert.FormatNames()) {
		t.Errorf("the table has the formats %q, but %q are read", formats, convert.FormatNames())
	}
	path := filepath.Join("..", "README.md")
	readme, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- formats:begin -->\n", "<!-- formats:end -->"
	before, rest, ok1 := strings.Cut(string(readme), begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatal("the README has no marks for the table of formats")
	}
	if got == table.String() {
		return
	}
	if *updateReadme {
		if err := os.WriteFile(path, []byte(before+begin+table.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("the README's table isn't that of the tests; `go test ./convert -run TestReadmeTable -update-readme` writes\n%s", &table)
}

// TestDangersHaveTests looks for the tests that the manual names.
func TestDangersHaveTests(t *testing.T) {
	manual, err := os.ReadFile(filepath.Join("..", "docs", "formats.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests := testsOf(t)
	_, dangers, _ := strings.Cut(string(manual), "## Dangers and their tests")
	rows := 0
	for _, line := range strings.Split(dangers, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || cells[1] == " danger " || strings.HasPrefix(cells[1], "---") {
			continue
		}
		rows++
		names := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[2], -1)
		if len(names) == 0 {
			t.Errorf("no test for: %s", cells[1])
		}
		for _, name := range names {
			if !tests[name[1]] {
				t.Errorf("there is no test %s, for: %s", name[1], cells[1])
			}
		}
	}
	if rows < 30 {
		t.Errorf("only %d rows were found", rows)
	}
}

// testsOf returns the tests and fuzz targets of this package, and by package.name those of the formats.
func testsOf(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	more, err2 := filepath.Glob(filepath.Join("*", "*_test.go"))
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	tests := make(map[string]bool)
	for _, path := range append(files, more...) {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		prefix := ""
		if dir := filepath.Dir(path); dir != "." {
			prefix = dir + "."
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && regexp.MustCompile("^(Test|Fuzz)[A-Z]").MatchString(fn.Name.Name) {
				tests[prefix+fn.Name.Name] = true
			}
		}
	}
	return tests
}
