// SPDX-License-Identifier: Apache-2.0

package zvhd2

import (
	"bytes"
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"
	"go.uber.org/goleak"

	"github.com/imsprep/imsprep/convert/zvhd2/zvhd2test"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// skip skips a test for want of something on this machine, or fails it where everything must be
// there.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("IMSPREP_CI") == "1" {
		t.Fatalf("must not be skipped with IMSPREP_CI=1: %s", why)
	}
	t.Skipf("NOT TESTED: %s", why)
}

func preflight(file []byte, o Options) (*Metadata, error) {
	return Preflight(context.Background(), bytes.NewReader(file), int64(len(file)), o)
}

// open opens a file that must be good.
func open(t testing.TB, file []byte, o Options) (image.Image, *Metadata) {
	t.Helper()
	m, err := preflight(file, o)
	if err != nil {
		t.Fatalf("preflight: %v", err)
	}
	img, err := m.Open(nil)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return img, m
}

// refused checks that err is an *Error that names what is wanted.
func refused(t testing.TB, err error, want string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *Error about %q", err, want)
	}
	if reason, remedy := e.Refusal(); !strings.Contains(reason, want) || remedy != e.Remedy {
		t.Fatalf("got %q, want something about %q", reason, want)
	}
}

// sameDisk checks that the image has the content of the disk and is zero behind it, by reading
// whole blocks and by its extents.
func sameDisk(t testing.TB, img image.Image, want zvhd2test.Disk) {
	t.Helper()
	stored := map[int64]bool{}
	got := make([]byte, BlockSize)
	for off := int64(0); off < img.Size(); {
		e, err := img.Extent(off, img.Size()-off)
		if err != nil || e.Start != off || e.Length <= 0 || e.Length > img.Size()-off ||
			e.Allocated != e.Compressed || e.Allocated == e.Zero {
			t.Fatalf("extent at %d: %+v, %v", off, e, err)
		}
		if e.Allocated {
			for b := off / BlockSize; b*BlockSize < off+e.Length; b++ {
				stored[b] = true
			}
		}
		off += e.Length
	}
	for _, b := range want.Blocks() {
		stored[b] = true
	}
	for b := range stored {
		n := min(BlockSize, img.Size()-b*BlockSize)
		if m, err := img.ReadAt(got[:n], b*BlockSize); err != nil || int64(m) != n {
			t.Fatalf("block %d: %d, %v", b, m, err)
		}
		if !bytes.Equal(got[:n], want.Block(b)[:n]) {
			t.Fatalf("block %d differs", b)
		}
	}
}

// allocated returns how many bytes fn allocates in all.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
