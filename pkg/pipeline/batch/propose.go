// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sync/errgroup"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/pipeline"
)

const (
	// maxFiles bounds what is looked at in folders.
	maxFiles = 100_000
	// lookAtOnce is how many disks are opened at the same time.
	lookAtOnce = 4
)

// ProposeOptions say what a plan is to be made of.
type ProposeOptions struct {
	// Paths are folders, which are looked through, disks, and lists of disks (.csv).
	Paths []string
	// Defaults are written into the plan; those that say how to open disks also hold for looking at them.
	Defaults Settings
	Limits   Limits
	Name     string
	// Looking is told which file is looked at, one call at a time.
	Looking func(path string)
}

// Proposal is a plan to be edited, with what is to be said about it.
type Proposal struct {
	Plan    *Plan // settings are only those of the images themselves
	Ignored []Ignored
	// notes are comments on each image.
	notes [][]string
}

// Ignored is a file that is no entry of its own.
type Ignored struct {
	Path string `json:"path"`
	Why  string `json:"why"`
}

// candidate is a file that may be a disk, and what was found out about it.
type candidate struct {
	path   string
	given  bool   // by name, not found in a folder
	entry  *Image // of a list
	found  []finding
	err    error // why it isn't imported as it is
	claims []claim
}

// finding is a disk that was opened.
type finding struct {
	disk    convert.PackageDisk // of a package
	info    convert.Info
	err     error
	several bool
}

// claim says of another file what it is there for.
type claim struct {
	path, why string
	always    bool // also when the claiming file turns out to be bad
}

// Propose looks at disks and makes a plan of them. Disks that would be refused are in it, with the reason;
// an error is a path that can't be read, or a list that is wrong.
func Propose(ctx context.Context, o ProposeOptions) (*Proposal, error) {
	p := &proposer{ProposeOptions: o, seen: map[string]bool{}, machines: map[string]vmxDisk{}}
	for _, path := range o.Paths {
		if err := p.gather(path); err != nil {
			return nil, err
		}
	}
	if err := p.look(ctx); err != nil {
		return nil, err
	}
	return p.propose(), nil
}

type proposer struct {
	ProposeOptions
	list     []*candidate
	seen     map[string]bool
	ignored  []Ignored
	machines map[string]vmxDisk // by the path of the disk
}

func (p *proposer) ignore(path, format string, args ...any) {
	p.ignored = append(p.ignored, Ignored{path, fmt.Sprintf(format, args...)})
}

// gather lists the candidates of one argument.
func (p *proposer) gather(path string) error {
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case fi.IsDir():
		return p.walk(path)
	case strings.EqualFold(filepath.Ext(path), ".csv"):
		images, err := LoadCSV(path)
		if err != nil {
			return err
		}
		for n := range images {
			p.list = append(p.list, &candidate{path: images[n].Source, given: true, entry: &images[n]})
		}
		return nil
	case strings.EqualFold(filepath.Ext(path), ".vmx"):
		return p.readVMX(path, true)
	}
	p.add(path, true)
	return nil
}

// add lists a file once, whatever names it is given by.
func (p *proposer) add(path string, given bool) {
	key := path
	if abs, err := filepath.Abs(path); err == nil {
		key = abs
	}
	if real, err := filepath.EvalSymlinks(key); err == nil {
		key = real
	}
	if !p.seen[key] {
		p.seen[key] = true
		p.list = append(p.list, &candidate{path: filepath.Clean(path), given: given})
	}
}

// walk lists what may be disks in a folder and those below it.
func (p *proposer) walk(root string) error {
	n := 0
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		hidden := strings.HasPrefix(d.Name(), ".") && path != root
		switch {
		case err != nil && path == root:
			return err
		case err != nil:
			p.ignore(path, "it can't be read: %v", err)
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir() && (hidden || strings.HasSuffix(d.Name(), ".lck")):
			return fs.SkipDir
		case d.IsDir() || hidden:
			return nil
		}
		if n++; n > maxFiles {
			return &pipeline.CheckError{What: fmt.Sprintf("%s has more than %d files", root, maxFiles), Remedy: "Name the folders with the disks.", Usage: true}
		}
		ext := strings.ToLower(filepath.Ext(path))
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			p.ignore(path, "it is a link; name it to have it looked at")
		case !d.Type().IsRegular():
			p.ignore(path, "it isn't a file")
		case ext == ".vmx":
			return p.readVMX(path, false)
		case ext == ".iso":
			p.ignore(path, "it is an installation medium by its name; name it to have it looked at")
		case slices.Contains(companions, ext):
		case ctkFile.MatchString(path):
			p.ignore(path, "it tracks the changes of a disk")
		default:
			p.add(path, false)
		}
		return nil
	})
}

