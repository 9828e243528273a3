// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// localcloud is the object storage that uploads go to.
type localcloud struct {
	b   *bench
	dir string
	cmd *exec.Cmd
	env []string
}

// start starts it, unless it runs, and gives the environment in which it is found.
func (l *localcloud) start(ctx context.Context, use func(env []string)) error {
	if l.cmd != nil {
		use(l.env)
		return nil
	}
	var err error
	if l.dir, err = l.b.cloudDir(); err != nil {
		return err
	}
	l.b.say("the local cloud's buckets are in %s", l.dir)
	cmd := exec.CommandContext(ctx, l.b.cloud, "--dir", l.dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	l.cmd = cmd
	// It prints what to set, and then nothing.
	type line struct {
		text string
		ok   bool
	}
	lines := make(chan line)
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- line{s.Text(), true}
		}
		lines <- line{}
	}()
	wait := time.After(30 * time.Second)
	for quiet := wait; ; {
		select {
		case got := <-lines:
			if !got.ok {
				return errors.New("localcloud ended")
			}
			name, value, found := strings.Cut(strings.TrimPrefix(got.text, "export "), "=")
			if found && strings.HasPrefix(got.text, "export ") {
				value = strings.Trim(value, `'"`)
				l.env = append(l.env, name+"="+value)
				if name == "IMSPREP_OBS_ENDPOINT" {
					l.env = append(l.env, "HOST="+hostOf(value))
				}
			}
			if len(l.env) > 0 {
				quiet = time.After(500 * time.Millisecond)
			}
		case <-quiet:
			go func() {
				for got := range lines {
					if !got.ok {
						return
					}
				}
			}()
			if !strings.Contains(strings.Join(l.env, "\n"), "HOST=") {
				return fmt.Errorf("localcloud does not tell its addresses: %q", l.env)
			}
			use(l.env)
			return nil
		}
	}
}

// cloudDir makes the folder of the local cloud. A bucket isn't on the disk that the tools read from and write to, so
// it is in memory, if the machine has enough for what the tools upload and for what they write.
func (b *bench) cloudDir() (string, error) {
	in := b.buckets
	if in == "" {
		in = b.dir
		const memory = "/dev/shm"
		var fs unix.Statfs_t
		var sys unix.Sysinfo_t
		need := b.gib * gib * 4
		if unix.Statfs(memory, &fs) == nil && int64(fs.Bavail)*int64(fs.Bsize) > need && unix.Sysinfo(&sys) == nil && int64(sys.Totalram)*int64(sys.Unit) > need {
			in = memory
		}
	}
	return os.MkdirTemp(in, "imsprep-bench-cloud-")
}

func (l *localcloud) stop() {
	if l.cmd == nil {
		return
	}
	_ = l.cmd.Process.Signal(os.Interrupt)
	_ = l.cmd.Wait()
	_ = os.RemoveAll(l.dir)
}
