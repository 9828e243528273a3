// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"runtime"
)

// stateDir is where runs remember how far they are: the flag, IMSPREP_STATE_DIR, or a folder in the place
// that the system has for such things; "" when there is none.
func (a *app) stateDir(flag string) string {
	if dir := first(flag, a.getenv("IMSPREP_STATE_DIR")); dir != "" {
		return dir
	}
	if dir := a.getenv("XDG_STATE_HOME"); dir != "" && filepath.IsAbs(dir) {
		return filepath.Join(dir, "imsprep")
	}
	switch runtime.GOOS {
	case "windows":
		if dir := a.getenv("LOCALAPPDATA"); dir != "" {
			return filepath.Join(dir, "imsprep", "state")
		}
	case "darwin":
		if home := a.home(); home != "" {
			return filepath.Join(home, "Library", "Application Support", "imsprep", "state")
		}
	default:
		if home := a.home(); home != "" {
			return filepath.Join(home, ".local", "state", "imsprep")
		}
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "imsprep")
	}
	return ""
}
