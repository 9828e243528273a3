// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
)

// bigObjects has one large disk without content, under every name; data is
// what reading any part of it gives. Its bitmaps are what mf says.
type bigObjects struct {
	size int64
	mf   []byte
	open func() // called when the disk is opened
	read atomic.Int64
	fail bool
}

func (*bigObjects) BucketRegion(context.Context, string) (string, error) { return DefaultRegion, nil }

func (b *bigObjects) Stat(_ context.Context, _, key string) (int64, string, error) {
	if strings.HasSuffix(key, ".mf") {
		return int64(len(b.mf)), "", nil
	}
	return b.size, "", nil
}

func (b *bigObjects) Open(_ context.Context, _, key string) (ReaderAtCloser, error) {
	if strings.HasSuffix(key, ".mf") {
		return nopCloser{bytes.NewReader(b.mf)}, nil
	}
	if b.open != nil {
		b.open()
	}
	return nopCloser{b}, nil
}

// ReadAt fills p with a byte that is never zero.
func (b *bigObjects) ReadAt(p []byte, off int64) (int, error) {
	if b.fail {
		return 0, errors.New("broken")
	}
	if off+int64(len(p)) > b.size {
		return 0, io.EOF
	}
	b.read.Add(int64(len(p)))
	for n := 0; n < len(p); {
		n += copy(p[n:], pattern)
	}
	return len(p), nil
}

var pattern = bytes.Repeat([]byte{0xa5}, 1<<16)
