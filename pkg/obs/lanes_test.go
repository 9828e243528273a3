// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"crypto/md5"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// Whoever reads, hashes or gives up when: all sums are right, and nobody waits forever.
func TestLanesProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		workers := rapid.IntRange(1, 12).Draw(t, "workers")
		seed := rapid.Uint64().Draw(t, "seed")
		most := rapid.SampledFrom([]int{0, 1, 200, 300 << 10}).Draw(t, "most")
		l := lanes{on: laneHardware}
		defer l.close()
		var g sync.WaitGroup
		wrong := make(chan int, workers)
		for w := range workers {
			g.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(w)))
				for range 4 {
					p := make([]byte, r.IntN(most+1))
					l.expect()
					for i := range p {
						p[i] = byte(r.Uint32())
					}
					if r.IntN(4) == 0 {
						l.forget()
						continue
					}
					if l.sum(p) != md5.Sum(p) {
						wrong <- len(p)
						return
					}
				}
			})
		}
		g.Wait()
		close(wrong)
		for n := range wrong {
			t.Errorf("a wrong MD5 of %d bytes", n)
		}
		if l.coming != 0 || l.group != nil {
			t.Errorf("%d are coming, a group waits: %v", l.coming, l.group != nil)
		}
	})
}

// All lengths at which an MD5 pads differently, one after another in the same lanes.
func TestLanesSums(t *testing.T) {
	if !laneHardware {
		t.Skip("there are no lanes")
	}
	const block = 32 << 10 // of md5-simd
	l := lanes{on: laneHardware}
	defer l.close()
	for _, sizes := range [][]int{{0, 1, 55}, {56, 57, 63, 64}, {65, block - 1, block, block + 1}, {3 * block, 5, 100*block + 56}, {2, 0, 0, 3}} {
		var g sync.WaitGroup
		for range sizes {
			l.expect()
		}
		for _, n := range sizes {
			g.Go(func() {
				p := make([]byte, n)
				for i := range p {
					p[i] = byte(i * n >> 3)
				}
				mates, i := l.gather(time.Hour)
				if mates.n != len(sizes) || mates.set == nil {
					t.Errorf("%d bytes are hashed with %d others, in lanes: %v", n, mates.n-1, mates.set != nil)
					return
				}
				if got := l.inLane(mates, i, p); got != md5.Sum(p) {
					t.Errorf("%d bytes: %x instead of %x", n, got, md5.Sum(p))
				}
			})
		}
		g.Wait()
	}
	if len(l.idle) != 1 {
		t.Errorf("%d sets of lanes instead of one", len(l.idle))
	}
}

// A part waits for those that are being read, as long as they are, no more than fill a group, and not for long.
func TestLanesGather(t *testing.T) {
	if !laneHardware {
		t.Skip("there are no lanes: nobody waits")
	}
	synctest.Test(t, func(t *testing.T) {
		const patience = time.Second
		l := lanes{on: laneHardware}
		defer l.close()
		var got []int
		var mu sync.Mutex
		come := func() {
			go func() {
				g, _ := l.gather(patience)
				mu.Lock()
				defer mu.Unlock()
				got = append(got, g.n)
				if g.set != nil {
					l.done(g)
				}
			}()
			synctest.Wait()
		}
		is := func(when string, want ...int) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(got, want) {
				t.Fatalf("%s: %v are through, not %v", when, got, want)
			}
			got = nil
		}
		expect := func(n int) {
			for range n {
				l.expect()
			}
		}
		expect(1)
		come()
		is("alone", 1)

		expect(2)
		come()
		is("another one is being read")
		come()
		is("both are there", 2, 2)

		expect(3)
		come()
		come()
		is("a third one is being read")
		l.forget()
		synctest.Wait()
		is("the third one could not be read", 2, 2)

		expect(laneGroup + 1)
		for range laneGroup - 1 {
			come()
		}
		is("the group isn't full")
		come()
		is("the group is full, and one more is being read", 4, 4, 4, 4)
		come()
		is("the last one", 1)

		expect(3)
		come()
		come()
		time.Sleep(patience - time.Millisecond)
		is("there is still time")
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		is("the time is over, and one hangs", 2, 2)
		come()
		is("it has come after all", 1)
		if l.coming != 0 || l.group != nil {
			t.Errorf("%d are coming, a group waits: %v", l.coming, l.group != nil)
		}
	})
}

func BenchmarkLanes(b *testing.B) {
	parts := make([][]byte, laneGroup)
	for i := range parts {
		parts[i] = make([]byte, DefaultPartSize)
	}
	run := func(name string, sum func(l *lanes, p []byte) sum) {
		b.Run(name, func(b *testing.B) {
			l := lanes{on: laneHardware}
			defer l.close()
			b.SetBytes(int64(len(parts)) * DefaultPartSize)
			for b.Loop() {
				for range parts {
					l.expect()
				}
				var g sync.WaitGroup
				for _, p := range parts {
					g.Go(func() { sum(&l, p) })
				}
				g.Wait()
			}
		})
	}
	run("together", (*lanes).sum)
	run("apart", func(_ *lanes, p []byte) sum { return md5.Sum(p) })
}
