package api

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// allPaths lists every path of either handler, made from the tables that serve them, and
// some that are in none.
func (r *running) allPaths() []string {
	paths := map[string]bool{
		"/": true, "/nope": true, "/metrics": true, "/debug/pprof/": true, "/debug/pprof/cmdline": true,
		"/shoal.v1.NodeService/Nope": true, "/shoal.v1.NodeService/": true, "/shoal.v1.NodeService": true,
		"//shoal.v1.NodeService/Status": true, "/x/../shoal.v1.NodeService/Status": true,
		"/shoal.v1.NodeService/Status/": true, "/SHOAL.V1.NodeService/Status": true, "/shoal.v1.NodeService%2FStatus": true,
		"/.well-known/agent-card.json": true, "/favicon.ico": true,
	}
	for path := range r.server.services() {
		paths[path] = true
	}
	for path := range r.server.socketOnly() {
		paths[path] = true
	}
	return slices.Sorted(maps.Keys(paths))
}

func TestNothingAnswersWithoutTheToken(t *testing.T) {
	r := start(t, &fake{}, nil)
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: false}}
	t.Cleanup(hc.CloseIdleConnections)
	tokens := map[string]string{
		"none": "", "empty": "Bearer ", "wrong": "Bearer " + strings.ToUpper(secret), "prefix": "Bearer " + secret[:42],
		"basic": "Basic " + secret,
	}
	paths := r.allPaths()
	tried := 0
	for _, path := range paths {
		for name, token := range tokens {
			for _, method := range []string{"GET", "POST", "OPTIONS", "PUT"} {
				for _, ctype := range []string{"application/json", "application/connect+json", "application/grpc", "text/plain"} {
					req, err := http.NewRequestWithContext(testContext(t), method, r.url()+path, nil)
					if err != nil {
						t.Fatal(err)
					}
					req.Header.Set("Content-Type", ctype)
					if token != "" {
						req.Header.Set("Authorization", token)
					}
					resp, err := hc.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					body, _ := io.ReadAll(resp.Body)
					resp.Body.Close()
					isGRPC := method == "POST" && ctype == "application/grpc"
					if !isGRPC && (resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("WWW-Authenticate") == "" || !strings.Contains(string(body), "unauthenticated")) ||
						isGRPC && resp.Trailer.Get("Grpc-Status") != "16" {
						t.Errorf("%s %s as %s with token %s: got %d %v %s", method, path, ctype, name, resp.StatusCode, resp.Trailer, body)
					}
					checkHeaders(t, path, resp)
					tried++
				}
			}
		}
	}
	if n := r.fake.called(); n != 0 {
		t.Errorf("services were called %d times", n)
	}
	t.Logf("%d paths, %d requests without the right token, 0 let through", len(paths), tried)
}

// checkHeaders wants what every answer must and must not have.
func checkHeaders(t *testing.T, path string, resp *http.Response) {
	t.Helper()
	if resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s: headers %v", path, resp.Header)
	}
	for name := range resp.Header {
		if strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("%s: sends the CORS header %s", path, name)
		}
	}
}

func TestUnknownPathsAre404WithTheToken(t *testing.T) {
	r := start(t, &fake{}, nil)
	for _, unix := range []bool{true, false} {
		hc := r.http(unix, false)
		known := r.server.services()
		if unix {
			known.add(r.server.socketOnly())
		}
		unknown := 0
		for _, path := range r.allPaths() {
			if _, ok := known[path]; ok {
				continue
			}
			if strings.Contains(path, "%2F") {
				continue // decodes to a path that exists
			}
			code, body := r.curl(t, hc, path, "{}")
			if code != 404 || !strings.Contains(body, "not_found") {
				t.Errorf("unix=%v %s: got %d %s", unix, path, code, body)
			}
			unknown++
		}
		t.Logf("unix=%v: %d known, %d unknown paths", unix, len(known), unknown)
	}
	if n := r.fake.called(); n != 0 {
		t.Errorf("services were called %d times", n)
	}
}

