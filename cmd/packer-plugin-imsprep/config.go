// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/packer-plugin-sdk/common"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"github.com/hashicorp/packer-plugin-sdk/template/config"
	"github.com/hashicorp/packer-plugin-sdk/template/interpolate"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/settings"
)

// Config are the options of the post-processor; docs/packer.md is the manual of them. What isn't given is taken from
// the environment, as the command does.
type Config struct {
	common.PackerConfig `mapstructure:",squash"`

	AccessKey     string `mapstructure:"access_key"`
	SecretKey     string `mapstructure:"secret_key"`
	SecurityToken string `mapstructure:"security_token"`
	Profile       string `mapstructure:"profile"`
	AssumeAgency  string `mapstructure:"assume_agency"`
	AssumeDomain  string `mapstructure:"assume_domain"`
	Region        string `mapstructure:"region"`
	ProjectID     string `mapstructure:"project_id"`
	Cloud         string `mapstructure:"cloud"`
	OBSEndpoint   string `mapstructure:"obs_endpoint"`
	IMSEndpoint   string `mapstructure:"ims_endpoint"`
	IAMEndpoint   string `mapstructure:"iam_endpoint"`

	Bucket              string            `mapstructure:"bucket"`
	Key                 string            `mapstructure:"key"`
	ImageName           string            `mapstructure:"image_name" required:"true"`
	ImageDescription    string            `mapstructure:"image_description"`
	ImageTags           map[string]string `mapstructure:"image_tags"`
	OSVersion           string            `mapstructure:"os_version"`
	DataDisk            bool              `mapstructure:"data_disk"`
	OSType              string            `mapstructure:"os_type"`
	MinDisk             int               `mapstructure:"min_disk"`
	Architecture        string            `mapstructure:"architecture"`
	Firmware            string            `mapstructure:"firmware"`
	EnterpriseProjectID string            `mapstructure:"enterprise_project_id"`
	AllowDuplicateName  bool              `mapstructure:"allow_duplicate_name"`

	Disk         string        `mapstructure:"disk"`
	SourceFormat string        `mapstructure:"source_format"`
	AllowBacking bool          `mapstructure:"allow_backing"`
	Format       string        `mapstructure:"format"`
	Verify       bool          `mapstructure:"verify"`
	KeepObject   bool          `mapstructure:"keep_object"`
	StateDir     string        `mapstructure:"state_dir"`
	WaitTimeout  time.Duration `mapstructure:"wait_timeout"`
	PollInterval time.Duration `mapstructure:"poll_interval"`

	KeepInputArtifact *bool `mapstructure:"keep_input_artifact"`

	ctx interpolate.Context
}

// decode reads the options, completes them and checks what can be checked before there is a disk.
func (c *Config) decode(raws []any) error {
	*c = Config{}
	err := config.Decode(c, &config.DecodeOpts{
		PluginType:         "packer.post-processor.imsprep",
		Interpolate:        true,
		InterpolateContext: &c.ctx,
	}, raws...)
	hide(c.SecretKey, c.SecurityToken)
	if err != nil {
		return err
	}
	if c.WaitTimeout == 0 {
		c.WaitTimeout = 2 * time.Hour
	}
	if c.PollInterval == 0 {
		c.PollInterval = 10 * time.Second
	}
	if c.Format == "" {
		c.Format = string(pipeline.FormatAuto)
	}
	var errs *packersdk.MultiError
	wrong := func(format string, args ...any) { errs = packersdk.MultiErrorAppend(errs, fmt.Errorf(format, args...)) }
	switch {
	case c.ImageName == "":
		wrong("image_name is needed")
	case c.DataDisk && c.OSVersion != "":
		wrong("os_version is for system disks: with data_disk give os_type, or nothing")
	case !c.DataDisk && c.OSVersion == "":
		wrong("os_version is needed, exactly as the region lists it (or data_disk for a disk without a system)")
	}
	if f := pipeline.Format(c.Format); f != pipeline.FormatAuto && f != pipeline.FormatRAW && f != pipeline.FormatZVHD2 {
		wrong("format %q: it is one of auto, raw, zvhd2", c.Format)
	}
	if c.SourceFormat != "" && !slices.Contains(convert.FormatNames(), c.SourceFormat) {
		wrong("source_format %q: it is one of %v", c.SourceFormat, convert.FormatNames())
	}
	if c.WaitTimeout < 0 || c.PollInterval < 0 {
		wrong("wait_timeout and poll_interval must be longer than nothing")
	}
	if (c.AccessKey == "") != (c.SecretKey == "") {
		wrong("access_key and secret_key are needed together")
	}
	if errs != nil && len(errs.Errors) > 0 {
		return errs
	}
	return nil
}

// hide keeps secrets out of everything that Packer prints and logs.
func hide(secrets ...string) {
	for _, s := range secrets {
		if s != "" {
			packersdk.LogSecretFilter.Set(s)
		}
	}
}

func (c *Config) options() settings.Options {
	return settings.Options{
		Region: c.Region, ProjectID: c.ProjectID, Cloud: c.Cloud,
		AccessKey: c.AccessKey, SecretKey: c.SecretKey, SecurityToken: c.SecurityToken,
		Profile: c.Profile, Agency: c.AssumeAgency, AgencyDomain: c.AssumeDomain,
		OBSEndpoint: c.OBSEndpoint, IMSEndpoint: c.IMSEndpoint, IAMEndpoint: c.IAMEndpoint,
	}
}

// request is the import of a disk as the options want it. sourceFormat is what the builder says, "" if nothing.
func (c *Config) request(disk, sourceFormat string, o *settings.Sources, s *settings.Settings) (pipeline.Request, error) {
	r := pipeline.Request{
		Source: disk,
		Open:   convert.OpenOptions{Format: c.SourceFormat, AllowBacking: c.AllowBacking},
		Bucket: c.Bucket,
		Key:    c.Key,
		Format: pipeline.Format(c.Format),
		Image: ims.QuickImport{
			Name: c.ImageName, Description: c.ImageDescription, OSVersion: c.OSVersion, OSType: c.OSType, MinDisk: c.MinDisk,
			Architecture: c.Architecture, FirmwareType: c.Firmware, EnterpriseProjectID: c.EnterpriseProjectID,
		},
		ConfirmedLayouts:   s.Confirmed,
		ZeroCopy:           obs.ZeroCopyAuto,
		Verify:             c.Verify,
		AllowDuplicateName: c.AllowDuplicateName,
		KeepObject:         c.KeepObject,
		StateDir:           o.StateDir(c.StateDir),
		Wait:               ims.WaitOptions{First: c.PollInterval / 2, Interval: c.PollInterval, MaxInterval: 3 * c.PollInterval, Limit: c.WaitTimeout},
	}
	if r.Bucket == "" {
		r.Bucket = s.Bucket
	}
	if r.Open.Format == "" && sourceFormat == "raw" { // which a disk doesn't show
		r.Open.Format = sourceFormat
	}
	if r.Image.EnterpriseProjectID == "" {
		r.Image.EnterpriseProjectID = o.Getenv("HW_ENTERPRISE_PROJECT_ID")
	}
	if c.DataDisk {
		r.Image.Type = ims.TypeDataImage
	}
	for _, key := range slices.Sorted(maps.Keys(c.ImageTags)) {
		r.Image.Tags = append(r.Image.Tags, ims.Tag{Key: key, Value: c.ImageTags[key]})
	}
	var err error
	r.Layout, err = o.LookupLayout(bitmap.DefaultLayout)
	return r, err
}
