// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/pipeline"
)

// stateFlags say where runs remember how far they are: in a folder of this machine, or in a bucket, so that
// runs on other machines go on.
type stateFlags struct {
	stateDir string
	state    string
	lease    time.Duration
}

func (f *stateFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.stateDir, "state-dir", "", "folder of the journals that interrupted runs are resumed from (environment: IMSPREP_STATE_DIR)")
	fl.StringVar(&f.state, "state", "", "obs://BUCKET/PREFIX for the journals instead of a folder, so that a run on another machine goes on (environment: IMSPREP_STATE)")
	fl.DurationVar(&f.lease, "state-lease", pipeline.DefaultLease, "with --state: how long a run that died, or doesn't get through to the bucket, keeps others out")
}

// place is where in a bucket journals are; nil for none.
func (f *stateFlags) place(a *app) (*pipeline.StatePlace, error) {
	where := f.state
	if where == "" && f.stateDir == "" { // a flag wins
		where = a.getenv("IMSPREP_STATE")
	}
	switch {
	case where == "":
		return nil, nil
	case f.stateDir != "":
		return nil, usagef("--state and --state-dir: state is kept in a bucket or in a folder")
	}
	bucket, prefix, err := parsePlace(where)
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname() // for people
	p := &pipeline.StatePlace{Bucket: bucket, Prefix: prefix, Lease: f.lease, Holder: pipeline.Holder{Host: host, PID: os.Getpid()}}
	return p, p.Validate()
}

// parsePlace reads obs://BUCKET/PREFIX; the prefix may be left out.
func parsePlace(s string) (bucket, prefix string, err error) {
	bad := usagef("%q isn't a place for state: it is written obs://BUCKET/PREFIX", s)
	rest, ok := strings.CutPrefix(s, "obs://")
	if !ok {
		rest, ok = strings.CutPrefix(s, "s3://")
	}
	bucket, prefix, _ = strings.Cut(rest, "/")
	if !ok || bucket == "" || strings.Contains(prefix, "//") || strings.HasPrefix(prefix, "/") {
		return "", "", bad
	}
	return bucket, prefix, nil
}
