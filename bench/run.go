package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// bench is one run: where it writes, whom it tells, and what it has measured so far.
type bench struct {
	options
	printer
	root   string // homes and floor files
	bin    string
	failed bool // a figure is hopeless
}

func (b *bench) show(f Figure) {
	f.judge()
	b.failed = b.failed || f.hopeless()
	b.figure(f)
}

// run measures what is wanted and reports whether a figure was hopeless.
func run(ctx context.Context, o options, out printer) (failed bool, err error) {
	root, err := os.MkdirTemp(o.dir, "shoal-bench-")
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	b := &bench{options: o, printer: out, root: root}
	if b.bin, err = b.binary(ctx); err != nil {
		return false, err
	}
	b.remark("shoal %s; envelopes carry one Ed25519 signature a frame (hash tree); windows %d x %v", b.bin, b.windows(), b.span())
	err = b.all(ctx)
	return b.failed, err
}

func (b *bench) all(ctx context.Context) error {
	if b.wants("binary") {
		if err := b.measureBinary(); err != nil {
			return err
		}
	}
	if b.wants("task_durable", "task_live", "token", "mail_vs_jetstream", "mail_vs_store", "rss", "start") {
		if err := b.withPair(ctx); err != nil {
			return err
		}
	}
	if b.wants("find_warm", "find_cached") {
		if err := b.measureFind(ctx); err != nil {
			return fmt.Errorf("find: %w", err)
		}
	}
	return nil
}

// withPair measures what needs two joined daemons.
func (b *bench) withPair(ctx context.Context) (err error) {
	p, err := b.startPair(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()

	// The pair idles for the rss figure while others start; both come first, since work
	// makes a daemon larger.
	if b.wants("start", "rss") && b.prof == "" {
		if err := b.measureIdle(ctx, p); err != nil {
			return fmt.Errorf("start, rss: %w", err)
		}
	}
	if b.wants("task_durable", "task_live", "token") {
		if err := b.measureTasks(ctx, p); err != nil {
			return fmt.Errorf("tasks: %w", err)
		}
	}
	if b.wants("mail_vs_jetstream", "mail_vs_store") {
		if err := b.measureMail(ctx, p); err != nil {
			return fmt.Errorf("mail: %w", err)
		}
	}
	return nil
}

func (b *bench) path(elem ...string) string {
	return filepath.Join(append([]string{b.root}, elem...)...)
}
