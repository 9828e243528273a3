// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
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

// Types of jobs.
const (
	jobImport       = "imsImportImageJob"
	jobImportData   = "imsImportDataImageJob"
	jobImportSeries = "imsImportOvaImageJob"
	jobRegister     = "imsNativeImportImageJob"
	jobExport       = "imsNativeExportImageJob"
	jobCopy         = "imsCopyImageInRegionJob"
	jobRegionCopy   = "imsCrossRegionCopyImageJob"
	jobAddMembers   = "imsAddImageMembersJob"
	jobDelMembers   = "imsDelImageMembersJob"
	jobSetMembers   = "imsUpdateImageMembersJob"
)

// job is an asynchronous task. Server.mu guards its fields.
type job struct {
	id, subID  string
	kind, task string
	name       string // of the image, if there is one
	image      *image // may be nil
	makes      bool   // the image is made by this job, and lost with it
	status     string
	percent    float64 // 0 to 1
	begin, end time.Time
	code, why  string
	results    []any  // of member jobs
	parts      []*job // of an import of several disks
}

// work is what a job does, without the server's lock. It reports how much is
// done, from 0 to 1, and returns what is to be recorded, with the lock, when it
// has succeeded.
type work func(ctx context.Context, progress func(float64) error) (record func(now time.Time), err error)

// jobError is the failure of a job: an IMG code and the reason shown with it.
type jobError struct{ code, reason string }

func (e *jobError) Error() string { return e.code + " " + e.reason }

func jobErrorf(code, format string, args ...any) error {
	return &jobError{code, imgMessage(code, fmt.Sprintf(format, args...))}
}

// admit tells whether another task may start. The caller holds the lock.
func (s *Server) admit() error {
	if s.closed {
		return gatewayError(http.StatusServiceUnavailable, "APIGW.0602", "The service is being shut down.")
	}
	running := 0
	for _, j := range s.jobs {
		if j.status == jobInit || j.status == jobRunning {
			running++
		}
	}
	if running >= s.opt.MaxTasks {
		return imgError("IMG.0060", "")
	}
	return nil
}

// admitImages tells whether the caller may have more images of these names.
// The caller of this function holds the lock.
func (s *Server) admitImages(owner string, names ...string) error {
	used := 0
	for _, im := range s.images {
		if im.str("__imagetype") != "private" || im.str("status") == statusKilled || im.str("owner") != owner {
			continue
		}
		used++
		for _, name := range names {
			if im.str("name") == name && !s.opt.DuplicateNames {
				return imgError("IMG.0009", name)
			}
		}
	}
	if used+len(names) > s.opt.Quota {
		return imgError("IMG.0015", fmt.Sprintf("the quota is %d", s.opt.Quota))
	}
	return nil
}

// start adds a job and begins its work. The caller holds the lock.
func (s *Server) start(j *job, w work) string {
	j.id, j.subID = randomHex(16), randomHex(16)
	j.status, j.begin = jobInit, s.now()
	s.jobs[j.id] = j
	s.wg.Go(func() { s.run(s.ctx, j, w) })
	return j.id
}

// submit starts an import as a job, if quota and names allow it.
func (s *Server) submit(specs ...*importSpec) (id string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.admit(); err != nil {
		return "", err
	}
	var names []string
	for _, spec := range specs {
		if slices.Contains(names, spec.name) && !s.opt.DuplicateNames {
			return "", imgError("IMG.0009", spec.name)
		}
		names = append(names, spec.name)
	}
	if err := s.admitImages(specs[0].owner, names...); err != nil {
		return "", err
	}
	now := s.now()
	main := specs[0]
	j := &job{kind: main.jobType, task: "ImportImageTask:", name: main.name, makes: true}
	if len(specs) > 1 {
		j.kind = jobImportSeries
	}
	for _, spec := range specs {
		im := s.newImage(spec, now)
		s.images = append(s.images, im)
		if len(specs) > 1 {
			j.parts = append(j.parts, &job{
				id: randomHex(16), kind: spec.jobType, name: spec.name, image: im, makes: true, status: jobInit, begin: now,
			})
		} else {
			j.image = im
		}
	}
	return s.start(j, func(ctx context.Context, progress func(float64) error) (func(time.Time), error) {
		contents := make([]*content, len(specs))
		for n, spec := range specs {
			var err error
			contents[n], err = s.readContent(ctx, spec, func(done float64) error {
				return progress((float64(n) + done) / float64(len(specs)))
			})
			if err != nil {
				return nil, err
			}
		}
		return func(now time.Time) {
			for n, c := range contents {
				if len(j.parts) > 0 {
					j.parts[n].image.activate(c, now)
				} else {
					j.image.activate(c, now)
				}
			}
		}, nil
	}), nil
}

