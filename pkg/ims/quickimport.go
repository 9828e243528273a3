// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Values of [QuickImport.Type].
const (
	TypeECS       = "ECS"       // system disk of a virtual server
	TypeBMS       = "BMS"       // system disk of a bare-metal server
	TypeDataImage = "DataImage" // data disk
)

// Limits of the import calls.
const (
	MaxNameLength        = 128
	MaxDescriptionLength = 1024
	MaxTags              = 10
	MaxTagKeyLength      = 36
	MaxTagValueLength    = 43
	MinMinDisk           = 1    // GB
	MaxMinDisk           = 1024 // GB
)

// Tag is a key with a value on an image.
type Tag struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

func (t Tag) String() string { return t.Key + "=" + t.Value }

// QuickImport describes the image to be made of an object in OBS by the quick import, which takes
// ZVHD2, and RAW with a bitmap object beside it, and does not look into the disk: what is said here
// about its system is believed.
type QuickImport struct {
	Name        string // 1 to 128 characters
	ImageURL    string // the object, see [ImageURL]
	MinDisk     int    // GB (2^30) of disks made of it; at least the virtual size, rounded up
	Type        string // TypeECS (also when empty), TypeBMS, TypeDataImage
	Description string // up to 1,024 characters

	// For system disks only:
	OSVersion    string // required, exactly as the region lists it, see [Client.OSVersions]
	Architecture string // x86 (also when empty), arm
	FirmwareType string // bios (the service's default), uefi
	LicenseType  string // platform, byol; Windows only

	// For data disks only:
	OSType string // Linux (the service's default), Windows

	EnterpriseProjectID string // 0 (also when empty) or a UUID

	Tags []Tag
	// MarkerTag, a value that no other import has, is sent as one more tag: it is how the image is
	// found when the answer to the request is lost.
	MarkerTag Tag
}

// ImageURL is how IMS writes an object: the bucket, a colon, the key.
func ImageURL(bucket, key string) string { return bucket + ":" + key }

// Problem is one field that breaks a rule.
type Problem struct {
	Field string `json:"field"`
	Value string `json:"value"`
	Rule  string `json:"rule"`
}

func (p Problem) String() string {
	// Quoted as it is, since blanks at its ends may be what is wrong.
	value := p.Value
	if runes := []rune(value); len(runes) > 200 {
		value = string(runes[:200]) + "…"
	}
	return fmt.Sprintf("%s %q: %s", p.Field, value, p.Rule)
}

// ValidationError lists everything that is wrong with a request; nothing was sent.
type ValidationError struct{ Problems []Problem }

func (e *ValidationError) Error() string {
	list := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		list[i] = p.String()
	}
	return "ims: " + strings.Join(list, "; ")
}

// ErrorKind implements [KindOf].
func (e *ValidationError) ErrorKind() Kind { return KindInvalid }

