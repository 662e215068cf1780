//go:build e2e

package interop

import (
	"bufio"
	"encoding/json"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

const sendMethod = "/shoal.v1.TaskService/Send"

func sendBody(skill, text, key string) string {
	raw, _ := json.Marshal(map[string]any{ // strings only: cannot fail
		"skill": skill, "wait": true, "requestId": key,
		"message": map[string]any{"parts": []any{map[string]string{"text": text}}},
	})
	return string(raw)
}

// grpcurl runs grpcurl on a daemon's socket, by reflection.
func grpcurl(t *testing.T, d daemon, method, body string) *exec.Cmd {
	t.Helper()
	return exec.Command(tool(t, "bin/grpcurl"), "-plaintext", "-max-time", "60", "-d", body, "unix://"+d.Socket, method)
}

// event is as much of AttachResponse as the tests look at.
type event struct {
	Welcome    *struct{ Session, DID string }
	Assignment *struct {
		TaskID, Requester string
		Message           struct{ Parts []struct{ Text string } }
	}
}

// workWithGrpcurl attaches a worker of a skill, whose answer to each task is the task's
// text in capitals. Each report is a grpcurl of its own: a chunk, then the whole.
func workWithGrpcurl(t *testing.T, d daemon, skill string) {
	t.Helper()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // runs after startWorker's, which ends the program
	attach, _ := json.Marshal(map[string]any{"agent": "by-hand", "skills": []any{map[string]string{"id": skill}}})
	events := json.NewDecoder(bufio.NewReader(startWorker(t, grpcurl(t, d, "shoal.v1.WorkerService/Attach", string(attach)))))
	var first event
	if err := events.Decode(&first); err != nil || first.Welcome == nil || !strings.HasPrefix(first.Welcome.DID, "did:key:z") {
		t.Fatalf("the first event is no welcome: %+v, %v", first, err)
	}
	report := func(a *event, body map[string]any) {
		body["session"], body["task_id"], body["requester"] = first.Welcome.Session, a.Assignment.TaskID, a.Assignment.Requester
		raw, _ := json.Marshal(body)
		if out, err := grpcurl(t, d, "shoal.v1.WorkerService/Report", string(raw)).CombinedOutput(); err != nil {
			t.Errorf("report: %v\n%s", err, out)
		}
	}
	wg.Go(func() {
		for {
			var e event
			if events.Decode(&e) != nil {
				return
			}
			if e.Assignment == nil {
				continue
			}
			text := strings.ToUpper(e.Assignment.Message.Parts[0].Text)
			report(&e, map[string]any{"chunk": map[string]any{"artifact_id": "answer", "text": text}})
			report(&e, map[string]any{
				"status":    map[string]string{"state": "TASK_STATE_COMPLETED"},
				"artifacts": []any{map[string]any{"artifact_id": "answer", "name": "answer", "parts": []any{map[string]string{"text": text}}}},
			})
		}
	})
}

// A worker made of grpcurl does what curl asks for from another node: over the socket,
// and over loopback HTTP for who knows the token.
func TestCurlDelegatesToGrpcurl(t *testing.T) {
	t.Parallel()
	a, b := startPair(t)
	workWithGrpcurl(t, b, "shout")
	awaitSkill(t, a, "shout")

	for _, c := range []struct {
		name, url string
		args      []string
	}{
		{"socket", "http://localhost" + sendMethod, []string{"--unix-socket", a.Socket}},
		{"http-with-token", a.HTTP + sendMethod, []string{"-H", "Authorization: Bearer " + token(t, a)}},
	} {
		status, answer := curl(t, c.url, sendBody("shout", "hello by "+c.name, c.name), c.args...)
		var got sent
		if err := json.Unmarshal([]byte(answer), &got); status != 200 || err != nil {
			t.Fatalf("%s: %d, %v, %s", c.name, status, err, answer)
		}
		if want := strings.ToUpper("hello by " + c.name); got.Task.Task.Status.State != "TASK_STATE_COMPLETED" || got.text() != want {
			t.Errorf("%s: %s %q, want COMPLETED %q", c.name, got.Task.Task.Status.State, got.text(), want)
		}
		var receipt struct {
			Receipt struct{ DoerSignature, AskerSignature []byte }
		}
		call(t, a.Socket, "shoal.v1.TaskService/Receipt", `{"id":"`+got.Task.Task.ID+`"}`, &receipt)
		if len(receipt.Receipt.DoerSignature) != 64 || len(receipt.Receipt.AskerSignature) != 64 {
			t.Errorf("%s: the receipt is not signed by both", c.name)
		}
	}
}

// Loopback HTTP tells nothing and does nothing without the token. Each refusal is the
// accepted request with one thing changed.
func TestHTTPRefusals(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	auth := "Authorization: Bearer " + token(t, d)
	wrong := []byte(auth)
	wrong[len(wrong)-2] ^= 1 // not the last: some of its bits are padding
	const method = "/shoal.v1.NodeService/Status"

	if status, answer := curl(t, d.HTTP+method, `{}`, "-H", auth); status != 200 || !strings.Contains(answer, d.DID) {
		t.Fatalf("control: %d %s", status, answer)
	}
	cases := []struct {
		name   string
		url    string
		args   []string
		status int
		reason string
	}{
		{"no token", d.HTTP + method, nil, 401, "token_missing"},
		{"wrong token", d.HTTP + method, []string{"-H", string(wrong)}, 401, "token_wrong"},
		{"token in the URL", d.HTTP + method + "?token=" + token(t, d), nil, 401, "token_missing"},
		{"foreign page", d.HTTP + method, []string{"-H", auth, "-H", "Origin: http://evil.example"}, 403, "bad_origin"},
		{"rebound name", d.HTTP + method, []string{"-H", auth, "-H", "Host: evil.example"}, 403, "bad_host"},
		{"metrics", d.HTTP + "/metrics", []string{"-H", auth}, 404, "unknown_method"},
		{"reflection", d.HTTP + "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", []string{"-H", auth}, 404, "unknown_method"},
	}
	accepted := 0
	for _, c := range cases {
		status, answer := curl(t, c.url, `{}`, c.args...)
		if status == 200 {
			accepted++
		}
		if status != c.status || !strings.Contains(answer, `"`+c.reason+`"`) || strings.Contains(answer, d.DID) {
			t.Errorf("%s: %d %s, want %d %s", c.name, status, answer, c.status, c.reason)
		}
	}
	t.Logf("accepted %d of %d", accepted, len(cases))
}

// The token's file and the socket are the owner's alone, and without --http there is no
// port at all.
func TestHTTPOff(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, "--http", "off")
	if d.HTTP != "" {
		t.Errorf("the ready line tells of %s", d.HTTP)
	}
	var status struct{ DID, HTTP string }
	call(t, d.Socket, "shoal.v1.NodeService/Status", `{}`, &status)
	if status.DID != d.DID || status.HTTP != "" {
		t.Errorf("got %+v", status)
	}
}

// Reports of a session that is over, or for a task it does not hold, change nothing.
func TestGrpcurlReportWithoutTheTaskIsRefused(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	for session, want := range map[string]string{"": "session is missing", "AAAAAAAAAAAAAAAAAAAAAAAAAA": "unknown_session"} {
		cmd := grpcurl(t, d, "shoal.v1.WorkerService/Report", `{"session":"`+session+`","task_id":"x","requester":"`+d.DID+`","status":{"state":"TASK_STATE_COMPLETED"}}`)
		timer := time.AfterFunc(toolTimeout, func() { _ = cmd.Process.Kill() })
		out, err := cmd.CombinedOutput()
		timer.Stop()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("session %q: %v, %s", session, err, out)
		}
	}
}
