// SPDX-License-Identifier: Apache-2.0

package batch_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

// TestPropose looks at a folder as one finds it.
func TestPropose(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) {
		t.Helper()
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disk := make([]byte, 1<<20)
	write("web01/disk.raw", disk)
	write("web02/disk.raw", disk)
	write("db/db.vmx", []byte(`displayName = "db: 1"
guestOS = "centos8-64"
scsi0:0.fileName = "system.vmdk"
scsi0:1.fileName = "data.vmdk"
sata0:0.fileName = "x.iso"
scsi0:2.fileName = "/elsewhere/y.vmdk"
`))
	for _, name := range []string{"system", "data"} {
		write("db/"+name+".vmdk", []byte("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n"+
			"RW 2048 FLAT \""+name+"-flat.vmdk\" 0\nddb.adapterType = \"lsilogic\"\n"))
		write("db/"+name+"-flat.vmdk", disk)
	}
	write("lost/lost.vmdk", []byte("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n"+
		"RW 2048 FLAT \"gone-flat.vmdk\" 0\n"))
	write("lost/lost-flat.vmdk", disk)
	write("db/db.nvram", []byte("x"))
	write("notes", []byte("these are notes"))
	write(".hidden.raw", disk)
	write("broken.qcow2", []byte("QFI\xfb\x00\x00\x00\x03 broken"))
	write("nasty\n- {name: x}.raw", disk)
	if err := os.Symlink("web01/disk.raw", filepath.Join(dir, "link.raw")); err != nil {
		t.Fatal(err)
	}
	p, err := batch.Propose(t.Context(), batch.ProposeOptions{Paths: []string{dir}, Name: "b", Defaults: batch.Settings{Bucket: "images"}})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := p.WriteYAML(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	plan, err := batch.Parse(filepath.Join(dir, "plan.yaml"), b.Bytes())
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	var got []string
	for _, i := range plan.Images {
		s := i.Name + " " + i.Type
		if i.Machine != "" {
			s += " of " + i.Machine
		}
		if i.Refused != "" {
			s += " refused"
		}
		got = append(got, s)
	}
	want := []string{
		"broken system refused",
		"db-1 system of db-1",
		"db-1-data-1 data of db-1",
		"lost system refused",
		"nasty-name-x system",
		"web01-disk system",
		"web02-disk system",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q\n%s", got, want, text)
	}
	for _, said := range []string{
		"its descriptor says that the system is: centos8-64", "link.raw: it is a link", "lost-flat.vmdk: by its name it belongs to lost.vmdk",
		"notes: it isn't a disk of a known format", `names the disk "/elsewhere/y.vmdk", which doesn't lie beside it`,
		"os_version: \"\" # as the region lists it", "virtual_size: 1048576 # 1.0 MiB", "min_disk: 10", "system-flat.vmdk: the data of system.vmdk is in it",
	} {
		if !strings.Contains(text, said) {
			t.Errorf("it doesn't say %q:\n%s", said, text)
		}
	}
	// The same again is the same text.
	var again bytes.Buffer
	p, err = batch.Propose(t.Context(), batch.ProposeOptions{Paths: []string{dir}, Name: "b", Defaults: batch.Settings{Bucket: "images"}})
	if err != nil || p.WriteYAML(&again) != nil || again.String() != text {
		t.Errorf("the second proposal differs, %v:\n%s", err, again.String())
	}
}

// TestProposeChain: what a disk is based on is no entry of its own.
func TestProposeChain(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv("IMSPREP_CI") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	for _, args := range [][]string{
		{"create", "-q", "-f", "qcow2", "base.qcow2", "64M"},
		{"create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", "overlay.qcow2"},
	} {
		cmd := exec.Command("qemu-img", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	yes := true
	for _, allow := range []*bool{nil, &yes} {
		p, err := batch.Propose(t.Context(), batch.ProposeOptions{Paths: []string{dir}, Defaults: batch.Settings{AllowBacking: allow}})
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Plan.Images) != 1 || p.Plan.Images[0].Name != "overlay" || len(p.Ignored) != 1 || !strings.HasSuffix(p.Ignored[0].Path, "base.qcow2") {
			t.Fatalf("images %+v, ignored %+v", p.Plan.Images, p.Ignored)
		}
		if refused := p.Plan.Images[0].Refused; (refused == "") != (allow != nil) || allow == nil && !strings.Contains(refused, "allow_backing: true") {
			t.Errorf("allowed %v: refused %q", allow != nil, refused)
		}
	}
}

func TestCSV(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("a.raw", strings.Repeat("\x00", 1<<20))
	for name, text := range map[string]string{
		"comma.csv":     "\xEF\xBB\xBF# from the inventory\nsource,name,os_version,tags,allow_backing,min_disk\na.raw,web,Ubuntu,team=x;env=y,true,40\n,,,,,\n",
		"semicolon.csv": "Source;Name;OS_Version;Tags;allow_backing;min_disk\n\"a.raw\";web;Ubuntu;team=x|env=y;true;40\n",
	} {
		list, err := batch.LoadCSV(write(name, text))
		if err != nil || len(list) != 1 {
			t.Errorf("%s: %v, %+v", name, err, list)
			continue
		}
		i := list[0]
		if i.Source != filepath.Join(dir, "a.raw") || i.Name != "web" || i.OSVersion != "Ubuntu" || i.Tags["team"] != "x" || i.Tags["env"] != "y" ||
			!*i.AllowBacking || i.MinDisk != 40 {
			t.Errorf("%s: %+v", name, i)
		}
		p, err := batch.Propose(t.Context(), batch.ProposeOptions{Paths: []string{filepath.Join(dir, name)}})
		if err != nil || len(p.Plan.Images) != 1 || p.Plan.Images[0].VirtualSize != 1<<20 || p.Plan.Images[0].Name != "web" {
			t.Errorf("%s: %v, %+v", name, err, p)
		}
	}
	for _, tc := range []struct{ text, want string }{
		{"", "it is empty"},
		{"name\nx\n", "l.csv:1:1: there is no column source"},
		{"source,nmae\na,b\n", `l.csv:1:8: unknown column "nmae"; "name" is meant?`},
		{"source,source\na,b\n", "is there twice"},
		{"source,type\na,disk\n", `l.csv:2:3: type is "disk"`},
		{"source,min_disk\na,big\n", "l.csv:2:3: min_disk is a whole number"},
		{"source\na,b\n", "l.csv:2:3: there are 2 fields"},
		{"source,name\n,b\n", "l.csv:2:1: the disk has no source"},
		{"source,tags\na,=x\n", "isn't a key of its own"},
		{"source\n\"a\n", "can't be read as CSV"},
		{"source\n\xff\n", "isn't UTF-8"},
	} {
		var bad *batch.PlanError
		if _, err := batch.ParseCSV("l.csv", []byte(tc.text)); !errors.As(err, &bad) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: got %v, want %q", tc.text, err, tc.want)
		}
	}
}
