// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// Exit codes as shells have them.
const (
	exitNotFound = 127
	exitSignal   = 128 // plus the signal's number
)

// runCommand runs a command with more environment, in dir, passes signals on
// to it, and returns its exit code.
func runCommand(command []string, dir string, env [][2]string, signals <-chan os.Signal, stderr io.Writer) int {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = os.Environ()
	for _, kv := range env {
		cmd.Env = append(cmd.Env, kv[0]+"="+kv[1])
	}
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(stderr, "localcloud: cannot run %q: %v\n", command[0], err)
		return exitNotFound
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case sig := <-signals:
			// A terminal sends Ctrl-C to the command as well, which must not
			// count as two there.
			if sig != os.Interrupt || !inForeground() {
				_ = cmd.Process.Signal(sig) // it may have ended just now
			}
		case err := <-done:
			return exitCode(err)
		}
	}
}

func exitCode(err error) int {
	var e *exec.ExitError
	if !errors.As(err, &e) {
		if err != nil {
			return 1
		}
		return 0
	}
	if s, ok := e.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return exitSignal + int(s.Signal())
	}
	return e.ExitCode()
}
