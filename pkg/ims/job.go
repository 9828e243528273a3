// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
)

// JobStatus is the state of a job, in capitals. A status that is none of the constants means that
// the job still runs.
type JobStatus string

// The documented statuses; other spellings of an end (success, FAILED) are decoded to these.
const (
	JobInit    JobStatus = "INIT"
	JobRunning JobStatus = "RUNNING"
	JobSuccess JobStatus = "SUCCESS"
	JobFail    JobStatus = "FAIL"
)

// Job is the state of a job, from either of the two calls that tell it.
type Job struct {
	ID        string    `json:"job_id"`
	Type      string    `json:"job_type,omitempty"` // informative; which type an import reports varies
	Status    JobStatus `json:"status"`
	BeginTime string    `json:"begin_time,omitempty"` // in one of several formats
	EndTime   string    `json:"end_time,omitempty"`

	// ErrorCode and FailReason tell why a job failed; where the job itself does not say, what its
	// entities or a failed member job say.
	ErrorCode  string `json:"error_code,omitempty"`
	FailReason string `json:"fail_reason,omitempty"`

	ImageID   string `json:"image_id,omitempty"` // may be known before the job ends
	ImageName string `json:"image_name,omitempty"`
	// Progress is 0 to 1, or negative when the service does not tell.
	Progress    float64 `json:"progress"`
	CurrentTask string  `json:"current_task,omitempty"`
	SubJobID    string  `json:"sub_job_id,omitempty"`
	SubJobs     []Job   `json:"sub_jobs,omitempty"`
	// ImageIDs are all images of the job, its own first.
	ImageIDs []string `json:"image_ids,omitempty"`
}

// Done tells whether the job has ended, well or not.
func (j *Job) Done() bool { return j.Status == JobSuccess || j.Status == JobFail }

// Err is a *[JobFailedError] if the job has failed, else nil.
func (j *Job) Err() error {
	if j.Status != JobFail {
		return nil
	}
	return &JobFailedError{JobID: j.ID, ImageID: j.ImageID, Code: j.ErrorCode, Reason: j.FailReason, Job: j}
}

// Job reads a job's state with the job progress call, GET /v1/cloudimages/job/{job_id} (IMS API,
// "Querying the Progress of an Asynchronous Job"). Where the installation lacks it (404, 405,
// APIGW.0101) the older job status call, GET /v1/{project_id}/jobs/{job_id} (IMS API, "Querying the
// Status of an Asynchronous Job"), is used from then on; it needs the project id, see
// [Client.ProjectID].
func (c *Client) Job(ctx context.Context, id string) (*Job, error) {
	return c.job(ctx, id, call{})
}

func (c *Client) job(ctx context.Context, id string, k call) (*Job, error) {
	id = strings.TrimSpace(id)
	if err := checkID("job", id); err != nil {
		return nil, err
	}
	k.op, k.service, k.method = "query job "+id, serviceIMS, http.MethodGet
	var missing error
	if !c.useStatusCall.Load() {
		k.path = "/v1/cloudimages/job/" + id
		j, err := c.queryJob(ctx, k, id)
		if err == nil || !isMissingCall(err) {
			return j, err
		}
		missing = err
	}
	project, err := c.ProjectID(ctx)
	if err != nil {
		return nil, errors.Join(missing, err)
	}
	if err := checkID("project", project); err != nil {
		return nil, errors.Join(missing, err)
	}
	k.path = "/v1/" + project + "/jobs/" + id
	j, err := c.queryJob(ctx, k, id)
	switch {
	case err == nil && missing != nil:
		// Only now it is clear that the 404 meant the call and not the job.
		c.useStatusCall.Store(true)
	case err != nil && missing != nil && isMissingCall(err):
		// Neither call knows it: then it is the job that is unknown, unless the gateway said that
		// both calls are.
		if e := new(Error); errors.As(err, &e) && e.Kind != KindUnsupported {
			return nil, err
		}
		return nil, missing
	}
	return j, err
}

func (c *Client) queryJob(ctx context.Context, k call, id string) (*Job, error) {
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	m, err := a.object(k)
	if err != nil {
		return nil, err
	}
	j := jobFromObject(m, 0)
	if j.Status == "" {
		return nil, malformed(k, a, "the answer holds no status of a job")
	}
	if j.ID == "" {
		j.ID = id
	}
	return &j, nil
}

// maxSubJobDepth is how deep member jobs are followed; the service nests one level.
const maxSubJobDepth = 2

// jobFromObject reads both shapes of the answer: entities may be absent or empty, most fields null,
// numbers may be strings, ids may have blanks around them.
func jobFromObject(m map[string]any, depth int) Job {
	entities, _ := m["entities"].(map[string]any)
	j := Job{
		ID: text(m["job_id"]), Type: text(m["job_type"]), Status: jobStatus(text(m["status"])),
		BeginTime: text(m["begin_time"]), EndTime: text(m["end_time"]),
		ErrorCode: text(m["error_code"]), FailReason: text(m["fail_reason"]),
		ImageID: text(entities["image_id"]), ImageName: text(entities["image_name"]),
		CurrentTask: text(entities["current_task"]), SubJobID: text(entities["subJobId"]),
		Progress: progress(entities["process_percent"]),
	}
	firstOf := func(dst *string, values ...string) {
		for _, v := range values {
			if *dst == "" {
				*dst = v
			}
		}
	}
	firstOf(&j.ErrorCode, text(entities["error_code"]), text(entities["addition_error_code"]), text(entities["alarm_code"]))
	firstOf(&j.FailReason, text(entities["error"]), text(entities["addition_error_msg"]))
	addImage := func(id string) {
		if id != "" && !slices.Contains(j.ImageIDs, id) {
			j.ImageIDs = append(j.ImageIDs, id)
		}
	}
	addImage(j.ImageID)
	if depth < maxSubJobDepth {
		members, _ := entities["sub_jobs_result"].([]any)
		for _, v := range members {
			member, ok := v.(map[string]any)
			if !ok {
				continue
			}
			sub := jobFromObject(member, depth+1)
			j.SubJobs = append(j.SubJobs, sub)
			for _, id := range sub.ImageIDs {
				addImage(id)
			}
			if sub.Status == JobFail {
				firstOf(&j.ErrorCode, sub.ErrorCode)
				firstOf(&j.FailReason, sub.FailReason)
			}
		}
	}
	results, _ := entities["results"].([]any)
	for _, v := range results {
		if r, ok := v.(map[string]any); ok {
			addImage(text(r["image_id"]))
		}
	}
	if j.ImageID == "" && len(j.ImageIDs) > 0 {
		j.ImageID = j.ImageIDs[0]
	}
	if j.Status == JobSuccess {
		j.Progress = 1
	}
	j.ErrorCode, j.FailReason = cleanText(j.ErrorCode, 100), cleanText(j.FailReason, maxMessage)
	j.CurrentTask, j.ImageName = cleanText(j.CurrentTask, 200), cleanText(j.ImageName, maxMessage)
	return j
}

func jobStatus(s string) JobStatus {
	switch s = strings.ToUpper(cleanText(s, 60)); s {
	case "SUCCESS", "SUCCEED", "SUCCEEDED":
		return JobSuccess
	case "FAIL", "FAILED", "FAILURE":
		return JobFail
	default:
		return JobStatus(s)
	}
}

// progress reads process_percent, documented as a fraction; a value above 1 can only be percent.
func progress(v any) float64 {
	f, err := json.Number(text(v)).Float64()
	switch {
	case err != nil || f < 0 || f != f:
		return -1
	case f > 1:
		f /= 100
	}
	return min(f, 1)
}
