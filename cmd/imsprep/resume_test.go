// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
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
