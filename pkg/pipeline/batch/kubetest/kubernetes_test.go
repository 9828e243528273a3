// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

const plan = `# with a comment: {"and": 'quotes'}
version: 1
name: %q
limits: {images: 3, memory: 768MiB}
defaults: {bucket: images, os_version: Ubuntu 22.04 server 64bit}
images:
  - {name: web-01, source: web-01.qcow2}
  - {name: web-02, source: /more/web-02.vmdk, allow_backing: true, backing_dirs: [base]}
  - {name: "yes", source: deep/er/ova.ova, ova_disk: b.vmdk, scratch: /scratch}
  - {name: db-01, source: /nowhere/db.vhdx, skip: true}
`

func options() batch.KubernetesOptions {
	return batch.KubernetesOptions{
		Image: "registry.example/imsprep:v1", State: "obs://images/state", Secret: "imsprep-credentials", Disks: "/disks",
		Namespace: "migration", Retries: 6, User: 65532, Args: []string{"--state-lease", "2m0s"},
		Volumes: []batch.Volume{{Claim: "exports", Mount: "/disks"}, {HostPath: "/srv/more", Mount: "/more"}},
		Env:     []batch.EnvVar{{Name: "HW_REGION_NAME", Value: "no"}, {Name: "ODD", Value: "0x1F: yes # \"\u00e4\""}},
	}
}

// decode reads manifests as the API server with strict field validation does: an unknown field is an error.
func decode(t *testing.T, out []byte) (config corev1.ConfigMap, job batchv1.Job) {
	t.Helper()
	docs := bytes.Split(out, []byte("\n---\n"))
	if len(docs) != 2 {
		t.Fatalf("%d documents", len(docs))
	}
	docs[0] = append(docs[0], '\n') // which is cut off with the mark between them
	if err := yaml.UnmarshalStrict(docs[0], &config); err != nil {
		t.Fatalf("the ConfigMap: %v\n%s", err, docs[0])
	}
	if err := yaml.UnmarshalStrict(docs[1], &job); err != nil {
		t.Fatalf("the Job: %v\n%s", err, docs[1])
	}
	return config, job
}

