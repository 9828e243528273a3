// SPDX-License-Identifier: Apache-2.0

package packer

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// TestDisk: what the builders leave, file by file as their documentation and code name them.
func TestDisk(t *testing.T) {
	for _, tc := range []struct {
		name, builder string
		files         []string
		want          string // asked for
		disk          string // "" if it is an error
		fails         string // a part of the error
	}{
		{name: "qemu, as it names a disk", builder: "qemu", files: []string{"output-ubuntu/packer-ubuntu"}, disk: "output-ubuntu/packer-ubuntu"},
		{name: "qemu with UEFI", builder: "qemu", files: []string{"out/efivars.fd", "out/disk.qcow2"}, disk: "out/disk.qcow2"},
		{name: "qemu, a version in the name", builder: "transcend.qemu", files: []string{"out/ubuntu-22.04"}, disk: "out/ubuntu-22.04"},
		{name: "qemu with a second disk", builder: "qemu", files: []string{"out/vm", "out/vm-1"}, fails: "several disks:\n    out/vm\n    out/vm-1"},
		{name: "qemu, one of them", builder: "qemu", files: []string{"out/vm", "out/vm-1"}, want: "vm-1", disk: "out/vm-1"},
		{name: "vmware, one file", builder: "vmware-iso", files: []string{"o/disk.vmdk", "o/vm.nvram", "o/vm.vmsd", "o/vm.vmx", "o/vm.vmxf"}, disk: "o/disk.vmdk"},
		{name: "vmware, split", builder: "mitchellh.vmware", files: []string{"o/disk-s001.vmdk", "o/disk-s002.vmdk", "o/disk.vmdk", "o/vm.vmx"}, disk: "o/disk.vmdk"},
		{name: "vmware, flat", builder: "vmware-vmx", files: []string{"o/disk-flat.vmdk", "o/disk.vmdk"}, disk: "o/disk.vmdk"},
		{name: "vmware, a name that looks like an extent", builder: "vmware-iso", files: []string{"o/web-s1.vmdk", "o/vm.vmx"}, disk: "o/web-s1.vmdk"},
		{name: "vmware, second disk", builder: "vmware-iso", files: []string{"o/disk.vmdk", "o/disk-1.vmdk"}, fails: "several disks"},
		{name: "vmware, exported", builder: "vmware-iso", files: []string{"o/vm.ovf", "o/vm.mf", "o/vm-disk1.vmdk"}, disk: "o/vm.ovf"},
		{name: "virtualbox, OVF", builder: "virtualbox-iso", files: []string{"o/vm-disk001.vmdk", "o/vm.ovf"}, disk: "o/vm.ovf"},
		{name: "virtualbox, OVA", builder: "mitchellh.virtualbox", files: []string{"o/vm.ova"}, disk: "o/vm.ova"},
		{name: "virtualbox, not exported", builder: "virtualbox-vm", files: []string{"o/vm.vbox", "o/vm.vdi"}, disk: "o/vm.vdi"},
		{name: "hyperv", builder: "MSOpenTech.hyperv", files: []string{`out\Virtual Hard Disks\vm.vhdx`, `out\Virtual Machines\a.vmcx`, `out\Virtual Machines\a.vmrs`},
			disk: `out\Virtual Hard Disks\vm.vhdx`},
		{name: "hyperv, a checkpoint and another copy", builder: "hyperv-iso",
			files: []string{"out/Virtual Hard Disks/vm.vhdx", "out/Virtual Hard Disks/vm_1.avhdx", "out/Snapshots/vm.vhdx"}, disk: "out/Virtual Hard Disks/vm.vhdx"},
		{name: "hyperv, several", builder: "hyperv-iso", files: []string{"Virtual Hard Disks/a.vhdx", "Virtual Hard Disks/b.vhdx"}, fails: "several disks"},
		{name: "artifice", builder: "packer.post-processor.artifice", files: []string{"a/readme.txt", "a/disk.raw"}, disk: "a/disk.raw"},
		{name: "compressed", builder: "packer.post-processor.compress", files: []string{"a/disk.qcow2.gz"}, disk: "a/disk.qcow2.gz"},
		{name: "no disk", builder: "amazon-ebs", files: []string{"a.txt"}, fails: "no disk among its files:\n    a.txt"},
		{name: "no files", builder: "null", fails: "has no files"},
		{name: "a wrong name", builder: "qemu", files: []string{"out/vm"}, want: "vn", fails: `no file "vn":` + "\n    out/vm"},
		{name: "a name twice", builder: "x", files: []string{"a/d.raw", "b/d.raw"}, want: "d.raw", fails: `several files "d.raw"`},
		{name: "by its path", builder: "x", files: []string{"a/d.raw", "b/d.raw"}, want: "b/d.raw", disk: "b/d.raw"},
		{name: "listed twice", builder: "x", files: []string{"a/d.raw", "a/d.raw"}, disk: "a/d.raw"},
		{name: "very many", builder: "x", files: slices.Repeat([]string{"a.txt"}, 50), fails: "and 30 more"},
	} {
		got, err := Disk(tc.builder, tc.files, tc.want)
		var e *DiskError
		switch {
		case tc.fails != "" && (!errors.As(err, &e) || !strings.Contains(err.Error(), tc.fails)):
			t.Errorf("%s: got %q, %v", tc.name, got, err)
		case tc.fails == "" && (err != nil || got != tc.disk):
			t.Errorf("%s: got %q, %v", tc.name, got, err)
		}
	}
}

