// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxNativeUpload = 2 << 30 // bytes, exclusive
	nativeLimit     = 25      // images in a native list
)

// createImage is POST /v2/images. Attributes without a meaning of their own are
// kept as they are.
func (s *Server) createImage(w http.ResponseWriter, r *http.Request) error {
	var q map[string]json.RawMessage
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	spec := &importSpec{
		owner: s.callerOf(r), enterpriseProjectID: "0", format: "zvhd2",
		os: OSVersion{Platform: "Other", Key: otherLinux, Version: otherLinux, Bit: 64, OSType: "Linux"},
	}
	protected := false
	free := map[string]string{}
	for name, raw := range q {
		bad := func() error { return nativeError(http.StatusBadRequest, "Invalid value for "+name) }
		var text string
		switch name {
		case "min_disk":
			if json.Unmarshal(raw, &spec.minDisk) != nil || spec.minDisk < 0 || spec.minDisk > maxMinDisk {
				return bad()
			}
			continue
		case "min_ram":
			if json.Unmarshal(raw, &spec.minRAM) != nil || spec.minRAM < 0 {
				return bad()
			}
			continue
		case "protected":
			if json.Unmarshal(raw, &protected) != nil {
				return bad()
			}
			continue
		case "tags":
			var list []string
			if json.Unmarshal(raw, &list) != nil || len(list) > maxTags {
				return bad()
			}
			for _, t := range list {
				k, v, _ := strings.Cut(t, "=")
				spec.tags = append(spec.tags, Tag{k, v})
			}
			if _, err := checkTags(nil, spec.tags); err != nil {
				return bad()
			}
			continue
		}
		if json.Unmarshal(raw, &text) != nil {
			return bad()
		}
		switch name {
		case "name":
			if spec.name = text; utf8.RuneCountInString(text) > 255 {
				return bad()
			}
		case "__os_version":
			i := slices.IndexFunc(s.opt.OSVersions, func(v OSVersion) bool { return v.Key == text })
			if i < 0 && text != otherLinux {
				return bad()
			} else if i >= 0 {
				spec.os = s.opt.OSVersions[i]
			}
		case "disk_format":
			if spec.format = text; !slices.Contains([]string{"zvhd2", "zvhd", "vhd", "raw", "qcow2", "iso"}, text) {
				return bad()
			}
		case "container_format":
			if text != "bare" {
				return bad()
			}
		case "visibility":
			if text != "private" {
				return bad()
			}
		default:
			if name == "" || utf8.RuneCountInString(name) > 255 || slices.Contains(fixedAttributes, name) {
				return nativeError(http.StatusForbidden, "Attribute '"+name+"' is read-only.")
			}
			free[name] = text
		}
	}
	spec.osType = spec.os.OSType
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.admitImages(spec.owner, spec.name); err != nil {
		return err
	}
	im := s.newImage(spec, s.now())
	im.making = false
	im.set("protected", protected)
	im.set("disk_format", spec.format)
	im.set("__data_origin", "")
	for name, value := range free {
		im.set(name, value)
	}
	s.images = append(s.images, im)
	return writeJSON(w, http.StatusCreated, im.show())
}

// awaiting finds an image that has no content yet and takes it for somebody who
// will give it one.
func (s *Server) awaiting(r *http.Request) (*image, *importSpec, error) {
	im, err := s.owned(r, r.PathValue("image"))
	switch {
	case err != nil:
		return nil, nil, err
	case im.str("status") != statusQueued || im.making:
		return nil, nil, imgError("IMG.0046", "its status is "+im.str("status"))
	}
	im.making = true
	// Metadata need not name a min_disk: then nothing is too large.
	minDisk, _ := im.attrs["min_disk"].(int64)
	if minDisk == 0 {
		minDisk = maxMinDisk
	}
	return im, &importSpec{name: im.str("name"), format: im.str("disk_format"), minDisk: minDisk}, nil
}

