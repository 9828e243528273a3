// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxListing bounds a page of a listing, in bytes: 1,000 keys of 1,024 bytes, each of which may be
// written as %XX, and what stands around them.
const maxListing = 16 << 20

// ListedObject is an object as a listing shows it.
type ListedObject struct {
	Key      string
	Size     int64 // bytes
	ETag     string
	Modified time.Time // by the store's clock
}

// ListObjects goes through the objects whose keys begin with prefix, in the order of their keys, page
// by page (GET Bucket, the first version: older installations don't have the second). An error ends
// it; it is an *Error.
func (c *Client) ListObjects(ctx context.Context, bucket, prefix string) iter.Seq2[ListedObject, error] {
	t := target{op: "list objects", bucket: bucket, key: prefix}
	return func(yield func(ListedObject, error) bool) {
		if err := ValidateBucket(bucket, c.Secure() && !c.path); err != nil {
			yield(ListedObject{}, err)
			return
		}
		marker := ""
		for {
			var page listing
			err := c.call(ctx, t, func(ctx context.Context) (err error) {
				page, err = c.listPage(ctx, bucket, prefix, marker)
				return err
			})
			if err != nil {
				yield(ListedObject{}, err)
				return
			}
			next := page.NextMarker
			for _, o := range page.Contents {
				next = max(next, o.Key)
				// A server that ignores the prefix must not make us remove what is another's.
				if strings.HasPrefix(o.Key, prefix) && !yield(o.listed(), nil) {
					return
				}
			}
			if !page.IsTruncated {
				return
			}
			if next <= marker {
				yield(ListedObject{}, &Error{Op: t.op, Bucket: bucket, Key: prefix, Kind: KindIntegrity,
					Message: "the server's list does not go on after " + strconv.Quote(marker)})
				return
			}
			marker = next
		}
	}
}

// listing is a page of the answer, ListBucketResult.
type listing struct {
	XMLName      xml.Name `xml:"ListBucketResult"`
	EncodingType string
	NextMarker   string
	IsTruncated  bool
	Contents     []listedContent
}

type listedContent struct {
	Key          string
	LastModified time.Time
	ETag         string
	Size         int64
}

func (o listedContent) listed() ListedObject {
	return ListedObject{Key: o.Key, Size: o.Size, ETag: trimETag(o.ETag), Modified: o.LastModified}
}

func (c *Client) listPage(ctx context.Context, bucket, prefix, marker string) (listing, error) {
	query := url.Values{
		"prefix": {prefix}, "max-keys": {strconv.Itoa(listPage)},
		// Keys may hold what XML can't.
		"encoding-type": {"url"},
	}
	if marker != "" {
		query.Set("marker", marker)
	}
	resp, err := c.signed(ctx, http.MethodGet, bucket, "", query)
	if err != nil {
		return listing{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return listing{}, answerOf(resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxListing+1))
	switch {
	case err != nil:
		return listing{}, err
	case len(body) > maxListing:
		return listing{}, &Error{Kind: KindIntegrity, Message: "the server's list is too long"}
	}
	page, err := parseListing(body)
	if err != nil {
		// Perhaps half an answer.
		return listing{}, &Error{Kind: KindTransient, Message: "the server's list cannot be read: " + err.Error()}
	}
	return page, nil
}

func parseListing(body []byte) (listing, error) {
	var page listing
	if err := xml.Unmarshal(body, &page); err != nil {
		return listing{}, err
	}
	decode := func(s *string) (err error) {
		if page.EncodingType == "url" {
			*s, err = url.QueryUnescape(*s)
		}
		return err
	}
	if err := decode(&page.NextMarker); err != nil {
		return listing{}, err
	}
	for n := range page.Contents {
		o := &page.Contents[n]
		if err := decode(&o.Key); err != nil {
			return listing{}, err
		}
		if o.Size < 0 || o.Key == "" {
			return listing{}, fmt.Errorf("an object with key %q and %d bytes", o.Key, o.Size)
		}
	}
	return page, nil
}

// UploadContent is what an unfinished upload has so far.
type UploadContent struct {
	Parts int
	Size  int64 // bytes
	// LastPart is when the newest part arrived, by the store's clock; zero without parts.
	LastPart time.Time
}

// UploadContent counts the parts of an unfinished upload. An upload that is gone is KindNotFound.
func (c *Client) UploadContent(ctx context.Context, bucket, key, id string) (UploadContent, error) {
	var sum UploadContent
	m := &multipart{order: order{bucket: bucket, key: key}, c: c}
	for p, err := range m.listParts(ctx, id) {
		if err != nil {
			return UploadContent{}, err
		}
		sum.Parts++
		sum.Size += p.Size
		if p.LastModified.After(sum.LastPart) {
			sum.LastPart = p.LastModified
		}
	}
	return sum, nil
}
