package shoal_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
)

var (
	receiptAsker = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	receiptDoer  = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32))
	receiptOther = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, 32))
)

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func goodReceipt() *wire.ReceiptBody {
	in, out := sha256.Sum256([]byte("in")), sha256.Sum256([]byte("out"))
	return &wire.ReceiptBody{
		Version: 1, Network: "main", Requester: public(receiptAsker), Doer: public(receiptDoer), TaskId: "t-1", Skill: "ocr",
		InputHash: in[:], OutputHash: out[:], State: 3, Attempt: 2, Class: 1,
		SubmittedMs: 1_700_000_000_000, StartedMs: 1_700_000_000_001, FinishedMs: 1_700_000_000_002, PriceMicro: 1_250_000,
	}
}

func encode(t testing.TB, b *wire.ReceiptBody) []byte {
	t.Helper()
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// sign follows spec/records.md §2 on its own, so that it can contradict the code.
func sign(k ed25519.PrivateKey, domain, network string, msg []byte) []byte {
	in := "shoal-signature-v1\n" + string(rune(len(domain))) + domain + string(rune(len(network))) + network
	return ed25519.Sign(k, append([]byte(in), msg...))
}

func signReceipt(k ed25519.PrivateKey, msg []byte) []byte {
	return sign(k, "shoal/receipt/v1", "main", msg)
}

func TestVerifyReceiptReturnsWhatBothSigned(t *testing.T) {
	body := encode(t, goodReceipt())
	want := shoal.Receipt{
		Network: "main", Key: shoal.TaskKey{Requester: shoal.AgentIDOf(public(receiptAsker)), ID: "t-1"}, Doer: shoal.AgentIDOf(public(receiptDoer)),
		Skill: "ocr", InputHash: sha256.Sum256([]byte("in")), OutputHash: sha256.Sum256([]byte("out")), State: "TASK_STATE_COMPLETED",
		Attempt: 2, Class: shoal.Live, Submitted: time.UnixMilli(1_700_000_000_000).UTC(), Started: time.UnixMilli(1_700_000_000_001).UTC(),
		Finished: time.UnixMilli(1_700_000_000_002).UTC(), Price: 1_250_000,
	}
	for _, asker := range [][]byte{signReceipt(receiptAsker, body), nil} {
		got, err := shoal.VerifyReceipt(body, signReceipt(receiptDoer, body), asker, "main")
		if err != nil || got != want {
			t.Errorf("VerifyReceipt = %+v, %v, want %+v", got, err, want)
		}
	}

	// A rejected task that never started, for nothing.
	b := goodReceipt()
	b.State, b.StartedMs, b.PriceMicro, b.Class, b.Skill = 7, 0, 0, 0, ""
	body = encode(t, b)
	got, err := shoal.VerifyReceipt(body, signReceipt(receiptDoer, body), signReceipt(receiptAsker, body), "main")
	if err != nil || !got.Started.IsZero() || got.State != "TASK_STATE_REJECTED" || got.Class != shoal.Durable {
		t.Errorf("VerifyReceipt = %+v, %v", got, err)
	}
}

// Each forgery differs from the accepted control in one thing; the mutations of the body
// are signed again, properly, by both, so only the form can give them away.
func TestVerifyReceiptRefusesForgeries(t *testing.T) {
	control := encode(t, goodReceipt())
	field := func(num protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
	}
	change := func(f func(*wire.ReceiptBody)) []byte {
		b := goodReceipt()
		f(b)
		return encode(t, b)
	}
	bodies := map[string][]byte{
		"empty":                   {},
		"trailing byte":           append(bytes.Clone(control), 0),
		"trailing half tag":       append(bytes.Clone(control), 0x80),
		"unknown field":           append(bytes.Clone(control), field(16, 1)...),
		"unknown bytes field":     append(bytes.Clone(control), protowire.AppendBytes(protowire.AppendTag(nil, 99, protowire.BytesType), []byte("x"))...),
		"repeated price":          append(bytes.Clone(control), field(15, 0)...),
		"network behind":          append(bytes.Clone(control), protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), "main")...),
		"version in front twice":  append(field(1, 1), control...),
		"cut short":               control[:len(control)-1],
		"group":                   append(bytes.Clone(control), 0x83, 0x01, 0x84, 0x01),
		"version as bytes":        append([]byte{0x0a, 0x01, 0x01}, control[2:]...),
		"huge declared length":    append(bytes.Clone(control[:2]), 0x12, 0xff, 0xff, 0xff, 0xff, 0x0f),
		"too long":                change(func(b *wire.ReceiptBody) { b.TaskId = strings.Repeat("x", shoal.MaxReceipt) }),
		"version 0":               change(func(b *wire.ReceiptBody) { b.Version = 0 }),
		"version 2":               change(func(b *wire.ReceiptBody) { b.Version = 2 }),
		"version 1 + 2^32":        append(field(1, 1<<32+1), control[2:]...),
		"no requester":            change(func(b *wire.ReceiptBody) { b.Requester = nil }),
		"requester of 31 bytes":   change(func(b *wire.ReceiptBody) { b.Requester = b.Requester[:31] }),
		"doer of 33 bytes":        change(func(b *wire.ReceiptBody) { b.Doer = append(bytes.Clone(b.Doer), 0) }),
		"weak requester":          change(func(b *wire.ReceiptBody) { b.Requester = make([]byte, 32) }),
		"weak doer":               change(func(b *wire.ReceiptBody) { b.Doer = append([]byte{1}, make([]byte, 31)...) }),
		"no task id":              change(func(b *wire.ReceiptBody) { b.TaskId = "" }),
		"task id of 256":          change(func(b *wire.ReceiptBody) { b.TaskId = strings.Repeat("x", 256) }),
		"task id not UTF-8":       bytes.Replace(control, []byte("t-1"), []byte("t\xff1"), 1),
		"no input hash":           change(func(b *wire.ReceiptBody) { b.InputHash = nil }),
		"output hash of 20 bytes": change(func(b *wire.ReceiptBody) { b.OutputHash = b.OutputHash[:20] }),
		"state unspecified":       change(func(b *wire.ReceiptBody) { b.State = 0 }),
		"state working":           change(func(b *wire.ReceiptBody) { b.State = 2 }),
		"state input required":    change(func(b *wire.ReceiptBody) { b.State = 6 }),
		"state negative":          change(func(b *wire.ReceiptBody) { b.State = -3 }),
		"state 3 + 2^32":          bytes.Replace(control, field(9, 3), field(9, 1<<32+3), 1),
		"state 99":                change(func(b *wire.ReceiptBody) { b.State = 99 }),
		"class 2":                 change(func(b *wire.ReceiptBody) { b.Class = 2 }),
		"attempt 2^32-1":          change(func(b *wire.ReceiptBody) { b.Attempt = 1<<32 - 1 }),
		"finished before 1970":    change(func(b *wire.ReceiptBody) { b.FinishedMs = -1 }),
		"finished in year 10000":  change(func(b *wire.ReceiptBody) { b.FinishedMs = 253402300800000 }),
		"negative price":          change(func(b *wire.ReceiptBody) { b.PriceMicro = -1 }),
	}
	n := 0
	for name, body := range bodies {
		n++
		if _, err := shoal.VerifyReceipt(body, signReceipt(receiptDoer, body), signReceipt(receiptAsker, body), "main"); !errors.Is(err, shoal.ErrBadReceipt) {
			t.Errorf("%s: %v, want ErrBadReceipt", name, err)
		}
	}

	doer, asker := signReceipt(receiptDoer, control), signReceipt(receiptAsker, control)
	refuse := func(name string, body, doer, asker []byte, network string, want error) {
		n++
		if _, err := shoal.VerifyReceipt(body, doer, asker, network); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	refuse("no doer's signature", control, nil, asker, "main", shoal.ErrReceiptSignature)
	refuse("signatures exchanged", control, asker, doer, "main", shoal.ErrReceiptSignature)
	refuse("doer's signature twice", control, doer, doer, "main", shoal.ErrReceiptSignature)
	refuse("stranger as doer", control, signReceipt(receiptOther, control), asker, "main", shoal.ErrReceiptSignature)
	refuse("stranger as asker", control, doer, signReceipt(receiptOther, control), "main", shoal.ErrReceiptSignature)
	refuse("another domain", control, sign(receiptDoer, "shoal/envelope/v1", "main", control), asker, "main", shoal.ErrReceiptSignature)
	refuse("no domain", control, ed25519.Sign(receiptDoer, control), asker, "main", shoal.ErrReceiptSignature)
	refuse("signed for another network", control, sign(receiptDoer, "shoal/receipt/v1", "test", control), asker, "main", shoal.ErrReceiptSignature)
	refuse("another network", control, doer, asker, "test", shoal.ErrReceiptNetwork)
	refuse("no network", control, doer, asker, "", shoal.ErrReceiptNetwork)
	refuse("short signature", control, doer[:63], asker, "main", shoal.ErrReceiptSignature)
	refuse("long signature", control, append(bytes.Clone(doer), 0), asker, "main", shoal.ErrReceiptSignature)
	refuse("short countersignature", control, doer, asker[:1], "main", shoal.ErrReceiptSignature)

	// Any single bit flipped in the body or a signature.
	for i := range control {
		for bit := range 8 {
			n++
			body := bytes.Clone(control)
			body[i] ^= 1 << bit
			if _, err := shoal.VerifyReceipt(body, doer, asker, "main"); err == nil {
				t.Errorf("bit %d of byte %d of the body flipped: accepted", bit, i)
			}
		}
	}
	for i := range doer {
		n += 2
		d, a := bytes.Clone(doer), bytes.Clone(asker)
		d[i] ^= 1
		a[i] ^= 1
		if _, err := shoal.VerifyReceipt(control, d, asker, "main"); err == nil {
			t.Errorf("byte %d of the doer's signature flipped: accepted", i)
		}
		if _, err := shoal.VerifyReceipt(control, doer, a, "main"); err == nil {
			t.Errorf("byte %d of the asker's signature flipped: accepted", i)
		}
	}
	if _, err := shoal.VerifyReceipt(control, doer, asker, "main"); err != nil {
		t.Fatalf("the control is refused: %v", err)
	}
	t.Logf("%d forgeries, each one mutation of an accepted control: accepted 0", n)
}

