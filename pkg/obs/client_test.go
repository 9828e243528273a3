// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

func TestValidateBucket(t *testing.T) {
	for name, want := range map[string]struct{ plain, tls bool }{
		"images":                {true, true},
		"a-1":                   {true, true},
		"my.images":             {true, false},
		strings.Repeat("a", 63): {true, true},
		"ab":                    {false, false},
		strings.Repeat("a", 64): {false, false},
		"Images":                {false, false},
		"-images":               {false, false},
		"images-":               {false, false},
		"images.":               {false, false},
		"a..b":                  {false, false},
		"a.-b":                  {false, false},
		"a-.b":                  {false, false},
		"im_ages":               {false, false},
		"10.0.0.1":              {false, false},
		"":                      {false, false},
		"a/b":                   {false, false},
	} {
		for _, c := range []struct{ tls, want bool }{{false, want.plain}, {true, want.tls}} {
			if err := ValidateBucket(name, c.tls); (err == nil) != c.want || (err != nil && KindOf(err) != KindInvalid) {
				t.Errorf("%q with TLS %v: %v", name, c.tls, err)
			}
		}
	}
}

func TestValidateKey(t *testing.T) {
	for key, want := range map[string]bool{
		"disk.raw": true, "a/b_c-d.raw": true, strings.Repeat("a", 1024): true, "a/.b": true,
		"": false, "a b": false, "/a": false, "a/": false, "a//b": false, "a\tb": false, "ä": false, "a?b": false,
		"a/../b": false, ".": false, "./a": false, strings.Repeat("a", 1025): false, "a+b": false, "a\nb": false,
	} {
		if err := ValidateKey(key); (err == nil) != want || (err != nil && KindOf(err) != KindInvalid) {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := Options{Endpoint: "obs.test-1.example.com", Region: "test-1", Credentials: StaticCredentials(Credentials{})}
	for name, change := range map[string]func(*Options){
		"no endpoint":    func(o *Options) { o.Endpoint = "" },
		"path":           func(o *Options) { o.Endpoint = "https://h/x" },
		"user":           func(o *Options) { o.Endpoint = "https://u:p@h" },
		"scheme":         func(o *Options) { o.Endpoint = "ftp://h" },
		"no host":        func(o *Options) { o.Endpoint = "https://:443" },
		"broken":         func(o *Options) { o.Endpoint = "https://[" },
		"addressing":     func(o *Options) { o.Addressing = "host" },
		"no region":      func(o *Options) { o.Region = "" },
		"bad region":     func(o *Options) { o.Region = "a/b" },
		"no credentials": func(o *Options) { o.Credentials = nil },
		"negative":       func(o *Options) { o.MaxAttempts = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			o := good
			change(&o)
			if _, err := New(o); KindOf(err) != KindInvalid {
				t.Fatalf("error %v", err)
			} else if strings.Contains(err.Error(), "u:p") {
				t.Fatalf("%v", err)
			}
		})
	}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
}

func TestAddressing(t *testing.T) {
	for _, tc := range []struct {
		endpoint   string
		addressing Addressing
		want       string
	}{
		{"http://obs.test-1.example.com", "", "http://images.obs.test-1.example.com/disks/web-1.raw"},
		{"http://obs.test-1.example.com:80", AddressingAuto, "http://images.obs.test-1.example.com/disks/web-1.raw"},
		{"obs.test-1.example.com", "", "https://images.obs.test-1.example.com/disks/web-1.raw"},
		{"https://obs.test-1.example.com:8443", "", "https://images.obs.test-1.example.com:8443/disks/web-1.raw"},
		{"http://127.0.0.1:9000", "", "http://127.0.0.1:9000/images/disks/web-1.raw"},
		{"http://[::1]:9000", "", "http://[::1]:9000/images/disks/web-1.raw"},
		{"http://localhost:9000", AddressingAuto, "http://localhost:9000/images/disks/web-1.raw"},
		{"http://minio:9000", AddressingPath, "http://minio:9000/images/disks/web-1.raw"},
		{"http://store.localhost:9000", AddressingVirtual, "http://images.store.localhost:9000/disks/web-1.raw"},
	} {
		endpoint, want := tc.endpoint, tc.want
		t.Run(endpoint, func(t *testing.T) {
			var mu sync.Mutex
			var got []string
			c, err := New(Options{Endpoint: endpoint, Addressing: tc.addressing, Region: "test-1", MaxAttempts: 1,
				Credentials: StaticCredentials(Credentials{AccessKey: "a", SecretKey: "b"}),
				Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					if r.Body != nil {
						_ = r.Body.Close()
					}
					mu.Lock()
					defer mu.Unlock()
					got = append(got, r.Method+" "+r.URL.String())
					return nil, errors.New("no network")
				})})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Stat(t.Context(), "images", testKey)
			_ = c.PutSmall(t.Context(), "images", testKey, []byte("x"), nil)
			if !slices.Equal(got, []string{"HEAD " + want, "PUT " + want}) {
				t.Fatalf("asked for %v", got)
			}
		})
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestVirtualHostStyle(t *testing.T) {
	var e *env
	e = newEnv(t, obstest.Options{Domain: "obs.test-1.example.com", Region: "test-1"}, nil)
	tr := e.server.Transport()
	defer tr.CloseIdleConnections()
	c, err := New(Options{Endpoint: "http://obs.test-1.example.com", Region: "test-1", Transport: tr,
		Credentials: StaticCredentials(Credentials{AccessKey: obstest.AccessKey, SecretKey: obstest.SecretKey})})
	if err != nil {
		t.Fatal(err)
	}
	e = &env{e.server, c}
	if _, err := c.CheckBucket(t.Context(), obstest.Bucket); err != nil {
		t.Fatal(err)
	}
	d := sparseDisk(t)
	res, err := c.Upload(t.Context(), e.options(d, mustPlan(t, sparseSize, sparse, sparseOptions)))
	if err != nil {
		t.Fatal(err)
	}
	e.checkStored(t, d, res)
}

func TestCheckBucket(t *testing.T) {
	for _, tc := range []struct {
		name    string
		headers map[string]string
		fault   *obstest.Fault
		bucket  string
		want    BucketInfo
		kind    Kind
		say     string
	}{
		{name: "S3 headers", headers: map[string]string{"x-default-storage-class": "STANDARD_IA"},
			want: BucketInfo{Region: "test-1", StorageClass: "STANDARD_IA"}},
		{name: "OBS headers", headers: map[string]string{"x-amz-bucket-region": "", "x-obs-bucket-location": "test-2",
			"x-obs-storage-class": "WARM", "x-obs-fs-file-interface": "Enabled"},
			want: BucketInfo{Region: "test-2", StorageClass: "WARM", ParallelFileSystem: true}},
		{name: "no headers", headers: map[string]string{"x-amz-bucket-region": ""}},
		{name: "missing", bucket: "other", kind: KindNotFound, say: "no such bucket"},
		{name: "forbidden", fault: &obstest.Fault{Do: obstest.Fail, Status: 403}, kind: KindAuth, say: "HTTP 403"},
		{name: "elsewhere", fault: &obstest.Fault{Do: obstest.Fail, Status: 301,
			Header: map[string]string{"x-amz-bucket-region": "test-9", "Location": "http://127.0.0.1:1/"}}, kind: KindRegion, say: "region test-9"},
		{name: "elsewhere, own header", fault: &obstest.Fault{Do: obstest.Fail, Status: 307,
			Header: map[string]string{"x-obs-bucket-location": "test-8"}}, kind: KindRegion, say: "region test-8"},
		{name: "clock", fault: &obstest.Fault{Do: obstest.Fail, Status: 403,
			Header: map[string]string{"Date": time.Now().Add(2 * time.Hour).UTC().Format(http.TimeFormat)}}, kind: KindClock, say: "behind"},
		{name: "passing trouble", fault: &obstest.Fault{Do: obstest.Fail, Status: 503, Times: 2}, want: BucketInfo{Region: "test-1"}},
		{name: "bad name", bucket: "No", kind: KindInvalid, say: "3 to 63"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t, obstest.Options{BucketHeaders: tc.headers}, nil)
			if tc.fault != nil {
				e.server.Inject(*tc.fault)
			}
			if tc.bucket == "" {
				tc.bucket = obstest.Bucket
			}
			got, err := e.client.CheckBucket(t.Context(), tc.bucket)
			if tc.say == "" {
				if got.Date.IsZero() {
					t.Error("the server's clock is unknown")
				}
				got.Date = time.Time{}
				if err != nil || got != tc.want {
					t.Fatalf("%+v, %v", got, err)
				}
				return
			}
			var oe *Error
			if !errors.As(err, &oe) || oe.Kind != tc.kind || !strings.Contains(err.Error(), tc.say) {
				t.Fatalf("%v", err)
			}
			if oe.Kind != KindInvalid && (oe.RequestID == "" || oe.Hint() == "") {
				t.Fatalf("request id %q, hint %q", oe.RequestID, oe.Hint())
			}
		})
	}
}

