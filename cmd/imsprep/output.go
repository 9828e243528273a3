// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

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

// printFields writes fields in two columns, leaving out those without a value.
func printFields(w io.Writer, fields []field) {
	width := 0
	for _, f := range fields {
		if f.value != "" {
			width = max(width, len(f.name))
		}
	}
	for _, f := range fields {
		if f.value != "" {
			fmt.Fprintf(w, "%-*s  %s\n", width, f.name, strings.ReplaceAll(f.value, "\n", "\n"+strings.Repeat(" ", width+2)))
		}
	}
}

// size is a byte count for people, exact in bytes where the short form hides something.
func size(n int64) string {
	if n < 0 {
		return "unknown"
	}
	short := humanize.IBytes(uint64(n))
	if n < 1024 {
		return short
	}
	return fmt.Sprintf("%s (%s bytes)", short, humanize.Comma(n))
}
