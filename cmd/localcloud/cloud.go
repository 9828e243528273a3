// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/s3api/utils"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

// partnerProject is the id of another tenant's project in every local cloud.
const partnerProject = "0000000000000000000000000000beef"

// An agency of every local cloud: whoever has a key may act through it.
const (
	agencyName    = "imsprep-agency"
	partnerDomain = "partner"
)

// shutdownTime is how long requests in progress may take when the cloud stops.
const shutdownTime = 2 * time.Second

// config is what a local cloud is started with.
type config struct {
	dir              string // absolute; "" for a temporary directory
	region           string
	obsAddr, imsAddr string
	buckets          []string
	account          imstest.Account
	user             imstest.User
	layout           bitmap.Layout
	deny             []string        // rights that the key and the user lack, see imstest.Denied
	ims              imstest.Options // the rest of the simulator's settings
}

// cloud is a running local cloud.
type cloud struct {
	config
	temporary bool
	gateway   *gateway
	ims       *imstest.Server
	imsHTTP   *http.Server
	imsAddr   string
	imsDone   chan error
}

// startCloud starts the object storage and the simulated IMS and IAM, and
// makes the buckets.
func startCloud(ctx context.Context, cfg config) (_ *cloud, err error) {
	c := &cloud{config: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if cfg.dir == "" {
		// With symbolic links resolved: the posix backend compares paths.
		tmp, err := filepath.EvalSymlinks(os.TempDir())
		if err != nil {
			return nil, err
		}
		if c.dir, err = os.MkdirTemp(tmp, "localcloud-"); err != nil {
			return nil, err
		}
		c.temporary = true
	}
	o := cfg.ims
	o.Region, o.Layout = cfg.region, cfg.layout
	// What is denied to the key and the user may still be done through the agency.
	key, user := cfg.account, cfg.user
	key.Deny, user.Deny = cfg.deny, cfg.deny
	o.Accounts = []imstest.Account{key}
	o.Users = []imstest.User{user}
	o.Agencies = []imstest.Agency{{Name: agencyName, Domain: partnerDomain}}
	// Somebody to share images with: requests with this project's id speak for it.
	if o.Partners == nil {
		o.Partners = []imstest.Project{{ID: partnerProject, Name: cfg.region + "-partner"}}
	}
	o.Objects = objects{root: bucketsDir(c.dir), region: cfg.region}
	c.ims = imstest.New(o)

	root := auth.Account{Access: cfg.account.AccessKey, Secret: cfg.account.SecretKey, Role: auth.RoleAdmin}
	c.gateway, err = startGateway(ctx, gatewayOptions{
		dir: c.dir, region: cfg.region, addr: cfg.obsAddr, root: root, accounts: accounts{c.ims}, deny: cfg.deny,
	})
	if err != nil {
		return nil, err
	}
	for _, b := range cfg.buckets {
		if err := c.makeBucket(ctx, b, root); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("tcp", cfg.imsAddr)
	if err != nil {
		return nil, fmt.Errorf("start the simulated IMS: %w", err)
	}
	c.imsAddr = l.Addr().String()
	c.imsHTTP = &http.Server{Handler: c.ims, ReadHeaderTimeout: time.Minute}
	c.imsDone = make(chan error, 1)
	go func() { c.imsDone <- c.imsHTTP.Serve(l) }()
	return c, nil
}

// makeBucket makes a bucket unless it is there from an earlier run.
func (c *cloud) makeBucket(ctx context.Context, name string, owner auth.Account) error {
	if _, err := os.Stat(filepath.Join(bucketsDir(c.dir), name)); err == nil {
		return nil
	}
	if !utils.IsValidBucketName(name) {
		return fmt.Errorf("%q is not a bucket's name: 3 to 63 lower-case letters, digits, dots and hyphens", name)
	}
	acl, err := json.Marshal(auth.ACL{Owner: owner.Access})
	if err != nil {
		return err
	}
	in := &s3.CreateBucketInput{
		Bucket:                    &name,
		CreateBucketConfiguration: &types.CreateBucketConfiguration{},
		ObjectOwnership:           types.ObjectOwnershipBucketOwnerEnforced,
	}
	if err := c.gateway.store.CreateBucket(ctx, in, acl); err != nil {
		return fmt.Errorf("make the bucket %q: %w", name, err)
	}
	return nil
}

// close stops everything and removes a temporary directory.
func (c *cloud) close() error {
	var errs []error
	if c.imsHTTP != nil {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		if err := c.imsHTTP.Shutdown(ctx); err != nil {
			errs = append(errs, c.imsHTTP.Close())
		}
		if err := <-c.imsDone; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
		}
	}
	if c.ims != nil {
		c.ims.Close()
	}
	if c.gateway != nil {
		errs = append(errs, c.gateway.close())
	}
	if c.temporary {
		// The working directory is below it, which some systems cannot remove.
		_ = os.Chdir(os.TempDir())
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}

// environment is what a client needs to use the cloud, in the order to show.
func (c *cloud) environment(token bool) [][2]string {
	env := [][2]string{
		{"HW_REGION_NAME", c.region},
		{"HW_PROJECT_ID", c.ims.ProjectID()},
		{"IMSPREP_OBS_ENDPOINT", "http://" + c.gateway.addr},
		{"IMSPREP_IMS_ENDPOINT", "http://" + c.imsAddr},
		{"IMSPREP_IAM_ENDPOINT", "http://" + c.imsAddr},
		{"IMSPREP_CONFIRMED_BITMAP", c.layout.Name},
		{"LOCALCLOUD_PARTNER_PROJECT_ID", partnerProject},
	}
	if len(c.buckets) > 0 {
		env = append(env, [2]string{"IMSPREP_BUCKET", c.buckets[0]})
	}
	if token {
		return append([][2]string{
			{"HW_USER_NAME", c.user.Name}, {"HW_USER_PASSWORD", c.user.Password}, {"HW_DOMAIN_NAME", c.user.Domain},
			{"LOCALCLOUD_USER_ID", c.user.ID},
		}, env...)
	}
	return append([][2]string{
		{"HW_ACCESS_KEY", c.account.AccessKey}, {"HW_SECRET_KEY", c.account.SecretKey},
	}, env...)
}

// randomKey returns n random letters and digits.
func randomKey(n int) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" // 32: no bias from a byte
	p := make([]byte, n)
	rand.Read(p)
	for i := range p {
		p[i] = alphabet[p[i]%32]
	}
	return string(p)
}
