package task

import (
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/store"
)

// Schema returns the tables of this package. Bodies stand in rows with growing keys;
// the unique index holds ids only.
func Schema() store.Schema {
	return store.Schema{Package: "task", Steps: []string{`
CREATE TABLE tasks (
	row INTEGER PRIMARY KEY,
	role INTEGER NOT NULL, requester TEXT NOT NULL, id TEXT NOT NULL, doer TEXT NOT NULL,
	context_id TEXT NOT NULL, skill TEXT NOT NULL, class INTEGER NOT NULL, trace TEXT NOT NULL,
	state INTEGER NOT NULL, attempt INTEGER NOT NULL, queued INTEGER NOT NULL, held INTEGER NOT NULL,
	canceling INTEGER NOT NULL, reason TEXT NOT NULL,
	created_ms INTEGER NOT NULL, started_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
	timeout_ms INTEGER NOT NULL, deadline_ms INTEGER NOT NULL, delivery INTEGER NOT NULL,
	n INTEGER NOT NULL, peer_n INTEGER NOT NULL, artifacts INTEGER NOT NULL,
	idem TEXT, request_hash BLOB, message BLOB NOT NULL, status BLOB, receipt BLOB
);
CREATE UNIQUE INDEX tasks_key ON tasks (role, requester, id);
CREATE UNIQUE INDEX tasks_idem ON tasks (requester, idem) WHERE idem IS NOT NULL;
CREATE INDEX tasks_updated ON tasks (updated_ms, row);
CREATE INDEX tasks_queued ON tasks (doer, row) WHERE queued = 1;
CREATE INDEX tasks_open ON tasks (role, row) WHERE state IN (1, 2, 6, 8);
CREATE TABLE task_events (
	task INTEGER NOT NULL, n INTEGER NOT NULL, at_ms INTEGER NOT NULL, kind INTEGER NOT NULL, body BLOB NOT NULL,
	PRIMARY KEY (task, n)
) WITHOUT ROWID;
`}}
}

// kinds of event rows.
const (
	eventStep    = 1 // body: wire.TaskEvent, artifacts and then a status
	eventMessage = 2 // body: lf.a2a.v1.Message of the asker
)

const (
	deliveryNone = iota // Doing, or live
	deliveryQueued
	deliveryDone
	deliveryFailed
)

var deliveryNames = [...]string{"", "queued", "delivered", "undeliverable"}

// row is a line of the table tasks. It embeds the machine that step works on.
type row struct {
	machine
	row       int64
	key       shoal.TaskKey
	doer      shoal.AgentID
	contextID string
	skill     string
	class     shoal.Class
	trace     string
	created   int64 // ms, as all times here
	started   int64
	updated   int64
	timeout   int64
	deadline  int64
	delivery  int
	n         uint64 // last event
	peerN     uint64 // Asked: last event of the doer that was applied
	artifacts int    // how many artifact versions the events hold
	message   []byte
	status    []byte // of the last step that had one
	receipt   []byte // wire.SignedReceipt
}

const rowColumns = `row, role, requester, id, doer, context_id, skill, class, trace, state, attempt, queued, held,
	canceling, reason, created_ms, started_ms, updated_ms, timeout_ms, deadline_ms, delivery, n, peer_n, artifacts,
	message, status, receipt`

func (r *row) dest(state *int32) []any {
	return []any{
		&r.row, (*uint8)(&r.role), (*string)(&r.key.Requester), (*string)(&r.key.ID), (*string)(&r.doer),
		&r.contextID, &r.skill, (*uint8)(&r.class), &r.trace, state, &r.attempt, &r.queued, &r.held,
		&r.canceling, &r.reason, &r.created, &r.started, &r.updated, &r.timeout, &r.deadline, &r.delivery,
		&r.n, &r.peerN, &r.artifacts, &r.message, &r.status, &r.receipt,
	}
}

// loadRow returns the task of a role, or ErrNotFound.
func loadRow(tx *store.Tx, role Role, key shoal.TaskKey) (row, error) {
	var r row
	var state int32
	ok, err := tx.One(`SELECT `+rowColumns+` FROM tasks WHERE role = ? AND requester = ? AND id = ?`,
		[]any{uint8(role), string(key.Requester), string(key.ID)}, r.dest(&state)...)
	if err != nil {
		return row{}, err
	}
	if !ok {
		return row{}, ErrNotFound.With("%s", clip(string(key.ID)))
	}
	r.state = stateFromPB(stateNumber(state))
	return r, nil
}

