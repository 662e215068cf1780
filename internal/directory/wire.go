package directory

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
)

// Sizes on the wire (spec/card.md §5). A frame is a varint length and that many bytes.
const (
	maxRequest  = 1 << 10
	maxCards    = 64                           // in one response
	askCards    = 32                           // that we ask for
	maxResponse = maxCards*(MaxCard+8) + 1<<10 // that we send
	maxAnswer   = askCards*(MaxCard+8) + 1<<10 // that we read
	serveTime   = 10 * time.Second             // for one request, from open to close
)

var errBadFrame = shoal.NewError(shoal.Corrupt, "bad_frame", "the card stream's frame is malformed", "")

func writeFrame(w io.Writer, m proto.Message) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	frame := append(binary.AppendUvarint(make([]byte, 0, len(body)+binary.MaxVarintLen64), uint64(len(body))), body...)
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

// readFrame reads one frame of at most most bytes into m. Memory grows with what has
// come, not with what was declared.
func readFrame(r io.Reader, most int, m proto.Message) error {
	br := bufio.NewReader(r)
	n, err := binary.ReadUvarint(br)
	if err != nil {
		return fmt.Errorf("read frame: %w", err)
	}
	if n > uint64(most) {
		return errBadFrame.With("%d bytes declared, at most %d", n, most)
	}
	var body bytes.Buffer
	if _, err := io.CopyN(&body, br, int64(n)); err != nil {
		return fmt.Errorf("read frame: %w", err)
	}
	if err := proto.Unmarshal(body.Bytes(), m); err != nil {
		return errBadFrame.Because(err)
	}
	return nil
}

// ServeConn answers one request for the cards of the agents hosted here and closes the
// stream. It returns when done, at the latest after 10 s or when ctx ends.
func (d *Directory) ServeConn(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	if err := d.serve(conn); err != nil && !errors.Is(err, io.EOF) {
		d.log.Debug("card request not answered", "node", conn.RemoteAddr().String(), "err", err)
	}
}

func (d *Directory) serve(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(serveTime)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	var req wire.CardRequest
	if err := readFrame(conn, maxRequest, &req); err != nil {
		return err
	}
	return writeFrame(conn, d.answer(&req, time.Now()))
}

// answer returns the cards that are asked for. A withdrawn agent has one only for who
// asks by its id: it is the proof that it is gone.
func (d *Directory) answer(req *wire.CardRequest, now time.Time) *wire.CardResponse {
	limit := maxCards
	if n := int(req.GetLimit()); n > 0 && n < maxCards {
		limit = n
	}
	var cards []Card
	if id := req.GetDid(); id != "" {
		if c, ok := d.hostedCard(shoal.AgentID(id)); ok && (!c.withdrawn || req.GetCapability() == "") {
			cards = append(cards, c)
		}
	} else {
		cards = d.Local()
	}
	res := &wire.CardResponse{}
	for i := range cards {
		c := &cards[i]
		if len(res.Cards) == limit {
			break
		}
		if c.checkTime(now) == nil && (req.GetCapability() == "" || c.Has(req.GetCapability())) {
			res.Cards = append(res.Cards, c.Raw)
		}
	}
	return res
}

// ask sends one request to a node and returns the cards it serves, unverified.
func (d *Directory) ask(ctx context.Context, node shoal.NodeID, req *wire.CardRequest) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.NodeTimeout)
	defer cancel()
	conn, err := d.mesh.Dial(ctx, node, Protocol)
	if err != nil {
		return nil, fmt.Errorf("ask %s for cards: %w", node, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // the deadline, and a caller that gives up
	defer stop()
	defer conn.Close()

	req.Limit = askCards
	var res wire.CardResponse
	if err := writeFrame(conn, req); err != nil {
		return nil, fmt.Errorf("ask %s for cards: %w", node, cmpErr(ctx, err))
	}
	if err := readFrame(conn, maxAnswer, &res); err != nil {
		return nil, fmt.Errorf("ask %s for cards: %w", node, cmpErr(ctx, err))
	}
	if len(res.Cards) > askCards {
		return nil, errBadFrame.With("%d cards, at most %d", len(res.Cards), askCards)
	}
	return slices.Clip(res.Cards), nil
}

// cmpErr prefers the reason why the stream was closed over the fact that it was.
func cmpErr(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
