// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strconv"

	"github.com/minio/minio-go/v7"
)

// State is what is known of an unfinished upload: all that another process needs to go on with it.
// It is kept as JSON and has no secrets in it. It need not be true: what it says of parts counts as
// far as the server agrees.
type State struct {
	Bucket   string `json:"bucket"`
	Key      string `json:"key"`
	UploadID string `json:"upload_id"`
	RunID    string `json:"run_id"`
	// Size of the object in bytes; 0 for a stream that has not ended.
	Size int64 `json:"size,omitempty"`
	// BlockSize in bytes, ZeroCopy and Boundaries identify the plan; they are empty for a stream.
	// Boundaries is a SHA-256 of where the parts begin and which of them are zeros.
	BlockSize  int64        `json:"block_size,omitempty"`
	ZeroCopy   ZeroCopyMode `json:"zero_copy,omitempty"`
	Boundaries string       `json:"boundaries,omitempty"`
	// CopyRefused means that the server would not copy, so that the plan's zeros are sent.
	CopyRefused bool `json:"copy_refused,omitempty"`
	// Composed means that there may be helper objects with PieceMark.
	Composed bool `json:"composed,omitempty"`
	// Encrypted means that ETags of parts are not their MD5.
	Encrypted bool        `json:"encrypted,omitempty"`
	Parts     []PartState `json:"parts,omitempty"`
}

// PartState is a part that the server has acknowledged.
type PartState struct {
	Number int    `json:"number"` // from 1
	Offset int64  `json:"offset"` // in the object, in bytes
	Size   int64  `json:"size"`   // bytes
	ETag   string `json:"etag"`   // the MD5 in hexadecimal, unless State.Encrypted
	Copied bool   `json:"copied,omitempty"`
	// Note is the caller's own, see UploadOptions.Note.
	Note []byte `json:"note,omitempty"`
}

// Delta is what became known of an upload since the Delta before. A journal writes one after the
// other and puts the State together with Apply. One of the fields is set.
type Delta struct {
	// Begun: the upload began, was taken up again, or is cut anew. It voids all that came before; when
	// it was taken up, its Parts are those that need not come again.
	Begun *State `json:"begun,omitempty"`
	// Part was acknowledged by the server.
	Part *PartState `json:"part,omitempty"`
	// Size in bytes of a stream that has ended.
	Size int64 `json:"size,omitempty"`
}

// Apply brings the state up to date.
func (s *State) Apply(d Delta) {
	if d.Begun != nil {
		*s = *d.Begun
		s.Parts = slices.Clone(s.Parts)
	}
	if d.Part != nil {
		s.Parts = append(s.Parts, *d.Part)
	}
	if d.Size > 0 {
		s.Size = d.Size
	}
}

