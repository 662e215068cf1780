package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/internal/store"
)

const outstanding = 128

var letter = bytes.Repeat([]byte("x"), payload)

// measureMail lets letters from a to b take turns with JetStream and with the bare store.
func (b *bench) measureMail(ctx context.Context, p *pair) (err error) {
	from, to := dialAPI(p.a.ready.Socket), dialAPI(p.b.ready.Socket)
	defer from.close()
	defer to.close()
	rates := map[string]func() (float64, error){
		"mail": func() (float64, error) { return postLetters(ctx, from, p.b.ready.DID, b.mailSpan()) },
	}
	if b.wants("mail_vs_jetstream") {
		js, err := openJetStream(b.path("jetstream"))
		if err != nil {
			return fmt.Errorf("jetstream: %w", err)
		}
		defer js.close()
		rates["jetstream"] = func() (float64, error) { return js.publish(ctx, b.mailSpan()) }
	}
	if b.wants("mail_vs_store") {
		db, err := openRows(b.path("rows"))
		if err != nil {
			return err
		}
		defer db.Close()
		rates["store"] = func() (float64, error) { return insertRows(ctx, db, b.mailSpan()) }
	}

	got, used := map[string]*series{}, &series{}
	for i := range b.windows() + 1 {
		for _, name := range []string{"jetstream", "mail", "store"} {
			if rates[name] == nil {
				continue
			}
			stopProf, err := b.profile(name, i)
			if err != nil {
				return err
			}
			before := p.a.cpu() + p.b.cpu()
			began := time.Now()
			rate, err := rates[name]()
			stopProf()
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if name == "mail" {
				took := micros(p.a.cpu() + p.b.cpu() - before)
				if i > 0 {
					used.add([]float64{took / (rate * time.Since(began).Seconds())})
				}
				// The inbox holds 100,000 letters by default; a reader would take them out.
				if err := emptyInbox(ctx, to); err != nil {
					return fmt.Errorf("inbox: %w", err)
				}
			}
			if i == 0 {
				continue // warming up
			}
			if got[name] == nil {
				got[name] = &series{}
			}
			got[name].add([]float64{rate})
		}
	}
	b.showMail(got, used)
	return nil
}

// mailSpan is longer than other windows: a rate needs time to settle.
func (b *bench) mailSpan() time.Duration { return 2 * b.span() }

func (b *bench) showMail(got map[string]*series, used *series) {
	m := got["mail"]
	note := fmt.Sprintf("N %d windows; p99 is the worst; CPU of both daemons %.0f us/envelope", m.n(), used.p50())
	if js := got["jetstream"]; js != nil {
		b.show(Figure{
			Name: "mail_vs_jetstream", P50: m.p50(), P99: m.worst(), Unit: "1/s", Floor: js.p50(), Must: 1.5, Dir: "min",
			note: note + "; peer JetStream, file storage, sync always, async publish",
		})
	}
	if s := got["store"]; s != nil {
		b.show(Figure{
			Name: "mail_vs_store", P50: m.p50(), P99: m.worst(), Unit: "1/s", Floor: s.p50(), Must: 0.4, Dir: "min",
			note: note + "; floor our group commit of 1 KiB rows, 128 callers",
		})
	}
}

// postLetters posts letters over one stream for about span, with at most 128 that are
// not on the receiver's disk, and returns how many were delivered a second.
func postLetters(ctx context.Context, from *api, to string, span time.Duration) (float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream := from.mail.Post(ctx)
	slots := make(chan struct{}, outstanding)
	delivered := make(chan int, 1)
	go func() {
		n := 0
		defer func() { delivered <- n }()
		for {
			resp, err := stream.Receive()
			switch {
			case err != nil: // io.EOF once all have their outcome
				return
			case resp.GetState() == "delivered":
				n++
				<-slots
			case resp.GetState() != "stored":
				cancel(fmt.Errorf("a letter was %s: %s", resp.GetState(), resp.GetReason()))
				return
			}
		}
	}()
	began := time.Now()
	sent := 0
	for end := began.Add(span); time.Now().Before(end); sent++ {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		if err := stream.Send(&shoalv1.PostRequest{To: to, Body: letter, Tag: uint64(sent)}); err != nil {
			return 0, errors.Join(err, context.Cause(ctx))
		}
	}
	if err := stream.CloseRequest(); err != nil {
		return 0, err
	}
	n := <-delivered
	took := time.Since(began)
	if n != sent {
		return 0, errors.Join(fmt.Errorf("%d of %d letters were delivered", n, sent), context.Cause(ctx), stream.CloseResponse())
	}
	return float64(n) / took.Seconds(), stream.CloseResponse()
}

func emptyInbox(ctx context.Context, of *api) error {
	for {
		resp, err := of.mail.Inbox(ctx, connect.NewRequest(&shoalv1.InboxRequest{PageSize: 1000}))
		if err != nil || len(resp.Msg.GetLetters()) == 0 {
			return err
		}
		var cursors []uint64
		for _, l := range resp.Msg.GetLetters() {
			cursors = append(cursors, l.GetCursor())
		}
		if _, err := of.mail.Ack(ctx, connect.NewRequest(&shoalv1.AckRequest{Cursors: cursors})); err != nil {
			return err
		}
	}
}

// openRows opens a database of one table: what our store does without anything of ours
// on top.
func openRows(dir string) (*store.DB, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	return store.Open(store.Config{Dir: dir}, []store.Schema{
		{Package: "floor", Steps: []string{`CREATE TABLE floor (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT`}},
	}, slog.New(slog.DiscardHandler))
}

// insertRows has 128 callers insert a row each, again and again.
func insertRows(ctx context.Context, db *store.DB, span time.Duration) (float64, error) {
	var wg sync.WaitGroup
	var n atomic.Int64
	errs := make(chan error, outstanding)
	began := time.Now()
	for range outstanding {
		wg.Go(func() {
			for time.Since(began) < span {
				err := db.Update(ctx, func(tx *store.Tx) error {
					_, err := tx.Exec(`INSERT INTO floor (body) VALUES (?)`, letter)
					return err
				})
				if err != nil {
					errs <- err
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	select {
	case err := <-errs:
		return 0, err
	default:
		return float64(n.Load()) / took.Seconds(), nil
	}
}
