// SPDX-License-Identifier: Apache-2.0

package sdktest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/auth/basic"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/config"
	sdk "github.com/huaweicloud/huaweicloud-sdk-go-v3/services/ims/v2"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

const (
	accessKey = "AKSDK0000000000000001"
	secretKey = "the-secret-of-the-sdk-tests"
	project   = "00000000000000000000000000000a11"
	partner   = "00000000000000000000000000000b22"
)

// world is a simulated cloud with an image, and the requests that reach it.
type world struct {
	t    *testing.T
	sim  *imstest.Server
	url  string
	ours *ims.Client
	as   string // the project that speaks

	image, queued, job string // ids

	mu   sync.Mutex
	seen []request
}

// request is what both clients must agree in.
type request struct {
	Method, Path string
	Query        url.Values
	Body         any
	ContentType  string // without parameters
}

// newWorld makes a cloud in which the image is shared with the partner if it is the partner who
// speaks, or if shared is true.
func newWorld(t *testing.T, as string, shared bool) *world {
	t.Helper()
	w := &world{t: t, as: as}
	layout, err := bitmap.Lookup(bitmap.DefaultLayout)
	if err != nil {
		t.Fatal(err)
	}
	disk := make([]byte, layout.BlockSize)
	disk[0] = 1
	m, err := bitmap.NewMap(int64(len(disk)), layout.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	m.MarkRange(0, 1)
	mf, err := layout.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	objects := &imstest.MemoryObjects{}
	objects.AddBucket("bkt", imstest.DefaultRegion)
	objects.Put("bkt", "disk.raw", disk, "")
	objects.Put("bkt", "disk.mf", mf, "")
	w.sim = imstest.New(imstest.Options{
		ProjectID: project,
		Accounts:  []imstest.Account{{AccessKey: accessKey, SecretKey: secretKey}},
		Partners:  []imstest.Project{{ID: partner, Name: "partner"}},
		Objects:   objects,
		TempDir:   t.TempDir(),
	})
	front := httptest.NewServer(http.HandlerFunc(w.record))
	w.url = front.URL
	t.Cleanup(func() { front.CloseClientConnections(); front.Close(); w.sim.Close() })

	ctx := t.Context()
	owner := w.client(project)
	w.ours = w.client(as)
	sub, err := owner.CommonImport(ctx, &ims.CommonImport{
		Name: "base", ImageURL: "bkt:disk.raw", MinDisk: 40, Tags: []ims.Tag{{Key: "k", Value: "v"}},
	}, ims.GenOld)
	if err != nil {
		t.Fatal(err)
	}
	w.job = sub.JobID
	w.image = w.wait(w.job).ImageID
	queued, err := owner.CreateImage(ctx, &ims.ImageMetadata{Name: "queued", DiskFormat: "raw", MinDisk: 10})
	if err != nil {
		t.Fatal(err)
	}
	w.queued = queued.ID
	if err := owner.AddNativeTag(ctx, w.image, "alone"); err != nil {
		t.Fatal(err)
	}
	if shared || as == partner {
		id, err := owner.ShareImages(ctx, []string{w.image}, []string{partner})
		if err != nil {
			t.Fatal(err)
		}
		w.wait(id)
	}
	w.take()
	return w
}

func (w *world) client(as string) *ims.Client {
	w.t.Helper()
	c, err := ims.New(ims.Options{
		Endpoint: w.url, IAMEndpoint: w.url, Region: imstest.DefaultRegion, ProjectID: as,
		Auth: ims.AKSK(ims.StaticCredentials(ims.Credentials{AccessKey: accessKey, SecretKey: secretKey})),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.CloseIdleConnections)
	return c
}

// sdk is the vendor's client.
func (w *world) sdk() *sdk.ImsClient {
	w.t.Helper()
	credentials, err := basic.NewCredentialsBuilder().WithAk(accessKey).WithSk(secretKey).WithProjectId(w.as).SafeBuild()
	if err != nil {
		w.t.Fatal(err)
	}
	client, err := sdk.ImsClientBuilder().WithEndpoint(w.url).WithCredential(credentials).
		WithHttpConfig(config.DefaultHttpConfig().WithTimeout(20 * time.Second).WithRetries(0)).SafeBuild()
	if err != nil {
		w.t.Fatal(err)
	}
	return sdk.NewImsClient(client)
}

func (w *world) wait(job string) *ims.Job {
	w.t.Helper()
	j, err := w.ours.WaitJob(w.t.Context(), job, ims.WaitOptions{
		First: -1, Interval: time.Millisecond, MaxInterval: 10 * time.Millisecond, Limit: time.Minute,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return j
}

// record passes a request on to the simulator and remembers it.
func (w *world) record(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.t.Error(err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	seen := request{Method: r.Method, Path: r.URL.Path, Query: r.URL.Query()}
	if len(body) > 0 {
		seen.ContentType, _, _ = strings.Cut(r.Header.Get("Content-Type"), ";")
		if err := json.Unmarshal(body, &seen.Body); err != nil {
			w.t.Errorf("%s %s: the body isn't JSON: %v", r.Method, r.URL.Path, err)
		}
	}
	if r.Header.Get("Authorization") != "" {
		if why := checkSignature(r, string(body)); why != "" {
			w.t.Errorf("%s %s: %s", r.Method, r.URL, why)
		}
	}
	w.mu.Lock()
	w.seen = append(w.seen, seen)
	w.mu.Unlock()
	w.sim.ServeHTTP(rw, r)
}

// take returns the requests since the last time.
func (w *world) take() []request {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

// names puts the world's ids into a template, or takes them out.
func (w *world) names(template string, out bool) string {
	for _, p := range [][2]string{
		{"$IMAGE", w.image}, {"$QUEUED", w.queued}, {"$JOB", w.job}, {"$PROJECT", project}, {"$PARTNER", partner},
	} {
		if out {
			template = strings.ReplaceAll(template, p[1], p[0])
		} else {
			template = strings.ReplaceAll(template, p[0], p[1])
		}
	}
	return template
}

// call makes a call of the SDK of the method's name and a request in JSON.
func (w *world) call(method, requestJSON string) (map[string]any, error) {
	w.t.Helper()
	m := reflect.ValueOf(w.sdk()).MethodByName(method)
	if !m.IsValid() {
		w.t.Fatalf("the SDK has no %s", method)
	}
	req := reflect.New(m.Type().In(0).Elem())
	if err := json.Unmarshal([]byte(w.names(requestJSON, false)), req.Interface()); err != nil {
		w.t.Fatalf("%s: %v", method, err)
	}
	out := m.Call([]reflect.Value{req})
	if err, _ := out[1].Interface().(error); err != nil {
		return nil, err
	}
	p, err := json.Marshal(out[0].Interface())
	if err != nil {
		w.t.Fatal(err)
	}
	var answer map[string]any
	if err := json.Unmarshal(p, &answer); err != nil {
		w.t.Fatal(err)
	}
	return answer, nil
}

// canonical is a request with ids replaced and without the differences that are meant.
func (w *world) canonical(r request, drop []string) string {
	for _, d := range drop {
		if name, ok := strings.CutPrefix(d, "query:"); ok {
			r.Query.Del(name)
		} else if m, ok := r.Body.(map[string]any); ok {
			delete(m, d)
		}
	}
	p, err := json.Marshal(r)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.names(string(p), true)
}

// operations of the SDK that exist.
func operations() []string {
	var list []string
	t := reflect.TypeOf(&sdk.ImsClient{})
	for i := range t.NumMethod() {
		if name := t.Method(i).Name; !strings.HasSuffix(name, "Invoker") {
			list = append(list, name)
		}
	}
	return list
}

// TestEveryOperation drives the simulator by each operation of the SDK, and compares the request of
// our client for the same.
func TestEveryOperation(t *testing.T) {
	var missing []string
	for _, name := range operations() {
		if !slices.ContainsFunc(table, func(o operation) bool { return o.name == name }) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		t.Errorf("%d operations of the SDK are in no test: %v", len(missing), missing)
	}
	passed, compared := 0, 0
	for _, o := range table {
		good := t.Run(o.name+o.variant, func(t *testing.T) {
			as := o.as
			if as == "" {
				as = project
			}
			w := newWorld(t, as, o.shared)
			answer, err := w.call(o.name, o.request)
			if o.refused != "" {
				if err == nil || !strings.Contains(err.Error(), o.refused) {
					t.Fatalf("got %v, want %s", err, o.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			theirs := w.take()
			for _, field := range o.answer {
				if answer[field] == nil {
					t.Errorf("the answer has no %s: %v", field, answer)
				}
			}
			if id, ok := answer["job_id"].(string); ok && o.name != "ShowJob" && o.name != "ShowJobProgress" {
				w.wait(strings.TrimSpace(id))
			}
			if o.ours == nil {
				return
			}
			other := newWorld(t, as, o.shared)
			if err := o.ours(other); err != nil {
				t.Fatalf("our client: %v", err)
			}
			ours := other.take()
			if len(theirs) != 1 || len(ours) != 1 {
				t.Fatalf("%d requests of the SDK, %d of ours", len(theirs), len(ours))
			}
			if a, b := w.canonical(theirs[0], o.differs), other.canonical(ours[0], o.differs); a != b {
				t.Errorf("SDK:  %s\nours: %s", a, b)
			}
			compared++
		})
		if good {
			passed++
		}
	}
	t.Logf("%d operations of the SDK in %d cases: %d passed, %d of them compared with our client",
		len(operations()), len(table), passed, compared)
}
