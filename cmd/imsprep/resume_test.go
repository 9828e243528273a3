// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

// cmdNoJournals wants the state folder to hold nothing that a run would go on with, and no remains of
// writing it.
func cmdNoJournals(ts *testscript.TestScript, neg bool, args []string) {
	found := stateFiles(ts)
	if (len(found) == 0) == neg {
		ts.Fatalf("in the state folder: %q", found)
	}
}

// stateFiles are the journals, locks and temporary files in the state folder. Locks stay on systems
// where a file in use can't be removed. The states of batches, in a folder of their own, stay.
func stateFiles(ts *testscript.TestScript) []string {
	entries, err := os.ReadDir(ts.Getenv("IMSPREP_STATE_DIR"))
	if err != nil && !os.IsNotExist(err) {
		ts.Fatalf("%v", err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// cmdDamage flips a bit in every journal of a folder: damage FOLDER.
func cmdDamage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: damage FOLDER")
	}
	paths, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "*.json"))
	ts.Check(err)
	if len(paths) == 0 {
		ts.Fatalf("no journals in %s", args[0])
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		ts.Check(err)
		at := strings.Index(string(b), `"run_id":"`) + len(`"run_id":"`)
		b[at] ^= 1
		ts.Check(os.WriteFile(path, b, 0o600))
	}
}

// line is a script's way to the object storage, once it is to stall.
type line struct{ proxy *obstest.Proxy }

type lineKey struct{}

// cmdStall lets so many more parts through to the object storage and no further one, so that an upload
// can't end before it is interrupted: stall PARTS. With ! all get through again. The first one puts a
// proxy between the script's programs and the object storage.
func cmdStall(ts *testscript.TestScript, neg bool, args []string) {
	l := ts.Value(lineKey{}).(*line)
	if neg {
		if len(args) != 0 || l.proxy == nil {
			ts.Fatalf("usage: ! stall, after stall PARTS")
		}
		l.proxy.ClearFaults()
		return
	}
	if len(args) != 1 {
		ts.Fatalf("usage: stall PARTS")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	if l.proxy == nil {
		l.proxy, err = obstest.NewProxy(ts.Getenv("IMSPREP_OBS_ENDPOINT"))
		ts.Check(err)
		ts.Defer(l.proxy.Close)
		ts.Setenv("IMSPREP_OBS_ENDPOINT", l.proxy.URL())
	}
	l.proxy.Inject(obstest.Fault{Op: obstest.OpUploadPart, After: n, Do: obstest.Stall})
}
