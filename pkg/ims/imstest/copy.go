// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"
)

const (
	maxExport       = 128 << 30 // bytes; quick exports may be larger
	maxRegionCopy   = 128 << 30
	maxRegionCopies = 5 // at once
)

// ObjectWriter is an [Objects] that exports can be written to. Without it an
// export is only remembered.
type ObjectWriter interface {
	WriteObject(ctx context.Context, bucket, key string, data []byte) error
}

// usable finds an image that can be copied or exported: active, and the
// caller's own or accepted by it. The caller of this function holds the lock.
func (s *Server) usable(r *http.Request, id string) (*image, error) {
	im := s.find(id)
	var seen *image
	if im != nil {
		seen = im.seenBy(s.callerOf(r))
	}
	switch {
	case seen == nil:
		return nil, imgError("IMG.0027", "")
	case seen.str("__imagetype") == "gold":
		return nil, imgError("IMG.0083", "")
	case seen.str("status") != statusActive:
		return nil, imgError("IMG.0046", "its status is "+seen.str("status"))
	case seen.str("virtual_env_type") == "IsoImage":
		return nil, imgError("IMG.0167", "")
	}
	return seen, nil
}

func (im *image) bytes() int64 {
	n, _ := strconv.ParseInt(im.str("__image_size"), 10, 64)
	return n
}

