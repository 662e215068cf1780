// Package httpguard decides whether an HTTP request to a loopback surface may go on:
// is it meant for us (Host), is it not sent by a foreign web page (Origin,
// Sec-Fetch-Site), and does its sender know the token.
//
// It promises that a request it lets through names this very listener, or a name the
// operator allowed, and that a page from elsewhere cannot use a browser to reach us,
// neither by DNS rebinding nor by a cross-site request. Tokens are compared in
// constant time. It sends no CORS headers, so no page may read an answer.
//
// It writes no response and knows no route: each edge (api, later a2ahttp, gateway,
// mcp and console) asks it first and refuses in the words of its own protocol.
package httpguard

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/shoalmesh/shoal"
)

// The refusals, in the order in which they are looked for. Their messages are constant:
// nothing that was sent is echoed. A Denied one is HTTP status 403, an Unauthenticated
// one 401.
var (
	ErrHost = shoal.NewError(shoal.Denied, "bad_host", "the Host header names another server",
		"call it as 127.0.0.1, localhost or [::1] with the port it listens on, or add the name to allowed_hosts")
	ErrOrigin = shoal.NewError(shoal.Denied, "bad_origin", "requests from other web sites are refused",
		"call from the same origin, or from a program that sends no Origin header")
	ErrNoToken = shoal.NewError(shoal.Unauthenticated, "token_missing", "a bearer token is needed",
		"send \"Authorization: Bearer TOKEN\" with the content of the token file in the data dir")
	ErrToken = shoal.NewError(shoal.Unauthenticated, "token_wrong", "the bearer token is wrong",
		"send the content of the token file in the data dir; a new data dir has a new token")
)

// Config says what a guard lets through.
type Config struct {
	// Token is what callers must know. The zero Token is known by nobody.
	Token Token
	// AllowedHosts are further values of the Host header, "name" or "name:port" in lower
	// case, for a reverse proxy on the same machine. Each weakens the protection
	// against DNS rebinding by that one name. Default none.
	AllowedHosts []string
}

// Guard checks requests. Its zero value refuses all. Safe for concurrent use.
type Guard struct {
	cfg Config
}

// New returns a guard for cfg.
func New(cfg Config) *Guard {
	cfg.AllowedHosts = slices.Clone(cfg.AllowedHosts)
	return &Guard{cfg: cfg}
}

// Check returns nil if r may go on, else one of [ErrHost], [ErrOrigin], [ErrNoToken] and
// [ErrToken]. A request must have come through an
// [http.Server], which says at which local address it arrived.
func (g *Guard) Check(r *http.Request) error {
	if err := g.CheckBrowser(r); err != nil {
		return err
	}
	return g.CheckToken(r)
}

// CheckBrowser is the part of [Guard.Check] that routes open to all on loopback need,
// too: Host, Origin and Sec-Fetch-Site.
func (g *Guard) CheckBrowser(r *http.Request) error {
	if !g.hostAllowed(r.Context(), r.Host) || !singleHost(r) {
		return ErrHost
	}
	if !originAllowed(r) {
		return ErrOrigin
	}
	return nil
}

// CheckToken is the part of [Guard.Check] about who is calling. The token is taken
// from one Authorization header only: never from the URL, where it would end in logs
// and histories, nor from a cookie, which a browser would add by itself.
func (g *Guard) CheckToken(r *http.Request) error {
	headers := r.Header["Authorization"]
	if len(headers) == 0 {
		return ErrNoToken
	}
	scheme, token, ok := strings.Cut(headers[0], " ")
	if len(headers) > 1 || !ok || !asciiEqualFold(scheme, "bearer") || !g.cfg.Token.Matches(token) {
		return ErrToken
	}
	return nil
}

// hostAllowed compares host byte by byte with the few forms that a client of this
// listener sends. Anything cleverer, such as resolving it or folding Unicode case, is
// how such checks have been fooled.
func (g *Guard) hostAllowed(ctx context.Context, host string) bool {
	if host == "" {
		return false
	}
	if addr, ok := ctx.Value(http.LocalAddrContextKey).(*net.TCPAddr); ok && addr.IP.IsLoopback() {
		port := ":" + strconv.Itoa(addr.Port)
		if host == "127.0.0.1"+port || host == "localhost"+port || host == "[::1]"+port {
			return true
		}
	}
	return slices.Contains(g.cfg.AllowedHosts, host)
}

// singleHost refuses a request that names two hosts: an HTTP/2 one whose Host header, or
// whose :path that is a whole URL, disagrees with :authority, which is what net/http uses.
func singleHost(r *http.Request) bool {
	if r.URL.Host != "" && r.URL.Host != r.Host {
		return false
	}
	for _, h := range r.Header["Host"] {
		if h != r.Host {
			return false
		}
	}
	return true
}

// originAllowed lets through what a program sends (no such headers) and what a page
// served by this very host sends. r.Host has been checked before.
func originAllowed(r *http.Request) bool {
	if origins, ok := r.Header["Origin"]; ok {
		if len(origins) != 1 || origins[0] != "http://"+r.Host && origins[0] != "https://"+r.Host {
			return false
		}
	}
	for _, site := range r.Header["Sec-Fetch-Site"] {
		if site != "same-origin" && site != "none" {
			return false
		}
	}
	return true
}

// asciiEqualFold compares with lower, which is lower-case ASCII. strings.EqualFold
// would take the Kelvin sign for a k.
func asciiEqualFold(s, lower string) bool {
	if len(s) != len(lower) {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
