// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"fmt"
	"net/http"
)

// ExportFormats are what [Export.Format] can be.
func ExportFormats() []string { return []string{"qcow2", "vhd", "zvhd", "vmdk"} }

// Export says how to write an image to an object.
type Export struct {
	BucketURL string // the object to make, written as in [ImageURL]; it must not exist
	// Format is one of ExportFormats; empty with Quick, whose result is always ZVHD2.
	Format string
	// Quick needs no conversion and takes images of up to 1 TB (128 GB otherwise), but no encrypted
	// ones.
	Quick bool
}

// ExportImage starts a job that writes an image to a bucket of class Standard in the same region:
// POST /v1/cloudimages/{image_id}/file, or /v2.1/… in the newer generation (IMS API, "Exporting an
// Image"). The request is not repeated when its answer is lost, see [LostAnswerError].
func (c *Client) ExportImage(ctx context.Context, imageID string, e Export, gen Generation) (jobID string, err error) {
	var v checker
	v.id("image id", imageID)
	v.rule("bucket_url", e.BucketURL, checkObjectURL(e.BucketURL))
	switch {
	case e.Quick && e.Format != "":
		v.bad("file_format", e.Format, "must be left out of a quick export, which makes zvhd2")
	case !e.Quick && e.Format == "":
		v.bad("file_format", "", "is required: qcow2, vhd, zvhd or vmdk")
	default:
		v.oneOf("file_format", e.Format, ExportFormats()...)
	}
	if err := v.err(); err != nil {
		return "", err
	}
	s, err := c.submit(ctx, submission{
		call: call{
			op: "export image " + imageID, service: serviceIMS, method: http.MethodPost, success: acceptedStatuses,
			body: struct {
				BucketURL     string `json:"bucket_url"`
				FileFormat    string `json:"file_format,omitempty"`
				IsQuickExport bool   `json:"is_quick_export,omitempty"`
			}{e.BucketURL, e.Format, e.Quick},
		},
		targets: gen.targetsOf("/v1/cloudimages/"+imageID+"/file", "/v2.1/cloudimages/"+imageID+"/file"),
		check:   "look whether the object " + e.BucketURL + " appears.",
	})
	if err != nil {
		return "", err
	}
	return s.JobID, nil
}

// Copy describes the copy of an image in the same region.
type Copy struct {
	Name                string
	Description         string
	KMSKey              string // to encrypt the copy with; empty: the copy is not encrypted
	EnterpriseProjectID string
}

// CopyImage starts a job that copies an image in the region: POST /v1/cloudimages/{image_id}/copy,
// or /v2.1/… in the newer generation (IMS API, "Replicating an Image Within a Region"). When the
// answer is lost the copy is looked for by its name and time of creation, as in
// [Client.QuickImport].
func (c *Client) CopyImage(ctx context.Context, imageID string, r Copy, gen Generation) (*Submitted, error) {
	var v checker
	v.id("image id", imageID)
	v.rule("name", r.Name, checkName(r.Name))
	v.rule("description", r.Description, checkDescription(r.Description))
	if r.KMSKey != "" {
		v.id("cmk_id", r.KMSKey)
	}
	v.enterpriseProject(r.EnterpriseProjectID)
	if err := v.err(); err != nil {
		return nil, err
	}
	return c.submit(ctx, submission{
		call: call{
			op:      fmt.Sprintf("copy image %s to %q", imageID, r.Name),
			service: serviceIMS, method: http.MethodPost, success: acceptedStatuses,
			body: struct {
				Name                string `json:"name"`
				Description         string `json:"description,omitempty"`
				CMKID               string `json:"cmk_id,omitempty"`
				EnterpriseProjectID string `json:"enterprise_project_id,omitempty"`
			}{r.Name, r.Description, r.KMSKey, r.EnterpriseProjectID},
		},
		targets: gen.targetsOf("/v1/cloudimages/"+imageID+"/copy", "/v2.1/cloudimages/"+imageID+"/copy"),
		name:    r.Name,
	})
}

// RegionCopy describes the copy of an image in another region.
type RegionCopy struct {
	Name        string
	Description string
	Region      string // the target
	ProjectName string // of the target region
	AgencyName  string // the agency with IMS Administrator in both regions
	VaultID     string // for full-server images
}

// CopyImageToRegion starts a job that copies an image to another region:
// POST /v1/cloudimages/{image_id}/cross_region_copy (IMS API, "Replicating an Image Across
// Regions"). At most five run at once. Follow the job with [Client.WaitJob]; the request is not
// repeated when its answer is lost, see [LostAnswerError].
func (c *Client) CopyImageToRegion(ctx context.Context, imageID string, r RegionCopy) (jobID string, err error) {
	var v checker
	v.id("image id", imageID)
	v.rule("name", r.Name, checkName(r.Name))
	v.rule("description", r.Description, checkDescription(r.Description))
	if r.Region == "" || !validRegion(r.Region) {
		v.bad("region", r.Region, "must be a region's id")
	}
	for _, f := range [][2]string{{"project_name", r.ProjectName}, {"agency_name", r.AgencyName}} {
		if f[1] == "" || cleanText(f[1], 200) != f[1] {
			v.bad(f[0], f[1], "is required")
		}
	}
	if r.VaultID != "" {
		v.id("vault_id", r.VaultID)
	}
	if err := v.err(); err != nil {
		return "", err
	}
	return c.startJob(ctx, call{
		op: fmt.Sprintf("copy image %s to %q in region %s", imageID, r.Name, r.Region), method: http.MethodPost,
		path: "/v1/cloudimages/" + imageID + "/cross_region_copy",
		body: struct {
			Name        string `json:"name"`
			Description string `json:"description,omitempty"`
			Region      string `json:"region"`
			ProjectName string `json:"project_name"`
			AgencyName  string `json:"agency_name"`
			VaultID     string `json:"vault_id,omitempty"`
		}{r.Name, r.Description, r.Region, r.ProjectName, r.AgencyName, r.VaultID},
	}, fmt.Sprintf("look for an image named %q in region %s.", r.Name, r.Region))
}
