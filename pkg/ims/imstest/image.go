// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"cmp"
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

// Image states.
const (
	statusQueued = "queued"
	statusSaving = "saving"
	statusActive = "active"
	statusKilled = "killed"
)

const (
	imageTime    = "2006-01-02T15:04:05Z"
	defaultLimit = 500 // images in a list
)

// image is an image as the service shows it. Free attributes are part of the
// service, so it is a map; numbers are strings where the service has them so.
type image struct {
	attrs   map[string]any
	created time.Time
	updated time.Time
	tags    []Tag
	making  bool     // a job makes it, or gives it its content
	members []member // projects it is shared with
	status  string   // of the caller's membership, in a copy made by seenBy
}

// str returns an attribute as text, as filters compare it.
func (im *image) str(name string) string {
	switch v := im.attrs[name].(type) {
	case nil:
		return ""
	case string:
		return v
	default:
		return fmt.Sprint(v)
	}
}

func (im *image) set(name string, value any) { im.attrs[name] = value }

func (im *image) touch(now time.Time) {
	im.updated = now
	im.set("updated_at", now.Format(imageTime))
}

// show returns the image as the service shows it.
func (im *image) show() map[string]any {
	m := maps.Clone(im.attrs)
	tags := []string{}
	for _, t := range im.tags {
		tags = append(tags, t.Key+"="+t.Value)
	}
	m["tags"] = tags
	return m
}

// newImage makes the image of an import that has just been accepted.
func (s *Server) newImage(spec *importSpec, now time.Time) *image {
	id := randomUUID()
	env := "FusionCompute"
	switch {
	case spec.dataDisk:
		env = "DataImage"
	case spec.baremetal:
		env = "Ironic"
	case spec.iso:
		env = "IsoImage"
	}
	im := &image{created: now, updated: now, tags: spec.tags, making: true, attrs: map[string]any{
		"id": id, "name": spec.name, "owner": spec.owner, "status": statusQueued,
		"visibility": "private", "protected": false, "container_format": "bare",
		"disk_format": "zvhd2", "min_disk": spec.minDisk, "min_ram": spec.minRAM, "max_ram": spec.maxRAM,
		"size": 0, "virtual_size": nil, "checksum": "",
		"file": "/v2/images/" + id + "/file", "self": "/v2/images/" + id, "schema": "/v2/schemas/image",
		"created_at": now.Format(imageTime), "updated_at": now.Format(imageTime),
		"enterprise_project_id": spec.enterpriseProjectID, "virtual_env_type": env,
		"__imagetype": "private", "__isregistered": "true", "__image_source_type": "uds",
		"__root_origin": "file", "__originalimagename": "", "__lazyloading": "true",
		"__os_type": spec.osType, "__description": spec.description,
		"__data_origin": "file," + spec.bucket + ":" + spec.key, "__account_code": "",
		"__system__cmkid": spec.cmkID, "__support_kvm": "true", "__system_support_market": true,
	}}
	if !spec.dataDisk {
		im.set("__os_version", spec.os.Version)
		im.set("__os_bit", strconv.Itoa(spec.os.Bit))
		im.set("__platform", spec.os.Platform)
	}
	if spec.firmware != "" {
		im.set("hw_firmware_type", spec.firmware)
	}
	if spec.arm {
		im.set("__support_arm", "true")
		im.set("architecture", "arm")
	} else {
		im.set("architecture", "x86")
	}
	if spec.licenseType != "" {
		im.set("license_type", spec.licenseType)
	}
	return im
}

// activate makes the image usable with the content that was found.
func (im *image) activate(c *content, now time.Time) {
	im.making = false
	im.set("status", statusActive)
	im.set("active_at", now.Format(imageTime))
	im.set("__image_location", "local:"+im.str("id"))
	im.set("__image_size", strconv.FormatInt(c.size, 10))
	im.set(AttrContentSize, strconv.FormatInt(c.size, 10))
	if c.sparse != "" {
		im.set(AttrContentSparse, c.sparse)
		im.set(AttrContentData, strconv.FormatInt(c.data, 10))
	}
	if c.sha256 != "" {
		im.set(AttrContentSHA256, c.sha256)
	}
	im.touch(now)
}

