package api

import (
	"github.com/a2aproject/a2a-go/v2/a2apb/v1"

	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

func completed(id string) *shoalv1.ReportRequest {
	return &shoalv1.ReportRequest{
		Session: "sess", TaskId: id, Requester: string(own),
		Status: &a2apb.TaskStatus{State: a2apb.TaskState_TASK_STATE_COMPLETED},
	}
}
