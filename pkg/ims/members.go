// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Answers to a shared image.
const (
	MemberPending  = "pending"
	MemberAccepted = "accepted"
	MemberRejected = "rejected"
)

// Member is a project that an image is shared with.
type Member struct {
	ImageID   string `json:"image_id"`
	ProjectID string `json:"member_id"`
	Status    string `json:"status"` // MemberPending, MemberAccepted, MemberRejected
	CreatedAt string `json:"created_at,omitempty"`
	UpdatedAt string `json:"updated_at,omitempty"`
}

func checkSharing(images, projects []string) error {
	var v checker
	for field, ids := range map[string][]string{"images": images, "projects": projects} {
		if len(ids) == 0 {
			v.bad(field, "", "there must be one")
		}
		for _, id := range ids {
			v.id(field, id)
		}
	}
	return v.err()
}

// ShareImages starts a job that shares images with projects of the region:
// POST /v1/cloudimages/members (IMS API, "Adding Image Members in Batches"). An image can be shared
// with 128 projects (256 on Open Telekom Cloud; 10 for full-server images), and not when it is
// encrypted. The projects must accept, see [Client.AnswerShares]. The request is not repeated when
// its answer is lost, see [LostAnswerError].
func (c *Client) ShareImages(ctx context.Context, images, projects []string) (jobID string, err error) {
	return c.changeMembers(ctx, http.MethodPost, "share", images, projects)
}

// UnshareImages starts a job that ends the sharing of images with projects:
// DELETE /v1/cloudimages/members, with a body (IMS API, "Deleting Image Members in Batches").
func (c *Client) UnshareImages(ctx context.Context, images, projects []string) (jobID string, err error) {
	return c.changeMembers(ctx, http.MethodDelete, "unshare", images, projects)
}

func (c *Client) changeMembers(ctx context.Context, method, verb string, images, projects []string) (string, error) {
	if err := checkSharing(images, projects); err != nil {
		return "", err
	}
	return c.startJob(ctx, call{
		op: verb + " " + countOf(images, "image"), method: method, path: "/v1/cloudimages/members",
		body: struct {
			Images   []string `json:"images"`
			Projects []string `json:"projects"`
		}{images, projects},
	}, "list the members of the images.")
}

func countOf(ids []string, what string) string {
	if len(ids) == 1 {
		return what + " " + ids[0]
	}
	return fmt.Sprintf("%d %ss", len(ids), what)
}

// AnswerShares starts a job that accepts or rejects images that were shared with the project
// projectID, which must be the caller's: PUT /v1/cloudimages/members (IMS API, "Updating the Status
// of Image Members in Batches"). vaultID is for full-server images, else empty.
func (c *Client) AnswerShares(
	ctx context.Context, images []string, projectID, status, vaultID string,
) (jobID string, err error) {
	if err := checkSharing(images, []string{projectID}); err != nil {
		return "", err
	}
	var v checker
	v.rule("status", status, mustBe(status, MemberAccepted, MemberRejected))
	if vaultID != "" {
		v.id("vault_id", vaultID)
	}
	if err := v.err(); err != nil {
		return "", err
	}
	return c.startJob(ctx, call{
		op:     fmt.Sprintf("answer %s for %s", status, countOf(images, "image")),
		method: http.MethodPut, path: "/v1/cloudimages/members",
		body: struct {
			Images    []string `json:"images"`
			ProjectID string   `json:"project_id"`
			Status    string   `json:"status"`
			VaultID   string   `json:"vault_id,omitempty"`
		}{images, projectID, status, vaultID},
	}, "look at the member's status of the images.")
}

// Members lists the projects that an image is shared with: GET
// /v1/{project_id}/cloudimages/{image_id}/members (IMS API as the vendor's SDK has it,
// "ListImageMembers").
func (c *Client) Members(ctx context.Context, imageID string) ([]Member, error) {
	base, err := c.memberPath(ctx, imageID)
	if err != nil {
		return nil, err
	}
	return c.members(ctx, imageID, base)
}

// Member reads how one project stands to an image: GET
// /v1/{project_id}/cloudimages/{image_id}/members/{member_id} (IMS API as the vendor's SDK has it,
// "ShowImageMember").
func (c *Client) Member(ctx context.Context, imageID, projectID string) (*Member, error) {
	base, err := c.memberPath(ctx, imageID)
	if err != nil {
		return nil, err
	}
	return c.member(ctx, http.MethodGet, base, imageID, projectID, nil)
}

func (c *Client) memberPath(ctx context.Context, imageID string) (string, error) {
	if err := checkID("image", imageID); err != nil {
		return "", err
	}
	project, err := c.pathProject(ctx)
	if err != nil {
		return "", err
	}
	return "/v1/" + project + "/cloudimages/" + imageID + "/members", nil
}

// pathProject is the project id for a path.
func (c *Client) pathProject(ctx context.Context) (string, error) {
	project, err := c.ProjectID(ctx)
	if err != nil {
		return "", err
	}
	return project, checkID("project", project)
}

func nativeMemberPath(imageID string) (string, error) {
	return "/v2/images/" + imageID + "/members", checkID("image", imageID)
}

