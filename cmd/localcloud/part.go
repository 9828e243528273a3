// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/minio/crc64nvme"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3api/middlewares"
	"github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

// isPlainUpload tells whether an upload exists and has no checksum of its own, which each of its parts would need too.
func (s *sparseStore) isPlainUpload(bucket, key, id string) bool {
	upload := filepath.Join(uploadDir(key), id)
	if _, err := os.Stat(filepath.Join(s.root, bucket, upload)); err != nil {
		return false
	}
	_, err := s.meta.RetrieveAttribute(nil, bucket, upload, attrChecksums)
	return errors.Is(err, meta.ErrNoSuchKey)
}

// isPlainPart tells whether the part that comes is one that putPart stores as the posix backend would. All others,
// and those with which something is wrong, are left to the backend.
func (s *sparseStore) isPlainPart(in *s3.UploadPartInput) bool {
	if in.Bucket == nil || in.Key == nil || in.UploadId == nil || in.PartNumber == nil || in.ContentLength == nil || in.Body == nil {
		return false
	}
	if in.ChecksumAlgorithm != "" {
		return false
	}
	for _, sum := range []*string{in.ChecksumCRC32, in.ChecksumCRC32C, in.ChecksumCRC64NVME, in.ChecksumMD5, in.ChecksumSHA1,
		in.ChecksumSHA256, in.ChecksumSHA512, in.ChecksumXXHASH64, in.ChecksumXXHASH3, in.ChecksumXXHASH128} {
		if sum != nil {
			return false
		}
	}
	if trailing, ok := in.Body.(middlewares.ChecksumReader); ok && trailing.Algorithm() != "" {
		return false
	}
	return s.isPlainUpload(*in.Bucket, *in.Key, *in.UploadId)
}

// partBuffers are for what is received of a part, in bytes that are a multiple of zeroBlock.
var partBuffers = sync.Pool{New: func() any { return new([4 * zeroBlock]byte) }}

// putPart stores a part the way the posix backend stores one, but hashes it once where that does so twice, and never
// takes room for its zeros. A part that doesn't arrive as a whole and as its Content-MD5 or SHA-256 says leaves what
// there was of that number.
func (s *sparseStore) putPart(in *s3.UploadPartInput) (*s3.UploadPartOutput, error) {
	p := newPart(in.Bucket, in.Key, in.UploadId, in.PartNumber)
	f, err := p.create(s)
	if err != nil {
		return nil, p.fail("create", err)
	}
	defer p.discard(f)
	// The reader that checks the Content-MD5 knows the MD5 then.
	var own hash.Hash
	checked, ok := in.Body.(*utils.HashReader)
	if !ok || checked.Type() != utils.HashTypeContentMD5 {
		own = md5.New()
	}
	buf := partBuffers.Get().(*[4 * zeroBlock]byte)
	defer partBuffers.Put(buf)
	var size int64
	var crc uint64
	for err == nil {
		n := 0
		for n < len(buf) && err == nil { // not io.ReadFull, which keeps to itself what is wrong with all of the data
			var more int
			more, err = in.Body.Read(buf[n:])
			n += more
		}
		got := buf[:n]
		if own != nil {
			write(own, got)
		}
		crc = crc64nvme.Update(crc, got)
		if err := writeData(f, got, size); err != nil {
			_, _ = io.Copy(io.Discard, in.Body) // a client that is still sending would not hear the answer
			return nil, p.fail("store", err)
		}
		size += int64(n)
	}
	switch {
	case errors.Is(err, io.EOF) && size != *in.ContentLength, errors.Is(err, io.ErrUnexpectedEOF):
		return nil, s3err.GetAPIError(s3err.ErrIncompleteBody)
	case !errors.Is(err, io.EOF):
		return nil, p.fail("receive", err)
	}
	if err := f.Truncate(size); err != nil { // a hole at the end
		return nil, p.fail("store", err)
	}
	var sum []byte
	if own != nil {
		sum = own.Sum(nil)
	} else if sum, err = base64.StdEncoding.DecodeString(checked.Sum()); err != nil {
		return nil, fmt.Errorf("the MD5 of a part: %w", err)
	}
	etag, err := p.keep(s, f, newSums(sum, crc))
	if err != nil {
		return nil, err
	}
	return &s3.UploadPartOutput{ETag: &etag}, nil
}

