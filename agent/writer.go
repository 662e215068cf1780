package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
)

const (
	// AnswerID is the id and name of the artifact that holds the text written to a [Writer].
	AnswerID = "answer"

	// maxAnswer leaves room for the rest of a report in the envelope that carries it, so
	// that a handler hears at once what the daemon would say in the end.
	maxAnswer = shoal.MaxBody - 16<<10
)

// Writer takes a handler's answer. Text is streamed as it is written; pieces that are
// written faster than the connection carries them travel together. It is safe for
// concurrent use until the handler returns; then it refuses with reason task_finished.
type Writer struct {
	s *session
	t *Task

	mu       sync.Mutex
	text     strings.Builder // valid UTF-8: all that was written
	half     []byte          // the begin of a character whose rest is not written yet
	sent     int             // bytes of text given to the connection
	reported int             // bytes of text in the newest durable report
	queued   bool            // the chunker has this writer on its list
	done     bool

	asking sync.Mutex // one question at a time
}

func newWriter(s *session, t *Task) *Writer {
	return &Writer{s: s, t: t}
}

// Write adds text in UTF-8 to the answer; a character may be split between two calls,
// and bytes that are no UTF-8 become U+FFFD. It does not wait for the connection. It
// fails with reason answer_too_large above 240 KiB, and with task_finished too late.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	err := w.add(p)
	wake := err == nil && !w.queued && w.text.Len() > w.sent
	if wake {
		w.queued = true
	}
	w.mu.Unlock()

	if err != nil {
		return 0, err
	}
	if wake {
		w.s.chunks.push(w)
	}
	return len(p), nil
}

// WriteString is Write for a string.
func (w *Writer) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

func (w *Writer) add(p []byte) error {
	if w.done {
		return errFinished
	}
	if w.text.Len()+len(w.half)+len(p) > maxAnswer {
		return shoal.NewError(shoal.Exhausted, "answer_too_large",
			fmt.Sprintf("the answer is larger than %d bytes", maxAnswer), "return a reference instead, such as a URL part")
	}
	if len(w.half) > 0 {
		p = append(w.half, p...)
		w.half = nil
	}
	whole := len(p) - halfRune(p)
	w.half = append(w.half, p[whole:]...)
	w.text.WriteString(strings.ToValidUTF8(string(p[:whole]), "\uFFFD"))
	return nil
}

// halfRune returns the length of an incomplete character at the end of p.
func halfRune(p []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(p); n++ {
		if c := p[len(p)-n]; utf8.RuneStart(c) {
			if !utf8.FullRune(p[len(p)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}

// take returns up to limit bytes of text that were not sent yet, cut between
// characters. The writer leaves the chunker's list when there is nothing.
func (w *Writer) take(limit int) (offset int, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text = w.text.String()[w.sent:]
	if w.done || text == "" {
		w.queued = false
		return 0, ""
	}
	if len(text) > limit {
		for limit > 0 && !utf8.RuneStart(text[limit]) {
			limit--
		}
		text = text[:limit]
	}
	offset = w.sent
	w.sent += len(text)
	return offset, text
}

// Artifact reports a finished artifact beside the answer, durably. A second one of the
// same name replaces the first. Parts are text, raw bytes, a URL, or data that is a
// JSON object (map[string]any).
func (w *Writer) Artifact(name string, parts ...*a2a.Part) error {
	if name == "" || name == AnswerID {
		return shoal.NewError(shoal.Invalid, "bad_artifact", fmt.Sprintf("an artifact cannot be named %q", name),
			"give it a name of its own; text of the answer goes to Write")
	}
	return w.report(report{artifacts: []*a2a.Artifact{{ID: a2a.ArtifactID(name), Name: name, Parts: parts}}})
}

// Status reports that the work goes on, with a word about how far it is.
func (w *Writer) Status(text string) error {
	return w.report(report{state: a2a.TaskStateWorking, message: w.t.say(text)})
}

// Ask asks the requester back and returns the answer. Meanwhile the task is
// INPUT_REQUIRED and the handler holds none of the agent's places; it may take days.
// If the connection is lost while waiting, ctx ends with it; the task is then handed to
// a handler again when the answer is there, with the conversation in t.History.
func (w *Writer) Ask(ctx context.Context, prompt string) (*a2a.Message, error) {
	w.asking.Lock()
	defer w.asking.Unlock()
	answer := w.snapshot()
	err := w.report(report{state: a2a.TaskStateInputRequired, message: w.t.say(prompt), artifacts: answer})
	if err != nil {
		return nil, err
	}
	<-w.s.slots
	msg, err := w.t.input(ctx)
	w.s.slots <- struct{}{} // running handlers end, so a place becomes free
	return msg, err
}

func (t *Task) input(ctx context.Context) (*a2a.Message, error) {
	select {
	case m := <-t.inputs:
		return m, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (w *Writer) report(r report) error {
	w.mu.Lock()
	done := w.done
	w.mu.Unlock()
	if done {
		return errFinished
	}
	return w.s.report(w.t, r)
}

// snapshot returns the answer as an artifact if it has grown since the last one.
func (w *Writer) snapshot() []*a2a.Artifact {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.text.Len() == w.reported {
		return nil
	}
	w.reported = w.text.Len()
	part := a2a.NewTextPart(w.text.String())
	return []*a2a.Artifact{{ID: AnswerID, Name: AnswerID, Parts: []*a2a.Part{part}}}
}

// close ends the answer: text that was not sent yet travels in the returned artifact.
func (w *Writer) close() []*a2a.Artifact {
	w.mu.Lock()
	w.done = true
	if len(w.half) > 0 {
		w.text.WriteString("\uFFFD")
		w.half = nil
	}
	w.mu.Unlock()
	return w.snapshot()
}
