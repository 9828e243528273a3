// SPDX-License-Identifier: Apache-2.0

package ims_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

func fails[T any](_ T, err error) error { return err }

// TestMissingRight: a call that isn't permitted ends with the name of the right that it needs, whatever
// shape the refusal has.
func TestMissingRight(t *testing.T) {
	const image = "3d2e6ff2-2f3d-4b51-9d83-5a7a2d2c0e11"
	for _, c := range []struct {
		deny, right string
		call        func(*ims.Client) error
	}{
		{"ims:images:list", "ims:images:list", func(c *ims.Client) error { return fails(c.ListImages(t.Context(), ims.ImageFilter{})) }},
		{"*:create", "ims:images:create", func(c *ims.Client) error {
			return fails(c.CreateImage(t.Context(), &ims.ImageMetadata{Name: "n"}))
		}},
		{"*:create", "ims:serverImages:create", func(c *ims.Client) error {
			return fails(c.CommonImport(t.Context(), &ims.CommonImport{Name: "n", ImageURL: "bkt:a.raw", MinDisk: 40}, ims.GenOld))
		}},
		{"*:create", "ims:dataImages:create", func(c *ims.Client) error {
			return fails(c.ImportDataDisk(t.Context(), &ims.DataDiskImport{Name: "n", ImageURL: "bkt:a.raw", MinDisk: 40}, ims.GenOld))
		}},
		{"*:delete", "ims:images:delete", func(c *ims.Client) error { return c.DeleteImage(t.Context(), image) }},
		{"*:update", "ims:images:update", func(c *ims.Client) error {
			return c.AddTag(t.Context(), image, ims.Tag{Key: "k"})
		}},
		{"*:copy", "ims:images:copy", func(c *ims.Client) error {
			return fails(c.CopyImage(t.Context(), image, ims.Copy{Name: "n"}, ims.GenOld))
		}},
		{"*:export", "ims:images:export", func(c *ims.Client) error {
			return fails(c.ExportImage(t.Context(), image, ims.Export{BucketURL: "bkt:out.qcow2", Format: "qcow2"}, ims.GenOld))
		}},
	} {
		t.Run(c.right, func(t *testing.T) {
			s := serviceWith(t, imstest.Options{Deny: []string{c.deny}})
			err := c.call(s.client(nil))
			var e *ims.Error
			if !errors.As(err, &e) || e.Status != http.StatusForbidden || e.Kind != ims.KindPermission {
				t.Fatalf("%v", err)
			}
			if !strings.Contains(e.Error(), "Policy doesn't allow "+c.right) || !strings.Contains(e.Hint(), c.right) || e.RequestID == "" {
				t.Errorf("%v\nhint: %s", err, e.Hint())
			}
		})
	}
}