// companions are endings of files that lie beside disks and are none.
var companions = []string{
	".asc", ".cert", ".cfg", ".conf", ".csv", ".htm", ".html", ".ini", ".json", ".log", ".md", ".md5", ".mf", ".nvram", ".pdf", ".sha1",
	".sha256", ".sha512", ".sig", ".sum", ".txt", ".vbox", ".vbox-prev", ".vmcx", ".vmem", ".vmgs", ".vmrs", ".vmsd", ".vmsn", ".vmss",
	".vmxf", ".vswp", ".xml", ".yaml", ".yml",
}

var (
	diskEndings = []string{
		".bin", ".box", ".img", ".iso", ".ova", ".ovf", ".qcow", ".qcow2", ".qed", ".raw", ".vdi", ".vhd", ".vhdx", ".vmdk", ".zvhd", ".zvhd2",
	}
	packedEndings = []string{".bz2", ".gz", ".xz", ".zst"}
	// extentFile is how VMware's tools call the files that a disk's data is in.
	extentFile = regexp.MustCompile(`(?i)^(.+)-(?:[sf]\d{3}|flat|delta|sesparse|rdm|rdmp)\.vmdk$`)
	ctkFile    = regexp.MustCompile(`(?i)-ctk\.vmdk$`)
)

// looksLikeDisk goes by the name.
func looksLikeDisk(path string) bool {
	ext := strings.ToLower(filepath.Ext(path))
	if slices.Contains(packedEndings, ext) {
		ext = strings.ToLower(filepath.Ext(strings.TrimSuffix(path, filepath.Ext(path))))
	}
	return slices.Contains(diskEndings, ext)
}

// look opens all candidates.
func (p *proposer) look(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(lookAtOnce)
	for _, c := range p.list {
		if p.Looking != nil {
			p.Looking(c.path)
		}
		g.Go(func() error {
			p.lookAt(ctx, c)
			return ctx.Err()
		})
		if ctx.Err() != nil {
			break
		}
	}
	return g.Wait()
}

func (p *proposer) options(e *Image) convert.OpenOptions {
	s := p.Defaults
	o := convert.OpenOptions{AllowBacking: isSet(s.AllowBacking), BackingDirs: s.BackingDirs, Force: isSet(s.Force), Format: s.FormatIn,
		ScratchDir: s.Scratch, OriginalSize: isSet(s.OriginalSize), VHDSize: s.VHDSize}
	if e != nil {
		o.ArchiveDisk = e.OVADisk
		o.Format = cmp.Or(e.FormatIn, o.Format)
		o.AllowBacking = o.AllowBacking || isSet(e.AllowBacking)
		o.BackingDirs = slices.Concat(o.BackingDirs, e.BackingDirs)
		o.Force = o.Force || isSet(e.Force)
		o.ScratchDir = cmp.Or(e.Scratch, o.ScratchDir)
		o.OriginalSize = o.OriginalSize || isSet(e.OriginalSize)
		o.VHDSize = cmp.Or(e.VHDSize, o.VHDSize)
	}
	return o
}

