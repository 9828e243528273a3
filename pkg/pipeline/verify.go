// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"sync/atomic"
	"time"

	"github.com/lima-vm/go-qcow2reader/image"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/obs"
)

// PhaseVerify is when an object is read back.
const PhaseVerify Phase = "verify"

// maxBitmapFile bounds a bitmap that is read: one bit for each sector of 1 TiB.
const maxBitmapFile = 256<<20 + 1<<20

// VerifyRequest names a disk and the object that ought to hold it.
type VerifyRequest struct {
	Source string
	Open   convert.OpenOptions
	Bucket string
	Key    string // ends in .raw or .zvhd2, or the object is the file itself
	// Layout is that of the bitmap beside a RAW object; without a name the default one.
	Layout bitmap.Layout
	// DataOnly doesn't read the object where the source is known to be zeros. What the object has there
	// stays unknown.
	DataOnly bool
	// MinWorkers and Workers are how many ranges are read at a time at least and at most; 0 are the usual bounds.
	MinWorkers, Workers int
}

// VerifyResult is what comparing a disk with an object has found.
type VerifyResult struct {
	Source string `json:"source"`
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
	Format Format `json:"format"` // of the object
	ETag   string `json:"etag"`
	// Equal says that all that was compared is equal, and that the bitmap, if there is one, fits.
	Equal       bool              `json:"equal"`
	VirtualSize int64             `json:"virtual_size"` // bytes of the disk
	ObjectSize  int64             `json:"object_size"`  // bytes of the object
	ObjectDisk  int64             `json:"object_disk"`  // bytes of the disk in the object
	First       *ObjectDifference `json:"first_difference,omitempty"`
	Blocks      int64             `json:"different_blocks"`
	BlockSize   int64             `json:"block_size"` // bytes
	Compared    int64             `json:"bytes_compared"`
	LeftOut     int64             `json:"bytes_left_out"` // with DataOnly
	Downloaded  int64             `json:"bytes_downloaded"`
	// Concurrency tells how many ranges were read at the same time.
	Concurrency obs.ConcurrencyResult `json:"concurrency"`
	// ContentDigest is that of the disk in the object; absent with DataOnly and when sizes differ.
	ContentDigest *convert.Digest `json:"content_digest,omitempty"`
	Bitmap        *VerifiedBitmap `json:"bitmap,omitempty"`
	Seconds       float64         `json:"seconds"`
}

// ObjectDifference is where source and object first differ.
type ObjectDifference struct {
	Offset int64 `json:"offset"` // bytes
	Block  int64 `json:"block"`
	Source byte  `json:"source"`
	Object byte  `json:"object"`
}

// VerifiedBitmap is what the bitmap beside an object says, held against the disk.
type VerifiedBitmap struct {
	Key       string `json:"key"`
	Layout    string `json:"layout"`
	BlockSize int64  `json:"block_size"` // bytes
	Marked    int64  `json:"marked"`     // blocks
	// Unmarked is how many blocks have data and aren't marked: the service would take them for zeros.
	Unmarked      int64 `json:"unmarked"`
	FirstUnmarked int64 `json:"first_unmarked"` // block, -1 for none
	Unneeded      int64 `json:"unneeded"`       // blocks that are marked and all zeros, which does no harm
}

// Problem says in a sentence what is not as it should be, "" if all is.
func (v *VerifyResult) Problem() string {
	object := fmt.Sprintf("obs://%s/%s", v.Bucket, v.Key)
	switch {
	case v.ObjectDisk != v.VirtualSize && v.First != nil:
		return fmt.Sprintf("%s holds a disk of %d bytes, but %s has %d; %s", object, v.ObjectDisk, v.Source, v.VirtualSize, v.difference())
	case v.ObjectDisk != v.VirtualSize:
		return fmt.Sprintf("%s holds a disk of %d bytes, but %s has %d", object, v.ObjectDisk, v.Source, v.VirtualSize)
	case v.First != nil:
		return fmt.Sprintf("%s differs from %s: %s", object, v.Source, v.difference())
	case v.Bitmap != nil && v.Bitmap.Unmarked > 0:
		return fmt.Sprintf("%s equals %s, but its bitmap obs://%s/%s lacks %s that should be marked as data, first block %d (byte %d)",
			object, v.Source, v.Bucket, v.Bitmap.Key, blockCount(v.Bitmap.Unmarked), v.Bitmap.FirstUnmarked, v.Bitmap.FirstUnmarked*v.Bitmap.BlockSize)
	case !v.Equal:
		return object + " is not what it should be"
	}
	return ""
}

// difference says where and how much.
func (v *VerifyResult) difference() string {
	return fmt.Sprintf("%s of %d bytes with other content, the first difference at byte %d (block %d): %#02x in the source, %#02x in the object",
		blockCount(v.Blocks), v.BlockSize, v.First.Offset, v.First.Block, v.First.Source, v.First.Object)
}

