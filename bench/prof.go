package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync"

	"github.com/shoalmesh/shoal/internal/node"
)

// upHere runs a daemon inside this process, so that a profile shows it.
func upHere(ctx context.Context, home string, join []string) (*daemon, error) {
	ctx, cancel := context.WithCancel(ctx)
	ready := make(chan node.Ready, 1)
	ended := make(chan error, 1)
	go pprof.Do(ctx, pprof.Labels("node", filepath.Base(home)), func(ctx context.Context) {
		ended <- node.Run(ctx, "bench", node.Options{Home: home, Listen: "127.0.0.1:0", HTTP: "off", Join: join},
			func(r node.Ready) { ready <- r })
	})
	d := &daemon{home: home, stop: sync.OnceValue(func() error { cancel(); return <-ended })}
	select {
	case r := <-ready:
		d.ready = readyLine{DID: r.DID, PeerID: r.PeerID, Addrs: r.Addrs, Socket: r.Socket, ReadyMS: r.ReadyMS}
		return d, nil
	case err := <-ended:
		cancel()
		return nil, errors.Join(errors.New("the daemon did not come up"), err)
	}
}

// profile writes a CPU profile of what is measured until the returned function is called.
func (b *bench) profile(name string, window int) (stop func(), err error) {
	if b.prof == "" || window == 0 {
		return func() {}, nil
	}
	if err := os.MkdirAll(b.prof, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(b.prof, fmt.Sprintf("%s-%d.pprof", name, window)))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { pprof.StopCPUProfile(); f.Close() }, nil
}
