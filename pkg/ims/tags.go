// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

// tagPath is the path of an image's tags in the newer calls.
func (c *Client) tagPath(ctx context.Context, imageID string) (string, error) {
	if err := checkID("image", imageID); err != nil {
		return "", err
	}
	project, err := c.pathProject(ctx)
	return "/v2/" + project + "/images/" + imageID + "/tags", err
}

func checkTags(tags []Tag, valuesMatter bool) error {
	var v checker
	if len(tags) == 0 {
		v.bad("tags", "", "there must be one")
	}
	if valuesMatter {
		v.tags("tags", tags)
	} else {
		seen := map[string]bool{}
		for _, t := range tags {
			// Tags of other making may break today's rules, and must still be removable.
			if t.Key == "" || utf8.RuneCountInString(t.Key) > 127 || utf8.RuneCountInString(t.Value) > 255 {
				v.bad("tags", t.String(), "the key must be 1 to 127 characters, the value up to 255")
			}
			if seen[t.Key] {
				v.bad("tags", t.String(), "the key appears twice")
			}
			seen[t.Key] = true
		}
	}
	return v.err()
}

// send carries out a request without an answer that can be repeated without harm.
func (c *Client) send(ctx context.Context, op, method, path string, body any) error {
	_, err := c.do(ctx, call{
		op: op, service: serviceIMS, method: method, path: path, body: body, repeatable: true,
		success: []int{http.StatusNoContent, http.StatusOK},
	})
	return err
}

// AddTag gives an image a tag, or the tag another value:
// POST /v2/{project_id}/images/{image_id}/tags (IMS API, "Adding an Image Tag").
func (c *Client) AddTag(ctx context.Context, imageID string, tag Tag) error {
	if err := checkTags([]Tag{tag}, true); err != nil {
		return err
	}
	path, err := c.tagPath(ctx, imageID)
	if err != nil {
		return err
	}
	return c.send(ctx, "tag image "+imageID, http.MethodPost, path, map[string]Tag{"tag": tag})
}

// AddTags gives an image several tags at once, existing keys another value: POST
// /v2/{project_id}/images/{image_id}/tags/action, create (IMS API, "Adding or Deleting Image Tags
// in Batches").
func (c *Client) AddTags(ctx context.Context, imageID string, tags ...Tag) error {
	return c.tagAction(ctx, imageID, "create", tags)
}

// DeleteTags takes several tags from an image at once; keys that it doesn't have are no error: POST
// /v2/{project_id}/images/{image_id}/tags/action, delete (IMS API, "Adding or Deleting Image Tags
// in Batches").
func (c *Client) DeleteTags(ctx context.Context, imageID string, keys ...string) error {
	tags := make([]Tag, len(keys))
	for n, key := range keys {
		tags[n].Key = key
	}
	return c.tagAction(ctx, imageID, "delete", tags)
}

func (c *Client) tagAction(ctx context.Context, imageID, action string, tags []Tag) error {
	if err := checkTags(tags, action == "create"); err != nil {
		return err
	}
	path, err := c.tagPath(ctx, imageID)
	if err != nil {
		return err
	}
	return c.send(ctx, action+" tags of image "+imageID, http.MethodPost, path+"/action", struct {
		Action string `json:"action"`
		Tags   []Tag  `json:"tags"`
	}{action, tags})
}

// DeleteTag takes one tag from an image: DELETE /v2/{project_id}/images/{image_id}/tags/{key} (IMS
// API, "Deleting an Image Tag"). A key that the image doesn't have is [KindNotFound].
func (c *Client) DeleteTag(ctx context.Context, imageID, key string) error {
	if err := checkTagInPath(key); err != nil {
		return err
	}
	path, err := c.tagPath(ctx, imageID)
	if err != nil {
		return err
	}
	return c.remove(ctx, "delete a tag of image "+imageID, path+"/"+key)
}

