// SPDX-License-Identifier: Apache-2.0

// Package imsprep_test holds the rules that concern the repository as a whole:
// which package may import which, and that only commands touch the process.
package imsprep_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/imsprep/imsprep"

// layers says which of our folders a folder may import. A pattern's last
// element may be *, for any one name. Folders below one that is listed belong to
// it. A folder that no pattern fits has no place in the design yet.
var layers = []struct {
	folder    string
	mayImport []string
}{
	{"scripts/bench", nil},
	{"cmd/imsprep", []string{"bitmap", "convert", "convert/*", "pkg/obs", "pkg/ims", "pkg/guest", "pkg/pipeline", "pkg/pipeline/batch", "pkg/settings", "pkg/packer", "pkg/metrics"}},
	{"cmd/ociimage", nil},
	{"packaging/sbom", nil},
	{"cmd/packer-plugin-imsprep", []string{"bitmap", "convert", "pkg/obs", "pkg/ims", "pkg/pipeline", "pkg/settings", "pkg/packer"}},
	{"cmd/localcloud", []string{"bitmap", "pkg/ims/imstest"}},                                   // bitmap: the simulator's options hold a layout
	{"pkg/pipeline/batch", []string{"bitmap", "convert", "pkg/obs", "pkg/ims", "pkg/pipeline"}}, // before pkg/pipeline, which it is in
	{"pkg/settings", []string{"bitmap", "pkg/obs", "pkg/ims", "pkg/pipeline"}},
	{"pkg/pipeline", []string{"bitmap", "convert", "pkg/obs", "pkg/ims", "pkg/guest"}},
	{"pkg/packer", nil},
	{"pkg/metrics", nil},
	{"pkg/ims/imstest", []string{"bitmap", "convert"}},
	{"pkg/ims", nil},
	{"pkg/obs", nil},
	{"pkg/guest", nil},
	{"convert/inflate", nil},
	{"convert/*", []string{"convert/inflate"}},
	{"convert", []string{"convert/*"}},
	{"bitmap", nil},
}

// confined are other people's packages that only one folder may import.
var confined = map[string]string{
	"github.com/hashicorp/":                   "cmd/packer-plugin-imsprep",
	"github.com/versity/":                     "cmd/localcloud", // a whole S3 server
	"github.com/google/go-containerregistry/": "cmd/ociimage",
	"testing":                                    "",
	"go.uber.org/goleak":                         "",
	"pgregory.net/rapid":                         "",
	"github.com/santhosh-tekuri/jsonschema/":     "",
	"github.com/rogpeppe/go-internal/testscript": "",
}

// ofTheProcess are names that print, log, read the environment or end the
// process. They belong to commands, so that everything else is usable as a
// library. The empty package is that of the built-in functions.
var ofTheProcess = map[string][]string{
	"":    {"print", "println"},
	"fmt": {"Print", "Printf", "Println", "Scan", "Scanf", "Scanln"},
	"log/slog": {"Debug", "DebugContext", "Info", "InfoContext", "Warn", "WarnContext", "Error", "ErrorContext",
		"Log", "LogAttrs", "Default", "SetDefault", "With"},
	"os": {"Args", "Clearenv", "Environ", "Exit", "ExpandEnv", "Getenv", "LookupEnv", "Setenv", "Stderr", "Stdin",
		"Stdout", "TempDir", "Unsetenv", "UserCacheDir", "UserConfigDir", "UserHomeDir"},
	"net/http": {"DefaultClient", "DefaultTransport", "Get", "Head", "Post", "PostForm", "ProxyFromEnvironment"},
	"syscall":  {"Environ", "Exit", "Getenv", "Setenv", "Stderr", "Stdin", "Stdout"},
}

