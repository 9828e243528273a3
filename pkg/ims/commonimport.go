// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Further values of [CommonImport.Type].
const (
	TypeFusionCompute = "FusionCompute" // same as TypeECS
	TypeIronic        = "Ironic"        // same as TypeBMS
	TypeISO           = "IsoImage"      // an installation medium
)

// Limits of the imports that look into the disk.
const (
	MaxDataMinDisk = 2048 // GB, of a data disk
	MinDataMinDisk = 40   // GB, of a data disk imported alone
	MaxDataImages  = 3    // beside the system disk
	// MaxCommonSize is the largest object, in bytes, that the service converts.
	MaxCommonSize = 128 << 30
)

// CommonFormats are the endings of keys that the common import takes, beside iso for TypeISO.
func CommonFormats() []string {
	return []string{"vmdk", "vhd", "qcow2", "raw", "vhdx", "qed", "vdi", "qcow", "zvhd2", "zvhd"}
}

// CommonImport describes an image of a system disk, or of an ISO, that the service makes of an
// object in any of [CommonFormats]: it looks into the disk and converts it. What it recognizes of
// the system overrides what is said here.
type CommonImport struct {
	Name        string // 1 to 128 characters
	ImageURL    string // the object, see [ImageURL]; up to 128 GB unless QuickImport
	MinDisk     int    // GB (2^30), 1 to 1,024
	Description string
	Type        string // TypeECS (also when empty), TypeBMS, TypeFusionCompute, TypeIronic, TypeISO

	OSType       string // Linux, Windows, Other; recognized when empty
	OSVersion    string // recognized when empty; required for TypeISO and with QuickImport
	Architecture string // x86 (also when empty), arm
	FirmwareType string // bios, uefi
	LicenseType  string // platform, byol; Windows only

	// Configure lets the service change the disk: drivers, device names, network.
	Configure bool
	// QuickImport makes this a quick import: ZVHD2, or RAW with a bitmap, and no look into the
	// disk.
	QuickImport bool
	// KMSKey is the id of the key to encrypt the image with; not for bare metal.
	KMSKey string

	MinRAM, MaxRAM      int // MB; 0 means no limit
	EnterpriseProjectID string
	Tags                []Tag
	MarkerTag           Tag // as in [QuickImport]

	// DataImages are up to three data disks of the same server; each becomes an image of its own.
	DataImages []DataImage
}

// DataImage is a data disk of a [CommonImport].
type DataImage struct {
	ImageURL    string
	MinDisk     int    // GB, 1 to 2,048
	Name        string // empty: formed by the service from the system disk's
	Description string
	QuickImport bool
	Tags        []Tag
}

// DataDiskImport describes an image of a data disk that the service makes of an object in any of
// [CommonFormats].
type DataDiskImport struct {
	Name                string
	ImageURL            string
	MinDisk             int    // GB, 40 to 2,048
	OSType              string // Linux (also when empty), Windows
	Description         string
	KMSKey              string
	EnterpriseProjectID string
	Tags                []Tag
	MarkerTag           Tag // as in [QuickImport]
}

// checker collects problems.
type checker struct{ problems []Problem }

func (c *checker) bad(field, value, rule string) {
	c.problems = append(c.problems, Problem{field, value, rule})
}

// rule adds a problem if a check function names a rule that is broken.
func (c *checker) rule(field, value, rule string) {
	if rule != "" {
		c.bad(field, value, rule)
	}
}

func (c *checker) oneOf(field, value string, allowed ...string) {
	if value != "" && !slices.Contains(allowed, value) {
		c.bad(field, value, "must be "+strings.Join(allowed, " or "))
	}
}

func (c *checker) within(field string, n, least, most int, unit string) {
	if n < least || n > most {
		c.bad(field, fmt.Sprint(n), fmt.Sprintf("must be %d to %d %s", least, most, unit))
	}
}

func (c *checker) enterpriseProject(id string) {
	if id != "" && id != "0" && !isUUID(id) {
		c.bad("enterprise_project_id", id, "must be 0 (the default project) or a UUID")
	}
}

func (c *checker) tags(field string, tags []Tag) {
	if len(tags) > MaxTags {
		c.bad(field, fmt.Sprint(len(tags)), fmt.Sprintf("an image has at most %d tags", MaxTags))
	}
	seen := map[string]bool{}
	for _, t := range tags {
		c.rule(field, t.String(), checkTag(t))
		if seen[t.Key] {
			c.bad(field, t.String(), "the key appears twice")
		}
		seen[t.Key] = true
	}
}

func (c *checker) id(field, id string) {
	if checkID(field, id) != nil {
		c.bad(field, id, "must be 1 to 128 letters, digits, hyphens and underscores")
	}
}

func (c *checker) err() error {
	if len(c.problems) == 0 {
		return nil
	}
	return &ValidationError{Problems: c.problems}
}

