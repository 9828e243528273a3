// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Size is a number of bytes, written as 16777216, 16MiB, 16M or 16m: powers of 1,024, as the flags of
// imsprep and qemu-img have them.
type Size int64

// Rate is a number of bytes a second, written as a [Size], with or without /s.
type Rate int64

// Duration is written as Go writes one: 90s, 15m, 2h30m.
type Duration time.Duration

const sizePattern = `^[0-9]+ ?([kKmMgGtT]([iI]?[bB])?|[bB])?$`

// ParseSize reads a [Size].
func ParseSize(s string) (Size, error) {
	bad := fmt.Errorf("%q isn't a size such as 16MiB", s)
	digits := strings.TrimRight(s, "bBiIkKmMgGtT")
	unit := strings.ToLower(s[len(digits):])
	digits = strings.TrimSuffix(digits, " ")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, bad
	}
	shift, ok := map[string]int{
		"": 0, "b": 0, "k": 10, "kb": 10, "kib": 10, "m": 20, "mb": 20, "mib": 20,
		"g": 30, "gb": 30, "gib": 30, "t": 40, "tb": 40, "tib": 40,
	}[unit]
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || n > math.MaxInt64>>shift {
		return 0, bad
	}
	return Size(n << shift), nil
}

// ParseRate reads a [Rate].
func ParseRate(s string) (Rate, error) {
	n, err := ParseSize(strings.TrimSuffix(s, "/s"))
	if err != nil {
		return 0, fmt.Errorf("%q isn't a rate such as 100MiB/s", s)
	}
	return Rate(n), nil
}

// ParseDuration reads a [Duration], which is longer than nothing.
func ParseDuration(s string) (Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q isn't a length of time such as 90s or 2h", s)
	}
	return Duration(d), nil
}

func (s Size) String() string     { return humanize.IBytes(uint64(max(s, 0))) }
func (r Rate) String() string     { return humanize.IBytes(uint64(max(r, 0))) + "/s" }
func (d Duration) String() string { return time.Duration(d).String() }