// lookAt finds out what a candidate is.
func (p *proposer) lookAt(ctx context.Context, c *candidate) {
	o := p.options(c.entry)
	if !c.given && !looksLikeDisk(c.path) && strings.ToLower(filepath.Ext(c.path)) != ".tar" {
		// Only what shows by its content that it is a disk counts.
		if slices.Contains(packedEndings, strings.ToLower(filepath.Ext(c.path))) {
			c.err = errors.New("it is packed, and its name doesn't say that a disk is in it; name it to have it looked at")
			return
		}
	}
	dir := filepath.Dir(c.path)
	if c.entry == nil || c.entry.OVADisk == "" {
		pkg, err := convert.ReadPackage(ctx, c.path)
		if err != nil {
			c.err = err
			return
		}
		if pkg != nil && c.entry == nil {
			if pkg.Kind == "OVF" {
				for _, name := range pkg.Files {
					c.claims = append(c.claims, claim{filepath.Join(dir, filepath.FromSlash(name)), "it belongs to " + filepath.Base(c.path), true})
				}
			}
			for _, d := range pkg.Disks {
				if pkg.Kind == "tar" && !looksLikeDisk(d.Name) && len(pkg.Disks) > 1 {
					continue
				}
				o.ArchiveDisk = d.Name
				info, err := p.open(ctx, c, o)
				c.found = append(c.found, finding{disk: d, info: info, err: err, several: len(pkg.Disks) > 1})
			}
			if len(c.found) == 0 {
				c.err = fmt.Errorf("there is no disk in it")
			}
			return
		}
	}
	info, err := p.open(ctx, c, o)
	c.found = []finding{{info: info, err: err}}
}

// open opens a disk the way an import would. What a disk is based on is looked for even where following it
// isn't allowed, if it was the folder that was named: those files are no disks of their own.
func (p *proposer) open(ctx context.Context, c *candidate, o convert.OpenOptions) (convert.Info, error) {
	disk, err := convert.Open(ctx, c.path, o)
	var refused *convert.RefusedError
	why := err
	if errors.As(err, &refused) && refused.Need == convert.NeedBacking && !c.given {
		o.AllowBacking = true
		disk, err = convert.Open(ctx, c.path, o)
	}
	if err != nil {
		return convert.Info{}, err // what is missing is more than that it isn't allowed
	}
	info := disk.Info()
	for _, path := range info.Extents {
		c.claims = append(c.claims, claim{path, "the data of " + filepath.Base(c.path) + " is in it", true})
	}
	for _, path := range info.Backing {
		c.claims = append(c.claims, claim{path, filepath.Base(c.path) + " is based on it", true})
	}
	return info, errors.Join(why, disk.Close())
}

// propose makes the entries.
func (p *proposer) propose() *Proposal {
	claimed := map[string]string{}
	there := map[string]bool{}
	for _, c := range p.list {
		there[c.path] = true
		for _, cl := range c.claims {
			if path := filepath.Clean(cl.path); path != c.path && claimed[path] == "" {
				claimed[path] = cl.why
			}
		}
	}
	for _, c := range p.list {
		// A descriptor that can't be read doesn't say which files are its own; their names do.
		if m := extentFile.FindStringSubmatch(c.path); m != nil && claimed[c.path] == "" && there[m[1]+".vmdk"] {
			claimed[c.path] = "by its name it belongs to " + filepath.Base(m[1]) + ".vmdk"
		}
	}
	b := &builder{proposer: p}
	for _, c := range p.list {
		switch why := claimed[c.path]; {
		case why != "" && c.entry == nil:
			p.ignore(c.path, "%s", why)
		case c.err != nil && (c.given || looksLikeDisk(c.path)):
			b.add(c, finding{err: c.err}, nil)
		case c.err != nil:
			p.ignore(c.path, "%v", c.err)
		default:
			b.addAll(c)
		}
	}
	b.order()
	b.name()
	slices.SortFunc(p.ignored, func(a, b Ignored) int { return strings.Compare(a.Path, b.Path) })
	out := &Proposal{Plan: &Plan{Version: Version, Name: p.Name, Limits: p.Limits, Defaults: Defaults{p.Defaults}}, Ignored: p.ignored}
	for _, d := range b.drafts {
		out.Plan.Images, out.notes = append(out.Plan.Images, d.Image), append(out.notes, d.notes)
	}
	return out
}

// builder turns findings into entries.
type builder struct {
	*proposer
	drafts []*draft
}

// draft is an entry that has no name yet.
type draft struct {
	Image
	notes  []string
	want   string // the name that it would like
	folder string // the name of its folder, for names that clash
	within string // the folder or package that its machine is in
}

