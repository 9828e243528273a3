// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
)

func (a *app) printVersion() error {
	if a.flags.json {
		return a.printJSON(map[string]string{
			"version": version, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
		})
	}
	_, err := fmt.Fprintf(a.out, "imsprep %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
