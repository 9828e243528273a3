// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of an upload through IMS.
const (
	// MaxNativeUpload is the size, in bytes, that a file must stay below.
	MaxNativeUpload = 2 << 30
	// MaxSignedBody is the largest body, in bytes, of a request that is signed with an access key;
	// the gateway answers 413 above it. Requests with a token have no such limit.
	MaxSignedBody = 12 << 20
)

// uploadRate is the slowest upload, in bytes a second, that is still waited for.
const uploadRate = 256 << 10

// ImageMetadata describes an image whose content is to follow, by [Client.UploadImageFile] or
// [Client.RegisterImage].
type ImageMetadata struct {
	Name            string // up to 128 characters (the call takes 255, nothing else does)
	OSVersion       string // empty: the service's default, Other Linux (64 bit)
	DiskFormat      string // zvhd2, zvhd, vhd, raw, qcow2, iso; the default differs between regions
	ContainerFormat string // empty: bare
	Visibility      string // empty or private
	MinDisk         int    // GB
	MinRAM          int    // MB
	Protected       bool
	Tags            []Tag
	// Attributes are further attributes by the service's names, e.g. hw_firmware_type.
	Attributes map[string]string
}

// Validate checks what is known without asking the service.
func (r *ImageMetadata) Validate() error {
	var v checker
	v.rule("name", r.Name, checkName(r.Name))
	if r.OSVersion != "" {
		v.rule("__os_version", r.OSVersion, checkOSVersion(r.OSVersion))
	}
	v.oneOf("disk_format", r.DiskFormat, "zvhd2", "zvhd", "vhd", "raw", "qcow2", "iso")
	v.oneOf("container_format", r.ContainerFormat, "bare")
	v.oneOf("visibility", r.Visibility, "private")
	v.within("min_disk", r.MinDisk, 0, MaxMinDisk, "GB")
	if r.MinRAM < 0 {
		v.bad("min_ram", fmt.Sprint(r.MinRAM), "must not be negative")
	}
	v.tags("tags", r.Tags)
	for key := range r.Attributes {
		if key == "" || !utf8.ValidString(key) || utf8.RuneCountInString(key) > 255 {
			v.bad("attribute", key, "the name must be 1 to 255 characters")
		}
		if _, taken := r.fields()[key]; taken {
			v.bad("attribute", key, "has a field of its own")
		}
	}
	return v.err()
}

func (r *ImageMetadata) fields() map[string]any {
	m := map[string]any{"name": r.Name}
	for key, value := range map[string]string{
		"__os_version": r.OSVersion, "disk_format": r.DiskFormat, "container_format": r.ContainerFormat,
		"visibility": r.Visibility,
	} {
		if value != "" {
			m[key] = value
		}
	}
	if r.MinDisk > 0 {
		m["min_disk"] = r.MinDisk
	}
	if r.MinRAM > 0 {
		m["min_ram"] = r.MinRAM
	}
	if r.Protected {
		m["protected"] = true
	}
	if len(r.Tags) > 0 {
		tags := make([]string, len(r.Tags))
		for n, t := range r.Tags {
			tags[n] = t.String()
		}
		m["tags"] = tags
	}
	return m
}

// CreateImage makes an image without content, in status queued: POST /v2/images (native API,
// "Creating Image Metadata"). The request is repeated only when it certainly did not arrive; when
// its answer is lost the error is a *[LostAnswerError].
func (c *Client) CreateImage(ctx context.Context, r *ImageMetadata) (*Image, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	body := r.fields()
	for key, value := range r.Attributes {
		body[key] = value
	}
	lost := false
	k := call{
		op: fmt.Sprintf("create image %q", r.Name), service: serviceIMS, method: http.MethodPost, path: "/v2/images",
		body: body, success: []int{http.StatusCreated, http.StatusOK}, lost: &lost,
	}
	a, err := c.do(ctx, k)
	if err != nil {
		if lost {
			return nil, &LostAnswerError{
				Op: k.op, Err: err,
				Check: fmt.Sprintf("look for a queued image named %q and delete it, or use it.", r.Name),
			}
		}
		return nil, err
	}
	return imageOf(k, a)
}