func TestForeignHostAndOriginAreRefusedEvenWithTheToken(t *testing.T) {
	r := start(t, &fake{}, nil)
	_, port, _ := net.SplitHostPort(r.addr)
	var forms []string
	for _, host := range []string{
		"evil.test", "evil.test:" + port, "127.0.0.1", "localhost", "LOCALHOST:" + port, "localhost.:" + port, "127.0.0.1:1",
		"127.0.0.2:" + port, "0.0.0.0:" + port, "[::]:" + port, "[::ffff:127.0.0.1]:" + port, "2130706433:" + port,
		"0x7f.1:" + port, "127.0.0.1.nip.io:" + port, "localhost.evil.test:" + port, "a@127.0.0.1:" + port, "127.1:" + port,
		"127.0.0.1:0" + port, "[0:0:0:0:0:0:0:1]:" + port, "xn--lcalhost-3x0d:" + port, "%6cocalhost:" + port, "",
	} {
		forms = append(forms, "Host: "+host)
	}
	good := "Host: 127.0.0.1:" + port
	for _, origin := range []string{
		"null", "", "http://evil.test", "https://evil.test", "http://evil.test:" + port, "http://127.0.0.1", "http://127.0.0.1:1",
		"http://localhost:" + port, "http://[::1]:" + port, "file://", "http://127.0.0.1:" + port + "/", "ws://127.0.0.1:" + port,
		"http://127.0.0.1:" + port + ".evil.test", "http://a@127.0.0.1:" + port, "chrome-extension://x",
	} {
		forms = append(forms, good+"\r\nOrigin: "+origin)
	}
	for _, site := range []string{"cross-site", "same-site", "Cross-Site", "same-origin,cross-site"} {
		forms = append(forms, good+"\r\nSec-Fetch-Site: "+site)
	}
	ask := func(headers string) string {
		return raw(t, "tcp", r.addr, []byte("POST /shoal.v1.NodeService/Shutdown HTTP/1.1\r\n"+headers+
			"\r\nAuthorization: Bearer "+secret+"\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"))
	}
	for _, form := range forms {
		got := ask(form)
		first, _, _ := strings.Cut(got, "\r\n")
		// net/http itself answers 400 to a Host that is no host at all.
		if !strings.HasPrefix(first, "HTTP/1.1 403") && !strings.HasPrefix(first, "HTTP/1.1 400") {
			t.Errorf("%q: got %q", form, first)
		}
	}
	if n := r.fake.called(); n != 0 {
		t.Errorf("services were called %d times", n)
	}
	for _, form := range []string{good, "Host: localhost:" + port, "Host: [::1]:" + port, good + "\r\nOrigin: http://127.0.0.1:" + port} {
		if got := ask(form); !strings.HasPrefix(got, "HTTP/1.1 200") {
			t.Errorf("control %q: got %q", form, got)
		}
	}
	t.Logf("%d forms of Host and Origin refused", len(forms))
}

