// SPDX-License-Identifier: Apache-2.0

package vmdk

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// checkName returns why a name in a descriptor is not a plain file name on every system that a
// disk may be taken to. Such names are the image author's; a plain one can only mean a file
// beside the descriptor.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("is empty")
	case len(name) > maxNameBytes:
		return errors.New("is too long")
	case !utf8.ValidString(name):
		return errors.New("is not in UTF-8")
	case name == "." || name == "..":
		return errors.New("is a folder")
	case strings.ContainsAny(name, `/\:`):
		return errors.New("is not a plain file name but a path, a drive or a URL")
	case strings.HasSuffix(name, ".") || strings.HasSuffix(name, " "):
		return errors.New("ends in a dot or a blank, which Windows takes for another name")
	}
	for _, c := range name {
		if unicode.Is(unicode.C, c) || c == '\u2028' || c == '\u2029' {
			return errors.New("has control characters")
		}
	}
	if isDevice(name) {
		return errors.New("is the name of a device on Windows")
	}
	return nil
}

// isDevice tells whether Windows takes a name for a device, which it does whatever its suffix is.
func isDevice(name string) bool {
	stem, _, _ := strings.Cut(name, ".")
	stem = strings.ToUpper(strings.TrimRight(stem, " "))
	switch stem {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$":
		return true
	}
	for _, port := range []string{"COM", "LPT"} {
		if n, ok := strings.CutPrefix(stem, port); ok {
			switch n {
			case "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "¹", "²", "³":
				return true
			}
		}
	}
	return false
}

// parentName returns the last element of a path as either Windows or another system writes it, ""
// if that is not a plain name.
func parentName(hint string) string {
	name := hint[strings.LastIndexAny(hint, `/\`)+1:]
	if checkName(name) != nil {
		return ""
	}
	return name
}
