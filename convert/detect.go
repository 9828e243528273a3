// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// probeBytes is how much of the head and of the tail of a file detection looks at: VMDK descriptors
// may begin with long comments, everything else is within the first and last 512 bytes.
const probeBytes = 64 << 10

// signature tells a kind of file by bytes at its head or tail.
type signature struct {
	name    string // of the format where there is one, else for people
	kind    sigKind
	remedy  string
	match   func(head, tail []byte) bool
	format  *format  // of sigFormat
	wrapper *wrapper // of sigWrapper
}

type sigKind int

const (
	sigFormat    sigKind = iota // in the table of formats
	sigWrapper                  // in the table of wrappers
	sigDisk                     // a disk format that is not read
	sigPacked                   // something else that contains a disk
	sigEncrypted                // plain bytes, but of no use without a key
)

// magicAt matches bytes at an offset of the head.
func magicAt(off int, magic string) func(head, tail []byte) bool {
	return func(head, _ []byte) bool {
		return len(head) >= off+len(magic) && string(head[off:off+len(magic)]) == magic
	}
}

func anyOf(fs ...func(head, tail []byte) bool) func(head, tail []byte) bool {
	return func(head, tail []byte) bool {
		for _, f := range fs {
			if f(head, tail) {
				return true
			}
		}
		return false
	}
}

const (
	useQemuImg = "convert it with `qemu-img convert -O qcow2` first"
	unpack     = "unpack it and give the disk inside"
)

// foreign lists what must not be taken for a RAW disk and is not read either.
var foreign = []signature{
	{name: "Parallels", kind: sigDisk, remedy: useQemuImg,
		match: anyOf(magicAt(0, "WithoutFreeSpace"), magicAt(0, "WithouFreSpacExt"))},
	{name: "Apple DMG", kind: sigDisk, remedy: useQemuImg, match: tailMagic(512, "koly")},
	{name: "Apple sparse image", kind: sigDisk, remedy: "convert it to a plain disk with its own tools first",
		match: anyOf(magicAt(0, "sprs"), magicAt(0, "shdw"))},
	{name: "cloop", kind: sigDisk, remedy: useQemuImg, match: magicAt(0, "#!/bin/sh\n#V2.0 Format\n")},
	{name: "Bochs", kind: sigDisk, remedy: useQemuImg, match: magicAt(0, "Bochs Virtual HD Image")},
	{name: "LUKS encrypted", kind: sigEncrypted, match: magicAt(0, "LUKS\xBA\xBE"),
		remedy: "decrypt it first, for example with `qemu-img convert` and its secret"},
	{name: "LZ4", kind: sigPacked, remedy: unpack, match: magicAt(0, "\x04\x22\x4D\x18")},
	{name: "7-Zip", kind: sigPacked, remedy: unpack, match: magicAt(0, "7z\xBC\xAF\x27\x1C")},
	{name: "ZIP", kind: sigPacked, remedy: unpack, match: magicAt(0, "PK\x03\x04")},
}

func tailMagic(fromEnd int, magic string) func(head, tail []byte) bool {
	return func(_, tail []byte) bool {
		return len(tail) >= fromEnd && bytes.HasPrefix(tail[len(tail)-fromEnd:], []byte(magic))
	}
}

// isQCOW matches the magic that all QCOW versions share. A file too short for a version is a
// damaged QCOW2 file, never a RAW disk.
func isQCOW(version func(uint32) bool) func(head, tail []byte) bool {
	return func(head, _ []byte) bool {
		if !bytes.HasPrefix(head, []byte("QFI\xFB")) {
			return false
		}
		if len(head) < 8 {
			return version(0)
		}
		return version(binary.BigEndian.Uint32(head[4:]))
	}
}

// isBzip2 looks for the stream header and one of the two possible block marks.
func isBzip2(head, _ []byte) bool {
	return len(head) >= 10 && string(head[:3]) == "BZh" && head[3] >= '1' && head[3] <= '9' &&
		(string(head[4:10]) == "1AY&SY" || string(head[4:10]) == "\x17\x72\x45\x38\x50\x90")
}

// isVMDK matches a sparse extent or a descriptor.
func isVMDK(head, tail []byte) bool {
	return anyOf(magicAt(0, "KDMV"), magicAt(0, "COWD"), magicAt(0, "\xBE\xBA\xFE\xCA\x00\x00\x00\x00"),
		isVMDKDescriptor)(head, tail)
}

