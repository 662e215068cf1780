package shoal

import (
	"crypto/ed25519"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"google.golang.org/protobuf/encoding/protowire"
)

// Errors of [VerifyReceipt].
var (
	// ErrBadReceipt says that a receipt's body is not what spec/records.md §5 allows.
	ErrBadReceipt = NewError(Corrupt, "bad_receipt", "receipt is malformed",
		"ask the node for it again with `shoal task receipt ID -o json`")
	// ErrReceiptSignature says that a receipt was not signed by whom it names.
	ErrReceiptSignature = NewError(Corrupt, "bad_signature", "receipt has a wrong signature",
		"do not rely on it: it was altered, or signed by someone else")
	// ErrReceiptNetwork says that a receipt is about another mesh.
	ErrReceiptNetwork = NewError(Corrupt, "wrong_network", "receipt belongs to another network", "")
)

const (
	receiptVersion = 1
	receiptDomain  = "shoal/receipt/v1"
	// MaxReceipt bounds a receipt's body in bytes. The longest honest one has under
	// 700: two keys, two hashes, an id, a skill and a network of 64 bytes each.
	MaxReceipt = 4096
)

// VerifyReceipt checks that body is a well-formed receipt of network, signed by its
// doer and, unless askerSig is empty, by its asker, and returns what it says. It needs
// no daemon and no network.
//
// body is the ReceiptBody of proto/shoal/wire/v1 as received: the signatures are over
// these bytes, so unknown, repeated or out-of-order fields are refused rather than
// dropped. An empty askerSig means "not countersigned yet"; a caller that relies on the
// asker must insist on one. It returns [ErrBadReceipt], [ErrReceiptNetwork] or
// [ErrReceiptSignature].
func VerifyReceipt(body, doerSig, askerSig []byte, network string) (Receipt, error) {
	r, err := parseReceipt(body)
	if err != nil {
		return Receipt{}, err
	}
	if r.Network != network {
		return Receipt{}, ErrReceiptNetwork.With("%q, not %q", r.Network, network)
	}

	input := receiptSigningInput(network, body)
	if !verifies(r.Doer, input, doerSig) {
		return Receipt{}, ErrReceiptSignature.With("of the doer %s", r.Doer)
	}
	if len(askerSig) > 0 && !verifies(r.Key.Requester, input, askerSig) {
		return Receipt{}, ErrReceiptSignature.With("of the asker %s", r.Key.Requester)
	}
	return r, nil
}

func verifies(who AgentID, input, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize && ed25519.Verify(who.PublicKey(), input, sig)
}

// receiptSigningInput is the format of every signature on the mesh (spec/records.md §2).
// parseReceipt has bounded the network's length to one byte.
func receiptSigningInput(network string, body []byte) []byte {
	in := []byte("shoal-signature-v1\n")
	in = append(in, byte(len(receiptDomain)))
	in = append(in, receiptDomain...)
	in = append(in, byte(len(network)))
	in = append(in, network...)
	return append(in, body...)
}

// Field numbers of ReceiptBody in proto/shoal/wire/v1/wire.proto.
const (
	fieldVersion    protowire.Number = 1
	fieldNetwork    protowire.Number = 2
	fieldRequester  protowire.Number = 3
	fieldDoer       protowire.Number = 4
	fieldTaskID     protowire.Number = 5
	fieldSkill      protowire.Number = 6
	fieldInputHash  protowire.Number = 7
	fieldOutputHash protowire.Number = 8
	fieldState      protowire.Number = 9
	fieldAttempt    protowire.Number = 10
	fieldClass      protowire.Number = 11
	fieldSubmitted  protowire.Number = 12
	fieldStarted    protowire.Number = 13
	fieldFinished   protowire.Number = 14
	fieldPrice      protowire.Number = 15
)

// rawReceipt is a body split into fields, nothing checked but its form.
type rawReceipt struct {
	bytes map[protowire.Number][]byte
	ints  map[protowire.Number]uint64
}

