// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/obs/obstest"
)

// BenchmarkConcurrency uploads over lines of several kinds to a server on this machine, by real time, with fixed
// numbers of parts at the same time and with one that is found. scripts/bench-concurrency.sh makes a table of it.
func BenchmarkConcurrency(b *testing.B) {
	for _, l := range []struct {
		name string
		line func() *obstest.Line
		mib  int64
	}{
		{"far", func() *obstest.Line {
			return &obstest.Line{Each: 8 << 20, Total: 64 << 20, Latency: 40 * time.Millisecond}
		}, 256},
		{"slow", func() *obstest.Line {
			return &obstest.Line{Each: 8 << 20, Total: 8 << 20, Latency: 40 * time.Millisecond}
		}, 64},
		{"throttling", func() *obstest.Line {
			return &obstest.Line{Each: 8 << 20, Total: 64 << 20, Latency: 40 * time.Millisecond, Bears: 5}
		}, 128},
		{"local", func() *obstest.Line { return &obstest.Line{} }, 512},
	} {
		for _, c := range []struct {
			name      string
			low, high int
		}{{"1", 1, 1}, {"4", 4, 4}, {"16", 16, 16}, {"auto", 1, DefaultWorkers}} {
			b.Run(fmt.Sprintf("%s/%s", l.name, c.name), func(b *testing.B) {
				line := l.line()
				transport := &http.Transport{MaxIdleConnsPerHost: MaxWorkers, WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10}
				defer transport.CloseIdleConnections()
				line.Next = transport
				e := newEnv(b, obstest.Options{ZeroState: zeroState}, func(o *Options) {
					o.Transport, o.MaxAttempts, o.BackoffBase, o.BackoffCap = line, 10, 100*time.Millisecond, time.Second
				})
				once, err := obstest.NewContent(&noise{r: rand.NewChaCha8([32]byte{7}), n: 1 << 20})
				if err != nil {
					b.Fatal(err)
				}
				var parts []*obstest.Content
				for range l.mib {
					parts = append(parts, once)
				}
				p, err := NewPlan(l.mib<<20, nil, PlanOptions{PartSize: 8 << 20, Workers: c.high, MinWorkers: c.low})
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(l.mib << 20)
				for b.Loop() {
					res, err := e.client.Upload(b.Context(), e.options(&disk{content: obstest.Concat(parts...)}, p))
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(float64(res.Concurrency.Last), "last")
					b.ReportMetric(float64(res.Concurrency.Slowed), "slowed")
				}
			})
		}
	}
}
