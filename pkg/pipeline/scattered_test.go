// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"strings"
	"testing"

	"github.com/imsprep/imsprep/pkg/obs"
)

// TestScattered: a disk of a little data in a great many places is told, a full one isn't.
func TestScattered(t *testing.T) {
	const apart, island, islands = 16 << 20, 4 << 10, 8192
	for name, tc := range map[string]struct {
		data int64 // bytes at the end of each stretch
		want string
	}{
		"scattered": {island, "--format zvhd2"},
		"full":      {apart, ""},
	} {
		plan, err := obs.NewPlan(islands*apart, func(yield func(obs.Extent, error) bool) {
			for i := range int64(islands) {
				if tc.data < apart && !yield(obs.Extent{Start: i * apart, Length: apart - tc.data, Zero: true}, nil) {
					return
				}
			}
		}, obs.PlanOptions{BlockSize: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		got := scattered(plan.Summary())
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q after %d requests", name, got, plan.Summary().Requests)
		}
	}
}
