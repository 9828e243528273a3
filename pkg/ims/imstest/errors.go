// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/http"
)

// answerError is an error with the body that the service sends for it.
type answerError struct {
	status      int
	contentType string
	body        func(requestID string) []byte
	text        string
}

func (e *answerError) Error() string { return e.text }

var errNoSuchAPI = gatewayError(http.StatusNotFound, "APIGW.0101", "The API does not exist or has not been published in the environment.")

// imgError is the IMS extension API's error: status 400 and the code. The
// detail, which the service does not give, follows the documented message.
func imgError(code, detail string) *answerError {
	msg := imgMessage(code, detail)
	return jsonError(http.StatusBadRequest, code+" "+msg, func(string) any {
		return map[string]any{"error": map[string]any{"code": code, "message": msg}}
	})
}

// imgMessage is the documented message of a code with a detail of ours.
func imgMessage(code, detail string) string {
	msg := imgMessages[code]
	if msg == "" {
		msg = "Unknown system error."
	}
	if detail != "" {
		msg += " (" + detail + ")"
	}
	return msg
}

// gatewayError is an error of the API gateway.
func gatewayError(status int, code, msg string) *answerError {
	return jsonError(status, code+" "+msg, func(id string) any {
		return map[string]any{"error_code": code, "error_msg": msg, "request_id": id}
	})
}

// iamError is an error of IAM's own calls, whose code is a number.
func iamError(status int, msg string) *answerError {
	return jsonError(status, fmt.Sprint(status, " ", msg), func(string) any {
		return map[string]any{"error": map[string]any{"code": status, "message": msg, "title": http.StatusText(status)}}
	})
}

// nativeError is an error of a native OpenStack call: a page of HTML.
func nativeError(status int, msg string) *answerError {
	title := fmt.Sprint(status, " ", http.StatusText(status))
	return &answerError{status, "text/html; charset=UTF-8", func(string) []byte {
		return fmt.Appendf(nil, "<html>\n <head>\n  <title>%[1]s</title>\n </head>\n <body>\n  <h1>%[1]s</h1>\n  %[2]s<br /><br />\n </body>\n</html>",
			title, html.EscapeString(msg))
	}, title + ": " + msg}
}

func jsonError(status int, text string, v func(requestID string) any) *answerError {
	return &answerError{status, "application/json", func(id string) []byte {
		p, err := json.Marshal(v(id))
		if err != nil { // only strings and numbers go in
			panic(err)
		}
		return p
	}, text}
}

func writeError(w http.ResponseWriter, err error) {
	var e *answerError
	if !errors.As(err, &e) {
		e = gatewayError(http.StatusInternalServerError, "APIGW.0601", "Internal server error: "+err.Error())
	}
	w.Header().Set("Content-Type", e.contentType)
	w.WriteHeader(e.status)
	_, _ = w.Write(e.body(w.Header().Get("X-Request-Id"))) // the client is gone: nobody is left to tell
}

