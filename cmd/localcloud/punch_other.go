// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import (
	"errors"
	"os"
)

// punchHole is not implemented here: uploaded zeros are stored.
func punchHole(*os.File, int64, int64) error { return errors.ErrUnsupported }
