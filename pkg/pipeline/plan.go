// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
)

// MarkerKey is the key of the tag that marks an image with the run that made it. A lost answer to
// the import call is cleared up by looking for it, so that no second image is made.
const MarkerKey = "imsprep-run"

// maxTags is how many tags an image can have (IMS API, tags).
const maxTags = 10

// Request is what a user wants imported.
type Request struct {
	Source string              // path of the disk
	Open   convert.OpenOptions // how to open it

	Bucket string // where the object goes; same region as IMS
	Key    string // the object's key, ending as the format wants; "" makes one from the source's name
	// AddEnding gives a Key the ending that the format wants, unless it has that of some format.
	AddEnding bool

	Format           Format // "" is FormatAuto
	CompressionLevel int    // of ZVHD2, 0 = its default

	// Image says what the image is to be. ImageURL and MarkerTag are filled in by the plan; a
	// MinDisk of 0 becomes the smallest that fits.
	Image      ims.QuickImport
	Generation ims.Generation
	// ImportPath is the service's call to use, "" is PathAuto; Extras are what only some of them offer.
	ImportPath Path
	Extras     Extras

	Layout            bitmap.Layout // of RAW's bitmap; without a name the default one
	ConfirmedLayouts  []string      // layouts known to be right on this cloud
	AcceptUnconfirmed bool          // use an unconfirmed layout all the same
	// MakeBitmap, if not nil, makes the bitmap of RAW instead of a layout, before byte one: it is what
	// the service's own tool says, and so right by construction. It may read the disk a second time.
	MakeBitmap func(ctx context.Context, disk *convert.Disk) ([]byte, error)

	ZeroCopy  obs.ZeroCopyMode
	KeepZeros bool  // leave the zero object for other uploads
	PartSize  int64 // bytes; 0 lets the plan decide
	// MinWorkers and Workers are how many parts are in flight at least and at most; 0 are the usual bounds.
	MinWorkers, Workers int
	Memory              int64 // bytes of part buffers, see obs.PlanOptions.MemoryBudget; 0 is its default
	Overwrite           bool  // replace an object of the same key

	// Reuse names a RAW object of an earlier upload; what hasn't changed since is copied from it.
	Reuse ObjectName

	Verify bool // read the object back before the import, or at an upload's end
	SHA256 bool // compute the plain SHA-256 of the disk, too, in a second, sequential reading

	// AllowDuplicateName imports although an image of that name exists.
	AllowDuplicateName bool
	// KeepObject leaves the object and its bitmap in the bucket after a successful import.
	KeepObject bool
	// NoWait returns as soon as the service has accepted the import.
	NoWait bool
	Wait   ims.WaitOptions

	// StateDir is the folder of the journals from which a later run goes on; "" keeps none. It is made
	// when it doesn't exist. When it can't be used, the plan warns of that and keeps none.
	StateDir string
	// State, if not nil, is where journals go instead, so that runs on other machines go on from them. The
	// journal is then named by the source's base name, the image's name and the target. When the bucket
	// can't be used, planning fails.
	State *StatePlace
	// Restart begins anew and removes what an earlier run has left in the bucket.
	Restart bool

	// Offline leaves out every question to the clouds; such a plan is only good to be looked at.
	Offline bool
}

// Plan is an import that has been thought through. Close it: it holds the disk open.
type Plan struct {
	Request Request
	Disk    *convert.Disk // what is sent: the disk or, with AsIs, the file that it is in
	Source  convert.Info  // of the disk
	Path    Path          // never PathAuto; "" for an upload alone
	Why     string        // why that path
	Format  Format        // FormatRAW, FormatZVHD2 or, with AsIs, the file's own
	Reason  string        // why that format
	Parts   *obs.Plan     // of RAW; nil for ZVHD2, whose length isn't known beforehand
	Layout  bitmap.Layout // of RAW's bitmap
	RunID   string
	// Warnings are things to know that stop nothing.
	Warnings []string

	bitmap []byte // as Request.MakeBitmap made it
	choice choice
	ownKey bool // the object's key is made from the run's id

	journal *journal // nil for none
	begin   record   // what the journal begins with
	resume  *record  // of an earlier run, to go on with
	useless *record  // of an earlier run, to be removed
	// copied: the source may be a copy of the earlier run's, so that what that found in it counts only after
	// it has been read again.
	copied  bool
	reuse   *reusing // nil for none
	remains []string // ids of images that jobs of an earlier run began and failed at
}

// Close closes the disk, and lets other runs have the journal.
func (p *Plan) Close() error {
	p.journal.close()
	return p.Disk.Close()
}

