// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// benchCase is one thing to do that several tools do in turn.
type benchCase struct {
	section string
	name    string
	slow    bool                            // a third of the rounds will do
	prepare func(ctx context.Context) error // makes what the tools read, unless it is there
	memory  func() (dir string, size int64) // what is touched where beforehand, nil: a disk's data where the disks are
	warm    []string                        // read before each round, into the page cache
	tools   []tool
	check   func(ctx context.Context) error // of the first tool's output, in the first round
}

func (bc *benchCase) rounds(c config) int {
	if bc.slow {
		return (c.runs + 2) / 3
	}
	return c.runs
}

// tool is a way to do it.
type tool struct {
	name string
	argv []string
	env  []string
	warm string   // a file read before it runs, for what doesn't fit into memory with the others'
	outs []string // files that it makes, removed before and after
	// sent tells how many bytes went over the line, from what the tool printed, before outs are removed.
	sent func(stdout []byte) (int64, error)
}

// result is one measurement.
type result struct {
	Section string  `json:"section"`
	Case    string  `json:"case"`
	Tool    string  `json:"tool"`
	Round   int     `json:"round"`
	Wall    float64 `json:"wall"`    // seconds
	CPU     float64 `json:"cpu"`     // seconds, of it and its children
	RSS     int64   `json:"rss"`     // bytes, of the largest of its processes
	Read    int64   `json:"read"`    // bytes that came by read calls
	Written int64   `json:"written"` // bytes of files that were written to disk or would have been
	Sent    int64   `json:"sent"`    // bytes, of uploads
	Size    int64   `json:"size"`    // bytes of the first file that it made
}

// round has every tool of a case at work once.
func (b *bench) round(ctx context.Context, bc *benchCase, round int) error {
	if bc.prepare != nil {
		if err := bc.prepare(ctx); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	for _, file := range bc.warm {
		if err := readThrough(file); err != nil {
			return err
		}
	}
	var failed []error
	for n := range bc.tools {
		if err := ctx.Err(); err != nil {
			return err
		}
		i := (n + round) % len(bc.tools) // each begins a round, for it makes a difference what ran before
		t := bc.tools[i]
		var check func() error
		if i == 0 && round == 0 && bc.check != nil {
			check = func() error { return bc.check(ctx) }
		}
		unix.Sync() // nobody waits for what another has left to be written
		dir, size := b.dir, b.gib*gib*9/16
		if bc.memory != nil {
			dir, size = bc.memory()
		}
		if err := touchMemory(filepath.Join(dir, fmt.Sprintf("imsprep-bench-%d.warm", os.Getpid())), size); err != nil {
			return err
		}
		if t.warm != "" {
			if err := readThrough(t.warm); err != nil {
				return err
			}
		}
		r, err := b.measure(ctx, t, check)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", t.name, err))
			continue
		}
		r.Section, r.Case, r.Tool, r.Round = bc.section, bc.name, t.name, round
		if err := b.results.add(r); err != nil {
			return err
		}
		b.say("%d %s, %s: %s: %.2f s, CPU %.2f s, %d MiB", round+1, bc.section, bc.name, t.name, r.Wall, r.CPU, r.RSS>>20)
	}
	return errors.Join(failed...)
}

// patience is how long a tool may take.
const patience = 10 * time.Minute

