// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/convert/zvhd2"
)

// TestResumedZVHD2IsTheSame: a stream that is cut into parts, ends after any of them, and is gone on with
// by its header and the parts' notes is the same as one in one go, byte by byte and in its digest.
func TestResumedZVHD2IsTheSame(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		const unit = 256 << 10
		disk := make([]byte, rapid.IntRange(1, 24*(1<<20)/512).Draw(t, "sectors")*512)
		r := rand.NewChaCha8([32]byte{rapid.Byte().Draw(t, "seed")})
		for at := 0; at < len(disk); at += unit {
			if rapid.IntRange(0, 3).Draw(t, "data") == 0 {
				r.Read(disk[at:min(at+unit, len(disk))])
			}
		}
		path := filepath.Join(dir, "disk.raw")
		if err := os.WriteFile(path, disk, 0o600); err != nil {
			t.Fatalf("%v", err)
		}
		d, err := convert.Open(t.Context(), path, convert.OpenOptions{Format: convert.FormatRAW})
		if err != nil {
			t.Fatalf("%v", err)
		}
		defer d.Close()
		partSize := rapid.IntRange(5000, 4<<20).Draw(t, "part")
		stream := func(digest *convert.Digest, h *convert.ZVHD2Header) *convert.ZVHD2Stream {
			o := convert.ZVHD2Options{Digest: digest}
			o.Writer.Level, o.Writer.Workers = 1, 2
			if h != nil {
				o.Writer.Time, o.Writer.UUID = h.Time, h.UUID
			}
			return convert.NewZVHD2Stream(d, o)
		}
		var want convert.Digest
		first := stream(&want, nil)
		whole := &parts{size: partSize, note: first.Note}
		stats, err := first.Encode(t.Context(), whole)
		if err != nil {
			t.Fatalf("%v", err)
		}
		whole.cut()
		h := first.Header()

		kept := rapid.IntRange(0, len(whole.notes)).Draw(t, "kept parts")
		end := int64(min(kept*partSize, len(whole.b)))
		var got convert.Digest
		second := stream(&got, &h)
		var from, done int64
		if kept > 0 { // else not even the head page is there
			if from, done, err = second.Resume(whole.notes[:kept], end); err != nil {
				t.Fatalf("resume: %v", err)
			}
			if from > end || from < 0 || done > int64(len(disk)) {
				t.Fatalf("goes on at %d of %d, %d bytes of the disk", from, end, done)
			}
		}
		rest := &parts{size: partSize}
		stats2, err := second.Encode(t.Context(), rest)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if sha256.Sum256(append(bytes.Clone(whole.b[:from]), rest.b...)) != sha256.Sum256(whole.b) {
			t.Fatalf("resumed at %d of %d, it is another image", from, len(whole.b))
		}
		if got != want || stats2.DataBytes != stats.DataBytes || stats2.ZeroBytes != stats.ZeroBytes {
			t.Fatalf("digest %s instead of %s, %+v instead of %+v", got, want, stats2, stats)
		}
		if done > 0 && stats2.BytesRead > stats.BytesRead {
			t.Fatalf("read %d bytes, all are %d", stats2.BytesRead, stats.BytesRead)
		}
		// A note that is damaged or missing is noticed, and then all is made again.
		if kept > 0 {
			bad := append([][]byte{}, whole.notes[:kept]...)
			switch n := rapid.IntRange(0, kept-1).Draw(t, "bad note"); rapid.IntRange(0, 2).Draw(t, "how") {
			case 0:
				bad[n] = nil
			case 1:
				bad[n] = bad[n][:len(bad[n])/2]
			case 2:
				bad[n] = append([]byte{0xFF, 0xFF, 0xFF}, bad[n]...)
			}
			third := stream(&got, &h)
			if _, _, err := third.Resume(bad, end); err == nil {
				t.Fatalf("a damaged note was taken")
			}
			again := &parts{size: partSize}
			if _, err := third.Encode(t.Context(), again); err != nil || !bytes.Equal(again.b, whole.b) || got != want {
				t.Fatalf("after a damaged note it is another image (%v)", err)
			}
		}
	})
}

