// SPDX-License-Identifier: Apache-2.0

package obstest

import (
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Op is a call of the S3 interface.
type Op string

// The calls the server knows.
const (
	OpHeadBucket  Op = "HeadBucket"
	OpListObjects Op = "ListObjects"
	OpHeadObject  Op = "HeadObject"
	OpGetObject   Op = "GetObject"
	OpPutObject   Op = "PutObject"
	OpDelete      Op = "DeleteObject"
	OpInitiate    Op = "CreateMultipartUpload"
	OpUploadPart  Op = "UploadPart"
	OpCopyPart    Op = "UploadPartCopy"
	OpListParts   Op = "ListParts"
	OpListUploads Op = "ListMultipartUploads"
	OpComplete    Op = "CompleteMultipartUpload"
	OpAbort       Op = "AbortMultipartUpload"
	OpUnknown     Op = "Unknown"
)

// Request is what a fault may look at.
type Request struct {
	Op          Op
	Bucket, Key string
	Part        int
	HTTP        *http.Request
}

// Action is what a fault does to a request.
type Action int

// Actions. What is said of the body is of the request's.
const (
	// Fail answers with Status, Code, Message and Header without doing anything. The body is not
	// read.
	Fail Action = iota
	// FailLate is Fail after the whole body was read.
	FailLate
	// Reset reads half of the body and breaks the connection.
	Reset
	// Lose does what was asked and breaks the connection instead of answering.
	Lose
	// ErrorBody answers 200 with an <Error> of Code as body without doing anything.
	ErrorBody
	// Stall neither reads nor answers until the client or the server gives up.
	Stall
	// StallBody reads half of the body and then does as Stall.
	StallBody
	// StallAnswer does what was asked, answers half, and then does as Stall.
	StallAnswer
	// Corrupt stores something other than what was sent, with the ETag of what it stores. A copied
	// part is stored as it should be, with an ETag that is wrong.
	Corrupt
	// CutAnswer does what was asked, answers half and breaks the connection.
	CutAnswer
	// HideParts answers ListParts without the last Hide parts.
	HideParts
	// Observe changes nothing: Match sees every request.
	Observe

	// These only a Proxy does.

	// Flip changes a bit of the body on its way.
	Flip
	// Shorten passes on half of the body as if that was all.
	Shorten
	// Trickle lets body and answer pass in pieces, each after a Pause.
	Trickle
	// SkewClock makes the store's clock seem ahead by Skew: the store sees the request's date as much earlier, and
	// the client the answer's as much later.
	SkewClock
)

// Fault changes how matching requests are served.
type Fault struct {
	Op    Op                  // "" = any
	Match func(*Request) bool // nil = any
	After int                 // that many matching requests are served properly first
	Times int                 // then so many are changed; 0 = all

	Do      Action
	Status  int
	Code    string
	Message string
	Header  map[string]string
	Hide    int
	Pause   time.Duration
	Skew    time.Duration
}

// Injected is a fault that is in force.
type Injected struct {
	Fault
	faults     *Faults
	seen, done int
}

// Fired returns how many requests it has changed.
func (f *Injected) Fired() int {
	f.faults.mu.Lock()
	defer f.faults.mu.Unlock()
	return f.done
}

// Faults are those in force. The zero value has none.
type Faults struct {
	mu   sync.Mutex
	list []*Injected
}

// Throttle is 503 SlowDown.
func Throttle(op Op, times int) Fault {
	return Fault{Op: op, Times: times, Do: Fail, Status: 503, Code: "SlowDown", Message: "reduce your request rate"}
}

// Refuse answers a call with a status and code, always.
func Refuse(op Op, status int, code string) Fault {
	return Fault{Op: op, Do: Fail, Status: status, Code: code, Message: "refused by the test"}
}

// Inject adds a fault. Of several that match, the first injected one acts.
func (l *Faults) Inject(f Fault) *Injected {
	l.mu.Lock()
	defer l.mu.Unlock()
	in := &Injected{Fault: f, faults: l}
	l.list = append(l.list, in)
	return in
}

// ClearFaults removes all faults.
func (l *Faults) ClearFaults() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = nil
}

// acting returns the fault that acts on r, nil for none.
func (l *Faults) acting(r *Request) *Fault {
	l.mu.Lock()
	faults := l.list
	l.mu.Unlock()
	for _, f := range faults {
		if f.Op != "" && f.Op != r.Op {
			continue
		}
		if f.Match != nil && !f.Match(r) {
			continue
		}
		if f.Do == Observe {
			continue
		}
		l.mu.Lock()
		f.seen++
		act := f.seen > f.After && (f.Times == 0 || f.done < f.Times)
		if act {
			f.done++
		}
		l.mu.Unlock()
		if act {
			return &f.Fault
		}
	}
	return nil
}

// SetClock shifts the server's clock by d, for signatures and Date headers.
func (s *Server) SetClock(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.skew = d
}

func (s *Server) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.skew).UTC()
}

func (r *Request) String() string {
	return fmt.Sprintf("%s %s/%s part %d", r.Op, r.Bucket, r.Key, r.Part)
}
