// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"net/http"
	"path"
	"strings"
)

// callRights are the rights that calls need, by the names that custom policies give to them (IMS API,
// permissions and supported actions). Calls about jobs, the quota and members are not in that list. In
// a path a * stands for one element; the first match counts.
var callRights = []struct {
	method, path string
	rights       string
}{
	{http.MethodPost, "/v2*/cloudimages/quickimport/action", "ims:serverImages:create (for a data disk ims:dataImages:create)"},
	{http.MethodPost, "/v2*/cloudimages/action", "ims:serverImages:create"},
	{http.MethodPost, "/v*/cloudimages/dataimages/action", "ims:dataImages:create"},
	{http.MethodPost, "/v1/cloudimages/members", ""},
	{http.MethodPut, "/v1/cloudimages/members", ""},
	{http.MethodDelete, "/v1/cloudimages/members", ""},
	{http.MethodPut, "/v1/cloudimages/tags", "ims:images:update"},
	{http.MethodGet, "/v1/cloudimages/tags", "ims:images:list"},
	{http.MethodGet, "/v1/cloudimages/quota", ""},
	{http.MethodGet, "/v1/cloudimages/os_version", "ims:images:list"},
	{http.MethodPut, "/v1/cloudimages/*/upload", "ims:images:upload"},
	{http.MethodPost, "/v*/cloudimages/*/file", "ims:images:export"},
	{http.MethodPost, "/v*/cloudimages/*/copy", "ims:images:copy"},
	{http.MethodPost, "/v1/cloudimages/*/cross_region_copy", "ims:images:copy"},
	{http.MethodGet, "/v2/cloudimages", "ims:images:list"},
	{http.MethodPatch, "/v2/cloudimages/*", "ims:images:update"},
	{http.MethodPost, "/v2/images", "ims:images:create"},
	{http.MethodGet, "/v2/images", "ims:images:list"},
	{http.MethodGet, "/v1.1/images/detail", "ims:images:list"},
	{http.MethodPut, "/v2/images/*/file", "ims:images:get, ims:images:update and ims:images:upload"},
	{http.MethodPut, "/v2/images/*/tags/*", "ims:images:update"},
	{http.MethodDelete, "/v2/images/*/tags/*", "ims:images:update"},
	{http.MethodGet, "/v2/images/*", "ims:images:get"},
	{http.MethodPatch, "/v2/images/*", "ims:images:update"},
	{http.MethodDelete, "/v2/images/*", "ims:images:delete"},
	{http.MethodGet, "/v2/*/images/*/tags", "ims:images:list"},
	{http.MethodGet, "/v2/*/images/tags", "ims:images:list"},
	{http.MethodPost, "/v2/*/images/resource_instances/action", "ims:images:list"},
	{http.MethodPost, "/v2/*/images/*/tags", "ims:images:update"},
	{http.MethodPost, "/v2/*/images/*/tags/action", "ims:images:update"},
	{http.MethodDelete, "/v2/*/images/*/tags/*", "ims:images:update"},
	{http.MethodDelete, "/v1/*/cloudimages/*/tags/delete", "ims:images:update"},
	{http.MethodGet, "/v3/projects", "to list the account's projects"},
	{http.MethodPost, "/v3.0/OS-CREDENTIAL/securitytokens", "to get temporary keys (through an agency: that it is delegated to this account)"},
}

// RightsOf names the rights that a call needs, for people; empty if no documentation names them.
func RightsOf(method, callPath string) string {
	for _, c := range callRights {
		if ok, _ := path.Match(c.path, callPath); ok && c.method == method {
			return c.rights
		}
	}
	return ""
}

// missingRight is the hint for a call that was not permitted.
func missingRight(e *Error) string {
	rights := RightsOf(e.Method, e.Path)
	switch {
	case rights == "":
		return ""
	case strings.HasPrefix(rights, "to "):
		return "The user needs the right " + rights + "."
	}
	return "The call needs the right " + rights + ": grant it to the user for this project, by a custom policy or a role of the image service."
}