// all is the job itself and its parts.
func (j *job) all() []*job { return append([]*job{j}, j.parts...) }

// run does the job's work and records how it ended.
func (s *Server) run(ctx context.Context, j *job, w work) {
	record, err := s.work(ctx, j, w)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	code, why := "", ""
	if err != nil {
		code, why = "IMG.1075", err.Error()
		var e *jobError
		if errors.As(err, &e) {
			code, why = e.code, e.reason
		}
	} else if record != nil {
		record(now)
	}
	for _, j := range j.all() {
		j.end = now
		if err == nil {
			j.status, j.percent = jobSuccess, 1
			continue
		}
		j.status, j.code, j.why = jobFail, code, why
		if j.makes && j.image != nil {
			j.image.set("status", statusKilled)
			j.image.making = false
			j.image.touch(now)
		}
	}
}

func (s *Server) work(ctx context.Context, j *job, w work) (func(time.Time), error) {
	if err := s.stage(ctx, j, jobInit, 0, statusQueued); err != nil {
		return nil, err
	}
	if err := s.stage(ctx, j, jobRunning, 0.05, statusSaving); err != nil {
		return nil, err
	}
	fail := s.Faults()
	progress := func(done float64) error {
		if fail.FailJobs != "" && done >= 0.5 {
			return &jobError{fail.FailJobs, or(fail.FailReason, imgMessage(fail.FailJobs, ""))}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		j.percent = max(j.percent, 0.05+0.85*done)
		return nil
	}
	record, err := w(ctx, progress)
	if err == nil {
		err = progress(1)
	}
	if err != nil {
		return nil, err
	}
	return record, s.stage(ctx, j, jobRunning, 0.95, statusSaving)
}

// stage enters a stage of the job and stays there for a while.
func (s *Server) stage(ctx context.Context, j *job, status string, percent float64, imageStatus string) error {
	s.mu.Lock()
	for _, j := range j.all() {
		j.status, j.percent = status, percent
		if j.makes && j.image != nil {
			j.image.set("status", imageStatus)
		}
	}
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
	if r.PathValue("project") != s.callerOf(r) {
		return imgError("IMG.0067", "")
	}
	return s.showJob(w, r.PathValue("job"), false)
}

// showJob answers with a job. Only the progress call has a percentage, and a
// copy to another region.
func (s *Server) showJob(w http.ResponseWriter, id string, progress bool) error {
	s.mu.Lock()
	j := s.jobs[id]
	if j == nil || j.kind == jobRegionCopy && !progress {
		s.mu.Unlock()
		return imgError("IMG.0031", "no such job")
	}
	answer := j.show(s.faults.HideImageID)
	entities := answer["entities"].(map[string]any)
	if progress && j.status == jobRunning {
		entities["process_percent"] = float64(int(j.percent*100)) / 100
		entities["current_task"] = j.task
		entities["subJobId"] = j.subID
	}
	s.mu.Unlock()
	return writeJSON(w, http.StatusOK, answer)
}

// show is the frame that both calls, and the parts in them, have.
func (j *job) show(hideImage bool) map[string]any {
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
		if j.name != "" {
			entities["image_name"] = j.name
		}
		if j.image != nil && !hideImage {
			entities["image_id"] = j.image.str("id")
		}
	}
	if len(j.results) > 0 && j.status == jobSuccess {
		entities["results"] = j.results
	}
	if len(j.parts) > 0 {
		parts, ids := []any{}, []string{}
		for _, p := range j.parts {
			parts = append(parts, p.show(hideImage))
			ids = append(ids, p.id)
		}
		entities["sub_jobs_result"], entities["sub_jobs_list"] = parts, ids
	}
	return map[string]any{
		"job_id": j.id, "job_type": j.kind, "status": j.status,
		"begin_time": j.begin.Format(jobTime), "end_time": end,
		"error_code": code, "fail_reason": why, "entities": entities,
	}
}