// checkTagInPath keeps a tag from being read as several segments of a path.
func checkTagInPath(s string) error {
	if s != "" && s != "." && s != ".." && utf8.ValidString(s) && len(s) <= 255 && !strings.ContainsAny(s, "/\\?#%") &&
		cleanText(s, 1024) == s {
		return nil
	}
	return &ValidationError{Problems: []Problem{{
		"tag", s, "must be 1 to 255 bytes without slashes, control characters, and any of ? # %",
	}}}
}

// Tags lists the tags of an image: GET /v2/{project_id}/images/{image_id}/tags (IMS API, "Querying
// Tags of an Image").
func (c *Client) Tags(ctx context.Context, imageID string) ([]Tag, error) {
	path, err := c.tagPath(ctx, imageID)
	if err != nil {
		return nil, err
	}
	items, k, a, err := c.tagList(ctx, "list the tags of image "+imageID, path, nil)
	if err != nil {
		return nil, err
	}
	var tags []Tag
	for _, item := range items {
		m, _ := item.(map[string]any)
		if text(m["key"]) == "" {
			return nil, malformed(k, a, "the answer holds a tag without a key")
		}
		tags = append(tags, Tag{text(m["key"]), text(m["value"])})
	}
	return tags, nil
}

func (c *Client) tagList(ctx context.Context, op, path string, query url.Values) ([]any, call, *answer, error) {
	k := call{op: op, service: serviceIMS, method: http.MethodGet, path: path, query: query}
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, k, nil, err
	}
	m, err := a.object(k)
	if err != nil {
		return nil, k, a, err
	}
	items, ok := m["tags"].([]any)
	if !ok {
		return nil, k, a, malformed(k, a, "the answer holds no list of tags")
	}
	return items, k, a, nil
}

// TagValues is a key with all values that a project's images have for it.
type TagValues struct {
	Key    string   `json:"key"`
	Values []string `json:"values"` // {""} when only the key is set
}

// ProjectTags lists all tags of the project's images: GET /v2/{project_id}/images/tags (IMS API,
// "Querying All Image Tags").
func (c *Client) ProjectTags(ctx context.Context) ([]TagValues, error) {
	project, err := c.pathProject(ctx)
	if err != nil {
		return nil, err
	}
	items, _, _, err := c.tagList(ctx, "list the tags of the project", "/v2/"+project+"/images/tags", nil)
	if err != nil {
		return nil, err
	}
	var list []TagValues
	for _, item := range items {
		m, _ := item.(map[string]any)
		t := TagValues{Key: text(m["key"])}
		values, _ := m["values"].([]any)
		for _, v := range values {
			t.Values = append(t.Values, text(v))
		}
		if t.Key != "" {
			list = append(list, t)
		}
	}
	return list, nil
}

// TagFilter selects images by their tags. Up to 10 keys with up to 10 values each in every list.
type TagFilter struct {
	All     []TagValues // images that have every one of these
	Any     []TagValues // images that have one of these
	NotAll  []TagValues // images that don't have every one of these
	NotAny  []TagValues // images that have none of these
	Without bool        // images without any tag; the lists are ignored
	Name    string      // part of the image's name
	ID      string      // exactly this image
	Limit   int         // most images to return; 0 means all
}

// TaggedImage is an image that [Client.ImagesByTags] found.
type TaggedImage struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Status string `json:"status,omitempty"`
	Tags   []Tag  `json:"tags,omitempty"`
}

type tagQuery struct {
	Action     string      `json:"action"`
	Tags       []TagValues `json:"tags,omitempty"`
	TagsAny    []TagValues `json:"tags_any,omitempty"`
	NotTags    []TagValues `json:"not_tags,omitempty"`
	NotTagsAny []TagValues `json:"not_tags_any,omitempty"`
	WithoutAny bool        `json:"without_any_tag,omitempty"`
	Matches    []Tag       `json:"matches,omitempty"`
	Limit      string      `json:"limit,omitempty"` // numbers are strings here
	Offset     string      `json:"offset,omitempty"`
}

