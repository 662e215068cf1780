package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEscapeShowsWhatATerminalWouldObey(t *testing.T) {
	for _, c := range []struct{ name, in, text, line string }{
		{"plain", "Grüße, 世界 ✓", "Grüße, 世界 ✓", "Grüße, 世界 ✓"},
		{"joiners of emoji", "👩\u200d🚀", "👩\u200d🚀", "👩\u200d🚀"},
		{"lines and tabs", "a\tb\nc", "a\tb\nc", `a\tb\nc`},
		{"crlf", "a\r\nb", "a\nb", `a\r\nb`},
		{"overwrite", "good\rbad", `good\rbad`, `good\rbad`},
		{"colour", "\x1b[31mred", `\x1b[31mred`, `\x1b[31mred`},
		{"title", "\x1b]0;x\x07", `\x1b]0;x\x07`, `\x1b]0;x\x07`},
		{"clipboard by C1", "\u009d52;c;eA==\u009c", `\x9d52;c;eA==\x9c`, `\x9d52;c;eA==\x9c`},
		{"raw C1 byte", "\x9b31m", `\x9b31m`, `\x9b31m`},
		{"backspace, DEL, NUL, bell", "a\bb\x7f\x00\a", `a\x08b\x7f\x00\x07`, `a\x08b\x7f\x00\x07`},
		{"bidi override", "exe.\u202egnp", `exe.\u202egnp`, `exe.\u202egnp`},
		{"bidi isolate", "\u2066a\u2069", `\u2066a\u2069`, `\u2066a\u2069`},
		{"marks", "\u200e\u200f\u061c", `\u200e\u200f\u061c`, `\u200e\u200f\u061c`},
		{"zero width", "a\u200bb\ufeffc\u2060", `a\u200bb\ufeffc\u2060`, `a\u200bb\ufeffc\u2060`},
		{"line separator", "a\u2028b\u2029", `a\u2028b\u2029`, `a\u2028b\u2029`},
		{"tags", "a\U000e0041", `a\U000e0041`, `a\U000e0041`},
		{"half a rune", "a\xc3", `a\xc3`, `a\xc3`},
		{"replacement rune itself", "\ufffd", "\ufffd", "\ufffd"},
	} {
		if got := escapeText(c.in); got != c.text {
			t.Errorf("%s: escapeText(%q) = %q, want %q", c.name, c.in, got, c.text)
		}
		if got := escapeLine(c.in); got != c.line {
			t.Errorf("%s: escapeLine(%q) = %q, want %q", c.name, c.in, got, c.line)
		}
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "plain", "\x1b[2J", "a\r\nb", "\u202e", "\xff\xfe", "\U000e0041", "\u009b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, multiline := range []bool{true, false} {
			got := escape(s, multiline)
			if !utf8.ValidString(got) {
				t.Fatalf("escape(%q) = %q is not UTF-8", s, got)
			}
			for _, r := range got {
				if hostile(r, multiline) {
					t.Fatalf("escape(%q) = %q has %q", s, got, r)
				}
			}
			if again := escape(got, multiline); again != got {
				t.Fatalf("escape of %q changed again: %q", got, again)
			}
		}
		// Split anywhere between runes, the pieces are as harmless as the whole.
		if i := len(s) / 2; utf8.ValidString(s) && utf8.RuneStart((s + "x")[i]) && !strings.Contains(s, "\r") {
			if got := escapeText(s[:i]) + escapeText(s[i:]); got != escapeText(s) {
				t.Fatalf("in pieces %q, whole %q", got, escapeText(s))
			}
		}
	})
}

func FuzzEscapeJSON(f *testing.F) {
	for _, s := range []string{"", "plain", "\x1b[2J\u009b", "\u202e", "\U000e0041", "\u2028", "\x7f", `"\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "")
		js, err := marshalJSON(map[string]string{s: s})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range string(js) {
			if hostile(r, true) || r == '\n' {
				t.Fatalf("%q has %q", js, r)
			}
		}
		var back map[string]string
		if err := json.Unmarshal(js, &back); err != nil || back[s] != s {
			t.Fatalf("%q came back as %q, %v", s, back, err)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, js); err != nil || compact.String() != string(js) {
			t.Fatalf("%q is not compact: %v", js, err)
		}
	})
}