func blockCount(n int64) string {
	if n == 1 {
		return "1 block"
	}
	return fmt.Sprintf("%d blocks", n)
}

// MismatchError is an object that doesn't hold what it should.
type MismatchError struct{ What, Remedy string }

func (e *MismatchError) Error() string { return e.What }

// Hint says what to do.
func (e *MismatchError) Hint() string { return e.Remedy }

// objectImage is a disk in a bucket.
type objectImage struct {
	image.Image
	object *obs.ObjectReader
	format Format
	read   *atomic.Int64
}

// countingReader counts what is read of an object.
type countingReader struct {
	io.ReaderAt
	n *atomic.Int64
}

func (c countingReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(p, off)
	c.n.Add(int64(n))
	return n, err
}

// plainObject is an object as the disk that its bytes are, all of which must be read to be known.
type plainObject struct {
	io.ReaderAt
	size int64
}

func (plainObject) Close() error     { return nil }
func (p plainObject) Size() int64    { return p.size }
func (plainObject) Type() image.Type { return "raw" }
func (plainObject) Readable() error  { return nil }
func (plainObject) Extent(off, n int64) (image.Extent, error) {
	return image.Extent{Start: off, Length: n, Allocated: true}, nil
}

// openObject opens the disk in an object, which ought to have size bytes, as it is now: if the object is
// replaced, reading fails. Up to high ranges are read at a time.
func openObject(ctx context.Context, c *obs.Client, bucket, key string, size int64, zvhd2 bool, low, high int) (*objectImage, error) {
	o, err := c.Object(ctx, bucket, key)
	if err == nil {
		err = o.Adapt(low, high)
	}
	if err != nil {
		return nil, err
	}
	i := &objectImage{object: o, format: FormatRAW, read: new(atomic.Int64)}
	r := countingReader{o.ReaderAt(ctx), i.read}
	if !zvhd2 {
		i.Image = plainObject{r, o.Size()}
		return i, nil
	}
	i.format = FormatZVHD2
	i.Image, err = convert.OpenOriginalZVHD2(ctx, r, o.Size())
	if err == nil && !i.fits(size) {
		// A disk that was read from a ZVHD2 file has whole GiB, and may be the file itself.
		var whole image.Image
		if whole, err = convert.OpenZVHD2(ctx, r, o.Size()); err == nil && whole.Size() == size {
			i.Image = whole
		}
	}
	var oe *obs.Error
	if err != nil && !errors.As(err, &oe) && ctx.Err() == nil {
		err = &MismatchError{What: fmt.Sprintf("obs://%s/%s is no sound ZVHD2 image: %v", bucket, key, err),
			Remedy: "Upload it again."}
	}
	return i, err
}

// cut is a disk without its end.
type cut struct {
	image.Image
	size int64
}

func (c cut) Size() int64 { return c.size }

// fits tells whether the disk in the object can be a disk of size bytes: a ZVHD2 image's disk ends with a
// sector, and has zeros up to there.
func (i *objectImage) fits(size int64) bool {
	return i.Size() == size || i.format == FormatZVHD2 && i.Size() == (size+511)&^511
}

// zerosFrom tells whether the disk in the object has nothing but zeros from a byte of its last sector on.
func (i *objectImage) zerosFrom(off int64) (bool, error) {
	p := make([]byte, i.Size()-off)
	if n, err := i.ReadAt(p, off); n < len(p) {
		return false, err
	}
	return convert.IsZero(p), nil
}

