// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"strconv"

	"github.com/imsprep/imsprep/pkg/pipeline"
	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

// Values of `batch run --index` beside numbers.
const (
	indexAuto = "auto"
	indexAll  = "all"
)

// indexVariables are where schedulers tell a task which one it is, in the order in which they are looked at:
// Kubernetes Indexed Jobs, Slurm arrays, Nomad.
var indexVariables = []string{"JOB_COMPLETION_INDEX", "SLURM_ARRAY_TASK_ID", "NOMAD_ALLOC_INDEX"}

// imageIndex is the image to import, from 0, and what told that; -1 for all.
func (a *app) imageIndex(flag string, images int) (index int, from string, err error) {
	value, from := flag, "--index"
	switch flag {
	case indexAll:
		return -1, "", nil
	case indexAuto:
		value = ""
		for _, name := range indexVariables {
			if value = a.getenv(name); value != "" {
				from = name
				break
			}
		}
		if value == "" {
			return -1, "", nil
		}
	}
	index, err = strconv.Atoi(value)
	if err != nil || index < 0 || index >= images {
		return 0, "", usagef("%s is %q: the plan's %d images have the indices 0 to %d; --index all imports all of them", from, value, images, images-1)
	}
	return index, from, nil
}

// imageError is what one image failed with, which decides what a scheduler does next.
type imageError struct {
	failure *batch.Failure
	name    string
	err     error
}

func (e *imageError) Error() string {
	return "image " + strconv.Quote(e.name) + ": " + e.failure.Message
}
func (e *imageError) Unwrap() error { return e.err }
func (e *imageError) Hint() string  { return e.failure.Hint }

// runImages imports the plan's images, or one of them.
func (a *app) runImages(ctx context.Context, r *batch.Runner, index int) error {
	if index < 0 {
		return r.Run(ctx)
	}
	err := r.RunOne(ctx, index)
	var failed *batch.FailedError
	if !errors.As(err, &failed) || pipeline.KindOf(err) == pipeline.KindInterrupted {
		return err
	}
	s, serr := r.Status(context.WithoutCancel(ctx), index)
	if serr != nil || s.Failure == nil {
		return errors.Join(err, serr)
	}
	return &imageError{s.Failure, s.Name, err}
}
