package node

import (
	"context"
	"encoding/hex"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/api"
	"github.com/shoalmesh/shoal/internal/mail"
	"github.com/shoalmesh/shoal/internal/store"
)

// oldMail is how long an envelope may wait before status calls the node degraded.
const oldMail = 1000

// Status tells who the node is and how it does.
func (n *node) Status(ctx context.Context) (api.Status, error) {
	st, err := n.mail.Stats(ctx)
	if err != nil {
		return api.Status{}, err
	}
	open, err := n.tasks.Open(ctx)
	if err != nil {
		return api.Status{}, err
	}
	s := api.Status{
		Agent: n.did(), Node: n.mesh.ID(), Network: n.cfg.Network, Addrs: n.mesh.Addrs(), HTTP: n.httpURL(), Socket: n.socket,
		Home: n.home, State: "connected", Peers: len(n.mesh.Peers()), Agents: len(n.workers.Agents()),
		Outbox: st.Outbox, DeadLetters: st.DeadLetters, TasksOpen: open, Started: n.began, RSS: residentBytes(),
	}
	if s.Peers == 0 {
		s.State = "alone"
	}
	if s.Outbox > oldMail {
		s.State = "degraded"
		s.Problems = append(s.Problems, strconv.Itoa(s.Outbox)+" envelopes wait to be delivered: see `shoal peers` for who is connected")
	}
	return s, nil
}

// Peers lists the connected nodes.
func (n *node) Peers(context.Context) ([]api.Peer, error) {
	var out []api.Peer
	for _, p := range n.mesh.Peers() {
		out = append(out, api.Peer{ID: p.ID, Addr: p.Addr, Direction: p.Direction, Path: p.Path, RTT: p.RTT})
	}
	return out, nil
}

// Ping measures a round trip to a node.
func (n *node) Ping(ctx context.Context, id shoal.NodeID) (string, time.Duration, error) {
	return n.mesh.Ping(ctx, id)
}

// Invite returns a link with this node's addresses.
func (n *node) Invite(context.Context) (string, error) { return n.mesh.Invite().String(), nil }

// Shutdown stops the daemon in order.
func (n *node) Shutdown(context.Context) error {
	n.log.Info("asked to shut down")
	n.stop()
	return nil
}

// Backup writes database and keys to a file.
func (n *node) Backup(ctx context.Context, path string) (int64, error) {
	return backup(ctx, n.db, n.home, path)
}

// Logs emits log lines.
func (n *node) Logs(ctx context.Context, tail int, follow bool, emit func(string) error) error {
	return n.logs.Logs(ctx, tail, follow, emit)
}

// letters is MailService over the mailbox.
type letters struct{ n *node }

// Post stores letters in one transaction; one that mail refuses does not hold up the rest.
func (l letters) Post(ctx context.Context, in []api.Letter) []api.Posted {
	out := make([]api.Posted, len(in))
	err := l.n.db.Update(ctx, func(tx *store.Tx) error {
		for i, letter := range in {
			done := func(state mail.State, reason string) {
				if state != mail.Stored {
					letter.Done(string(state), reason)
				}
			}
			id, err := l.n.mail.PostWatch(tx, letter.From, letter.To, mail.TopicLetter, letter.Body, letter.TTL, done)
			var refused *shoal.Error
			if err != nil && !errors.As(err, &refused) {
				return err // not the letter's fault: nothing of this is kept
			}
			out[i] = api.Posted{ID: hex.EncodeToString(id[:]), Err: err}
		}
		return nil
	})
	if err != nil {
		for i := range out {
			out[i] = api.Posted{Err: err}
		}
	}
	return out
}

// Inbox lists letters that were not acknowledged.
func (l letters) Inbox(ctx context.Context, agent shoal.AgentID, after uint64, limit int) ([]api.Received, error) {
	got, err := l.n.mail.Inbox(ctx, agent, after, limit)
	out := make([]api.Received, 0, len(got))
	for _, g := range got {
		out = append(out, api.Received{
			Cursor: g.Cursor, ID: hex.EncodeToString(g.ID[:]), From: g.From, To: g.To, Body: g.Body,
			Created: g.Created, Received: g.Received,
		})
	}
	return out, err
}

// Ack removes letters from the inbox.
func (l letters) Ack(ctx context.Context, agent shoal.AgentID, cursors []uint64) error {
	return l.n.mail.Ack(ctx, agent, cursors)
}

// DeadLetters lists envelopes that were given up.
func (l letters) DeadLetters(ctx context.Context, after string, limit int) ([]api.DeadLetter, string, error) {
	got, next, err := l.n.mail.DeadLetters(ctx, after, limit)
	out := make([]api.DeadLetter, 0, len(got))
	for _, g := range got {
		out = append(out, api.DeadLetter{
			ID: hex.EncodeToString(g.ID[:]), From: g.From, To: g.To, Topic: g.Topic, Seq: g.Seq,
			Reason: g.Reason, Created: g.Created, Dead: g.Dead,
		})
	}
	return out, next, err
}

// residentBytes reads the process's memory from /proc; 0 where there is none.
func residentBytes() uint64 {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(raw))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}
