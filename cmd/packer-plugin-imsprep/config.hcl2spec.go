// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/zclconf/go-cty/cty"
)

// FlatConfig is Config as HCL2 decodes it: what isn't given is nil. It is kept by hand in the form that packer-sdc's
// mapstructure-to-hcl2 writes; a test holds it against Config.
type FlatConfig struct {
	PackerBuildName     *string           `mapstructure:"packer_build_name" cty:"packer_build_name" hcl:"packer_build_name"`
	PackerBuilderType   *string           `mapstructure:"packer_builder_type" cty:"packer_builder_type" hcl:"packer_builder_type"`
	PackerCoreVersion   *string           `mapstructure:"packer_core_version" cty:"packer_core_version" hcl:"packer_core_version"`
	PackerDebug         *bool             `mapstructure:"packer_debug" cty:"packer_debug" hcl:"packer_debug"`
	PackerForce         *bool             `mapstructure:"packer_force" cty:"packer_force" hcl:"packer_force"`
	PackerOnError       *string           `mapstructure:"packer_on_error" cty:"packer_on_error" hcl:"packer_on_error"`
	PackerUserVars      map[string]string `mapstructure:"packer_user_variables" cty:"packer_user_variables" hcl:"packer_user_variables"`
	PackerSensitiveVars []string          `mapstructure:"packer_sensitive_variables" cty:"packer_sensitive_variables" hcl:"packer_sensitive_variables"`
	AccessKey           *string           `mapstructure:"access_key" cty:"access_key" hcl:"access_key"`
	SecretKey           *string           `mapstructure:"secret_key" cty:"secret_key" hcl:"secret_key"`
	SecurityToken       *string           `mapstructure:"security_token" cty:"security_token" hcl:"security_token"`
	Profile             *string           `mapstructure:"profile" cty:"profile" hcl:"profile"`
	AssumeAgency        *string           `mapstructure:"assume_agency" cty:"assume_agency" hcl:"assume_agency"`
	AssumeDomain        *string           `mapstructure:"assume_domain" cty:"assume_domain" hcl:"assume_domain"`
	Region              *string           `mapstructure:"region" cty:"region" hcl:"region"`
	ProjectID           *string           `mapstructure:"project_id" cty:"project_id" hcl:"project_id"`
	Cloud               *string           `mapstructure:"cloud" cty:"cloud" hcl:"cloud"`
	OBSEndpoint         *string           `mapstructure:"obs_endpoint" cty:"obs_endpoint" hcl:"obs_endpoint"`
	IMSEndpoint         *string           `mapstructure:"ims_endpoint" cty:"ims_endpoint" hcl:"ims_endpoint"`
	IAMEndpoint         *string           `mapstructure:"iam_endpoint" cty:"iam_endpoint" hcl:"iam_endpoint"`
	Bucket              *string           `mapstructure:"bucket" cty:"bucket" hcl:"bucket"`
	Key                 *string           `mapstructure:"key" cty:"key" hcl:"key"`
	ImageName           *string           `mapstructure:"image_name" required:"true" cty:"image_name" hcl:"image_name"`
	ImageDescription    *string           `mapstructure:"image_description" cty:"image_description" hcl:"image_description"`
	ImageTags           map[string]string `mapstructure:"image_tags" cty:"image_tags" hcl:"image_tags"`
	OSVersion           *string           `mapstructure:"os_version" cty:"os_version" hcl:"os_version"`
	DataDisk            *bool             `mapstructure:"data_disk" cty:"data_disk" hcl:"data_disk"`
	OSType              *string           `mapstructure:"os_type" cty:"os_type" hcl:"os_type"`
	MinDisk             *int              `mapstructure:"min_disk" cty:"min_disk" hcl:"min_disk"`
	Architecture        *string           `mapstructure:"architecture" cty:"architecture" hcl:"architecture"`
	Firmware            *string           `mapstructure:"firmware" cty:"firmware" hcl:"firmware"`
	EnterpriseProjectID *string           `mapstructure:"enterprise_project_id" cty:"enterprise_project_id" hcl:"enterprise_project_id"`
	AllowDuplicateName  *bool             `mapstructure:"allow_duplicate_name" cty:"allow_duplicate_name" hcl:"allow_duplicate_name"`
	Disk                *string           `mapstructure:"disk" cty:"disk" hcl:"disk"`
	SourceFormat        *string           `mapstructure:"source_format" cty:"source_format" hcl:"source_format"`
	AllowBacking        *bool             `mapstructure:"allow_backing" cty:"allow_backing" hcl:"allow_backing"`
	Format              *string           `mapstructure:"format" cty:"format" hcl:"format"`
	Verify              *bool             `mapstructure:"verify" cty:"verify" hcl:"verify"`
	KeepObject          *bool             `mapstructure:"keep_object" cty:"keep_object" hcl:"keep_object"`
	StateDir            *string           `mapstructure:"state_dir" cty:"state_dir" hcl:"state_dir"`
	WaitTimeout         *string           `mapstructure:"wait_timeout" cty:"wait_timeout" hcl:"wait_timeout"`
	PollInterval        *string           `mapstructure:"poll_interval" cty:"poll_interval" hcl:"poll_interval"`
	KeepInputArtifact   *bool             `mapstructure:"keep_input_artifact" cty:"keep_input_artifact" hcl:"keep_input_artifact"`
}

