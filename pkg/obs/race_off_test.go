// SPDX-License-Identifier: Apache-2.0

//go:build !race

package obs

// raceDetector tells that the tests run with the race detector, which takes several times as long and
// looks for something else: fewer random cases show it as much.
const raceDetector = false