// Verify reads an object back and compares it with a disk, byte by byte. Differences are in the result, not
// in the error. All of a RAW object is read, also where the disk is known to be zeros, unless DataOnly is
// set; a ZVHD2 object is decoded. The bitmap beside a RAW object, if there is one, must mark every block with
// data. Nothing is written.
func (i *Importer) Verify(ctx context.Context, r VerifyRequest) (*VerifyResult, error) {
	start := time.Now()
	format, open := Format(""), r.Open
	switch path.Ext(r.Key) {
	case FormatRAW.Ext():
		format = FormatRAW
	case FormatZVHD2.Ext():
		format = FormatZVHD2
	default:
		// The object is the file as it is, for the service to convert.
		open = convert.OpenOptions{Format: convert.FormatRAW, MaxVirtualSize: r.Open.MaxVirtualSize}
	}
	layout := r.Layout
	if layout.Name == "" {
		var err error
		if layout, err = bitmap.Lookup(bitmap.DefaultLayout); err != nil {
			return nil, err
		}
	}
	disk, err := convert.Open(ctx, r.Source, open)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	object, err := openObject(ctx, i.OBS, r.Bucket, r.Key, disk.Size(), format == FormatZVHD2, r.MinWorkers, r.Workers)
	if err != nil {
		return nil, err
	}
	size := disk.Size()
	res := &VerifyResult{Source: r.Source, Bucket: r.Bucket, Key: r.Key, Format: format, ETag: object.object.Info().ETag,
		VirtualSize: size, ObjectSize: object.object.Size(), ObjectDisk: object.Size(), BlockSize: convert.DigestBlock}
	fits := object.fits(size)
	if fits {
		res.ObjectDisk = size
	}
	// What both have is compared, whatever comes after.
	both := min(size, object.Size())
	blocks, err := bitmap.NewMap(size, layout.BlockSize)
	if err != nil {
		return nil, err
	}
	from := convert.NewScanner(cut{disk, both}, blocks)
	to := convert.NewScanner(cut{object, both}, nil)
	if fits && !r.DataOnly {
		to.WithDigest()
	}
	ru := &run{Importer: i}
	var done atomic.Int64
	ru.event(Event{Phase: PhaseVerify, State: StateStart, Unit: UnitBytes, Total: both})
	c, err := convert.Compare(ctx, from, to, convert.CompareOptions{Workers: readers(r.Workers), DataOnly: r.DataOnly,
		Progress: func(n int64) {
			ru.event(Event{Phase: PhaseVerify, State: StateProgress, Unit: UnitBytes, Done: done.Add(n), Total: both})
		}})
	if err == nil {
		err = disk.CheckUnchanged()
	}
	if err != nil {
		return nil, verifyFailed(ctx, err)
	}
	if c.First != nil {
		res.First = &ObjectDifference{Offset: c.First.Offset, Block: c.First.Block, Source: c.First.A, Object: c.First.B}
	}
	res.Blocks, res.Compared, res.LeftOut = c.Blocks, c.Compared, c.Left
	if fits && object.Size() > size {
		zero, err := object.zerosFrom(size)
		if err != nil {
			return nil, verifyFailed(ctx, err)
		}
		fits = zero
	}
	res.Equal = fits && c.First == nil
	if fits && !r.DataOnly {
		if err := to.ReadRest(ctx); err != nil {
			return nil, verifyFailed(ctx, err)
		}
		d, err := to.Digest(ctx)
		if err != nil {
			return nil, verifyFailed(ctx, err)
		}
		res.ContentDigest = &d
	}
	if format == FormatRAW && fits {
		if res.Bitmap, err = i.verifyBitmap(ctx, r.Bucket, r.Key, layout, blocks); err != nil {
			return nil, verifyFailed(ctx, err)
		}
		res.Equal = res.Equal && (res.Bitmap == nil || res.Bitmap.Unmarked == 0)
	}
	res.Downloaded, res.Concurrency = object.read.Load(), object.object.Concurrency()
	res.Seconds = time.Since(start).Seconds()
	ru.event(Event{Phase: PhaseVerify, State: StateDone, Unit: UnitBytes, Done: both, Total: both})
	return res, nil
}

// readers is how many ranges are held: as many as may be read, one after another too.
func readers(most int) int { return cmp.Or(most, obs.DefaultWorkers) }

// verifyFailed is an error while reading, after which nothing is known.
func verifyFailed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return &InterruptedError{Phase: PhaseVerify, Err: ctx.Err(), Next: "Nothing was changed; run the same command again."}
	}
	return err
}

// verifyBitmap holds the bitmap beside an object against the blocks of the disk that hold data. nil is that
// there is none.
func (i *Importer) verifyBitmap(ctx context.Context, bucket, key string, layout bitmap.Layout, data *bitmap.Map) (*VerifiedBitmap, error) {
	mf := BitmapKey(key)
	b, err := readSmall(ctx, i.OBS, bucket, mf, maxBitmapFile)
	if obs.KindOf(err) == obs.KindNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	marked, err := layout.Decode(b, data.VirtualSize())
	if err != nil {
		return nil, &MismatchError{What: fmt.Sprintf("obs://%s/%s is no bitmap of this disk in the layout %q: %v", bucket, mf, layout.Name, err),
			Remedy: "If it was written in another layout, name it with --bitmap-layout."}
	}
	d, err := bitmap.Diff(data, marked)
	if err != nil {
		return nil, err
	}
	v := &VerifiedBitmap{Key: mf, Layout: layout.Name, BlockSize: layout.BlockSize, Marked: marked.Count(),
		Unmarked: d.OnlyA, FirstUnmarked: -1, Unneeded: d.OnlyB}
	for block := int64(0); d.OnlyA > 0 && block < data.Blocks(); block++ {
		if data.Data(block) && !marked.Data(block) {
			v.FirstUnmarked = block
			break
		}
	}
	return v, nil
}

