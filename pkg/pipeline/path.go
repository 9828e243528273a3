// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims"
)

// Path is one of the service's ways from a file to an image.
type Path string

const (
	PathAuto   Path = "auto"   // what the image is to be decides
	PathQuick  Path = "quick"  // quick import: ZVHD2, or RAW with a bitmap; the service doesn't look into it
	PathCommon Path = "common" // common import: the service looks into the disk, converts and changes it
	PathData   Path = "data"   // data disk import: the same for a data disk
	PathNative Path = "native" // metadata first, then the file through the service or registered in the bucket
)

// Paths are the values of [Request.ImportPath].
func Paths() []Path { return []Path{PathAuto, PathQuick, PathCommon, PathData, PathNative} }

// formatISO stands for an installation medium, which isn't a disk and is sent as it is.
const formatISO = "iso"

// Extras are what only some of the paths offer.
type Extras struct {
	KMSKey         string // encrypt the image with this key
	Configure      bool   // let the service add drivers and change the disk's settings
	MinRAM, MaxRAM int    // MB of servers made of the image, 0 for no bound
}

// does says what an import must do for them, "" if any will do.
func (e Extras) does() string {
	switch {
	case e.KMSKey != "":
		return "encrypts images"
	case e.Configure:
		return "adds drivers"
	case e.MinRAM > 0 || e.MaxRAM > 0:
		return "bounds the memory"
	}
	return ""
}

// facts are what a choice of the path is made from.
type facts struct {
	format      string // as convert calls it, or formatISO
	fileSize    int64  // bytes
	virtualSize int64  // bytes
	mapped      int64  // bytes of the disk that the file may hold data for
	apart       string // why the file alone isn't the disk, "" if it is
	doubt       string // why the service might not read the file as it is
	signs       bool   // requests are signed with an access key, which limits their bodies
}

func factsOf(info convert.Info, signs bool) facts {
	f := facts{
		format: info.Format, fileSize: info.FileSize, virtualSize: info.VirtualSize, mapped: info.VirtualSize, signs: signs,
	}
	if info.MappedSize > 0 {
		f.mapped = min(f.mapped, info.MappedSize)
	}
	switch {
	case len(info.Wrapped) > 0:
		f.apart = "it is packed in " + strings.Join(info.Wrapped, ", ")
	case len(info.Backing) > 0:
		f.apart = "it is based on another file"
	case len(info.Extents) > 0:
		f.apart = "its data is in several files"
	}
	switch {
	case info.Format == convert.FormatVMDK:
		f.doubt = "the service wants a VMDK that VMware's tools exported from a machine, and may misread others"
	case info.Compression == "zstd":
		f.doubt = "whether the service reads QCOW2 with zstd compression isn't documented"
	case info.Format == convert.FormatQCOW2 && slices.Contains(info.Features, "extended L2 entries"):
		f.doubt = "whether the service reads QCOW2 with extended L2 entries isn't documented"
	}
	return f
}

// choice is a path with the object that it needs.
type choice struct {
	path      Path
	why       string
	format    Format
	formatWhy string
	asIs      bool // the file is sent, not the disk in it
	bitmap    bool // a bitmap stands beside the object
	inspect   bool // of the common import: the service looks into the disk; else it is a quick one
	direct    bool // of the native path: the file goes through the service, not through the bucket
	warnings  []string
}

