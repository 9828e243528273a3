// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"errors"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims"
)

const gb = 1 << 30

// TestFacts: what a disk's description means for the choice.
func TestFacts(t *testing.T) {
	for _, c := range []struct {
		info         convert.Info
		apart, doubt string
	}{
		{convert.Info{Format: "qcow2", Compression: "zlib"}, "", ""},
		{convert.Info{Format: "qcow2", Compression: "zstd"}, "", "zstd"},
		{convert.Info{Format: "qcow2", Features: []string{"extended L2 entries"}}, "", "extended L2"},
		{convert.Info{Format: "qcow2", Backing: []string{"base"}}, "based on another file", ""},
		{convert.Info{Format: "vmdk"}, "", "VMware"},
		{convert.Info{Format: "vmdk", Extents: []string{"a", "b"}}, "several files", "VMware"},
		{convert.Info{Format: "vmdk", Wrapped: []string{"OVA"}}, "packed in OVA", "VMware"},
	} {
		f := factsOf(c.info, true)
		if (f.apart == "") != (c.apart == "") || !strings.Contains(f.apart, c.apart) {
			t.Errorf("%+v: apart %q", c.info, f.apart)
		}
		if (f.doubt == "") != (c.doubt == "") || !strings.Contains(f.doubt, c.doubt) {
			t.Errorf("%+v: doubt %q", c.info, f.doubt)
		}
		// What isn't sent as it is needs no warning.
		got, err := choosePath(&Request{ImportPath: PathCommon}, f)
		if err != nil || (len(got.warnings) > 0) != (c.doubt != "" && c.apart == "") {
			t.Errorf("%+v: %q %v", c.info, got.warnings, err)
		}
	}
}

