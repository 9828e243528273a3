// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/imsprep/imsprep/convert"
)

const (
	maxDataImages  = 3
	maxDataMinDisk = 2048 // GiB
	minDataMinDisk = 40   // GiB, of a data disk imported alone
	otherLinux     = "Other Linux (64 bit)"
)

// commonFormats are the endings of keys that are converted.
var commonFormats = []string{"vmdk", "vhd", "qcow2", "raw", "vhdx", "qed", "vdi", "qcow", "zvhd2", "zvhd"}

// commonImportRequest is the body of the import that converts, in all of its
// uses.
type commonImportRequest struct {
	Name                *string            `json:"name"`
	Description         string             `json:"description"`
	ImageURL            *string            `json:"image_url"`
	MinDisk             *int64             `json:"min_disk"`
	OSType              string             `json:"os_type"`
	OSVersion           string             `json:"os_version"`
	IsConfig            bool               `json:"is_config"`
	CMKID               string             `json:"cmk_id"`
	Type                string             `json:"type"`
	Architecture        string             `json:"architecture"`
	FirmwareType        string             `json:"hw_firmware_type"`
	IsQuickImport       bool               `json:"is_quick_import"`
	LicenseType         string             `json:"license_type"`
	EnterpriseProjectID string             `json:"enterprise_project_id"`
	MinRAM              *int               `json:"min_ram"`
	MaxRAM              *int               `json:"max_ram"`
	Tags                []string           `json:"tags"`
	ImageTags           []Tag              `json:"image_tags"`
	DataImages          []dataImageRequest `json:"data_images"`

	InstanceID string `json:"instance_id"`
	VolumeID   string `json:"volume_id"`
}

type dataImageRequest struct {
	Name          string   `json:"name"`
	Description   string   `json:"description"`
	ImageURL      *string  `json:"image_url"`
	MinDisk       *int64   `json:"min_disk"`
	IsQuickImport bool     `json:"is_quick_import"`
	Tags          []string `json:"tags"`
	ImageTags     []Tag    `json:"image_tags"`
	VolumeID      string   `json:"volume_id"`
}

// commonImport is POST /v2/cloudimages/action and its new form. Servers and
// volumes, of which it could make images too, do not exist here.
func (s *Server) commonImport(w http.ResponseWriter, r *http.Request) error {
	var q commonImportRequest
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	switch {
	case q.InstanceID != "":
		return imgError("IMG.0005", "the simulator has no servers")
	case q.VolumeID != "" || slices.ContainsFunc(q.DataImages, func(d dataImageRequest) bool { return d.VolumeID != "" }):
		return imgError("IMG.0120", "the simulator has no volumes")
	case len(q.DataImages) > maxDataImages:
		return imgError("IMG.0194", "")
	}
	main, err := s.checkCommonImport(&q)
	if err != nil {
		return err
	}
	specs := []*importSpec{main}
	for n, d := range q.DataImages {
		spec, err := s.checkDataImage(main, n, &d)
		if err != nil {
			return err
		}
		for _, o := range specs {
			if o.bucket == spec.bucket && o.key == spec.key {
				return imgError("IMG.0123", "")
			}
		}
		specs = append(specs, spec)
	}
	if faultsOf(r).flowControl {
		return imgError("IMG.0060", "")
	}
	for _, spec := range specs {
		spec.owner = s.callerOf(r)
		if err := s.checkObject(r.Context(), spec); err != nil {
			return err
		}
	}
	return s.accept(w, specs...)
}

