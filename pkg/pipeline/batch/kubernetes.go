// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	// maxConfigMap is how much data a ConfigMap holds, in bytes (Kubernetes: 1 MiB with its keys).
	maxConfigMap = 1 << 20
	// podOverhead is what a process needs beside its buffers: the program, its tables and what compresses. It
	// was measured, see docs/cluster.md.
	podOverhead = 192 << 20
	// graceSeconds is what a pod has to end in. A run that is told to stop takes two seconds, and its journal
	// and state are written after that.
	graceSeconds = 30

	planMount = "/etc/imsprep"
	planFile  = "plan.yaml"
)

// Volume is storage with disks, for pods.
type Volume struct {
	Claim    string // PersistentVolumeClaim, or
	HostPath string // folder of every node
	Mount    string // where pods see it
}

// KubernetesOptions say how a plan runs on Kubernetes.
type KubernetesOptions struct {
	Name      string // of the job; "" is made from the plan's name
	Namespace string // "" leaves it to who applies it
	Image     string // of the container
	State     string // obs://BUCKET/PREFIX
	// Secret holds the credentials, by the names that the environment has: HW_ACCESS_KEY and HW_SECRET_KEY, and
	// HW_SECURITY_TOKEN if there is one. "" leaves credentials to the node's agency.
	Secret string
	// Env is what else the pods' environment has, without secrets.
	Env      []EnvVar
	Args     []string // more flags of `batch run`
	Disks    string   // folder that relative paths in the plan start from, in the pods
	Volumes  []Volume
	Parallel int    // pods at the same time; 0 is the plan's limit of images
	Retries  int    // per image, beyond the first
	CPU      string // request, such as 1 or 500m
	User     int64  // that pods run as, not 0
}

// EnvVar is a variable of the environment.
type EnvVar struct {
	Name      string     `yaml:"name"`
	Value     string     `yaml:"value,omitempty"`
	ValueFrom *valueFrom `yaml:"valueFrom,omitempty"`
}

type valueFrom struct {
	SecretKeyRef secretKeyRef `yaml:"secretKeyRef"`
}

type secretKeyRef struct {
	Name     string `yaml:"name"`
	Key      string `yaml:"key"`
	Optional bool   `yaml:"optional,omitempty"`
}

// The manifests have the fields of the Kubernetes API (batch/v1, v1) that are used here, no more. A test reads what is
// written strictly into the API's own types.
type (
	meta struct {
		Name      string            `yaml:"name,omitempty"`
		Namespace string            `yaml:"namespace,omitempty"`
		Labels    map[string]string `yaml:"labels,omitempty"`
	}
	configMap struct {
		APIVersion string            `yaml:"apiVersion"`
		Kind       string            `yaml:"kind"`
		Metadata   meta              `yaml:"metadata"`
		Immutable  bool              `yaml:"immutable"`
		Data       map[string]string `yaml:"data"`
	}
	job struct {
		APIVersion string  `yaml:"apiVersion"`
		Kind       string  `yaml:"kind"`
		Metadata   meta    `yaml:"metadata"`
		Spec       jobSpec `yaml:"spec"`
	}
	jobSpec struct {
		CompletionMode       string           `yaml:"completionMode"`
		Completions          int              `yaml:"completions"`
		Parallelism          int              `yaml:"parallelism"`
		BackoffLimitPerIndex int              `yaml:"backoffLimitPerIndex"`
		PodReplacementPolicy string           `yaml:"podReplacementPolicy"`
		PodFailurePolicy     podFailurePolicy `yaml:"podFailurePolicy"`
		Template             podTemplate      `yaml:"template"`
	}
	podFailurePolicy struct {
		Rules []failureRule `yaml:"rules"`
	}
	failureRule struct {
		Action          string         `yaml:"action"`
		OnExitCodes     *exitCodes     `yaml:"onExitCodes,omitempty"`
		OnPodConditions []podCondition `yaml:"onPodConditions,omitempty"`
	}
	exitCodes struct {
		ContainerName string `yaml:"containerName"`
		Operator      string `yaml:"operator"`
		Values        []int  `yaml:"values,flow"`
	}
	podCondition struct {
		Type   string `yaml:"type"`
		Status string `yaml:"status"`
	}
	podTemplate struct {
		Metadata meta    `yaml:"metadata"`
		Spec     podSpec `yaml:"spec"`
	}
	podSpec struct {
		RestartPolicy                 string             `yaml:"restartPolicy"`
		AutomountServiceAccountToken  bool               `yaml:"automountServiceAccountToken"`
		EnableServiceLinks            bool               `yaml:"enableServiceLinks"`
		TerminationGracePeriodSeconds int                `yaml:"terminationGracePeriodSeconds"`
		SecurityContext               podSecurityContext `yaml:"securityContext"`
		Containers                    []container        `yaml:"containers"`
		Volumes                       []podVolume        `yaml:"volumes"`
	}
	podSecurityContext struct {
		RunAsNonRoot   bool              `yaml:"runAsNonRoot"`
		RunAsUser      int64             `yaml:"runAsUser"`
		RunAsGroup     int64             `yaml:"runAsGroup"`
		SeccompProfile map[string]string `yaml:"seccompProfile"`
	}
	container struct {
		Name            string          `yaml:"name"`
		Image           string          `yaml:"image"`
		Args            []string        `yaml:"args"`
		Env             []EnvVar        `yaml:"env,omitempty"`
		Resources       resources       `yaml:"resources"`
		SecurityContext securityContext `yaml:"securityContext"`
		VolumeMounts    []volumeMount   `yaml:"volumeMounts"`
	}
	resources struct {
		Requests map[string]string `yaml:"requests"`
		Limits   map[string]string `yaml:"limits"`
	}
	securityContext struct {
		AllowPrivilegeEscalation bool                `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool                `yaml:"readOnlyRootFilesystem"`
		Capabilities             map[string][]string `yaml:"capabilities"`
	}
	volumeMount struct {
		Name      string `yaml:"name"`
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly,omitempty"`
	}
	podVolume struct {
		Name                  string           `yaml:"name"`
		ConfigMap             *named           `yaml:"configMap,omitempty"`
		PersistentVolumeClaim *volumeClaim     `yaml:"persistentVolumeClaim,omitempty"`
		HostPath              *hostPath        `yaml:"hostPath,omitempty"`
		EmptyDir              *map[string]bool `yaml:"emptyDir,omitempty"`
	}
	named struct {
		Name string `yaml:"name"`
	}
	volumeClaim struct {
		ClaimName string `yaml:"claimName"`
		ReadOnly  bool   `yaml:"readOnly"`
	}
	hostPath struct {
		Path string `yaml:"path"`
		Type string `yaml:"type"`
	}
)

