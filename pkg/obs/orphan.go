// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"
)

// lostBegins are the attempts to begin an upload of the object's own key whose answers didn't come, or not
// whole. Each may have begun one, under an id that nobody knows: an orphan.
type lostBegins struct {
	n        int
	from, to time.Time // of the first attempt and of the end of the last, by this machine's clock
}

// orphanSlack is how far the store's clock may seem to be from where it is: dates in answers have whole
// seconds, and an answer takes its time.
const orphanSlack = 2 * time.Second

// lost tells whether what failed so may have been done all the same.
func (e *Error) lost() bool {
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(e.Err, &dns), errors.As(e.Err, &op) && op.Op == "dial", e.throttled():
		return false // it was never asked for, or refused
	case e.Kind == KindCanceled:
		return true
	}
	return e.Kind == KindTransient
}

// orphans removes the uploads that attempts to begin m's own have left, and returns what is still there, or
// may be. Where the key was made up for this run, all uploads of it are ours. Where it is the caller's,
// somebody else may send to it at the same time, so an upload is only taken for ours that began during those attempts,
// has no parts to this day, and if there are no more such uploads than attempts; else it is named.
func (m *multipart) orphans(ctx context.Context) (left []string) {
	list, err := m.c.listUploads(ctx, m.brief(m.key))
	if err != nil {
		return []string{"perhaps an empty upload of " + m.key}
	}
	var window func(time.Time) bool
	if !m.ownKey {
		if window, err = m.beginWindow(ctx); err != nil {
			return []string{"perhaps an empty upload of " + m.key}
		}
	}
	name := func(u UploadInfo) string { return "upload " + u.ID + " of " + u.Key }
	const unclear = " (or it is somebody else's)"
	var found []UploadInfo
	for _, u := range list {
		if u.Key != m.key || u.ID == m.id || window != nil && !window(u.Initiated) {
			continue
		}
		if window != nil {
			empty, err := m.empty(ctx, u.ID)
			if err != nil {
				left = append(left, name(u)+unclear)
			}
			if !empty {
				continue
			}
		}
		found = append(found, u)
	}
	for _, u := range found {
		switch {
		case !m.ownKey && len(found) > m.begins.n:
			left = append(left, name(u)+unclear)
		case m.c.abort(ctx, m.brief(u.Key), u.ID) != nil:
			left = append(left, name(u))
		}
	}
	return left
}

// beginWindow tells of times by the store's clock whether they are within the attempts to begin.
func (m *multipart) beginWindow(ctx context.Context) (func(time.Time) bool, error) {
	var ahead time.Duration // of the store's clock
	t := m.brief("")
	t.op = "ask for the store's clock"
	err := m.c.call(ctx, t, func(ctx context.Context) error {
		before := time.Now()
		h, err := m.c.head(ctx, m.bucket, "")
		if err != nil {
			return err
		}
		date, err := http.ParseTime(h.Get("Date"))
		ahead = date.Sub(before)
		return err
	})
	return func(begun time.Time) bool {
		return !begun.Before(m.begins.from.Add(ahead-orphanSlack)) && !begun.After(m.begins.to.Add(ahead+orphanSlack))
	}, err
}

// empty tells whether an upload has no parts.
func (m *multipart) empty(ctx context.Context, id string) (bool, error) {
	for _, err := range m.listParts(ctx, id) {
		if isCode(err, "NoSuchUpload") {
			err = nil // ended meanwhile
		}
		return false, err
	}
	return true, nil
}
