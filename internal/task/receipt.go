package task

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"

	"github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/store"
)

var errBadReceipt = shoal.NewError(shoal.Invalid, "bad_receipt", "the receipt does not fit the task", "")

// signReceipt makes the doer's receipt for a task that ends with ev.
func (e *Engine) signReceipt(tx *store.Tx, r *row, ev *wire.TaskEvent, now int64) ([]byte, error) {
	out, err := e.outputHashOf(tx, r, ev)
	if err != nil {
		return nil, err
	}
	return e.signHashed(r, out, now)
}

func (e *Engine) signHashed(r *row, out [32]byte, now int64) ([]byte, error) {
	in := sha256.Sum256(r.message)
	body, err := deterministic.Marshal(&wire.ReceiptBody{
		Version: 1, Network: e.cfg.Network, Requester: r.key.Requester.PublicKey(), Doer: r.doer.PublicKey(),
		TaskId: string(r.key.ID), Skill: r.skill, InputHash: in[:], OutputHash: out[:],
		State: int32(stateToPB(r.state)), Attempt: uint32(r.attempt), Class: uint32(r.class),
		SubmittedMs: r.created, StartedMs: r.started, FinishedMs: now,
	})
	if err != nil {
		return nil, err
	}
	key, ok := e.Keys.Key(r.doer)
	if !ok {
		return nil, shoal.NewError(shoal.Unavailable, "key_missing", "the key of agent "+string(r.doer)+" is not here", "")
	}
	return deterministic.Marshal(&wire.SignedReceipt{
		Body: body, DoerSignature: key.Sign(identity.DomainReceipt, e.cfg.Network, body),
	})
}

// outputHashOf hashes what the task delivered up to and with ev. The log is read only if
// artifacts came before ev.
func (e *Engine) outputHashOf(tx *store.Tx, r *row, ev *wire.TaskEvent) ([32]byte, error) {
	var f folded
	if r.artifacts > len(ev.GetArtifacts()) {
		var err error
		if f, err = foldEvents(tx, r); err != nil {
			return [32]byte{}, err
		}
	}
	place := map[string]int{}
	for i, raw := range f.artifacts {
		place[artifactID(raw)] = i
	}
	f.addArtifacts(place, ev.GetArtifacts())
	return outputHash(f.artifacts, ev.GetStatus()), nil
}

// countersign checks the doer's receipt against what the asker holds, signs it and posts
// it back. A receipt that does not fit ends nothing: the task is over either way, but
// the asker never signs it, and says so in the log.
func (e *Engine) countersign(tx *store.Tx, r *row, ev *wire.TaskEvent, raw []byte) error {
	signed, body, err := openReceipt(raw)
	if err == nil {
		err = e.fits(tx, r, ev, signed, body)
	}
	if err != nil {
		e.Log.Warn("receipt not countersigned", "task", r.key.ID, "agent", r.doer, "err", err)
		return nil
	}
	r.skill = body.GetSkill() // the asker may have left it to the doer
	key, ok := e.Keys.Key(r.key.Requester)
	if !ok {
		return shoal.NewError(shoal.Unavailable, "key_missing", "the key of agent "+string(r.key.Requester)+" is not here", "")
	}
	signed.AskerSignature = key.Sign(identity.DomainReceipt, e.cfg.Network, signed.GetBody())
	if r.receipt, err = deterministic.Marshal(signed); err != nil {
		return err
	}
	_, err = e.Outbox.PostLazy(tx, r.key.Requester, r.doer, Topic, encodeMail(&wire.TaskMail{
		TaskId: string(r.key.ID),
		Body:   &wire.TaskMail_Countersigned{Countersigned: &wire.Countersigned{Receipt: r.receipt}},
	}), 0)
	return err
}

// fits checks each field of a doer's receipt against the asker's own row and log, and
// the signature over the bytes received.
func (e *Engine) fits(tx *store.Tx, r *row, ev *wire.TaskEvent, s *wire.SignedReceipt, b *wire.ReceiptBody) error {
	in := sha256.Sum256(r.message)
	out, err := e.outputHashOf(tx, r, ev)
	if err != nil {
		return err
	}
	skillFits := b.GetSkill() == r.skill || r.skill == "" // "" let the doer choose
	switch {
	case b.GetVersion() != 1 || b.GetNetwork() != e.cfg.Network || b.GetTaskId() != string(r.key.ID):
		return errBadReceipt.With("version, network or task id differ")
	case !bytes.Equal(b.GetRequester(), r.key.Requester.PublicKey()) || !bytes.Equal(b.GetDoer(), r.doer.PublicKey()):
		return errBadReceipt.With("the parties differ")
	case !bytes.Equal(b.GetInputHash(), in[:]):
		return errBadReceipt.With("the input hash differs")
	case !bytes.Equal(b.GetOutputHash(), out[:]):
		return errBadReceipt.With("the output hash differs")
	case b.GetState() != int32(stateToPB(r.state)) || !skillFits || b.GetClass() != uint32(r.class) || b.GetPriceMicro() != 0:
		return errBadReceipt.With("state, skill, class or price differ")
	}
	return identity.Verify(r.doer.PublicKey(), identity.DomainReceipt, e.cfg.Network, s.GetBody(), s.GetDoerSignature())
}

