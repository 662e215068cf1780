package identity

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	shoal "github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	// MaxRecordValue is the size limit of a record's value in bytes.
	MaxRecordValue = 8 << 10
	// MaxRecordLife bounds a record's validity, so that a lost key's last word ends.
	MaxRecordLife = 366 * 24 * time.Hour
	// ClockTolerance is how far two nodes' clocks may differ.
	ClockTolerance = 2 * time.Minute

	recordVersion = 1
	maxKind       = 32
	maxRecord     = MaxRecordValue + 1024 // value, envelope and fields of later versions
)

// Errors of records and statements.
var (
	ErrBadRecord    = shoal.NewError(shoal.Invalid, "bad_record", "the record is malformed", "")
	ErrWrongNetwork = shoal.NewError(shoal.Invalid, "wrong_network", "it belongs to another network", "")
	ErrExpired      = shoal.NewError(shoal.Invalid, "expired", "it is no longer valid",
		"if it should be, compare the clocks of the two nodes")
	ErrNotYetValid = shoal.NewError(shoal.Invalid, "not_yet_valid", "it is not valid yet",
		"compare the clocks of the two nodes")
)

// SignRecord returns r as bytes of wire.Record signed by k for network. Times are kept
// to the millisecond. It returns [ErrBadRecord] if r.Owner is not k's agent or
// OpenRecord would refuse r for its form.
func SignRecord(k Key, network string, r shoal.Record) ([]byte, error) {
	if r.Owner != k.Agent() {
		return nil, ErrBadRecord.With("owner %q does not have the signing key", r.Owner)
	}
	body := &wire.RecordBody{
		Version: recordVersion, Network: network, Kind: r.Kind, Owner: k.Public(), Seq: r.Seq,
		NotBeforeMs: r.NotBefore.UnixMilli(), NotAfterMs: r.NotAfter.UnixMilli(), Value: r.Value,
	}
	if err := checkRecord(body); err != nil {
		return nil, ErrBadRecord.Because(err)
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return nil, ErrBadRecord.Because(err)
	}
	return appendRecord(raw, k.Sign(DomainRecord, network, raw)), nil
}

// OpenRecord checks bytes of wire.Record, which may come from anybody, and returns the
// record, whose value does not share memory with raw. The signature is checked over
// the body as received. There is one encoding of a body and its signature: a copy with
// anything added is refused.
// It returns [ErrBadRecord], [ErrWrongNetwork], [ErrBadSignature], [ErrExpired] or
// [ErrNotYetValid]; the last two only for a record that is genuine, with
// [ClockTolerance] on either side.
func OpenRecord(network string, raw []byte, now time.Time) (shoal.Record, error) {
	var none shoal.Record
	if len(raw) > maxRecord {
		return none, ErrBadRecord.With("%d bytes", len(raw))
	}
	var outer wire.Record
	if err := proto.Unmarshal(raw, &outer); err != nil {
		return none, ErrBadRecord.Because(err)
	}
	if !bytes.Equal(raw, appendRecord(outer.GetBody(), outer.GetSignature())) {
		return none, ErrBadRecord.With("it is not in canonical form")
	}
	var body wire.RecordBody
	if err := proto.Unmarshal(outer.GetBody(), &body); err != nil {
		return none, ErrBadRecord.Because(err)
	}

	if err := checkRecord(&body); err != nil {
		return none, ErrBadRecord.Because(err)
	}
	if body.GetNetwork() != network {
		return none, ErrWrongNetwork.With("%q", clip(body.GetNetwork()))
	}
	owner := ed25519.PublicKey(body.GetOwner())
	if err := Verify(owner, DomainRecord, network, outer.GetBody(), outer.GetSignature()); err != nil {
		return none, err
	}

	r := shoal.Record{
		Kind: body.GetKind(), Owner: shoal.AgentIDOf(owner), Seq: body.GetSeq(),
		NotBefore: time.UnixMilli(body.GetNotBeforeMs()).UTC(),
		NotAfter:  time.UnixMilli(body.GetNotAfterMs()).UTC(),
		Value:     body.GetValue(),
	}
	return r, checkTimes(r.NotBefore, r.NotAfter, now)
}

// checkRecord checks a body's form, whoever signed it.
func checkRecord(b *wire.RecordBody) error {
	switch life := b.GetNotAfterMs() - b.GetNotBeforeMs(); {
	case b.GetVersion() != recordVersion:
		return fmt.Errorf("version %d", b.GetVersion())
	case !validKind(b.GetKind()):
		return fmt.Errorf("kind %q: use 1 to %d of a-z, 0-9, '-'", clip(b.GetKind()), maxKind)
	case len(b.GetNetwork()) > 255:
		return errors.New("the network's name is too long")
	case len(b.GetValue()) > MaxRecordValue:
		return fmt.Errorf("a value of %d bytes, at most %d", len(b.GetValue()), MaxRecordValue)
	case b.GetNotBeforeMs() < 0, b.GetNotAfterMs() < 0:
		return errors.New("a time before 1970")
	case life <= 0:
		return errors.New("it ends before it begins")
	case life > MaxRecordLife.Milliseconds():
		return fmt.Errorf("valid for more than %v", MaxRecordLife)
	}
	return shoal.CheckKey(b.GetOwner())
}

func validKind(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= maxKind
}

func checkTimes(notBefore, notAfter, now time.Time) error {
	if early := notBefore.Sub(now); early > ClockTolerance {
		return ErrNotYetValid.With("it begins in %v", early.Round(time.Second))
	}
	if late := now.Sub(notAfter); late > ClockTolerance {
		return ErrExpired.With("it ended %v ago", late.Round(time.Second))
	}
	return nil
}

// appendRecord encodes wire.Record in its one form: body, then signature.
func appendRecord(body, sig []byte) []byte {
	b := make([]byte, 0, len(body)+len(sig)+16)
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendBytes(b, body)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	return protowire.AppendBytes(b, sig)
}
