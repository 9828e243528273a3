// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strings"
)

// probeBytes is how much of the head and of the tail of a file detection looks at: VMDK descriptors
// may begin with long comments, everything else is within the first and last 512 bytes.
const probeBytes = 64 << 10

// signature tells a kind of file by bytes at its head or tail.
type signature struct {
	name   string // for people; the format's name where we read it
	kind   sigKind
	remedy string
	match  func(head, tail []byte) bool
}

type sigKind int

const (
	sigSupported sigKind = iota // one of FormatNames
	sigDisk                     // a disk format that is not read yet
	sigPacked                   // something that contains a disk
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

// signatures lists every kind of file that must not be taken for a RAW disk. The magics are those
// of the formats' specifications.
var signatures = []signature{
	{FormatQCOW2, sigSupported, "", isQCOW(func(v uint32) bool { return v != 1 })},
	{"QCOW version 1", sigDisk, useQemuImg, isQCOW(func(v uint32) bool { return v == 1 })},
	{"VMDK", sigDisk, useQemuImg, anyOf(
		magicAt(0, "KDMV"), magicAt(0, "COWD"), magicAt(0, "\xBE\xBA\xFE\xCA\x00\x00\x00\x00"), isVMDKDescriptor)},
	{"VHDX", sigDisk, useQemuImg, magicAt(0, "vhdxfile")},
	{"VHD", sigDisk, "convert it with `qemu-img convert -f vpc -O qcow2` first", anyOf(
		magicAt(0, "conectix"), tailMagic(512, "conectix"), tailMagic(511, "conectix"))},
	{"VDI", sigDisk, useQemuImg, magicAt(64, "\x7F\x10\xDA\xBE")},
	{"QED", sigDisk, useQemuImg, magicAt(0, "QED\x00")},
	{"ZVHD2", sigDisk, "it can be imported as it is", magicAt(0, "z2strm")},
	{"ZVHD", sigDisk, "it can be imported as it is", magicAt(0, "stream\x00\x00")},
	{"Parallels", sigDisk, useQemuImg, anyOf(magicAt(0, "WithoutFreeSpace"), magicAt(0, "WithouFreSpacExt"))},
	{"Apple DMG", sigDisk, useQemuImg, tailMagic(512, "koly")},
	{"Apple sparse image", sigDisk, "convert it to a plain disk with its own tools first", anyOf(
		magicAt(0, "sprs"), magicAt(0, "shdw"))},
	{"cloop", sigDisk, useQemuImg, magicAt(0, "#!/bin/sh\n#V2.0 Format\n")},
	{"Bochs", sigDisk, useQemuImg, magicAt(0, "Bochs Virtual HD Image")},
	{"LUKS encrypted", sigEncrypted, "decrypt it first, for example with `qemu-img convert` and its secret",
		magicAt(0, "LUKS\xBA\xBE")},
	{"gzip", sigPacked, unpack, magicAt(0, "\x1F\x8B\x08")},
	{"xz", sigPacked, unpack, magicAt(0, "\xFD7zXZ\x00")},
	{"Zstandard", sigPacked, unpack, magicAt(0, "\x28\xB5\x2F\xFD")},
	{"bzip2", sigPacked, unpack, isBzip2},
	{"LZ4", sigPacked, unpack, magicAt(0, "\x04\x22\x4D\x18")},
	{"7-Zip", sigPacked, unpack, magicAt(0, "7z\xBC\xAF\x27\x1C")},
	{"ZIP", sigPacked, unpack, magicAt(0, "PK\x03\x04")},
	{"tar or OVA", sigPacked, unpack, magicAt(257, "ustar")},
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

// detect returns every signature that the head and the tail of a file show.
func detect(head, tail []byte) []signature {
	var found []signature
	for _, s := range signatures {
		if s.match(head, tail) {
			found = append(found, s)
		}
	}
	return found
}

// rawName tells whether a file's name says that it is a RAW disk.
func rawName(path string) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".raw", ".img", ".bin":
		return true
	}
	return false
}

// chooseFormat decides what f is. A stated format is binding and must fit. RAW is never a guess: it
// is stated, or nothing else fits and the file is a block device or has a name that says so.
func chooseFormat(f *sourceFile, stated string) (format string, warnings []string, err error) {
	head, tail, err := f.readHeadTail(probeBytes)
	if err != nil {
		return "", nil, err
	}
	found := detect(head, tail)
	names := make([]string, len(found))
	for i, s := range found {
		names[i] = s.name
	}
	refuse := func(format, reason, remedy string) (string, []string, error) {
		return "", nil, &RefusedError{Path: f.path, Format: format, Reason: reason, Remedy: remedy}
	}
	ambiguous := func(reason, remedy string) (string, []string, error) {
		return "", nil, &RefusedError{Path: f.path, Reason: reason, Remedy: remedy, Need: NeedFormat}
	}
	switch stated {
	case FormatRAW:
		for _, s := range found {
			warnings = append(warnings, fmt.Sprintf(
				"it is read as RAW, as stated, but has the signature of a %s file", s.name))
		}
		return FormatRAW, warnings, nil
	case "":
	default:
		for i, s := range found {
			if s.name != stated {
				continue
			}
			others := append(names[:i:i], names[i+1:]...)
			for _, other := range others {
				warnings = append(warnings, fmt.Sprintf(
					"it is read as %s, as stated, but also has the signature of a %s file", stated, other))
			}
			return stated, warnings, nil
		}
		what := "no known signature"
		if len(names) > 0 {
			what = "the signature of a " + strings.Join(names, " and a ") + " file"
		}
		return refuse(stated, "it is no "+stated+" image: it has "+what, "")
	}
	switch {
	case f.size == 0:
		return refuse("", "the file is empty", "")
	case len(found) > 1:
		return ambiguous("it has the signatures of several formats: "+strings.Join(names, ", "),
			"if you trust it, name its format")
	case len(found) == 1:
		s := found[0]
		switch s.kind {
		case sigSupported:
			return s.name, nil, nil
		case sigPacked:
			return refuse("", "it is a "+s.name+" file, not a disk image", s.remedy)
		case sigEncrypted:
			return refuse("", "it is a "+s.name+" disk", s.remedy)
		default:
			return refuse(s.name, s.name+" images cannot be read yet", s.remedy)
		}
	case !f.regular || rawName(f.path):
		return FormatRAW, nil, nil
	default:
		return ambiguous("its content is of no known disk format and its name does not say RAW",
			"if it is a RAW disk, state the format raw")
	}
}
