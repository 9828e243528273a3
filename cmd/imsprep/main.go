// SPDX-License-Identifier: Apache-2.0

// Command imsprep makes private images of Huawei Cloud IMS from virtual-machine disks.
package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// version is set by the build (-ldflags "-X main.version=...").
var version = "dev"

func main() {
	os.Exit(run(os.Args[1:], streams{
		out:    os.Stdout,
		err:    os.Stderr,
		lookup: os.LookupEnv,
	}))
}

// run is main with its surroundings given, and returns the exit code.
func run(args []string, s streams) int {
	// A reader that goes away (`| head`) must not kill a run that has something to clean up: with
	// somebody listening for the signal, writing fails instead.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup does
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	// The first signal asks for a clean end. After it the default handling is back, so that a second
	// one ends the program at once, whatever it hangs on.
	context.AfterFunc(ctx, stop)

	a := &app{streams: s, flags: globalFlags{json: slices.Contains(args, "--json")}}
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetOut(s.out)
	root.SetErr(s.err)
	err := root.ExecuteContext(ctx)
	if err != nil && !a.started {
		err = &usageError{Err: err}
	}
	code := a.finish(err)
	a.writeMetrics(code)
	return code
}