// NativeMembers is [Client.Members] by the native call: GET /v2/images/{image_id}/members (native
// API, "Querying Image Members").
func (c *Client) NativeMembers(ctx context.Context, imageID string) ([]Member, error) {
	base, err := nativeMemberPath(imageID)
	if err != nil {
		return nil, err
	}
	return c.members(ctx, imageID, base)
}

// NativeMember is [Client.Member] by the native call: GET /v2/images/{image_id}/members/{member_id}
// (native API, "Querying Image Member Details").
func (c *Client) NativeMember(ctx context.Context, imageID, projectID string) (*Member, error) {
	base, err := nativeMemberPath(imageID)
	if err != nil {
		return nil, err
	}
	return c.member(ctx, http.MethodGet, base, imageID, projectID, nil)
}

// AddNativeMember shares an image with a project at once: POST /v2/images/{image_id}/members
// (native API, "Adding an Image Member"). An image that is shared with the project already is
// [KindConflict].
func (c *Client) AddNativeMember(ctx context.Context, imageID, projectID string) (*Member, error) {
	base, err := nativeMemberPath(imageID)
	if err != nil {
		return nil, err
	}
	if err := checkID("project", projectID); err != nil {
		return nil, err
	}
	return c.member(ctx, http.MethodPost, base, imageID, "", map[string]string{"member": projectID})
}

// UpdateNativeMember accepts or rejects a shared image at once: PUT
// /v2/images/{image_id}/members/{member_id} (native API, "Updating the Image Sharing Status").
// vaultID is for full-server images, else empty.
func (c *Client) UpdateNativeMember(ctx context.Context, imageID, projectID, status, vaultID string) (*Member, error) {
	base, err := nativeMemberPath(imageID)
	if err != nil {
		return nil, err
	}
	var v checker
	v.rule("status", status, mustBe(status, MemberAccepted, MemberRejected, MemberPending))
	if err := v.err(); err != nil {
		return nil, err
	}
	body := map[string]string{"status": status}
	if vaultID != "" {
		body["vault_id"] = vaultID
	}
	return c.member(ctx, http.MethodPut, base, imageID, projectID, body)
}

// DeleteNativeMember ends the sharing of an image with a project at once: DELETE
// /v2/images/{image_id}/members/{member_id} (native API, "Deleting an Image Member").
func (c *Client) DeleteNativeMember(ctx context.Context, imageID, projectID string) error {
	base, err := nativeMemberPath(imageID)
	if err != nil {
		return err
	}
	if err := checkID("project", projectID); err != nil {
		return err
	}
	return c.remove(ctx, "unshare image "+imageID, base+"/"+projectID)
}

// remove carries out a DELETE that answers nothing.
func (c *Client) remove(ctx context.Context, op, path string) error {
	maybeDone := false
	_, err := c.do(ctx, call{
		op: op, service: serviceIMS, method: http.MethodDelete, path: path,
		success: []int{http.StatusNoContent, http.StatusOK}, repeatable: true, uncertain: &maybeDone,
	})
	if maybeDone && KindOf(err) == KindNotFound {
		return nil // by an earlier attempt whose answer did not arrive
	}
	return err
}

func (c *Client) member(ctx context.Context, method, base, imageID, projectID string, body any) (*Member, error) {
	k := call{
		op: "member of image " + imageID, service: serviceIMS, method: method, path: base, body: body,
		repeatable: method != http.MethodPost,
	}
	if projectID != "" {
		if err := checkID("project", projectID); err != nil {
			return nil, err
		}
		k.path += "/" + projectID
	}
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	m, err := a.object(k)
	if err != nil {
		return nil, err
	}
	member := memberFrom(m)
	if member.ProjectID == "" {
		return nil, malformed(k, a, "the answer holds no member")
	}
	return &member, nil
}

func memberFrom(m map[string]any) Member {
	return Member{
		ImageID: text(m["image_id"]), ProjectID: text(m["member_id"]), Status: strings.ToLower(text(m["status"])),
		CreatedAt: text(m["created_at"]), UpdatedAt: text(m["updated_at"]),
	}
}

func (c *Client) members(ctx context.Context, imageID, path string) ([]Member, error) {
	k := call{op: "list the members of image " + imageID, service: serviceIMS, method: http.MethodGet, path: path}
	var list []Member
	seen := map[string]bool{}
	for range maxListPages {
		k.query = url.Values{"limit": {strconv.Itoa(listPage)}}
		if len(list) > 0 {
			k.query.Set("marker", list[len(list)-1].ProjectID)
		}
		a, err := c.do(ctx, k)
		if err != nil {
			return nil, err
		}
		m, err := a.object(k)
		if err != nil {
			return nil, err
		}
		items, ok := m["members"].([]any)
		if !ok {
			return nil, malformed(k, a, "the answer holds no list of members")
		}
		fresh := 0
		for _, item := range items {
			object, _ := item.(map[string]any)
			if member := memberFrom(object); member.ProjectID != "" && !seen[member.ProjectID] {
				seen[member.ProjectID] = true
				fresh++
				list = append(list, member)
			}
		}
		if len(items) < listPage || fresh == 0 {
			break
		}
	}
	return list, nil
}