// Resumes tells whether an earlier run of the same request is gone on with.
func (p *Plan) Resumes() bool { return p.resume != nil }

// Concurrency is how many parts are sent at the same time at least and at most, 0 when none are.
func (p *Plan) Concurrency() (low, high int) {
	switch {
	case p.choice.direct:
		return 0, 0
	case p.Parts != nil:
		return p.Parts.MinWorkers, p.Parts.Workers
	}
	return max(p.Request.MinWorkers, 1), cmp.Or(p.Request.Workers, obs.DefaultWorkers)
}

// keys are the objects that the plan makes.
func (p *Plan) keys() []string {
	switch {
	case p.choice.direct:
		return nil
	case p.choice.bitmap:
		return []string{p.Request.Key, BitmapKey(p.Request.Key)}
	}
	return []string{p.Request.Key}
}

// BitmapKey is where the bitmap of an object goes: the same folder and base name, with .mf (IMS user
// guide, importing with a bitmap file).
func BitmapKey(key string) string { return strings.TrimSuffix(key, path.Ext(key)) + ".mf" }

// DefaultKey makes an object key from a source's name: its base name with what a key can't hold
// replaced, the run's id, and the format's ending. Two runs never share a key, whatever their disks
// are called.
func DefaultKey(source, runID string, f Format) string {
	base := filepath.Base(source)
	base = strings.TrimSuffix(base, filepath.Ext(base))
	base = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '-'
	}, base)
	if base = strings.Trim(base, "-."); base == "" {
		base = "disk"
	}
	return base + "-" + runID + f.Ext()
}