// RetryCodes, PermanentCodes and CommonCodes sort the exit codes of one image's run for a scheduler: the first
// are worth a retry, with the second one it would end the same way, and with the third all others would, too.
var (
	RetryCodes     = []int{5, 7, 130}
	PermanentCodes = []int{1, 2, 3, 6}
	CommonCodes    = []int{4}
)

var (
	// labelName is a DNS label (RFC 1123), as names of jobs must be for their pods to have host names.
	labelName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	// subdomainName is what names of secrets and claims are.
	subdomainName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	quantity      = regexp.MustCompile(`^[1-9][0-9]*m?$`)
)

// maxJobName leaves room for the index and the random end of a pod's name in 63 characters.
const maxJobName = 63 - len("-99999-xxxxx")

// RenderError is a plan, or an option, that can't be made into manifests.
type RenderError struct{ What, Remedy string }

func (e *RenderError) Error() string { return e.What }

// Hint says what to do.
func (e *RenderError) Hint() string { return e.Remedy }

// Kubernetes writes the manifests that carry out a plan as an Indexed Job, one pod an image, as YAML documents: a
// ConfigMap with the plan as its file has it, and the Job. Secrets are referred to by name only. Errors are
// *[RenderError].
func (p *Plan) Kubernetes(file []byte, o KubernetesOptions) ([]byte, error) {
	if err := o.complete(p); err != nil {
		return nil, err
	}
	if n := len(file) + len(planFile); n > maxConfigMap {
		return nil, &RenderError{fmt.Sprintf("the plan has %d bytes, and a ConfigMap holds %d", len(file), maxConfigMap-len(planFile)),
			"Divide the plan into several, each with a name of its own: each is a job."}
	}
	if !utf8.Valid(file) {
		return nil, &RenderError{"the plan isn't UTF-8, and a ConfigMap holds nothing else", "Write it in UTF-8."}
	}
	scratch, err := p.podPaths(&o)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(file)
	labels := map[string]string{"app.kubernetes.io/name": "imsprep", "app.kubernetes.io/instance": o.Name}
	// A plan that changes is another one: the pods of one job must all have the same.
	config := configMap{"v1", "ConfigMap", meta{o.Name + "-plan-" + hex.EncodeToString(sum[:4]), o.Namespace, labels}, true,
		map[string]string{planFile: string(file)}}
	memory := p.Memory() + podOverhead
	c := container{
		Name:  "imsprep",
		Image: o.Image,
		// The index comes from JOB_COMPLETION_INDEX.
		Args: append([]string{"batch", "run", planMount + "/" + planFile, "--index", "auto", "--base-dir", o.Disks, "--state", o.State,
			"--progress", "lines"}, o.Args...),
		Env: o.environment(memory),
		Resources: resources{
			Requests: map[string]string{"cpu": o.CPU, "memory": mebibytes(memory)},
			Limits:   map[string]string{"memory": mebibytes(memory)},
		},
		SecurityContext: securityContext{false, true, map[string][]string{"drop": {"ALL"}}},
		VolumeMounts:    []volumeMount{{"plan", planMount, true}},
	}
	volumes := []podVolume{{Name: "plan", ConfigMap: &named{config.Metadata.Name}}}
	for n, v := range o.Volumes {
		name := fmt.Sprintf("disks-%d", n)
		c.VolumeMounts = append(c.VolumeMounts, volumeMount{name, v.Mount, true})
		if v.Claim != "" {
			volumes = append(volumes, podVolume{Name: name, PersistentVolumeClaim: &volumeClaim{v.Claim, true}})
		} else {
			volumes = append(volumes, podVolume{Name: name, HostPath: &hostPath{v.HostPath, "Directory"}})
		}
	}
	for n, dir := range scratch {
		name := fmt.Sprintf("scratch-%d", n)
		c.VolumeMounts = append(c.VolumeMounts, volumeMount{Name: name, MountPath: dir})
		volumes = append(volumes, podVolume{Name: name, EmptyDir: &map[string]bool{}})
	}
	exit := func(action string, codes []int) failureRule {
		return failureRule{Action: action, OnExitCodes: &exitCodes{c.Name, "In", codes}}
	}
	j := job{"batch/v1", "Job", meta{o.Name, o.Namespace, labels}, jobSpec{
		CompletionMode: "Indexed", Completions: len(p.Images), Parallelism: o.Parallel,
		BackoffLimitPerIndex: o.Retries,
		PodReplacementPolicy: "Failed", // never two pods of one index
		PodFailurePolicy: podFailurePolicy{[]failureRule{
			// A node that goes away is no failure of the image's. Everything else counts as a retry.
			{Action: "Ignore", OnPodConditions: []podCondition{{"DisruptionTarget", "True"}}},
			exit("FailIndex", PermanentCodes),
			exit("FailJob", CommonCodes),
		}},
		Template: podTemplate{meta{Labels: labels}, podSpec{
			RestartPolicy: "Never", TerminationGracePeriodSeconds: graceSeconds,
			SecurityContext: podSecurityContext{true, o.User, o.User, map[string]string{"type": "RuntimeDefault"}},
			Containers:      []container{c},
			Volumes:         volumes,
		}},
	}}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# %d images, %d at the same time, %s of memory each.\n", len(p.Images), o.Parallel, mebibytes(memory))
	if o.Secret != "" {
		fmt.Fprintf(&out, "# The pods take their credentials from the Secret %q, which must exist:\n"+
			"# kubectl create secret generic %s --from-env-file=FILE, with HW_ACCESS_KEY=... and HW_SECRET_KEY=... in FILE.\n", o.Secret, o.Secret)
	}
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	for _, doc := range []any{config, j} {
		if err := enc.Encode(doc); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), enc.Close()
}

