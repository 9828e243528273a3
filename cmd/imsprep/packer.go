// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/packer"
)

// packerFlags name a disk by the manifest of the Packer build that made it.
type packerFlags struct{ manifest, build, disk string }

func (p *packerFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.manifest, "packer-manifest", "", "instead of SRC, take the disk of the last run in this file of Packer's manifest post-processor")
	f.StringVar(&p.build, "build", "", "which build of that run, as NAME or TYPE.NAME, where it has several")
	f.StringVar(&p.disk, "packer-disk", "", "which file of that build, where it has several disks")
	_ = cmd.MarkFlagFilename("packer-manifest", "json")
}

// args is the check of the arguments: a source is named in one way.
func (p *packerFlags) args(cmd *cobra.Command, args []string) error {
	switch {
	case p.manifest != "":
		if len(args) > 0 {
			return fmt.Errorf("the source is named twice: by %q and by --packer-manifest", args[0])
		}
		return nil
	case p.build != "" || p.disk != "":
		return errors.New("--build and --packer-disk choose from a --packer-manifest, which isn't given")
	}
	return cobra.ExactArgs(1)(cmd, args)
}

// source is the disk that the flags name. Relative names in a manifest count from the folder where Packer
// ran, which it doesn't tell: the manifest's own folder as a rule, else this one.
func (p *packerFlags) source(a *app) (string, error) {
	f, err := os.Open(p.manifest)
	if err != nil {
		return "", err
	}
	defer f.Close()
	m, err := packer.ParseManifest(f)
	if err != nil {
		return "", usagef("the Packer manifest %s: %w", p.manifest, err)
	}
	b, err := m.Build(p.build)
	if err != nil {
		return "", usagef("the Packer manifest %s: %w\n  Give --build NAME, as one of the names that it lists.", p.manifest, err)
	}
	name, err := packer.Disk(b.BuilderType, b.FileNames(), p.disk)
	if err != nil {
		err = usagef("the Packer manifest %s, build %q: %w", p.manifest, b.FullName(), err)
		var d *packer.DiskError
		if errors.As(err, &d) && len(d.Disks) > 1 {
			err = fmt.Errorf("%w\n  Give --packer-disk NAME for one of them, or that file instead of the manifest", err)
		}
		return "", err
	}
	path := filepath.FromSlash(name)
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(p.manifest), path)
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) && !filepath.IsAbs(filepath.FromSlash(name)) {
		if here, herr := os.Stat(filepath.FromSlash(name)); herr == nil {
			path, info, err = filepath.FromSlash(name), here, nil
		}
	}
	if err != nil {
		return "", fmt.Errorf("the disk of the build %q in the Packer manifest %s: %w\n"+
			"  Files of a manifest are looked for from its folder on, then from this one. A later build may have removed it,\n"+
			"  as a post-processor does that doesn't keep its input artifact", b.FullName(), p.manifest, err)
	}
	for _, f := range b.Files {
		if f.Name == name && f.Size != info.Size() {
			a.warn([]string{fmt.Sprintf("%s has %d bytes, but %d when Packer had built it: it was changed since", path, info.Size(), f.Size)})
		}
	}
	if !a.flags.quiet && !a.flags.json {
		a.say("build %s of Packer's run %s: %s", b.FullName(), b.PackerRunUUID, path)
	}
	return path, nil
}
