// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Statuses of an image.
const (
	ImageQueued  = "queued"  // described, its content not stored yet
	ImageSaving  = "saving"  // its content is being stored
	ImageActive  = "active"  // usable
	ImageKilled  = "killed"  // storing failed
	ImageDeleted = "deleted" // gone
)

// Image is an image as IMS describes it. Decoding accepts numbers and booleans written as strings;
// whatever has no field here, or does not fit its field, is kept in Attributes, so that nothing of
// an answer is lost and encoding gives the service's own names.
type Image struct {
	ID              string   // id
	Name            string   // name
	Owner           string   // owner: project id
	Status          string   // status: queued, saving, active, killed, deleted
	Visibility      string   // visibility
	Protected       bool     // protected
	Tags            []string // tags, each key=value (older: key.value)
	ContainerFormat string   // container_format
	DiskFormat      string   // disk_format
	MinDisk         int64    // min_disk in GB
	MinRAM          int64    // min_ram in MB
	Size            int64    // __image_size in bytes
	CreatedAt       string   // created_at, UTC
	UpdatedAt       string   // updated_at, UTC

	OSType              string // __os_type
	OSVersion           string // __os_version
	OSBit               string // __os_bit
	Platform            string // __platform
	Description         string // __description
	ImageType           string // __imagetype: gold, private, shared, market
	VirtualEnvType      string // virtual_env_type
	FirmwareType        string // hw_firmware_type; empty means bios
	RootOrigin          string // __root_origin: file for an imported image
	SupportARM          bool   // __support_arm
	EnterpriseProjectID string // enterprise_project_id

	Attributes map[string]any // numbers are json.Number
}

func (i *Image) stringFields() map[string]*string {
	return map[string]*string{
		"id": &i.ID, "name": &i.Name, "owner": &i.Owner, "status": &i.Status, "visibility": &i.Visibility,
		"container_format": &i.ContainerFormat, "disk_format": &i.DiskFormat,
		"created_at": &i.CreatedAt, "updated_at": &i.UpdatedAt,
		"__os_type": &i.OSType, "__os_version": &i.OSVersion, "__os_bit": &i.OSBit, "__platform": &i.Platform,
		"__description": &i.Description, "__imagetype": &i.ImageType, "virtual_env_type": &i.VirtualEnvType,
		"hw_firmware_type": &i.FirmwareType, "__root_origin": &i.RootOrigin,
		"enterprise_project_id": &i.EnterpriseProjectID,
	}
}

// UnmarshalJSON implements [json.Unmarshaler].
func (i *Image) UnmarshalJSON(p []byte) error {
	m, err := decodeObject(p)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	*i = imageFromObject(m)
	return nil
}

// imageFromObject takes the fields it knows out of m and keeps the rest of m.
func imageFromObject(m map[string]any) Image {
	var i Image
	for name, field := range i.stringFields() {
		switch v := m[name].(type) {
		case string:
			*field = v
			delete(m, name)
		case json.Number:
			*field = v.String()
			delete(m, name)
		case nil:
			delete(m, name)
		}
	}
	takeInt := func(name string, field *int64) {
		if n, err := strconv.ParseInt(text(m[name]), 10, 64); err == nil && n >= 0 {
			*field = n
			delete(m, name)
		}
	}
	takeInt("min_disk", &i.MinDisk)
	takeInt("min_ram", &i.MinRAM)
	takeInt("__image_size", &i.Size)
	takeBool := func(name string, field *bool) {
		if b, err := strconv.ParseBool(strings.ToLower(text(m[name]))); err == nil {
			*field = b
			delete(m, name)
		}
	}
	takeBool("protected", &i.Protected)
	takeBool("__support_arm", &i.SupportARM)
	if list, ok := m["tags"].([]any); ok {
		if tags, ok := tagStrings(list); ok {
			i.Tags = tags
			delete(m, "tags")
		}
	}
	if len(m) > 0 {
		i.Attributes = m
	}
	return i
}

// tagStrings reads tags in either form, strings or pairs.
func tagStrings(list []any) ([]string, bool) {
	var tags []string
	for _, v := range list {
		switch v := v.(type) {
		case string:
			tags = append(tags, v)
		case map[string]any:
			key, okKey := v["key"].(string)
			value, okValue := v["value"].(string)
			if !okKey || !okValue || len(v) != 2 {
				return nil, false
			}
			tags = append(tags, key+"="+value)
		default:
			return nil, false
		}
	}
	return tags, true
}

// MarshalJSON implements [json.Marshaler] with the service's names and types. Empty fields are left
// out but for the ones that every image has.
func (i Image) MarshalJSON() ([]byte, error) {
	m := maps.Clone(i.Attributes)
	if m == nil {
		m = map[string]any{}
	}
	set := func(name string, v any, zero, always bool) {
		if _, taken := m[name]; !zero || always && !taken {
			m[name] = v
		}
	}
	for name, field := range i.stringFields() {
		set(name, *field, *field == "", name == "id" || name == "name" || name == "status")
	}
	set("min_disk", i.MinDisk, i.MinDisk == 0, true)
	set("min_ram", i.MinRAM, i.MinRAM == 0, true)
	set("__image_size", strconv.FormatInt(i.Size, 10), i.Size == 0, false)
	set("protected", i.Protected, !i.Protected, true)
	set("__support_arm", strconv.FormatBool(i.SupportARM), !i.SupportARM, false)
	set("tags", i.Tags, len(i.Tags) == 0, false)
	return json.Marshal(m)
}

