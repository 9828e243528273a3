// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/rogpeppe/go-internal/testscript"
)

// localcloud is the path of the local cloud's program, built once.
var localcloud string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "imsprep-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	localcloud = filepath.Join(dir, "localcloud")
	if os.Getenv("TESTSCRIPT_COMMAND") == "" && filepath.Base(os.Args[0]) != "imsprep" {
		// A module of its own: its server's dependencies stay out of the product.
		build := exec.Command("go", "build", "-o", localcloud, ".")
		build.Dir = filepath.Join("..", "localcloud")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building the local cloud: %v\n%s", err, out)
			os.Exit(1)
		}
	}
	// minio-go waits for up to this long after an attempt that failed, even if it was the last one.
	minio.DefaultRetryUnit = time.Microsecond
	testscript.Main(cleanupAfter{m, dir}, map[string]func(){
		"imsprep": func() {
			os.Exit(run(os.Args[1:], streams{out: os.Stdout, err: os.Stderr, lookup: os.LookupEnv, lookFor: 2 * time.Second}))
		},
	})
}

// atExit ends what tests share.
var atExit []func()

type cleanupAfter struct {
	m   *testing.M
	dir string
}

func (c cleanupAfter) Run() int {
	defer os.RemoveAll(c.dir)
	defer func() {
		for _, stop := range atExit {
			stop()
		}
	}()
	return c.m.Run()
}

// TestScripts runs the manual: each file of testdata/script is a session at a command line.
func TestScripts(t *testing.T) {
	disks, err := filepath.Abs(filepath.Join("..", "..", "testdata"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("TESTDATA", disks)
			env.Setenv("EXAMPLES", filepath.Join(filepath.Dir(disks), "examples"))
			env.Setenv("DOCS", filepath.Join(filepath.Dir(disks), "docs"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("IMSPREP_METADATA_ENDPOINT", "off") // the machine may be a server of a real cloud
			env.Values[lineKey{}] = &line{}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "qemu-img" {
				_, err := exec.LookPath("qemu-img")
				if err != nil && os.Getenv("IMSPREP_CI") == "1" {
					return false, fmt.Errorf("qemu-img is needed in CI")
				}
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"cloud":      cmdCloud,
			"exits":      cmdExits,
			"interrupt":  cmdInterrupt,
			"stall":      cmdStall,
			"nojournals": cmdNoJournals,
			"damage":     cmdDamage,
			"contains":   cmdContains,
			"noobjects":  cmdNoObjects,
			"sha256":     cmdSHA256,
			"capture":    cmdCapture,
			"patch":      cmdPatch,
			"noise":      cmdNoise,
			"steps":      cmdSteps,
			"documents":  cmdDocuments,
		},
	})
}

// cmdCloud starts a local cloud for the rest of the script and puts its environment into the
// script's: cloud [flags...]. Its data lies in $WORK/cloud.
func cmdCloud(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("cloud can't be negated")
	}
	data := ts.MkAbs("cloud")
	cmd := exec.Command(localcloud, append([]string{"--dir", data}, args...)...)
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	var log bytes.Buffer
	cmd.Stderr = &log
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
	})
	// The bucket is the last name that the local cloud prints.
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		name, value, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		if !ok {
			continue
		}
		value = strings.Trim(value, `'"`)
		ts.Setenv(name, value)
		if name == "IMSPREP_BUCKET" {
			go io.Copy(io.Discard, out)
			return
		}
	}
	ts.Fatalf("the local cloud said no environment: %s", log.String())
}

// cmdExits runs a program and wants an exact exit code: exits CODE COMMAND ARGS...
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := err.(*exec.ExitError); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// cmdInterrupt runs a program, interrupts it when its standard error first matches a pattern, and
// wants it to end with exit code 130: interrupt PATTERN COMMAND ARGS... Both streams are written to
// the files stdout.txt and stderr.txt.
func cmdInterrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: interrupt PATTERN COMMAND ARGS...")
	}
	pattern := regexp.MustCompile(args[0])
	path, err := exec.LookPath(args[1])
	if err != nil {
		for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
			if p := filepath.Join(dir, args[1]); p != "" {
				if _, err := os.Stat(p); err == nil {
					path = p
					break
				}
			}
		}
	}
	cmd := exec.Command(path, args[2:]...)
	cmd.Dir = ts.Getenv("WORK")
	for _, name := range environmentNames {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout = &stdout
	pipe, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	lines := bufio.NewScanner(pipe)
	sent := false
	for lines.Scan() {
		stderr.WriteString(lines.Text() + "\n")
		if !sent && pattern.MatchString(lines.Text()) {
			sent = true
			ts.Check(cmd.Process.Signal(syscall.SIGINT))
		}
	}
	err = cmd.Wait()
	ts.Check(os.WriteFile(ts.MkAbs("stdout.txt"), stdout.Bytes(), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs("stderr.txt"), stderr.Bytes(), 0o644))
	if !sent {
		ts.Fatalf("nothing matched %q; it said:\n%s", args[0], stderr.String())
	}
	if cmd.ProcessState.ExitCode() != exitInterrupted {
		ts.Fatalf("ended with %v, want exit code %d; it said:\n%s", err, exitInterrupted, stderr.String())
	}
}

