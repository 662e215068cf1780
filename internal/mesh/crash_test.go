package mesh

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

// childEnv tells the test binary to be a node: "SEED-HEX LISTEN-ADDR,…".
const childEnv = "SHOAL_MESH_CHILD"

// child runs a node with an echo until it is killed, and prints its addresses.
func child(spec string) error {
	seed, listen, _ := strings.Cut(spec, " ")
	var s [32]byte
	if _, err := hex.Decode(s[:], []byte(seed)); err != nil {
		return err
	}
	key, err := identity.FromSeed(s[:])
	if err != nil {
		return err
	}
	m, err := New(Config{Network: "test", Listen: strings.Split(listen, ",")}, key, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	l, err := m.Listen(echoProto)
	if err != nil {
		return err
	}
	if err := m.Bind(); err != nil {
		return err
	}
	fmt.Println(strings.Join(m.Addrs(), ","))
	go func() { _ = m.Run(context.Background()) }()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// spawn starts a child and returns its addresses and how to kill it.
func spawn(t *testing.T, listen string) (addrs string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Repeat("07", 32)+" "+listen)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line), kill
}

// TestKilledPeerIsReachedAtOnceWhenItIsBack kills a peer without a word, so that this
// side still believes in its connection, and starts it again on the same port.
func TestKilledPeerIsReachedAtOnceWhenItIsBack(t *testing.T) {
	for name, listen := range map[string]string{
		"quic": "/ip4/127.0.0.1/udp/0/quic-v1",
		"tcp":  "/ip4/127.0.0.1/tcp/0",
	} {
		t.Run(name, func(t *testing.T) {
			addrs, kill := spawn(t, listen)
			where, _, _ := strings.Cut(addrs, "/p2p/")
			a := start(t, newKey(t), quick)
			ids, err := a.Join(t.Context(), []string{addrs})
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if got, err := say(t.Context(), a, ids[0], echoProto, "alive"); got != "alive" || err != nil {
					t.Fatalf("echo = %q, %v", got, err)
				}
				kill()
				_, kill = spawn(t, where)
				begin, tries := time.Now(), 0
				for {
					ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
					got, err := sayBy(ctx, a, ids[0], "back")
					cancel()
					tries++
					if got == "back" && err == nil {
						break
					}
					if time.Since(begin) > 10*time.Second {
						t.Fatalf("not reached: %v", err)
					}
				}
				t.Logf("reached %v after the restart, try %d", time.Since(begin), tries)
			}
		})
	}
}

// sayBy is say with ctx's deadline on the connection.
func sayBy(ctx context.Context, n *testNode, to shoal.NodeID, text string) (string, error) {
	c, err := n.Dial(ctx, to, echoProto)
	if err != nil {
		return "", err
	}
	defer c.Close()
	by, _ := ctx.Deadline()
	if err := c.SetDeadline(by); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	b := make([]byte, len(text))
	_, err = io.ReadFull(c, b)
	return string(b), err
}