// Tag finds the value of a tag.
func (i *Image) Tag(key string) (value string, ok bool) {
	for _, t := range i.Tags {
		if v, ok := strings.CutPrefix(t, key+"="); ok {
			return v, true
		}
	}
	// The older form separates with the first dot; keys hold none.
	for _, t := range i.Tags {
		if v, ok := strings.CutPrefix(t, key+"."); ok {
			return v, true
		}
	}
	return "", slices.Contains(i.Tags, key)
}

// ImageFilter selects images; empty fields do not restrict.
type ImageFilter struct {
	ID                  string
	Name                string // exact
	Status              string
	ImageType           string // __imagetype: gold, private, shared, market
	Visibility          string
	Owner               string // project id
	OSType              string
	Platform            string
	Architecture        string
	DiskFormat          string
	VirtualEnvType      string
	EnterpriseProjectID string
	OSBit               string // 32, 64
	ContainerFormat     string
	KMSKey              string // __system__cmkid
	FlavorID            string // public images that a flavor of servers can use
	MemberStatus        string // pending, accepted, rejected; with Visibility shared
	MinDisk, MinRAM     int    // exactly, GB and MB; 0 does not restrict
	Protected           *bool
	WholeImage          *bool  // __whole_image: images of whole servers
	Registered          *bool  // __isregistered; ordinary users see true only
	CreatedAt           string // OP:TIME, e.g. gt:2026-01-02T03:04:05Z; OP is gt, gte, lt, lte, eq, neq
	UpdatedAt           string
	Tag                 Tag
	SortKey             string // name, container_format, disk_format, status, id, size, created_at
	SortDir             string // asc, desc
	Marker              string // begin behind the image of this id
	Limit               int    // most images to return; 0 means all
	// Extra are further parameters by the service's names, such as __support_kvm.
	Extra url.Values
}

func (f *ImageFilter) query() url.Values {
	q := url.Values{}
	for name, values := range f.Extra {
		q[name] = slices.Clone(values)
	}
	for name, v := range map[string]string{
		"id": f.ID, "name": f.Name, "status": f.Status, "__imagetype": f.ImageType, "visibility": f.Visibility,
		"owner": f.Owner, "__os_type": f.OSType, "__platform": f.Platform, "architecture": f.Architecture,
		"disk_format": f.DiskFormat, "virtual_env_type": f.VirtualEnvType,
		"enterprise_project_id": f.EnterpriseProjectID, "created_at": f.CreatedAt, "updated_at": f.UpdatedAt,
		"sort_key": f.SortKey, "sort_dir": f.SortDir, "__os_bit": f.OSBit, "container_format": f.ContainerFormat,
		"__system__cmkid": f.KMSKey, "flavor_id": f.FlavorID, "member_status": f.MemberStatus,
	} {
		if v != "" {
			q.Set(name, v)
		}
	}
	for name, n := range map[string]int{"min_disk": f.MinDisk, "min_ram": f.MinRAM} {
		if n > 0 {
			q.Set(name, strconv.Itoa(n))
		}
	}
	for name, b := range map[string]*bool{
		"protected": f.Protected, "__whole_image": f.WholeImage, "__isregistered": f.Registered,
	} {
		if b != nil {
			q.Set(name, strconv.FormatBool(*b))
		}
	}
	if f.Tag.Key != "" {
		q.Set("tag", f.Tag.Key+"="+f.Tag.Value)
	}
	return q
}

const (
	listPage = 100
	// maxListPages ends a list that a faulty service never lets end.
	maxListPages = 1000
)

// ListImages lists images, newest first unless the filter sorts, page by page: GET /v2/cloudimages
// (IMS API, "Querying Images").
func (c *Client) ListImages(ctx context.Context, f ImageFilter) ([]Image, error) {
	return c.listImages(ctx, f, call{op: "list images"})
}

func (c *Client) listImages(ctx context.Context, f ImageFilter, k call) ([]Image, error) {
	k.service, k.method, k.path = serviceIMS, http.MethodGet, "/v2/cloudimages"
	var images []Image
	seen := map[string]bool{}
	marker := f.Marker
	for range maxListPages {
		page := listPage
		if f.Limit > 0 {
			page = min(page, f.Limit-len(images))
		}
		k.query = f.query()
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
		fresh := 0
		for _, item := range items {
			object, ok := item.(map[string]any)
			if !ok {
				continue
			}
			i := imageFromObject(object)
			// A marker that the service ignores would give the same page for ever.
			if i.ID == "" || seen[i.ID] {
				continue
			}
			fresh++
			seen[i.ID] = true
			marker = i.ID
			images = append(images, i)
			if f.Limit > 0 && len(images) == f.Limit {
				return images, nil
			}
		}
		if len(items) < page || fresh == 0 {
			return images, nil
		}
	}
	return images, nil
}

