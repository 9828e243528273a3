// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// WriteYAML writes the plan for people to edit: in a stable order, with comments.
func (p *Proposal) WriteYAML(w io.Writer) error {
	var b bytes.Buffer
	plan := p.Plan
	refused := 0
	var virtual, data int64
	for _, i := range plan.Images {
		if i.Refused != "" {
			refused++
			continue
		}
		virtual += int64(i.VirtualSize)
		data += int64(i.DataSize)
	}
	fmt.Fprintf(&b, "# A plan of imsprep batch: %s, %s of disks with %s of data", count(len(plan.Images), "image"), Size(virtual), Size(data))
	if refused > 0 {
		fmt.Fprintf(&b, "; %d would be refused", refused)
	}
	b.WriteString(`.
# Edit it, then look: imsprep batch run PLAN --dry-run; and go: imsprep batch run PLAN.
# Relative paths start from this file's folder. All keys: imsprep batch schema; docs/batch.md.

`)
	fmt.Fprintf(&b, "version: %d\n", plan.Version)
	if plan.Name != "" {
		fmt.Fprintf(&b, "name: %s # what became of the images is remembered under it\n", scalar(plan.Name))
	}
	l := plan.Limits
	b.WriteString("\nlimits:\n")
	line := func(set bool, key, value, comment string) {
		mark := ""
		if !set {
			mark = "# "
		}
		fmt.Fprintf(&b, "  %s%-24s # %s\n", mark, key+": "+value, comment)
	}
	line(true, "images", fmt.Sprint(orInt(l.Images, DefaultImagesAtOnce)), "disks uploaded at the same time")
	line(true, "memory", sizeText(orSize(l.Memory, DefaultMemory)), "for the buffers of all of them")
	line(l.Rate > 0, "rate", sizeText(orSize(Size(l.Rate), 100<<20))+"/s", "that all of them together may send")
	line(true, "jobs", fmt.Sprint(orInt(l.Jobs, DefaultJobs)), "import jobs at the service at the same time; it takes 40")
	line(true, "attempts", fmt.Sprint(orInt(l.Attempts, DefaultAttempts)), "tries in a row that get no further, when trouble may pass")

	b.WriteString("\n# What holds for every image that doesn't say otherwise.\ndefaults:\n")
	d := plan.Defaults.Settings
	if d.Bucket == "" {
		line(false, "bucket", "NAME", "else the environment's IMSPREP_BUCKET")
	}
	if d.OSVersion == "" {
		line(false, "os_version", strconv.Quote("..."), "as the region lists it: imsprep image os-versions")
	}
	if d.Format == "" {
		d.Format = "auto"
	}
	if err := encodeIndented(&b, fieldsNode(reflect.ValueOf(d), nil)); err != nil {
		return err
	}

	b.WriteString("\nimages:\n")
	for n := range plan.Images {
		if n > 0 {
			b.WriteString("\n")
		}
		for _, note := range p.notes[n] {
			fmt.Fprintf(&b, "  # %s\n", comment(note))
		}
		i := plan.Images[n]
		if i.Type == "" && plan.Defaults.Type == "" {
			i.Type = TypeSystem
		}
		node := fieldsNode(reflect.ValueOf(i), func(f field, v reflect.Value) string {
			if s, ok := v.Interface().(Size); ok {
				return s.String()
			}
			return ""
		})
		if i.Type != TypeData && i.OSVersion == "" && plan.Defaults.OSVersion == "" && i.Refused == "" {
			key, value := text("os_version"), text("")
			value.Style, value.LineComment = yaml.DoubleQuotedStyle, "# as the region lists it"
			at := len(node.Content)
			for n := 0; n < len(node.Content); n += 2 {
				if node.Content[n].Value == "type" {
					at = n + 2
				}
			}
			node.Content = slices.Insert(node.Content, at, key, value)
		}
		if err := encodeIndented(&b, &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{node}}); err != nil {
			return err
		}
	}
	if len(p.Ignored) > 0 {
		b.WriteString("\n# No images of their own:\n")
		for _, i := range p.Ignored {
			fmt.Fprintf(&b, "#   %s: %s\n", comment(i.Path), comment(i.Why))
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func orInt(a, b int) int {
	if a != 0 {
		return a
	}
	return b
}

func orSize(a, b Size) Size {
	if a != 0 {
		return a
	}
	return b
}

// sizeText writes a size so that it is read as the same.
func sizeText(s Size) string {
	for shift, unit := range map[int]string{40: "TiB", 30: "GiB", 20: "MiB"} {
		if s > 0 && s%(1<<shift) == 0 && s>>shift < 1024 {
			return fmt.Sprintf("%d%s", s>>shift, unit)
		}
	}
	return fmt.Sprint(int64(s))
}

// comment makes a text that may be anything fit into the rest of a line.
func comment(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r == '\u0085' || r == unicode.ReplacementChar || !unicode.IsPrint(r) && r != ' ' {
			return '?'
		}
		return r
	}, s)
}

