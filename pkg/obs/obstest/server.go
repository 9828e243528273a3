// SPDX-License-Identifier: Apache-2.0

// Package obstest is an S3-compatible object store in memory for tests: strict about what OBS is
// strict about, with faults to order, and with zeros stored for free, so that disks of a TiB fit.
//
// It accepts nothing that OBS does not document: aws-chunked bodies, trailers, x-amz-checksum
// headers, unsigned requests and bodies without Content-MD5 are refused and noted as violations.
package obstest

import (
	"context"
	"crypto/md5"
	"encoding"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"hash"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	minPart  = 5 << 20
	maxPart  = 5 << 30
	maxParts = 10_000
	// zeroGrid is how far apart the states are that zeroHash remembers.
	zeroGrid = 4 << 20
)

// Account is a key pair the server accepts.
type Account struct {
	SecretKey     string
	SecurityToken string
	Expired       bool
}

// Options describe the store.
type Options struct {
	Region   string             // default "test-1"
	Accounts map[string]Account // by access key; default AccessKey with SecretKey
	Buckets  []string           // default one, Bucket
	// Domain, when not empty, is served in virtual-host style: BUCKET.Domain. Requests to other
	// hosts are path style.
	Domain string
	// BucketHeaders are added to the answer to HEAD of a bucket. Without an entry for
	// x-amz-bucket-region the server's region is told.
	BucketHeaders map[string]string
	// Encrypted makes a store that encrypts: ETags are not MD5s although they look like them, and
	// answers to writing say so.
	Encrypted bool
	// ZeroState, if not nil, returns what an MD5's MarshalBinary returns after n zeros, nil where it is
	// not known. It saves hashing GiBs of them.
	ZeroState func(n int64) []byte
	// Conditions makes PutObject keep If-None-Match: *, which OBS doesn't document. Without it the header is
	// ignored.
	Conditions bool
	// UploadsPage is how many uploads a page of ListMultipartUploads has at most, and how many objects
	// one of ListObjects; 0 is 1000.
	UploadsPage int
}

// Defaults of Options.
const (
	AccessKey = "TESTACCESSKEY"
	SecretKey = "test/secret+key"
	Bucket    = "images"
)

// Server is the store. Its methods may be called at any time.
type Server struct {
	Faults

	o    Options
	http *httptest.Server

	closing sync.Once
	closed  chan struct{}

	mu         sync.Mutex
	serving    int       // requests
	quiet      sync.Cond // serving became 0
	buckets    map[string]map[string]*Object
	uploads    map[string]*pending
	nextID     int
	skew       time.Duration
	violations []string
	stats      Stats
}

// Object is a stored object.
type Object struct {
	Content      *Content
	ETag         string
	StorageClass string
	ContentType  string
	Metadata     map[string]string
	Modified     time.Time
	PartSizes    []int64 // of a multipart object
}

type pending struct {
	bucket, key string
	object      Object
	parts       map[int]part
}

type part struct {
	content  *Content
	etag     string
	copied   bool
	modified time.Time
}

// Stats counts what the server was asked for.
type Stats struct {
	Requests    map[Op]int
	BodyBytes   int64 // of objects and parts, as read from the wire
	CopiedBytes int64
	MaxParallel int // parts being received at the same time
	parallel    int
}

// New starts a server. Close stops it.
func New(o Options) *Server {
	if o.Region == "" {
		o.Region = "test-1"
	}
	if o.Accounts == nil {
		o.Accounts = map[string]Account{AccessKey: {SecretKey: SecretKey}}
	}
	if o.Buckets == nil {
		o.Buckets = []string{Bucket}
	}
	s := &Server{o: o, buckets: map[string]map[string]*Object{}, uploads: map[string]*pending{},
		closed: make(chan struct{}), stats: Stats{Requests: map[Op]int{}}}
	for _, b := range o.Buckets {
		s.buckets[b] = map[string]*Object{}
	}
	s.quiet.L = &s.mu
	s.http = httptest.NewServer(s)
	return s
}

// Close stops the server, breaking connections that are still busy.
func (s *Server) Close() {
	s.closing.Do(func() { close(s.closed) })
	s.http.CloseClientConnections()
	s.http.Close()
}