func (f *TagFilter) query(action string) (tagQuery, error) {
	var v checker
	for _, list := range [][]TagValues{f.All, f.Any, f.NotAll, f.NotAny} {
		if len(list) > 10 {
			v.bad("tags", fmt.Sprint(len(list)), "at most 10 keys")
		}
		for _, t := range list {
			if t.Key == "" || len(t.Values) > 10 {
				v.bad("tags", t.Key, "a key must not be empty and has at most 10 values")
			}
		}
	}
	q := tagQuery{
		Action: action, Tags: withValues(f.All), TagsAny: withValues(f.Any), NotTags: withValues(f.NotAll),
		NotTagsAny: withValues(f.NotAny), WithoutAny: f.Without,
	}
	if f.Name != "" {
		q.Matches = append(q.Matches, Tag{"resource_name", f.Name})
	}
	if f.ID != "" {
		v.id("resource_id", f.ID)
		q.Matches = append(q.Matches, Tag{"resource_id", f.ID})
	}
	return q, v.err()
}

// withValues makes "no values", which means any, a list and not null.
func withValues(list []TagValues) []TagValues {
	out := make([]TagValues, len(list))
	for n, t := range list {
		out[n] = TagValues{t.Key, append([]string{}, t.Values...)}
	}
	return out
}

func (c *Client) queryByTags(ctx context.Context, q tagQuery) (map[string]any, call, *answer, error) {
	project, err := c.pathProject(ctx)
	if err != nil {
		return nil, call{}, nil, err
	}
	k := call{
		op: "find images by tags", service: serviceIMS, method: http.MethodPost, body: q, repeatable: true,
		path: "/v2/" + project + "/images/resource_instances/action",
	}
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, k, nil, err
	}
	m, err := a.object(k)
	return m, k, a, err
}

// ImagesByTags finds images by their tags:
// POST /v2/{project_id}/images/resource_instances/action, filter (IMS API, "Querying Images by
// Tag"), page by page.
func (c *Client) ImagesByTags(ctx context.Context, f TagFilter) ([]TaggedImage, error) {
	q, err := f.query("filter")
	if err != nil {
		return nil, err
	}
	var list []TaggedImage
	seen := map[string]bool{}
	offset := 0
	for range maxListPages {
		page := listPage
		if f.Limit > 0 {
			page = min(page, f.Limit-len(list))
		}
		q.Limit, q.Offset = strconv.Itoa(page), strconv.Itoa(offset)
		m, k, a, err := c.queryByTags(ctx, q)
		if err != nil {
			return nil, err
		}
		items, ok := m["resources"].([]any)
		if !ok {
			return nil, malformed(k, a, "the answer holds no list of resources")
		}
		fresh := false
		for _, item := range items {
			o, _ := item.(map[string]any)
			i := TaggedImage{ID: text(o["resource_id"]), Name: text(o["resource_name"])}
			if detail, ok := o["resource_detail"].(map[string]any); ok {
				i.Status = text(detail["status"])
			}
			tags, _ := o["tags"].([]any)
			for _, t := range tags {
				tag, _ := t.(map[string]any)
				i.Tags = append(i.Tags, Tag{text(tag["key"]), text(tag["value"])})
			}
			// An offset that the service ignores would give the same page for ever.
			if i.ID == "" || seen[i.ID] {
				continue
			}
			seen[i.ID], fresh = true, true
			if list = append(list, i); f.Limit > 0 && len(list) == f.Limit {
				return list, nil
			}
		}
		offset += len(items)
		if len(items) < page || !fresh {
			break
		}
	}
	return list, nil
}