// uploadFile is PUT /v2/images/{image_id}/file.
func (s *Server) uploadFile(w http.ResponseWriter, r *http.Request) error {
	if t := r.Header.Get("Content-Type"); t != "application/octet-stream" {
		return nativeError(http.StatusUnsupportedMediaType, "The content type is "+t)
	}
	switch {
	case r.ContentLength < 0:
		return nativeError(http.StatusLengthRequired, "Content-Length is needed.")
	case r.Header.Get("X-Auth-Token") == "" && r.ContentLength > maxSignedBody:
		return gatewayError(http.StatusRequestEntityTooLarge, "APIGW.0201", "The request body is too large.")
	case r.ContentLength == 0 || r.ContentLength >= maxNativeUpload:
		return nativeError(http.StatusRequestEntityTooLarge, "The file is empty or has 2 GB or more.")
	}
	s.mu.Lock()
	im, spec, err := s.awaiting(r)
	if err == nil {
		im.set("status", statusSaving)
	}
	s.mu.Unlock()
	if err != nil {
		var e *answerError
		if errors.As(err, &e) && strings.HasPrefix(e.text, "IMG.0046") {
			return nativeError(http.StatusConflict, "The image has content already.")
		}
		return nativeError(http.StatusNotFound, "No image found with ID "+r.PathValue("image"))
	}
	c, err := s.receive(r.Context(), r.Body, r.ContentLength, spec)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		im.set("status", statusKilled)
		im.making = false
		return nativeError(http.StatusBadRequest, err.Error())
	}
	im.activate(c, s.now())
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// receive reads an uploaded file.
func (s *Server) receive(ctx context.Context, body io.Reader, size int64, spec *importSpec) (*content, error) {
	dir, err := os.MkdirTemp(s.opt.TempDir, "imstest-")
	if err != nil {
		return nil, errors.New("no room for the file")
	}
	defer os.RemoveAll(dir)
	f, err := os.Create(filepath.Join(dir, "upload"))
	if err != nil {
		return nil, errors.New("no room for the file")
	}
	defer f.Close()
	if n, err := io.Copy(f, body); err != nil || n != size {
		return nil, fmt.Errorf("%d of %d bytes arrived", n, size)
	}
	spec.size = size
	return s.readConverted(ctx, f, spec, func(float64) error { return nil })
}

