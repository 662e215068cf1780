package directory

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
)

// FuzzCardResponse feeds what a peer may answer: no panic, no more memory than there
// are bytes, and nothing accepted that is not one of the genuine cards.
func FuzzCardResponse(f *testing.F) {
	now := time.UnixMilli(944444444000)
	genuine := signCard(f, testKey(f, "victim"), now, nil, "ocr")
	frame := func(cards ...[]byte) []byte {
		var b bytes.Buffer
		if err := writeFrame(&b, &wire.CardResponse{Cards: cards}); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	f.Add(frame(genuine))
	f.Add(frame(genuine, bytes.Replace(genuine, []byte("ocr"), []byte("pay"), 1)))
	f.Add(frame())
	f.Add(frame([]byte("{}"), nil, []byte("null")))
	f.Add(binary.AppendUvarint(nil, 1<<63))
	f.Add([]byte("\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var res wire.CardResponse
		if err := readFrame(bytes.NewReader(raw), maxAnswer, &res); err != nil {
			return
		}
		for _, c := range res.Cards {
			card, err := openCard(c, testNet, now)
			if err == nil && (card.Agent != testKey(t, "victim").Agent() || len(card.Skills) != 1 || card.Skills[0].ID != "ocr") {
				t.Errorf("accepted %q", c)
			}
		}
	})
}

// FuzzExtension feeds what an agent may sign: no panic, and what is accepted keeps the rules.
func FuzzExtension(f *testing.F) {
	for _, raw := range changedCards(f, testKey(f, "victim"), time.UnixMilli(944444444000)) {
		f.Add(raw.raw)
	}
	f.Add(signCard(f, testKey(f, "victim"), time.UnixMilli(944444444000), nil, "ocr", "pay"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var card a2a.AgentCard
		if json.Unmarshal(raw, &card) != nil {
			return
		}
		p, err := readParams(&card)
		if err != nil {
			return
		}
		skills, err := readSkills(&card, p)
		if err != nil {
			return
		}
		life := p.NotAfter.Sub(p.NotBefore)
		if p.Seq == 0 || p.Seq > maxSeq || life <= 0 || life > MaxLife || p.Node.PublicKey() == nil {
			t.Errorf("accepted %+v", p)
		}
		for i, s := range skills {
			id, err := shoal.ParseCapability(s.ID)
			if err != nil || id != s.ID || slices.ContainsFunc(skills[:i], func(o shoal.Skill) bool { return o.ID == id }) {
				t.Errorf("accepted skill %q", s.ID)
			}
		}
	})
}

// FuzzCardRequest feeds what a peer may ask: no panic, and never more than was asked for.
func FuzzCardRequest(f *testing.F) {
	d := &Directory{local: map[shoal.AgentID]*hosted{}}
	now := time.UnixMilli(944444444000)
	for _, name := range []string{"a", "b", "c"} {
		key := testKey(f, name)
		c, err := openCard(signCard(f, key, now, nil, "ocr", "only-"+name), testNet, now)
		if err != nil {
			f.Fatal(err)
		}
		d.local[key.Agent()] = &hosted{spec: spec(key.Agent(), name), card: c}
	}
	for _, req := range []*wire.CardRequest{
		{}, {Capability: "ocr"}, {Capability: "ocr", Limit: 2}, {Did: string(testKey(f, "a").Agent())}, {Did: "x", Capability: "y", Limit: 1 << 31},
	} {
		var b bytes.Buffer
		if err := writeFrame(&b, req); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var req wire.CardRequest
		if readFrame(bytes.NewReader(raw), maxRequest, &req) != nil {
			return
		}
		res := d.answer(&req, now)
		if n := len(res.Cards); n > 3 || req.Limit > 0 && n > int(req.Limit) || proto.Size(res) > maxResponse {
			t.Errorf("%d cards for %v", n, &req)
		}
	})
}
