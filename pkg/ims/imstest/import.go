// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of imports.
const (
	maxName        = 128     // characters
	maxDescription = 1024    // characters
	maxTags        = 10      // per image
	maxTagKey      = 36      // characters
	maxTagValue    = 43      // characters
	maxMinDisk     = 1024    // GiB
	maxQuickSize   = 1 << 40 // bytes of the object
	maxCommonSize  = 128 << 30
	gib            = 1 << 30
)

// Tag is a tag of an image.
type Tag struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// quickImportRequest is the body of a quick import. Pointers tell a field that
// is missing from one that is empty.
type quickImportRequest struct {
	Name                *string  `json:"name"`
	Description         string   `json:"description"`
	ImageURL            *string  `json:"image_url"`
	MinDisk             *int64   `json:"min_disk"`
	OSVersion           string   `json:"os_version"`
	OSType              string   `json:"os_type"`
	Type                string   `json:"type"`
	Architecture        string   `json:"architecture"`
	FirmwareType        string   `json:"hw_firmware_type"`
	LicenseType         string   `json:"license_type"`
	EnterpriseProjectID string   `json:"enterprise_project_id"`
	Tags                []string `json:"tags"`
	ImageTags           []Tag    `json:"image_tags"`
}

// importSpec is a checked import.
type importSpec struct {
	name, description   string
	bucket, key         string
	format              string // the key's ending
	owner               string // the caller's project
	jobType             string
	quick, iso          bool
	cmkID               string
	minRAM              int
	maxRAM              string // as it is shown: text, "" for none
	size                int64  // of the object
	minDisk             int64
	dataDisk            bool
	baremetal           bool
	os                  OSVersion // of a system disk
	osType              string
	arm                 bool
	firmware            string // "" if not given
	licenseType         string
	enterpriseProjectID string
	tags                []Tag
}

// quickImport is POST /v2/cloudimages/quickimport/action and its new form.
func (s *Server) quickImport(w http.ResponseWriter, r *http.Request) error {
	var q quickImportRequest
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	right := rightImportSystem
	if q.Type == "DataImage" {
		right = rightImportData
	}
	if err := s.allow(r, right); err != nil {
		return err
	}
	spec, err := s.checkQuickImport(&q)
	if err != nil {
		return err
	}
	if faultsOf(r).flowControl {
		return imgError("IMG.0060", "")
	}
	spec.owner = s.callerOf(r)
	if err := s.checkObject(r.Context(), spec); err != nil {
		return err
	}
	return s.accept(w, spec)
}

// accept starts the job of imports that were checked, and answers.
func (s *Server) accept(w http.ResponseWriter, specs ...*importSpec) error {
	id, err := s.submit(specs...)
	if err != nil {
		return err
	}
	if err := s.loseAnswer(w); err != nil {
		return err
	}
	return writeJob(w, id)
}

func writeJob(w http.ResponseWriter, id string) error {
	return writeJSON(w, http.StatusOK, map[string]string{"job_id": id})
}

