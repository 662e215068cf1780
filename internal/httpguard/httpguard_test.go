package httpguard

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/shoalmesh/shoal"
)

const secret = "s3cret"

// request is a request as it would have arrived at 127.0.0.1:7420.
func request(change func(*http.Request)) *http.Request {
	r, err := http.NewRequest(http.MethodPost, "/shoal.v1.NodeService/Status", http.NoBody)
	if err != nil {
		panic(err)
	}
	local := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7420}
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
	r.Host = "127.0.0.1:7420"
	r.Header.Set("Authorization", "Bearer "+secret)
	if change != nil {
		change(r)
	}
	return r
}

func guard() *Guard {
	return New(Config{Token: TokenOf(secret), AllowedHosts: []string{"shoal.example", "shoal.example:8443"}})
}

func TestGoodRequestsPass(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"plain":            nil,
		"localhost":        func(r *http.Request) { r.Host = "localhost:7420" },
		"ipv6":             func(r *http.Request) { r.Host = "[::1]:7420" },
		"allowed":          func(r *http.Request) { r.Host = "shoal.example" },
		"allowed port":     func(r *http.Request) { r.Host = "shoal.example:8443" },
		"same origin":      func(r *http.Request) { r.Header.Set("Origin", "http://127.0.0.1:7420") },
		"behind TLS proxy": func(r *http.Request) { r.Host = "shoal.example"; r.Header.Set("Origin", "https://shoal.example") },
		"fetch same":       func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") },
		"fetch typed":      func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "none") },
		"scheme's case":    func(r *http.Request) { r.Header.Set("Authorization", "bEaReR "+secret) },
		"h2 host agrees":   func(r *http.Request) { r.Header["Host"] = []string{r.Host} },
	} {
		if err := guard().Check(request(change)); err != nil {
			t.Errorf("%s: got %v, want it let through", name, err)
		}
	}
}

// badHosts are Host headers that reach 127.0.0.1:7420 by trickery or mistake.
var badHosts = []string{
	"", "evil.test", "evil.test:7420", "127.0.0.1", "localhost", "[::1]", "127.0.0.1:7421", "localhost:80",
	"127.0.0.1:07420", "127.0.0.1:7420.", "localhost.:7420", "LOCALHOST:7420", "Localhost:7420", "loca\u017fhost:7420",
	"localhost.evil.test:7420", "127.0.0.1.evil.test:7420", "127.0.0.1.nip.io:7420", "evil.test#127.0.0.1:7420",
	"127.0.0.1:7420@evil.test", "evil.test@127.0.0.1:7420", "user:pass@127.0.0.1:7420", "127.0.0.1:7420,evil.test",
	"127.0.0.1:7420 evil.test", " 127.0.0.1:7420", "127.0.0.1:7420 ", "127.0.0.1:7420\x00", "127.0.0.1:7420\t",
	"0.0.0.0:7420", "[::]:7420", "127.1:7420", "127.0.0.2:7420", "2130706433:7420", "0x7f000001:7420", "0177.0.0.1:7420",
	"[::ffff:127.0.0.1]:7420", "[0:0:0:0:0:0:0:1]:7420", "[::1%25lo]:7420", "::1:7420", "[::1]7420", "localhost:7420/",
	"http://localhost:7420", "localhost:", ":7420", "127.0.0.1:", "127。0。0。1:7420", "shoal.example.:8443", "x.shoal.example",
	"SHOAL.example", "shoal.example:7420",
}

// badOrigins are Origin headers of pages that are not served by 127.0.0.1:7420.
var badOrigins = []string{
	"", "null", "http://evil.test", "http://evil.test:7420", "https://evil.test", "file://", "http://127.0.0.1",
	"http://127.0.0.1:7421", "http://localhost:7420", "http://127.0.0.1:7420/", "http://127.0.0.1:7420.evil.test",
	"HTTP://127.0.0.1:7420", "//127.0.0.1:7420", "127.0.0.1:7420", "http://127.0.0.1:7420 http://evil.test",
	"http://user@127.0.0.1:7420", "ws://127.0.0.1:7420", "chrome-extension://abc", "moz-extension://abc", "http://[::1]:7420",
	"data:", "http://127.0.0.1:7420,http://evil.test",
}

func TestForeignHostsAndOriginsAreRefused(t *testing.T) {
	refused := 0
	check := func(what string, want error, change func(*http.Request)) {
		if err := guard().Check(request(change)); err != want { //nolint:errorlint // the very sentinel
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
		refused++
	}
	for _, h := range badHosts {
		check("host "+h, ErrHost, func(r *http.Request) { r.Host = h })
	}
	check("host header beside :authority", ErrHost, func(r *http.Request) { r.Header["Host"] = []string{"evil.test"} })
	check("host in the path", ErrHost, func(r *http.Request) { r.URL.Host = "evil.test" })
	check("no local address", ErrHost, func(r *http.Request) {
		*r = *r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, nil))
	})
	check("local address beyond loopback", ErrHost, func(r *http.Request) {
		addr := &net.TCPAddr{IP: net.IPv4(192, 168, 1, 2), Port: 7420}
		*r = *r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, addr))
	})
	for _, o := range badOrigins {
		check("origin "+o, ErrOrigin, func(r *http.Request) { r.Header["Origin"] = []string{o} })
	}
	check("two origins", ErrOrigin, func(r *http.Request) {
		r.Header["Origin"] = []string{"http://127.0.0.1:7420", "http://evil.test"}
	})
	check("no origin value", ErrOrigin, func(r *http.Request) { r.Header["Origin"] = []string{} })
	for _, site := range []string{"cross-site", "same-site", "", "Same-Origin", "same-origin, cross-site", "x"} {
		check("fetch site "+site, ErrOrigin, func(r *http.Request) { r.Header["Sec-Fetch-Site"] = []string{site} })
	}
	check("two fetch sites", ErrOrigin, func(r *http.Request) { r.Header["Sec-Fetch-Site"] = []string{"none", "cross-site"} })
	t.Logf("%d forms of Host, Origin and Sec-Fetch-Site, 0 let through", refused)
	if refused < 40 {
		t.Errorf("only %d forms tried", refused)
	}
}