// CountImagesByTags counts them: POST /v2/{project_id}/images/resource_instances/action, count (IMS
// API, "Querying Images by Tag").
func (c *Client) CountImagesByTags(ctx context.Context, f TagFilter) (int, error) {
	q, err := f.query("count")
	if err != nil {
		return 0, err
	}
	m, k, a, err := c.queryByTags(ctx, q)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(text(m["total_count"]))
	if err != nil {
		return 0, malformed(k, a, "the answer holds no count")
	}
	return n, nil
}

// SetTag is the older way to give an image a tag: PUT /v1/cloudimages/tags (IMS API, "Adding or
// Modifying a Tag").
func (c *Client) SetTag(ctx context.Context, imageID string, tag Tag) error {
	if err := checkTags([]Tag{tag}, true); err != nil {
		return err
	}
	if err := checkID("image", imageID); err != nil {
		return err
	}
	return c.send(ctx, "tag image "+imageID, http.MethodPut, "/v1/cloudimages/tags", struct {
		ImageID  string `json:"image_id"`
		ImageTag Tag    `json:"image_tag"`
	}{imageID, tag})
}

// ListTags is the older way to list the tags of the images that a filter selects: GET
// /v1/cloudimages/tags (IMS API, "Querying Tags"). page counts from 1; 0 sends neither page nor
// limit. Each is key=value or, older, key.value.
func (c *Client) ListTags(ctx context.Context, f ImageFilter, page, limit int) ([]string, error) {
	query := f.query()
	for _, name := range []string{"sort_key", "sort_dir", "tag"} {
		query.Del(name)
	}
	if page > 0 {
		query.Set("page", strconv.Itoa(page))
		query.Set("limit", strconv.Itoa(limit))
	}
	items, k, a, err := c.tagList(ctx, "list tags", "/v1/cloudimages/tags", query)
	if err != nil {
		return nil, err
	}
	tags, ok := tagStrings(items)
	if !ok {
		return nil, malformed(k, a, "the answer holds something that isn't a tag")
	}
	return tags, nil
}

// DeleteTagsV1 is the older way to take several tags from an image: DELETE
// /v1/{project_id}/cloudimages/{image_id}/tags/delete, with a body (IMS API as the vendor's SDK has
// it, "BatchDeleteTags").
func (c *Client) DeleteTagsV1(ctx context.Context, imageID string, tags ...Tag) error {
	if err := checkTags(tags, false); err != nil {
		return err
	}
	if err := checkID("image", imageID); err != nil {
		return err
	}
	project, err := c.pathProject(ctx)
	if err != nil {
		return err
	}
	return c.send(ctx, "delete tags of image "+imageID, http.MethodDelete,
		"/v1/"+project+"/cloudimages/"+imageID+"/tags/delete", map[string][]Tag{"tags": tags})
}

// AddNativeTag gives an image a tag that is a key only: PUT /v2/images/{image_id}/tags/{tag}
// (native API, "Adding a Tag"). Newer documentation calls it deprecated in favour of what
// [Client.AddTag] does.
func (c *Client) AddNativeTag(ctx context.Context, imageID, tag string) error {
	path, err := nativeTagPath(imageID, tag)
	if err != nil {
		return err
	}
	return c.send(ctx, "tag image "+imageID, http.MethodPut, path, nil)
}

// DeleteNativeTag takes a tag that is a key only from an image: DELETE
// /v2/images/{image_id}/tags/{tag} (native API, "Deleting a Tag").
func (c *Client) DeleteNativeTag(ctx context.Context, imageID, tag string) error {
	path, err := nativeTagPath(imageID, tag)
	if err != nil {
		return err
	}
	return c.remove(ctx, "delete a tag of image "+imageID, path)
}

func nativeTagPath(imageID, tag string) (string, error) {
	if err := checkID("image", imageID); err != nil {
		return "", err
	}
	if strings.Contains(tag, "=") {
		return "", &ValidationError{Problems: []Problem{{"tag", tag, "is a key only: it must not hold ="}}}
	}
	return "/v2/images/" + imageID + "/tags/" + tag, checkTagInPath(tag)
}
