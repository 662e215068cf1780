package mail

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/shoalmesh/shoal"
)

// Limits of the wire format (spec/wire.md §3). Each is checked before anything of that
// size is allocated.
const (
	maxFrame     = 1 << 20   // bytes of a MailFrame
	maxAck       = 256 << 10 // bytes of a MailAck
	maxEnvelopes = 1024      // in one frame
	maxHeader    = 512       // bytes of an EnvelopeHeader
	maxNetwork   = 64        // bytes of a network's name

	envelopeVersion = 1
	sealNone        = 0

	keySize = 32
	sigSize = 64
)

// key is a raw Ed25519 public key: what stands on the wire and in the tables where the
// rest of the code says [shoal.AgentID].
type key [keySize]byte

// header is a parsed EnvelopeHeader. Network and Topic share no memory with the input.
type header struct {
	version  uint32
	id       [16]byte
	network  string
	from, to key
	topic    string
	epoch    uint64
	seq      uint64
	skipFrom uint64
	created  int64 // unix ms
	expires  int64 // unix ms
	seal     uint32
	bodyHash [32]byte
}

// badFrame is why a frame was refused as a whole; the stream ends with it.
type badFrame struct{ reason, detail string }

func (e *badFrame) Error() string { return "mail frame: " + e.reason + ": " + e.detail }

func bad(reason, format string, args ...any) error {
	return &badFrame{reason, fmt.Sprintf(format, args...)}
}

// appendHeader appends the encoding of h: fields in ascending order, defaults left out,
// so it is the deterministic protobuf encoding of EnvelopeHeader.
func appendHeader(b []byte, h *header) []byte {
	b = appendUint(b, 1, uint64(h.version))
	b = appendBytes(b, 2, h.id[:])
	b = appendBytes(b, 3, []byte(h.network))
	b = appendBytes(b, 4, h.from[:])
	b = appendBytes(b, 5, h.to[:])
	b = appendBytes(b, 6, []byte(h.topic))
	if h.epoch != 0 {
		b = protowire.AppendTag(b, 7, protowire.Fixed64Type)
		b = protowire.AppendFixed64(b, h.epoch)
	}
	b = appendUint(b, 8, h.seq)
	b = appendUint(b, 9, h.skipFrom)
	b = appendUint(b, 10, uint64(h.created))
	b = appendUint(b, 11, uint64(h.expires))
	b = appendUint(b, 12, uint64(h.seal))
	return appendBytes(b, 13, h.bodyHash[:])
}

func appendUint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, num, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return protowire.AppendBytes(b, v)
}

// parseHeader parses an EnvelopeHeader and checks the shape of each field, not what it
// says: whether it is for us, in time and signed is the caller's to judge.
func parseHeader(raw []byte) (header, error) {
	var h header
	if len(raw) > maxHeader {
		return h, bad("malformed", "header of %d bytes", len(raw))
	}
	var err error
	fixed := func(dst, src []byte, what string) {
		if len(src) != len(dst) && err == nil {
			err = bad("malformed", "%s of %d bytes", what, len(src))
		}
		copy(dst, src)
	}
	walk := eachField(raw, func(num protowire.Number, n uint64, v []byte) {
		switch num {
		case 1:
			h.version = uint32(min(n, 1<<32-1))
		case 2:
			fixed(h.id[:], v, "id")
		case 3:
			if len(v) > maxNetwork && err == nil {
				err = bad("malformed", "network of %d bytes", len(v))
			}
			h.network = string(v)
		case 4:
			fixed(h.from[:], v, "from")
		case 5:
			fixed(h.to[:], v, "to")
		case 6:
			h.topic = string(v)
		case 7:
			h.epoch = n
		case 8:
			h.seq = n
		case 9:
			h.skipFrom = n
		case 10:
			h.created = int64(n)
		case 11:
			h.expires = int64(n)
		case 12:
			h.seal = uint32(min(n, 1<<32-1))
		case 13:
			fixed(h.bodyHash[:], v, "body hash")
		}
	})
	if walk != nil {
		return h, walk
	}
	return h, err
}

// check reports the first field of h whose value no honest sender writes.
func (h *header) check() error {
	switch {
	case h.version != envelopeVersion:
		return bad("wrong_version", "version %d", h.version)
	case h.seal != sealNone:
		return bad("wrong_version", "seal suite %d", h.seal)
	case h.from == key{} || h.to == key{}:
		return bad("malformed", "no sender or no recipient")
	case !goodTopic(h.topic):
		return bad("malformed", "topic of %d bytes", len(h.topic))
	case h.seq == 0 || h.epoch == 0:
		return bad("malformed", "seq or epoch is zero")
	case h.skipFrom > h.seq:
		return bad("malformed", "skip from %d to %d", h.skipFrom, h.seq)
	case h.created <= 0 || h.expires <= h.created:
		return bad("malformed", "created %d, expires %d", h.created, h.expires)
	}
	return nil
}

