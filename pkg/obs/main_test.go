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
	// md5-simd keeps channels in a pool for all, which those made in a bubble of synctest must not get into.
	haveLanes = false
	goleak.VerifyTestMain(m)
}

// laneHardware tells whether tests of lanes can use them; haveLanes is off then.
var laneHardware = haveLanes

// cases is how many of n random cases to go through.
func cases(n int) int {
	if raceDetector {
		return (n + 2) / 3
	}
	return n
}