// smuggled are requests whose two readings differ.
func TestSmuggledRequestsReachNoService(t *testing.T) {
	r := start(t, &fake{}, nil)
	head := "POST /shoal.v1.NodeService/Shutdown HTTP/1.1\r\nHost: " + r.addr + "\r\nContent-Type: application/json\r\n"
	inner := head + "Authorization: Bearer wrong\r\nContent-Length: 2\r\n\r\n{}"
	for name, req := range map[string]string{
		"two lengths":      head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}" + inner,
		"length and chunk": head + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
		"odd encoding":     head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + inner,
		"two hosts":        strings.Replace(head, "Host: ", "Host: evil.test\r\nHost: ", 1) + "Content-Length: 2\r\n\r\n{}",
		"minus length":     head + "Content-Length: -2\r\n\r\n{}",
		"absolute form":    strings.Replace(head, "POST /", "POST http://evil.test/", 1) + "Authorization: Bearer " + secret + "\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
		"h2c upgrade":      head + "Authorization: Bearer wrong\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.0\r\n\r\n",
		"websocket":        "GET /shoal.v1.TaskService/Watch HTTP/1.1\r\nHost: " + r.addr + "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\nGET / HTTP/1.0\r\n\r\n",
	} {
		if !strings.Contains(req, "Connection: close") {
			req += "GET / HTTP/1.0\r\n\r\n" // makes the server close
		}
		got := raw(t, "tcp", r.addr, []byte(req))
		for line := range strings.SplitSeq(got, "\n") {
			if strings.HasPrefix(line, "HTTP/") && !strings.Contains(line, " 40") && !strings.Contains(line, " 501") {
				t.Errorf("%s: got %q", name, line)
			}
		}
	}
	if n := r.fake.called(); n != 0 {
		t.Errorf("services were called %d times", n)
	}
}

