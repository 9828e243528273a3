// SPDX-License-Identifier: Apache-2.0

package obstest

import (
	"fmt"
	"net/http"
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

// Actions.
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
	// Corrupt stores something other than what was sent, with the ETag of what it stores. A copied
	// part is stored as it should be, with an ETag that is wrong.
	Corrupt
	// CutBody answers GetObject with half of what was asked for and breaks the connection.
	CutBody
	// HideParts answers ListParts without the last Hide parts.
	HideParts
	// Observe changes nothing: Match sees every request.
	Observe
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

	seen, done int
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
func (s *Server) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
}

// ClearFaults removes all faults.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// fault returns the fault that acts on r, nil for none.
func (s *Server) fault(r *Request) *Fault {
	s.mu.Lock()
	faults := s.faults
	s.mu.Unlock()
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
		s.mu.Lock()
		f.seen++
		act := f.seen > f.After && (f.Times == 0 || f.done < f.Times)
		if act {
			f.done++
		}
		s.mu.Unlock()
		if act {
			return f
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
