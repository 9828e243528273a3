// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/hcl/v2/hclparse"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"github.com/hashicorp/packer-plugin-sdk/rpc"

	"github.com/imsprep/imsprep/pkg/ims/imstest"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

const (
	region    = "test-1"
	osVersion = "Ubuntu 22.04 server 64bit"
)

// objects lets the simulated image service read the store.
type objects struct{ *obstest.Server }

func (o objects) BucketRegion(_ context.Context, bucket string) (string, error) {
	if bucket != obstest.Bucket {
		return "", fs.ErrNotExist
	}
	return region, nil
}

func (o objects) Stat(_ context.Context, bucket, key string) (int64, string, error) {
	obj := o.Object(bucket, key)
	if obj == nil {
		return 0, "", fs.ErrNotExist
	}
	return obj.Content.Size(), obj.StorageClass, nil
}

func (o objects) Open(_ context.Context, bucket, key string) (imstest.ReaderAtCloser, error) {
	obj := o.Object(bucket, key)
	if obj == nil {
		return nil, fs.ErrNotExist
	}
	return obj.Content, nil
}

// start starts a cloud in this process, and the plugin behind Packer's protocol: what the returned post-processor is
// told goes over a connection, encoded as Packer does.
func start(t *testing.T) (packersdk.PostProcessor, *imstest.Server, *obstest.Server) {
	t.Helper()
	store := obstest.New(obstest.Options{Region: region})
	t.Cleanup(store.Close)
	sim := imstest.New(imstest.Options{Region: region, Objects: objects{store},
		Accounts: []imstest.Account{{AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey}}})
	t.Cleanup(sim.Close)
	service := httptest.NewServer(sim)
	t.Cleanup(service.Close)
	env := map[string]string{"HW_REGION_NAME": region, "IMSPREP_OBS_ENDPOINT": store.URL(), "IMSPREP_IMS_ENDPOINT": service.URL,
		"IMSPREP_IAM_ENDPOINT": service.URL, "IMSPREP_BUCKET": obstest.Bucket, "IMSPREP_STATE_DIR": t.TempDir(), "HOME": t.TempDir(),
		"IMSPREP_CONFIG": filepath.Join(t.TempDir(), "none"), "IMSPREP_METADATA_ENDPOINT": "off"}
	plugin := &postProcessor{lookup: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}

	here, there := net.Pipe()
	server, err := rpc.NewServer(there)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.RegisterPostProcessor(plugin); err != nil {
		t.Fatal(err)
	}
	go server.Serve()
	client, err := rpc.NewClient(here)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	return client.PostProcessor(), sim, store
}

// options are the options of a template, decoded by the plugin's own specification as Packer does.
func options(t *testing.T, p packersdk.PostProcessor, hcl string) any {
	t.Helper()
	file, diags := hclparse.NewParser().ParseHCL([]byte(hcl), "template.pkr.hcl")
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	value, diags := hcldec.Decode(file.Body, p.ConfigSpec(), nil)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return value
}

const keys = `
access_key    = "` + obstest.AccessKey + `"
secret_key    = "` + obstest.SecretKey + `"
os_version    = "` + osVersion + `"
poll_interval = "20ms"
`

