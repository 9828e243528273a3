// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

// keyRing gives out generations of temporary keys and knows which one is good.
type keyRing struct {
	store *obstest.Server

	mu         sync.Mutex
	generation int
	asked      int // how often a service was asked for keys
}

func (r *keyRing) names() (ak, sk, token string) {
	return fmt.Sprintf("TEMPKEY%05d", r.generation), fmt.Sprintf("SECRET%05d", r.generation), fmt.Sprintf("token-%05d", r.generation)
}

// next ends the keys there are and makes others.
func (r *keyRing) next() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ak, sk, token := r.names(); r.generation > 0 {
		r.store.SetAccount(ak, obstest.Account{SecretKey: sk, SecurityToken: token, Expired: true})
	}
	r.generation++
	ak, sk, token := r.names()
	r.store.SetAccount(ak, obstest.Account{SecretKey: sk, SecurityToken: token})
}

// ServeHTTP is a metadata service and an IAM.
func (r *keyRing) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ak, sk, token := r.names()
	body := fmt.Sprintf(`{"credential":{"access":%q,"secret":%q,"securitytoken":%q,"expires_at":%q}}`,
		ak, sk, token, time.Now().Add(24*time.Hour).UTC().Format(time.RFC3339))
	switch q.URL.Path {
	case "/openstack/latest/securitykey":
		r.asked++
	case "/v3/auth/tokens":
		w.Header().Set("X-Subject-Token", "a token")
		w.WriteHeader(http.StatusCreated)
		body = `{"token":{"project":{"id":"p"}}}`
	case "/v3.0/OS-CREDENTIAL/securitytokens":
		r.asked++
		w.WriteHeader(http.StatusCreated)
	default:
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_, _ = io.WriteString(w, body)
}

func (r *keyRing) ini() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ak, sk, token := r.names()
	return fmt.Sprintf("[basic]\nak=%s\nsk=%s\nsecurity_token=%s\n", ak, sk, token)
}

func (r *keyRing) koo() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ak, sk, token := r.names()
	return fmt.Sprintf(`{"current":"a","profiles":[{"name":"a","mode":"AKSK","accessKeyId":%q,"secretAccessKey":%q,"securityToken":%q}]}`, ak, sk, token)
}

