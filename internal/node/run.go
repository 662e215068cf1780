package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// part is something that runs until its context ends.
type part struct {
	name string
	run  func(context.Context) error
}

// runAll starts the parts in order and waits. When ctx ends, or one part ends by itself,
// they are stopped in reverse order, each waited for, so that a part still finds below it
// what it stands on. The first failure is returned, with the part's name.
func runAll(ctx context.Context, parts []part) error {
	type ended struct {
		name string
		err  error
	}
	first := make(chan ended, len(parts))
	stops := make([]context.CancelFunc, len(parts))
	dones := make([]chan struct{}, len(parts))
	for i, p := range parts {
		// Each has a context of its own, or all would stop at once.
		own, stop := context.WithCancel(context.WithoutCancel(ctx))
		stops[i], dones[i] = stop, make(chan struct{})
		go func() {
			defer close(dones[i])
			first <- ended{p.name, p.run(own)}
		}()
	}
	var err error
	select {
	case <-ctx.Done():
	case e := <-first:
		err = fmt.Errorf("%s ended by itself", e.name)
		if e.err != nil {
			err = fmt.Errorf("%s: %w", e.name, e.err)
		}
	}
	for i := len(parts) - 1; i >= 0; i-- {
		stops[i]()
		<-dones[i]
	}
	for range len(first) {
		if e := <-first; err == nil && e.err != nil && !errors.Is(e.err, context.Canceled) {
			err = fmt.Errorf("%s: %w", e.name, e.err)
		}
	}
	return err
}

// serveStreams answers each stream of a listener in a goroutine of its own.
func serveStreams(name string, l net.Listener, serve func(context.Context, net.Conn)) part {
	return part{name, func(ctx context.Context) error {
		var wg sync.WaitGroup
		defer wg.Wait()
		defer context.AfterFunc(ctx, func() { l.Close() })()
		for {
			conn, err := l.Accept()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return fmt.Errorf("accept: %w", err)
			}
			wg.Go(func() { serve(ctx, conn) })
		}
	}}
}