func TestClockSkewIsExplained(t *testing.T) {
	e := newEnv(t, obstest.Options{}, nil)
	e.server.SetClock(-3 * time.Hour)
	err := e.client.PutSmall(t.Context(), obstest.Bucket, "a", []byte("x"), nil)
	if KindOf(err) != KindClock || !strings.Contains(err.Error(), "3h0m0s ahead of") {
		t.Fatalf("%v", err)
	}
	if n := e.server.Stats().Requests[obstest.OpPutObject]; n != 1 {
		t.Fatalf("tried %d times", n)
	}
}

func TestObjects(t *testing.T) {
	e := newEnv(t, obstest.Options{}, nil)
	ctx := t.Context()
	data := []byte("sixteen bytes ok")
	if err := e.client.PutSmall(ctx, obstest.Bucket, "a/disk.mf", data, map[string]string{"made-by": "test 1"}); err != nil {
		t.Fatal(err)
	}
	info, err := e.client.Stat(ctx, obstest.Bucket, "a/disk.mf")
	if err != nil || info.Size != 16 || info.StorageClass != "STANDARD" || info.Metadata["made-by"] != "test 1" || len(info.ETag) != 32 {
		t.Fatalf("%+v, %v", info, err)
	}
	e.server.Inject(obstest.Fault{Op: obstest.OpGetObject, Times: 2, Do: obstest.Fail, Status: 500})
	rc, err := e.client.GetRange(ctx, obstest.Bucket, "a/disk.mf", 8, 5)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(rc)
	if err != nil || string(got) != "bytes" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := rc.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.client.GetRange(ctx, obstest.Bucket, "a/disk.mf", 0, 0); KindOf(err) != KindInvalid {
		t.Fatalf("%v", err)
	}
	if _, err := e.client.GetRange(ctx, obstest.Bucket, "none", 0, 1); KindOf(err) != KindNotFound {
		t.Fatalf("%v", err)
	}
	for range 2 { // the second time it is gone already
		if err := e.client.Delete(ctx, obstest.Bucket, "a/disk.mf"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.client.Stat(ctx, obstest.Bucket, "a/disk.mf"); KindOf(err) != KindNotFound || !isCode(err, "NoSuchKey") {
		t.Fatalf("%v", err)
	}
	if err := e.client.Delete(ctx, "nowhere", "a"); KindOf(err) != KindNotFound {
		t.Fatalf("%v", err)
	}
	e.checkClean(t)
}

func TestCredentialsAreAskedPerRequest(t *testing.T) {
	var calls atomic.Int64
	fresh := obstest.Account{SecretKey: "new", SecurityToken: "tok2"}
	e := newEnv(t, obstest.Options{Accounts: map[string]obstest.Account{
		"OLD": {SecretKey: "old", SecurityToken: "tok1"}, "NEW": fresh}}, func(o *Options) {
		o.Credentials = func(context.Context) (Credentials, error) {
			if calls.Add(1) <= 2 {
				return Credentials{AccessKey: "OLD", SecretKey: "old", SecurityToken: "tok1"}, nil
			}
			return Credentials{AccessKey: "NEW", SecretKey: "new", SecurityToken: "tok2"}, nil
		}
	})
	if err := e.client.PutSmall(t.Context(), obstest.Bucket, "a", []byte("x"), nil); err != nil {
		t.Fatal(err)
	}
	// The next request is signed with the expired ones, the one after it with fresh ones.
	e.server.SetAccount("OLD", obstest.Account{SecretKey: "old", SecurityToken: "tok1", Expired: true})
	if err := e.client.PutSmall(t.Context(), obstest.Bucket, "b", []byte("x"), nil); err != nil {
		t.Fatal(err)
	}
	// Once for each of three requests, and once to see whether there are others than those refused.
	if sent := e.server.Stats().Requests[obstest.OpPutObject]; calls.Load() != 4 || sent != 3 {
		t.Fatalf("asked %d times for %d requests", calls.Load(), sent)
	}
	// Keys that stay expired are tried once more, and no oftener.
	e.server.SetAccount("NEW", obstest.Account{SecretKey: "new", SecurityToken: "tok2", Expired: true})
	err := e.client.PutSmall(t.Context(), obstest.Bucket, "c", []byte("x"), nil)
	if sent := e.server.Stats().Requests[obstest.OpPutObject]; KindOf(err) != KindAuth || calls.Load() != 8 || sent != 5 {
		t.Fatalf("%v, asked %d times for %d requests", err, calls.Load(), sent)
	}
}

func TestCredentialsFail(t *testing.T) {
	broken := errors.New("no metadata service")
	for _, f := range []CredentialsFunc{
		func(context.Context) (Credentials, error) { return Credentials{}, broken },
		StaticCredentials(Credentials{AccessKey: "only"}),
	} {
		e := newEnv(t, obstest.Options{}, func(o *Options) { o.Credentials = f })
		_, err := e.client.CheckBucket(t.Context(), obstest.Bucket)
		err2 := e.client.PutSmall(t.Context(), obstest.Bucket, "a", nil, nil)
		if KindOf(err) != KindAuth || KindOf(err2) != KindAuth {
			t.Fatalf("%v; %v", err, err2)
		}
		if len(e.server.Stats().Requests) != 0 {
			t.Fatal("an unsigned request was sent")
		}
	}
}

func TestSecretsNeverShow(t *testing.T) {
	cr := Credentials{AccessKey: "AK1", SecretKey: "sEcReT/key+1", SecurityToken: "tOkEn=="}
	j, err := json.Marshal(map[string]any{"c": cr, "p": &cr})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "c", cr, "p", &cr)
	shown := []string{string(j), log.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		shown = append(shown, fmt.Sprintf(verb, cr), fmt.Sprintf(verb, &cr), fmt.Sprintf(verb, struct{ C Credentials }{cr}))
	}

	// A server and a network that tell everything they know.
	leak := func(r *http.Request) string {
		return r.Header.Get("Authorization") + " https://h/?X-Amz-Signature=abcdef012&X-Amz-Credential=AKX%2F1 " +
			cr.SecretKey + " " + url.QueryEscape(cr.SecretKey) + " token " + cr.SecurityToken
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(403)
		if r.Header.Get("X-Amz-Meta-Plain") != "" {
			_, _ = io.WriteString(w, leak(r))
			return
		}
		_, _ = fmt.Fprintf(w, "<Error><Code>AccessDenied</Code><Message>%s</Message></Error>",
			strings.ReplaceAll(leak(r), "&", "&amp;"))
	}))
	defer s.Close()
	for _, tr := range []http.RoundTripper{nil, roundTrip(func(r *http.Request) (*http.Response, error) {
		return nil, &url.Error{Op: "Put", URL: "https://h/?X-Amz-Signature=abcdef012", Err: errors.New("proxy says: " + leak(r))}
	})} {
		c, err := New(Options{Endpoint: s.URL, Region: "test-1", Credentials: StaticCredentials(cr), Transport: tr, MaxAttempts: 1})
		if err != nil {
			t.Fatal(err)
		}
		for _, meta := range []map[string]string{nil, {"plain": "1"}} {
			err = c.PutSmall(t.Context(), "images", "a", []byte("x"), meta)
			if err == nil {
				t.Fatal("no error")
			}
			for e := err; e != nil; e = errors.Unwrap(e) {
				shown = append(shown, e.Error(), fmt.Sprintf("%+v", e), fmt.Sprintf("%#v", e))
			}
		}
		c.Close()
	}
	for _, text := range shown {
		for _, secret := range []string{cr.SecretKey, url.QueryEscape(cr.SecretKey), cr.SecurityToken, "abcdef012", "Signature=a", "AKX%2F1"} {
			if strings.Contains(text, secret) {
				t.Errorf("%q shows in %s", secret, text)
			}
		}
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	e := newEnv(t, obstest.Options{}, nil)
	e.server.Inject(obstest.Fault{Do: obstest.Fail, Status: 307, Code: "TemporaryRedirect",
		Header: map[string]string{"Location": e.server.URL() + "/elsewhere/a", "x-amz-bucket-region": "test-7"}})
	err := e.client.PutSmall(t.Context(), obstest.Bucket, "a", []byte("x"), nil)
	var oe *Error
	if !errors.As(err, &oe) || oe.Kind != KindRegion || oe.Region != "test-7" || !strings.Contains(oe.Hint(), "test-7") {
		t.Fatalf("%v", err)
	}
	if st := e.server.Stats(); len(st.Requests) != 1 || st.Requests[obstest.OpPutObject] != 1 {
		t.Fatalf("%v", st.Requests)
	}
}