// URL is the endpoint for path style.
func (s *Server) URL() string { return s.http.URL }

// Transport brings requests for any host to this server, to test virtual-host style without DNS.
// The caller closes its idle connections.
func (s *Server) Transport() *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, s.http.Listener.Addr().String())
	}}
}

// SetAccount adds or replaces an account.
func (s *Server) SetAccount(accessKey string, a Account) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.o.Accounts = maps.Clone(s.o.Accounts)
	s.o.Accounts[accessKey] = a
}

func (s *Server) account(accessKey string) (Account, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.o.Accounts[accessKey]
	return a, ok
}

// Object returns a stored object, nil when there is none.
func (s *Server) Object(bucket, key string) *Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buckets[bucket][key]
}

// PutObject stores an object without a request.
func (s *Server) PutObject(bucket, key string, o *Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buckets[bucket][key] = o
}

// Keys returns the keys of a bucket, sorted.
func (s *Server) Keys(bucket string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.buckets[bucket]))
}

// Uploads returns the keys of unfinished uploads, sorted.
func (s *Server) Uploads() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for _, u := range s.uploads {
		keys = append(keys, u.key)
	}
	slices.Sort(keys)
	return keys
}

// AddUpload begins an upload without a request and gives it parts, as somebody else might.
func (s *Server) AddUpload(bucket, key string, parts ...*Content) (id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextID++
	id = fmt.Sprintf("%032d", s.nextID)
	now := time.Now().Add(s.skew)
	u := &pending{bucket: bucket, key: key, object: Object{Modified: now}, parts: map[int]part{}}
	for n, c := range parts {
		u.parts[n+1] = part{content: c, etag: s.etagOf(c), modified: now}
	}
	s.uploads[id] = u
	return id
}

// AbortUploads removes the unfinished uploads of a key, as somebody else might.
func (s *Server) AbortUploads(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.uploads, func(_ string, u *pending) bool { return u.key == key })
}

// Quiet waits until no request is being served.
func (s *Server) Quiet() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.serving > 0 {
		s.quiet.Wait()
	}
}

// Violations returns what requests did that OBS does not document.
func (s *Server) Violations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.violations)
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Requests = maps.Clone(st.Requests)
	return st
}

func (s *Server) violation(format string, a ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.violations = append(s.violations, fmt.Sprintf(format, a...))
}

