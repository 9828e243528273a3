// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	p, err := Parse("dir/plan.yaml", []byte(`version: 1
name: move
limits: {images: 2, memory: 256MiB, rate: 50MiB/s}
defaults:
  bucket: images
  os_version: Ubuntu
  firmware: uefi
  tags: {team: x, env: prod}
  verify: true
images:
  - name: web
    source: web.qcow2
    tags: {env: test}
    verify: false
  - name: data
    source: /disks/data.vmdk
    type: data
    timeout: 30m
`))
	if err != nil {
		t.Fatal(err)
	}
	web, data := p.Images[0], p.Images[1]
	switch {
	case p.Limits != Limits{2, 256 << 20, 50 << 20, DefaultJobs, DefaultAttempts}:
		t.Errorf("limits %+v", p.Limits)
	case web.OSVersion != "Ubuntu" || web.Type != TypeSystem || web.Bucket != "images" || *web.Verify:
		t.Errorf("web is %+v", web)
	case web.Tags["team"] != "x" || web.Tags["env"] != "test" || data.Tags["env"] != "prod":
		t.Errorf("tags %v and %v", web.Tags, data.Tags)
	case data.OSVersion != "" || data.Firmware != "" || !*data.Verify || time.Duration(data.Timeout) != 30*time.Minute:
		t.Errorf("data is %+v", data)
	case web.Line != 11 || web.Column != 5:
		t.Errorf("web is at %d:%d", web.Line, web.Column)
	case p.Path(web.Source) != "dir/web.qcow2" || p.Path(data.Source) != "/disks/data.vmdk":
		t.Errorf("paths %q and %q", p.Path(web.Source), p.Path(data.Source))
	}
}

func TestParseRefuses(t *testing.T) {
	const head = "version: 1\nimages:\n"
	for _, tc := range []struct{ name, plan, want string }{
		{"nothing", "", "p.yaml: it is empty"},
		{"a comment", "# nothing\n", "p.yaml: it is empty"},
		{"no mapping", "- a\n", "p.yaml:1:1: the plan is a group of keys"},
		{"syntax", "version: 1\nimages: [\n", "can't be read as YAML"},
		{"two documents", head + "- {name: a, source: a}\n---\nversion: 1\n", "more than one document"},
		{"version", "version: 2\nwhatever: x\n", `p.yaml:1:10: this is version "2"`},
		{"no version", "images:\n- {name: a, source: a}\n", `p.yaml:1:1: the plan lacks "version"`},
		{"unknown", head + "- {name: a, source: a, os-version: x}\n", `p.yaml:3:24: unknown key "os-version" in an item of images; "os_version" is meant?`},
		{"unknown, far off", head + "- {name: a, source: a, colour: x}\n", `unknown key "colour" in an item of images`},
		{"unknown in limits", "version: 1\nlimits:\n  image: 2\nimages:\n- {name: a, source: a}\n", `p.yaml:3:3: unknown key "image" in limits; "images" is meant?`},
		{"twice", head + "- {name: a, source: a, source: b}\n", "is there already"},
		{"alias", "version: 1\ndefaults: &d {bucket: b}\nimages:\n- {name: a, source: a}\n", "p.yaml:2:11: anchors and aliases"},
		{"merge", head + "- {name: a, source: a}\n- {<<: {source: b}, name: b}\n", `unknown key "<<"`},
		{"no list", "version: 1\nimages: {name: a}\n", "images is a list"},
		{"no number", "version: 1\nlimits: {images: many}\nimages: []\n", `images is a whole number, not "many"`},
		{"too many jobs", "version: 1\nlimits: {jobs: 41}\nimages: []\n", "jobs is 41; it is 40 at most"},
		{"no jobs", "version: 1\nlimits: {jobs: 0}\nimages: []\n", "jobs is 0; it is 1 at least"},
		{"size", "version: 1\nlimits: {memory: much}\nimages: []\n", `"much" isn't a size`},
		{"little memory", "version: 1\nlimits: {memory: 1MiB}\nimages: [{name: a, source: a}]\n", "memory is 1.0 MiB; it is 16 MiB at least"},
		{"thin shares", "version: 1\nlimits: {memory: 64MiB, images: 8}\nimages: [{name: a, source: a}]\n", "leaves 8.0 MiB for each of 8 images"},
		{"slow", "version: 1\nlimits: {rate: 1/s}\nimages: [{name: a, source: a}]\n", "rate is 1 B/s; it is"},
		{"duration", head + "- {name: a, source: a, timeout: -3s}\n", `"-3s" isn't a length of time`},
		{"one of", head + "- {name: a, source: a, type: disk}\n", `type is "disk"; it is one of system, data`},
		{"yes", head + "- {name: a, source: a, verify: yes}\n", "verify is true or false"},
		{"none", "version: 1\nimages: []\n", "there are no images"},
		{"empty item", head + "-\n", "an item of images is empty"},
		{"no name", head + "- source: a\n", `lacks "name"`},
		{"empty source", head + "- {name: a, source: }\n", `image "a" has no source`},
		{"control", head + `- {name: "a\e[2J", source: a}` + "\n", "has control characters"},
		{"same name", head + "- {name: a, source: a}\n- {name: a, source: b}\n", `p.yaml:4:3: the name "a" is taken, as the image in line 3`},
		{"same source", head + "- {name: a, source: a}\n- {name: b, source: ./a}\n", "has the same source"},
		{"same key", head + "- {name: a, source: a, key: x.raw}\n- {name: b, source: b, key: x.zvhd2}\n", "with or without another ending"},
		{"two systems", head + "- {name: a, source: a, machine: m}\n- {name: b, source: b, machine: m}\n", `image "b" is the system disk of the machine "m"`},
		{"machine", head + "- {name: a, source: a, machine: 'a/b'}\n", "can't be a tag"},
		{"batch name", "version: 1\nname: ../x\nimages: [{name: a, source: a}]\n", "may have letters"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse("p.yaml", []byte(tc.plan))
			var bad *PlanError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// TestParseAllows shows what looks like a clash and is none.
func TestParseAllows(t *testing.T) {
	for name, images := range map[string]string{
		"another disk of an archive": "- {name: a, source: x.ova, ova_disk: 1}\n- {name: b, source: x.ova, ova_disk: 2}\n",
		"keys of their own":          "- {name: a, source: x, key: a}\n- {name: b, source: x, key: b}\n",
		"another bucket":             "- {name: a, source: x, key: a}\n- {name: b, source: y, key: a, bucket: c}\n",
		"skipped":                    "- {name: a, source: x}\n- {name: b, source: x, skip: true}\n",
		"data disks of a machine":    "- {name: a, source: a, machine: m}\n- {name: b, source: b, machine: m, type: data}\n- {name: c, source: c, machine: m, type: data}\n",
	} {
		if _, err := Parse("p.yaml", []byte("version: 1\nimages:\n"+images)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
