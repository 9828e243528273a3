// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
	"github.com/imsprep/imsprep/pkg/obs"
)

// killsWanted is how often the program is killed in one run of the test.
func killsWanted() int {
	if raceEnabled || testing.Short() {
		return 20
	}
	return 100
}

// mostChains bounds the imports of one format when none of them resumes anything.
const mostChains = 60

// TestKilledAtRandomMoments kills the program with SIGKILL again and again while it imports a disk. The
// same command, given once more each time, must end with one image that has the disk's content, and
// with nothing left in the bucket or in the state folder.
func TestKilledAtRandomMoments(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	env := startCloud(t, "--job-step", "10ms", "--hash-limit", "1", "--quota", "1000")
	var wanted atomic.Int64
	wanted.Store(int64(killsWanted()))
	var killed, chains, resumed atomic.Int64
	t.Run("imports", func(t *testing.T) {
		for n, format := range []string{formatRAW, formatZVHD2} {
			t.Run(format, func(t *testing.T) {
				t.Parallel()
				k := newKiller(t, env, format, rand.New(rand.NewPCG(seed, uint64(n))))
				// A moment in which there is something to resume is short. One is found sooner or later.
				for chain := 0; wanted.Load() > 0 || k.resumed == 0 && chain < mostChains; chain++ {
					killed.Add(k.chain(t, fmt.Sprintf("%s-%d", format, chain), &wanted))
					chains.Add(1)
				}
				if k.resumed == 0 && !t.Failed() {
					t.Error("nothing was ever resumed")
				}
				resumed.Add(k.resumed)
			})
		}
	})
	t.Logf("killed %d times in %d imports, which resumed %d parts", killed.Load(), chains.Load(), resumed.Load())
	if killed.Load() < int64(killsWanted()) && !t.Failed() {
		t.Errorf("killed %d times, want %d", killed.Load(), killsWanted())
	}
}

