// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

const jobTime = "2006-01-02T15:04:05.000Z"

// Job states.
const (
	jobInit    = "INIT"
	jobRunning = "RUNNING"
	jobSuccess = "SUCCESS"
	jobFail    = "FAIL"
)

// job is an asynchronous task. Server.mu guards its fields.
type job struct {
	id, subID  string
	spec       *importSpec
	image      *image
	status     string
	percent    float64 // 0 to 1
	begin, end time.Time
	code, why  string
}

// jobError is the failure of a job: an IMG code and the reason shown with it.
type jobError struct{ code, reason string }

func (e *jobError) Error() string { return e.code + " " + e.reason }

func jobErrorf(code, format string, args ...any) error {
	return &jobError{code, imgMessage(code, fmt.Sprintf(format, args...))}
}

// submit starts the import as a job, if quota and names allow it.
func (s *Server) submit(spec *importSpec) (id string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return "", gatewayError(http.StatusServiceUnavailable, "APIGW.0602", "The service is being shut down.")
	}
	running := 0
	for _, j := range s.jobs {
		if j.status == jobInit || j.status == jobRunning {
			running++
		}
	}
	if running >= s.opt.MaxTasks {
		return "", imgError("IMG.0060", "")
	}
	used := 0
	for _, im := range s.images {
		if im.str("__imagetype") != "private" || im.str("status") == statusKilled {
			continue
		}
		used++
		if im.str("name") == spec.name && !s.opt.DuplicateNames {
			return "", imgError("IMG.0009", spec.name)
		}
	}
	if used >= s.opt.Quota {
		return "", imgError("IMG.0015", fmt.Sprintf("the quota is %d", s.opt.Quota))
	}
	now := s.now()
	j := &job{id: randomHex(16), subID: randomHex(16), spec: spec, status: jobInit, begin: now}
	j.image = s.newImage(spec, now)
	s.images = append(s.images, j.image)
	s.jobs[j.id] = j
	s.wg.Go(func() { s.run(s.ctx, j) })
	return j.id, nil
}

// run does the job's work and records how it ended.
func (s *Server) run(ctx context.Context, j *job) {
	content, err := s.work(ctx, j)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	j.end = now
	if err != nil {
		j.status, j.code, j.why = jobFail, "IMG.1075", err.Error()
		var e *jobError
		if errors.As(err, &e) {
			j.code, j.why = e.code, e.reason
		}
		j.image.set("status", statusKilled)
		j.image.touch(now)
		return
	}
	j.status, j.percent = jobSuccess, 1
	j.image.activate(content, now)
}

func (s *Server) work(ctx context.Context, j *job) (*content, error) {
	if err := s.stage(ctx, j, jobInit, 0, statusQueued); err != nil {
		return nil, err
	}
	if err := s.stage(ctx, j, jobRunning, 0.05, statusSaving); err != nil {
		return nil, err
	}
	fail := s.Faults()
	c, err := s.readContent(ctx, j.spec, func(done float64) error {
		if fail.FailJobs != "" && done >= 0.5 {
			return &jobError{fail.FailJobs, or(fail.FailReason, imgMessage(fail.FailJobs, ""))}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		j.percent = max(j.percent, 0.05+0.85*done)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c, s.stage(ctx, j, jobRunning, 0.95, statusSaving)
}

// stage enters a stage of the job and stays there for a while.
func (s *Server) stage(ctx context.Context, j *job, status string, percent float64, imageStatus string) error {
	s.mu.Lock()
	j.status, j.percent = status, percent
	j.image.set("status", imageStatus)
	s.mu.Unlock()
	if s.opt.JobStep <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(s.opt.JobStep)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// jobProgress is GET /v1/cloudimages/job/{job_id}.
func (s *Server) jobProgress(w http.ResponseWriter, r *http.Request) error {
	return s.showJob(w, r.PathValue("job"), true)
}

// jobStatus is GET /v1/{project_id}/jobs/{job_id}, the older call.
func (s *Server) jobStatus(w http.ResponseWriter, r *http.Request) error {
	if r.PathValue("project") != s.opt.ProjectID {
		return imgError("IMG.0067", "")
	}
	return s.showJob(w, r.PathValue("job"), false)
}

// showJob answers with a job. Only the progress call has a percentage.
func (s *Server) showJob(w http.ResponseWriter, id string, progress bool) error {
	s.mu.Lock()
	j := s.jobs[id]
	if j == nil {
		s.mu.Unlock()
		return imgError("IMG.0031", "no such job")
	}
	var code, why any // null unless the job has failed
	if j.status == jobFail {
		code, why = j.code, j.why
	}
	end := ""
	if !j.end.IsZero() {
		end = j.end.Format(jobTime)
	}
	entities := map[string]any{}
	if j.status != jobInit {
		entities["image_name"] = j.spec.name
		if !s.faults.HideImageID {
			entities["image_id"] = j.image.str("id")
		}
	}
	if progress && j.status == jobRunning {
		entities["process_percent"] = float64(int(j.percent*100)) / 100
		entities["current_task"] = "QuickImportImageTask:"
		entities["subJobId"] = j.subID
	}
	answer := map[string]any{
		"job_id": j.id, "job_type": j.jobType(), "status": j.status,
		"begin_time": j.begin.Format(jobTime), "end_time": end,
		"error_code": code, "fail_reason": why, "entities": entities,
	}
	s.mu.Unlock()
	return writeJSON(w, http.StatusOK, answer)
}

func (j *job) jobType() string {
	if j.spec.dataDisk {
		return "imsImportDataImageJob"
	}
	return "imsImportImageJob"
}