func text(s string) *yaml.Node {
	n := &yaml.Node{}
	if n.SetString(s); strings.ContainsFunc(s, unicode.IsControl) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// forPeople puts the keys first that people look at.
func forPeople(fields []field) []field {
	order := []string{"name", "source", "ova_disk", "refused", "machine", "type", "os_version", "bucket", "key", "format", "min_disk", "virtual_size", "data_size"}
	rank := func(f field) int {
		if at := slices.Index(order, f.name); at >= 0 {
			return at
		}
		return len(order)
	}
	slices.SortStableFunc(fields, func(a, b field) int { return rank(a) - rank(b) })
	return fields
}

// scalar is a text as YAML writes it in one line.
func scalar(s string) string {
	b, err := yaml.Marshal(text(s))
	if err != nil {
		return strconv.Quote(s)
	}
	return strings.TrimSpace(string(b))
}

// fieldsNode is a group of the keys of a struct that are set, in their order. note gives a key's comment.
func fieldsNode(v reflect.Value, note func(field, reflect.Value) string) *yaml.Node {
	m := &yaml.Node{Kind: yaml.MappingNode}
	for _, f := range forPeople(fieldsOf(v.Type())) {
		value := v.FieldByIndex(f.index)
		if value.IsZero() {
			continue
		}
		n := valueNode(value)
		if n == nil {
			continue
		}
		if note != nil {
			if said := note(f, value); said != "" {
				n.LineComment = "# " + comment(said)
			}
		}
		m.Content = append(m.Content, text(f.name), n)
	}
	return m
}

func valueNode(v reflect.Value) *yaml.Node {
	plain := func(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }
	switch x := v.Interface().(type) {
	case Size:
		return plain(strconv.FormatInt(int64(x), 10))
	case Rate:
		return plain(sizeText(Size(x)) + "/s")
	case Duration:
		return plain(time.Duration(x).String())
	case string:
		return text(x)
	case int:
		return plain(strconv.Itoa(x))
	case bool:
		return plain(strconv.FormatBool(x))
	case *bool:
		return plain(strconv.FormatBool(*x))
	case []string:
		n := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, s := range x {
			n.Content = append(n.Content, text(s))
		}
		return n
	case map[string]string:
		n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
		for _, key := range slices.Sorted(maps.Keys(x)) {
			n.Content = append(n.Content, text(key), text(x[key]))
		}
		if len(x) == 0 {
			return nil
		}
		return n
	}
	return nil
}

// encodeIndented writes a node two columns to the right.
func encodeIndented(b *bytes.Buffer, n *yaml.Node) error {
	if n.Kind == yaml.MappingNode && len(n.Content) == 0 {
		return nil
	}
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return err
	}
	if err := e.Close(); err != nil {
		return err
	}
	for line := range strings.Lines(out.String()) {
		if strings.TrimSpace(line) != "" {
			b.WriteString("  ")
		}
		b.WriteString(line)
	}
	return nil
}
