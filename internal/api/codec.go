package api

import (
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
)

// The codecs are Connect's own but for what they do with a request that they cannot
// decode. Connect answers such a one before any interceptor runs, so the error would
// leave without its ErrorInfo. Instead they note the failure in the message, as an
// unknown field with a number that no message uses, and the interceptor turns it into
// an error. A client that sends this field itself refuses its own request.
const (
	fieldUndecodable protowire.Number = protowire.MaxValidNumber
	fieldTooLarge    protowire.Number = protowire.MaxValidNumber - 1
)

const maxDetail = 200 // bytes of a decoder's message that are passed on

func note(m proto.Message, field protowire.Number, text string) {
	proto.Reset(m)
	b := protowire.AppendTag(nil, field, protowire.BytesType)
	m.ProtoReflect().SetUnknown(protowire.AppendString(b, text))
}

// decodeFailure returns the failure noted in m, nil if there is none.
func decodeFailure(m any) error {
	pm, ok := m.(proto.Message)
	if !ok {
		return nil
	}
	unknown := pm.ProtoReflect().GetUnknown()
	if len(unknown) == 0 {
		return nil
	}
	field, _, n := protowire.ConsumeTag(unknown)
	if n < 0 || field < fieldTooLarge {
		return nil
	}
	if field == fieldTooLarge {
		return errTooLarge
	}
	text, _ := protowire.ConsumeString(unknown[n:])
	return errBadRequest.With("%s", text)
}

func settle(data []byte, m proto.Message, err error) error {
	switch {
	case err != nil:
		// protobuf-go puts an ordinary or a non-breaking space after its prefix, by
		// chance, so that nobody relies on the text.
		text := strings.TrimLeft(strings.TrimPrefix(err.Error(), "proto:"), " \u00a0")
		if len(text) > maxDetail {
			text = strings.ToValidUTF8(text[:maxDetail], "") + "…"
		}
		note(m, fieldUndecodable, text)
	case len(data) > maxMessage && proto.Size(m) > maxMessage:
		note(m, fieldTooLarge, "")
	}
	return nil
}

func message(m any) (proto.Message, error) {
	if pm, ok := m.(proto.Message); ok {
		return pm, nil
	}
	return nil, shoal.NewError(shoal.Internal, "internal", "not a protobuf message", "")
}

type binaryCodec struct{}

func (binaryCodec) Name() string   { return "proto" }
func (binaryCodec) IsBinary() bool { return true }

func (c binaryCodec) Marshal(m any) ([]byte, error) { return c.MarshalAppend(nil, m) }

func (binaryCodec) MarshalAppend(dst []byte, m any) ([]byte, error) {
	pm, err := message(m)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, pm)
}

func (binaryCodec) MarshalStable(m any) ([]byte, error) {
	pm, err := message(m)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(pm)
}

func (binaryCodec) Unmarshal(data []byte, m any) error {
	pm, err := message(m)
	if err != nil {
		return err
	}
	return settle(data, pm, proto.Unmarshal(data, pm))
}

// jsonCodec refuses unknown fields, unlike Connect's: JSON is what people type, and a
// misspelt field that is ignored is a request that means something else.
type jsonCodec struct{ name string }

func (c jsonCodec) Name() string { return c.name }
func (jsonCodec) IsBinary() bool { return false }

func (c jsonCodec) Marshal(m any) ([]byte, error) { return c.MarshalAppend(nil, m) }

func (jsonCodec) MarshalAppend(dst []byte, m any) ([]byte, error) {
	pm, err := message(m)
	if err != nil {
		return nil, err
	}
	return protojson.MarshalOptions{}.MarshalAppend(dst, pm)
}

func (c jsonCodec) MarshalStable(m any) ([]byte, error) { return c.Marshal(m) }

func (jsonCodec) Unmarshal(data []byte, m any) error {
	pm, err := message(m)
	if err != nil {
		return err
	}
	return settle(data, pm, protojson.Unmarshal(data, pm))
}
