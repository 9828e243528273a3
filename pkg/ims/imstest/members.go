// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// States of a sharing.
const (
	memberPending  = "pending"
	memberAccepted = "accepted"
	memberRejected = "rejected"
)

const maxMembers = 128 // projects that an image is shared with

// member is a project that an image is shared with.
type member struct {
	project, status  string
	created, updated time.Time
}

func (m member) show(im *image) map[string]any {
	return map[string]any{
		"image_id": im.str("id"), "member_id": m.project, "status": m.status, "schema": "/v2/schemas/member",
		"created_at": m.created.Format(imageTime), "updated_at": m.updated.Format(imageTime), "member_type": "project",
	}
}

func (im *image) member(project string) *member {
	i := slices.IndexFunc(im.members, func(m member) bool { return m.project == project })
	if i < 0 {
		return nil
	}
	return &im.members[i]
}

// shareable tells why an image cannot be shared with a project.
func (s *Server) shareable(im *image, project string) error {
	switch {
	case im.str("status") != statusActive:
		return imgError("IMG.0046", "its status is "+im.str("status"))
	case im.str("__system__cmkid") != "":
		return imgError("IMG.0098", "")
	case project == im.str("owner"):
		return imgError("IMG.0076", "")
	case !s.isPartner(project) && project != s.opt.ProjectID:
		return imgError("IMG.0108", project)
	case im.member(project) == nil && len(im.members) >= maxMembers:
		return imgError("IMG.0088", "")
	}
	return nil
}

type membersRequest struct {
	Images        []string `json:"images"`
	Projects      []string `json:"projects"`
	Domains       []string `json:"domains"`
	Organizations []string `json:"organizations"`
}

// addMembers is POST /v1/cloudimages/members.
func (s *Server) addMembers(w http.ResponseWriter, r *http.Request) error {
	return s.changeMembers(w, r, jobAddMembers, s.shareable, func(im *image, project string, now time.Time) string {
		if im.member(project) == nil {
			im.members = append(im.members, member{project, memberPending, now, now})
		}
		return "success"
	})
}

// deleteMembers is DELETE /v1/cloudimages/members, which has a body.
func (s *Server) deleteMembers(w http.ResponseWriter, r *http.Request) error {
	return s.changeMembers(w, r, jobDelMembers, nil, func(im *image, project string, _ time.Time) string {
		before := len(im.members)
		im.members = slices.DeleteFunc(im.members, func(m member) bool { return m.project == project })
		if len(im.members) == before {
			return "failed"
		}
		return "success"
	})
}

