// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"crypto/md5"
	"runtime"
	"sync"
	"time"

	md5simd "github.com/minio/md5-simd"
	"golang.org/x/sys/cpu"
)

const (
	// laneGroup is how many parts wait for each other at most. More would share the processor's lanes still better,
	// but all would be hashed while none is read or sent.
	laneGroup = 4
	// Fewer than these take less time one by one.
	minLanes = 3
	// lanePatience is how long a part waits for others, in bytes of it a second: eight times as long as its MD5 takes.
	// It bounds what a slow or hanging source can do to parts that are there.
	lanePatience = 80 << 20
)

// haveLanes tells whether md5-simd has code for this processor.
var haveLanes = runtime.GOARCH == "amd64" && cpu.X86.HasAVX2

// lanes computes the MD5s of parts that were read at about the same time side by side, in the vector lanes of one
// processor: of four parts in about a third of the time. One MD5 can't be split. A part waits only while others are
// being read, and not long; where there are no lanes it doesn't wait.
type lanes struct {
	on     bool // else there are none, and nobody waits
	mu     sync.Mutex
	coming int // parts that are being read
	group  *laneMates
	idle   []*laneSet
}

// laneMates are parts that are hashed together.
type laneMates struct {
	n      int
	left   int           // of them, that have no MD5 yet
	closed chan struct{} // when no one joins them any more
	set    *laneSet      // that hashes them, nil where they are too few
}

// laneSet hashes a group, and the next one when that is done. A server of md5-simd v1.1.2 never forgets a hasher, and
// looks at all that it has had again and again, so it has as many as a group needs, which stay.
type laneSet struct {
	server  md5simd.Server
	hashers [laneGroup]md5simd.Hasher
}

func newLaneSet() *laneSet {
	s := &laneSet{server: md5simd.NewServer()}
	for i := range s.hashers {
		s.hashers[i] = s.server.NewHash()
	}
	return s
}

func (s *laneSet) close() {
	for _, h := range s.hashers {
		h.Close()
	}
	s.server.Close()
}

// expect announces a call of sum, or of forget.
func (l *lanes) expect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.coming++
}

// forget takes back what expect announced.
func (l *lanes) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.coming--
	if l.coming == 0 {
		l.closeGroup()
	}
}

// sum returns the MD5 of a part that was announced.
func (l *lanes) sum(p []byte) sum {
	g, i := l.gather(time.Duration(len(p)) * time.Second / lanePatience)
	if g.set == nil {
		return md5.Sum(p)
	}
	return l.inLane(g, i, p)
}

// inLane computes the MD5 of the ith of a group that has a set.
func (l *lanes) inLane(g *laneMates, i int, p []byte) sum {
	defer l.done(g)
	h := g.set.hashers[i]
	defer h.Reset()
	_, _ = h.Write(p) // can't fail
	return sum(h.Sum(nil))
}

// gather waits until enough parts, or all that are coming, have come, or the time is over, and returns them and which
// of them this is.
func (l *lanes) gather(patience time.Duration) (g *laneMates, i int) {
	l.mu.Lock()
	l.coming--
	if !l.on {
		l.mu.Unlock()
		return &laneMates{n: 1}, 0
	}
	if l.group == nil {
		l.group = &laneMates{closed: make(chan struct{})}
	}
	g, i = l.group, l.group.n
	g.n++
	if l.coming == 0 || g.n == laneGroup {
		l.closeGroup()
	}
	l.mu.Unlock()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-g.closed:
	case <-timer.C:
		l.mu.Lock()
		if l.group == g {
			l.closeGroup()
		}
		l.mu.Unlock()
		<-g.closed
	}
	return g, i
}

// closeGroup lets those go that wait, if any.
func (l *lanes) closeGroup() {
	g := l.group
	if g == nil {
		return
	}
	if g.left = g.n; g.n >= minLanes {
		if n := len(l.idle); n > 0 {
			g.set, l.idle = l.idle[n-1], l.idle[:n-1]
		} else {
			g.set = newLaneSet()
		}
	}
	close(g.closed)
	l.group = nil
}

// done is called by each of a group that has a set.
func (l *lanes) done(g *laneMates) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g.left--; g.left == 0 {
		l.idle = append(l.idle, g.set)
	}
}

// close ends what computes. Nobody asks any more.
func (l *lanes) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.idle {
		s.close()
	}
	l.idle = nil
}
