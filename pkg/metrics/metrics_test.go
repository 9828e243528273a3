// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWrite(t *testing.T) {
	var b bytes.Buffer
	err := Write(&b, []Gauge{
		{Name: "a_bytes", Help: "A size\nwith a \\.", Samples: []Sample{{Value: 1 << 40}}},
		{Name: "nothing", Help: "Left out."},
		{Name: "b_seconds", Help: "Durations.", Samples: []Sample{
			{Labels: []Label{{"phase", "upload"}, {"note", "a \"b\" \\ c\nd\xff"}}, Value: 0.25},
			{Labels: []Label{{"phase", "job"}}, Value: math.NaN()},
		}},
	})
	want := "# HELP a_bytes A size\\nwith a \\\\.\n# TYPE a_bytes gauge\na_bytes 1099511627776\n" +
		"# HELP b_seconds Durations.\n# TYPE b_seconds gauge\n" +
		"b_seconds{phase=\"upload\",note=\"a \\\"b\\\" \\\\ c\\nd\ufffd\"} 0.25\nb_seconds{phase=\"job\"} NaN\n"
	if err != nil || b.String() != want {
		t.Errorf("%v\ngot  %q\nwant %q", err, b.String(), want)
	}
	for _, bad := range [][]Gauge{
		{{Name: "1"}}, {{Name: ""}}, {{Name: "a-b"}}, {{Name: "a"}, {Name: "a"}},
		{{Name: "a", Samples: []Sample{{Labels: []Label{{"b:c", ""}}}}}},
		{{Name: "a", Samples: []Sample{{Labels: []Label{{"b", ""}, {"b", ""}}}}}},
		{{Name: "a", Samples: []Sample{{}, {}}}},
	} {
		b.Reset()
		if err := Write(&b, bad); err == nil || b.Len() > 0 {
			t.Errorf("%+v: %v, wrote %q", bad, err, b.String())
		}
	}
}

// TestWriteFile: the old file stands until the new one is whole, and nothing else is left.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "imsprep.prom")
	good := []Gauge{{Name: "a", Help: "A.", Samples: []Sample{{Value: 1}}}}
	for range 2 {
		if err := WriteFile(path, good); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteFile(path, []Gauge{{Name: "no name"}}); err == nil {
		t.Error("a bad name was taken")
	}
	got, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(string(got), "\na 1\n") {
		t.Errorf("%q, %v", got, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o444 != 0o444 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := WriteFile(filepath.Join(dir, "none", "x.prom"), good); err == nil {
		t.Error("a missing folder was made")
	}
}
