// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/versity/versitygw/backend/posix"
)

// TestPartsThatDontArrive: a part that is damaged or cut off on its way is refused, and what was stored under its
// number stays. How its checksum came makes no difference to what is stored.
func TestPartsThatDontArrive(t *testing.T) {
	r := start(t)
	c := r.core(nil)
	ctx := context.Background()
	const mib = 1 << 20
	good, other := random(t, 6*mib), random(t, 5*mib+12345)
	clear(good[mib : 3*mib]) // a hole
	u := newUpload(t, c, "parts", nil)
	u.send(good)
	stays := func(what string) {
		t.Helper()
		l := must(c.ListObjectParts(ctx, "images", "parts", u.id, 0, 10))(t)
		if len(l.ObjectParts) != 1 || strings.Trim(l.ObjectParts[0].ETag, `"`) != md5Hex(good) || l.ObjectParts[0].Size != int64(len(good)) {
			t.Errorf("after %s: %+v", what, l.ObjectParts)
		}
	}
	stays("a good part")

	_, err := c.PutObjectPart(ctx, "images", "parts", u.id, 1, bytes.NewReader(other), int64(len(other)),
		minio.PutObjectPartOptions{Md5Base64: md5Base64(good), DisableContentSha256: true})
	if code := minio.ToErrorResponse(err).Code; code != "BadDigest" {
		t.Errorf("a part with another Content-MD5: %v", err)
	}
	stays("one with another MD5")

	// At the connection, where a client can stop in the middle.
	query := url.Values{"partNumber": {"1"}, "uploadId": {u.id}}
	put := func(length int, body []byte, header string) string {
		t.Helper()
		signed := must(c.Presign(ctx, http.MethodPut, "images", "parts", time.Minute, query))(t)
		conn, err := net.Dial("tcp", signed.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: %d\r\n%s\r\n", signed.RequestURI(), signed.Host, length, header)
		if _, err := conn.Write(body); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(conn) // whoever hears nothing of the rest may also just hang up
		return string(answer)
	}
	for _, header := range []string{"", "Content-MD5: " + md5Base64(other) + "\r\n"} {
		for _, n := range []int{0, 1, mib, len(other) - 1} {
			if answer := put(len(other), other[:n], header); strings.HasPrefix(answer, "HTTP/1.1 200") {
				t.Errorf("%d of %d bytes: %s", n, len(other), answer)
			}
			stays(strconv.Itoa(n) + " bytes")
		}
	}
	_ = filepath.WalkDir(bucketsDir(r.dir), func(path string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(e.Name(), arriving) {
			t.Errorf("left: %s", path)
		}
		return nil
	})

	// Signed as a whole, with its MD5, and with neither.
	sum := sha256.Sum256(other)
	for name, o := range map[string]minio.PutObjectPartOptions{
		"SHA-256":     {Sha256Hex: hex.EncodeToString(sum[:])},
		"Content-MD5": {Md5Base64: md5Base64(other), DisableContentSha256: true},
		"in pieces":   {},
	} {
		part := must(c.PutObjectPart(ctx, "images", "parts", u.id, 2, bytes.NewReader(other), int64(len(other)), o))(t)
		if part.ETag != md5Hex(other) {
			t.Errorf("%s: ETag %s, want %s", name, part.ETag, md5Hex(other))
		}
	}
	if answer := put(len(other), other, ""); !strings.HasPrefix(answer, "HTTP/1.1 200") || !strings.Contains(answer, md5Hex(other)) {
		t.Errorf("a part with no checksum: %s", answer)
	}
	u.parts, u.sums, u.size = nil, nil, 0
	u.send(good)
	u.send(other)
	u.complete()
	if got := get(t, c, "parts", 0, u.size); !bytes.Equal(got, append(bytes.Clone(good), other...)) {
		t.Error("the object is not its parts")
	}
}

// TestSweep: what a killed server was in the middle of is removed when the next one starts, and nothing else.
func TestSweep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with [odd]* name?")
	s := newSparseStore(nil, nil, bucketsDir(dir), metadataDir(dir))
	gone := []string{
		filepath.Join(s.root, "b", posix.MetaTmpDir, arriving+"1"),
		filepath.Join(s.root, "b", uploadDir("k"), "id1.claim"+inProgress, "1"),
		filepath.Join(s.side, "b", uploadDir("k"), "id1.claim"+inProgress, "1", "meta", "etag"),
	}
	kept := []string{
		filepath.Join(s.root, "b", "object"+inProgress),
		filepath.Join(s.root, "b", arriving+"object"),
		filepath.Join(s.root, "b", uploadDir("k"), "id2", "1"),
		filepath.Join(s.side, "b", uploadDir("k"), "id2", "1", "meta", "etag"),
	}
	for _, path := range slices.Concat(gone, kept) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.sweep(); err != nil {
		t.Fatal(err)
	}
	for _, path := range gone {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left: %s", path)
		}
	}
	for _, path := range kept {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}
