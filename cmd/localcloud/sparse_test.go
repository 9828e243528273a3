// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/minio/crc64nvme"
)

// TestZeroSums asks for lengths in an order that meets every way through the
// saved states: none yet, before, at, between and beyond them, and once more.
func TestZeroSums(t *testing.T) {
	var z zeroSums
	for _, n := range []int64{1, 0, zeroStep - 1, zeroStep, zeroStep + 1, 3*zeroStep + 5, 2 * zeroStep, 2*zeroStep + 7, 1, 5 << 20, 4*zeroStep - 1} {
		got, err := z.of(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, n)
		m := md5.Sum(p)
		crc := binary.BigEndian.AppendUint64(nil, crc64nvme.Checksum(p))
		want := sums{md5: hex.EncodeToString(m[:]), crc64: base64.StdEncoding.EncodeToString(crc)}
		if got != want {
			t.Errorf("%d zeros: %+v, want %+v", n, got, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := z.of(ctx, 100*zeroStep); err == nil {
		t.Error("a cancelled request goes on")
	}
	if got, err := z.of(t.Context(), 6*zeroStep); err != nil || got.md5 != md5Hex(make([]byte, 6*zeroStep)) {
		t.Errorf("after a cancelled request: %+v, %v", got, err)
	}
}

// patchy is n bytes of random runs of data and zeros.
func patchy(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for off := 0; off < n; {
		run := 1 + r.IntN(300<<10)
		if r.IntN(2) == 0 {
			for i := off; i < min(off+run, n); i++ {
				p[i] = byte(r.Uint32())
			}
		}
		off += run
	}
	return p
}

// TestPunchAndAppend: neither making holes nor joining files with holes
// changes what is read, and nothing is stored for zeros.
func TestPunchAndAppend(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	dir := t.TempDir()
	dst, err := os.Create(filepath.Join(dir, "joined"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	var want []byte
	for i := range 40 {
		p := patchy(r, r.IntN(1<<20))
		switch i % 4 {
		case 1:
			p = make([]byte, r.IntN(1<<20)) // zeros alone
		case 2:
			p = append(p, make([]byte, 1<<18)...) // zeros at the end
		}
		src, err := os.Create(filepath.Join(dir, "part"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := src.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := punchZeros(src); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(src.Name()); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("part %d: punching holes changed it (%v)", i, err)
		}
		if err := appendSparse(t.Context(), dst, src); err != nil {
			t.Fatal(err)
		}
		if err := src.Close(); err != nil {
			t.Fatal(err)
		}
		want = append(want, p...)
	}
	got, err := os.ReadFile(dst.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("joined %d bytes are not the parts' %d", len(got), len(want))
	}
	if err := os.Remove(filepath.Join(dir, "part")); err != nil {
		t.Fatal(err)
	}
	if n, most := allocated(t, dir), int64(len(want)); n > most*9/10 {
		t.Errorf("%d bytes with many zeros take %d", most, n)
	}
}

// TestAppendFailure: after an error the file is what it was, so that the
// caller can go on in another way.
func TestAppendFailure(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "dst")
	if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	dst, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	srcPath := filepath.Join(dir, "src")
	if err := os.WriteFile(srcPath, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := os.Open(srcPath)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := appendSparse(ctx, dst, src); err == nil {
		t.Fatal("a cancelled copy goes on")
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "before" {
		t.Errorf("%q, %v", got, err)
	}
	if err := appendSparse(t.Context(), dst, src); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "beforedata" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestObjectPaths(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"b/k", "b/d/k", "b/.sgwtmp/k", "secret"} {
		path := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("12345"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := objects{root: root, region: "r"}
	for key, ok := range map[string]bool{"k": true, "d/k": true, "d": false, "x": false, "../secret": false, "d/../../secret": false, "/k": false, ".sgwtmp/k": false, "": false} {
		size, class, err := o.Stat(t.Context(), "b", key)
		if (err == nil) != ok || ok && (size != 5 || class != "STANDARD") {
			t.Errorf("%q: %d %s %v", key, size, class, err)
		}
		f, err := o.Open(t.Context(), "b", key)
		if err == nil {
			f.Close()
		}
		if (err == nil) != ok && key != "d" { // a directory opens, but Stat comes first
			t.Errorf("open %q: %v", key, err)
		}
	}
	for bucket, ok := range map[string]bool{"b": true, "x": false, "secret": false} {
		if region, err := o.BucketRegion(t.Context(), bucket); (err == nil) != ok || ok && region != "r" {
			t.Errorf("bucket %q: %s %v", bucket, region, err)
		}
	}
}
