// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// alike answers every request with the same body.
type alike struct {
	body string
	seen int
}

func (a *alike) RoundTrip(*http.Request) (*http.Response, error) {
	a.seen++
	w := httptest.NewRecorder()
	_, _ = w.WriteString(a.body)
	return w.Result(), nil
}

// FuzzAnswers: whatever a service answers, no call panics, and no list goes on for ever when the
// service gives the same page again and again.
func FuzzAnswers(f *testing.F) {
	page := strings.Repeat(`{"id":"a","member_id":"m","key":"k","resource_id":"r"},`, listPage)
	page = page[:len(page)-1]
	for _, seed := range []string{
		`{"images":[{"id":"a","min_disk":"40"},null,3],"next":"/v2/images?marker=a"}`, `{"images":[` + page + `],"next":"?marker=a"}`,
		`{"members":[{"member_id":"p","status":"accepted"},null]}`, `{"members":[` + page + `]}`, `{"member_id":"p","status":7}`,
		`{"tags":[{"key":"k","value":"v"},{"key":"k","values":["v",null]},"k=v",7]}`, `{"tags":[` + page + `]}`,
		`{"resources":[{"resource_id":"r","resource_detail":{"status":"active"},"tags":[{"key":1}]},[]],"total_count":"1"}`,
		`{"resources":[` + page + `]}`, `{"versions":[{"id":"v2","links":[{"href":1},2]}],"version":{"id":"v1"}}`,
		`{"image":{"id":"a"}}`, `{"name":"image","properties":[]}`, `{"job_id":" 1 "}`, `[]`, `null`, ``, `<html>`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		a := &alike{body: body}
		c := newTestClient(t, a, nil)
		ctx := background()
		for name, call := range map[string]func() error{
			"native images": func() error { _, err := c.NativeImages(ctx, ImageFilter{}); return err },
			"native image":  func() error { _, err := c.NativeImage(ctx, testImage); return err },
			"version 1.1":   func() error { _, err := c.ImageDetailsV11(ctx, nil); return err },
			"create":        func() error { _, err := c.CreateImage(ctx, &ImageMetadata{Name: "n"}); return err },
			"update": func() error {
				_, err := c.UpdateImage(ctx, testImage, Change{Op: ChangeAdd, Attribute: "a"})
				return err
			},
			"members":      func() error { _, err := c.Members(ctx, testImage); return err },
			"member":       func() error { _, err := c.Member(ctx, testImage, "p"); return err },
			"tags":         func() error { _, err := c.Tags(ctx, testImage); return err },
			"project tags": func() error { _, err := c.ProjectTags(ctx); return err },
			"list tags":    func() error { _, err := c.ListTags(ctx, ImageFilter{}, 0, 0); return err },
			"by tags":      func() error { _, err := c.ImagesByTags(ctx, TagFilter{}); return err },
			"count":        func() error { _, err := c.CountImagesByTags(ctx, TagFilter{}); return err },
			"versions":     func() error { _, err := c.Versions(ctx); return err },
			"version":      func() error { _, err := c.Version(ctx, "v2"); return err },
			"schema":       func() error { _, err := c.Schema(ctx, "image"); return err },
			"share":        func() error { _, err := c.ShareImages(ctx, []string{"i"}, []string{"p"}); return err },
		} {
			a.seen = 0
			err := call()
			if a.seen > 2 {
				t.Errorf("%s: %d requests for one page", name, a.seen)
			}
			if err != nil && len(err.Error()) > 4*maxMessage {
				t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
			}
		}
	})
}