// Plan opens the disk, plans the upload and checks everything that can be checked before a byte
// moves: the request's own rules, then the bucket, the operating system's name, the quota, and
// names already taken. The first problem ends it: a *convert.RefusedError for the disk, a
// *ims.ValidationError for the request, a *CheckError or the clients' own errors for the rest.
func (i *Importer) Plan(ctx context.Context, r Request) (*Plan, error) {
	if r.ImportPath == "" {
		r.ImportPath = PathAuto
	}
	p, err := i.planUpload(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := i.planImport(ctx, p); err != nil {
		return nil, errors.Join(p.journal.blame(ctx, err), p.Close())
	}
	return p, nil
}

// PlanUpload is [Importer.Plan] for an upload alone: the image's fields are not looked at.
func (i *Importer) PlanUpload(ctx context.Context, r Request) (*Plan, error) {
	r.ImportPath = ""
	p, err := i.planUpload(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := i.checkObject(ctx, p); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (i *Importer) planUpload(ctx context.Context, r Request) (_ *Plan, err error) {
	p := &Plan{Request: r, RunID: newRunID()}
	if err := p.open(ctx, i.IMS == nil || i.IMS.SignsRequests()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	p.Warnings = slices.Concat(p.Source.Warnings, p.choice.warnings)
	if p.choice.direct {
		return p, nil
	}
	if p.Request.Bucket == "" {
		return nil, &CheckError{What: "no bucket is named, and this goes through one", Remedy: "Give --bucket, or set IMSPREP_BUCKET.", Usage: true}
	}
	if err := obs.ValidateBucket(r.Bucket, false); err != nil {
		return nil, err
	}
	if ext := path.Ext(p.Request.Key); r.AddEnding && p.Request.Key != "" && ext != FormatRAW.Ext() && ext != FormatZVHD2.Ext() {
		p.Request.Key += p.Format.Ext()
	}
	if err := i.openJournal(ctx, p); err != nil {
		return nil, err
	}
	if err := obs.ValidateKey(p.Request.Key); err != nil {
		return nil, err
	}
	if path.Ext(p.Request.Key) != p.Format.Ext() {
		return nil, &CheckError{
			What:   fmt.Sprintf("the object's key %q doesn't end in %s", p.Request.Key, p.Format.Ext()),
			Remedy: "The service tells an object's format by its name: choose a key that ends so, or another --format.",
			Usage:  true,
		}
	}
	if err := i.planReuse(ctx, p); err != nil {
		return nil, err
	}
	if p.Format != FormatZVHD2 || p.choice.asIs {
		block, part := int64(convert.Grain), r.PartSize // a scanner reads no smaller units
		if p.reuse != nil {
			block, part = convert.DigestBlock, cmp.Or(r.PartSize, reusePartSize)
		}
		p.Parts, err = obs.NewPlan(p.Disk.Size(), obsExtents(ctx, p.Disk), obs.PlanOptions{
			BlockSize:  block,
			PartSize:   part,
			Workers:    r.Workers,
			MinWorkers: r.MinWorkers,
			ZeroCopy:   r.ZeroCopy,

			MemoryBudget: r.Memory,
		})
		if err != nil {
			return nil, err
		}
		if got := p.Parts.Workers; got < r.Workers && got < len(p.Parts.Parts) {
			w := fmt.Sprintf("%d parts at a time were asked for; as they have up to %d MiB, the memory has room for %d", r.Workers, p.Parts.Buffer>>20, got)
			if p.Parts.PartSize > obs.MinPartSize {
				w += ": a smaller --part-size allows for more"
			}
			p.Warnings = append(p.Warnings, w)
		}
		if why := scattered(p.Parts.Summary()); why != "" && !p.choice.asIs {
			p.Warnings = append(p.Warnings, why)
		}
	}
	return p, nil
}

// manyRequests are those of a plan that spends its time on asking instead of sending. A full disk of 1 TiB takes
// 10,000.
const manyRequests = 50_000

// scattered says so where RAW takes a great many requests because there is a little data in a great many places,
// "" elsewhere.
func scattered(s obs.PlanSummary) string {
	if s.Requests < manyRequests {
		return ""
	}
	return fmt.Sprintf("the disk's data lies scattered: as RAW it takes about %d requests; --format zvhd2 sends it in a few", s.Requests)
}

// makeBitmap has the bitmap made by the user's own tool, if there is one.
func (p *Plan) makeBitmap(ctx context.Context) (err error) {
	if p.choice.bitmap && p.Request.MakeBitmap != nil {
		p.bitmap, err = p.Request.MakeBitmap(ctx, p.Disk)
	}
	return err
}

// planImport completes the image's fields and checks them, here and at the service.
func (i *Importer) planImport(ctx context.Context, p *Plan) error {
	size := p.Source.VirtualSize
	if most := p.maxVirtualSize(); size > most {
		return &CheckError{
			What:   fmt.Sprintf("the disk's virtual size is %d bytes; a %s import takes %d TB (%d bytes) at most", size, p.Path, most>>40, most),
			Remedy: "Shrink the disk, or move data to a second one and import it as a data disk.",
		}
	}
	img := &p.Request.Image
	img.Tags = slices.Clone(img.Tags)
	img.ImageURL = ims.ImageURL(p.Request.Bucket, p.Request.Key)
	if img.MinDisk == 0 {
		img.MinDisk = p.minDisk()
	} else if int64(img.MinDisk)<<30 < size {
		return &CheckError{
			What:   fmt.Sprintf("min_disk is %d GB, but the disk needs %d", img.MinDisk, gibibytes(size)),
			Remedy: "Leave --min-disk out to get the smallest that fits.",
			Usage:  true,
		}
	}
	if len(img.Tags) < maxTags {
		img.MarkerTag = ims.Tag{Key: MarkerKey, Value: p.marker()}
	} else {
		p.Warnings = append(p.Warnings, fmt.Sprintf("with %d tags there is no room for the tag %s: if the answer to the "+
			"import call is lost, the image can only be looked for by name", len(img.Tags), MarkerKey))
	}
	if err := p.validateImage(); err != nil {
		return err
	}
	p.Warnings = append(p.Warnings, img.Warnings()...)
	if p.Request.Offline {
		if img.Type == ims.TypeDataImage || img.OSVersion == "" {
			return nil
		}
		// Lists of other days and clouds can't refuse a name, but they know most.
		if err := checkOSVersion(img.OSVersion, ims.StaticOSVersions()); err != nil {
			p.Warnings = append(p.Warnings, fmt.Sprintf("%q is in no public list of operating systems; the region's own list decides", img.OSVersion))
		}
		return nil
	}
	if p.resume != nil && p.resume.Import.open() {
		return nil // the service may have made the image already
	}
	if err := i.checkObject(ctx, p); err != nil {
		return err
	}
	return i.checkService(ctx, p)
}

// checkObject asks object storage what could go wrong with the upload.
func (i *Importer) checkObject(ctx context.Context, p *Plan) error {
	if p.Request.Offline || p.choice.direct {
		return nil
	}
	bucket := p.Request.Bucket
	info, err := i.OBS.CheckBucket(ctx, bucket)
	if err != nil {
		return err
	}
	switch {
	case info.Region != "" && info.Region != i.Region:
		return &CheckError{
			What:   fmt.Sprintf("the bucket %q is in region %q, not in %q", bucket, info.Region, i.Region),
			Remedy: "The service imports only from its own region: use a bucket there, or another --region.",
			Usage:  true,
		}
	case info.ParallelFileSystem:
		return &CheckError{
			What:   fmt.Sprintf("%q is a parallel file system, not an object bucket", bucket),
			Remedy: "Use an ordinary bucket of class Standard.",
			Usage:  true,
		}
	case info.StorageClass != "" && !strings.EqualFold(info.StorageClass, "STANDARD"):
		return &CheckError{
			What:   fmt.Sprintf("the bucket %q has the storage class %s", bucket, info.StorageClass),
			Remedy: "The service imports only from buckets of class Standard.",
			Usage:  true,
		}
	}
	if p.Request.Overwrite {
		return nil
	}
	for _, k := range p.keys() {
		info, err := i.OBS.Stat(ctx, bucket, k)
		var oe *obs.Error
		switch {
		case errors.As(err, &oe) && oe.Kind == obs.KindNotFound:
		case err != nil:
			return err
		case p.ofEarlierRun(info.Metadata[obs.RunIDMetadata]):
		default:
			return &CheckError{
				What:   fmt.Sprintf("obs://%s/%s exists", bucket, k),
				Remedy: "Choose another key, or give --overwrite to replace it.",
			}
		}
	}
	return nil
}

// checkService asks IMS what could make the import fail when all has been uploaded. A question that
// a cloud doesn't answer is left out with a warning; one that fails for lack of rights is not.
func (i *Importer) checkService(ctx context.Context, p *Plan) error {
	img := &p.Request.Image
	skip := func(what string, err error) error {
		switch ims.KindOf(err) {
		case ims.KindNotFound, ims.KindUnsupported, ims.KindPermission:
			p.Warnings = append(p.Warnings, fmt.Sprintf("%s could not be checked: %v", what, err))
			return nil
		}
		return err
	}
	if img.Type != ims.TypeDataImage && img.OSVersion != "" {
		list, err := i.IMS.OSVersions(ctx)
		if err != nil {
			if err := skip("the operating system's name", err); err != nil {
				return err
			}
		} else if err := checkOSVersion(img.OSVersion, list); err != nil {
			return err
		}
	}
	used, quota, err := i.IMS.Quota(ctx)
	if err != nil {
		if err := skip("the image quota", err); err != nil {
			return err
		}
	} else if quota > 0 && used >= quota {
		return &CheckError{
			What:   fmt.Sprintf("the quota of private images is used up: %d of %d", used, quota),
			Remedy: "Delete images that are no longer needed, or ask for a larger quota.",
		}
	}
	if p.Request.AllowDuplicateName {
		return nil
	}
	same, err := i.IMS.ListImages(ctx, ims.ImageFilter{Name: img.Name, ImageType: "private"})
	if err != nil {
		return skip("whether the image's name is taken", err)
	}
	// What an earlier try of the same import left goes before the next.
	same = slices.DeleteFunc(same, func(image ims.Image) bool {
		failed := image.Status == ims.ImageKilled && p.isMarked(&image)
		if failed {
			p.remains = append(p.remains, image.ID)
		}
		return failed
	})
	if len(same) > 0 {
		return &CheckError{
			What:   fmt.Sprintf("an image named %q exists: %s", img.Name, same[0].ID),
			Remedy: "Choose another --name, or give --allow-duplicate-name where the cloud permits it.",
		}
	}
	return nil
}

func checkOSVersion(want string, list []ims.OSVersion) error {
	if len(list) == 0 {
		return nil
	}
	for _, v := range list {
		if v.Key == want || v.Version == want {
			return nil
		}
	}
	e := &CheckError{
		What:   fmt.Sprintf("this region knows no operating system %q", want),
		Remedy: "The name must match exactly.",
		Usage:  true,
	}
	if near := ims.NearestOSVersions(want, list, 3); len(near) > 0 {
		e.Remedy += " Nearest:\n    " + strings.Join(near, "\n    ")
	}
	return e
}

// gibibytes is a size in whole GiB, rounded up.
func gibibytes(size int64) int {
	g := size >> 30
	if size&(1<<30-1) != 0 {
		g++
	}
	return int(g)
}

// MinDisk is the smallest min_disk, in GB, for a disk of size bytes: the disk's own size rounded up,
// and not below what newer documentation asks for a system disk (Linux 10, Windows 20) and a data
// disk (10).
func MinDisk(size int64, imageType, osVersion string) int {
	least := 10
	if imageType != ims.TypeDataImage && strings.HasPrefix(osVersion, "Windows") {
		least = 20
	}
	return max(least, gibibytes(size))
}

// newRunID is a short random name of one run.
func newRunID() string {
	var b [6]byte
	rand.Read(b[:]) // never fails (crypto/rand since Go 1.24)
	return hex.EncodeToString(b[:])
}
