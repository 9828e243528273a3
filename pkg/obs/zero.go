// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"sync"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"
)

// seedSize is how many zeros are really sent: the shortest object that parts can be copied from
// into another multipart upload.
const seedSize = MinPartSize

// maxFlatCopies is how many copies of the seed make a zero object at most before a level in between
// saves requests.
const maxFlatCopies = 24

// maxZeroLevels is how many objects zeroLevels returns at most.
const maxZeroLevels = 3

// zeroLevels returns the sizes of the objects that lead from a sent seed to a zero object of size
// bytes, each composed of copies of the one before. A level in between makes the number of copies
// two square roots: 1 GiB takes 15 + 14 copies instead of 205.
func zeroLevels(size int64) []int64 {
	if size <= seedSize {
		return []int64{size}
	}
	n := ceilDiv(size, seedSize)
	if n <= maxFlatCopies {
		return []int64{seedSize, size}
	}
	mid := int64(math.Ceil(math.Sqrt(float64(n)))) * seedSize
	return []int64{seedSize, mid, size}
}

// zeroKeys is what the keys of a run's zero objects begin with; the level follows.
func (m *multipart) zeroKeys(runID string) string { return m.key + ZeroMark + runID + "-" }

// zeroObject is the source of copied zero parts: made on first need, at most once an upload.
type zeroObject struct {
	u *upload

	mu      sync.Mutex
	size    int64 // 0 until made
	source  zeroSource
	looked  bool  // for a shared one
	refused error // why zeros can't be copied, nil as long as they can
	seen    int64 // bytes of data parts that turned out to be zeros
}

// zeroSource is an object to copy from. Its ETag pins it: what replaced it is not copied.
type zeroSource struct {
	key, etag string
	// shared: we have not made it, so each copy must prove by its MD5 that it is zeros.
	shared bool
}

// SharedZeros is what the keys of zero objects begin with that runs leave for each other
// (UploadOptions.KeepZeros).
const SharedZeros = "imsprep-zeros/"

// SharedZeroKey is the key of the shared zero object that serves copies of up to n bytes. Its length,
// with which the key ends, is one of 5, 20, 80, 320, 1280 and 5120 MiB, so that there are few.
func SharedZeroKey(n int64) string { return SharedZeros + strconv.FormatInt(sharedSize(n), 10) }

func sharedSize(n int64) int64 {
	size := int64(seedSize)
	for size < n && size < MaxPartSize {
		size *= 4
	}
	return size
}

// ready returns the object. When there is none yet, it takes a shared one, or makes one of size bytes.
func (z *zeroObject) ready(ctx context.Context, size int64) (zeroSource, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	switch {
	case z.refused != nil:
		return zeroSource{}, z.refused
	case z.size == 0:
		if z.share(ctx, size) {
			break
		}
		if err := z.make(ctx, size); err != nil {
			return zeroSource{}, err
		}
	case size > z.size:
		return zeroSource{}, fmt.Errorf("the zero object has %d bytes, not %d", z.size, size)
	}
	return z.source, nil
}

// share takes the zero object that another run has left, if it is there and has the right length. A
// store that encrypts does not prove what is in it.
func (z *zeroObject) share(ctx context.Context, size int64) bool {
	if z.looked || z.u.encrypted {
		return false
	}
	z.looked = true
	t := z.u.target("", SharedZeroKey(size))
	t.attempts = 2
	info, err := z.u.c.stat(ctx, t)
	if err != nil || info.Size != sharedSize(size) || info.ETag == "" {
		return false
	}
	z.source, z.size = zeroSource{t.key, info.ETag, true}, info.Size
	return true
}

// disown gives up a shared zero object that copying from failed, for one of our own. It returns whether
// to try again.
func (z *zeroObject) disown(from zeroSource) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	if !from.shared {
		return false
	}
	if z.source == from {
		z.source, z.size = zeroSource{}, 0
	}
	return true
}

// keep leaves a copy of the zero object for other runs. Copying it when it is complete never leaves a
// wrong one there, not even for a moment.
func (z *zeroObject) keep(ctx context.Context) {
	u := z.u
	t := u.target("keep zero object", SharedZeroKey(z.size))
	t.idleFactor = serverWork
	err := u.c.call(ctx, t, func(ctx context.Context) error {
		info, err := u.c.core.CopyObject(ctx, t.bucket, z.source.key, t.bucket, t.key, nil,
			minio.CopySrcOptions{Bucket: t.bucket, Object: z.source.key}, minio.PutObjectOptions{})
		if err == nil && info.ETag == "" {
			err = &Error{Kind: KindTransient, Code: "CopyWithoutETag", Message: "the server began to copy and failed"}
		}
		return err
	})
	if err != nil && ctx.Err() == nil {
		u.report(func(ev *UploadEvent) { ev.Note = "the zero object could not be kept: " + err.Error() })
	}
}

