// SPDX-License-Identifier: Apache-2.0

package batch_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

const published = "../../../docs/batch-plan.schema.json"

// schema compiles what is published, by somebody else's reading of the standard.
func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := os.ReadFile(published)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	if err := c.AddResource("plan.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("plan.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON is a YAML text in the terms of JSON.
func asJSON(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSchemaPublished: what is in the docs is what the types say.
func TestSchemaPublished(t *testing.T) {
	text, err := os.ReadFile(published)
	if err != nil || !bytes.Equal(text, batch.Schema()) {
		t.Errorf("%s isn't what `imsprep batch schema` prints: write it anew with that (%v)", published, err)
	}
}

// TestSchemaAgrees: what Parse takes, the schema takes; a key or value that Parse refuses for itself, the
// schema refuses.
func TestSchemaAgrees(t *testing.T) {
	s := schema(t)
	plans, err := filepath.Glob("testdata/plans/*.yaml")
	if err != nil || len(plans) < 3 {
		t.Fatalf("%d plans, %v", len(plans), err)
	}
	for _, file := range plans {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := batch.Parse(file, text); err != nil {
			t.Error(err)
		}
		if err := s.Validate(asJSON(t, text)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	const image = "version: 1\nimages:\n- {name: a, source: b, "
	for _, text := range []string{
		"images: []\n", "version: 2\nimages: []\n", "version: 1\nimages: {}\n", "version: 1\nimages: [x]\n",
		"version: 1\nimages: []\nmore: 1\n", "version: 1\nlimits: {jobs: 41}\nimages: []\n", "version: 1\nlimits: {images: 0}\nimages: []\n",
		"version: 1\nlimits: {memory: much}\nimages: []\n", "version: 1\nlimits: {rate: -5}\nimages: []\n",
		"version: 1\nimages: [{name: a}]\n", "version: 1\nimages: [{source: a}]\n",
		image + "type: disk}\n", image + "verify: maybe}\n", image + "min_disk: 1025}\n", image + "min_disk: x}\n", image + "timeout: soon}\n",
		image + "tags: [a]}\n", image + "backing_dirs: a}\n", image + "os-version: x}\n", image + "part_size: 1XB}\n", image + "bucket: {a: b}}\n",
	} {
		if _, err := batch.Parse("p", []byte(text)); err == nil {
			t.Errorf("Parse takes %q", text)
		}
		if err := s.Validate(asJSON(t, []byte(text))); err == nil {
			t.Errorf("the schema takes %q", text)
		}
	}
}

// TestEveryKey: the example that has every key has every key.
func TestEveryKey(t *testing.T) {
	text, err := os.ReadFile("testdata/plans/everything.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var plan struct {
		Images []map[string]any
	}
	if err := yaml.Unmarshal(text, &plan); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Properties struct {
			Images struct {
				Items struct {
					Properties map[string]any
				}
			}
		}
	}
	if err := json.Unmarshal(batch.Schema(), &doc); err != nil {
		t.Fatal(err)
	}
	manual, err := os.ReadFile("../../../docs/batch.md")
	if err != nil {
		t.Fatal(err)
	}
	keys := doc.Properties.Images.Items.Properties
	if len(keys) < 40 {
		t.Errorf("the schema has %d keys of an image", len(keys))
	}
	for key := range keys {
		if _, ok := plan.Images[0][key]; !ok {
			t.Errorf("the example lacks %q", key)
		}
		if !strings.Contains(string(manual), "`"+key+"`") {
			t.Errorf("docs/batch.md lacks `%s`", key)
		}
	}
}

func FuzzParse(f *testing.F) {
	plans, err := filepath.Glob("testdata/plans/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range plans {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, text := range []string{"", "version: 1", "a: &a [*a]", "version: 1\nimages:\n- <<: {}", "? {a: b}\n: c", "version: 1\nimages: [{name: \"\\0\", source: x}]",
		"version: 1\nlimits: {memory: 9999999999TiB, rate: 1/s}\nimages: []", "version: !!binary x", "- - - -", "version: 1\nimages: [~]"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := batch.Parse("p.yaml", text)
		if err != nil {
			return
		}
		names := map[string]bool{}
		for n := range p.Images {
			i := &p.Images[n]
			if i.Name == "" || names[i.Name] || i.Source == "" || i.Timeout <= 0 || i.Poll <= 0 || i.Line < 1 ||
				!slices.Contains([]string{batch.TypeSystem, batch.TypeData}, i.Type) {
				t.Errorf("image %+v", i)
			}
			names[i.Name] = true
			if strings.ContainsAny(batch.StateName(i.Name), "/\\:\x00") {
				t.Errorf("the state of %q is called %q", i.Name, batch.StateName(i.Name))
			}
		}
		if l := p.Limits; l.Images < 1 || l.Jobs < 1 || l.Jobs > batch.MaxJobs || l.Attempts < 1 || l.Memory < batch.MinMemory || l.Rate < 0 {
			t.Errorf("limits %+v", l)
		}
	})
}

func FuzzParseCSV(f *testing.F) {
	for _, text := range []string{"source,name\na,b\n", "source;tags\nx;a=b|c=d\n", "\xEF\xBB\xBFsource\tmin_disk\n\"a\"\t40\n", "source\n\"", "name\n", "source,source\n",
		"#\n\nsource,backing_dirs,verify\na,b|c,true\n,,\n", "source,min_disk\na,99999999999999999999\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		images, err := batch.ParseCSV("l.csv", text)
		if err != nil {
			return
		}
		for _, i := range images {
			if i.Source == "" || i.Line < 1 {
				t.Errorf("image %+v", i)
			}
		}
	})
}