func TestWrongSecretAgainstRealSignatures(t *testing.T) {
	e := newEnv(t, obstest.Options{}, func(o *Options) {
		o.Credentials = StaticCredentials(Credentials{AccessKey: obstest.AccessKey, SecretKey: "wrong"})
	})
	err := e.client.PutSmall(t.Context(), obstest.Bucket, "a", []byte("x"), nil)
	if KindOf(err) != KindAuth || !isCode(err, "SignatureDoesNotMatch") {
		t.Fatalf("%v", err)
	}
	// Its HEAD is refused without a word; the reason comes from a second question.
	if _, err := e.client.CheckBucket(t.Context(), obstest.Bucket); KindOf(err) != KindAuth || !isCode(err, "SignatureDoesNotMatch") {
		t.Fatalf("%v", err)
	}
}

func TestNetworkErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	_ = l.Close()
	tlsServer := httptest.NewTLSServer(http.NotFoundHandler())
	defer tlsServer.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for _, tc := range []struct {
		name, endpoint string
		kind           Kind
		tries          int
	}{
		{"refused", "http://" + closed, KindTransient, 3},
		{"unknown certificate", tlsServer.URL, KindInvalid, 1},
		{"not TLS", strings.Replace(plain.URL, "http:", "https:", 1), KindInvalid, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := New(Options{Endpoint: tc.endpoint, Region: "test-1", MaxAttempts: 3, BackoffBase: 1,
				Credentials: StaticCredentials(Credentials{AccessKey: "a", SecretKey: "b"})})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			err = c.PutSmall(t.Context(), "images", "a", []byte("x"), nil)
			var oe *Error
			if !errors.As(err, &oe) || oe.Kind != tc.kind || oe.Attempts != tc.tries || strings.Contains(err.Error(), "PUT") {
				t.Fatalf("%v", err)
			}
		})
	}
}

