package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	shoal "github.com/shoalmesh/shoal"
)

const (
	maxStatement = 2 << 10 // bytes of one statement
	maxChain     = 64      // statements of one lineage
	maxReason    = 32
)

// ErrBadStatement says that a rotation or revocation is malformed or does not follow
// the statements before it.
var ErrBadStatement = shoal.NewError(shoal.Invalid, "bad_statement",
	"the rotation or revocation statement does not hold", "")

// Lineage is what a chain of rotation and revocation statements says about an identity
// that began as one key (spec/records.md §8). It is a value; no method changes it.
// Statements are of no network: a key that is lost is lost everywhere.
type Lineage struct {
	Keys    []shoal.AgentID // the first key, then each that took over; not to be changed
	Seq     uint64          // number of the last statement, 0 without one
	Head    [32]byte        // hash of the last statement, zero without one
	At      time.Time       // when the last statement was made, zero without one
	Revoked bool            // no key speaks for this identity any more
	Reason  string          // why, if Revoked
}

// statement is a rotation or a revocation. Its member names are its wire format.
type statement struct {
	Type string        `json:"type"` // the domain
	Root shoal.AgentID `json:"root"`
	Seq  uint64        `json:"seq"`
	Prev string        `json:"prev"` // base64url of the last statement's hash, "" for the first
	At   int64         `json:"at_ms"`

	Old shoal.AgentID `json:"old,omitempty"` // rotation
	New shoal.AgentID `json:"new,omitempty"` // rotation

	Key    shoal.AgentID `json:"key,omitempty"`    // revocation
	Reason string        `json:"reason,omitempty"` // revocation
}

// NewLineage returns the lineage of a key without statements.
func NewLineage(root shoal.AgentID) Lineage { return Lineage{Keys: []shoal.AgentID{root}} }

// VerifyChain checks all statements about root, oldest first, and returns what they
// say: with none, that root speaks for itself. They may come from anybody. It returns
// [ErrBadStatement] or [ErrBadSignature] for the first that does not hold.
func VerifyChain(root shoal.AgentID, chain [][]byte, now time.Time) (Lineage, error) {
	l := NewLineage(root)
	if len(chain) > maxChain {
		return l, ErrBadStatement.With("a chain of %d, at most %d", len(chain), maxChain)
	}
	for i, raw := range chain {
		next, err := l.Apply(raw, now)
		if err != nil {
			return l, fmt.Errorf("statement %d about %s: %w", i+1, root, err)
		}
		l = next
	}
	return l, nil
}

// Root returns the identity's first key, which stays its name.
func (l Lineage) Root() shoal.AgentID { return l.Keys[0] }

// Current returns the key that speaks for the identity, "" once it is revoked.
func (l Lineage) Current() shoal.AgentID {
	if l.Revoked {
		return ""
	}
	return l.Keys[len(l.Keys)-1]
}

// Rotate returns the next statement: that next takes over from old, which must be the
// current key. Both sign: old to give, next to prove that somebody holds it.
// It returns [ErrBadStatement] if Apply would refuse the statement at that time.
func (l Lineage) Rotate(old, next Key, at time.Time) ([]byte, error) {
	s := l.next(DomainRotation, at)
	s.Old, s.New = old.Agent(), next.Agent()
	return l.sign(s, at, map[string]Key{"signature": old, "proof": next})
}

// Revoke returns the last statement: that nothing signed by k, which must be the
// current key, counts any more. reason is a code such as "compromised" or "retired":
// 1 to 32 of a-z and '_'. It returns [ErrBadStatement] if Apply would refuse it.
func (l Lineage) Revoke(k Key, reason string, at time.Time) ([]byte, error) {
	s := l.next(DomainRevocation, at)
	s.Key, s.Reason = k.Agent(), reason
	return l.sign(s, at, map[string]Key{"signature": k})
}

// Apply checks the statement that follows and returns the lineage with it. raw may
// come from anybody; the signatures are checked over the JCS of the bytes received.
// It returns [ErrBadStatement] or [ErrBadSignature].
func (l Lineage) Apply(raw []byte, now time.Time) (Lineage, error) {
	if len(raw) > maxStatement {
		return l, ErrBadStatement.With("%d bytes, at most %d", len(raw), maxStatement)
	}
	o, err := parseObject(raw)
	if err != nil {
		return l, ErrBadStatement.Because(err)
	}
	message, err := o.canonical("signature", "proof")
	if err != nil {
		return l, ErrBadStatement.Because(err)
	}
	s, err := o.statement()
	if err != nil {
		return l, ErrBadStatement.Because(err)
	}
	if err := l.follows(s, now); err != nil {
		return l, ErrBadStatement.Because(err)
	}
	if err := s.verify(o, message); err != nil {
		return l, err
	}

	next := Lineage{
		Keys: l.Keys, Seq: s.Seq, Head: sha256.Sum256(message), At: time.UnixMilli(s.At).UTC(),
	}
	if Domain(s.Type) == DomainRotation {
		next.Keys = append(slices.Clone(l.Keys), s.New)
	} else {
		next.Revoked, next.Reason = true, s.Reason
	}
	return next, nil
}

