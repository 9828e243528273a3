// SPDX-License-Identifier: Apache-2.0

package qcow2

// WithoutLibrary makes this package read the data itself, as it does for the layers of a chain.
func (img *Image) WithoutLibrary() { img.lib = nil }

// Distinct exposes the counter of different places.
type Distinct struct{ d distinct }

func (d *Distinct) Add(v uint64)   { d.d.add(v) }
func (d *Distinct) Count() float64 { return d.d.count() }
