// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"archive/tar"
	"context"
	"crypto/sha1" // manifests of OVF 1 have nothing better
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Limits of archives and OVF packages (DSP0243).
const (
	maxMembers       = 4096
	maxOVFBytes      = 4 << 20
	maxManifestBytes = 1 << 20
	maxListed        = 20 // names in a message
)

// ovf is what counts of an OVF descriptor (DSP0243, 7.1 and 9.1).
type ovf struct {
	Files []ovfFile `xml:"References>File"`
	Disks []ovfDisk `xml:"DiskSection>Disk"`
}

type ovfFile struct {
	ID          string `xml:"id,attr"`
	Href        string `xml:"href,attr"`
	Size        string `xml:"size,attr"`
	Compression string `xml:"compression,attr"`
	ChunkSize   string `xml:"chunkSize,attr"`

	disk ovfDisk // that is in the file
}

type ovfDisk struct {
	ID        string `xml:"diskId,attr"`
	FileRef   string `xml:"fileRef,attr"`
	ParentRef string `xml:"parentRef,attr"`
	Capacity  string `xml:"capacity,attr"`
	Units     string `xml:"capacityAllocationUnits,attr"`
}

// capacity returns the disk's size in bytes (DSP0243, 9.1), and false if it is not stated as a number.
func (d ovfDisk) capacity() (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(d.Capacity), 10, 64)
	if err != nil || n < 0 {
		return 0, false
	}
	// A unit is "byte", or that times a power (DSP0004, C.1).
	factor := int64(1)
	if unit := strings.ReplaceAll(d.Units, " ", ""); unit != "" && unit != "byte" {
		power, ok := strings.CutPrefix(unit, "byte*2^")
		shift, err := strconv.ParseUint(power, 10, 6)
		if !ok || err != nil || shift > 60 {
			return 0, false
		}
		factor <<= shift
	}
	if n > math.MaxInt64/factor {
		return 0, false
	}
	return n * factor, true
}

// checkCapacity warns if a disk is not as large as its OVF descriptor says. What the disk itself says
// counts: a wrong capacity is a common slip of those who write packages.
func (d *Disk) checkCapacity(in *input, size int64) {
	if in.disk == nil || strings.HasPrefix(in.disk.Capacity, "${") { // which is chosen when the machine is made
		return
	}
	want, ok := in.disk.capacity()
	switch {
	case !ok:
		d.warn("%s: the OVF descriptor gives the disk the capacity %.100q in units of %.100q, which can't be checked", in.label,
			in.disk.Capacity, in.disk.Units)
	case want != size:
		d.warn("%s: the OVF descriptor says that the disk has %d bytes, but it has %d", in.label, want, size)
	}
}

// ovfPackage is a descriptor and the files that it came with, in an archive or in a folder.
type ovfPackage struct {
	in   *input                            // the archive or the descriptor
	desc *input                            // the descriptor
	open func(name string) (*input, error) // nil, nil = there is no such file
	kind string
}

// openTar takes the disk out of a tar archive, in place. An archive with an OVF descriptor is an
// OVA, and the descriptor says which of its files are disks.
func (d *Disk) openTar(ctx context.Context, in *input, o OpenOptions) (*input, error) {
	members, err := readTar(ctx, in)
	if err != nil {
		return nil, err
	}
	var descriptors []*input
	for _, m := range members {
		if strings.EqualFold(filepath.Ext(m.name), ".ovf") {
			descriptors = append(descriptors, m)
		}
	}
	switch len(descriptors) {
	case 0:
		disk, err := pick(in, o.ArchiveDisk, members, "file")
		if err != nil {
			return nil, err
		}
		return disk.within("tar"), nil
	case 1:
	default:
		return nil, in.bad("", "it is an archive with %d OVF descriptors, which is not allowed", len(descriptors))
	}
	p := ovfPackage{in: in, desc: descriptors[0], kind: "OVA", open: func(name string) (*input, error) {
		for _, m := range members {
			if m.name == name {
				return m, nil
			}
		}
		return nil, nil
	}}
	return p.disk(ctx, d, o)
}

