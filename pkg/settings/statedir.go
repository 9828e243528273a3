// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"cmp"
	"path/filepath"
	"runtime"
)

// StateDir is where runs remember how far they are: the flag, IMSPREP_STATE_DIR, or a folder in the place
// that the system has for such things; "" when there is none.
func (o *Sources) StateDir(flag string) string {
	if dir := cmp.Or(flag, o.Getenv("IMSPREP_STATE_DIR")); dir != "" {
		return dir
	}
	if dir := o.Getenv("XDG_STATE_HOME"); dir != "" && filepath.IsAbs(dir) {
		return filepath.Join(dir, "imsprep")
	}
	switch runtime.GOOS {
	case "windows":
		if dir := o.Getenv("LOCALAPPDATA"); dir != "" {
			return filepath.Join(dir, "imsprep", "state")
		}
	case "darwin":
		if home := o.home(); home != "" {
			return filepath.Join(home, "Library", "Application Support", "imsprep", "state")
		}
	default:
		if home := o.home(); home != "" {
			return filepath.Join(home, ".local", "state", "imsprep")
		}
	}
	if dir := folder(o.CacheDir); dir != "" {
		return filepath.Join(dir, "imsprep")
	}
	return ""
}

// folder is what a function for one of the system's folders says, "" if there is none.
func folder(find func() (string, error)) string {
	if find == nil {
		return ""
	}
	dir, err := find()
	if err != nil {
		return ""
	}
	return dir
}