// parse finds out what is asked for. Requests to hosts below domain, if that isn't empty, are of
// virtual-host style.
func parse(r *http.Request, domain string) *Request {
	q := &Request{HTTP: r, Op: OpUnknown}
	path := strings.TrimPrefix(r.URL.Path, "/")
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	if b, ok := strings.CutSuffix(host, "."+domain); ok && domain != "" {
		q.Bucket, q.Key = b, path
	} else {
		q.Bucket, q.Key, _ = strings.Cut(path, "/")
	}
	v := r.URL.Query()
	q.Part, _ = strconv.Atoi(v.Get("partNumber"))
	switch {
	case q.Key == "":
		switch {
		case r.Method == http.MethodHead:
			q.Op = OpHeadBucket
		case r.Method == http.MethodGet && v.Has("uploads"):
			q.Op = OpListUploads
		case r.Method == http.MethodGet && !v.Has("list-type"):
			q.Op = OpListObjects
		}
	case v.Has("uploads") && r.Method == http.MethodPost:
		q.Op = OpInitiate
	case v.Has("uploadId"):
		switch r.Method {
		case http.MethodPut:
			q.Op = OpUploadPart
			if r.Header.Get("X-Amz-Copy-Source") != "" {
				q.Op = OpCopyPart
			}
		case http.MethodGet:
			q.Op = OpListParts
		case http.MethodPost:
			q.Op = OpComplete
		case http.MethodDelete:
			q.Op = OpAbort
		}
	case len(v) == 0:
		switch r.Method {
		case http.MethodHead:
			q.Op = OpHeadObject
		case http.MethodGet:
			q.Op = OpGetObject
		case http.MethodPut:
			q.Op = OpPutObject
		case http.MethodDelete:
			q.Op = OpDelete
		}
	}
	return q
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.serving++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.serving--; s.serving == 0 {
			s.quiet.Broadcast()
		}
	}()
	q := parse(r, s.o.Domain)
	s.mu.Lock()
	s.nextID++
	id := fmt.Sprintf("REQ%08d", s.nextID)
	s.stats.Requests[q.Op]++
	s.mu.Unlock()
	w.Header().Set("x-amz-request-id", id)
	w.Header().Set("Date", s.now().Format(http.TimeFormat))

	if q.Op == OpUnknown {
		s.violation("%s %s", r.Method, r.URL)
	}
	for name := range r.Header {
		low := strings.ToLower(name)
		if strings.HasPrefix(low, "x-amz-checksum") || low == "x-amz-trailer" || strings.HasPrefix(low, "x-amz-sdk-") {
			s.violation("%v: header %s", q, low)
		}
	}
	if strings.Contains(r.Header.Get("Content-Encoding"), "aws-chunked") ||
		strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING") || len(r.TransferEncoding) > 0 {
		s.violation("%v: the body is not plain", q)
	}
	if code, message := s.verify(r); code != "" {
		status := 403
		if code == "AuthorizationHeaderMalformed" {
			status = 400
		}
		s.fail(w, r, status, code, message)
		return
	}
	if s.o.Encrypted && (r.Method == http.MethodPut || r.Method == http.MethodPost) {
		w.Header().Set("x-amz-server-side-encryption", "aws:kms")
	}
	f := s.acting(q)
	if f != nil {
		switch f.Do {
		case FailLate:
			_, _ = io.Copy(io.Discard, r.Body)
			fallthrough
		case Fail:
			for k, v := range f.Header {
				w.Header().Set(k, v)
			}
			s.fail(w, r, f.Status, f.Code, f.Message)
			return
		case ErrorBody:
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusOK)
			_ = xml.NewEncoder(w).Encode(xmlError{Code: f.Code, Message: "failed after it had begun", RequestID: id})
			return
		case Reset:
			_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			panic(http.ErrAbortHandler)
		case Stall, StallBody:
			if f.Do == StallBody {
				_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			}
			s.stall(r)
		case Lose:
			s.serve(httptest.NewRecorder(), q, nil)
			panic(http.ErrAbortHandler)
		case CutAnswer, StallAnswer:
			answer := httptest.NewRecorder()
			s.serve(answer, q, nil)
			maps.Copy(w.Header(), answer.Header())
			w.Header().Set("Content-Length", strconv.Itoa(answer.Body.Len()))
			w.WriteHeader(answer.Code)
			_, _ = w.Write(answer.Body.Next(answer.Body.Len() / 2))
			_ = http.NewResponseController(w).Flush()
			if f.Do == StallAnswer {
				s.stall(r)
			}
			panic(http.ErrAbortHandler)
		case Flip, Shorten, Trickle, SkewClock:
			panic("obstest: only a Proxy does that")
		case Corrupt, HideParts, Observe:
		}
	}
	s.serve(w, q, f)
}

// stall waits until the client or the server gives up.
func (s *Server) stall(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-s.closed:
	}
	panic(http.ErrAbortHandler)
}

func (s *Server) serve(w http.ResponseWriter, q *Request, f *Fault) {
	r := q.HTTP
	s.mu.Lock()
	_, ok := s.buckets[q.Bucket]
	s.mu.Unlock()
	if !ok {
		s.fail(w, r, 404, "NoSuchBucket", "the bucket does not exist")
		return
	}
	switch q.Op {
	case OpHeadBucket:
		w.Header().Set("x-amz-bucket-region", s.o.Region)
		for k, v := range s.o.BucketHeaders {
			if v == "" {
				w.Header().Del(k)
			} else {
				w.Header().Set(k, v)
			}
		}
	case OpHeadObject, OpGetObject:
		s.get(w, q)
	case OpPutObject:
		s.put(w, q, f)
	case OpDelete:
		s.mu.Lock()
		delete(s.buckets[q.Bucket], q.Key)
		s.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	case OpInitiate:
		s.initiate(w, q)
	case OpListUploads:
		s.listUploads(w, q)
	case OpListObjects:
		s.listObjects(w, q)
	case OpUploadPart, OpCopyPart, OpListParts, OpComplete, OpAbort:
		s.multipart(w, q, f)
	default:
		s.fail(w, r, 501, "NotImplemented", "not part of the test server")
	}
}

