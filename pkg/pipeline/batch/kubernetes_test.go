// SPDX-License-Identifier: Apache-2.0

package batch_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

const kubePlan = `version: 1
name: west
limits: {images: 3, memory: 768MiB}
defaults: {bucket: images, os_version: Ubuntu 22.04 server 64bit}
images:
  - {name: web-01, source: web-01.qcow2}
  - {name: "yes", source: /more/b.ova, ova_disk: b.vmdk, scratch: /scratch}
  - {name: db-01, source: db.vhdx, refused: it is damaged}
`

func kubeOptions() batch.KubernetesOptions {
	return batch.KubernetesOptions{
		Image: "registry.example/imsprep:v1", State: "obs://images/state", Secret: "imsprep-credentials", Disks: "/disks", Retries: 6, User: 65532,
		Volumes: []batch.Volume{{Claim: "exports", Mount: "/disks"}, {HostPath: "/srv/more", Mount: "/more"}},
		Env:     []batch.EnvVar{{Name: "HW_REGION_NAME", Value: "cn-north-4"}},
	}
}

func render(t *testing.T, text string, o batch.KubernetesOptions) (string, error) {
	t.Helper()
	p, err := batch.Parse("plan.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.Kubernetes([]byte(text), o)
	return string(out), err
}

// TestKubernetesGolden shows the manifests; set UPDATE_GOLDEN to write them anew. Package kubetest reads them as
// Kubernetes does.
func TestKubernetesGolden(t *testing.T) {
	got, err := render(t, kubePlan, kubeOptions())
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "kubernetes.golden.yaml")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || got != string(want) {
		t.Errorf("the manifests are others than in %s (%v):\n%s", golden, err, got)
	}
}

func TestKubernetesRefuses(t *testing.T) {
	for want, change := range map[string]func(text *string, o *batch.KubernetesOptions){
		"container image":         func(_ *string, o *batch.KubernetesOptions) { o.Image = "" },
		"no place for the state":  func(_ *string, o *batch.KubernetesOptions) { o.State = "" },
		"job's name":              func(_ *string, o *batch.KubernetesOptions) { o.Name = "A_B" },
		"namespace":               func(_ *string, o *batch.KubernetesOptions) { o.Namespace = "-" },
		"secret's name":           func(_ *string, o *batch.KubernetesOptions) { o.Secret = "S3CR3T/VALUE+==" },
		"41 pods":                 func(text *string, o *batch.KubernetesOptions) { o.Parallel = 41; *text += many(50) },
		"retries":                 func(_ *string, o *batch.KubernetesOptions) { o.Retries = -1 },
		"CPU request":             func(_ *string, o *batch.KubernetesOptions) { o.CPU = "lots" },
		"the user 0":              func(_ *string, o *batch.KubernetesOptions) { o.User = 0 },
		"isn't an absolute path":  func(_ *string, o *batch.KubernetesOptions) { o.Disks = "disks" },
		"mounted at \"/etc\"":     func(_ *string, o *batch.KubernetesOptions) { o.Volumes[0].Mount = "/etc" },
		"mounted at \"/a/../b\"":  func(_ *string, o *batch.KubernetesOptions) { o.Volumes[0].Mount = "/a/../b" },
		"two volumes":             func(_ *string, o *batch.KubernetesOptions) { o.Volumes[1].Mount = "/disks" },
		"PersistentVolumeClaim":   func(_ *string, o *batch.KubernetesOptions) { o.Volumes[0].Claim = "A b" },
		"path on the nodes":       func(_ *string, o *batch.KubernetesOptions) { o.Volumes[1].HostPath = "srv" },
		"/elsewhere/web-01.qcow2": func(_ *string, o *batch.KubernetesOptions) { o.Disks = "/elsewhere" },
		"plan.yaml:7": func(text *string, _ *batch.KubernetesOptions) {
			*text = strings.Replace(*text, "/more/b.ova", "/else/b.ova", 1)
		},
		"can only read": func(text *string, _ *batch.KubernetesOptions) {
			*text = strings.Replace(*text, "/scratch", "/more/s", 1)
		},
		"which is on no volume": func(text *string, _ *batch.KubernetesOptions) {
			*text = strings.Replace(*text, "web-01.qcow2", "../web-01.qcow2", 1)
		},
		"a ConfigMap holds": func(text *string, _ *batch.KubernetesOptions) { *text += "# " + strings.Repeat("x", 1<<20) },
	} {
		text, o := kubePlan, kubeOptions()
		change(&text, &o)
		out, err := render(t, text, o)
		var bad *batch.RenderError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("error %v, want one with %q", err, want)
		}
		if err != nil && strings.Contains(err.Error()+bad.Hint(), "S3CR3T") {
			t.Error("what may be a secret is in the message")
		}
	}
}

// many are so many more images.
func many(n int) string {
	var b strings.Builder
	for range n {
		b.WriteString("  - {name: x" + strings.Repeat("x", b.Len()/20) + ", source: x.raw, skip: true}\n")
	}
	return b.String()
}
