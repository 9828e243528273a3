// SPDX-License-Identifier: Apache-2.0

// Package packer knows what builds of Packer leave behind: it reads the file that Packer's manifest
// post-processor writes, and finds the disk among an artifact's files.
//
// It depends on nothing of Packer's. The format of the manifest is what the post-processor's
// documentation shows: an object with "builds" of all runs that wrote to the file, each with the
// "packer_run_uuid" of its run, and "last_run_uuid".
package packer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// maxManifest bounds a manifest in bytes. It grows with every run, by some hundred bytes a file.
const maxManifest = 32 << 20

// Manifest is what the manifest post-processor has written.
type Manifest struct {
	Builds      []Build `json:"builds"`
	LastRunUUID string  `json:"last_run_uuid"`
}

// Build is one artifact of one run.
type Build struct {
	Name          string `json:"name"`         // of the source, without its type
	BuilderType   string `json:"builder_type"` // qemu, vmware-iso, ...
	BuildTime     int64  `json:"build_time"`   // seconds since 1970
	Files         []File `json:"files"`
	ArtifactID    string `json:"artifact_id"`
	PackerRunUUID string `json:"packer_run_uuid"`
}

// File is a file of an artifact. A relative name counts from the folder in which Packer ran.
type File struct {
	Name string `json:"name"`
	Size int64  `json:"size"` // bytes
}

// FullName is the build's name with its type, as Packer's command line has it.
func (b *Build) FullName() string {
	if b.BuilderType == "" {
		return b.Name
	}
	return b.BuilderType + "." + b.Name
}

// FileNames are the names of the build's files.
func (b *Build) FileNames() []string {
	names := make([]string, len(b.Files))
	for i, f := range b.Files {
		names[i] = f.Name
	}
	return names
}

// ParseManifest reads a manifest. What isn't one is an error; fields that are not known are left alone.
func ParseManifest(r io.Reader) (*Manifest, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxManifest {
		return nil, fmt.Errorf("it has more than %d MiB, which no manifest of Packer has", maxManifest>>20)
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("it is empty")
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("it isn't a manifest of Packer: %w", err)
	}
	if len(m.Builds) == 0 {
		return nil, errors.New("it holds no builds")
	}
	for i, b := range m.Builds {
		for _, f := range b.Files {
			if f.Name == "" || f.Size < 0 || strings.ContainsRune(f.Name, 0) {
				return nil, fmt.Errorf("build %d (%s): a file without a name, or of a negative size", i+1, b.FullName())
			}
		}
	}
	return &m, nil
}

// Build returns the build of the last run that name means: its name, or TYPE.NAME where several have the
// same. Without a name there must be only one. A build that is listed several times, because several
// post-processors wrote their artifacts, is the last of them that has files.
func (m *Manifest) Build(name string) (*Build, error) {
	run := m.LastRunUUID
	if run == "" { // older versions wrote none
		run = m.Builds[len(m.Builds)-1].PackerRunUUID
	}
	var names []string
	found := map[string]*Build{}
	for i := range m.Builds {
		b := &m.Builds[i]
		if b.PackerRunUUID != run {
			continue
		}
		full := b.FullName()
		if old, ok := found[full]; !ok {
			names = append(names, full)
		} else if len(b.Files) == 0 && len(old.Files) > 0 {
			continue
		}
		found[full] = b
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("it holds no build of its last run %s", run)
	}
	matching := names
	if name != "" {
		matching = slices.DeleteFunc(slices.Clone(names), func(full string) bool { return name != full && name != found[full].Name })
	}
	switch {
	case len(matching) == 1:
		return found[matching[0]], nil
	case len(matching) == 0:
		return nil, fmt.Errorf("its last run has no build %q; it has %s", name, strings.Join(names, ", "))
	case name != "":
		return nil, fmt.Errorf("its last run has several builds %q: %s", name, strings.Join(matching, ", "))
	}
	return nil, fmt.Errorf("its last run has several builds: %s", strings.Join(names, ", "))
}
