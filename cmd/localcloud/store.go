// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

// Names that the posix backend of versitygw v1.8.0 gives to what it keeps with
// a part. They are part of its on-disk layout, not of its API.
const (
	attrETag       = "etag"
	attrPartCRC64  = "part-crc64nvme"
	attrChecksums  = "checksums"
	attrVersioning = "versioning"
	attrMultipart  = "mp-metadata" // of the upload that made an object

	inProgress = ".inprogress" // ends the name of an upload that is being completed
)

// How often, and after which pause, an upload is aborted again that a part got in the way of.
const (
	abortAttempts = 50
	abortPause    = 10 * time.Millisecond
)

// sparseStore is the posix backend with holes kept as holes: zeros that were
// uploaded become holes, a part copied from a hole is a hole, and an object
// composed of parts has the parts' holes. So a disk of a terabyte that is
// mostly zeros costs its data. What clients see is what the posix backend
// shows: the same sizes, ETags and checksums.
type sparseStore struct {
	*posix.Posix
	meta  meta.MetadataStorer
	root  string // absolute; the buckets' parent
	side  string // absolute; where meta keeps its files
	zeros zeroSums
	// aborted holds the ids of uploads that were aborted or are being aborted.
	aborted sync.Map
	// completing holds a mutex for the id of each upload that was to be completed.
	completing sync.Map
}

var _ backend.Backend = (*sparseStore)(nil)

func newSparseStore(p *posix.Posix, m meta.MetadataStorer, root, side string) *sparseStore {
	return &sparseStore{Posix: p, meta: m, root: root, side: side}
}

// PutObject stores an object and turns the zeros in it into holes.
func (s *sparseStore) PutObject(ctx context.Context, in s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	return s.PutObjectWithPostFunc(ctx, in, func(f *os.File) error {
		if in.Bucket != nil && in.Key != nil {
			s.forget(*in.Bucket, *in.Key)
		}
		return punchZeros(f)
	})
}

// UploadPart stores a part, zeros in it as holes.
func (s *sparseStore) UploadPart(ctx context.Context, in *s3.UploadPartInput) (*s3.UploadPartOutput, error) {
	var out *s3.UploadPartOutput
	var err error
	if s.isPlainPart(in) {
		out, err = s.putPart(in)
	} else {
		out, err = s.UploadPartWithPostFunc(ctx, in, punchZeros)
	}
	return out, s.unlessAborted(in.Bucket, in.Key, in.UploadId, err)
}

// unlessAborted is err, or what S3 says of an upload that isn't there any more: a part that is on its way
// when its upload is aborted finds its folder gone, wherever it is just then. To the backend that is an
// internal error, which it prints; to a client that hung up it is nothing at all.
func (s *sparseStore) unlessAborted(bucket, key, uploadID *string, err error) error {
	var known s3err.S3Error
	if err == nil || errors.As(err, &known) || bucket == nil || key == nil || uploadID == nil {
		return err
	}
	_, aborted := s.aborted.Load(*uploadID)
	_, serr := os.Stat(filepath.Join(s.root, *bucket, uploadDir(*key), *uploadID))
	if aborted || errors.Is(serr, fs.ErrNotExist) {
		return s3err.GetNoSuchUploadErr(*uploadID)
	}
	return err
}

// CompleteMultipartUpload joins the parts; their holes stay holes. A part is emptied when the object has it, so that
// this takes the room of one part instead of the object's, and what is given back is what the next part needs. A
// request that fails after the first part thus ends the upload.
func (s *sparseStore) CompleteMultipartUpload(ctx context.Context, in *s3.CompleteMultipartUploadInput) (s3response.CompleteMultipartUploadResult, string, error) {
	// One at a time: to the backend an upload that is being completed is one that was.
	lock, _ := s.completing.LoadOrStore(*in.UploadId, new(sync.Mutex))
	lock.(*sync.Mutex).Lock()
	defer lock.(*sync.Mutex).Unlock()
	exists := func() bool {
		_, err := os.Stat(filepath.Join(s.root, *in.Bucket, uploadDir(*in.Key), *in.UploadId))
		return !errors.Is(err, fs.ErrNotExist)
	}
	// To the backend any object of that name proves that an upload which is gone was completed.
	if !exists() && !s.madeBy(*in.Bucket, *in.Key, *in.UploadId) {
		return s3response.CompleteMultipartUploadResult{}, "", s3err.GetNoSuchUploadErr(*in.UploadId)
	}
	ctx = context.WithoutCancel(ctx) // who asked may be gone; what was begun is completed
	begun := false
	res, version, err := s.CompleteMultipartUploadWithCopy(ctx, in, func(from, to *os.File) (again bool, err error) {
		if !begun {
			begun = true
			// The backend has held the old object's ETag against If-Match. It would once more.
			in.IfMatch = nil
			s.forget(*in.Bucket, *in.Key)
		}
		if err := appendSparse(ctx, to, from); err != nil {
			return true, err // the backend copies it once more, in its own way
		}
		// The name is below the working directory, which the backend made the buckets' parent.
		return os.Truncate(from.Name(), 0) != nil, nil
	})
	failed := err != nil && begun && !exists()
	if failed {
		// What the object would have had, were it there, says that it is.
		_ = s.meta.DeleteAttribute(*in.Bucket, *in.Key, attrMultipart)
	}
	if err == nil || failed {
		s.forgetUpload(*in.Bucket, *in.Key, *in.UploadId)
	}
	return res, version, err
}