// imageOf decodes an answer that is an image, bare or in a member "image".
func imageOf(k call, a *answer) (*Image, error) {
	m, err := a.object(k)
	if err != nil {
		return nil, err
	}
	if inner, ok := m["image"].(map[string]any); ok && m["id"] == nil {
		m = inner
	}
	i := imageFromObject(m)
	if i.ID == "" {
		return nil, malformed(k, a, "the answer holds no image")
	}
	return &i, nil
}

// SignsRequests tells whether requests are signed with an access key, which limits their bodies to
// [MaxSignedBody], or carry a token.
func (c *Client) SignsRequests() bool { return c.auth.objectCredentials() != nil }

// UploadImageFile sends the content, size bytes, of an image that [Client.CreateImage] made:
// PUT /v2/images/{image_id}/file (native API, "Uploading an Image"). The file must be smaller than
// [MaxNativeUpload], and with an access key no larger than [MaxSignedBody]; an *[Error] of
// [KindInvalid] says so before anything is sent. Larger files go through OBS, see
// [Client.RegisterImage] and the imports. Follow the image with [Client.WaitImage].
func (c *Client) UploadImageFile(ctx context.Context, imageID string, content io.ReaderAt, size int64) error {
	if err := checkID("image", imageID); err != nil {
		return err
	}
	k := call{
		op: "upload the content of image " + imageID, service: serviceIMS, method: http.MethodPut,
		path: "/v2/images/" + imageID + "/file", success: []int{http.StatusNoContent, http.StatusOK},
		contentType: "application/octet-stream", file: &payload{content, size},
		timeout: c.requestTimeout + time.Duration(size/uploadRate)*time.Second,
	}
	invalid := func(format string, args ...any) error {
		return &Error{Op: k.op, Method: k.method, Path: k.path, Kind: KindInvalid, Message: fmt.Sprintf(format, args...)}
	}
	switch {
	case content == nil || size <= 0:
		return invalid("there is no content")
	case size >= MaxNativeUpload:
		return invalid("the file has %d bytes, and only files below 2 GB can be sent through the image service: "+
			"put it into a bucket and import it from there", size)
	case size > MaxSignedBody && c.SignsRequests():
		return invalid("the file has %d bytes, and requests signed with an access key may carry 12 MB: "+
			"authenticate with user and password (a token has no such limit), or put the file into a bucket and import it from there", size)
	}
	_, err := c.do(ctx, k)
	return err
}

// RegisterImage makes an object the content of an image that [Client.CreateImage] made, without
// configuring it: PUT /v1/cloudimages/{image_id}/upload (IMS API, "Registering an Image").
// objectURL is as in [ImageURL]. It returns the job's id.
func (c *Client) RegisterImage(ctx context.Context, imageID, objectURL string) (jobID string, err error) {
	var v checker
	v.id("image id", imageID)
	v.rule("image_url", objectURL, checkObjectURL(objectURL))
	if err := v.err(); err != nil {
		return "", err
	}
	return c.startJob(ctx, call{
		op: "register image " + imageID, method: http.MethodPut, path: "/v1/cloudimages/" + imageID + "/upload",
		body: map[string]string{"image_url": objectURL},
	}, "look at the status of image "+imageID+": as long as it is queued nothing was registered.")
}

// startJob carries out a request that starts a job, once.
func (c *Client) startJob(ctx context.Context, k call, check string) (jobID string, err error) {
	k.service, k.success = serviceIMS, acceptedStatuses
	s, err := c.submit(ctx, submission{call: k, targets: []target{{GenOld, k.path}}, check: check})
	if err != nil {
		return "", err
	}
	return s.JobID, nil
}

// NativeImage reads one image: GET /v2/images/{image_id} (native API, "Querying Image Details"),
// which newer documentation calls deprecated in favour of what [Client.Image] does.
func (c *Client) NativeImage(ctx context.Context, id string) (*Image, error) {
	if err := checkID("image", id); err != nil {
		return nil, err
	}
	k := call{op: "read image " + id, service: serviceIMS, method: http.MethodGet, path: "/v2/images/" + id}
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	return imageOf(k, a)
}