func (s *Server) checkCommonImport(q *commonImportRequest) (*importSpec, error) {
	iso := q.Type == "IsoImage"
	quick := &quickImportRequest{
		Name: q.Name, Description: q.Description, ImageURL: q.ImageURL, MinDisk: q.MinDisk, OSVersion: q.OSVersion,
		Architecture: q.Architecture, FirmwareType: q.FirmwareType, LicenseType: q.LicenseType,
		EnterpriseProjectID: q.EnterpriseProjectID, Tags: q.Tags, ImageTags: q.ImageTags,
	}
	switch q.Type {
	case "", "ECS", "FusionCompute", "IsoImage":
	case "BMS", "Ironic":
		quick.Type = "BMS"
		if q.CMKID != "" {
			return nil, imgError("IMG.0118", "")
		}
	default:
		return nil, imgError("IMG.0024", fmt.Sprintf("%q", q.Type))
	}
	if !slices.Contains([]string{"", "Linux", "Windows", "Other"}, q.OSType) {
		return nil, imgError("IMG.0122", fmt.Sprintf("%q is none of Linux, Windows, Other", q.OSType))
	}
	recognized := q.OSVersion == ""
	switch {
	case recognized && q.IsQuickImport:
		return nil, imgError("IMG.0159", "")
	case recognized && iso:
		return nil, imgError("IMG.0166", "")
	case recognized:
		// The simulator recognizes no system in a disk, as the service may not either.
		quick.OSVersion = s.opt.OSVersions[0].Key
	}
	if q.MinRAM != nil && *q.MinRAM < 0 || q.MaxRAM != nil && *q.MaxRAM < 0 {
		return nil, imgError("IMG.0055", "min_ram, max_ram")
	}
	if q.Name == nil || *q.Name == "" {
		return nil, imgError("IMG.0013", "")
	}
	// Everything but the object's ending is as in a quick import.
	bucket, key, err := quick.takeKey()
	if err != nil {
		return nil, err
	}
	spec, err := s.checkQuickImport(quick)
	if err != nil {
		return nil, err
	}
	spec.bucket, spec.key, spec.quick, spec.iso = bucket, key, q.IsQuickImport, iso
	if recognized {
		spec.os = OSVersion{Platform: "Other", Key: otherLinux, Version: otherLinux, Bit: 64, OSType: or(q.OSType, "Linux")}
		spec.osType = spec.os.OSType
	}
	if spec.format, err = checkEnding(key, spec.quick, iso); err != nil {
		return nil, err
	}
	spec.cmkID = q.CMKID
	if q.MinRAM != nil {
		spec.minRAM = *q.MinRAM
	}
	if q.MaxRAM != nil {
		spec.maxRAM = strconv.Itoa(*q.MaxRAM)
	}
	return spec, nil
}

// takeKey checks the object's name and puts one in its place that a quick
// import takes.
func (q *quickImportRequest) takeKey() (bucket, key string, err error) {
	if q.ImageURL == nil {
		return "", "", imgError("IMG.0017", "image_url is missing")
	}
	if bucket, key, err = checkImageURL(*q.ImageURL); err != nil {
		return "", "", err
	}
	stand := bucket + ":x.raw"
	q.ImageURL = &stand
	return bucket, key, nil
}

func checkEnding(key string, quick, iso bool) (string, error) {
	ending := strings.ToLower(strings.TrimPrefix(filepath.Ext(key), "."))
	switch {
	case quick && ending != "raw" && ending != "zvhd2":
		return "", imgError("IMG.0158", "the object's name ends in neither .raw nor .zvhd2")
	case iso != (ending == "iso") || !iso && !slices.Contains(commonFormats, ending):
		return "", imgError("IMG.0072", "the object's name ends in ."+ending)
	}
	return ending, nil
}

func (s *Server) checkDataImage(main *importSpec, n int, d *dataImageRequest) (*importSpec, error) {
	name := or(d.Name, fmt.Sprintf("%s-data%d", main.name, n+1))
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := checkDescription(d.Description); err != nil {
		return nil, err
	}
	tags, err := checkTags(d.Tags, d.ImageTags)
	if err != nil {
		return nil, err
	}
	if d.MinDisk == nil || *d.MinDisk < 1 || *d.MinDisk > maxDataMinDisk {
		return nil, imgError("IMG.0055", fmt.Sprintf("min_disk of a data disk is from 1 to %d", maxDataMinDisk))
	}
	if d.ImageURL == nil {
		return nil, imgError("IMG.0017", "image_url is missing")
	}
	spec := &importSpec{
		name: name, description: or(d.Description, main.description), tags: tags, minDisk: *d.MinDisk, dataDisk: true,
		osType: main.osType, quick: d.IsQuickImport, cmkID: main.cmkID, jobType: jobImportData,
		enterpriseProjectID: main.enterpriseProjectID,
	}
	if spec.bucket, spec.key, err = checkImageURL(*d.ImageURL); err != nil {
		return nil, err
	}
	spec.format, err = checkEnding(spec.key, spec.quick, false)
	return spec, err
}

