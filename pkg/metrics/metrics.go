// SPDX-License-Identifier: Apache-2.0

// Package metrics writes numbers in Prometheus' text exposition format, version 0.0.4, to a file that the
// node exporter's textfile collector reads.
package metrics

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Gauge is a metric that can have any value at any time. What a finished run has counted is one, too: the next
// run starts from nothing, which a counter may not.
type Gauge struct {
	Name    string // with its unit at the end, in base units: seconds, bytes
	Help    string
	Samples []Sample
}

// Sample is a value with its labels.
type Sample struct {
	Labels []Label
	Value  float64
}

// Label is a name and a value, which may be any UTF-8.
type Label struct{ Name, Value string }

var (
	metricName = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	labelName  = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	escapeValue = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// Write writes the gauges. One without samples is left out; a name that isn't one, or that comes twice, is an
// error before anything is written. What isn't UTF-8 in a text is replaced.
func Write(w io.Writer, gauges []Gauge) error {
	if err := check(gauges); err != nil {
		return err
	}
	b := bufio.NewWriter(w)
	for _, g := range gauges {
		if len(g.Samples) == 0 {
			continue
		}
		fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s gauge\n", g.Name, escapeHelp.Replace(valid(g.Help)), g.Name)
		for _, s := range g.Samples {
			b.WriteString(g.Name)
			for i, l := range s.Labels {
				b.WriteByte("{,"[min(i, 1)])
				fmt.Fprintf(b, `%s="%s"`, l.Name, escapeValue.Replace(valid(l.Value)))
			}
			if len(s.Labels) > 0 {
				b.WriteByte('}')
			}
			fmt.Fprintf(b, " %s\n", number(s.Value))
		}
	}
	return b.Flush()
}

func check(gauges []Gauge) error {
	names := map[string]bool{}
	for _, g := range gauges {
		if !metricName.MatchString(g.Name) || names[g.Name] {
			return fmt.Errorf("metric %q: no name of a metric, or one that comes twice", g.Name)
		}
		names[g.Name] = true
		series := map[string]bool{}
		for _, s := range g.Samples {
			labels := map[string]bool{}
			for _, l := range s.Labels {
				if !labelName.MatchString(l.Name) || labels[l.Name] {
					return fmt.Errorf("metric %s: label %q: no name of a label, or one that comes twice", g.Name, l.Name)
				}
				labels[l.Name] = true
			}
			if key := fmt.Sprintf("%q", s.Labels); series[key] {
				return fmt.Errorf("metric %s has two values for %s", g.Name, key)
			} else {
				series[key] = true
			}
		}
	}
	return nil
}

func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\ufffd")
}

func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatFloat(v, 'g', -1, 64) // NaN, +Inf and -Inf as the format has them
}

// WriteFile puts the gauges into a file: whoever reads it sees the old content or the new. Everybody may read
// it, since the collector runs as another user.
func WriteFile(path string, gauges []Gauge) (err error) {
	// The collector reads what ends in .prom; an unfinished file doesn't.
	f, err := os.CreateTemp(filepath.Dir(path), ".imsprep-metrics-*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = Write(f, gauges)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