// writeData writes those blocks of p that are not all zero.
func writeData(f *os.File, p []byte, off int64) error {
	for start := 0; start < len(p); {
		end := min(start+zeroBlock, len(p))
		if isZero(p[start:end]) {
			start = end
			continue
		}
		for end < len(p) && !isZero(p[end:min(end+zeroBlock, len(p))]) {
			end = min(end+zeroBlock, len(p))
		}
		if _, err := f.WriteAt(p[start:end], off+int64(start)); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// putZeroPart stores a part of length zeros the way the posix backend stores one, but as a hole.
func (s *sparseStore) putZeroPart(ctx context.Context, in *s3.UploadPartCopyInput, length int64) (s3response.CopyPartResult, error) {
	sums, err := s.zeros.of(ctx, length)
	if err != nil {
		return s3response.CopyPartResult{}, err
	}
	p := newPart(in.Bucket, in.Key, in.UploadId, in.PartNumber)
	f, err := p.create(s)
	if err != nil {
		return s3response.CopyPartResult{}, p.fail("create", err)
	}
	defer p.discard(f)
	if err := f.Truncate(length); err != nil {
		return s3response.CopyPartResult{}, p.fail("store", err)
	}
	etag, err := p.keep(s, f, sums)
	if err != nil {
		return s3response.CopyPartResult{}, err
	}
	return s3response.CopyPartResult{ETag: &etag, LastModified: time.Now()}, nil
}

// arriving begins the name of a part that isn't all there.
const arriving = "imsprep-part-"

// part is where a part is kept.
type part struct {
	bucket, key, upload string
	path                string // of the part, below the bucket
}

func newPart(bucket, key, upload *string, number *int32) part {
	return part{*bucket, *key, *upload, filepath.Join(uploadDir(*key), *upload, strconv.Itoa(int(*number)))}
}

// create opens a file for the part. It isn't in the upload's folder, so that it doesn't keep that from being removed.
func (p part) create(s *sparseStore) (*os.File, error) {
	return os.CreateTemp(filepath.Join(s.root, p.bucket, posix.MetaTmpDir), arriving)
}

// discard removes the file, unless the part was kept and there's nothing of that name.
func (p part) discard(f *os.File) {
	_ = f.Close()
	_ = os.Remove(f.Name())
}

// keep makes f the part, with its ETag and its checksum, and returns the ETag.
func (p part) keep(s *sparseStore, f *os.File, sums sums) (etag string, err error) {
	etag = `"` + sums.md5 + `"`
	if err := f.Close(); err != nil {
		return "", p.fail("store", err)
	}
	if err := s.meta.StoreAttribute(nil, p.bucket, p.path, attrPartCRC64, []byte(sums.crc64)); err != nil {
		return "", p.fail("describe", err)
	}
	if err := s.meta.StoreAttribute(nil, p.bucket, p.path, attrETag, []byte(etag)); err != nil {
		return "", p.fail("describe", err)
	}
	if err := os.Rename(f.Name(), filepath.Join(s.root, p.bucket, p.path)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			s.forgetUpload(p.bucket, p.key, p.upload) // aborted meanwhile
		}
		return "", p.fail("store", err)
	}
	return etag, nil
}

// fail is an error of making a part, as clients of the posix backend know it. An upload that was aborted meanwhile has
// no folder any more.
func (p part) fail(what string, err error) error {
	var known s3err.S3Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, fs.ErrNotExist):
		return s3err.GetNoSuchUploadErr(p.upload)
	case errors.Is(err, syscall.ENOSPC):
		return s3err.GetAPIError(s3err.ErrNoSpaceLeftOnDevice)
	case errors.Is(err, syscall.EDQUOT):
		return s3err.GetAPIError(s3err.ErrQuotaExceeded)
	}
	return fmt.Errorf("%s a part: %w", what, err)
}

// newSums are a part's MD5 and CRC-64/NVME as the backend stores them.
func newSums(md5 []byte, crc64 uint64) sums {
	return sums{md5: hex.EncodeToString(md5), crc64: base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, crc64))}
}
