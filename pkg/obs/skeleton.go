// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"time"
)

var errTODO = errors.New("obs: not built yet")

type Options struct {
	Endpoint    string
	Region      string
	Credentials CredentialsFunc
	Transport   http.RoundTripper
	UserAgent   string
	IdleTimeout time.Duration
	MaxAttempts int
	BackoffBase time.Duration
	BackoffCap  time.Duration
}

type Client struct{}

func New(o Options) (*Client, error) { return &Client{}, nil }

func (c *Client) Close() {}

type BucketInfo struct {
	Region             string
	StorageClass       string
	ParallelFileSystem bool
}

func (c *Client) CheckBucket(ctx context.Context, bucket string) (BucketInfo, error) {
	return BucketInfo{}, errTODO
}

func ValidateBucket(name string, tls bool) error { return nil }
func ValidateKey(key string) error               { return nil }

type Extent struct {
	Start, Length int64
	Zero          bool
}

type ZeroCopyMode string

const (
	ZeroCopyAuto ZeroCopyMode = "auto"
	ZeroCopyOn   ZeroCopyMode = "on"
	ZeroCopyOff  ZeroCopyMode = "off"
)

type PlanOptions struct {
	BlockSize    int64
	PartSize     int64
	MemoryBudget int64
	Workers      int
	ZeroCopy     ZeroCopyMode
}

type Part struct {
	Number         int
	Offset, Length int64
	Zero           bool
}

type Plan struct {
	Size, BlockSize, PartSize int64
	Workers                   int
	ZeroCopy                  ZeroCopyMode
	ZeroObjectSize            int64
	Parts                     []Part
}

type PlanSummary struct {
	Parts, SendParts, CopyParts int
	BytesToSend, BytesToCopy    int64
	Requests                    int
	Memory                      int64
}

func NewPlan(size int64, extents iter.Seq2[Extent, error], o PlanOptions) (*Plan, error) {
	return nil, errTODO
}
func (p *Plan) Summary() PlanSummary { return PlanSummary{} }

type Source interface {
	ReadRange(ctx context.Context, p []byte, off int64) (allZero bool, err error)
}

type UploadEvent struct {
	Done, Total  int64
	Sent, Copied int64
	Wire         int64
	Retries      int
	Note         string
}

type UploadOptions struct {
	Bucket, Key    string
	Plan           *Plan
	Source         Source
	ZeroCopy       ZeroCopyMode
	Metadata       map[string]string
	ContentType    string
	RunID          string
	Progress       func(UploadEvent)
	CleanupTimeout time.Duration
}

type UploadResult struct {
	ETag                   string
	Size                   int64
	PartsSent, PartsCopied int
	BytesSent, BytesCopied int64
	Requests, Retries      int
	ZeroCopyRefused        string
}

func (c *Client) Upload(ctx context.Context, o UploadOptions) (*UploadResult, error) {
	return nil, errTODO
}

func (c *Client) PutSmall(ctx context.Context, bucket, key string, data []byte, metadata map[string]string) error {
	return errTODO
}

type ObjectInfo struct {
	Size         int64
	ETag         string
	StorageClass string
	Metadata     map[string]string
}

func (c *Client) Stat(ctx context.Context, bucket, key string) (ObjectInfo, error) {
	return ObjectInfo{}, errTODO
}
func (c *Client) Delete(ctx context.Context, bucket, key string) error { return errTODO }
func (c *Client) GetRange(ctx context.Context, bucket, key string, off, n int64) (io.ReadCloser, error) {
	return nil, errTODO
}