// checkQuickImport checks what the body says, without looking at the object.
func (s *Server) checkQuickImport(q *quickImportRequest) (*importSpec, error) {
	if q.Name == nil || *q.Name == "" {
		return nil, imgError("IMG.0013", "")
	}
	if err := checkName(*q.Name); err != nil {
		return nil, err
	}
	if err := checkDescription(q.Description); err != nil {
		return nil, err
	}
	tags, err := checkTags(q.Tags, q.ImageTags)
	if err != nil {
		return nil, err
	}
	spec := &importSpec{
		name: *q.Name, description: q.Description, tags: tags,
		licenseType: q.LicenseType, enterpriseProjectID: or(q.EnterpriseProjectID, "0"),
		owner: s.opt.ProjectID, quick: true, jobType: jobImport,
	}
	switch q.Type {
	case "", "ECS":
	case "BMS":
		spec.baremetal = true
	case "DataImage":
		spec.dataDisk, spec.jobType = true, jobImportData
	default:
		return nil, imgError("IMG.0024", fmt.Sprintf("%q is none of ECS, BMS, DataImage", q.Type))
	}
	if err := spec.checkMinDisk(q.MinDisk); err != nil {
		return nil, err
	}
	if err := s.checkOS(spec, q); err != nil {
		return nil, err
	}
	switch q.Architecture {
	case "", "x86":
	case "arm":
		spec.arm = true
	default:
		return nil, imgError("IMG.0212", "")
	}
	switch q.FirmwareType {
	case "", "uefi":
	case "bios":
		if spec.arm {
			return nil, imgError("IMG.0141", "an arm image boots with uefi only")
		}
	default:
		return nil, imgError("IMG.0141", "")
	}
	spec.firmware = q.FirmwareType
	if spec.arm {
		spec.firmware = "uefi"
	}
	if !slices.Contains([]string{"", "platform", "byol"}, q.LicenseType) {
		return nil, imgError("IMG.0001", "license_type is neither platform nor byol")
	}
	if spec.enterpriseProjectID != "0" && !uuidPattern.MatchString(spec.enterpriseProjectID) {
		return nil, imgError("IMG.0155", "")
	}
	if q.ImageURL == nil {
		return nil, imgError("IMG.0017", "image_url is missing")
	}
	if spec.bucket, spec.key, err = checkImageURL(*q.ImageURL); err != nil {
		return nil, err
	}
	switch {
	case strings.HasSuffix(spec.key, ".raw"):
		spec.format = "raw"
	case strings.HasSuffix(spec.key, ".zvhd2"):
		spec.format = "zvhd2"
	default:
		return nil, imgError("IMG.0158", "the object's name ends in neither .raw nor .zvhd2")
	}
	return spec, nil
}

var (
	namePattern   = regexp.MustCompile(`^[\p{Han}A-Za-z0-9._ -]+$`)
	tagKey        = regexp.MustCompile(`^[\p{Han}A-Za-z0-9_-]+$`)
	tagValue      = regexp.MustCompile(`^[\p{Han}A-Za-z0-9_.-]*$`)
	bucketPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	uuidPattern   = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
)

func checkName(name string) error {
	if utf8.RuneCountInString(name) > maxName {
		return imgError("IMG.0002", "")
	}
	if !namePattern.MatchString(name) || strings.HasPrefix(name, " ") || strings.HasSuffix(name, " ") {
		return imgError("IMG.0003", "")
	}
	return nil
}

func checkDescription(d string) error {
	if utf8.RuneCountInString(d) > maxDescription {
		return imgError("IMG.0004", "")
	}
	if strings.ContainsAny(d, "\r\n<>") {
		return imgError("IMG.0054", "")
	}
	return nil
}

// checkTags takes the old form of tags or the new one, never both.
func checkTags(old []string, tags []Tag) ([]Tag, error) {
	if len(old) > 0 && len(tags) > 0 {
		return nil, imgError("IMG.0115", "tags and image_tags exclude each other")
	}
	for _, o := range old {
		k, v, _ := strings.Cut(o, ".")
		tags = append(tags, Tag{k, v})
	}
	if len(tags) > maxTags {
		return nil, imgError("IMG.0116", "")
	}
	seen := map[string]bool{}
	for _, t := range tags {
		switch {
		case utf8.RuneCountInString(t.Key) > maxTagKey || !tagKey.MatchString(t.Key),
			utf8.RuneCountInString(t.Value) > maxTagValue || !tagValue.MatchString(t.Value):
			return nil, imgError("IMG.0115", fmt.Sprintf("%q=%q", t.Key, t.Value))
		case seen[t.Key]:
			return nil, imgError("IMG.0115", fmt.Sprintf("the key %q is there twice", t.Key))
		}
		seen[t.Key] = true
	}
	return tags, nil
}