// Validate checks everything that is known about the fields without asking the service, and returns
// a *[ValidationError] with all problems.
func (r *QuickImport) Validate() error {
	var v ValidationError
	bad := func(field, value, rule string) {
		v.Problems = append(v.Problems, Problem{field, value, rule})
	}
	oneOf := func(field, value string, allowed ...string) {
		if value == "" {
			return
		}
		for _, a := range allowed {
			if value == a {
				return
			}
		}
		bad(field, value, "must be "+strings.Join(allowed, " or "))
	}

	if rule := checkName(r.Name); rule != "" {
		bad("name", r.Name, rule)
	}
	if rule := checkImageURL(r.ImageURL); rule != "" {
		bad("image_url", r.ImageURL, rule)
	}
	if r.MinDisk < MinMinDisk || r.MinDisk > MaxMinDisk {
		bad("min_disk", fmt.Sprint(r.MinDisk), fmt.Sprintf("must be %d to %d GB", MinMinDisk, MaxMinDisk))
	}
	if rule := checkDescription(r.Description); rule != "" {
		bad("description", r.Description, rule)
	}
	oneOf("type", r.Type, TypeECS, TypeBMS, TypeDataImage)
	if r.Type == TypeDataImage {
		for _, f := range [][2]string{
			{"os_version", r.OSVersion}, {"architecture", r.Architecture}, {"hw_firmware_type", r.FirmwareType},
			{"license_type", r.LicenseType},
		} {
			if f[1] != "" {
				bad(f[0], f[1], "must be left out for a data disk, which has no system")
			}
		}
		oneOf("os_type", r.OSType, "Linux", "Windows")
	} else {
		if rule := checkOSVersion(r.OSVersion); rule != "" {
			bad("os_version", r.OSVersion, rule)
		}
		oneOf("architecture", r.Architecture, "x86", "arm")
		oneOf("hw_firmware_type", r.FirmwareType, "bios", "uefi")
		if r.Architecture == "arm" && r.FirmwareType == "bios" {
			bad("hw_firmware_type", r.FirmwareType, "must be uefi for the architecture arm")
		}
		oneOf("license_type", r.LicenseType, "platform", "byol")
		if r.OSType != "" {
			bad("os_type", r.OSType, "is for data disks; for a system disk it follows from os_version")
		}
	}
	if r.EnterpriseProjectID != "" && r.EnterpriseProjectID != "0" && !isUUID(r.EnterpriseProjectID) {
		bad("enterprise_project_id", r.EnterpriseProjectID, "must be 0 (the default project) or a UUID")
	}
	tags := r.allTags()
	if len(tags) > MaxTags {
		bad("image_tags", fmt.Sprint(len(tags)), fmt.Sprintf(
			"an image has at most %d tags, the one that marks the import included", MaxTags))
	}
	seen := map[string]bool{}
	for _, t := range tags {
		if rule := checkTag(t); rule != "" {
			bad("image_tags", t.String(), rule)
		}
		if seen[t.Key] {
			bad("image_tags", t.String(), "the key appears twice")
		}
		seen[t.Key] = true
	}
	if len(v.Problems) == 0 {
		return nil
	}
	return &v
}

// Warnings are what may not be meant, or what only some installations accept.
func (r *QuickImport) Warnings() []string {
	var list []string
	windows := strings.HasPrefix(strings.ToLower(r.OSVersion), "windows") || r.OSType == "Windows"
	least := 10
	system := "Linux"
	if windows {
		least, system = 20, "Windows"
	}
	if r.MinDisk >= MinMinDisk && r.MinDisk < least {
		list = append(list, fmt.Sprintf(
			"min_disk %d GB: newer installations of the service want at least %d GB for %s", r.MinDisk, least, system))
	}
	if windows {
		list = append(list, "Huawei Cloud's international site no longer imports Windows images; other sites do")
	}
	if r.LicenseType != "" && !windows {
		list = append(list, "license_type has a meaning for Windows only")
	}
	return list
}

// allTags are the tags to send, the marker last.
func (r *QuickImport) allTags() []Tag {
	tags := append([]Tag(nil), r.Tags...)
	if r.MarkerTag != (Tag{}) {
		tags = append(tags, r.MarkerTag)
	}
	return tags
}

// quickImportBody is the body of both uses of the call. os_version must be absent, not empty, for
// a data disk, and tags (the older form) must not be sent beside image_tags.
type quickImportBody struct {
	Name                string `json:"name"`
	ImageURL            string `json:"image_url"`
	MinDisk             int    `json:"min_disk"`
	Type                string `json:"type,omitempty"`
	Description         string `json:"description,omitempty"`
	OSVersion           string `json:"os_version,omitempty"`
	OSType              string `json:"os_type,omitempty"`
	Architecture        string `json:"architecture,omitempty"`
	FirmwareType        string `json:"hw_firmware_type,omitempty"`
	LicenseType         string `json:"license_type,omitempty"`
	EnterpriseProjectID string `json:"enterprise_project_id,omitempty"`
	ImageTags           []Tag  `json:"image_tags,omitempty"`
}

func (r *QuickImport) body() quickImportBody {
	return quickImportBody{
		Name: r.Name, ImageURL: r.ImageURL, MinDisk: r.MinDisk, Type: r.Type, Description: r.Description,
		OSVersion: r.OSVersion, OSType: r.OSType, Architecture: r.Architecture, FirmwareType: r.FirmwareType,
		LicenseType: r.LicenseType, EnterpriseProjectID: r.EnterpriseProjectID, ImageTags: r.allTags(),
	}
}

