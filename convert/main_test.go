// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// skip skips a test for want of something on this machine, or fails it where everything must be
// there.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("IMSPREP_CI") == "1" {
		t.Fatalf("must not be skipped with IMSPREP_CI=1: %s", why)
	}
	t.Skipf("NOT TESTED: %s", why)
}
