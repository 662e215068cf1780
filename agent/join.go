package agent

import "strings"

// joiner puts the text of artifacts together from chunks, which may be lost, doubled or
// overlap, and from whole artifacts. It gives each byte once, in order.
type joiner struct {
	given map[string]*strings.Builder // by artifact id: what was given out
}

// take returns the new text that an event brings.
func (j *joiner) take(e Event) string {
	switch {
	case e.Chunk != nil:
		return j.chunk(e.Chunk.ArtifactID, e.Chunk.Offset, e.Chunk.Text)
	case e.Artifact != nil:
		return j.whole(string(e.Artifact.ID), partsText(e.Artifact.Parts))
	case e.Final != nil:
		var text string
		for _, a := range e.Final.Artifacts {
			text += j.whole(string(a.ID), partsText(a.Parts))
		}
		return text
	}
	return ""
}

// chunk gives what goes on where the text ended. A chunk behind a gap is dropped: the
// whole artifact brings it. One that starts over with other text is a new attempt.
func (j *joiner) chunk(id string, offset int64, text string) string {
	b := j.of(id)
	have := int64(b.Len())
	switch {
	case offset < 0 || offset > have:
		return ""
	case offset == have:
	case offset == 0 && !strings.HasPrefix(b.String(), text) && !strings.HasPrefix(text, b.String()):
		return j.restart(b, text)
	case offset+int64(len(text)) <= have:
		return ""
	default:
		text = text[have-offset:]
	}
	b.WriteString(text)
	return text
}

func (j *joiner) whole(id, text string) string {
	b := j.of(id)
	rest, ok := strings.CutPrefix(text, b.String())
	if !ok {
		return j.restart(b, text)
	}
	b.WriteString(rest)
	return rest
}

func (j *joiner) restart(b *strings.Builder, text string) string {
	b.Reset()
	b.WriteString(text)
	return "\n" + text
}

func (j *joiner) of(id string) *strings.Builder {
	if j.given == nil {
		j.given = make(map[string]*strings.Builder)
	}
	b := j.given[id]
	if b == nil {
		b = new(strings.Builder)
		j.given[id] = b
	}
	return b
}
