package store

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const insertKV = "INSERT INTO kv (v) VALUES (?)"

func benchDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp(os.Getenv("SHOAL_BENCH_DIR"), "store-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// floor is what a durable KiB costs without us: a write and an fdatasync in a file that
// has its length already.
type floor struct {
	f *os.File
	n int64
}

const floorSize = 8 << 20

func newFloor(b *testing.B, dir string) *floor {
	b.Helper()
	f, err := os.Create(filepath.Join(dir, "floor"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	if _, err := f.Write(make([]byte, floorSize)); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return &floor{f: f}
}

func (f *floor) write(b *testing.B, row []byte) {
	if _, err := f.f.WriteAt(row, f.n%floorSize); err != nil {
		b.Fatal(err)
	}
	if err := fdatasync(f.f); err != nil {
		b.Fatal(err)
	}
	f.n += int64(len(row))
}

func percentile(d []time.Duration, p int) float64 {
	slices.Sort(d)
	return float64(d[len(d)*p/100].Microseconds())
}

// BenchmarkUpdate1 alternates one Update of one 1 KiB row with the floor, so that both
// meet the same disk.
func BenchmarkUpdate1(b *testing.B) {
	dir := benchDir(b)
	f := newFloor(b, dir)
	db := open(b, filepath.Join(dir, "home"), kv)
	ctx := context.Background()
	row := make([]byte, 1024)
	var floors, updates []time.Duration
	b.ReportAllocs()
	for b.Loop() {
		t0 := time.Now()
		f.write(b, row)
		t1 := time.Now()
		if err := db.Update(ctx, func(tx *Tx) error { _, err := tx.Exec(insertKV, row); return err }); err != nil {
			b.Fatal(err)
		}
		floors = append(floors, t1.Sub(t0))
		updates = append(updates, time.Since(t1))
	}
	fp, up := percentile(floors, 50), percentile(updates, 50)
	b.ReportMetric(fp, "floor-p50-us")
	b.ReportMetric(up, "p50-us")
	b.ReportMetric(percentile(floors, 99), "floor-p99-us")
	b.ReportMetric(percentile(updates, 99), "p99-us")
	b.ReportMetric(up/fp, "x-floor-p50")
}

func benchUpdate(b *testing.B, outstanding int) {
	db := open(b, benchDir(b), kv)
	ctx := context.Background()
	row := make([]byte, 1024)
	update := func() {
		if err := db.Update(ctx, func(tx *Tx) error { _, err := tx.Exec(insertKV, row); return err }); err != nil {
			b.Error(err)
		}
	}
	before := db.Stats()
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	start := time.Now()
	var wg sync.WaitGroup
	for range outstanding {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				update()
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	s := db.Stats()
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "updates/s")
	b.ReportMetric(float64(s.Updates-before.Updates)/float64(max(1, s.Commits-before.Commits)), "updates/commit")
}

func BenchmarkUpdate32(b *testing.B)   { benchUpdate(b, 32) }
func BenchmarkUpdate128(b *testing.B)  { benchUpdate(b, 128) }
func BenchmarkUpdate1024(b *testing.B) { benchUpdate(b, 1024) }

// BenchmarkViewOne reads one row in a View.
func BenchmarkViewOne(b *testing.B) {
	db := open(b, benchDir(b), kv)
	ctx := context.Background()
	if err := db.Update(ctx, func(tx *Tx) error { _, err := tx.Exec(insertKV, make([]byte, 1024)); return err }); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		var v []byte
		err := db.View(ctx, func(tx *Tx) error { _, err := tx.One("SELECT v FROM kv WHERE k = ?", []any{1}, &v); return err })
		if err != nil || len(v) != 1024 {
			b.Fatal(err, len(v))
		}
	}
}

// BenchmarkOpen opens and closes a database that is there.
func BenchmarkOpen(b *testing.B) {
	dir := filepath.Join(benchDir(b), "home")
	shut(b, open(b, dir, kv))
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		db, err := Open(Config{Dir: dir}, []Schema{kv}, nil)
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
		shut(b, db)
	}
	b.ReportMetric(percentile(took, 50), "p50-open-us")
	b.ReportMetric(percentile(took, 99), "p99-open-us")
}
