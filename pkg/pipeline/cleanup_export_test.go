// SPDX-License-Identifier: Apache-2.0

package pipeline

import "strings"

// HoldJournal does to a journal what a run at work on it does.
func HoldJournal(path string) (release func(), err error) {
	l, err := acquire(strings.TrimSuffix(path, journalExt) + lockExt)
	if err != nil {
		return nil, err
	}
	return l.release, nil
}
