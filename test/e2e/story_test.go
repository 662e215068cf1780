//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/agent"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// person is a user with a HOME of their own, at a shell.
type person struct {
	t    *testing.T
	name string
	env  []string
	home string // of their daemon
}

func newPerson(t *testing.T, name string) *person {
	t.Helper()
	dir := tempHome(t)
	p := &person{t: t, name: name, home: filepath.Join(dir, ".shoal")}
	for _, kv := range cleanEnv() {
		if !strings.HasPrefix(kv, "HOME=") && !strings.HasPrefix(kv, "XDG_") {
			p.env = append(p.env, kv)
		}
	}
	p.env = append(p.env, "HOME="+dir)
	t.Cleanup(func() { p.down() })
	return p
}

// up is `shoal up -d`, as README says, on ports of its own.
func (p *person) up(args ...string) ready {
	p.t.Helper()
	var r ready
	p.json(&r, append([]string{"up", "-d", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"}, args...)...)
	return r
}

// down ends the person's daemon, by the API or else by its process id.
func (p *person) down() {
	if _, err := os.Stat(filepath.Join(p.home, "shoal.sock")); err != nil {
		return
	}
	if _, said, code := runCLI(p.t, p.env, "down"); code != 0 && code != 6 {
		p.t.Errorf("%s: shoal down exits %d: %s", p.name, code, said)
	}
}

// run is a command that must succeed; it returns stdout.
func (p *person) run(args ...string) string {
	p.t.Helper()
	out, said, code := runCLI(p.t, p.env, args...)
	if code != 0 {
		p.t.Fatalf("%s: shoal %s exits %d: %s", p.name, strings.Join(args, " "), code, said)
	}
	return out
}

// json is run with -o json; the first line goes into v.
func (p *person) json(v any, args ...string) {
	p.t.Helper()
	out := p.run(append(args, "-o", "json")...)
	line, _, _ := strings.Cut(out, "\n")
	if err := json.Unmarshal([]byte(line), v); err != nil {
		p.t.Fatalf("%s: shoal %s prints %q: %v", p.name, strings.Join(args, " "), out, err)
	}
}

// refused is a command that must exit with code and say reason, with -o json on stderr.
func (p *person) refused(code int, reason string, args ...string) {
	p.t.Helper()
	checkRefused(p.t, p.env, code, reason, args...)
}

func checkRefused(t *testing.T, env []string, code int, reason string, args ...string) {
	t.Helper()
	began := time.Now()
	// In front, so that a mistake behind it is told in JSON, too.
	out, said, got := runCLI(t, env, append([]string{"-o", "json"}, args...)...)
	var d struct {
		Kind, Reason, Message string
		ExitCode              int `json:"exit_code"`
	}
	lines := strings.Split(strings.TrimSpace(said), "\n")
	err := json.Unmarshal([]byte(lines[len(lines)-1]), &d)
	if got != code || err != nil || d.Reason != reason || d.ExitCode != code || d.Message == "" {
		t.Errorf("shoal %s: exit %d, reason %q (%v), want %d, %q\nstdout: %s\nstderr: %s",
			strings.Join(args, " "), got, d.Reason, err, code, reason, out, said)
		return
	}
	t.Logf("exit %d %-20s %5d ms  shoal %.70s", got, d.Reason, time.Since(began).Milliseconds(), strings.Join(args, " "))
}

type taskOut struct {
	ID        string `json:"id"`
	State     string `json:"state"`
	From      string `json:"from"`
	To        string `json:"to"`
	Artifacts json.RawMessage
}

// teach attaches a program of the person's to their daemon.
func (p *person) teach(cfg agent.Config, h agent.HandlerFunc) *worker {
	p.t.Helper()
	return attach(p.t, &daemon{t: p.t, name: p.name, home: p.home}, cfg, h)
}

// slowEcho streams its answer in pieces.
func slowEcho(ctx context.Context, t *agent.Task, w *agent.Writer) error {
	for word := range strings.FieldsSeq(t.Text()) {
		if _, err := w.WriteString(word + " "); err != nil {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// TestTwoPeopleAndAThird is the README's story: two join, one finds the other's agent and
// delegates, either restarts and all is there; a third comes late and finds it too.
func TestTwoPeopleAndAThird(t *testing.T) {
	alice, bob, carol := newPerson(t, "alice"), newPerson(t, "bob"), newPerson(t, "carol")
	bob.up()
	bob.teach(agent.Config{Name: "parrot", Skills: skills("repeat")}, slowEcho)
	link := strings.TrimSpace(bob.run("invite"))
	alice.up("--join", link)

	var found struct{ DID, Name string }
	eventually(t, 10*time.Second, "alice finds bob's agent", func() bool {
		out, _, code := runCLI(t, alice.env, "find", "repeat", "-o", "json")
		return code == 0 && json.Unmarshal([]byte(out), &found) == nil
	})
	text := "one two three four five"
	out := alice.run("task", "send", "--skill", "repeat", "--stream", text)
	if !strings.Contains(out, text) {
		t.Errorf("the stream printed %q, want it to contain %q", out, text)
	}
	var sent taskOut
	alice.json(&sent, "task", "send", "--to", found.DID, "--skill", "repeat", "--wait", text)
	same := func(when string) {
		t.Helper()
		var asked, doing taskOut
		alice.json(&asked, "task", "get", sent.ID)
		bob.json(&doing, "task", "get", sent.ID, "--role", "doing")
		for _, got := range []taskOut{asked, doing} {
			if got.State != sent.State || got.To != found.DID || !strings.Contains(string(got.Artifacts), text) {
				t.Errorf("%s, task %s is %+v, want %+v", when, sent.ID, got, sent)
			}
		}
		alice.run("task", "receipt", sent.ID, "--verify")
	}
	same("at first")
	alice.restart("--join", link)
	same("after the asker's restart")
	bob.restart()
	same("after the doer's restart")
	eventually(t, 20*time.Second, "a task after both restarts", func() bool {
		_, _, code := runCLI(t, alice.env, "task", "send", "--skill", "repeat", "--wait", "--timeout", "10s", "again")
		return code == 0
	})

	carol.up("--join", strings.TrimSpace(alice.run("invite")))
	eventually(t, 10*time.Second, "carol, who came late by way of alice, finds bob's agent", func() bool {
		out, _, code := runCLI(t, carol.env, "find", "repeat", "-o", "json")
		return code == 0 && strings.Contains(out, found.DID)
	})
	carol.run("task", "send", "--skill", "repeat", "--wait", "--timeout", "20s", "hello from carol")
}

// restart is `shoal down` and `shoal up`, on the port it had.
func (p *person) restart(args ...string) {
	p.t.Helper()
	var before ready
	var status struct{ Addrs []string }
	p.json(&status, "status")
	p.run("down")
	p.json(&before, append([]string{"up", "-d", "--listen", "127.0.0.1:" + udpPort(status.Addrs), "--http", "127.0.0.1:0"}, args...)...)
}

// TestRestoredNodeGoesOn backs a node up, lets it do more, and restores the backup
// elsewhere: who talks to it sees the same agent, and what it sends is taken in although
// it counts from an older state (its flows begin a new epoch).
func TestRestoredNodeGoesOn(t *testing.T) {
	a, b := startDaemon(t, "asker"), startDaemon(t, "doer")
	a.join(b)
	w := attach(t, b, agent.Config{Name: "worker", Skills: skills("work")}, echo)
	first := roundTrip(t, a, w.did, "work", "before the backup").GetTask().GetId()
	file := filepath.Join(t.TempDir(), "backup")
	if _, said, code := cli(t, a.home, "backup", file); code != 0 {
		t.Fatalf("backup exits %d: %s", code, said)
	}
	for i := range 5 {
		roundTrip(t, a, w.did, "work", fmt.Sprint("after the backup ", i))
	}
	old := a.ready
	a.kill()

	restored := newDaemon(t, "restored", filepath.Join(tempHome(t), "new"), a.args...)
	if _, said, code := cli(t, restored.home, "restore", file); code != 0 {
		t.Fatalf("restore exits %d: %s", code, said)
	}
	checkRefused(t, append(cleanEnv(), "SHOAL_HOME="+restored.home), 7, "home_not_empty", "restore", file)
	restored.listen = a.listen
	restored.start()
	if restored.ready.DID != old.DID {
		t.Errorf("the restored node is %s, want %s", restored.ready.DID, old.DID)
	}
	if out, said, code := cli(t, restored.home, "task", "get", first); code != 0 || !strings.Contains(out, "COMPLETED") {
		t.Errorf("the task from before the backup: exit %d: %s%s", code, out, said)
	}
	n := 5
	for i := range n {
		roundTrip(t, restored, w.did, "work", fmt.Sprint("after the restore ", i))
	}
	t.Logf("after the restore: COMPLETED %d of %d", n, n)
}

// TestSecondDaemonOnAHomeIsRefused starts two daemons on one home.
func TestSecondDaemonOnAHomeIsRefused(t *testing.T) {
	d := startDaemon(t, "first")
	checkRefused(t, cleanEnv(), 7, "data_dir_locked", "up", "--home", d.home, "--listen", "127.0.0.1:0", "--http", "off")
	checkRefused(t, cleanEnv(), 7, "data_dir_locked", "up", "-d", "--home", d.home, "--listen", "127.0.0.1:0", "--http", "off")
	checkRefused(t, cleanEnv(), 7, "port_busy", "up", "--home", filepath.Join(tempHome(t), "x"), "--listen", d.listen, "--http", "off")
	if _, said, code := cli(t, d.home, "status"); code != 0 {
		t.Errorf("the first daemon was disturbed: exit %d: %s", code, said)
	}
}

// TestExitCodes walks through the table of docs/design/cli.md.
func TestExitCodes(t *testing.T) {
	d, other := startDaemon(t, "node"), startDaemon(t, "other")
	d.join(other)
	attach(t, d, agent.Config{Name: "picky", Skills: skills("refuse")}, func(context.Context, *agent.Task, *agent.Writer) error {
		return agent.Reject("not_today", "I will not do this")
	})
	attach(t, d, agent.Config{Name: "broken", Skills: skills("break")}, func(context.Context, *agent.Task, *agent.Writer) error {
		return shoal.NewError(shoal.Internal, "broken", "it broke", "")
	})
	attach(t, d, agent.Config{Name: "slow", Skills: skills("wait"), Concurrency: 4}, func(ctx context.Context, _ *agent.Task, _ *agent.Writer) error {
		<-ctx.Done()
		return context.Cause(ctx)
	})
	env := append(cleanEnv(), "SHOAL_HOME="+d.home)
	is := func(code int, reason string, args ...string) {
		t.Helper()
		checkRefused(t, env, code, reason, args...)
	}

	is(3, "no_agent_found", "find", "nobody-does-this")
	is(3, "unknown_task", "task", "get", "no-such-task")
	is(3, "unknown_agent", "card", "show", "nobody")
	is(3, "no_agent", "task", "send", "--skill", "nobody-does-this", "x")
	is(3, "unknown_skill", "task", "send", "--to", "slow", "--skill", "nothing", "x")

	is(4, "not_today", "task", "send", "--to", "picky", "--wait", "x")
	is(4, "http_not_loopback", "up", "--home", filepath.Join(tempHome(t), "x"), "--listen", "127.0.0.1:0", "--http", "0.0.0.0:0")

	is(1, "broken", "task", "send", "--to", "broken", "--wait", "x")

	is(5, "wait_timeout", "task", "send", "--to", "slow", "--wait", "--timeout", "300ms", "x")
	is(5, "timeout", "task", "send", "--to", "slow", "--stream", "--timeout", "300ms", "x")

	is(6, "daemon_not_running", "status", "--home", filepath.Join(tempHome(t), "none"))
	is(6, "daemon_not_running", "task", "list", "--home", filepath.Join(tempHome(t), "none"))
	gone := attach(t, other, agent.Config{Name: "gone", Skills: skills("leave")}, echo).did
	eventually(t, 10*time.Second, "the node knows the other's agent", func() bool {
		_, _, code := runCLI(t, env, "find", "leave")
		return code == 0
	})
	other.stop()
	is(6, "unreachable", "ping", gone)
	is(6, "agent_unreachable", "task", "send", "--to", gone, "--live", "--wait", "x")

	is(2, "usage", "task", "send", "--nonsense", "x")
	is(2, "usage", "task", "sned", "x")
	is(2, "usage", "task", "send", "x")
	is(2, "usage", "task", "send", "--to", "slow", "--live", "--durable", "x")
	is(2, "usage", "task", "send", "--to", "slow", "--timeout", "-1s", "x")
	is(2, "usage", "find")
	is(2, "usage", "up", "--listen", "nonsense")
	is(2, "usage", "up", "--join", "nonsense")
	is(2, "bad_did", "task", "send", "--to", "did:key:zzz", "x")
	is(2, "bad_capability", "find", "NOT VALID")

	// Conflict: the task has ended.
	var sent taskOut
	out, _, _ := runCLI(t, env, "task", "send", "--to", "picky", "--wait", "-o", "json", "x")
	if err := json.Unmarshal([]byte(out), &sent); err != nil {
		t.Fatalf("task send prints %q: %v", out, err)
	}
	is(7, "task_terminal", "task", "cancel", sent.ID)
}

// TestCrashedFirstNodeFindsItsPeers kills the node that was there first, which never
// joined anybody, while its peer is idle and so does not notice. After the restart it
// knows whom it was connected with, and work flows both ways at once.
func TestCrashedFirstNodeFindsItsPeers(t *testing.T) {
	first, second := startDaemon(t, "first"), startDaemon(t, "second")
	second.join(first)
	onFirst := attach(t, first, agent.Config{Name: "one", Skills: skills("work")}, echo)
	onSecond := attach(t, second, agent.Config{Name: "two", Skills: skills("work")}, echo)
	roundTrip(t, first, onSecond.did, "work", "before")
	roundTrip(t, second, onFirst.did, "work", "before")
	eventually(t, 10*time.Second, "nothing is on its way any more", func() bool {
		a, err := first.node.Status(ctxFor(t, 5*time.Second), connect.NewRequest(&shoalv1.StatusRequest{}))
		b, err2 := second.node.Status(ctxFor(t, 5*time.Second), connect.NewRequest(&shoalv1.StatusRequest{}))
		return err == nil && err2 == nil && a.Msg.GetOutbox() == 0 && b.Msg.GetOutbox() == 0
	})
	first.kill()
	first.start()

	const most = 8 * time.Second // an idle QUIC connection is given up after 30 s
	began := time.Now()
	roundTrip(t, first, onSecond.did, "work", "after")
	there := time.Since(began)
	roundTrip(t, second, onFirst.did, "work", "after")
	back := time.Since(began) - there
	t.Logf("after kill -9 of the first node: a task from it took %d ms, one to it %d ms", there.Milliseconds(), back.Milliseconds())
	if there > most || back > most {
		t.Errorf("it took %v and %v, at most %v", there, back, most)
	}
}
