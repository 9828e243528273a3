// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/convert"
)

// at returns n bytes with s at the offset, from the end if that is negative.
func at(n, off int, s string) []byte {
	p := bytes.Repeat([]byte{0x90}, n)
	if off < 0 {
		off += n
	}
	copy(p[off:], s)
	return p
}

// TestDetect gives every kind of file a name that would do for RAW: none may be taken for that.
func TestDetect(t *testing.T) {
	for _, tc := range []struct {
		name string
		file []byte
		want string // "raw", or part of the reason
	}{
		{"plain bytes", at(5000, 0, "boot"), "raw"},
		{"one byte", []byte{1}, "raw"},
		{"empty", nil, "empty"},
		{"QCOW2", at(5000, 0, "QFI\xfb\x00\x00\x00\x03"), "cluster_bits"},
		{"only the magic of QCOW2", []byte("QFI\xfb"), "too short"},
		{"QCOW2 of 60 bytes", at(60, 0, "QFI\xfb\x00\x00\x00\x03"), "too short"},
		{"QCOW version 1", at(5000, 0, "QFI\xfb\x00\x00\x00\x01"), "cluster bits"},
		{"QCOW version 9", at(5000, 0, "QFI\xfb\x00\x00\x00\x09"), "version 9"},
		{"VMDK sparse", at(5000, 0, "KDMV"), "version"},
		{"VMDK COWD", at(5000, 0, "COWD"), "one extent"},
		{"VMDK seSparse", at(5000, 0, "\xBE\xBA\xFE\xCA\x00\x00\x00\x00"), "one extent"},
		{"VMDK descriptor", []byte("# Disk DescriptorFile\nversion=1\n"), "createType"},
		{"VMDK descriptor, other comment", []byte("# made by hand\r\n\r\n  \nVersion = 3\r\nCID=1\r\n"), "createType"},
		{"no VMDK descriptor", []byte("# made by hand\nversion=4\n"), "raw"},
		{"no VMDK descriptor, only comments", []byte("# made by hand\n#"), "raw"},
		{"VHDX", at(5000, 0, "vhdxfile"), "header section"},
		{"VHD dynamic", at(5000, 0, "conectix"), "checksum"},
		{"VHD fixed", at(5120, -512, "conectix"), "checksum"},
		{"VHD fixed, old footer", at(5119, -511, "conectix"), "checksum"},
		{"VDI", at(5000, 64, "\x7F\x10\xDA\xBE"), "version"},
		{"QED", at(5000, 0, "QED\x00"), "cluster"},
		{"ZVHD2", at(5000, 0, "z2strm\x00\x00"), "footer"},
		{"ZVHD", at(5000, 0, "stream\x00\x00"), "head"},
		{"Parallels", at(5000, 0, "WithoutFreeSpace"), "Parallels images"},
		{"Parallels, extended", at(5000, 0, "WithouFreSpacExt"), "Parallels images"},
		{"DMG", at(5120, -512, "koly"), "Apple DMG images"},
		{"cloop", at(5000, 0, "#!/bin/sh\n#V2.0 Format\nmodprobe cloop"), "cloop images"},
		{"Bochs", at(5000, 0, "Bochs Virtual HD Image"), "Bochs images"},
		{"LUKS", at(5000, 0, "LUKS\xBA\xBE"), "LUKS encrypted"},
		{"gzip", at(5000, 0, "\x1F\x8B\x08"), "gzip data is damaged"},
		{"xz", at(5000, 0, "\xFD7zXZ\x00"), "xz data is damaged"},
		{"zstd", at(5000, 0, "\x28\xB5\x2F\xFD"), "Zstandard data is damaged"},
		{"bzip2", at(5000, 0, "BZh91AY&SY"), "bzip2 data is damaged"},
		{"7-Zip", at(5000, 0, "7z\xBC\xAF\x27\x1C"), "7-Zip file"},
		{"ZIP", at(5000, 0, "PK\x03\x04"), "ZIP file"},
		{"OVA", at(5000, 257, "ustar"), "archive is damaged"},
		{"QCOW2 and VHD", append(at(5000, 0, "QFI\xfb\x00\x00\x00\x03"), at(512, 0, "conectix")...), "several formats: qcow2, vhd"},
		{"VDI and DMG", append(at(5000, 64, "\x7F\x10\xDA\xBE"), at(512, 0, "koly")...), "several formats: vdi, Apple DMG"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, name := range []string{"disk.raw", "disk.IMG", "disk.bin", "disk"} {
				path := filepath.Join(t.TempDir(), name)
				write(t, path, tc.file)
				d, err := convert.Open(context.Background(), path, convert.OpenOptions{})
				if err == nil {
					if got := d.Type(); tc.want != "raw" || got != "raw" || name == "disk" {
						t.Errorf("%s is opened as %s", name, got)
					}
					if err := d.Close(); err != nil {
						t.Error(err)
					}
					continue
				}
				want := tc.want
				if want == "raw" && name == "disk" {
					want = "name does not say RAW"
				}
				var refused *convert.RefusedError
				if !errors.As(err, &refused) || !strings.Contains(refused.Reason, want) {
					t.Errorf("%s: %v, want it refused for %q", name, err, want)
				}
			}
			if len(tc.file) == 0 {
				return
			}
			// Stated to be RAW, it is RAW, with a warning if it looks like something else.
			path := filepath.Join(t.TempDir(), "disk")
			write(t, path, tc.file)
			d, err := convert.Open(context.Background(), path, convert.OpenOptions{Format: "raw"})
			if err != nil {
				t.Fatalf("stated: %v", err)
			}
			defer d.Close()
			if !bytes.Equal(content(t, d), tc.file) {
				t.Error("stated: wrong content")
			}
			if found := strings.Contains(strings.Join(d.Info().Warnings, "\n"), "signature of a"); found != (tc.want != "raw") {
				t.Errorf("stated: warnings %q", d.Info().Warnings)
			}
			if tc.want != "raw" || len(tc.file) < 4 {
				return
			}
			var refused *convert.RefusedError
			if _, err := convert.Open(context.Background(), path, convert.OpenOptions{Format: "qcow2"}); !errors.As(err, &refused) {
				t.Errorf("stated to be qcow2: %v, want it refused", err)
			}
		})
	}
}

