// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package convert_test

import "testing"

func makePipe(t *testing.T, _ string) { skip(t, "this system has no named pipes") }