// Image reads one image by the same call with a filter: GET /v2/cloudimages (IMS API, "Querying
// Images") with its id. An unknown id is an *[Error] of [KindNotFound].
func (c *Client) Image(ctx context.Context, id string) (*Image, error) {
	return c.image(ctx, id, call{op: "read image " + cleanText(id, 80)})
}

func (c *Client) image(ctx context.Context, id string, k call) (*Image, error) {
	if err := checkID("image", id); err != nil {
		return nil, err
	}
	images, err := c.listImages(ctx, ImageFilter{ID: id}, k)
	if err != nil {
		return nil, err
	}
	for n := range images {
		// Without a look at the id, a service that ignores the filter would show us any image.
		if images[n].ID == id {
			return &images[n], nil
		}
	}
	return nil, &Error{
		Op: k.op, Method: http.MethodGet, Path: "/v2/cloudimages", Kind: KindNotFound,
		Message: "no image has this id in the region",
	}
}

// DeleteImage deletes an image: DELETE /v2/images/{image_id} (native API, "Deleting an Image"). The
// object it was made from stays. An unknown id is [KindNotFound]; an image that is still being
// made, or protected, is [KindConflict].
func (c *Client) DeleteImage(ctx context.Context, id string) error {
	return c.deleteImage(ctx, id, nil)
}

// DeleteWholeImage is [Client.DeleteImage] for the image of a whole server, and deletes the backup
// that it was made of, too: DELETE /v2/images/{image_id} (native API, "Deleting an Image") with
// delete_backup.
func (c *Client) DeleteWholeImage(ctx context.Context, id string) error {
	return c.deleteImage(ctx, id, map[string]bool{"delete_backup": true})
}

func (c *Client) deleteImage(ctx context.Context, id string, body any) error {
	if err := checkID("image", id); err != nil {
		return err
	}
	maybeDone := false
	_, err := c.do(ctx, call{
		op: "delete image " + id, service: serviceIMS, method: http.MethodDelete, path: "/v2/images/" + id, body: body,
		success: []int{http.StatusNoContent, http.StatusOK}, repeatable: true, uncertain: &maybeDone,
	})
	if maybeDone && KindOf(err) == KindNotFound {
		return nil // by an earlier attempt whose answer did not arrive
	}
	return err
}

// checkID keeps everything out of a path that isn't an id.
func checkID(what, id string) error {
	ok := id != "" && len(id) <= 128
	for _, r := range id {
		ok = ok && ('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_')
	}
	if ok {
		return nil
	}
	return &ValidationError{Problems: []Problem{{
		Field: what + " id", Value: id, Rule: "1 to 128 letters, digits, hyphens and underscores",
	}}}
}

// findCreated looks for the image that one import made: by its marker tag, and if no image bears
// the tag (some versions of the service set tags last) by its name among those created after since.
// It returns nil without an error when there is none yet, and every candidate when there are
// several.
func (c *Client) findCreated(
	ctx context.Context, marker Tag, name string, since time.Time,
) (found *Image, by string, candidates []string, err error) {
	pick := func(images []Image) *Image {
		images = slices.DeleteFunc(images, func(i Image) bool { return i.Status == ImageDeleted })
		candidates = nil
		for n := range images {
			candidates = append(candidates, images[n].ID)
		}
		if len(images) == 1 {
			return &images[0]
		}
		return nil
	}
	k := call{op: "look for the image of this import"}
	if marker.Key != "" {
		images, err := c.listImages(ctx, ImageFilter{ImageType: "private", Tag: marker}, k)
		if err != nil {
			return nil, "", nil, err
		}
		// A service that ignores the filter must not make any image ours.
		images = slices.DeleteFunc(images, func(i Image) bool {
			v, ok := i.Tag(marker.Key)
			return !ok || v != marker.Value
		})
		if i := pick(images); i != nil {
			return i, "tag", nil, nil
		}
		if len(candidates) > 1 {
			return nil, "tag", candidates, nil
		}
	}
	if name == "" || since.IsZero() {
		return nil, "", nil, nil
	}
	images, err := c.listImages(ctx, ImageFilter{
		ImageType: "private", Name: name, CreatedAt: "gt:" + since.UTC().Format("2006-01-02T15:04:05Z"),
	}, k)
	if err != nil {
		return nil, "", nil, err
	}
	images = slices.DeleteFunc(images, func(i Image) bool {
		if i.Name != name {
			return true
		}
		if created, ok := parseTime(i.CreatedAt); ok && created.Before(since) {
			return true
		}
		// Another import's marker: somebody imports under the same name at the same time.
		v, marked := i.Tag(marker.Key)
		return marker.Key != "" && marked && v != marker.Value
	})
	if i := pick(images); i != nil {
		return i, "name", nil, nil
	}
	return nil, "name", candidates, nil
}
