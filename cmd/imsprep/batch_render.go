// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

func (a *app) batchRenderCommand() *cobra.Command {
	return a.parentCommand("render", "Write what a scheduler needs to carry a plan out", a.batchRenderKubernetesCommand())
}

// renderFlags are the flags of `imsprep batch render kubernetes`.
type renderFlags struct {
	stateFlags
	o              batch.KubernetesOptions
	claims, hosts  []string
	env            []string
	runsWithAgency bool
}

// passedOn are settings without secrets that pods get as this command has them, from a flag or its
// environment: a name that pods have, and the names that it may have here.
var passedOn = [][]string{
	{"HW_REGION_NAME", "OS_REGION_NAME", "OS_REGION_ID"},
	{"HW_PROJECT_ID", "HUAWEICLOUD_SDK_PROJECT_ID", "OS_PROJECT_ID", "OS_TENANT_ID"},
	{"HW_CLOUD"},
	{"IMSPREP_OBS_ENDPOINT"}, {"IMSPREP_OBS_ADDRESSING"}, {"IMSPREP_IMS_ENDPOINT"}, {"IMSPREP_IAM_ENDPOINT"},
	{"IMSPREP_BUCKET"}, {"HW_ENTERPRISE_PROJECT_ID"}, {"IMSPREP_CONFIRMED_BITMAP"},
	{"HW_ASSUME_ROLE_AGENCY_NAME"}, {"HW_ASSUME_ROLE_DOMAIN_NAME"},
}

func (a *app) batchRenderKubernetesCommand() *cobra.Command {
	var f renderFlags
	cmd := &cobra.Command{
		Use:   "kubernetes PLAN --image IMAGE --state obs://BUCKET/PREFIX --pvc CLAIM=/disks",
		Short: "Write a Kubernetes Job that imports each image in a pod of its own",
		Long: `Kubernetes writes the manifests of an Indexed Job to standard output: one pod an image, as many at a
time as the plan's limit of images says, each with its share of the plan's memory, repeated by exit code.
The plan itself is in a ConfigMap. Credentials are in a Secret that must exist; only its name is
written. Region, endpoints and bucket are taken from this command's flags and environment.

Pods read the disks from volumes, mounted read-only. Relative paths in the plan start from --base-dir, which is
the first volume. Their state is in the bucket of --state, so that a pod on another node goes on, and
"imsprep batch status" and "batch report" with the same --state show how far all are.`,
		Example: `  imsprep batch render kubernetes plan.yaml --image registry.example/imsprep:v1 \
      --state obs://images/imsprep-state --pvc exports=/disks | kubectl apply -f -
  imsprep batch status plan.yaml --state obs://images/imsprep-state --watch`,
		Args: a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			return a.renderKubernetes(args[0], &f)
		},
	}
	a.cloudFlags(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.o.Image, "image", "", "container image with imsprep in it (make image builds one)")
	fl.StringVar(&f.o.Name, "name", "", "name of the job (default: from the plan's name)")
	fl.StringVar(&f.o.Namespace, "namespace", "", "namespace (default: that of whoever applies it)")
	fl.StringVar(&f.o.Secret, "secret", "imsprep-credentials", "name of the Secret with HW_ACCESS_KEY and HW_SECRET_KEY, and HW_SECURITY_TOKEN of temporary keys")
	fl.BoolVar(&f.runsWithAgency, "node-agency", false, "no Secret: pods get keys of the nodes' agency from the metadata service")
	fl.StringArrayVar(&f.claims, "pvc", nil, "PersistentVolumeClaim with disks, as CLAIM=/PATH (repeatable)")
	fl.StringArrayVar(&f.hosts, "host-path", nil, "folder with disks that every node has, as /PATH or /PATH=/PATH-IN-PODS (repeatable)")
	fl.StringVar(&f.o.Disks, "base-dir", "", "folder in the pods that relative paths in the plan start from (default: the first volume)")
	fl.IntVar(&f.o.Parallel, "parallel", 0, "pods at the same time, 40 at most (default: the plan's limit of images)")
	fl.IntVar(&f.o.Retries, "retries", 6, "how often Kubernetes starts an image's pod again")
	fl.StringVar(&f.o.CPU, "cpu", "1", "CPU request of a pod")
	fl.Int64Var(&f.o.User, "user", 65532, "user id, not 0, that pods run as; it must be able to read the disks")
	fl.StringArrayVar(&f.env, "env", nil, "one more variable for pods, as NAME=VALUE, nothing secret (repeatable)")
	fl.StringVar(&f.state, "state", "", "obs://BUCKET/PREFIX for states and journals (environment: IMSPREP_STATE)")
	fl.DurationVar(&f.lease, "state-lease", 0, "how long a pod that died keeps others out (default: 1m)")
	return cmd
}

