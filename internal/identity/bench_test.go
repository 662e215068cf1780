package identity

import (
	"crypto/ed25519"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

func BenchmarkSign(b *testing.B) {
	k, msg := testKey(b, 1), make([]byte, 200)
	b.Run("plain-ed25519", func(b *testing.B) { // the floor
		for b.Loop() {
			ed25519.Sign(k.private, msg)
		}
	})
	b.Run("domain", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			k.Sign(DomainEnvelope, testNetwork, msg)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	k, msg := testKey(b, 1), make([]byte, 200)
	b.Run("plain-ed25519", func(b *testing.B) { // the floor
		sig := ed25519.Sign(k.private, msg)
		for b.Loop() {
			ed25519.Verify(k.Public(), msg, sig)
		}
	})
	b.Run("domain", func(b *testing.B) {
		b.ReportAllocs()
		sig := k.Sign(DomainEnvelope, testNetwork, msg)
		for b.Loop() {
			if err := Verify(k.Public(), DomainEnvelope, testNetwork, msg, sig); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkTreeRoot(b *testing.B) {
	for _, n := range []int{1, 8, 64, 256} {
		leaves := testLeaves(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				TreeRoot(leaves)
			}
		})
	}
}

func BenchmarkSignCard(b *testing.B) {
	k, card := testKey(b, 1), testCard()
	for b.Loop() {
		if _, err := SignCard(card, k); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyCard(b *testing.B) {
	k := testKey(b, 1)
	raw, err := SignCard(testCard(), k)
	if err != nil {
		b.Fatal(err)
	}
	b.Run(fmt.Sprintf("%dB", len(raw)), func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := VerifyCard(raw); err != nil {
				b.Fatal(err)
			}
		}
	})

	// What a stranger can make us spend before we know that the signature is wrong.
	var members []string
	for o := range 4 {
		var inner []string
		for i := range maxKeys - 1 {
			inner = append(inner, fmt.Sprintf(`"%x":0`, maxKeys-i))
		}
		members = append(members, fmt.Sprintf(`"%d":{%s}`, o, strings.Join(inner, ",")))
	}
	worst := forgeCard(b, k, "{"+strings.Join(members, ",")+"}", header(testKey(b, 2)))
	for name, raw := range map[string]string{
		fmt.Sprintf("worst-keys-%dB", len(worst)): worst,
		"worst-numbers": withSignatures(`{"a":[`+strings.Repeat("1e-7,", 1500)+`1]}`, worst[strings.Index(worst, `[{"protected"`):len(worst)-1]),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := VerifyCard([]byte(raw)); reasonOf(err) != "bad_signature" {
					b.Fatal(len(raw), err)
				}
			}
		})
	}
}

func BenchmarkOpenRecord(b *testing.B) {
	k := testKey(b, 1)
	body := testBody(k)
	body.Value = make([]byte, 2000)
	raw := forgeRecord(b, k, body)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := OpenRecord(testNetwork, raw, testNow); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenRing(b *testing.B) {
	for _, passphrase := range []string{"", "pass"} {
		dir := filepath.Join(b.TempDir(), "keys")
		r, err := OpenRing(dir, RingOptions{Fresh: true, Passphrase: []byte(passphrase), WorkFactor: testWork})
		if err != nil {
			b.Fatal(err)
		}
		for range 10 {
			if _, err := r.NewAgent(); err != nil {
				b.Fatal(err)
			}
		}
		b.Run("10-agents"+passphrase, func(b *testing.B) {
			for b.Loop() {
				if _, err := OpenRing(dir, RingOptions{Passphrase: []byte(passphrase)}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("scrypt", func(b *testing.B) { // what the default work factor adds to a start
		s, file, err := newSeal([]byte("pass"), defaultWork)
		if err != nil || s == nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := openSeal(file, []byte("pass")); err != nil {
				b.Fatal(err)
			}
		}
	})
}