func (s *Server) get(w http.ResponseWriter, q *Request) {
	o := s.Object(q.Bucket, q.Key)
	if o == nil {
		s.fail(w, q.HTTP, 404, "NoSuchKey", "the object does not exist")
		return
	}
	h := w.Header()
	h.Set("ETag", `"`+o.ETag+`"`)
	h.Set("Last-Modified", o.Modified.UTC().Format(http.TimeFormat))
	h.Set("Content-Type", o.ContentType)
	if o.StorageClass != "" && o.StorageClass != "STANDARD" {
		h.Set("x-amz-storage-class", o.StorageClass)
	}
	for k, v := range o.Metadata {
		h.Set("x-amz-meta-"+k, v)
	}
	if m := q.HTTP.Header.Get("If-Match"); m != "" && strings.Trim(m, `"`) != o.ETag {
		s.fail(w, q.HTTP, 412, "PreconditionFailed", "the object has another ETag")
		return
	}
	off, n, status := int64(0), o.Content.Size(), http.StatusOK
	if rg := q.HTTP.Header.Get("Range"); rg != "" {
		from, to, ok := parseRange(rg)
		if !ok || from >= n {
			s.fail(w, q.HTTP, 416, "InvalidRange", "the range lies outside the object")
			return
		}
		to = min(to, n-1)
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, n))
		off, n, status = from, to-from+1, http.StatusPartialContent
	}
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	w.WriteHeader(status)
	if q.Op == OpGetObject {
		_, _ = io.Copy(w, io.NewSectionReader(o.Content, off, n))
	}
}

func parseRange(s string) (from, to int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes=")
	a, b, ok2 := strings.Cut(s, "-")
	from, err1 := strconv.ParseInt(a, 10, 64)
	to, err2 := strconv.ParseInt(b, 10, 64)
	return from, to, ok && ok2 && err1 == nil && err2 == nil && from >= 0 && to >= from
}

