// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
)

// ErrorKind says what sort of failure ended a run, as far as the next step depends on it.
type ErrorKind string

// Kinds of failure.
const (
	KindNone        ErrorKind = ""
	KindOther       ErrorKind = "other"       // none of the others: read the message
	KindUsage       ErrorKind = "usage"       // the request, or a file or bucket that it names, is wrong
	KindRefused     ErrorKind = "refused"     // the disk is damaged, hostile or unsupported, or needs what isn't allowed
	KindAuth        ErrorKind = "auth"        // keys, rights, or this machine's clock
	KindTransient   ErrorKind = "transient"   // the network or a service; the same request may succeed later
	KindJob         ErrorKind = "job"         // the service took the import and failed at it
	KindRunning     ErrorKind = "running"     // the service was still at work when the time limit came
	KindUnclear     ErrorKind = "unclear"     // whether the service has the import isn't known
	KindInterrupted ErrorKind = "interrupted" // the run was told to stop
)

// KindOf finds the kind of an error of this package, or of those below it, however wrapped.
func KindOf(err error) ErrorKind {
	var (
		validation  *ims.ValidationError
		refused     *convert.RefusedError
		jobFailed   *ims.JobFailedError
		timeout     *ims.WaitTimeoutError
		interrupted *InterruptedError
		check       *CheckError
		unclear     *ims.AmbiguousSubmitError
		lost        *ims.LostAnswerError
		obsErr      *obs.Error
		imsErr      *ims.Error
		endpoint    *EndpointError
		busy        *BusyError
	)
	switch {
	case err == nil:
		return KindNone
	case errors.As(err, &interrupted), errors.Is(err, context.Canceled):
		return KindInterrupted
	case errors.As(err, &unclear), errors.As(err, &lost):
		// Whatever made the answer unclear: trying again might make a second image.
		return KindUnclear
	case errors.As(err, &jobFailed):
		return KindJob
	case errors.As(err, &timeout):
		return KindRunning
	case errors.As(err, &validation), errors.As(err, &check) && check.Usage:
		return KindUsage
	case errors.As(err, &refused):
		return KindRefused
	case errors.As(err, &busy):
		return KindTransient
	case errors.As(err, &endpoint):
		if endpoint.Transient() {
			return KindTransient
		}
		return KindUsage
	case errors.As(err, &obsErr):
		return kindOfStore(obsErr)
	case errors.As(err, &imsErr):
		switch imsErr.Kind {
		case ims.KindAuth, ims.KindPermission:
			return KindAuth
		case ims.KindTransient, ims.KindThrottled:
			return KindTransient
		}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		// A file or folder that the command line, the environment or the configuration names.
		return KindUsage
	}
	return KindOther
}

func kindOfStore(err *obs.Error) ErrorKind {
	switch err.Kind {
	case obs.KindAuth, obs.KindClock:
		return KindAuth
	case obs.KindTransient:
		return KindTransient
	case obs.KindRegion:
		return KindUsage
	case obs.KindInvalid:
		if err.Status == 0 { // refused here, for what the request says
			return KindUsage
		}
	case obs.KindNotFound:
		if err.Code == "NoSuchBucket" {
			return KindUsage
		}
	}
	return KindOther
}