func TestTokenIsNeeded(t *testing.T) {
	for name, c := range map[string]struct {
		headers []string
		want    error
	}{
		"none":         {nil, ErrNoToken},
		"empty":        {[]string{""}, ErrToken},
		"scheme only":  {[]string{"Bearer"}, ErrToken},
		"no value":     {[]string{"Bearer "}, ErrToken},
		"wrong":        {[]string{"Bearer wrong"}, ErrToken},
		"prefix":       {[]string{"Bearer " + secret[:5]}, ErrToken},
		"longer":       {[]string{"Bearer " + secret + "x"}, ErrToken},
		"space":        {[]string{"Bearer  " + secret}, ErrToken},
		"trailing":     {[]string{"Bearer " + secret + " "}, ErrToken},
		"case":         {[]string{"Bearer " + strings.ToUpper(secret)}, ErrToken},
		"basic":        {[]string{"Basic " + secret}, ErrToken},
		"kelvin":       {[]string{"Bea\u212aer " + secret}, ErrToken},
		"bare":         {[]string{secret}, ErrToken},
		"two":          {[]string{"Bearer " + secret, "Bearer wrong"}, ErrToken},
		"two the same": {[]string{"Bearer " + secret, "Bearer " + secret}, ErrToken},
		"huge":         {[]string{"Bearer " + strings.Repeat("x", 1<<20)}, ErrToken},
	} {
		r := request(func(r *http.Request) {
			delete(r.Header, "Authorization")
			if c.headers != nil {
				r.Header["Authorization"] = c.headers
			}
		})
		if err := guard().Check(r); err != c.want { //nolint:errorlint // the very sentinel
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	inURL := request(func(r *http.Request) {
		r.Header.Del("Authorization")
		r.URL.RawQuery = "token=" + secret + "&access_token=" + secret
		r.AddCookie(&http.Cookie{Name: "token", Value: secret})
	})
	if err := guard().Check(inURL); err != ErrNoToken { //nolint:errorlint // the very sentinel
		t.Errorf("token in URL and cookie: got %v, want %v", err, ErrNoToken)
	}
}

func TestZeroTokenMatchesNothing(t *testing.T) {
	for _, s := range []string{"", "x", "\x00"} {
		if (Token{}).Matches(s) || TokenOf("").Matches(s) {
			t.Errorf("the zero token matches %q", s)
		}
	}
	if err := (&Guard{}).Check(request(nil)); err != ErrToken { //nolint:errorlint // the very sentinel
		t.Errorf("zero guard: got %v, want %v", err, ErrToken)
	}
}

func TestTokenFileIsMadeOnceAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	first, err := OpenToken(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(first) != 43 {
		t.Errorf("token has %d characters, want 43 (256 bits)", len(first))
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("token file: %v, %v, want mode 0600", info.Mode(), err)
	}
	again, err := OpenToken(path)
	if err != nil || again != first {
		t.Errorf("second open: got %q, %v, want the same token", again, err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestBadTokenFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
		return path
	}
	good := strings.Repeat("A", 43)
	if _, err := OpenToken(write("control", good+"\n", 0o600)); err != nil {
		t.Fatalf("control: %v", err)
	}
	sub := filepath.Join(dir, "dir")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	cases := map[string]string{
		write("empty", "", 0o600):                   "token_file_damaged",
		write("short", good[:42], 0o600):            "token_file_damaged",
		write("long", good+"A", 0o600):              "token_file_damaged",
		write("chars", "*"+good[1:], 0o600):         "token_file_damaged",
		write("padding bits", good[:42]+"B", 0o600): "token_file_damaged",
		sub: "token_file_damaged",
	}
	if runtime.GOOS != "windows" {
		cases[write("group", good, 0o640)] = "token_file_open"
		cases[write("others", good, 0o604)] = "token_file_open"
	}
	for path, want := range cases {
		_, err := OpenToken(path)
		if got := shoal.AsError(err); err == nil || got.Reason != want {
			t.Errorf("%s: got %v, want %s", filepath.Base(path), err, want)
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, h := range badHosts {
		f.Add(h, "http://evil.test", "Bearer "+secret)
	}
	f.Add("127.0.0.1:7420", "http://127.0.0.1:7420", "Bearer "+secret)
	good := map[string]bool{
		"127.0.0.1:7420": true, "localhost:7420": true, "[::1]:7420": true, "shoal.example": true, "shoal.example:8443": true,
	}
	f.Fuzz(func(t *testing.T, host, origin, auth string) {
		err := guard().Check(request(func(r *http.Request) {
			r.Host = host
			r.Header["Origin"] = []string{origin}
			r.Header["Authorization"] = []string{auth}
		}))
		scheme, token, _ := strings.Cut(auth, " ")
		want := good[host] && (origin == "http://"+host || origin == "https://"+host) &&
			strings.ToLower(scheme) == "bearer" && len(scheme) == 6 && token == secret
		if (err == nil) != want {
			t.Errorf("host %q origin %q auth %q: got %v, want let through = %v", host, origin, auth, err, want)
		}
	})
}
