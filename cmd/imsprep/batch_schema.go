// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

func (a *app) batchSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the plan file",
		Long: `Schema prints the JSON Schema of the plan file (docs/batch-plan.schema.json), by which editors complete
and check one. With the YAML language server, put this line at the head of the plan:

  # yaml-language-server: $schema=batch-plan.schema.json`,
		Example: `  imsprep batch schema > batch-plan.schema.json`,
		Args:    a.args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			_, err := a.out.Write(batch.Schema())
			a.printed = true
			return err
		},
	}
}