func mebibytes(n int64) string { return fmt.Sprintf("%dMi", (n+1<<20-1)>>20) }

// environment is what pods get, without any secret's value.
func (o *KubernetesOptions) environment(memory int64) []EnvVar {
	var env []EnvVar
	if o.Secret != "" {
		for _, name := range []string{"HW_ACCESS_KEY", "HW_SECRET_KEY", "HW_SECURITY_TOKEN"} {
			env = append(env, EnvVar{Name: name, ValueFrom: &valueFrom{secretKeyRef{o.Secret, name, name == "HW_SECURITY_TOKEN"}}})
		}
	}
	// The garbage collector works harder before the kernel ends the process.
	env = append(env, EnvVar{Name: "GOMEMLIMIT", Value: fmt.Sprintf("%dMiB", memory/10*9>>20)})
	return append(env, o.Env...)
}

// complete checks the options and fills in what isn't said.
func (o *KubernetesOptions) complete(p *Plan) error {
	bad := func(remedy, format string, a ...any) error { return &RenderError{fmt.Sprintf(format, a...), remedy} }
	if o.Name == "" {
		o.Name = jobName(p.Name)
	}
	o.Parallel = cmp.Or(o.Parallel, p.Limits.Images)
	o.Parallel = min(o.Parallel, len(p.Images))
	o.CPU = cmp.Or(o.CPU, "1")
	switch {
	case len(o.Name) > maxJobName || !labelName.MatchString(o.Name):
		return bad(fmt.Sprintf("It has at most %d of a-z, 0-9 and hyphens, with a letter or digit at both ends.", maxJobName), "the job's name %q", o.Name)
	case o.Namespace != "" && (len(o.Namespace) > 63 || !labelName.MatchString(o.Namespace)):
		return bad("It has a-z, 0-9 and hyphens.", "the namespace %q", o.Namespace)
	case o.Image == "" || strings.ContainsAny(o.Image, " \t\n"):
		return bad("Name the container image with imsprep in it; `make image` builds one.", "the container image %q", o.Image)
	case o.Secret != "" && (len(o.Secret) > 253 || !subdomainName.MatchString(o.Secret)):
		return bad("It is the name of a Secret, never its content.", "the secret's name isn't one of Kubernetes")
	case o.State == "":
		return bad("Pods have no disk that stays: say where in a bucket, with obs://BUCKET/PREFIX.", "there is no place for the state")
	case o.Parallel < 1 || o.Parallel > MaxJobs:
		return bad(fmt.Sprintf("The service takes %d import jobs at the same time.", MaxJobs), "%d pods at the same time", o.Parallel)
	case o.Retries < 0 || o.Retries > 1000:
		return bad("", "%d retries for each image: it is 0 to 1,000", o.Retries)
	case !quantity.MatchString(o.CPU):
		return bad("It is a number of cores, such as 2, or of thousandths, such as 500m.", "the CPU request %q", o.CPU)
	case o.User < 1 || o.User > 1<<31-1:
		return bad("Pods don't run as root (0).", "the user %d", o.User)
	case !path.IsAbs(o.Disks):
		return bad("It is where the pods see them, such as /disks.", "the folder of the disks, %q, isn't an absolute path", o.Disks)
	}
	for i, v := range o.Volumes {
		switch {
		case !cleanAbs(v.Mount) || v.Mount == "/" || under(v.Mount, planMount) || under(planMount, v.Mount):
			return bad("It is an absolute path that isn't "+planMount+".", "the volume is to be mounted at %q", v.Mount)
		case v.Claim != "" && (len(v.Claim) > 253 || !subdomainName.MatchString(v.Claim)):
			return bad("", "%q isn't the name of a PersistentVolumeClaim", v.Claim)
		case v.Claim == "" && !cleanAbs(v.HostPath):
			return bad("", "%q isn't an absolute path on the nodes", v.HostPath)
		}
		for _, w := range o.Volumes[:i] {
			if v.Mount == w.Mount {
				return bad("", "two volumes are to be mounted at %q", v.Mount)
			}
		}
	}
	return nil
}

