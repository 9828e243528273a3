// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// systemDisk is a valid request for a system disk.
func systemDisk() *QuickImport {
	return &QuickImport{
		Name: "web-01", ImageURL: "my-bucket:images/web-01.zvhd2", MinDisk: 40, OSVersion: "Ubuntu 22.04 server 64bit",
		MarkerTag: Tag{"run", "a1b2"},
	}
}

func dataDisk() *QuickImport {
	return &QuickImport{Name: "data-01", ImageURL: "my-bucket:data-01.raw", MinDisk: 200, Type: TypeDataImage, OSType: "Linux"}
}

func TestValidate(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	for _, c := range []struct {
		name   string
		change func(*QuickImport)
		want   string // field and a part of the rule; empty: valid
	}{
		{"valid", func(r *QuickImport) {}, ""},
		{"everything", func(r *QuickImport) {
			r.Type, r.Description, r.Architecture, r.FirmwareType = TypeECS, "Prüfung, 100 %", "arm", "uefi"
			r.LicenseType, r.EnterpriseProjectID = "byol", "0ba5c5b6-01b5-4ae4-a7b9-1e6ae29ee6d7"
			r.Tags = []Tag{{"env", ""}, {"版本", "1.0_a-b"}}
		}, ""},
		{"data disk", func(r *QuickImport) { *r = *dataDisk() }, ""},
		{"data disk without type of system", func(r *QuickImport) { *r = *dataDisk(); r.OSType = "" }, ""},

		{"name empty", func(r *QuickImport) { r.Name = "" }, "name: 1 to 128 characters"},
		{"name of 128", func(r *QuickImport) { r.Name = long(128) }, ""},
		{"name of 128 Chinese", func(r *QuickImport) { r.Name = strings.Repeat("镜", 128) }, ""},
		{"name of 129", func(r *QuickImport) { r.Name = long(129) }, "name: 1 to 128 characters"},
		{"name with inner space", func(r *QuickImport) { r.Name = "a b.c_d-e" }, ""},
		{"name begins with space", func(r *QuickImport) { r.Name = " a" }, "name: neither first nor last"},
		{"name ends with space", func(r *QuickImport) { r.Name = "a " }, "name: neither first nor last"},
		{"name with tab", func(r *QuickImport) { r.Name = "a\tb" }, "name: letters"},
		{"name with slash", func(r *QuickImport) { r.Name = "a/b" }, "name: letters"},
		{"name not UTF-8", func(r *QuickImport) { r.Name = "a\xff" }, "name: letters"},

		{"description of 1024", func(r *QuickImport) { r.Description = strings.Repeat("é", 1024) }, ""},
		{"description of 1025", func(r *QuickImport) { r.Description = long(1025) }, "description: 1,024"},
		{"description with line break", func(r *QuickImport) { r.Description = "a\nb" }, "description: line breaks"},
		{"description with CR", func(r *QuickImport) { r.Description = "a\rb" }, "description: line breaks"},
		{"description with bracket", func(r *QuickImport) { r.Description = "a<b" }, "description: angle brackets"},

		{"min_disk 0", func(r *QuickImport) { r.MinDisk = 0 }, "min_disk: 1 to 1024 GB"},
		{"min_disk 1", func(r *QuickImport) { r.MinDisk = 1 }, ""},
		{"min_disk 1024", func(r *QuickImport) { r.MinDisk = 1024 }, ""},
		{"min_disk 1025", func(r *QuickImport) { r.MinDisk = 1025 }, "min_disk: 1 to 1024 GB"},

		{"type", func(r *QuickImport) { r.Type = "IsoImage" }, "type: ECS or BMS or DataImage"},
		{"BMS", func(r *QuickImport) { r.Type = TypeBMS }, ""},
		{"no OS version", func(r *QuickImport) { r.OSVersion = "" }, "os_version: required for a system disk"},
		{"OS version with blank", func(r *QuickImport) { r.OSVersion += " " }, "os_version: without blanks"},
		{"architecture", func(r *QuickImport) { r.Architecture = "x86_64" }, "architecture: x86 or arm"},
		{"firmware", func(r *QuickImport) { r.FirmwareType = "UEFI" }, "hw_firmware_type: bios or uefi"},
		{"arm with bios", func(r *QuickImport) { r.Architecture, r.FirmwareType = "arm", "bios" }, "hw_firmware_type: uefi for the architecture arm"},
		{"license", func(r *QuickImport) { r.LicenseType = "mine" }, "license_type: platform or byol"},
		{"OS type of a system disk", func(r *QuickImport) { r.OSType = "Linux" }, "os_type: data disks"},
		{"enterprise project 0", func(r *QuickImport) { r.EnterpriseProjectID = "0" }, ""},
		{"enterprise project", func(r *QuickImport) { r.EnterpriseProjectID = "default" }, "enterprise_project_id: UUID"},
		{"enterprise project almost", func(r *QuickImport) { r.EnterpriseProjectID = "0ba5c5b6-01b5-4ae4-a7b9-1e6ae29ee6dg" }, "enterprise_project_id: UUID"},

		{"data disk with OS version", func(r *QuickImport) { *r = *dataDisk(); r.OSVersion = "x" }, "os_version: left out for a data disk"},
		{"data disk with firmware", func(r *QuickImport) { *r = *dataDisk(); r.FirmwareType = "uefi" }, "hw_firmware_type: left out for a data disk"},
		{"data disk of type Other", func(r *QuickImport) { *r = *dataDisk(); r.OSType = "Other" }, "os_type: Linux or Windows"},

		{"raw", func(r *QuickImport) { r.ImageURL = "b-1.x:a/b/c.raw" }, ""},
		{"colon in key", func(r *QuickImport) { r.ImageURL = "bkt:a:b.raw" }, ""},
		{"a URL", func(r *QuickImport) { r.ImageURL = "https://bkt.obs.example.com/a.raw" }, "image_url: not a URL"},
		{"no colon", func(r *QuickImport) { r.ImageURL = "bkt/a.raw" }, "image_url: BUCKET:KEY"},
		{"empty URL", func(r *QuickImport) { r.ImageURL = "" }, "image_url: BUCKET:KEY"},
		{"bucket too short", func(r *QuickImport) { r.ImageURL = "bk:a.raw" }, "image_url: 3 to 63"},
		{"bucket capitals", func(r *QuickImport) { r.ImageURL = "Bucket:a.raw" }, "image_url: lower-case"},
		{"blank in key", func(r *QuickImport) { r.ImageURL = "bkt:a b.raw" }, "image_url: blanks"},
		{"no-break space in key", func(r *QuickImport) { r.ImageURL = "bkt:a\u00a0b.raw" }, "image_url: blanks"},
		{"long key", func(r *QuickImport) { r.ImageURL = "bkt:" + long(1021) + ".raw" }, "image_url: 1,024 bytes"},
		{"qcow2", func(r *QuickImport) { r.ImageURL = "bkt:a.qcow2" }, "image_url: .raw or .zvhd2"},
		{"suffix in capitals", func(r *QuickImport) { r.ImageURL = "bkt:a.RAW" }, "image_url: .raw or .zvhd2"},
		{"suffix only", func(r *QuickImport) { r.ImageURL = "bkt:a/.raw" }, "image_url: .raw or .zvhd2"},

		{"ten tags", func(r *QuickImport) { r.Tags = manyTags(9) }, ""},
		{"eleven tags", func(r *QuickImport) { r.Tags = manyTags(10) }, "image_tags: at most 10"},
		{"ten tags without marker", func(r *QuickImport) { r.Tags, r.MarkerTag = manyTags(10), Tag{} }, ""},
		{"key twice", func(r *QuickImport) { r.Tags = []Tag{{"a", "1"}, {"a", "2"}} }, "image_tags: twice"},
		{"key of the marker", func(r *QuickImport) { r.Tags = []Tag{{"run", "1"}} }, "image_tags: twice"},
		{"empty key", func(r *QuickImport) { r.Tags = []Tag{{"", "1"}} }, "image_tags: key must not be empty"},
		{"key of 36", func(r *QuickImport) { r.Tags = []Tag{{long(36), long(43)}} }, ""},
		{"key of 37", func(r *QuickImport) { r.Tags = []Tag{{long(37), ""}} }, "image_tags: 1 to 36"},
		{"value of 44", func(r *QuickImport) { r.Tags = []Tag{{"a", long(44)}} }, "image_tags: up to 43"},
		{"dot in key", func(r *QuickImport) { r.Tags = []Tag{{"a.b", ""}} }, "image_tags: 1 to 36"},
		{"equals in value", func(r *QuickImport) { r.Tags = []Tag{{"a", "b=c"}} }, "image_tags: up to 43"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := systemDisk()
			c.change(r)
			err := r.Validate()
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var v *ValidationError
			if !errors.As(err, &v) || len(v.Problems) != 1 {
				t.Fatalf("got %v, want one problem", err)
			}
			field, rule, _ := strings.Cut(c.want, ": ")
			if p := v.Problems[0]; p.Field != field || !strings.Contains(p.Rule, rule) {
				t.Errorf("got %+v, want %s", p, c.want)
			}
			if KindOf(err) != KindInvalid {
				t.Errorf("kind %v", KindOf(err))
			}
		})
	}
}