// imgMessages are the service's messages of the codes that the simulator uses.
var imgMessages = map[string]string{
	"IMG.0001": "The request message format is invalid.",
	"IMG.0002": "The image name contains more than 128 characters.",
	"IMG.0003": "The image name format is invalid.",
	"IMG.0004": "The description contains more than 1024 characters.",
	"IMG.0005": "The ECS does not exist.",
	"IMG.0007": "The request body is empty.",
	"IMG.0009": "The image name already exists.",
	"IMG.0013": "The image name is not specified.",
	"IMG.0015": "The number of private images has reached the maximum allowed.",
	"IMG.0017": "The URL format is incorrect.",
	"IMG.0024": "The image type in the request is incorrect.",
	"IMG.0027": "The image ID in the request does not exist.",
	"IMG.0028": "The image in the request is protected.",
	"IMG.0030": "The project ID and token in the request are invalid.",
	"IMG.0031": "The resource ID in the request is incorrect.",
	"IMG.0035": "An attribute conflict occurred during the modification.",
	"IMG.0046": "The image is unavailable.",
	"IMG.0047": "This operation can be performed only by the image owner.",
	"IMG.0054": "The image description format is invalid.",
	"IMG.0055": "The memory or disk size is invalid.",
	"IMG.0056": "Invalid OS version.",
	"IMG.0057": "The image file is empty, not found, or in incorrect format, or you do not have enough permission to access the file.",
	"IMG.0058": "The region of the bucket where the image file is stored is inconsistent with that of the user.",
	"IMG.0059": "The size of the image file exceeds the maximum allowed.",
	"IMG.0060": "The number of tasks exceeds the flow control limit.",
	"IMG.0067": "The project ID is incorrect.",
	"IMG.0068": "The specified bucket name is empty.",
	"IMG.0069": "The specified bucket cannot be accessed.",
	"IMG.0070": "The image file already exists. Confirm the file in the corresponding directory of the OBS bucket or in the OBS bucket.",
	"IMG.0072": "The specified image format is not supported.",
	"IMG.0073": "The name of the exported file is empty.",
	"IMG.0075": "The file name contains invalid characters.",
	"IMG.0076": "You cannot share an image with yourself.",
	"IMG.0083": "The image is a public image.",
	"IMG.0088": "The number of shared images has reached the maximum allowed.",
	"IMG.0089": "The public image or Marketplace image cannot be shared.",
	"IMG.0090": "The image being created cannot be deleted.",
	"IMG.0091": "The protected image cannot be deleted.",
	"IMG.0092": "The image can only be deleted by the owner.",
	"IMG.0094": "The public image cannot be deleted.",
	"IMG.0098": "The encrypted image cannot be shared or published in Marketplace.",
	"IMG.0105": "The operation is not supported.",
	"IMG.0108": "The tenant ID was not found in the current region.",
	"IMG.0109": "The bucket name contains invalid characters.",
	"IMG.0111": "The size of the system disk exceeds the maximum allowed.",
	"IMG.0113": "Failed to delete the tenant.",
	"IMG.0115": "The image tag is invalid.",
	"IMG.0116": "The number of image tags exceeds the quota.",
	"IMG.0118": "The BMS image does not support KMS encryption.",
	"IMG.0120": "The specified data disk ID is unavailable.",
	"IMG.0122": "The OS type is invalid.",
	"IMG.0123": "The image file address in the request is duplicate.",
	"IMG.0141": "The value of `hw_firmware_type` is not `uefi` or `bios`.",
	"IMG.0142": "Replication must be performed across regions.",
	"IMG.0143": "An encrypted image cannot be replicated cross regions.",
	"IMG.0144": "The image does not exist.",
	"IMG.0145": "The project name is incorrect.",
	"IMG.0146": "The size of the image to be replicated across regions exceeds the upper limit.",
	"IMG.0147": "The entered region information is incorrect.",
	"IMG.0149": "The number of image replicated cross regions exceeds the maximum number allowed at a time.",
	"IMG.0155": "Failed to check the enterprise project ID validity.",
	"IMG.0158": "Only image files in raw OR ZVHD2 format support the Fast Create function. For raw image files, bitmaps must be uploaded to the OBS bucket together with image files.",
	"IMG.0159": "The OS version is required when image files are used to create ECSs through the Fast Create function.",
	"IMG.0160": "Only images less than 128 GB can be exported.",
	"IMG.0166": "OS information must be contained in the ISO files used to create images.",
	"IMG.0167": "This operation cannot be performed for ISO images.",
	"IMG.0175": "The folder name and image file name cannot contain spaces.",
	"IMG.0179": "The token of the source image agency is invalid.",
	"IMG.0194": "The maximum number of images that can be imported at one time has been reached.",
	"IMG.0196": "The image cannot be replicated because it is not accepted by the recipient.",
	"IMG.0197": "Failed to replicate the shared image because it is encrypted using KMS.",
	"IMG.0212": "The value of `architecture` is not `x86` or `arm`.",
	"IMG.1075": "Failed to register the image file.",
}