// jobName makes a job's name of a plan's.
func jobName(plan string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, plan)
	name = strings.Trim(name[:min(len(name), maxJobName-len("imsprep-"))], "-")
	if name == "" {
		return "imsprep"
	}
	return "imsprep-" + name
}

func cleanAbs(p string) bool { return path.IsAbs(p) && path.Clean(p) == p }

// under tells whether a path is a folder or lies below it.
func under(p, folder string) bool {
	return p == folder || strings.HasPrefix(p, strings.TrimSuffix(folder, "/")+"/")
}

// podPaths checks that pods will see all the files that the plan names, and returns the folders to unpack
// to.
func (p *Plan) podPaths(o *KubernetesOptions) (scratch []string, err error) {
	seen := func(name string) string {
		if !path.IsAbs(name) {
			name = path.Join(o.Disks, name)
		}
		return path.Clean(name)
	}
	for n := range p.Images {
		i := &p.Images[n]
		if i.Skip || i.Refused != "" {
			continue
		}
		for _, name := range append([]string{i.Source}, i.BackingDirs...) {
			in := seen(name)
			if !slices.ContainsFunc(o.Volumes, func(v Volume) bool { return under(in, v.Mount) }) {
				return nil, &RenderError{fmt.Sprintf("%s:%d: image %q: pods would look for %s, which is on no volume", p.File, i.Line, i.Name, in),
					"Name the volume that it is on; or write the path as pods see it, or relative to the folder of the disks."}
			}
		}
		if i.Scratch == "" {
			continue
		}
		dir := seen(i.Scratch)
		if slices.ContainsFunc(o.Volumes, func(v Volume) bool { return under(dir, v.Mount) }) || dir == "/" || under(dir, planMount) || under(planMount, dir) {
			return nil, &RenderError{fmt.Sprintf("%s:%d: image %q: the folder to unpack to, %s, would be on a volume that pods can only read", p.File, i.Line, i.Name, dir),
				"Write another one, such as scratch: /scratch: each pod gets an empty one there."}
		}
		if !slices.Contains(scratch, dir) {
			scratch = append(scratch, dir)
		}
	}
	return scratch, nil
}
