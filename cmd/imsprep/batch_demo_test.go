// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestBatchDemo runs the migration in small: twelve disks, a run that is killed, and what must come of it.
func TestBatchDemo(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv("IMSPREP_CI") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	program, err := exec.LookPath("imsprep")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", filepath.Join("scripts", "demo-batch.sh"))
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "IMSPREP="+program, "LOCALCLOUD="+localcloud, "TMPDIR="+t.TempDir(), "HOME="+t.TempDir(), "IMSPREP_METADATA_ENDPOINT=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
