// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/obs"
)

// CheckStatus is how a check ended.
type CheckStatus string

// Outcomes of a check.
const (
	CheckOK      CheckStatus = "ok"
	CheckWarning CheckStatus = "warning" // an import may work; something is worth knowing
	CheckFailed  CheckStatus = "failed"
	CheckSkipped CheckStatus = "skipped" // not done, for the reason that Summary gives
)

// Check is one finding of a [Doctor].
type Check struct {
	Name    string      `json:"name"`
	Status  CheckStatus `json:"status"`
	Summary string      `json:"summary"`
	Hint    string      `json:"hint,omitempty"` // what to do
	// Err is why it failed.
	Err error `json:"-"`
}

// Keys describes the credentials that a [Doctor] looks at.
type Keys struct {
	Source string // where they come from, for people
	// Get gets them; nil for a token or a password.
	Get func(ctx context.Context) (ims.Credentials, error)
	// Expires, if not nil, is when they end; zero if that isn't known.
	Expires func() time.Time
	// Fixed means that temporary keys can't be renewed while the program runs.
	Fixed bool
	// Err is why there are none.
	Err error
}

// Doctor looks for what could make an import fail.
type Doctor struct {
	// Importer has the clients. Without them what needs them is skipped.
	*Importer
	// Err is why there are no clients.
	Err error
	// Endpoints are the URLs of the services "obs", "ims" and "iam".
	Endpoints map[string]string
	Transport *http.Transport // for requests without credentials
	Keys      Keys
	Bucket    string // "" skips what is about one
	OSVersion string // is looked for in the region's list; "" for none
	NoWrite   bool   // leaves out what writes to the bucket
	// ConfirmedLayouts are bitmap layouts known to be right on this cloud.
	ConfirmedLayouts []string
	StateDir         string // where journals go; "" for nowhere
}

// Tolerances of the doctor.
const (
	clockRefused = 15 * time.Minute // services refuse signatures from here on
	clockWarning = 2 * time.Minute
	// roomNeeded is what the largest journals need, with the copy that replaces them, in bytes.
	roomNeeded = 256 << 20
)

// examination is one run of a doctor.
type examination struct {
	*Doctor
	tell    func(Check)
	list    []Check
	reached map[string]bool // services that can be spoken to
	clockOK bool
	keysOK  bool
}

// Examine makes all checks, in the order in which an import would depend on them; what can't be done
// because something before it failed is skipped. tell, if not nil, gets each as it is done. The round
// trip writes a few MiB to the bucket and removes them; nothing else is changed. It ends early, with an
// error, only when ctx does.
func (d *Doctor) Examine(ctx context.Context, tell func(Check)) ([]Check, error) {
	e := &examination{Doctor: d, tell: tell, reached: map[string]bool{}, clockOK: true}
	for _, step := range []func(context.Context){
		e.configuration, e.keys, e.endpoints, e.project, e.bucket, e.service, e.layout, e.folder,
	} {
		if ctx.Err() != nil {
			break
		}
		step(ctx)
	}
	return e.list, ctx.Err()
}

func (e *examination) add(c Check) {
	e.list = append(e.list, c)
	if e.tell != nil {
		e.tell(c)
	}
}

func (e *examination) ok(name, format string, a ...any) {
	e.add(Check{Name: name, Status: CheckOK, Summary: fmt.Sprintf(format, a...)})
}

func (e *examination) warn(name, hint, format string, a ...any) {
	e.add(Check{Name: name, Status: CheckWarning, Summary: fmt.Sprintf(format, a...), Hint: hint})
}

func (e *examination) skip(name, why string) {
	e.add(Check{Name: name, Status: CheckSkipped, Summary: why})
}