// receive reads a body and checks it against its Content-MD5 and length.
func (s *Server) receive(w http.ResponseWriter, q *Request, f *Fault) (*Content, string, bool) {
	r := q.HTTP
	want := r.Header.Get("Content-Md5")
	if want == "" {
		s.violation("%v: no Content-MD5", q)
		s.fail(w, r, 400, "InvalidRequest", "Content-MD5 is missing")
		return nil, "", false
	}
	s.mu.Lock()
	s.stats.parallel++
	s.stats.MaxParallel = max(s.stats.MaxParallel, s.stats.parallel)
	s.mu.Unlock()
	h := md5.New()
	body := &counter{r: r.Body}
	content, err := NewContent(io.TeeReader(body, h))
	s.mu.Lock()
	s.stats.parallel--
	s.stats.BodyBytes += body.n
	s.mu.Unlock()
	switch {
	case err != nil || content.Size() != r.ContentLength:
		s.fail(w, r, 400, "IncompleteBody", "the body is shorter than Content-Length")
		return nil, "", false
	case base64.StdEncoding.EncodeToString(h.Sum(nil)) != want:
		s.fail(w, r, 400, "BadDigest", "the body does not match Content-MD5")
		return nil, "", false
	}
	if f != nil && f.Do == Corrupt {
		rotten := make([]byte, content.Size())
		_, _ = content.ReadAt(rotten, 0)
		rotten[len(rotten)/2] ^= 0x40
		content = &Content{}
		h.Reset()
		h.Write(rotten)
		for p := range slices.Chunk(rotten, chunkSize) {
			content.append(p)
		}
	}
	if s.o.Encrypted {
		h.Write([]byte("encrypted"))
	}
	return content, hex.EncodeToString(h.Sum(nil)), true
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (s *Server) describe(r *http.Request) Object {
	o := Object{StorageClass: r.Header.Get("X-Amz-Storage-Class"), ContentType: r.Header.Get("Content-Type"),
		Metadata: map[string]string{}}
	for k, v := range r.Header {
		if name, ok := strings.CutPrefix(strings.ToLower(k), "x-amz-meta-"); ok {
			o.Metadata[name] = strings.Join(v, ",")
		}
	}
	return o
}

// copyObject makes an object of another one.
func (s *Server) copyObject(w http.ResponseWriter, q *Request, source string) {
	src, err := url.PathUnescape(strings.TrimPrefix(source, "/"))
	bucket, key, _ := strings.Cut(src, "/")
	from := s.Object(bucket, key)
	switch {
	case err != nil:
		s.fail(w, q.HTTP, 400, "InvalidArgument", "bad copy source")
		return
	case from == nil:
		s.fail(w, q.HTTP, 404, "NoSuchKey", "the copy source does not exist")
		return
	case from.Content.Size() > maxPart:
		s.fail(w, q.HTTP, 400, "EntityTooLarge", "the copy source is too large")
		return
	}
	if m := q.HTTP.Header.Get("X-Amz-Copy-Source-If-Match"); m != "" && strings.Trim(m, `"`) != from.ETag {
		s.fail(w, q.HTTP, 412, "PreconditionFailed", "the copy source has another ETag")
		return
	}
	o := *from
	if q.HTTP.Header.Get("X-Amz-Metadata-Directive") == "REPLACE" {
		o = s.describe(q.HTTP)
		o.Content = from.Content
	} else if bucket == q.Bucket && key == q.Key {
		s.fail(w, q.HTTP, 400, "InvalidRequest", "copying an object onto itself changes nothing")
		return
	}
	o.ETag, o.Modified, o.PartSizes = s.etagOf(o.Content), s.now(), nil
	s.PutObject(q.Bucket, q.Key, &o)
	writeXML(w, struct {
		XMLName      xml.Name `xml:"CopyObjectResult"`
		LastModified string
		ETag         string
	}{LastModified: o.Modified.Format(time.RFC3339), ETag: `"` + o.ETag + `"`})
}

func (s *Server) put(w http.ResponseWriter, q *Request, f *Fault) {
	if source := q.HTTP.Header.Get("X-Amz-Copy-Source"); source != "" {
		s.copyObject(w, q, source)
		return
	}
	content, etag, ok := s.receive(w, q, f)
	if !ok {
		return
	}
	o := s.describe(q.HTTP)
	o.Content, o.ETag, o.Modified = content, etag, s.now()
	s.mu.Lock()
	taken := s.o.Conditions && q.HTTP.Header.Get("If-None-Match") == "*" && s.buckets[q.Bucket][q.Key] != nil
	if !taken {
		s.buckets[q.Bucket][q.Key] = &o
	}
	s.mu.Unlock()
	if taken {
		s.fail(w, q.HTTP, 412, "PreconditionFailed", "the object exists")
		return
	}
	w.Header().Set("ETag", `"`+etag+`"`)
}

func (s *Server) initiate(w http.ResponseWriter, q *Request) {
	s.mu.Lock()
	s.nextID++
	id := fmt.Sprintf("%032d", s.nextID)
	s.uploads[id] = &pending{bucket: q.Bucket, key: q.Key, object: s.describe(q.HTTP), parts: map[int]part{}}
	s.uploads[id].object.Modified = time.Now().Add(s.skew)
	s.mu.Unlock()
	writeXML(w, struct {
		XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
		Bucket   string
		Key      string
		UploadID string `xml:"UploadId"`
	}{Bucket: q.Bucket, Key: q.Key, UploadID: id})
}

func (s *Server) listUploads(w http.ResponseWriter, q *Request) {
	type upload struct {
		Key       string
		UploadID  string `xml:"UploadId"`
		Initiated string
	}
	v := q.HTTP.URL.Query()
	prefix, marker := v.Get("prefix"), v.Get("key-marker")+"\x00"+v.Get("upload-id-marker")
	limit, err := strconv.Atoi(v.Get("max-uploads"))
	if err != nil || limit < 1 || limit > 1000 {
		limit = 1000
	}
	if s.o.UploadsPage > 0 {
		limit = min(limit, s.o.UploadsPage)
	}
	out := struct {
		XMLName            xml.Name `xml:"ListMultipartUploadsResult"`
		Bucket             string
		NextKeyMarker      string
		NextUploadIDMarker string `xml:"NextUploadIdMarker"`
		IsTruncated        bool
		Upload             []upload
	}{Bucket: q.Bucket}
	s.mu.Lock()
	for id, u := range s.uploads {
		if u.bucket == q.Bucket && strings.HasPrefix(u.key, prefix) && u.key+"\x00"+id > marker {
			out.Upload = append(out.Upload, upload{u.key, id, u.object.Modified.UTC().Format(time.RFC3339)})
		}
	}
	s.mu.Unlock()
	slices.SortFunc(out.Upload, func(a, b upload) int { return strings.Compare(a.Key+"\x00"+a.UploadID, b.Key+"\x00"+b.UploadID) })
	if len(out.Upload) > limit {
		out.Upload, out.IsTruncated = out.Upload[:limit], true
		out.NextKeyMarker, out.NextUploadIDMarker = out.Upload[limit-1].Key, out.Upload[limit-1].UploadID
	}
	writeXML(w, out)
}

func (s *Server) listObjects(w http.ResponseWriter, q *Request) {
	type row struct {
		Key          string
		LastModified string
		ETag         string
		Size         int64
	}
	v := q.HTTP.URL.Query()
	prefix, marker := v.Get("prefix"), v.Get("marker")
	limit, err := strconv.Atoi(v.Get("max-keys"))
	if err != nil || limit < 1 || limit > 1000 {
		limit = 1000
	}
	if s.o.UploadsPage > 0 {
		limit = min(limit, s.o.UploadsPage)
	}
	out := struct {
		XMLName      xml.Name `xml:"ListBucketResult"`
		Name         string
		EncodingType string `xml:",omitempty"`
		IsTruncated  bool
		Contents     []row
	}{Name: q.Bucket, EncodingType: v.Get("encoding-type")}
	s.mu.Lock()
	for _, key := range slices.Sorted(maps.Keys(s.buckets[q.Bucket])) {
		if !strings.HasPrefix(key, prefix) || key <= marker {
			continue
		}
		if len(out.Contents) == limit {
			out.IsTruncated = true
			break
		}
		o := s.buckets[q.Bucket][key]
		if out.EncodingType == "url" {
			key = url.QueryEscape(key)
		}
		out.Contents = append(out.Contents, row{key, o.Modified.UTC().Format(time.RFC3339), `"` + o.ETag + `"`, o.Content.Size()})
	}
	s.mu.Unlock()
	writeXML(w, out)
}

// Backdate makes an object and the unfinished uploads of a key look older. Parts keep their times,
// unless withParts is set.
func (s *Server) Backdate(bucket, key string, d time.Duration, withParts bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.buckets[bucket][key]; o != nil {
		older := *o
		older.Modified = o.Modified.Add(-d)
		s.buckets[bucket][key] = &older
	}
	for _, u := range s.uploads {
		if u.bucket == bucket && u.key == key {
			u.object.Modified = u.object.Modified.Add(-d)
			for n, p := range u.parts {
				if withParts {
					p.modified = p.modified.Add(-d)
					u.parts[n] = p
				}
			}
		}
	}
}

func (s *Server) multipart(w http.ResponseWriter, q *Request, f *Fault) {
	r := q.HTTP
	id := r.URL.Query().Get("uploadId")
	s.mu.Lock()
	u := s.uploads[id]
	s.mu.Unlock()
	if u == nil || u.bucket != q.Bucket || u.key != q.Key {
		s.fail(w, r, 404, "NoSuchUpload", "the upload does not exist")
		return
	}
	switch q.Op {
	case OpAbort:
		s.mu.Lock()
		delete(s.uploads, id)
		s.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	case OpListParts:
		s.listParts(w, q, u, f)
	case OpComplete:
		s.complete(w, q, id, u)
	default:
		if q.Part < 1 || q.Part > maxParts {
			s.fail(w, r, 400, "InvalidArgument", "part number out of range")
			return
		}
		if q.Op == OpCopyPart {
			s.copyPart(w, q, f, id)
			return
		}
		if r.ContentLength > maxPart {
			s.fail(w, r, 400, "EntityTooLarge", "the part is too large")
			return
		}
		content, etag, ok := s.receive(w, q, f)
		if !ok {
			return
		}
		if !s.store(id, q.Part, part{content: content, etag: etag}) {
			s.fail(w, r, 404, "NoSuchUpload", "the upload does not exist")
			return
		}
		w.Header().Set("ETag", `"`+etag+`"`)
	}
}

// store adds a part unless the upload went away meanwhile.
func (s *Server) store(id string, number int, p part) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.uploads[id]
	if u == nil {
		return false
	}
	p.modified = time.Now().Add(s.skew)
	u.parts[number] = p
	return true
}

