// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/obs"
)

// ObjectName is where an object is.
type ObjectName struct{ Bucket, Key string }

func (o ObjectName) String() string { return "obs://" + o.Bucket + "/" + o.Key }

// reusePartSize is the length of parts when an earlier object is to be copied from, in bytes: whole blocks,
// and as short as a part may be, so that a small change costs little.
const reusePartSize = 3 * convert.DigestBlock

// reusing is an earlier RAW object whose unchanged blocks are copied instead of being sent.
type reusing struct {
	name ObjectName
	etag string
	size int64 // bytes
	sums blockDigests
}

// blockDigests are the digests of a disk's blocks that aren't all zeros.
type blockDigests map[int64]convert.BlockDigest

var errBlocks = errors.New("its list of block digests is damaged")

// unpackBlocks is the reverse of packBlocks for a disk of so many blocks.
func unpackBlocks(text string, blocks int64) (blockDigests, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, errBlocks
	}
	sums := blockDigests{}
	var sum convert.BlockDigest
	for at := int64(0); len(b) > 0; {
		skip, n := binary.Uvarint(b)
		if n <= 0 || skip > uint64(blocks-at) {
			return nil, errBlocks
		}
		count, k := binary.Uvarint(b[n:])
		b = b[max(n, n+k):]
		at += int64(skip)
		if k <= 0 || count == 0 || count > uint64(blocks-at) || count > uint64(len(b)/len(sum)) {
			return nil, errBlocks
		}
		for range count {
			copy(sum[:], b)
			sums[at] = sum
			b = b[len(sum):]
			at++
		}
	}
	return sums, nil
}

// check refuses an account that can't be of the object that is there.
func (a *account) check(key string, info obs.ObjectInfo) error {
	switch {
	case a.Version != accountVersion:
		return fmt.Errorf("it has version %d, not %d", a.Version, accountVersion)
	case a.Key != key || a.ETag == "" || a.ETag != info.ETag || a.ObjectSize != info.Size:
		return errors.New("it is about another object than the one that is there")
	}
	return nil
}

// readAccount reads the account of an object.
func readAccount(ctx context.Context, c *obs.Client, bucket, key string) (*account, error) {
	b, err := readSmall(ctx, c, bucket, AccountKey(key), maxAccount)
	if err != nil {
		return nil, err
	}
	var a account
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, fmt.Errorf("%s is no account: %w", AccountKey(key), err)
	}
	return &a, nil
}

// planReuse looks at the earlier object and its account. Without a good account the disk is sent, with a
// warning; that the object isn't there at all is an error, for then its name is wrong.
func (i *Importer) planReuse(ctx context.Context, p *Plan) error {
	from := p.Request.Reuse
	if from == (ObjectName{}) || p.Request.Offline {
		return nil
	}
	if p.Format != FormatRAW || p.choice.asIs {
		return &CheckError{What: fmt.Sprintf("--reuse is for RAW objects, and this one is %s", p.Format),
			Remedy: "Add --format raw, or leave --reuse out.", Usage: true}
	}
	info, err := i.OBS.Stat(ctx, from.Bucket, from.Key)
	if obs.KindOf(err) == obs.KindNotFound {
		return &CheckError{What: fmt.Sprintf("the object to reuse, %s, isn't there", from), Remedy: "Check its name, or leave --reuse out.", Usage: true}
	}
	if err != nil {
		return err
	}
	a, err := readAccount(ctx, i.OBS, from.Bucket, from.Key)
	if err == nil {
		err = a.check(from.Key, info)
	}
	var sums blockDigests
	if err == nil {
		switch blocks := (info.Size + convert.DigestBlock - 1) / convert.DigestBlock; {
		case a.Format != FormatRAW || a.BlockSize != convert.DigestBlock || a.VirtualSize != info.Size:
			err = errors.New("it has no digests of a RAW object's blocks")
		default:
			sums, err = unpackBlocks(a.Blocks, blocks)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		p.Warnings = append(p.Warnings, fmt.Sprintf("nothing of %s is reused, for what it holds isn't known: %s: %v", from, AccountKey(from.Key), err))
		return nil
	}
	p.reuse = &reusing{name: from, etag: info.ETag, size: info.Size, sums: sums}
	return nil
}

// source tells whether a part that was read is the same in the earlier object, by its blocks' digests.
func (r *reusing) source(s *convert.Scanner, part obs.Part) (obs.CopySource, bool) {
	if part.Offset%convert.DigestBlock != 0 || part.Offset+part.Length > r.size {
		return obs.CopySource{}, false
	}
	for block := part.Offset / convert.DigestBlock; block*convert.DigestBlock < part.Offset+part.Length; block++ {
		now, data, known := s.Block(block)
		was, had := r.sums[block]
		if !known || data != had || data && now != was {
			return obs.CopySource{}, false
		}
	}
	return obs.CopySource{Bucket: r.name.Bucket, Key: r.name.Key, ETag: r.etag, Offset: part.Offset}, true
}
