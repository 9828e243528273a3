// SPDX-License-Identifier: Apache-2.0

// Package ims is a client for Huawei Cloud's Image Management Service.
package ims

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"
)

var errTODO = errors.New("ims: not built yet")

type Credentials struct{ AccessKey, SecretKey, SecurityToken string }

type CredentialsFunc func(ctx context.Context) (Credentials, error)

type Auth interface{ bind(c *Client) authorizer }
type authorizer interface{}
type noAuth struct{}

func (noAuth) bind(*Client) authorizer { return nil }

func AKSK(f CredentialsFunc) Auth { return noAuth{} }
func StaticCredentials(c Credentials) CredentialsFunc {
	return func(context.Context) (Credentials, error) { return c, nil }
}
func StaticToken(token string) Auth                         { return noAuth{} }
func PasswordToken(p Password) Auth                         { return noAuth{} }
func ServiceEndpoint(service, region, domain string) string { return "" }
func NewTransport() *http.Transport                         { return nil }

type Password struct {
	UserName, UserID, Password, DomainName, DomainID string
	ProjectID, ProjectName                           string
}

type Backoff struct {
	MaxAttempts         int
	BaseDelay, MaxDelay time.Duration
}

type RetryEvent struct {
	Op      string
	Attempt int
	Delay   time.Duration
	Err     error
}

type Options struct {
	Endpoint, IAMEndpoint, Region, ProjectID, ProjectName string
	Auth                                                  Auth
	HTTPClient                                            *http.Client
	UserAgent                                             string
	Now                                                   func() time.Time
	RequestTimeout                                        time.Duration
	Retry, SubmitRetry                                    Backoff
	LookupInterval, LookupLimit                           time.Duration
	OnRetry                                               func(RetryEvent)
	AllowPlainHTTP                                        bool
}

type Client struct{}

func New(o Options) (*Client, error)                            { return nil, errTODO }
func (c *Client) CloseIdleConnections()                         {}
func (c *Client) ProjectID(ctx context.Context) (string, error) { return "", errTODO }
func (c *Client) TemporaryCredentials(ctx context.Context, d time.Duration) (Credentials, error) {
	return Credentials{}, errTODO
}
func (c *Client) ObjectCredentials(d time.Duration) CredentialsFunc { return nil }

type Generation int

const (
	GenAuto Generation = iota
	GenOld
	GenNew
)

type Tag struct{ Key, Value string }

type QuickImport struct {
	Name, ImageURL, Description, Type, OSVersion, OSType         string
	MinDisk                                                      int
	Architecture, FirmwareType, LicenseType, EnterpriseProjectID string
	Tags                                                         []Tag
	MarkerTag                                                    Tag
}

const (
	TypeECS       = "ECS"
	TypeBMS       = "BMS"
	TypeDataImage = "DataImage"
)

func ImageURL(bucket, key string) string  { return bucket + ":" + key }
func (r *QuickImport) Validate() error    { return nil }
func (r *QuickImport) Warnings() []string { return nil }

type Problem struct{ Field, Value, Rule string }
type ValidationError struct{ Problems []Problem }

func (e *ValidationError) Error() string { return "" }

type Submitted struct {
	JobID, ImageID string
	Recovered      bool
	RecoveredBy    string
	Generation     Generation
	SubmittedAt    time.Time
}

func (c *Client) QuickImport(ctx context.Context, r *QuickImport, gen Generation) (*Submitted, error) {
	return nil, errTODO
}

type JobStatus string

const (
	JobInit    JobStatus = "INIT"
	JobRunning JobStatus = "RUNNING"
	JobSuccess JobStatus = "SUCCESS"
	JobFail    JobStatus = "FAIL"
)

type Job struct {
	ID, Type, BeginTime, EndTime string
	Status                       JobStatus
	ErrorCode, FailReason        string
	ImageID, ImageName           string
	Progress                     float64 // 0..1, negative when the service does not say
	CurrentTask                  string
}