// fail adds a check that failed, with the advice that the error has.
func (e *examination) fail(ctx context.Context, name string, err error) {
	if ctx.Err() != nil {
		return // it is the end that failed it
	}
	c := Check{Name: name, Status: CheckFailed, Err: err}
	var check *CheckError
	var hinter interface{ Hint() string }
	switch {
	case errors.As(err, &check):
		c.Hint = check.Remedy
		c.Summary = (&CheckError{What: check.What, Err: check.Err}).Error()
	case errors.As(err, &hinter):
		c.Hint = hinter.Hint()
		c.Summary = err.Error()
	default:
		c.Summary = err.Error()
	}
	c.Summary, c.Hint = strings.TrimPrefix(oneLine(c.Summary), "ims: "), oneLine(c.Hint)
	e.add(c)
}

// oneLine makes a line of several: a list of what follows a colon gets commas.
func oneLine(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		line = strings.Join(strings.Fields(line), " ")
		if b.Len() > 0 && line != "" {
			if !strings.ContainsRune(".,;:)", rune(b.String()[b.Len()-1])) {
				b.WriteByte(',')
			}
			b.WriteByte(' ')
		}
		b.WriteString(line)
	}
	return b.String()
}

func (e *examination) configuration(ctx context.Context) {
	if e.Importer == nil || e.Err != nil {
		err := e.Err
		if err == nil {
			err = errors.New("there are no clients")
		}
		e.fail(ctx, "configuration", err)
		return
	}
	e.ok("configuration", "region %s", e.Region)
}

func (e *examination) keys(ctx context.Context) {
	k := e.Keys
	switch {
	case k.Err != nil:
		e.fail(ctx, "keys", k.Err)
		return
	case k.Source == "":
		e.skip("keys", "there are none to look at")
		return
	case k.Get == nil:
		e.ok("keys", "a token, from %s", k.Source)
		e.keysOK = true
		return
	}
	cred, err := k.Get(ctx)
	if err != nil {
		e.fail(ctx, "keys", err)
		return
	}
	e.keysOK = true
	var until string
	if k.Expires != nil {
		if t := k.Expires(); !t.IsZero() {
			until = ", good until " + t.UTC().Format(time.RFC3339)
		}
	}
	text := fmt.Sprintf("%v, from %s%s", cred, k.Source, until)
	if k.Fixed {
		e.warn("keys", "For long uploads put them into a file that HUAWEICLOUD_SDK_CREDENTIALS_FILE names and that is renewed in time.",
			"%s: when they end isn't known, and a run can't renew them", text)
		return
	}
	e.ok("keys", "%s", text)
}

// serviceNames are the services in the order in which they are looked at.
var serviceNames = []struct{ id, name string }{{"obs", "object storage"}, {"ims", "the image service"}, {"iam", "the identity service"}}

func (e *examination) endpoints(ctx context.Context) {
	var skew time.Duration
	clocks := 0
	for _, s := range serviceNames {
		endpoint := e.Endpoints[s.id]
		if endpoint == "" {
			for _, step := range []string{"dns.", "connect.", "tls."} {
				e.skip(step+s.id, "the endpoint of "+s.name+" isn't known")
			}
			continue
		}
		if !strings.Contains(endpoint, "://") {
			endpoint = "https://" + endpoint
		}
		before := time.Now()
		p := look(ctx, e.Transport, endpoint)
		if ctx.Err() != nil {
			return
		}
		e.endpoint(ctx, s.id, p)
		if p.failed == "" && !p.date.IsZero() {
			// The header counts whole seconds; the middle of the request is when it was written.
			d := before.Add(p.took / 2).Sub(p.date)
			if clocks++; clocks == 1 || d.Abs() > skew.Abs() {
				skew = d
			}
		}
	}
	if clocks == 0 {
		e.skip("clock", "no service told the time")
		return
	}
	word := "ahead of"
	if skew < 0 {
		word = "behind"
	}
	switch off := skew.Abs().Round(time.Second); {
	case off >= clockRefused:
		e.clockOK = false
		e.fail(ctx, "clock", &obs.Error{Op: "compare clocks", Kind: obs.KindClock,
			Message: fmt.Sprintf("this machine's clock is %v %s the services'; they refuse requests from 15 minutes on", off, word)})
	case off >= clockWarning:
		e.warn("clock", "Set this machine's clock (NTP): some installations are strict.", "this machine's clock is %v %s the services'", off, word)
	default:
		e.ok("clock", "within %v of the services'", max(off, time.Second))
	}
}

