// SPDX-License-Identifier: Apache-2.0

//go:build race

package zvhd2

const raceEnabled = true