// choosePath chooses the call by what the image is to be, its format and its size (IMS API, choosing the
// call, and the limits of the calls), or refuses the one that was asked for, with the rule.
func choosePath(r *Request, f facts) (c choice, err error) {
	data, iso := r.Image.Type == ims.TypeDataImage, f.format == formatISO
	extra := r.Extras.does()
	if c.path = r.ImportPath; c.path == "" {
		c.path = PathAuto
	}
	c.why = "asked for"
	if c.path == PathAuto {
		switch {
		case data && extra != "":
			c.path, c.why = PathData, "of the imports for data disks, only this one "+extra
		case data:
			c.path = PathQuick
		case iso:
			c.path, c.why = PathCommon, "only the common import takes an ISO"
		case extra != "":
			c.path, c.why = PathCommon, "only the common import "+extra
		default:
			c.path = PathQuick
		}
		if c.path == PathQuick {
			c.why = "it takes disks of up to 1 TB and doesn't convert them; the disk is converted here, as it is sent"
			if f.format == convert.FormatRAW || f.format == convert.FormatZVHD2 {
				c.why = "it takes disks of up to 1 TB, and the format " + f.format + " needs no conversion by the service"
			}
		}
	}
	if err := c.possible(r, f); err != nil {
		return c, err
	}
	if c.path == PathQuick {
		return c, nil // the object's format is chosen by chooseFormat
	}
	c.inspect = c.path == PathCommon
	if err := c.chooseObject(r, f); err != nil {
		return c, err
	}
	size, about := c.objectSize(f)
	if size > ims.MaxCommonSize {
		if c.path == PathCommon && r.Extras.KMSKey != "" && !r.Extras.Configure && !iso {
			// The one way for a large encrypted image that is documented, if not in every detail.
			c.asIs, c.inspect = false, false
			c.why = "an encrypted image above 128 GB needs the common import with is_quick_import"
			c.warnings = append(c.warnings, "that an image above 128 GB can be encrypted as it is imported isn't certain from the "+
				"service's documentation; if it refuses, import without --kms-key and then `imsprep image copy --kms-key`")
			return c, nil
		}
		return c, &CheckError{
			What:   fmt.Sprintf("the %s import takes files of up to 128 GB (%d bytes); this one has %s%d", c.path, int64(ims.MaxCommonSize), about, size),
			Remedy: "Use the quick import, which takes up to 1 TB (--import-path quick), without what only the others offer.",
			Usage:  true,
		}
	}
	if c.asIs && f.doubt != "" {
		c.warnings = append(c.warnings, f.doubt+"; with --format zvhd2 the disk is converted here")
	}
	if c.path == PathNative {
		c.chooseWay(size, f.signs)
	}
	return c, nil
}

// chooseWay says how the content of a native import gets to the service.
func (c *choice) chooseWay(size int64, signs bool) {
	switch {
	case !c.asIs:
		c.why += "; through the bucket, for the object is made as it is sent"
	case size >= ims.MaxNativeUpload:
		c.why += "; through the bucket, for the image service takes files below 2 GB only"
	case signs && size > ims.MaxSignedBody:
		c.why += "; through the bucket, for a request signed with an access key may carry 12 MB, and only one with a token (user and password) 2 GB"
	default:
		c.direct = true
		c.why += "; the file is small enough for a request to the image service"
	}
}

// possible tells what keeps a path from being taken.
func (c *choice) possible(r *Request, f facts) error {
	data, iso := r.Image.Type == ims.TypeDataImage, f.format == formatISO
	no := func(rule string) error {
		return &CheckError{What: fmt.Sprintf("the %s import can't be used: %s", c.path, rule), Usage: true,
			Remedy: "Leave --import-path out to have one chosen that can."}
	}
	switch extra := r.Extras.does(); c.path {
	case PathQuick:
		switch {
		case iso:
			return no("it takes disks, and this is an ISO")
		case extra != "":
			return no("it neither encrypts images nor adds drivers nor bounds the memory; the common import does (--import-path auto)")
		}
	case PathCommon:
		if data {
			return no("it takes system disks and ISOs, and this is to be a data disk")
		}
		if iso && r.Extras.Configure {
			return no("an ISO has no system that drivers could be added to")
		}
	case PathData:
		switch {
		case !data:
			return no("it takes data disks")
		case iso:
			return no("it takes disks, and this is an ISO")
		case r.Extras.Configure || r.Extras.MinRAM > 0 || r.Extras.MaxRAM > 0:
			return no("a data disk has no system that drivers or memory would be for")
		}
	case PathNative:
		switch {
		case data:
			return no("it makes system disks")
		case r.Extras.KMSKey != "" || r.Extras.Configure || r.Extras.MaxRAM > 0:
			return no("its images are neither encrypted nor configured, and have no max_ram")
		case r.Image.Architecture == "arm" || r.Image.LicenseType != "" || r.Image.EnterpriseProjectID != "" || r.Image.Type == ims.TypeBMS:
			return no("its metadata has no architecture, license, enterprise project and type")
		}
	default:
		return &CheckError{What: fmt.Sprintf("the import path %q isn't one of auto, quick, common, data, native", c.path), Usage: true}
	}
	if c.path != PathQuick && r.MakeBitmap != nil {
		return no("a bitmap is made for the quick import only")
	}
	return nil
}

