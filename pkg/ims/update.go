// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Operations of a [Change].
const (
	ChangeAdd     = "add"
	ChangeReplace = "replace"
	ChangeRemove  = "remove"
)

// Change is one change of an attribute of an image.
type Change struct {
	Op        string // ChangeAdd, ChangeReplace, ChangeRemove
	Attribute string // the service's name, such as name, __description, min_ram, hw_firmware_type
	Value     string // always text, also for numbers; empty for ChangeRemove
}

// fixedAttributes cannot be changed after an image was made.
var fixedAttributes = []string{
	"id", "owner", "status", "created_at", "updated_at", "min_disk", "architecture", "disk_format",
	"container_format", "virtual_env_type", "__os_version", "__os_type", "__os_bit", "__platform", "__imagetype",
	"__image_size", "__root_origin", "__isregistered", "file", "self", "schema", "size", "virtual_size", "checksum",
}

// CheckChanges holds changes of the image id against the service's rules, without asking it, as
// [Client.UpdateImage] does. Errors: *[ValidationError].
func CheckChanges(id string, changes ...Change) error {
	var v checker
	v.id("image id", id)
	if len(changes) == 0 {
		v.bad("changes", "", "there must be one")
	}
	for _, ch := range changes {
		if ch.Op == "" {
			v.bad("op", ch.Op, "must be add, replace or remove")
		}
		v.oneOf("op", ch.Op, ChangeAdd, ChangeReplace, ChangeRemove)
		switch {
		case ch.Attribute == "" || strings.ContainsAny(ch.Attribute, "/~") || !utf8.ValidString(ch.Attribute) ||
			utf8.RuneCountInString(ch.Attribute) > 255:
			v.bad("path", ch.Attribute, "must be an attribute's name of 1 to 255 characters without slash and tilde")
			continue
		case slices.Contains(fixedAttributes, ch.Attribute):
			v.bad("path", ch.Attribute, "cannot be changed after the image was made")
			continue
		case ch.Op == ChangeRemove:
			if ch.Value != "" {
				v.bad("value", ch.Value, "must be empty for a removal")
			}
			if ch.Attribute == "name" {
				v.bad("path", ch.Attribute, "an image cannot be without a name")
			}
			continue
		}
		switch ch.Attribute {
		case "name":
			v.rule("name", ch.Value, checkName(ch.Value))
		case "__description":
			v.rule("__description", ch.Value, checkDescription(ch.Value))
		case "min_ram", "max_ram":
			if n, err := strconv.Atoi(ch.Value); err != nil || n < 0 {
				v.bad(ch.Attribute, ch.Value, "must be a number of MB")
			}
		case "hw_firmware_type":
			v.rule(ch.Attribute, ch.Value, mustBe(ch.Value, "bios", "uefi"))
		case "hw_vif_multiqueue_enabled", "protected":
			v.rule(ch.Attribute, ch.Value, mustBe(ch.Value, "true", "false"))
		case "enterprise_project_id":
			v.enterpriseProject(ch.Value)
		}
	}
	return v.err()
}

func mustBe(value string, allowed ...string) string {
	if slices.Contains(allowed, value) {
		return ""
	}
	return "must be " + strings.Join(allowed, " or ")
}

// patchOp is a change on the wire: all three members are mandatory, and values are text.
type patchOp struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value string `json:"value"`
}

// UpdateImage changes attributes of an active image: PATCH /v2/cloudimages/{image_id} (IMS API,
// "Updating Image Information"), and returns the image as it is then. Changes that exclude each
// other are [KindConflict].
func (c *Client) UpdateImage(ctx context.Context, id string, changes ...Change) (*Image, error) {
	return c.updateImage(ctx, "/v2/cloudimages/", "", id, changes)
}

// UpdateNativeImage is [Client.UpdateImage] by the native call, PATCH /v2/images/{image_id} with
// the content type of OpenStack's JSON patch (native API, "Updating Image Information").
func (c *Client) UpdateNativeImage(ctx context.Context, id string, changes ...Change) (*Image, error) {
	return c.updateImage(ctx, "/v2/images/", "application/openstack-images-v2.1-json-patch", id, changes)
}

func (c *Client) updateImage(ctx context.Context, base, contentType, id string, changes []Change) (*Image, error) {
	if err := CheckChanges(id, changes...); err != nil {
		return nil, err
	}
	repeatable := true
	ops := make([]patchOp, len(changes))
	for n, ch := range changes {
		ops[n] = patchOp{ch.Op, "/" + ch.Attribute, ch.Value}
		// Removing again what is gone is an error.
		repeatable = repeatable && ch.Op != ChangeRemove
	}
	k := call{
		op: "update image " + id, service: serviceIMS, method: http.MethodPatch, path: base + id,
		body: ops, contentType: contentType, repeatable: repeatable,
	}
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	return imageOf(k, a)
}