// isVMDKDescriptor matches a text whose first line that is neither blank nor a comment is the
// descriptor's version.
func isVMDKDescriptor(head, _ []byte) bool {
	if bytes.HasPrefix(head, []byte("# Disk DescriptorFile")) {
		return true
	}
	for len(head) > 0 {
		line, rest, found := bytes.Cut(head, []byte("\n"))
		line = bytes.ToLower(bytes.TrimSpace(line))
		switch {
		case len(line) == 0 || line[0] == '#':
			if !found {
				return false
			}
			head = rest
		default:
			key, value, ok := bytes.Cut(line, []byte("="))
			if !ok || string(bytes.TrimSpace(key)) != "version" {
				return false
			}
			v := string(bytes.TrimSpace(value))
			return v == "1" || v == "2" || v == "3"
		}
	}
	return false
}

// detect returns every signature that the head and the tail of a file show. The magics are those of
// the formats' specifications.
func detect(head, tail []byte) []signature {
	var found []signature
	for i := range formats {
		if f := &formats[i]; f.match != nil && f.match(head, tail) {
			found = append(found, signature{name: f.name, kind: sigFormat, format: f})
		}
	}
	for i := range wrappers {
		if w := &wrappers[i]; w.match(head, tail) {
			found = append(found, signature{name: w.name, kind: sigWrapper, remedy: unpack, wrapper: w})
		}
	}
	for _, s := range foreign {
		if s.match(head, tail) {
			found = append(found, s)
		}
	}
	return found
}

// chooseFormat decides what an image is. A stated format, "" if there is none, is binding and must
// fit. RAW is never a guess: it is stated, or nothing else fits and the image is a block device or
// has a name that says so.
func chooseFormat(in *input, stated string) (f *format, warnings []string, err error) {
	head, tail, err := in.readHeadTail(probeBytes)
	if err != nil {
		return nil, nil, err
	}
	found := detect(head, tail)
	if stated != "" {
		return checkStated(in, stated, found)
	}
	refuse := func(need Need, remedy, reason string, args ...any) (*format, []string, error) {
		refused := in.bad("", reason, args...)
		refused.Remedy, refused.Need = remedy, need
		return nil, nil, refused
	}
	switch {
	case in.size == 0:
		return refuse("", "", "the file is empty")
	case len(found) > 1:
		return refuse(NeedFormat, "if you trust it, name its format",
			"it has the signatures of several formats: %s", strings.Join(signatureNames(found), ", "))
	case len(found) == 1:
		s := found[0]
		switch s.kind {
		case sigFormat:
			return s.format, nil, nil
		case sigWrapper, sigPacked:
			return refuse("", s.remedy, "it is a %s file, not a disk image", s.name)
		case sigEncrypted:
			return refuse("", s.remedy, "it is a %s disk", s.name)
		default:
			return refuse("", s.remedy, "%s images cannot be read", s.name)
		}
	case in.device || in.rawName():
		f, _ := lookupFormat(FormatRAW)
		return f, nil, nil
	default:
		remedy := "if it is a RAW disk, state the format raw"
		if strings.EqualFold(filepath.Ext(in.name), ".vmdk") {
			// NAME-flat.vmdk and NAME-f001.vmdk hold nothing but the disk's bytes.
			remedy = "if it is an extent, give the disk's descriptor instead, the small .vmdk that names this one; " + remedy
		}
		return refuse(NeedFormat, remedy,
			"its content is of no known disk format and its name does not say RAW")
	}
}

// checkStated holds the stated format of an image against the signatures that were found.
func checkStated(in *input, stated string, found []signature) (*format, []string, error) {
	f, ok := lookupFormat(stated)
	if !ok {
		return nil, nil, in.bad("", "it is said to be of the format %q, which cannot be read", stated)
	}
	if f.match != nil && !slices.ContainsFunc(found, func(s signature) bool { return s.format == f }) {
		what := "no known signature"
		if len(found) > 0 {
			what = "the signature of a " + strings.Join(signatureNames(found), " and a ") + " file"
		}
		return nil, nil, in.bad(f.name, "it is no %s image: it has %s", f.name, what)
	}
	var warnings []string
	for _, s := range found {
		if s.format != f {
			warnings = append(warnings, fmt.Sprintf(
				"it is read as %s, as stated, but has the signature of a %s file", f.name, s.name))
		}
	}
	return f, warnings, nil
}

func signatureNames(found []signature) []string {
	names := make([]string, len(found))
	for i, s := range found {
		names[i] = s.name
	}
	return names
}
