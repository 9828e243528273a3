// SPDX-License-Identifier: Apache-2.0

// Command localcloud runs, on this machine's loopback interface, what imsprep
// needs of a cloud: an object storage (versitygw, an S3 server), and a
// simulated IMS and IAM that take imports for real.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

const usage = `localcloud runs an object storage and a simulated IMS and IAM on this machine,
to try and test imsprep without an account.

Usage:
  localcloud [flags]                       run until Ctrl-C; print the environment to use
  localcloud [flags] -- COMMAND [ARG...]   run COMMAND in that environment, then stop
  localcloud [flags] --exec COMMAND [ARG...]   the same

Examples:
  localcloud -- imsprep import disk.qcow2 --name demo --os-version 'Ubuntu 22.04 server 64bit'
  localcloud --dir /tmp/cloud --bucket images --bucket other
  localcloud --fail-job IMG.0057 -- sh test.sh

With a command, standard output is the command's own, and so is the exit code
(128 + the signal's number if a signal ended it). Interrupt, hang-up and
termination signals are passed on to it.

The access key and its secret are random unless LOCALCLOUD_ACCESS_KEY and
LOCALCLOUD_SECRET_KEY are set; so is the password of the user "tester" of the
account "local" (LOCALCLOUD_PASSWORD). The agency "imsprep-agency" of the account
"partner" may be assumed by both.

Flags:
`

// exitUsage is the exit code for a wrong command line.
const exitUsage = 2

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// settings are the command line.
type settings struct {
	config
	token   bool
	command []string
}

func run(args []string, stdout, stderr io.Writer) int {
	cfg, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "localcloud:", err)
		fmt.Fprintln(stderr, "Run localcloud --help for how to use it.")
		return exitUsage
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	// Whoever reads our output may go away; the data must be removed even so.
	// Ignoring the signal instead would make the command ignore it, too.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)

	// The object storage changes the working directory; the command gets ours.
	dir, err := os.Getwd()
	if err != nil {
		fmt.Fprintln(stderr, "localcloud:", err)
		return 1
	}
	c, err := startCloud(context.Background(), cfg.config)
	if err != nil {
		fmt.Fprintln(stderr, "localcloud:", err)
		return 1
	}
	code := 0
	if len(cfg.command) > 0 {
		code = runCommand(cfg.command, dir, c.environment(cfg.token), signals, stderr)
	} else {
		for _, kv := range c.environment(cfg.token) {
			fmt.Fprintf(stdout, "export %s=%s\n", kv[0], shellQuote(kv[1]))
		}
		fmt.Fprintf(stderr, "localcloud: object storage on http://%s, IMS and IAM on http://%s, data in %s; Ctrl-C stops it\n",
			c.gateway.addr, c.imsAddr, c.dir)
		select {
		case <-signals:
		case err := <-c.gateway.done:
			fmt.Fprintln(stderr, "localcloud: the object storage stopped:", err)
			c.gateway.done <- nil // for close
			code = 1
		}
	}
	if err := c.close(); err != nil {
		fmt.Fprintln(stderr, "localcloud:", err)
		code = max(code, 1)
	}
	return code
}

