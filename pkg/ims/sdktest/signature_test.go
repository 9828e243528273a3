// SPDX-License-Identifier: Apache-2.0

package sdktest

import (
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/auth/signer"
	sdkrequest "github.com/huaweicloud/huaweicloud-sdk-go-v3/core/request"
)

// checkSignature lets the SDK sign the request that arrived, with the headers that it says were signed,
// and tells how that differs from the signature it carries: "" if not at all.
func checkSignature(r *http.Request, body string) string {
	got := r.Header.Get("Authorization")
	_, list, _ := strings.Cut(got, "SignedHeaders=")
	list, _, _ = strings.Cut(list, ",")
	b := sdkrequest.NewHttpRequestBuilder().WithEndpoint("http://" + r.Host).WithPath(r.URL.Path).WithMethod(r.Method)
	for name, values := range r.URL.Query() {
		b.AddQueryParam(name, reflect.ValueOf(values))
	}
	for name := range strings.SplitSeq(list, ";") {
		switch name {
		case "host":
			b.AddHeaderParam("host", r.Host)
		case "x-sdk-date", "x-sdk-content-sha256": // the SDK looks for them by this spelling
			canonical := map[string]string{"x-sdk-date": "X-Sdk-Date", "x-sdk-content-sha256": "X-Sdk-Content-Sha256"}[name]
			b.AddHeaderParam(canonical, r.Header.Get(name))
		default:
			b.AddHeaderParam(name, r.Header.Get(name))
		}
	}
	if body != "" {
		b.WithBody("", body)
	}
	headers, err := signer.Sign(b.Build(), accessKey, secretKey)
	if err != nil {
		return err.Error()
	}
	if want := headers["Authorization"]; got != want {
		return fmt.Sprintf("Authorization %s, the SDK's signer makes %s", got, want)
	}
	return ""
}