// splitReceipt accepts only known fields, each once, in ascending order, as every
// protobuf library writes them.
func splitReceipt(body []byte) (rawReceipt, error) {
	raw := rawReceipt{bytes: map[protowire.Number][]byte{}, ints: map[protowire.Number]uint64{}}
	if len(body) > MaxReceipt {
		return raw, ErrBadReceipt.With("%d bytes, at most %d", len(body), MaxReceipt)
	}
	last := protowire.Number(0)
	for len(body) > 0 {
		num, typ, n := protowire.ConsumeTag(body)
		if n < 0 {
			return raw, ErrBadReceipt.Because(protowire.ParseError(n))
		}
		body = body[n:]
		if num > fieldPrice {
			return raw, ErrBadReceipt.With("unknown field %d", num)
		}
		if num <= last {
			return raw, ErrBadReceipt.With("field %d is repeated or out of order", num)
		}
		last = num

		want := protowire.VarintType
		if num >= fieldNetwork && num <= fieldOutputHash {
			want = protowire.BytesType
		}
		if typ != want {
			return raw, ErrBadReceipt.With("field %d has wire type %d, not %d", num, typ, want)
		}
		if want == protowire.BytesType {
			raw.bytes[num], n = protowire.ConsumeBytes(body)
		} else {
			raw.ints[num], n = protowire.ConsumeVarint(body)
		}
		if n < 0 {
			return raw, ErrBadReceipt.With("field %d", num).Because(protowire.ParseError(n))
		}
		body = body[n:]
	}
	return raw, nil
}

func parseReceipt(body []byte) (Receipt, error) {
	raw, err := splitReceipt(body)
	if err != nil {
		return Receipt{}, err
	}
	if v := raw.ints[fieldVersion]; v != receiptVersion {
		return Receipt{}, ErrBadReceipt.With("version %d, want %d", v, receiptVersion)
	}

	p := receiptParser{raw: raw}
	r := Receipt{
		Network:    p.text(fieldNetwork, "network", 255),
		Key:        TaskKey{Requester: p.agent(fieldRequester, "requester"), ID: a2a.TaskID(p.text(fieldTaskID, "task_id", 255))},
		Doer:       p.agent(fieldDoer, "doer"),
		Skill:      p.text(fieldSkill, "skill", 255),
		InputHash:  p.hash(fieldInputHash, "input_hash"),
		OutputHash: p.hash(fieldOutputHash, "output_hash"),
		State:      p.state(),
		Attempt:    int(p.number(fieldAttempt, "attempt", 1<<31-1)),
		Class:      Class(p.number(fieldClass, "class", uint64(Live))),
		Submitted:  p.time(fieldSubmitted, "submitted_ms"),
		Started:    p.time(fieldStarted, "started_ms"),
		Finished:   p.time(fieldFinished, "finished_ms"),
		Price:      Amount(p.number(fieldPrice, "price_micro", 1<<63-1)),
	}
	if p.err == nil && r.Key.ID == "" {
		p.fail("task_id is missing")
	}
	return r, p.err
}

// receiptParser turns raw fields into checked values; its first failure sticks.
type receiptParser struct {
	raw rawReceipt
	err error
}

func (p *receiptParser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = ErrBadReceipt.With(format, args...)
	}
}

func (p *receiptParser) text(n protowire.Number, name string, limit int) string {
	b := p.raw.bytes[n]
	if len(b) > limit || !utf8.Valid(b) {
		p.fail("%s is longer than %d bytes or not UTF-8", name, limit)
		return ""
	}
	return string(b)
}

func (p *receiptParser) agent(n protowire.Number, name string) AgentID {
	b := p.raw.bytes[n]
	if len(b) != ed25519.PublicKeySize {
		p.fail("%s has %d bytes, want %d", name, len(b), ed25519.PublicKeySize)
		return ""
	}
	if CheckKey(b) != nil {
		p.fail("%s is a weak key", name)
		return ""
	}
	return AgentIDOf(b)
}

func (p *receiptParser) hash(n protowire.Number, name string) (h [32]byte) {
	b := p.raw.bytes[n]
	if len(b) != len(h) {
		p.fail("%s has %d bytes, want %d", name, len(b), len(h))
		return h
	}
	return [32]byte(b)
}

func (p *receiptParser) number(n protowire.Number, name string, limit uint64) uint64 {
	v := p.raw.ints[n]
	if v > limit {
		p.fail("%s is out of range", name)
		return 0
	}
	return v
}

// time reads Unix milliseconds; 0 is the zero time.
func (p *receiptParser) time(n protowire.Number, name string) time.Time {
	ms := p.number(n, name, 253402300799999) // the end of year 9999, RFC 3339's last
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms)).UTC()
}

// state reads lf.a2a.v1.TaskState; only what ends a task has a receipt.
func (p *receiptParser) state() a2a.TaskState {
	switch v := p.raw.ints[fieldState]; v {
	case 3:
		return a2a.TaskStateCompleted
	case 4:
		return a2a.TaskStateFailed
	case 5:
		return a2a.TaskStateCanceled
	case 7:
		return a2a.TaskStateRejected
	default:
		p.fail("state %s is not terminal", fmt.Sprint(v))
		return ""
	}
}