// chooseObject decides what is sent for an import that converts: the file as it is, if the service reads
// its format and nothing of the disk is elsewhere, else the disk as ZVHD2.
func (c *choice) chooseObject(r *Request, f facts) error {
	known := f.format == formatISO || slices.Contains(ims.CommonFormats(), f.format)
	switch {
	case f.format == formatISO && (f.apart != "" || r.Format == FormatZVHD2 || r.Format == FormatRAW):
		return &CheckError{What: "an ISO is sent as it is: neither packed nor converted", Usage: true}
	case r.Format == FormatZVHD2 || r.Format == FormatRAW:
		c.format, c.formatWhy = r.Format, "asked for"
	case known && f.apart == "":
		c.format, c.formatWhy, c.asIs = Format(f.format), "the file as it is, for the service to convert", true
		if f.format == formatISO {
			c.formatWhy = "the file as it is"
		}
	case known:
		c.format, c.formatWhy = FormatZVHD2, "made here, for the file can't go as it is: "+f.apart
	default:
		c.format, c.formatWhy = FormatZVHD2, "made here, for the service doesn't read "+f.format
	}
	return nil
}

// objectSize is the object's size in bytes, with "up to " where that is only a bound.
func (c *choice) objectSize(f facts) (size int64, about string) {
	switch {
	case c.asIs:
		return f.fileSize, ""
	case c.format == FormatZVHD2:
		return convert.MaxZVHD2Size(f.mapped), "up to "
	}
	return f.virtualSize, ""
}

// open opens what the request names and decides about path, format and layout. The plan's disk is what
// will be sent; what the file holds is in Source.
func (p *Plan) open(ctx context.Context, signs bool) (err error) {
	r := &p.Request
	o := r.Open
	named := r.Image.Type == "" && strings.EqualFold(filepath.Ext(r.Source), ".iso")
	iso := r.ImportPath != "" && (r.Image.Type == ims.TypeISO || named)
	if iso {
		o.Format = convert.FormatRAW // to be read byte by byte
		r.Image.Type = ims.TypeISO
	}
	disk, err := convert.Open(ctx, r.Source, o)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, disk.Close())
		}
	}()
	p.Disk, p.Source = disk, disk.Info()
	if iso {
		if err := checkISO(disk); err != nil {
			return err
		}
		p.Source.Format = formatISO
	}
	if r.ImportPath != "" {
		if p.choice, err = choosePath(r, factsOf(p.Source, signs)); err != nil {
			return err
		}
		p.Path, p.Why = p.choice.path, p.choice.why
	}
	if p.Path == "" || p.Path == PathQuick || p.Path == PathCommon && !p.choice.inspect {
		p.Format, p.Reason, p.Layout, err = chooseFormat(r)
		p.choice.bitmap = p.Format == FormatRAW
		return err
	}
	p.Format, p.Reason = p.choice.format, p.choice.formatWhy
	if !p.choice.asIs || iso {
		return nil
	}
	// The disk was accepted; what is sent is the file, and it must be that same file.
	file, err := convert.Open(ctx, r.Source, convert.OpenOptions{Format: convert.FormatRAW, MaxVirtualSize: r.Open.MaxVirtualSize})
	if err != nil {
		return err
	}
	if err := errors.Join(disk.CheckUnchanged(), disk.Close()); err != nil {
		return errors.Join(err, file.Close())
	}
	disk, p.Disk = file, file
	return nil
}

// isoDescriptors is where an ISO 9660 or UDF medium has its first volume descriptor (ECMA-119, 6.2.1;
// ECMA-167, 2/8.3.1), in bytes; its identifier follows one byte later.
const isoDescriptors = 32 << 10

