// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

func (a *app) batchReportCommand() *cobra.Command {
	var f batchFlags
	var format, dir string
	cmd := &cobra.Command{
		Use:   "report PLAN",
		Short: "Tell how a plan's images have ended, and what to do",
		Long: `Report tells what became of each image of a plan: sizes, bytes sent, rates, times by phase, failures
and what to do about them. It is printed as Markdown, or as --format says, or written to the folder of
--report-dir in all formats. It asks no cloud, but for the bucket of --state.`,
		Example: `  imsprep batch report plan.yaml
  imsprep batch report plan.yaml --format html > report.html
  imsprep batch report plan.yaml --report-dir report`,
		Args: a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			if a.flags.json && !cmd.Flags().Changed("format") {
				format = "json"
			}
			p, err := loadPlan(args[0])
			if err != nil {
				return err
			}
			selected, err := f.selection(p)
			if err != nil {
				return err
			}
			store, _, err := a.batchStore(p, &f.stateFlags)
			if err != nil {
				return err
			}
			r, err := batch.NewReport(cmd.Context(), p, store, selected)
			if err != nil {
				return err
			}
			if dir != "" {
				written, err := r.WriteDir(dir)
				if err != nil {
					return fmt.Errorf("write the report: %w", err)
				}
				if a.flags.json {
					return a.printJSON(map[string][]string{"written": written})
				}
				for _, path := range written {
					if _, err := fmt.Fprintln(a.out, path); err != nil {
						return err
					}
				}
				return nil
			}
			switch format {
			case "markdown", "md":
				return r.WriteMarkdown(a.out)
			case "json":
				return a.printJSON(r)
			case "html":
				return r.WriteHTML(a.out)
			}
			return usagef("--format %q: it is one of markdown, json, html", format)
		},
	}
	a.cloudFlags(cmd)
	f.add(cmd)
	cmd.Flags().StringVar(&format, "format", "markdown", "markdown, json, html")
	cmd.Flags().StringVar(&dir, "report-dir", "", "write report.html, report.md and report.json into this folder instead")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"markdown", "json", "html"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
