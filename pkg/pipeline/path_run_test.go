// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

// TestPaths: whatever the call, the image is the disk, and nothing is left in the bucket.
func TestPaths(t *testing.T) {
	disk := sparseDisk(9<<20, 3, 0, 5<<20)
	source := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), disk)
	for _, c := range []struct {
		path     pipeline.Path
		dataDisk bool
		extras   pipeline.Extras
		format   pipeline.Format
		want     pipeline.Path
		direct   bool
	}{
		{path: pipeline.PathAuto, want: pipeline.PathQuick},
		{path: pipeline.PathAuto, extras: pipeline.Extras{Configure: true}, want: pipeline.PathCommon},
		{path: pipeline.PathAuto, extras: pipeline.Extras{KMSKey: "k"}, want: pipeline.PathCommon},
		{path: pipeline.PathAuto, extras: pipeline.Extras{KMSKey: "k"}, dataDisk: true, want: pipeline.PathData},
		{path: pipeline.PathNative, want: pipeline.PathNative, direct: true},
		{path: pipeline.PathCommon, format: pipeline.FormatZVHD2, want: pipeline.PathCommon},
		{path: pipeline.PathNative, format: pipeline.FormatZVHD2, want: pipeline.PathNative},
	} {
		cloud := start(t, imstest.Options{HashLimit: 64 << 20}) // a ZVHD2 shows a whole GiB
		r := cloud.request(source)
		r.Key, r.ImportPath, r.Extras, r.Format = "", c.path, c.extras, c.format
		if c.dataDisk {
			r.Image = ims.QuickImport{Name: "image", Type: ims.TypeDataImage}
		}
		res, err := cloud.run(t.Context(), r)
		if err != nil {
			t.Fatalf("%s with %+v: %v", c.path, c.extras, err)
		}
		if res.ImportPath != c.want || (res.Upload.Key == "") != c.direct {
			t.Errorf("%s with %+v: %s of %q: %s", c.path, c.extras, res.ImportPath, res.Upload.Key, res.Why)
		}
		if c.format == pipeline.FormatZVHD2 {
			if got := cloud.attribute(t, res.ImageID, imstest.AttrContentSparse); got != sparseSum(disk) {
				t.Errorf("%s as %s: the content is another one", c.path, c.format)
			}
		} else if got := cloud.imageSHA256(t, res.ImageID); got != sum(disk) {
			t.Errorf("%s with %+v: the content is another one", c.path, c.extras)
		}
		cloud.empty(t)
	}
}

// TestNativeFails: an image that gets no content isn't left behind, nor is the object.
func TestNativeFails(t *testing.T) {
	source := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(1<<20, 4, 0))
	for _, format := range []pipeline.Format{pipeline.FormatAuto, pipeline.FormatZVHD2} {
		cloud := start(t, imstest.Options{Deny: []string{"ims:images:upload"}})
		r := cloud.request(source)
		r.Key, r.ImportPath, r.Format = "", pipeline.PathNative, format
		if _, err := cloud.run(t.Context(), r); ims.KindOf(err) != ims.KindPermission {
			t.Errorf("%s: %v", format, err)
		}
		cloud.empty(t)
		if left, err := cloud.IMS.ListImages(t.Context(), ims.ImageFilter{ImageType: "private"}); err != nil || len(left) > 0 {
			t.Errorf("%s: left behind: %v %v", format, left, err)
		}
	}

	// So it is when the run is told to stop while the file is sent.
	cloud := start(t, imstest.Options{})
	r := cloud.request(source)
	r.Bucket, r.Key, r.ImportPath = "", "", pipeline.PathNative
	p, err := cloud.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cloud.Events = func(e pipeline.Event) {
		if e.Phase == pipeline.PhaseUpload && e.State == pipeline.StateStart {
			cancel()
		}
	}
	var interrupted *pipeline.InterruptedError
	if _, err := cloud.Run(ctx, p); !errors.As(err, &interrupted) {
		t.Errorf("interrupted: %v", err)
	}
	if left, err := cloud.IMS.ListImages(t.Context(), ims.ImageFilter{ImageType: "private"}); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestPathJobFails: after the service accepted the import, the object stays, whatever the path.
func TestPathJobFails(t *testing.T) {
	source := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(1<<20, 5, 0))
	cloud := start(t, imstest.Options{Faults: imstest.Faults{FailJobs: "IMG.0057"}})
	r := cloud.request(source)
	r.ImportPath = pipeline.PathCommon
	_, err := cloud.run(t.Context(), r)
	var kept *pipeline.ObjectKeptError
	var failed *ims.JobFailedError
	if !errors.As(err, &kept) || !errors.As(err, &failed) || cloud.store.Object(obstest.Bucket, "disk.raw") == nil {
		t.Errorf("%v", err)
	}
}

// TestLostAnswerOfCommonImport: the image is found by its tag, as with a quick import.
func TestLostAnswerOfCommonImport(t *testing.T) {
	source := writeFile(t, filepath.Join(t.TempDir(), "disk.raw"), sparseDisk(1<<20, 6, 0))
	cloud := start(t, imstest.Options{Faults: imstest.Faults{LoseImportAnswers: 1}})
	r := cloud.request(source)
	r.ImportPath = pipeline.PathCommon
	res, err := cloud.run(t.Context(), r)
	if err != nil || !res.Recovered || res.Status != ims.ImageActive {
		t.Errorf("%+v, %v", res, err)
	}
}
