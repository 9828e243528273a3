// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"
)

// roundTripTail is the length in bytes of the part of a round trip that is sent. The last part may be short.
const roundTripTail = 1 << 10

// roundTripCleanup bounds removing what a round trip has made.
const roundTripCleanup = 20 * time.Second

// RoundTrip is what [Client.RoundTrip] found out.
type RoundTrip struct {
	BytesSent int64
	// CopyRefused is why the store would not copy a part, nil when it did.
	CopyRefused error
	// Left names what could not be removed again, as [Error.Left] does.
	Left []string
}

// RoundTrip does on a small scale what an upload does: it sends an object of 5 MiB, makes a second one of
// a copy of it and of a part that is sent, reads that back, and removes both. The keys are
// KEY.imsprep-piece-..., so that cleaning up knows them if even removing fails. Whatever happens, also
// when ctx ends, what was made is removed, and the store is asked whether it is gone.
func (c *Client) RoundTrip(ctx context.Context, bucket, key string) (res RoundTrip, err error) {
	if err := c.checkTarget(bucket, key, nil); err != nil {
		return res, err
	}
	run := newRunID()
	source, object := key+PieceMark+run+"-0", key+PieceMark+run+"-1"
	m := &multipart{order: order{bucket: bucket, key: object, runID: run}, c: c, open: map[string]string{},
		lim: newLimiter(c.now, 1, 1, 1)}
	defer func() {
		res.BytesSent = m.wire.Load()
		res.Left = c.unmake(ctx, m, source, object)
		if err != nil {
			e := (*Error)(nil)
			if !errors.As(err, &e) {
				e = c.explain(m.target("upload", object), err, nil)
			}
			e.Left = res.Left
			err = e
		}
	}()

	data := make([]byte, MinPartSize+roundTripTail)
	fillNoise(data)
	// What is given up while the store still works on it could appear after it was removed.
	late, cancel := settling(ctx)
	defer cancel()
	etag, err := c.put(late, m.target("put object", source), MinPartSize, md5Base64(data[:MinPartSize]),
		func() io.ReadSeeker { return bytes.NewReader(data[:MinPartSize]) }, m.metadata(), m.moved)
	if err != nil {
		return res, err
	}
	if m.id, err = m.initiate(ctx, object, "", m.metadata()); err != nil {
		return res, err
	}
	first := Part{Number: 1, Length: MinPartSize}
	done, err := m.copyWhole(ctx, first, source, etag)
	if k := KindOf(err); err != nil && k != KindTransient && k != KindCanceled {
		res.CopyRefused = err
		done, err = m.sendBytes(ctx, first, data[:MinPartSize])
	}
	if err != nil {
		return res, err
	}
	tail, err := m.sendBytes(ctx, Part{Number: 2, Offset: MinPartSize, Length: roundTripTail}, data[MinPartSize:])
	if err != nil {
		return res, err
	}
	if _, err := m.complete(late, object, m.id, []partDone{done, tail}, int64(len(data))); err != nil {
		return res, err
	}
	r, err := c.Object(ctx, bucket, object)
	if err != nil {
		return res, err
	}
	got := make([]byte, len(data))
	if _, err := r.ReadAt(ctx, got, 0); err != nil && !errors.Is(err, io.EOF) {
		return res, err
	}
	if r.Size() != int64(len(data)) || !bytes.Equal(got, data) {
		return res, &Error{Op: "read object", Bucket: bucket, Key: object, Kind: KindIntegrity,
			Message: "what came back isn't what was sent"}
	}
	return res, nil
}

// fillNoise makes p something that no store finds easy.
func fillNoise(p []byte) {
	_, _ = rand.NewChaCha8([32]byte{0x5a}).Read(p) // never fails
}

func (m *multipart) sendBytes(ctx context.Context, part Part, p []byte) (partDone, error) {
	d, err := m.send(ctx, part, md5.Sum(p), func() io.ReadSeeker { return bytes.NewReader(p) })
	d.offset, d.size = part.Offset, part.Length
	return d, err
}

// copyWhole makes a part of an object of the same length.
func (m *multipart) copyWhole(ctx context.Context, part Part, from, etag string) (partDone, error) {
	t := m.target("copy part", m.key)
	t.part, t.offset, t.idleFactor = part.Number, part.Offset, serverWork
	d := partDone{offset: part.Offset, size: part.Length, copied: true}
	err := m.c.call(ctx, t, func(ctx context.Context) error {
		p, err := m.c.core.CopyObjectPart(ctx, m.bucket, from, m.bucket, m.key, m.id, part.Number, 0, part.Length,
			map[string]string{"x-amz-copy-source-if-match": `"` + etag + `"`})
		if err != nil {
			return err
		}
		if d.etag = trimETag(p.ETag); d.etag == "" {
			return &Error{Kind: KindTransient, Code: "CopyWithoutETag", Message: "the store answered 200, but copied nothing"}
		}
		return nil
	})
	return d, err
}

// unmake removes what a round trip may have made, and looks whether it is gone. It returns what isn't.
func (c *Client) unmake(ctx context.Context, m *multipart, keys ...string) []string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), roundTripCleanup)
	defer cancel()
	var left []string
	// An answer that was lost may have begun an upload that has no name here.
	found, err := c.listUploads(ctx, m.brief(m.key))
	if err != nil {
		for key, id := range m.open {
			found = append(found, UploadInfo{Key: key, ID: id})
		}
	}
	for _, u := range found {
		if err := c.abort(ctx, m.brief(u.Key), u.ID); err != nil {
			left = append(left, fmt.Sprintf("upload %s of %s", u.ID, u.Key))
		}
	}
	for _, key := range keys {
		err := c.remove(ctx, m.brief(key))
		if err == nil {
			_, err = c.stat(ctx, m.brief(key))
		}
		if KindOf(err) != KindNotFound {
			left = append(left, key)
		}
	}
	slices.Sort(left)
	return left
}

// Endpoint is the scheme and host of the store, without a bucket.
func (c *Client) Endpoint() string { return c.endpoint.String() }

// PathStyle tells whether buckets are addressed in the path instead of as part of the host's name.
func (c *Client) PathStyle() bool { return c.path }