func (s *Server) copyPart(w http.ResponseWriter, q *Request, f *Fault, id string) {
	r := q.HTTP
	src, err := url.PathUnescape(strings.TrimPrefix(r.Header.Get("X-Amz-Copy-Source"), "/"))
	if err != nil {
		s.fail(w, r, 400, "InvalidArgument", "bad copy source")
		return
	}
	bucket, key, _ := strings.Cut(src, "/")
	o := s.Object(bucket, key)
	if o == nil {
		s.fail(w, r, 404, "NoSuchKey", "the copy source does not exist")
		return
	}
	if m := r.Header.Get("X-Amz-Copy-Source-If-Match"); m != "" && strings.Trim(m, `"`) != o.ETag {
		s.fail(w, r, 412, "PreconditionFailed", "the copy source has another ETag")
		return
	}
	off, n := int64(0), o.Content.Size()
	if rg := r.Header.Get("X-Amz-Copy-Source-Range"); rg != "" {
		from, to, ok := parseRange(rg)
		if !ok || to >= n {
			s.fail(w, r, 400, "InvalidArgument", "the range lies outside the copy source")
			return
		}
		off, n = from, to-from+1
	}
	if n > maxPart {
		s.fail(w, r, 400, "EntityTooLarge", "the part is too large")
		return
	}
	content := o.Content.Slice(off, n)
	etag := s.etagOf(content)
	if f != nil && f.Do == Corrupt {
		etag = strings.Repeat("0", len(etag))
	}
	if !s.store(id, q.Part, part{content: content, etag: etag, copied: true}) {
		s.fail(w, r, 404, "NoSuchUpload", "the upload does not exist")
		return
	}
	s.mu.Lock()
	s.stats.CopiedBytes += n
	s.mu.Unlock()
	writeXML(w, struct {
		XMLName      xml.Name `xml:"CopyPartResult"`
		LastModified string
		ETag         string
	}{LastModified: s.now().Format(time.RFC3339), ETag: `"` + etag + `"`})
}

