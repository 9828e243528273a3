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
)

// localcloud is the object storage that uploads go to.
type localcloud struct {
	b   *bench
	cmd *exec.Cmd
	env []string
}

// start starts it, unless it runs, and gives the environment in which it is found.
func (l *localcloud) start(ctx context.Context, use func(env []string)) error {
	if l.cmd != nil {
		use(l.env)
		return nil
	}
	dir := l.b.path("cloud")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, l.b.cloud, "--dir", dir)
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

func (l *localcloud) stop() {
	if l.cmd == nil {
		return
	}
	_ = l.cmd.Process.Signal(os.Interrupt)
	_ = l.cmd.Wait()
	_ = os.RemoveAll(l.b.path("cloud"))
}
