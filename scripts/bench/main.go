// SPDX-License-Identifier: Apache-2.0

// Command bench measures imsprep against the tools that people use instead, on disks that it makes
// itself, and writes the tables of README.md and docs/performance.md. `make bench` runs it.
//
// Every measurement is a process of its own. imsprep and its peers take turns on the same file, round
// after round, so that a slow minute of the machine meets all of them; what counts is the median of the
// ratios within the rounds. Results are kept: run again, it goes on where it was, unless bin/imsprep or
// the size of the disks has changed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"
)

const usage = `usage: make bench, with any of these in front of it:
  BENCH_QUICK=1     small disks and few rounds, under five minutes; writes no documents
  BENCH_GIB=N       virtual size of the disks in GiB, half of which is data (default: 4)
  BENCH_SCALE=N     GiB of data in the disks of 64 GiB to 1 TiB (default: 10)
  BENCH_RUNS=N      rounds (default: 9); what takes long has a third of them
  BENCH_MINUTES=N   begin no measurement later than this (default: 60)
  BENCH_ONLY=zstd   only cases whose name the expression matches; writes no documents
  BENCH_DIR=DIR     where disks and results are kept (default: bin/bench)
  BENCH_CLOUD=DIR   a folder for the local cloud's buckets (default: in memory if there is enough)
  BENCH_WRITE=0     leave README.md and docs/performance.md alone`

// config is what the environment says.
type config struct {
	dir     string // disks, results and outputs
	buckets string // of the local cloud; "" chooses
	gib     int64  // virtual size of the disks; half of it is data
	scale   int64  // GiB of data of the disks of up to 1 TiB
	runs    int
	only    *regexp.Regexp
	minutes int64
	write   bool
	imsprep string // absolute paths of the programs
	cloud   string
}

func main() {
	if len(os.Args) == 4 && (os.Args[1] == toolLibrary || os.Args[1] == toolPass) {
		do := map[string]func(src, dst string) error{toolLibrary: libraryConvert, toolPass: bitmapPass}[os.Args[1]]
		if err := do(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := fromEnvironment()
	if err == nil {
		err = run(ctx, c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// fromEnvironment reads the choices; the current folder is the repository's.
func fromEnvironment() (c config, err error) {
	number := func(name string, preset int64) int64 {
		text := os.Getenv(name)
		if text == "" {
			return preset
		}
		n, e := strconv.ParseInt(text, 10, 16)
		if e != nil || n < 1 {
			err = errors.Join(err, fmt.Errorf("%s=%q is not a number from 1 on\n%s", name, text, usage))
		}
		return n
	}
	gib, scale, runs, minutes := int64(4), int64(10), int64(9), int64(60)
	quick := os.Getenv("BENCH_QUICK") == "1"
	if quick {
		gib, scale, runs, minutes = 1, 1, 3, 5
	}
	c.gib, c.scale = number("BENCH_GIB", gib), number("BENCH_SCALE", scale)
	c.runs, c.minutes = int(number("BENCH_RUNS", runs)), number("BENCH_MINUTES", minutes)
	only := os.Getenv("BENCH_ONLY")
	var e error
	if c.only, e = regexp.Compile(only); e != nil {
		err = errors.Join(err, fmt.Errorf("BENCH_ONLY: %w", e))
	}
	c.write = !quick && only == "" && os.Getenv("BENCH_WRITE") != "0"
	if c.dir = os.Getenv("BENCH_DIR"); c.dir == "" {
		c.dir = filepath.Join("bin", "bench")
	}
	if c.buckets = os.Getenv("BENCH_CLOUD"); c.buckets != "" {
		var e error
		c.buckets, e = filepath.Abs(c.buckets)
		err = errors.Join(err, e)
	}
	for path, to := range map[string]*string{c.dir: &c.dir, "bin/imsprep": &c.imsprep, "bin/localcloud": &c.cloud} {
		var e error
		*to, e = filepath.Abs(path)
		err = errors.Join(err, e)
	}
	return c, err
}

// bench is a run.
type bench struct {
	config
	results *results
	begun   time.Time
}

func run(ctx context.Context, c config) (err error) {
	b := &bench{config: c, begun: time.Now()}
	for _, dir := range []string{c.dir, b.path("out")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if b.results, err = openResults(c); err != nil {
		return err
	}
	defer b.results.close()
	b.say("disks of %d GiB in %s; results in %s", c.gib, c.dir, b.results.file.Name())
	cloud := &localcloud{b: b}
	defer cloud.stop()
	defer os.RemoveAll(b.path("out"))

	var cases []*benchCase
	for _, bc := range b.cases(cloud) {
		if c.only.MatchString(bc.section + " " + bc.name) {
			cases = append(cases, bc)
		}
	}
	if len(cases) == 0 {
		return fmt.Errorf("BENCH_ONLY=%q matches no case", c.only)
	}
	complete := true
	var failed []error
	for round := range c.runs {
		for _, bc := range cases {
			if round >= bc.rounds(c) || b.results.have(bc, round) {
				continue
			}
			if time.Since(b.begun) > time.Duration(c.minutes)*time.Minute {
				complete = false
				continue
			}
			// What fails is told, and tried again by the next run; the rest goes on.
			if err := b.round(ctx, bc, round); err != nil {
				err = fmt.Errorf("%s, %s: %w", bc.section, bc.name, err)
				if ctx.Err() != nil {
					return err
				}
				b.say("FAILED: %v", err)
				failed = append(failed, err)
			}
		}
	}
	doc := b.report(cases)
	fmt.Println()
	fmt.Print(doc.full)
	if !complete {
		b.say("the %d minutes are over: run it again to go on, or raise BENCH_MINUTES", c.minutes)
	}
	if c.write {
		failed = append(failed, replaceBlock("docs/performance.md", doc.full), replaceBlock("README.md", doc.short))
	}
	return errors.Join(failed...)
}

// path is a file in the folder of the disks.
func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "[%4.0f s] %s\n", time.Since(b.begun).Seconds(), fmt.Sprintf(format, args...))
}
