// SPDX-License-Identifier: Apache-2.0

// Package imstest simulates Huawei Cloud's Image Management Service (IMS) and
// the calls of its identity service (IAM) that a client of IMS needs, for
// tests and for trying things without an account.
//
// A [Server] is an http.Handler that serves both. It checks signatures,
// tokens and requests by code of its own, shared with no client, and answers
// with the documented statuses, error bodies and codes. What the documentation
// leaves open is decided on the strict side, so that a client that passes here
// relies on nothing that only some regions allow.
//
// A quick import is really carried out: the server reads the object and its
// bitmap, rebuilds the disk from nothing but the blocks that the bitmap marks,
// and shows on the image what came out (see [AttrContentSHA256]).
package imstest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/imsprep/imsprep/bitmap"
)

// Limits and defaults of the service.
const (
	DefaultRegion   = "local-1"
	DefaultQuota    = 50 // private images
	DefaultMaxTasks = 40 // image creations at the same time

	maxSignedBody = 12 << 20 // of a request signed with AK/SK; the gateway answers 413 above
)

// Account is an access key. With a SecurityToken it is a temporary one, which
// every request must then carry and sign.
type Account struct {
	AccessKey, SecretKey, SecurityToken string
	Expires                             time.Time // zero: never
	Deny                                []string  // rights that it lacks, see [Denied]
}

// String leaves the secrets out.
func (a Account) String() string { return "access key " + a.AccessKey }

// GoString leaves the secrets out.
func (a Account) GoString() string { return a.String() }

// User can get a token by password.
type User struct {
	ID, Name, Password string
	Domain             string   // the account's name
	Deny               []string // rights that the user lacks, see [Denied]
	// Passcode is what a virtual MFA device shows: with it, a password alone gets no token. The
	// simulator takes each one once, and this one only.
	Passcode string
}

// String leaves the password out.
func (u User) String() string { return "user " + u.Domain + "/" + u.Name }

// GoString leaves the password out.
func (u User) GoString() string { return u.String() }

// Agency lets callers of this account act for another one, whose name is Domain, with temporary
// keys: to the simulator they are keys of the same project.
type Agency struct {
	Name, Domain string
	Deny         []string // rights that were not delegated, see [Denied]
}

// Project is a project of the account.
type Project struct{ ID, Name string }

// Options configure a [Server]. Zero values are filled in as described.
type Options struct {
	Region    string // DefaultRegion
	ProjectID string // of the project named Region; a random one
	DomainID  string // of the account; a random one
	// MoreProjects are listed by IAM beside the region's own and OBS's MOS.
	MoreProjects []Project
	// Partners are projects of other tenants of the region, which images can be
	// shared with. A signed request with the X-Project-Id of one speaks for it:
	// in the simulator every account may.
	Partners []Project
	// OtherRegions are where images can be copied to; one named local-2 if nil.
	OtherRegions []string
	Accounts     []Account
	Users        []User
	Agencies     []Agency
	// Deny takes rights away from everybody, see [Denied].
	Deny []string

	Objects Objects       // required: the object storage that imports read
	Layout  bitmap.Layout // of the .mf files; the layout named bitmap.DefaultLayout

	OSVersions     []OSVersion // DefaultOSVersions()
	Quota          int         // of private images; DefaultQuota
	MaxTasks       int         // image creations at once; DefaultMaxTasks
	DuplicateNames bool        // allow two private images of one name

	// JobStep is how long a job stays in each of its stages at least: waiting
	// (INIT), starting, and finishing. Zero makes jobs as fast as their work.
	JobStep time.Duration
	// HashLimit is the size of the largest disk, in bytes, whose SHA-256 is
	// computed (a terabyte takes ten minutes, zeros or not); zero: no limit.
	// AttrContentSparse is computed in any case.
	HashLimit int64
	// TempDir is where a disk is kept while it is converted; the system's place
	// for temporary files if empty. A disk needs as much room as its data.
	TempDir string

	Now    func() time.Time // time.Now
	Faults Faults
}