func TestManifests(t *testing.T) {
	text := []byte(fmt.Sprintf(plan, "Moving.West_1"))
	p, err := batch.Parse("/plans/plan.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.Kubernetes(text, options())
	if err != nil {
		t.Fatal(err)
	}
	config, job := decode(t, out)
	if config.APIVersion != "v1" || config.Kind != "ConfigMap" || !*config.Immutable || config.Data["plan.yaml"] != string(text) {
		t.Errorf("the plan in the ConfigMap isn't the file:\n%q\n%q", config.Data["plan.yaml"], text)
	}
	s := job.Spec
	if job.APIVersion != "batch/v1" || job.Kind != "Job" || job.Name != "imsprep-moving-west-1" || job.Namespace != "migration" ||
		*s.CompletionMode != batchv1.IndexedCompletion || *s.Completions != 4 || *s.Parallelism != 3 || *s.BackoffLimitPerIndex != 6 ||
		*s.PodReplacementPolicy != batchv1.Failed {
		t.Errorf("job %+v", job)
	}
	// The API allows a policy for exit codes, and FailIndex, only with these.
	if s.Template.Spec.RestartPolicy != corev1.RestartPolicyNever || s.BackoffLimitPerIndex == nil {
		t.Error("the failure policy isn't allowed so")
	}
	known := []batchv1.PodFailurePolicyAction{batchv1.PodFailurePolicyActionFailIndex, batchv1.PodFailurePolicyActionFailJob,
		batchv1.PodFailurePolicyActionIgnore, batchv1.PodFailurePolicyActionCount}
	actions := map[int32]batchv1.PodFailurePolicyAction{}
	for _, r := range s.PodFailurePolicy.Rules {
		if !slices.Contains(known, r.Action) || (r.OnExitCodes == nil) == (len(r.OnPodConditions) == 0) {
			t.Errorf("rule %+v", r)
		}
		if r.OnExitCodes == nil {
			continue
		}
		if *r.OnExitCodes.ContainerName != s.Template.Spec.Containers[0].Name || r.OnExitCodes.Operator != batchv1.PodFailurePolicyOnExitCodesOpIn ||
			!slices.IsSorted(r.OnExitCodes.Values) {
			t.Errorf("rule %+v", r.OnExitCodes)
		}
		for _, code := range r.OnExitCodes.Values {
			actions[code] = r.Action
		}
	}
	for code := range int32(256) {
		want := map[int32]batchv1.PodFailurePolicyAction{1: "FailIndex", 2: "FailIndex", 3: "FailIndex", 4: "FailJob", 6: "FailIndex"}[code]
		if actions[code] != want {
			t.Errorf("exit code %d: %q, want %q", code, actions[code], want)
		}
	}

	pod := s.Template.Spec
	c := pod.Containers[0]
	if *pod.AutomountServiceAccountToken || !*pod.SecurityContext.RunAsNonRoot || *pod.SecurityContext.RunAsUser != 65532 ||
		pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault ||
		!*c.SecurityContext.ReadOnlyRootFilesystem || *c.SecurityContext.AllowPrivilegeEscalation || c.SecurityContext.Privileged != nil ||
		!slices.Equal(c.SecurityContext.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("the pod may do more than it needs: %+v, %+v", pod.SecurityContext, c.SecurityContext)
	}
	if got, want := c.Resources.Limits.Memory().Value(), p.Memory()+192<<20; got != want || !c.Resources.Requests.Memory().Equal(*c.Resources.Limits.Memory()) {
		t.Errorf("memory %d, want %d", got, want)
	}
	if c.Resources.Requests.Cpu().Value() != 1 {
		t.Errorf("CPU %v", c.Resources.Requests.Cpu())
	}
	for _, e := range c.Env {
		if errs := validation.IsEnvVarName(e.Name); len(errs) > 0 {
			t.Errorf("%s: %q", e.Name, errs)
		}
		switch e.Name {
		case "HW_ACCESS_KEY", "HW_SECRET_KEY", "HW_SECURITY_TOKEN":
			ref := e.ValueFrom.SecretKeyRef
			if e.Value != "" || ref.Name != "imsprep-credentials" || ref.Key != e.Name || (ref.Optional != nil && *ref.Optional) != (e.Name == "HW_SECURITY_TOKEN") {
				t.Errorf("%+v", e)
			}
		case "HW_REGION_NAME":
			if e.Value != "no" { // and not false
				t.Errorf("%+v", e)
			}
		case "ODD":
			if e.Value != "0x1F: yes # \"\u00e4\"" {
				t.Errorf("%+v", e)
			}
		}
	}
	// Every mount has its volume, and disks can't be written to.
	mounts := map[string]corev1.VolumeMount{}
	for _, m := range c.VolumeMounts {
		mounts[m.Name] = m
	}
	for _, v := range pod.Volumes {
		m, ok := mounts[v.Name]
		if !ok || m.ReadOnly == (v.EmptyDir != nil) {
			t.Errorf("volume %+v, mounted as %+v", v, m)
		}
		if v.ConfigMap != nil && v.ConfigMap.Name != config.Name {
			t.Errorf("the plan is in %q, pods take %q", config.Name, v.ConfigMap.Name)
		}
		if v.PersistentVolumeClaim != nil && !v.PersistentVolumeClaim.ReadOnly {
			t.Errorf("claim %+v", v.PersistentVolumeClaim)
		}
		for _, errs := range [][]string{validation.IsDNS1123Label(v.Name)} {
			if len(errs) > 0 {
				t.Errorf("%q: %q", v.Name, errs)
			}
		}
		delete(mounts, v.Name)
	}
	if len(mounts) > 0 || len(pod.Volumes) != 4 {
		t.Errorf("%d volumes, mounts without one: %v", len(pod.Volumes), mounts)
	}
}

// TestNames: whatever a plan is called, the job has a name that Kubernetes takes, with room for its pods' names.
func TestNames(t *testing.T) {
	for _, name := range []string{"", "a", "A", "-a-", "Moving.West_1", strings.Repeat("x", 64), "_", "a." + strings.Repeat("-", 50) + "b", "9"} {
		text := []byte(fmt.Sprintf(plan, name))
		p, err := batch.Parse("/plans/plan.yaml", text)
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.Kubernetes(text, options())
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		config, job := decode(t, out)
		if errs := validation.IsDNS1123Label(job.Name + "-99999-abcde"); len(errs) > 0 {
			t.Errorf("plan %q: job %q: %q", name, job.Name, errs)
		}
		if errs := validation.IsDNS1123Subdomain(config.Name); len(errs) > 0 {
			t.Errorf("plan %q: ConfigMap %q: %q", name, config.Name, errs)
		}
		for k, v := range job.Labels {
			if errs := append(validation.IsQualifiedName(k), validation.IsValidLabelValue(v)...); len(errs) > 0 {
				t.Errorf("label %s=%s: %q", k, v, errs)
			}
		}
	}
}