// order puts the disks of a machine together, its system disk first.
func (b *builder) order() {
	first := map[string]int{}
	place := map[*draft]int{}
	for n, d := range b.drafts {
		place[d] = n
		if d.Machine != "" {
			key := d.Machine + "\x00" + d.within
			if _, ok := first[key]; !ok {
				first[key] = n
			}
			place[d] = first[key]
		}
	}
	slices.SortStableFunc(b.drafts, func(x, y *draft) int {
		rank := func(d *draft) int {
			if d.Machine != "" && d.Type == TypeData {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(place[x], place[y]), cmp.Compare(rank(x), rank(y)))
	})
}

// addAll adds the disks of a candidate; those of one system are one machine.
func (b *builder) addAll(c *candidate) {
	machine, data := map[string]string{}, map[string]int{}
	size := map[string]int{}
	for _, f := range c.found {
		size[f.disk.System]++
	}
	for _, f := range c.found {
		var refused *convert.RefusedError
		if f.err != nil && !c.given && !looksLikeDisk(c.path) && !f.several {
			why := f.err.Error()
			if errors.As(f.err, &refused) {
				if why = refused.Reason; refused.Need == convert.NeedFormat {
					why = "it isn't a disk of a known format, and its name doesn't say RAW"
				}
			}
			b.ignore(c.path, "%s", why)
			continue
		}
		var of *member
		if system := f.disk.System; system != "" && size[system] > 1 {
			if machine[system] == "" {
				machine[system] = tagText(system)
			}
			of = &member{machine: machine[system], number: data[system]}
			data[system]++
		} else if f.disk.System != "" {
			of = &member{want: f.disk.System}
		}
		b.add(c, f, of)
	}
}

// member is the place of a disk in a machine.
type member struct {
	machine string
	number  int // 0 is the system disk
	want    string
}

func (b *builder) add(c *candidate, f finding, of *member) {
	i := Image{}
	if c.entry != nil {
		i = *c.entry
	}
	i.Source = c.path
	if f.several {
		i.OVADisk = f.disk.Name
	}
	want := stemOf(c.path)
	vmx, known := b.machines[c.path]
	switch {
	case of != nil && of.machine != "":
		i.Machine, want = of.machine, of.machine
		if of.number > 0 {
			i.Type, want = TypeData, fmt.Sprintf("%s-data-%d", of.machine, of.number)
		}
	case of != nil:
		want = of.want
	case f.several:
		want += "-" + stemOf(f.disk.Name)
	case known:
		if want = vmx.machine; vmx.of > 1 && i.Machine == "" {
			i.Machine = tagText(vmx.machine)
		}
		if vmx.number > 0 && i.Type == "" {
			i.Type, want = TypeData, fmt.Sprintf("%s-data-%d", vmx.machine, vmx.number)
		}
	}
	var notes []string
	if told := cmp.Or(f.disk.OS, vmx.os); told != "" && i.Type != TypeData {
		notes = append(notes, "its descriptor says that the system is: "+told)
	}
	notes = append(notes, f.info.Warnings...)
	i.VirtualSize, i.DataSize = Size(f.info.VirtualSize), Size(cmp.Or(f.info.MappedSize, f.info.DiskSize))
	if i.Refused == "" {
		i.Refused = b.refusal(&i, f)
	}
	typ := cmp.Or(i.Type, b.Defaults.Type, TypeSystem)
	if i.VirtualSize > 0 && i.MinDisk == 0 {
		imageType := ""
		if typ == TypeData {
			imageType = ims.TypeDataImage
		}
		i.MinDisk = pipeline.MinDisk(int64(i.VirtualSize), imageType, cmp.Or(i.OSVersion, b.Defaults.OSVersion))
		if i.MinDisk > ims.MaxMinDisk {
			i.MinDisk = 0
		}
	}
	if f.info.Format != "" {
		kind := f.info.Format
		if f.info.Variant != "" {
			kind += ", " + f.info.Variant
		}
		for _, w := range slices.Backward(f.info.Wrapped) {
			kind += ", in " + w
		}
		notes = append([]string{kind}, notes...)
	}
	d := &draft{Image: i, notes: notes, want: want, folder: filepath.Base(filepath.Dir(c.path)), within: filepath.Dir(c.path)}
	if i.OVADisk != "" {
		d.within = c.path
	}
	b.drafts = append(b.drafts, d)
}

// refusal says why a disk would be refused, with what the plan can do about it.
func (b *builder) refusal(i *Image, f finding) string {
	var refused *convert.RefusedError
	switch {
	case f.err == nil && f.info.VirtualSize > pipeline.MaxImageSize:
		return fmt.Sprintf("the disk has %v; a quick import takes 1 TB", Size(f.info.VirtualSize))
	case f.err == nil:
		return ""
	case !errors.As(f.err, &refused):
		return f.err.Error()
	}
	reason := refused.Reason
	if refused.Format != "" {
		reason = refused.Format + " image: " + reason
	}
	switch refused.Need {
	case convert.NeedBacking:
		return reason + "; write allow_backing: true if you trust it"
	case convert.NeedFormat:
		return reason + "; write format_in: raw if it is a plain disk"
	case convert.NeedForce:
		return reason + "; write force: true to read it as it is"
	case convert.NeedScratch:
		return reason + "; write scratch: FOLDER"
	case convert.NeedDisk:
		return reason + "; write ova_disk: NAME"
	case convert.NeedVHDSize:
		return reason + "; write vhd_size: current_size or chs"
	}
	if refused.Remedy != "" {
		reason += "; " + refused.Remedy
	}
	return reason
}

// name gives every entry a name of its own that the service takes.
func (b *builder) name() {
	taken, count := map[string]bool{}, map[string]int{}
	for _, d := range b.drafts {
		if d.Name != "" {
			taken[d.Name] = true
		}
		count[d.want]++
	}
	for _, d := range b.drafts {
		if d.Name != "" {
			continue
		}
		want := d.want
		if count[want] > 1 && d.Machine == "" && d.folder != "." && d.folder != string(filepath.Separator) {
			want = d.folder + "-" + want
		}
		d.Name = numbered(nameText(want), func(name string) bool { return !taken[name] })
		taken[d.Name] = true
	}
	// Machines of one name in different places are different ones.
	owner := map[string]string{}
	for _, d := range b.drafts {
		if d.Machine != "" {
			d.Machine = numbered(d.Machine, func(m string) bool { return owner[m] == "" || owner[m] == d.within })
			owner[d.Machine] = d.within
		}
	}
}

// numbered puts a number behind a text until it will do. The text leaves room for that.
func numbered(s string, free func(string) bool) string {
	out := s
	for k := 2; !free(out); k++ {
		out = fmt.Sprintf("%s-%d", s, k)
	}
	return out
}

// stemOf is a file's name without the endings of formats and compressions.
func stemOf(path string) string {
	base := filepath.Base(filepath.FromSlash(path))
	for range 3 {
		ext := strings.ToLower(filepath.Ext(base))
		if len(ext) == len(base) || !slices.Contains(diskEndings, ext) && !slices.Contains(packedEndings, ext) && ext != ".tar" {
			break
		}
		base = base[:len(base)-len(ext)]
	}
	return base
}

// nameText makes an image's name of a text that may be anything.
func nameText(s string) string {
	return plainText(s, ims.MaxNameLength-8, "disk", func(name string) bool { return ims.NameProblem(name) == "" })
}

// tagText makes a tag's value of it.
func tagText(s string) string {
	return plainText(s, ims.MaxTagValueLength-4, "machine", func(v string) bool { return ims.TagProblem(ims.Tag{Key: MachineTag, Value: v}) == "" })
}

func plainText(s string, most int, fallback string, ok func(string) bool) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == ' ' || r == unicode.ReplacementChar || !ok("x"+string(r)+"x") {
			return '-'
		}
		return r
	}, s)
	for strings.Contains(s, "--") {
		s = strings.ReplaceAll(s, "--", "-")
	}
	if r := []rune(s); len(r) > most {
		s = string(r[:most])
	}
	if s = strings.Trim(s, " -."); s == "" || !ok(s) {
		return fallback
	}
	return s
}