// parts cuts what is written as an upload does, and has notes made before the Write that fills a part
// returns.
type parts struct {
	b     []byte
	size  int
	note  func() []byte
	notes [][]byte
}

func (p *parts) Write(b []byte) (int, error) {
	for n := 0; n < len(b); {
		k := min(p.size-len(p.b)%p.size, len(b)-n)
		p.b = append(p.b, b[n:n+k]...)
		n += k
		if len(p.b)%p.size == 0 && p.note != nil {
			p.notes = append(p.notes, p.note())
		}
	}
	return len(b), nil
}

func (p *parts) cut() {
	if len(p.b)%p.size != 0 {
		p.notes = append(p.notes, p.note())
	}
}

func TestResumeRefusesShortFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	disk := make([]byte, 3*zvhd2.BlockSize)
	rand.NewChaCha8([32]byte{}).Read(disk)
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := convert.Open(t.Context(), path, convert.OpenOptions{Format: convert.FormatRAW})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	z := convert.NewZVHD2Stream(d, convert.ZVHD2Options{})
	w := &parts{size: 5 << 20, note: z.Note}
	if _, err := z.Encode(context.Background(), w); err != nil {
		t.Fatal(err)
	}
	if _, _, err := convert.NewZVHD2Stream(d, convert.ZVHD2Options{}).Resume(w.notes[:1], 4096); err == nil || !strings.Contains(err.Error(), "4096") {
		t.Fatalf("error %v", err)
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.raw")
	write := func(content string, age time.Duration) {
		t.Helper()
		b := make([]byte, 128<<10)
		copy(b, content)
		at := time.Unix(1_700_000_000, 123_456_789).Add(age)
		if err := errors.Join(os.WriteFile(path, b, 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	identity := func() convert.Identity {
		t.Helper()
		d, err := convert.Open(t.Context(), path, convert.OpenOptions{Format: convert.FormatRAW})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		id, err := d.Identity()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	write("a", 0)
	was := identity()
	if len(was.Files) != 1 || was.Files[0].Size != 128<<10 || was.Files[0].Name != "disk.raw" || len(was.Files[0].Header) != 64 {
		t.Fatalf("%+v", was)
	}
	if why := identity().Changed(was); why != "" {
		t.Errorf("nothing changed, but %s", why)
	}
	write("b", 0)
	if why := identity().Changed(was); !strings.Contains(why, "first bytes") {
		t.Errorf("other first bytes: %q", why)
	}
	write("a", time.Nanosecond*100)
	if why := identity().Changed(was); !strings.Contains(why, "written to") {
		t.Errorf("another time: %q", why)
	}
	if err := os.Truncate(path, 256<<10); err != nil {
		t.Fatal(err)
	}
	if why := identity().Changed(was); !strings.Contains(why, "262144 bytes, it had 131072") {
		t.Errorf("another size: %q", why)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "in the way"), nil, 0o600); err != nil { // takes the inode
		t.Fatal(err)
	}
	write("a", 0)
	if now := identity(); now.Files[0].ID != was.Files[0].ID {
		if why := now.Changed(was); !strings.Contains(why, "another file") {
			t.Errorf("another file: %q", why)
		}
	}
	for want, change := range map[string]func(i *convert.Identity){
		"read as":  func(i *convert.Identity) { i.Format = "vhd" },
		"disk in":  func(i *convert.Identity) { i.Member = "x.vmdk" },
		"in 2":     func(i *convert.Identity) { i.Files = append(i.Files, i.Files[0]) },
		"the disk": func(i *convert.Identity) { i.VirtualSize++ },
	} {
		now := identity()
		now.Files = append([]convert.FileIdentity{}, was.Files...)
		change(&now)
		if why := now.Changed(was); !strings.Contains(why, want) {
			t.Errorf("%q instead of %q", why, want)
		}
	}
}
