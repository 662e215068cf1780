package api

import (
	"log"
	"log/slog"
	"strings"
)

// debugLog passes on what net/http says about broken connections: the client's trouble,
// not ours.
func debugLog(l *slog.Logger) *log.Logger { return log.New(debugWriter{l}, "", 0) }

type debugWriter struct{ log *slog.Logger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.log.Debug("http", "msg", strings.TrimSpace(string(p)))
	return len(p), nil
}