// publicImages are images of the service's own, as every list without a
// filter has them: a client that looks for its own must say so.
func publicImages(region string, now time.Time) []*image {
	var list []*image
	for i, name := range []string{"CentOS 7.6 64bit", "Ubuntu 22.04 server 64bit"} {
		id := randomUUID()
		t := now.Add(-time.Duration(30*24*(i+1)) * time.Hour)
		list = append(list, &image{created: t, updated: t, attrs: map[string]any{
			"id": id, "name": name, "owner": "public-" + region, "status": statusActive,
			"visibility": "public", "protected": true, "container_format": "bare",
			"disk_format": "zvhd2", "min_disk": 40, "min_ram": 0, "max_ram": "",
			"size": 0, "virtual_size": nil, "checksum": "",
			"file": "/v2/images/" + id + "/file", "self": "/v2/images/" + id, "schema": "/v2/schemas/image",
			"created_at": t.Format(imageTime), "updated_at": t.Format(imageTime),
			"virtual_env_type": "FusionCompute", "architecture": "x86",
			"__imagetype": "gold", "__isregistered": "true", "__image_source_type": "uds",
			"__image_size": "1073741824", "__os_type": "Linux", "__os_bit": "64",
			"__os_version": name, "__platform": strings.Fields(name)[0], "__data_origin": nil,
		}})
	}
	return list
}

// find returns an image by id; the caller holds the lock.
func (s *Server) find(id string) *image {
	i := slices.IndexFunc(s.images, func(im *image) bool { return im.str("id") == id })
	if i < 0 {
		return nil
	}
	return s.images[i]
}

// listImages is GET /v2/cloudimages.
func (s *Server) listImages(w http.ResponseWriter, r *http.Request) error {
	shown, _, err := s.selectImages(s.callerOf(r), r.URL.Query(), defaultLimit)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]any{"images": shown})
}