// fingerprint identifies how an object is cut.
func fingerprint(parts []Part) string {
	h := sha256.New()
	var b [17]byte
	for _, p := range parts {
		binary.LittleEndian.PutUint64(b[:], uint64(p.Offset))
		binary.LittleEndian.PutUint64(b[8:], uint64(p.Length))
		b[16] = 0
		if p.Zero {
			b[16] = 1
		}
		h.Write(b[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// remote is a part in the server's list.
type remote struct {
	size int64
	etag string
}

// takeUp goes on with the upload of m.resume, if the server still has it. It returns true when it
// does, a result when the upload turns out to be complete, and neither when a new upload must begin.
func (m *multipart) takeUp(ctx context.Context) (bool, *UploadResult, error) {
	s := m.resume
	anew := func(why string) {
		m.id, m.kept, m.startedAnew = "", false, why
		m.report(func(ev *UploadEvent) { ev.Note = "the upload starts anew: " + why })
	}
	if s.Bucket != m.bucket || s.Key != m.key || s.UploadID == "" || !validRunID(s.RunID) {
		anew("what was remembered is of something else")
		return false, nil, nil
	}
	zeros, sweep, sweepUp := m.leavings(s)
	m.helpers, m.sweep, m.sweepUp = zeros, sweep, sweepUp
	// What is of no use goes now: once a new upload is remembered, nobody knows of the old one.
	forget := func(drop ...UploadInfo) { m.left = append(m.left, m.clear(ctx, drop, zeros, sweep, sweepUp)...) }
	m.id, m.kept = s.UploadID, true
	if !m.fits(s) {
		forget(UploadInfo{Key: s.Key, ID: s.UploadID})
		anew("the object is cut in another way than before")
		return false, nil, nil
	}
	there := map[int]remote{}
	for p, err := range m.listParts(ctx, s.UploadID) {
		if err == nil {
			there[p.PartNumber] = remote{p.Size, trimETag(p.ETag)}
			continue
		}
		if !isCode(err, "NoSuchUpload") {
			return false, nil, err
		}
		info, err := m.c.stat(ctx, m.target("", m.key))
		switch {
		case err == nil && info.Metadata[RunIDMetadata] == s.RunID && info.Size == s.Size && s.Size > 0:
			forget()
			return false, &UploadResult{ETag: info.ETag, Size: info.Size, RunID: s.RunID, AlreadyComplete: true,
				PartsResumed: len(s.Parts), BytesResumed: info.Size}, nil
		case err != nil && KindOf(err) != KindNotFound:
			return false, nil, err
		}
		forget()
		anew("the unfinished upload is gone")
		return false, nil, nil
	}
	m.runID, m.open[m.key] = s.RunID, s.UploadID
	m.there, m.encrypted = there, s.Encrypted
	return true, nil, nil
}

// leavings are what an earlier run may have left beside the object, in the terms of clear.
func (m *multipart) leavings(s *State) (keys, sweep []string, sweepUp string) {
	prefix := m.zeroKeys(s.RunID)
	for i := range maxZeroLevels {
		keys = append(keys, prefix+strconv.Itoa(i))
	}
	sweep = []string{prefix}
	if s.Composed {
		sweepUp = m.pieceKeys(s.RunID)
		sweep = append(sweep, sweepUp)
	}
	return keys, sweep, sweepUp
}

// Discard removes what an upload that nobody goes on with has in the bucket: the unfinished upload, what
// it copied from, and the object if it was completed and is still that run's. It returns what could not
// be removed, as in Error.Left.
func (c *Client) Discard(ctx context.Context, s State) []string {
	m, err := c.newMultipart(order{bucket: s.Bucket, key: s.Key, runID: s.RunID})
	if err != nil || s.RunID == "" {
		return nil // nothing that this package made
	}
	var drop []UploadInfo
	if s.UploadID != "" {
		drop = []UploadInfo{{Key: s.Key, ID: s.UploadID}}
	}
	keys, sweep, sweepUp := m.leavings(&s)
	left := m.clear(ctx, drop, keys, sweep, sweepUp)
	info, err := c.stat(ctx, m.brief(s.Key))
	if err == nil && info.Metadata[RunIDMetadata] == s.RunID {
		err = c.remove(ctx, m.brief(s.Key))
	}
	if err != nil && KindOf(err) != KindNotFound {
		left = append(left, s.Key)
	}
	slices.Sort(left)
	return left
}

// accepted returns the parts of the state that the server has just as they were acknowledged, in
// order and each once.
func (m *multipart) accepted() []PartState {
	var out []PartState
	for _, p := range m.resume.Parts {
		if r, ok := m.there[p.Number]; ok && p.ETag != "" && r.etag == p.ETag && r.size == p.Size {
			out = append(out, p)
		}
	}
	slices.SortStableFunc(out, func(a, b PartState) int { return a.Number - b.Number })
	return slices.CompactFunc(out, func(a, b PartState) bool { return a.Number == b.Number })
}

// keep counts accepted parts as done.
func (m *multipart) keep(parts []PartState) {
	for _, p := range parts {
		m.record(p.Number, partDone{offset: p.Offset, size: p.Size, etag: p.ETag, copied: p.Copied, resumed: true, note: p.Note})
	}
}

// isThere tells whether the server has a part with this very content, from an earlier run whose
// memory of it got lost. An ETag that is no MD5 never matches.
func (m *multipart) isThere(part Part, s func() sum) (partDone, bool) {
	r, ok := m.there[part.Number]
	if !ok || r.size != part.Length || r.etag != s().hex() {
		return partDone{}, false
	}
	return partDone{etag: r.etag, resumed: true}, true
}

// begun tells the caller's journal what it begins with.
func (m *multipart) begun(s State) {
	s.Bucket, s.Key, s.UploadID, s.RunID, s.Encrypted = m.bucket, m.key, m.id, m.runID, m.encrypted
	m.kept = true
	m.remember(Delta{Begun: &s})
}

func (m *multipart) remember(d Delta) {
	if m.checkpoint == nil {
		return
	}
	m.remembering.Lock()
	defer m.remembering.Unlock()
	m.checkpoint(d)
}

// listParts goes through all pages of an upload's parts, in order.
func (m *multipart) listParts(ctx context.Context, id string) iter.Seq2[minio.ObjectPart, error] {
	return func(yield func(minio.ObjectPart, error) bool) {
		marker := 0
		for {
			var page minio.ListObjectPartsResult
			err := m.c.call(ctx, m.target("list parts", m.key), func(ctx context.Context) error {
				var err error
				page, err = m.c.core.ListObjectParts(ctx, m.bucket, m.key, id, marker, listPage)
				return err
			})
			if err != nil {
				yield(minio.ObjectPart{}, err)
				return
			}
			for _, p := range page.ObjectParts {
				if !yield(p, nil) {
					return
				}
			}
			if !page.IsTruncated {
				return
			}
			n := len(page.ObjectParts)
			if n == 0 || page.ObjectParts[n-1].PartNumber <= marker {
				yield(minio.ObjectPart{}, &Error{Op: "list parts", Bucket: m.bucket, Key: m.key, Kind: KindIntegrity,
					Message: fmt.Sprintf("the server's list does not go on after part %d", marker)})
				return
			}
			marker = page.ObjectParts[n-1].PartNumber
		}
	}
}

// resumable tells whether an upload that failed so may still succeed, later or once the user has put
// something right that has nothing to do with the upload itself.
func resumable(err error) bool {
	switch KindOf(err) {
	case KindTransient, KindCanceled, KindAuth, KindClock, KindQuota:
		return true
	case KindNotFound:
		// Somebody removed the upload, or an earlier run's completing it took effect only now: the next
		// run finds out which.
		return isCode(err, "NoSuchUpload")
	case KindOther, KindRegion, KindInvalid, KindUnsupported, KindConflict, KindSource, KindIntegrity:
	}
	return false
}