// TestDesignNamesEveryFolder: the table of docs/design.md is that of the layers.
func TestDesignNamesEveryFolder(t *testing.T) {
	design, err := os.ReadFile("docs/design.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		if _, err := os.Stat(l.folder); err != nil || strings.HasPrefix(l.folder, "scripts/") {
			continue // a pattern, or planned; scripts have one row
		}
		if !strings.Contains(string(design), "| `"+l.folder+"` |") {
			t.Errorf("docs/design.md has no row for %s", l.folder)
		}
	}
}

// TestRepositoryRules applies the rules to every Go file of the repository,
// cmd/localcloud, which is a module of its own, included.
func TestRepositoryRules(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (d.Name() == "testdata" || d.Name() == "bin" || strings.HasPrefix(d.Name(), ".")):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go"):
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if !strings.HasSuffix(name, "_test.go") {
			seen[layerOf(path.Dir(name))] = true
		}
		for _, finding := range findings(name, src) {
			t.Error(finding)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// A walk that finds nothing finds nothing wrong.
	for _, folder := range []string{"bitmap", "convert", "pkg/ims", "pkg/ims/imstest", "pkg/obs", "pkg/pipeline",
		"cmd/imsprep", "cmd/localcloud"} {
		if !seen[folder] {
			t.Errorf("no Go file of %s was looked at", folder)
		}
	}
}

// TestRulesFindOffenders shows that each rule finds what it is for, and leaves
// alone what looks like it.
func TestRulesFindOffenders(t *testing.T) {
	for _, tc := range []struct {
		file   string
		source string
		want   []string // a part of each finding, in order
	}{
		{"convert/disk.go", `import "github.com/imsprep/imsprep/convert/vhd"; var _ = vhd.Open`, nil},
		{"convert/disk.go", `import "github.com/imsprep/imsprep/bitmap"`, []string{"convert may not import bitmap"}},
		{"convert/vhd/vhd.go", `import "github.com/imsprep/imsprep/convert"`, []string{"convert/vhd may not import convert"}},
		{"convert/vhd/vhd.go", `import "github.com/imsprep/imsprep/convert/inflate"`, nil},
		{"convert/inflate/a.go", `import "github.com/imsprep/imsprep/convert/vhd"`, []string{"may not import convert/vhd"}},
		{"convert/vhd/vhd.go", `import "github.com/imsprep/imsprep/convert/vmdk"`, []string{"may not import convert/vmdk"}},
		{"convert/vhd/vhd.go", `import "github.com/imsprep/imsprep/convert/vhd/internal/log"`, nil},
		{"bitmap/map.go", `import "github.com/imsprep/imsprep/pkg/obs"`, []string{"bitmap may not import pkg/obs"}},
		{"pkg/obs/a.go", `import "github.com/imsprep/imsprep/pkg/ims"`, []string{"pkg/obs may not import pkg/ims"}},
		{"pkg/ims/a.go", `import "github.com/imsprep/imsprep/pkg/ims/imstest"`, []string{"may not import pkg/ims/imstest"}},
		{"pkg/ims/imstest/a.go", `import "github.com/imsprep/imsprep/pkg/ims"`, []string{"may not import pkg/ims"}},
		{"pkg/pipeline/a.go", `import "github.com/imsprep/imsprep/pkg/ims/imstest"`, []string{"may not import pkg/ims/imstest"}},
		{"pkg/pipeline/a_test.go", `import "github.com/imsprep/imsprep/pkg/ims/imstest"`, nil},
		{"cmd/imsprep/a.go", `import "github.com/imsprep/imsprep/pkg/ims/imstest"`, []string{"may not import pkg/ims/imstest"}},
		{"cmd/imsprep/a.go", `import "github.com/imsprep/imsprep/pkg/obs/obstest"`, []string{"may not import pkg/obs/obstest"}},
		{"cmd/localcloud/a.go", `import "github.com/imsprep/imsprep/pkg/ims/imstest"`, nil},
		{"cmd/localcloud/a.go", `import "github.com/imsprep/imsprep/pkg/obs"`, []string{"may not import pkg/obs"}},
		{"pkg/obs/a.go", `import _ "github.com/versity/versitygw/embedgw"`, []string{"may not import github.com/versity"}},
		{"cmd/localcloud/a.go", `import _ "github.com/versity/versitygw/embedgw"`, nil},
		{"pkg/obs/a.go", `import "testing"`, []string{"may not import testing"}},
		{"util/a.go", `var x int`, []string{"util is not in the table of layers"}},
		{"util/a_test.go", `var x int`, []string{"util is not in the table of layers"}},

		{"bitmap/a.go", `import "log"; func f() { log.Print() }`, []string{`may not import log`}},
		{"bitmap/a.go", `import "os"; func f() { os.Exit(1) }`, []string{"os.Exit"}},
		{"bitmap/a.go", `import env "os"; func f() { _ = env.Getenv("X") }`, []string{"os.Getenv"}},
		{"bitmap/a.go", `import . "os"; func f() { Exit(1) }`, []string{"imports os with a dot"}},
		{"bitmap/a.go", `import ("fmt"; "os"); func f() { fmt.Fprintln(os.Stderr) }`, []string{"os.Stderr"}},
		{"bitmap/a.go", `import "os"; var lookup = os.LookupEnv`, []string{"os.LookupEnv"}},
		{"bitmap/a.go", `import "fmt"; func f() { fmt.Println(); fmt.Printf("") }`, []string{"fmt.Println", "fmt.Printf"}},
		{"bitmap/a.go", `func f() { println("x") }`, []string{"println"}},
		{"bitmap/a.go", `import "log/slog"; func f() { slog.Info("x") }`, []string{"slog.Info"}},
		{"bitmap/a.go", `import "syscall"; func f() { syscall.Exit(1) }`, []string{"syscall.Exit"}},
		{"bitmap/a.go", `import "log/slog"; func f() slog.Value { return slog.StringValue("x") }`, nil},
		{"bitmap/a.go", `import "fmt"; func f() string { return fmt.Sprint(1) }`, nil},
		{"bitmap/a.go", `func f(os interface{ Exit(int) }) { os.Exit(1) }`, nil},
		{"bitmap/a.go", `import "os"; func f() (*os.File, error) { return os.Open("x") }`, nil},
		{"bitmap/a_test.go", `import "os"; var _ = os.Getenv("X")`, nil},
		{"cmd/imsprep/a.go", `import "os"; func f() { os.Exit(1); println(os.Getenv("X")) }`, nil},
		{"scripts/bench/a.go", `import "os"; func f() { os.Exit(1) }`, nil},
		{"scripts/bench/a.go", `import "github.com/imsprep/imsprep/convert"`, []string{"scripts/bench may not import convert"}},
	} {
		src := "// SPDX-License-Identifier: Apache-2.0\n\npackage p\n\n" + tc.source + "\n"
		got := findings(tc.file, []byte(src))
		ok := len(got) == len(tc.want)
		for i := range min(len(got), len(tc.want)) {
			ok = ok && strings.Contains(got[i], tc.want[i])
		}
		if !ok {
			t.Errorf("%s: %s\ngot  %q\nwant %q", tc.file, tc.source, got, tc.want)
		}
	}
	for _, src := range []string{
		"package p\n",
		"// Copyright\n// SPDX-License-Identifier: Apache-2.0\n\npackage p\n",
		"// SPDX-License-Identifier: Apache-2.0\npackage p\n", // would be the package's comment
		"// SPDX-License-Identifier: MIT\n\npackage p\n",
	} {
		if got := findings("bitmap/a.go", []byte(src)); len(got) != 1 || !strings.Contains(got[0], "SPDX") {
			t.Errorf("%q: got %q", src, got)
		}
	}
	if got := findings("bitmap/a.go", []byte("not Go")); len(got) == 0 {
		t.Error("a file that isn't Go was found good")
	}
}

// findings returns what is wrong with a file, whose name is relative to the
// root and has slashes.
func findings(name string, src []byte) []string {
	var found []string
	fset := token.NewFileSet()
	report := func(pos token.Pos, format string, args ...any) {
		at := name
		if pos.IsValid() {
			at += ":" + strconv.Itoa(fset.Position(pos).Line)
		}
		found = append(found, at+": "+fmt.Sprintf(format, args...))
	}
	if !strings.HasPrefix(string(src), "// SPDX-License-Identifier: Apache-2.0\n\n") {
		report(token.NoPos, "doesn't start with the SPDX line and a blank line")
	}
	// Objects are resolved, deprecated as they are: in one file that is enough
	// to tell a package from a variable of the same name.
	file, err := parser.ParseFile(fset, name, src, 0)
	if err != nil {
		report(token.NoPos, "%v", err)
		return found
	}
	folder := path.Dir(name)
	layer := layerOf(folder)
	if folder != "." && layer == "" {
		report(token.NoPos, "%s is not in the table of layers", folder)
		return found
	}
	if strings.HasSuffix(name, "_test.go") {
		return found // tests put layers together as they need
	}

	command := strings.HasPrefix(folder, "cmd/") || strings.HasPrefix(folder, "scripts/") || strings.HasPrefix(folder, "packaging/")
	packages := map[string]string{} // path by the name that the file knows it by
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			report(spec.Pos(), "%v", err)
			continue
		}
		local := path.Base(imported)
		if spec.Name != nil {
			local = spec.Name.Name
		}
		packages[local] = imported
		if local == "." && ofTheProcess[imported] != nil && !command {
			report(spec.Pos(), "%s imports %s with a dot, which hides what it uses", folder, imported)
		}
		if imported == "log" && !command {
			report(spec.Pos(), "%s may not import log: only commands print", folder)
		}
		for prefix, home := range confined {
			if (imported == prefix || strings.HasSuffix(prefix, "/") && strings.HasPrefix(imported, prefix)) && home != layer {
				report(spec.Pos(), "%s may not import %s", folder, imported)
			}
		}
		ours, ok := strings.CutPrefix(imported, module+"/")
		if !ok {
			continue
		}
		// A fake or simulator (imstest, ...) belongs to its layer, but not into what
		// the layers make up. Where one may be used for real, the table names it.
		fake := strings.HasSuffix(ours, "test") && layerOf(ours) != ours
		if !mayImport(layer, layerOf(ours)) || fake {
			report(spec.Pos(), "%s may not import %s", folder, ours)
		}
	}
	if command {
		return found
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			id, ok := n.X.(*ast.Ident)
			if ok && id.Obj == nil && packages[id.Name] != "" && slices.Contains(ofTheProcess[packages[id.Name]], n.Sel.Name) {
				report(n.Pos(), "%s.%s: only commands touch the process", packages[id.Name], n.Sel.Name)
			}
		case *ast.CallExpr:
			id, ok := n.Fun.(*ast.Ident)
			if ok && id.Obj == nil && slices.Contains(ofTheProcess[""], id.Name) {
				report(n.Pos(), "%s: only commands touch the process", id.Name)
			}
		}
		return true
	})
	return found
}

// layerOf returns the folder, one that a pattern of layers fits, that a folder
// is or is below of; "" if there is none.
func layerOf(folder string) string {
	for _, l := range layers {
		elements := strings.Split(folder, "/")
		if n := strings.Count(l.folder, "/") + 1; n <= len(elements) {
			parent := strings.Join(elements[:n], "/")
			if ok, _ := path.Match(l.folder, parent); ok {
				return parent
			}
		}
	}
	return ""
}

func mayImport(from, to string) bool {
	for _, l := range layers {
		if ok, _ := path.Match(l.folder, from); !ok {
			continue
		}
		return from == to || slices.ContainsFunc(l.mayImport, func(pattern string) bool {
			ok, _ := path.Match(pattern, to)
			return ok
		})
	}
	return false
}
