// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"net/http"
	"strconv"
)

// Quota tells how many private images the project has and may have: GET /v1/cloudimages/quota (IMS
// API, "Querying the Image Quota").
func (c *Client) Quota(ctx context.Context) (used, quota int, err error) {
	k := call{op: "read the image quota", service: serviceIMS, method: http.MethodGet, path: "/v1/cloudimages/quota"}
	a, err := c.do(ctx, k)
	if err != nil {
		return 0, 0, err
	}
	m, err := a.object(k)
	if err != nil {
		return 0, 0, err
	}
	quotas, _ := m["quotas"].(map[string]any)
	resources, _ := quotas["resources"].([]any)
	for _, item := range resources {
		r, _ := item.(map[string]any)
		if text(r["type"]) != "image" {
			continue
		}
		u, errUsed := strconv.Atoi(text(r["used"]))
		q, errQuota := strconv.Atoi(text(r["quota"]))
		if errUsed == nil && errQuota == nil {
			return u, q, nil
		}
	}
	return 0, 0, malformed(k, a, "the answer holds no quota of images")
}