// parse reads the command line and fills in what it leaves open.
func parse(args []string, stderr io.Writer) (*settings, error) {
	s := &settings{}
	// Everything after "--" or "--exec" is the command; the flag package would
	// take the command's flags for ours.
	if i := slices.IndexFunc(args, func(a string) bool { return a == "--" || a == "--exec" || a == "-exec" }); i >= 0 {
		s.command, args = args[i+1:], args[:i]
		if len(s.command) == 0 {
			return nil, errors.New("no command to run is given")
		}
	}
	var buckets, deny stringList
	var layout string
	faults := &s.ims.Faults
	f := flag.NewFlagSet("localcloud", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
	}
	f.StringVar(&s.dir, "dir", "", "keep the data in this `directory`; without it, in a temporary one that is removed")
	f.StringVar(&s.region, "region", imstest.DefaultRegion, "the region's `id`")
	f.Var(&buckets, "bucket", "make a bucket of this `name`; may be repeated (default images)")
	f.Var(&deny, "deny", "take a `right` away from the key and the user, such as ims:images:create or ims:* or obs:object:DeleteObject; may be repeated")
	f.StringVar(&s.user.Passcode, "passcode", "", "the `code` that the user's virtual MFA device shows; a password alone gets no token then")
	f.StringVar(&s.obsAddr, "obs-addr", "127.0.0.1:0", "`address` of the object storage; port 0 takes a free one")
	f.StringVar(&s.imsAddr, "ims-addr", "127.0.0.1:0", "`address` of the simulated IMS and IAM")
	f.BoolVar(&s.token, "token", false, "give a user and a password in the environment instead of an access key")
	f.StringVar(&layout, "bitmap-layout", bitmap.DefaultLayout, "`layout` of the .mf files that the import reads")
	f.DurationVar(&s.ims.JobStep, "job-step", 300*time.Millisecond, "how long a job takes for each of its three steps, beside its work")
	f.Int64Var(&s.ims.HashLimit, "hash-limit", 64<<30, "largest disk, in `bytes`, whose SHA-256 is computed (0: any)")
	f.IntVar(&s.ims.Quota, "quota", imstest.DefaultQuota, "quota of private `images`")
	f.BoolVar(&s.ims.DuplicateNames, "duplicate-names", false, "allow two images of one name")
	f.StringVar(&faults.FailJobs, "fail-job", "", "every job fails with this IMG `code`")
	f.IntVar(&faults.LoseImportAnswers, "lose-import-answer", 0, "carry the first `n` imports out but cut the connection instead of answering")
	f.IntVar(&faults.FailImportAnswers, "fail-import-answer", 0, "carry the first `n` imports out but answer 504")
	f.IntVar(&faults.FlowControl, "flow-control", 0, "the first `n` imports answer IMG.0060")
	f.IntVar(&faults.Throttle, "throttle", 0, "the first `n` requests to IMS and IAM answer 429")
	f.IntVar(&faults.ServerErrors, "server-errors", 0, "the first `n` requests to IMS and IAM answer 503")
	f.IntVar(&faults.ExpireTokens, "expire-tokens", 0, "the first `n` requests with a token find it expired")
	f.BoolVar(&faults.HideImageID, "hide-image-id", false, "jobs do not tell the image's id")
	f.BoolVar(&faults.NoProgressCall, "no-progress-call", false, "the job progress call does not exist")
	f.BoolVar(&faults.NoStatusCall, "no-status-call", false, "the older job status call does not exist")
	f.BoolVar(&faults.NoNewGeneration, "no-new-generation", false, "the /v2.1 calls do not exist")
	f.BoolVar(&faults.NoOldGeneration, "no-old-generation", false, "the old import calls do not exist")
	f.DurationVar(&faults.ClockSkew, "clock-skew", 0, "how far the clock of IMS and IAM is ahead")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, fmt.Errorf("%w (see above)", err)
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q; a command comes after --", f.Arg(0))
	}
	var err error
	if s.layout, err = bitmap.Lookup(layout); err != nil {
		return nil, err
	}
	if s.dir != "" {
		if s.dir, err = filepath.Abs(s.dir); err != nil {
			return nil, err
		}
	}
	s.buckets, s.deny = buckets, deny
	if len(buckets) == 0 {
		s.buckets = []string{"images"}
	}
	s.account = imstest.Account{AccessKey: os.Getenv("LOCALCLOUD_ACCESS_KEY"), SecretKey: os.Getenv("LOCALCLOUD_SECRET_KEY")}
	if (s.account.AccessKey == "") != (s.account.SecretKey == "") {
		return nil, errors.New("LOCALCLOUD_ACCESS_KEY and LOCALCLOUD_SECRET_KEY go together")
	}
	if s.account.AccessKey == "" {
		s.account = imstest.Account{AccessKey: randomKey(20), SecretKey: randomKey(40)}
	}
	s.user.ID, s.user.Name, s.user.Domain = strings.ToLower(randomKey(32)), "tester", "local"
	s.user.Password = os.Getenv("LOCALCLOUD_PASSWORD")
	if s.user.Password == "" {
		s.user.Password = randomKey(24)
	}
	return s, nil
}

// stringList is a flag that may be repeated.
type stringList []string

func (l *stringList) String() string     { return strings.Join(*l, ",") }
func (l *stringList) Set(v string) error { *l = append(*l, v); return nil }

// shellQuote quotes a value for a shell, if it needs that.
func shellQuote(v string) string {
	if v != "" && strings.Trim(v, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=+") == "" {
		return v
	}
	return "'" + strings.ReplaceAll(v, "'", `'\''`) + "'"
}