func (spec *importSpec) checkMinDisk(n *int64) error {
	switch {
	case n == nil:
		return imgError("IMG.0055", "min_disk is missing")
	case *n > maxMinDisk && !spec.dataDisk:
		return imgError("IMG.0111", "")
	case *n < 1 || *n > maxMinDisk:
		return imgError("IMG.0055", fmt.Sprintf("min_disk is from 1 to %d", maxMinDisk))
	}
	spec.minDisk = *n
	return nil
}

// checkOS finds the operating system. The service believes what it is told;
// it only has to be a name of its list, to the letter.
func (s *Server) checkOS(spec *importSpec, q *quickImportRequest) error {
	if !slices.Contains([]string{"", "Linux", "Windows"}, q.OSType) {
		return imgError("IMG.0122", fmt.Sprintf("%q is neither Linux nor Windows", q.OSType))
	}
	if spec.dataDisk {
		if q.OSVersion != "" { // the vendor's SDK cannot help sending it empty
			return imgError("IMG.0001", "a data disk has an os_type, not an os_version")
		}
		spec.osType = or(q.OSType, "Linux")
		return nil
	}
	if q.OSVersion == "" {
		return imgError("IMG.0159", "")
	}
	i := slices.IndexFunc(s.opt.OSVersions, func(v OSVersion) bool { return v.Key == q.OSVersion })
	if i < 0 {
		return imgError("IMG.0056", fmt.Sprintf("%q is not a name of the list of OS versions", q.OSVersion))
	}
	spec.os = s.opt.OSVersions[i]
	spec.osType = spec.os.OSType
	return nil
}

// checkImageURL splits BUCKET:KEY.
func checkImageURL(u string) (bucket, key string, err error) {
	bucket, key, ok := strings.Cut(u, ":")
	switch {
	case !ok:
		return "", "", imgError("IMG.0017", "image_url is BUCKET:KEY")
	case bucket == "":
		return "", "", imgError("IMG.0068", "")
	case strings.ContainsFunc(u, unicode.IsSpace):
		return "", "", imgError("IMG.0175", "")
	case !bucketPattern.MatchString(bucket):
		return "", "", imgError("IMG.0109", "")
	case key == "" || strings.HasPrefix(key, "/"):
		return "", "", imgError("IMG.0017", "the object's key is empty or begins with a slash")
	}
	return bucket, key, nil
}

// bitmapKey is the name of the bitmap that belongs to a RAW object.
func bitmapKey(key string) string { return strings.TrimSuffix(key, ".raw") + ".mf" }

// checkObject looks at the object and, for RAW, at its bitmap.
func (s *Server) checkObject(ctx context.Context, spec *importSpec) error {
	region, err := s.opt.Objects.BucketRegion(ctx, spec.bucket)
	if err != nil {
		return imgError("IMG.0069", reason(err))
	}
	if region != s.opt.Region {
		return imgError("IMG.0058", fmt.Sprintf("the bucket is in %s", region))
	}
	size, class, err := s.opt.Objects.Stat(ctx, spec.bucket, spec.key)
	switch {
	case err != nil:
		return imgError("IMG.0057", spec.key+": "+reason(err))
	case class != "" && class != StorageStandard:
		return imgError("IMG.0057", "the storage class is "+class)
	case size == 0:
		return imgError("IMG.0057", "the object is empty")
	case size > maxQuickSize || !spec.quick && size > maxCommonSize:
		return imgError("IMG.0059", "")
	}
	spec.size = size
	if spec.format != "raw" || !spec.quick {
		return nil
	}
	if needs := (size + gib - 1) / gib; needs > spec.minDisk {
		return imgError("IMG.0055", fmt.Sprintf("the disk needs a min_disk of %d", needs))
	}
	mf := bitmapKey(spec.key)
	_, class, err = s.opt.Objects.Stat(ctx, spec.bucket, mf)
	switch {
	case err != nil:
		return imgError("IMG.0158", mf+": "+reason(err))
	case class != "" && class != StorageStandard:
		return imgError("IMG.0057", "the bitmap's storage class is "+class)
	}
	return nil
}

// reason tells what went wrong without the paths of the storage's machine.
func reason(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "not found"
	}
	return "not accessible"
}
