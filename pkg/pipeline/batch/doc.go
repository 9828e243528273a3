// SPDX-License-Identifier: Apache-2.0

// Package batch imports many disks by one plan, which is a file for people to edit.
//
// [Propose] looks at disks and writes a plan; [Load] reads one, strictly, with the place of everything
// that is wrong in it. A [Runner] carries it out, entry by entry, within the plan's limits. What became
// of an entry is its [State], kept in a [Store]; with it, and with the journals of package pipeline, a run
// that ended anywhere goes on when it is started again. A [Report] tells the outcome.
//
// Nothing here prints or reads the environment.
package batch
