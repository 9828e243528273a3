// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/obs"
)

// Names of user metadata that tell what an object holds.
const (
	DigestMetadata = "imsprep-digest" // the disk's digest
	SHA256Metadata = "imsprep-sha256" // the plain SHA-256 of the disk, in hexadecimal
)

const (
	accountVersion = 1
	// maxAccount bounds an account in bytes: the digests of 3 TiB of data take 64 MiB.
	maxAccount = 64 << 20
)

// account is what stands beside an object that stays in the bucket: what it holds, and the digests of its
// blocks, by which a later upload finds what has not changed.
type account struct {
	Version     int             `json:"imsprep_account"`
	RunID       string          `json:"run_id"`
	Key         string          `json:"key"`
	Format      Format          `json:"format"`
	ETag        string          `json:"etag"`         // of the object, without quotes
	ObjectSize  int64           `json:"object_size"`  // bytes
	VirtualSize int64           `json:"virtual_size"` // bytes of the disk that the digest is of
	Digest      *convert.Digest `json:"content_digest,omitempty"`
	SHA256      string          `json:"sha256,omitempty"`
	BlockSize   int64           `json:"block_size,omitempty"` // bytes of the blocks
	Blocks      string          `json:"blocks,omitempty"`     // of RAW: see packBlocks
}

// AccountKey is where the account of an object is.
func AccountKey(key string) string { return key + accountSuffix }

// packBlocks packs the digests of blocks, which come in order, as base64 of: the blocks that have none since
// the last run, and how many follow that have one, as a uvarint each; and those digests. And so on.
func packBlocks(each func(fn func(block int64, sum convert.BlockDigest) error) error) (string, error) {
	var out, run []byte
	next, end := int64(0), int64(0) // the run is [next, end)
	start := int64(0)
	flush := func() {
		if end > start {
			out = binary.AppendUvarint(out, uint64(start-next))
			out = binary.AppendUvarint(out, uint64(end-start))
			out = append(out, run...)
			next, run = end, run[:0]
		}
	}
	err := each(func(block int64, sum convert.BlockDigest) error {
		if block != end || end == start {
			flush()
			start, end = block, block
		}
		run = append(run, sum[:]...)
		end++
		return nil
	})
	flush()
	return base64.StdEncoding.EncodeToString(out), err
}

// readSmall reads an object of at most limit bytes.
func readSmall(ctx context.Context, c *obs.Client, bucket, key string, limit int64) ([]byte, error) {
	o, err := c.Object(ctx, bucket, key)
	if err != nil {
		return nil, err
	}
	if o.Size() > limit {
		return nil, fmt.Errorf("obs://%s/%s has %d bytes, more than the %d that it may have", bucket, key, o.Size(), limit)
	}
	p := make([]byte, o.Size())
	if _, err := o.ReadAt(ctx, p, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return p, nil
}

// describe tells what an object that stays holds: in its metadata and beside it. The object is good without,
// so that nothing here fails an upload.
func (r *run) describe(ctx context.Context, res *UploadResult) {
	if ctx.Err() != nil || res.ContentDigest == nil {
		return
	}
	bucket, key := res.Bucket, res.Key
	meta := map[string]string{DigestMetadata: res.ContentDigest.String()}
	if res.SHA256 != "" {
		meta[SHA256Metadata] = res.SHA256
	}
	if res.ObjectSize > obs.MaxCopySize {
		r.warn(fmt.Sprintf("the object is too long to be copied in one request, so its digest is in %s alone and not in its metadata", AccountKey(key)))
	} else if etag, err := r.OBS.AddMetadata(ctx, bucket, key, res.ETag, meta); err != nil {
		if ctx.Err() != nil {
			return
		}
		r.warn(fmt.Sprintf("the digest could not be added to the object's metadata: %v", err))
	} else {
		res.ETag = etag
	}
	a := account{Version: accountVersion, RunID: r.plan.RunID, Key: key, Format: r.plan.Format, ETag: res.ETag,
		ObjectSize: res.ObjectSize, VirtualSize: r.plan.Disk.Size(), Digest: res.ContentDigest, SHA256: res.SHA256}
	err := r.addBlocks(ctx, &a, res)
	if err == nil {
		var doc []byte
		if doc, err = json.Marshal(a); err == nil && len(doc) > maxAccount {
			a.Blocks, a.BlockSize = "", 0
			doc, err = json.Marshal(a)
		}
		if err == nil {
			err = r.OBS.PutSmall(ctx, bucket, AccountKey(key), append(doc, '\n'), r.mark())
		}
	}
	if err != nil {
		r.warn(fmt.Sprintf("what the object holds could not be written beside it: %v", err))
		return
	}
	res.Account = AccountKey(key)
}

// addBlocks adds the digests of a RAW object's blocks.
func (r *run) addBlocks(ctx context.Context, a *account, res *UploadResult) (err error) {
	if res.scanner == nil {
		return nil
	}
	a.BlockSize = convert.DigestBlock
	a.Blocks, err = packBlocks(func(fn func(int64, convert.BlockDigest) error) error { return res.scanner.BlockDigests(ctx, fn) })
	return err
}