// openOVF takes the disk from beside an OVF descriptor.
func (d *Disk) openOVF(ctx context.Context, in *input, o OpenOptions) (*input, error) {
	if in.dir == "" {
		return nil, in.bad("", "it is an OVF descriptor within an archive")
	}
	c := chain{d: d}
	p := ovfPackage{in: in, desc: in, kind: "OVF", open: func(name string) (*input, error) {
		file, _, err := c.openNamed(in, &format{}, "file", []string{name}, nil)
		var refused *RefusedError
		if errors.As(err, &refused) && refused.missing {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		out := file.input()
		out.wrapped, out.member = in.wrapped, name
		return out, nil
	}}
	return p.disk(ctx, d, o)
}

// readTar lists the files of an archive. Whatever an extracting tool could be tricked with is
// refused here, too: an honest archive of a disk has none of it.
func readTar(ctx context.Context, in *input) ([]*input, error) {
	src := io.NewSectionReader(in.r, 0, in.size)
	t := tar.NewReader(src)
	var members []*input
	seen := make(map[string]bool)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			if isPlainError(err) {
				return nil, fmt.Errorf("read %q: %w", in.label, err)
			}
			refused := in.bad("", "the archive is damaged or cut: %v", err)
			refused.Err = err
			return nil, refused
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name := strings.TrimPrefix(h.Name, "./")
		if h.Typeflag == tar.TypeDir && name == "" {
			continue
		}
		if err := checkPlainName(name); err != nil {
			return nil, in.bad("", "its member %q %v", h.Name, err)
		}
		if h.Typeflag != tar.TypeReg || isSparse(h) {
			return nil, in.bad("", "its member %q is of the kind %q, not a plain file", name, h.Typeflag)
		}
		if seen[name] {
			return nil, in.bad("", "it has two members called %q", name)
		}
		if len(members) == maxMembers {
			return nil, in.bad("", "it has more than %d members", maxMembers)
		}
		seen[name] = true
		// The reader has read up to the member's data and no further.
		off, err := src.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if h.Size > in.size-off {
			return nil, in.bad("", "its member %q of %d bytes at %d ends outside of the file of %d bytes; it is truncated",
				name, h.Size, off, in.size)
		}
		members = append(members, in.section(name, off, h.Size))
	}
	return members, checkTarEnd(in, src)
}

// checkTarEnd wants the archive to end as one, with two blocks of zeros.
func checkTarEnd(in *input, src *io.SectionReader) error {
	const block = 512
	off, err := src.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	var end [2 * block]byte
	off -= int64(len(end))
	if off >= 0 && off+int64(len(end)) <= in.size {
		if err := readFull(in.r, end[:], off); err != nil {
			return fmt.Errorf("read %q: %w", in.label, err)
		}
		if end == [2 * block]byte{} {
			return nil
		}
	}
	return in.bad("", "the archive has no end; it is truncated")
}

// isSparse tells members whose data is not in one piece (GNU's sparse files).
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// disk returns the package's disk, after its files were checked.
func (p ovfPackage) disk(ctx context.Context, d *Disk, o OpenOptions) (*input, error) {
	if p.desc.size > maxOVFBytes {
		return nil, p.in.bad("", "its OVF descriptor has %d bytes, more than %d", p.desc.size, maxOVFBytes)
	}
	var desc ovf
	if err := xml.NewDecoder(io.NewSectionReader(p.desc.r, 0, p.desc.size)).Decode(&desc); err != nil {
		refused := p.in.bad("", "its OVF descriptor is damaged: %v", err)
		refused.Err = err
		return nil, refused
	}
	ref, err := p.choose(desc, o.ArchiveDisk)
	if err != nil {
		return nil, err
	}
	disk, err := p.open(ref.Href)
	if err != nil {
		return nil, err
	}
	if disk == nil {
		return nil, p.in.bad("", "the file %q that its OVF descriptor names as a disk is missing", ref.Href)
	}
	if ref.Size != "" {
		if n, err := strconv.ParseInt(ref.Size, 10, 64); err != nil || n != disk.size {
			return nil, p.in.bad("", "its file %q has %d bytes, but the OVF descriptor says %.100q", ref.Href, disk.size, ref.Size)
		}
	}
	if err := p.checkManifest(ctx, d, disk); err != nil {
		return nil, err
	}
	disk.disk = &ref.disk
	return disk.within(p.kind), nil
}

// choose returns the file of the disk that is meant.
func (p ovfPackage) choose(desc ovf, want string) (ovfFile, error) {
	var files []*input
	refs := make(map[string]ovfFile)
	for _, disk := range desc.Disks {
		if disk.FileRef == "" {
			continue // an empty disk, made when the machine is
		}
		i := slices.IndexFunc(desc.Files, func(f ovfFile) bool { return f.ID == disk.FileRef })
		if i < 0 {
			return ovfFile{}, p.in.bad("", "the disk %.100q in its OVF descriptor names the file %.100q, which is not listed",
				disk.ID, disk.FileRef)
		}
		f := desc.Files[i]
		f.disk = disk
		switch {
		case disk.ParentRef != "":
			return ovfFile{}, p.in.bad("", "the disk %.100q in its OVF descriptor is based on another disk", disk.ID)
		case f.ChunkSize != "":
			return ovfFile{}, p.in.bad("", "its file %.100q is in chunks, which are not joined", f.Href)
		case !slices.Contains([]string{"", "identity", "gzip"}, f.Compression):
			return ovfFile{}, p.in.bad("", "its file %.100q has the unknown compression %.100q", f.Href, f.Compression)
		}
		if err := checkPlainName(f.Href); err != nil {
			return ovfFile{}, p.in.bad("", "the file %.300q in its OVF descriptor %v", f.Href, err)
		}
		if _, twice := refs[f.Href]; !twice {
			files = append(files, &input{name: f.Href})
			refs[f.Href] = f
		}
	}
	picked, err := pick(p.in, want, files, "disk")
	if err != nil {
		return ovfFile{}, err
	}
	return refs[picked.name], nil
}