// TestStatedQCOW2 opens a file with two signatures if one of them is stated.
func TestStatedQCOW2(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	write(t, path, append(hostileBase(3, false).Bytes, at(512, 0, "conectix")...))
	d, err := convert.Open(context.Background(), path, convert.OpenOptions{Format: "qcow2"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if w := strings.Join(d.Info().Warnings, "\n"); !strings.Contains(w, "vhd") {
		t.Errorf("warnings %q", w)
	}
}

func FuzzDetect(f *testing.F) {
	for _, s := range []string{"", "QFI\xfb\x00\x00\x00\x03", "# Disk DescriptorFile\n", "# x\n\nversion=1\n", "BZh91AY&SY"} {
		f.Add([]byte(s), []byte("conectix"), "disk.img")
	}
	f.Fuzz(func(t *testing.T, head, tail []byte, name string) {
		found := convert.Detect(head, tail)
		// Whatever is at the end, a signature at the head counts, and the other way round.
		for _, part := range [][]string{convert.Detect(head, nil), convert.Detect(nil, tail)} {
			for _, s := range part {
				if !strings.Contains("|"+strings.Join(found, "|")+"|", "|"+s+"|") {
					t.Errorf("%q is found in a part and not in the whole", s)
				}
			}
		}
		if bytes.HasPrefix(head, []byte("QFI\xfb")) && len(found) == 0 {
			t.Error("the magic of QCOW is not found")
		}
		if filepath.Ext(name) == "" && convert.RAWName(name) {
			t.Errorf("%q is taken for a name of a RAW disk", name)
		}
	})
}