// TestOddH2Requests speaks HTTP/2 by hand: what client libraries would not send.
func TestOddH2Requests(t *testing.T) {
	r := start(t, &fake{}, nil)
	auth := [2]string{"authorization", "Bearer " + secret}
	base := func(path string, more ...[2]string) [][2]string {
		return append([][2]string{
			{":method", "POST"},
			{":scheme", "http"},
			{":authority", r.addr},
			{":path", path},
			{"content-type", "application/grpc"},
			{"te", "trailers"},
		}, more...)
	}
	if got := r.h2(t, base("/shoal.v1.NodeService/Status", auth)); got[":status"] != "200" || got["grpc-status"] == "16" {
		t.Fatalf("control: got %v", got)
	}
	before := r.fake.called()
	for name, fields := range map[string][][2]string{
		"no slash":            base("shoal.v1.NodeService/Status", auth),
		"no slash, no token":  base("shoal.v1.NodeService/Status"),
		"empty path":          base("", auth),
		"star":                base("*", auth),
		"url as path":         base("http://x/shoal.v1.NodeService/Status", auth),
		"no token":            base("/shoal.v1.NodeService/Status"),
		"host disagrees":      base("/shoal.v1.NodeService/Status", auth, [2]string{"host", "evil.test"}),
		"reflection no token": base("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
		"reflection":          base("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", auth),
		"unknown method":      base("/shoal.v1.NodeService/Nope", auth),
		"two tokens":          base("/shoal.v1.NodeService/Status", auth, auth),
	} {
		got := r.h2(t, fields)
		ok := got[":status"] != "200" || got["grpc-status"] == "16" || got["grpc-status"] == "12" || got["grpc-status"] == "7"
		if !ok {
			t.Errorf("%s: got %v", name, got)
		}
	}
	if n := r.fake.called() - before; n != 0 {
		t.Errorf("services were called %d times", n)
	}
}

// h2 sends one request and returns the headers and trailers that come back; "reset" is
// set if the stream or connection was ended instead.
func (r *running) h2(t *testing.T, fields [][2]string) map[string]string {
	t.Helper()
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline, _ := testContext(t).Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range fields {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprint(conn, http2.ClientPreface)
	fr := http2.NewFramer(conn, bufio.NewReader(conn))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = fr.WriteSettings()
	if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	_ = fr.WriteData(1, true, make([]byte, 5)) // an empty gRPC message
	got := map[string]string{}
	for {
		frame, err := fr.ReadFrame()
		if err != nil {
			got["reset"] = err.Error()
			return got
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			for _, h := range f.Fields {
				got[h.Name] = h.Value
			}
			if f.StreamEnded() {
				return got
			}
		case *http2.DataFrame:
			if f.StreamEnded() {
				return got
			}
		case *http2.RSTStreamFrame:
			got["reset"] = f.ErrCode.String()
			return got
		case *http2.GoAwayFrame:
			got["reset"] = f.ErrCode.String()
			return got
		}
	}
}

func TestHugeMetadataIsRefused(t *testing.T) {
	r := start(t, &fake{}, nil)
	for name, target := range map[string]string{"unix": "unix:" + r.socket, "tcp": "dns:///" + r.addr} {
		conn := r.grpc(t, target)
		ctx := metadata.AppendToOutgoingContext(testContext(t), "authorization", "Bearer "+secret, "x-big", strings.Repeat("x", 10<<20))
		err := conn.Invoke(ctx, "/shoal.v1.NodeService/Status", &shoalv1.StatusRequest{}, &shoalv1.StatusResponse{})
		if err == nil || status.Code(err) == codes.OK {
			t.Errorf("%s: 10 MiB of metadata were taken", name)
		}
	}
	got := raw(t, "tcp", r.addr, []byte("POST /shoal.v1.NodeService/Status HTTP/1.1\r\nHost: "+r.addr+"\r\nX-Big: "+strings.Repeat("x", 10<<20)+"\r\n\r\n"))
	if !strings.HasPrefix(got, "HTTP/1.1 431") {
		t.Errorf("h1: got %.40q, want 431", got)
	}
	if n := r.fake.called(); n != 0 {
		t.Errorf("services were called %d times", n)
	}
}

func TestHugeBodiesAreRefused(t *testing.T) {
	r := start(t, &fake{}, nil)
	hc := r.http(false, false)
	text := func(n int) string {
		return `{"to":"alice","message":{"parts":[{"text":"` + strings.Repeat("x", n) + `"}]}}`
	}
	if code, body := r.curl(t, hc, "/shoal.v1.TaskService/Send", text(1<<20-1000)); code != 200 {
		t.Errorf("control of almost 1 MiB: %d %.200s", code, body)
	}
	for _, n := range []int{1 << 20, 3 << 20, 5 << 20, 16 << 20} {
		code, body := r.curl(t, hc, "/shoal.v1.TaskService/Send", text(n))
		if code != 400 || !strings.Contains(body, "invalid_argument") {
			t.Errorf("%d bytes: got %d %.200s", n, code, body)
		}
	}
	// Declared, never sent.
	got := raw(t, "tcp", r.addr, []byte("POST /shoal.v1.TaskService/Send HTTP/1.1\r\nHost: "+r.addr+"\r\nAuthorization: Bearer "+secret+
		"\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\nConnection: close\r\n\r\n{"))
	if !strings.HasPrefix(got, "HTTP/1.1 400") {
		t.Errorf("1 GiB declared: got %.60q", got)
	}
	// Compressed: 16 MiB of one letter are 16 KiB on the wire.
	c := r.clients(r.http(false, true), connect.WithSendGzip(), connect.WithGRPC())
	_, err := c.tasks.Send(testContext(t), connect.NewRequest(&shoalv1.SendRequest{To: strings.Repeat("a", 16<<20)}))
	if connect.CodeOf(err) != connect.CodeResourceExhausted && connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("bomb: got %v", err)
	}
	if n := len(r.fake.requests); n != 1 {
		t.Errorf("%d requests went through, want the control only", n)
	}
}

func TestTooManyCallsAreRefused(t *testing.T) {
	s := make(slots, 2)
	for i, want := range []bool{true, true, false} {
		if got := s.take(); got != want {
			t.Errorf("slot %d of two: got %v", i+1, got)
		}
	}
	s.give()
	if !s.take() {
		t.Error("a slot that was given back is free")
	}
}

func TestOnlyLoopbackIsServed(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", "[::]:0"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Logf("%s: %v", addr, err) // no IPv6 here
			continue
		}
		s := New(Config{}, services(&fake{}), discard())
		if err := s.Run(context.Background(), nil, l); err == nil || !strings.Contains(err.Error(), "would be served on") {
			t.Errorf("%s: got %v, want it refused", addr, err)
		}
		if _, err := l.Accept(); err == nil {
			t.Errorf("%s: the listener is still open", addr)
		}
	}
}