func manyTags(n int) []Tag {
	var tags []Tag
	for i := range n {
		tags = append(tags, Tag{fmt.Sprintf("key%d", i), "v"})
	}
	return tags
}

func TestValidateCollects(t *testing.T) {
	err := (&QuickImport{Name: "a\x1b[0m\nb", MinDisk: 5000, Tags: []Tag{{"", ""}}}).Validate()
	for _, part := range []string{"name", "image_url", "min_disk", "os_version", "image_tags"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not name %s", err, part)
		}
	}
	if strings.ContainsAny(err.Error(), "\x1b\n") {
		t.Errorf("control characters in %q", err)
	}
	again := (&QuickImport{Type: TypeDataImage, OSVersion: "a", Architecture: "b", FirmwareType: "c", LicenseType: "d"}).Validate()
	for range 20 {
		if e := (&QuickImport{Type: TypeDataImage, OSVersion: "a", Architecture: "b", FirmwareType: "c", LicenseType: "d"}).Validate(); e.Error() != again.Error() {
			t.Fatal("the order of problems changes")
		}
	}
}

func TestWarnings(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*QuickImport)
		want   []string
	}{
		{"none", func(r *QuickImport) {}, nil},
		{"small Linux", func(r *QuickImport) { r.MinDisk = 9 }, []string{"at least 10 GB"}},
		{"10 GB", func(r *QuickImport) { r.MinDisk = 10 }, nil},
		{"small Windows", func(r *QuickImport) { r.MinDisk, r.OSVersion = 19, "Windows Server 2019 Standard 64bit" },
			[]string{"at least 20 GB", "Windows"}},
		{"licence", func(r *QuickImport) { r.LicenseType = "byol" }, []string{"license_type"}},
		{"data disk of Windows", func(r *QuickImport) { *r = *dataDisk(); r.OSType = "Windows" }, []string{"Windows"}},
	} {
		r := systemDisk()
		c.change(r)
		got := r.Warnings()
		if len(got) != len(c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], c.want[i]) {
				t.Errorf("%s: got %q, want %q", c.name, got, c.want)
			}
		}
	}
}

