// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/settings"
)

// streams is what the program knows of the world outside. out carries the result and nothing else,
// err carries progress, warnings and errors.
type streams struct {
	out, err io.Writer
	lookup   func(name string) (string, bool) // an environment variable
	// lookFor is how long an image is looked for when it isn't known whether it was asked for; 0 is
	// the client's default, in which real services have always shown one.
	lookFor time.Duration
	// store, if not nil, changes how the object storage is spoken to.
	store func(*obs.Options)
}

// app is one run of the program.
type app struct {
	streams
	flags     globalFlags
	view      *shared
	started   bool              // a command got past its arguments
	printed   bool              // the result's document is out
	usageHint string            // the command whose help answers a usage error
	jobTitle  string            // what is said of the job that is waited for; "" = it imports
	limitRate int64             // bytes a second of the stores' clients, 0 for no limit
	fixedKeys bool              // the keys are temporary, and can't be renewed during the run
	onRetry   func(note string) // told instead of view

	log     *slog.Logger // nil when none is asked for
	errLock sync.Mutex
	secrets secrets
	metrics runMetrics
}

// globalFlags are the flags of every command.
type globalFlags struct {
	json     bool
	quiet    bool
	progress string
	log      logFlags

	metricsFile string
	cloud       settings.Options
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "imsprep",
		Short: "Turn virtual-machine disks into private images of Huawei Cloud IMS",
		Long: `imsprep turns a virtual-machine disk into a private image of Huawei Cloud IMS, and of the clouds
that run the same software, in one streaming pass: it reads the disk, computes the bitmap that a
quick import needs, sends only what isn't zero, starts the import and follows it to the image.
No temporary disk is written.`,
		Example: `  # what is this disk, and would anything refuse it?
  imsprep info web-01.qcow2

  # what would an import read, send and copy?
  imsprep import web-01.qcow2 --bucket images --name web-01 \
      --os-version "Ubuntu 22.04 server 64bit" --dry-run

  # the whole way
  imsprep import web-01.qcow2 --bucket images --name web-01 \
      --os-version "Ubuntu 22.04 server 64bit"`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
		Args:          a.args(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { a.started = true; return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.started = true
			if err := checkProgress(a.flags.progress); err != nil {
				return err
			}
			if err := a.startLog(); err != nil {
				return err
			}
			if err := a.startMetrics(strings.TrimPrefix(cmd.CommandPath(), "imsprep ")); err != nil {
				return err
			}
			if a.logging() {
				a.log.Info("command started", "command", a.metrics.command, "version", version)
			}
			return nil
		},
	}
	root.SetVersionTemplate("imsprep {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		a.usageHint = cmd.CommandPath()
		return &usageError{Err: err}
	})
	p := root.PersistentFlags()
	p.BoolVar(&a.flags.json, "json", a.flags.json, "print the result as one JSON document")
	p.BoolVarP(&a.flags.quiet, "quiet", "q", false, "tell nothing but warnings and errors")
	p.StringVar(&a.flags.progress, "progress", progressAuto, "how to show progress on standard error: auto, bar, lines, json, none")

	p.StringVar(&a.flags.log.format, "log-format", "", "log to standard error as text or json, instead of what is told to people there")
	p.StringVar(&a.flags.log.level, "log-level", "", "least level of the log: debug, info, warn, error, off (default: info if there is a log)")
	p.StringVar(&a.flags.metricsFile, "metrics-file", "", "write the run's metrics to this file, as Prometheus' textfile collector reads them")
	for name, values := range map[string][]string{
		"progress": {progressAuto, progressBar, progressLines, progressJSON, progressNone}, "log-format": {logText, logJSON},
		"log-level": {"debug", "info", "warn", "error", logOff},
	} {
		_ = root.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}

	root.AddGroup(
		&cobra.Group{ID: groupCloud, Title: "Into the cloud:"},
		&cobra.Group{ID: groupLocal, Title: "On this machine:"},
	)
	root.AddCommand(
		a.importCommand(), a.batchCommand(), a.uploadCommand(), a.verifyCommand(), a.jobCommand(), a.imageCommand(), a.cleanupCommand(), a.doctorCommand(),
		a.convertCommand(), a.digestCommand(), a.infoCommand(), a.mapCommand(), a.bitmapCommand(),
		a.versionCommand(),
	)
	root.AddCommand(a.buildCommands()...)
	return root
}

const (
	groupCloud = "cloud"
	groupLocal = "local"
)

// cloudFlags adds the flags of commands that speak to a cloud.
func (a *app) cloudFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&a.flags.cloud.Region, "region", "", "region id, such as cn-north-4 (environment: HW_REGION_NAME)")
	f.StringVar(&a.flags.cloud.Profile, "profile", "", "profile of KooCLI to take credentials from, or metadata for a server's agency (environment: HW_PROFILE)")
	f.StringVar(&a.flags.cloud.Agency, "assume-agency", "", "act through this agency, with temporary keys (environment: HW_ASSUME_ROLE_AGENCY_NAME)")
	f.StringVar(&a.flags.cloud.AgencyDomain, "assume-domain", "", "account that made the agency (environment: HW_ASSUME_ROLE_DOMAIN_NAME)")
	f.StringVar(&a.flags.cloud.ProjectID, "project-id", "", "project id; looked up by the region's name if absent (environment: HW_PROJECT_ID)")
	f.StringVar(&a.flags.cloud.Cloud, "cloud", "", "huaweicloud, europe, otc, or the domain of another cloud's endpoints (environment: HW_CLOUD)")
	f.StringVar(&a.flags.cloud.OBSEndpoint, "obs-endpoint", "", "object storage endpoint (environment: IMSPREP_OBS_ENDPOINT)")
	f.StringVar(&a.flags.cloud.OBSAddressing, "obs-addressing", "", "where requests name the bucket: auto, virtual (in the host's name) or path (environment: IMSPREP_OBS_ADDRESSING)")
	f.StringVar(&a.flags.cloud.IMSEndpoint, "ims-endpoint", "", "image service endpoint (environment: IMSPREP_IMS_ENDPOINT)")
	f.StringVar(&a.flags.cloud.IAMEndpoint, "iam-endpoint", "", "identity service endpoint (environment: IMSPREP_IAM_ENDPOINT)")
}

// args makes a validator of positional arguments an answer with the command's name, and with what could
// have been meant.
func (a *app) args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil {
			return nil
		}
		a.usageHint = cmd.CommandPath()
		switch {
		case !cmd.HasSubCommands():
			err = fmt.Errorf("%w; usage: %s", err, cmd.UseLine())
		case len(args) > 0:
			cmd.SuggestionsMinimumDistance = 2 // letters, as cobra has it for other commands
			if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
				err = fmt.Errorf("%w; is it %s?", err, strings.Join(like, " or "))
			}
		}
		return &usageError{Err: err}
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  a.args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return a.printVersion()
		},
	}
}
