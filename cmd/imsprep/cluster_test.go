// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

const clusterPlan = `version: 1
name: cluster
defaults: {os_version: Ubuntu 22.04 server 64bit, part_size: 5MiB, poll: 50ms}
images:
  - {name: web-1, source: web-1.raw, format: raw}
  - {name: web-2, source: web-2.raw, format: zvhd2}
  - {name: web-3, source: web-3.raw, format: raw}
  - {name: broken, source: broken.qcow2}
`

// cluster is a scheduler without machines: every try of an image runs in a folder of its own with its own copies of the
// plan and the disk, as on another node.
type cluster struct {
	*testing.T
	env     map[string]string
	program string
	disks   map[string][]byte
	images  []string // the disks' files, by index

	mu     sync.Mutex
	killed int
	codes  map[int][]int // exit codes, by index; -1 is killed
}

// pod runs one try of an image, and kills it after a while if that isn't 0.
func (c *cluster) pod(index int, after time.Duration) (code int, said string) {
	node, err := os.MkdirTemp(c.TempDir(), "node-")
	if err != nil {
		c.Error(err)
		return exitError, ""
	}
	for name, content := range map[string][]byte{"plan.yaml": []byte(clusterPlan), c.images[index]: c.disks[c.images[index]]} {
		if err := os.WriteFile(filepath.Join(node, name), content, 0o600); err != nil {
			c.Error(err)
			return exitError, ""
		}
	}
	cmd := exec.Command(c.program, "batch", "run", "plan.yaml", "--state-lease", "3s", "--progress", "lines")
	cmd.Dir = node
	for n, v := range c.env {
		cmd.Env = append(cmd.Env, n+"="+v)
	}
	cmd.Env = append(cmd.Env, "HOME="+node, "JOB_COMPLETION_INDEX="+strconv.Itoa(index))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		c.Error(err)
		return exitError, ""
	}
	if after > 0 {
		defer time.AfterFunc(after, func() { _ = cmd.Process.Kill() }).Stop()
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if code == -1 {
		c.killed++
	}
	c.codes[index] = append(c.codes[index], code)
	return code, out.String()
}

// TestCluster lets a scheduler carry a plan out by its exit codes alone: pods of different nodes, killed at random
// moments and started again, and two at the same time for one image. Each good disk becomes one image with its
// content, the broken one is tried once, nothing else is left, and a laptop sees all of it.
func TestCluster(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := &cluster{T: t, env: startCloud(t, "--job-step", "10ms", "--hash-limit", "1"), disks: map[string][]byte{}, codes: map[int][]int{},
		images: []string{"web-1.raw", "web-2.raw", "web-3.raw", "broken.qcow2"}}
	c.env["IMSPREP_STATE"] = "obs://" + c.env["IMSPREP_BUCKET"] + "/state"
	var err error
	if c.program, err = exec.LookPath("imsprep"); err != nil {
		t.Fatal(err)
	}
	for n, name := range c.images[:3] {
		content := make([]byte, 24<<20)
		rand.NewChaCha8([32]byte{byte(n + 1)}).Read(content[1<<20 : 13<<20])
		c.disks[name] = content
	}
	c.disks["broken.qcow2"] = append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 1<<20)...)

	var wg sync.WaitGroup
	for index := range c.images {
		workers := 1
		if index == 0 {
			workers = 2
		}
		for w := range workers {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(index*10+w)))
				for try := 0; ; try++ {
					var after time.Duration
					if try < 2 {
						after = time.Duration(1 + r.Int64N(int64(time.Second)))
					}
					code, said := c.pod(index, after)
					switch {
					case code == exitDone, slices.Contains([]int{exitError, exitUsage, exitRefused, exitAuth, exitJobFailed}, code):
						want := exitDone
						if index == 3 {
							want = exitRefused
						}
						if code != want {
							t.Errorf("image %d ended with %d and said:\n%s", index, code, said)
						}
						return
					case try == 50:
						t.Errorf("image %d: nobody gets it done; the last one ended with %d and said:\n%s", index, code, said)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	t.Logf("%d were killed; exit codes by index: %v", c.killed, c.codes)
	if t.Failed() {
		t.FailNow()
	}

	// A laptop with the plan alone.
	laptop := t.TempDir()
	if err := os.WriteFile(filepath.Join(laptop, "plan.yaml"), []byte(clusterPlan), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(c.program, "batch", "status", "plan.yaml", "--json")
	cmd.Dir = laptop
	for n, v := range c.env {
		cmd.Env = append(cmd.Env, n+"="+v)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Images []struct {
			Name    string `json:"name"`
			Status  string `json:"status"`
			ImageID string `json:"image_id"`
		} `json:"images"`
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Images) != 4 {
		t.Fatalf("%v: %s", err, out)
	}
	store, service := clients(t, c.env)
	images, err := service.ListImages(t.Context(), ims.ImageFilter{ImageType: "private"})
	if err != nil || len(images) != 3 {
		t.Fatalf("%d images (%v), want 3", len(images), err)
	}
	for n, i := range report.Images {
		if n == 3 {
			if i.Status != "refused" && i.Status != "failed" {
				t.Errorf("%s is %s", i.Name, i.Status)
			}
			continue
		}
		at := slices.IndexFunc(images, func(img ims.Image) bool { return img.Name == i.Name })
		if at < 0 || i.Status != "done" || images[at].ID != i.ImageID {
			t.Fatalf("%s is %s, image %q; the service has %+v", i.Name, i.Status, i.ImageID, images)
		}
		size := int64(24 << 20)
		if n == 1 {
			size = 1 << 30 // ZVHD2: whole GiB
		}
		if got, want := fmt.Sprint(images[at].Attributes[imstest.AttrContentSparse]), sparseHash(c.disks[c.images[n]], size); got != want {
			t.Errorf("the content of %s is %s, the disk's is %s", i.Name, got, want)
		}
	}
	for o, err := range store.ListObjects(t.Context(), c.env["IMSPREP_BUCKET"], "") {
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(o.Key, "state/batch/cluster/") || !strings.HasSuffix(o.Key, ".json") {
			t.Errorf("left in the bucket: %s", o.Key)
		}
	}
	if uploads, err := store.ListUploads(t.Context(), c.env["IMSPREP_BUCKET"], ""); err != nil || len(uploads) > 0 {
		t.Errorf("unfinished uploads: %v, %v", uploads, err)
	}
}
