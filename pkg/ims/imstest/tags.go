// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxTagKeyDelete   = 127 // characters; only deleting allows so many
	maxTagValueDelete = 255
	maxQueryKeys      = 10
	maxQueryValues    = 10
)

// setTags gives the image tags; a key that it has gets the new value.
func (im *image) setTags(tags []Tag) error {
	next := slices.Clone(im.tags)
	for _, t := range tags {
		if i := slices.IndexFunc(next, func(o Tag) bool { return o.Key == t.Key }); i >= 0 {
			next[i].Value = t.Value
		} else {
			next = append(next, t)
		}
	}
	if len(next) > maxTags {
		return imgError("IMG.0116", "")
	}
	im.tags = next
	return nil
}

func (im *image) deleteTags(drop func(Tag) bool) (found bool) {
	n := len(im.tags)
	im.tags = slices.DeleteFunc(slices.Clone(im.tags), drop)
	return len(im.tags) < n
}

// changeOwned changes an image of the caller and answers with nothing.
func (s *Server) changeOwned(w http.ResponseWriter, r *http.Request, id string, change func(*image) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	im, err := s.owned(r, id)
	if err != nil {
		return err
	}
	if err := change(im); err != nil {
		return err
	}
	im.touch(s.now())
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// addTag is POST /v2/{project_id}/images/{image_id}/tags.
func (s *Server) addTag(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Tag *Tag `json:"tag"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	if q.Tag == nil {
		return imgError("IMG.0115", "there is none")
	}
	return s.putTags(w, r, r.PathValue("image"), []Tag{*q.Tag})
}

func (s *Server) putTags(w http.ResponseWriter, r *http.Request, id string, tags []Tag) error {
	if _, err := checkTags(nil, tags); err != nil {
		return err
	}
	return s.changeOwned(w, r, id, func(im *image) error { return im.setTags(tags) })
}

// changeTags is POST /v2/{project_id}/images/{image_id}/tags/action.
func (s *Server) changeTags(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Action string `json:"action"`
		Tags   []Tag  `json:"tags"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	if len(q.Tags) == 0 {
		return imgError("IMG.0115", "there is none")
	}
	switch q.Action {
	case "create":
		return s.putTags(w, r, r.PathValue("image"), q.Tags)
	case "delete":
		return s.dropTags(w, r, q.Tags)
	}
	return imgError("IMG.0001", fmt.Sprintf("the action %q is neither create nor delete", q.Action))
}

// dropTags deletes tags by key; unknown ones are no error.
func (s *Server) dropTags(w http.ResponseWriter, r *http.Request, tags []Tag) error {
	keys := map[string]bool{}
	for _, t := range tags {
		if t.Key == "" || keys[t.Key] || utf8.RuneCountInString(t.Key) > maxTagKeyDelete ||
			utf8.RuneCountInString(t.Value) > maxTagValueDelete {
			return imgError("IMG.0115", fmt.Sprintf("%q", t.Key))
		}
		keys[t.Key] = true
	}
	return s.changeOwned(w, r, r.PathValue("image"), func(im *image) error {
		im.deleteTags(func(t Tag) bool { return keys[t.Key] })
		return nil
	})
}

// deleteTag is DELETE /v2/{project_id}/images/{image_id}/tags/{key}, which wants
// the key to be there.
func (s *Server) deleteTag(w http.ResponseWriter, r *http.Request) error {
	return s.changeOwned(w, r, r.PathValue("image"), func(im *image) error {
		if !im.deleteTags(func(t Tag) bool { return t.Key == r.PathValue("key") }) {
			return nativeError(http.StatusNotFound, "No such tag.")
		}
		return nil
	})
}

// deleteTagsV1 is DELETE /v1/{project_id}/cloudimages/{image_id}/tags/delete.
func (s *Server) deleteTagsV1(w http.ResponseWriter, r *http.Request) error {
	if r.PathValue("project") != s.callerOf(r) {
		return imgError("IMG.0067", "")
	}
	var q struct {
		Tags []Tag `json:"tags"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	return s.dropTags(w, r, q.Tags)
}

// setTag is PUT /v1/cloudimages/tags.
func (s *Server) setTag(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		ImageID  string `json:"image_id"`
		Tag      string `json:"tag"`
		ImageTag *Tag   `json:"image_tag"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	switch {
	case (q.Tag == "") == (q.ImageTag == nil):
		return imgError("IMG.0115", "either tag or image_tag")
	case q.ImageTag == nil:
		k, v, _ := strings.Cut(q.Tag, ".")
		q.ImageTag = &Tag{k, v}
	}
	return s.putTags(w, r, q.ImageID, []Tag{*q.ImageTag})
}

// listTags is GET /v1/cloudimages/tags: those of the images that the filters
// select, each once.
func (s *Server) listTags(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	limit, page := 0, 1
	for name, dst := range map[string]*int{"limit": &limit, "page": &page} {
		if v := q.Get(name); v != "" {
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 {
				return imgError("IMG.0001", name)
			}
			*dst = n
		}
		q.Del(name)
	}
	shown, _, err := s.selectImages(s.callerOf(r), q, 1<<30)
	if err != nil {
		return err
	}
	tags := []string{}
	for _, im := range shown {
		for _, t := range im["tags"].([]string) {
			if !slices.Contains(tags, t) {
				tags = append(tags, t)
			}
		}
	}
	slices.Sort(tags)
	if limit > 0 {
		first := min(limit*(page-1), len(tags))
		tags = tags[first:min(first+limit, len(tags))]
	}
	return writeJSON(w, http.StatusOK, map[string]any{"tags": tags})
}

// listImageTags is GET /v2/{project_id}/images/{image_id}/tags.
func (s *Server) listImageTags(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	im := s.find(r.PathValue("image"))
	if im == nil || im.seenBy(s.callerOf(r)) == nil {
		s.mu.Unlock()
		return imgError("IMG.0027", "")
	}
	tags := append([]Tag{}, im.tags...)
	s.mu.Unlock()
	return writeJSON(w, http.StatusOK, map[string]any{"tags": tags})
}

// tagValues is a key with values, in answers and in queries.
type tagValues struct {
	Key    string   `json:"key"`
	Values []string `json:"values"`
}

// listProjectTags is GET /v2/{project_id}/images/tags.
func (s *Server) listProjectTags(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	list := []tagValues{}
	for _, im := range s.images {
		if im.str("owner") != s.callerOf(r) {
			continue
		}
		for _, t := range im.tags {
			i := slices.IndexFunc(list, func(v tagValues) bool { return v.Key == t.Key })
			if i < 0 {
				list = append(list, tagValues{t.Key, nil})
				i = len(list) - 1
			}
			if !slices.Contains(list[i].Values, t.Value) {
				list[i].Values = append(list[i].Values, t.Value)
			}
		}
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b tagValues) int { return strings.Compare(a.Key, b.Key) })
	return writeJSON(w, http.StatusOK, map[string]any{"tags": list})
}

// has tells whether the image has the key with one of the values, or at all.
func (im *image) has(q tagValues) bool {
	return slices.ContainsFunc(im.tags, func(t Tag) bool {
		return t.Key == q.Key && (len(q.Values) == 0 || slices.Contains(q.Values, t.Value))
	})
}

func (im *image) hasAll(list []tagValues) bool {
	return !slices.ContainsFunc(list, func(q tagValues) bool { return !im.has(q) })
}

func (im *image) hasAny(list []tagValues) bool { return slices.ContainsFunc(list, im.has) }

// findByTags is POST /v2/{project_id}/images/resource_instances/action.
func (s *Server) findByTags(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Action     string      `json:"action"`
		Tags       []tagValues `json:"tags"`
		TagsAny    []tagValues `json:"tags_any"`
		NotTags    []tagValues `json:"not_tags"`
		NotTagsAny []tagValues `json:"not_tags_any"`
		WithoutAny bool        `json:"without_any_tag"`
		Matches    []Tag       `json:"matches"`
		Limit      *string     `json:"limit"`
		Offset     *string     `json:"offset"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	limit, offset := 10, 0
	for _, n := range []struct {
		name        string
		text        *string
		dst         *int
		least, most int
	}{{"limit", q.Limit, &limit, 1, 1000}, {"offset", q.Offset, &offset, 0, 1 << 30}} {
		if n.text == nil {
			continue
		}
		v, err := strconv.Atoi(*n.text)
		if err != nil || v < n.least || v > n.most {
			return imgError("IMG.0001", n.name)
		}
		*n.dst = v
	}
	if q.Action != "filter" && q.Action != "count" {
		return imgError("IMG.0001", fmt.Sprintf("the action %q is neither filter nor count", q.Action))
	}
	for _, list := range [][]tagValues{q.Tags, q.TagsAny, q.NotTags, q.NotTagsAny} {
		if len(list) > maxQueryKeys {
			return imgError("IMG.0115", "more than 10 keys")
		}
		for _, t := range list {
			if t.Key == "" || len(t.Values) > maxQueryValues {
				return imgError("IMG.0115", fmt.Sprintf("the key %q", t.Key))
			}
		}
	}
	for _, m := range q.Matches {
		if m.Key != "resource_name" && m.Key != "resource_id" {
			return imgError("IMG.0001", "matches")
		}
	}
	s.mu.Lock()
	resources := []any{}
	for _, im := range s.images {
		ok := im.str("owner") == s.callerOf(r)
		if q.WithoutAny {
			ok = ok && len(im.tags) == 0
		} else {
			ok = ok && im.hasAll(q.Tags) && (len(q.TagsAny) == 0 || im.hasAny(q.TagsAny)) &&
				(len(q.NotTags) == 0 || !im.hasAll(q.NotTags)) && !im.hasAny(q.NotTagsAny)
		}
		for _, m := range q.Matches {
			switch {
			case m.Key == "resource_id":
				ok = ok && im.str("id") == m.Value
			case m.Value == "": // exact, for images without a name
				ok = ok && im.str("name") == ""
			default:
				ok = ok && strings.Contains(im.str("name"), m.Value)
			}
		}
		if ok {
			resources = append(resources, map[string]any{
				"resource_id": im.str("id"), "resource_name": im.str("name"),
				"resource_detail": map[string]any{"status": im.str("status")}, "tags": append([]Tag{}, im.tags...),
			})
		}
	}
	s.mu.Unlock()
	answer := map[string]any{"total_count": len(resources)}
	if q.Action == "filter" {
		first := min(offset, len(resources))
		answer["resources"] = resources[first:min(first+limit, len(resources))]
	}
	return writeJSON(w, http.StatusOK, answer)
}

// addNativeTag is PUT /v2/images/{image_id}/tags/{tag}, a key without a value.
func (s *Server) addNativeTag(w http.ResponseWriter, r *http.Request) error {
	tag := r.PathValue("tag")
	if strings.Contains(tag, "=") || utf8.RuneCountInString(tag) > 255 {
		return nativeError(http.StatusBadRequest, "The tag is malformed.")
	}
	return s.changeOwned(w, r, r.PathValue("image"), func(im *image) error { return im.setTags([]Tag{{Key: tag}}) })
}

// deleteNativeTag is DELETE /v2/images/{image_id}/tags/{tag}.
func (s *Server) deleteNativeTag(w http.ResponseWriter, r *http.Request) error {
	return s.changeOwned(w, r, r.PathValue("image"), func(im *image) error {
		if !im.deleteTags(func(t Tag) bool { return t.Key == r.PathValue("tag") && t.Value == "" }) {
			return nativeError(http.StatusNotFound, "No such tag.")
		}
		return nil
	})
}