// NativeImages lists images by the native call: GET /v2/images (native API, "Querying Images"). It
// has no filter by enterprise project, flavor, server environment or architecture; those of f are
// not sent. Pages are followed by the answer's next link.
func (c *Client) NativeImages(ctx context.Context, f ImageFilter) ([]Image, error) {
	k := call{op: "list images", service: serviceIMS, method: http.MethodGet, path: "/v2/images"}
	var images []Image
	seen := map[string]bool{}
	marker := f.Marker
	for range maxListPages {
		k.query = f.query()
		for _, name := range []string{"enterprise_project_id", "flavor_id", "virtual_env_type", "architecture"} {
			k.query.Del(name)
		}
		page := listPage
		if f.Limit > 0 {
			page = min(page, f.Limit-len(images))
		}
		k.query.Set("limit", strconv.Itoa(page))
		if marker != "" {
			k.query.Set("marker", marker)
		}
		a, err := c.do(ctx, k)
		if err != nil {
			return nil, err
		}
		m, err := a.object(k)
		if err != nil {
			return nil, err
		}
		items, ok := m["images"].([]any)
		if !ok {
			return nil, malformed(k, a, "the answer holds no list of images")
		}
		fresh := false
		for _, item := range items {
			object, _ := item.(map[string]any)
			i := imageFromObject(object)
			if i.ID == "" || seen[i.ID] {
				continue
			}
			seen[i.ID], fresh = true, true
			if images = append(images, i); f.Limit > 0 && len(images) == f.Limit {
				return images, nil
			}
		}
		// Only the marker is taken from the link: it may name another host.
		next, err := url.Parse(text(m["next"]))
		if err != nil || !fresh {
			return images, nil
		}
		if marker = next.Query().Get("marker"); marker == "" {
			return images, nil
		}
	}
	return images, nil
}

// ImageDetailV11 is an image of the abandoned call of [Client.ImageDetailsV11].
type ImageDetailV11 struct {
	ID              string `json:"id"`
	Name            string `json:"name"`
	Status          string `json:"status"`
	ContainerFormat string `json:"container_format,omitempty"`
	DiskFormat      string `json:"disk_format,omitempty"`
	Owner           string `json:"owner,omitempty"`
	Checksum        string `json:"checksum,omitempty"`
	MinDisk         int64  `json:"min_disk"` // GB
	MinRAM          int64  `json:"min_ram"`  // MB
	Size            int64  `json:"size"`     // bytes
	Protected       bool   `json:"protected"`
	Public          bool   `json:"is_public"`
	Deleted         bool   `json:"deleted"`
	// CreatedAt and the other times are UTC without a zone.
	CreatedAt  string         `json:"created_at,omitempty"`
	UpdatedAt  string         `json:"updated_at,omitempty"`
	DeletedAt  string         `json:"deleted_at,omitempty"`
	Properties map[string]any `json:"properties,omitempty"`
}

