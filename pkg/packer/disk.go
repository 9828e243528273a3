// SPDX-License-Identifier: Apache-2.0

package packer

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// DiskError says that an artifact's files have no disk, or several.
type DiskError struct {
	Builder string   // what made the artifact
	Want    string   // the name that was asked for, "" for none
	Disks   []string // those that could be meant
	Files   []string // all files of the artifact
}

func (e *DiskError) Error() string {
	switch {
	case e.Want != "" && len(e.Disks) == 0:
		return fmt.Sprintf("the artifact of the builder %q has no file %q%s", e.Builder, e.Want, list(e.Files))
	case e.Want != "":
		return fmt.Sprintf("the artifact of the builder %q has several files %q%s", e.Builder, e.Want, list(e.Disks))
	case len(e.Files) == 0:
		return fmt.Sprintf("the artifact of the builder %q has no files", e.Builder)
	case len(e.Disks) == 0:
		return fmt.Sprintf("the artifact of the builder %q has no disk among its files%s", e.Builder, list(e.Files))
	}
	return fmt.Sprintf("the artifact of the builder %q has several disks%s", e.Builder, list(e.Disks))
}

// maxListed bounds how many files an error names.
const maxListed = 20

func list(names []string) string {
	more := ""
	if n := len(names) - maxListed; n > 0 {
		names, more = names[:maxListed], fmt.Sprintf("\n    and %d more", n)
	}
	if len(names) == 0 {
		return ""
	}
	return ":\n    " + strings.Join(names, "\n    ") + more
}

var (
	containers  = []string{".ova", ".ovf"}
	disks       = []string{".qcow2", ".qcow", ".qed", ".raw", ".img", ".vmdk", ".vhdx", ".vhd", ".vdi", ".zvhd", ".zvhd2"}
	compressed  = []string{".gz", ".xz", ".zst", ".bz2"}
	notForQEMU  = []string{".fd", ".iso", ".json", ".log", ".txt", ".box", ".nvram", ".xml", ".sig", ".asc", ".md5", ".sha1", ".sha256", ".sha512", ".checksum"}
	vmdkExtents = regexp.MustCompile(`(?i)^(.*?)-(s\d+|f\d+|flat|delta|sesparse|ctk|rdm|rdmp)\.vmdk$`)
)

// Disk finds the disk among the files of an artifact. builder is the type of the builder, as in a manifest,
// or an artifact's builder id; want, if it isn't empty, is the file's name or the last part of it. The error
// is a *[DiskError].
//
// A package (OVA, OVF) is taken before the disks that belong to it, a VMDK's descriptor before its extents, and
// of Hyper-V what is in "Virtual Hard Disks" and isn't a checkpoint. QEMU's disks need no ending, since that is
// how its builder names them.
func Disk(builder string, files []string, want string) (string, error) {
	e := &DiskError{Builder: builder, Want: want, Files: files}
	if want != "" {
		for _, f := range files {
			if f == want || base(f) == want {
				e.Disks = append(e.Disks, f)
			}
		}
		if i := slices.Index(e.Disks, want); i >= 0 {
			return e.Disks[i], nil
		}
	} else {
		e.Disks = candidates(strings.ToLower(builder), files)
	}
	if len(e.Disks) != 1 {
		return "", e
	}
	return e.Disks[0], nil
}

func candidates(builder string, files []string) []string {
	keep := func(ok func(f string) bool) (kept []string) {
		for _, f := range files {
			if ok(f) && !slices.Contains(kept, f) {
				kept = append(kept, f)
			}
		}
		return kept
	}
	ends := func(endings []string) func(string) bool {
		return func(f string) bool { return slices.Contains(endings, ending(f)) && !isExtent(f, files) }
	}
	if found := keep(ends(containers)); len(found) > 0 {
		return found
	}
	switch {
	case strings.Contains(builder, "hyperv"):
		if found := keep(func(f string) bool {
			return ends([]string{".vhdx", ".vhd"})(f) && strings.EqualFold(base(path.Dir(slashes(f))), "Virtual Hard Disks")
		}); len(found) > 0 {
			return found
		}
	case strings.Contains(builder, "vmware"), strings.Contains(builder, "vsphere"):
		if found := keep(ends([]string{".vmdk"})); len(found) > 0 {
			return found
		}
	case strings.Contains(builder, "qemu"):
		return keep(func(f string) bool { return !slices.Contains(notForQEMU, ending(f)) })
	}
	return keep(ends(disks))
}

// isExtent tells whether a file is an extent of a VMDK whose descriptor is among the files, too.
func isExtent(f string, files []string) bool {
	m := vmdkExtents.FindStringSubmatch(slashes(f))
	return m != nil && slices.ContainsFunc(files, func(d string) bool { return strings.EqualFold(slashes(d), m[1]+".vmdk") })
}

// ending is a name's extension in lower case, without those of compression.
func ending(f string) string {
	name := strings.ToLower(base(f))
	for _, c := range compressed {
		name = strings.TrimSuffix(name, c)
	}
	return path.Ext(name)
}

// slashes is a path as on Unix: a manifest may come from Windows.
func slashes(f string) string { return strings.ReplaceAll(f, `\`, "/") }

func base(f string) string { return path.Base(slashes(f)) }
