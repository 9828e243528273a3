// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"slices"
	"time"

	"github.com/imsprep/imsprep/pkg/pipeline"
)

// Status is how far an image of a plan is.
type Status string

// The states of an image.
const (
	StatusPending     Status = "pending"     // nothing was done yet
	StatusRunning     Status = "running"     // a process is at work on it
	StatusWaiting     Status = "waiting"     // trouble that may pass; it is tried again soon
	StatusDone        Status = "done"        // the image is active
	StatusFailed      Status = "failed"      // the next run tries it again
	StatusRefused     Status = "refused"     // the disk can't be imported as it is
	StatusInterrupted Status = "interrupted" // the run was told to stop, or died; the next one goes on
	StatusSkipped     Status = "skipped"     // left out on purpose
)

// Bad tells whether the status is one that makes a batch count as failed.
func (s Status) Bad() bool { return s == StatusFailed || s == StatusRefused }

// stateVersion is raised when what is written means something else.
const stateVersion = 1

// State is what is known of one image of a plan. It holds no secrets.
type State struct {
	Version int    `json:"version"`
	Batch   string `json:"batch"`
	Name    string `json:"name"`
	Status  Status `json:"status"`
	// Entry identifies what the plan said of the image, see [Image.Fingerprint].
	Entry    string         `json:"entry"`
	Worker   string         `json:"worker,omitempty"` // who was last at work: host and process
	Runs     int            `json:"runs"`             // how many runs have had it
	Attempts int            `json:"attempts"`         // of the last run
	Phase    pipeline.Phase `json:"phase,omitempty"`
	// Progress is of the phase, while the image is at work.
	Progress *Progress   `json:"progress,omitempty"`
	Phases   []PhaseTime `json:"phases,omitempty"` // of all runs together
	Disk     *DiskFacts  `json:"disk,omitempty"`
	// Result is of the import that succeeded, Failure what the last one failed with.
	Result   *pipeline.Result `json:"result,omitempty"`
	Failure  *Failure         `json:"failure,omitempty"`
	Warnings []string         `json:"warnings,omitempty"`
	JobID    string           `json:"job_id,omitempty"`
	RunID    string           `json:"run_id,omitempty"` // of the import that was last begun

	First   time.Time `json:"first,omitzero"`   // when it was first begun
	Started time.Time `json:"started,omitzero"` // the last run's beginning
	Updated time.Time `json:"updated,omitzero"` // when this was written
	Ended   time.Time `json:"ended,omitzero"`   // when the last run was through with it
	// Next is when it is tried again, of StatusWaiting.
	Next time.Time `json:"next,omitzero"`
}

// Progress is how far a phase is, in its unit.
type Progress struct {
	Unit   pipeline.Unit `json:"unit,omitempty"`
	Done   int64         `json:"done"`
	Total  int64         `json:"total"`
	Sent   int64         `json:"sent,omitempty"`
	Copied int64         `json:"copied,omitempty"`
	Rate   float64       `json:"rate,omitempty"` // bytes of the disk a second
}

// PhaseTime is how long a phase has taken.
type PhaseTime struct {
	Phase   pipeline.Phase `json:"phase"`
	Seconds float64        `json:"seconds"`
}

// DiskFacts are what was found when the disk was opened.
type DiskFacts struct {
	Format      string `json:"format"`
	Variant     string `json:"variant,omitempty"`
	VirtualSize int64  `json:"virtual_size"`        // bytes
	DataSize    int64  `json:"data_size,omitempty"` // bytes, as far as the tables tell
}

// Failure is what an image failed with.
type Failure struct {
	Kind    pipeline.ErrorKind `json:"kind"`
	Message string             `json:"message"`
	Hint    string             `json:"hint,omitempty"` // what to do next
	Phase   pipeline.Phase     `json:"phase,omitempty"`
	At      time.Time          `json:"at"`
}

// addTime counts time spent in a phase.
func (s *State) addTime(p pipeline.Phase, d time.Duration) {
	if p == "" || d <= 0 {
		return
	}
	at := slices.IndexFunc(s.Phases, func(t PhaseTime) bool { return t.Phase == p })
	if at < 0 {
		at = len(s.Phases)
		s.Phases = append(s.Phases, PhaseTime{Phase: p})
	}
	s.Phases[at].Seconds += d.Seconds()
}

// Fingerprint identifies what the plan says of an image: the same again is the same image.
func (i *Image) Fingerprint(p *Plan) string {
	c := *i
	c.Line, c.Column, c.Skip, c.Refused, c.VirtualSize, c.DataSize, c.Timeout, c.Poll = 0, 0, false, "", 0, 0, 0, 0
	c.Source = filepath.ToSlash(c.Source)
	b, err := json.Marshal(c)
	if err != nil {
		return "" // cannot happen: there are only texts, numbers, lists and maps in it
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
