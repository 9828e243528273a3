// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// maxPlanBytes bounds a plan file: the largest plan, with 10,000 entries of 1 KiB each, has 10 MB.
	maxPlanBytes = 32 << 20
	// maxProblems is how many mistakes are told at once.
	maxProblems = 20
)

// Problem is one thing that is wrong in a plan file, and where.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`   // from 1; 0 if it isn't about a place
	Column  int    `json:"column"` // from 1
	Message string `json:"message"`
}

func (p Problem) String() string {
	if p.Line == 0 {
		return p.File + ": " + p.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Message)
}

// PlanError lists what is wrong in a plan file, or in a list of disks.
type PlanError struct {
	Problems []Problem
	More     int // problems that aren't listed
}

func (e *PlanError) Error() string {
	lines := make([]string, len(e.Problems))
	for n, p := range e.Problems {
		lines[n] = p.String()
	}
	if e.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", e.More))
	}
	return strings.Join(lines, "\n")
}

// problems collects what is wrong.
type problems struct {
	file string
	PlanError
}

func (p *problems) add(line, column int, format string, args ...any) {
	if len(p.Problems) == maxProblems {
		p.More++
		return
	}
	p.Problems = append(p.Problems, Problem{p.file, line, column, fmt.Sprintf(format, args...)})
}

func (p *problems) at(n *yaml.Node, format string, args ...any) {
	p.add(n.Line, n.Column, format, args...)
}

func (p *problems) err() error {
	if len(p.Problems) == 0 {
		return nil
	}
	slices.SortStableFunc(p.Problems, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return &PlanError{p.Problems, p.More}
}

// decoder fills a struct from YAML by its tags. It is stricter than YAML's own: every key must be known
// and there once, a text must be a text, and nothing refers to something elsewhere in the file.
type decoder struct {
	*problems
	mark func(v reflect.Value, n *yaml.Node) // told of every struct that begins
}

// parseYAML reads the one document of a file.
func parseYAML(file string, b []byte) (root *yaml.Node, err error) {
	p := &problems{file: file}
	defer func() {
		// The parser takes text from anywhere; should it stumble, that is a bad file.
		if r := recover(); r != nil {
			p.add(0, 0, "it can't be read as YAML: %v", r)
			root, err = nil, p.err()
		}
	}()
	if len(b) > maxPlanBytes {
		p.add(0, 0, "it has %d bytes, more than %d", len(b), maxPlanBytes)
		return nil, p.err()
	}
	dec := yaml.NewDecoder(strings.NewReader(string(b)))
	var doc, second yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		p.add(0, 0, "it is empty")
		return nil, p.err()
	case err != nil:
		line, message := yamlError(err)
		p.add(line, 1, "it can't be read as YAML: %s", message)
		if line == 0 {
			p.Problems[0].Column = 0
		}
		return nil, p.err()
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		p.add(max(second.Line, 1), max(second.Column, 1), "there is more than one document in it")
		return nil, p.err()
	}
	if len(doc.Content) != 1 {
		p.add(0, 0, "it is empty")
		return nil, p.err()
	}
	return doc.Content[0], nil
}

// yamlError takes the line out of a message of the parser.
func yamlError(err error) (line int, message string) {
	message = strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(message, "line "); ok {
		number, text, _ := strings.Cut(rest, ": ")
		if n, err := strconv.Atoi(number); err == nil {
			return n, text
		}
	}
	return 0, message
}

var (
	sizeType     = reflect.TypeFor[Size]()
	rateType     = reflect.TypeFor[Rate]()
	durationType = reflect.TypeFor[Duration]()
)

// field is a key that a struct has.
type field struct {
	name  string
	index []int
	tag   reflect.StructTag
	typ   reflect.Type
}

// fieldsOf lists the keys of a struct, those of inlined ones last.
func fieldsOf(t reflect.Type) []field {
	var list, inlined []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, option, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case option == "inline":
			for _, sub := range fieldsOf(f.Type) {
				sub.index = append([]int{i}, sub.index...)
				inlined = append(inlined, sub)
			}
		case name != "-":
			list = append(list, field{name, []int{i}, f.Tag, f.Type})
		}
	}
	return append(list, inlined...)
}

