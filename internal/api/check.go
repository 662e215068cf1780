package api

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/task"

	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// Limits of fields. Those of what travels are the receivers', too (design/security.md §5).
const (
	maxIDLen      = 128 // bytes of a task, context, message or artifact id, and of a key
	maxName       = 64  // bytes of an agent's name
	maxText       = 1024
	maxToken      = 512 // bytes of a page token
	maxTarget     = 4096
	maxDuration   = 30 * 24 * time.Hour
	maxExtensions = 32
	maxParts      = 1024
	maxDepth      = 32
	maxMetadata   = 4 << 10
	maxChunk      = 256 << 10
	maxArtifacts  = 256
	maxCursors    = 10_000
	maxLogTail    = 10_000
)

func invalid(reason, hint, format string, args ...any) error {
	return shoal.NewError(shoal.Invalid, reason, fmt.Sprintf(format, args...), hint)
}

func missing(field, hint string) error {
	return shoal.NewError(shoal.Invalid, "field_missing", field+" is missing", hint)
}

// checkLen refuses a value of more than limit bytes.
func checkLen(field, s string, limit int) error {
	if len(s) > limit {
		return shoal.NewError(shoal.Invalid, "field_too_long",
			fmt.Sprintf("%s has %d bytes", field, len(s)), fmt.Sprintf("at most %d bytes are allowed", limit))
	}
	return nil
}

// checkWord refuses what could not stand in one line of a log or a terminal: control
// characters, and spaces where space is false.
func checkWord(field, s string, limit int, space bool) error {
	if err := checkLen(field, s, limit); err != nil {
		return err
	}
	if !utf8.ValidString(s) {
		return badText(field, "is no UTF-8")
	}
	for _, r := range s {
		if !unicode.IsPrint(r) || !space && unicode.IsSpace(r) {
			return badText(field, fmt.Sprintf("contains %U", r))
		}
	}
	return nil
}

func badText(field, what string) error {
	return shoal.NewError(shoal.Invalid, "bad_text", field+" "+what, "use printable characters only")
}

// checkID checks an id or key that the caller made up; it may be empty.
func checkID(field, s string) error { return checkWord(field, s, maxIDLen, false) }

// checkProse checks text that may have several lines.
func checkProse(field, s string) error {
	if err := checkLen(field, s, maxText); err != nil {
		return err
	}
	flat := strings.NewReplacer("\n", " ", "\t", " ", "\r", " ").Replace(s)
	return checkWord(field, flat, maxText, true)
}

func checkTaskID(s string) error {
	if s == "" {
		return missing("id", "give the task's id, see `shoal task list`")
	}
	return checkID("id", s)
}

// millis turns a field in milliseconds into a duration; 0 stays 0.
func millis(field string, ms int64, limit time.Duration) (time.Duration, error) {
	if ms < 0 || ms > limit.Milliseconds() {
		return 0, shoal.NewError(shoal.Invalid, "bad_duration",
			fmt.Sprintf("%s is %d ms", field, ms), fmt.Sprintf("use 0 to %d ms (%s)", limit.Milliseconds(), limit))
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// pageSize returns the size of a page: the default for 0.
func pageSize(n uint32, def, limit int) (int, error) {
	switch {
	case n == 0:
		return def, nil
	case n > uint32(limit):
		return 0, shoal.NewError(shoal.Invalid, "bad_page_size",
			fmt.Sprintf("a page of %d is too large", n), fmt.Sprintf("use 1 to %d", limit))
	}
	return int(n), nil
}

func checkPageToken(s string) error { return checkWord("page_token", s, maxToken, false) }

// checkAgentName checks what names an agent: its DID, or the name of a hosted one.
func checkAgentName(field, s string) error {
	if strings.HasPrefix(s, "did:") {
		_, err := shoal.ParseAgentID(s)
		return err
	}
	return checkWord(field, s, maxName, true)
}

// hosted returns the hosted agent that s names; "" is the node's own.
func (s *Server) hosted(field, name string) (shoal.AgentID, error) {
	if err := checkAgentName(field, name); err != nil {
		return "", err
	}
	return s.svc.Agents.Lookup(name)
}

// anyAgent returns the agent that s names: any DID, or the name of a hosted agent.
func (s *Server) anyAgent(field, name string) (shoal.AgentID, error) {
	if name == "" {
		return "", missing(field, "give a DID (did:key:z6Mk…) or the name of a hosted agent")
	}
	if strings.HasPrefix(name, "did:") {
		return shoal.ParseAgentID(name)
	}
	return s.hosted(field, name)
}

// ref checks what names a task.
func (s *Server) ref(id, requester string, role shoalv1.TaskRole) (task.Ref, error) {
	ref := task.Ref{ID: taskID(id)}
	if err := checkTaskID(id); err != nil {
		return ref, err
	}
	var err error
	if requester != "" {
		if ref.Requester, err = s.anyAgent("requester", requester); err != nil {
			return ref, err
		}
	}
	ref.Role, err = roleOf(role)
	return ref, err
}

func roleOf(r shoalv1.TaskRole) (task.Role, error) {
	switch r {
	case shoalv1.TaskRole_TASK_ROLE_UNSPECIFIED:
		return 0, nil
	case shoalv1.TaskRole_TASK_ROLE_ASKED:
		return task.Asked, nil
	case shoalv1.TaskRole_TASK_ROLE_DOING:
		return task.Doing, nil
	}
	return 0, badEnum("role", int32(r), "TASK_ROLE_ASKED or TASK_ROLE_DOING")
}

func classOf(c shoalv1.TaskClass) (shoal.Class, error) {
	switch c {
	case shoalv1.TaskClass_TASK_CLASS_UNSPECIFIED, shoalv1.TaskClass_TASK_CLASS_DURABLE:
		return shoal.Durable, nil
	case shoalv1.TaskClass_TASK_CLASS_LIVE:
		return shoal.Live, nil
	}
	return 0, badEnum("class", int32(c), "TASK_CLASS_DURABLE or TASK_CLASS_LIVE")
}

func badEnum(field string, n int32, want string) error {
	return shoal.NewError(shoal.Invalid, "bad_enum", fmt.Sprintf("%s has the unknown value %d", field, n), "use "+want)
}
