// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// user is who the program runs as: a number, so that Kubernetes can tell that it isn't root.
const user = "65532:65532"

// content says what goes into the image.
type content struct {
	binaries map[string]string // path of the program by platform: linux/amd64
	certs    string            // bundle of CA certificates; "" for none
	license  string            // "" for none
	version  string
	revision string // commit; "" leaves it out
	created  time.Time
	tag      string // name and tag in the tarballs
}

// build makes one image a platform, and the index over them, in the order of the platforms' names.
func (c *content) build() (v1.ImageIndex, map[string]v1.Image, error) {
	var common []file
	for in, from := range map[string]string{
		"etc/ssl/certs/ca-certificates.crt": c.certs, // where Go's crypto/x509 looks first on Linux
		"usr/share/doc/imsprep/LICENSE":     c.license,
	} {
		if from == "" {
			continue
		}
		b, err := os.ReadFile(from)
		if err != nil {
			return nil, nil, err
		}
		common = append(common, file{in, 0o644, b})
	}
	common = append(common, file{"etc/passwd", 0o644, []byte("root:x:0:0:root:/:/sbin/nologin\nimsprep:x:65532:65532:imsprep:/:/sbin/nologin\n")})
	base, err := c.layer(common)
	if err != nil {
		return nil, nil, err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	images := map[string]v1.Image{}
	var adds []mutate.IndexAddendum
	var platforms []string
	for platform := range c.binaries {
		platforms = append(platforms, platform)
	}
	slices.Sort(platforms)
	for _, platform := range platforms {
		system, arch, ok := strings.Cut(platform, "/")
		if !ok || system == "" || arch == "" {
			return nil, nil, fmt.Errorf("%q isn't a platform such as linux/amd64", platform)
		}
		b, err := os.ReadFile(c.binaries[platform])
		if err != nil {
			return nil, nil, err
		}
		program, err := c.layer([]file{{"usr/bin/imsprep", 0o755, b}})
		if err != nil {
			return nil, nil, err
		}
		img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
		img, err = mutate.Append(img, c.addendum(base, "certificates"), c.addendum(program, "imsprep"))
		if err != nil {
			return nil, nil, err
		}
		config, err := img.ConfigFile()
		if err != nil {
			return nil, nil, err
		}
		config = config.DeepCopy()
		config.OS, config.Architecture, config.Created, config.Author = system, arch, v1.Time{Time: c.created}, "imsprep"
		config.Config = v1.Config{
			Entrypoint: []string{"/usr/bin/imsprep"},
			User:       user,
			WorkingDir: "/",
			Env:        []string{"PATH=/usr/bin"},
			Labels:     c.labels(),
		}
		if img, err = mutate.ConfigFile(img, config); err != nil {
			return nil, nil, err
		}
		images[platform] = img
		adds = append(adds, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: system, Architecture: arch}}})
	}
	if len(adds) == 0 {
		return nil, nil, errors.New("no programs are named")
	}
	index = mutate.AppendManifests(index, adds...)
	return index, images, nil
}

func (c *content) labels() map[string]string {
	l := map[string]string{
		"org.opencontainers.image.title":       "imsprep",
		"org.opencontainers.image.description": "Turn virtual-machine disks into private images of Huawei Cloud IMS",
		"org.opencontainers.image.version":     c.version,
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.created":     c.created.Format(time.RFC3339),
	}
	if c.revision != "" {
		l["org.opencontainers.image.revision"] = c.revision
	}
	return l
}

func (c *content) addendum(l v1.Layer, what string) mutate.Addendum {
	return mutate.Addendum{Layer: l, History: v1.History{Created: v1.Time{Time: c.created}, CreatedBy: "make image: " + what}}
}

// file is one in a layer.
type file struct {
	name    string // without a slash at the beginning
	mode    int64
	content []byte
}

// layer makes a layer of files and the folders that they need, in the order of their names, all of the time
// of the image and owned by root: the same content is the same layer.
func (c *content) layer(files []file) (v1.Layer, error) {
	all := slices.Clone(files)
	seen := map[string]bool{}
	for _, f := range files {
		for dir := path.Dir(f.name); dir != "."; dir = path.Dir(dir) {
			if !seen[dir] {
				seen[dir] = true
				all = append(all, file{name: dir + "/", mode: 0o755})
			}
		}
	}
	b, err := archive(all, c.created)
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
		tarball.WithMediaType(types.OCILayer))
}

// archive makes a tar of files and folders.
func archive(files []file, at time.Time) ([]byte, error) {
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), ModTime: at, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

// write writes the index as a tarball of an OCI layout, which has all platforms, and for `docker load` and
// what reads its format one tarball a platform. It returns the paths.
func (c *content) write(dir string) (written []string, err error) {
	tag, err := newTag(c.tag)
	if err != nil {
		return nil, err
	}
	index, images, err := c.build()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	temp, err := os.MkdirTemp(dir, ".layout-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	at, err := layout.Write(temp, empty.Index)
	if err != nil {
		return nil, err
	}
	// Who loads it finds its name in the annotations.
	if err := at.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": tag.TagStr(), "io.containerd.image.name": c.tag})); err != nil {
		return nil, err
	}
	files, err := readTree(temp)
	if err != nil {
		return nil, err
	}
	whole, err := archive(files, c.created)
	if err != nil {
		return nil, err
	}
	name := filepath.Join(dir, "imsprep-oci.tar")
	if err := replace(name, func(w io.Writer) error { _, err := w.Write(whole); return err }); err != nil {
		return nil, err
	}
	written = append(written, name)
	for _, platform := range slices.Sorted(func(yield func(string) bool) {
		for p := range images {
			if !yield(p) {
				return
			}
		}
	}) {
		name := filepath.Join(dir, "imsprep-"+strings.ReplaceAll(platform, "/", "-")+".tar")
		if err := replace(name, func(w io.Writer) error { return tarball.Write(tag, images[platform], w) }); err != nil {
			return nil, err
		}
		written = append(written, name)
	}
	return written, nil
}

// readTree reads all files below a folder, and names its folders.
func readTree(root string) (files []file, err error) {
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			files = append(files, file{name: rel + "/", mode: 0o755})
			return nil
		}
		b, err := os.ReadFile(p)
		files = append(files, file{rel, 0o644, b})
		return err
	})
	return files, err
}

// replace writes a file whole or not at all.
func replace(name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".image-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // after the renaming there is nothing of that name
	err = errors.Join(write(f), f.Chmod(0o644), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
