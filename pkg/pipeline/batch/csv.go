// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"bytes"
	"encoding/csv"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// LoadCSV reads a list of disks: a line a disk under a line of column names, which are the keys of an
// image in a plan. Relative sources start from the list's folder. What is wrong comes back as a
// *[PlanError].
func LoadCSV(file string) ([]Image, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPlanBytes+1))
	if err != nil {
		return nil, err
	}
	images, err := ParseCSV(file, b)
	for n := range images {
		if !filepath.IsAbs(images[n].Source) {
			images[n].Source = filepath.Join(filepath.Dir(file), images[n].Source)
		}
	}
	return images, err
}

// ParseCSV is [LoadCSV] for a list that was read already; sources stay as they are.
func ParseCSV(file string, b []byte) ([]Image, error) {
	p := &problems{file: file}
	b = bytes.TrimPrefix(b, []byte("\xEF\xBB\xBF"))
	switch {
	case len(b) > maxPlanBytes:
		p.add(0, 0, "it has %d bytes, more than %d", len(b), maxPlanBytes)
		return nil, p.err()
	case !utf8.Valid(b):
		p.add(0, 0, "it isn't UTF-8; save it as that")
		return nil, p.err()
	}
	r := csv.NewReader(bytes.NewReader(b))
	r.Comma, r.Comment, r.TrimLeadingSpace, r.ReuseRecord = separator(b), '#', true, true
	r.FieldsPerRecord = -1
	known := fieldsOf(reflect.TypeFor[Image]())
	var columns []field
	var images []Image
	d := &decoder{problems: p}
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			var bad *csv.ParseError
			if errors.As(err, &bad) {
				p.add(bad.Line, bad.Column, "it can't be read as CSV: %v", bad.Err)
			} else {
				p.add(0, 0, "it can't be read as CSV: %v", err)
			}
			return nil, p.err()
		}
		at := func(n int) (line, column int) { return r.FieldPos(n) }
		if columns == nil {
			columns = d.header(record, known, at)
			if err := p.err(); err != nil {
				return nil, err
			}
			continue
		}
		if !slices.ContainsFunc(record, func(s string) bool { return strings.TrimSpace(s) != "" }) {
			continue // a line of separators, as spreadsheets leave
		}
		line, _ := at(0)
		if len(images) == MaxImages {
			p.add(line, 1, "there are more than %d disks", MaxImages)
			break
		}
		if len(record) > len(columns) {
			line, column := at(len(columns))
			p.add(line, column, "there are %d fields, and only %d columns have a name", len(record), len(columns))
			continue
		}
		i := Image{Line: line, Column: 1}
		for n, text := range record {
			if text = strings.TrimSpace(text); text == "" {
				continue
			}
			line, column := at(n)
			d.cell(&yaml.Node{Kind: yaml.ScalarNode, Value: text, Line: line, Column: column}, reflect.ValueOf(&i).Elem(), columns[n])
		}
		if i.Source == "" {
			p.add(line, 1, "the disk has no source")
		}
		images = append(images, i)
	}
	if columns == nil {
		p.add(0, 0, "it is empty: its first line names the columns, source among them")
	}
	return images, p.err()
}

// separator is what divides the column names: spreadsheets of some countries write semicolons.
func separator(b []byte) rune {
	for line := range bytes.Lines(b) {
		if text := bytes.TrimSpace(line); len(text) == 0 || text[0] == '#' {
			continue
		}
		for _, sep := range []rune{';', '\t'} {
			if bytes.ContainsRune(line, sep) && !bytes.ContainsRune(line, ',') {
				return sep
			}
		}
		break
	}
	return ','
}

// header reads the column names.
func (d *decoder) header(record []string, known []field, at func(int) (int, int)) []field {
	var columns []field
	seen := map[string]bool{}
	for n, name := range record {
		line, column := at(n)
		name = strings.ToLower(strings.TrimSpace(name))
		k := slices.IndexFunc(known, func(f field) bool { return f.name == name })
		switch {
		case k < 0:
			d.add(line, column, "unknown column %q%s", name, d.meant(name, known))
			columns = append(columns, field{})
			continue
		case seen[name]:
			d.add(line, column, "the column %q is there twice", name)
		}
		seen[name] = true
		columns = append(columns, known[k])
	}
	if !seen["source"] {
		line, column := at(0)
		d.add(line, column, "there is no column source")
	}
	return columns
}

// cell sets a field of an image. Lists and tags have semicolons, or blanks where those divide the columns.
func (d *decoder) cell(n *yaml.Node, image reflect.Value, f field) {
	v := image.FieldByIndex(f.index)
	items := func() []string { return strings.FieldsFunc(n.Value, func(r rune) bool { return r == ';' || r == '|' }) }
	switch v.Kind() {
	case reflect.Slice:
		for _, item := range items() {
			v.Set(reflect.Append(v, reflect.ValueOf(strings.TrimSpace(item))))
		}
	case reflect.Map:
		m := map[string]string{}
		for _, item := range items() {
			key, value, _ := strings.Cut(strings.TrimSpace(item), "=")
			if _, twice := m[key]; key == "" || twice {
				d.at(n, "%s: %q isn't a key of its own with its value, as in team=db;env=prod", f.name, item)
				return
			}
			m[key] = value
		}
		v.Set(reflect.ValueOf(m))
	default:
		d.value(n, v, f.name, f.tag)
	}
}
