package task

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal/internal/gen/wire"
)

func liveFrames(f *testing.F, ms ...proto.Message) []byte {
	var b bytes.Buffer
	for _, m := range ms {
		if _, err := protodelim.MarshalTo(&b, m); err != nil {
			f.Fatal(err)
		}
	}
	return b.Bytes()
}

// FuzzReadLive feeds an asker what a doer may write on a live stream.
func FuzzReadLive(f *testing.F) {
	status, _ := encodeStatus("TASK_STATE_COMPLETED", nil, now())
	f.Add(liveFrames(f, &wire.LiveEvent{Heartbeat: true}, &wire.LiveEvent{Event: &wire.TaskEvent{N: 2, Status: status}}))
	f.Add(liveFrames(f, &wire.LiveEvent{Error: "busy"}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f}) // a huge declared length
	f.Fuzz(func(t *testing.T, raw []byte) {
		ours, theirs := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = theirs.Write(raw); theirs.Close() })
		evs, refused, err := readLive(ours)
		ours.Close()
		wg.Wait()
		if err == nil && refused == nil && len(evs) == 0 {
			t.Error("an end without an event, a refusal or an error")
		}
	})
}

// FuzzServeLive feeds a doer what a stranger may open a live stream with.
func FuzzServeLive(f *testing.F) {
	w := newWorld(f)
	n := w.node(1, echo)
	msg, _ := encodeMessage(text("hello"))
	req := &wire.LiveRequest{
		Network: "test", Requester: n.key.Public(), Doer: n.key.Public(), TaskId: "t",
		Offer: &wire.TaskOffer{Message: msg, Skill: "echo"},
	}
	f.Add(liveFrames(f, req))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, raw []byte) {
		ours, theirs := net.Pipe()
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { n.serveLive(ctx, theirs, n.key.Node()) })
		wg.Go(func() { _, _ = io.Copy(io.Discard, ours) })
		_, _ = ours.Write(raw)
		ours.Close()
		stop()
		wg.Wait()
	})
}
