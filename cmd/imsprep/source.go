// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/convert"
)

// sourceFlags are the flags of commands that open a disk; the names are qemu-img's where it has them.
type sourceFlags struct {
	format       string
	backing      bool
	backingDirs  []string
	force        bool
	scratch      string
	archiveDisk  string
	originalSize bool
	vhdSize      string
}

func (s *sourceFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&s.format, "format-in", "f", "", "the source's format ("+strings.Join(convert.FormatNames(), ", ")+"); told by its content if absent")
	f.BoolVar(&s.backing, "allow-backing", false, "follow backing files and parent disks: plain names in the disk's own folder or in a --backing-dir")
	f.StringArrayVar(&s.backingDirs, "backing-dir", nil, "another folder in which they may lie (repeatable; with --allow-backing)")
	f.BoolVar(&s.force, "force", false, "read a disk that is marked damaged but can be read; never what is unsafe")
	f.StringVar(&s.scratch, "scratch", "", "unpack a compressed disk (.gz, .xz, .zst, .bz2) once, to a file in this folder, instead of as often as it is read")
	f.StringVar(&s.archiveDisk, "ova-disk", "", "the file to take from an OVA or another archive that has several")
	f.BoolVar(&s.originalSize, "original-size", false, "of ZVHD and ZVHD2, the size of the disk that it was made from, not whole GiB")
	f.StringVar(&s.vhdSize, "vhd-size", "", "which size of a VHD counts where its two differ: current_size, chs (default: by who wrote it)")
	_ = cmd.RegisterFlagCompletionFunc("vhd-size", cobra.FixedCompletions([]string{convert.VHDSizeCurrent, convert.VHDSizeGeometry}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("format-in", cobra.FixedCompletions(convert.FormatNames(), cobra.ShellCompDirectiveNoFileComp))
}

func (s *sourceFlags) options() (convert.OpenOptions, error) {
	if len(s.backingDirs) > 0 && !s.backing {
		return convert.OpenOptions{}, usagef("--backing-dir has a meaning only with --allow-backing")
	}
	if s.format != "" && !slices.Contains(convert.FormatNames(), s.format) {
		return convert.OpenOptions{}, usagef("--format-in %q: it is one of %s", s.format, strings.Join(convert.FormatNames(), ", "))
	}
	if s.vhdSize != "" && s.vhdSize != convert.VHDSizeCurrent && s.vhdSize != convert.VHDSizeGeometry {
		return convert.OpenOptions{}, usagef("--vhd-size %q: it is %s or %s", s.vhdSize, convert.VHDSizeCurrent, convert.VHDSizeGeometry)
	}
	return convert.OpenOptions{
		Format:       s.format,
		AllowBacking: s.backing,
		BackingDirs:  s.backingDirs,
		Force:        s.force,
		ScratchDir:   s.scratch,
		ArchiveDisk:  s.archiveDisk,
		OriginalSize: s.originalSize,
		VHDSize:      s.vhdSize,
	}, nil
}

// byteSize is a flag's value in bytes, written as 16777216, 16MiB, 16M or 16m (powers of 1,024, as
// qemu-img's).
type byteSize int64

var sizeUnits = map[string]int64{"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

func (b *byteSize) Set(s string) error {
	digits := strings.TrimRight(strings.ToLower(strings.TrimSpace(s)), "bikmgt")
	suffix := strings.ToLower(strings.TrimSpace(s))[len(digits):]
	unit, ok := sizeUnits[strings.TrimSuffix(strings.TrimSuffix(suffix, "b"), "i")]
	n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
	if !ok || err != nil || n < 0 || n > math.MaxInt64/unit {
		return fmt.Errorf("%q isn't a size such as 16MiB", s)
	}
	*b = byteSize(n * unit)
	return nil
}

func (b *byteSize) String() string {
	if *b == 0 {
		return ""
	}
	return humanize.IBytes(uint64(*b))
}

func (b *byteSize) Type() string { return "size" }