// checkISO refuses what isn't an installation medium, before the service does after the upload.
func checkISO(disk *convert.Disk) error {
	id := make([]byte, 5)
	if disk.Size() >= isoDescriptors+2048 {
		if _, err := disk.ReadAt(id, isoDescriptors+1); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	if s := string(id); s != "CD001" && s != "BEA01" {
		return &CheckError{
			What:   fmt.Sprintf("%s isn't an ISO: it has no volume descriptor at byte %d", disk.Info().Path, isoDescriptors),
			Remedy: "A disk is imported under another name than .iso, and without --type IsoImage.",
			Usage:  true,
		}
	}
	return nil
}

// HasBitmap tells whether a bitmap stands beside the object.
func (p *Plan) HasBitmap() bool { return p.choice.bitmap }

// AsIs tells whether the object is the source's file and not the disk in it.
func (p *Plan) AsIs() bool { return p.choice.asIs }

// Direct tells whether the file goes through the image service and not through the bucket.
func (p *Plan) Direct() bool { return p.choice.direct }

// leastMinDisk is what older documentation asks of the imports that convert, in GB.
const leastMinDisk = 40

// minDisk is the smallest min_disk for the plan's path, in GB.
func (p *Plan) minDisk() int {
	n := MinDisk(p.Source.VirtualSize, p.Request.Image.Type, p.Request.Image.OSVersion)
	if (p.Path == PathCommon && p.Request.Image.Type != ims.TypeISO) || p.Path == PathData {
		n = max(n, leastMinDisk)
	}
	return n
}

// maxVirtualSize is the largest disk that the plan's path takes, in bytes.
func (p *Plan) maxVirtualSize() int64 {
	if p.Path == PathData {
		return ims.MaxDataMinDisk << 30
	}
	return MaxImageSize
}

func (p *Plan) commonImport() *ims.CommonImport {
	img, x := &p.Request.Image, &p.Request.Extras
	return &ims.CommonImport{
		Name: img.Name, ImageURL: img.ImageURL, MinDisk: img.MinDisk, Description: img.Description, Type: img.Type,
		OSType: img.OSType, OSVersion: img.OSVersion, Architecture: img.Architecture, FirmwareType: img.FirmwareType,
		LicenseType: img.LicenseType, Configure: x.Configure, QuickImport: !p.choice.inspect, KMSKey: x.KMSKey,
		MinRAM: x.MinRAM, MaxRAM: x.MaxRAM, EnterpriseProjectID: img.EnterpriseProjectID, Tags: img.Tags, MarkerTag: img.MarkerTag,
	}
}

func (p *Plan) dataDiskImport() *ims.DataDiskImport {
	img := &p.Request.Image
	return &ims.DataDiskImport{
		Name: img.Name, ImageURL: img.ImageURL, MinDisk: img.MinDisk, OSType: img.OSType, Description: img.Description,
		KMSKey: p.Request.Extras.KMSKey, EnterpriseProjectID: img.EnterpriseProjectID, Tags: img.Tags, MarkerTag: img.MarkerTag,
	}
}

// metadataFormats are the formats that metadata can name; of others the service is told nothing.
var metadataFormats = []Format{"zvhd2", "zvhd", "vhd", "raw", "qcow2", "iso"}

func (p *Plan) metadata() *ims.ImageMetadata {
	img := &p.Request.Image
	m := &ims.ImageMetadata{
		Name: img.Name, OSVersion: img.OSVersion, MinDisk: img.MinDisk, MinRAM: p.Request.Extras.MinRAM,
		Tags: slices.Clone(img.Tags), Attributes: map[string]string{},
	}
	if img.MarkerTag.Key != "" {
		m.Tags = append(m.Tags, img.MarkerTag)
	}
	if slices.Contains(metadataFormats, p.Format) {
		m.DiskFormat = string(p.Format)
	}
	for name, value := range map[string]string{"hw_firmware_type": img.FirmwareType, "__description": img.Description} {
		if value != "" {
			m.Attributes[name] = value
		}
	}
	return m
}

// validateImage checks the fields of the request that the path will send.
func (p *Plan) validateImage() error {
	switch p.Path {
	case PathCommon:
		return p.commonImport().Validate()
	case PathData:
		return p.dataDiskImport().Validate()
	case PathNative:
		return p.metadata().Validate()
	}
	return p.Request.Image.Validate()
}

// submitImage carries out the path's call.
func (r *run) submitImage(ctx context.Context) (*ims.Submitted, error) {
	p := r.plan
	switch p.Path {
	case PathCommon:
		return r.IMS.CommonImport(ctx, p.commonImport(), p.Request.Generation)
	case PathData:
		return r.IMS.ImportDataDisk(ctx, p.dataDiskImport(), p.Request.Generation)
	case PathNative:
		return r.register(ctx)
	}
	return r.IMS.QuickImport(ctx, &p.Request.Image, p.Request.Generation)
}

// register makes the image in two steps. One that certainly can't be registered isn't left behind.
func (r *run) register(ctx context.Context) (*ims.Submitted, error) {
	image, err := r.IMS.CreateImage(ctx, r.plan.metadata())
	if err != nil {
		return nil, err
	}
	job, err := r.IMS.RegisterImage(ctx, image.ID, r.plan.Request.Image.ImageURL)
	if err != nil {
		var lost *ims.LostAnswerError
		if !errors.As(err, &lost) && ctx.Err() == nil {
			err = r.deleteImage(ctx, image.ID, err)
		}
		return nil, err
	}
	return &ims.Submitted{JobID: job, ImageID: image.ID, Generation: ims.GenOld}, nil
}

// deleteImage removes an image that will never have content, and adds to err when even that fails.
func (r *run) deleteImage(ctx context.Context, id string, err error) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	if derr := r.IMS.DeleteImage(clean, id); derr != nil && ims.KindOf(derr) != ims.KindNotFound {
		return fmt.Errorf("%w\n  the unfinished image %s could not be deleted: %w", err, id, derr)
	}
	return err
}