type WaitOptions struct {
	First, Interval, MaxInterval, Limit, Tolerate time.Duration
	OnUpdate                                      func(*Job)
	OnImage                                       func(*Image)
	OnError                                       func(error)
	MarkerTag                                     Tag
	Name                                          string
	Since                                         time.Time
}

func (c *Client) Job(ctx context.Context, id string) (*Job, error) { return nil, errTODO }
func (c *Client) WaitJob(ctx context.Context, id string, o WaitOptions) (*Job, error) {
	return nil, errTODO
}
func (c *Client) WaitImage(ctx context.Context, imageID string, o WaitOptions) (*Image, error) {
	return nil, errTODO
}

type JobFailedError struct {
	JobID, ImageID, Code, Reason string
	Job                          *Job
}

func (e *JobFailedError) Error() string { return "" }
func (e *JobFailedError) Hint() string  { return "" }
func (e *JobFailedError) Kind() Kind    { return 0 }

type WaitTimeoutError struct {
	JobID, ImageID string
	Limit          time.Duration
	Job            *Job
}

func (e *WaitTimeoutError) Error() string { return "" }

type AmbiguousSubmitError struct {
	Name      string
	MarkerTag Tag
	Since     time.Time
	Err       error
}

func (e *AmbiguousSubmitError) Error() string { return "" }
func (e *AmbiguousSubmitError) Hint() string  { return "" }
func (e *AmbiguousSubmitError) Unwrap() error { return e.Err }

type Image struct {
	ID, Name, Owner, Status, Visibility, DiskFormat, ContainerFormat string
	Protected                                                        bool
	Tags                                                             []string
	MinDisk, MinRAM                                                  int64
	Size                                                             int64
	CreatedAt, UpdatedAt                                             string
	OSType, OSVersion, Platform, Description, ImageType              string
	VirtualEnvType, FirmwareType, RootOrigin, EnterpriseProjectID    string
	Attributes                                                       map[string]any
}

type ImageFilter struct {
	ID, Name, Status, ImageType, Visibility, Owner, OSType, Platform, Architecture string
	DiskFormat, VirtualEnvType, EnterpriseProjectID, CreatedAt, UpdatedAt          string
	Tag                                                                            Tag
	SortKey, SortDir                                                               string
	Limit                                                                          int
	Extra                                                                          url.Values
}

func (c *Client) Image(ctx context.Context, id string) (*Image, error) { return nil, errTODO }
func (c *Client) ListImages(ctx context.Context, f ImageFilter) ([]Image, error) {
	return nil, errTODO
}
func (c *Client) DeleteImage(ctx context.Context, id string) error { return errTODO }

type OSVersion struct {
	Platform, Key, Version, OSType string
	Bits                           int
}

func (c *Client) OSVersions(ctx context.Context, tags ...string) ([]OSVersion, error) {
	return nil, errTODO
}
func StaticOSVersions() []OSVersion                                      { return nil }
func NearestOSVersions(want string, list []OSVersion, n int) []string    { return nil }
func (c *Client) Quota(ctx context.Context) (used, quota int, err error) { return 0, 0, errTODO }

type Kind int

const (
	KindUnknown Kind = iota
	KindInvalid
	KindAuth
	KindPermission
	KindNotFound
	KindConflict
	KindQuota
	KindThrottled
	KindTransient
	KindUnsupported
	KindResponse
)

type Error struct {
	Op, Method, Path         string
	Status                   int
	Code, Message, RequestID string
	Kind                     Kind
	ClockSkew, RetryAfter    time.Duration
	Err                      error
}

func (e *Error) Error() string { return "" }
func (e *Error) Hint() string  { return "" }
func (e *Error) Unwrap() error { return e.Err }
func (k Kind) String() string  { return "" }
func KindOf(err error) Kind    { return 0 }
func HintOf(err error) string  { return "" }
func SignRequest(req *http.Request, bodySHA256 string, cred Credentials, t time.Time) error {
	return errTODO
}
