// SPDX-License-Identifier: Apache-2.0

package bitmap_test

import (
	"fmt"

	"github.com/imsprep/imsprep/bitmap"
)

// The bitmap file of a disk of 20 MiB with data in its first sector and across
// the border of blocks 3 and 4.
func Example() {
	layout, err := bitmap.Lookup("compact")
	if err != nil {
		fmt.Println(err)
		return
	}
	m, err := bitmap.NewMap(20<<20, layout.BlockSize)
	if err != nil {
		fmt.Println(err)
		return
	}
	m.MarkRange(0, 512)
	m.MarkRange(8<<20-100, 200)
	for run := range m.Runs() {
		fmt.Printf("blocks %d to %d: data %v\n", run.Start, run.Start+run.Length-1, run.Data)
	}
	file, err := layout.Encode(m)
	fmt.Printf("% x %v\n", file, err)
	// Output:
	// blocks 0 to 0: data true
	// blocks 1 to 2: data false
	// blocks 3 to 4: data true
	// blocks 5 to 9: data false
	// 19 00 <nil>
}