// Server is the simulated service. Close it to end its jobs.
type Server struct {
	opt    Options
	mux    *http.ServeMux
	tenant *http.ServeMux // the calls below /v2/{project_id}, which would be in the others' way
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex // guards what follows
	closed    bool
	faults    Faults
	images    []*image // in order of creation
	jobs      map[string]*job
	tokens    map[string]*token
	accounts  map[string]Account
	failures  map[string]int    // consecutive wrong passwords by user
	passcodes map[string]string // the last one that a user used
	projects  []Project
	exports   map[string]bool // objects that exports have made, as BUCKET:KEY
}

// New returns a server, or panics when Options.Objects is missing or
// Options.Layout is not valid: both are mistakes of the test's author.
func New(o Options) *Server {
	if o.Objects == nil {
		panic("imstest: Options.Objects is nil")
	}
	if o.Layout.BlockSize == 0 {
		l, err := bitmap.Lookup(bitmap.DefaultLayout)
		if err != nil {
			panic(err)
		}
		o.Layout = l
	}
	if err := o.Layout.Validate(); err != nil {
		panic(err)
	}
	o.Region = or(o.Region, DefaultRegion)
	o.ProjectID = or(o.ProjectID, randomHex(16))
	o.DomainID = or(o.DomainID, randomHex(16))
	if o.OSVersions == nil {
		o.OSVersions = DefaultOSVersions()
	}
	if o.Quota == 0 {
		o.Quota = DefaultQuota
	}
	if o.MaxTasks == 0 {
		o.MaxTasks = DefaultMaxTasks
	}
	if o.OtherRegions == nil {
		o.OtherRegions = []string{"local-2"}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{
		opt:       o,
		mux:       http.NewServeMux(),
		faults:    o.Faults,
		jobs:      map[string]*job{},
		tokens:    map[string]*token{},
		accounts:  map[string]Account{},
		failures:  map[string]int{},
		passcodes: map[string]string{},
		exports:   map[string]bool{},
		tenant:    http.NewServeMux(),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, a := range o.Accounts {
		s.accounts[a.AccessKey] = a
	}
	s.projects = append([]Project{{o.ProjectID, o.Region}, {randomHex(16), "MOS"}}, o.MoreProjects...)
	s.images = publicImages(o.Region, s.now())
	s.routes()
	return s
}

// Close ends all jobs and waits until they have. Requests are refused with
// status 503 afterwards.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// Region returns the region that the server plays.
func (s *Server) Region() string { return s.opt.Region }

// ProjectID returns the id of the region's project.
func (s *Server) ProjectID() string { return s.opt.ProjectID }

// Account returns the account of an access key, temporary ones included, for
// an object storage that is to accept them too.
func (s *Server) Account(accessKey string) (Account, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.accounts[accessKey]
	if ok && !a.Expires.IsZero() && s.now().After(a.Expires) {
		return Account{}, false
	}
	return a, ok
}

func (s *Server) now() time.Time { return s.opt.Now().UTC() }

// access says what proves the caller's identity for a call.
type access int

const (
	public   access = iota // nothing
	identity               // signature or token, of any scope (IAM)
	project                // signature or token of the region's project (IMS)
)

// handler serves one call. An error it returns becomes the answer.
type handler func(w http.ResponseWriter, r *http.Request) error

func (s *Server) routes() {
	for _, r := range []struct {
		pattern string
		access  access
		rights  []string
		handler handler
	}{
		{"GET /{$}", public, nil, s.listVersions},
		{"GET /{version}", public, nil, s.showVersion},

		{"POST /v3/auth/tokens", public, nil, s.createToken},
		{"GET /v3/projects", identity, []string{rightProjects}, s.listProjects},
		{"GET /v3/auth/projects", identity, nil, s.listProjects},
		{"POST /v3.0/OS-CREDENTIAL/securitytokens", identity, nil, s.createSecurityToken},

		{"POST /v2/cloudimages/quickimport/action", project, nil, s.quickImport},
		{"POST /v2.1/cloudimages/quickimport/action", project, nil, s.quickImport},
		{"POST /v2/cloudimages/action", project, []string{rightImportSystem}, s.commonImport},
		{"POST /v2.1/cloudimages/action", project, []string{rightImportSystem}, s.commonImport},
		{"POST /v1/cloudimages/dataimages/action", project, []string{rightImportData}, s.importDataDisk},
		{"POST /v2.1/cloudimages/dataimages/action", project, []string{rightImportData}, s.importDataDisk},
		{"POST /v1/cloudimages/wholeimages/action", project, []string{rightImportSystem}, s.createWholeImage},

		{"POST /v2/images", project, []string{rightCreate}, s.createImage},
		{"PUT /v2/images/{image}/file", project, []string{rightGet, rightUpdate, rightUpload}, s.uploadFile},
		{"PUT /v1/cloudimages/{image}/upload", project, []string{rightUpload}, s.registerImage},

		{"POST /v1/cloudimages/{image}/file", project, []string{rightExport}, s.exportImage},
		{"POST /v2.1/cloudimages/{image}/file", project, []string{rightExport}, s.exportImage},
		{"POST /v1/cloudimages/{image}/copy", project, []string{rightCopy}, s.copyImage},
		{"POST /v2.1/cloudimages/{image}/copy", project, []string{rightCopy}, s.copyImage},
		{"POST /v1/cloudimages/{image}/cross_region_copy", project, []string{rightCopy}, s.copyToRegion},

		{"POST /v1/cloudimages/members", project, []string{rightUnnamed}, s.addMembers},
		{"PUT /v1/cloudimages/members", project, []string{rightUnnamed}, s.answerMembers},
		{"DELETE /v1/cloudimages/members", project, []string{rightUnnamed}, s.deleteMembers},
		{"GET /v1/{project}/cloudimages/{image}/members", project, []string{rightUnnamed}, s.listMembers},
		{"GET /v1/{project}/cloudimages/{image}/members/{member}", project, []string{rightUnnamed}, s.showMember},
		{"GET /v2/images/{image}/members", project, []string{rightUnnamed}, s.listMembers},
		{"POST /v2/images/{image}/members", project, []string{rightUnnamed}, s.addMember},
		{"GET /v2/images/{image}/members/{member}", project, []string{rightUnnamed}, s.showMember},
		{"PUT /v2/images/{image}/members/{member}", project, []string{rightUnnamed}, s.updateMember},
		{"DELETE /v2/images/{image}/members/{member}", project, []string{rightUnnamed}, s.deleteMember},

		{"PUT /v1/cloudimages/tags", project, []string{rightUpdate}, s.setTag},
		{"GET /v1/cloudimages/tags", project, []string{rightList}, s.listTags},
		{"DELETE /v1/{project}/cloudimages/{image}/tags/delete", project, []string{rightUpdate}, s.deleteTagsV1},
		{"PUT /v2/images/{image}/tags/{tag}", project, []string{rightUpdate}, s.addNativeTag},
		{"DELETE /v2/images/{image}/tags/{tag}", project, []string{rightUpdate}, s.deleteNativeTag},

		{"GET /v2/images", project, []string{rightList}, s.listNativeImages},
		{"GET /v1.1/images/detail", project, []string{rightList}, s.listDetails},
		{"GET /v2/schemas/{schema}", project, []string{rightGet}, s.showSchema},

		{"GET /v1/cloudimages/job/{job}", project, []string{rightUnnamed}, s.jobProgress},
		{"GET /v1/{project}/jobs/{job}", project, []string{rightUnnamed}, s.jobStatus},

		{"GET /v2/cloudimages", project, []string{rightList}, s.listImages},
		{"PATCH /v2/cloudimages/{image}", project, []string{rightUpdate}, s.updateImage},
		{"GET /v2/images/{image}", project, []string{rightGet}, s.showImage},
		{"PATCH /v2/images/{image}", project, []string{rightUpdate}, s.updateImage},
		{"DELETE /v2/images/{image}", project, []string{rightDelete}, s.deleteImage},
		{"GET /v1/cloudimages/quota", project, []string{rightUnnamed}, s.showQuota},
		{"GET /v1/cloudimages/os_version", project, []string{rightList}, s.listOSVersions},
	} {
		s.mux.Handle(r.pattern, s.serve(r.access, r.rights, r.handler))
	}
	for _, t := range []struct {
		pattern, right string
		handler        handler
	}{
		{"GET /v2/{project}/images/tags", rightList, s.listProjectTags},
		{"POST /v2/{project}/images/resource_instances/action", rightList, s.findByTags},
		{"GET /v2/{project}/images/{image}/tags", rightList, s.listImageTags},
		{"POST /v2/{project}/images/{image}/tags", rightUpdate, s.addTag},
		{"POST /v2/{project}/images/{image}/tags/action", rightUpdate, s.changeTags},
		{"DELETE /v2/{project}/images/{image}/tags/{key}", rightUpdate, s.deleteTag},
	} {
		s.tenant.Handle(t.pattern, s.serve(project, []string{t.right}, func(w http.ResponseWriter, r *http.Request) error {
			if r.PathValue("project") != s.callerOf(r) {
				return imgError("IMG.0067", "")
			}
			return t.handler(w, r)
		}))
	}
}

// muxFor is the mux that knows a path.
func (s *Server) muxFor(path string) *http.ServeMux {
	if rest, ok := strings.CutPrefix(path, "/v2/"); ok {
		first, more, _ := strings.Cut(rest, "/")
		if strings.HasPrefix(more, "images/") && first != "images" && first != "cloudimages" {
			return s.tenant
		}
	}
	return s.mux
}

// ServeHTTP answers a request to IMS or IAM.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := s.takeFaults(r)
	w.Header().Set("X-Request-Id", randomHex(16))
	w.Header().Set("Date", s.now().Add(f.skew).Format(http.TimeFormat))
	if s.isClosed() {
		writeError(w, gatewayError(http.StatusServiceUnavailable, "APIGW.0602", "The service is being shut down."))
		return
	}
	if f.hook != nil && f.hook(w, r) {
		return
	}
	if f.err != nil {
		writeError(w, f.err)
		return
	}
	// The mux would redirect an unclean path; the gateway knows no such path.
	mux := s.muxFor(r.URL.Path)
	_, pattern := mux.Handler(r)
	if pattern == "" || path.Clean(r.URL.Path) != r.URL.Path {
		writeError(w, errNoSuchAPI)
		return
	}
	mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), faultKey{}, f)))
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// serve wraps a call with authentication, rights and the writing of its error.
func (s *Server) serve(a access, rights []string, h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := s.authenticate(r, a)
		if err == nil {
			r = withCaller(r, c)
			err = s.allow(r, rights...)
		}
		if err == nil {
			err = h(w, r)
		}
		if err != nil {
			writeError(w, err)
		}
	})
}