func TestTransportSettings(t *testing.T) {
	tr := newTransport(nil)
	if tr.TLSClientConfig.MinVersion != tls.VersionTLS12 || tr.MaxIdleConnsPerHost < MaxWorkers || !tr.DisableCompression {
		t.Fatalf("%+v", tr)
	}
}

func TestPayloadAfterRelease(t *testing.T) {
	p := &payload{r: newZeros(10)}
	p.release()
	if _, err := p.Read(make([]byte, 1)); !errors.Is(err, errReleased) {
		t.Fatalf("%v", err)
	}
	if _, err := p.Seek(0, io.SeekStart); !errors.Is(err, errReleased) {
		t.Fatalf("%v", err)
	}
}

func TestZeroLevels(t *testing.T) {
	for size, want := range map[int64][]int64{
		1:               {1},
		MinPartSize:     {MinPartSize},
		16 << 20:        {MinPartSize, 16 << 20},
		1 << 30:         {MinPartSize, 75 << 20, 1 << 30},
		MaxPartSize:     {MinPartSize, 160 << 20, MaxPartSize},
		MinPartSize + 1: {MinPartSize, MinPartSize + 1},
	} {
		if got := zeroLevels(size); !slices.Equal(got, want) {
			t.Errorf("%d: %v, want %v", size, got, want)
		}
	}
}
