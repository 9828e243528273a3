// SPDX-License-Identifier: Apache-2.0

package vhdx

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxParentName = 255 // bytes of a plain file name
	maxLocatorKey = 64  // bytes; the keys that are looked at are shorter
)

// readLocator reads the "Parent Locator". The paths in it name files on the machine where the disk
// was made; only their last elements are kept, and nothing here opens them.
func (m *Metadata) readLocator(it item) error {
	p := make([]byte, it.length) // a metadata item is limited to 1 MB
	if err := readFull(m.file, p, m.metadata.offset+it.offset); err != nil {
		return fmt.Errorf("read the parent locator: %w", err)
	}
	le := binary.LittleEndian
	if len(p) < 20 {
		return bad("the parent locator of %d bytes is too short", len(p))
	}
	if kind := guid(p[:16]); kind.String() != guidLocatorVHDX {
		return bad("the parent locator has the unknown type %s", kind)
	}
	count := int(le.Uint16(p[18:]))
	if 20+12*count > len(p) {
		return bad("the parent locator of %d bytes is too short for %d entries", len(p), count)
	}
	values := map[string]string{}
	for i := range count {
		e := p[20+12*i:][:12]
		keyLength, valueLength := int64(le.Uint16(e[8:])), int64(le.Uint16(e[10:]))
		keyOffset, valueOffset := int64(le.Uint32(e)), int64(le.Uint32(e[4:]))
		if keyLength == 0 || keyOffset+keyLength > it.length || valueLength == 0 || valueOffset+valueLength > it.length {
			return bad("entry %d of the parent locator does not lie in its %d bytes", i, len(p))
		}
		if keyLength > maxLocatorKey {
			continue
		}
		key := decodeUTF16(p[keyOffset:][:keyLength])
		switch key {
		case "parent_linkage", "parent_linkage2", "relative_path", "volume_path", "absolute_win32_path":
		default:
			continue
		}
		if _, twice := values[key]; twice {
			return bad("the parent locator has the key %q twice", key)
		}
		values[key] = decodeUTF16(p[valueOffset:][:valueLength])
	}
	var ok bool
	if m.ParentID, ok = parseGUID(values["parent_linkage"]); !ok {
		return bad("parent_linkage %q of the parent locator is no GUID in braces", values["parent_linkage"])
	}
	if v, given := values["parent_linkage2"]; given {
		if m.ParentID2, ok = parseGUID(v); !ok {
			return bad("parent_linkage2 %q of the parent locator is no GUID in braces", v)
		}
	}
	for _, key := range []string{"relative_path", "volume_path", "absolute_win32_path"} {
		if n := plainName(values[key]); n != "" && !slices.Contains(m.ParentNames, n) {
			m.ParentNames = append(m.ParentNames, n)
		}
	}
	return nil
}

// parseGUID brings a GUID in braces into the notation of guid.String.
func parseGUID(s string) (string, bool) {
	if len(s) != 38 || s[0] != '{' || s[37] != '}' {
		return "", false
	}
	s = strings.ToLower(s[1:37])
	groups := strings.Split(s, "-")
	if len(groups) != 5 {
		return "", false
	}
	for i, n := range []int{8, 4, 4, 4, 12} {
		if _, err := hex.DecodeString(groups[i]); err != nil || len(groups[i]) != n {
			return "", false
		}
	}
	return s, true
}

// plainName returns the last element of a path of any system, or "" if that is no name that a file
// can safely be looked for by.
func plainName(path string) string {
	if i := strings.LastIndexAny(path, `/\:`); i >= 0 {
		path = path[i+1:]
	}
	if path == "" || path == "." || path == ".." || len(path) > maxParentName || !utf8.ValidString(path) {
		return ""
	}
	for _, r := range path {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ""
		}
	}
	return path
}