// goodTopic reports whether s is 1 to [shoal.MaxTopic] of a-z, 0-9, '.', '_', '-'.
func goodTopic(s string) bool {
	if len(s) == 0 || len(s) > shoal.MaxTopic {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// sealed is one envelope of a frame. Its slices point into the frame's bytes.
type sealed struct{ header, body []byte }

// prefixRoom is what a length prefix takes at most: a varint below 2^28.
const prefixRoom = 4

// beginFrame reserves the place of the length prefix.
func beginFrame(b []byte) []byte { return append(b, make([]byte, prefixRoom)...) }

// closeFrame writes the length prefix right before the message that follows beginFrame,
// and returns both.
func closeFrame(b []byte) []byte {
	n := uint64(len(b) - prefixRoom)
	start := prefixRoom - protowire.SizeVarint(n)
	protowire.AppendVarint(b[start:start], n)
	return b[start:]
}

// appendEnvelope appends one element of MailFrame.envelopes.
func appendEnvelope(b, head, body []byte) []byte {
	n := protowire.SizeTag(1) + protowire.SizeBytes(len(head))
	if len(body) > 0 {
		n += protowire.SizeTag(2) + protowire.SizeBytes(len(body))
	}
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(n))
	b = appendBytes(b, 1, head)
	return appendBytes(b, 2, body)
}

// endFrame appends the signature and fills in the length prefix.
func endFrame(b, sig []byte) []byte { return closeFrame(appendBytes(b, 2, sig)) }

// parseFrame splits a MailFrame. It keeps what it finds in raw, copying nothing.
func parseFrame(raw []byte) (envs []sealed, sig []byte, err error) {
	var inner error
	err = eachField(raw, func(num protowire.Number, _ uint64, v []byte) {
		switch num {
		case 1:
			if len(envs) == maxEnvelopes {
				inner = bad("malformed", "more than %d envelopes", maxEnvelopes)
				return
			}
			e, err := parseSealed(v)
			if err != nil && inner == nil {
				inner = err
			}
			envs = append(envs, e)
		case 2:
			sig = v
		}
	})
	switch {
	case err != nil:
		return nil, nil, err
	case inner != nil:
		return nil, nil, inner
	case len(envs) == 0:
		return nil, nil, bad("malformed", "frame without envelopes")
	case len(sig) != sigSize:
		return nil, nil, bad("bad_signature", "signature of %d bytes", len(sig))
	}
	return envs, sig, nil
}

func parseSealed(raw []byte) (sealed, error) {
	var e sealed
	err := eachField(raw, func(num protowire.Number, _ uint64, v []byte) {
		switch num {
		case 1:
			e.header = v
		case 2:
			e.body = v
		}
	})
	switch {
	case err != nil:
		return e, err
	case len(e.header) == 0 || len(e.header) > maxHeader:
		return e, bad("malformed", "header of %d bytes", len(e.header))
	case len(e.body) > shoal.MaxBody:
		return e, bad("malformed", "body of %d bytes", len(e.body))
	}
	return e, nil
}

// eachField calls fn for each field of a protobuf message: n holds a number, v bytes.
// Later fields of one number win, as in protobuf; unknown ones are the caller's to skip.
// A known number with another wire type gives n and v of that type, so lengths that fn
// checks come out wrong and the value is refused.
func eachField(raw []byte, fn func(num protowire.Number, n uint64, v []byte)) error {
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return bad("malformed", "%v", protowire.ParseError(n))
		}
		raw = raw[n:]
		var val uint64
		var bytes []byte
		switch typ {
		case protowire.VarintType:
			val, n = protowire.ConsumeVarint(raw)
		case protowire.Fixed64Type:
			val, n = protowire.ConsumeFixed64(raw)
		case protowire.Fixed32Type:
			var v32 uint32
			v32, n = protowire.ConsumeFixed32(raw)
			val = uint64(v32)
		case protowire.BytesType:
			bytes, n = protowire.ConsumeBytes(raw)
		default: // groups: never written by us, and a way to nest without end
			return bad("malformed", "wire type %d", typ)
		}
		if n < 0 {
			return bad("malformed", "%v", protowire.ParseError(n))
		}
		raw = raw[n:]
		fn(num, val, bytes)
	}
	return nil
}

// firstAlloc is what a length prefix alone may make us allocate on a stream that has not
// shown anything yet. The rest follows as bytes arrive, so a thousand silent streams that
// each declare a full frame cost little.
const firstAlloc = 16 << 10

// errTooLong is the reading of a length prefix above the limit.
var errTooLong = errors.New("declared length is above the limit")

// readPrefixed reads a varint length and that many bytes, at most limit. It returns
// io.EOF only when the stream ends between two messages. trust is how much may be
// allocated before it has arrived.
func readPrefixed(r *bufio.Reader, limit, trust int) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if n > uint64(limit) {
		return nil, fmt.Errorf("%w: %d > %d", errTooLong, n, limit)
	}
	size := int(n)
	buf := make([]byte, min(size, max(trust, firstAlloc)))
	if size == 0 {
		return buf, nil
	}
	for have := 0; ; {
		if _, err := io.ReadFull(r, buf[have:]); err != nil {
			return nil, noEOF(err)
		}
		if have = len(buf); have == size {
			return buf, nil
		}
		grown := make([]byte, min(size, have*8))
		copy(grown, buf)
		buf = grown
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// bodyMatches reports whether body has the hash that the header promises.
func (h *header) bodyMatches(body []byte) bool {
	sum := sha256.Sum256(body)
	return bytes.Equal(sum[:], h.bodyHash[:])
}