// findRow resolves a Ref: the row of the role if one is given, else Asked before Doing.
func findRow(tx *store.Tx, ref Ref) (row, error) {
	q := `SELECT ` + rowColumns + ` FROM tasks WHERE role = ? AND id = ?`
	roles := []Role{Asked, Doing}
	if ref.Role != 0 {
		roles = []Role{ref.Role}
	}
	if ref.Requester != "" {
		for _, role := range roles {
			r, err := loadRow(tx, role, shoal.TaskKey{Requester: ref.Requester, ID: ref.ID})
			if err == nil || !isNotFound(err) {
				return r, err
			}
		}
		return row{}, ErrNotFound.With("%s", clip(string(ref.ID)))
	}
	for _, role := range roles {
		var found []row
		err := tx.Each(q+` LIMIT 2`, []any{uint8(role), string(ref.ID)}, func(scan func(...any) error) error {
			var r row
			var state int32
			if err := scan(r.dest(&state)...); err != nil {
				return err
			}
			r.state = stateFromPB(stateNumber(state))
			found = append(found, r)
			return nil
		})
		switch {
		case err != nil:
			return row{}, err
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return row{}, shoal.NewError(shoal.Conflict, "ambiguous_task", "several askers used this task id",
				"name the requester too")
		}
	}
	return row{}, ErrNotFound.With("%s", clip(string(ref.ID)))
}

// insertRow stores a new task and sets r.row.
func insertRow(tx *store.Tx, r *row, idem string, requestHash []byte) error {
	var key any
	if idem != "" {
		key = idem
	}
	id, err := tx.Insert(`INSERT INTO tasks (role, requester, id, doer, context_id, skill, class, trace, state, attempt,
		queued, held, canceling, reason, created_ms, started_ms, updated_ms, timeout_ms, deadline_ms, delivery, n, peer_n,
		artifacts, idem, request_hash, message, status, receipt)
		VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
		uint8(r.role), string(r.key.Requester), string(r.key.ID), string(r.doer), r.contextID, r.skill, uint8(r.class),
		r.trace, int32(stateToPB(r.state)), r.attempt, r.queued, r.held, r.canceling, r.reason, r.created, r.started,
		r.updated, r.timeout, r.deadline, r.delivery, r.n, r.peerN, r.artifacts, key, requestHash, r.message, r.status, r.receipt)
	r.row = id
	return err
}

// saveRow writes back what a step can change.
func saveRow(tx *store.Tx, r *row) error {
	_, err := tx.Exec(`UPDATE tasks SET skill = ?, state = ?, attempt = ?, queued = ?, held = ?, canceling = ?, reason = ?,
		started_ms = ?, updated_ms = ?, deadline_ms = ?, delivery = ?, n = ?, peer_n = ?, artifacts = ?, status = ?, receipt = ?
		WHERE row = ?`,
		r.skill, int32(stateToPB(r.state)), r.attempt, r.queued, r.held, r.canceling, r.reason, r.started, r.updated,
		r.deadline, r.delivery, r.n, r.peerN, r.artifacts, r.status, r.receipt, r.row)
	return err
}

// addEvent appends to the task's log and moves its cursor.
func addEvent(tx *store.Tx, r *row, kind int, body []byte, now int64) error {
	r.n++
	_, err := tx.Exec(`INSERT INTO task_events (task, n, at_ms, kind, body) VALUES (?,?,?,?,?)`,
		r.row, r.n, now, kind, body)
	return err
}

// logged is an event row.
type logged struct {
	n    uint64
	at   int64
	kind int
	body []byte
}

func eventsAfter(tx *store.Tx, task int64, after uint64, limit int) ([]logged, error) {
	var out []logged
	err := tx.Each(`SELECT n, at_ms, kind, body FROM task_events WHERE task = ? AND n > ? ORDER BY n LIMIT ?`,
		[]any{task, after, limit}, func(scan func(...any) error) error {
			var l logged
			if err := scan(&l.n, &l.at, &l.kind, &l.body); err != nil {
				return err
			}
			out = append(out, l)
			return nil
		})
	return out, err
}

// view returns the row as a Task without history and artifacts.
func (r *row) view() (Task, error) {
	t := Task{
		Key: r.key, Role: r.role, Doer: r.doer, ContextID: r.contextID, Skill: r.skill, Class: r.class,
		State: r.state, Attempt: r.attempt, Reason: r.reason, Created: fromMS(r.created), Updated: fromMS(r.updated),
		StatusAt: fromMS(r.updated), Delivery: deliveryNames[r.delivery], Cursor: r.n,
	}
	if len(r.status) > 0 {
		s, err := decodeStatus(r.status)
		if err != nil {
			return Task{}, err
		}
		t.StatusMessage, t.StatusAt = s.msg, s.at
	}
	return t, nil
}

func fromMS(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

func validID(id a2a.TaskID) bool { return len(id) > 0 && len(id) <= 128 }