// exportImage is POST /v1/cloudimages/{image_id}/file and its new form. The
// simulator keeps no disks: what it writes is a note.
func (s *Server) exportImage(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		BucketURL     string `json:"bucket_url"`
		FileFormat    string `json:"file_format"`
		IsQuickExport bool   `json:"is_quick_export"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	bucket, key, err := checkImageURL(q.BucketURL)
	if err != nil {
		return err
	}
	// The vendor's SDK cannot leave file_format out of a quick export.
	known := slices.Contains([]string{"qcow2", "vhd", "zvhd", "vmdk"}, q.FileFormat)
	if !known && !(q.IsQuickExport && slices.Contains([]string{"", "zvhd2"}, q.FileFormat)) {
		return imgError("IMG.0072", fmt.Sprintf("%q", q.FileFormat))
	}
	region, err := s.opt.Objects.BucketRegion(r.Context(), bucket)
	switch {
	case err != nil:
		return imgError("IMG.0069", reason(err))
	case region != s.opt.Region:
		return imgError("IMG.0058", "the bucket is in "+region)
	}
	_, _, statErr := s.opt.Objects.Stat(r.Context(), bucket, key)
	s.mu.Lock()
	defer s.mu.Unlock()
	im, err := s.usable(r, r.PathValue("image"))
	switch {
	case err != nil:
		return err
	case im.str("owner") != s.callerOf(r):
		return imgError("IMG.0047", "")
	case !q.IsQuickExport && im.bytes() > maxExport:
		return imgError("IMG.0160", "")
	case q.IsQuickExport && im.str("__system__cmkid") != "":
		return imgError("IMG.0105", "an encrypted image cannot be exported quickly")
	case statErr == nil || s.exports[q.BucketURL]:
		return imgError("IMG.0070", "")
	}
	if err := s.admit(); err != nil {
		return err
	}
	s.exports[q.BucketURL] = true
	note := fmt.Sprintf("image %s as %s", im.str("id"), or(q.FileFormat, "zvhd2"))
	j := &job{kind: jobExport, task: "ExportImageTask:", name: im.str("name"), image: im}
	return writeJob(w, s.start(j, func(ctx context.Context, progress func(float64) error) (func(time.Time), error) {
		if err := progress(0.5); err != nil {
			return nil, err
		}
		if o, ok := s.opt.Objects.(ObjectWriter); ok {
			if err := o.WriteObject(ctx, bucket, key, []byte(note)); err != nil {
				return nil, jobErrorf("IMG.0069", "%s", reason(err))
			}
		}
		return nil, nil
	}))
}

// copyImage is POST /v1/cloudimages/{image_id}/copy and its new form.
func (s *Server) copyImage(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Name                *string `json:"name"`
		Description         string  `json:"description"`
		CMKID               string  `json:"cmk_id"`
		EnterpriseProjectID string  `json:"enterprise_project_id"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	if q.Name == nil || *q.Name == "" {
		return imgError("IMG.0013", "")
	}
	if err := checkName(*q.Name); err != nil {
		return err
	}
	if err := checkDescription(q.Description); err != nil {
		return err
	}
	project := or(q.EnterpriseProjectID, "0")
	if project != "0" && !uuidPattern.MatchString(project) {
		return imgError("IMG.0155", "")
	}
	caller := s.callerOf(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	from, err := s.usable(r, r.PathValue("image"))
	switch {
	case err != nil:
		return err
	case from.str("owner") != caller && from.status != memberAccepted:
		return imgError("IMG.0196", "")
	case from.str("owner") != caller && from.str("__system__cmkid") != "":
		return imgError("IMG.0197", "")
	}
	if err := s.admit(); err != nil {
		return err
	}
	if err := s.admitImages(caller, *q.Name); err != nil {
		return err
	}
	now := s.now()
	id := randomUUID()
	im := &image{attrs: maps.Clone(from.attrs), created: now, updated: now, making: true}
	for name, value := range map[string]any{
		"id": id, "name": *q.Name, "owner": caller, "status": statusQueued, "visibility": "private", "__imagetype": "private",
		"protected": false, "file": "/v2/images/" + id + "/file", "self": "/v2/images/" + id, "__description": q.Description,
		"__system__cmkid": q.CMKID, "enterprise_project_id": project, "__root_origin": "image",
		"__data_origin": "image," + s.opt.Region + "," + from.str("id"), "__originalimagename": from.str("id"),
		"created_at": now.Format(imageTime), "updated_at": now.Format(imageTime),
	} {
		im.set(name, value)
	}
	s.images = append(s.images, im)
	j := &job{kind: jobCopy, task: "CopyImageInRegionTask:", name: *q.Name, image: im, makes: true}
	return writeJob(w, s.start(j, func(_ context.Context, progress func(float64) error) (func(time.Time), error) {
		if err := progress(0.5); err != nil {
			return nil, err
		}
		return func(now time.Time) {
			im.making = false
			im.set("status", statusActive)
			im.set("active_at", now.Format(imageTime))
			im.touch(now)
		}, nil
	}))
}

// copyToRegion is POST /v1/cloudimages/{image_id}/cross_region_copy. The other
// region is out of sight.
func (s *Server) copyToRegion(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		Region      string `json:"region"`
		ProjectName string `json:"project_name"`
		AgencyName  string `json:"agency_name"`
		VaultID     string `json:"vault_id"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	if q.Name == "" {
		return imgError("IMG.0013", "")
	}
	if err := checkName(q.Name); err != nil {
		return err
	}
	if err := checkDescription(q.Description); err != nil {
		return err
	}
	switch {
	case q.Region == s.opt.Region:
		return imgError("IMG.0142", "")
	case !slices.Contains(s.opt.OtherRegions, q.Region):
		return imgError("IMG.0147", fmt.Sprintf("%q", q.Region))
	case q.ProjectName != q.Region:
		return imgError("IMG.0145", "the projects of the simulator's regions have the regions' names")
	case q.AgencyName == "":
		return imgError("IMG.0179", "there is no agency_name")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	im, err := s.usable(r, r.PathValue("image"))
	switch {
	case err != nil:
		return err
	case im.str("owner") != s.callerOf(r):
		return imgError("IMG.0047", "")
	case im.str("__system__cmkid") != "":
		return imgError("IMG.0143", "")
	case im.bytes() > maxRegionCopy:
		return imgError("IMG.0146", "")
	}
	running := 0
	for _, j := range s.jobs {
		if j.kind == jobRegionCopy && (j.status == jobInit || j.status == jobRunning) {
			running++
		}
	}
	if running >= maxRegionCopies {
		return imgError("IMG.0149", "")
	}
	if err := s.admit(); err != nil {
		return err
	}
	// The job knows the copy, this region's lists do not.
	there := &image{attrs: map[string]any{"id": randomUUID(), "name": q.Name}}
	j := &job{kind: jobRegionCopy, task: "CopyImageCrossRegionTask:", name: q.Name, image: there}
	return writeJob(w, s.start(j, func(_ context.Context, progress func(float64) error) (func(time.Time), error) {
		return nil, progress(0.5)
	}))
}
