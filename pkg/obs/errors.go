// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Kind says what sort of failure an Error is, as far as the caller's next step depends on it.
type Kind int

// Kinds of failure.
const (
	KindOther       Kind = iota
	KindAuth             // keys or rights: trying again does not help
	KindClock            // this machine's clock is too far off for signatures to be accepted
	KindNotFound         // no such bucket, object or upload
	KindRegion           // the bucket lives in another region
	KindQuota            // the bucket or the account is full, in arrears or frozen
	KindInvalid          // refused as wrong: bad input, or a bug of ours
	KindUnsupported      // the server cannot do it
	KindConflict         // somebody else changed or holds the object
	KindTransient        // network or server trouble: running again may help
	KindSource           // the disk could not be read
	KindIntegrity        // the server's account of the upload differs from ours
	KindCanceled         // the context ended
)

var kindNames = [...]string{"other", "auth", "clock", "not-found", "region", "quota", "invalid",
	"unsupported", "conflict", "transient", "source", "integrity", "canceled"}

func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("kind(%d)", int(k))
	}
	return kindNames[k]
}

// Error is what every failing call of this package returns. It never contains a secret, a signature
// or a signed URL.
type Error struct {
	Op        string // what was being done, for example "upload part"
	Bucket    string
	Key       string
	Part      int   // 0 when it is not about one part
	Offset    int64 // of the part in the object, in bytes; meaningful when Part > 0
	Status    int   // HTTP status, 0 when there was no answer
	Code      string
	Message   string
	RequestID string
	Attempts  int // how often it was tried, 0 or 1 when only once
	Kind      Kind
	Region    string // with KindRegion: where the bucket lives, "" when not said
	// Left names what could not be removed from the bucket after the failure: object keys, and
	// unfinished uploads as "upload ID of KEY". Those cost money until they are removed.
	Left []string
	// Kept is the id of an unfinished upload that was kept to be taken up again, "" if none was.
	Kept string
	Err  error // cause, if it is not the server's answer

	retryAfter time.Duration // as the server asked, 0 = not said
	renewal    renewal       // whether the next attempt has other keys
	signedBy   string        // access key, if its keys may be why
}

// attrs says for a log what the error is about.
func (e *Error) attrs() []slog.Attr {
	list := []slog.Attr{slog.String("op", e.Op), slog.String("bucket", e.Bucket)}
	if e.Key != "" {
		list = append(list, slog.String("key", e.Key))
	}
	if e.Part > 0 {
		list = append(list, slog.Int("part", e.Part))
	}
	if e.Code != "" {
		list = append(list, slog.String("code", e.Code))
	}
	return list
}

// Error implements error in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Bucket != "" {
		b.WriteString(" obs://" + e.Bucket)
		if e.Key != "" {
			b.WriteString("/" + e.Key)
		}
	}
	if e.Part > 0 {
		fmt.Fprintf(&b, " part %d at offset %d", e.Part, e.Offset)
	}
	b.WriteString(": ")
	switch {
	case e.Message != "":
		b.WriteString(e.Message)
	case e.Err != nil:
		b.WriteString(e.Err.Error())
	default:
		b.WriteString(e.Kind.String())
	}
	var notes []string
	if e.Status != 0 {
		s := fmt.Sprintf("HTTP %d", e.Status)
		if e.Code != "" {
			s += " " + e.Code
		}
		notes = append(notes, s)
	} else if e.Code != "" {
		notes = append(notes, e.Code)
	}
	if e.RequestID != "" {
		notes = append(notes, "request id "+e.RequestID)
	}
	if e.Attempts > 1 {
		notes = append(notes, fmt.Sprintf("after %d attempts", e.Attempts))
	}
	if len(notes) > 0 {
		b.WriteString(" (" + strings.Join(notes, ", ") + ")")
	}
	if len(e.Left) > 0 {
		b.WriteString("; left in the bucket: " + strings.Join(e.Left, ", "))
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the Kind of the first *Error in err's chain, KindOther without one.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return KindOther
}

// Hint says what the user can do next, "" when there is nothing useful to say.
func (e *Error) Hint() string {
	switch e.Code {
	case "VirtualHostDomainRequired":
		return "this store wants the bucket in the host name: give the endpoint as a domain name, not as an address"
	case "FsNotSupport":
		return "the bucket is a parallel file system; use an object bucket"
	case "InvalidObjectState":
		return "the object is archived; restore it first or use a bucket of the Standard class"
	case "TooManyWrongSignature":
		return "the secret key is wrong and the account is being blocked: wait a few minutes, then use the right key"
	case "InvalidAccessKeyId":
		return "this access key does not exist or was deleted; check it, and with temporary keys give their security token too"
	case "SignatureDoesNotMatch":
		return "the secret key does not belong to this access key, or the region is not the bucket's"
	case "NoSuchBucket":
		return "check the bucket's name and that the endpoint is the one of its region"
	}
	if expiredCode(e.Code) {
		return "the temporary keys have expired; get new ones and run the same command again"
	}
	switch e.Kind {
	case KindAuth:
		return "check the keys and that they may use this bucket (obs:object:PutObject, GetObject, " +
			"DeleteObject, AbortMultipartUpload, ListMultipartUploadParts and obs:bucket:HeadBucket)"
	case KindClock:
		return "set this machine's clock (NTP) and try again"
	case KindNotFound:
		return "check the names of the bucket and the object, and the region"
	case KindRegion:
		if e.Region != "" {
			return "use region " + e.Region + " and its endpoint, or a bucket of your region"
		}
		return "use the region and the endpoint the bucket lives in"
	case KindQuota:
		return "raise the bucket's quota, free space in it, or settle the account"
	case KindUnsupported:
		return "the store does not offer this call; for copied zero parts, --zero-copy=off does without it"
	case KindConflict:
		return "something else writes to this object: use another key or wait until it is done"
	case KindTransient:
		return "the network or the store had trouble; run the same command again"
	case KindSource:
		var h interface{ Hint() string }
		if errors.As(e.Err, &h) && h.Hint() != "" {
			return h.Hint()
		}
		return "the disk could not be read; check the file and its storage"
	case KindIntegrity:
		return "the store did not hold what was sent and the upload was thrown away; run the same command again, " +
			"and report it with the request id to the store's operator if it recurs"
	case KindOther, KindInvalid, KindCanceled:
	}
	return ""
}

func expiredCode(code string) bool {
	switch code {
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired":
		return true
	}
	return false
}