// send makes the image with the file's bytes in a request to the image service; no bucket is involved.
func (r *run) send(ctx context.Context) (*UploadResult, *ims.Submitted, error) {
	p := r.plan
	size := p.Disk.Size()
	failed := func(err error) (*UploadResult, *ims.Submitted, error) {
		if ctx.Err() != nil {
			return nil, nil, &InterruptedError{Phase: PhaseUpload, Err: ctx.Err(), Next: "The unfinished image was deleted; run the same command again to start anew."}
		}
		return nil, nil, err
	}
	r.event(Event{Phase: PhaseSubmit, State: StateStart})
	image, err := r.IMS.CreateImage(ctx, p.metadata())
	if err != nil {
		return failed(err)
	}
	r.event(Event{Phase: PhaseSubmit, State: StateDone, Note: "image " + image.ID})
	r.event(Event{Phase: PhaseUpload, State: StateStart, Unit: UnitBytes, Total: size})
	file := &counted{ReaderAt: p.Disk, seen: func(done int64) {
		r.event(Event{Phase: PhaseUpload, State: StateProgress, Unit: UnitBytes, Done: done, Total: size, Sent: done})
	}}
	if err = r.IMS.UploadImageFile(ctx, image.ID, file, size); err == nil {
		err = p.Disk.CheckUnchanged()
	}
	if err != nil {
		return failed(r.deleteImage(ctx, image.ID, err))
	}
	r.event(Event{Phase: PhaseUpload, State: StateDone, Unit: UnitBytes, Done: size, Total: size, Sent: size})
	return &UploadResult{
		Format: p.Format, VirtualSize: p.Source.VirtualSize, ObjectSize: size, DataBytes: size, BytesRead: size, BytesSent: size, Requests: 1,
	}, &ims.Submitted{ImageID: image.ID}, nil
}

// counted tells how far a file was read. A repeated request begins anew, so the furthest byte counts.
type counted struct {
	io.ReaderAt
	furthest int64
	seen     func(done int64)
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(p, off)
	if end := off + int64(n); end > c.furthest {
		c.furthest = end
		c.seen(end)
	}
	return n, err
}