// changeMembers checks all pairs and starts the job that changes them.
func (s *Server) changeMembers(
	w http.ResponseWriter, r *http.Request, kind string,
	check func(*image, string) error, change func(im *image, project string, now time.Time) string,
) error {
	var q membersRequest
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	if len(q.Images) == 0 || len(q.Projects) == 0 {
		return imgError("IMG.0001", "images and projects are needed")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var images []*image
	for _, id := range q.Images {
		im, err := s.owned(r, id)
		if err != nil {
			if public := s.find(id); public != nil && public.str("__imagetype") == "gold" {
				return imgError("IMG.0089", "")
			}
			return err
		}
		for _, project := range q.Projects {
			if check == nil {
				continue
			}
			if err := check(im, project); err != nil {
				return err
			}
		}
		images = append(images, im)
	}
	return s.startMembers(w, kind, images, q.Projects, change)
}

// startMembers starts a job over all pairs. The caller holds the lock.
func (s *Server) startMembers(
	w http.ResponseWriter, kind string, images []*image, projects []string,
	change func(im *image, project string, now time.Time) string,
) error {
	if err := s.admit(); err != nil {
		return err
	}
	j := &job{kind: kind, task: "ImageMembersTask:"}
	id := s.start(j, func(context.Context, func(float64) error) (func(time.Time), error) {
		return func(now time.Time) {
			for _, im := range images {
				for _, project := range projects {
					j.results = append(j.results, map[string]any{
						"image_id": im.str("id"), "project_id": project, "status": change(im, project, now),
					})
				}
				im.touch(now)
			}
		}, nil
	})
	return writeJob(w, id)
}

// answerMembers is PUT /v1/cloudimages/members: the caller accepts or rejects.
func (s *Server) answerMembers(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Images    []string `json:"images"`
		ProjectID string   `json:"project_id"`
		Status    string   `json:"status"`
		VaultID   string   `json:"vault_id"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	switch {
	case len(q.Images) == 0:
		return imgError("IMG.0001", "images are needed")
	case q.Status != memberAccepted && q.Status != memberRejected:
		return imgError("IMG.0001", "status is accepted or rejected")
	case q.ProjectID != s.callerOf(r):
		return imgError("IMG.0067", "it is not the caller's")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var images []*image
	for _, id := range q.Images {
		im := s.find(id)
		if im == nil || im.member(q.ProjectID) == nil {
			return imgError("IMG.0027", "it is not shared with the project")
		}
		images = append(images, im)
	}
	return s.startMembers(w, jobSetMembers, images, []string{q.ProjectID}, func(im *image, project string, now time.Time) string {
		m := im.member(project)
		if m == nil {
			return "failed"
		}
		m.status, m.updated = q.Status, now
		return "success"
	})
}

// sharedImage finds an image whose members the caller may see: all of them as
// the owner, itself as a member.
func (s *Server) sharedImage(r *http.Request) (im *image, sees func(member) bool, err error) {
	caller := s.callerOf(r)
	if p := r.PathValue("project"); p != "" && p != caller {
		return nil, nil, imgError("IMG.0067", "")
	}
	im = s.find(r.PathValue("image"))
	if im == nil || im.seenBy(caller) == nil {
		return nil, nil, nativeError(http.StatusNotFound, "No image found with ID "+r.PathValue("image"))
	}
	return im, func(m member) bool { return im.str("owner") == caller || m.project == caller }, nil
}

// listMembers is GET .../images/{image_id}/members in both forms.
func (s *Server) listMembers(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	limit := defaultLimit
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			return imgError("IMG.0001", "limit")
		}
		limit = n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	im, sees, err := s.sharedImage(r)
	if err != nil {
		return err
	}
	list := []any{}
	started := q.Get("marker") == ""
	for _, m := range im.members {
		if started && sees(m) && len(list) < limit {
			list = append(list, m.show(im))
		}
		started = started || m.project == q.Get("marker")
	}
	return writeJSON(w, http.StatusOK, map[string]any{"members": list, "schema": "/v2/schemas/members"})
}

// showMember is GET .../images/{image_id}/members/{member_id} in both forms.
func (s *Server) showMember(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	im, sees, err := s.sharedImage(r)
	if err != nil {
		return err
	}
	m := im.member(r.PathValue("member"))
	if m == nil || !sees(*m) {
		return nativeError(http.StatusNotFound, "No such member.")
	}
	return writeJSON(w, http.StatusOK, m.show(im))
}

// addMember is POST /v2/images/{image_id}/members.
func (s *Server) addMember(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Member string `json:"member"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	im, err := s.owned(r, r.PathValue("image"))
	if err != nil {
		return err
	}
	if err := s.shareable(im, q.Member); err != nil {
		return err
	}
	if im.member(q.Member) != nil {
		return nativeError(http.StatusConflict, "The image is shared with the member already.")
	}
	now := s.now()
	m := member{q.Member, memberPending, now, now}
	im.members = append(im.members, m)
	return writeJSON(w, http.StatusOK, m.show(im))
}

// updateMember is PUT /v2/images/{image_id}/members/{member_id}.
func (s *Server) updateMember(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Status  string `json:"status"`
		VaultID string `json:"vault_id"`
	}
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	if !slices.Contains([]string{memberAccepted, memberRejected, memberPending}, q.Status) {
		return nativeError(http.StatusBadRequest, "The status is unknown.")
	}
	if r.PathValue("member") != s.callerOf(r) {
		return nativeError(http.StatusForbidden, "Only the member itself may answer.")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	im, _, err := s.sharedImage(r)
	if err != nil {
		return err
	}
	m := im.member(r.PathValue("member"))
	if m == nil {
		return nativeError(http.StatusNotFound, "No such member.")
	}
	m.status, m.updated = q.Status, s.now()
	return writeJSON(w, http.StatusOK, m.show(im))
}

// deleteMember is DELETE /v2/images/{image_id}/members/{member_id}.
func (s *Server) deleteMember(w http.ResponseWriter, r *http.Request) error {
	return s.changeOwned(w, r, r.PathValue("image"), func(im *image) error {
		if im.member(r.PathValue("member")) == nil {
			return nativeError(http.StatusNotFound, "No such member.")
		}
		im.members = slices.DeleteFunc(im.members, func(m member) bool { return m.project == r.PathValue("member") })
		return nil
	})
}