func writeDisk(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "testdata", "ext4-zlib.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPostProcess: an artifact of the QEMU builder becomes an image, whose artifact can be asked and destroyed.
func TestPostProcess(t *testing.T) {
	for _, tc := range []struct {
		keep        string
		kept, force bool
	}{{"", true, false}, {"keep_input_artifact = false", false, true}, {"keep_input_artifact = true", true, true}} {
		p, _, store := start(t)
		if err := p.Configure(options(t, p, keys+tc.keep+"\nimage_name = \"built\"\nimage_tags = {\n  team = \"db\"\n}\n")); err != nil {
			t.Fatal(err)
		}
		disk := writeDisk(t, "packer-ubuntu")
		input := &packersdk.MockArtifact{BuilderIdValue: "transcend.qemu", FilesValue: []string{disk, filepath.Join(filepath.Dir(disk), "efivars.fd")}}
		ui := &packersdk.MockUi{}
		out, keep, force, err := p.PostProcess(t.Context(), ui, input)
		if err != nil {
			t.Fatal(err)
		}
		if keep != tc.kept || force != tc.force {
			t.Errorf("%q: keep %v, forced %v", tc.keep, keep, force)
		}
		if out.BuilderId() != builderID || len(out.Id()) != 36 || len(out.Files()) != 0 || out.State("image_name") != "built" ||
			out.State("region") != region || out.State("nothing") != nil || !strings.Contains(out.String(), out.Id()) {
			t.Errorf("artifact %s %s: %s", out.BuilderId(), out.Id(), out)
		}
		if len(ui.SayMessages) < 5 {
			t.Errorf("said %v", ui.SayMessages)
		}
		if left := store.Keys(obstest.Bucket); len(left) != 0 {
			t.Errorf("left in the bucket: %v", left)
		}
		if err := out.Destroy(); err != nil {
			t.Error(err)
		}
		if err := out.Destroy(); err == nil {
			t.Error("what is gone was deleted again")
		}
	}
}

// TestFailures: each is an error that says what to do, keeps the input artifact, and hides the secret.
func TestFailures(t *testing.T) {
	disk := writeDisk(t, "disk.qcow2")
	for _, tc := range []struct {
		name, options string
		files         []string
		want          string
	}{
		{"several disks", "", []string{"a.qcow2", "b.qcow2"}, "several disks:\n    a.qcow2\n    b.qcow2\n  Name one of them in the option disk"},
		{"no disk", "", []string{"readme.txt"}, "no disk among its files"},
		{"a missing file", "", []string{"/nonexistent/disk.qcow2"}, "no such file"},
		{"no such system", `os_version = "Minix 2"`, []string{disk}, `no operating system "Minix 2"`},
		{"a wrong key", `secret_key = "not-the-secret-key"`, []string{disk}, "the secret key does not belong to this access key"},
	} {
		p, _, _ := start(t)
		template := keys + "image_name = \"x\"\n"
		if name, _, ok := strings.Cut(tc.options, " = "); ok { // instead of the one that is there
			lines := strings.Split(template, "\n")
			for i, l := range lines {
				if strings.HasPrefix(l, name) {
					lines[i] = tc.options
				}
			}
			template = strings.Join(lines, "\n")
		}
		if err := p.Configure(options(t, p, template)); err != nil {
			t.Fatal(err)
		}
		out, _, _, err := p.PostProcess(t.Context(), &packersdk.MockUi{}, &packersdk.MockArtifact{BuilderIdValue: "x", FilesValue: tc.files})
		if err == nil || out != nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "not-the-secret-key") {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if got := packersdk.LogSecretFilter.FilterString("key " + obstest.SecretKey); strings.Contains(got, obstest.SecretKey) {
		t.Errorf("Packer would show %s", got)
	}
}

// TestConfigure: what is wrong in a template is told before anything is built.
func TestConfigure(t *testing.T) {
	for _, tc := range []struct{ options, want string }{
		{"image_name = \"x\"\nos_version = \"y\"", ""},
		{"image_name = \"x\"\ndata_disk = true", ""},
		{"os_version = \"y\"", "image_name is needed"},
		{"image_name = \"x\"", "os_version is needed"},
		{"image_name = \"x\"\ndata_disk = true\nos_version = \"y\"", "os_version is for system disks"},
		{"image_name = \"x\"\ndata_disk = true\nformat = \"qcow2\"", "one of auto, raw, zvhd2"},
		{"image_name = \"x\"\ndata_disk = true\nsource_format = \"iso\"", "source_format"},
		{"image_name = \"x\"\ndata_disk = true\naccess_key = \"a\"", "needed together"},
		{"image_name = \"x\"\ndata_disk = true\nwait_timeout = \"soon\"", "soon"},
	} {
		p := new(postProcessor)
		err := p.Configure(options(t, p, tc.options))
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v", tc.options, err)
		}
	}
}

// TestSpec: every option is in the specification, in FlatConfig, and in the manual.
func TestSpec(t *testing.T) {
	manual, err := os.ReadFile(filepath.Join("..", "..", "docs", "packer.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := func(of reflect.Type) map[string]bool {
		found := map[string]bool{}
		var walk func(reflect.Type)
		walk = func(of reflect.Type) {
			for i := range of.NumField() {
				f := of.Field(i)
				switch tag := f.Tag.Get("mapstructure"); {
				case strings.Contains(tag, "squash"):
					walk(f.Type)
				case tag != "":
					found[tag] = true
				}
			}
		}
		walk(of)
		return found
	}
	want := names(reflect.TypeFor[Config]())
	flat := names(reflect.TypeFor[FlatConfig]())
	spec := new(postProcessor).ConfigSpec()
	if len(want) < 30 || !reflect.DeepEqual(want, flat) || len(spec) != len(want) {
		t.Errorf("%d options, %d in FlatConfig, %d in the specification", len(want), len(flat), len(spec))
	}
	for name := range want {
		if spec[name] == nil {
			t.Errorf("%s isn't in the specification", name)
		}
		if !strings.HasPrefix(name, "packer_") && !strings.Contains(string(manual), "`"+name+"`") {
			t.Errorf("docs/packer.md doesn't have %s", name)
		}
	}
}

// TestDescribe builds the plugin and asks it what it is, as `packer init` does.
func TestDescribe(t *testing.T) {
	program := filepath.Join(t.TempDir(), "packer-plugin-imsprep")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(program, "describe").Output()
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		APIVersion     string   `json:"api_version"`
		PostProcessors []string `json:"post_processors"`
		Builders       []string `json:"builders"`
	}
	if err := json.Unmarshal(out, &d); err != nil || fmt.Sprint(d.PostProcessors) != "[-packer-default-plugin-name-]" || d.APIVersion == "" || len(d.Builders) != 0 {
		t.Errorf("%s, %v", out, err)
	}
}