func (b *bench) measure(ctx context.Context, t tool, check func() error) (r result, err error) {
	remove := func() {
		for _, f := range t.outs {
			_ = os.Remove(f)
		}
	}
	remove()
	defer remove()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, t.argv[0], t.argv[1:]...)
	cmd.Env = append(os.Environ(), t.env...)
	cmd.Dir = b.path("out")
	var stdout, stderr bytes.Buffer
	out, err := os.CreateTemp(b.dir, ".stdout-*") // no pipe: nobody here takes processor time for it
	if err != nil {
		return r, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return r, err
	}
	// The kernel's counters of input and output are gone once the process was waited for.
	for {
		if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			break
		}
	}
	r.Wall = time.Since(start).Seconds()
	r.Read, r.Written = readIO(cmd.Process.Pid)
	if err := cmd.Wait(); err != nil {
		return r, fmt.Errorf("%q: %w: %s", t.argv, err, bytes.TrimSpace(stderr.Bytes()))
	}
	r.CPU = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	r.RSS = int64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) << 10
	if len(t.outs) > 0 {
		if fi, err := os.Stat(t.outs[0]); err == nil {
			r.Size = fi.Size()
		}
	}
	if t.sent != nil {
		if _, err := out.Seek(0, io.SeekStart); err != nil {
			return r, err
		}
		if _, err := stdout.ReadFrom(out); err != nil {
			return r, err
		}
		if r.Sent, err = t.sent(stdout.Bytes()); err != nil {
			return r, err
		}
	}
	if check != nil {
		return r, check()
	}
	return r, nil
}

// readIO returns what a process, and those of its children that it has waited for, read by calls and
// wrote to files.
func readIO(pid int) (read, written int64) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid)) // zeros where that isn't to be seen
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		n, _ := strconv.ParseInt(value, 10, 64)
		switch name {
		case "rchar":
			read = n
		case "write_bytes":
			written = n
		}
	}
	return read, written
}

// touchMemory writes a file of so many bytes and removes it, so that there are free pages for what a tool writes. A
// virtual machine gives those it doesn't use back to its host, some within a second, and whoever needs them next
// waits for them: the first tool three times as long as the one that finds the first one's pages, on the machine
// where this was noticed.
func touchMemory(path string, size int64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	zeros := make([]byte, 1<<20)
	for ; size > 0; size -= int64(len(zeros)) {
		if _, err := f.Write(zeros); err != nil {
			return err
		}
	}
	return nil
}

// readThrough brings a file into the page cache, but for its holes.
func readThrough(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for off := int64(0); ; {
		data, end, err := nextData(f, off)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for off = data; off < end; off += int64(len(buf)) {
			if _, err := f.ReadAt(buf, off); err != nil && err != io.EOF {
				return err
			}
		}
		off = end
	}
}

// nextData returns the next range of a file from off on that isn't a hole.
func nextData(f *os.File, off int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if err == unix.ENXIO {
		return 0, 0, io.EOF
	}
	if err == nil {
		end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	}
	return start, end, err
}

// results are the measurements so far, in memory and in a file.
type results struct {
	file *os.File
	all  []result
}

// openResults opens those of this program and these disks.
func openResults(c config) (*results, error) {
	program, err := os.Open(c.imsprep)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	h := sha256.New()
	if _, err := io.Copy(h, program); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("results-%dg-%dg-%s.jsonl", c.gib, c.scale, hex.EncodeToString(h.Sum(nil)[:6]))
	f, err := os.OpenFile(filepath.Join(c.dir, name), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	r := &results{file: f}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var one result
		if json.Unmarshal(lines.Bytes(), &one) == nil { // the last line may be cut off
			r.all = append(r.all, one)
		}
	}
	return r, nil
}

func (r *results) close() { _ = r.file.Close() }

func (r *results) add(one result) error {
	r.all = append(r.all, one)
	line, err := json.Marshal(one)
	if err != nil {
		return err
	}
	_, err = r.file.Write(append(line, '\n'))
	return err
}

// of returns what a tool measured in a case, by round. Of a round that was begun again, the last
// measurement counts.
func (r *results) of(bc *benchCase, tool string) map[int]result {
	found := map[int]result{}
	for _, one := range r.all {
		if one.Section == bc.section && one.Case == bc.name && one.Tool == tool {
			found[one.Round] = one
		}
	}
	return found
}

// have tells whether a round is complete.
func (r *results) have(bc *benchCase, round int) bool {
	for _, t := range bc.tools {
		if _, ok := r.of(bc, t.name)[round]; !ok {
			return false
		}
	}
	return true
}