// ImageDetailsV11 lists images with the abandoned version 1.1 of the API: GET /v1.1/images/detail
// (native API v1.1, "Querying Image Details"). filter may hold name, container_format, disk_format,
// status, size_min, size_max, changes-since, marker and limit.
//
// Deprecated: it is for old installations only; use [Client.ListImages].
func (c *Client) ImageDetailsV11(ctx context.Context, filter url.Values) ([]ImageDetailV11, error) {
	k := call{
		op: "list images (version 1.1)", service: serviceIMS, method: http.MethodGet, path: "/v1.1/images/detail",
		query: filter,
	}
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	m, err := a.object(k)
	if err != nil {
		return nil, err
	}
	items, ok := m["images"].([]any)
	if !ok {
		return nil, malformed(k, a, "the answer holds no list of images")
	}
	var list []ImageDetailV11
	for _, item := range items {
		o, _ := item.(map[string]any)
		number := func(name string) int64 {
			n, _ := strconv.ParseInt(text(o[name]), 10, 64)
			return n
		}
		yes := func(name string) bool { return strings.EqualFold(text(o[name]), "true") }
		d := ImageDetailV11{
			ID: text(o["id"]), Name: text(o["name"]), Status: text(o["status"]),
			ContainerFormat: text(o["container_format"]), DiskFormat: text(o["disk_format"]),
			Owner: text(o["owner"]), Checksum: text(o["checksum"]),
			MinDisk: number("min_disk"), MinRAM: number("min_ram"), Size: number("size"),
			Protected: yes("protected"), Public: yes("is_public"), Deleted: yes("deleted"),
			CreatedAt: text(o["created_at"]), UpdatedAt: text(o["updated_at"]), DeletedAt: text(o["deleted_at"]),
		}
		d.Properties, _ = o["properties"].(map[string]any)
		if d.ID != "" {
			list = append(list, d)
		}
	}
	return list, nil
}

// APIVersion is a version of the API that an installation has.
type APIVersion struct {
	ID      string   `json:"id"`
	Status  string   `json:"status"`
	Updated string   `json:"updated,omitempty"`
	Links   []string `json:"links,omitempty"`
}

// Versions lists the versions of the API: GET / (native API, "Querying API Versions"). It needs no
// permission and is sent without authentication, so that it also tells whether the service can be
// reached.
func (c *Client) Versions(ctx context.Context) ([]APIVersion, error) {
	return c.versions(ctx, call{op: "list the API versions", path: "/"})
}

// Version tells about one version of the API, such as v2: GET /{version} (native API, "Querying an
// API Version"), as [Client.Versions].
func (c *Client) Version(ctx context.Context, id string) (*APIVersion, error) {
	if number, ok := strings.CutPrefix(id, "v"); !ok || len(id) > 20 || strings.Trim(number, ".0123456789") != "" {
		return nil, &ValidationError{Problems: []Problem{{"version", id, "must be like v2 or v1.1"}}}
	}
	list, err := c.versions(ctx, call{op: "read API version " + id, path: "/" + id})
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(list, func(v APIVersion) bool { return v.ID == id }); i >= 0 {
		return &list[i], nil
	}
	return &list[0], nil
}

func (c *Client) versions(ctx context.Context, k call) ([]APIVersion, error) {
	k.service, k.method, k.anonymous = serviceIMS, http.MethodGet, true
	// The list is documented with both statuses.
	k.success = []int{http.StatusOK, http.StatusMultipleChoices}
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	m, err := a.object(k)
	if err != nil {
		return nil, err
	}
	items, _ := m["versions"].([]any)
	if one, ok := m["version"].(map[string]any); ok {
		items = append(items, one)
	}
	var list []APIVersion
	for _, item := range items {
		o, _ := item.(map[string]any)
		v := APIVersion{ID: text(o["id"]), Status: text(o["status"]), Updated: text(o["updated"])}
		links, _ := o["links"].([]any)
		for _, l := range links {
			if link, ok := l.(map[string]any); ok {
				v.Links = append(v.Links, text(link["href"]))
			}
		}
		if v.ID != "" {
			list = append(list, v)
		}
	}
	if len(list) == 0 {
		return nil, malformed(k, a, "the answer holds no version")
	}
	return list, nil
}

// Schema describes the attributes of what the native calls answer: GET /v2/schemas/{name} with
// image, images, member or members (native API, "Querying an Image Schema" and its kin). The result
// is the JSON schema as the service has it.
func (c *Client) Schema(ctx context.Context, name string) (map[string]any, error) {
	var v checker
	v.oneOf("schema", name, "image", "images", "member", "members")
	if name == "" {
		v.bad("schema", name, "must be image, images, member or members")
	}
	if err := v.err(); err != nil {
		return nil, err
	}
	k := call{op: "read the schema " + name, service: serviceIMS, method: http.MethodGet, path: "/v2/schemas/" + name}
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	return a.object(k)
}
