package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// measureBinary weighs the binary, which `make build` strips.
func (b *bench) measureBinary() error {
	fi, err := os.Stat(b.bin)
	if err != nil {
		return err
	}
	mb := float64(fi.Size()) / 1e6
	b.show(Figure{Name: "binary", P50: mb, P99: mb, Unit: "MB", Floor: 1, Must: 60, Dir: "max", note: "stripped"})
	return nil
}

// idleFor is how long a joined daemon does nothing before it is weighed.
const idleFor = 10 * time.Second

// measureIdle weighs the pair after it idled, and meanwhile measures starts.
func (b *bench) measureIdle(ctx context.Context, p *pair) error {
	idle := time.NewTimer(idleFor)
	defer idle.Stop()
	if b.wants("start") {
		if err := b.measureStart(ctx); err != nil {
			return err
		}
	}
	if !b.wants("rss") {
		return nil
	}
	select {
	case <-idle.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	a, z := p.a.rssMB(), p.b.rssMB()
	b.show(Figure{
		Name: "rss", P50: max(a, z), P99: max(a, z), Unit: "MB", Floor: 1, Must: 60, Dir: "max",
		note: fmt.Sprintf("VmRSS after %v idle and joined, the larger of %.1f and %.1f", idleFor, a, z),
	})
	return nil
}

// measureStart starts a daemon on a data dir that exists, again and again.
func (b *bench) measureStart(ctx context.Context) error {
	n := 10
	if b.quick {
		n = 5
	}
	home := b.path("start")
	first, err := b.up(ctx, home)
	if err != nil {
		return err
	}
	if err := first.stop(); err != nil {
		return err
	}
	var wall, inside, bare []float64
	for range n {
		d, err := b.up(ctx, home)
		if err != nil {
			return err
		}
		wall, inside = append(wall, d.took.Seconds()*1e3), append(inside, d.ready.ReadyMS)
		if err := d.stop(); err != nil {
			return err
		}
		began := time.Now()
		if err := exec.CommandContext(ctx, b.bin, "version").Run(); err != nil {
			return errors.Join(errors.New("shoal version"), err)
		}
		bare = append(bare, time.Since(began).Seconds()*1e3)
	}
	b.show(Figure{
		Name: "start", P50: quantile(wall, 0.5), P99: quantile(wall, 0.99), Unit: "ms", Floor: 1, Must: 150, Dir: "max",
		note: fmt.Sprintf("N %d, spawn to ready line, existing home; its ready_ms p50 %.1f; `shoal version` p50 %.1f", n, quantile(inside, 0.5), quantile(bare, 0.5)),
	})
	return nil
}
