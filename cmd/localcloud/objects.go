// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

// objects lets the simulated IMS read the object storage's files where they
// lie. Holes in them cost nothing to read.
type objects struct {
	root   string // absolute; the buckets' parent
	region string
}

var _ imstest.Objects = objects{}

// BucketRegion implements imstest.Objects.
func (o objects) BucketRegion(_ context.Context, bucket string) (string, error) {
	fi, err := os.Stat(filepath.Join(o.root, filepath.FromSlash(bucket)))
	if err != nil {
		return "", err
	}
	if !fi.IsDir() {
		return "", &fs.PathError{Op: "stat", Path: bucket, Err: fs.ErrNotExist}
	}
	return o.region, nil
}

// Stat implements imstest.Objects. Every object is of class Standard.
func (o objects) Stat(_ context.Context, bucket, key string) (int64, string, error) {
	path, err := o.path("stat", bucket, key)
	if err != nil {
		return 0, "", err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return 0, "", err
	}
	if !fi.Mode().IsRegular() {
		return 0, "", &fs.PathError{Op: "stat", Path: key, Err: fs.ErrNotExist}
	}
	return fi.Size(), imstest.StorageStandard, nil
}

// Open implements imstest.Objects.
func (o objects) Open(_ context.Context, bucket, key string) (imstest.ReaderAtCloser, error) {
	path, err := o.path("open", bucket, key)
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// path is the file of an object. A key that leads out of its bucket, or into
// what the gateway keeps beside the objects, names no object.
func (o objects) path(op, bucket, key string) (string, error) {
	name := filepath.FromSlash(key)
	if !filepath.IsLocal(name) || !filepath.IsLocal(bucket) || filepath.Base(bucket) != bucket || strings.HasPrefix(key, ".") {
		return "", &fs.PathError{Op: op, Path: key, Err: fs.ErrNotExist}
	}
	return filepath.Join(o.root, bucket, name), nil
}