func TestQuickImportBody(t *testing.T) {
	for _, c := range []struct {
		r    *QuickImport
		want string
	}{
		{systemDisk(), `{"name":"web-01","image_url":"my-bucket:images/web-01.zvhd2","min_disk":40,` +
			`"os_version":"Ubuntu 22.04 server 64bit","image_tags":[{"key":"run","value":"a1b2"}]}`},
		{dataDisk(), `{"name":"data-01","image_url":"my-bucket:data-01.raw","min_disk":200,"type":"DataImage","os_type":"Linux"}`},
		{&QuickImport{Name: "n", ImageURL: ImageURL("bkt", "k.raw"), MinDisk: 1, Type: "BMS", Description: "d", OSVersion: "o",
			Architecture: "arm", FirmwareType: "uefi", LicenseType: "byol", EnterpriseProjectID: "0", Tags: []Tag{{"a", ""}}},
			`{"name":"n","image_url":"bkt:k.raw","min_disk":1,"type":"BMS","description":"d","os_version":"o","architecture":"arm",` +
				`"hw_firmware_type":"uefi","license_type":"byol","enterprise_project_id":"0","image_tags":[{"key":"a","value":""}]}`},
	} {
		got, err := json.Marshal(c.r.body())
		if err != nil || string(got) != c.want {
			t.Errorf("got %s, %v\nwant %s", got, err, c.want)
		}
	}
	// The marker must not end up in the caller's tags.
	r := systemDisk()
	r.Tags = make([]Tag, 0, 4)
	_ = r.body()
	if len(r.Tags) != 0 || r.Tags[:1][0] != (Tag{}) {
		t.Error("the request was changed")
	}
}