// madeBy tells whether an object was made by that upload.
func (s *sparseStore) madeBy(bucket, key, uploadID string) bool {
	text, err := s.meta.RetrieveAttribute(nil, bucket, key, attrMultipart)
	if err != nil {
		return false
	}
	made, err := backend.UnmarshalMpUploadMetadata(text, false)
	return err == nil && made.UploadID == uploadID
}

// AbortMultipartUpload drops an upload with all that is known of its parts.
func (s *sparseStore) AbortMultipartUpload(ctx context.Context, in *s3.AbortMultipartUploadInput) error {
	if in.UploadId != nil {
		s.aborted.Store(*in.UploadId, true)
	}
	err := s.Posix.AbortMultipartUpload(ctx, in)
	// A part that is just being stored makes a folder that was emptied not empty again.
	for n := 0; n < abortAttempts && errors.Is(err, syscall.ENOTEMPTY); n++ {
		time.Sleep(abortPause)
		err = s.Posix.AbortMultipartUpload(ctx, in)
	}
	if err == nil {
		s.forgetUpload(*in.Bucket, *in.Key, *in.UploadId)
	} else if in.UploadId != nil {
		s.aborted.Delete(*in.UploadId)
	}
	return err
}

// forget drops the metadata of an object that is about to be replaced. The
// backend stores only what the new object has, so with metadata in files of
// their own the old object's would shine through.
func (s *sparseStore) forget(bucket, key string) {
	if fi, err := os.Stat(filepath.Join(s.root, bucket, key)); err == nil && fi.Mode().IsRegular() {
		_ = s.meta.DeleteAttributes(bucket, key) // at worst the old metadata stays
	}
}

// sweep removes what a server that was killed has left: parts that were on their way, and uploads that it was
// completing, of which some parts are empty.
func (s *sparseStore) sweep() error {
	var left []string
	for pattern, dirs := range map[string][]string{
		filepath.Join("*", posix.MetaTmpDir, arriving+"*"):                 {s.root},
		filepath.Join("*", posix.MetaTmpMultipartDir, "*", "*"+inProgress): {s.root, s.side},
	} {
		for _, dir := range dirs {
			found, err := filepath.Glob(filepath.Join(globLiteral(dir), pattern))
			if err != nil {
				return err
			}
			left = append(left, found...)
		}
	}
	var failed []error
	for _, path := range left {
		failed = append(failed, os.RemoveAll(path))
	}
	return errors.Join(failed...)
}

// globLiteral is a path as a pattern that only it matches.
func globLiteral(path string) string {
	return strings.NewReplacer(`*`, `[*]`, `?`, `[?]`, `[`, `[[]`).Replace(path)
}

// forgetUpload drops the metadata of the parts of an upload that has ended;
// the backend removes only their data.
func (s *sparseStore) forgetUpload(bucket, key, uploadID string) {
	_ = os.RemoveAll(filepath.Join(s.side, bucket, uploadDir(key), uploadID))
}

// uploadDir is where the backend keeps the uploads of a key, below the bucket.
func uploadDir(key string) string {
	return filepath.Join(posix.MetaTmpMultipartDir, fmt.Sprintf("%x", sha256.Sum256([]byte(key))))
}

