// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
)

// Load reads a plan file and checks it as a whole. What is wrong in it comes back as a *[PlanError] with
// the places; a single image's values are checked when it is that image's turn.
func Load(file string) (*Plan, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPlanBytes+1))
	if err != nil {
		return nil, err
	}
	return Parse(file, b)
}

// Parse is [Load] for a file that was read already. The file's name is for messages, its folder is where
// relative paths start from.
func Parse(file string, b []byte) (*Plan, error) {
	root, err := parseYAML(file, b)
	if err != nil {
		return nil, err
	}
	p := &Plan{File: file, Dir: filepath.Dir(file)}
	d := &decoder{problems: &problems{file: file}, mark: func(v reflect.Value, n *yaml.Node) {
		if v.Type() == reflect.TypeFor[Image]() {
			v.FieldByName("Line").SetInt(int64(n.Line))
			v.FieldByName("Column").SetInt(int64(n.Column))
		}
	}}
	// Of another version other keys are right, so that nothing else is worth telling.
	if root.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(root.Content); i += 2 {
			if k, v := root.Content[i], root.Content[i+1]; k.Value == "version" && v.Value != fmt.Sprint(Version) {
				d.at(v, "this is version %q of the plan file; this program reads version %d", v.Value, Version)
				return nil, d.err()
			}
		}
	}
	d.value(root, reflect.ValueOf(p).Elem(), "the plan", "")
	if err := d.err(); err != nil {
		return nil, err
	}
	p.complete()
	p.check(d.problems)
	if err := d.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// complete fills in the limits, and each image's settings from the defaults.
func (p *Plan) complete() {
	l := &p.Limits
	l.Images = cmp.Or(l.Images, DefaultImagesAtOnce)
	l.Memory = cmp.Or(l.Memory, DefaultMemory)
	l.Jobs = cmp.Or(l.Jobs, DefaultJobs)
	l.Attempts = cmp.Or(l.Attempts, DefaultAttempts)
	for n := range p.Images {
		s := &p.Images[n].Settings
		tags := maps.Clone(p.Defaults.Tags)
		if tags == nil {
			tags = map[string]string{}
		}
		maps.Copy(tags, s.Tags)
		s.Type = cmp.Or(s.Type, p.Defaults.Type, TypeSystem)
		own, common := reflect.ValueOf(s).Elem(), reflect.ValueOf(p.Defaults.Settings)
		for i := range own.NumField() {
			// A default that is about the other kind of disk isn't meant for this one.
			of := own.Type().Field(i).Tag.Get("of")
			if own.Field(i).IsZero() && (of == "" || of == s.Type) {
				own.Field(i).Set(common.Field(i))
			}
		}
		s.Tags = tags
		s.Timeout, s.Poll = cmp.Or(s.Timeout, Duration(DefaultTimeout)), cmp.Or(s.Poll, Duration(DefaultPoll))
	}
}

// check finds what is wrong with the plan as a whole: above all, images that would get in each other's
// way.
func (p *Plan) check(d *problems) {
	if rule := checkBatchName(p.Name); p.Name != "" && rule != "" {
		d.add(0, 0, "the batch's name %q %s", p.Name, rule)
	}
	if p.Limits.Memory < MinMemory {
		d.add(0, 0, "limits: memory is %v; it is %v at least", p.Limits.Memory, Size(MinMemory))
	}
	if share := p.Memory(); p.Limits.Memory >= MinMemory && share < MinMemory {
		d.add(0, 0, "limits: memory of %v leaves %v for each of %d images at once; it is %v at least", p.Limits.Memory, Size(share), p.Limits.Images, Size(MinMemory))
	}
	if r := p.Limits.Rate; r > 0 && r < obs.MinLimitRate {
		d.add(0, 0, "limits: rate is %v; it is %v at least", r, Rate(obs.MinLimitRate))
	}
	if len(p.Images) == 0 {
		d.add(0, 0, "there are no images in it")
	}
	names, keys, sources, systems := map[string]*Image{}, map[string]*Image{}, map[string]*Image{}, map[string]*Image{}
	for n := range p.Images {
		i := &p.Images[n]
		bad := func(format string, args ...any) { d.add(i.Line, i.Column, format, args...) }
		clash := func(seen map[string]*Image, key string, format string, args ...any) {
			if other := seen[key]; other != nil {
				bad(format+", as the image in line %d", append(args, other.Line)...)
				return
			}
			seen[key] = i
		}
		if rule := checkEntryName(i.Name); rule != "" {
			bad("the name %q %s", i.Name, rule)
			continue
		}
		if i.Source == "" {
			bad("image %q has no source", i.Name)
			continue
		}
		clash(names, i.Name, "the name %q is taken", i.Name)
		if i.Skip || i.Refused != "" {
			continue
		}
		if i.Key != "" {
			clash(keys, i.Bucket+"\x00"+stem(i.Key), "image %q has the key %q, with or without another ending", i.Name, i.Key)
		} else {
			clash(sources, i.Bucket+"\x00"+p.Path(i.Source)+"\x00"+i.OVADisk,
				"image %q has the same source, %q, and neither has a key of its own", i.Name, i.Source)
		}
		if i.Machine != "" {
			if rule := ims.TagProblem(ims.Tag{Key: MachineTag, Value: i.Machine}); rule != "" {
				bad("the machine %q can't be a tag: %s", i.Machine, rule)
			}
			if i.Type == TypeSystem {
				clash(systems, i.Machine, "image %q is the system disk of the machine %q", i.Name, i.Machine)
			}
		}
	}
}

// stem is a key without the ending of a format or a bitmap: objects of the same stem may share a bitmap.
func stem(key string) string {
	switch ext := path.Ext(key); ext {
	case ".raw", ".zvhd2", ".mf":
		return strings.TrimSuffix(key, ext)
	}
	return key
}

// Path is where a path in the plan leads.
func (p *Plan) Path(name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(p.Dir, name)
}

// Find returns the image of a name, nil if there is none.
func (p *Plan) Find(name string) *Image {
	at := slices.IndexFunc(p.Images, func(i Image) bool { return i.Name == name })
	if at < 0 {
		return nil
	}
	return &p.Images[at]
}

// checkEntryName is about what a name must be for this package; the service's own rules are checked with
// the rest of a request.
func checkEntryName(s string) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > 4*ims.MaxNameLength:
		return "is too long"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "has control characters"
	}
	return ""
}

// checkBatchName: it is the name of a folder.
func checkBatchName(s string) string {
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.') {
			return "may have letters, digits, dots, hyphens and underscores"
		}
	}
	if len(s) > 64 || strings.HasPrefix(s, ".") || strings.HasSuffix(s, ".") {
		return "must have at most 64 characters, and no dot at its ends"
	}
	return ""
}