// TestChoosePath: which call is taken for which image, and which can't be forced, with the rule.
func TestChoosePath(t *testing.T) {
	qcow2 := facts{format: "qcow2", fileSize: 5 * gb, virtualSize: 40 * gb, mapped: 5 * gb, signs: true}
	large := facts{format: "vmdk", fileSize: 129 * gb, virtualSize: 500 * gb, mapped: 129 * gb, signs: true}
	small := facts{format: "vdi", fileSize: 12 << 20, virtualSize: gb, mapped: 12 << 20, signs: true}
	iso := facts{format: "iso", fileSize: gb, virtualSize: gb, mapped: gb, signs: true}
	chain := qcow2
	chain.apart = "it is based on another file"
	token := qcow2
	token.signs, token.fileSize = false, 2*gb-1
	token2 := token
	token2.fileSize = 2 * gb
	kms, drivers := Extras{KMSKey: "k"}, Extras{Configure: true}
	data := ims.QuickImport{Type: ims.TypeDataImage}
	for _, c := range []struct {
		name   string
		r      Request
		f      facts
		path   Path
		why    string // part of it
		format Format // "" for the quick import, which chooses later
		direct bool
		rule   string // part of the refusal
	}{
		{name: "system disk", f: qcow2, path: PathQuick, why: "up to 1 TB"},
		{name: "large system disk", f: large, path: PathQuick, why: "converted here"},
		{name: "ZVHD2", f: facts{format: "zvhd2", fileSize: gb, virtualSize: gb}, path: PathQuick, why: "needs no conversion"},
		{name: "data disk", r: Request{Image: data}, f: qcow2, path: PathQuick},
		{name: "ISO", f: iso, path: PathCommon, why: "ISO", format: "iso"},
		{name: "encrypted", r: Request{Extras: kms}, f: qcow2, path: PathCommon, why: "encrypts", format: "qcow2"},
		{name: "encrypted data disk", r: Request{Image: data, Extras: kms}, f: qcow2, path: PathData, why: "encrypts", format: "qcow2"},
		{name: "drivers", r: Request{Extras: drivers}, f: small, path: PathCommon, why: "adds drivers", format: "vdi"},
		{name: "memory", r: Request{Extras: Extras{MinRAM: 1}}, f: small, path: PathCommon, why: "bounds", format: "vdi"},
		{name: "drivers of a chain", r: Request{Extras: drivers}, f: chain, path: PathCommon, format: FormatZVHD2},
		{name: "drivers, as RAW", r: Request{Extras: drivers, Format: FormatRAW}, f: qcow2, path: PathCommon, format: FormatRAW},
		{name: "unknown to the service", r: Request{Extras: drivers}, f: facts{format: "parallels", virtualSize: gb, mapped: gb}, path: PathCommon, format: FormatZVHD2},
		{name: "encrypted above 128 GB", r: Request{Extras: kms}, f: large, path: PathCommon, why: "is_quick_import"},
		{name: "forced common", r: Request{ImportPath: PathCommon}, f: qcow2, path: PathCommon, why: "asked for", format: "qcow2"},
		{name: "forced data", r: Request{ImportPath: PathData, Image: data}, f: qcow2, path: PathData, format: "qcow2"},
		{name: "native, 12 MB", r: Request{ImportPath: PathNative}, f: small, path: PathNative, format: "vdi", direct: true},
		{name: "native, too large for a key", r: Request{ImportPath: PathNative}, f: qcow2, path: PathNative, why: "2 GB", format: "qcow2"},
		{name: "native, token", r: Request{ImportPath: PathNative}, f: token, path: PathNative, format: "qcow2", direct: true},
		{name: "native, token, 2 GB", r: Request{ImportPath: PathNative}, f: token2, path: PathNative, why: "below 2 GB", format: "qcow2"},
		{name: "native, chain", r: Request{ImportPath: PathNative}, f: chain, path: PathNative, why: "made as it is sent", format: FormatZVHD2},

		{name: "drivers above 128 GB", r: Request{Extras: drivers}, f: large, rule: "128 GB"},
		{name: "drivers above 128 GB as RAW", r: Request{Extras: drivers, Format: FormatRAW}, f: facts{format: "qcow2", fileSize: gb, virtualSize: 200 * gb}, rule: "128 GB"},
		{name: "encrypted data above 128 GB", r: Request{Image: data, Extras: kms}, f: large, rule: "128 GB"},
		{name: "native above 128 GB", r: Request{ImportPath: PathNative}, f: large, rule: "128 GB"},
		{name: "quick, encrypted", r: Request{ImportPath: PathQuick, Extras: kms}, f: qcow2, rule: "neither encrypts"},
		{name: "quick, ISO", r: Request{ImportPath: PathQuick}, f: iso, rule: "ISO"},
		{name: "common, data disk", r: Request{ImportPath: PathCommon, Image: data}, f: qcow2, rule: "data disk"},
		{name: "data, system disk", r: Request{ImportPath: PathData}, f: qcow2, rule: "takes data disks"},
		{name: "data, drivers", r: Request{Image: data, Extras: drivers}, f: qcow2, rule: "no system"},
		{name: "native, data disk", r: Request{ImportPath: PathNative, Image: data}, f: qcow2, rule: "system disks"},
		{name: "native, encrypted", r: Request{ImportPath: PathNative, Extras: kms}, f: qcow2, rule: "neither encrypted"},
		{name: "native, arm", r: Request{ImportPath: PathNative, Image: ims.QuickImport{Architecture: "arm"}}, f: qcow2, rule: "no architecture"},
		{name: "ISO, drivers", r: Request{Extras: drivers}, f: iso, rule: "drivers"},
		{name: "ISO, converted", r: Request{Format: FormatZVHD2}, f: iso, rule: "as it is"},
		{name: "nonsense", r: Request{ImportPath: "fast"}, f: qcow2, rule: "isn't one of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := choosePath(&c.r, c.f)
			if c.rule != "" {
				var check *CheckError
				if !errors.As(err, &check) || !check.Usage || !strings.Contains(err.Error(), c.rule) {
					t.Fatalf("%+v, %v; want a refusal that says %q", got, err, c.rule)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			quick := got.path == PathQuick || got.path == PathCommon && !got.inspect
			if got.path != c.path || !strings.Contains(got.why, c.why) || !quick && got.format != c.format || got.direct != c.direct {
				t.Errorf("%+v", got)
			}
			if want := c.format != FormatRAW && c.format != FormatZVHD2 && c.format != ""; got.asIs != want {
				t.Errorf("as it is: %v, want %v", got.asIs, want)
			}
		})
	}
}
