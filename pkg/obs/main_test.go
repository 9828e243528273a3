// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// minio-go waits for up to this long after an attempt that failed, even if it was the last one.
	minio.DefaultRetryUnit = time.Microsecond
	goleak.VerifyTestMain(m)
}
