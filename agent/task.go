package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1/pbconv"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// Task is one attempt at a piece of work, as a handler sees it. It is not to be changed.
type Task struct {
	ID        string
	From      shoal.AgentID // who asked; proved by a signature
	ContextID string        // groups tasks of one conversation
	Skill     string
	Attempt   int            // 1 for the first; more if a worker was lost
	Message   *a2a.Message   // what is asked
	History   []*a2a.Message // earlier turns, oldest first
	Deadline  time.Time      // when the daemon gives up; zero = never
	Live      bool           // nothing is on disk before the answer
	Node      *Client        // to delegate further, as this agent

	key    shoal.TaskKey
	cancel context.CancelCauseFunc
	inputs chan *a2a.Message
	writer *Writer
}

func newTask(s *session, a *shoalv1.Assignment, cancel context.CancelCauseFunc) *Task {
	t := &Task{
		ID: a.GetTaskId(), From: shoal.AgentID(a.GetRequester()), ContextID: a.GetContextId(),
		Skill: a.GetSkill(), Attempt: int(a.GetAttempt()), Deadline: fromTime(a.GetDeadline()),
		Live: a.GetClass() == shoalv1.TaskClass_TASK_CLASS_LIVE, Node: s.node,
		key: keyOf(a), cancel: cancel, inputs: make(chan *a2a.Message, maxInputs),
	}
	t.writer = newWriter(s, t)
	return t
}

// decode reads the messages, which come from another node.
func (t *Task) decode(a *shoalv1.Assignment) (err error) {
	if t.Message, err = pbconv.FromProtoMessage(a.GetMessage()); err != nil || t.Message == nil {
		return shoal.NewError(shoal.Invalid, "bad_message", "the task's message is malformed", "").Because(err)
	}
	t.History, err = fromMessages(a.GetHistory())
	return err
}

// Text returns the text parts of the message, joined by newlines.
func (t *Task) Text() string { return messageText(t.Message) }

// Data returns the value of the message's first data part, nil if there is none: a
// map[string]any as encoding/json makes it.
func (t *Task) Data() any {
	for _, p := range t.Message.Parts {
		if d, ok := p.Content.(a2a.Data); ok {
			return d.Value
		}
	}
	return nil
}

// report is what is told about a task in one durable step.
type report struct {
	state     a2a.TaskState // "" = artifacts only
	message   *a2a.Message
	err       error // instead of message: why
	artifacts []*a2a.Artifact
}

// reasonKey is the metadata key of a status message that holds the stable reason code
// of a FAILED, REJECTED or CANCELED task.
const reasonKey = "reason"

// report makes one durable report. It does not use the handler's context, which may
// have ended for the very reason that is reported.
func (s *session) report(t *Task, r report) error {
	if r.err != nil {
		r.message = t.explain(r.err)
	}
	pb, err := pbTask(a2a.Task{
		Status: a2a.TaskStatus{State: r.state, Message: r.message}, Artifacts: r.artifacts,
	})
	if err != nil {
		return err
	}
	req := &shoalv1.ReportRequest{
		Session: s.id, TaskId: string(t.key.ID), Requester: string(t.key.Requester), Artifacts: pb.GetArtifacts(),
	}
	if r.state != "" {
		req.Status = pb.GetStatus()
	}
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	_, err = s.client.workers.Report(ctx, connect.NewRequest(req))
	return asError(ctx, err)
}

// say makes a message from the agent to the asker.
func (t *Task) say(text string) *a2a.Message {
	part := a2a.NewTextPart(strings.ToValidUTF8(text, "\uFFFD"))
	return a2a.NewMessageForTask(a2a.MessageRoleAgent, a2a.TaskInfo{TaskID: t.key.ID, ContextID: t.ContextID}, part)
}

// explain makes the message that goes with FAILED, REJECTED and CANCELED.
func (t *Task) explain(err error) *a2a.Message {
	var ours *shoal.Error
	var rejected *rejection
	reason := ""
	switch {
	case errors.As(err, &rejected):
		reason = rejected.reason
	case errors.As(err, &ours):
		reason = ours.Reason
	}
	m := t.say(err.Error())
	if reason != "" {
		m.SetMeta(reasonKey, strings.ToValidUTF8(reason, "\uFFFD"))
	}
	return m
}
