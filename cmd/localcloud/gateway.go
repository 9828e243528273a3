// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"github.com/versity/versitygw/s3api"
)

// maxCopySize is what one copied part may be long: the limit of OBS and S3.
const maxCopySize = 5 << 30

// The gateway's own limits on connections and requests: far above what one
// client on the same machine opens.
const maxConnections = 4096

// portAttempts is how often another free port is tried when somebody else
// took the one that was free a moment ago.
const portAttempts = 5

// startTimeout bounds the wait for the gateway to listen. It takes
// milliseconds; the limit only turns a hang into an error.
const startTimeout = 15 * time.Second

// gatewayOptions describe the object storage to start.
type gatewayOptions struct {
	dir      string // absolute; buckets and metadata live below it
	region   string
	addr     string // host:port; port 0 for a free one
	root     auth.Account
	accounts auth.IAMService
	deny     []string // rights that nobody has, see imstest.Denied
}

// gateway is a running object storage.
type gateway struct {
	addr  string // host:port in use
	store *sparseStore
	stop  context.CancelFunc
	done  chan error // the result of the server, once
}

// Layout of the data directory.
func bucketsDir(dir string) string  { return filepath.Join(dir, "buckets") }
func metadataDir(dir string) string { return filepath.Join(dir, "metadata") }

// startGateway starts versitygw on a posix backend and waits until it listens.
// It changes the working directory of the process, as the posix backend does.
func startGateway(ctx context.Context, o gatewayOptions) (*gateway, error) {
	root, side := bucketsDir(o.dir), metadataDir(o.dir)
	for _, d := range []string{root, side} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	// Metadata goes into files beside the buckets, not into extended
	// attributes: some container file systems have none for users, and ext4 has
	// room for 4 KiB of them, less than the gateway's record of a few thousand
	// parts needs. One kind everywhere is also one kind to test.
	storer, err := meta.NewSideCar(side)
	if err != nil {
		return nil, err
	}
	be, err := posix.New(root, storer, posix.PosixOpts{
		CopyObjectThreshold: maxCopySize,
		ValidateBucketNames: true,
	})
	if err != nil {
		return nil, fmt.Errorf("open the object store in %s: %w", root, err)
	}
	store := newSparseStore(be, storer, root, side)
	if err := store.sweep(); err != nil {
		be.Shutdown()
		return nil, fmt.Errorf("clean the object store in %s: %w", root, err)
	}

	for attempt := 1; ; attempt++ {
		g, err := listenGateway(ctx, o, store)
		if err == nil {
			return g, nil
		}
		_, port, _ := net.SplitHostPort(o.addr)
		if port != "0" || attempt == portAttempts || !errors.Is(err, syscall.EADDRINUSE) {
			be.Shutdown()
			return nil, fmt.Errorf("start the object storage: %w", err)
		}
	}
}

func listenGateway(ctx context.Context, o gatewayOptions, store *sparseStore) (*gateway, error) {
	// versitygw takes an address, not a listener, and does not tell which port
	// it got: so a port is found by listening on it for a moment.
	addr, err := freeAddress(o.addr)
	if err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	g := &gateway{addr: addr, store: store, stop: stop, done: make(chan error, 1)}
	cfg := &embedgw.Config{
		RootUserAccess:    o.root.Access,
		RootUserSecret:    o.root.Secret,
		Region:            o.region,
		Ports:             []string{addr},
		MaxConnections:    maxConnections,
		MaxRequests:       maxConnections,
		MultipartMaxParts: 10000,
		Quiet:             true,
		KeepAlive:         true,
		IAMService:        o.accounts,
		S3Options: []s3api.Option{
			s3api.WithOnListen(func() { close(ready) }),
			s3api.WithMiddleware("/", likeOBS),
			s3api.WithMiddleware("/", denying(o.deny)),
		},
	}
	go func() { g.done <- embedgw.RunVersityGW(runCtx, store, cfg) }()
	select {
	case <-ready:
		return g, nil
	case err := <-g.done:
		stop()
		if err == nil {
			err = errors.New("it ended at once")
		}
		return nil, err
	case <-ctx.Done():
		g.close()
		return nil, ctx.Err()
	case <-time.After(startTimeout):
		stop()
		return nil, fmt.Errorf("it does not listen on %s after %s", addr, startTimeout)
	}
}

// close stops the gateway and waits a while for requests in progress; the end
// of the process ends what is left of them.
func (g *gateway) close() error {
	g.stop()
	select {
	case err := <-g.done:
		return err
	case <-time.After(shutdownTime):
		return nil
	}
}

// freeAddress returns addr with a free port in the place of port 0.
func freeAddress(addr string) (string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