// FlatMapstructure returns a new FlatConfig.
func (*Config) FlatMapstructure() interface{ HCL2Spec() map[string]hcldec.Spec } {
	return new(FlatConfig)
}

// HCL2Spec tells Packer the options and their types.
func (*FlatConfig) HCL2Spec() map[string]hcldec.Spec {
	return map[string]hcldec.Spec{
		"packer_build_name":          &hcldec.AttrSpec{Name: "packer_build_name", Type: cty.String, Required: false},
		"packer_builder_type":        &hcldec.AttrSpec{Name: "packer_builder_type", Type: cty.String, Required: false},
		"packer_core_version":        &hcldec.AttrSpec{Name: "packer_core_version", Type: cty.String, Required: false},
		"packer_debug":               &hcldec.AttrSpec{Name: "packer_debug", Type: cty.Bool, Required: false},
		"packer_force":               &hcldec.AttrSpec{Name: "packer_force", Type: cty.Bool, Required: false},
		"packer_on_error":            &hcldec.AttrSpec{Name: "packer_on_error", Type: cty.String, Required: false},
		"packer_user_variables":      &hcldec.AttrSpec{Name: "packer_user_variables", Type: cty.Map(cty.String), Required: false},
		"packer_sensitive_variables": &hcldec.AttrSpec{Name: "packer_sensitive_variables", Type: cty.List(cty.String), Required: false},
		"access_key":                 &hcldec.AttrSpec{Name: "access_key", Type: cty.String, Required: false},
		"secret_key":                 &hcldec.AttrSpec{Name: "secret_key", Type: cty.String, Required: false},
		"security_token":             &hcldec.AttrSpec{Name: "security_token", Type: cty.String, Required: false},
		"profile":                    &hcldec.AttrSpec{Name: "profile", Type: cty.String, Required: false},
		"assume_agency":              &hcldec.AttrSpec{Name: "assume_agency", Type: cty.String, Required: false},
		"assume_domain":              &hcldec.AttrSpec{Name: "assume_domain", Type: cty.String, Required: false},
		"region":                     &hcldec.AttrSpec{Name: "region", Type: cty.String, Required: false},
		"project_id":                 &hcldec.AttrSpec{Name: "project_id", Type: cty.String, Required: false},
		"cloud":                      &hcldec.AttrSpec{Name: "cloud", Type: cty.String, Required: false},
		"obs_endpoint":               &hcldec.AttrSpec{Name: "obs_endpoint", Type: cty.String, Required: false},
		"ims_endpoint":               &hcldec.AttrSpec{Name: "ims_endpoint", Type: cty.String, Required: false},
		"iam_endpoint":               &hcldec.AttrSpec{Name: "iam_endpoint", Type: cty.String, Required: false},
		"bucket":                     &hcldec.AttrSpec{Name: "bucket", Type: cty.String, Required: false},
		"key":                        &hcldec.AttrSpec{Name: "key", Type: cty.String, Required: false},
		"image_name":                 &hcldec.AttrSpec{Name: "image_name", Type: cty.String, Required: false},
		"image_description":          &hcldec.AttrSpec{Name: "image_description", Type: cty.String, Required: false},
		"image_tags":                 &hcldec.AttrSpec{Name: "image_tags", Type: cty.Map(cty.String), Required: false},
		"os_version":                 &hcldec.AttrSpec{Name: "os_version", Type: cty.String, Required: false},
		"data_disk":                  &hcldec.AttrSpec{Name: "data_disk", Type: cty.Bool, Required: false},
		"os_type":                    &hcldec.AttrSpec{Name: "os_type", Type: cty.String, Required: false},
		"min_disk":                   &hcldec.AttrSpec{Name: "min_disk", Type: cty.Number, Required: false},
		"architecture":               &hcldec.AttrSpec{Name: "architecture", Type: cty.String, Required: false},
		"firmware":                   &hcldec.AttrSpec{Name: "firmware", Type: cty.String, Required: false},
		"enterprise_project_id":      &hcldec.AttrSpec{Name: "enterprise_project_id", Type: cty.String, Required: false},
		"allow_duplicate_name":       &hcldec.AttrSpec{Name: "allow_duplicate_name", Type: cty.Bool, Required: false},
		"disk":                       &hcldec.AttrSpec{Name: "disk", Type: cty.String, Required: false},
		"source_format":              &hcldec.AttrSpec{Name: "source_format", Type: cty.String, Required: false},
		"allow_backing":              &hcldec.AttrSpec{Name: "allow_backing", Type: cty.Bool, Required: false},
		"format":                     &hcldec.AttrSpec{Name: "format", Type: cty.String, Required: false},
		"verify":                     &hcldec.AttrSpec{Name: "verify", Type: cty.Bool, Required: false},
		"keep_object":                &hcldec.AttrSpec{Name: "keep_object", Type: cty.Bool, Required: false},
		"state_dir":                  &hcldec.AttrSpec{Name: "state_dir", Type: cty.String, Required: false},
		"wait_timeout":               &hcldec.AttrSpec{Name: "wait_timeout", Type: cty.String, Required: false},
		"poll_interval":              &hcldec.AttrSpec{Name: "poll_interval", Type: cty.String, Required: false},
		"keep_input_artifact":        &hcldec.AttrSpec{Name: "keep_input_artifact", Type: cty.Bool, Required: false},
	}
}
