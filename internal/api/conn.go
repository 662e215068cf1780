package api

import (
	"bufio"
	"net"
)

// readAhead is how much is read from a connection at once. A stream's small messages
// come many to a packet; the largest frame of HTTP/2 is as large.
const readAhead = 16 << 10

// aheadListener accepts connections that read ahead. net/http reads HTTP/2 without TLS
// straight from the connection, which costs two system calls a frame.
type aheadListener struct{ net.Listener }

func (l aheadListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &aheadConn{Conn: c, in: bufio.NewReaderSize(c, readAhead)}, nil
}

// aheadConn is a connection with a buffer for what it receives; like any, it has one
// reader at a time.
type aheadConn struct {
	net.Conn
	in *bufio.Reader
}

// Read reads from the buffer first.
func (c *aheadConn) Read(p []byte) (int, error) { return c.in.Read(p) }

// CloseWrite ends the sending direction: net/http looks for it, so that a caller reads
// an early refusal before the connection is reset.
func (c *aheadConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