// twoRuns is a manifest of two runs, as Packer 1.11 writes it.
const twoRuns = `{
  "builds": [
    {"name": "ubuntu", "builder_type": "qemu", "build_time": 1700000000, "files": [{"name": "old/vm", "size": 5}],
     "artifact_id": "VM", "packer_run_uuid": "run-1", "custom_data": {"my": "data"}},
    {"name": "ubuntu", "builder_type": "qemu", "build_time": 1700000100, "files": [{"name": "new/vm", "size": 7}],
     "artifact_id": "VM", "packer_run_uuid": "run-2", "custom_data": null},
    {"name": "ubuntu", "builder_type": "qemu", "build_time": 1700000101, "files": null, "artifact_id": "", "packer_run_uuid": "run-2"},
    {"name": "ubuntu", "builder_type": "vmware-iso", "build_time": 1700000102, "files": [{"name": "v/disk.vmdk", "size": 9}],
     "artifact_id": "VM", "packer_run_uuid": "run-2"},
    {"name": "debian", "builder_type": "hyperv-iso", "build_time": 1700000103, "files": [], "packer_run_uuid": "run-2"}
  ],
  "last_run_uuid": "run-2"
}`

func TestBuild(t *testing.T) {
	single := strings.NewReplacer(`"run-2"`, `"run-3"`, `"last_run_uuid": "run-2"`, `"last_run_uuid": "run-1"`).Replace(twoRuns)
	for _, tc := range []struct {
		manifest, name string
		want           string // the build's full name and first file, or a part of the error
		fails          bool
	}{
		{manifest: twoRuns, name: "qemu.ubuntu", want: "qemu.ubuntu new/vm"},
		{manifest: twoRuns, name: "vmware-iso.ubuntu", want: "vmware-iso.ubuntu v/disk.vmdk"},
		{manifest: twoRuns, name: "debian", want: "hyperv-iso.debian"},
		{manifest: twoRuns, name: "ubuntu", want: `several builds "ubuntu": qemu.ubuntu, vmware-iso.ubuntu`, fails: true},
		{manifest: twoRuns, want: "several builds: qemu.ubuntu, vmware-iso.ubuntu, hyperv-iso.debian", fails: true},
		{manifest: twoRuns, name: "fedora", want: `no build "fedora"; it has qemu.ubuntu`, fails: true},
		{manifest: single, want: "qemu.ubuntu old/vm"},
		{manifest: `{"builds":[{"name":"a","files":[{"name":"x.raw"}]}]}`, want: "a x.raw"},
		{manifest: `{"builds":[{"name":"a","packer_run_uuid":"1"}],"last_run_uuid":"2"}`, want: "no build of its last run 2", fails: true},
		{manifest: `{"builds":[]}`, want: "no builds", fails: true},
		{manifest: `{}`, want: "no builds", fails: true},
		{manifest: ``, want: "empty", fails: true},
		{manifest: `[]`, want: "isn't a manifest", fails: true},
		{manifest: `{"builds":[{"name":1}]}`, want: "isn't a manifest", fails: true},
		{manifest: `{"builds":[{"name":"a"}]} more`, want: "isn't a manifest", fails: true},
		{manifest: `{"builds":[{"name":"a","files":[{"name":"x","size":-1}]}]}`, want: "negative size", fails: true},
		{manifest: `{"builds":[{"name":"a","files":[{"size":1}]}]}`, want: "without a name", fails: true},
		{manifest: strings.Repeat(" ", maxManifest+1), want: "more than 32 MiB", fails: true},
	} {
		m, err := ParseManifest(strings.NewReader(tc.manifest))
		var b *Build
		if err == nil {
			b, err = m.Build(tc.name)
		}
		got := ""
		if err == nil {
			got = strings.Join(append([]string{b.FullName()}, b.FileNames()...), " ")
		} else if tc.fails && strings.Contains(err.Error(), tc.want) {
			continue
		}
		if err != nil || tc.fails || got != tc.want {
			t.Errorf("%.60q %s: got %q, %v, want %q", tc.manifest, tc.name, got, err, tc.want)
		}
	}
}

// FuzzManifest: whatever the manifest, what is found is one of its files, and it is of the last run.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(twoRuns), "qemu.ubuntu", "")
	f.Add([]byte(`{"builds":[{"name":"a","builder_type":"hyperv-iso","files":[{"name":"Virtual Hard Disks\\a.vhdx"}]}]}`), "", "")
	f.Add([]byte(`{"builds":[{"files":[{"name":"-s1.vmdk"},{"name":".vmdk"}]}]}`), "", "-s1.vmdk")
	f.Fuzz(func(t *testing.T, data []byte, build, disk string) {
		m, err := ParseManifest(strings.NewReader(string(data)))
		if err != nil {
			return
		}
		b, err := m.Build(build)
		if err != nil {
			return
		}
		if m.LastRunUUID != "" && b.PackerRunUUID != m.LastRunUUID {
			t.Fatalf("build of run %q, the last is %q", b.PackerRunUUID, m.LastRunUUID)
		}
		if build != "" && build != b.Name && build != b.FullName() {
			t.Fatalf("asked for %q, got %q", build, b.FullName())
		}
		name, err := Disk(b.BuilderType, b.FileNames(), disk)
		if err != nil {
			_ = err.Error()
			return
		}
		if !slices.Contains(b.FileNames(), name) {
			t.Fatalf("%q isn't a file of the artifact", name)
		}
	})
}
