// SPDX-License-Identifier: Apache-2.0

package vhd

import (
	"encoding/binary"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	locators      = 8  // "Parent Locator Entry" fields
	locatorBytes  = 24 // of such a field
	maxLocator    = 64 << 10
	maxParentName = 255 // bytes of a plain name
)

// readParentNames collects what the header h says of the parent's place. The texts name files on
// the machine where the disk was made; only their last elements are kept, and nothing here opens
// them.
func (m *Metadata) readParentNames(h []byte) error {
	names := map[string]string{"name": plainName(decodeUTF16(h[64:64+512], binary.BigEndian))}
	for i := range locators {
		l := h[576+i*locatorBytes:][:locatorBytes]
		code := string(l[:4])
		length, offset := binary.BigEndian.Uint32(l[8:]), binary.BigEndian.Uint64(l[16:])
		if code != "W2ru" && code != "W2ku" && code != "MacX" || length == 0 {
			continue
		}
		if length > maxLocator || offset > uint64(m.fileSize) || int64(length) > m.fileSize-int64(offset) {
			return bad("parent locator %d of %d bytes at %d is too long or outside of the file of %d bytes",
				i, length, offset, m.fileSize)
		}
		text := make([]byte, length)
		if err := readFull(m.r, text, int64(offset)); err != nil {
			return fmt.Errorf("read parent locator %d: %w", i, err)
		}
		if code == "MacX" {
			s, _, _ := strings.Cut(string(text), "\x00")
			if s, err := url.PathUnescape(s); err == nil {
				names[code] = plainName(s)
			}
			continue
		}
		names[code] = plainName(decodeUTF16(text, binary.LittleEndian))
	}
	for _, kind := range []string{"W2ru", "name", "W2ku", "MacX"} {
		if n := names[kind]; n != "" && !slices.Contains(m.ParentNames, n) {
			m.ParentNames = append(m.ParentNames, n)
		}
	}
	return nil
}

// decodeUTF16 returns the text in p up to its first NUL.
func decodeUTF16(p []byte, order binary.ByteOrder) string {
	var units []uint16
	for ; len(p) >= 2; p = p[2:] {
		u := order.Uint16(p)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
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
