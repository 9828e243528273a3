// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/imsprep/imsprep/convert"
)

const twoSystems = `<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf">
 <References><File ovf:id="f1" ovf:href="data.vmdk"/><File ovf:id="f2" ovf:href="system.vmdk"/><File ovf:id="f3" ovf:href="other.vmdk"/></References>
 <DiskSection>
  <Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="2" ovf:capacityAllocationUnits="byte * 2^30"/>
  <Disk ovf:diskId="d2" ovf:fileRef="f2" ovf:capacity="1024"/>
  <Disk ovf:diskId="d3" ovf:fileRef="f3" ovf:capacity="many"/>
  <Disk ovf:diskId="d4" ovf:capacity="5"/>
 </DiskSection>
 <VirtualSystemCollection ovf:id="all">
  <VirtualSystem ovf:id="vm1">
   <Name>web
     01</Name>
   <OperatingSystemSection ovf:id="94" vmw:osType="ubuntu64Guest"><Info/><Description>Ubuntu Linux (64-bit)</Description></OperatingSystemSection>
   <VirtualHardwareSection>
    <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType></Item>
    <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d1</rasd:HostResource><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
    <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d2</rasd:HostResource><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
    <Item><rasd:HostResource>ovf:/disk/d4</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></Item>
   </VirtualHardwareSection>
  </VirtualSystem>
  <VirtualSystem ovf:id="vm2"><OperatingSystemSection vmw:osType="windows9Server64Guest"/></VirtualSystem>
 </VirtualSystemCollection>
</Envelope>`

func TestReadPackage(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	archive := func(names ...string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range names {
			text := "content"
			if filepath.Ext(name) == ".ovf" {
				text = twoSystems
			}
			if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o600}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	disks := []convert.PackageDisk{
		{Name: "system.vmdk", System: "web 01", OS: "Ubuntu Linux (64-bit)", Capacity: 1024},
		{Name: "data.vmdk", System: "web 01", OS: "Ubuntu Linux (64-bit)", Capacity: 2 << 30},
		{Name: "other.vmdk"},
	}
	for _, tc := range []struct {
		path string
		want *convert.Package
	}{
		{file("web.ovf", []byte(twoSystems)),
			&convert.Package{Kind: "OVF", Files: []string{"web.mf", "data.vmdk", "system.vmdk", "other.vmdk"}, Disks: disks}},
		{file("web.ova", archive("web.ovf", "data.vmdk", "system.vmdk", "other.vmdk")),
			&convert.Package{Kind: "OVA", Files: []string{"web.ovf", "data.vmdk", "system.vmdk", "other.vmdk"}, Disks: disks}},
		{file("a.tar", archive("a.raw", "b.raw")),
			&convert.Package{Kind: "tar", Files: []string{"a.raw", "b.raw"}, Disks: []convert.PackageDisk{{Name: "a.raw"}, {Name: "b.raw"}}}},
		{file("disk.raw", make([]byte, 4096)), nil},
	} {
		got, err := convert.ReadPackage(t.Context(), tc.path)
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: got %+v, %v, want %+v", filepath.Base(tc.path), got, err, tc.want)
		}
	}
	for name, content := range map[string][]byte{
		"cut.ovf":    []byte(twoSystems[:600]),
		"twice.ova":  archive("a.ovf", "b.ovf"),
		"broken.tar": archive("a.raw")[:700],
	} {
		if got, err := convert.ReadPackage(t.Context(), file(name, content)); err == nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}
