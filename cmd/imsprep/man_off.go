// SPDX-License-Identifier: Apache-2.0

//go:build !man

package main

import "github.com/spf13/cobra"

// buildCommands are the commands that only the making of packages needs; see man.go.
func (a *app) buildCommands() []*cobra.Command { return nil }