// value sets v from a node. what names it in messages.
func (d *decoder) value(n *yaml.Node, v reflect.Value, what string, tag reflect.StructTag) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.at(n, "anchors and aliases aren't used in a plan: what images have in common belongs under defaults")
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // nothing was said, as if the key weren't there
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		before := len(d.Problems) + d.More
		d.value(n, p.Elem(), what, tag)
		if len(d.Problems)+d.More == before {
			v.Set(p)
		}
	case reflect.Struct:
		d.structure(n, v, what)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.at(n, "%s is a list: its items begin with a dash", what)
			return
		}
		if len(n.Content) > MaxImages {
			d.at(n, "%s has %d items, more than %d", what, len(n.Content), MaxImages)
			return
		}
		list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			if item.Kind == yaml.ScalarNode && item.Tag == "!!null" {
				d.at(item, "an item of %s is empty", what)
				continue
			}
			d.value(item, list.Index(i), "an item of "+what, tag)
		}
		v.Set(list)
	case reflect.Map:
		d.texts(n, v, what)
	default:
		if n.Kind != yaml.ScalarNode {
			d.at(n, "%s is one value, not a list or a group of keys", what)
			return
		}
		if err := d.scalar(n, v, what, tag); err != nil {
			d.at(n, "%v", err)
		}
	}
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, what string) {
	if n.Kind != yaml.MappingNode {
		d.at(n, "%s is a group of keys, each with its value", what)
		return
	}
	if d.mark != nil {
		d.mark(v, n)
	}
	fields := fieldsOf(v.Type())
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Anchor != "" {
			d.at(key, "a key of %s is a plain word", what)
			continue
		}
		at := slices.IndexFunc(fields, func(f field) bool { return f.name == key.Value })
		if at < 0 {
			d.at(key, "unknown key %q in %s%s", key.Value, what, d.meant(key.Value, fields))
			continue
		}
		if line, twice := seen[key.Value]; twice {
			d.at(key, "the key %q is there already, in line %d", key.Value, line)
			continue
		}
		seen[key.Value] = key.Line
		f := fields[at]
		d.value(value, v.FieldByIndex(f.index), f.name, f.tag)
	}
	for _, f := range fields {
		if f.tag.Get("required") == "true" && seen[f.name] == 0 {
			d.at(n, "%s lacks %q", what, f.name)
		}
	}
}

// meant suggests the key that was meant.
func (d *decoder) meant(key string, fields []field) string {
	plain := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r == '_' || r == '-' || r == ' ' {
				return -1
			}
			return r
		}, strings.ToLower(s))
	}
	best, least := "", 3
	for _, f := range fields {
		if n := distance(plain(key), plain(f.name)); n < least && n < len(f.name)-1 {
			best, least = f.name, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; %q is meant?", best)
}

// distance is how many letters have to be put in, taken out or changed to make b of a. Long keys are
// nobody's slip.
func distance(a, b string) int {
	const long = 64
	if len(a) > long || len(b) > long {
		return long
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// texts fills a map from texts to texts, which are tags.
func (d *decoder) texts(n *yaml.Node, v reflect.Value, what string) {
	if n.Kind != yaml.MappingNode {
		d.at(n, "%s is a group of keys, each with its value", what)
		return
	}
	m := map[string]string{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode || value.Kind != yaml.ScalarNode || key.Anchor != "" || value.Anchor != "":
			d.at(key, "keys and values of %s are plain texts", what)
			continue
		case key.Value == "":
			d.at(key, "a key of %s is empty", what)
			continue
		}
		if _, twice := m[key.Value]; twice {
			d.at(key, "the key %q is there already", key.Value)
			continue
		}
		if m[key.Value] = value.Value; value.Tag == "!!null" {
			m[key.Value] = ""
		}
	}
	v.Set(reflect.ValueOf(m))
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, what string, tag reflect.StructTag) error {
	switch v.Type() {
	case sizeType:
		s, err := ParseSize(n.Value)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		v.SetInt(int64(s))
		return nil
	case rateType:
		r, err := ParseRate(n.Value)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		v.SetInt(int64(r))
		return nil
	case durationType:
		t, err := ParseDuration(n.Value)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		v.SetInt(int64(t))
		return nil
	}
	switch v.Kind() {
	case reflect.Bool:
		switch n.Value {
		case "true":
			v.SetBool(true)
		case "false":
			v.SetBool(false)
		default:
			return fmt.Errorf("%s is true or false, not %q", what, n.Value)
		}
	case reflect.Int:
		i, err := strconv.Atoi(n.Value)
		if err != nil {
			return fmt.Errorf("%s is a whole number, not %q", what, n.Value)
		}
		if least, err := strconv.Atoi(tag.Get("min")); err == nil && i < least {
			return fmt.Errorf("%s is %d; it is %d at least", what, i, least)
		}
		if most, err := strconv.Atoi(tag.Get("max")); err == nil && i > most {
			return fmt.Errorf("%s is %d; it is %d at most", what, i, most)
		}
		v.SetInt(int64(i))
	case reflect.String:
		if allowed := tag.Get("enum"); allowed != "" && !slices.Contains(strings.Split(allowed, ","), n.Value) {
			return fmt.Errorf("%s is %q; it is one of %s", what, n.Value, strings.ReplaceAll(allowed, ",", ", "))
		}
		v.SetString(n.Value)
	default:
		return fmt.Errorf("%s can't be set", what) // a field of a kind that no plan has
	}
	return nil
}