// importDataDisk is POST /v1/cloudimages/dataimages/action and its new form.
func (s *Server) importDataDisk(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Name                *string  `json:"name"`
		Description         string   `json:"description"`
		ImageURL            *string  `json:"image_url"`
		MinDisk             *int64   `json:"min_disk"`
		OSType              string   `json:"os_type"`
		CMKID               string   `json:"cmk_id"`
		EnterpriseProjectID string   `json:"enterprise_project_id"`
		Tags                []string `json:"tags"`
		ImageTags           []Tag    `json:"image_tags"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	if q.Name == nil || *q.Name == "" {
		return imgError("IMG.0013", "")
	}
	if !slices.Contains([]string{"", "Linux", "Windows"}, q.OSType) {
		return imgError("IMG.0122", fmt.Sprintf("%q is neither Linux nor Windows", q.OSType))
	}
	if q.MinDisk == nil || *q.MinDisk < minDataMinDisk {
		return imgError("IMG.0055", fmt.Sprintf("min_disk is from %d to %d", minDataMinDisk, maxDataMinDisk))
	}
	project := or(q.EnterpriseProjectID, "0")
	if project != "0" && !uuidPattern.MatchString(project) {
		return imgError("IMG.0155", "")
	}
	spec, err := s.checkDataImage(
		&importSpec{name: *q.Name, osType: or(q.OSType, "Linux"), cmkID: q.CMKID, enterpriseProjectID: project}, 0,
		&dataImageRequest{
			Name: *q.Name, Description: q.Description, ImageURL: q.ImageURL, MinDisk: q.MinDisk, Tags: q.Tags, ImageTags: q.ImageTags,
		})
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

// createWholeImage is POST /v1/cloudimages/wholeimages/action. It makes an
// image of a server or of a backup, and neither exists here.
func (s *Server) createWholeImage(_ http.ResponseWriter, r *http.Request) error {
	var q struct {
		Name                string   `json:"name"`
		Description         string   `json:"description"`
		InstanceID          string   `json:"instance_id"`
		BackupID            string   `json:"backup_id"`
		WholeImageType      string   `json:"whole_image_type"`
		VaultID             string   `json:"vault_id"`
		EnterpriseProjectID string   `json:"enterprise_project_id"`
		MinRAM              int      `json:"min_ram"`
		MaxRAM              int      `json:"max_ram"`
		Tags                []string `json:"tags"`
		ImageTags           []Tag    `json:"image_tags"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	if err := checkName(q.Name); err != nil {
		return err
	}
	return imgError("IMG.0005", "the simulator has no servers")
}

// readConverted reads an object in any format that package convert knows: it is
// brought to a file of its own, without its zeros, and read from there.
func (s *Server) readConverted(
	ctx context.Context, obj io.ReaderAt, spec *importSpec, progress func(float64) error,
) (*content, error) {
	dir, err := os.MkdirTemp(s.opt.TempDir, "imstest-")
	if err != nil {
		return nil, jobErrorf("IMG.0061", "no room to convert the disk")
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "disk."+spec.format)
	if err := fetch(ctx, obj, spec.size, path, func(done float64) error { return progress(done / 2) }); err != nil {
		return nil, err
	}
	o := convert.OpenOptions{}
	switch spec.format {
	case "raw", "iso":
		o.Format = "raw" // its content tells nothing
	}
	image, err := convert.Open(ctx, path, o)
	var refused *convert.RefusedError
	switch {
	case errors.As(err, &refused):
		// The file's name on this machine says nothing to anybody.
		return nil, jobErrorf("IMG.0072", "%s: %s", spec.key, refused.Reason)
	case err != nil:
		return nil, jobErrorf("IMG.0057", "%s cannot be read", spec.key)
	}
	defer image.Close()
	size := image.Size()
	if size <= 0 || size > spec.minDisk*gib {
		return nil, jobErrorf("IMG.0055", "the disk has %d bytes, min_disk is %d", size, spec.minDisk)
	}
	scanner := convert.NewScanner(image, nil)
	return rebuild(ctx, diskContent(ctx, scanner, size, spec.key), s.opt.HashLimit, func(done float64) error {
		return progress(0.5 + done/2)
	})
}

// diskContent reads a disk that was opened for conversion.
func diskContent(ctx context.Context, scanner *convert.Scanner, size int64, key string) disk {
	return disk{size, func(off int64, p []byte) (marked int64, err error) {
		zero, err := scanner.ReadRange(ctx, p, off)
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case err != nil:
			return 0, jobErrorf("IMG.1075", "%s: the disk cannot be read at %d", key, off)
		case zero:
			return 0, nil
		}
		return int64(len(p)), nil
	}}
}

// fetch copies an object into a file and leaves holes for its zeros.
func fetch(ctx context.Context, obj io.ReaderAt, size int64, path string, progress func(float64) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return jobErrorf("IMG.0061", "no room to convert the disk")
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := progress(float64(off) / float64(size)); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), size-off)]
		if n, err := obj.ReadAt(p, off); n < len(p) {
			return jobErrorf("IMG.0057", "read %d bytes at %d: %v", len(p), off, err)
		}
		if isZero(p) {
			continue
		}
		if _, err := f.WriteAt(p, off); err != nil {
			return jobErrorf("IMG.0061", "no room to convert the disk")
		}
	}
	if err := f.Truncate(size); err != nil {
		return jobErrorf("IMG.0061", "no room to convert the disk")
	}
	return f.Close()
}
