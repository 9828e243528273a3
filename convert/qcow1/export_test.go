// SPDX-License-Identifier: Apache-2.0

package qcow1

import "io"

// SetReader makes the disk be read from another file than the one that was checked.
func SetReader(m *Metadata, r io.ReaderAt) { m.r = r }
