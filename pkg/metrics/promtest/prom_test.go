// SPDX-License-Identifier: Apache-2.0

package promtest

import (
	"bytes"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/pkg/metrics"
)

func parse(t interface{ Fatalf(string, ...any) }, r io.Reader) map[string]*dto.MetricFamily {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(r)
	if err != nil {
		t.Fatalf("Prometheus can't read it: %v", err)
	}
	return families
}

// TestRoundTrip: whatever the texts and numbers, Prometheus reads what was meant.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := metrics.Gauge{Name: "some_metric", Help: rapid.String().Draw(t, "help")}
		values := rapid.SliceOfNDistinct(rapid.String(), 1, 5, rapid.ID[string]).Draw(t, "values")
		for _, v := range values {
			g.Samples = append(g.Samples, metrics.Sample{Labels: []metrics.Label{{Name: "a", Value: v}, {Name: "b", Value: "x"}},
				Value: rapid.Float64().Draw(t, "value")})
		}
		var b bytes.Buffer
		if err := metrics.Write(&b, []metrics.Gauge{g}); err != nil {
			t.Fatal(err)
		}
		f := parse(t, &b)["some_metric"]
		if f.GetType() != dto.MetricType_GAUGE || len(f.GetMetric()) != len(values) {
			t.Fatalf("got %v", f)
		}
		// The parser drops white space round the help.
		if strings.TrimSpace(f.GetHelp()) != strings.TrimSpace(g.Help) {
			t.Fatalf("help %q, want %q", f.GetHelp(), g.Help)
		}
		for i, m := range f.GetMetric() {
			got, want := m.GetGauge().GetValue(), g.Samples[i].Value
			if m.GetLabel()[0].GetValue() != values[i] || got != want && !(math.IsNaN(got) && math.IsNaN(want)) {
				t.Fatalf("sample %d: %v, want %q %v", i, m, values[i], want)
			}
		}
	})
}

// TestRun: what a run writes, also one that fails, is read and has the documented conventions.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "imsprep")
	build := exec.Command("go", "build", "-o", program, "./cmd/imsprep")
	build.Dir = filepath.Join("..", "..", "..") // of the product's own module
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	disk := filepath.Join(dir, `a "disk".raw`)
	if err := os.WriteFile(disk, bytes.Repeat([]byte("data"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		source, code string
		success      float64
	}{{disk, "0", 1}, {filepath.Join(dir, "missing.raw"), "2", 0}} {
		prom := filepath.Join(dir, "imsprep.prom")
		err := exec.Command(program, "convert", tc.source, filepath.Join(dir, "out.raw"), "--metrics-file", prom, "-q").Run()
		if (err == nil) != (tc.success == 1) {
			t.Fatalf("%s: %v", tc.source, err)
		}
		f, err := os.Open(prom)
		if err != nil {
			t.Fatal(err)
		}
		families := parse(t, f)
		f.Close()
		value := func(name string) float64 {
			m := families[name].GetMetric()
			if len(m) != 1 {
				t.Fatalf("%s: %v", name, families[name])
			}
			return m[0].GetGauge().GetValue()
		}
		if got := value("imsprep_run_success"); got != tc.success {
			t.Errorf("success %v", got)
		}
		if value("imsprep_run_start_time_seconds") < 1e9 || value("imsprep_run_duration_seconds") < 0 {
			t.Error("times")
		}
		for name, f := range families {
			if !strings.HasPrefix(name, "imsprep_") || f.GetHelp() == "" || strings.HasSuffix(name, "_total") {
				t.Errorf("%s: %v", name, f)
			}
			for _, unit := range []string{"_ms", "_kb", "_mib", "_minutes", "_percent"} {
				if strings.HasSuffix(name, unit) {
					t.Errorf("%s isn't in a base unit", name)
				}
			}
		}
	}
}
