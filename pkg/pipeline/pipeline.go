// SPDX-License-Identifier: Apache-2.0

// Package pipeline takes one disk all the way to an image of IMS: plan, stream, bitmap, import, track.
//
// The work has two halves. [Importer.Plan] opens the disk, decides what will be read, sent and
// copied, and asks the clouds everything that could make the import fail later; it moves no byte of
// the disk. [Importer.Run] carries a plan out: one pass over the source, no temporary disk, memory
// bounded by the plan.
//
// Nothing here prints or reads the environment: progress goes to a callback as [Event] values and
// the outcome comes back as a [Result].
package pipeline

import (
	"context"
	"fmt"
	"iter"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
)

// MaxImageSize is the largest disk that a quick import takes, in bytes: 1 TB in the service's
// documentation, which counts min_disk in units of 2^30 up to 1,024.
const MaxImageSize = 1 << 40

// Phase names a stretch of an import, in the order in which they happen.
type Phase string

const (
	PhaseUpload  Phase = "upload"  // the disk's bytes go to the bucket; counted in logical bytes
	PhaseBitmap  Phase = "bitmap"  // the .mf is written beside the object
	PhaseSubmit  Phase = "submit"  // the import call
	PhaseJob     Phase = "job"     // the service works; counted in percent
	PhaseCleanup Phase = "cleanup" // the objects are deleted
)

// Unit says what an [Event] counts.
type Unit string

const (
	UnitNone    Unit = ""
	UnitBytes   Unit = "bytes"
	UnitPercent Unit = "percent"
)

// Event is something that happened in a phase. Done and Total are in the event's Unit; Total is 0
// for a phase that isn't counted. Sent and Copied split Done for the upload.
type Event struct {
	Phase  Phase  `json:"phase"`
	State  State  `json:"state"`
	Unit   Unit   `json:"unit,omitempty"`
	Done   int64  `json:"done"`
	Total  int64  `json:"total"`
	Sent   int64  `json:"sent,omitempty"`   // bytes of the disk sent over the network
	Copied int64  `json:"copied,omitempty"` // bytes of the disk copied on the server
	Note   string `json:"note,omitempty"`   // a sentence for people, such as the job's id
}

// State is where a phase is.
type State string

const (
	StateStart    State = "start"
	StateProgress State = "progress"
	StateDone     State = "done"
	StateWarning  State = "warning" // something to know that stops nothing; Note says it
)

// Importer holds the two clients, the region that both are in, and where events go. OBS is needed for
// everything, IMS for imports only. Events may be nil; it is called from several goroutines, but
// never at the same time.
type Importer struct {
	OBS    *obs.Client
	IMS    *ims.Client
	Region string
	Events func(Event)
}

// obsExtents shows a disk's extents in the words of the uploader, afresh at each call.
func obsExtents(ctx context.Context, d *convert.Disk) func() iter.Seq2[obs.Extent, error] {
	return func() iter.Seq2[obs.Extent, error] {
		return func(yield func(obs.Extent, error) bool) {
			for e, err := range convert.Extents(ctx, d) {
				if !yield(obs.Extent{Start: e.Start, Length: e.Length, Zero: e.Zero}, err) || err != nil {
					return
				}
			}
		}
	}
}

// CheckError is an import that would fail, found before any byte moved. Remedy says what to do.
type CheckError struct {
	What   string
	Remedy string
	Err    error // the cause, if another package found it
}

func (e *CheckError) Error() string {
	s := e.What
	if e.Err != nil {
		s = fmt.Sprintf("%s: %v", s, e.Err)
	}
	if e.Remedy != "" {
		s += "\n  " + e.Remedy
	}
	return s
}

func (e *CheckError) Unwrap() error { return e.Err }

// bitmapLayout finds the layout a request names and says whether it may be used.
func bitmapLayout(name string, confirmed []string, acceptUnconfirmed bool) (bitmap.Layout, error) {
	if name == "" {
		name = bitmap.DefaultLayout
	}
	l, err := bitmap.Lookup(name)
	if err != nil {
		return bitmap.Layout{}, err
	}
	for _, c := range confirmed {
		if c == name {
			return l, nil
		}
	}
	if acceptUnconfirmed {
		return l, nil
	}
	return bitmap.Layout{}, &CheckError{
		What: fmt.Sprintf("the bitmap layout %q isn't confirmed for this cloud: what its own tool writes into "+
			"a .mf is not public, and a wrong bitmap that is accepted may mean a damaged disk", name),
		Remedy: "Confirm it: make a pair with the vendor's CreateMF.jar on a small RAW, compare with\n" +
			"  `imsprep bitmap verify RAW REF.mf --layout " + name + "`, and if they are equal set\n" +
			"  IMSPREP_CONFIRMED_BITMAP=" + name + "; or take the risk once with --accept-unconfirmed-bitmap.",
	}
}
