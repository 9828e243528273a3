// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/dustin/go-humanize"
)

// printJSON writes the command's one JSON document.
func (a *app) printJSON(v any) error {
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	a.printed = true
	_, err = fmt.Fprintln(a.out, string(out))
	return err
}

// field is a line of a report for people: a name and what stands behind it.
type field struct{ name, value string }

// printable makes a text harmless for a terminal: names come from disks, folders and servers, and may
// hold escape sequences. Line ends stay.
func printable(s string) string {
	if strings.IndexFunc(s, isControl) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if isControl(r) {
			fmt.Fprintf(&b, "\\x%02x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func isControl(r rune) bool { return unicode.IsControl(r) && r != '\n' }

// printFields writes fields in two columns, leaving out those without a value.
func printFields(w io.Writer, fields []field) error {
	width := 0
	for _, f := range fields {
		if f.value != "" {
			width = max(width, len(f.name))
		}
	}
	for _, f := range fields {
		if f.value != "" {
			value := strings.ReplaceAll(printable(f.value), "\n", "\n"+strings.Repeat(" ", width+2))
			if _, err := fmt.Fprintf(w, "%-*s  %s\n", width, f.name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// size is a byte count for people, exact in bytes where the short form hides something.
func size(n int64) string {
	if n < 0 {
		return "unknown"
	}
	if n < 1024 {
		return shortSize(n)
	}
	return fmt.Sprintf("%s (%s bytes)", shortSize(n), humanize.Comma(n))
}

// shortSize is a byte count, which isn't negative, for a column of a table.
func shortSize(n int64) string { return humanize.IBytes(uint64(n)) }
