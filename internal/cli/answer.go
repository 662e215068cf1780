package cli

import "strings"

// maxHeld bounds what is remembered of one streamed answer for comparison with the
// durable artifact, which is far smaller.
const maxHeld = 4 << 20

// answer joins the two sources of an artifact's text, chunks that may be lost, repeated
// or restarted and the durable whole, into one text printed once.
type answer struct {
	shown strings.Builder // what was printed, a prefix of the text unless torn
	torn  bool            // a chunk contradicted what was printed, or was lost before
	done  bool
}

// chunk returns what to print of a piece whose first byte is the text's offset-th.
func (a *answer) chunk(offset int64, text string) string {
	have := int64(a.shown.Len())
	switch {
	case a.done || a.torn:
		return ""
	case offset < 0 || offset > have || have+int64(len(text)) > maxHeld:
		// A hole: the artifact brings it. Text after a hole would read as if it followed.
		a.torn = true
		return ""
	}
	overlap := min(have-offset, int64(len(text)))
	if a.shown.String()[offset:offset+overlap] != text[:overlap] {
		a.torn = true // another attempt writes another answer
		return ""
	}
	fresh := text[overlap:]
	a.shown.WriteString(fresh)
	return fresh
}

// finish returns what to print of the whole text, and whether it contradicts what was
// printed, in which case that is all of it.
func (a *answer) finish(whole string) (rest string, differs bool) {
	shown := a.shown.String()
	a.done = true
	a.shown.Reset()
	a.shown.WriteString(whole)
	if fresh, ok := strings.CutPrefix(whole, shown); ok {
		return fresh, false
	}
	return whole, true
}