// pick returns the candidate of the name, or the only one if no name is given.
func pick(in *input, want string, from []*input, what string) (*input, error) {
	var names []string
	for _, f := range from {
		if f.name == want || want == "" && len(from) == 1 {
			return f, nil
		}
		if len(names) < maxListed {
			names = append(names, f.name)
		}
	}
	if len(from) == 0 {
		return nil, in.bad("", "it is an archive without a %s", what)
	}
	list := strings.TrimSpace(strings.ReplaceAll(quoted(names), " or", ","))
	refused := in.bad("", "it has %d %ss: %s", len(from), what, list)
	if want != "" {
		refused = in.bad("", "it has no %s %q, but %s", what, want, list)
	}
	refused.Need, refused.Remedy = NeedDisk, "name the one to take"
	return nil, refused
}

// checkManifest holds the descriptor and the disk against the package's manifest (DSP0243, 5.1).
func (p ovfPackage) checkManifest(ctx context.Context, d *Disk, disk *input) error {
	name := strings.TrimSuffix(p.desc.name, filepath.Ext(p.desc.name)) + ".mf"
	m, err := p.open(name)
	if err != nil {
		return err
	}
	if m == nil {
		d.warn("%s: the package has no manifest, so that its files could not be checked", p.in.label)
		return nil
	}
	if m.size > maxManifestBytes {
		return p.in.bad("", "its manifest has %d bytes, more than %d", m.size, maxManifestBytes)
	}
	text, err := io.ReadAll(io.NewSectionReader(m.r, 0, m.size))
	if err != nil {
		return fmt.Errorf("read %q: %w", m.label, err)
	}
	sums, err := parseManifest(string(text))
	if err != nil {
		return p.in.bad("", "its manifest is damaged: %v", err)
	}
	for _, f := range []*input{p.desc, disk} {
		sum, ok := sums[f.name]
		if !ok {
			d.warn("%s: the manifest says nothing of %q", p.in.label, f.name)
			continue
		}
		h := sum.hash()
		if err := copyContext(ctx, h, io.NewSectionReader(f.r, 0, f.size)); err != nil {
			return fmt.Errorf("read %q: %w", f.label, err)
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != sum.hex {
			return p.in.bad("", "its file %q has the %s %s, but the manifest says %s", f.name, sum.name, got, sum.hex)
		}
	}
	return nil
}

// digest is a line of a manifest.
type digest struct {
	name string
	hash func() hash.Hash
	hex  string
}

var digests = []digest{{name: "SHA1", hash: sha1.New}, {name: "SHA256", hash: sha256.New}, {name: "SHA512", hash: sha512.New}}

// parseManifest reads lines of the form `SHA256(disk.vmdk)= 01ab...`.
func parseManifest(text string) (map[string]digest, error) {
	sums := make(map[string]digest)
	for number, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		algorithm, rest, ok := strings.Cut(line, "(")
		end := strings.LastIndex(rest, ")")
		if !ok || end < 0 {
			return nil, fmt.Errorf("line %d, %.100q, is no digest", number+1, line)
		}
		name, rest := rest[:end], strings.TrimSpace(rest[end+1:])
		value, ok := strings.CutPrefix(rest, "=")
		algorithm = strings.ToUpper(strings.ReplaceAll(strings.TrimSpace(algorithm), "-", ""))
		i := slices.IndexFunc(digests, func(d digest) bool { return d.name == algorithm })
		if !ok || i < 0 {
			return nil, fmt.Errorf("line %d, %.100q, is no digest of a known kind", number+1, line)
		}
		sum := digests[i]
		sum.hex = strings.ToLower(strings.TrimSpace(value))
		if len(sum.hex) != 2*sum.hash().Size() {
			return nil, fmt.Errorf("line %d, %.100q, has a digest of the wrong length", number+1, line)
		}
		if old, twice := sums[name]; twice && (old.name != sum.name || old.hex != sum.hex) {
			return nil, fmt.Errorf("it has several digests of %q", name)
		}
		sums[name] = sum
	}
	return sums, nil
}

// copyContext copies all of r to w, or fails when ctx ends.
func copyContext(ctx context.Context, w io.Writer, r io.Reader) error {
	buf := make([]byte, scratchChunk)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if _, werr := w.Write(buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