// checkCommonURL allows the formats that the service converts.
func checkCommonURL(s string, quick, iso bool) string {
	if quick {
		return checkImageURL(s)
	}
	if rule := checkObjectURL(s); rule != "" {
		return rule
	}
	_, ending, ok := cutLast(s, ".")
	ending = strings.ToLower(ending)
	switch {
	case iso && (!ok || ending != "iso"):
		return "the key must end with .iso"
	case !iso && (!ok || !slices.Contains(CommonFormats(), ending)):
		return "the key must end with one of ." + strings.Join(CommonFormats(), " .")
	}
	return ""
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// Validate checks everything that is known about the fields without asking the service, and returns
// a *[ValidationError] with all problems.
func (r *CommonImport) Validate() error {
	var v checker
	iso := r.Type == TypeISO
	v.rule("name", r.Name, checkName(r.Name))
	v.rule("image_url", r.ImageURL, checkCommonURL(r.ImageURL, r.QuickImport, iso))
	v.within("min_disk", r.MinDisk, MinMinDisk, MaxMinDisk, "GB")
	v.rule("description", r.Description, checkDescription(r.Description))
	v.oneOf("type", r.Type, TypeECS, TypeBMS, TypeFusionCompute, TypeIronic, TypeISO)
	v.oneOf("os_type", r.OSType, "Linux", "Windows", "Other")
	switch {
	case r.OSVersion != "":
		v.rule("os_version", r.OSVersion, checkOSVersion(r.OSVersion))
	case iso:
		v.bad("os_version", "", "is required for an ISO: the service cannot recognize what it installs")
	case r.QuickImport:
		v.bad("os_version", "", "is required with is_quick_import: the disk is not looked into")
	}
	v.oneOf("architecture", r.Architecture, "x86", "arm")
	v.oneOf("hw_firmware_type", r.FirmwareType, "bios", "uefi")
	if r.Architecture == "arm" && r.FirmwareType == "bios" {
		v.bad("hw_firmware_type", r.FirmwareType, "must be uefi for the architecture arm")
	}
	v.oneOf("license_type", r.LicenseType, "platform", "byol")
	if iso && r.QuickImport {
		v.bad("is_quick_import", "true", "an ISO cannot be imported quickly")
	}
	if r.KMSKey != "" {
		v.id("cmk_id", r.KMSKey)
		if r.Type == TypeBMS || r.Type == TypeIronic {
			v.bad("cmk_id", r.KMSKey, "a bare-metal image cannot be encrypted")
		}
	}
	if r.MinRAM < 0 {
		v.bad("min_ram", fmt.Sprint(r.MinRAM), "must not be negative")
	}
	if r.MaxRAM < 0 || r.MaxRAM > 0 && r.MaxRAM < r.MinRAM {
		v.bad("max_ram", fmt.Sprint(r.MaxRAM), "must not be less than min_ram")
	}
	v.enterpriseProject(r.EnterpriseProjectID)
	v.tags("image_tags", withMarker(r.Tags, r.MarkerTag))
	if len(r.DataImages) > MaxDataImages {
		v.bad("data_images", fmt.Sprint(len(r.DataImages)), fmt.Sprintf("at most %d data disks", MaxDataImages))
	}
	seen := map[string]bool{r.ImageURL: true}
	for n, d := range r.DataImages {
		field := fmt.Sprintf("data_images[%d].", n)
		v.rule(field+"image_url", d.ImageURL, checkCommonURL(d.ImageURL, d.QuickImport, false))
		if seen[d.ImageURL] {
			v.bad(field+"image_url", d.ImageURL, "the object appears twice")
		}
		seen[d.ImageURL] = true
		v.within(field+"min_disk", d.MinDisk, MinMinDisk, MaxDataMinDisk, "GB")
		if d.Name != "" {
			v.rule(field+"name", d.Name, checkName(d.Name))
		}
		v.rule(field+"description", d.Description, checkDescription(d.Description))
		v.tags(field+"image_tags", d.Tags)
	}
	return v.err()
}

// Validate checks everything that is known about the fields without asking the service, and returns
// a *[ValidationError] with all problems.
func (r *DataDiskImport) Validate() error {
	var v checker
	v.rule("name", r.Name, checkName(r.Name))
	v.rule("image_url", r.ImageURL, checkCommonURL(r.ImageURL, false, false))
	v.within("min_disk", r.MinDisk, MinDataMinDisk, MaxDataMinDisk, "GB")
	v.rule("description", r.Description, checkDescription(r.Description))
	v.oneOf("os_type", r.OSType, "Linux", "Windows")
	if r.KMSKey != "" {
		v.id("cmk_id", r.KMSKey)
	}
	v.enterpriseProject(r.EnterpriseProjectID)
	v.tags("image_tags", withMarker(r.Tags, r.MarkerTag))
	return v.err()
}

func withMarker(tags []Tag, marker Tag) []Tag {
	if marker == (Tag{}) {
		return tags
	}
	return append(slices.Clone(tags), marker)
}

// commonImportBody is the body of the common and of the data disk import.
type commonImportBody struct {
	Name                string          `json:"name"`
	ImageURL            string          `json:"image_url"`
	MinDisk             int             `json:"min_disk"`
	Description         string          `json:"description,omitempty"`
	Type                string          `json:"type,omitempty"`
	OSType              string          `json:"os_type,omitempty"`
	OSVersion           string          `json:"os_version,omitempty"`
	Architecture        string          `json:"architecture,omitempty"`
	FirmwareType        string          `json:"hw_firmware_type,omitempty"`
	LicenseType         string          `json:"license_type,omitempty"`
	IsConfig            bool            `json:"is_config,omitempty"`
	IsQuickImport       bool            `json:"is_quick_import,omitempty"`
	CMKID               string          `json:"cmk_id,omitempty"`
	MinRAM              int             `json:"min_ram,omitempty"`
	MaxRAM              int             `json:"max_ram,omitempty"`
	EnterpriseProjectID string          `json:"enterprise_project_id,omitempty"`
	ImageTags           []Tag           `json:"image_tags,omitempty"`
	DataImages          []dataImageBody `json:"data_images,omitempty"`
}

type dataImageBody struct {
	ImageURL      string `json:"image_url"`
	MinDisk       int    `json:"min_disk"`
	Name          string `json:"name,omitempty"`
	Description   string `json:"description,omitempty"`
	IsQuickImport bool   `json:"is_quick_import,omitempty"`
	ImageTags     []Tag  `json:"image_tags,omitempty"`
}

func (r *CommonImport) body() commonImportBody {
	b := commonImportBody{
		Name: r.Name, ImageURL: r.ImageURL, MinDisk: r.MinDisk, Description: r.Description, Type: r.Type,
		OSType: r.OSType, OSVersion: r.OSVersion, Architecture: r.Architecture, FirmwareType: r.FirmwareType,
		LicenseType: r.LicenseType, IsConfig: r.Configure, IsQuickImport: r.QuickImport, CMKID: r.KMSKey,
		MinRAM: r.MinRAM, MaxRAM: r.MaxRAM, EnterpriseProjectID: r.EnterpriseProjectID,
		ImageTags: withMarker(r.Tags, r.MarkerTag),
	}
	for _, d := range r.DataImages {
		b.DataImages = append(b.DataImages, dataImageBody{
			ImageURL: d.ImageURL, MinDisk: d.MinDisk, Name: d.Name, Description: d.Description,
			IsQuickImport: d.QuickImport, ImageTags: d.Tags,
		})
	}
	return b
}

func (r *DataDiskImport) body() commonImportBody {
	return commonImportBody{
		Name: r.Name, ImageURL: r.ImageURL, MinDisk: r.MinDisk, Description: r.Description, OSType: r.OSType,
		CMKID: r.KMSKey, EnterpriseProjectID: r.EnterpriseProjectID, ImageTags: withMarker(r.Tags, r.MarkerTag),
	}
}

// CommonImport starts an import that converts the object: POST /v2/cloudimages/action, or /v2.1/…
// in the newer generation (IMS API, "Creating an Image", from a file). With data disks the job
// makes several images, see [Job.ImageIDs].
//
// Repetition, a lost answer and errors are as in [Client.QuickImport].
func (c *Client) CommonImport(ctx context.Context, r *CommonImport, gen Generation) (*Submitted, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return c.submit(ctx, submission{
		call: call{
			op: fmt.Sprintf("import image %q", r.Name), service: serviceIMS, method: http.MethodPost, body: r.body(),
			success: acceptedStatuses,
		},
		targets: gen.targetsOf("/v2/cloudimages/action", "/v2.1/cloudimages/action"),
		name:    r.Name, marker: r.MarkerTag,
	})
}

// ImportDataDisk starts an import of a data disk that converts the object:
// POST /v1/cloudimages/dataimages/action, or /v2.1/… in the newer generation (IMS API, "Creating a
// Data Disk Image Using an External Image File").
//
// Repetition, a lost answer and errors are as in [Client.QuickImport].
func (c *Client) ImportDataDisk(ctx context.Context, r *DataDiskImport, gen Generation) (*Submitted, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return c.submit(ctx, submission{
		call: call{
			op: fmt.Sprintf("import data disk image %q", r.Name), service: serviceIMS, method: http.MethodPost,
			body: r.body(), success: acceptedStatuses,
		},
		targets: gen.targetsOf("/v1/cloudimages/dataimages/action", "/v2.1/cloudimages/dataimages/action"),
		name:    r.Name, marker: r.MarkerTag,
	})
}