// readBody returns the body of a request, which may be limit bytes long.
func readBody(r *http.Request, limit int64) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	p, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, gatewayError(http.StatusBadRequest, "APIGW.0201", "The request body could not be read.")
	}
	if int64(len(p)) > limit {
		return nil, gatewayError(http.StatusRequestEntityTooLarge, "APIGW.0201", "The request body is too large.")
	}
	return p, nil
}

// decodeBody decodes the JSON body of an IMS call. Unknown fields, which the
// service may overlook, are errors here: they are a client's mistakes.
func decodeBody(r *http.Request, v any) error {
	p, err := readBody(r, maxSignedBody)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(p)) == 0 {
		return imgError("IMG.0007", "")
	}
	if ct := r.Header.Get("Content-Type"); !isJSON(ct) {
		return imgError("IMG.0001", fmt.Sprintf("the content type is %q", ct))
	}
	return decodeStrict(p, v)
}

func decodeStrict(p []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(p))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return imgError("IMG.0001", err.Error())
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return imgError("IMG.0001", "there is more after the JSON value")
	}
	return nil
}

// jsonPatch is the content type of native updates.
const jsonPatch = "application/openstack-images-v2.1-json-patch"

func isJSON(contentType string) bool {
	t, _, _ := strings.Cut(contentType, ";")
	t = strings.ToLower(strings.TrimSpace(t))
	return t == "application/json" || t == jsonPatch
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode an answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(p) // the client is gone: nobody is left to tell
	return nil
}

func randomHex(bytes int) string {
	p := make([]byte, bytes)
	rand.Read(p)
	return hex.EncodeToString(p)
}

// randomUUID returns a version 4 UUID.
func randomUUID() string {
	p := make([]byte, 16)
	rand.Read(p)
	p[6], p[8] = p[6]&0x0f|0x40, p[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", p[:4], p[4:6], p[6:8], p[8:10], p[10:])
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
