package mail_test

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoalmesh/shoal/internal/mail"
	"github.com/shoalmesh/shoal/internal/store"
)

// BenchmarkThroughput sends letters of 1 KiB from node to node over loopback TCP, each
// acknowledged after it is on both disks, with 128 outstanding. It prints the rate beside
// that of the store alone: as many callers, each inserting a row of 1 KiB.
func BenchmarkThroughput(b *testing.B) {
	const outstanding = 128
	body := bytes.Repeat([]byte("x"), 1024)
	w := newNet()
	w.tcp = true
	cfg := mail.Config{MaxInbox: 1 << 30, MaxInboxBytes: 1 << 40}
	x, y := w.node(b, 1, cfg).up(), w.node(b, 2, cfg).up()
	floor, floorCPU := insertRate(b, outstanding, body)

	var left atomic.Int64
	left.Store(int64(b.N))
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	ctx := context.Background()
	b.ResetTimer()
	start, used := time.Now(), cpuTime()
	for range outstanding {
		wg.Go(func() {
			delivered := make(chan struct{}, 1)
			for left.Add(-1) >= 0 {
				began := time.Now()
				err := x.db.Update(ctx, func(tx *store.Tx) error {
					_, err := x.box.PostWatch(tx, x.agent(), y.agent(), mail.TopicLetter, body, 0, func(s mail.State, _ string) {
						if s == mail.Delivered {
							delivered <- struct{}{}
						}
					})
					return err
				})
				if err != nil {
					b.Error(err)
					return
				}
				<-delivered
				mu.Lock()
				took = append(took, time.Since(began))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	rate := float64(b.N) / time.Since(start).Seconds()
	used = cpuTime() - used
	b.StopTimer()
	slices.Sort(took)
	st := x.stats()
	b.ReportMetric(rate, "envelopes/s")
	b.ReportMetric(floor, "inserts/s")
	b.ReportMetric(rate/floor, "ratio")
	b.ReportMetric(float64(used.Nanoseconds())/1e3/float64(b.N), "cpu-us/envelope")
	b.ReportMetric(floorCPU, "cpu-us/insert")
	b.ReportMetric(float64(st.SentEnvelopes)/float64(max(st.SentFrames, 1)), "envelopes/frame")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
}

// insertRate is what the store does by itself.
func insertRate(b *testing.B, callers int, body []byte) (rate, cpuMicros float64) {
	db, err := store.Open(store.Config{Dir: b.TempDir() + "/home"}, []store.Schema{
		{Package: "floor", Steps: []string{`CREATE TABLE floor (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT`}},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	const each = 400
	var wg sync.WaitGroup
	start, used := time.Now(), cpuTime()
	for range callers {
		wg.Go(func() {
			for range each {
				err := db.Update(context.Background(), func(tx *store.Tx) error {
					_, err := tx.Exec(`INSERT INTO floor (body) VALUES (?)`, body)
					return err
				})
				if err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	n := float64(callers * each)
	return n / time.Since(start).Seconds(), float64((cpuTime() - used).Nanoseconds()) / 1e3 / n
}