// selectImages returns the images that a list's query asks for, and whether
// there are more than its limit.
func (s *Server) selectImages(caller string, q url.Values, limit int) (shown []map[string]any, more bool, err error) {
	match, err := imageFilter(q)
	if err != nil {
		return nil, false, err
	}
	if v := q.Get("limit"); v != "" {
		if limit, err = strconv.Atoi(v); err != nil || limit < 0 {
			return nil, false, imgError("IMG.0001", "limit is not a number")
		}
	}
	order, err := imageOrder(q.Get("sort_key"), q.Get("sort_dir"))
	if err != nil {
		return nil, false, err
	}
	wanted := q.Get("member_status")
	if !slices.Contains([]string{"", memberAccepted, memberRejected, memberPending}, wanted) {
		return nil, false, imgError("IMG.0001", "member_status")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*image
	for _, im := range s.images {
		im := im.seenBy(caller)
		if im == nil || !match(im) {
			continue
		}
		// Images that were shared with the caller are there once it has accepted them, or on
		// demand.
		if im.str("__imagetype") != "shared" || im.status == or(wanted, memberAccepted) {
			found = append(found, im)
		}
	}
	slices.SortStableFunc(found, order)
	if marker := q.Get("marker"); marker != "" {
		i := slices.IndexFunc(found, func(im *image) bool { return im.str("id") == marker })
		if i < 0 {
			return nil, false, imgError("IMG.0027", "marker")
		}
		found = found[i+1:]
	}
	shown = []map[string]any{}
	for _, im := range found[:min(limit, len(found))] {
		shown = append(shown, im.show())
	}
	return shown, len(found) > limit, nil
}

// seenBy is the image as a project sees it: its owner's as it is, an image that
// is shared with the project marked so; nil if the project cannot see it.
func (im *image) seenBy(project string) *image {
	if im.str("__imagetype") != "private" || im.str("owner") == project {
		return im
	}
	i := slices.IndexFunc(im.members, func(m member) bool { return m.project == project })
	if i < 0 {
		return nil
	}
	seen := *im
	seen.attrs = maps.Clone(im.attrs)
	seen.status = im.members[i].status
	seen.set("visibility", "shared")
	seen.set("__imagetype", "shared")
	return &seen
}

// callerOf is the project that a request speaks for.
func (s *Server) callerOf(r *http.Request) string {
	if id := r.Header.Get("X-Project-Id"); s.isPartner(id) && r.Header.Get("X-Auth-Token") == "" {
		return id
	}
	return s.opt.ProjectID
}

func (s *Server) isPartner(id string) bool {
	return slices.ContainsFunc(s.opt.Partners, func(p Project) bool { return p.ID == id })
}

// owned finds an image that the caller may change, or the error to answer; the
// caller of this function holds the lock.
func (s *Server) owned(r *http.Request, id string) (*image, error) {
	im := s.find(id)
	switch {
	case im == nil || im.seenBy(s.callerOf(r)) == nil:
		return nil, imgError("IMG.0027", "")
	case im.str("__imagetype") != "private":
		return nil, imgError("IMG.0083", "")
	case im.str("owner") != s.callerOf(r):
		return nil, imgError("IMG.0047", "")
	}
	return im, nil
}

// imageFilter makes a filter of a list's query. A parameter without a meaning
// of its own must equal the image's attribute of that name.
func imageFilter(q url.Values) (func(*image) bool, error) {
	var tests []func(*image) bool
	for name, values := range q {
		value := values[0]
		switch name {
		case "marker", "limit", "sort_key", "sort_dir", "flavor_id", "member_status":
		case "tag":
			k, v, _ := strings.Cut(value, "=")
			tests = append(tests, func(im *image) bool { return slices.Contains(im.tags, Tag{k, v}) })
		case "created_at", "updated_at":
			test, err := timeFilter(value)
			if err != nil {
				return nil, err
			}
			tests = append(tests, func(im *image) bool {
				t := im.created
				if name == "updated_at" {
					t = im.updated
				}
				return test(t.Truncate(time.Second))
			})
		case "enterprise_project_id":
			tests = append(tests, func(im *image) bool { return value == "all_granted_eps" || im.str(name) == value })
		case "__isregistered":
			tests = append(tests, func(im *image) bool { return strings.EqualFold(im.str(name), value) })
		case "__platform":
			squeeze := strings.NewReplacer(" ", "")
			tests = append(tests, func(im *image) bool { return squeeze.Replace(im.str(name)) == squeeze.Replace(value) })
		default:
			tests = append(tests, func(im *image) bool { return im.str(name) == value })
		}
	}
	return func(im *image) bool {
		for _, t := range tests {
			if !t(im) {
				return false
			}
		}
		return true
	}, nil
}

// timeFilter parses OP:TIME.
func timeFilter(v string) (func(time.Time) bool, error) {
	op, text, _ := strings.Cut(v, ":")
	t, err := time.Parse(imageTime, text)
	if err != nil {
		if t, err = time.Parse(time.DateTime, text); err != nil {
			return nil, imgError("IMG.0001", "a time filter is OP:TIME")
		}
	}
	test, ok := map[string]func(int) bool{
		"gt": func(c int) bool { return c > 0 }, "gte": func(c int) bool { return c >= 0 },
		"lt": func(c int) bool { return c < 0 }, "lte": func(c int) bool { return c <= 0 },
		"eq": func(c int) bool { return c == 0 }, "neq": func(c int) bool { return c != 0 },
	}[op]
	if !ok {
		return nil, imgError("IMG.0001", "a time filter is OP:TIME")
	}
	return func(u time.Time) bool { return test(u.Compare(t)) }, nil
}

func imageOrder(key, dir string) (func(a, b *image) int, error) {
	var order func(a, b *image) int
	switch key {
	case "", "created_at":
		order = func(a, b *image) int { return a.created.Compare(b.created) }
	case "name", "container_format", "disk_format", "status", "id":
		order = func(a, b *image) int { return strings.Compare(a.str(key), b.str(key)) }
	case "size":
		order = func(a, b *image) int { return cmp.Compare(a.str("__image_size"), b.str("__image_size")) }
	default:
		return nil, imgError("IMG.0001", "sort_key")
	}
	switch dir {
	case "asc":
		return order, nil
	case "", "desc":
		return func(a, b *image) int { return order(b, a) }, nil
	}
	return nil, imgError("IMG.0001", "sort_dir")
}

// showImage is GET /v2/images/{image_id}.
func (s *Server) showImage(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	im := s.find(r.PathValue("image"))
	if im != nil {
		im = im.seenBy(s.callerOf(r))
	}
	if im == nil {
		s.mu.Unlock()
		return nativeError(http.StatusNotFound, "No image found with ID "+r.PathValue("image"))
	}
	shown := im.show()
	s.mu.Unlock()
	return writeJSON(w, http.StatusOK, shown)
}

// deleteImage is DELETE /v2/images/{image_id}. The object stays.
func (s *Server) deleteImage(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("image")
	body, err := readBody(r, 1<<20)
	if err != nil {
		return err
	}
	if len(body) > 0 {
		var opt struct {
			DeleteBackup bool `json:"delete_backup"`
		}
		if err := decodeStrict(body, &opt); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	im := s.find(id)
	switch {
	case im == nil || im.seenBy(s.callerOf(r)) == nil:
		return nativeError(http.StatusNotFound, "Failed to find image "+id+" to delete")
	case im.str("__imagetype") != "private":
		return imgError("IMG.0094", "")
	case im.str("owner") != s.callerOf(r):
		return imgError("IMG.0092", "")
	case im.attrs["protected"] == true:
		return imgError("IMG.0091", "")
	case im.making:
		return imgError("IMG.0090", "")
	}
	s.images = slices.DeleteFunc(s.images, func(x *image) bool { return x == im })
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// patchOp is one change of an update. All three members are mandatory.
type patchOp struct {
	Op    string          `json:"op"`
	Path  string          `json:"path"`
	Value json.RawMessage `json:"value"`
}

// updateImage is PATCH /v2/cloudimages/{image_id} and its native twin.
func (s *Server) updateImage(w http.ResponseWriter, r *http.Request) error {
	var ops []patchOp
	if err := decodeBody(r, &ops); err != nil {
		return err
	}
	native := strings.HasPrefix(r.URL.Path, "/v2/images/")
	if t, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); native != (t == jsonPatch) {
		return imgError("IMG.0001", "the content type is "+t)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	im := s.find(r.PathValue("image"))
	switch {
	case (im == nil || im.seenBy(s.callerOf(r)) == nil) && native:
		return nativeError(http.StatusNotFound, "No image found with ID "+r.PathValue("image"))
	case im == nil || im.seenBy(s.callerOf(r)) == nil:
		return imgError("IMG.0027", "")
	case im.str("__imagetype") != "private" || im.str("owner") != s.callerOf(r):
		return nativeError(http.StatusForbidden, "You are not permitted to modify this image.")
	case im.str("status") != statusActive:
		return imgError("IMG.0046", "its status is "+im.str("status"))
	}
	changed := maps.Clone(im.attrs)
	for _, op := range ops {
		if err := op.apply(changed); err != nil {
			return err
		}
	}
	im.attrs = changed
	im.touch(s.now())
	return writeJSON(w, http.StatusOK, im.show())
}

// fixedAttributes cannot be changed by an update.
var fixedAttributes = []string{
	"id", "owner", "status", "created_at", "updated_at", "active_at", "file", "self", "schema", "size", "virtual_size",
	"checksum", "min_disk", "architecture", "virtual_env_type", "tags", "visibility",
	"__os_version", "__os_type", "__os_bit", "__platform", "__imagetype", "__image_size", "__root_origin", "__isregistered",
	AttrContentSHA256, AttrContentSize, AttrContentSparse, AttrContentData,
}

// attributeValue checks a new value. Some attributes are shown as numbers or
// booleans
// although an update has every value as text.
func attributeValue(name, text string) (any, error) {
	switch name {
	case "min_ram":
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return nil, imgError("IMG.0055", "min_ram")
		}
		return n, nil
	case "protected":
		b, err := strconv.ParseBool(text)
		if err != nil {
			return nil, imgError("IMG.0001", "protected")
		}
		return b, nil
	case "name":
		return text, checkName(text)
	case "__description":
		return text, checkDescription(text)
	case "hw_firmware_type":
		if text != "bios" && text != "uefi" {
			return nil, imgError("IMG.0141", "")
		}
	}
	return text, nil
}

func (op patchOp) apply(attrs map[string]any) error {
	name, ok := strings.CutPrefix(op.Path, "/")
	if !ok || name == "" || strings.Contains(name, "/") {
		return imgError("IMG.0001", "path is a slash and the name of an attribute")
	}
	if slices.Contains(fixedAttributes, name) {
		return imgError("IMG.0035", name+" cannot be changed")
	}
	var text string
	if err := json.Unmarshal(op.Value, &text); err != nil {
		return imgError("IMG.0001", "value is a string")
	}
	_, exists := attrs[name]
	switch op.Op {
	case "add", "replace":
		if op.Op == "replace" && !exists {
			return imgError("IMG.0035", "there is no "+name+" to replace")
		}
		v, err := attributeValue(name, text)
		if err != nil {
			return err
		}
		attrs[name] = v
	case "remove":
		if !exists {
			return imgError("IMG.0035", "there is no "+name+" to remove")
		}
		delete(attrs, name)
	default:
		return imgError("IMG.0001", "op is add, replace or remove")
	}
	return nil
}

// showQuota is GET /v1/cloudimages/quota.
func (s *Server) showQuota(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	used := 0
	for _, im := range s.images {
		if im.str("__imagetype") == "private" && im.str("status") != statusKilled && im.str("owner") == s.callerOf(r) {
			used++
		}
	}
	s.mu.Unlock()
	return writeJSON(w, http.StatusOK, map[string]any{"quotas": map[string]any{"resources": []any{
		map[string]any{"type": "image", "used": used, "quota": s.opt.Quota, "min": 1, "max": 1000},
	}}})
}

// listVersions is GET /.
func (s *Server) listVersions(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusMultipleChoices, map[string]any{"versions": []any{
		apiVersion("v1.1", "SUPPORTED"), apiVersion("v2", "SUPPORTED"), apiVersion("v2.1", "CURRENT"),
	}})
}

// showVersion is GET /{version}.
func (s *Server) showVersion(w http.ResponseWriter, r *http.Request) error {
	switch v := r.PathValue("version"); v {
	case "v1", "v1.1", "v2":
		return writeJSON(w, http.StatusOK, map[string]any{"versions": []any{apiVersion(v, "SUPPORTED")}})
	case "v2.1":
		return writeJSON(w, http.StatusOK, map[string]any{"versions": []any{apiVersion(v, "CURRENT")}})
	}
	return errNoSuchAPI
}

func apiVersion(id, status string) map[string]any {
	return map[string]any{"id": id, "status": status, "version": "", "min_version": "",
		"updated": "2026-01-01T00:00:00Z", "links": []any{map[string]any{"rel": "self", "href": "/" + id + "/"}}}
}
