package shoal

import (
	"strings"
	"testing"
)

func TestCapabilityHasOnePlainName(t *testing.T) {
	for in, want := range map[string]string{
		"ocr": "ocr", "a2a:v1:cap:ocr": "ocr", "0": "0", "llama-3.1_8b": "llama-3.1_8b", "a..b": "a..b", "a-": "a-",
		strings.Repeat("x", 64): strings.Repeat("x", 64), CapabilityPrefix + strings.Repeat("x", 64): strings.Repeat("x", 64),
	} {
		if got, err := ParseCapability(in); got != want || err != nil {
			t.Errorf("ParseCapability(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestMalformedCapabilitiesAreRefused(t *testing.T) {
	bad := []string{
		"", " ", "OCR", "ocr ", " ocr", "o c r", ".ocr", "-ocr", "_ocr", "öcr", "ocr\x00", "ocr\n", "ocr/x", "ocr:x", "o\xffr",
		CapabilityPrefix, CapabilityPrefix + CapabilityPrefix + "ocr", "A2A:V1:CAP:ocr", "a2a:v2:cap:ocr", "a2a:v1:cap",
		strings.Repeat("x", 65), CapabilityPrefix + strings.Repeat("x", 65), strings.Repeat("x", 1<<20),
	}
	for _, s := range bad {
		name, err := ParseCapability(s)
		if name != "" || AsError(err).Reason != "bad_capability" || AsError(err).Kind != Invalid || AsError(err).Hint == "" {
			t.Errorf("ParseCapability(%.90q) = %q, %v; want bad_capability", s, name, err)
		}
		if len(err.Error()) > 200 {
			t.Errorf("the error about %d bytes has %d", len(s), len(err.Error()))
		}
	}
	t.Logf("accepted 0 of %d", len(bad))
}

func FuzzParseCapability(f *testing.F) {
	f.Add("ocr")
	f.Add("a2a:v1:cap:ocr")
	f.Fuzz(func(t *testing.T, s string) {
		name, err := ParseCapability(s)
		if err != nil {
			return
		}
		if again, err := ParseCapability(CapabilityPrefix + name); again != name || err != nil {
			t.Errorf("%q is %q, and with the prefix %q, %v", s, name, again, err)
		}
	})
}
