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
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"

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
	Phase  Phase `json:"phase,omitempty"`
	State  State `json:"state"`
	Unit   Unit  `json:"unit,omitempty"`
	Done   int64 `json:"done"`
	Total  int64 `json:"total"`
	Sent   int64 `json:"sent,omitempty"`   // bytes of the disk sent over the network
	Copied int64 `json:"copied,omitempty"` // bytes of the disk copied on the server
	// Resumed are bytes of Done that were there from an earlier run.
	Resumed int64  `json:"resumed,omitempty"`
	Note    string `json:"note,omitempty"` // a sentence for people, such as the job's id
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
	// JobSlot, if not nil, is asked before the import call whether there may be one more job at the
	// service, and waits until there may. release is called when the job has ended, or isn't waited for.
	JobSlot func(ctx context.Context) (release func(), err error)
}

// obsExtents shows a disk's extents in the words of the uploader.
func obsExtents(ctx context.Context, d *convert.Disk) iter.Seq2[obs.Extent, error] {
	return func(yield func(obs.Extent, error) bool) {
		for e, err := range convert.Extents(ctx, d) {
			if !yield(obs.Extent{Start: e.Start, Length: e.Length, Zero: e.Zero}, err) || err != nil {
				return
			}
		}
	}
}

// CheckError is an import that would fail, found before any byte moved. Remedy says what to do.
type CheckError struct {
	What   string
	Remedy string
	Usage  bool  // a value of the request is wrong in itself
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

// Format is what a disk is uploaded as.
type Format string

const (
	FormatAuto  Format = "auto"  // as the key ends; else RAW where its bitmap's layout is confirmed, else ZVHD2
	FormatRAW   Format = "raw"   // with a bitmap beside it
	FormatZVHD2 Format = "zvhd2" // compressed; carries its bitmap itself
)

// Ext is the ending of an object's key, by which the service tells the format.
func (f Format) Ext() string { return "." + string(f) }

// chooseFormat says what a request is uploaded as, and why; layout is the bitmap's when that is RAW.
func chooseFormat(r *Request) (f Format, why string, layout bitmap.Layout, err error) {
	if layout = r.Layout; layout.Name == "" {
		layout, err = bitmap.Lookup(bitmap.DefaultLayout)
	}
	if err = errors.Join(err, layout.Validate()); err != nil {
		return "", "", layout, err
	}
	name := layout.Name
	confirmed := slices.Contains(r.ConfirmedLayouts, name)
	asked, by := r.Format, "asked for"
	if ext := path.Ext(r.Key); (asked == "" || asked == FormatAuto) && (ext == FormatRAW.Ext() || ext == FormatZVHD2.Ext()) {
		asked, by = Format(ext[1:]), "the object's key ends in "+ext
	}
	switch {
	case asked == FormatZVHD2 && (r.Format == FormatZVHD2 || r.MakeBitmap == nil):
		return FormatZVHD2, by, layout, nil
	case r.MakeBitmap != nil:
		return FormatRAW, "its bitmap is made by a tool of your own", layout, nil
	case confirmed && asked == FormatRAW:
		return FormatRAW, by, layout, nil
	case confirmed:
		return FormatRAW, fmt.Sprintf("the bitmap layout %q is confirmed for this cloud", name), layout, nil
	case r.AcceptUnconfirmed:
		return FormatRAW, fmt.Sprintf("the unconfirmed bitmap layout %q was accepted", name), layout, nil
	case asked == FormatRAW:
		return "", "", layout, &CheckError{
			What: fmt.Sprintf("the bitmap layout %q isn't confirmed for this cloud: what its own tool writes into "+
				"a .mf is not public, and a wrong bitmap that is accepted may mean a damaged disk", name),
			Remedy: "Take ZVHD2, which needs no bitmap (--format zvhd2, and a key that ends so); or confirm the layout: make a pair with the\n" +
				"  vendor's CreateMF.jar on a small RAW, compare with `imsprep bitmap verify RAW REF.mf --layout " + name + "`, and if\n" +
				"  they are equal set IMSPREP_CONFIRMED_BITMAP=" + name + ", or find it with `imsprep bitmap infer --save`;\n" +
				"  or have that tool make it (--bitmap-command); or take the risk once with --accept-unconfirmed-bitmap.",
		}
	}
	return FormatZVHD2, fmt.Sprintf("the bitmap layout %q that RAW would need isn't confirmed for this cloud", name), layout, nil
}