// usable tells whether the server has not refused to copy yet.
func (z *zeroObject) usable() bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.refused == nil
}

// worthwhile tells whether a data part of n zeros should be copied although a zero object may have
// to be made for it. Without one, the first few zeros are cheaper to send.
func (z *zeroObject) worthwhile(n int64) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.refused != nil {
		return false
	}
	z.seen += n
	return z.size > 0 || z.u.mode == ZeroCopyOn || z.seen > seedSize
}

// refuse ends copying for the rest of the upload. It returns true the first time.
func (z *zeroObject) refuse(why error) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.refused != nil {
		return false
	}
	z.refused = why
	return true
}

func (z *zeroObject) make(ctx context.Context, size int64) error {
	u := z.u
	if u.keepZeros {
		size = sharedSize(size)
	}
	levels := zeroLevels(size)
	var from zeroSource
	for i, n := range levels {
		key := u.zeroKeys(u.runID) + strconv.Itoa(i)
		if len(key) > maxKeyLength {
			return &Error{Op: "make zero object", Bucket: u.bucket, Key: u.key, Kind: KindInvalid,
				Message: "the key is too long for the zero object beside it"}
		}
		// Noted before it exists, so that it is removed even if the answer is lost.
		u.help(key)
		var etag string
		var err error
		if i == 0 {
			etag, err = z.seed(ctx, key, n)
		} else {
			etag, err = z.compose(ctx, key, n, from, levels[i-1])
		}
		if err != nil {
			return err
		}
		from = zeroSource{key: key, etag: etag}
	}
	z.source, z.size = from, size
	if u.keepZeros {
		z.keep(ctx)
	}
	return nil
}

// seed sends n zeros.
func (z *zeroObject) seed(ctx context.Context, key string, n int64) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", z.u.c.explain(z.u.target("put zero seed", key), err, nil)
	}
	late, cancel := settling(ctx)
	defer cancel()
	etag, err := z.u.c.put(late, z.u.target("put zero seed", key), n, z.u.zeroSum(n).base64(),
		func() io.ReadSeeker { return newZeros(n) }, z.u.metadata(), z.u.moved)
	if err == nil && ctx.Err() != nil {
		err = z.u.c.explain(z.u.target("put zero seed", key), ctx.Err(), nil)
	}
	return etag, err
}

// compose makes an object of size zeros out of copies of a shorter one.
func (z *zeroObject) compose(ctx context.Context, key string, size int64, from zeroSource, fromSize int64) (string, error) {
	u := z.u
	id, err := u.initiate(ctx, key, "", u.metadata())
	if err != nil {
		return "", err
	}
	parts := make([]partDone, ceilDiv(size, fromSize))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, u.plan.Workers)) // and the limiter's level
	for i := range parts {
		g.Go(func() error {
			off := int64(i) * fromSize
			n := min(fromSize, size-off)
			t := u.target("copy zeros to zero object", key)
			t.part, t.offset = i+1, off
			etag, err := u.copyRange(gctx, t, id, from, n, func() sum { return u.sums.of(n) })
			parts[i] = partDone{size: n, etag: etag}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", u.c.explain(u.target("complete zero object", key), err, nil)
	}
	late, cancel := settling(ctx)
	defer cancel()
	etag, err := u.complete(late, key, id, parts, size)
	if err != nil {
		return "", err
	}
	info, err := u.c.stat(ctx, u.target("", key))
	if err != nil {
		return "", err
	}
	if info.Size != size {
		return "", &Error{Op: "make zero object", Bucket: u.bucket, Key: key, Kind: KindIntegrity,
			Message: fmt.Sprintf("it has %d bytes instead of %d", info.Size, size)}
	}
	return etag, nil
}

// zeros reads n zero bytes.
type zeros struct{ pos, n int64 }

func newZeros(n int64) *zeros { return &zeros{n: n} }

func (z *zeros) Read(p []byte) (int, error) {
	if z.pos >= z.n {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), z.n-z.pos)]
	clear(p)
	z.pos += int64(len(p))
	return len(p), nil
}

var errSeek = errors.New("seek out of range")

func (z *zeros) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += z.pos
	case io.SeekEnd:
		off += z.n
	}
	if off < 0 {
		return 0, errSeek
	}
	z.pos = off
	return off, nil
}
