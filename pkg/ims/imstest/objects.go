// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"sync"
)

// StorageStandard is the only storage class that IMS reads from.
const StorageStandard = "STANDARD"

// Objects is the object storage that the simulated service reads.
type Objects interface {
	// BucketRegion returns the bucket's region, or an error that is
	// fs.ErrNotExist when there is no such bucket.
	BucketRegion(ctx context.Context, bucket string) (string, error)
	// Stat returns an object's size in bytes and storage class ("" is
	// StorageStandard), or an error that is fs.ErrNotExist.
	Stat(ctx context.Context, bucket, key string) (size int64, storageClass string, err error)
	// Open opens an object for reading.
	Open(ctx context.Context, bucket, key string) (ReaderAtCloser, error)
}

// ReaderAtCloser is an open object.
type ReaderAtCloser interface {
	io.ReaderAt
	io.Closer
}

// MemoryObjects is an object storage in memory, for tests. The zero value
// has no buckets.
type MemoryObjects struct {
	mu      sync.Mutex
	buckets map[string]*memoryBucket
}

type memoryBucket struct {
	region  string
	objects map[string]memoryObject
}

type memoryObject struct {
	data  []byte
	class string
}

// AddBucket makes a bucket.
func (m *MemoryObjects) AddBucket(name, region string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.buckets == nil {
		m.buckets = map[string]*memoryBucket{}
	}
	m.buckets[name] = &memoryBucket{region, map[string]memoryObject{}}
}

// Put stores an object, of class StorageStandard if class is "". The bucket
// must exist, and data must not be changed afterwards.
func (m *MemoryObjects) Put(bucket, key string, data []byte, class string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buckets[bucket].objects[key] = memoryObject{data, class}
}

// WriteObject implements [ObjectWriter].
func (m *MemoryObjects) WriteObject(_ context.Context, bucket, key string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.buckets[bucket]
	if b == nil {
		return &fs.PathError{Op: "create", Path: bucket, Err: fs.ErrNotExist}
	}
	b.objects[key] = memoryObject{data: data}
	return nil
}

// Delete removes an object.
func (m *MemoryObjects) Delete(bucket, key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.buckets[bucket]; b != nil {
		delete(b.objects, key)
	}
}

// BucketRegion implements [Objects].
func (m *MemoryObjects) BucketRegion(_ context.Context, bucket string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.buckets[bucket]
	if b == nil {
		return "", &fs.PathError{Op: "stat", Path: bucket, Err: fs.ErrNotExist}
	}
	return b.region, nil
}

// Stat implements [Objects].
func (m *MemoryObjects) Stat(_ context.Context, bucket, key string) (int64, string, error) {
	o, err := m.get("stat", bucket, key)
	return int64(len(o.data)), o.class, err
}

// Open implements [Objects].
func (m *MemoryObjects) Open(_ context.Context, bucket, key string) (ReaderAtCloser, error) {
	o, err := m.get("open", bucket, key)
	if err != nil {
		return nil, err
	}
	return nopCloser{bytes.NewReader(o.data)}, nil
}

func (m *MemoryObjects) get(op, bucket, key string) (memoryObject, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.buckets[bucket]; b != nil {
		if o, ok := b.objects[key]; ok {
			return o, nil
		}
	}
	return memoryObject{}, &fs.PathError{Op: op, Path: bucket + "/" + key, Err: fs.ErrNotExist}
}

type nopCloser struct{ io.ReaderAt }

func (nopCloser) Close() error { return nil }
