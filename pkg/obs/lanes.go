// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"crypto/md5"
	"sync"

	md5simd "github.com/minio/md5-simd"
	"golang.org/x/sys/cpu"
)

const (
	// laneGroup is how many parts wait for each other at most. More would share the processor's lanes still better,
	// but all would be hashed while none is read or sent.
	laneGroup = 4
	// Fewer than these take less time one by one.
	minLanes = 3
)

// lanes computes the MD5s of parts that were read at about the same time side by side, in the vector lanes of one
// processor: of four parts in two fifths of the time. One MD5 can't be split. A part waits only for parts that are
// being read just now, and where there are no lanes it doesn't wait.
type lanes struct {
	mu     sync.Mutex
	coming int // parts that are being read
	group  *laneFellows
	server md5simd.Server
}

// laneFellows are parts that are hashed together.
type laneFellows struct {
	n      int
	closed chan struct{} // when no one joins them any more
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
	l.check()
}

// sum returns the MD5 of a part that was announced.
func (l *lanes) sum(p []byte) sum {
	if l.gather() < minLanes {
		return md5.Sum(p)
	}
	h := l.lane()
	defer h.Close()
	_, _ = h.Write(p) // can't fail
	return sum(h.Sum(nil))
}

// gather waits until enough parts, or all that are coming, have come, and returns how many they are.
func (l *lanes) gather() int {
	l.mu.Lock()
	l.coming--
	if !cpu.X86.HasAVX2 {
		l.mu.Unlock()
		return 1
	}
	if l.group == nil {
		l.group = &laneFellows{closed: make(chan struct{})}
	}
	g := l.group
	g.n++
	l.check()
	l.mu.Unlock()
	<-g.closed
	return g.n
}

// check lets a group go that waits for nothing more.
func (l *lanes) check() {
	if l.group != nil && (l.coming == 0 || l.group.n == laneGroup) {
		close(l.group.closed)
		l.group = nil
	}
}

func (l *lanes) lane() md5simd.Hasher {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.server == nil {
		l.server = md5simd.NewServer()
	}
	return l.server.NewHash()
}

// close ends what computes, once nobody asks any more.
func (l *lanes) close() {
	if l.server != nil {
		l.server.Close()
	}
}
