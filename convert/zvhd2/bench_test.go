// SPDX-License-Identifier: Apache-2.0

package zvhd2

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
)

// program is a disk of real data: this test's own machine code and tables, in 16 blocks.
func program(b *testing.B) [][]byte {
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		b.Fatal(err)
	}
	var blocks [][]byte
	for i := range 16 {
		off := i * (len(data) - BlockSize) / 15
		blocks = append(blocks, data[off:off+BlockSize])
	}
	return blocks
}

// BenchmarkWriter writes by method, level and workers.
func BenchmarkWriter(b *testing.B) {
	blocks := program(b)
	for _, bc := range []struct {
		method  Method
		level   int
		workers int
	}{{Zstd, 1, 1}, {Zstd, 1, 2}, {Zstd, 3, 1}, {Zstd, 3, 2}, {Zstd, 6, 2}, {Zstd, 10, 2}, {Zlib, 1, 2}} {
		b.Run(fmt.Sprintf("%s-%d/workers=%d", bc.method, bc.level, bc.workers), func(b *testing.B) {
			b.SetBytes(BlockSize)
			w, err := NewWriter(io.Discard, MaxSize, WriterOptions{Method: bc.method, Level: bc.level, Workers: bc.workers})
			if err != nil {
				b.Fatal(err)
			}
			n := int64(0)
			for b.Loop() {
				if err := w.WriteBlock(context.Background(), n, blocks[n%16]); err != nil {
					b.Fatal(err)
				}
				n++
			}
			if s := w.Stats(); s.Stored > 0 {
				b.ReportMetric(float64(s.Bytes)/float64(s.Stored*BlockSize), "ratio")
			}
			w.Abort()
			_ = w.Close()
		})
	}
}

// BenchmarkReader reads whole blocks in sequence, by workers.
func BenchmarkReader(b *testing.B) {
	for _, method := range []Method{Zstd, Zlib} {
		var file bytes.Buffer
		blocks := program(b)
		w, err := NewWriter(&file, int64(len(blocks))*BlockSize, WriterOptions{Method: method})
		if err != nil {
			b.Fatal(err)
		}
		for i, block := range blocks {
			if err := w.WriteBlock(context.Background(), int64(i), block); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		img, _ := open(b, file.Bytes(), Options{OriginalSize: true})
		for _, workers := range []int{1, 2} {
			b.Run(fmt.Sprintf("%s/workers=%d", method, workers), func(b *testing.B) {
				b.SetBytes(BlockSize)
				var next atomic.Int64
				var wg sync.WaitGroup
				for range workers {
					wg.Go(func() {
						p := make([]byte, BlockSize)
						for {
							n := next.Add(1) - 1
							if n >= int64(b.N) {
								return
							}
							if _, err := img.ReadAt(p, n%16*BlockSize); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}