// UploadPartCopy copies a range of an object into a part. Where the range is
// one hole, so is the part; everything else is left to the posix backend, and
// the zeros in it become holes.
func (s *sparseStore) UploadPartCopy(ctx context.Context, in *s3.UploadPartCopyInput) (s3response.CopyPartResult, error) {
	length, ok, err := s.copiesHole(in)
	if err != nil || !ok {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return s3response.CopyPartResult{}, err
		}
		res, err := s.Posix.UploadPartCopy(ctx, in)
		if err == nil {
			s.punchPart(in)
		}
		return res, s.unlessAborted(in.Bucket, in.Key, in.UploadId, err)
	}
	res, err := s.putZeroPart(ctx, in, length)
	return res, s.unlessAborted(in.Bucket, in.Key, in.UploadId, err)
}

// punchPart turns the zeros in a copied part into holes, as far as that can be done.
func (s *sparseStore) punchPart(in *s3.UploadPartCopyInput) {
	f, err := os.OpenFile(filepath.Join(s.root, *in.Bucket, uploadDir(*in.Key), *in.UploadId, strconv.Itoa(int(*in.PartNumber))), os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_ = punchZeros(f)
}

// copiesHole tells whether the request is a plain copy of a range that is all
// hole, and how long it is. When it isn't, or something about the request is
// wrong or unusual, the answer is false: the backend then does what it does.
func (s *sparseStore) copiesHole(in *s3.UploadPartCopyInput) (length int64, ok bool, err error) {
	if in.Bucket == nil || in.Key == nil || in.UploadId == nil || in.PartNumber == nil ||
		in.CopySource == nil || in.CopySourceRange == nil ||
		in.ExpectedSourceBucketOwner != nil && *in.ExpectedSourceBucketOwner != "" {
		return 0, false, nil
	}
	srcBucket, srcKey, version, err := backend.ParseCopySource(*in.CopySource)
	if err != nil || version != "" {
		return 0, false, nil
	}
	if !s.isPlainUpload(*in.Bucket, *in.Key, *in.UploadId) {
		return 0, false, nil
	}
	if _, err := s.meta.RetrieveAttribute(nil, srcBucket, "", attrVersioning); !errors.Is(err, meta.ErrNoSuchKey) {
		return 0, false, nil
	}
	f, err := os.Open(filepath.Join(s.root, srcBucket, srcKey))
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return 0, false, err
	}
	off, n, err := backend.ParseCopySourceRange(fi.Size(), *in.CopySourceRange)
	if err != nil || n <= 0 || n > maxCopySize || off+n > fi.Size() {
		return 0, false, nil
	}
	etag, err := s.meta.RetrieveAttribute(f, srcBucket, srcKey, attrETag)
	if err != nil {
		return 0, false, nil
	}
	if err := backend.EvaluatePreconditions(string(etag), fi.ModTime(), backend.PreConditions{
		IfMatch:       in.CopySourceIfMatch,
		IfNoneMatch:   in.CopySourceIfNoneMatch,
		IfModSince:    in.CopySourceIfModifiedSince,
		IfUnmodeSince: in.CopySourceIfUnmodifiedSince,
	}); err != nil {
		return 0, false, err
	}
	data, err := nextData(f, off, fi.Size())
	if err != nil {
		return 0, false, nil
	}
	return n, data >= off+n, nil
}

// appendSparse adds the content of src at the end of dst, holes as holes.
func appendSparse(ctx context.Context, dst, src *os.File) error {
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	base, err := dst.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	size := fi.Size()
	if err := copyData(ctx, dst, src, base, size); err != nil {
		// The caller begins the part once more, at the end of dst.
		_, serr := src.Seek(0, io.SeekStart)
		return errors.Join(err, serr, dst.Truncate(base))
	}
	// A hole at the end leaves no trace but the length.
	if err := dst.Truncate(base + size); err != nil {
		return err
	}
	_, err = dst.Seek(base+size, io.SeekStart)
	return err
}

func copyData(ctx context.Context, dst, src *os.File, base, size int64) error {
	for pos := int64(0); pos < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, err := nextData(src, pos, size)
		if err != nil {
			return err
		}
		if start >= size {
			return nil
		}
		end, err := nextHole(src, start, size)
		if err != nil {
			return err
		}
		if _, err := src.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(base+start, io.SeekStart); err != nil {
			return err
		}
		// Between two files this is copy_file_range on Linux.
		n, err := io.CopyN(dst, src, end-start)
		if err != nil {
			return fmt.Errorf("%d of %d bytes: %w", n, end-start, err)
		}
		pos = end
	}
	return nil
}
