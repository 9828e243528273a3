// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"
)

// maxAnswer bounds an error's answer, in bytes.
const maxAnswer = 64 << 10

// Small is an object that was read whole.
type Small struct {
	Data     []byte
	ETag     string    // without quotes
	Modified time.Time // by the store's clock, in whole seconds; zero when it doesn't tell
	Date     time.Time // the store's clock when it answered; zero when it doesn't tell
}

// GetSmall reads an object whole, in one request. It is meant for what fits into memory easily: an object
// of more than limit bytes is KindInvalid, with all but its data. KindNotFound: there is none.
func (c *Client) GetSmall(ctx context.Context, bucket, key string, limit int64) (Small, error) {
	if err := c.checkTarget(bucket, key, nil); err != nil {
		return Small{}, err
	}
	t := target{op: "read object", bucket: bucket, key: key}
	var got Small
	err := c.call(ctx, t, func(ctx context.Context) error {
		resp, err := c.signed(ctx, http.MethodGet, bucket, key, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return answerOf(resp)
		}
		got = Small{ETag: trimETag(resp.Header.Get("ETag"))}
		got.Modified, _ = http.ParseTime(resp.Header.Get("Last-Modified")) // zero when it can't be read
		got.Date, _ = http.ParseTime(resp.Header.Get("Date"))
		tooLong := &Error{Kind: KindInvalid, Message: fmt.Sprintf("it has more than %d bytes", limit)}
		if resp.ContentLength > limit {
			return tooLong
		}
		if got.Data, err = io.ReadAll(io.LimitReader(resp.Body, limit+1)); err != nil {
			return err
		}
		if int64(len(got.Data)) > limit {
			return tooLong
		}
		return nil
	})
	return got, err
}

// answerOf is the error that an answer tells.
func answerOf(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // what can't be read says nothing
	var answer minio.ErrorResponse
	if xml.Unmarshal(body, &answer) != nil || answer.Code == "" {
		return &statusError{resp.StatusCode}
	}
	return answer
}

// PutNew stores data as PutSmall does, if there is no object of that key (If-None-Match: *): else
// KindConflict, also when an earlier try of this very call has stored it and its answer was lost. OBS
// doesn't document the condition. A store that doesn't know it replaces what is there, or refuses with
// KindUnsupported or KindInvalid: see [Client.KnowsConditions].
func (c *Client) PutNew(ctx context.Context, bucket, key string, data []byte) error {
	if err := c.checkTarget(bucket, key, nil); err != nil {
		return err
	}
	o := objectOptions("", nil)
	o.SetMatchETagExcept("*")
	_, err := c.putWith(ctx, target{op: "put new object", bucket: bucket, key: key}, int64(len(data)), md5Base64(data),
		func() io.ReadSeeker { return bytes.NewReader(data) }, o, nil)
	return err
}

// KnowsConditions finds out whether the store keeps the condition of [Client.PutNew], by storing once more
// what the caller knows to be there: a store that knows it must refuse.
func (c *Client) KnowsConditions(ctx context.Context, bucket, key string, data []byte) (bool, error) {
	switch err := c.PutNew(ctx, bucket, key, data); KindOf(err) {
	case KindConflict:
		return true, nil
	case KindUnsupported, KindInvalid:
		return false, nil
	default:
		return false, err
	}
}
