// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// OSVersion is a system that images of a region can have.
type OSVersion struct {
	Platform string `json:"platform"`
	Key      string `json:"os_version_key"` // what a request holds
	Version  string `json:"os_version"`
	OSType   string `json:"os_type"` // Linux, Windows, Other
	Bits     int    `json:"os_bit"`  // 32, 64; 0 if not known
}

// OSVersions lists what a region accepts as os_version: GET /v1/cloudimages/os_version (IMS API,
// "Querying Supported Image OSs"). tags restrict it to x86, arm, uefi or bms. Not every cloud has
// the call: then the error is [KindUnsupported] or [KindNotFound].
func (c *Client) OSVersions(ctx context.Context, tags ...string) ([]OSVersion, error) {
	k := call{
		op: "list the OS versions", service: serviceIMS, method: http.MethodGet, path: "/v1/cloudimages/os_version",
	}
	if len(tags) > 0 {
		k.query = url.Values{"tag": tags}
	}
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	v, err := decodeJSON(a.body)
	if err != nil {
		return nil, malformed(k, a, "the answer is "+describeBody(a.body))
	}
	list, ok := osVersionsFrom(v)
	if !ok {
		return nil, malformed(k, a, "the answer holds no list of OS versions")
	}
	return list, nil
}

// osVersionsFrom reads the documented array of platforms, also when it is a member of an object.
func osVersionsFrom(v any) ([]OSVersion, bool) {
	if m, ok := v.(map[string]any); ok {
		for _, member := range m {
			if list, ok := member.([]any); ok && len(m) == 1 {
				return osVersionsFrom(list)
			}
		}
		return nil, false
	}
	platforms, ok := v.([]any)
	if !ok {
		return nil, false
	}
	var list []OSVersion
	seen := map[string]bool{}
	for _, p := range platforms {
		platform, _ := p.(map[string]any)
		versions, _ := platform["version_list"].([]any)
		for _, item := range versions {
			m, _ := item.(map[string]any)
			o := OSVersion{
				Platform: cmp.Or(text(m["platform"]), text(platform["platform"])),
				Key:      text(m["os_version_key"]), Version: text(m["os_version"]), OSType: text(m["os_type"]),
			}
			o.Key = cmp.Or(o.Key, o.Version)
			o.Version = cmp.Or(o.Version, o.Key)
			o.Bits, _ = strconv.Atoi(text(m["os_bit"]))
			if o.Key != "" && !seen[o.Key] {
				seen[o.Key] = true
				list = append(list, o)
			}
		}
	}
	return list, true
}

// NearestOSVersions picks at most n names out of list that are most like want, best first: equal
// but for case and spacing, then by the words and version numbers they share, spelling mistakes
// allowed. What has nothing in common with want is left out. The result depends on the arguments
// only.
func NearestOSVersions(want string, list []OSVersion, n int) []string {
	if n <= 0 {
		return nil
	}
	// Longer text is no name of a system, and comparing is quadratic.
	const longest = 256
	if len(want) > longest {
		want = want[:longest]
	}
	type candidate struct {
		key   string
		score int
	}
	w := splitOSName(want)
	var found []candidate
	seen := map[string]bool{}
	for _, o := range list {
		if o.Key == "" || len(o.Key) > longest || seen[o.Key] {
			continue
		}
		seen[o.Key] = true
		if s := w.likeness(splitOSName(o.Key)); s > 0 {
			found = append(found, candidate{o.Key, s})
		}
	}
	slices.SortFunc(found, func(a, b candidate) int {
		return cmp.Or(
			cmp.Compare(b.score, a.score),
			cmp.Compare(len(a.key), len(b.key)),
			strings.Compare(b.key, a.key), // the higher version first
		)
	})
	var names []string
	for _, f := range found[:min(n, len(found))] {
		names = append(names, f.key)
	}
	return names
}

// osName is a name taken apart for comparing.
type osName struct {
	words   []string // lower case; what only decorates (linux, server, 64bit …) is in extra
	extra   []string
	numbers []string // versions such as 22.04
}

var osDecoration = map[string]bool{
	"linux": true, "gnu": true, "server": true, "release": true, "64bit": true, "32bit": true, "bit": true,
	"enterprise": true, "the": true, "version": true, "os": true, "edition": true, "lts": true,
}

