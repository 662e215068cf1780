package main

import (
	"context"
	"slices"
	"time"
)

// series is what was measured in several windows.
type series struct {
	windows [][]float64
}

func (s *series) add(window []float64) {
	if len(window) > 0 {
		s.windows = append(s.windows, window)
	}
}

// p50 is the median of the windows' medians: one window that another program disturbed
// does not move it.
func (s *series) p50() float64 {
	var all []float64
	for _, w := range s.windows {
		all = append(all, quantile(w, 0.5))
	}
	return quantile(all, 0.5)
}

// p99 is over all samples.
func (s *series) p99() float64 { return quantile(slices.Concat(s.windows...), 0.99) }

// worst is the smallest of all samples: for rates.
func (s *series) worst() float64 { return quantile(slices.Concat(s.windows...), 0) }

func (s *series) n() int {
	n := 0
	for _, w := range s.windows {
		n += len(w)
	}
	return n
}

func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// timed calls op again and again for about span, and returns how long each call took,
// in microseconds.
func timed(ctx context.Context, span time.Duration, op func() error) ([]float64, error) {
	var out []float64
	for end := time.Now().Add(span); time.Now().Before(end) || len(out) < 5; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		began := time.Now()
		if err := op(); err != nil {
			return nil, err
		}
		out = append(out, micros(time.Since(began)))
	}
	return out, nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
