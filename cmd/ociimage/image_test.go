// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// program builds imsprep as it goes into images, for this machine.
func program(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "imsprep")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.version=v1-test", "-o", out, "./cmd/imsprep")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOWORK=off")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return out
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestImage builds the tarballs, reads them with the library, holds what is in them against what should be, and
// runs the program that is in them.
func TestImage(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the program in the image is one for Linux")
	}
	here, other := "linux/"+runtime.GOARCH, "linux/arm64"
	if here == other {
		other = "linux/amd64"
	}
	dir := t.TempDir()
	args := func(dir string) []string {
		return []string{"--binary", here + "=" + bin(t), "--binary", other + "=" + write(t, "other", "not a program"),
			"--certs", write(t, "certs", "CERTIFICATES"), "--license", filepath.Join("..", "..", "LICENSE"),
			"--version", "v1-test", "--revision", "abc", "--epoch", "1700000000", "--tag", "registry.example/tools/imsprep:v1", "--out", dir}
	}
	if err := run(args(dir)); err != nil {
		t.Fatal(err)
	}

	// The layout with all platforms.
	tree := filepath.Join(t.TempDir(), "layout")
	untar(t, filepath.Join(dir, "imsprep-oci.tar"), tree)
	index, err := layout.ImageIndexFromPath(tree)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Errorf("the index isn't valid: %v", err)
	}
	m, err := index.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "v1" {
		t.Fatalf("%+v, %v", m, err)
	}
	inner, err := index.ImageIndex(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = inner.IndexManifest(); err != nil || len(m.Manifests) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	for _, d := range m.Manifests {
		img, err := inner.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		check(t, img, d.Platform.OS+"/"+d.Platform.Architecture)
		if d.Platform.Architecture == runtime.GOARCH {
			runs(t, img)
		}
	}
	// One platform, as docker load takes it.
	img, err := tarball.ImageFromPath(filepath.Join(dir, "imsprep-"+strings.ReplaceAll(here, "/", "-")+".tar"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Errorf("the image isn't valid: %v", err)
	}
	check(t, img, here)

	// The same again is the same, byte by byte.
	again := t.TempDir()
	if err := run(args(again)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"imsprep-oci.tar", "imsprep-linux-amd64.tar", "imsprep-linux-arm64.tar"} {
		a, aerr := os.ReadFile(filepath.Join(dir, name))
		b, berr := os.ReadFile(filepath.Join(again, name))
		if aerr != nil || berr != nil || !bytes.Equal(a, b) {
			t.Errorf("%s isn't reproducible (%v, %v)", name, aerr, berr)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

var built string

// bin is the program, built once.
func bin(t *testing.T) string {
	if built == "" {
		built = program(t)
	}
	return built
}

func check(t *testing.T, img v1.Image, platform string) {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := c.OS + "/" + c.Architecture; got != platform {
		t.Errorf("the image is for %s, want %s", got, platform)
	}
	if c.Config.User != "65532:65532" || len(c.Config.Entrypoint) != 1 || c.Config.Entrypoint[0] != "/usr/bin/imsprep" ||
		c.Config.Labels["org.opencontainers.image.version"] != "v1-test" || c.Config.Labels["org.opencontainers.image.revision"] != "abc" ||
		c.Created.Unix() != 1700000000 {
		t.Errorf("config: %+v, created %v", c.Config, c.Created)
	}
	files := map[string]*tar.Header{}
	r := mutate.Extract(img)
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = h
		if h.Uid != 0 || h.ModTime.Unix() != 1700000000 || h.Mode&0o022 != 0 {
			t.Errorf("%s: owner %d, time %v, mode %o", h.Name, h.Uid, h.ModTime, h.Mode)
		}
	}
	for _, name := range []string{"usr/bin/imsprep", "etc/ssl/certs/ca-certificates.crt", "etc/passwd", "usr/share/doc/imsprep/LICENSE"} {
		if files[name] == nil {
			t.Errorf("%s isn't in the image", name)
		}
	}
	if p := files["usr/bin/imsprep"]; p != nil && p.Mode != 0o755 {
		t.Errorf("the program has the mode %o", p.Mode)
	}
}

// runs takes the program out of the image and runs it.
func runs(t *testing.T, img v1.Image) {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	out := filepath.Join(t.TempDir(), "imsprep")
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != "usr/bin/imsprep" {
			continue
		}
		b, err := io.ReadAll(tr)
		if err == nil {
			err = os.WriteFile(out, b, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	f, err := elf.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
		t.Errorf("the program needs %q, which the image doesn't have (%v)", libs, err)
	}
	cmd := exec.Command(out, "version")
	cmd.Env = []string{}
	b, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(b), "v1-test") {
		t.Errorf("%v: %s", err, b)
	}
}

func untar(t *testing.T, from, to string) {
	t.Helper()
	f, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(to, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(p, 0o700)
		} else {
			var b []byte
			if b, err = io.ReadAll(tr); err == nil {
				err = errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, b, 0o600))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadArguments(t *testing.T) {
	dir := t.TempDir()
	for want, args := range map[string][]string{
		"no programs":         {},
		"isn't a platform":    {"--binary", "linux=" + write(t, "x", "")},
		"PLATFORM=FILE":       {"--binary", "x"},
		"no such file":        {"--binary", "linux/amd64=" + filepath.Join(dir, "none")},
		"can only contain":    {"--binary", "linux/amd64=" + write(t, "x", "y"), "--tag", "A B"},
		"no such file or dir": {"--binary", "linux/amd64=" + write(t, "x", "y"), "--certs", filepath.Join(dir, "none")},
	} {
		out := filepath.Join(t.TempDir(), "out")
		err := run(append(args, "--out", out))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", args, err, want)
		}
		if left, _ := filepath.Glob(filepath.Join(out, "*.tar")); len(left) > 0 {
			t.Errorf("%q: it failed and left %q", args, left)
		}
	}
}