// startCloud starts a local cloud for the rest of the test and returns the environment of programs that
// use it.
func startCloud(t *testing.T, args ...string) map[string]string {
	t.Helper()
	env, stop, err := launchCloud(append([]string{"--dir", t.TempDir()}, args...), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	env["HOME"] = t.TempDir()
	return env
}

// launchCloud starts a local cloud and returns the environment of programs that use it.
func launchCloud(args, more []string) (env map[string]string, stop func(), err error) {
	cmd := exec.Command(localcloud, args...)
	cmd.Env = append(os.Environ(), more...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	env = map[string]string{"PATH": os.Getenv("PATH"), "IMSPREP_METADATA_ENDPOINT": "off"}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		name, value, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		if !ok {
			continue
		}
		env[name] = strings.Trim(value, `'"`)
		if name == "IMSPREP_BUCKET" {
			return env, stop, nil
		}
	}
	stop()
	return nil, nil, errors.New("the local cloud said no environment")
}

// killer imports one disk as one format.
type killer struct {
	env      map[string]string
	r        *rand.Rand
	format   string
	program  string
	disk     string
	content  string // the sparse hash that the image must have
	stateDir string
	normal   time.Duration // of an import that isn't killed
	resumed  int64         // parts
	store    *obs.Client
	service  *ims.Client
}

func newKiller(t *testing.T, env map[string]string, format string, r *rand.Rand) *killer {
	t.Helper()
	k := &killer{env: env, r: r, format: format, disk: filepath.Join(t.TempDir(), "disk.raw"), stateDir: t.TempDir()}
	var err error
	if k.program, err = exec.LookPath("imsprep"); err != nil {
		t.Fatal(err)
	}
	k.store, k.service = clients(t, env)
	k.writeDisk(t)
	return k
}

// clients speak to a local cloud as its environment says.
func clients(t *testing.T, env map[string]string) (*obs.Client, *ims.Client) {
	t.Helper()
	store, err := obs.New(obs.Options{Endpoint: env["IMSPREP_OBS_ENDPOINT"], Region: env["HW_REGION_NAME"],
		Credentials: func(context.Context) (obs.Credentials, error) {
			return obs.Credentials{AccessKey: env["HW_ACCESS_KEY"], SecretKey: env["HW_SECRET_KEY"]}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	service, err := ims.New(ims.Options{Endpoint: env["IMSPREP_IMS_ENDPOINT"], IAMEndpoint: env["IMSPREP_IAM_ENDPOINT"],
		Region: env["HW_REGION_NAME"], ProjectID: env["HW_PROJECT_ID"], AllowPlainHTTP: true,
		Auth: ims.AKSK(ims.StaticCredentials(ims.Credentials{AccessKey: env["HW_ACCESS_KEY"], SecretKey: env["HW_SECRET_KEY"]}))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(service.CloseIdleConnections)
	return store, service
}

// sparseHash is that of a disk's content, as an image of so many bytes has it.
func sparseHash(content []byte, size int64) string {
	h := imstest.NewSparseHash()
	for i := 0; i < len(content); i += imstest.SparseBlock {
		h.Add(int64(i/imstest.SparseBlock), content[i:min(i+imstest.SparseBlock, len(content))])
	}
	return h.Sum(size)
}

// writeDisk makes a disk of noise with holes: enough parts that there is something to kill in.
func (k *killer) writeDisk(t *testing.T) {
	t.Helper()
	const mib = 1 << 20
	content := make([]byte, 64*mib)
	noise := rand.NewChaCha8([32]byte{byte(k.r.Uint32())})
	for _, run := range [][2]int{{0, 9}, {16, 7}, {40, 1}, {50, 14}} {
		noise.Read(content[run[0]*mib : (run[0]+run[1])*mib])
	}
	if err := os.WriteFile(k.disk, content, 0o600); err != nil {
		t.Fatal(err)
	}
	size := int64(len(content))
	if k.format == formatZVHD2 {
		size = 1 << 30 // whole GiB
	}
	k.content = sparseHash(content, size)
}

var existsAlready = regexp.MustCompile(`an image named "[^"]*" exists: ([0-9a-f-]{36})`)

// moment is when a program is killed: after a time, or as soon as the server has so many parts.
type moment struct {
	after time.Duration
	parts int
}

// never is the moment of a program that isn't killed.
var never moment

// kill waits for the moment. The returned function ends the waiting.
func (m moment) kill(t *testing.T, k *killer, p *os.Process) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		switch {
		case m == never:
			return
		case m.parts > 0:
			for k.parts(ctx) < m.parts && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
		default:
			select {
			case <-time.After(m.after):
			case <-ctx.Done():
			}
		}
		if ctx.Err() == nil {
			_ = p.Kill()
		}
	}()
	return func() { cancel(); <-done }
}

// parts counts what the server has of the objects that are being uploaded.
func (k *killer) parts(ctx context.Context) int {
	n := 0
	uploads, _ := k.store.ListUploads(ctx, k.env["IMSPREP_BUCKET"], "")
	for _, u := range uploads {
		if strings.HasSuffix(u.Key, "."+k.format) {
			c, _ := k.store.UploadContent(ctx, k.env["IMSPREP_BUCKET"], u.Key, u.ID) // it may be gone by now
			n += c.Parts
		}
	}
	return n
}

// run gives the command once, and kills it at the given moment. It returns the image's id when the import
// has ended.
func (k *killer) run(t *testing.T, name string, m moment) (image string, killed bool, said string) {
	t.Helper()
	cmd := exec.Command(k.program, "import", k.disk, "--name", name, "--os-version", "Ubuntu 22.04 server 64bit",
		"--format", k.format, "--part-size", "5MiB", "--poll", "20ms", "--json", "--state-dir", k.stateDir)
	cmd.Dir = t.TempDir()
	for n, v := range k.env {
		cmd.Env = append(cmd.Env, n+"="+v)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := m.kill(t, k, cmd.Process)
	err := cmd.Wait()
	stop()
	said = stderr.String()
	var result struct {
		ImageID string `json:"image_id"`
		Upload  struct {
			PartsResumed int64 `json:"parts_resumed"`
		} `json:"upload"`
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		if jerr := json.Unmarshal(stdout.Bytes(), &result); jerr != nil {
			t.Fatalf("%s: %v: %s", name, jerr, stdout.String())
		}
		k.resumed += result.Upload.PartsResumed
		return result.ImageID, false, said
	case !errors.As(err, &exit):
		t.Fatal(err)
	case exit.ExitCode() == -1 && m != never:
		return "", true, said
	}
	// It may have been killed when all was done but said.
	if m := existsAlready.FindStringSubmatch(said); m != nil {
		return m[1], false, said
	}
	t.Fatalf("%s ended with %v and said:\n%s", name, err, said)
	return "", false, said
}

// chain kills one import some times and then lets it end.
func (k *killer) chain(t *testing.T, name string, wanted *atomic.Int64) (killed int64) {
	t.Helper()
	kills := 1 + k.r.IntN(8)
	var log []string
	image := ""
	for image == "" {
		m := never
		// The first import shows how long one takes.
		if k.normal > 0 && int(killed) < kills {
			// The further an import is, the less is left of it.
			x := k.r.Float64()
			m = moment{after: 1 + time.Duration(x*x*float64(k.normal))}
			if killed == 0 && k.r.IntN(2) == 0 {
				m = moment{parts: 1 + k.r.IntN(3)}
			}
		}
		start := time.Now()
		id, was, said := k.run(t, name, m)
		log = append(log, fmt.Sprintf("--- run of %v, to be killed at %+v, killed: %v\n%s", time.Since(start), m, was, said))
		if k.normal == 0 {
			k.normal = time.Since(start)
		}
		if was {
			killed++
			wanted.Add(-1)
		}
		image = id
	}
	if err := k.check(t.Context(), name, image); err != nil {
		t.Fatalf("%s, killed %d times: %v\n%s", name, killed, err, strings.Join(log, "\n"))
	}
	return killed
}

// check looks at what an import has made and left.
func (k *killer) check(ctx context.Context, name, id string) error {
	images, err := k.service.ListImages(ctx, ims.ImageFilter{ImageType: "private", Name: name})
	if err != nil {
		return err
	}
	if len(images) != 1 || images[0].ID != id {
		return fmt.Errorf("there are %d images of that name, and not %s alone", len(images), id)
	}
	if got := fmt.Sprint(images[0].Attributes[imstest.AttrContentSparse]); got != k.content {
		return fmt.Errorf("the image's content is %s, the disk's is %s", got, k.content)
	}
	// The other format's imports use the same bucket: what this one left begins with its own keys, and
	// those end with its format.
	var left []string
	ours := func(key string) bool {
		return strings.Contains(key, "."+k.format) || k.format == formatRAW && strings.HasSuffix(key, ".mf")
	}
	for o, err := range k.store.ListObjects(ctx, k.env["IMSPREP_BUCKET"], "") {
		if err != nil {
			return err
		}
		if ours(o.Key) {
			left = append(left, o.Key)
		}
	}
	uploads, err := k.store.ListUploads(ctx, k.env["IMSPREP_BUCKET"], "")
	if err != nil {
		return err
	}
	for _, u := range uploads {
		if ours(u.Key) {
			left = append(left, "upload of "+u.Key)
		}
	}
	entries, err := os.ReadDir(k.stateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if len(left) > 0 {
		return fmt.Errorf("left: %q", left)
	}
	return nil
}
