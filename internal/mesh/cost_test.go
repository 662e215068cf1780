package mesh

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// TestCost prints what an idle node costs. It runs alone:
// SHOAL_COST=1 go test -run TestCost -v ./internal/mesh
func TestCost(t *testing.T) {
	if os.Getenv("SHOAL_COST") == "" {
		t.Skip("set SHOAL_COST=1")
	}
	rss := func() string {
		b, _ := os.ReadFile("/proc/self/status")
		for l := range strings.Lines(string(b)) {
			if strings.HasPrefix(l, "VmRSS") || strings.HasPrefix(l, "RssAnon") {
				fmt.Print(strings.TrimSpace(l), "  ")
			}
		}
		return ""
	}
	key := newKey(t)
	heap := func(what string) {
		runtime.GC()
		debug.FreeOSMemory()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		fmt.Print(what, ": ", rss(), " heap ", ms.HeapAlloc>>10, "K goroutines ", runtime.NumGoroutine(), "\n")
	}
	heap("before")
	for i := range 3 {
		cfg := Config{Network: "test"}
		cfg.Listen, _ = ListenAddrs("127.0.0.1:0")
		start := time.Now()
		m, err := New(cfg, key, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		made := time.Since(start)
		if err := m.Bind(); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%d: New %v, New+Bind %v\n", i, made, time.Since(start))
		heap("bound")
		m.Close()
	}
}
