// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"net/http"
	"strings"
	"time"
)

// Faults are what goes wrong. Counters go down as requests use them up; the
// other fields hold until they are changed with [Server.SetFaults].
type Faults struct {
	// Hook sees every request before anything else. It may answer and return
	// true, or block, or panic with http.ErrAbortHandler to cut the connection.
	Hook func(w http.ResponseWriter, r *http.Request) bool

	Throttle     int // the next n requests answer 429 APIGW.0308
	ServerErrors int // the next n requests answer 503 with an empty body
	FlowControl  int // the next n imports answer IMG.0060, nothing is created
	ExpireTokens int // the next n requests with a token answer 401 APIGW.0307

	// LoseImportAnswers: the next n imports are accepted and carried out, but
	// the connection is cut without an answer.
	LoseImportAnswers int
	// FailImportAnswers: the next n imports are accepted and carried out, but
	// answered 504 by the load balancer.
	FailImportAnswers int

	// FailJobs makes every job that starts from now on end in FAIL, with the
	// IMG code and reason, after half of its work.
	FailJobs   string
	FailReason string

	// HideImageID leaves the image's id out of the jobs' answers.
	HideImageID bool

	NoProgressCall  bool // GET /v1/cloudimages/job/{id} is unknown here
	NoStatusCall    bool // GET /v1/{project}/jobs/{id} is unknown here
	NoNewGeneration bool // all of /v2.1 is unknown here
	NoOldGeneration bool // the old imports are unknown here
	NoOSVersions    bool // GET /v1/cloudimages/os_version is unknown here

	// ClockSkew is how far the server's clock is ahead.
	ClockSkew time.Duration
}

// SetFaults replaces the faults.
func (s *Server) SetFaults(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

// Faults returns the faults with what is left of the counters.
func (s *Server) Faults() Faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults
}

// requestFaults are the faults that one request meets.
type requestFaults struct {
	hook        func(http.ResponseWriter, *http.Request) bool
	err         error
	skew        time.Duration
	expireToken bool
	flowControl bool
}

// takeFaults decides what goes wrong with a request and counts it.
func (s *Server) takeFaults(r *http.Request) requestFaults {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &s.faults
	got := requestFaults{hook: f.Hook, skew: f.ClockSkew}
	path := r.URL.Path
	isImport := r.Method == http.MethodPost && strings.Contains(path, "/cloudimages/") && strings.HasSuffix(path, "/action")
	newForm := strings.HasPrefix(path, "/v2.1/")
	switch {
	case take(&f.Throttle):
		got.err = gatewayError(http.StatusTooManyRequests, "APIGW.0308", "The throttling threshold has been reached.")
	case take(&f.ServerErrors):
		got.err = balancerError(http.StatusServiceUnavailable)
	case f.NoNewGeneration && newForm,
		f.NoOldGeneration && isImport && !newForm,
		f.NoProgressCall && strings.HasPrefix(path, "/v1/cloudimages/job/"),
		f.NoStatusCall && strings.HasPrefix(path, "/v1/") && strings.Contains(path, "/jobs/"),
		f.NoOSVersions && path == "/v1/cloudimages/os_version":
		got.err = errNoSuchAPI
	case r.Header.Get("X-Auth-Token") != "" && take(&f.ExpireTokens):
		got.expireToken = true
	case isImport && take(&f.FlowControl):
		got.flowControl = true
	}
	return got
}

func take(n *int) bool {
	if *n <= 0 {
		return false
	}
	*n--
	return true
}

// loseAnswer spoils the answer to an accepted import, if it is to be lost:
// it cuts the connection, or returns the error to answer with.
func (s *Server) loseAnswer(w http.ResponseWriter) error {
	s.mu.Lock()
	lost, failed := take(&s.faults.LoseImportAnswers), false
	if !lost {
		failed = take(&s.faults.FailImportAnswers)
	}
	s.mu.Unlock()
	if failed {
		return balancerError(http.StatusGatewayTimeout)
	}
	if !lost {
		return nil
	}
	if h, ok := w.(http.Hijacker); ok {
		if c, _, err := h.Hijack(); err == nil {
			c.Close()
		}
	}
	panic(http.ErrAbortHandler)
}

// balancerError is an error of the load balancer in front of the gateway: a
// page that says nothing.
func balancerError(status int) *answerError {
	return &answerError{status, "text/html", func(string) []byte { return nil }, http.StatusText(status)}
}