// environmentNames are what a started program needs of a script's environment.
var environmentNames = []string{
	"PATH", "HOME", "WORK", "TESTDATA", "TMPDIR", "HW_ACCESS_KEY", "HW_SECRET_KEY", "HW_REGION_NAME", "HW_PROJECT_ID",
	"IMSPREP_OBS_ENDPOINT", "IMSPREP_OBS_ADDRESSING", "IMSPREP_IMS_ENDPOINT", "IMSPREP_IAM_ENDPOINT", "IMSPREP_BUCKET", "IMSPREP_CONFIRMED_BITMAP", "IMSPREP_STATE_DIR",
}

// cmdContains wants a JSON file to have values at paths: contains FILE PATH=VALUE..., where a path is
// written a.b.c. With ! none of them may hold.
func cmdContains(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: contains FILE PATH=VALUE...")
	}
	var doc any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &doc))
	for _, want := range args[1:] {
		path, value, _ := strings.Cut(want, "=")
		got := fmt.Sprint(lookupPath(doc, strings.Split(path, ".")))
		if (got == value) == neg {
			ts.Fatalf("%s is %s, expected %s (negated: %v)", path, got, value, neg)
		}
	}
}

func lookupPath(doc any, path []string) any {
	for _, name := range path {
		m, ok := doc.(map[string]any)
		if !ok {
			return nil
		}
		doc = m[name]
	}
	if f, ok := doc.(float64); ok && f == float64(int64(f)) {
		return int64(f)
	}
	return doc
}

// cmdCapture puts a JSON file's value into the environment: capture NAME FILE PATH.
func cmdCapture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: capture NAME FILE PATH")
	}
	var doc any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &doc))
	ts.Setenv(args[0], fmt.Sprint(lookupPath(doc, strings.Split(args[2], "."))))
}

// cmdNoObjects wants the local cloud's bucket to hold nothing: no object, and no part of an
// unfinished upload.
func cmdNoObjects(ts *testscript.TestScript, neg bool, args []string) {
	var found []string
	root := filepath.Join(ts.MkAbs("cloud"), "buckets", ts.Getenv("IMSPREP_BUCKET"))
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			found = append(found, strings.TrimPrefix(path, root))
		}
		return err
	})
	ts.Check(err)
	if (len(found) == 0) == neg {
		ts.Fatalf("objects in the bucket: %q", found)
	}
}

// cmdSHA256 wants a file's SHA-256: sha256 FILE HEX.
func cmdSHA256(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: sha256 FILE HEX")
	}
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	ts.Check(err)
	if got := hex.EncodeToString(h.Sum(nil)); (got == args[1]) == neg {
		ts.Fatalf("%s has SHA-256 %s", args[0], got)
	}
}

// cmdPatch overwrites bytes of a file: patch FILE OFFSET HEX. A HEX of "cut" cuts the file there.
func cmdPatch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: patch FILE OFFSET HEX")
	}
	off, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	path := ts.MkAbs(args[0])
	if args[2] == "cut" {
		ts.Check(os.Truncate(path, off))
		return
	}
	data, err := hex.DecodeString(args[2])
	ts.Check(err)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	ts.Check(err)
	defer f.Close()
	_, err = f.WriteAt(data, off)
	ts.Check(err)
}

// cmdDocuments wants every line of a program's output to be in a manual: documents MANUAL FILE.
func cmdDocuments(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: documents MANUAL FILE")
	}
	manual := ts.ReadFile(args[0])
	said := strings.TrimSpace(ts.ReadFile(args[1]))
	if said == "" {
		ts.Fatalf("there was no output")
	}
	for _, line := range strings.Split(said, "\n") {
		if line = strings.TrimSpace(line); !strings.Contains(manual, line) {
			ts.Fatalf("%s doesn't have the line\n%s", args[0], line)
		}
	}
}

// cmdNoise makes a file of bytes that aren't zero and don't repeat: noise FILE BYTES.
func cmdNoise(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: noise FILE BYTES")
	}
	n, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{1}), n)
	ts.Check(err)
}
