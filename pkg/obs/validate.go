// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

const maxKeyLength = 1024 // bytes

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	keyName    = regexp.MustCompile(`^[A-Za-z0-9._/-]+$`)
	metaName   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)
)

// ValidateBucket checks a bucket's name against OBS's rules: 3 to 63 of a-z, 0-9, hyphen and dot,
// hyphens and dots neither at the ends nor side by side, not an IP address. Over TLS (tls) a name
// with a dot is refused as well: the bucket is a label of the host name, and the service's wildcard
// certificate covers one label only.
func ValidateBucket(name string, tls bool) error {
	bad := func(why string) error {
		return &Error{Op: "check bucket name", Bucket: name, Kind: KindInvalid, Code: "InvalidBucketName", Message: why}
	}
	switch {
	case len(name) < 3 || len(name) > 63:
		return bad(fmt.Sprintf("it has %d characters, 3 to 63 are allowed", len(name)))
	case !bucketName.MatchString(name):
		return bad("only a-z, 0-9, hyphens and dots are allowed, with a letter or digit at both ends")
	case strings.Contains(name, "..") || strings.Contains(name, ".-") || strings.Contains(name, "-."):
		return bad("dots must have letters or digits on both sides")
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return bad("it looks like an IP address")
	}
	if tls && strings.Contains(name, ".") {
		return bad("a name with a dot does not match the service's TLS certificate; use a bucket without dots")
	}
	return nil
}

// ValidateKey checks an object's key for use by IMS: 1 to 1,024 bytes of A-Za-z0-9-_./ (no blanks:
// IMS answers IMG.0175), no slash at the start or the end, no empty, "." or ".." segment.
func ValidateKey(key string) error {
	bad := func(why string) error {
		return &Error{Op: "check object key", Key: key, Kind: KindInvalid, Message: why}
	}
	switch {
	case key == "":
		return bad("it is empty")
	case len(key) > maxKeyLength:
		e := bad(fmt.Sprintf("it has %d bytes, %d are allowed", len(key), maxKeyLength)).(*Error)
		e.Key = key[:32] + "..."
		return e
	case strings.ContainsAny(key, " \t\r\n"):
		return bad("image files must not have blanks in their key")
	case !keyName.MatchString(key):
		return bad("only A-Z, a-z, 0-9, hyphen, underscore, dot and slash are allowed")
	}
	for seg := range strings.SplitSeq(key, "/") {
		switch seg {
		case "":
			return bad("it has a slash at an end or two in a row")
		case ".", "..":
			return bad(`it has a segment "` + seg + `"`)
		}
	}
	return nil
}

// checkMetadata refuses what could not be sent as x-amz-meta- headers, or would change on the way.
func checkMetadata(meta map[string]string) error {
	total := 0
	for k, v := range meta {
		total += len(k) + len(v)
		if !metaName.MatchString(k) {
			return &Error{Op: "check metadata", Kind: KindInvalid,
				Message: fmt.Sprintf("name %q: only a-z, 0-9 and hyphens are allowed", k)}
		}
		for _, c := range []byte(v) {
			if c < 0x20 || c > 0x7e {
				return &Error{Op: "check metadata", Kind: KindInvalid,
					Message: fmt.Sprintf("the value of %q has characters other than printable ASCII", k)}
			}
		}
		if v != strings.TrimSpace(v) {
			return &Error{Op: "check metadata", Kind: KindInvalid,
				Message: fmt.Sprintf("the value of %q has blanks at an end, which would get lost", k)}
		}
	}
	if total > 2048 {
		return &Error{Op: "check metadata", Kind: KindInvalid, Code: "MetadataTooLarge",
			Message: fmt.Sprintf("%d bytes of metadata, 2048 are allowed", total)}
	}
	return nil
}