// readBack reads the object that was just made and compares the digest of what it holds with that of what
// was read of the source. That is as strong as comparing with the source again: the digest is of the
// source's bytes, taken before they were sent, and two disks of the same digest are the same disk.
func (r *run) readBack(ctx context.Context, res *UploadResult) error {
	total := r.plan.Disk.Size()
	failed := func(err error) error {
		if ctx.Err() == nil {
			err = fmt.Errorf("read the object back: %w", err)
		}
		return r.afterUpload(ctx, PhaseVerify, err)
	}
	r.event(Event{Phase: PhaseVerify, State: StateStart, Unit: UnitBytes, Total: total})
	object, err := openObject(ctx, r.OBS, res.Bucket, res.Key, total, r.plan.Parts == nil, r.plan.Request.MinWorkers, r.plan.Request.Workers)
	if err != nil {
		return failed(err)
	}
	wrong := func(what string) error {
		return failed(&MismatchError{What: fmt.Sprintf("obs://%s/%s is not what was sent: %s", res.Bucket, res.Key, what),
			Remedy: "It was removed; run the same command again."})
	}
	if !object.fits(total) {
		return wrong(fmt.Sprintf("it holds a disk of %d bytes, not of %d", object.Size(), total))
	}
	if object.Size() > total {
		zero, err := object.zerosFrom(total)
		if err != nil {
			return failed(err)
		}
		if !zero {
			return wrong("its last sector doesn't end in zeros")
		}
	}
	var data *bitmap.Map
	var mark convert.Marker
	if res.blocks != nil {
		if data, err = bitmap.NewMap(total, res.blocks.BlockSize()); err != nil {
			return failed(err)
		}
		mark = data
	}
	s := convert.NewScanner(cut{object, total}, mark).WithDigest()
	var done atomic.Int64
	err = convert.Scan(ctx, s, convert.ScanOptions{Workers: readers(r.plan.Request.Workers), Progress: func(n int64) {
		r.event(Event{Phase: PhaseVerify, State: StateProgress, Unit: UnitBytes, Done: done.Add(n), Total: total})
	}}, nil)
	if err != nil {
		return failed(err)
	}
	got, err := s.Digest(ctx)
	if err != nil {
		return failed(err)
	}
	if res.ContentDigest == nil || got != *res.ContentDigest {
		return wrong(fmt.Sprintf("its digest is %v, not %v", got, res.ContentDigest))
	}
	if data != nil && r.plan.HasBitmap() {
		if what, err := r.readBackBitmap(ctx, res, data); err != nil {
			return failed(err)
		} else if what != "" {
			return wrong(what)
		}
	}
	res.Verified = true
	r.event(Event{Phase: PhaseVerify, State: StateDone, Unit: UnitBytes, Done: total, Total: total})
	return nil
}

// readBackBitmap says what is wrong with the bitmap that was just written.
func (r *run) readBackBitmap(ctx context.Context, res *UploadResult, data *bitmap.Map) (string, error) {
	if r.plan.bitmap != nil { // its layout isn't known
		b, err := readSmall(ctx, r.OBS, res.Bucket, BitmapKey(res.Key), maxBitmapFile)
		if err != nil || bytes.Equal(b, r.plan.bitmap) {
			return "", err
		}
		return "its bitmap is not the one that was written", nil
	}
	v, err := r.verifyBitmap(ctx, res.Bucket, res.Key, r.plan.Layout, data)
	switch {
	case err != nil:
		return "", err
	case v == nil:
		return "its bitmap isn't there", nil
	case v.Unmarked > 0:
		return fmt.Sprintf("its bitmap lacks %s that should be marked as data, first block %d", blockCount(v.Unmarked), v.FirstUnmarked), nil
	}
	return "", nil
}

// hashing is the plain SHA-256 of the disk, being computed beside the upload. nil is none.
type hashing struct {
	cancel context.CancelFunc
	done   chan struct{}
	sum    string
	err    error
}

// startSHA256 begins a reading of the disk of its own, front to back, if the plain SHA-256 was asked for.
func (r *run) startSHA256(ctx context.Context) *hashing {
	if !r.plan.Request.SHA256 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	h := &hashing{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		sum, err := convert.SHA256(ctx, r.plan.Disk, nil)
		if err == nil {
			err = r.plan.Disk.CheckUnchanged()
		}
		h.sum, h.err = hex.EncodeToString(sum[:]), err
	}()
	return h
}

// stop ends the reading and waits for its end.
func (h *hashing) stop() {
	if h != nil {
		h.cancel()
		<-h.done
	}
}

// wait returns the sum.
func (h *hashing) wait() (string, error) {
	if h == nil {
		return "", nil
	}
	<-h.done
	if h.err != nil {
		return "", fmt.Errorf("compute the SHA-256 of the source: %w", h.err)
	}
	return h.sum, nil
}
