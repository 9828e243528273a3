// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !darwin && !windows

package pipeline

// room is how many bytes a folder's file system has for us; ok is false if that can't be told.
func room(string) (free int64, ok bool) { return 0, false }
