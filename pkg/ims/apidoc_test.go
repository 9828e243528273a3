// SPDX-License-Identifier: Apache-2.0

package ims_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

var (
	callPattern  = regexp.MustCompile(`(GET|POST|PUT|PATCH|DELETE) (/[^\s,:;)` + "`" + `]*[^\s,:;).` + "`" + `]|/)`)
	placeholders = regexp.MustCompile(`\{[^}]*\}`)
	section      = regexp.MustCompile(`\((IMS API|native API|native API v1\.1|IMS API as the vendor's SDK has it), "[^"]+"`)
	quoted       = regexp.MustCompile("`([^`]+)`")
)

// normal is a call with all its placeholders alike.
func normal(call string) string { return placeholders.ReplaceAllString(call, "{}") }

// clientDocs are the docstrings of the client's exported methods, on one line each.
func clientDocs(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	docs := map[string]string{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv == nil || !f.Name.IsExported() {
				continue
			}
			if star, ok := f.Recv.List[0].Type.(*ast.StarExpr); ok {
				if id, ok := star.X.(*ast.Ident); ok && id.Name == "Client" {
					docs[f.Name.Name] = strings.Join(strings.Fields(f.Doc.Text()), " ")
				}
			}
		}
	}
	return docs
}

// apiTable are the rows of the page about the API: cells of the columns call, method, command, simulator, SDK.
func apiTable(t *testing.T) [][]string {
	t.Helper()
	page, err := os.ReadFile("../../docs/ims-api.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	for line := range strings.Lines(string(page)) {
		if cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|"); strings.HasPrefix(line, "| `") && len(cells) == 5 {
			for n := range cells {
				cells[n] = strings.TrimSpace(cells[n])
			}
			rows = append(rows, cells)
		}
	}
	if len(rows) < 40 {
		t.Fatalf("%d rows", len(rows))
	}
	return rows
}

// TestAPITable: the page, the docstrings and the simulator name the same calls.
func TestAPITable(t *testing.T) {
	docs := clientDocs(t)
	sim := imstest.New(imstest.Options{Objects: &imstest.MemoryObjects{}})
	t.Cleanup(sim.Close)
	inTable := map[string]bool{}
	for _, row := range apiTable(t) {
		for _, call := range callPattern.FindAllStringSubmatch(expandBraces(row[0]), -1) {
			method, path := call[1], call[2]
			if path == "/openstack/latest/securitykey" || path == "/meta-data/latest/api/token" {
				continue
			}
			w := httptest.NewRecorder()
			sim.ServeHTTP(w, httptest.NewRequest(method, placeholders.ReplaceAllString(path, "v2"), nil))
			if strings.Contains(w.Body.String(), "APIGW.0101") || w.Code == http.StatusMethodNotAllowed {
				t.Errorf("the simulator has no %s %s: %d %s", method, path, w.Code, w.Body)
			}
			if row[1] == "none: servers and backups" || path == "/v3/auth/tokens" {
				continue
			}
			found := false
			for _, name := range quoted.FindAllStringSubmatch(row[1], -1) {
				doc, ok := docs[name[1]]
				if !ok {
					if name[1] != "GenNew" && !strings.HasPrefix(name[1], "Wait") {
						t.Errorf("%s: the client has no %s", row[0], name[1])
					}
					continue
				}
				inTable[name[1]] = true
				for _, c := range callPattern.FindAllString(doc, -1) {
					found = found || normal(c) == normal(method+" "+path)
				}
				// The newer generation is told by its first element alone.
				found = found || strings.HasPrefix(path, "/v2.1/") && strings.Contains(doc, "or /v2.1/…")
				found = found || strings.HasPrefix(path, "/v2/schemas/") && strings.Contains(doc, "GET /v2/schemas/{name}")
			}
			if !found {
				t.Errorf("%s: no docstring of %s names it", row[0], row[1])
			}
		}
	}
	for name, doc := range docs {
		calls := callPattern.FindAllString(doc, -1)
		if len(calls) == 0 {
			continue
		}
		if !inTable[name] {
			t.Errorf("%s isn't in the table of calls", name)
		}
		iam := slices.ContainsFunc(calls, func(c string) bool { return strings.Contains(c, " /v3") })
		if !iam && !section.MatchString(doc) {
			t.Errorf("%s: the docstring names no section: %s", name, doc)
		}
	}
}

// expandBraces writes {a,b} out.
func expandBraces(s string) string {
	before, rest, ok := strings.Cut(s, "{image,")
	if !ok {
		return s
	}
	list, after, _ := strings.Cut("image,"+rest, "}")
	var out []string
	for name := range strings.SplitSeq(list, ",") {
		out = append(out, before+name+after)
	}
	return strings.Join(out, " ")
}
