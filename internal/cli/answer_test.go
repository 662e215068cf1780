package cli

import (
	"strings"
	"testing"
)

func TestAnswerPrintsEachByteOnce(t *testing.T) {
	type piece struct {
		offset int64
		text   string
	}
	for _, c := range []struct {
		name    string
		pieces  []piece
		whole   string
		printed string // by pieces, then "|", then by the whole
	}{
		{"no pieces", nil, "abc", "|abc"},
		{"all pieces", []piece{{0, "ab"}, {2, "c"}}, "abc", "abc|"},
		{"joined late", []piece{{2, "c"}}, "abc", "|abc"},
		{"repeated", []piece{{0, "ab"}, {0, "ab"}, {1, "bc"}}, "abc", "abc|"},
		{"hole", []piece{{0, "a"}, {2, "c"}, {1, "b"}}, "abc", "a|bc"},
		{"negative offset", []piece{{-1, "a"}}, "abc", "|abc"},
		{"other text", []piece{{0, "ab"}, {0, "xy"}}, "xyz", "ab|xyz"},
		{"other text, longer", []piece{{0, "ab"}, {1, "yz"}}, "ayz", "ab|ayz"},
		{"shorter whole", []piece{{0, "abc"}}, "ab", "abc|ab"},
		{"empty whole", []piece{{0, "abc"}}, "", "abc|"},
		{"late piece", []piece{{0, "a"}}, "abc", "a|bc"},
		{"too much", []piece{{0, strings.Repeat("x", maxHeld+1)}}, "x", "|x"},
	} {
		var a answer
		var got strings.Builder
		for _, p := range c.pieces {
			got.WriteString(a.chunk(p.offset, p.text))
		}
		rest, differs := a.finish(c.whole)
		got.WriteString("|" + rest)
		if got.String() != c.printed {
			t.Errorf("%s: printed %q, want %q", c.name, got.String(), c.printed)
		}
		if want := !strings.HasPrefix(c.whole, strings.Split(c.printed, "|")[0]); differs != want {
			t.Errorf("%s: differs = %v, want %v", c.name, differs, want)
		}
		if late := a.chunk(0, "late"); late != "" {
			t.Errorf("%s: a piece after the whole printed %q", c.name, late)
		}
	}
}

// Whatever subset of honest pieces arrives in whatever order, the reader sees the text.
func FuzzAnswer(f *testing.F) {
	f.Add("Roses are red", []byte{0, 5, 3, 4, 200, 1})
	f.Add("", []byte{1})
	f.Fuzz(func(t *testing.T, whole string, cuts []byte) {
		var a answer
		printed := ""
		for i := 0; i+1 < len(cuts); i += 2 {
			from := min(int(cuts[i]), len(whole))
			to := min(from+int(cuts[i+1]), len(whole))
			printed += a.chunk(int64(from), whole[from:to])
			if !strings.HasPrefix(whole, printed) {
				t.Fatalf("printed %q of %q", printed, whole)
			}
		}
		rest, differs := a.finish(whole)
		if differs || printed+rest != whole {
			t.Fatalf("printed %q then %q of %q, differs %v", printed, rest, whole, differs)
		}
	})
}
