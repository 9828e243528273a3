// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !darwin && !freebsd

package main

// inForeground is always true here: a console sends Ctrl-C to all its
// processes.
func inForeground() bool { return true }