// The check functions return the rule that is broken, or nothing.

// NameProblem says which rule an image's name breaks, "" if none.
func NameProblem(name string) string { return checkName(name) }

// TagProblem says which rule a tag breaks, "" if none.
func TagProblem(t Tag) string { return checkTag(t) }

func checkName(s string) string {
	const rule = "must be 1 to 128 characters: letters, digits, hyphens, dots, underscores, Chinese characters, " +
		"and spaces that are neither first nor last"
	if s == "" || !utf8.ValidString(s) || utf8.RuneCountInString(s) > MaxNameLength ||
		s[0] == ' ' || s[len(s)-1] == ' ' {
		return rule
	}
	for _, r := range s {
		if !isTagRune(r) && r != '.' && r != ' ' {
			return rule
		}
	}
	return ""
}

func checkDescription(s string) string {
	if !utf8.ValidString(s) || utf8.RuneCountInString(s) > MaxDescriptionLength || strings.ContainsAny(s, "\r\n<>") {
		return "must be at most 1,024 characters without line breaks and angle brackets"
	}
	return ""
}

func checkOSVersion(s string) string {
	switch {
	case s == "":
		return "is required for a system disk: the quick import does not look into the disk"
	case !utf8.ValidString(s) || strings.TrimSpace(s) != s || strings.ContainsFunc(s, unicode.IsControl) || len(s) > 255:
		return "must be a name from the region's list, without blanks around it"
	}
	return ""
}

// checkImageURL allows the formats of the quick import.
func checkImageURL(s string) string {
	if rule := checkObjectURL(s); rule != "" {
		return rule
	}
	_, key, _ := strings.Cut(s, ":")
	base := key[strings.LastIndexByte(key, '/')+1:]
	for _, suffix := range []string{".raw", ".zvhd2"} {
		if strings.HasSuffix(base, suffix) && len(base) > len(suffix) {
			return ""
		}
	}
	return "the key must end with .raw or .zvhd2, the formats of the quick import"
}

// checkObjectURL takes any key.
func checkObjectURL(s string) string {
	const bucketRule = "must begin with a bucket: 3 to 63 lower-case letters, digits, hyphens, dots"
	bucket, key, ok := strings.Cut(s, ":")
	switch {
	case !ok:
		return "must be BUCKET:KEY (it is not a URL)"
	case len(bucket) < 3 || len(bucket) > 63:
		return bucketRule
	case strings.HasPrefix(key, "//"):
		return "must be BUCKET:KEY (it is not a URL)"
	case key == "" || strings.HasSuffix(key, "/"):
		return "must name an object: BUCKET:KEY"
	case !utf8.ValidString(key) || len(key) > 1024:
		return "the key must be at most 1,024 bytes of UTF-8"
	case strings.ContainsFunc(key, unicode.IsSpace) || strings.ContainsFunc(key, unicode.IsControl):
		return "the key must not hold blanks"
	}
	for _, r := range bucket {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' {
			return bucketRule
		}
	}
	return ""
}

func checkTag(t Tag) string {
	switch {
	case t.Key == "":
		return "the key must not be empty"
	case utf8.RuneCountInString(t.Key) > MaxTagKeyLength || strings.ContainsFunc(t.Key, func(r rune) bool {
		return !isTagRune(r)
	}):
		return "the key must be 1 to 36 letters, digits, underscores, hyphens, Chinese characters"
	case utf8.RuneCountInString(t.Value) > MaxTagValueLength || strings.ContainsFunc(t.Value, func(r rune) bool {
		return !isTagRune(r) && r != '.'
	}):
		return "the value must be up to 43 letters, digits, underscores, dots, hyphens, Chinese characters"
	}
	return ""
}

// isTagRune accepts what names and tags have in common. Open Telekom Cloud does not list Chinese
// characters; refusing them is left to the service.
func isTagRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_' ||
		unicode.Is(unicode.Han, r)
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
				return false
			}
		}
	}
	return true
}
