package main

import "context"

func (b *bench) measureBinary() error                          { return nil }
func (b *bench) measureIdle(ctx context.Context, p *pair) error { return nil }
func (b *bench) measureMail(ctx context.Context, p *pair) error { return nil }
func (b *bench) measureFind(ctx context.Context) error          { return nil }
