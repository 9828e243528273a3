// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"flag"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// minio-go waits for up to this long after an attempt that failed, even if it was the last one.
	minio.DefaultRetryUnit = time.Microsecond
	flag.Parse()
	if raceDetector {
		// rapid's own default is 100.
		_ = flag.Set("rapid.checks", "15")
	}
	goleak.VerifyTestMain(m)
}

// cases is how many of n random cases to go through.
func cases(n int) int {
	if raceDetector {
		return (n + 2) / 3
	}
	return n
}
