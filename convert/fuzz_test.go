// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/ulikunitz/xz"

	"github.com/imsprep/imsprep/convert"
)

// FuzzOpenWrapped opens archives and compressed files. They may be refused, but must leave nothing
// behind, and what is opened must be readable as far as it was promised or be refused then.
func FuzzOpenWrapped(f *testing.F) {
	image, _ := wrappedDisk()
	disk := member{name: "d", data: image[:min(len(image), 20000)]}
	ova := archive(f, member{name: "w.ovf", data: descriptor("", "d")}, member{name: "w.mf", data: manifest(disk)}, disk)
	f.Add(ova)
	f.Add(archive(f, disk))
	f.Add(descriptor("", "d"))
	var z, x bytes.Buffer
	zw := gzip.NewWriter(&z)
	xw, err := xz.WriterConfig{DictCap: 1 << 16}.NewWriter(&x)
	if err != nil {
		f.Fatal(err)
	}
	_, err1 := zw.Write(image)
	_, err2 := xw.Write(image)
	if err := errors.Join(err1, err2, zw.Close(), xw.Close()); err != nil {
		f.Fatal(err)
	}
	f.Add(z.Bytes())
	f.Add(x.Bytes())
	f.Add([]byte("\x28\xB5\x2F\xFD\x20\x05\x29\x00\x00hello"))
	f.Add([]byte("BZh91AY&SY"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "disk.img")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		scratch := filepath.Join(dir, "scratch")
		if err := os.Mkdir(scratch, 0o700); err != nil {
			t.Fatal(err)
		}
		// Unpacked to a file, and as it is read: that makes no difference.
		var sums [2]string
		var errs [2]error
		for i, o := range []convert.OpenOptions{{ScratchDir: scratch}, convert.WithWindow(convert.OpenOptions{}, 1<<20)} {
			o.AllowBacking, o.MaxVirtualSize = true, 6<<20
			sums[i], errs[i] = readAll(t, path, o)
			var refused *convert.RefusedError
			if errs[i] != nil && !errors.As(errs[i], &refused) {
				t.Errorf("neither read nor refused: %v", errs[i])
			}
			if i == 1 && refused != nil && refused.Need == convert.NeedScratch {
				return
			}
		}
		if (errs[0] == nil) != (errs[1] == nil) || sums[0] != sums[1] {
			t.Errorf("unpacked %s, %v; streamed %s, %v", sums[0], errs[0], sums[1], errs[1])
		}
		if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
			t.Errorf("left in the scratch folder: %v, %v", left, err)
		}
	})
}

// readAll returns a sum of all of a disk.
func readAll(t *testing.T, path string, o convert.OpenOptions) (string, error) {
	d, err := convert.Open(context.Background(), path, o)
	if err != nil {
		return "", err
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(d, 0, d.Size())); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