// next returns a statement that follows the last, as far as that is known.
func (l Lineage) next(d Domain, at time.Time) statement {
	return statement{Type: string(d), Root: l.Root(), Seq: l.Seq + 1, Prev: l.prev(), At: at.UnixMilli()}
}

func (l Lineage) prev() string {
	if l.Seq == 0 {
		return ""
	}
	return encodeBase64(l.Head[:])
}

func (l Lineage) sign(s statement, at time.Time, signers map[string]Key) ([]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, ErrBadStatement.Because(err)
	}
	o, err := parseObject(text)
	if err != nil {
		return nil, ErrBadStatement.Because(err)
	}
	message, err := o.canonical()
	if err != nil {
		return nil, ErrBadStatement.Because(err)
	}
	for member, k := range signers {
		o[member] = json.RawMessage(`"` + encodeBase64(k.Sign(Domain(s.Type), "", message)) + `"`)
	}
	raw, err := o.canonical()
	if err != nil {
		return nil, ErrBadStatement.Because(err)
	}
	if _, err := l.Apply(raw, at); err != nil {
		return nil, err
	}
	return raw, nil
}

// statement reads the members; the form of each is checked by follows. Each type has
// its own members: a rotation with a key, or a revocation with a successor, says two
// things at once and is refused.
func (o object) statement() (s statement, err error) {
	known := make(object, len(o))
	for _, name := range []string{"type", "root", "seq", "prev", "at_ms", "old", "new", "key", "reason"} {
		if raw, ok := o[name]; ok {
			if bytes.Equal(raw, []byte("null")) {
				return s, fmt.Errorf("%q is null", name)
			}
			known[name] = raw
		}
	}
	want := []string{"old", "new"}
	other := []string{"key", "reason"}
	switch typ, _ := o.text("type"); Domain(typ) {
	case DomainRotation:
	case DomainRevocation:
		want, other = other, append(want, "proof")
	default:
		return s, fmt.Errorf("type %q", clip(typ))
	}
	for _, name := range append(want, "root", "seq", "prev", "at_ms") {
		if _, ok := o[name]; !ok {
			return s, fmt.Errorf("%q is missing", name)
		}
	}
	for _, name := range other {
		if _, ok := o[name]; ok {
			return s, fmt.Errorf("%q does not belong there", name)
		}
	}

	// Decoding from exact names: a Go struct would also take "SEQ" for "seq".
	text, err := json.Marshal(known)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(text, &s)
}

// follows checks that s is the statement after the last one.
func (l Lineage) follows(s statement, now time.Time) error {
	at := time.UnixMilli(s.At)
	switch {
	case l.Revoked:
		return errors.New("the identity is revoked: nothing follows")
	case s.Root != l.Root():
		return fmt.Errorf("it is about %s", clip(string(s.Root)))
	case s.Seq != l.Seq+1:
		return fmt.Errorf("number %d after %d", s.Seq, l.Seq)
	case s.Seq > maxChain:
		return fmt.Errorf("more than %d statements", maxChain)
	case s.Prev != l.prev():
		return errors.New("it follows another statement")
	case s.At < 0 || at.Before(l.At):
		return errors.New("it is older than the one before")
	case at.Sub(now) > ClockTolerance:
		return fmt.Errorf("it is from the future: %v", at.UTC())
	}

	current := l.Current()
	if Domain(s.Type) == DomainRevocation {
		if s.Key != current {
			return fmt.Errorf("%s is not the current key", clip(string(s.Key)))
		}
		return checkReason(s.Reason)
	}
	if s.Old != current {
		return fmt.Errorf("%s is not the current key", clip(string(s.Old)))
	}
	if slices.Contains(l.Keys, s.New) {
		return errors.New("a key does not come back")
	}
	_, err := shoal.ParseAgentID(string(s.New))
	return err
}

func checkReason(s string) error {
	ok := len(s) >= 1 && len(s) <= maxReason
	for i := range len(s) {
		ok = ok && (s[i] >= 'a' && s[i] <= 'z' || s[i] == '_')
	}
	if !ok {
		return fmt.Errorf("reason %q: use 1 to %d of a-z and '_'", clip(s), maxReason)
	}
	return nil
}

// verify checks the signatures that a statement of its type needs.
func (s statement) verify(o object, message []byte) error {
	if Domain(s.Type) == DomainRevocation {
		return s.verifyMember(o, "signature", s.Key, message)
	}
	if err := s.verifyMember(o, "signature", s.Old, message); err != nil {
		return err
	}
	return s.verifyMember(o, "proof", s.New, message)
}

func (s statement) verifyMember(o object, member string, id shoal.AgentID, message []byte) error {
	text, err := o.text(member)
	if err != nil {
		return ErrBadStatement.Because(err)
	}
	sig, err := decodeBase64(text)
	if err != nil {
		return ErrBadStatement.Because(err)
	}
	return Verify(id.PublicKey(), Domain(s.Type), "", message, sig)
}