// registerImage is PUT /v1/cloudimages/{image_id}/upload.
func (s *Server) registerImage(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		ImageURL string `json:"image_url"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	bucket, key, err := checkImageURL(q.ImageURL)
	if err != nil {
		return err
	}
	object := &importSpec{bucket: bucket, key: key}
	iso := strings.HasSuffix(strings.ToLower(key), ".iso")
	if object.format, err = checkEnding(key, false, iso); err != nil {
		return err
	}
	if err := s.checkObject(r.Context(), object); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.admit(); err != nil {
		return err
	}
	im, spec, err := s.awaiting(r)
	if err != nil {
		return err
	}
	spec.bucket, spec.key, spec.size, spec.format = bucket, key, object.size, object.format
	j := &job{kind: jobRegister, task: "RegisterImageTask:", name: spec.name, image: im, makes: true}
	id := s.start(j, func(ctx context.Context, progress func(float64) error) (func(time.Time), error) {
		c, err := s.readContent(ctx, spec, progress)
		return func(now time.Time) { im.activate(c, now) }, err
	})
	// As in the documentation's sample, with a blank that clients must cope with.
	return writeJob(w, " "+id)
}

// listNativeImages is GET /v2/images, page by page with links.
func (s *Server) listNativeImages(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	shown, more, err := s.selectImages(s.callerOf(r), q, nativeLimit)
	if err != nil {
		return nativeError(http.StatusBadRequest, err.Error())
	}
	link := func(marker string) string {
		v := maps.Clone(q)
		v.Del("marker")
		if marker != "" {
			v.Set("marker", marker)
		}
		return (&url.URL{Path: "/v2/images", RawQuery: v.Encode()}).String()
	}
	answer := map[string]any{"images": shown, "schema": "/v2/schemas/images", "first": link("")}
	if more && len(shown) > 0 {
		answer["next"] = link(fmt.Sprint(shown[len(shown)-1]["id"]))
	}
	return writeJSON(w, http.StatusOK, answer)
}

// listDetails is GET /v1.1/images/detail, which was abandoned for the newer
// lists.
func (s *Server) listDetails(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	for name := range q {
		if !slices.Contains([]string{
			"name", "container_format", "disk_format", "status", "size_min", "size_max", "changes-since", "marker", "limit",
		}, name) {
			return nativeError(http.StatusBadRequest, "Unsupported filter "+name)
		}
	}
	bound := func(name string, otherwise int64) (int64, error) {
		v := q.Get(name)
		q.Del(name)
		if v == "" {
			return otherwise, nil
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return 0, nativeError(http.StatusBadRequest, name)
		}
		return n, nil
	}
	least, err := bound("size_min", 0)
	if err != nil {
		return err
	}
	most, err := bound("size_max", 1<<62)
	if err != nil {
		return err
	}
	if since := q.Get("changes-since"); since != "" {
		q.Set("updated_at", "gte:"+since)
		q.Del("changes-since")
	}
	shown, _, err := s.selectImages(s.callerOf(r), q, defaultLimit)
	if err != nil {
		return nativeError(http.StatusBadRequest, err.Error())
	}
	list := []map[string]any{}
	for _, im := range shown {
		size, _ := strconv.ParseInt(fmt.Sprint(im["__image_size"]), 10, 64)
		if size < least || size > most {
			continue
		}
		old := map[string]any{
			"size": size, "virtual_size": nil, "deleted": false, "deleted_at": nil, "checksum": nil,
			"is_public": im["visibility"] == "public", "properties": map[string]any{},
		}
		for _, name := range []string{
			"id", "name", "status", "container_format", "disk_format", "owner", "protected", "min_ram", "min_disk",
		} {
			old[name] = im[name]
		}
		for _, name := range []string{"created_at", "updated_at"} {
			old[name] = strings.TrimSuffix(fmt.Sprint(im[name]), "Z")
		}
		for name, v := range im {
			if strings.HasPrefix(name, "__") {
				old["properties"].(map[string]any)[name] = v
			}
		}
		list = append(list, old)
	}
	return writeJSON(w, http.StatusOK, map[string]any{"images": list})
}

// showSchema is GET /v2/schemas/{image|images|member|members}.
func (s *Server) showSchema(w http.ResponseWriter, r *http.Request) error {
	property := func(kind, description string) map[string]any {
		return map[string]any{"type": kind, "description": description}
	}
	image := map[string]any{
		"id": property("string", "An identifier for the image"), "name": property("string", "Descriptive name for the image"),
		"status": property("string", "Status of the image"), "min_disk": property("integer", "Amount of disk space (in GB) required"),
		"min_ram": property("integer", "Amount of RAM (in MB) required"), "protected": property("boolean", "If true, image will not be deletable"),
		"tags": property("array", "List of strings related to the image"), "visibility": property("string", "Scope of image accessibility"),
	}
	member := map[string]any{
		"member_id": property("string", "An identifier for the image member"), "image_id": property("string", "An identifier for the image"),
		"status": property("string", "The status of this image member"), "schema": property("string", "Schema"),
	}
	one := map[string]map[string]any{"image": image, "member": member}
	name := r.PathValue("schema")
	if properties, ok := one[name]; ok {
		return writeJSON(w, http.StatusOK, map[string]any{
			"name": name, "properties": properties, "additionalProperties": map[string]any{"type": "string"},
			"links": []any{map[string]any{"rel": "self", "href": "{self}"}},
		})
	}
	if properties, ok := one[strings.TrimSuffix(name, "s")]; ok {
		item := strings.TrimSuffix(name, "s")
		return writeJSON(w, http.StatusOK, map[string]any{
			"name": name, "properties": map[string]any{
				name:    map[string]any{"type": "array", "items": map[string]any{"name": item, "properties": properties}},
				"first": property("string", ""), "next": property("string", ""), "schema": property("string", ""),
			},
			"links": []any{map[string]any{"rel": "first", "href": "{first}"}, map[string]any{"rel": "describedby", "href": "{schema}"}},
		})
	}
	return nativeError(http.StatusNotFound, "No schema "+name)
}