func (s *Server) etagOf(c *Content) string {
	var h hash.Hash
	if c.Zero() {
		h = zeros.of(c.Size(), s.o.ZeroState)
	} else {
		h = md5.New()
		_, _ = io.Copy(h, c.Reader())
	}
	if s.o.Encrypted {
		h.Write([]byte("encrypted"))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// zeros is shared by all servers of a process: what it remembers is the same for all of them, and
// hashing a GiB for each would take most of a test's time.
var zeros zeroHash

// zeroHash hashes zeros without doing it all over again for every length.
type zeroHash struct {
	mu     sync.Mutex
	states map[int64][]byte // MD5s after that many zeros
}

// of is the MD5 after n zeros. known is Options.ZeroState.
func (z *zeroHash) of(n int64, known func(int64) []byte) hash.Hash {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.states == nil {
		z.states = map[int64][]byte{}
	}
	h := md5.New()
	resume := func(at int64) bool {
		state := z.states[at]
		if state == nil && known != nil {
			state = known(at)
		}
		return state != nil && h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state) == nil
	}
	if resume(n) {
		return h
	}
	at := n - n%zeroGrid
	for at > 0 && !resume(at) {
		at -= zeroGrid
	}
	grid := make([]byte, zeroGrid)
	for at < n {
		step := min(zeroGrid, n-at)
		h.Write(grid[:step])
		at += step
		z.states[at], _ = h.(encoding.BinaryMarshaler).MarshalBinary()
	}
	return h
}

func (s *Server) listParts(w http.ResponseWriter, q *Request, u *pending, f *Fault) {
	v := q.HTTP.URL.Query()
	marker, _ := strconv.Atoi(v.Get("part-number-marker"))
	limit, err := strconv.Atoi(v.Get("max-parts"))
	if err != nil || limit < 1 || limit > 1000 {
		limit = 1000
	}
	type row struct {
		PartNumber   int
		LastModified string
		ETag         string
		Size         int64
	}
	out := struct {
		XMLName              xml.Name `xml:"ListPartsResult"`
		Bucket, Key          string
		PartNumberMarker     int
		NextPartNumberMarker int
		MaxParts             int
		IsTruncated          bool
		Part                 []row
	}{Bucket: u.bucket, Key: u.key, PartNumberMarker: marker, MaxParts: limit}
	s.mu.Lock()
	numbers := slices.Sorted(maps.Keys(u.parts))
	if f != nil && f.Do == HideParts {
		numbers = numbers[:max(0, len(numbers)-f.Hide)]
	}
	for _, n := range numbers {
		if n <= marker {
			continue
		}
		if len(out.Part) == limit {
			out.IsTruncated = true
			break
		}
		p := u.parts[n]
		out.Part = append(out.Part, row{n, p.modified.UTC().Format(time.RFC3339), `"` + p.etag + `"`, p.content.Size()})
		out.NextPartNumberMarker = n
	}
	s.mu.Unlock()
	writeXML(w, out)
}

func (s *Server) complete(w http.ResponseWriter, q *Request, id string, u *pending) {
	var list struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	if err := xml.NewDecoder(q.HTTP.Body).Decode(&list); err != nil || len(list.Part) == 0 {
		s.fail(w, q.HTTP, 400, "MalformedXML", "the list of parts cannot be read")
		return
	}
	s.mu.Lock()
	var contents []*Content
	var sizes []int64
	hash := md5.New()
	for i, p := range list.Part {
		have, ok := u.parts[p.PartNumber]
		code := ""
		switch {
		case i > 0 && p.PartNumber <= list.Part[i-1].PartNumber:
			code = "InvalidPartOrder"
		case !ok || strings.Trim(p.ETag, `"`) != have.etag:
			code = "InvalidPart"
		case i < len(list.Part)-1 && have.content.Size() < minPart:
			code = "EntityTooSmall"
		}
		if code != "" {
			s.mu.Unlock()
			s.fail(w, q.HTTP, 400, code, fmt.Sprintf("part %d", p.PartNumber))
			return
		}
		sum, _ := hex.DecodeString(have.etag)
		hash.Write(sum)
		contents = append(contents, have.content)
		sizes = append(sizes, have.content.Size())
	}
	if s.uploads[id] == nil {
		s.mu.Unlock()
		s.fail(w, q.HTTP, 404, "NoSuchUpload", "the upload does not exist")
		return
	}
	delete(s.uploads, id)
	o := u.object
	o.Content, o.PartSizes = Concat(contents...), sizes
	o.ETag = fmt.Sprintf("%s-%d", hex.EncodeToString(hash.Sum(nil)), len(sizes))
	o.Modified = time.Now()
	s.buckets[q.Bucket][q.Key] = &o
	s.mu.Unlock()
	writeXML(w, struct {
		XMLName     xml.Name `xml:"CompleteMultipartUploadResult"`
		Location    string
		Bucket, Key string
		ETag        string
	}{Location: "/" + q.Key, Bucket: q.Bucket, Key: q.Key, ETag: `"` + o.ETag + `"`})
}

type xmlError struct {
	XMLName   xml.Name `xml:"Error"`
	Code      string
	Message   string
	RequestID string `xml:"RequestId"`
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_ = xml.NewEncoder(w).Encode(xmlError{Code: code, Message: message, RequestID: w.Header().Get("x-amz-request-id")})
	}
}

func writeXML(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/xml")
	_, _ = io.WriteString(w, xml.Header)
	_ = xml.NewEncoder(w).Encode(v)
}