// TestUploadAcrossKeys sends an upload during which the keys end, for every source of keys.
func TestUploadAcrossKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	write := func(t *testing.T, text string) {
		t.Helper()
		// A new file in place of the old one, as whoever renews keys should.
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name   string
		env    func(r *keyRing, service string) map[string]string
		before func(t *testing.T, r *keyRing) // the first request
		change func(t *testing.T, r *keyRing) // while parts are on their way
		asked  int
		fails  bool
	}{
		{
			name: "the SDK's file",
			env: func(*keyRing, string) map[string]string {
				return map[string]string{"HUAWEICLOUD_SDK_CREDENTIALS_FILE": file}
			},
			before: func(t *testing.T, r *keyRing) { write(t, r.ini()) },
			change: func(t *testing.T, r *keyRing) { r.next(); write(t, r.ini()) },
		},
		{
			name:   "KooCLI's file",
			env:    func(*keyRing, string) map[string]string { return map[string]string{"HW_SHARED_CONFIG_FILE": file} },
			before: func(t *testing.T, r *keyRing) { write(t, r.koo()) },
			change: func(t *testing.T, r *keyRing) { r.next(); write(t, r.koo()) },
		},
		{
			// Where a file's time and size don't tell, the store's refusal does.
			name: "a file that changes unseen",
			env: func(*keyRing, string) map[string]string {
				return map[string]string{"HUAWEICLOUD_SDK_CREDENTIALS_FILE": file}
			},
			before: func(t *testing.T, r *keyRing) { write(t, r.ini()) },
			change: func(t *testing.T, r *keyRing) {
				info, err := os.Stat(file)
				if err != nil {
					t.Error(err)
					return
				}
				r.next()
				if err := os.WriteFile(file, []byte(r.ini()), 0o600); err != nil {
					t.Error(err)
				}
				if err := os.Chtimes(file, info.ModTime(), info.ModTime()); err != nil {
					t.Error(err)
				}
			},
		},
		{
			name: "the metadata service",
			env: func(_ *keyRing, service string) map[string]string {
				return map[string]string{"IMSPREP_METADATA_ENDPOINT": service}
			},
			change: func(_ *testing.T, r *keyRing) { r.next() },
			asked:  2,
		},
		{
			name: "keys for a token",
			env: func(_ *keyRing, service string) map[string]string {
				return map[string]string{"HW_USER_NAME": "u", "HW_USER_PASSWORD": "p", "HW_DOMAIN_NAME": "d", "IMSPREP_IAM_ENDPOINT": service}
			},
			change: func(_ *testing.T, r *keyRing) { r.next() },
			asked:  2,
		},
		{
			name: "the environment",
			env: func(r *keyRing, _ string) map[string]string {
				ak, sk, token := r.names()
				return map[string]string{"HW_ACCESS_KEY": ak, "HW_SECRET_KEY": sk, "HW_SECURITY_TOKEN": token}
			},
			change: func(_ *testing.T, r *keyRing) { r.next() },
			fails:  true,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &keyRing{store: obstest.New(obstest.Options{})}
			defer r.store.Close()
			service := httptest.NewServer(r)
			defer service.Close()
			r.next()
			if tc.before != nil {
				tc.before(t, r)
			}
			env := map[string]string{"HW_REGION_NAME": "test-1", "IMSPREP_OBS_ENDPOINT": r.store.URL(), "IMSPREP_IMS_ENDPOINT": service.URL,
				"IMSPREP_METADATA_ENDPOINT": "off", "HOME": t.TempDir(), "IMSPREP_CONFIG": filepath.Join(t.TempDir(), "none")}
			for k, v := range tc.env(r, service.URL) {
				env[k] = v
			}
			var stderr bytes.Buffer
			a := &app{streams: streams{out: io.Discard, err: &stderr, lookup: func(name string) (string, bool) {
				v, ok := env[name]
				return v, ok
			}}}
			s, err := a.settings()
			if err != nil {
				t.Fatal(err)
			}
			i, err := s.IMSClient()
			if err != nil {
				t.Fatal(err)
			}
			defer i.CloseIdleConnections()
			o, err := s.OBSClient(i)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()

			parts := 0
			r.store.Inject(obstest.Fault{Op: obstest.OpUploadPart, Do: obstest.Observe, Match: func(*obstest.Request) bool {
				r.mu.Lock()
				parts++
				now := parts == 2
				r.mu.Unlock()
				if now {
					tc.change(t, r)
				}
				return false
			}})
			const total = 30 << 20
			res, err := o.UploadStream(t.Context(), obs.StreamOptions{Bucket: obstest.Bucket, Key: "disk.zvhd2", MaxSize: total, Workers: 2},
				func(_ context.Context, w io.Writer) error {
					_, err := io.CopyN(w, rand.NewChaCha8([32]byte{1}), total)
					return err
				})
			if tc.fails {
				if code := a.finish(err); code != exitAuth || !strings.Contains(stderr.String(), "run the same command again") ||
					!strings.Contains(stderr.String(), "HUAWEICLOUD_SDK_CREDENTIALS_FILE") || strings.Contains(stderr.String(), "SECRET") {
					t.Errorf("exit code %d: %s", code, stderr.String())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if o := r.store.Object(obstest.Bucket, "disk.zvhd2"); o == nil || o.Content.Size() != total || res.Size != total {
				t.Errorf("stored %+v", o)
			}
			if r.asked != tc.asked {
				t.Errorf("asked for keys %d times, want %d", r.asked, tc.asked)
			}
		})
	}
}
