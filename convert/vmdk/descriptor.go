// SPDX-License-Identifier: Apache-2.0

package vmdk

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// descriptor is a parsed descriptor ("The Descriptor File").
type descriptor struct {
	version    int
	createType string // as written
	cid        string // 8 hexadecimal digits, "" if not stated
	parentCID  string // likewise, "" if there is no parent
	parentHint string
	encoding   string
	hardware   string // ddb.virtualHWVersion
	virtualBox bool   // it has keys that only VirtualBox writes
	tracked    bool   // it has a change tracking file
	extents    []extentLine
}

// extentLine is a line of the extent description.
type extentLine struct {
	access  string
	sectors int64
	kind    string // upper case
	name    string // "" if there is none
	offset  int64  // sectors into the file
}

const noParent = "ffffffff"

// parseDescriptor reads a descriptor. What follows the first NUL is padding. In an embedded
// descriptor lines that mean nothing are skipped, since its extent lines are not relied on;
// elsewhere such a line may be a mangled extent, without which the disk would be another one.
func parseDescriptor(text []byte, embedded bool) (*descriptor, error) {
	text, _, _ = bytes.Cut(text, []byte{0})
	text = bytes.TrimPrefix(text, []byte("\xEF\xBB\xBF"))
	d := &descriptor{}
	seen := make(map[string]string)
	first := true
	for number := 1; len(text) > 0; number++ {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		if len(line) > maxLineBytes {
			return nil, bad("line %d of the descriptor has %d bytes, more than %d", number, len(line), maxLineBytes)
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		l := string(line)
		access, _, _ := strings.Cut(strings.ReplaceAll(l, "\t", " "), " ")
		switch strings.ToUpper(access) {
		case "RW", "RDONLY", "NOACCESS":
			if first && !embedded {
				return nil, bad("the descriptor does not begin with its version")
			}
			e, err := parseExtent(l)
			if err != nil {
				return nil, bad("line %d of the descriptor, %.100q, is not an extent: %v", number, l, err)
			}
			if len(d.extents) == maxExtents {
				return nil, bad("the descriptor has more than %d extents", maxExtents)
			}
			d.extents = append(d.extents, e)
			continue
		}
		key, value, ok := strings.Cut(l, "=")
		if !ok {
			if embedded {
				continue
			}
			return nil, bad("line %d of the descriptor, %.100q, is neither an extent nor a setting", number, l)
		}
		key = strings.ToLower(strings.TrimSpace(key))
		if first && !embedded && key != "version" {
			return nil, bad("the descriptor begins with %.100q, not with its version", l)
		}
		first = false
		if err := d.set(key, unquote(strings.TrimSpace(value)), seen); err != nil {
			return nil, err
		}
	}
	return d, d.check()
}

func unquote(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// set takes a setting over. Contradicting settings of what matters are refused, since tools
// differ in which one they take.
func (d *descriptor) set(key, value string, seen map[string]string) error {
	switch key {
	case "version", "cid", "parentcid", "createtype", "parentfilenamehint":
		if old, ok := seen[key]; ok && old != value {
			return bad("the descriptor says both %s=%.100q and %.100q", key, old, value)
		}
		seen[key] = value
	}
	var err error
	switch key {
	case "version":
		if d.version, err = strconv.Atoi(value); err != nil || d.version < 1 || d.version > 3 {
			return bad("the descriptor's version %.100q is not 1, 2 or 3", value)
		}
	case "cid":
		d.cid, err = parseCID(value)
	case "parentcid":
		if d.parentCID, err = parseCID(value); d.parentCID == noParent {
			d.parentCID = ""
		}
	case "createtype":
		d.createType = value
	case "parentfilenamehint":
		d.parentHint = value
	case "encoding":
		d.encoding = value
	case "ddb.virtualhwversion":
		d.hardware = value
	case "ddb.uuid.image":
		d.virtualBox = true
	case "changetrackpath":
		d.tracked = value != ""
	}
	if err != nil {
		return bad("the descriptor's %s=%.100q is not a number of 32 bits in hexadecimal", key, value)
	}
	return nil
}

func parseCID(value string) (string, error) {
	n, err := strconv.ParseUint(value, 16, 32)
	return fmt.Sprintf("%08x", n), err
}

func (d *descriptor) check() error {
	switch {
	case d.version == 0:
		return bad("the descriptor has no version")
	case d.createType == "":
		return bad("the descriptor has no createType")
	case d.parentCID == "" && d.parentHint != "":
		// QEMU goes by the name, others by the number. Which one is right cannot be known.
		return bad("the descriptor names a parent, %.100q, but its parentCID says that there is none", d.parentHint)
	}
	return nil
}

// parseExtent reads `ACCESS SECTORS TYPE ["file name" [OFFSET ...]]`.
func parseExtent(line string) (extentLine, error) {
	var e extentLine
	var sectors string
	e.access, line = word(line)
	e.access = strings.ToUpper(e.access)
	sectors, line = word(line)
	e.kind, line = word(line)
	e.kind = strings.ToUpper(e.kind)
	var err error
	if e.sectors, err = parseSectors(sectors); err != nil || e.sectors == 0 {
		return e, fmt.Errorf("%.100q is not a number of sectors", sectors)
	}
	switch e.kind {
	case "ZERO":
		return e, nil
	case "FLAT", "SPARSE", "VMFS", "VMFSSPARSE", "SESPARSE":
	case "VMFSRDM", "VMFSRAW":
		// Refused later, in better words.
		return e, nil
	default:
		return e, fmt.Errorf("its type %.100q is unknown", e.kind)
	}
	if !strings.HasPrefix(line, `"`) {
		return e, fmt.Errorf("its file name is not in quotation marks")
	}
	name, rest, ok := strings.Cut(line[1:], `"`)
	if !ok {
		return e, fmt.Errorf("its file name does not end")
	}
	e.name = name
	offset, rest := word(strings.TrimLeft(rest, " \t"))
	switch {
	case offset == "" && e.kind == "FLAT":
		return e, fmt.Errorf("it has no offset")
	case offset == "":
		return e, nil
	}
	if e.offset, err = parseSectors(offset); err != nil {
		return e, fmt.Errorf("%.100q is not an offset", offset)
	}
	if e.offset != 0 && e.kind != "FLAT" {
		return e, fmt.Errorf("its offset %d has no meaning for the type %s", e.offset, e.kind)
	}
	if rest != "" {
		return e, fmt.Errorf("%.100q follows, as for partitions of devices", rest)
	}
	return e, nil
}

// word splits the first word off a line.
func word(line string) (first, rest string) {
	i := strings.IndexAny(line, " \t")
	if i < 0 {
		return line, ""
	}
	return line[:i], strings.TrimLeft(line[i:], " \t")
}

// parseSectors reads a number of sectors whose bytes can be counted.
func parseSectors(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err == nil && n > math.MaxInt64/sectorSize {
		err = strconv.ErrRange
	}
	return int64(n), err
}

// layout is what a createType means.
type layout int

const (
	layoutUnknown layout = iota
	layoutHosted         // sparse extents that may have their descriptor inside
	layoutFiles          // a descriptor of its own
	layoutDevice         // a physical device
)

// layoutOf returns the meaning of a createType, and its usual spelling.
func layoutOf(createType string) (string, layout) {
	for _, t := range []struct {
		name   string
		layout layout
	}{
		{monolithicSparse, layoutHosted}, {streamOptimized, layoutHosted},
		{monolithicFlat, layoutFiles}, {twoGbMaxExtentSpars, layoutFiles}, {twoGbMaxExtentFlat, layoutFiles},
		{"vmfs", layoutFiles}, {"vmfsThin", layoutFiles}, {"vmfsPreallocated", layoutFiles},
		{"vmfsEagerZeroedThick", layoutFiles}, {vmfsSparse, layoutFiles}, {seSparse, layoutFiles},
		{"custom", layoutDevice}, {"fullDevice", layoutDevice}, {"partitionedDevice", layoutDevice},
		{"vmfsRaw", layoutDevice}, {"vmfsRDM", layoutDevice}, {"vmfsRDMP", layoutDevice},
		{"vmfsRawDeviceMap", layoutDevice}, {"vmfsPassthroughRawDeviceMap", layoutDevice},
	} {
		if strings.EqualFold(t.name, createType) {
			return t.name, t.layout
		}
	}
	switch strings.ToLower(createType) {
	case "2gbmaxextentsparse":
		return twoGbMaxExtentSpars, layoutFiles
	case "2gbmaxextentflat":
		return twoGbMaxExtentFlat, layoutFiles
	}
	return "", layoutUnknown
}
