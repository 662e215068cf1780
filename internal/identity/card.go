package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/a2aproject/a2a-go/v2/a2a"
	shoal "github.com/shoalmesh/shoal"
)

// MaxCard is the size limit of a signed card in bytes, as carried.
const MaxCard = 8 << 10

// maxSignatures bounds the signatures of one card; one of them is its agent's.
const maxSignatures = 4

// ErrBadCard says that a card is malformed, so that nobody may sign or believe it.
var ErrBadCard = shoal.NewError(shoal.Invalid, "bad_card", "the agent card is malformed", "")

// protectedHeader is the JWS header that we write. Its members are in canonical order.
type protectedHeader struct {
	Alg string `json:"alg"`
	Kid string `json:"kid"`
	Typ string `json:"typ"`
}

// SignCard returns card as JSON in canonical form with the signature of k, its agent,
// in place of any that it had: a JWS (RFC 7515, EdDSA) over the JCS (RFC 8785) of the
// card without signatures, as A2A 1.0 §8.4 says. card is not changed or retained.
// It returns [ErrBadCard] for a card that VerifyCard would refuse, such as one over
// [MaxCard] bytes.
func SignCard(card *a2a.AgentCard, k Key) (raw []byte, err error) {
	unsigned := *card
	unsigned.Signatures = nil
	text, err := json.Marshal(&unsigned)
	if err != nil {
		return nil, ErrBadCard.Because(err)
	}
	o, err := parseObject(text)
	if err != nil {
		return nil, ErrBadCard.Because(err)
	}
	payload, err := o.canonical("signatures")
	if err != nil {
		return nil, ErrBadCard.Because(err)
	}

	header, err := json.Marshal(protectedHeader{Alg: "EdDSA", Kid: string(k.Agent()), Typ: "JOSE"})
	if err != nil {
		return nil, ErrBadCard.Because(err)
	}
	protected := encodeBase64(header)
	o["signatures"], err = json.Marshal([]a2a.AgentCardSignature{{
		Protected: protected,
		Signature: encodeBase64(k.signRaw(jwsInput(protected, payload))),
	}})
	if err != nil {
		return nil, ErrBadCard.Because(err)
	}
	if raw, err = o.canonical(); err != nil {
		return nil, ErrBadCard.Because(err)
	}

	// What peers would refuse must not leave the house.
	if _, _, err := VerifyCard(raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// VerifyCard checks a signed card and returns it with the agent that signed it. The
// key comes from the did:key in the signature's protected kid and from nowhere else;
// jku, jwk and x5c are ignored, crit is refused. Exactly one signature must have such
// a kid; others (say, of an organisation) are neither checked nor trusted. What is
// verified are the bytes received, unknown fields included, and the card returned is
// decoded from just what was verified. raw is not retained.
//
// The caller must compare the agent with the one that it asked for: anybody may sign
// a copy of another's card as their own.
//
// It returns [ErrBadCard] or [ErrBadSignature].
func VerifyCard(raw []byte) (*a2a.AgentCard, shoal.AgentID, error) {
	if len(raw) > MaxCard {
		return nil, "", ErrBadCard.With("%d bytes, at most %d", len(raw), MaxCard)
	}
	o, err := parseObject(raw)
	if err != nil {
		return nil, "", ErrBadCard.Because(err)
	}
	signatures, err := parseSignatures(o["signatures"])
	if err != nil {
		return nil, "", ErrBadCard.Because(err)
	}
	own, err := ownSignature(signatures)
	if err != nil {
		return nil, "", ErrBadCard.Because(err)
	}

	payload, err := o.canonical("signatures")
	if err != nil {
		return nil, "", ErrBadCard.Because(err)
	}
	if err := verifyInput(own.agent.PublicKey(), jwsInput(own.protected, payload), own.signature); err != nil {
		return nil, "", err
	}

	card, err := decodeCard(payload)
	if err != nil {
		return nil, "", ErrBadCard.Because(err)
	}
	for _, s := range signatures {
		card.Signatures = append(card.Signatures, a2a.AgentCardSignature{
			Protected: s.protected, Signature: encodeBase64(s.signature),
		})
	}
	return card, own.agent, nil
}

// decodeCard decodes what was verified. A null in a list would be a nil pointer in it.
func decodeCard(payload []byte) (*a2a.AgentCard, error) {
	card := new(a2a.AgentCard)
	if err := json.Unmarshal(payload, card); err != nil {
		return nil, err
	}
	if slices.Contains(card.SupportedInterfaces, nil) {
		return nil, errors.New("an interface is null")
	}
	return card, nil
}

// signature is one entry of a card's signatures.
type signature struct {
	protected string // base64url, as received: it is part of what is signed
	header    object
	signature []byte
	agent     shoal.AgentID // of our own kind of signature
}

func parseSignatures(raw json.RawMessage) ([]signature, error) {
	var list []json.RawMessage
	if raw == nil {
		return nil, errors.New("it is not signed")
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("signatures: %w", err)
	}
	if len(list) == 0 || len(list) > maxSignatures {
		return nil, fmt.Errorf("%d signatures, 1 to %d are allowed", len(list), maxSignatures)
	}
	signatures := make([]signature, len(list))
	for i, raw := range list {
		s, err := parseSignature(raw)
		if err != nil {
			return nil, fmt.Errorf("signature %d: %w", i+1, err)
		}
		signatures[i] = s
	}
	return signatures, nil
}

func parseSignature(raw json.RawMessage) (s signature, err error) {
	o, err := parseObject(raw)
	if err != nil {
		return s, err
	}
	for name := range o {
		if name != "protected" && name != "signature" && name != "header" {
			return s, fmt.Errorf("unknown member %q", clip(name))
		}
	}
	if s.protected, err = o.text("protected"); err != nil {
		return s, err
	}
	text, err := o.text("signature")
	if err != nil {
		return s, err
	}
	if s.signature, err = decodeBase64(text); err != nil {
		return s, fmt.Errorf("signature: %w", err)
	}

	header, err := decodeBase64(s.protected)
	if err != nil {
		return s, fmt.Errorf("protected: %w", err)
	}
	if s.header, err = parseObject(header); err != nil {
		return s, fmt.Errorf("protected: %w", err)
	}
	return s, nil
}

// ownSignature returns the one signature whose kid is a did:key.
func ownSignature(signatures []signature) (own signature, err error) {
	found := false
	for _, s := range signatures {
		kid, err := s.header.text("kid")
		if err != nil || !strings.HasPrefix(kid, "did:key:") {
			continue
		}
		if found {
			return own, errors.New("two signatures by a did:key: whose card is it")
		}
		found, own = true, s
		if own.agent, err = shoal.ParseAgentID(kid); err != nil {
			return own, err
		}
	}
	if !found {
		return own, errors.New("no signature has a did:key as its kid")
	}
	return own, own.checkHeader()
}

// checkHeader refuses what we do not do: other algorithms, other types (a JWT signed
// with the same key must not pass for a card), extensions that must be understood.
func (s signature) checkHeader() error {
	if alg, err := s.header.text("alg"); err != nil || alg != "EdDSA" {
		return fmt.Errorf("alg is %s, only \"EdDSA\" is accepted", clip(string(s.header["alg"])))
	}
	if typ, err := s.header.text("typ"); err != nil || typ != "JOSE" {
		return fmt.Errorf("typ is %s, only \"JOSE\" is accepted", clip(string(s.header["typ"])))
	}
	if _, ok := s.header["crit"]; ok {
		return errors.New("crit is not accepted")
	}
	return nil
}

// jwsInput returns the JWS signing input (RFC 7515 §5.1).
func jwsInput(protected string, payload []byte) []byte {
	return []byte(protected + "." + encodeBase64(payload))
}
