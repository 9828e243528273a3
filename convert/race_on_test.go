// SPDX-License-Identifier: Apache-2.0

//go:build race

package convert_test

// raceEnabled tells whether the race detector watches.
const raceEnabled = true