// What VerifyReceipt accepts means the same to the protobuf library.
func FuzzVerifyReceipt(f *testing.F) {
	control := encode(f, goodReceipt())
	f.Add(control, "main")
	f.Add(control[:40], "main")
	f.Add(append(bytes.Clone(control), 0x80, 0x01, 0x01), "main")
	f.Add([]byte{}, "")
	f.Fuzz(func(t *testing.T, body []byte, network string) {
		if len(network) > 255 {
			return
		}
		in := "shoal-signature-v1\n\x10shoal/receipt/v1" + string([]byte{byte(len(network))}) + network
		sig := func(k ed25519.PrivateKey) []byte { return ed25519.Sign(k, append([]byte(in), body...)) }
		got, err := shoal.VerifyReceipt(body, sig(receiptDoer), sig(receiptAsker), network)
		if err != nil {
			if k := shoal.KindOf(err); k != shoal.Corrupt {
				t.Fatalf("kind %v of %v", k, err)
			}
			return
		}
		var b wire.ReceiptBody
		if err := proto.Unmarshal(body, &b); err != nil {
			t.Fatalf("accepted, but %v", err)
		}
		if string(got.Key.ID) != b.GetTaskId() || got.Network != b.GetNetwork() || got.Skill != b.GetSkill() || int64(got.Price) != b.GetPriceMicro() ||
			got.Attempt != int(b.GetAttempt()) || uint32(got.Class) != b.GetClass() || !bytes.Equal(got.InputHash[:], b.GetInputHash()) {
			t.Fatalf("%+v is not %v", got, &b)
		}
	})
}