// splitOSName folds case and spacing, separates letters from digits, and unites the usual
// spellings of the same thing.
func splitOSName(s string) osName {
	s = strings.ToLower(s)
	s = strings.NewReplacer(
		"x86_64", " 64bit ", "amd64", " 64bit ", "x64", " 64bit ", "64-bit", " 64bit ", "64 bit", " 64bit ",
		"(64_bit)", " 64bit ", "32-bit", " 32bit ", "32 bit", " 32bit ", "i386", " 32bit ", "i686", " 32bit ",
		"red hat", "redhat", "rhel", "redhat enterprise", "sles", "suse enterprise server ",
		"open suse", "opensuse", "cent os", "centos", "open euler", "openeuler",
	).Replace(s)
	var name osName
	fields := strings.FieldsFunc(s, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '.'
	})
	for _, f := range fields {
		if f == "64bit" || f == "32bit" {
			name.extra = append(name.extra, f)
			continue
		}
		for _, part := range splitDigits(f) {
			switch {
			case part == "":
			case part[0] >= '0' && part[0] <= '9':
				name.numbers = append(name.numbers, part)
			case osDecoration[part]:
				name.extra = append(name.extra, part)
			default:
				name.words = append(name.words, part)
			}
		}
	}
	return name
}

// splitDigits separates runs of letters from runs of digits and dots: "ubuntu22.04" is two parts.
func splitDigits(s string) []string {
	var parts []string
	start, wasNumber := 0, false
	for i, r := range s {
		isNumber := r >= '0' && r <= '9' || r == '.' && wasNumber
		if i > 0 && isNumber != wasNumber {
			parts = append(parts, s[start:i])
			start = i
		}
		wasNumber = isNumber
	}
	parts = append(parts, s[start:])
	for i := range parts {
		parts[i] = strings.Trim(parts[i], ".")
	}
	return parts
}

// likeness weighs the name of the system most, then its version; 0 means nothing in common.
func (w osName) likeness(o osName) int {
	words := overlap(w.words, o.words, wordLikeness)
	if words == 0 {
		// Without the system's name, a shared number or "64bit" is chance, unless no name was
		// given.
		if len(w.words) > 0 || len(w.numbers) == 0 {
			return 0
		}
	}
	numbers := overlap(w.numbers, o.numbers, numberLikeness)
	if len(w.words) == 0 && numbers == 0 {
		return 0
	}
	return 20*words + 10*numbers + overlap(w.extra, o.extra, sameWord)
}

// overlap averages, over the longer of two lists, how well each item of one finds a partner in the
// other, 0 to 100. Two empty lists agree neither well nor badly.
func overlap(a, b []string, like func(a, b string) int) int {
	if len(a) == 0 && len(b) == 0 {
		return 0
	}
	sum := 0
	used := make([]bool, len(b))
	for _, x := range a {
		best, at := 0, -1
		for i, y := range b {
			if l := like(x, y); !used[i] && l > best {
				best, at = l, i
			}
		}
		if at >= 0 {
			used[at] = true
			sum += best
		}
	}
	return sum / max(len(a), len(b))
}

func sameWord(a, b string) int {
	if a == b {
		return 100
	}
	return 0
}

// wordLikeness forgives spelling mistakes: one for three letters.
func wordLikeness(a, b string) int {
	if a == b {
		return 100
	}
	longest := max(len(a), len(b))
	if longest < 3 {
		return 0
	}
	if d := editDistance(a, b); d <= longest/3 {
		return 100 - 100*d/longest
	}
	return 0
}

// numberLikeness compares versions part by part from the left.
func numberLikeness(a, b string) int {
	if a == b {
		return 100
	}
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	equal := 0
	for equal < min(len(x), len(y)) && x[equal] == y[equal] {
		equal++
	}
	if equal == 0 {
		return 0
	}
	return 40 + 50*equal/max(len(x), len(y))
}

// editDistance counts insertions, deletions, replacements and swaps of neighbours (in bytes).
func editDistance(a, b string) int {
	before, previous, current := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := 1; i <= len(a); i++ {
		current[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			current[j] = min(previous[j]+1, current[j-1]+1, previous[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				current[j] = min(current[j], before[j-2]+1)
			}
		}
		before, previous, current = previous, current, before
	}
	return previous[len(b)]
}