func (a *app) renderKubernetes(file string, f *renderFlags) error {
	p, err := loadPlan(file)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	place, err := f.place(a)
	if err != nil {
		return err
	}
	if place == nil {
		return usagef("pods have no folder that stays: give --state obs://BUCKET/PREFIX")
	}
	f.o.State = strings.TrimSuffix(place.String(), "/")
	if f.lease != 0 {
		f.o.Args = append(f.o.Args, "--state-lease", f.lease.String())
	}
	for _, arg := range f.claims {
		claim, mount, ok := strings.Cut(arg, "=")
		if !ok {
			return usagef("--pvc %q: it is written CLAIM=/PATH", arg)
		}
		f.o.Volumes = append(f.o.Volumes, batch.Volume{Claim: claim, Mount: mount})
	}
	for _, arg := range f.hosts {
		host, mount, ok := strings.Cut(arg, "=")
		if !ok {
			mount = host
		}
		f.o.Volumes = append(f.o.Volumes, batch.Volume{HostPath: host, Mount: mount})
	}
	if len(f.o.Volumes) == 0 {
		return usagef("pods see no disks: give --pvc CLAIM=/PATH or --host-path /PATH")
	}
	f.o.Disks = cmp.Or(f.o.Disks, f.o.Volumes[0].Mount)
	if f.runsWithAgency {
		f.o.Secret = ""
	} else if f.o.Secret == "" {
		return usagef("--secret is empty: name the Secret with the credentials, or give --node-agency")
	}
	if err := a.podEnvironment(f); err != nil {
		return err
	}
	out, err := p.Kubernetes(text, f.o)
	if err != nil {
		return err
	}
	_, err = a.out.Write(out)
	return err
}

// podEnvironment settles what pods know of the cloud.
func (a *app) podEnvironment(f *renderFlags) error {
	c := a.flags.cloud
	flags := map[string]string{
		"HW_REGION_NAME": c.Region, "HW_PROJECT_ID": c.ProjectID, "HW_CLOUD": c.Cloud,
		"IMSPREP_OBS_ENDPOINT": c.OBSEndpoint, "IMSPREP_OBS_ADDRESSING": c.OBSAddressing, "IMSPREP_IMS_ENDPOINT": c.IMSEndpoint, "IMSPREP_IAM_ENDPOINT": c.IAMEndpoint,
		"HW_ASSUME_ROLE_AGENCY_NAME": c.Agency, "HW_ASSUME_ROLE_DOMAIN_NAME": c.AgencyDomain,
	}
	if f.runsWithAgency {
		f.o.Env = append(f.o.Env, batch.EnvVar{Name: "HW_PROFILE", Value: "metadata"})
	}
	for _, names := range passedOn {
		if value := first(flags[names[0]], a.getenv(names...)); value != "" {
			f.o.Env = append(f.o.Env, batch.EnvVar{Name: names[0], Value: value})
		}
	}
	if !f.has("HW_REGION_NAME") {
		return usagef("no region: give --region, or set HW_REGION_NAME; pods get it from here")
	}
	for _, arg := range f.env {
		name, value, ok := strings.Cut(arg, "=")
		switch {
		case !ok || name == "" || strings.ContainsAny(name, " \t\n"):
			return usagef("--env %q: it is written NAME=VALUE", name)
		case secretName(name):
			// The value isn't repeated: it may be what should not be seen.
			return usagef("--env %s: manifests are no place for secrets; put it into the Secret %q", name, f.o.Secret)
		case f.has(name):
			return usagef("--env %s: pods have that already", name)
		}
		f.o.Env = append(f.o.Env, batch.EnvVar{Name: name, Value: value})
	}
	return nil
}

func (f *renderFlags) has(name string) bool {
	for _, v := range f.o.Env {
		if v.Name == name {
			return true
		}
	}
	return false
}

// secretName tells whether a variable's name is that of something secret.
func secretName(name string) bool {
	name = strings.ToUpper(name)
	for _, part := range []string{"SECRET", "PASSWORD", "TOKEN", "ACCESS_KEY", "MFA", "_SK", "_AK"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}
