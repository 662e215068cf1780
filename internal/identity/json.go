package identity

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gowebpki/jcs"
)

const (
	maxDepth = 32        // nesting of a JSON document that we verify
	maxKeys  = 256       // members of one object: canonicalisation sorts them in quadratic time
	maxExact = 1<<53 - 1 // RFC 7493 §2.2: integers beyond it differ between JSON readers
)

// object is a JSON object whose member names are compared exactly, unlike those of a
// Go struct, where "Signature" would pass for "signature".
type object map[string]json.RawMessage

// parseObject parses raw as one strict JSON object: valid UTF-8, no duplicate member
// names (also not by case alone), at most maxDepth deep, no integer that a double
// cannot hold, no lone surrogate, nothing after it. Whatever passes here, every JSON
// reader understands alike (RFC 7493).
func parseObject(raw []byte) (object, error) {
	if err := checkJSON(raw); err != nil {
		return nil, err
	}
	var o object
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, err
	}
	if o == nil {
		return nil, errors.New("not a JSON object")
	}
	return o, nil
}

// text returns the string member called name; absent or of another type is an error.
func (o object) text(name string) (string, error) {
	raw, ok := o[name]
	if !ok {
		return "", fmt.Errorf("%q is missing", name)
	}
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return "", fmt.Errorf("%q is not a string", name)
	}
	return *s, nil
}

// canonical returns the object in the form of RFC 8785, without the members named.
func (o object) canonical(without ...string) ([]byte, error) {
	rest := make(object, len(o))
	for name, raw := range o {
		rest[name] = raw
	}
	for _, name := range without {
		delete(rest, name)
	}
	raw, err := json.Marshal(rest)
	if err != nil {
		return nil, err
	}
	return jcs.Transform(raw)
}

// decodeBase64 decodes unpadded base64url with one spelling for each value: Go's
// decoder would skip line breaks.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("line break in base64url")
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

func encodeBase64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// checkJSON does what encoding/json does not: see parseObject.
func checkJSON(raw []byte) error {
	if !utf8.Valid(raw) {
		return errors.New("not UTF-8")
	}
	if !json.Valid(raw) {
		return errors.New("not valid JSON")
	}

	// The grammar holds from here on, so a walk over the tokens is enough.
	var w walker
	for i := 0; i < len(raw); {
		n, err := w.token(raw[i:])
		if err != nil {
			return err
		}
		i += n
	}
	return nil
}

// walker walks the tokens of a valid JSON text.
type walker struct {
	open []map[string]struct{} // the open objects' names so far; nil for an array
	name bool                  // the next string is a member's name
}

func (w *walker) token(raw []byte) (n int, err error) {
	switch c := raw[0]; {
	case c == '{', c == '[':
		if len(w.open) == maxDepth {
			return 0, fmt.Errorf("nested deeper than %d", maxDepth)
		}
		var names map[string]struct{}
		if c == '{' {
			names = make(map[string]struct{})
		}
		w.open = append(w.open, names)
		w.name = c == '{'
	case c == '}', c == ']':
		w.open = w.open[:len(w.open)-1]
		w.name = false
	case c == ',':
		w.name = w.open[len(w.open)-1] != nil
	case c == ':':
		w.name = false
	case c == '"':
		return w.text(raw)
	case c == '-', c >= '0' && c <= '9':
		return number(raw)
	}
	return 1, nil
}

func (w *walker) text(raw []byte) (n int, err error) {
	n, escaped := 1, false
	for ; raw[n] != '"'; n++ {
		if raw[n] == '\\' {
			escaped = true
			n++
		}
	}
	n++
	if escaped {
		if err := checkSurrogates(raw[1 : n-1]); err != nil {
			return 0, err
		}
	}
	if !w.name {
		return n, nil
	}

	name := string(raw[1 : n-1])
	if escaped {
		if err := json.Unmarshal(raw[:n], &name); err != nil {
			return 0, err
		}
	}
	names := w.open[len(w.open)-1]
	folded := strings.ToLower(name)
	if _, twice := names[folded]; twice {
		return 0, fmt.Errorf("member %q is there twice", clip(name))
	}
	if len(names) == maxKeys {
		return 0, fmt.Errorf("an object with more than %d members", maxKeys)
	}
	names[folded] = struct{}{}
	return n, nil
}

// number checks one number: integers must be exact in a double, others finite.
func number(raw []byte) (n int, err error) {
	for n < len(raw) && strings.IndexByte("+-.eE0123456789", raw[n]) >= 0 {
		n++
	}
	s := string(raw[:n])
	if strings.ContainsAny(s, ".eE") {
		if _, err := strconv.ParseFloat(s, 64); err != nil {
			return 0, fmt.Errorf("number %s is out of range", clip(s))
		}
		return n, nil
	}
	if v, err := strconv.ParseInt(s, 10, 64); err != nil || v > maxExact || v < -maxExact {
		return 0, fmt.Errorf("integer %s is beyond 2^53-1", clip(s))
	}
	return n, nil
}

// checkSurrogates refuses \u escapes that are half a character: some readers replace
// them, some keep them.
func checkSurrogates(s []byte) error {
	unit := func(i int) (uint64, bool) {
		if i+6 > len(s) || s[i] != '\\' || s[i+1] != 'u' {
			return 0, false
		}
		v, err := strconv.ParseUint(string(s[i+2:i+6]), 16, 16)
		return v, err == nil
	}
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		high, ok := unit(i)
		switch {
		case !ok:
			i++ // a two-character escape
		case high >= 0xd800 && high < 0xdc00:
			low, ok := unit(i + 6)
			if !ok || low < 0xdc00 || low > 0xdfff {
				return errors.New("half a surrogate pair")
			}
			i += 11
		case high >= 0xdc00 && high < 0xe000:
			return errors.New("half a surrogate pair")
		default:
			i += 5
		}
	}
	return nil
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
