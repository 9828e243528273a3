// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"fmt"
)

// CopySource is where a part's bytes are in another object of the same region, as it was when it had this
// ETag.
type CopySource struct {
	Bucket, Key string
	ETag        string // without quotes
	Offset      int64  // bytes
}

// reusePart copies a part that was read from where the caller believes the same bytes to be. false without
// an error means that it must be sent.
func (u *upload) reusePart(ctx context.Context, part Part, want sum) (bool, error) {
	if !u.mayReuse() {
		return false, nil
	}
	if _, ok := u.isThere(part, func() sum { return want }); ok {
		return false, nil // whoever sends it finds it
	}
	etag, err := u.reuseInto(ctx, part, partAddress{u.key, u.id, part.Number}, want)
	if err != nil || etag == "" {
		return false, err
	}
	u.acknowledged(part, partDone{etag: etag, copied: true, reused: part.Length})
	return true, nil
}

func (u *upload) mayReuse() bool { return u.reuse != nil && !u.reuseRefused.Load() }

// reuseInto copies a part or a piece of one to where it belongs and returns its ETag, or "" if it must be
// sent. Nothing is taken on trust: the ETag must be the MD5 of what was read. After the first copy that
// doesn't come out so, all else is sent.
func (u *upload) reuseInto(ctx context.Context, part Part, to partAddress, want sum) (string, error) {
	if !u.mayReuse() {
		return "", nil
	}
	from, ok := u.reuse(part)
	if !ok {
		return "", nil
	}
	t := u.target("copy part from an earlier object", to.key)
	t.part, t.offset = to.number, part.Offset
	t.idleFactor, t.before = serverWork, u.slot
	var etag string
	err := u.c.call(ctx, t, func(ctx context.Context) error {
		p, err := u.c.core.CopyObjectPart(ctx, from.Bucket, from.Key, t.bucket, t.key, to.id, to.number, from.Offset, part.Length,
			map[string]string{"x-amz-copy-source-if-match": from.ETag})
		if err != nil {
			return err
		}
		switch etag = trimETag(p.ETag); etag {
		case "":
			return &Error{Kind: KindTransient, Code: "CopyWithoutETag", Message: "the server began to copy and failed"}
		case want.hex():
			return nil
		}
		if u.encrypted || opaqueETag(ctx, etag) {
			return &Error{Kind: KindUnsupported, Message: "the store encrypts, so that what was copied can't be checked by its ETag"}
		}
		return &Error{Kind: KindIntegrity, Message: "the earlier object has other bytes there than it is said to have"}
	})
	if err == nil {
		return etag, nil
	}
	if ctx.Err() != nil || !mayFallBack(err) {
		return "", err
	}
	if !u.reuseRefused.Swap(true) {
		u.report(func(ev *UploadEvent) {
			ev.Note = fmt.Sprintf("nothing more is copied from obs://%s/%s, all else is sent: %v", from.Bucket, from.Key, err)
		})
	}
	return "", nil
}
