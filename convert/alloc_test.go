// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/convert/qcow2"
	"github.com/imsprep/imsprep/convert/qcow2/qcow2test"
)

// TestAllocationsPerChunk counts what the scanner and the reader of QCOW2 allocate for a chunk when all is
// warm: a number that depends neither on its length nor on how it is stored.
func TestAllocationsPerChunk(t *testing.T) {
	if raceEnabled {
		t.Skip("with the race detector, sync.Pool forgets at random what it was given")
	}
	const size, cluster = 8 << 20, 64 << 10
	disk := bytes.Repeat([]byte("some text of a disk that can be compressed; "), size/40)[:size]
	for _, tc := range []struct {
		name string
		kind qcow2test.Kind
		zstd bool
	}{{"plain", qcow2test.Plain, false}, {"zlib", qcow2test.Compressed, false}, {"zstd", qcow2test.Compressed, true}} {
		im := qcow2test.Image{Version: 3, ClusterBits: 16, Size: size, Zstd: tc.zstd}
		for i := range int64(size / cluster) {
			im.Clusters = append(im.Clusters, qcow2test.Cluster{Index: i, Kind: tc.kind, Data: disk[i*cluster : (i+1)*cluster]})
		}
		file := im.Write().Bytes
		m, err := qcow2.Preflight(context.Background(), bytes.NewReader(file), int64(len(file)), qcow2.Options{})
		if err != nil {
			t.Fatal(err)
		}
		img, err := m.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		s := convert.NewScanner(img, nil)
		// One processor and no collection of garbage would be exact; a few more are left for those.
		const most = 8
		for _, n := range []int{1 << 20, size} {
			buf := make([]byte, n)
			got := testing.AllocsPerRun(20, func() {
				if _, err := s.ReadRange(context.Background(), buf, 0); err != nil && err != io.EOF {
					t.Fatal(err)
				}
			})
			t.Logf("%s, %d clusters: %.0f allocations", tc.name, n/cluster, got)
			if got > most {
				t.Errorf("%s, %d clusters: %.0f allocations, want at most %d", tc.name, n/cluster, got, most)
			}
			if !bytes.Equal(buf, disk[:n]) {
				t.Errorf("%s: wrong bytes", tc.name)
			}
		}
	}
}
