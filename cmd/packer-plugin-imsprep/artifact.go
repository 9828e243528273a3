// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	registryimage "github.com/hashicorp/packer-plugin-sdk/packer/registry/image"

	"github.com/imsprep/imsprep/pkg/pipeline"
)

// builderID tells other post-processors what the artifact is.
const builderID = "imsprep.post-processor.imsprep"

// destroyLimit bounds deleting an image.
const destroyLimit = 10 * time.Minute

// artifact is a private image.
type artifact struct {
	importer *pipeline.Importer
	result   *pipeline.Result
	region   string
}

func (*artifact) BuilderId() string { return builderID }
func (*artifact) Files() []string   { return nil }

// Id is the image's id.
func (a *artifact) Id() string { return a.result.ImageID }

func (a *artifact) String() string {
	return fmt.Sprintf("Image %s (%s) in %s", a.result.ImageID, a.result.Name, a.region)
}

// State knows image_id, image_name, region and status as strings, and the image for HCP Packer's registry.
func (a *artifact) State(name string) any {
	switch name {
	case "image_id":
		return a.result.ImageID
	case "image_name":
		return a.result.Name
	case "region":
		return a.region
	case "status":
		return a.result.Status
	case registryimage.ArtifactStateURI:
		image, err := registryimage.FromArtifact(a, registryimage.WithID(a.Id()), registryimage.WithRegion(a.region),
			registryimage.WithProvider("huaweicloud"))
		if err != nil {
			return nil
		}
		return image
	}
	return nil
}

// Destroy deletes the image.
func (a *artifact) Destroy() error {
	ctx, cancel := context.WithTimeout(context.Background(), destroyLimit)
	defer cancel()
	if err := a.importer.IMS.DeleteImage(ctx, a.result.ImageID); err != nil {
		return fmt.Errorf("delete image %s: %w", a.result.ImageID, err)
	}
	return nil
}