func (e *examination) endpoint(ctx context.Context, id string, p *probe) {
	steps := []probeStep{stepDNS, stepConnect, stepTLS}
	failed := slices.Index(steps, p.failed)
	for n, step := range steps {
		name := string(step) + "." + id
		switch {
		case failed >= 0 && n > failed:
			e.skip(name, string(p.failed)+"."+id+" failed")
		case n == failed:
			e.fail(ctx, name, p.err)
		case step == stepDNS && p.proxy != "":
			e.skip(name, "the proxy "+p.proxy+" looks "+p.host+" up")
		case step == stepDNS && net.ParseIP(p.host) != nil:
			e.ok(name, "%s is an address", p.host)
		case step == stepDNS:
			e.ok(name, "%s is %s", p.host, strings.Join(p.addresses, ", "))
		case step == stepConnect && p.proxy != "":
			e.ok(name, "through the proxy %s in %v", p.proxy, p.took.Round(time.Millisecond))
		case step == stepConnect:
			e.ok(name, "%s answered in %v", p.remote, p.took.Round(time.Millisecond))
		case p.tls != nil:
			e.ok(name, "%s, certificate good until %s", tls.VersionName(p.tls.Version),
				p.tls.PeerCertificates[0].NotAfter.UTC().Format(time.DateOnly))
		case loopback(p.host):
			e.ok(name, "none, and none is needed on this machine")
		default:
			e.warn(name, "Use https:// unless the network is trusted: what is uploaded can be read on its way.", "none: the endpoint on %s is plain HTTP", p.host)
		}
	}
	e.reached[id] = failed < 0
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// need says why a check of a service can't be done, "" if it can.
func (e *examination) need(id, name string) string {
	switch {
	case e.Importer == nil || e.Err != nil:
		return "configuration failed"
	case !e.keysOK || id == "obs" && e.OBS == nil || id != "obs" && e.IMS == nil:
		return "there are no keys to ask with"
	case !e.clockOK:
		return "with this clock every request is refused"
	case !e.reached[id]:
		return name + " can't be reached"
	}
	return ""
}

func (e *examination) project(ctx context.Context) {
	if why := e.need("iam", "the identity service"); why != "" {
		e.skip("project", why)
		return
	}
	id, err := e.IMS.ProjectID(ctx)
	switch {
	case err == nil:
		e.ok("project", "%s", id)
	case ims.KindOf(err) == ims.KindPermission:
		e.warn("project", "Give --project-id, or set HW_PROJECT_ID: some calls need it.", "it can't be looked up: %s", oneLine(err.Error()))
	default:
		e.fail(ctx, "project", err)
	}
}

var bucketChecks = []string{"bucket", "bucket-region", "bucket-class", "bucket-kind", "bucket-addressing", "round-trip", "copy"}

func (e *examination) bucket(ctx context.Context) {
	skipFrom := func(n int, why string) {
		for _, name := range bucketChecks[n:] {
			e.skip(name, why)
		}
	}
	why := e.need("obs", "object storage")
	if e.Bucket == "" {
		why = "no bucket is given: --bucket, or IMSPREP_BUCKET"
	}
	if why != "" {
		skipFrom(0, why)
		return
	}
	info, err := e.OBS.CheckBucket(ctx, e.Bucket)
	if err != nil {
		e.fail(ctx, "bucket", err)
		skipFrom(1, "bucket failed")
		return
	}
	e.ok("bucket", "%s is there, and we may look at it", e.Bucket)
	good := true
	refuse := func(name, what, remedy string) {
		good = false
		e.fail(ctx, name, &CheckError{What: what, Remedy: remedy, Usage: true})
	}
	switch {
	case info.Region == "":
		e.warn("bucket-region", "It must be the image service's own region.", "the store doesn't tell")
	case info.Region != e.Region:
		refuse("bucket-region", fmt.Sprintf("it is in %s, not in %s", info.Region, e.Region),
			"The service imports only from its own region: use a bucket there, or another --region.")
	default:
		e.ok("bucket-region", "%s", info.Region)
	}
	switch {
	case info.StorageClass == "":
		e.ok("bucket-class", "not told; objects are written as STANDARD")
	case !strings.EqualFold(info.StorageClass, "STANDARD"):
		refuse("bucket-class", "it is "+info.StorageClass, "The service imports only from buckets of class Standard: use another bucket, or change its default class.")
	default:
		e.ok("bucket-class", "%s", info.StorageClass)
	}
	if info.ParallelFileSystem {
		refuse("bucket-kind", "it is a parallel file system", "Use an ordinary bucket of class Standard.")
	} else {
		e.ok("bucket-kind", "an object bucket")
	}
	switch host := hostOf(e.Endpoints["obs"]); {
	case !e.OBS.PathStyle():
		e.ok("bucket-addressing", "as a host name, %s.%s", e.Bucket, host)
	case loopback(host):
		e.ok("bucket-addressing", "in the path, as the endpoint is this machine")
	default:
		e.warn("bucket-addressing", "Public clouds want the bucket in the host name: give the endpoint as a name, not as an address.",
			"in the path, as the endpoint is an address")
	}
	switch {
	case e.NoWrite:
		skipFrom(5, "left out by --no-write")
	case !good:
		skipFrom(5, "the bucket isn't fit for images")
	default:
		e.roundTrip(ctx)
	}
}

func hostOf(endpoint string) string {
	if !strings.Contains(endpoint, "://") {
		endpoint = "https://" + endpoint
	}
	if u, err := url.Parse(endpoint); err == nil {
		return u.Hostname()
	}
	return ""
}

func (e *examination) roundTrip(ctx context.Context) {
	res, err := e.OBS.RoundTrip(ctx, e.Bucket, "imsprep-doctor")
	switch {
	case err != nil:
		e.fail(ctx, "round-trip", err)
		e.skip("copy", "round-trip failed")
		return
	case len(res.Left) > 0:
		e.warn("round-trip", "Grant obs:object:DeleteObject and obs:object:AbortMultipartUpload, and run imsprep cleanup.",
			"sent, read back and the same, but left in the bucket: %s", strings.Join(res.Left, ", "))
	default:
		e.ok("round-trip", "sent %d bytes in parts, read back, the same, and removed", res.BytesSent)
	}
	if res.CopyRefused != nil {
		e.warn("copy", "Imports work; zeros of RAW images are sent instead of copied.", "the store copies no parts: %s", oneLine(res.CopyRefused.Error()))
	} else {
		e.ok("copy", "the store copies parts, so that zeros need not be sent")
	}
}

func (e *examination) service(ctx context.Context) {
	if why := e.need("ims", "the image service"); why != "" {
		for _, name := range []string{"images", "tags", "quota", "os-versions", "os-version", "create"} {
			if name != "os-version" || e.OSVersion != "" {
				e.skip(name, why)
			}
		}
		return
	}
	// What is refused because of the keys is refused to every question.
	refused := ""
	asked := func(name string, ask func() error) bool {
		if refused != "" {
			e.skip(name, "the service refused the keys, see "+refused)
			return false
		}
		err := ask()
		switch ims.KindOf(err) {
		case ims.KindAuth:
			refused = name
		case ims.KindUnsupported, ims.KindNotFound:
			// A question that a cloud doesn't know is nobody's fault.
			e.warn(name, "", "this cloud doesn't answer: %s", oneLine(err.Error()))
			return false
		}
		if err != nil {
			e.fail(ctx, name, err)
		}
		return err == nil
	}
	if asked("images", func() error {
		_, err := e.IMS.ListImages(ctx, ims.ImageFilter{ImageType: "private", Limit: 1})
		return err
	}) {
		e.ok("images", "may be listed")
	}
	if asked("tags", func() error { _, err := e.IMS.ProjectTags(ctx); return err }) {
		e.ok("tags", "may be listed")
	}
	var used, quota int
	switch {
	case !asked("quota", func() (err error) { used, quota, err = e.IMS.Quota(ctx); return err }):
	case quota > 0 && used >= quota:
		e.fail(ctx, "quota", &CheckError{What: fmt.Sprintf("used up: %d of %d private images", used, quota),
			Remedy: "Delete images that are no longer needed, or ask for a larger quota."})
	default:
		e.ok("quota", "%d of %d private images used", used, quota)
	}
	var list []ims.OSVersion
	known := asked("os-versions", func() (err error) { list, err = e.IMS.OSVersions(ctx); return err })
	if known {
		e.ok("os-versions", "the region lists %d", len(list))
	}
	switch {
	case e.OSVersion == "":
	case !known:
		e.skip("os-version", "the region's list can't be had")
	default:
		if err := checkOSVersion(e.OSVersion, list); err != nil {
			e.fail(ctx, "os-version", err)
		} else {
			e.ok("os-version", "%q is in the region's list", e.OSVersion)
		}
	}
	e.skip("create", "can't be tried without making an image; it needs the right "+
		ims.RightsOf(http.MethodPost, "/v2/cloudimages/quickimport/action")+", and the service must be allowed to read the bucket")
}

func (e *examination) layout(context.Context) {
	if len(e.ConfirmedLayouts) > 0 {
		e.ok("bitmap-layout", "confirmed for this region: %s", strings.Join(e.ConfirmedLayouts, ", "))
		return
	}
	e.ok("bitmap-layout", "none is confirmed for this region, so --format auto takes ZVHD2, which needs none")
}

func (e *examination) folder(ctx context.Context) {
	if e.StateDir == "" {
		e.skip("state-folder", "none is known: give --state-dir, or set IMSPREP_STATE_DIR")
		e.skip("room", "there is no state folder")
		return
	}
	dir, err := tryFolder(e.StateDir)
	if err != nil {
		e.fail(ctx, "state-folder", &CheckError{What: "interrupted uploads can't be remembered", Err: err,
			Remedy: "Make it writable, or name another folder: --state-dir, or IMSPREP_STATE_DIR."})
		e.skip("room", "state-folder failed")
		return
	}
	e.ok("state-folder", "%s is writable", e.StateDir)
	switch free, ok := room(dir); {
	case !ok:
		e.skip("room", "the system doesn't tell")
	case free < roomNeeded:
		e.warn("room", "Free some space, or name another folder: --state-dir, or IMSPREP_STATE_DIR.", "only %d MiB are free for journals", free>>20)
	default:
		e.ok("room", "%d MiB are free for journals", free>>20)
	}
}

// tryFolder writes a file in a folder, or in the nearest folder above it that exists, and removes it
// again. It returns the folder.
func tryFolder(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for {
		switch info, err := os.Stat(dir); {
		case err == nil && !info.IsDir():
			return "", fmt.Errorf("%s isn't a folder", dir)
		case err == nil:
			f, err := os.CreateTemp(dir, ".imsprep-doctor-*")
			if err != nil {
				return "", err
			}
			_, err = f.WriteString("x")
			return dir, errors.Join(err, f.Close(), os.Remove(f.Name()))
		case !errors.Is(err, os.ErrNotExist) || filepath.Dir(dir) == dir:
			return "", err
		}
		dir = filepath.Dir(dir)
	}
}
