package cli

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// escapeText makes text that anybody may have written safe to print: what could move
// the cursor, colour, retitle, answer back or reorder is shown as \x1b or \u202e. Lines
// and tabs stay.
func escapeText(s string) string { return escape(s, true) }

// escapeLine is escapeText for a table's cell or a message in one line: line breaks and
// tabs are shown too.
func escapeLine(s string) string { return escape(s, false) }

// escape is the only way for a peer's words to a terminal. It looks at single runes, so
// a control sequence that is split over two pieces of a stream stays harmless.
func escape(s string, multiline bool) string {
	clean := true
	for _, r := range s {
		if r == utf8.RuneError || hostile(r, multiline) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}

	var b strings.Builder
	b.Grow(len(s) + 16)
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size <= 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case multiline && r == '\r' && strings.HasPrefix(s[i+1:], "\n"):
			// CRLF is a line break as good as LF.
		case !hostile(r, multiline):
			b.WriteString(s[i : i+size])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r <= 0xff:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		i += size
	}
	return b.String()
}

// hostile tells whether r must not reach a terminal: the C0 and C1 controls (ESC, CSI,
// OSC among them), DEL, the line and paragraph separators, and every invisible format
// character (Unicode Cf: the bidi controls of "Trojan Source", the tag characters that
// hide text from people but not from models), except the two joiners that emoji and
// several scripts need.
func hostile(r rune, multiline bool) bool {
	switch {
	case r == '\n' || r == '\t':
		return !multiline
	case r < 0x20 || r >= 0x7f && r <= 0x9f:
		return true
	case r < 0x7f:
		return false
	case r == '\u200c' || r == '\u200d':
		return false
	default:
		return r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Cf, r)
	}
}

// escapeJSON returns the JSON text js with every hostile character inside its strings
// written as \uXXXX, which means the same to a parser and nothing to a terminal. js must
// be compact: outside strings such characters are not JSON, and inside them the C0
// controls are escaped already.
func escapeJSON(js []byte) []byte {
	clean := true
	for _, c := range js {
		if c >= 0x7f {
			clean = false
			break
		}
	}
	if clean {
		return js
	}
	out := make([]byte, 0, len(js)+16)
	for i := 0; i < len(js); {
		r, size := utf8.DecodeRune(js[i:])
		switch {
		case !hostile(r, true):
			out = append(out, js[i:i+size]...)
		case r <= 0xffff:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			hi, lo := surrogates(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		}
		i += size
	}
	return out
}

// surrogates is UTF-16's spelling of r > 0xffff.
func surrogates(r rune) (hi, lo rune) {
	r -= 0x10000
	return 0xd800 + r>>10, 0xdc00 + r&0x3ff
}
