package task

import (
	"sync"

	"github.com/shoalmesh/shoal"
)

// maxChunkBytes bounds the text that is kept of one running task for late watchers;
// older text is dropped, the durable artifact holds the whole.
const maxChunkBytes = 1 << 20

// hub wakes those who watch a task and keeps the chunks of running ones. It holds no
// truth: whoever is woken reads the log.
type hub struct {
	mu     sync.Mutex
	topics map[shoal.TaskKey]*topic
}

// topic is one task that is watched, or whose chunks are kept.
type topic struct {
	watchers map[*watcher]struct{}
	chunks   []shoal.Chunk
	first    int // index of chunks[0] since the topic was made
	bytes    int
	end      map[string]int64 // of each artifact's text, so that a second source adds nothing twice
	joined   bool             // somebody follows the doer's stream for all watchers
	remote   bool             // the chunks come from another node, which can send them again
}

// watcher is one who waits. Its channel has capacity 1: a wake-up says "look again".
type watcher struct {
	hub  *hub
	key  shoal.TaskKey
	role Role
	wake chan struct{}
	next int  // index of the next chunk
	ends bool // wants to hear only of a terminal or interrupted state
	log  bool // the log has grown since [watcher.grown]
}

func newHub() *hub { return &hub{topics: map[shoal.TaskKey]*topic{}} }

// watch registers a watcher; close must be called.
func (h *hub) watch(role Role, key shoal.TaskKey, ends bool) *watcher {
	w := &watcher{hub: h, key: key, role: role, wake: make(chan struct{}, 1), ends: ends, log: true}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.topic(key).watchers[w] = struct{}{}
	return w
}

// topic must be called with mu held.
func (h *hub) topic(key shoal.TaskKey) *topic {
	t := h.topics[key]
	if t == nil {
		t = &topic{watchers: map[*watcher]struct{}{}, end: map[string]int64{}}
		h.topics[key] = t
	}
	return t
}

func (w *watcher) close() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	t := w.hub.topics[w.key]
	delete(t.watchers, w)
	w.hub.drop(w.key, t)
}

func (h *hub) drop(key shoal.TaskKey, t *topic) {
	if len(t.watchers) == 0 && (len(t.chunks) == 0 || t.remote) {
		delete(h.topics, key)
	}
}

// take returns the chunks that came since the last call.
func (w *watcher) take() []shoal.Chunk {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	t := w.hub.topics[w.key]
	from := max(0, w.next-t.first)
	if from >= len(t.chunks) {
		return nil
	}
	out := t.chunks[from:len(t.chunks):len(t.chunks)]
	w.next = t.first + len(t.chunks)
	return out
}

// grown reports whether there may be something new in the log, and forgets it.
func (w *watcher) grown() bool {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	was := w.log
	w.log = false
	return was
}

// wake tells the watchers of a role that the task's log has grown; settled says that it
// is now terminal or interrupted.
func (h *hub) wake(role Role, key shoal.TaskKey, settled bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.topics[key]; t != nil {
		for w := range t.watchers {
			if w.role == role && (settled || !w.ends) {
				w.log = true
				w.signal()
			}
		}
	}
}

func (w *watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// chunk keeps a piece of text and wakes all who watch the task, in any role.
func (h *hub) chunk(key shoal.TaskKey, c shoal.Chunk) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.topic(key)
	if c.Offset < t.end[c.ArtifactID] || len(t.end) >= 64 && t.end[c.ArtifactID] == 0 {
		return // seen already, or more artifacts than a person could watch
	}
	t.end[c.ArtifactID] = c.Offset + int64(len(c.Text))
	t.chunks = append(t.chunks, c)
	t.bytes += len(c.Text)
	for t.bytes > maxChunkBytes && len(t.chunks) > 1 {
		t.bytes -= len(t.chunks[0].Text)
		t.chunks = t.chunks[1:]
		t.first++
	}
	for w := range t.watchers {
		if !w.ends {
			w.signal()
		}
	}
}

// forgetChunks drops the chunks of a task that has ended.
func (h *hub) forgetChunks(key shoal.TaskKey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.topics[key]; t != nil {
		t.first += len(t.chunks)
		t.chunks, t.bytes = nil, 0
		h.drop(key, t)
	}
}

// join reports whether the caller is to follow the doer's stream for all watchers of the
// task; it must call leave when it stops.
func (w *watcher) join() bool {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	t := w.hub.topics[w.key]
	if t.joined {
		return false
	}
	t.joined, t.remote = true, true
	return true
}

// leave lets another watcher join.
func (w *watcher) leave() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	t := w.hub.topics[w.key]
	t.joined = false
	for other := range t.watchers {
		if other != w {
			other.signal()
		}
	}
}