// receiveCountersigned keeps the asker's signature beside the doer's.
func (e *Engine) receiveCountersigned(tx *store.Tx, env shoal.Envelope, key shoal.TaskKey, raw []byte) error {
	r, err := loadRow(tx, Doing, key)
	if err != nil {
		return err
	}
	if r.doer != env.To {
		return ErrNotFound.With("%s", clip(string(key.ID)))
	}
	theirs, _, err := openReceipt(raw)
	if err != nil {
		return err
	}
	ours, _, err := openReceipt(r.receipt)
	if err != nil {
		return ErrNoReceipt
	}
	if !bytes.Equal(theirs.GetBody(), ours.GetBody()) {
		return errBadReceipt.With("it is not the receipt that was sent")
	}
	if err := identity.Verify(env.From.PublicKey(), identity.DomainReceipt, e.cfg.Network, theirs.GetBody(), theirs.GetAskerSignature()); err != nil {
		return err
	}
	ours.AskerSignature = theirs.GetAskerSignature()
	if r.receipt, err = deterministic.Marshal(ours); err != nil {
		return err
	}
	_, err = tx.Exec(`UPDATE tasks SET receipt = ? WHERE row = ?`, r.receipt, r.row)
	role := r.role
	tx.AfterCommit(func() { e.hub.wake(role, key, true) })
	return err
}

// Receipt returns the receipt of a task that has ended, or [ErrNoReceipt]: a task that
// never reached its doer has none. Both hashes are computed again from what this node holds.
func (e *Engine) Receipt(ctx context.Context, ref Ref) (out SignedReceipt, err error) {
	err = e.DB.View(ctx, func(tx *store.Tx) error {
		r, err := findRow(tx, ref)
		if err != nil {
			return err
		}
		signed, b, err := openReceipt(r.receipt)
		if err != nil {
			return ErrNoReceipt
		}
		f, err := foldEvents(tx, &r)
		if err != nil {
			return err
		}
		in, have := sha256.Sum256(r.message), outputHash(f.artifacts, r.status)
		out = SignedReceipt{
			Receipt: receiptOf(b), Body: signed.GetBody(), DoerSignature: signed.GetDoerSignature(),
			AskerSignature: signed.GetAskerSignature(),
			InputMatches:   bytes.Equal(in[:], b.GetInputHash()), OutputMatches: bytes.Equal(have[:], b.GetOutputHash()),
		}
		return nil
	})
	return out, err
}

func openReceipt(raw []byte) (*wire.SignedReceipt, *wire.ReceiptBody, error) {
	var s wire.SignedReceipt
	var b wire.ReceiptBody
	err := errors.Join(proto.Unmarshal(raw, &s), proto.Unmarshal(s.GetBody(), &b))
	if err != nil || len(s.GetBody()) == 0 {
		return nil, nil, errBadReceipt.Because(err)
	}
	return &s, &b, nil
}

func receiptOf(b *wire.ReceiptBody) shoal.Receipt {
	r := shoal.Receipt{
		Network: b.GetNetwork(), Doer: shoal.AgentIDOf(b.GetDoer()), Skill: b.GetSkill(),
		State: stateFromPB(a2apb.TaskState(b.GetState())), Attempt: int(b.GetAttempt()), Class: shoal.Class(b.GetClass()),
		Submitted: fromMS(b.GetSubmittedMs()), Started: fromMS(b.GetStartedMs()), Finished: fromMS(b.GetFinishedMs()),
		Price: shoal.Amount(b.GetPriceMicro()),
	}
	r.Key.Requester, r.Key.ID = shoal.AgentIDOf(b.GetRequester()), taskID(b.GetTaskId())
	copy(r.InputHash[:], b.GetInputHash())
	copy(r.OutputHash[:], b.GetOutputHash())
	return r
}

// signLive is signReceipt for a task whose log is in memory.
func (e *Engine) signLive(lt *liveTask, ev *wire.TaskEvent, now int64) ([]byte, error) {
	f := folded{artifacts: append([][]byte(nil), lt.f.artifacts...)}
	place := map[string]int{}
	for id, i := range lt.place {
		place[id] = i
	}
	f.addArtifacts(place, ev.GetArtifacts())
	return e.signHashed(&lt.row, outputHash(f.artifacts, ev.GetStatus()), now)
}
